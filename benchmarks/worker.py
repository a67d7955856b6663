"""A rival in a process of its own, which does blocks of work when it is told to: lines of JSON in, lines of JSON out.

    python -m benchmarks.worker RIVAL_MODULE JOB_AS_JSON

Asked {"run": n, "settle": m} it answers the seconds of n iterations after m untimed ones, and what other processes used meanwhile;
{"value": n} answers what n iterations computed; {"save": path} writes the parameters; {"peak": true} the memory held at most.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from typing import Any

from benchmarks import timing
from benchmarks.job import Job, Prepared

PACKAGES = ("torch", "pyro-ppl", "jax", "numpyro", "pythae")


def main() -> None:
    """Prepare the job, then answer until the pipe is closed."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs to the log, not between the answers

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    module, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    if "torch" in module_needs(module):
        import torch

        torch.set_num_threads(job.threads)
    prepared: Prepared = getattr(importlib.import_module(f"benchmarks.rivals.{module}"), job.task)(job)
    answer(ready=True, units=prepared.units, versions=versions())
    for line in sys.stdin:
        message = json.loads(line)
        if "run" in message:
            seconds, foreign = timing.block(prepared.run, message["run"], message.get("settle", 0))
            answer(seconds=seconds, foreign=foreign)
        elif "value" in message:
            answer(value=float(prepared.run(message["value"])))
        elif "save" in message:
            save(prepared, message["save"])
            answer(saved=True)
        else:
            answer(peak_mib=timing.peak_mib())


def module_needs(module: str) -> str:
    """The library that a rival runs on."""
    return "jax" if module.startswith("numpyro") else "torch"


def versions() -> dict[str, str]:
    """Package -> version, of those of this environment that matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save(prepared: Prepared, path: str) -> None:
    """Write the trained arrays in order, p0, p1, ..."""
    import numpy as np

    assert prepared.parameters is not None
    np.savez(path, **{f"p{i}": array for i, array in enumerate(prepared.parameters())})


if __name__ == "__main__":
    main()
