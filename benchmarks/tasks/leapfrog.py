"""A leapfrog step of annealed importance sampling with a trained A1, 64 data x 16 chains."""

from __future__ import annotations

from benchmarks.architectures import ARCHITECTURES
from benchmarks.cases import OURS, REFERENCE, Case, Mark, Rival
from benchmarks.tasks.step import EAGER


def cases(quick: bool) -> list[Case]:
    """One case."""
    return [
        Case(
            name="leapfrog step A1, 64 data x 16 chains",
            unit="row and step",
            job={"task": "leapfrog", "num_particles": 16, "num_data": 64, "options": {"step_size": 0.15}},
            rivals=(Rival(REFERENCE, "hand"), Rival(OURS, "ours"), Rival(EAGER, "ours", options={"compile": False})),
            marks=(Mark(OURS, REFERENCE, 0.75, 0.60),),
            flop=ARCHITECTURES["A1"].latent_gradient_flop,
            trained=True,
            rounds=11,
        )
    ]
