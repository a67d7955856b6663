"""examples/latent_plane.py: quantities made by hand, and a quick run."""

from __future__ import annotations

import json
import math

import latent_plane as example
import numpy as np
import pyro
import pytest
import scipy.stats
import torch

import ppvae
from ppvae.analysis import latents


def test_adjacent_cells_of_a_square_are_nearer_than_any_two():
    """Four cells at the corners of a unit square: sides 1, of six distances four are sides and two diagonals."""
    images = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]])
    assert example.adjacent_over_any(images) == pytest.approx(6 / (4 + 2 * math.sqrt(2)))


def test_a_grid_of_unrelated_cells_has_ratio_one():
    """Independent Normal images in 500 dimensions: all distances are sqrt(1000) up to 1 / sqrt(1000), and so are their means."""
    images = torch.randn(9, 9, 500)
    assert example.adjacent_over_any(images) == pytest.approx(1, abs=5 / math.sqrt(1000))


def test_an_even_path_halves_and_a_jump_does_not():
    """Steps 1 on a line become 1/2; a jump of 3 stays 3. Mean of 0.5 and 1."""
    coarse = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    fine = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 3.0, 0.0]])
    assert example.halved(coarse, fine) == 0.75


def test_class_averages_are_means_by_label_in_order():
    codes = torch.tensor([[0.0, 4.0], [2.0, 0.0], [4.0, 0.0]])
    assert example.class_averages(codes, torch.tensor([1, 0, 1])).tolist() == [[2.0, 0.0], [2.0, 2.0]]


def test_the_principal_plane_is_where_the_variance_is():
    """Of independent columns of scale 3, 0.1, 2 the plane is that of the first and the third: distances there are kept up to the second's."""
    x = torch.randn(4000, 3) * torch.tensor([3.0, 0.1, 2.0])
    train, test = example.principal(x, x[:50])
    assert torch.allclose(train[:50], test, rtol=0, atol=1e-10)
    expected = torch.pdist(x[:50, [0, 2]].double())
    assert (torch.pdist(test) - expected).abs().max() < 0.1 * 8  # what 50 draws of the second column can differ by, and its tilt


def test_names_that_lie_over_each_other_are_moved_apart():
    """Two at 0 and 0.4 with lines 1 high: half of the missing 0.6 each, to -0.3 and 0.7; one 5 to the side stays."""
    places = example.apart(np.array([[0.0, 0.0], [0.0, 0.4], [5.0, 0.2]]), 1.0)
    assert places == pytest.approx(np.array([[0.0, -0.3], [0.0, 0.7], [5.0, 0.2]]))


def test_a_way_back_is_the_way_turned_around():
    images = torch.arange(2 * 3 * 4).reshape(2, 3, 4, 1).double()
    ways = [(0, 1), (0, 2), (1, 2)]
    assert torch.equal(example._way(images, ways, 1, 2), images[:, 2])
    assert torch.equal(example._way(images, ways, 2, 0), images[:, 1].flip(1))


def test_the_grid_is_of_normal_quantiles():
    """norm.ppf of 0.05 to 0.95, 15 of them, by SciPy; and each cell is what the decoder says there."""
    x = (torch.rand(4, 64) > 0.5).to(torch.get_default_dtype())
    model, _ = example.pair("dense", 8)
    found = latents.prior_grid(model, x)
    expected = torch.from_numpy(scipy.stats.norm.ppf([0.05 + 0.9 * i / 14 for i in range(15)]))
    assert torch.allclose(found.values, expected.expand(2, 15), rtol=0, atol=1e-9)
    z = torch.stack([expected[3], expected[11]])
    assert torch.allclose(found.images[11, 3], torch.sigmoid(model.network(z)).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "side"), [("dense", 8), ("convolutional", 8), ("dense", 28), ("convolutional", 28)])
def test_the_networks_have_the_sizes_that_are_told(kind, side):
    """Dense: (2 + 1) 256 + (256 + 1) D one way, (D + 1) 256 + (256 + 1) 4 the other. Convolutional, C = 16, q = side / 4 and 4 x 4 kernels:
    decoder (2 + 1) 2C q^2 + (2C C 16 + C) + (C 16 + 1), encoder (16 C + C) + (C 2C 16 + 2C) + (2C q^2 + 1) 4."""
    d, c, q = side**2, 16, side // 4
    dense = 3 * 256 + 257 * d + (d + 1) * 256 + 257 * 4
    convolutional = 3 * 2 * c * q**2 + (32 * c * c + c) + (16 * c + 1) + 17 * c + (32 * c * c + 2 * c) + (2 * c * q**2 + 1) * 4
    found = sum(p.numel() for part in example.pair(kind, side) for p in part.parameters())
    assert found == {"dense": dense, "convolutional": convolutional}[kind]


@pytest.mark.slow
def test_a_quick_run_holds_the_elbo_below_the_truth(tmp_path):
    """ELBO, weighted bound and log p(x) by quadrature are of the same images: E[ELBO] <= E[bound] <= log p(x), up to 5 standard errors."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with pyro.get_param_store().scope():
            example.main(["--quick", "--out", str(tmp_path)])
            record = json.loads((tmp_path / "latent-plane.json").read_text())
            again = ppvae.load(tmp_path / "digits-convolutional")
    finally:
        torch.set_default_dtype(dtype)
    assert [(p["data"], p["kind"]) for p in record["points"]] == [("digits", "dense"), ("digits", "convolutional")]
    for p in record["points"]:
        assert p["gap"] == pytest.approx(p["log_p"] - p["elbo"], abs=1e-9)
        assert p["elbo"] - 5 * p["elbo_mc_se"] < p["log_p"] + p["bound"]
        assert p["weighted"] - 5 * p["weighted_mc_se"] < p["log_p"] + p["bound"]
        assert p["halving"] < 0.6  # a decoder of finite weights has no jumps
    told = (tmp_path / "latent-plane.txt").read_text()
    assert told.count("seen: ") + told.count("NOT SEEN: ") == len(record["claims"]) == 7
    assert (tmp_path / "latent-plane.png").stat().st_size > 10_000
    assert sum(p.numel() for part in (again.model, again.guide) for p in part.__wrapped__.parameters()) == record["points"][1]["parameters"]
