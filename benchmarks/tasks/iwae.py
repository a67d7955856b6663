"""A training step by the importance-weighted bound, A1 at batch 20, with 5 and 50 particles."""

from __future__ import annotations

from benchmarks.architectures import ARCHITECTURES
from benchmarks.cases import OURS, REFERENCE, Case, Mark
from benchmarks.tasks.step import PYRO_JIT, RIVALS


def cases(quick: bool) -> list[Case]:
    """Both numbers of particles; quick takes 5. Pyro has no Jit form of this bound."""
    return [
        Case(
            name=f"IWAE step A1, batch 20, {k} particles",
            unit="step",
            job={"task": "step", "batch_size": 20, "num_particles": k},
            rivals=tuple(rival for rival in RIVALS if rival.name != PYRO_JIT),
            marks=(Mark(OURS, REFERENCE, 0.70, 0.50),) if k == 50 else (),
            flop=ARCHITECTURES["A1"].step_flop(20, k),
            steps_to_check=1000,
        )
        for k in ([5] if quick else [5, 50])
    ]
