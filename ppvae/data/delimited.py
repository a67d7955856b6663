"""Text tables, ``.csv`` and ``.tsv``: delimiter and header found out and told; an error has its line and column."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from ppvae.data.tables import Table
from ppvae.errors import DataError

SUFFIXES = (".csv", ".tsv")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "blank"}
MISSING = {"", "NA", "N/A", "na", "n/a", "NaN", "nan", "NAN", "null", "NULL", "None", "?"}
LOOKED_AT = 50  # rows that decide the delimiter
EXACT_IN_FLOAT32 = 1 << 24

Rows = list[list[str]]


def read_delimited(path: Path, delimiter: str | None = None) -> Table:
    """A text table, UTF-8, cells quoted by ``"`` where they hold the delimiter.

    There is a header where the first row has no number, or text over a column of numbers, or counts 0, 1, 2, ... An unnamed first column
    that counts the rows is left out. Whole numbers come as int64, others as float32, as networks want them, or float64 where they exceed
    its range; empty cells, ``NA``, ``nan``, ``null`` and ``?`` are nan.

    Raises:
        DataError: it is no text, has no rows, or its rows have unequal lengths; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"needed text in UTF-8, and byte {error.object[error.start]:#04x} came",
            where=f"{path}, line {error.object[: error.start].count(10) + 1}",
            mend="save the table as UTF-8",
        ) from error
    chosen = _sniffed(text) if delimiter is None else delimiter
    if chosen not in DELIMITERS:
        raise DataError(f"needed a delimiter, one character of {', '.join(map(repr, DELIMITERS))}, and {delimiter!r} came", where=str(path))
    rows, lines = _rows(text, chosen, path)
    has_header = _has_header(rows)
    names = [name.strip() for name in rows[0]] if has_header else [str(number) for number in range(len(rows[0]))]
    body = rows[has_header:]
    if not body:
        raise DataError("needed rows below the header, and there are none", where=str(path))
    table = _table(body, lines[has_header:], names, path)
    how = f"delimiter {DELIMITERS[chosen]}, {'a header' if has_header else 'no header'}"
    return Table(table.names, _narrow(table.numbers), table.of, table.texts, how + (", row numbers left out" if table.how else ""))


def is_number(cell: str) -> bool:
    """Whether a cell is a number, infinite ones included; an empty one is none."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.strip() not in MISSING


def _rows(text: str, delimiter: str, path: Path) -> tuple[Rows, list[int]]:
    """The rows and the lines that they end in; empty lines are left out."""
    rows: Rows = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if not row or row == [""]:
                continue
            if rows and len(row) != len(rows[0]):
                raise DataError(
                    f"needed {len(rows[0]):,} columns, as in line {lines[0]:,}, and {len(row):,} came",
                    where=f"{path}, line {reader.line_num}",
                    mend=["mend the line", "name the delimiter, if it is another: delimiter=';'"],
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"needed a table, and it cannot be read ({error})", where=f"{path}, line {reader.line_num}") from error
    if not rows:
        raise DataError("needed a table, and the file has no rows", where=str(path))
    return rows, lines


def _sniffed(text: str) -> str:
    """The delimiter under which the first rows have one length and most cells are numbers."""
    found = []
    head = "\n".join(text.splitlines()[:LOOKED_AT])
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(io.StringIO(head), delimiter=delimiter, skipinitialspace=True) if row]
        except csv.Error:
            continue
        widths = {len(row) for row in rows}
        if len(widths) == 1 and widths != {1}:
            cells = [cell.strip() for row in rows for cell in row]
            found.append((sum(is_number(cell) or cell in MISSING for cell in cells) / len(cells), widths.pop(), delimiter))
    if found:
        return max(found, key=lambda each: each[:2])[2]
    return max(DELIMITERS, key=lambda each: head.count(each) if each != " " else 0)  # of unequal rows: the error then tells the line


def _has_header(rows: Rows) -> bool:
    first = [cell.strip() for cell in rows[0]]
    if len(first) > 1 and first == [str(number) for number in range(len(first))]:
        return True
    named = [not is_number(cell) and cell not in MISSING for cell in first]
    below = [cell.strip() for cell in rows[1]] if len(rows) > 1 else []
    return (any(named) and all(name or not cell for name, cell in zip(named, first, strict=True))) or any(
        name and is_number(cell) for name, cell in zip(named, below, strict=False)
    )


def _table(rows: Rows, lines: list[int], names: list[str], path: Path) -> Table:
    """Columns of numbers and of text; a column is text where its first cell that is not empty is."""
    width = len(names)
    texts = [column for column in range(width) if _is_text(rows, column)]
    left_out = int(names[0] == "" and 0 not in texts and all(row[0].strip() == str(number) for number, row in enumerate(rows)))
    of = [column for column in range(left_out, width) if column not in set(texts)]
    whole = len(of) == width  # the usual case, without a copy of each row
    numbers = np.empty((len(rows), len(of)))
    for place, row in enumerate(rows):
        cells = row if whole else [row[column] for column in of]
        try:
            numbers[place] = [float(cell) for cell in cells]
        except ValueError:
            numbers[place] = [_number(cell, f"{path}, line {lines[place]}", names, of[i]) for i, cell in enumerate(cells)]
    stripped = {column: [row[column].strip() for row in rows] for column in texts}
    kept = {column: [None if cell in MISSING else cell for cell in cells] for column, cells in stripped.items()}
    return Table(names, numbers, of, kept, "left out" if left_out else "")


def _is_text(rows: Rows, column: int) -> bool:
    first = next((cell for row in rows if (cell := row[column].strip()) not in MISSING), None)
    return first is not None and not is_number(first)


def _number(cell: str, line: str, names: list[str], column: int) -> float:
    cell = cell.strip()
    if cell in MISSING:
        return math.nan
    if is_number(cell):
        return float(cell)
    shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
    raise DataError(
        f"needed a number, and {shown!r} came",
        where=f"{line}, column {column} ({names[column]!r})",
        mend=["mend the cell; an empty one, NA or nan is missing", "write decimal points, not commas" if "," in cell else ""],
    )


def _narrow(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int64 for whole numbers, else float32 where that holds them."""
    finite = numbers[np.isfinite(numbers)]
    largest = np.abs(finite).max() if len(finite) else 0.0
    if len(finite) == numbers.size and largest <= 2**53 and np.array_equal(numbers, np.floor(numbers)):
        return numbers.astype(np.int64)
    return numbers if largest > np.finfo(np.float32).max else numbers.astype(np.float32)
