"""Aggressive training of the guide: before every step of the model, steps of the guide alone, until its mutual information stops rising."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, device_of, each, num_data
from ppvae.data import Data
from ppvae.errors import ObjectiveError, check_count
from ppvae.leaves import graph_leaves, leaves_of_pair
from ppvae.modules import Program, eval_mode
from ppvae.objectives import Scaled, is_linear
from ppvae.optimizer import OptimizerFactory
from ppvae.pair import Pair
from ppvae.programs import measuring, sample_sites


class Aggressive(ELBO):
    """Another objective, for whose every step the guide is first trained alone, against collapse in the beginning.

    While it is aggressive, a step is: updates of the guide's parameters on fresh random batches of ``data``, until the mean loss of
    ``window`` of them is not below that of the ``window`` before, or ``most`` were taken; then the gradient of the step's own batch in
    the model's parameters, the guide's left without. A parameter of both counts as the guide's. Every ``every`` steps the mutual
    information I(x; z) of the guide is measured; where it has not risen since the last time, every later step is the objective's own.

    The loss is the objective's, nats of the batch, after the guide's updates. A cost of up to ``most`` + 1 steps for one.

    What is kept from step to step, whether it still is aggressive, is no part of a checkpoint: a resumed run begins aggressive again.

    Args:
        data: Training data, (N, *event): a ``Data``, a tensor, an array, a tuple or dict of them.
        objective: ``Trace_ELBO()`` by default.
        optimizer: Of the guide's own updates, begun anew for every step; of gradients in nats per datum. By default
            ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        window, most: Of the guide's updates, above.
        every: Steps between measurements of the mutual information; by default a pass over ``data``.
        num_mutual: It is measured on the first so many data.
        seed: Of the draws of the measurement.

    Attributes:
        aggressive: Whether the last step was, or the next one is if nothing is measured before it.
        inner_updates: Updates of the guide alone so far.
        record: A row {"step", "mutual_information", "inner_updates", "aggressive"} for each measurement. Copies of the objective share
            it: ``fit`` trains with a copy.

    Raises:
        ObjectiveError: Several processes train together.

    References:
        He, Spokoyny, Neubig, Berg-Kirkpatrick (2019), Lagging inference networks and posterior collapse, algorithm 1.
    """

    not_captured = "the guide is trained inside of them"

    def __init__(
        self,
        data: Data | Batch,
        objective: Any = None,
        optimizer: OptimizerFactory | None = None,
        *,
        window: int = 10,
        most: int = 100,
        every: int | None = None,
        num_mutual: int = 500,
        seed: int = 0,
    ) -> None:
        self.objective = objective if objective is not None else Trace_ELBO()
        if not isinstance(self.objective, ELBO):
            raise ObjectiveError(f"objective is a Pyro ELBO object, got {objective!r}", mend="objective=Trace_ELBO()")
        super().__init__(num_particles=self.objective.num_particles, vectorize_particles=self.objective.vectorize_particles)
        for name, value in (("window", window), ("most", most), ("num_mutual", num_mutual)):
            check_count(name, value)
        if every is not None:
            check_count("every", every)
        self.data = Data.of(data)
        self.optimizer = optimizer if optimizer is not None else functools.partial(torch.optim.Adam, lr=1e-3)
        self.window, self.most, self.every, self.num_mutual, self.seed = window, most, every, num_mutual, seed
        self.linear = is_linear(self.objective)
        self.aggressive, self.steps, self.inner_updates = True, 0, 0
        self.information = -math.inf
        self.record: list[dict[str, Any]] = []

    def __str__(self) -> str:
        told = {"window": self.window, "most": self.most, "every": self.every, "num_mutual": self.num_mutual, "seed": self.seed}
        inner = f"{type(self.objective).__name__}(num_particles={self.num_particles})"
        return f"Aggressive({inner}, {', '.join(f'{k}={v}' for k, v in told.items())})"

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The objective's loss."""
        return self.objective.loss(model, guide, *args, **kwargs)  # type: ignore[no-any-return]

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The objective's loss; while aggressive, the guide is trained before and has no gradient after."""
        if self.aggressive and self.steps and self.steps % (self.every or math.ceil(len(self.data) / num_data(args[0]))) == 0:
            self._measure(model, guide, args[0])
        if not self.aggressive:
            return self.objective.loss_and_grads(model, guide, *args, **kwargs)  # type: ignore[no-any-return]
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ObjectiveError("aggressive updates are taken by one process, and several train together", mend="train in one process")
        x = args[0]
        with poutine.block():  # what SVI trains is what the step's own run shows it, below
            every_leaf, _, _ = leaves_of_pair(model, guide, args, kwargs)
            of_guide = guide_leaves(guide, x)
        self._train_guide(model, guide, x, of_guide, every_leaf)
        loss: float = self.objective.loss_and_grads(model, guide, *args, **kwargs)
        _forget(of_guide)
        self.steps += 1
        return loss

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _train_guide(self, model: Program, guide: Program, x: Batch, of_guide: list[Tensor], every_leaf: list[Tensor]) -> None:
        """Update the guide's parameters until a window of losses is not below the window before."""
        if not of_guide:
            return
        optimizer, n = self.optimizer(of_guide), num_data(x)
        before, total = math.inf, 0.0
        for update in range(1, self.most + 1):
            rows = torch.randint(len(self.data), (n,))
            batch = each(self.data.batch(rows, torch.default_generator), lambda part: part.to(device_of(x)))
            loss = self.objective.loss_and_grads(model, guide, batch) / n
            if not math.isfinite(loss):
                break  # what the step then makes of it is its own to tell
            for leaf in of_guide:
                if leaf.grad is not None:
                    leaf.grad = leaf.grad / n
            optimizer.step()
            _forget(of_guide)
            self.inner_updates += 1
            total += loss
            if update % self.window == 0:
                if not total < before:
                    break
                before, total = total, 0.0
        _forget(every_leaf)

    def _measure(self, model: Program, guide: Program, x: Batch) -> None:
        shown = self.data.batch(slice(0, min(self.num_mutual, len(self.data))))
        found = mutual_information(_plain(model), _plain(guide), each(shown, lambda part: part.to(device_of(x))), self.seed)
        self.aggressive, self.information = found > self.information, found
        row = {"step": self.steps, "mutual_information": found, "inner_updates": self.inner_updates, "aggressive": self.aggressive}
        self.record.append(row)


def mutual_information(model: Program, guide: Program, x: Batch, seed: int = 0) -> float:
    """I(x; z) = E_x E_q[log q(z | x) - log (1/N) sum_j q(z | x_j)] over these data, one draw per datum, nats; at most log N.

    References:
        Hoffman, Johnson (2016), ELBO surgery, sec. 2.
    """
    with poutine.block():  # whoever trains outside must not take what is measured here for a part of the loss
        pair = Pair(model, guide, x, seed)
        index = slice(0, pair.num_data)
        with noise.seeded(seed, "mutual", device=pair.device), measuring(model, guide):
            values, log_q = pair.draw(x, index, 1)
            own = torch.stack(list(log_q.values())).sum(0)[0]
            marginal = []
            for block in noise.blocks(pair.num_data, 64):
                crossed = {name: pair.crossed(value, name, block, pair.num_data) for name, value in values.items()}
                densities = torch.stack(list(pair.guide_score(x, index, crossed).values())).sum(0)
                marginal.append(densities.logsumexp(1) - math.log(pair.num_data))
    return (own - torch.cat(marginal)).mean().item()


def guide_leaves(guide: Program, x: Batch) -> list[Tensor]:
    """The leaf tensors with gradient behind the guide's log densities, by a dry run in eval mode that costs no draw."""
    with noise.forked(device_of(x)), eval_mode(guide), torch.enable_grad(), pyro.validation_enabled(False):
        sites = sample_sites(poutine.trace(guide).get_trace(x)).values()
        densities = [site["fn"].log_prob(site["value"]).sum() for site in sites if not site["is_observed"]]
    return graph_leaves(torch.stack(densities).sum()) if densities else []


def _forget(leaves: list[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None


def _plain(program: Program) -> Program:
    return program.__wrapped__ if isinstance(program, Scaled) else program
