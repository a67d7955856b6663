"""What the latents carry: KL per site and dimension, active units, mutual information."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Provenance, as_lists, batch_of, label, provenance
from ppvae.batches import Batch, take
from ppvae.data import Data
from ppvae.errors import check_count
from ppvae.evaluation import ACTIVE, unit_variances
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring
from ppvae.stream import stream
from ppvae.support import masks, unwrapped

DIMENSION_ROWS = noise.BLOCK_ROWS * 4  # data that draw from one seed for the KL per dimension


@dataclass(frozen=True, eq=False)
class LatentUsage:
    """How the latents of a pair are used on a set of data, nats.

    Attributes:
        kl: Mean over the data of E_q[log q - log p] by site, (): their sum is the mean rate. An auxiliary site of the guide, which
            has no prior, stands there with E_q[log q].
        kl_se: Standard error over the data, by site.
        kl_per_dimension: By site, (Z,), where guide and prior factorise over the event; sites where they do not are missing.
        unit_variance: Var_x(E_q[z_u]) by site, (Z,); a unit is active above 0.01.
        rate: (N,), E_q[log q(z | x) - log p(z)].
        mutual_information: I_q(x; z) over the data of this call, as an empirical distribution; at most log N.
        mutual_information_se: Its standard error.
        marginal_kl: KL(q(z) || p(z)) = mean rate - mutual information.
        num_mutual: Data that the mutual information is over.
        source: Where the numbers came from.
    """

    kl: dict[str, Tensor]
    kl_se: dict[str, Tensor]
    kl_per_dimension: dict[str, Tensor]
    unit_variance: dict[str, Tensor]
    rate: Tensor
    mutual_information: float
    mutual_information_se: float
    marginal_kl: float
    num_mutual: int
    source: Provenance

    @property
    def active_units(self) -> dict[str, int]:
        """Number of units with Var_x(E_q[z_u]) above 0.01, by site."""
        return {name: int((variance > ACTIVE).sum()) for name, variance in self.unit_variance.items()}

    def __str__(self) -> str:
        units = ", ".join(f"{n} of {self.unit_variance[name].numel()} units of '{name}' active" for name, n in self.active_units.items())
        sites = ", ".join(f"KL of '{name}' {value:.2f} ± {self.kl_se[name]:.2f} (data)" for name, value in self.kl.items())
        return (
            f"{units}; {sites}; mutual information {self.mutual_information:.2f} ± {self.mutual_information_se:.2f} of at most "
            f"{math.log(self.num_mutual):.2f} nats (N={len(self.rate)}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"active_units": self.active_units}


def latent_usage(
    model: Program, guide: Program, x: Data | Batch, *, num_particles: int = 16, num_mutual: int = 1000, seed: int = 0
) -> LatentUsage:
    """KL, active units and mutual information of a pair's latents.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        num_particles: Draws per datum.
        num_mutual: The mutual information is over the first so many data: its cost grows with their square.
        seed: Rules every draw.

    References:
        Burda, Grosse, Salakhutdinov (2016), sec. 5.1.2, active units. Hoffman, Johnson (2016), ELBO surgery, sec. 2.
    """
    batch = batch_of(x, model, guide)
    pair = Pair(model, guide, batch, seed)
    check_count("num_mutual", num_mutual)
    sums: dict[str, Tensor] = {name: torch.zeros(pair.num_data, dtype=torch.float64) for name in pair.latents}
    rate = torch.zeros(pair.num_data, dtype=torch.float64)
    for terms in stream(pair, batch, num_particles=num_particles, seed=seed):
        rate[terms.rows] += terms.rate.sum(0).cpu() / num_particles
        for name in terms.log_q:
            prior = terms.log_p[name] if name in pair.latents else 0.0  # an auxiliary site of the guide has no prior
            sums.setdefault(name, torch.zeros(pair.num_data, dtype=torch.float64))
            sums[name][terms.rows] += (terms.log_q[name] - prior).sum(0).cpu() / num_particles
    information, information_se = _mutual_information(pair, batch, min(num_mutual, pair.num_data), seed)
    n = pair.num_data
    return LatentUsage(
        kl={name: value.mean() for name, value in sums.items()},
        kl_se={name: value.std() / math.sqrt(n) for name, value in sums.items()},
        kl_per_dimension=_kl_per_dimension(pair, batch, num_particles, seed),
        unit_variance=unit_variances(pair, batch, seed, num_particles),
        rate=rate,
        mutual_information=information,
        mutual_information_se=information_se,
        marginal_kl=rate[: min(num_mutual, n)].mean().item() - information,
        num_mutual=min(num_mutual, n),
        source=provenance(x, pair, seed),
    )


def _kl_per_dimension(pair: Pair, x: Batch, num_particles: int, seed: int) -> dict[str, Tensor]:
    """E_q KL(q(z_d | ...) || p(z_d | ...)), analytic where torch knows it, else by draws; only for factorised sites."""
    totals: dict[str, Tensor] = {}
    at_once: Halving[dict[str, Tensor]] = Halving(1, "KL per dimension", block_rows=DIMENSION_ROWS)

    def of_sites(sites_q: dict[str, Any], sites_p: dict[str, Any]) -> dict[str, Tensor]:
        found = {name: _factorised_kl(sites_q[name], sites_p[name]) for name in pair.latents}
        return {name: value for name, value in found.items() if value is not None}

    def of_rows(rows: slice) -> dict[str, Tensor]:
        with noise.seeded(seed, "dimensions", rows.start, device=pair.device), measuring(pair.model, pair.guide):
            return pair.at_draws(take(x, rows), rows, num_particles, of_sites)

    for rows in noise.blocks(pair.num_data, DIMENSION_ROWS):
        (found,) = at_once(rows, of_rows)
        for name in pair.latents:
            if name not in found:
                totals.pop(name, None)
                continue
            value = pair.datum_first(found[name], name)
            per_unit = (value if value.dim() > 2 else value[..., None]).double().flatten(2).mean((0, 1)).cpu()
            totals[name] = totals.get(name, torch.zeros_like(per_unit)) + per_unit * (rows.stop - rows.start)
    return {name: total / pair.num_data for name, total in totals.items()}


def _factorised_kl(site_q: Any, site_p: Any) -> Tensor | None:
    """Elementwise KL of two factorised distributions, ([K], n, *event), or None."""
    q, p = unwrapped(site_q["fn"]), unwrapped(site_p["fn"])
    masked = masks(site_q) or masks(site_p)
    if q.event_dim or p.event_dim or masked:
        return None
    try:
        shape = site_q["value"].shape  # torch's closed form for two Bernoullis broadcasts neither of them
        return torch.distributions.kl_divergence(q.expand(shape), p.expand(shape))
    except NotImplementedError:  # torch knows no closed form for this pair: by draws
        return q.log_prob(site_q["value"]) - p.log_prob(site_q["value"])  # type: ignore[no-any-return]


def _mutual_information(pair: Pair, x: Batch, n: int, seed: int) -> tuple[float, float]:
    """E_x E_q[log q(z | x) - log (1/n) sum_j q(z | x_j)], one draw per datum, exact for the empirical distribution of n data."""
    index = slice(0, n)
    rows = take(x, index)
    at_once: Halving[Any] = Halving(1, "mutual information", block_rows=n)  # all of them draw from one seed
    with noise.seeded(seed, "mutual", device=pair.device), measuring(pair.model, pair.guide):
        ((values, log_q),) = at_once(index, lambda _: pair.draw(rows, index, 1))
        own = sum(log_q.values())[0]

        def marginal(block: slice) -> Tensor:
            crossed = {name: pair.crossed(value, name, block, n) for name, value in values.items()}
            densities = pair.guide_score(rows, index, crossed).values()  # (block, n): draw of datum i under q(z | x_j)
            return torch.logsumexp(torch.stack(list(densities)).sum(0), 1) - math.log(n)

        found = own - torch.cat([part for block in noise.blocks(n, noise.BLOCK_ROWS) for part in at_once(block, marginal)])
    return found.mean().item(), (found.std() / math.sqrt(n)).item() if n > 1 else math.nan
