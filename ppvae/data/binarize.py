"""Grey values in [0, levels] to zeros and ones: at a threshold, or by Bernoulli draws with the grey value as probability.

References:
    Cremer, Li, Duvenaud (2018), Inference suboptimality in variational autoencoders, sec. 5.1 (threshold).
    Salakhutdinov, Murray (2008), On the quantitative analysis of deep belief networks (static draws).
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 5 (fresh, dynamic draws).
"""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from ppvae import noise
from ppvae.data import philox
from ppvae.data.scan import Range, at, first
from ppvae.data.tree import Leaf
from ppvae.errors import DataError

WAYS = ("threshold", "static", "dynamic", "none")


def threshold(grey: Tensor, levels: float) -> Tensor:
    """1 where grey / levels >= 1/2: from 8 of 16, from 128 of 255. Doubling is exact, dividing by 255 is not."""
    return (2 * grey >= levels).to(grey.dtype)


def fixed_draws(grey: Tensor, levels: float, seed: int, positions: Tensor) -> Tensor:
    """One Bernoulli draw a pixel, the same whenever and with whichever other rows it is asked for.

    Args:
        grey: (B, *event), in [0, levels].
        levels: The value that is surely 1.
        seed: Of the data set.
        positions: (B,), number of each row in the whole data set; each row draws from a seed of its own.
    """
    uniform = torch.empty(grey.shape, dtype=grey.dtype)
    for row, position in zip(uniform, positions.tolist(), strict=True):
        row.uniform_(generator=noise.generator(seed, "binarize", position))
    return (uniform.to(grey.device) < grey / levels).to(grey.dtype)


def fresh_draws(grey: Tensor, levels: float, key: Tensor, positions: Tensor) -> Tensor:
    """New Bernoulli draws (B, *event), each row's from the key and its position alone.

    A draw compares 16 random bits, so that a probability is met to 1 / 2^17: less than a ten-thousandth of a grey level of 255.

    Args:
        grey: (B, *event), in [0, levels].
        levels: The value that is surely 1.
        key: (2,), int64, each in [0, 2^32): of this occasion.
        positions: (B,), int64, number of each row in the whole data set.
    """
    bits = philox.sixteen_bits(key, positions, grey[0].numel()).reshape(grey.shape)
    return ((bits.to(grey.dtype) + 0.5) * (levels / 65536) < grey).to(grey.dtype)


def known(way: str) -> str:
    """``way``, if there is such a way.

    Raises:
        DataError: there is none.
    """
    if way in WAYS:
        return way
    near = difflib.get_close_matches(str(way), WAYS, n=1)
    raise DataError(
        f"needed one way to binarise of {', '.join(WAYS)}, and {way!r} came",
        where="binarize",
        mend=f"did you mean {near[0]!r}?" if near else "",
    )


def grey_levels(source: Leaf, seen: Range, where: str) -> float:
    """The value that means white, where the type and the values leave no doubt: 1 for values in [0, 1], 255 for bytes.

    Raises:
        DataError: they leave doubt.
    """
    if seen.minimum >= 0 and seen.maximum <= 1:
        return 1.0
    if str(source.dtype).endswith("uint8") and seen.maximum >= 128:  # darker bytes may be of 16 levels as well
        return 255.0
    raise DataError(
        f"needed to know which value is white before binarising, and {source.dtype} values "
        f"from {seen.minimum:g} to {seen.maximum:g} came without it",
        where=where,
        mend=["name it: levels=255, levels=16, ...", 'keep the values as they are: binarize="none"'],
    )


def check_range(source: Leaf, seen: Range, levels: float, where: str) -> None:
    """Grey values lie in [0, levels].

    Raises:
        DataError: some do not; it names the first, the range and the number.
    """
    if not levels > 0:
        raise DataError(f"needed a positive grey level for white, and levels={levels:g} came", where=where, mend="levels=255 for bytes")
    if seen.minimum >= 0 and seen.maximum <= levels:
        return
    found = first(source, lambda values: (values < 0) | (values > levels))
    raise DataError(
        f"needed grey values in [0, {levels:g}], and {found.count:,} outside came; the first is {found.value}, "
        f"the values run from {seen.minimum:g} to {seen.maximum:g}",
        where=at(found, where),
        mend=["name the value that is white: levels=...", 'keep real values as they are, with a likelihood for them: binarize="none"'],
    )
