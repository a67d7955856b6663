"""A data set: values as stored, values as the model sees them, and where they come from."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae.data import binarize as ways
from ppvae.data import philox
from ppvae.data.arrays import as_slice, chunks, is_float, read
from ppvae.data.checks import checked_labels, checked_tree, row_numbers
from ppvae.data.missing import OBSERVED, VALUES, holes, refuse_structure
from ppvae.data.scan import check_exact, scan
from ppvae.data.tree import Leaf, Tree, cat, is_leaf, map_leaves, named_leaves
from ppvae.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Rows of an array, or of a tuple or dict of arrays, checked once. Built by ``Data.of`` or ``Data.from_arrays``.

    Nothing is copied at first: do not change the arrays in place afterwards. A subset shares the arrays of the whole.

    Attributes:
        name: Of the data set.
        split: ``train``, ``validation``, ``test``, ``all``, or a piece of them such as ``train[:1000]``.
        binarize: ``threshold``, ``static``, ``dynamic`` or ``none``.
        seed: Of the draws that binarise.
        labels: (N,) integers, or None. Never part of ``x``.
        measure: What a density of these values is a density against: ``counting`` for binarised and for whole numbers as
            they stand, ``Lebesgue`` for real ones (grey images with ``binarize="none"`` are level / levels, real numbers).
        levels: The grey value that is white, or None where the values are no grey values.
        masked: Whether entries may be missing: a program then sees ``{"x": values, "observed": mask}``, both (N, *event), where the
            mask is True at what was observed and the values elsewhere mean nothing.
        origin: What a reader found out about the file, in words.
        factors: (N, F), float64, what the data were made from, where that is known, or None. Never part of ``x``.
        factor_names: F names.
        vocabulary: Of tokens: ``vocabulary[token]`` is what a token stands for; empty where there are none.
    """

    name: str
    split: str
    binarize: str
    seed: int
    labels: Tensor | None
    measure: str
    levels: float | None
    source: Tree  # of all splits: tensors and memory maps
    index: Tensor  # (N,), which rows of the source
    flatten: bool = False
    first_row: int = 0  # number of the source's first row in the whole data set, where that is stored in several files
    masked: bool = False
    origin: str = ""
    factors: Tensor | None = None
    factor_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    wide: bool = False  # whether floats are seen as float64

    @classmethod
    def of(cls, value: Any, labels: Any = None, *, name: str = "array", split: str = "all") -> Data:
        """A Data of ``value``: a Data (as it is), a tensor, an array, a tuple or dict of them, (N, ...) each.

        Raises:
            DataError: NaN, infinite values, no rows, rows that are scalars, unequal lengths, or no numbers.
        """
        if isinstance(value, Data):
            return value if labels is None else replace(value, labels=checked_labels(labels, len(value), value.name))
        return cls.from_arrays(value, labels, name=name, split=split)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        labels: Any = None,
        *,
        name: str = "array",
        split: str = "all",
        binarize: str = "none",
        levels: float | None = None,
        seed: int = 0,
        flatten: bool = False,
        first_row: int = 0,
        missing: Any = None,
        origin: str = "",
    ) -> Data:
        """A Data of arrays, with grey values binarised.

        Args:
            x: (N, *event), or a tuple or dict of arrays (N, ...). A lone array of whole numbers becomes float32; inside a
                tuple or dict it keeps its type. float64 stays float64, other floats become float32.
            labels: (N,) whole numbers.
            name: Of the data set.
            split: Of its part.
            binarize: ``threshold``, ``static`` (one draw a pixel), ``dynamic`` (a draw each presentation) or ``none``.
            levels: The grey value that is white. Found out, where binarising, for values in [0, 1] and for bytes that exceed 127.
            seed: Of the draws.
            flatten: Event shape (D,) whatever the shape of a row.
            first_row: Number of the first row in the whole data set.
            missing: Of a lone array: ``"mask"`` where NaN is a missing entry, or (N, *event), True where an entry is missing, whatever
                it holds. None where nothing is missing; NaN is then refused.
            origin: What a reader found out about the file.

        Raises:
            DataError: As ``of``, or grey values outside their range, or a mask that is none.
        """
        ways.known(binarize)
        if missing is not None:
            refuse_structure(x, name)
        source = checked_tree(x, name)
        if missing is not None:
            source = holes(source, missing, name)
        if is_leaf(source) or missing is not None:
            measure, levels = _measured(source if missing is None else source[VALUES], binarize, levels, name)
        elif binarize == "none" and levels is None and not flatten:
            kinds = ["counting" if scan(leaf, name + place).integral else "Lebesgue" for place, leaf in named_leaves(source)]
            measure = kinds[0] if len(set(kinds)) == 1 else " x ".join(kinds)
        else:
            raise DataError(
                f"needed one array to binarise, scale or flatten, and a {type(source).__name__} came",
                where=name,
                mend=['prepare its members before, and say binarize="none"', "hand in the array of images alone"],
            )
        num_data = len(named_leaves(source)[0][1])
        return cls(
            name=name,
            split=split,
            binarize=binarize,
            seed=seed,
            labels=None if labels is None else checked_labels(labels, num_data, name),
            measure=measure,
            levels=levels,
            source=source,
            index=torch.arange(num_data, dtype=torch.int64),
            flatten=flatten,
            first_row=first_row,
            masked=missing is not None,
            origin=origin,
        )

    def __len__(self) -> int:
        """N."""
        return len(self.index)

    @property
    def event_shape(self) -> Any:
        """The shape of one datum; of a tuple or dict, the shape of each member."""
        return map_leaves(self._shape, self.source)

    @property
    def raw(self) -> Any:
        """(N, *event) as stored: bytes for images. A memory map stays one where these rows lie together in the file."""
        rows = as_slice(self.index)

        def stored(leaf: Any) -> Any:
            values = read(leaf, self.index) if isinstance(leaf, Tensor) or rows is None else leaf[rows]
            return values.reshape(len(self), -1) if self.flatten else values

        return map_leaves(stored, self.source)

    @cached_property
    def x(self) -> Any:
        """(N, *event), what the model sees. Where binarisation is dynamic, one fixed draw: what evaluation uses."""
        size = sum(math.prod(leaf.shape[1:]) for _, leaf in named_leaves(self.source))
        if self.binarize == "none":
            return self._values(self.index, None)
        return cat([self._values(self.index[rows], None) for rows in chunks(len(self), size)])

    def batch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Any:
        """Some rows (B, *event) of what the model sees.

        Args:
            rows: Which, a slice or (B,) integers.
            generator: On the CPU. Where binarisation is dynamic its next number is the key of fresh draws, in which each row has
                draws of its own; without it, and for all other data, these are the rows of ``x``. Of a memory map only these rows
                are read.
        """
        rows = row_numbers(rows, len(self), self.name)
        if self.binarize == "dynamic" and generator is not None:
            return self._values(self.index[rows], torch.randint(philox.LOW + 1, (2,), generator=generator))
        if (self._mapped or self.levels is not None) and "x" not in self.__dict__:  # bytes are looked at row by row, not made floats
            return self._values(self.index[rows], None)
        return map_leaves(lambda values: read(values, rows), self.x)

    def pieces(self, n: int) -> list[slice]:
        """The first n rows as slices: one of them all, but for a memory map, of which no more is read at a time than fits in memory."""
        if not self._mapped:
            return [slice(0, n)]
        size = sum(math.prod(leaf.shape[1:]) for _, leaf in named_leaves(self.source))
        return [slice(int(rows[0]), int(rows[-1]) + 1) for rows in chunks(n, size)]

    def __getitem__(self, rows: slice | Tensor) -> Data:
        """These rows as a data set. Static draws stay what they are in the whole."""
        numbers = row_numbers(rows, len(self), self.name)
        piece = _slice_text(rows) if isinstance(rows, slice) else f"{len(numbers)} rows"
        if not len(numbers):
            raise DataError(f"needed rows, and {self.name} {self.split}[{piece}] has none of its {len(self):,}", where=self.name)
        labels = None if self.labels is None else self.labels[numbers]
        factors = None if self.factors is None else self.factors[numbers]
        return replace(self, index=self.index[numbers], labels=labels, factors=factors, split=f"{self.split}[{piece}]")

    def with_factors(self, factors: Any, names: Sequence[str]) -> Data:
        """These data with what they were made from, (N, F) numbers, and a name for each column.

        Raises:
            DataError: Another shape.
        """
        values = torch.as_tensor(factors, dtype=torch.float64)
        if values.shape != (len(self), len(names)):
            raise DataError(
                f"needed factors of shape ({len(self):,}, {len(names)}), a row a datum and a column a name, and {tuple(values.shape)} came",
                where=self.name,
            )
        return replace(self, factors=values, factor_names=tuple(names))

    def double(self) -> Data:
        """These data seen as float64, for networks in float64: the same values, draws and hash."""
        return replace(self, wide=True)

    def with_vocabulary(self, vocabulary: Sequence[str]) -> Data:
        """These data with what their tokens stand for."""
        return replace(self, vocabulary=tuple(vocabulary))

    def labelled_by(self, factor: str) -> Data:
        """These data with one of their factors, whole numbers, as labels.

        Raises:
            DataError: There is no such factor, or it has fractions.
        """
        if self.factors is None or factor not in self.factor_names:
            near = difflib.get_close_matches(factor, self.factor_names, n=1)
            raise DataError(
                f"needed the name of a factor, and {factor!r} came",
                where=self.name,
                mend=[f"did you mean {near[0]!r}?" if near else "", f"factors: {', '.join(self.factor_names) or 'none'}"],
            )
        values = self.factors[:, self.factor_names.index(factor)]
        return replace(self, labels=checked_labels(values, len(self), f"{self.name}, factor {factor!r}"))

    @cached_property
    def sha256(self) -> str:
        """Hash of what the model sees: of the bytes of ``x``, as they are without ``double``; inside a tuple or dict also of names,
        types and shapes."""
        if self.wide:
            return replace(self, wide=False).sha256
        leaves = named_leaves(self.source)
        digests = [hashlib.sha256() for _ in leaves]
        for rows in chunks(len(self), sum(math.prod(leaf.shape[1:]) for _, leaf in leaves)):
            values = self.batch(slice(int(rows[0]), int(rows[-1]) + 1), None)
            for digest, (_, leaf) in zip(digests, named_leaves(values), strict=True):
                digest.update(leaf.cpu().contiguous().numpy())
        if is_leaf(self.source):
            return digests[0].hexdigest()
        parts = [
            f"{place} {leaf.dtype} {tuple(leaf.shape[1:])} {digest.hexdigest()}"
            for (place, leaf), digest in zip(named_leaves(self.batch(slice(0, 1), None)), digests, strict=True)
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def num_missing(self) -> int:
        """Missing entries among all of these rows."""
        return int((~self.source[OBSERVED][self.index]).sum()) if self.masked else 0

    def describe(self) -> dict[str, Any]:
        """What a result carries about its data, ready for JSON."""
        return {
            "name": self.name,
            "split": self.split,
            "binarize": self.binarize,
            "seed": self.seed,
            "measure": self.measure,
            "sha256": self.sha256,
            "num_data": len(self),
            "event_shape": map_leaves(lambda leaf: list(self._shape(leaf)), self.source),
            **({"num_missing": self.num_missing} if self.masked else {}),
            **({"dtype": "float64"} if self.wide else {}),
        }

    def __repr__(self) -> str:
        """One line, without the hash: a large file would be read for it."""
        shape = self.event_shape[VALUES] if self.masked else self.event_shape
        missing = f", {self.num_missing:,} entries missing" if self.masked else ""
        return f"Data({self.name} {self.split}: {len(self):,} rows of {shape}, binarize={self.binarize}, {self.measure}{missing})"

    def _shape(self, leaf: Leaf) -> tuple[int, ...]:
        event = tuple(leaf.shape[1:])
        return (math.prod(event),) if self.flatten else event

    @property
    def _mapped(self) -> bool:
        return any(isinstance(leaf, np.memmap) for _, leaf in named_leaves(self.source))

    def seen(self, stored: Any, index: Tensor, key: Tensor | None) -> Any:
        """Rows as stored, (B, *event), as the model sees them: by tensor operations alone, except for static draws.

        Args:
            stored: Rows ``index`` of the source.
            index: (B,), int64.
            key: (2,), of fresh draws where binarisation is dynamic (``philox``); without it the fixed draws of ``x``.
        """
        values = self._seen(stored, index, key)
        return map_leaves(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, values) if self.wide else values

    def _seen(self, stored: Any, index: Tensor, key: Tensor | None) -> Any:
        if self.masked:
            observed = stored[OBSERVED]
            observed = observed.reshape(len(observed), -1) if self.flatten else observed
            return {VALUES: self._seen_array(stored[VALUES], index, key), OBSERVED: observed}
        if not is_leaf(self.source):
            return map_leaves(lambda leaf: _float(leaf) if is_float(leaf) else leaf, stored)
        return self._seen_array(stored, index, key)

    def _seen_array(self, stored: Tensor, index: Tensor, key: Tensor | None) -> Tensor:
        """Rows of a lone array, flat, scaled and binarised."""
        grey = _float(stored)
        grey = grey.reshape(len(grey), -1) if self.flatten else grey
        if self.levels is None:
            return grey
        if self.binarize == "none":
            return grey / self.levels
        if self.binarize == "threshold":
            return ways.threshold(grey, self.levels)
        if self.binarize == "dynamic" and key is not None:
            return ways.fresh_draws(grey, self.levels, key, index + self.first_row)
        return ways.fixed_draws(grey, self.levels, self.seed, index + self.first_row)

    def _values(self, index: Tensor, key: Tensor | None) -> Any:
        return self.seen(map_leaves(lambda leaf: read(leaf, index), self.source), index, key)


def _float(values: Tensor) -> Tensor:
    """float64 as it is, all else as float32."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def _slice_text(rows: slice) -> str:
    start, stop = ("" if bound is None else str(bound) for bound in (rows.start, rows.stop))
    return f"{start}:{stop}" + (f":{rows.step}" if rows.step not in (None, 1) else "")


def _measured(source: Leaf, binarize: str, levels: float | None, name: str) -> tuple[str, float | None]:
    """The measure of a lone array, and its grey levels, after a look at all of its values."""
    seen = scan(source, name)
    check_exact(source, seen, name)
    if binarize == "none" and levels is None:
        return "counting" if seen.integral else "Lebesgue", None
    levels = ways.grey_levels(source, seen, name) if levels is None else float(levels)
    ways.check_range(source, seen, levels, name)
    return "Lebesgue" if binarize == "none" else "counting", levels
