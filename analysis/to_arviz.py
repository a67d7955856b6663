"""A pair's draws as ArviZ's container, in the installed generation's form. The only file that imports ArviZ."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import batch_of
from ppvae.batches import take
from ppvae.data import Data
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring


def to_arviz(model: Program, guide: Program, x: Data | Any, *, num_particles: int = 100, num_prior: int = 500, seed: int = 0) -> Any:
    """Draws from the guide, as an ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x).

    Groups: posterior (z drawn from the guide: its approximation, not the posterior itself), log_likelihood (log p(x | z) by datum),
    posterior_predictive, prior, observed_data. Dimensions: chain 1, draw K, datum N, then the event's.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        num_particles: K, draws per datum.
        num_prior: Draws from the prior.
        seed: Rules every draw.

    Raises:
        ImportError: ArviZ is not installed.
    """
    import arviz

    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    posterior: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    likelihood: dict[str, list[Tensor]] = {name: [] for name in pair.observed}
    predictive: dict[str, list[Tensor]] = {name: [] for name in pair.observed}
    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        x_rows = take(batch, rows)
        with noise.seeded(seed, "arviz", rows.start, device=pair.device), measuring(model, guide):
            values, _ = pair.draw(x_rows, rows, num_particles)
            densities = pair.score(x_rows, values)
            drawn = pair.predict(x_rows, values)
        for name in pair.latents:
            posterior[name].append(pair.datum_first(values[name], name))
        for name in pair.observed:
            likelihood[name].append(densities[name])
            predictive[name].append(pair.datum_first(drawn[name], name))
    with noise.seeded(seed, "arviz prior", device=pair.device), measuring(model, guide):
        prior = pair.prior_draws(take(batch, slice(0, 1)), num_prior)
        observed = pair.observed_values(batch)
    groups = {
        "posterior": {name: _array(torch.cat(parts, 1)) for name, parts in posterior.items()},
        "log_likelihood": {name: _array(torch.cat(parts, 1)) for name, parts in likelihood.items()},
        "posterior_predictive": {name: _array(torch.cat(parts, 1)) for name, parts in predictive.items()},
        "prior": {name: _array(value) for name, value in prior.items()},
        "observed_data": {name: value.detach().cpu().numpy() for name, value in observed.items()},
    }
    dims = {name: ["datum"] for name in {*pair.latents, *pair.observed}}
    if hasattr(arviz, "convert_to_datatree"):
        return arviz.from_dict(groups, dims=dims)
    return arviz.from_dict(**groups, dims=dims)  # type: ignore[arg-type]


def _array(draws: Tensor) -> np.ndarray[Any, Any]:
    """(K, N, *event) -> (chain 1, K, N, *event)."""
    return draws.detach().cpu().numpy()[None]
