"""One training step: ``pyro.infer.SVI`` with one torch optimizer, weights, clipping, and a check before every update."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro.infer
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.util import torch_item, zero_grads
from pyro.optim import PyroOptim
from torch import Tensor

from ppvae.capture import NotCaptured
from ppvae.engine import MOST_SHAPES, WAIT, Call, Engine, Gradients, Untrue
from ppvae.errors import DivergedError, ObjectiveError, ProgramError, UnreliableWarning
from ppvae.gradient_bound import LARGEST
from ppvae.leaves import leaves_of_pair
from ppvae.modules import Program
from ppvae.objectives import ANCHOR, Scaled, Scales, Weight, is_jit, refuse_model_enumeration, refuse_weights, weight_at
from ppvae.optimizer import OneOptimizer, OptimizerFactory, PerParameter


class Rewound(Exception):  # noqa: N818  (no fault of the caller)
    """Compiled steps turned out not to be eager Pyro's; the parameters are back at the last step that was seen to be."""


@dataclass
class Verified:
    """Everything that a step changes, as it was before a step that was verified."""

    steps_taken: int
    tensors: list[tuple[Tensor, Tensor]]
    optimizer: Any


class SVI(pyro.infer.SVI):
    """``pyro.infer.SVI`` with the same ``step`` and ``evaluate_loss``: a training script changes one import.

    Args:
        model, guide: Any pair that the objective accepts.
        optimizer: A ``pyro.optim`` optimizer, which works as it always did; or a function of the parameters that builds a torch one,
            ``functools.partial(torch.optim.Adam, lr=1e-3)`` (with ``pyro.param`` they do not exist yet). The torch one is a single
            optimizer over the leaves of the loss's graph, unique by identity.
        objective: A Pyro ELBO, ``Trace_ELBO()`` by default, or a loss function ``(model, guide, *args)``.
        beta: Weight on the unobserved sites of both programs, >= 0, or a function of the step.
        likelihood_weight: Weight on the observed sites, likewise.
        clip_norm: Largest norm that the gradient of all parameters together may have.
        compile: True captures the programs and compiles the step of every batch shape, up to eight, when it first comes; "auto" after
            500 steps of that shape, so that short runs never wait for a compiler; False never. Where a pair cannot be captured, or a
            compiled step is not what eager Pyro computes, steps run eagerly, one warning says why, and ``engine.reason`` keeps it.
        precision: "bfloat16" runs the networks of compiled steps in bfloat16 where that pays (on a CPU from 256 rows): torch's autocast.
            Parameters, optimizer and sums stay as they are, and ``engine.shifts`` holds what it does to the loss, against eager float32
            with the same noise at every step that is verified.
        optim, loss: Pyro's own names for ``optimizer`` and ``objective``.

    Attributes:
        gradient_norm: Of the last step, before clipping; nan where it was not measured.
        measure_norm: Whether every step measures it. With False a step that does not clip may see in a cheaper way that the gradient is
            finite: a compiled one by a bound (``gradient_bound``), an eager one as it divides it by the number of data.
        also: Parameters to train besides the leaves of the densities: those that the objective alone reaches and no ``pyro.param`` names.

    Raises:
        ObjectiveError: A weight other than 1 with an objective in which it would not be the weighted ELBO.
        DivergedError: by ``step``, before the update, where the loss or a gradient is not finite.

    References:
        Hoffman, Blei, Wang, Paisley (2013), Stochastic variational inference. Higgins et al. (2017), beta-VAE.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optimizer: PyroOptim | OptimizerFactory | None = None,
        objective: Any = None,
        beta: Weight = 1.0,
        likelihood_weight: Weight = 1.0,
        clip_norm: float | None = None,
        compile: str | bool = "auto",
        precision: str = "float32",
        *,
        optim: PyroOptim | OptimizerFactory | None = None,
        loss: Any = None,
    ) -> None:
        optimizer = optimizer if optimizer is not None else optim
        self.objective = next((o for o in (objective, loss) if o is not None), None) or Trace_ELBO()
        check_compile(compile, precision)
        _check_optimizer(optimizer)
        if clip_norm is not None and not clip_norm > 0:
            raise ObjectiveError(f"clip_norm must be positive, got {clip_norm}", mend="clip_norm=None switches clipping off")
        adapted = optimizer if isinstance(optimizer, PyroOptim) else OneOptimizer(optimizer)  # type: ignore[arg-type]
        super().__init__(model, guide, adapted, loss=self.objective)
        self.beta, self.likelihood_weight, self.clip_norm = beta, likelihood_weight, clip_norm
        for name, weight in (("beta", beta), ("likelihood_weight", likelihood_weight)):
            if callable(weight) or weight_at(weight, 0) != 1:
                refuse_weights(self.objective, name)
        self.steps_taken = 0
        self.gradient_norm: float | Tensor = float("nan")
        self.measure_norm = True
        self.leaves: list[Tensor] = []
        self.also: list[Tensor] = []
        self._looked = False
        self._told = False
        self._per_parameter = PerParameter(adapted)
        self._scales = Scales()
        self.verified: Verified | None = None
        self.shortened = 1.0  # what of an update is taken
        anchored = isinstance(adapted, OneOptimizer) and isinstance(self.objective, ELBO) and not is_jit(self.objective)
        self._model = Scaled(model, self._scales)
        self._guide = Scaled(guide, self._scales, torch.zeros((), requires_grad=True) if anchored else None)
        self.engine = Engine(
            self._model,
            self._guide,
            self.objective,
            self._scales,
            scheduled=(callable(beta), callable(likelihood_weight)),
            clip_norm=clip_norm,
            wait={"auto": WAIT, True: 0, False: None}[compile],
            half=precision == "bfloat16",
        )
        if compile is True and not self.engine.on:
            self._say(self.engine.reason)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one optimizer step on a batch and return the loss before it.

        Raises:
            DivergedError: The loss or a gradient is not finite; no parameter was touched.
        """
        call = Call.of(args, kwargs)
        try:
            return self.take(call)  # type: ignore[return-value]  # read at once: only a loop defers
        except Rewound:
            return self.take(call)  # type: ignore[return-value]

    def take(self, call: Call, divisor: float = 1.0, data: float = 1.0, eagerly: bool = False) -> float | Tensor:
        """``step`` with the loss and its gradient over ``divisor``, and the sites of the data plate times ``data``.

        Args:
            call: The batch.
            divisor, data: Of the loss, and of its data terms.
            eagerly: Whether this step is not worth compiling: the last batch of an epoch.

        Returns:
            The loss; where ``engine.read_every`` is more than one, that of a compiled step is a tensor, and so is ``gradient_norm``: the
            caller reads them, and calls ``retake`` where one is not finite.

        Raises:
            Rewound: Compiled steps were wrong, and the pair is back at ``steps_taken``; later steps run eagerly. Or ``retake`` was called.
        """
        self._weigh(data)
        # The step in which parameters are born is eager: the engine would put their births back.
        found = self._compiled(call, divisor) if self.engine.on and self._looked and not eagerly else None
        if found is None:
            self.engine.settle()
            return self._eager_step(*call.arguments(*call.inputs), divisor)
        loss: float | Tensor = found.loss
        if self.engine.read_every == 1:
            loss = self._sound_loss(found)
        elif found.norm is not None:  # in every graph, where a loop reads late
            self.gradient_norm = found.norm
        self._update(found)
        self.steps_taken += 1
        return loss

    def _sound_loss(self, found: Gradients) -> float:
        """The loss of a compiled step, once loss and gradient are known to be finite.

        Raises:
            DivergedError: One of them is not.
        """
        loss, proved = found.loss.item(), found.bound.item() < LARGEST
        norm = found.norm
        if norm is None and (self.measure_norm or not proved or not abs(loss) < float("inf")):
            norm = norm_of(found.gradients)
        self.gradient_norm = float("nan") if norm is None else norm.item()
        if not (abs(loss) < float("inf") and (proved or self.gradient_norm < float("inf"))):
            self._diverged((loss,))
        return loss

    def retake(self) -> NoReturn:
        """Take the steps since the last verified one again, each read at once: one of them was not finite, and which, they tell themselves.

        Raises:
            Rewound: The pair is back at ``steps_taken``.
        """
        assert self.verified is not None  # the first step of every graph is
        # The state that is gone back to becomes the optimizer's own, so the step to come leaves another one.
        self.engine.read_every, self.engine.verify_next = 1, True
        self._go_back(self.verified)
        raise Rewound

    def _weigh(self, data: float) -> None:
        """Set the weights of the step to come."""
        self._scales.latent = weight_at(self.beta, self.steps_taken)
        self._scales.observed = weight_at(self.likelihood_weight, self.steps_taken)
        self._scales.data = data
        self._scales.step = self.steps_taken

    def _compiled(self, call: Call, divisor: float) -> Gradients | None:
        """Gradients by the engine; None where the step is to run eagerly."""
        try:
            found = self.engine.gradients(call, divisor)
        except (NotCaptured, Untrue) as reason:
            self.engine.settle()
            self._give_up(reason)
            return None
        if self.engine.crowded and not self._told:
            self._told = True
            self._say(f"batches of more than {MOST_SHAPES} shapes, or with numbers that change, came: the later ones run eagerly")
        if found is not None and found.verified:
            self.verified = self._remember(found.leaves, found.buffers)
        return found

    def _give_up(self, reason: NotCaptured | Untrue) -> None:
        """Compile no more.

        Raises:
            Rewound: Steps were taken that may have been wrong, and the pair is back before them.
        """
        if isinstance(reason, NotCaptured):
            self.engine.stop(str(reason))
            self._say(f"steps run eagerly: {reason}")
            return
        self.engine.stop(f"compiled steps were not what eager Pyro computes: {reason}")
        if self.verified is None:
            self._say(f"steps run eagerly: {reason}")
            return
        taken = self.steps_taken
        self._go_back(self.verified)
        self._say(f"compiled steps went wrong ({reason}): back from step {taken} to {self.steps_taken}, where they were right; on eagerly")
        raise Rewound from reason

    def _remember(self, leaves: list[Tensor], buffers: list[tuple[Tensor, Tensor]]) -> Verified:
        """The state before the step: parameters are not yet updated, and ``buffers`` come with what they held before."""
        kept = [(t, t.detach().clone()) for t in {id(t): t for t in (*leaves, *self.leaves)}.values()] + buffers
        if isinstance(self.optim, OneOptimizer):
            return Verified(self.steps_taken, kept, copy.deepcopy(self.optim.torch_optimizer and self.optim.torch_optimizer.state_dict()))
        return Verified(self.steps_taken, kept, {p: copy.deepcopy(own.state_dict()) for p, own in self.optim.optim_objs.items()})

    def _go_back(self, state: Verified) -> None:
        with torch.no_grad():
            for tensor, before in state.tensors:
                tensor.copy_(before)
        if isinstance(self.optim, OneOptimizer):
            if state.optimizer and self.optim.torch_optimizer is not None:
                self.optim.torch_optimizer.load_state_dict(state.optimizer)
        else:
            for p, own in list(self.optim.optim_objs.items()):
                if p in state.optimizer:
                    own.load_state_dict(state.optimizer[p])
                else:  # made since
                    del self.optim.optim_objs[p]
        self.steps_taken = state.steps_taken

    def _update(self, found: Gradients) -> None:
        if len(self.leaves) != len(found.leaves):
            self.leaves = list({id(p): p for p in [*self.leaves, *found.leaves]}.values())
        updating = self.optim if isinstance(self.optim, OneOptimizer) else self._per_parameter
        with self._shortening(found.leaves):
            updating.update(found.leaves, found.gradients)

    @contextlib.contextmanager
    def _shortening(self, params: list[Tensor]) -> Iterator[None]:
        """Have an update of ``params`` go ``shortened`` of its way: that rate of whatever learning rates optimizer and scheduler keep."""
        if self.shortened == 1:
            yield
            return
        before = [p.detach().clone() for p in params]
        yield
        with torch.no_grad():
            torch._foreach_lerp_(params, before, 1 - self.shortened)

    def forget_updates(self) -> None:
        """Let the optimizer know no parameter, as before the first step, and nothing compiled count as verified: the pair goes back."""
        if isinstance(self.optim, OneOptimizer):
            self.optim.forget()
        else:
            self.optim.optim_objs.clear()
            self.optim.grad_clip.clear()
            self._per_parameter = PerParameter(self.optim)
        self.verified, self.engine.verify_next = None, True

    def _say(self, reason: str) -> None:
        warnings.warn(reason, UnreliableWarning, stacklevel=4)

    def _loss_and_leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
        """The loss by Pyro's own objective, and the parameters that it left gradients in."""
        if not self._looked and isinstance(self.objective, TraceEnum_ELBO) and self._weighted:
            self.prepare_leaves(*args, **kwargs)  # refuses with the reason what Pyro would stop at without one
        with poutine.trace(param_only=True) as capture:
            loss = self.loss_and_grads(self._model, self._guide, *args, **kwargs)
        traced = _traced(capture)
        if not self._looked:
            self._look_at_leaves(traced, args, kwargs)
        params = list(traced.values())
        if isinstance(self.optim, OneOptimizer):
            params = self.leaves = list({id(p): p for p in [*self.leaves, *params]}.values())
        return loss, params

    def _eager_step(self, args: tuple[Any, ...], kwargs: dict[str, Any], divisor: float) -> float:
        loss, params = self._loss_and_leaves(args, kwargs)
        loss = type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss) / divisor
        self._check_and_clip(loss, params, divisor)
        with self._shortening(params):
            self.optim(params)
        if isinstance(self.optim, OneOptimizer):
            for param in params:  # a parameter that the next step does not touch is then left alone, as by an optimizer of its own
                param.grad = None
        else:
            zero_grads(params)
        self.steps_taken += 1
        return loss  # type: ignore[return-value]

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Find the leaves of the loss by a dry run and build the torch optimizer over them, before the first step.

        ``step`` does this by itself; call it where a torch scheduler must see the optimizer first.
        """
        self.prepare_leaves(*args, **kwargs)
        if isinstance(self.optim, OneOptimizer):
            self.optim.start([self.leaves])

    def prepare_leaves(self, *args: Any, **kwargs: Any) -> None:
        """Find the leaves of the loss by a dry run, in an order that is the same in every process."""
        with poutine.trace(param_only=True) as capture:
            leaves_of_pair(self.model, self.guide, args, kwargs)
        traced = _traced(capture)
        self._look_at_leaves(traced, args, kwargs)
        self.leaves = list({id(p): p for p in [*self.leaves, *traced.values()]}.values())

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch at the weights of the step to come; nothing is updated."""
        self._weigh(1.0)
        with torch.no_grad():
            loss = self.loss(self._model, self._guide, *args, **kwargs)
        return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)  # type: ignore[return-value]

    @property
    def _weighted(self) -> bool:
        return any(callable(weight) or weight_at(weight, 0) != 1 for weight in (self.beta, self.likelihood_weight))

    def _look_at_leaves(self, traced: dict[int, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find every leaf of the loss, also those that no ``pyro.param`` names: modules that a plain function closes over, and the
        second of two modules under one store key, which ``pyro.infer.SVI`` leaves untrained."""
        self._looked = True
        leaves, unmatched, drawn = leaves_of_pair(self._model, self._guide, args, kwargs)
        leaves = list({id(p): p for p in [*leaves, *self.also]}.values())
        if self._weighted:
            refuse_model_enumeration(self.objective, unmatched, drawn)
        self.leaves = leaves
        if isinstance(self.optim, OneOptimizer):
            return
        unnamed = [tuple(p.shape) for p in leaves if id(p) not in traced]
        if unnamed:
            raise ProgramError(
                f"{len(unnamed)} parameters of the loss stand under no pyro.param name of their own, so that a pyro.optim optimizer "
                f"would never train them (shapes {unnamed[:4]})",
                where="a module used without pyro.module, or two different modules under one name (model and guide both say 'net')",
                mend=["give a torch optimizer: functools.partial(torch.optim.Adam, lr=1e-3)", "register each under a name of its own"],
            )

    def _check_and_clip(self, loss: Any, params: list[Tensor], divisor: float) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        values = loss if isinstance(loss, tuple) else (loss,)
        sound = all(abs(value) < float("inf") for value in values)
        spared = sound and not self.measure_norm and self.clip_norm is None and are_single(gradients)
        if spared:
            spared = divided(gradients, divisor)
        elif divisor != 1.0 and gradients:
            torch._foreach_div_(gradients, divisor)
        norm = None if spared else norm_of(gradients)
        self.gradient_norm = float("nan") if norm is None else norm.item()
        if not (sound and (spared or self.gradient_norm < float("inf"))):
            zero_grads(params)
            self._diverged(values)
        if self.clip_norm is not None and norm is not None and gradients:
            torch.nn.utils.clip_grads_with_norm_(params, self.clip_norm, norm)

    def _diverged(self, losses: tuple[float, ...]) -> NoReturn:
        raise DivergedError(
            f"the loss is {' and '.join(f'{value:.6g}' for value in losses)} and the norm of its gradient {self.gradient_norm:.6g}",
            where=f"step {self.steps_taken}, before the update: no parameter was touched",
            mend=["lower the learning rate", "clip the gradient: clip_norm=10", "keep scales away from 0"],
        )


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, 0-d: torch's ``get_total_norm`` without its grouping, which is most of it for small networks."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) if gradients else torch.zeros(())


def are_single(gradients: list[Tensor]) -> bool:
    """Whether there are some, of float32 and on one device: what ``divided`` takes."""
    return {(g.dtype, g.device) for g in gradients} == {(torch.float32, gradients[0].device)} if gradients else False


def divided(gradients: list[Tensor], divisor: float) -> bool:
    """Divide gradients of float32, in place, and tell whether every entry is a number: in one pass, that of torch's ``GradScaler``."""
    none = torch.zeros(1, device=gradients[0].device, dtype=torch.float32)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, none, torch.full_like(none[0], 1 / divisor))
    return not none.item()


def _traced(capture: Any) -> dict[int, Tensor]:
    """The unconstrained parameters that a run of the programs named, by identity."""
    params = (site["value"].unconstrained() for name, site in capture.trace.nodes.items() if name != ANCHOR)
    return {id(p): p for p in params}


def check_compile(compile: str | bool, precision: str = "float32") -> None:
    """``compile`` is "auto", True or False, ``precision`` "float32" or "bfloat16"; the second is for compiled steps."""
    if precision not in ("float32", "bfloat16"):
        raise ObjectiveError(f"precision is 'float32' or 'bfloat16', got {precision!r}", mend="precision='float32'")
    if precision == "bfloat16" and compile is False:
        raise ObjectiveError("precision='bfloat16' is for compiled steps, and compile=False asks for none", mend="compile=True")
    if compile not in ("auto", True, False):
        raise ObjectiveError(f"compile is 'auto', True or False, got {compile!r}", mend="compile='auto'")


def _check_optimizer(optimizer: Any) -> None:
    example = "functools.partial(torch.optim.Adam, lr=1e-3)"
    if isinstance(optimizer, torch.optim.Optimizer):
        raise ObjectiveError(
            "a torch optimizer is given as a function of the parameters, since with pyro.param they do not exist yet",
            mend=f"optimizer={example}",
        )
    if not isinstance(optimizer, PyroOptim) and not callable(optimizer):
        raise ObjectiveError(f"optimizer is a pyro.optim optimizer or a function of the parameters, got {optimizer!r}", mend=example)


def check_objective(objective: Any) -> None:
    """An objective is a Pyro ELBO or a loss function.

    Raises:
        ObjectiveError: It is neither, perhaps the class instead of an object of it.
    """
    if isinstance(objective, type) or not (isinstance(objective, ELBO) or callable(objective)):
        raise ObjectiveError(f"objective is a Pyro ELBO object, got {objective!r}", mend="objective=pyro.infer.Trace_ELBO()")
