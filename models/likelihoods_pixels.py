"""Likelihoods of pixels: levels from 0 to 255, or shades of grey in [0, 1]."""

from __future__ import annotations

import math
from typing import TypeVar

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError, check_count
from ppvae.models import distributions

Number = TypeVar("Number", float, Tensor)


@recorded
class ContinuousBernoulli(nn.Module):
    """p(x_d) = exp(output_d x_d) output_d / (exp(output_d) - 1), for real values in [0, 1], such as shades of grey.

    References:
        Loaiza-Ganem, Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational autoencoders.
    """

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., D) logits -> event shape (D,)."""
        return distributions.ContinuousBernoulli(output).to_event(1)  # type: ignore[no-any-return]


@recorded
class DiscretizedLogistic(nn.Module):
    """x_d ~ sum_m w_dm Logistic(loc_dm, scale_dm) in the bin of x_d, for pixels of 256 levels; the network has 3 M D outputs.

    Locations and scales are in units in which the levels go from -1 to 1. Entries are independent given z, the channels of a colour
    image among them: each has a mixture of its own, and nothing is autoregressive. The two outer bins take the tails.

    Args:
        num_components: M, logistics an entry.
        num_levels: 256 for bytes.
        unit: Data are level / (num_levels - 1), as images are that were loaded with ``binarize="none"``; else whole numbers.
        min_log_scale: Where log scales are held from below.

    References:
        Salimans, Karpathy, Chen, Kingma (2017), PixelCNN++, sec. 2.1; there with an approximation where a bin has little mass, which is
        not needed here, and with the channels of a pixel in turn.
    """

    def __init__(self, num_components: int = 5, num_levels: int = 256, unit: bool = False, min_log_scale: float = -7.0) -> None:
        super().__init__()
        check_count("num_components", num_components)
        check_count("num_levels", num_levels, 2)
        self.num_components, self.num_levels, self.min_log_scale = num_components, num_levels, min_log_scale
        self.step = 1 / (num_levels - 1) if unit else 1.0

    def forward(self, output: Tensor) -> TorchDistribution:
        """(..., 3 M D) -> event shape (D,): the logits of the M weights, the locations, the log scales, each with entries fastest.

        Raises:
            ShapeError: The outputs are no multiple of 3 M.
        """
        if output.shape[-1] % (3 * self.num_components):
            raise ShapeError(
                f"DiscretizedLogistic needs a multiple of {3 * self.num_components} outputs, got {output.shape[-1]}",
                mend="end the network in 3 * num_components * D outputs",
            )
        logits, locs, log_scales = output.unflatten(-1, (3, self.num_components, -1)).transpose(-1, -2).unbind(-3)
        log_scales = log_scales.clamp(min=self.min_log_scale)
        mixture = distributions.DiscretizedLogisticMixture(logits, locs, log_scales, self.num_levels, self.step)
        return mixture.to_event(1)  # type: ignore[no-any-return]


def bits_per_dimension(log_px: Number, num_dims: int) -> Number:
    """-log2 p(x) / D, for values on a counting measure.

    Args:
        log_px: Nats a datum, a number or (N,).
        num_dims: D, the numbers of a datum: 3072 for a colour image of 32 x 32 pixels.

    Returns:
        Bits a dimension, of log_px's shape.
    """
    check_count("num_dims", num_dims)
    return log_px / (-num_dims * math.log(2))
