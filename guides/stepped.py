"""A guide whose rows are moved by a few steps on the ELBO of each datum: what semi-amortized and iterative inference share.

The guide gives each datum a row of parameters. A step draws latents by the row, takes the gradient of log p(x, z) - log q(z; row) by it,
and moves it. The draws of a step are common to all data, so that no datum's row depends on its place in a batch; in eval mode they are
the same at every call too, and q(z | x) is a function of x alone.
"""

from __future__ import annotations

import abc
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, device_of, digest, num_data, repeat, take
from ppvae.errors import FamilyError, ProgramError, check_count
from ppvae.guides.from_model import Latents
from ppvae.local import LocalPosterior, LocalUnconstrained
from ppvae.memory import Halving
from ppvae.modules import Program, modules_of
from ppvae.programs import latent_sites, measuring, sample_sites, trace

ROWS_AT_ONCE = 1024


class Stepped:
    """Any guide with ``parameters_at(x)`` and ``family``, or of ``guides.for_model``, with its rows moved by ``_moved``.

    Args:
        guide: Where the rows come from.
        model: What the steps climb; also set by ``model`` afterwards. Measurements hand in their own.
        steps: Steps; 0 leaves the guide as it is.
        num_draws: Draws a step and datum.
        seed: Rules the draws in eval mode.
    """

    def __init__(self, guide: Program, model: Program | None, steps: int, num_draws: int, seed: int) -> None:
        check_count("steps", steps, 0)
        check_count("num_draws", num_draws)
        if not hasattr(guide, "parameters_at") or not (hasattr(guide, "family") or isinstance(guide, Latents)):
            raise FamilyError(
                f"the steps move the rows of a guide, and {type(guide).__name__} has none to move",
                mend="give the guide parameters_at(x) -> (N, P) and an attribute family (ppvae.families), or take guides.for_model(...)",
            )
        self.guide: Any = guide
        self.model, self.steps, self.num_draws, self.seed = model, steps, num_draws, seed
        self._site = ""

    def parameters_at(self, x: Batch) -> Tensor:
        """The rows after the steps, (N, P), with derivatives by the guide's parameters where gradients are recorded.

        Raises:
            ProgramError: No model was handed in.
        """
        for name, module in modules_of(self.guide).items():  # Pyro's own SVI trains what the store holds
            pyro.module(f"stepped_guide.{name}" if name else "stepped_guide", module)
        training = any(module.training for module in modules_of(self.guide).values())
        return self._stepped(x, self._own_model(), recorded=torch.is_grad_enabled(), fixed=not training)

    def __call__(self, x: Batch) -> None:
        """Draw the latents of x.

        Raises:
            ProgramError: No model was handed in.
        """
        self._find_site(x)
        self._declare(self.parameters_at(x))

    def prepared(self, model: Program, x: Batch) -> LocalPosterior | LocalUnconstrained:
        """The guide for these data, its rows stepped once: what measurements ask for.

        Args:
            model: What to climb.
            x: The whole batch, (N, *event).
        """
        with measuring(model, self):
            self._find_site(take(x, slice(0, 2)))
            at_once: Halving[Tensor] = Halving(ROWS_AT_ONCE, "steps of the guide", block_rows=1)  # no datum's draws are another's
            blocks = noise.blocks(num_data(x), ROWS_AT_ONCE)
            table = torch.cat([part for rows in blocks for part in at_once(rows, lambda some: self._stepped(take(x, some), model))])
        name = f"{type(self).__name__}, {self.steps} steps"
        local: Any
        if isinstance(self.guide, Latents):
            local = LocalUnconstrained(self.guide.sites, self.guide.joint, table, name)
        else:
            local = LocalPosterior({self._site: self.guide.family}, {self._site: table}, name)
            local.family, local.parameters_at = self.guide.family, lambda rows: self._stepped(rows, model)  # what a refinement frees
        local.belongs_to = digest(x)
        local.num_evaluations = self.steps * self.num_draws
        return local  # type: ignore[no-any-return]

    @abc.abstractmethod
    def _moved(self, row: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The rows after one step, (N, P)."""

    @property
    def _family(self) -> Any:
        return self.guide.joint if isinstance(self.guide, Latents) else self.guide.family

    def _own_model(self) -> Program:
        if self.model is None:
            name = type(self).__name__
            raise ProgramError(
                "the guide needs its model to run: it climbs the ELBO of each datum",
                mend=[f"{name}(guide, model=model, ...)", f"analysis.elbo(model, {name}(guide, ...), x), which hands it in"],
            )
        return self.model

    def _find_site(self, x: Batch) -> None:
        if self._site or isinstance(self.guide, Latents):
            return
        with poutine.block(), noise.forked(device_of(x)), torch.no_grad():
            names = latent_sites(trace(self.guide, x))
        if len(names) != 1:
            raise FamilyError(
                f"the steps move the rows of one latent site, and the guide draws {names}",
                mend="guides.for_model(model, x, network), which holds all sites in one row",
            )
        self._site = names[0]

    def _declare(self, row: Tensor) -> None:
        """The guide's sites at given rows."""
        if isinstance(self.guide, Latents):
            self.guide.declare(row)
            return
        with pyro.plate("data", len(row), dim=-1):
            pyro.sample(self._site, self.guide.family.distribution(row))

    def _stepped(self, x: Batch, model: Program, *, recorded: bool = False, fixed: bool = True) -> Tensor:
        """The rows of x after all steps; ``recorded``: with the derivatives of the steps themselves; ``fixed``: by the seed's draws."""
        self._find_site(x)
        row: Tensor = self.guide.parameters_at(x)
        row = row if recorded else row.detach()
        repeated = repeat(x, self.num_draws)
        for step in range(self.steps):
            with torch.enable_grad(), poutine.block():  # what the steps run is no part of this program
                at = row if row.requires_grad else row.requires_grad_(True)
                with noise.seeded(self.seed, "step", step, device=at.device) if fixed else nullcontext():
                    draws = common_draws(self._family, at, self.num_draws)
                elbo = self._elbo(repeated, at, draws, model)
                (gradient,) = torch.autograd.grad(elbo, at, create_graph=recorded and self.differentiated)
            row = self._moved(at, gradient, step)
            row = row if recorded else row.detach()
        return row

    differentiated = True  # whether the gradient of a step is differentiated in its turn

    @property
    def passes_gradients(self) -> bool:
        """Whether training goes through the steps to all parts of the guide."""
        return True

    def _elbo(self, repeated: Batch, row: Tensor, draws: Tensor, model: Program) -> Tensor:
        """sum_n of the ELBO of each datum, by draws (S, N, *event)."""
        name = "_unconstrained" if isinstance(self.guide, Latents) else self._site
        found = trace(lambda _: self._declare(row.repeat(self.num_draws, 1)), repeated, {name: draws.flatten(0, 1)})
        values = {site: part["value"] for site, part in sample_sites(found).items()}
        log_p, log_q = trace(model, repeated, values).log_prob_sum(), found.log_prob_sum()
        elbo: Any = (log_p - log_q) / self.num_draws
        return elbo  # type: ignore[no-any-return]


def common_draws(family: Any, row: Tensor, num_draws: int) -> Tensor:
    """Reparameterised draws, (S, N, *event), all data by the same noise.

    Raises:
        FamilyError: The family's draws have no derivatives.
    """
    with pyro.validation_enabled(False):
        if not family.distribution(row[:1]).has_rsample:
            raise FamilyError(
                f"the draws of {type(family).__name__} have no derivatives, so no gradient moves its rows",
                mend="a family whose distribution has rsample: guides.Mixture in place of a plain mixture",
            )

        def draw(one: Tensor) -> Tensor:
            base = family.distribution(one)
            while hasattr(base, "transforms"):
                base = base.base_dist
            return base.rsample(torch.Size([num_draws]))  # type: ignore[no-any-return]

        drawn: Tensor = torch.func.vmap(draw, out_dims=1, randomness="same")(row)
        for transform in _transforms(family.distribution(row)):
            drawn = transform(drawn)
        return drawn


def _transforms(distribution: Any) -> list[Any]:
    """What takes the innermost base's draws to the distribution's, in order."""
    if not hasattr(distribution, "transforms"):
        return []
    return [*_transforms(distribution.base_dist), *distribution.transforms]
