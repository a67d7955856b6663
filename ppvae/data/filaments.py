"""Filaments: a few fine bright curves on black, 64 x 64. What a decoder smooths away, these lose first."""

from __future__ import annotations

import numpy as np
import torch

from ppvae.data.data import Data
from ppvae.data.drawing import Array, drawn_in_blocks, stream

SIDE = 64
LEVELS = 255
FACTORS = ("curves",)
MOST, POINTS, STEP = 6, 240, 0.5  # curves; points of a curve, and pixels between them
WIDTH = 0.55  # standard deviation of a curve's profile, pixels
REACH = 2  # pixels to each side of a point that get ink
BEND, WAVES = 0.05, 3


def filaments(num_data: int = 4_000, *, seed: int = 0, binarize: str = "none", flatten: bool = True) -> Data:
    """Images of 2 to 6 curves, each with a start, a direction and a bend that varies smoothly along it.

    Args:
        num_data: N.
        seed: Of the curves.
        binarize: ``none``: grey values / 255.
        flatten: Event shape (4096,); else (64, 64).

    Returns:
        Images of bytes, ``factors`` (N, 1) the number of curves, which are also the ``labels``.
    """
    source = stream(seed, "filaments")
    numbers, images = [], []
    for rows in drawn_in_blocks(num_data):
        n = rows.stop - rows.start
        numbers.append(source.randint(2, MOST + 1, n))
        curves = _curves(source, n)
        images.append(_inked(curves, numbers[-1]))
    count = np.concatenate(numbers)
    data = Data.from_arrays(
        torch.from_numpy(np.concatenate(images)), count, name="filaments", binarize=binarize, levels=LEVELS, seed=seed, flatten=flatten
    )
    return data.with_factors(count[:, None].astype(float), FACTORS)


def _curves(source: np.random.RandomState, n: int) -> Array:
    """Points x, y in pixels, (n, curves, points, 2)."""
    start = source.uniform(4, SIDE - 4, (n, MOST, 1, 2))
    direction = source.uniform(0, 2 * np.pi, (n, MOST, 1))
    size, phase = source.normal(0, BEND, (n, MOST, WAVES, 1)), source.uniform(0, 2 * np.pi, (n, MOST, WAVES, 1))
    along = np.arange(POINTS) * STEP
    waves = size * np.cos(2 * np.pi * np.arange(WAVES)[:, None] * along / (POINTS * STEP) + phase)
    angle = direction + np.cumsum(waves.sum(2) * STEP, -1)
    steps = STEP * np.stack([np.cos(angle), np.sin(angle)], -1)
    points: Array = start + np.cumsum(steps, 2)
    return points


def _inked(points: Array, count: Array) -> Array:
    """Bytes (n, 64, 64): 1 - exp(-ink), so that a crossing is no brighter than white."""
    n = len(points)
    lit = (np.arange(MOST) < count[:, None])[..., None] & ((points > -REACH) & (points < SIDE + REACH)).all(-1)
    image, curve, place = lit.nonzero()
    x, y = points[image, curve, place].T
    across, down = np.floor(x).astype(int), np.floor(y).astype(int)
    amount = np.zeros(n * SIDE * SIDE)
    for j in range(-REACH, REACH + 1):
        for i in range(-REACH, REACH + 1):
            column, row = across + i, down + j
            inside = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
            distance = np.square(column + 0.5 - x) + np.square(row + 0.5 - y)
            weight = np.exp(-distance / (2 * WIDTH**2)) * inside
            at = np.where(inside, (image * SIDE + row) * SIDE + column, 0)
            amount += np.bincount(at, weight, minlength=len(amount))
    grey = 1 - np.exp(-amount)
    images: Array = np.rint(LEVELS * grey).astype(np.uint8).reshape(n, SIDE, SIDE)
    return images
