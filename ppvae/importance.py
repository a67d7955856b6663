"""Weights and their reductions, on arrays alone: log-mean-exp, its error and effective sample size, plain, truncated or smoothed.

Log weights are (K, ...), particles leftmost, nats. ``Streamed`` holds the same reductions for weights that come in blocks: its memory
does not grow with K but for the largest 3 sqrt(K) weights, which k-hat, truncation and smoothing look at.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppvae.errors import ArgumentError
from ppvae.pareto import CELLS, MIN_PARTICLES, RESOLUTION, fitted, k_hat, k_hat_threshold, tail_length

__all__ = [
    "MIN_PARTICLES",
    "WEIGHTS",
    "Reduced",
    "Streamed",
    "check_weights",
    "effective_sample_size",
    "k_hat",
    "k_hat_threshold",
    "log_mean_exp",
    "reduced",
    "smoothed",
    "standard_error",
    "tail_length",
    "truncated",
]

WEIGHTS = ("plain", "truncated", "smoothed")


class Reduced(NamedTuple):
    """Reductions over K, (...) each.

    Attributes:
        log_mean_weight: log of the mean weight, nats.
        se: Its Monte Carlo standard error by the delta method, nats; nan for one particle.
        ess: Effective sample size, in [1, K].
    """

    log_mean_weight: Tensor
    se: Tensor
    ess: Tensor


def check_weights(weights: str) -> str:
    """The name of a treatment of weights.

    Raises:
        ArgumentError: It is none of "plain", "truncated" and "smoothed".
    """
    if weights not in WEIGHTS:
        raise ArgumentError(f"weights are 'plain', 'truncated' or 'smoothed', got {weights!r}")
    return weights


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


def truncated(log_weights: Tensor) -> Tensor:
    """Log weights with none above mean(w) sqrt(K). (K, ...) -> (K, ...).

    The mean of these is biased downwards and has a finite variance whatever the weights' tail; the bias goes to 0 as K grows.

    References:
        Ionides (2008), Truncated importance sampling, sec. 2.
    """
    return torch.minimum(log_weights, log_mean_exp(log_weights) + 0.5 * math.log(len(log_weights)))


def smoothed(log_weights: Tensor, resolution: float = RESOLUTION) -> Tensor:
    """Log weights with the largest smoothed by a generalised Pareto distribution. (K, ...) -> (K, ...), float64.

    The M = ceil(min(K / 5, 3 sqrt K)) largest weights become expected order statistics of the distribution fitted to them, in their
    order, none above the largest raw weight. Unchanged where nothing can be fitted: constant weights, and below 25 particles.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, sec. 3.
    """
    k, shape = len(log_weights), log_weights.shape
    flat = log_weights.detach().double().cpu().reshape(k, -1)
    places = flat.topk(min(k, tail_length(k) + 1), dim=0).indices
    tail = fitted(flat.gather(0, places), flat.amin(0), k, resolution)[1]
    return flat.scatter(0, places, tail).reshape(shape).to(log_weights.device)


def reduced(log_weights: Tensor, weights: str = "plain", resolution: float = RESOLUTION) -> Reduced:
    """Log mean weight, its error and effective sample size. (K, ...) -> (...) each.

    Args:
        log_weights: (K, ...), nats.
        weights: "plain"; "truncated" at mean(w) sqrt(K); or "smoothed" by a generalised Pareto distribution.
        resolution: Weights that differ by less than this, relative to the size of their logarithm, are constant.

    Raises:
        ArgumentError: ``weights`` is none of these.
    """
    treated = log_weights.detach().double()
    if check_weights(weights) == "truncated":
        treated = truncated(treated)
    elif weights == "smoothed":
        treated = smoothed(treated, resolution)
    return Reduced(log_mean_exp(treated), standard_error(treated), effective_sample_size(treated))


class Streamed:
    """Reductions over K of log weights that arrive as (k, n) blocks, k of K at a time.

    Running mean and second moment of log w, the smallest and the M + 1 largest weights, and running log-sum-exp of w and w^2 of all
    others. At most sqrt(K) weights exceed mean(w) sqrt(K), so that those which truncation and smoothing change are among the largest.

    Args:
        num_particles: K, the most that will come; reductions may be asked for earlier.
        n: Data.
        resolution: Weights that differ by less than this, relative to the size of their logarithm, are constant.
    """

    def __init__(self, num_particles: int, n: int, resolution: float = RESOLUTION) -> None:
        self.expected, self.resolution = num_particles, resolution
        self.count = 0
        self._rest = torch.full((n,), -torch.inf, dtype=torch.float64)  # log sum of w over all but the largest, and of w^2
        self._rest_squared = self._rest.clone()
        self._mean = torch.zeros(n, dtype=torch.float64)
        self._scatter = torch.zeros(n, dtype=torch.float64)
        self._finite = torch.ones(n, dtype=torch.bool)
        self._smallest = torch.full((n,), torch.inf, dtype=torch.float64)
        self._largest = torch.empty(0, n, dtype=torch.float64)
        # data whose weights are sorted at once: copies of all of them would be most of what K costs
        width = max(1, CELLS // (2 * max(1024, tail_length(num_particles))))
        self._columns = [slice(first, first + width) for first in range(0, n, width)]
        self._waiting: list[Tensor] = []  # blocks not yet merged into the largest: sorting them together is cheaper

    def add(self, log_weights: Tensor) -> None:
        """Take in a block, (k, n)."""
        block = log_weights.detach().double().cpu()
        k = block.shape[0]
        self._finite &= torch.isfinite(block).all(0)
        mean = block.mean(0)
        shift = mean - self._mean  # pairwise update: the sum of squares alone would cancel at log w near -1000
        total = self.count + k
        assert total <= self.expected, f"{total} particles came, {self.expected} were announced"
        self._mean = self._mean + shift * (k / total)
        self._scatter = self._scatter + (block - mean).square().sum(0) + shift.square() * (self.count * k / total)
        self.count = total
        self._smallest = torch.minimum(self._smallest, block.amin(0))
        self._waiting.append(block)
        if sum(map(len, self._waiting)) >= max(1024, len(self._largest)):
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        length = min(self.count, tail_length(self.expected) + 1)
        largest = self._largest if len(self._largest) == length else self._largest.new_empty(length, self._largest.shape[1])
        for columns in self._columns:
            merged = torch.cat([part[:, columns] for part in (self._largest, *self._waiting)])
            largest[:, columns], self._rest[columns], self._rest_squared[columns] = self._divided(merged, self.expected, columns)
        self._largest, self._waiting = largest, []

    def _divided(self, merged: Tensor, k: int, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The largest of some data's weights that K particles need, descending, and log sums of w and w^2 over all others ever seen."""
        found = merged.topk(min(len(merged), tail_length(k) + 1), dim=0)
        others = merged.scatter(0, found.indices, -torch.inf)
        rest = torch.logaddexp(self._rest[columns], torch.logsumexp(others, 0))
        return found.values, rest, torch.logaddexp(self._rest_squared[columns], torch.logsumexp(2 * others, 0))

    def reduced(self, weights: str = "plain") -> Reduced:
        """Log mean weight, its error and effective sample size, (n,) each, of the particles that came so far.

        Args:
            weights: "plain"; "truncated" at mean(w) sqrt(K); or "smoothed" by a generalised Pareto distribution.

        Raises:
            ArgumentError: ``weights`` is none of these.

        References:
            Ionides (2008), Truncated importance sampling, sec. 2. Vehtari et al. (2024), Pareto smoothed importance sampling, sec. 3.
        """
        check_weights(weights)
        self._merge()
        parts = [self._reduced(columns, weights) for columns in self._columns]
        return Reduced(*map(torch.cat, zip(*parts, strict=True)))

    def _reduced(self, columns: slice, weights: str) -> Reduced:
        tail, rest, rest_squared = self._divided(self._largest[:, columns], self.count, columns)
        if weights == "truncated":
            log_sum = torch.logaddexp(rest, torch.logsumexp(tail, 0))
            tail = torch.minimum(tail, log_sum - 0.5 * math.log(self.count))
        elif weights == "smoothed":
            tail = fitted(tail, self._smallest[columns], self.count, self.resolution)[1]
        log_sum = torch.logaddexp(rest, torch.logsumexp(tail, 0))
        ess = (2 * log_sum - torch.logaddexp(rest_squared, torch.logsumexp(2 * tail, 0))).exp()
        return Reduced(log_sum - math.log(self.count), _relative_error(ess, torch.as_tensor(float(self.count))), ess)

    @property
    def log_mean_weight(self) -> Tensor:
        """(n,)."""
        return self.reduced().log_mean_weight

    @property
    def ess(self) -> Tensor:
        """(n,), in [1, K]."""
        return self.reduced().ess

    @property
    def log_mean_weight_se(self) -> Tensor:
        """(n,), the delta method's standard error of ``log_mean_weight``."""
        return self.reduced().se

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
        return torch.cat([self._k_hat(columns) for columns in self._columns])

    def _k_hat(self, columns: slice) -> Tensor:
        tail, *_ = self._divided(self._largest[:, columns], self.count, columns)
        return fitted(tail, self._smallest[columns], self.count, self.resolution)[0]
