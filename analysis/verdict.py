"""Is an estimate of log p(x) to be believed? It is held against a bound from a second, different proposal.

k-hat and the standard error look at the draws that there are: a mode of the posterior that no draw visited is invisible to both. A bound
from another proposal is not: in expectation it too lies below log p(x), so that where it lies above the estimate, the estimate is low
(P(bound > log p + b) <= exp(-b)). A disagreement counts when a repetition with new draws shows it again. It is then mended from the
better start: a Normal is fitted from where the second proposal saw what the first leaves unexplained, and the answer is drawn anew from
the mixture of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.proposals import NUM_DRAWS, Proposal, components_of, mixture, normals_at, normals_of, unexplained_draws, widening
from ppvae.analysis.weighed import Weighed, pair_at, weighed, weighed_by_rows
from ppvae.batches import Batch, take
from ppvae.importance import MIN_PARTICLES, k_hat_threshold
from ppvae.local import LocalUnconstrained
from ppvae.modules import Program
from ppvae.posteriors import Normals
from ppvae.refinement import LARGEST_FULL_RANK, PROPOSAL_STEPS, fit

LEAST_EXCESS, LARGEST_MARGIN = 0.3, 1.0  # nats
MENDED_EXCESS = 0.05  # of what was wrong once: it gets less benefit of the doubt
AGAIN = 4  # times as many draws at the second look
ATTEMPTS = 3  # at mending, a Normal each


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a second proposal said of each datum.

    Attributes:
        proposal: The second proposal.
        bound, bound_se: (N,), its importance-weighted bound on log p(x), nats.
        bound_sound: (N,), whether its own weights look sound: k-hat below its threshold and an effective sample size of 25 at least.
        disagrees: (N,), whether that bound exceeded the estimate by more than 0.3 nats twice, with different draws, the second time also
            by three of its standard errors: as the estimate stood before it was mended.
        repaired: (N,), whether the estimate was then mended.
        unresolved: (N,), whether it still disagrees.
    """

    proposal: str
    bound: Tensor
    bound_se: Tensor
    bound_sound: Tensor
    disagrees: Tensor
    repaired: Tensor
    unresolved: Tensor


def exceeds(estimate: Weighed, bound: Weighed) -> Tensor:
    """(N,), whether a bound lies above an estimate by more than chance: 0.3 nats and three of the bound's own errors."""
    return bound.pointwise - estimate.pointwise > _margin(bound)


def trusted(first: Weighed, verdict: Verdict | None, sound: Tensor | None = None) -> Tensor:
    """(N,): never without a second proposal; else no unresolved disagreement, and either sound weights or two proposals that agree.

    ``sound`` is by default a k-hat below its threshold and an effective sample size of 25 at least. A mode that both proposals miss is not
    seen; above five dimensions refined Normals start from the guide, so that they share what it does not know.
    """
    if verdict is None:
        return torch.zeros_like(first.pointwise, dtype=torch.bool)
    sound = looks_sound(first) if sound is None else sound
    # Two proposals with heavy tails that agree prove nothing: the second must be sound itself
    agree = verdict.bound_sound & ((first.pointwise - verdict.bound).abs() <= LEAST_EXCESS)
    return ~verdict.unresolved & (sound | agree)


def looks_sound(found: Weighed) -> Tensor:
    """(N,), k-hat below its threshold and an effective sample size of 25 at least: all that weights can say of themselves."""
    counts, place = found.num_particles.unique(return_inverse=True)
    threshold = torch.tensor([k_hat_threshold(int(k)) for k in counts], dtype=torch.float64)[place]
    return (found.k_hat < threshold) & ((found.ess >= MIN_PARTICLES) | (found.k_hat == -torch.inf))


def _margin(bound: Weighed) -> Tensor:
    # Beyond one nat the bound's own error no longer excuses it: P(bound > log p + b) <= exp(-b) whatever its tail
    return (3 * bound.pointwise_se.nan_to_num(0.0)).clamp(LEAST_EXCESS, LARGEST_MARGIN)


class Court:
    """Holds an estimate against a second proposal, and mends it where that is right."""

    def __init__(self, model: Program, x: Batch, second: Proposal, seed: int, globals_at: dict[str, Tensor] | None = None) -> None:
        self.model, self.x, self.seed = model, x, seed
        self.pair = pair_at(model, second.program, x, None, seed, globals_at or {})
        self.second = replace(second, program=self.pair.guide)  # prepared for all of x, where it has to be
        self.bound = weighed(self.pair, x, second.particles, noise.derived_seed(seed, "second"))
        cost = second.num_evaluations + second.particles * second.evaluations_per_draw
        self.num_evaluations = torch.full((self.pair.num_data,), cost)

    def judge(self, first: Weighed) -> Tensor:
        """(N,), whether the second proposal's bound exceeds the estimate, and does so again with new draws and more of them.

        The first look asks for an excess of 0.3 nats alone: most of what it finds is chance, and is cleared by the second, which also
        asks for three standard errors. Its draws then replace the first look's.
        """
        suspect = self.bound.pointwise - first.pointwise > LEAST_EXCESS
        rows = suspect.nonzero()[:, 0]
        if len(rows):
            k = AGAIN * self.second.particles
            self.num_evaluations[rows] += k * self.second.evaluations_per_draw
            seed = noise.derived_seed(self.seed, "second, again")
            self.bound.put(rows, weighed_by_rows(self.pair, self.second.program, self.x, rows, k, seed, self.seed))
            suspect[rows] = exceeds(first, self.bound)[rows]
        return suspect

    def mend(self, rows: Tensor, proposal: Program, first: Weighed, weights: str) -> bool:
        """Replace the estimates of some rows, in place; False above 200 dimensions, where nothing is done.

        From the mixture of the proposal's Normal and one fitted from where the second proposal saw most that the first leaves
        unexplained; and again, with a Normal more, where that still falls short of the second bound or has unsound weights.
        """
        restricted: Callable[[Tensor], Program] | None = getattr(proposal, "rows", None)
        x_rows = take(self.x, rows)
        parts = components_of(self.model, restricted(rows) if restricted else proposal, x_rows, self.seed)
        if parts[0].coordinates.dim > LARGEST_FULL_RANK:
            return False
        for attempt in range(ATTEMPTS):
            parts.append(self._another(rows, x_rows, parts, first, noise.derived_seed(self.seed, "mend", attempt)))
            k = max(int(first.num_particles[rows].max()), self.second.particles)
            self.num_evaluations[rows] += k
            both = pair_at(self.model, _mixture(parts), x_rows, None, self.seed, self.pair.globals)
            first.put(rows, weighed(both, x_rows, k, noise.derived_seed(self.seed, "mended", attempt), weights))
            left = self._short(first, rows).nonzero()[:, 0]
            if not len(left):
                break
            rows, x_rows, parts = rows[left], take(x_rows, left), [_rows_of(part, left) for part in parts]
        return True

    def _short(self, first: Weighed, rows: Tensor) -> Tensor:
        """(n,), which mended rows need one Normal more: the second bound is still above them, or their own weights look unsound."""
        excess = (self.bound.pointwise - first.pointwise)[rows]
        margin = (3 * self.bound.pointwise_se[rows].nan_to_num(0.0)).clamp(MENDED_EXCESS, LARGEST_MARGIN)
        return (excess > margin) | ~looks_sound(first)[rows]

    def _another(self, rows: Tensor, x_rows: Batch, parts: list[Normals], first: Weighed, seed: int) -> Normals:
        """A Normal of each row, fitted from where the others leave most unexplained."""
        drawn = unexplained_draws(self.pair, self.x, rows, _mixture(parts), parts[0], first.pointwise[rows], self.second.particles, seed)
        start = pair_at(self.model, normals_at(_tightest(parts), drawn, "an unexplained draw"), x_rows, None, self.seed, self.pair.globals)
        found = fit(start, x_rows, family="full_rank", steps=PROPOSAL_STEPS, num_draws=NUM_DRAWS, seed=seed, report=False)
        self.num_evaluations[rows] += found.num_evaluations + self.second.particles
        return normals_of(self.model, found.guide.widened(widening(parts[0].coordinates.dim)), x_rows, self.seed)

    def verdict(self, first: Weighed, disagrees: Tensor, repaired: Tensor) -> Verdict:
        """The verdict on an estimate as it stands after mending."""
        unresolved = disagrees & exceeds(first, self.bound)
        bound, se, sound = self.bound.pointwise, self.bound.pointwise_se, looks_sound(self.bound)
        return Verdict(self.second.name, bound, se, sound, disagrees, repaired, unresolved)


def _mixture(parts: list[Normals]) -> LocalUnconstrained:
    return mixture(parts, (1 / len(parts),) * len(parts), "mended")


def _tightest(parts: list[Normals]) -> Normals:
    """Of each row the Normal of least volume: a wide one would slide from the new mode back to one that is known."""
    scale = torch.stack([part.scale_tril for part in parts])
    best = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1).argmin(0)
    return replace(parts[0], scale_tril=scale[best, torch.arange(scale.shape[1], device=scale.device)])


def _rows_of(normals: Normals, rows: Tensor) -> Normals:
    return replace(normals, m=normals.m[rows], scale_tril=normals.scale_tril[rows])
