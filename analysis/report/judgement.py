"""What a run has learned and what not to believe: its numbers held against the questions of the verdict box."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppvae.analysis.calibration import Calibration
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.analysis.report import facts, verdicts
from ppvae.analysis.report.record import Record, mean, record_of
from ppvae.analysis.report.verdicts import BAD, CARE, UNKNOWN, Finding, number, small

HELD_OUT = ("validation", "test")
NOMINAL = 0.9  # of the regions whose coverage the verdict tells
LEAST_MEASURED = 1000  # training rows that each epoch is measured on, where there are so many


@dataclass(frozen=True)
class Judgement:
    """The verdict box of a run's page, without the page.

    Attributes:
        learned: Sentences: what was learned, with its errors in nats, and what not to believe.
        findings: An answer to each question: whether training converged, and so on.
    """

    learned: list[str]
    findings: list[Finding]

    def __str__(self) -> str:
        return "\n".join([*self.learned, *map(str, self.findings)])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"learned": self.learned, "findings": [asdict(found) for found in self.findings]}


def judge(run_folder: str | Path) -> Judgement:
    """Judge a run by what lies in its folder; nothing is computed anew.

    Args:
        run_folder: A run folder.

    Raises:
        MissingFileError: There is no such folder.
        RunError: It holds no run.
    """
    record = record_of(run_folder)
    return Judgement(learned(record), findings(record))


def findings(record: Record) -> list[Finding]:
    """The verdict box of a run."""
    folder = shlex.quote(str(record.folder))
    evaluate = f"ppvae evaluate {folder}"
    kept, sources = record.kept, record.results.sources
    relaxed = [source.measure for source in sources if source.measure.startswith("relaxed")]
    measure = relaxed[0] if relaxed else sources[0].measure if sources else None
    return [
        _converged(record),
        _overfitted(record, evaluate),
        verdicts.collapsed(kept.get("active_units"), kept.get("units"), kept.get("rate")),
        _weights(record, evaluate),
        *([_calibrated(record, folder)] if record.results.calibration else []),
        verdicts.probability(measure, evaluate),
    ]


def learned(record: Record) -> list[str]:
    """The verdict in sentences: what was learned, and what not to believe."""
    results = record.results
    lines = []
    if results.log_likelihood:
        found = chosen(results.log_likelihood)
        over = facts.data_of(found.source)
        if _weights(record, "").level == BAD:
            lines.append(f"On {over}, log p(x) lies above {_estimate(found.mean)} nats: a bound, not the value.")
        else:
            lines.append(f"log p(x) = {_estimate(found.mean)} nats on {over}.")
    elif results.elbo:
        bound = chosen(results.elbo)
        lines.append(f"ELBO = {_estimate(bound.mean)} nats on {facts.data_of(bound.source)}; log p(x) lies above it.")
    elif record.kept:
        lines.append(
            f"The ELBO of training rows is {number(record.kept.get('train_elbo', math.nan))} nats. Nothing was measured after training."
        )
    if results.gaps:
        gaps = chosen(results.gaps)
        lost = {name: number(gaps.mean(name).value) for name in ("inference", "approximation", "amortization")}
        lines.append(
            f"The ELBO is {lost['inference']} nats below log p(x): {lost['approximation']} by the guide's family, "
            f"{lost['amortization']} by its encoder ({facts.data_of(gaps.source)})."
        )
    found_all = findings(record)
    for level, words in ((BAD, "Do not believe"), (CARE, "Take care"), (UNKNOWN, "Not measured")):
        named = [found.short for found in found_all if found.level == level]
        if named:
            lines.append(f"{words}: {', '.join(named)}.")
    return lines


def chosen(results: dict[str, Any]) -> Any:
    """The result that stands for a run: that of the test rows, else of the first there is."""
    return results.get("test", next(iter(results.values())))


def _converged(record: Record) -> Finding:
    held_out = bool(record.history) and "validation_elbo" in record.history[0]
    elbo = [row.get("validation_elbo" if held_out else "train_elbo", math.nan) for row in record.history]
    beta = float(record.history[-1].get("beta", 1.0)) if record.history else 1.0
    again = f"{facts.train(record.command)} --resume" if record.command is not None else "ppvae.fit(..., resume=True)"
    how = {"stopped": record.stopped, "epochs": record.config["epochs"], "beta": beta, "rollbacks": record.rollbacks}
    return verdicts.converged(elbo, held_out=held_out, command=again, **how)


def _overfitted(record: Record, evaluate: str) -> Finding:
    """Training rows against validation rows of the same epoch, else against the rows of a result."""
    kept, training = record.kept, record.kept.get("train_elbo")
    first = record.history[0].get("train_elbo", math.nan) if record.history else math.nan
    gained = training - first if training is not None else math.nan
    measured = min(record.config["data"]["num_data"], LEAST_MEASURED)
    if "validation_elbo" in kept:
        size = record.config["validation"]["num_data"]
        error = kept["validation_elbo_se"] * _both(size, max(measured, min(size, record.config["data"]["num_data"])))
        return verdicts.overfitted(training, kept["validation_elbo"], error, gained=gained)
    for over in HELD_OUT:
        found = record.results.elbo.get(over)
        if found is not None:
            error = found.mean.data_se * _both(len(found.pointwise), measured)
            more = f"{evaluate} --split {over}"
            return verdicts.overfitted(training, found.mean.value, error, gained=gained, which=over, command=more)
    return verdicts.overfitted(None, None, math.nan, gained=gained, command=f"{evaluate} --split test")


def _both(held_out: int, training: int) -> float:
    """The error of a difference of two means by that of the first, where both kinds of rows spread alike."""
    return math.sqrt(1 + held_out / training)


def _weights(record: Record, evaluate: str) -> Finding:
    if not record.results.log_likelihood:
        return verdicts.weights(None, command=evaluate)
    found = chosen(record.results.log_likelihood)
    size = f" --num-data {len(found.pointwise)}" if "[" in str(found.source.data.get("split", "")) else ""
    return verdicts.weights(**trust(found), command=f"{evaluate}{size} --tolerance 0.05")


def trust(found: LogLikelihood) -> dict[str, Any]:
    """What there is to say of an estimate's weights, as ``verdicts.weights`` takes it."""
    there = found.k_hat[~found.k_hat.isnan()]
    excess = 0.0
    if found.verdict is not None:
        excess = mean((found.verdict.bound - found.pointwise).clamp(min=0) * ~found.trusted)
    return {
        "trusted": mean(found.trusted),
        "num_data": len(found.pointwise),
        "above": mean(there > found.threshold) if len(there) else math.nan,
        "threshold": found.threshold,
        "second": found.verdict.proposal if found.verdict is not None else None,
        "excess": excess,
    }


def _calibrated(record: Record, folder: str) -> Finding:
    found: Calibration = chosen(record.results.calibration)
    nominal = int((found.levels - NOMINAL).abs().argmin())
    return verdicts.calibrated(
        [str(fault) for fault in found.faults],
        num_tests=found.num_tests,
        num_data=len(found.ranks),
        level=found.level,
        nominal=found.levels[nominal].item(),
        coverage=found.coverage[nominal].item(),
        error=found.coverage_se[nominal].item(),
        fits=mean(found.likelihood_pit),
        command=f"ppvae gaps {folder} --families same full_rank",
    )


def _estimate(found: Any) -> str:
    return f"{number(found.value)} ± {small(found.data_se)} (data) ± {small(found.mc_se)} (Monte Carlo)"
