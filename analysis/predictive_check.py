"""Does the model make data like these? Statistics of replicated data, and each datum among the model's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Provenance, as_lists, batch_of, label, provenance
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.analysis.simulated import Place, Placement, simulated
from ppvae.analysis.uniformity import random_pit, random_ranks
from ppvae.batches import Batch, take
from ppvae.data import Data
from ppvae.errors import ArgumentError, ProgramError, ShapeError, check_count
from ppvae.importance import Streamed
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring
from ppvae.stream import stream

ROWS, REPLICATES = 512, 8  # fixed blocks: each draws from its own seed
MISFIT = 0.01  # a datum that fits worse than all but 1 % of the model's own data is told

Statistic = Callable[[Batch], Any]


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Data held against what the model makes.

    Attributes:
        names: Of the T statistics.
        observed: (T,), of the data.
        replicated: (R, T), of data drawn anew from p(x | z), z ~ q(z | x), all N rows at a time.
        p_value: (T,), two-sided, ties broken by chance. Small where the data are unlike their replications; since those were made with
            the help of the data, values near 1 are common and mean little.
        misfit: (N,), probability that a datum that the model made has a log p(x) as low as this one: uniform if the model made the data.
        log_px: (N,), nats, importance-weighted with K particles.
        simulated_log_px: (M,), the same of data that the model made.
        num_particles: K.
        source: Where the numbers came from.
    """

    names: tuple[str, ...]
    observed: Tensor
    replicated: Tensor
    p_value: Tensor
    misfit: Tensor
    log_px: Tensor
    simulated_log_px: Tensor
    num_particles: int
    source: Provenance

    def worst(self, count: int = 10) -> list[int]:
        """The rows that fit worst, the worst first."""
        return self.log_px.argsort()[:count].tolist()

    @property
    def misfits(self) -> list[int]:
        """The rows that fit worse than all but 1 % of the model's own data, the worst first."""
        return self.worst(int((self.misfit <= MISFIT).sum()))

    def __str__(self) -> str:
        n, rows = len(self.misfit), self.misfits
        told = ", ".join(f"{name} {p:.2g}" for name, p in zip(self.names, self.p_value.tolist(), strict=True))
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        listed = f" (rows {shown})" if rows else ""
        return (
            f"posterior predictive p: {told}; {len(rows)} of {n} data fit worse than all but 1 % of the model's own{listed}, "
            f"{MISFIT * n:.1f} expected (R={len(self.replicated)}, M={len(self.simulated_log_px)}, K={self.num_particles}; "
            f"{label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"names": list(self.names), "misfits": self.misfits}


def predictive_check(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 200,
    num_particles: int = 100,
    num_simulated: int = 1000,
    place: Place | None = None,
    seed: int = 0,
) -> PredictiveCheck:
    """Posterior predictive checks of the data as a whole, and the fit of each datum.

    The fit of a datum is its importance-weighted log p(x) with K particles; that it is a bound, by a guide that may be poor, is the same
    for the data and for what the model made, so ``misfit`` is exact whatever the guide.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        statistics: By name, functions of a batch (of N rows, in the form of x) that give a number. By default the mean, the standard
            deviation and, where x is discrete or has zeros, the share of zeros of what the model observes.
        num_draws: R, replications.
        num_particles: K.
        num_simulated: M, data drawn from the model, at the covariates of x cyclically.
        place: Puts values (N, *event) by observed site into rows of x, where that is not plain to see.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract, or the model cannot be simulated.
        DataError: Data outside the support of an observed site.
        ArgumentError: A statistic is no finite number.

    References:
        Gelman, Meng, Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies.
        Bayarri, Berger (2000), P values for composite null models, on why they are conservative.
    """
    check_count("num_draws", num_draws)
    check_count("num_simulated", num_simulated)
    check_count("num_particles", num_particles)
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    if not pair.latents:
        raise ProgramError("the model has no latent site in the data plate, so there is no posterior to predict from")
    put = place or Placement(pair, batch)
    chosen = dict(statistics) if statistics is not None else _defaults(pair, batch)
    if not chosen:
        raise ArgumentError("statistics names at least one function, got none")
    observed = _values(chosen, batch)
    replicated = torch.stack([_values(chosen, again) for again in _replications(pair, batch, put, num_draws, seed)])
    generator = noise.generator(seed, "predictive p")
    ranks = random_ranks((replicated < observed).sum(0), (replicated == observed).sum(0), generator)
    pit = random_pit(ranks, num_draws, generator)
    made = simulated(pair, batch, size=num_simulated, seed=noise.derived_seed(seed, "own data"), place=place)
    log_px = _log_px(pair, batch, num_particles, noise.derived_seed(seed, "fit"))
    own_pair = Pair(model, guide, made.batch, seed)
    own_pair.globals = pair.globals  # the data were made with these
    own = _log_px(own_pair, made.batch, num_particles, noise.derived_seed(seed, "fit of own data")).sort().values
    return PredictiveCheck(
        names=tuple(chosen),
        observed=observed,
        replicated=replicated,
        p_value=2 * torch.minimum(pit, 1 - pit),
        misfit=(torch.searchsorted(own, log_px, right=True) + 1).double() / (num_simulated + 1),
        log_px=log_px,
        simulated_log_px=own,
        num_particles=num_particles,
        source=provenance(x, pair, seed),
    )


def _replications(pair: Pair, x: Batch, put: Place, num_draws: int, seed: int) -> Any:
    """Batches of N rows with what the model observes drawn anew, one at a time."""
    at_once: Halving[dict[str, Tensor]] = Halving(1, "replications", block_rows=ROWS)

    def replicated(rows: slice, particles: slice) -> dict[str, Tensor]:
        x_rows, k = take(x, rows), particles.stop - particles.start
        with noise.seeded(seed, "replicated", rows.start, particles.start, device=pair.device), measuring(pair.model, pair.guide):
            values, _ = pair.draw(x_rows, rows, k)
            return pair.predict(x_rows, {name: values[name] for name in pair.latents}, k)

    for particles in noise.blocks(num_draws, REPLICATES):
        parts: dict[str, list[Tensor]] = {name: [] for name in pair.observed}
        for rows in noise.blocks(pair.num_data, ROWS):
            (found,) = at_once(rows, partial(replicated, particles=particles))
            for name in pair.observed:
                parts[name].append(pair.datum_first(found[name], name))
        joined = {name: torch.cat(values, 1) for name, values in parts.items()}
        for k in range(particles.stop - particles.start):
            yield put(x, {name: value[k] for name, value in joined.items()})


def _log_px(pair: Pair, x: Batch, num_particles: int, seed: int) -> Tensor:
    """The importance-weighted bound on log p(x), (N,)."""
    found = torch.full((pair.num_data,), torch.nan, dtype=torch.float64)
    sums: Streamed | None = None
    for terms in stream(pair, x, num_particles=num_particles, seed=seed):
        sums = sums or Streamed(num_particles, terms.rows.stop - terms.rows.start)
        sums.add(terms.log_weights)
        if sums.count == num_particles:
            found[terms.rows] = sums.log_mean_weight
            sums = None
    return found


def _values(statistics: Mapping[str, Statistic], x: Batch) -> Tensor:
    """(T,), float64."""
    values = []
    for name, statistic in statistics.items():
        value = torch.as_tensor(statistic(x), dtype=torch.float64).cpu()
        if value.numel() != 1 or not bool(torch.isfinite(value).all()):
            raise ArgumentError(
                f"the statistic '{name}' gave {_short(value)}, needed one finite number for a batch", where=f"statistics['{name}']"
            )
        values.append(value.reshape(()))
    return torch.stack(values)


def _short(value: Tensor) -> str:
    return str(value.item()) if value.numel() == 1 else f"a tensor of shape {tuple(value.shape)}"


def _defaults(pair: Pair, x: Batch) -> dict[str, Statistic]:
    """Mean, standard deviation and share of zeros of each observed site."""
    places = Placement(pair, x)
    found: dict[str, Statistic] = {}
    for site, value in places.read(x).items():
        after = f" of {site}" if len(places.places) > 1 else ""
        found[f"mean{after}"] = partial(_of_site, places, site, _mean)
        found[f"sd{after}"] = partial(_of_site, places, site, _sd)
        if pair.measure == "counting" or bool((value == 0).any()):
            found[f"share of zeros{after}"] = partial(_of_site, places, site, _share_of_zeros)
    return found


def _of_site(places: Placement, site: str, statistic: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    values, mask = places.read(batch)[site].double(), places.observed(batch, site)
    return statistic(values if mask is None else values[mask])


def _mean(values: Tensor) -> Tensor:
    return values.mean()


def _sd(values: Tensor) -> Tensor:
    return values.std(correction=0)


def _share_of_zeros(values: Tensor) -> Tensor:
    return (values == 0).double().mean()


@dataclass(frozen=True, eq=False)
class KHatByLabel:
    """Where importance weighting fails, by class.

    Attributes:
        labels: The C classes.
        count: (C,), data of each.
        share: (C,), of its data with k-hat not below the threshold.
        share_se: (C,), binomial standard errors.
        median: (C,), of k-hat.
        worst: The rows with the largest k-hat of each class, the largest first.
        threshold: min(1 - 1 / log10 K, 0.7).
    """

    labels: tuple[Any, ...]
    count: Tensor
    share: Tensor
    share_se: Tensor
    median: Tensor
    worst: tuple[tuple[int, ...], ...]
    threshold: float

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row a class."""
        columns = zip(self.labels, self.count.tolist(), self.share.tolist(), self.share_se.tolist(), self.worst, strict=True)
        return [{"label": a, "n": n, "share": s, "share_se": e, "worst": list(w)} for a, n, s, e, w in columns]

    def __str__(self) -> str:
        most = int(self.share.argmax())
        overall = float((self.share * self.count).sum() / self.count.sum())
        return (
            f"k-hat above {self.threshold:.2f} at {100 * overall:.1f} % of {int(self.count.sum())} data, "
            f"most at label {self.labels[most]}: "
            f"{100 * self.share[most]:.1f} ± {100 * self.share_se[most]:.1f} % of {int(self.count[most])}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"labels": list(self.labels), "worst": [list(rows) for rows in self.worst]}


def k_hat_by_label(found: LogLikelihood, labels: Tensor | Sequence[Any], *, num_worst: int = 5) -> KHatByLabel:
    """The share of data with k-hat above its threshold, by class, and the worst rows of each.

    Args:
        found: A log likelihood of N data.
        labels: (N,), whole numbers or words.
        num_worst: Rows listed a class.

    Raises:
        ShapeError: Not one label a datum.
    """
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    n = len(found.k_hat)
    if len(listed) != n or any(isinstance(one, list) for one in listed):
        raise ShapeError(f"labels are one a datum, ({n},), got {len(listed)}", mend="labels = data.labels")
    classes = tuple(sorted(set(listed)))
    place = torch.tensor([classes.index(one) for one in listed])
    badness = found.k_hat.nan_to_num(nan=math.inf)  # below 25 particles there is no k-hat, and nothing speaks for the weights
    count, share, median, worst = [], [], [], []
    for i in range(len(classes)):
        rows = (place == i).nonzero()[:, 0]
        count.append(len(rows))
        share.append((~(found.k_hat[rows] <= found.threshold)).double().mean())
        median.append(badness[rows].median())
        worst.append(tuple(rows[badness[rows].argsort(descending=True)[:num_worst]].tolist()))
    shares, counts = torch.stack(share), torch.tensor(count)
    return KHatByLabel(classes, counts, shares, (shares * (1 - shares) / counts).sqrt(), torch.stack(median), tuple(worst), found.threshold)
