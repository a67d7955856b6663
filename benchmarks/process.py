"""Worker processes as the harness sees them: started in their environment, asked, and closed."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.job import Job
from benchmarks.timing import BLOCK_SECONDS, SETTLE_SECONDS, Block, is_clean

ROOT = Path(__file__).resolve().parents[1]
WARM_SECONDS = 0.5


class RivalError(RuntimeError):
    """A worker did not start or stopped; the message ends with the last line of its log."""


def environment(threads: int, device: str) -> dict[str, str]:
    """The variables under which every worker runs: as many threads as told in every library, and no compiler processes beside."""
    cuda = device.startswith("cuda")
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        # XLA's pool has as many threads as the process has processors, or none
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cuda" if cuda else "cpu",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | variables | ({} if cuda else {"CUDA_VISIBLE_DEVICES": ""})


def pinned(threads: int) -> None:
    """Keep this process on the first so many of the processors that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Worker:
    """One rival doing one job.

    Args:
        python: The interpreter of its environment.
        module: In ``benchmarks.rivals``.
        job: What to do.
        log: Where its errors and its libraries' prints go.
    """

    def __init__(self, python: Path, module: str, job: Job, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker", module, json.dumps(vars(job))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=environment(job.threads, job.device),
                preexec_fn=lambda: pinned(job.threads),
            )
        self.units, self.iterations, self.settle = 1.0, 1, 0
        self.versions: dict[str, str] = {}

    def ready(self) -> None:
        """Wait until the job is prepared.

        Raises:
            RivalError: It could not be.
        """
        answer = self._answer()
        self.units, self.versions = answer["units"], answer["versions"]

    def calibrate(self, block_seconds: float = BLOCK_SECONDS) -> None:
        """Warm up (compilers work here), then find how many iterations make a block."""
        spent = 0.0
        while spent < WARM_SECONDS:
            spent += self.ask(run=1)["seconds"]
        each = min(self.ask(run=3)["seconds"] / 3, self.ask(run=1)["seconds"])
        self.iterations = max(1, round(block_seconds / each))
        self.settle = math.floor(SETTLE_SECONDS / each)

    def block(self) -> Block:
        """One timed block."""
        found = self.ask(run=self.iterations, settle=self.settle)
        return Block(found["seconds"] / (self.iterations * self.units), is_clean(found["seconds"], found["foreign"]))

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send one line and wait for the answer.

        Raises:
            RivalError: The worker has stopped.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, which does not come, tells why
        return self._answer()

    def close(self) -> None:
        """Let the worker end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)  # type: ignore[no-any-return]
        said = [text for text in self.log.read_text(errors="replace").splitlines() if text.strip()]
        raise RivalError(f"{said[-1][:160] if said else 'it ended without a word'} ({self.log})")
