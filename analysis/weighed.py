"""Importance weights of one proposal, reduced to a number per datum. What ``log_likelihood`` and its verdict are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import resolution
from ppvae.batches import Batch, take
from ppvae.importance import Streamed
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.stream import stream


@dataclass
class Weighed:
    """log (1/K) sum_k w_k of each datum with what is known of its error; each (N,), float64, nats; ``num_particles`` (N,), drawn."""

    pointwise: Tensor
    pointwise_se: Tensor
    ess: Tensor
    k_hat: Tensor
    num_particles: Tensor

    @classmethod
    def empty(cls, n: int) -> Weighed:
        """Nothing known yet of n data."""
        value, se, ess, k_hat = torch.full((4, n), torch.nan, dtype=torch.float64).unbind()
        return cls(value, se, ess, k_hat, torch.zeros(n, dtype=torch.long))

    def put(self, rows: Tensor | slice, other: Weighed) -> None:
        """Take over what is known of some rows."""
        for name, value in vars(other).items():
            getattr(self, name)[rows] = value


def weighed(pair: Pair, x: Batch, num_particles: int, seed: int, weights: str = "plain", first_row: int = 0) -> Weighed:
    """K weights per datum, all from one proposal, the pair's guide."""
    found = Weighed.empty(pair.num_data)
    sums: Streamed | None = None
    for terms in stream(pair, x, num_particles=num_particles, seed=seed, first_row=first_row):
        sums = sums or Streamed(num_particles, terms.rows.stop - terms.rows.start, resolution(x))
        sums.add(terms.log_weights)
        if sums.count == num_particles:
            reduced = sums.reduced(weights)
            counts = torch.full_like(reduced.ess, num_particles, dtype=torch.long)
            found.put(terms.rows, Weighed(reduced.log_mean_weight, reduced.se, reduced.ess, sums.k_hat, counts))
            sums = None
    return found


def pair_at(model: Program, program: Program, x: Batch, rows: Tensor | None, seed: int, globals_at: dict[str, Tensor]) -> Pair:
    """A pair at some rows of x, where they are given, conditional on values of global sites; the program may be a local posterior of x."""
    if rows is not None:
        restricted: Callable[[Tensor], Program] | None = getattr(program, "rows", None)
        program, x = restricted(rows) if restricted else program, take(x, rows)
    pair = Pair(model, program, x, seed)
    pair.globals.update(globals_at)
    return pair


def weighed_by_rows(
    pair: Pair, proposal: Program, x: Batch, rows: Tensor, num_particles: int, seed: int, pair_seed: int, weights: str = "plain"
) -> Weighed:
    """The same for some rows of x alone, at the pair's global sites; blocks of 64 are those of all the data, and each has its seed."""
    found = Weighed.empty(len(rows))
    block = rows // noise.BLOCK_ROWS
    for number in block.unique().tolist():
        here = (block == number).nonzero()[:, 0]
        some = rows[here]
        part = pair_at(pair.model, proposal, x, some, pair_seed, pair.globals)
        block_seed = noise.derived_seed(seed, "rows", number)
        found.put(here, weighed(part, take(x, some), num_particles, block_seed, weights, first_row=int(some[0])))
    return found
