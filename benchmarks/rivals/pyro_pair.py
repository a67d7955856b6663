"""A pair as Pyro's users write it: the classes of Pyro's own examples/vae/vae.py, with logits, and with the measured networks inside."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.job import Job


class Encoder(nn.Module):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.hidden, width = networks.features(job.architecture)
        self.loc = nn.Linear(width, job.architecture.latent_dim)
        self.log_scale = nn.Linear(width, job.architecture.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(x)
        return self.loc(hidden), torch.exp(self.log_scale(hidden))


class VAE(nn.Module):
    """The model and the guide of the example: ``pyro.module``, a plate, one latent, one observation."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        torch.manual_seed(job.seed)
        self.encoder, self.decoder = Encoder(job), networks.decoder(job.architecture)
        self.latent_dim = job.architecture.latent_dim
        networks.fill(self.parameters(), job)
        self.to(job.device)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], self.latent_dim), x.new_ones(x.shape[0], self.latent_dim)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
