"""What a run says of itself before it starts, and how its arguments are written down."""

from __future__ import annotations

import functools
import statistics
import warnings
from typing import TYPE_CHECKING, Any

from pyro.infer import ELBO

from ppvae.data import Data
from ppvae.errors import UnreliableWarning
from ppvae.objectives import Linear, weight_at

if TYPE_CHECKING:
    from ppvae.training import Training


def say_header(training: Training) -> None:
    """Print the run, its data, weights and objective; warn where a weight does not end at 1."""
    svi, say = training.svi, training.progress.say
    count = sum(leaf.numel() for leaf in svi.leaves)
    engine = ("compiled, bfloat16" if svi.engine.half else "compiled") if svi.engine.on else f"eager ({svi.engine.reason})"
    where = str(training.run.folder) if training.run.folder else "in memory"
    several = f"  processes {training.ranks.size}" if training.ranks.size > 1 else ""
    say(f"run {where}  seed {training.seed}  device {training.device}{several}  parameters {count:,}  engine {engine}")
    say(f"data {_describe(training.data)}" + (f"  validation {_describe(training.validation)}" if training.validation else ""))
    total = training.epochs * training.steps_per_epoch
    for name, weight in (("beta", svi.beta), ("likelihood weight", svi.likelihood_weight)):
        end = weight_at(weight, total - 1)
        if callable(weight) or end != 1:
            say(f"{name} {described(weight)} (ends at 1: {'yes' if end == 1 else f'no, at {end:g}'}, {total:,} steps)")
        if end != 1:
            warnings.warn(f"{name} ends at {end:g}, not at 1: what is trained is not the ELBO", UnreliableWarning, stacklevel=4)
    if training.pair is not None:
        way = "a plate of their own" if training.pair.in_plate else "repeated batches (the networks refuse leading dimensions)"
        say(f"objective {described(svi.objective)}  particles take {way}  measure {training.pair.measure}")


def say_shift(training: Training) -> None:
    """Print what bfloat16 did to the loss, where networks ran in it."""
    shifts = training.svi.engine.shifts
    if shifts:
        mean = statistics.fmean(shifts)
        error = statistics.stdev(shifts) / len(shifts) ** 0.5 if len(shifts) > 1 else float("nan")
        training.progress.say(
            f"bfloat16: the loss of {len(shifts)} batches was {mean:+.4f} ± {error:.4f} nats per datum from float32's, noise for noise; "
            "all that is measured is float32"
        )


def _describe(data: Data) -> str:
    about = data.describe()
    return f"{about['name']}/{about['split']} {about['num_data']:,} x {tuple(about['event_shape'])} ({about['binarize']})"


def described(value: Any) -> Any:
    """A short, repeatable description of an argument for header and config; one that changes makes resuming refuse."""
    if value is None or isinstance(value, int | float | str | bool):
        return value
    if isinstance(value, Linear):
        return str(value)
    if isinstance(value, functools.partial):
        keywords = ", ".join(f"{k}={described(v) if callable(v) else repr(v)}" for k, v in sorted(value.keywords.items()))
        return f"{described(value.func)}({keywords})"
    if hasattr(value, "pt_optim_constructor"):
        arguments = value.pt_optim_args if isinstance(value.pt_optim_args, dict) else described(value.pt_optim_args)
        optimizer = f"pyro.optim.{value.pt_optim_constructor.__name__}({arguments})"
        scheduler = getattr(value, "pt_scheduler_constructor", None)
        return f"pyro.optim.{scheduler.__name__}({optimizer}, {value.kwargs})" if scheduler is not None else optimizer
    if hasattr(value, "not_captured"):  # an objective of ours, which tells all its numbers
        return str(value)
    if isinstance(value, ELBO):
        told = {"num_particles": value.num_particles, **({"alpha": value.alpha} if hasattr(value, "alpha") else {})}
        return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in told.items())})"
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    numbers = {k: v for k, v in sorted(getattr(value, "__dict__", {}).items()) if isinstance(v, int | float | bool)}
    return f"{name}({', '.join(f'{k}={v}' for k, v in numbers.items())})" if numbers else name
