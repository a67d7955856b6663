"""Is the guide a posterior? Simulation-based calibration of an amortized guide: where the latents that made x fall among its draws.

z ~ p(z), x ~ p(x | z), z_1..z_L ~ q(z | x): if q(z | x) is the posterior, the rank of any f(z, x) among f(z_1, x)..f(z_L, x) is uniform
on 0..L. Three kinds of f are looked at: every dimension of z; log q(z | x), whose ranks say what the guide's regions of highest density
cover; and log p(x | z). The last is the one that sees a guide that ignores a part of x: its draws are a posterior given the rest of x,
so that ranks of every function of z and of that rest are uniform.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.draws import Drawn, drawn, draws_at_once
from ppvae.analysis.estimate import Provenance, as_lists, batch_of, describe, label, resolution
from ppvae.analysis.simulated import Place, Simulated, simulated
from ppvae.analysis.uniformity import Bands, bands, p_values, random_pit, random_ranks
from ppvae.batches import Batch, take
from ppvae.data import Data
from ppvae.errors import ArgumentError, DivergedError, ProgramError, check_count
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DENSITY, LIKELIHOOD = "log q(z | x)", "log p(x | z)"


@dataclass(frozen=True)
class Fault:
    """A quantity whose ranks are not uniform.

    Attributes:
        name: A dimension of a latent site, "log q(z | x)" or "log p(x | z)".
        direction: What is wrong with the guide there.
        p_value: Of this quantity alone, of the exact simultaneous test.
        scale: Of a dimension, how wide the guide is relative to the truth, and
        offset: how far too high it lies, in its own standard deviations; both as if Normal, nan for the other quantities.
    """

    name: str
    direction: str
    p_value: float
    scale: float
    offset: float

    def __str__(self) -> str:
        size = ""
        if self.direction in ("too narrow", "too wide") and not math.isnan(self.scale):
            size = f"sd about {self.scale:.2f} times what it should be, "
        elif self.direction in ("too low", "too high"):
            size = f"mean off by about {abs(self.offset):.2f} sd, "
        return f"{self.name} {self.direction} ({size}p {_small(self.p_value)})"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the latents that made each simulated datum among the guide's draws for it.

    Attributes:
        ranks: (N, D), in 0..L, by dimension of the latents; ties are broken by chance.
        pit: (N, D), (rank + U) / (L + 1): uniform on (0, 1) where the guide is a posterior.
        joint_rank: (N,), rank of log q(z | x); -1 where the guide's density cannot be evaluated at a given z.
        joint_pit: (N,), its pit; nan there.
        likelihood_rank: (N,), rank of log p(x | z).
        likelihood_pit: (N,), its pit.
        levels: (C,), nominal levels.
        coverage: (C,), share of the data whose latents lie in the guide's region of highest density of that level.
        coverage_se: (C,), binomial standard errors.
        p_value: (D + 2,), of each quantity alone.
        names: The D dimensions, then "log q(z | x)" and "log p(x | z)".
        num_draws: L.
        level: Family-wise level of the verdict: the chance that a posterior is called uncalibrated is at most this.
        source: Where the numbers came from.
    """

    ranks: Tensor
    pit: Tensor
    joint_rank: Tensor
    joint_pit: Tensor
    likelihood_rank: Tensor
    likelihood_pit: Tensor
    levels: Tensor
    coverage: Tensor
    coverage_se: Tensor
    p_value: Tensor
    names: tuple[str, ...]
    num_draws: int
    level: float
    source: Provenance

    @property
    def num_tests(self) -> int:
        """Quantities that were tested: each is held to level / num_tests (Bonferroni)."""
        return int((~self.p_value.isnan()).sum())

    @property
    def calibrated(self) -> bool:
        """Whether no quantity's ranks are further from uniform than chance explains."""
        return not self.faults

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The quantities whose ranks are not uniform, the least probable first."""
        found = [self._fault(i) for i in (self.p_value <= self.level / self.num_tests).nonzero()[:, 0].tolist()]
        return tuple(sorted(found, key=lambda fault: fault.p_value))

    @property
    def bands(self) -> Bands:
        """The simultaneous band that every quantity's empirical distribution function is held to."""
        return bands(len(self.ranks), self.num_draws, self.level / self.num_tests)

    @property
    def interval_coverage(self) -> Tensor:
        """(C, D), share of the data whose latents lie in the guide's central interval of each level, by dimension."""
        return ((2 * self.pit - 1).abs() <= self.levels[:, None, None]).double().mean(1)

    @property
    def scale(self) -> Tensor:
        """(D,), how wide the guide is relative to the truth, as if both were Normal: 1 / sd of Phi^-1(pit)."""
        return 1 / _scores(self.pit).std(0)

    @property
    def offset(self) -> Tensor:
        """(D,), how far the guide lies too high, in its own standard deviations, as if Normal: -mean of Phi^-1(pit)."""
        return -_scores(self.pit).mean(0)

    def all_ranks(self) -> Iterator[tuple[str, Tensor]]:
        """Name and ranks (N,) of every quantity that was tested."""
        columns = itertools.chain(self.ranks.unbind(1), [self.joint_rank, self.likelihood_rank])
        return ((name, rank) for name, rank, p in zip(self.names, columns, self.p_value.tolist(), strict=True) if not math.isnan(p))

    def _fault(self, i: int) -> Fault:
        name, p = self.names[i], self.p_value[i].item()
        if name == DENSITY:
            return Fault(name, "covers too little" if self.joint_pit.mean() < 0.5 else "covers too much", p, math.nan, math.nan)
        if name == LIKELIHOOD:
            told = "fits x more closely than it should"
            if self.likelihood_pit.mean() > 0.5:
                told = "fits x less well than it should: misplaced, too wide, or blind to a part of x"
            return Fault(name, told, p, math.nan, math.nan)
        return Fault(name, _direction(self.pit[:, i]), p, self.scale[i].item(), self.offset[i].item())

    def __str__(self) -> str:
        ninety = int((self.levels - 0.9).abs().argmin())
        covers = (
            f"{100 * self.levels[ninety]:.0f} % regions cover {100 * self.coverage[ninety]:.1f} ± {100 * self.coverage_se[ninety]:.1f} %; "
        )
        covers = "" if self.joint_pit.isnan().all() else covers
        verdict = f"calibrated: no fault found in {self.num_tests} quantities"
        if not self.calibrated:
            shown = "; ".join(map(str, self.faults[:3]))
            verdict = f"not calibrated: {shown}" + (f" and {len(self.faults) - 3} more" if len(self.faults) > 3 else "")
        return (
            f"{verdict} ({covers}N={len(self.ranks)} simulated, L={self.num_draws}, family-wise level {self.level:g}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        faults = [vars(fault) for fault in self.faults]
        return as_lists(self) | {"names": list(self.names), "calibrated": self.calibrated, "faults": faults}


def calibration(
    model: Program,
    guide: Program,
    *,
    template: Data | Batch,
    num_data: int = 1000,
    num_draws: int = 100,
    levels: Sequence[float] = LEVELS,
    level: float = 0.05,
    place: Place | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration of a guide on data drawn from the model.

    It answers for data as the model makes them; real data that the model does not make may find the same guide worse. With global sites
    the ranks are conditional on one draw of them from the guide.

    Args:
        model, guide: Programs of one argument, the batch.
        template: A batch that gives shapes and covariates; its rows are used cyclically, its observed values are not.
        num_data: N. On linear Gaussian models of two latent dimensions, with 100 draws, a posterior sd of 0.8 or 1.25 times the truth is
            found in all of 100 runs from 200 data on (in 91 with 100), a mean off by 0.3 sd and an ignored dimension of x with
            300. An ignored dimension that says little about z needs more.
        num_draws: L, draws of the guide per datum.
        levels: Nominal levels of the coverage curve.
        level: Family-wise level of the verdict, over all dimensions, the joint density and the likelihood together.
        place: Puts simulated values (N, *event) by observed site into the template's rows, where that is not plain to see.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract, or the model cannot be simulated.
        ArgumentError: A level outside (0, 1), or too few data.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian inference algorithms with simulation-based calibration.
        Säilynoja, Bürkner, Vehtari (2022), Graphical test for discrete uniformity, sec. 2, the bands.
        Modrák et al. (2023), Simulation-based calibration checking: the choice of test quantities shapes sensitivity, the likelihood.
        Hermans et al. (2022), A crisis in simulation-based inference, sec. 3, expected coverage.
    """
    check_count("num_data", num_data, least=20)
    check_count("num_draws", num_draws)
    for one in (level, *levels):
        if not 0 < one < 1:
            raise ArgumentError(f"a level lies in (0, 1), got {one!r}")
    looked_at = batch_of(template, model, guide)
    first = Pair(model, guide, looked_at, seed)
    if not first.latents:
        raise ProgramError("the model has no latent site in the data plate, so there is no posterior to calibrate")
    made = simulated(first, looked_at, size=num_data, seed=seed, place=place)
    pair = Pair(model, guide, made.batch, seed)
    pair.globals = first.globals  # the data were made with these
    ranks = _ranks(pair, made, num_draws, seed)
    generator = noise.generator(seed, "calibration pit")
    pit = random_pit(ranks.double(), num_draws, generator)
    pit[ranks < 0] = torch.nan
    p_value = p_values(ranks.clamp(min=0), num_draws)
    p_value[(ranks < 0).any(0)] = torch.nan
    nominal = torch.tensor(list(levels), dtype=torch.float64)
    # the share of draws that are denser than the truth is below c where the region of level c holds the truth
    coverage = (1 - pit[:, -2] <= nominal[:, None]).double().mean(1)
    if bool((ranks[:, -2] < 0).any()):
        coverage = torch.full_like(nominal, torch.nan)
    return Calibration(
        ranks=ranks[:, :-2],
        pit=pit[:, :-2],
        joint_rank=ranks[:, -2],
        joint_pit=pit[:, -2],
        likelihood_rank=ranks[:, -1],
        likelihood_pit=pit[:, -1],
        levels=nominal,
        coverage=coverage,
        coverage_se=(coverage * (1 - coverage) / num_data).sqrt(),
        p_value=p_value,
        names=(*_names(pair, made), DENSITY, LIKELIHOOD),
        num_draws=num_draws,
        level=level,
        source=_provenance(template, pair, num_data, seed),
    )


def _ranks(pair: Pair, made: Simulated, num_draws: int, seed: int) -> Tensor:
    """Ranks of all quantities, (N, D + 2): dimensions, log q, log p(x | z); -1 where the guide has no density at a given z."""
    blocks = []
    fine = resolution(made.batch)
    truth = below = equal = width = torch.empty(0)
    at_once = draws_at_once("calibration")

    def of_truth(rows: slice) -> Tensor:
        x, values = take(made.batch, rows), made.particle(pair, rows)
        return _quantities(pair, x, values, pair.guide_density(x, rows, values, "calibration density"))[0]

    def of_draws(_: slice, block: Drawn) -> Tensor:
        return _quantities(pair, block.x, block.values, block.log_q_sum)

    for block in drawn(pair, made.batch, num_draws=num_draws, seed=seed, purpose="calibration", at_once=at_once):
        n = block.rows.stop - block.rows.start
        if block.particles.start == 0:
            (truth,) = at_once(block.rows, of_truth)
            below, equal = (torch.zeros(truth.shape, dtype=torch.long, device=truth.device) for _ in range(2))
            # densities are rounded as the shapes of a run have it, so a likelihood that z does not move would be off by a rounding
            width = fine * truth.abs().clamp(min=1)
            width[..., :-2] = 0.0
        (found,) = at_once(block.rows, partial(of_draws, block=block))
        below += (found < truth - width).sum(0)
        equal += ((found - truth).abs() <= width).sum(0)
        if block.particles.stop == num_draws:
            ranks = random_ranks(below, equal, noise.generator(seed, "calibration ties", block.rows.start)).cpu()
            ranks[truth.isnan().cpu()] = -1
            blocks.append(ranks.reshape(n, -1))
    return torch.cat(blocks)


def _quantities(pair: Pair, x: Batch, values: dict[str, Tensor], log_q: Tensor) -> Tensor:
    """What is ranked, (k, n, D + 2), float64."""
    with measuring(pair.model, pair.guide):
        densities = pair.score(x, values)
    likelihood = sum(densities[name] for name in pair.observed)
    if bool(torch.isnan(likelihood).any()):  # type: ignore[arg-type]
        raise DivergedError(
            "log p(x | z) of simulated data is not a number",
            where=f"sites {pair.observed}",
            mend="look at the distribution's parameters there: a scale that underflowed to 0, a logit that overflowed",
        )
    parts = [pair.datum_first(values[name], name).double() for name in pair.latents]
    return torch.cat([*[part.reshape(*part.shape[:2], -1) for part in parts], log_q[..., None], likelihood[..., None]], -1)  # type: ignore[index]


def _names(pair: Pair, made: Simulated) -> list[str]:
    names = []
    for name, value in made.particle(pair, slice(0, 1)).items():
        shape = pair.datum_first(value, name).shape[2:]
        places = itertools.product(*map(range, shape))
        names += [f"{name}[{','.join(map(str, place))}]" if shape else name for place in places]
    return names


def _provenance(template: Data | Batch, pair: Pair, num_data: int, seed: int) -> Provenance:
    record = {"name": "simulated from the model", "num_data": num_data, "template": describe(template)}
    return Provenance(record, pair.measure, seed, tuple(sorted(pair.globals)))


def _direction(pit: Tensor) -> str:
    """The stronger of a shift and a change of width, by their standard scores under uniformity (variances 1/12 and 1/180)."""
    centred = pit - 0.5
    shift = (centred.mean() * math.sqrt(12 * len(pit))).item()
    width = ((centred.square().mean() - 1 / 12) * math.sqrt(180 * len(pit))).item()
    if abs(shift) >= abs(width):
        return "too low" if shift > 0 else "too high"
    return "too narrow" if width > 0 else "too wide"


def _scores(pit: Tensor) -> Tensor:
    return torch.special.ndtri(pit)  # type: ignore[no-any-return]


def _small(p: float) -> str:
    return "< 1e-10" if p <= 1e-10 else f"= {p:.2g}"
