"""The generators of the process, Python's, NumPy's and torch's: a run seeds them, takes their states along, and gives them back.

Whatever ppvae draws has a seed of its own. These are for what a user's program or callback draws besides.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae import noise

NUMPY = "MT19937"  # the only one whose state NumPy's global functions can be given


@contextlib.contextmanager
def owned(seed: int) -> Iterator[None]:
    """Python's and NumPy's generators seeded for a run; the caller's are put back."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    random.seed(noise.derived_seed(seed, "python"))
    if numpy["bit_generator"] == NUMPY:
        np.random.seed(noise.derived_seed(seed, "numpy") % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        if numpy["bit_generator"] == NUMPY:
            np.random.set_state(numpy)


def states(device: torch.device) -> dict[str, Any]:
    """The states of all generators that a program on ``device`` may draw from, as a checkpoint can hold them."""
    version, internal, gauss = random.getstate()
    found: dict[str, Any] = {"python": {"version": version, "internal": torch.from_numpy(np.array(internal, np.int64)), "gauss": gauss}}
    numpy: Mapping[str, Any] = np.random.get_state(legacy=False)
    if numpy["bit_generator"] == NUMPY:
        key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
        found["numpy"] = {"key": key, "pos": int(numpy["state"]["pos"]), "has_gauss": int(numpy["has_gauss"]), "gauss": numpy["gauss"]}
    found["cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(saved: Mapping[str, Any], device: torch.device) -> None:
    """Give the generators the states that ``states`` found; a GPU's stays where the run moved to one, or from one."""
    python = saved["python"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    if "numpy" in saved:
        numpy = saved["numpy"]
        key: Any = _uint32(numpy["key"])
        np.random.set_state(
            {"bit_generator": NUMPY, "state": {"key": key, "pos": numpy["pos"]}, "has_gauss": numpy["has_gauss"], "gauss": numpy["gauss"]}
        )
    torch.set_rng_state(saved["cpu"])
    if device.type == "cuda" and "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"], device)


def _uint32(key: Tensor) -> Any:
    return key.numpy().astype(np.uint32)
