"""``ppvae report``."""

from __future__ import annotations

from ppvae import analysis
from ppvae.commands.folders import check_folder
from ppvae.options import Report
from ppvae.output import tell


def run(options: Report) -> int:
    """Write the page on a run."""
    check_folder(options.run)
    page = analysis.report(options.run, out=options.out, data=options.data)
    tell("report", f"report: {page}", str(page))
    return 0
