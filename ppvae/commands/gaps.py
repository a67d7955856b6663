"""``ppvae gaps``."""

from __future__ import annotations

from ppvae import analysis
from ppvae.analysis import plots
from ppvae.analysis.reference import REFERENCES
from ppvae.commands.folders import result_name, run_and_data, save_figure, tell_result
from ppvae.commands.precision import measured_in
from ppvae.commands.processes import together
from ppvae.errors import UsageError
from ppvae.options import Gaps, chosen
from ppvae.starts import FAMILIES


def run(options: Gaps) -> int:
    """Measure the gaps of inference, and draw them."""
    if not options.families:
        raise UsageError("--families needs one at least", mend=f"one or more of {', '.join(FAMILIES)}")
    families = tuple(chosen("family", name, list(FAMILIES)) for name in options.families)
    reference = chosen("reference", options.reference, list(REFERENCES))
    found, data = run_and_data(options.run, options.split, options.data, options.num_data)
    with together("cpu", options.threads), measured_in(options.dtype, found, data) as data:
        gaps = analysis.inference_gaps(found.model, found.guide, data, families=families, reference=reference, seed=options.seed)
        tell_result(found, "inference_gaps", options.split, options.data, gaps)
        name = result_name("gaps", options.split, options.data)
        save_figure(plots.gap_decomposition(gaps), options.run / "figures" / f"{name}.png")
    return 0
