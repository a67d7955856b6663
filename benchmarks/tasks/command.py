"""From the command to a trained and evaluated model: start-up, compilation, 100 epochs of A1, log p(x) of 1,000 test images.

Each run compiles from nothing (inductor's cache is a new folder). ppvae measures itself after every epoch on 5,000 validation and as many
training images, which it does by default; the NumPyro script measures the ELBO on as many images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environments, images
from benchmarks.cases import Case, Mark, Rival
from benchmarks.measuring import Measured, Setting
from benchmarks.process import ROOT, RivalError, environment, pinned
from benchmarks.timing import Series

EPOCHS, BATCH_SIZE, TEST_DATA, PARTICLES = 100, 100, 1000, 5000
NUMPYRO, OURS = "NumPyro script", "ppvae train, ppvae evaluate"
SCRIPT = Path(__file__).resolve().parents[1] / "rivals" / "numpyro_script.py"


@dataclass(frozen=True)
class Ended:
    """What running some commands one after another took: seconds, MiB of the largest, and the line with the result."""

    seconds: float
    peak_mib: float
    said: str


def case(epochs: int) -> Case:
    """Who takes part and what it must show."""
    return Case(
        name=f"command to result, {epochs} epochs",
        unit="run",
        job={"task": "command"},
        rivals=(Rival(NUMPYRO, "numpyro_script", "numpyro"), Rival(OURS, "ours")),
        marks=(Mark(OURS, NUMPYRO, 0.85, 0.65),),
        flop=0.0,
    )


def measured(setting: Setting) -> Measured:
    """Run both in turn, three times; quick once, and one epoch."""
    epochs, rounds = (1, 1) if setting.quick else (EPOCHS, 3)
    found = Measured(case(epochs))
    found.series = {rival.name: Series() for rival in found.case.rivals}
    found.versions = versions(environments.python("numpyro", setting.device)) | versions(environments.python("here"))
    for turn in range(rounds):
        for name, commands in _commands(setting, epochs).items():
            with tempfile.TemporaryDirectory() as folder:
                log = setting.folder / "logs" / f"command-{name.replace(' ', '-').replace(',', '')}-{turn}.log"
                try:
                    ended = run([[part.replace("{out}", folder) for part in command] for command in commands], setting, folder, log)
                except RivalError as error:
                    found.failed[name] = str(error)
                    found.series.pop(name, None)
                    continue
            print(f"  {name}: {ended.seconds:.1f} s; {ended.said}", file=sys.stderr, flush=True)
            found.series[name].blocks.append(ended.seconds)
            found.peak_mib[name] = max(ended.peak_mib, found.peak_mib.get(name, 0.0))
    return found


def versions(python: Path) -> dict[str, str]:
    """Package -> version, in an environment."""
    code = "import json; from benchmarks.worker import versions; print(json.dumps(versions()))"
    answer = subprocess.run([str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def _commands(setting: Setting, epochs: int) -> dict[str, list[list[str]]]:
    """The commands of each, in order."""
    size, test, k = str(BATCH_SIZE), str(10 if setting.quick else TEST_DATA), str(PARTICLES)
    ours = str(Path(sys.executable).with_name("ppvae"))
    train = f"train --data fashion-mnist --binarize dynamic --latent-dim 50 --hidden 200 200 --activation tanh --batch-size {size}".split()
    train += ["--epochs", str(epochs), "--threads", str(setting.threads), "--device", setting.device, "--out", "{out}/run"]
    evaluate = ["evaluate", "{out}/run", "--num-data", test, "--num-particles", k, "--threads", str(setting.threads)]
    theirs = [str(environments.python("numpyro", setting.device)), str(SCRIPT), "--images", str(setting.images)]
    theirs += ["--test-images", str(images.test_path(setting.images)), "--epochs", str(epochs), "--batch-size", size]
    theirs += ["--num-data", test, "--num-particles", k]
    return {NUMPYRO: [theirs], OURS: [[ours, *train], [ours, *evaluate]]}


def run(commands: Sequence[Sequence[str]], setting: Setting, folder: str, log: Path) -> Ended:
    """Run commands one after another, with an empty cache of compiled code.

    Raises:
        RivalError: One of them failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = environment(setting.threads, setting.device) | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
    del variables["TORCHINDUCTOR_COMPILE_THREADS"]
    started, peak = time.perf_counter(), 0
    for command in commands:
        with log.open("a") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=variables, preexec_fn=lambda: pinned(setting.threads))
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        peak = max(peak, used.ru_maxrss)
        if process.returncode:
            raise RivalError(f"{command[0]} ended with {process.returncode} ({log})")
    seconds = time.perf_counter() - started
    said = [line for line in log.read_text(errors="replace").splitlines() if "log p(x)" in line]
    return Ended(seconds, peak / 1024, said[-1].strip() if said else "")
