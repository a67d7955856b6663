"""The tail of importance weights: the generalised Pareto distribution fitted to the largest, its shape k-hat, and the smoothed tail.

Log weights are (K, ...), particles leftmost, nats. The fit needs the largest 3 sqrt(K) + 1 weights and no others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_PARTICLES = 25  # below it the tail holds five weights or fewer and k-hat is not defined
RESOLUTION = 1e-13
FEWEST = 5  # exceedances that a shape is fitted to
CELLS = 2**18  # numbers of the fit's grid at once: 2 MB, in the cache whatever K


def k_hat_threshold(num_particles: int) -> float:
    """min(1 - 1 / log10 K, 0.7): above it the estimate should not be believed.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, sec. 3.2.4.
    """
    return min(1 - 1 / math.log10(max(num_particles, 2)), 0.7)


def tail_length(num_particles: int) -> int:
    """Number of largest weights that the generalised Pareto distribution is fitted to, ceil(min(K / 5, 3 sqrt K))."""
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def k_hat(log_weights: Tensor, resolution: float = RESOLUTION) -> Tensor:
    """Shape of the generalised Pareto distribution fitted to the largest weights. (K, ...) -> (...).

    Args:
        log_weights: +log w, (K, ...). (arviz 1.x's ``psislw`` wants -log w.)
        resolution: Weights that differ by less than this, relative to the size of their logarithm, are constant.

    Returns:
        k-hat: -inf where all weights are equal (nothing can be fitted, and nothing is wrong), nan below 25 particles.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, sec. 3.1.
        Zhang, Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.
    """
    k, shape = log_weights.shape[0], log_weights.shape[1:]
    flat = log_weights.detach().double().reshape(k, -1)
    return fitted(largest(flat), flat.amin(0), k, resolution)[0].reshape(shape)


def largest(log_weights: Tensor) -> Tensor:
    """The M + 1 largest of K log weights in descending order, (K, N) -> (M + 1, N)."""
    return log_weights.topk(min(len(log_weights), tail_length(len(log_weights)) + 1), dim=0).values


def fitted(tail: Tensor, smallest: Tensor, num_particles: int, resolution: float = RESOLUTION) -> tuple[Tensor, Tensor]:
    """k-hat and the smoothed tail.

    Args:
        tail: The M + 1 largest of K log weights in descending order, (M + 1, N).
        smallest: The smallest of the K, (N,).
        num_particles: K.
        resolution: Weights that differ by less than this, relative to the size of their logarithm, are constant.

    Returns:
        k-hat, (N,), and (M + 1, N), float64, on the CPU: the weights above the (M + 1)-th are replaced by expected order statistics of
        the fitted distribution, none above the largest raw weight. Unchanged where nothing could be fitted.
    """
    raw = tail.detach().double().cpu()
    top, smoothed = raw[0], raw.clone()
    found = torch.full_like(top, torch.nan)
    if num_particles < MIN_PARTICLES:
        return found, smoothed
    relative = (raw - top).exp()
    cutoff = relative[-1].clamp(min=torch.finfo(torch.float64).tiny)
    counts = (relative > cutoff).sum(0)
    constant = (top - smallest.detach().double().cpu()) <= resolution * top.abs().clamp(min=1)
    found[counts < FEWEST] = torch.inf
    found[constant] = -torch.inf
    for count in counts[found.isnan()].unique().tolist():  # nearly always one count: ties at the cutoff are rare
        rows = (found.isnan() & (counts == count)).nonzero()[:, 0]
        for some in rows.split(max(1, CELLS // (count * _grid(count)))):
            shape, scale = _pareto((relative[:count, some] - cutoff[some]).flip(0).T.contiguous())
            replaced = (_order_statistics(count, shape, scale) + cutoff[some]).log().flip(0) + top[some]
            found[some] = shape
            smoothed[:count, some] = torch.where(shape.isfinite(), torch.minimum(replaced, top[some]), raw[:count, some])
    return found, smoothed


def _pareto(x: Tensor) -> tuple[Tensor, Tensor]:
    """Zhang and Stephens' estimate of shape, with PSIS's weak prior towards 0.5, and scale. Ascending exceedances (N, M) -> (N,) each."""
    m = x.shape[1]
    grid = _grid(m)
    steps = torch.arange(1, grid + 1, dtype=x.dtype)
    quartile = x[:, int(m / 4 + 0.5) - 1 : int(m / 4 + 0.5)]
    b = (1 - torch.sqrt(grid / (steps - 0.5))) / (3 * quartile) + 1 / x[:, -1:]
    k = torch.log1p(-b[:, :, None] * x[:, None, :]).mean(-1)
    profile = m * (torch.log(-b / k) - k - 1)
    weights = torch.softmax(profile, -1)
    weights = torch.where(weights >= 10 * torch.finfo(x.dtype).eps, weights, 0.0)
    b_mean = (b * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    shape = torch.log1p(-b_mean * x).mean(-1)
    return (m * shape + 10 * 0.5) / (m + 10), -shape / b_mean[:, 0]


def _grid(count: int) -> int:
    """Candidates that are weighed."""
    return 30 + int(math.sqrt(count))


def _order_statistics(count: int, shape: Tensor, scale: Tensor) -> Tensor:
    """Quantiles of generalised Pareto distributions at (i - 1/2) / M, ascending, (N,) each -> (M, N)."""
    log_survival = torch.log1p(-torch.arange(0.5, count, dtype=shape.dtype) / count)[:, None]
    exponential = shape.abs() < torch.finfo(shape.dtype).eps
    return scale * torch.where(exponential, -log_survival, torch.expm1(-shape * log_survival) / torch.where(exponential, 1.0, shape))
