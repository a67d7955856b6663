"""What the cost grows with: measured, fitted, and carried to sizes that were not measured.

    python -m benchmarks.scaling                                # five minutes, one thread
    python -m benchmarks.scaling --quick                        # shows that it works; its numbers are worth nothing
    python -m benchmarks.scaling --write docs/scale.md          # what `make scale` does

Each part runs in a process of its own, kept on the first ``--threads`` processors; what it measured stands in runs/scale/ as JSON. Blocks
of work take turns and blocks with foreign load are taken again, as in ``benchmarks.timing``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.process import ROOT
from benchmarks.scaling_parts import PARTS, asked, peak, say
from benchmarks.scaling_text import Found, rendered, written_into


def answered(arguments: Sequence[str]) -> Any:
    """Do a part in this process."""
    name, *rest = arguments
    if name == "peak":
        return peak(*rest)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    channel, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not the answer
    try:
        with tempfile.TemporaryDirectory(dir=rest[1]) as folder:
            return PARTS[name](rest[0] == "quick", Path(folder))
    finally:
        sys.stdout = channel


def measured(options: argparse.Namespace) -> Found:
    """Every part, kept as JSON as soon as it is there."""
    options.out.mkdir(parents=True, exist_ok=True)
    path, parts = options.out / "results.json", {}
    if options.only is not None and path.exists():
        parts = json.loads(path.read_text())
    for name in options.only or PARTS:
        say(name)
        started = time.monotonic()
        parts[name] = asked([name, "quick" if options.quick else "full", str(options.out)], options.threads)
        say(f"  {time.monotonic() - started:.0f} s")
        path.write_text(json.dumps(parts, indent=1))
    return Found(parts, options.threads)


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, fit, print, and write."""
    options = parsed(arguments)
    if options.part:
        print(json.dumps(answered(options.part)))
        return
    found = measured(options)
    where = machine.described(options.threads, "cpu") | ({"quick": "yes, worth nothing"} if options.quick else {})
    text = rendered(found, where, options.sd)
    print(text)
    if options.write is not None:
        written_into(options.write, text)


def parsed(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds")
    parser.add_argument("--threads", type=int, default=1, help="of every part")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=None, help="measure these again; the others as --out has them")
    parser.add_argument("--sd", type=float, default=63.0, help="of log p(x) over the data, nats, for the prediction")
    parser.add_argument("--write", type=Path, default=None, help="a document whose numbers are replaced")
    parser.add_argument("--out", type=Path, default=None, help="where JSON goes")
    parser.add_argument("--part", nargs="+", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.quick and options.write:
        parser.error("--quick measures nothing that a document should keep: leave out one of --quick and --write")
    options.out = (options.out or ROOT / "runs" / ("scale-quick" if options.quick else "scale")).resolve()
    return options


if __name__ == "__main__":
    main()
