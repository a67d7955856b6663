"""Guides with annealing transitions behind them: bounds that lie between the inner guide's and log p(x)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from test_annealing import (
    hierarchy,
    hierarchy_evidence,
    parts,
    parts_evidence,
    shared_mean,
    shared_mean_guide,
    short_pilots,  # noqa: F401  (used by being here)
)

import ppvae
from ground_truth import MeanField, exact_posterior_of, linear_gaussian, poisson_gamma
from ppvae import analysis
from ppvae.annealing import Tables
from ppvae.errors import ArgumentError, ProgramError, ShapeError
from ppvae.guides.annealed import Annealed
from ppvae.pair import Pair
from ppvae.programs import prior_of


def gamma_guide(y):
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("r", dist.Gamma(y + 2.0, torch.tensor(2.2)))


def hierarchy_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z2", dist.Normal(0.4 * x, 0.7))
        pyro.sample("z1", dist.Normal(0.8 * x, 0.6))


def parts_guide(x):
    with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 3, dim=-2):
        pyro.sample("z", dist.Normal(0.7 * x.movedim(1, 0), 0.6).to_event(1))


def mean_within(found, low, high, errors=5):
    """Of a bound over all data; the errors are independent from datum to datum."""
    value, error = found.mean.value, found.mean.mc_se
    return low - errors * error < value < high + errors * error


@pytest.mark.parametrize("temperatures", [2, 6])
def test_the_bound_lies_between_the_guides_own_and_the_evidence(temperatures):
    model, _, x = linear_gaussian(num_data=20)
    guide = MeanField(model, offset=0.2, inflation=1.3)
    inner = analysis.elbo(model, guide, x, num_particles=400)
    found = analysis.elbo(model, Annealed(guide, temperatures=temperatures), x, num_particles=400)
    error = 5 * (found.mean.mc_se**2 + inner.mean.mc_se**2) ** 0.5
    assert found.mean.value > inner.mean.value + error
    assert found.mean.value < model.log_evidence(x).mean() - 5 * found.mean.mc_se  # six temperatures do not close the gap of 0.45


@pytest.mark.parametrize(
    ("model", "guide", "evidence", "x"),
    [
        pytest.param(
            *(hierarchy, hierarchy_guide, hierarchy_evidence, torch.linspace(-4, 4, 9, dtype=torch.float64)),
            id="two layers",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            *(parts, parts_guide, parts_evidence, torch.randn(9, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))),
            id="a plate inside the datum",
        ),
    ],
)
def test_weights_are_unbiased_for_the_evidence(model, guide, evidence, x):
    found = analysis.elbo(model, Annealed(guide, temperatures=4), x, num_particles=500)
    assert mean_within(found, analysis.elbo(model, guide, x).mean.value, evidence(x).mean())
    ratio = (_log_weights(model, Annealed(guide, temperatures=4), x) - evidence(x)).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / len(ratio) ** 0.5).all()


def _log_weights(model, guide, x, num_particles=2000):
    return ppvae.log_weights(model, guide, x, num_particles=num_particles, seed=1)


def test_weights_are_unbiased_where_the_latent_is_positive():
    model, y, evidence, _ = poisson_gamma()
    ratio = (_log_weights(model, Annealed(gamma_guide, temperatures=4), y) - evidence).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / len(ratio) ** 0.5).all()


def test_a_global_site_keeps_the_draw_that_the_transitions_were_made_for():
    x = torch.linspace(-2, 3, 6)
    guide = Annealed(shared_mean_guide, temperatures=4).prepared(shared_mean, x)
    mu = Pair(shared_mean, guide, x).globals["mu"]
    ratio = (_log_weights(shared_mean, guide, x) - dist.Normal(mu, 1.25**0.5).log_prob(x)).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / len(ratio) ** 0.5).all()


def test_behind_the_posterior_itself_every_weight_is_the_evidence():
    model, posterior, x = linear_gaussian()
    found = _log_weights(model, Annealed(posterior, temperatures=5), x, 20)
    assert (found - model.log_evidence(x)).abs().max() < 1e-9


def test_one_temperature_is_the_guides_own_normal():
    model, _, x = linear_gaussian(num_data=20)
    guide = MeanField(model, offset=0.2, inflation=1.3)
    found = analysis.elbo(model, Annealed(guide, temperatures=1), x)
    inner = analysis.elbo(model, guide, x, seed=1)
    assert abs(found.mean.value - inner.mean.value) < 5 * (found.mean.mc_se**2 + inner.mean.mc_se**2) ** 0.5


def test_the_guide_may_be_the_prior():
    model, _, x = linear_gaussian(scale=1.5)
    ratio = (_log_weights(model, Annealed(prior_of(model), temperatures=6), x) - model.log_evidence(x)).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / len(ratio) ** 0.5).all()


def test_how_many_blocks_run_at_once_changes_no_weight():
    model, _, x = linear_gaussian(num_data=70)
    guide = Annealed(MeanField(model, 0.2), temperatures=3).prepared(model, x)
    one = ppvae.log_weights(model, guide, x, num_particles=5, blocks_at_once=1)
    two = ppvae.log_weights(model, guide, x, num_particles=5, blocks_at_once=2)
    assert torch.allclose(one, two, rtol=0, atol=1e-9)


def test_rows_and_repeats_keep_each_datums_own_tables():
    model, _, x = linear_gaussian(num_data=6)
    guide = Annealed(MeanField(model, 0.2), temperatures=3).prepared(model, x)
    guide.frozen = Tables(torch.rand(4, 6).sort(0).values, torch.rand(2, 6), 0)
    some = guide.rows(slice(2, 5)).repeated(2)
    assert some.num_data == 6
    assert torch.equal(some.m, guide.m[[2, 3, 4, 2, 3, 4]])
    assert torch.equal(some.frozen.step_sizes, guide.frozen.step_sizes[:, [2, 3, 4, 2, 3, 4]])
    assert torch.equal(some.frozen.temperatures, guide.frozen.temperatures[:, [2, 3, 4, 2, 3, 4]])


def test_particles_in_a_plate_of_pyros_own_are_chains():
    model, _, x = linear_gaussian(num_data=20)
    guide = Annealed(MeanField(model, 0.2, 1.3), temperatures=4).prepared(model, x)
    elbo = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    found = analysis.elbo(model, guide, x, num_particles=500)
    with torch.no_grad():
        loss = elbo.loss(model, guide, x) / len(x)
    assert abs(-loss - found.mean.value) < 5 * 2**0.5 * found.mean.mc_se


def test_called_as_a_plain_program_it_draws_latents_of_the_posterior():
    # the last state of many transitions from the prior: mean of z within five standard errors of the posterior's
    model, _, x = linear_gaussian(num_data=300, scale=1.5)
    guide = Annealed(prior_of(model), temperatures=40, model=model)
    z = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    residual = torch.linalg.solve_triangular(model.posterior(x).scale_tril, (z - model.posterior(x).loc)[..., None], upper=False)
    assert (residual.mean(0).abs() < 5 / len(x) ** 0.5).all()
    assert ((residual.var(0) - 1).abs() < 5 * (2 / len(x)) ** 0.5).all()


def test_called_as_a_plain_program_it_asks_for_its_model():
    model, posterior, x = linear_gaussian()
    with pytest.raises(ProgramError, match="needs its model") as told:
        Annealed(posterior)(x)
    assert "Annealed(guide, model=model)" in str(told.value)


def test_it_belongs_to_the_data_that_it_was_prepared_for():
    model, posterior, x = linear_gaussian()
    guide = Annealed(posterior, temperatures=2).prepared(model, x)
    with pytest.raises(ShapeError, match="other data"):
        analysis.elbo(model, guide, x + 1)
    with pytest.raises(ShapeError, match="prepared for 6 data, and 3 came"):
        guide(x[:3])


def test_a_guide_that_is_prepared_itself_is_prepared_first():
    model, posterior, x = linear_gaussian()

    class Lazy:
        def prepared(self, model, x):
            return exact_posterior_of(model)

        def __call__(self, x):
            raise AssertionError("not prepared")

    found = _log_weights(model, Annealed(Lazy(), temperatures=3), x, 4)
    assert (found - model.log_evidence(x)).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("given", "said"),
    [({"temperatures": 0}, "temperatures is a whole number"), ({"num_leapfrog": 0}, "num_leapfrog"), ({"step_size": -1.0}, "step_size")],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ArgumentError, match=said):
        Annealed(hierarchy_guide, **given)


def test_the_seed_of_the_measurement_rules_the_draws():
    model, _, x = linear_gaussian()
    guide = Annealed(MeanField(model, 0.2), temperatures=3)
    first, again = (analysis.elbo(model, guide, x, num_particles=3, seed=4).pointwise for _ in range(2))
    other = analysis.elbo(model, guide, x, num_particles=3, seed=5).pointwise
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
