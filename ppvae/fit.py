"""Train a pair: from data and two programs to a run."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import PyroOptim

from ppvae import checkpoint, generators, noise
from ppvae.batches import Batch, each
from ppvae.capture import why_no_compiler
from ppvae.check import check
from ppvae.checks_numbers import listed, parameters_of
from ppvae.data import Data
from ppvae.data.leakage import warn_of_leakage
from ppvae.errors import DataError, ObjectiveError, ProgramError, RunError, ShapeError, UnreliableWarning
from ppvae.header import described, say_header, say_shift
from ppvae.interruption import STOPPED, listening
from ppvae.lock import locked
from ppvae.looked import digest_of, looked, record
from ppvae.modules import Program, frozen_parameters, modules_of
from ppvae.objectives import Linear, Weight, is_linear
from ppvae.optimizer import OptimizerFactory
from ppvae.pair import Pair
from ppvae.progress import Progress
from ppvae.ranks import sharing, started
from ppvae.repository import commit_of, told
from ppvae.resume import use_best
from ppvae.run import (
    COMMAND,
    CONFIG,
    ENVIRONMENT,
    HISTORY,
    PROGRAM,
    TEMPLATE,
    Run,
    Stored,
    compare_fingerprints,
    describe_programs,
    fingerprint,
    holds_a_run,
    home,
    read_description,
    versions,
    write_description,
)
from ppvae.state import named_tensors
from ppvae.storage import check_room, sweep
from ppvae.stream import stream
from ppvae.support import warn_relaxed
from ppvae.surrogates import why_not
from ppvae.svi import SVI, check_compile, check_objective
from ppvae.together import SharedSVI
from ppvae.training import WORTH_COMPILING, Training, rows_measured
from ppvae.unmeasured import check_unmeasured
from ppvae.unused import unused

ONE_AT_A_TIME = threading.RLock()
MAY_CHANGE = ("epochs", "patience", "rollbacks", "checkpoint_every", "device", "ranks")  # on resuming
# Of every parameter, what a checkpoint may hold: value, two moments of Adam's, the best epoch; all of that where the run would go back to.
COPIES = 8
LATER = {"precision": "float32"}  # arguments that older runs did not record, as they were then


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
    rollbacks: int = 3,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    compile: str | bool = "auto",
    precision: str = "float32",
    device: str | torch.device = "auto",
    unused_parameters: str = "refuse",
    callback: Callable[[dict[str, Any]], Any] | None = None,
    source: Mapping[str, str] | None = None,
    command: Mapping[str, Any] | None = None,
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
        rollbacks: How often a run that diverges may go back to the start of its epoch, of a long one to its last thousandth step (to the
            one before, where the first step from there diverges), and on with half the learning rate, for good: every update goes half
            as far, whatever optimizer and scheduler say. Each is printed as it happens and kept in ``run.rollbacks``; ``callback`` is
            called once more for an epoch that ends once more. 0 ends the run at once.
        seed: Rules everything after construction: order, noise, binarisation, and what programs and callbacks draw from Python's and
            NumPy's generators. The caller's generators are as they were, afterwards.
        out: The run folder; None keeps the run in memory.
        resume: Go on from the newest sound checkpoint of ``out``, or start where there is none. What was interrupted anywhere, by whatever,
            and goes on is the undisturbed run, bit for bit (``docs/faults.md`` says on which conditions).
        checkpoint_every: Seconds between checkpoints.
        compile: True captures the programs and compiles the step; False runs every step by Pyro; "auto" compiles where that is worth its
            time: from 3,000 steps in all, the last, shorter batch of an epoch from 3,000 epochs. The folder records which, and a
            resumed run obeys it. A pair that cannot be captured, or whose compiled step is not what eager Pyro computes, runs
            eagerly, and one line says why (``engine``).
        precision: "bfloat16" runs the networks of compiled steps in bfloat16 where that pays: on a CPU from 256 rows. What it does to the
            loss, against float32 with the same noise, is said at the end; every epoch is measured in float32.
        device: "auto" (CUDA where there is one), or a torch device. Several processes, started by torchrun or a process group of the
            caller's, train together, each on its share of every batch (``ppvae.ranks``): all of them call this alike.
        unused_parameters: "refuse" ends the run before its first step where a parameter that asks for a gradient gets none, whatever is
            drawn; "allow" only says so, for programs that use it now and then. Not refused, only said: what a loss of one's own might
            bring in later, because its state moves or a ``callback`` is given. Not looked at: such a loss where its state cannot be put
            back (files, iterators) or several processes train, what a guide alone holds whose steps pass no gradients, resumed runs.
        callback: Called with each epoch's row of the history; returning False stops the run.
        source: How a program given by a file is found again: its file, name and SHA-256.
        command: The options of a command that starts the run, kept in its folder.

    Returns:
        The run. The loss and its gradient are in nats per datum whatever the batch size. Ctrl-C or SIGTERM in the main thread ends it
        after the step under way, with a checkpoint and ``run.stopped == "interrupt"``; a second one raises KeyboardInterrupt at once.
        Runs of several threads of one process take turns: Pyro's parameter store and torch's generator are the process's.

    Warns:
        UnreliableWarning: More rows of ``validation`` stand in ``data`` than rows of ``data`` repeat each other.

    Raises:
        DataError: Data outside the support of an observed site, before the first step.
        ProgramError, ShapeError: The pair breaks the contract of a program, or has parameters that no gradient reaches.
        ObjectiveError: A weight or schedule that would not be what its name says.
        DivergedError: A loss or gradient that is not finite, rollbacks notwithstanding; the last good state is kept.
        RunError: ``out`` cannot be written, has no room, or holds another run.
        LockedError: Another process trains in ``out``.
    """
    data = Data.of(data)
    validation = Data.of(validation) if validation is not None else None
    objective = objective if objective is not None else Trace_ELBO()
    optimizer = optimizer if optimizer is not None else functools.partial(torch.optim.Adam, lr=1e-3)
    _check_arguments(epochs, batch_size, patience, rollbacks, validation, objective, optimizer, scheduler, compile, precision)
    if unused_parameters not in ("refuse", "allow"):
        raise ObjectiveError(f"unused_parameters is 'refuse' or 'allow', got {unused_parameters!r}", mend="unused_parameters='refuse'")
    optimizer = _unseeing(optimizer) if isinstance(optimizer, PyroOptim) else optimizer
    objective = copy.copy(objective)  # it notes its plates in itself, and the next run must find it as it was
    total_steps = epochs * math.ceil(len(data) / batch_size)
    beta, likelihood_weight = (w.resolved(total_steps) if isinstance(w, Linear) else w for w in (beta, likelihood_weight))
    with contextlib.ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        ranks = stack.enter_context(started(device))
        stack.enter_context(sharing(ranks))
        device = ranks.device or torch.device("cpu")
        folder = Path(out) if out is not None else None
        why_eager = _engine(compile, objective, total_steps, device, folder if resume else None)
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
            "rollbacks": rollbacks,
            "seed": seed,
            "checkpoint_every": checkpoint_every,
            "engine": "compiled" if not why_eager else "eager",
            "precision": precision,
            "device": str(device) if ranks.size == 1 else device.type,
            "ranks": ranks.size,
            "data": data.describe(),
            "validation": validation.describe() if validation is not None else None,
        }
        ranks.check_same(config, "the arguments")
        progress = Progress() if ranks.first else _silently(stack)
        _check_last_batch(model, guide, len(data), batch_size, ranks.size)
        for module in {id(m): m for program in (model, guide) for m in modules_of(program).values()}.values():
            module.to(device)
        if folder is not None:
            ranks.by_first(functools.partial(_enter_folder, stack, folder, resume, config))
        stack.enter_context(noise.forked(device))
        stack.enter_context(generators.owned(seed))
        stack.enter_context(pyro.validation_enabled(False))  # our own check before every update costs less and names the datum
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # Pyro's, of a loss or gradient: our own words say where
        store = stack.enter_context(pyro.get_param_store().scope())
        run = Run(Stored(model, store), Stored(guide, store), folder=folder, config=config)
        step: dict[str, Any] = {"optimizer": optimizer, "objective": objective, "beta": beta, "likelihood_weight": likelihood_weight}
        step |= {"clip_norm": clip_norm, "compile": not why_eager, "precision": "float32" if why_eager else precision}
        training = Training(
            svi=SVI(model, guide, **step) if ranks.size == 1 else SharedSVI(ranks, model, guide, **step),
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
            rollbacks=rollbacks,
            ranks=ranks,
        )
        if why_eager:
            training.svi.engine.stop(why_eager)
        programs = functools.cache(functools.partial(_described, training, source))
        known = None if folder is None else functools.partial(_looked_before, folder, config, programs)
        relaxed = _look_at_pair(training, objective, known)
        if not (resume and folder is not None and holds_a_run(folder)):
            more = ranks.by_first(functools.partial(_look_for_unused, training, objective, unused_parameters == "allow"))
            held = parameters_of(model, guide) if more else {}
            training.svi.also = [held[name].tensor for name in more if name in held]  # others are of the store, which training sees
        if validation is not None and ranks.first:
            warn_of_leakage(data, validation)
        _begin(training, folder, config, programs, relaxed, command)
        say_header(training)
        with listening() as training.interruption:
            training.loop()
        use_best(training)
        say_shift(training)
        ranks.wait()  # whoever reads the folder next finds it whole
        if folder is not None and run.stopped != STOPPED:  # which has been said, with how to go on
            progress.say(f"run saved in {folder}")
    return run


def _engine(compile: str | bool, objective: Any, total_steps: int, device: torch.device, resumed: Path | None) -> str:
    """Why a run's steps are to be eager, in words; empty where they are to be compiled. Decided by the configuration alone."""
    if resumed is not None and compile == "auto" and holds_a_run(resumed):
        if read_description(resumed, CONFIG).get("engine") != "compiled":
            return "as it was begun"
        return ""
    if compile is False:
        return "compile=False"
    if compile == "auto" and total_steps < WORTH_COMPILING:
        return f"{total_steps:,} steps in all, below {WORTH_COMPILING:,}"
    return why_not(objective) or why_no_compiler(device.type)


def _described(training: Training, source: Mapping[str, str] | None) -> dict[str, Any]:
    """The programs as the folder keeps them: how they are made again, and their fingerprint."""
    template = each(training.data.batch(slice(0, 2)), lambda part: part.to(training.device))
    with pyro.get_param_store().scope():  # parameters are born of the run's seed, folder or not, and not of this look
        here = fingerprint(training.model, training.guide, template)
    return describe_programs(training.model, training.guide, source) | {"fingerprint": here}


def _looked_before(folder: Path, config: Mapping[str, Any], programs: Callable[[], dict[str, Any]]) -> bool | None:
    return looked(folder, digest_of(config, programs())) if holds_a_run(folder) else None


def _look_at_pair(training: Training, objective: Any, known: Callable[[], bool | None] | None = None) -> bool:
    """See whether the pair can be measured, and hold all data against the likelihood's support before the first step.

    Args:
        training: The run to be.
        objective: What it is trained by.
        known: What a pass over all data on just these things has found; None where there was none.

    Returns:
        Whether data lie outside the support of a site whose author asked for no validation.
    """
    data, device = training.data, training.device
    sets = [data] + ([training.validation] if training.validation is not None else [])
    first = data.pieces(rows_measured(data, training.validation))[0]
    shown = each(data.batch(first), lambda part: part.to(device))
    try:
        training.pair = Pair(training.model, training.guide, shown, training.seed)
    except (ShapeError, ProgramError) as error:
        if error.__cause__ is not None:  # the program itself raised: the check knows the site and the line to change
            check(training.model, training.guide, shown).raise_if_broken()
        measurable = isinstance(error, ProgramError) and not isinstance(objective, TraceEnum_ELBO)
        if measurable:  # a guide that misses a latent trains against the prior, silently: refuse; enumeration may do without it
            raise
        if training.ranks.size > 1:
            raise ProgramError(
                f"several processes share a batch out by rows, and the rows of this pair's densities are not known: {error.problem}",
                mend=["record all sites of a datum inside pyro.plate('data', len(x), dim=-1)", "train in one process"],
            ) from error
        relaxed = training.ranks.by_first(known) if known else None
        if relaxed is None:
            about = training.batch_size, training.seed, device
            relaxed = any([check_unmeasured(training.model, training.guide, part, *about) for part in sets])
        if relaxed:
            warn_relaxed()
        training.progress.say(f"note: this pair can be trained but not measured: {error.problem}")
        return relaxed
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
    relaxed = training.ranks.by_first(known) if known else None
    if relaxed is None:
        for part in sets:
            _check_all_rows(training, part)
    else:
        training.pair.relaxed = relaxed
    if training.pair.relaxed:
        warn_relaxed()
    return training.pair.relaxed


def _look_for_unused(training: Training, objective: Any, allowed: bool) -> list[str]:
    """Parameters that the loss does not depend on: a ``.detach()`` too many, perhaps, and hours of training for nothing.

    Returns:
        The names of those that no log density depends on, and the objective all the same.
    """
    found = unused(
        training.model,
        training.guide,
        training.data,
        training.batch_size,
        objective=objective,
        frozen=training.frozen,
        seed=training.seed,
        device=training.device,
        alone=training.ranks.size == 1,
        disturbed=training.callback is not None,
    )
    if not allowed:
        found.raise_if_any()
    if found.names:
        training.progress.say(f"note: {found}")
    if found.foreign:
        training.progress.say(
            f"note: {len(found.foreign)} parameters of the loss alone are not trained: {listed(found.foreign)}; "
            "to be trained they stand in model or guide (model.head = head)"
        )
    return found.by_objective


def _check_all_rows(training: Training, part: Data) -> None:
    """One pass over the data, a draw each, that looks at supports and at log densities that are no numbers."""
    assert training.pair is not None
    whole, *_ = part.pieces(len(part))
    for rows in noise.blocks(len(part), min(16384, whole.stop)):
        x = each(part.batch(rows, noise.generator(training.seed, "check", rows.start)), lambda t: t.to(training.device))
        pair = Pair(training.model, training.guide, x, training.seed)
        try:
            for _ in stream(pair, x, num_particles=1, seed=training.seed, first_row=rows.start):
                pass
        except DataError as error:
            raise DataError(error.problem, where=f"{part.name}/{part.split}, {error.where}", mend=error.mend) from error
        training.pair.relaxed |= pair.relaxed


def _begin(
    training: Training,
    folder: Path | None,
    config: Mapping[str, Any],
    programs: Callable[[], dict[str, Any]],
    relaxed: bool,
    command: Mapping[str, Any] | None,
) -> None:
    saved = None
    if folder is not None:
        sound = checkpoint.newest(folder / "checkpoints") if holds_a_run(folder) else None
        if sound is not None:
            name, tensors, state, damaged = sound
            for problem in damaged:
                warnings.warn(f"{problem}; going on from {name}", UnreliableWarning, stacklevel=3)
            compare_fingerprints(read_description(folder, PROGRAM)["fingerprint"], programs()["fingerprint"], folder)
            _say_what_changed(training, folder)
            saved = (tensors, state)
            if training.ranks.first:
                checkpoint.set_aside(folder / "checkpoints", newer_than=name)
    training.begin(saved)
    if folder is not None and training.ranks.first:
        live = named_tensors(training.model, training.guide, training.svi.leaves).values()
        size = COPIES * sum(t.numel() * t.element_size() for t in live)
        check_room(folder / "checkpoints", size if saved is not None else (checkpoint.KEEP + 1) * size)
    if folder is not None and saved is None:
        if training.ranks.first:
            found = record(digest_of(config, programs()), relaxed)
            write_description(folder, programs(), config, training.data.batch(slice(0, 2)), command, found)
        training.save()  # the folder can be written, and step 0 can be gone back to


def _say_what_changed(training: Training, folder: Path) -> None:
    """Versions or threads other than the run began with, whose sums are rounded otherwise; another state of the programs' repository."""
    before, now = read_description(folder, ENVIRONMENT), versions()
    changed = [f"{name} {value}, where the run had {before[name]}" for name, value in now.items() if before.get(name, value) != value]
    if changed:
        training.progress.say(f"{', '.join(changed)}: what follows is equal in law, not in bits")
    if "commit" in before and training.ranks.first:
        place = home(read_description(folder, PROGRAM))
        there = commit_of(place)
        if there and told(there) != told(before):  # information alone: what was committed may be none of the run's business
            training.progress.say(f"note: the repository of {place} is at {told(there)}, where the run began at {told(before)}")


def _silently(stack: contextlib.ExitStack) -> Progress:
    """The progress of a process that is not the first, which leaves talking to that one."""
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", UnreliableWarning)
    return Progress(stack.enter_context(open(os.devnull, "w")))


def _enter_folder(stack: contextlib.ExitStack, folder: Path, resume: bool, config: Mapping[str, Any]) -> None:
    stack.enter_context(locked(folder))
    sweep(folder, CONFIG, PROGRAM, HISTORY, ENVIRONMENT, TEMPLATE, COMMAND)
    _refuse_folder(folder, resume, config)


def _refuse_folder(folder: Path, resume: bool, config: Mapping[str, Any]) -> None:
    if not holds_a_run(folder):
        return
    if not resume:
        raise RunError(f"{folder} already holds a run", mend=["resume=True goes on from its newest checkpoint", "choose another folder"])
    before = LATER | read_description(folder, CONFIG)
    config = json.loads(json.dumps(config))  # a tuple is a list there
    unequal = [told for name, value in config.items() if name not in MAY_CHANGE for told in _unequal(name, before.get(name), value)]
    if unequal:
        raise RunError(
            f"the run in {folder} was started with other arguments, and going on would be a third run",
            where="; ".join(unequal[:4]),
            mend="resume with the arguments of the start (epochs may grow), or train into another folder",
        )


def _unequal(name: str, before: Any, now: Any) -> list[str]:
    """An argument that is another now, in words; of tables only the fields that are."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [told for field in before | now for told in _unequal(f"{name}.{field}", before.get(field), now.get(field))]
    return [] if before == now else [f"{name}: the run has {before!r}, here {now!r}"]


def _unseeing(optimizer: PyroOptim) -> PyroOptim:
    """A pyro.optim optimizer of the same arguments that has seen no parameter: those of another run are in another store."""
    own = copy.copy(optimizer)
    own.optim_objs, own.grad_clip, own._state_waiting_to_be_consumed = {}, {}, {}
    return own


def _check_last_batch(model: Program, guide: Program, n: int, batch_size: int, size: int) -> None:
    """BatchNorm has no variance of one datum, and torch says so only after an epoch's work."""
    batches = [batch for batch in (min(n, batch_size), n % batch_size) if batch]
    smallest = {share for batch in batches for share in (batch // size, -(-batch // size))}
    modules = [m for program in (model, guide) for root in modules_of(program).values() for m in root.modules()]
    if 1 in smallest and any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training for m in modules):
        raise ProgramError(
            f"BatchNorm in training mode needs at least 2 data a batch, and {n} data in batches of {batch_size} leave a batch of 1"
            + (f" to one of {size} processes" if size > 1 else ""),
            mend=[f"batch_size={batch_size + 1}", "a normalisation without batches (LayerNorm), which also keeps data independent"],
        )


def _check_arguments(
    epochs: int,
    batch_size: int,
    patience: int | None,
    rollbacks: int,
    validation: Data | None,
    objective: Any,
    optimizer: Any,
    scheduler: Any,
    compile: str | bool,
    precision: str,
) -> None:
    check_compile(compile, precision)
    check_objective(objective)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ObjectiveError(f"{name} is a whole number of at least 1, got {value!r}")
    if not isinstance(rollbacks, int) or rollbacks < 0:
        raise ObjectiveError(f"rollbacks is a whole number of at least 0, got {rollbacks!r}")
    if patience is not None and validation is None:
        raise ObjectiveError("patience needs validation data to be patient about", mend="fit(..., validation=digits.validation)")
    if scheduler is not None and isinstance(optimizer, PyroOptim):
        raise ObjectiveError(
            "a torch scheduler needs a torch optimizer",
            mend=["optimizer=functools.partial(torch.optim.Adam, lr=1e-3)", "a pyro.optim scheduler is itself the optimizer"],
        )
