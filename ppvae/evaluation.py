"""The numbers of one epoch: ELBO at beta = 1, rate, distortion and active units of a pair on a set of data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.programs import Pair, measuring

ACTIVE = 0.01  # Burda et al. (2016), sec. 5.1.2: a unit is active where Var_x(E_q[u]) exceeds this


@dataclass(frozen=True)
class Evaluation:
    """Means over a set of data, nats."""

    elbo: float
    elbo_se: float
    rate: float
    distortion: float
    active_units: int
    units: int


def evaluate(pair: Pair, x: Batch, seed: int) -> Evaluation:
    """Evaluate a pair on (N, *event), eval mode, with some 5,000 draws in all and at least one per datum."""
    n = pair.num_data
    particles = min(64, max(1, math.ceil(5000 / n)))
    elbo, rate, distortion = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    for terms in pair.stream(x, num_particles=particles, seed=seed):
        share = (terms.particles.stop - terms.particles.start) / particles
        elbo[terms.rows] += terms.log_weights.mean(0).cpu() * share
        rate[terms.rows] += terms.rate.mean(0).cpu() * share
        distortion[terms.rows] += terms.distortion.mean(0).cpu() * share
    variance = unit_variances(pair, x, seed)
    return Evaluation(
        elbo.mean().item(),
        (elbo.std() / math.sqrt(n)).item() if n > 1 else math.nan,
        rate.mean().item(),
        distortion.mean().item(),
        int(sum((v > ACTIVE).sum() for v in variance.values())),
        sum(v.numel() for v in variance.values()),
    )


def unit_variances(pair: Pair, x: Batch, seed: int, num_particles: int = 1) -> dict[str, Tensor]:
    """Var_x(E_q[z_u | x]) of every latent unit by site, (units,), float64.

    The posterior means are exact where the guide's distribution has one that no earlier draw moves, else averages of K draws.

    References:
        Burda, Grosse, Salakhutdinov (2016), sec. 5.1.2.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    for rows in noise.blocks(pair.num_data, 1024):
        with noise.seeded(seed, "means", rows.start, device=pair.device), measuring(pair.model, pair.guide):
            for name, mean in pair.posterior_means(take(x, rows), rows, num_particles).items():
                parts[name].append(mean.double().cpu().flatten(1) if mean.dim() > 1 else mean.double().cpu()[:, None])
    return {name: torch.cat(means).var(0, correction=0) for name, means in parts.items()}
