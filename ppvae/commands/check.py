"""``ppvae check``."""

from __future__ import annotations

import ppvae
from ppvae.commands import pairs
from ppvae.commands.train import data_of
from ppvae.errors import ProgramError
from ppvae.options import Check
from ppvae.output import tell


def run(options: Check) -> int:
    """Hold a pair against the contract of a program."""
    data = data_of(options)
    model, guide, _ = pairs.pair(data.train, options)
    report = ppvae.check(model, guide, data.train)
    tell("report", str(report), {"ok": report.ok, "text": str(report)})
    return 0 if report.ok else ProgramError.exit_code
