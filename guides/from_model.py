"""An amortized guide made from a model's own latent sites: their shapes and supports are read off a run of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae import noise
from ppvae.batches import Batch, device_of, num_data, take
from ppvae.build import recorded
from ppvae.coordinates import Coordinates, SiteCoordinates
from ppvae.errors import FamilyError, ShapeError
from ppvae.families import DiagonalNormal, Family, FullRankNormal, LowRankNormal
from ppvae.guides.autoregressive import Autoregressive
from ppvae.guides.flow import Couplings
from ppvae.guides.mixture import MixtureFamily
from ppvae.guides.pushed import Pushed, Record, support_record, transform_of
from ppvae.guides.splines import SplineCouplings
from ppvae.local import point_mass
from ppvae.modules import Program
from ppvae.nn import MLP
from ppvae.pair import Pair
from ppvae.programs import measuring, sample_sites, trace
from ppvae.support import unwrapped

FEATURES = 8  # of x that the maps of a flow see
FAMILIES = {
    "diagonal": DiagonalNormal,
    "full_rank": FullRankNormal,
    "low_rank": lambda dim: LowRankNormal(dim, min(2, dim)),
    "mixture": MixtureFamily,
    "flow": lambda dim: Couplings(dim, FEATURES),
    "inverse_autoregressive": lambda dim: Autoregressive(dim, FEATURES, hidden=(max(50, 2 * dim),)),
    "masked_autoregressive": lambda dim: Autoregressive(dim, FEATURES, hidden=(max(50, 2 * dim),), direction="masked"),
    "spline": lambda dim: SplineCouplings(dim, FEATURES),
}


@recorded
class Headed(nn.Module):
    """An encoder: head(network(x))."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, x: Batch) -> Tensor:
        """(N, *event) -> (N, P)."""
        return self.head(self.network(x))  # type: ignore[no-any-return]


@recorded
class Latent(PyroModule):
    """q(z | x) = family.distribution(encoder(x)) at one site of any name.

    Args:
        encoder: (N, *event) -> (N, family.num_parameters).
        family: Over the site's support.
        site: Its name.
    """

    def __init__(self, encoder: nn.Module, family: Family, site: str) -> None:
        super().__init__()
        self.encoder, self.family, self.site = encoder, family, site

    def parameters_at(self, x: Batch) -> Tensor:
        """The row of each datum, (N, P)."""
        return self.encoder(x)  # type: ignore[no-any-return]

    def forward(self, x: Batch) -> None:
        """Draw the site given x."""
        with pyro.plate("data", num_data(x), dim=-1):
            pyro.sample(self.site, self.family.distribution(self.parameters_at(x)))


@recorded
class Latents(PyroModule):
    """q(u | x) = joint.distribution(encoder(x)) over the unconstrained coordinates of all sites at once, each site z_s = T_s(u_s).

    The coordinates are an auxiliary site; each latent is a point mass there that carries the Jacobian, so that the density of a draw is
    that of the latents.

    Args:
        encoder: (N, *event) -> (N, joint.num_parameters).
        joint: A family over R^D.
        layout: For each site its name, support, plates inside a datum (name, size, dim), unconstrained event shape and event dims.
    """

    def __init__(self, encoder: nn.Module, joint: Family, layout: Sequence[Record]) -> None:
        super().__init__()
        self.encoder, self.joint = encoder, joint
        self.sites: list[SiteCoordinates] = []
        start = 0
        for name, support, inner, plates, event, event_dim in layout:
            place = slice(start, start + math.prod(event) * math.prod(inner))
            sizes = tuple((plate, size, dim) for plate, size, dim in plates)
            self.sites.append(SiteCoordinates(name, transform_of(support), tuple(inner), sizes, tuple(event), event_dim, place))
            start = place.stop

    def parameters_at(self, x: Batch) -> Tensor:
        """The row of each datum, (N, P)."""
        return self.encoder(x)  # type: ignore[no-any-return]

    def declare(self, row: Tensor) -> None:
        """Draw all sites by given rows, (N, P)."""
        with pyro.plate("data", len(row), dim=-1):
            u = pyro.sample("_unconstrained", self.joint.distribution(row), infer={"is_auxiliary": True})
            for site in self.sites:
                point_mass(site, u[..., site.place])

    def forward(self, x: Batch) -> None:
        """Draw all sites given x."""
        self.declare(self.parameters_at(x))


def for_model(
    model: Program, x: Batch, network: nn.Module, family: str | Family = "diagonal", hidden: Sequence[int] = ()
) -> Latent | Latents:
    """An amortized guide q(z | x) for a model as it stands: family(head(network(x))) over its latent sites.

    The model is run on a few rows of x. Its latent sites in the data plate are taken to unconstrained coordinates by
    ``torch.distributions.biject_to``, with the Jacobian in the density. One site keeps its name and support as a distribution of its own,
    and its amortization gap can be measured by freeing its rows; several sites, and sites in plates inside a datum, share one family over
    all coordinates, which can say that they depend on each other.

    Args:
        model: Keeps the contract.
        x: Data of the shapes to come, (N, *event); two rows are enough.
        network: (N, *event) -> (N, F), features of a datum; a head is put behind it.
        family: "diagonal", "full_rank", "low_rank" (rank 2), "mixture" (4 diagonal Normals), "flow" (couplings),
            "inverse_autoregressive", "masked_autoregressive", "spline", each with its defaults; or a family over R^D (``ppvae.families``).
        hidden: Widths of the head's hidden layers; empty for one linear map.

    Raises:
        FamilyError: A latent is discrete, global, or has no unconstrained coordinates; no such family, or one of another dimension.
        ShapeError: The network's output is not (N, F).
    """
    layout = _layout(model, x)
    dim = sum(math.prod(event) * math.prod(inner) for _, _, inner, _, event, _ in layout)
    chosen = _family(family, dim)
    encoder = Headed(network, _head(network, x, chosen.num_parameters, hidden))
    name, support, _, plates, event, _ = layout[0]
    if len(layout) > 1 or plates:
        return Latents(encoder, chosen, layout)
    identity = list(event) == [dim] and support in (["_Real"], ["_IndependentConstraint", ["_Real"], 1])
    return Latent(encoder, chosen if identity else Pushed(chosen, support, event), name)


def _layout(model: Program, x: Batch) -> list[Record]:
    """What ``Latents`` holds of each site, as JSON can keep it."""
    with noise.seeded(0, "for_model", device=device_of(x)), measuring(model):
        sites = sample_sites(trace(model, take(x, slice(0, 2))))
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    discrete = {name: type(unwrapped(site["fn"])).__name__ for name, site in latent.items() if site["fn"].support.is_discrete}
    if discrete:
        named = ", ".join(f"'{name}' ({kind})" for name, kind in discrete.items())
        raise FamilyError(
            f"the model's latent sites {named} are discrete, and a family over unconstrained coordinates has no draws for them",
            where=f"latent sites {list(latent)}",
            mend=["write the guide by hand, with a Categorical site for each", "sum them out of the model with TraceEnum_ELBO"],
        )

    def drawn_from_prior(rows: Batch) -> None:
        poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])(rows)

    pair = Pair(model, drawn_from_prior, x)
    if pair.globals:
        raise FamilyError(
            f"the latent sites {list(pair.globals)} lie outside the data plate: no encoder of one datum can say them",
            mend="write the guide by hand: global sites by pyro.param, the others in pyro.plate('data', N, dim=-1)",
        )
    if not pair.latents:
        raise FamilyError("the model has no latent site in the data plate, so there is no guide to build")
    found = Coordinates(pair, x).sites
    return [
        [
            site.name,
            support_record(latent[site.name]["fn"].support),
            list(site.inner),
            [list(plate) for plate in site.plates],
            list(site.event),
            site.event_dim,
        ]
        for site in found
    ]


def _family(family: str | Family, dim: int) -> Family:
    if isinstance(family, str):
        if family not in FAMILIES:
            raise FamilyError(f"family is one of {', '.join(FAMILIES)}, or a family of ppvae.families, got {family!r}")
        built: Any = FAMILIES[family]
        return built(dim)  # type: ignore[no-any-return]
    if family.latent_dim != dim:
        raise FamilyError(f"the model's latent sites have {dim} unconstrained coordinates, and the family {family.latent_dim}")
    return family


def _head(network: nn.Module, x: Batch, outputs: int, hidden: Sequence[int]) -> MLP:
    rows = take(x, slice(0, min(2, num_data(x))))
    with noise.forked(device_of(x)), measuring(network), torch.no_grad():
        features = network(rows)
    if not isinstance(features, Tensor) or features.shape[:-1] != (num_data(rows),):
        came = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ShapeError(f"the network must give one row of features a datum, ({num_data(rows)}, F), and gave {came}")
    return MLP(features.shape[-1], list(hidden), outputs).to(features)
