"""Text: a file of lines becomes tokens, lengths and a vocabulary, by characters or by words."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppvae.data.data import Data
from ppvae.errors import ArgumentError, DataError, MissingFileError, check_count

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
LEVELS = ("characters", "words")
SUFFIXES = (".txt", ".text")


def text(
    path: str | os.PathLike[str], *, level: str = "characters", max_length: int = 64, min_count: int = 1, max_vocabulary: int = 20_000
) -> Data:
    """The lines of a file, UTF-8, one a datum; empty ones are left out.

    Args:
        path: Of the file.
        level: ``characters``, or ``words``: what stands between white space.
        max_length: Longer lines are left out, told in ``origin``. The token of the end counts.
        min_count: Rarer tokens become ``<unknown>``.
        max_vocabulary: Of the most frequent tokens, the four special ones counted; others become ``<unknown>``.

    Returns:
        ``{"tokens": (N, T), "lengths": (N,)}``, integers. A row is the tokens of a line, then ``<end>`` (2), then ``<pad>`` (0) up to T,
        the longest; its length counts the end. ``<start>`` (1), which a decoder reads first, stands in no row. ``vocabulary`` is
        sorted by frequency after the special tokens. ``decoded`` makes lines of rows.

    Raises:
        MissingFileError: There is no such file.
        DataError: It is not UTF-8, or holds no line that is short enough.
        ArgumentError: No such level.
    """
    if level not in LEVELS:
        raise ArgumentError(f"level is one of {', '.join(LEVELS)}, got {level!r}")
    check_count("max_length", max_length, 2)
    check_count("min_count", min_count)
    check_count("max_vocabulary", max_vocabulary, len(SPECIAL) + 1)
    lines = [list(line) if level == "characters" else line.split() for line in _lines(Path(path))]
    kept = [line for line in lines if 0 < len(line) < max_length]
    if not kept:
        raise DataError(
            f"needed lines of less than {max_length} {level}, and none of {len(lines):,} came", where=str(path), mend="max_length=..."
        )
    counts = Counter(token for line in kept for token in line)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    vocabulary = SPECIAL + tuple(token for token in ranked[: max_vocabulary - len(SPECIAL)] if counts[token] >= min_count)
    number = {token: i for i, token in enumerate(vocabulary) if i >= len(SPECIAL)}
    tokens = torch.full((len(kept), max(map(len, kept)) + 1), PAD)
    for row, line in zip(tokens, kept, strict=True):
        row[: len(line) + 1] = torch.tensor([*(number.get(token, UNKNOWN) for token in line), END])
    x: dict[str, Tensor] = {"tokens": tokens, "lengths": torch.tensor([len(line) + 1 for line in kept])}
    left_out = f", {len(lines) - len(kept):,} longer lines left out" if len(kept) < len(lines) else ""
    told = f"{level}, vocabulary of {len(vocabulary):,}{left_out}"
    return Data.from_arrays(x, name=str(path), origin=told).with_vocabulary(vocabulary)


def decoded(tokens: Tensor, data: Data) -> list[str]:
    """Rows of tokens, (M, T), as lines, each up to its ``<end>``; ``data`` gives the vocabulary.

    Raises:
        DataError: The data have none, or a token is not in it.
    """
    words = data.vocabulary
    if not words or tokens.min() < 0 or tokens.max() >= len(words):
        raise DataError(
            f"needed tokens below {len(words)}, the size of the vocabulary, and {int(tokens.max())} came",
            where=data.name,
            mend="decoded(tokens, data) with the data that the tokens are of",
        )
    between = "" if data.origin.startswith("characters") else " "
    return [between.join(words[token] for token in _until_end(row)) for row in tokens.tolist()]


def _until_end(row: list[int]) -> list[int]:
    whole = row[: row.index(END)] if END in row else row
    return [token for token in whole if token not in (PAD, START)]


def _lines(path: Path) -> list[Any]:
    try:
        found = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError("needed a file of lines, and there is none", where=str(path), mend="mend the path") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"needed a file of lines in UTF-8, and it cannot be read as such ({error})", where=str(path)) from error
    return [line for line in (line.strip() for line in found.split("\n")) if line]
