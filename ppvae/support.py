"""Which measure an observed site is a density against, and whether the data lie in its support."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae.errors import DataError, RelaxedMeasureWarning

RELAXED = "relaxed (not a probability)"


def unwrapped(distribution: Any) -> Any:
    """The distribution under ``to_event``, ``expand`` and ``mask``."""
    while hasattr(distribution, "base_dist") and type(distribution).__name__ in (
        "Independent",
        "MaskedDistribution",
        "ExpandedDistribution",
        "ReshapedDistribution",
    ):
        distribution = distribution.base_dist
    return distribution


def unvalidated(site: Any) -> bool:
    """Whether the author built the site's distribution with ``validate_args=False`` (read where Pyro's validation is on)."""
    return unwrapped(site["fn"])._validate_args is False


def inside(site: Any) -> Tensor:
    """Elementwise: is the observed value in the distribution's support? The shape of the support's check, at least (N,)."""
    try:
        good: Tensor = unwrapped(site["fn"]).support.check(site["value"])
    except NotImplementedError:  # a transformed distribution that declares no support
        return torch.ones_like(site["value"], dtype=torch.bool)
    for mask in masks(site):
        joint = site["value"].dim() - good.dim()  # dimensions that one check answers for together
        good = good | ~(mask.flatten(-joint)[..., 0] if joint > 0 else mask).to(good.device)
    return good


def masks(site: Any) -> list[Tensor]:
    """The masks on a site's density, of ``poutine.mask`` and of its distribution at any depth; each broadcasts with the site's value."""
    fn = site["fn"]
    found = [(site["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):  # under to_event and expand
        if type(fn).__name__ == "MaskedDistribution":
            found.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    tensors = [(torch.as_tensor(mask), event_dim) for mask, event_dim in found if mask is not None and mask is not True]
    return [mask.reshape(mask.shape + (1,) * event_dim) for mask, event_dim in tensors]


def measure_of(sites: Sequence[Any]) -> str:
    """The measure of the observed sites together: "counting", "Lebesgue", or a product of both."""
    return " x ".join(sorted({"counting" if site["fn"].support.is_discrete else "Lebesgue" for site in sites}))


def check_support(found: Trace, *, lenient: frozenset[str], first_row: int, num_data: int) -> bool:
    """Hold the values of every observed site of a model's run against its support.

    Args:
        found: A trace of the model on a stretch of data, perhaps repeated particle by particle.
        lenient: Sites whose authors asked for no validation.
        first_row: Number of the stretch's first row, for the message.
        num_data: Rows of the stretch.

    Returns:
        Whether a lenient site holds values outside its support: then the results are relaxed.

    Raises:
        DataError: naming the site, row, column, value and two ways to mend it.
    """
    relaxed = False
    for name, site in found.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or type(site["fn"]).__name__ in ("Unit", "Delta"):
            continue
        good = inside(site)
        value: Any = site["value"]
        if good.dim() > value.dim():
            continue  # the support depends on the latents: a draw that excludes the data has weight 0, which is an answer
        if not bool(good.all()):
            if name not in lenient:
                raise _outside(name, site, good, first_row, num_data)
            relaxed = True
    return relaxed


def warn_relaxed() -> None:
    """Say once a result that what follows is not a probability."""
    warnings.warn(
        "data lie outside the support of an observed site built with validate_args=False: results are not probabilities "
        f"(measure: {RELAXED})",
        RelaxedMeasureWarning,
        stacklevel=3,
    )


def _outside(name: str, site: Any, good: Tensor, first_row: int, num_data: int) -> DataError:
    value = site["value"]
    base = unwrapped(site["fn"])
    event = base.event_dim
    good = good.reshape(good.shape + (1,) * event).expand(value.shape) if event else good.expand(value.shape)
    place = (~good).nonzero()[0].tolist()
    data_dim = value.dim() - site["fn"].event_dim - 1
    rest = tuple(place[:data_dim] + place[data_dim + 1 :])
    column = f", column {rest[0] if len(rest) == 1 else rest}" if rest else ""
    kind = type(base).__name__
    return DataError(
        f"the data do not fit the likelihood: site '{name}' is {kind} with support {base.support}, "
        f"and {int((~good).sum())} of {good.numel()} values looked at, from {value.min():.6g} to {value.max():.6g}, lie outside it",
        where=f"row {first_row + place[data_dim] % num_data}{column}: {value[tuple(place)].item():.6g}",
        mend=_remedies(kind, value),
    )


def _remedies(kind: str, value: Tensor) -> list[str]:
    if kind in ("Bernoulli", "ContinuousBernoulli"):
        return [
            "binarise: ppvae.data.load(..., binarize='threshold'), or (x > 0.5).float()",
            "a density for real values: models.Normal, or Bernoulli(..., validate_args=False), whose results are no probabilities",
        ]
    if not torch.isfinite(value).all():
        return ["remove or impute the entries that are not finite", "declare them missing with poutine.mask"]
    return ["scale or clean the data into the support", "choose a likelihood whose support holds them"]
