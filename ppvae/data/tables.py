"""A table's columns to data: numbers side by side, one column as labels."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppvae.errors import DataError

Array = np.ndarray[Any, Any]
Label = str | int | None


@dataclass(frozen=True)
class Table:
    """What was read: numbers (N, D), nan where a cell is empty, and the columns that are text.

    Attributes:
        names: Of all columns, in order.
        numbers: (N, D), the columns that are numbers.
        of: Which columns those are.
        texts: Column -> (N,), the others; None where a cell is empty.
        how: What was found out on the way, in words.
    """

    names: list[str]
    numbers: Array
    of: list[int]
    texts: dict[int, list[str | None]]
    how: str


def with_labels(table: Table, label: Label, path: Path) -> tuple[Array, Array | None, str]:
    """x (N, D), labels (N,) or None, and what was found out.

    Raises:
        DataError: there is no such column, a label is empty, another column is text, or nothing but the labels is left.
    """
    column = None if label is None else _column(table, label, path)
    other = next((number for number in table.texts if number != column), None)
    if other is not None:
        first = next((text for text in table.texts[other] if text is not None), "")
        raise DataError(
            f"needed numbers, and column {_shown(table, other)} holds text, first {first!r}",
            where=str(path),
            mend=_remedies(first, table.names[other], column is None),
        )
    if column is None:
        return table.numbers, None, table.how
    keep = [place for place, number in enumerate(table.of) if number != column]
    if not keep:
        raise DataError("needed a column of numbers beside the labels, and there is none", where=str(path))
    labels, told = _numbered(table, column, path)
    return table.numbers[:, keep], labels, f"{table.how}, labels from {table.names[column]!r}{told}"


def _remedies(text: str | None, name: str, free: bool) -> list[str]:
    if re.fullmatch(r"[-+]?\d+,\d+", text or ""):
        return ["write decimal points, not commas"]
    return [f"make it the labels: labels={name!r}" if free else "leave that column out of the file", "number its values in the file"]


def _numbered(table: Table, column: int, path: Path) -> tuple[Array, str]:
    """Labels as whole numbers: as they are, or texts in their sorted order."""
    if column in table.texts:
        texts = table.texts[column]
        _refuse_empty([text is None for text in texts], table, column, path)
        classes, numbers = np.unique(np.array(texts, dtype=str), return_inverse=True)
        shown = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:4])) + (", ..." if len(classes) > 4 else "")
        return numbers.astype(np.int64), f": {shown}"
    values = table.numbers[:, table.of.index(column)]
    _refuse_empty(list(np.isnan(values)) if values.dtype.kind == "f" else [], table, column, path)
    return values, ""  # fractions are refused where labels are checked


def _refuse_empty(empty: list[bool], table: Table, column: int, path: Path) -> None:
    if any(empty):
        raise DataError(
            f"needed a label in each row, and {sum(empty):,} are empty",
            where=f"{path}, row {empty.index(True)}, column {_shown(table, column)}",
            mend="leave those rows out of the file",
        )


def _column(table: Table, label: str | int, path: Path) -> int:
    """The number of the column that is meant."""
    if isinstance(label, int) and -len(table.names) <= label < len(table.names):
        return label % len(table.names)
    if isinstance(label, str) and label in table.names:
        return table.names.index(label)
    near = difflib.get_close_matches(str(label), table.names, n=1)
    shown = ", ".join(table.names[:8]) + (", ..." if len(table.names) > 8 else "")
    raise DataError(
        f"needed the name or number of a column for labels, and {label!r} came",
        where=str(path),
        mend=[f"did you mean {near[0]!r}?" if near else "", f"columns: {shown}"],
    )


def _shown(table: Table, column: int) -> str:
    return f"{column} ({table.names[column]!r})"
