"""Sprites: white shapes on black, 32 x 32, of which shape, scale, rotation and position are all there is to know.

In the manner of Matthey, Higgins, Hassabis, Lerchner (2017), dSprites, https://github.com/google-deepmind/dsprites-dataset; drawn anew.
"""

from __future__ import annotations

import numpy as np
import torch

from ppvae.data.data import Data
from ppvae.data.drawing import Array, drawn_in_blocks, ellipse, heart, ink, pixels, rectangle, stream
from ppvae.errors import DataError

SIDE = 32
LEVELS = 255
SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "rotation", "x", "y")
# The values of each factor. A square is itself again after a quarter turn: rotations stay below one, so that images tell their factors.
GRID = (
    np.arange(len(SHAPES), dtype=float),
    np.linspace(0.5, 1.0, 6),
    np.arange(10) * (np.pi / 20),
    np.linspace(9.0, 23.0, 15),
    np.linspace(9.0, 23.0, 15),
)
NUM_COMBINATIONS = int(np.prod([len(values) for values in GRID]))


def sprites(num_data: int = 10_000, *, seed: int = 0, binarize: str = "threshold", flatten: bool = True) -> Data:
    """Sprites with their factors; no two alike.

    Args:
        num_data: N, up to 40,500: 3 shapes, 6 scales, 10 rotations, 15 x 15 positions, drawn without replacement.
        seed: Of the choice.
        binarize: What the model sees: ``threshold``, ``static``, ``dynamic``, or ``none`` for grey values / 255.
        flatten: Event shape (1024,); else (32, 32).

    Returns:
        Images of bytes, ``factors`` (N, 5): shape 0 to 2 (square, ellipse, heart), scale, rotation in radians, x and y of the centre in
        pixels from the upper left corner. ``labels`` are the shapes.

    Raises:
        DataError: More than there are.
    """
    if num_data > NUM_COMBINATIONS:
        raise DataError(f"needed at most {NUM_COMBINATIONS:,} sprites, since no two are alike, and num_data={num_data:,} came")
    chosen = stream(seed, "sprites").permutation(NUM_COMBINATIONS)[: max(num_data, 0)]
    places = np.unravel_index(chosen, [len(values) for values in GRID])
    factors = np.stack([values[place] for values, place in zip(GRID, places, strict=True)], 1)
    images = np.concatenate([drawn(factors[rows]) for rows in drawn_in_blocks(num_data)])
    data = Data.from_arrays(
        torch.from_numpy(images),
        factors[:, 0],
        name="sprites",
        binarize=binarize,
        levels=LEVELS,
        seed=seed,
        flatten=flatten,
    )
    return data.with_factors(factors, FACTORS)


def drawn(factors: Array) -> Array:
    """The images (N, 32, 32), bytes, of factors (N, 5), the last four of any value; edges are antialiased."""
    factors = np.asarray(factors, dtype=float)
    images = np.zeros((len(factors), SIDE, SIDE), dtype=np.uint8)
    for shape in range(len(SHAPES)):
        rows = np.flatnonzero(factors[:, 0] == shape)
        images[rows] = np.rint(LEVELS * ink(_distance(shape, *(factors[rows, 1:].T[..., None, None]))))
    return images


def _distance(shape: int, scale: Array, angle: Array, centre_x: Array, centre_y: Array) -> Array:
    """Signed distances of all pixels, (n, 32, 32), of one shape."""
    x, y = pixels(SIDE)
    x, y = x - centre_x, y - centre_y
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if SHAPES[shape] == "square":
        return rectangle(u, v, 5.2 * scale, 5.2 * scale)
    if SHAPES[shape] == "ellipse":
        return ellipse(u, v, 7.5 * scale, 4.0 * scale)
    size = 12 * scale
    distance: Array = size * heart(u / size, 0.55 - v / size)
    return distance
