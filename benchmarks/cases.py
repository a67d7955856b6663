"""What is measured: a case is one job that several rivals do, with the marks that it must reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REFERENCE = "PyTorch by hand"
OURS = "ppvae"


@dataclass(frozen=True)
class Rival:
    """Who takes part.

    Attributes:
        name: As in the table.
        module: In ``benchmarks.rivals``.
        environment: "here", or a key of ``environments.REQUIREMENTS``.
        options: Of the job.
    """

    name: str
    module: str
    environment: str = "here"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """A ratio that must be reached.

    Attributes:
        rival, against: Names of rivals.
        passing, goal: The largest ratios that are a pass, and what is aimed at; None for a mark that has no goal beyond passing.
    """

    rival: str
    against: str
    passing: float
    goal: float | None = None


@dataclass(frozen=True)
class Case:
    """One job for several rivals.

    Attributes:
        name: As in the table.
        unit: What a time is of.
        job: Arguments of ``Job``.
        rivals: The first is the reference of the ratios.
        marks: What it must show.
        flop: Operations of one unit, for the floor.
        steps_to_check: Training steps after which ``--check`` compares losses; 0 where an iteration has a value of its own.
        trained: Whether the job needs trained weights.
        rounds: Of blocks.
    """

    name: str
    unit: str
    job: Mapping[str, Any]
    rivals: tuple[Rival, ...]
    marks: tuple[Mark, ...]
    flop: float
    steps_to_check: int = 0
    trained: bool = False
    rounds: int = 15
