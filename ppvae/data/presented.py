"""The rows of a data set as a step takes them in: gathered and binarised by tensor operations alone, so that a step can hold them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppvae.data.arrays import read
from ppvae.data.data import Data
from ppvae.data.philox import key_of
from ppvae.data.tree import is_leaf, map_leaves, named_leaves


class Presented:
    """A data set on a device, and how its batches are made from row numbers.

    Bytes stay bytes until they are looked at: a batch of 100 images is read as 80 kB, not 300. What lies in a file stays there, and only
    the rows of a batch are read.

    Args:
        data: What is trained on.
        device: Where batches are made.
    """

    def __init__(self, data: Data, device: torch.device | str = "cpu") -> None:
        self.data, self.device = data, torch.device(device)
        self.mapped = data._mapped
        self.as_stored = (is_leaf(data.source) or data.masked) and data.levels is not None and data.binarize != "static"
        if self.mapped:
            self.held: Any = None
        else:
            self.held = map_leaves(lambda leaf: leaf.to(self.device), data.source if self.as_stored else data.x)
        self._seed, self._key = 0, key_of(0).to(self.device)
        self.index = data.index.to(self.device)
        self.in_order = bool((data.index == torch.arange(len(data))).all())

    def inputs(self, rows: Tensor, seed: int) -> list[Tensor]:
        """The tensors that make a batch.

        Args:
            rows: (B,), int64, on the CPU: which.
            seed: Of the fresh draws, where there are some. A row's draws depend on it and on the row alone.
        """
        if seed != self._seed:
            self._seed, self._key = seed, key_of(seed).to(self.device)
        key = self._key
        if not self.mapped:
            return [rows.to(self.device), key]
        index = self.data.index[rows]
        stored = [read(leaf, index).to(self.device) for _, leaf in named_leaves(self.data.source)]
        return [index.to(self.device), key, *stored]

    def batch(self, rows: Tensor, key: Tensor, *stored: Tensor) -> Any:
        """(B, *event) from ``inputs``: what the model sees."""
        if self.mapped:
            leaves = iter(stored)
            return self.data.seen(map_leaves(lambda _: next(leaves), self.data.source), rows, key)
        if not self.as_stored:
            return map_leaves(lambda leaf: leaf[rows], self.held)
        index = rows if self.in_order else self.index[rows]
        return self.data.seen(map_leaves(lambda leaf: leaf[index], self.held), index, key)
