"""What a checkpoint of a run holds, and how a run goes on from one as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import _load_state_dict
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from ppvae import checkpoint, generators
from ppvae.batches import Batch
from ppvae.optimizer import OneOptimizer
from ppvae.run import HISTORY
from ppvae.state import create_missing, named_tensors, restore, store_constraints

if TYPE_CHECKING:
    from ppvae.training import Training


def write_checkpoint(training: Training, folder: Path) -> None:
    """Write a checkpoint and the history of a run."""
    svi, position = training.svi, training.position
    live, state = standing(training)
    state |= {
        "constraints": store_constraints(),
        "stopped": position.stopped,
        "engine": svi.engine.reason if training.run.config["engine"] == "compiled" else "",  # why compiled steps were given up
        "ranks": training.ranks.size,
        "history": json.dumps(position.history),
        "rest": training.rest,
    }
    checkpoint.save(folder / "checkpoints", f"step-{svi.steps_taken:08d}", live, state, training.say_little_room)
    checkpoint.prune(folder / "checkpoints")
    checkpoint.write_atomically(folder / HISTORY, "".join(json.dumps(row) + "\n" for row in position.history).encode())


def standing(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where a run stands: its live tensors by name, and what else it goes on from, which holds live tensors too."""
    svi = training.svi
    live = named_tensors(training.model, training.guide, svi.leaves)
    names = {id(t): name for name, t in live.items()}
    groups = svi.optim.groups if isinstance(svi.optim, OneOptimizer) else None
    return live, {
        "position": asdict(replace(training.position, history=[])) | {"history": None},
        "steps_taken": svi.steps_taken,
        "leaves": [names[id(leaf)] for leaf in svi.leaves],
        "groups": [[names[id(p)] for p in group] for group in groups] if groups is not None else None,
        "optimizer": _optimizer_state(svi.optim),
        "scheduler": _scheduler_state(training.torch_scheduler),
        "best": training.best,
        "with_gradient": [name for name, t in live.items() if t.grad is not None],
        "generators": generators.states(training.device),
    }


def go_on_from(training: Training, first: Batch, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put a run where a checkpoint left it: parameters, optimizer, scheduler, position, best epoch.

    Args:
        training: The run, not yet begun.
        first: Its first batch, which the leaves are looked for on.
        tensors, state: What ``checkpoint.load`` gave.
    """
    svi = training.svi
    svi.prepare_leaves(first)
    forget_gradients(svi.leaves)
    create_missing(tensors, state["constraints"], training.device)  # after the programs: what they register is their own tensor
    stand(training, tensors, state)
    if state.get("engine") and svi.engine.on:
        svi.engine.stop(state["engine"])
    before, now = state.get("ranks", 1), training.ranks.size
    if before != now:
        training.progress.say(f"processes {now}, where the run had {before}: what follows is equal in law, not in bits")
    training.generators = state.get("generators")
    training.position.history = json.loads(state["history"])
    training.run.history = training.position.history
    training.rest = state.get("rest") if training.rollbacks else None
    if state["stopped"] == "patience" and training.out_of_patience:
        training.position.stopped = "patience"


def stand(training: Training, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put parameters, optimizer, scheduler and position where ``standing`` found them; the optimizer knows no parameter yet."""
    svi = training.svi
    live = named_tensors(training.model, training.guide, svi.leaves)
    restore(live, tensors)
    svi.leaves = [live[name] for name in state["leaves"]]
    if isinstance(svi.optim, OneOptimizer):
        svi.optim.start([[live[name] for name in group] for group in state["groups"]])
        optimizer: Any = svi.optim.torch_optimizer
        if training.scheduler is not None:
            training.torch_scheduler = training.scheduler(optimizer)
            training.torch_scheduler.load_state_dict(state["scheduler"])
        optimizer.load_state_dict(state["optimizer"])
        _mark_stepped(optimizer, state["steps_taken"])
    else:
        _go_on_with(svi.optim, state["optimizer"], state["steps_taken"])
        for name in state.get("with_gradient", []):  # Pyro leaves zeros behind a step, and Adam moves by them where None is skipped
            live[name].grad = torch.zeros_like(live[name])
    svi.steps_taken = state["steps_taken"]
    training.position = type(training.position)(**{**state["position"], "history": [], "stopped": "running"})
    training.best = state["best"]


def use_best(training: Training) -> None:
    """Give the programs the parameters of the best epoch, where validation chose one."""
    if training.best is None:
        return
    restore(without_born_since(training, training.best["tensors"]), training.best["tensors"])
    training.run.best_epoch = training.best["epoch"]


def without_born_since(training: Training, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live tensors, once the parameter store has forgotten what ``tensors`` do not hold: it had the value then that it is born with."""
    live = named_tensors(training.model, training.guide, training.svi.leaves)
    store = pyro.get_param_store()
    for name in list(store):
        key = f"param.{normalize_param_name(name)}"
        if key in live and key not in tensors:
            del store[name], live[key]
    return live


def forget_gradients(leaves: Iterable[Tensor]) -> None:
    """What an earlier backward pass of the caller's left in the modules is none of this run's first step."""
    for leaf in leaves:
        leaf.grad = None


def _optimizer_state(optim: Any) -> Any:
    if not isinstance(optim, OneOptimizer):
        return optim.get_state()
    return optim.torch_optimizer.state_dict() if optim.torch_optimizer is not None else {}


def _scheduler_state(scheduler: Any) -> Any:
    return None if scheduler is None else {k: v for k, v in scheduler.state_dict().items() if not callable(v)}


def _go_on_with(optim: PyroOptim, states: dict[str, Any], steps_taken: int) -> None:
    """Give a pyro.optim optimizer its state back at once. ``set_state`` would hold it until each parameter's next step, and a save or
    a scheduler's step before that would lose it."""
    store = pyro.get_param_store()
    for name, state in states.items():
        constrained: Any = store[name]
        param = constrained.unconstrained()
        own = optim.optim_objs[param] = optim._get_optim(param)
        optim.grad_clip[param] = optim._get_grad_clip(param)
        _load_state_dict(own, state)
        _mark_stepped(getattr(own, "optimizer", own), steps_taken)


def _mark_stepped(optimizer: Any, steps_taken: int) -> None:
    """Schedulers warn where they step before their optimizer has; on going on, it has."""
    optimizer._opt_called = steps_taken > 0
