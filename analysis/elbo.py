"""The ELBO of each datum, split into rate and distortion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of, provenance
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.importance import Streamed
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.stream import stream


@dataclass(frozen=True, eq=False)
class ELBO:
    """E_q[log p(x, z) - log q(z | x)] of each datum, nats; elbo = -(rate + distortion).

    Attributes:
        pointwise: (N,).
        pointwise_se: (N,), Monte Carlo error.
        rate: (N,), E_q[log q(z | x) - log p(z)].
        distortion: (N,), -E_q[log p(x | z)].
        num_particles: (N,), drawn.
        source: Where the number came from.
    """

    pointwise: Tensor
    pointwise_se: Tensor
    rate: Tensor
    distortion: Tensor
    num_particles: Tensor
    source: Provenance

    @property
    def mean(self) -> Estimate:
        """Mean over the data."""
        return mean_of(self.pointwise, self.pointwise_se)

    def __str__(self) -> str:
        return (
            f"ELBO = {self.mean} nats (rate {self.rate.mean():.2f}, distortion {self.distortion.mean():.2f}; "
            f"N={len(self.pointwise)}, K={int(self.num_particles.max())}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"mean": vars(self.mean)}


def elbo(model: Program, guide: Program, x: Data | Batch, *, num_particles: int = 1000, seed: int = 0) -> ELBO:
    """The ELBO of each datum.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        num_particles: K, draws per datum.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract.
        DataError: Data outside the support of an observed site.

    References:
        Kingma, Welling (2014), Auto-encoding variational Bayes, sec. 2.2. Alemi et al. (2018), Fixing a broken ELBO, sec. 3.
    """
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    n = pair.num_data
    names = ("pointwise", "pointwise_se", "rate", "distortion")
    parts = {name: torch.full((n,), torch.nan, dtype=torch.float64) for name in names}
    sums: Streamed | None = None
    for terms in stream(pair, batch, num_particles=num_particles, seed=seed):
        if sums is None:
            sums = Streamed(num_particles, terms.rows.stop - terms.rows.start)
            parts["rate"][terms.rows] = parts["distortion"][terms.rows] = 0.0
        sums.add(terms.log_weights)
        parts["rate"][terms.rows] += terms.rate.sum(0).cpu() / num_particles
        parts["distortion"][terms.rows] += terms.distortion.sum(0).cpu() / num_particles
        if sums.count == num_particles:
            parts["pointwise"][terms.rows], parts["pointwise_se"][terms.rows] = sums.mean, sums.mean_se
            sums = None
    return ELBO(**parts, num_particles=torch.full((n,), num_particles), source=provenance(x, pair, seed))
