"""Mean field over global weights beside any local guide: q(w) q(z_n | x_n)."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from ppvae.batches import Batch
from ppvae.build import recorded
from ppvae.errors import ShapeError


@recorded
class GlobalWeights(PyroModule):
    """q(w, z) = N(w; loc, diag(scale^2)) prod_n q(z_n | x_n), the guide of ``models.BayesianDecoder``.

    Args:
        local: The guide of the latents of single data, any of ``guides``.
        network: A network of the model's architecture: loc starts at its weights, which differ from each other; from a loc of zeros
            no hidden unit would ever come to differ from the next.
        initial_scale: Where every scale starts.

    Raises:
        ShapeError: The scale is not positive.

    References:
        Blundell, Cornebise, Kavukcuoglu, Wierstra (2015), Weight uncertainty in neural networks, sec. 3.
    """

    def __init__(self, local: nn.Module, network: nn.Module, initial_scale: float = 0.05) -> None:
        super().__init__()
        if not initial_scale > 0:
            raise ShapeError(f"the scale of the weights must be positive, got {initial_scale}")
        self.local = local
        start = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        self.loc = nn.Parameter(start.clone())
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(initial_scale)))

    def forward(self, x: Batch) -> None:
        """Draw the weights, and z given x, (N, *event)."""
        pyro.sample("weights", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        self.local(x)
