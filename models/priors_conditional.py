"""Conditional prior: p(z | y), y a label or covariate of the batch, ``{"x": ..., "y": ...}``."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import DataError
from ppvae.families import Family
from ppvae.models.covariates import covariate_of, one_hot


@recorded
class Conditional(nn.Module):
    """z | y ~ family(network(y)); the model is then one of p(x | y), and log p(x) is log p(x | y).

    Args:
        network: (..., C) -> (..., family.num_parameters).
        family: Rows of unconstrained numbers -> distributions over R^Z (``ppvae.families``).
        covariate: Key of y in the batch, (N,) or (N, C).
        num_categories: C, where y holds labels 0, 1, ..., C - 1: the network sees them as zeros and a one.

    References:
        Sohn, Lee, Yan (2015), Learning structured output representation using deep conditional generative models, sec. 4.
        Khemakhem, Kingma, Monti, Hyvärinen (2020), Variational autoencoders and nonlinear ICA, sec. 3: where the decoder does not see y.
    """

    def __init__(self, network: nn.Module, family: Family, covariate: str = "y", num_categories: int | None = None) -> None:
        super().__init__()
        self.network, self.family = network, family
        self.covariate, self.num_categories = covariate, num_categories

    def covariate_of(self, x: dict[str, Tensor]) -> Tensor:
        """y of a batch.

        Raises:
            ShapeError: The batch does not hold it.
            DataError: A label is none of the categories.
        """
        y = covariate_of(x, self.covariate, "a Conditional prior")
        if self.num_categories is not None and dist.is_validation_enabled():
            wrong = ~((y >= 0) & (y < self.num_categories) & (y == y.floor()))
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise DataError(
                    f"labels are 0, 1, ..., {self.num_categories - 1}, and {int(wrong.sum())} of {len(y)} are not",
                    where=f"row {row} of '{self.covariate}': {y[row].item():.6g}",
                    mend="count them from 0, or raise num_categories",
                )
        return y

    def forward(self, y: Tensor) -> TorchDistribution:
        """p(z | y), (N,) or (N, C) -> batch shape (N,), event shape (Z,)."""
        if self.num_categories is not None:
            y = one_hot(y, self.num_categories)
        elif y.dim() == 1:
            y = y[:, None]
        return self.family.distribution(self.network(y.to(torch.get_default_dtype()) if not y.is_floating_point() else y))
