"""Held-out rows that stand in the training rows, told from rows that repeat by nature: by how often training rows repeat each other."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from test_resume import float32

import pairs
import ppvae
from ppvae.data import Data, arrays, leakage, split
from ppvae.data.leakage import expected_shared, warn_of_leakage
from ppvae.errors import UnreliableWarning


def uniform(generator, rows, values):
    """Whole numbers below ``values``, a row each: the simplest rows that repeat."""
    return torch.from_numpy(generator.integers(0, values, (rows, 1)))


def continuous(rows, width=3, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_expected_rows_by_hand():
    """Of four rows one pair: half of new rows stand in them. Variance 10/4 of the rows, 100 (1/4 / 4 + 2 / 16) of the half."""
    known = np.array([7, 7, 8, 9])
    assert expected_shared(known, 10, unseen_pairs=0) == (5.0, math.sqrt(2.5 + 100 * (0.0625 + 0.125)))
    assert expected_shared(known, 10, unseen_pairs=1)[0] == 10.0
    assert expected_shared(np.arange(4), 10, unseen_pairs=0) == (0.0, 0.0)
    assert expected_shared(np.zeros(4, dtype=np.int64), 10, unseen_pairs=1)[0] == 10.0


@pytest.mark.parametrize(("values", "num_train", "num_held_out"), [(300, 500, 100), (2000, 500, 500), (2000, 2000, 100)], ids=str)
def test_numbers_of_shared_rows_scatter_as_expected(values, num_train, num_held_out, fresh):
    """Standard scores of exchangeable rows: mean 0 and spread 1, within 5 standard errors of 300 repeats."""
    generator, scores = np.random.default_rng(fresh), []
    for _ in range(300):
        known, held_out = (generator.integers(0, values, size) for size in (num_train, num_held_out))
        expected, error = expected_shared(known, num_held_out, unseen_pairs=0)
        scores.append((np.isin(held_out, known).sum() - expected) / error)
    assert abs(np.mean(scores)) < 5 / math.sqrt(300)
    assert abs(np.std(scores) - 1) < 5 / math.sqrt(600)


@pytest.mark.parametrize(("rate", "width"), [(0.3, 2), (2.0, 3), (5.0, 4)], ids=str)
def test_counts_that_repeat_by_nature_are_no_leak(rate, width, fresh):
    """200 repeats in which thousands of held-out rows stand in the training rows."""
    generator, shared = np.random.default_rng(fresh), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            x = Data.of(generator.poisson(rate, (600, width)))
            warn_of_leakage(x[:500], x[500:])
            shared += len(ppvae.data.shared_rows(x[:500], x[500:]))
    assert shared > 2000


@pytest.mark.parametrize("num_held_out", [100, 500], ids=str)
def test_copied_rows_of_real_values_are_a_leak(num_held_out):
    train, held_out = continuous(500), continuous(num_held_out, seed=1)
    held_out[10:15] = train[100:105]
    with pytest.warns(UnreliableWarning) as told:
        warn_of_leakage(Data.of(train), Data.of(held_out))
    assert [str(one.message) for one in told] == [
        f"5 of {num_held_out} validation rows stand in the training data too; as often as training rows repeat each other it would be "
        "0.0 ± 0.0 (validation row 10 is training row 100). Their score tells nothing about new data, and it chooses the epoch: "
        "ppvae.data.shared_rows(data, validation) names them to leave out"
    ]


@pytest.mark.parametrize("num_copied", [0, 40], ids=str)
def test_copied_rows_among_counts_that_repeat_are_a_leak(num_copied, fresh):
    x = np.random.default_rng(fresh).poisson(5.0, (600, 4))
    x[500 : 500 + num_copied] = x[:num_copied]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_leakage(Data.of(x)[:500], Data.of(x)[500:])
    assert len(told) == (num_copied > 0)


def test_one_row_is_no_leak():
    train, held_out = continuous(500), continuous(100, seed=1)
    held_out[0] = train[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_leakage(Data.of(train), Data.of(held_out))


def test_parts_of_a_random_split_need_no_look(monkeypatch):
    """They are exchangeable whatever they hold, and there may be many; slices of one array may be anything."""
    x = continuous(100).repeat(2, 1)
    monkeypatch.setattr(leakage, "_hashes", lambda data: pytest.fail("rows were read"))
    parts = split(x)
    warn_of_leakage(parts.train, parts.validation[:5])
    monkeypatch.undo()
    with pytest.warns(UnreliableWarning, match="100 of 100 validation rows"):
        warn_of_leakage(Data.of(x)[:100], Data.of(x)[100:])


def test_a_file_larger_than_memory_is_read_in_pieces(tmp_path, monkeypatch):
    x = continuous(500)
    np.save(tmp_path / "x.npy", torch.cat([x, x[:50]]).numpy())
    data = Data.of(np.load(tmp_path / "x.npy", mmap_mode="r"))
    read, sizes = leakage.read, []
    monkeypatch.setattr(arrays, "CHUNK_ELEMENTS", 100)
    monkeypatch.setattr(leakage, "read", lambda leaf, index: sizes.append(len(index)) or read(leaf, index))
    with pytest.warns(UnreliableWarning, match=r"50 of 50 validation rows .* \(validation row 0 is training row 0\)"):
        warn_of_leakage(data[:500], data[500:])
    assert (sum(sizes), max(sizes)) == (550, 33)


# In fit.


def trained(data, validation, make=pairs.registered, **arguments):
    return ppvae.fit(*make(), data, validation=validation, epochs=1, **arguments)


def test_fit_warns_of_its_users_own_arrays(tmp_path):
    x, held_out = pairs.real(60), pairs.real(20, seed=1)
    held_out[4:8] = x[1:5]
    with pytest.warns(UnreliableWarning, match=r"^4 of 20 validation rows .* \(validation row 4 is training row 1\)"):
        assert trained(x, held_out).stopped == "finished"
    trained(x, pairs.real(20, seed=1))  # warnings are errors here


def test_of_images_that_are_drawn_anew_the_stored_ones_are_compared():
    """Draws of one image differ, draws of two may be the same."""
    grey = torch.randint(1, 255, (40, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = Data.from_arrays(grey, binarize="dynamic", levels=255)
    with pytest.warns(UnreliableWarning, match="10 of 10 validation rows"):
        trained(data, Data.from_arrays(grey[:10], binarize="static", levels=255, seed=7), make=float32)
    trained(data[:30], data[30:], make=float32)
