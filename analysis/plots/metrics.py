"""Figures of metrics: the correlation integral, the rate-distortion curve, probes of codes, codes against factors."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ppvae.analysis.dimension import CorrelationDimension
from ppvae.analysis.disentanglement import Disentanglement
from ppvae.analysis.plots.style import BLACK, BLUE, GREY, ORANGE, STYLE, VERMILION, WIDTH, array
from ppvae.analysis.probes import Probes
from ppvae.analysis.rate_distortion import RateDistortion

CURVE_POINTS = 200
TICKS = 5
MOST_NAMED = 12  # codes that have a tick of their own


def correlation_integral(found: CorrelationDimension) -> Figure:
    """log C(r) against log r with the fitted slope, and below it the local slopes: a dimension shows as a level stretch."""
    r, share = array(found.radii), array(found.share)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        above.loglog(r, share, color=BLUE, marker="o", markersize=3, linestyle="none")
        middle = np.exp(np.log(share).mean() + found.dimension * (np.log(r) - np.log(r).mean()))
        above.loglog(r, middle, color=BLACK, linewidth=0.8, label=f"slope {found.dimension:.3f} ± {found.se:.3f}")
        above.set_ylabel("C(r), share of pairs")
        above.legend(loc="upper left")
        below.plot(np.sqrt(r[1:] * r[:-1]), array(found.local), color=BLUE, marker="o", markersize=3)
        below.axhline(found.dimension, color=BLACK, linewidth=0.8)
        below.set_xscale("log")
        below.set_xticks(ticks := np.geomspace(r[0], r[-1], TICKS), [f"{tick:.2g}" for tick in ticks])
        below.xaxis.set_minor_locator(NullLocator())
        below.set_xlabel("r")
        below.set_ylabel("local slope")
        below.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def rate_distortion(found: RateDistortion) -> Figure:
    """The curve of a model and its prior: annealed channels lie above it; no channel reaches the shaded region, if the chains converged."""
    points = array(found.points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        ends = [points[:, 0].min(), points[:, 0].max()]
        if found.pair is not None:
            own = float(found.pair.distortion.mean())
            ends = [min(ends[0], own), max(ends[1], own)]
        highest = points[:, 1].max()
        margin = 0.06 * (ends[1] - ends[0])
        along = np.linspace(ends[0] - margin, ends[1] + margin, CURVE_POINTS)
        below = array(found.lower_rate(torch.from_numpy(along)))
        axes.fill_between(along, 0, below, color=GREY, alpha=0.25, linewidth=0, label="out of reach of any encoder")
        axes.plot(along, below, color=GREY, linewidth=0.8)
        axes.plot(points[:, 0], points[:, 1], color=BLUE, marker="o", markersize=3, linewidth=0.8, label="annealed channels")
        if found.pair is not None:
            height = float(found.pair.rate.mean())
            highest = max(highest, height)
            axes.plot([own], [height], color=VERMILION, marker="D", markersize=4, linestyle="none", label="the guide")
        axes.set_xlim(along[0], along[-1])
        axes.set_ylim(0, 1.15 * highest)
        axes.set_xlabel("distortion, \N{MINUS SIGN}E log p(x | z), nats")
        axes.set_ylabel("rate, nats")
        axes.legend(loc="upper right")
    return figure


def probes(found: Probes) -> Figure:
    """What simple methods find in codes, in principal components and in the data; bars are one binomial standard error."""
    rows = (("codes", found.codes, BLUE), ("PCA", found.pca, ORANGE), ("data", found.data, GREY))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
        axes = figure.subplots()
        for i, (name, one, color) in enumerate(rows):
            at = np.arange(3) + 0.27 * (i - 1)
            heights, errors = [one.linear, one.neighbours, one.purity], [one.linear_se, one.neighbours_se, one.purity_se]
            axes.bar(at, heights, 0.25, yerr=errors, color=color, label=f"{name} ({one.dim})", error_kw={"linewidth": 0.8})
        axes.axhline(found.most_frequent, color=BLACK, linewidth=0.8, linestyle="--", label="guessing")
        axes.set_xticks(np.arange(3), ["linear", f"{found.num_neighbours} neighbours", "clusters"])
        axes.tick_params(bottom=False)
        axes.set_ylim(0, 1)
        axes.set_ylabel("test data told right")
        figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handlelength=1.2)
    return figure


def disentanglement(found: Disentanglement) -> Figure:
    """Codes against factors: mutual information over the factor's entropy (MIG), and the importance of codes to trees (DCI)."""
    tables = ((array(found.mig.table), f"information, MIG {found.mig.value:.2f}"), (array(found.dci.importance), "importance (DCI)"))
    with matplotlib.rc_context(STYLE):
        codes, factors = tables[0][0].shape
        figure = Figure(figsize=(WIDTH, 1.0 + 0.14 * min(max(codes, 6), 24)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (table, title) in zip(panels, tables, strict=True):
            image = axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(np.arange(factors), list(found.mig.names), rotation=60, ha="right", rotation_mode="anchor")
            axes.set_title(title, fontsize=7)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        if codes <= MOST_NAMED:
            panels[0].set_yticks(np.arange(codes))
        else:
            panels[0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels[0].set_ylabel("code")
        bar = figure.colorbar(image, ax=panels, shrink=0.8)
        bar.outline.set_visible(False)
    return figure
