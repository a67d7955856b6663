"""log p(x) of each datum by importance weighting, with its error, effective sample size and k-hat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of, provenance, resolution
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError
from ppvae.importance import Streamed, k_hat_threshold
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.stream import stream


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log (1/K) sum_k p(x, z_k) / q(z_k | x) of each datum, nats; in expectation a lower bound on log p(x).

    Attributes:
        pointwise: (N,).
        pointwise_se: (N,), Monte Carlo error by the delta method; shrinks with the particles, and is too small where k-hat is large.
        ess: (N,), effective sample size, in [1, K].
        k_hat: (N,), shape of the weights' tail; -inf where they are constant, nan below 25 particles.
        num_particles: (N,), drawn, not asked for.
        source: Where the number came from.
        proposal: What the particles were drawn from.
    """

    pointwise: Tensor
    pointwise_se: Tensor
    ess: Tensor
    k_hat: Tensor
    num_particles: Tensor
    source: Provenance
    proposal: str

    @property
    def mean(self) -> Estimate:
        """Mean over the data."""
        return mean_of(self.pointwise, self.pointwise_se)

    @property
    def threshold(self) -> float:
        """min(1 - 1 / log10 K, 0.7), the k-hat above which an estimate should not be believed."""
        return k_hat_threshold(int(self.num_particles.max()))

    @property
    def trusted(self) -> Tensor:
        """(N,), k-hat below its threshold. k-hat cannot see a mode that no particle visited."""
        return self.k_hat < self.threshold

    def __str__(self) -> str:
        k_hat = f"k-hat above {self.threshold:.2f} at {100 * (~self.trusted).double().mean():.1f} %"
        if self.k_hat.isnan().all():
            k_hat = "no k-hat below 25 particles"
        return (
            f"log p(x) = {self.mean} nats (N={len(self.pointwise)}, K={int(self.num_particles.max())}; {k_hat}; "
            f"proposal: {self.proposal}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"mean": vars(self.mean), "threshold": self.threshold, "trusted": self.trusted.tolist()}


def log_likelihood(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    num_particles: int = 5000,
    proposal: Program | str = "guide",
    seed: int = 0,
) -> LogLikelihood:
    """The importance-weighted bound on log p(x) of each datum. Memory does not grow with K.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        num_particles: K, draws per datum.
        proposal: "guide", or another program for these x (``refine(...).guide``) to draw from.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract.
        DataError: Data outside the support of an observed site.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 3.
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling.
    """
    batch = batch_of(x, model, guide)
    drawn_from = guide if isinstance(proposal, str) else proposal
    name = "guide" if isinstance(proposal, str) else str(getattr(proposal, "name", type(proposal).__name__))
    _check_proposal(proposal)
    pair = Pair(model, drawn_from, batch, seed)
    n = pair.num_data
    parts = {key: torch.full((n,), torch.nan, dtype=torch.float64) for key in ("pointwise", "pointwise_se", "ess", "k_hat")}
    sums: Streamed | None = None
    for terms in stream(pair, batch, num_particles=num_particles, seed=seed):
        sums = sums or Streamed(num_particles, terms.rows.stop - terms.rows.start, resolution(batch))
        sums.add(terms.log_weights)
        if sums.count == num_particles:
            parts["pointwise"][terms.rows], parts["pointwise_se"][terms.rows] = sums.log_mean_weight, sums.log_mean_weight_se
            parts["ess"][terms.rows], parts["k_hat"][terms.rows] = sums.ess, sums.k_hat
            sums = None
    counts = torch.full((n,), num_particles)
    return LogLikelihood(**parts, num_particles=counts, source=provenance(x, pair, seed), proposal=name)


def _check_proposal(proposal: Program | str) -> None:
    if not callable(proposal) and proposal != "guide":
        raise ArgumentError(f"proposal is 'guide' or a program for these data, got {proposal!r}")
