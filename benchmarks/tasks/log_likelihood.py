"""log p(x) by importance weighting, K = 5,000, of a trained A1."""

from __future__ import annotations

from benchmarks.architectures import ARCHITECTURES
from benchmarks.cases import OURS, REFERENCE, Case, Mark, Rival
from benchmarks.tasks.step import EAGER

CHUNKED, LOOP, VECTORISED = f"{REFERENCE}, chunks of 1,000", "Pythae get_nll", "Pyro, vectorised particles"


def cases(quick: bool) -> list[Case]:
    """64 data; quick takes 500 particles."""
    k = 500 if quick else 5000
    return [
        Case(
            name=f"log p(x) A1, K = {k:,}",
            unit="datum",
            job={"task": "log_likelihood", "num_particles": k, "num_data": 64},
            rivals=(
                Rival(CHUNKED, "hand"),
                Rival(OURS, "ours"),
                Rival(EAGER, "ours", options={"compile": False}),
                Rival(LOOP, "pythae_vae", "pythae"),
                Rival(VECTORISED, "pyro_svi"),
            ),
            marks=(Mark(OURS, CHUNKED, 0.80, 0.55), Mark(OURS, LOOP, 0.30, 0.15), Mark(OURS, VECTORISED, 0.55, 0.35)),
            flop=k * ARCHITECTURES["A1"].likelihood_flop,
            trained=True,
            rounds=9,
        )
    ]
