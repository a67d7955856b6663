"""The training loop and everything that a resumed run needs to be the undisturbed one, bit for bit.

Nothing random of ours has a state to save: the order of an epoch, the binarisation of a batch and the noise of a step are each drawn
from a seed of their own, hash(seed, what, where). What programs and callbacks draw besides has, and goes along (``generators``).
"""

from __future__ import annotations

import copy
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from ppvae import generators, noise
from ppvae.batches import Batch, each
from ppvae.data import Data
from ppvae.data.kept import KeptBatches
from ppvae.data.presented import Presented
from ppvae.diagnose import ALL_FINITE, NO_DATUM, diagnose
from ppvae.engine import Call
from ppvae.errors import DivergedError, PpvaeError, ProgramError, ShapeError, in_a_line
from ppvae.evaluation import Evaluation, evaluate_pieces
from ppvae.interruption import STOPPED, Interruption, LeftUndone
from ppvae.leaves import leaves_of_pair
from ppvae.memory import REMEDIES, OutOfMemoryError, is_out_of_memory
from ppvae.modules import Program, eval_mode, freeze, modules_of
from ppvae.objectives import Weight, weight_at
from ppvae.optimizer import OneOptimizer
from ppvae.pair import Pair
from ppvae.progress import Progress
from ppvae.ranks import ALONE, Ranks
from ppvae.resume import forget_gradients, go_on_from, write_checkpoint
from ppvae.rollback import go_back_or_end, resting, slow_down
from ppvae.run import Run
from ppvae.state import named_tensors, snapshot
from ppvae.storage import little_room
from ppvae.svi import SVI, Rewound
from ppvae.together import SharedSVI

# Steps of one shape below which compiling costs more than it saves: some 5 s against 1 to 3 ms a step.
WORTH_COMPILING = 3000
# Steps after which several processes ask each other whether a signal came.
ASK_EVERY = 16
# Steps of an epoch after which a run that diverges has another state to go back to: no more of its work is lost.
REST_EVERY = 1000
# Steps of an epoch of which one has the norm of its gradient measured, for the history: a pass over all gradients, which small steps feel.
NORM_EVERY = 32


@dataclass
class Position:
    """Where a run stands: everything that goes into a checkpoint and is no tensor of the pair."""

    epoch: int = 0  # finished
    batch: int = 0  # of the epoch under way
    loss_sum: float = 0.0  # of the epoch under way, over its data
    norm_sum: float = 0.0  # over every 32nd of its steps, the first included
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "running"
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Training:
    """One run's loop.

    Attributes:
        svi: The step.
        data, validation: What is trained on, and what chooses the best epoch.
        pair: The pair as ``pair.Pair`` sees it, on the rows that each epoch is measured on; None where it is not measurable.
        frozen: Parameters that came without gradient and stay as they are.
        has_globals: Whether there are latent sites outside the data plate.
        run: What is filled in.
        ranks: The processes that train together; the first alone prints and writes.
        rollbacks: How often a run that diverges may go back to the start of an epoch and on with half the learning rate.
        rest: Where that is: the start of the newest epoch whose first step was sound, as ``rollback.resting`` saw it.
        interruption: The signals that have come.
        generators: States of the process's generators to begin with, where a checkpoint has some.
    """

    svi: SVI
    model: Program
    guide: Program
    data: Data
    validation: Data | None
    pair: Pair | None
    frozen: list[nn.Parameter]
    has_globals: bool
    run: Run
    epochs: int
    batch_size: int
    patience: int | None
    seed: int
    device: torch.device
    checkpoint_every: float
    scheduler: Callable[[torch.optim.Optimizer], Any] | None
    callback: Callable[[dict[str, Any]], Any] | None
    progress: Progress
    rollbacks: int = 0
    ranks: Ranks = ALONE
    position: Position = field(default_factory=Position)
    best: dict[str, Any] | None = None
    torch_scheduler: Any = None
    interruption: Interruption = field(default_factory=Interruption)
    generators: dict[str, Any] | None = None
    rest: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    _next_rest: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    _not_finite: frozenset[str] = frozenset()
    _saved_at: float = 0.0
    _said_little_room: bool = False
    _verified_at: Any = None
    _measured_rows: KeptBatches = field(default_factory=KeptBatches)
    _unread: list[tuple[Tensor, Tensor, int, bool]] = field(default_factory=list)  # of steps taken: loss, norm, data, whether it counts

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be shorter."""
        return math.ceil(len(self.data) / self.batch_size)

    def begin(self, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        """Build the optimizer over the leaves of the first batch; with a checkpoint, go on from it."""
        torch.manual_seed(noise.derived_seed(self.seed, "init"))  # parameters that pyro.param draws are born here
        first = self._presented.batch(*self._inputs(0, self._rows(0, 0)))
        leaves_of_pair(self.model, self.guide, (first,), {})  # parameters are born, and Pyro's store unfreezes what a PyroModule holds
        freeze(self.frozen)
        if saved is None:
            self.svi.prepare(first)
            forget_gradients(self.svi.leaves)
        else:
            go_on_from(self, first, *saved)
        slow_down(self)
        self._guess_nesting(first)
        if self.ranks.size > 1:
            self._begin_together()
        else:
            self.svi.engine.defer(self.device.type, self._settle)
        if self.scheduler is not None and isinstance(self.svi.optim, OneOptimizer) and self.torch_scheduler is None:
            self.torch_scheduler = self.scheduler(self.svi.optim.torch_optimizer)  # type: ignore[arg-type]
        self._not_finite = frozenset(self.spoiled)
        if self.generators is not None:
            generators.restore(self.generators, self.device)
        self._saved_at = time.monotonic()

    def _begin_together(self) -> None:
        """See that all processes train the same programs, and give them the values of the first."""
        live = named_tensors(self.model, self.guide, self.svi.leaves)
        names = {id(t): name for name, t in live.items()}
        about: dict[str, Any] = {name: (tuple(t.shape), str(t.dtype)) for name, t in live.items()}
        self.ranks.check_same(about | {"trained": [names[id(leaf)] for leaf in self.svi.leaves]}, "the parameters")
        self.ranks.take_from_first(list(live.values()))

    def loop(self) -> None:
        """Train to the last epoch, until patience runs out, or to the end of the step in which a signal comes.

        Raises:
            DivergedError: with the site, the datum and what to change; the last good state is saved.
        """
        started, done_before = time.monotonic(), self.position.epoch
        while self.position.epoch < self.epochs and self.position.stopped == "running":
            epoch_started, before = time.monotonic(), self.svi.steps_taken
            while self.position.batch < self.steps_per_epoch:
                self._step()
                self.progress.tick(self.position.epoch + 1, self.position.batch, self.steps_per_epoch)
                due = self.run.folder is not None and time.monotonic() - self._saved_at > self.checkpoint_every
                if due and self._settled():
                    self.save()
                if self._asked_to_stop() and self._settled():
                    return self._interrupted()
            spoiled = self.spoiled
            if spoiled:
                go_back_or_end(self, *_of_update(spoiled))
                continue
            speed = max(self.svi.steps_taken - before, 0) / max(time.monotonic() - epoch_started, 1e-9)
            try:
                self._finish_epoch(speed)
            except LeftUndone:
                return self._interrupted()
            except (DivergedError, ProgramError, ShapeError) as error:
                self._judge_last_update(error)
                continue
            per_epoch = (time.monotonic() - started) / max(self.position.epoch - done_before, 1)
            self.progress.epoch(self.position.history[-1], self.epochs, per_epoch * (self.epochs - self.position.epoch))
            if self.position.epoch < self.epochs and self.position.stopped == "running" and self._asked_to_stop():
                return self._interrupted()
        if self.position.stopped == "running":
            self.position.stopped = "finished"
        self.save()

    def _asked_to_stop(self) -> bool:
        """Whether a signal has come. Several processes ask each other now and then, for all must stop at the same step."""
        if self.ranks.size > 1:
            if self.position.batch % ASK_EVERY and self.position.batch != self.steps_per_epoch:
                return False
            first = int(self.ranks.gathered([float(self.interruption.signal or 0)]).max())
            if first:  # a signal of our own that came while we asked stays, and is told when we ask again
                self.interruption.signal = first
            return bool(first)
        return self.interruption.signal is not None

    def _interrupted(self) -> None:
        """Stand where a resumed run goes on."""
        self.position.stopped, self.run.signal = STOPPED, self.interruption.signal
        self.save()
        name = signal.Signals(self.interruption.signal or 0).name
        further = f"; fit(..., resume=True) goes on from {self.run.folder}" if self.run.folder else ""
        self.progress.say(f"{name}: stopped after step {self.svi.steps_taken:,} (epoch {self.position.epoch + 1}){further}")

    def _judge_last_update(self, error: PpvaeError) -> None:
        """What measuring met at the end of an epoch: a divergence, if a density of its rows is none. No step had seen it yet.

        Raises:
            PpvaeError: The error itself, where it is something else; or DivergedError, as a step.
        """
        if self.position.batch != self.steps_per_epoch:  # the epoch is over: a callback's
            raise error
        first = torch.arange(min(self.batch_size, len(self.data)))  # what measuring looks at first
        inputs = self._inputs(self.position.epoch, first)
        with eval_mode(self.model, self.guide):
            found = self._diagnosed(Call(inputs, self._arguments), first)
        if not isinstance(error, DivergedError) and found.startswith(ALL_FINITE):
            raise error
        go_back_or_end(self, "its last update left densities that are no numbers", found, error, sound=False)

    @property
    def spoiled(self) -> list[str]:
        """Names of trained parameters that are not finite."""
        trained = {id(leaf) for leaf in self.svi.leaves}
        live = named_tensors(self.model, self.guide, self.svi.leaves)
        return [name for name, t in live.items() if id(t) in trained and name not in self._not_finite and not torch.isfinite(t).all()]

    def _guess_nesting(self, first: Batch) -> None:
        """Let Pyro find its plates now: it does so in the first call by draws of its own, and the first step here may be any."""
        objective = self.svi.objective
        guesses = getattr(objective, "vectorize_particles", False) or isinstance(objective, TraceEnum_ELBO)
        if guesses and getattr(objective, "max_plate_nesting", 0) == math.inf:
            with noise.forked(self.device), eval_mode(self.model, self.guide):
                self.svi.evaluate_loss(first)

    def _step(self) -> None:
        """One step, at the position; the position moves on."""
        position = self.position
        rests = self.rollbacks > 0 and position.batch % REST_EVERY == 0
        if rests and not self._settled():  # a state to go back to is one that all steps so far have left sound
            return
        call = self._call(position.epoch, position.batch)
        if self.svi.engine.on and call is not None:
            self._prepare_engine(call)
        self.ranks.take_from_first(self._buffers)
        buffers = [(buffer, buffer.clone()) for buffer in self._buffers]
        verified = self.svi.verified
        if rests:
            self._next_rest = resting(self)
        self._seed_step()
        n = len(self._rows(position.epoch, position.batch))
        self.svi.measure_norm = measured = position.batch % NORM_EVERY == 0
        try:
            loss = self._take(call, n)
        except Rewound:
            self._go_back()
            return
        except DivergedError as error:
            found = self._diagnosed(call, self._own_rows(position.epoch, position.batch))
            for buffer, before in buffers:  # running statistics took the bad batch in before the loss was seen
                buffer.copy_(before)
            spoiled = self.spoiled
            problem, where = _of_update(spoiled) if spoiled else (error.problem, found)
            go_back_or_end(self, problem, where, error)
            return
        except Exception as error:
            if is_out_of_memory(error):
                for buffer, before in buffers:
                    buffer.copy_(before)
                self._ran_out(error, n)
            raise
        if self.svi.verified is not verified:
            self._verified_at = self._here()
        position.batch += 1
        norm = self.svi.gradient_norm
        if isinstance(loss, Tensor) and isinstance(norm, Tensor):
            self._unread.append((loss, norm, n, measured))
        else:
            self._sum_up(float(loss), float(norm) if measured else 0.0, n)
        if len(self._unread) >= self.svi.engine.read_every or position.batch == self.steps_per_epoch:
            self._settled()

    def _ran_out(self, error: Exception, n: int) -> NoReturn:
        """A step did not fit into memory: the state before it stays, in the run and on disk.

        Raises:
            OutOfMemoryError: with what to change.
        """
        if self.ranks.size == 1 and self._settled():  # the others of several do not come to save with this one
            self.save()
        own = len(self._own_rows(self.position.epoch, self.position.batch))
        raise OutOfMemoryError(
            f"a training step on {own} data does not fit into memory",
            where=f"step {self.svi.steps_taken + 1:,}, epoch {self.position.epoch + 1}: {in_a_line(error)}",
            mend=[f"a smaller batch than {n} (--batch-size, batch_size=), in a new run", *REMEDIES],
        ) from error

    def _sum_up(self, loss: float, norm: float, n: int) -> None:
        self.position.loss_sum += loss * n
        self.position.norm_sum += norm
        if self._next_rest is not None:  # loss and gradient were finite there
            self.rest, self._next_rest = self._next_rest, None

    def _settle(self) -> None:
        """Read the losses of the steps since the last reading, in one transfer.

        Raises:
            Rewound: One is not finite. The pair is back where the last verified step began, and each step from there on is read at once:
                the one that diverges says so before its update.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        read = torch.stack([value for loss, norm, *_ in unread for value in (loss, norm)]).tolist()
        if not all(map(math.isfinite, read)):
            self.svi.retake()
        for loss, norm, (*_, n, measured) in zip(read[::2], read[1::2], unread, strict=True):
            self._sum_up(loss, norm if measured else 0.0, n)

    def _settled(self) -> bool:
        """Whether all steps taken are known to be sound; where not, the run stands where they were."""
        try:
            self._settle()
        except Rewound:
            self._go_back()
            return False
        return True

    def _take(self, call: Call | None, n: int) -> float | Tensor:
        """A step on a batch of n rows, of which ``call`` has this process's; the loss of all of them, per datum."""
        total, eagerly = len(self.data), n < self.batch_size and self.epochs < WORTH_COMPILING
        # with global sites the data terms stand for the whole set, the global ones for themselves; both per datum
        divisor, data = (float(total), total / n) if self.has_globals else (float(n), 1.0)
        if isinstance(self.svi, SharedSVI):
            return self.svi.take_share(call, n, divisor, data, eagerly)
        assert call is not None
        return self.svi.take(call, divisor, data, eagerly)

    def forget_steps(self) -> None:
        """What is known of steps that were taken back is void."""
        self._unread, self._next_rest, self._verified_at = [], None, None

    def _diagnosed(self, call: Call | None, rows: Tensor) -> str:
        """Which of these rows of data is not finite; of several processes that which knows a site."""
        self._seed_step()
        found = "" if call is None else diagnose(self.svi, self._presented.batch(*call.inputs), rows)
        said: list[str] = [one for one in self.ranks.exchanged(found) if one]
        return next((one for one in said if not one.startswith(NO_DATUM)), said[0])

    def _prepare_engine(self, call: Call) -> None:
        """Have the first step of each epoch verified, and the first of all on the next batch too."""
        position, engine = self.position, self.svi.engine
        engine.verify_next |= position.batch == 0
        if not engine.steps and self.steps_per_epoch > 1:
            other = self._call(position.epoch, (position.batch + 1) % self.steps_per_epoch)
            call.second = other if other is not None and other.shapes == call.shapes else None

    def _here(self) -> tuple[Position, Any, Any]:
        scheduler = copy.deepcopy(self.torch_scheduler.state_dict()) if self.torch_scheduler is not None else None
        return replace(self.position, history=list(self.position.history)), self.best, scheduler

    def _go_back(self) -> None:
        """Compiled steps were wrong, or not finite, since the last that was verified: stand where it began."""
        self._unread = []
        self._next_rest = None
        self.position, self.best, scheduler = self._verified_at
        self.run.history = self.position.history
        if scheduler is not None:
            self.torch_scheduler.load_state_dict(scheduler)

    @functools.cached_property
    def _buffers(self) -> list[Tensor]:
        modules = [module for program in (self.model, self.guide) for module in modules_of(program).values()]
        return list({id(buffer): buffer for module in modules for buffer in module.buffers()}.values())

    def _seed_step(self) -> None:
        own = (self.ranks.rank,) if self.ranks.size > 1 else ()  # rows of two processes must not share their noise
        noise.seed_torch(noise.derived_seed(self.seed, "step", self.svi.steps_taken, *own), self.device)

    def _rows(self, epoch: int, batch: int) -> Tensor:
        if getattr(self, "_order_of", None) != epoch:
            self._order = torch.randperm(len(self.data), generator=noise.generator(self.seed, "order", epoch))
            self._order_of = epoch
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _own_rows(self, epoch: int, batch: int) -> Tensor:
        """The rows of a batch that are this process's."""
        rows = self._rows(epoch, batch)
        return rows[self.ranks.share(len(rows))]

    @functools.cached_property
    def _presented(self) -> Presented:
        return Presented(self.data, self.device)

    def _inputs(self, epoch: int, rows: Tensor) -> list[Tensor]:
        if getattr(self, "_seed_of", None) != epoch:
            self._binarize_seed, self._seed_of = noise.derived_seed(self.seed, "binarize", epoch), epoch
        return self._presented.inputs(rows, self._binarize_seed)

    def _call(self, epoch: int, batch: int) -> Call | None:
        """The batch, or this process's share of it; None where that has no rows."""
        rows = self._own_rows(epoch, batch)
        return Call(self._inputs(epoch, rows), self._arguments) if len(rows) else None

    def _arguments(self, *inputs: Tensor) -> tuple[tuple[Batch], dict[str, Any]]:
        return (self._presented.batch(*inputs),), {}

    def _finish_epoch(self, speed: float) -> None:
        position, step = self.position, self.svi.steps_taken
        self.ranks.take_from_first(self._buffers)
        self.ranks.check_equal(self.svi.leaves)
        row: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": step,
            "objective": -position.loss_sum / len(self.data),
            "beta": weight_at(self.svi.beta, step - 1),
            "likelihood_weight": weight_at(self.svi.likelihood_weight, step - 1),
            "gradient_norm": position.norm_sum / math.ceil(self.steps_per_epoch / NORM_EVERY),
            "steps_per_second": speed,
            "learning_rate": self._learning_rate(),
            **self._measured_unless_asked_to_stop(),
        }
        row = self.ranks.by_first(lambda: row)  # so that all choose the same epoch and stop at the same one
        if math.isnan(row["train_elbo"]):
            raise DivergedError("the ELBO is no number")
        position.epoch, position.batch, position.loss_sum, position.norm_sum = position.epoch + 1, 0, 0.0, 0.0
        position.history.append(row)
        self.run.history = position.history
        self._choose(row)
        if isinstance(self.torch_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.torch_scheduler.step(-row.get("validation_elbo", row["train_elbo"]))
        elif self.torch_scheduler is not None:
            self.torch_scheduler.step()
        elif hasattr(self.svi.optim, "pt_scheduler_constructor"):  # a PyroLRScheduler is optimizer and scheduler in one
            self.svi.optim.step()
        if self.ranks.by_first(lambda: self.callback is not None and self.callback(row) is False):
            position.stopped = "stopped by callback"

    def _measured_unless_asked_to_stop(self) -> dict[str, Any]:
        """The numbers of the epoch; of one process, which nobody waits for, they may be left for the resumed run.

        Raises:
            LeftUndone: A signal came; the generators are where they were.
        """
        if self.ranks.size > 1:
            return self._measured()
        before = generators.states(self.device)
        try:
            with self.interruption.leaving():
                return self._measured()
        except LeftUndone:
            generators.restore(before, self.device)
            raise

    def _measured(self) -> dict[str, Any]:
        """The ELBO at beta = 1 and its parts; for a pair that is trainable but not measurable, the objective's mean alone."""
        if self.pair is None:
            row = {"train_elbo": -self.position.loss_sum / len(self.data), "rate": math.nan, "distortion": math.nan}
            row |= {"active_units": 0, "units": 0}
            if self.validation is not None:
                losses = self._validation_losses()
                row |= {"validation_elbo": -sum(losses) / len(self.validation), "validation_elbo_se": math.nan}
            return row
        train = self._evaluate(self.data, rows_measured(self.data, self.validation))
        found = {"train_elbo": train.elbo}
        if self.validation is not None:
            train = self._evaluate(self.validation, len(self.validation))
            found |= {"validation_elbo": train.elbo, "validation_elbo_se": train.elbo_se}
        return found | {k: v for k, v in asdict(train).items() if not k.startswith("elbo")}

    def _evaluate(self, data: Data, n: int) -> Evaluation:
        slices = data.pieces(n)

        def pieces() -> Iterator[tuple[Pair, Batch]]:
            for rows in slices:
                x = self._measured_rows.batch(data, rows, self.device)
                yield Pair(self.model, self.guide, x, self.seed), x

        seed = noise.derived_seed(self.seed, "evaluate")  # the same draws each epoch: changes are the pair's
        if len(slices) > 1:
            return evaluate_pieces(pieces, n, seed)
        whole = list(pieces())  # a look at the pair costs some traces: one for all that is asked of it
        return evaluate_pieces(lambda: whole, n, seed)

    def _validation_losses(self) -> list[float]:
        assert self.validation is not None
        plain = SVI(self.model, self.guide, self.svi.optim, self.svi.objective)
        losses = []
        for rows in noise.blocks(len(self.validation), self.batch_size):
            x = each(self.validation.batch(rows), lambda part: part.to(self.device))
            with noise.seeded(self.seed, "evaluate", rows.start, device=self.device), eval_mode(self.model, self.guide):
                losses.append(plain.evaluate_loss(x))
        return losses

    def _choose(self, row: dict[str, Any]) -> None:
        """Keep the best epoch by validation ELBO at beta = 1, and stop when patience runs out; armed once the weights stand still."""
        if "validation_elbo" not in row or not self._weights_stand_still():
            return
        if not math.isfinite(row["validation_elbo"]):
            return
        if self.best is None or row["validation_elbo"] > self.best["value"]:
            tensors = snapshot(named_tensors(self.model, self.guide, self.svi.leaves))
            self.best = {"epoch": row["epoch"], "value": row["validation_elbo"], "tensors": tensors}
        elif self.out_of_patience:
            self.position.stopped = "patience"

    @property
    def out_of_patience(self) -> bool:
        """Whether so many epochs have passed since the best one."""
        return self.patience is not None and self.best is not None and self.position.epoch - self.best["epoch"] >= self.patience

    def _weights_stand_still(self) -> bool:
        last = self.epochs * self.steps_per_epoch - 1
        return all(still(weight, self.svi.steps_taken - 1, last) for weight in (self.svi.beta, self.svi.likelihood_weight))

    def _learning_rate(self) -> float | None:
        optimizer = self.svi.optim.torch_optimizer if isinstance(self.svi.optim, OneOptimizer) else None
        return float(optimizer.param_groups[0]["lr"]) * self.svi.shortened if optimizer is not None else None

    def save(self) -> None:
        """Write a checkpoint and the history, where the run has a folder and its parameters are finite: else the one before stands.

        Raises:
            RunError: The checkpoint cannot be written; the one before stands.
        """
        self.run.stopped = self.position.stopped
        if self.run.folder is not None and self.ranks.first and not self.spoiled:
            write_checkpoint(self, self.run.folder)
            self._saved_at = time.monotonic()

    def say_little_room(self, size: int) -> None:
        """Say, once, that checkpoints of so many bytes may soon not fit; they are written all the same."""
        said = little_room(self.run.folder, size) if self.run.folder is not None and not self._said_little_room else ""
        if said:
            self._said_little_room = True
            self.progress.say(f"note: {said}; it is tried all the same")


def _of_update(spoiled: list[str]) -> tuple[str, str]:
    """What is wrong, and where."""
    return "an update made parameters that are not finite", f"parameter {spoiled[0]}"


def still(weight: Weight, step: int, last: int) -> bool:
    """Whether a weight has reached the value that it has at the last step."""
    return not callable(weight) or step >= last or weight_at(weight, step) == weight_at(weight, last)


def rows_measured(data: Data, validation: Data | None) -> int:
    """How many training rows each epoch is measured on: as many as validate, at least 1,000, at most all."""
    return min(len(data), max(1000, len(validation) if validation is not None else 0))
