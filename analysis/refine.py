"""A local posterior for each datum: the guide's family, or a richer one, with its parameters freed and optimised for these data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ppvae import noise
from ppvae.analysis.elbo import elbo
from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.local import LocalPosterior, LocalUnconstrained
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.refinement import check_refinement, fit


@dataclass(frozen=True, eq=False)
class Refinement:
    """Local posteriors and their ELBO, nats.

    Attributes:
        guide: The local posteriors: a guide for these x, and no others.
        pointwise: (N,), L[q*] by fresh draws.
        pointwise_se: (N,), Monte Carlo error.
        gain: (N,), ELBO gained by the last doubling of the steps: about what is still missing.
        steps: Taken, the same for every datum.
        num_evaluations: Of log p(x, z) per datum, value or gradient, by the refinement.
        family: The family.
        source: Where the number came from.
    """

    guide: LocalPosterior | LocalUnconstrained
    pointwise: Tensor
    pointwise_se: Tensor
    gain: Tensor
    steps: int
    num_evaluations: int
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
            f"{self.steps} steps, last doubling gained {self.gain.mean():.3f}; {label(self.source)})"
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
    steps: int | None = None,
    num_draws: int | None = None,
    num_particles: int = 1000,
    seed: int = 0,
) -> Refinement:
    """Optimise a posterior for each datum, started from the guide's.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        family: "same" as the guide's; over the unconstrained latents "mean_field", "full_rank" or "low_rank" Normals; "mixture" of
            Normals and "flow", each datum its own, on top of a fitted full rank.
        steps, num_draws: A fixed schedule, the same for every datum; by default the family's own (160 steps of 32 draws for Normals).
        num_particles: Fresh draws per datum for the reported ELBO.
        seed: Rules every draw.

    Raises:
        FamilyError: The family cannot be built for this pair: a discrete latent, or a guide site that family "same" cannot free.

    References:
        Kim, Wiseman, Miller, Sontag, Rush (2018), Semi-amortized variational autoencoders, sec. 3.
        Roeder, Wu, Duvenaud (2017), Sticking the landing. Khan, Lin (2017), Conjugate-computation variational inference.
    """
    check_refinement(family, steps, num_draws)
    batch = batch_of(x, model, guide)
    found = fit(Pair(model, guide, batch, seed), batch, family=family, steps=steps, num_draws=num_draws, seed=seed)
    bound = elbo(model, found.guide, x, num_particles=num_particles, seed=noise.derived_seed(seed, "fresh"))
    source = replace(bound.source, seed=seed)
    return Refinement(found.guide, bound.pointwise, bound.pointwise_se, found.gain, found.steps, found.num_evaluations, family, source)
