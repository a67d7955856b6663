"""Results as text: a row a rival, a row a mark; and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Mark
from benchmarks.measuring import Measured
from benchmarks.timing import LEVEL, Interval, Series, ratio

START, END = "<!-- table: written by `make bench` -->", "<!-- end of table -->"
HEADER = ("job", "rival", "time", "ratio", f"{LEVEL:.0%} interval", "blocks", "discarded", "peak MiB")
MARKS_HEADER = ("job", "of", "to", "ratio", f"{LEVEL:.0%} interval", "pass", "goal", "holds")


def rendered(found: Sequence[Measured], machine: Mapping[str, Any], peak_flops: float) -> str:
    """Both tables in Markdown, with the line that says where they were made."""
    where = "; ".join(f"{key} {value}" for key, value in machine.items())
    versions: dict[str, str] = {}
    for case in found:
        versions |= case.versions
    lines = [
        f"{where}.",
        "",
        f"{', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}. "
        f"Measured peak {peak_flops / 1e9:.0f} Gflop/s (float32 matrix product).",
        "",
        *markdown(HEADER, [row for case in found for row in rows(case, peak_flops)]),
        "",
        *markdown(MARKS_HEADER, [row for case in found for row in mark_rows(case)]),
    ]
    failures = [f"- {case.case.name}: {name} took no part: {reason}" for case in found for name, reason in case.failed.items()]
    return "\n".join([*lines, *(["", *failures] if failures else [])]) + "\n"


def rows(found: Measured, peak_flops: float) -> list[list[str]]:
    """One row a rival, then the floor: the operations over the peak."""
    reference = found.case.rivals[0].name
    table = []
    for rival in found.case.rivals:
        if rival.name in found.series:
            series, first = found.series[rival.name], found.series.get(reference)
            table.append([found.case.name, *_row(rival.name, series, first, found), f"{found.peak_mib.get(rival.name, math.nan):.0f}"])
    if peak_flops > 0 and found.case.flop > 0:
        floor = found.case.flop / peak_flops
        share = f"{floor / found.series[reference].median:.3f}" if reference in found.series else ""
        table.append([found.case.name, "floor", _time(floor, found.case.unit), share, "", "", "", ""])
    return table


def _row(name: str, series: Series, reference: Series | None, found: Measured) -> list[str]:
    against = ratio(series, reference) if reference is not None else None
    contended = "" if series.clean else " (contended)"
    known = against is not None and against.count > 0
    return [
        name,
        _time(series.median, found.case.unit) + contended,
        f"{against.median:.3f}" if against and known else "",
        _span(against) if against and known else "",
        str(len(series.clean)),
        str(series.discarded),
    ]


def mark_rows(found: Measured) -> list[list[str]]:
    """One row a mark."""
    table = []
    for mark in found.case.marks:
        interval = found.ratio(mark)
        numbers = ["", ""] if interval is None else [f"{interval.median:.3f}", _span(interval)]
        goal = "" if mark.goal is None else f"{mark.goal:.2f}"
        table.append([found.case.name, mark.rival, mark.against, *numbers, f"{mark.passing:.2f}", goal, verdict(mark, interval)])
    return table


def verdict(mark: Mark, interval: Interval | None) -> str:
    """Whether a mark holds: by the median, with a word where the interval reaches over it."""
    if interval is None:
        return "not measured"
    if mark.goal is not None and interval.median <= mark.goal:
        return "goal" if interval.high <= mark.goal else "goal, not surely"
    if interval.median <= mark.passing:
        return "pass" if interval.high <= mark.passing else "pass, not surely"
    return "no" if interval.low > mark.passing else "no, not surely"


def _span(interval: Interval) -> str:
    text = f"{interval.low:.3f} to {interval.high:.3f}"
    if interval.level >= LEVEL:
        return text
    return f"{text} ({interval.level:.0%}, {interval.count} rounds)" if interval.count > 1 else "one round"


def _time(seconds: float, unit: str) -> str:
    for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if seconds >= 10 * size or size == 1e-9:
            return f"{seconds / size:,.0f} {name} a {unit}"
    return f"{seconds} s a {unit}"


def checks(found: Sequence[Measured]) -> str:
    """What the rivals computed, side by side."""
    table = [
        [case.case.name, rival.name, f"{case.values[rival.name]:.4f}" if rival.name in case.values else case.failed.get(rival.name, "")]
        for case in found
        for rival in case.case.rivals
    ]
    return "\n".join(markdown(("job", "rival", "nats per datum"), table)) + "\n"


def markdown(header: Sequence[str], table: Iterable[Sequence[str]]) -> list[str]:
    """A table, one line a row."""
    lines = [header, ["---"] * len(header), *table]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def as_dict(found: Measured) -> dict[str, Any]:
    """JSON-able."""
    return {
        "case": found.case.name,
        "unit": found.case.unit,
        "flop": found.case.flop,
        "rivals": {name: vars(series) | {"peak_mib": found.peak_mib.get(name)} for name, series in found.series.items()},
        "failed": found.failed,
        "marks": [vars(mark) | {"ratio": vars(r) if (r := found.ratio(mark)) else None} for mark in found.case.marks],
    }


def written_into(document: Path, text: str) -> None:
    """Replace what stands between the two markers of a document.

    Raises:
        ValueError: It does not have them, in this order.
    """
    before, start, rest = document.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{document} needs the lines {START} and {END}, with the table between them")
    document.write_text(f"{before}{START}\n\n{text}\n{END}{after}")
