"""A local posterior for each datum: the guide's family, or another, with its parameters freed and optimised for these data.

The rule that ends it, per datum: after 40, 80, 160, ... steps the ELBO is compared, on 128 common draws, with that of half as many
steps; a datum whose gain is below the tolerance stops. It keeps its last state, unless that is worse than an earlier one by more than
four standard errors of the paired difference. With a rate that falls as 1 / step what remains to be gained is about the last gain,
which is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae import natural
from ppvae.analysis.elbo import elbo
from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of
from ppvae.freed import Freed, Normals, start_of
from ppvae.local import LocalPosterior, LocalUnconstrained
from ppvae.batches import Batch, digest, take
from ppvae.data import Data
from ppvae.errors import ArgumentError, FamilyError, check_count
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring

FIRST_CHECK, COMMON_DRAWS = 40, 128
ROWS_PER_CALL = 4096
FAMILIES = ("same", "mean_field", "full_rank")


@dataclass(frozen=True, eq=False)
class Refinement:
    """Local posteriors and their ELBO, nats.

    Attributes:
        guide: The local posteriors: a guide for these x, and no others.
        pointwise: (N,), L[q*] by fresh draws.
        pointwise_se: (N,), Monte Carlo error.
        gain: (N,), ELBO gained by the last doubling of the steps: about what is still missing.
        steps: (N,), taken.
        family: The family.
        source: Where the number came from.
    """

    guide: LocalPosterior | LocalUnconstrained
    pointwise: Tensor
    pointwise_se: Tensor
    gain: Tensor
    steps: Tensor
    family: str
    source: Provenance

    @property
    def elbo(self) -> Tensor:
        """(N,), L[q*]."""
        return self.pointwise

    @property
    def mean(self) -> Estimate:
        """Mean of L[q*] over the data."""
        return mean_of(self.pointwise, self.pointwise_se)

    def __str__(self) -> str:
        return (
            f"L[q*] = {self.mean} nats, family {self.family} (N={len(self.pointwise)}; "
            f"{self.steps.double().mean():.0f} steps, last doubling gained {self.gain.mean():.3f}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {k: v for k, v in as_lists(self).items() if k != "guide"} | {"mean": vars(self.mean)}


def refine(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    family: str = "same",
    num_particles: int = 1000,
    num_draws: int = 32,
    max_steps: int = 320,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Refinement:
    """Optimise a posterior for each datum, started from the guide's.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        family: "same" as the guide's, "mean_field" or "full_rank" (Normals over the unconstrained latents).
        num_particles: Fresh draws per datum for the reported ELBO.
        num_draws: Draws per step and datum.
        max_steps: Steps at most.
        tolerance: A datum stops when doubling its steps gained less than this, nats; 0 takes all of ``max_steps``.
        seed: Rules every draw.

    Raises:
        FamilyError: The family cannot be built for this pair: a discrete latent, or a guide site that family "same" cannot free.

    References:
        Kim, Wiseman, Miller, Sontag, Rush (2018), Semi-amortized variational autoencoders, sec. 3.
        Roeder, Wu, Duvenaud (2017), Sticking the landing. Khan, Lin (2017), Conjugate-computation variational inference.
    """
    check_refinement(family, num_draws, max_steps, tolerance)
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    start = start_of(pair, batch, family, seed)
    schedule = Schedule(pair.num_data, num_draws, max_steps, tolerance, seed)
    fitted = _fit_normals(start, pair, batch, schedule) if isinstance(start, Normals) else _fit_freed(start, pair, batch, schedule)
    fitted.name, fitted.belongs_to = f"refined {family}", digest(batch)
    found = elbo(model, fitted, x, num_particles=num_particles, seed=noise.derived_seed(seed, "fresh"))
    return Refinement(fitted, found.pointwise, found.pointwise_se, schedule.gain, schedule.steps, family, replace(found.source, seed=seed))


def check_refinement(family: str, num_draws: int, max_steps: int, tolerance: float) -> None:
    """Raise where the arguments of a refinement make no sense."""
    if family not in FAMILIES:
        raise FamilyError(f"family is one of {', '.join(FAMILIES)}, got {family!r}")
    check_count("num_draws", num_draws)
    check_count("max_steps", max_steps)
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance is a number of nats >= 0, got {tolerance!r}")


@dataclass
class Schedule:
    """The doubling rule: which data go on, and how far they have come."""

    num_data: int
    num_draws: int
    max_steps: int
    tolerance: float
    seed: int

    def __post_init__(self) -> None:
        self.steps = torch.zeros(self.num_data, dtype=torch.long)
        self.gain = torch.full((self.num_data,), torch.inf, dtype=torch.float64)

    def run(
        self,
        advance: Callable[[Tensor, int, int], None],
        value: Callable[[Tensor, bool], Tensor],
        keep: Callable[[Tensor], None],
        put_back: Callable[[Tensor], None],
    ) -> None:
        """Double the steps of the data that still gain.

        Args:
            advance: Take the steps from one number to another for some rows.
            value: Their log weights at common draws, (draws, n), float64, as they stand or as they were kept; the mean is the ELBO.
            keep: Remember how they stand as the best so far.
            put_back: Go back to that.
        """
        active = torch.arange(self.num_data)
        keep(active)
        reached, target = 0, min(FIRST_CHECK // 2, self.max_steps)
        while len(active):
            advance(active, reached, target)
            difference = value(active, False) - value(active, True)  # by the same call, so that the draws are the same
            gained = difference.mean(0)
            noise_of_gain = (difference.std(0) / math.sqrt(COMMON_DRAWS)).nan_to_num(0.0)
            better = gained > -4 * noise_of_gain  # the later state has averaged more noise: only a clear loss brings the earlier back
            keep(active[better])
            self.steps[active], self.gain[active] = target, gained.clamp(min=0)
            going = (gained >= self.tolerance) | (target < FIRST_CHECK) | (self.tolerance <= 0)
            active = active[going] if target < self.max_steps else active[:0]
            reached, target = target, min(2 * target, self.max_steps)
        put_back(torch.arange(self.num_data))


def _fit_normals(start: Normals, pair: Pair, x: Batch, schedule: Schedule) -> LocalPosterior | LocalUnconstrained:
    m, scale_tril, structure, coordinates = start.m.clone(), start.scale_tril.clone(), start.structure, start.coordinates
    best_m, best_tril = m.clone(), scale_tril.clone()
    per_call = max(1, ROWS_PER_CALL // schedule.num_draws)

    def advance(active: Tensor, begin: int, end: int) -> None:
        for rows in active.split(per_call):
            x_rows = take(x, rows.to(pair.device))
            generator = noise.generator(schedule.seed, "refine", int(rows[0]), begin)
            for t in range(begin, end):
                e = natural.antithetic(schedule.num_draws, len(rows), coordinates.dim, m, generator)
                _, gradient = coordinates.gradient(x_rows, natural.placed(m[rows], scale_tril[rows], e))
                m[rows], scale_tril[rows] = natural.step(m[rows], scale_tril[rows], structure, e, gradient, natural.rate_at(t))

    def value(active: Tensor, kept: bool) -> Tensor:
        m_now, tril_now = (best_m, best_tril) if kept else (m, scale_tril)
        found = torch.empty(COMMON_DRAWS, len(active), dtype=torch.float64)
        for place, rows in zip(torch.arange(len(active)).split(32), active.split(32), strict=True):
            e = natural.antithetic(COMMON_DRAWS, len(rows), coordinates.dim, m, noise.generator(schedule.seed, "common"))
            with measuring(pair.model):
                density = coordinates.log_density(take(x, rows.to(pair.device)), natural.placed(m_now[rows], tril_now[rows], e))
            found[:, place] = natural.log_weights(m_now[rows], tril_now[rows], e, density).cpu()
        return found

    def keep(rows: Tensor) -> None:
        best_m[rows], best_tril[rows] = m[rows], scale_tril[rows]

    def put_back(rows: Tensor) -> None:
        m[rows], scale_tril[rows] = best_m[rows], best_tril[rows]

    schedule.run(advance, value, keep, put_back)
    return start.as_guide(m, scale_tril)


def _fit_freed(start: Freed, pair: Pair, x: Batch, schedule: Schedule) -> LocalPosterior:
    """Adam on the freed rows; elementwise, so that data do not touch each other."""
    tables = {site: table.clone() for site, table in start.tables.items()}
    best = {site: table.clone() for site, table in tables.items()}
    moments = {site: (torch.zeros_like(t), torch.zeros_like(t)) for site, t in tables.items()}
    per_call = max(1, ROWS_PER_CALL // schedule.num_draws)

    def advance(active: Tensor, begin: int, end: int) -> None:
        for rows in active.split(per_call):
            x_rows = take(x, rows.to(pair.device))
            with noise.seeded(schedule.seed, "refine", int(rows[0]), begin, device=pair.device):
                for t in range(begin, end):
                    _adam_step(start, pair, x_rows, rows, tables, moments, schedule.num_draws, t)

    def value(active: Tensor, kept: bool) -> Tensor:
        parts = []
        for rows in active.split(32):
            with noise.seeded(schedule.seed, "common", device=pair.device), measuring(pair.model):
                now = {site: table[rows] for site, table in (best if kept else tables).items()}
                parts.append(start.log_weights(pair, take(x, rows.to(pair.device)), now, COMMON_DRAWS).cpu())
        return torch.cat(parts, 1)

    def keep(rows: Tensor) -> None:
        for site, table in tables.items():
            best[site][rows] = table[rows]

    def put_back(rows: Tensor) -> None:
        for site, table in tables.items():
            table[rows] = best[site][rows]

    schedule.run(advance, value, keep, put_back)
    return LocalPosterior(start.families, tables, "refined")


def _adam_step(
    start: Freed,
    pair: Pair,
    x: Batch,
    rows: Tensor,
    tables: dict[str, Tensor],
    moments: dict[str, tuple[Tensor, Tensor]],
    num_draws: int,
    t: int,
) -> None:
    now = {site: table[rows].detach().requires_grad_(True) for site, table in tables.items()}
    with measuring(pair.model), torch.enable_grad():
        loss = -start.log_weights(pair, x, now, num_draws).mean(0).sum()
        gradients = torch.autograd.grad(loss, list(now.values()))
    rate = 0.1 * natural.rate_at(t) / natural.FIRST_RATE
    for (site, value), gradient in zip(now.items(), gradients, strict=True):
        first, second = moments[site]
        first[rows] = 0.9 * first[rows] + 0.1 * gradient
        second[rows] = 0.999 * second[rows] + 0.001 * gradient.square()
        move = first[rows] / (1 - 0.9 ** (t + 1)) / ((second[rows] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        sound = torch.isfinite(move).all(-1, keepdim=True)
        tables[site][rows] = value.detach() - rate * torch.where(sound, move, 0.0)
