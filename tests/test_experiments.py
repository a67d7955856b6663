"""examples/autoencoder_or_vae.py, beta_sweep.py, pca_linear_deep.py: quantities made by hand, quick runs, and the list of `make experiments`."""

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import autoencoder_or_vae
import beta_sweep
import pca_linear_deep
import pytest
import torch

import ppvae
from ppvae import models

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


# An autoencoder beside a VAE.


def test_holes_are_the_draws_farther_than_the_held_out_codes():
    """Codes on a line in steps of 1, held-out ones 0.1 beside: of draws 0.05, 0.2, 5.5 and 100.05 away from 3, 3, 0 and 99 the 95 % rule
    finds one beside, three not; a dimension stretched by 1000 changes nothing."""
    train = torch.stack([torch.arange(100.0), torch.arange(100.0)], 1).double()
    held = train + torch.tensor([0.1, 0.1])
    draws = torch.tensor([[3.05, 3.05], [3.2, 3.2], [-5.5, -5.5], [199.05, 199.05]]).double()
    share, se = autoencoder_or_vae.holes(draws, train, held)
    assert share == 0.75 and se == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    stretch = torch.tensor([1.0, 1000.0]).double()
    assert autoencoder_or_vae.holes(draws * stretch, train * stretch, held * stretch)[0] == 0.75


def test_the_slope_of_a_closed_form_kl_is_minus_its_dimension():
    """KL(N(m, s^2 I) || N(0, I)) = (|m|^2 + d s^2 - d) / 2 - d log s: at s = 0.1 and below its slope is -d up to d s^2 / log-range."""
    d, scales = 8, (0.1, 0.01, 0.001)
    norms = torch.tensor([0.0, 3.0, 40.0]).double()
    kl = torch.stack([(norms + d * s**2 - d) / 2 - d * math.log(s) for s in scales])
    slope = autoencoder_or_vae.slope_of(kl, scales)
    # least squares puts log-weights (1, 0, -1) / (2 log 10) on the three
    assert torch.allclose(slope, -d + d * (0.01 - 1e-6) / 2 / (2 * math.log(10)) * torch.ones(3).double(), atol=1e-9)


def test_a_guide_with_a_forced_scale_has_it():
    encoder = autoencoder_or_vae.ForcedScale(torch.nn.Linear(5, 3), 3, 0.01)
    loc, log_scale = encoder(torch.ones(2, 5)).chunk(2, -1)
    assert loc.shape == (2, 3) and torch.allclose(log_scale.exp(), torch.tensor(0.01))


@pytest.mark.slow
def test_a_forced_scale_costs_minus_d_log_sigma_and_weight_0_trains_no_decoder(quick):
    record = quick(autoencoder_or_vae)
    (forced,) = record["forced"]
    assert forced["slope"] == pytest.approx(-forced["dim"], rel=0.05)
    assert record["extremes"]["untouched"]["moved"] == 0.0
    assert record["extremes"]["faint"]["distance"] < record["extremes"]["untouched"]["distance"]


# Beta.


def test_the_slip_is_beta_equal_to_the_number_of_pixels_and_to_no_other():
    x = (torch.rand(16, 20, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    equal = beta_sweep.equality(x, dim=3)
    assert equal.beta == equal.pixels == 20
    assert max(equal.loss_difference, equal.gradient_difference) < 1e-12
    other = beta_sweep.equality(x, beta=19.0, dim=3)
    assert other.loss_difference > 1e-4 and other.gradient_difference > 1e-4


def test_independent_pixels_cost_their_cross_entropy():
    """Three of four training images have the pixel: frequency 3.5 / 5; -log 0.7 and -log 0.3 for a test image with and without."""
    train, test = torch.tensor([[1.0], [1.0], [1.0], [0.0]]), torch.tensor([[1.0], [0.0]])
    assert beta_sweep.independent_pixels(train, test) == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, abs=1e-6)


@pytest.mark.slow
def test_a_quick_sweep_lowers_the_rate_and_the_slip_collapses(quick):
    record = quick(beta_sweep)
    rates = [point["rate"] for point in record["sweep"]]
    assert rates[0] > rates[1] > rates[2] and rates[2] < 0.05
    assert record["slip"]["beta"] == 64 and record["slip"]["rate"] < 0.05 and record["slip"]["active"] == 0
    assert record["claims"]["the slip is beta = D, exactly"]["seen"]


# PCA.


def test_principal_angles_are_those_of_a_rotation():
    """The plane (e1, e2) and the plane (e1, cos t e2 + sin t e3): 0 and t, also where t is too small for a cosine."""
    one = torch.eye(5).double()[:, :2]
    for degrees in (30.0, 1e-6):
        t = math.radians(degrees)
        other = torch.zeros(5, 2).double()
        other[0, 0], other[1, 1], other[2, 1] = 1.0, math.cos(t), math.sin(t)
        mixed = other @ torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double()
        assert pca_linear_deep.principal_angles(one, mixed).tolist() == pytest.approx([0.0, degrees], rel=1e-6, abs=1e-9)


def test_what_pca_projects_away_is_the_sum_of_the_smallest_eigenvalues():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3, 0.1])
    model = models.LinearGaussian.maximum_likelihood(x, 2).requires_grad_(False)
    error = pca_linear_deep.squared(x, pca_linear_deep.projected(model, x)).mean()
    values = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0))
    assert error.item() == pytest.approx(values[:4].sum().item(), rel=1e-9)


@pytest.mark.slow
def test_a_quick_linear_vae_stays_below_pca(quick):
    """In log p(x) and in squared error of training data: the closed forms are optima, up to rounding in single precision."""
    pca, linear, deep = quick(pca_linear_deep)["rows"]
    assert [row["program"] for row in (pca, linear, deep)] == list(pca_linear_deep.PROGRAMS)
    assert linear["train_log_p"] < pca["train_log_p"] + 1e-4 and linear["train_error"] > pca["train_error"] - 1e-4
    x = ppvae.data.load("digits", binarize="none").train.x.double()
    values = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0))
    assert pca["train_error"] == pytest.approx(values[:-2].sum().item(), rel=1e-6)
    assert pca["scale"] == pytest.approx(values[:-2].mean().sqrt().item(), rel=1e-6)


# All of them.


def listed():
    """Command -> (minutes, result file), as the Makefile has them."""
    block = re.search(r"^define EXPERIMENTS\n(.*?)^endef", (ROOT / "Makefile").read_text(), flags=re.DOTALL | re.MULTILINE).group(1)
    return {command: (int(minutes), result) for minutes, result, command in (line.split(maxsplit=2) for line in block.splitlines())}


def test_make_experiments_knows_every_example():
    assert {command.split()[0] for command in listed()} == {path.name for path in EXAMPLES.glob("*.py")} - {"experiment.py"}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_experiments_says_what_it_takes_skips_what_is_there_and_stops_at_a_failure(tmp_path):
    """With a python that writes down what it is asked for, and fails at one of them."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    calls, python = tmp_path / "calls", tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$1" in *rate_distortion.py) exit 3;; esac\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    commands = list(listed().items())
    there = next(result for command, (_, result) in commands if command.startswith("beta_sweep.py"))
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }  # these tests may be make's own
    told = subprocess.run(["make", "experiments"], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=outside)
    left = [(command, minutes) for command, (minutes, result) in commands if result != there]
    assert (
        told.stdout.splitlines()[0]
        == f"{len(left)} of {len(commands)} experiments are left, about {sum(m for _, m in left)} minutes on one thread"
    )
    failing = next(i for i, (command, _) in enumerate(left) if command.startswith("rate_distortion.py"))
    assert calls.read_text().splitlines() == [f"examples/{command}" for command, _ in left[: failing + 1]]
    assert told.returncode != 0
