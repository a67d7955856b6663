"""Run a program: traces, plates, particles, and per-datum log densities by site.

Everything that is measured starts here. The data plate is the plate at dim -1; particles are a plate left of all others where the
pair allows it, else the batch is repeated K times and the result reshaped. This is the only file that combines traces.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppvae import noise
from ppvae.batches import Batch, device_of, num_data, repeat, take
from ppvae.errors import DivergedError, PpvaeError, ProgramError, ShapeError
from ppvae.modules import Program, eval_mode
from ppvae.support import RELAXED, check_support, measure_of, unvalidated

PARTICLES = "_ppvae_particles"
ROWS_AT_ONCE = 4096  # rows (datum x particle) a call of the model: the logits of a 784-pixel decoder still fit in the cache

Values = Mapping[str, Tensor]


class _Substitute(Messenger):
    """Give latent sites these values; unlike ``poutine.condition`` they stay unobserved."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


def trace(program: Program, x: Batch, values: Values | None = None) -> Trace:
    """Run ``program(x)`` once, with ``values`` at the latent sites that they name."""
    with _Substitute(values or {}):
        return poutine.trace(program).get_trace(x)


def sample_sites(found: Trace) -> dict[str, Any]:
    """The sample sites of a trace, without the index sites that a subsampling plate adds."""
    return {name: site for name, site in found.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}


def is_deterministic(site: Any) -> bool:
    """Whether the site only records a value (``pyro.deterministic``) or a factor, and draws nothing."""
    return bool(site["infer"].get("_deterministic")) or type(site["fn"]).__name__ == "Unit"


def latent_sites(found: Trace) -> list[str]:
    """Names of the sites that are drawn."""
    return [name for name, site in sample_sites(found).items() if not site["is_observed"]]


def observed_sites(found: Trace) -> list[str]:
    """Names of the sites that hold data."""
    return [name for name, site in sample_sites(found).items() if site["is_observed"] and not is_deterministic(site)]


def in_data_plate(site: Any) -> bool:
    """Whether a site lies in the plate at dim -1."""
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])


def log_prob(site: Any) -> Tensor:
    """log p(value) by batch element, masks applied, scales not: a density has no training weight."""
    density: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(density, 1.0, site["mask"])  # type: ignore[no-any-return]


@contextlib.contextmanager
def measuring(*programs: Program) -> Iterator[None]:
    """Eval mode, no gradients recorded unless asked for, the caller's parameter store read but not written.

    The store is copied because a ``PyroModule`` that finds another program's parameter under its own name takes it over: measuring
    one pair must not change the next.
    """
    store = pyro.get_param_store()
    with eval_mode(*programs), store.scope(store.get_state()), pyro.validation_enabled(False), torch.no_grad():
        yield


@dataclass
class Terms:
    """Per-datum log densities of one stretch of work, by site. Each (K, n), float64, nats."""

    rows: slice
    particles: slice
    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    observed: frozenset[str]
    values: dict[str, Tensor] = field(repr=False, default_factory=dict)

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x), (K, n)."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]

    @property
    def distortion(self) -> Tensor:
        """-log p(x | z), (K, n)."""
        return -sum(term for name, term in self.log_p.items() if name in self.observed)  # type: ignore[return-value]

    @property
    def rate(self) -> Tensor:
        """log q(z | x) - log p(z), (K, n)."""
        prior = [term for name, term in self.log_p.items() if name not in self.observed]
        nothing = torch.zeros_like(self.distortion)  # a model without per-datum latents has no rate
        return sum(self.log_q.values(), nothing) - sum(prior, nothing)


class Pair:
    """A model and a guide looked at once on a few rows: their sites, their plates, how they take particles.

    Args:
        model, guide: Programs that keep the contract.
        x: The data of the measurement; two rows are looked at.
        seed: Rules the draw of global sites.

    Raises:
        ShapeError: A site lies outside the data plate, or its plate is not as long as the batch.
        ProgramError: The guide misses a latent site or has one too many.
    """

    def __init__(self, model: Program, guide: Program, x: Batch, seed: int = 0) -> None:
        self.model, self.guide = model, guide
        self.num_data = num_data(x)
        self.device = device_of(x)
        self._fits(guide)
        looked_at = torch.tensor([0, min(1, self.num_data - 1)])
        rows = take(x, looked_at)
        with noise.seeded(seed, "globals", device=self.device), measuring(model, guide):
            with pyro.validation_enabled(True):  # so that an author's own validate_args=False stands out
                found_q = _tried("guide", _for_rows(guide, looked_at), rows, {})
                found_p = _tried("model", model, rows, {name: site["value"] for name, site in sample_sites(found_q).items()})
            self._read(found_p, found_q, len(looked_at))
            self.in_plate = self._takes_a_particle_plate(rows, looked_at)

    def _fits(self, guide: Program) -> None:
        expected = getattr(guide, "num_data", None)
        if hasattr(guide, "rows") and expected is not None and expected != self.num_data:
            raise ShapeError(
                f"this local posterior belongs to {expected} data, and {self.num_data} came",
                mend="hand in the x that it was refined for, or refine again",
            )

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
        self.event_dims = {name: site["fn"].event_dim for name, site in {**sites_p, **sites_q}.items()}
        self.nesting = max([1, *(-f.dim for s in [*sites_p.values(), *sites_q.values()] for f in s["cond_indep_stack"] if f.vectorized)])
        self.lenient = frozenset(name for name in self.observed if unvalidated(sites_p[name]))
        self.relaxed = False  # until a stretch of data says otherwise
        self._measure = measure_of([sites_p[name] for name in self.observed])

    def _takes_a_particle_plate(self, rows: Batch, index: Tensor) -> bool:
        """Try K = 3 in a plate, and hold every log density to that of the repeated batch with the same latents."""
        self.in_plate = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values, log_q = self.draw(rows, index, 3)
                log_p = self.score(rows, values)
                self.in_plate = False
                same_q = self._log_densities(_for_rows(self.guide, index), rows, values)
                same_p = self.score(rows, values)
        except Exception:  # the user's network may refuse leading dims in any way it likes; repeating needs nothing of it
            return False
        finally:
            self.in_plate = False
        pairs = [(log_q[name], same_q[name]) for name in log_q] + [(log_p[name], same_p[name]) for name in log_p]
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True) for a, b in pairs)

    @property
    def measure(self) -> str:
        """What the observed densities are with respect to; relaxed if data looked at so far lay outside their support."""
        return RELAXED if self.relaxed else self._measure

    def draw(self, x: Batch, rows: Tensor | slice, num_particles: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K draws per datum from the guide.

        Returns:
            The latents, (K, [plates], n, *event), and log q by site, (K, n).
        """
        found = self._run(_for_rows(self.guide, rows), x, {}, num_particles)
        sites = {name: site for name, site in sample_sites(found).items() if name not in self.globals and in_data_plate(site)}
        values = {name: self._outward(site["value"], num_particles, site["fn"].event_dim) for name, site in sites.items()}
        return values, {name: self._per_datum(log_prob(site), num_particles) for name, site in sites.items()}

    def posterior_means(self, x: Batch, rows: Tensor | slice, num_particles: int = 1) -> dict[str, Tensor]:
        """E_q[z | x] by latent site, (n, *event): exact where a site's distribution has a mean that no earlier draw moves."""
        found = self._run(_for_rows(self.guide, rows), x, {}, num_particles)
        means = {}
        for name in self.latents:
            site = sample_sites(found)[name]
            mean: Tensor = site["value"]
            with contextlib.suppress(NotImplementedError, AttributeError):
                mean = site["fn"].mean if torch.isfinite(site["fn"].mean).all() else mean
            mean = mean.expand(site["value"].shape).to(torch.get_default_dtype() if not mean.is_floating_point() else mean.dtype)
            outward = self._outward(mean, num_particles, site["fn"].event_dim).mean(0)
            means[name] = outward.movedim(outward.dim() - site["fn"].event_dim - 1, 0)
        return means

    def score(self, x: Batch, values: Values, check_from: int | None = None) -> dict[str, Tensor]:
        """log p by site of the model, (K, n), at latents of shape (K, [plates], n, *event).

        With ``check_from``, the number of the first row, the data are held against the likelihood's support on the way.
        """
        return self._log_densities(self.model, x, values, check_from)

    def _log_densities(self, program: Program, x: Batch, values: Values, check_from: int | None = None) -> dict[str, Tensor]:
        num_particles = len(next(iter(values.values()))) if values else 1
        inward = {name: self._inward(value, self.event_dims[name]) for name, value in values.items()}
        found = self._run(program, x, inward, num_particles)
        if check_from is not None:
            self.relaxed |= check_support(found, lenient=self.lenient, first_row=check_from, num_data=num_data(x))
        sites = {name: site for name, site in sample_sites(found).items() if name not in self.globals and in_data_plate(site)}
        return {name: self._per_datum(log_prob(site), num_particles) for name, site in sites.items()}

    def _run(self, program: Program, x: Batch, values: Values, num_particles: int) -> Trace:
        values = {**values, **self.globals}
        if self.in_plate:
            with pyro.plate(PARTICLES, num_particles, dim=-self.nesting - 1):
                return trace(program, x, values)
        return trace(_repeated(program, num_particles), repeat(x, num_particles), values)

    def _per_datum(self, density: Tensor, num_particles: int) -> Tensor:
        if self.in_plate:
            density = density.flatten(1, -2).sum(1) if density.dim() > 2 else density
        else:
            density = density.flatten(0, -2).sum(0) if density.dim() > 1 else density
            density = density.reshape(num_particles, -1)
        return density.double()

    def _outward(self, value: Tensor, num_particles: int, event_dim: int) -> Tensor:
        """From the layout of a run to (K, [plates], n, *event)."""
        if self.in_plate:
            return value
        data_dim = value.dim() - event_dim - 1
        value = value.unflatten(data_dim, (num_particles, -1))
        return value.movedim(data_dim, 0)

    def _inward(self, value: Tensor, event_dim: int) -> Tensor:
        if self.in_plate:
            return value
        data_dim = value.dim() - event_dim - 1
        return value.movedim(0, data_dim - 1).flatten(data_dim - 1, data_dim)

    def guide_score(self, x: Batch, rows: Tensor | slice, values: Values) -> dict[str, Tensor]:
        """log q by site of the guide, (K, n), at given latents."""
        return self._log_densities(_for_rows(self.guide, rows), x, values)

    def site_pairs(self, x: Batch, rows: Tensor | slice, num_particles: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The guide's sites at K draws, and the model's sites at the same latents, as they stand in a run."""
        found_q = self._run(_for_rows(self.guide, rows), x, {}, num_particles)
        values = {name: site["value"] for name, site in sample_sites(found_q).items()}
        return sample_sites(found_q), sample_sites(self._run(self.model, x, values, num_particles))

    def predict(self, x: Batch, values: Values) -> dict[str, Tensor]:
        """New draws of the observed sites given latents, (K, [plates], n, *event)."""
        num_particles = len(next(iter(values.values())))
        inward = {name: self._inward(value, self.event_dims[name]) for name, value in values.items()}
        sites = sample_sites(self._run(self.model, x, inward, num_particles))
        return {name: self._outward(sites[name]["fn"].sample(), num_particles, self.event_dims[name]) for name in self.observed}

    def prior_draws(self, x: Batch, num_draws: int) -> dict[str, Tensor]:
        """Draws of the latents from the model's prior at the covariates of x, (K, n, *event), plates behind the data."""
        sites = sample_sites(self._run(self.model, x, {}, num_draws))
        return {
            name: self.datum_first(self._outward(sites[name]["value"], num_draws, self.event_dims[name]), name) for name in self.latents
        }

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

    def stream(
        self, x: Batch, *, num_particles: int, seed: int, blocks_at_once: int | None = None, keep: bool = False, first_row: int = 0
    ) -> Iterator[Terms]:
        """Every log density of K particles per datum, a stretch of work at a time: for each stretch of rows all its particles.

        Each block of 64 data x 64 particles is drawn from its own seed; ``blocks_at_once`` blocks of data go through the model in one
        call and change nothing but the time. With ``keep`` the latents come along; ``first_row`` is the number of x's first row in
        messages.
        """
        if num_particles < 1:
            raise ProgramError(f"num_particles must be at least 1, got {num_particles}")
        if blocks_at_once is None:
            blocks_at_once = max(1, ROWS_AT_ONCE // (noise.BLOCK_ROWS * min(num_particles, noise.BLOCK_PARTICLES)))
        observed = frozenset(self.observed)
        for stretch in noise.blocks(self.num_data, noise.BLOCK_ROWS * blocks_at_once):
            x_stretch = take(x, stretch)
            for particles in noise.blocks(num_particles, noise.BLOCK_PARTICLES):
                with measuring(self.model, self.guide):
                    values, log_q = self._draw_blocks(x, stretch, particles, seed)
                    log_p = self.score(x_stretch, values, check_from=first_row + stretch.start if particles.start == 0 else None)
                terms = Terms(stretch, particles, log_p, log_q, observed, values if keep else {})
                self._refuse_nan(terms, first_row)
                yield terms

    def _draw_blocks(self, x: Batch, stretch: slice, particles: slice, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        drawn = []
        for block in noise.blocks(stretch.stop - stretch.start, noise.BLOCK_ROWS):
            rows = slice(stretch.start + block.start, stretch.start + block.stop)
            with noise.seeded(seed, rows.start, particles.start, device=self.device):
                drawn.append(self.draw(take(x, rows), rows, particles.stop - particles.start))
        if len(drawn) == 1:
            return drawn[0]
        values = {name: torch.cat([v[name] for v, _ in drawn], dim=-1 - self.event_dims[name]) for name in drawn[0][0]}
        return values, {name: torch.cat([q[name] for _, q in drawn], dim=1) for name in drawn[0][1]}

    def _refuse_nan(self, terms: Terms, first_row: int) -> None:
        for side, densities in (("guide", terms.log_q), ("model", terms.log_p)):
            for name, density in densities.items():
                bad = torch.isnan(density) | (density == torch.inf)
                if bad.any():
                    datum = first_row + terms.rows.start + int(bad.any(0).nonzero()[0])
                    raise DivergedError(
                        f"the log density of site '{name}' is not a number or +inf",
                        where=f"{side}, datum {datum}, {int(bad.sum())} of {bad.numel()} particles of this stretch",
                        mend="look at the distribution's parameters there: a scale that underflowed to 0, a logit that overflowed",
                    )


def check_plates(sites: Mapping[str, Any], n: int) -> None:
    """Every site with data lies in the plate at dim -1, and that plate is as long as the batch.

    Raises:
        ShapeError: naming the site.
    """
    for name, site in sites.items():
        frame = next((f for f in site["cond_indep_stack"] if f.dim == -1), None)
        shape = tuple(site["fn"].batch_shape)
        if frame is None and not is_deterministic(site) and (site["is_observed"] or (shape and shape[-1] == n)):
            raise ShapeError(
                f"site '{name}' has batch shape {shape} and lies outside the data plate, needed ({n},) inside it",
                where=f"site '{name}'",
                mend=f"with pyro.plate('data', len(x), dim=-1): pyro.sample('{name}', ...)",
            )
        if frame is not None and frame.size != n:
            raise ShapeError(
                f"site '{name}': the plate '{frame.name}' at dim -1 has size {frame.size}, and the batch has {n} data",
                where=f"site '{name}'",
                mend="with pyro.plate('data', len(x), dim=-1): the plate is as long as the batch, and the batch is chosen outside",
            )


def log_weights(
    model: Program, guide: Program, x: Batch, *, num_particles: int, seed: int = 0, blocks_at_once: int | None = None
) -> Tensor:
    """Log importance weights log p(x, z) - log q(z | x), with z drawn from the guide.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event), or a tuple or dict of tensors that share N.
        num_particles: K, draws per datum.
        seed: Rules every draw; the caller's generators are left as they were.
        blocks_at_once: Blocks of 64 data that go through the model in one call. Never changes a draw.

    Returns:
        (K, N), nats, float64. Summing over N is left to the caller: a batch has no weight of its own. Where the pair has global
        sites, the weights are conditional on one draw of them.

    Raises:
        ShapeError: A site lies outside the data plate.
        ProgramError: The guide misses a latent site or has one too many.
        DataError: Data outside the support of an observed site.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 3.
    """
    data = x if not hasattr(x, "x") else x.x
    pair = Pair(model, guide, data, seed)
    found = torch.empty(num_particles, pair.num_data, dtype=torch.float64)
    for terms in pair.stream(data, num_particles=num_particles, seed=seed, blocks_at_once=blocks_at_once):
        found[terms.particles, terms.rows] = terms.log_weights.cpu()
    return found


def _tried(side: str, program: Program, rows: Batch, values: Values) -> Trace:
    """Run a program of the user's for the first time: what it raises is told as what it is."""
    try:
        return trace(program, rows, values)
    except PpvaeError:
        raise
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ProgramError(
            f"the {side} fails on two rows of the data: {type(error).__name__}: {first_line}",
            mend="ppvae.check(model, guide, x) tells which part of the contract it breaks",
        ) from error


def _for_rows(guide: Program, rows: Tensor | slice) -> Program:
    """A local posterior belongs to its data row by row; any other guide is the same for all rows."""
    return guide.rows(rows) if hasattr(guide, "rows") else guide


def _repeated(program: Program, num_particles: int) -> Program:
    """A local posterior must repeat its rows as the batch is repeated; any other program reads the batch."""
    repeated: Callable[[int], Program] | None = getattr(program, "repeated", None)
    return repeated(num_particles) if repeated is not None else program
