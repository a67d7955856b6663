"""Paths from a base density to the joint: log f_b = (1 - b) log base + b log joint, in the whitened coordinates of the base.

The base is a Normal N(m, L L^T) per datum (a guide's, a refined posterior's) or the model's prior. Both ends are densities with respect to
v = L^-1 (u - m), u the unconstrained coordinates, so that the Jacobian of a constrained support is part of each.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from ppvae import hmc, noise
from ppvae.batches import Batch, take
from ppvae.compilation import CompiledFunction
from ppvae.coordinates import Coordinates
from ppvae.errors import ArgumentError, FamilyError
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.policy import worth
from ppvae.posteriors import Normals
from ppvae.programs import measuring, prior_of
from ppvae.refinement import PROPOSAL_STEPS, fit
from ppvae.starts import start_of

STARTS = ("auto", "guide", "refined", "prior")
WHITENING_DRAWS = 256
WORTH_COMPILING = 2_000_000  # evaluations with their gradients: some 30 s eagerly, of which compiling saves a third
REFINEMENT_DRAWS = 32


class Ends(NamedTuple):
    """Both ends of the path at some positions, with respect to v.

    Attributes:
        log_base, log_joint: (C, n), float64.
        base_gradient, joint_gradient: (C, n, D).
    """

    log_base: Tensor
    base_gradient: Tensor
    log_joint: Tensor
    joint_gradient: Tensor

    @property
    def energy(self) -> Tensor:
        """log joint - log base, (C, n): what a step of the inverse temperature multiplies."""
        return self.log_joint - self.log_base

    def tempered(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """log f_b and its gradient; b is (n,)."""
        value = (1 - b) * self.log_base + b * self.log_joint
        gradient = (1 - b)[:, None] * self.base_gradient + b[:, None] * self.joint_gradient
        return value, gradient.to(self.base_gradient.dtype)


class Evaluation:
    """Both ends of a path as a function of tensors, compiled where there is work enough.

    Args:
        coordinates: The latents as u.
        from_prior: Whether the base is the model's prior.
        wanted: Whether to compile.
        num_rows: Data of a usual stretch, the shape that is worth compiling.
    """

    def __init__(self, coordinates: Coordinates, from_prior: bool, wanted: bool = False, num_rows: int = 0) -> None:
        self.coordinates, self.from_prior = coordinates, from_prior
        self.function = CompiledFunction(self._ends, wanted=wanted, shapes=lambda inputs: len(inputs[1]) == num_rows)

    def __call__(self, x: Batch, v: Tensor, m: Tensor, scale_tril: Tensor) -> Ends:
        """Both ends at v, (C, n, D), for data x with whitening m (n, D) and L (n, D, D)."""
        leaves, self._tree = _pytree.tree_flatten(x)
        return Ends(*self.function(v.detach(), m, scale_tril, *leaves))

    def _ends(self, v: Tensor, m: Tensor, scale_tril: Tensor, *leaves: Tensor) -> Ends:
        x = _pytree.tree_unflatten(leaves, self._tree)
        log_det = scale_tril.diagonal(dim1=-2, dim2=-1).double().abs().log().sum(-1)
        with torch.enable_grad():
            v = v.detach().requires_grad_(True)
            u = placed(v, m, scale_tril)
            if self.from_prior:
                log_base, log_joint = prior_and_joint(self.coordinates, x, u)
                base_gradient, joint_gradient = _gradient(log_base, v, keep=True), _gradient(log_joint, v)
                return Ends(log_base.detach() + log_det, base_gradient, log_joint.detach() + log_det, joint_gradient)
            log_joint = self.coordinates.log_density(x, u)
            joint_gradient = _gradient(log_joint, v)
        v = v.detach()
        log_base = -0.5 * v.double().square().sum(-1) - 0.5 * v.shape[-1] * math.log(2 * math.pi)
        return Ends(log_base, -v, log_joint.detach().double() + log_det, joint_gradient)


def placed(v: Tensor, m: Tensor, scale_tril: Tensor) -> Tensor:
    """u = m + L v, (C, n, D)."""
    return m + torch.einsum("nij,cnj->cni", scale_tril, v)


@dataclass(frozen=True)
class Stretch:
    """The path at some data: x, their whitening m (n, D) and L (n, D, D), and what evaluates its ends."""

    evaluation: Evaluation
    x: Batch
    m: Tensor
    scale_tril: Tensor

    def whitened(self, u: Tensor) -> Tensor:
        """v = L^-1 (u - m), (C, n, D)."""
        centred = (u - self.m).permute(1, 2, 0)
        solved: Tensor = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)
        return solved.permute(2, 0, 1)

    def ends(self, v: Tensor) -> Ends:
        """Both ends at v, (C, n, D), and their gradients; one evaluation of the model."""
        return self.evaluation(self.x, v, self.m, self.scale_tril)

    def target(self, b: Tensor) -> hmc.Target:
        """log f_b as the kernel takes it; b is (n,)."""

        def density(v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            ends = self.ends(v)
            return *ends.tempered(b), ends

        return density


def prior_and_joint(coordinates: Coordinates, x: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
    """log p(z(u)) + log |dz/du| and log p(x, z(u)) + log |dz/du|, each (K, n), float64; discrete latents summed out of both."""
    values, log_det = coordinates.unpack(u)
    if coordinates.states is not None and coordinates.states.sites:
        prior = copy.copy(coordinates.states)
        prior.pair = copy.copy(coordinates.pair)
        prior.pair.model = prior_of(coordinates.pair.model)
        return prior.log_sum(x, values) + log_det, coordinates.states.log_sum(x, values) + log_det
    terms = coordinates.pair.score(x, values)
    latents = set(coordinates.pair.latents)
    log_prior = sum((term for name, term in terms.items() if name in latents), log_det.double())
    return log_prior, sum((term for name, term in terms.items() if name not in latents), log_prior)


def _gradient(value: Tensor, v: Tensor, keep: bool = False) -> Tensor:
    """d value / d v, zero where it does not depend on v."""
    if not value.requires_grad:
        return torch.zeros_like(v)
    (gradient,) = torch.autograd.grad(value.sum(), v, retain_graph=keep, materialize_grads=True)
    return gradient


@dataclass(frozen=True)
class Path:
    """From a base to the joint for all data.

    Attributes:
        coordinates: The latents as u.
        x: The batch.
        m, scale_tril: The whitening, (N, D) and (N, D, D); of a Normal start its mean and Cholesky factor.
        from_prior: Whether the base is the model's prior; else it is N(m, L L^T).
        name: Of the start.
        num_evaluations: Model evaluations per datum that made the start.
        evaluation: Of both ends; None evaluates eagerly.
    """

    coordinates: Coordinates
    x: Batch
    m: Tensor
    scale_tril: Tensor
    from_prior: bool
    name: str
    num_evaluations: int = 0
    evaluation: Evaluation | None = None

    def compiled(self, evaluations: int, num_rows: int) -> Path:
        """The path for ``evaluations`` per datum, in stretches of ``num_rows``, compiled where that is worth it."""
        usual = min(num_rows, self.pair.num_data)
        wanted = worth(evaluations * usual * (self.pair.num_data // usual), WORTH_COMPILING)
        return replace(self, evaluation=Evaluation(self.coordinates, self.from_prior, wanted, usual))

    @property
    def pair(self) -> Pair:
        """The pair whose model is annealed to; from the prior its guide draws from the base."""
        return self.coordinates.pair

    def stretch(self, rows: slice) -> Stretch:
        """The path at some of the data."""
        evaluation = self.evaluation or Evaluation(self.coordinates, self.from_prior)
        return Stretch(evaluation, take(self.x, rows), self.m[rows], self.scale_tril[rows])

    def drawn(self, rows: slice, num_chains: int, source: hmc.Source, seed: int, purpose: str) -> Tensor:
        """Exact draws from the base, v of shape (C, n, D)."""
        if not self.from_prior:
            return source.normal(num_chains, self.coordinates.dim, dtype=self.m.dtype)
        parts = [
            _prior_draws(self.coordinates, self.x, slice(rows.start + b.start, rows.start + b.stop), num_chains, seed, purpose)
            for b in noise.blocks(rows.stop - rows.start, noise.BLOCK_ROWS)
        ]
        return self.stretch(rows).whitened(torch.cat(parts, 1))


def _prior_draws(coordinates: Coordinates, x: Batch, rows: slice, num_draws: int, seed: int, purpose: str) -> Tensor:
    pair = coordinates.pair
    with noise.seeded(seed, "prior draws", purpose, rows.start, device=pair.device):
        return coordinates.pack(pair.draw(take(x, rows), rows, num_draws)[0])


def path(model: Program, guide: Program | None, x: Batch, start: str, seed: int, globals_at: dict[str, Tensor] | None = None) -> Path:
    """The path from a start to the joint.

    Args:
        model, guide: Programs; the guide may be missing.
        x: The batch, on the programs' device.
        start: "guide", "refined", "prior", or "auto": the guide where there is one, else the prior.
        seed: Rules the start.
        globals_at: Values of global sites, in place of a draw from the guide.

    Raises:
        ArgumentError: No such start, or the guide's without a guide.
        FamilyError: A latent has no unconstrained coordinates.
    """
    if start not in STARTS:
        raise ArgumentError(f"start is one of {', '.join(STARTS)}, got {start!r}")
    if start == "guide" and guide is None:
        raise ArgumentError("start='guide' needs a guide", mend=["guide=...", "start='prior'"])
    name = ("guide" if guide is not None else "prior") if start == "auto" else start
    if name == "prior":
        pair = Pair(model, prior_of(model), x, seed)
        if pair.globals and guide is not None and not globals_at:
            globals_at = Pair(model, guide, x, seed).globals
        pair.globals.update(globals_at or {})
        return prior_path(pair, x, seed)
    pair = Pair(model, prior_of(model) if guide is None else guide, x, seed)
    pair.globals.update(globals_at or {})
    return normal_path(_normals(pair, x, seed), x, name) if name == "guide" else refined_path(pair, x, seed)


def prior_path(pair: Pair, x: Batch, seed: int) -> Path:
    """From the model's prior, the pair's guide, whitened by the moments of its draws."""
    coordinates = Coordinates(pair, x, seed, enumerate_discrete=True)
    if not coordinates.sites:
        raise FamilyError(
            "the model has no continuous latent site in the data plate, so there is nothing to anneal",
            where=f"latent sites in the data plate: {pair.latents}",
            mend="analysis.exact_log_likelihood(model, x) sums discrete latents out",
        )
    locs, scales = [], []
    at_once: Halving[Tensor] = Halving(1, "the prior's moments")

    def draws(rows: slice) -> Tensor:
        with measuring(pair.model, pair.guide):
            return _prior_draws(coordinates, x, rows, WHITENING_DRAWS, seed, "whitening")

    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        (u,) = at_once(rows, draws)
        locs.append(u.mean(0))
        scales.append(u.std(0).clamp(min=1e-6))
    return Path(coordinates, x, torch.cat(locs), torch.diag_embed(torch.cat(scales)), True, "prior")


def normal_path(start: Normals, x: Batch, name: str, num_evaluations: int = 0) -> Path:
    """From a Normal per datum."""
    return Path(start.coordinates, x, start.m, start.scale_tril, False, name, num_evaluations)


def refined_path(pair: Pair, x: Batch, seed: int) -> Path:
    """From a full-rank Normal per datum, refined from the guide."""
    fitted = fit(pair, x, family="full_rank", steps=PROPOSAL_STEPS, num_draws=REFINEMENT_DRAWS, seed=seed, report=False)
    local = Pair(pair.model, fitted.guide, x, seed)
    local.globals.update(pair.globals)
    return normal_path(_normals(local, x, seed), x, "refined", fitted.num_evaluations)


def _normals(pair: Pair, x: Batch, seed: int) -> Normals:
    start = start_of(pair, x, "full_rank", seed)
    assert isinstance(start, Normals)  # what the family "full_rank" starts from
    return start
