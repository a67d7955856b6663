"""``ppvae compare``: two runs side by side in one HTML file, and which is better, by paired differences over the same data."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppvae.analysis.report import facts, verdicts
from ppvae.analysis.report.judgement import findings
from ppvae.analysis.report.paired import Paired, compared
from ppvae.analysis.report.record import Record, record_of, shown_rows
from ppvae.analysis.report.verdicts import Finding
from ppvae.errors import DataError, PpvaeError
from ppvae.run import load, template_of

if TYPE_CHECKING:
    from ppvae.analysis.report.figures import Shown

Maker = Callable[[], "Shown"]


def compare_report(a: str | Path, b: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the comparison of two runs.

    Args:
        a, b: Run folders.
        out: The file to write; by default ``compare-B.html`` in the folder of the first.

    Returns:
        The path of the page.

    Raises:
        MissingFileError: There is no such folder.
        RunError: One of them holds no run, or the page cannot be written.
        DataError: The results of one are under a relaxed measure, those of the other under a true one.
    """
    from ppvae.analysis.report import figures, page  # matplotlib and jinja2: loaded for a page alone

    records = (record_of(a), record_of(b))
    found = compared(*records)
    names, paired = found.names, found.paired
    together, missing = figures.attempt(_together(records, names, paired))
    if not paired:
        missing.append("paired differences: the runs have no results of one kind on the same rows")
    beside, without = figures.attempt(_beside(records, names))
    judged = _by_question(*(findings(record) for record in records))
    return page.write(
        "compare.html",
        Path(out) if out is not None else records[0].folder / f"compare-{records[1].name}.html",
        names=names,
        folders=[str(record.folder) for record in records],
        finding=found.finding,
        verdicts=judged,
        paired=paired,
        unlike=_unlike(*records),
        figures=together,
        beside=beside,
        missing=missing + without,
        commands=[*facts.commands(records[0])[:-1], *facts.commands(records[1])[:-1], _command(records)],
    )


def _together(records: Sequence[Record], names: tuple[str, str], paired: Sequence[Paired]) -> Iterator[Maker]:
    from ppvae.analysis.plots import two_runs
    from ppvae.analysis.report.figures import Shown, svg

    yield lambda: Shown(
        "Both curves",
        "Validation rows as lines, training rows dashed. Compare where both are flat.",
        f"ELBO by epoch of {names[0]} and {names[1]}",
        svg(two_runs.curves_of_two([record.history for record in records], names)),
    )
    for one in paired[:1]:
        yield lambda one=one: Shown(  # type: ignore[misc]
            f"Difference by datum ({one.over})",
            f"Right of zero {names[0]} is higher. The error of the mean is that of these {len(one.found.pointwise):,} differences.",
            f"Histogram of the difference in {one.what}",
            svg(two_runs.paired_differences(one.found, names, one.what)),
        )
    a, b = (record.results for record in records)
    for over, both in _same_rows(a.bounds, b.bounds):
        yield lambda over=over, both=both: Shown(  # type: ignore[misc]
            f"The bounds by number of particles ({over})",
            "Each lies below its own log p(x) on average. Compare models where both are flat: at few particles the better guide wins.",
            f"Importance-weighted bounds of {names[0]} and {names[1]} by number of particles",
            svg(two_runs.bounds_of_two(both, names)),
        )
    for over, both in _same_rows(a.calibration, b.calibration):
        yield lambda over=over, both=both: Shown(  # type: ignore[misc]
            f"What the guides' regions hold ({over})",
            "Below the diagonal a guide is too sure of z. Each is judged on data drawn from its own model.",
            f"Coverage of the regions of {names[0]} and {names[1]} by nominal level",
            svg(two_runs.coverage_of_two(both, names)),
        )


def _by_question(ours: Sequence[Finding], theirs: Sequence[Finding]) -> list[tuple[Finding, Finding]]:
    """The answers of both runs to each question; of what one of them was not asked it knows nothing."""
    by_topic = [{one.topic: one for one in findings_} for findings_ in (ours, theirs)]
    topics = [topic for topic in verdicts.QUESTIONS if any(topic in answers for answers in by_topic)]
    unknown = {topic: Finding(topic, verdicts.UNKNOWN, "Not measured", "") for topic in topics}
    return [(by_topic[0].get(topic, unknown[topic]), by_topic[1].get(topic, unknown[topic])) for topic in topics]


def _same_rows(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Results of one kind of both runs that are over the same rows."""
    others = {facts.rows_of(result.source).get("sha256"): result for result in theirs.values()}
    for over, result in ours.items():
        other = others.get(facts.rows_of(result.source).get("sha256"))
        if other is not None:
            yield over, (result, other)


def _beside(records: Sequence[Record], names: tuple[str, str]) -> Iterator[Maker]:
    """Samples and reconstructions of the same rows, in turns."""
    rows, _, why = shown_rows(records[0], None)
    makers = []
    for record, name in zip(records, names, strict=True):
        same = record.config["data"]["event_shape"] == records[0].config["data"]["event_shape"]
        makers.append(list(_of_one(record, name, rows if same else None)))
    if rows is None:
        yield partial(_without, why)
    yield from (make for both in zip(*makers, strict=False) for make in both)


def _of_one(record: Record, name: str, rows: Any) -> Iterator[Maker]:
    from dataclasses import replace

    from ppvae.analysis.report import figures

    try:
        run = load(record.folder)
    except PpvaeError as error:
        yield partial(_without, error.problem)
        return
    for make in figures.pictures(record, run.model, run.guide, template_of(record.folder), rows):
        yield lambda make=make: replace(shown := make(), title=f"{shown.title}: {name}")  # type: ignore[misc]


def _without(why: str) -> Shown:
    raise DataError(why)


def _unlike(a: Record, b: Record) -> list[tuple[str, str, str]]:
    """Config and programs that differ."""
    one, other = (
        {side: facts.program(record.programs[side]) if side in record.programs else None for side in ("model", "guide")}
        for record in (a, b)
    )
    return facts.unlike(one, other) + facts.unlike(a.config, b.config)


def _command(records: Sequence[Record]) -> str:
    return " ".join(["ppvae compare", *(shlex.quote(str(record.folder)) for record in records)])
