"""Names for every tensor that a pair owns: ``model.*``, ``guide.*``, ``param.*``; tied tensors once. Names are for files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import pyro.distributions.constraints
import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppvae.errors import RunError
from ppvae.modules import Program, modules_of


def named_tensors(model: Program, guide: Program, leaves: Iterable[Tensor] = ()) -> dict[str, Tensor]:
    """The live tensors of a pair by name, in the caller's parameter store.

    Parameters and buffers of the modules that the programs hold; then what else the parameter store holds, unconstrained; then
    ``leaves`` that neither names (a module behind a list, or the second of two under one store key), by position.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def add(name: str, tensor: Tensor) -> None:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor

    for side, program in (("model", model), ("guide", guide)):
        for root, module in modules_of(program).items():
            prefix = f"{side}.{root}." if root else f"{side}."
            for key, tensor in module.state_dict(keep_vars=True).items():
                add(prefix + key, tensor)
    for name, tensor in pyro.get_param_store().named_parameters():
        add(f"param.{normalize_param_name(name)}", tensor)
    for i, leaf in enumerate(leaves):
        add(f"leaf.{i}", leaf)
    return found


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, free of the graph."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def restore(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved values into live tensors, in place.

    Raises:
        RunError: A name is missing on either side, or a shape differs; it lists the first few.
    """
    missing = [name for name in saved if name not in live]
    extra = [name for name in live if name not in saved]
    unequal = [
        f"{name}: saved {tuple(saved[name].shape)}, here {tuple(live[name].shape)}"
        for name in saved
        if name in live and saved[name].shape != live[name].shape
    ]
    if missing or extra or unequal:
        raise RunError(
            "the saved tensors do not belong to these programs",
            where="; ".join(
                text
                for text in (
                    f"saved but not here: {', '.join(missing[:4])}" if missing else "",
                    f"here but not saved: {', '.join(extra[:4])}" if extra else "",
                    *unequal[:4],
                )
                if text
            ),
            mend="build model and guide as they were built for the run",
        )
    with torch.no_grad():
        for name, value in saved.items():
            live[name].copy_(value)


def store_constraints() -> dict[str, dict[str, object]]:
    """The constraints of the parameter store's entries, as records: class name and attributes."""
    records: dict[str, dict[str, object]] = {}
    for name, constraint in pyro.get_param_store()._constraints.items():
        records[name] = _record(constraint)
    return records


def _record(constraint: Any) -> dict[str, object]:
    numbers = {key: value for key, value in vars(constraint).items() if isinstance(value, int | float | Tensor)}
    inner = {key: _record(value) for key, value in vars(constraint).items() if isinstance(value, Constraint)}
    return {"class": type(constraint).__name__, "with": numbers | inner}


def _constraint(record: Mapping[str, Any], name: str) -> Any:
    cls = getattr(constraints, str(record["class"]), None) or getattr(pyro.distributions.constraints, str(record["class"]), None)
    if not (isinstance(cls, type) and issubclass(cls, Constraint)):
        raise RunError(f"the constraint {str(record['class'])[:40]} of parameter '{name}' cannot be made again from its record")
    if cls is type(constraints.real):
        return constraints.real  # Pyro compares it by identity
    made = cls.__new__(cls)  # its constructor may name its arguments otherwise, or take none
    vars(made).update({key: _constraint(value, name) if isinstance(value, Mapping) else value for key, value in record["with"].items()})
    return made


def create_missing(saved: Mapping[str, Tensor], records: Mapping[str, Mapping[str, object]], device: torch.device) -> None:
    """Put into the store what a dry run of the programs did not create: a parameter that is born late in training.

    Raises:
        RunError: Its constraint cannot be made again from its record.
    """
    store = pyro.get_param_store()
    for name, record in records.items():
        key = f"param.{normalize_param_name(name)}"
        if name in store or key not in saved:
            continue
        store._constraints[name] = _constraint(record, name)
        value = saved[key].clone().to(device).requires_grad_(True)
        store._params[name] = value
        store._param_to_name[value] = name
