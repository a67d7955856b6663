"""Draws of a block that are made in pieces are the block's own; what draws otherwise is refused."""

from __future__ import annotations

import contextlib
import math
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma

import pairs
import ppvae
from ppvae import guides, memory, models, noise
from ppvae.local import LocalPosterior
from ppvae.memory import NotInPieces
from ppvae.nn import MLP
from ppvae.pair import Pair
from ppvae.programs import measuring

NAN = float("nan")


def pair_of(posterior, prior):
    """One site z given a row of x (N, 3), elementwise, so that fewer rows at once round no number otherwise."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            mean = z.sum(-1, keepdim=True) if prior.event_dim else z[..., None]
            pyro.sample("x", dist.Normal(mean + torch.zeros(3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", posterior(x))

    return model, guide


def layered():
    """z1 | z2, a global scale w, an auxiliary site before them and two draws in a plate inside each datum."""

    def model(x):
        w = pyro.sample("w", dist.LogNormal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.tensor(0.0), w))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            with pyro.plate("inside", 2, dim=-2):
                parts = pyro.sample("parts", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z1 + parts.sum(-2, keepdim=True), 1.0), obs=x[:, 0])

    def guide(x):
        w = pyro.sample("w", dist.LogNormal(torch.tensor(0.5), 0.1))
        with pyro.plate("data", len(x), dim=-1):
            aux = pyro.sample("aux", dist.Laplace(x[:, 0], w), infer={"is_auxiliary": True})
            z2 = pyro.sample("z2", dist.Normal(0.5 * aux, w))
            z1 = pyro.sample("z1", dist.Laplace(z2 * x[:, 1], 1.0 + z2.square()))
            with pyro.plate("inside", 2, dim=-2):
                pyro.sample("parts", dist.Normal(z1, 1.0))

    return model, guide


def alone(posterior):
    """The site is the guide's only: any distribution will do."""
    model, _ = pair_of(None, dist.Normal(torch.tensor(0.0), 1.0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", posterior(x), infer={"is_auxiliary": True})

    return model, guide


def follow(x):
    """Sites that take as many random numbers as draws before them ask for, in a plate inside each datum too, among others that do not."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        rate = sample("rate", dist.Gamma(x[:, 0].exp(), 2.0))
        height = sample("height", dist.Normal(rate, 0.1 + rate))
        which = sample("which", dist.Categorical(logits=height[..., None] * torch.arange(3.0)))
        angle = sample("angle", dist.VonMises(height, 1.0 + which))
        with pyro.plate("inside", 2, dim=-2):
            share = sample("share", dist.Beta(1.0 + which, 1.0 + angle.square()))
            sample("count", dist.Poisson(3.0 * share))
        sample("last", dist.Laplace(angle, 1.0))


def careful(x):
    """A program that lives with errors of its own."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        try:
            sample("y", dist.Gamma(x[:, 0].exp(), 1.0))
        except Exception:
            sample("instead", dist.Gamma(x[:, 0].exp(), 1.0))


def sample(name, fn):
    return pyro.sample(name, fn, infer={"is_auxiliary": True})


def by_columns(x):
    """The same numbers, column after column in memory."""
    return x.T.contiguous().T


class Around(dist.TorchDistribution):
    """Asks for numbers in dimensions before the batch's, then behind them."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = torch.distributions.constraints.real

    def __init__(self, loc, more=7):
        self.loc, self.more = loc, more
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape), self.more)

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + torch.rand(self.more, *self.loc.shape)[0] + torch.rand(*self.loc.shape, self.more)[..., 0]

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)


class Compound(Around):
    """Parameters that hang on what was drawn before at the same site, by as many numbers as parameters ask for and not."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return torch.poisson(torch.randn(self.loc.shape).exp() + torch._standard_gamma(self.loc.exp()))


class Doubled(Around):
    """Writes to what it was given."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return torch._standard_gamma(self.loc.exp()).mul_(2.0)


NORMAL = dist.Normal(torch.zeros(2), 1.0).to_event(1)
POSITIVE = dist.LogNormal(torch.zeros(2), 1.0).to_event(1)
SIMPLEX = dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(3))
ELEMENTWISE = {
    "Normal": pair_of(lambda x: dist.Normal(x[:, :2], x[:, 1:].exp()).to_event(1), NORMAL),
    "Normal, columns first": pair_of(lambda x: dist.Normal(x.T.contiguous().T[:, :2], 1.0).to_event(1), NORMAL),
    "Normal, masked": pair_of(lambda x: dist.Normal(x[:, :2], 1.0).to_event(1).mask(x[:, 0] > 0), NORMAL),
    "Normal, the same for all": pair_of(lambda x: dist.Normal(torch.tensor(0.3), 1.0), dist.Normal(torch.tensor(0.0), 1.0)),
    "MultivariateNormal": pair_of(lambda x: dist.MultivariateNormal(x[:, :2], scale_tril=torch.eye(2)), NORMAL),
    "Laplace": pair_of(lambda x: dist.Laplace(x[:, :2], x[:, 1:].exp()).to_event(1), NORMAL),
    "Cauchy": pair_of(lambda x: dist.Cauchy(x[:, :2], 1.0).to_event(1), NORMAL),
    "Uniform": pair_of(lambda x: dist.Uniform(x[:, :2], x[:, :2] + 1).to_event(1), NORMAL),
    "LogNormal": pair_of(lambda x: dist.LogNormal(x[:, :2], 1.0).to_event(1), POSITIVE),
    "Weibull": pair_of(lambda x: dist.Weibull(x[:, :2].exp(), x[:, 1:].exp()).to_event(1), POSITIVE),
    "RelaxedOneHotCategorical": pair_of(lambda x: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=x), SIMPLEX),
    "Bernoulli": pair_of(lambda x: dist.Bernoulli(logits=x[:, 0]), dist.Bernoulli(torch.tensor(0.5))),
    "Bernoulli, columns first": pair_of(
        lambda x: dist.Bernoulli(logits=x.T.contiguous().T).to_event(1), dist.Bernoulli(torch.full((3,), 0.5)).to_event(1)
    ),
    "layers": layered(),
    "Gamma": alone(lambda x: dist.Gamma(x[:, :2].exp(), x[:, 1:].exp()).to_event(1)),
    "Gamma, masked": alone(lambda x: dist.Gamma(x[:, 0].exp(), 1.0).mask(x[:, 0] > 0)),
    "log Gamma": alone(lambda x: dist.TransformedDistribution(dist.Gamma(x.exp(), 1.0), [dist.transforms.ExpTransform().inv]).to_event(1)),
    "Beta": alone(lambda x: dist.Beta(x[:, 0].exp(), 1.0)),
    "Dirichlet": alone(lambda x: dist.Dirichlet(by_columns(x).exp())),
    "StudentT": alone(lambda x: dist.StudentT(3.0, x[:, :2]).to_event(1)),
    "Poisson": alone(lambda x: dist.Poisson(5.0 * x[:, 0].exp())),
    "Binomial": alone(lambda x: dist.Binomial(30, x[:, 0].sigmoid())),
    "NegativeBinomial": alone(lambda x: dist.NegativeBinomial(5.0, x[:, 0].sigmoid())),
    "zero-inflated": alone(lambda x: dist.ZeroInflatedPoisson(x[:, 0].exp(), gate=torch.tensor(0.3))),
    "VonMises": alone(lambda x: dist.VonMises(x, x.exp()).to_event(1)),
    "Rejector": alone(lambda x: RejectionStandardGamma(1.0 + x.exp()).to_event(1)),
    "AsymmetricLaplace": alone(lambda x: dist.AsymmetricLaplace(x, torch.tensor(1.0), torch.tensor(2.0)).to_event(1)),
    "Categorical": alone(lambda x: dist.Categorical(logits=x)),
    "Categorical, columns first": alone(lambda x: dist.Categorical(probs=by_columns(x.exp()))),
    "Categorical, event first": alone(lambda x: dist.Categorical(probs=(x[:, :, None] * torch.arange(2.0)).exp().mT).to_event(1)),
    "OneHotCategorical": alone(lambda x: dist.OneHotCategorical(logits=x)),
    "Multinomial": alone(lambda x: dist.Multinomial(7, logits=x)),
    "mixture of Normal": alone(lambda x: dist.MixtureSameFamily(dist.Categorical(logits=x), dist.Normal(x, x.exp()))),
    "mixture of VonMises": alone(lambda x: dist.MixtureSameFamily(dist.Categorical(logits=x), dist.VonMises(x, 1.0))),
    "Poisson given Gamma and Normal": alone(lambda x: Compound(x[:, 0])),
    "written to": alone(lambda x: Doubled(x[:, 0])),
    "before and behind": alone(lambda x: Around(x[:, 0])),
    "one after the other": (alone(None)[0], follow),
    "errors caught": (alone(None)[0], careful),
}
SHELF = {
    "FullRankNormal": lambda: guides.FullRankNormal(MLP(6, [8], 5), 2),
    "LowRankNormal": lambda: guides.LowRankNormal(MLP(6, [8], 6), 2, 1),
    "Mixture": lambda: guides.Mixture(MLP(6, [8], 20), 2),
    "full Mixture": lambda: guides.Mixture(MLP(6, [8], 24), 2, covariance="full"),
    "Flow": lambda: guides.Flow(MLP(6, [8], 7), 2, 3),
    "InverseAutoregressive": lambda: guides.InverseAutoregressive(MLP(6, [8], 7), 2, 3),
    "Spline": lambda: guides.Spline(MLP(6, [8], 7), 2, 3),
    "Gamma, VonMises, Categorical": lambda: Networks(),
}


class Networks(torch.nn.Module):
    """Each site's parameters come from a network of the draw before."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = MLP(6, [8], 3), MLP(3, [8], 3), MLP(3, [8], 3)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = sample("rate", dist.Gamma(self.first(x).exp(), 1.0).to_event(1))
            angle = sample("angle", dist.VonMises(self.second(rate), 1.0).to_event(1))
            sample("which", dist.MixtureSameFamily(dist.Categorical(logits=self.third(angle)), dist.Gamma(angle.exp(), 1.0)))


@contextlib.contextmanager
def cut_into(number):
    """As after so many failures for want of memory."""
    cut = memory.Cut()
    cut.draws.number = number
    token = memory._cut.set(cut)
    try:
        yield
    finally:
        memory._cut.reset(token)


def drawn(pair, x, num_particles, program="guide"):
    """Values and log densities by name, and what the generator gives next."""
    with noise.seeded(7, "pieces"), measuring(pair.model, pair.guide):
        if program == "prior":
            found = pair.drawn_from_prior(x, num_particles)
        else:
            values, log_q = pair.draw(x, slice(0, len(x)), num_particles)
            found = values | {f"log q {name}": density for name, density in log_q.items()}
        return found | {"next": torch.rand(3)}


def sizes_of(pair, x):
    """Guide and data, with the rows of every call of the guide."""
    sizes = []
    guide, pair.guide = pair.guide, lambda x: (sizes.append(len(x)), guide(x))[1]
    return sizes


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_draws_in_pieces_are_bit_for_bit_those_of_the_block(kind, in_plate):
    """3 data and 2 particles: in two pieces, by rows, and one by one."""
    x = pairs.real(3)
    pair = Pair(*ELEMENTWISE[kind], x)
    assert pair.in_plate  # so that both are tried
    pair.in_plate = in_plate
    whole = drawn(pair, x, 2)
    for pieces in (2, 3, 6):
        with cut_into(pieces):
            found = drawn(pair, x, 2)
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole), pieces


@pytest.mark.parametrize("kind", SHELF)
def test_draws_of_the_shelfs_guides_in_pieces_are_those_of_the_block(kind):
    x = pairs.binary(5)
    pair = Pair(models.Bernoulli(MLP(2, [8], 6), latent_dim=2), SHELF[kind](), x)
    whole = drawn(pair, x, 4)
    for pieces in (2, 7):
        with cut_into(pieces):
            found = drawn(pair, x, 4)
        assert all((found[name] - whole[name]).abs().max() < 1e-9 for name in whole)  # rounding: matrices of other sizes
        assert torch.equal(found["next"], whole["next"])


@pytest.mark.parametrize(("num_data", "num_particles"), [(64, 3), (37, 64), (1, 64), (1, 1), (64, 1)])
def test_blocks_of_any_size_are_cut(num_data, num_particles):
    x = pairs.real(num_data)
    pair = Pair(*ELEMENTWISE["Normal"], x)
    whole = drawn(pair, x, num_particles)
    with cut_into(16):
        found = drawn(pair, x, num_particles)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
@pytest.mark.parametrize("rows", [32, pytest.param(5, marks=pytest.mark.soak), 1])
def test_sites_of_every_kind_after_one_another_are_the_blocks(rows, in_plate):
    """64 data and 2 particles; 12 of them one by one."""
    x = pairs.real(64 if rows > 1 else 12)
    pair = Pair(*ELEMENTWISE["one after the other"], x)
    pair.in_plate = in_plate
    whole = drawn(pair, x, 2)
    with cut_into(math.ceil(64 / rows) if rows > 1 else 24):
        found = drawn(pair, x, 2)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


RUNS = {  # of the guide: a look at one datum, one more at the order of memory, then once and once more for each site that needs all pieces
    "Normal": [1, *[4] * 4],
    "Categorical": [1, 2, *[4] * 4],
    "Beta": [1, *[4] * 4 * 2],
    "VonMises": [1, *[4] * 4 * 2],
    "one after the other": [1, 2, *[4] * 4 * 5],
}


@pytest.mark.parametrize(("kind", "expected"), RUNS.items(), ids=RUNS)
def test_a_program_is_run_once_more_for_each_site_that_needs_all_pieces(kind, expected):
    """16 data in four pieces."""
    x = pairs.real(16)
    pair = Pair(*ELEMENTWISE[kind], x)
    sizes = sizes_of(pair, x)
    with cut_into(4):
        drawn(pair, x, 3)
    assert sizes == expected


def test_draws_from_the_prior_are_cut_too():
    x = pairs.real(5)
    pair = Pair(*ELEMENTWISE["layers"], x)
    whole = drawn(pair, x, 4, "prior")
    with cut_into(20):
        found = drawn(pair, x, 4, "prior")
    assert all(torch.equal(found[name], whole[name]) for name in whole) and "z1" in found


def test_local_posteriors_keep_their_rows():
    """The row of each datum is its own, whichever piece it is in."""
    x = pairs.real(5)
    model, _ = ELEMENTWISE["Normal"]
    local = LocalPosterior({"z": ppvae.families.DiagonalNormal(2)}, {"z": torch.arange(20.0).reshape(5, 4) / 20}, "local")
    for rows in (slice(0, 5), torch.arange(5)):
        pair = Pair(model, local, x)
        with noise.seeded(7, "rows"), measuring(model):
            whole = pair.draw(x, rows, 3)[0]["z"]
        with cut_into(15), noise.seeded(7, "rows"), measuring(model):
            found = pair.draw(x, rows, 3)[0]["z"]
        assert torch.equal(found, whole)


def outside(x):
    e = torch.randn(len(x), 2)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(e, 1.0).to_event(1))


def hidden(x):
    with pyro.plate("data", len(x), dim=-1):
        with poutine.block():
            e = pyro.sample("e", dist.Normal(x[:, :2], 1.0).to_event(1))
        pyro.sample("z", dist.Normal(e, 1.0).to_event(1))


class Pyros(dist.TorchDistribution):
    """Normal about loc, without an ``expand`` of its own: Pyro's draws in an order of its own."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = torch.distributions.constraints.real
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + torch.randn(sample_shape + self.loc.shape)

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)


class Shuffled(Pyros):
    """Particles are its last dimension where the noise is made: rows and particles are not where they seem to be."""

    def expand(self, batch_shape, _instance=None):
        return Shuffled(self.loc.expand(batch_shape))

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + torch.randn(self.loc.movedim(-1, 0).shape).movedim(0, -1)


def own_generator(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Seeded(x[:, 0]))


class Seeded(Shuffled):
    def expand(self, batch_shape, _instance=None):
        return Seeded(self.loc.expand(batch_shape))

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + torch.empty(self.loc.shape).normal_(generator=torch.Generator().manual_seed(0))


class Columns(Shuffled):
    """Its random numbers fill a memory whose rows and columns are changed."""

    def expand(self, batch_shape, _instance=None):
        return Columns(self.loc.expand(batch_shape))

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + torch.empty(self.loc.movedim(-1, 0).shape).movedim(0, -1).normal_()


class SeededCounts(Around):
    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return torch.poisson(self.loc.exp(), torch.Generator().manual_seed(0))


class Broadcast(Around):
    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return torch.normal(self.loc, self.loc[..., :1].exp().squeeze(0))


class TwoOrders(Around):
    """Asks for the same twice, and has its chances in another order of memory the second time."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        chances = torch.stack([self.loc, 2 * self.loc], -1).exp()
        again = chances.mT.contiguous().mT if chances.dim() == 2 else chances.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        return self.loc + dist.Categorical(probs=chances).sample() - dist.Categorical(probs=again).sample()


class Impatient(Around):
    """Draws until each is below a half, and is not made for going on when all are."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        value, done = self.loc, torch.zeros(self.loc.shape, dtype=torch.bool)
        while not done.all():
            if (~done).sum() == 0:
                raise RuntimeError("nothing is left to draw")
            trial = torch.rand(self.loc.shape)
            value, done = torch.where(done, value, self.loc + trial), done | (trial < 0.5)
        return value


class AlsoShuffled(Around):
    """Asks for as many again in another order, which shows where rows and particles are not as many."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + torch.randn(self.loc.shape) + torch.randn(self.loc.movedim(-1, 0).shape).movedim(0, -1)


class OneByOne(Around):
    """Asks for as many times as it has elements."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + sum(torch.rand(self.loc.shape) for _ in range(self.loc.numel()))


class Unable(Around):
    """Has no draws for three particles of one datum."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        if self.loc.shape == (3, 1):
            raise LookupError("of the sampler")
        return self.loc + torch.rand(self.loc.shape)


SCALAR = dist.Normal(torch.tensor(0.0), 1.0)
REFUSED = {
    "drawn by subsets": (
        alone(lambda x: dist.SineBivariateVonMises(x[:, 0], x[:, 1], *torch.tensor([1.0, 1.0, 0.1]))),
        "those of site 'y' (SineBivariateVonMises)",
    ),
    "a loop that ends": (alone(lambda x: Impatient(x[:, 0])), "those of site 'y' (Impatient)"),
    "rows last the second time": (alone(lambda x: AlsoShuffled(x[:, 0])), "those of site 'y' (AlsoShuffled)"),
    "one request an element": (alone(lambda x: OneByOne(x[:, 0])), "those of site 'y' (OneByOne)"),
    "parameters of two shapes": (alone(lambda x: Broadcast(x[:, 0])), "those of site 'y' (Broadcast)"),
    "two orders of memory": (alone(lambda x: TwoOrders(x[:, 0])), "those of site 'y' (TwoOrders)"),
    "counts by a generator of its own": (alone(lambda x: SeededCounts(x[:, 0])), "those of site 'y' (SeededCounts)"),
    "expanded by Pyro": (pair_of(lambda x: Pyros(x[:, 0]), SCALAR), "those of site 'z' (Pyros)"),
    "rows last": (pair_of(lambda x: Shuffled(x[:, 0]), SCALAR), "those of site 'z' (Shuffled)"),
    "memory in another order": (pair_of(lambda x: Columns(x[:, 0]), SCALAR), "those of site 'z' (Columns)"),
    "a generator of its own": ((pair_of(None, SCALAR)[0], own_generator), "those of site 'z' (Seeded)"),
    "outside": ((pair_of(None, NORMAL)[0], outside), "those outside the sites of the data plate (aten.randn.default)"),
    "hidden": ((pair_of(None, NORMAL)[0], hidden), "those outside the sites of the data plate (aten.normal_.default)"),
}


@pytest.mark.parametrize(("programs", "named"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("pieces", [2, 15])
def test_draws_that_pieces_would_change_are_refused(programs, named, pieces):
    x = pairs.real(5)
    pair = Pair(*programs, x)
    with cut_into(pieces), pytest.raises(NotInPieces) as raised:
        drawn(pair, x, 3)
    assert str(raised.value) == f"{named} cannot be made in pieces"


def normal(x):
    return dist.Normal(x[:, 0], 1.0)


def gamma(x):
    return dist.Gamma(x[:, 0].exp(), 1.0)


def von_mises(x):
    return dist.VonMises(x[:, 0], 1.0)


def binomial(x):
    return dist.Binomial(9, x[:, 0].sigmoid())


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("kinds", [[], [gamma], [binomial], [von_mises]], ids=["alone", "gamma", "binomial", "von_mises"])
@pytest.mark.parametrize("kind", [normal, gamma, von_mises])
def test_sites_that_are_not_the_same_in_each_piece_are_refused(kind, kinds, row):
    """One of five data, each a piece, has a site that the others have not, or have after another."""
    x = pairs.real(5)

    def guide(rows):
        with pyro.plate("data", len(rows), dim=-1):
            pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            sites = [("more", kind), *(("other", other) for other in kinds)]
            if rows[0, 0] != x[row, 0]:
                sites = sites[:0:-1] + sites[:1] * len(kinds)
            for name, other in sites:
                sample(name, other(rows))

    pair = Pair(alone(None)[0], guide, x)
    with cut_into(5), pytest.raises(NotInPieces) as raised:
        drawn(pair, x, 3)
    assert str(raised.value) in [f"those of site '{name}' take other random numbers from piece to piece" for name in ("more", "other")]


def test_where_the_batch_lies_must_be_seen():
    """3 particles for 3 rows of the first piece: among numbers of shape (3, 3, 3) those before an element look as those behind it."""
    x = pairs.real(5)
    pair = Pair(*alone(lambda x: Around(x[:, 0], more=3)), x)
    whole = drawn(pair, x, 3)
    with cut_into(5):
        found = drawn(pair, x, 3)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    with cut_into(2), pytest.raises(NotInPieces) as raised:
        drawn(pair, x, 3)
    assert str(raised.value) == "those of site 'y' (Around) cannot be made in pieces"


def test_what_tells_the_order_of_memory_must_fit():
    """The order of a Categorical's random numbers is seen from two data at least."""
    x = pairs.real(5)
    model, guide = ELEMENTWISE["Categorical"]
    pair = Pair(model, guide, x)

    def narrow(x):
        if len(x) > 1:
            raise MemoryError
        guide(x)

    pair.guide = narrow
    with cut_into(15), pytest.raises(NotInPieces) as raised:
        drawn(pair, x, 3)
    assert str(raised.value) == "the order of those of site 'y' is told by 2 data and 3 particles at once, which do not fit"


def test_errors_of_what_tells_the_order_of_memory_are_the_programs_own():
    x = pairs.real(5)
    model, guide = ELEMENTWISE["Categorical"]
    pair = Pair(model, guide, x)

    def unable(x):
        if len(x) == 2:
            raise LookupError("of the program")
        guide(x)

    pair.guide = unable
    with cut_into(15), pytest.raises(LookupError, match="of the program"):
        drawn(pair, x, 3)


@pytest.mark.parametrize("error", [LookupError("of the program"), MemoryError()], ids=["its own", "memory"])
def test_errors_behind_a_loop_are_the_programs_own(error):
    x = pairs.real(5)

    def guide(rows):
        with pyro.plate("data", len(rows), dim=-1):
            pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            sample("y", von_mises(rows))
            if len(rows) == 1 and rows[0, 0] == x[3, 0]:
                raise error

    with cut_into(5), pytest.raises(type(error)) as raised:
        drawn(Pair(alone(None)[0], guide, x), x, 3)
    assert raised.value is error


def test_errors_of_a_sampler_that_went_its_own_way_are_its_own():
    x = pairs.real(5)
    with cut_into(5), pytest.raises(LookupError, match="of the sampler"):
        drawn(Pair(*alone(lambda x: Unable(x[:, 0])), x), x, 3)


def test_a_piece_that_waits_keeps_nothing_of_its_networks():
    x = pairs.real(6)
    kept = []

    def guide(x):
        assert not [hidden for hidden in kept if hidden() is not None]
        hidden = x.exp() + 1.0
        kept.append(weakref.ref(hidden))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            sample("y", dist.VonMises(hidden.sum(-1), 1.0))

    pair = Pair(alone(None)[0], guide, x)
    del kept[:]
    with cut_into(3):
        drawn(pair, x, 2)
    assert len(kept) == 1 + 2 * 3
