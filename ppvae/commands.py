"""What each command does: calls of the library, and what is printed. Each takes its dataclass of ``cli.py`` and returns the exit code."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import ppvae
from ppvae import analysis, checkpoint, cli, commands_pairs, objectives, simulate
from ppvae.analysis import plots
from ppvae.analysis.proposals import NAMES as PROPOSALS
from ppvae.analysis.reference import REFERENCES
from ppvae.cli import UsageError, chosen, say
from ppvae.data import Data, Splits
from ppvae.errors import DataError, MissingFileError, RunError
from ppvae.ranks import shared, sharing, started
from ppvae.run import CONFIG, PROGRAM, Run, holds_a_run, template_of
from ppvae.starts import FAMILIES

COMMAND = "command.json"  # the arguments of `ppvae train`, in its run folder
SPLITS = ["train", "validation", "test"]
ELBO_PARTICLES = 1000

COMPILE: dict[str, str | bool] = {"auto": "auto", "yes": True, "no": False}


def check(options: cli.Check) -> int:
    """``ppvae check``."""
    data = _data_of(options)
    model, guide, _ = commands_pairs.pair(data.train, options)
    report = ppvae.check(model, guide, data.train)
    print(report)
    return 0 if report.ok else ppvae.errors.ProgramError.exit_code


def train(options: cli.Train) -> int:
    """``ppvae train``."""
    try:
        _check_device(options.device)
        with _together(options.device, options.threads):
            run = _train(options)
            print(run)
            print(f"next: ppvae evaluate {run.folder}")
    except KeyboardInterrupt:
        say("the same command with --resume goes on from the newest checkpoint")
        raise
    return 0


def evaluate(options: cli.Evaluate) -> int:
    """``ppvae evaluate``."""
    run, data = _run_and_data(options)
    few = min(options.num_particles, ELBO_PARTICLES)
    with _together("cpu", options.threads):
        _tell(run, "elbo", options, analysis.elbo(run.model, run.guide, data, num_particles=few, seed=options.seed))
        found = analysis.log_likelihood(
            run.model,
            run.guide,
            data,
            num_particles=options.num_particles,
            proposal=chosen("proposal", options.proposal, list(PROPOSALS)),
            tolerance=options.tolerance,
            seed=options.seed,
        )
        _tell(run, "log_likelihood", options, found)
    return 0


def gaps(options: cli.Gaps) -> int:
    """``ppvae gaps``."""
    run, data = _run_and_data(options)
    with _together("cpu", options.threads):
        families = tuple(chosen("family", name, list(FAMILIES)) for name in options.families)
        reference = chosen("reference", options.reference, list(REFERENCES))
        found = analysis.inference_gaps(run.model, run.guide, data, families=families, reference=reference, seed=options.seed)
        _tell(run, "inference_gaps", options, found)
        path = options.run / "figures" / f"{_result_name('gaps', options)}.png"
        if shared().first:
            say(f"figure: {plots.save(plots.gap_decomposition(found), path)}")
    return 0


def sample(options: cli.Sample) -> int:
    """``ppvae sample``."""
    run = _loaded(options.run)
    values = simulate.sample(run.model, options.num_data, template=template_of(options.run), mean=options.mean, seed=options.seed)
    out = options.out or options.run / "samples.npz"
    out = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **{name: value.numpy() for name, value in values.items()})  # type: ignore[arg-type]
    print(f"{out}: " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items()))
    sites = checkpoint.read_json(options.run / PROGRAM)["fingerprint"]["sites"]
    observed = [name.removeprefix("model.") for name, (kind, *_) in sites.items() if name.startswith("model.") and kind == "observed"]
    shape = options.image_shape or _image_shape(options.run)
    form = "images" if shape else "a heat map, for rows that are no images (--image-shape H W says that they are)"
    for name in observed:
        figure = plots.samples(values[name], shape, columns=options.columns)
        path = out.with_suffix(".png") if len(observed) == 1 else out.with_name(f"{out.stem}-{name}.png")
        print(f"{plots.save(figure, path)}: {'E[x | z]' if options.mean else 'draws'} at site '{name}' as {form}")
    return 0


def demo(options: cli.Demo) -> int:
    """``ppvae demo``."""
    with _threads(1):  # for networks this small a second thread gains nothing, and on a busy core it costs a factor of ten
        run = _train(cli.Train(epochs=options.epochs, seed=options.seed, out=options.out or _free_folder(Path("runs/demo"))))
        assert run.folder is not None
        found = _measured_demo(run, options)
        figures = _demo_figures(run, found)
    for name, figure in figures.items():
        print(f"figure: {plots.save(figure, run.folder / 'figures' / f'{name}.png')}")
    print("next:")
    print(f"  ppvae sample {run.folder} --num-data 64 --mean")
    print(f"  ppvae gaps {run.folder} --split train --families same full_rank")
    print("  ppvae train --data digits --guide full-rank --out runs/full-rank")
    return 0


def _measured_demo(run: Run, options: cli.Demo) -> analysis.InferenceGaps:
    """Print the three sentences; returns the gaps."""
    test = ppvae.data.load("digits").test
    say(f"measuring {len(test)} test images")
    assert run.folder is not None
    pair, told = (run.model, run.guide), cli.Evaluate(run.folder)
    _tell(run, "elbo", told, analysis.elbo(*pair, test, seed=options.seed))
    _tell(run, "log_likelihood", told, analysis.log_likelihood(*pair, test, num_particles=options.num_particles, seed=options.seed))
    found = analysis.inference_gaps(*pair, test, seed=options.seed)
    _tell(run, "inference_gaps", told, found)
    return found


def _demo_figures(run: Run, gaps: analysis.InferenceGaps) -> dict[str, Figure]:
    shown, size = ppvae.data.load("digits").test.x[:20], (8, 8)
    drawn = simulate.sample(run.model, 50, template=shown, mean=True)
    return {
        "training": plots.training_curves(run.history),
        "reconstructions": plots.reconstructions(shown, simulate.reconstruct(run.model, run.guide, shown, num_particles=64), size),
        "samples": plots.samples(drawn["x"], size, columns=10),
        "gaps": plots.gap_decomposition(gaps),
    }


def _train(options: cli.Train) -> Run:
    folder = options.out or Path("runs") / Path(options.data).stem
    if holds_a_run(folder) and not options.resume:
        raise RunError(
            f"{folder} already holds a run", mend=["--resume goes on from its newest checkpoint", "--out FOLDER trains into another"]
        )
    data = _data_of(options)
    model, guide, source = commands_pairs.pair(data.train, options)
    if not holds_a_run(folder) and shared().first:  # a resumed run keeps the arguments of its start
        record = asdict(options) | {"data": _lasting(options.data), "out": str(folder), "image_shape": _stored_image_shape(data.train)}
        checkpoint.write_json(folder / COMMAND, record)
    run = ppvae.fit(
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
        seed=options.seed,
        out=folder,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        compile=COMPILE[options.compile],
        precision=options.precision,
        device=options.device,
        source=source,
    )
    return run


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:  # torch's answers to an unknown name, and to CUDA where there is none
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"there is no device '{name}'", mend=f"one of {', '.join(there)}") from error


def _tell(run: Run, what: str, options: cli.Evaluate | cli.Gaps, result: Any) -> None:
    """Print a result's sentence and write it into the run folder."""
    if not shared().first:  # every process has all numbers
        return
    print(result, flush=True)
    path = run.write_result(_result_name(what, options), result.as_dict())
    say(f"written: {path}")


def _result_name(what: str, options: cli.Evaluate | cli.Gaps) -> str:
    data = f"{Path(options.data).stem}-" if options.data else ""
    return f"{what}-{data}{options.split}"


def _data_of(options: cli.Pair) -> Splits:
    return ppvae.data.load(options.data, binarize=options.binarize, levels=options.levels, seed=options.data_seed, flatten=options.flatten)


def _run_and_data(options: cli.Evaluate | cli.Gaps) -> tuple[Run, Data]:
    """A run and the rows to measure it on."""
    split = chosen("split", options.split, SPLITS)
    run = _loaded(options.run)
    data = getattr(_recorded_data(options.run, options.data), split)
    return run, data[: options.num_data] if options.num_data is not None and options.num_data < len(data) else data


def _loaded(folder: Path) -> Run:
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, [path.name for path in folder.parent.glob("*/")], 1)
        remedy = f"did you mean '{folder.with_name(near[0])}'?" if near else "`ppvae train --out FOLDER` makes one"
        raise MissingFileError(f"there is no run folder {folder}", mend=remedy)
    return ppvae.load(folder)


def _recorded_data(folder: Path, override: str | None) -> Splits:
    """The data of a run, as ``command.json`` or else ``config.json`` tells; ``override`` replaces their name."""
    about = checkpoint.read_json(folder / CONFIG)["data"]
    record = checkpoint.read_json(folder / COMMAND) if (folder / COMMAND).exists() else {"data": about["name"], "levels": None}
    name = override or record["data"]
    if override is None and name not in ppvae.data.names() and not Path(name).exists():
        raise DataError(
            f"the data of {folder} are not to be found: the run recorded '{name}'",
            where=str(folder / CONFIG),
            mend=f"--data FILE, a .npy, .npz or IDX file, or --data NAME, one of {', '.join(ppvae.data.names())}",
        )
    found = ppvae.data.load(
        name,
        binarize=about["binarize"],
        levels=None if name in ppvae.data.names() else record["levels"],
        seed=about["seed"],
        flatten=not isinstance(about["event_shape"], list) or len(about["event_shape"]) == 1,
    )
    if override is None and found.train.sha256 != about["sha256"]:
        raise DataError(
            f"'{name}' no longer holds the data that {folder} was trained on",
            where=f"sha256 of the training rows {found.train.sha256[:12]}..., the run has {about['sha256'][:12]}...",
            mend=["restore the file", f"--data {name} measures the run on what is there now"],
        )
    return found


def _lasting(name: str) -> str:
    """A name as it is, a file by its absolute path."""
    return name if name in ppvae.data.names() else str(Path(name).resolve())


def _stored_image_shape(data: Data) -> list[int] | None:
    shape = list(getattr(data.source, "shape", ()))[1:]
    return shape if len(shape) == 2 else None


def _image_shape(folder: Path) -> tuple[int, int] | None:
    """Height and width of a run's data, where it tells."""
    if (folder / COMMAND).exists():
        shape = checkpoint.read_json(folder / COMMAND)["image_shape"]
    else:
        about = checkpoint.read_json(folder / CONFIG)["data"]
        shape = [8, 8] if about["name"] == "digits" else [28, 28] if about["name"] in ppvae.data.names() else about["event_shape"]
    return (shape[0], shape[1]) if isinstance(shape, list) and len(shape) == 2 else None


def _free_folder(first: Path) -> Path:
    """The first of runs/demo, runs/demo-2, ... that holds no run."""
    folder, number = first, 1
    while holds_a_run(folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


@contextmanager
def _together(device: str, threads: int | None) -> Iterator[None]:
    """The processes that torchrun has started, measurement shared out to them; all but the first are silent, unless by their errors."""
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(started(device))
        stack.enter_context(sharing(ranks))
        stack.enter_context(_threads(threads))
        if not ranks.first:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """torch with so many threads, and then as it was."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
