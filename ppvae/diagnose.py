"""Why a step was not finite: the first site, the datum, the parameter."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import zero_grads
from torch import Tensor

from ppvae.batches import Batch, take
from ppvae.errors import DivergedError
from ppvae.programs import in_data_plate, sample_sites
from ppvae.svi import SVI

NO_DATUM = "every density"
ALL_FINITE = (NO_DATUM, "all densities are finite")  # how a clause begins that blames no density


def diagnose(svi: SVI, x: Batch, rows: Tensor) -> str:
    """One clause that names the first site and datum whose density is not finite, or else the datum whose gradient is not.

    Args:
        svi: The step that failed; nothing of it is changed.
        x: The batch, (n, *event).
        rows: Numbers of its rows in the data, (n,).
    """
    with torch.no_grad(), pyro.validation_enabled(False):
        found_q = poutine.trace(svi.guide).get_trace(x)
        found_p = poutine.trace(poutine.replay(svi.model, trace=found_q)).get_trace(x)
    for side, found in (("guide", found_q), ("model", found_p)):
        for name, site in sample_sites(found).items():
            clause = _of_site(name, site, rows)
            if clause:
                return f"{side} site '{name}', {clause}"
    return _of_gradient(svi, x, rows)


def _of_site(name: str, site: Any, rows: Tensor) -> str:
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    suspects = [(parameter, getattr(base, parameter, None)) for parameter in getattr(base, "arg_constraints", {})]
    with torch.no_grad():
        suspects += [("value", site["value"]), ("log density", site["fn"].log_prob(site["value"]))]
    for what, value in suspects:
        if not isinstance(value, Tensor):
            continue
        bad = ~torch.isfinite(value)
        if what == "scale":
            bad |= value <= 0
        if bad.any():
            event = 0 if what == "log density" else site["fn"].event_dim
            return f"{_datum(bad, rows, event, in_data_plate(site))}: its {what} is {value[bad][0].item():.3g}"
    return ""


def _datum(bad: Tensor, rows: Tensor, event_dim: int, in_plate: bool) -> str:
    """The first bad datum; the data dimension is the last of the batch dims."""
    dim = bad.dim() - 1 - event_dim
    if not in_plate or dim < 0 or bad.shape[dim] != len(rows):
        return "all data"
    per_datum = bad.movedim(dim, 0).flatten(1).any(1) if bad.dim() > 1 else bad
    return f"datum {int(rows[per_datum.nonzero()[0, 0]])} ({int(per_datum.sum())} of {len(rows)} data of the batch)"


def _of_gradient(svi: SVI, x: Batch, rows: Tensor) -> str:
    """Densities are finite and a gradient is not: try the batch datum by datum."""
    for i in range(len(rows)):
        one = take(x, slice(i, i + 1))
        try:
            svi.loss_and_grads(svi._model, svi._guide, one)  # as the step takes it
        except (DivergedError, ValueError, RuntimeError):
            continue  # a network may refuse a batch of one; the datum then stays unnamed
        bad = any(p.grad is not None and not torch.isfinite(p.grad).all() for p in svi.leaves)
        zero_grads(svi.leaves)
        if bad:
            return f"all densities are finite, the gradient of datum {int(rows[i])} is not"
    return f"{NO_DATUM} and the gradient of every single datum are finite: it is their sum that overflowed"
