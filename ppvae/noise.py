"""Seeds. Work is cut into fixed blocks; each draws from a seed of its own, so how it is scheduled never changes a draw."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch

BLOCK_ROWS = 64
BLOCK_PARTICLES = 64


def derived_seed(seed: int, *coordinates: int | str) -> int:
    """A 63-bit seed for one purpose, from the run's seed and the coordinates of the work (name, first row, step, ...).

    A cryptographic hash, since neighbouring integers as seeds would give a Mersenne twister neighbouring states.
    """
    text = "/".join([str(int(seed)), *map(str, coordinates)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextlib.contextmanager
def forked(device: torch.device | str = "cpu") -> Iterator[None]:
    """Leave the caller's generators (CPU, and ``device`` where it is a CUDA device) as they were found."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def seeded(seed: int, *coordinates: int | str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block of code with torch seeded from ``derived_seed``, then put the caller's generators back."""
    with forked(device):
        seed_torch(derived_seed(seed, *coordinates), device)
        yield


def seed_torch(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed the generators that programs on ``device`` draw from: the CPU's and its own.

    ``torch.manual_seed`` also queues the seed for every backend that is not there, with a traceback each: a tenth of a small step.
    """
    device = torch.device(device)
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def generator(seed: int, *coordinates: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for work that takes one."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *coordinates))


def blocks(total: int, size: int) -> list[slice]:
    """Consecutive slices of ``size`` that cover ``range(total)``; the last may be shorter."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
