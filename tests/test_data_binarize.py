"""Grey values become zeros and ones: at the threshold, by one draw, by fresh draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppvae.data import Data, split
from ppvae.errors import DataError

GREY = torch.tensor([0, 16, 64, 127, 128, 191, 255], dtype=torch.uint8)


def grey(binarize, num_data=2000, seed=0):
    return Data.from_arrays(GREY.repeat(num_data, 1), binarize=binarize, seed=seed)


def within_five_errors(draws):
    """The mean of Bernoulli draws (N, 7) is p = grey / 255, within 5 of its standard errors sqrt(p (1 - p) / N)."""
    p = GREY.to(torch.float64) / 255
    error = (p * (1 - p) / len(draws)).sqrt()
    return ((draws.to(torch.float64).mean(0) - p).abs() <= 5 * error).all()


@pytest.mark.parametrize(
    ("values", "levels", "expected"),
    [
        (torch.tensor([[0, 7, 8, 16]], dtype=torch.uint8), 16, [[0, 0, 1, 1]]),
        (torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8), None, [[0, 0, 1, 1]]),
        (torch.tensor([[0.0, 0.4999, 0.5, 1.0]], dtype=torch.float64), None, [[0, 0, 1, 1]]),
        (torch.tensor([[False, True]]), None, [[0, 1]]),
    ],
    ids=["16 levels", "bytes", "shares", "bool"],
)
def test_threshold_is_half_of_the_levels(values, levels, expected):
    found = Data.from_arrays(values, binarize="threshold", levels=levels)
    assert found.x.tolist() == expected
    assert found.measure == "counting"


def test_static_draws_have_the_grey_value_as_mean():
    found = grey("static")
    assert within_five_errors(found.x)
    assert set(found.x.unique().tolist()) == {0.0, 1.0}


def test_black_and_white_are_certain():
    found = grey("static").x
    assert found[:, 0].eq(0).all()
    assert found[:, -1].eq(1).all()


def test_static_draws_are_the_same_each_time_and_in_each_subset():
    whole, rows = grey("static"), torch.tensor([1500, 3, 4])
    assert torch.equal(whole.x, grey("static").x)
    assert torch.equal(whole[rows].x, whole.x[rows])
    assert torch.equal(whole[100:200].batch(slice(5, 9), None), whole.x[105:109])


def test_static_draws_differ_between_rows_and_seeds():
    found = grey("static").x
    assert len(found.unique(dim=0)) > 1
    assert not torch.equal(found, grey("static", seed=1).x)


def test_dynamic_draws_have_the_grey_value_as_mean():
    assert within_five_errors(grey("dynamic").batch(slice(None), torch.Generator().manual_seed(1)))


def test_dynamic_draws_differ_between_presentations():
    found, generator = grey("dynamic"), torch.Generator().manual_seed(1)
    assert not torch.equal(found.batch(slice(0, 64), generator), found.batch(slice(0, 64), generator))


def test_the_same_generator_makes_the_same_dynamic_draws():
    found, rows = grey("dynamic"), torch.tensor([7, 3])
    first, second = (found.batch(rows, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_dynamic_data_have_one_fixed_draw_for_evaluation():
    found = grey("dynamic")
    assert torch.equal(found.x, grey("static").x)
    assert torch.equal(found.batch(slice(0, 5), None), found.x[:5])


def test_held_out_rows_of_dynamic_data_are_drawn_once():
    splits = split(grey("dynamic"))
    assert [part.binarize for part in (splits.train, splits.validation, splits.test)] == ["dynamic", "static", "static"]


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    grey("static").x.sum()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("binarize", ["threshold", "static", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_precision_of_the_values_is_kept(binarize, dtype):
    found = Data.from_arrays(torch.tensor([[0.25, 0.75]], dtype=dtype), binarize=binarize)
    assert found.x.dtype == dtype


def test_levels_scale_grey_values():
    found = Data.from_arrays(np.array([[0, 51, 255]], dtype=np.uint8), levels=255)
    assert torch.equal(found.x, torch.tensor([[0, 0.2, 1]], dtype=torch.float32))
    assert found.measure == "Lebesgue"


def test_values_beyond_the_levels_are_told():
    values = torch.tensor([[0.0, 0.5], [1.5, 0.0], [-0.5, 0.0]], dtype=torch.float64)
    with pytest.raises(DataError) as caught:
        Data.from_arrays(values, name="rates", binarize="threshold", levels=1)
    assert str(caught.value) == (
        "needed grey values in [0, 1], and 2 outside came; the first is 1.5, the values run from -0.5 to 1.5\n"
        "  where: rates, row 1, column 0\n"
        "  mend:  name the value that is white: levels=...\n"
        '     or: keep real values as they are, with a likelihood for them: binarize="none"'
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64], ids=str)
def test_unknown_white_is_asked_for(dtype):
    with pytest.raises(DataError) as caught:
        Data.from_arrays(torch.tensor([[0, 16]], dtype=dtype), binarize="static")
    assert str(caught.value) == (
        f"needed to know which value is white before binarising, and {dtype} values from 0 to 16 came without it\n"
        "  where: array\n"
        "  mend:  name it: levels=255, levels=16, ...\n"
        '     or: keep the values as they are: binarize="none"'
    )


def test_unknown_way_gets_a_suggestion():
    with pytest.raises(DataError) as caught:
        Data.from_arrays(GREY[None], binarize="treshold")
    assert str(caught.value) == (
        "needed one way to binarise of threshold, static, dynamic, none, and 'treshold' came\n"
        "  where: binarize\n"
        "  mend:  did you mean 'threshold'?"
    )


def test_levels_must_be_positive():
    with pytest.raises(DataError, match="needed a positive grey level for white, and levels=0 came"):
        Data.from_arrays(GREY[None], levels=0)
