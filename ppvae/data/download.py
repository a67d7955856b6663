"""A file from the network: whole and verified, or not there at all.

Bytes arrive in a file of another name, ``.partial``, which a later try goes on with. Only what has the expected SHA-256 gets the name
that others look for. One process downloads, others wait for it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ppvae.errors import DataError, MissingFileError

TRIES = 3
PAUSES = (1.0, 4.0)  # seconds after the first and the second failure
TIMEOUT = 30.0  # seconds without a byte
CHUNK_BYTES = 1 << 20
PARTIAL, LOCK = ".partial", ".lock"


@dataclass(frozen=True)
class Remote:
    """A file that is published: where, how many bytes, and their SHA-256, hex."""

    url: str
    size: int
    sha256: str


class _TryFailedError(Exception):
    """One try failed; the text says how."""


def fetched(remote: Remote, path: Path) -> Path:
    """``path``, after the file was downloaded to it if it was not there.

    Raises:
        MissingFileError: it could not be fetched in three tries.
        DataError: what came is another file, or there is no room for it.
    """
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + LOCK)):
        if not path.is_file():  # another process may have fetched it meanwhile
            partial = path.with_name(path.name + PARTIAL)
            _check_room(remote, partial, path)
            print(f"downloading {remote.url} ({remote.size / 1e6:,.1f} MB) to {path}", file=sys.stderr)
            _in_tries(remote, partial, path)
            os.replace(partial, path)
            _sync(path.parent)
    return path


def _in_tries(remote: Remote, partial: Path, path: Path) -> None:
    """Make ``partial`` the whole and verified file."""
    why, got = "", ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSES[attempt - 1])
        try:
            _continue(remote, partial)
        except _TryFailedError as error:
            why = str(error)
            continue
        found = sha256_of(partial)
        if found == remote.sha256:
            return
        partial.unlink()
        why, got = "another file came", found
    if got:
        raise DataError(
            f"needed the file of SHA-256 {remote.sha256}, and {TRIES} tries brought another; the last was {got}",
            where=f"{remote.url}, for {path}",
            mend=["fetch it by other means and put it there", "look whether a proxy or a login page answers in the host's place"],
        )
    raise MissingFileError(
        f"needed {remote.url}, and {TRIES} tries did not bring it: {why}",
        where=f"for {path} (expected SHA-256 {remote.sha256}, got none)",
        mend=["try again: what has arrived is kept, and the download goes on from there", "fetch it by other means and put it there"],
    )


def _continue(remote: Remote, partial: Path) -> None:
    """Fetch what ``partial`` lacks.

    Raises:
        _TryFailedError: the host refuses, or stops before the end. What came is kept.
    """
    here = partial.stat().st_size if partial.is_file() else 0
    if here > remote.size:
        partial.unlink()
        here = 0
    if here == remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"User-Agent": "ppvae", "Accept-Encoding": "identity"})
    if here:
        request.add_header("Range", f"bytes={here}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {here}-")
            if here and answer.status == 206 and not goes_on:
                partial.unlink()
                raise _TryFailedError("the host sent another range than was asked for")
            _receive(answer, partial, "ab" if goes_on else "wb", remote.size - (here if goes_on else 0))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the host's file ends before ours
            partial.unlink(missing_ok=True)
        raise _TryFailedError(f"HTTP status {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # of the disk, not of the network
        raise _TryFailedError(str(getattr(error, "reason", "") or error) or type(error).__name__) from error
    came = partial.stat().st_size
    if came < remote.size:
        raise _TryFailedError(f"the connection ended after {came:,} of {remote.size:,} bytes")


def _receive(answer: http.client.HTTPResponse, partial: Path, mode: str, lacking: int) -> None:
    """Write what comes: one byte more than is lacking at most, which is enough to see that it is another file."""
    with partial.open(mode) as file:
        left = lacking + 1
        while left and (chunk := answer.read(min(CHUNK_BYTES, left))):
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(remote: Remote, partial: Path, path: Path) -> None:
    lacking = remote.size - (partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(path.parent).free
    if free < lacking:
        raise DataError(
            f"needed {lacking:,} bytes of room for {path.name}, and {free:,} are free",
            where=str(path.parent),
            mend="make room, or name another folder in the variable PPVAE_DATA",
        )


def _sync(folder: Path) -> None:
    """Have the new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
