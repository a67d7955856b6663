"""Where the ELBO is lost: approximation gap, amortization gap, and their sum, per datum and paired.

log p(x) - L[q] = (log p(x) - L[q*]) + (L[q*] - L[q]): what the family cannot reach, and what the encoder leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of
from ppvae.local import LocalPosterior, LocalUnconstrained
from ppvae.analysis.log_likelihood import LogLikelihood, log_likelihood
from ppvae.analysis.refine import check_refinement, refine
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import FamilyError, check_count
from ppvae.importance import Streamed, k_hat_threshold
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring
from ppvae.stream import stream

LARGEST_FULL_RANK = 200  # latent dimensions up to which the reference's proposal has a full covariance
REFERENCES = ("auto", "exact", "importance")


@dataclass(frozen=True, eq=False)
class InferenceGaps:
    """The gaps of the first family, all (N,), nats.

    Attributes:
        log_px: The reference for log p(x).
        elbo, elbo_optimal: L[q] of the guide and L[q*] of the refined family, by common fresh draws.
        approximation, amortization, inference: log_px - L[q*], L[q*] - L[q], and their sum.
        approximation_se, amortization_se, inference_se: Monte Carlo errors; the amortization gap's from paired draws.
        refined: L[q*] by family.
        reference: Name of the reference.
        reference_k_hat: k-hat of an importance-weighted reference, -inf for an exact one.
        reference_threshold: The k-hat above which that reference should not be believed.
        gain: What the last doubling of the first family's steps gained: about what its L[q*] still lacks.
        source: Where the numbers came from.
    """

    log_px: Tensor
    elbo: Tensor
    elbo_optimal: Tensor
    approximation: Tensor
    amortization: Tensor
    inference: Tensor
    approximation_se: Tensor
    amortization_se: Tensor
    inference_se: Tensor
    refined: dict[str, Tensor]
    reference: str
    reference_k_hat: Tensor
    reference_threshold: float
    gain: Tensor
    source: Provenance

    def mean(self, name: str) -> Estimate:
        """Mean of "approximation", "amortization" or "inference", with the error of the N differences."""
        return mean_of(getattr(self, name), getattr(self, f"{name}_se"))

    def __str__(self) -> str:
        gaps = ", ".join(f"{name} gap {self.mean(name)}" for name in ("inference", "approximation", "amortization"))
        first = next(iter(self.refined))
        share = 100 * (~(self.reference_k_hat <= self.reference_threshold)).double().mean()
        weighted = self.reference.startswith("importance")
        doubt = f", k-hat above {self.reference_threshold:.2f} at {share:.1f} %" if weighted else ""
        return f"{gaps} nats (N={len(self.elbo)}, family {first}; log p(x) by {self.reference}{doubt}; {label(self.source)})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        means = {name: vars(self.mean(name)) for name in ("approximation", "amortization", "inference")}
        return as_lists(self) | {"mean": means}


def inference_gaps(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    families: Sequence[str] = ("same",),
    reference: str = "auto",
    num_particles: int = 1000,
    num_reference: int = 5000,
    max_steps: int = 320,
    num_draws: int = 32,
    tolerance: float = 0.01,
    seed: int = 0,
) -> InferenceGaps:
    """Approximation, amortization and inference gap of each datum.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        families: Families to refine ("same", "mean_field", "full_rank"); the gaps are those of the first.
        reference: "exact" (the model's ``log_evidence``), "importance" (importance weights from a refined full-rank Normal, slightly
            widened), or "auto": exact where the model has it.
        num_particles: Fresh common draws for L[q] and L[q*].
        num_reference: Particles of an importance-weighted reference.
        max_steps, num_draws, tolerance: Of the refinement.
        seed: Rules every draw.

    Raises:
        FamilyError: A family cannot be built for this pair.

    References:
        Cremer, Li, Duvenaud (2018), Inference suboptimality in variational autoencoders, sec. 3.
    """
    families = (families,) if isinstance(families, str) else tuple(families)
    if not families:
        raise FamilyError("families names at least one family, as ('same',)")
    for family in families:
        check_refinement(family, num_draws, max_steps, tolerance)
    check_count("num_particles", num_particles)
    check_count("num_reference", num_reference)
    if reference not in REFERENCES:
        raise ValueError(f"reference is one of {', '.join(REFERENCES)}, got {reference!r}")
    if reference == "exact" and not hasattr(model, "log_evidence"):
        raise FamilyError("reference='exact' needs a model with log_evidence(x)", mend="reference='importance'")
    batch = batch_of(x, model, guide)
    how: dict[str, Any] = {"max_steps": max_steps, "num_draws": num_draws, "tolerance": tolerance, "seed": seed}
    found = {name: refine(model, guide, x, family=name, num_particles=1, **how) for name in dict.fromkeys(families)}
    first = found[families[0]]
    bounds = {
        name: _paired_bounds(model, guide, result.guide, batch, num_particles, noise.derived_seed(seed, "gaps"))
        for name, result in found.items()
    }
    elbo, elbo_se, optimal, optimal_se, difference, difference_se = bounds[families[0]]
    log_px, log_px_se, k_hat, name = _reference(model, guide, x, reference, found, num_reference, how)
    return InferenceGaps(
        log_px=log_px,
        elbo=elbo,
        elbo_optimal=optimal,
        approximation=log_px - optimal,
        amortization=difference,
        inference=log_px - elbo,
        approximation_se=(log_px_se**2 + optimal_se**2).sqrt(),
        amortization_se=difference_se,
        inference_se=(log_px_se**2 + elbo_se**2).sqrt(),
        refined={family: values[2] for family, values in bounds.items()},
        reference=name,
        reference_k_hat=k_hat,
        reference_threshold=k_hat_threshold(num_reference),
        gain=first.gain,
        source=first.source,
    )


def _paired_bounds(model: Program, guide: Program, local: Program, x: Batch, num_particles: int, seed: int) -> tuple[Tensor, ...]:
    """L[q], L[q*] and L[q*] - L[q] with their errors, block by block from the same seeds."""
    pairs = Pair(model, guide, x, seed), Pair(model, local, x, seed)
    found = [torch.full((pairs[0].num_data,), torch.nan, dtype=torch.float64) for _ in range(6)]
    sums: list[Streamed] = []
    for one, other in zip(*(stream(p, x, num_particles=num_particles, seed=seed) for p in pairs), strict=True):
        sums = sums or [Streamed(num_particles, one.rows.stop - one.rows.start) for _ in range(3)]
        for total, values in zip(sums, (one.log_weights, other.log_weights, other.log_weights - one.log_weights), strict=True):
            total.add(values)
        if sums[0].count == num_particles:
            for i, total in enumerate(sums):
                found[2 * i][one.rows], found[2 * i + 1][one.rows] = total.mean, total.mean_se
            sums = []
    return tuple(found)


def _reference(
    model: Program, guide: Program, x: Data | Batch, reference: str, found: dict[str, Any], num_particles: int, how: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, str]:
    """log p(x) with its error and k-hat, (N,), and what it is called."""
    batch = batch_of(x, model, guide)
    if reference == "auto":
        reference = "exact" if hasattr(model, "log_evidence") else "importance"
    if reference == "exact":
        closed: Any = model
        with measuring(model):
            exact = closed.log_evidence(batch).double().cpu()
        return exact, torch.zeros_like(exact), torch.full_like(exact, -torch.inf), "its closed form"
    weighted = _weighted(model, guide, x, found, num_particles, how)
    return weighted.pointwise, weighted.pointwise_se, weighted.k_hat, f"importance weights, K={num_particles}, {weighted.proposal}"


def _weighted(
    model: Program, guide: Program, x: Data | Batch, found: dict[str, Any], num_particles: int, how: dict[str, Any]
) -> LogLikelihood:
    proposal: LocalPosterior | LocalUnconstrained | None = None
    if "full_rank" in found:
        proposal = found["full_rank"].guide
    elif len(found) and _latent_dim(found) <= LARGEST_FULL_RANK:
        try:
            proposal = refine(model, guide, x, family="full_rank", num_particles=1, **how).guide
        except FamilyError:  # a discrete latent: the first family's posteriors propose
            proposal = None
    factor = 1.2 if _latent_dim(found) <= 5 else 1.05  # an unwidened posterior has heavy weights' tails where it is too narrow
    drawn_from = proposal.widened(factor) if proposal is not None else next(iter(found.values())).guide
    seed = noise.derived_seed(how["seed"], "px")
    return log_likelihood(model, guide, x, num_particles=num_particles, proposal=drawn_from, seed=seed)


def _latent_dim(found: dict[str, Any]) -> int:
    local = next(iter(found.values())).guide
    families = local.families.values() if isinstance(local, LocalPosterior) else [local.family]
    return sum(family.latent_dim for family in families)
