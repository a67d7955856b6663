"""Files of a run: written so that the old content or the new one is there at any moment; read as files that anyone may have made."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from ppvae.errors import RunError

# Where room is not what is missing.
NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
TEMPORARY = ".tmp-"
# What JSON may hold: a record of ours is far below, and the worst that keeps within them is read in a second and 200 MB.
MOST_BYTES = 16 << 20
MOST_CONTAINERS = 300_000
MOST_VALUES = 2_000_000


def write_atomically(path: Path, content: bytes) -> None:
    """Write, fsync, rename, fsync the directory: ``path`` holds the old content or the new one at any moment.

    Raises:
        RunError: The disk is full or the folder cannot be written; the old content stands.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        make_folder(path.parent)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error, len(content)) from error


def make_folder(folder: Path) -> None:
    """A folder and those above it, each with its entry on the disk.

    Raises:
        OSError: It cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _sync(folder.parent)


def check_room(folder: Path, needed: int) -> None:
    """A trial write: reserve so many bytes in a folder, and give them back.

    Raises:
        RunError: The folder cannot be written, or has no room; nothing is left behind.
    """
    trial = folder / f"trial{TEMPORARY}{os.getpid()}"
    try:
        make_folder(folder)
        try:
            with open(trial, "wb") as file:
                file.write(b"\0")
                file.flush()
                _reserve(file.fileno(), max(needed, 1))
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(trial)
    except OSError as error:
        raise unwritable(folder, error, needed) from error


def little_room(folder: Path, needed: int) -> str:
    """What to say where less than twice the needed bytes are free in a folder; empty where all is well, or nobody knows. A hint: other
    processes write too, and what is saved is safe without it."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"little room in {folder}: {needed:,} bytes needed, {free:,} bytes free, less than twice that" if free < 2 * needed else ""


def remove(path: Path) -> None:
    """Delete a file, if it is there.

    Raises:
        RunError: It cannot be deleted.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise RunError(f"cannot delete {path}: {error.strerror}", mend="what has been saved stands") from error


def sweep(folder: Path, *prefixes: str) -> None:
    """Delete what a process that died while it wrote has left of the files whose names begin so; by whoever holds the folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY in path.name and path.name.startswith(prefixes):
            remove(path)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        RunError: It is larger, or no regular file.
        OSError: It cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe would wait for ever
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise RunError(f"{path} is no regular file")
        if about.st_size > most:
            raise RunError(f"{path} is damaged: {about.st_size:,} bytes, expected at most {most:,}")
        return file.read(most + 1)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, atomically; floats keep every bit."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What ``write_json`` writes."""
    return (json.dumps(value, indent=1) + "\n").encode()


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        RunError: It is missing, no JSON, or more than any record of ours.
    """
    return parsed(read_record(path), path)


def read_record(path: Path) -> bytes:
    """The bytes of a record of a run.

    Raises:
        RunError: It is missing, cannot be read, or is larger than any record of ours.
    """
    try:
        return read_bytes(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing", mend="is this a run folder? `ppvae train --out FOLDER` makes one") from error
    except (OSError, MemoryError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def parsed(content: bytes, path: Path) -> Any:
    """The value of JSON text.

    Raises:
        RunError: It is no JSON, or more than any record of ours.
    """
    if content.count(b"{") + content.count(b"[") > MOST_CONTAINERS or content.count(b",") > MOST_VALUES:
        raise RunError(f"{path} cannot be read: it holds more values than any record of ppvae's")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that reserves nothing
            raise


def unwritable(path: Path, error: OSError, needed: int) -> RunError:
    """What is raised where so many bytes cannot be written: path, needed and free bytes."""
    if error.errno in NO_PLACE:
        return RunError(f"{path} cannot be written: {error.strerror}", mend="choose another folder")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    try:
        free = f"{shutil.disk_usage(there).free:,} bytes free in {there}"
    except OSError:
        free = f"free space of {there} unknown"
    return RunError(
        f"cannot write {path}: {error.strerror or error}",
        where=f"{needed:,} bytes needed, {free}",
        mend="free space or choose another folder; what was there before stands",
    )
