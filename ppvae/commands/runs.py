"""``ppvae runs``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from ppvae import checkpoint
from ppvae.errors import MissingFileError, RunError
from ppvae.options import Runs
from ppvae.output import tell
from ppvae.run import CONFIG, PROGRAM, holds_a_run, read_history


def run(options: Runs) -> int:
    """List the runs below a folder."""
    if not options.folder.is_dir():
        raise MissingFileError(f"there is no folder {options.folder}", mend="`ppvae train --out FOLDER` makes runs, by default below runs/")
    folders = sorted(path.parent for path in options.folder.rglob(PROGRAM) if holds_a_run(path.parent))
    rows = [_row(folder) for folder in folders]
    tell("runs", _table(rows) if rows else f"no run below {options.folder}", rows)
    return 0


def _row(folder: Path) -> dict[str, Any]:
    """What is known of a run without loading it."""
    try:
        config, history = checkpoint.read_json(folder / CONFIG), read_history(folder)
        last = history[-1] if history else {}
        done = last.get("epoch", 0)
        return {
            "run": str(folder),
            "data": config["data"]["name"],
            "epochs": f"{done}/{max(config['epochs'], done)}",  # a run that went on may have more than it began with
            "train_elbo": last.get("train_elbo"),
            "validation_elbo": last.get("validation_elbo"),
            "log_px": _log_px(folder),
            "changed": datetime.fromtimestamp((folder / CONFIG).stat().st_mtime).isoformat(" ", "minutes"),
        }
    except (RunError, KeyError, TypeError) as error:  # one damaged folder does not hide the others
        return {"run": str(folder), "data": f"cannot be read: {str(error).splitlines()[0]}"}


def _log_px(folder: Path) -> float | None:
    path = folder / "results" / "log_likelihood-test.json"
    if not path.exists():
        return None
    try:
        return float(checkpoint.read_json(path)["mean"]["value"])
    except (RunError, KeyError, TypeError, ValueError):
        return None


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns as wide as what they hold; the folder comes last, so that a long one breaks nothing."""
    numbers = {"train_elbo": "train ELBO", "validation_elbo": "validation", "log_px": "log p(x), test"}
    lines = [["data", "epochs", *numbers.values(), "changed", "run"]]
    for row in rows:
        told = ["" if row.get(name) is None else f"{row[name]:.2f}" for name in numbers]
        lines.append([row["data"], row.get("epochs", ""), *told, row.get("changed", ""), row["run"]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = range(1, 2 + len(numbers))
    texts = []
    for line in lines:
        places = enumerate(zip(line, widths, strict=True))
        texts.append("  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in places).rstrip())
    return "\n".join(texts)
