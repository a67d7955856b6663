"""The facts of a run in rows of words and numbers: what was trained, how, what was measured, and the commands that do it again."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppvae import repository
from ppvae.analysis.estimate import Estimate, Provenance, mean_of
from ppvae.analysis.report import verdicts
from ppvae.analysis.report.record import Record
from ppvae.analysis.report.verdicts import number, small

# What `fit` does unless told otherwise, as config.json words it. Held to its signature by a test.
DEFAULTS: dict[str, Any] = {
    "objective": "Trace_ELBO(num_particles=1)",
    "optimizer": "Adam(lr=0.001)",
    "scheduler": None,
    "batch_size": 128,
    "beta": 1.0,
    "likelihood_weight": 1.0,
    "clip_norm": None,
    "patience": None,
    "rollbacks": 3,
    "seed": 0,
    "checkpoint_every": 60.0,
    "precision": "float32",
    "ranks": 1,
}
APART = ("data", "validation", "epochs", "engine", "device", "seed")  # of the config; facts of their own


@dataclass(frozen=True)
class Number:
    """A number as it is written, with its value and where that stands: the file in results/, and the way into it."""

    text: str
    value: float
    place: str


@dataclass(frozen=True)
class Row:
    """A row of the table of results: a mean with both errors, nats."""

    quantity: str
    over: str
    num_data: int
    num_particles: str
    value: Number
    data_se: Number | None
    mc_se: Number | None
    note: str = ""


def facts(record: Record, sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """Names and values: data, programs, seed, engine, versions, time."""
    config, about = record.config, record.config["data"]
    validation = config.get("validation")
    rows = {"train": about["num_data"], **({"validation": validation["num_data"]} if validation else {}), **sizes}
    tensors = record.programs["fingerprint"]["tensors"]
    environment = record.environment
    seconds = _seconds(record.history)
    found = [
        ("data", f"{about['name']}: " + ", ".join(f"{size:,} {name}" for name, size in rows.items())),
        (
            "a datum",
            f"{_shape(about['event_shape'])} values, binarisation {about['binarize']} (seed {about['seed']}), {about['measure']} measure",
        ),
        ("SHA-256 of the training rows", about["sha256"]),
        *((side, program(record.programs[side])) for side in ("model", "guide") if side in record.programs),
        *([("programs", _written_in(record.programs))] if "model" not in record.programs else []),
        ("latents", ", ".join(f"{name}, {_shape(_event(record, name))} dimension(s)" for name in record.sites("latent"))),
        ("parameters", f"{sum(math.prod(shape) for shape in tensors.values()):,}"),
        ("training", _training(record)),
        ("seed", str(config["seed"])),
        (
            "engine",
            f"{config.get('engine', 'unknown')}, {config.get('device', 'unknown')}, {environment.get('threads', 'unknown')} thread(s)",
        ),
        ("versions", ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "pyro", "ppvae") if name in environment)),
    ]
    found += [("repository", repository.told(environment))] if "commit" in environment else []
    return found + ([("time in steps", _time(seconds))] if seconds is not None else [])


def differences(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Arguments of ``fit`` that are not its defaults: name, value, default."""
    changed = {name: value for name, value in config.items() if name not in APART and value != DEFAULTS.get(name)}
    return [(name, str(value), str(DEFAULTS.get(name, "none"))) for name, value in changed.items()]


def unlike(a: Mapping[str, Any], b: Mapping[str, Any], name: str = "") -> list[tuple[str, str, str]]:
    """Where two configs differ: name, the first's value, the second's."""
    found = []
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key), b.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += unlike(one, other, f"{name}{key}.")
        elif one != other:
            found.append((f"{name}{key}", _told(one), _told(other)))
    return found


def table(record: Record) -> list[Row]:
    """What was measured."""
    rows, results = [], record.results
    for over, elbo in results.elbo.items():
        file = f"elbo-{over}"
        drawn = _range(elbo.num_particles)
        rows.append(_row("ELBO", over, elbo.mean, f"{file}:mean", len(elbo.pointwise), drawn))
        for name in ("rate", "distortion"):
            part = getattr(elbo, name)
            of_draws = mean_of(part, part * math.nan)  # their Monte Carlo error is not kept
            numbers = (Number(number(of_draws.value), of_draws.value, f"{file}:{name}~mean"),)
            error = Number(small(of_draws.data_se), of_draws.data_se, f"{file}:{name}~se") if len(part) > 1 else None
            rows.append(Row(name, over, len(part), drawn, *numbers, error, None))
    for over, found in results.log_likelihood.items():
        note = f"proposal: {found.proposal}" + ("" if found.weights == "plain" else f", {found.weights} weights")
        asked = results.tolerance(over)
        if asked is not None:
            reached = (found.pointwise_se <= asked).double().mean().item()
            note = f"asked to {asked:g} nats of Monte Carlo error per datum, reached at {100 * reached:.1f} %; {note}"
        rows.append(
            _row("log p(x)", over, found.mean, f"log_likelihood-{over}:mean", len(found.pointwise), _range(found.num_particles), note)
        )
    for over, gaps in results.gaps.items():
        for name, note in (
            ("inference", f"log p(x) − L[q]; log p(x) by {gaps.reference}"),
            ("approximation", f"log p(x) − L[q*], q* of family {next(iter(gaps.refined))}"),
            ("amortization", "L[q*] − L[q]"),
        ):
            place = f"inference_gaps-{over}:mean.{name}"
            rows.append(_row(f"{name} gap", over, gaps.mean(name), place, len(gaps.elbo), "", note))
    return rows


def provenance(record: Record) -> list[tuple[str, str, str, str]]:
    """Of each file of results: name, data, measure with seed and what else than float32 it was computed in, SHA-256 of the rows."""
    return [
        (name, data_of(source), ", ".join([source.measure, f"seed {source.seed}", *_dtype(source)]), str(source.data.get("sha256", "")))
        for name, source in record.results.by_file.items()
    ]


def data_of(source: Provenance) -> str:
    """Name, split and number of the rows of a result."""
    about = source.data
    if "template" in about:
        rows = rows_of(source)
        return f"{about['num_data']:,} rows {about['name']}, like {rows['name']}/{rows.get('split', 'all')}"
    return f"{about['name']}/{about.get('split', 'all')}, {about['num_data']:,} rows"


def rows_of(source: Provenance) -> dict[str, Any]:
    """The rows behind a result: those measured, or those that simulated data took their shape from."""
    found: dict[str, Any] = source.data.get("template", source.data)
    return found


def _dtype(source: Provenance) -> list[str]:
    """The type that was asked for, where one was."""
    return [rows_of(source)["dtype"]] if "dtype" in rows_of(source) else []


def commands(record: Record) -> list[str]:
    """The commands that make the run and its results again."""
    folder = shlex.quote(str(record.folder))
    found = [train(record.command)] if record.command is not None else []
    found += _evaluations(record, folder)
    for over, gaps in record.results.gaps.items():
        found.append(f"ppvae gaps {folder}{_rows(over, gaps.source)} --families {' '.join(gaps.refined)}")
    return [*found, f"ppvae report {folder}"]


def _evaluations(record: Record, folder: str) -> list[str]:
    """A command a data set and split, and one more where bounds or ranks were measured otherwise than log p(x)."""
    results, found = record.results, []
    for over in dict.fromkeys([*results.log_likelihood, *results.bounds, *results.calibration]):
        lines: dict[str, list[str]] = {}  # rows and seed -> options
        particles: dict[str, int] = {}
        log_px, bounds, judged = results.log_likelihood.get(over), results.bounds.get(over), results.calibration.get(over)
        if log_px is not None:
            rows, asked = _rows(over, log_px.source), results.tolerance(over)
            lines[rows] = [_drawn(log_px.proposal, log_px.num_particles, asked)]
            if asked is None:
                particles[rows] = int(log_px.num_particles.max())
        if bounds is not None:
            rows = _rows(over, bounds.source)
            if particles.setdefault(rows, bounds.num_drawn) != bounds.num_drawn:
                found.append(f"ppvae evaluate {folder}{rows} --num-particles {bounds.num_drawn} --bounds")
            else:
                drawn = "" if any("--num-particles" in one for one in lines.get(rows, [])) else f" --num-particles {bounds.num_drawn}"
                lines.setdefault(rows, []).append(f"{drawn} --bounds")
        if judged is not None:
            lines.setdefault(_rows(over, judged.source), []).append(f" --calibration {len(judged.ranks)}")
        found += [f"ppvae evaluate {folder}{rows}{''.join(options)}" for rows, options in lines.items()]
    return found


def train(command: Mapping[str, Any]) -> str:
    """The `ppvae train` that wrote a run's command.json: every argument in full, so that later defaults do not change it."""
    words = ["ppvae train"]
    for name, value in command.items():
        option = f"--{name.replace('_', '-')}"
        if name in ("image_shape", "resume", "new", "config", "print_config") or value is None:
            continue
        if isinstance(value, bool):
            words += [] if value else [f"--no-{name.replace('_', '-')}"]
        elif isinstance(value, list):
            words.append(" ".join([option, *(shlex.quote(str(part)) for part in value)]))
        else:
            words.append(f"{option} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}")
    return " ".join(words)


def program(value: Any) -> str:
    """A program as its constructor's call, from the record in program.json."""
    if isinstance(value, dict) and "class" in value:
        return str(value["class"]).rpartition(".")[2]
    if isinstance(value, dict) and "make" in value:
        arguments = ", ".join(f"{name}={program(argument)}" for name, argument in value["with"].items())
        return f"{str(value['make']).rpartition('.')[2]}({arguments})"
    if isinstance(value, list):
        return f"[{', '.join(map(program, value))}]"
    return str(value)


def _row(quantity: str, over: str, found: Estimate, place: str, num_data: int, num_particles: str, note: str = "") -> Row:
    value, data_se, mc_se = (
        Number(text, number_, f"{place}.{name}")
        for name, number_, text in (
            ("value", found.value, number(found.value)),
            ("data_se", found.data_se, small(found.data_se)),
            ("mc_se", found.mc_se, small(found.mc_se)),
        )
    )
    return Row(quantity, over, num_data, num_particles, value, data_se, mc_se, note)


def _rows(over: str, source: Provenance) -> str:
    """The options that name a result's rows."""
    split = re.fullmatch(r"(\w+)(?:\[:(\d+)\])?", str(rows_of(source).get("split", "")))
    if split is None:
        return ""
    other = over.removesuffix(f"-{split[1]}")
    data = f" --data {shlex.quote(other)}" if other != over else ""
    dtype = "".join(f" --dtype {dtype}" for dtype in _dtype(source))
    rows = f" --num-data {split[2]}" if split[2] else ""
    return f"{data} --split {split[1]}{rows}" + (f" --seed {source.seed}" if source.seed else "") + dtype


def _drawn(proposal: str, num_particles: Tensor, tolerance: float | None) -> str:
    low, high = int(num_particles.min()), int(num_particles.max())
    if tolerance is not None or low != high:  # measured from Python, a tolerance is not recorded
        return f" --tolerance {tolerance or 'NATS'}"
    kind = "" if proposal == "guide" else " --proposal defensive" if "defensive" in proposal else " --proposal refined"
    return f" --num-particles {high}{kind}"


def _range(counts: Tensor) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _training(record: Record) -> str:
    config, done = record.config, len(record.history)
    kept = f", parameters of epoch {record.best_epoch:,} (best on validation rows)" if record.best_epoch else ", parameters of the last"
    steps = record.history[-1].get("step") if record.history else None
    back = f", gone back {verdicts.times(record.rollbacks)}" if record.rollbacks else ""
    done_steps = f", {steps:,} steps" if steps else ""
    return f"{done:,} of {config['epochs']:,} epochs of {config['batch_size']:,} rows a step{done_steps}{back}{kept}"


def _seconds(history: list[dict[str, Any]]) -> float | None:
    """Time spent in steps, from the rows of history; None where they do not tell."""
    before, total = 0, 0.0
    for row in history:
        speed = row.get("steps_per_second")
        if not speed or "step" not in row:
            return None
        total += (row["step"] - before) / speed
        before = row["step"]
    return total if history else None


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _event(record: Record, site: str) -> Any:
    return record.programs["fingerprint"]["sites"][f"model.{site}"][2]


def _shape(shape: Any) -> str:
    return " × ".join(map(str, shape)) if isinstance(shape, list) and shape else str(shape) if shape else "scalar"


def _written_in(programs: Mapping[str, Any]) -> str:
    if programs.get("how") == "file":
        return f"{programs['file']}:{programs['name']}, SHA-256 {programs['sha256']}"
    return f"built in Python ({programs.get('why', 'handed in')})"


def _told(value: Any) -> str:
    return "none" if value is None else program(value) if isinstance(value, dict | list) else str(value)
