"""How much rate a decoder needs for a distortion, whatever the encoder: the curve of a model and its prior, bounded from both sides.

For a datum x let distortion be -log p(x | z) and the rate of a channel q(z | x) be KL(q || p(z)). The least of R + beta D is
F(beta) = -log E_p(z)[p(x | z)^beta], attained by p_beta(z | x), which is p(z) p(x | z)^beta normalised. Annealing from the prior through
growing beta gives channels whose D is known and whose R is bounded from above; annealing back from draws of p_beta bounds F, and so the
curve, from below: R(D) >= F(beta) - beta D for every beta.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ppvae import annealing, hmc, noise, paths
from ppvae.analysis.elbo import ELBO, elbo
from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, label, mean_of, provenance
from ppvae.batches import Batch, take
from ppvae.data import Data
from ppvae.errors import ArgumentError, DivergedError, check_count
from ppvae.importance import log_mean_exp, standard_error
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.paths import Ends, Path, Stretch
from ppvae.programs import measuring

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
CONVERGED = 1.1  # R-hat, over all coordinates and log p(x | z): the chains are short, and began where annealing left them
SMOOTHED_OVER = 9  # transitions of the pilot
MOST_CHAINS = noise.BLOCK_PARTICLES


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Points above the curve and lines below it, one of each for every beta; nats.

    Attributes:
        betas: (B,), ascending.
        distortion: (B, N), E[-log p(x | z)] of the annealed channel.
        rate: (B, N), in expectation an upper bound on its rate: with ``distortion`` a point that can be reached.
        upper: (B, N), in expectation an upper bound on F(beta) = min R + beta D; rate + beta distortion. At beta = 1 F is -log p(x).
        lower: (B, N), a lower bound on it, as good as the convergence of the chains.
        upper_se, lower_se: (B, N), Monte Carlo errors.
        r_hat: (B, N), the largest over coordinates and log p(x | z) of the chains that ``lower`` begins at.
        valid: (B, N), whether R-hat is below 1.1 there and at all smaller beta.
        acceptance: (B, N), mean acceptance probability.
        pair: Rate and distortion of the guide, where there is one.
        num_temperatures, num_chains: Steps from one beta to the next, and chains.
        source: Where the numbers came from.
    """

    betas: Tensor
    distortion: Tensor
    rate: Tensor
    upper: Tensor
    lower: Tensor
    upper_se: Tensor
    lower_se: Tensor
    r_hat: Tensor
    valid: Tensor
    acceptance: Tensor
    pair: ELBO | None
    num_temperatures: int
    num_chains: int
    source: Provenance

    @property
    def means(self) -> list[tuple[Estimate, Estimate]]:
        """Mean of upper and of lower over the data, by beta."""
        return [(mean_of(*both[:2]), mean_of(*both[2:])) for both in zip(self.upper, self.upper_se, self.lower, self.lower_se, strict=True)]

    @property
    def points(self) -> Tensor:
        """(B, 2), distortion and rate, means over the data: on the curve of the data or above it, in expectation."""
        return torch.stack([self.distortion.mean(1), self.rate.mean(1)], 1)

    def lower_rate(self, distortion: Tensor | float) -> Tensor:
        """The largest over beta of lower - beta D, at least 0: a bound from below on the mean rate at a mean distortion."""
        at = torch.as_tensor(distortion, dtype=torch.float64)
        lines = self.lower.mean(1) - self.betas * at[..., None]
        return lines.amax(-1).clamp(min=0)

    @property
    def width(self) -> Tensor:
        """upper - lower, (B,), means over the data: how far the two sides are from each other at each slope."""
        return (self.upper - self.lower).mean(1)

    def __str__(self) -> str:
        shown = "; ".join(f"beta {b:g}: D {d:.2f}, R {r:.2f}" for b, (d, r) in zip(self.betas.tolist(), self.points.tolist(), strict=True))
        invalid = int((~self.valid).any(0).sum())
        chains = f"; chains of {invalid} of {self.valid.shape[1]} data not converged (R-hat < {CONVERGED})" if invalid else ""
        guide = ""
        if self.pair is not None:
            rate, distortion = self.pair.rate.mean(), self.pair.distortion.mean()
            guide = f"; the pair: D {distortion:.2f}, R {rate:.2f}, {rate - self.lower_rate(distortion):.2f} above the lower bound"
        return (
            f"{shown}{guide}; R + beta D known to {self.width.max():.3f} nats (N={self.valid.shape[1]}, "
            f"C={self.num_chains}{chains}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"points": self.points.tolist(), "pair": None if self.pair is None else self.pair.as_dict()}


def rate_distortion(
    model: Program,
    x: Data | Batch,
    *,
    guide: Program | None = None,
    betas: Sequence[float] = BETAS,
    num_temperatures: int = 20,
    num_chains: int = 16,
    num_leapfrog: int = 3,
    num_warmup: int = 50,
    num_draws: int = 200,
    num_particles: int = 1000,
    seed: int = 0,
) -> RateDistortion:
    """The rate-distortion curve of a model with its prior fixed, annealed from the prior through growing beta.

    Step sizes come from a pilot with a seed of its own and are frozen. At each beta chains go on until they stand in for exact draws of
    p_beta, and the annealing back from there gives the lower bounds, summed over the steps from beta to beta.

    Args:
        model: A program of one argument, the batch.
        x: Data, (N, *event).
        guide: A guide whose own rate and distortion stand beside the curve.
        betas: Slopes of the curve, positive: at each beta the curve falls by beta nats of rate a nat of distortion.
        num_temperatures: Steps from one beta to the next, and from 0 to the first.
        num_chains: C, at most 64.
        num_leapfrog: Leapfrog steps a transition.
        num_warmup, num_draws: Transitions at each beta before the lower bound begins: to settle, and to judge convergence by;
            at least as many draws as chains.
        num_particles: For the guide's rate and distortion.
        seed: Rules every draw.

    Raises:
        ArgumentError: Settings that make no sense.
        FamilyError: The model has no continuous latent.
        DivergedError: log p(x | z) is not a number.
        ShapeError, ProgramError, DataError: The pair breaks the contract.

    References:
        Huang, Makhzani, Cao, Grosse (2020), Evaluating lossy compression rates of deep generative models, sec. 4 and 5.
        Alemi et al. (2018), Fixing a broken ELBO. Grosse, Ghahramani, Adams (2015), Sandwiching the marginal likelihood.
    """
    slopes = sorted({float(beta) for beta in betas})
    if not slopes or not 0 < slopes[0] <= slopes[-1] < math.inf:
        raise ArgumentError(f"betas are numbers > 0, got {tuple(betas)}")
    hmc.check_settings(num_chains, num_leapfrog)
    if not 2 <= num_chains <= MOST_CHAINS:
        raise ArgumentError(f"num_chains is from 2 to {MOST_CHAINS}, got {num_chains}")
    for name, value, least in (
        ("num_temperatures", num_temperatures, 1),
        ("num_warmup", num_warmup, 1),
        ("num_draws", num_draws, max(4, num_chains)),
    ):
        check_count(name, value, least)
    batch = batch_of(x, model, *([] if guide is None else [guide]))
    path = paths.path(model, None, batch, "prior", seed)
    plan = _Plan(slopes, num_temperatures, num_chains, num_leapfrog, num_warmup, num_draws, seed)
    whole = annealing.stretches(path.pair.num_data, num_chains)
    at_once: Halving[dict[str, Tensor]] = Halving(math.ceil(whole[0].stop / noise.BLOCK_ROWS), "rate and distortion")
    parts = [part for rows in whole for part in at_once(rows, lambda some: _walked(path, some, plan))]
    joined = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    upper, distortion = joined["upper"], joined["distortion"]
    scale = torch.tensor(slopes, dtype=torch.float64)
    return RateDistortion(
        betas=scale,
        distortion=distortion,
        rate=upper - scale[:, None] * distortion,
        upper=upper,
        lower=joined["lower"].cumsum(0),
        upper_se=joined["upper_se"],
        lower_se=joined["lower_se"].square().cumsum(0).sqrt(),
        r_hat=joined["r_hat"],
        valid=(joined["r_hat"] < CONVERGED).long().cumprod(0).bool(),
        acceptance=joined["acceptance"],
        pair=None if guide is None else elbo(model, guide, x, num_particles=num_particles, seed=noise.derived_seed(seed, "pair")),
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        source=provenance(x, path.pair, seed),
    )


@dataclass(frozen=True)
class _Plan:
    """How the path is walked: ``temperatures`` from each beta to the next, as shares of the largest."""

    betas: list[float]
    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    num_warmup: int
    num_draws: int
    seed: int

    @property
    def steps(self) -> list[Tensor]:
        """For each beta the shares of the largest that lead to it, (T + 1,), the one before included."""
        ends = [0.0, *(beta / self.betas[-1] for beta in self.betas)]
        even = torch.linspace(0, 1, self.num_temperatures + 1, dtype=torch.float64)
        # From the prior slowly: there log p(x | z) varies most.
        return [a + (b - a) * (even**3 if i == 0 else even) for i, (a, b) in enumerate(itertools.pairwise(ends))]


@dataclass(frozen=True)
class _Tilted(Stretch):
    """The path from the prior to p(z) p(x | z)^largest, over the same temperatures 0 to 1."""

    largest: float

    def ends(self, v: Tensor) -> Ends:
        found = super().ends(v)
        joint = found.log_base + self.largest * found.energy
        gradient = found.base_gradient + self.largest * (found.joint_gradient - found.base_gradient)
        return Ends(found.log_base, found.base_gradient, joint, gradient)


def _walked(path: Path, rows: slice, plan: _Plan) -> dict[str, Tensor]:
    """Everything measured at some of the data, (B, n) each."""
    whole = path.stretch(rows)
    stretch = _Tilted(whole.evaluation, whole.x, whole.m, whole.scale_tril, plan.betas[-1])
    with measuring(path.pair.model, path.pair.guide):
        middle, _ = path.coordinates.unpack(whole.m[None])
        path.pair.score(take(path.x, rows), middle, check_from=rows.start)  # the data lie in the likelihood's support
        sizes = _pilot(path, stretch, rows, plan)
        source = hmc.Noise(plan.seed, "rate distortion", rows=rows, device=path.m.device)
        v = path.drawn(rows, plan.num_chains, source, plan.seed, "rate distortion")
        mover = _Mover(stretch, v, plan.num_leapfrog, source)
        _refuse_nan(mover.ends.energy, rows)
        log_weight = torch.zeros(v.shape[:2], dtype=torch.float64, device=v.device)
        found: dict[str, list[Tensor]] = {}
        for steps, size in zip(plan.steps, sizes, strict=True):
            accepted = []
            for (before, b), epsilon in zip(itertools.pairwise(steps), size, strict=True):
                log_weight = log_weight + (b - before) * mover.ends.energy
                accepted.append(mover.move(b, epsilon))
            _refuse_nan(log_weight, rows)
            share = torch.softmax(log_weight, 0)
            distortion = -(share * mover.ends.energy).sum(0) / plan.betas[-1]
            measured = {"upper": -log_mean_exp(log_weight), "upper_se": standard_error(log_weight), "distortion": distortion}
            measured["r_hat"] = _settled(mover, steps[-1], size[-1], plan)
            here = mover.copy()
            back = torch.zeros_like(log_weight)
            for (before, b), epsilon in reversed(list(zip(itertools.pairwise(steps), size, strict=True))):
                here.move(b, epsilon)
                back = back + (b - before) * here.ends.energy
            measured |= {"lower": log_mean_exp(-back), "lower_se": standard_error(-back), "acceptance": torch.stack(accepted).mean(0)}
            for name, value in measured.items():
                found.setdefault(name, []).append(value.cpu())
    return {name: torch.stack(values) for name, values in found.items()}


class _Mover:
    """Chains, (C, n, D), and both ends of the path where they stand."""

    def __init__(self, stretch: Stretch, v: Tensor, num_leapfrog: int, source: hmc.Source, ends: Ends | None = None) -> None:
        self.stretch, self.v, self.num_leapfrog, self.source = stretch, v, num_leapfrog, source
        self.ends = stretch.ends(v) if ends is None else ends

    def move(self, b: Tensor, step_size: Tensor) -> Tensor:
        """One transition that leaves f_b invariant; its acceptance probability, (n,)."""
        at = b.to(self.v.device).expand(self.v.shape[1])
        state = hmc.State(self.v, *self.ends.tempered(at), self.ends)
        moved = hmc.transition(self.stretch.target(at), state, step_size=step_size, num_leapfrog=self.num_leapfrog, noise=self.source)
        self.v, self.ends = moved.state.position, Ends(*moved.state.aux)
        return moved.acceptance.mean(0)

    def copy(self) -> _Mover:
        """Chains of their own from here, on the same source of draws."""
        return _Mover(self.stretch, self.v, self.num_leapfrog, self.source, self.ends)


def _pilot(path: Path, stretch: _Tilted, rows: slice, plan: _Plan) -> list[Tensor]:
    """Step sizes for every transition to each beta, (T, n): those that adapt while a few chains walk, smoothed."""
    source = hmc.Noise(plan.seed, "rate distortion pilot", rows=rows, device=path.m.device)
    v = path.drawn(rows, annealing.PILOT_CHAINS, source, plan.seed, "rate distortion pilot")
    n, dim = v.shape[1:]
    longest = annealing.LONGEST / plan.num_leapfrog
    first = torch.full((n,), min(1.2 * dim**-0.25, longest), device=v.device)
    adaptation = hmc.StepSizeAdaptation(first, least_gain=annealing.PILOT_GAIN, largest=longest)
    mover = _Mover(stretch, v, plan.num_leapfrog, source)
    logs = []
    for steps in plan.steps:
        for b in steps[1:]:
            adaptation.update(mover.move(b, adaptation.step_size)[None])
            logs.append(adaptation.log_step)
    table = torch.stack(logs, 1)[None]
    half = min(SMOOTHED_OVER, table.shape[-1]) // 2
    padded = torch.cat([table[..., :1].expand(-1, -1, half), table, table[..., -1:].expand(-1, -1, half)], -1)
    smooth: Tensor = avg_pool1d(padded, 2 * half + 1, 1)[0].mT.exp()
    return list(smooth.split(plan.num_temperatures))


def _settled(mover: _Mover, b: Tensor, step_size: Tensor, plan: _Plan) -> Tensor:
    """Move on at one temperature; R-hat over the coordinates and log p(x | z), (n,)."""
    import arviz

    for _ in range(plan.num_warmup):
        mover.move(b, step_size)
    kept = []
    for _ in range(plan.num_draws):
        mover.move(b, step_size)
        kept.append(torch.cat([mover.v.double(), mover.ends.energy[..., None]], -1).cpu())
    convert: Any = arviz.convert_to_dataset
    r_hat = torch.as_tensor(arviz.rhat(convert({"v": torch.stack(kept, 1).numpy()}))["v"].values).amax(-1)
    return r_hat.nan_to_num(torch.inf)


def _refuse_nan(values: Tensor, rows: slice) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        raise DivergedError(
            f"log p(x | z) is not finite at {int(bad.sum())} of {bad.numel()} chains of this stretch",
            where=f"datum {rows.start + int(bad.any(0).nonzero()[0])}",
            mend="look at the model's parameters there: a scale that underflowed to 0, a logit that overflowed",
        )
