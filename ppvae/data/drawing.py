"""What drawn data are made of: a stream of numbers for a seed, signed distances of shapes, and ink from distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ppvae import noise
from ppvae.errors import check_count

Array = np.ndarray[Any, Any]
BLOCK = 256  # images drawn at once


def stream(seed: int, purpose: str) -> np.random.RandomState:
    """A generator that NumPy froze, so that a data set is the same with every version of NumPy and torch."""
    return np.random.RandomState(list(divmod(noise.derived_seed(seed, purpose), 1 << 32)))


def drawn_in_blocks(num_data: int) -> Iterator[slice]:
    """Slices of the data that are drawn together.

    Raises:
        ArgumentError: ``num_data`` is no whole number from 1.
    """
    check_count("num_data", num_data)
    yield from noise.blocks(num_data, BLOCK)


def pixels(side: int) -> tuple[Array, Array]:
    """x to the right and y downward of the centres of pixels, (side, side) each; the first pixel's centre is 0.5, 0.5."""
    y, x = np.mgrid[:side, :side] + 0.5
    return x, y


def ink(distance: Array) -> Array:
    """The share of a pixel that a shape covers, in [0, 1], from the signed distance of the pixel's centre, in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def ellipse(x: Array, y: Array, a: Array | float, b: Array | float) -> Array:
    """Distance to an ellipse with half axes a and b, negative inside, to first order at its edge."""
    level = np.hypot(x / a, y / b)
    slope = np.hypot(x / np.square(a), y / np.square(b))
    distance: Array = level * (level - 1) / np.maximum(slope, 1e-9)
    return distance


def rectangle(x: Array, y: Array, a: Array | float, b: Array | float) -> Array:
    """Distance to a rectangle with half sides a and b, negative inside."""
    u, v = np.abs(x) - a, np.abs(y) - b
    outside = np.hypot(np.maximum(u, 0), np.maximum(v, 0))
    distance: Array = outside + np.minimum(np.maximum(u, v), 0)
    return distance


def heart(x: Array, y: Array) -> Array:
    """Distance to a heart with its tip at (0, 0), its lobes upward, 1.1 high and 1.2 wide, negative inside; y upward.

    References:
        Quilez (2020), Distance functions in two dimensions, https://iquilezles.org/articles/distfunctions2d.
    """
    x = np.abs(x)
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    half = 0.5 * np.maximum(x + y, 0)
    corner = np.minimum(np.hypot(x, y - 1), np.hypot(x - half, y - half)) * np.sign(x - y)
    distance: Array = np.where(x + y > 1, lobe, corner)
    return distance
