"""Running a pair for a check: nothing of the caller's changes, a failure is kept with the sites that came before it."""

from __future__ import annotations

import contextlib
import linecache
import random
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.params.param_store import normalize_param_name
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae import noise
from ppvae.batches import Batch, device_of, num_data
from ppvae.modules import Program, modules_of
from ppvae.programs import measuring, sample_sites, trace

LIBRARIES = {"torch", "pyro", "ppvae", "contextlib", "functools", "linecache", "sys"}


@dataclass
class Kept:
    """A module as the caller had it."""

    module: nn.Module
    training: bool
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    values: dict[str, Tensor]
    used: bool  # a PyroModule that has run cannot be put under a new parent

    @classmethod
    def of(cls, module: nn.Module) -> Kept:
        """A module's own mode, parameters (themselves) and buffers (themselves, and copies of their values)."""
        buffers = dict(module._buffers)
        values = {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}
        used = getattr(module.__dict__.get("_pyro_context"), "used", False)
        return cls(module, module.training, dict(module._parameters), buffers, values, used)

    def put_back(self) -> None:
        """Make the module what it was."""
        self.module.training = self.training
        for held, kept in ((self.module._parameters, self.parameters), (self.module._buffers, self.buffers)):
            held.clear()
            held.update(kept)  # type: ignore[arg-type]
        for name, value in self.values.items():
            buffer = self.buffers[name]
            if buffer is not None and not torch.equal(buffer, value):
                buffer.data.copy_(value)
        if "_pyro_context" in self.module.__dict__:
            self.module.__dict__["_pyro_context"].used = self.used


@contextlib.contextmanager
def untouched(*programs: Program, device: torch.device) -> Iterator[dict[int, Kept]]:
    """Give back every module, generator and warning filter as it was found; yields the modules by id, as the caller had them.

    Modules that no program is seen to hold join at their first call.
    """
    kept: dict[int, Kept] = {}

    def keep(module: nn.Module, _: Any = None) -> None:
        kept.setdefault(id(module), Kept.of(module))

    for program in programs:
        for root in modules_of(program).values():
            for module in root.modules():
                keep(module)
    states = random.getstate(), np.random.get_state()
    hook = register_module_forward_pre_hook(keep)
    try:
        with warnings.catch_warnings(), noise.forked(device):
            warnings.simplefilter("ignore")
            yield kept
    finally:
        hook.remove()
        for one in kept.values():
            one.put_back()
        random.setstate(states[0])
        np.random.set_state(states[1])


@dataclass(frozen=True)
class Statement:
    """One ``pyro.param`` statement that ran, or one parameter of a ``pyro.module``."""

    side: str
    name: str
    init: Any
    stored: Tensor | None  # unconstrained
    shape: torch.Size  # of the constrained value
    place: str


class Statements(Messenger):
    """Note the ``pyro.param`` statements of whatever runs inside."""

    def __init__(self, side: str = "") -> None:
        super().__init__()
        self.side = side
        self.found: list[Statement] = []

    def _pyro_post_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        stored = getattr(msg["value"], "unconstrained", lambda: None)()
        place = place_of(*innermost_user(stack_of(sys._getframe(1))))
        self.found.append(Statement(self.side, normalize_param_name(msg["name"]), init, stored, msg["value"].shape, place))


@dataclass
class Attempt:
    """One run of one program: the sites that it reached, and the error that ended it, if one did."""

    side: str
    n: int
    sites: dict[str, Any]
    error: Exception | None
    statements: list[Statement] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Tensor]:
        """What was drawn."""
        return {name: site["value"] for name, site in self.sites.items() if not site["is_observed"]}


def attempt(side: str, program: Program, x: Batch, values: Mapping[str, Tensor] | None = None) -> Attempt:
    """Run ``program(x)`` once with Pyro's validation on, and keep what came before an error."""
    statements = Statements(side)
    error = None
    with poutine.trace() as recorder, statements, pyro.validation_enabled(True):
        try:
            trace(program, x, values)
        except Exception as raised:  # the user's code may raise anything: it becomes a finding
            error = raised
    return Attempt(side, num_data(x), sample_sites(recorder.trace), error, statements.found)


@contextlib.contextmanager
def looking(*programs: Program, x: Batch, purpose: str) -> Iterator[None]:
    """Eval mode, the caller's store copied, a seed of its own."""
    with noise.seeded(0, "check", purpose, device=device_of(x)), measuring(*programs):
        yield


def stack_of(frame: types.FrameType | None) -> Iterator[tuple[types.FrameType, int]]:
    """A frame and its callers, innermost first, with their lines."""
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def traceback_of(error: BaseException) -> list[tuple[types.FrameType, int]]:
    """The frames of an error and of its causes, innermost first, with their lines."""
    found: list[tuple[types.FrameType, int]] = []
    cause: BaseException | None = error
    while cause is not None:
        step = cause.__traceback__
        inner = []
        while step is not None:
            inner.append((step.tb_frame, step.tb_lineno))
            step = step.tb_next
        found = inner[::-1] + found
        cause = cause.__cause__
    return found


def innermost_user(frames: Iterator[tuple[types.FrameType, int]]) -> tuple[types.FrameType | None, int]:
    """The innermost frame that is neither torch's, Pyro's nor ours; a caller of ours is none either."""
    for frame, line in frames:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "ppvae.checks_look" and frame.f_code.co_name == "attempt":
            break
        if name.split(".")[0] not in LIBRARIES:
            return frame, line
    return None, 0


def place_of(frame: types.FrameType | None, line: int) -> str:
    """``file:line: source`` of a frame, "" of none."""
    if frame is None:
        return ""
    source = linecache.getline(frame.f_code.co_filename, line).strip()
    return f"{frame.f_code.co_filename}:{line}" + (f": {source}" if source else "")


def for_rows(guide: Program, rows: Tensor) -> Program:
    """A local posterior belongs to its data row by row; any other guide is the same for all rows."""
    return guide.rows(rows) if hasattr(guide, "rows") else guide
