"""Annealed importance sampling on tensors: from a base density to the joint, for all data at once, forward and in reverse.

log f_b = (1 - b) log base + b log joint over the unconstrained coordinates u, walked in the whitened coordinates of the start,
v = L^-1 (u - m), where both densities are taken with respect to v. Temperatures 0 = b_0 < b_1 < ... < b_T = 1 give T increments of the
log weight and T - 1 transitions, the t-th of which leaves f_{b_t} invariant. Step sizes (and adaptive temperatures) come from a pilot
with a seed of its own and are frozen before the run: only then is E[w] = p(x).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ppvae import hmc, noise
from ppvae.batches import take
from ppvae.errors import ArgumentError, DivergedError, check_count
from ppvae.memory import Halving
from ppvae.paths import Ends, Path, Stretch
from ppvae.programs import measuring
from ppvae.ranks import shared
from ppvae.stream import ROWS_AT_ONCE

SCHEDULES = ("auto", "linear", "sigmoid", "equal")
PILOT_CHAINS, PILOT_TEMPERATURES, LEAST_PILOT_TEMPERATURES = 8, 80, 40
PILOT_GAIN = 0.6  # of the pilot's step sizes, which follow a density that moves on: at 0.25 they lag behind it
SMOOTHED_OVER = 9  # temperatures of the pilot
LONGEST = math.pi / 2  # of a trajectory: a quarter of a period along the widest direction, where what it forgets is most
SIGMOID_WIDTH = 4.0
LEAST_RATE = 0.05  # of an adaptive schedule, relative to its mean: where a pilot saw no variance there may still be some


@dataclass(frozen=True)
class Settings:
    """How a path is walked.

    Attributes:
        num_temperatures: T, increments of the log weight.
        num_chains: C, per datum.
        num_leapfrog: Leapfrog steps a transition.
        schedule: "linear", "sigmoid" or "equal": each step the same variance of its increment, as the pilot saw it.
        step_size: None for a pilot.
    """

    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    schedule: str
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_count("num_temperatures", self.num_temperatures)
        hmc.check_settings(self.num_chains, self.num_leapfrog, self.step_size)
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"schedule is one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.schedule == "equal" and self.step_size is not None:
            raise ArgumentError(
                "schedule 'equal' is read from a pilot, and a given step_size means that there is none",
                mend=["leave step_size out", "schedule='linear' or 'sigmoid'"],
            )

    def resolved(self, from_prior: bool) -> Settings:
        """With "auto" replaced: linear from a Normal; from the prior "equal", or sigmoid where there is no pilot."""
        if self.schedule != "auto":
            return self
        adaptive = "equal" if self.step_size is None else "sigmoid"
        return replace(self, schedule=adaptive if from_prior else "linear")


@dataclass(frozen=True)
class Tables:
    """What a run is frozen to.

    Attributes:
        temperatures: b, (T + 1, N), float64, from 0 to 1.
        step_sizes: One for each transition, (T - 1, N), float64.
        num_evaluations: Model evaluations per datum that the pilot took.
    """

    temperatures: Tensor
    step_sizes: Tensor
    num_evaluations: int


@dataclass(frozen=True)
class Annealed:
    """What a run gave.

    Attributes:
        log_weights: (C, N), float64, nats. Forward E[w] = p(x); in reverse, from an exact draw of the posterior, E[1 / w] = 1 / p(x).
        first_energy: log joint - log base where the chains began, (C, N).
        acceptance: Mean acceptance probability, (N,); nan without transitions.
        num_nonfinite: Proposals rejected for an energy or gradient that was not finite, (N,).
        last: Where the chains ended, v of shape (C, N, D).
        num_evaluations: Model evaluations per datum.
    """

    log_weights: Tensor
    first_energy: Tensor
    acceptance: Tensor
    num_nonfinite: Tensor
    last: Tensor
    num_evaluations: int


def schedule(name: str, num_temperatures: int) -> Tensor:
    """b_0 = 0, ..., b_T = 1, float64: "linear", or "sigmoid", whose steps are small at both ends."""
    t = torch.arange(num_temperatures + 1, dtype=torch.float64) / num_temperatures
    if name == "linear":
        return t
    raw = torch.sigmoid(SIGMOID_WIDTH * (2 * t - 1))
    b = (raw - raw[0]) / (raw[-1] - raw[0])
    b[0], b[-1] = 0.0, 1.0
    return b


def stretches(num_data: int, num_chains: int, blocks_at_once: int | None = None) -> list[slice]:
    """Whole blocks of 64 data, about 4096 rows (datum x chain) a call of the model."""
    if blocks_at_once is None:
        blocks_at_once = max(1, ROWS_AT_ONCE // (noise.BLOCK_ROWS * min(num_chains, noise.BLOCK_PARTICLES)))
    check_count("blocks_at_once", blocks_at_once)
    return noise.blocks(num_data, noise.BLOCK_ROWS * blocks_at_once)


def _blocks(stretches: list[slice]) -> int:
    """Of 64 data in a stretch."""
    first = stretches[0]
    rows: int = first.stop - first.start
    return math.ceil(rows / noise.BLOCK_ROWS)


def tables(path: Path, settings: Settings, seed: int, blocks_at_once: int | None = None) -> Tables:
    """Temperatures and step sizes for every datum, by a pilot unless both are given; nothing in them moves afterwards."""
    n, t = path.pair.num_data, settings.num_temperatures
    _check_data(path)
    if settings.step_size is not None:
        b = schedule(settings.schedule, t).to(path.m.device)[:, None].expand(-1, n)
        return Tables(b, b.new_full((t - 1, n), settings.step_size), 0)

    def walked(rows: slice) -> tuple[Tensor, Tensor]:
        with measuring(path.pair.model, path.pair.guide):
            source = hmc.Noise(seed, "pilot", rows=rows, device=path.m.device)
            v = path.drawn(rows, PILOT_CHAINS, source, seed, "pilot")
            return pilot(path.stretch(rows), v, settings, source)

    whole = stretches(n, PILOT_CHAINS, blocks_at_once)
    at_once: Halving[tuple[Tensor, Tensor]] = Halving(_blocks(whole), "annealing's pilot")
    found = [both for _, parts in shared().each(whole, lambda rows: at_once(rows, walked)) for both in parts]
    return Tables(torch.cat([b for b, _ in found], 1), torch.cat([e for _, e in found], 1), pilot_evaluations(settings))


def pilot_evaluations(settings: Settings) -> int:
    """Model evaluations per datum that a pilot takes."""
    return PILOT_CHAINS * (1 + (_pilot_temperatures(settings) - 1) * settings.num_leapfrog)


def _pilot_temperatures(settings: Settings) -> int:
    return min(PILOT_TEMPERATURES, max(LEAST_PILOT_TEMPERATURES, settings.num_temperatures))


def pilot(stretch: Stretch, v: Tensor, settings: Settings, source: hmc.Source) -> tuple[Tensor, Tensor]:
    """Walk the path once with step sizes that adapt, and read temperatures (T + 1, n) and step sizes (T - 1, n) from it."""
    rough = schedule("sigmoid" if settings.schedule == "equal" else settings.schedule, _pilot_temperatures(settings)).to(v.device)
    n, dim = v.shape[1:]
    longest = LONGEST / settings.num_leapfrog
    first = torch.full((n,), min(1.2 * dim**-0.25, longest), device=v.device)
    adaptation = hmc.StepSizeAdaptation(first, least_gain=PILOT_GAIN, largest=longest)
    ends = stretch.ends(v)
    log_steps, variances = [], [_variance(ends.energy)]
    for b in rough[1:-1]:
        now = b.expand(n)
        state = hmc.State(v, *ends.tempered(now), ends)
        log_steps.append(adaptation.log_step)
        moved = hmc.transition(stretch.target(now), state, step_size=adaptation.step_size, num_leapfrog=settings.num_leapfrog, noise=source)
        adaptation.update(moved.acceptance)
        v, ends = moved.state.position, Ends(*moved.state.aux)
        variances.append(_variance(ends.energy))
    temperatures = schedule("linear" if settings.schedule == "equal" else settings.schedule, settings.num_temperatures).to(v.device)
    temperatures = temperatures[:, None].expand(-1, n)
    if settings.schedule == "equal":
        temperatures = equal_steps(rough, _smoothed(torch.stack(variances)).sqrt(), settings.num_temperatures)
    return temperatures, interpolated(rough[1:-1], _smoothed(torch.stack(log_steps)), temperatures[1:-1]).exp()


def _variance(energy: Tensor) -> Tensor:
    """Of the chains of each datum, (n,); of those with a finite energy."""
    finite = torch.isfinite(energy)
    count = finite.sum(0)
    mean = torch.where(finite, energy, 0.0).sum(0) / count.clamp(min=1)
    return torch.where(finite, energy - mean, 0.0).square().sum(0) / (count - 1).clamp(min=1)


def _smoothed(table: Tensor) -> Tensor:
    """A moving average over temperatures, (P, n) -> (P, n)."""
    half = min(SMOOTHED_OVER, len(table)) // 2
    padded = torch.cat([table[:1].expand(half, -1), table, table[-1:].expand(half, -1)])
    return padded.unfold(0, 2 * half + 1, 1).mean(-1)


def interpolated(at: Tensor, table: Tensor, b: Tensor) -> Tensor:
    """Piecewise linear in the number of the pilot's temperature: (P,) and (P, n), read at b (T, n); constant outside."""
    b = b.contiguous()
    right = torch.searchsorted(at, b.clamp(at[0], at[-1])).clamp(1, len(at) - 1)
    weight = ((b - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return (1 - weight) * table.gather(0, right - 1) + weight * table.gather(0, right)


def equal_steps(rough: Tensor, rate: Tensor, num_temperatures: int) -> Tensor:
    """Temperatures whose steps each take an equal share of the integral of ``rate``, sd(log joint - log base) under f_b.

    The divergence between neighbours on the path is about half the square of rate times step.

    Args:
        rough: The pilot's temperatures, (P + 1,).
        rate: At all of them but the last, (P, n).
        num_temperatures: T.

    References:
        Grosse, Maddison, Salakhutdinov (2013), Annealing between distributions by averaging moments, sec. 4.
    """
    rate = torch.cat([rate, rate[-1:]])
    width = (rough[1:] - rough[:-1])[:, None]
    share = (rate[1:] + rate[:-1]) / 2 * width
    share = share + LEAST_RATE * share.sum(0) * width
    share = torch.where(share.sum(0) > 0, share, width)
    reached = torch.cat([torch.zeros_like(share[:1]), share.cumsum(0) / share.sum(0)]).mT.contiguous()  # (n, P + 1)
    wanted = torch.arange(num_temperatures + 1, dtype=reached.dtype, device=reached.device) / num_temperatures
    wanted = wanted.expand(len(reached), -1).contiguous()
    right = torch.searchsorted(reached, wanted).clamp(1, len(rough) - 1)
    low, high = reached.gather(1, right - 1), reached.gather(1, right)
    weight = ((wanted - low) / (high - low)).clamp(0, 1)
    b = (1 - weight) * rough[right - 1] + weight * rough[right]
    b[:, 0], b[:, -1] = 0.0, 1.0
    return b.mT.contiguous()


def forward(path: Path, frozen: Tables, settings: Settings, seed: int, blocks_at_once: int | None = None) -> Annealed:
    """Chains from exact draws of the base to the joint."""
    return _run(path, frozen, settings, seed, None, blocks_at_once)


def reverse(path: Path, frozen: Tables, settings: Settings, u: Tensor, seed: int, blocks_at_once: int | None = None) -> Annealed:
    """The same transitions in reverse order, from u (1 or C, N, D), draws of the posterior; its weights bound log p(x) from above."""
    return _run(path, frozen, settings, seed, u, blocks_at_once)


def _run(path: Path, frozen: Tables, settings: Settings, seed: int, u: Tensor | None, blocks_at_once: int | None) -> Annealed:
    n, c, device = path.pair.num_data, settings.num_chains, path.m.device
    log_weights, first_energy = torch.empty(2, c, n, dtype=torch.float64).unbind()
    acceptance, nonfinite = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.long)
    ended = torch.empty(c, n, path.coordinates.dim, dtype=path.m.dtype)
    direction = "forward" if u is None else "reverse"
    whole = stretches(n, c, blocks_at_once)
    path = path.compiled(c * (settings.num_temperatures - 1) * settings.num_leapfrog, whole[0].stop)

    at_once: Halving[tuple[Tensor, ...]] = Halving(_blocks(whole), "annealing")

    def walked(where: tuple[slice, slice]) -> tuple[Tensor, ...]:
        rows, chains = where
        parts = zip(*at_once(rows, lambda part: walked_part(part, chains)), strict=True)
        return tuple(torch.cat(values, min(values[0].dim() - 1, 1)) for values in parts)  # data are the second dimension, or the only one

    def walked_part(rows: slice, chains: slice) -> tuple[Tensor, ...]:
        stretch, size = path.stretch(rows), chains.stop - chains.start
        source = hmc.Noise(seed, direction, chains.start, rows=rows, device=device)
        with measuring(path.pair.model, path.pair.guide):
            if u is None:
                v = path.drawn(rows, size, source, seed, f"{direction}/{chains.start}")
            else:
                v = stretch.whitened((u if len(u) == 1 else u[chains])[:, rows].to(path.m)).expand(size, -1, -1)
            last = walk(stretch, v, frozen.temperatures[:, rows], frozen.step_sizes[:, rows], settings.num_leapfrog, source, u is not None)
        _refuse_nan(last.first_energy, rows, u is not None)
        found = last.log_weights, last.v, last.first_energy, last.acceptance.sum(0), last.num_nonfinite
        return tuple(part.cpu() for part in found)

    for (rows, chains), last in shared().each(itertools.product(whole, noise.blocks(c, noise.BLOCK_PARTICLES)), walked):
        log_weights[chains, rows], ended[chains, rows], first_energy[chains, rows] = last[:3]
        acceptance[rows] += last[3]
        nonfinite[rows] += last[4]
    transitions = settings.num_temperatures - 1
    acceptance = acceptance / (transitions * c) if transitions else torch.full_like(acceptance, torch.nan)
    return Annealed(log_weights, first_energy, acceptance, nonfinite, ended, c * (1 + transitions * settings.num_leapfrog))


class Walk(NamedTuple):
    """Chains at the end of their way.

    Attributes:
        v: (C, n, D).
        ends: Both ends there.
        log_weights: (C, n), float64.
        first_energy: (C, n).
        acceptance: Sum over transitions of acceptance probabilities, (C, n).
        num_nonfinite: (n,).
    """

    v: Tensor
    ends: Ends
    log_weights: Tensor
    first_energy: Tensor
    acceptance: Tensor
    num_nonfinite: Tensor


def walk(
    stretch: Stretch, v: Tensor, temperatures: Tensor, step_sizes: Tensor, num_leapfrog: int, source: hmc.Source, backward: bool = False
) -> Walk:
    """Anneal from v, (C, n, D).

    Args:
        stretch: The path at these data.
        v: Draws from the base; backward, from the posterior.
        temperatures: (T + 1, n).
        step_sizes: (T - 1, n), in forward order.
        num_leapfrog: Leapfrog steps a transition.
        source: Where the draws come from.
        backward: Take the transitions in reverse order.

    References:
        Neal (2001), Annealed importance sampling, sec. 2. Grosse, Ghahramani, Adams (2015), Sandwiching the marginal likelihood using
        bidirectional Monte Carlo, sec. 3.
    """
    increments = temperatures[1:] - temperatures[:-1]
    ends = stretch.ends(v)
    first_energy = ends.energy
    log_weights = _step(increments[-1 if backward else 0], first_energy)
    acceptance, num_nonfinite = torch.zeros_like(log_weights), torch.zeros(v.shape[1], dtype=torch.long, device=v.device)
    order = range(1, len(temperatures) - 1)
    for t in reversed(order) if backward else order:
        b = temperatures[t]
        state = hmc.State(v, *ends.tempered(b), ends)
        moved = hmc.transition(stretch.target(b), state, step_size=step_sizes[t - 1], num_leapfrog=num_leapfrog, noise=source)
        v, ends = moved.state.position, Ends(*moved.state.aux)
        log_weights = log_weights + _step(increments[t - 1 if backward else t], ends.energy)
        acceptance, num_nonfinite = acceptance + moved.acceptance, num_nonfinite + moved.num_nonfinite
    return Walk(v, ends, log_weights, first_energy, acceptance, num_nonfinite)


def _step(increment: Tensor, energy: Tensor) -> Tensor:
    return torch.where(increment > 0, increment * energy, 0.0)  # a step of width 0 from a point of density 0 is no step


def _check_data(path: Path) -> None:
    """Hold the data against the likelihood's support, once, at the middle of the start."""

    def check(rows: slice) -> None:
        with measuring(path.pair.model, path.pair.guide):
            values, _ = path.coordinates.unpack(path.m[None, rows])
            path.pair.score(take(path.x, rows), values, check_from=rows.start)

    at_once: Halving[None] = Halving(ROWS_AT_ONCE // noise.BLOCK_ROWS, "a look at the data")
    for rows in noise.blocks(path.pair.num_data, ROWS_AT_ONCE):
        at_once(rows, check)


def _refuse_nan(energy: Tensor, rows: slice, backward: bool) -> None:
    bad = torch.isnan(energy) | (energy == torch.inf) | ((energy == -torch.inf) if backward else torch.zeros_like(energy, dtype=torch.bool))
    if bad.any():
        datum = rows.start + int(bad.any(0).nonzero()[0])
        raise DivergedError(
            f"log p(x, z) - log q(z) is not a number where the chains begin, at {int(bad.sum())} of {bad.numel()} chains of this stretch",
            where=f"datum {datum}, {'draws of the posterior' if backward else 'draws of the start'}",
            mend="look at the model's parameters there: a scale that underflowed to 0, a logit that overflowed; or start='prior'",
        )
