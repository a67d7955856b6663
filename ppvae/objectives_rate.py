"""Objectives that hold the rate somewhere: free bits (at least so much in every group), capacity (exactly so much in all)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppvae.errors import ObjectiveError
from ppvae.modules import Program
from ppvae.objectives_traces import Objective, Sites, each_latent, refuse_unreparameterised
from ppvae.support import masks, unwrapped


class Rated(Objective):
    """An objective of the distortion and of KL(q(z | x) || p(z)), each a mean over the batch before anything is done with it."""

    def loss_and_surrogate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss, which is differentiable as it stands, twice."""
        runs = self._runs(model, guide, args, kwargs)
        for _, sites_q in runs:
            refuse_unreparameterised(self, sites_q)
        distortion = -self._particles_first([self._by_datum(_observed(sites_p)) for sites_p, _ in runs]).mean(0, keepdim=True)
        n, scale = distortion.shape[-1], self._scale(*runs[0])
        loss = scale * (distortion.sum() + n * self._price(model, runs))
        return loss, loss

    def _price(self, model: Program, runs: list[tuple[Sites, Sites]]) -> Tensor:
        """What is paid for the rate, nats per datum, ()."""
        raise NotImplementedError

    def _mean_over_data(self, site: Any, found: Tensor, event_dim: int) -> Tensor:
        """(K, plates, N, *event) of a site, or (plates, N, *event), to its mean over particles and data, (plates x event,)."""
        found = found.movedim(found.dim() - event_dim - 1, 0)
        found = found.flatten(0, 1) if self._in_a_plate else found
        return found.mean(0).flatten()


class FreeBits(Rated):
    """E_q[-log p(x | z)] + sum_g max(nats, KL_g), with KL_g the mean over the batch of the KL of one group of dimensions.

    A group whose mean KL is below the threshold costs the threshold and has no gradient: nothing is gained by emptying it further. No bound
    on log p(x) unless all groups are above; then it is minus the ELBO. KLs are closed forms where torch knows them, else of the draw.

    The loss is this sum, nats of the batch. On several processes each takes the mean over its share of the batch.

    Args:
        nats: The threshold of every group, nats per datum.
        groups: "dimension", each dimension of each latent site by itself; "site", a site's dimensions together; or, by site, the number of
            the group that each of its dimensions belongs to, {"z": [0, 0, 1, 1]}.
        num_particles, vectorize_particles, max_plate_nesting: As in Pyro's ELBOs.

    Raises:
        ObjectiveError: A latent is not reparameterised, or does not factorise where its dimensions are to be told apart.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016), Improved variational inference with inverse autoregressive flow,
        sec. C.8.
    """

    def __init__(
        self,
        nats: float,
        groups: str | Mapping[str, Sequence[int]] = "dimension",
        num_particles: int = 1,
        *,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting)
        if not 0 <= nats < math.inf:
            raise ObjectiveError(f"free bits are a number of nats >= 0, got {nats!r}")
        if isinstance(groups, str) and groups not in ("dimension", "site"):
            raise ObjectiveError(f"groups are 'dimension', 'site' or numbers by site, got {groups!r}")
        self.nats = nats
        self.groups = groups if isinstance(groups, str) else "numbered"
        self.numbers = {} if isinstance(groups, str) else {name: list(numbers) for name, numbers in groups.items()}

    def __str__(self) -> str:
        groups = self.numbers if self.numbers else f"'{self.groups}'"
        return f"FreeBits(nats={self.nats:g}, groups={groups}, num_particles={self.num_particles})"

    def _price(self, model: Program, runs: list[tuple[Sites, Sites]]) -> Tensor:
        names = [name for name, _, _ in each_latent(*runs[0])]
        unknown = [name for name in self.numbers if name not in names]
        if unknown:
            raise ObjectiveError(f"groups name the site '{unknown[0]}', and the latents are {names}")
        found = [self._by_group(name, [(p[name], q[name]) for p, q in runs]).clamp(min=self.nats).sum() for name in names]
        return torch.stack(found).sum() if found else torch.zeros(())

    def _by_group(self, name: str, pairs: list[tuple[Any, Any]]) -> Tensor:
        """The mean KL of each group of a site, (groups,)."""
        if self.groups == "site":
            return torch.stack([self._mean_over_data(q, site_kl(p, q), 0) for p, q in pairs]).mean(0).sum(0, keepdim=True)
        found = torch.stack([self._mean_over_data(q, kl_per_dimension(name, p, q), q["fn"].event_dim) for p, q in pairs]).mean(0)
        if name not in self.numbers:
            return found
        numbers = self.numbers[name]
        if len(numbers) != len(found):
            raise ObjectiveError(
                f"site '{name}' has {len(found)} dimensions, and groups has {len(numbers)} numbers for it",
                mend=f"a number for each: groups={{'{name}': {list(range(len(found)))}}}",
            )
        index = torch.tensor([sorted(set(numbers)).index(number) for number in numbers], device=found.device)
        return found.new_zeros(len(set(numbers))).index_add(0, index, found)


class Capacity(Rated):
    """E_q[-log p(x | z)] + gamma |KL - C|, with KL the mean over the batch of KL(q(z | x) || p(z)): the rate is held at C.

    The loss is this sum, nats of the batch, and no bound on log p(x). On several processes each takes the mean over its share of the batch.

    Args:
        capacity: C, nats per datum; or a function of the step, ``objectives.linear(0.0, 25.0, steps=100_000)``, which ``ppvae.SVI`` tells.
        gamma: Weight of the distance.
        num_particles, vectorize_particles, max_plate_nesting: As in Pyro's ELBOs.

    Raises:
        ObjectiveError: A latent is not reparameterised; C is a function of the step and nobody tells the step.

    References:
        Burgess, Higgins, Pal, Matthey, Watters, Desjardins, Lerchner (2018), Understanding disentangling in beta-VAE, eq. 8.
    """

    def __init__(
        self,
        capacity: float | Callable[[int], float],
        gamma: float = 1000.0,
        num_particles: int = 1,
        *,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting)
        for name, value in (("capacity", capacity), ("gamma", gamma)):
            if not callable(value) and not 0 <= value < math.inf:
                raise ObjectiveError(f"{name} is a number >= 0, got {value!r}")
        self.capacity, self.gamma = capacity, gamma
        self.not_captured = "its capacity is another number at every step" if callable(capacity) else ""

    def __str__(self) -> str:
        named = getattr(self.capacity, "__qualname__", self.capacity)  # a function's own text holds its address
        return f"Capacity(capacity={named}, gamma={self.gamma:g}, num_particles={self.num_particles})"

    def _price(self, model: Program, runs: list[tuple[Sites, Sites]]) -> Tensor:
        found = [self._mean_over_data(q, site_kl(p, q), 0) for sites in runs for _, p, q in each_latent(*sites)]
        return self.gamma * (torch.stack([kl.sum() for kl in found]).sum() / len(runs) - self._capacity(model)).abs()

    def _capacity(self, model: Program) -> float:
        if not callable(self.capacity):
            return self.capacity
        step = getattr(getattr(model, "scales", None), "step", None)
        if step is None:
            raise ObjectiveError("a capacity that is a function of the step needs ppvae.SVI, which tells the step", mend="ppvae.SVI(...)")
        return float(self.capacity(step))


def kl_per_dimension(name: str, site_p: Any, site_q: Any) -> Tensor:
    """KL of each dimension of a factorised site, shaped as its draw: in closed form where torch has one, else of the draw.

    Raises:
        ObjectiveError: The site does not factorise, or is masked.
    """
    p, q = unwrapped(site_p["fn"]), unwrapped(site_q["fn"])
    if p.event_dim or q.event_dim or masks(site_p) or masks(site_q):
        raise ObjectiveError(
            f"the dimensions of site '{name}' cannot be told apart: {type(q).__name__} in the guide, {type(p).__name__} in the model",
            where=f"site '{name}', which has to factorise and to have no mask",
            mend="groups='site' takes its dimensions together",
        )
    shape = site_q["value"].shape
    try:
        return kl_divergence(q.expand(shape), p.expand(shape))
    except NotImplementedError:  # torch has no closed form for this pair
        return q.log_prob(site_q["value"]) - p.log_prob(site_q["value"])  # type: ignore[no-any-return]


def site_kl(site_p: Any, site_q: Any) -> Tensor:
    """KL of a site as a whole, of its batch shape: in closed form where torch has one, else of the draw."""
    if masks(site_p) or masks(site_q):
        raise ObjectiveError(f"site '{site_q['name']}' is masked, and the KL of what is masked is not defined here", mend="Trace_ELBO()")
    shape = site_q["value"].shape[: site_q["value"].dim() - site_q["fn"].event_dim]
    try:
        found = kl_divergence(site_q["fn"], site_p["fn"])
    except NotImplementedError:  # torch has no closed form for this pair
        found = site_q["fn"].log_prob(site_q["value"]) - site_p["fn"].log_prob(site_q["value"])
    return found.expand(shape)


def _observed(sites: Sites) -> Sites:
    return {name: site for name, site in sites.items() if site["is_observed"]}
