"""Rows that are in training data and in held-out data: a score on these tells nothing about new data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ppvae.data.arrays import chunks, read
from ppvae.data.data import Data
from ppvae.data.tree import named_leaves
from ppvae.errors import UnreliableWarning


def shared_rows(train: Data, held_out: Data) -> Tensor:
    """Numbers of the rows of ``held_out`` that stand in ``train`` too, byte for byte as stored, (M,), int64."""
    known = set(_hashes(train))
    return torch.tensor([row for row, value in enumerate(_hashes(held_out)) if value in known], dtype=torch.int64)


def warn_of_shared_rows(train: Data, *held_out: Data) -> None:
    """Warn, once for each held-out set that has some."""
    for part in held_out:
        rows = shared_rows(train, part)
        if len(rows):
            warnings.warn(
                f"{len(rows):,} of {len(part):,} {part.split} rows of {train.name} stand in the training rows too (first: row "
                f"{int(rows[0])}): their score tells nothing about new data. np.unique(x, axis=0) drops repeated rows",
                UnreliableWarning,
                stacklevel=3,
            )


def _hashes(data: Data) -> list[int]:
    """A 64-bit hash of each row, keyed by the process."""
    leaves = [leaf for _, leaf in named_leaves(data.source)]
    found: list[int] = []
    for piece in chunks(len(data), sum(math.prod(leaf.shape[1:]) for leaf in leaves)):
        index = data.index[piece]
        parts: list[list[bytes]] = []
        for leaf in leaves:
            values: Any = read(leaf, index).contiguous()
            raw = values.reshape(len(index), -1).view(torch.uint8).numpy()
            parts.append([row.tobytes() for row in raw])
        found += [hash(row) for row in zip(*parts, strict=True)]
    return found
