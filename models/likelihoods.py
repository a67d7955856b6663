"""Likelihoods: what a network's output says of x. Each maps (..., outputs) to a distribution of event shape (D,).

Entries are independent given z, so that missing ones are left out (``models.missing``). Where an entry takes several outputs, those of
one kind stand together, as ``nn.ConvDecoder(..., outputs=...)`` gives them; ``Categorical`` alone has its categories fastest.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.models.likelihoods_counts import NegativeBinomial, Poisson
from ppvae.models.likelihoods_pixels import ContinuousBernoulli, DiscretizedLogistic, bits_per_dimension
from ppvae.models.likelihoods_real import Beta, Laplace, LaplaceLearned, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Laplace",
    "LaplaceLearned",
    "NegativeBinomial",
    "Normal",
    "NormalLearned",
    "NormalPerDimension",
    "Poisson",
    "StudentT",
    "bits_per_dimension",
]


@recorded
class Bernoulli(nn.Module):
    """x_d ~ Bernoulli(sigmoid(output_d)), for data of 0 and 1."""

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) logits -> event shape (D,)."""
        return dist.Bernoulli(logits=output).to_event(1)  # type: ignore[no-any-return]


@recorded
class Normal(nn.Module):
    """x ~ N(output, scale^2 I) with a fixed scale."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ShapeError(f"the scale of a Normal likelihood must be positive, got {scale}")
        self.scale = scale

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) -> event shape (D,)."""
        return dist.Normal(output, self.scale).to_event(1)  # type: ignore[no-any-return]


@recorded
class NormalLearned(nn.Module):
    """x ~ N(output, scale^2 I) with one scale, learned with the network; ``initial`` is where it starts."""

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) -> event shape (D,)."""
        return dist.Normal(output, self.log_scale.exp()).to_event(1)  # type: ignore[no-any-return]


@recorded
class NormalPerDimension(nn.Module):
    """x_d ~ N(loc_d, scale_d^2), both from the network: its 2 D outputs are (loc, raw), scale = softplus(raw) + ``min_scale``."""

    def __init__(self, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.min_scale = min_scale

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., 2 D) -> event shape (D,)."""
        loc, raw = output.chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw) + self.min_scale).to_event(1)  # type: ignore[no-any-return]


@recorded
class Categorical(nn.Module):
    """x_d ~ Categorical over ``num_categories``, for data of 0, 1, ..., C - 1. The network has D C outputs, category fastest."""

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_categories = num_categories

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D C) logits -> event shape (D,)."""
        if output.shape[-1] % self.num_categories:
            raise ShapeError(
                f"Categorical needs a multiple of {self.num_categories} outputs, got {output.shape[-1]}",
                mend="end the network in D * num_categories outputs",
            )
        return dist.Categorical(logits=output.unflatten(-1, (-1, self.num_categories))).to_event(1)  # type: ignore[no-any-return]
