"""Recurrent guide: q(z_t | z_{t-1}, x_t, ..., x_T), a network that reads the sequence from its end and a combiner that steps forward."""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.families import DiagonalNormal


@recorded
class Recurrent(PyroModule):
    """q(z | x) = prod_t N(z_t; combiner(z_{t-1}, h_t)) with h = reader(x, lengths), the guide of ``models.DeepMarkov``.

    The posterior of a Markov model has this form: given z_{t-1}, only what comes from t on says more of z_t. A reader that runs
    backward, ``nn.Recurrent(..., backward=True)``, has seen just that.

    Args:
        reader: x, (N, T, D), and lengths, (N,), to features, (N, T, F).
        combiner: z_{t-1} and h_t side by side, (..., Z + F) -> (..., 2 Z): (loc, log scale) of z_t. z_0 is learned.
        latent_dim: Z.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models, sec. 4 (DKS).
    """

    def __init__(self, reader: nn.Module, combiner: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.reader, self.combiner = reader, combiner
        self.family = DiagonalNormal(latent_dim)
        self.before = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: dict[str, Tensor]) -> None:
        """Draw z_1, ..., z_T given a batch as of ``models.DeepMarkov``."""
        values, lengths = x["x"], x["lengths"]
        inside = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        features = self.reader(values, lengths)
        with pyro.plate("data", len(values), dim=-1):
            z: Tensor = self.before
            for t, there in enumerate(inside.unbind(1)):
                seen = features[:, t]
                shape = torch.broadcast_shapes(z.shape[:-1], seen.shape[:-1])
                row = self.combiner(torch.cat([z.expand(*shape, -1), seen.expand(*shape, -1)], -1))
                z = pyro.sample(f"z_{t + 1}", self.family.distribution(torch.where(there[:, None], row, 0)))
