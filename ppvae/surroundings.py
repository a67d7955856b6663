"""What a run of a program may change around it, seen and put back: Python numbers, tensors, generators, the parameter store.

A compiled step does not run the program, so what the program does to the world besides its arithmetic is no part of it. Verification
runs the program all the same, and must leave no trace. Numbers in objects without a ``__dict__`` (iterators, slots), and tensors of more
than ``LARGEST_TENSOR`` numbers that are no buffers, are not seen.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import pickle
import random
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppvae.modules import Program, modules_of

Number = int | float | bool
LARGEST = 10_000  # places looked at: a program that closes over more keeps data in Python, not settings
LARGEST_TENSOR = 100_000  # numbers of a plain tensor that is kept: a larger one is the data set
DEPTH = 6
ABSENT = object()
LIBRARIES = frozenset({"torch", "pyro", "numpy", "ppvae", "builtins", "functools", "contextlib", "math", "random", "typing"})


@dataclass
class Found:
    """What a look at the programs finds.

    Attributes:
        places: Container, key and content, of Python numbers and plain tensors, by the name that a user knows them by.
        generators: Random generators of the programs' own, likewise.
        modules: Torch modules, by identity.
        seen: What was looked into, so that it stays alive and is looked into once.
    """

    places: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    modules: dict[int, nn.Module] = field(default_factory=dict)
    seen: dict[int, Any] = field(default_factory=dict)


class Surroundings:
    """The mutable surroundings of some programs.

    Args:
        programs: Whose closures, globals, attributes and modules are looked through.
    """

    def __init__(self, *programs: Program) -> None:
        self.programs = programs
        self.modules: list[nn.Module] = []
        self.parameters: list[nn.Parameter] = []
        self.refresh()

    def look(self) -> Found:
        """Look through the programs."""
        found = Found()
        for program in self.programs:
            _look(program, "", found, 0)
        return found

    def refresh(self) -> None:
        """Find the modules again: an automatic guide makes its own at its first run."""
        found = self.look()
        roots = [*(root for program in self.programs for root in modules_of(program).values()), *found.modules.values()]
        self.modules = list({id(m): m for root in roots for m in root.modules()}.values())
        self.parameters = list({id(p): p for m in self.modules for p in m.parameters(recurse=False)}.values())

    def numbers(self) -> dict[str, Number]:
        """Every Python number that the programs can be seen to read, by a name that a user knows it by."""
        return {name: value for name, (_, _, value) in self.look().places.items() if isinstance(value, int | float)}

    def modes(self) -> tuple[bool, ...]:
        """Whether each module is in training mode, and each parameter is trained."""
        return (*[module.training for module in self.modules], *[p.requires_grad for p in self.parameters])

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers of the modules, and what the parameter store holds, each once."""
        found = [t for module in self.modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        found += [parameter for _, parameter in pyro.get_param_store().named_parameters()]
        return list({id(t): t for t in found}.values())

    def buffers(self, found: Found | None = None) -> list[Tensor]:
        """Buffers of the modules, and the plain tensors that the programs hold, each once."""
        plain = [value for _, _, value in (found or self.look()).places.values() if isinstance(value, Tensor)]
        small = [t for t in plain if not t.requires_grad and t.numel() <= LARGEST_TENSOR and not _is_expanded(t)]
        return list({id(b): b for b in (*(b for module in self.modules for b in module.buffers(recurse=False)), *small)}.values())

    def noise(self) -> dict[str, bytes]:
        """The states of the generators that a graph cannot draw from: Python's, numpy's, and the programs' own."""
        return {name: _bytes(state()) for name, (state, _) in _generators(self.look()).items()}

    @contextlib.contextmanager
    def kept(self, leaves: Iterable[Tensor] = ()) -> Iterator[None]:
        """Put back afterwards what a run of the programs changes: numbers, tensors, generators, parameters born, gradients.

        Args:
            leaves: Parameters that the modules do not show.
        """
        found = self.look()
        buffers = [(b, b.detach().clone()) for b in self.buffers(found)]
        plain = [value for _, _, value in found.places.values() if isinstance(value, Tensor)]
        gradients = [(t, t.grad) for t in {id(t): t for t in (*self.tensors(), *plain, *leaves)}.values() if t.is_leaf]
        store, generators = pyro.get_param_store(), _generators(found)
        names, states = set(store), [(put, state()) for state, put in generators.values()]
        for tensor, _ in gradients:
            tensor.grad = None
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                yield
        finally:
            for container, key, value in found.places.values():
                _put(container, key, value)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for name in [name for name in store if name not in names]:
                del store[name]
            for tensor, gradient in gradients:
                tensor.grad = gradient
            for put, state in states:
                put(state)


def changed(before: dict[str, Number], after: dict[str, Number]) -> str:
    """The first number that two looks disagree on, in words; empty where there is none."""
    for name, value in after.items():
        if name in before and before[name] != value and not (value != value and before[name] != before[name]):
            return f"the program's number {name} went from {before[name]!r} to {value!r}"
    return ""


def replaced(before: Found, after: Found) -> Iterator[tuple[str, Tensor]]:
    """The tensors that were there at the first look and stand at the second no longer where they stood, by name."""
    for name, (_, _, value) in before.places.items():
        if isinstance(value, Tensor) and name in after.places and after.places[name][2] is not value:
            yield name, value


def drawn(before: dict[str, bytes], after: dict[str, bytes]) -> str:
    """The generator that was drawn from between two looks at ``noise``; empty where there is none."""
    return next((name for name, state in after.items() if before.get(name, state) != state), "")


def _bytes(state: Any) -> bytes:
    return state.numpy().tobytes() if isinstance(state, Tensor) else pickle.dumps(state)


def _generators(found: Found) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How the state of each generator is read and put back."""
    known: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "Python's generator": (random.getstate, random.setstate),
        "numpy's generator": (np.random.get_state, np.random.set_state),
    }
    for name, value in found.generators.items():
        if isinstance(value, torch.Generator):
            known[f"the generator {name}"] = (value.get_state, value.set_state)
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            known[f"the generator {name}"] = (lambda bits=bits: bits.state, functools.partial(setattr, bits, "state"))  # type: ignore[misc]
        elif isinstance(value, np.random.RandomState):
            known[f"the generator {name}"] = (value.get_state, value.set_state)
        else:
            known[f"the generator {name}"] = (value.getstate, value.setstate)
    return known


def _look(value: Any, name: str, found: Found, depth: int) -> None:
    """Note the numbers, tensors, generators and modules inside a function, an object or a container."""
    if id(value) in found.seen or depth > DEPTH or len(found.places) > LARGEST:
        return
    found.seen[id(value)] = value
    if isinstance(value, nn.Module):
        found.modules[id(value)] = value
    for container, key, child, part in _children(value):
        label = f"{name}{part}" if name else part.lstrip(".")
        if isinstance(child, int | float | Tensor):  # bool too
            found.places[_free(label, found.places)] = (container, key, child)
        elif child is ABSENT:
            found.places[f"{label} of the object"] = (container, key, child)
        elif isinstance(child, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            found.generators[_free(label, found.generators)] = child
        elif not isinstance(child, str | bytes | type | types.ModuleType | np.ndarray) and child is not None:
            _look(child, label, found, depth + 1)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several entries are one number in memory: such a tensor is written to by nobody."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _free(label: str, taken: dict[str, Any]) -> str:
    """A name for a second variable of the same name, which another function may have."""
    count = 1
    while (name := label if count == 1 else f"{label} ({count})") in taken:
        count += 1
    return name


def _children(value: Any) -> Iterator[tuple[Any, Any, Any, str]]:
    """What a thing holds: container, key, content, and how it is written."""
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:
        yield vars(value), "__wrapped__", wrapped, ""
    if inspect.ismethod(value):
        yield None, None, value.__self__, ""
        yield None, None, value.__func__, ""
    elif isinstance(value, functools.partial):
        yield None, None, value.func, ""
        yield from ((None, None, part, f".args[{i}]") for i, part in enumerate(value.args))
        yield from ((value.keywords, key, part, f".{key}") for key, part in value.keywords.items())
    elif inspect.isfunction(value):
        if _from_a_library(value):
            return
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that nothing was put into yet
                yield cell, "cell_contents", cell.cell_contents, f".{key}"
        for key in _globals_of(value.__code__):
            if key in value.__globals__:
                yield value.__globals__, key, value.__globals__[key], f".{key}"
        yield from ((vars(value), key, part, f".{key}") for key, part in list(vars(value).items()) if key != "__wrapped__")
        defaults = dict(zip(reversed(inspect.getfullargspec(value).args), reversed(value.__defaults__ or ()), strict=False))
        yield from ((None, None, part, f".{key}") for key, part in {**defaults, **(value.__kwdefaults__ or {})}.items())
    elif isinstance(value, dict):
        yield from ((value, key, part, f"[{key!r}]") for key, part in list(value.items()))
    elif isinstance(value, list | tuple):
        yield from ((value if isinstance(value, list) else None, i, part, f"[{i}]") for i, part in enumerate(value))
    elif isinstance(value, nn.Module):
        for module_name, module in value.named_modules():
            own = {k: v for k, v in vars(module).items() if k not in INTERNAL}
            prefix = f".{module_name}" if module_name else ""
            yield from ((vars(module), key, part, f"{prefix}.{key}") for key, part in own.items())
            yield from ((module._buffers, key, part, f"{prefix}.{key}") for key, part in module._buffers.items())
            yield from _of_class(type(module), prefix, vars(module))
    elif hasattr(value, "__dict__") and not isinstance(value, types.BuiltinFunctionType):
        yield from ((vars(value), key, part, f".{key}") for key, part in list(vars(value).items()) if key != "__wrapped__")
        yield from _of_class(type(value), "", vars(value))


def _of_class(cls: type, prefix: str, own: dict[str, Any]) -> Iterator[tuple[Any, Any, Any, str]]:
    """What the methods of a user's class read, and the numbers that stand in the class itself.

    ``self.step += 1`` over a number of the class gives the object one of its own: that it has none yet is noted too.
    """
    for owner in cls.__mro__:
        if owner is object or _from_a_library(owner):
            continue
        for key, part in vars(owner).items():
            part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
            if inspect.isfunction(part):
                yield None, None, part, ""
            elif isinstance(part, int | float | list | dict) and not key.startswith("__"):
                yield owner, key, part, f"{prefix}.{key}"
                if key not in own and isinstance(part, int | float):
                    yield own, key, ABSENT, f"{prefix}.{key}"


@functools.lru_cache(maxsize=1000)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function reads, the functions and comprehensions inside it too; not the names of attributes."""
    own = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [key for part in code.co_consts if isinstance(part, types.CodeType) for key in _globals_of(part)]
    return tuple(dict.fromkeys([*own, *inner]))


def _from_a_library(value: Any) -> bool:
    """Whether a function or class is not the user's: what it reads is not the program's."""
    return str(getattr(value, "__module__", "") or "").partition(".")[0] in LIBRARIES


INTERNAL = frozenset(vars(nn.Module())) | {"_pyro_context", "_pyro_params", "_pyro_samples", "_pyro_name", "_pyro_fields"}


def _put(container: Any, key: Any, value: Any) -> None:
    if container is None:
        return
    if value is ABSENT:
        container.pop(key, None)
    elif isinstance(container, types.CellType):
        container.cell_contents = value
    elif isinstance(container, type):
        if vars(container).get(key, ABSENT) is not value:
            setattr(container, key, value)
    elif isinstance(container, dict):
        if container.get(key, ABSENT) is not value:
            container[key] = value
    elif key < len(container) and container[key] is not value:
        container[key] = value
