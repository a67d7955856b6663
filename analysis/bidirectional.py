"""Bidirectional Monte Carlo: how far annealed importance sampling is from log p(x), bounded from both sides.

Annealing from the start to the joint bounds log p(x) from below; the same transitions in reverse order, begun at an exact draw of the
posterior, bound it from above. The latents that made a simulated datum are such a draw. For real data long chains stand in for it, and
the upper bound is as good as their convergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppvae import annealing, hmc, noise, paths
from ppvae.analysis.estimate import Estimate, Provenance, as_lists, batch_of, describe, label, mean_of, provenance
from ppvae.analysis.simulated import Place, simulated
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, check_count
from ppvae.importance import log_mean_exp, standard_error
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring, prior_of

CONVERGED = 1.02  # R-hat; 1.01 is the usual advice, and the largest of 50 coordinates lies above it by chance alone
CHAIN_ROWS = 4  # blocks of 64 data whose chains are held at once


@dataclass(frozen=True, eq=False)
class BidirectionalMonteCarlo:
    """Two bounds on log p(x) of each datum, nats: E[lower] <= log p(x) <= E[upper].

    Attributes:
        lower: (N,), log-mean-exp of the weights of C chains from the start to the joint.
        upper: (N,), the same in reverse, from draws of the posterior.
        lower_se, upper_se: (N,), Monte Carlo errors by the delta method.
        single_chain_width: (N,), what the width would be with one chain, averaged over the chains.
        forecast: (N,), (E_posterior - E_start)[log p(x, z) - log start(z)] / T: what the single-chain width would be with perfect
            transitions on a linear schedule. From few draws: look at its mean. nan for other schedules.
        acceptance: (N,), mean acceptance probability over both directions.
        num_nonfinite: (N,), proposals rejected because their energy or gradient was not finite.
        num_evaluations: (N,), evaluations of log p(x, z), those of start, pilot and chains included.
        valid: (N,), whether ``upper`` may be believed: always for simulated data, for real ones where R-hat is below 1.02.
        r_hat: (N,), the largest over the coordinates of the chains that stand in for the posterior; nan for simulated data.
        ess: (N,), the smallest bulk effective sample size over the coordinates of those chains; nan for simulated data.
        num_temperatures, num_chains: T and C.
        start: What the forward chains were drawn from.
        schedule: Of the temperatures.
        source: Where the numbers came from.
    """

    lower: Tensor
    upper: Tensor
    lower_se: Tensor
    upper_se: Tensor
    single_chain_width: Tensor
    forecast: Tensor
    acceptance: Tensor
    num_nonfinite: Tensor
    num_evaluations: Tensor
    valid: Tensor
    r_hat: Tensor
    ess: Tensor
    num_temperatures: int
    num_chains: int
    start: str
    schedule: str
    source: Provenance

    @property
    def width(self) -> Tensor:
        """upper - lower, (N,); by chance it may be negative."""
        return self.upper - self.lower

    @property
    def mean(self) -> Estimate:
        """Mean width over the data whose upper bound is valid."""
        if not self.valid.any():
            return Estimate(math.nan, math.nan, math.nan)
        return mean_of(self.width[self.valid], (self.lower_se.square() + self.upper_se.square()).sqrt()[self.valid])

    @property
    def told(self) -> str:
        """The width in a few words."""
        n, valid = len(self.valid), int(self.valid.sum())
        if not valid:
            return f"width unknown: the chains of none of {n} data converged (R-hat < {CONVERGED})"
        kind = "simulated data" if self.r_hat.isnan().all() else f"of {n} data, those whose chains converged (R-hat < {CONVERGED})"
        return f"width {self.mean.value:.3f} ± {self.mean.data_se:.3f} nats, at most {self.width[self.valid].max():.3f}, on {valid} {kind}"

    def __str__(self) -> str:
        ideal = "" if self.forecast.isnan().all() else f" (forecast {self.forecast.mean():.3f})"
        return (
            f"{self.told[0].upper()}{self.told[1:]} (annealed from the {self.start}, T={self.num_temperatures} {self.schedule}, "
            f"C={self.num_chains}; one chain: {self.single_chain_width.mean():.3f}{ideal}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"width": self.width.tolist(), "mean": vars(self.mean)}


def bidirectional(
    model: Program,
    *,
    num_data: int = 100,
    template: Data | Batch | None = None,
    x: Data | Batch | None = None,
    guide: Program | None = None,
    start: str = "auto",
    num_temperatures: int = 100,
    num_chains: int = 16,
    num_leapfrog: int = 3,
    schedule: str = "auto",
    step_size: float | None = None,
    num_warmup: int = 300,
    num_draws: int = 300,
    place: Place | None = None,
    seed: int = 0,
) -> BidirectionalMonteCarlo:
    """Bounds on log p(x) from both sides, by annealing forward and in reverse with the same frozen transitions.

    Args:
        model: A program of one argument, the batch.
        num_data: N, simulated data.
        template: A batch that gives shapes and covariates of simulated data, cyclically.
        x: Real data, (N, *event), in place of simulated ones.
        guide: Where the chains start, with ``start`` "guide" or "refined". It sees x alone, never the latents that made them.
        start: "guide", "refined", "prior" or "auto": the guide where there is one, else the prior.
        num_temperatures: T.
        num_chains: C, per datum and direction.
        num_leapfrog: Leapfrog steps a transition.
        schedule: "linear", "sigmoid", "equal" or "auto".
        step_size: In whitened coordinates; by default a pilot finds and freezes one per datum and temperature.
        num_warmup, num_draws: For real data, transitions at the posterior of C chains that go on from the forward run: while their step
            sizes adapt, and then to judge their convergence by; their last states begin the reverse run.
        place: Puts simulated values into the template's rows, where they are not a part of it as it stands (see ``simulated``).
        seed: Rules every draw.

    Raises:
        ArgumentError: Neither ``template`` nor ``x``, or both; settings that make no sense.
        FamilyError: A latent has no unconstrained coordinates.
        ProgramError: The model cannot be simulated.
        DivergedError: A log weight is not a number where the chains begin.

    References:
        Grosse, Ghahramani, Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        Grosse, Ancha, Roy (2016), Measuring the reliability of MCMC inference with bidirectional Monte Carlo.
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat.
    """
    if (template is None) == (x is None):
        raise ArgumentError("bidirectional needs a template to simulate data from, or real data x: one of the two")
    settings = annealing.Settings(num_temperatures, num_chains, num_leapfrog, schedule, step_size)
    if x is None:
        check_count("num_data", num_data)
        path, u, describing = _simulated(model, guide, template, num_data, start, place, seed)
        source = replace(provenance(path.x, path.pair, seed), data=describing)
    else:
        check_count("num_warmup", num_warmup)
        check_count("num_draws", num_draws, max(4, num_chains))
        path = paths.path(model, guide, batch_of(x, model, *([] if guide is None else [guide])), start, seed)
        source = provenance(x, path.pair, seed)
    settings = settings.resolved(path.from_prior)
    frozen = annealing.tables(path, settings, noise.derived_seed(seed, "pilot"))
    forward = annealing.forward(path, frozen, settings, noise.derived_seed(seed, "forward"))
    if x is None:
        chains = _Chains.exact(u)
    else:
        chains = _long_chains(path, forward.last, settings, num_warmup, num_draws, noise.derived_seed(seed, "posterior"))
    backward = annealing.reverse(path, frozen, settings, chains.last, noise.derived_seed(seed, "reverse"))
    forecast = (backward.first_energy.mean(0) - forward.first_energy.mean(0)) / num_temperatures
    evaluations = path.num_evaluations + frozen.num_evaluations + chains.num_evaluations
    n = path.pair.num_data
    return BidirectionalMonteCarlo(
        lower=log_mean_exp(forward.log_weights),
        upper=-log_mean_exp(-backward.log_weights),
        lower_se=standard_error(forward.log_weights),
        upper_se=standard_error(-backward.log_weights),
        single_chain_width=backward.log_weights.mean(0) - forward.log_weights.mean(0),
        forecast=forecast if settings.schedule == "linear" else torch.full_like(forecast, torch.nan),
        acceptance=(forward.acceptance + backward.acceptance) / 2,
        num_nonfinite=forward.num_nonfinite + backward.num_nonfinite,
        num_evaluations=torch.full((n,), evaluations + forward.num_evaluations + backward.num_evaluations),
        valid=chains.r_hat.isnan() if chains.exactly else chains.r_hat < CONVERGED,
        r_hat=chains.r_hat,
        ess=chains.ess,
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        start=path.name,
        schedule=settings.schedule,
        source=source,
    )


def _simulated(
    model: Program, guide: Program | None, template: Data | Batch | None, size: int, start: str, place: Place | None, seed: int
) -> tuple[paths.Path, Tensor, dict[str, Any]]:
    """The path for simulated data, and the latents that made them as u, (1, N, D)."""
    if hasattr(guide, "rows"):
        if start != "prior":
            raise ArgumentError(
                "the guide is a local posterior of other data than those that are simulated",
                where=str(getattr(guide, "name", type(guide).__name__)),
                mend=[
                    "hand in the guide that it was refined from, with start='refined'",
                    "bidirectional(model, x=x, guide=...) on its own data",
                ],
            )
        guide = None
    batch = batch_of(template, model, *([] if guide is None else [guide]))
    drawing = Pair(model, prior_of(model), batch, seed)
    if drawing.globals and guide is not None:  # conditional on what measurements with this guide are conditional on
        drawing.globals.update(Pair(model, guide, batch, seed).globals)
    data = simulated(drawing, batch, size=size, seed=noise.derived_seed(seed, "simulated"), place=place)
    path = paths.path(model, guide, data.batch, start, seed, drawing.globals)
    with measuring(model):
        u = path.coordinates.pack(data.particle(path.pair, slice(0, size)))
    return path, u, {"name": "simulated", "num_data": size, "seed": seed, "template": describe(template)}


@dataclass(frozen=True)
class _Chains:
    """What the reverse run begins at, u of shape (1 or C, N, D), and whether to believe it."""

    last: Tensor
    r_hat: Tensor
    ess: Tensor
    exactly: bool
    num_evaluations: int

    @classmethod
    def exact(cls, u: Tensor) -> _Chains:
        unknown = torch.full((u.shape[1],), torch.nan, dtype=torch.float64)
        return cls(u, unknown, unknown.clone(), True, 0)


def _long_chains(path: paths.Path, begin: Tensor, settings: annealing.Settings, num_warmup: int, num_draws: int, seed: int) -> _Chains:
    """Chains at the posterior, begun where the forward run ended, v of shape (C, N, D)."""
    c, n, one = settings.num_chains, path.pair.num_data, torch.ones((), dtype=torch.float64)
    parts: list[tuple[Tensor, ...]] = []
    at_once: Halving[tuple[Tensor, ...]] = Halving(CHAIN_ROWS, "chains at the posterior")

    def walked(rows: slice) -> tuple[Tensor, ...]:
        stretch = path.stretch(rows)
        source = hmc.Noise(seed, "posterior", rows=rows, device=path.m.device)
        target = stretch.target(one.to(path.m.device).expand(rows.stop - rows.start))
        with measuring(path.pair.model, path.pair.guide):
            state = hmc.State.at(target, begin[:, rows].to(path.m.device))
            first = torch.full((rows.stop - rows.start,), settings.step_size or 0.3, device=path.m.device)
            adaptation = hmc.StepSizeAdaptation(first, largest=annealing.LONGEST / settings.num_leapfrog)
            for _ in range(num_warmup):
                moved = hmc.transition(target, state, step_size=adaptation.step_size, num_leapfrog=settings.num_leapfrog, noise=source)
                adaptation.update(moved.acceptance)
                state = moved.state
            kept = []
            for _ in range(num_draws):
                moved = hmc.transition(target, state, step_size=adaptation.averaged, num_leapfrog=settings.num_leapfrog, noise=source)
                state = moved.state
                kept.append(state.position.cpu())
            return paths.placed(state.position, stretch.m, stretch.scale_tril), *_convergence(torch.stack(kept, 1))

    for rows in annealing.stretches(n, c, CHAIN_ROWS):
        parts += at_once(rows, walked)
    evaluations = c * (1 + (num_warmup + num_draws) * settings.num_leapfrog)
    last, r_hat, ess = zip(*parts, strict=True)
    return _Chains(torch.cat(last, 1), torch.cat(r_hat), torch.cat(ess), False, evaluations)


def _convergence(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Largest R-hat and smallest bulk effective sample size over coordinates, (C, S, n, D) -> (n,), (n,)."""
    import arviz

    of: Callable[..., Any] = arviz.convert_to_dataset
    found = of({"v": draws.double().numpy()})
    r_hat = torch.as_tensor(arviz.rhat(found)["v"].values).amax(-1)
    ess = torch.as_tensor(arviz.ess(found, method="bulk")["v"].values).amin(-1)
    return r_hat.nan_to_num(torch.inf), ess.nan_to_num(0.0)  # chains that never move have neither
