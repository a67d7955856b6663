"""Parameters that no gradient reaches. Training would leave them as they are, silently, so they are looked for before the first step.

A parameter counts as used where one of many runs on batches of two sizes makes the ELBO depend on it, in eval mode or in the modes of
training: the graph decides, not the gradient's number, and the weights of the sites (beta = 0) are not looked at. Objectives that may
train more are run too, as training runs them, and a parameter that they leave a gradient in is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae import noise
from ppvae.batches import Batch, each
from ppvae.checks_look import untouched
from ppvae.checks_numbers import Held, listed, reach
from ppvae.data import Data
from ppvae.errors import ProgramError
from ppvae.modules import Program, eval_mode, freeze
from ppvae.rehearsal import Rehearsal, is_known, plain_of

# Runs until a parameter counts as unused: one that a branch uses in one run of five is missed by all of them once in a thousand times.
LOOKS = 32


@dataclass
class Unused:
    """The parameters of a pair that ask for a gradient, by name, and those that no run reached.

    Attributes:
        held: Those that ask for one.
        names: Those that none reached.
        called: The identities of the modules that ran.
        by_objective: Those that the objective's own runs reached, and the ELBO's did not before.
        foreign: Those that the objective alone holds, and leaves a gradient in.
        sure: Whether none will be reached later for what is known: not where an objective of the user's goes by a state that changes.
    """

    held: dict[str, Held] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    called: set[int] = field(default_factory=set)
    by_objective: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    sure: bool = True

    def __str__(self) -> str:
        return self._told(self.names)

    def raise_if_any(self) -> None:
        """Raise for parameters that are the programs' own for sure.

        A network that a function or a plain object merely refers to, and that never runs, may be none of the pair's.

        Raises:
            ProgramError: It names them, their programs and what to do.
        """
        own = [name for name in self.names if self._belongs(self.held[name])]
        if own and self.sure:
            raise ProgramError(
                f"{self._told(own)}; training would leave them as they are",
                where=", ".join(self._shares(own)),
                mend=[
                    "use them in the program, or remove them; look for .detach(), .item() and torch.no_grad() on their way to a site",
                    "requires_grad_(False), where they shall stay as they are",
                    "unused_parameters='allow' (--unused-parameters allow), where a branch that is seldom taken uses them",
                ],
            )

    def _told(self, names: list[str]) -> str:
        return f"{len(names)} of {len(self.held)} parameters receive no gradient: {listed(names)}"

    def _shares(self, names: list[str]) -> Iterator[str]:
        for sides, owner in {("model",): "the model's", ("guide",): "the guide's"}.items():
            count, of = (sum(self.held[name].sides == sides for name in some) for some in (names, self.held))
            if count:
                yield f"{count} of {owner} {of}"
        count, of = (sum(len(self.held[name].sides) > 1 for name in some) for some in (names, self.held))
        if count:
            yield f"{count} of the {of} that model and guide share"

    def _belongs(self, held: Held) -> bool:
        if held.certain or held.root is None:
            return True
        reached = any(other.root is held.root and name not in self.names for name, other in self.held.items())
        return reached or any(id(module) in self.called for module in held.root.modules())


def unused(
    model: Program,
    guide: Program,
    data: Data,
    batch_size: int,
    *,
    objective: Any,
    frozen: Iterable[nn.Parameter],
    seed: int,
    device: torch.device,
    alone: bool = True,
    disturbed: bool = False,
) -> Unused:
    """Look at a pair on batches of its data, until one run or another has reached every parameter, at most 32 times.

    Args:
        model, guide: The programs, in the modes that they are trained in; both are left as they were.
        data: What they are trained on.
        batch_size: Of training; every other batch is half as large.
        objective: What they are trained by.
        frozen: Parameters that shall stay as they are.
        seed: Of the rows and draws.
        device: Where the programs are.
        alone: Whether no other process trains along, which an objective of the user's might wait for.
        disturbed: Whether code of the user's runs between epochs, which may change what such an objective goes by.

    Returns:
        What was found; nothing of an objective that may train parameters of its own and cannot be run without a trace.
    """
    found, objective = Unused(), plain_of(objective)
    rehearsal = None if is_known(objective) else Rehearsal(objective, model, guide)
    if rehearsal is not None and not (rehearsal.possible and (alone or rehearsal.pyros)):
        return found
    hook = register_module_forward_pre_hook(lambda module, _: found.called.add(id(module)))
    try:
        with untouched(model, guide, device=device), contextlib.ExitStack() as stack:
            begun = False
            for look, x in enumerate(_batches(data, batch_size, seed, device)):
                # In eval mode first: what programs count in training is left alone unless there is a reason.
                mode = contextlib.nullcontext() if look else eval_mode(model, guide)
                with noise.seeded(seed, "unused", look, device=device), mode:
                    ran = _look(found, model, guide, x, frozen)
                    if rehearsal is not None and (found.names or not ran or rehearsal.holds_parameters):
                        if not begun:
                            stack.enter_context(rehearsal.undone())
                            begun = True
                        ran |= _look(found, model, guide, x, frozen, rehearsal)
                if ran and not found.names:
                    break
            if rehearsal is not None and begun:
                found.names = [name for name in found.names if rehearsal.ran and not rehearsal.moves(found.held[name].tensor)]
                found.foreign = rehearsal.foreign
                found.sure = rehearsal.pyros or not (disturbed or rehearsal.changes)
    finally:
        hook.remove()
    return found


def _batches(data: Data, batch_size: int, seed: int, device: torch.device) -> Iterator[Batch]:
    """Random rows, in the batch's size and in half of it."""
    size = min(len(data), batch_size)
    for look in range(LOOKS):
        numbers = noise.generator(seed, "unused", look)
        rows = torch.randperm(len(data), generator=numbers)[: -(-size // 2) if look % 2 else size]
        yield each(data.batch(rows, numbers), lambda part: part.to(device))


def _look(
    found: Unused, model: Program, guide: Program, x: Batch, frozen: Iterable[nn.Parameter], rehearsal: Rehearsal | None = None
) -> bool:
    """One run more, by the ELBO or by the objective itself; whether the programs took the batch."""
    store = pyro.get_param_store()
    try:
        with store.scope(store.get_state()), pyro.validation_enabled(False):
            seen = reach(model, guide, x, frozen, None if rehearsal is None else rehearsal.loss_and_grads)
    except Exception:  # training meets it too, and tells it
        return False
    finally:
        freeze(frozen)
    new = [name for name in seen.asking if name not in found.held]
    found.held |= {name: seen.held[name] for name in new}
    asked = [name for name in [*found.names, *new] if not _moves_itself(guide, seen.held.get(name))]
    found.names = [name for name in asked if name in seen.unreached or name not in seen.asking]
    if rehearsal is not None:
        found.by_objective += [name for name in asked if name not in found.names]
    return True


def _moves_itself(guide: Program, held: Held | None) -> bool:
    """Whether a parameter is a guide's alone that takes steps of its own (``rows``, ``prepared``), and no gradient goes through them.

    Guides that gradients go through say so.
    """
    steps = hasattr(guide, "rows") or hasattr(guide, "prepared")
    return steps and not getattr(guide, "passes_gradients", False) and held is not None and held.sides == ("guide",)
