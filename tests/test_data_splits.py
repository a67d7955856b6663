"""Splits cover all rows once, keep the order of training rows, and follow their seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppvae.data import Data, load, split
from ppvae.errors import DataError


def rows(num_data=50):
    return torch.arange(num_data, dtype=torch.float64)[:, None] / 2  # row i holds i / 2


def numbers(part):
    return (2 * part.x[:, 0]).long().tolist()


def sizes(splits):
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


def test_every_row_is_in_one_split():
    splits = split(rows())
    assert sorted(numbers(splits.train) + numbers(splits.validation) + numbers(splits.test)) == list(range(50))


def test_training_rows_keep_their_order():
    train = numbers(split(rows()).train)
    assert train == sorted(train)


def test_held_out_rows_come_in_an_order_drawn_at_random():
    test = numbers(split(rows(), test=20).test)
    assert test != sorted(test)


def test_the_test_rows_do_not_depend_on_the_validation_rows():
    assert numbers(split(rows(), validation=1).test) == numbers(split(rows(), validation=20).test)


def test_a_seed_makes_its_split():
    assert numbers(split(rows(), seed=1).test) == numbers(split(rows(), seed=1).test)
    assert numbers(split(rows(), seed=1).test) != numbers(split(rows(), seed=2).test)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [40, 5, 5]), ({"validation": 7, "test": 3}, [40, 7, 3]), ({"validation": 0.5, "test": 0.001}, [24, 25, 1])],
    ids=["a tenth", "numbers", "shares"],
)
def test_sizes_are_numbers_or_shares(options, expected):
    assert sizes(split(rows(), **options)) == expected


@pytest.mark.parametrize("size", [0, -1, 1.5, 1.0, True, "3"], ids=str)
def test_a_size_that_is_none_is_told(size):
    with pytest.raises(DataError) as caught:
        split(rows(), test=size)
    assert str(caught.value) == (
        f"needed a number of rows from 1, or a share between 0 and 1, and test={size!r} came\n"
        "  where: test\n  mend:  test=1000\n     or: test=0.1"
    )


def test_too_few_rows_are_told():
    with pytest.raises(DataError) as caught:
        split(rows(2))
    assert str(caught.value) == (
        "needed rows to train on, and 1 for test and 1 for validation leave none of 2\n"
        "  where: array\n  mend:  hold out fewer\n     or: all rows as one set: Data.of(x)"
    )


def test_parts_are_named_and_keep_their_labels():
    splits = split(Data.of(rows(), labels=np.arange(50)))
    assert [part.split for part in (splits.train, splits.validation, splits.test)] == ["train", "validation", "test"]
    assert splits.validation.labels is not None
    assert splits.validation.labels.tolist() == numbers(splits.validation)


def test_a_dict_is_split_as_one():
    test = split({"tokens": rows(), "length": torch.arange(50)}).test
    assert (2 * test.x["tokens"][:, 0]).tolist() == test.x["length"].tolist()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_load_takes_arrays(kind):
    splits = load(kind(rows().reshape(10, 5, 1)), labels=np.arange(10))
    assert (sizes(splits), splits.train.event_shape) == ([8, 1, 1], (5,))
    assert splits.train.labels is not None


def test_load_sends_data_to_split():
    with pytest.raises(DataError, match=r"and a Data came\n.*\n.*ppvae.data.split\(data\) splits it"):
        load(Data.of(rows()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "values as they stand (Lebesgue)"),
        ({"levels": 25}, "grey values / 25 (Lebesgue)"),
        ({"levels": 25, "binarize": "threshold"}, "binarised at a threshold, 1 from half of 25"),
        ({"levels": 25, "binarize": "static"}, "binarised by one draw a pixel, seed 3"),
        ({"levels": 25, "binarize": "dynamic"}, "binarised by fresh draws in training, held-out sets drawn once, seed 3"),
    ],
    ids=["real", "grey", "threshold", "static", "dynamic"],
)
def test_printing_tells_the_values(options, told):
    first, second = str(load(rows(), seed=3, **options)).splitlines()
    assert first == f"array: 40 train, 5 validation, 5 test; event shape (1,); {told}; split by seed 3"
    assert second.startswith("sha256: train ")
