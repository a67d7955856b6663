"""Flow priors: N(0, I) pushed through invertible maps, Pyro's own or affine couplings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms import AffineCoupling
from pyro.nn import DenseNN
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import FamilyError, check_count


@recorded
class Flow(nn.Module):
    """z = f_n(... f_1(z0)), z0 ~ N(0, I), with f_i transforms of ``pyro.distributions.transforms``; trained with the model.

    ``Flow(2, [spline_coupling(2), permute(2), spline_coupling(2)])``. The density of a draw of the guide needs every f_i backwards: of
    an autoregressive transform that takes Z passes, and its ``.inv`` takes one. A run folder rebuilds Pyro's trainable transforms of a
    vector and their networks, ``Permute`` and ``.inv``; with others, load it by ``ppvae.load(folder, model, guide)``.

    Args:
        latent_dim: Z.
        transforms: Of R^Z, the first nearest to z0.

    References:
        Rezende, Mohamed (2015), Variational inference with normalizing flows, sec. 3.
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, transforms: Sequence[Any]) -> None:
        super().__init__()
        if not transforms:
            raise FamilyError("a flow needs a transform at least", mend="priors.StandardNormal(latent_dim)")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.transforms = list(transforms)
        self.modules_of_transforms = nn.ModuleList([part for part in transforms if isinstance(part, nn.Module)])

    def forward(self) -> TorchDistribution:
        """The flow over R^Z."""
        for transform in self.transforms:  # what they remember of their last input belongs to parameters that a step has moved since
            transform.clear_cache()
        base = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return dist.TransformedDistribution(base, list(self.transforms))  # type: ignore[no-any-return]


@recorded
class CouplingFlow(nn.Module):
    """z = f(z0), z0 ~ N(0, I), f affine couplings, each followed by a reversal of the coordinates (Real NVP).

    A coupling leaves the first Z // 2 coordinates and shifts and scales the others by a network of those; its log scales are held in
    [-5, 3]. It is inverted as cheaply as it is run.

    Args:
        latent_dim: Z, at least 2.
        num_flows: Couplings.
        hidden: Widths of the hidden layers (ELU) of each coupling's network.

    Raises:
        FamilyError: A coupling has nothing to split, or its network no hidden layer.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, sec. 3.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, num_flows: int = 4, hidden: Sequence[int] = (50,)) -> None:
        super().__init__()
        check_count("num_flows", num_flows)
        if latent_dim < 2:
            raise FamilyError(
                f"a coupling moves some coordinates given the others and needs 2 at least, got latent_dim={latent_dim}",
                mend="priors.Flow(1, [pyro.distributions.transforms.Spline(1)])",
            )
        if not hidden:
            raise FamilyError("the network of a coupling needs a hidden layer, got hidden=()", mend="hidden=(50,)")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.kept = latent_dim // 2
        moved = latent_dim - self.kept
        self.networks = nn.ModuleList([DenseNN(self.kept, list(hidden), [moved, moved], nn.ELU()) for _ in range(num_flows)])

    def forward(self) -> TorchDistribution:
        """The flow over R^Z. Its maps are made anew at each call: they keep their last input, and parameters move."""
        base = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        reversal = torch.arange(len(self.loc) - 1, -1, -1, device=self.loc.device)
        couplings = [AffineCoupling(self.kept, network) for network in self.networks]
        maps = [part for coupling in couplings for part in (coupling, dist.transforms.Permute(reversal))]
        return dist.TransformedDistribution(base, maps)  # type: ignore[no-any-return]
