"""What every test starts from: float64, an empty parameter store, and a seed of its own."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys

import numpy as np
import pyro
import pytest
import torch
from forks import Forks

import raised
from ppvae.noise import derived_seed
from quick import quick_run


def pytest_configure():
    """A shell's background job ignores Ctrl-C, and so would every run whose tests send it one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The quick run of an example, and who asks for its record, are of the tier that runs examples."""
    for item in items:
        if {"quick", "pictures"} & set(item.fixturenames) or item.name.startswith("test_a_quick_run"):
            item.add_marker(pytest.mark.example)


FORKS = pytest.StashKey[Forks]()


def pytest_collection_finish(session):
    """What was imported stays: a million objects that the collector would walk through again and again, a seventh of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 20, 50)
    if any("forks" in item.fixturenames for item in session.items):
        session.config.stash[FORKS] = Forks()


def pytest_unconfigure(config):
    if FORKS in config.stash:
        config.stash[FORKS].close()


@pytest.fixture(scope="session")
def forks(request):
    """A process that has imported everything, from which tests fork. It was forked itself before the first test."""
    return request.config.stash[FORKS]


@pytest.fixture(autouse=True)
def fresh(request):
    """Tolerances are then about mathematics, not rounding; and a seed cannot be picked after the fact, since it is the test's name."""
    dtype, seed = torch.get_default_dtype(), derived_seed(0, request.node.name)
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    # While it captures a graph torch takes the stack of every value, and of every seed, with source lines: under pytest's fifty frames a
    # fifth of the time.
    sys.tracebacklimit = 1
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    yield seed
    del sys.tracebacklimit
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def whole_texts(request):
    """An error that a test catches has the text that raised.txt has, whatever part of it the test itself looks at."""
    with contextlib.nullcontext() if raised.varies(request.node) else raised.held():
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The record of an example's quick run, made once a module."""
    found = {}

    def run(module):
        name = module.__name__.replace("_", "-")
        if name not in found:
            found[name] = quick_run(module, name, tmp_path_factory.mktemp(name))
        return found[name]

    return run
