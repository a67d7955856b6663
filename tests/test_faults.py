"""Faults that were found by looking for them, each held shut by the number it got wrong."""

import functools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import transforms
from test_refine import gamma_guide
from test_resume import left_in

import pairs
import ppvae
from ground_truth import MeanField, correlated_posterior, poisson_gamma
from ppvae import analysis, checkpoint, importance, natural, refinement
from ppvae.errors import ArgumentError, DataError, DivergedError, FamilyError, ProgramError, RunError, ShapeError
from ppvae.evaluation import evaluate
from ppvae.families import FullRankNormal
from ppvae.pair import Pair
from ppvae.starts import start_of
from ppvae.stream import log_weights


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))


def evidence(x):
    return dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(-1)


@pytest.mark.parametrize("num_particles", [1, 200], ids=str)
def test_a_model_without_latents_per_datum_has_its_own_density(num_particles):
    def observed(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(70)
    found = analysis.log_likelihood(observed, lambda x: None, x, num_particles=num_particles)
    assert (found.pointwise - dist.Normal(0.0, 1.0).log_prob(x)).abs().max() < 1e-9
    bound = analysis.elbo(observed, lambda x: None, x, num_particles=num_particles)
    assert (bound.pointwise + bound.distortion).abs().max() < 1e-9 and bound.rate.abs().max() == 0


def test_blocks_of_rows_draw_apart():
    """Equal data at rows 0, 64 and 128: equal draws would make the errors of a mean over data perfectly correlated."""
    x = torch.zeros(130, 2)

    def wide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    weights = log_weights(model, wide, x, num_particles=4)
    assert (weights[:, 0] != weights[:, 64]).all() and (weights[:, 64] != weights[:, 128]).all()


def test_a_factor_outside_the_data_plate_is_refused():
    def factored(x):
        model(x)
        pyro.factor("penalty", -5 * torch.ones(len(x)))

    with pytest.raises(ShapeError, match="site 'penalty' has batch shape"):
        analysis.elbo(factored, guide, torch.randn(5, 2), num_particles=2)


def test_a_factor_inside_the_data_plate_counts():
    def factored(x):
        model(x)
        with pyro.plate("factors", len(x), dim=-1):
            pyro.factor("penalty", -5 * torch.ones(len(x)))

    x = torch.randn(5, 2)
    assert (log_weights(factored, guide, x, num_particles=3) - (evidence(x) - 5)).abs().max() < 1e-9


def test_a_guide_that_draws_an_observed_site_is_refused():
    def drawing(x):
        guide(x)
        with pyro.plate("again", len(x), dim=-1):
            pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))

    with pytest.raises(ProgramError, match="the guide draws 'x', which the model observes"):
        analysis.elbo(model, drawing, torch.randn(5, 2), num_particles=2)


def test_a_guide_that_records_a_value_is_measured():
    def recording(x):
        with pyro.plate("data", len(x), dim=-1):
            loc = pyro.deterministic("loc", x / 2, event_dim=1)
            pyro.sample("z", dist.Normal(loc, math.sqrt(0.5)).to_event(1))

    x = torch.randn(70, 2)
    assert (log_weights(model, recording, x, num_particles=3) - evidence(x)).abs().max() < 1e-9


@pytest.mark.parametrize("family", ["same", "mean_field"])
def test_masked_latents_are_refused_by_refinement(family):
    def masked(program):
        def run(x):
            with poutine.mask(mask=torch.arange(len(x)) % 2 == 0):
                program(x)

        return run

    with pytest.raises(FamilyError, match="the latent site 'z' is masked, and a local posterior has no mask"):
        analysis.refine(masked(model), masked(guide), torch.randn(4, 2), family=family)


def test_refinement_is_conditional_on_a_draw_of_global_sites():
    """w ~ N(0, 1) global, z | w ~ N(w, 1), x | z ~ N(z, 1): given w the evidence is N(x; w, 2), and w is the guide's draw."""

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(w * torch.ones(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(torch.tensor(0.5), 0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.randn(6, 2)
    found = analysis.refine(model, guide, x, family="full_rank", seed=3)
    w = Pair(model, guide, x, 3).globals["w"]
    assert (found.pointwise - dist.Normal(w, math.sqrt(2)).log_prob(x).sum(-1)).abs().max() < 1e-4  # what 160 steps leave
    assert found.source.conditioned_on == ("w",)


@pytest.mark.parametrize("n", [1, 2, 50], ids=str)
def test_supports_with_bounds_per_datum_are_refined_over_their_own_coordinates(n):
    """z ~ U(0, 1)^2 with bounds written as (N, 2) tensors, x | z ~ N(z, 1): evidence by the Normal's distribution function."""

    def bounded(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x), 2), torch.ones(len(x), 2)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def beta(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Beta(torch.full((len(x), 2), 1.5), 1.5).to_event(1))

    x = torch.rand(n, 2)
    standard = dist.Normal(0.0, 1.0)
    exact = (standard.cdf(1 - x) - standard.cdf(-x)).log().sum(-1)
    found = analysis.refine(bounded, beta, x, family="mean_field", num_particles=2000)
    assert ((exact - found.pointwise) > -5 * found.pointwise_se).all()
    assert (exact - found.pointwise).max() < 0.15  # a logit-Normal against a nearly flat density on the unit interval


def test_active_units_of_a_collapsed_flow_guide_are_none():
    """q(z | x) = N(0, I) through a flow, which has no mean of its own: the variance of an average of draws would be 1 / K, not 0."""

    def flowed(x):
        flow = transforms.AffineTransform(torch.zeros(2), 1.0, event_dim=1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1), [flow]))

    x = torch.randn(2000, 2)
    usage = analysis.latent_usage(model, flowed, x, num_mutual=50)
    assert usage.unit_variance["z"].abs().max() < 5 / (16 * math.sqrt(2000))  # 5 sds of the covariance of averages of 16
    assert evaluate(Pair(model, flowed, x), x, seed=1).active_units == 0


def test_observed_data_go_to_arviz_under_their_own_sites():
    def two(x):
        with pyro.plate("data", len(x["a"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("b", dist.Normal(z, 1.0), obs=x["b"])
            pyro.sample("a", dist.Normal(z, 1.0), obs=x["a"])

    def one(x):
        with pyro.plate("data", len(x["a"]), dim=-1):
            pyro.sample("z", dist.Normal(x["a"], 1.0))

    found = analysis.to_arviz(two, one, {"a": torch.zeros(5), "b": torch.ones(5)}, num_particles=3, num_prior=2)
    assert found["observed_data"]["a"].values.tolist() == [0.0] * 5
    assert found["observed_data"]["b"].values.tolist() == [1.0] * 5


def test_divergences_per_dimension_sum_to_the_sites_with_plates_inside_a_datum():
    def plated(y):
        with pyro.plate("data", len(y), dim=-1), pyro.plate("inner", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.T)

    def plated_guide(y):
        with pyro.plate("data", len(y), dim=-1), pyro.plate("inner", 3, dim=-2):
            pyro.sample("z", dist.Normal(y.T / 2, math.sqrt(0.5)))

    y = torch.randn(300, 3)
    found = analysis.latent_usage(plated, plated_guide, y, num_particles=64)
    exact = 0.5 * (0.5 + (y / 2).square() - 1 - math.log(0.5)).mean(0)
    assert torch.allclose(found.kl_per_dimension["z"], exact, atol=1e-9)
    assert abs(found.kl["z"] - exact.sum()) < 0.05  # 5 sds of 300 x 64 draws


def test_divergences_of_sites_sum_to_the_rate_with_an_auxiliary_site():
    conjugate, y, _, _ = poisson_gamma()
    local = analysis.refine(conjugate, gamma_guide, y, family="mean_field", num_particles=1).guide
    found = analysis.latent_usage(conjugate, local, y, num_particles=10)
    assert sum(found.kl.values()) == pytest.approx(found.rate.mean().item(), abs=1e-9)


def test_error_of_a_mean_divergence_is_its_spread_over_root_n():
    correlated, x, _ = correlated_posterior(0.5, num_data=64)
    found = analysis.latent_usage(correlated, MeanField(correlated), x, num_particles=16)
    assert found.kl_se["z"].item() == pytest.approx((found.rate.std() / 8).item(), rel=1e-9)


def test_a_weight_of_zero_makes_the_elbo_minus_infinity_in_every_chunk():
    weights = torch.tensor([[0.0, 0.0], [-math.inf, 1.0], [2.0, 2.0]])
    streamed = importance.Streamed(3, 2)
    for block in weights.split(1):
        streamed.add(block)
    assert streamed.mean.tolist() == [-math.inf, 1.0]
    assert streamed.log_mean_weight[0].item() == pytest.approx(math.log((1 + math.exp(2)) / 3))


def test_one_particle_has_no_standard_error():
    found = analysis.log_likelihood(model, guide, torch.randn(5, 2), num_particles=1)
    assert found.pointwise_se.isnan().all()
    assert importance.standard_error(torch.zeros(1, 3)).isnan().all()


def test_results_carry_the_seed_that_was_asked_for():
    x = torch.randn(5, 2)
    assert analysis.refine(model, guide, x, seed=7, num_particles=2).source.seed == 7
    assert analysis.inference_gaps(model, guide, x, seed=7, num_particles=2, num_reference=30).source.seed == 7


def test_the_error_of_a_comparison_has_both_parts():
    correlated, x, _ = correlated_posterior(0.5)
    a, b = (
        analysis.log_likelihood(correlated, MeanField(correlated, inflation=s), x, num_particles=50, seed=i)
        for i, s in ((1, 1.0), (2, 1.5))
    )
    found = analysis.compare(a, b)
    assert torch.allclose(found.pointwise_se.square(), a.pointwise_se.square() + b.pointwise_se.square())


def test_widening_a_full_rank_normal_scales_its_covariance():
    family = FullRankNormal(3)
    row = torch.randn(5, family.num_parameters)
    before, after = family.distribution(row), family.distribution(family.widened(row, 1.3))
    assert torch.allclose(after.covariance_matrix, 1.3**2 * before.covariance_matrix)
    assert torch.equal(after.mean, before.mean)


def test_rows_of_a_full_rank_normal_come_back():
    family = FullRankNormal(3)
    row = torch.randn(5, family.num_parameters)
    made = family.distribution(row)
    assert torch.allclose(family.row(made.loc, made.scale_tril), row, atol=1e-9)


def test_one_natural_step_by_hand():
    """D = 1, m = 0, L = 2, target N(0, 1), e = (1, -1): d = 2 (-2 e) + e = -3 e, g = 0, G = -3 halved; L <- 2 (1 - 0.1 x 1.5) = 1.7."""
    e = torch.tensor([1.0, -1.0])[:, None, None]
    m, scale_tril = torch.zeros(1, 1), torch.full((1, 1, 1), 2.0)
    gradient = -natural.placed(m, scale_tril, e)
    m, scale_tril = natural.step(m, scale_tril, torch.ones(1, 1), e, gradient, 0.1)
    assert (m.item(), scale_tril.item()) == pytest.approx((0.0, 1.7))


def test_one_natural_step_of_a_diagonal_by_hand():
    """The same numbers by the diagonal's own update: L <- 2 (1 - 0.1 x 1.5) = 1.7."""
    e = torch.tensor([1.0, -1.0])[:, None, None]
    m, scale = torch.zeros(1, 1), torch.full((1, 1), 2.0)
    m, scale = natural.step(m, scale, torch.ones(1, 1), e, -natural.placed(m, scale, e), 0.1)
    assert (m.item(), scale.item()) == pytest.approx((0.0, 1.7))


def test_a_spoiled_second_half_is_taken_back():
    """Steps that end far away: the state half way is kept for every datum, and the gain is told as none."""
    correlated, x, _ = correlated_posterior(0.5, num_data=5)
    pair = Pair(correlated, MeanField(correlated, offset=1.0), x)
    fitting = refinement._Normal(start_of(pair, x, "same", 0), pair, x, num_draws=8, steps=2, seed=0)
    advance = fitting.advance

    def spoiled(index, begin, end):
        advance(index, begin, end)
        if begin:
            fitting.m[index] += torch.tensor([5.0, 0.0])[: fitting.m.shape[1]]

    fitting.advance = spoiled
    gain = refinement._run(fitting, 40, 0, report=True)
    assert gain.tolist() == [0.0] * 5
    assert (fitting.m - MeanField(correlated).parameters(x)[0]).abs().max() < 1.0


def test_common_draws_are_common_to_both_states():
    """A start that is the optimum of a full-rank family never moves: by common draws its gain is 0 to rounding, by others whole nats."""
    correlated, x, _ = correlated_posterior(0.5, num_data=40)
    pair = Pair(correlated, MeanField(correlated, offset=3.0), x)
    fitting = refinement._Normal(start_of(pair, x, "same", 0), pair, x, num_draws=8, steps=2, seed=0)
    fitting.advance = lambda index, begin, end: None
    assert refinement._run(fitting, 40, 0, report=True).tolist() == [0.0] * 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_draws": 0}, "num_draws is a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps is a whole number of at least 1, got 2.5"),
        ({"num_particles": -1}, "num_particles is a whole number of at least 1, got -1"),
    ],
    ids=["draws", "steps", "particles"],
)
def test_numbers_that_make_no_sense_are_named(arguments, message):
    with pytest.raises(ArgumentError) as raised:
        analysis.refine(model, guide, torch.randn(4, 2), **arguments)
    assert raised.value.problem == message


def test_a_family_may_be_named_without_a_tuple():
    found = analysis.inference_gaps(model, guide, torch.randn(4, 2), families="full_rank", num_particles=2, num_reference=30)
    assert list(found.refined) == ["full_rank"]


def test_a_local_posterior_refuses_other_data_of_the_same_length():
    x = torch.randn(10, 2)
    local = analysis.refine(model, guide, x, num_particles=1).guide
    with pytest.raises(ShapeError, match="this local posterior belongs to other data than those that came"):
        analysis.elbo(model, local, x + 1, num_particles=2)


def test_parameters_that_constrain_each_other_are_refused_with_a_way_on():
    def uniform(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(x - 4, x + 4).to_event(1))

    with pytest.raises(FamilyError, match="a Uniform has parameters that constrain each other"):
        analysis.refine(model, uniform, torch.randn(4, 2))


@pytest.mark.parametrize("size", [1, 2, 3, 5], ids=str)
def test_a_global_plate_at_the_data_dim_is_refused_whatever_its_size(size):
    """A plate of 3 among 50 data once gave a number: the rows looked at were three."""

    def with_groups(program):
        def run(x):
            with pyro.plate("groups", size, dim=-1):
                pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
            program(x)

        return run

    with pytest.raises(ShapeError, match=f"site 'mu': the plate 'groups' at dim -1 has size {size}, and the batch has"):
        analysis.elbo(with_groups(model), with_groups(guide), torch.randn(50, 2), num_particles=3)


# Data outside the support of a likelihood, whatever Pyro's validation is set to.

OUTSIDE = {
    "grey for Bernoulli": (lambda z: dist.Bernoulli(logits=z), 0.5, "Bernoulli"),
    "a negative count": (lambda z: dist.Poisson(z.exp()), -1.0, "Poisson"),
    "a fraction of a count": (lambda z: dist.Poisson(z.exp()), 0.5, "Poisson"),
    "above 1 for Beta": (lambda z: dist.Beta(z.exp(), 1.0), 1.5, "Beta"),
    "zero for Gamma": (lambda z: dist.Gamma(z.exp(), 1.0), -0.5, "Gamma"),
    "negative for LogNormal": (lambda z: dist.LogNormal(z, 1.0), -2.0, "LogNormal"),
    "a category too many": (lambda z: dist.Categorical(logits=z[..., None] * torch.arange(3.0)), 3.0, "Categorical"),
}


@pytest.mark.parametrize("validated", [False, True], ids=["validation off", "validation on"])
@pytest.mark.parametrize(("likelihood", "bad", "name"), OUTSIDE.values(), ids=OUTSIDE)
def test_data_outside_the_support_are_refused_before_the_first_step(likelihood, bad, name, validated):
    def program(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
            pyro.sample("x", likelihood(z), obs=x[:, 0])

    def encoder(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("q", torch.tensor(0.0)), 1.0))

    x = torch.ones(30, 1) if name != "Beta" else torch.full((30, 1), 0.5)
    x[17] = bad
    steps = []
    with pyro.validation_enabled(validated), pytest.raises(DataError) as raised:
        ppvae.fit(program, encoder, x, epochs=1, callback=steps.append)
    assert name in str(raised.value) and "17" in raised.value.where and not steps


# Arrays in whatever form they come.

FORMS_OF_ROWS = {
    "float32": lambda x: x.float(),
    "int64": lambda x: x.long(),
    "uint8": lambda x: x.to(torch.uint8),
    "bool": lambda x: x.bool(),
    "numpy": lambda x: x.numpy(),
    "numpy, Fortran order": lambda x: np.asfortranarray(x.numpy()),
    "transposed in memory": lambda x: x.T.contiguous().T,
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "backwards": lambda x: x.numpy()[::-1].copy()[::-1],
    "a list of lists": lambda x: x.tolist(),
}


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(n=st.integers(1, 9), batch_size=st.integers(1, 10), form=st.sampled_from(sorted(FORMS_OF_ROWS)))
def test_the_epoch_is_the_full_data_value_whatever_the_form_of_the_data_and_the_batches(n, batch_size, form):
    """x_d ~ Bernoulli(0.3), no latents: mean log p(x) per datum by hand; each datum counts once, whatever batch it comes in."""

    def coins(x):
        p = pyro.param("p", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Bernoulli(p.expand(3)).to_event(1), obs=x.to(torch.float64))

    pyro.clear_param_store()
    x = (torch.arange(3.0 * n).reshape(n, 3) % 7 < 3).double()
    expected = (x * math.log(0.3) + (1 - x) * math.log(0.7)).sum(-1).mean().item()
    still = functools.partial(torch.optim.SGD, lr=0.0)
    try:
        run = ppvae.fit(coins, lambda x: None, FORMS_OF_ROWS[form](x), epochs=1, batch_size=batch_size, optimizer=still)
    except DataError as error:
        assert form == "a list of lists" and "list" in str(error)
        return
    assert abs(run.history[0]["objective"] - expected) < 1e-6 * max(1.0, abs(expected))  # p is float64's 0.3 through a float32-safe logit


NO_ROWS = {"a row": torch.zeros(4), "a number": torch.tensor(1.0), "no rows": torch.zeros(0, 4)}


@pytest.mark.parametrize("x", NO_ROWS.values(), ids=NO_ROWS)
def test_what_is_no_set_of_rows_is_refused(x):
    with pytest.raises(DataError):
        ppvae.fit(model, guide, x, epochs=1)


ODD = {
    "constant": [[1.0, 1.0]] * 20,
    "duplicates": [[1.0, -1.0], [0.5, 3.0]] * 10,
    "huge": [[1e15, -1e15]] * 20,
    "one datum": [[0.0, 0.0]],
}


@pytest.mark.parametrize("x", ODD.values(), ids=ODD)
def test_odd_data_have_their_evidence(x):
    x = torch.tensor(x)
    found = log_weights(model, guide, x, num_particles=3)
    assert ((found - evidence(x)).abs() <= 1e-9 * evidence(x).abs().clamp_min(1)).all()


def test_columns_as_many_as_you_like():
    """100,000 of them, each N(z, 1) with z = 0 from a guide that says so: the weight is the sum of 1e5 standard Normal densities."""

    def wide(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(0.0 * z[..., None] + torch.zeros(100_000), 1.0).to_event(1), obs=x)

    def prior(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.ones(2, 100_000)
    found = log_weights(wide, prior, x, num_particles=2)
    assert (found + 100_000 * (0.5 * math.log(2 * math.pi) + 0.5)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [1, 12, 100], ids=str)
def test_a_subsample_of_another_size_than_the_batch_is_refused(size):
    """A last batch of 1 in a plate of 100 was once broadcast to 100 data."""

    def subsampled(x):
        with pyro.plate("data", 512, subsample_size=100, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    steps = []
    with pytest.raises((ShapeError, ProgramError)) as raised:
        ppvae.fit(subsampled, guide, torch.zeros(size, 2), epochs=1, callback=steps.append)
    assert not steps and ("plate" in str(raised.value) or "subsample" in str(raised.value))


# Divergence, and what is then on the disk.


def linear(x):
    weight = pyro.param("weight", torch.ones(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(weight, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("rollbacks", [0, 2])
@pytest.mark.parametrize("every", [0.0, 60.0], ids=["save at once", "save later"])
def test_an_update_that_overflows_is_never_saved(every, rollbacks, tmp_path):
    """Loss and gradient of step 1 are finite and its update is not: a checkpoint taken then once held infinite parameters."""
    sgd = functools.partial(torch.optim.SGD, lr=1.7e308)
    given = {"epochs": 2, "batch_size": 10, "optimizer": sgd, "out": tmp_path, "checkpoint_every": every, "rollbacks": rollbacks}
    with pytest.raises(DivergedError) as raised:
        ppvae.fit(linear, lambda x: None, torch.full((40, 2), 9.0), **given)
    after = "(epoch 1), after 2 rollbacks with at last 0.25 of the learning rate:" if rollbacks else "(epoch 1):"
    assert raised.value.problem == f"training diverged at step 1 {after} an update made parameters that are not finite"
    assert raised.value.where == f"parameter param.weight; the last good state is in {tmp_path}"
    found = ppvae.load(tmp_path, linear, lambda x: None)
    assert found.model.store["params"]["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rollbacks", [0, 2])
def test_parameters_in_memory_are_not_called_good_where_they_are_not(rollbacks):
    sgd = functools.partial(torch.optim.SGD, lr=1.7e308)
    kept = "the last" if rollbacks else "no"  # without rollbacks none is kept to be gone back to
    with pytest.raises(DivergedError, match=f"the programs hold {kept} good state"):
        ppvae.fit(linear, lambda x: None, torch.full((40, 2), 9.0), epochs=2, batch_size=10, optimizer=sgd, rollbacks=rollbacks)


def test_parameters_that_are_infinite_on_purpose_are_saved(tmp_path):
    """A logit of minus infinity forbids a category: it was so before the first step."""

    def forbidding(x):
        logits = pyro.param("logits", torch.tensor([0.0, 1.0, -math.inf]))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Categorical(logits=logits), obs=x[:, 0])

    x = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    still = functools.partial(torch.optim.SGD, lr=0.0)
    run = ppvae.fit(forbidding, lambda x: None, x, epochs=1, optimizer=still, out=tmp_path)
    p = 1 / (1 + math.e)
    assert run.history[0]["objective"] == pytest.approx((math.log(p) + 3 * math.log(1 - p)) / 4)


@pytest.mark.parametrize("validated", [False, True], ids=["validation off", "validation on"])
def test_a_step_is_the_same_whatever_pyros_validation_is_set_to(validated):
    """Our own check runs in both; Pyro's would cost a sixth of a step and change nothing."""
    x = torch.linspace(-1, 1, 40).reshape(20, 2)
    with pyro.validation_enabled(validated):
        run = ppvae.fit(linear, lambda x: None, x, epochs=2, batch_size=20, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    mean = x.mean(0)
    expected = mean + (1 - mean) * 0.9**2  # w <- w - 0.1 (w - mean), twice
    assert torch.allclose(run.model.store["params"]["weight"], expected, atol=1e-12)


# Disks that are full or cannot be written.


def full_after(folder, bytes_):
    """In the child: train where no file may be longer than so many bytes."""
    import resource

    import forks as child_side

    soft = (bytes_, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    try:
        child_side.train(folder, checkpoint_every=0.0)
    except RunError as error:
        Path(folder).with_name("said").write_text(str(error))
        return error.exit_code
    return 0


def test_a_limit_on_the_size_of_files_ends_in_74_before_the_first_step(forks, tmp_path):
    """A quota, or a full disk: found before anything was computed."""
    code = forks.run("test_faults:full_after", str(tmp_path / "run"), 600)
    assert (code, checkpoint.names(tmp_path / "run" / "checkpoints")) == (74, [])
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"cannot write {tmp_path / 'run'}/") and ": File too large\n  where: " in said
    assert " bytes needed, " in said and " bytes free in " in said and len(said.splitlines()) == 3
    assert forks.run("forks:train", str(tmp_path / "run")) == 0  # and where there is room it goes on


def test_a_disk_that_fills_up_ends_in_74_and_the_checkpoint_before_stands(forks, tmp_path):
    """Step 0 has no state of the optimizer and fits; later checkpoints do not."""
    forks.run("forks:train", str(tmp_path / "whole"))
    sizes = [path.stat().st_size for path in (tmp_path / "whole" / "checkpoints").glob("*.safetensors")]
    code = forks.run("test_faults:full_after", str(tmp_path / "run"), max(sizes) - 1)
    name, _, _, damaged = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert (code, damaged) == (74, []) and "File too large" in (tmp_path / "said").read_text()
    assert not list((tmp_path / "run").rglob("*.tmp-*"))
    assert forks.run("forks:train", str(tmp_path / "run")) == 0
    assert left_in(tmp_path / "run") == left_in(tmp_path / "whole")


def notes_of_room(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "little room" in line]


def test_little_room_is_said_once_and_saves_are_tried_all_the_same(tmp_path, monkeypatch, capsys):
    """Five saves, and a hint: only a write that fails is a fault."""
    x = pairs.real(20)
    ppvae.fit(*pairs.registered(), x, epochs=4, checkpoint_every=0.0, out=tmp_path / "plenty")
    assert notes_of_room(capsys) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2000, 766, 1234))
    found = ppvae.fit(*pairs.registered(), x, epochs=4, checkpoint_every=0.0, out=tmp_path / "run")
    (said,) = notes_of_room(capsys)
    assert re.fullmatch(
        f"note: little room in {tmp_path / 'run'}: [0-9,]+ bytes needed, 1,234 bytes free, less than twice that; it is tried all the same",
        said,
    )
    assert found.stopped == "finished" and checkpoint.newest(tmp_path / "run" / "checkpoints")[3] == []


FULL = """
set -e
mount -t tmpfs -o size=400k tmpfs "$1"
head -c 340000 /dev/zero > "$1/filler"
cd "$2"
"$3" -c "$4" "$1/run"
mount -o remount,ro "$1"
"$3" -c "$4" "$1/other"
"""
TRAIN = """
import sys
import torch
torch.set_default_dtype(torch.float64)
import forks
from ppvae.errors import RunError
try:
    forks.train(sys.argv[1], checkpoint_every=0.0)
except RunError as error:
    print(error.exit_code, "|".join(str(error).splitlines()))
"""


@pytest.mark.soak
def test_a_small_file_system_that_is_full_and_then_read_only(tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-m", "bash", "-c", FULL, "-", str(tmp_path / "disk"), str(Path(__file__).parent), sys.executable, TRAIN]
    done = subprocess.run(command, capture_output=True, text=True)
    full, read_only = [line for line in done.stdout.splitlines() if line.startswith("74")]
    assert "No space left on device|  where: " in full and " bytes needed, " in full
    assert "other: Read-only file system" in read_only
