"""Where a command's words go: results to stdout, everything else to stderr; or one JSON object on stdout and all words on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

_collected: ContextVar[dict[str, Any] | None] = ContextVar("collected", default=None)


def say(text: str) -> None:
    """Progress and remarks; on a terminal in place of a live line that may stand there."""
    wipe = "\r\x1b[2K" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else ""
    print(f"{wipe}{_fitted(text, sys.stderr)}", file=sys.stderr, flush=True)


def tell(name: str, text: str, value: Any) -> None:
    """A result: a sentence to read, or under ``--json`` the value ``name`` of the object."""
    collected = _collected.get()
    if collected is None:
        print(_fitted(text, sys.stdout), flush=True)
        return
    say(text)
    collected[name] = value


def _fitted(text: str, stream: TextIO) -> str:
    """On a terminal, lines broken between words; anywhere else a line stays a line."""
    if not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return "\n".join(line if len(line) <= columns else _broken(line, columns) for line in text.splitlines())


def _broken(line: str, columns: int) -> str:
    """What goes on in further lines stands below the second column, where a name comes first, else two to the right."""
    named = re.match(r"\s*(\S+\s{2,}|or: )(?=\S)", line)  # the second remedy stands below the first
    indent = named.end() if named and named.end() <= columns // 2 else 2
    return textwrap.fill(
        line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )


@contextmanager
def as_json(wanted: bool) -> Iterator[dict[str, Any]]:
    """Collect what is told; empty where words were wanted."""
    if not wanted:
        yield {}
        return
    found: dict[str, Any] = {}
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def dumps(value: Any) -> str:
    """Strict JSON: what JSON has no number for is a string, "nan", "inf" or "-inf"."""
    return json.dumps(_strict(value), indent=1, allow_nan=False, ensure_ascii=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(part) for part in value]
    return value
