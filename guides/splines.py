"""Amortized neural spline flow: a Normal pushed through monotone rational-quadratic splines that see features of x.

Both directions cost one pass of the networks. Unlike affine couplings, one spline can make several modes of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae.build import recorded
from ppvae.errors import ArgumentError, check_count
from ppvae.families import MIN_LOG_SCALE, check_row
from ppvae.guides.amortized import Amortized
from ppvae.nn import MLP

SLOPE_ONE = math.log(math.expm1(1.0 - 1e-3))  # softplus of it, and the least slope of 1e-3 that Pyro adds, are 1: zeros are the identity


@recorded
class SplineCouplings(nn.Module):
    """The family: z = loc + scale f(e; c) with e ~ N(0, I); the row holds (loc, log scale, c), P = 2 Z + C.

    f is ``num_flows`` times a coupling and a reversal of the coordinates. A coupling leaves the first Z // 2 coordinates and moves each
    of the others by a spline on [-bound, bound], the identity outside, whose bins come from a network of those left and of c. One latent
    dimension is enough: its splines see c alone.

    Args:
        latent_dim: Z.
        context_dim: C, the features that the splines see; at least 1 where Z is 1.
        num_flows: Couplings.
        hidden: Widths of the hidden layers (ELU) of each coupling's network.
        num_bins: Of each spline.
        bound: Standard deviations on either side that the splines reach.

    Raises:
        ArgumentError: A number out of its range.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural spline flows, sec. 3.
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        num_flows: int = 2,
        hidden: Sequence[int] = (50,),
        num_bins: int = 8,
        bound: float = 4.0,
    ) -> None:
        super().__init__()
        check_count("num_flows", num_flows)
        if num_bins < 2:
            raise ArgumentError(f"a spline needs at least 2 bins, got num_bins={num_bins}")
        if not bound > 0:
            raise ArgumentError(f"the bound of the splines must be positive, got {bound}")
        if latent_dim == 1 and context_dim < 1:
            raise ArgumentError("over one latent dimension the splines see the features alone, and context_dim is 0", mend="context_dim=1")
        self.latent_dim, self.context_dim, self.num_bins, self.bound = latent_dim, context_dim, num_bins, float(bound)
        self.num_parameters = 2 * latent_dim + context_dim
        self.kept = latent_dim // 2
        outputs = (latent_dim - self.kept) * (3 * num_bins - 1)
        networks = [MLP(self.kept + context_dim, list(hidden), outputs, nn.ELU) for _ in range(num_flows)]
        self.networks = nn.ModuleList(networks)

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., 2 Z + C) -> the flow over R^Z. Its density is exact at any z.

        Raises:
            FamilyError: The last dimension is not 2 Z + C long.
        """
        check_row(self, parameters)
        loc, log_scale, context = parameters.split([self.latent_dim, self.latent_dim, self.context_dim], -1)
        base = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
        reversal = torch.arange(self.latent_dim - 1, -1, -1, device=parameters.device)
        maps: list[Any] = []
        for network in self.networks:
            maps += [_SplineCoupling(self.kept, network, context, self.num_bins, self.bound), transforms.Permute(reversal)]
        affine = transforms.AffineTransform(loc, log_scale.clamp(min=MIN_LOG_SCALE).exp(), event_dim=1)
        return dist.TransformedDistribution(base, [*maps, affine])  # type: ignore[no-any-return]


class _SplineCoupling(transforms.Transform):
    """y_1 = x_1, y_2 = spline(x_2; network(x_1, c)), each coordinate of x_2 by a spline of its own."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, kept: int, network: nn.Module, context: Tensor, num_bins: int, bound: float) -> None:
        super().__init__(cache_size=1)
        self.kept, self.network, self.context, self.num_bins, self.bound = kept, network, context, num_bins, bound

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The image and log |d image / dx|."""
        kept, moved = x[..., : self.kept], x[..., self.kept :]
        context = self.context.expand(*x.shape[:-1], self.context.shape[-1])
        k = self.num_bins
        widths, heights, slopes = self.network(torch.cat([kept, context], -1)).unflatten(-1, (moved.shape[-1], -1)).split([k, k, k - 1], -1)
        slopes = nn.functional.softplus(slopes + SLOPE_ONE)
        spline = ConditionedSpline((widths.softmax(-1), heights.softmax(-1), slopes, None), bound=self.bound, order="quadratic")
        moved, log_slopes = spline.spline_op(moved, inverse=inverse)
        return torch.cat([kept, moved], -1), log_slopes.sum(-1)

    def _call(self, x: Tensor) -> Tensor:
        y, self._log_det = self._run(x, inverse=False)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._run(y, inverse=True)
        self._log_det = -log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy / dx|, (...); of the pair that was last mapped it is at hand."""
        x_last, y_last = self._cached_x_y
        return self._log_det if x is x_last and y is y_last else self._run(x, inverse=False)[1]


@recorded
class Spline(Amortized):
    """q(z | x) = loc + scale f(N(0, I); c), with (loc, log scale, c) = encoder(x), 2 Z + C outputs, and f spline couplings.

    Args:
        encoder: (N, *event) -> (N, 2 Z + C).
        latent_dim: Z.
        context_dim: C, the features of x that the splines see.
        num_flows: Couplings, each followed by a reversal of the coordinates.
        hidden: Widths of the hidden layers of each coupling's network.
        num_bins: Of each spline.
        bound: Standard deviations on either side that the splines reach.

    Raises:
        ArgumentError: See ``SplineCouplings``.
        FamilyError: On the first batch, an encoder of another width.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural spline flows, sec. 3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent_dim: int,
        context_dim: int,
        num_flows: int = 2,
        hidden: Sequence[int] = (50,),
        num_bins: int = 8,
        bound: float = 4.0,
    ) -> None:
        super().__init__(encoder, SplineCouplings(latent_dim, context_dim, num_flows, hidden, num_bins, bound))
