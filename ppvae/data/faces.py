"""Faces, drawn: 32 x 32 in colour, with ten factors that are known, so that what an edit changes can be measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ppvae.data.data import Data
from ppvae.data.drawing import Array, drawn_in_blocks, ellipse, ink, pixels, rectangle, stream

SIDE = 32
LEVELS = 255
FACTORS = ("smile", "glasses", "long_hair", "width", "skin", "hair", "eyes", "brows", "turn", "background")
BINARY = 3  # of them, the first, are 0 or 1
SKINS = np.array([(250, 221, 200), (222, 171, 132), (160, 106, 72), (92, 57, 40)])
HAIRS = np.array([(228, 196, 120), (176, 92, 44), (96, 60, 40), (36, 30, 34)])
BACKGROUNDS = np.array([(190, 214, 232), (206, 226, 196), (238, 226, 190), (226, 204, 220)])
WHITE, PUPIL, LIPS, TEETH, RIM = (np.array(c) for c in [(250, 250, 248), (34, 38, 48), (176, 62, 66), (248, 244, 238), (28, 28, 36)])


def faces(num_data: int = 5_000, *, seed: int = 0, binarize: str = "none", flatten: bool = True) -> Data:
    """Drawn faces with their factors, each drawn independently of the others.

    Args:
        num_data: N.
        seed: Of the factors.
        binarize: ``none``: grey values / 255.
        flatten: Event shape (3072,); else (3, 32, 32).

    Returns:
        Images of bytes, ``factors`` (N, 10): ``smile``, ``glasses`` and ``long_hair`` are 0 or 1 with probability 1/2; ``width`` of the
        face, ``skin`` and ``hair`` from light to dark, size of the ``eyes``, height of the ``brows``, ``turn`` of the head and the
        ``background``'s colour are uniform on [0, 1]. ``labelled_by("smile")`` makes one of the first three the labels.
    """
    values = stream(seed, "faces").random_sample((num_data, len(FACTORS)))
    values[:, :BINARY] = values[:, :BINARY] < 0.5
    images = np.concatenate([drawn(values[rows]) for rows in drawn_in_blocks(num_data)])
    data = Data.from_arrays(torch.from_numpy(images), name="faces", binarize=binarize, levels=LEVELS, seed=seed, flatten=flatten)
    return data.with_factors(values, FACTORS)


def drawn(factors: Array) -> Array:
    """The images (N, 3, 32, 32), bytes, of factors (N, 10) in [0, 1]; fractions of the first three lie between."""
    f = {name: column[:, None, None] for name, column in zip(FACTORS, np.asarray(factors, dtype=np.float32).T, strict=True)}
    x, y = (part.astype(np.float32) for part in pixels(SIDE))
    canvas = _Canvas(_mixed(BACKGROUNDS, f["background"]))
    skin, hair = _mixed(SKINS, f["skin"]), _mixed(HAIRS, f["hair"])
    centre = 16.0
    a, b = 7.2 + 2.6 * f["width"], 10.4  # half axes of the face
    turn = 3.4 * (f["turn"] - 0.5)  # by how much the features lie beside the middle, pixels
    x = x - centre
    _hair_behind(canvas, x, y, a, b, f["long_hair"], hair)
    canvas.paint(ink(rectangle(x, y - 29, 3.4, 5)), 0.86 * skin)  # neck
    canvas.paint(ink(ellipse(x, y - 36, 14.0, 7.0)), 255 - 0.55 * _mixed(BACKGROUNDS, f["background"]))  # shirt
    for side in (-1, 1):
        canvas.paint(ink(ellipse(x - side * (a + 0.2) + 0.3 * turn, y - 17.5, 1.5, 2.3)), 0.9 * skin)
    face = ink(ellipse(x, y - 17, a, b))
    canvas.paint(face, skin)
    # Hair in front: what of the face lies above a hairline that rises towards the middle.
    line = y - (9.2 + 0.055 * np.square(x - 0.6 * turn - 2))
    canvas.paint(np.minimum(ink(ellipse(x, y - 16.4, a + 0.9, b + 1.2)), ink(line)), hair)
    _eyes(canvas, x - turn, y - 16.0, a, f, hair)
    nose = ink(np.hypot(x - 1.35 * turn, (y - 20.2) / 1.1) - 0.9)
    canvas.paint(0.55 * nose, 0.72 * skin)
    _mouth(canvas, x - 1.1 * turn, y - 23.4, a, f["smile"])
    _glasses(canvas, x - turn, y - 16.0, a, f["glasses"])
    images: Array = np.rint(canvas.colours).astype(np.uint8)
    return images


class _Canvas:
    """(N, 3, 32, 32), painted over in order."""

    def __init__(self, background: Array) -> None:
        self.colours = np.broadcast_to(background, (len(background), 3, SIDE, SIDE)).copy()

    def paint(self, share: Array, colour: Array) -> None:
        """Lay a colour, (3,) or (N, 3, 1, 1), over the picture, (N, 32, 32) or (32, 32) of it."""
        share = np.broadcast_to(share, (len(self.colours), SIDE, SIDE))[:, None]
        colour = colour.reshape(-1, 3, 1, 1)
        self.colours += share * (colour - self.colours)


def _mixed(colours: Array, at: Array) -> Array:
    """Between the colours (M, 3), from the first at 0 to the last at 1, (N, 3, 1, 1)."""
    place = np.linspace(0, 1, len(colours))
    mixed = np.stack([np.interp(at[:, 0, 0], place, column) for column in colours.T], 1)
    colour: Array = mixed[..., None, None].astype(np.float32)
    return colour


def _hair_behind(canvas: _Canvas, x: Array, y: Array, a: Any, b: float, long_hair: Array, hair: Array) -> None:
    canvas.paint(ink(ellipse(x, y - 15.2, a + 1.5, b + 0.6)) * (y < 18), hair)
    canvas.paint(long_hair * ink(rectangle(x, y - 21.5, a + 0.6, 6.5) - 1.6), 0.86 * hair)


def _eyes(canvas: _Canvas, x: Array, y: Array, a: Any, f: dict[str, Array], hair: Array) -> None:
    apart, size = 0.46 * a, 1.3 + 0.9 * f["eyes"]
    for side in (-1, 1):
        u = x - side * apart
        canvas.paint(ink(ellipse(u, y, 1.25 * size, size)), WHITE)
        canvas.paint(ink(np.hypot(u, y) - 0.68 * size), PUPIL)
        arch = y + 3.1 + 1.5 * f["brows"] - 0.08 * np.square(u)
        canvas.paint(ink(np.maximum(np.abs(arch) - 0.55, np.abs(u) - 2.3)), 0.6 * hair)


def _mouth(canvas: _Canvas, x: Array, y: Array, a: Any, smile: Array) -> None:
    """Thin and level, or wide with raised corners and teeth."""
    half = 0.34 * a + 0.14 * a * smile
    raised = 0.17 * smile - 0.015
    bow = y - 0.72 * smile + raised * np.square(x)
    depth = 0.55 + 0.95 * smile
    lips = np.maximum(np.abs(bow) - depth * np.sqrt(np.clip(1 - np.square(x / half) * smile, 0.08, 1)), np.abs(x) - half)
    canvas.paint(ink(lips), LIPS)
    inner = np.maximum(np.abs(bow + 0.15) - 0.5 * np.sqrt(np.clip(1 - np.square(x / half), 0, 1)), np.abs(x) - 0.8 * half)
    canvas.paint(smile * ink(inner), TEETH)


def _glasses(canvas: _Canvas, x: Array, y: Array, a: Any, glasses: Array) -> None:
    apart = 0.46 * a
    for side in (-1, 1):
        ring = np.abs(ellipse(x - side * apart, y, 0.40 * a, 3.0)) - 0.5
        canvas.paint(glasses * ink(ring), RIM)
    bridge = rectangle(x, y + 0.4, 0.12 * a, 0.4)
    canvas.paint(glasses * ink(bridge), RIM)
    for side in (-1, 1):
        canvas.paint(glasses * ink(rectangle(x - side * 0.93 * a, y + 0.8, 0.09 * a, 0.4)), RIM)
