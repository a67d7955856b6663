"""Variational families: a row of unconstrained numbers -> a distribution over latents.

A family has two fronts. A guide is a family behind an encoder; a local posterior is the same family behind a free table with a row
per datum. The amortization gap replaces exactly the front.
"""

from __future__ import annotations

import math
from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppvae.build import recorded
from ppvae.errors import FamilyError

MIN_LOG_SCALE = -12.0  # below this a float32 standard deviation no longer moves a location near 1


class Family(Protocol):
    """A parametric set of distributions over R^Z."""

    latent_dim: int
    num_parameters: int

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a distribution of batch shape (...) and event shape (Z,)."""
        ...


class NormalFamily(Family, Protocol):
    """A family of Normals, which knows the row of a given Normal."""

    def row(self, loc: Tensor, scale_tril: Tensor) -> Tensor:
        """(..., Z) and (..., Z, Z) -> (..., P)."""
        ...

    def widened(self, parameters: Tensor, factor: float) -> Tensor:
        """The rows with every scale times ``factor``."""
        ...


@recorded
class DiagonalNormal:
    """N(loc, diag(scale^2)); the row holds (loc, log scale), P = 2 Z."""

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim
        self.num_parameters = 2 * latent_dim

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., 2 Z) -> N over R^Z."""
        check_row(self, parameters)
        loc, log_scale = parameters.chunk(2, -1)
        return dist.Normal(loc, log_scale.clamp(min=MIN_LOG_SCALE).exp()).to_event(1)  # type: ignore[no-any-return]

    def row(self, loc: Tensor, scale_tril: Tensor) -> Tensor:
        """The parameters of N(loc, L L^T)'s diagonal: (..., Z), (..., Z, Z) -> (..., 2 Z)."""
        return torch.cat([loc, scale_tril.square().sum(-1).log() / 2], -1)

    def widened(self, parameters: Tensor, factor: float) -> Tensor:
        """The same rows with every scale times ``factor``."""
        loc, log_scale = parameters.chunk(2, -1)
        return torch.cat([loc, log_scale + math.log(factor)], -1)


@recorded
class FullRankNormal:
    """N(loc, L L^T) with L lower triangular and exp on its diagonal; the row holds (loc, log diag L, L below), P = Z + Z (Z + 1) / 2."""

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim
        self.num_parameters = latent_dim + latent_dim * (latent_dim + 1) // 2

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> N over R^Z."""
        check_row(self, parameters)
        z = self.latent_dim
        loc, log_diagonal, below = parameters.split([z, z, z * (z - 1) // 2], -1)
        rows, columns = torch.tril_indices(z, z, -1, device=parameters.device)
        scale_tril = torch.diag_embed(log_diagonal.clamp(min=MIN_LOG_SCALE).exp())
        scale_tril[..., rows, columns] = below
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def row(self, loc: Tensor, scale_tril: Tensor) -> Tensor:
        """The parameters of N(loc, L L^T): (..., Z), (..., Z, Z) -> (..., P)."""
        z = self.latent_dim
        rows, columns = torch.tril_indices(z, z, -1, device=loc.device)
        return torch.cat([loc, scale_tril.diagonal(dim1=-2, dim2=-1).log(), scale_tril[..., rows, columns]], -1)

    def widened(self, parameters: Tensor, factor: float) -> Tensor:
        """The same rows with L times ``factor``."""
        z = self.latent_dim
        loc, log_diagonal, below = parameters.split([z, z, z * (z - 1) // 2], -1)
        return torch.cat([loc, log_diagonal + math.log(factor), below * factor], -1)


@recorded
class LowRankNormal:
    """N(loc, diag(scale^2) + F F^T), for latents too many for a full covariance; the row holds (loc, log scale, F), P = Z (2 + rank)."""

    def __init__(self, latent_dim: int, rank: int = 8) -> None:
        self.latent_dim, self.rank = latent_dim, rank
        self.num_parameters = latent_dim * (2 + rank)

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> N over R^Z."""
        check_row(self, parameters)
        loc, log_scale, factor = self._parts(parameters)
        variance = (2 * log_scale.clamp(min=MIN_LOG_SCALE)).exp()
        return dist.LowRankMultivariateNormal(loc, factor.unflatten(-1, (self.latent_dim, self.rank)), variance)

    def row(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Where a refinement starts from independent scales, (..., Z) each: small factors that differ, since equal ones stay equal."""
        directions = torch.eye(self.latent_dim, self.rank, dtype=loc.dtype, device=loc.device) + 0.1
        factor = 0.1 * scale[..., None] * directions
        return torch.cat([loc, scale.log(), factor.flatten(-2)], -1)

    def widened(self, parameters: Tensor, factor: float) -> Tensor:
        """The same rows with every scale times ``factor``."""
        loc, log_scale, directions = self._parts(parameters)
        return torch.cat([loc, log_scale + math.log(factor), directions * factor], -1)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.latent_dim
        loc, log_scale, factor = parameters.split([z, z, z * self.rank], -1)
        return loc, log_scale, factor


@recorded
class FullRankMixture:
    """sum_c share_c N(m_c, L_c L_c^T) with fixed shares; the row holds the rows of its Normals, one after the other.

    Args:
        latent_dim: Z.
        shares: Of the components; they sum to one.

    References:
        Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions, sec. 3.
    """

    def __init__(self, latent_dim: int, shares: tuple[float, ...]) -> None:
        self.latent_dim, self.shares = latent_dim, tuple(shares)
        self.component = FullRankNormal(latent_dim)
        self.num_parameters = len(self.shares) * self.component.num_parameters

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a mixture over R^Z."""
        check_row(self, parameters)
        components = self.component.distribution(parameters.unflatten(-1, (len(self.shares), -1)))
        probs = parameters.new_tensor(self.shares).expand(*parameters.shape[:-1], len(self.shares))
        return dist.MixtureSameFamily(dist.Categorical(probs), components)  # type: ignore[no-any-return]


def check_row(family: Family, parameters: Tensor) -> None:
    """Raise where rows have not the family's number of parameters."""
    if parameters.shape[-1] != family.num_parameters:
        raise FamilyError(
            f"{type(family).__name__} over {family.latent_dim} dimensions needs {family.num_parameters} numbers per datum, "
            f"got {parameters.shape[-1]}",
            mend=f"let the encoder end in {family.num_parameters} outputs",
        )
