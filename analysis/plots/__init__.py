"""Figures: what a run and its results look like. Each function returns a ``Figure``; ``save`` writes it.

One column of a paper wide (3.4 inches), nats on the axes, colours that colour-blind readers tell apart (``style``). Matplotlib's objects
alone: pyplot and its state are never touched.
"""

from ppvae.analysis.plots.calibration import coverage_curve, k_hat_by_label, posterior_and_guide, rank_ecdf, worst_data
from ppvae.analysis.plots.gaps import gap_decomposition
from ppvae.analysis.plots.images import MOST_LINES, image_grid, reconstructions, samples
from ppvae.analysis.plots.latents import aggregated_posterior, kl_per_dimension, latent_map
from ppvae.analysis.plots.measures import attribute_effect, bounds_against_particles, completeness, continuity, k_hat_histogram
from ppvae.analysis.plots.metrics import correlation_integral, disentanglement, probes, rate_distortion
from ppvae.analysis.plots.mosaic import GUTTER
from ppvae.analysis.plots.moves import attribute_edits, averages, interpolations, origin, prior_grid, traversals
from ppvae.analysis.plots.one_run import training_curves
from ppvae.analysis.plots.style import (
    BLACK,
    BLUE,
    FORMATS,
    GREEN,
    GREY,
    ORANGE,
    STYLE,
    UMBER,
    VERMILION,
    WIDTH,
    array,
    save,
)

__all__ = [
    "BLACK",
    "BLUE",
    "FORMATS",
    "GREEN",
    "GREY",
    "GUTTER",
    "MOST_LINES",
    "ORANGE",
    "STYLE",
    "UMBER",
    "VERMILION",
    "WIDTH",
    "aggregated_posterior",
    "array",
    "attribute_edits",
    "attribute_effect",
    "averages",
    "bounds_against_particles",
    "completeness",
    "continuity",
    "correlation_integral",
    "coverage_curve",
    "disentanglement",
    "gap_decomposition",
    "image_grid",
    "interpolations",
    "k_hat_by_label",
    "k_hat_histogram",
    "kl_per_dimension",
    "latent_map",
    "origin",
    "posterior_and_guide",
    "prior_grid",
    "probes",
    "rank_ecdf",
    "rate_distortion",
    "reconstructions",
    "samples",
    "save",
    "training_curves",
    "traversals",
    "worst_data",
]
