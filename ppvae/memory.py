"""As much work at once as fits into memory: half as much each time it runs out, down to one datum and one particle."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
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


class NotInPieces(Exception):  # noqa: N818  (raised where memory is short already; Halving tells it as what it is)
    """Some draws cannot be made in pieces; the message says which and why."""


class Pieces:
    """How finely one kind of work on a block is cut where all of it at once is too much."""

    def __init__(self) -> None:
        self.number = 1
        self.largest = 0  # datum x particle pairs of the largest call of this try

    def of(self, num_data: int, num_particles: int) -> list[tuple[slice, slice]]:
        """Rows and particles of the pieces of one call: rows are cut first, particles where each row is a piece of its own."""
        self.largest = max(self.largest, num_data * num_particles)
        rows, particles = min(self.number, num_data), math.ceil(self.number / num_data)
        some_rows = noise.blocks(num_data, math.ceil(num_data / rows))
        some_particles = noise.blocks(num_particles, math.ceil(num_particles / min(particles, num_particles)))
        return [(r, p) for p in some_particles for r in some_rows]

    def refine(self) -> bool:
        """Twice as many pieces; False where there was nothing to cut, or nothing is left to."""
        if self.number >= self.largest:
            return False
        self.number *= 2
        return True


class Cut:
    """The pieces of a block's draws, which repeat the block's own random numbers, and of its densities, which need none."""

    def __init__(self) -> None:
        self.draws, self.densities = Pieces(), Pieces()
        self.ended_in: Pieces | None = None  # where memory ran out in this try
        self.refusal = ""  # why the draws cannot be cut

    @property
    def number(self) -> int:
        """Of pieces of whatever is cut finest."""
        return max(self.draws.number, self.densities.number)

    def begin(self) -> None:
        """Forget the last try."""
        self.draws.largest = self.densities.largest = 0
        self.ended_in = None

    def refine(self) -> bool:
        """Cut what memory has run out for more finely; False where that cannot be."""
        if self.ended_in is self.draws and not self.refusal:
            return self.draws.refine()
        return self.densities.refine()

    def refuse(self, reason: str) -> None:
        """Leave the draws in one piece from now on."""
        self.draws.number, self.refusal = 1, reason


_cut: ContextVar[Cut | None] = ContextVar("cut", default=None)


@contextlib.contextmanager
def densities(num_data: int, num_particles: int) -> Iterator[list[tuple[slice, slice]]]:
    """The pieces, rows and particles, in which densities of n data x K particles are to be computed here: one, unless memory ran out."""
    cut = _cut.get()
    with _pieces(cut, cut.densities if cut else Pieces(), num_data, num_particles) as found:
        yield found


@contextlib.contextmanager
def draws(num_data: int, num_particles: int) -> Iterator[list[tuple[slice, slice]]]:
    """The pieces in which K draws for each of n data are to be made here: one, unless memory ran out for draws."""
    cut = _cut.get()
    with _pieces(cut, cut.draws if cut else Pieces(), num_data, num_particles) as found:
        yield found


@contextlib.contextmanager
def _pieces(cut: Cut | None, kind: Pieces, num_data: int, num_particles: int) -> Iterator[list[tuple[slice, slice]]]:
    try:
        yield kind.of(num_data, num_particles)
    except Exception as error:
        if cut is not None and cut.ended_in is None and is_out_of_memory(error):  # the innermost, if a guide computes densities to draw
            cut.ended_in = kind
        raise


def is_cut() -> bool:
    """Whether draws or densities are computed in pieces just now, and not as compiled for a whole block."""
    cut = _cut.get()
    return cut is not None and cut.number > 1


def halving() -> bool:
    """Whether work goes on that does less at once where memory runs out."""
    return _cut.get() is not None


@contextlib.contextmanager
def whole(work: str, mend: list[str] | None = None) -> Iterator[None]:
    """Want of memory told as what it is, for work that nothing here can cut. What halves the work around it gets the error itself.

    Raises:
        OutOfMemoryError: with the work and its remedies.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or halving():
            raise
        said = in_a_line(error)
    else:
        return
    raise OutOfMemoryError(f"{work} does not fit into memory", where=said, mend=[*(mend or []), *REMEDIES])


class Halving(Generic[Result]):
    """Rows that go through a program at once, in blocks that draw from their own seeds: fewer at once change no draw.

    Where a single block is too much, its ``draws`` or its ``densities``, whichever memory ran out for, are computed in ever smaller pieces.

    Args:
        blocks: How many blocks to begin with.
        what: Of the work, for messages.
        block_rows: Rows that draw from one seed.
    """

    def __init__(self, blocks: int, what: str, block_rows: int = noise.BLOCK_ROWS) -> None:
        self.blocks, self.what, self.block_rows = blocks, what, block_rows
        self._cut, self._left = Cut(), ""
        self._told = False

    def __call__(self, rows: slice, work: Callable[[slice], Result]) -> list[Result]:
        """The results of work on consecutive parts of ``rows``.

        Raises:
            OutOfMemoryError: The draw or the density of one datum and particle does not fit, or draws that cannot be cut.
        """
        found: list[Result] = []
        start, failed = rows.start, 0
        before = _cut.set(self._cut)
        try:
            while start < rows.stop:
                part = slice(start, min(start + self.blocks * self.block_rows, rows.stop))
                self._cut.begin()
                try:
                    said = _tried(work, part, found)
                except NotInPieces as reason:  # densities may be what it was: they are in the draws of a guide that walks chains
                    self._cut.refuse(str(reason))
                    continue
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
        """Half as many blocks as have just failed, or one in twice as many pieces."""
        size = part.stop - part.start
        blocks = math.ceil(size / self.block_rows)
        self.blocks = max(1, blocks // 2)
        if blocks == 1 and not self._cut.refine():
            problem = f"the work on {size} data does not fit into memory"
            if self._cut.ended_in is self._cut.draws and self._cut.refusal:
                problem = f"the draws for {size} data do not fit into memory, and {self._cut.refusal}"
            elif self._cut.ended_in is self._cut.draws:
                problem = "the draw of one datum and one particle does not fit into memory"
            elif self._cut.densities.largest:
                problem = "the density of one datum and one particle does not fit into memory"
            raise OutOfMemoryError(problem, where=f"{self.what}: {said}", mend=REMEDIES)
        left, pieces = min(size, self.blocks * self.block_rows), self._cut.number
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
