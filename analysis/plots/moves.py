"""Figures of images along moves in latent space: prior quantiles, traversals, interpolations, attribute edits, averages, the origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.latents.attributes import AttributeEdit
from ppvae.analysis.latents.moves import Traversal
from ppvae.analysis.latents.paths import Interpolation
from ppvae.analysis.latents.quality import AverageImages, Origin
from ppvae.analysis.plots.mosaic import as_images, draw, grey_limits, mosaic
from ppvae.analysis.plots.style import BLACK, BLUE, STYLE, VERMILION, WIDTH, Array, array, signed

KINDS = {"straight": (BLACK, "-"), "spherical": (VERMILION, "--"), "density": (BLUE, "-.")}
Shape = tuple[int, int] | None


def prior_grid(images: Any, quantiles: Any, image_shape: Shape = None, dimensions: tuple[str, str] = ("z[0]", "z[1]")) -> Figure:
    """Decoded prior quantiles, the first dimension to the right and the second upwards, as on a map of codes.

    Args:
        images: (S, S, *event), ``latents.prior_grid(...).images``.
        quantiles: (S,), of the prior.
        image_shape: Height and width; by default that of the event. Where rows are no images, each is a strip of its values.
        dimensions: Names of the two.
    """
    cells = as_images(array(images), 2, image_shape)[::-1]
    levels = array(quantiles)
    with matplotlib.rc_context(STYLE):
        figure, axes, xs, ys = _mosaic_figure(cells, beside=0.45, below=0.4)
        marked = sorted({0, len(levels) // 2, len(levels) - 1})
        axes.set_xticks(xs[marked], [f"{levels[i]:.2g}" for i in marked])
        axes.set_yticks(ys[::-1][marked], [f"{levels[i]:.2g}" for i in marked])
        axes.set_xlabel(f"prior quantile of {dimensions[0]}")
        axes.set_ylabel(f"prior quantile of {dimensions[1]}")
    return figure


def traversals(found: Traversal, image_shape: Shape = None) -> Figure:
    """Each row moves one latent dimension and leaves the others: a row that stays the same is a dimension that the decoder ignores."""
    cells = as_images(array(found.images), 2, image_shape)
    with matplotlib.rc_context(STYLE):
        figure, axes, xs, ys = _mosaic_figure(cells, beside=0.4, below=0.4)
        axes.set_yticks(ys, [f"{found.site}[{d}]" for d in found.dimensions])
        levels = array(found.values[0] if found.quantiles is None else found.quantiles)
        marked = sorted({0, len(levels) // 2, len(levels) - 1})
        axes.set_xticks(xs[marked], [signed(levels[i], 2) for i in marked])
        where = "the prior's mean" if found.row is None else f"row {found.row}"
        axes.set_xlabel(("value" if found.quantiles is None else "quantile of the prior") + f"; others as in {where}")
    return figure


def interpolations(found: Interpolation, image_shape: Shape = None) -> Figure:
    """Paths between pairs of data, and below them the mass of the aggregated posterior and the decoder's steps along them, means of pairs.

    Where the mass falls, the decoder is asked what it has not learned; where a step is large, it jumps.
    """
    images = as_images(array(found.images), 3, image_shape)
    kinds, pairs, steps = images.shape[:3]
    cells = images.swapaxes(0, 1).reshape(pairs * kinds, steps, *images.shape[3:])
    tile, _, ys = mosaic(cells, after_rows=range(kinds - 1, pairs * kinds - 1, kinds))
    with matplotlib.rc_context(STYLE):
        height = (WIDTH - 0.6) * tile.shape[0] / tile.shape[1]
        figure = Figure(figsize=(WIDTH, height + 1.45), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[height, 1.25])
        axes = figure.add_subplot(grid[0, :])
        _scaled(figure, axes, tile, grey_limits(images))
        axes.set_yticks(ys, [found.kinds[i % kinds] for i in range(pairs * kinds)])
        for text, i in zip(axes.get_yticklabels(), range(pairs * kinds), strict=True):
            text.set_color(KINDS[found.kinds[i % kinds]][0])
        below = [figure.add_subplot(grid[1, i]) for i in range(2)]
        share = np.linspace(0, 1, steps)
        for i, kind in enumerate(found.kinds):
            color, style = KINDS[kind]
            below[0].plot(share, array(found.log_mass)[i].mean(0), color=color, linestyle=style)
            below[1].plot((share[1:] + share[:-1]) / 2, array(found.step_lengths)[i].mean(0), color=color, linestyle=style)
        for panel, name in zip(below, ("log mass, nats", "decoder step"), strict=True):
            panel.set_title(name, fontsize=7, pad=2)
            panel.set_xlabel("share of the way", labelpad=1)
            panel.set_xlim(0, 1)
            panel.xaxis.set_major_locator(MaxNLocator(2))
            panel.yaxis.set_major_locator(MaxNLocator(4))
        below[1].set_ylim(bottom=0)
    return figure


def attribute_edits(found: AttributeEdit, image_shape: Shape = None) -> Figure:
    """Data at the left, and what is decoded from their codes moved along the attribute; at 0 stand the reconstructions."""
    cells = as_images(np.concatenate([array(found.data)[:, None], array(found.images)], 1), 2, image_shape)
    with matplotlib.rc_context(STYLE):
        figure, axes, xs, _ = _mosaic_figure(cells, beside=0.1, below=0.4, after_columns=(0,))
        strengths = found.strengths.tolist()
        axes.set_xticks(xs, ["x", *[_strength(one) for one in strengths]])
        axes.set_xlabel(f"strength of '{found.name}'")
    return figure


def averages(found: AverageImages, image_shape: Shape = None, names: Sequence[str] | None = None) -> Figure:
    """By class, the mean of the data above the decoded mean of their codes, with the distance of the two.

    Args:
        found: ``latents.average_images(...)``.
        image_shape: Height and width; by default that of the event.
        names: Of the classes; by default their labels.
    """
    cells = as_images(np.stack([array(found.data), array(found.decoded)]), 2, image_shape)
    with matplotlib.rc_context(STYLE):
        titles = [str(one) for one in (found.labels if names is None else names)]
        figure, axes, xs, ys = _mosaic_figure(cells, beside=0.75, below=0.45 if max(map(len, titles)) <= 3 else 1.05)
        axes.set_yticks(ys, ["mean of x", "E[x | mean z]"])
        upright = max(map(len, titles)) > 3
        told = [f"{one}{'  ' if upright else chr(10)}{d:.1f}" for one, d in zip(titles, found.distance.tolist(), strict=True)]
        axes.set_xticks(xs, told, fontsize=6, rotation=90 if upright else 0)
        axes.set_xlabel("label, and distance of the two")
    return figure


def origin(found: Origin, image_shape: Shape = None) -> Figure:
    """The decoded origin, the mean of the data, and the data nearest to the origin's image, each with its distance from that."""
    values = np.concatenate([array(found.image)[None], array(found.data_mean)[None], array(found.nearest)])
    cells = as_images(values[None], 2, image_shape)
    with matplotlib.rc_context(STYLE):
        figure, axes, xs, _ = _mosaic_figure(cells, beside=0.1, below=0.55, after_columns=(0, 1))
        nearest = [f"{int(row)}\n{d:.2f}" for row, d in zip(found.rows, found.distance, strict=True)]
        axes.set_xticks(xs, ["E[x | z=E z]\ndistance", f"mean of x\n{found.distance_to_mean:.2f}", *nearest], fontsize=6)
        axes.set_xlabel("and the nearest data by row")
    return figure


def _mosaic_figure(cells: Array, *, beside: float, below: float, after_columns: Sequence[int] = ()) -> tuple[Figure, Axes, Array, Array]:
    """One mosaic with room for labels, in inches; where its columns and rows are."""
    tile, xs, ys = mosaic(cells, after_columns=after_columns)
    figure = Figure(figsize=(WIDTH, (WIDTH - beside) * tile.shape[0] / tile.shape[1] + below), layout="constrained")
    axes = figure.subplots()
    _scaled(figure, axes, tile, grey_limits(cells))
    return figure, axes, xs, ys


def _scaled(figure: Figure, axes: Axes, tile: Array, grey: tuple[float, float]) -> None:
    """A mosaic, with a scale where its values are not grey values in [0, 1]."""
    shown = draw(axes, tile, grey)
    if grey != (0.0, 1.0):
        figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02).set_label("value")


def _strength(value: float) -> str:
    return "0" if value == 0 else f"{value:+g}".replace("-", "\N{MINUS SIGN}")
