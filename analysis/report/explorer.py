"""The latent explorer: an atlas of decoded data on a grid over two latent dimensions, and the codes of data that lie on it.

The page's script moves over the atlas. Nothing is decoded in the browser: each picture is E[x | z] at a point of the grid.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppvae.analysis.latents.space import LatentSpace
from ppvae.analysis.plots.style import TEN
from ppvae.analysis.report.record import Record
from ppvae.data import Data
from ppvae.errors import ProgramError

POINTS = 21  # a side of the grid
FEWEST_POINTS = 7
PIXELS = 500_000  # values of one sheet, at most
SHEETS = 4  # with the other dimensions at the prior's mean, and at some data
CODES = 500  # data on the map
SPAN = 1.1  # the grid's half width, by that of the codes
COLUMNS = 25  # of the sheet of data


@dataclass(frozen=True)
class Atlas:
    """What the explorer's script reads, and the words around it.

    Attributes:
        content: JSON-able.
        dimensions: The two dimensions, as they are called.
        site: The latent site.
        num_dimensions: D.
        num_codes: Data on the map.
        points: A side of the grid.
    """

    content: dict[str, Any]
    dimensions: list[str]
    site: str
    num_dimensions: int
    num_codes: int
    points: int


def atlas(record: Record, model: Any, guide: Any, rows: Data) -> Atlas:
    """The atlas of a pair over some data.

    Raises:
        ProgramError: There is not one continuous latent site and one observed site with a mean.
    """
    some = rows[:CODES] if len(rows) > CODES else rows
    space = LatentSpace(model, guide, some)
    codes, _ = space.codes()
    x = space.data()
    if not torch.isfinite(codes).all():
        raise ProgramError("the guide's posterior means are not finite", where=f"site '{space.site}'")
    size = math.prod(x.shape[1:])
    shape = record.image_shape if record.image_shape is not None else _event_image(x)
    used = codes.var(0, correction=0).argsort(descending=True, stable=True)[:2]
    points = min(POINTS, max(FEWEST_POINTS, math.isqrt(PIXELS // size)))
    axes = [_axis(codes[:, d], points) for d in used.tolist()]
    bases = _bases(space, codes, some.labels, SHEETS if space.dim > 2 else 1)
    sheets = [space.decoded(_grid(base, used, axes), _rows_of(row, len(axes[0]) ** len(axes))) for _, base, row in bases]
    low, high = _limits(torch.cat([x.flatten(), *(sheet.flatten() for sheet in sheets)]))
    placed = codes[:, used] if len(used) > 1 else torch.stack([codes[:, 0], _heights(codes[:, 0])], 1)
    names = [f"{space.site}[{d}]" for d in used.tolist()]
    content = {
        "axes": [[round(axis[0].item(), 4), round(axis[-1].item(), 4)] for axis in axes] + [[-1.0, 1.0]] * (2 - len(axes)),
        "columns": len(axes[0]),
        "rows": len(axes[1]) if len(axes) > 1 else 1,
        "names": names,
        "shape": list(shape) if shape else [1, size],
        "images": shape is not None,
        "limits": [low, high],
        "sheets": [
            {"name": name, "at": [round(v, 3) for v in base[used].tolist()], "sheet": _sheet(sheet, len(axes[0]), shape, low, high)}
            for (name, base, _), sheet in zip(bases, sheets, strict=True)
        ],
        "codes": [[round(v, 3) for v in row] for row in placed.tolist()],
        "colors": list(TEN),
        "labels": some.labels.tolist() if some.labels is not None else None,
        "data": _sheet(x, COLUMNS, shape, low, high),
        "data_columns": COLUMNS,
    }
    return Atlas(content, names, space.site, space.dim, len(codes), points)


def _bases(space: LatentSpace, codes: Tensor, labels: Tensor | None, size: int) -> list[tuple[str, Tensor, int]]:
    """Where the other dimensions stand: at the prior's mean, and at data of different labels. Name, z, and the row."""
    found = [("the prior's mean", space.prior_mean(), 0)]
    seen: set[int] = set()
    for row in range(len(codes)):
        label = int(labels[row]) if labels is not None else row
        if len(found) < size and label not in seen:
            seen.add(label)
            found.append((f"datum {row}" + (f", label {label}" if labels is not None else ""), codes[row], row))
    return found[:size]


def _axis(values: Tensor, points: int) -> Tensor:
    """Evenly spaced points that cover the codes of one dimension."""
    low, high = values.min().item(), values.max().item()
    middle, half = (low + high) / 2, SPAN * max((high - low) / 2, 1e-3)
    return torch.linspace(middle - half, middle + half, points, dtype=torch.float64)


def _grid(base: Tensor, used: Tensor, axes: list[Tensor]) -> Tensor:
    """z of every point, (rows columns, D), from the top left: the first dimension grows to the right, the second upwards."""
    points = len(axes[0])
    z = base.repeat(points ** len(axes), 1)
    z[:, used[0]] = axes[0].repeat(points ** (len(axes) - 1))
    if len(axes) > 1:
        z[:, used[1]] = axes[1].flip(0).repeat_interleave(points)
    return z


def _heights(values: Tensor) -> Tensor:
    """Of a single dimension: from -0.9 to 0.9 by rank, so that no point hides another."""
    return 1.8 * values.argsort(stable=True).argsort().double() / max(1, len(values) - 1) - 0.9


def _rows_of(row: int, size: int) -> Tensor:
    return torch.full((size,), row)


def _event_image(x: Tensor) -> tuple[int, int] | None:
    return (x.shape[1], x.shape[2]) if x.dim() == 3 else None


def _limits(values: Tensor) -> tuple[float, float]:
    """[0, 1] for grey values in it, else the range of the values."""
    low, high = values.min().item(), values.max().item()
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, max(high, low + 1e-9))


def _sheet(values: Tensor, columns: int, shape: tuple[int, int] | None, low: float, high: float) -> str:
    """Values of many data as bytes: images side by side in a PNG, as a data URI; rows of numbers one after another, in base64."""
    scaled = ((values.reshape(len(values), -1) - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    if shape is None:
        return base64.b64encode(scaled.tobytes()).decode()
    rows = math.ceil(len(scaled) / columns)
    sheet = np.zeros((rows * columns, *shape), dtype=np.uint8)
    sheet[: len(scaled)] = scaled.reshape(-1, *shape)
    whole = sheet.reshape(rows, columns, *shape).transpose(0, 2, 1, 3).reshape(rows * shape[0], columns * shape[1])
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
