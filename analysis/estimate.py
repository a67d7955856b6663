"""What every number carries: two errors with two names, and where it came from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.batches import Batch, digest, tensors
from ppvae.data import Data
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import on_device_of
from ppvae.support import warn_relaxed


@dataclass(frozen=True)
class Estimate:
    """A mean over data with its two errors, nats.

    Attributes:
        value: The mean.
        data_se: Standard error from the data at hand: shrinks with N.
        mc_se: Monte Carlo standard error: shrinks with the number of particles.
    """

    value: float
    data_se: float
    mc_se: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.data_se:.2f} (data) ± {_short(self.mc_se)} (Monte Carlo)"


def mean_of(pointwise: Tensor, pointwise_se: Tensor) -> Estimate:
    """The mean of per-datum estimates (N,), whose Monte Carlo errors are independent from datum to datum.

    For a paired difference hand in the N differences: their spread is its data error.
    """
    n = len(pointwise)
    data_se = (pointwise.std() / math.sqrt(n)).item() if n > 1 else math.nan
    return Estimate(pointwise.mean().item(), data_se, (pointwise_se.square().sum().sqrt() / n).item())


@dataclass(frozen=True)
class Provenance:
    """Where a number came from: data, binarisation, measure, seed.

    Attributes:
        data: The description of the ``Data``, or of plain tensors their hash.
        measure: "counting", "Lebesgue", or relaxed, which is no probability.
        seed: Seed of the measurement.
        conditioned_on: Global sites that one draw was conditioned on.
    """

    data: dict[str, Any]
    measure: str
    seed: int
    conditioned_on: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def batch_of(x: Data | Batch, *programs: Program) -> Batch:
    """The tensors of ``x``, on the device of the programs."""
    return on_device_of(x.x if isinstance(x, Data) else x, *programs)


def provenance(x: Data | Batch, pair: Pair, seed: int) -> Provenance:
    """The provenance of a measurement that has looked at all of ``x``; warns where its measure is relaxed."""
    if pair.relaxed:
        warn_relaxed()
    return Provenance(describe(x), pair.measure, seed, tuple(sorted(pair.globals)))


def describe(x: Data | Batch) -> dict[str, Any]:
    """Name, split, binarisation and hash of a ``Data``; the hash of plain tensors."""
    if isinstance(x, Data):
        return x.describe()
    first = next(iter(tensors(x).values()))
    return {"name": "tensors", "num_data": len(first), "event_shape": list(first.shape[1:]), "sha256": digest(x)}


def label(source: Provenance) -> str:
    """A short tail for a printed sentence: data set and split, float64 where it was asked for, the measure where it is no probability."""
    name = source.data.get("name", "tensors")
    text = f"{name}/{source.data['split']}" if "split" in source.data else str(name)
    rows = source.data.get("template", source.data)
    text += f"; {rows['dtype']}" if "dtype" in rows else ""
    text += "; measure: relaxed (not a probability)" if source.measure.startswith("relaxed") else ""
    return text + (f"; conditional on a draw of {', '.join(source.conditioned_on)}" if source.conditioned_on else "")


def resolution(x: Batch) -> float:
    """How far apart two log weights of equal value may lie by rounding, relative to their size: the networks' dtype decides."""
    floats = [part.dtype for part in tensors(x).values() if part.is_floating_point()]
    return 16 * torch.finfo(floats[0] if floats else torch.get_default_dtype()).eps


def as_lists(result: Any) -> dict[str, Any]:
    """A result dataclass as JSON-able values: tensors become lists, nan and infinities stay as JSON's extensions."""
    record: dict[str, Any] = {}
    for name, value in vars(result).items():
        if isinstance(value, Tensor):
            record[name] = value.tolist()
        elif isinstance(value, Provenance):
            record[name] = value.as_dict()
        elif isinstance(value, dict):
            record[name] = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in value.items()}
        elif isinstance(value, bool | int | float | str | type(None)):
            record[name] = value
    return record


def _short(se: float) -> str:
    return f"{se:.2g}" if se < 0.01 else f"{se:.2f}"
