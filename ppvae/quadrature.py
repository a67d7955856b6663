"""Integrals of exp(log f_n(u)) over u in R^1 or R^2, for many data n at once, by adaptive cubature. Tensors alone; log space, float64.

Every datum has a box cut into cells, each cell a tensor Gauss-Lobatto rule of 6 nodes a dimension (its edges are nodes: a kink between an
edge and the first node of a Gauss-Legendre rule is seen by nothing). A cell is split into 2^D halves where its error matters to its datum.
Four things tell the error of a cell, none of which costs an evaluation:
1. what its parent found against what parent's children found together (for cells that have a parent);
2. log f interpolated through the nodes (a Gaussian peak between them is then seen in full height, however narrow) and integrated by a
   finer rule;
3. how much of log f the two highest degrees of that polynomial carry: where log f is rough, a peak may stand that much higher;
4. the same again where the polynomial's coefficients do not fall off with the degree, as at a kink, where parent and children may agree by
   the luck of where it lies: for a kink along any line through the cell the error is at most 0.183 of that roughness (KINK), and equal in
   all cells that an axis-parallel one runs through. Where the density ends inside a cell, likewise by its highest node (JUMP).
The box grows until its outermost shell is negligible on every side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ppvae.errors import ArgumentError

NODES = 6  # a dimension: exact for a Gaussian of sd half the cell to 1e-6, and few enough for a first look with many cells
FINE = 12  # a dimension, of the rule that integrates the interpolated density
FIRST_CELLS = {1: 20, 2: 10}  # a dimension of the first box
SHELL = 0.1  # outermost part of the first box, a side, whose mass stands for what lies beyond; of a slab, 0.4
MAX_LEVEL = 40  # halvings of a first cell: at a jump of the density the cells shrink until rounding
BEYOND = 5.0  # of the shell's mass, what may lie beyond it: as much as of a Cauchy's tail; lighter tails have less
BETWEEN = 3.0  # nats by which the interpolated peak may stand above the highest node of a resolved cell
KINK = 0.2  # of the roughness, the largest relative error that a kink leaves, 0.183 in one dimension and in two (maximum over its place)
OBLIQUE = 0.015  # the same in place of KINK where it runs across the axes: the many cells on its line then err with either sign
JUMP = 0.15  # of a cell's volume, the largest error of the rule for a density that ends inside, 0.143 (maximum over its place)
FALLS_OFF = 0.08  # of the lower degrees, what the two highest carry at least at a kink: 0.089 (minimum over its place)

LogDensity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Rules:
    """What a cell [-1, 1]^D is measured with: nodes, weights, and matrices on the values at the nodes."""

    nodes: Tensor  # (Q, D)
    log_weights: Tensor  # (Q,)
    fine_log_weights: Tensor  # (F,)
    fine_value: Tensor  # (F, Q): the interpolant at the fine rule's nodes
    grid: Tensor  # (G, D): an even grid with the edges, on which the peak is sought
    value: Tensor  # (G, Q): the interpolant there
    first: Tensor  # (D, G, Q): its first derivatives
    second: Tensor  # (D, D, G, Q)
    rough: Tensor  # (H, Q): its Legendre coefficients of the two highest degrees
    oblique: Tensor  # (H, 1): whether each of those is of both coordinates
    bent: Tensor  # (L, Q): those of the degrees below, from 2 on


@functools.cache
def _rules(dim: int, device: torch.device) -> _Rules:
    nodes, weights = _gauss_lobatto(NODES)
    fine, fine_weights = _gauss_legendre(FINE)
    coefficients = torch.linalg.inv(_legendre(nodes))  # of the interpolant, (degree, Q)
    grid = torch.linspace(-1.0, 1.0, FINE + 1, dtype=torch.float64)
    on_fine = _legendre(fine) @ coefficients
    slopes = [_legendre(grid, order) @ coefficients for order in range(3)]
    if dim == 1:
        fine_value, value, first, second = on_fine, slopes[0], slopes[1][None], slopes[2][None, None]
        spectrum, degree, lesser = coefficients, torch.arange(NODES), torch.zeros(NODES)
    else:
        fine_value, value = torch.kron(on_fine, on_fine), torch.kron(slopes[0], slopes[0])
        first = torch.stack([torch.kron(slopes[1], slopes[0]), torch.kron(slopes[0], slopes[1])])
        mixed = torch.kron(slopes[1], slopes[1])
        second = torch.stack([torch.kron(slopes[2], slopes[0]), mixed, mixed, torch.kron(slopes[0], slopes[2])])
        second = second.reshape(2, 2, *mixed.shape)
        spectrum = torch.kron(coefficients, coefficients)
        degrees = torch.cartesian_prod(torch.arange(NODES), torch.arange(NODES))
        degree, lesser = degrees.amax(-1), degrees.amin(-1)
    log_weights, fine_log_weights = (_tensor(points, dim).log().sum(-1) for points in (weights, fine_weights))
    high, bent = degree >= NODES - 2, spectrum[(degree >= 2) & (degree < NODES - 2)]
    on_grid = _tensor(grid, dim), value, first, second
    oblique = (lesser[high] > 0).double()[:, None]
    found = _Rules(_tensor(nodes, dim), log_weights, fine_log_weights, fine_value, *on_grid, spectrum[high], oblique, bent)
    return _Rules(**{field.name: getattr(found, field.name).to(device) for field in fields(_Rules)})


def _tensor(points: Tensor, dim: int) -> Tensor:
    return torch.cartesian_prod(*[points] * dim).reshape(-1, dim)


def _gauss_legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1], from the eigenvectors of the Jacobi matrix (Golub, Welsch 1969)."""
    k = torch.arange(1, order, dtype=torch.float64)
    off_diagonal = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return nodes, 2 * vectors[0].square()


def _gauss_lobatto(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1] with both ends: the inner nodes are eigenvalues of the Jacobi matrix of the weight 1 - t^2."""
    k = torch.arange(1, order - 2, dtype=torch.float64)
    off_diagonal = (k * (k + 2) / ((2 * k + 1) * (2 * k + 3))).sqrt()
    inner = torch.linalg.eigvalsh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    nodes = torch.cat([inner.new_tensor([-1.0]), inner, inner.new_tensor([1.0])])
    moments = torch.zeros_like(nodes)
    moments[0] = 2.0  # the integrals of the Legendre polynomials
    return nodes, torch.linalg.solve(_legendre(nodes).mT, moments)


def _legendre(t: Tensor, derivative: int = 0) -> Tensor:
    """Legendre polynomials of degree 0 .. NODES - 1, or their derivatives, at points (m,): (m, NODES)."""
    rows = [[torch.ones_like(t), t], [torch.zeros_like(t), torch.ones_like(t)], [torch.zeros_like(t), torch.zeros_like(t)]]
    for n in range(1, NODES - 1):  # (n + 1) P_{n+1} = (2n + 1) t P_n - n P_{n-1}, differentiated once and twice
        for order in (2, 1, 0):
            lower = order * rows[order - 1][n] if order else 0.0
            rows[order].append(((2 * n + 1) * (t * rows[order][n] + lower) - n * rows[order][n - 1]) / (n + 1))
    return torch.stack(rows[derivative], -1)


@dataclass
class Cells:
    """The cells of all data, flattened. C cells, Q nodes each.

    Attributes:
        datum: (C,), which datum a cell belongs to.
        centre, half: (C, D), its middle and half its width.
        log_f: (C, Q), log f at its nodes.
        level: (C,), halvings since the box was tiled.
        log_integral: (C,), by the rule.
        log_fine: (C,), of the interpolated density by the finer rule.
        log_error: (C,), what may be wrong with ``log_integral``.
    """

    datum: Tensor
    centre: Tensor
    half: Tensor
    log_f: Tensor
    level: Tensor
    log_integral: Tensor
    log_fine: Tensor
    log_error: Tensor

    def __getitem__(self, which: Tensor) -> Cells:
        return Cells(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def joined(self, other: Cells) -> Cells:
        """These cells and others."""
        return Cells(**{field.name: torch.cat([getattr(self, field.name), getattr(other, field.name)]) for field in fields(self)})

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Where log f stands, (C, Q, D), and the log weight of each node in its datum's integral, (C, Q), not normalised."""
        rules = _rules(self.centre.shape[1], self.centre.device)
        places = self.centre[:, None] + self.half[:, None] * rules.nodes
        return places, self.log_f + rules.log_weights + self.half.log().sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Integral:
    """log of the integral of f_n over R^D, by datum.

    Attributes:
        log_integral: (N,), float64.
        error_bound: (N,), nats: -log(1 - r) for r, relative to the integral, the summed differences of parents and children, plus what
            cells without a parent could hold, plus what kinks and jumps may leave, plus five times the mass of the box's outermost shells
            for what lies beyond; inf where nothing was found. The differences are those of the *parents*, so the error of a smooth density
            is commonly orders of magnitude smaller. It cannot see a peak so narrow that log f is not near a polynomial of degree 5 on any
            cell that touches it, unless that cell is rough; nor one outside the box beyond a shell without mass; nor the rounding of log f
            itself.
        num_evaluations: (N,), of log f.
        cells: The final cells, with the values at their nodes.
    """

    log_integral: Tensor
    error_bound: Tensor
    num_evaluations: Tensor
    cells: Cells


def integrate(
    log_f: LogDensity,
    low: Tensor,
    high: Tensor,
    *,
    tolerance: float = 1e-6,
    noise: float = 0.0,
    max_evaluations: int = 200_000,
    rows_at_once: int = 8192,
) -> Integral:
    """The integrals of exp(log_f) over R^D, D = 1 or 2, for N data.

    Args:
        log_f: (rows (m,), u (Q, m, D)) -> (Q, m): log f of datum rows[i] at Q places u[:, i]. -inf is a value; nan and +inf are not.
        low, high: The box to start from, (N, D), float64. It grows by itself.
        tolerance: Cells are split until the error bound is below, relative to the integral (nats, where it is small).
        noise: Relative rounding of log f's values: below ``noise`` * |log f| nats at the peak nothing is split any more. The epsilon of
            the dtype that log f is computed in.
        max_evaluations: Of log f, a datum; a datum that needs more keeps the bound that it has.
        rows_at_once: Evaluations a call of log f. Changes nothing but the time (and rounding inside log f).

    Raises:
        ArgumentError: D is neither 1 nor 2; log f is nan or +inf somewhere.

    References:
        Genz, Malik (1980), An adaptive algorithm for numerical integration over an N-dimensional rectangular region (the subdivision).
        van Dooren, de Ridder (1976), An adaptive algorithm for numerical integration over an n-dimensional cube.
    """
    if low.shape[-1] not in FIRST_CELLS:
        raise ArgumentError(f"adaptive cubature is for 1 or 2 dimensions, got {low.shape[-1]}")
    return _Cubature(log_f, low.double(), high.double(), tolerance, noise, max_evaluations, rows_at_once).run()


class _Cubature:
    def __init__(
        self, log_f: LogDensity, low: Tensor, high: Tensor, tolerance: float, noise: float, max_evaluations: int, rows_at_once: int
    ) -> None:
        self.log_f, self.low, self.high = log_f, low.clone(), high.clone()
        self.tolerance, self.noise, self.max_evaluations = tolerance, noise, max_evaluations
        self.n, self.dim = low.shape
        self.shell = (SHELL * (self.high - self.low))[..., None].repeat(1, 1, 2)  # (N, D, sides): a side's own, whatever the others grow
        self.rules = _rules(self.dim, low.device)
        self.at_once = max(1, rows_at_once // len(self.rules.nodes))
        self.num_evaluations = torch.zeros(self.n, dtype=torch.long, device=low.device)
        first = FIRST_CELLS[self.dim]
        self.cells = self._roots(torch.arange(self.n, device=low.device), self.low, self.high, [first] * self.dim)

    def run(self) -> Integral:
        """Grow and split until nothing is left to do."""
        while True:
            log_total = self._sum(self.cells.log_integral)
            grown = self._grow(log_total)
            if grown is not None:
                self.cells = self.cells.joined(grown)
                continue
            chosen = self._to_split(log_total)
            if not bool(chosen.any()):
                break
            self.cells = self.cells[~chosen].joined(self._split(self.cells[chosen]))
        relative = self._total(self._relative(self.cells.log_error, log_total)) + self._beyond(log_total).sum((1, 2))
        bound = torch.where((relative < 1) & torch.isfinite(log_total), -torch.log1p(-relative.clamp(max=1.0)), torch.inf)
        return Integral(log_total, bound, self.num_evaluations, self.cells)

    def _total(self, value: Tensor) -> Tensor:
        """Sum over the cells of each datum, (N,)."""
        return value.new_zeros(self.n).index_add_(0, self.cells.datum, value)

    def _sum(self, log_value: Tensor) -> Tensor:
        """log-sum-exp over the cells of each datum, (N,)."""
        top = self._largest(log_value)
        finite = torch.where(torch.isfinite(top), top, 0.0)
        return finite + self._total((log_value - finite[self.cells.datum]).exp()).log()

    def _largest(self, log_value: Tensor) -> Tensor:
        return log_value.new_full((self.n,), -torch.inf).scatter_reduce_(0, self.cells.datum, log_value, "amax")

    def _relative(self, log_value: Tensor, log_total: Tensor) -> Tensor:
        """exp(log_value) as a part of its datum's integral, at most 1: more than all is as bad as all."""
        reference = torch.where(torch.isfinite(log_total), log_total, 0.0)[self.cells.datum]
        return (log_value - reference).clamp(max=0.0).exp()

    def _tolerances(self) -> Tensor:
        top = self._largest(self.cells.log_f.amax(-1))
        return (self.noise * torch.where(torch.isfinite(top), top, 0.0).abs()).clamp(min=self.tolerance)

    def _beyond(self, log_total: Tensor) -> Tensor:
        """What may lie beyond the box, five times the mass of its outermost shell, (N, D, 2), as a part of the integral."""
        cells = self.cells
        mass = self._relative(cells.log_integral, log_total)
        found = []
        for d in range(self.dim):
            place = cells.centre[:, d]
            below = place < (self.low + self.shell[..., 0])[cells.datum, d]
            above = place > (self.high - self.shell[..., 1])[cells.datum, d]
            found.append(torch.stack([self._total(mass * below), self._total(mass * above)], -1))
        return BEYOND * torch.stack(found, 1)

    def _grow(self, log_total: Tensor) -> Cells | None:
        """A slab of half the box's width on every side whose shell has mass."""
        open_ = (self.num_evaluations < self.max_evaluations) & torch.isfinite(log_total)
        wanted = (self._beyond(log_total) > self._tolerances()[:, None, None] / 20) & open_[:, None, None]
        grown: Cells | None = None
        tiles = FIRST_CELLS[self.dim]
        for d in range(self.dim):
            for side in range(2):
                which = wanted[:, d, side].nonzero()[:, 0]
                if not len(which):
                    continue
                low, high = self.low[which], self.high[which]
                width = high[:, d] - low[:, d]
                if side:
                    low[:, d] = high[:, d]
                    high[:, d] = self.high[which, d] = high[:, d] + width / 2
                else:
                    high[:, d] = low[:, d]
                    low[:, d] = self.low[which, d] = low[:, d] - width / 2
                self.shell[which, d, side] = 0.4 * width / 2
                slab = self._roots(which, low, high, [tiles // 2 if e == d else tiles for e in range(self.dim)])
                grown = slab if grown is None else grown.joined(slab)
        return grown

    def _to_split(self, log_total: Tensor) -> Tensor:
        """The cells, largest errors first, without which the errors of their datum would sum to less than its tolerance, (C,) bool."""
        cells = self.cells
        splittable = (cells.level < MAX_LEVEL) & (self.num_evaluations < self.max_evaluations)[cells.datum]
        relative = self._relative(cells.log_error, log_total)
        order = torch.argsort(relative, stable=True)
        order = order[torch.argsort(cells.datum[order], stable=True)]
        running = relative[order].cumsum(0)
        sums = self._total(relative)
        start = sums.cumsum(0) - sums
        keep_below = torch.empty_like(relative)
        keep_below[order] = running - start[cells.datum[order]]
        matters = keep_below > 0.8 * self._tolerances()[cells.datum]
        # the worst first: once a peak is found, most of what looked bad beside it is negligible
        largest = self._largest(torch.where(splittable, cells.log_error, -torch.inf))
        worst = cells.log_error >= largest[cells.datum] - 5.0
        return splittable & matters & worst & (cells.log_error > -torch.inf)

    def _roots(self, datum: Tensor, low: Tensor, high: Tensor, tiles: list[int]) -> Cells:
        """Boxes (m, D) of the data numbered ``datum`` (m,) cut into tiles, which have no parents."""
        steps = torch.cartesian_prod(*[torch.arange(t, device=low.device) + 0.5 for t in tiles]).reshape(-1, self.dim)
        half = (high - low) / (2 * low.new_tensor(tiles))
        centre = low[:, None] + 2 * half[:, None] * steps
        datum, half = datum.repeat_interleave(len(steps)), half.repeat_interleave(len(steps), 0)
        found, hidden = self._cells(datum, centre.flatten(0, 1), half, torch.zeros_like(datum))
        found.log_error = torch.maximum(torch.maximum(found.log_integral, found.log_fine), hidden)
        return found

    def _split(self, parents: Cells) -> Cells:
        """The 2^D halves of each parent."""
        signs = torch.cartesian_prod(*[parents.centre.new_tensor([-0.5, 0.5])] * self.dim).reshape(-1, self.dim)
        k = len(signs)
        centre = (parents.centre[:, None] + parents.half[:, None] * signs).flatten(0, 1)
        half = (parents.half / 2).repeat_interleave(k, 0)
        found, hidden = self._cells(parents.datum.repeat_interleave(k), centre, half, parents.level.repeat_interleave(k) + 1)
        together = torch.logsumexp(found.log_integral.reshape(-1, k), -1)
        difference = _log_difference(parents.log_integral, together)
        # the parent's error is shared out by where the children's own rules disagree, a little by mass, and a little evenly
        disagreement = _log_difference(found.log_integral, found.log_fine).reshape(-1, k)
        shares = 0.8 * _shares(disagreement) + 0.1 * _shares(found.log_integral.reshape(-1, k)) + 0.1 / k
        found.log_error = torch.maximum((difference[:, None] + shares.log()).flatten(), hidden)
        return found

    def _cells(self, datum: Tensor, centre: Tensor, half: Tensor, level: Tensor) -> tuple[Cells, Tensor]:
        """Evaluate cells; beside them the log of what the unresolved ones could hold, (C,)."""
        parts = []
        for some in torch.arange(len(datum), device=datum.device).split(self.at_once):
            u = centre[some] + half[some] * self.rules.nodes[:, None]  # (Q, c, D)
            parts.append(self.log_f(datum[some], u).double().mT)
        log_f = torch.cat(parts)
        if not bool((log_f < torch.inf).all()):  # nan is not below either
            cell, node = (~(log_f < torch.inf)).nonzero()[0].tolist()
            place = (centre[cell] + half[cell] * self.rules.nodes[node]).tolist()
            raise ArgumentError(f"log f of datum {int(datum[cell])} is {log_f[cell, node].item()} at u = {place}")
        self.num_evaluations.index_add_(0, datum, torch.full_like(datum, log_f.shape[1]))
        log_half = half.log().sum(-1)
        log_integral = torch.logsumexp(log_f + self.rules.log_weights, -1) + log_half
        log_fine, log_peak, log_kink = self._interpolated(log_f)
        log_fine = log_fine + log_half
        whole = torch.isfinite(log_f).all(-1)
        log_fine = torch.where(whole, log_fine, log_integral)  # no polynomial runs through -inf: the children tell
        hidden = torch.where(
            log_peak > log_f.amax(-1) + BETWEEN,
            log_peak + log_half + self.dim * math.log(2.0),
            torch.maximum(_log_difference(log_integral, log_fine), log_integral + log_kink),
        )
        jump = log_f.amax(-1) + log_half + self.dim * math.log(2.0) + math.log(JUMP)
        hidden = torch.where(whole, hidden, torch.where(torch.isfinite(log_f).any(-1), jump, -torch.inf))
        return Cells(datum, centre, half, log_f, level, log_integral, log_fine, log_integral), hidden

    def _interpolated(self, log_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log of the interpolated density's integral over [-1, 1]^D, how high log f may stand in the cell, and the log of the part of the
        integral that a kink may have falsified, (C,) each.
        """
        rules = self.rules
        log_f = log_f.nan_to_num(neginf=0.0)  # such cells are left out by the caller
        values = log_f @ rules.value.mT
        best, at = values.max(-1)
        g = torch.stack([(log_f * rules.first[d][at]).sum(-1) for d in range(self.dim)], -1)
        curvature = torch.stack(
            [torch.stack([-(log_f * rules.second[d, e][at]).sum(-1) for e in range(self.dim)], -1) for d in range(self.dim)], -2
        )
        determinant = torch.linalg.det(curvature)
        concave = (curvature[:, 0, 0] > 0) & (determinant > 0)
        safe = torch.where(concave[:, None, None], curvature, torch.eye(self.dim, dtype=log_f.dtype, device=log_f.device))
        # a Newton step to the interpolant's peak, kept in the cell: a peak beyond the edge shows by its flank
        step = (rules.grid[at] + torch.linalg.solve(safe, g).clamp(-4 / FINE, 4 / FINE)).clamp(-1, 1) - rules.grid[at]
        rise = (g * step).sum(-1) - 0.5 * torch.einsum("cd,cde,ce->c", step, curvature, step)
        gain = torch.where(concave, rise.clamp(min=0.0), 0.0)
        carried = (log_f @ rules.rough.mT).abs()
        rough = carried.sum(-1)
        bent = (log_f @ rules.bent.mT).abs().sum(-1)
        oblique = (2 * (carried @ rules.oblique)[:, 0]).clamp(max=rough)  # all of it, where half of the roughness is of both coordinates
        wrong = KINK * (rough - oblique) + OBLIQUE * oblique
        kink = torch.where(rough >= FALLS_OFF * bent, torch.expm1(wrong).clamp(max=1.0).log(), -torch.inf)
        return torch.logsumexp(log_f @ rules.fine_value.mT + rules.fine_log_weights, -1), best + gain + rough, kink


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """log |exp a - exp b|."""
    top, bottom = torch.maximum(a, b), torch.minimum(a, b)
    distance = torch.where(top > -torch.inf, top - bottom, 0.0)
    return torch.where(top > -torch.inf, top + torch.log(-torch.expm1(-distance)), -torch.inf)


def _shares(log_value: Tensor) -> Tensor:
    """Each row as parts of its sum; even where the row has none."""
    even = torch.full_like(log_value, 1 / log_value.shape[-1])
    return torch.where(torch.isfinite(log_value).any(-1, keepdim=True), torch.softmax(log_value, -1), even)


def draws(cells: Cells, num_data: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Draws from the normalised f_n, (num_draws, N, D): a cell by its mass, then a place in it by the interpolated density.

    The place is drawn by rejection from the uniform; its density is off by the interpolation's error, of the order of the cells' own.
    """
    rules = _rules(cells.centre.shape[1], cells.centre.device)
    dim, device = cells.centre.shape[1], cells.centre.device
    order = torch.argsort(cells.datum, stable=True)
    cells = cells[order]
    counts = torch.bincount(cells.datum, minlength=num_data)
    start = counts.cumsum(0) - counts
    top = cells.log_integral.new_full((num_data,), -torch.inf).scatter_reduce_(0, cells.datum, cells.log_integral, "amax")
    mass = (cells.log_integral - top[cells.datum]).exp()
    running = mass.cumsum(0)
    total = torch.zeros_like(top).index_add_(0, cells.datum, mass)
    before = total.cumsum(0) - total
    wanted = before + total * torch.rand(num_draws, num_data, dtype=torch.float64, device=device, generator=generator)
    chosen = torch.searchsorted(running, wanted).clamp(start, start + counts - 1).flatten()
    spectrum = _spectrum(dim, device)
    # -inf at a node: that node's neighbourhood is never drawn, 50 nats below the cell's best
    floor = cells.log_f.amax(-1, keepdim=True) - 50.0
    log_f = torch.maximum(cells.log_f, floor)
    ceiling = (log_f @ rules.value.mT).amax(-1) + 0.05
    place = torch.zeros(len(chosen), dim, dtype=torch.float64, device=device)
    left = torch.arange(len(chosen), device=device)
    while len(left):
        t = 2 * torch.rand(len(left), dim, dtype=torch.float64, device=device, generator=generator) - 1
        basis = _legendre(t[:, 0])
        if dim == 2:
            basis = (basis[:, :, None] * _legendre(t[:, 1])[:, None, :]).flatten(1)
        cell = chosen[left]
        value = ((log_f[cell] @ spectrum.mT) * basis).sum(-1)
        accepted = torch.rand(len(left), dtype=torch.float64, device=device, generator=generator).log() < value - ceiling[cell]
        place[left[accepted]] = t[accepted]
        left = left[~accepted]
    return (cells.centre[chosen] + cells.half[chosen] * place).reshape(num_draws, num_data, dim)


@functools.cache
def _spectrum(dim: int, device: torch.device) -> Tensor:
    """The matrix from values at the nodes to Legendre coefficients, (Q, Q)."""
    one = torch.linalg.inv(_legendre(_gauss_lobatto(NODES)[0]))
    return (one if dim == 1 else torch.kron(one, one)).to(device)
