"""A function of tensors that runs Pyro programs, compiled by shape and held to itself run eagerly: what measurement is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppvae.capture import NotCaptured, capture, compiled, difference, why_no_compiler

MOST_SHAPES = 8
# Rounding of log densities that sum some thousand float32 terms: nats, and a share of the largest.
TOLERANCE = (1e-4, 1e-5)
TOLERANCE_64 = (1e-9, 1e-12)


class CompiledFunction:
    """A function run as its captured and compiled arithmetic where that was seen to be the same.

    Every shape is captured twice, and both graphs must be one; it is then held to the function itself on its first inputs, with the
    same noise. Where any of this fails the function runs as it stands, and ``reason`` says why.

    Args:
        function: Of tensors, to tensors. What it closes over and what does not change between calls is read from where it lies; what
            changes must be an input.
        wanted: Whether to compile at all.
        shapes: Only inputs whose shapes this approves are worth compiling.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        *,
        wanted: bool = True,
        shapes: Callable[[Sequence[Tensor]], bool] = lambda _: True,
    ) -> None:
        self.function, self.shapes = function, shapes
        self.reason = "" if wanted else "not worth compiling"
        self._compiled: dict[Any, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the function gives for these inputs."""
        if self.reason or not self.shapes(inputs):
            return self.function(*inputs)
        key = tuple((t.shape, t.dtype, t.device) for t in inputs)
        if key not in self._compiled:
            if len(self._compiled) >= MOST_SHAPES:
                return self.function(*inputs)
            try:
                self._compiled[key] = self._admitted(inputs)
            except NotCaptured as reason:
                self.reason, self._compiled = str(reason), {}
                return self.function(*inputs)
        try:
            return self._compiled[key](*inputs)
        except AssertionError as error:  # what it closes over was given another shape
            self.reason, self._compiled = f"it no longer fits: {str(error).splitlines()[0]}", {}
            return self.function(*inputs)

    def _admitted(self, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        device = next((t.device.type for t in inputs), "cpu")
        if why_no_compiler(device):
            raise NotCaptured(why_no_compiler(device))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            expected = self.function(*inputs)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            first, second = (capture(self.function, inputs) for _ in range(2))
        said = difference(first, second)
        if said:
            raise NotCaptured(f"two captures differ: {said}")
        run = compiled(first, inputs)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            found = run(*inputs)
        single = any(t.dtype == torch.float32 for t in (*inputs, *first.lifted, *expected))
        own, share = TOLERANCE if single else TOLERANCE_64
        for a, b in zip(found, expected, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise NotCaptured(f"compiled, a result is {a.dtype} of {tuple(a.shape)}, not {b.dtype} of {tuple(b.shape)}")
            if not b.numel() or torch.equal(a, b):
                continue
            largest = torch.nan_to_num(b.abs(), posinf=0.0).max().item()
            if not torch.allclose(a, b, rtol=0.0, atol=own + share * largest, equal_nan=True):
                raise NotCaptured(f"compiled, a result of shape {tuple(b.shape)} is {(a - b).abs().max().item():.2g} away")
        return run
