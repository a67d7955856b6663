"""A run that diverges goes back to the start of an epoch or the last thousandth step in it, and on with half the learning rate."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppvae import generators
from ppvae.errors import DivergedError
from ppvae.resume import forget_gradients, stand, standing, without_born_since

if TYPE_CHECKING:
    from ppvae.training import Training

# Of every update, what is taken after a rollback.
SLOWER = 0.5


def resting(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where a run stands, to be gone back to: what training changes is copied."""
    live, state = standing(training)
    copied = {part: copy.deepcopy(state[part]) for part in ("optimizer", "scheduler")}
    return {name: t.detach().clone() for name, t in live.items()}, state | copied


def slow_down(training: Training) -> None:
    """Shorten updates by what the rollbacks so far ask for."""
    training.svi.shortened = SLOWER ** len(training.position.rollbacks)
    training.run.rollbacks = training.position.rollbacks


def go_back_or_end(training: Training, problem: str, where: str, cause: Exception | None = None, *, sound: bool = True) -> None:
    """After a divergence: go back to where the run rested last, on with half the learning rate; or end the run.

    Where the very next step diverges that state was not sound, and the run goes back to the one before.

    Args:
        training: The run, at the step that diverged.
        problem, where: What was not finite, of which site and datum.
        cause: What was raised there.
        sound: Whether the parameters as they stand are those that the last sound step left: then they may be saved.

    Raises:
        DivergedError: It may not go back again, or no update was made since, so that another rate would change nothing.
    """
    failed, epoch, tried = training.svi.steps_taken, training.position.epoch, len(training.position.rollbacks)
    sound, can_go_back = sound and not training.spoiled, training.rest is not None and training.rest[1]["steps_taken"] < failed
    if can_go_back:
        _go_back(training)
    if can_go_back and tried < training.rollbacks:
        to = training.svi.steps_taken
        training.position.rollbacks.append({"epoch": epoch + 1, "step": failed, "problem": problem, "where": where, "to": to})
        slow_down(training)
        training.progress.say(
            f"diverged at step {failed:,} (epoch {epoch + 1}): {problem}\n  {where}\n  back to step {to:,}, and on with "
            f"{training.svi.shortened:g} of the learning rate (rollback {tried + 1} of {training.rollbacks})"
        )
        return
    training.position.stopped = training.run.stopped = "diverged"
    if sound or can_go_back:
        training.save()
    if training.run.folder is not None:
        kept = f"the last good state is in {training.run.folder}"
    else:
        kept = f"the programs hold {'the last' if sound or can_go_back else 'no'} good state"
    after = f", after {tried} rollback{'s'[: tried - 1]} with at last {SLOWER**tried:g} of the learning rate" if tried else ""
    raise DivergedError(
        f"training diverged at step {failed} (epoch {epoch + 1}){after}: {problem}",
        where=f"{where}; {kept}",
        mend=["lower the learning rate (a tenth of it)", "clip_norm=10", "keep scales away from 0: softplus(raw) + 1e-3"],
    ) from cause


def _go_back(training: Training) -> None:
    """Put a run back to where it rested: all but what it has learned of its own divergence."""
    assert training.rest is not None
    (tensors, state), svi = training.rest, training.svi
    history, rollbacks = training.position.history, training.position.rollbacks
    without_born_since(training, tensors)
    forget_gradients(svi.leaves)
    svi.leaves = svi.leaves[: len(state["leaves"])]
    svi.forget_updates()
    stand(training, tensors, state)  # which is trained on in place: the first step from here takes another copy
    training.position.history, training.position.rollbacks = history[: training.position.epoch], rollbacks
    training.run.history = training.position.history
    generators.restore(state["generators"], training.device)
    training.forget_steps()
