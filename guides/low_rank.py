"""Amortized low rank plus diagonal: q(z | x) = N(loc, diag(scale^2) + F F^T), for latents too many for a full covariance."""

from __future__ import annotations

from torch import nn

from ppvae.build import recorded
from ppvae.errors import check_count
from ppvae.families import LowRankNormal as LowRankNormalFamily
from ppvae.guides.amortized import Amortized


@recorded
class LowRankNormal(Amortized):
    """q(z | x) = N(loc, diag(scale^2) + F F^T), with (loc, log scale, F) = encoder(x), Z (2 + rank) outputs.

    Args:
        encoder: (N, *event) -> (N, Z (2 + rank)).
        latent_dim: Z.
        rank: Columns of F. The density costs Z rank^2, where a full covariance costs Z^2 and as many outputs.

    References:
        Ong, Nott, Smith (2018), Gaussian variational approximation with a factor covariance structure, sec. 3.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, rank: int = 2) -> None:
        check_count("rank", rank)
        super().__init__(encoder, LowRankNormalFamily(latent_dim, rank))
