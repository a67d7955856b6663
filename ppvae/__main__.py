"""``python -m ppvae`` is the command ``ppvae``."""

from __future__ import annotations

import sys

from ppvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
