"""From one code to another: straight, around the origin, or where the codes of the data are; and how evenly the decoder follows.

SciPy is imported where it is used: its import changes the process's warning filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Provenance, as_lists, label, provenance
from ppvae.analysis.latents.space import LatentSpace, subset
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, ShapeError, check_count
from ppvae.modules import Program

KINDS = ("straight", "spherical", "density")
NEIGHBOURS = 10  # of a code in the graph, at first
POINTS = 5  # at which the mass along an edge is looked at
FINE = 8  # points of a path while it is smoothed, for each that is asked for
SMOOTHING = (0.15, 0.1, 0.06, 0.03)  # width of the kernel over the path's length: the widest that loses no mass is taken
LOST = 0.1  # nats of its lowest mass that a path may lose by being smoothed

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Paths between pairs of codes, C kinds of them.

    Attributes:
        images: (C, P, S, *event), E[x | z] along the P paths.
        z: (C, P, S, D).
        step_lengths: (C, P, S - 1), Euclidean distance of each decoded mean from the one before.
        log_mass: (C, P, S), log density of the aggregated posterior along the paths, nats.
        kinds: The C kinds.
        ends: (P, 2), rows of the data; -1 where codes were handed in.
        num_codes: How many data's posteriors the mass is the mean of.
        site: The latent site.
        source: Where the numbers came from.
    """

    images: Tensor
    z: Tensor
    step_lengths: Tensor
    log_mass: Tensor
    kinds: tuple[str, ...]
    ends: Tensor
    num_codes: int
    site: str
    source: Provenance

    @property
    def lowest_mass(self) -> Tensor:
        """(C, P), nats, the smallest along each path."""
        return self.log_mass.amin(2)

    def __str__(self) -> str:
        told = ", ".join(f"{kind} {low:.2f}" for kind, low in zip(self.kinds, self.lowest_mass.mean(1).tolist(), strict=True))
        paths = "1 path" if self.z.shape[1] == 1 else f"{self.z.shape[1]} paths"
        return (
            f"lowest log mass along {paths} of '{self.site}', mean: {told} nats "
            f"(S={self.z.shape[2]}, {self.num_codes} codes; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"kinds": list(self.kinds)}


def interpolate(
    model: Program,
    guide: Program,
    x: Data | Batch,
    ends: Tensor | Sequence[tuple[int, int]],
    *,
    kinds: Sequence[str] = KINDS,
    steps: int = 11,
    num_codes: int = 1000,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> Interpolation:
    """Decode paths between pairs of data.

    ``"straight"`` moves evenly on the line. ``"spherical"`` turns around the origin at an even rate, its norm going evenly from one to the
    other. ``"density"`` is the shortest path on a graph of nearest neighbours over the codes, where a stretch of length l and mass q costs
    l / q^(1/D) (in units of the typical distance to the next code), smoothed as far as that costs none of its lowest mass, at an even rate.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event). Covariates along a path are those of its first end.
        ends: P pairs of rows, or codes (P, 2, D).
        kinds: Of "straight", "spherical" and "density".
        steps: S, points of a path, both ends among them.
        num_codes: Data whose codes make the graph and whose posteriors the mass is the mean of, chosen by the seed; all, if so many.
        site, observed: Which latent and which observed site, where there are several. Other latents are the same draws throughout.
        seed: Rules every choice.

    Raises:
        ArgumentError: There are no such rows or kinds.
        ProgramError: The guide cannot tell its density, or there are several sites.

    References:
        Shoemake (1985), Animating rotation with quaternion curves. White (2016), Sampling generative networks, sec. 2.
        Bijral, Ratliff, Srebro (2011), Semi-supervised learning with density based distances, sec. 2.
    """
    check_count("steps", steps, least=2)
    check_count("num_codes", num_codes)
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise ArgumentError(f"kinds are among {', '.join(KINDS)}, got {', '.join(map(repr, kinds)) or 'none'}")
    space = LatentSpace(model, guide, x, site=site, observed=observed, seed=seed)
    rows, pairs = _ends(ends, space)
    mixture = subset(space.num_data, num_codes, seed, "codes of the mass")
    paths = torch.stack([_paths(kind, pairs, steps, space, mixture) for kind in kinds])
    covariates = rows[:, 0].clamp(min=0).repeat_interleave(steps).repeat(len(kinds))
    images = space.decoded(paths.flatten(0, 2), covariates).unflatten(0, paths.shape[:3])
    lengths = (images[:, :, 1:] - images[:, :, :-1]).flatten(3).norm(dim=3)
    mass = space.log_mass(paths.flatten(0, 2), mixture).unflatten(0, paths.shape[:3])
    return Interpolation(images, paths, lengths, mass, tuple(kinds), rows, len(mixture), space.site, provenance(x, space.pair, seed))


def _ends(ends: Any, space: LatentSpace) -> tuple[Tensor, Tensor]:
    """Rows (P, 2) and codes (P, 2, D)."""
    given = torch.as_tensor(ends)
    if given.dim() == 3 and given.shape[1:] == (2, space.dim) and given.is_floating_point():
        return torch.full(given.shape[:2], -1), given.detach().double().cpu()
    if given.dim() != 2 or given.shape[1] != 2 or given.is_floating_point():
        raise ShapeError(f"ends are pairs of rows (P, 2) or codes (P, 2, {space.dim}), got {tuple(given.shape)} of {given.dtype}")
    if not bool(((given >= 0) & (given < space.num_data)).all()):
        raise ArgumentError(f"rows lie in 0..{space.num_data - 1}, got {given.tolist()}")
    return given.long(), space.codes(given.flatten().long())[0].unflatten(0, given.shape)


def _paths(kind: str, pairs: Tensor, steps: int, space: LatentSpace, mixture: Tensor) -> Tensor:
    """(P, S, D)."""
    t = torch.linspace(0, 1, steps, dtype=torch.float64)
    if kind == "straight":
        return torch.lerp(pairs[:, :1], pairs[:, 1:], t[None, :, None])
    if kind == "spherical":
        return torch.stack([slerp(one, other, t) for one, other in pairs])
    graph = _Graph(space, mixture, pairs.flatten(0, 1))
    return torch.stack([graph.path(2 * p, 2 * p + 1, steps) for p in range(len(pairs))])


def slerp(one: Tensor, other: Tensor, t: Tensor) -> Tensor:
    """Points (S, D) at shares t of the way: the direction turns at an even rate, the norm goes evenly from one to the other.

    A code at the origin has no direction and codes opposite to each other no way around: between these the path is straight.
    """
    lengths = one.norm(), other.norm()
    cosine = (one @ other / (lengths[0] * lengths[1])).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if not torch.sin(angle) > 1e-7:  # nan, where a code is the origin, among them
        return torch.lerp(one, other, t[:, None])
    weights = torch.sin((1 - t) * angle), torch.sin(t * angle)
    direction: Tensor = (weights[0][:, None] * one / lengths[0] + weights[1][:, None] * other / lengths[1]) / torch.sin(angle)
    norm: Tensor = torch.lerp(lengths[0], lengths[1], t)
    return direction * norm[:, None]


class _Graph:
    """Codes and the ends of paths, each joined to its nearest neighbours at the cost of the way between."""

    def __init__(self, space: LatentSpace, mixture: Tensor, ends: Tensor) -> None:
        from scipy.sparse.csgraph import dijkstra

        self.space, self.mixture = space, mixture
        self.first_end = len(mixture)
        nodes = torch.cat([space.codes(mixture)[0], ends])
        self.nodes = nodes.numpy()
        neighbours = NEIGHBOURS
        while True:  # more neighbours until every path has a way: with all of them it has
            count = min(neighbours, len(nodes) - 1)
            graph = self._joined(count)
            cost, self.before = dijkstra(graph, directed=False, indices=range(self.first_end, len(nodes)), return_predecessors=True)
            reached = [cost[i, self.first_end + (i ^ 1)] for i in range(len(ends))]
            if np.isfinite(reached).all() or count == len(nodes) - 1:
                return
            neighbours *= 2

    def _joined(self, count: int) -> Any:
        from scipy.sparse import coo_matrix
        from scipy.spatial import cKDTree

        _, places = cKDTree(self.nodes).query(self.nodes, count + 1)
        one, other = np.repeat(np.arange(len(self.nodes)), count + 1), places.ravel()
        joined = np.unique(np.sort(np.stack([one, other]), axis=0), axis=1)
        one, other = joined[:, joined[0] != joined[1]]
        return coo_matrix((self._cost(one, other), (one, other)), shape=(len(self.nodes), len(self.nodes))).tocsr()

    def _cost(self, one: Array, other: Array) -> Array:
        """Length over q^(1/D), by the trapezoidal rule along the edge."""
        t = torch.linspace(0, 1, POINTS, dtype=torch.float64)[:, None, None]
        a, b = torch.from_numpy(self.nodes[one]), torch.from_numpy(self.nodes[other])
        mass = self._log_mass(torch.lerp(a, b, t).flatten(0, 1)).unflatten(0, (POINTS, len(a)))
        inverse = torch.exp(-(mass - mass.max()) / self.space.dim).clamp(max=1e100)  # a finite cost, however empty the place
        # 1e-12: codes that coincide are joined too, and a stored 0 would be no edge
        cost: Array = (torch.trapezoid(inverse, dx=1 / (POINTS - 1), dim=0) * (a - b).norm(dim=1) + 1e-12).numpy()
        return cost

    def path(self, start: int, stop: int, steps: int) -> Tensor:
        """(S, D), from one end to another."""
        nodes = [self.first_end + stop]
        while nodes[-1] != self.first_end + start and nodes[-1] >= 0:
            nodes.append(int(self.before[start, nodes[-1]]))
        corners = _even(self.nodes[nodes[::-1]], FINE * steps)
        floor = self._lowest(corners) - LOST
        for width in SMOOTHING:
            smooth = _even(_smoothed(corners, width * len(corners)), FINE * steps)
            if self._lowest(smooth) >= floor:
                return torch.from_numpy(_even(smooth, steps))
        return torch.from_numpy(_even(corners, steps))

    def _lowest(self, path: Array) -> float:
        return float(self._log_mass(torch.from_numpy(path)).min())

    def _log_mass(self, z: Tensor) -> Tensor:
        return self.space.log_mass(z, self.mixture)


def _even(path: Array, steps: int) -> Array:
    """The same way with points at even distances, (S, D)."""
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    where = np.concatenate([[0.0], np.cumsum(lengths)])
    points = np.linspace(0, where[-1], steps)
    even = np.stack([np.interp(points, where, column) for column in path.T], axis=1)
    even[0], even[-1] = path[0], path[-1]
    return even


def _smoothed(path: Array, width: float) -> Array:
    """A Gaussian kernel over the path less the straight line between its ends, which is odd about both: so the ends stay."""
    from scipy.ndimage import gaussian_filter1d

    line = np.linspace(path[0], path[-1], len(path))
    bend = path - line
    odd = np.concatenate([-bend[:0:-1], bend, -bend[-2::-1]])
    smooth: Array = gaussian_filter1d(odd, width, axis=0)[len(path) - 1 : 2 * len(path) - 1]
    return line + smooth


@dataclass(frozen=True, eq=False)
class Continuity:
    """How evenly the decoder follows a path.

    Attributes:
        ratio: (P,), largest decoder step over the median step of each path: 1 for an even decoder; a jump is large.
        step_lengths: (P, S - 1), Euclidean.
        ends: (P, 2), rows of the data.
        kind: Of the paths.
        site: The latent site.
        source: Where the numbers came from.
    """

    ratio: Tensor
    step_lengths: Tensor
    ends: Tensor
    kind: str
    site: str
    source: Provenance

    def __str__(self) -> str:
        worst = int(self.ratio.argmax())
        return (
            f"largest decoder step {self.ratio.median():.2f} times the median one along a typical {self.kind} path, at most "
            f"{self.ratio[worst]:.2f} (rows {self.ends[worst, 0]} to {self.ends[worst, 1]}; P={len(self.ratio)}, "
            f"S={self.step_lengths.shape[1] + 1}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def continuity(
    model: Program,
    guide: Program,
    x: Data | Batch,
    *,
    num_paths: int = 50,
    steps: int = 33,
    kind: str = "straight",
    num_codes: int = 1000,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> Continuity:
    """The largest decoder step relative to the median step along paths between random pairs of data.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event), two at least.
        num_paths: P.
        steps: S, points of a path: the finer, the nearer a smooth decoder comes to even steps, and the plainer a jump.
        kind: "straight", "spherical" or "density".
        num_codes, site, observed: As of ``interpolate``.
        seed: Chooses the pairs.

    Raises:
        ArgumentError: Fewer than two data or three steps.
    """
    check_count("num_paths", num_paths)
    check_count("steps", steps, least=3)
    space = LatentSpace(model, guide, x, site=site, observed=observed, seed=seed)
    if space.num_data < 2:
        raise ArgumentError("paths need two data at least, got 1")
    generator = noise.generator(seed, "pairs of data")
    ends = torch.stack([torch.randperm(space.num_data, generator=generator)[:2] for _ in range(num_paths)])
    rows, pairs = _ends(ends, space)
    mixture = subset(space.num_data, num_codes, seed, "codes of the mass")
    paths = _paths(_known(kind), pairs, steps, space, mixture)
    images = space.decoded(paths.flatten(0, 1), rows[:, 0].repeat_interleave(steps)).unflatten(0, paths.shape[:2])
    lengths = (images[:, 1:] - images[:, :-1]).flatten(2).norm(dim=2)
    ratio = lengths.amax(1) / lengths.median(1).values
    return Continuity(ratio.nan_to_num(nan=1.0, posinf=torch.inf), lengths, rows, kind, space.site, provenance(x, space.pair, seed))


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ArgumentError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
    return kind
