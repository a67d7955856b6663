"""Data that cannot be used are refused at the door, with the place and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppvae.data import Data
from ppvae.errors import DataError

FINITE = "  mend:  leave out such rows: x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]\n     or: fill them in: np.nan_to_num(x, nan=0.0)"
MISSING = '\n     or: declare NaN to be missing, for a model that takes a mask: missing="mask"'


def message(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        Data.of(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("bad", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")], ids=["nan", "inf", "minus inf"]
)
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16], ids=["float64", "float32", "float16"])
def test_values_that_are_not_finite_are_counted_and_located(bad, shown, kind):
    x = np.zeros((20, 5), dtype=kind)
    x[17, 3] = x[19, 0] = bad
    assert message(x, name="heights") == (
        f"needed finite numbers, and 2 values that are not finite came; the first is {shown}\n  where: heights, row 17, column 3\n{FINITE}"
        + MISSING * (shown == "nan")
    )


def test_a_bad_pixel_is_located_in_its_image(monkeypatch):
    monkeypatch.setattr("ppvae.data.arrays.CHUNK_ELEMENTS", 8)  # so that it lies in a later chunk
    x = torch.zeros(5, 2, 3, dtype=torch.float64)
    x[4, 1, 2] = torch.nan
    assert message(x) == (
        f"needed finite numbers, and 1 value that is not finite came; the first is nan\n  where: array, row 4, column (1, 2)\n{FINITE}{MISSING}"
    )


def test_a_bad_value_is_located_in_its_member():
    assert "where: array['b'], row 1\n" in message({"a": torch.zeros(2, 1), "b": torch.tensor([0.0, torch.inf])})


@pytest.mark.parametrize("x", [torch.zeros(64), np.zeros(64)], ids=["tensor", "array"])
def test_a_lone_row_is_never_a_batch_of_scalars(x):
    assert message(x) == (
        "needed an array of rows (N, ...), and one of shape (64,) came: is it one row, or a column of numbers?\n"
        "  where: array\n"
        "  mend:  one row of several numbers: x[None, :]\n"
        "     or: rows of one number each: x[:, None]"
    )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=["no rows", "no columns"])
def test_nothing_is_no_data(shape):
    assert message(np.zeros(shape)) == (f"needed at least one row and one column, and an array of shape {shape} came\n  where: array")


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.array([["a"]]), "<U1"),
        (np.array([[None]]), "object"),
        (np.array([[1j]]), "complex128"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), "datetime64[D]"),
    ],
    ids=["text", "objects", "complex", "dates"],
)
def test_an_array_of_something_else_is_refused(x, dtype):
    assert message(x) == (
        f"needed numbers, and an array of dtype {dtype} came\n"
        "  where: array\n"
        "  mend:  name the type: np.asarray(x, dtype=np.float32)\n"
        "     or: leave out the columns that are not numbers"
    )


@pytest.mark.parametrize(("x", "came"), [([[1.0]], "a list"), (3, "an int"), ("digits", "a str")], ids=["list", "number", "text"])
def test_no_array_is_refused(x, came):
    assert message(x).splitlines()[0] == f"needed an array or a tensor, and {came} came"


@pytest.mark.parametrize(
    ("x", "came"),
    [
        (torch.eye(2).to_sparse(), "torch.sparse_coo"),
        (torch.ones(2, 2, dtype=torch.complex64), "a tensor of dtype torch.complex64"),
        (np.ma.masked_less(np.ones((2, 2)), 2), "a masked array"),
    ],
    ids=["sparse", "complex", "masked"],
)
def test_an_unusual_array_is_refused(x, came):
    assert message(x).splitlines()[0].endswith(f", and {came} came")


def test_whole_numbers_that_float32_cannot_hold_are_refused():
    assert message(torch.tensor([[1, 2**24], [2**24 + 1, 0]])) == (
        "needed whole numbers that float32 can hold (up to 16,777,216), and 1 larger came; the first is 16777217\n"
        "  where: array, row 1, column 0\n"
        "  mend:  hand in float64: x.astype(np.float64)\n"
        "     or: a tuple, (x,), keeps integers as they are"
    )


def test_labels_of_another_length_are_told():
    assert message(torch.zeros(3, 2), labels=torch.zeros(4)) == (
        "needed 3 labels, one a row, and an array of shape (4,) came\n  where: array, labels\n  mend:  cut x and labels alike"
    )


def test_one_hot_labels_get_a_remedy():
    assert "labels.argmax(axis=1) if they are one-hot" in message(torch.zeros(3, 2), labels=torch.zeros(3, 10))


def test_labels_with_fractions_are_refused():
    assert message(torch.zeros(2, 2), labels=torch.tensor([0.0, 0.5], dtype=torch.float64)).startswith(
        "needed whole numbers as labels, and torch.float64 with fractions came"
    )


def test_unequal_lengths_are_named():
    assert message({"tokens": torch.zeros(3, 2), "length": torch.zeros(4)}) == (
        "needed arrays of one length, and 3 rows in ['tokens'], 4 rows in ['length'] came\n"
        "  where: array\n"
        "  mend:  the first dimension counts the data: transpose or cut what differs"
    )


@pytest.mark.parametrize("x", [(), {}], ids=["tuple", "dict"])
def test_an_empty_structure_is_refused(x):
    assert message(x) == f"needed at least one array, and an empty {type(x).__name__} came\n  where: array"


def test_a_structure_is_not_binarised():
    with pytest.raises(DataError, match="needed one array to binarise, scale or flatten, and a tuple came"):
        Data.from_arrays((torch.zeros(2, 2),), binarize="threshold")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (3, r"needed a slice or a tensor \(B,\) of row numbers, and 3 came"),
        (torch.tensor([0.5], dtype=torch.float32), r"and a tensor of shape \(1,\), torch.float32, came"),
        (torch.tensor([0, 3]), "needed row numbers below 3, and 3 came"),
        (torch.tensor([True]), "needed a mask of 3 rows, and one of 1 came"),
        (slice(3, None), r"needed rows, and array all\[3:\] has none of its 3"),
    ],
    ids=["number", "floats", "outside", "mask", "none"],
)
def test_rows_that_are_not_there_are_told(rows, problem):
    with pytest.raises(DataError, match=problem):
        Data.of(torch.zeros(3, 2, dtype=torch.float32))[rows]
