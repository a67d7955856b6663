"""A function of tensors that runs Pyro programs, compiled by shape and held to itself run eagerly: what measurement is made of."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppvae.capture import Graph, NotCaptured, capture, compiled, difference, same_tensor, why_no_compiler
from ppvae.memory import is_cut

Code = Callable[..., Sequence[Tensor]]
MOST_SHAPES = 8
MOST_AGREED = 64
SMALL_BYTES = 4096
# Rounding of log densities that sum some thousand float32 terms: nats, and a share of the largest.
TOLERANCE = (1e-4, 1e-5)
TOLERANCE_64 = (1e-9, 1e-12)


class CompiledFunction:
    """A function run as its captured and compiled arithmetic where that was seen to be the same.

    Every shape is captured twice, and both graphs must be one; where two captures of an earlier call agreed on this very graph, one more
    is enough. It is then held to the function itself on its first two inputs, with the same noise: one alone would not show a number that
    was taken from it. Where any of this fails the function runs as it stands, and ``reason`` says why.

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
        self._compiled: dict[Any, tuple[Code, bool]] = {}  # and whether it computes in float32
        self._seen_once: set[Any] = set()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the function gives for these inputs."""
        if self.reason or is_cut() or not self.shapes(inputs):
            return self.function(*inputs)
        key = tuple((t.shape, t.dtype, t.device) for t in inputs)
        if key not in self._compiled and len(self._compiled) >= MOST_SHAPES:
            return self.function(*inputs)
        try:
            if key not in self._compiled:
                self._compiled[key] = self._admitted(inputs)
                self._seen_once.add(key)
            elif key in self._seen_once:
                self._seen_once.remove(key)
                self._hold(*self._compiled[key], inputs, self._expected(inputs))
            return self._compiled[key][0](*inputs)
        except NotCaptured as reason:
            self.reason = str(reason)
        except AssertionError as error:  # what it closes over was given another shape
            self.reason = f"it no longer fits: {str(error).splitlines()[0]}"
        self._compiled = {}
        return self.function(*inputs)

    def _admitted(self, inputs: Sequence[Tensor]) -> tuple[Code, bool]:
        device = next((t.device.type for t in inputs), "cpu")
        if why_no_compiler(device):
            raise NotCaptured(why_no_compiler(device))
        expected = self._expected(inputs)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            first = capture(self.function, inputs)
            if not _agreed.knows(first):
                said = difference(first, capture(self.function, inputs))
                if said:
                    raise NotCaptured(f"two captures differ: {said}")
                _agreed.add(first)
        run = compiled(first, inputs)
        single = any(t.dtype == torch.float32 for t in (*inputs, *first.lifted, *expected))
        self._hold(run, single, inputs, expected)
        return run, single

    def _expected(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the function itself gives; the generators are as they were, afterwards."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return self.function(*inputs)

    def _hold(self, run: Code, single: bool, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Compare machine code with what the function gives, noise for noise.

        Raises:
            NotCaptured: They are not the same.
        """
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            found = run(*inputs)
        own, share = TOLERANCE if single else TOLERANCE_64
        for a, b in zip(found, expected, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise NotCaptured(f"compiled, a result is {a.dtype} of {tuple(a.shape)}, not {b.dtype} of {tuple(b.shape)}")
            if not b.numel() or torch.equal(a, b):
                continue
            largest = torch.nan_to_num(b.abs(), posinf=0.0).max().item()
            if not torch.allclose(a, b, rtol=0.0, atol=own + share * largest, equal_nan=True):
                raise NotCaptured(f"compiled, a result of shape {tuple(b.shape)} is {(a - b).abs().max().item():.2g} away")


class Agreed:
    """Graphs that two captures agreed on, the last ``MOST_AGREED``, by their code and the tensors that they close over.

    No program is kept alive for it: of a large tensor only a weak reference is held, and once that is dead the graph is unknown again.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, list[Callable[[], Tensor | None]]] = {}

    def knows(self, graph: Graph) -> bool:
        """Whether this very computation was seen twice."""
        known = [reference() for reference in self._tensors.get(graph.module.code, [lambda: None])]
        return len(known) == len(graph.lifted) and all(
            u is not None and same_tensor(u, v) for u, v in zip(known, graph.lifted, strict=True)
        )

    def add(self, graph: Graph) -> None:
        """Remember it."""
        while len(self._tensors) >= MOST_AGREED:
            del self._tensors[next(iter(self._tensors))]
        self._tensors[graph.module.code] = [_reference(t) for t in graph.lifted]


def _reference(tensor: Tensor) -> Callable[[], Tensor | None]:
    if tensor.untyped_storage().nbytes() > SMALL_BYTES:
        return weakref.ref(tensor)
    return lambda: tensor  # a constant that the capture made lives nowhere else


_agreed = Agreed()
