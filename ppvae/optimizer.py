"""Updates from gradients at hand: by one torch optimizer over every leaf of the loss, or by Pyro's, one a parameter."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor

from ppvae.errors import ObjectiveError, in_a_line

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
# Of these torch has one kernel for all parameters; called at once it costs a half of what the optimizer's own Python does around it.
KERNELS = {torch.optim.Adam: torch._fused_adam_, torch.optim.AdamW: torch._fused_adamw_}


class OneOptimizer(PyroOptim):
    """One torch optimizer over every leaf of the loss, where Pyro keeps one per parameter."""

    def __init__(self, factory: OptimizerFactory) -> None:
        self.factory = factory
        self.torch_optimizer: torch.optim.Optimizer | None = None
        self._known: set[int] = set()
        self._plan: Plan | None = None

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Update ``params`` by their gradients; those not seen before join the optimizer."""
        new = [p for p in params if id(p) not in self._known]
        self._known.update(map(id, new))
        if self.torch_optimizer is None:
            self.torch_optimizer = self._built(new)
        elif new:
            self.torch_optimizer.add_param_group({"params": new})
        self.torch_optimizer.step()

    def start(self, groups: list[list[Tensor]]) -> None:
        """Build the optimizer over its leaves before the first step: the first group, then those that joined later."""
        for group in groups:
            self._known.update(map(id, group))
            if self.torch_optimizer is None:
                self.torch_optimizer = self._built(group)
            else:
                self.torch_optimizer.add_param_group({"params": group})

    def forget(self) -> None:
        """Know no parameter, as before the first step."""
        self.torch_optimizer, self._plan = None, None
        self._known.clear()

    def _built(self, params: list[Tensor]) -> torch.optim.Optimizer:
        if not params:
            raise ObjectiveError(
                "the loss depends on no parameter, so there is nothing to train",
                mend="give model or guide parameters: torch modules, or pyro.param",
            )
        try:
            return self.factory(params)
        except (ValueError, TypeError) as error:
            example = "functools.partial(torch.optim.Adam, lr=1e-3)"
            raise ObjectiveError(f"the optimizer cannot be built over the parameters: {in_a_line(error)}", mend=example) from error

    def update(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Update ``leaves`` by ``gradients``, in one fused call a group where torch has a kernel for it (Adam, AdamW)."""
        new = [p for p in leaves if id(p) not in self._known]
        if new:
            self.start([new])
        optimizer = self.torch_optimizer
        assert optimizer is not None
        if self._plan is None or not self._plan.holds(leaves):
            self._plan = plan([(optimizer, group) for group in optimizer.param_groups], leaves)
        if self._plan is not None:
            self._plan.update(gradients)
            optimizer._opt_called = True  # type: ignore[attr-defined]  # so that schedulers know
            return
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        for leaf in leaves:
            leaf.grad = None

    @property
    def groups(self) -> list[list[Tensor]]:
        """The leaves in the order in which the optimizer knows them."""
        return [list(group["params"]) for group in self.torch_optimizer.param_groups] if self.torch_optimizer else []


class PerParameter:
    """The update of a ``pyro.optim`` optimizer, one torch optimizer a parameter, from gradients at hand.

    Args:
        optim: The optimizer; its own state is what is updated.
    """

    def __init__(self, optim: PyroOptim) -> None:
        self.optim = optim
        self._plan: Plan | None = None

    def update(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Update ``leaves`` by ``gradients``: in one fused call where the optimizer is Pyro's plain Adam or AdamW, else one by one."""
        known = self.optim.optim_objs
        if type(self.optim) is PyroOptim and not self.optim.pt_clip_args and all(p in known for p in leaves):
            if self._plan is None or not self._plan.holds(leaves):
                self._plan = plan([(known[p], group) for p in leaves for group in known[p].param_groups], leaves)
            if self._plan is not None:
                self._plan.update(gradients)
                return
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        self.optim(list(leaves))
        zero_grads(list(leaves))


def plan(groups: Sequence[tuple[torch.optim.Optimizer, dict[str, Any]]], leaves: Sequence[Tensor]) -> Plan | None:
    """How to update ``leaves`` by one kernel call for all groups of equal options; None where the optimizers' own ``step`` must run.

    Args:
        groups: Parameter groups and whose they are; a leaf may be in none of them.
        leaves: In the order of the gradients to come.
    """
    if len({type(optimizer) for optimizer, _ in groups}) != 1 or not all(map(_plain, groups)):
        return None
    if not all(p.device.type == "cpu" and p.is_floating_point() for p in leaves):
        return None
    position = {id(leaf): i for i, leaf in enumerate(leaves)}
    batches: dict[Any, list[_Slot]] = {}
    for optimizer, group in groups:
        for p in group["params"]:
            if id(p) not in position:
                continue
            state = optimizer.state[p]
            _begin(state, p, group["amsgrad"])
            if state["exp_avg"].stride() != p.stride():
                return None  # a parameter with gaps in its memory, which the kernel would walk over
            batches.setdefault((p.dtype, group["lr"], *_options(group)), []).append(_Slot(position[id(p)], p, optimizer, group))
    return Plan(_kernel(groups[0][0]), list(leaves), [_Batch(slots) for slots in batches.values()])


@dataclass
class Plan:
    """The tensors of a fused update, as the optimizers' own state holds them."""

    kernel: Any
    leaves: list[Tensor]
    batches: list[_Batch]

    def holds(self, leaves: Sequence[Tensor]) -> bool:
        """Whether this is still so: nothing was loaded into a state since, no option changed, and the leaves are the same."""
        same = len(leaves) == len(self.leaves) and all(map(operator.is_, leaves, self.leaves))  # two shapes may list them in two orders
        return same and all(batch.holds() for batch in self.batches)

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One update of every leaf."""
        with torch.no_grad():
            for batch in self.batches:
                batch.update(self.kernel, gradients)


@dataclass
class _Slot:
    place: int
    p: Tensor
    optimizer: torch.optim.Optimizer
    group: dict[str, Any]

    @property
    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.optimizer.state[self.p]
        return found


class _Batch:
    """Parameters with equal options."""

    def __init__(self, slots: list[_Slot]) -> None:
        self.slots = slots
        self.groups = list({id(slot.group): slot.group for slot in slots}.values())
        self.options = _options(self.groups[0])
        self.params = [slot.p for slot in slots]
        self.exp_avgs = [slot.state["exp_avg"] for slot in slots]
        self.exp_avg_sqs = [slot.state["exp_avg_sq"] for slot in slots]
        self.max_exp_avg_sqs = [slot.state["max_exp_avg_sq"] for slot in slots] if self.groups[0]["amsgrad"] else []
        self.count = torch.stack([slot.state["step"] for slot in slots])  # one addition counts for all: the states hold views of it
        self.steps = list(self.count.unbind())
        for slot, step in zip(slots, self.steps, strict=True):
            slot.state["step"] = step

    def holds(self) -> bool:
        own = self.slots[0].state.get("step") is self.steps[0]  # what is loaded is loaded for all parameters
        rate = self.groups[0]["lr"]
        return own and all(_options(group) == self.options and group["lr"] == rate for group in self.groups)

    def update(self, kernel: Any, gradients: Sequence[Tensor]) -> None:
        betas, weight_decay, eps, amsgrad, maximize = self.options
        self.count += 1
        kernel(
            self.params,
            [_laid_out(gradients[slot.place], slot.p) for slot in self.slots],
            self.exp_avgs,
            self.exp_avg_sqs,
            self.max_exp_avg_sqs,
            self.steps,
            lr=self.groups[0]["lr"],
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=amsgrad,
            maximize=maximize,
        )


def _options(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group["betas"]), group["weight_decay"], group["eps"], group["amsgrad"], group["maximize"]


def _plain(pair: tuple[torch.optim.Optimizer, dict[str, Any]]) -> bool:
    """Whether torch's kernel is the whole of this optimizer's step."""
    optimizer, group = pair
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    own = any(settings.get(name) for settings in (optimizer.defaults, group) for name in ("capturable", "differentiable", "fused"))
    return type(optimizer) in KERNELS and not hooks and not own and not isinstance(group["lr"], Tensor)


def _kernel(optimizer: torch.optim.Optimizer) -> Any:
    return torch._fused_adamw_ if optimizer.defaults.get("decoupled_weight_decay") else KERNELS[type(optimizer)]


def _laid_out(gradient: Tensor, p: Tensor) -> Tensor:
    """A gradient in the memory order of its parameter, which the kernel takes for granted: that of a linear layer comes transposed."""
    return gradient if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient)


def _begin(state: dict[str, Tensor], p: Tensor, amsgrad: bool) -> None:
    """The state that torch's Adam gives a parameter before its first step."""
    if state:
        return
    state["step"] = torch.zeros((), dtype=torch.get_default_dtype() if torch.get_default_dtype() == torch.float64 else torch.float32)
    state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    if amsgrad:
        state["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
