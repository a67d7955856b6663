"""Covariates: what a batch holds beside x, and a prior or a likelihood is given, as in ``{"x": images, "y": labels}``.

A prior or likelihood that needs one names it: ``covariate``, the key of the batch, and ``covariate_of(x)``, its values for the batch.
The density is then that of x given the covariate, and generating takes the covariates of its template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError


def without(x: Any, names: Sequence[str]) -> Any:
    """The batch without these covariates; the values alone, where nothing else is left."""
    if not isinstance(x, dict):
        return x
    rest = {key: value for key, value in x.items() if key not in names}
    return rest["x"] if rest.keys() == {"x"} else rest


def covariate_of(x: Any, name: str, needed_by: str) -> Tensor:
    """A covariate of a batch, (N, ...).

    Raises:
        ShapeError: The batch is no dict that holds it.
    """
    if isinstance(x, dict) and name in x:
        return x[name]  # type: ignore[no-any-return]
    came = f"a dict of {', '.join(map(repr, x))}" if isinstance(x, dict) else f"a {type(x).__name__}"
    raise ShapeError(
        f"{needed_by} needs a batch with '{name}', and {came} came",
        mend=f"hand the data in as a dict: {{'x': x, '{name}': {name}}}",
    )


def one_hot(labels: Tensor, num_categories: int) -> Tensor:
    """0, 1, ..., C - 1 as rows of zeros and a one, (...) -> (..., C); a row of another label is NaN, so that nobody overlooks it."""
    rows = (labels[..., None] == torch.arange(num_categories, device=labels.device)).to(torch.get_default_dtype())
    return torch.where(rows.any(-1, keepdim=True), rows, torch.nan)


@recorded
class WithCovariates(nn.Module):
    """A network of x and covariates side by side, for guides: ``{"x": (N, D), "y": (N,) or (N, C)}`` -> network(N, D + C).

    Args:
        network: (N, D + C) -> (N, outputs); with a mask among the data (``models.missing``) of (N, 2 D + C), as ``nn.WithMask``.
        covariates: Keys of the batch, in order.
        num_categories: Of the covariates that are labels 0, 1, ...: these are given as zeros and a one.
    """

    def __init__(self, network: nn.Module, covariates: Sequence[str] = ("y",), num_categories: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.covariates, self.num_categories = tuple(covariates), num_categories

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """A batch -> what the network gives.

        Raises:
            ShapeError: The batch has no such covariate.
        """
        values = x["x"] if isinstance(x, dict) and "x" in x else covariate_of(x, "x", type(self).__name__)
        parts = [values]
        if "observed" in x:
            parts = [values.where(x["observed"], 0), x["observed"].to(values)]
        for name in self.covariates:
            value = covariate_of(x, name, type(self).__name__)
            if self.num_categories is not None:
                value = one_hot(value, self.num_categories)
            parts.append((value if value.dim() == values.dim() else value[..., None]).to(values))
        return self.network(torch.cat(parts, -1))  # type: ignore[no-any-return]
