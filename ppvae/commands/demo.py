"""``ppvae demo``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

import ppvae
from ppvae import analysis, simulate
from ppvae.analysis import plots
from ppvae.commands.folders import save_figure, tell_result
from ppvae.commands.processes import with_threads
from ppvae.commands.train import trained
from ppvae.interruption import exit_code
from ppvae.options import Demo, Train
from ppvae.output import say, tell
from ppvae.run import Run, new_folder


def run(options: Demo) -> int:
    """Train on digits, measure, draw, write the report."""
    with with_threads(1):  # for networks this small a second thread gains nothing, and on a busy core it costs a factor of ten
        found = trained(Train(epochs=options.epochs, seed=options.seed, out=options.out or new_folder(Path("runs/demo"))))
        assert found.folder is not None
        if exit_code(found):
            return exit_code(found)
        gaps = _measured(found, options)
        for name, figure in _figures(found, gaps).items():
            save_figure(figure, found.folder / "figures" / f"{name}.png")
        page = analysis.report(found.folder)
    lines = [
        f"report: {page}",
        "next:",
        f"  ppvae sample {found.folder} --num-data 64 --mean",
        f"  ppvae gaps {found.folder} --split train --families same full_rank",
        "  ppvae train --data digits --guide full-rank --out runs/full-rank",
        f"  ppvae compare {found.folder} runs/full-rank      (once both are evaluated)",
    ]
    tell("report", "\n".join(lines), str(page))
    return 0


def _measured(found: Run, options: Demo) -> analysis.InferenceGaps:
    """Print the three sentences; returns the gaps."""
    test = ppvae.data.load("digits").test
    test = test if options.num_data is None else test[: options.num_data]
    say(f"measuring {len(test)} test images")
    pair = (found.model, found.guide)
    tell_result(found, "elbo", "test", None, analysis.elbo(*pair, test, seed=options.seed))
    log_px = analysis.log_likelihood(*pair, test, num_particles=options.num_particles, seed=options.seed)
    tell_result(found, "log_likelihood", "test", None, log_px)
    gaps = analysis.inference_gaps(*pair, test, seed=options.seed)
    tell_result(found, "inference_gaps", "test", None, gaps)
    return gaps


def _figures(found: Run, gaps: analysis.InferenceGaps) -> dict[str, Figure]:
    shown, size = ppvae.data.load("digits").test.x[:20], (8, 8)
    drawn = simulate.sample(found.model, 50, template=shown, mean=True)
    return {
        "training": plots.training_curves(found.history),
        "reconstructions": plots.reconstructions(shown, simulate.reconstruct(found.model, found.guide, shown, num_particles=64), size),
        "samples": plots.samples(drawn["x"], size, columns=10),
        "gaps": plots.gap_decomposition(gaps),
    }
