"""One dimension at a time, or two: decoded quantiles of the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.analysis.estimate import Provenance, as_lists, label, provenance
from ppvae.analysis.latents.space import LatentSpace
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, check_count
from ppvae.modules import Program

LOWEST, HIGHEST = 0.05, 0.95  # quantiles of the prior between which latents are moved


@dataclass(frozen=True, eq=False)
class Traversal:
    """Decoded means while one latent dimension is moved and the others stay.

    Attributes:
        images: (C, S, *event), E[x | z] for each of the C dimensions and S values.
        z: (C, S, D), what was decoded.
        values: (C, S), of the dimension that moves.
        quantiles: (S,), of the prior, that the values are; None where values were handed in.
        dimensions: The C dimensions.
        start: (D,), what is moved: a datum's code, or the prior's mean.
        row: The datum; None for the prior's mean.
        site: The latent site.
        source: Where the numbers came from.
    """

    images: Tensor
    z: Tensor
    values: Tensor
    quantiles: Tensor | None
    dimensions: tuple[int, ...]
    start: Tensor
    row: int | None
    site: str
    source: Provenance

    @property
    def change(self) -> Tensor:
        """(C,), Euclidean distance of the decoded means from the first to the last value."""
        change: Tensor = (self.images[:, -1] - self.images[:, 0]).flatten(1).norm(dim=1)
        return change

    def __str__(self) -> str:
        most = int(self.change.argmax())
        where = "the prior's mean" if self.row is None else f"row {self.row}"
        return (
            f"traversal of {len(self.dimensions)} dimensions of '{self.site}' from {where}: {self.site}[{self.dimensions[most]}] moves the "
            f"decoded mean most, by {self.change[most]:.2f} ({label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"dimensions": list(self.dimensions)}


def traversal(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    row: int | None = None,
    dimensions: Sequence[int] | None = None,
    steps: int = 11,
    values: Tensor | Sequence[float] | None = None,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> Traversal:
    """Move chosen dimensions of a code, one at a time, over quantiles of the prior or over given values.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event). Covariates are those of the row, or of the first.
        row: The datum whose code is moved; None for the prior's mean.
        dimensions: Which, of D; all by default.
        steps: S, quantiles from 0.05 to 0.95 of the prior's marginal.
        values: (S,), to move over in place of quantiles.
        site, observed: Which latent and which observed site, where there are several. Other latents are the same draws throughout.
        seed: Rules the draws, where there are any.

    Raises:
        ArgumentError: There is no such row or dimension, or a value lies outside the prior's support.
    """
    space = LatentSpace(model, guide, x, site=site, observed=observed, seed=seed)
    chosen = tuple(range(space.dim)) if dimensions is None else tuple(dimensions)
    _check_dimensions(chosen, space)
    if row is not None and not 0 <= row < space.num_data:
        raise ArgumentError(f"row lies in 0..{space.num_data - 1}, got {row}")
    start = space.prior_mean() if row is None else space.codes(torch.tensor([row]))[0][0]
    quantiles = None
    if values is None:
        quantiles = _levels(steps)
        moved = space.prior_quantiles(quantiles)[list(chosen)]
    else:
        moved = torch.as_tensor(values, dtype=torch.float64).expand(len(chosen), -1)
    z = start.repeat(*moved.shape, 1)
    for i, dimension in enumerate(chosen):
        z[i, :, dimension] = moved[i]
    rows = torch.full((z[..., 0].numel(),), row or 0)
    images = space.decoded(z.flatten(0, 1), rows).unflatten(0, moved.shape)
    return Traversal(images, z, moved.clone(), quantiles, chosen, start, row, space.site, provenance(x, space.pair, seed))


@dataclass(frozen=True, eq=False)
class PriorGrid:
    """Decoded means over two dimensions of the prior.

    Attributes:
        images: (S, S, *event); ``images[i, j]`` has value ``values[0, j]`` in the first dimension and ``values[1, i]`` in the second.
        quantiles: (S,), of the prior.
        values: (2, S), of the two dimensions.
        dimensions: The two.
        z: (S, S, D), what was decoded: the prior's mean elsewhere.
        site: The latent site.
        source: Where the numbers came from.
    """

    images: Tensor
    quantiles: Tensor
    values: Tensor
    dimensions: tuple[int, int]
    z: Tensor
    site: str
    source: Provenance

    def __str__(self) -> str:
        one, other = (f"{self.site}[{d}]" for d in self.dimensions)
        return f"decoded prior over {one} and {other}: {len(self.quantiles)} quantiles each, {LOWEST} to {HIGHEST} ({label(self.source)})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"dimensions": list(self.dimensions)}


def prior_grid(
    model: Program,
    template: Data | Batch,
    dims: tuple[int, int] = (0, 1),
    steps: int = 15,
    *,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> PriorGrid:
    """Decode a grid of prior quantiles, norm.ppf of 0.05 to 0.95 where the prior is standard Normal.

    Args:
        model: A program of one argument, the batch.
        template: Data, (N, *event): shapes, and the covariates of its first row.
        dims: The two dimensions that move; all others stay at the prior's mean.
        steps: S, quantiles of each.
        site, observed: Which latent and which observed site, where there are several.
        seed: Rules the draws, where there are any.

    Raises:
        ArgumentError: There are no such two dimensions.

    References:
        Kingma, Welling (2014), Auto-encoding variational Bayes, fig. 4.
    """
    space = LatentSpace(model, None, template, site=site, observed=observed, seed=seed)
    _check_dimensions(tuple(dims), space)
    if len(dims) != 2 or dims[0] == dims[1]:
        raise ArgumentError(f"a grid needs two different dimensions, got {tuple(dims)}")
    quantiles = _levels(steps)
    values = space.prior_quantiles(quantiles)[list(dims)]
    z = space.prior_mean().repeat(steps, steps, 1)
    z[..., dims[0]], z[..., dims[1]] = values[0][None, :], values[1][:, None]
    images = space.decoded(z.flatten(0, 1)).unflatten(0, (steps, steps))
    return PriorGrid(images, quantiles, values, (dims[0], dims[1]), z, space.site, provenance(template, space.pair, seed))


def _levels(steps: int) -> Tensor:
    check_count("steps", steps, least=2)
    return torch.linspace(LOWEST, HIGHEST, steps, dtype=torch.float64)


def _check_dimensions(chosen: tuple[int, ...], space: LatentSpace) -> None:
    wrong = [d for d in chosen if isinstance(d, bool) or not isinstance(d, int) or not 0 <= d < space.dim]
    if wrong or not chosen:
        raise ArgumentError(f"site '{space.site}' has dimensions 0..{space.dim - 1}, got {list(chosen)}")
