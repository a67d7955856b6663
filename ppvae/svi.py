"""One training step: ``pyro.infer.SVI`` with one torch optimizer, weights, clipping, and a check before every update."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.util import torch_item, zero_grads
from pyro.optim import PyroOptim
from torch import Tensor

from ppvae.errors import DivergedError, ObjectiveError, ProgramError
from ppvae.leaves import leaves_of_pair
from ppvae.modules import Program
from ppvae.objectives import ANCHOR, Scaled, Scales, Weight, is_jit, refuse_model_enumeration, refuse_weights, weight_at

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class OneOptimizer(PyroOptim):
    """One torch optimizer over every leaf of the loss, where Pyro keeps one per parameter."""

    def __init__(self, factory: OptimizerFactory) -> None:
        self.factory = factory
        self.torch_optimizer: torch.optim.Optimizer | None = None
        self._known: set[int] = set()

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

    def _built(self, params: list[Tensor]) -> torch.optim.Optimizer:
        if not params:
            raise ObjectiveError(
                "the loss depends on no parameter, so there is nothing to train",
                mend="give model or guide parameters: torch modules, or pyro.param",
            )
        try:
            return self.factory(params)
        except (ValueError, TypeError) as error:
            raise ObjectiveError(f"the optimizer cannot be built over the parameters: {error}") from error

    @property
    def groups(self) -> list[list[Tensor]]:
        """The leaves in the order in which the optimizer knows them."""
        return [list(group["params"]) for group in self.torch_optimizer.param_groups] if self.torch_optimizer else []


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
        compile: "auto" or False. This version runs every step eagerly.
        optim, loss: Pyro's own names for ``optimizer`` and ``objective``.

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
        *,
        optim: PyroOptim | OptimizerFactory | None = None,
        loss: Any = None,
    ) -> None:
        optimizer = optimizer if optimizer is not None else optim
        self.objective = next((o for o in (objective, loss) if o is not None), None) or Trace_ELBO()
        check_compile(compile)
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
        self.gradient_norm = float("nan")
        self.leaves: list[Tensor] = []
        self._looked = False
        self._scales = Scales()
        anchored = isinstance(adapted, OneOptimizer) and isinstance(self.objective, ELBO) and not is_jit(self.objective)
        self._model = Scaled(model, self._scales)
        self._guide = Scaled(guide, self._scales, torch.zeros((), requires_grad=True) if anchored else None)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one optimizer step on a batch and return the loss before it.

        Raises:
            DivergedError: The loss or a gradient is not finite; no parameter was touched.
        """
        return self.scaled_step(args, kwargs)

    def scaled_step(self, args: tuple[Any, ...], kwargs: dict[str, Any], divisor: float = 1.0, data: float = 1.0) -> float:
        """``step`` with the loss and its gradient over ``divisor``, and the sites of the data plate times ``data``."""
        self._scales.latent = weight_at(self.beta, self.steps_taken)
        self._scales.observed = weight_at(self.likelihood_weight, self.steps_taken)
        self._scales.data = data
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
        loss = type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss) / divisor
        self._check_and_clip(loss, params, divisor)
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
        self._scales.latent = weight_at(self.beta, self.steps_taken)
        self._scales.observed = weight_at(self.likelihood_weight, self.steps_taken)
        self._scales.data = 1.0
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
        if divisor != 1.0 and gradients:
            torch._foreach_div_(gradients, divisor)
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        self.gradient_norm = norm.item()
        values = loss if isinstance(loss, tuple) else (loss,)
        if not (all(abs(value) < float("inf") for value in values) and self.gradient_norm < float("inf")):
            zero_grads(params)
            raise DivergedError(
                f"the loss is {loss} and the norm of its gradient {self.gradient_norm}",
                where=f"step {self.steps_taken}, before the update: no parameter was touched",
                mend=["lower the learning rate", "clip the gradient: clip_norm=10", "keep scales away from 0"],
            )
        if self.clip_norm is not None and gradients:
            torch.nn.utils.clip_grads_with_norm_(params, self.clip_norm, norm)


def _traced(capture: Any) -> dict[int, Tensor]:
    """The unconstrained parameters that a run of the programs named, by identity."""
    params = (site["value"].unconstrained() for name, site in capture.trace.nodes.items() if name != ANCHOR)
    return {id(p): p for p in params}


def check_compile(compile: str | bool) -> None:
    """ "auto" and False run eagerly; True asks for what this version does not have."""
    if compile not in ("auto", False):
        raise ObjectiveError(f"compile is 'auto' or False in this version, got {compile!r}: steps run eagerly", mend="compile='auto'")


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
