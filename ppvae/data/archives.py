"""Members of zip and tar files, read in memory: nothing is ever unpacked to the disk, and no more is read than was allowed."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from ppvae.errors import DataError, in_a_line

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 2_000_000
MAX_BYTES = 1 << 33  # unpacked, of all members together
MAX_MEMBER_BYTES = 1 << 28


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive."""
    return path.name.lower().endswith(SUFFIXES)


def members(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in an archive whose name ends in one of ``suffixes``, in the archive's order.

    Raises:
        DataError: it is damaged or encrypted; a member has an absolute name, one with ``..``, or is a link or a device; it unpacks to
            more than 8 GiB in all, or a member to more than 256 MiB.
    """
    total = 0
    try:
        for number, (name, content) in enumerate(_zipped(path) if path.name.lower().endswith(".zip") else _tarred(path)):
            if number >= MAX_MEMBERS:
                raise _too_large(path, f"more than {MAX_MEMBERS:,} members")
            with content as stream:
                if not name.lower().endswith(suffixes):
                    continue
                found = stream.read(MAX_MEMBER_BYTES + 1)  # what the header says of its size is not believed
            total += len(found)
            if len(found) > MAX_MEMBER_BYTES or total > MAX_BYTES:
                raise _too_large(path, f"{name} unpacks to more than {MAX_MEMBER_BYTES:,} bytes, or all members to {MAX_BYTES:,}")
            yield name, found
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        said = in_a_line(error)
        raise DataError(f"needed a whole archive, and it does not unpack ({said})", where=str(path), mend="fetch it again") from error


def _zipped(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _check_name(info.filename, path)
            kind = info.external_attr >> 28  # of a Unix mode: 8 a file, 4 a folder, 10 a link; 0 where none was kept
            if kind not in (0, 4, 8):
                raise _refused(path, info.filename, "a link or a device")
            if not info.is_dir():
                yield info.filename, archive.open(info)


def _tarred(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            _check_name(info.name, path)
            if info.isdir():
                continue
            stream = archive.extractfile(info) if info.isreg() else None
            if stream is None:
                raise _refused(path, info.name, "a link or a device")
            yield info.name, stream


def _check_name(name: str, path: Path) -> None:
    plain = name.replace("\\", "/")
    if not plain:
        raise _refused(path, name, "no name")
    if plain.startswith("/") or plain[1:2] == ":" or ".." in PurePosixPath(plain).parts or "\0" in name:
        raise _refused(path, name, "a name that leads out of the folder")


def _refused(path: Path, name: str, what: str) -> DataError:
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    return DataError(f"needed plain files, and a member with {what} came: {shown!r}", where=str(path), mend="get the archive elsewhere")


def _too_large(path: Path, what: str) -> DataError:
    return DataError(f"the archive is too large to be read: {what}", where=str(path), mend="unpack what you need, and load that folder")
