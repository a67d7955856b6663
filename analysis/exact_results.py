"""What exact answers return: the evidence with a bound on its error, and the posterior as nodes and draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Estimate, Provenance, as_lists, label, mean_of


@dataclass(frozen=True, eq=False)
class ExactLogLikelihood:
    """log p(x) of each datum, nats, up to an error that is bounded instead of sampled.

    Attributes:
        pointwise: (N,).
        error_bound: (N,), nats: the cubature's bound (see ``ppvae.quadrature.Integral``) and an allowance for rounding, 4 epsilons of the
            programs' dtype relative to log p(x). Enumeration and closed forms have rounding alone.
        method: "closed form", "enumeration", "quadrature" or "quadrature and enumeration".
        num_evaluations: (N,), of log p(x, z); 0 for a closed form.
        source: Where the number came from.
    """

    pointwise: Tensor
    error_bound: Tensor
    method: str
    num_evaluations: Tensor
    source: Provenance

    @property
    def mean(self) -> Estimate:
        """Mean over the data; its Monte Carlo error is 0."""
        return mean_of(self.pointwise, torch.zeros_like(self.pointwise))

    def __str__(self) -> str:
        return (
            f"log p(x) = {self.mean.value:.2f} ± {self.mean.data_se:.2f} (data) nats, exact to {self.error_bound.max():.2g} "
            f"(N={len(self.pointwise)}; {self.method}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"mean": vars(self.mean)}


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """p(z | x) of each datum: the nodes of the integral with their probabilities, and draws.

    Attributes:
        nodes: By datum, the latents at M_n nodes, {site: (M_n, *plates, *event)}. Discrete latents take their states, continuous ones the
            nodes of the cubature; probabilities below 1e-12 are left out.
        log_probs: By datum, (M_n,), log of the nodes' probabilities; they sum to 1.
        draws: {site: (K, N, *plates, *event)}. Continuous latents are drawn between the nodes, by the density interpolated in each cell.
        log_likelihood: The evidence that came with it.
    """

    nodes: list[dict[str, Tensor]]
    log_probs: list[Tensor]
    draws: dict[str, Tensor]
    log_likelihood: ExactLogLikelihood

    def expectation(self, site: str, power: int = 1) -> Tensor:
        """E[z^power | x] at a site, (N, *plates, *event), float64: a sum over the nodes, without Monte Carlo error."""
        means = []
        for values, log_probs in zip(self.nodes, self.log_probs, strict=True):
            value = values[site].double() ** power
            means.append((value * log_probs.exp().reshape(-1, *[1] * (value.dim() - 1))).sum(0))
        return torch.stack(means)
