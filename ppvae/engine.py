"""The loss of a pair and its gradients, captured once and compiled; held to eager Pyro before the first step and ever again.

A compiled step does not run the programs. That it is still their computation is looked at in three ways: two captures must be the same
graph (a number that Python keeps elsewhere would be frozen); both must agree with eager Pyro, noise for noise, in the loss, in every
gradient and in every buffer, on two batches before the first step; and again at steps 1, 2, 4, 8, ... and whenever the caller asks.
What changes the arithmetic only between those looks, and changes it back, is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from ppvae import policy
from ppvae.capture import Graph, NotCaptured, capture, compiled, difference, why_no_compiler
from ppvae.gradient_bound import return_bound
from ppvae.leaves import graph_leaves
from ppvae.objectives import Scaled, Scales
from ppvae.surrogates import loss_and_surrogate, why_not
from ppvae.surroundings import Surroundings, changed, drawn, replaced

WAIT = 500  # steps of one shape that run eagerly first where nobody said how many there will be: as many as compiling costs
MOST_SHAPES = 8  # what comes after them runs eagerly
LEAST_HALF_ROWS = 256  # measured on processors with bfloat16 products: below, casts cost what the products save
MOST_KEYS = 100  # shapes counted: a number among the arguments that is another one at every step makes each step a shape of its own
# (of a tensor's own largest entry, of the largest of all): rounding of a sum of some thousand terms in another order
TOLERANCES = {torch.float64: (1e-9, 1e-12), torch.bfloat16: (0.2, 0.02)}  # 8 bits; a small entry is the rest of larger ones
TOLERANCE = (2e-3, 2e-5)  # the second for gradients that are 0 but for rounding: a convolution's bias before BatchNorm sums 10^4 terms to 0
LOSS_TOLERANCES = {torch.float64: 1e-11, torch.bfloat16: 1e-2}
LOSS_TOLERANCE = 2e-5
CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d)


@dataclass
class Call:
    """What a step is taken on.

    Attributes:
        inputs: Tensors.
        arguments: From them to the programs' arguments, positional and by name.
        key: What else the arguments hold; two calls with equal keys and equal shapes are one graph.
        second: Another call of the same shapes, where one is at hand: the first step is held to eager Pyro on both.
    """

    inputs: list[Tensor]
    arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    key: Hashable = ()
    second: Call | None = None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with these arguments; what is no tensor in them becomes part of the key."""
        leaves, tree = _pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def arguments(*inputs: Tensor) -> Any:
            filled = list(others)
            for place, value in zip(places, inputs, strict=True):
                filled[place] = value
            return _pytree.tree_unflatten(filled, tree)

        return cls([leaves[i] for i in places], arguments, (str(tree), tuple(map(_hashable, others))))

    @property
    def shapes(self) -> Hashable:
        """Shapes, types and devices of the inputs."""
        return tuple((t.shape, t.dtype, t.device) for t in self.inputs)

    def turned(self) -> Call:
        """Another call of the same kind: the second, or the rows of this batch in reverse."""
        if self.second is not None:
            return self.second
        rows = {len(t) for t in self.inputs if t.dim()}
        return Call([t.flip(0) if t.dim() and len(rows) == 1 else t for t in self.inputs], self.arguments, self.key)


@dataclass
class Gradients:
    """The loss of a batch over its divisor, and its gradient leaf by leaf.

    Attributes:
        loss: 0-d.
        bound: 0-d, no smaller than the norm of the gradient before clipping.
        leaves, gradients: In the same order.
        norm: 0-d, that norm, where clipping or a reading later on needed it: ``bound`` is then no larger.
        verified: Whether they were held to eager Pyro.
        buffers: Then the buffers and what they held before.
    """

    loss: Tensor
    bound: Tensor
    leaves: list[Tensor]
    gradients: list[Tensor]
    norm: Tensor | None = None
    verified: bool = False
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Untrue(Exception):  # noqa: N818
    """A compiled step is not, or no longer, what eager Pyro computes."""


@dataclass
class Compiled:
    """One shape's graph."""

    run: Callable[..., list[Tensor]]
    graph: Graph
    leaves: list[Tensor]
    numbers: dict[str, Any]
    normed: bool
    half: bool = False
    turned: bool = False
    calls: int = 0

    @property
    def due(self) -> bool:
        """Whether a call is one of the 1st, 2nd, 4th, 8th, ..."""
        return self.calls & (self.calls - 1) == 0


@dataclass
class Engine:
    """Compiled gradients of a pair's objective.

    Attributes:
        model, guide: The pair under its weights.
        objective: Pyro's.
        scales: The weights; those of ``scheduled`` are inputs of the graph, the others part of it.
        scheduled: Whether beta, and the likelihood's weight, change from step to step.
        clip_norm: Of the gradient, in the graph.
        wait: Steps of a shape before it is compiled; None never compiles.
        backend: From a graph and examples to a function; the tests put the uncompiled graph here.
        reason: Why steps run eagerly, where they do.
        crowded: Whether a shape came that was one too many, and runs eagerly.
        half: Whether networks run in bfloat16 where that pays; parameters, gradients and what is summed stay as they are.
        shifts: Then the loss less that of float32, at every step that was verified: what bfloat16 does to the ELBO.
        verify_next: Set to have the next step verified.
        read_every: Steps of which a loop reads the losses together. Where it is more than one, the gradients of a step that is not finite
            are zeros: no parameter may become what the kernels of the steps behind it refuse, and take the device down with them.
        settle: Called before the programs themselves run: a loop reads there what it has not read yet.
    """

    model: Scaled
    guide: Scaled
    objective: Any
    scales: Scales
    scheduled: tuple[bool, bool]
    clip_norm: float | None
    wait: int | None
    backend: Callable[[Graph, Sequence[Tensor]], Callable[..., list[Tensor]]] = compiled
    reason: str = ""
    verify_next: bool = False
    read_every: int = 1
    settle: Callable[[], None] = lambda: None
    crowded: bool = False
    half: bool = False
    shifts: list[float] = field(default_factory=list)
    steps: dict[Hashable, Compiled] = field(default_factory=dict)
    seen: dict[Hashable, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.surroundings = Surroundings(self.model.__wrapped__, self.guide.__wrapped__)
        self.weights = (torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
        if self.wait is None:
            self.reason = "compile=False"
        else:
            self.reason = why_not(self.objective)

    @property
    def on(self) -> bool:
        """Whether steps are, or will be, compiled."""
        return not self.reason

    def defer(self, device: str, settle: Callable[[], None]) -> None:
        """Have the losses of compiled steps on this type of device read as seldom as the policy says, by ``settle``."""
        self.read_every, self.settle = policy.steps_between_reads(device), settle

    def stop(self, reason: str) -> None:
        """Run every later step eagerly."""
        self.reason, self.steps = reason, {}

    def gradients(self, call: Call, divisor: float) -> Gradients | None:
        """The loss and its gradients by the compiled graph of this shape; None where the step is to run eagerly.

        Raises:
            Untrue: Eager Pyro gives something else, the first time or later.
        """
        key = self._key(call, divisor)
        if key not in self.steps:
            if len(self.seen) > MOST_KEYS:
                self.seen.clear()
            self.seen[key] = self.seen.get(key, 0) + 1
            self.crowded = len(self.steps) >= MOST_SHAPES
            if self.wait is None or self.seen[key] <= self.wait or self.crowded:
                return None
            self.settle()
            key = self._admit(call, divisor)
        step = self.steps[key]
        step.calls += 1
        due, self.verify_next = step.due or self.verify_next, False
        if due:
            self.settle()
        buffers = [(b, b.clone()) for b in self.surroundings.buffers()] if due else []
        expected = self._eager(call, divisor, step.leaves) if due else None
        found = self._run(step, call)
        if expected is not None:
            self._hold(step, found, expected)
            found.verified, found.buffers = True, buffers
        return found

    def _key(self, call: Call, divisor: float) -> Hashable:
        return call.shapes, call.key, divisor, self.scales.data, self.surroundings.modes(), self._constants()

    def _admit(self, call: Call, divisor: float, turn: bool = True) -> Hashable:
        """Capture and compile a shape, and see that it is the same computation on two batches; returns its key.

        Noise is drawn in the order of memory: a program with dropout on images draws another where they are turned, and keeps them.
        """
        self.surroundings.refresh()
        key = self._key(call, divisor)
        device = next((t.device.type for t in call.inputs), "cpu")
        if why_no_compiler(device) and self.backend is compiled:
            raise NotCaptured(why_no_compiler(device))
        step = self._captured(call, divisor, turn and policy.channels_last(device))
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                for batch in (call, call.turned()):
                    self._try(step, batch if self._runs(batch, divisor, step) else call, divisor)
                    torch.manual_seed(torch.initial_seed() + 1)  # the second batch with noise of its own
        except Untrue:
            if not step.turned:
                raise
            return self._admit(call, divisor, turn=False)
        self.steps[key] = step
        return key

    def _runs(self, call: Call, divisor: float, step: Compiled) -> bool:
        """Whether the programs take this batch: rows in reverse may be none (sequences sorted by length)."""
        try:
            self._eager(call, divisor, step.leaves)
        except Exception:  # the user's program may refuse in any way it likes
            return False
        return True

    def _try(self, step: Compiled, call: Call, divisor: float) -> None:
        expected = self._eager(call, divisor, step.leaves)
        with self.surroundings.kept(step.leaves):
            self._hold(step, self._run(step, call), expected)

    def _captured(self, call: Call, divisor: float, turn: bool) -> Compiled:
        leaves: list[Tensor] = []
        normed = self.clip_norm is not None or self.read_every > 1

        def function(beta: Tensor, likelihood_weight: Tensor, *inputs: Tensor) -> list[Tensor]:
            before = self.scales.latent, self.scales.observed
            if self.scheduled[0]:
                self.scales.latent = beta
            if self.scheduled[1]:
                self.scales.observed = likelihood_weight
            try:
                args, kwargs = call.arguments(*inputs)
                with torch.autocast(device, torch.bfloat16, enabled=half), turning:
                    loss, surrogate = loss_and_surrogate(self.objective, self.model, self.guide, args, kwargs)
                leaves[:] = graph_leaves(surrogate)
                if not leaves:
                    raise NotCaptured("the loss depends on no parameter")
                gradients = torch.autograd.grad(surrogate / divisor, leaves)
                if not normed:
                    return [loss.detach() / divisor, *gradients]
                norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
                if self.clip_norm is not None:
                    factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
                    gradients = tuple(g * factor for g in gradients)
                if self.read_every > 1:
                    sound = torch.isfinite(loss.detach()) & torch.isfinite(norm)
                    gradients = tuple(torch.where(sound, g, 0.0) for g in gradients)
                return [loss.detach() / divisor, norm, *gradients]
            finally:
                self.scales.latent, self.scales.observed = before

        device, half = next((t.device.type for t in call.inputs), "cpu"), self.half and self._pays(call)
        turning = ChannelsLast(turn)
        inputs = [*self.weights, *call.inputs]
        graphs, found = [], []
        numbers, noise, before = self.surroundings.numbers(), self.surroundings.noise(), self.surroundings.look()
        for _ in range(2):
            with self.surroundings.kept():
                graphs.append(capture(function, inputs, self.surroundings.tensors()))
                found.append(list(leaves))
                counted, other = changed(numbers, self.surroundings.numbers()), drawn(noise, self.surroundings.noise())
                moved = [name for name, tensor in replaced(before, self.surroundings.look()) if graphs[-1].reads(tensor)]
            if counted:
                raise NotCaptured(f"{counted} as it ran, and a compiled step would keep the first")
            if moved:
                raise NotCaptured(f"the program puts another tensor in the place of {moved[0]}, which it reads the next time")
            if other:
                raise NotCaptured(f"it draws from {other}, and a graph draws from torch's only")
        said = difference(*graphs)
        if said:
            raise NotCaptured(f"two captures differ: {said}")
        if [id(leaf) for leaf in found[0]] != [id(leaf) for leaf in found[1]]:
            raise NotCaptured("every run makes parameters of its own")
        if not normed:
            return_bound(graphs[0].module, first=1)
        return Compiled(self.backend(graphs[0], inputs), graphs[0], list(leaves), numbers, normed, half, turning.turned)

    def _pays(self, call: Call) -> bool:
        """Whether products of bfloat16 are faster than those of float32 at this batch: on a CPU only the large ones repay the casts."""
        return any(t.device.type != "cpu" or (t.dim() > 0 and len(t) >= LEAST_HALF_ROWS) for t in call.inputs)

    def _run(self, step: Compiled, call: Call) -> Gradients:
        for scheduled, weight, value in zip(self.scheduled, self.weights, (self.scales.latent, self.scales.observed), strict=True):
            if scheduled:
                weight.fill_(float(value))
        try:
            loss, bound, *gradients = step.run(*self.weights, *call.inputs)
        except (RuntimeError, AssertionError) as error:  # a shape inside that this batch's values decide, a parameter given another
            raise Untrue(f"it fails on this batch: {str(error).splitlines()[0]}") from error
        return Gradients(loss, bound, step.leaves, gradients, bound if step.normed else None)

    def _eager(self, call: Call, divisor: float, leaves: list[Tensor]) -> _Expected:
        """What Pyro's own objective gives, with the noise that the next draw will be; nothing is left changed."""
        with self.surroundings.kept(leaves):
            args, kwargs = call.arguments(*call.inputs)
            buffers = self.surroundings.buffers()
            loss = self.objective.loss_and_grads(self.model, self.guide, *args, **kwargs) / divisor
            all_leaves = {id(t): t for t in (*leaves, *self.surroundings.tensors())}
            gradients = {i: t.grad.detach() / divisor for i, t in all_leaves.items() if t.grad is not None}
            return _Expected(float(loss), gradients, [(b, b.clone()) for b in buffers], self.surroundings.numbers())

    def _hold(self, step: Compiled, found: Gradients, expected: _Expected) -> None:
        """Compare a compiled step with what eager Pyro gave for it.

        Raises:
            Untrue: They are not the same.
        """
        said = changed(step.numbers, expected.numbers)
        if said:
            raise Untrue(said)
        # Python's float64 weights may widen a loss of float32, which is then still no better than float32.
        loss, dtype = found.loss.item(), min((t.dtype for t in (found.loss, *found.leaves)), key=lambda d: torch.finfo(d).bits)
        if not (math.isfinite(loss) or math.isfinite(expected.loss)):
            return  # both diverged, which the step tells
        if step.half:
            dtype = torch.bfloat16
            self.shifts.append(loss - expected.loss)
        if not abs(loss - expected.loss) <= LOSS_TOLERANCES.get(dtype, LOSS_TOLERANCE) * max(1.0, abs(expected.loss)):
            raise Untrue(f"the loss is {loss:.8g} compiled and {expected.loss:.8g} by eager Pyro")
        born = len(expected.gradients.keys() - set(map(id, found.leaves)))
        if born:
            raise Untrue(f"{born} parameters have a gradient that were not there when the step was captured")
        norm = math.sqrt(sum(g.square().sum().item() for g in expected.gradients.values()))
        if not (math.isfinite(norm) or _are_finite(found)):
            return
        factor = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm + 1e-6))
        largest = max((g.abs().max().item() for g in expected.gradients.values() if g.numel()), default=0.0) * factor
        own, common = TOLERANCES.get(dtype, TOLERANCE)
        for leaf, gradient in zip(found.leaves, found.gradients, strict=True):
            wanted = expected.gradients.get(id(leaf))
            wanted = torch.zeros_like(gradient) if wanted is None else wanted * factor
            if not wanted.numel():
                continue
            apart = (gradient - wanted).abs().max().item()
            if not apart <= own * wanted.abs().max().item() + common * largest:
                raise Untrue(
                    f"the gradient of a parameter of shape {tuple(leaf.shape)} is {apart:.2g} away from eager Pyro's, "
                    f"whose largest entry is {wanted.abs().max().item():.2g}"
                )
        for buffer, wanted in expected.buffers:
            if not torch.allclose(buffer.double(), wanted.double(), rtol=2e-2 if step.half else 2e-5, atol=1e-6, equal_nan=True):
                raise Untrue(f"a buffer of shape {tuple(buffer.shape)} ends otherwise than by eager Pyro")

    def _constants(self) -> tuple[Any, Any]:
        return (
            None if self.scheduled[0] else self.scales.latent,
            None if self.scheduled[1] else self.scales.observed,
        )


class ChannelsLast(TorchFunctionMode):
    """Convolutions of images by weights whose channels lie side by side in memory, as libraries of convolutions want them.

    What comes out lies as the weights do, and so do the layers behind it. Parameters and their gradients stay as they are: the weights
    are turned in the graph, at each step, for they are small beside the images.

    Args:
        turn: Whether to.

    Attributes:
        turned: Whether there was one.
    """

    def __init__(self, turn: bool = True) -> None:
        super().__init__()
        self.turn, self.turned = turn, False

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Turn the second argument of ``conv2d`` and ``conv_transpose2d``."""
        if self.turn and function in CONVOLUTIONS and len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() == 4:
            # clone, as of one channel contiguous() finds both orders the same, and leaves strides that say the other
            self.turned = True
            args = (args[0], args[1].clone(memory_format=torch.channels_last), *args[2:])
        return function(*args, **(kwargs or {}))


def _are_finite(found: Gradients) -> bool:
    norm = [] if found.norm is None else [found.norm]  # gradients may have been made zeros where it is not
    return all(bool(torch.isfinite(t).all()) for t in (*norm, *found.gradients))


@dataclass
class _Expected:
    loss: float
    gradients: dict[int, Tensor]
    buffers: list[tuple[Tensor, Tensor]]
    numbers: dict[str, Any]


def _hashable(value: Any) -> Hashable:
    if value is None or isinstance(value, int | float | str | bool):
        return type(value).__name__, value
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    return _Same(value)


class _Same:
    """An argument that is told by what it is, not by what it holds; kept alive, or the next one might lie where it lay."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
