"""Figures of two runs together: curves, bounds, coverage, and the paired differences of a quantity over the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.bounds import Bounds
from ppvae.analysis.calibration import Calibration
from ppvae.analysis.compare import Comparison
from ppvae.analysis.plots.style import BLACK, BLUE, GREY, STYLE, VERMILION, WIDTH
from ppvae.errors import DataError

EARLY = 20  # the first of so many parts of the epochs may leave the axis: what follows is what is compared


def curves_of_two(histories: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Figure:
    """ELBO by epoch of two runs, nats per datum: of validation rows as lines, of training rows dashed.

    Args:
        histories: The rows of ``Run.history`` of each.
        names: Of the runs.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        lowest = []
        for history, name, color in zip(histories, names, (BLUE, VERMILION), strict=True):
            if not history:
                continue
            epochs = [row["epoch"] for row in history]
            held_out = "validation_elbo" in history[0]
            for key, style, what in (("validation_elbo", "-", "validation"), ("train_elbo", "--", "training")):
                if key not in history[0]:
                    continue
                values = np.array([row.get(key, np.nan) for row in history], dtype=float)
                width = 1.2 if key == "validation_elbo" or not held_out else 0.8
                axes.plot(epochs, values, style, color=color, linewidth=width, label=f"{_short(name)}, {what}")
                lowest.append(np.nanmin(values[len(values) // EARLY :]))
        if lowest:
            top = axes.get_ylim()[1]
            axes.set_ylim(min(lowest) - 0.03 * (top - min(lowest)), top)
            axes.legend(loc="lower right")
        axes.set_xlabel("epoch")
        axes.set_ylabel("ELBO, nats per datum")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def paired_differences(found: Comparison, names: Sequence[str], what: str = "log p(x)") -> Figure:
    """Histogram of the difference of each datum, first run less second, nats, with its mean.

    Args:
        found: The comparison.
        names: Of the two runs.
        what: Which quantity.
    """
    values = found.pointwise.numpy()
    first, second = map(_short, names)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        axes.hist(values, bins=min(60, max(10, len(values) // 8)), color=GREY, linewidth=0)
        axes.axvline(0, color=BLACK, linewidth=0.6)
        axes.axvline(values.mean(), color=VERMILION, linewidth=1.4, label=f"mean {values.mean():.3f}".replace("-", "\N{MINUS SIGN}"))
        axes.set_xlabel(f"{what} of {first} less that of {second}, nats")
        axes.set_ylabel("data")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="best")
    return figure


def bounds_of_two(found: Sequence[Bounds], names: Sequence[str]) -> Figure:
    """The importance-weighted bounds of two runs by number of particles, mean over the same data, nats. Bars: twice the Monte Carlo error.

    Args:
        found: The bounds of each.
        names: Of the runs.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        for one, name, color in zip(found, names, (BLUE, VERMILION), strict=True):
            values, errors = [mean.value for mean in one.means], [2 * mean.mc_se for mean in one.means]
            axes.errorbar(
                one.num_particles, values, errors, color=color, marker="o", markersize=3, capsize=2, elinewidth=0.8, label=_short(name)
            )
        axes.set_xscale("log")
        axes.set_xlabel("K, particles")
        axes.set_ylabel("bound on log p(x), nats per datum")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.legend(loc="lower right")
    return figure


def coverage_of_two(found: Sequence[Calibration], names: Sequence[str]) -> Figure:
    """Share of truths inside the regions of highest density of two guides, by their nominal level, with binomial standard errors.

    Args:
        found: The calibration of each, on data drawn from its own model.
        names: Of the runs.

    Raises:
        DataError: The density of neither guide could be evaluated.
    """
    there = [(one, name, color) for one, name, color in zip(found, names, (BLUE, VERMILION), strict=True) if not one.coverage.isnan().any()]
    if not there:
        raise DataError("neither guide can tell its density at a given z, so there is no coverage to draw", where="coverage")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=BLACK, linewidth=0.5, linestyle=":")
        for one, name, color in there:
            levels, coverage, se = (values.numpy() for values in (one.levels, one.coverage, one.coverage_se))
            axes.errorbar(levels, coverage, yerr=se, color=color, marker="o", markersize=3, linewidth=1.0, capsize=2, label=_short(name))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xlabel("nominal level of the region")
        axes.set_ylabel("share of truths inside")
        axes.legend(loc="upper left")
    return figure


def _short(name: str) -> str:
    return name.replace("$", r"\$") if len(name) <= 24 else "…" + name[-23:].replace("$", r"\$")
