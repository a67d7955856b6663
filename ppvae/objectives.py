"""Weights, schedules and data scaling around Pyro's ELBOs.

A weight on the KL (beta) or on the likelihood is one messenger around both programs: it scales unobserved, respectively observed,
sites. The objective itself stays Pyro's. Objectives that Pyro does not have stand in modules of their own, and are found here by name:
``objectives.DoublyReparameterized`` and the others of ``SHELF``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor

from ppvae.errors import ObjectiveError
from ppvae.modules import Program

if TYPE_CHECKING:
    from ppvae.objectives_aggressive import Aggressive as Aggressive
    from ppvae.objectives_rate import Capacity as Capacity
    from ppvae.objectives_rate import FreeBits as FreeBits
    from ppvae.objectives_reparameterized import DoublyReparameterized as DoublyReparameterized
    from ppvae.objectives_reparameterized import StickingTheLanding as StickingTheLanding
    from ppvae.objectives_total_correlation import TotalCorrelation as TotalCorrelation
    from ppvae.objectives_wake_sleep import ReweightedWakeSleep as ReweightedWakeSleep

# Name -> its module. Imported when first asked for: they run programs, and weights alone need not.
SHELF = {
    "Aggressive": "aggressive",
    "Capacity": "rate",
    "DoublyReparameterized": "reparameterized",
    "FreeBits": "rate",
    "ReweightedWakeSleep": "wake_sleep",
    "StickingTheLanding": "reparameterized",
    "TotalCorrelation": "total_correlation",
}

ANCHOR = "_ppvae_anchor"
Weight = float | Callable[[int], float]

# Held to the beta-ELBO and its gradient in the tests. In these every log density enters the loss linearly, times its site's scale.
LINEAR = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)


@dataclass(frozen=True)
class Linear:
    """A weight that goes linearly from ``start`` to ``end`` and stays there.

    Args:
        start, end: The weight at step 0 and from the last step of the warm-up on.
        steps: Length of the warm-up in steps of the optimizer; or
        fraction: its length as a share of all steps, resolved when ``fit`` knows how many there are.

    Raises:
        ObjectiveError: Neither or both lengths are given, or they make no sense.
    """

    start: float = 0.0
    end: float = 1.0
    steps: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.fraction is None):
            raise ObjectiveError("a linear warm-up needs steps or fraction, one of them", mend="Linear(0, 1, fraction=0.1)")
        if self.steps is not None and self.steps < 1:
            raise ObjectiveError(f"a warm-up lasts at least one step, got steps={self.steps}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ObjectiveError(f"the fraction of a warm-up lies in (0, 1], got {self.fraction}")
        check_weight(self.start)
        check_weight(self.end)

    def resolved(self, total_steps: int) -> Linear:
        """The same warm-up with its length in steps."""
        if self.fraction is None:
            return self
        return Linear(self.start, self.end, steps=max(1, round(self.fraction * total_steps)))

    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        if self.steps is None:
            raise ObjectiveError("a warm-up given as a fraction needs the number of steps", mend="Linear(...).resolved(total_steps)")
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)

    def __str__(self) -> str:
        length = f"{self.steps:,} steps" if self.steps is not None else f"{self.fraction:.0%} of the steps"
        return f"{self.start:g} -> {self.end:g} over {length}"


def linear(start: float = 0.0, end: float = 1.0, *, steps: int | None = None, fraction: float | None = None) -> Linear:
    """A linear warm-up of beta or of the likelihood weight; see ``Linear``."""
    return Linear(start, end, steps, fraction)


@dataclass(frozen=True)
class Cyclical(Linear):
    """A weight that goes linearly from ``start`` to ``end`` and stays there, begun anew ``cycles`` times; then it stays at ``end``.

    At a step t of T, with tau = (t mod ceil(T / cycles)) / (T / cycles): start + (end - start) min(1, tau / rising).

    Args:
        start, end: The weight at the first step of a cycle, and from its share ``rising`` on.
        steps: T, the length of all cycles together in steps of the optimizer; or
        fraction: T as a share of all steps, resolved when ``fit`` knows how many there are.
        cycles: How many.
        rising: Share of a cycle in which the weight rises, in (0, 1].

    Raises:
        ObjectiveError: Neither or both lengths are given, or they make no sense.

    References:
        Fu, Li, Liu, Gao, Celikyilmaz, Carin (2019), Cyclical annealing schedule, eq. 6 and 7 (their t counts from 1).
    """

    cycles: int = 4
    rising: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.cycles, bool) or not isinstance(self.cycles, int) or self.cycles < 1:
            raise ObjectiveError(f"cycles are a whole number of at least 1, got {self.cycles!r}")
        if not 0 < self.rising <= 1:
            raise ObjectiveError(f"the rising share of a cycle lies in (0, 1], got {self.rising!r}")

    def resolved(self, total_steps: int) -> Cyclical:
        """The same cycles with their length in steps."""
        if self.fraction is None:
            return self
        steps = max(1, round(self.fraction * total_steps))
        return Cyclical(self.start, self.end, steps=steps, cycles=self.cycles, rising=self.rising)

    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        if self.steps is None:
            raise ObjectiveError("cycles given as a fraction need the number of steps", mend="Cyclical(...).resolved(total_steps)")
        if step >= self.steps:
            return self.end
        tau = (step % math.ceil(self.steps / self.cycles)) * self.cycles / self.steps
        return self.start + (self.end - self.start) * min(1.0, tau / self.rising)

    def __str__(self) -> str:
        return f"{super().__str__()} in {self.cycles} cycles, rising in {self.rising:.0%} of each"


def cyclical(
    start: float = 0.0, end: float = 1.0, *, cycles: int = 4, rising: float = 0.5, steps: int | None = None, fraction: float | None = None
) -> Cyclical:
    """Cyclical annealing of beta, over all steps where neither ``steps`` nor ``fraction`` is given; see ``Cyclical``."""
    fraction = 1.0 if steps is None and fraction is None else fraction
    return Cyclical(start, end, steps, fraction, cycles, rising)


def weight_at(weight: Weight, step: int) -> float:
    """The value of a constant or scheduled weight at a step.

    Raises:
        ObjectiveError: It is no number >= 0.
    """
    return check_weight(weight(step) if callable(weight) else weight)


def check_weight(value: Any) -> float:
    """A weight is a finite number >= 0; 0 is allowed."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ObjectiveError(f"beta and likelihood_weight are finite numbers >= 0, got {value!r}")
    return float(value)


class Scales(Messenger):
    """Scale unobserved sites by ``latent`` and observed ones by ``observed``; sites in the data plate also by ``data``.

    Where several processes each have a share of a batch, ``outside`` is the weight of sites outside the data plate, which all of them
    have, and ``share`` how much of the batch is here: a plate that scales a subsample up to its full size does so from its own rows.
    ``step`` is that of the optimizer, for objectives that change with it, where who takes the steps tells it.
    """

    def __init__(self, latent: float | Tensor = 1.0, observed: float | Tensor = 1.0, data: float = 1.0) -> None:
        super().__init__()
        self.latent, self.observed, self.data = latent, observed, data
        self.outside, self.share = 1.0, 1.0
        self.step: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        scale = self.observed if msg["is_observed"] else self.latent
        frame = next((frame for frame in msg["cond_indep_stack"] if frame.dim == -1), None)
        if frame is None:
            scale = scale * self.outside if self.outside != 1.0 else scale
        elif self.data != 1.0:
            # A plate that already scales a subsample up to its full size has done a part of it, or all.
            scale = scale * (self.data * frame.size / (frame.full_size or frame.size))
        elif self.share != 1.0 and frame.full_size and frame.full_size != frame.size:
            scale = scale * self.share
        if isinstance(scale, Tensor) or scale != 1.0:
            msg["scale"] = msg["scale"] * scale


class Scaled:
    """A program run under ``Scales``; still the same program to whoever looks for its modules.

    With an ``anchor`` its trace holds one parameter site at least: Pyro's ELBOs take no gradient of a pair that has none, and so
    would leave modules that no ``pyro.module`` names untrained, silently.
    """

    def __init__(self, program: Program, scales: Scales, anchor: Tensor | None = None) -> None:
        self.__wrapped__ = program
        self.scales, self.anchor = scales, anchor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with self.scales:
            if self.anchor is not None:
                effectful(lambda: self.anchor, type="param")(name=ANCHOR)
            return self.__wrapped__(*args, **kwargs)


def is_linear(objective: Any) -> bool:
    """Whether scaling sites gives the weighted objective itself: Pyro's own ELBOs, not their Jit forms, not importance-weighted ones."""
    return type(objective) in LINEAR or bool(getattr(objective, "linear", False))


def is_jit(objective: Any) -> bool:
    """Whether it is one of Pyro's Jit ELBOs, which trace a program once."""
    return type(objective).__name__.startswith("Jit")


def refuse_weights(objective: Any, what: str) -> None:
    """Raise where scaled sites would not give the objective that ``what`` names.

    Raises:
        ObjectiveError: With the reason.
    """
    name = type(objective).__name__
    if is_linear(objective):
        return
    if is_jit(objective):
        reason = "a Jit ELBO traces the weight once and keeps its first value for ever, silently"
    elif isinstance(objective, ELBO):
        reason = "it is not linear in the log densities (or not known to be), so that scaled sites are another objective"
    else:
        reason = "a loss of your own decides by itself how log densities enter"
    raise ObjectiveError(
        f"{what} with {name} would not be the weighted ELBO: {reason}",
        mend=["leave the weight at 1", f"use one of {', '.join(cls.__name__ for cls in LINEAR)}"],
    )


def refuse_model_enumeration(objective: Any, latent_in_model: list[str], drawn_by_guide: set[str]) -> None:
    """A weight on a site that the model's side enumerates would sit inside a log-sum-exp.

    Raises:
        ObjectiveError: naming the site.
    """
    enumerated = [name for name in latent_in_model if name not in drawn_by_guide]
    if type(objective) is TraceEnum_ELBO and enumerated:
        raise ObjectiveError(
            f"site '{enumerated[0]}' is enumerated on the model's side; a weight other than 1 would act inside its sum",
            mend=["leave beta and likelihood_weight at 1", f"draw '{enumerated[0]}' in the guide, with infer={{'enumerate': 'parallel'}}"],
        )


def __getattr__(name: str) -> Any:
    if name not in SHELF:
        raise AttributeError(f"module 'ppvae.objectives' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(f"ppvae.objectives_{SHELF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *SHELF])
