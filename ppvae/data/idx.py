"""IDX files, plain or gzipped: two zero bytes, a type, a number of dimensions, big-endian sizes, then the values.

References:
    LeCun, Cortes, Burges, The MNIST database of handwritten digits, section "File formats".
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ppvae.data.archives import MAX_BYTES
from ppvae.errors import DataError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CHUNK_BYTES = 1 << 24
AGAIN = "fetch the file again: it was cut short or damaged on its way"


def read_idx(path: str | Path) -> np.ndarray[Any, Any]:
    """The array of an IDX file, in this machine's byte order.

    Raises:
        DataError: it is no IDX file, or its length is not what its header says.
    """
    path = Path(path)
    content = _content(path, 4 + 4 * 255)  # the longest header
    dtype, shape = _header(content, path)
    if 0 in shape:
        raise DataError(f"needed an array with something in it, and one of shape {shape} came", where=str(path), mend=AGAIN)
    start = 4 + 4 * len(shape)
    needed = start + math.prod(shape) * dtype.itemsize
    if needed > MAX_BYTES:
        raise DataError(
            f"the array of shape {shape} that its header tells of would take {needed:,} bytes of memory, more than {MAX_BYTES:,}",
            where=str(path),
            mend="np.save it in parts that fit: .npy files stay on the disk",
        )
    content = _content(path, needed + 1)
    if len(content) != needed:
        raise DataError(
            f"needed {needed:,} bytes for an array of shape {shape}, and {'more' if len(content) > needed else f'{len(content):,}'} came"
            + (", once unpacked" if path.suffix == ".gz" else ""),
            where=str(path),
            mend=AGAIN,
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _content(path: Path, limit: int) -> bytes:
    """The first bytes, unpacked: no more than the header tells, however much a gzip file unpacks to."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else file as stream:
                found = io.BytesIO()
                while chunk := stream.read(min(CHUNK_BYTES, limit - found.tell())):
                    found.write(chunk)
                return found.getvalue()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"needed a whole gzip file, and it does not unpack ({error})", where=str(path), mend=AGAIN) from error


def _header(content: bytes, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] == 0:
        raise DataError(
            "needed an IDX file, which begins with 00 00, a type and a number of dimensions, "
            f"and the first bytes are {magic.hex(' ') or 'missing'}",
            where=str(path),
            mend=["hand in an array as .npy or .npz", AGAIN],
        )
    if len(content) < 4 + 4 * magic[3]:
        raise DataError(f"needed {4 + 4 * magic[3]} bytes of header, and {len(content)} came", where=str(path), mend=AGAIN)
    return np.dtype(TYPES[magic[2]]), tuple(int(size) for size in np.frombuffer(content, ">u4", magic[3], offset=4))
