"""examples/bounds.py, elbo_surgery.py, rate_distortion.py: their closed forms, what they measure where the answer is known, and quick runs."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pyro
import pytest
import torch

import ppvae
from ground_truth import MeanField, chi_squared, correlated_posterior
from ppvae import guides, models
from ppvae.families import DiagonalNormal
from ppvae.nn import MLP

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


bounds, elbo_surgery, rate_distortion = (loaded(name) for name in ("bounds", "elbo_surgery", "rate_distortion"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Run an example with --quick once, in float32 as a user would, and read what it wrote."""
    found = {}

    def run(module, name):
        if name not in found:
            out, dtype, argv = tmp_path_factory.mktemp(name), torch.get_default_dtype(), sys.argv
            torch.set_default_dtype(torch.float32)
            sys.argv = [f"{name}.py", "--quick", "--out", str(out)]
            try:
                with pyro.get_param_store().scope():
                    module.main()
            finally:
                sys.argv = argv
                torch.set_default_dtype(dtype)
            assert (out / f"{name}.png").stat().st_size > 10_000
            assert (out / f"{name}.txt").read_text().count("seen:") + (out / f"{name}.txt").read_text().count("NOT SEEN:") >= 5
            found[name] = json.loads((out / f"{name}.json").read_text())
        return found[name]

    return run


# The importance-weighted bound.


@pytest.mark.parametrize("r", [0.25, 0.4, 0.7], ids=str)
def test_one_weight_has_the_gap_as_bias_and_r_squared_as_variance(r):
    """log w = 1/2 log(1 - r^2) + r (u^2 - v^2) / 2: mean -gap, variance r^2 / 4 (2 + 2); left: the quadrature's error."""
    bias, variance = bounds.exact(r, (1,))
    assert abs(bias + 0.5 * math.log(1 - r**2)) < 1e-8
    assert abs(variance - r**2) < 1e-7


def test_two_weights_have_the_bias_of_a_two_dimensional_integral():
    """r = 0.7, K = 2: E log((w1 + w2) / 2) over half a million pairs of weights, within 5 standard errors."""
    u, v = torch.randn(2, 2, 500_000)
    pairs = (0.5 * math.log(1 - 0.49) + 0.35 * (u.square() - v.square())).logsumexp(0) - math.log(2)
    bias, variance = bounds.exact(0.7, (2,))
    assert abs(bias + pairs.mean()) < 5 * pairs.std() / math.sqrt(500_000)
    square = (pairs - pairs.mean()).square()
    assert abs(variance - square.mean()) < 5 * square.std() / math.sqrt(500_000)


def test_many_weights_have_the_bias_and_variance_of_the_delta_method():
    """chi^2 / 2K and chi^2 / K up to O(1 / K), the third and fourth moments over chi^2 being below 4 and 16 at r = 0.25."""
    precision = torch.linalg.inv(torch.tensor([[1.0, 0.25], [0.25, 1.0]]))
    chi2 = chi_squared(precision, precision.diagonal().rsqrt()).item()
    assert bounds.chi_squared(0.25) == pytest.approx(chi2, rel=1e-12) and bounds.chi_squared(0.5) == math.inf
    bias, variance = bounds.exact(0.25, (2000,))
    assert abs(bias * 4000 / chi2 - 1) < 4 / 2000 and abs(variance * 2000 / chi2 - 1) < 16 / 2000


def test_where_chi_squared_is_infinite_the_bias_falls_as_a_smaller_power():
    """Weights' tail P(w > t) ~ t^(-1/r) / sqrt(log t): slope 1 - 1/r, less about 1 / (2 log K), at K = 1e6."""
    bias, _ = bounds.exact(0.7, (10**5, 10**6, 10**7))
    slope = math.log(bias[2] / bias[0]) / math.log(100)
    assert slope == pytest.approx(1 - 1 / 0.7 - 0.5 / math.log(10**6), abs=0.02)


def test_the_examples_model_has_the_posterior_it_says():
    model, x = bounds.correlated(0.4, 3)
    covariance = model.posterior(x).covariance_matrix[0]
    assert torch.allclose(covariance, 0.2 * torch.tensor([[1.0, 0.4], [0.4, 1.0]]), atol=1e-12)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1, 2], ids=["r=0.25", "r=0.4", "r=0.7"])
def test_a_quick_run_measures_the_exact_bias_and_variance(quick, i):
    """Within 5 standard errors where K <= 100; beyond, 512 repeats of such weights do not know their own error."""
    found = quick(bounds, "bounds")["linear Gaussian"][i]
    bias, variance = bounds.exact(found["r"], tuple(found["particles"]))
    for j in range(5):
        assert abs(found["bias"][j] - bias[j]) < 5 * found["bias_se"][j]
        assert abs(found["variance"][j] - variance[j]) < 5 * found["variance_se"][j]
    assert found["smallest_step"] > -1e-12  # rounding
    assert max(found["bias_se"]) < 0.01 and found["particles"] == [1, 2, 10, 20, 100, 200, 1000]


@pytest.mark.example
def test_on_a_pair_whose_gaps_are_known_the_bounds_are_off_by_them(monkeypatch):
    """Encoder: the best diagonal Normal at r = 0.25. Refined: the posterior, 1.2 times as wide, at K = 1 off by 1.2^2 - 1 - 2 log 1.2."""
    model, x, gap = correlated_posterior(0.25, num_data=64)
    monkeypatch.setattr(bounds, "pair", lambda folder, quick: ("known", model, MeanField(model), SimpleNamespace(x=x)))
    found = bounds.on_trained(Path(), 64, quick=True)
    exact, _ = bounds.exact(0.25, found.particles)
    assert abs(exact[0] - gap) < 1e-8 and found.error_bound < 1e-9
    for j in range(4):
        assert abs(found.gap["encoder"][j] - exact[j]) < 5 * found.gap_se["encoder"][j]
    one = found.gap["refined, full rank"][0]
    assert abs(one - (1.44 - 1 - math.log(1.44))) < 5 * found.gap_se["refined, full rank"][0] + 0.005  # 0.005: left by the refinement
    assert (
        found.within == {"encoder": 1.0, "refined, full rank": 1.0} and found.held_within == 1.0 and found.wrong == found.wrong_trusted == 0
    )
    assert abs(found.held) < 5 * found.held_se + 0.005


def test_answers_that_are_off_are_counted_and_those_of_them_that_are_trusted(monkeypatch):
    """0, 0.05, 0.3, 0.7, 5 and -2 nats too low: two within 0.1, three beyond 0.5, of which one is trusted; mean 4.05 / 6."""
    model, x, _ = correlated_posterior(0.25, num_data=6)
    low = torch.tensor([0.0, 0.05, 0.3, 0.7, 5.0, -2.0])
    told = SimpleNamespace(pointwise=model.log_evidence(x) - low, trusted=torch.tensor([True, True, False, False, True, False]))
    monkeypatch.setattr(bounds, "pair", lambda folder, quick: ("known", model, MeanField(model), SimpleNamespace(x=x)))
    monkeypatch.setattr(bounds.analysis, "log_likelihood", lambda *args, **options: told)
    found = bounds.on_trained(Path(), 6, quick=True)
    assert (found.wrong, found.wrong_trusted) == (3, 1) and found.held_within == pytest.approx(2 / 6)
    assert found.held == pytest.approx(4.05 / 6, abs=1e-9)


# ELBO surgery.


class Table:
    """A guide whose rows, (loc, log scale), are the data themselves."""

    family = DiagonalNormal(2)

    def parameters_at(self, x):
        return x


def rows(loc, scale):
    return torch.cat([loc, torch.full_like(loc, math.log(scale))], 1)


SEPARATED = rows(torch.cartesian_prod(torch.arange(16.0), torch.arange(8.0)), 0.02)  # 50 scales apart
EQUAL = rows(torch.full((128, 2), 0.5), 0.8)


@pytest.mark.parametrize(("x", "information"), [(SEPARATED, math.log(128)), (EQUAL, 0.0)], ids=["separated", "equal"])
def test_quadrature_gives_log_n_for_separated_posteriors_and_0_for_equal_ones(x, information):
    x = x.double()
    found = elbo_surgery.by_quadrature(Table(), x)
    loc, log_scale = x[:, :2], x[:, 2:]
    rate = (0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale).sum(1).mean().item()
    assert found["exact_rate"] == pytest.approx(rate, abs=1e-9)
    assert found["exact_information"] == pytest.approx(information, abs=1e-6)
    assert found["exact_marginal_kl"] == pytest.approx(rate - information, abs=1e-6)


@pytest.mark.parametrize("x", [SEPARATED, EQUAL], ids=["separated", "equal"])
def test_minibatches_give_log_m_for_separated_posteriors_and_0_for_equal_ones(x):
    found, short, _ = elbo_surgery.by_minibatch(Table(), x.double(), [8, 64, 128])
    expected = {m: math.log(m) if x is SEPARATED else 0.0 for m in (8, 64, 128)}
    assert found == pytest.approx(expected, abs=1e-9)
    assert short == pytest.approx(expected[128] - expected[64], abs=1e-9)


def test_the_parts_of_the_linear_gaussian_are_its_closed_forms():
    """rate = I_q exactly, the one from the posteriors, the other from the eigenvalues; and q(z) has the moments of the prior."""
    found = elbo_surgery.linear_gaussian(1500)
    assert found.exact_rate == pytest.approx(found.exact_information, abs=1e-9) and found.exact_information > 2
    assert abs(found.exact_marginal_kl) < 1e-9
    left = 2 * math.exp(found.exact_information) / 1500  # the own term of each draw in q(z)
    assert abs(found.information - found.exact_information) < 5 * found.information_se + left
    assert abs(found.minibatch[1500] - found.exact_information) < 5 * found.information_se + left


@pytest.mark.slow
def test_a_quick_surgery_agrees_with_quadrature_and_minibatches_lie_below(quick):
    pairs = quick(elbo_surgery, "elbo-surgery")["pairs"]
    plane = next(found for found in pairs if found["how"] == "quadrature")
    assert abs(plane["information"] - plane["exact_information"]) < 5 * plane["information_se"]
    assert plane["exact_information"] + plane["exact_marginal_kl"] == pytest.approx(plane["exact_rate"], abs=1e-9)
    for found in pairs:
        assert found["information"] + found["marginal_kl"] == pytest.approx(found["rate"], abs=1e-6)
        assert all(value <= math.log(int(m)) + 1e-6 for m, value in found["minibatch"].items())
        assert found["short"] > 5 * found["short_se"] > 0


# Rate and distortion.


@pytest.mark.parametrize("theta", [0.1, 0.6, 3.0, 9.0], ids=str)
def test_water_filling_is_inverted_by_its_water_level(theta):
    values = torch.tensor(rate_distortion.SPECTRUM)
    rate, distortion = rate_distortion.water_filling(theta)
    assert rate == pytest.approx((0.5 * (values / theta).log()).clamp(min=0).sum().item(), abs=1e-12)
    assert distortion == pytest.approx(3 * math.log(2 * math.pi) + values.clamp(max=theta).sum().item() / 2, abs=1e-12)
    assert rate_distortion.water_level(rate) == pytest.approx(min(theta, 8.0), rel=1e-12)


def optimum(beta, x):
    """The best linear pair for beta: W of probabilistic PCA with noise theta = beta, q its posterior there."""
    values, vectors = torch.linalg.eigh(x.mT @ x / len(x))
    model = models.LinearGaussian(6, 6, 1.0).requires_grad_(False)
    model.weight.copy_(vectors * (values - beta).clamp(min=0).sqrt())
    guide = guides.DiagonalNormal(MLP(6, [], 12), latent_dim=6).requires_grad_(False)
    m = model.weight.square().sum(0) + beta  # W'W + theta I, diagonal
    linear = guide.encoder.layers[0]
    linear.weight.copy_(torch.cat([model.weight.mT / m[:, None], torch.zeros(6, 6)]))
    linear.bias.copy_(torch.cat([torch.zeros(6), 0.5 * (beta / m).log()]))
    return SimpleNamespace(model=model, guide=guide)


@pytest.mark.parametrize("beta", rate_distortion.BETAS, ids=str)
def test_the_best_pair_is_measured_on_the_curve(beta):
    """Within 5 standard errors of rate, distortion, distance and slope; active units are exact."""
    x = rate_distortion.source(200, torch.Generator().manual_seed(3))
    found = rate_distortion.measured(beta, optimum(beta, x), x, num_particles=200)
    assert abs(found.rate - found.exact_rate) <= 5 * found.rate_mc_se + 1e-9
    assert abs(found.distortion - found.exact_distortion) <= 5 * found.distortion_mc_se + 1e-9
    assert abs(found.above) <= 5 * found.above_mc_se + 1e-9
    assert found.active == found.exact_active == sum(value > beta for value in rate_distortion.SPECTRUM)
    if found.exact_active:
        assert abs(found.slope - beta) <= 5 * found.slope_mc_se + 1e-9
        assert 0 < found.slope_mc_se < 0.05 * beta


def test_standard_errors_of_rate_and_distortion_are_those_of_repeats():
    """Sixteen measurements with other seeds spread by the standard error that each tells, within 4 sd of a spread: 4 / sqrt(2 x 15)."""
    x = rate_distortion.source(100, torch.Generator().manual_seed(3))
    run = optimum(0.7, x)
    told = rate_distortion.measured(0.7, run, x, num_particles=20)
    repeats = [ppvae.analysis.elbo(run.model, run.guide, x, num_particles=40, seed=seed) for seed in range(10, 26)]
    for name in ("rate", "distortion"):
        spread = torch.stack([getattr(found, name).mean() for found in repeats]).std().item()
        assert abs(spread / getattr(told, f"{name}_mc_se") - 1) < 4 / math.sqrt(30)


def test_the_source_has_exactly_its_spectrum():
    x = rate_distortion.source(50, torch.Generator().manual_seed(1))
    found = torch.linalg.eigvalsh(x.mT @ x / 50).flip(0)
    assert torch.allclose(found, torch.tensor(rate_distortion.SPECTRUM), atol=1e-12) and x.mean(0).abs().max() < 1e-12


@pytest.mark.slow
def test_a_quick_training_comes_to_the_curve_from_above(quick):
    """Above by at most 0.05 nats after a short training, below by no more than 5 standard errors."""
    record = quick(rate_distortion, "rate-distortion")
    for found in record["points"]:
        assert -5 * found["above_mc_se"] - 1e-5 < found["above"] < 0.05
        assert (found["exact_rate"], found["exact_distortion"]) == rate_distortion.water_filling(found["beta"])
    assert [found["active"] for found in record["points"]] == [found["exact_active"] for found in record["points"]]
