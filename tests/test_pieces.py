"""Draws of a block that are made in pieces are the block's own; what draws otherwise is refused."""

from __future__ import annotations

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

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
}
SHELF = {
    "FullRankNormal": lambda: guides.FullRankNormal(MLP(6, [8], 5), 2),
    "LowRankNormal": lambda: guides.LowRankNormal(MLP(6, [8], 6), 2, 1),
    "Mixture": lambda: guides.Mixture(MLP(6, [8], 20), 2),
    "full Mixture": lambda: guides.Mixture(MLP(6, [8], 24), 2, covariance="full"),
    "Flow": lambda: guides.Flow(MLP(6, [8], 7), 2, 3),
    "InverseAutoregressive": lambda: guides.InverseAutoregressive(MLP(6, [8], 7), 2, 3),
    "Spline": lambda: guides.Spline(MLP(6, [8], 7), 2, 3),
}


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


def test_a_piece_runs_the_guide_on_its_own_rows():
    """64 rows in 16 pieces, after one row that tells the way."""
    x = pairs.real(64)
    pair = Pair(*ELEMENTWISE["Normal"], x)
    sizes = sizes_of(pair, x)
    with cut_into(16):
        drawn(pair, x, 3)
    assert sizes == [1, *[4] * 16]


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


def told(number, x):
    """A guide whose second site there is for some data only."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))
        if x[0, 0] == number:
            pyro.sample("more", dist.Normal(x[:, 0], 1.0), infer={"is_auxiliary": True})


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


SCALAR = dist.Normal(torch.tensor(0.0), 1.0)
REFUSED = {
    "Gamma": (pair_of(lambda x: dist.Gamma(x[:, :2].exp(), 1.0).to_event(1), POSITIVE), "those of site 'z' (Gamma)"),
    "Beta": (pair_of(lambda x: dist.Beta(x[:, 0].exp(), 1.0), dist.Beta(torch.tensor(1.0), 1.0)), "those of site 'z' (Beta)"),
    "StudentT": (pair_of(lambda x: dist.StudentT(3.0, x[:, :2]).to_event(1), NORMAL), "those of site 'z' (StudentT)"),
    "Categorical": (pair_of(lambda x: dist.Categorical(logits=x), dist.Categorical(torch.ones(3))), "those of site 'z' (Categorical)"),
    "VonMises": (pair_of(lambda x: dist.VonMises(x[:, 0], 2.0), dist.VonMises(torch.tensor(0.0), 1.0)), "those of site 'z' (VonMises)"),
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
