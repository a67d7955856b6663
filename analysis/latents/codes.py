"""Where the data lie in latent space: codes, and the aggregated posterior beside the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Provenance, as_lists, label, provenance
from ppvae.analysis.latents.space import LatentSpace
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.evaluation import ACTIVE
from ppvae.modules import Program


@dataclass(frozen=True, eq=False)
class Codes:
    """The posterior of each datum in two moments.

    Attributes:
        mean: (N, D), E_q[z | x].
        sd: (N, D), standard deviation of q(z | x).
        labels: (N,), of the ``Data``; None for plain tensors.
        site: The latent site; its plates and its event are flattened to D.
        source: Where the numbers came from.
    """

    mean: Tensor
    sd: Tensor
    labels: Tensor | None
    site: str
    source: Provenance

    @property
    def most_used(self) -> list[int]:
        """The dimensions by Var_x(E_q[z_d]), the largest first."""
        return self.mean.var(0, correction=0).argsort(descending=True, stable=True).tolist()

    def __str__(self) -> str:
        spread = self.mean.var(0, correction=0)
        return (
            f"codes at '{self.site}': {int((spread > ACTIVE).sum())} of {len(spread)} dimensions vary with the data, "
            f"most of all {', '.join(map(str, self.most_used[:3]))} (N={len(self.mean)}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def codes(model: Program, guide: Program, x: Data | Batch, *, site: str | None = None, seed: int = 0) -> Codes:
    """Posterior mean and standard deviation of each datum, (N, D).

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event); labels of a ``Data`` are kept.
        site: Which latent site, where there are several. One that depends on an earlier draw is conditional on the draw of ``seed``.
        seed: Rules the draws, where the moments have no closed form.

    Raises:
        ShapeError, ProgramError: The pair breaks the contract, or several sites are there and none is named.
    """
    space = LatentSpace(model, guide, x, site=site, seed=seed)
    mean, sd = space.codes()
    return Codes(mean, sd, x.labels if isinstance(x, Data) else None, space.site, provenance(x, space.pair, seed))


@dataclass(frozen=True, eq=False)
class AggregatedPosterior:
    """Draws from q(z) = (1/N) sum_i q(z | x_i) and from the prior.

    Attributes:
        draws: (N, D), one per datum from the guide.
        prior: (N, D), one per datum from the prior.
        distance: (D,), largest difference of the two empirical distribution functions of each dimension (Kolmogorov-Smirnov), in [0, 1].
            For equal distributions it exceeds 1.36 sqrt(2 / N) in 5 % of cases.
        labels: (N,), of the ``Data``; None for plain tensors.
        site: The latent site.
        source: Where the numbers came from.
    """

    draws: Tensor
    prior: Tensor
    distance: Tensor
    labels: Tensor | None
    site: str
    source: Provenance

    @property
    def expected(self) -> float:
        """What ``distance`` of equal distributions exceeds in 5 % of cases."""
        return float(1.36 * (2 / len(self.draws)) ** 0.5)

    def __str__(self) -> str:
        worst = int(self.distance.argmax())
        beyond = int((self.distance > self.expected).sum())
        return (
            f"aggregated posterior of '{self.site}': {beyond} of {len(self.distance)} dimensions differ from the prior "
            f"beyond chance (distance above {self.expected:.3f}), most of all {worst}: {self.distance[worst]:.3f} "
            f"(N={len(self.draws)}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"expected": self.expected}


def aggregated_posterior(model: Program, guide: Program, x: Data | Batch, *, site: str | None = None, seed: int = 0) -> AggregatedPosterior:
    """The aggregated posterior beside the prior, one draw per datum from each.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        site: Which latent site, where there are several.
        seed: Rules every draw.

    References:
        Hoffman, Johnson (2016), ELBO surgery, on KL(q(z) || p(z)). Its value in nats is ``latent_usage(...).marginal_kl``.
    """
    space = LatentSpace(model, guide, x, site=site, seed=seed)
    own, prior = space.draws()
    labels = x.labels if isinstance(x, Data) else None
    return AggregatedPosterior(own, prior, _distance(own, prior), labels, space.site, provenance(x, space.pair, seed))


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Largest difference of empirical distribution functions by column, (D,)."""
    points = torch.cat([one, other]).mT.contiguous().sort(1).values
    shares = [torch.searchsorted(part.mT.contiguous().sort(1).values, points, right=True) / len(part) for part in (one, other)]
    return (shares[0] - shares[1]).abs().amax(1).double()
