"""Ladder: a hierarchy with skips. Every layer sees all latents above it, and x sees them all."""

from __future__ import annotations

import torch
from torch import Tensor

from ppvae.build import recorded
from ppvae.models.hierarchical import Hierarchical


@recorded
class Ladder(Hierarchical):
    """p(x, z_1, ..., z_L) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2, ..., z_L) p(x | z_1, ..., z_L), at the sites "z_1", ..., "z_L".

    Arguments as of ``Hierarchical``, but for what the networks are given: ``layers[i - 1]`` maps the latents above z_i side by side,
    (z_L, ..., z_{i+1}), and ``network`` all of them, (z_L, ..., z_1). Its guide is ``guides.Ladder``.

    References:
        Sønderby, Raiko, Maaløe, Sønderby, Winther (2016), Ladder variational autoencoders.
        Vahdat, Kautz (2020), NVAE: a deep hierarchical variational autoencoder, sec. 3: later layers see all groups before them.
    """

    def seen(self, values: list[Tensor]) -> Tensor:
        """All of them, z_L first."""
        return torch.cat(values, -1)
