"""Refinement of a trained A1's posteriors, 32 draws a step: all data at once, against one datum after another."""

from __future__ import annotations

from benchmarks.architectures import ARCHITECTURES
from benchmarks.cases import Case, Mark, Rival

LOOP, BATCHED = "PyTorch by hand, Adam a datum", "PyTorch by hand, Adam on all data"
MEAN_FIELD, FULL_RANK, EAGER = "ppvae, mean field", "ppvae, full rank", "ppvae, full rank, compile=False"
DRAWS, STEPS, NUM_DATA = 32, 40, 128


def cases(quick: bool) -> list[Case]:
    """One case."""
    return [
        Case(
            name=f"refinement A1, {DRAWS} draws",
            unit="datum and step",
            job={"task": "refinement", "num_particles": DRAWS, "num_data": NUM_DATA, "options": {"steps": 10 if quick else STEPS}},
            rivals=(
                Rival(LOOP, "hand"),
                Rival(MEAN_FIELD, "ours", options={"family": "mean_field"}),
                Rival(FULL_RANK, "ours", options={"family": "full_rank"}),
                Rival(EAGER, "ours", options={"family": "full_rank", "compile": False}),
                Rival(BATCHED, "hand", options={"batched": True}),
            ),
            marks=(Mark(MEAN_FIELD, LOOP, 0.20, 0.15), Mark(FULL_RANK, LOOP, 0.20, 0.15)),
            flop=DRAWS * ARCHITECTURES["A1"].latent_gradient_flop,
            trained=True,
            rounds=11,
        )
    ]
