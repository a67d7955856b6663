"""What a run prints: a header, one line an epoch, and a live line on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO


def duration(seconds: float) -> str:
    """1h02m, 3m10s, 12s."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def epoch_line(row: Mapping[str, Any], epochs: int, remaining: float) -> str:
    """One line for an epoch's row of the history, nats per datum."""
    validation = f"  validation {row['validation_elbo']:.2f} ± {row['validation_elbo_se']:.2f}" if "validation_elbo" in row else ""
    weight = f"  beta {row['beta']:.3g}" if row["beta"] != 1 else ""
    parts = [
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train ELBO {row['train_elbo']:.2f}{validation}",
        f"rate {row['rate']:.2f}",
        f"distortion {row['distortion']:.2f}",
        f"active {row['active_units']}/{row['units']}{weight}",
        f"|g| {row['gradient_norm']:.2g}",
        f"{row['steps_per_second']:.0f} steps/s",
        f"left {duration(remaining)}",
    ]
    return "  ".join(parts)


class Progress:
    """Prints to stderr: every epoch on a terminal, where a live line counts steps between; elsewhere at most a line every second."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._last_line = self._last_tick = float("-inf")

    def say(self, text: str) -> None:
        """A line that always shows."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def tick(self, epoch: int, done: int, steps: int) -> None:
        """Within an epoch: rewrites the live line at most five times a second."""
        now = time.monotonic()
        if self.live and now - self._last_tick > 0.2:
            self._last_tick = now
            print(f"\r\x1b[2Kepoch {epoch}  step {done}/{steps}", end="", file=self.stream, flush=True)

    def epoch(self, row: Mapping[str, Any], epochs: int, remaining: float) -> None:
        """After an epoch."""
        now = time.monotonic()
        if self.live or row["epoch"] in (1, epochs) or now - self._last_line >= 1.0:
            self._last_line = now
            self.say(epoch_line(row, epochs, remaining))

    def _clear(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=self.stream)
