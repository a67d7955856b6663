"""Amortized autoregressive flows: a diagonal Normal pushed through maps that move each coordinate by those before it, and by features of x.

Inverse (IAF): y_d = m_d(x_<d; c) + s_d(x_<d; c) x_d, from noise to latent. A draw and its density cost one pass; the density of any other
value costs Z passes. Masked (MAF): the same map from latent to noise. A density costs one pass; a draw costs Z.
Training and log weights draw and score the same values: there the inverse flow is the cheap one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms import ConditionalAffineAutoregressive, Permute
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import FamilyError, check_count
from ppvae.families import MIN_LOG_SCALE, check_row
from ppvae.guides.amortized import Amortized


@recorded
class Autoregressive(nn.Module):
    """The family: z = f(z0; c) with z0 ~ N(loc, diag(scale^2)); the row holds (loc, log scale, c), P = 2 Z + C.

    f is ``num_flows`` times an autoregressive affine map and a reversal of the coordinates; log scales are held in [-5, 3]. The networks
    are common to all data, the rows are not.

    Args:
        latent_dim: Z, at least 2.
        context_dim: C, the features that the maps see; 0 for the same maps at every x.
        num_flows: Maps.
        hidden: Widths of the hidden layers (ELU) of each map's masked network, each at least Z.
        direction: "inverse", cheap to draw from, or "masked", cheap to score.

    Raises:
        FamilyError: Fewer than two coordinates, a network without a layer or with one narrower than Z, another direction.
    """

    def __init__(
        self, latent_dim: int, context_dim: int, num_flows: int = 2, hidden: Sequence[int] = (50,), direction: str = "inverse"
    ) -> None:
        super().__init__()
        check_count("num_flows", num_flows)
        if latent_dim < 2:
            raise FamilyError(
                f"an autoregressive map moves a coordinate by those before it and needs 2 at least, got latent_dim={latent_dim}"
            )
        if not hidden or min(hidden) < latent_dim:
            raise FamilyError(
                f"the masked network needs hidden layers at least {latent_dim} wide, one unit a coordinate, got hidden={tuple(hidden)}",
                mend=f"hidden=({max(50, 2 * latent_dim)},)",
            )
        if direction not in ("inverse", "masked"):
            raise FamilyError(f"direction is 'inverse' or 'masked', got {direction!r}")
        self.latent_dim, self.context_dim, self.direction = latent_dim, context_dim, direction
        self.num_parameters = 2 * latent_dim + context_dim
        order: Any = torch.arange(latent_dim)  # Pyro's own choice is random; a reversal stands between the maps instead
        networks = [
            ConditionalAutoRegressiveNN(latent_dim, context_dim, list(hidden), permutation=order, nonlinearity=nn.ELU())
            for _ in range(num_flows)
        ]
        self.networks = nn.ModuleList(networks)

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., 2 Z + C) -> the flow over R^Z.

        Raises:
            FamilyError: The last dimension is not 2 Z + C long.
        """
        check_row(self, parameters)
        loc, log_scale, context = parameters.split([self.latent_dim, self.latent_dim, self.context_dim], -1)
        base = dist.Normal(loc, log_scale.clamp(min=MIN_LOG_SCALE).exp()).to_event(1)
        reversal = torch.arange(self.latent_dim - 1, -1, -1, device=parameters.device)
        maps: list[torch.distributions.Transform] = []
        for network in self.networks:
            moved = ConditionalAffineAutoregressive(network).condition(context)
            maps += [moved if self.direction == "inverse" else moved.inv, Permute(reversal)]
        return dist.TransformedDistribution(base, maps)  # type: ignore[no-any-return]


@recorded
class InverseAutoregressive(Amortized):
    """q(z | x) = f(N(loc, diag(scale^2)); c), with (loc, log scale, c) = encoder(x), 2 Z + C outputs, and f inverse autoregressive maps.

    A draw with its density costs one pass of the networks; the density of a value drawn elsewhere costs Z.

    Args:
        encoder: (N, *event) -> (N, 2 Z + C).
        latent_dim: Z, at least 2.
        context_dim: C, the features of x that the maps see.
        num_flows: Maps, each followed by a reversal of the coordinates.
        hidden: Widths of the hidden layers of each masked network, each at least Z.

    Raises:
        FamilyError: See ``Autoregressive``; on the first batch, an encoder of another width.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016), Improving variational inference with inverse autoregressive flow,
        sec. 3, its equation 10.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, context_dim: int, num_flows: int = 2, hidden: Sequence[int] = (50,)) -> None:
        super().__init__(encoder, Autoregressive(latent_dim, context_dim, num_flows, hidden, "inverse"))


@recorded
class MaskedAutoregressive(Amortized):
    """q(z | x) as ``InverseAutoregressive``, its maps run from latent to noise: any density costs one pass, a draw costs Z.

    Args:
        encoder: (N, *event) -> (N, 2 Z + C).
        latent_dim: Z, at least 2.
        context_dim: C, the features of x that the maps see.
        num_flows: Maps, each followed by a reversal of the coordinates.
        hidden: Widths of the hidden layers of each masked network, each at least Z.

    Raises:
        FamilyError: See ``Autoregressive``; on the first batch, an encoder of another width.

    References:
        Papamakarios, Pavlakou, Murray (2017), Masked autoregressive flow for density estimation, sec. 3.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, context_dim: int, num_flows: int = 2, hidden: Sequence[int] = (50,)) -> None:
        super().__init__(encoder, Autoregressive(latent_dim, context_dim, num_flows, hidden, "masked"))
