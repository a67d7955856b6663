"""Figures of where the data lie in latent space: codes by label, the aggregated posterior beside the prior, KL by dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.latent_usage import LatentUsage
from ppvae.analysis.latents.codes import AggregatedPosterior, Codes
from ppvae.analysis.plots.style import BLACK, BLUE, GREY, ORANGE, STYLE, TEN, WIDTH, Array, array
from ppvae.errors import DataError, ShapeError
from ppvae.evaluation import ACTIVE

MOST_POINTS = 5000  # of a scatter
MOST_DIMENSIONS = 8  # with a panel of their own


def latent_map(codes: Codes | Any, labels: Sequence[Any] | Any = None, *, principal: bool = True) -> Figure:
    """Codes by label, in two dimensions. Each label's name stands at the median of its codes.

    Args:
        codes: ``latents.codes(...)``, or codes (N, D).
        labels: (N,), numbers or words; by default those of the codes. More than ten numbers become a scale.
        principal: Where D > 2: the first two principal axes, with their share of the variance; else the two dimensions that vary most.

    Raises:
        ShapeError: Not one label a datum.
    """
    site = codes.site if isinstance(codes, Codes) else "z"
    labels = codes.labels if labels is None and isinstance(codes, Codes) else labels
    points = array(codes.mean if isinstance(codes, Codes) else codes)
    listed = None if labels is None else labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if points.ndim != 2 or (listed is not None and len(listed) != len(points)):
        told = "none" if listed is None else str(len(listed))
        raise ShapeError(f"a map needs codes (N, D) and one label each, got codes {points.shape} and labels: {told}")
    shown, names = _plane(points, site, principal)
    order = np.random.default_rng(0).permutation(len(shown))[:MOST_POINTS]  # else the last label would lie over all others
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        size = float(np.clip(3000 / len(order), 1.5, 12))
        how: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
        classes = [] if listed is None else sorted(set(listed))
        if listed is not None and len(classes) > len(TEN):
            values = np.array([classes.index(one) for one in listed] if isinstance(listed[0], str) else listed, dtype=float)
            drawn = axes.scatter(shown[order, 0], shown[order, 1], c=values[order], cmap="cividis", **how)
            figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02).set_label("label")
        else:
            colors = dict(zip(classes, TEN, strict=False))
            each = GREY if listed is None else [colors[listed[i]] for i in order]
            axes.scatter(shown[order, 0], shown[order, 1], c=each, **how)
            medians = np.array([np.median(shown[[label == one for label in listed or []]], axis=0) for one in classes])
            for one, place in zip(classes, _apart(medians, np.ptp(shown, axis=0), max([0, *map(len, map(str, classes))])), strict=True):
                _named(axes, place, str(one), colors[one])
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        if points.shape[1] > 1:
            axes.set_aspect("equal", adjustable="datalim")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
    return figure


def _plane(points: Array, site: str, principal: bool) -> tuple[Array, tuple[str, str]]:
    """(N, 2), and what the axes are."""
    if points.shape[1] == 1:
        ranks = points[:, 0].argsort().argsort() / max(1, len(points) - 1)
        return np.stack([points[:, 0], ranks], 1), (f"{site}[0]", "share of the codes below")
    if points.shape[1] == 2:
        return points, (f"{site}[0]", f"{site}[1]")
    centred = points - points.mean(0)
    if not principal:
        one, other = np.argsort(-centred.var(0), kind="stable")[:2]
        return points[:, [one, other]], (f"{site}[{one}], varies most", f"{site}[{other}], next")
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    # the sign of an axis is free: its largest entry is positive, so that the same codes make the same map
    vectors = vectors[:2] * np.sign(vectors[[0, 1], np.abs(vectors[:2]).argmax(1)])[:, None]
    shares = 100 * values[:2] ** 2 / max(float((values**2).sum()), 1e-300)
    return centred @ vectors.T, (
        f"first principal axis of {site} ({shares[0]:.0f} % of variance)",
        f"second principal axis ({shares[1]:.0f} %)",
    )


def _apart(places: Array, span: Array, letters: int) -> Array:
    """Places of names (C, 2), moved up and down until none lies over another."""
    width, height = 0.028 * (letters + 1) * span.max(), 0.055 * span.max()
    places = places.copy()
    for _ in range(100):
        for i in range(len(places)):
            for j in range(i):
                gap = places[i] - places[j]
                if abs(gap[0]) < width and abs(gap[1]) < height:
                    step = (height - abs(gap[1])) / 2 * (1 if gap[1] >= 0 else -1)
                    places[i, 1] += step
                    places[j, 1] -= step
    return places


def _named(axes: Axes, place: Array, name: str, color: str) -> None:
    """A label's name in its colour, darkened, on a white outline."""
    ink = tuple(0.65 * part for part in matplotlib.colors.to_rgb(color))
    outline = [withStroke(linewidth=2.2, foreground="white")]
    axes.text(place[0], place[1], name, color=ink, fontsize=8, weight="bold", ha="center", va="center", path_effects=outline, zorder=4)


def aggregated_posterior(found: AggregatedPosterior) -> Figure:
    """Draws of the aggregated posterior over the prior's: in the two dimensions that differ most, and each dimension by itself.

    The number above a dimension is the largest difference of the two distribution functions; what chance alone exceeds in 5 % of cases is
    told below. Bold dimensions exceed it.
    """
    own, prior, distance = array(found.draws), array(found.prior), array(found.distance)
    order = [int(d) for d in np.argsort(-distance, kind="stable")]
    with matplotlib.rc_context(STYLE):
        alone = own.shape[1] == 1
        columns = min(4, own.shape[1])
        rows = math.ceil(min(MOST_DIMENSIONS, own.shape[1]) / columns)
        heights = ([] if alone else [2.3]) + [0.85] * rows
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.55), layout="constrained")
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        if not alone:
            _plane_panel(figure.add_subplot(grid[0, :]), own, prior, order[:2], found.site)
        for place, d in enumerate(order[:MOST_DIMENSIONS]):
            axes = figure.add_subplot(grid[place // columns + (not alone), place % columns])
            edges = np.histogram_bin_edges(np.concatenate([own[:, d], prior[:, d]]), 30)
            for values, color, filled in ((prior, GREY, True), (own, BLUE, False)):
                height, _ = np.histogram(values[:, d], edges, density=True)
                axes.stairs(height, edges, color=color, fill=filled, alpha=0.45 if filled else 1.0, linewidth=1.0)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            beyond = distance[d] > found.expected
            axes.set_title(f"{found.site}[{d}]  {distance[d]:.2f}", fontsize=7, pad=2, weight="bold" if beyond else "normal")
        told = f"\nThe {MOST_DIMENSIONS} of {own.shape[1]} dimensions that differ most." if own.shape[1] > MOST_DIMENSIONS else ""
        figure.supxlabel(f"distance from the prior; 5 % exceed {found.expected:.2f} by chance{told}", fontsize=7)
        handles = [matplotlib.patches.Patch(color=BLUE, label="aggregated posterior"), matplotlib.patches.Patch(color=GREY, label="prior")]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _plane_panel(axes: Axes, own: Array, prior: Array, dimensions: list[int], site: str) -> None:
    size = float(np.clip(3000 / len(own), 1.0, 8))
    for values, color, alpha in ((prior, GREY, 0.35), (own, BLUE, 0.45)):
        some = values[:MOST_POINTS]
        axes.scatter(some[:, dimensions[0]], some[:, dimensions[1]], s=size, color=color, alpha=alpha, linewidths=0, rasterized=True)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"{site}[{dimensions[0]}]", labelpad=1)
    axes.set_ylabel(f"{site}[{dimensions[1]}]")


def kl_per_dimension(found: LatentUsage) -> Figure:
    """Mean KL of guide from prior by latent dimension, the largest first, nats. Grey: units whose mean does not move with the data.

    Raises:
        DataError: At no site do guide and prior factorise over dimensions.
    """
    sites = list(found.kl_per_dimension)
    if not sites:
        raise DataError(
            "guide and prior do not factorise over dimensions at any site, so there is no KL of one dimension",
            where=f"latent sites: {list(found.kl)}",
        )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.75 * len(sites) + 0.25), layout="constrained")
        for axes, site in zip(figure.subplots(len(sites), 1, squeeze=False)[:, 0], sites, strict=True):
            _kl_panel(axes, found, site)
        handles = [matplotlib.patches.Patch(color=BLUE, label=f"active (Var E[z|x] > {ACTIVE:g})")]
        if any(int(active) < found.unit_variance[site].numel() for site, active in found.active_units.items() if site in sites):
            handles.append(matplotlib.patches.Patch(color=ORANGE, label="not active"))
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _kl_panel(axes: Axes, found: LatentUsage, site: str) -> None:
    kl = array(found.kl_per_dimension[site]).ravel()
    active = array(found.unit_variance[site]).ravel() > ACTIVE
    order = np.argsort(-kl, kind="stable")
    axes.bar(range(len(kl)), kl[order], width=0.8, color=[BLUE if active[d] else ORANGE for d in order])
    few = len(kl) <= 20
    axes.set_xticks(range(len(kl)) if few else [], [str(d) for d in order] if few else [], fontsize=7 if len(kl) <= 12 else 6)
    axes.tick_params(bottom=False)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.set_xlabel(f"dimension of {site}, by KL" if few else f"{len(kl)} dimensions of {site}, by KL")
    axes.set_ylabel("KL, nats per datum")
    axes.text(0.98, 0.95, f"sum {kl.sum():.2f} nats", transform=axes.transAxes, ha="right", va="top", fontsize=7)
