"""Parquet tables. Needs pyarrow, the extra ``parquet``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ppvae.data.tables import Table
from ppvae.errors import DataError

SUFFIXES = (".parquet", ".pq")


def read_parquet(path: Path) -> Table:
    """A table with the types that it declares; columns of several types come as the smallest that holds them all, empty cells as nan.

    Raises:
        DataError: pyarrow is not there, the file is damaged, or a column holds neither numbers nor text.
    """
    try:
        pyarrow, parquet, types = (import_module(name) for name in ("pyarrow", "pyarrow.parquet", "pyarrow.types"))
    except ImportError as error:
        raise DataError(
            "needed pyarrow to read Parquet files, and it is not installed", where=str(path), mend="pip install 'ppvae[parquet]'"
        ) from error
    try:
        found = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"needed a Parquet file, and it cannot be read ({str(error).splitlines()[0]})", where=str(path), mend="copy it again"
        ) from error
    numbers: list[np.ndarray[Any, Any]] = []
    of: list[int] = []
    texts: dict[int, list[str | None]] = {}
    for place, (name, column) in enumerate(zip(found.column_names, found.columns, strict=True)):
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        if types.is_string(kind) or types.is_large_string(kind):
            texts[place] = column.to_pylist()
        elif types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
            numbers.append(column.to_numpy().astype(np.float64) if column.null_count else column.to_numpy())
            of.append(place)
        else:
            problem = f"needed columns of numbers or text, and {name!r} holds {column.type}"
            raise DataError(problem, where=str(path), mend="leave it out of the file")
    dtype = np.result_type(*numbers) if numbers else np.dtype(np.float32)
    stacked = np.stack([column.astype(dtype) for column in numbers], 1) if numbers else np.empty((found.num_rows, 0), dtype)
    return Table(list(found.column_names), stacked, of, texts, f"{dtype} columns" if numbers else "no columns of numbers")
