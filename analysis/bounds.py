"""The importance-weighted bound L_K against K, from one set of log weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of, provenance
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, check_count
from ppvae.importance import log_mean_exp, standard_error
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.stream import stream

PARTICLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, eq=False)
class Bounds:
    """L_K = E log (1/K) sum_k p(x, z_k) / q(z_k | x) of each datum for C numbers of particles, nats.

    Attributes:
        pointwise: (C, N); mean over as many groups of K as the particles give, so that all bounds share their draws.
        pointwise_se: (C, N), Monte Carlo error: of the mean over groups; by the delta method where there is one group.
        num_particles: The C values of K.
        num_drawn: Particles per datum.
        source: Where the numbers came from.
    """

    pointwise: Tensor
    pointwise_se: Tensor
    num_particles: tuple[int, ...]
    num_drawn: int
    source: Provenance

    @property
    def means(self) -> list[Estimate]:
        """Mean over the data, by K. The Monte Carlo errors of two K are not independent: their draws are the same."""
        return [mean_of(*both) for both in zip(self.pointwise, self.pointwise_se, strict=True)]

    def __str__(self) -> str:
        told = ", ".join(f"L_{k} {one.value:.2f}" for k, one in zip(self.num_particles, self.means, strict=True))
        last = self.means[-1]
        return (
            f"{told} ± {last.data_se:.2f} (data) ± {last.mc_se:.2g} (Monte Carlo) nats "
            f"(N={self.pointwise.shape[1]}, {self.num_drawn} draws; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"num_particles": list(self.num_particles), "means": [vars(one) for one in self.means]}


def bounds(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    num_particles: Sequence[int] = PARTICLES,
    num_drawn: int | None = None,
    seed: int = 0,
) -> Bounds:
    """The importance-weighted bound for several numbers of particles, sub-sampled from one set of log weights.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        num_particles: The values of K, increasing.
        num_drawn: Particles per datum, the largest K at least; by default as many as the largest.
        seed: Rules every draw.

    Raises:
        ArgumentError: The values of K do not increase, or exceed the draws.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, theorem 1: L_K increases with K.
    """
    counts = tuple(num_particles)
    for k in counts:
        check_count("num_particles", k)
    if not counts or list(counts) != sorted(set(counts)):
        raise ArgumentError(f"num_particles are increasing numbers of particles, got {list(counts)}")
    drawn = counts[-1] if num_drawn is None else num_drawn
    check_count("num_drawn", drawn, least=counts[-1])
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    found, se = (torch.full((len(counts), pair.num_data), torch.nan, dtype=torch.float64) for _ in range(2))
    waiting: list[Tensor] = []
    for terms in stream(pair, batch, num_particles=drawn, seed=seed):  # all particles of a stretch of data, then the next
        waiting.append(terms.log_weights.cpu())
        if terms.particles.stop == drawn:
            log_weights, waiting = torch.cat(waiting), []
            for i, k in enumerate(counts):
                found[i, terms.rows], se[i, terms.rows] = _bound(log_weights, k)
    return Bounds(found, se, counts, drawn, provenance(x, pair, seed))


def _bound(log_weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """L_k and its standard error from disjoint groups of k, (n,) each."""
    groups = len(log_weights) // k
    each = log_mean_exp(log_weights[: groups * k].unflatten(0, (groups, k)), 1)
    if groups == 1:
        return each[0], standard_error(log_weights[:k])
    return each.mean(0), each.std(0) / math.sqrt(groups)
