"""The numbers of one epoch: ELBO at beta = 1, rate, distortion and active units of a pair on a set of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.memory import Halving
from ppvae.pair import Pair
from ppvae.programs import measuring
from ppvae.stream import stream

Means = dict[str, Tensor]  # by latent site
Pieces = Callable[[], Iterable[tuple[Pair, Batch]]]  # asked for more than once: the data, piece by piece
ROWS = 1024  # data whose posterior means draw from one seed
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
    return evaluate_pieces(lambda: [(pair, x)], pair.num_data, seed)


def evaluate_pieces(pieces: Pieces, n: int, seed: int) -> Evaluation:
    """The same of n data that come in pieces: a data set that does not fit in memory."""
    particles = min(64, max(1, math.ceil(5000 / n)))
    elbo, rate, distortion = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    for first, pair, x, own_seed in _placed(pieces, seed):
        for terms in stream(pair, x, num_particles=particles, seed=own_seed):
            rows = slice(first + terms.rows.start, first + terms.rows.stop)
            share = (terms.particles.stop - terms.particles.start) / particles
            elbo[rows] += terms.log_weights.mean(0).cpu() * share
            rate[rows] += terms.rate.mean(0).cpu() * share
            distortion[rows] += terms.distortion.mean(0).cpu() * share
    variance = _unit_variances(pieces, seed, 16)
    return Evaluation(
        elbo.mean().item(),
        (elbo.std() / math.sqrt(n)).item() if n > 1 else math.nan,
        rate.mean().item(),
        distortion.mean().item(),
        int(sum((v > ACTIVE).sum() for v in variance.values())),
        sum(v.numel() for v in variance.values()),
    )


def unit_variances(pair: Pair, x: Batch, seed: int, num_particles: int = 16) -> dict[str, Tensor]:
    """Var_x(E_q[z_u | x]) of every latent unit by site, (units,), float64.

    Exact over these data where the guide's distribution has a mean that no earlier draw moves. Elsewhere the covariance of two
    independent averages of K draws: unbiased, where the variance of one average would carry the guide's own variance over K.

    References:
        Burda, Grosse, Salakhutdinov (2016), sec. 5.1.2.
    """
    return _unit_variances(lambda: [(pair, x)], seed, num_particles)


def _unit_variances(pieces: Pieces, seed: int, num_particles: int) -> dict[str, Tensor]:
    at_once: Halving[Means] = Halving(1, "posterior means", block_rows=ROWS)
    one, other = (_posterior_means(pieces, seed, half, 1, at_once) for half in (0, 1))
    if any(not torch.equal(one[name], other[name]) for name in one):
        one, other = (_posterior_means(pieces, seed, half, num_particles, at_once) for half in (0, 1))
    return {name: ((one[name] - one[name].mean(0)) * (other[name] - other[name].mean(0))).mean(0) for name in one}


def _placed(pieces: Pieces, seed: int) -> Iterator[tuple[int, Pair, Batch, int]]:
    """The number of each piece's first row, the piece, and its seed."""
    first = 0
    for pair, x in pieces():
        yield first, pair, x, noise.derived_seed(seed, "piece", first) if first else seed
        first += pair.num_data


def _posterior_means(pieces: Pieces, seed: int, half: int, num_particles: int, at_once: Halving[Means]) -> Means:
    """E_q[z | x] by site, (N, units)."""
    parts: dict[str, list[Tensor]] = {}
    for _, pair, x, own_seed in _placed(pieces, seed):

        def means(rows: slice, pair: Pair = pair, x: Batch = x, own_seed: int = own_seed) -> Means:
            with noise.seeded(own_seed, "means", half, rows.start, device=pair.device), measuring(pair.model, pair.guide):
                return pair.posterior_means(take(x, rows), rows, num_particles)

        for rows in noise.blocks(pair.num_data, ROWS):
            (found,) = at_once(rows, means)
            for name, mean in found.items():
                parts.setdefault(name, []).append(mean.double().cpu().reshape(len(mean), -1))
    return {name: torch.cat(means) for name, means in parts.items()}
