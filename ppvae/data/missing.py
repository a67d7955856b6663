"""Missing entries: which they are, and what stands in their place, so that no program ever meets what was there.

A datum with missing entries is seen as a dict of two tensors, ``{"x": values, "observed": mask}``, both (N, *event).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae.data.arrays import accepted, read
from ppvae.data.scan import scan
from ppvae.data.tree import Leaf, is_leaf
from ppvae.errors import DataError

VALUES, OBSERVED = "x", "observed"
MASK = "mask"


def holes(x: Leaf, missing: Any, name: str) -> dict[str, Tensor]:
    """Values with their missing entries replaced, and a mask that is True where an entry was observed; (N, *event) each.

    A hole holds the value nearest to zero among those that its column spans: inside the support of whatever likelihood holds the
    column, and the same whatever stood there before.

    Args:
        x: (N, *event).
        missing: ``"mask"``: NaN is missing. Or (N, *event), True where an entry is missing, whatever it holds.
        name: Of the data.

    Raises:
        DataError: the mask is of another shape or no mask, nothing is observed, or an observed entry is not finite.
    """
    values = x if isinstance(x, Tensor) else read(x, torch.arange(len(x)))
    if isinstance(missing, str):
        if missing != MASK:
            raise DataError(
                f"needed missing='mask' or an array of True and False, and missing={missing!r} came",
                where=name,
                mend="missing='mask' takes NaN for a missing entry",
            )
        observed = ~values.isnan() if values.is_floating_point() else torch.ones_like(values, dtype=torch.bool)
    else:
        observed = ~_mask(missing, values, name)
    if not bool(observed.any()):
        raise DataError(f"needed an observed entry, and all {values.numel():,} are missing", where=name)
    filled = torch.where(observed, values, 0)
    scan(filled, name)  # an observed NaN or infinity is refused before its column is looked at
    return {VALUES: torch.where(observed, values, _nearest_to_zero(values, observed)), OBSERVED: observed}


def refuse_structure(x: Any, name: str) -> None:
    """Only a lone array can have missing entries.

    Raises:
        DataError: it is a tuple or dict.
    """
    if not is_leaf(x):
        raise DataError(
            f"needed one array with missing entries, and a {type(x).__name__} came",
            where=name,
            mend="fill the holes yourself, and hand in the mask as a member of its own",
        )


def _mask(missing: Any, values: Tensor, name: str) -> Tensor:
    where = f"{name}, missing"
    leaf = accepted(np.asarray(missing) if isinstance(missing, list) else missing, where)
    mask = read(leaf, torch.arange(len(leaf))) if leaf.ndim else torch.zeros(())
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise DataError(
            f"needed True and False in the shape of the data, {tuple(values.shape)}, and {mask.dtype} of shape {tuple(mask.shape)} came",
            where=where,
            mend="missing=np.isnan(x), or any array of booleans, True where an entry is missing",
        )
    return mask


def _nearest_to_zero(values: Tensor, observed: Tensor) -> Tensor:
    """For each column the number nearest to zero between its smallest and its largest observed value; of all, where it has none."""
    kind = values.dtype
    wide = values.to(torch.float64) if kind.is_floating_point else values.to(torch.int64)
    ends = torch.finfo(torch.float64) if kind.is_floating_point else torch.iinfo(torch.int64)
    low = torch.where(observed, wide, ends.max).amin(0)
    high = torch.where(observed, wide, ends.min).amax(0)
    nothing = ~observed.any(0)
    low, high = torch.where(nothing, low.min(), low), torch.where(nothing, high.max(), high)
    return torch.clamp(torch.zeros_like(low), low, high).to(kind)
