"""A run measured in float64, to see what rounding does to its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppvae.data import Data
from ppvae.modules import default_dtype, double
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
    double(run.model, run.guide)
    for value in run.model.store["params"].values():
        value.data = value.data.double()
    with default_dtype(torch.float64):
        yield data.double()
