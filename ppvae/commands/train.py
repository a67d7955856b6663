"""``ppvae train``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

import ppvae
from ppvae import objectives
from ppvae.commands import pairs
from ppvae.commands.folders import writable
from ppvae.commands.processes import check_device, together
from ppvae.data import Data, Splits
from ppvae.errors import PpvaeError, RunError
from ppvae.interruption import exit_code
from ppvae.modules import Program, default_dtype
from ppvae.options import Pair, Train
from ppvae.output import say, tell
from ppvae.ranks import shared
from ppvae.recorded import COMMAND
from ppvae.run import Run, holds_a_run, new_folder

COMPILE: dict[str, str | bool] = {"auto": "auto", "yes": True, "no": False}


def run(options: Train) -> int:
    """Train a pair into a run folder."""
    try:
        check_device(options.device)
        with together(options.device, options.threads):
            found = trained(options)
            code = exit_code(found)
            goes_on = f"ppvae train --config {found.folder / COMMAND} --epochs {options.epochs} --resume" if found.folder else ""
            after = f"goes on with: {goes_on}" if code else f"next: ppvae evaluate {found.folder}"
            tell("run", f"{found}\n{after}", told(found) | ({"resume": goes_on} if code else {}))
            return code
    except KeyboardInterrupt:  # the second signal: the step under way was not finished
        if not options.new:
            say("the same command with --resume goes on from the newest checkpoint")
        raise


def told(found: Run) -> dict[str, object]:
    """A run as JSON tells it."""
    last = found.history[-1] if found.history else None
    stopped = {"best_epoch": found.best_epoch, "stopped": found.stopped, "rollbacks": len(found.rollbacks)}
    return {"folder": str(found.folder), **stopped, "last": last}


def trained(options: Train) -> Run:
    """The run, once it is trained."""
    _refuse_what_is_there(options)
    data = data_of(options)
    data = data.double() if options.dtype else data
    model, guide, source = pairs.pair(data.train, options)
    there = options.run_folder.exists() and not options.new
    folder = _folder(options)  # last of all: what is refused before leaves no empty one
    try:
        with default_dtype(torch.float64 if options.dtype else None):
            return _fitted(options, folder, data, model, guide, source)
    except KeyboardInterrupt:
        if options.new:
            say(f"the same command with --out {folder} --resume in place of --new goes on from the newest checkpoint")
        raise
    except PpvaeError:
        if not there:
            with contextlib.suppress(OSError):  # training had begun in it: it stays
                folder.rmdir()
        raise


def _fitted(options: Train, folder: Path, data: Splits, model: Program, guide: Program, source: Mapping[str, str] | None) -> Run:
    record = asdict(options) | {"data": _lasting(options.data), "image_shape": _stored_image_shape(data.train)}
    return ppvae.fit(
        model,
        guide,
        data.train,
        validation=data.validation,
        optimizer=functools.partial(torch.optim.Adam, lr=options.lr),
        epochs=options.epochs,
        batch_size=options.batch_size,
        beta=objectives.linear(0.0, options.beta, fraction=options.warmup) if options.warmup else options.beta,
        clip_norm=options.clip_norm,
        patience=options.patience,
        rollbacks=options.rollbacks,
        seed=options.seed,
        out=folder,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        compile=COMPILE[options.compile],
        precision=options.precision,
        device=options.device,
        unused_parameters=options.unused_parameters,
        source=source,
        command=record | {"out": str(folder), "new": False},  # what goes on with the run names its folder
    )


def _refuse_what_is_there(options: Train) -> None:
    if options.new or options.resume or not holds_a_run(options.run_folder):
        return
    another = [] if options.out else [f"--new trains into the first free one of {options.run_folder}-2, {options.run_folder}-3, ..."]
    mend = ["--resume goes on from its newest checkpoint", *another, "--out FOLDER trains into another"]
    raise RunError(f"{options.run_folder} already holds a run", mend=mend)


def _folder(options: Train) -> Path:
    """The run folder; of several processes the first makes a new one."""
    if options.new:
        folder = shared().by_first(functools.partial(new_folder, options.run_folder))
        say(f"run folder: {folder}")
        return folder
    writable(options.run_folder / COMMAND)
    return options.run_folder


def data_of(options: Pair) -> Splits:
    """The data that options name."""
    return ppvae.data.load(
        options.data,
        binarize=options.binarize,
        levels=options.levels,
        labels=options.labels,
        missing=options.missing,
        size=options.size,
        seed=options.data_seed,
        flatten=options.flatten,
    )


def _lasting(name: str) -> str:
    """A name as it is, a file by its absolute path."""
    return name if name in ppvae.data.names() else str(Path(name).resolve())


def _stored_image_shape(data: Data) -> list[int] | None:
    source = data.source["x"] if data.masked else data.source
    shape = list(getattr(source, "shape", ()))[1:]
    return shape if len(shape) == 2 else None
