"""The sizes whose cost is measured, the arithmetic that they take, and the fit of one to the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.architectures import ARCHITECTURES, PIXELS, Architecture

BATCHES, LATENTS, WIDTHS = (20, 50, 100, 200, 512), (10, 50, 200), (196, 784, 3136)
BATCH, LATENT = 100, 50  # around which one factor at a time is changed
HELD_OUT = ((20, 10, 3136), (512, 200, 196))  # batch, latent and data dimension of sizes that the fit does not see
RESAMPLES = 400


@dataclass(frozen=True)
class Dense(Architecture):
    """A1 at another latent and data dimension: D - 200 - 200 - (Z + Z) and Z - 200 - 200 - D.

    Attributes:
        pixels: D.
    """

    pixels: int = PIXELS

    @property
    def encoder_products(self) -> list[int]:
        """Multiplications of each layer for one datum."""
        return self._products([self.pixels, *self.hidden, 2 * self.latent_dim])

    @property
    def decoder_products(self) -> list[int]:
        """Multiplications of each layer for one row."""
        return self._products([self.latent_dim, *reversed(self.hidden), self.pixels])

    @property
    def parameters(self) -> int:
        """Weights, and a bias for each output of each layer."""
        outputs = 2 * sum(self.hidden) + 2 * self.latent_dim + self.pixels
        return sum(self.encoder_products) + sum(self.decoder_products) + outputs

    @staticmethod
    def _products(widths: Sequence[int]) -> list[int]:
        return [a * b for a, b in itertools.pairwise(widths)]


def dense(latent: int = LATENT, pixels: int = PIXELS) -> Dense:
    """A1 with these dimensions."""
    a1 = ARCHITECTURES["A1"]
    return Dense("A1", a1.hidden, latent, a1.activation, pixels)


@dataclass(frozen=True)
class Point:
    """A measured size.

    Attributes:
        name: As in the table.
        terms: What the cost is made of, in the order of the coefficients; the first is 1, the constant.
        seconds: One number a round.
    """

    name: str
    terms: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Over the rounds, seconds."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Cost:
    """seconds = coefficients . terms, none negative.

    Attributes:
        coefficients: Of the fit to the medians.
        intervals: From the 5th to the 95th percentile of fits to resampled rounds.
        residuals: By name of the point: measured over fitted, less one.
    """

    coefficients: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    residuals: Mapping[str, float]

    def of(self, terms: Sequence[float]) -> float:
        """Seconds that the fit gives."""
        return sum(c * t for c, t in zip(self.coefficients, terms, strict=True))

    @property
    def worst(self) -> tuple[str, float]:
        """The point with the largest relative residual, and that."""
        return max(self.residuals.items(), key=lambda named: abs(named[1]))


def fitted(points: Sequence[Point], resamples: int = RESAMPLES, seed: int = 0) -> Cost:
    """Non-negative least squares of the relative residuals, since times span two orders of magnitude.

    A round is resampled for each point by itself: rounds of different points are not paired once contended blocks were taken again.
    """
    terms = np.array([point.terms for point in points])
    best = _solved(terms, np.array([point.median for point in points]))
    random = np.random.default_rng(seed)
    drawn = np.array(
        [_solved(terms, np.array([np.median(random.choice(p.seconds, len(p.seconds))) for p in points])) for _ in range(resamples)]
    )
    low, high = np.percentile(drawn, [5, 95], axis=0)
    residuals = {p.name: p.median / float(row @ best) - 1 for p, row in zip(points, terms, strict=True)}
    return Cost(tuple(best.tolist()), tuple(zip(low.tolist(), high.tolist(), strict=True)), residuals)


def _solved(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = terms / seconds[:, None]
    size = np.linalg.norm(rows, axis=0)  # columns of like size: a FLOP and a call are nine orders of magnitude apart
    found: NDArray[np.float64] = nnls(rows / size, np.ones(len(rows)))[0] / size
    return found


def step_terms(batch: int, network: Dense, rate: float) -> tuple[float, ...]:
    """1, seconds of the products at ``rate`` operations a second, parameters, logits."""
    return 1.0, network.step_flop(batch) / rate, float(network.parameters), float(batch * network.pixels)


def sizes(quick: bool) -> list[tuple[int, int, int]]:
    """Batch, latent and data dimension of what is measured: one factor at a time, then what is held out."""
    if quick:
        return [(20, 50, 784), (100, 50, 784), (100, 10, 784), (100, 50, 196), HELD_OUT[1]]
    centre = BATCH, LATENT, PIXELS
    found = [(b, *centre[1:]) for b in BATCHES]
    found += [(BATCH, z, PIXELS) for z in LATENTS if z != LATENT]
    found += [(BATCH, LATENT, d) for d in WIDTHS if d != PIXELS]
    return [*found, *HELD_OUT]


def pass_seconds(num_data: int, batch: int, step: float) -> float:
    """Seconds of one pass: the last batch may be shorter and counts as one."""
    return math.ceil(num_data / batch) * step


def standard_error(sd: float, n: int) -> float:
    """Of a mean over n data."""
    return sd / math.sqrt(n)


def arithmetic_bound_from(overhead: float, flop_per_datum: float, rate: float) -> int:
    """The batch whose arithmetic takes as long as a step's overhead of so many seconds."""
    return math.ceil(overhead * rate / flop_per_datum)


def exchange_bytes(parameters: int, size: int) -> float:
    """Bytes that each of ``size`` processes sends in an all-reduce of float32 gradients around a ring."""
    return 4.0 * parameters * 2 * (size - 1) / size
