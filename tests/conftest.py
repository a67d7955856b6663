"""What every test starts from: float64, an empty parameter store, and a seed of its own."""

from __future__ import annotations

import random
import signal

import numpy as np
import pyro
import pytest
import torch

from ppvae.noise import derived_seed


def pytest_configure():
    """A shell's background job ignores Ctrl-C, and so would every run whose tests send it one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh(request):
    """Tolerances are then about mathematics, not rounding; and a seed cannot be picked after the fact, since it is the test's name."""
    dtype, seed = torch.get_default_dtype(), derived_seed(0, request.node.name)
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    yield seed
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()
