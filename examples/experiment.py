"""What every experiment here shares: its options, how it tells what was seen, and the three files that it leaves. No experiment itself."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

import ppvae
from ppvae.analysis import plots

Claims = Mapping[str, tuple[bool, str]]  # claim -> whether it was seen, and the numbers


def options(
    doc: str | None, name: str, arguments: Sequence[str] | None = None, *, quick: str = "small and short: shows that it works"
) -> argparse.Namespace:
    """``--out`` (runs/NAME) and ``--quick``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser.parse_args(arguments)


def fit(*pair_and_data: Any, **settings: Any) -> ppvae.Run:
    """``ppvae.fit``. After a signal that returns a run which is not whole; an experiment ends there, and goes on when it is called again.

    Raises:
        KeyboardInterrupt: A signal came; with ``out`` and ``resume`` the run goes on from where it is.
    """
    run = ppvae.fit(*pair_and_data, **settings)
    if run.stopped == "interrupt":
        raise KeyboardInterrupt
    return run


def finish(out: Path, name: str, table: str, claims: Claims, figure: Figure, record: Mapping[str, Any]) -> None:
    """Print the table and what was seen; leave NAME.txt, NAME.png and, last, since it says finished, NAME.json in ``out``."""
    lines = [f"{'seen' if seen else 'NOT SEEN'}: {claim}: {numbers}" for claim, (seen, numbers) in claims.items()]
    text = "\n".join([table, "", *lines])
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.txt").write_text(text + "\n")
    plots.save(figure, out / f"{name}.png")
    told = {claim: {"seen": seen, "numbers": numbers} for claim, (seen, numbers) in claims.items()}
    (out / f"{name}.json").write_text(json.dumps({**record, "claims": told}, indent=1))


def mean_and_se(values: Tensor) -> tuple[float, float]:
    """The mean of independent values, (N,), and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def strips(parts: Sequence[Tensor], num: int, side: int) -> Any:
    """A row of the first ``num`` images of each part, (n, side * side), with a white border of one pixel: an array for ``imshow``."""
    rows = [torch.cat([pad(image, (1, 1, 1, 1)) for image in part[:num].double().reshape(-1, side, side)], 1) for part in parts]
    return plots.array(torch.cat(rows, 0))
