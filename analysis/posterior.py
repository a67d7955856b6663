"""The posterior of chosen data by long chains of Hamiltonian Monte Carlo: what a guide is to be held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import hmc, noise
from ppvae.analysis.draws import drawn
from ppvae.analysis.estimate import Provenance, as_lists, batch_of, label, provenance
from ppvae.analysis.to_arviz import container, convergence
from ppvae.batches import Batch, take
from ppvae.coordinates import Coordinates
from ppvae.data import Data
from ppvae.errors import ArgumentError, check_count
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import measuring, prior_of
from ppvae.starts import start_of

R_HAT, LEAST_ESS = 1.01, 400  # Vehtari et al. (2021), sec. 4
OVERDISPERSED = 2.0  # standard deviations of the guide's Normal, as far as half of the chains start out
FIRST_STEP = 0.5  # of whitened units, where the adaptation begins
SMALL_STEPS = (0.1, 0.01)  # of the step size, between the adapting transitions of the first half of the warm-up
SHRUNK = 0.2  # share of the diagonal in a covariance from the warm-up


@dataclass(frozen=True, eq=False)
class Posterior:
    """Chains of C x S draws for each of N data.

    Attributes:
        draws: By latent site, (C, S, N, *event); plates inside a datum follow N.
        r_hat: (N,), rank-normalised split R-hat, the worst over the unconstrained dimensions.
        ess: (N,), effective sample size, the lesser of bulk and tail, the worst over the dimensions.
        log_density: (C, S, N), log p(x, z) at the draws, nats.
        guide_log_density: (C, S, N), log q(z | x) at the draws; nan where the guide cannot tell it.
        guide_draws: By latent site, as many draws of the guide's own, (C, S, N, *event).
        own_log_density: (C, S, N), log q(z | x) at those.
        acceptance: (N,), mean acceptance probability after the warm-up.
        divergences: (N,), trajectories after the warm-up whose energy was lost altogether: not finite, or off by more than 700 nats.
        step_size: (N,), frozen after the warm-up, in whitened units.
        compared_with: "guide", or "prior" where there was none: what the guide's densities and draws are of.
        source: Where the draws came from.
    """

    draws: dict[str, Tensor]
    r_hat: Tensor
    ess: Tensor
    log_density: Tensor
    guide_log_density: Tensor
    guide_draws: dict[str, Tensor]
    own_log_density: Tensor
    acceptance: Tensor
    divergences: Tensor
    step_size: Tensor
    compared_with: str
    source: Provenance

    @property
    def converged(self) -> Tensor:
        """(N,), R-hat below 1.01 and an effective sample size of 400 at least."""
        return (self.r_hat < R_HAT) & (self.ess >= LEAST_ESS)

    def guide_coverage(self, level: float = 0.9) -> Tensor:
        """(N,), share of the posterior that lies in the guide's region of highest density of this level: less where it is too narrow."""
        if not 0 < level < 1:
            raise ArgumentError(f"a level lies in (0, 1), got {level!r}")
        own = self.own_log_density.flatten(0, 1)
        least = own.sort(0).values[math.floor((1 - level) * len(own))]
        inside = (self.guide_log_density.flatten(0, 1) >= least).double().mean(0)
        return torch.where(self.guide_log_density.isnan().any(0).any(0), torch.nan, inside)

    def __str__(self) -> str:
        c, s, n = self.guide_log_density.shape
        covered = self.guide_coverage().mean()
        guide = "" if torch.isnan(covered) else f"; the {self.compared_with}'s 90 % region holds {100 * covered:.0f} % of the posterior"
        return (
            f"posterior of {n} data by {c} chains of {s} draws: {int(self.converged.sum())} of {n} converged (R-hat up to "
            f"{self.r_hat.max():.3f}, effective sample size {self.ess.min():.0f} at least, acceptance {self.acceptance.mean():.2f}, "
            f"{int(self.divergences.sum())} divergences){guide} ({label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what is held for every draw, which belongs into a file of tensors, is left out."""
        kept = ("r_hat", "ess", "acceptance", "divergences", "step_size", "compared_with", "source")
        return {k: v for k, v in as_lists(self).items() if k in kept} | {"converged": self.converged.tolist()}

    def to_arviz(self) -> Any:
        """An ``InferenceData`` or ``DataTree``: posterior (C, S, N, *event), sample_stats with lp and the guide's log density."""
        return container(self.draws, {"lp": self.log_density, "guide_log_density": self.guide_log_density})


def posterior(
    model: Program,
    x: Data | Batch,
    *,
    guide: Program | None = None,
    num_chains: int = 8,
    num_warmup: int = 500,
    num_draws: int = 1000,
    num_leapfrog: int = 8,
    target: float = 0.8,
    thin: int = 1,
    seed: int = 0,
) -> Posterior:
    """Sample the posterior of each datum, all data and chains at once.

    The chains move in unconstrained coordinates, whitened by the guide's Normal or by the moments of its draws, and from the middle of
    the warm-up on by the chains' own. Every other chain starts from the prior, so that a mode that the guide does not know has a chance
    to be met; the others start two standard deviations of the guide out. Step sizes and coordinates are frozen after the warm-up.

    Args:
        model: A program of one argument, the batch.
        x: Data, (N, *event): a few hundred at most, since all draws are kept.
        guide: Where to start, and what to compare with; the model's prior where there is none.
        num_chains: C, at least 2.
        num_warmup: Transitions of the warm-up.
        num_draws: S, kept draws of each chain.
        num_leapfrog: Leapfrog steps of a transition at most; each takes a random number of them.
        target: Acceptance probability that the step size is adapted to, datum by datum.
        thin: Transitions for each kept draw.
        seed: Rules every draw.

    Raises:
        FamilyError: A latent is discrete or masked, or a site is global.
        ShapeError, ProgramError: The pair breaks the contract.
        DataError: Data outside the support of an observed site.
        ArgumentError: A setting makes no sense.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics. Hoffman, Gelman (2014), The No-U-Turn Sampler, sec. 3.2, on adaptation.
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat.
    """
    hmc.check_settings(num_chains, num_leapfrog)
    check_count("num_chains", num_chains, least=2)
    check_count("num_warmup", num_warmup, least=20)
    check_count("num_draws", num_draws, least=8)
    check_count("thin", thin)
    if not 0 < target < 1:
        raise ArgumentError(f"target, an acceptance probability, lies in (0, 1), got {target!r}")
    batch = batch_of(x, model, *([] if guide is None else [guide]))
    prior = Pair(model, prior_of(model), batch, seed)
    pair = prior if guide is None else Pair(model, guide, batch, seed)
    start: Any = start_of(pair, batch, "full_rank", seed)
    chains = _Chains(pair, prior, batch, num_chains, num_leapfrog, seed)
    found: list[dict[str, Any]] = []
    at_once: Halving[dict[str, Any]] = Halving(1, "chains at the posterior")

    def walked(rows: slice) -> dict[str, Any]:
        chains.begin(rows, start.m[rows], start.scale_tril[rows])
        chains.warm_up(num_warmup, target)
        return chains.sample(num_draws, thin)

    for rows in noise.blocks(pair.num_data, noise.BLOCK_ROWS):
        found += at_once(rows, walked)
    parts = {name: torch.cat([block[name] for block in found], 2) for name in ("u", "log_density", "guide_log_density")}
    totals = {name: torch.cat([block[name] for block in found]) for name in ("acceptance", "divergences", "step_size")}
    r_hat, ess = convergence(parts.pop("u"))
    guide_draws, own = _own(pair, batch, num_chains, num_draws, seed)
    return Posterior(
        draws={name: torch.cat([block["draws"][name] for block in found], 2) for name in pair.latents},
        r_hat=r_hat,
        ess=ess,
        guide_draws=guide_draws,
        own_log_density=own,
        **parts,
        **totals,
        compared_with="prior" if guide is None else "guide",
        source=provenance(x, pair, seed),
    )


class _Chains:
    """C chains for each datum of a block of 64 rows."""

    def __init__(self, pair: Pair, prior: Pair, x: Batch, num_chains: int, num_leapfrog: int, seed: int) -> None:
        self.pair, self.prior, self.x = pair, prior, x
        self.num_chains, self.num_leapfrog, self.seed = num_chains, num_leapfrog, seed
        self.coordinates, self.prior_coordinates = Coordinates(pair, x, seed), Coordinates(prior, x, seed)

    def begin(self, rows: slice, m: Tensor, scale_tril: Tensor) -> None:
        """Start on a block of rows, whitened by N(m, L L^T), (n, D) and (n, D, D)."""
        self.rows, self.x_rows = rows, take(self.x, rows)
        self.m, self.scale_tril = m, scale_tril
        self.noise = hmc.Noise(self.seed, "posterior", rows=rows, device=self.pair.device)
        # Whitened, a posterior near Normal has a period of 2 pi in every direction: trajectories of one length may all return to their
        # start. Lengths that no chain has a say in leave the posterior invariant.
        self.lengths = noise.generator(self.seed, "posterior lengths", rows.start)
        with measuring(self.pair.model):
            self._check_support()
        with noise.seeded(self.seed, "posterior starts", rows.start, device=self.pair.device), measuring(self.prior.model):
            values, _ = self.prior.draw(self.x_rows, rows, self.num_chains)
        out = m + OVERDISPERSED * torch.einsum("nij,cnj->cni", scale_tril, self.noise.normal(self.num_chains, m.shape[-1], dtype=m.dtype))
        from_prior = (torch.arange(self.num_chains, device=m.device) % 2 == 1)[:, None, None]
        u = torch.where(from_prior, self.prior_coordinates.pack(values).to(m.dtype), out)
        value, gradient = self.coordinates.gradient(self.x_rows, u)
        sound = torch.isfinite(value) & torch.isfinite(gradient).all(-1) & torch.isfinite(u).all(-1)
        self.state = self._at(torch.where(sound[..., None], u, m.expand_as(u)))

    def warm_up(self, num_steps: int, target: float) -> None:
        """Adapt the step sizes, and halfway the coordinates."""
        half = num_steps // 2
        self.step_size = torch.full((len(self.m),), FIRST_STEP, dtype=torch.float64, device=self.m.device)
        seen = self._adapt(half, target, SMALL_STEPS)
        self._whiten(torch.stack(seen[half // 2 :]))
        self._adapt(num_steps - half, target, ())

    def sample(self, num_draws: int, thin: int) -> dict[str, Any]:
        """(C, S, n, ...) by name, and (n,) totals over all transitions."""
        kept, densities = [], []
        acceptance = torch.zeros_like(self.step_size)
        divergences = torch.zeros(len(self.m), dtype=torch.long, device=self.m.device)
        for _ in range(num_draws):
            for _ in range(thin):
                moved = self._transition(self.step_size)
                acceptance += moved.acceptance.mean(0)
                divergences += (moved.acceptance == 0).sum(0)
            kept.append(self._u(self.state.position))
            densities.append(self.state.value - self._log_det(kept[-1]))
        u = torch.stack(kept, 1)  # (C, S, n, D)
        values, guide_density = self._read(u)
        return {
            "u": u.double().cpu(),
            "draws": values,
            "log_density": torch.stack(densities, 1).double().cpu(),
            "guide_log_density": guide_density,
            "acceptance": (acceptance / (num_draws * thin)).cpu(),
            "divergences": divergences.cpu(),
            "step_size": self.step_size.cpu(),
        }

    def _check_support(self) -> None:
        rows = self.rows
        with noise.seeded(self.seed, "posterior support", rows.start, device=self.pair.device):
            values, _ = self.pair.draw(self.x_rows, rows, 1)
            self.pair.score(self.x_rows, values, check_from=rows.start)

    def _adapt(self, num_steps: int, target: float, between: tuple[float, ...]) -> list[Tensor]:
        """Adapt the step sizes. Every other transition takes one of the shares ``between`` of them, and teaches nothing.

        A chain that starts where the density is steep is stuck at the step size that suits the others; small steps bring it in.
        """
        adaptation = hmc.StepSizeAdaptation(self.step_size, target=target)
        seen = []
        for i in range(num_steps):
            if between and i % 2:
                self._transition(adaptation.step_size * between[i // 2 % len(between)])
            else:
                adaptation.update(self._transition(adaptation.step_size).acceptance)
            seen.append(self._u(self.state.position))
        self.step_size = adaptation.averaged
        return seen

    def _whiten(self, u: Tensor) -> None:
        """Coordinates by the chains' own draws (S, C, n, D): their mean, and the covariance about each chain's mean.

        The covariance within chains, since chains in different modes would stretch that of all draws beyond either mode.
        """
        here = self._u(self.state.position)
        centred = (u - u.mean(0)).flatten(0, 1)
        covariance = torch.einsum("kni,knj->nij", centred, centred) / len(centred)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        covariance = (1 - SHRUNK) * covariance + SHRUNK * torch.diag_embed(variance)
        moved = torch.isfinite(covariance).flatten(1).all(1) & (variance > 1e-12 * (1 + u.mean((0, 1)).square())).all(1)
        root = torch.linalg.cholesky(torch.where(moved[:, None, None], covariance, torch.eye(u.shape[-1]).to(covariance)))
        self.m = torch.where(moved[:, None], u.mean((0, 1)), self.m)
        self.scale_tril = torch.where(moved[:, None, None], root, self.scale_tril)
        self.step_size = torch.where(moved.to(self.step_size.device), FIRST_STEP, self.step_size)
        self.state = self._at(here)

    def _at(self, u: Tensor) -> hmc.State:
        offset = (u - self.m).movedim(0, 1)  # (n, C, D)
        e = torch.linalg.solve_triangular(self.scale_tril, offset.mT, upper=False).mT.movedim(1, 0)
        return hmc.State.at(self._target, e)

    def _u(self, e: Tensor) -> Tensor:
        return self.m + torch.einsum("nij,cnj->cni", self.scale_tril, e)

    def _target(self, e: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        value, gradient = self.coordinates.gradient(self.x_rows, self._u(e))
        return value, torch.einsum("nji,cnj->cni", self.scale_tril, gradient), ()

    def _transition(self, step_size: Tensor) -> hmc.Moved:
        length = int(torch.randint(1, self.num_leapfrog + 1, (), generator=self.lengths))
        moved = hmc.transition(self._target, self.state, step_size=step_size, num_leapfrog=length, noise=self.noise)
        self.state = moved.state
        return moved

    def _log_det(self, u: Tensor) -> Tensor:
        return self.coordinates.unpack(u)[1]

    def _read(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The latents by site and the guide's log density, (C, S, n, ...)."""
        sizes = u.shape[:2]
        parts: dict[str, list[Tensor]] = {name: [] for name in self.pair.latents}
        densities = []
        for some in u.flatten(0, 1).split(noise.BLOCK_PARTICLES):
            values, _ = self.coordinates.unpack(some)
            for name in self.pair.latents:
                parts[name].append(self.pair.datum_first(values[name], name).cpu())
            densities.append(self.pair.guide_density(self.x_rows, self.rows, values, "posterior density").cpu())
        draws = {name: torch.cat(found).unflatten(0, sizes) for name, found in parts.items()}
        return draws, torch.cat(densities).unflatten(0, sizes)


def _own(pair: Pair, x: Batch, num_chains: int, num_draws: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The guide's own draws by site, (C, S, N, *event), and log q(z | x) at them, (C, S, N)."""
    sizes = (num_chains, num_draws)
    density = torch.empty(num_chains * num_draws, pair.num_data, dtype=torch.float64)
    draws: dict[str, Tensor] = {}
    for block in drawn(pair, x, num_draws=len(density), seed=seed, purpose="posterior guide"):
        told = block.log_q.keys() == set(pair.latents)
        density[block.particles, block.rows] = block.log_q_sum.cpu() if told else torch.nan
        for name in pair.latents:
            values = pair.datum_first(block.values[name], name).cpu()
            draws.setdefault(name, values.new_empty(*density.shape, *values.shape[2:]))[block.particles, block.rows] = values
    return {name: values.unflatten(0, sizes) for name, values in draws.items()}, density.unflatten(0, sizes)
