"""Which of two runs is better, by paired differences over the same data, and whether that is sure."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppvae.analysis.compare import Comparison, compare
from ppvae.analysis.report import verdicts
from ppvae.analysis.report.facts import Number
from ppvae.analysis.report.record import Record, mean, record_of
from ppvae.analysis.report.verdicts import Finding, number, small
from ppvae.errors import DataError


@dataclass(frozen=True)
class Paired:
    """Two results of one kind over the same rows."""

    what: str
    over: str
    results: tuple[Any, Any]  # two ``LogLikelihood`` or two ``ELBO``
    found: Comparison

    @property
    def numbers(self) -> list[Number]:
        """The mean difference with both errors, the share of data on which the first is higher, and both means."""
        mean_ = self.found.mean
        share = mean(self.found.pointwise > 0)
        return [
            Number(number(mean_.value, 3), mean_.value, ""),
            *(Number(small(error), error, "") for error in (mean_.data_se, mean_.mc_se)),
            Number(f"{100 * share:.0f} %", share, ""),
            *(Number(number(result.mean.value), result.mean.value, "") for result in self.results),
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the means and their errors, in nats, not the differences by datum."""
        mean_, share = self.found.mean, mean(self.found.pointwise > 0)
        both = [vars(result.mean) for result in self.results]
        about = {"what": self.what, "over": self.over, "num_data": len(self.found.pointwise)}
        return about | {"difference": vars(mean_), "share_first_higher": share, "first": both[0], "second": both[1]}


@dataclass(frozen=True)
class RunComparison:
    """Two runs held against each other.

    Attributes:
        names: Of the runs.
        finding: Which is better, and whether that is sure.
        paired: The differences behind it, first less second, in nats: log p(x) before the ELBO.
    """

    names: tuple[str, str]
    finding: Finding
    paired: list[Paired]

    def __str__(self) -> str:
        return str(self.finding)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"runs": list(self.names), "finding": asdict(self.finding), "paired": [one.as_dict() for one in self.paired]}


def compare_runs(a: str | Path, b: str | Path) -> RunComparison:
    """Compare two runs by what lies in their folders; nothing is computed anew.

    Args:
        a, b: Run folders.

    Raises:
        MissingFileError: There is no such folder.
        RunError: One of them holds no run.
        DataError: The results of one are under a relaxed measure, those of the other under a true one.
    """
    return compared(record_of(a), record_of(b))


def compared(a: Record, b: Record) -> RunComparison:
    """``compare_runs`` of runs that have been read."""
    check_measures(a, b)
    names, paired = _names(a, b), pairs(a, b)
    return RunComparison(names, _better((a, b), names, paired), paired)


def check_measures(a: Record, b: Record) -> None:
    """Raise where the results of one run are relaxed and those of the other are not.

    Raises:
        DataError: naming both.
    """
    kinds = [{source.measure.startswith("relaxed") for source in record.results.sources} for record in (a, b)]
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        relaxed, other = (a, b) if True in kinds[0] else (b, a)
        raise DataError(
            f"{relaxed.folder} has results under a relaxed measure, which are no probabilities, and {other.folder} has true ones",
            where="no difference between the two means anything",
            mend="evaluate both under likelihoods of one kind, over binarised data",
        )


def pairs(a: Record, b: Record) -> list[Paired]:
    """Results of one kind over the same rows, log p(x) first; rows are told by their SHA-256."""
    found = []
    kinds: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "log p(x)": (a.results.log_likelihood, b.results.log_likelihood),
        "ELBO": (a.results.elbo, b.results.elbo),
    }
    for what, (ours, theirs) in kinds.items():
        others = {result.source.data["sha256"]: result for result in theirs.values()}
        for over, result in ours.items():
            other = others.get(result.source.data["sha256"])
            if other is not None:
                found.append(Paired(what, over, (result, other), compare(result, other)))
    return found


def _better(records: Sequence[Record], names: tuple[str, str], paired: Sequence[Paired]) -> Finding:
    """Which is better, by log p(x) of test rows where there is one, else by what there is."""
    again = " and ".join(f"ppvae evaluate {shlex.quote(str(record.folder))} --split test" for record in records)
    if not paired:
        return verdicts.better(None, math.nan, names, command=again)
    first = next((one for one in paired if one.what == paired[0].what and one.over == "test"), paired[0])
    mean_ = first.found.mean
    error = math.hypot(0.0 if math.isnan(mean_.data_se) else mean_.data_se, mean_.mc_se)
    trusted = [mean(result.trusted) for result in first.results] if first.what == "log p(x)" else []
    return verdicts.better(
        mean_.value,
        error,
        names,
        trusted=trusted,
        what=first.what,
        command=again.replace(" and", " --tolerance 0.05 and") + " --tolerance 0.05",
    )


def _names(a: Record, b: Record) -> tuple[str, str]:
    return (a.name, b.name) if a.name != b.name else (str(a.folder), str(b.folder))
