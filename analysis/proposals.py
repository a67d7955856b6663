"""What particles are drawn from: the guide, a refined Normal per datum (widened, alone or with a safeguard), or the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, take
from ppvae.coordinates import Coordinates
from ppvae.errors import ArgumentError, FamilyError
from ppvae.families import FullRankMixture, FullRankNormal
from ppvae.local import LocalUnconstrained
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.posteriors import Normals
from ppvae.programs import measuring, prior_of
from ppvae.refinement import LARGEST_FULL_RANK, PROPOSAL_STEPS, fit, widest_normal
from ppvae.starts import start_of

NAMES = ("guide", "refined", "defensive")
SECOND_PARTICLES, PRIOR_PARTICLES = 300, 2000
NUM_DRAWS = 32
FEW_DIMENSIONS, NUM_DRAWS_IN_FEW = 5, 8
NUM_SCATTERED, FAR = 240, 2.5  # points to start from, and how much further half of them lie


@dataclass
class Proposal:
    """A program to draw from, what it is called, and what it cost per datum in evaluations of log p(x, z)."""

    program: Program
    name: str
    num_evaluations: int = 0
    particles: int = SECOND_PARTICLES  # as a second proposal
    evaluations_per_draw: int = 1  # a draw from the prior runs the whole model, too


def proposal_of(given: Program | str, model: Program, guide: Program, x: Batch, seed: int) -> Proposal:
    """The proposal that a user has named or handed in.

    Raises:
        ArgumentError: It is neither.
        FamilyError: A latent cannot be refined.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise ArgumentError(f"proposal is one of {', '.join(NAMES)} or a program for these data, got {given!r}")
        return Proposal(given, str(getattr(given, "name", type(given).__name__)))
    if given == "refined or prior":
        try:
            return refined_proposal(model, guide, x, seed)
        except FamilyError:  # a discrete latent, a mask: nothing to refine
            return Proposal(prior_of(model), "prior", particles=PRIOR_PARTICLES, evaluations_per_draw=2)
    if given not in NAMES:
        raise ArgumentError(f"proposal is one of {', '.join(NAMES)} or a program for these data, got {given!r}")
    if given == "guide":
        return Proposal(guide, "guide")
    found = refined_proposal(model, guide, x, seed)
    return found if given == "refined" else defensive(found, model, guide, x, seed)


def refined_proposal(model: Program, guide: Program, x: Batch, seed: int) -> Proposal:
    """The richest Normal that pays, fitted to each datum from the guide's and slightly widened.

    In few dimensions, where points scattered over the prior find modes that the guide has missed, the mixture of two Normals: the other
    is fitted from the best of them.
    """
    pair = Pair(model, guide, x, seed)
    dim = Coordinates(pair, x, seed).dim
    if dim <= FEW_DIMENSIONS:
        return _from_two_starts(pair, x, seed)
    family = widest_normal(dim)
    steps = None if family == "low_rank" else PROPOSAL_STEPS
    found = fit(pair, x, family=family, steps=steps, num_draws=NUM_DRAWS, seed=seed, report=False)
    local = found.guide.widened(widening(dim))
    return Proposal(local, local.name, found.num_evaluations)


def _from_two_starts(pair: Pair, x: Batch, seed: int) -> Proposal:
    own = normals_of(pair.model, pair.guide, x, seed)
    elsewhere = normals_at(own, _best_scattered(pair, own, x, seed), "the best of scattered points")
    parts, evaluations = [], 3 * NUM_SCATTERED  # drawing from the prior runs the whole model, too
    for number, start in enumerate((pair.guide, elsewhere)):
        fit_seed = noise.derived_seed(seed, "start", number)
        found = fit(
            Pair(pair.model, start, x, seed),
            x,
            family="full_rank",
            steps=PROPOSAL_STEPS,
            num_draws=NUM_DRAWS_IN_FEW,
            seed=fit_seed,
            report=False,
        )
        parts.append(normals_of(pair.model, found.guide.widened(widening(own.coordinates.dim)), x, seed))
        evaluations += found.num_evaluations
    name = f"refined full_rank from two starts, widened {widening(own.coordinates.dim):g}"
    return Proposal(mixture(parts, (0.5, 0.5), name), name, evaluations)


def _best_scattered(pair: Pair, normals: Normals, x: Batch, seed: int) -> Tensor:
    """Of draws from the prior, and of as many scattered twice as far, the one of greatest density with each datum, (N, D).

    Data unlike the training data may have their posterior where the prior has next to no mass.
    """
    found: list[Tensor] = []
    at_once: Halving[Tensor] = Halving(1, "points scattered by the prior")

    def best(rows: slice) -> Tensor:
        some = take(x, rows)
        with noise.seeded(seed, "scattered", rows.start, device=pair.device), measuring(pair.model):
            u = normals.coordinates.pack(pair.drawn_from_prior(some, NUM_SCATTERED))
            far = u.mean(0) + FAR * (u - u.mean(0))
            density = torch.cat([normals.coordinates.log_density(some, part) for part in (u, far)])
            points = torch.cat([u, far])
        highest = density.where(density.isfinite(), -torch.inf).argmax(0)  # +inf is no mode: a latent that underflowed to 0
        return points[highest, torch.arange(u.shape[1], device=u.device)]

    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        found += at_once(rows, best)
    return torch.cat(found)


def widening(dim: int) -> float:
    """An unwidened posterior has heavy tails of its weights where it is too narrow; in many dimensions a little is a lot."""
    return 1.2 if dim <= FEW_DIMENSIONS else 1.05


def defensive(found: Proposal, model: Program, guide: Program, x: Batch, seed: int) -> Proposal:
    """A tenth of the draws from the guide's Normal, as a safeguard against what the refined one leaves out."""
    parts = [*components_of(model, found.program, x, seed), normals_of(model, guide, x, seed)]
    name = f"{found.name}, with the guide"
    shares = (0.9 / (len(parts) - 1),) * (len(parts) - 1) + (0.1,)
    return Proposal(mixture(parts, shares, name), name, found.num_evaluations)


def mixture(parts: list[Normals], shares: tuple[float, ...], name: str) -> LocalUnconstrained:
    """The mixture of several Normals per datum.

    Raises:
        FamilyError: There are too many dimensions for full covariances.
    """
    coordinates = parts[0].coordinates
    if coordinates.dim > LARGEST_FULL_RANK:
        raise FamilyError(
            f"a mixture of full covariances over {coordinates.dim} dimensions costs more than it gains", mend="proposal='refined'"
        )
    normal = FullRankNormal(coordinates.dim)
    table = torch.cat([normal.row(part.m, part.scale_tril) for part in parts], -1)
    return LocalUnconstrained(coordinates.sites, FullRankMixture(coordinates.dim, shares), table, name, coordinates.pair.globals)


def normals_of(model: Program, program: Program, x: Batch, seed: int) -> Normals:
    """A program's own Normals over the unconstrained coordinates, or those of its moments."""
    pair = Pair(model, program, x, seed)
    found = start_of(pair, x, "full_rank", seed)
    assert isinstance(found, Normals)
    return found


def components_of(model: Program, program: Program, x: Batch, seed: int) -> list[Normals]:
    """The Normals that a proposal is a mixture of; of one that is no mixture, its own or those of its moments."""
    if not (isinstance(program, LocalUnconstrained) and isinstance(program.family, FullRankMixture)):
        return [normals_of(model, program, x, seed)]
    normal = program.family.component
    coordinates = Coordinates(Pair(model, program, x, seed), x, seed)
    structure = torch.ones(coordinates.dim, coordinates.dim, device=program.table.device).tril()
    rows = [normal.distribution(row) for row in program.table.split(normal.num_parameters, -1)]
    return [Normals(coordinates, row.loc, row.scale_tril, structure) for row in rows]


def normals_at(normals: Normals, m: Tensor, name: str) -> LocalUnconstrained:
    """Normals of the same shapes elsewhere, as a program to start from."""
    family = FullRankNormal(normals.coordinates.dim)
    table = family.row(m, normals.scale_tril)
    return LocalUnconstrained(normals.coordinates.sites, family, table, name, normals.coordinates.pair.globals)


def unexplained_draws(
    pair: Pair, x: Batch, rows: Tensor, explained_by: LocalUnconstrained, normals: Normals, log_px: Tensor, num_draws: int, seed: int
) -> Tensor:
    """A draw of each of some rows from where the posterior has most mass that a local posterior of them leaves unexplained, (n, D).

    Of the pair's draws that of greatest max(0, p(x, z) - p(x) r(z)) / q(z), r the local posterior: the one of greatest weight alone may
    lie in a mode that r has already.

    Args:
        pair: The model, and the guide q that draws.
        x: All data.
        rows: Numbers of the rows.
        explained_by: r, of those rows.
        normals: Of those rows, for their coordinates.
        log_px: (n,), the estimate of log p(x) that r gave.
        num_draws: Per datum.
        seed: Rules the draws.
    """
    layout = Coordinates(pair, x, seed)  # of the pair that draws, which may lay its values out otherwise
    found: list[Tensor] = []
    at_once: Halving[Tensor] = Halving(1, "draws that are unexplained")

    def best(part: slice) -> Tensor:
        some = rows[part]
        x_some = take(x, some)
        with noise.seeded(seed, "unexplained", int(some[0]), device=pair.device), measuring(pair.model, pair.guide):
            values, log_q = pair.draw(x_some, some, num_draws)
            log_joint = sum(pair.score(x_some, values).values())
            u = layout.pack({name: values[name] for name in pair.latents})
            log_det = normals.coordinates.unpack(u)[1].double()
        explained = explained_by.family.distribution(explained_by.table[part]).log_prob(u).double() - log_det
        share = log_px[part].to(u.device) + explained - log_joint  # log of p(x) r(z) / p(x, z)
        left = log_joint - sum(log_q.values()) + torch.log1p(-share.clamp(max=-1e-9).exp())
        highest = left.where(share < 0, -torch.inf).nan_to_num(-torch.inf).argmax(0)
        return u[highest, torch.arange(len(some), device=u.device)]

    for part in noise.blocks(len(rows), noise.BLOCK_ROWS):
        found += at_once(part, best)
    return torch.cat(found)
