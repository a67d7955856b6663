"""Refinement: a posterior for each datum, started from the guide's and optimised for these data alone.

A fixed schedule: so many steps of so many draws, the same for every datum, with a rate that is constant at first and then falls as
1 / step. What remains to be gained after it is then about what its last doubling gained, which is reported. Rules that stop each datum
by its own gain were tried against it and did not beat it: late in a fit a datum's own gain is mostly noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ppvae import natural, noise
from ppvae.batches import Batch, digest, take
from ppvae.compilation import CompiledFunction
from ppvae.errors import FamilyError, check_count
from ppvae.local import LocalPosterior, LocalUnconstrained
from ppvae.memory import Halving
from ppvae.pair import Pair
from ppvae.policy import worth
from ppvae.posteriors import Freed, FreedUnconstrained, Normals
from ppvae.programs import measuring
from ppvae.ranks import shared
from ppvae.starts import FAMILIES, INNER, start_of, whitened

COMMON_DRAWS, COMMON_ROWS = 128, 32  # draws that two states are compared on, and data that share a seed for them
ROWS_PER_CALL = 4096
WORTH_COMPILING = 2_000_000  # evaluations of log p(x, z) with its gradient: some 30 s eagerly, of which compiling saves a third
PROPOSAL_STEPS = 40  # full rank: within 0.05 nats of its optimum, enough to propose from
LARGEST_FULL_RANK = 200  # dimensions above which a full covariance costs more than the decoder
# (steps, draws a step): Normals by natural gradient; the others by Adam. A flow gains nothing from few draws.
SCHEDULES = {
    "same": (160, 32),
    "mean_field": (160, 32),
    "full_rank": (160, 32),
    "low_rank": (320, 32),
    "mixture": (300, 64),
    "flow": (300, 128),
}


@dataclass
class Fit:
    """A refined posterior for each datum.

    Attributes:
        guide: The local posteriors.
        gain: (N,), ELBO gained by the last doubling of the steps, nats; nan where it was not asked for.
        steps: Taken.
        num_evaluations: Evaluations of log p(x, z), value or gradient, per datum.
    """

    guide: LocalPosterior | LocalUnconstrained
    gain: Tensor
    steps: int
    num_evaluations: int


def widest_normal(dim: int) -> str:
    """The richest Normal family that pays at this many latent dimensions."""
    return "full_rank" if dim <= LARGEST_FULL_RANK else "low_rank"


def check_refinement(family: str, steps: int | None, num_draws: int | None) -> None:
    """Raise where the arguments of a refinement make no sense."""
    if family not in FAMILIES:
        raise FamilyError(f"family is one of {', '.join(FAMILIES)}, got {family!r}")
    check_count("steps", 1 if steps is None else steps)
    check_count("num_draws", 1 if num_draws is None else num_draws)


def refined(pair: Pair, x: Batch, *, family: str = "full_rank", steps: int = PROPOSAL_STEPS, num_draws: int = 32, seed: int = 0) -> Any:
    """The local posteriors alone, without the report of their gain: what estimators propose and start from."""
    return fit(pair, x, family=family, steps=steps, num_draws=num_draws, seed=seed, report=False).guide


def fit(
    pair: Pair,
    x: Batch,
    *,
    family: str = "same",
    steps: int | None = None,
    num_draws: int | None = None,
    seed: int = 0,
    report: bool = True,
) -> Fit:
    """Optimise the ELBO of each datum over one family.

    Args:
        pair: Model and guide; the guide is the start.
        x: Data, (N, *event).
        family: "same" as the guide's; over the unconstrained latents "mean_field", "full_rank", "low_rank"; "mixture" and "flow" on top
            of a fitted full rank.
        steps, num_draws: The schedule; by default the family's own in ``SCHEDULES``.
        seed: Rules every draw.
        report: Whether to measure the gain of the last doubling, and to keep an earlier state where a later one is clearly worse.

    Raises:
        FamilyError: The family cannot be built for this pair.
    """
    check_refinement(family, steps, num_draws)
    steps, num_draws = steps or SCHEDULES[family][0], num_draws or SCHEDULES[family][1]
    evaluations = 0
    if family in INNER:
        base = start_of(pair, x, "full_rank", seed)
        assert isinstance(base, Normals)
        base_steps, base_draws = SCHEDULES["full_rank"]
        normals = _Normal(base, pair, x, base_draws, base_steps, seed)
        _run(normals, base_steps, seed, report=False)
        evaluations += base_steps * base_draws
        fitting: _Normal | _Adam = _Adam(whitened(family, base, normals.m, normals.scale_tril, seed), pair, x, num_draws, steps, seed)
    else:
        start = start_of(pair, x, family, seed)
        fitting = (
            _Normal(start, pair, x, num_draws, steps, seed) if isinstance(start, Normals) else _Adam(start, pair, x, num_draws, steps, seed)
        )
    gain = _run(fitting, steps, seed, report)
    guide = fitting.guide()
    guide.name, guide.belongs_to = f"refined {family}", digest(x)
    evaluations += steps * num_draws + 3 * COMMON_DRAWS * report
    return Fit(guide, gain, steps, evaluations)


def _run(fitting: _Normal | _Adam, steps: int, seed: int, report: bool) -> Tensor:
    """Take the steps for all data; the gain of the second half, (N,)."""

    def refine(rows: slice) -> tuple[Tensor, Any]:
        index = torch.arange(rows.start, rows.stop)
        start: Any = fitting.state(index)
        try:
            return refined_from(start, index)
        except Exception:  # memory may have run out half way: fewer rows begin where these began
            fitting.put_back(index, start, torch.ones(len(index), dtype=torch.bool))
            raise

    def refined_from(start: Any, index: Tensor) -> tuple[Tensor, Any]:
        fitting.advance(index, 0, steps // 2)
        half: Any = fitting.state(index)
        fitting.advance(index, steps // 2, steps)
        if not report:
            return torch.full((len(index),), torch.nan, dtype=torch.float64), fitting.state(index)
        last = fitting.value(index)
        gained, worse = _compared(last, fitting, index, half)
        _, worse_than_start = _compared(last, fitting, index, start)
        fitting.put_back(index[worse], half, worse)
        fitting.put_back(index[worse_than_start & ~worse], start, worse_than_start & ~worse)
        return gained.clamp(min=0), fitting.state(index)

    gains = []
    at_once: Halving[tuple[Tensor, Any]] = Halving(fitting.rows_at_once // noise.BLOCK_ROWS, "refinement")
    for rows, parts in shared().each(noise.blocks(fitting.pair.num_data, fitting.rows_at_once), lambda rows: at_once(rows, refine)):
        first = rows.start
        for gain, state in parts:
            there = torch.ones(len(gain), dtype=torch.bool)
            fitting.put_back(torch.arange(first, first + len(gain)), state, there)  # another process did it
            gains.append(gain)
            first += len(gain)
    return torch.cat(gains)


def _compared(last: Tensor, fitting: _Normal | _Adam, index: Tensor, earlier: Any) -> tuple[Tensor, Tensor]:
    """ELBO gained since an earlier state, by common draws, and whether the later is clearly worse: it has averaged more noise away."""
    now: Any = fitting.state(index)
    fitting.put_back(index, earlier, torch.ones(len(index), dtype=torch.bool))
    difference = last - fitting.value(index)
    fitting.put_back(index, now, torch.ones(len(index), dtype=torch.bool))
    gained = difference.sum(0)
    noise_of_gain = difference.std(0) * math.sqrt(len(difference))
    return gained, gained < -4 * noise_of_gain.nan_to_num(0.0)


def _blocks(index: Tensor) -> Iterator[tuple[slice, int]]:
    """Where each block of 64 data lies in a stretch of consecutive rows, and the number of its first row."""
    for part in noise.blocks(len(index), noise.BLOCK_ROWS):
        yield part, int(index[part.start])


def _compiled(function: Any, pair: Pair, rows_at_once: int, evaluations: int) -> CompiledFunction:
    """A step of ``rows_at_once`` data, or of all where they are fewer, compiled where ``evaluations`` of each datum are worth it."""
    usual = min(rows_at_once, pair.num_data)
    wanted = worth(evaluations * usual * (pair.num_data // usual), WORTH_COMPILING)
    return CompiledFunction(function, wanted=wanted, shapes=lambda inputs: len(inputs[0]) == usual)


class _Normal:
    """Normal posteriors, by natural gradient."""

    def __init__(self, start: Normals, pair: Pair, x: Batch, num_draws: int, steps: int, seed: int) -> None:
        self.start, self.pair, self.x, self.num_draws, self.seed = start, pair, x, num_draws, seed
        self.m, self.scale_tril = start.m.clone(), start.scale_tril.clone()
        self.rows_at_once = noise.BLOCK_ROWS * max(1, ROWS_PER_CALL // (num_draws * noise.BLOCK_ROWS))
        self._step = _compiled(self._moved, pair, self.rows_at_once, steps * num_draws)

    def advance(self, index: Tensor, begin: int, end: int) -> None:
        x = take(self.x, index.to(self.pair.device))
        generators = [noise.generator(self.seed, "refine", first, begin) for _, first in _blocks(index)]
        m, scale_tril = self.m[index], self.scale_tril[index]
        leaves, self._tree = _pytree.tree_flatten(x)
        for t in range(begin, end):
            rate = torch.tensor(natural.rate_at(t), dtype=torch.float64)
            m, scale_tril = self._step(m, scale_tril, self._draws(generators, index), rate, *leaves)
        self.m[index], self.scale_tril[index] = m, scale_tril

    def _moved(self, m: Tensor, scale_tril: Tensor, e: Tensor, rate: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        x = _pytree.tree_unflatten(leaves, self._tree)
        _, gradient = self.start.coordinates.gradient(x, natural.placed(m, scale_tril, e))
        return natural.step(m, scale_tril, self.start.structure, e, gradient, rate)

    def _draws(self, generators: list[torch.Generator], index: Tensor) -> Tensor:
        dim = self.start.coordinates.dim
        parts = [
            natural.antithetic(self.num_draws, part.stop - part.start, dim, self.m, generator)
            for (part, _), generator in zip(_blocks(index), generators, strict=True)
        ]
        return torch.cat(parts, 1)

    def value(self, index: Tensor) -> Tensor:
        """Each draw's share of the ELBO at common draws, (S, n), float64: their sum is the ELBO."""
        found = torch.empty(COMMON_DRAWS, len(index), dtype=torch.float64)
        for part in noise.blocks(len(index), COMMON_ROWS):
            rows = index[part]
            e = natural.antithetic(COMMON_DRAWS, len(rows), self.m.shape[-1], self.m, noise.generator(self.seed, "common", int(rows[0])))
            m, scale_tril = self.m[rows], self.scale_tril[rows]
            with measuring(self.pair.model):
                density = self.start.coordinates.log_density(take(self.x, rows.to(self.pair.device)), natural.placed(m, scale_tril, e))
            found[:, part] = natural.log_weights(m, scale_tril, e, density).cpu() / COMMON_DRAWS
        return found

    def state(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.m[index].clone(), self.scale_tril[index].clone()

    def put_back(self, index: Tensor, state: tuple[Tensor, Tensor], chosen: Tensor) -> None:
        self.m[index], self.scale_tril[index] = state[0][chosen], state[1][chosen]

    def guide(self) -> LocalPosterior | LocalUnconstrained:
        return self.start.as_guide(self.m, self.scale_tril)


class _Adam:
    """Any other family, by Adam on its rows; elementwise, so that data do not touch each other."""

    def __init__(self, start: Freed | FreedUnconstrained, pair: Pair, x: Batch, num_draws: int, steps: int, seed: int) -> None:
        self.start, self.pair, self.x, self.num_draws, self.steps, self.seed = start, pair, x, num_draws, steps, seed
        self.tables = {site: table.clone() for site, table in start.tables.items()}
        self.moments = {site: (torch.zeros_like(t), torch.zeros_like(t)) for site, t in self.tables.items()}
        self.rows_at_once = noise.BLOCK_ROWS  # reparameterised draws come from torch's own generator: one block, one seed

    def advance(self, index: Tensor, begin: int, end: int) -> None:
        x = take(self.x, index.to(self.pair.device))
        if begin == 0:  # once more, perhaps, where memory had run out half way
            for moment in (moment for both in self.moments.values() for moment in both):
                moment[index] = 0.0
        with noise.seeded(self.seed, "refine", int(index[0]), begin, device=self.pair.device):
            for t in range(begin, end):
                self._step(x, index, t)

    def _step(self, x: Batch, index: Tensor, t: int) -> None:
        now = {site: table[index].detach().requires_grad_(True) for site, table in self.tables.items()}
        with measuring(self.pair.model), torch.enable_grad():
            log_w, weights = self.start.log_weights(self.pair, x, index, now, self.num_draws)
            gradients = torch.autograd.grad(-(weights * log_w).sum(), list(now.values()))
        for (site, value), gradient in zip(now.items(), gradients, strict=True):
            first, second = self.moments[site]
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient.square()
            move = first[index] / (1 - 0.9 ** (t + 1)) / ((second[index] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            sound = torch.isfinite(move).all(-1, keepdim=True)
            self.tables[site][index] = value.detach() - self._rate(t) * torch.where(sound, move, 0.0)

    def _rate(self, t: int) -> float:
        if isinstance(self.start, Freed):
            return self.start.rate * natural.rate_at(t) / natural.FIRST_RATE
        return self.start.rate * min(1.0, 2 * (1 - t / self.steps))

    def value(self, index: Tensor) -> Tensor:
        """As ``_Normal.value``."""
        parts = []
        for part in noise.blocks(len(index), COMMON_ROWS):
            rows = index[part]
            with noise.seeded(self.seed, "common", int(rows[0]), device=self.pair.device), measuring(self.pair.model):
                now = {site: table[rows] for site, table in self.tables.items()}
                log_w, weights = self.start.log_weights(self.pair, take(self.x, rows.to(self.pair.device)), rows, now, COMMON_DRAWS)
            parts.append((log_w * weights).cpu())
        return torch.cat(parts, 1)

    def state(self, index: Tensor) -> dict[str, Tensor]:
        return {site: table[index].clone() for site, table in self.tables.items()}

    def put_back(self, index: Tensor, state: dict[str, Tensor], chosen: Tensor) -> None:
        for site, table in self.tables.items():
            table[index] = state[site][chosen]

    def guide(self) -> LocalPosterior | LocalUnconstrained:
        return self.start.as_guide(self.pair, self.tables)
