"""What a worker is asked to do, and what a rival hands it to do it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.architectures import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class Job:
    """One measured job; JSON goes both ways through ``vars``.

    Attributes:
        task: Name of the function in the rival's module.
        architecture_name: Key of ``ARCHITECTURES``.
        images: Path of a .npy of bytes, (N, 784).
        weights: Path of a .npz with the parameters of encoder and decoder in order; empty for the rival's own start.
        batch_size: Data a step.
        num_particles: Of the bound, of log p(x), of a refinement's step; chains of annealing.
        num_data: Data that are evaluated, refined or annealed.
        device: Of torch.
        threads: That a worker may use.
        seed: Of everything.
        options: What tells two rivals of one module apart.
    """

    task: str
    architecture_name: str = "A1"
    images: str = ""
    weights: str = ""
    batch_size: int = 100
    num_particles: int = 1
    num_data: int = 64
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The networks."""
        return ARCHITECTURES[self.architecture_name]


@dataclass(frozen=True)
class Prepared:
    """A job made ready by a rival.

    Attributes:
        run: Do so many iterations, wait for the device, and return the mean over them of what is computed, in nats per datum: a training
            loss or log p(x). What an optimum is compared by in ``--check``.
        units: What one iteration counts for, in the unit of the task (steps, data, rows).
        parameters: The trained arrays in order, for a rival that hands them to others.
    """

    run: Callable[[int], float]
    units: float = 1.0
    parameters: Callable[[], list[Any]] | None = None
