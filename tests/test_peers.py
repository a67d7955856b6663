"""Mistakes found in published VAE code, each with a test that such code would fail.

Those that another file already tests:

particles asked for, not drawn   test_programs.py::test_particles_are_counted_as_drawn
sign of log p, its name          test_measurement.py::test_the_sentence_of_the_design_is_printed
mean of batch means              test_fit.py::test_objective_is_the_mean_log_evidence_whatever_the_batches,
                                 test_measured_elbo_is_the_mean_log_evidence_at_the_posterior,
                                 test_unmeasurable_pair_is_judged_by_its_objective
a site outside the data plate    test_programs.py::test_a_broken_contract_is_named, test_faults.py::test_a_factor_outside_the_data_plate_is_refused,
                                 test_fit.py::test_global_site_is_refused_where_a_batch_cannot_be_scaled
evaluation that trains           test_svi.py::test_evaluating_changes_no_parameter
evaluation under training scale  test_programs.py::test_masks_count_and_scales_do_not
evaluation in training mode      test_programs.py::test_measuring_leaves_generators_modes_and_store_as_they_were, test_dropout_is_off_while_measuring
global state                     test_house.py::test_wheel_is_imported_without_the_tree_and_changes_no_global

The rest is here.
"""

import ast
import functools
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

import pairs
import ppvae
from ground_truth import MeanField, correlated_posterior, linear_gaussian
from ppvae import SVI, analysis, importance
from ppvae.errors import ObjectiveError
from ppvae.state import named_tensors
from ppvae.stream import log_weights

ROUNDING = 1e-9
ROOT = Path(ppvae.__file__).resolve().parent.parent
sgd = functools.partial(torch.optim.SGD, lr=1.0)
frozen = functools.partial(torch.optim.SGD, lr=0.0)
adam = functools.partial(torch.optim.Adam, lr=0.01)


# Particles.


class Counting(dist.Normal):
    """A Normal that counts the numbers drawn from it. Expanding keeps the class, and with it the count."""

    drawn = 0

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        found = super().rsample(sample_shape)
        Counting.drawn += found.numel()
        return found

    sample = rsample


def counting_pair():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Counting(x / 2, 1.0))

    return model, guide


@pytest.mark.parametrize("num_data", [3, 64, 100], ids=lambda n: f"N={n}")
@pytest.mark.parametrize("num_particles", [1, 10, 63, 64, 65, 150], ids=lambda k: f"K={k}")
def test_as_many_particles_are_drawn_as_are_reported(num_particles, num_data):
    """Not a whole block where fewer were asked for, not a multiple of it where K is none: N K numbers beyond the look at the pair."""
    model, guide = counting_pair()
    x = torch.randn(num_data)
    Counting.drawn = 0
    ppvae.pair.Pair(model, guide, x)
    look = Counting.drawn
    Counting.drawn = 0
    found = analysis.elbo(model, guide, x, num_particles=num_particles)
    assert Counting.drawn - look == num_data * num_particles
    assert found.num_particles.tolist() == [num_particles] * num_data


@pytest.mark.parametrize("num_particles", [1, 10, 65, 130], ids=str)
def test_the_mean_weight_is_over_the_particles_drawn(num_particles):
    """With the exact posterior log (1/K) sum w = log p(x) for every K; another K in the divisor than in the sum shows as a shift."""
    model, guide, x = linear_gaussian(num_data=130)
    weights = log_weights(model, guide, x, num_particles=num_particles)
    streamed = importance.Streamed(num_particles, 130)
    for block in weights.split(64):
        streamed.add(block)
    assert (streamed.log_mean_weight - model.log_evidence(x)).abs().max() < ROUNDING
    assert (importance.log_mean_exp(weights) - model.log_evidence(x)).abs().max() < ROUNDING


def test_what_is_measured_holds_no_graph():
    model, guide = pairs.ours()
    found = analysis.log_likelihood(model, guide, pairs.binary(), num_particles=3)
    assert not any(tensor.requires_grad for tensor in (found.pointwise, found.pointwise_se, found.ess))


@pytest.mark.parametrize("num_data", [65, 130], ids=str)
def test_the_mean_over_data_weighs_every_datum_alike(num_data):
    """Blocks of 64 and a leftover of 1 or 2 far-out rows: the mean of block means would give these a half or a third of the say."""
    model, guide, x = linear_gaussian(num_data=num_data)
    x[64 * (num_data // 64) :] += 100.0
    exact = model.log_evidence(x)
    for found in (analysis.elbo(model, guide, x, num_particles=3), analysis.log_likelihood(model, guide, x, num_particles=3)):
        assert found.mean.value == pytest.approx(exact.sum().item() / num_data, rel=1e-9)


# Importance-weighted training.


def recording_pair(scale=0.3, extra=None):
    """z ~ N(0, 1), x ~ N(z + b, scale^2), q = N(x / 2, 1); the guide keeps what it drew."""
    drawn = []

    def model(x):
        if extra is not None:
            extra()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z + pyro.param("b", torch.tensor(0.0)), scale), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            drawn.append(pyro.sample("z", dist.Normal(x[:, 0] / 2, 1.0)))

    def log_weights_of(x, z, b=0.0):
        prior, likelihood = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(z + b, scale).log_prob(x[:, 0])
        return prior + likelihood - dist.Normal(x[:, 0] / 2, 1.0).log_prob(z)

    return model, guide, drawn, log_weights_of


def surrogate(weights):
    """sum_k w~_k log w_k: its gradient is the bound's, its value lies above the bound by log K less the entropy of the w~."""
    return (torch.softmax(weights, 0) * weights).sum(0)


@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluate_loss", "step"])
def test_the_loss_of_an_importance_weighted_step_is_the_bound(evaluated):
    model, guide, drawn, weights_of = recording_pair()
    x = torch.randn(20, 1)
    svi = SVI(model, guide, frozen, RenyiELBO(alpha=0, num_particles=5))
    svi.prepare(x)
    loss = svi.evaluate_loss(x) if evaluated else svi.step(x)
    weights = weights_of(x, torch.stack(drawn[-5:]).detach())
    assert loss == pytest.approx(-importance.log_mean_exp(weights).sum().item(), abs=ROUNDING)
    assert (surrogate(weights) - importance.log_mean_exp(weights)).sum() > 1  # what the other number would overstate


def test_the_objective_that_fit_logs_is_the_bound():
    """Against the bound of fresh draws; the mean of the surrogate is ten standard errors away."""
    model, guide, _, _ = recording_pair()
    x = pairs.real(2000, 1)
    run = ppvae.fit(model, guide, x, epochs=1, batch_size=300, optimizer=frozen, objective=RenyiELBO(alpha=0, num_particles=5))
    fresh = log_weights(model, guide, x, num_particles=500).reshape(5, 100, 2000)
    bound, above = importance.log_mean_exp(fresh), surrogate(fresh)
    error = bound.std(0).square().mean().sqrt().item() / math.sqrt(2000)
    assert abs(run.history[0]["objective"] - bound.mean().item()) < 5 * error
    assert (above - bound).mean().item() > 10 * error


def test_better_samples_get_more_weight():
    """The gradient of the bound in b is sum_k w~_k (x - z_k - b) / scale^2 with w~ = softmax(+log w)."""
    model, guide, drawn, weights_of = recording_pair()
    x = torch.randn(20, 1)
    svi = SVI(model, guide, sgd, RenyiELBO(alpha=0, num_particles=5))
    svi.prepare(x)
    svi.step(x)
    z = torch.stack(drawn[-5:]).detach()
    weights = weights_of(x, z)
    ascent = {sign: (torch.softmax(sign * weights, 0) * (x[:, 0] - z) / 0.3**2).sum().item() for sign in (1, -1)}
    assert pyro.param("b").item() == pytest.approx(ascent[1], abs=1e-8)
    assert abs(ascent[1] - ascent[-1]) > 1


def note_outside():
    pyro.deterministic("note", torch.tensor(1.0))


def test_a_site_outside_the_plate_does_not_make_one_weight_of_a_batch():
    """A recorded value outside the data plate: either the bound stays the sum over data, or the pair is refused."""
    model, guide, _, _ = recording_pair(extra=note_outside)
    x = pairs.real(40, 1)
    objective = RenyiELBO(alpha=0, num_particles=5)
    try:
        run = ppvae.fit(model, guide, x, epochs=1, batch_size=40, optimizer=frozen, objective=objective)
    except ObjectiveError:
        return
    plain = recording_pair()
    fresh = importance.log_mean_exp(log_weights(plain[0], plain[1], x, num_particles=500).reshape(5, 100, 40))
    assert abs(run.history[0]["objective"] - fresh.mean().item()) < 5 * fresh.std(0).mean().item() / math.sqrt(40)


def test_a_value_recorded_outside_the_plate_changes_no_weight():
    x = pairs.real(70, 1)
    plain, noted = (log_weights(*recording_pair(extra=extra)[:2], x, num_particles=3) for extra in (None, note_outside))
    assert torch.allclose(plain, noted, atol=ROUNDING, rtol=0)
    assert plain.shape == (3, 70)


def test_the_weight_of_a_datum_knows_nothing_of_the_others():
    model, x, _ = correlated_posterior(0.5, num_data=100)
    before = log_weights(model, MeanField(model), x, num_particles=5)
    others = x.clone()
    others[1:] += 3.0
    after = log_weights(model, MeanField(model), others, num_particles=5)
    assert torch.allclose(before[:, 0], after[:, 0], atol=ROUNDING, rtol=0)
    assert (before[:, 1:] - after[:, 1:]).abs().min() > ROUNDING


# Evaluation.


def everything(svi, model, guide):
    """Parameters, optimizer state, store and generator, copied."""
    state = svi.optim.torch_optimizer.state_dict()["state"]
    moments = [value.clone() for entry in state.values() for value in entry.values()]
    store = [value.detach().clone() for value in pyro.get_param_store().values()]
    return [*(t.detach().clone() for t in named_tensors(model, guide).values()), *moments, *store, torch.get_rng_state()]


MEASUREMENTS = {
    "elbo": lambda model, guide, x: analysis.elbo(model, guide, x, num_particles=3),
    "log_likelihood": lambda model, guide, x: analysis.log_likelihood(model, guide, x, num_particles=30),
    "latent_usage": lambda model, guide, x: analysis.latent_usage(model, guide, x, num_particles=3),
    "refine": lambda model, guide, x: analysis.refine(model, guide, x, num_particles=3),
    "log_weights": lambda model, guide, x: log_weights(model, guide, x, num_particles=3),
    "check": lambda model, guide, x: ppvae.check(model, guide, x),
}


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("make", [pairs.registered, pairs.table], ids=lambda make: make.__name__)
def test_evaluating_between_steps_leaves_every_bit(make, measurement):
    model, guide = make()
    x = pairs.real()
    svi = SVI(model, guide, adam, Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    before = everything(svi, model, guide)
    MEASUREMENTS[measurement](model, guide, x)
    after = everything(svi, model, guide)
    assert len(before) == len(after) > 4
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_evaluating_the_loss_takes_no_step():
    model, guide = pairs.registered()
    svi = SVI(model, guide, adam, Trace_ELBO())
    for _ in range(3):
        svi.step(pairs.real())
    before = everything(svi, model, guide)[:-1]
    svi.evaluate_loss(pairs.real())
    assert all(torch.equal(a, b) for a, b in zip(before, everything(svi, model, guide)[:-1], strict=True))
    assert svi.steps_taken == 3


@pytest.mark.parametrize(
    ("make", "x"),
    [(pairs.ours, pairs.binary()), (pairs.bound, pairs.images()), (pairs.closures, pairs.real()), (pairs.table, pairs.real())],
    ids=["ours", "bound methods", "functions", "pyro.param"],
)
@pytest.mark.filterwarnings("ignore:.* stand in the training data too")  # they are to be the same
def test_a_users_pair_has_its_validation_number(make, x):
    """On every epoch, nats per datum, and that of the validation set."""
    model, guide = make()
    run = ppvae.fit(model, guide, x, validation=x[:13], epochs=2, batch_size=7, optimizer=frozen)
    found = [row["validation_elbo"] for row in run.history]
    expected = analysis.elbo(run.model, run.guide, x[:13], num_particles=1000)
    assert len(found) == 2
    assert found == pytest.approx([expected.mean.value] * 2, abs=5 * expected.pointwise_se.mean().item() * math.sqrt(1000 / 64 / 13))


def test_a_validation_loss_beyond_any_number_in_the_code_still_has_a_best_epoch():
    """A start value such as 1e10 for the best loss would leave a pair with larger losses without one."""

    def model(x):
        b = pyro.param("b", torch.zeros(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b, 1e-3).to_event(1), obs=x)

    x = torch.full((4, 1), 1e6)
    run = ppvae.fit(model, lambda x: None, x, validation=x, epochs=2, optimizer=frozen)
    assert run.history[0]["validation_elbo"] == pytest.approx(-0.5e18, rel=1e-6)
    assert run.best_epoch == 1


# Divergences.


@pytest.mark.parametrize("components", [1, 3], ids=str)
def test_a_divergence_from_a_mixture_is_not_that_from_a_normal(components):
    """One latent dimension, a mixture prior: no closed form, whatever the number of dimensions; by quadrature to 1e-8."""
    loc, weights = torch.linspace(-3.0, 3.0, 3)[:components], torch.tensor([0.5, 0.3, 0.2])[:components]
    prior = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 0.5))
    q = dist.Normal(0.4, 0.8)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    grid = torch.linspace(-7.0, 8.0, 20_001)
    exact = (q.log_prob(grid).exp() * (q.log_prob(grid) - prior.log_prob(grid))).sum() * (grid[1] - grid[0])
    found = analysis.latent_usage(model, guide, torch.randn(400), num_particles=64, num_mutual=2)
    assert abs(found.kl["z"] - exact) < 5 * found.kl_se["z"]
    assert abs(found.kl_per_dimension["z"].item() - exact) < 5 * found.kl_se["z"]


# Names and global state.


def sources():
    return [path for folder in ("ppvae", "analysis", "models", "guides") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_module_holds_a_device_or_rebinds_a_global():
    """A device at module level is the machine of whoever imported first; every function follows its data instead."""
    found = []
    for path in sources():
        tree = ast.parse(path.read_text())
        found += [f"{path.name}: global {node.names}" for node in ast.walk(tree) if isinstance(node, ast.Global)]
        assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None]
        found += [f"{path.name}: {ast.unparse(node)}" for node in assigned if "torch.device(" in ast.unparse(node.value)]
    assert found == []


def test_no_name_hides_the_sign_of_a_log_likelihood():
    names = {
        node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else node.arg
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg)
    }
    assert len(names) > 300
    assert not {name for name in names if "nll" in name.lower().split("_") or "neg_log" in name}
