"""Odd data: constant, repeated, huge, a hundred thousand columns wide; and held-out rows that the training rows hold too."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppvae
from ppvae import analysis, models
from ppvae.data import Data, load, shared_rows
from ppvae.errors import PpvaeError, UnreliableWarning


def distinct(num_data=50, width=3):
    return torch.arange(num_data * width, dtype=torch.float64).reshape(num_data, width) / 7


def test_rows_that_both_parts_hold_are_found():
    train, test = Data.of(distinct()), Data.of(distinct()[[7, 3]] + torch.tensor([[0.0], [0.5]]))
    assert shared_rows(train, test).tolist() == [0]
    assert shared_rows(test, train).tolist() == [7]
    assert shared_rows(train[:7], test).tolist() == []


@pytest.mark.parametrize("form", ["array", "mapped", "tuple", "mask"])
def test_rows_are_compared_in_every_form(form, tmp_path):
    x = distinct().float()
    np.save(tmp_path / "x.npy", x.numpy())
    whole = {
        "array": lambda: Data.of(x),
        "mapped": lambda: Data.of(np.load(tmp_path / "x.npy", mmap_mode="r")),
        "tuple": lambda: Data.of((x, x.long())),
        "mask": lambda: Data.from_arrays(x, missing=x > 15),
    }[form]()
    assert shared_rows(whole[:20], whole[15:30]).tolist() == [0, 1, 2, 3, 4]


def test_two_sign_flips_are_another_row():
    """A sum of words with odd weights would not see them: each flips the highest bit."""
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert shared_rows(Data.of(x), Data.of(-x)).tolist() == []


def test_load_warns_of_leakage():
    x = torch.cat([distinct(30), distinct(30)])
    with pytest.warns(
        UnreliableWarning, match=r"rows of array stand in the training rows too \(first: row \d+\): their score tells nothing"
    ) as told:
        splits = load(x)
    expected = [len(shared_rows(splits.train, part)) for part in (splits.validation, splits.test)]
    assert [int(str(w.message).split()[0]) for w in told] == [count for count in expected if count]


def test_load_says_nothing_where_no_row_is_repeated():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(distinct())


def test_two_hundred_thousand_rows_are_compared_in_seconds():
    x = torch.rand(200_000, 20)
    assert len(shared_rows(Data.of(x)[:180_000], Data.of(x)[180_000:])) == 0


def pair(width, latent_dim=2):
    model = models.Normal(ppvae.nn.MLP(latent_dim, [8], width), latent_dim)
    network = ppvae.nn.MLP(width, [8], 2 * latent_dim)

    def guide(x):
        pyro.module("encoder", network)
        loc, log_scale = network(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@pytest.mark.parametrize("x", [torch.zeros(40, 3), torch.full((40, 3), 7.0), torch.ones(40, 1)], ids=["zeros", "sevens", "one column"])
def test_constant_columns_train_and_are_measured(x):
    """Every row is the same, so every row has the same log p(x)."""
    x = x.double()
    model, guide = pair(x.shape[1])
    run = ppvae.fit(model, guide, x, epochs=2, compile=False)
    found = analysis.log_likelihood(run.model, run.guide, x[:8], num_particles=200, second=None)
    assert (found.pointwise - found.pointwise.mean()).abs().max() < 4.5 * found.pointwise_se.max()


@pytest.mark.parametrize("value", [1e30, -1e30, 3e38, 1e300], ids=str)
def test_a_huge_value_ends_in_an_error_of_ours_or_in_an_answer(value):
    x = distinct(20)
    x[3, 1] = value
    model, guide = pair(3)
    try:
        run = ppvae.fit(model, guide, x, epochs=1, compile=False)
    except PpvaeError as error:
        assert len(str(error).splitlines()) <= 12
        assert "Traceback" not in str(error)
    else:
        assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_hundred_thousand_columns_are_held_and_hashed():
    x = torch.rand(30, 100_000)
    found = load(x)
    assert found.train.event_shape == (100_000,)
    assert torch.equal(torch.cat([found.train.x, found.validation.x, found.test.x]).sort(0).values, x.sort(0).values)
    model, guide = pair(100_000)
    assert ppvae.log_weights(model, guide, x[:2], num_particles=3).shape == (3, 2)


numbers = st.one_of(st.just(0.0), st.just(1e30), st.just(-1e30), st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5).flatmap(lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=3, max_size=12)), data=st.data()
)
def test_any_finite_rows_split_without_loss(rows, data):
    x = np.array(rows)
    missing = data.draw(st.none() | st.just(np.isfinite(x) & (x > 0)))
    if missing is not None and missing.all():
        missing = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)
        splits = load(x, validation=1, test=1, missing=missing)
    parts = [part.x if missing is None else part.x["x"] for part in (splits.train, splits.validation, splits.test)]
    found = torch.cat(parts).numpy()
    assert found.shape == x.shape
    expected = np.sort(x, 0) if missing is None else None
    if expected is not None:
        assert np.array_equal(np.sort(found, 0), expected)
