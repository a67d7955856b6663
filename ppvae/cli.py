"""The command line: it parses, calls the library and prints; it decides nothing.

What can be asked for stands in ``options.py``, what a command does in ``commands/`` under its name, imported once the arguments are read:
torch and Pyro take seconds to import, and help needs neither.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ppvae import config_file
from ppvae.errors import PpvaeError, RelaxedMeasureWarning, UnreliableWarning, UsageError, in_a_line
from ppvae.options import COMMANDS, check, chosen
from ppvae.output import as_json, dumps, say

INTERRUPTED = 130
INPUT_OUTPUT = 74
BUG = 70
MOST_LINES = 12  # of an error


@dataclass(frozen=True)
class Common:
    """What any command understands, wherever it stands among the arguments.

    Attributes:
        debug: Show an error's traceback.
        json: Print one JSON object on stdout, everything else on stderr.
        print_config: Print the options as TOML and do nothing.
        config: A file of options; those given on the line win.
    """

    debug: bool = False
    json: bool = False
    print_config: bool = False
    config: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0 done, 2 usage, 65 data or programs, 66 no such file, 70 diverged or a bug, 74 input and output, 75 the run is held, 130 Ctrl-C, 143
    SIGTERM.
    """
    debug = os.environ.get("PPVAE_DEBUG", "0") not in ("", "0")
    json = False
    try:
        common, arguments = _common(list(sys.argv[1:] if argv is None else argv))
        debug, json = debug or common.debug, common.json
        with _warnings_as_lines(), as_json(json) as told:
            code = _run(common, arguments)
        if json and told and _is_first():
            print(dumps({"exit_code": code} | told), flush=True)
        return code
    except SystemExit as stop:  # tyro has printed help (0) or what is wrong with the arguments (2)
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as stop:  # that of a second signal knows which it was
        return _failed(PpvaeError("interrupted"), getattr(stop, "exit_code", INTERRUPTED), debug, json)
    except PpvaeError as error:
        return _failed(error, error.exit_code, debug, json)
    except OSError as error:
        return _failed(PpvaeError(f"{type(error).__name__}: {error}"), INPUT_OUTPUT, debug, json)
    except Exception as error:  # the user's program may raise anything
        memory = sys.modules.get("ppvae.memory")  # whoever needs much of it has imported that
        if memory is not None and memory.is_out_of_memory(error):
            return _failed(PpvaeError("memory ran out", where=in_a_line(error), mend=memory.REMEDIES), BUG, debug, json)
        remedy = "" if debug else "this is a bug in ppvae or in your program: run again with --debug"
        return _failed(PpvaeError(f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", mend=remedy), BUG, debug, json)


def _common(arguments: list[str]) -> tuple[Common, list[str]]:
    """What any command understands, and the other arguments."""
    rest, flags, config, words = [], set(), None, iter(arguments)
    for word in words:
        if word in ("--debug", "--json", "--print-config"):
            flags.add(word)
        elif word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] or next(words, "")
            if not value:
                raise UsageError("--config needs a file", mend="--config settings.toml")
            config = Path(value)
        else:
            rest.append(word)
    return Common("--debug" in flags, "--json" in flags, "--print-config" in flags, config), rest


def _run(common: Common, arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from ppvae import __version__

        print(f"ppvae {__version__}")
        return 0
    started = time.monotonic()
    name = chosen("command", arguments[0], list(COMMANDS))
    options = _parsed(name, arguments[1:], common.config, common.json)
    if common.print_config:
        print(config_file.printed(options))
        return 0
    if _is_first():
        say(f"ppvae {name}: {_first_words(options)}")
    if name == "train" and not options.new:  # a new folder is held by nobody
        from ppvae.lock import refuse_held

        refuse_held(options.run_folder)
    code: int = importlib.import_module(f"ppvae.commands.{name}").run(options)
    if _is_first():
        say(f"ppvae {name}: done in {time.monotonic() - started:.1f} s")
    return code


def _parsed(name: str, arguments: list[str], config: Path | None = None, json: bool = False) -> Any:
    """The command's dataclass, filled in; tyro exits on ``--help`` and on arguments that it cannot read.

    Raises:
        UsageError: It cannot, and one JSON object is to tell so.
    """
    command = COMMANDS[name]
    given = {} if config is None else {"default": config_file.defaults(command, config_file.read(config), config)}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told) if json else contextlib.nullcontext():
            options = tyro.cli(command, prog=f"ppvae {name}", args=arguments, config=(tyro.conf.FlagCreatePairsOff,), **given)
    except SystemExit as stop:
        if not stop.code:
            print(f"\nexample:\n  {command.example}")
        elif json:
            problem, remedies = _read_off(told.getvalue())
            raise UsageError(problem, mend=[*remedies, f"`ppvae {name} --help` tells the options"]) from None
        raise
    check(options)
    return options


def _read_off(box: str) -> tuple[str, list[str]]:
    """What tyro has printed below its title, in a box or without lines: the first paragraph is what is wrong, options are those meant."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    _, *lines = [line.strip(" │") for line in plain.splitlines()] or [""]
    below = itertools.dropwhile(lambda line: not line.strip("-"), lines)
    problem = " ".join(itertools.takewhile(lambda line: line.strip("─-"), below)) or "the arguments cannot be read"
    meant = [line.split()[0] for line in lines if line.startswith("--") and line.strip("-")]
    return problem, [f"did you mean {option}?" for option in meant if option not in problem]


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: ppvae COMMAND [OPTIONS]      `ppvae COMMAND --help` tells the options", ""]
    lines += ["Variational autoencoders as pairs of Pyro programs: trained, and measured.", "", "commands:"]
    for name, command in COMMANDS.items():
        lines += [f"  {name:{width}}{command.__doc__.splitlines()[0]}", f"  {'':{width}}$ {command.example}"]
    lines += [
        "",
        "with any command:",
        "  --config FILE   options from a TOML file; those given beside it win",
        "  --print-config  print the options as such a file, and do nothing",
        "  --json          one JSON object on stdout, everything else on stderr",
        "  --debug         show an error's traceback (or PPVAE_DEBUG=1)",
        "  --version       print the version",
        "",
        "exit codes: 0 done, 2 usage, 65 data or programs, 66 no such file,",
        "  70 diverged or a bug, 74 input and output, 75 the run is held by another,",
        "  130 Ctrl-C, 143 SIGTERM",
    ]
    return "\n".join(lines)


def _first_words(options: Any) -> str:
    """What is about to happen, from the arguments alone."""
    told = {"run": "", "first": "", "second": "", "folder": "", "name": "", "data": "data ", "program": "program ", "split": "split "}
    words = [f"{word}{value}" for name, word in told.items() if (value := getattr(options, name, None)) is not None]
    return ", ".join(words) or "begins"


def _failed(error: PpvaeError, code: int, debug: bool, json: bool) -> int:
    if debug:
        traceback.print_exc()
    lines = str(error).removeprefix("error: ").splitlines()  # what `check` found begins so, a line a finding
    if len(lines) > MOST_LINES and not debug:
        lines = [*lines[: MOST_LINES - 1], f"  ... and {len(lines) - MOST_LINES + 1} lines more: --debug shows them"]
    said = "\n".join(lines)
    say(f"error: {said}" if _is_first() else f"error in process {os.environ['RANK']}: {said}")
    if json and _is_first():
        print(dumps({"exit_code": code, "error": {"problem": error.problem, "where": error.where, "mend": error.mend}}), flush=True)
    return code


def _is_first() -> bool:
    """Whether this process is the only one of a job, or the first: torchrun says it to each before torch is imported."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """The library's own warnings, each on one line; others as Python shows them."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, UnreliableWarning | RelaxedMeasureWarning):
                say(f"warning: {' '.join(str(message).split())}")
            else:
                shown(message, category, *rest, **named)

        warnings.showwarning = show
        for category in (UnreliableWarning, RelaxedMeasureWarning):
            warnings.simplefilter("always", category)
        yield
