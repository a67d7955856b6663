"""log p(x) of each datum by annealed importance sampling, from the prior, a guide or a refined guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import annealing, noise, paths
from ppvae.analysis.bidirectional import BidirectionalMonteCarlo, bidirectional
from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of, provenance
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.importance import effective_sample_size, log_mean_exp, standard_error
from ppvae.modules import Program

VALIDATION_DATA = 100


@dataclass(frozen=True, eq=False)
class AnnealedLogLikelihood:
    """log (1/C) sum_c w_c of each datum, nats, for the weights of C annealed chains; in expectation a lower bound on log p(x).

    Attributes:
        pointwise: (N,).
        pointwise_se: (N,), Monte Carlo error by the delta method from the C weights.
        ess: (N,), effective sample size of the weights, in [1, C].
        single_chain: (N,), mean of log w over the chains: in expectation a lower bound, looser than ``pointwise``.
        acceptance: (N,), mean acceptance probability of the transitions.
        num_nonfinite: (N,), proposals rejected because their energy or gradient was not finite.
        num_evaluations: (N,), evaluations of log p(x, z), alone or with its gradient, those of the start and the pilot included.
        num_temperatures: T.
        num_chains: C.
        start: What the chains were drawn from.
        schedule: Of the temperatures.
        validation: Bidirectional Monte Carlo on simulated data with the same settings, where it was asked for.
        source: Where the number came from.
    """

    pointwise: Tensor
    pointwise_se: Tensor
    ess: Tensor
    single_chain: Tensor
    acceptance: Tensor
    num_nonfinite: Tensor
    num_evaluations: Tensor
    num_temperatures: int
    num_chains: int
    start: str
    schedule: str
    validation: BidirectionalMonteCarlo | None
    source: Provenance

    @property
    def mean(self) -> Estimate:
        """Mean over the data."""
        return mean_of(self.pointwise, self.pointwise_se)

    def __str__(self) -> str:
        nonfinite = f"; {int(self.num_nonfinite.sum())} proposals not finite" if self.num_nonfinite.any() else ""
        told = "not validated" if self.validation is None else f"bidirectional {self.validation.told}"
        acceptance = "" if self.num_temperatures == 1 else f", acceptance {self.acceptance.mean():.2f}"
        return (
            f"log p(x) = {self.mean} nats (N={len(self.pointwise)}; annealed from the {self.start}, T={self.num_temperatures} "
            f"{self.schedule}, C={self.num_chains}{acceptance}, median ESS {self.ess.median():.1f} of {self.num_chains}{nonfinite}; "
            f"{told}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        validation = None if self.validation is None else self.validation.as_dict()
        return as_lists(self) | {"mean": vars(self.mean), "validation": validation}


def annealed_log_likelihood(
    model: Program,
    x: Data | Batch,
    *,
    guide: Program | None = None,
    start: str = "auto",
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 3,
    schedule: str = "auto",
    step_size: float | None = None,
    validate: bool = False,
    seed: int = 0,
) -> AnnealedLogLikelihood:
    """log p(x) of each datum by annealed importance sampling with Hamiltonian transitions.

    Step sizes are adapted per datum in a pilot with a seed of its own and frozen, so that the weights are unbiased for p(x). Where the
    pair has global sites, all is conditional on one draw of them. Discrete latents are summed out, from the prior alone.

    Args:
        model: A program of one argument, the batch.
        x: Data, (N, *event).
        guide: Where the chains start, with ``start`` "guide" or "refined".
        start: "guide": its Normal for each datum, or the Normal with its moments; "refined": a full-rank Normal fitted to each datum,
            from the guide or else the prior; "prior"; "auto": the guide where there is one, else the prior.
        num_temperatures: T, steps from the start to the joint: T increments of the weight and T - 1 transitions.
        num_chains: C, per datum.
        num_leapfrog: Leapfrog steps a transition.
        schedule: "linear"; "sigmoid"; "equal", steps of equal variance as the pilot saw it; "auto": linear from a Normal, equal from
            the prior.
        step_size: In whitened coordinates, for every datum and temperature; then there is no pilot.
        validate: Measure the same settings on 100 simulated data by bidirectional Monte Carlo.
        seed: Rules every draw.

    Raises:
        ArgumentError: Settings that make no sense together.
        FamilyError: A latent has no unconstrained coordinates.
        DivergedError: The log weight is not a number where the chains begin.
        ShapeError, ProgramError, DataError: The pair breaks the contract.

    References:
        Neal (2001), Annealed importance sampling. Wu, Burda, Salakhutdinov, Grosse (2017), On the quantitative analysis of
        decoder-based generative models, sec. 4.
    """
    settings = annealing.Settings(num_temperatures, num_chains, num_leapfrog, schedule, step_size)
    batch = batch_of(x, model, *([] if guide is None else [guide]))
    path = paths.path(model, guide, batch, start, seed)
    settings = settings.resolved(path.from_prior)
    frozen = annealing.tables(path, settings, noise.derived_seed(seed, "pilot"))
    found = annealing.forward(path, frozen, settings, noise.derived_seed(seed, "forward"))
    validation = None
    if validate:
        validation = bidirectional(
            model,
            template=x,
            num_data=VALIDATION_DATA,
            guide=guide,
            start=start,
            num_temperatures=num_temperatures,
            num_chains=num_chains,
            num_leapfrog=num_leapfrog,
            schedule=schedule,
            step_size=step_size,
            seed=noise.derived_seed(seed, "validation"),
        )
    return AnnealedLogLikelihood(
        pointwise=log_mean_exp(found.log_weights),
        pointwise_se=standard_error(found.log_weights),
        ess=effective_sample_size(found.log_weights),
        single_chain=found.log_weights.mean(0),
        acceptance=found.acceptance,
        num_nonfinite=found.num_nonfinite,
        num_evaluations=torch.full((path.pair.num_data,), path.num_evaluations + frozen.num_evaluations + found.num_evaluations),
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        start=path.name,
        schedule=settings.schedule,
        validation=validation,
        source=provenance(x, path.pair, seed),
    )
