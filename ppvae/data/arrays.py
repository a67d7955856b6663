"""What counts as an array, and how rows of it are read: tensors and arrays in memory, memory maps row by row."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae.data.tree import Leaf
from ppvae.errors import DataError

CHUNK_ELEMENTS = 1 << 22


def accepted(value: Any, where: str) -> Leaf:
    """A tensor, or a memory map left on disk, from what the user handed in. Nothing is copied that need not be.

    Raises:
        DataError: not an array, not numbers, or numbers that torch cannot hold.
    """
    if isinstance(value, Tensor):
        return _accepted_tensor(value, where)
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            "needed plain numbers, and a masked array came",
            where=where,
            mend=["drop the masked rows: x[~x.mask.any(axis=1)].data", "fill them: x.filled(value)"],
        )
    if not isinstance(value, np.ndarray) and hasattr(value, "__array__"):
        value = np.asarray(value)  # a data frame of numbers
    if not isinstance(value, np.ndarray):
        raise DataError(
            f"needed an array or a tensor, and {_a(type(value).__name__)} came",
            where=where,
            mend=["np.asarray(x, dtype=np.float32)", "x.toarray() if it is a sparse matrix"],
        )
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8 or value.dtype == np.uint64:
        raise DataError(
            f"needed numbers, and an array of dtype {value.dtype} came",
            where=where,
            mend=["name the type: np.asarray(x, dtype=np.float32)", "leave out the columns that are not numbers"],
        )
    return value if isinstance(value, np.memmap) else _tensor(value)


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _accepted_tensor(value: Tensor, where: str) -> Tensor:
    if value.layout != torch.strided:
        raise DataError(f"needed a dense tensor, and {value.layout} came", where=where, mend="x.to_dense()")
    if value.is_complex() or value.is_quantized or value.dtype == torch.uint64:
        raise DataError(
            f"needed real numbers, and a tensor of dtype {value.dtype} came",
            where=where,
            mend=["x.to(torch.float32)", "torch.view_as_real(x) if it is complex"],
        )
    value = value.detach()
    return value.long() if value.dtype in (torch.uint16, torch.uint32) else value


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of the array's numbers. Shares memory where torch allows it."""
    dtype = array.dtype.newbyteorder("=")
    if dtype in (np.uint16, np.uint32):
        dtype = np.dtype(np.int64)  # torch's own have next to no operations
    array = array.astype(dtype, copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(array))  # torch refuses negative strides


def as_slice(index: Tensor) -> slice | None:
    """The slice that says the same as ``index`` (B,), where there is one: it costs no copy and reads a file in one go."""
    if not len(index):
        return slice(0, 0)
    start, count = int(index[0]), len(index)
    if int(index[-1]) - start != count - 1 or not bool((index[1:] - index[:-1] == 1).all()):
        return None
    return slice(start, start + count)


def read(source: Leaf, index: Tensor) -> Tensor:
    """Rows ``index`` (B,) of ``source`` as a tensor (B, *event). Of a memory map only these rows are read."""
    rows = as_slice(index)
    if isinstance(source, Tensor):
        return source[index] if rows is None else source[rows]
    found = _tensor(np.array(source[index.numpy() if rows is None else rows]))
    _let_go(source)
    return found


def _let_go(source: np.ndarray[Any, Any]) -> None:
    """Have a file's pages counted as this process's no longer: they stay in the system's cache, and the whole file may be larger than
    the memory that the process may use. Not for a private map, whose changes would go with its pages."""
    file, mode = getattr(source, "_mmap", None), getattr(source, "mode", None)
    if file is not None and mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def chunks(num_data: int, event_size: int) -> list[Tensor]:
    """Consecutive row numbers in pieces that fit in memory whatever the size of the whole."""
    rows = max(1, CHUNK_ELEMENTS // max(1, event_size))
    return [torch.arange(start, min(start + rows, num_data), dtype=torch.int64) for start in range(0, num_data, rows)]


def is_float(source: Leaf) -> bool:
    """Whether the stored numbers are floating point."""
    return source.is_floating_point() if isinstance(source, Tensor) else source.dtype.kind == "f"
