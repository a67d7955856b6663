"""Figures about the guide as a posterior: ranks, coverage, draws beside the guide's, where importance weighting fails, the worst data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.calibration import DENSITY, LIKELIHOOD, Calibration
from ppvae.analysis.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, WIDTH, Array
from ppvae.analysis.posterior import Posterior
from ppvae.analysis.predictive_check import KHatByLabel
from ppvae.analysis.uniformity import bands, ecdf
from ppvae.errors import ArgumentError, DataError

MOST_NAMED = 4  # quantities with a colour and a name of their own
MOST_POINTS = 1000  # draws of a scatter


def rank_ecdf(found: Calibration) -> Figure:
    """Empirical distribution function of every quantity's ranks, less the uniform one, within the simultaneous band of the verdict.

    A curve that leaves the band is a fault. An S that rises first is a guide that is too narrow, one that falls first too wide; a bow
    above zero is a guide that lies too high, one below it too low. Quantities without a fault are grey.
    """
    band = found.bands
    points = _array(band.points)
    faults = [fault.name for fault in found.faults][:MOST_NAMED]
    colors = dict(zip(faults, (VERMILION, BLUE, ORANGE, GREEN), strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.subplots()
        ends = np.concatenate([[0.0], points, [1.0]])
        lower, upper = (np.concatenate([[0.0], _array(edge) - points, [0.0]]) for edge in (band.lower, band.upper))
        axes.fill_between(ends, lower, upper, color=GREY, alpha=0.25, linewidth=0, label=f"{100 * (1 - found.level):g} % band, all curves")
        clear = 0
        for name, ranks in found.all_ranks():
            difference = np.concatenate([[0.0], _array(ecdf(ranks, found.num_draws)) - points, [0.0]])
            if name in colors:
                axes.plot(ends, difference, color=colors[name], label=name, zorder=3, linestyle=_line_of(name))
            else:
                label = "others" if colors else "all quantities"
                axes.plot(ends, difference, color=GREY, linewidth=0.7, label=None if clear else label, linestyle=_line_of(name))
                clear += 1
        axes.axhline(0, color=BLACK, linewidth=0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("rank of the truth among the guide's draws / (L + 1)")
        axes.set_ylabel("ECDF less uniform")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def coverage_curve(found: Calibration) -> Figure:
    """Share of the data whose latents lie in the guide's region of highest density, by its nominal level, within the band of the verdict.

    Raises:
        DataError: The guide's density could not be evaluated.
    """
    coverage = _array(found.coverage)
    if np.isnan(coverage).any():
        raise DataError("this guide cannot tell its density at a given z, so there is no coverage to draw", where="coverage")
    levels, se = _array(found.levels), _array(found.coverage_se)
    band = bands(len(found.ranks), found.num_draws, found.level / found.num_tests)
    # 1 - pit is below c where the region of level c holds the truth: the band of the ranks, seen from the other end
    points = 1 - _array(band.points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(points, 1 - _array(band.upper), 1 - _array(band.lower), color=GREY, alpha=0.25, linewidth=0, label="band")
        axes.plot([0, 1], [0, 1], color=BLACK, linewidth=0.5, linestyle=":")
        axes.errorbar(levels, coverage, yerr=se, color=BLUE, marker="o", markersize=3, linewidth=1.0, capsize=2, label="guide")
        axes.text(0.04, 0.93, "too wide", transform=axes.transAxes, va="top", color=GREY, fontsize=7)
        axes.text(0.96, 0.07, "too narrow", transform=axes.transAxes, ha="right", color=GREY, fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xlabel("nominal level of the region")
        axes.set_ylabel("share of truths inside")
        axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.72))
    return figure


def posterior_and_guide(found: Posterior, row: int, dimensions: tuple[int, int] = (0, 1), site: str | None = None) -> Figure:
    """Draws from the posterior of a datum beside the guide's, in two dimensions of a latent site, with their margins.

    Args:
        found: Chains, and the guide's draws.
        row: The datum.
        dimensions: Two of the site's, counted through its event.
        site: The site; by default the first.

    Raises:
        ArgumentError: There is no such row, site or dimension.
    """
    name = site or next(iter(found.draws))
    if name not in found.draws:
        raise ArgumentError(f"there is no latent site '{name}'; there are {list(found.draws)}")
    if not 0 <= row < len(found.r_hat):
        raise ArgumentError(f"row lies in 0..{len(found.r_hat) - 1}, got {row}")
    true, own = (_array(draws[name][:, :, row].flatten(0, 1)) for draws in (found.draws, found.guide_draws))
    true, own = true.reshape(len(true), -1), own.reshape(len(own), -1)
    if max(dimensions) >= true.shape[1] or min(dimensions) < 0:
        raise ArgumentError(f"site '{name}' has dimensions 0..{true.shape[1] - 1}, got {dimensions}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
        panels = figure.subplots(2, 2, width_ratios=[4, 1], height_ratios=[1, 4], sharex="col", sharey="row")
        panels[0, 1].set_visible(False)
        thin = max(1, math.ceil(len(true) / MOST_POINTS))
        for values, color, label in ((own, ORANGE, found.compared_with), (true, BLUE, "posterior, HMC")):
            pair = values[:, list(dimensions)]
            panels[1, 0].plot(*pair[::thin].T, ".", color=color, markersize=2.5, markeredgewidth=0, alpha=0.5, label=label)
            for axes, part, way in ((panels[0, 0], pair[:, 0], "vertical"), (panels[1, 1], pair[:, 1], "horizontal")):
                edges = np.histogram_bin_edges(np.concatenate([own, true])[:, dimensions[0 if way == "vertical" else 1]], 40)
                height, _ = np.histogram(part, edges, density=True)
                axes.stairs(height, edges, color=color, orientation=way, linewidth=1.0)
        for axes in (panels[0, 0], panels[1, 1]):
            axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
            axes.spines[:].set_visible(False)
        panels[1, 0].set_xlabel(f"{name}[{dimensions[0]}]")
        panels[1, 0].set_ylabel(f"{name}[{dimensions[1]}]")
        handles, labels = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, markerscale=4)
        warned = "" if bool(found.converged[row]) else ", chains have not converged"
        panels[0, 0].set_title(f"row {row}: R-hat {found.r_hat[row]:.3f}{warned}", fontsize=7, color=VERMILION if warned else BLACK)
    return figure


def k_hat_by_label(found: KHatByLabel) -> Figure:
    """Share of data of each class whose importance weights should not be believed, with binomial standard errors."""
    share, se = 100 * _array(found.share), 100 * _array(found.share_se)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.19 * len(share)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(share))
        axes.barh(rows, share, height=0.72, color=ORANGE)
        axes.errorbar(share, rows, xerr=se, color=BLACK, linestyle="none", linewidth=0.8, capsize=2)
        axes.set_yticks(rows, [str(label) for label in found.labels])
        axes.tick_params(left=False)
        for row, count in enumerate(found.count.tolist()):
            axes.text(1.02, row, f"n = {count:,}", transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=GREY)
        axes.invert_yaxis()
        axes.set_xlim(left=0, right=max(1.0, 1.05 * float((share + se).max())))
        axes.set_xlabel(f"data with k-hat above {found.threshold:.2f}, %")
        axes.set_ylabel("label")
    return figure


def worst_data(
    x: Any,
    rows: Sequence[int],
    values: Any,
    *,
    image_shape: tuple[int, int] | None = None,
    columns: int = 5,
    name: str = "log p(x)",
) -> Figure:
    """The data of some rows, each with its number and a value: those with the lowest log p(x), or with the largest k-hat.

    Args:
        x: (N, *event).
        rows: Which, in the order to be shown (``PredictiveCheck.worst()``, ``KHatByLabel.worst[i]``).
        values: (N,), what they are chosen by.
        image_shape: Height and width; by default that of the event. Where rows are no images they are drawn as lines.
        columns: Panels a row.
        name: Of the values.

    Raises:
        DataError: Rows have another number of values than such an image.
        ArgumentError: No row.
    """
    x, values = _array(x), _array(values)
    if len(rows) == 0:
        raise ArgumentError("there is no row to draw")
    shape = image_shape or _image_shape(x)
    if shape is not None and math.prod(shape) != math.prod(x.shape[1:]):
        raise DataError(f"images of {shape[0]} x {shape[1]} need {math.prod(shape)} numbers a row, got {math.prod(x.shape[1:])}")
    count = math.ceil(len(rows) / columns)
    low, high = float(x.min()), float(x.max())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.35 + 0.95 * count), layout="constrained")
        panels = figure.subplots(count, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(rows) :]:
            axes.set_visible(False)
        for axes, row in zip(panels, rows, strict=False):
            _datum(axes, x[row], shape, (low, high))
            axes.set_title(f"{row}\n{values[row]:.2f}".replace("-", "\N{MINUS SIGN}"), fontsize=6, pad=2)
        figure.suptitle(f"row, and its {name}", fontsize=7, color=GREY)
    return figure


def _datum(axes: Axes, x: Array, shape: tuple[int, int] | None, limits: tuple[float, float]) -> None:
    if shape is None:
        axes.plot(x.ravel(), color=BLACK, linewidth=0.8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(2, integer=axis is axes.xaxis))
        return
    axes.imshow(x.reshape(shape), cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)


def _image_shape(x: Array) -> tuple[int, int] | None:
    event = tuple(size for size in x.shape[1:] if size > 1)
    return (event[0], event[1]) if len(event) == 2 else None


def _line_of(name: str) -> str:
    return {DENSITY: "--", LIKELIHOOD: ":"}.get(name, "-")


def _array(x: Any) -> Array:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=float)
