"""What a check says: findings, and the report that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppvae.errors import PpvaeError, ProgramError

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        severity: ``error`` breaks the contract of a program, ``warning`` makes a result doubtful, ``note`` tells how things are done.
        problem: One sentence: what was needed and what came.
        where: The site, program, file or row concerned.
        mend: The line to change.
    """

    severity: Severity
    problem: str
    where: str = ""
    mend: str = ""

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.problem}"]
        lines += [f"  {label} {text}" for label, text in (("where:", self.where), ("mend: ", self.mend)) if text]
        return "\n".join(lines)

    @classmethod
    def of(cls, error: PpvaeError) -> Finding:
        """The finding that says what an error says."""
        return cls("error", error.problem, error.where, "; or ".join(error.mend))


@dataclass(frozen=True)
class Report:
    """What ``check`` found, errors first. Printing it gives one line of numbers, then at most three lines a finding."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: list[Finding]) -> Report:
        """The report of findings in the order they came, each once, errors first."""
        once = list(dict.fromkeys(findings))
        return cls(tuple(sorted(once, key=lambda finding: ORDER.index(finding.severity))))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that break the contract."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that make a result doubtful."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def raise_if_broken(self) -> None:
        """Raise where there are errors.

        Raises:
            ProgramError: with the text of every error.
        """
        if len(self.errors) == 1:
            only = self.errors[0]
            raise ProgramError(only.problem, where=only.where, mend=only.mend)
        if self.errors:
            raise ProgramError("\n".join(str(finding) for finding in self.errors))

    def __str__(self) -> str:
        counts = []
        for severity in ORDER:
            count = sum(finding.severity == severity for finding in self.findings)
            counts.append(f"{count} {severity}{'' if count == 1 else 's'}")
        verdict = "keeps the contract" if self.ok else "breaks the contract"
        return "\n".join([f"the pair {verdict}: {', '.join(counts)}", *map(str, self.findings)])
