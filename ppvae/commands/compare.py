"""``ppvae compare``."""

from __future__ import annotations

from ppvae import analysis
from ppvae.commands.folders import check_folder, writable
from ppvae.options import Compare
from ppvae.output import tell


def run(options: Compare) -> int:
    """Write the page on two runs."""
    for folder in (options.first, options.second):
        check_folder(folder)
    page = analysis.compare_report(options.first, options.second, out=None if options.out is None else writable(options.out))
    found = analysis.compare_runs(options.first, options.second)
    tell("comparison", str(found), found.as_dict())
    tell("report", f"report: {page}", str(page))
    return 0
