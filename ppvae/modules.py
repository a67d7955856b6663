"""The torch modules a program holds, however it holds them, and running them in eval mode."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

Program = Callable[..., Any]


def modules_of(program: Program) -> dict[str, nn.Module]:
    """The root modules that a program can be seen to hold, by a name that is the same in every process.

    A module itself is "" (its tensors keep their own names); a bound method's module likewise; modules that a plain function closes
    over, reads from its globals or has bound by ``functools.partial`` go by their variable's name. Modules reached in other ways
    (inside a list, behind another function) are not found here.
    """
    found: dict[str, nn.Module] = {}
    for name, value in _held(program):
        if isinstance(value, nn.Module) and not any(value is other for other in found.values()):
            found[name] = value
    return found


def frozen_parameters(*programs: Program) -> list[nn.Parameter]:
    """The parameters that the programs' modules hold without gradient."""
    parameters = (p for program in programs for module in modules_of(program).values() for p in module.parameters())
    return [p for p in parameters if not p.requires_grad]


def freeze(parameters: Iterable[nn.Parameter]) -> None:
    """Take the gradient from parameters again: Pyro's store gives one to every parameter that a ``PyroModule`` registers there."""
    for parameter in parameters:
        parameter.requires_grad_(False)


def device_of_programs(*programs: Program) -> torch.device | None:
    """The device of the programs' parameters, where they can be seen to hold any."""
    for program in programs:
        for module in modules_of(program).values():
            for parameter in module.parameters():
                return parameter.device
    return None


def _held(program: Program) -> Iterator[tuple[str, Any]]:
    program = inspect.unwrap(program)
    if isinstance(program, nn.Module):
        yield "", program
    elif inspect.ismethod(program):
        owner = program.__self__
        yield "", owner
        if not isinstance(owner, nn.Module):
            yield from vars(owner).items() if hasattr(owner, "__dict__") else ()
    elif isinstance(program, functools.partial):
        yield from _held(program.func)
        yield from program.keywords.items()
        yield from ((f"argument{i}", value) for i, value in enumerate(program.args))
    elif inspect.isfunction(program):
        variables = inspect.getclosurevars(program)
        yield from variables.nonlocals.items()
        yield from variables.globals.items()
        # A module used through an object that is no module: `self.net` where `self` is a plain class, `vae.decoder` of a closed-over vae.
        for owner_name, owner in {**variables.nonlocals, **variables.globals}.items():
            if not isinstance(owner, nn.Module | type) and not inspect.ismodule(owner) and hasattr(owner, "__dict__"):
                yield from ((f"{owner_name}.{name}", value) for name, value in vars(owner).items() if isinstance(value, nn.Module))
    elif hasattr(program, "__dict__"):
        yield from vars(program).items()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Have torch make floats of this type unless told otherwise, in this block; None leaves things as they are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def double(*programs: Program) -> None:
    """Make all parameters and buffers float64 that programs can be seen to hold."""
    for program in programs:
        for module in modules_of(program).values():
            module.double()


@contextlib.contextmanager
def eval_mode(*programs: Program) -> Iterator[None]:
    """Run modules in eval mode (dropout off, BatchNorm by its running statistics), and put their modes back afterwards.

    The modules of ``programs`` are switched at the start. Others are caught by a global forward pre-hook, which fires before a
    module's own ``forward`` reads ``self.training``.
    """
    switched: list[nn.Module] = []

    def switch(module: nn.Module, _: Any = None) -> None:
        if module.training:
            module.training = False
            switched.append(module)

    for program in programs:
        for root in modules_of(program).values():
            for module in root.modules():
                switch(module)
    hook = register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        hook.remove()
        for module in switched:
            module.training = True
