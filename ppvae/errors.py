"""One family of errors. Each says what was needed, what came, where, and how to mend it."""

from __future__ import annotations

import re


class PpvaeError(ValueError):
    """Root of every error that ppvae raises on purpose.

    Args:
        problem: One sentence: what was needed and what came.
        where: The site, file, row or parameter concerned.
        mend: What to do about it, one remedy an entry.
    """

    exit_code = 70

    def __init__(self, problem: str, *, where: str = "", mend: str | list[str] = "") -> None:
        remedies = [mend] if isinstance(mend, str) else list(mend)
        lines = [problem]
        if where:
            lines.append(f"  where: {where}")
        lines += [f"  {'mend: ' if i == 0 else '   or:'} {remedy}" for i, remedy in enumerate(r for r in remedies if r)]
        super().__init__("\n".join(lines))
        self.problem, self.where, self.mend = problem, where, [r for r in remedies if r]


class ShapeError(PpvaeError):
    """A site or a batch has the wrong shape, or a site lies outside the data plate."""


class DataError(PpvaeError):
    """The data cannot be used: NaN, wrong form, outside the likelihood's support."""

    exit_code = 65


class MissingFileError(DataError):
    """A file or a run folder that was asked for is not there."""

    exit_code = 66


class ProgramError(PpvaeError):
    """Model and guide break the contract of a program."""

    exit_code = 65


class ObjectiveError(PpvaeError):
    """An objective, weight or schedule that would not compute what its name says."""

    exit_code = 65


class DivergedError(PpvaeError):
    """Training met a loss or gradient that is not finite; the last good state is kept."""


class RunError(PpvaeError):
    """A run folder cannot be written, read or matched with the programs handed in."""

    exit_code = 74


class LockedError(RunError):
    """Another process holds the run folder."""

    exit_code = 75


class FamilyError(PpvaeError):
    """A variational family cannot be built for these latents."""

    exit_code = 65


class ArgumentError(PpvaeError):
    """A number handed to a function makes no sense there."""

    exit_code = 2


class UsageError(PpvaeError):
    """An argument of a command names something that is not there."""

    exit_code = 2


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise where a count is no whole number, or too small.

    Raises:
        ArgumentError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name} is a whole number of at least {least}, got {value!r}")


def in_a_line(error: BaseException) -> str:
    """What another library's error says, at most 200 characters of its first line, without the line of C++ that raised it."""
    first = (str(error).splitlines() or [""])[0]
    return re.sub(r"^\[[^\]]*\.\w+:\d+\][ .]*", "", first).rstrip(":")[:200] or type(error).__name__


class RelaxedMeasureWarning(UserWarning):
    """The data lie outside the likelihood's support, and its author asked for no validation."""


class UnreliableWarning(UserWarning):
    """A result that stands but should not be trusted."""
