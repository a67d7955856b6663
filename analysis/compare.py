"""Two runs on the same data: the paired difference of their log-likelihoods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppvae.analysis.estimate import Estimate, Provenance, as_lists, mean_of
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.errors import DataError


@dataclass(frozen=True, eq=False)
class Comparison:
    """log p_a(x) - log p_b(x) of each datum, nats.

    Attributes:
        pointwise: (N,).
        pointwise_se: (N,), Monte Carlo error of the difference, as of independent draws: evaluate the two with different seeds.
        source: Of the first.
    """

    pointwise: Tensor
    pointwise_se: Tensor
    source: Provenance

    @property
    def mean(self) -> Estimate:
        """The mean difference; its data error is that of the N differences, not of two means."""
        return mean_of(self.pointwise, self.pointwise_se)

    def __str__(self) -> str:
        share = (self.pointwise > 0).double().mean().item()
        return f"difference in log p(x) = {self.mean} nats (N={len(self.pointwise)}, first higher on {share:.0%} of the data)"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"mean": vars(self.mean)}


def compare(a: LogLikelihood, b: LogLikelihood) -> Comparison:
    """The paired difference of two log-likelihoods.

    Args:
        a, b: Results on the same data under the same measure.

    Raises:
        DataError: Their data, binarisation or measure differ, so that a difference would mean nothing.
    """
    for what, one, other in (
        ("measures", a.source.measure, b.source.measure),
        ("data (SHA-256 of what the models saw)", a.source.data["sha256"], b.source.data["sha256"]),
        ("binarisations", a.source.data.get("binarize"), b.source.data.get("binarize")),
    ):
        if one != other:
            raise DataError(
                f"these two results are over different {what}: {one} and {other}",
                mend="evaluate both on one data set, binarised once, under likelihoods of one kind",
            )
    return Comparison(a.pointwise - b.pointwise, (a.pointwise_se**2 + b.pointwise_se**2).sqrt(), a.source)
