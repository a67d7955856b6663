"""Chains and resampled draws against posteriors in closed form."""

import json
import math

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch

from ground_truth import MeanField, correlated_posterior, linear_gaussian, poisson_gamma
from ppvae.analysis import plots
from ppvae.analysis.corrected import corrected
from ppvae.analysis.posterior import posterior
from ppvae.analysis.to_arviz import convergence
from ppvae.errors import ArgumentError, DivergedError, FamilyError

SHORT = {"num_chains": 16, "num_warmup": 100, "num_draws": 100, "num_leapfrog": 3}  # chains run at once, so many cost as much as few


def squared(spread=3.0, scale=0.1):
    """z ~ N(0, 3^2), x ~ N(z^2, 0.1^2): two narrow modes near the square roots of x."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, spread))
            pyro.sample("x", dist.Normal(z.square(), scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.05))

    return model, guide, torch.tensor([4.0, 9.0])


def standard_scores(draws, exact_mean, exact_variance, ess):
    """(draws - exact) / standard error of mean and variance, by datum and dimension; the variance of a Normal's variance is 2 v^2."""
    flat = draws.flatten(0, 1)
    mean = (flat.mean(0) - exact_mean) / (exact_variance / ess).sqrt()
    return mean, (flat.var(0) / exact_variance - 1) / (2 / ess).sqrt()


# Chains.


@pytest.mark.parametrize(
    "with_guide", [pytest.param(True, id="from the guide", marks=pytest.mark.soak), pytest.param(False, id="from the prior")]
)
def test_chains_reach_the_moments_of_a_linear_gaussian_posterior(with_guide):
    model, guide, x = linear_gaussian(num_data=4)
    found = posterior(model, x, guide=guide if with_guide else None, **SHORT)
    exact = model.posterior(x)
    variance = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1)
    mean, spread = standard_scores(found.draws["z"], exact.loc, variance, found.ess[:, None])
    assert (mean.abs() < 5).all() and (spread.abs() < 5).all()
    assert (found.r_hat < 1.1).all()  # 1,600 draws of short chains; the 1.01 of ``converged`` is held by the slow test


def test_chains_reach_the_covariance_of_a_correlated_posterior_from_a_mean_field_guide():
    model, x, _ = correlated_posterior(0.9, num_data=3)
    found = posterior(model, x, guide=MeanField(model), **SHORT)
    z = found.draws["z"].flatten(0, 1)
    z = z - z.mean(0)
    correlation = (z[..., 0] * z[..., 1]).mean(0) / z.square().mean(0).prod(-1).sqrt()
    assert (found.step_size > 0.8).all()  # as in whitened latents; a gradient that is not turned with them needs 0.16
    assert (correlation - 0.9).abs().max() < 5 * (1 - 0.9**2) / found.ess.min().sqrt()  # standard error (1 - r^2) / sqrt(ess)


def test_coordinates_are_whitened_anew_where_the_guide_is_far_too_narrow():
    # In units of the guide's own 0.05 of a standard deviation the step would be 20 times that of whitened latents, about 1.
    model, x, _ = correlated_posterior(0.3, num_data=3)
    found = posterior(model, x, guide=MeanField(model, inflation=0.05), **SHORT)
    assert (found.step_size > 0.5).all() and (found.step_size < 3).all()


def test_chains_reach_the_moments_of_a_gamma_posterior():
    model, y, _, (shape, rate) = poisson_gamma(num_data=4)
    found = posterior(model, y, **SHORT)
    r, ess = found.draws["r"].flatten(0, 1), found.ess
    assert ((r.mean(0) - shape / rate).abs() < 5 * (shape.sqrt() / rate) / ess.sqrt()).all()
    # var(s^2) = v^2 (2 + excess kurtosis) / ess, and a Gamma's excess kurtosis is 6 / shape
    variance = shape / rate.square()
    assert ((r.var(0) / variance - 1).abs() < 5 * ((2 + 6 / shape) / ess).sqrt()).all()
    assert (r > 0).all()


@pytest.mark.soak
@pytest.mark.slow
def test_chains_of_the_default_length_converge():
    model, guide, x = linear_gaussian(num_data=6)
    found = posterior(model, x, guide=guide)
    assert found.converged.all() and (found.r_hat < 1.01).all()
    assert "6 of 6 converged" in str(found)
    assert (found.acceptance - 0.8).abs().max() < 0.1
    assert found.divergences.sum() == 0


def test_chains_stuck_in_two_modes_are_not_converged_though_the_guide_knows_one():
    model, guide, x = squared()
    found = posterior(model, x, guide=guide, **(SHORT | {"num_leapfrog": 5}))
    signs = found.draws["z"][:, -1].sign()
    assert (signs.amin(0) == -1).all() and (signs.amax(0) == 1).all()  # starts from the prior find the other mode
    assert not found.converged.any() and (found.r_hat > 1.5).all()


def test_log_density_is_that_of_the_programs_at_the_draws():
    model, guide, x = linear_gaussian(num_data=3)
    found = posterior(model, x, guide=guide, num_chains=2, num_warmup=20, num_draws=8)
    z = found.draws["z"]
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z @ model.weight.mT + model.bias, 0.7).log_prob(x).sum(-1)
    assert found.log_density.flatten().tolist() == pytest.approx(joint.flatten().tolist(), abs=1e-9)
    assert found.guide_log_density.flatten().tolist() == pytest.approx(model.posterior(x).log_prob(z).flatten().tolist(), abs=1e-9)
    own = model.posterior(x).log_prob(found.guide_draws["z"])
    assert found.own_log_density.flatten().tolist() == pytest.approx(own.flatten().tolist(), abs=1e-9)


def test_log_density_of_a_constrained_latent_has_no_jacobian():
    model, y, _, _ = poisson_gamma(num_data=3)
    found = posterior(model, y, num_chains=2, num_warmup=20, num_draws=8)
    r = found.draws["r"]
    joint = dist.Gamma(2.0, 1.5).log_prob(r) + dist.Poisson(r).log_prob(y)
    assert found.log_density.flatten().tolist() == pytest.approx(joint.flatten().tolist(), abs=1e-9)


def test_region_of_the_guide_holds_what_its_closed_form_says():
    # A Normal of 0.5 times the posterior's scale in two dimensions: its 90 % region is |e|^2 <= -2 log 0.1 / 4 of the posterior's,
    # which holds 1 - 0.1^(1/4) = 0.4377 of it.
    model, exact, x = linear_gaussian(num_data=4)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(model.posterior(x).loc, scale_tril=0.5 * model.posterior(x).scale_tril))

    found = posterior(model, x, guide=guide, **SHORT)
    error = math.sqrt(0.4377 * 0.5623 / found.ess.min())  # and that of the guide's own quantile, over 1,600 draws
    assert (found.guide_coverage() - 0.4377).abs().max() < 5 * (error + 0.01)


def test_numbers_of_a_datum_do_not_depend_on_the_blocks_that_follow():
    model, guide, x = linear_gaussian(num_data=66)
    how = {"num_chains": 2, "num_warmup": 20, "num_draws": 8}
    all_rows, first = posterior(model, x, guide=guide, **how), posterior(model, x[:64], guide=guide, **how)
    assert all_rows.draws["z"].shape == (2, 8, 66, 2)
    assert all_rows.draws["z"][:, :, :64].equal(first.draws["z"])


def test_seed_rules_the_chains_and_the_callers_generator_is_left_alone():
    model, guide, x = linear_gaussian(num_data=2)
    how = {"num_chains": 2, "num_warmup": 20, "num_draws": 8}
    before = torch.get_rng_state()
    one, again, other = (posterior(model, x, guide=guide, seed=seed, **how).draws["z"] for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.equal(again) and not one.equal(other)


def test_thinning_keeps_every_second_draw():
    model, guide, x = linear_gaussian(num_data=2)
    how = {"num_chains": 2, "num_warmup": 20}
    thin, full = posterior(model, x, guide=guide, num_draws=8, thin=2, **how), posterior(model, x, guide=guide, num_draws=16, **how)
    assert thin.draws["z"].equal(full.draws["z"][:, 1::2])


def test_chains_go_into_arvizs_container():
    model, guide, x = linear_gaussian(num_data=2)
    found = posterior(model, x, guide=guide, num_chains=2, num_warmup=20, num_draws=40)
    data = found.to_arviz()
    assert dict(data["posterior"]["z"].sizes) == {"chain": 2, "draw": 40, "datum": 2, "z_dim_1": 2}
    assert arviz.rhat(data)["z"].values.max(1).tolist() == pytest.approx(found.r_hat.tolist())
    assert dict(data["sample_stats"]["lp"].sizes) == {"chain": 2, "draw": 40, "datum": 2}


def test_chain_that_never_moves_has_no_effective_draws():
    u = torch.randn(1, 1, 2, 1).expand(4, 50, 2, 1).clone()
    u[:, :, 1] = torch.randn(4, 50, 1)
    r_hat, ess = convergence(u)
    assert r_hat[0] == math.inf and ess[0] == 0
    assert r_hat[1] < 1.2 and ess[1] > 50


def test_discrete_latent_has_no_chains():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(FamilyError, match="'c' is discrete"):
        posterior(model, torch.zeros(3))


@pytest.mark.parametrize(
    "wrong", [{"num_chains": 1}, {"num_warmup": 0}, {"num_draws": 2}, {"thin": 0}, {"target": 1.0}, {"num_leapfrog": 0}], ids=str
)
def test_settings_that_make_no_sense_are_refused(wrong):
    model, guide, x = linear_gaussian(num_data=2)
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        posterior(model, x, guide=guide, **wrong)


def test_record_of_chains_leaves_the_draws_out():
    model, guide, x = linear_gaussian(num_data=2)
    record = json.loads(json.dumps(posterior(model, x, guide=guide, num_chains=2, num_warmup=20, num_draws=8).as_dict()))
    assert set(record) == {"r_hat", "ess", "acceptance", "divergences", "step_size", "compared_with", "source", "converged"}


def test_figure_shows_both_sets_of_draws_and_tells_of_chains_that_are_stuck():
    model, x, _ = correlated_posterior(0.5, num_data=2)
    found = posterior(model, x, guide=MeanField(model), num_chains=2, num_warmup=20, num_draws=8)
    axes = plots.posterior_and_guide(found, 1).axes
    scatter = {line.get_label(): line for line in axes[2].lines}
    assert list(scatter["posterior, HMC"].get_xdata()) == found.draws["z"][:, :, 1, 0].flatten().tolist()
    assert list(scatter["guide"].get_ydata()) == found.guide_draws["z"][:, :, 1, 1].flatten().tolist()
    assert "not converged" in axes[0].get_title()


# Resampling.


@pytest.mark.parametrize("inflation", [pytest.param(0.9, marks=pytest.mark.soak), 1.3])
def test_resampled_draws_reach_the_moments_of_the_posterior(inflation):
    model, x, _ = correlated_posterior(0.4, num_data=32)
    found = corrected(model, MeanField(model, offset=0.1, inflation=inflation), x, num_draws=2000, num_particles=20_000)
    exact = model.posterior(x)
    ess = 1 / (1 / 2000 + 1 / found.ess[:, None])  # the error of resampling and that of the weights
    mean, spread = standard_scores(found.draws["z"][None], exact.loc, exact.covariance_matrix.diagonal(dim1=-2, dim2=-1), ess)
    assert (mean.abs() < 5).all() and (spread.abs() < 6).all()  # the weights' tails make the variance's error wider than a Normal's
    z = found.draws["z"] - found.draws["z"].mean(0)
    correlation = (z[..., 0] * z[..., 1]).mean(0) / z.square().mean(0).prod(-1).sqrt()
    assert correlation.mean() == pytest.approx(0.4, abs=5 * 1.2 / math.sqrt(2000 * 32))


def test_discrete_latent_is_resampled_to_its_posterior():
    # p(c = 1 | x) = sigmoid(logit 0.4 + x - 1/2) for x ~ N(c, 1); the guide says 1/2 always.
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.full_like(x, 0.5)))

    x = torch.tensor([-1.0, 0.5, 3.0])
    found = corrected(model, guide, x, num_draws=4000, num_particles=4000)
    exact = torch.sigmoid(math.log(0.4 / 0.6) + x - 0.5)
    assert ((found.draws["c"].mean(0) - exact).abs() < 5 * (exact * (1 - exact) * (1 / 4000 + 1 / 2000)).sqrt()).all()


def test_resampled_draws_are_the_guides_own():
    model, x, _ = correlated_posterior(0.4, num_data=3)
    found = corrected(model, MeanField(model), x, num_draws=50, num_particles=100)
    assert found.index.max() < 100 and found.index.max() >= 64  # both blocks of particles are drawn from
    for n in range(3):
        pairs = {(i, *z) for i, z in zip(found.index[:, n].tolist(), found.draws["z"][:, n].tolist(), strict=True)}
        assert len(pairs) == found.index[:, n].unique().numel()  # one index, one value
        assert found.duplicates[n] == pytest.approx(1 - len(pairs) / 50)


def test_equal_weights_choose_every_block_alike():
    """The posterior as guide: all weights are equal, so the index is uniform over the 130 particles of three blocks."""
    model, guide, x = linear_gaussian(num_data=40)
    found = corrected(model, guide, x, num_draws=500, num_particles=130)
    share = torch.stack([(found.index < 64).double().mean(), (found.index >= 128).double().mean()])
    exact = torch.tensor([64 / 130, 2 / 130])
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) / 20_000).sqrt()).all()
    assert found.ess.tolist() == pytest.approx([130.0] * 40)
    assert (found.k_hat == -math.inf).all() and found.trusted.all()


def test_too_narrow_guide_is_told():
    model, x, _ = correlated_posterior(0.9, num_data=32)
    found = corrected(model, MeanField(model, inflation=0.5), x, num_draws=100, num_particles=5000)  # k = 0.975
    assert found.trusted.double().mean() < 0.3
    assert "k-hat above 0.70 at" in str(found)


def test_datum_without_any_weight_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(z, z + 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - 0.5 + 1000.0 * (x > 5), 0.01))

    with pytest.raises(DivergedError, match="every particle has weight 0\n  where: datum 1"):
        corrected(model, guide, torch.tensor([0.0, 9.0]), num_draws=5, num_particles=70)


def test_seed_rules_the_resampling_and_nothing_else_is_moved():
    model, x, _ = correlated_posterior(0.4, num_data=3)
    before = torch.get_rng_state()
    one, again, other = (corrected(model, MeanField(model), x, num_draws=20, num_particles=50, seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.draws["z"].equal(again.draws["z"]) and not one.draws["z"].equal(other.draws["z"])


def test_record_of_resampling_leaves_the_draws_out_and_arviz_takes_them():
    model, x, _ = correlated_posterior(0.4, num_data=3)
    found = corrected(model, MeanField(model), x, num_draws=20, num_particles=50)
    record = json.loads(json.dumps(found.as_dict()))
    assert "draws" not in record and len(record["duplicates"]) == 3
    assert dict(found.to_arviz()["posterior"]["z"].sizes) == {"chain": 1, "draw": 20, "datum": 3, "z_dim_1": 2}
