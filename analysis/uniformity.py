"""Are these ranks uniform? The test of the empirical distribution function at all points at once, and its bands. Arrays alone.

At the threshold r the number of N uniform ranks below r is Binomial(N, r / (L + 1)). A band that holds at every threshold together is
made of pointwise intervals of a stricter common level. The probability that all of them hold is summed exactly: binomial counts along
the thresholds are Poisson counts given their total, and Poisson counts are a Markov chain.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_POINTS = 200  # thresholds that are looked at: beyond so many the band no longer changes
ROUNDING = 1e-10  # a probability below this is no longer 1 less a sum


@dataclass(frozen=True, eq=False)
class Bands:
    """A simultaneous band for the empirical distribution function of N ranks.

    Attributes:
        points: (P,), where it is looked at, in (0, 1).
        lower, upper: (P,), the least and greatest value inside the band.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor


def random_ranks(below: Tensor, equal: Tensor, generator: torch.Generator) -> Tensor:
    """Ranks in 0..L from how many of L draws lie below and how many are equal: ties are broken by chance, so that ranks stay uniform."""
    chance = torch.rand(below.shape, generator=generator, dtype=torch.float64, device=generator.device).to(below.device)
    return below + (chance * (equal + 1)).floor().to(below.dtype).minimum(equal)


def random_pit(ranks: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """(rank + U) / (L + 1): exactly uniform on (0, 1) where the ranks are uniform on 0..L."""
    chance = torch.rand(ranks.shape, generator=generator, dtype=torch.float64, device=generator.device).to(ranks.device)
    return (ranks + chance) / (num_draws + 1)


def ecdf(ranks: Tensor, num_draws: int) -> Tensor:
    """Share of ranks below each threshold, (N, ...) -> (P, ...)."""
    return _counts(ranks, num_draws).double() / len(ranks)


def p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """Probability that uniform ranks leave some pointwise interval as extreme as the most extreme one here, (N, ...) -> (...).

    Exact; values below 1e-10 are upper bounds.

    References:
        Säilynoja, Bürkner, Vehtari (2022), Graphical test for discrete uniformity, sec. 2.
    """
    n = len(ranks)
    tails = _tails(n, num_draws)
    found = _counts(ranks, num_draws).flatten(1)
    least, place = tails.gather(1, found.cpu()).amin(0).unique(return_inverse=True)
    values = torch.tensor([_probability_outside(n, num_draws, gamma) for gamma in least.tolist()], dtype=torch.float64)
    return values[place].reshape(ranks.shape[1:])


@functools.lru_cache(maxsize=64)
def bands(num_data: int, num_draws: int, level: float) -> Bands:
    """The widest family of pointwise intervals that N uniform ranks leave anywhere with probability ``level`` at most.

    References:
        Säilynoja, Bürkner, Vehtari (2022), Graphical test for discrete uniformity, algorithm 2.
    """
    low, high = level / (2 * MOST_POINTS), 2 * level  # pointwise levels: a union bound below, a single point's above
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _probability_outside(num_data, num_draws, middle) <= level else (low, middle)
    inside = _tails(num_data, num_draws) > low
    first, last = _ends(inside)
    points = _thresholds(num_draws).double() / (num_draws + 1)
    return Bands(points, first.double() / num_data, last.double() / num_data)


def _thresholds(num_draws: int) -> Tensor:
    """The ranks r in 1..L at which the share below r is looked at."""
    count = min(num_draws, MOST_POINTS)
    points: Tensor = torch.linspace(1, num_draws, count, dtype=torch.float64).round().long().unique()
    return points


def _counts(ranks: Tensor, num_draws: int) -> Tensor:
    """How many of N ranks lie below each threshold, (N, ...) -> (P, ...)."""
    size = ranks.shape[1:].numel()
    places = ranks.reshape(len(ranks), size) + torch.arange(size, device=ranks.device) * (num_draws + 1)
    histogram = torch.bincount(places.flatten(), minlength=size * (num_draws + 1)).reshape(size, num_draws + 1)
    below = histogram.cumsum(1)[:, _thresholds(num_draws).to(ranks.device) - 1]
    return below.T.reshape(-1, *ranks.shape[1:])


@functools.lru_cache(maxsize=8)
def _tails(num_data: int, num_draws: int) -> Tensor:
    """2 min(P(R <= r), P(R >= r)) for the counts r = 0..N at each threshold, (P, N + 1)."""
    share = (_thresholds(num_draws).double() / (num_draws + 1))[:, None]
    r = torch.arange(num_data + 1, dtype=torch.float64)
    ways = torch.lgamma(torch.tensor(num_data + 1.0, dtype=torch.float64)) - torch.lgamma(r + 1) - torch.lgamma(num_data - r + 1)
    mass = (ways + r * share.log() + (num_data - r) * torch.log1p(-share)).exp()
    return 2 * torch.minimum(mass.cumsum(1), mass.flip(1).cumsum(1).flip(1))


def _ends(inside: Tensor) -> tuple[Tensor, Tensor]:
    """First and last true entry of each row, which has one."""
    size = inside.shape[1]
    first = inside.to(torch.int8).argmax(1)
    return first, size - 1 - inside.flip(1).to(torch.int8).argmax(1)


def _probability_outside(num_data: int, num_draws: int, gamma: float) -> float:
    """P(some count's tail <= gamma) for N uniform ranks."""
    inside = _tails(num_data, num_draws) > gamma * (1 + 1e-9)  # tails equal by symmetry differ by rounding
    if not bool(inside.any(1).all()):
        return 1.0
    first, last = (ends.tolist() for ends in _ends(inside))
    shares = torch.cat([torch.zeros(1, dtype=torch.float64), _thresholds(num_draws).double() / (num_draws + 1)])
    steps = (num_data * shares.diff()).tolist()
    chain, start = torch.ones(1, dtype=torch.float64), 0  # counts so far: none
    for rate, low, high in zip(steps, first, last, strict=True):
        chain, start = _moved(chain, rate, start, low, high), low
    rest = num_data - torch.arange(start, start + len(chain), dtype=torch.float64)
    total = (chain * _poisson(rest, num_data * (1 - shares[-1].item()))).sum()
    inside_all = (total / _poisson(torch.tensor(float(num_data), dtype=torch.float64), float(num_data))).item()
    bound = len(inside) * gamma
    return min(1.0, bound, max(1 - inside_all, 0.0) if 1 - inside_all > ROUNDING else ROUNDING)


def _moved(chain: Tensor, rate: float, start: int, low: int, high: int) -> Tensor:
    """The chain over counts start.. after Poisson(rate) more, kept to low..high."""
    kernel = _kernel(high - start, rate)
    full = torch.nn.functional.conv1d(chain[None, None], kernel.flip(0)[None, None], padding=len(kernel) - 1)[0, 0]
    kept = torch.zeros(high - low + 1, dtype=torch.float64)
    part = full[low - start : high - start + 1]  # low never falls from one threshold to the next
    kept[: len(part)] = part
    return kept


@functools.lru_cache(maxsize=4096)  # the search for a band asks for the same ones fifty times
def _kernel(longest: int, rate: float) -> Tensor:
    """The masses of a Poisson(rate) at 0..longest, without a tail that adds nothing."""
    masses = _poisson(torch.arange(longest + 1, dtype=torch.float64), rate)
    reached = (masses > 1e-25).nonzero()
    return masses[: int(reached.max()) + 1 if len(reached) else 1]


def _poisson(counts: Tensor, rate: float) -> Tensor:
    return (counts * torch.log(torch.tensor(rate, dtype=torch.float64)) - rate - torch.lgamma(counts + 1)).exp()
