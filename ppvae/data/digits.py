"""Handwritten digits: 1,797 images of 8 x 8 pixels with values 0..16. They come with the package.

Source: Alpaydin, Kaynak (1998), Optical recognition of handwritten digits, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; its test set, as scikit-learn (BSD-3-Clause) ships it. See ``digits.md``.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import Tensor

LEVELS = 16
HELD_OUT = 360  # rows for validation, and as many for the test: a fifth each


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 8, 8) and labels (1797,), both bytes."""
    file = resources.files("ppvae.data") / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
