"""Draws by counters: the published test vectors, the statistics of Bernoulli draws, and what a draw depends on."""

from __future__ import annotations

import math

import pytest
import torch

from ppvae.data import Data, philox
from ppvae.data.binarize import fresh_draws
from ppvae.data.presented import Presented

FULL = philox.LOW


def words(counter, key):
    found = philox.words(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    return [word.item() for word in found]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((FULL,) * 4, (FULL,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_known_answers_of_random123(counter, key, expected):
    assert words(counter, key) == expected  # Random123's kat_vectors, philox4x32 10


def draws(p, rows=4000, width=784, seed=3):
    grey = torch.full((rows, width), p)
    return fresh_draws(grey, 1.0, philox.key_of(seed), torch.arange(rows))


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_bernoulli_draws_have_the_moments_of_independent_ones(p):
    x = draws(p).double()
    rows, width = x.shape
    variance = p * (1 - p)
    # 4.5 standard errors each: fifteen looks, less than one false alarm in ten thousand
    assert abs(x.mean() - p) < 4.5 * math.sqrt(variance / x.numel())
    pixels = (x.mean(0) - p) / math.sqrt(variance / rows)
    assert pixels.abs().max() < 5.5
    # the variance of row sums, of column sums, and correlations of neighbours: what a weak hash of the counter shows first
    kurtosis = (1 - 6 * variance) / variance
    for sums, count, terms in ((x.sum(1), rows, width), (x.sum(0), width, rows)):
        ratio = sums.var() / (terms * variance)
        assert abs(ratio - 1) < 4.5 * math.sqrt((2 + kurtosis / terms) / count)
    centred = (x - p) / math.sqrt(variance)
    for lag in (1, 2, 4, 8):
        along = (centred[:, lag:] * centred[:, :-lag]).mean()
        across = (centred[lag:] * centred[:-lag]).mean()
        assert abs(along) < 4.5 / math.sqrt(x[:, lag:].numel())
        assert abs(across) < 4.5 / math.sqrt(x[lag:].numel())


def test_draws_of_neighbouring_keys_do_not_correlate():
    one, other = (draws(0.5, seed=seed).double() * 2 - 1 for seed in (1, 2))
    assert abs((one * other).mean()) < 4.5 / math.sqrt(one.numel())


def test_every_grey_level_is_met_to_the_sixteenth_bit():
    # all 2^16 numbers at once: the share below each level is the probability that is drawn with
    bits = torch.arange(65536, dtype=torch.float32)
    for level in range(256):
        share = ((bits + 0.5) * (255.0 / 65536) < level).double().mean().item()
        assert abs(share - level / 255) <= 1 / 2**17 + 1e-12
    assert not fresh_draws(torch.zeros(8, 64), 255.0, philox.key_of(0), torch.arange(8)).any()
    assert fresh_draws(torch.full((8, 64), 255.0), 255.0, philox.key_of(0), torch.arange(8)).all()


def test_a_row_draws_the_same_whichever_rows_come_with_it():
    whole = draws(0.3, rows=50, width=13)
    some = torch.tensor([49, 3, 3])
    assert torch.equal(fresh_draws(torch.full((3, 13), 0.3), 1.0, philox.key_of(3), some), whole[some])


def test_rows_beyond_two_to_the_32_draw_their_own():
    near = philox.sixteen_bits(philox.key_of(1), torch.tensor([5, 5 + 2**32]), 64)
    assert not torch.equal(near[0], near[1])


def images(binarize, **arguments):
    grey = torch.randint(0, 256, (40, 3, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Data.from_arrays(grey, binarize=binarize, levels=255, **arguments)


@pytest.mark.parametrize("binarize", ["threshold", "static", "none"])
@pytest.mark.parametrize("flatten", [True, False])
def test_presented_batches_are_the_rows_of_x(binarize, flatten):
    data = images(binarize, flatten=flatten)[torch.tensor([7, 1, 39, 0, 12])]
    presented, rows = Presented(data), torch.tensor([4, 0, 2])
    assert torch.equal(presented.batch(*presented.inputs(rows, 5)), data.x[rows])


@pytest.mark.parametrize("chosen", [slice(None), torch.tensor([7, 1, 39, 0, 12])])
def test_presented_draws_belong_to_the_row_of_the_whole_data_set(chosen):
    data = images("dynamic", flatten=True)
    part, rows = data[chosen], torch.tensor([4, 0, 2])
    numbers = torch.arange(40)[chosen][rows]
    found = Presented(part)
    expected = fresh_draws(data.raw[numbers].float(), 255.0, philox.key_of(5), numbers)
    assert torch.equal(found.batch(*found.inputs(rows, 5)), expected)


def test_presented_files_are_read_row_by_row(tmp_path):
    import numpy as np

    grey = np.random.default_rng(0).integers(0, 256, (40, 15)).astype(np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    rows = torch.tensor([31, 2])
    held, mapped = (
        Presented(Data.from_arrays(source, binarize="dynamic", levels=255))
        for source in (grey, np.load(tmp_path / "grey.npy", mmap_mode="r"))
    )
    assert mapped.mapped and not held.mapped
    assert torch.equal(mapped.batch(*mapped.inputs(rows, 9)), held.batch(*held.inputs(rows, 9)))


def test_presented_tuples_keep_their_members():
    tokens, lengths = torch.arange(12).reshape(6, 2), torch.arange(6)
    found = Presented(Data.of((tokens, lengths)))
    batch = found.batch(*found.inputs(torch.tensor([5, 0]), 0))
    assert torch.equal(batch[0], tokens[[5, 0]]) and torch.equal(batch[1], lengths[[5, 0]])
