"""Amortized guide: q(z | x) = family(encoder(x)). The family is the shape of q, the encoder its front."""

from __future__ import annotations

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.batches import Batch, num_data
from ppvae.build import recorded
from ppvae.families import DiagonalNormal as DiagonalNormalFamily
from ppvae.families import Family
from ppvae.families import FullRankNormal as FullRankNormalFamily


@recorded
class Amortized(PyroModule):
    """q(z | x) = family.distribution(encoder(x)), at the site "z".

    Args:
        encoder: (N, *event) -> (N, family.num_parameters); of data with missing entries, of the dict that they are (``nn.WithMask``).
        family: Rows of unconstrained numbers -> distributions over R^Z (``ppvae.families``).
    """

    def __init__(self, encoder: nn.Module, family: Family) -> None:
        super().__init__()
        self.encoder = encoder
        self.family = family

    def parameters_at(self, x: Batch) -> Tensor:
        """The row of each datum, (N, P)."""
        return self.encoder(x)  # type: ignore[no-any-return]

    def forward(self, x: Batch) -> None:
        """Draw z given x, (N, *event)."""
        with pyro.plate("data", num_data(x), dim=-1):
            pyro.sample("z", self.family.distribution(self.parameters_at(x)))


@recorded
class DiagonalNormal(Amortized):
    """q(z | x) = N(loc, diag(scale^2)), with (loc, log scale) = encoder(x), 2 Z outputs."""

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__(encoder, DiagonalNormalFamily(latent_dim))


@recorded
class FullRankNormal(Amortized):
    """q(z | x) = N(loc, L L^T), with (loc, log diag L, L below) = encoder(x), Z + Z (Z + 1) / 2 outputs."""

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__(encoder, FullRankNormalFamily(latent_dim))
