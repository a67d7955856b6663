"""Writes the sections of the commands into docs/command_line.md, from ppvae/options.py: `python docs/command_tables.py`."""

from __future__ import annotations

import inspect
import typing
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import tyro

from ppvae.options import COMMANDS, Pair

PAGE = Path(__file__).parent / "command_line.md"
BEGIN, END = "<!-- commands: written by `python docs/command_tables.py` -->", "<!-- end of the commands -->"
SHARED = "data-and-programs"


def parts(command: type[Any]) -> tuple[str, dict[str, str]]:
    """A command's text, and what it says of each of its own attributes."""
    text, _, attributes = inspect.cleandoc(command.__doc__ or "").partition("\n\nAttributes:\n")
    told: dict[str, str] = {}
    for line in inspect.cleandoc(attributes).splitlines() if attributes else []:
        if line.startswith(" "):
            told[next(reversed(told))] += " " + line.strip()
        else:
            name, _, meaning = line.partition(": ")
            told[name] = meaning
    return text, told


def option(field: Field[Any], kind: Any) -> str:
    """How an option is written on the line."""
    metadata = getattr(kind, "__metadata__", ())
    if tyro.conf.Positional in metadata:
        named = [marker.metavar for marker in metadata if getattr(marker, "metavar", None)]
        return f"`{named[0] if named else field.name.upper()}`"
    name = field.name.replace("_", "-")
    return f"`--no-{name}`" if field.default is True else f"`--{name}`"


def default(field: Field[Any]) -> str:
    """What holds where an option is not given."""
    if field.default is MISSING:
        return "needed"
    if isinstance(field.default, bool):
        return "no"
    if field.default is None or field.default == ():
        return ""
    value = field.default
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def table(command: type[Any], inherited: frozenset[str] = frozenset()) -> list[str]:
    """The options of a command, a row each."""
    told: dict[str, str] = {}
    for one in reversed(command.__mro__[:-1]):  # what a command inherits is told where it is declared
        told |= parts(one)[1]
    kinds = typing.get_type_hints(command, include_extras=True)
    own = [field for field in fields(command) if field.name not in inherited]
    if not own:
        return []
    rows = [f"| {option(field, kinds[field.name])} | {default(field)} | {told[field.name].replace('|', chr(92) + '|')} |" for field in own]
    return ["| option | default | |", "|---|---|---|", *rows, ""]


def sections() -> str:
    """Every command, in the order of the help."""
    shared = frozenset(field.name for field in fields(Pair))
    lines = []
    for name, command in COMMANDS.items():
        text, _ = parts(command)
        lines += [f"### ppvae {name}", "", text, "", "```sh", command.example, "```", ""]
        pair = issubclass(command, Pair)
        own = table(command, shared if pair else frozenset())
        lines += own
        if pair:
            lines += [f"{'And' if own else 'Its options are'} those of [data and programs](#{SHARED}).", ""]
    return "\n".join([*lines, "### Data and programs", "", parts(Pair)[0], "", *table(Pair)])


def page(text: str) -> str:
    """The page with its sections brought up to date."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{sections()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
