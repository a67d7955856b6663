"""What a refinement starts from: the guide's own distributions at these data, with their parameters freed.

Family "same" frees (1) the rows of a guide with ``parameters_at`` and ``family``; (2) any site whose distribution has parameters that
do not move with the noise. A site that depends on an earlier draw, a transform conditioned on x and a point mass are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.coordinates import Coordinates
from ppvae.errors import FamilyError
from ppvae.families import DiagonalNormal, FullRankNormal, LowRankNormal
from ppvae.local import FreedSite, LocalUnconstrained
from ppvae.memory import Halving
from ppvae.pair import Pair
from ppvae.posteriors import Freed, FreedUnconstrained, Normals
from ppvae.programs import measuring, trace
from ppvae.support import masks, unwrapped
from ppvae.whitened import CouplingFlow, MixtureNormal, Whitened

BLOCK = 1024
MOMENT_DRAWS = 256
NORMALS = ("mean_field", "full_rank")
INNER = {"flow": CouplingFlow, "mixture": MixtureNormal}  # families over what a full-rank Normal has whitened
FAMILIES = ("same", *NORMALS, "low_rank", *INNER)
TWO_METHODS = (
    "give the guide two methods: parameters_at(x) -> (N, P) and an attribute family with distribution((..., P)) and num_parameters "
    "(see ppvae.families)"
)


def start_of(pair: Pair, x: Batch, family: str, seed: int) -> Normals | Freed | FreedUnconstrained:
    """Where the refinement of a pair starts: the guide's own posteriors in the family, or the nearest in it by their moments.

    Raises:
        FamilyError: naming the site that cannot be freed, and what to write.
    """
    if not pair.latents:
        raise FamilyError("the model has no latent site in the data plate, so there is no posterior to refine")
    # what is read off here no draw moves: any rows will do at once
    at_once: Halving[Any] = Halving(BLOCK, "the start of a refinement", block_rows=1)
    _refuse_masks(pair, x, seed, at_once)
    if family == "same":
        return _same(pair, x, seed, at_once)
    coordinates = Coordinates(pair, x, seed)
    m, scale_tril = _normal_start(pair, coordinates, x, seed, family, at_once)
    if family == "low_rank":
        low_rank = LowRankNormal(coordinates.dim)
        return FreedUnconstrained(coordinates, low_rank, {"u": low_rank.row(m, scale_tril)}, m[:, :0], 0.03)
    full = torch.ones(coordinates.dim, coordinates.dim, device=pair.device).tril()
    structure = full if family == "full_rank" else torch.eye(coordinates.dim, device=pair.device)
    return Normals(coordinates, m, scale_tril, structure.to(m.dtype))


def whitened(family: str, normals: Normals, m: Tensor, scale_tril: Tensor, seed: int) -> FreedUnconstrained:
    """A flow or a mixture in the coordinates that fitted full-rank Normals have whitened; the Normals stay."""
    dim = normals.coordinates.dim
    with noise.seeded(seed, "whitened", device=m.device):
        if family == "flow":
            inner: CouplingFlow | MixtureNormal = CouplingFlow(dim)
            table, rate = inner.identity_row((len(m),), m), 2e-3  # type: ignore[union-attr]
        else:
            inner = MixtureNormal(dim)
            spread = 0.5 * torch.randn(inner.num_components * dim, dtype=m.dtype, device=m.device)  # components that coincide stay so
            zeros = m.new_zeros(inner.num_components)
            table = torch.cat([zeros, spread, torch.zeros_like(spread)]).repeat(len(m), 1)
            rate = 0.03
    both = Whitened(inner)
    return FreedUnconstrained(normals.coordinates, both, {"u": table}, both.outer.row(m, scale_tril), rate)


def _normal_start(pair: Pair, coordinates: Coordinates, x: Batch, seed: int, family: str, at_once: Halving[Any]) -> tuple[Tensor, Tensor]:
    full = family == "full_rank"
    if isinstance(pair.guide, LocalUnconstrained) and isinstance(pair.guide.family, DiagonalNormal | FullRankNormal):
        q = pair.guide.family.distribution(pair.guide.table)
        own = q.mean, q.scale_tril if hasattr(q, "scale_tril") else torch.diag_embed(q.stddev)
    else:
        try:
            same = _same(pair, x, seed, at_once)
        except FamilyError:
            same = None
        if not isinstance(same, Normals):
            return _moments(pair, coordinates, x, seed, full)
        own = same.m, same.scale_tril
    m, scale_tril = own
    if full:
        return m, torch.diag_embed(scale_tril) if scale_tril.dim() == 2 else scale_tril
    return m, scale_tril if scale_tril.dim() == 2 else scale_tril.square().sum(-1).sqrt()


def _refuse_masks(pair: Pair, x: Batch, seed: int, at_once: Halving[Any]) -> None:
    looks = at_once(_first(pair), lambda rows: _distributions(pair, x, rows, seed))
    for name, site in itertools.chain.from_iterable(look.items() for look in looks):
        if masks(site):
            raise FamilyError(
                f"the latent site '{name}' is masked, and a local posterior has no mask",
                where=f"site '{name}'",
                mend="mask the observed sites alone, or refine the rows that are not masked",
            )


def _moments(pair: Pair, coordinates: Coordinates, x: Batch, seed: int, full: bool) -> tuple[Tensor, Tensor]:
    """Mean, and Cholesky factor of the covariance or standard deviations, of the guide's draws, for guides that are no Normal."""
    means, roots = [], []
    at_once: Halving[Tensor] = Halving(1, "the guide's moments")

    def draws(rows: slice) -> Tensor:
        with noise.seeded(seed, "moments", rows.start, device=pair.device), measuring(pair.model, pair.guide):
            return coordinates.pack(pair.draw(take(x, rows), rows, MOMENT_DRAWS)[0])

    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        (u,) = at_once(rows, draws)
        mean = u.mean(0)
        centred = u - mean
        variance = centred.square().mean(0).clamp(min=1e-8)
        means.append(mean)
        if not full:
            roots.append(variance.sqrt())
            continue
        # shrunk towards its diagonal: with few draws per dimension the sample covariance is near singular
        covariance = 0.8 * torch.einsum("kni,knj->nij", centred, centred) / len(u) + 0.2 * torch.diag_embed(variance)
        roots.append(torch.linalg.cholesky(covariance))
    return torch.cat(means), torch.cat(roots)


def _same(pair: Pair, x: Batch, seed: int, at_once: Halving[Any]) -> Normals | Freed:
    first = at_once(_first(pair), lambda rows: _distributions(pair, x, rows, seed))[0]
    kinds = {name: type(unwrapped(site["fn"])).__name__ for name, site in first.items()}
    normal = all(kind in ("Normal", "MultivariateNormal") for kind in kinds.values())
    methods = hasattr(pair.guide, "parameters_at") and hasattr(pair.guide, "family") and len(pair.latents) == 1
    if methods and not normal:
        return _by_methods(pair, x, at_once)
    for one, again in at_once(_first(pair), lambda rows: [_distributions(pair, x, rows, seed + i) for i in range(2)]):
        for name in pair.latents:
            _refuse(name, one[name], again[name])
    if normal:
        coordinates = Coordinates(pair, x, seed)
        if all(site.transform_is_identity for site in coordinates.sites):
            return _normals(pair, coordinates, x, seed, kinds, at_once)
    return _by_methods(pair, x, at_once) if methods else _by_parameters(pair, x, seed, first, at_once)


def _by_methods(pair: Pair, x: Batch, at_once: Halving[Any]) -> Freed:
    guide: Any = pair.guide
    with measuring(guide):
        blocks = noise.blocks(pair.num_data, BLOCK)
        table = torch.cat([part for rows in blocks for part in at_once(rows, lambda some: guide.parameters_at(take(x, some)))])
    return Freed({pair.latents[0]: guide.family}, {pair.latents[0]: table})


def _by_parameters(pair: Pair, x: Batch, seed: int, first: dict[str, Any], at_once: Halving[Any]) -> Freed:
    families: dict[str, FreedSite] = {}
    for name, site in first.items():
        base = unwrapped(site["fn"])
        if len(site["fn"].batch_shape) > 1:
            raise FamilyError(
                f"the guide's site '{name}' has plates inside a datum and is no Normal, so family 'same' cannot free it",
                where=f"site '{name}', {type(base).__name__}",
                mend=["refine by family 'mean_field' or 'full_rank'", TWO_METHODS],
            )
        if not site["fn"].has_rsample:
            raise FamilyError(
                f"the guide's site '{name}' is {type(base).__name__}, whose draws have no gradient, so it cannot be refined",
                where=f"site '{name}'",
                mend="measure it by log_likelihood, which needs no gradient",
            )
        families[name] = FreedSite(base, site["fn"].event_dim, _parameter_names(base))
    tables: dict[str, list[Tensor]] = {name: [] for name in families}
    for sites in _of_all_rows(pair, x, seed, at_once):
        for name, site in sites.items():
            tables[name].append(families[name].row(unwrapped(site["fn"])))
    return Freed(dict(families), {name: torch.cat(parts) for name, parts in tables.items()})


def _normals(pair: Pair, coordinates: Coordinates, x: Batch, seed: int, kinds: dict[str, str], at_once: Halving[Any]) -> Normals:
    means, roots = [], []
    diagonal = all(kind == "Normal" for kind in kinds.values())
    for sites in _of_all_rows(pair, x, seed, at_once):
        loc = coordinates.pack({name: _as_value(pair, site, "loc") for name, site in sites.items()}, transformed=False)[0]
        if diagonal:
            roots.append(coordinates.pack({name: _as_value(pair, site, "scale") for name, site in sites.items()}, transformed=False)[0])
            means.append(loc)
            continue
        root = loc.new_zeros(*loc.shape, loc.shape[-1])
        for place in coordinates.sites:
            site = sites[place.name]
            base = unwrapped(site["fn"])
            if kinds[place.name] == "MultivariateNormal":
                if base.scale_tril.dim() != 3:
                    raise FamilyError(
                        f"the guide's site '{place.name}' is a MultivariateNormal with more batch dims than the data's",
                        where=f"site '{place.name}'",
                        mend="refine by family 'full_rank'",
                    )
                root[:, place.place, place.place] = base.scale_tril
            else:
                scale = coordinates.pack_one(place, _as_value(pair, site, "scale"))[0]
                root[:, place.place, place.place] = torch.diag_embed(scale)
        means.append(loc)
        roots.append(root)
    structure = torch.zeros(coordinates.dim, coordinates.dim, device=pair.device)
    for place in coordinates.sites:
        size = place.place.stop - place.place.start
        full = kinds[place.name] == "MultivariateNormal"
        structure[place.place, place.place] = torch.ones(size, size).tril().to(structure) if full else torch.eye(size).to(structure)
    m = torch.cat(means)
    return Normals(coordinates, m, torch.cat(roots), structure.to(m.dtype))


def _as_value(pair: Pair, site: Any, parameter: str) -> Tensor:
    """A Normal's parameter in the layout of one particle's value, (1, [plates], n, *event)."""
    full = getattr(unwrapped(site["fn"]), parameter).expand(site["fn"].batch_shape + site["fn"].event_shape)
    ones = [1] * (pair.nesting - full.dim() + site["fn"].event_dim) if pair.in_plate else []
    return full.reshape(1, *ones, *full.shape)  # type: ignore[no-any-return]


def _first(pair: Pair) -> slice:
    """The rows that are looked at."""
    return slice(0, min(pair.num_data, BLOCK))


def _of_all_rows(pair: Pair, x: Batch, seed: int, at_once: Halving[Any]) -> Iterator[dict[str, Any]]:
    """The guide's latent sites at all rows, some at a time."""
    for rows in noise.blocks(pair.num_data, BLOCK):
        yield from at_once(rows, lambda some: _distributions(pair, x, some, seed))


def _distributions(pair: Pair, x: Batch, rows: slice, seed: int) -> dict[str, Any]:
    """The guide's latent sites at some rows."""
    guide = pair.guide.rows(rows) if hasattr(pair.guide, "rows") else pair.guide
    with noise.seeded(seed, "same", rows.start, device=pair.device), measuring(pair.model, pair.guide):
        found = trace(guide, take(x, rows), pair.globals)
    return {name: found.nodes[name] for name in pair.latents}


def _parameter_names(base: Any) -> list[str]:
    """The parameters to free: of alternatives such as probs and logits the one without a simplex, of covariances the Cholesky factor."""
    names = list(base.arg_constraints)
    for one, others in (("logits", ("probs",)), ("scale_tril", ("covariance_matrix", "precision_matrix"))):
        if one in names:
            names = [name for name in names if name not in others]
    return names


def _refuse(name: str, first: Any, again: Any) -> None:
    """Raise where a site's parameters are not a function of x alone."""
    base, other = unwrapped(first["fn"]), unwrapped(again["fn"])
    kind = type(base).__name__
    reason = ""
    if kind == "Delta":
        reason = "a point mass, which has no parameters to optimise in the family's own sense"
    elif hasattr(base, "transforms") and not base.arg_constraints:
        reason = "transformed by a flow whose parameters are not the distribution's own"
    elif not base.arg_constraints:
        reason = f"a {kind}, which lists no parameters"
    else:
        moved = [p for p in _parameter_names(base) if not torch.equal(getattr(base, p), getattr(other, p))]
        if moved:
            reason = f"a {kind} whose {moved[0]} moves with the noise: it depends on an earlier draw"
    if reason:
        raise FamilyError(
            f"family 'same' cannot free the guide's site '{name}': it is {reason}",
            where=f"site '{name}'",
            mend=[TWO_METHODS, "refine by family 'mean_field' or 'full_rank'"],
        )
