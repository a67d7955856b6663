"""Formulas of the field with known answers, 7.1 to 7.13, held against the library that has to reproduce them.

Those that another file already tests:

7.1  probabilistic PCA      test_models.py::test_at_the_maximum_likelihood_a_linear_encoder_attains_the_evidence
                            test_measurement.py::test_latent_usage_of_probabilistic_pca_is_that_of_its_eigenvalues
                            test_fit.py::test_training_reaches_the_maximum_likelihood
7.2  approximation gap      test_refine.py::test_refined_diagonal_normal_loses_half_log_one_minus_r_squared (2-D)
     exact guide            test_programs.py::test_exact_guide_gives_every_weight_the_evidence
                            test_measurement.py::test_log_likelihood_of_the_exact_guide_has_full_effective_size_and_no_tail
7.3  amortization gap       test_inference_gaps.py::test_the_injected_amortization_gap_comes_back (one offset for all data)
7.4  bias, variance of L_K  test_programs.py::test_bias_of_the_bound_is_chi_squared_over_two_k, ..._variance_... (without offset)
     for every K            test_programs.py::test_mean_weight_is_unbiased_for_the_evidence; test_statistical.py
7.5  k-hat                  test_importance.py::test_k_hat_of_a_mean_field_proposal_is_the_correlation (from arrays)
7.6  annealing itself       test_annealing.py
7.8  enumeration            test_objectives.py::test_model_enumeration_without_a_weight_is_the_marginal_likelihood
7.11 ELBO surgery           test_measurement.py::test_mutual_information_of_separated_posteriors_is_log_n, ..._by_brute_force
7.12 weighted objective     test_objectives.py::test_weighted_loss_and_gradient_are_the_formula

The rest is here. A tolerance is a number of standard errors, or rounding, and says which.
"""

import functools
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import torch

import ppvae
from ground_truth import (
    BinaryLatents,
    Funnel,
    MeanField,
    MixturePrior,
    PlaneDecoder,
    chi_squared,
    correlated_posterior,
    expected_log_likelihood,
    kl_to_posterior,
    linear_gaussian,
    pit_distance,
    tempered_posterior,
    with_posterior_precision,
)
from ppvae import analysis, guides, importance
from ppvae.errors import UnreliableWarning
from ppvae.models import LinearGaussian
from ppvae.nn import MLP
from ppvae.stream import log_weights

ROUNDING = 1e-9


def principal(k=3, n=2000, scales=(3.0, 2.0, 1.5, 0.4, 0.5, 0.3)):
    """Data with distinct eigenvalues, the maximum-likelihood model, and the eigenvalues of the covariance, descending."""
    x = torch.randn(n, len(scales)) @ torch.diag(torch.tensor(scales)) @ torch.linalg.qr(torch.randn(len(scales), len(scales)))[0]
    x = x - x.mean(0)
    return LinearGaussian.maximum_likelihood(x, k).requires_grad_(False), x, torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)


def with_noise(x, k, s2):
    """The best W for a noise variance that is given, U (L - s2)_+^(1/2), and the eigenvalues L, descending."""
    values, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    model = LinearGaussian(x.shape[1], k, math.sqrt(s2))
    with torch.no_grad():
        model.weight.copy_(vectors.flip(1)[:, :k] * (values.flip(0)[:k] - s2).clamp(min=0).sqrt())
    return model.requires_grad_(False), values.flip(0)


def diagonal_posterior(model):
    """The posterior of a model whose W'W is diagonal, as a factorised Normal."""

    def guide(x):
        posterior = model.posterior(x)
        scale = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(posterior.loc, scale).to_event(1))

    return guide


# 1. Probabilistic PCA.


def test_value_of_the_maximum_likelihood():
    """7.1: max mean log-likelihood = -1/2 [d log 2 pi + sum_{i <= k} log l_i + (d - k) log s2 + d], the trace term being exactly d."""
    model, x, values = principal(k=3)
    s2 = values[3:].mean()
    expected = -0.5 * (6 * math.log(2 * math.pi) + values[:3].log().sum() + 3 * s2.log() + 6)
    assert abs(model.log_evidence(x).mean() - expected) < ROUNDING
    found = analysis.elbo(model, diagonal_posterior(model), x, num_particles=2)
    assert abs(found.mean.value - expected) < ROUNDING  # every weight is p(x): no Monte Carlo error


def test_no_other_model_has_a_larger_likelihood():
    """7.1: the gradient vanishes at the maximum, and 200 models around it are worse."""
    model, x, _ = principal(k=3, n=500)
    best = model.log_evidence(x).mean()
    for _ in range(200):
        other = LinearGaussian(6, 3)
        other.load_state_dict({name: value + 0.05 * torch.randn_like(value) for name, value in model.state_dict().items()})
        assert other.log_evidence(x).mean() < best
    model.requires_grad_(True)
    gradients = torch.autograd.grad(model.log_evidence(x).mean(), list(model.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < ROUNDING


def test_rate_at_the_maximum_is_the_mutual_information_of_the_model():
    """7.1: rate = I_q = 1/2 sum log(l_i / s2)."""
    model, x, values = principal(k=3)
    exact = 0.5 * (values[:3] / values[3:].mean()).log().sum()
    found = analysis.elbo(model, diagonal_posterior(model), x, num_particles=50)
    # log q - log p of one draw has sd below 2 around its datum's rate: 5 standard errors of 2000 x 50 draws
    assert abs(found.rate.mean() - exact) < 5 * 2 / math.sqrt(2000 * 50)


@pytest.mark.parametrize(("s2", "active"), [(0.2, 3), (3.0, 2), (6.0, 1), (20.0, 0)], ids=str)
def test_units_below_a_noise_that_is_given_collapse(s2, active):
    """7.1: with s2 fixed too large the dims with l_i < s2 collapse: number of active units = #{l_i > s2}; Var E[z_i | x] = 1 - s2 / l_i."""
    _, x, _ = principal(k=3)
    model, values = with_noise(x, 3, s2)
    assert (values[:3] > s2).sum() == active
    found = analysis.latent_usage(model, diagonal_posterior(model), x, num_particles=1, num_mutual=2)
    assert found.active_units == {"z": active}
    assert torch.allclose(found.unit_variance["z"], (1 - s2 / values[:3]).clamp(min=0), atol=ROUNDING)


def test_a_rotated_maximum_has_a_gap_below_a_diagonal_guide():
    """7.1: W R has the likelihood of W and a posterior that is not diagonal: the optimum of the ELBO is identified up to sign and order."""
    model, x, _ = principal(k=3)
    rotated = LinearGaussian(6, 3)
    rotated.load_state_dict(model.state_dict())
    with torch.no_grad():
        rotated.weight.copy_(model.weight @ torch.linalg.qr(torch.randn(3, 3))[0])
    assert (rotated.log_evidence(x) - model.log_evidence(x)).abs().max() < ROUNDING
    precision = rotated.posterior(x[:1]).precision_matrix[0]
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.01
    found = analysis.elbo(rotated, MeanField(rotated), x[:200], num_particles=2000)
    assert abs((rotated.log_evidence(x[:200]) - found.pointwise).mean() - gap) < 5 * found.mean.mc_se


# 2, 3. Gaps.


@pytest.mark.parametrize("k", [1, 3, 6], ids=str)
def test_gap_of_the_best_diagonal_normal(k):
    """7.2: 1/2 (sum log P_ii - log det P), for any posterior precision P."""
    factor = torch.randn(k, k)
    precision = factor @ factor.mT + 1.5 * torch.eye(k)
    model, x = with_posterior_precision(precision)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    found = analysis.elbo(model, MeanField(model), x, num_particles=4000)
    assert abs((model.log_evidence(x) - found.pointwise).mean() - gap) < 5 * found.mean.mc_se + ROUNDING


def test_gap_of_an_encoder_with_a_linear_error():
    """7.3: q_x = N(m_x + E (x - b), S): mean amortization gap = 1/2 tr(E' P E C) + 1/2 [tr(P S) - k - log det(S D_P)]."""
    model, x, approximation = correlated_posterior(0.4, num_data=24)
    error = torch.tensor([[0.04, -0.02], [0.01, 0.05]])

    class Erring(MeanField):
        def parameters(self, x):
            loc, scale = super().parameters(x)
            return loc + (x - self.model.bias) @ error.mT, scale

    guide = Erring(model, inflation=1.1)
    p, d_p = model.posterior(x[:1]).precision_matrix[0], model.posterior(x[:1]).precision_matrix[0].diagonal()
    covariance = (x - model.bias).mT @ (x - model.bias) / len(x)
    s = 1.1**2 / d_p
    variance_term = 0.5 * ((d_p * s).sum() - 2 - (s * d_p).log().sum())
    expected = 0.5 * torch.trace(error.mT @ p @ error @ covariance) + variance_term
    total = kl_to_posterior(model, x, guide.parameters(x)[0], torch.diag_embed(guide.parameters(x)[1].square()))
    assert abs(total.mean() - approximation - expected) < ROUNDING
    found = analysis.inference_gaps(model, guide, x, num_particles=5000, steps=320, num_draws=128)
    left = 1e-3  # what the optimisation of q* may leave
    assert abs(found.mean("amortization").value - expected) < 5 * found.mean("amortization").mc_se + left


# 4. The importance-weighted bound.

CASES = {
    "correlated": (0.25, 1.0, (0.0, 0.0)),
    "shifted": (0.2, 1.1, (0.06, -0.04)),
    "wide and shifted": (0.25, 1.25, (0.1, 0.05)),
}


def weights_of(case, num_data=64, num_particles=10_000):
    """log w - log p(x), (K, N), and chi^2."""
    r, inflation, offset = CASES[case]
    model, x, _ = correlated_posterior(r, num_data=num_data)
    guide = MeanField(model, offset=torch.tensor(offset), inflation=inflation)
    precision = model.posterior(x[:1]).precision_matrix[0]
    chi2 = chi_squared(precision, guide.parameters(x)[1][0] * torch.ones(2), torch.tensor(offset)).item()
    return log_weights(model, guide, x, num_particles=num_particles) - model.log_evidence(x), chi2


@pytest.mark.parametrize("case", CASES)
def test_second_moment_of_the_weights(case):
    """7.4: 1 + chi^2 = E[w^2] / p(x)^2, with a mean offset."""
    found, chi2 = weights_of(case)
    square = (2 * found).exp()
    assert chi2 > 0.05
    assert abs(square.mean() - 1 - chi2) < 5 * square.std() / math.sqrt(square.numel())


@pytest.mark.parametrize("case", CASES)
def test_bias_and_variance_of_the_bound_with_an_offset(case):
    """7.4: log p - E L_K = chi^2 / 2K and Var L_K = chi^2 / K, up to O(K^-2)."""
    k = 50
    found, chi2 = weights_of(case)
    bounds = importance.log_mean_exp(found.reshape(-1, k, 64), 1).flatten()
    second_order = 4 / k  # relative size of the next terms: they come with E[(w - 1)^3] / chi^2, 2 to 4 here
    bias = bounds.expm1() - bounds  # E[exp L - 1] = 0: the same mean as -L, with noise of second order
    assert abs(bias.mean() / (chi2 / (2 * k)) - 1) < second_order + 5 * bias.std() / math.sqrt(len(bounds)) / (chi2 / (2 * k))
    square = (bounds - bounds.mean()).square()
    assert abs(square.mean() / (chi2 / k) - 1) < second_order + 5 * square.std() / math.sqrt(len(bounds)) / (chi2 / k)


def test_second_moment_of_the_weights_is_infinite_where_the_proposal_is_half_as_wide():
    """7.4: finite iff lambda_min(R) > 1/2; at r = 1/2 the best diagonal Normal stands on the edge."""
    one_sided = {
        r: chi_squared(torch.linalg.inv(torch.tensor([[1.0, r], [r, 1.0]])), torch.full((2,), math.sqrt(1 - r**2))) for r in (0.49, 0.5)
    }
    assert one_sided[0.49] == pytest.approx((1 - 0.49**2) / math.sqrt(1 - 4 * 0.49**2) - 1, rel=1e-6)
    assert one_sided[0.5] == math.inf


@pytest.mark.parametrize("k", [1, 5, 50], ids=str)
def test_a_bound_from_above_by_an_exact_draw_of_the_posterior(k):
    """7.4: with z* ~ p(z | x), E log (1/K)(w(z*) + w(z_2) + ... + w(z_K)) >= log p(x), and it falls towards log p(x) as K grows."""
    model, x, _ = correlated_posterior(0.6, num_data=2000)
    guide = MeanField(model, inflation=0.8)
    loc, scale = guide.parameters(x)
    z = model.posterior(x).sample()
    joint = model.posterior(x).log_prob(z) + model.log_evidence(x)  # Bayes' rule
    exact_draw = joint - dist.Normal(loc, scale).log_prob(z).sum(-1)
    others = log_weights(model, guide, x, num_particles=max(k - 1, 1))[: k - 1]
    upper = importance.log_mean_exp(torch.cat([exact_draw[None], others])) - model.log_evidence(x)
    lower = importance.log_mean_exp(log_weights(model, guide, x, num_particles=k, seed=1)) - model.log_evidence(x)
    assert upper.mean() > 5 * upper.std() / math.sqrt(2000) and lower.mean() < -5 * lower.std() / math.sqrt(2000)


# 5. k-hat.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("r", "inflation"),
    [*(pytest.param(r, 1.0, marks=pytest.mark.soak) for r in (0.7, 0.9)), pytest.param(0.5, 0.8, marks=pytest.mark.soak)],
    ids=lambda value: f"{value:g}",
)
def test_k_hat_of_a_normal_proposal(r, inflation):
    """7.5: k = 1 - lambda_min(R), here 1 - inflation^2 (1 - |r|); slow to converge, 0.1 at 1e5 draws and biased low at large r."""
    model, x, _ = correlated_posterior(r, num_data=4)
    found = importance.k_hat(log_weights(model, MeanField(model, inflation=inflation), x, num_particles=100_000))
    exact = 1 - inflation**2 * (1 - r)
    # sd of k-hat at 1e5 draws: 0.03 to 0.06; bias up to 0.05 (r = 0.9)
    assert abs(found.mean() - exact) < 0.05 + 5 * 0.06 / math.sqrt(4)
    assert (found - exact).abs().max() < 0.05 + 5 * 0.06


def test_a_wide_proposal_has_bounded_weights():
    """7.5: lambda_min(R) >= 1: k <= 0, not above the threshold of any K; k-hat's prior towards 1/2 leaves it below 0.2."""
    model, x, _ = correlated_posterior(0.3, num_data=16)
    assert importance.k_hat(log_weights(model, MeanField(model, inflation=1.4), x, num_particles=10_000)).max() < 0.2


# 6. The geometric path between prior and posterior of a linear Gaussian model.


def test_the_thermodynamic_integral_is_the_evidence():
    """7.6: int_0^1 E_beta[log p(x | z)] dbeta = log p(x). E_beta is rational in beta: 40 Gauss points are exact to rounding."""
    model, _, x = linear_gaussian(num_data=10, latent_dim=2)
    nodes, weights = scipy.special.roots_legendre(40)
    terms = [
        w / 2 * expected_log_likelihood(model, x, tempered_posterior(model, x, (node + 1) / 2))
        for node, w in zip(nodes, weights, strict=True)
    ]
    assert (sum(terms) - model.log_evidence(x)).abs().max() < 1e-6


@pytest.mark.parametrize("n", [1, 5, 100], ids=str)
def test_the_divergences_along_the_path_telescope(n):
    """7.6: sum_t KL(p_t || p_t+1) + KL(p_t+1 || p_t) = (E_post[log p(x | z)] - E_prior[log p(x | z)]) / n on a linear schedule."""
    model, _, x = linear_gaussian(num_data=10, latent_dim=3)
    path = [tempered_posterior(model, x, t / n) for t in range(n + 1)]
    kl = torch.distributions.kl_divergence
    there_and_back = sum(kl(a, b) + kl(b, a) for a, b in itertools.pairwise(path))
    ends = expected_log_likelihood(model, x, path[-1]) - expected_log_likelihood(model, x, path[0])
    assert (there_and_back - ends / n).abs().max() < 1e-8


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0], ids=str)
def test_measured_distortion_along_the_path_is_its_closed_form(beta):
    """7.6: what is integrated, -distortion of the guide p_beta."""
    model, _, x = linear_gaussian(num_data=30)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", tempered_posterior(model, x, beta))

    found = analysis.elbo(model, guide, x, num_particles=4000)
    exact = expected_log_likelihood(model, x, tempered_posterior(model, x, beta))
    z = tempered_posterior(model, x, beta).sample((2000,))
    spread = dist.Normal(z @ model.weight.mT + model.bias, model.log_scale.exp()).log_prob(x).sum(-1).std(0)
    assert ((found.distortion + exact).abs() < 5 * spread / math.sqrt(4000)).all()


# 7, 8. Answers by brute force.


def reaches(weights, exact):
    """Whether the bound of each datum lies within 5 standard errors of the evidence."""
    found = importance.reduced(weights)
    return ((found.log_mean_weight - exact).abs() < 5 * found.se + ROUNDING).all()


def test_two_grids_of_the_plane_agree():
    """7.7: midpoint sums of h = 0.04 and 0.02; 4e-5 nats is what the field's decoders gave."""
    model = PlaneDecoder()
    x = model.draw(30)
    assert (model.log_px(x, h=0.04) - model.log_px(x, h=0.02)).abs().max() < 4e-5


def test_importance_weights_reach_the_grid():
    """7.7: from a Normal with the grid's moments, 1.3 times as wide."""
    model = PlaneDecoder()
    x = model.draw(30)
    mean, covariance = model.posterior_moments(x)
    wide = dist.MultivariateNormal(mean, 1.69 * covariance)

    def guide(batch):
        rows = [(x == row).all(1).nonzero()[0, 0].item() for row in batch]
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(wide.loc[rows], wide.covariance_matrix[rows]))

    weights = log_weights(model, guide, x, num_particles=5000)
    sound = importance.k_hat(weights) < importance.k_hat_threshold(5000)
    assert sound.double().mean() > 0.8
    assert reaches(weights[:, sound], model.log_px(x)[sound])


def test_weights_of_binary_latents_are_among_the_enumerated():
    """7.8: each log weight is log p(x, z) - log q(z | x) of one of the 2^m states, and their mean reaches the sum over all."""
    model = BinaryLatents()
    x = model.draw(20)
    marginals = model.posterior(x) @ model.states
    log_q = torch.where(model.states == 1, marginals[:, None].log(), (-marginals[:, None]).log1p()).sum(-1)
    table = model.log_joint(x) - log_q
    found = log_weights(model, model.guide, x, num_particles=2000)
    assert (found[:, :, None] - table).abs().amin(-1).max() < ROUNDING
    assert reaches(found, model.log_px(x))


@pytest.mark.parametrize("sites", ["one site", "two sites"])
def test_weights_of_a_mixture_prior_under_its_posterior_are_the_evidence(sites):
    """7.8: a mixture prior and a linear decoder; with the component as a site of its own, and without."""
    model = MixturePrior()
    x = model.draw(30)

    def two(x):
        components = model.posterior(x).component_distribution
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=model.log_joint_of_components(x)))
            rows = torch.arange(len(x))
            pyro.sample("z", dist.MultivariateNormal(components.loc[rows, c], components.covariance_matrix[rows, c]))

    pair = (model, model.guide) if sites == "one site" else (model.two_sites, two)
    assert (log_weights(*pair, x, num_particles=5) - model.log_px(x)).abs().max() < ROUNDING


def test_importance_weights_of_a_funnel_reach_its_quadrature():
    """A Gamma precision and a Normal under it: one positive and one real site."""
    model = Funnel()
    x = model.draw(30)
    assert reaches(log_weights(model, model.guide, x, num_particles=5000), model.log_px(x))
    assert (model.log_px(x) - model.log_px(x, points=2001)).abs().max() < ROUNDING


# 9. Calibration.


@pytest.mark.parametrize(
    ("ratio", "distance"), [(0.5, 0.161), (0.7, 0.085), (0.8, 0.054), (0.9, 0.025), (1.1, 0.023), (1.25, 0.054)], ids=str
)
def test_distance_of_probability_transforms_from_uniform(ratio, distance):
    """7.9: sup |Phi(s Phi^-1(t)) - t|, and the ranks of true latents in a guide of that width have it."""
    assert pit_distance(ratio) == pytest.approx(distance, abs=5e-4)
    n = 40_000
    model, _, _ = correlated_posterior(0.0, num_data=1)
    z = torch.randn(n, 2)
    x = z @ model.weight.mT + model.bias + model.log_scale.exp() * torch.randn(n, 2)
    loc, scale = MeanField(model, inflation=ratio).parameters(x)
    u = dist.Normal(loc, scale).cdf(z)[:, 0].sort().values
    found = (u - torch.arange(1, n + 1) / n).abs().max().item()
    assert abs(found - distance) < 1.95 / math.sqrt(n)  # Kolmogorov's 99.9 % band


# 10. Divergences.


def von_mises(a, b):
    """KL(VM(m1, k1) || VM(m2, k2)) = k1 A - k2 A cos(m1 - m2) + log I0(k2) / I0(k1), A = I1(k1) / I0(k1)."""
    i0, i1 = scipy.special.i0, scipy.special.i1
    k1, k2, m = float(a.concentration), float(b.concentration), float(a.loc - b.loc)
    ratio = i1(k1) / i0(k1)
    return k1 * ratio - k2 * ratio * math.cos(m) + math.log(i0(k2) / i0(k1))


def gamma(a, b):
    """(a1 - a2) psi(a1) - log G(a1) / G(a2) + a2 log(b1 / b2) + a1 (b2 - b1) / b1."""
    a1, b1, a2, b2 = (float(v) for v in (a.concentration, a.rate, b.concentration, b.rate))
    return (a1 - a2) * scipy.special.digamma(a1) - math.lgamma(a1) + math.lgamma(a2) + a2 * math.log(b1 / b2) + a1 * (b2 - b1) / b1


def beta(a, b):
    """log B(a2, b2) / B(a1, b1) + (a1 - a2) psi(a1) + (b1 - b2) psi(b1) + (a2 - a1 + b2 - b1) psi(a1 + b1)."""
    a1, b1, a2, b2 = (float(v) for v in (a.concentration1, a.concentration0, b.concentration1, b.concentration0))
    psi = scipy.special.digamma
    mean_terms = (a1 - a2) * psi(a1) + (b1 - b2) * psi(b1) + (a2 - a1 + b2 - b1) * psi(a1 + b1)
    return scipy.special.betaln(a2, b2) - scipy.special.betaln(a1, b1) + mean_terms


def normal(a, b):
    ratio = float(a.scale / b.scale)
    return 0.5 * (ratio**2 + float((a.loc - b.loc) / b.scale) ** 2 - 1) - math.log(ratio)


def discrete(a, b):
    """Over a support that can be listed."""
    support = a.enumerate_support()
    return float((a.log_prob(support).exp() * (a.log_prob(support) - b.log_prob(support))).sum())


number = functools.partial(torch.tensor, dtype=torch.float64)
FAMILIES = {
    "Normal": (dist.Normal(number(0.5), number(0.7)), dist.Normal(number(0.0), number(1.0)), normal),
    "Gamma": (dist.Gamma(number(3.0), number(2.0)), dist.Gamma(number(1.5), number(1.0)), gamma),
    "Beta": (dist.Beta(number(2.0), number(3.5)), dist.Beta(number(1.2), number(0.8)), beta),
    "von Mises": (dist.VonMises(number(0.4), number(4.0)), dist.VonMises(number(0.0), number(1.5)), von_mises),
    "Bernoulli": (dist.Bernoulli(number(0.8)), dist.Bernoulli(number(0.4)), discrete),
    "Categorical": (dist.Categorical(number([0.7, 0.2, 0.1])), dist.Categorical(number([0.2, 0.3, 0.5])), discrete),
}


def divergence_of(q, p, num_data=400, num_particles=64):
    """A guide and a prior that no datum moves."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", p)
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    return analysis.latent_usage(model, guide, torch.randn(num_data), num_particles=num_particles, num_mutual=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergences_are_their_closed_forms(family):
    """7.10: per dimension exact where a closed form is known, and as the mean of log q - log p within 4 standard errors."""
    q, p, closed_form = FAMILIES[family]
    found, exact = divergence_of(q, p), closed_form(q, p)
    assert exact > 0.1
    assert abs(found.kl["z"].item() - exact) < 4 * found.kl_se["z"].item()
    by_draws = family == "von Mises"  # torch has no closed form
    assert abs(found.kl_per_dimension["z"].item() - exact) < (4 * found.kl_se["z"].item() if by_draws else ROUNDING)


def test_divergence_of_full_normals_is_its_closed_form():
    """7.10: 1/2 [tr(P2 S1) + (m1 - m2)'P2(m1 - m2) - k + log det S2 / det S1]; a site that does not factorise has no dimensions."""
    loc, factors = torch.randn(2, 3), torch.randn(2, 3, 3)
    s1, s2 = factors @ factors.mT + torch.eye(3)
    p2, d = torch.linalg.inv(s2), loc[0] - loc[1]
    exact = 0.5 * (torch.trace(p2 @ s1) + d @ p2 @ d - 3 + torch.logdet(s2) - torch.logdet(s1))
    found = divergence_of(dist.MultivariateNormal(loc[0], s1), dist.MultivariateNormal(loc[1], s2))
    assert abs(found.kl["z"] - exact) < 4 * found.kl_se["z"]
    assert found.kl_per_dimension == {}


# 11. ELBO surgery.


def test_mutual_information_of_probabilistic_pca():
    """7.11: I_q = 1/2 sum log(l_i / s2), and KL(q(z) || p) = 0, up to what 3,000 data leave: exp(I) / N of the mixture is the own term."""
    model, x, values = principal(k=2, n=3000, scales=(1.5, 1.2, 0.6, 0.5))
    exact = 0.5 * (values[:2] / values[2:].mean()).log().sum().item()
    found = analysis.latent_usage(model, diagonal_posterior(model), x, num_particles=16, num_mutual=3000)
    left = 2 * math.exp(exact) / 3000
    assert abs(found.mutual_information - exact) < 5 * found.mutual_information_se + left
    assert abs(found.marginal_kl) < 5 * found.mutual_information_se + left


# 12. Rate and distortion.


def beta_vae(x, k, theta, s2):
    """The optimum of distortion + beta rate over linear decoders of fixed noise s2 and linear encoders, theta = beta s2.

    beta scales the noise: the decoder's W is that of probabilistic PCA with noise theta, and q its posterior there.
    """
    at_theta, values = with_noise(x, k, theta)
    model = LinearGaussian(x.shape[1], k, math.sqrt(s2))
    with torch.no_grad():
        model.weight.copy_(at_theta.weight)
    return model.requires_grad_(False), diagonal_posterior(at_theta), values


@pytest.mark.parametrize("theta", [0.5, 12.0, *(pytest.param(theta, marks=pytest.mark.soak) for theta in (0.1, 2.0))], ids=str)
def test_the_linear_beta_vae_traces_reverse_water_filling(theta):
    """7.12: R = sum max(0, 1/2 log(l_i / theta)) at mean squared error D = sum min(l_i, theta), with as many latents as dimensions."""
    _, x, _ = principal(k=3, n=1000)
    model, guide, values = beta_vae(x, 6, theta, s2=0.3)
    rate, error = (0.5 * (values / theta).log()).clamp(min=0).sum(), values.clamp(max=theta).sum()
    found = analysis.elbo(model, guide, x, num_particles=400)
    squared = (found.distortion.mean() - 3 * math.log(2 * math.pi * 0.3)) * 2 * 0.3
    # sds of one draw around its datum's mean: of the rate below sqrt(k / 2) + sqrt(l / theta) ..., taken from draws
    weights = log_weights(model, guide, x[:100], num_particles=200)
    noise = (weights.std(0).mean() + 3) / math.sqrt(1000 * 400)
    assert abs(found.rate.mean() - rate) < 5 * noise
    assert abs(squared - error) < 5 * 2 * 0.3 * noise
    usage = analysis.latent_usage(model, guide, x, num_particles=1, num_mutual=2)
    assert abs(usage.kl_per_dimension["z"].sum() - rate) < 1e-6  # second moments of the data are exact: no noise at all


def test_slope_of_the_rate_distortion_curve_is_minus_one_over_beta():
    """7.12: dR / dD = -1 / (2 theta) in squared error, -1 / beta in nats of distortion."""
    _, x, _ = principal(k=3, n=300)
    s2, step = 0.3, 1e-4
    points = []
    for theta in (0.5 - step, 0.5 + step):
        _, guide, values = beta_vae(x, 6, theta, s2)
        usage = analysis.latent_usage(beta_vae(x, 6, theta, s2)[0], guide, x, num_particles=1, num_mutual=2)
        points.append((usage.kl_per_dimension["z"].sum().item(), values.clamp(max=theta).sum().item() / (2 * s2)))
    slope = (points[1][0] - points[0][0]) / (points[1][1] - points[0][1])
    assert slope == pytest.approx(-s2 / 0.5, rel=1e-3)


@pytest.mark.slow
def test_a_trained_linear_beta_vae_lies_on_the_curve():
    """7.12: SVI with beta = 3 finds the rate and the squared error of theta = 3 s2; the fourth dimension, l < theta, collapses."""
    _, x, values = principal(k=2, n=300, scales=(2.0, 1.3, 1.0, 0.4))
    model, guide = LinearGaussian(4, 4, math.sqrt(0.1)), guides.DiagonalNormal(MLP(4, [], 8), latent_dim=4)
    model.log_scale.requires_grad_(False)
    often = x.repeat(10, 1)  # each epoch is measured: fewer of them, of as many steps in all
    decay = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.005, total_iters=15)
    optimizer = functools.partial(torch.optim.Adam, lr=0.05)
    with pytest.warns(UnreliableWarning, match="beta ends at 3"):
        run = ppvae.fit(model, guide, often, epochs=15, batch_size=100, beta=3.0, optimizer=optimizer, scheduler=decay)
    found = analysis.elbo(run.model, run.guide, x, num_particles=200)
    squared = (found.distortion.mean() - 2 * math.log(2 * math.pi * 0.1)) * 2 * 0.1
    on_curve = (0.5 * (values / 0.3).log()).clamp(min=0).sum(), values.clamp(max=0.3).sum()
    objective, best = squared / 0.6 + found.rate.mean(), on_curve[1] / 0.6 + on_curve[0]
    assert 0 < objective - best + 0.005 < 0.025  # 0.005: Monte Carlo error of the two means; 0.02: Adam's last steps
    assert abs(found.rate.mean() - on_curve[0]) < 0.1 and abs(squared - on_curve[1]) < 0.06


# 13. The best decoder.


def pixels(n=40, d=8):
    return (torch.rand(n, d) < torch.rand(n, 1)).double()


def optimal_decoder(x, guide):
    """mu(z) = sum_i w_i(z) x_i, w_i proportional to q(z | x_i), i over the data: the best Bernoulli decoder for this guide."""
    loc, scale = guide.family.distribution(guide.parameters_at(x)).base_dist.loc, guide.family.distribution(guide.parameters_at(x)).stddev

    def mean(z):
        cross = dist.Normal(loc, scale).log_prob(z[..., None, :]).sum(-1)
        return torch.softmax(cross, -1) @ x

    return mean


def bernoulli(mean, latent_dim=2):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(mean(z).clamp(1e-9, 1 - 1e-9)).to_event(1), obs=x)

    return model


def test_no_decoder_beats_the_optimal_one():
    """7.13: for a fixed guide the weighted mean of the data bounds the ELBO of every decoder; by 5 standard errors of paired draws."""
    x = pixels()
    guide = guides.DiagonalNormal(MLP(8, [16], 4), latent_dim=2).requires_grad_(False)
    guide.encoder.layers[-1].weight[:2] *= 5  # locations further apart than the scales are wide: z tells of x
    best = optimal_decoder(x, guide)
    networks = [MLP(2, [16], 8).requires_grad_(False) for _ in range(5)]
    others = [lambda z, net=net: torch.sigmoid(net(z)) for net in networks]
    others += [lambda z, net=net: torch.sigmoid(torch.logit(best(z), 1e-9) + net(z)) for net in networks]
    others += [lambda z: 0.5 * best(z) + 0.5 * x.mean(0), lambda z: x.mean(0).expand(*z.shape[:-1], 8)]
    top = log_weights(bernoulli(best), guide, x, num_particles=500)
    for other in others:
        lost = (top - log_weights(bernoulli(other), guide, x, num_particles=500)).mean(1)  # the same draws: the rate falls out
        assert lost.mean() > 5 * lost.std() / math.sqrt(500)


def test_a_collapsed_guide_leaves_the_entropy_of_the_pixels():
    """7.13: where q says nothing of x, w_i = 1 / N: the ELBO is minus the sum of the entropies of the pixels' means."""
    x = pixels()
    guide = guides.DiagonalNormal(MLP(8, [], 4), latent_dim=2).requires_grad_(False)
    for parameter in guide.parameters():
        parameter.zero_()
    mean = x.mean(0)
    entropy = -(torch.special.xlogy(mean, mean) + torch.special.xlogy(1 - mean, 1 - mean)).sum()
    found = analysis.elbo(bernoulli(optimal_decoder(x, guide)), guide, x, num_particles=3)
    assert abs(found.mean.value + entropy) < 1e-6  # the clamp of means at 1e-9


def test_separated_posteriors_decode_without_loss():
    """7.13: where z tells x, mu(z) = x: no distortion, and the ELBO is minus the rate."""
    x = torch.tensor([[float(i >> d & 1) for d in range(8)] for i in range(40)])
    guide = guides.DiagonalNormal(MLP(8, [], 4), latent_dim=2).requires_grad_(False)
    linear = guide.encoder.layers[0]
    linear.weight.zero_()
    linear.weight[0] = 2.0 ** torch.arange(8)  # z_0 = the row's number, all others far away in units of its scale
    linear.bias.copy_(torch.tensor([0.0, 0.0, math.log(0.01), 0.0]))
    found = analysis.elbo(bernoulli(optimal_decoder(x, guide)), guide, x, num_particles=50)
    assert found.distortion.abs().max() < 1e-6
