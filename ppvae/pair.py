"""A model and a guide run together: how they take particles, and per-datum log densities by site.

Particles are a plate left of all others where the pair allows it, else the batch is repeated K times and the result reshaped, so that a
user's network needs no leading dimensions. The two ways are held to each other before the first is used.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppvae import memory, noise, parts
from ppvae.batches import Batch, device_of, digest, num_data, repeat, take
from ppvae.errors import ProgramError, ShapeError
from ppvae.memory import Halving, is_out_of_memory
from ppvae.modules import Program
from ppvae.pieces import Piece
from ppvae.programs import (
    Values,
    check_plates,
    first_trace,
    has_no_inverse,
    in_data_plate,
    latent_sites,
    log_prob,
    measuring,
    observed_sites,
    sample_sites,
    trace,
)
from ppvae.support import RELAXED, check_support, measure_of, unvalidated

PARTICLES = "_ppvae_particles"
Sites = dict[str, Any]  # of a run, by name


class Pair:
    """A model and a guide looked at once on a few rows: their sites, their plates, how they take particles.

    Args:
        model, guide: Programs that keep the contract. A guide that has to look at its model and all its data first has a method
            ``prepared(model, x)``, which returns the guide for these data.
        x: The data of the measurement; three rows are looked at.
        seed: Rules the draw of global sites.

    Raises:
        ShapeError: A site lies outside the data plate, or its plate is not as long as the batch.
        ProgramError: The guide misses a latent site or has one too many.
        OutOfMemoryError: There is no memory for those rows.
    """

    def __init__(self, model: Program, guide: Program, x: Batch, seed: int = 0) -> None:
        guide = guide.prepared(model, x) if hasattr(guide, "prepared") else guide
        self.model, self.guide = model, guide
        self.num_data = num_data(x)
        self.device = device_of(x)
        # rows at once where no draw moves what is read of the model; it lasts, so that memory's end is told once
        self.reading: Halving[Any] = Halving(self.num_data, "reading the data", block_rows=1)
        self._fits(guide, x)
        # two at least, so that a plate of size 1 stands out
        looked_at = torch.arange(min(3, self.num_data)) if self.num_data > 1 else torch.zeros(2, dtype=torch.long)
        rows = take(x, looked_at)
        look = memory.whole(f"a look at {len(looked_at)} data")
        with look, noise.seeded(seed, "globals", device=self.device), measuring(model, guide):
            with pyro.validation_enabled(True):  # so that an author's own validate_args=False stands out
                found_q = first_trace("guide", _for_rows(guide, looked_at), rows, {})
                found_p = first_trace("model", model, rows, {name: site["value"] for name, site in sample_sites(found_q).items()})
            self._read(found_p, found_q, len(looked_at))
            if self.num_data > 2:  # a plate of a size of its own fits three rows or two, never both
                fewer = looked_at[:2]
                for side, program in (("guide", _for_rows(guide, fewer)), ("model", model)):
                    check_plates(sample_sites(first_trace(side, program, take(rows, fewer), self.globals)), 2)
            self.in_plate = self._takes_a_particle_plate(rows, looked_at)

    def _fits(self, guide: Program, x: Batch) -> None:
        if not hasattr(guide, "rows"):
            return
        expected, belongs_to = getattr(guide, "num_data", None), getattr(guide, "belongs_to", None)
        mend = "hand in the x that it was refined for, or refine again"
        if expected is not None and expected != self.num_data:
            raise ShapeError(f"this local posterior belongs to {expected} data, and {self.num_data} came", mend=mend)
        if belongs_to is not None and belongs_to != digest(x):
            raise ShapeError("this local posterior belongs to other data than those that came", mend=mend)

    def _read(self, found_p: Trace, found_q: Trace, n: int) -> None:
        sites_p, sites_q = sample_sites(found_p), sample_sites(found_q)
        drawn_q = [name for name in latent_sites(found_q) if not sites_q[name]["infer"].get("is_auxiliary")]
        missing = [name for name in latent_sites(found_p) if name not in sites_q]
        if missing:
            raise ProgramError(
                f"the guide misses the latent site '{missing[0]}' of the model",
                where=f"the guide draws {drawn_q or 'nothing'}; the model draws {latent_sites(found_p)}",
                mend=f"add pyro.sample('{missing[0]}', ...) to the guide, spelt as in the model",
            )
        drawn_observed = [name for name in drawn_q if name in sites_p and sites_p[name]["is_observed"]]
        if drawn_observed:
            raise ProgramError(
                f"the guide draws '{drawn_observed[0]}', which the model observes",
                where=f"the model draws {latent_sites(found_p)}",
                mend=f"remove '{drawn_observed[0]}' from the guide: the data are given",
            )
        extra = [name for name in drawn_q if name not in sites_p]
        if extra:
            raise ProgramError(
                f"the guide draws '{extra[0]}', which the model does not",
                where=f"the model draws {latent_sites(found_p)}",
                mend=[f"remove '{extra[0]}' or spell it as in the model", "mark it infer={'is_auxiliary': True} if it is auxiliary"],
            )
        check_plates(sites_p, n)
        check_plates(sites_q, n)
        self.observed = observed_sites(found_p)
        if not self.observed:
            raise ProgramError("the model observes nothing", mend="give a site obs=: pyro.sample('x', ..., obs=x)")
        self.latents = [name for name in latent_sites(found_p) if in_data_plate(sites_p[name])]
        self.globals: dict[str, Tensor] = {
            name: site["value"].detach() for name, site in sites_q.items() if not site["is_observed"] and not in_data_plate(site)
        }
        both = {**sites_p, **sites_q}
        self.outside = [name for name, site in both.items() if not in_data_plate(site)]  # global sites, and what is only recorded there
        self.event_dims = {name: site["fn"].event_dim for name, site in {**sites_p, **sites_q}.items()}
        self.nesting = max([1, *(-f.dim for s in [*sites_p.values(), *sites_q.values()] for f in s["cond_indep_stack"] if f.vectorized)])
        self.lenient = frozenset(name for name in self.observed if unvalidated(sites_p[name]))
        self.relaxed = False  # until a stretch of data says otherwise
        self._measure = measure_of([sites_p[name] for name in self.observed])

    def _takes_a_particle_plate(self, rows: Batch, index: Tensor) -> bool:
        """Try K = 4 in a plate, and hold every log density to that of the repeated batch with the same latents."""
        self.in_plate = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values, log_q = self.draw(rows, index, 4)
                log_p = self.score(rows, values, num_particles=4)
                self.in_plate = False
                same_q = self.guide_score(rows, index, values, num_particles=4)
                same_p = self.score(rows, values, num_particles=4)
        except Exception as error:  # the user's network may refuse leading dims in any way it likes; repeating needs nothing of it
            if is_out_of_memory(error):
                raise
            return False
        finally:
            self.in_plate = False
        pairs = [(log_q[name], same_q[name]) for name in log_q] + [(log_p[name], same_p[name]) for name in log_p]
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-4, equal_nan=True) for a, b in pairs)

    @property
    def measure(self) -> str:
        """What the observed densities are with respect to; relaxed if data looked at so far lay outside their support."""
        return RELAXED if self.relaxed else self._measure

    def draw(self, x: Batch, rows: Tensor | slice, num_particles: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K draws per datum from the guide.

        Returns:
            The latents, (K, [plates], n, *event), and log q by site, (K, n).
        """
        return self._drawn(lambda piece: self._guide_of(rows, piece), x, num_particles)

    def _drawn(
        self, program_of: Callable[[Piece], Program], x: Batch, num_particles: int, scored: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the program of some rows draws, and its log densities."""

        def drawn(piece: Piece, part: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            k = piece.size[1]
            found = self._run(program_of(piece), part, {}, k)
            sites = {name: site for name, site in sample_sites(found).items() if name not in self.globals and in_data_plate(site)}
            own = {name: site for name, site in sites.items() if not site["is_observed"]}  # not what pyro.deterministic records
            values = {name: self._outward(site["value"], k, site["fn"].event_dim) for name, site in own.items()}
            return values, {name: self._per_datum(log_prob(site), k) for name, site in sites.items()} if scored else {}

        found = parts.drawn(drawn, x, num_particles, self._particle_dim)
        values, log_q = ([(particles, both[side]) for particles, both in found] for side in (0, 1))
        return parts.joined(values, self._data_dim), parts.joined(log_q, lambda _: 1)

    def at_draws(
        self, x: Batch, rows: Tensor | slice, num_particles: int, read: Callable[[Sites, Sites], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors made of the guide's sites at K draws and of the model's at the same latents.

        Args:
            x: Data, n rows.
            rows: Which of all data they are.
            num_particles: K.
            read: From the sites of both, as they stand in a run, to tensors in the layout of a site's value by the site's name.

        Returns:
            (K, [plates], n, *event) by name.
        """

        def drawn(piece: Piece, part: Batch) -> dict[str, Tensor]:
            k = piece.size[1]
            sites_q = sample_sites(self._run(self._guide_of(rows, piece), part, {}, k))
            sites_p = sample_sites(self._run(self.model, part, {name: site["value"] for name, site in sites_q.items()}, k))
            return {name: self._outward(value, k, self.event_dims[name]) for name, value in read(sites_q, sites_p).items()}

        return parts.joined(parts.drawn(drawn, x, num_particles, self._particle_dim), self._data_dim)

    def posterior_means(self, x: Batch, rows: Tensor | slice, num_particles: int = 1) -> dict[str, Tensor]:
        """E_q[z | x] by latent site, (n, *event): exact where a site's distribution has a mean that no earlier draw moves."""

        def drawn(piece: Piece, part: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            k = piece.size[1]
            sites = sample_sites(self._run(self._guide_of(rows, piece), part, {}, k))
            values = {name: self._outward(sites[name]["value"], k, self.event_dims[name]) for name in self.latents}
            means = {}
            for name in self.latents:
                with contextlib.suppress(NotImplementedError):  # torch's word for a distribution without a mean: the draws are averaged
                    mean = sites[name]["fn"].mean.expand(sites[name]["value"].shape)
                    means[name] = self._outward(mean, k, self.event_dims[name])
            return values, means

        found = parts.drawn(drawn, x, num_particles, self._particle_dim)
        values, means = (parts.joined([(particles, both[side]) for particles, both in found], self._data_dim) for side in (0, 1))
        averages = {}
        for name in self.latents:
            mean = means[name] if name in means and torch.isfinite(means[name]).all() else values[name]
            mean = mean.to(torch.get_default_dtype() if not mean.is_floating_point() else mean.dtype).mean(0)
            averages[name] = mean.movedim(mean.dim() - self.event_dims[name] - 1, 0)
        return averages

    def score(self, x: Batch, values: Values, check_from: int | None = None, num_particles: int | None = None) -> dict[str, Tensor]:
        """log p by site of the model, (K, n), at latents of shape (K, [plates], n, *event).

        With ``check_from``, the number of the first row, the data are held against the likelihood's support on the way.
        ``num_particles`` is K where there are no latents to tell it.
        """
        return self._in_pieces(lambda _: self.model, x, values, check_from, num_particles)

    def _in_pieces(
        self,
        program_of: Callable[[slice], Program],
        x: Batch,
        values: Values,
        check_from: int | None = None,
        num_particles: int | None = None,
    ) -> dict[str, Tensor]:
        """Log densities of the program of some rows: in one call, or piece by piece where memory ran out."""
        num_particles = len(next(iter(values.values()))) if values else num_particles or 1
        found: parts.Parts[dict[str, Tensor]] = []
        with memory.densities(num_data(x), num_particles) as pieces:
            if len(pieces) == 1:
                return self._log_densities(program_of(pieces[0][0]), x, values, check_from, num_particles)
            for rows, particles in pieces:
                first = None if check_from is None or particles.start else check_from + rows.start
                some = self._some(values, rows, particles)
                inputs = program_of(rows), take(x, rows), some, first, particles.stop - particles.start
                # with gradients nothing of a piece is kept but what it began with: it is run again when they are wanted
                graph = torch.is_grad_enabled()
                part = checkpoint(self._log_densities, *inputs, use_reentrant=False) if graph else self._log_densities(*inputs)
                found.append((particles, part))
        return parts.joined(found, lambda _: 1)

    def _log_densities(self, program: Program, x: Batch, values: Values, check_from: int | None, num_particles: int) -> dict[str, Tensor]:
        found = self._run(program, x, self._all_inward(values), num_particles)
        if check_from is not None:
            self.relaxed |= check_support(found, lenient=self.lenient, first_row=check_from, num_data=num_data(x))
        sites = {name: site for name, site in sample_sites(found).items() if name not in self.globals and in_data_plate(site)}
        return {name: self._per_datum(log_prob(site), num_particles) for name, site in sites.items()}

    def _run(self, program: Program, x: Batch, values: Values, num_particles: int, repeated: bool = False) -> Trace:
        values = {**values, **self.globals}
        if self.in_plate and not repeated:
            with pyro.plate(PARTICLES, num_particles, dim=-self.nesting - 1):
                return trace(program, x, values)
        return trace(_repeated(program, num_particles), repeat(x, num_particles), values)

    @property
    def _particle_dim(self) -> int | None:
        return -self.nesting - 1 if self.in_plate else None

    def _data_dim(self, name: str) -> int:
        event_dim: int = self.event_dims[name]
        return -1 - event_dim

    def _guide_of(self, rows: Tensor | slice, piece: Piece) -> Program:
        return _for_rows(self.guide, rows if piece.is_whole else _part(rows, piece.rows))

    def _some(self, values: Values, rows: slice, particles: slice) -> dict[str, Tensor]:
        return {name: parts.some(value, rows, particles, self.event_dims[name]) for name, value in values.items()}

    def _all_inward(self, values: Values, repeated: bool = False) -> dict[str, Tensor]:
        return {name: self._inward(value, self.event_dims[name], repeated) for name, value in values.items()}

    def _per_datum(self, density: Tensor, num_particles: int) -> Tensor:
        if self.in_plate:
            density = density.flatten(1, -2).sum(1) if density.dim() > 2 else density
        else:
            density = density.flatten(0, -2).sum(0) if density.dim() > 1 else density
            density = density.reshape(num_particles, -1)
        return density.double()

    def _outward(self, value: Tensor, num_particles: int, event_dim: int, repeated: bool = False) -> Tensor:
        """From the layout of a run to (K, [plates], n, *event)."""
        if self.in_plate and not repeated:
            return value
        data_dim = value.dim() - event_dim - 1
        value = value.unflatten(data_dim, (num_particles, -1))
        return value.movedim(data_dim, 0)

    def _inward(self, value: Tensor, event_dim: int, repeated: bool = False) -> Tensor:
        if self.in_plate and not repeated:
            return value
        data_dim = value.dim() - event_dim - 1
        return value.movedim(0, data_dim - 1).flatten(data_dim - 1, data_dim)

    def guide_score(self, x: Batch, rows: Tensor | slice, values: Values, num_particles: int | None = None) -> dict[str, Tensor]:
        """log q by site of the guide, (K, n), at given latents."""
        return self._in_pieces(lambda part: _for_rows(self.guide, _part(rows, part)), x, values, num_particles=num_particles)

    def guide_density(self, x: Batch, rows: slice, values: Values, purpose: str) -> Tensor:
        """log q(z | x) at given latents, (K, n), float64: the sum of its sites'.

        nan where the guide cannot tell it: with an auxiliary site it is an integral, and a transform may have no inverse. ``purpose``
        names the generator of what the guide draws beside its latents.
        """
        with noise.seeded(0, purpose, device=self.device), measuring(self.model, self.guide):
            try:
                densities = self.guide_score(x, rows, values)
            except (NotImplementedError, KeyError) as error:
                if not has_no_inverse(error):
                    raise
                densities = {}
        if densities.keys() != set(self.latents):
            first = next(iter(values.values()))
            return torch.full((len(first), rows.stop - rows.start), torch.nan, dtype=torch.float64, device=first.device)
        return torch.stack(list(densities.values())).sum(0)

    def predict(
        self, x: Batch, values: Values, num_particles: int, sites: list[str] | None = None, repeated: bool = False
    ) -> dict[str, Tensor]:
        """New draws of the observed sites given latents, (K, [plates], n, *event).

        Args:
            x: Data, n rows.
            values: Of all latents, (K, [plates], n, *event).
            num_particles: K.
            sites: Which observed sites; all by default.
            repeated: Run the model on the batch K times over, whether or not it takes particles as a plate.
        """

        def drawn(piece: Piece, part: Batch) -> dict[str, Tensor]:
            k = piece.size[1]
            some = values if piece.is_whole else self._some(values, piece.rows, piece.particles)
            found = sample_sites(self._run(self.model, part, self._all_inward(some, repeated), k, repeated))
            new = {name: parts.sampled(piece, name, found[name]["fn"]) for name in sites or self.observed}
            return {name: self._outward(value, k, self.event_dims[name], repeated) for name, value in new.items()}

        particle_dim = None if repeated else self._particle_dim
        return parts.joined(parts.drawn(drawn, x, num_particles, particle_dim), self._data_dim)

    def given(self, x: Batch, values: Values, num_particles: int, read: Callable[[Sites], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors read off the model's sites at given latents, (K, [plates], n, *event), of a run on the batch K times over.

        Args:
            x: Data, n rows.
            values: Of all latents, (K, [plates], n, *event).
            num_particles: K.
            read: From the sites of the run to tensors in the layout of a site's value by the site's name; it draws nothing.
        """
        found: parts.Parts[dict[str, Tensor]] = []
        with memory.densities(num_data(x), num_particles) as pieces:
            for rows, particles in pieces:
                told = read(self.sites_at(x, values, rows, particles)).items()
                k = particles.stop - particles.start
                found.append((particles, {name: self._outward(value, k, self.event_dims[name], repeated=True) for name, value in told}))
        return parts.joined(found, self._data_dim)

    def sites_at(self, x: Batch, values: Values, rows: slice, particles: slice) -> Sites:
        """The model's sites for some rows and particles of latents (K, [plates], n, *event), in a run on the rows particle by particle."""
        some = self._all_inward(self._some(values, rows, particles), repeated=True)
        return sample_sites(self._run(self.model, take(x, rows), some, particles.stop - particles.start, repeated=True))

    def observed_values(self, x: Batch) -> dict[str, Tensor]:
        """What the observed sites hold, data first, (n, [plates], *event). No draw moves it, so that any rows will do at once."""

        def held(rows: slice) -> dict[str, Tensor]:
            values = {name: site["value"] for name, site in sample_sites(trace(self.model, take(x, rows), self.globals)).items()}
            return {name: values[name].movedim(values[name].dim() - self.event_dims[name] - 1, 0) for name in self.observed}

        found = self.reading(slice(0, num_data(x)), held)
        return found[0] if len(found) == 1 else {name: torch.cat([part[name] for part in found]) for name in self.observed}

    def prior_draws(self, x: Batch, num_draws: int) -> dict[str, Tensor]:
        """Draws of the latents from the model's prior at the covariates of x, (K, n, *event), plates behind the data."""
        return {name: self.datum_first(value, name) for name, value in self.drawn_from_prior(x, num_draws).items()}

    def drawn_from_prior(self, x: Batch, num_particles: int) -> dict[str, Tensor]:
        """K draws per datum of the latents from the model's prior, (K, [plates], n, *event); global sites stay where they are."""
        values, _ = self._drawn(lambda _: self.model, x, num_particles, scored=False)
        return {name: values[name] for name in self.latents}

    def datum_first(self, value: Tensor, name: str) -> Tensor:
        """(K, [plates], n, *event) -> (K, n, *plates, *event), plates of size 1 left out."""
        data_dim = value.dim() - self.event_dims[name] - 1
        plates = [size for size in value.shape[1:data_dim] if size > 1]
        value = value.movedim(data_dim, 1)
        return value.reshape(*value.shape[:2], *plates, *value.shape[value.dim() - self.event_dims[name] :])

    def crossed(self, value: Tensor, name: str, block: slice, n: int) -> Tensor:
        """One draw per datum, (1, [plates], n, *event), to particles that every datum is given: (block, [plates], n, *event)."""
        data_dim = value.dim() - self.event_dims[name] - 1
        particles = value[0].movedim(data_dim - 1, 0)[block].unsqueeze(data_dim)
        return particles.expand(*particles.shape[:data_dim], n, *particles.shape[data_dim + 1 :])


def _for_rows(guide: Program, rows: Tensor | slice) -> Program:
    """A local posterior belongs to its data row by row; any other guide is the same for all rows."""
    return guide.rows(rows) if hasattr(guide, "rows") else guide


def _part(rows: Tensor | slice, part: slice) -> Tensor | slice:
    return slice(rows.start + part.start, rows.start + part.stop) if isinstance(rows, slice) else rows[part]


def _repeated(program: Program, num_particles: int) -> Program:
    """A local posterior must repeat its rows as the batch is repeated; any other program reads the batch."""
    repeated: Callable[[int], Program] | None = getattr(program, "repeated", None)
    return repeated(num_particles) if repeated is not None else program
