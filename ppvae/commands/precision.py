"""A run measured in float64, to see what rounding does to its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppvae.data import Data
from ppvae.modules import modules_of
from ppvae.run import Run


@contextmanager
def measured_in(dtype: str | None, run: Run, data: Data) -> Iterator[Data]:
    """The data to measure a run on.

    With "float64" these, the run's networks and parameters, and what its programs make while they run are float64 inside. The run, which
    a command has loaded for itself, stays so.
    """
    if dtype is None:
        yield data
        return
    for module in (*modules_of(run.model).values(), *modules_of(run.guide).values()):
        module.double()
    for value in run.model.store["params"].values():
        value.data = value.data.double()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield data.double()
    finally:
        torch.set_default_dtype(before)
