"""Annealed importance sampling and bidirectional Monte Carlo, held to closed forms."""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_statistical import in_two_stages, p_of_mean, statistical

from ground_truth import (
    MeanField,
    MixturePrior,
    expected_log_likelihood,
    kl_to_posterior,
    linear_gaussian,
    poisson_gamma,
    tempered_posterior,
)
from pairs import Reshapes, normal, real
from ppvae import annealing, hmc, paths
from ppvae.analysis.annealed_log_likelihood import annealed_log_likelihood
from ppvae.analysis.bidirectional import bidirectional
from ppvae.annealing import Settings
from ppvae.errors import ArgumentError, DataError, DivergedError, FamilyError
from ppvae.importance import log_mean_exp, standard_error
from ppvae.pair import Pair
from ppvae.refinement import refined

STARTS = ["prior", "guide", "refined"]


@pytest.fixture(autouse=True)
def short_pilots(monkeypatch):
    """Pilots of 16 temperatures where runs have so few: densities here are tame, and 40 would take longer than what they are for."""
    monkeypatch.setattr(annealing, "LEAST_PILOT_TEMPERATURES", 16)


def hierarchy(x):
    """z2 ~ N(0, 1), z1 | z2 ~ N(1.5 z2, 0.8^2), x | z1 ~ N(z1, 0.5^2): x ~ N(0, 1.5^2 + 0.8^2 + 0.5^2)."""
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
        z1 = pyro.sample("z1", dist.Normal(1.5 * z2, 0.8))
        pyro.sample("x", dist.Normal(z1, 0.5), obs=x)


def hierarchy_evidence(x):
    return dist.Normal(0.0, math.sqrt(1.5**2 + 0.8**2 + 0.5**2)).log_prob(x)


def parts(x):
    """Three parts of a datum in a plate: z_j ~ N(0, I_2), x_j | z_j ~ N(z_j, 0.5^2): each x_j ~ N(0, 1.25 I)."""
    with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 3, dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x.movedim(1, 0))


def parts_evidence(x):
    return dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).sum((1, 2))


def shared_mean(x):
    """mu ~ N(0, 1) for all data, z ~ N(mu, 1), x | z ~ N(z, 0.5^2): x | mu ~ N(mu, 1.25)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def shared_mean_guide(x):
    pyro.sample("mu", dist.Normal(0.7, 0.3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x, 0.6))


def with_a_hole(x):
    """z ~ N(0, 1), x | z ~ N(z, 1), nothing above z = 1: p(x) = N(x; 0, 2) P(z < 1 | x), z | x ~ N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("hole", torch.where(z < 1, 0.0, -torch.inf))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hole_evidence(x):
    return dist.Normal(0.0, math.sqrt(2)).log_prob(x) + torch.special.log_ndtr((1 - x / 2) * math.sqrt(2))


def walked(model, guide, x, start, settings, seed=0, blocks_at_once=None):
    """The path, what the run was frozen to, and the forward run."""
    path = paths.path(model, guide, x, start, seed)
    settings = settings.resolved(path.from_prior)
    frozen = annealing.tables(path, settings, seed + 1, blocks_at_once)
    return path, frozen, annealing.forward(path, frozen, settings, seed + 2, blocks_at_once)


def agrees(found, truth, errors=5):
    """Within so many standard errors, datum by datum; the last term is rounding."""
    return ((found.pointwise - truth).abs() < errors * found.pointwise_se + 1e-9).all()


# The estimate


@pytest.mark.parametrize("start", STARTS)
def test_evidence_of_a_linear_gaussian_model(start):
    model, _, x = linear_gaussian(num_data=20)
    guide = MeanField(model, offset=0.2, inflation=1.3)
    found = annealed_log_likelihood(model, x, guide=guide, start=start, num_temperatures=20, num_chains=64)
    assert agrees(found, model.log_evidence(x))
    assert found.pointwise_se.max() < 0.2
    assert found.start == start


@pytest.mark.parametrize(
    ("model", "evidence", "x"),
    [
        (hierarchy, hierarchy_evidence, torch.linspace(-4, 4, 9, dtype=torch.float64)),
        (parts, parts_evidence, torch.randn(9, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))),
        (with_a_hole, hole_evidence, torch.linspace(-2, 3, 9, dtype=torch.float64)),
    ],
    ids=["two layers", "a plate inside the datum", "a density with a hole"],
)
def test_evidence_from_the_prior(model, evidence, x):
    found = annealed_log_likelihood(model, x, num_temperatures=20, num_chains=64)
    assert agrees(found, evidence(x))
    assert found.schedule == "equal"


@pytest.mark.parametrize("start", STARTS)
def test_evidence_with_a_network_that_refuses_particles_from_the_left(start):
    decoder, x = Reshapes(), real(5)
    model = normal(2, decoder)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.3 * x[:, :2], 0.8).to_event(1))

    linear = decoder.linear.requires_grad_(False)
    truth = dist.LowRankMultivariateNormal(linear.bias, linear.weight, torch.full((3,), 0.25)).log_prob(x)
    assert not Pair(model, guide, x).in_plate
    found = annealed_log_likelihood(model, x, guide=guide, start=start, num_temperatures=20, num_chains=64)
    assert agrees(found, truth)


@pytest.mark.parametrize("start", ["prior", "refined"])
def test_evidence_where_the_latent_is_positive(start):
    model, y, evidence, _ = poisson_gamma()
    found = annealed_log_likelihood(model, y, start=start, num_temperatures=20, num_chains=64)
    assert agrees(found, evidence)


def test_evidence_of_a_mixture_whose_component_is_summed_out():
    mixture = MixturePrior()
    x = mixture.draw(10)
    found = annealed_log_likelihood(mixture.two_sites, x, num_temperatures=30, num_chains=64)
    assert agrees(found, mixture.log_px(x))


@pytest.mark.parametrize("start", STARTS)
def test_a_global_site_is_conditioned_on(start):
    x = torch.linspace(-2, 3, 6)
    found = annealed_log_likelihood(shared_mean, x, guide=shared_mean_guide, start=start, num_temperatures=20, num_chains=64, seed=3)
    mu = Pair(shared_mean, shared_mean_guide, x, 3).globals["mu"]  # the guide's draw, whatever the chains start from
    assert agrees(found, dist.Normal(mu, math.sqrt(1.25)).log_prob(x))
    assert found.source.conditioned_on == ("mu",)
    assert "conditional on a draw of mu" in str(found)


@pytest.mark.parametrize(
    ("start", "schedule"), [pytest.param("prior", "sigmoid", marks=pytest.mark.soak), ("guide", "linear"), ("prior", "equal")]
)
def test_weights_are_unbiased_for_the_evidence_on_the_linear_scale(start, schedule):
    # three temperatures, so that a wrong increment, sign or transition has nowhere to hide
    model, _, x = linear_gaussian(num_data=4, scale=1.5)
    _, _, run = walked(model, MeanField(model, 0.3, 1.3), x, start, Settings(3, 4000, 2, schedule))
    ratio = (run.log_weights - model.log_evidence(x)).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(4000)).all()


def test_inverse_weights_of_the_reverse_run_are_unbiased_for_the_inverse_evidence():
    model, _, x = linear_gaussian(num_data=4, scale=1.5)
    path = paths.path(model, MeanField(model, 0.3, 1.3), x, "guide", 0)
    settings = Settings(3, 4000, 2, "linear")
    frozen = annealing.tables(path, settings, 1)
    run = annealing.reverse(path, frozen, settings, model.posterior(x).sample((4000,)), 2)
    ratio = (model.log_evidence(x) - run.log_weights).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(4000)).all()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_from_the_posterior_itself_every_weight_is_the_evidence(direction):
    model, posterior, x = linear_gaussian()
    settings = Settings(7, 5, 3, "sigmoid")
    path, frozen, run = walked(model, posterior, x, "guide", settings)
    if direction == "reverse":
        run = annealing.reverse(path, frozen, settings, model.posterior(x).sample((1,)), 5)
    assert (run.log_weights - model.log_evidence(x)).abs().max() < 1e-9


def test_one_temperature_is_importance_sampling_from_the_start():
    model, _, x = linear_gaussian()
    path = paths.path(model, MeanField(model, 0.2, 1.2), x, "guide", 0)
    settings = Settings(1, 8, 3, "linear")
    run = annealing.forward(path, annealing.tables(path, settings, 1), settings, 2)
    v = hmc.Noise(2, "forward", 0, rows=slice(0, 6)).normal(8, 2)
    u = paths.placed(v, path.m[:6], path.scale_tril[:6])
    log_p = dist.Normal(0.0, 1.0).log_prob(u).sum(-1) + dist.Normal(u @ model.weight.mT + model.bias, 0.7).log_prob(x).sum(-1)
    log_q = dist.MultivariateNormal(path.m, scale_tril=path.scale_tril).log_prob(u)
    assert torch.allclose(run.log_weights, log_p - log_q, rtol=0, atol=1e-9)
    assert run.acceptance.isnan().all()


def test_the_estimate_is_the_log_of_the_mean_weight_and_the_single_chain_the_mean_of_the_log():
    model, _, x = linear_gaussian()
    guide = MeanField(model, 0.2, 1.2)
    found = annealed_log_likelihood(model, x, guide=guide, num_temperatures=4, num_chains=6, seed=5, step_size=0.4)
    path = paths.path(model, guide, x, "guide", 5)
    settings = Settings(4, 6, 3, "linear", 0.4)
    log_w = annealing.forward(path, annealing.tables(path, settings, 0), settings, annealing.noise.derived_seed(5, "forward")).log_weights
    assert torch.allclose(found.pointwise, log_w.exp().mean(0).log(), rtol=0, atol=1e-9)
    assert torch.allclose(found.single_chain, log_w.mean(0), rtol=0, atol=1e-9)
    assert torch.allclose(found.pointwise_se, standard_error(log_w))


# The two directions


def closed_form_jeffreys(model, x, start):
    """(E_post - E_q)[log p(x, z) - log q(z)]: from the prior by expected log likelihoods, from a Normal both divergences."""
    posterior = model.posterior(x)
    if start == "prior":
        return expected_log_likelihood(model, x, posterior) - expected_log_likelihood(model, x, tempered_posterior(model, x, 0.0))
    loc, scale = MeanField(model, 0.3, 1.4).parameters(x)
    q = dist.MultivariateNormal(loc, torch.diag_embed(scale.expand(loc.shape) ** 2))
    return kl_to_posterior(model, x, loc, q.covariance_matrix) + torch.distributions.kl_divergence(posterior, q)


@pytest.mark.parametrize("start", [pytest.param("prior", marks=pytest.mark.soak), "guide"])
def test_single_chain_width_is_that_of_the_closed_form(start):
    # .8: five standard errors of the mean (5 % each) below perfect transitions; 1.5: what successive states may still have in common
    model, _, x = linear_gaussian(num_data=256, data_dim=4, scale=1.5)
    settings = Settings(20, 32, 3, "linear")
    path, frozen, run = walked(model, MeanField(model, 0.3, 1.4), x, start, settings)
    back = annealing.reverse(path, frozen, settings, model.posterior(x).sample((32,)), 9)
    width = back.log_weights.mean() - run.log_weights.mean()
    forecast = closed_form_jeffreys(model, x, start).mean() / 20
    assert 0.8 < width / forecast < 1.5
    told = (back.first_energy.mean(0) - run.first_energy.mean(0)) / 20
    assert abs(told.mean() - forecast) < 5 * (told - closed_form_jeffreys(model, x, start) / 20).std() / 16


@pytest.mark.parametrize("start", STARTS)
def test_bounds_hold_the_evidence_between_them(start):
    model, _, template = linear_gaussian()
    found = bidirectional(model, template=template, guide=MeanField(model, 0.3, 1.4), start=start, num_data=40, num_temperatures=30)
    assert abs(found.mean.value) < 5 * found.mean.data_se + 0.02
    assert (found.single_chain_width.mean() > 0) or start == "refined"  # refined from here it is the posterior
    assert found.valid.all()
    assert torch.equal(found.width, found.upper - found.lower)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(hierarchy, id="two layers", marks=pytest.mark.soak),
        pytest.param(parts, id="a plate inside the datum"),
        pytest.param(shared_mean, id="a global site"),
    ],
)
def test_width_closes_for_models_of_other_shapes(model):
    template = torch.zeros(2, 3, 2) if model is parts else torch.zeros(2)
    found = bidirectional(model, template=template, num_data=64, num_temperatures=40)
    assert abs(found.mean.value) < 5 * found.mean.data_se
    assert found.mean.data_se < 0.1


@pytest.mark.slow  # the first use of ArviZ
def test_real_data_are_bounded_from_above_by_long_chains():
    model, _, x = linear_gaussian(num_data=10)
    found = bidirectional(model, x=x, guide=MeanField(model, 0.3, 1.4), num_temperatures=20, num_warmup=50, num_draws=200)
    truth = model.log_evidence(x)
    assert found.valid.all()
    assert ((found.upper - truth).abs() < 5 * found.upper_se).all()
    assert ((found.lower - truth).abs() < 5 * found.lower_se).all()
    assert (found.ess > 100).all()
    assert "of 10 data, those whose chains converged (R-hat < 1.02)" in str(found)


def two_modes(x):
    """x | z ~ N(z^2, 0.3^2): at x = 4 the posterior has two narrow modes, +2 and -2, that no chain crosses between; at x = -4 it has one."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z**2, 0.3), obs=x)


def test_data_whose_chains_do_not_converge_are_not_valid():
    found = bidirectional(two_modes, x=torch.tensor([4.0, -4.0]), num_temperatures=20, num_warmup=100, num_draws=200)
    assert found.valid.tolist() == [False, True]
    assert found.mean.value == pytest.approx(found.width[1].item())


# What is frozen


def test_the_run_takes_the_step_sizes_that_the_pilot_left(monkeypatch):
    model, _, x = linear_gaussian()
    path = paths.path(model, MeanField(model), x, "guide", 0)
    settings = Settings(6, 4, 2, "linear")
    frozen = annealing.tables(path, settings, 1)
    taken, transition = [], hmc.transition
    monkeypatch.setattr(hmc, "transition", lambda *a, **k: taken.append(k["step_size"]) or transition(*a, **k))
    monkeypatch.setattr(hmc.StepSizeAdaptation, "update", lambda *a: pytest.fail("adapted while annealing"))
    annealing.forward(path, frozen, settings, 2)
    assert torch.equal(torch.stack(taken), frozen.step_sizes)
    taken.clear()
    annealing.reverse(path, frozen, settings, path.m[None], 2)
    assert torch.equal(torch.stack(taken), frozen.step_sizes.flip(0))


def counted(rows):
    """z ~ N(0, 1), x | z ~ N(z, 1), that counts the rows it is run on."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            rows[0] += z.numel()
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


@pytest.mark.parametrize("start", ["prior", "refined"])
def test_the_evaluations_told_are_those_of_the_model(start):
    rows, x = [0], torch.zeros(5)
    model = counted(rows)
    settings = Settings(9, 4, 3, "linear")
    path = paths.path(model, None, x, start, 0)
    rows[0] = 0
    frozen = annealing.tables(path, settings, 1)
    run = annealing.forward(path, frozen, settings, 2)
    told = frozen.num_evaluations + run.num_evaluations
    assert run.num_evaluations == 4 * (1 + 8 * 3)  # T - 1 = 8 transitions
    drawn = 2 * 12 if start == "prior" else 0  # exact draws of the prior run the model too: 8 + 4 chains, its guide and its values
    assert told * 5 <= rows[0] <= (told + drawn) * 5 + 5  # one row a datum looks at the data's support


def test_a_given_step_size_means_no_pilot():
    model, _, x = linear_gaussian()
    path = paths.path(model, MeanField(model), x, "guide", 0)
    frozen = annealing.tables(path, Settings(4, 2, 1, "linear", 0.37), 1)
    assert frozen.num_evaluations == 0
    assert (frozen.step_sizes == 0.37).all()
    assert frozen.step_sizes.shape == (3, 6)


@pytest.mark.parametrize("start", ["prior", pytest.param("guide", marks=pytest.mark.soak)])
def test_how_many_data_run_at_once_changes_no_number(start):
    model, _, x = linear_gaussian(num_data=140)
    one = walked(model, MeanField(model), x, start, Settings(6, 3, 2, "auto"), blocks_at_once=1)
    all_at_once = walked(model, MeanField(model), x, start, Settings(6, 3, 2, "auto"), blocks_at_once=3)
    assert torch.allclose(one[2].log_weights, all_at_once[2].log_weights, rtol=0, atol=1e-9)
    assert torch.allclose(one[1].step_sizes, all_at_once[1].step_sizes, rtol=0, atol=1e-9)


def test_the_first_64_chains_are_the_same_however_many_there_are():
    model, _, x = linear_gaussian()
    few = walked(model, MeanField(model), x, "guide", Settings(4, 64, 2, "linear", 0.4))[2]
    many = walked(model, MeanField(model), x, "guide", Settings(4, 100, 2, "linear", 0.4))[2]
    assert torch.allclose(few.log_weights, many.log_weights[:64], rtol=0, atol=1e-9)
    assert not torch.isclose(many.log_weights[64:], few.log_weights[:36]).any()


# Temperatures


def test_linear_temperatures():
    assert annealing.schedule("linear", 4).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_sigmoid_temperatures_are_the_papers():
    # Wu et al. (2017): sigmoid(4 (2 t / T - 1)), shifted and scaled to end at 0 and 1
    found = annealing.schedule("sigmoid", 4)
    end = 1 / (1 + math.exp(4))
    expected = [(1 / (1 + math.exp(-4 * (t / 2 - 1))) - end) / (1 - 2 * end) for t in range(5)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_equal_steps_share_the_integral_of_the_rate():
    # rate 2 b integrates to b^2; with the floor of .05 the share below b is (b^2 + .05 b) / 1.05
    rough = torch.linspace(0, 1, 401)
    b = annealing.equal_steps(rough, (2 * rough[:-1])[:, None].expand(-1, 3), 10)
    assert b.shape == (11, 3)
    assert torch.allclose((b**2 + 0.05 * b) / 1.05, torch.linspace(0, 1, 11)[:, None].expand(-1, 3), atol=1e-4)


def test_equal_steps_of_no_rate_at_all_are_linear():
    b = annealing.equal_steps(torch.linspace(0, 1, 11), torch.zeros(10, 1), 4)
    assert torch.allclose(b[:, 0], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))


def test_step_sizes_are_read_between_the_pilots_temperatures():
    table = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    found = annealing.interpolated(torch.tensor([0.2, 0.6]), table, torch.tensor([[0.1, 0.3], [0.4, 0.6], [0.9, 0.5]]))
    assert torch.allclose(found, torch.tensor([[1.0, 15.0], [2.0, 30.0], [3.0, 25.0]]))


def test_schedules_by_default_are_linear_from_a_normal_and_adaptive_from_the_prior():
    assert Settings(2, 1, 1, "auto").resolved(False).schedule == "linear"
    assert Settings(2, 1, 1, "auto").resolved(True).schedule == "equal"
    assert Settings(2, 1, 1, "auto", 0.1).resolved(True).schedule == "sigmoid"


# What is not finite, and what is refused


def test_proposals_without_density_are_counted_and_their_number_told():
    found = annealed_log_likelihood(with_a_hole, torch.tensor([2.0, -8.0]), num_temperatures=20, step_size=0.5)
    assert found.num_nonfinite[0] > found.num_nonfinite[1]  # at x = -8 no chain comes near
    assert f"{int(found.num_nonfinite.sum())} proposals not finite" in str(found)


def test_a_log_weight_that_is_no_number_is_an_error():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("overflow", torch.where(z > 1, torch.nan, 0.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(DivergedError, match="not a number where the chains begin"):
        annealed_log_likelihood(model, torch.zeros(3), num_temperatures=5)


def test_data_outside_the_support_are_an_error():
    model, y, _, _ = poisson_gamma()
    with pytest.raises(DataError, match="row 3"):
        annealed_log_likelihood(model, torch.where(y == 3, -1.0, y), num_temperatures=5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"start": "posterior"}, "start is one of"),
        ({"start": "guide"}, "needs a guide"),
        ({"schedule": "cubic"}, "schedule is one of"),
        ({"schedule": "equal", "step_size": 0.1}, "read from a pilot"),
        ({"num_temperatures": 0}, "num_temperatures is a whole number"),
        ({"num_chains": 0}, "num_chains is a whole number"),
        ({"num_leapfrog": 1.5}, "num_leapfrog is a whole number"),
        ({"step_size": 0.0}, "step_size is a number > 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ArgumentError, match=said):
        annealed_log_likelihood(hierarchy, torch.zeros(3), **given)


def test_a_model_without_continuous_latents_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(FamilyError, match="no continuous latent"):
        annealed_log_likelihood(model, torch.zeros(3))


@pytest.mark.parametrize("given", [{}, {"template": torch.zeros(2), "x": torch.zeros(2)}], ids=["neither", "both"])
def test_bidirectional_takes_a_template_or_data(given):
    with pytest.raises(ArgumentError, match="one of the two"):
        bidirectional(hierarchy, **given)


# The results


def test_a_local_posterior_starts_its_own_data_and_no_simulated_ones():
    model, _, x = linear_gaussian()
    local = refined(Pair(model, MeanField(model, 0.2), x), x, steps=10)
    assert agrees(annealed_log_likelihood(model, x, guide=local, num_temperatures=10, num_chains=64), model.log_evidence(x))
    with pytest.raises(ArgumentError, match="a local posterior of other data than those that are simulated"):
        annealed_log_likelihood(model, x, guide=local, num_temperatures=10, validate=True)


def test_validation_is_told_in_the_sentence():
    model, posterior, x = linear_gaussian()
    found = annealed_log_likelihood(model, x, guide=posterior, num_temperatures=3, num_chains=4, validate=True)
    assert found.validation is not None
    assert len(found.validation.width) == 100
    assert found.validation.num_temperatures == 3
    assert "bidirectional width 0.000 ± 0.000 nats, at most 0.000, on 100 simulated data" in str(found).replace("-0.000", "0.000")
    assert "not validated" in str(annealed_log_likelihood(model, x, guide=posterior, num_temperatures=3))


@pytest.mark.parametrize("call", ["annealed", "simulated", "real"])
def test_results_are_json(call):
    model, posterior, x = linear_gaussian()
    settings = {"guide": posterior, "num_temperatures": 3, "num_chains": 4}
    if call == "annealed":
        found = annealed_log_likelihood(model, x, validate=True, **settings)
    else:
        found = bidirectional(
            model, **({"x": x} if call == "real" else {"template": x, "num_data": 5}), num_warmup=5, num_draws=20, **settings
        )
    record = json.loads(json.dumps(found.as_dict()))
    assert record["mean"]["value"] == pytest.approx(found.mean.value, nan_ok=True)
    assert record["source"]["data"]["name"] == ("simulated" if call == "simulated" else "tensors")


def test_the_callers_generator_and_store_stay_as_they_were():
    model, posterior, x = linear_gaussian()
    before = torch.get_rng_state()
    bidirectional(model, x=x, guide=posterior, num_temperatures=3, num_warmup=5, num_draws=20)
    assert torch.equal(before, torch.get_rng_state())
    assert not list(pyro.get_param_store())


def test_the_mean_of_the_weights_is_what_log_mean_exp_says():
    assert log_mean_exp(torch.tensor([0.0, math.log(3.0)])).item() == pytest.approx(math.log(2.0))


# Again with fresh seeds (make test-statistical)


@statistical
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_weights_are_unbiased_with_fresh_seeds(start, direction):
    def experiment(seed, size):
        model, _, x = linear_gaussian(num_data=8, scale=1.5)
        settings = Settings(4, 2000 * size, 2, "auto")
        path, frozen, run = walked(model, MeanField(model, 0.2, 1.3), x, start, settings, seed)
        ratio = (run.log_weights - model.log_evidence(x)).exp()
        if direction == "reverse":
            exact = model.posterior(x).sample((settings.num_chains,))
            ratio = (
                model.log_evidence(x) - annealing.reverse(path, frozen, settings.resolved(path.from_prior), exact, seed).log_weights
            ).exp()
        return p_of_mean(ratio.mean(1), 1.0)  # over data each chain is a draw of its own

    in_two_stages(experiment, f"annealed weights, {direction} from {start}")
