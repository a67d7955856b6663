"""Pairs written as users write them, and the data that go with them. Each function builds a new pair (model, guide)."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae import guides, models
from ppvae.nn import MLP

optim: Any = pyro.optim  # its optimizers are made at run time, and type checkers do not see them


def binary(num_data: int = 20, data_dim: int = 6, seed: int = 0) -> Tensor:
    """Coin flips, (N, D)."""
    return torch.randint(0, 2, (num_data, data_dim), generator=torch.Generator().manual_seed(seed)).double()


def real(num_data: int = 20, data_dim: int = 3, seed: int = 0) -> Tensor:
    """Standard normal draws, (N, D)."""
    return torch.randn(num_data, data_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(data_dim: int = 6, hidden: int = 8):
    """Bernoulli likelihood, diagonal guide, from ppvae's own parts."""
    model = models.Bernoulli(MLP(2, [hidden], data_dim), latent_dim=2)
    return model, guides.DiagonalNormal(MLP(data_dim, [hidden], 4), latent_dim=2)


def exact():
    """A linear Gaussian model and its posterior, a guide without parameters: every log weight is log p(x)."""
    model = models.LinearGaussian(3, 2, scale=0.5)

    def guide(x):
        with torch.no_grad():
            posterior = model.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, posterior.covariance_matrix))

    return model, guide


def normal(latent, data):
    """z ~ N(0, I), x ~ N(W z + b, 0.5^2 I), for data (N, data)."""

    def model(x):
        pyro.module("decoder", data)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(data(z), 0.5).to_event(1), obs=x)

    return model


class PyroVAE(nn.Module):
    """The form of Pyro's examples/vae/vae.py, smaller: one module, bound programs, a plate without dim, images flattened inside."""

    def __init__(self, side: int = 3, z_dim: int = 2, hidden_dim: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(side**2, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, 2 * z_dim))
        self.decoder = nn.Sequential(nn.Linear(z_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, side**2), nn.Sigmoid())
        self.z_dim, self.pixels = z_dim, side**2

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, self.pixels))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, z_log_scale.exp()).to_event(1))


def bound():
    """Bound methods of one plain module."""
    vae = PyroVAE()
    return vae.model, vae.guide


def images(num_data: int = 20) -> Tensor:
    """Binary images for ``bound``, (N, 1, 3, 3)."""
    return binary(num_data, 9).reshape(num_data, 1, 3, 3)


def closures(registered: bool = False):
    """Plain functions over two modules that no ``pyro.module`` names, unless ``registered``."""
    decoder, encoder = nn.Linear(2, 3), nn.Linear(3, 4)

    def model(x):
        if registered:
            pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        if registered:
            pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def registered():
    """The same functions with ``pyro.module``."""
    return closures(registered=True)


def hidden():
    """Modules inside a list, which no look at the functions' variables finds: only the loss's graph does."""
    networks = [nn.Linear(2, 3), nn.Linear(3, 4)]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(networks[0](z), 0.5).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = networks[1](x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


class Decodes(PyroModule):
    def __init__(self, linear=nn.Linear):
        super().__init__()
        self.net = linear(2, 3)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)


class Encodes(PyroModule):
    def __init__(self, linear=nn.Linear):
        super().__init__()
        self.net = nn.Sequential(linear(3, 4)) if linear is nn.Linear else PyroModule[nn.Sequential](linear(3, 4))

    def forward(self, x):
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class SameShape(Encodes):
    """An encoder whose ``net`` has the parameter names of the decoder's."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 4)


def two_nets():
    """Two PyroModules that both call a plain submodule ``net``: one key of Pyro's store for two sets of parameters."""
    return Decodes(), SameShape()


def pyro_linear():
    """PyroModules all the way down."""
    return Decodes(PyroModule[nn.Linear]), Encodes(PyroModule[nn.Linear])


def table():
    """A guide of ``pyro.param`` alone, the same for all data; two parameters start from a draw."""

    def model(x):
        weight = pyro.param("weight", lambda: torch.randn(2, 3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 0.5).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.randn(2))
        scale = pyro.param("scale", lambda: torch.full((2,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def rare():
    """A guide with a parameter that is born with the first batch that holds an outlier (x_0 > 5), and used with outliers alone."""
    decoder, encoder = nn.Linear(2, 3), nn.Linear(3, 4)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        outlier = x[:, :1] > 5
        if outlier.any():
            loc = loc + outlier * pyro.param("shift", torch.tensor(0.1), constraint=constraints.interval(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return normal(2, decoder), guide


def experts():
    """One module of two encoders, the second of which only batches with an outlier use: Pyro names its parameters in every step."""
    decoder, encoders = nn.Linear(2, 3), nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])

    def guide(x):
        pyro.module("encoders", encoders)
        row = encoders[0](x)
        if (x[:, 0] > 5).any():
            row = row + 0.1 * encoders[1](x)
        loc, log_scale = row.chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return normal(2, decoder), guide


def one_outlier(num_data: int = 20) -> Tensor:
    """Normal draws, the last row far out."""
    x = real(num_data)
    x[-1, 0] = 6.0
    return x


class Reshapes(nn.Module):
    """A decoder that flattens all but the first dimension: it takes no particles from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, z):
        return self.linear(z.view(len(z), -1))


class Upsamples(nn.Module):
    """A convolutional decoder without our reshaping: (N, 2) -> (N, 4) pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 1, 2)

    def forward(self, z):
        return self.up(z[..., None, None]).flatten(1)


def refusing(decoder):
    """A pair whose decoder, of this class, refuses leading dimensions."""
    encoder = nn.Linear(3 if decoder is Reshapes else 4, 4)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return normal(2, decoder()), guide


def with_dropout():
    """Dropout in the encoder: noise beyond the latents."""
    model, _ = ours()
    return model, guides.DiagonalNormal(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 4)), latent_dim=2)


def with_batch_norm():
    """BatchNorm in the encoder: buffers that training moves."""
    model, _ = ours()
    return model, guides.DiagonalNormal(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), latent_dim=2)


def unknown_mean():
    """A global latent: mu ~ N(0, 1), x_n ~ N(mu, 1); q(mu) = N(loc, scale)."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[:, 0])

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        scale = pyro.param("scale", torch.tensor(0.4), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    return model, guide


def mixture(enumerated_by: str = "guide"):
    """c ~ Categorical, x_n ~ N(mean_c, 1), with c enumerated by the "guide", summed out by the "model", or by "nobody": then it is drawn."""
    where = {"enumerate": "parallel"}

    def model(x):
        means = pyro.param("means", torch.tensor([-1.0, 0.2, 1.5]))
        weights = pyro.param("weights", torch.tensor([0.5, 0.3, 0.2]), constraint=constraints.simplex)
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(weights), infer=where if enumerated_by == "model" else {})
            pyro.sample("x", dist.Normal(means[c], 1.0), obs=x[:, 0])

    def guide(x):
        if enumerated_by != "model":
            slopes = pyro.param("slopes", torch.tensor([0.5, -0.2, 0.1]))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("c", dist.Categorical(logits=x[:, :1] * slopes), infer=where if enumerated_by == "guide" else {})

    return model, guide


def marginal_mixture():
    """The mixture with c summed out on the model's side: trainable, not measurable."""
    return mixture("model")
