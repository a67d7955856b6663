"""examples/price_of_amortization.py and examples/counts.py: optima derived by hand, densities by enumeration, and quick runs."""

import itertools
import math

import counts
import price_of_amortization as price
import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ppvae import analysis

# The blind encoder.


@pytest.mark.parametrize(
    ("visible", "variance", "along"),
    [(1, 3 / 2, [2.0, 1, 1, 1]), (2, 11 / 9, [3.0, 3, 2, 2]), (3, 13 / 12, [4.0, 4, 4, 3]), (4, 1.0, [1.0, 1, 1, 1])],
)
def test_the_blind_optimum_of_four_equal_loadings_by_hand(visible, variance, along):
    """S = 11' + I, T = 8. By symmetry h = 1 on what is seen; g = |S h|^2 / h'S h = 7/2, 26/6, 57/12, 5; s^2 = (8 - g) / 3, |w|^2 = g - s^2."""
    w, found = price.Blind.optimum(price.Blind().limit_moments(), visible)
    along = torch.tensor(along)
    assert found.item() == pytest.approx(variance, rel=1e-12)
    assert w.square().sum().item() == pytest.approx(8 - 3 * variance - variance, rel=1e-12)
    assert (w @ along).abs().item() == pytest.approx((w.norm() * along.norm()).item(), rel=1e-12)


def test_seeing_one_of_four_coordinates_divides_the_signal_to_noise_ratio_by_three():
    """k = 2 / 1.5 where it is 4: log k is off by -log 3, and stays so."""
    case = price.Blind()
    assert case.log_ks(case.limit_moments()[None], True).item() - case.log_k == pytest.approx(-math.log(3), abs=1e-12)
    assert case.log_ks(case.limit_moments()[None], False).item() == pytest.approx(case.log_k, abs=1e-12)


def elbo(covariance, w, log_s, h, log_v, visible):
    """The ELBO itself of x = w z + s noise and q = N(h'x_A, v), mean over centred data of that covariance, nothing maximised."""
    d, variance = len(w), (2 * log_s).exp()
    second = h @ covariance[:visible, :visible] @ h + log_v.exp()
    across = covariance[:, :visible] @ h
    squares = covariance.diagonal().sum() - 2 * w @ across + w @ w * second
    log_p = -0.5 * d * math.log(2 * math.pi) - d * log_s - 0.5 * squares / variance
    return log_p - 0.5 * (second - log_v - 1)


def at_the_optimum(covariance, visible):
    """w, log s, h, log v: z has E[z^2] = 1, h is along the regression of w'x on what is seen, and explains r^2 of it."""
    w, variance = price.Blind.optimum(covariance, visible)
    h = torch.linalg.solve(covariance[:visible, :visible], covariance[:visible] @ w)
    # by the conditions for h and v alone, given the model: precision p = 1 + |w|^2 / s^2, h = S_AA^-1 S_A w / (s^2 p), v = 1 / p
    precision = 1 + w.square().sum() / variance
    return [w, variance.log() / 2, h / (variance * precision), -precision.log()]


@pytest.mark.parametrize("visible", [1, 2, 3, 4])
def test_at_the_blind_optimum_every_derivative_of_the_elbo_is_zero(visible):
    covariance = torch.cov(torch.randn(5, 40, generator=torch.Generator().manual_seed(visible)).cumsum(0), correction=0)
    parameters = [part.clone().requires_grad_() for part in at_the_optimum(covariance, visible)]
    assert parameters[0].norm() > 0.1
    for gradient in torch.autograd.grad(elbo(covariance, *parameters, visible), parameters):
        assert gradient.abs().max() < 1e-9
    if visible < 4:  # maximum likelihood with its best blind encoder climbs on
        w, variance = price.Blind.optimum(covariance, 5)
        precision = 1 + w.square().sum() / variance
        h = torch.linalg.solve(covariance[:visible, :visible], covariance[:visible] @ w) / (variance * precision)
        parameters = [part.clone().requires_grad_() for part in (w, variance.log() / 2, h, -precision.log())]
        of_w, of_s, *of_guide = torch.autograd.grad(elbo(covariance, *parameters, visible), parameters)
        assert max(part.abs().max() for part in of_guide) < 1e-9 < 1e-3 < max(of_w.abs().max(), of_s.abs())


def test_the_programs_have_the_elbo_of_the_formula():
    """LinearGaussian with a guide of a linear encoder, as the example trains it, within 4 Monte Carlo errors."""
    case = price.Blind()
    x = case.data(200, torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    covariance = case.moments(x)
    w, log_s, h, log_v = at_the_optimum(covariance, 1)
    model, guide = case.pair(restricted=True)
    with torch.no_grad():
        model.weight.copy_(w[:, None])
        model.bias.zero_()
        model.log_scale.copy_(log_s)
        guide.encoder.loc.weight.copy_(h[None])
        guide.encoder.loc.bias.zero_()
        guide.encoder.constants.copy_(log_v / 2)
    found = analysis.elbo(model, guide, x, num_particles=400)
    formula = elbo(covariance, w, log_s, h, log_v, 1).item()
    assert abs(found.mean.value - formula) < 4 * found.mean.mc_se < 0.05
    assert formula < model.log_evidence(x).mean().item() - 0.1


def test_an_encoder_that_sees_too_little_collapses_where_maximum_likelihood_does_not():
    """x_1 independent of the rest: g = S_11 = 1 below T / D = 7 / 3, so w = 0 and s^2 = T / D."""
    covariance = torch.block_diag(torch.tensor([[1.0]]), torch.tensor([[3.0, 2.0], [2.0, 3.0]]))
    w, variance = price.Blind.optimum(covariance, 1)
    assert w.abs().max() == 0 and variance.item() == pytest.approx(7 / 3)
    likely, _ = price.Blind.optimum(covariance, 3)
    assert likely.square().sum().item() == pytest.approx(5 - 1)


# The diagonal guide and the one scale.


def test_newtons_method_finds_the_maxima_of_several_functions_at_once():
    """-cosh(x - a) - (y - b)^4 - (y - b)^2 from far off."""
    at = torch.tensor([[3.0, -1.0], [-20.0, 5.0]])
    found = price.maximisers(lambda p, a: -torch.cosh(p[0] - a[0]) - (p[1] - a[1]) ** 4 - (p[1] - a[1]) ** 2, torch.zeros(2, 2), at)
    assert torch.allclose(found, at, atol=1e-9)


def test_maximum_likelihood_with_fixed_directions_has_a_closed_form():
    """m_+ / m_- is the ratio of the moments: k = (ratio - 1) / ((1 + c)^2 - ratio (1 - c)^2)."""
    case = price.Diagonal()
    moments = torch.stack([case.moments(case.data(500, torch.Generator().manual_seed(seed))) for seed in range(5)])
    ratio = moments[:, 0] / moments[:, 1]
    k = (ratio - 1) / ((1 + case.c) ** 2 - ratio * (1 - case.c) ** 2)
    assert torch.allclose(case.log_ks(moments, False), k.log(), atol=1e-8)


def test_the_optimum_of_a_diagonal_guide_by_bisection():
    """The derivative of log p(x) - KL by log k, with the KL from the two Normals' own formula, changes sign at the optimum, to 1e-8."""
    case = price.Diagonal()
    moments = case.limit_moments()

    def objective(log_k):
        k = log_k.exp()
        a = torch.tensor([[1, case.c], [case.c, 1]])
        precision = torch.eye(2) + k * a.mT @ a
        q = MultivariateNormal(torch.zeros(2), precision_matrix=torch.diag(precision.diagonal()))
        gap = kl_divergence(q, MultivariateNormal(torch.zeros(2), precision_matrix=precision))
        turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
        multiple = torch.eye(2) + k * a @ a.mT
        variance = torch.linalg.solve(multiple, turn @ torch.diag(moments) @ turn).diagonal().sum() / 2
        return -0.5 * (torch.logdet(multiple) + 2 * variance.log()) - gap

    low, high = -3.0, case.log_k
    for _ in range(50):
        middle = torch.tensor((low + high) / 2, requires_grad=True)
        (slope,) = torch.autograd.grad(objective(middle), middle)
        low, high = (middle.item(), high) if slope > 0 else (low, middle.item())
    assert case.log_ks(moments[None], True).item() == pytest.approx(low, abs=1e-8)
    assert low < case.log_k - 1  # the bias, and no small one


def test_one_scale_loses_what_the_two_normals_of_each_pattern_lose():
    """The objective is the model's own log evidence of data with holes, less the mean KL at the mean precision, which is the best."""
    case = price.OneScale()
    x = case.data(40, torch.Generator().manual_seed(0))
    model, _ = case.pair(restricted=True)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.7], [1.5], [-0.4]]))
        model.log_scale.fill_(-0.2)
    parameters = torch.cat([model.weight[:, 0], model.log_scale[None]]).detach()
    moments = case.moments(x)
    batch = case.batch(x)
    log_p = model.log_evidence(batch).mean().item()
    assert case.bound(parameters, moments, False).item() == pytest.approx(log_p, rel=1e-12)
    precision = 1 / model.posterior(batch).variance[[0, -1], 0].detach()

    def lost(q):
        return kl_divergence(Normal(0.0, q**-0.5), Normal(torch.zeros(2), precision**-0.5)).mean().item()

    best = precision.mean()
    assert case.bound(parameters, moments, True).item() == pytest.approx(log_p - lost(best), rel=1e-12)
    assert lost(best) < min(lost(best * 1.05), lost(best * 0.95))


@pytest.mark.parametrize("case", price.CASES, ids=lambda case: case.name)
def test_maximum_likelihood_is_right_in_the_limit_and_the_restricted_optimum_is_not(case):
    moments = case.limit_moments()[None]
    assert case.log_ks(moments, False).item() == pytest.approx(case.log_k, abs=1e-8)
    assert case.log_ks(moments, True).item() < case.log_k - 0.4


def test_the_error_of_maximum_likelihood_is_that_of_the_delta_method():
    """Eigenvalues of a covariance have relative variance 2 / N each, log s^2 that over D - 1. log k = log(rho - 1), rho = lambda / s^2 = 5:
    sd = (5 / 4) sqrt(2 (1 + 1/3) / N). Fixed directions: log(m_+ / m_-) has variance 4 / N, and slope by log k known."""
    generator = torch.Generator().manual_seed(0)
    likely, restricted = price.errors_of(price.Blind(), 1000, 400, generator)
    assert abs(likely.rms - 1.25 * math.sqrt(8 / 3 / 1000)) < 4 * likely.rms_se
    assert abs(restricted.mean - restricted.limit) < 4 * restricted.mean_se and restricted.rms > 10 * likely.rms
    case = price.Diagonal()
    likely, restricted = price.errors_of(case, 1000, 400, generator)
    k, plus, minus = math.exp(case.log_k), (1 + case.c) ** 2, (1 - case.c) ** 2
    slope = k * plus / (1 + k * plus) - k * minus / (1 + k * minus)
    assert abs(likely.rms - 2 / slope / math.sqrt(1000)) < 4 * likely.rms_se
    assert abs(restricted.mean - restricted.limit) < 4 * restricted.mean_se and restricted.rms > 5 * likely.rms


@pytest.mark.example
def test_training_ends_at_the_blind_optimum_and_not_at_maximum_likelihood():
    """SVI on 300 data. What the steps' noise leaves is below a tenth of the distance between the two, log 3 or so."""
    found = price.trained_of(price.Blind(), 300, True, 500)
    apart = found.maximum_likelihood - found.optimum
    assert apart > 0.8
    assert abs(found.log_k - found.optimum) < apart / 10


def test_the_slope_of_errors_is_that_of_a_power():
    errors = [price.Errors("a", n, False, 3 * n**-0.5, 0.0, 0.0, 0.0, 0.0) for n in (10, 100, 1000)]
    assert price.slope_of(errors) == pytest.approx(-0.5, abs=1e-5)  # logarithms in single precision elsewhere


@pytest.mark.slow
def test_a_quick_run_measures_all_guides_against_one_log_p(quick):
    record = quick(price)
    rows = {(row["name"], row["how"]): row for row in record["rows"]}
    frozen = [row for row in record["rows"] if row["how"] != "joint"]
    assert len({row["test_log_p"] for row in frozen}) == 1 and len(frozen) == 8
    for row in record["rows"]:
        assert row["test_elbo"] + row["test_gap"] == pytest.approx(row["test_log_p"], abs=1e-9)
    assert rows["5 steps", "behind"]["evaluations"] == 5 * 16
    assert rows["full rank, 20 steps", "behind"]["evaluations"] == 20 * 32
    worst = max(row["test_gap"] for row in frozen if row["how"] == "encoder")
    best = rows["full rank, 160 steps", "behind"]
    assert -4 * best["test_gap_mc_se"] < best["test_gap"] < worst / 2
    assert record["by_visible"]["1"][1] == pytest.approx(1.5)


# Counts.


@pytest.mark.parametrize(("mean", "r"), [(0.3, 0.5), (4.0, 2.0), (20.0, 1.3)])
def test_the_negative_binomial_has_its_mean_its_variance_and_its_zeros(mean, r):
    """By enumeration: sum 1, mean m, variance m + m^2 / r, P(0) = (r / (r + m))^r; a program with one column and means exp(output)."""
    program = counts.Counts("negative binomial", torch.nn.Identity(), torch.nn.Identity(), 1, 1, proportions=False)
    torch.nn.init.constant_(program.dispersion["a"], math.log(r) / counts.PACE)
    x = torch.arange(3000.0)[:, None]
    with torch.no_grad():
        p = program.observed(torch.full((3000, 1), math.log(mean)), torch.ones(3000)).log_prob(x).exp()
    x = x[:, 0]
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert (p * x).sum().item() == pytest.approx(mean, rel=1e-9)
    assert (p * (x - mean) ** 2).sum().item() == pytest.approx(mean + mean**2 / r, rel=1e-9)
    assert p[0].item() == pytest.approx((r / (r + mean)) ** r, rel=1e-12)


@pytest.mark.parametrize("likelihood", ["Poisson", "negative binomial"])
def test_means_share_out_the_library(likelihood):
    program = counts.truth(likelihood).double()
    library = torch.tensor([10.0, 300.0])
    mean = program.observed(program.decoder(torch.randn(2, 2)), library).mean
    assert torch.allclose(mean.sum(-1), library)


def test_log_p_of_the_truth_is_the_integral_over_its_factors():
    """The trapezoid rule on a grid of 0.04 over [-6, 6]^2; cubature promises 1e-4 nats."""
    program = counts.truth("negative binomial").double()
    x = {name: part.double() for name, part in counts.cells(program, 2, 0).items()}
    line = torch.linspace(-6, 6, 301)
    z = torch.cartesian_prod(line, line)
    with pyro.get_param_store().scope():
        found = analysis.exact_log_likelihood(program.model, x)
        log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
        for n in range(2):
            likelihood = program.observed(program.decoder(z), x["library"][n].expand(len(z))).log_prob(x["counts"][n])
            integral = torch.logsumexp(log_prior + likelihood, 0) + 2 * math.log(12 / 300)
            assert found.pointwise[n].item() == pytest.approx(integral.item(), abs=2e-4)


def test_the_statistics_of_a_small_table():
    """Columns (0, 4) and (17, 17): a quarter zeros, half above 16; variance / mean 4 / 2 and 0."""
    x = {"counts": torch.tensor([[0.0, 17.0], [4.0, 17.0]])}
    assert counts.share_of_zeros(x) == 0.25 and counts.share_above(x) == 0.5 and counts.variance_over_mean(x) == 1.0


def test_overdispersed_cells_are_overdispersed_at_equal_means():
    """Given factors: of 4,000 draws at one z the variance is m + m^2 / r, not m; within 5 standard errors of the sum over genes."""
    program = counts.truth("negative binomial").double()
    law = program.observed(program.decoder(torch.zeros(4000, 2)), torch.full((4000,), 200.0))
    torch.manual_seed(0)
    drawn, mean = law.sample(), law.mean[0]
    expected = (mean + mean.square() / program.log_r.exp()).sum()
    squares = (drawn - mean).square().sum(1)
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(4000)
    assert expected > 5 * mean.sum()
    sober = counts.truth("Poisson").double()
    assert torch.equal(sober.decoder.weight, program.decoder.weight) and torch.equal(sober.decoder.bias, program.decoder.bias)


@pytest.mark.slow
def test_a_quick_run_of_counts_keeps_the_contract_and_weighs_as_cubature_does(quick):
    record = quick(counts)
    assert [row["program"] for row in record["rows"]] == ["Poisson", "negative binomial"]
    assert record["claims"]["every pair keeps the contract"]["seen"]
    for row in record["rows"]:
        assert abs(row["log_p"] - row["exact"]) < 6 * row["log_p_mc_se"]
        assert row["elbo"] < row["exact"] < row["truth"]
    (difference,) = record["differences"]
    by = {row["program"]: row["log_p"] for row in record["rows"]}
    assert difference["value"] == pytest.approx(by["negative binomial"] - by["Poisson"], abs=1e-6)
    assert {*itertools.chain(*(row["p_values"] for row in record["rows"]))} == set(counts.STATISTICS)
