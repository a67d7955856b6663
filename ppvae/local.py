"""Local posteriors: a family behind a free table, one row per datum. A guide for the data that it was made for, and no others."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to

from ppvae.batches import Batch, num_data
from ppvae.coordinates import SiteCoordinates
from ppvae.errors import FamilyError, ShapeError
from ppvae.families import Family


class LocalPosterior:
    """q_n(z) for n = 1..N: at each site ``family.distribution(table[n])``.

    Args:
        families: A family for each latent site.
        tables: The parameters of each site, (N, P).
        name: What it is called in results.
        conditioned: Global sites, and the draw of them that this posterior is conditional on.
    """

    def __init__(
        self, families: dict[str, Family], tables: dict[str, Tensor], name: str, conditioned: dict[str, Tensor] | None = None
    ) -> None:
        self.families, self.tables, self.name, self.conditioned = families, tables, name, conditioned or {}
        self.num_data = len(next(iter(tables.values())))
        self.belongs_to: str | None = None  # digest of its data

    def rows(self, rows: Tensor | slice) -> LocalPosterior:
        """The local posterior of some of its data."""
        return self._with({site: table[rows] for site, table in self.tables.items()})

    def repeated(self, times: int) -> LocalPosterior:
        """The local posterior of the data ``times`` times over."""
        return self._with({site: table.repeat(times, 1) for site, table in self.tables.items()})

    def widened(self, factor: float) -> LocalPosterior:
        """Every scale times ``factor``, where the families are Normal: lighter weights' tails, at the price of some variance."""
        tables = {site: family.widened(self.tables[site], factor) for site, family in self.families.items()}  # type: ignore[attr-defined]
        return self._with(tables, f"{self.name}, widened {factor:g}")

    def _with(self, tables: dict[str, Tensor], name: str = "") -> LocalPosterior:
        return LocalPosterior(self.families, tables, name or self.name, self.conditioned)

    def __call__(self, x: Batch) -> None:
        """Draw the latents of x, the data that this posterior belongs to.

        Raises:
            ShapeError: Another number of data came.
        """
        _check_length(self, x)
        condition(self.conditioned)
        with pyro.plate("data", self.num_data, dim=-1):
            for site, family in self.families.items():
                pyro.sample(site, family.distribution(self.tables[site]))


class LocalUnconstrained:
    """q_n(u) over the unconstrained coordinates of all latents at once, pushed forward to the sites.

    The coordinates are an auxiliary site; each latent is a point mass there with the Jacobian as its density.

    Args:
        sites: Where each latent lies in u.
        family: A family over R^D.
        table: (N, P).
        name: What it is called in results.
        conditioned: Global sites, and the draw of them that this posterior is conditional on.
    """

    def __init__(
        self, sites: list[SiteCoordinates], family: Family, table: Tensor, name: str, conditioned: dict[str, Tensor] | None = None
    ) -> None:
        self.sites, self.family, self.table, self.name, self.conditioned = sites, family, table, name, conditioned or {}
        self.num_data = len(table)
        self.belongs_to: str | None = None  # digest of its data

    def rows(self, rows: Tensor | slice) -> LocalUnconstrained:
        """The local posterior of some of its data."""
        return self._with(self.table[rows])

    def repeated(self, times: int) -> LocalUnconstrained:
        """The local posterior of the data ``times`` times over."""
        return self._with(self.table.repeat(times, 1))

    def widened(self, factor: float) -> LocalUnconstrained:
        """Every scale times ``factor``."""
        table = self.family.widened(self.table, factor)  # type: ignore[attr-defined]
        return self._with(table, f"{self.name}, widened {factor:g}")

    def _with(self, table: Tensor, name: str = "") -> LocalUnconstrained:
        return LocalUnconstrained(self.sites, self.family, table, name or self.name, self.conditioned)

    def __call__(self, x: Batch) -> None:
        """Draw the latents of x, the data that this posterior belongs to.

        Raises:
            ShapeError: Another number of data came.
        """
        _check_length(self, x)
        condition(self.conditioned)
        with pyro.plate("data", self.num_data, dim=-1):
            u = pyro.sample("_unconstrained", self.family.distribution(self.table), infer={"is_auxiliary": True})
            for site in self.sites:
                point_mass(site, u[..., site.place])


def point_mass(site: SiteCoordinates, part: Tensor, log_density: Tensor | None = None) -> None:
    """Register a latent at a point of its unconstrained coordinates, within the data plate.

    Args:
        site: Which latent.
        part: Its part of u, (n, d), or (K, 1, ..., n, d) under a particle plate.
        log_density: (n,), or (K, 1, ..., n); what the site is to count as, in place of the Jacobian, -log |dz/du|.
    """
    n = part.shape[-2]
    leading = part.shape[:1] if part.dim() > 2 else ()
    plates = (*[1] * max(0, part.dim() - 3 - len(site.inner)), *site.inner)
    part = part.reshape(*leading, n, *plates, *site.event).movedim(len(leading), len(leading) + len(plates))
    value = site.transform(part)
    if log_density is None:
        share = -site.transform.log_abs_det_jacobian(part, value)
    else:  # spread over the plates inside a datum, which sum over it
        share = (log_density / math.prod(plates)).reshape(*leading, *[1] * len(plates), n)
        share = share.expand(value.shape[: value.dim() - site.event_dim])
    with ExitStack() as stack:
        for name, size, dim in site.plates:
            stack.enter_context(pyro.plate(name, size, dim=dim))
        pyro.sample(site.name, dist.Delta(value, log_density=share, event_dim=site.event_dim))


class FreedSite:
    """The distribution of one guide site with its parameters freed, as a family: a row of unconstrained numbers -> the distribution.

    Args:
        distribution: The site's distribution at N data, not wrapped.
        event_dim: Dimensions that ``to_event`` took into the event.
        names: Parameters to free.
    """

    def __init__(self, distribution: Any, event_dim: int, names: list[str]) -> None:
        self.cls = type(distribution)
        self.reinterpreted = event_dim - distribution.event_dim
        self.names = names
        limits = [distribution.arg_constraints[name] for name in names]
        if any(isinstance(bound, Tensor) and bound.numel() > 1 for limit in limits for bound in vars(limit).values()):
            raise FamilyError(
                f"a {self.cls.__name__} has parameters that constrain each other, which have no unconstrained form",
                mend="refine by family 'mean_field' or 'full_rank'",
            )
        self.transforms = [biject_to(limit) for limit in limits]
        self.latent_dim = distribution.event_shape.numel()
        self.shapes = []
        for name, transform in zip(names, self.transforms, strict=True):
            self.shapes.append(tuple(transform.inverse_shape(self._full(distribution, name).shape)[1:]))
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.num_parameters = sum(self.sizes)

    def row(self, distribution: Any) -> Tensor:
        """The unconstrained parameters of a distribution of this kind, (N, P)."""
        parts = []
        for name, transform in zip(self.names, self.transforms, strict=True):
            free = transform.inv(self._full(distribution, name))
            parts.append(free.reshape(len(free), -1))
        return torch.cat(parts, 1)

    def distribution(self, parameters: Tensor) -> Any:
        """(N, P) -> the distribution."""
        parts = parameters.split(self.sizes, -1)
        arguments = {
            name: transform(part.reshape(*parameters.shape[:-1], *shape))
            for name, transform, part, shape in zip(self.names, self.transforms, parts, self.shapes, strict=True)
        }
        return self.cls(**arguments).to_event(self.reinterpreted)

    def _full(self, distribution: Any, name: str) -> Tensor:
        """A parameter at the full batch shape: a scalar scale becomes one number per datum and dimension."""
        value = getattr(distribution, name)
        event = distribution.arg_constraints[name].event_dim
        return value.expand(distribution.batch_shape + value.shape[value.dim() - event :])  # type: ignore[no-any-return]


def condition(values: dict[str, Tensor]) -> None:
    """Register global sites at the values that a local posterior is conditional on."""
    for name, value in values.items():
        pyro.sample(name, dist.Delta(value, event_dim=value.dim()))


def _check_length(posterior: LocalPosterior | LocalUnconstrained, x: Batch) -> None:
    if num_data(x) != posterior.num_data:
        raise ShapeError(
            f"this local posterior belongs to {posterior.num_data} data, and {num_data(x)} came",
            mend="hand in the x that it was refined for, or take its rows: posterior.rows(slice(0, 10))",
        )
