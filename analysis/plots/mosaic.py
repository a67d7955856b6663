"""Images side by side: mosaics with gutters, and what stands in for an image where rows are none."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppvae.analysis.plots.style import WIDTH, Array
from ppvae.errors import DataError

CELL, GUTTER = 48, 3  # an image's side, in points of the mosaic at least, and what lies between two
STRIP = 12  # height of what stands in for an image, in points of the mosaic


def band(images: Array, shape: tuple[int, int], columns: int) -> Array:
    """One row of images, each pixel repeated, with gutters of nan to their right and below."""
    zoom = math.ceil(CELL / max(shape))
    height, width = shape[0] * zoom, shape[1] * zoom
    row = np.full((height + GUTTER, columns * (width + GUTTER)), np.nan)
    for i, image in enumerate(images):
        left = i * (width + GUTTER)
        row[:height, left : left + width] = np.kron(image.reshape(shape), np.ones((zoom, zoom)))
    return row


def image_figure(bands: list[Array], limits: tuple[float, float], beside: float = 0.0) -> tuple[Figure, Axes]:
    """Bands of images below each other; ``beside`` inches are left for labels."""
    found = np.concatenate(bands)
    height, width = found.shape
    figure = Figure(figsize=(WIDTH, (WIDTH - beside) * height / width + 0.05), layout="constrained")
    axes = figure.subplots()
    shown = draw(axes, found, limits)
    if limits != (0.0, 1.0):
        figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02).set_label("value")
    return figure, axes


def grey_limits(values: Array) -> tuple[float, float]:
    """[0, 1] for grey values in it, else the range of the values."""
    low, high = float(values.min()), float(values.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def shape_of(x: Array) -> tuple[int, int] | None:
    """Height and width of (N, height, width); None of anything else."""
    return (x.shape[1], x.shape[2]) if x.ndim == 3 else None


def check_pixels(x: Array, shape: tuple[int, int]) -> None:
    """Raise where (N, *event) are no images of that shape."""
    size = math.prod(x.shape[1:])
    if size != math.prod(shape):
        raise DataError(f"images of {shape[0]} x {shape[1]} need {math.prod(shape)} numbers a row, got {size}", where="image_shape")


def as_images(values: Array, leading: int, shape: tuple[int, int] | None) -> Array:
    """(*leading, *event) -> (*leading, height, width). Without a shape, an event that is no image becomes a strip of its values.

    Raises:
        DataError: An event has another number of values than such an image.
    """
    front, event = values.shape[:leading], values.shape[leading:]
    if shape is not None:
        check_pixels(values.reshape(-1, *event), shape)
        return values.reshape(*front, *shape)
    sides = tuple(size for size in event if size > 1)
    if len(event) > 1 and len(sides) == 2:
        return values.reshape(*front, *sides)
    flat = values.reshape(*front, 1, math.prod(event))
    return np.repeat(flat, max(1, STRIP // max(1, math.ceil(CELL / flat.shape[-1]))), axis=-2)


def mosaic(images: Array, after_rows: Collection[int] = (), after_columns: Collection[int] = ()) -> tuple[Array, Array, Array]:
    """Images (R, C, height, width) side by side.

    Args:
        images: Cells of nan stay blank.
        after_rows, after_columns: After which of them a wider gutter comes.

    Returns:
        The mosaic with nan in its gutters, and where the columns' and the rows' middles are in it.
    """
    height, width = images.shape[2:]
    zoom = math.ceil(CELL / max(height, width))
    (ys, total_y), (xs, total_x) = (
        _starts(count, size * zoom, wider)
        for count, size, wider in ((images.shape[0], height, after_rows), (images.shape[1], width, after_columns))
    )
    found = np.full((total_y, total_x), np.nan)
    for i, top in enumerate(ys):
        for j, left in enumerate(xs):
            found[top : top + height * zoom, left : left + width * zoom] = np.kron(images[i, j], np.ones((zoom, zoom)))
    return found, np.array(xs) + (width * zoom - 1) / 2, np.array(ys) + (height * zoom - 1) / 2


def _starts(count: int, size: int, wider: Collection[int]) -> tuple[list[int], int]:
    starts = [0]
    for i in range(count):
        starts.append(starts[-1] + size + (GUTTER * 4 if i in wider else GUTTER))
    return starts[:-1], starts[-2] + size


def draw(axes: Axes, found: Array, grey: tuple[float, float]) -> Any:
    """A mosaic on axes without a frame."""
    shown = axes.imshow(found, cmap=matplotlib.colormaps["gray"].with_extremes(bad="white"), vmin=grey[0], vmax=grey[1])
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False, top=False)
    axes.set_xticks([])
    axes.set_yticks([])
    return shown
