"""One look at every value, once, in chunks: the range, and the first value that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.data.arrays import chunks, is_float, read
from ppvae.data.tree import Leaf
from ppvae.errors import DataError

EXACT_IN_FLOAT32 = 1 << 24


@dataclass(frozen=True)
class Range:
    """What the values of an array are like."""

    minimum: float
    maximum: float
    integral: bool  # every value is a whole number


@dataclass(frozen=True)
class Found:
    """The first value that fits a condition, and how many fit."""

    count: int
    row: int
    column: str
    value: str


def scan(source: Leaf, where: str) -> Range:
    """The range of ``source`` (N, *event).

    Raises:
        DataError: a value is NaN or infinite.
    """
    low, high, integral = math.inf, -math.inf, True
    for index in chunks(len(source), math.prod(source.shape[1:])):
        values = _comparable(read(source, index))
        smallest, largest = (float(bound) for bound in torch.aminmax(values))
        if not (math.isfinite(smallest) and math.isfinite(largest)):  # aminmax passes NaN on
            raise _not_finite(source, where)
        low, high = min(low, smallest), max(high, largest)
        integral = integral and (not values.is_floating_point() or bool((values == values.floor()).all()))
    return Range(low, high, integral)


def first(source: Leaf, condition: Callable[[Tensor], Tensor]) -> Found:
    """Where ``condition`` holds first, in rows and columns of ``source`` as it came, and how often. It must hold somewhere."""
    count, place, value = 0, (0, ""), ""
    for index in chunks(len(source), math.prod(source.shape[1:])):
        values = _comparable(read(source, index))
        hits = condition(values)
        if count == 0 and bool(hits.any()):
            at = tuple(int(i) for i in hits.nonzero()[0])
            column = ", ".join(map(str, at[1:]))
            place = (int(index[0]) + at[0], f"({column})" if len(at) > 2 else column)
            value = f"{values[at].item():{'g' if values.is_floating_point() else 'd'}}"
        count += int(hits.sum())
    return Found(count, *place, value)


def check_exact(source: Leaf, seen: Range, where: str) -> None:
    """Whole numbers survive the step to float32.

    Raises:
        DataError: some do not.
    """
    if is_float(source) or max(-seen.minimum, seen.maximum) <= EXACT_IN_FLOAT32:
        return
    found = first(source, lambda values: (values > EXACT_IN_FLOAT32) | (values < -EXACT_IN_FLOAT32))
    raise DataError(
        f"needed whole numbers that float32 can hold (up to 16,777,216), and {found.count:,} larger came; the first is {found.value}",
        where=at(found, where),
        mend=["hand in float64: x.astype(np.float64)", "a tuple, (x,), keeps integers as they are"],
    )


def at(found: Found, where: str) -> str:
    """The place of ``found`` for an error's ``where``."""
    return f"{where}, row {found.row}" + (f", column {found.column}" if found.column else "")


def _comparable(values: Tensor) -> Tensor:
    if values.dtype == torch.bool:
        return values.to(torch.uint8)
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _not_finite(source: Leaf, where: str) -> DataError:
    found = first(source, lambda values: ~values.isfinite())
    plural = "s that are" if found.count != 1 else " that is"
    return DataError(
        f"needed finite numbers, and {found.count:,} value{plural} not finite came; the first is {found.value}",
        where=at(found, where),
        mend=[
            "leave out such rows: x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]",
            "fill them in: np.nan_to_num(x, nan=0.0)",
            *(['declare NaN to be missing, for a model that takes a mask: missing="mask"'] if found.value == "nan" else []),
        ],
    )
