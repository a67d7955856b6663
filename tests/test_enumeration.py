"""Discrete latents summed out: every joint state once, in any layout, in blocks; and the densities that are left of a mixed model."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pairs
from ppvae.coordinates import Coordinates
from ppvae.enumeration import States
from ppvae.errors import FamilyError
from ppvae.pair import Pair
from ppvae.programs import measuring, prior_of

ROUNDING = 1e-11  # a few hundred times the rounding of sums of ten numbers near 10
WEIGHT = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64).reshape(10, 3)


def pair_of(model, x):
    return Pair(model, prior_of(model), x)


def summed(model, x, **options):
    """log sum over states, (N,)."""
    pair = pair_of(model, x)
    with measuring(model):
        return States(pair, x).log_sum(x, {}, **options)[0]


def switches(num=10, prob=0.3, decoder=None):
    """z in {0, 1}^num, x | z ~ N(W z, 1)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.full((num,), prob)).to_event(1))
            pyro.sample("x", dist.Normal((decoder or (lambda z: z @ WEIGHT[:num]))(z), 1.0).to_event(1), obs=x)

    return model


def by_hand(x, num=10, prob=0.3):
    """The same sum, state by state."""
    terms = []
    for z in itertools.product([0.0, 1.0], repeat=num):
        on = sum(z)
        log_prior = on * math.log(prob) + (num - on) * math.log(1 - prob)
        terms.append(log_prior + dist.Normal(torch.tensor(z) @ WEIGHT[:num], 1.0).log_prob(x).sum(-1))
    return torch.logsumexp(torch.stack(terms), 0)


def test_ten_switches_are_summed_over_all_1024_states():
    x = pairs.real(4)
    assert (summed(switches(), x) - by_hand(x)).abs().max() < ROUNDING


def test_a_decoder_that_takes_no_particles_from_the_left_gives_the_same_sum():
    x = pairs.real(4)
    model = switches(decoder=lambda z: z.view(len(z), 10) @ WEIGHT)
    assert not pair_of(model, x).in_plate
    assert (summed(model, x) - by_hand(x)).abs().max() < ROUNDING


@pytest.mark.parametrize("states_at_once", [1, 7, 64], ids=["one", "seven", "all"])
def test_how_many_states_run_at_once_changes_nothing(states_at_once):
    x, model = pairs.real(4), switches(6)
    assert (summed(model, x, states_at_once=states_at_once) - by_hand(x, 6)).abs().max() < ROUNDING


def test_a_categorical_mixture_is_the_sum_of_its_components():
    model, _ = pairs.mixture("nobody")
    x = pairs.real()
    components = dist.Normal(torch.tensor([-1.0, 0.2, 1.5]), 1.0).log_prob(x[:, :1]) + torch.tensor([0.5, 0.3, 0.2]).log()
    assert (summed(model, x) - torch.logsumexp(components, -1)).abs().max() < ROUNDING


def test_a_site_given_another_is_summed_by_the_chain_rule():
    first, second = torch.tensor([0.2, 0.8]), torch.tensor([[0.1, 0.3, 0.6], [0.5, 0.4, 0.1]])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Categorical(first))
            b = pyro.sample("b", dist.Categorical(second[a]))
            pyro.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x[:, 0])

    x = pairs.real()
    terms = [first[a].log() + second[a, b].log() + dist.Normal(a + 2.0 * b, 1.0).log_prob(x[:, 0]) for a in range(2) for b in range(3)]
    assert (summed(model, x) - torch.logsumexp(torch.stack(terms), 0)).abs().max() < ROUNDING


def test_two_sites_of_the_same_size_take_their_states_independently():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.2)))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.6)))
            pyro.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x[:, 0])

    x = pairs.real()
    prior = torch.tensor([0.8 * 0.4, 0.2 * 0.4, 0.8 * 0.6, 0.2 * 0.6])  # of a + 2 b = 0, 1, 2, 3
    terms = dist.Normal(torch.arange(4.0), 1.0).log_prob(x[:, :1]) + prior.log()
    assert (summed(model, x) - torch.logsumexp(terms, -1)).abs().max() < ROUNDING


def test_a_one_hot_site_in_a_plate_inside_the_datum_is_a_mixture_a_column():
    means, weights = torch.tensor([-1.0, 2.0]), torch.tensor([0.25, 0.75])

    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("columns", 3, dim=-2):
            c = pyro.sample("c", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Normal((c * means).sum(-1), 1.0), obs=x.mT)

    x = pairs.real()
    columns = torch.logsumexp(dist.Normal(means, 1.0).log_prob(x[..., None]) + weights.log(), -1)
    assert States(pair_of(model, x), x).num_states == 2**3
    assert (summed(model, x) - columns.sum(-1)).abs().max() < ROUNDING


def test_probabilities_that_differ_from_datum_to_datum_are_each_datum_s_own():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(torch.sigmoid(x[:, 1])))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x[:, 0])

    x = pairs.real()
    p = torch.sigmoid(x[:, 1])
    on, off = (dist.Normal(c, 1.0).log_prob(x[:, 0]).exp() for c in (1.0, 0.0))
    assert (summed(model, x) - (p * on + (1 - p) * off).log()).abs().max() < ROUNDING


def uniform_over(num_states):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(num_states)))
            pyro.sample("x", dist.Normal((c == 0).to(x), 1.0), obs=x[:, 0])

    return model


def test_65536_states_are_summed():
    x = pairs.real(2)
    share = 1 / 65536
    on, off = (dist.Normal(c, 1.0).log_prob(x[:, 0]).exp() for c in (1.0, 0.0))
    assert (summed(uniform_over(65536), x) - (share * on + (1 - share) * off).log()).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("model", "count"), [(uniform_over(65537), "65,537"), (switches(17, decoder=lambda z: z[..., :3]), "131,072")], ids=["one", "sites"]
)
def test_more_states_are_refused_with_their_number(model, count):
    x = pairs.real(2)
    with pytest.raises(FamilyError, match=f"{count} joint states"):
        States(pair_of(model, x), x)


def counts_given(total):
    """c ~ Binomial(total(x, draw of a coin), 1/2)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            coin = pyro.sample("coin", dist.Bernoulli(torch.tensor(0.5)))
            c = pyro.sample("c", dist.Binomial(total(x, coin), 0.5))
            pyro.sample("x", dist.Normal(c + coin, 1.0), obs=x[:, 0])

    return model


@pytest.mark.parametrize(
    ("total", "num_data"),
    [(lambda x, coin: 1 + (x[:, 0] > 0).to(x), 20), (lambda x, coin: 1 + coin, 20), (lambda x, coin: 1 + coin, 1)],
    ids=["the datum", "another latent", "another latent, one datum"],
)
def test_a_support_that_hangs_on_something_is_refused_by_name(total, num_data):
    x = pairs.real(num_data)
    with pytest.raises(FamilyError, match="support of the discrete latent site 'c' hangs on"):
        States(pair_of(counts_given(total), x), x)


def test_an_infinite_support_is_refused_by_name():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Poisson(torch.tensor(2.0)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x[:, 0])

    x = pairs.real()
    with pytest.raises(FamilyError, match=r"'c' \(Poisson\) has no finite support"):
        States(pair_of(model, x), x)


def test_a_masked_discrete_latent_is_refused_by_name():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)).mask(x[:, 0] > 0))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x[:, 0])

    x = pairs.real()
    with pytest.raises(FamilyError, match="'c' is masked"):
        States(pair_of(model, x), x)


def mixed(decoder=None, num=2):
    """c ~ Bernoulli^num, r ~ LogNormal(sum c, 1), x | c, r ~ N(r + (W c)_j, 1)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(torch.full((num,), 0.3)).to_event(1))
            r = pyro.sample("r", dist.LogNormal(c.sum(-1), 1.0))
            pyro.sample("x", dist.Normal((decoder or (lambda z: z @ WEIGHT[:num]))(c) + r[..., None], 1.0).to_event(1), obs=x)

    return model


def density_by_hand(x, u, num=2):
    """log sum over c of p(x, c, r = exp u) + u at u, (K, n)."""
    terms = []
    for c in itertools.product([0.0, 1.0], repeat=num):
        prior = sum(c) * math.log(0.3) + (num - sum(c)) * math.log(0.7) + dist.Normal(sum(c), 1.0).log_prob(u)
        terms.append(prior + dist.Normal(torch.tensor(c) @ WEIGHT[:num] + u.exp()[..., None], 1.0).log_prob(x).sum(-1))
    return torch.logsumexp(torch.stack(terms), 0)


@pytest.mark.parametrize("decoder", [None, lambda z: z.view(len(z), 2) @ WEIGHT[:2]], ids=["particle plate", "repeated"])
def test_density_and_gradient_of_the_continuous_part_are_those_of_the_sum(decoder):
    x, u = pairs.real(4), torch.randn(5, 4, 1)
    coordinates = Coordinates(pair_of(mixed(decoder), x), x, enumerate_discrete=True)
    free = u.clone().requires_grad_(True)
    expected = density_by_hand(x, free[..., 0])
    (slope,) = torch.autograd.grad(expected.sum(), free)
    found, gradient = coordinates.gradient(x, u)
    assert (coordinates.dim, [site.name for site in coordinates.sites]) == (1, ["r"])
    assert (found - expected).abs().max() < ROUNDING
    assert (gradient - slope).abs().max() < ROUNDING
    assert (coordinates.log_density(x, u) - expected).abs().max() < ROUNDING


def test_gradient_in_many_blocks_is_the_gradient_of_log_density(monkeypatch):
    x, u = pairs.real(4), torch.randn(3, 4, 1)
    monkeypatch.setattr("ppvae.enumeration.ROWS_AT_ONCE", 3 * 4 * 5)  # five of 16 states at once
    coordinates = Coordinates(pair_of(mixed(num=4), x), x, enumerate_discrete=True)
    free = u.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(coordinates.log_density(x, free).sum(), free)
    assert len(coordinates.states.blocks(12)) == 4
    assert (coordinates.gradient(x, u)[1] - slope).abs().max() < ROUNDING


def test_discrete_latents_without_the_option_are_refused_with_the_way_out():
    x = pairs.real(4)
    with pytest.raises(FamilyError, match="'c' is discrete .* no unconstrained coordinates(.|\n)*enumerate_discrete=True"):
        Coordinates(pair_of(mixed(), x), x)
