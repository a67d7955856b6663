"""Figures: what a run and its results look like. Each function returns a ``Figure``; ``save`` writes it.

One column of a paper wide (3.4 inches), nats on the axes, colours that colour-blind readers tell apart (``plots_style``). Matplotlib's
objects alone: pyplot and its state are never touched. Those of a training and its data are here; the others have files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.estimate import Estimate
from ppvae.analysis.inference_gaps import InferenceGaps
from ppvae.analysis.plots_calibration import coverage_curve, k_hat_by_label, posterior_and_guide, rank_ecdf, worst_data
from ppvae.analysis.plots_latents import aggregated_posterior, kl_per_dimension, latent_map
from ppvae.analysis.plots_measures import attribute_effect, bounds_against_particles, completeness, continuity, k_hat_histogram
from ppvae.analysis.plots_metrics import correlation_integral, disentanglement, probes, rate_distortion
from ppvae.analysis.plots_mosaic import GUTTER, band, check_pixels, grey_limits, image_figure, shape_of
from ppvae.analysis.plots_moves import attribute_edits, averages, interpolations, origin, prior_grid, traversals
from ppvae.analysis.plots_style import (
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
    Array,
    array,
    save,
    signed,
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

MOST_LINES = 6  # data shown as lines, where they are no images


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """ELBO of training and validation rows by epoch, and below it rate and distortion; nats per datum.

    Args:
        history: The rows of ``Run.history``. The band around the validation ELBO is its standard error; the ring marks the best epoch.
    """
    epochs = _column(history, "epoch")
    measured = bool(np.isfinite(_column(history, "rate")).any())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9 if measured else 2.0), layout="constrained")
        panels = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if measured else [1])[:, 0]
        _elbo_panel(panels[0], epochs, history)
        if measured:
            for name, color, style in (("distortion", GREEN, "-"), ("rate", VERMILION, "--")):
                panels[1].plot(epochs, _column(history, name), color=color, linestyle=style, label=name)
            panels[1].set_ylim(bottom=0)
            panels[1].set_ylabel("nats per datum")
            panels[1].legend(loc="best", ncols=2)
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
    return figure


def reconstructions(x: Any, reconstructed: Any, image_shape: tuple[int, int] | None = None, columns: int = 10) -> Figure:
    """Data above what the pair makes of them.

    Args:
        x: (N, *event).
        reconstructed: (N, *event), E[x | z] under the guide (``simulate.reconstruct``).
        image_shape: Height and width; by default that of the event. Where rows are no images, values are drawn by dimension, as
            lines, for the first few data.
        columns: Images a row.
    """
    x, reconstructed = array(x), array(reconstructed)
    shape = image_shape or shape_of(x)
    with matplotlib.rc_context(STYLE):
        if shape is None:
            return _lines(x, reconstructed)
        check_pixels(x, shape)
        limits = grey_limits(np.concatenate([x.ravel(), reconstructed.ravel()]))
        starts = range(0, len(x), columns)
        bands = [band(part[start : start + columns], shape, columns) for start in starts for part in (x, reconstructed)]
        gap = np.full((2 * GUTTER, bands[0].shape[1]), np.nan)  # between a pair and the next
        figure, axes = image_figure(
            [part for i in range(0, len(bands), 2) for part in (bands[i], bands[i + 1], gap)][:-1], limits, beside=0.5
        )
        height = len(bands[0])
        middles = [(i // 2) * (2 * height + len(gap)) + (i % 2) * height + (height - GUTTER) / 2 for i in range(len(bands))]
        axes.set_yticks(middles, ["x", "E[x | z]"] * len(starts))
        axes.tick_params(left=False)
    return figure


def image_grid(images: Any, image_shape: tuple[int, int] | None = None, columns: int = 10) -> Figure:
    """Images side by side, in rows of ``columns``.

    Args:
        images: (N, *event).
        image_shape: Height and width; by default that of the event. Where rows are no images, they are the rows of one heat map.
        columns: Images a row.

    Raises:
        DataError: Rows have another number of values than such an image.
    """
    images = array(images)
    shape = image_shape or shape_of(images)
    with matplotlib.rc_context(STYLE):
        if shape is None:
            return _strips(images)
        check_pixels(images, shape)
        bands = [band(images[start : start + columns], shape, columns) for start in range(0, len(images), columns)]
        figure, _ = image_figure(bands, grey_limits(images))
    return figure


def samples(x: Any, image_shape: tuple[int, int] | None = None, columns: int = 8) -> Figure:
    """What the model draws, (N, *event); see ``image_grid``."""
    return image_grid(x, image_shape, columns)


def gap_decomposition(gaps: InferenceGaps) -> Figure:
    """From L[q] over L[q*] to log p(x): how much of the ELBO the encoder loses and how much the family, means over the data, nats.

    The errors of the gaps are standard errors of the N paired differences. The levels carry none: theirs, between data, is many times
    that of the gaps, and says nothing about them.
    """
    levels = {"log p(x)": gaps.log_px, "L[q*]  best in family": gaps.elbo_optimal, "L[q]  guide": gaps.elbo}
    names = list(levels)
    values = [level.mean().item() for level in levels.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.95), layout="constrained")
        axes = figure.subplots()
        axes.use_sticky_edges = False  # else the lowest bar's end is the end of the axis
        for row, value in zip((0, 2, 4), values, strict=True):
            axes.plot([value, value], [row - 0.36, row + 0.36], color=BLACK, linewidth=2, solid_capstyle="butt")
            _number(axes, row, signed(value, 2))
        for row, name, color, ink, left in ((1, "approximation", BLUE, BLUE, values[1]), (3, "amortization", ORANGE, UMBER, values[2])):
            gap = gaps.mean(name)
            axes.barh(row, gap.value, left=left, height=0.72, color=color, label=name)
            axes.errorbar(left + gap.value, row, xerr=_error(gap), color=BLACK, linewidth=0.8, capsize=2)
            _number(axes, row, _with_error(gap), weight="bold", color=ink)
        for value, first, last in ((values[0], 0, 1), (values[1], 1, 3), (values[2], 3, 4)):
            axes.plot([value, value], [first, last], color=GREY, linewidth=0.6, linestyle=":", zorder=0)
        axes.set_yticks(range(5), [names[0], "approximation gap", names[1], "amortization gap", names[2]])
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.margins(x=0.05)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("nats per datum")
        figure.suptitle(f"inference gap {_with_error(gaps.mean('inference'))} nats, N = {len(gaps.elbo):,}", fontsize=8)
    return figure


def _elbo_panel(axes: Axes, epochs: Array, history: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(epochs, _column(history, "train_elbo"), color=GREY, label="training")
    axes.set_ylabel("ELBO, nats per datum")
    if "validation_elbo" in history[0]:
        validation, se = _column(history, "validation_elbo"), np.nan_to_num(_column(history, "validation_elbo_se"))
        axes.plot(epochs, validation, color=BLUE, label="validation")
        axes.fill_between(epochs, validation - se, validation + se, color=BLUE, alpha=0.2, linewidth=0)
        best = int(np.nanargmax(validation))
        label = f"best: {signed(validation[best], 2)}, epoch {epochs[best]:.0f}"
        axes.plot(epochs[best], validation[best], "o", color=BLUE, fillstyle="none", markersize=5, linestyle="none", label=label)
    axes.legend(loc="lower right")


def _number(axes: Axes, row: float, text: str, **how: Any) -> None:
    """A number in a column of its own, right of the axes, where nothing can lie over it."""
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7, **how)


def _lines(x: Array, reconstructed: Array) -> Figure:
    x, reconstructed = x.reshape(len(x), -1)[:MOST_LINES], reconstructed.reshape(len(reconstructed), -1)[:MOST_LINES]
    figure = Figure(figsize=(WIDTH, 0.5 + 0.5 * len(x)), layout="constrained")
    panels = figure.subplots(len(x), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, values, made in zip(panels, x, reconstructed, strict=True):
        axes.plot(values, color=BLACK, linewidth=0.8, label="x")
        axes.plot(made, color=VERMILION, linewidth=1.0, linestyle="--", label="E[x | z]")
        axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 5, 10]))
    panels[-1].set_xlabel("dimension of x")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _strips(x: Array) -> Figure:
    x = x.reshape(len(x), -1)
    figure = Figure(figsize=(WIDTH, min(3.4, 0.8 + 0.05 * len(x))), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(x, aspect="auto", cmap="cividis")
    axes.set_xlabel("dimension of x")
    axes.set_ylabel("row")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    figure.colorbar(shown, ax=axes, fraction=0.06, pad=0.02).set_label("value")
    return figure


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Array:
    return np.array([row.get(name, math.nan) for row in history], dtype=float)


def _error(gap: Estimate) -> float:
    """Both errors of a gap together; that of a lone datum is its Monte Carlo error."""
    return math.hypot(0.0 if math.isnan(gap.data_se) else gap.data_se, gap.mc_se)


def _with_error(gap: Estimate) -> str:
    digits = 2 if _error(gap) >= 0.01 else 3
    return f"{signed(gap.value, digits)} ± {_error(gap):.{digits}f}"
