"""Draws of the latents from a guide, in the fixed blocks that make a number independent of how it was computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.memory import Halving
from ppvae.pair import Pair
from ppvae.programs import measuring


def draws_at_once(purpose: str) -> Halving[Any]:
    """Blocks of 64 data, for draws and what is measured of them."""
    return Halving(1, f"draws ({purpose})")


@dataclass
class Drawn:
    """One block of draws: (k, [plates], n, *event) by latent site, and log q by site of the guide, (k, n)."""

    rows: slice
    particles: slice
    x: Batch
    values: dict[str, Tensor]
    log_q: dict[str, Tensor]

    @property
    def log_q_sum(self) -> Tensor:
        """log q(z | x), (k, n), float64."""
        return sum(self.log_q.values())  # type: ignore[return-value]


def drawn(pair: Pair, x: Batch, *, num_draws: int, seed: int, purpose: str, at_once: Halving[Any] | None = None) -> Iterator[Drawn]:
    """All draws of the first 64 data, 64 at a time, then those of the next; each block from its own seed.

    ``at_once`` is what the caller measures the draws with, so that both know how much fits into memory.
    """
    at_once = at_once or draws_at_once(purpose)

    def block(rows: slice, particles: slice) -> Drawn:
        x_rows = take(x, rows)
        with noise.seeded(seed, purpose, rows.start, particles.start, device=pair.device), measuring(pair.model, pair.guide):
            values, log_q = pair.draw(x_rows, rows, particles.stop - particles.start)
        return Drawn(rows, particles, x_rows, {name: values[name] for name in pair.latents}, log_q)

    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        for particles in noise.blocks(num_draws, noise.BLOCK_PARTICLES):
            yield from at_once(rows, partial(block, particles=particles))
