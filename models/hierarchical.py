"""Two and more stochastic layers: z_L ~ prior, z_i | z_{i+1} ~ N(layer_i(z_{i+1})), x | z_1 ~ likelihood(network(z_1))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.families import DiagonalNormal
from ppvae.models import priors
from ppvae.models.missing import masked, parts


@recorded
class Hierarchical(PyroModule):
    """p(x, z_1, ..., z_L) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2) p(x | z_1), at the sites "z_1", ..., "z_L".

    Args:
        layers: L - 1 networks; ``layers[i - 1]`` maps z_{i+1}, (..., Z_{i+1}), to (loc, log scale) of z_i, (..., 2 Z_i).
        latent_dims: (Z_1, ..., Z_L).
        network: z_1, (..., Z_1) -> (..., outputs).
        likelihood: Maps the network's output to a distribution of x's event shape (``models.likelihoods``, or a lambda).
        prior: Of z_L, a distribution of event shape (Z_L,) or a module that returns one; without it N(0, I).

    Raises:
        ShapeError: There is not one network fewer than layers of latents.

    References:
        Rezende, Mohamed, Wierstra (2014), Stochastic backpropagation and approximate inference in deep generative models, sec. 2.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        latent_dims: Sequence[int],
        network: nn.Module,
        likelihood: Callable[[Tensor], TorchDistribution],
        prior: TorchDistribution | nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not latent_dims or len(layers) != len(latent_dims) - 1:
            raise ShapeError(
                f"L layers of latents need L - 1 networks between them, got latent_dims={tuple(latent_dims)} and {len(layers)} networks",
                mend="layers[i - 1] maps z_{i+1} to the 2 Z_i numbers of z_i, for i = 1, ..., L - 1",
            )
        self.layers = nn.ModuleList(layers)
        self.families = [DiagonalNormal(latent_dim) for latent_dim in latent_dims]
        self.network = network
        self.likelihood = likelihood
        self.prior_given: Any = prior or priors.StandardNormal(latent_dims[-1])

    def seen(self, values: list[Tensor]) -> Tensor:
        """What a network is given of the layers above it, of which ``values`` has z_L first: the nearest."""
        return values[-1]

    def conditional(self, layer: int, above: list[Tensor]) -> TorchDistribution:
        """p(z_i | z_{i+1}, ..., z_L), or p(z_L), for i = ``layer``; ``above`` has z_L first. Event shape (Z_i,)."""
        if not above:
            given = self.prior_given  # a Pyro distribution is callable too: calling it would draw
            return given if isinstance(given, TorchDistributionMixin) else given()
        return self.families[layer - 1].distribution(self.layers[layer - 1](self.seen(above)))

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, *event), or its observed entries where it is a dict of values and mask (``models.missing``)."""
        values, observed = parts(x)
        with pyro.plate("data", len(values), dim=-1):
            above: list[Tensor] = []
            for layer in range(len(self.families), 0, -1):
                above.append(pyro.sample(f"z_{layer}", self.conditional(layer, above)))
            pyro.sample("x", masked(self.likelihood(self.network(self.seen(above))), observed), obs=values)
