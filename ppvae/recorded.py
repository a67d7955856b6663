"""The data that a run folder recorded, found and prepared again."""

from __future__ import annotations

from pathlib import Path

from ppvae import checkpoint, data
from ppvae.data import Splits
from ppvae.errors import DataError
from ppvae.run import COMMAND as COMMAND
from ppvae.run import CONFIG, read_description

NAMED_SHAPES = {"digits": (8, 8), "mnist": (28, 28), "fashion-mnist": (28, 28), "sprites": (32, 32), "filaments": (64, 64)}


def recorded_data(folder: Path, override: str | None = None) -> Splits:
    """The data of a run, as ``command.json`` or else ``config.json`` tells; ``override`` replaces their name.

    Raises:
        DataError: They are not to be found, or no longer what the run was trained on.
    """
    about = read_description(folder, CONFIG)["data"]
    record = checkpoint.read_json(folder / COMMAND) if (folder / COMMAND).exists() else {"data": about["name"]}
    name = override or record["data"]
    if override is None and name not in data.names() and not Path(name).exists():
        raise DataError(
            f"the data of {folder} are not to be found: the run recorded '{name}'",
            where=str(folder / CONFIG),
            mend=f"--data FILE, or --data NAME, one of {', '.join(data.names())}; in Python data=...",
        )
    several = isinstance(about["event_shape"], dict)  # values and mask, or tokens and lengths
    shape = about["event_shape"].get("x", []) if several else about["event_shape"]
    found = data.load(
        name,
        binarize=None if several and not shape else about["binarize"],
        levels=None if name in data.names() else record.get("levels"),
        labels=record.get("labels"),
        missing=record.get("missing"),
        size=record.get("size"),
        seed=about["seed"],
        flatten=not isinstance(shape, list) or len(shape) <= 1,
    )
    if override is None and found.train.sha256 != about["sha256"]:
        raise DataError(
            f"'{name}' no longer holds the data that {folder} was trained on",
            where=f"sha256 of the training rows {found.train.sha256[:12]}..., the run has {about['sha256'][:12]}...",
            mend=["restore the file", f"--data {name} measures the run on what is there now"],
        )
    if about.get("dtype") == "float64":
        return found.double()
    return found


def image_shape(folder: Path) -> tuple[int, int] | None:
    """Height and width of a run's data, where it tells."""
    if (folder / COMMAND).exists():
        shape = checkpoint.read_json(folder / COMMAND).get("image_shape")
    else:
        about = read_description(folder, CONFIG)["data"]
        shape = NAMED_SHAPES.get(about["name"], about["event_shape"])
    return (shape[0], shape[1]) if isinstance(shape, list | tuple) and len(shape) == 2 else None
