"""Polyphonic music as piano rolls: which of a piano's 88 keys sound in each frame.

In the form of Boulanger-Lewandowski, Bengio, Vincent (2012), Modeling temporal dependencies in high-dimensional sequences: JSON with the
parts ``train``, ``valid`` and ``test``, each a list of pieces, a piece a list of frames, a frame a list of MIDI numbers from 21 to 108.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppvae.data.data import Data
from ppvae.data.splits import Splits
from ppvae.errors import DataError, MissingFileError

LOWEST, KEYS = 21, 88
PARTS = {"train": "train", "validation": "valid", "test": "test"}
FORM = '{"train": [piece, ...], "valid": [...], "test": [...]}, a piece a list of frames, a frame a list of MIDI numbers from 21 to 108'


def music(path: str | os.PathLike[str]) -> Splits:
    """The three parts of a file of music, as its authors made them.

    Returns:
        Each a Data of ``{"x": (N, T, 88), "lengths": (N,), "mask": (N, T)}``: the piano roll, 1 where a key sounds, float32 and 0 after
        the end; the number of frames; True up to the end. T is the longest piece of all three parts.

    Raises:
        MissingFileError: There is no such file.
        DataError: It is not of that form; it names part, piece and frame.
    """
    path = Path(path)
    pieces = _pieces(path)
    longest = max(len(piece) for part in pieces.values() for piece in part)
    parts = {split: _data(pieces[key], longest, split, path) for split, key in PARTS.items()}
    return Splits(parts["train"], parts["validation"], parts["test"], 0)


def _data(pieces: list[Any], longest: int, split: str, path: Path) -> Data:
    roll = torch.zeros(len(pieces), longest, KEYS)
    for i, piece in enumerate(pieces):
        for t, frame in enumerate(piece):
            for note in frame:
                if not isinstance(note, int) or not LOWEST <= note < LOWEST + KEYS:
                    raise DataError(
                        f"needed MIDI numbers from {LOWEST} to {LOWEST + KEYS - 1}, and {note!r} came",
                        where=f"{path}, {PARTS[split]}, piece {i}, frame {t}",
                    )
                roll[i, t, note - LOWEST] = 1
    lengths = torch.tensor([len(piece) for piece in pieces])
    x: dict[str, Tensor] = {"x": roll, "lengths": lengths, "mask": torch.arange(longest) < lengths[:, None]}
    return Data.from_arrays(x, name=str(path), split=split, origin=f"{int(lengths.sum()):,} frames")


def _pieces(path: Path) -> dict[str, Any]:
    """The file's content, held against its form down to the frames."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError("needed a JSON file of music, and there is none", where=str(path), mend="mend the path") from error
    except (ValueError, IsADirectoryError, RecursionError) as error:
        raise DataError(f"needed JSON, and the file cannot be read as such ({error})", where=str(path), mend=FORM) from error
    for key in PARTS.values():
        part = found.get(key) if isinstance(found, dict) else None
        if not isinstance(part, list) or not part:
            raise DataError(f"needed a list of pieces as {key!r}, and none came", where=str(path), mend=FORM)
        for i, piece in enumerate(part):
            if not isinstance(piece, list) or not piece or not all(isinstance(frame, list) for frame in piece):
                raise DataError("needed a piece as a list of frames, each a list of notes", where=f"{path}, {key}, piece {i}", mend=FORM)
    return dict(found)
