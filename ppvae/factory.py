"""``file.py:function`` -> (model, guide): a user's own pair, named on the command line or in a run folder."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from ppvae.errors import MissingFileError, ProgramError


def build(spec: str, x: Any) -> tuple[Any, Any, dict[str, str]]:
    """Run the user's factory.

    Args:
        spec: ``file.py:name``. The name is a function or class; it is called with ``x`` where it takes an argument, else with none.
            What it returns is a pair (model, guide), or an object with both as attributes, like the class of Pyro's VAE example.
        x: A few rows of the data, so that a factory can size its networks.

    Returns:
        The model, the guide, and the record for the run folder: file, name, SHA-256.

    Raises:
        MissingFileError: There is no such file.
        ProgramError: The file has no such name, or it does not make a pair.
    """
    path_text, colon, name = spec.rpartition(":")
    if not colon:
        path_text, name = spec, ""
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}", where=f"program '{spec}'", mend="a program is given as file.py:function")
    made = _call(_find(path, name, spec), x, spec)
    pair = made if isinstance(made, tuple | list) else (getattr(made, "model", None), getattr(made, "guide", None))
    if len(pair) != 2 or not all(callable(program) for program in pair):
        raise ProgramError(
            f"'{spec}' must make a pair (model, guide) of callables, it made {type(made).__name__}",
            mend=["return model, guide", "return an object with the attributes model and guide"],
        )
    return pair[0], pair[1], {"file": str(path), "name": name, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _find(path: Path, name: str, spec: str) -> Any:
    module_name = f"_ppvae_program_{path.stem}"
    description = importlib.util.spec_from_file_location(module_name, path)
    if description is None or description.loader is None:
        raise ProgramError(f"{path} is no Python file", where=f"program '{spec}'", mend="a program is given as file.py:function")
    module = importlib.util.module_from_spec(description)
    sys.modules[module_name] = module  # dataclasses and pickling inside the file look themselves up here
    sys.path.insert(0, str(path.resolve().parent))
    try:
        description.loader.exec_module(module)
    except Exception as error:
        raise ProgramError(f"{path} fails on import: {type(error).__name__}: {error}", where=f"program '{spec}'") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, name, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", None) == module_name]
        close = difflib.get_close_matches(name, names, 1) or [n for n in names if n.lower() == name.lower()]
        hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names)}"
        if not names:
            hint = "define one that returns (model, guide)"
        problem = f"{path} has no function or class '{name}'" if name else f"which function or class of {path}?"
        raise ProgramError(problem, where=f"program '{spec}'", mend=hint)
    return found


def _call(factory: Any, x: Any, spec: str) -> Any:
    required = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        names = ", ".join(p.name for p in required)
        raise ProgramError(
            f"'{spec}' takes the arguments {names}; a factory takes a few rows of the data, or nothing",
            mend="give the others default values",
        )
    try:
        return factory(x) if required else factory()
    except Exception as error:
        raise ProgramError(f"'{spec}' failed: {type(error).__name__}: {error}", where=f"program '{spec}'") from error
