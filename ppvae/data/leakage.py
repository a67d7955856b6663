"""Rows that are in training data and in held-out data: a score on these tells nothing about new data.

Rows of low-dimensional counts repeat by nature, and then held-out rows stand in the training rows too. What is to be expected, the
training rows tell among themselves. For exchangeable data the chance that a new row stands in N others is estimated by the share of
the N rows that are not alone (Good 1953; its complement, the share of rows that occur once, estimates the missing mass), with

    variance  (N_1 / N (1 - N_1 / N) + 2 N_2 / N) / N        (Esty 1983; N_1 rows occur once, N_2 values twice)

to which M held-out rows add binomially. Rows of counts may repeat by nature where no pair of them happens to lie in the training rows: one
more is then taken as seen. Real values have a density, and do not repeat.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppvae.data.arrays import chunks, read
from ppvae.data.data import Data
from ppvae.data.tree import named_leaves
from ppvae.errors import UnreliableWarning

FAR = 5.0  # standard errors
FEWEST = 2  # rows
Hashes = NDArray[np.int64]


def shared_rows(train: Data, held_out: Data) -> Tensor:
    """Numbers of the rows of ``held_out`` that stand in ``train`` too, byte for byte as stored, (M,), int64."""
    return torch.from_numpy(_where_shared(_hashes(train), _hashes(held_out)))


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


def warn_of_leakage(train: Data, held_out: Data) -> None:
    """Warn where more rows of ``held_out`` stand in ``train`` than rows of ``train`` repeat each other.

    Every row is hashed once, in pieces that fit in memory, 8 bytes a row. The parts of ``data.split`` are drawn at random from one set,
    and are exchangeable whatever it holds: they are not looked at.
    """
    if train.source is held_out.source and train.split.startswith("train") and held_out.split.startswith("validation"):
        return
    known, held = _hashes(train), _hashes(held_out)
    shared = _where_shared(known, held)
    if len(shared) < FEWEST:
        return
    expected, error = expected_shared(known, len(held), unseen_pairs=0 if "Lebesgue" in train.measure else 1)
    if len(shared) <= expected + FAR * error:
        return
    first = int(shared[0])
    warnings.warn(
        f"{len(shared):,} of {len(held):,} validation rows stand in the training data too; as often as training rows repeat each other it "
        f"would be {expected:,.1f} ± {error:,.1f} (validation row {first} is training row {int((known == held[first]).argmax())}). Their "
        "score tells nothing about new data, and it chooses the epoch: ppvae.data.shared_rows(data, validation) names them to leave out",
        UnreliableWarning,
        stacklevel=3,
    )


def expected_shared(known: Hashes, num_held_out: int, unseen_pairs: int) -> tuple[float, float]:
    """How many of so many new rows of the same kind would stand in rows (N,), and the standard error of their number."""
    counts = np.unique(known, return_counts=True)[1]
    n, m = len(known), num_held_out
    repeated, twice = n - int((counts == 1).sum()) + 2 * unseen_pairs, int((counts == 2).sum()) + unseen_pairs
    share = min(repeated / n, 1.0)
    of_share = share * (1 - share) / n + 2 * twice / n**2
    return m * share, math.sqrt(m * share * (1 - share) + m**2 * of_share)


def _where_shared(known: Hashes, held_out: Hashes) -> NDArray[np.int64]:
    values = np.sort(known)  # np.isin and np.unique build a table of hashes of hashes, ten times as slow
    nearest = values[np.searchsorted(values, held_out).clip(max=len(values) - 1)]
    return np.flatnonzero(nearest == held_out).astype(np.int64)


def _hashes(data: Data) -> Hashes:
    """A 64-bit hash of each row, (N,), keyed by the process."""
    leaves = [leaf for _, leaf in named_leaves(data.source)]
    found = np.empty(len(data), dtype=np.int64)
    for piece in chunks(len(data), sum(math.prod(leaf.shape[1:]) for leaf in leaves)):
        index = data.index[piece]
        parts: list[list[bytes]] = []
        for leaf in leaves:
            values: Any = read(leaf, index).contiguous()
            raw = values.reshape(len(index), -1).view(torch.uint8).numpy()
            parts.append(raw.view(f"V{raw.shape[1]}")[:, 0].tolist())  # a row as bytes
        rows = parts[0] if len(parts) == 1 else zip(*parts, strict=True)
        found[int(piece[0]) : int(piece[-1]) + 1] = np.fromiter(map(hash, rows), dtype=np.int64, count=len(index))
    return found
