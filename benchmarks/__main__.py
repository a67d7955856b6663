"""Measure everything, print one table and the marks.

    python -m benchmarks                                    # a quarter of an hour; `make bench` also writes docs/benchmarks.md
    python -m benchmarks --only step iwae --threads 1
    python -m benchmarks --only command                     # 100 epochs from the command to the result, three times: half an hour
    python -m benchmarks --quick                            # shows that it works; its numbers are worth nothing
    python -m benchmarks --check                            # what the rivals compute, in place of how long they take
    python -m benchmarks --device cuda

The results stand also in runs/benchmarks/, as JSON, with a log of every worker.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks import images, machine, table
from benchmarks.cases import REFERENCE, Case, Rival
from benchmarks.measuring import Measured, Setting, checked, measured, trained_weights
from benchmarks.process import ROOT
from benchmarks.tasks import command

TASKS = ("step", "iwae", "log_likelihood", "refinement", "leapfrog")
LONG = "command"
PEAK_SIZE, TRAINING_STEPS = 4096, 3000


def main() -> None:
    """Measure what was asked for."""
    options = arguments()
    setting = Setting(
        images=options.out / "images.npy",
        folder=options.out,
        device=options.device,
        threads=options.threads,
        quick=options.quick,
    )
    say(f"data: {images.stored(setting.images)}")
    here = machine.described(options.threads, options.device) | ({"quick": "yes, worth nothing"} if options.quick else {})
    cases = [case for task in options.only if task != LONG for case in cases_of(task, options.quick)]
    weights = None
    if any(case.trained for case in cases):
        say("training the pair that is evaluated")
        weights = trained_weights(setting, Rival(REFERENCE, "hand"), TRAINING, TRAINING_STEPS // (10 if options.quick else 1))
    found: list[Measured] = []
    for case in cases:
        say(case.name)
        found.append((checked if options.check else measured)(case, setting, weights if case.trained else None))
        if not options.check:
            keep(found, here, options.out / "results.json")
    if options.check:
        print(table.checks(found))
        return
    peak = peak_flops(setting)
    if LONG in options.only:
        say("from the command to the result")
        found.append(command.measured(setting))
    keep(found, here | {"peak_flops": peak}, options.out / "results.json")
    text = table.rendered(found, here, peak)
    print(text)
    (options.out / "table.md").write_text(text)
    if options.write is not None:
        table.written_into(options.write, text)


TRAINING = Case("training", "step", {"task": "step", "batch_size": 100}, (Rival(REFERENCE, "hand"),), (), 0.0)


def cases_of(task: str, quick: bool) -> list[Case]:
    """The cases of one file of ``benchmarks/tasks``."""
    return importlib.import_module(f"benchmarks.tasks.{task}").cases(quick)  # type: ignore[no-any-return]


def peak_flops(setting: Setting) -> float:
    """Operations a second of a large matrix product: what the floor divides by."""
    rival = Rival("matrix product", "hand")
    size = PEAK_SIZE // (4 if setting.quick else 1)
    case = Case("peak", "operation", {"task": "product", "options": {"size": size}}, (rival,), (), 1.0, rounds=9)
    return 1.0 / measured(case, setting).series[rival.name].median


def keep(found: list[Measured], here: dict[str, object], path: Path) -> None:
    """Write what there is, so that a run that is cut off leaves its first cases."""
    path.write_text(json.dumps({"machine": here, "cases": [table.as_dict(case) for case in found]}, indent=1))


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*TASKS, LONG], default=list(TASKS), help="jobs; by default all but command")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every rival; by default two")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--quick", action="store_true", help="few blocks of few cases")
    parser.add_argument("--check", action="store_true", help="print the loss that every rival reaches, and log p(x), in place of times")
    parser.add_argument("--write", type=Path, default=None, help="a document whose table is replaced")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks", help="where JSON and logs go")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick measures nothing that a document should keep: leave out one of --quick and --write")
    options.out = options.out.resolve()
    return options


if __name__ == "__main__":
    main()
