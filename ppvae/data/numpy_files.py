"""NumPy's files: ``.npy``, and ``.npz`` with ``x`` and perhaps ``y``. Left on disk where they can be; never unpickled."""

from __future__ import annotations

import errno
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ppvae.data.archives import MAX_BYTES
from ppvae.errors import DataError

Array = np.ndarray[Any, Any]
LABELS = ("y", "labels")
CHUNK_BYTES = 1 << 24
ENCRYPTED = 1  # of a member's flags
# What numpy and zipfile raise over a damaged file; a header is read as Python, and may not even be that.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    NotImplementedError,
    OverflowError,
)


def read_npy(path: Path) -> Array:
    """A memory map of the array.

    Raises:
        DataError: no ``.npy`` file, a damaged one, or one with Python objects.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")  # np.load would try other forms as well, and leaves a file open
    except (*DAMAGED, OSError) as error:
        raise _refusal(path, error) from error


def read_npz(path: Path) -> tuple[Array, Array | None]:
    """``x``, or the only array, and ``y`` or ``labels`` where there are some.

    Raises:
        DataError: no ``.npz`` file, a damaged one, one with Python objects, or one whose arrays do not tell which is meant.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            labels = next((name for name in LABELS if name in members), None)
            others = [name for name in members if name != labels]
            if "x" not in members and len(others) != 1:
                raise DataError(
                    f"needed an array named x, and {', '.join(members) or 'nothing'} came",
                    where=str(path),
                    mend=["np.savez(path, x=x, y=labels)", 'hand in the array: Data.from_arrays(np.load(path)["..."])'],
                )
            x = _member(archive, members["x" if "x" in members else others[0]], path)
            return x, None if labels is None else np.array(_member(archive, members[labels], path))
    except (*DAMAGED, OSError) as error:
        raise _refusal(path, error) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    """A memory map where the member lies in the archive as it is, else the array."""
    if info.flag_bits & ENCRYPTED:
        raise zipfile.BadZipFile("it is encrypted")  # zipfile's own word for it is a RuntimeError
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > MAX_BYTES:
        raise DataError(
            f"the array {info.filename!r} would take {info.file_size:,} bytes of memory unpacked, more than {MAX_BYTES:,}",
            where=str(path),
            mend="np.savez without compression, or np.save: the array then stays on the disk",
        )
    with archive.open(info) as stream:
        if info.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(stream, allow_pickle=False)
        while stream.read(CHUNK_BYTES):  # to the end, where its checksum is compared: a memory map would not
            pass
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))  # of the local header: the archive's directory may hold others
        file.seek(info.header_offset + 30 + name + extra)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if 0 in shape:
            return np.empty(shape, dtype)  # there is nothing to map
        return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape, order="F" if fortran else "C")


def _refusal(path: Path, error: Exception) -> Exception:
    """What to raise: the error itself where it tells of the disk, or has its words already."""
    if isinstance(error, DataError) or (
        isinstance(error, OSError) and error.errno in (errno.EACCES, errno.ENOENT, errno.EIO, errno.EISDIR)
    ):
        return error
    return DataError(
        f"needed arrays of numbers in NumPy's form, and the file cannot be read as such ({error})",
        where=str(path),
        mend=["np.save(path, np.asarray(x, dtype=np.float32))", "copy the file again, if it was cut short"],
    )
