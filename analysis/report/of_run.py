"""``ppvae report``: one HTML file that says what a run has learned, what not to believe, and lets its latents be explored.

It renders what lies in the run folder and computes only what takes seconds: reconstructions, samples, codes, decoded grids.
"""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ppvae.analysis.report import facts
from ppvae.analysis.report.judgement import findings, learned
from ppvae.analysis.report.record import Record, record_of, shown_rows
from ppvae.data import Data, Splits
from ppvae.errors import PpvaeError, RelaxedMeasureWarning
from ppvae.modules import Program
from ppvae.run import Run, load, template_of

if TYPE_CHECKING:
    from ppvae.analysis.report.explorer import Atlas
    from ppvae.analysis.report.figures import Shown

SIMULATED = 1000  # data that a page asks calibration to be measured on
NAME = "report.html"


def report(
    run_folder: str | Path,
    *,
    out: str | Path | None = None,
    data: Splits | Data | str | None = None,
    model: Program | None = None,
    guide: Program | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        run_folder: A run folder.
        out: The file to write; by default ``report.html`` in the run folder.
        data: Rows to show, those of ``.test`` of ``Splits``, or the name or file of others; by default the data that the run recorded,
            where they are still there.
        model, guide: The programs, needed where they were built in Python from parts that no record can name.

    Returns:
        The path of the page: one file below 3 MB, that loads nothing. The same folder gives the same bytes.

    Raises:
        MissingFileError: There is no such folder.
        RunError: It holds no run, or the page cannot be written.
        DataError: Data that were named cannot be read.
    """
    from ppvae.analysis.report import figures, page  # matplotlib and jinja2: loaded for a page alone

    record = record_of(run_folder)
    rows, sizes, absent = shown_rows(record, data)
    shown, missing = figures.attempt(figures.measured(record))
    missing += [f"whatever needs data: {absent}"] if absent else []
    explorer: Atlas | None = None
    try:
        run = load(record.folder, model, guide)
    except PpvaeError as error:
        missing.append(f"whatever needs the programs: {error.problem}")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RelaxedMeasureWarning)  # the verdict says it, where anything was measured
            more, without = _shown(record, run, rows)
            explorer, why = _explorer(record, run, rows)
        shown, missing = shown + more, [*missing, *without, *why]
    return page.write(
        "report.html",
        Path(out) if out is not None else record.folder / NAME,
        name=record.name,
        subtitle=_subtitle(record),
        learned=learned(record),
        findings=findings(record),
        rows=facts.table(record),
        unmeasured=_unmeasured(record),
        unread=record.results.unread,
        atlas=explorer,
        figures=shown,
        missing=missing,
        facts=facts.facts(record, sizes),
        differences=facts.differences(record.config),
        commands=facts.commands(record),
        python=record.command is None,
        provenance=facts.provenance(record),
    )


def _shown(record: Record, run: Run, rows: Data | None) -> tuple[list[Shown], list[str]]:
    from ppvae.analysis.report import figures

    return figures.attempt(figures.from_programs(record, run.model, run.guide, template_of(record.folder), rows))


def _explorer(record: Record, run: Run, rows: Data | None) -> tuple[Atlas | None, list[str]]:
    from ppvae.analysis.report.explorer import atlas

    if rows is None:
        return None, []
    try:
        return atlas(record, run.model, run.guide, rows), []
    except PpvaeError as error:
        return None, [f"the latent explorer: {error.problem}"]


def _unmeasured(record: Record) -> list[tuple[str, str]]:
    folder, results = shlex.quote(str(record.folder)), record.results
    found = []
    if not results.log_likelihood:
        found.append(("log p(x) and the ELBO of held-out rows", f"ppvae evaluate {folder}"))
    if not results.gaps:
        found.append(("where the ELBO is lost, in the guide's family or in its encoder", f"ppvae gaps {folder}"))
    if not results.calibration:
        found.append(("whether the guide is calibrated", f"ppvae evaluate {folder} --calibration {SIMULATED}"))
    return found


def _subtitle(record: Record) -> str:
    programs = [str(record.programs[side]["make"]).rpartition(".")[2] for side in ("model", "guide") if side in record.programs]
    latents = ", ".join(record.sites("latent"))
    pair = " with ".join(programs) if programs else f"programs over {latents}"
    return f"{record.config['data']['name']} · {pair} · {len(record.history):,} epochs · {record.folder}"
