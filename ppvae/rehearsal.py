"""An objective run before training as training will run it: which parameters it leaves gradients in, and everything put back afterwards.

Objectives may train more than the ELBO depends on: a baseline of ``TraceGraph_ELBO``, a term that a loss of one's own adds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import types
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ppvae.batches import Batch
from ppvae.modules import Program, modules_of
from ppvae.objectives import Scaled, Scales, is_jit
from ppvae.objectives_aggressive import Aggressive
from ppvae.objectives_traces import Objective
from ppvae.surroundings import LARGEST_TENSOR, Surroundings, changed

# What these train, and the objectives of our own, Trace_ELBO depends on.
KNOWN = (Trace_ELBO, TraceMeanField_ELBO, RenyiELBO)
CONTAINERS = (dict, list, set, deque)
# Besides objects with a __dict__: what is put back, or cannot change.
TRANSPARENT = (
    *CONTAINERS,
    tuple,
    frozenset,
    functools.partial,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    nn.Module,
    Enum,
    range,
    slice,
    torch.dtype,
    torch.device,
)


def plain_of(objective: Any) -> Any:
    """The objective whose parameters this one trains: of ``Aggressive`` the one inside, of Pyro's jitted ones the one that they compile."""
    while type(objective) is Aggressive:  # the guide's updates and the step's take that one's gradients, and leave out nothing
        objective = objective.objective
    if is_jit(objective) and type(objective).__module__.startswith("pyro."):
        objective = copy.copy(objective)
        objective.__class__ = type(objective).__base__
    return objective


def is_known(objective: Any) -> bool:
    """Whether all that an objective trains is what the plain ELBO depends on."""
    ours = isinstance(objective, Objective) and type(objective).__module__.startswith("ppvae.")
    return type(objective) in KNOWN or ours


class Rehearsal:
    """An objective that may be run, because what it changes can be put back.

    Args:
        objective: As ``plain_of`` gives it.
        model, guide: The programs.

    Attributes:
        ran: How often it came to its end.
        foreign: Parameters that the objective alone holds, in which its runs left a gradient: nobody trains them.
    """

    def __init__(self, objective: Any, model: Program, guide: Program) -> None:
        self.objective, self.ran = objective, 0
        self.foreign: list[str] = []
        self._own, self._all = Surroundings(objective), Surroundings(objective, model, guide)
        self._pairs = {id(tensor) for tensor in Surroundings(model, guide).tensors()}
        self._foreign = {
            f"{root}.{name}": parameter
            for root, module in modules_of(objective).items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and id(parameter) not in self._pairs
        }
        self._after_first: tuple[Any, ...] | None = None
        self._values: list[tuple[Tensor, Tensor]] = []

    @property
    def pyros(self) -> bool:
        """Whether the objective is Pyro's own, and no subclass or function of a user's."""
        return type(self.objective).__module__.startswith("pyro.")

    @property
    def possible(self) -> bool:
        """Whether nothing that the objective refers to keeps a state that cannot be seen (an iterator, a file, a lock, jitted code)."""
        if self.pyros:
            return True
        jitted = any(cls.__name__.startswith("Jit") for cls in type(self.objective).__mro__)
        return not jitted and not any(_is_opaque(value) for value in self._own.look().seen.values())

    @property
    def holds_parameters(self) -> bool:
        """Whether the objective holds some that ask for a gradient and are none of the pair's."""
        return bool(self._foreign)

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Put back afterwards what the runs change, the values of parameters too: a loss of one's own may train some itself."""
        tensors = [] if self.pyros else self._all.tensors()
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        held = [_contents(value) for value in self._own.look().seen.values()]
        before = [(container, copy.copy(container)) for container in held if container is not None]
        with self._all.kept():
            try:
                yield
            finally:
                with torch.no_grad():
                    for tensor, value in self._values:
                        if not torch.equal(tensor, value):
                            tensor.copy_(value)
                for container, content in before:
                    _refill(container, content)

    def loss_and_grads(self, model: Program, guide: Program, x: Batch) -> None:
        """One run, as ``SVI`` takes it, without weights."""
        model, guide = Scaled(model, Scales()), Scaled(guide, Scales(), torch.zeros((), requires_grad=True))
        if isinstance(self.objective, ELBO):
            self.objective.loss_and_grads(model, guide, x)  # type: ignore[attr-defined]  # every ELBO has it, and Pyro's class does not say
        else:
            loss = self.objective(model, guide, x)
            if getattr(loss, "requires_grad", False):
                loss.backward()
        self.ran += 1
        self.foreign = [name for name, parameter in self._foreign.items() if parameter.grad is not None]
        self._after_first = self._after_first or self._state()

    def moves(self, parameter: Tensor) -> bool:
        """Whether the objective itself has changed a parameter; asked before all is undone."""
        return any(tensor is parameter and not torch.equal(tensor, value) for tensor, value in self._values)

    @property
    def changes(self) -> bool:
        """Whether what the objective goes by was another after the last run than after the first, and may bring in more later."""
        if self._after_first is None:
            return False
        (numbers, tensors, sizes), (numbers_now, tensors_now, sizes_now) = self._after_first, self._state()
        same = tensors.keys() == tensors_now.keys() and all(torch.equal(t, tensors_now[name]) for name, t in tensors.items())
        return bool(changed(numbers, numbers_now)) or numbers.keys() != numbers_now.keys() or not same or sizes != sizes_now

    def _state(self) -> tuple[Any, ...]:
        """The numbers that objective and programs read, the tensors that the objective alone holds, the lengths of its lists."""
        found = self._own.look()
        tensors = {name: value for name, (_, _, value) in found.places.items() if isinstance(value, Tensor)}
        alone = {name: t.detach().clone() for name, t in tensors.items() if id(t) not in self._pairs and t.numel() <= LARGEST_TENSOR}
        return self._all.numbers(), alone, [len(value) for value in found.seen.values() if isinstance(value, CONTAINERS)]


def _is_opaque(value: Any) -> bool:
    return isinstance(value, io.IOBase) or not (isinstance(value, TRANSPARENT) or hasattr(value, "__dict__"))


def _contents(value: Any) -> Any:
    """What of a thing can grow: itself, or its attributes. A module's are looked after as those of the programs are."""
    if isinstance(value, CONTAINERS):
        return value
    plain = hasattr(value, "__dict__") and not isinstance(value, nn.Module | types.FunctionType | types.MethodType | type)
    return vars(value) if plain else None


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(content)
