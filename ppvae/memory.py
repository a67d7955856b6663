"""As much work at once as fits into memory: half as much each time it runs out, down to one datum and one particle."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

from ppvae import noise
from ppvae.errors import PpvaeError, UnreliableWarning, in_a_line

Result = TypeVar("Result")
# What torch's CPU allocator says, on Linux and elsewhere, in a plain RuntimeError.
WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")

REMEDIES = ["end other programs on this machine, or take one with more memory", "a smaller network"]


class OutOfMemoryError(PpvaeError):
    """The smallest piece of work does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, CUDA's or the CPU allocator's for want of memory; Pyro adds its table of shapes to a message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


class Cut:
    """How finely a program's densities are cut where one block of draws is too much: they draw nothing, so that any pieces will do."""

    def __init__(self) -> None:
        self.pieces = 1
        self.largest = 0  # datum x particle pairs of the largest call of this try

    def of(self, num_data: int, num_particles: int) -> list[tuple[slice, slice]]:
        """Rows and particles of the pieces of one call: rows are cut first, particles where each row is a piece of its own."""
        self.largest = max(self.largest, num_data * num_particles)
        rows, particles = min(self.pieces, num_data), math.ceil(self.pieces / num_data)
        some_rows = noise.blocks(num_data, math.ceil(num_data / rows))
        some_particles = noise.blocks(num_particles, math.ceil(num_particles / min(particles, num_particles)))
        return [(r, p) for p in some_particles for r in some_rows]

    def refine(self) -> bool:
        """Twice as many pieces; False where there was nothing to cut, or nothing is left to."""
        if self.pieces >= self.largest:
            return False
        self.pieces *= 2
        return True


_cut: ContextVar[Cut | None] = ContextVar("cut", default=None)


def pieces_of(num_data: int, num_particles: int) -> list[tuple[slice, slice]]:
    """The pieces, rows and particles, in which densities of n data x K particles are to be computed: one, unless memory ran out."""
    cut = _cut.get()
    return [(slice(0, num_data), slice(0, num_particles))] if cut is None else cut.of(num_data, num_particles)


def is_cut() -> bool:
    """Whether densities are computed in pieces just now, and not as compiled for a whole block."""
    cut = _cut.get()
    return cut is not None and cut.pieces > 1


class Halving(Generic[Result]):
    """Rows that go through a program at once, in blocks that draw from their own seeds: fewer at once change no draw.

    Where a single block is too much, its densities are computed in ever smaller pieces (``pieces_of``), from the block's draws.

    Args:
        blocks: How many blocks of ``noise.BLOCK_ROWS`` rows to begin with.
        what: Of the work, for messages.
    """

    def __init__(self, blocks: int, what: str) -> None:
        self.blocks, self.what = blocks, what
        self._cut, self._left = Cut(), ""
        self._told = False

    def __call__(self, rows: slice, work: Callable[[slice], Result]) -> list[Result]:
        """The results of work on consecutive parts of ``rows``.

        Raises:
            OutOfMemoryError: The draws of one block do not fit, or the density of one datum and particle.
        """
        found: list[Result] = []
        start, failed = rows.start, 0
        before = _cut.set(self._cut)
        try:
            while start < rows.stop:
                part = slice(start, min(start + self.blocks * noise.BLOCK_ROWS, rows.stop))
                self._cut.largest = 0
                said = _tried(work, part, found)
                if said is None:
                    start = part.stop
                    continue
                failed = failed or part.stop - part.start
                self._less(part, said)
        finally:
            _cut.reset(before)
        if failed and not self._told:
            self._told = True
            warnings.warn(
                f"{self.what}: memory ran out with {failed} data at once; it goes on with {self._left}, or fewer where need be, "
                "from the same draws",
                UnreliableWarning,
                stacklevel=2,
            )
        return found

    def _less(self, part: slice, said: str) -> None:
        """Half as many blocks as have just failed, or half of the densities of one."""
        size = part.stop - part.start
        blocks = math.ceil(size / noise.BLOCK_ROWS)
        self.blocks = max(1, blocks // 2)
        if blocks == 1 and not self._cut.refine():
            problem = f"the draws for {size} data do not fit into memory"
            if is_cut():
                problem = "the density of one datum and one particle does not fit into memory"
            raise OutOfMemoryError(problem, where=f"{self.what}: {said}", mend=REMEDIES)
        left, pieces = min(size, self.blocks * noise.BLOCK_ROWS), self._cut.pieces
        self._left = str(math.ceil(left / pieces)) if pieces <= left else f"1, its particles in {math.ceil(pieces / left)} parts"


def _tried(work: Callable[[slice], Result], part: slice, found: list[Result]) -> str | None:
    """None once the result is in ``found``; else what the allocator said. The error itself, whose frames hold tensors, is gone by then."""
    try:
        found.append(work(part))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = in_a_line(error)
    else:
        return None
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return said
