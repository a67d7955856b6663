"""As much work at once as fits into memory: half as much each time it runs out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from ppvae import noise
from ppvae.errors import PpvaeError, UnreliableWarning

Result = TypeVar("Result")
# What torch's CPU allocator says, on Linux and elsewhere, in a plain RuntimeError.
WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class OutOfMemoryError(PpvaeError):
    """The smallest piece of work does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, CUDA's or the CPU allocator's for want of memory; Pyro adds its table of shapes to a message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


class Halving(Generic[Result]):
    """Rows that go through a program at once, in blocks that draw from their own seeds: fewer at once change no draw.

    Args:
        blocks: How many blocks of ``noise.BLOCK_ROWS`` rows to begin with.
        what: Of the work, for messages.
    """

    def __init__(self, blocks: int, what: str) -> None:
        self.blocks, self.what = blocks, what
        self._told = False

    def __call__(self, rows: slice, work: Callable[[slice], Result]) -> list[Result]:
        """The results of work on consecutive parts of ``rows``.

        Raises:
            OutOfMemoryError: One block does not fit.
        """
        found: list[Result] = []
        start, failed = rows.start, 0
        while start < rows.stop:
            part = slice(start, min(start + self.blocks * noise.BLOCK_ROWS, rows.stop))
            said = _tried(work, part, found)
            if said is None:
                start = part.stop
                continue
            at_once = math.ceil((part.stop - part.start) / noise.BLOCK_ROWS)
            if at_once == 1:
                raise OutOfMemoryError(
                    f"one block of {part.stop - part.start} data does not fit into memory",
                    where=f"{self.what}: {said}",
                    mend=["end other programs on this machine, or take one with more memory", "a smaller network"],
                )
            failed, self.blocks = failed or at_once, at_once // 2
        if failed and not self._told:
            self._told = True
            warnings.warn(
                f"{self.what}: memory ran out with {failed} blocks of {noise.BLOCK_ROWS} data at once; "
                f"it goes on with {self.blocks}, or fewer where need be, from the same draws",
                UnreliableWarning,
                stacklevel=2,
            )
        return found


def _tried(work: Callable[[slice], Result], part: slice, found: list[Result]) -> str | None:
    """None once the result is in ``found``; else what the allocator said. The error itself, whose frames hold tensors, is gone by then."""
    try:
        found.append(work(part))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
    else:
        return None
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return said
