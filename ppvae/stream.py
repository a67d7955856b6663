"""The primitive: log weights of every datum and particle, a stretch of work at a time, in blocks that draw from their own seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.blocks import Blocks, Densities
from ppvae.errors import DivergedError, check_count
from ppvae.interruption import leave_if_asked
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring, on_device_of
from ppvae.ranks import shared

ROWS_AT_ONCE = 4096  # rows (datum x particle) a call of the model: the logits of a 784-pixel decoder still fit in the cache


@dataclass
class Terms:
    """Per-datum log densities of one stretch of work, by site. Each (K, n), float64, nats."""

    rows: slice
    particles: slice
    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    observed: frozenset[str]

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x), (K, n)."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]

    @property
    def distortion(self) -> Tensor:
        """-log p(x | z), (K, n)."""
        return -sum(term for name, term in self.log_p.items() if name in self.observed)  # type: ignore[return-value]

    @property
    def rate(self) -> Tensor:
        """log q(z | x) - log p(z), (K, n)."""
        prior = [term for name, term in self.log_p.items() if name not in self.observed]
        nothing = torch.zeros_like(self.distortion)  # a model without per-datum latents has no rate
        return sum(self.log_q.values(), nothing) - sum(prior, nothing)


def log_weights(
    model: Program, guide: Program, x: Batch, *, num_particles: int, seed: int = 0, blocks_at_once: int | None = None
) -> Tensor:
    """Log importance weights log p(x, z) - log q(z | x), with z drawn from the guide.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event), or a tuple or dict of tensors that share N.
        num_particles: K, draws per datum.
        seed: Rules every draw; the caller's generators are left as they were.
        blocks_at_once: Blocks of 64 data that go through the model in one call. Never changes a draw.

    Returns:
        (K, N), nats, float64. Summing over N is left to the caller: a batch has no weight of its own. Where the pair has global
        sites, the weights are conditional on one draw of them.

    Raises:
        ShapeError: A site lies outside the data plate.
        ProgramError: The guide misses a latent site or has one too many.
        DataError: Data outside the support of an observed site.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 3.
    """
    check_count("num_particles", num_particles)
    data = on_device_of(x if not hasattr(x, "x") else x.x, model, guide)
    pair = Pair(model, guide, data, seed)
    found = torch.empty(num_particles, pair.num_data, dtype=torch.float64)
    for terms in stream(pair, data, num_particles=num_particles, seed=seed, blocks_at_once=blocks_at_once):
        found[terms.particles, terms.rows] = terms.log_weights.cpu()
    return found


def stream(
    pair: Pair, x: Batch, *, num_particles: int, seed: int, blocks_at_once: int | None = None, first_row: int = 0
) -> Iterator[Terms]:
    """Every log density of K particles per datum, a stretch of work at a time: for each stretch of rows all its particles.

    Each block of 64 data x 64 particles is drawn from its own seed; ``blocks_at_once`` blocks of data go through the model in one
    call and change nothing but the time; where they do not fit into memory, fewer do, and a warning says so. ``first_row`` is the
    number of x's first row in messages. Where measurement is shared out (``ranks.sharing``) each process computes a part of the
    blocks, and all of them get all.

    Raises:
        OutOfMemoryError: One block does not fit into memory.
    """
    check_count("num_particles", num_particles)
    check_count("blocks_at_once", 1 if blocks_at_once is None else blocks_at_once)
    if blocks_at_once is None:
        blocks_at_once = max(1, ROWS_AT_ONCE // (noise.BLOCK_ROWS * min(num_particles, noise.BLOCK_PARTICLES)))
    observed = frozenset(pair.observed)
    whole = noise.BLOCK_ROWS, noise.BLOCK_PARTICLES
    blocks = Blocks(pair, *whole, pair.num_data * num_particles if num_particles > noise.BLOCK_PARTICLES else 0)
    at_once: Halving[Densities] = Halving(blocks_at_once, f"measuring with {num_particles:,} particles")

    def densities(where: tuple[slice, slice]) -> tuple[Densities, bool]:
        leave_if_asked()
        stretch, particles = where
        size = stretch.stop - stretch.start, particles.stop - particles.start
        compiled = blocks.on and size == whole and particles.start  # the first particles run eagerly: data are held against the support

        def part(rows: slice) -> Densities:
            if not compiled:
                return _eagerly(pair, x, rows, particles, seed, first_row)
            with noise.seeded(seed, rows.start, particles.start, device=pair.device):
                return blocks(take(x, rows), torch.arange(rows.start, rows.stop, device=pair.device))

        found = _joined(at_once(stretch, part))
        _refuse_nan(Terms(stretch, particles, *found, observed), first_row)
        return found, pair.relaxed

    stretches = noise.blocks(pair.num_data, noise.BLOCK_ROWS * blocks_at_once)
    work = itertools.product(stretches, noise.blocks(num_particles, noise.BLOCK_PARTICLES))
    for (stretch, particles), (found, relaxed) in shared().each(work, densities):
        pair.relaxed |= relaxed
        yield Terms(stretch, particles, *found, observed)


def _joined(parts: list[Densities]) -> Densities:
    """Densities of consecutive rows as those of all."""
    if len(parts) == 1:
        return parts[0]
    p, q = ({name: torch.cat([part[side][name] for part in parts], dim=1) for name in parts[0][side]} for side in (0, 1))
    return p, q


def _eagerly(pair: Pair, x: Batch, stretch: slice, particles: slice, seed: int, first_row: int) -> Densities:
    with measuring(pair.model, pair.guide):
        values, log_q = _draw_blocks(pair, x, stretch, particles, seed)
        log_p = pair.score(
            take(x, stretch),
            values,
            check_from=first_row + stretch.start if particles.start == 0 else None,
            num_particles=particles.stop - particles.start,
        )
    return log_p, log_q


def _draw_blocks(pair: Pair, x: Batch, stretch: slice, particles: slice, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    drawn = []
    for block in noise.blocks(stretch.stop - stretch.start, noise.BLOCK_ROWS):
        rows = slice(stretch.start + block.start, stretch.start + block.stop)
        with noise.seeded(seed, rows.start, particles.start, device=pair.device):
            drawn.append(pair.draw(take(x, rows), rows, particles.stop - particles.start))
    if len(drawn) == 1:
        return drawn[0]
    values = {name: torch.cat([v[name] for v, _ in drawn], dim=-1 - pair.event_dims[name]) for name in drawn[0][0]}
    return values, {name: torch.cat([q[name] for _, q in drawn], dim=1) for name in drawn[0][1]}


def _refuse_nan(terms: Terms, first_row: int) -> None:
    for side, densities in (("guide", terms.log_q), ("model", terms.log_p)):
        for name, density in densities.items():
            bad = torch.isnan(density) | (density == torch.inf)
            if bad.any():
                datum = first_row + terms.rows.start + int(bad.any(0).nonzero()[0])
                raise DivergedError(
                    f"the log density of site '{name}' is not a number or +inf",
                    where=f"{side}, datum {datum}, {int(bad.sum())} of {bad.numel()} particles of this stretch",
                    mend="look at the distribution's parameters there: a scale that underflowed to 0, a logit that overflowed",
                )
