"""Gradients without the score of the guide: doubly reparameterised (importance-weighted) and sticking the landing (the ELBO).

In both the draw z(phi) is followed and the density log q(z; phi) is held at its parameters. What is left out has expectation 0 in the
ELBO; in the importance-weighted bound it does not, and the square of the weights is what it is worth.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from ppvae.errors import ObjectiveError
from ppvae.modules import Program
from ppvae.objectives_traces import Cut, Objective, log_mean_weight, normalised, pathwise, refuse_unreparameterised

TWO_PASSES = "its gradient is taken in two passes, of which a compiled step has one"


class DoublyReparameterized(Objective):
    """Log (1/K) sum_k p(x, z_k) / q(z_k | x) with doubly reparameterised gradients of the guide (IWAE-DReG).

    With v_k = w_k / sum_j w_j the gradient in the guide's parameters is sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi), in the model's
    sum_k v_k d log p(x, z_k) / d theta: unbiased for the gradient of the importance-weighted bound.

    The loss is minus that bound, as of ``RenyiELBO(alpha=0)``, nats of the batch.

    Args:
        num_particles: K, at least 2: with one it is ``StickingTheLanding``.
        vectorize_particles, max_plate_nesting: As in Pyro's ELBOs.

    Raises:
        ObjectiveError: A latent is not reparameterised, or lies outside the data plate.

    References:
        Tucker, Lawson, Gu, Maddison (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives, eq. 6.
    """

    not_captured = TWO_PASSES

    def __init__(self, num_particles: int = 8, *, vectorize_particles: bool = True, max_plate_nesting: float = math.inf) -> None:
        super().__init__(num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting)
        if num_particles < 2:
            raise ObjectiveError(f"importance weights need at least 2 particles, got {num_particles}", mend="StickingTheLanding()")

    def loss_and_surrogate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Minus the importance-weighted bound, and the surrogate of its doubly reparameterised gradient."""
        runs = self._runs(model, guide, args, kwargs)
        for _, sites_q in runs:
            refuse_unreparameterised(self, sites_q)
        log_p = self._particles_first([self._by_datum(sites_p) for sites_p, _ in runs])
        log_q = self._particles_first([self._by_datum(sites_q) for _, sites_q in runs])
        log_weights, scale = log_p - log_q, self._scale(*runs[0])
        weights = normalised(log_weights)
        # The square stands for the score term of the weights, which the first power alone would need (ibid., eq. 5).
        path = pathwise((weights.square() * log_weights).sum(), [sites_q for _, sites_q in runs])
        return -scale * log_mean_weight(log_weights).sum(), -scale * ((weights * log_p).sum() + path)

    def _at_the_draws(self) -> contextlib.AbstractContextManager[Any]:
        return Cut(differentiable=torch.is_grad_enabled())


class StickingTheLanding(Objective):
    """E_q[log p(x, z) - log q(z | x)] with the path derivative alone: 0, draw by draw, where the guide is the posterior.

    The gradient in the guide's parameters is (d [log p(x, z) - log q(z | x)] / dz) (dz / d phi), without the score
    d log q(z; phi) / d phi, whose expectation is 0. Weights (``beta``, ``likelihood_weight``) scale it as they scale ``Trace_ELBO``.

    The loss is minus the ELBO, as of ``Trace_ELBO``, nats of the batch.

    Args:
        num_particles, vectorize_particles, max_plate_nesting: As in Pyro's ELBOs.

    Raises:
        ObjectiveError: A latent is not reparameterised.

    References:
        Roeder, Wu, Duvenaud (2017), Sticking the landing, sec. 3.
    """

    linear = True
    not_captured = TWO_PASSES

    def loss_and_surrogate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Minus the ELBO, and the surrogate of its path derivative."""
        runs = self._runs(model, guide, args, kwargs)
        log_p, log_q = self._total([sites_p for sites_p, _ in runs]), self._total([sites_q for _, sites_q in runs])
        for _, sites_q in runs:
            refuse_unreparameterised(self, sites_q)
        return log_q - log_p, -log_p - pathwise(log_p - log_q, [sites_q for _, sites_q in runs])

    def _total(self, runs: list[Any]) -> Tensor:
        """Mean over particles of the scaled log densities of all sites."""
        found = [(self._density(name, site) * site["scale"]).sum() for sites in runs for name, site in sites.items()]
        total: Tensor = torch.stack(found).sum() / self.num_particles
        return total

    def _at_the_draws(self) -> contextlib.AbstractContextManager[Any]:
        return Cut(differentiable=torch.is_grad_enabled())
