"""Data shown: rows of images, or lines and strips where they are none."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppvae.analysis.plots.mosaic import GUTTER, band, check_pixels, grey_limits, image_figure, shape_of
from ppvae.analysis.plots.style import BLACK, STYLE, VERMILION, WIDTH, Array, array

MOST_LINES = 6  # data shown as lines, where they are no images


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
