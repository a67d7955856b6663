"""A pair's draws as ArviZ's container, in the installed generation's form. The only file that imports ArviZ."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import batch_of
from ppvae.batches import take
from ppvae.data import Data
from ppvae.memory import Halving
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
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    posterior: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    likelihood: dict[str, list[Tensor]] = {name: [] for name in pair.observed}
    predictive: dict[str, list[Tensor]] = {name: [] for name in pair.observed}
    at_once: Halving[Any] = Halving(1, "draws for ArviZ")

    def of_rows(rows: slice) -> tuple[dict[str, Tensor], ...]:
        x_rows = take(batch, rows)
        with noise.seeded(seed, "arviz", rows.start, device=pair.device), measuring(model, guide):
            values, _ = pair.draw(x_rows, rows, num_particles)
            return values, pair.score(x_rows, values), pair.predict(x_rows, values, num_particles)

    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        ((values, densities, drawn),) = at_once(rows, of_rows)
        for name in pair.latents:
            posterior[name].append(pair.datum_first(values[name], name))
        for name in pair.observed:
            likelihood[name].append(densities[name])
            predictive[name].append(pair.datum_first(drawn[name], name))

    def of_prior(one: slice) -> dict[str, Tensor]:
        with noise.seeded(seed, "arviz prior", device=pair.device), measuring(model, guide):
            return pair.prior_draws(take(batch, one), num_prior)

    (prior,) = at_once(slice(0, 1), of_prior)
    with noise.seeded(seed, "arviz data", device=pair.device), measuring(model, guide):
        observed = pair.observed_values(batch)
    groups = {
        "posterior": {name: _array(torch.cat(parts, 1)) for name, parts in posterior.items()},
        "log_likelihood": {name: _array(torch.cat(parts, 1)) for name, parts in likelihood.items()},
        "posterior_predictive": {name: _array(torch.cat(parts, 1)) for name, parts in predictive.items()},
        "prior": {name: _array(value) for name, value in prior.items()},
        "observed_data": {name: value.detach().cpu().numpy() for name, value in observed.items()},
    }
    return _of_groups(groups, {*pair.latents, *pair.observed})


def container(posterior: dict[str, Tensor], sample_stats: dict[str, Tensor]) -> Any:
    """Draws (C, S, N, *event) by latent site, and what is known of each draw, (C, S, N), as ArviZ's container.

    Raises:
        ImportError: ArviZ is not installed.
    """
    groups = {
        "posterior": {name: draws.detach().cpu().numpy() for name, draws in posterior.items()},
        "sample_stats": {name: values.detach().cpu().numpy() for name, values in sample_stats.items()},
    }
    return _of_groups(groups, {*posterior, *sample_stats})


def convergence(u: Tensor) -> tuple[Tensor, Tensor]:
    """R-hat and effective sample size of C chains of S draws for N data in D dimensions, (C, S, N, D).

    Returns:
        The largest rank-normalised split R-hat and the smallest of bulk and tail effective sample sizes over the dimensions, (N,) each.
        A dimension that never moved has an R-hat of infinity and a size of 0.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Rank-normalization, folding, and localization.
    """
    import arviz

    data = container({"u": u}, {})
    with np.errstate(invalid="ignore", divide="ignore"):  # chains that never moved have no variance
        r_hat = _values(arviz.rhat(data))
        ess = np.minimum(_values(arviz.ess(data, method="bulk")), _values(arviz.ess(data, method="tail")))
    still = (u == u[:1, :1]).all(0).all(0).numpy()
    r_hat, ess = np.where(still | np.isnan(r_hat), np.inf, r_hat), np.where(still | np.isnan(ess), 0.0, ess)
    return torch.from_numpy(r_hat.max(1)), torch.from_numpy(ess.min(1))


def _values(found: Any) -> np.ndarray[Any, Any]:
    """The array of the variable "u", (N, D), in a result of either generation: a Dataset, or a DataTree with one inside."""
    found = found["posterior"] if "posterior" in getattr(found, "children", {}) else found
    return np.asarray(found["u"].values, dtype=float)


def _of_groups(groups: dict[str, dict[str, np.ndarray[Any, Any]]], names: set[str]) -> Any:
    """The installed generation's container; the first dimension behind chain and draw is the datum."""
    import arviz

    groups = {group: values for group, values in groups.items() if values}
    dims = {name: ["datum"] for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="More chains")  # it takes that for a transposed array
        if hasattr(arviz, "convert_to_datatree"):
            return arviz.from_dict(groups, dims=dims)
        return arviz.from_dict(**groups, dims=dims)  # type: ignore[arg-type]


def _array(draws: Tensor) -> np.ndarray[Any, Any]:
    """(K, N, *event) -> (chain 1, K, N, *event)."""
    return draws.detach().cpu().numpy()[None]
