"""Draws of a block made piece by piece, from the very random numbers that the whole block draws from.

A program is run on some of the block's rows and particles. Each random number that a site of it asks for, (*batch, ...), is made for the
whole block and the piece's part is kept: the generator goes the block's way, and networks see the piece alone. This holds for what takes
as many random numbers whatever the parameters are, in the order of the batch; anything else is refused.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppvae import noise
from ppvae.memory import NotInPieces
from ppvae.programs import in_data_plate
from ppvae.support import unwrapped

Drawn = TypeVar("Drawn")
Taken = tuple[str, Any, tuple[int, ...], torch.dtype]  # site, operation, shape behind the batch's, type

aten = torch.ops.aten
MAKES = {aten.rand.default, aten.randn.default}  # of a size
FILLS = {aten.normal_.default, aten.uniform_.default, aten.exponential_.default, aten.cauchy_.default}  # in the order of memory
NEW = {aten.empty.memory_format, aten.new_empty.default}  # whose memory is in the order of the batch


@dataclass(frozen=True)
class Piece:
    """Some rows and particles of a block.

    Attributes:
        rows, particles: Which.
        num_data, num_particles: Of the block.
        particle_dim: Of a batch, from the right; None where the batch is repeated and particles lie before the data in dim -1.
    """

    rows: slice
    particles: slice
    num_data: int
    num_particles: int
    particle_dim: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and particles."""
        return self.rows.stop - self.rows.start, self.particles.stop - self.particles.start

    @property
    def is_whole(self) -> bool:
        """Whether it is the block."""
        return self.size == (self.num_data, self.num_particles)

    def widened(self, batch: torch.Size) -> list[int]:
        """The block's batch shape, from the piece's; empty where this is no batch of the piece."""
        rows, particles = self.size
        wide = list(batch)
        if self.particle_dim is None:
            if not wide or wide[-1] != rows * particles:
                return []
            wide[-1] = self.num_data * self.num_particles
        else:
            if len(wide) < -self.particle_dim or (wide[-1], wide[self.particle_dim]) != (rows, particles):
                return []
            wide[-1], wide[self.particle_dim] = self.num_data, self.num_particles
        return wide

    def of(self, block: Tensor, batch_dims: int) -> Tensor:
        """The piece of a tensor of the block, (*batch, ...)."""
        found = self._within(block, batch_dims)
        return found if self.particle_dim is not None else found.flatten(batch_dims - 1, batch_dims)

    def put(self, part: Tensor, block: Tensor, batch_dims: int) -> Tensor:
        """The block's tensor with the piece in its place."""
        place = self._within(block, batch_dims)
        place.copy_(part.reshape(place.shape))
        return block

    def _within(self, block: Tensor, batch_dims: int) -> Tensor:
        data, particles = batch_dims - 1, batch_dims + (self.particle_dim or 0)
        if self.particle_dim is None:
            block, data, particles = block.unflatten(data, (self.num_particles, self.num_data)), data + 1, data
        rows = block.narrow(data, self.rows.start, self.size[0])
        return rows.narrow(particles, self.particles.start, self.size[1])


def in_pieces(draw: Callable[[Piece], Drawn], pieces: list[Piece], device: torch.device) -> list[Drawn]:
    """The draws of a block; torch's generator ends where the whole block's draws would leave it.

    Args:
        draw: Runs a program on a piece, on K particles of n rows.
        pieces: Of the block.
        device: Of the program.

    Raises:
        NotInPieces: The random numbers of a site are not those of its elements, one after the other.
    """
    if len(pieces) == 1:
        return [draw(pieces[0])]
    with noise.forked(device):
        expected = _look(draw, replace(pieces[0], rows=slice(0, 1), particles=slice(0, 1)))
    found = []
    for piece in pieces:
        sites = _Sites()
        with noise.forked(device) if piece is not pieces[-1] else contextlib.nullcontext(), sites, _Noise(piece, sites) as random:
            found.append(draw(piece))
        for one, other in itertools.zip_longest(expected, random.taken):
            if one != other:
                raise NotInPieces(f"those of site '{(other or one)[0]}' take other random numbers from piece to piece")
    return found


def _look(draw: Callable[[Piece], Drawn], one: Piece) -> list[Taken]:
    """What one datum and particle takes: there no other dimension is as long as the batch, and cannot be taken for it."""
    sites = _Sites()
    random = _Noise(one, sites)
    with sites, random:
        draw(one)
    # nor can rows be taken for particles where a site's distribution is expanded to another number of each
    apart = replace(one, num_data=2, num_particles=3)
    block = replace(apart, rows=slice(0, 2), particles=slice(0, 3))
    taking = {name for name, *_ in random.taken}
    for site in (site for site in sites.drawn if site["name"] in taking):
        sites.site = {**site, "fn": site["fn"].expand(apart.widened(site["fn"].batch_shape))}
        with _Noise(block, sites) as wide:
            sites.site["fn"]()
        if wide.taken != [taken for taken in random.taken if taken[0] == site["name"]]:
            raise _refused(site)
    return random.taken


def _refused(site: Any) -> NotInPieces:
    return NotInPieces(f"those of site '{site['name']}' ({type(unwrapped(site['fn'])).__name__}) cannot be made in pieces")


class _Sites(Messenger):
    """Keeps the sites that are drawn, and which it is just now. Entered before all plates, so that it sees whole batch shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.site: Any = None
        self.drawn: list[Any] = []

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["done"] or msg["is_observed"] or msg["value"] is not None
        if not given and in_data_plate(msg) and not site_is_subsample(msg):
            self.site = dict(msg)
            self.drawn.append(self.site)

    def _pyro_post_sample(self, msg: Any) -> None:
        self.site = None


class _Noise(TorchDispatchMode):
    """Random numbers of a piece, each the block's. ``taken`` lists by site what was taken from the generator."""

    def __init__(self, piece: Piece, sites: _Sites) -> None:
        super().__init__()
        self.piece, self.sites = piece, sites
        self.taken: list[Taken] = []
        self._new: Any = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler at the first operation: a second, and memory where there is none

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._drawn(func, args, kwargs)
        found = func(*args, **kwargs)
        if func in NEW or (func is aten.detach.default and args[0] is self._new):
            self._new = found
        return found

    def _drawn(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        site, (first, *rest) = self.sites.site, args
        if site is None:
            raise NotInPieces(f"those outside the sites of the data plate ({func}) cannot be made in pieces")
        if kwargs.get("generator") is None:
            if func in MAKES:
                return self._part(site, func, torch.Size(first), lambda wide: func(wide, *rest, **kwargs))
            if func in FILLS and first is self._new and first.is_contiguous():
                return first.copy_(self._part(site, func, first.shape, lambda wide: func(first.new_empty(wide), *rest, **kwargs)))  # type: ignore[no-any-return]
            if func is aten.bernoulli.default and first.device.type == "cpu":  # on a GPU their order may be that of the chances' memory
                dims = len(site["fn"].batch_shape)
                return self._part(site, func, first.shape, lambda wide: func(self.piece.put(first, first.new_zeros(wide), dims)))
        raise _refused(site)

    def _part(self, site: Any, func: Any, shape: torch.Size, fill: Callable[[list[int]], Tensor]) -> Tensor:
        batch = site["fn"].batch_shape
        wide, rest = self.piece.widened(batch), shape[len(batch) :]
        if not wide or shape[: len(batch)] != batch:
            raise _refused(site)
        block = fill([*wide, *rest])
        self.taken.append((site["name"], func, tuple(rest), block.dtype))
        return self.piece.of(block, len(batch)).contiguous()
