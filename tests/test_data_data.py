"""A Data keeps what was stored, shows what the model sees, and says where it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ppvae import data
from ppvae.data import Data
from ppvae.data.kept import KeptBatches

ROWS = [slice(1, 3), torch.tensor([2, 0]), torch.tensor([-1]), torch.tensor([True, False, True]), slice(None, None, -1)]
ROW_NUMBERS = [[1, 2], [2, 0], [2], [0, 2], [2, 1, 0]]
IDS = ["slice", "numbers", "from the end", "mask", "backwards"]


def values(dtype=torch.float64):
    return torch.tensor([[0.5, 1.0], [2.0, -3.0], [4.0, 5.0]], dtype=dtype)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
        (torch.uint8, torch.float32),
        (torch.bool, torch.float32),
    ],
    ids=str,
)
def test_model_sees_float32_unless_given_float64(given, seen):
    found = Data.of(torch.ones(3, 2, dtype=given))
    assert (found.x.dtype, found.raw.dtype) == (seen, given)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "<u2", "<u4", "?", "f2"])
def test_arrays_of_any_number_type_are_taken(dtype):
    assert Data.of(np.array([[0, 1], [1, 0]], dtype=dtype)).x.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("view", [lambda x: x[::-1], lambda x: x.T, lambda x: x[:, ::2], np.asfortranarray], ids=["flip", "T", "step", "F"])
def test_arrays_of_any_layout_are_taken(view):
    array = view(np.arange(12.0).reshape(3, 4))
    assert np.array_equal(Data.of(array).x.numpy(), array)


def test_read_only_arrays_are_taken():
    array = np.ones((3, 2))
    array.flags.writeable = False
    assert Data.of(array).x.shape == (3, 2)


@pytest.mark.parametrize(("rows", "numbers"), list(zip(ROWS, ROW_NUMBERS, strict=True)), ids=IDS)
def test_batch_is_rows_of_x(rows, numbers):
    assert torch.equal(Data.of(values()).batch(rows, None), values()[numbers])


@pytest.mark.parametrize(("rows", "numbers"), list(zip(ROWS, ROW_NUMBERS, strict=True)), ids=IDS)
def test_subset_is_rows_of_everything(rows, numbers):
    found = Data.of(values(), labels=np.array([7, 8, 9]))[rows]
    assert len(found) == len(numbers)
    assert torch.equal(found.x, values()[numbers])
    assert torch.equal(found.raw, values()[numbers])
    assert found.labels is not None
    assert found.labels.tolist() == [7 + i for i in numbers]


def test_subsets_nest():
    assert Data.of(values())[1:][torch.tensor([1])].x.tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("rows", "split"),
    [(slice(2), "train[:2]"), (slice(1, 3), "train[1:3]"), (slice(0, 3, 2), "train[0:3:2]"), (torch.tensor([0, 2]), "train[2 rows]")],
    ids=["first", "middle", "step", "numbers"],
)
def test_split_name_tells_the_subset(rows, split):
    assert Data.of(values(), split="train")[rows].split == split


def test_subset_keeps_where_it_comes_from():
    found = Data.from_arrays(values().abs() / 8, name="rates", split="test", binarize="static", seed=3)[:2]
    assert (found.name, found.binarize, found.seed, found.measure) == ("rates", "static", 3, "counting")


def test_hash_is_that_of_the_bytes_of_x():
    assert Data.of(values()).sha256 == hashlib.sha256(values().numpy().tobytes()).hexdigest()


def test_hash_in_chunks_is_the_hash_of_the_whole(monkeypatch):
    monkeypatch.setattr("ppvae.data.arrays.CHUNK_ELEMENTS", 4)
    assert Data.of(values()).sha256 == hashlib.sha256(values().numpy().tobytes()).hexdigest()


def test_hash_follows_binarisation():
    found = Data.from_arrays(values().abs(), binarize="threshold", levels=5)
    assert found.sha256 == hashlib.sha256(np.array([[0, 0], [0, 1], [1, 1]], dtype=np.float64).tobytes()).hexdigest()


def test_description_is_ready_for_json():
    found = Data.of(values(), name="rates", split="test")
    assert json.loads(json.dumps(found.describe())) == {
        "name": "rates",
        "split": "test",
        "binarize": "none",
        "seed": 0,
        "measure": "Lebesgue",
        "sha256": found.sha256,
        "num_data": 3,
        "event_shape": [2],
    }


def test_printing_is_one_line():
    assert repr(Data.of(values())) == "Data(array all: 3 rows of (2,), binarize=none, Lebesgue)"


@pytest.mark.parametrize(
    ("x", "measure"),
    [
        (torch.tensor([[0, 3]]), "counting"),
        (torch.tensor([[0.0, 3.0]]), "counting"),
        (torch.tensor([[0.0, 0.5]]), "Lebesgue"),
        ((torch.tensor([[1, 2]]), torch.tensor([2])), "counting"),
        ((torch.tensor([[0.5]]), torch.tensor([2])), "Lebesgue x counting"),
    ],
    ids=["integers", "whole floats", "reals", "tokens", "both"],
)
def test_measure_is_that_of_the_values(x, measure):
    assert Data.of(x).measure == measure


def test_flattening_leaves_rows():
    found = Data.from_arrays(torch.arange(12.0).reshape(3, 2, 2), flatten=True)
    assert (found.event_shape, found.x.shape, found.raw.shape) == ((4,), (3, 4), (3, 4))


def test_a_data_is_taken_as_it_is():
    found = Data.of(values())
    assert Data.of(found) is found


def test_a_data_can_be_given_labels():
    found = Data.of(Data.of(values()), labels=torch.tensor([1, 2, 3], dtype=torch.uint8)).labels
    assert found is not None
    assert (found.tolist(), found.dtype) == ([1, 2, 3], torch.int64)


def test_float_labels_of_whole_numbers_become_integers():
    found = Data.of(values(), labels=np.array([1.0, 2.0, 0.0])).labels
    assert found is not None
    assert found.dtype == torch.int64


def test_gradients_stay_outside():
    assert not Data.of(values().requires_grad_()).x.requires_grad


class Sentence(NamedTuple):
    tokens: torch.Tensor
    length: torch.Tensor


TOKENS, LENGTHS = torch.tensor([[5, 6], [7, 0], [8, 9]], dtype=torch.int32), torch.tensor([2, 1, 2])


def test_a_dict_stays_a_dict():
    found = Data.of({"tokens": TOKENS, "length": LENGTHS})
    batch = found.batch(torch.tensor([1]), None)
    assert found.event_shape == {"tokens": (2,), "length": ()}
    assert (batch["tokens"].tolist(), batch["length"].tolist()) == ([[7, 0]], [1])


def test_a_tuple_keeps_its_types_and_its_class():
    found = Data.of(Sentence(TOKENS, LENGTHS))[1:]
    assert isinstance(found.x, Sentence)
    assert (found.x.tokens.dtype, found.x.length.dtype, len(found)) == (torch.int32, torch.int64, 2)


def test_half_precision_inside_a_tuple_becomes_float32():
    found = Data.of((torch.ones(3, 2, dtype=torch.float16), LENGTHS))
    assert [leaf.dtype for leaf in found.x] == [torch.float32, torch.int64]


def test_hash_of_a_dict_tells_its_members_apart():
    hashes = {
        Data.of(x).sha256 for x in ({"a": TOKENS, "b": LENGTHS}, {"b": TOKENS, "a": LENGTHS}, (TOKENS, LENGTHS), (TOKENS, LENGTHS + 1))
    }
    assert len(hashes) == 4


def test_description_of_a_dict_is_ready_for_json():
    found = json.loads(json.dumps(Data.of({"tokens": TOKENS, "length": LENGTHS}).describe()))
    assert found["event_shape"] == {"tokens": [2], "length": []}


def test_rows_that_each_epoch_is_measured_on_are_made_once_and_anew_where_a_program_wrote_into_them(tmp_path):
    kept, cpu = KeptBatches(), torch.device("cpu")
    grey = np.random.default_rng(0).integers(0, 17, (20, 4), dtype=np.uint8)
    made = Data.from_arrays(grey, binarize="static", levels=16)
    first = kept.batch(made, slice(0, 10), cpu)
    assert kept.batch(made, slice(0, 10), cpu) is first
    assert kept.batch(made, slice(0, 9), cpu) is not first
    expected = first.clone()
    first.zero_()
    again = kept.batch(made, slice(0, 10), cpu)
    assert torch.equal(again, expected) and not torch.equal(again, first)
    np.save(tmp_path / "x.npy", grey.astype(np.float32))
    mapped = data.load(tmp_path / "x.npy").train
    assert kept.batch(mapped, slice(0, 5), cpu) is not kept.batch(mapped, slice(0, 5), cpu)
