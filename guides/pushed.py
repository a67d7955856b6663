"""A family over R^D carried to the support of a latent site: z = T(u), log q(z) = log q(u) - log |dT/du|."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ReshapeTransform, Transform

from ppvae.build import recorded
from ppvae.families import Family

Record = list[Any]


@recorded
class Pushed(nn.Module):
    """z = T(u) with u ~ inner and T the transform from R^D to a support (``torch.distributions.biject_to``).

    Args:
        inner: A family over R^D.
        support: Of the site, as ``support_record`` gives it.
        event: The unconstrained event shape: D numbers.
    """

    def __init__(self, inner: Family, support: Record, event: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.inner: Any = inner  # registered where it is a module
        self.support, self.event = support, tuple(event)
        self.latent_dim = math.prod(self.event)
        self.num_parameters = inner.num_parameters

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a distribution over the support."""
        base = self.inner.distribution(parameters)
        shaped = [] if self.event == (self.latent_dim,) else [ReshapeTransform(torch.Size([self.latent_dim]), torch.Size(self.event))]
        into = [transform_of(self.support), _Within(support_of(self.support))]
        return dist.TransformedDistribution(base, [*shaped, *into])  # type: ignore[no-any-return]


class _Within(Transform):
    """The identity on a support: torch takes a distribution's support from its last transform, and an affine one says all of R."""

    bijective = True

    def __init__(self, support: Any) -> None:
        super().__init__(cache_size=1)
        self.domain = self.codomain = support

    def _call(self, x: Tensor) -> Tensor:
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """0 for each event."""
        return x.new_zeros(x.shape[: x.dim() - self.domain.event_dim])


def transform_of(record: Record) -> Any:
    """The transform from R^D to a recorded support."""
    return biject_to(support_of(record))


def support_record(support: Constraint) -> Record:
    """A support as JSON can hold it: its class in ``torch.distributions.constraints`` and its arguments, bounds as one number each."""
    if type(support).__name__ == "MixtureSameFamilyConstraint":  # a mixture lies where its components lie
        return support_record(support.base_constraint)  # type: ignore[attr-defined]
    return [type(support).__name__, *(_argument(value) for value in vars(support).values())]


def support_of(record: Record) -> Any:
    """The support of a record."""
    name, *arguments = record
    return getattr(constraints, name)(*(support_of(a) if isinstance(a, list) else a for a in arguments))


def _argument(value: Any) -> Any:
    if isinstance(value, Constraint):
        return support_record(value)
    return value.flatten()[0].item() if isinstance(value, torch.Tensor) else value
