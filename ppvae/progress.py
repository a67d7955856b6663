"""What a run prints: a header, one line an epoch, and on a terminal a live line with a bar, drawn by rich."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.control import Control
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segments
from rich.table import Table

COLUMNS = 80  # of a line where no terminal tells its own
LEAST_NEEDED = ("steps/s", "|g|", "distortion", "rate", "active", "left")  # left out first where a line has no room
TICK, LINE = 0.2, 1.0  # seconds between two live lines, and between two epochs' lines elsewhere


def duration(seconds: float) -> str:
    """1h02m, 3m10s, 12s."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def epoch_line(row: Mapping[str, Any], epochs: int, remaining: float, columns: int = COLUMNS) -> str:
    """One line for an epoch's row of the history, nats per datum; what matters least is left out where it does not fit."""
    validation = f"  valid {row['validation_elbo']:.2f} ± {row['validation_elbo_se']:.2f}" if "validation_elbo" in row else ""
    parts = {
        "epoch": f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        "elbo": f"ELBO {row['train_elbo']:.2f}{validation}",
        "rate": f"rate {row['rate']:.2f}",
        "distortion": f"distortion {row['distortion']:.2f}",
        "active": f"active {row['active_units']}/{row['units']}",
        "beta": f"beta {row['beta']:.3g}" if row["beta"] != 1 else "",
        "|g|": f"|g| {row['gradient_norm']:.2g}",
        "steps/s": f"{row['steps_per_second']:.0f} steps/s",
        "left": f"left {duration(remaining)}",
    }
    for name in LEAST_NEEDED:
        if len(_joined(parts)) > columns:
            del parts[name]
    return _joined(parts)


def _joined(parts: Mapping[str, str]) -> str:
    return "  ".join(part for part in parts.values() if part)


class Progress:
    """Prints to stderr: every epoch on a terminal, where a live line counts steps between; elsewhere at most a line every second.

    The live line is one line that is wiped and drawn again, with nothing to end: a run that stops in any way leaves the terminal as it was.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._last_line = self._last_tick = float("-inf")
        self._began: tuple[int, float] | None = None

    def say(self, text: str) -> None:
        """A line that always shows."""
        self._wipe()
        if self.live:  # broken between words on a terminal, as in output.py; in a file a line stays a line
            how: dict[str, Any] = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
            text = "\n".join(textwrap.fill(line, self.console.width, replace_whitespace=False, **how) for line in text.splitlines())
        self.console.print(text, soft_wrap=True)
        self.console.file.flush()

    def tick(self, epoch: int, done: int, steps: int) -> None:
        """Within an epoch: draws the live line anew at most five times a second."""
        now = time.monotonic()
        if not self.live:
            return
        if self._began is None or self._began[0] != epoch:
            self._began = epoch, now
        if now - self._last_tick > TICK:
            self._last_tick = now
            self._wipe()
            spent = now - self._began[1]
            left = f"{duration(spent * (steps - done) / done)} left in this epoch" if done and spent > 1 else ""
            line = Table.grid(padding=(0, 1))
            line.add_row(f"epoch {epoch}", ProgressBar(steps, done, width=24), f"step {done}/{steps}", left)
            (first, *_) = self.console.render_lines(line, pad=False)  # without the line break that a table ends with
            self.console.print(Segments(first), end="")
            self.console.control(Control((ControlType.CARRIAGE_RETURN,)))
            self.console.file.flush()

    def epoch(self, row: Mapping[str, Any], epochs: int, remaining: float) -> None:
        """After an epoch."""
        now = time.monotonic()
        if self.live or row["epoch"] in (1, epochs) or now - self._last_line >= LINE:
            self._last_line = now
            self.say(epoch_line(row, epochs, remaining, self.console.width if self.live else COLUMNS))

    def _wipe(self) -> None:
        if self.live:
            self.console.control(Control((ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2)))
