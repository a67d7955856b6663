"""Short blocks of work in turn, the load of other processes, and medians with intervals that assume no distribution."""

from __future__ import annotations

import math
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BLOCK_SECONDS = 0.09
SETTLE_SECONDS = 0.01  # of untimed work before a block: the caches are another process's when it begins
LEVEL = 0.9
# The kernel counts processor time in hundredths of a second, each process rounded for itself: less than this is no load.
FOREIGN_SECONDS, FOREIGN_SHARE = 0.02, 0.03
TRIES = 4  # of one block in a row
STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Block:
    """One timed block.

    Attributes:
        seconds: Per unit of the task.
        clean: Whether no other process used the processors meanwhile.
    """

    seconds: float
    clean: bool = True


@dataclass
class Series:
    """Blocks of one rival, a round each; None in a round in which no block was clean.

    Attributes:
        blocks: Seconds per unit.
        discarded: Blocks thrown away because others used the processors.
        contended: The seconds of those, for a machine that is never quiet.
    """

    blocks: list[float | None] = field(default_factory=list)
    discarded: int = 0
    contended: list[float] = field(default_factory=list)

    @property
    def clean(self) -> list[float]:
        """The blocks that count."""
        return [seconds for seconds in self.blocks if seconds is not None]

    @property
    def median(self) -> float:
        """Seconds per unit: of the clean blocks, or where there is none of all, which the table marks."""
        return statistics.median(self.clean or self.contended or [math.nan])


@dataclass(frozen=True)
class Interval:
    """A median and an interval for it.

    Attributes:
        median, low, high: The numbers.
        count: How many they rest on.
        level: The probability with which the interval covers the median of what the numbers were drawn from.
    """

    median: float
    low: float
    high: float
    count: int
    level: float


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The median and the narrowest symmetric pair of order statistics that covers the true one with probability ``level``.

    The number of draws below the median is Binomial(n, 1/2), whatever their distribution. Below five draws even the extremes cover it
    with less than 0.9; the interval is then the extremes, and ``level`` tells.
    """
    if not values:
        return Interval(math.nan, math.nan, math.nan, 0, 0.0)
    ordered, n = sorted(values), len(values)
    place = 0
    while place + 1 <= (n - 1) // 2 and coverage(n, place + 1) >= level:
        place += 1
    return Interval(statistics.median(ordered), ordered[place], ordered[n - 1 - place], n, coverage(n, place))


def coverage(n: int, place: int) -> float:
    """The probability that the median lies between the order statistics ``place`` and ``n - 1 - place``, counted from 0."""
    return 1.0 - 2.0 * sum(math.comb(n, k) for k in range(place + 1)) / 2.0**n


def ratio(of: Series, to: Series) -> Interval:
    """The ratio of two series, round by round: what drifts from round to round drops out."""
    pairs = zip(of.blocks, to.blocks, strict=True)
    return median_interval([a / b for a, b in pairs if a is not None and b is not None])


def interleaved(measure: Mapping[str, Callable[[], Block]], rounds: int, seed: int = 0, tries: int = TRIES) -> dict[str, Series]:
    """Every rival's block in every round, in another order each time.

    A block that is not clean is discarded and taken again at once, up to ``tries`` times; then this round has none of this rival.
    Where a rival has lost more than two blocks a round, the machine is not going to be quiet, and each is tried once.

    Args:
        measure: Name -> measures a block.
        rounds: How many.
        seed: Of the order.
        tries: Of one block in a row.
    """
    order, found = random.Random(seed), {name: Series() for name in measure}
    for round_number in range(1, rounds + 1):
        for name in order.sample(list(measure), len(measure)):
            series = found[name]
            hopeless = series.discarded > 2 * round_number + tries
            series.blocks.append(_one(measure[name], series, 1 if hopeless else tries))
    return found


def _one(measure: Callable[[], Block], series: Series, tries: int) -> float | None:
    for _ in range(tries):
        block = measure()
        if block.clean:
            return block.seconds
        series.discarded += 1
        series.contended.append(block.seconds)
    return None


def block(run: Callable[[int], object], iterations: int, settle: int = 0) -> tuple[float, float]:
    """Time ``run(iterations)`` in this process: seconds, and processor seconds that other processes used meanwhile."""
    if settle:
        run(settle)
    busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
    run(iterations)
    seconds = time.perf_counter() - started
    return seconds, max(0.0, (busy_seconds() - busy) - (own_seconds() - own))


def is_clean(seconds: float, foreign: float) -> bool:
    """Whether what others used is no more than the rounding of the kernel's clocks."""
    return foreign <= FOREIGN_SECONDS + FOREIGN_SHARE * seconds


def busy_seconds(stat: Path = STAT) -> float:
    """Processor seconds that all processes, the kernel's interrupts and other guests of the host (steal) have used since the start."""
    if not stat.exists():
        return 0.0  # not Linux: no block is ever discarded
    user, nice, system, _, _, irq, softirq, steal = (int(v) for v in stat.read_text().split("\n", 1)[0].split()[1:9])
    return float((user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"))


def own_seconds() -> float:
    """Processor seconds of this process, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
