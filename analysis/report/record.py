"""What a run folder holds, read without its programs: config, history, and results made objects again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppvae import checkpoint
from ppvae.analysis.bounds import Bounds
from ppvae.analysis.calibration import Calibration
from ppvae.analysis.elbo import ELBO
from ppvae.analysis.estimate import Provenance
from ppvae.analysis.inference_gaps import InferenceGaps
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.analysis.verdict import Verdict
from ppvae.data import Data, Splits
from ppvae.errors import MissingFileError, PpvaeError, RunError
from ppvae.recorded import COMMAND, recorded_data
from ppvae.run import CONFIG, ENVIRONMENT, PROGRAM, holds_a_run, read_description, read_history

Result = TypeVar("Result", ELBO, LogLikelihood, InferenceGaps, Bounds, Calibration)


@dataclass(frozen=True)
class Results:
    """The results of a run by what they are over: "test", or data set and split.

    Attributes:
        raw: The JSON values by the name of their file, without suffix.
        elbo, log_likelihood, gaps, bounds, calibration: The same as results.
        unread: Files that are none of these, with the reason where they should be.
    """

    raw: dict[str, Any] = field(default_factory=dict)
    elbo: dict[str, ELBO] = field(default_factory=dict)
    log_likelihood: dict[str, LogLikelihood] = field(default_factory=dict)
    gaps: dict[str, InferenceGaps] = field(default_factory=dict)
    bounds: dict[str, Bounds] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    @property
    def sources(self) -> list[Provenance]:
        """Where the numbers came from."""
        return list(self.by_file.values())

    @property
    def by_file(self) -> dict[str, Provenance]:
        """Name of a result's file, without suffix -> where its numbers came from."""
        kinds: dict[str, Mapping[str, Any]] = {
            "elbo": self.elbo,
            "log_likelihood": self.log_likelihood,
            "inference_gaps": self.gaps,
            "bounds": self.bounds,
            "calibration": self.calibration,
        }
        return {f"{kind}-{over}": found.source for kind, results in kinds.items() for over, found in results.items()}

    def tolerance(self, over: str) -> float | None:
        """Nats of Monte Carlo error that log p(x) was asked to; None where it was not, or where nothing recorded it."""
        asked = self.raw.get(f"log_likelihood-{over}", {}).get("tolerance")
        return float(asked) if isinstance(asked, int | float) else None


@dataclass(frozen=True)
class Record:
    """A run folder as it lies there.

    Attributes:
        folder: As it was named.
        config, programs, environment: The JSON files of the folder.
        command: The arguments of ``ppvae train``, or None where Python started the run.
        history: One row an epoch.
        stopped: As in ``Run``; "unknown" where no checkpoint tells.
        best_epoch: Whose parameters are used, where validation chose them.
        results: What was measured.
        rollbacks: How often the run diverged, went back and went on with half the learning rate.
    """

    folder: Path
    config: dict[str, Any]
    programs: dict[str, Any]
    environment: dict[str, Any]
    command: dict[str, Any] | None
    history: list[dict[str, Any]]
    stopped: str
    best_epoch: int | None
    results: Results
    rollbacks: int = 0

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def kept(self) -> dict[str, Any]:
        """The row of the epoch whose parameters are used; empty without history."""
        rows = [row for row in self.history if row.get("epoch") == self.best_epoch] or self.history[-1:]
        return rows[0] if rows else {}

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the data, where the folder tells."""
        about = self.config["data"]
        if self.command is not None:
            shape = self.command.get("image_shape")
        else:
            shape = {"digits": [8, 8], "mnist": [28, 28], "fashion-mnist": [28, 28]}.get(about["name"], about["event_shape"])
        sizes = _flat(shape)
        return (sizes[0], sizes[1]) if len(sizes) == 2 and math.prod(sizes) == math.prod(_flat(about["event_shape"])) else None

    def sites(self, kind: str) -> list[str]:
        """The model's "latent" or "observed" sites."""
        found = self.programs["fingerprint"]["sites"]
        return [name.removeprefix("model.") for name, (what, *_) in found.items() if name.startswith("model.") and what == kind]


def record_of(folder: str | Path) -> Record:
    """Read a run folder.

    Raises:
        MissingFileError: There is no such folder.
        RunError: It holds no run, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"there is no run folder {folder}", mend="`ppvae train --out FOLDER` makes one")
    if not holds_a_run(folder):
        raise RunError(f"{folder} holds no run", mend="ppvae.fit(..., out=folder) or `ppvae train --out FOLDER` makes one")
    sound = checkpoint.newest(folder / "checkpoints")
    state = sound[2] if sound is not None else {}
    best = state.get("best")
    return Record(
        folder=folder,
        config=read_description(folder, CONFIG),
        programs=read_description(folder, PROGRAM),
        environment=read_description(folder, ENVIRONMENT),
        command=checkpoint.read_json(folder / COMMAND) if (folder / COMMAND).exists() else None,
        history=read_history(folder),
        stopped=str(state.get("stopped", "unknown")),
        best_epoch=best["epoch"] if best else None,
        results=results_of(folder),
        rollbacks=len((state.get("position") or {}).get("rollbacks", [])),
    )


def results_of(folder: Path) -> Results:
    """The results in a run folder; files that are none, or damaged, are named and left out."""
    found = Results()
    for path in sorted((folder / "results").glob("*.json")):
        kind, _, over = path.stem.partition("-")
        try:
            value = checkpoint.read_json(path)
            if kind == "elbo":
                found.elbo[over] = _result(ELBO, value)
            elif kind == "log_likelihood":
                found.log_likelihood[over] = _result(LogLikelihood, value)
            elif kind == "inference_gaps":
                found.gaps[over] = _result(InferenceGaps, value)
            elif kind == "bounds":
                found.bounds[over] = _result(Bounds, value)
            elif kind == "calibration":
                found.calibration[over] = _result(Calibration, value)
            else:
                found.unread.append(path.name)
                continue
        except RunError as error:
            found.unread.append(f"{path.name} ({error.problem})")
            continue
        found.raw[path.stem] = value
    return found


def shown_rows(record: Record, data: Splits | Data | str | None) -> tuple[Data | None, dict[str, int], str]:
    """The rows that the page shows, the sizes of the splits, and why there are none.

    Raises:
        DataError: Data that were named cannot be read.
    """
    if isinstance(data, Data):
        return data, {data.split: len(data)}, ""
    try:
        splits = data if isinstance(data, Splits) else recorded_data(record.folder, data)
    except PpvaeError as error:
        if data is not None:
            raise
        return None, {}, error.problem
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return splits.test, {name: len(part) for name, part in parts.items()}, ""


def _result(kind: type[Result], value: Any) -> Result:
    """A result made of its JSON again; lists of numbers become float64 tensors."""
    try:
        values: dict[str, Any] = {part.name: _part(value[part.name]) for part in dataclasses.fields(kind)}
        for part in dataclasses.fields(kind):
            if str(part.type).startswith("tuple"):  # names, numbers of particles
                values[part.name] = tuple(value[part.name])
        about = value["source"]
        values["source"] = Provenance(about["data"], about["measure"], about["seed"], tuple(about["conditioned_on"]))
        if values.get("verdict") is not None:
            values["verdict"] = Verdict(**{name: _part(part) for name, part in value["verdict"].items()})
        return kind(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"holds no {kind.__name__} of this version") from error


def _part(value: Any) -> Any:
    if isinstance(value, list) and not any(isinstance(one, str) for one in value):
        found = torch.tensor(value)
        return torch.tensor(value, dtype=torch.float64) if found.is_floating_point() else found
    if isinstance(value, dict):
        return {name: _part(part) if isinstance(part, list) else part for name, part in value.items()}
    return value


def mean(values: Tensor) -> float:
    """The mean of a tensor of numbers or truths."""
    return values.double().mean().item()


def _flat(shape: Any) -> list[int]:
    return [size for size in shape if isinstance(size, int)] if isinstance(shape, list) else []
