"""Unconstrained coordinates: all latents of a datum as one vector u in R^D, and log p(x, z(u)) |dz/du| as a function of it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.enumeration import States
from ppvae.errors import FamilyError
from ppvae.pair import Pair
from ppvae.programs import measuring, sample_sites, trace
from ppvae.support import unwrapped


@dataclass(frozen=True)
class SiteCoordinates:
    """Where one latent site lies in u.

    Attributes:
        name: The site.
        transform: From R^d to the site's support.
        inner: Sizes of the plates inside a datum, without leading ones.
        plates: Their names, sizes and dims, to enter them again.
        event: Shape of one unconstrained event.
        event_dim: Dimensions of one event.
        place: Its slice of u.
    """

    name: str
    transform: Any
    inner: tuple[int, ...]
    plates: tuple[tuple[str, int, int], ...]
    event: tuple[int, ...]
    event_dim: int
    place: slice

    @property
    def transform_is_identity(self) -> bool:
        """Whether the site's support is all of R^d."""
        inner = self.transform
        while hasattr(inner, "base_transform"):
            inner = inner.base_transform
        return bool(inner == torch.distributions.transforms.identity_transform)

    @property
    def is_identity(self) -> bool:
        """Whether the site is a real vector as it stands, without plates inside the datum."""
        return self.transform_is_identity and not self.inner


class Coordinates:
    """The latents of a pair as u in R^D, per datum.

    Args:
        pair: Model and guide.
        x: The data of the measurement.
        seed: Rules the draws at which the sites are looked at.
        enumerate_discrete: Leave the discrete latents out of u and sum them out of ``log_density``: HMC, annealing and quadrature then
            see the continuous part of a mixed model. The density stays differentiable in u.

    Raises:
        FamilyError: A latent is discrete (unless it is enumerated), or its support changes from datum to datum.
    """

    def __init__(self, pair: Pair, x: Batch, seed: int = 0, enumerate_discrete: bool = False) -> None:
        self.pair = pair
        self.states = States(pair, x, seed) if enumerate_discrete else None
        discrete = self.states.names if self.states else []
        rows = torch.arange(min(2, pair.num_data))
        with noise.seeded(seed, "coordinates", device=pair.device), measuring(pair.model, pair.guide):
            values, _ = pair.draw(take(x, rows), rows, 2)
            found = sample_sites(trace(pair.model, take(x, rows), pair.globals))
        self.sites: list[SiteCoordinates] = []
        self.dim = 0
        for name in pair.latents:
            if name in discrete:
                continue
            site = self._site(name, values[name], found[name])
            self.sites.append(site)
            self.dim = site.place.stop

    def _site(self, name: str, value: Tensor, site: Any) -> SiteCoordinates:
        support = site["fn"].support
        if support.is_discrete:
            raise FamilyError(
                f"the latent site '{name}' is discrete ({type(unwrapped(site['fn'])).__name__}) and has no unconstrained coordinates",
                where=f"site '{name}'",
                mend=[
                    "refine by family 'same'",
                    "sum it out: Coordinates(pair, x, enumerate_discrete=True), or exact_log_likelihood(model, x)",
                ],
            )
        if type(support).__name__ == "MixtureSameFamilyConstraint":  # a mixture lies where its components lie
            support = support.base_constraint
        try:
            transform = biject_to(_narrowed(name, support))
        except NotImplementedError as error:
            raise FamilyError(
                f"the support of the latent site '{name}' has no transform from unconstrained coordinates",
                where=f"site '{name}', {support}",
                mend="declare the site on a support that torch.distributions.biject_to knows, and transform it afterwards",
            ) from error
        event_dim = site["fn"].event_dim
        data_dim = value.dim() - event_dim - 1
        event = tuple(transform.inverse_shape(value.shape[data_dim + 1 :])) if event_dim else ()
        inner = without_leading_ones(tuple(value.shape[1:data_dim]))
        size = math.prod(event) * math.prod(inner)
        plates = tuple((f.name, f.size, f.dim) for f in site["cond_indep_stack"] if f.vectorized and f.dim < -1)
        return SiteCoordinates(name, transform, inner, plates, event, event_dim, slice(self.dim, self.dim + size))

    def unpack(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """u (K, n, D) to the latents (K, [plates], n, *event) and log |dz/du|, (K, n)."""
        values, log_det = {}, u.new_zeros(u.shape[:2])
        for site in self.sites:
            plates = self._plates(site)
            part = u[..., site.place].reshape(*u.shape[:2], *plates, *site.event).movedim(1, 1 + len(plates))
            values[site.name] = site.transform(part)
            change = site.transform.log_abs_det_jacobian(part, values[site.name])
            log_det = log_det + change.movedim(1 + len(plates), 1).reshape(*u.shape[:2], -1).sum(-1)
        return values, log_det

    def pack(self, values: dict[str, Tensor], transformed: bool = True) -> Tensor:
        """Latents (K, [plates], n, *event) to u, (K, n, D); without ``transformed`` only their layout is changed."""
        parts = []
        for site in self.sites:
            value = values[site.name]
            parts.append(self.pack_one(site, site.transform.inv(value) if transformed else value))
        return torch.cat(parts, -1)

    def pack_one(self, site: SiteCoordinates, value: Tensor) -> Tensor:
        """One site's unconstrained value (K, [plates], n, *event) to its part of u, (K, n, d)."""
        value = value.movedim(1 + len(self._plates(site)), 1)
        return value.reshape(*value.shape[:2], -1)

    def _plates(self, site: SiteCoordinates) -> tuple[int, ...]:
        """The plates' sizes as they stand in a value: under a particle plate every site has all dims, as ones where it has no plate."""
        missing = self.pair.nesting - 1 - len(site.inner) if self.pair.in_plate else 0
        return (1,) * missing + site.inner

    def log_density(self, x: Batch, u: Tensor) -> Tensor:
        """log p(x, z(u)) + log |dz/du|, (K, n, D) -> (K, n), in the dtype of u; enumerated latents are summed out."""
        values, log_det = self.unpack(u)
        if self.states is not None and self.states.sites:
            return self.states.log_sum(x, values).to(u.dtype) + log_det
        return sum(self.pair.score(x, values).values()).to(u.dtype) + log_det  # type: ignore[union-attr]

    def gradient(self, x: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
        """``log_density`` and its gradient by u, (K, n) and (K, n, D)."""
        with measuring(self.pair.model), torch.enable_grad(), pyro.validation_enabled(False):
            u = u.detach().requires_grad_(True)
            if self.states is not None and self.states.sites:
                return self._gradient_over_states(x, u)
            density = self.log_density(x, u)
            (gradient,) = torch.autograd.grad(density.sum(), u)
        return density.detach(), gradient

    def _gradient_over_states(self, x: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient block by block of states, each with a graph of its own, so that memory does not grow with their number."""
        assert self.states is not None
        values, log_det = self.unpack(u)
        rest = {name: value.detach().requires_grad_(True) for name, value in values.items()}
        density = torch.full(u.shape[:2], -torch.inf, dtype=torch.float64, device=u.device)
        gradients = {name: torch.zeros_like(value) for name, value in rest.items()}
        for part in self.states.log_sums(x, rest):
            found = torch.autograd.grad(part.sum(), list(rest.values()))
            total = torch.logaddexp(density, part.detach())
            before, now = ((term - total).exp().nan_to_num(0.0) for term in (density, part.detach()))
            for (name, gradient), new in zip(gradients.items(), found, strict=True):
                # where the block's density is 0 its gradient is not a number, and its weight is 0
                new = torch.where(self._spread(now, name, new) > 0, new, 0.0)
                gradients[name] = self._spread(before, name, new) * gradient + self._spread(now, name, new) * new
            density = total
        outputs, weights = [*values.values(), log_det], [*gradients.values(), torch.ones_like(log_det)]
        moved = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
        (gradient,) = torch.autograd.grad([output for output, _ in moved], u, [weight for _, weight in moved])
        return density.to(u.dtype) + log_det.detach(), gradient

    def _spread(self, weight: Tensor, name: str, value: Tensor) -> Tensor:
        """A number per particle and datum, (K, n), in the layout of a value (K, [plates], n, *event)."""
        event_dim = self.pair.event_dims[name]
        plates = value.dim() - event_dim - 2
        return weight.reshape(len(weight), *[1] * plates, weight.shape[1], *[1] * event_dim).to(value.dtype)


def _narrowed(name: str, support: Any) -> Any:
    """The same support with bounds of one number each: a bound as long as the data would broadcast into every event.

    Raises:
        FamilyError: A bound is not one number for all data and dimensions.
    """
    support = copy.copy(support)
    for key, value in vars(support).items():
        if isinstance(value, Constraint):
            setattr(support, key, _narrowed(name, value))
        elif isinstance(value, Tensor) and value.numel() > 1:
            if not bool((value == value.flatten()[0]).all()):
                raise FamilyError(
                    f"a bound of the support of the latent site '{name}' is not one number for all data and dimensions",
                    where=f"site '{name}', {support}",
                    mend="declare the site on a fixed support and transform it afterwards",
                )
            setattr(support, key, value.flatten()[0])
    return support


def without_leading_ones(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """(1, 1, 3, 1) -> (3, 1)."""
    while sizes and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes
