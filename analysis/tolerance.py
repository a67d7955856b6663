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
from ppvae.coordinates import Coordinates
from ppvae.importance import MIN_PARTICLES, effective_sample_size, log_mean_exp, standard_error
from ppvae.modules import Program
from ppvae.pair import Pair

PILOT_PARTICLES = 192
PILOT_K_HAT, LARGEST_K_HAT = 0.8, 0.7  # a pilot's k-hat is noisier than the answer's, which is looked at again
STEP = 64  # particles are rounded up to its multiples, so that data with nearly equal needs run together
LEAPFROG = 3
LEVELS, LOOSE = 3, 2.0  # a datum whose error stays above twice the tolerance is annealed four times finer
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
    settings = annealing_settings(tolerance, Coordinates(pair, x, seed).dim)
    heavy = (pilot.k_hat > PILOT_K_HAT) | ((pilot.ess < MIN_PARTICLES) & (pilot.k_hat > -torch.inf))
    annealed = heavy | (needed > _cost(settings))
    found = Weighed.empty(pair.num_data)
    evaluations = torch.full((pair.num_data,), proposal.num_evaluations + PILOT_PARTICLES)
    counts = ((needed / STEP).nan_to_num(1.0).ceil() * STEP).long()
    for count in counts[~annealed].unique().tolist():
        rows = ((counts == count) & ~annealed).nonzero()[:, 0]
        answer_seed = noise.derived_seed(seed, "answer", count)
        found.put(rows, weighed_by_rows(pair, proposal.program, x, rows, count, answer_seed, seed, weights))
        evaluations[rows] += count
    # A pilot that was lucky with its error, or a tail that only the answer's draws have seen
    annealed = annealed | ~((found.k_hat <= LARGEST_K_HAT) & (found.pointwise_se <= LOOSE * tolerance))
    sound = ~annealed
    rows = annealed.nonzero()[:, 0]
    if len(rows):
        answer, fine, cost = _annealed(pair, proposal.program, x, rows, settings, tolerance, seed)
        found.put(rows, answer)
        sound[rows] = fine
        evaluations[rows] += cost
    return Answer(pair, found, annealed, sound, proposal, evaluations)


def _annealed(
    pair: Pair, local: Program, x: Batch, rows: Tensor, settings: annealing.Settings, tolerance: float, seed: int
) -> tuple[Weighed, Tensor, Tensor]:
    """Some rows annealed, whether the answers look sound, and their cost, (n,).

    A first run of half the chains only chooses the fineness: a run that is kept because its own error came out small is low. The answer
    is another run, and looks sound where its error is small and the two agree.
    """
    trial, level = Weighed.empty(len(rows)), torch.zeros(len(rows), dtype=torch.long)
    cost = torch.zeros(len(rows), dtype=torch.long)
    left = torch.arange(len(rows))
    for fineness in range(LEVELS):
        if not len(left):
            break
        run = _finer(settings, fineness)
        run = replace(run, num_chains=run.num_chains // 2)
        trial.put(left, annealed_rows(pair, local, x, rows[left], run, noise.derived_seed(seed, "anneal, trial", fineness), seed))
        level[left], cost[left] = fineness, cost[left] + _cost(run)
        left = left[trial.pointwise_se[left] > LOOSE * tolerance]
    answer = Weighed.empty(len(rows))
    for fineness in level.unique().tolist():
        here, run = (level == fineness).nonzero()[:, 0], _finer(settings, fineness)
        answer.put(here, annealed_rows(pair, local, x, rows[here], run, noise.derived_seed(seed, "anneal", fineness), seed))
        cost[here] += _cost(run)
    apart = (answer.pointwise - trial.pointwise).abs()
    together = apart <= 3 * (answer.pointwise_se.square() + trial.pointwise_se.square()).sqrt().clamp(min=tolerance)
    return answer, together & (answer.pointwise_se <= LOOSE * tolerance), cost


def _finer(settings: annealing.Settings, fineness: int) -> annealing.Settings:
    return replace(settings, num_temperatures=settings.num_temperatures << fineness, num_chains=settings.num_chains << fineness)


def annealing_settings(tolerance: float, dim: int) -> annealing.Settings:
    """From a full-rank posterior 80 temperatures x 8 chains reach 0.05 nats, 130 x 20 reach 0.02: the work goes as 1 / tolerance^2."""
    finer = max(1.0, 0.05 / tolerance)
    temperatures, chains = round(80 * math.sqrt(finer)), 8 * max(1, round(finer))
    return annealing.Settings(temperatures, chains, LEAPFROG, "linear", STEP_SIZE["few" if dim <= 10 else "many"])


def _cost(settings: annealing.Settings) -> int:
    return settings.num_chains * (1 + (settings.num_temperatures - 1) * settings.num_leapfrog)


def annealed_rows(pair: Pair, local: Program, x: Batch, rows: Tensor, settings: annealing.Settings, seed: int, pair_seed: int) -> Weighed:
    """Annealed estimates of some rows, from the Normals of a local posterior, at the pair's global sites."""
    restricted = local.rows(rows)  # type: ignore[attr-defined]
    x_rows = take(x, rows)
    start = normals_of(pair.model, restricted, x_rows, pair_seed)
    start.coordinates.pair.globals.update(pair.globals)
    path = paths.normal_path(start, x_rows, "refined")
    frozen = annealing.tables(path, settings, seed)
    log_w = annealing.forward(path, frozen, settings, seed).log_weights
    unknown = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    counts = torch.full((len(rows),), settings.num_chains)
    return Weighed(log_mean_exp(log_w), standard_error(log_w), effective_sample_size(log_w), unknown, counts)
