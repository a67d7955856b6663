"""Top-down guide of a hierarchy: bottom-up evidence merged with the model's own p(z_i | z_{i+1}, ...), weighted by precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.batches import Batch, num_data
from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.families import DiagonalNormal
from ppvae.support import unwrapped


@recorded
class Ladder(PyroModule):
    """q(z | x) = q(z_L | x) prod_i q(z_i | z_{>i}, x), with q(z_i | z_{>i}, x) proportional to p(z_i | z_{>i}) N(z_i; m_i(x), s_i(x)^2).

    m_i and s_i come from x, bottom-up: h_1 = encoders[0](x), h_i = encoders[i - 1](h_{i-1}), (m_i, log s_i) = heads[i - 1](h_i). The top
    layer is q(z_L | x) = N(m_L, s_L^2). A merged layer has precision 1 / s_p^2 + 1 / s_i^2 and the mean that these weigh.

    The guide runs the model's own networks, and its loss trains them from both sides.

    Args:
        model: ``models.Hierarchical`` or ``models.Ladder``: whatever has ``conditional(layer, above)``, a diagonal Normal.
        encoders: L networks, x -> h_1 -> ... -> h_L.
        heads: L networks, h_i -> (..., 2 Z_i).
        latent_dims: (Z_1, ..., Z_L).

    Raises:
        ShapeError: There is not one encoder and one head for each layer of latents.

    References:
        Sønderby, Raiko, Maaløe, Sønderby, Winther (2016), Ladder variational autoencoders, eq. 15-19.
    """

    _borrowed = "model"

    def __init__(self, model: nn.Module, encoders: Sequence[nn.Module], heads: Sequence[nn.Module], latent_dims: Sequence[int]) -> None:
        super().__init__()
        if not latent_dims or not len(encoders) == len(heads) == len(latent_dims):
            raise ShapeError(
                f"every layer of latents needs an encoder and a head, got latent_dims={tuple(latent_dims)}, {len(encoders)} encoders and "
                f"{len(heads)} heads",
                mend="encoders: x -> h_1 -> ... -> h_L; heads[i - 1] maps h_i to the 2 Z_i numbers of z_i",
            )
        self.shared = (model,)  # inside a tuple: as a submodule it would be a part of this program, and Pyro names a module once
        self.encoders, self.heads = nn.ModuleList(encoders), nn.ModuleList(heads)
        self.families = [DiagonalNormal(latent_dim) for latent_dim in latent_dims]

    def forward(self, x: Batch) -> None:
        """Draw z_L, ..., z_1 given x, (N, *event)."""
        model: Any = self.shared[0]
        found: list[Any] = []
        features = x
        for encoder, head, family in zip(self.encoders, self.heads, self.families, strict=True):
            features = encoder(features)
            found.append(unwrapped(family.distribution(head(features))))
        with pyro.plate("data", num_data(x), dim=-1):
            above: list[Tensor] = []
            for layer in range(len(found), 0, -1):
                evidence = found[layer - 1]
                merged = _merged(unwrapped(model.conditional(layer, above)), evidence) if above else evidence
                above.append(pyro.sample(f"z_{layer}", merged.to_event(1)))


def _merged(prior: dist.Normal, evidence: dist.Normal) -> dist.Normal:
    """The normalised product of two Normals, elementwise."""
    of_prior, of_evidence = prior.scale**-2, evidence.scale**-2
    precision = of_prior + of_evidence
    return dist.Normal((prior.loc * of_prior + evidence.loc * of_evidence) / precision, precision.rsqrt())
