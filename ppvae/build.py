"""An object <-> JSON: the class of a program or network and the arguments of its constructor.

What a model and a guide both use is written once, and each place refers to it, so that it is one object again when they are made. Only
classes of ``ppvae`` and ``torch.nn``, and the transforms of Pyro that are named below, are ever imported from such a record, so reading
one runs nobody else's code.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

import torch

from ppvae.errors import RunError

C = TypeVar("C", bound=type)
Place = int | str  # of a record: in the list of shared objects, or "model" or "guide"
TRUSTED = ("ppvae.", "torch.nn.")
ACTIVATIONS = "torch.nn.modules.activation."


def _of(*names: str, **others: str | Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """Argument of a constructor -> where the object keeps it: under the argument's name, under another, or in what it was used for."""
    kept = {name: attrgetter(name) for name in names}
    return kept | {name: attrgetter(place) if isinstance(place, str) else place for name, place in others.items()}


def _activation(transform: Any) -> str:
    return {"ELUTransform": "ELU", "LeakyReLUTransform": "LeakyReLU", "SigmoidTransform": "sigmoid", "TanhTransform": "tanh"}[
        type(transform.T).__name__
    ]


CLIPS = ("log_scale_min_clip", "log_scale_max_clip")
DENSE = ("input_dim", "hidden_dims", "param_dims")
# Pyro's transforms and networks of a fixed input, and the arguments that they keep: those of one that asks for a context are left out.
PYRO: dict[str, dict[str, Callable[[Any], Any]]] = {
    "torch.distributions.transforms._InverseTransform": _of(transform="_inv"),
    "pyro.distributions.torch_transform.ComposeTransformModule": _of("parts"),
    "pyro.nn.dense_nn.DenseNN": _of(*DENSE, nonlinearity="f"),
    "pyro.nn.auto_reg_nn.AutoRegressiveNN": _of(
        *DENSE, "permutation", skip_connections=lambda network: network.skip_layer is not None, nonlinearity="f"
    ),
} | {
    f"pyro.distributions.transforms.{name}": arguments
    for name, arguments in {
        "affine_autoregressive.AffineAutoregressive": _of(*CLIPS, "sigmoid_bias", "stable", autoregressive_nn="arn"),
        "affine_coupling.AffineCoupling": _of("split_dim", "dim", *CLIPS, hypernet="nn"),
        "basic.ELUTransform": {},
        "basic.LeakyReLUTransform": {},
        "batchnorm.BatchNorm": _of("input_dim", "momentum", "epsilon"),
        "block_autoregressive.BlockAutoregressive": _of(
            "input_dim",
            "residual",
            hidden_factors=lambda block: [layer.out_features // block.input_dim for layer in block.layers[:-1]],
            activation=_activation,
        ),
        "householder.Householder": _of("input_dim", count_transforms=lambda mirror: len(mirror.u_unnormed)),
        "matrix_exponential.MatrixExponential": _of(
            "iterations", "normalization", "bound", input_dim=lambda exponential: len(exponential.weights)
        ),
        "neural_autoregressive.NeuralAutoregressive": _of("hidden_units", autoregressive_nn="arn", activation=_activation),
        "permute.Permute": _of("permutation", "dim"),
        "planar.Planar": _of("input_dim"),
        "polynomial.Polynomial": _of("input_dim", "count_degree", "count_sum", autoregressive_nn="arn"),
        "radial.Radial": _of("input_dim"),
        "spline.Spline": _of("input_dim", "count_bins", "bound", "order"),
        "spline_autoregressive.SplineAutoregressive": _of(
            input_dim="spline.input_dim",
            autoregressive_nn="arn",
            count_bins="spline.count_bins",
            bound="spline.bound",
            order="spline.order",
        ),
        "spline_coupling.SplineCoupling": _of(
            "split_dim",
            "identity",
            input_dim=lambda coupling: coupling.split_dim + coupling.upper_spline.input_dim,
            hypernet="upper_spline.nn",
            count_bins="upper_spline.count_bins",
            bound="upper_spline.bound",
            order="upper_spline.order",
        ),
        "sylvester.Sylvester": _of("input_dim", count_transforms=lambda flow: len(flow.u_unnormed)),
    }.items()
}


def recorded(cls: C) -> C:
    """Class decorator: keep the constructor's arguments, so that a run folder can tell how the object was made.

    A class may name arguments in ``_as_it_is``: attributes of the same name that may have changed since, and are recorded as they are
    (a parameter by its shape, since a checkpoint has its values). In ``_borrowed`` it names the one whose tensors it uses and does not
    hold: they are saved as the pair's own, or not at all.
    """
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


def to_json(value: Any, known: Mapping[int, Place] | None = None) -> Any:
    """A JSON-able record from which ``from_json`` makes an equal object.

    Args:
        value: What to record.
        known: Identities of objects that have a record of their own, and its place: where they are used, the place is written.

    Raises:
        RunError: Something in it cannot be made again from a record: a network of the user's own, a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(part, known) for part in value]
    if known is not None and id(value) in known:
        return {"object": known[id(value)]}
    if isinstance(value, _Shape):
        return {"zeros": list(value.size)}
    if isinstance(value, torch.Tensor) and value.numel() <= 4096:
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if inspect.isclass(value) and _name(value).startswith(TRUSTED):
        return {"class": _name(value)}
    arguments = _arguments(value)
    if arguments is not None:
        return {"make": _name(type(value)), "with": {name: to_json(argument, known) for name, argument in arguments.items()}}
    raise RunError(f"a value of type {type(value).__name__} cannot be made again from a record")


def from_json(record: Any, made: Callable[[Any], Any] | None = None) -> Any:
    """The object that ``to_json`` recorded.

    Args:
        record: Its record.
        made: Place -> the object that has its record there.

    Raises:
        RunError: The record names a class that is not ours, torch.nn's or of ``PYRO``, or one that is gone.
    """
    if isinstance(record, list):
        return [from_json(part, made) for part in record]
    if not isinstance(record, dict):
        return record
    if made is not None and "object" in record:
        return made(record["object"])
    if "zeros" in record:
        return torch.zeros(record["zeros"])
    if "tensor" in record:
        return torch.tensor(record["tensor"], dtype=getattr(torch, record["dtype"]))
    if "class" in record:
        return _find(record["class"])
    return _find(record["make"])(**{name: from_json(argument, made) for name, argument in record["with"].items()})


def pair_to_json(model: Any, guide: Any) -> dict[str, Any]:
    """The records of a model and its guide, and beside them, each once, those of the objects that are used more than once.

    Raises:
        RunError: As ``to_json``.
    """
    roots: dict[Place, Any] = {"model": model, "guide": guide}
    several = [value for value in shared(model, guide) if value is not model and value is not guide]
    places: dict[Place, Any] = roots | dict(enumerate(several))
    records = {place: to_json(value, {id(v): p for p, v in places.items() if p != place}) for place, value in places.items()}
    objects = [records.pop(place) for place in range(len(several))]
    return ({"objects": objects} if objects else {}) | {str(place): record for place, record in records.items()}


def pair_from_json(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model and the guide of ``pair_to_json``, what they shared shared again. Records without shared objects are older folders' too.

    Raises:
        RunError: As ``from_json``; a record refers to one that is not there, or to itself.
        TypeError: What it makes cannot be called.
    """
    objects = record.get("objects", [])
    if not isinstance(objects, list):
        raise RunError("the record's objects are no list")
    records: dict[Place, Any] = {"model": record["model"], "guide": record["guide"], **dict(enumerate(objects))}
    found: dict[Place, Any] = {}
    begun: set[Place] = set()

    def made(place: Any) -> Any:
        if type(place) not in (int, str) or place not in records:
            raise RunError(f"the record refers to object {str(place)[:20]!r}, which it does not have")
        if place not in found:
            if place in begun:
                raise RunError(f"the record's object {place!r} is a part of itself")
            begun.add(place)
            found[place] = from_json(records[place], made)
        return found[place]

    model, guide = made("model"), made("guide")
    for side, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise TypeError(f"the {side} is of type {type(program).__name__}, and no program")
    return model, guide


def shared(model: Any, guide: Any) -> list[Any]:
    """The objects that model and guide, or parts of them, use more than once; themselves too, where one is used in the other."""
    order, uses = _used(model, guide)
    return [value for value in order if uses[id(value)] > 1]


def borrowed(model: Any, guide: Any) -> list[Any]:
    """What objects of model and guide use and do not hold: a model inside a guide's tuple, a guide inside a prior's."""
    order, _ = _used(model, guide)
    return [_arguments(value)[value._borrowed] for value in order if hasattr(type(value), "_borrowed")]  # type: ignore[index]


def _used(*roots: Any) -> tuple[list[Any], dict[int, int]]:
    """The recorded objects that these are made of, and themselves, innermost first; and how often each is used, by identity."""
    order: list[Any] = []
    uses: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, list | tuple):
            for part in value:
                visit(part)
            return
        arguments = _arguments(value)
        if arguments is None:
            return
        uses[id(value)] = uses.get(id(value), 0) + 1
        if uses[id(value)] == 1:
            visit(list(arguments.values()))
            order.append(value)

    visit(roots)
    return order, uses


class _Shape:
    """A tensor whose values a checkpoint has."""

    def __init__(self, size: torch.Size) -> None:
        self.size = size


def _arguments(value: Any) -> dict[str, Any] | None:
    """The arguments that make an equal object; None where no record can name them."""
    name = _name(type(value))
    if name in PYRO:
        try:
            return {argument: read(value) for argument, read in PYRO[name].items()}
        except (AttributeError, KeyError):  # another version of Pyro keeps it elsewhere
            return None
    if name.startswith(ACTIVATIONS):
        names = [p.name for p in inspect.signature(type(value)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        plain = not list(value.parameters()) and all(hasattr(value, argument) for argument in names)
        return {argument: getattr(value, argument) for argument in names} if plain else None
    arguments: dict[str, Any] | None = getattr(value, "_constructed_with", None)
    if arguments is None or not name.startswith(TRUSTED):
        return None
    now = {argument: getattr(value, argument) for argument in getattr(type(value), "_as_it_is", ())}
    return arguments | {argument: _Shape(at.shape) if isinstance(at, torch.nn.Parameter) else at for argument, at in now.items()}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    foreign = RunError(f"the record names '{name}', and only classes of ppvae and torch.nn are made from a record")
    try:
        if not (name.startswith(TRUSTED) or name in PYRO):
            raise foreign
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RunError(f"the record names '{name}', which this version of ppvae or torch does not have") from error
    if not inspect.isclass(found):
        raise RunError(f"the record names '{name}', which is no class")
    if not (_name(found).startswith(TRUSTED) or name in PYRO):  # what a module of ours imports from elsewhere
        raise foreign
    return found
