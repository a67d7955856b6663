"""A checkpoint is the old one or the new one, whole, bit for bit, and never a pickle."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvae import checkpoint
from ppvae.errors import RunError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
UNUSUAL = {
    "0-d": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "expanded": torch.ones(1, 3).expand(4, 3),
    "part of another": torch.arange(10.0)[3:5],
    "with gradient": torch.ones(2, requires_grad=True),
    "nan and inf": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 5e-324]),
}
STATES: dict[str, Any] = {
    "None": None,
    "numbers": [1, -2.5, True, 2**62],
    "floats": [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf],
    "text": "äöü \u2028 \x00",
    "tuple": (1, (2, [3, (4,)])),
    "dict": {"a": {"b": [{"c": 1}]}, 3: "three", "3": "another"},
    "empty": [{}, [], ()],
    "words of the format": {"tensor": "state", "dict": [], "tuple": {"tensor": 1}},
}


def same_bits(a, b):
    """Nested states, equal in structure, types and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.detach().contiguous().view(-1).equal(b.detach().contiguous().view(-1))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return repr(a) == repr(b)


def there_and_back(folder, tensors, state):
    checkpoint.save(folder, "step-00000001", tensors, state)
    return checkpoint.load(folder, "step-00000001")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_back_in_their_type(dtype, tmp_path):
    value = torch.tensor([[0, 1], [2, 3]]).to(dtype)
    found, _ = there_and_back(tmp_path, {"model.weight": value}, None)
    assert same_bits(found, {"model.weight": value})


@pytest.mark.parametrize("value", UNUSUAL.values(), ids=UNUSUAL)
def test_tensors_of_any_layout_come_back(value, tmp_path):
    found, _ = there_and_back(tmp_path, {"a/b": value}, None)
    assert found["a/b"].shape == value.shape
    assert found["a/b"].numpy().tobytes() == value.detach().contiguous().numpy().tobytes()


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_state_comes_back(state, tmp_path):
    assert same_bits(there_and_back(tmp_path, {}, state)[1], state)


def test_state_with_nan_comes_back(tmp_path):
    assert math.isnan(there_and_back(tmp_path, {}, {"a": math.nan})[1]["a"])


ALIKE = {
    "a path and a key": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}},
    "a number and its text": {0: torch.zeros(1), "0": torch.ones(1)},
    "a list and a dict": [{"0": torch.zeros(1)}, [torch.ones(1)], {"x": [torch.full((1,), 2.0)], "x/0": torch.full((1,), 3.0)}],
}


@pytest.mark.parametrize("state", ALIKE.values(), ids=ALIKE)
def test_tensors_under_names_that_read_alike_stay_apart(state, tmp_path):
    assert same_bits(there_and_back(tmp_path, {}, state)[1], state)


keys = st.one_of(st.text(max_size=4), st.integers(-3, 3))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(max_size=6),
    st.lists(st.floats(allow_nan=False, width=32), max_size=4).map(torch.tensor),
)


def nested(inner):
    return st.one_of(inner, st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=3))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(state=nested(nested(leaves)))
def test_any_nested_state_comes_back(state, tmp_path_factory):
    assert same_bits(there_and_back(tmp_path_factory.mktemp("state"), {}, state)[1], state)


def test_state_that_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(RunError) as raised:
        checkpoint.save(tmp_path, "step-00000001", {}, {"a": [1, {2}]})
    assert str(raised.value) == "cannot save a set in a checkpoint\n  where: state/a/1"


def test_float_in_a_json_file_keeps_every_bit(tmp_path):
    values = [0.1, 1 / 3, math.pi, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 2.0]
    checkpoint.write_json(tmp_path / "a.json", values)
    assert [value.hex() for value in checkpoint.read_json(tmp_path / "a.json")] == [value.hex() for value in values]


def test_checkpoint_is_json_and_safetensors_and_nothing_else(tmp_path):
    there_and_back(tmp_path, {"a": torch.ones(2)}, {"b": torch.ones(2)})
    payload = (tmp_path / "step-00000001.safetensors").read_bytes()
    header = payload[8 : 8 + int.from_bytes(payload[:8], "little")]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert set(json.loads(header)) == {"tensors/a", "state/b#1"}


# Damage.


@pytest.fixture
def two(tmp_path):
    """Checkpoints 1 and 2 of one tensor that holds their number."""
    for i in (1, 2):
        checkpoint.save(tmp_path, f"step-{i:08d}", {"a": torch.full((4,), float(i))}, {"i": i, "x": 0.5})
    return tmp_path


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES = {
    "flipped bit": lambda content: flipped(content, len(content) - 3),
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\x00",
    "empty": lambda content: b"",
    "zeros at the end": lambda content: content[:-8] + b"\x01" * 8,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_payload_gives_way_to_the_one_before(damage, two):
    path = two / "step-00000002.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    name, tensors, state, damaged = checkpoint.newest(two)
    assert (name, tensors["a"].tolist(), state["i"]) == ("step-00000001", [1.0] * 4, 1)
    assert damaged[0].startswith(f"{path} is damaged: sha256 ")


def test_damaged_payload_is_refused_by_name_and_hash(two):
    path = two / "step-00000002.safetensors"
    good, bad = path.read_bytes(), flipped(path.read_bytes(), 100)
    path.write_bytes(bad)
    with pytest.raises(RunError) as raised:
        checkpoint.load(two, "step-00000002")
    digests = [hashlib.sha256(content).hexdigest()[:12] for content in (bad, good)]
    assert str(raised.value) == f"{path} is damaged: sha256 {digests[0]}..., expected {digests[1]}..."


RECORDS = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "deep": lambda text: "[" * 100_000,
    "another value": lambda text: text.replace("0.5", "0.7"),
    "a list": lambda text: "[]",
    "without a hash": lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "state_sha256"}),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
def test_damaged_record_gives_way_to_the_one_before(damage, two):
    path = two / "step-00000002.json"
    path.write_text(damage(path.read_text()))
    assert checkpoint.newest(two)[0] == "step-00000001"


def test_record_of_the_first_version_is_read(two):
    path = two / "step-00000002.json"
    record = {**json.loads(path.read_text()), "schema": 1}
    del record["state_sha256"]
    path.write_text(json.dumps(record))
    assert checkpoint.newest(two)[0] == "step-00000002"


def test_payload_without_a_record_does_not_count(two):
    (two / "step-00000002.json").unlink()
    assert (checkpoint.newest(two)[0], checkpoint.newest(two)[3]) == ("step-00000001", [])


def test_record_without_a_payload_gives_way(two):
    (two / "step-00000002.safetensors").unlink()
    assert checkpoint.newest(two)[0] == "step-00000001"


def test_swapped_payloads_are_refused(two):
    first, second = (two / f"step-0000000{i}.safetensors" for i in (1, 2))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1]), second.write_bytes(contents[0])
    with pytest.raises(RunError, match=f"no sound checkpoint in {two}\n  where: .*00002.safetensors is damaged.*; .*00001.*is damaged"):
        checkpoint.newest(two)


def test_folder_without_checkpoints_has_no_newest(tmp_path):
    assert checkpoint.newest(tmp_path) is None


def test_newest_is_by_number(tmp_path):
    for step in (9, 10, 123456789, 2):
        checkpoint.save(tmp_path, f"step-{step:08d}", {}, step)
    assert checkpoint.names(tmp_path) == ["step-123456789", "step-00000010", "step-00000009", "step-00000002"]


def test_pruning_keeps_the_newest_two(tmp_path):
    for step in range(4):
        checkpoint.save(tmp_path, f"step-{step:08d}", {"a": torch.ones(1)}, step)
    checkpoint.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (2, 3) for suffix in ("json", "safetensors")
    ]


# Atomic writing.


def failing(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error")], ids=["full", "IO"]
)
def test_failed_write_leaves_the_old_content(call, number, reason, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    checkpoint.write_atomically(path, b"old")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(RunError) as raised:
        checkpoint.write_atomically(path, b"newer")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
    assert str(raised.value) == (
        f"cannot write {path}: {reason}\n"
        "  where: 5 bytes needed\n"
        "  mend:  free space or choose another folder; what was there before stands"
    )


class Died(BaseException):
    """Stands for the death of the process: nothing of ours may catch it."""


def dying(real, nth, after):
    """A call of the operating system in whose n-th use the process dies, before or after it took effect."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth + 1 and not after:
            raise Died
        real(*args, **kwargs)
        if len(calls) == nth + 1:
            raise Died

    return call


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(4))
def test_death_at_any_point_of_saving_leaves_the_old_checkpoint_or_the_new(nth, after, call, two, monkeypatch):
    monkeypatch.setattr(os, call, dying(getattr(os, call), nth, after))
    with contextlib.suppress(Died):
        checkpoint.save(two, "step-00000003", {"a": torch.full((4,), 3.0)}, {"i": 3})
    name, tensors, state, damaged = checkpoint.newest(two)
    assert (name[-1], tensors["a"].tolist(), damaged) == (str(state["i"]), [float(state["i"])] * 4, [])
    assert state["i"] in (2, 3)


def test_missing_json_file_is_named(tmp_path):
    with pytest.raises(RunError) as raised:
        checkpoint.read_json(tmp_path / "config.json")
    assert (
        str(raised.value) == f"{tmp_path / 'config.json'} is missing\n  mend:  is this a run folder? `ppvae train --out FOLDER` makes one"
    )
