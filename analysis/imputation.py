"""Missing entries drawn from p(x_missing | x_observed): draws of z from the guide, weighted by what was observed, then x given z."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import memory, noise
from ppvae.analysis.estimate import Provenance, as_lists, batch_of, label, provenance, resolution
from ppvae.batches import Batch, take
from ppvae.data import Data
from ppvae.errors import ProgramError, check_count
from ppvae.importance import effective_sample_size, k_hat, k_hat_threshold
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring, sample_sites, trace
from ppvae.support import masks

ROWS = 1024  # in which masks are looked for in one call


@dataclass(frozen=True, eq=False)
class Imputation:
    """Missing entries given the observed ones, importance-weighted. At observed entries all hold what was observed.

    Attributes:
        samples: (S, N, *event), draws from p(x_missing | x_observed).
        mean: (N, *event), E[x_missing | x_observed].
        mean_se: (N, *event), its Monte Carlo standard error, by the delta method; 0 at observed entries.
        sd: (N, *event), standard deviation of p(x_d | x_observed); 0 at observed entries.
        missing: (N, *event), which entries are missing.
        ess: (N,), effective sample size of the weights, in [1, K].
        k_hat: (N,), shape of the weights' tail; -inf where they are constant, nan below 25 particles.
        num_particles: K, draws of z per datum.
        site: The observed site.
        source: Where the numbers came from.
    """

    samples: Tensor
    mean: Tensor
    mean_se: Tensor
    sd: Tensor
    missing: Tensor
    ess: Tensor
    k_hat: Tensor
    num_particles: int
    site: str
    source: Provenance

    def __str__(self) -> str:
        there = self.k_hat[~self.k_hat.isnan()]
        threshold = k_hat_threshold(self.num_particles)
        tail = f"k-hat above {threshold:.2f} at {100 * (there > threshold).double().mean():.1f} %" if len(there) else "no k-hat"
        count = int(self.missing.sum())
        spread = f"sd {self.sd[self.missing].square().mean().sqrt():.3g} (root mean square), " if count else ""
        return (
            f"imputed {count:,} of {self.missing.numel():,} entries of '{self.site}': {spread}effective sample size "
            f"{self.ess.median():.0f} at the median, {self.ess.min():.0f} at least of {self.num_particles} "
            f"(N={len(self.ess)}, S={len(self.samples)}, K={self.num_particles}; {tail}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; the draws, which belong into a file of tensors, are left out."""
        return {name: value for name, value in as_lists(self).items() if name != "samples"}


def impute(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    num_samples: int = 100,
    num_particles: int = 1000,
    site: str | None = None,
    seed: int = 0,
) -> Imputation:
    """Draw the missing entries of each datum from p(x_missing | x_observed), and their mean and standard deviation.

    K particles z ~ q(z | x) are weighted by p(x_observed, z) / q(z | x). Mean and standard deviation are those of the mixture of p(x | z)
    under these weights, in closed form given z where its distribution has moments; draws resample z by its weight.

    Args:
        model: A program of one argument, the batch; it masks the missing entries of an observed site (``models.missing.masked``,
            ``.mask()`` under ``.to_event()``, or ``poutine.mask`` over entries that are plates).
        guide: A program of the same argument; what it draws should depend on the observed entries alone.
        x: Data with a mask, as ``Data.from_arrays(..., missing=...)`` gives them.
        num_samples: S, draws per datum.
        num_particles: K, draws of z per datum. Where ``ess`` comes near 1, or k-hat above its threshold, more, or a better guide
            (``refine(...).guide``).
        site: Which observed site, where several are masked.
        seed: Rules every draw.

    Raises:
        ProgramError: No observed site is masked, or several and none is named.
        ShapeError: The pair breaks the contract.
        DataError: Data outside the support of an observed site.

    References:
        Mattei, Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets, sec. 3.
    """
    check_count("num_samples", num_samples)
    check_count("num_particles", num_particles)
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    name, missing, value = _site(pair, batch, site, seed)
    at_once: Halving[dict[str, Tensor]] = Halving(1, "imputing")

    def imputed(rows: slice) -> dict[str, Tensor]:
        return _Block(pair, batch, rows, name, missing[rows], value[rows], num_particles, num_samples, seed).imputed()

    with torch.no_grad():
        found = [block for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS) for block in at_once(rows, imputed)]
    return Imputation(
        samples=torch.cat([block["samples"] for block in found], 1),
        **{name: torch.cat([block[name] for block in found]) for name in ("mean", "mean_se", "sd", "missing", "ess", "k_hat")},
        num_particles=num_particles,
        site=name,
        source=provenance(x, pair, seed),
    )


class _Block:
    """The particles of up to 64 data."""

    def __init__(
        self,
        pair: Pair,
        x: Batch,
        rows: slice,
        site: str,
        missing: Tensor,
        value: Tensor,
        num_particles: int,
        num_samples: int,
        seed: int,
    ) -> None:
        self.pair, self.rows, self.seed = pair, rows, seed
        self.x = take(x, rows)
        self.num_particles, self.num_samples = num_particles, num_samples
        self.n = rows.stop - rows.start
        self.site, self.missing, self.value = site, missing, value
        self.resolution = resolution(x)

    def imputed(self) -> dict[str, Tensor]:
        """The fields of the result, for these data."""
        values, log_weights = self._weighed()
        weights = log_weights.softmax(0)  # (K, n)
        mean, mean_se, sd = self._moments(values, weights)
        return {
            "samples": torch.where(self.missing, self._samples(values, weights), self.value).cpu(),
            "mean": torch.where(self.missing, mean, self.value.to(mean.dtype)).cpu(),
            "mean_se": torch.where(self.missing, mean_se, 0).cpu(),
            "sd": torch.where(self.missing, sd, 0).cpu(),
            "missing": self.missing.cpu(),
            "ess": effective_sample_size(log_weights).cpu(),
            "k_hat": k_hat(log_weights.cpu(), self.resolution),
        }

    def _weighed(self) -> tuple[dict[str, Tensor], Tensor]:
        """All particles, (K, [plates], n, *event) by latent, and log p(x_observed, z) - log q(z | x), (K, n)."""
        drawn: list[dict[str, Tensor]] = []
        log_weights = []
        for particles in noise.blocks(self.num_particles, noise.BLOCK_PARTICLES):
            k = particles.stop - particles.start
            with self._running("impute", particles.start):
                values, log_q = self.pair.draw(self.x, self.rows, k)
                log_p = self.pair.score(self.x, values, check_from=None if particles.start else self.rows.start, num_particles=k)
            drawn.append({name: values[name] for name in self.pair.latents})
            log_weights.append(torch.stack(list(log_p.values())).sum(0) - sum(log_q.values()))
        return {name: torch.cat([values[name] for values in drawn]) for name in self.pair.latents}, torch.cat(log_weights)

    def _moments(self, values: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, its standard error and standard deviation of x under the weighted mixture of p(x | z), (n, *event), float64.

        Sums are about the mean of the first particles, so that a large offset does not cancel digits.
        """
        centre: Tensor | None = None
        sums = [torch.zeros((), dtype=torch.float64)] * 5
        for particles in noise.blocks(self.num_particles, noise.BLOCK_PARTICLES):
            some, w = {name: value[particles] for name, value in values.items()}, weights[particles]
            with self._running("given", particles.start):
                terms = self._terms(some, w, centre)
            if terms is None:
                with self._running("drawn for moments", particles.start):
                    draws = self._drawn(some, len(w))
                terms = self._terms(some, w, centre, draws)
            assert terms is not None  # of draws there always are
            centre = terms[0]
            sums = [total.to(term.device) + term for total, term in zip(sums, terms[1:], strict=True)]
        assert centre is not None  # there is a particle at least
        first, second, error_2, error_1, error_0 = sums
        variance_of_mean = error_2 - 2 * first * error_1 + first.square() * error_0
        return centre + first, variance_of_mean.clamp(min=0).sqrt(), (second - first.square()).clamp(min=0).sqrt()

    def _samples(self, values: dict[str, Tensor], weights: Tensor) -> Tensor:
        """(S, n, *event), each draw from p(x | z) at a particle drawn by its weight."""
        with self._running("resampled"):
            chosen = torch.multinomial(weights.mT, self.num_samples, replacement=True).mT  # (S, n)
        taken = {}
        for name, value in values.items():
            data_dim = value.dim() - self.pair.event_dims[name] - 1
            index = chosen.reshape(-1, *[1] * (data_dim - 1), self.n, *[1] * self.pair.event_dims[name])
            taken[name] = value.gather(0, index.expand(-1, *value.shape[1:]))
        drawn = []
        for particles in noise.blocks(self.num_samples, noise.BLOCK_PARTICLES):
            some = {name: value[particles] for name, value in taken.items()}
            with self._running("imputed", particles.start):
                drawn.append(self._drawn(some, particles.stop - particles.start))
        return torch.cat(drawn)

    def _terms(self, values: dict[str, Tensor], w: Tensor, centre: Tensor | None, draws: Tensor | None = None) -> list[Tensor] | None:
        """Some particles' mean to sum about, unless there is a ``centre`` already, and their share of the sums, (n, *event) each, float64.

        None where p(x | z) has no moments in closed form. ``draws``, (k, n, *event), then stand for them: their spread is all.
        """
        found: dict[int, list[Tensor]] = {}
        with memory.densities(self.n, len(w)) as pieces:
            for rows, particles in pieces:
                if draws is None:
                    moments = self._given(values, rows, particles)
                    if moments is None:
                        return None
                    mean, variance = moments
                else:
                    mean = draws[particles, rows].double()
                    variance = torch.zeros_like(mean)
                before = found.get(rows.start)
                about = before[0] if before else mean.mean(0) if centre is None else centre[rows]
                offset = mean - about
                weight = w[particles, rows].reshape(*mean.shape[:2], *[1] * (mean.dim() - 2))
                terms = [weight * offset, weight * (variance + offset.square())]
                terms = [term.sum(0) for term in (*terms, *(weight.square() * offset**power for power in (2, 1, 0)))]
                found[rows.start] = [about, *([a + b for a, b in zip(before[1:], terms, strict=True)] if before else terms)]
        return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*found.values(), strict=True)]

    def _given(self, values: dict[str, Tensor], rows: slice, particles: slice) -> tuple[Tensor, Tensor] | None:
        """E[x | z] and Var[x | z] of some rows and particles, (k, n, *event), float64; None where they have no closed form."""
        k = particles.stop - particles.start
        moments = _moments_of(self.pair.sites_at(self.x, values, rows, particles)[self.site]["fn"])
        if moments is None:
            return None
        mean, variance = (moment.double().unflatten(0, (k, -1)) for moment in moments)
        return mean, variance

    def _drawn(self, values: dict[str, Tensor], k: int) -> Tensor:
        """Draws from p(x | z) at k particles, (k, n, *event)."""
        drawn = self.pair.predict(self.x, values, k, [self.site], repeated=True)[self.site]
        return drawn.movedim(drawn.dim() - self.pair.event_dims[self.site] - 1, 1)

    @contextlib.contextmanager
    def _running(self, purpose: str, first: int = 0) -> Iterator[None]:
        with noise.seeded(self.seed, purpose, self.rows.start, first, device=self.pair.device), measuring(self.pair.model, self.pair.guide):
            yield


def _site(pair: Pair, x: Batch, named: str | None, seed: int) -> tuple[str, Tensor, Tensor]:
    """The masked site, and which of its entries are missing and what they hold, data first, (N, [plates], *event) each.

    Raises:
        ProgramError: There is none, or several and none is named.
    """

    def look(rows: slice) -> dict[str, tuple[bool, Tensor, Tensor]]:
        with noise.seeded(seed, "masks", device=pair.device), measuring(pair.model):
            sites = sample_sites(trace(pair.model, take(x, rows), pair.globals))
        return {name: (bool(masks(sites[name])), ~_observed(sites[name]), sites[name]["value"]) for name in pair.observed}

    found = [part for rows in noise.blocks(pair.num_data, ROWS) for part in pair.reading(rows, look)]
    masked = [name for name in pair.observed if any(part[name][0] for part in found)]
    if len(masked) != 1 if named is None else named not in masked:
        came = f"'{named}' came" if named is not None else "none was named"
        raise ProgramError(
            f"needed one masked observed site to impute, and {came}",
            where=f"observed sites of the model: {pair.observed}, of which masked: {masked or 'none'}",
            mend="name it: site='...'" if masked else "mask its entries: models.missing.masked(distribution, x['observed'])",
        )
    name = named or masked[0]
    missing, value = (torch.cat([_data_first(part[name][side], pair.event_dims[name]) for part in found]) for side in (1, 2))
    return name, missing, value


def _observed(site: Any) -> Tensor:
    """Which entries count in the site's density, in the shape of its value."""
    observed = torch.ones_like(site["value"], dtype=torch.bool)
    for mask in masks(site):
        observed = observed & mask
    return observed


def _moments_of(fn: Any) -> tuple[Tensor, Tensor] | None:
    """E[x | z] and Var[x | z], (kn, [plates], *event); None where they are not all finite and in closed form."""
    shape = fn.batch_shape + fn.event_shape
    if hasattr(type(fn), "mean") and hasattr(type(fn), "variance"):  # asked of the class: an AttributeError inside is its author's to see
        mean, variance = _or_nan(fn, "mean").expand(shape), _or_nan(fn, "variance").expand(shape)
        if bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
            return _data_first(mean, fn.event_dim), _data_first(variance, fn.event_dim)
    return None


def _or_nan(fn: Any, moment: str) -> Tensor:
    """A moment of a distribution; nan where torch or Pyro say that it has no closed form."""
    try:
        found: Tensor = getattr(fn, moment)
    except NotImplementedError:
        return torch.tensor(torch.nan)
    return found


def _data_first(value: Tensor, event_dim: int) -> Tensor:
    """([plates], N, *event) -> (N, [plates], *event)."""
    return value.movedim(-1 - event_dim, 0)
