"""Data drawn from a model, with the latents that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ppvae import noise
from ppvae.data.data import Data
from ppvae.errors import DataError


def simulate(
    model: Any,
    num_data: int,
    *,
    template: Any,
    place: Callable[[Any, dict[str, Any]], Any] | None = None,
    seed: int = 0,
    name: str = "simulated",
) -> Data:
    """N data from p(z) p(x | z).

    Args:
        model: A program of one argument, the batch.
        num_data: N.
        template: A batch, (M, *event), that gives shapes and covariates: N rows, or its first row repeated N times.
        place: ``place(rows, values)`` puts the observed values by site, (N, *event) each, into a batch. By default a lone observed site
            takes the place of a lone tensor, and sites take the place of a dict's entries of their names.
        seed: Rules every draw.
        name: Of the data.

    Returns:
        What the model observes; ``factors`` (N, F) are the values of its latents in the data plate, an event flattened.

    Raises:
        DataError: It does not show where in the template the model's observed values belong.
        ProgramError: The model cannot be drawn from.
    """
    from ppvae import simulate as simulation
    from ppvae.batches import num_data as rows_of
    from ppvae.batches import repeat, take
    from ppvae.programs import in_data_plate, is_deterministic, latent_sites, measuring, observed_sites, sample_sites, trace

    batch = template.x if isinstance(template, Data) else template
    rows = batch if rows_of(batch) == num_data else repeat(take(batch, slice(0, 1)), num_data)
    drawn = simulation.sample(model, num_data, template=rows, seed=seed)
    with noise.seeded(seed, "sites"), measuring(model), torch.no_grad():
        found = trace(model, take(rows, slice(0, 1)))
    values = {site: drawn[site] for site in observed_sites(found)}
    x = (place or _placed)(rows, values)
    sites = sample_sites(found)

    def kept(site: dict[str, Any]) -> bool:
        return in_data_plate(site) and not is_deterministic(site)

    latents = {site: drawn[site].double().reshape(num_data, -1) for site in latent_sites(found) if kept(sites[site])}
    data = Data.of(x, name=name)
    if not latents:
        return data
    names = [site if value.shape[1] == 1 else f"{site}[{i}]" for site, value in latents.items() for i in range(value.shape[1])]
    return data.with_factors(torch.cat(list(latents.values()), 1), names)


def _placed(rows: Any, values: dict[str, Any]) -> Any:
    if torch.is_tensor(rows) and len(values) == 1:
        return next(iter(values.values())).reshape(rows.shape)
    if isinstance(rows, dict) and values.keys() <= rows.keys():
        return {**rows, **{site: value.to(rows[site].dtype).reshape(rows[site].shape) for site, value in values.items()}}
    raise DataError(
        f"needed to know where in the batch the observed values of {', '.join(values) or 'no site'} belong, "
        f"and the template is a {type(rows).__name__}",
        where="simulate",
        mend="place=lambda rows, values: the batch with values[site], (N, *event), wherever the model reads it",
    )
