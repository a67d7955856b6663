"""Discrete latents of a datum, summed out: all their joint states, and log sum over states of p(x, states, the other latents)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, num_data, take
from ppvae.errors import FamilyError
from ppvae.memory import Halving
from ppvae.pair import Pair
from ppvae.programs import Values, measuring, sample_sites, trace
from ppvae.stream import ROWS_AT_ONCE
from ppvae.support import masks, unwrapped

MAX_STATES = 65_536
ROWS_A_LOOK = 1024
LOOKS = 4  # runs of the model in which a support that hangs on another latent may show itself


@dataclass(frozen=True)
class DiscreteSite:
    """One discrete latent of a datum: independent elements, each of which takes one of C values.

    Attributes:
        name: The site.
        table: The values of one element, (C, *base event).
        plates: Sizes of the plates inside a datum as they stand in a value of shape (K, [plates], n, *event).
        event: Shape of one event.
        num_elements: How many elements there are, over plates and ``to_event``.
    """

    name: str
    table: Tensor
    plates: tuple[int, ...]
    event: tuple[int, ...]
    num_elements: int

    @property
    def num_states(self) -> int:
        """C ** num_elements."""
        return int(len(self.table) ** self.num_elements)

    def values(self, states: Tensor) -> Tensor:
        """States numbered (k,), to values (k, [plates], 1, *event). The last element runs fastest."""
        powers = len(self.table) ** torch.arange(self.num_elements - 1, -1, -1, device=states.device)
        digits = (states[:, None] // powers) % len(self.table)
        return self.table[digits].reshape(len(states), *self.plates, 1, *self.event)


class States:
    """All joint states of the discrete latents of a pair's model.

    Args:
        pair: Model and guide.
        x: The data of the measurement; every row is looked at, since a support may hang on its datum.
        seed: Rules the draws of the other latents in those looks.
        max_states: The most that are enumerated.

    Attributes:
        sites: The discrete latents, in the model's order.
        num_states: How many joint states there are; 1 where nothing is discrete.

    Raises:
        FamilyError: A site is discrete without a finite support, its support hangs on the datum or on another latent, it is masked, or
            there are more than ``max_states`` joint states.
    """

    def __init__(self, pair: Pair, x: Batch, seed: int = 0, max_states: int = MAX_STATES) -> None:
        self.pair = pair
        self.sites: list[DiscreteSite] = []
        for number, found in enumerate(_looks(pair, x, seed)):
            names = [name for name in pair.latents if found[name]["fn"].support.is_discrete]
            sites = [_discrete_site(pair, name, found[name]) for name in names]
            if number == 0:
                self.sites = sites
            for first, again in zip(self.sites, sites, strict=True):
                if first.table.shape != again.table.shape or not bool((first.table == again.table).all()):
                    raise _moving_support(first.name, found[first.name])
            if not sites:
                break
        self.num_states = math.prod(site.num_states for site in self.sites)
        if self.num_states > max_states:
            counts = ", ".join(f"'{site.name}': {len(site.table)}^{site.num_elements}" for site in self.sites)
            raise FamilyError(
                f"the discrete latents have {self.num_states:,} joint states, and at most {max_states:,} are enumerated",
                where=f"states by site: {counts}",
                mend="analysis.log_likelihood(model, guide, x), whose guide draws them",
            )

    @property
    def names(self) -> list[str]:
        """The discrete latents."""
        return [site.name for site in self.sites]

    def values(self, states: slice | Tensor) -> dict[str, Tensor]:
        """Joint states, numbered, to values by site, (k, [plates], 1, *event). The last site runs fastest."""
        numbers = torch.arange(states.start, states.stop, device=self.pair.device) if isinstance(states, slice) else states
        found = {}
        for site in reversed(self.sites):
            found[site.name] = site.values(numbers % site.num_states)
            numbers = numbers // site.num_states
        return found

    def log_terms(self, x: Batch, rest: Values, states: slice | Tensor) -> Tensor:
        """log p(x, state, rest) by state: (k, K, n) for K particles of the other latents, (K, [plates], n, *event); nats, float64."""
        n, num_particles = num_data(x), len(next(iter(rest.values()))) if rest else 1
        values = self.values(states)
        k = len(next(iter(values.values()))) if values else 1
        particles: dict[str, Tensor] = {}
        for name, value in values.items():
            data_dim = value.dim() - self.pair.event_dims[name] - 1
            shape = (*value.shape[1:data_dim], n, *value.shape[data_dim + 1 :])
            particles[name] = value.repeat_interleave(num_particles, 0).expand(k * num_particles, *shape)
        for name, value in rest.items():
            particles[name] = value.repeat(k, *[1] * (value.dim() - 1))
        by_site = self.pair.score(x, particles, num_particles=k * num_particles)
        total: Tensor = sum(by_site.values())  # type: ignore[assignment]
        return total.reshape(k, num_particles, n)

    def blocks(self, num_rows: int, states_at_once: int | None = None) -> list[slice]:
        """The joint states in blocks that go through the model in one call, at ``num_rows`` rows (particle x datum) a state."""
        at_once = states_at_once or max(1, ROWS_AT_ONCE // num_rows)
        return noise.blocks(self.num_states, at_once)

    def log_sums(self, x: Batch, rest: Values, states_at_once: int | None = None) -> Iterator[Tensor]:
        """log sum of p(x, state, rest) over one block of states after the other, each (K, n)."""
        num_particles = len(next(iter(rest.values()))) if rest else 1
        for block in self.blocks(num_particles * num_data(x), states_at_once):
            yield torch.logsumexp(self.log_terms(x, rest, block), 0)

    def log_sum(self, x: Batch, rest: Values, states_at_once: int | None = None) -> Tensor:
        """log sum over all states of p(x, state, rest), (K, n), nats, float64. Memory does not grow with the number of states.

        Args:
            x: Data, (n, *event).
            rest: The latents that are not discrete, (K, [plates], n, *event); empty where there are none, and K is then 1.
            states_at_once: States a call of the model; changes nothing but rounding and time.

        References:
            Obermeyer, Bingham, Jankowiak, Chiu, Pradhan, Rush, Goodman (2019), Tensor variable elimination for plated factor graphs:
            what is done here is the plain sum, without elimination, so the cost is the product of the supports.
        """
        found: Tensor | None = None
        for part in self.log_sums(x, rest, states_at_once):
            found = part if found is None else torch.logaddexp(found, part)
        assert found is not None  # there is always one block
        return found


def _looks(pair: Pair, x: Batch, seed: int) -> Iterator[dict[str, Any]]:
    """The model's sites at all data, and a few times more at the first of them with other draws of the latents."""
    rows = noise.blocks(pair.num_data, ROWS_A_LOOK)
    at_once: Halving[dict[str, Any]] = Halving(ROWS_A_LOOK, "a look at the model", block_rows=1)  # any draws will do

    def look(some: slice, number: int) -> dict[str, Any]:
        with noise.seeded(seed, "states", number, device=pair.device), measuring(pair.model):
            return sample_sites(trace(pair.model, take(x, some), pair.globals))

    for number, block in enumerate([*rows, *[rows[0]] * LOOKS]):
        yield from at_once(block, partial(look, number=number))


def _discrete_site(pair: Pair, name: str, site: Any) -> DiscreteSite:
    fn, base = site["fn"], unwrapped(site["fn"])
    if is_masked(site):
        raise FamilyError(
            f"the latent site '{name}' is masked, and what is masked has no probability to sum over",
            where=f"site '{name}', {type(base).__name__}",
            mend="mask the observed sites alone",
        )
    if not base.has_enumerate_support:
        raise FamilyError(
            f"the discrete latent site '{name}' ({type(base).__name__}) has no finite support to enumerate",
            where=f"site '{name}', support {base.support}",
            mend="declare it on a finite support, for example Categorical over 0..n, or measure by log_likelihood",
        )
    try:
        table = base.enumerate_support(expand=False)
    except NotImplementedError as error:  # Pyro's and torch's word for a support that differs within the batch
        raise _moving_support(name, site) from error
    table = table.reshape(len(table), *base.event_shape)
    data_dim = len(fn.batch_shape) - 1
    inner = tuple(fn.batch_shape[:data_dim])
    while inner and inner[0] == 1:
        inner = inner[1:]
    missing = pair.nesting - 1 - len(inner) if pair.in_plate else 0  # under a particle plate a site has all dims, as ones
    independent = fn.event_shape[: fn.event_dim - base.event_dim]
    return DiscreteSite(name, table, (1,) * missing + inner, tuple(fn.event_shape), math.prod(inner) * math.prod(independent))


def is_masked(site: Any) -> bool:
    """Whether a mask takes a part of a site's density away."""
    return bool(masks(site))


def _moving_support(name: str, site: Any) -> FamilyError:
    return FamilyError(
        f"the support of the discrete latent site '{name}' hangs on its datum or on another latent",
        where=f"site '{name}', {type(unwrapped(site['fn'])).__name__}",
        mend="declare the largest support and give probability 0 to the values that cannot occur",
    )
