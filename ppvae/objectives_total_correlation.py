"""Total correlation: the KL cut into what a code tells of its datum, what its dimensions tell of each other, and what each is short of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppvae.errors import ObjectiveError
from ppvae.modules import Program
from ppvae.objectives_traces import Objective, each_latent, refuse_unreparameterised
from ppvae.support import masks, unwrapped


class TotalCorrelation(Objective):
    """E_q[-log p(x | z)] + alpha I(x; z) + beta KL(q(z) || prod_d q(z_d)) + gamma sum_d KL(q(z_d) || p(z_d)), beta-TCVAE.

    With q(z) the mean of q(z | x) over the data, the three sum to the mean KL(q(z | x) || p(z)): with all weights 1 the loss is minus the
    ELBO, draw by draw. log q(z) is estimated from the densities of each draw of the batch given each datum of the batch:

    * "weighted": q(z_i) = (1/B) sum_j q(z_i | x_j), minibatch-weighted sampling. Exact where the batch is the data; else log q(z) is too
      large, since z_i's own datum counts 1/B and not 1/N. The paper's has 1/(N B): the same gradient, other constants.
    * "stratified": minibatch-stratified sampling, z_i's own datum with 1/N; unbiased for q(z), but more variable, and log q(z) has the
      bias of a logarithm.

    The loss is this sum, nats of the batch, and no bound on log p(x) with other weights than 1. On several processes q(z) is of each share.

    Args:
        beta: Weight of the total correlation.
        alpha, gamma: Weights of the mutual information and of the dimensions' own KL.
        sampling: "weighted" or "stratified".
        num_data: N, the size of the training data; for "stratified".
        num_particles: Draws per datum, one run each.
        max_plate_nesting: As in Pyro's ELBOs.

    Raises:
        ObjectiveError: The guide has more than one latent site, or one that does not factorise, or is not reparameterised.

    References:
        Chen, Li, Grosse, Duvenaud (2018), Isolating sources of disentanglement in VAEs, eq. 2 to 4 and appendix C.
    """

    def __init__(
        self,
        beta: float,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        sampling: str = "weighted",
        num_data: int | None = None,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting)
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not 0 <= value < math.inf:
                raise ObjectiveError(f"{name} is a number >= 0, got {value!r}")
        if sampling not in ("weighted", "stratified"):
            raise ObjectiveError(f"sampling is 'weighted' or 'stratified', got {sampling!r}")
        if (sampling == "stratified") != (num_data is not None):
            raise ObjectiveError("num_data is the size of the training data, for stratified sampling and for that alone")
        self.alpha, self.beta, self.gamma, self.sampling, self.num_data = alpha, beta, gamma, sampling, num_data

    def loss_and_surrogate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss, which is differentiable as it stands, twice."""
        runs = self._runs(model, guide, args, kwargs)
        weights = (self.alpha, self.beta, self.gamma)
        losses = []
        for sites_p, sites_q in runs:
            refuse_unreparameterised(self, sites_q)
            distortion = -self._by_datum({name: site for name, site in sites_p.items() if site["is_observed"]}).sum()
            losses.append(distortion + sum(w * part for w, part in zip(weights, self._parts(sites_p, sites_q), strict=True)))
        loss = self._scale(*runs[0]) * torch.stack(losses).mean()
        return loss, loss

    def _parts(self, sites_p: Any, sites_q: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Mutual information, total correlation and dimension-wise KL, each summed over the batch."""
        latents = list(each_latent(sites_p, sites_q))
        if len(latents) != 1:
            raise ObjectiveError(f"the total correlation is of one latent site, and the guide has {[name for name, _, _ in latents]}")
        name, site_p, site_q = latents[0]
        log_q = joint_densities(name, site_q)
        weights = log_batch_weights(len(log_q), self.num_data).to(log_q)
        log_own = log_q.diagonal().sum(0)  # (D, B) -> (B,)
        log_marginal = (weights + log_q.sum(-1)).logsumexp(1)
        log_product = (weights[..., None] + log_q).logsumexp(1).sum(-1)
        log_prior = self._by_datum({name: site_p})
        return (log_own - log_marginal).sum(), (log_marginal - log_product).sum(), (log_product - log_prior).sum()


def joint_densities(name: str, site: Any) -> Tensor:
    """log q(z_i,d | x_j) of a factorised site, (B draws, B data, D).

    Raises:
        ObjectiveError: The site does not factorise, or has plates within a datum.
    """
    base, z = unwrapped(site["fn"]), site["value"]
    if base.event_dim or masks(site) or len(site["fn"].batch_shape) != 1:
        raise ObjectiveError(
            f"site '{name}' has to factorise over one event, in the data plate alone, and is a {type(base).__name__}",
            where=f"batch shape {tuple(site['fn'].batch_shape)}, event shape {tuple(site['fn'].event_shape)}",
            mend="Normal(loc, scale).to_event(1)",
        )
    n = len(z)
    base = base.expand(z.shape)
    return base.log_prob(z.reshape(n, 1, *z.shape[1:])).reshape(n, n, -1)  # type: ignore[no-any-return]


def log_batch_weights(size: int, num_data: int | None) -> Tensor:
    """Log weight of q(z_i | x_j) in the estimate of q(z_i), (B, B): 1/B, or with ``num_data`` those of stratified sampling.

    Of B = M + 1 data: 1/N for the draw's own datum, (N - M) / (N M) for the next, 1/M for the others (ibid., appendix C.2).
    """
    if num_data is None:
        return torch.full((size, size), -math.log(size), dtype=torch.float64)
    if not 2 <= size <= num_data:
        raise ObjectiveError(f"stratified sampling needs batches of 2 to num_data = {num_data} data, and {size} came")
    m = size - 1
    weights = torch.full((size, size), 1 / m, dtype=torch.float64)
    rows = torch.arange(size)
    weights[rows, rows] = 1 / num_data
    weights[rows, (rows + 1) % size] = (num_data - m) / (num_data * m)
    return weights.log()
