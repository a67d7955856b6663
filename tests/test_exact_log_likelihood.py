"""log p(x) without sampling: cubature and enumeration against closed forms, their bounds against the error, what is refused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pairs
from ground_truth import linear_gaussian, poisson_gamma, with_posterior_precision
from ppvae import models, quadrature
from ppvae.analysis.exact_log_likelihood import exact_log_likelihood, exact_posterior
from ppvae.errors import ArgumentError, DataError, DivergedError, FamilyError, UnreliableWarning
from ppvae.nn import MLP

ROUNDING = 1e-11


def cubature(log_f, n=3, dim=1, half=8.0, **options):
    box = torch.full((n, dim), half)
    return quadrature.integrate(log_f, -box, box, **options)


def normal(loc, scale):
    """exp of it integrates to (sqrt(2 pi) scale)^D."""
    return lambda rows, u: -0.5 * ((u - loc[rows]) / scale).square().sum(-1)


def log_mass(scale, dim):
    return dim * math.log(math.sqrt(2 * math.pi) * scale)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 0.001])
def test_a_normal_of_any_width_is_found_in_a_box_of_width_16(scale, dim):
    found = cubature(normal(torch.randn(20, dim), scale), 20, dim, tolerance=1e-6)
    error = (found.log_integral - log_mass(scale, dim)).abs()
    assert (error <= found.error_bound).all()
    assert found.error_bound.max() < 1e-6


def test_no_one_of_400_narrow_normals_slips_through_between_cells_and_nodes():
    found = cubature(normal(torch.randn(400, 2), 0.003), 400, 2, tolerance=1e-6)
    assert ((found.log_integral - log_mass(0.003, 2)).abs() <= found.error_bound).all()


@pytest.mark.parametrize("dim", [1, 2])
def test_a_normal_outside_the_box_makes_it_grow(dim):
    found = cubature(normal(30 + torch.randn(5, dim), 0.1), 5, dim)
    assert (found.log_integral - log_mass(0.1, dim)).abs().max() < 1e-6


@pytest.mark.parametrize("dim", [1, 2])
def test_two_modes_of_very_different_mass_far_apart_are_both_found(dim):
    left, right, part = normal(-4 + torch.rand(5, dim), 0.01), normal(3 + torch.rand(5, dim), 0.02), 1e-3
    found = cubature(lambda rows, u: torch.logaddexp(left(rows, u), math.log(part) + right(rows, u)), 5, dim)
    truth = math.log(math.exp(log_mass(0.01, dim)) + part * math.exp(log_mass(0.02, dim)))
    error = (found.log_integral - truth).abs()
    assert (error <= found.error_bound).all()
    assert error.max() < 1e-6


def test_heavy_tails_are_followed_until_they_are_negligible():
    found = cubature(lambda rows, u: -math.log(math.pi) - torch.log1p(u.square()).squeeze(-1), tolerance=1e-4)
    assert found.log_integral.abs().max() <= found.error_bound.max() < 2e-4


def test_what_lies_beyond_the_box_is_in_the_bound():
    found = cubature(lambda rows, u: -math.log(math.pi) - torch.log1p(u.square()).squeeze(-1), 1, tolerance=1e-3)
    inside = (found.cells.log_error - found.log_integral).exp().sum()
    left, right = (found.cells.centre - found.cells.half).min(), (found.cells.centre + found.cells.half).max()
    beyond = (math.pi / 2 - torch.atan(right) + math.pi / 2 + torch.atan(left)) / math.pi
    assert found.error_bound - inside > beyond


def test_a_jump_of_the_density_is_narrowed_down():
    found = cubature(lambda rows, u: torch.where((u > 0.3) & (u < math.pi), 0.0, -torch.inf).squeeze(-1))
    assert (found.log_integral - math.log(math.pi - 0.3)).abs().max() <= found.error_bound.max() < 1e-6


def bent(kinks, slopes):
    """log f of one dimension as a rectifier network makes it, -sum_j slopes_j |u - kinks_j|, and the log of its integral, piece by piece."""

    def log_f(u):
        return -(slopes * (u[..., None] - kinks).abs()).sum(-1)

    order = kinks.argsort()
    edges, heights = kinks[order], log_f(kinks[order])
    outer = slopes.sum()
    pieces = [heights[:1] - outer.log(), heights[-1:] - outer.log()]  # both tails
    drop = heights[1:] - heights[:-1]
    steep = drop.abs() > 1e-12
    width = (edges[1:] - edges[:-1]).log()
    relative = torch.where(steep, (torch.expm1(drop) / torch.where(steep, drop, 1.0)).log(), drop / 2)
    return log_f, torch.logsumexp(torch.cat([*pieces, heights[:-1] + width + relative]), 0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_kinks_anywhere_stay_below_the_bound(tolerance):
    made = [bent(2 * torch.randn(12), torch.rand(12) + 0.05) for _ in range(100)]
    found = cubature(lambda rows, u: torch.stack([made[int(r)][0](u[:, i, 0]) for i, r in enumerate(rows)], 1), 100, tolerance=tolerance)
    error = (found.log_integral - torch.stack([truth for _, truth in made])).abs()
    assert (error <= found.error_bound).all()
    assert found.error_bound.max() < tolerance


@pytest.mark.parametrize("degrees", [0.0, 1.0, 17.0, 45.0])
def test_kinks_of_the_plane_stay_below_the_bound_along_the_axes_and_across(degrees):
    """A product of two bent densities, turned: a turn leaves the integral as it is."""
    made = [(bent(torch.randn(4), torch.rand(4) + 0.3), bent(torch.randn(4), torch.rand(4) + 0.3)) for _ in range(10)]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def log_f(rows, u):
        first, second = cos * u[..., 0] + sin * u[..., 1], cos * u[..., 1] - sin * u[..., 0]
        return torch.stack([made[int(r)][0][0](first[:, i]) + made[int(r)][1][0](second[:, i]) for i, r in enumerate(rows)], 1)

    found = cubature(log_f, 10, 2, tolerance=1e-3)
    error = (found.log_integral - torch.stack([one + other for (_, one), (_, other) in made])).abs()
    assert (error <= found.error_bound).all()
    assert found.error_bound.max() < 1e-3


def test_a_kinks_error_is_below_its_share_of_the_roughness_wherever_it_lies():
    """On one cell, (t - a)+ integrates to (1 - a)^2 / 2: the constants KINK and FALLS_OFF against every place of the kink."""
    rules = quadrature._rules(1, torch.device("cpu"))
    a = torch.linspace(-0.9999, 0.9999, 20_001)
    ramp = (rules.nodes - a).clamp(min=0)  # (Q, places)
    error = (rules.log_weights.exp() @ ramp - (1 - a).square() / 2).abs() / 2
    rough, lower = (rules.rough @ ramp).abs().sum(0), (rules.bent @ ramp).abs().sum(0)
    assert 0.9 * quadrature.KINK < (error / rough).max() < quadrature.KINK
    assert quadrature.FALLS_OFF < (rough / lower).min() < 1.2 * quadrature.FALLS_OFF


def test_a_datum_without_density_anywhere_has_no_bound():
    found = cubature(lambda rows, u: torch.full(u.shape[:2], -torch.inf))
    assert (found.log_integral == -torch.inf).all()
    assert (found.error_bound == torch.inf).all()


def test_an_integral_that_runs_out_of_evaluations_says_so_in_its_bound():
    found = cubature(normal(torch.randn(3, 2), 0.01), 3, 2, max_evaluations=3000)
    error = (found.log_integral - log_mass(0.01, 2)).abs()
    assert (found.error_bound > 1e-3).all()
    assert (error <= found.error_bound).all()


def test_flat_density_is_not_finite_and_its_bound_says_so():
    found = cubature(lambda rows, u: torch.zeros(u.shape[:2]), max_evaluations=5000)
    assert (found.error_bound > 0.1).all()


@pytest.mark.parametrize("rows_at_once", [5, 300], ids=["a cell", "a few"])
def test_how_much_runs_at_once_changes_nothing(rows_at_once):
    log_f = normal(torch.randn(7, 1), 0.1)
    one, other = cubature(log_f, 7), cubature(log_f, 7, rows_at_once=rows_at_once)
    assert (one.log_integral - other.log_integral).abs().max() < ROUNDING
    assert torch.equal(one.num_evaluations, other.num_evaluations)


def test_data_do_not_touch_each_other():
    loc, scale = torch.tensor([[0.0], [50.0], [3.0]]), 0.01
    together = cubature(normal(loc, scale))
    apart = [cubature(normal(loc[i : i + 1], scale), 1).log_integral for i in range(3)]
    assert (together.log_integral - torch.cat(apart)).abs().max() < ROUNDING


def test_evaluations_are_counted():
    calls = []

    def log_f(rows, u):
        calls.append(torch.bincount(rows, minlength=3) * len(u))
        return normal(torch.tensor([[0.0], [1.0], [30.0]]), 0.1)(rows, u)

    found = cubature(log_f)
    assert torch.equal(found.num_evaluations, torch.stack(calls).sum(0))


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_is_the_closed_form_of_the_linear_gaussian(latent_dim):
    model, _, x = linear_gaussian(latent_dim=latent_dim)
    found = exact_log_likelihood(model, x, method="quadrature", tolerance=1e-6)
    error = (found.pointwise - model.log_evidence(x)).abs()
    assert error.max() < 1e-6
    assert (error <= found.error_bound).all()


def test_a_posterior_of_sd_a_hundredth_of_the_priors_is_found():
    model, x = with_posterior_precision(1e4 * torch.tensor([[2.0, 1.2], [1.2, 1.0]]), num_data=8)
    found = exact_log_likelihood(model, x, method="quadrature", tolerance=1e-6)
    assert (found.pointwise - model.log_evidence(x)).abs().max() < 1e-6


def test_the_closed_form_is_taken_where_there_is_one():
    model, _, x = linear_gaussian(latent_dim=3)
    found = exact_log_likelihood(model, x)
    assert torch.equal(found.pointwise, model.log_evidence(x))
    assert (found.method, found.num_evaluations.sum()) == ("closed form", 0)


def test_gamma_poisson_is_negative_binomial():
    model, y, evidence, _ = poisson_gamma()
    found = exact_log_likelihood(model, y, tolerance=1e-6)
    error = (found.pointwise - evidence).abs()
    assert error.max() < 1e-6
    assert (error <= found.error_bound).all()


def test_gamma_posterior_has_its_moments():
    model, y, _, (a, b) = poisson_gamma()
    found = exact_posterior(model, y, num_draws=1)
    assert (found.expectation("r") - a / b).abs().max() < 1e-4
    assert (found.expectation("r", 2) - a * (a + 1) / b**2).abs().max() < 1e-3


def test_draws_follow_the_gamma_posterior():
    model, y, _, (a, b) = poisson_gamma()
    draws = exact_posterior(model, y, num_draws=40_000).draws["r"]
    below = torch.special.gammainc(a, b * draws)  # uniform if the draws are exact: Kolmogorov's 1e-6 quantile is 2.69 / sqrt(K)
    even = (torch.arange(40_000) + 0.5)[:, None] / 40_000
    assert (below.sort(0).values - even).abs().max() < 2.69 / math.sqrt(40_000)


def two_clusters(summed_out, weights=(0.3, 0.7), scale=0.3):
    """c ~ Categorical, z | c ~ N(m_c, s^2 I), x | z ~ N(W z, 0.2^2 I), with |z| hard to tell from the data: both modes stay."""
    means, matrix, log_weights = (
        torch.tensor([[-2.5, 0.0], [2.5, 0.5]]),
        torch.tensor([[0.05, 0.3], [0.02, -0.4], [0.0, 0.2]]),
        torch.tensor(weights),
    )

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            if summed_out:
                components = dist.Independent(dist.Normal(means, scale), 1)
                z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(log_weights), components))
            else:
                c = pyro.sample("c", dist.Categorical(log_weights))
                z = pyro.sample("z", dist.Normal(means[c], scale).to_event(1))
            pyro.sample("x", dist.Normal(z @ matrix.mT, 0.2).to_event(1), obs=x)

    x = pairs.real(5) / 2
    covariance = scale**2 * matrix @ matrix.mT + 0.2**2 * torch.eye(3)
    joint = torch.stack([dist.MultivariateNormal(mean @ matrix.mT, covariance).log_prob(x) for mean in means], -1) + log_weights.log()
    return model, x, joint


def test_both_modes_of_a_mixture_prior_are_found():
    model, x, joint = two_clusters(summed_out=True)
    found = exact_log_likelihood(model, x, tolerance=1e-6)
    error = (found.pointwise - torch.logsumexp(joint, -1)).abs()
    assert error.max() < 1e-6
    assert (error <= found.error_bound).all()


def test_a_mixed_model_is_the_mixture_of_its_closed_forms():
    model, x, joint = two_clusters(summed_out=False)
    found = exact_log_likelihood(model, x, tolerance=1e-6)
    error = (found.pointwise - torch.logsumexp(joint, -1)).abs()
    assert (found.method, error.max() < 1e-6) == ("quadrature and enumeration", True)
    assert (error <= found.error_bound).all()


def test_the_posterior_of_a_mixed_model_knows_its_components():
    model, x, joint = two_clusters(summed_out=False)
    found = exact_posterior(model, x, num_draws=4000)
    truth = torch.softmax(joint, -1)[:, 1]
    se = (truth * (1 - truth) / 4000).sqrt()
    assert (found.expectation("c") - truth).abs().max() < 1e-4
    assert ((found.draws["c"].double().mean(0) - truth).abs() < 5 * se + 1e-4).all()
    assert ((found.draws["z"][..., 0] > 0) == (found.draws["c"] == 1)).double().mean() > 0.999  # the modes are 16 sd apart


def test_the_states_of_a_mixed_model_are_drawn_and_not_the_likeliest_taken():
    model, x, joint = two_clusters(summed_out=False, scale=2.0)  # the components overlap: z leaves c open
    found = exact_posterior(model, x, num_draws=4000)
    truth = torch.softmax(joint, -1)[:, 1]
    assert ((found.draws["c"].double().mean(0) - truth).abs() < 5 * (truth * (1 - truth) / 4000).sqrt()).all()


def test_an_evaluation_of_a_mixed_model_counts_once_a_state(monkeypatch):
    integrate, inner = quadrature.integrate, []
    monkeypatch.setattr(quadrature, "integrate", lambda *a, **k: inner.append(integrate(*a, **k)) or inner[-1])
    model, x, _ = two_clusters(summed_out=False)
    found = exact_log_likelihood(model, x)
    assert torch.equal(found.num_evaluations, 2 * inner[0].num_evaluations + 256)  # and the draws that lay the box


def test_discrete_latents_alone_are_enumerated():
    model, _ = pairs.mixture("nobody")
    x = pairs.real()
    components = dist.Normal(torch.tensor([-1.0, 0.2, 1.5]), 1.0).log_prob(x[:, :1]) + torch.tensor([0.5, 0.3, 0.2]).log()
    found = exact_log_likelihood(model, x)
    assert (found.pointwise - torch.logsumexp(components, -1)).abs().max() < ROUNDING
    assert (found.method, found.num_evaluations.tolist()) == ("enumeration", [3] * 20)


def test_the_posterior_over_states_is_bayes_rule():
    model, _ = pairs.mixture("nobody")
    x = pairs.real(3)
    components = dist.Normal(torch.tensor([-1.0, 0.2, 1.5]), 1.0).log_prob(x[:, :1]) + torch.tensor([0.5, 0.3, 0.2]).log()
    found = exact_posterior(model, x, num_draws=10_000)
    truth = torch.softmax(components, -1)
    assert [values["c"].tolist() for values in found.nodes] == [[0, 1, 2]] * 3
    assert (torch.stack(found.log_probs).exp() - truth).abs().max() < ROUNDING
    drawn = torch.stack([(found.draws["c"] == c).double().mean(0) for c in range(3)], -1)
    assert ((drawn - truth).abs() < 5 * (truth * (1 - truth) / 10_000).sqrt()).all()


def decoder_2d(data_dim=8):
    model = models.Bernoulli(MLP(2, [12], data_dim, activation=torch.nn.Tanh), latent_dim=2)
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    return model.requires_grad_(False)


def by_grid(model, x, h=0.02):
    """Midpoint sum over [-6, 6]^2; a smooth integrand makes it exact to far below the tolerance."""
    places = torch.arange(-6 + h / 2, 6, h)
    z = torch.cartesian_prod(places, places)
    logits = model.network(z)
    joint = (
        logits @ x.mT - torch.nn.functional.softplus(logits).sum(-1, keepdim=True) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
    )
    return torch.logsumexp(joint, 0) + 2 * math.log(h)


def test_a_network_decoder_is_the_sum_over_a_fine_grid():
    model, x = decoder_2d(), pairs.binary(6, 8)
    found = exact_log_likelihood(model, x, tolerance=1e-6)
    error = (found.pointwise - by_grid(model, x)).abs()
    assert error.max() < 2e-6
    assert (error <= found.error_bound + 1e-8).all()  # the grid cuts 1e-9 of the prior off
    assert found.num_evaluations.max() < 30_000


def test_a_float32_network_is_within_its_bound():
    model, x = decoder_2d(), pairs.binary(6, 8)
    truth = by_grid(model, x)
    found = exact_log_likelihood(model.float(), x.float())
    assert found.pointwise.dtype == torch.float64
    assert ((found.pointwise - truth).abs() <= found.error_bound).all()
    assert found.error_bound.max() < 2e-4


def test_a_mask_on_the_observed_site_takes_those_data_out():
    model, _, x = linear_gaussian(latent_dim=1, data_dim=4)
    weight, bias, scale = model.weight, model.bias, model.log_scale.exp()
    seen = torch.tensor([True, True, False, True])

    def masked(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            with poutine.mask(mask=seen[:, None]), pyro.plate("columns", 4, dim=-2):
                pyro.sample("x", dist.Normal((z @ weight.mT + bias).movedim(-1, -2), scale), obs=x.mT)

    covariance = weight[seen] @ weight[seen].mT + scale**2 * torch.eye(3)
    truth = dist.MultivariateNormal(bias[seen], covariance).log_prob(x[:, seen])
    assert (exact_log_likelihood(masked, x, tolerance=1e-6).pointwise - truth).abs().max() < 1e-6


def shifted(x):
    """mu ~ N(0, 1) for all data, z_n ~ N(mu, 1), x_n ~ N(z_n, 1): given mu, x_n ~ N(mu, 2)."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def test_a_global_site_is_conditioned_on_the_guides_draw_and_it_is_said():
    def guide(x):
        pyro.sample("mu", dist.Delta(torch.tensor(0.7)))

    x = pairs.real()
    found = exact_log_likelihood(shifted, x, guide=guide)
    assert (found.pointwise - dist.Normal(0.7, math.sqrt(2.0)).log_prob(x[:, 0])).abs().max() < 1e-4
    assert found.source.conditioned_on == ("mu",)


def test_without_a_guide_the_global_site_is_drawn_from_its_prior_by_the_seed():
    x = pairs.real()
    one, again, other = (exact_log_likelihood(shifted, x, seed=seed).pointwise for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3
    # all data share the draw: log p is a parabola in x with the curvature of N(mu, 2)
    slope = (one[1] - one[0]) / (x[1, 0] - x[0, 0])
    mu = 2 * slope + (x[1, 0] + x[0, 0]) / 2
    assert (one - dist.Normal(mu, math.sqrt(2.0)).log_prob(x[:, 0])).abs().max() < 1e-2


@pytest.mark.parametrize("num_data", [1, 64, 70])
def test_a_datum_has_its_number_whatever_data_stand_beside_it(num_data):
    model, _, x = linear_gaussian(num_data=70, latent_dim=1)
    found = exact_log_likelihood(model, x[:num_data], method="quadrature", tolerance=1e-6)
    assert (found.pointwise - model.log_evidence(x)[:num_data]).abs().max() < 1e-6


def test_three_dimensions_are_refused_with_their_number():
    model, _, x = linear_gaussian(latent_dim=3)
    with pytest.raises(FamilyError, match="continuous latents have 3(.|\n)*annealed_log_likelihood"):
        exact_log_likelihood(model, x, method="quadrature")


@pytest.mark.parametrize(
    ("method", "message"), [("enumeration", "method='quadrature'"), ("closed form", "log_evidence"), ("grid", "method is one of")]
)
def test_a_method_that_does_not_fit_is_refused(method, message):
    model, y, _, _ = poisson_gamma()
    with pytest.raises((FamilyError, ArgumentError), match=message):
        exact_log_likelihood(model, y, method=method)


def test_a_masked_latent_is_refused_by_name():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0).mask(x[:, 0] > 0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    with pytest.raises(FamilyError, match="'z' is masked"):
        exact_log_likelihood(model, pairs.real())


def test_data_outside_the_support_are_refused():
    with pytest.raises(DataError, match="Bernoulli"):
        exact_log_likelihood(decoder_2d(), pairs.real(5, 8))


def test_a_density_that_is_not_a_number_is_refused_with_its_datum():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(torch.where(x[:, 0] == 7.0, z.log(), z), 1.0), obs=x[:, 0])

    x = pairs.real(5)
    x[3, 0] = 7.0
    with pytest.raises(DivergedError, match="datum 3"):
        exact_log_likelihood(model, x)


def test_a_bound_above_the_tolerance_is_warned_of(monkeypatch):
    model, y, evidence, _ = poisson_gamma()
    integrate = quadrature.integrate
    monkeypatch.setattr(quadrature, "integrate", lambda *a, **k: integrate(*a, **{**k, "max_evaluations": 50}))
    with pytest.warns(UnreliableWarning, match="stayed above the tolerance"):
        found = exact_log_likelihood(model, y)
    assert ((found.pointwise - evidence).abs() <= found.error_bound).all()


def test_the_result_prints_its_bound_and_is_json_able():
    model, y, _, _ = poisson_gamma()
    found = exact_log_likelihood(model, y)
    assert "exact to" in str(found)
    assert found.as_dict()["error_bound"] == found.error_bound.tolist()


def test_the_callers_generator_and_store_stay_as_they_were():
    model, y, _, _ = poisson_gamma()
    before = torch.get_rng_state()
    exact_posterior(model, y, num_draws=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not dict(pyro.get_param_store())
