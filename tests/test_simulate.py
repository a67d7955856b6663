"""Simulation against closed forms: linear Gaussian moments, exact decoding, and nothing of the caller's touched."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae import guides, models, simulate
from ppvae.errors import ProgramError, ShapeError
from ppvae.families import FullRankNormal

K = 4000


class Exact(nn.Module):
    """Encoder of the exact posterior of a LinearGaussian, for the full-rank family."""

    def __init__(self, model):
        super().__init__()
        self.model, self.family = model, FullRankNormal(2)

    def forward(self, x):
        posterior = self.model.posterior(x)
        return self.family.row(posterior.loc, posterior.scale_tril)


@pytest.fixture
def pair():
    model = models.LinearGaussian(3, 2, scale=0.5)
    return model, guides.FullRankNormal(Exact(model), 2), torch.randn(5, 3)


class Refuses(nn.Module):
    """A linear map that takes (M, features) and nothing else, and at most 1024 rows."""

    def __init__(self, inside, outside):
        super().__init__()
        self.linear = nn.Linear(inside, outside)

    def forward(self, x):
        assert x.dim() == 2
        assert len(x) <= 1024
        return self.linear(x)


class Plain(nn.Module):
    """A plain nn.Module whose methods are the programs, as in Pyro's own example."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = Refuses(2, 3), Refuses(3, 2)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), 0.1).to_event(1), obs=x.reshape(-1, 3))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("latent", dist.Normal(self.encoder(x), 0.2).to_event(1))


def two_layers(x):
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(3.0 * z2, 0.1).to_event(1))
        pyro.sample("x", dist.Normal(z1 + 1.0, 0.1).to_event(1), obs=x)


def two_layers_guide(x):
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(x - 1.0, 0.1).to_event(1))
        pyro.sample("z2", dist.Normal(z1 / 3.0, 0.1).to_event(1))


def conditional(batch):
    """x is its covariate plus 10 z, with a global shift."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(batch["x"])):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = batch["covariate"] + 10.0 * z + shift
        pyro.sample("x", dist.Normal(mean, 1e-6), obs=batch["x"])


def conditional_guide(batch):
    pyro.sample("shift", dist.Normal(2.0, 1e-6))
    with pyro.plate("data", len(batch["x"])):
        pyro.sample("z", dist.Normal((batch["x"] - batch["covariate"] - 2.0) / 10.0, 1e-6))


def test_encode_gives_the_posterior(pair):
    model, guide, x = pair
    found = simulate.encode(guide, x)
    assert (found.batch_shape, found.event_shape) == ((5,), (2,))
    torch.testing.assert_close(found.mean, model.posterior(x).mean)


def test_encode_lists_the_sites_among_which_to_choose():
    with pytest.raises(ProgramError) as raised:
        simulate.encode(two_layers_guide, torch.zeros(4, 2))
    assert str(raised.value) == (
        "the guide has 2 latent sites in the data plate, and none was named\n"
        "  where: latent sites of the guide: ['z1', 'z2']\n"
        "  mend:  site='z1'"
    )


def test_encode_takes_the_named_site():
    found = simulate.encode(two_layers_guide, torch.ones(4, 2), site="z1")
    torch.testing.assert_close(found.mean, torch.zeros(4, 2))


def test_encode_suggests_a_near_name():
    with pytest.raises(ProgramError) as raised:
        simulate.encode(two_layers_guide, torch.zeros(4, 2), site="z_1")
    assert str(raised.value) == (
        "the guide has no latent site 'z_1'\n  where: latent sites of the guide: ['z1', 'z2']\n  mend:  did you mean 'z1'?"
    )


def test_encode_prefers_the_only_site_in_the_data_plate():
    batch = {"x": torch.tensor([12.0, 22.0]), "covariate": torch.zeros(2)}
    torch.testing.assert_close(simulate.encode(conditional_guide, batch).mean, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("template_rows", [1, 4, 7], ids=["one row", "M rows", "another number"])
def test_decode_mean_is_the_linear_map(pair, template_rows):
    model, _, _ = pair
    z = torch.randn(4, 2)
    found = simulate.decode(model, z, template=torch.zeros(template_rows, 3))
    assert found.batch_shape == (4,)
    torch.testing.assert_close(found.mean, (z @ model.weight.mT + model.bias).detach(), rtol=1e-14, atol=1e-14)


def test_decode_draws_unnamed_latents_from_their_prior():
    z2 = torch.full((1000, 2), 2.0)
    found = simulate.decode(two_layers, {"z2": z2}, template=torch.zeros(1, 2)).mean
    # z1 | z2 ~ N(6, 0.1^2), so E[x | z1] has mean 7 and standard error 0.1 / sqrt(2000)
    assert abs(found.mean() - 7.0) < 5 * 0.1 / 2000**0.5
    assert abs(found.std() - 0.1) < 5 * 0.1 / 4000**0.5


def test_decode_repeats_covariates_of_the_first_row():
    template = {"x": torch.zeros(2), "covariate": torch.tensor([5.0, 9.0])}
    found = simulate.decode(conditional, {"z": torch.tensor([0.0, 1.0, 2.0]), "shift": torch.tensor(1.0)}, template=template)
    torch.testing.assert_close(found.mean, torch.tensor([6.0, 16.0, 26.0]))


def test_decode_reads_covariates_row_by_row():
    template = {"x": torch.zeros(2), "covariate": torch.tensor([5.0, 9.0])}
    found = simulate.decode(conditional, {"z": torch.zeros(2), "shift": torch.tensor(0.0)}, template=template)
    torch.testing.assert_close(found.mean, torch.tensor([5.0, 9.0]))


def test_decode_refuses_a_latent_of_another_width(pair):
    with pytest.raises(ShapeError, match=r"z for site 'z' has shape \(4, 3\), needed \(M, 2\)"):
        simulate.decode(pair[0], torch.zeros(4, 3), template=pair[2])


def test_decode_refuses_a_lone_tensor_for_two_layers():
    with pytest.raises(ProgramError) as raised:
        simulate.decode(two_layers, torch.zeros(4, 2), template=torch.zeros(1, 2))
    assert str(raised.value) == (
        "a lone tensor z needs a model with one latent site in the data plate, got 2\n"
        "  where: latent sites of the model: ['z2', 'z1']\n"
        "  mend:  z={'z2': ...}, a dict from sites to values"
    )


def test_decode_refuses_values_of_unequal_length():
    with pytest.raises(ShapeError, match=r"must share M, their number of rows, got \{'z2': 4, 'z1': 3\}"):
        simulate.decode(two_layers, {"z2": torch.zeros(4, 2), "z1": torch.zeros(3, 2)}, template=torch.zeros(1, 2))


def test_reconstruction_is_the_decoded_posterior_mean(pair):
    model, guide, x = pair
    found = simulate.reconstruct(model, guide, x, num_particles=K)
    posterior = model.posterior(x)
    exact = posterior.mean @ model.weight.mT + model.bias
    variance = (model.weight @ posterior.covariance_matrix @ model.weight.mT).diagonal(dim1=-2, dim2=-1)
    assert ((found - exact).abs() < 5 * (variance / K).sqrt()).all()


def test_reconstruction_of_a_sharp_pair_is_exact_through_two_layers():
    x = torch.randn(6, 2)
    found = simulate.reconstruct(two_layers, two_layers_guide, x, num_particles=K)
    assert ((found - x).abs() < 5 * 0.1 / K**0.5).all()  # E[x | z1] = z1 + 1 with z1 ~ N(x - 1, 0.1^2)


def test_reconstruction_takes_dict_batches_and_global_sites():
    batch = {"x": torch.tensor([12.0, 22.0, 5.0]), "covariate": torch.tensor([0.0, 1.0, 2.0])}
    found = simulate.reconstruct(conditional, conditional_guide, batch, num_particles=3)
    assert ((found - batch["x"]).abs() < 1e-4).all()  # five of its standard deviations, 1e-5, twice over


def test_reconstruction_in_blocks_serves_networks_that_refuse_particles():
    plain, x = Plain(), torch.randn(1500, 3)
    found = simulate.reconstruct(plain.model, plain.guide, x, num_particles=2)
    weight = plain.decoder.linear.weight
    exact = plain.decoder.linear(plain.encoder.linear(x))
    deviation = 0.2 * weight.square().sum(1).sqrt() / 2**0.5
    assert found.shape == (1500, 3)
    assert ((found - exact).abs() < 6 * deviation).all()


def test_reconstruction_keeps_plates_inside_a_datum():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-2):
                pyro.sample("x", dist.Normal(z + torch.arange(3.0)[:, None], 1.0), obs=x.mT)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], 1e-9))

    found = simulate.reconstruct(model, guide, torch.tensor([[1.0, 0.0, 0.0], [5.0, 0.0, 0.0]]), num_particles=2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]), rtol=0, atol=1e-7)


def test_reconstruction_refuses_a_distribution_without_a_mean():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Cauchy(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ProgramError) as raised:
        simulate.reconstruct(model, guide, torch.zeros(4))
    assert str(raised.value) == (
        "site 'x' has a distribution without a mean\n"
        "  where: site 'x': Cauchy over Real()\n"
        "  mend:  draw from it: simulate.sample(...), or simulate.decode(...).sample()"
    )


class Local:
    """A local posterior: one sharp location a datum."""

    def __init__(self, loc):
        self.loc, self.num_data = loc, len(loc)

    def rows(self, rows):
        return Local(self.loc[rows])

    def repeated(self, times):
        return Local(self.loc.repeat(times, 1))

    def __call__(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1e-9).to_event(1))


def test_reconstruction_takes_a_local_posterior(pair):
    model, _, x = pair
    loc = torch.randn(5, 2)
    found = simulate.reconstruct(model, Local(loc), x, num_particles=3)
    torch.testing.assert_close(found, (loc @ model.weight.mT + model.bias).detach(), rtol=0, atol=1e-7)


def test_reconstruction_needs_a_particle(pair):
    with pytest.raises(ProgramError, match="num_particles must be at least 1, got 0"):
        simulate.reconstruct(*pair, num_particles=0)


def test_sample_covariance_is_that_of_the_model(pair):
    model, n = pair[0], 40_000
    x = simulate.sample(model, n, template=pair[2])["x"]
    exact = (model.weight @ model.weight.mT + 0.25 * torch.eye(3)).detach()
    # Var of a sample covariance of Gaussians: (S_ii S_jj + S_ij^2) / n
    error = ((exact.diagonal()[:, None] * exact.diagonal() + exact.square()) / n).sqrt()
    assert ((torch.cov(x.mT) - exact).abs() < 5 * error).all()


def test_sample_gives_every_site_by_name():
    found = simulate.sample(two_layers, 7, template=torch.zeros(1, 2))
    assert {name: tuple(value.shape) for name, value in found.items()} == {"z2": (7, 2), "z1": (7, 2), "x": (7, 2)}


def test_sample_mean_is_the_decoded_latent(pair):
    model = pair[0]
    found = simulate.sample(model, 9, template=pair[2], mean=True)
    torch.testing.assert_close(found["x"], (found["z"] @ model.weight.mT + model.bias).detach())


def test_sample_draws_a_global_site_once_for_all_blocks():
    template = {"x": torch.zeros(1), "covariate": torch.zeros(1)}
    found = simulate.sample(conditional, 1500, template=template, mean=True)
    assert found["shift"].shape == ()
    torch.testing.assert_close(found["x"], 10.0 * found["z"] + found["shift"])


def test_sample_keeps_a_template_of_its_own_length():
    template = {"x": torch.zeros(3), "covariate": torch.tensor([0.0, 100.0, 200.0])}
    found = simulate.sample(conditional, 3, template=template, mean=True)
    torch.testing.assert_close(found["x"] - 10.0 * found["z"] - found["shift"], template["covariate"])


def test_sample_needs_a_row(pair):
    with pytest.raises(ProgramError, match="num_data must be at least 1, got 0"):
        simulate.sample(pair[0], 0, template=pair[2])


CALLS = {
    "encode": lambda model, guide, x, seed: simulate.encode(two_layers_guide, x[:, :2], site="z2", seed=seed).mean,
    "decode": lambda model, guide, x, seed: simulate.decode(two_layers, {"z2": x[:, :2]}, template=x[:, :2], seed=seed).mean,
    "reconstruct": lambda model, guide, x, seed: simulate.reconstruct(model, guide, x, seed=seed),
    "sample": lambda model, guide, x, seed: simulate.sample(model, 5, template=x, seed=seed)["x"],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_seed_gives_the_same_again(call, pair):
    assert torch.equal(call(*pair, 1), call(*pair, 1))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_another_seed_gives_another_draw(call, pair):
    assert not torch.equal(call(*pair, 1), call(*pair, 2))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_generator_and_store_stay_as_they_were(call, pair):
    before = torch.get_rng_state()
    call(*pair, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store().keys()) == []


def test_data_is_read_by_its_x(pair):
    from ppvae.data import Data

    model, guide, x = pair
    found = simulate.reconstruct(model, guide, Data.of(x))
    assert torch.equal(found, simulate.reconstruct(model, guide, x))


def test_dropout_is_off_and_the_mode_comes_back():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9))
    guide = guides.DiagonalNormal(encoder, 2)
    x = torch.randn(5, 3)
    assert torch.equal(simulate.encode(guide, x, seed=0).mean, simulate.encode(guide, x, seed=1).mean)
    assert encoder.training
