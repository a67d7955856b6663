"""log p(x) of each datum by importance weighting, held against a second proposal, with its error, effective sample size and k-hat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of, provenance
from ppvae.analysis.proposals import Proposal, proposal_of
from ppvae.analysis.tolerance import to_tolerance
from ppvae.analysis.verdict import Court, Verdict, looks_sound, trusted
from ppvae.analysis.weighed import Weighed, weighed
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, DivergedError, UnreliableWarning, check_count
from ppvae.importance import check_weights, k_hat_threshold
from ppvae.modules import Program
from ppvae.pair import Pair


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log (1/K) sum_k p(x, z_k) / q(z_k | x) of each datum, nats; in expectation a lower bound on log p(x).

    Attributes:
        pointwise: (N,).
        pointwise_se: (N,), Monte Carlo error by the delta method; shrinks with the particles, and is too small where k-hat is large.
        ess: (N,), effective sample size, in [1, K].
        k_hat: (N,), shape of the weights' tail; -inf where they are constant, nan below 25 particles.
        num_particles: (N,), drawn for the number itself, not asked for; chains, where a datum was annealed.
        trusted: (N,), the verdict: no unresolved disagreement with the second proposal, and either a sound tail or two that agree.
        num_evaluations: (N,), of log p(x, z), value or gradient, with refinement, pilots and the second proposal.
        used: Name -> (N,), which data the number of which estimator is.
        verdict: What the second proposal said; None where none was asked for.
        proposal: What the particles were drawn from.
        weights: "plain", "truncated" or "smoothed".
        source: Where the number came from.
    """

    pointwise: Tensor
    pointwise_se: Tensor
    ess: Tensor
    k_hat: Tensor
    num_particles: Tensor
    trusted: Tensor
    num_evaluations: Tensor
    used: dict[str, Tensor]
    verdict: Verdict | None
    proposal: str
    weights: str
    source: Provenance

    @property
    def mean(self) -> Estimate:
        """Mean over the data."""
        return mean_of(self.pointwise, self.pointwise_se)

    @property
    def threshold(self) -> float:
        """min(1 - 1 / log10 K, 0.7) at the largest K, the k-hat above which weights alone should not be believed."""
        return k_hat_threshold(int(self.num_particles.max()))

    def __str__(self) -> str:
        there = self.k_hat[~self.k_hat.isnan()]
        k_hat = f"k-hat above {self.threshold:.2f} at {100 * (there > self.threshold).double().mean():.1f} %"
        if not len(there):
            k_hat = "no k-hat below 25 particles"
        weights = "" if self.weights == "plain" else f"{self.weights} weights; "
        return (
            f"log p(x) = {self.mean} nats (N={len(self.pointwise)}, K={_range(self.num_particles)}; {k_hat}; {weights}"
            f"proposal: {self.proposal}; {self._verdict()}; {label(self.source)})"
        )

    def _verdict(self) -> str:
        if self.verdict is None:
            return "not held against a second proposal: do not trust it"
        share = 100 * self.trusted.double().mean()
        mended = int((self.verdict.repaired & ~self.verdict.unresolved).sum())
        return f"trusted at {share:.1f} %, held against: {self.verdict.proposal}" + (f", {mended} repaired" if mended else "")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        verdict = None if self.verdict is None else as_lists(self.verdict)
        return as_lists(self) | {"mean": vars(self.mean), "threshold": self.threshold, "verdict": verdict}


def log_likelihood(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    num_particles: int = 5000,
    proposal: Program | str = "guide",
    tolerance: float | None = None,
    weights: str = "plain",
    second: Program | str | None = "auto",
    seed: int = 0,
) -> LogLikelihood:
    """The importance-weighted bound on log p(x) of each datum, and whether to believe it. Memory does not grow with K.

    A bound from a second, different proposal is held against the first. Where it lies above, and again with new draws, the number is
    not trusted; one whose proposal is not the guide is repaired, from a mixture of that proposal and of Normals fitted where the second
    saw what the first leaves out. A guide's own bound is left as it is.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        num_particles: K, draws per datum.
        proposal: "guide"; "refined", a full-rank Normal per datum fitted from the guide's and slightly widened; "defensive", that with a
            tenth of its draws from the guide's Normal; or another program for these x (``refine(...).guide``) to draw from.
        tolerance: Nats of Monte Carlo error to reach for each datum. A pilot with draws of its own then chooses, per datum, between guide,
            refined proposal and annealing, and the number of particles; the answer uses fresh draws. ``num_particles`` and ``proposal``
            are not used.
        weights: "plain"; "truncated" (at mean(w) sqrt(K)) or "smoothed" (Pareto), which trade bias for variance.
        second: What to hold the answer against: "auto" (refined Normals for the guide, the guide for any other), a program, or None.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract.
        DataError: Data outside the support of an observed site.
        FamilyError: ``proposal="refined"`` where a latent cannot be refined.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 3.
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling.
        Ionides (2008), Truncated importance sampling, sec. 2.
    """
    check_count("num_particles", num_particles)
    check_weights(weights)
    if tolerance is not None and not (isinstance(tolerance, int | float) and not isinstance(tolerance, bool) and tolerance > 0):
        raise ArgumentError(f"tolerance is a number of nats above 0, got {tolerance!r}")
    if tolerance is not None and proposal != "guide":
        raise ArgumentError(
            f"a tolerance chooses the proposal of each datum itself, got proposal={proposal!r}", mend="leave one of them out"
        )
    batch = batch_of(x, model, guide)
    guide = Pair(model, guide, batch, seed).guide if hasattr(guide, "prepared") else guide  # once for all that follows
    sound, used = None, {}
    if tolerance is None:
        chosen = proposal_of(proposal, model, guide, batch, seed)
        pair = Pair(model, chosen.program, batch, seed)
        first = weighed(pair, batch, num_particles, seed, weights)
        evaluations = first.num_particles * int(getattr(pair.guide, "evaluations_per_draw", 1)) + chosen.num_evaluations
    else:
        answer = to_tolerance(model, guide, batch, tolerance, weights, seed)
        chosen, first, sound, evaluations = answer.proposal, answer.found, answer.sound, answer.num_evaluations
        pair, used = answer.pair, {"annealed": answer.annealed}
    verdict = None
    if second is not None:
        own = chosen.program is guide
        against = ("refined or prior" if own else "guide") if second == "auto" else second
        verdict, cost = _held(model, batch, first, pair, proposal_of(against, model, guide, batch, seed), weights, not own, seed)
        evaluations = evaluations + cost
    if verdict is not None:
        used["repaired"] = verdict.repaired
        sound = sound if sound is None else torch.where(verdict.repaired, looks_sound(first), sound)
    return LogLikelihood(
        **vars(first),
        trusted=trusted(first, verdict, sound),
        num_evaluations=evaluations + sum(int(getattr(p, "num_evaluations", 0)) for p in {id(p): p for p in (guide, pair.guide)}.values()),
        used=_used(chosen.name, pair.num_data, used),
        verdict=verdict,
        proposal=chosen.name,
        weights=weights,
        source=provenance(x, pair, seed),
    )


def _used(name: str, n: int, others: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which estimator each number is of: a later one of the others replaces an earlier."""
    found, left = {}, torch.ones(n, dtype=torch.bool)
    for other, rows in reversed(others.items()):
        found[other] = rows & left
        left = left & ~rows
    return {name: left} | {other: rows for other, rows in found.items() if rows.any()}


def _held(
    model: Program, x: Batch, first: Weighed, pair: Pair, second: Proposal, weights: str, repair: bool, seed: int
) -> tuple[Verdict | None, Tensor]:
    """Hold an estimate against a second proposal and mend it in place: the verdict and its cost, (N,). None where the second diverges."""
    try:
        court = Court(model, x, second, seed, pair.globals)
        disagrees = court.judge(first)
    except DivergedError as error:
        warnings.warn(f"not held against {second.name}, which diverges: {error.problem}", UnreliableWarning, stacklevel=3)
        return None, torch.zeros_like(first.num_particles)
    repaired = torch.zeros_like(disagrees)
    rows = disagrees.nonzero()[:, 0]
    if repair and len(rows):
        repaired[rows] = court.mend(rows, pair.guide, first, weights)
    return court.verdict(first, disagrees, repaired), court.num_evaluations


def _range(counts: Tensor) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"
