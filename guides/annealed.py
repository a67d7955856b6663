"""A guide with a few annealing transitions behind it: u_0 from the guide's Normal, then T - 1 steps of Hamiltonian Monte Carlo.

The draws on the way are auxiliary variables: their joint density under the guide, and under the same transitions run in reverse from the
posterior, make E[log w] of the annealed chain an evidence lower bound, one that needs no density of the last state.
"""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppvae import noise
from ppvae.annealing import Settings, Tables, tables, walk
from ppvae.batches import Batch, digest, num_data
from ppvae.coordinates import Coordinates
from ppvae.errors import ProgramError, ShapeError, check_count
from ppvae.hmc import check_settings
from ppvae.local import condition, point_mass
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.paths import Evaluation, Stretch, normal_path, placed
from ppvae.posteriors import Normals
from ppvae.programs import measuring
from ppvae.starts import start_of


class Annealed:
    """A few annealing transitions behind a guide: an auxiliary-variable bound, tighter than the guide's own ELBO.

    ``analysis.elbo`` of it is the mean log weight of a single chain; ``analysis.log_likelihood`` is annealed importance sampling. The
    density of a draw is known only along with the draw, so it is no proposal to evaluate elsewhere.

    Args:
        guide: Where the chains start: its Normal for each datum, or the Normal with its moments.
        temperatures: T; 1 is that Normal itself.
        num_leapfrog: Leapfrog steps a transition.
        step_size: In whitened coordinates; by default a pilot finds one per datum and temperature, which are then frozen.
        model: Needed only where the guide is called as a plain program: measurements know their model.
        seed: Rules the pilot.

    References:
        Salimans, Kingma, Welling (2015), Markov chain Monte Carlo and variational inference: bridging the gap, sec. 2.
        Wu, Köhler, Noé (2020), Stochastic normalizing flows. Geffner, Domke (2021), MCMC variational inference via uncorrected
        Hamiltonian annealing: there without the accept-reject step that these transitions have.
    """

    def __init__(
        self,
        guide: Program,
        *,
        temperatures: int = 5,
        num_leapfrog: int = 3,
        step_size: float | None = None,
        model: Program | None = None,
        seed: int = 0,
    ) -> None:
        check_count("temperatures", temperatures)
        check_settings(1, num_leapfrog, step_size)
        self.guide, self.model, self.seed = guide, model, seed
        self.temperatures, self.num_leapfrog, self.step_size = temperatures, num_leapfrog, step_size

    def prepared(self, model: Program, x: Batch) -> LocalAnnealed:
        """The guide for these data: its Normals, and the step sizes that a pilot finds for each.

        Args:
            model: What to anneal to.
            x: The whole batch, (N, *event).

        Raises:
            FamilyError: A latent has no unconstrained coordinates.
        """
        pair = Pair(model, self.guide, x, self.seed)
        pair.in_plate = False  # the transitions run inside other programs, whose plates would take the dim of the particles' own
        start = start_of(pair, x, "full_rank", self.seed)
        assert isinstance(start, Normals)  # what the family "full_rank" starts from
        settings = Settings(self.temperatures, 1, self.num_leapfrog, "linear", self.step_size)
        frozen = tables(normal_path(start, x, "guide"), settings, noise.derived_seed(self.seed, "pilot"))
        name = f"{getattr(pair.guide, 'name', 'guide')}, annealed over {self.temperatures} temperatures"
        local = LocalAnnealed(start.coordinates, start.m, start.scale_tril, frozen, self.num_leapfrog, name, digest(x))
        local.num_evaluations = frozen.num_evaluations + int(getattr(pair.guide, "num_evaluations", 0))
        return local

    def __call__(self, x: Batch) -> None:
        """Draw the latents of x.

        Raises:
            ProgramError: No model was handed in.
        """
        if self.model is None:
            raise ProgramError(
                "an annealed guide needs its model to run: its transitions leave p(x, z) invariant",
                mend=["Annealed(guide, model=model)", "analysis.elbo(model, Annealed(guide), x), which hands it in"],
            )
        with poutine.block():  # what the preparation runs is no part of this program
            local = self.prepared(self.model, x)
        local(x)


class LocalAnnealed:
    """An annealed guide for the data that it was prepared for, and no others.

    Args:
        coordinates: The latents as u, and the pair whose model is annealed to.
        m, scale_tril: Of the Normals that the chains start from, (N, D) and (N, D, D).
        frozen: Temperatures (T + 1, N) and step sizes (T - 1, N).
        num_leapfrog: Leapfrog steps a transition.
        name: What it is called in results.
        belongs_to: Digest of the data.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        m: Tensor,
        scale_tril: Tensor,
        frozen: Tables,
        num_leapfrog: int,
        name: str,
        belongs_to: str | None = None,
    ) -> None:
        self.coordinates, self.m, self.scale_tril, self.frozen = coordinates, m, scale_tril, frozen
        self.num_leapfrog, self.name, self.belongs_to = num_leapfrog, name, belongs_to
        self.num_data = len(m)
        self.num_evaluations = 0  # per datum, that made it
        self.evaluations_per_draw = 2 + num_leapfrog * len(frozen.step_sizes)  # the chain's, and the density's that its draw is held to

    def rows(self, rows: Tensor | slice) -> LocalAnnealed:
        """The guide of some of its data."""
        frozen = replace(self.frozen, temperatures=self.frozen.temperatures[:, rows], step_sizes=self.frozen.step_sizes[:, rows])
        return self._with(self.m[rows], self.scale_tril[rows], frozen)

    def repeated(self, times: int) -> LocalAnnealed:
        """The guide of the data ``times`` times over."""
        temperatures, step_sizes = self.frozen.temperatures.repeat(1, times), self.frozen.step_sizes.repeat(1, times)
        frozen = replace(self.frozen, temperatures=temperatures, step_sizes=step_sizes)
        return self._with(self.m.repeat(times, 1), self.scale_tril.repeat(times, 1, 1), frozen)

    def _with(self, m: Tensor, scale_tril: Tensor, frozen: Tables) -> LocalAnnealed:
        return LocalAnnealed(self.coordinates, m, scale_tril, frozen, self.num_leapfrog, self.name)

    def __call__(self, x: Batch) -> None:
        """Draw the latents of x, the data that this guide was prepared for; torch's own generator rules the draws.

        Raises:
            ShapeError: Another number of data came.
        """
        if num_data(x) != self.num_data:
            raise ShapeError(
                f"this annealed guide was prepared for {self.num_data} data, and {num_data(x)} came",
                mend="hand in the x that it was prepared for, or take its rows: guide.rows(slice(0, 10))",
            )
        pair = self.coordinates.pair
        condition(pair.globals)
        normal = dist.MultivariateNormal(self.m, scale_tril=self.scale_tril)
        data = pyro.plate("data", self.num_data, dim=-1)
        with data:
            u = pyro.sample("_unconstrained", normal, infer={"is_auxiliary": True})
        chains = u.reshape(-1, self.num_data, u.shape[-1])  # plates further out
        with poutine.block(), measuring(pair.model):  # outside the plate, whose dim the model's own takes
            stretch = Stretch(Evaluation(self.coordinates, False), x, self.m, self.scale_tril)
            v = stretch.whitened(chains)
            last = walk(stretch, v, self.frozen.temperatures, self.frozen.step_sizes, self.num_leapfrog, _Torch(v))
            reached = placed(last.v, stretch.m, stretch.scale_tril)
            # What log q must be for log p(x, z) - log q to be the log weight of the chain; the Normal's part stands at its own site.
            log_jacobian = self.coordinates.unpack(reached)[1].double() + self.scale_tril.diagonal(dim1=-2, dim2=-1).double().log().sum(-1)
            log_density = last.ends.log_joint - log_jacobian - last.log_weights - normal.log_prob(chains).double()
        reached, log_density = reached.reshape(u.shape), log_density.reshape(u.shape[:-1])
        with data:
            for number, site in enumerate(self.coordinates.sites):
                point_mass(site, reached[..., site.place], log_density if number == 0 else torch.zeros_like(log_density))


class _Torch:
    """Draws from torch's own generator, which whoever runs the program seeds."""

    def __init__(self, like: Tensor) -> None:
        self.n, self.like = like.shape[1], like

    def normal(self, chains: int, *event: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard Normal draws, (C, n, *event)."""
        return torch.randn(chains, self.n, *event, dtype=dtype, device=self.like.device)

    def uniform(self, chains: int) -> Tensor:
        """Uniform draws on [0, 1), (C, n), float64."""
        return torch.rand(chains, self.n, dtype=torch.float64, device=self.like.device)
