"""Run folders as commands find them: the run, the data that it recorded, where results and figures go."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import ppvae
from ppvae import checkpoint
from ppvae.analysis import plots
from ppvae.data import Data, Splits
from ppvae.errors import DataError, MissingFileError, RunError, UsageError
from ppvae.options import chosen
from ppvae.output import say, tell
from ppvae.ranks import shared
from ppvae.recorded import COMMAND, recorded_data
from ppvae.run import CONFIG, Run

SPLITS = ["train", "validation", "test"]
OF_ONE_SHAPE = ("mlp", "conv")
# What commands ask of a run's records: the ways into them.
RECORDS = {CONFIG: ("data.name", "data.event_shape", "data.sha256", "data.binarize", "epochs"), COMMAND: ("data",)}


def loaded(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        MissingFileError: There is no such folder; it tells the nearest.
        RunError: It holds no run, or a damaged one.
    """
    check_folder(folder)
    return ppvae.load(folder)


def check_folder(folder: Path) -> None:
    """Raise where there is no such folder, or where its records do not tell what every command asks of them.

    Raises:
        MissingFileError: It tells the nearest.
        RunError: It tells the file and its field.
    """
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, [path.name for path in folder.parent.glob("*/")], 1)
        remedy = f"did you mean '{folder.with_name(near[0])}'?" if near else "`ppvae train --out FOLDER` makes one"
        raise MissingFileError(f"there is no run folder {folder}", mend=remedy)
    for name, needed in RECORDS.items():
        record = checkpoint.read_json(folder / name) if (folder / name).exists() else needed
        for way in needed:
            value = record
            for step in way.split("."):
                value = value.get(step) if isinstance(value, dict) else None
            if value is None and record is not needed:
                raise RunError(
                    f"{folder / name} is damaged: it does not tell '{way}'", mend="restore the file, or train anew into another folder"
                )


def splits_of(folder: Path, data: str | None) -> Splits:
    """The data that a run recorded, or others that its programs can take.

    Raises:
        DataError: They are not to be found, not the same, or of another shape than a program of ours was built for.
    """
    found = recorded_data(folder, data)
    if data is None or not (folder / COMMAND).exists():
        return found
    needed, came = checkpoint.read_json(folder / CONFIG)["data"]["event_shape"], found.train.describe()["event_shape"]
    own = checkpoint.read_json(folder / COMMAND).get("program") in OF_ONE_SHAPE  # a user's program may take any
    if own and json.dumps(came) != json.dumps(needed):
        raise DataError(
            f"the run was trained on rows of shape {_told(needed)}, and rows of shape {_told(came)} came",
            where=data,
            mend="--data with rows of that shape, or leave it out: the run recorded its own",
        )
    return found


def _told(shape: Any) -> str:
    if isinstance(shape, dict):
        return ", ".join(f"{name} {_told(part)}" for name, part in shape.items())
    return str(tuple(shape)) if isinstance(shape, list | tuple) else str(shape)


def check_row(option: str, row: int, data: Data) -> None:
    """Raise where data have no such row.

    Raises:
        UsageError: It tells how many there are.
    """
    if not 0 <= row < len(data):
        raise UsageError(f"{option} is a row of {data.name}/{data.split}, 0 to {len(data) - 1}, got {row}")


def writable(path: Path) -> Path:
    """A path whose folder is made, so that it can be written.

    Raises:
        RunError: What stands in its place is a file, or may not be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file stands in its place" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise RunError(f"the folder {path.parent} cannot be made: {reason}", mend="--out with a path that can be written") from error
    return path


def run_and_data(folder: Path, split: str, data: str | None, num_data: int | None = None) -> tuple[Run, Data]:
    """A run and the rows to measure it on."""
    name = chosen("split", split, SPLITS)
    run = loaded(folder)
    rows: Data = getattr(splits_of(folder, data), name)
    return run, rows[:num_data] if num_data is not None and num_data < len(rows) else rows


def tell_result(run: Run, what: str, split: str, data: str | None, result: Any, **asked: Any) -> None:
    """Print a result's sentence and write it into the run folder, with what was asked for; of several processes the first does."""
    if not shared().first:
        return
    value = result.as_dict() | asked
    tell(what, str(result), value)
    say(f"written: {run.write_result(result_name(what, split, data), value)}")


def result_name(what: str, split: str, data: str | None) -> str:
    """The name of a result's file without its suffix: data other than the run's own are part of it."""
    return f"{what}-{Path(data).stem}-{split}" if data else f"{what}-{split}"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure; of several processes the first does."""
    if shared().first:
        say(f"figure: {plots.save(figure, writable(path))}")
    return path
