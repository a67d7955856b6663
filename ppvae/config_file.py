"""The options of a command in a file: TOML, or the JSON that a run folder keeps of the command that made it."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from ppvae.errors import MissingFileError, UsageError

RECORDED = {"image_shape"}  # what a run's command.json holds besides options
MOST_DOTS = 1000
EXAMPLE = "TOML, a line an option: epochs = 100"
# Type of an option -> what one is called, and several.
KINDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truths"),
    str: ("a string", "strings"),
    Path: ("a path in quotes", "paths in quotes"),
}


def read(path: Path) -> dict[str, Any]:
    """The options that a file gives.

    Raises:
        MissingFileError: There is none.
        UsageError: It is no TOML and no JSON, or no table of options.
    """
    try:
        text = path.read_text()
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line of more than {MOST_DOTS} dots")  # a key so deep takes tomllib minutes and gigabytes
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}", mend="--print-config prints one to start from") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}", mend=EXAMPLE) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no table of options", mend=EXAMPLE)
    return {key.replace("-", "_"): value for key, value in found.items() if value is not None and key not in RECORDED}


def defaults(command: type[Any], given: Mapping[str, Any], path: Path) -> Any:
    """The command's options as a file gives them; what a command must be told and the file leaves out stays open.

    Raises:
        UsageError: An option that the command does not have, or a value of the wrong kind.
    """
    kinds = typing.get_type_hints(command)
    names = [field.name for field in fields(command)]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise UsageError(
                f"{path} gives '{name}', which is no option of this command",
                mend=[f"did you mean '{near[0]}'?" if near else "", f"one of {', '.join(names)}"],
            )
    values = {}
    for name, value in given.items():
        try:
            values[name] = _converted(value, kinds[name])
        except TypeError as error:
            raise UsageError(f"{path}: {name} is {error}, got {value!r}", mend=_example(command, name)) from error
    needed = [field.name for field in fields(command) if field.default is MISSING and field.default_factory is MISSING]
    return command(**{name: tyro.MISSING for name in needed} | values)


def printed(options: Any) -> str:
    """The options as TOML that gives them again; those that are not set are left out."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return "\n".join(f"{name} = {_toml(value)}" for name, value in values.items() if value is not None)


def _example(command: type[Any], name: str) -> str:
    """A line that could stand in the file: the default, where there is one."""
    default = next(field.default for field in fields(command) if field.name == name)
    return "" if default in (MISSING, None, ()) else f"as in: {name} = {_toml(default)}"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False)  # a basic string of TOML is one of JSON


def _converted(value: Any, kind: Any) -> Any:
    """A value of a file as the type of its option.

    Raises:
        TypeError: It is none of that type; the message says what was needed.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [part for part in arguments if part is not type(None)]
        return _converted(value, kind)
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        repeated = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (repeated or len(value) == len(arguments)):
            raise TypeError(f"a list of {'' if repeated else f'{len(arguments)} '}{KINDS[arguments[0]][1]}")
        try:
            return tuple(_converted(part, arguments[0]) for part in value)
        except TypeError:
            raise TypeError(f"a list of {KINDS[arguments[0]][1]}") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(KINDS[kind][0])
    return value
