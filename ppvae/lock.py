"""A run folder belongs to one process. Nothing here imports torch: who may not train is told at once."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from ppvae.errors import LockedError
from ppvae.storage import make_folder, unwritable

LOCK, HOLDER = ".lock", ".lock-holder"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the kernel lets go when it dies. A folder that is made for it and stays empty is gone afterwards.

    Raises:
        LockedError: Another process holds it, named by host and pid.
        RunError: The folder cannot be made, or has no room.
    """
    lock, name = filelock.FileLock(folder / LOCK, timeout=0), f"process {os.getpid()} on {socket.gethostname()}"
    made = not folder.exists()
    try:
        make_folder(folder)
        lock.acquire()
        (folder / HOLDER).write_text(name)
    except filelock.Timeout as error:
        raise _held(folder) from error
    except OSError as error:
        lock.release()
        raise unwritable(folder, error, len(name)) from error
    try:  # what goes wrong inside is not about the lock
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds what somebody else put there, or is no longer ours to write to
            _leave_nothing(folder, made)
        lock.release()


def _leave_nothing(folder: Path, made: bool) -> None:
    """Take the lock's files out of a folder in which nothing was begun, while it is still held."""
    if {path.name for path in folder.iterdir()} != {LOCK, HOLDER}:
        return
    (folder / HOLDER).unlink()
    (folder / LOCK).unlink()
    if made:
        folder.rmdir()


def refuse_held(folder: Path) -> None:
    """Raise where another process holds a folder; nothing is written, and whoever takes the lock finds out again.

    Raises:
        LockedError: as ``locked``.
    """
    if not (folder / LOCK).exists():
        return
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise _held(folder) from error
    except OSError:
        return
    lock.release()


def _held(folder: Path) -> LockedError:
    holder = folder / HOLDER
    name = holder.read_text(errors="replace")[:200] if holder.is_file() else ""
    by = name if name and name.isprintable() else "another process"
    return LockedError(f"{folder} is held by {by}", mend="wait for it, or train into another folder")
