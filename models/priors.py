"""Priors over z: modules that return a distribution of event shape (Z,)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded


@recorded
class StandardNormal(nn.Module):
    """z ~ N(0, I)."""

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)  # moves with the model's device and dtype

    def forward(self) -> TorchDistribution:
        """N(0, I) over R^Z."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)  # type: ignore[no-any-return]
