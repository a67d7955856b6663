"""The log p(x) that gaps are measured from: a closed form, quadrature, annealing, or weights from refined posteriors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.analysis.annealed_log_likelihood import annealed_log_likelihood
from ppvae.analysis.exact_log_likelihood import exact_log_likelihood
from ppvae.analysis.log_likelihood import LogLikelihood, log_likelihood
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, FamilyError
from ppvae.modules import Program

REFERENCES = ("auto", "exact", "annealed", "importance")
TOLERANCE = 0.05  # of each datum; the mean over N data is that much better by sqrt(N)
NUM_TEMPERATURES, NUM_CHAINS = 100, 16


@dataclass
class Reference:
    """log p(x) with its error and the verdict on it, (N,) each, and what it is called."""

    log_px: Tensor
    se: Tensor
    trusted: Tensor
    name: str


def check_reference(reference: str) -> None:
    """Raise where there is no such reference."""
    if reference not in REFERENCES:
        raise ArgumentError(f"reference is one of {', '.join(REFERENCES)}, got {reference!r}")


def reference_of(model: Program, guide: Program, x: Data | Batch, reference: str, num_particles: int, seed: int) -> Reference:
    """log p(x) of each datum by the named reference; "auto" is the closed form where there is one, else weights to a tolerance.

    The seed is that of the gaps, so that all of them are conditional on one draw of global sites.
    """
    if reference == "auto":
        reference = "exact" if hasattr(model, "log_evidence") else "tolerance"
    if reference == "exact":
        exact = exact_log_likelihood(model, x, guide=guide, seed=seed)
        known = torch.ones_like(exact.pointwise, dtype=torch.bool)
        return Reference(exact.pointwise, exact.error_bound, known, exact.method)
    if reference == "annealed":
        annealed = annealed_log_likelihood(
            model, x, guide=guide, start="refined", num_temperatures=NUM_TEMPERATURES, num_chains=NUM_CHAINS, seed=seed
        )
        name = f"annealing from refined posteriors, {NUM_TEMPERATURES} temperatures, {NUM_CHAINS} chains"
        return Reference(annealed.pointwise, annealed.pointwise_se, annealed.ess > NUM_CHAINS / 4, name)
    weighted = _weighted(model, guide, x, reference, num_particles, seed)
    others = {name: int(rows.sum()) for name, rows in weighted.used.items() if name != weighted.proposal}
    used = ", ".join(f"{number} {name}" for name, number in others.items() if number)
    name = f"importance weights, {weighted.proposal}" + (f" ({used})" if used else "")
    return Reference(weighted.pointwise, weighted.pointwise_se, weighted.trusted, name)


def _weighted(model: Program, guide: Program, x: Data | Batch, reference: str, num_particles: int, seed: int) -> LogLikelihood:
    try:
        if reference == "tolerance":
            return log_likelihood(model, guide, x, tolerance=TOLERANCE, seed=seed)
        return log_likelihood(model, guide, x, proposal="refined", num_particles=num_particles, seed=seed)
    except FamilyError:  # what cannot be refined proposes for itself, and is held against the prior
        return log_likelihood(model, guide, x, num_particles=num_particles, seed=seed)
