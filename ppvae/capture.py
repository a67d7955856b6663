"""A function of tensors run once under Pyro's handlers, and the flat graph of its arithmetic: compared, compiled, called.

What a graph cannot hold, a number that Python reads out of a tensor, is refused here with the reason. What it holds wrongly, a Python
number that is another one the next time, is found by capturing twice: ``difference`` names the first operation that differs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Sequence[Tensor]]

MOST_KEPT = 64  # compiled graphs in memory
MOST_OPERATIONS = 3000  # of a graph: a sequence of 160 steps has 60,000, over which inductor would sit for hours
OPTIONS = {
    "fallback_random": True,  # draws come from torch's own generators: the noise of the eager program, seed by seed
    "size_asserts": True,  # costs nothing that can be measured: a parameter given another shape is an error, not another parameter's memory
    "nan_asserts": False,
    "cpp.vec_isa_ok": True,  # take the processor's word: trying each vector unit out in a process of its own costs a warm start a second
}


class NotCaptured(Exception):  # noqa: N818  (no fault of anybody: eager it is)
    """A function has no flat graph, or none that stays true; the message says why in one line."""


@dataclass
class Graph:
    """A captured function.

    Attributes:
        module: The graph; its inputs are those of the function, then ``lifted``.
        num_inputs: Of the function.
        lifted: What the function closed over, in the order of the inputs that stand for it: parameters, buffers, data (read anew at
            every call), and constants that it makes.
    """

    module: fx.GraphModule
    num_inputs: int
    lifted: list[Tensor]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run the graph operation by operation, eagerly."""
        with torch.no_grad():
            return list(self.module(*inputs, *self.lifted))

    def reads(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of those that it closes over."""
        return any(_place(tensor) == _place(other) for other in self.lifted)

    @property
    def num_operations(self) -> int:
        """Calls in the graph."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)


def capture(function: Function, inputs: Sequence[Tensor], owned: Iterable[Tensor] = ()) -> Graph:
    """Run a function once and keep its arithmetic, gradients that it takes included.

    Args:
        function: Of tensors, to tensors. It is run with validation off: a check that looks at values is no part of the arithmetic.
        inputs: Tensors to run it on; the graph holds for their shapes, types and device.
        owned: Parameters and buffers that it may close over, to be found again by their storage where autograd hands out an alias.

    Raises:
        NotCaptured: The function reads a tensor as a Python number, or does something else that a graph has no word for.
    """
    try:
        with _unchecked(), torch.enable_grad(), _as_capturing(), _one_fake_mode():
            # aliases of the inputs, so that a tensor which the function also closes over is not taken for the batch
            aliases = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
            module = make_fx(lambda *args: list(function(*args)), tracing_mode="real", _allow_non_fake_inputs=True)(*aliases)
    except NotCaptured:
        raise
    except Exception as error:  # whatever a user's program or the tracer raises: the program then runs eagerly, where its own errors show
        raise NotCaptured(_in_a_line(error)) from error
    found = _lifted(module, len(inputs), {_place(t): t for t in owned})
    if found.num_operations > MOST_OPERATIONS:
        raise NotCaptured(f"its graph has {found.num_operations:,} operations, and compiling more than {MOST_OPERATIONS:,} takes too long")
    return found


_capturing: ContextVar[bool] = ContextVar("capturing", default=False)


def capturing() -> bool:
    """Whether a function is being captured: a form that pays only when compiled may then be chosen."""
    return _capturing.get()


@contextlib.contextmanager
def _as_capturing() -> Iterator[None]:
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def _one_fake_mode() -> contextlib.AbstractContextManager[Any]:
    """Where the tracer finds no fake mode it makes one for each value, with a walk up the stack: a third of its time."""
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def difference(first: Graph, second: Graph) -> str:
    """How two captures of one function differ, in words; empty where they are the same computation."""
    nodes = [list(graph.module.graph.nodes) for graph in (first, second)]
    if len(nodes[0]) != len(nodes[1]):
        return f"one capture has {len(nodes[0])} operations and the next {len(nodes[1])}"
    number = [{node: i for i, node in enumerate(side)} for side in nodes]
    for a, b in zip(*nodes, strict=True):
        if (a.op, str(a.target)) != (b.op, str(b.target)) and a.op != "placeholder":
            return f"one capture calls {a.target} where the next calls {b.target}"
        arguments = [_flat((node.args, node.kwargs), number[i]) for i, node in enumerate((a, b))]
        for u, v in zip(*arguments, strict=False):
            if u != v and not (u != u and v != v):
                return f"the number {_shown(u)} in {_called(a)} is {_shown(v)} the next time"
        if len(arguments[0]) != len(arguments[1]):
            return f"{_called(a)} has other arguments the next time"
    for u, v in zip(first.lifted, second.lifted, strict=True):
        if not same_tensor(u, v):
            if u.numel() == v.numel() == 1:
                return f"the number {_shown(u.item())} that the program makes a tensor of is {_shown(v.item())} the next time"
            return f"a tensor of shape {tuple(u.shape)} that the program makes outside of torch's graph has other values the next time"
    return ""


def same_tensor(u: Tensor, v: Tensor) -> bool:
    """Whether what two captures close over is one tensor, which is read anew at every call, or two of the same values."""
    if _place(u) == _place(v):
        return True
    return (u.shape, u.dtype, u.device) == (v.shape, v.dtype, v.device) and torch.equal(torch.nan_to_num(u), torch.nan_to_num(v))


def compiled(graph: Graph, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """A graph as machine code, by inductor.

    Kept in memory, for the same graph of other tensors, and on disk by inductor's own cache, so that a second process starts warm.

    Raises:
        NotCaptured: Inductor fails on it.
    """
    laid = [t if is_non_overlapping_and_dense_or_false(t) else t.contiguous() for t in inputs]
    examples: list[Any] = [t.detach() for t in (*laid, *graph.lifted)]
    key = graph.module.code, tuple((t.shape, t.stride(), t.dtype, t.device) for t in examples)
    if key not in _machine_code:
        while len(_machine_code) >= MOST_KEPT:
            del _machine_code[next(iter(_machine_code))]
        _machine_code[key] = _by_inductor(graph, examples)
    artifact, lifted = _machine_code[key], graph.lifted
    strides = [t.stride() for t in laid]

    def run(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():  # the code walks memory as the examples lay in it: a transposed batch would be read as another
            laid_out = [t if t.stride() == stride else _laid_out(t, stride) for t, stride in zip(inputs, strides, strict=True)]
            return artifact(*laid_out, *lifted)  # type: ignore[no-any-return]

    return run


def _laid_out(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


_machine_code: dict[Any, Callable[..., Any]] = {}


def _by_inductor(graph: Graph, examples: list[Any]) -> Callable[..., Any]:
    from torch._inductor import standalone_compile

    log = logging.getLogger("torch._inductor.standalone_compile")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it warns of code that it cannot save as one file, which nobody asked for
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler uses parts of torch that torch calls deprecated
            return standalone_compile(
                graph.module, examples, dynamic_shapes="from_example_inputs", options={"config_patches": dict(OPTIONS)}
            )
    except Exception as error:  # a missing header, an operation without lowering: eager is always there
        raise NotCaptured(f"inductor: {_in_a_line(error)}") from error
    finally:
        log.setLevel(level)


@functools.cache
def why_no_compiler(device: str = "cpu") -> str:
    """Why nothing can be compiled on this machine, in words; empty where it can."""
    if not hasattr(torch._inductor, "standalone_compile"):
        return f"compiling needs torch 2.8 or newer, and this is {torch.__version__}"
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if device == "cpu" and not any(name and shutil.which(name) for name in compilers):
        return "there is no C++ compiler on this machine (g++ or clang++, or one named by CXX)"
    return ""


def _lifted(module: fx.GraphModule, num_inputs: int, owned: dict[Any, Tensor]) -> Graph:
    """Closed-over tensors as inputs, each once; constants that the program made anew are copied where they are made, not shared."""
    graph = module.graph
    places: dict[Any, fx.Node] = {}
    lifted: list[Tensor] = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    last = placeholders[-1] if placeholders else None
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(module, node.target)
        if isinstance(value, torch.Generator):
            raise NotCaptured("it draws from a generator of its own, and a graph draws from torch's only")
        if not isinstance(value, Tensor):
            raise NotCaptured(f"the program calls a function of its own that is no tensor operation ({type(value).__name__})")
        key = _place(value)
        if key not in places:
            with graph.inserting_after(last) if last is not None else graph.inserting_before(next(iter(graph.nodes))):
                last = places[key] = graph.placeholder(f"lifted_{len(lifted)}")
            lifted.append(owned.get(key, value))
        node.replace_all_uses_with(places[key])
        graph.erase_node(node)
    for node in list(graph.nodes):
        if _is_sized_by_values(node):
            raise NotCaptured(f"the size of what {_called(node)} gives depends on values (boolean indexing, nonzero, unique)")
        if "lift_fresh" in str(node.target):  # torch.tensor(...): the program's own copy, which it may write to
            node.target = torch.ops.aten.clone.default
    _drop_unused(graph, num_inputs, lifted)
    graph.lint()
    module.recompile()
    return Graph(module, num_inputs, lifted)


def _drop_unused(graph: fx.Graph, num_inputs: int, lifted: list[Tensor]) -> None:
    extra = [node for node in graph.nodes if node.op == "placeholder"][num_inputs:]
    for i, node in reversed(list(enumerate(extra))):
        if not node.users:
            graph.erase_node(node)
            del lifted[i]


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """No validation, not in distributions built before either: ``expand`` copies the flag that it finds."""
    check = Distribution._validate_sample
    Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution._validate_sample = check  # type: ignore[method-assign]


def _is_sized_by_values(node: fx.Node) -> bool:
    """Whether an operation gives tensors whose shape its inputs' values decide; indices are harmless, masks are not."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices: Any = node.args[1]
    return any(index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)


def _place(tensor: Tensor) -> Any:
    """What tells two tensors apart: where their numbers lie."""
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _flat(value: Any, number: dict[fx.Node, int]) -> list[Any]:
    if isinstance(value, fx.Node):
        return [("node", number[value])]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _flat(part, number)]
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in _flat(value[key], number)]
    return [value if isinstance(value, int | float | str | bool | None) else str(value)]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _called(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _in_a_line(error: BaseException) -> str:
    text = inspect.cleandoc(str(error)).strip().splitlines()
    first = text[0] if text else type(error).__name__
    if "value out of a tracing tensor" in str(error) or "_local_scalar_dense" in str(error) or "data-dependent" in str(error).lower():
        return "it reads a tensor as a Python number (an `if` on a value, .item(), float()), which a fixed graph cannot do"
    return f"{type(error).__name__}: {first[:160]}"
