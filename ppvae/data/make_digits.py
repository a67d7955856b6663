"""Makes ``digits.npz`` from scikit-learn's copy: ``python -m ppvae.data.make_digits``. Needed by nobody who uses the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def main() -> None:
    """Write bytes instead of scikit-learn's float64; nothing is lost, the values are 0..16."""
    from sklearn.datasets import load_digits

    found = load_digits()
    np.savez_compressed(Path(__file__).with_name("digits.npz"), x=found.images.astype(np.uint8), y=found.target.astype(np.uint8))


if __name__ == "__main__":
    main()
