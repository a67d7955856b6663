"""Train a pair: from data and two programs to a run."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import PyroOptim

from ppvae import checkpoint, noise
from ppvae.batches import Batch, each, take
from ppvae.check import check
from ppvae.data import Data
from ppvae.errors import DataError, ObjectiveError, ProgramError, RunError, ShapeError, UnreliableWarning
from ppvae.header import described, say_header
from ppvae.modules import Program, frozen_parameters, modules_of
from ppvae.objectives import Linear, Weight, is_linear
from ppvae.pair import Pair
from ppvae.progress import Progress
from ppvae.resume import use_best
from ppvae.run import (
    CONFIG,
    PROGRAM,
    Run,
    Stored,
    compare_fingerprints,
    describe_programs,
    fingerprint,
    holds_a_run,
    locked,
    write_description,
)
from ppvae.stream import stream
from ppvae.support import warn_relaxed
from ppvae.svi import SVI, OptimizerFactory, check_compile, check_objective
from ppvae.training import Training, rows_measured

MAY_CHANGE = ("epochs", "patience", "checkpoint_every", "device")  # on resuming


def fit(
    model: Program,
    guide: Program,
    data: Data | Batch,
    *,
    validation: Data | Batch | None = None,
    objective: Any = None,
    optimizer: PyroOptim | OptimizerFactory | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    epochs: int,
    batch_size: int = 128,
    beta: Weight = 1.0,
    likelihood_weight: Weight = 1.0,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    compile: str | bool = "auto",
    device: str | torch.device = "auto",
    callback: Callable[[dict[str, Any]], Any] | None = None,
    source: Mapping[str, str] | None = None,
) -> Run:
    """Train a model and a guide by stochastic variational inference.

    Args:
        model, guide: Two Pyro programs of one argument, the batch. Modules are trained in place, in a parameter store of the run.
        data: A ``Data``, a tensor, an array, a tuple or dict of them, N rows.
        validation: Held-out data; the run then ends with the parameters of the best epoch by their ELBO at beta = 1.
        objective: A Pyro ELBO, ``Trace_ELBO()`` by default.
        optimizer: A function of the parameters that builds a torch optimizer, ``functools.partial(torch.optim.Adam, lr=1e-3)`` by
            default, or a ``pyro.optim`` optimizer.
        scheduler: A function of the torch optimizer that builds a torch scheduler, stepped once an epoch.
        epochs: Passes over the data.
        batch_size: Data per step; the last batch of an epoch may be shorter and counts by its data.
        beta, likelihood_weight: Weights >= 0 on the unobserved and the observed sites, or functions of the step (``objectives.linear``).
        clip_norm: Largest norm of the gradient (of the loss in nats per datum).
        patience: Stop after so many epochs without a better validation ELBO; counted once the weights stand still.
        seed: Rules everything after construction: order, noise, binarisation.
        out: The run folder; None keeps the run in memory.
        resume: Go on from the newest sound checkpoint of ``out``, or start where there is none.
        checkpoint_every: Seconds between checkpoints.
        compile: "auto" or False. This version runs every step eagerly, and the run folder says so.
        device: "auto" (CUDA where there is one), or a torch device.
        callback: Called with each epoch's row of the history; returning False stops the run.
        source: How a program given by a file is found again: its file, name and SHA-256.

    Returns:
        The run. The loss and its gradient are in nats per datum whatever the batch size.

    Raises:
        DataError: Data outside the support of an observed site, before the first step.
        ProgramError, ShapeError: The pair breaks the contract of a program.
        ObjectiveError: A weight or schedule that would not be what its name says.
        DivergedError: A loss or gradient that is not finite; the last good state is kept.
        RunError: ``out`` cannot be written or holds another run.
    """
    data = Data.of(data)
    validation = Data.of(validation) if validation is not None else None
    objective = objective if objective is not None else Trace_ELBO()
    optimizer = optimizer if optimizer is not None else functools.partial(torch.optim.Adam, lr=1e-3)
    _check_arguments(epochs, batch_size, patience, validation, objective, optimizer, scheduler, compile)
    optimizer = _unused(optimizer) if isinstance(optimizer, PyroOptim) else optimizer
    objective = copy.copy(objective)  # it notes its plates in itself, and the next run must find it as it was
    total_steps = epochs * math.ceil(len(data) / batch_size)
    beta, likelihood_weight = (w.resolved(total_steps) if isinstance(w, Linear) else w for w in (beta, likelihood_weight))
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    config = {
        "objective": described(objective),
        "optimizer": described(optimizer),
        "scheduler": described(scheduler),
        "epochs": epochs,
        "batch_size": batch_size,
        "beta": described(beta),
        "likelihood_weight": described(likelihood_weight),
        "clip_norm": clip_norm,
        "patience": patience,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
        "engine": "eager",
        "device": str(device),
        "data": data.describe(),
        "validation": validation.describe() if validation is not None else None,
    }
    progress = Progress()
    folder = Path(out) if out is not None else None
    _check_last_batch(model, guide, len(data), batch_size)
    for module in {id(m): m for program in (model, guide) for m in modules_of(program).values()}.values():
        module.to(device)
    with contextlib.ExitStack() as stack:
        if folder is not None:
            stack.enter_context(locked(folder))
            _refuse_folder(folder, resume, config)
        stack.enter_context(noise.forked(device))
        stack.enter_context(pyro.validation_enabled(False))  # our own check before every update costs less and names the datum
        store = stack.enter_context(pyro.get_param_store().scope())
        run = Run(Stored(model, store), Stored(guide, store), folder=folder, config=config)
        training = Training(
            svi=SVI(model, guide, optimizer, objective, beta, likelihood_weight, clip_norm, compile),
            model=model,
            guide=guide,
            data=data,
            validation=validation,
            pair=None,
            frozen=frozen_parameters(model, guide),
            has_globals=False,
            run=run,
            epochs=epochs,
            batch_size=batch_size,
            patience=patience,
            seed=seed,
            device=device,
            checkpoint_every=checkpoint_every,
            scheduler=scheduler,
            callback=callback,
            progress=progress,
        )
        _look_at_pair(training, objective)
        _begin(training, folder, config, source)
        say_header(training)
        training.loop()
        use_best(training)
        if folder is not None:
            progress.say(f"run saved in {folder}")
    return run


def _look_at_pair(training: Training, objective: Any) -> None:
    """See whether the pair can be measured, and hold all data against the likelihood's support before the first step."""
    data, device = training.data, training.device
    sets = [data] + ([training.validation] if training.validation is not None else [])
    shown = each(take(data.x, slice(0, rows_measured(data, training.validation))), lambda part: part.to(device))
    try:
        training.pair = Pair(training.model, training.guide, shown, training.seed)
    except (ShapeError, ProgramError) as error:
        if error.__cause__ is not None:  # the program itself raised: the check knows the site and the line to change
            check(training.model, training.guide, shown).raise_if_broken()
        measurable = isinstance(error, ProgramError) and not isinstance(objective, TraceEnum_ELBO)
        if measurable:  # a guide that misses a latent trains against the prior, silently: refuse; enumeration may do without it
            raise
        training.progress.say(f"note: this pair can be trained but not measured: {error.problem}")
        return
    training.has_globals = bool(training.pair.globals)
    if training.has_globals and not is_linear(objective):
        raise ObjectiveError(
            f"the sites {sorted(training.pair.globals)} are global, and {type(objective).__name__} has no exact scaling of a mini-batch",
            mend=["use Trace_ELBO", "put the sites into the data plate"],
        )
    if training.pair.outside and isinstance(objective, RenyiELBO):
        raise ObjectiveError(
            f"the sites {sorted(training.pair.outside)} lie outside the data plate, and {type(objective).__name__} then gives the whole "
            "batch one importance weight in place of one per datum",
            mend="record them inside the data plate, or leave them out",
        )
    for part in sets:
        _check_all_rows(training, part)
    if training.pair.relaxed:
        warn_relaxed()


def _check_all_rows(training: Training, part: Data) -> None:
    """One pass over the data, a draw each, that looks at supports and at log densities that are no numbers."""
    assert training.pair is not None
    for rows in noise.blocks(len(part), 16384):
        x = each(part.batch(rows, noise.generator(training.seed, "check", rows.start)), lambda t: t.to(training.device))
        pair = Pair(training.model, training.guide, x, training.seed)
        try:
            for _ in stream(pair, x, num_particles=1, seed=training.seed, first_row=rows.start):
                pass
        except DataError as error:
            raise DataError(error.problem, where=f"{part.name}/{part.split}, {error.where}", mend=error.mend) from error
        training.pair.relaxed |= pair.relaxed


def _begin(training: Training, folder: Path | None, config: Mapping[str, Any], source: Mapping[str, str] | None) -> None:
    template = each(take(training.data.x, slice(0, 2)), lambda part: part.to(training.device))
    saved = None
    if folder is not None:
        with pyro.get_param_store().scope():  # parameters are born of the run's seed, folder or not, and not of this look
            here = fingerprint(training.model, training.guide, template)
        sound = checkpoint.newest(folder / "checkpoints") if holds_a_run(folder) else None
        if sound is not None:
            name, tensors, state, damaged = sound
            for problem in damaged:
                warnings.warn(f"{problem}; going on from {name}", UnreliableWarning, stacklevel=3)
            compare_fingerprints(checkpoint.read_json(folder / PROGRAM)["fingerprint"], here, folder)
            saved = (tensors, state)
    training.begin(saved)
    if folder is not None and saved is None:
        programs = describe_programs(training.model, training.guide, source) | {"fingerprint": here}
        write_description(folder, programs, config, training.data.x)
        training.save()  # the folder can be written, and step 0 can be gone back to


def _refuse_folder(folder: Path, resume: bool, config: Mapping[str, Any]) -> None:
    if not holds_a_run(folder):
        return
    if not resume:
        raise RunError(f"{folder} already holds a run", mend=["resume=True goes on from its newest checkpoint", "choose another folder"])
    before = checkpoint.read_json(folder / CONFIG)
    config = json.loads(json.dumps(config))  # a tuple is a list there
    unequal = [f"{k}: the run has {before.get(k)!r}, here {v!r}" for k, v in config.items() if k not in MAY_CHANGE and before.get(k) != v]
    if unequal:
        raise RunError(
            f"the run in {folder} was started with other arguments, and going on would be a third run",
            where="; ".join(unequal[:4]),
            mend="resume with the arguments of the start (epochs may grow), or train into another folder",
        )


def _unused(optimizer: PyroOptim) -> PyroOptim:
    """A pyro.optim optimizer of the same arguments that has seen no parameter: those of another run are in another store."""
    own = copy.copy(optimizer)
    own.optim_objs, own.grad_clip, own._state_waiting_to_be_consumed = {}, {}, {}
    return own


def _check_last_batch(model: Program, guide: Program, n: int, batch_size: int) -> None:
    """BatchNorm has no variance of one datum, and torch says so only after an epoch's work."""
    modules = [m for program in (model, guide) for root in modules_of(program).values() for m in root.modules()]
    if 1 in (n % batch_size, batch_size) and any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training for m in modules):
        raise ProgramError(
            f"BatchNorm in training mode needs at least 2 data a batch, and {n} data in batches of {batch_size} leave a batch of 1",
            mend=[f"batch_size={batch_size + 1}", "a normalisation without batches (LayerNorm), which also keeps data independent"],
        )


def _check_arguments(
    epochs: int,
    batch_size: int,
    patience: int | None,
    validation: Data | None,
    objective: Any,
    optimizer: Any,
    scheduler: Any,
    compile: str | bool,
) -> None:
    check_compile(compile)
    check_objective(objective)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ObjectiveError(f"{name} is a whole number of at least 1, got {value!r}")
    if patience is not None and validation is None:
        raise ObjectiveError("patience needs validation data to be patient about", mend="fit(..., validation=digits.validation)")
    if scheduler is not None and isinstance(optimizer, PyroOptim):
        raise ObjectiveError(
            "a torch scheduler needs a torch optimizer",
            mend=["optimizer=functools.partial(torch.optim.Adam, lr=1e-3)", "a pyro.optim scheduler is itself the optimizer"],
        )
