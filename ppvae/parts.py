"""A block of data and particles in one call of a program, or part by part where memory ran out, and the parts joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor

from ppvae import memory
from ppvae.batches import Batch, device_of, num_data, take
from ppvae.pieces import Piece, in_pieces

Made = TypeVar("Made")
Parts = list[tuple[slice, Made]]  # particles, and what was made of some rows of them: row after row, then the next particles


def drawn(draw: Callable[[Piece, Batch], Made], x: Batch, num_particles: int = 1, particle_dim: int | None = None) -> Parts[Made]:
    """What a program draws of a block, each part from its part of the block's own random numbers.

    Args:
        draw: Runs a program on the rows of a piece, its K particles at a time.
        x: The block.
        num_particles: K of the block.
        particle_dim: Where particles lie in a batch shape, from the right; None where they lie before the data in dim -1.

    Raises:
        NotInPieces: There is not memory enough for the block, and the draws of a site cannot be cut.
    """
    n = num_data(x)
    with memory.draws(n, num_particles) as places:
        pieces = [Piece(rows, particles, n, num_particles, particle_dim) for rows, particles in places]
        found = in_pieces(lambda piece: draw(piece, x if piece.is_whole else take(x, piece.rows)), pieces, device_of(x))
    return [(piece.particles, one) for piece, one in zip(pieces, found, strict=True)]


def sampled(piece: Piece, name: str, fn: Any) -> Tensor:
    """A draw from the distribution of a site of a run on a piece, in the data plate once more: there the random numbers are the block's."""
    if piece.is_whole:
        return fn.sample()  # type: ignore[no-any-return]
    with pyro.plate("_ppvae_sampled", fn.batch_shape[-1], dim=-1):
        return pyro.sample(name, fn)


def joined(parts: Parts[dict[str, Tensor]], data_dim: Callable[[str], int]) -> dict[str, Tensor]:
    """Parts as one, (K, ...) by name with the data at ``data_dim``; names that are not in all of them are left out."""
    if len(parts) == 1:
        return parts[0][1]
    names = [name for name in parts[0][1] if all(name in part for _, part in parts)]
    columns: dict[int, list[Mapping[str, Tensor]]] = {}
    for particles, part in parts:
        columns.setdefault(particles.start, []).append(part)
    across = [{name: torch.cat([part[name] for part in row], data_dim(name)) for name in names} for row in columns.values()]
    return {name: torch.cat([row[name] for row in across]) for name in names}


def some(value: Tensor, rows: slice, particles: slice, event_dim: int) -> Tensor:
    """Some rows and particles of a value (K, [plates], n, *event); K and n may be 1 where they are the same for all."""
    data_dim = value.dim() - event_dim - 1
    value = value if value.shape[data_dim] == 1 else value.narrow(data_dim, rows.start, rows.stop - rows.start)
    return value if len(value) == 1 else value[particles]
