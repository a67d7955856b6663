"""The run folder: config, program, history, checkpoints; and ``load``, which makes a run's programs again."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from ppvae import build, checkpoint, factory, noise
from ppvae.batches import Batch, each, take, tensors
from ppvae.errors import ArgumentError, PpvaeError, RunError, UnreliableWarning, in_a_line
from ppvae.leaves import leaves_of_pair
from ppvae.modules import Program, default_dtype, double, eval_mode, modules_of
from ppvae.programs import latent_sites, sample_sites, trace
from ppvae.repository import commit_of
from ppvae.state import create_missing, named_tensors, restore
from ppvae.storage import json_bytes, make_folder, parsed, read_bytes, read_record
from ppvae.support import unwrapped
from ppvae.version import __version__

MOST_HISTORY = 128 << 20
# What is read of a checkpoint's state to load it.
KEPT = {"best": dict | None, "constraints": dict, "leaves": list, "history": str, "stopped": str, "position": dict}
CONFIG, PROGRAM, HISTORY, ENVIRONMENT, TEMPLATE = "config.json", "program.json", "history.jsonl", "environment.json", "template"
COMMAND = "command.json"  # the options of `ppvae train`


class Stored:
    """A program that runs in the parameter store of its run, and in its dtype where the run has one of its own. Its own attributes are
    there too: ``run.model.log_evidence``."""

    def __init__(self, program: Program, store: Any, dtype: torch.dtype | None = None) -> None:
        self.__wrapped__ = program
        self.store = store
        self.dtype = dtype

    def __call__(self, x: Batch) -> Any:
        """Run the program on a batch."""
        with pyro.get_param_store().scope(self.store), default_dtype(self.dtype):
            return self.__wrapped__(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __repr__(self) -> str:
        return f"<{type(self.__wrapped__).__name__} of a run>"


@dataclass
class Run:
    """What training leaves: the trained pair, its history, and the folder that holds it.

    Attributes:
        model, guide: The programs, as callables that carry their parameter store; trained in place.
        history: One row an epoch: nats per datum.
        folder: The run folder, or None for a run in memory.
        best_epoch: Epoch whose parameters the programs now hold, where validation chose one; else None.
        stopped: "finished", "patience", "stopped by callback", "diverged", "interrupt" where Ctrl-C or SIGTERM ended it after a step, or
            "running" where something worse did.
        config: The arguments of ``fit``, as far as JSON can say them.
        signal: The number of the signal that came, if one did (``interruption.exit_code``).
        rollbacks: A record for each time that the run diverged, went back and went on with half the learning rate: the epoch and step
            where it diverged, what was wrong and where, and the step that it went back to.
    """

    model: Any
    guide: Any
    history: list[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None
    best_epoch: int | None = None
    stopped: str = "finished"
    config: dict[str, Any] = field(default_factory=dict)
    signal: int | None = None
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        where = str(self.folder) if self.folder else "in memory"
        epochs = f"{len(self.history)} epochs" + (f", parameters of epoch {self.best_epoch}" if self.best_epoch else "")
        return f"run {where}: {epochs}, {self.stopped}"

    def write_result(self, name: str, result: Mapping[str, Any]) -> Path | None:
        """Write a result's JSON into ``results/`` of the folder; None for a run in memory.

        Raises:
            ArgumentError: The name is no plain file name: what is written stays in the folder.
            RunError: It cannot be written.
        """
        if self.folder is None:
            return None
        if name in ("", ".", "..") or not set(name).isdisjoint("/\\\0"):
            raise ArgumentError(f"a result's name is a file name without folders, got {name!r}")
        path = self.folder / "results" / f"{name}.json"
        checkpoint.write_json(path, result)
        return path


def new_folder(first: Path) -> Path:
    """Make the first of FOLDER, FOLDER-2, FOLDER-3, ... that is not there: processes that start at the same moment get one each.

    Raises:
        RunError: The folder above cannot be written.
    """
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            make_folder(folder.parent)
            os.mkdir(folder)  # fails where it is there: that is the point
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{folder} cannot be made: {error.strerror}", mend="choose another folder") from error
    raise AssertionError("unreachable")


def holds_a_run(folder: Path) -> bool:
    """Whether training has begun in a folder."""
    return (folder / CONFIG).exists()


def fingerprint(model: Program, guide: Program, x: Batch) -> dict[str, Any]:
    """Sites, their event shapes and the shapes of all parameters: what two programs must share to share their tensors."""
    with noise.seeded(0, "fingerprint"), eval_mode(model, guide), pyro.validation_enabled(False), torch.no_grad():
        found_q = trace(guide, x)
        found_p = trace(model, x, {name: site["value"] for name, site in sample_sites(found_q).items()})
    sites = {}
    for side, found in (("model", found_p), ("guide", found_q)):
        latent = set(latent_sites(found))
        for name, site in sample_sites(found).items():
            kind = "latent" if name in latent else "observed"
            sites[f"{side}.{name}"] = [kind, type(unwrapped(site["fn"])).__name__, list(site["fn"].event_shape)]
    return {"sites": sites, "tensors": {name: list(t.shape) for name, t in named_tensors(model, guide).items()}}


def compare_fingerprints(saved: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Raise where the programs at hand are not those of the run.

    Raises:
        RunError: naming the first few differences.
    """
    differences = []
    for part in ("sites", "tensors"):
        a, b = saved[part], here[part]
        differences += [f"{name}: the run has {a.get(name)}, here {b.get(name)}" for name in {**a, **b} if a.get(name) != b.get(name)]
    if differences:
        raise RunError(
            f"these programs are not those of the run in {folder}",
            where="; ".join(differences[:4]) + (f" and {len(differences) - 4} more" if len(differences) > 4 else ""),
            mend="build model and guide as for the run, or train anew into another folder",
        )


def describe_programs(model: Program, guide: Program, source: Mapping[str, str] | None) -> dict[str, Any]:
    """How to make the programs again: by a user's file, by our classes and their arguments, or by the caller."""
    if source is not None:
        return {"how": "file", **source}
    own, other = _tensors(model), _tensors(guide)
    shared = _tensors(*build.shared(model, guide))  # the record makes these objects once
    borrowed = _tensors(*build.borrowed(model, guide))
    if (own & other | borrowed & (own | other)) - shared:  # two records would make two networks of what is one
        return {"how": "python", "why": "model and guide share parameters"}
    if borrowed - (own | other):
        return {"how": "python", "why": "a part of it runs a program that is neither the run's model nor its guide"}
    try:
        return {"how": "constructors"} | build.pair_to_json(model, guide)
    except RunError as error:
        return {"how": "python", "why": error.problem}


def _tensors(*programs: Program) -> set[int]:
    """The identities of the tensors that the programs' modules hold."""
    modules = (module for program in programs for module in modules_of(program).values())
    return {id(tensor) for module in modules for tensor in module.state_dict(keep_vars=True).values()}


def write_description(
    folder: Path,
    programs: dict[str, Any],
    config: Mapping[str, Any],
    x: Batch,
    command: Mapping[str, Any] | None = None,
    looked: Mapping[str, Any] | None = None,
) -> None:
    """Write what a run needs besides its checkpoints: config, programs, two rows of data as a template, and the versions and threads
    that equality bit for bit is conditional on, with the commit of the programs' repository and what came of it when all data were
    ``looked`` at; and the options of the command that started it, if one did."""
    rows = take(x, slice(0, 2))
    structure = "tensor" if isinstance(x, Tensor) else list(x) if isinstance(x, dict) else len(x)
    environment = versions() | {"machine": platform.machine()} | commit_of(home(programs)) | dict(looked or {})
    records = {ENVIRONMENT: environment, PROGRAM: programs, CONFIG: config}  # the last says that there is a run
    digests = {name: _digest(json_bytes(record)) for name, record in records.items()}
    parts = {str(i): part for i, part in enumerate(tensors(rows).values())}
    checkpoint.save(folder, TEMPLATE, parts, {"structure": structure, "sha256": digests})
    if command is not None:
        checkpoint.write_json(folder / COMMAND, command)
    for name, record in records.items():
        checkpoint.write_json(folder / name, record)


def home(programs: Mapping[str, Any]) -> Path:
    """Where programs are at home: the folder of the user's file; of others, which may have been written in it, the working folder."""
    return Path(programs["file"]).absolute().parent if programs.get("how") == "file" else Path.cwd()


def versions() -> dict[str, Any]:
    """The versions and the number of threads of this process."""
    libraries = {"torch": torch.__version__, "pyro": pyro.__version__, "ppvae": __version__}
    return {"python": platform.python_version()} | libraries | {"threads": torch.get_num_threads()}


def read_description(folder: Path, name: str) -> Any:
    """The value of a JSON file that ``write_description`` wrote.

    Raises:
        RunError: It is missing, or damaged: a changed digit of it would be another program or another prior.
    """
    content = read_record(folder / name)
    expected = _expected(checkpoint.state_of(folder, TEMPLATE), {}, folder / f"{TEMPLATE}.json").get("sha256")
    if isinstance(expected, dict) and expected.get(name) != _digest(content):
        raise RunError(
            f"{folder / name} is damaged: it does not have the SHA-256 that it was written with",
            mend="copy it again; or, where it was changed by hand, change it back",
        )
    return parsed(content, folder / name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def template_of(folder: Path) -> Batch:
    """Two rows of the training data, in the structure that the programs take."""
    parts, state = checkpoint.load(folder, TEMPLATE)
    structure = _expected(state, {"structure": str | list | int}, folder / f"{TEMPLATE}.json")["structure"]
    values = [parts[name] for name in map(str, range(len(parts))) if name in parts]
    if not values or len(values) < len(parts) or (isinstance(structure, list) and len(structure) != len(values)):
        raise RunError(f"{folder / TEMPLATE}.json does not say how its tensors make a batch")
    if structure == "tensor":
        return values[0]
    return dict(zip(structure, values, strict=True)) if isinstance(structure, list) else tuple(values)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``history.jsonl``; a torn last line is left out.

    Raises:
        RunError: It cannot be read, or is larger than any history of ours.
    """
    path = folder / HISTORY
    try:
        content = read_bytes(path, MOST_HISTORY)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def load(folder: str | Path, model: Program | None = None, guide: Program | None = None, *, state: str = "best") -> Run:
    """Make a run's programs again, with their trained parameters.

    Args:
        folder: A run folder.
        model, guide: The programs, needed where they were built in Python from parts that no record can name.
        state: "best" for the parameters that validation chose (the last ones without validation), or "last".

    Returns:
        The run. Programs given by a file run that file's code, once its SHA-256 was compared.

    Raises:
        RunError: The folder holds no run, its programs differ from those handed in, or they must be handed in.
    """
    folder = Path(folder)
    if state not in ("best", "last"):
        raise RunError(f"state is 'best' or 'last', got {state!r}")
    if not holds_a_run(folder):
        raise RunError(f"{folder} holds no run", mend="ppvae.fit(..., out=folder) or `ppvae train --out FOLDER` makes one")
    programs = _expected(read_description(folder, PROGRAM), {"how": str, "fingerprint": dict}, folder / PROGRAM)
    _expected(programs["fingerprint"], {"sites": dict, "tensors": dict}, folder / PROGRAM)
    template = template_of(folder)
    if (model is None) != (guide is None):
        raise RunError("hand in both model and guide, or neither")
    dtype = torch.float64 if programs.get("dtype") == "float64" else None
    if model is None or guide is None:
        with default_dtype(dtype):
            model, guide = _make(programs, template, folder)
    sound = checkpoint.newest(folder / "checkpoints")
    if sound is None:
        raise RunError(f"{folder} holds no checkpoint yet", mend="fit(..., resume=True) starts it again")
    name, saved, kept, damaged = sound
    for problem in damaged:
        warnings.warn(f"{problem}; {name} is loaded", UnreliableWarning, stacklevel=2)
    _expected(kept, KEPT, folder / "checkpoints" / f"{name}.json")
    if programs["how"] == "constructors":  # made in this process's default dtype
        dtype = next((t.dtype for t in saved.values() if t.is_floating_point()), torch.get_default_dtype())
        for module in (*modules_of(model).values(), *modules_of(guide).values()):
            module.to(dtype)
    device = next((t.device for t in named_tensors(model, guide).values()), torch.device("cpu"))
    with pyro.get_param_store().scope() as store, default_dtype(dtype):
        here = fingerprint(model, guide, each(template, lambda part: part.to(device)))
        compare_fingerprints(programs["fingerprint"], here, folder)
        best = kept["best"]
        values = best["tensors"] if state == "best" and best is not None else saved
        create_missing(values, kept["constraints"], device)
        restore(_live(model, guide, template, device, kept), values)
    return Run(
        Stored(model, store, dtype),
        Stored(guide, store, dtype),
        history=json.loads(kept["history"]),  # as the parameters are: the file may be a save ahead of them, or behind
        folder=folder,
        best_epoch=best["epoch"] if state == "best" and best is not None else None,
        stopped=kept["stopped"],
        config=read_description(folder, CONFIG),
        rollbacks=kept["position"].get("rollbacks", []),
    )


def _expected(record: Any, fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The record, if it has these fields with values of these kinds.

    Raises:
        RunError: It has not: nobody's run wrote it.
    """
    wrong = [name for name, kind in fields.items() if not isinstance(record, dict) or not isinstance(record.get(name), kind)]
    if wrong:
        raise RunError(f"{path} is no record of a run: its field '{wrong[0]}' is missing or of the wrong kind")
    found: dict[str, Any] = record
    return found


def _live(model: Program, guide: Program, template: Batch, device: torch.device, kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """The live tensors, with leaves that only the loss's graph knows where the checkpoint has some."""
    live = named_tensors(model, guide)
    if any(name.startswith("leaf.") for name in kept["leaves"]):
        leaves, _, _ = leaves_of_pair(model, guide, (each(template, lambda part: part.to(device)),), {})
        live = named_tensors(model, guide, leaves)
    return live


def _make(programs: Mapping[str, Any], template: Batch, folder: Path) -> tuple[Program, Program]:
    if programs["how"] == "constructors":
        try:
            return build.pair_from_json(programs)
        except PpvaeError:  # it says more
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError, AssertionError) as error:
            raise RunError(f"{folder / PROGRAM} names parts that cannot be made: {in_a_line(error)}") from error
    if programs["how"] == "file":
        _expected(programs, {"file": str, "sha256": str, "name": str}, folder / PROGRAM)
        path = Path(programs["file"])
        if path.is_file() and factory.sha256_of(path) != programs["sha256"]:
            raise RunError(
                f"{path} has changed since the run was trained",
                where=f"sha256 {factory.sha256_of(path)[:12]}..., the run has {programs['sha256'][:12]}...",
                mend=["restore the file", f"if the change is harmless: ppvae.load({str(folder)!r}, model, guide)"],
            )
        model, guide, _ = factory.build(f"{path}:{programs['name']}", template)
        if programs.get("dtype") == "float64":
            double(model, guide)
        return model, guide
    shapes = [f"{name} {tuple(shape)}" for name, shape in programs["fingerprint"]["tensors"].items()]
    raise RunError(
        f"the programs of {folder} were built in Python ({programs.get('why')}), so hand them in",
        where=f"the folder holds {', '.join(shapes[:6])}" + (f" and {len(shapes) - 6} more" if len(shapes) > 6 else ""),
        mend=f"ppvae.load({str(folder)!r}, model, guide)",
    )
