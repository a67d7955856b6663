"""A batch: a tensor (N, *event), or a tuple or dict of tensors that share N. Counting, taking and repeating its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppvae.errors import ShapeError

Batch = Any  # Tensor | tuple[Tensor, ...] | dict[str, Tensor]; a recursive alias says no more to a reader


def tensors(x: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name: "x" for a lone one, position or key otherwise."""
    parts: dict[str, Any] = {"x": x}
    if isinstance(x, tuple | list):
        parts = {f"x[{i}]": part for i, part in enumerate(x)}
    elif isinstance(x, dict):
        parts = {f"x[{key!r}]": part for key, part in x.items()}
    wrong = next((f"{name} is of type {type(part).__name__}" for name, part in parts.items() if not isinstance(part, Tensor)), None)
    if wrong is None and parts:
        return parts
    raise ShapeError(
        f"a batch is a tensor, or a tuple or dict of tensors, and {wrong or 'nothing came'}",
        mend="torch.as_tensor(x), or ppvae.data.Data.of(x)",
    )


def observed_entries(x: Batch) -> Tensor | None:
    """Which entries are there, (N, *event), of data with missing ones: a dict ``{"x": values, "observed": mask}``; None of others."""
    return x["observed"] if isinstance(x, dict) and x.keys() == {"x", "observed"} else None


def num_data(x: Batch) -> int:
    """N, the leading dimension that all tensors of a batch share.

    Raises:
        ShapeError: They do not share one, or there is no row.
    """
    sizes = {name: tuple(part.shape) for name, part in tensors(x).items()}
    lengths = {shape[0] if shape else 0 for shape in sizes.values()}
    if len(lengths) != 1:
        raise ShapeError(f"the tensors of a batch must share their leading dimension, got {sizes}")
    n = lengths.pop()
    if n == 0:
        raise ShapeError(f"a batch needs at least one row, got {sizes}", mend="a single datum is x[None]")
    return n


def digest(x: Batch) -> str:
    """SHA-256 of the tensors of a batch, hex: of the bytes of a lone tensor, else of names, types and shapes too."""
    found = hashlib.sha256()
    parts = tensors(x)
    for name, part in parts.items():
        if len(parts) > 1:
            found.update(f"{name}{part.dtype}{tuple(part.shape)}".encode())
        found.update(part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def each(x: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a batch."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return {key: function(part) for key, part in x.items()}
    return tuple(function(part) for part in x)


def take(x: Batch, rows: Tensor | slice) -> Batch:
    """The rows of a batch."""
    return each(x, lambda part: part[rows])


def repeat(x: Batch, times: int) -> Batch:
    """The batch ``times`` times over, particle-major: (K N, *event)."""
    return each(x, lambda part: part.repeat(times, *[1] * (part.dim() - 1)))


def device_of(x: Batch) -> torch.device:
    """The device of a batch."""
    return next(iter(tensors(x).values())).device
