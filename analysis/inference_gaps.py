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
from ppvae.analysis.reference import check_reference, reference_of
from ppvae.analysis.refine import refine
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import FamilyError, check_count
from ppvae.importance import Streamed
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.refinement import check_refinement
from ppvae.stream import stream


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
        reference_trusted: (N,), the verdict on the reference.
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
    reference_trusted: Tensor
    gain: Tensor
    source: Provenance

    def mean(self, name: str) -> Estimate:
        """Mean of "approximation", "amortization" or "inference", with the error of the N differences."""
        return mean_of(getattr(self, name), getattr(self, f"{name}_se"))

    def __str__(self) -> str:
        gaps = ", ".join(f"{name} gap {self.mean(name)}" for name in ("inference", "approximation", "amortization"))
        first = next(iter(self.refined))
        doubt = "" if self.reference_trusted.all() else f", trusted at {100 * self.reference_trusted.double().mean():.1f} %"
        missing = f"L[q*] lacks about {self.gain.mean():.3f}"
        return f"{gaps} nats (N={len(self.elbo)}, family {first}; {missing}; log p(x) by {self.reference}{doubt}; {label(self.source)})"

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
    steps: int | None = None,
    num_draws: int | None = None,
    seed: int = 0,
) -> InferenceGaps:
    """Approximation, amortization and inference gap of each datum.

    The same call on training and on test data gives the encoder's generalisation gap: what the amortization gap gains between them.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        families: Families to refine ("same", "mean_field", "full_rank", "low_rank", "mixture", "flow"); the gaps are those of the first.
        reference: "exact" (closed form, quadrature or enumeration); "annealed", from a refined posterior per datum; "importance", weights
            from refined, slightly widened Normals; or "auto": the model's ``log_evidence`` where it has one, else
            ``log_likelihood(tolerance=0.05)``.
        num_particles: Fresh common draws for L[q] and L[q*].
        num_reference: Particles of the reference "importance".
        steps, num_draws: Of the refinement; by default each family's own schedule.
        seed: Rules every draw.

    Raises:
        FamilyError: A family cannot be built for this pair, or there is no exact reference.

    References:
        Cremer, Li, Duvenaud (2018), Inference suboptimality in variational autoencoders, sec. 3.
    """
    families = (families,) if isinstance(families, str) else tuple(families)
    if not families:
        raise FamilyError("families names at least one family, as ('same',)")
    for family in families:
        check_refinement(family, steps, num_draws)
    check_count("num_particles", num_particles)
    check_count("num_reference", num_reference)
    check_reference(reference)
    batch = batch_of(x, model, guide)
    how: dict[str, Any] = {"steps": steps, "num_draws": num_draws, "num_particles": 1, "seed": seed}
    found = {name: refine(model, guide, x, family=name, **how) for name in dict.fromkeys(families)}
    first = found[families[0]]
    bounds = {name: _paired_bounds(model, guide, result.guide, batch, num_particles, seed) for name, result in found.items()}
    elbo, elbo_se, optimal, optimal_se, difference, difference_se = bounds[families[0]]
    px = reference_of(model, guide, x, reference, num_reference, seed)
    return InferenceGaps(
        log_px=px.log_px,
        elbo=elbo,
        elbo_optimal=optimal,
        approximation=px.log_px - optimal,
        amortization=difference,
        inference=px.log_px - elbo,
        approximation_se=(px.se**2 + optimal_se**2).sqrt(),
        amortization_se=difference_se,
        inference_se=(px.se**2 + elbo_se**2).sqrt(),
        refined={family: values[2] for family, values in bounds.items()},
        reference=px.name,
        reference_trusted=px.trusted,
        gain=first.gain,
        source=first.source,
    )


def _paired_bounds(model: Program, guide: Program, local: Program, x: Batch, num_particles: int, seed: int) -> tuple[Tensor, ...]:
    """L[q], L[q*] and L[q*] - L[q] with their errors, block by block from the same seeds, at the same draw of global sites."""
    pairs = Pair(model, guide, x, seed), Pair(model, local, x, seed)
    seed = noise.derived_seed(seed, "gaps")
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
