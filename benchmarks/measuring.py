"""A case measured: every rival in a worker of its own, blocks in turn, then the memory that each took."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import environments
from benchmarks.cases import Case, Mark, Rival
from benchmarks.job import Job
from benchmarks.process import RivalError, Worker
from benchmarks.timing import TRIES, Block, Interval, Series, interleaved, ratio

QUICK_ROUNDS = 3


@dataclass
class Measured:
    """What a case gave.

    Attributes:
        case: The case.
        series: Rival -> its blocks.
        peak_mib: Rival -> memory held at most by its process.
        failed: Rival -> why it took no part.
        versions: Package -> version, over all workers.
        values: Rival -> the value that ``--check`` compares.
    """

    case: Case
    series: dict[str, Series] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def ratio(self, mark: Mark) -> Interval | None:
        """The ratio that a mark asks for, round by round; None where one of the two took no part or no round has both."""
        if mark.rival not in self.series or mark.against not in self.series:
            return None
        found = ratio(self.series[mark.rival], self.series[mark.against])
        return found if found.count else None


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share."""

    images: Path
    folder: Path
    device: str
    threads: int
    quick: bool

    def job(self, case: Case, rival: Rival, weights: Path | None = None) -> Job:
        """The job of one rival."""
        arguments = dict(case.job)
        options = {**arguments.pop("options", {}), **rival.options}
        return Job(
            **arguments,
            images=str(self.images),
            weights=str(weights) if weights else "",
            device=self.device,
            threads=self.threads,
            options=options,
        )


def measured(case: Case, setting: Setting, weights: Path | None = None) -> Measured:
    """Time a case."""
    found = Measured(case)
    workers = _started(case, setting, weights, found)
    try:
        for name in list(workers):
            _tried(name, workers, found, lambda worker: worker.calibrate())
        rounds = QUICK_ROUNDS if setting.quick else case.rounds
        measures = {name: _block_of(name, workers, found) for name in workers}
        found.series = interleaved(measures, rounds, tries=1 if setting.quick else TRIES)
        found.series = {name: series for name, series in found.series.items() if name in workers}
        found.peak_mib = {name: worker.ask(peak=True)["peak_mib"] for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return found


def checked(case: Case, setting: Setting, weights: Path | None = None) -> Measured:
    """What every rival computes: its mean loss over the last steps of a training, or its value over all data."""
    found = Measured(case)
    if case.job["task"] == "refinement":
        case = replace(case, job={**case.job, "options": {**case.job["options"], "valued": True}})
    workers = _started(case, setting, weights, found)
    steps = case.steps_to_check // (10 if setting.quick else 1)
    for name, worker in list(workers.items()):
        passes = max(1, steps // 10 if steps else round(case.job["num_data"] / _data(worker, case)))
        _tried(name, workers, found, functools.partial(_value, name, steps, passes, found.values))
        worker.close()
    return found


def _value(name: str, steps: int, passes: int, values: dict[str, float], worker: Worker) -> None:
    """Note what a worker computes in some iterations, after so many training steps."""
    if steps:
        worker.ask(value=steps)
    values[name] = worker.ask(value=passes)["value"]


def trained_weights(setting: Setting, rival: Rival, case: Case, steps: int) -> Path:
    """The parameters of A1 after so many steps by hand, for the tasks that measure a trained pair."""
    path = setting.folder / "weights.npz"
    worker = Worker(environments.python(rival.environment), rival.module, setting.job(case, rival), setting.folder / "training.log")
    try:
        worker.ready()
        worker.ask(value=steps)
        worker.ask(save=str(path))
    finally:
        worker.close()
    return path


def _data(worker: Worker, case: Case) -> float:
    """Data that one iteration covers."""
    steps = case.job.get("options", {}).get("steps", 1)
    return float(case.job["num_data"]) if case.job["task"] == "leapfrog" else worker.units / steps


def _started(case: Case, setting: Setting, weights: Path | None, found: Measured) -> dict[str, Worker]:
    """A worker for every rival that can take part; the others are noted with the reason."""
    workers: dict[str, Worker] = {}
    for rival in case.rivals:
        log = setting.folder / "logs" / (re.sub(r"[^\w.=]+", "-", f"{case.name} {rival.name}") + ".log")
        try:
            python = environments.python(rival.environment, setting.device)
            workers[rival.name] = Worker(python, rival.module, setting.job(case, rival, weights), log)
        except (RivalError, OSError) as error:
            found.failed[rival.name] = str(error)
            continue
        _tried(rival.name, workers, found, lambda worker: worker.ready())
        if rival.name in workers:
            found.versions |= workers[rival.name].versions
    return workers


def _block_of(name: str, workers: dict[str, Worker], found: Measured) -> Callable[[], Block]:
    """Measures a block of a worker; one that has failed meanwhile has none that counts."""

    def measure() -> Block:
        blocks: list[Block] = []
        if name in workers:
            _tried(name, workers, found, lambda worker: blocks.append(worker.block()))
        return blocks[0] if blocks else Block(math.nan, clean=False)

    return measure


def _tried(name: str, workers: dict[str, Worker], found: Measured, what: Callable[[Worker], object]) -> None:
    """Do something with a worker; one that fails is noted, closed and left out."""
    try:
        what(workers[name])
    except RivalError as error:
        print(f"  {name}: {error}", file=sys.stderr, flush=True)
        found.failed[name] = str(error)
        workers.pop(name).close()
