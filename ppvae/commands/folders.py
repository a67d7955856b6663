"""Run folders as commands find them: the run, the data that it recorded, where results and figures go."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import ppvae
from ppvae.analysis import plots
from ppvae.data import Data
from ppvae.errors import MissingFileError
from ppvae.options import chosen
from ppvae.output import say, tell
from ppvae.ranks import shared
from ppvae.recorded import recorded_data
from ppvae.run import Run

SPLITS = ["train", "validation", "test"]


def loaded(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        MissingFileError: There is no such folder; it tells the nearest.
    """
    check_folder(folder)
    return ppvae.load(folder)


def check_folder(folder: Path) -> None:
    """Raise ``MissingFileError`` where there is no such folder; it tells the nearest."""
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, [path.name for path in folder.parent.glob("*/")], 1)
        remedy = f"did you mean '{folder.with_name(near[0])}'?" if near else "`ppvae train --out FOLDER` makes one"
        raise MissingFileError(f"there is no run folder {folder}", mend=remedy)


def run_and_data(folder: Path, split: str, data: str | None, num_data: int | None = None) -> tuple[Run, Data]:
    """A run and the rows to measure it on."""
    name = chosen("split", split, SPLITS)
    run = loaded(folder)
    rows: Data = getattr(recorded_data(folder, data), name)
    return run, rows[:num_data] if num_data is not None and num_data < len(rows) else rows


def tell_result(run: Run, what: str, split: str, data: str | None, result: Any) -> None:
    """Print a result's sentence and write it into the run folder; of several processes the first does."""
    if not shared().first:
        return
    value = result.as_dict()
    tell(what, str(result), value)
    say(f"written: {run.write_result(result_name(what, split, data), value)}")


def result_name(what: str, split: str, data: str | None) -> str:
    """The name of a result's file without its suffix: data other than the run's own are part of it."""
    return f"{what}-{Path(data).stem}-{split}" if data else f"{what}-{split}"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure; of several processes the first does."""
    if shared().first:
        say(f"figure: {plots.save(figure, path)}")
    return path
