"""Log weights: exact where the guide is the posterior, equal whatever the scheduling, and honest about the contract."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppvae
from ground_truth import MeanField, correlated_posterior, linear_gaussian, poisson_gamma
from ppvae import errors
from ppvae.importance import log_mean_exp
from ppvae.pair import Pair
from ppvae.stream import log_weights, stream

ROUNDING = 1e-9


@pytest.mark.parametrize("num_particles", [1, 3, 64, 130], ids=str)
@pytest.mark.parametrize("blocks_at_once", [1, 2, None], ids=str)
def test_exact_guide_gives_every_weight_the_evidence(num_particles, blocks_at_once):
    model, guide, x = linear_gaussian(num_data=150)
    found = log_weights(model, guide, x, num_particles=num_particles, blocks_at_once=blocks_at_once)
    assert found.shape == (num_particles, 150)
    assert (found - model.log_evidence(x)).abs().max() < ROUNDING


@pytest.mark.parametrize("blocks_at_once", [2, 3, 100], ids=str)
def test_draws_are_the_same_however_many_blocks_run_at_once(blocks_at_once):
    model, x, _ = correlated_posterior(0.6, num_data=200)
    guide = MeanField(model, inflation=1.3)
    one = log_weights(model, guide, x, num_particles=70, seed=3, blocks_at_once=1)
    assert (one - log_weights(model, guide, x, num_particles=70, seed=3, blocks_at_once=blocks_at_once)).abs().max() < ROUNDING


def test_float32_agrees_across_chunks_to_a_ten_thousandth_nat():
    torch.set_default_dtype(torch.float32)
    model = ppvae.models.Bernoulli(ppvae.nn.MLP(4, [64], 784), 4)
    guide = ppvae.guides.DiagonalNormal(ppvae.nn.MLP(784, [32], 8), 4)
    x = (torch.rand(200, 784) > 0.5).float()
    runs = [log_weights(model, guide, x, num_particles=8, blocks_at_once=blocks) for blocks in (1, 4)]
    assert (log_mean_exp(runs[0]) - log_mean_exp(runs[1])).abs().max() < 1e-4


def test_other_seeds_give_other_draws():
    model, x, _ = correlated_posterior(0.6)
    a, b = (log_weights(model, MeanField(model), x, num_particles=4, seed=seed) for seed in (0, 1))
    assert (a == b).sum() == 0


def test_a_prefix_of_the_data_has_the_same_draws():
    model, x, _ = correlated_posterior(0.6, num_data=200)
    guide = MeanField(model)
    whole = log_weights(model, guide, x, num_particles=64)
    assert (whole[:, :128] - log_weights(model, guide, x[:128], num_particles=64)).abs().max() < ROUNDING


CHI2 = (1 - 0.25**2) / math.sqrt(1 - 4 * 0.25**2) - 1  # of the best diagonal proposal at r = 0.25: 1 + chi^2 = (1 - r^2) / sqrt(1 - 4 r^2)


@functools.cache
def relative_log_weights():
    """log w - log p(x), (10,000 x 128), at r = 0.25, where the fourth moment of the weights is finite."""
    model, x, _ = correlated_posterior(0.25, num_data=128)
    return log_weights(model, MeanField(model), x, num_particles=10_000) - model.log_evidence(x)


def bounds(k):
    """Independent draws of L_K - log p(x)."""
    return log_mean_exp(relative_log_weights().reshape(-1, k, 128), 1).flatten()


@pytest.mark.parametrize("k", [1, 20], ids=str)
def test_mean_weight_is_unbiased_for_the_evidence(k):
    """E[exp(L_K)] = p(x) for every K."""
    ratio = bounds(k).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(ratio.numel())


@pytest.mark.parametrize("k", [20, 50], ids=str)
def test_bias_of_the_bound_is_chi_squared_over_two_k(k):
    """E[exp(L) - 1 - L] is the bias too, since E[exp(L)] = 1, and its noise is of second order."""
    found = bounds(k).expm1() - bounds(k)
    second_order = 2.5 / k  # relative size of the next term: 0.12 at K = 10, r = 0.3, by simulation
    expected = CHI2 / (2 * k)
    assert abs(found.mean() - expected) < 5 * found.std() / math.sqrt(found.numel()) + second_order * expected


@pytest.mark.parametrize("k", [20, 50], ids=str)
def test_variance_of_the_bound_is_chi_squared_over_k(k):
    square = (bounds(k) - bounds(k).mean()).square()
    second_order = 2.5 / k
    assert abs(square.mean() - CHI2 / k) < 5 * square.std() / math.sqrt(square.numel()) + second_order * CHI2 / k


def test_bound_grows_with_particles():
    model, x, _ = correlated_posterior(0.8, num_data=64)
    weights = log_weights(model, MeanField(model, inflation=1.2), x, num_particles=10_000)
    means = [log_mean_exp(weights.reshape(-1, k, 64), 1).mean().item() for k in (1, 10, 100, 10_000)]
    assert means == sorted(means)
    assert means[-1] <= model.log_evidence(x).mean().item() + 5 * 0.01  # standard error at K = 10,000 below 0.01


class Refusing(nn.Module):
    """A decoder that takes (rows, Z) alone, as networks do that were written without particles in mind."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.ConvTranspose2d(4, 1, 2, stride=2)

    def forward(self, z):
        """(rows, 3) -> (rows, 16)."""
        return self.last(self.first(z).view(len(z), 4, 2, 2)).view(len(z), -1)


class Accepting(Refusing):
    """The same arithmetic for any leading dims."""

    def forward(self, z):
        """(..., 3) -> (..., 16)."""
        return super().forward(z.reshape(-1, 3)).reshape(*z.shape[:-1], 16)


def refusing_pair(decoder):
    encoder = nn.Linear(16, 6)

    def model(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        loc, scale = encoder(x.view(len(x), 16)).chunk(2, -1)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide


def test_a_network_that_refuses_leading_dims_is_measured_by_repeated_batches():
    refusing, accepting = Refusing(), Accepting()
    accepting.load_state_dict(refusing.state_dict())
    x = (torch.rand(70, 16) > 0.5).double()
    model, guide = refusing_pair(refusing)
    pair = Pair(model, guide, x)
    assert not pair.in_plate
    same = Pair(refusing_pair(accepting)[0], guide, x)
    assert same.in_plate
    values, _ = same.draw(x, slice(None), 5)
    assert (pair.score(x, values)["x"] - same.score(x, values)["x"]).abs().max() < ROUNDING


def test_a_network_that_silently_mixes_particles_and_data_takes_repeated_batches():
    """(K, N, Z) -> mean over dim 0 raises nothing and is wrong; the try-out holds the two ways to each other."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            shifted = z - z.reshape(-1, len(x), 3)[:1] if z.dim() > 2 else z
            pyro.sample("x", dist.Normal(shifted, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    assert not Pair(model, guide, torch.randn(5, 3)).in_plate


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
def test_plates_inside_a_datum_are_summed(in_plate):
    """Three independent unit Normals per datum, y = z + noise: evidence prod N(y; 0, 2); the guide is the posterior N(y / 2, 1 / 2)."""

    def model(y):
        with pyro.plate("data", len(y), dim=-1), pyro.plate("inner", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.T)

    def guide(y):
        with pyro.plate("data", len(y), dim=-1), pyro.plate("inner", 3, dim=-2):
            pyro.sample("z", dist.Normal(y.T / 2, math.sqrt(0.5)))

    y = torch.randn(9, 3)
    pair = Pair(model, guide, y)
    assert pair.in_plate and pair.nesting == 2
    pair.in_plate = in_plate
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(y).sum(1)
    for terms in stream(pair, y, num_particles=4, seed=0):
        assert (terms.log_weights - exact).abs().max() < ROUNDING


def test_masks_count_and_scales_do_not():
    mask = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=7.0):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            with poutine.mask(mask=mask[: len(x)]):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.where(mask[: len(x)], x / 2, 0.0), torch.where(mask[: len(x)], math.sqrt(0.5), 1.0)))

    x = torch.randn(3)
    exact = torch.where(mask, dist.Normal(0.0, math.sqrt(2)).log_prob(x), 0.0)
    pair = Pair(model, guide, x)
    pair.in_plate = True
    found = next(iter(stream(pair, x, num_particles=5, seed=0))).log_weights
    assert (found - exact).abs().max() < ROUNDING


@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_batches_of_several_tensors_are_taken_row_by_row(structure):
    model, guide, x = linear_gaussian(num_data=80)
    extra = torch.arange(80)
    batch = (x, extra) if structure == "tuple" else {"x": x, "extra": extra}
    pick = (lambda b: b[0]) if structure == "tuple" else (lambda b: b["x"])
    found = log_weights(lambda b: model(pick(b)), lambda b: guide(pick(b)), batch, num_particles=3)
    assert (found - model.log_evidence(x)).abs().max() < ROUNDING


def test_global_sites_are_conditioned_on_one_draw():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(3.0), 0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((mu + x) / 2, math.sqrt(0.5)))

    x = torch.randn(70)
    mu = Pair(model, guide, x, seed=5).globals["mu"]
    exact = dist.Normal(mu, math.sqrt(2)).log_prob(x)
    assert (log_weights(model, guide, x, num_particles=3, seed=5) - exact).abs().max() < ROUNDING
    assert "conditional on a draw of mu" in str(ppvae.analysis.elbo(model, guide, x, num_particles=3, seed=5))


def test_measuring_leaves_generators_modes_and_store_as_they_were():
    network = nn.Sequential(nn.Linear(16, 6), nn.Dropout(0.5), nn.BatchNorm1d(6))

    def guide(x):
        pyro.module("encoder", network)
        loc, scale = network(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    model, _ = refusing_pair(Accepting())
    x = (torch.rand(20, 16) > 0.5).double()
    before, buffer = torch.get_rng_state(), network[2].running_mean.clone()
    log_weights(model, guide, x, num_particles=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in network.modules())
    assert torch.equal(buffer, network[2].running_mean)
    assert len(pyro.get_param_store()) == 0


def test_dropout_is_off_while_measuring():
    dropped = nn.Dropout(0.5)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(dropped(z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    x = torch.randn(10)
    assert (log_weights(model, guide, x, num_particles=8) - dist.Normal(0.0, math.sqrt(2)).log_prob(x)).abs().max() < ROUNDING


def test_a_pair_trained_by_plain_svi_is_measured_in_the_callers_store():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.0))
        log_scale = pyro.param("log_scale", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

    x = torch.randn(200)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO(num_particles=10, vectorize_particles=True))
    for _ in range(400):
        svi.step(x)
    found = ppvae.analysis.log_likelihood(model, guide, x, num_particles=200)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert (found.mean.value - exact.mean()).abs() < 5 * found.mean.mc_se + 1e-6
    assert pyro.param("slope").item() == pytest.approx(0.5, abs=0.05)


def test_particles_are_counted_as_drawn():
    model, _, x = linear_gaussian()
    found = ppvae.analysis.log_likelihood(model, MeanField(model), x, num_particles=130)
    assert found.num_particles.tolist() == [130] * 6


def test_gamma_latents_keep_their_constrained_density():
    model, y, evidence, (shape, rate) = poisson_gamma()

    def guide(y):
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("r", dist.Gamma(shape[: len(y)] if len(y) == 8 else 2.0 + y, 2.5))

    assert (log_weights(model, guide, y, num_particles=3) - evidence).abs().max() < ROUNDING
    assert rate.unique().item() == 2.5


def simple_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def simple_guide(x, name="z"):
    with pyro.plate(f"data of {name}", len(x), dim=-1):
        pyro.sample(name, dist.Normal(x, 1.0))


def unplated_model(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled_model(x):
    with pyro.plate("data", 100, subsample_size=1, dim=-1):
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:1])


@pytest.mark.parametrize(
    ("model", "guide", "error", "message"),
    [
        (simple_model, lambda x: None, errors.ProgramError, "the guide misses the latent site 'z' of the model"),
        (
            simple_model,
            lambda x: [simple_guide(x), simple_guide(x, "w")],
            errors.ProgramError,
            "the guide draws 'w', which the model does not",
        ),
        (
            unplated_model,
            simple_guide,
            errors.ShapeError,
            "site 'z' has batch shape (3,) and lies outside the data plate, needed (3,) inside it",
        ),
        (
            subsampled_model,
            simple_guide,
            errors.ShapeError,
            "site 'z': the plate 'data' at dim -1 has size 1, and the batch has 3 data",
        ),
        (lambda x: None, lambda x: None, errors.ProgramError, "the model observes nothing"),
    ],
    ids=["missing", "extra", "unplated", "subsampled", "nothing observed"],
)
def test_a_broken_contract_is_named(model, guide, error, message):
    with pytest.raises(error) as raised:
        log_weights(model, guide, torch.randn(5), num_particles=2)
    assert raised.value.problem == message


def test_data_outside_the_support_are_named_by_row_column_and_value():
    model = ppvae.models.Bernoulli(ppvae.nn.MLP(2, [], 4), 2)
    guide = ppvae.guides.DiagonalNormal(ppvae.nn.MLP(4, [], 4), 2)
    x = torch.zeros(100, 4)
    x[70, 2] = 0.25
    with pytest.raises(errors.DataError) as raised:
        log_weights(model, guide, x, num_particles=2)
    assert raised.value.where == "row 70, column 2: 0.25"
    assert raised.value.problem.startswith("the data do not fit the likelihood: site 'x' is Bernoulli with support")
    assert len(raised.value.mend) == 2


def test_grey_pixels_under_an_unvalidated_bernoulli_are_relaxed_and_said():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z, validate_args=False).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.warns(errors.RelaxedMeasureWarning):
        found = ppvae.analysis.elbo(model, guide, torch.rand(10, 2), num_particles=2)
    assert found.source.measure == "relaxed (not a probability)"
    binary = ppvae.analysis.elbo(model, guide, (torch.rand(10, 2) > 0.5).double(), num_particles=2)
    assert binary.source.measure == "counting"


def test_a_log_weight_that_is_no_number_names_site_and_datum():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.where(x == 99.0, torch.nan, x), 1.0))

    x = torch.randn(100)
    x[77] = 99.0
    with pytest.raises(errors.DivergedError, match="the log density of site 'z' is not a number") as raised:
        log_weights(simple_model, guide, x, num_particles=2)
    assert raised.value.where.startswith("guide, datum 77")
