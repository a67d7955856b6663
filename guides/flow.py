"""Amortized flow: q(z | x) is a diagonal Normal pushed through invertible maps that see features of x."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms import AffineCoupling, Permute
from pyro.nn import ConditionalDenseNN
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import FamilyError, check_count
from ppvae.families import MIN_LOG_SCALE
from ppvae.guides.amortized import Amortized


@recorded
class Couplings(nn.Module):
    """The family: z = f(z0; c) with z0 ~ N(loc, diag(scale^2)); the row holds (loc, log scale, c), P = 2 Z + C.

    f is ``num_flows`` times an affine coupling and a reversal of the coordinates. A coupling leaves the first Z // 2 coordinates and
    shifts and scales the others by a network of those and of the context c; its log scales are held in [-5, 3]. The networks are
    common to all data, the rows are not: a local posterior of this family has a row of its own per datum and the same networks.

    Args:
        latent_dim: Z, at least 2.
        context_dim: C, the features that the couplings see; 0 for the same maps at every x.
        num_flows: Couplings.
        hidden: Widths of the hidden layers (ELU) of each coupling's network.

    Raises:
        FamilyError: A coupling has nothing to split, or its network no hidden layer.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, sec. 3.
    """

    def __init__(self, latent_dim: int, context_dim: int, num_flows: int = 2, hidden: Sequence[int] = (50,)) -> None:
        super().__init__()
        check_count("num_flows", num_flows)
        if latent_dim < 2:
            raise FamilyError(f"a coupling moves some coordinates given the others and needs 2 at least, got latent_dim={latent_dim}")
        if not hidden:
            raise FamilyError("the network of a coupling needs a hidden layer, got hidden=()", mend="hidden=(50,)")
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self.num_parameters = 2 * latent_dim + context_dim
        self.kept = latent_dim // 2
        moved = latent_dim - self.kept
        networks = [ConditionalDenseNN(self.kept, context_dim, list(hidden), [moved, moved], nn.ELU()) for _ in range(num_flows)]
        self.networks = nn.ModuleList(networks)

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., 2 Z + C) -> the flow over R^Z. Its density is exact at any z: a coupling is inverted as cheaply as it is run.

        Raises:
            FamilyError: The last dimension is not 2 Z + C long.
        """
        if parameters.shape[-1] != self.num_parameters:
            raise FamilyError(
                f"a flow over {self.latent_dim} dimensions with {self.context_dim} features needs {self.num_parameters} numbers per "
                f"datum, got {parameters.shape[-1]}",
                mend=f"let the encoder end in {self.num_parameters} outputs",
            )
        loc, log_scale, context = parameters.split([self.latent_dim, self.latent_dim, self.context_dim], -1)
        base = dist.Normal(loc, log_scale.clamp(min=MIN_LOG_SCALE).exp()).to_event(1)
        reversal = torch.arange(self.latent_dim - 1, -1, -1, device=parameters.device)
        couplings = [AffineCoupling(self.kept, partial(network, context=context)) for network in self.networks]
        maps = [part for coupling in couplings for part in (coupling, Permute(reversal))]
        return dist.TransformedDistribution(base, maps)  # type: ignore[no-any-return]


@recorded
class Flow(Amortized):
    """q(z | x) = f(N(loc, diag(scale^2)); c), with (loc, log scale, c) = encoder(x), 2 Z + C outputs, and f affine couplings.

    Args:
        encoder: (N, *event) -> (N, 2 Z + C).
        latent_dim: Z, at least 2.
        context_dim: C, the features of x that the couplings see.
        num_flows: Couplings, each followed by a reversal of the coordinates.
        hidden: Widths of the hidden layers of each coupling's network.

    Raises:
        FamilyError: See ``Couplings``; on the first batch, an encoder of another width.

    References:
        Rezende, Mohamed (2015), Variational inference with normalizing flows, sec. 4.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, context_dim: int, num_flows: int = 2, hidden: Sequence[int] = (50,)) -> None:
        super().__init__(encoder, Couplings(latent_dim, context_dim, num_flows, hidden))
