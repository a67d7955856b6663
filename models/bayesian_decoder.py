"""Bayesian decoder: weights ~ N(0, s^2 I) once for all data, z_n ~ N(0, I), x_n | z_n ~ likelihood(network(z_n; weights))."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.models import priors
from ppvae.models.missing import masked, parts


@recorded
class BayesianDecoder(PyroModule):
    """p(w) prod_n p(z_n) p(x_n | z_n, w), with all of the network's weights as one global latent site "weights", (W,).

    ``fit`` scales the data terms by num_data / B and counts the weights' KL once, so that a mini-batch's loss is unbiased for that of
    all data. A measurement of single data is conditional on one draw of the weights, and says so.

    Args:
        network: (..., Z) -> (..., outputs); it gives the architecture, and its own weights are not used.
        likelihood: Maps the network's output to a distribution of x's event shape (``models.likelihoods``, or a lambda).
        latent_dim: Z.
        weight_scale: s, of the weights' prior.
        prior: Of z_n; without it N(0, I).

    Raises:
        ShapeError: The scale is not positive.

    References:
        Kingma, Welling (2014), Auto-encoding variational Bayes, app. F: full variational Bayes.
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: Callable[[Tensor], TorchDistribution],
        latent_dim: int,
        weight_scale: float = 1.0,
        prior: TorchDistribution | nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not weight_scale > 0:
            raise ShapeError(f"the scale of the weights' prior must be positive, got {weight_scale}")
        self.architecture = _without_parameters(network)
        self.likelihood, self.weight_scale = likelihood, weight_scale
        self.sizes = {name: p.shape for name, p in network.named_parameters()}
        self.prior_given: Any = prior or priors.StandardNormal(latent_dim)
        self.weights_at = priors.StandardNormal(sum(size.numel() for size in self.sizes.values()))

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, *event), or its observed entries where it is a dict of values and mask (``models.missing``)."""
        values, observed = parts(x)
        weights = pyro.sample("weights", dist.Normal(self.weights_at.loc, self.weight_scale).to_event(1))
        with pyro.plate("data", len(values), dim=-1):
            given = self.prior_given  # a Pyro distribution is callable too: calling it would draw
            z = pyro.sample("z", given if isinstance(given, TorchDistributionMixin) else given())
            pyro.sample("x", masked(self.likelihood(self.decode(z, weights)), observed), obs=values)

    def decode(self, z: Tensor, weights: Tensor) -> Tensor:
        """The network's output at z, (..., Z), with these weights, (W,)."""
        pieces = weights.split([size.numel() for size in self.sizes.values()])
        placed = {name: piece.reshape(size) for (name, size), piece in zip(self.sizes.items(), pieces, strict=True)}
        return torch.func.functional_call(self.architecture, placed, (z,))  # type: ignore[no-any-return]


def _without_parameters(network: nn.Module) -> nn.Module:
    """A copy whose parameters are buffers, to be replaced at every call: nothing of it is trained, named or saved."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return copied
