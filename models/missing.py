"""Data with missing entries: what a program is given, and a likelihood of the observed entries alone.

A datum is a dict ``{"x": values, "observed": mask}``, both (N, *event), as ``Data`` gives where entries may be missing. The density of x
is then that of its observed part, log p(x_observed | z): with entries independent given z, a missing one is integrated out by leaving
its factor out.

References:
    Nazábal, Olmos, Ghahramani, Valera (2020), Handling incomplete heterogeneous data using VAEs, sec. 2.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppvae.errors import ShapeError


def parts(x: Tensor | dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Values and mask, (N, *event) each; of a plain tensor the mask is None: nothing is missing.

    Raises:
        ShapeError: It is a batch of another structure.
    """
    if isinstance(x, Tensor):
        return x, None
    if isinstance(x, dict) and x.keys() == {"x", "observed"}:
        return x["x"], x["observed"]
    came = f"a dict of {', '.join(map(repr, x))}" if isinstance(x, dict) else f"a {type(x).__name__}"
    raise ShapeError(
        f"needed a tensor (N, *event), or a dict of 'x' and 'observed' where entries are missing, and {came} came",
        mend="ppvae.data.load(..., missing='mask') or Data.from_arrays(x, missing=mask) makes one",
    )


def masked(distribution: TorchDistribution, observed: Tensor | None) -> TorchDistribution:
    """The distribution of the observed entries alone; as it is where there is no mask.

    Args:
        distribution: Of x, batch shape (..., N) and event shape *event, its entries independent (made by ``to_event``).
        observed: (N, *event), True where an entry is observed.

    Raises:
        ShapeError: The mask has another shape, or the entries are not independent: then leaving factors out does not integrate them out.
    """
    if observed is None:
        return distribution
    event = tuple(distribution.event_shape)
    if tuple(observed.shape[observed.dim() - len(event) :]) != event or observed.dim() != len(event) + 1:
        raise ShapeError(f"the mask has shape {tuple(observed.shape)}, and the likelihood's event shape is {event}: needed (N, *event)")
    base: Any = distribution
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if base.event_dim:
        raise ShapeError(
            f"a mask for single entries needs entries that are independent given z, and {type(base).__name__} is one density of "
            f"{base.event_dim} dimensions together",
            mend="a likelihood made by .to_event(), such as models.likelihoods.Normal",
        )
    return base.mask(observed).to_event(len(event))  # type: ignore[no-any-return]
