"""Posteriors under refinement: families with a row of free parameters per datum, before they are a guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppvae import memory, parts
from ppvae.batches import Batch
from ppvae.coordinates import Coordinates
from ppvae.families import DiagonalNormal, Family, FullRankNormal
from ppvae.local import LocalPosterior, LocalUnconstrained
from ppvae.pair import Pair
from ppvae.whitened import MixtureNormal


@dataclass
class Normals:
    """Normal posteriors over the unconstrained coordinates.

    Attributes:
        coordinates: The coordinates u in R^D.
        m: (N, D).
        scale_tril: L, (N, D, D); or its diagonal, (N, D), for a family that has no more.
        structure: (D, D) of 0 and 1: the entries of L that the family has.
    """

    coordinates: Coordinates
    m: Tensor
    scale_tril: Tensor
    structure: Tensor

    def as_guide(self, m: Tensor, scale_tril: Tensor, name: str = "refined") -> LocalPosterior | LocalUnconstrained:
        """The posteriors as a guide: site by site where each is a real vector, else through an auxiliary site."""
        sites, conditioned = self.coordinates.sites, self.coordinates.pair.globals
        blocks = {site.name: site.place for site in sites}
        separate = all(self._apart(place) for place in blocks.values())
        if separate and all(site.is_identity and len(site.event) == 1 for site in sites):
            families: dict[str, Family] = {site: self._family(place) for site, place in blocks.items()}
            tables = {site: _row(families[site], m, scale_tril, place) for site, place in blocks.items()}
            return LocalPosterior(families, tables, name, conditioned)
        whole = slice(0, self.coordinates.dim)
        family = self._family(whole)
        return LocalUnconstrained(sites, family, _row(family, m, scale_tril, whole), name, conditioned)

    def _family(self, place: slice) -> DiagonalNormal | FullRankNormal:
        block = self.structure[place, place]
        diagonal = bool((block == torch.eye(len(block), device=block.device)).all())
        return DiagonalNormal(len(block)) if diagonal else FullRankNormal(len(block))

    def _apart(self, place: slice) -> bool:
        """Whether the family has no covariance between this site and the others."""
        others = torch.ones(len(self.structure), dtype=torch.bool)
        others[place] = False
        return not bool(self.structure[place][:, others].any() or self.structure[others][:, place].any())


def _row(family: Any, m: Tensor, scale_tril: Tensor, place: slice) -> Tensor:
    if scale_tril.dim() == 2:
        return torch.cat([m[:, place], scale_tril[:, place].log()], -1)
    return family.row(m[:, place], scale_tril[:, place, place])  # type: ignore[no-any-return]


@dataclass
class Freed:
    """Families by site with a row of free parameters per datum, (N, P)."""

    families: dict[str, Family]
    tables: dict[str, Tensor]
    rate: float = 0.1

    def log_weights(self, pair: Pair, x: Batch, rows: Tensor, tables: dict[str, Tensor], num_draws: int) -> tuple[Tensor, Tensor]:
        """log p - log q at reparameterised draws, and the weight of each: (S, n), (S, n); the ELBO of each datum is sum_s weight log w."""
        values, log_q = {}, torch.zeros(())
        for site, family in self.families.items():
            value, density = _own_draws(family, tables[site], num_draws)
            log_q = log_q + density
            ones = [1] * (pair.nesting - 1) if pair.in_plate else []
            values[site] = value.reshape(num_draws, *ones, *value.shape[1:])
        log_w = sum(pair.score(x, values).values()) - log_q
        return log_w, torch.full_like(log_w, 1 / num_draws)

    def as_guide(self, pair: Pair, tables: dict[str, Tensor]) -> LocalPosterior | LocalUnconstrained:
        """The posteriors as a guide."""
        return LocalPosterior(self.families, tables, "refined", pair.globals)


@dataclass
class FreedUnconstrained:
    """One family over the unconstrained coordinates with a row of free parameters per datum, in the table "u".

    ``fixed``, (N, P'), is the part of the row that stays: the Normal that has whitened the coordinates.
    """

    coordinates: Coordinates
    family: Any
    tables: dict[str, Tensor]
    fixed: Tensor
    rate: float

    def log_weights(self, pair: Pair, x: Batch, rows: Tensor, tables: dict[str, Tensor], num_draws: int) -> tuple[Tensor, Tensor]:
        """As ``Freed.log_weights``; a mixture's draws are stratified, so that its weights have a gradient."""
        row = torch.cat([self.fixed[rows], tables["u"]], -1)
        inner = getattr(self.family, "inner", self.family)
        if isinstance(inner, MixtureNormal):
            v, weights = inner.stratified(tables["u"], num_draws)
            normal = self.family.outer.distribution(self.fixed[rows])
            u = normal.loc + torch.einsum("nij,knj->kni", normal.scale_tril, v)
            log_q = self.family.distribution(row.detach()).log_prob(u)
        else:
            u, log_q = _own_draws(self.family, row, num_draws)
            weights = u.new_full(u.shape[:2], 1 / num_draws)
        return self.coordinates.log_density(x, u).double() - log_q, weights.double()

    def as_guide(self, pair: Pair, tables: dict[str, Tensor]) -> LocalPosterior | LocalUnconstrained:
        """The posteriors as a guide."""
        table = torch.cat([self.fixed, tables["u"]], -1)
        return LocalUnconstrained(self.coordinates.sites, self.family, table, "refined", pair.globals)


def _own_draws(family: Any, row: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Reparameterised draws of each row's distribution, (S, n, *event), and log q there, (S, n).

    The parameters of log q are held fixed ("sticking the landing"): their score has mean zero and is only noise. Where memory runs out
    the same noise goes through a flow's networks part by part; of a part nothing is kept for the gradient but what it began with.
    """
    with memory.densities(len(row), num_draws) as pieces:
        q = family.distribution(row)
        if len(pieces) == 1:
            value: Tensor = q.rsample(torch.Size([num_draws]))
            return value, family.distribution(row.detach()).log_prob(value)
        while hasattr(q, "transforms"):
            q = q.base_dist
        e = q.rsample(torch.Size([num_draws]))

        def pushed(row: Tensor, e: Tensor) -> dict[str, Tensor]:
            value = _through(family.distribution(row), e)
            return {"value": value, "log_q": family.distribution(row.detach()).log_prob(value)}

        found = [(particles, checkpoint(pushed, row[rows], e[particles, rows], use_reentrant=False)) for rows, particles in pieces]
    joined = parts.joined(found, lambda _: 1)
    return joined["value"], joined["log_q"]


def _through(distribution: Any, e: Tensor) -> Tensor:
    """Draws of the innermost base as those of the distribution."""
    if not hasattr(distribution, "transforms"):
        return e
    e = _through(distribution.base_dist, e)
    for transform in distribution.transforms:
        e = transform(e)
    return e
