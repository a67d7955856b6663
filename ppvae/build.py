"""An object <-> JSON: the class of a program or network and the arguments of its constructor.

Only classes of ``ppvae`` and ``torch.nn`` are ever imported from such a record, so reading one runs nobody else's code.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ppvae.errors import RunError

C = TypeVar("C", bound=type)
TRUSTED = ("ppvae.", "torch.nn.")


def recorded(cls: C) -> C:
    """Class decorator: keep the constructor's arguments, so that a run folder can tell how the object was made."""
    construct: Callable[..., None] = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        bound = signature.bind(self, *args, **kwargs)
        construct(self, *args, **kwargs)
        if type(self) is cls:  # a subclass has arguments of its own
            given = list(bound.arguments.items())[1:]
            arguments = {name: list(value) if isinstance(value, list) else value for name, value in given}  # a list may change later
            object.__setattr__(self, "_constructed_with", arguments)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def to_json(value: Any) -> Any:
    """A JSON-able record from which ``from_json`` makes an equal object.

    Raises:
        RunError: Something in it cannot be made again from a record: a network of the user's own, a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, torch.Tensor) and value.numel() <= 4096:
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if inspect.isclass(value) and _name(value).startswith(TRUSTED):
        return {"class": _name(value)}
    arguments = getattr(value, "_constructed_with", None)
    if arguments is not None and _name(type(value)).startswith(TRUSTED):
        return {"make": _name(type(value)), "with": {name: to_json(argument) for name, argument in arguments.items()}}
    raise RunError(f"a {type(value).__name__} cannot be made again from a record")


def from_json(record: Any) -> Any:
    """The object that ``to_json`` recorded.

    Raises:
        RunError: The record names a class that is not ours or torch.nn's, or one that is gone.
    """
    if isinstance(record, list):
        return [from_json(part) for part in record]
    if not isinstance(record, dict):
        return record
    if "tensor" in record:
        return torch.tensor(record["tensor"], dtype=getattr(torch, record["dtype"]))
    if "class" in record:
        return _find(record["class"])
    return _find(record["make"])(**{name: from_json(argument) for name, argument in record["with"].items()})


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        if not name.startswith(TRUSTED):
            raise RunError(f"the record names '{name}', and only classes of ppvae and torch.nn are made from a record")
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RunError(f"the record names '{name}', which this version of ppvae or torch does not have") from error
    if not inspect.isclass(found):
        raise RunError(f"the record names '{name}', which is no class")
    return found
