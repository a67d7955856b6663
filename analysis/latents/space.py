"""A pair seen through one latent site: codes of data, quantiles of its prior, decoded means, mass of the aggregated posterior."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppvae import noise, parts, simulate
from ppvae.analysis.estimate import batch_of
from ppvae.batches import Batch, take
from ppvae.data import Data
from ppvae.errors import ArgumentError, ProgramError, ShapeError
from ppvae.memory import Halving, NotInPieces
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.pieces import Piece
from ppvae.programs import has_no_inverse, measuring, prior_of, sample_sites, trace
from ppvae.support import unwrapped

ROWS = 1024  # rows a call of a program
DRAWS = 256  # of a posterior without a mean in closed form
PRIOR_DRAWS = 4096  # for quantiles of a prior without them in closed form
ELEMENTS = 2**22  # (points x codes x dimensions) at once, of the aggregated posterior's density
MULTIVARIATE_NORMALS = ("MultivariateNormal", "LowRankMultivariateNormal")

Labels = Tensor | Sequence[Any]


class Observed:
    """One observed site of a pair: its data, and what the prior decodes to.

    Args:
        model, guide: Programs of one argument, the batch; without a guide the prior stands for it.
        x: Data, (N, *event).
        observed: Which observed site, where there are several.
        seed: Rules every draw.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract.
    """

    def __init__(self, model: Program, guide: Program | None, x: Data | Batch, observed: str | None = None, seed: int = 0) -> None:
        self.batch = batch_of(x, model) if guide is None else batch_of(x, model, guide)
        self.pair = Pair(model, prior_of(model) if guide is None else guide, self.batch, seed)
        self.seed = seed
        self._observed = observed

    @property
    def observed_site(self) -> str:
        """The observed site, looked for where it is needed: codes need none."""
        return _chosen("observed", self._observed, self.pair.observed, self.pair.observed)

    @property
    def num_data(self) -> int:
        """N."""
        return self.pair.num_data

    def data(self, rows: Tensor | None = None) -> Tensor:
        """What the model observes of some rows, or of all, (n, *event), float64."""
        index = torch.arange(self.num_data) if rows is None else rows
        found = []
        for block in noise.blocks(len(index), ROWS):
            with noise.seeded(self.seed, "observed", device=self.pair.device), measuring(self.pair.model):
                found.append(self.pair.observed_values(self.rows(index[block]))[self.observed_site].double().cpu())
        return torch.cat(found)

    def from_prior(self, num_draws: int) -> Tensor:
        """E[x | z], z from the prior, at the covariates of the data cyclically, (num_draws, *event), float64."""
        template = self.rows(torch.arange(num_draws) % self.num_data)
        drawn = simulate.sample(self.pair.model, num_draws, template=template, mean=True, seed=self.seed)
        return drawn[self.observed_site].double().cpu()

    def rows(self, rows: Tensor) -> Batch:
        """Some rows of the batch."""
        return take(self.batch, rows.to(self.pair.device))


class LatentSpace(Observed):
    """And one continuous latent site of it, its values as rows (N, D) whatever its plates and its event.

    Args:
        model, guide, x, observed, seed: As of ``Observed``.
        site: Which latent site in the data plate, where there are several. Latents at other sites are drawn from the prior given this one.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract, or there is no such site.
    """

    def __init__(
        self, model: Program, guide: Program | None, x: Data | Batch, *, site: str | None = None, observed: str | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, guide, x, observed, seed)
        sites = self._prior_sites()
        continuous = [name for name in self.pair.latents if not sites[name]["fn"].support.is_discrete]
        self.site = _chosen("latent", site, continuous, self.pair.latents)
        self.prior, value = sites[self.site]["fn"], sites[self.site]["value"]
        self.dtype = value.dtype
        self.event_dim: int = self.prior.event_dim
        self.shape = tuple(value.movedim(value.dim() - 1 - self.event_dim, 0).shape[1:])
        self.dim = math.prod(self.shape)

    def posterior(self, rows: Tensor, part: slice = slice(None)) -> Any:
        """q(z | x) at the site for some rows, as ``simulate.encode`` gives it, or for a part of them from the seed of all."""
        some = rows[part]
        guide = self.pair.guide.rows(some) if hasattr(self.pair.guide, "rows") else self.pair.guide
        seed = noise.derived_seed(self.seed, "codes", int(rows[0]))
        return simulate.encode(guide, self.rows(some), site=self.site, seed=seed)

    def codes(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x) by datum, (n, D) each, float64; of 256 draws where they have no closed form."""
        index = torch.arange(self.num_data) if rows is None else rows
        at_once: Halving[list[list[Tensor]]] = Halving(1, "codes", block_rows=ROWS)

        def moments(block: slice) -> list[list[Tensor]]:
            chosen = index[block]

            def of_piece(piece: Piece, _: Batch) -> list[Tensor]:
                posterior = self.posterior(chosen, piece.rows)
                with noise.seeded(self.seed, "moments", block.start, device=self.pair.device), torch.no_grad():
                    found = _closed_moments(posterior)
                    if found is None and not piece.is_whole:
                        raise NotInPieces(f"those of site '{self.site}' that stand for its moments cannot be made in pieces")
                    return [self.as_rows(moment) for moment in found or _drawn_moments(posterior, DRAWS)]

            return [found for _, found in parts.drawn(of_piece, self.rows(chosen))]

        found = [part for block in noise.blocks(len(index), ROWS) for part in at_once(block, moments)[0]]
        return torch.cat([mean for mean, _ in found]), torch.cat([sd for _, sd in found])

    def draws(self) -> tuple[Tensor, Tensor]:
        """One draw per datum from the guide, and one from the prior, (N, D) each, float64."""
        at_once: Halving[tuple[Tensor, Tensor]] = Halving(1, "draws of the codes", block_rows=ROWS)

        def drawn(block: slice) -> tuple[Tensor, Tensor]:
            rows = torch.arange(block.start, block.stop)

            def of_piece(piece: Piece, _: Batch) -> Tensor:
                return self.as_rows(parts.sampled(piece, f"{self.site}, once more", self.posterior(rows, piece.rows)))

            with noise.seeded(self.seed, "draws", block.start, device=self.pair.device), measuring(self.pair.model, self.pair.guide):
                own = parts.drawn(of_piece, self.rows(rows))
                prior = self.pair.drawn_from_prior(self.rows(rows), 1)[self.site][0]
            return torch.cat([part for _, part in own]), self.as_rows(prior)

        found = [part for block in noise.blocks(self.num_data, ROWS) for part in at_once(block, drawn)]
        return torch.cat([own for own, _ in found]), torch.cat([prior for _, prior in found])

    def log_mass(self, z: Tensor, rows: Tensor) -> Tensor:
        """log of the aggregated posterior (1/n) sum_i q(z | x_i) over some rows, at z (M, D): (M,), nats.

        Raises:
            ProgramError: The guide cannot tell its density at a given z.
        """
        posterior = self.posterior(rows)
        points = self.as_values(z).unsqueeze(-1 - self.event_dim)
        size = max(1, ELEMENTS // (len(rows) * self.dim))
        at_once: Halving[Tensor] = Halving(size, "mass of the codes", block_rows=1)

        def mass(some: slice) -> Tensor:
            # plates of a datum stand left of the data in both; the data of the mixture are the last dim of the batch
            values = points.narrow(-2 - self.event_dim, some.start, some.stop - some.start)
            try:
                with torch.no_grad():
                    density = _last(posterior.log_prob(_before_plates(values, len(self.shape) - self.event_dim)))
            except (NotImplementedError, KeyError) as error:
                if not has_no_inverse(error):
                    raise
                raise ProgramError(
                    f"the guide cannot tell its density at a given value of '{self.site}', which the mass of its codes needs",
                    where=f"site '{self.site}': {type(posterior).__name__}",
                    mend="codes, traversals and attributes need no density",
                ) from error
            return torch.logsumexp(density.double(), -1).cpu() - math.log(len(rows))

        return torch.cat([part for block in noise.blocks(len(z), size) for part in at_once(block, mass)])

    def prior_mean(self) -> Tensor:
        """E[z] under the prior of the first row, (D,); of 4,096 draws where it has no closed form."""
        with noise.seeded(self.seed, "prior mean", device=self.pair.device):
            mean, _ = _closed_moments(self.prior) or _drawn_moments(self.prior, PRIOR_DRAWS)
            return self.as_rows(mean)[0]

    def prior_quantiles(self, levels: Tensor) -> Tensor:
        """Quantiles of the prior's marginals, (D, S): in closed form where torch has it, else of 4,096 draws."""
        fn, q = unwrapped(self.prior), levels.to(self.dtype)
        if type(fn).__name__ in MULTIVARIATE_NORMALS:
            fn = torch.distributions.Normal(fn.mean, fn.stddev)
        if not fn.event_dim:
            each = fn.expand(self.prior.batch_shape + self.prior.event_shape)
            with contextlib.suppress(NotImplementedError):  # torch's word for a distribution without quantiles: then of draws
                return torch.stack([self.as_rows(each.icdf(one.to(self.pair.device)))[0] for one in q], 1)
        with noise.seeded(self.seed, "prior quantiles", device=self.pair.device):
            drawn = torch.stack([self.as_rows(self.prior.sample())[0] for _ in range(PRIOR_DRAWS)])
        return torch.quantile(drawn, q.double().cpu(), dim=0).mT

    def decoded(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """E[x | z] at z (M, D), (M, *event), float64.

        Args:
            z: Values of the site.
            rows: (M,), the data whose covariates go with them; the first row by default.

        Raises:
            ArgumentError: A value lies outside the prior's support.
            ProgramError: The likelihood has no mean.
        """
        self._check_support(z)
        index = torch.zeros(len(z), dtype=torch.long) if rows is None else rows
        alone = len(self.pair.latents) > 1  # the other latents are then the same draws for every z
        size = 1 if alone else ROWS
        at_once: Halving[Tensor] = Halving(size, "decoding", block_rows=1)

        def means(some: slice) -> Tensor:
            values = {self.site: self.as_values(z[some]), **self.pair.globals}
            likelihood = simulate.decode(self.pair.model, values, template=self.rows(index[some]), site=self.observed_site, seed=self.seed)
            mean = _mean(likelihood, self.observed_site)
            return mean.movedim(mean.dim() - 1 - likelihood.event_dim, 0).double().cpu()

        return torch.cat([part for block in noise.blocks(len(z), size) for part in at_once(block, means)])

    def as_rows(self, values: Tensor) -> Tensor:
        """([plates], n, *event) -> (n, D), float64 on the CPU."""
        values = values.detach().movedim(values.dim() - 1 - self.event_dim, 0)
        return values.reshape(len(values), -1).double().cpu()

    def as_values(self, rows: Tensor) -> Tensor:
        """(n, D) -> ([plates], n, *event), as the model has them."""
        values = rows.to(device=self.pair.device, dtype=self.dtype).reshape(len(rows), *self.shape)
        return values.movedim(0, values.dim() - 1 - self.event_dim)

    def _prior_sites(self) -> dict[str, Any]:
        """The latent sites of one row, drawn from the prior."""
        with noise.seeded(self.seed, "prior", device=self.pair.device), measuring(self.pair.model):
            sites = sample_sites(trace(self.pair.model, take(self.batch, slice(0, 1)), self.pair.globals))
        return {name: sites[name] for name in self.pair.latents}

    def _check_support(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.dim:
            raise ShapeError(f"values of site '{self.site}' are rows (M, {self.dim}), got {tuple(z.shape)}")
        try:
            good = unwrapped(self.prior).support.check(self.as_values(z))
        except NotImplementedError:  # a transformed distribution that declares no support
            return
        if not bool(good.all()):
            raise ArgumentError(
                f"{int((~good).sum())} values lie outside the support of the latent site",
                where=f"site '{self.site}': {unwrapped(self.prior).support}",
                mend="choose values inside it; a straight line leaves a support that is curved or bounded",
            )


def labels_of(x: Data | Batch, labels: Labels | None, n: int) -> list[Any]:
    """One label a datum, as plain values: those handed in, else those of a ``Data``.

    Raises:
        ArgumentError: There are none.
        ShapeError: Not one a datum.
    """
    found = x.labels if labels is None and isinstance(x, Data) else labels
    if found is None:
        raise ArgumentError("needed a label for each datum, and these data have none", mend="labels=..., (N,) whole numbers or words")
    listed = found.tolist() if hasattr(found, "tolist") else list(found)
    if len(listed) != n or any(isinstance(one, list) for one in listed):
        raise ShapeError(f"labels are one a datum, ({n},), got {len(listed)}", mend="labels = data.labels")
    return listed


def subset(n: int, size: int, seed: int, purpose: str) -> Tensor:
    """At most ``size`` of n rows, chosen by the seed, in order."""
    chosen = torch.randperm(n, generator=noise.generator(seed, purpose))[:size]
    return chosen.sort().values


def _chosen(kind: str, name: str | None, allowed: list[str], every: list[str]) -> str:
    if name is None and len(allowed) == 1:
        return allowed[0]
    argument = "site" if kind == "latent" else "observed"
    if name is None:
        needed = f"one continuous {kind} site" if kind == "latent" else "one observed site"
        raise ProgramError(
            f"needed {needed} in the data plate, or the name of one, and the model has {len(allowed)}",
            where=f"{kind} sites of the model: {every}",
            mend=f"{argument}='{allowed[0]}'" if allowed else "",
        )
    if name not in allowed:
        what = "is discrete: there is nothing between its values" if name in every else "is not there"
        raise ProgramError(f"the {kind} site '{name}' {what}", where=f"{kind} sites that can be named: {allowed}")
    return name


def _closed_moments(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation where torch has a closed form for both."""
    shape = distribution.batch_shape + distribution.event_shape
    try:
        mean, sd = distribution.mean, distribution.stddev
        if bool(torch.isfinite(mean).all()):
            return mean.expand(shape), sd.expand(shape)
    except NotImplementedError:  # torch's word for a distribution without them
        pass
    return None


def _drawn_moments(distribution: Any, draws: int) -> tuple[Tensor, Tensor]:
    drawn = distribution.sample((draws,))
    return drawn.mean(0), drawn.std(0)


def _mean(distribution: Any, site: str) -> Tensor:
    shape = distribution.batch_shape + distribution.event_shape
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        mean = torch.full((), torch.nan)
    if bool(torch.isnan(mean).all()):
        raise ProgramError(
            f"site '{site}' has a distribution without a mean, so there is nothing to show of it",
            where=f"site '{site}': {type(unwrapped(distribution)).__name__} over {unwrapped(distribution).support}",
            mend="draw from it: simulate.decode(...).sample()",
        )
    return mean.expand(shape)


def _before_plates(values: Tensor, num_plates: int) -> Tensor:
    """([plates], M, 1, *event) -> (M, [plates], 1, *event)."""
    return values.movedim(num_plates, 0) if num_plates else values


def _last(density: Tensor) -> Tensor:
    """(M, [plates], N) -> (M, N), summed over a datum's plates."""
    return density.flatten(1, -2).sum(1) if density.dim() > 2 else density
