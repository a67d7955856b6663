"""Data simulated from a model, in the form of a template batch, together with the latents that made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppvae import noise, parts
from ppvae.batches import Batch, num_data, observed_entries, take, tensors
from ppvae.errors import ProgramError
from ppvae.memory import Halving
from ppvae.pair import Pair
from ppvae.pieces import Piece
from ppvae.programs import in_data_plate, log_prob, measuring, sample_sites, trace

ROWS = 1024  # rows a call of the model
LOOKED_AT = 64  # rows on which the simulated data are held against the densities that they were drawn from

Place = Callable[[Batch, dict[str, Tensor]], Batch]  # (template rows, observed values by site, data first) -> the batch


@dataclass(frozen=True, eq=False)
class Simulated:
    """N simulated data.

    Attributes:
        batch: The template's rows, with what the model observes drawn anew.
        latents: By site, as a run of the model holds them, ([plates], N, *event).
    """

    batch: Batch
    latents: dict[str, Tensor]

    def particle(self, pair: Pair, rows: slice) -> dict[str, Tensor]:
        """The latents of some rows as one particle, (1, [plates], n, *event)."""
        return {name: as_particle(pair, name, take_data(pair, name, value, rows)) for name, value in self.latents.items()}


def simulated(pair: Pair, template: Batch, *, size: int, seed: int, place: Place | None = None) -> Simulated:
    """Draw latents from the prior and data from the model, ``size`` of them, at the covariates of the template, cyclically.

    Args:
        pair: The pair looked at on the template; its draw of global sites is held fixed.
        template: (M, *event), or a tuple or dict; only covariates and shapes matter.
        size: N.
        seed: Rules every draw.
        place: Puts observed values (N, [plates], *event) by site into the template's rows. By default they take the place of what they
            equal there.

    Raises:
        ProgramError: The model cannot be simulated: what it observes is not part of the batch as it stands, its likelihood reads the
            data, or it has a factor that is no distribution.
    """
    rows = take(template, (torch.arange(size) % num_data(template)).to(pair.device))
    place = place or Placement(pair, template)
    latents: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    observed: dict[str, list[Tensor]] = {name: [] for name in pair.observed}
    at_once: Halving[dict[str, Tensor]] = Halving(1, "simulating data", block_rows=ROWS)

    def drawn(_: Piece, part: Batch) -> dict[str, Tensor]:
        sites = sample_sites(trace(poutine.uncondition(pair.model), part, pair.globals))
        _refuse_factors(sites)
        return {name: sites[name]["value"][None] for name in (*pair.latents, *pair.observed)}

    def of_rows(block: slice) -> dict[str, Tensor]:
        with noise.seeded(seed, "simulated", block.start, device=pair.device), measuring(pair.model):
            return parts.joined(parts.drawn(drawn, take(rows, block)), lambda name: -1 - pair.event_dims[name])

    for block in noise.blocks(size, ROWS):
        (found,) = at_once(block, of_rows)
        for name in pair.latents:
            latents[name].append(found[name][0])
        for name in pair.observed:
            observed[name].append(data_first(found[name][0], pair.event_dims[name]))
    values = {name: torch.cat(parts) for name, parts in observed.items()}
    joined = {name: torch.cat(parts, -1 - pair.event_dims[name]) for name, parts in latents.items()}
    made = Simulated(place(rows, values), joined)
    looked_at = slice(0, min(LOOKED_AT, size))
    pair.reading(looked_at, lambda some: _check_simulated(pair, rows, made, values, some))
    return made


class Placement:
    """Where the observed sites' values stand in a batch: a whole tensor, or adjoining columns of its rows.

    Raises:
        ProgramError: A site observes something that is not in the batch as it stands.
    """

    def __init__(self, pair: Pair, template: Batch) -> None:
        rows = take(template, slice(0, LOOKED_AT))
        with noise.seeded(0, "placement", device=pair.device), measuring(pair.model):
            observed = pair.observed_values(rows)
        self.places = {name: _place(name, value.reshape(len(value), -1), rows) for name, value in observed.items()}

    def __call__(self, rows: Batch, values: dict[str, Tensor]) -> Batch:
        """A copy of the rows with these values in their places; (N, [plates], *event) by site."""
        parts = {key: part.clone() for key, part in tensors(rows).items()}
        for name, (key, columns) in self.places.items():
            flat = parts[key].reshape(len(parts[key]), -1)
            made, mask = values[name].reshape(len(flat), -1).to(flat.dtype), observed_entries(rows)
            kept = flat[:, columns]  # a hole keeps its filler, as in real data
            flat[:, columns] = made if mask is None else torch.where(mask.reshape(len(flat), -1), made, kept)
            parts[key] = flat.reshape(parts[key].shape)
        return _like(rows, parts)

    def observed(self, x: Batch, site: str) -> Tensor | None:
        """Which of the numbers that a site reads are no holes, (N, d); None where all are there."""
        mask = observed_entries(x)
        return None if mask is None else mask.reshape(len(mask), -1)[:, self.places[site][1]]

    def read(self, x: Batch) -> dict[str, Tensor]:
        """What the observed sites read of a batch, (N, d) by site."""
        parts = tensors(x)
        return {name: parts[key].reshape(len(parts[key]), -1)[:, columns] for name, (key, columns) in self.places.items()}


def _place(name: str, observed: Tensor, rows: Batch) -> tuple[str, slice]:
    """The tensor of the batch that equals what a site observes, (n, d), or the first adjoining columns of one that do."""
    size = observed.shape[1]
    flat = {key: part.reshape(len(part), -1) for key, part in tensors(rows).items()}
    whole = [key for key, part in flat.items() if part.shape[1] == size and _equal(part, observed)]
    if len(whole) > 1:
        raise ProgramError(
            f"the observed site '{name}' equals two tensors of the batch, {whole[0]} and {whole[1]}: which are covariates?",
            where=f"site '{name}'",
            mend="place=lambda rows, values: the batch with values[site], (N, *event), wherever the programs read it",
        )
    if whole:
        return whole[0], slice(0, size)
    for key, part in flat.items():
        for start in range(part.shape[1] - size + 1):
            if _equal(part[:, start : start + size], observed):
                return key, slice(start, start + size)
    raise ProgramError(
        f"simulated values of the observed site '{name}' cannot be put into the batch: it holds nothing that equals what the site observes",
        where=f"site '{name}', {size} numbers a datum",
        mend="place=lambda rows, values: the batch with values[site], (N, *event), in it",
    )


def _equal(part: Tensor, observed: Tensor) -> bool:
    return torch.allclose(part.to(observed.dtype), observed, rtol=0, atol=0, equal_nan=True)


def _like(x: Batch, parts: dict[str, Tensor]) -> Batch:
    """The tensors of ``batches.tensors`` in the form of a batch."""
    if isinstance(x, Tensor):
        return parts["x"]
    if isinstance(x, dict):
        return {key: parts[f"x[{key!r}]"] for key in x}
    return tuple(parts[f"x[{i}]"] for i in range(len(x)))


def data_first(value: Tensor, event_dim: int) -> Tensor:
    """([plates], N, *event) -> (N, [plates], *event)."""
    return value.movedim(value.dim() - event_dim - 1, 0)


def take_data(pair: Pair, name: str, value: Tensor, rows: slice) -> Tensor:
    """Some data of ([plates], N, *event)."""
    return value.narrow(value.dim() - pair.event_dims[name] - 1, rows.start, rows.stop - rows.start)


def as_particle(pair: Pair, name: str, value: Tensor) -> Tensor:
    """([plates], n, *event) -> (1, [plates], n, *event), with a dim for every plate where particles are a plate."""
    ones = [1] * (pair.nesting - value.dim() + pair.event_dims[name]) if pair.in_plate else []
    return value.reshape(1, *ones, *value.shape)


def _refuse_factors(sites: dict[str, Any]) -> None:
    for name, site in sites.items():
        if type(site["fn"]).__name__ == "Unit":
            raise ProgramError(
                f"the model has a factor, '{name}', and a density with a factor cannot be drawn from",
                where=f"site '{name}'",
                mend="write the factor as the distribution that it comes from",
            )


def _check_simulated(pair: Pair, rows: Batch, found: Simulated, values: dict[str, Tensor], some: slice) -> None:
    """Hold the densities that some data were drawn from to those that the model gives them now."""
    latents = {name: take_data(pair, name, value, some) for name, value in found.latents.items()}
    given = {name: _run_layout(value[some], pair, name) for name, value in values.items()}
    with noise.seeded(0, "simulated check", device=pair.device), measuring(pair.model):
        drawn_from = sample_sites(trace(poutine.uncondition(pair.model), take(rows, some), {**latents, **given, **pair.globals}))
        now = sample_sites(trace(pair.model, take(found.batch, some), {**latents, **pair.globals}))
    for name in pair.observed:
        if not in_data_plate(now[name]):
            continue
        before, after = log_prob(drawn_from[name]), log_prob(now[name])
        if not torch.allclose(before.double(), after.double(), rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ProgramError(
                f"the model gives simulated values of the site '{name}' another density than the one they were drawn from",
                where=f"site '{name}'",
                mend=[
                    "a likelihood that reads the data themselves (teacher forcing) cannot be drawn from in one run",
                    "place=lambda rows, values: the batch with values[site], (N, *event), in it",
                ],
            )


def _run_layout(value: Tensor, pair: Pair, name: str) -> Tensor:
    """(n, [plates], *event) -> ([plates], n, *event)."""
    return value.movedim(0, value.dim() - pair.event_dims[name] - 1)
