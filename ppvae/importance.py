"""Weights and their reductions, on arrays alone: log-mean-exp, its error, effective sample size, k-hat.

Log weights are (K, ...), particles leftmost, nats. ``Streamed`` holds the same reductions for weights that come in blocks: its memory
does not grow with K but for the largest 3 sqrt(K) weights that k-hat looks at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_PARTICLES = 25  # below it the tail holds five weights or fewer and k-hat is not defined


def log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of the weights along ``dim``."""
    return torch.logsumexp(log_weights, dim) - math.log(log_weights.shape[dim])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over K, in [1, K]. (K, ...) -> (...).

    References:
        Kong (1992), A note on importance sampling using standardized weights.
    """
    return (2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)).exp()


def standard_error(log_weights: Tensor) -> Tensor:
    """Standard error of ``log_mean_exp`` by the delta method, sd(w) / (mean(w) sqrt(K)). (K, ...) -> (...)."""
    k = log_weights.shape[0]
    return _relative_error(effective_sample_size(log_weights), torch.as_tensor(float(k)))


def _relative_error(ess: Tensor, k: Tensor) -> Tensor:
    # sum (w - mean)^2 / (K - 1) / (K mean^2) = (K / ESS - 1) / (K - 1); rounding may leave ESS a hair above K; one draw has no error
    return torch.where(k > 1, ((k / ess - 1).clamp(min=0) / (k - 1).clamp(min=1)).sqrt(), torch.nan)


def k_hat_threshold(num_particles: int) -> float:
    """min(1 - 1 / log10 K, 0.7): above it the estimate should not be believed.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, sec. 3.2.4.
    """
    return min(1 - 1 / math.log10(max(num_particles, 2)), 0.7)


def tail_length(num_particles: int) -> int:
    """Number of largest weights that the generalised Pareto distribution is fitted to, ceil(min(K / 5, 3 sqrt K))."""
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def k_hat(log_weights: Tensor, resolution: float = 1e-13) -> Tensor:
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
    keep = min(k, tail_length(k) + 1)
    largest = flat.topk(keep, dim=0).values
    return k_hat_of_largest(largest, flat.amin(0), k, resolution).reshape(shape)


def k_hat_of_largest(largest: Tensor, smallest: Tensor, num_particles: int, resolution: float = 1e-13) -> Tensor:
    """k-hat from the M + 1 largest log weights of K, (M + 1, N), in any order, and the smallest one, (N,)."""
    n = largest.shape[1]
    found = torch.full((n,), torch.nan, dtype=torch.float64)
    if num_particles < MIN_PARTICLES:
        return found
    ordered = largest.double().cpu().sort(0).values
    top = ordered[-1]
    constant = (top - smallest.double().cpu()) <= resolution * top.abs().clamp(min=1)
    relative = (ordered - top).exp()
    cutoff = relative[0].clamp(min=torch.finfo(torch.float64).tiny)
    exceeding = relative > cutoff
    counts = exceeding.sum(0)
    for count in counts.unique().tolist():  # nearly always one count: ties at the cutoff are rare
        rows = (counts == count).nonzero()[:, 0]
        if count <= 4:
            found[rows] = torch.inf
            continue
        for some in rows.split(256):  # bounds the memory of the fit's grid
            found[some] = _pareto_shape((relative[-count:, some] - cutoff[some]).T.contiguous())
    found[constant] = -torch.inf
    return found


def _pareto_shape(x: Tensor) -> Tensor:
    """Zhang and Stephens' estimate of the shape, with PSIS's weak prior towards 0.5. Ascending exceedances (N, M) -> (N,)."""
    m = x.shape[1]
    grid = 30 + int(math.sqrt(m))
    steps = torch.arange(1, grid + 1, dtype=x.dtype)
    quartile = x[:, int(m / 4 + 0.5) - 1 : int(m / 4 + 0.5)]
    b = (1 - torch.sqrt(grid / (steps - 0.5))) / (3 * quartile) + 1 / x[:, -1:]
    k = torch.log1p(-b[:, :, None] * x[:, None, :]).mean(-1)
    profile = m * (torch.log(-b / k) - k - 1)
    weights = torch.softmax(profile, -1)
    weights = torch.where(weights >= 10 * torch.finfo(x.dtype).eps, weights, 0.0)
    b_mean = (b * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    shape = torch.log1p(-b_mean * x).mean(-1)
    return (m * shape + 10 * 0.5) / (m + 10)


class Streamed:
    """Reductions over K of log weights that arrive as (k, n) blocks, k of K at a time.

    Running log-sum-exp of w and w^2, mean and second moment of log w, the smallest and the M + 1 largest weights.
    """

    def __init__(self, num_particles: int, n: int, resolution: float = 1e-13) -> None:
        self.expected, self.resolution = num_particles, resolution
        self.count = 0
        self._sum = torch.full((n,), -torch.inf, dtype=torch.float64)
        self._sum_of_squares = self._sum.clone()
        self._mean = torch.zeros(n, dtype=torch.float64)
        self._scatter = torch.zeros(n, dtype=torch.float64)
        self._finite = torch.ones(n, dtype=torch.bool)
        self._smallest = torch.full((n,), torch.inf, dtype=torch.float64)
        self._largest = torch.empty(0, n, dtype=torch.float64)
        self._waiting: list[Tensor] = []  # blocks not yet merged into the largest: sorting them together is cheaper

    def add(self, log_weights: Tensor) -> None:
        """Take in a block, (k, n)."""
        block = log_weights.detach().double().cpu()
        k = block.shape[0]
        self._sum = torch.logaddexp(self._sum, torch.logsumexp(block, 0))
        self._sum_of_squares = torch.logaddexp(self._sum_of_squares, torch.logsumexp(2 * block, 0))
        self._finite &= torch.isfinite(block).all(0)
        mean = block.mean(0)
        shift = mean - self._mean  # pairwise update: the sum of squares alone would cancel at log w near -1000
        total = self.count + k
        self._mean = self._mean + shift * (k / total)
        self._scatter = self._scatter + (block - mean).square().sum(0) + shift.square() * (self.count * k / total)
        self.count = total
        self._smallest = torch.minimum(self._smallest, block.amin(0))
        self._waiting.append(block)
        if sum(map(len, self._waiting)) >= max(1024, len(self._largest)):
            self._merge()

    def _merge(self) -> None:
        keep = min(self.expected, tail_length(self.expected) + 1)
        merged = torch.cat([self._largest, *self._waiting])
        self._largest = merged.topk(min(keep, len(merged)), dim=0).values
        self._waiting = []

    @property
    def log_mean_weight(self) -> Tensor:
        """(n,)."""
        return self._sum - math.log(self.count)

    @property
    def ess(self) -> Tensor:
        """(n,), in [1, K]."""
        return (2 * self._sum - self._sum_of_squares).exp()

    @property
    def log_mean_weight_se(self) -> Tensor:
        """(n,), the delta method's standard error of ``log_mean_weight``."""
        return _relative_error(self.ess, torch.as_tensor(float(self.count)))

    @property
    def mean(self) -> Tensor:
        """Mean of log w, (n,): the ELBO; -inf where a weight is 0."""
        return torch.where(self._finite, self._mean, -torch.inf)

    @property
    def mean_se(self) -> Tensor:
        """(n,), standard error of ``mean``; nan for one particle."""
        se = (self._scatter / max(self.count - 1, 1) / self.count).sqrt()
        return torch.where(self._finite & (self.count > 1), se, torch.nan)

    @property
    def k_hat(self) -> Tensor:
        """(n,)."""
        self._merge()
        return k_hat_of_largest(self._largest, self._smallest, self.count, self.resolution)
