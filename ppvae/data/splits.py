"""Training, validation and test rows, drawn once from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae import noise
from ppvae.data.data import Data
from ppvae.data.missing import VALUES
from ppvae.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Splits:
    """Three data sets without a common row. Printing it tells what they are."""

    train: Data
    validation: Data
    test: Data
    seed: int  # of the choice of rows

    def double(self) -> Splits:
        """All three seen as float64, for networks in float64."""
        return replace(self, train=self.train.double(), validation=self.validation.double(), test=self.test.double())

    def __repr__(self) -> str:
        """Name, sizes, event shape, binarisation, and the beginning of each hash."""
        parts = (self.train, self.validation, self.test)
        sizes = ", ".join(f"{len(part):,} {part.split}" for part in parts)
        hashes = ", ".join(f"{part.split} {part.sha256[:12]}" for part in parts)
        shape = self.train.event_shape[VALUES] if self.train.masked else self.train.event_shape
        told = f"event shape {shape}; {_told(self.train)}; split by seed {self.seed}"
        if self.train.masked:
            told += f"; {sum(part.num_missing for part in parts):,} entries missing"
        told += f"; {self.train.origin}" if self.train.origin else ""
        return f"{self.train.name}: {sizes}; {told}\nsha256: {hashes}"


def split(data: Any, *, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Splits:
    """Split rows at random.

    Args:
        data: What ``Data.of`` takes, (N, ...).
        validation: Rows held out for choosing, a number (int) or a share (float).
        test: Rows held out for reporting; which ones does not depend on ``validation``.
        seed: Of the choice.

    Returns:
        Held-out rows in an order drawn at random, so that the first few stand for all; training rows in the order they came.
    """
    data = Data.of(data)
    sizes = {"test": _size(test, len(data), "test"), "validation": _size(validation, len(data), "validation")}
    last, held, rest = _drawn(data, sizes, seed)
    return Splits(_part(data, "train", rest), _held_out(data, "validation", held), _held_out(data, "test", last), seed)


def split_off_validation(data: Data, test: Data, *, validation: float, seed: int = 0) -> Splits:
    """The same where the test set has a file of its own."""
    held, rest = _drawn(data, {"validation": _size(validation, len(data), "validation")}, seed)
    every = torch.arange(len(test), dtype=torch.int64)
    return Splits(_part(data, "train", rest), _held_out(data, "validation", held), _held_out(test, "test", every), seed)


def _drawn(data: Data, sizes: dict[str, int], seed: int) -> list[Tensor]:
    """Row numbers for each of ``sizes`` in an order drawn at random, then all others in theirs."""
    left = len(data) - sum(sizes.values())
    if left < 1:
        asked = " and ".join(f"{size:,} for {what}" for what, size in sizes.items())
        raise DataError(
            f"needed rows to train on, and {asked} leave none of {len(data):,}",
            where=data.name,
            mend=["hold out fewer", "all rows as one set: Data.of(x)"],
        )
    # NumPy froze this generator, so that a split is the same with every version of NumPy and torch.
    order = np.random.RandomState(list(divmod(noise.derived_seed(seed, "split"), 1 << 32))).permutation(len(data))
    *held, rest = torch.split(torch.from_numpy(order).long(), [*sizes.values(), left])
    return [*held, rest.sort().values]


def _part(data: Data, name: str, rows: Tensor) -> Data:
    return replace(data[rows], split=name)


def _held_out(data: Data, name: str, rows: Tensor) -> Data:
    # A score on fresh draws would be about other data every time: held-out rows are drawn once.
    return replace(_part(data, name, rows), binarize="static" if data.binarize == "dynamic" else data.binarize)


def _size(share: float, num_data: int, what: str) -> int:
    """Rows for a number or a share of them."""
    size = max(1, round(share * num_data)) if isinstance(share, float) and 0 < share < 1 else share
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise DataError(
            f"needed a number of rows from 1, or a share between 0 and 1, and {what}={share!r} came",
            where=what,
            mend=[f"{what}=1000", f"{what}=0.1"],
        )
    return size


def _told(data: Data) -> str:
    if data.levels is None:
        return f"values as they stand ({data.measure})"
    if data.binarize == "none":
        return f"grey values / {data.levels:g} (Lebesgue)"
    how = {
        "threshold": f"binarised at a threshold, 1 from half of {data.levels:g}",
        "static": f"binarised by one draw a pixel, seed {data.seed}",
        "dynamic": f"binarised by fresh draws in training, held-out sets drawn once, seed {data.seed}",
    }
    return how[data.binarize]
