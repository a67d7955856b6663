"""Figures of measurements with their errors: bounds against K, k-hat, effects of attributes, completeness, continuity."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.bounds import Bounds
from ppvae.analysis.latents.attributes import AttributeEffect
from ppvae.analysis.latents.paths import Continuity
from ppvae.analysis.latents.quality import Completeness
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.analysis.plots.style import BLACK, BLUE, GREY, ORANGE, STYLE, UMBER, VERMILION, WIDTH, Array, array, signed
from ppvae.errors import DataError

BINS = 40


def bounds_against_particles(found: Bounds) -> Figure:
    """The importance-weighted bound by number of particles, mean over the data, nats. Bars: twice the Monte Carlo error.

    log p(x) lies above all of them in expectation; a curve that still rises has not reached it. The error over data, many times as large,
    moves the curve as a whole and is told in the title.
    """
    means = found.means
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
        axes = figure.subplots()
        values, errors = [one.value for one in means], [2 * one.mc_se for one in means]
        axes.errorbar(found.num_particles, values, errors, color=BLUE, marker="o", markersize=3, capsize=2, elinewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("K, particles")
        axes.set_ylabel("bound on log p(x), nats per datum")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        last = means[-1]
        error = "" if math.isnan(last.data_se) else f" ± {last.data_se:.2f} (data)"
        axes.set_title(f"K = {found.num_particles[-1]:,}: {signed(last.value, 2)}{error}, N = {found.pointwise.shape[1]:,}", fontsize=7)
    return figure


def k_hat_histogram(found: LogLikelihood) -> Figure:
    """k-hat of the importance weights of each datum. Beyond the threshold a number should not be believed on its weights alone.

    Constant weights, whose k-hat is -inf, are counted in the legend.

    Raises:
        DataError: There were fewer than 25 particles, so that there is no k-hat.
    """
    k_hat = array(found.k_hat)
    there = k_hat[~np.isnan(k_hat)]
    if not len(there):
        raise DataError("there is no k-hat below 25 particles", where="k_hat", mend="num_particles=1000")
    finite, constant = there[np.isfinite(there)], int(np.isneginf(there).sum())
    threshold = found.threshold
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9), layout="constrained")
        axes = figure.subplots()
        width = 0.05
        low = min(0.0, float(finite.min(initial=0.0)))
        high = max(threshold, float(finite.max(initial=0.0))) + width
        below = math.ceil((threshold - low) / width)
        edges = threshold + width * np.arange(-below, math.ceil((high - threshold) / width) + 1)  # no bin lies on both sides
        sound = finite <= threshold
        for part, color, name in ((finite[sound], BLUE, "sound"), (finite[~sound], VERMILION, "not to be trusted")):
            share = 100 * len(part) / len(there)
            axes.hist(part, edges.tolist(), color=color, label=f"{name}: {share:.1f} %")
        axes.axvline(threshold, color=BLACK, linewidth=0.8, linestyle="--")
        if constant:
            axes.plot([], [], " ", label=f"constant weights: {100 * constant / len(there):.1f} %")
        axes.set_xlabel(f"k-hat (threshold {threshold:.2f})")
        axes.set_ylabel("data")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def attribute_effect(found: AttributeEffect) -> Figure:
    """How the scores of held-out data change when they are moved along an attribute; below, the same under permuted labels.

    Bars: standard errors over the data. The attribute's own score is blue; what else moved is orange.
    """
    change, se = array(found.change), array(found.change_se)
    with matplotlib.rc_context(STYLE):
        rows = np.arange(len(change))
        height = 0.45 + 0.17 * len(change)
        figure = Figure(figsize=(WIDTH, height + 1.4), layout="constrained")
        axes, below = figure.subplots(2, 1, height_ratios=[height, 1.2])
        axes.barh(rows, change, height=0.72, color=[BLUE, *[ORANGE] * (len(change) - 1)])
        axes.errorbar(change, rows, xerr=se, color=BLACK, linestyle="none", linewidth=0.8, capsize=2)
        axes.axvline(0, color=BLACK, linewidth=0.6)
        axes.set_yticks(rows, [str(name) for name in found.names])
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel(f"change of score, {found.strength:g} x the vector, N = {len(found.pointwise):,}")
        below.hist(array(found.permuted), 25, color=GREY, label="labels permuted")
        below.axvline(change[0], color=BLUE, label=f"as they are: p = {found.p_value:.2g}")
        below.set_xlabel(f"change of the score of '{found.names[0]}'")
        below.set_ylabel("permutations")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.legend(loc="best")
    return figure


def completeness(found: Completeness) -> Figure:
    """The classifier's confidence in decoded prior draws beside real held-out data, and the distance of both to the nearest datum."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
        panels = figure.subplots(1, 2)
        _two_histograms(panels[0], array(found.held_out_confidence), array(found.confidence))
        panels[0].axvline(found.threshold, color=BLACK, linewidth=0.8, linestyle="--")
        panels[0].set_xlabel("confidence of classifier")
        _two_histograms(panels[1], array(found.held_out_distance), array(found.distance))
        panels[1].set_xlabel("distance to nearest datum")
        panels[1].set_xlim(left=0)
        handles, _ = panels[0].get_legend_handles_labels()
        figure.legend(handles, ["held-out data", "decoded prior draws"], loc="outside upper center", ncols=2)
        share, se = 100 * found.share, 100 * found.share_se
        panels[0].set_title(f"accepted: {share:.1f} ± {se:.1f} %", fontsize=7, color=UMBER)
    return figure


def _two_histograms(axes: Axes, real: Array, drawn: Array) -> None:
    edges = np.histogram_bin_edges(np.concatenate([real, drawn]), BINS)
    for values, color, filled in ((real, GREY, True), (drawn, ORANGE, False)):
        height, _ = np.histogram(values, edges)
        axes.stairs(height / len(values), edges, color=color, fill=filled, alpha=0.5 if filled else 1.0, linewidth=1.2, label=" ")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def continuity(found: Continuity) -> Figure:
    """Decoder steps along each path over its median step, grey; the least even path stands out. A jump is a peak."""
    lengths = array(found.step_lengths)
    ratio = lengths / np.maximum(np.median(lengths, axis=1, keepdims=True), 1e-300)
    worst = int(array(found.ratio).argmax())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
        axes = figure.subplots()
        share = (np.arange(lengths.shape[1]) + 0.5) / lengths.shape[1]
        for row in ratio:
            axes.plot(share, row, color=GREY, linewidth=0.5, alpha=0.5)
        label = f"largest: {float(found.ratio[worst]):.1f}, rows {int(found.ends[worst, 0])} to {int(found.ends[worst, 1])}"
        axes.plot(share, ratio[worst], color=VERMILION, label=label)
        axes.axhline(1, color=BLACK, linewidth=0.6, linestyle=":")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"share of the way, {len(lengths)} {found.kind} paths")
        axes.set_ylabel("decoder step / median step")
        axes.legend(loc="best")
    return figure
