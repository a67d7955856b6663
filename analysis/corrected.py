"""Posterior draws out of a guide's: each draw is one of many of the guide's, chosen by its importance weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.draws import Drawn, drawn, draws_at_once
from ppvae.analysis.estimate import Provenance, as_lists, batch_of, label, provenance, resolution
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import DivergedError, check_count
from ppvae.importance import Streamed, k_hat_threshold
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring


@dataclass(frozen=True, eq=False)
class Corrected:
    """Draws from the posterior of each datum by sampling-importance-resampling; exact as the number of particles grows.

    Attributes:
        draws: By latent site, (S, N, *event); plates inside a datum follow N.
        index: (S, N), which of the guide's draws each one is.
        ess: (N,), effective sample size of the weights, in [1, K].
        k_hat: (N,), shape of the weights' tail.
        duplicates: (N,), share of the S draws that repeat another one.
        num_particles: (N,), of the guide's draws, K.
        source: Where the draws came from.
    """

    draws: dict[str, Tensor]
    index: Tensor
    ess: Tensor
    k_hat: Tensor
    duplicates: Tensor
    num_particles: Tensor
    source: Provenance

    @property
    def threshold(self) -> float:
        """min(1 - 1 / log10 K, 0.7), the k-hat above which the draws should not be believed."""
        return k_hat_threshold(int(self.num_particles.max()))

    @property
    def trusted(self) -> Tensor:
        """(N,), k-hat below its threshold."""
        return self.k_hat < self.threshold

    def __str__(self) -> str:
        s, n = self.index.shape
        return (
            f"{s} posterior draws of each of {n} data by resampling {int(self.num_particles.max())}: k-hat above {self.threshold:.2f} at "
            f"{100 * (~self.trusted).double().mean():.1f} %, effective sample size {self.ess.median():.0f} at the median and "
            f"{self.ess.min():.1f} at least, {100 * self.duplicates.mean():.0f} % duplicates ({label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; the draws, which belong into a file of tensors, are left out."""
        return {k: v for k, v in as_lists(self).items() if k not in ("draws", "index")} | {
            "threshold": self.threshold,
            "trusted": self.trusted.tolist(),
        }

    def to_arviz(self) -> Any:
        """An ``InferenceData`` or ``DataTree``: posterior (chain 1, S, N, *event), sample_stats with the index."""
        from ppvae.analysis.to_arviz import container

        return container({name: draws[None] for name, draws in self.draws.items()}, {"index": self.index[None]})


def corrected(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    num_draws: int = 1000,
    num_particles: int = 10_000,
    seed: int = 0,
) -> Corrected:
    """Draw from the posterior of each datum: K draws of the guide, resampled with replacement by their weights p(x, z) / q(z | x).

    Memory does not grow with K: each of the S draws is a reservoir of one, which a block of particles takes over with the probability
    that is the block's share of all weight so far.

    Args:
        model, guide: Programs of one argument, the batch. A refined guide (``refine(...).guide``) needs fewer particles.
        x: Data, (N, *event).
        num_draws: S.
        num_particles: K. Where the S draws are to be mostly distinct, K times the share ess / K should exceed S.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract.
        DataError: Data outside the support of an observed site.
        DivergedError: Every particle of some datum has weight 0, or a density is not a number.

    References:
        Rubin (1988), Using the SIR algorithm to simulate posterior distributions.
        Chao (1982), A general purpose unequal probability sampling plan, the reservoir.
    """
    check_count("num_draws", num_draws)
    check_count("num_particles", num_particles)
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    stretches = []
    reservoir: _Reservoir | None = None
    at_once = draws_at_once("corrected")

    def weighed(rows: slice, block: Drawn) -> Tensor:
        start = rows.start if block.particles.start == 0 else None
        with measuring(model, guide):
            log_p = pair.score(block.x, block.values, check_from=start, num_particles=block.particles.stop - block.particles.start)
        return sum(log_p.values()) - block.log_q_sum

    for block in drawn(pair, batch, num_draws=num_particles, seed=seed, purpose="corrected", at_once=at_once):
        (log_weights,) = at_once(block.rows, partial(weighed, block=block))
        if reservoir is None:
            reservoir = _Reservoir(num_draws, num_particles, block.rows, resolution(batch))
        # Smoothing the weights' tail (PSIS) would need all of them before the first is used: a second pass over the same seeds.
        reservoir.add(pair, block, log_weights, noise.generator(seed, "resampled", block.rows.start, block.particles.start))
        if block.particles.stop == num_particles:
            stretches.append(reservoir)
            reservoir = None
    index = torch.cat([part.index for part in stretches], 1)
    ordered = index.sort(0).values
    return Corrected(
        draws={name: torch.cat([part.draws[name] for part in stretches], 1) for name in pair.latents},
        index=index,
        ess=torch.cat([part.sums.ess for part in stretches]),
        k_hat=torch.cat([part.sums.k_hat for part in stretches]),
        duplicates=(ordered[1:] == ordered[:-1]).double().sum(0) / num_draws,
        num_particles=torch.full((pair.num_data,), num_particles),
        source=provenance(x, pair, seed),
    )


class _Reservoir:
    """S draws for each datum of a stretch, and the weights' reductions."""

    def __init__(self, num_draws: int, num_particles: int, rows: slice, fine: float) -> None:
        n = rows.stop - rows.start
        self.rows = rows
        self.sums = Streamed(num_particles, n, fine)
        self.index = torch.zeros(num_draws, n, dtype=torch.long)
        self.draws: dict[str, Tensor] = {}
        self.total = torch.full((n,), -torch.inf, dtype=torch.float64)

    def add(self, pair: Pair, block: Drawn, log_weights: Tensor, generator: torch.Generator) -> None:
        """Let a block of (k, n) weights take over draws in proportion to its share of all weight."""
        log_weights = log_weights.cpu()
        bad = torch.isnan(log_weights) | (log_weights == torch.inf)
        if bool(bad.any()):
            datum = self.rows.start + int(bad.any(0).nonzero()[0])
            raise DivergedError(
                "a log weight is not a number or +inf",
                where=f"datum {datum}, {int(bad.sum())} of {bad.numel()} particles",
                mend="look at the distributions' parameters there: a scale that underflowed to 0, a logit that overflowed",
            )
        self.sums.add(log_weights)
        here = torch.logsumexp(log_weights, 0)
        self.total = torch.logaddexp(self.total, here)
        if block.particles.stop == self.sums.expected and bool((self.total == -torch.inf).any()):
            datum = self.rows.start + int((self.total == -torch.inf).nonzero()[0])
            raise DivergedError("every particle has weight 0", where=f"datum {datum}", mend="refine the guide, or draw more particles")
        share = (here - self.total).exp().nan_to_num(0.0)
        chance = torch.rand(self.index.shape, generator=generator, dtype=torch.float64)
        draw, datum_of = (chance < share).nonzero(as_tuple=True)
        # below its share a uniform number is, divided by it, uniform again: it chooses the particle of the block too
        chosen = _of_weights(log_weights - torch.where(here == -torch.inf, 0.0, here), datum_of, chance[draw, datum_of] / share[datum_of])
        self.index[draw, datum_of] = chosen + block.particles.start
        for name in pair.latents:
            values = pair.datum_first(block.values[name], name).cpu()
            kept = self.draws.setdefault(name, values.new_zeros(len(self.index), *values.shape[1:]))
            kept[draw, datum_of] = values[chosen, datum_of]


def _of_weights(log_weights: Tensor, columns: Tensor, chance: Tensor) -> Tensor:
    """The row that each uniform number falls on in the cumulative weights (k, n) of its column."""
    k, n = log_weights.shape
    cumulative = log_weights.exp().cumsum(0)
    cumulative = (cumulative / cumulative[-1:].clamp(min=1e-300)).mT + torch.arange(n)[:, None]  # column after column, all ascending
    found = torch.searchsorted(cumulative.flatten(), chance + columns, right=True) - k * columns
    return found.clamp(0, k - 1)
