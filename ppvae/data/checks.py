"""What arrays, labels and row numbers must be like before they become a data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppvae.data.arrays import accepted, is_float, read
from ppvae.data.scan import scan
from ppvae.data.tree import Leaf, Tree, is_leaf, map_leaves, named_leaves
from ppvae.errors import DataError


def checked_tree(value: Any, name: str) -> Tree:
    """The arrays of ``value`` as tensors and memory maps (N, ...) of one length.

    Raises:
        DataError: no array, no rows, a lone row, or unequal lengths.
    """
    places = named_leaves(value)
    if not places:
        raise DataError(f"needed at least one array, and an empty {type(value).__name__} came", where=name)
    leaves = iter([_checked_leaf(leaf, name + place, lone=is_leaf(value)) for place, leaf in places])
    tree = map_leaves(lambda _: next(leaves), value)
    lengths = [(place, len(leaf)) for place, leaf in named_leaves(tree)]
    if len({length for _, length in lengths}) > 1:
        raise DataError(
            f"needed arrays of one length, and {', '.join(f'{length:,} rows in {place}' for place, length in lengths)} came",
            where=name,
            mend="the first dimension counts the data: transpose or cut what differs",
        )
    return tree


def _checked_leaf(value: Any, where: str, *, lone: bool) -> Leaf:
    leaf = accepted(value, where)
    shape = tuple(leaf.shape)
    if leaf.ndim == 0 or (leaf.ndim == 1 and lone):
        raise DataError(
            f"needed an array of rows (N, ...), and one of shape {shape} came: is it one row, or a column of numbers?",
            where=where,
            mend=["one row of several numbers: x[None, :]", "rows of one number each: x[:, None]"],
        )
    if 0 in shape:
        raise DataError(f"needed at least one row and one column, and an array of shape {shape} came", where=where)
    return leaf


def checked_labels(labels: Any, num_data: int, name: str) -> Tensor:
    """Labels (N,) as integers.

    Raises:
        DataError: of another length or shape, or no whole numbers.
    """
    where = f"{name}, labels"
    leaf = accepted(labels, where)
    if leaf.ndim != 1 or len(leaf) != num_data:
        raise DataError(
            f"needed {num_data:,} labels, one a row, and an array of shape {tuple(leaf.shape)} came",
            where=where,
            mend=["cut x and labels alike", "labels.argmax(axis=1) if they are one-hot"] if leaf.ndim == 2 else "cut x and labels alike",
        )
    values = read(leaf, torch.arange(num_data, dtype=torch.int64))
    if is_float(values) and not scan(values, where).integral:
        raise DataError(
            f"needed whole numbers as labels, and {values.dtype} with fractions came",
            where=where,
            mend=["np.unique(labels, return_inverse=True)[1] numbers the classes", "real covariates go beside x: Data.of((x, covariates))"],
        )
    return values.long()


def row_numbers(rows: Tensor | slice, num_data: int, name: str) -> Tensor:
    """Rows asked for as integers (B,) in [0, N).

    Raises:
        DataError: no slice and no integers, or outside the data.
    """
    if isinstance(rows, slice):
        return torch.arange(*rows.indices(num_data), dtype=torch.int64)
    if not isinstance(rows, Tensor) or rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
        came = f"a tensor of shape {tuple(rows.shape)}, {rows.dtype}," if isinstance(rows, Tensor) else repr(rows)
        raise DataError(
            f"needed a slice or a tensor (B,) of row numbers, and {came} came", where=name, mend=["data[3:4]", "data[torch.tensor([3, 5])]"]
        )
    rows = rows.cpu()
    if rows.dtype == torch.bool:
        if len(rows) != num_data:
            raise DataError(f"needed a mask of {num_data:,} rows, and one of {len(rows):,} came", where=name)
        return rows.nonzero()[:, 0]
    rows = rows.long()
    outside = (rows < -num_data) | (rows >= num_data)
    if bool(outside.any()):
        raise DataError(f"needed row numbers below {num_data:,}, and {int(rows[outside][0]):,} came", where=name)
    return torch.where(rows < 0, rows + num_data, rows)
