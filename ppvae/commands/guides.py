"""``ppvae guides``."""

from __future__ import annotations

import ppvae.guides
from ppvae.commands.models import lines, listed
from ppvae.options import Guides
from ppvae.output import tell


def run(options: Guides) -> int:
    """List the guides."""
    found = listed(ppvae.guides)
    tell("guides", lines(found), found)
    return 0
