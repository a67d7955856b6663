"""Ctrl-C and SIGTERM while a run trains: the first ends it after the step under way, with a checkpoint; a second ends it at once."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppvae.run import Run

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "interrupt"  # ``Run.stopped`` of a run that a signal ended


class SecondSignal(KeyboardInterrupt):
    """A signal that came while the first was being obeyed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class LeftUndone(Exception):  # noqa: N818  (no fault of anyone's)
    """A measurement that may be left was left, for a signal came."""


class Interruption:
    """What signals have come since ``listening`` began.

    Attributes:
        signal: The number of the first, whoever heard it: of several processes one tells the others. None where none came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._came: int | None = None  # to this process itself

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler.

        Raises:
            SecondSignal: One has come to this process before. What another process has told is no first: whoever ends a job signals all of
                its processes, and they do not hear it at one moment.
        """
        if self._came is not None:
            raise SecondSignal(number)
        self._came = number
        if self.signal is None:
            self.signal = number

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Work inside which ``leave_if_asked`` raises once a signal has come: it changes nothing, and can be done again."""
        token = _leaving.set(self)
        try:
            yield
        finally:
            _leaving.reset(token)


_leaving: ContextVar[Interruption | None] = ContextVar("leaving", default=None)


def leave_if_asked() -> None:
    """Called between the blocks of a measurement.

    Raises:
        LeftUndone: A signal came, and whoever asked for the measurement wants to stop.
    """
    current = _leaving.get()
    if current is not None and current.signal is not None:
        raise LeftUndone


@contextlib.contextmanager
def listening() -> Iterator[Interruption]:
    """Note signals in place of the handlers that are there, and put those back.

    Only the main thread can: elsewhere nothing is noted and nothing changed. A signal that is ignored (nohup) stays so.
    """
    found = Interruption()
    before: dict[signal.Signals, Any] = {}
    try:
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:  # None: not Python's, and not to be put back
                before[number] = handler
                signal.signal(number, found.note)
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if found.signal == number and isinstance(outer, Interruption) and outer.signal is None:  # a run inside a run's callback
                outer.note(number)


def exit_code(run: Run) -> int:
    """130 for a run that Ctrl-C ended, 143 for one that SIGTERM ended, 0 for any other."""
    return 128 + run.signal if run.stopped == STOPPED and run.signal is not None else 0


def resume_command(arguments: Sequence[str]) -> str:
    """The line that goes on with what ``ppvae ARGUMENTS`` began."""
    return shlex.join(["ppvae", *arguments, *([] if "--resume" in arguments else ["--resume"])])
