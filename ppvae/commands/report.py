"""``ppvae report``."""

from __future__ import annotations

from ppvae import analysis
from ppvae.commands.folders import check_folder, splits_of, writable
from ppvae.options import Report
from ppvae.output import tell


def run(options: Report) -> int:
    """Write the page on a run."""
    check_folder(options.run)
    data = None if options.data is None else splits_of(options.run, options.data)
    out = None if options.out is None else writable(options.out)
    page = analysis.report(options.run, out=out, data=data)
    found = analysis.judge(options.run)
    tell("judgement", str(found), found.as_dict())
    tell("report", f"report: {page}", str(page))
    return 0
