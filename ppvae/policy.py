"""When to compile, to read losses, to turn memory: what is chosen by cost.

Whether measurement compiles is one setting for a stretch of code, since every estimator would else carry it through.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from ppvae.errors import ArgumentError

# Compiled steps on an accelerator between two readings of their losses: each reading waits for the device, which then waits for Python.
READ_BACK_STEPS = 16
CHOICES: dict[str, str | bool] = {"auto": "auto", "1": True, "0": False, "": "auto"}
_chosen: ContextVar[str | bool | None] = ContextVar("compiling", default=None)


@contextlib.contextmanager
def compiling(choice: str | bool) -> Iterator[None]:
    """Rule whether log weights, refinement and annealing run as captured and compiled programs.

    Args:
        choice: True captures and compiles whatever is run; False runs the programs eagerly; "auto", what holds without this, compiles
            where the work is larger than the compiler's. The numbers are those of the eager programs to rounding, draw for draw.
            The environment variable ``PPVAE_COMPILE`` (1, 0 or auto) rules the whole process.

    Raises:
        ArgumentError: No such choice.
    """
    if choice not in (True, False, "auto"):
        raise ArgumentError(f"choice is True, False or 'auto', got {choice!r}")
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


def worth(cost: float, least: float) -> bool:
    """Whether to compile work of some ``cost`` where "auto" compiles from ``least``."""
    chosen = _chosen.get()
    if chosen is None:
        said = os.environ.get("PPVAE_COMPILE", "")
        if said not in CHOICES:
            raise ArgumentError(f"PPVAE_COMPILE is 1, 0 or auto, got {said!r}", where="environment")
        chosen = CHOICES[said]
    return cost >= least if chosen == "auto" else bool(chosen)


def steps_between_reads(device: str) -> int:
    """Compiled steps that a loop takes on a type of device before it reads their losses; on a CPU a loss is read at once, which is free."""
    return 1 if device == "cpu" else READ_BACK_STEPS


def channels_last(device: str) -> bool:
    """Whether compiled convolutions of images walk them pixel by pixel, all channels of each: measured on processors alone."""
    return device == "cpu"
