"""Reweighted wake-sleep: the guide learns the posterior from weighted draws; nothing is reparameterised, so latents may be discrete."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppvae.errors import ObjectiveError
from ppvae.modules import Program
from ppvae.objectives_traces import Cut, Objective, log_mean_weight, normalised
from ppvae.programs import in_data_plate, is_deterministic, sample_sites


class ReweightedWakeSleep(Objective):
    """Model: log (1/K) sum_k w_k. Guide: sum_k v_k log q(z_k | x), v_k = w_k / sum_j w_j (wake), E_p(x, z)[log q(z | x)] (sleep).

    Every datum has weights of its own. ``pyro.infer.ReweightedWakeSleep`` sums log w over the minibatch before it normalises: one datum's
    weight then rules all others, and its guide's gradient is another one for every batch size.

    The loss is minus the importance-weighted bound, nats of the batch; the guide's own objective is no bound and enters the gradient only.
    Both gradients are those of self-normalised importance sampling: the model's is unbiased for the bound, the guide's has a bias O(1/K).

    Args:
        num_particles: K, at least 2.
        wake: Share of the wake-phase gradient in the guide's, in [0, 1]; the rest is the sleep phase's, on one datum simulated from the
            model for each of the batch, which needs a batch that is one tensor and a model that observes one site.
        vectorize_particles, max_plate_nesting: As in Pyro's ELBOs.

    Raises:
        ObjectiveError: A site lies outside the data plate, or the sleep phase has no data to put in the batch's place.

    References:
        Bornschein, Bengio (2015), Reweighted wake-sleep, sec. 2.3. Le, Kosiorek, Siddharth, Teh, Wood (2019), Revisiting reweighted
        wake-sleep for models with stochastic control flow, sec. 3.
    """

    def __init__(
        self, num_particles: int = 8, wake: float = 1.0, *, vectorize_particles: bool = True, max_plate_nesting: float = math.inf
    ) -> None:
        super().__init__(num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting)
        if num_particles < 2:
            raise ObjectiveError(f"importance weights need at least 2 particles, got {num_particles}")
        if not 0 <= wake <= 1:
            raise ObjectiveError(f"wake is the share of the wake phase, in [0, 1], got {wake}")
        self.wake = wake

    def loss_and_surrogate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Minus the importance-weighted bound, and the sum of the model's and the guide's surrogate."""
        runs = self._runs(model, guide, args, kwargs)
        log_p = self._particles_first([self._by_datum(sites_p) for sites_p, _ in runs])
        log_q = self._particles_first([self._by_datum(sites_q) for _, sites_q in runs])
        log_weights, scale = log_p - log_q, self._scale(*runs[0])
        weights = normalised(log_weights)
        surrogate = -(weights * (log_p + self.wake * log_q)).sum()
        if self.wake < 1 and torch.is_grad_enabled():
            surrogate = surrogate + (1 - self.wake) * self._sleep(model, guide, args, kwargs)
        return -scale * log_mean_weight(log_weights).sum(), scale * surrogate

    def _sleep(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Minus log q(z | x) at a draw (x, z) of the model for every datum of the batch."""
        with torch.no_grad():
            dreamt = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        names = [name for name, site in sample_sites(dreamt).items() if site["infer"].get("was_observed") and not is_deterministic(site)]
        x = args[0] if len(args) == 1 and not kwargs else None
        simulated = dreamt.nodes[names[0]]["value"] if len(names) == 1 else None
        if not isinstance(x, Tensor) or simulated is None or simulated.shape != x.shape:
            raise ObjectiveError(
                "the sleep phase puts simulated data in the batch's place: it needs a batch that is one tensor, observed at one site",
                where=f"observed sites {names}, the batch is a {type(args[0]).__name__ if args else 'call without one'}",
                mend="wake=1.0",
            )
        found = sample_sites(poutine.trace(poutine.replay(guide, trace=dreamt)).get_trace(simulated.to(x.dtype)))
        return -torch.stack([self._density(name, site).sum() for name, site in found.items() if in_data_plate(site)]).sum()

    def _at_the_draws(self) -> contextlib.AbstractContextManager[Any]:
        return Cut(differentiable=False)
