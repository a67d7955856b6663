"""Priors over z: modules that return a distribution of event shape (Z,).

A prior that is conditional names a covariate of the batch, and is called with it (``models.covariates``).
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import check_count
from ppvae.models.priors_conditional import Conditional
from ppvae.models.priors_flow import CouplingFlow, Flow
from ppvae.models.priors_vamp import VampPrior

__all__ = ["Conditional", "CouplingFlow", "Flow", "MixtureOfNormals", "Normal", "StandardNormal", "VampPrior"]


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


@recorded
class Normal(nn.Module):
    """z ~ N(loc, diag(scale^2)), both learned with the model, from N(0, I) on."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> TorchDistribution:
        """A diagonal Normal over R^Z."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)  # type: ignore[no-any-return]


@recorded
class MixtureOfNormals(nn.Module):
    """z ~ sum_c w_c N(loc_c, diag(scale_c^2)), trained jointly with model and guide.

    Weights start equal, scales at 1, and the locations from draws of N(0, I): equal components would stay equal.

    Args:
        latent_dim: Z.
        num_components: C.

    References:
        Dilokthanakul et al. (2016), Deep unsupervised clustering with Gaussian mixture variational autoencoders.
    """

    def __init__(self, latent_dim: int, num_components: int) -> None:
        super().__init__()
        check_count("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.locs = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scales = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> TorchDistribution:
        """A mixture of diagonal Normals over R^Z."""
        components = dist.Normal(self.locs, self.log_scales.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)  # type: ignore[no-any-return]

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(component | z), (..., Z) -> (..., C)."""
        log_joint = torch.log_softmax(self.logits, -1) + self.forward().component_distribution.log_prob(z[..., None, :])
        return torch.softmax(log_joint, -1)
