"""A checkpoint is the old one or the new one, whole, bit for bit, and never a pickle."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ppvae import checkpoint, storage
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
    assert damaged[0].startswith(f"{path} is damaged: ")


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
    "of another layout": lambda text: json.dumps(json.loads(text), indent=1),
    "of a later version": lambda text: text.replace('"schema": 3', '"schema": 4'),
    "of an earlier version": lambda text: text.replace('"schema": 3', '"schema": 1'),
    "a pickle": lambda text: pickle.dumps(text, protocol=0).decode(),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
def test_damaged_record_gives_way_to_the_one_before(damage, two):
    path = two / "step-00000002.json"
    path.write_text(damage(path.read_text()))
    assert checkpoint.newest(two)[0] == "step-00000001"


@pytest.mark.parametrize(
    ("schema", "missing"), [(1, ["state_sha256", "name", "payload"]), (2, ["name", "payload"])], ids=["first", "second"]
)
def test_record_of_an_earlier_version_is_read(schema, missing, two):
    path = two / "step-00000002.json"
    record = {key: value for key, value in json.loads(path.read_text()).items() if key not in missing}
    path.write_text(json.dumps({**record, "schema": schema}, indent=1))
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


FILES = ["step-00000002.safetensors", "step-00000002.json"]


def assert_refused(folder, what):
    """The newest checkpoint is not taken, which is said, and the one before is as it was."""
    name, tensors, state, damaged = checkpoint.newest(folder)
    assert (name, tensors["a"].tolist(), state) == ("step-00000001", [1.0] * 4, {"i": 1, "x": 0.5}), what
    assert len(damaged) == 1 and "step-00000002" in damaged[0] and "\n" not in damaged[0], what


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_is_refused(file, two):
    content = (two / file).read_bytes()
    for length in range(len(content)):
        (two / file).write_bytes(content[:length])
        assert_refused(two, length)


@pytest.mark.parametrize("file", FILES)
def test_500_flipped_bits_are_refused(file, two):
    content, generator = (two / file).read_bytes(), random.Random(0)
    for _ in range(500):
        at, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
        (two / file).write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        assert_refused(two, (at, bit))


@pytest.mark.parametrize("file", FILES)
def test_every_tail_of_zeros_is_refused(file, two):
    """Zeros where the end of a file should be: what some file systems leave after a power cut."""
    content = (two / file).read_bytes()
    for length in range(1, len(content)):
        zeroed = content[:-length] + b"\0" * length
        if zeroed != content:  # the payload's last bytes are zeros as it is: 2.0 is 40 00 ...
            (two / file).write_bytes(zeroed)
            assert_refused(two, length)


def test_a_payload_of_another_step_is_refused(two):
    (two / FILES[0]).write_bytes((two / "step-00000001.safetensors").read_bytes())
    assert_refused(two, "payload")


def test_a_record_of_another_step_is_refused(two):
    (two / FILES[1]).write_bytes((two / "step-00000001.json").read_bytes())
    assert_refused(two, "record")


def test_a_whole_checkpoint_under_another_number_is_refused(two):
    for file in FILES:
        (two / file.replace("2", "9")).write_bytes((two / file.replace("2", "1")).read_bytes())
    assert checkpoint.newest(two)[0] == "step-00000002"
    assert checkpoint.newest(two)[3] == [f"{two / 'step-00000009.json'} is the record of another checkpoint: step-00000001"]


def test_damaged_checkpoints_do_not_push_out_sound_ones(two):
    """Kept as the two newest, a damaged one and one sound one would be all there is."""
    (two / "step-00000009.json").write_text("{")
    checkpoint.set_aside(two, newer_than="step-00000002")
    checkpoint.save(two, "step-00000003", {}, None)
    checkpoint.prune(two)
    assert checkpoint.names(two) == ["step-00000003", "step-00000002"]
    assert (two / "damaged-step-00000009.json").exists()


def test_a_step_that_is_saved_again_stands_until_the_new_one_is_committed(two, monkeypatch):
    """Once its file of tensors was overwritten, its record spoke of another: a death in between cost the newest checkpoint."""
    record = (two / "step-00000002.json").read_bytes()
    checkpoint.save(two, "step-00000002", {"a": torch.full((4,), 7.0)}, {"i": 7})
    new = (two / "step-00000002.json").read_bytes()
    (two / "step-00000002.json").write_bytes(record)  # the moment before the commit
    assert checkpoint.newest(two)[1]["a"].tolist() == [2.0] * 4
    (two / "step-00000002.json").write_bytes(new)
    assert checkpoint.newest(two)[1]["a"].tolist() == [7.0] * 4
    checkpoint.prune(two)
    assert len(list(two.glob("*.safetensors"))) == 2
    checkpoint.save(two, "step-00000002", {"a": torch.full((4,), 8.0)}, {"i": 8})
    checkpoint.prune(two)
    assert sorted(path.name for path in two.glob("*.safetensors")) == ["step-00000001.safetensors", "step-00000002.safetensors"]


@pytest.mark.parametrize("place", ["../step-00000002.safetensors", "step-00000001.safetensors", "/etc/passwd", 7], ids=str)
def test_a_record_that_speaks_of_another_file_is_refused(place, two):
    record = {**json.loads((two / "step-00000002.json").read_text()), "payload": place}
    (two / "step-00000002.json").write_text(json.dumps(record) + "\n")
    assert_refused(two, place)


def test_pruning_takes_along_what_dead_processes_left(two):
    """A death between two renames leaves a payload without a record, one before a rename a temporary file; each as large as a checkpoint."""
    for name in ("step-00000003.safetensors", "step-00000003.json.tmp-99999", "step-00000000.safetensors"):
        (two / name).write_bytes(b"left")
    (two / "notes.safetensors").write_bytes(b"the user's")
    checkpoint.prune(two)
    kept = [f"step-0000000{step}.{suffix}" for step in (1, 2) for suffix in ("json", "safetensors")]
    assert sorted(path.name for path in two.iterdir()) == ["notes.safetensors", *kept]


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


@pytest.fixture
def room(monkeypatch):
    """A disk with 1,234 bytes free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2000, 766, 1234))


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error")], ids=["full", "IO"]
)
def test_failed_write_leaves_the_old_content(call, number, reason, tmp_path, monkeypatch, room):
    path = tmp_path / "a.json"
    checkpoint.write_atomically(path, b"old")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(RunError) as raised:
        checkpoint.write_atomically(path, b"newer")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
    assert str(raised.value) == (
        f"cannot write {path}: {reason}\n"
        f"  where: 5 bytes needed, 1,234 bytes free in {tmp_path}\n"
        "  mend:  free space or choose another folder; what was there before stands"
    )


FAILING = ["open", "write", "flush", "fsync", "replace", "folder"]
ERRORS = {"full": errno.ENOSPC, "IO": errno.EIO, "read-only": errno.EROFS, "forbidden": errno.EACCES, "quota": errno.EDQUOT}


def fail_at(call, number, nth, monkeypatch):
    """Let the n-th use of a call fail, counted from 0."""
    calls = itertools.count()

    def failing_once(real):
        def call(*args, **kwargs):
            if next(calls) == nth:
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return call

    class File:
        def __init__(self, file):
            self.file, self.fileno = file, file.fileno
            for name in ("write", "flush"):
                setattr(self, name, failing_once(getattr(file, name)) if name == call else getattr(file, name))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    if call in ("write", "flush"):
        real = open
        monkeypatch.setattr(
            "builtins.open", lambda path, mode="r", **rest: File(real(path, mode)) if "w" in mode else real(path, mode, **rest)
        )
    elif call == "open":
        monkeypatch.setattr("builtins.open", failing_once(open))
    else:
        name = {"folder": "open"}.get(call, call)
        monkeypatch.setattr(os, name, failing_once(getattr(os, name)))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", FAILING)
@pytest.mark.parametrize("nth", [0, 1])
def test_save_that_fails_anywhere_leaves_the_checkpoint_before(nth, call, error, two, monkeypatch, room):
    with monkeypatch.context() as patch, pytest.raises(RunError) as raised:
        fail_at(call, ERRORS[error], nth, patch)
        checkpoint.save(two, "step-00000003", {"a": torch.full((4,), 3.0)}, {"i": 3, "x": 0.5})
    assert raised.value.exit_code == 74
    assert raised.value.problem.startswith(f"cannot write {two / 'step-00000003.'}")
    assert raised.value.where.endswith(f" bytes needed, 1,234 bytes free in {two}")
    name, tensors, state, damaged = checkpoint.newest(two)
    assert (tensors["a"].tolist(), damaged) == ([float(state["i"])] * 4, [])
    committed = nth == 1 and call == "folder"  # the record was renamed, and only that it lasts is not sure
    assert name == ("step-00000003" if committed else "step-00000002")
    assert not list(two.glob("*.tmp-*"))


def test_room_is_tried_before_it_is_needed(tmp_path, monkeypatch, room):
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(RunError) as raised:
        storage.check_room(tmp_path / "new", 5000)
    assert str(raised.value) == (
        f"cannot write {tmp_path / 'new'}: No space left on device\n"
        f"  where: 5,000 bytes needed, 1,234 bytes free in {tmp_path / 'new'}\n"
        "  mend:  free space or choose another folder; what was there before stands"
    )
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("needed", "said"), [(617, ""), (618, "little room in {}: 618 bytes needed, 1,234 bytes free, less than twice that")], ids=str
)
def test_little_room_is_less_than_twice_what_is_needed(needed, said, tmp_path, room):
    assert storage.little_room(tmp_path, needed) == said.format(tmp_path)


def test_room_that_nobody_knows_of_is_not_said_to_be_little(tmp_path):
    assert storage.little_room(tmp_path / "gone", 1 << 60) == ""


def test_what_cannot_be_deleted_is_named(two, monkeypatch):
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    with pytest.raises(RunError, match=f"cannot delete {two / 'step-00000001.json'}: Read-only file system"):
        checkpoint.prune(two, keep=1)


UNSAVED = {
    "sparse": (torch.eye(2).to_sparse(), "cannot save a tensor of layout torch.sparse_coo in a checkpoint\n  where: model.a"),
    "complex128": (
        torch.zeros(2, dtype=torch.complex128),
        "cannot save a tensor of torch.complex128 in a checkpoint\n  where: tensors/model.a",
    ),
}


@pytest.mark.parametrize(("value", "message"), UNSAVED.values(), ids=UNSAVED)
def test_tensors_that_no_file_can_hold_are_refused(value, message, tmp_path):
    with pytest.raises(RunError) as raised:
        checkpoint.save(tmp_path, "step-00000001", {"model.a": value}, None)
    assert str(raised.value) == message
    assert not list(tmp_path.iterdir())


def test_conjugate_views_are_saved_as_what_they_show(tmp_path):
    """A conjugate view has its sign in a flag; its memory alone would come back with the other sign."""
    value = torch.tensor([1 + 2j], dtype=torch.complex64)
    found, _ = there_and_back(tmp_path, {"a": value.conj(), "b": value.conj().imag}, None)
    assert (found["a"].item(), found["b"].item()) == (1 - 2j, -2.0)


def test_long_texts_go_with_the_tensors(tmp_path):
    """The history of a long run: in the record it would outgrow what is read of a foreign JSON file."""
    text = "€" * checkpoint.LONG_TEXT + "\ud800"
    assert there_and_back(tmp_path, {}, {"history": text})[1] == {"history": text}
    assert (tmp_path / "step-00000001.json").stat().st_size < 1000


def test_a_checkpoint_too_large_to_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_TENSORS", 3)
    with pytest.raises(RunError, match="cannot save 3 tensors in one checkpoint\n  where: a header of .* for 3 tensors"):
        checkpoint.save(tmp_path, "step-00000001", {name: torch.zeros(1) for name in "abc"}, None)
    assert not list(tmp_path.iterdir())


# Any tensors, and any order of what can happen to a folder.

DTYPES_OF_NUMBERS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool]


@st.composite
def tensors_of_any_kind(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    value = torch.arange(math.prod(shape)).sub(2).to(draw(st.sampled_from(DTYPES_OF_NUMBERS))).reshape(shape)
    way = draw(st.sampled_from(["plain", "transposed", "expanded", "slice", "parameter"]))
    if way == "transposed":
        return value.movedim(0, -1) if value.dim() else value
    if way == "expanded":
        return value.expand(2, *shape)
    if way == "slice" and value.dim() and len(value):
        return value[len(value) // 2 :]
    return value.requires_grad_() if way == "parameter" and value.is_floating_point() else value


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    tensors=st.dictionaries(st.text(max_size=5), tensors_of_any_kind(), max_size=4),
    shared=st.lists(st.text(max_size=5), max_size=2),
)
def test_any_tensors_come_back(tensors, shared, tmp_path_factory):
    tensors |= {name: next(iter(tensors.values())) for name in shared if tensors}  # one tensor under two names
    found, _ = there_and_back(tmp_path_factory.mktemp("tensors"), tensors, None)
    assert same_bits({name: found[name] for name in tensors}, {name: value.detach() for name, value in tensors.items()})
    assert found.keys() == tensors.keys()


class Died(BaseException):
    """Stands for the death of the process in the middle of a call."""


class Folder(RuleBasedStateMachine):
    """A folder of checkpoints in which steps are saved and pruned, processes die and bytes rot: what is found is what was saved."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.step, self.value = 0, torch.zeros(3)
        self.saved = {}
        self.sound = set()  # what must still be there

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule(by=st.integers(1, 3))
    def take_steps(self, by):
        self.step += by
        self.value = self.value + by / 7

    @rule()
    def save(self):
        name = f"step-{self.step:08d}"
        checkpoint.save(self.folder, name, {"a": self.value}, {"step": self.step})
        self.saved[name] = self.value
        self.sound.add(name)

    @rule()
    def prune(self):
        if self.folder.exists():
            checkpoint.prune(self.folder)
            self.sound &= set(checkpoint.names(self.folder))

    @rule(call=st.sampled_from(["replace", "fsync"]), nth=st.integers(0, 3), after=st.booleans())
    def die_while_saving(self, call, nth, after):
        name, calls, real = f"step-{self.step + 1:08d}", itertools.count(), getattr(os, call)

        def dying(*args):
            last = next(calls) == nth
            if not (last and not after):
                real(*args)
            if last:
                raise Died

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
            patch.setattr(os, call, dying)
            checkpoint.save(self.folder, name, {"a": self.value + 9}, {"step": self.step + 1})
            raise Died  # fewer calls than that
        self.saved[name] = self.value + 9  # it may be there or not

    @rule(data=st.data())
    def rot(self, data):
        files = sorted(self.folder.glob("step-*"))
        if len(self.sound) < 2 or not files:
            return
        path = data.draw(st.sampled_from(files))
        content = path.read_bytes()
        at = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(flipped(content, at))
        self.sound.discard(path.stem)

    @rule()
    def resume(self):
        found = checkpoint.newest(self.folder) if self.folder.exists() and self.sound else None
        if found is None:
            return
        name, tensors, state, _ = found
        checkpoint.set_aside(self.folder, newer_than=name)
        self.step, self.value = state["step"], tensors["a"]
        assert checkpoint.newest(self.folder)[3] == []

    @invariant()
    def what_is_found_is_what_was_saved(self):
        if not self.sound:
            return
        name, tensors, state, _ = checkpoint.newest(self.folder)
        assert name >= max(self.sound)
        assert state["step"] == int(name[5:])
        assert torch.equal(tensors["a"], self.saved[name])


Folder.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None, derandomize=True)
TestFolder = Folder.TestCase


def test_missing_json_file_is_named(tmp_path):
    with pytest.raises(RunError) as raised:
        checkpoint.read_json(tmp_path / "config.json")
    assert (
        str(raised.value) == f"{tmp_path / 'config.json'} is missing\n  mend:  is this a run folder? `ppvae train --out FOLDER` makes one"
    )
