"""Likelihoods of counts: whole numbers from 0 on. Each maps (..., D) to a distribution of event shape (D,)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import DataError, ShapeError
from ppvae.models import distributions
from ppvae.models.covariates import covariate_of

LINEAR_ABOVE = 15.0  # exp(15) is 3.3 million: beyond, the rate grows linearly, so that no output overflows it
LOG_DISPERSIONS = 30.0  # beyond, a NegativeBinomial is Poisson, or all but surely 0, to the last digit


@recorded
class Poisson(nn.Module):
    """x_d ~ Poisson(exp(output_d)), for counts.

    Above an output of 15 the rate is exp(15) (1 + output - 15), its tangent: it still grows, and no gradient overflows.
    """

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) log rates -> event shape (D,)."""
        over = (output - LINEAR_ABOVE).clamp(min=0)
        log_rate = output.clamp(max=LINEAR_ABOVE) + torch.log1p(over)
        return distributions.Poisson(log_rate).to_event(1)  # type: ignore[no-any-return]


@recorded
class NegativeBinomial(nn.Module):
    """x_d ~ NegativeBinomial(mean size softmax(output)_d, inverse dispersion r_d), for counts whose total is observed.

    The size of a datum is a covariate: ``{"x": counts, "size": (N,)}``, or, where the batch is the counts alone, their total, 1 at
    least. p(x | z) is then a density of x given its own total: the data do not tell the total apart from it, and draws have that
    total in the mean alone. r_d is learned, one a dimension; the variance is m + m^2 / r.

    Args:
        data_dim: D.
        initial: Where every r_d starts.

    References:
        Lopez, Regier, Cole, Jordan, Yosef (2018), Deep generative modeling for single-cell transcriptomics, Methods; with an observed
        library size, as in scvi-tools' SCVI.
    """

    covariate = "size"

    def __init__(self, data_dim: int, initial: float = 1.0) -> None:
        super().__init__()
        if not initial > 0:
            raise ShapeError(f"the inverse dispersion of a NegativeBinomial likelihood must be positive, got {initial}")
        self.log_inverse_dispersion = nn.Parameter(torch.full((data_dim,), math.log(initial)))

    def covariate_of(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """The sizes, (N,): given, or the totals of a batch that is the counts alone.

        Raises:
            ShapeError: Entries are missing and no size is given: the total is not observed then.
            DataError: A size is not positive.
        """
        if isinstance(x, Tensor):
            return x.sum(-1).clamp(min=1)
        if x.keys() == {"x"}:
            return x["x"].sum(-1).clamp(min=1)
        size = covariate_of(x, "size", "a NegativeBinomial likelihood")
        if dist.is_validation_enabled() and not bool((size > 0).all()):
            row = int((~(size > 0)).reshape(len(size), -1).any(-1).nonzero()[0])
            raise DataError("a size factor must be positive", where=f"row {row} of 'size': {size[row].flatten()[0].item():.6g}")
        return size.reshape(len(size))

    def forward(self, output: Tensor, size: Tensor) -> TorchDistribution:
        """(..., N, D) and sizes (N,) -> event shape (D,).

        Raises:
            ShapeError: The network has another number of outputs than there are dispersions.
        """
        if output.shape[-1] != len(self.log_inverse_dispersion):
            raise ShapeError(f"NegativeBinomial({len(self.log_inverse_dispersion)}) needs as many outputs, got {output.shape[-1]}")
        log_mean = size.to(output).log()[..., None] + torch.log_softmax(output, -1)
        held = self.log_inverse_dispersion.clamp(-LOG_DISPERSIONS, LOG_DISPERSIONS)
        return distributions.NegativeBinomial(log_mean, held).to_event(1)  # type: ignore[no-any-return]
