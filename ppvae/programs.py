"""Run a program: traces, sites, plates, and the conditions under which a program is measured.

The data plate is the plate at dim -1. What runs a model and a guide together stands in ``pair.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppvae import bernoulli
from ppvae.batches import Batch, device_of, each
from ppvae.capture import capturing
from ppvae.errors import PpvaeError, ProgramError, ShapeError
from ppvae.memory import is_out_of_memory
from ppvae.modules import Program, device_of_programs, eval_mode, freeze, frozen_parameters

Values = Mapping[str, Tensor]


class _Substitute(Messenger):
    """Give latent sites these values; unlike ``poutine.condition`` they stay unobserved."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


def on_device_of(x: Batch, *programs: Program) -> Batch:
    """A batch on the device of the programs' parameters: a model trained on a GPU is measured there, whatever the data are on."""
    device = device_of_programs(*programs) or next((p.device for _, p in pyro.get_param_store().named_parameters()), None)
    return x if device is None or device == device_of(x) else each(x, lambda part: part.to(device))


def trace(program: Program, x: Batch, values: Values | None = None) -> Trace:
    """Run ``program(x)`` once, with ``values`` at the latent sites that they name."""
    with _Substitute(values or {}):
        return poutine.trace(program).get_trace(x)


def sample_sites(found: Trace) -> dict[str, Any]:
    """The sample sites of a trace, without the index sites that a subsampling plate adds."""
    return {name: site for name, site in found.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}


def is_deterministic(site: Any) -> bool:
    """Whether the site only records a value (``pyro.deterministic``) or a factor, and draws nothing."""
    return bool(site["infer"].get("_deterministic")) or type(site["fn"]).__name__ == "Unit"


def prior_of(model: Program) -> Program:
    """The model's prior as a guide: its latent sites, without what it observes; every log weight is then log p(x | z)."""
    return poutine.block(model, hide_fn=lambda msg: bool(msg["is_observed"]))


def latent_sites(found: Trace) -> list[str]:
    """Names of the sites that are drawn."""
    return [name for name, site in sample_sites(found).items() if not site["is_observed"]]


def observed_sites(found: Trace) -> list[str]:
    """Names of the sites that hold data."""
    return [name for name, site in sample_sites(found).items() if site["is_observed"] and not is_deterministic(site)]


def in_data_plate(site: Any) -> bool:
    """Whether a site lies in the plate at dim -1."""
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])


def log_prob(site: Any) -> Tensor:
    """log p(value) by batch element, masks applied, scales not: a density has no training weight."""
    if capturing() and bernoulli.applies(site["fn"]):
        density = bernoulli.log_prob(site["fn"], site["value"])
    else:
        density = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(density, 1.0, site["mask"])  # type: ignore[no-any-return]


@contextlib.contextmanager
def measuring(*programs: Program) -> Iterator[None]:
    """Eval mode, no gradients recorded unless asked for, the caller's parameter store read but not written.

    The store is copied because a ``PyroModule`` that finds another program's parameter under its own name takes it over: measuring
    one pair must not change the next.
    """
    store, frozen = pyro.get_param_store(), frozen_parameters(*programs)
    try:
        with eval_mode(*programs), store.scope(store.get_state()), pyro.validation_enabled(False), torch.no_grad():
            yield
    finally:
        freeze(frozen)


def check_plates(sites: Mapping[str, Any], n: int) -> None:
    """Every site with data lies in the plate at dim -1, and that plate is as long as the batch.

    Raises:
        ShapeError: naming the site.
    """
    for name, site in sites.items():
        frame = next((f for f in site["cond_indep_stack"] if f.dim == -1), None)
        shape = tuple(site["fn"].batch_shape)
        factor = type(site["fn"]).__name__ == "Unit"  # pyro.factor: its density counts, though it draws nothing
        if frame is None and (factor or not is_deterministic(site)) and (site["is_observed"] or (shape and shape[-1] == n)):
            raise ShapeError(
                f"site '{name}' has batch shape {shape} and lies outside the data plate, needed ({n},) inside it",
                where=f"site '{name}'",
                mend=f"with pyro.plate('data', len(x), dim=-1): pyro.sample('{name}', ...)",
            )
        if frame is not None and frame.size != n:
            raise ShapeError(
                f"site '{name}': the plate '{frame.name}' at dim -1 has size {frame.size}, and the batch has {n} data",
                where=f"site '{name}'",
                mend="with pyro.plate('data', len(x), dim=-1): the plate is as long as the batch, and the batch is chosen outside",
            )


def has_no_inverse(error: Exception) -> bool:
    """Whether an error is torch's or Pyro's word for a transform that cannot be inverted, so that a draw alone has a density."""
    return isinstance(error, NotImplementedError) or (isinstance(error, KeyError) and "intermediates cache" in str(error))


def first_trace(side: str, program: Program, rows: Batch, values: Values) -> Trace:
    """Run a program of the user's for the first time: what it raises is told as what it is."""
    try:
        return trace(program, rows, values)
    except PpvaeError as error:  # Pyro's tracing has added its table of shapes to the message
        raise type(error)(str(error).split("Trace Shapes:")[0].rstrip()) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ProgramError(
            f"the {side} fails on the first rows of the data: {type(error).__name__}: {first_line}",
            mend="ppvae.check(model, guide, x) tells which part of the contract it breaks",
        ) from error
