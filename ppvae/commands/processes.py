"""Threads, devices, and the processes that torchrun starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppvae.errors import UsageError
from ppvae.ranks import sharing, started


def check_device(name: str) -> None:
    """Raise where there is no such device."""
    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:  # torch's answers to an unknown name, and to CUDA where there is none
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"there is no device '{name}'", mend=f"one of {', '.join(there)}") from error


@contextmanager
def together(device: str, threads: int | None) -> Iterator[None]:
    """The processes that torchrun has started, measurement shared out to them; all but the first are silent, unless by their errors."""
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(started(device))
        stack.enter_context(sharing(ranks))
        stack.enter_context(with_threads(threads))
        if not ranks.first:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextmanager
def with_threads(number: int | None) -> Iterator[None]:
    """torch with so many threads, and then as it was."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
