"""Of how many dimensions a set of points is: the correlation dimension, and the two nearest neighbours' estimate."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae.analysis.estimate import as_lists
from ppvae.errors import ArgumentError, DataError, check_count

Array = np.ndarray[Any, Any]
BLOCKS = 10  # that are left out in turn for the standard error
SHARES = (1e-4, 1e-2)  # of pairs, between which the radii lie unless they are named
SAMPLED = 2_000  # points whose distances the radii are read from
LEAST_POINTS = 50


@dataclass(frozen=True, eq=False)
class CorrelationDimension:
    """The slope of log C(r) against log r, where C(r) is the share of pairs closer than r.

    Attributes:
        dimension: Least squares over all radii. It says something where ``local`` is level.
        se: Standard error, leaving out each of ten stretches of consecutive points in turn; where pairs are few it is too large, by up
            to sqrt(2).
        radii: (R,), evenly spaced on the log scale, in the units of the points.
        share: (R,), C(r), without the pairs inside the Theiler window.
        local: (R - 1,), slopes between neighbouring radii.
        theiler: Pairs at most so many rows apart were left out.
        num_data: N.
    """

    dimension: float
    se: float
    radii: Tensor
    share: Tensor
    local: Tensor
    theiler: int
    num_data: int

    def __str__(self) -> str:
        window = f", Theiler window {self.theiler}" if self.theiler else ""
        return (
            f"correlation dimension {self.dimension:.3f} ± {self.se:.3f} for r from {self.radii[0]:.3g} to {self.radii[-1]:.3g}, "
            f"local slopes {self.local.min():.2f} to {self.local.max():.2f} (N={self.num_data:,}{window})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def correlation_dimension(
    points: Tensor | Array, *, radii: tuple[float, float] | None = None, num_radii: int = 12, theiler: int = 0
) -> CorrelationDimension:
    """The correlation dimension D2 of points, by the correlation integral of Grassberger and Procaccia.

    It depends on the radii: below the scale of the noise it is that of the noise. Compare sets at the same radii and the same N.

    Args:
        points: (N, *event), flattened to (N, D), Euclidean distances. In the order of time, where there is one.
        radii: The smallest and the largest r. By default those within which 1e-4 and 1e-2 of all pairs lie.
        num_radii: R.
        theiler: Leave out pairs at most so many rows apart: neighbours in time are neighbours in space whatever the dimension.

    Raises:
        DataError: Less than 50 points, values that are not finite, or no two points closer than the smallest radius.
        ArgumentError: Radii that are no increasing pair of positive numbers.

    References:
        Grassberger, Procaccia (1983), Measuring the strangeness of strange attractors. Theiler (1986), Spurious dimension from
        correlation algorithms applied to limited time-series data.
    """
    rows = _rows(points)
    check_count("num_radii", num_radii, 2)
    check_count("theiler", theiler, 0)
    if theiler >= len(rows) - 1:
        raise ArgumentError(f"the Theiler window is less than N - 1 = {len(rows) - 1:,}, got {theiler:,}")
    low, high = _radii_of(rows, theiler) if radii is None else radii
    if not 0 < low < high < math.inf:
        raise ArgumentError(
            f"radii are two numbers with 0 < low < high, got ({low:g}, {high:g})",
            mend="radii=(0.5, 2.0); where they were not named, many points coincide" if radii is None else "radii=(0.5, 2.0)",
        )
    r = np.geomspace(low, high, num_radii)
    involved, inside = _pairs(rows, r, theiler)
    pairs, pairs_inside = involved[:, :-1], inside[:, :-1]
    if not pairs[:, 0].sum():
        raise DataError(f"no two of {len(rows):,} points are closer than r = {low:.3g}", where="radii", mend="larger radii, or more points")
    total, whole = pairs.sum(0), involved[:, -1].sum()
    share = total / whole
    left = [_slope(r, (total - 2 * pairs[b] + pairs_inside[b]) / (whole - 2 * involved[b, -1] + inside[b, -1])) for b in range(len(pairs))]
    se = math.sqrt((len(left) - 1) / len(left) * float(np.square(np.array(left) - np.mean(left)).sum()))
    local = np.diff(np.log(share)) / np.diff(np.log(r))
    radii_, share_, local_ = (torch.from_numpy(part) for part in (r, share, local))
    return CorrelationDimension(_slope(r, share), se, radii_, share_, local_, theiler, len(rows))


def _slope(r: Array, share: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.polynomial.polynomial.polyfit(np.log(r), np.log(np.maximum(share, 1e-300)), 1)[1])


def _pairs(rows: Array, r: Array, theiler: int) -> tuple[Array, Array]:
    """Ordered pairs closer than each r, and in the last column all pairs, (blocks, R + 1): the first point in the block; both in it."""
    from scipy.spatial import cKDTree

    edges = np.linspace(0, len(rows), BLOCKS + 1).astype(int)
    whole = cKDTree(rows)
    radii = np.append(r, np.inf)
    involved, inside = np.zeros((2, BLOCKS, len(radii)))
    for b, (start, stop) in enumerate(itertools.pairwise(edges)):
        tree = cKDTree(rows[start:stop])
        involved[b] = tree.count_neighbors(whole, radii) - (stop - start)  # less each point with itself
        inside[b] = tree.count_neighbors(tree, radii) - (stop - start)
    block = np.searchsorted(edges, np.arange(len(rows)), side="right") - 1
    for lag in range(1, theiler + 1):
        distance = np.linalg.norm(rows[lag:] - rows[:-lag], axis=1)
        close = distance[:, None] <= radii
        one, other = block[:-lag], block[lag:]
        np.subtract.at(involved, one, close)
        np.subtract.at(involved, other, close)
        same = one == other
        np.subtract.at(inside, one[same], 2.0 * close[same])
    return involved, inside


def _radii_of(rows: Array, theiler: int) -> tuple[float, float]:
    """Quantiles of the distances of some points to all others."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int))
    some = rows[chosen]
    squares = np.square(some).sum(1)
    gaps = np.abs(chosen[:, None] - chosen)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))[gaps > theiler]
    low, high = np.quantile(distances, SHARES)
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class TwoNN:
    """The intrinsic dimension from the distances to the first and second neighbour.

    Attributes:
        dimension: By maximum likelihood.
        se: Standard error; ratios of points that share a neighbour are taken to be correlated, which adds about a fifth.
        ratios: (N,), distance to the second neighbour over that to the first, ascending.
        num_used: The smallest of them, that were used.
    """

    dimension: float
    se: float
    ratios: Tensor
    num_used: int

    def __str__(self) -> str:
        return f"two-NN dimension {self.dimension:.2f} ± {self.se:.2f} (N={len(self.ratios):,}, {self.num_used:,} ratios used)"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def two_nn(points: Tensor | Array, *, discard: float = 0.1) -> TwoNN:
    """The intrinsic dimension d of points: mu = r2 / r1 has P(mu > t) = t^-d where the density is level up to the second neighbour.

    The largest ratios, which suffer most where it is not, are censored: of the others d is the estimate of maximum likelihood, where Facco
    et al. fit a line.

    Args:
        points: (N, *event), flattened to (N, D), Euclidean distances.
        discard: Share of the largest ratios that are censored, in [0, 1).

    Raises:
        DataError: Less than 50 points, values that are not finite, or points that coincide.
        ArgumentError: ``discard`` outside [0, 1).

    References:
        Facco, d'Errico, Rodriguez, Laio (2017), Estimating the intrinsic dimension of datasets by a minimal neighborhood information.
    """
    from scipy.spatial import cKDTree

    rows = _rows(points)
    if not 0 <= discard < 1:
        raise ArgumentError(f"discard is a share in [0, 1), got {discard!r}")
    distances, neighbours = cKDTree(rows).query(rows, k=3)
    if (distances[:, 1] == 0).any():
        raise DataError(
            f"needed points that differ, and {int((distances[:, 1] == 0).sum()):,} of {len(rows):,} coincide with another",
            where="points",
            mend="np.unique(points, axis=0)",
        )
    logs = np.log(distances[:, 2] / distances[:, 1])
    used = max(2, math.ceil((1 - discard) * len(logs)))
    cut = np.sort(logs)[used - 1]
    exposure = np.minimum(logs, cut)  # of an exponential law with rate d, censored after the used-th
    if not exposure.sum() > 0:
        raise DataError("needed points whose two nearest neighbours differ in distance, and these lie on a grid", where="points")
    dimension = float((used - 1) / exposure.sum())
    score = exposure - (logs <= cut) / dimension
    se = dimension**2 / used * math.sqrt(max(_correlated(score, neighbours), float(np.square(score).sum())))
    return TwoNN(dimension, se, torch.from_numpy(np.exp(np.sort(logs))), used)


def _correlated(score: Array, neighbours: Array) -> float:
    """Sum of products of scores over ordered pairs of points whose triples, a point and its two neighbours, have a point in common."""
    from scipy.sparse import csr_array

    n = len(score)
    member = csr_array((np.ones(neighbours.size), (np.repeat(np.arange(n), neighbours.shape[1]), neighbours.ravel())), shape=(n, n))
    shared = (member @ member.T).sign()
    return float(score @ (shared @ score))


def _rows(points: Tensor | Array) -> Array:
    """(N, D), float64."""
    values = np.asarray(points.detach().cpu() if isinstance(points, Tensor) else points, dtype=float)
    if values.ndim < 2 or len(values) < LEAST_POINTS:
        raise DataError(f"needed points (N, *event), N at least {LEAST_POINTS}, and an array of shape {values.shape} came", where="points")
    if not np.isfinite(values).all():
        raise DataError("needed finite numbers, and points with NaN or infinite values came", where="points")
    return values.reshape(len(values), -1)
