"""Likelihoods of real values with tails other than a Normal's, and of proportions. Each maps (..., outputs) to event shape (D,)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.models import distributions


@recorded
class Laplace(nn.Module):
    """x_d ~ Laplace(output_d, scale) with a fixed scale: -log p is the absolute error."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = _positive("scale of a Laplace", scale)

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) -> event shape (D,)."""
        return dist.Laplace(output, self.scale).to_event(1)  # type: ignore[no-any-return]


@recorded
class LaplaceLearned(nn.Module):
    """x_d ~ Laplace(output_d, scale) with one scale, learned with the network; ``initial`` is where it starts."""

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(_positive("scale of a Laplace", initial))))

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) -> event shape (D,)."""
        return dist.Laplace(output, self.log_scale.exp()).to_event(1)  # type: ignore[no-any-return]


@recorded
class StudentT(nn.Module):
    """x_d ~ StudentT(df, output_d, scale) with one scale, learned with the network: outliers cost their logarithm.

    Args:
        df: Degrees of freedom; without it they are learned, from 4 on. Up to 1 there is no mean, up to 2 no variance.
        initial: Where the scale starts.
    """

    def __init__(self, df: float | None = None, initial: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(_positive("scale of a StudentT", initial))))
        log_df = torch.tensor(math.log(4.0 if df is None else _positive("df of a StudentT", df)))
        self.log_df: Tensor
        if df is None:
            self.log_df = nn.Parameter(log_df)
        else:
            self.register_buffer("log_df", log_df, persistent=False)

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) -> event shape (D,)."""
        return distributions.StudentT(self.log_df.exp(), output, self.log_scale.exp()).to_event(1)  # type: ignore[no-any-return]


@recorded
class Beta(nn.Module):
    """x_d ~ Beta(a_d, b_d), for proportions in (0, 1), the ends excluded; (a, b) = softplus of the 2 D outputs, + ``min_concentration``."""

    def __init__(self, min_concentration: float = 1e-3) -> None:
        super().__init__()
        self.min_concentration = _positive("least concentration of a Beta", min_concentration)

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., 2 D) -> event shape (D,).

        Raises:
            ShapeError: The outputs are odd in number.
        """
        if output.shape[-1] % 2:
            raise ShapeError(f"Beta needs an even number of outputs, got {output.shape[-1]}", mend="end the network in 2 * D outputs")
        a, b = (nn.functional.softplus(output) + self.min_concentration).chunk(2, -1)
        return distributions.Beta(a, b).to_event(1)  # type: ignore[no-any-return]


def _positive(what: str, value: float) -> float:
    if not value > 0:
        raise ShapeError(f"the {what} likelihood must be positive, got {value}")
    return value
