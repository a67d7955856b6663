"""log p(x) to a given Monte Carlo error: for each datum the cheapest estimator that a pilot finds good enough.

Every datum gets a refined Normal. A pilot of particles from it tells how many would bring the standard error to the tolerance; where that
is more than annealing from it costs, or where the pilot's weights have too heavy a tail, the datum is annealed. The pilot's draws choose
and are then thrown away: an answer from draws that also chose how many there are would be biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppvae import annealing, noise, paths
from ppvae.analysis.proposals import Proposal, normals_of, refined_proposal
from ppvae.analysis.weighed import Weighed, weighed, weighed_by_rows
from ppvae.batches import Batch, take
from ppvae.importance import MIN_PARTICLES, effective_sample_size, log_mean_exp, standard_error
from ppvae.modules import Program
from ppvae.pair import Pair

PILOT_PARTICLES = 256
LARGEST_K_HAT = 0.7  # the threshold for few particles is stricter; here a wrong "sound" costs little, since the error is looked at too
STEP = 128  # particles are rounded up to its multiples, so that data with nearly equal needs run together
LEAPFROG = 3
ESCALATIONS, LOOSE = 3, 2.0  # a datum whose error is above twice the tolerance is annealed again, afresh and four times finer
STEP_SIZE = {"few": 0.35, "many": 0.45}  # from a refined start they need no pilot: below and above some 10 dimensions


@dataclass
class Answer:
    """An estimate per datum, from which estimator it came, and whether its own error looks sound, (N,); the pair has looked at all data."""

    pair: Pair
    found: Weighed
    annealed: Tensor
    sound: Tensor
    proposal: Proposal
    num_evaluations: Tensor


def to_tolerance(model: Program, guide: Program, x: Batch, tolerance: float, weights: str, seed: int) -> Answer:
    """log p(x) of each datum to ``tolerance`` nats of Monte Carlo error."""
    proposal = refined_proposal(model, guide, x, seed)
    pair = Pair(model, proposal.program, x, seed)
    pilot = weighed(pair, x, PILOT_PARTICLES, noise.derived_seed(seed, "pilot"))
    needed = (PILOT_PARTICLES * (pilot.pointwise_se / tolerance).square()).clamp(min=1)
    settings = annealing_settings(tolerance, proposal)
    heavy = (pilot.k_hat > LARGEST_K_HAT) | ((pilot.ess < MIN_PARTICLES) & (pilot.k_hat > -torch.inf))
    annealed = heavy | (needed > _cost(settings))
    found = Weighed.empty(pair.num_data)
    evaluations = torch.full((pair.num_data,), proposal.num_evaluations + PILOT_PARTICLES)
    counts = ((needed / STEP).nan_to_num(1.0).ceil() * STEP).long()
    for count in counts[~annealed].unique().tolist():
        rows = ((counts == count) & ~annealed).nonzero()[:, 0]
        answer_seed = noise.derived_seed(seed, "answer", count)
        found.put(rows, weighed_by_rows(model, proposal.program, x, rows, count, answer_seed, seed, weights))
        evaluations[rows] += count
    sound = found.k_hat < LARGEST_K_HAT
    rows = annealed.nonzero()[:, 0]
    for finer in range(ESCALATIONS):
        if not len(rows):
            break
        run = replace(settings, num_temperatures=settings.num_temperatures << finer, num_chains=settings.num_chains << finer)
        found.put(rows, annealed_rows(model, proposal.program, x, rows, run, noise.derived_seed(seed, "annealed", finer), seed))
        evaluations[rows] += _cost(run)
        sound[rows] = found.pointwise_se[rows] < LOOSE * tolerance
        rows = rows[~sound[rows]]
    return Answer(pair, found, annealed, sound, proposal, evaluations)


def annealing_settings(tolerance: float, proposal: Proposal) -> annealing.Settings:
    """From a full-rank posterior 100 temperatures x 8 chains reach 0.05 nats, 200 x 16 reach 0.02: the work goes as 1 / tolerance^2."""
    finer = max(1.0, 0.05 / tolerance)
    temperatures, chains = round(100 * math.sqrt(finer)), 8 * max(1, round(finer))
    dim = getattr(getattr(proposal.program, "family", None), "latent_dim", 50)
    return annealing.Settings(temperatures, chains, LEAPFROG, "linear", STEP_SIZE["few" if dim <= 10 else "many"])


def _cost(settings: annealing.Settings) -> int:
    return settings.num_chains * (1 + (settings.num_temperatures - 1) * settings.num_leapfrog)


def annealed_rows(
    model: Program, local: Program, x: Batch, rows: Tensor, settings: annealing.Settings, seed: int, global_seed: int
) -> Weighed:
    """Annealed estimates of some rows, from the Normals of a local posterior."""
    restricted = local.rows(rows)  # type: ignore[attr-defined]
    x_rows = take(x, rows)
    path = paths.normal_path(normals_of(model, restricted, x_rows, global_seed), x_rows, "refined")
    frozen = annealing.tables(path, settings, seed)
    log_w = annealing.forward(path, frozen, settings, seed).log_weights
    unknown = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    counts = torch.full((len(rows),), settings.num_chains)
    return Weighed(log_mean_exp(log_w), standard_error(log_w), effective_sample_size(log_w), unknown, counts)
