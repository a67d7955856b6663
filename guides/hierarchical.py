"""Bottom-up guide of a hierarchy: q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}), each a diagonal Normal."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from pyro.nn import PyroModule
from torch import nn

from ppvae.batches import Batch, num_data
from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.families import DiagonalNormal


@recorded
class Hierarchical(PyroModule):
    """q(z_1, ..., z_L | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}), the guide of ``models.Hierarchical``.

    Args:
        encoders: L networks; the first maps x, (N, *event), to (loc, log scale) of z_1, (N, 2 Z_1), the next one z_1 to those of z_2.
        latent_dims: (Z_1, ..., Z_L).

    Raises:
        ShapeError: There is not one network for each layer of latents.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 2: the recognition network with several layers.
    """

    def __init__(self, encoders: Sequence[nn.Module], latent_dims: Sequence[int]) -> None:
        super().__init__()
        if not latent_dims or len(encoders) != len(latent_dims):
            raise ShapeError(
                f"every layer of latents needs an encoder, got latent_dims={tuple(latent_dims)} and {len(encoders)} encoders",
                mend="the first maps x to the 2 Z_1 numbers of z_1, the next one z_1 to the 2 Z_2 of z_2",
            )
        self.encoders = nn.ModuleList(encoders)
        self.families = [DiagonalNormal(latent_dim) for latent_dim in latent_dims]

    def forward(self, x: Batch) -> None:
        """Draw z_1, ..., z_L given x, (N, *event)."""
        with pyro.plate("data", num_data(x), dim=-1):
            below = x
            for layer, (encoder, family) in enumerate(zip(self.encoders, self.families, strict=True), 1):
                below = pyro.sample(f"z_{layer}", family.distribution(encoder(below)))
