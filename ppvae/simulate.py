"""Encode, decode, reconstruct and sample: any pair of programs, by Pyro's handlers alone.

Networks see plain batches (M, *event), never a leading particle dimension, but for a trial on three particles that may fail. The
caller's parameter store, generators and module modes stay as they were; no gradient is recorded.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae import memory, noise, parts
from ppvae.batches import Batch, device_of, num_data, repeat, take
from ppvae.errors import ProgramError, ShapeError
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.pieces import Piece
from ppvae.programs import (
    in_data_plate,
    is_deterministic,
    latent_sites,
    measuring,
    observed_sites,
    sample_sites,
    trace,
)

ROWS = 1024  # rows a call of a program: memory does not grow with the data


def encode(guide: Program, x: Batch, *, site: str | None = None, seed: int = 0) -> TorchDistribution:
    """q(z | x) at a latent site of the guide; take its ``.mean`` or ``.sample()``.

    Args:
        guide: A program of one argument, the batch.
        x: Data, (N, *event), or a tuple or dict of tensors that share N, or a ``Data``.
        site: Which latent site, where there are several. One that depends on an earlier draw is conditional on the draw of ``seed``.
        seed: Rules the draws of the run.

    Returns:
        A distribution of batch shape (N,) and the site's event shape. The whole of x goes through the guide in one call.

    Raises:
        ProgramError: There are several latent sites and none is named, or the name is not among them.
        OutOfMemoryError: The distribution over all of x does not fit into memory.
    """
    data = _batch(x)
    with _whole("encode", num_data(data)), _running(guide, seed=seed, purpose="encode", device=device_of(data)):
        found = trace(guide, data)
    sites = sample_sites(found)
    named = [name for name in latent_sites(found) if not is_deterministic(sites[name])]
    per_datum = [name for name in named if in_data_plate(sites[name]) and not sites[name]["infer"].get("is_auxiliary")]
    return sites[_chosen(site, per_datum, named, "latent", "guide")]["fn"]  # type: ignore[no-any-return]


def decode(
    model: Program, z: Tensor | Mapping[str, Tensor], *, template: Batch, site: str | None = None, seed: int = 0
) -> TorchDistribution:
    """p(x | z) at an observed site of the model.

    Args:
        model: A program of one argument, the batch.
        z: Values of the only latent site, (M, *event), or a dict from latent sites to values. Latents that it does not name are drawn
            from their prior, given those that it does.
        template: A batch that gives shapes and covariates: M rows, or its first row repeated M times.
        site: Which observed site, where there are several. One that depends on another observed site reads that from the template.
        seed: Rules the draws of latents that z does not name.

    Returns:
        A distribution of batch shape (M,) and the site's event shape.

    Raises:
        ProgramError: A site that the model does not have, or several and none is named.
        ShapeError: z has not the site's event shape, or its values do not share M.
        OutOfMemoryError: The distribution over all M does not fit into memory.
    """
    rows = _batch(template)
    with _running(model, seed=seed, purpose="decode", device=device_of(rows)):
        looked_at = trace(model, take(rows, slice(0, 1)))
        values = _named(z, looked_at)
        size = _num_rows(values, looked_at, num_data(rows))
        with _whole("decode", size):
            found = trace(model, _with_rows(rows, size), values)
    observed = observed_sites(found)
    return sample_sites(found)[_chosen(site, observed, observed, "observed", "model")]["fn"]  # type: ignore[no-any-return]


def reconstruct(model: Program, guide: Program, x: Batch, *, num_particles: int = 1, seed: int = 0, site: str | None = None) -> Tensor:
    """Mean over z ~ q(z | x) of E[x | z].

    Args:
        model, guide: Programs that keep the contract.
        x: Data, (N, *event), or a tuple or dict of tensors that share N, or a ``Data``.
        num_particles: K, draws per datum.
        seed: Rules every draw, the one of global sites among them.
        site: Which observed site, where there are several.

    Returns:
        (N, *event); plates inside a datum follow N.

    Raises:
        ShapeError: A site lies outside the data plate.
        ProgramError: The pair does not fit together, the site is not there, or its distribution has no mean.
    """
    if num_particles < 1:
        raise ProgramError(f"num_particles must be at least 1, got {num_particles}")
    data = _batch(x)
    pair = Pair(model, guide, data, seed)
    name = _chosen(site, pair.observed, pair.observed, "observed", "model")
    at_once: Halving[Tensor] = Halving(1, "reconstructing", block_rows=ROWS)
    blocks = [at_once(rows, partial(_reconstructed, pair, data, num_particles, seed, name)) for rows in noise.blocks(pair.num_data, ROWS)]
    return torch.cat([block for (block,) in blocks])


def sample(model: Program, num_data: int, *, template: Batch, mean: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Draw latents and data from the model.

    Args:
        model: A program of one argument, the batch.
        num_data: N, how many data to draw.
        template: A batch that gives shapes and covariates: N rows, or its first row repeated N times.
        mean: Give E[x | z] at observed sites, in place of a draw.
        seed: Rules every draw.

    Returns:
        The value of every site by name, (N, *event); plates inside a datum follow N. A global site is drawn once and keeps its own shape.

    Raises:
        ProgramError: ``num_data`` is below 1, or ``mean`` is asked of a distribution that has none.
    """
    if num_data < 1:
        raise ProgramError(f"num_data must be at least 1, got {num_data}")
    rows = _with_rows(_batch(template), num_data)
    shared: dict[str, Tensor] = {}
    blocks: dict[str, list[Tensor]] = {}
    means = _Means()
    at_once: Halving[tuple[dict[str, Tensor], dict[str, Tensor]]] = Halving(1, "drawing from the model", block_rows=ROWS)

    def drawn(_: Piece, part: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inside, outside = {}, {}
        for name, site in sample_sites(trace(poutine.uncondition(model), part, shared)).items():
            if is_deterministic(site):
                continue
            if not in_data_plate(site):
                outside[name] = site["value"]
                continue
            value = means.of(name, site["fn"]) if mean and site["infer"].get("was_observed") else site["value"]
            inside[name] = _data_first(value, site["fn"].event_dim)[None]
        return inside, outside

    def of_rows(block: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with _running(model, seed=seed, purpose=f"sample/{block.start}", device=device_of(rows)):
            found = parts.drawn(drawn, take(rows, block))
        return parts.joined([(particles, inside) for particles, (inside, _) in found], lambda _: 1), found[0][1][1]

    for block in noise.blocks(num_data, ROWS):
        ((inside, outside),) = at_once(block, of_rows)
        shared |= outside
        for name, value in inside.items():
            means.check(name, value)
            blocks.setdefault(name, []).append(value[0])
    return {**shared, **{name: torch.cat(values) for name, values in blocks.items()}}


@contextlib.contextmanager
def _running(*programs: Program, seed: int, purpose: str, device: torch.device) -> Iterator[None]:
    with noise.seeded(seed, purpose, device=device), measuring(*programs):
        yield


def _whole(name: str, num_data: int) -> AbstractContextManager[None]:
    return memory.whole(f"{name}: the distribution over {num_data} data", [f"{name} fewer rows a call"])


def _batch(x: Batch) -> Batch:
    """The tensors of a Data, or the batch as it is."""
    return x.x if hasattr(x, "x") else x


def _with_rows(template: Batch, size: int) -> Batch:
    return template if num_data(template) == size else repeat(take(template, slice(0, 1)), size)


def _chosen(site: str | None, default: list[str], allowed: list[str], kind: str, side: str) -> str:
    if site is None and len(default) == 1:
        return default[0]
    if site is None:
        raise ProgramError(
            f"the {side} has {len(default)} {kind} sites in the data plate, and none was named",
            where=f"{kind} sites of the {side}: {allowed}",
            mend=f"site='{default[0]}'" if default else "",
        )
    if site not in allowed:
        raise _unknown(site, allowed, kind, side)
    return site


def _unknown(site: str, allowed: Iterable[str], kind: str, side: str) -> ProgramError:
    near = difflib.get_close_matches(site, allowed, 1)
    return ProgramError(
        f"the {side} has no {kind} site '{site}'",
        where=f"{kind} sites of the {side}: {list(allowed)}",
        mend=f"did you mean '{near[0]}'?" if near else "",
    )


def _named(z: Tensor | Mapping[str, Tensor], looked_at: Trace) -> dict[str, Tensor]:
    """The latents by site, each held against its event shape."""
    sites = sample_sites(looked_at)
    latents = latent_sites(looked_at)
    if isinstance(z, Tensor):
        per_datum = [name for name in latents if in_data_plate(sites[name])]
        if len(per_datum) != 1:
            raise ProgramError(
                f"a lone tensor z needs a model with one latent site in the data plate, got {len(per_datum)}",
                where=f"latent sites of the model: {latents}",
                mend="z={'" + (latents[0] if latents else "z") + "': ...}, a dict from sites to values",
            )
        z = {per_datum[0]: z}
    for name, value in z.items():
        if name not in latents:
            raise _unknown(name, latents, "latent", "model")
        event = tuple(sites[name]["fn"].event_shape)
        least = len(event) + in_data_plate(sites[name])
        if value.dim() < least or tuple(value.shape[value.dim() - len(event) :]) != event:
            needed = ", ".join(["M"] * in_data_plate(sites[name]) + [str(size) for size in event])
            raise ShapeError(f"z for site '{name}' has shape {tuple(value.shape)}, needed ({needed})", where=f"site '{name}'")
    return dict(z)


def _num_rows(values: Mapping[str, Tensor], looked_at: Trace, otherwise: int) -> int:
    """M, which the values of the per-datum latents share."""
    sites = sample_sites(looked_at)
    sizes = {name: z.shape[-1 - sites[name]["fn"].event_dim] for name, z in values.items() if in_data_plate(sites[name])}
    if len(set(sizes.values())) > 1:
        raise ShapeError(f"the values of z must share M, their number of rows, got {sizes}")
    return next(iter(sizes.values()), otherwise)


def _reconstructed(pair: Pair, x: Batch, num_particles: int, seed: int, name: str, rows: slice) -> Tensor:
    """The mean over all particles for one block of rows, (n, *event)."""
    n = rows.stop - rows.start
    block = take(x, rows)
    total = torch.zeros(())

    means = _Means()
    for particles in noise.blocks(num_particles, max(1, ROWS // n)):
        k = particles.stop - particles.start
        with _running(pair.model, pair.guide, seed=seed, purpose=f"reconstruct/{rows.start}/{particles.start}", device=pair.device):
            values, _ = pair.draw(block, rows, k)
            found = pair.given(block, values, k, lambda sites: {name: means.of(name, sites[name]["fn"])})[name]
        means.check(name, found)
        total = total.to(device=pair.device) + found.movedim(found.dim() - pair.event_dims[name] - 1, 1).sum(0)
    return total / num_particles


def _data_first(value: Tensor, event_dim: int) -> Tensor:
    """([plates], N, *event) -> (N, [plates], *event)."""
    return value.movedim(-1 - event_dim, 0)


class _Means:
    """E[x | z] at observed sites, nan where there is none; what is said of a site where there is none at all."""

    def __init__(self) -> None:
        self.without: dict[str, str] = {}

    def of(self, name: str, fn: Any) -> Tensor:
        """Expanded to the distribution's shape."""
        try:
            mean: Tensor = fn.mean
        except (NotImplementedError, AttributeError):
            mean = torch.full((), torch.nan)
        if torch.isnan(mean).all():
            self.without[name] = f"{type(fn).__name__} over {fn.support}"
        return mean.expand(fn.batch_shape + fn.event_shape)

    def check(self, name: str, mean: Tensor) -> None:
        """Refuse a block without any mean."""
        if name in self.without and torch.isnan(mean).all():
            raise ProgramError(
                f"site '{name}' has a distribution without a mean",
                where=f"site '{name}': {self.without[name]}",
                mend="draw from it: simulate.sample(...), or simulate.decode(...).sample()",
            )
