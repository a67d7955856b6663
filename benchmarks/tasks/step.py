"""A training step by the ELBO, dynamic binarisation from bytes included."""

from __future__ import annotations

from benchmarks.architectures import ARCHITECTURES
from benchmarks.cases import OURS, REFERENCE, Case, Mark, Rival

COMPILED, PYRO, PYRO_JIT, NUMPYRO, PYTHAE = (
    "PyTorch by hand, torch.compile",
    "Pyro SVI",
    "Pyro SVI, JitTrace_ELBO",
    "NumPyro fori_loop",
    "Pythae",
)
USER, EAGER = "ppvae, a user's Pyro pair", "ppvae, compile=False"

RIVALS = (
    Rival(REFERENCE, "hand"),
    Rival(OURS, "ours", options={"compile": True}),
    Rival(USER, "ours", options={"compile": True, "pair": "user"}),
    Rival(EAGER, "ours", options={"compile": False}),
    Rival(COMPILED, "hand", options={"compiled": True}),
    Rival(PYRO, "pyro_svi"),
    Rival(PYRO_JIT, "pyro_svi", options={"jit": True}),
    Rival(NUMPYRO, "numpyro_svi", "numpyro"),
    Rival(PYTHAE, "pythae_vae", "pythae"),
)
MARKS = (
    Mark(OURS, REFERENCE, 0.62, 0.45),
    Mark(OURS, NUMPYRO, 0.90, 0.70),
    Mark(OURS, PYRO, 0.40, 0.25),
    Mark(USER, OURS, 1.05),
)


def cases(quick: bool) -> list[Case]:
    """A1 at three batch sizes, A2, and the convolutional A3; quick leaves out all but A1 at 100."""
    sizes = [("A1", 20), ("A1", 100), ("A1", 512), ("A2", 100), ("A3", 128)]
    return [
        Case(
            name=f"step {name}, batch {batch_size}",
            unit="step",
            job={"task": "step", "architecture_name": name, "batch_size": batch_size},
            rivals=RIVALS,
            marks=MARKS if name == "A1" else (),
            flop=ARCHITECTURES[name].step_flop(batch_size),
            steps_to_check=2000 if name != "A3" else 500,
        )
        for name, batch_size in ([("A1", 100)] if quick else sizes)
    ]
