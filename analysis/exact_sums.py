"""One exact measurement: how the latents of a pair are summed out, and the sums of each stretch of data."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ppvae import memory, noise, quadrature
from ppvae.analysis.estimate import batch_of, provenance
from ppvae.analysis.exact_results import ExactLogLikelihood, ExactPosterior
from ppvae.batches import Batch, take
from ppvae.coordinates import Coordinates
from ppvae.data import Data
from ppvae.enumeration import States, is_masked
from ppvae.errors import ArgumentError, DivergedError, FamilyError, ProgramError, UnreliableWarning
from ppvae.memory import Halving
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.programs import Values, first_trace, in_data_plate, latent_sites, measuring, prior_of, sample_sites, trace

METHODS = ("auto", "closed form", "enumeration", "quadrature", "quadrature and enumeration")
PRIOR_DRAWS = 256  # a datum, from which the first box is laid; it grows where the posterior lies outside
WIDTH = 8.0  # of the first box, in robust standard deviations of the prior, to each side
ROWS_AT_ONCE = 4096
ROUNDING = 4.0  # epsilons of the programs' dtype, relative to log p(x): float32 decoders of 784 pixels were measured within one
NEGLIGIBLE = 1e-12  # states and nodes below this probability are left out of a posterior's list


class Exact:
    """One measurement: the pair, how its latents are summed out, and the sums of each stretch of 64 data."""

    def __init__(
        self, model: Program, x: Data | Batch, method: str, tolerance: float, guide: Program | None, seed: int, closed_form: bool = True
    ) -> None:
        if method not in METHODS:
            raise ArgumentError(f"method is one of {', '.join(METHODS)}, got {method!r}")
        if not tolerance > 0:
            raise ArgumentError(f"tolerance is a positive number of nats, got {tolerance!r}")
        self.model, self.x, self.tolerance, self.seed = model, x, tolerance, seed
        self.batch = batch_of(x, model) if guide is None else batch_of(x, model, guide)
        self.pair = pair = Pair(model, prior_of(model), self.batch, seed)
        if guide is not None and pair.globals:
            pair.globals = _globals_of(guide, pair, self.batch, seed)
        self.method = self._method(method, closed_form and hasattr(model, "log_evidence"))

    def _method(self, wanted: str, closed_form: bool) -> str:
        if wanted == "closed form" and not closed_form:
            raise FamilyError("method='closed form' needs a model with log_evidence(x)", mend="method='auto'")
        if wanted in ("auto", "closed form") and closed_form:
            return "closed form"
        self._refuse_masks()
        self.states = States(self.pair, self.batch, self.seed)
        self.coordinates = Coordinates(self.pair, self.batch, self.seed, enumerate_discrete=True)
        dim = self.coordinates.dim
        if dim not in (0, *quadrature.FIRST_CELLS):
            raise FamilyError(
                f"cubature is for 1 or 2 dimensions, and the continuous latents have {dim}",
                where=f"sites {[site.name for site in self.coordinates.sites]}",
                mend="analysis.annealed_log_likelihood(model, x), or log_likelihood with a refined proposal",
            )
        parts = [name for name, there in (("quadrature", dim > 0), ("enumeration", bool(self.states.sites) or dim == 0)) if there]
        found = " and ".join(parts)
        if wanted not in ("auto", found):
            raise FamilyError(
                f"method={wanted!r} does not fit these latents",
                where=f"dimensions of the continuous ones: {dim}; discrete sites: {', '.join(self.states.names) or 'none'}",
                mend=f"method={found!r}, or 'auto'",
            )
        return found

    def _refuse_masks(self) -> None:
        with noise.seeded(self.seed, "masks", device=self.pair.device), measuring(self.model):
            found = sample_sites(trace(self.model, take(self.batch, slice(0, 2)), self.pair.globals))
        for name in self.pair.latents:
            if is_masked(found[name]):
                raise FamilyError(
                    f"the latent site '{name}' is masked, and what is masked has no density to integrate",
                    where=f"site '{name}'",
                    mend="mask the observed sites alone",
                )

    def log_likelihood(self) -> ExactLogLikelihood:
        """The evidence alone."""
        n = self.pair.num_data
        log_p, bound, counts = torch.empty(n).double(), torch.zeros(n).double(), torch.zeros(n, dtype=torch.long)
        at_once: Halving[Any] = Halving(1, "exact sums")

        def summed(rows: slice) -> Any:
            with measuring(self.model):
                return self._stretch(rows)

        for rows in noise.blocks(n, noise.BLOCK_ROWS):
            ((log_p[rows], bound[rows], counts[rows], _),) = at_once(rows, summed)
        return self._result(log_p, bound, counts)

    def posterior(self, num_draws: int) -> ExactPosterior:
        """The evidence with nodes and draws."""
        n = self.pair.num_data
        log_p, bound, counts = torch.empty(n).double(), torch.zeros(n).double(), torch.zeros(n, dtype=torch.long)
        nodes: list[dict[str, Tensor]] = []
        log_probs: list[Tensor] = []
        draws: list[dict[str, Tensor]] = []
        at_once: Halving[Any] = Halving(1, "exact posteriors")

        def summed(rows: slice) -> Any:
            with measuring(self.model):
                *sums, cells = self._stretch(rows)
                log_p_of = sums[0].tolist()
                found = [self._nodes(rows, number, cells, log_p_of[number]) for number in range(rows.stop - rows.start)]
                return sums, found, self._draws(rows, cells, num_draws)

        for rows in noise.blocks(n, noise.BLOCK_ROWS):
            (((log_p[rows], bound[rows], counts[rows]), found, drawn),) = at_once(rows, summed)
            nodes += [values for values, _ in found]
            log_probs += [log_prob for _, log_prob in found]
            draws.append(drawn)
        joined = {name: torch.cat([part[name] for part in draws], 1) for name in self.pair.latents}
        return ExactPosterior(nodes, log_probs, joined, self._result(log_p, bound, counts))

    def _result(self, log_p: Tensor, bound: Tensor, counts: Tensor) -> ExactLogLikelihood:
        wanted = torch.maximum(torch.tensor(self.tolerance).double(), self._epsilon() * log_p.abs())
        if (bound > wanted).any():
            warnings.warn(
                f"the bound of {int((bound > wanted).sum())} of {len(bound)} data stayed above the tolerance of {self.tolerance:g} nats, "
                f"at most {bound.max():.3g}: see error_bound",
                UnreliableWarning,
                stacklevel=4,
            )
        bound = bound + ROUNDING * self._epsilon() * log_p.abs().nan_to_num(posinf=0.0)
        return ExactLogLikelihood(log_p, bound, self.method, counts, provenance(self.x, self.pair, self.seed))

    def _epsilon(self) -> float:
        return torch.finfo(self.dtype).eps

    def _stretch(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, quadrature.Cells | None]:
        """log p(x), the cubature's bound, evaluations and cells of 64 data."""
        x, n = take(self.batch, rows), rows.stop - rows.start
        draws = self._prior_draws(rows)
        if self.method == "closed form":
            found = self._log_evidence(x, n)
            return found.double().cpu(), torch.zeros(n), torch.zeros(n, dtype=torch.long), None
        if self.method == "enumeration":
            log_sum = self.states.log_sum(x, {})[0]
            self._refuse_nan(log_sum[None], torch.arange(n), rows)
            return log_sum.cpu(), torch.zeros(n), torch.full((n,), self.states.num_states), None

        def log_f(numbers: Tensor, u: Tensor) -> Tensor:
            values, log_det = self.coordinates.unpack(u.to(self.dtype))
            density = self.states.log_sum(take(x, numbers), values) + log_det.double()
            self._refuse_nan(density, numbers, rows)
            return density

        low, high = _box(draws)
        found_ = quadrature.integrate(log_f, low, high, tolerance=self.tolerance, noise=self._epsilon() / 2, rows_at_once=ROWS_AT_ONCE)
        counts = found_.num_evaluations * self.states.num_states + PRIOR_DRAWS
        return found_.log_integral.cpu(), found_.error_bound.cpu(), counts.cpu(), found_.cells

    def _log_evidence(self, x: Batch, n: int) -> Tensor:
        found: list[Tensor] = []
        with memory.densities(n, 1) as pieces:
            for rows, _ in pieces:
                found.append(self.model.log_evidence(take(x, rows)))  # type: ignore[attr-defined]
                if found[-1].shape != (rows.stop - rows.start,):
                    raise ProgramError(f"log_evidence(x) gives one number a datum, ({n},), got {tuple(found[-1].shape)}")
        return torch.cat(found)

    def _prior_draws(self, rows: slice) -> Tensor:
        """Draws of u from the prior, (256, n, D); one of them, where there is nothing to integrate. The data are held to their support."""
        x, integrated = take(self.batch, rows), self.method.startswith("quadrature")
        draws: list[Tensor] = []
        for block in noise.blocks(PRIOR_DRAWS if integrated else 1, noise.BLOCK_PARTICLES):
            with noise.seeded(self.seed, "prior", rows.start, block.start, device=self.pair.device):
                values, _ = self.pair.draw(x, rows, block.stop - block.start)
            if block.start == 0:
                one = {name: value[:1] for name, value in values.items()}
                self.pair.score(x, one, check_from=rows.start, num_particles=1)
                self.dtype = _dtype_of(values)
            if integrated:
                draws.append(self.coordinates.pack(values))
        return torch.cat(draws) if draws else torch.empty(0)

    def _refuse_nan(self, density: Tensor, numbers: Tensor, rows: slice) -> None:
        bad = ~(density < torch.inf)  # nan is not below either
        if bad.any():
            datum = rows.start + int(numbers[int(bad.any(0).nonzero()[0, 0])])
            raise DivergedError(
                f"log p(x, z) is not a number or +inf at {int(bad.sum())} of {bad.numel()} places",
                where=f"model, datum {datum}",
                mend="look at the distributions' parameters far out in the prior: a scale that underflowed to 0, a rate that overflowed",
            )

    def _nodes(self, rows: slice, number: int, cells: quadrature.Cells | None, log_p: float) -> tuple[dict[str, Tensor], Tensor]:
        """The latents of one datum at the nodes that have probability, and its log."""
        one = slice(rows.start + number, rows.start + number + 1)
        rest: dict[str, Tensor] = {}
        log_probs = torch.zeros(1, dtype=torch.float64, device=self.pair.device)
        if cells is not None:
            places, log_weights = cells[cells.datum == number].nodes()
            log_probs = log_weights.flatten() - log_p
            kept = log_probs > torch.tensor(NEGLIGIBLE).log()
            log_probs = log_probs[kept]
            rest, _ = self.coordinates.unpack(places.flatten(0, 1)[kept][None].to(self.dtype))
        x = take(self.batch, torch.full((len(log_probs),), one.start, device=self.pair.device))
        if not self.states.sites:
            found, chosen = dict[str, Tensor](), torch.arange(len(log_probs), device=log_probs.device)
        else:
            found, chosen, log_probs = self._with_states(x, rest, log_probs)
        values = {name: self._one_a_node(value, name)[chosen] for name, value in rest.items()} | found
        return {name: values[name].cpu() for name in self.pair.latents}, (log_probs - torch.logsumexp(log_probs, 0)).cpu()

    def _with_states(self, x: Batch, rest: Values, log_probs: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Nodes (M,) crossed with the states that have probability there: their discrete values, node numbers, and log probabilities."""
        total = self.states.log_sum(x, rest)[0]
        states, nodes, kept = [], [], []
        for block in self.states.blocks(len(log_probs)):
            joint = log_probs + self.states.log_terms(x, rest, block)[:, 0] - total
            which, node = (joint > torch.tensor(NEGLIGIBLE).log()).nonzero().unbind(1)
            states.append(which + block.start)
            nodes.append(node)
            kept.append(joint[which, node])
        values = self.states.values(torch.cat(states))
        return {name: self._one_a_node(value, name, state=True) for name, value in values.items()}, torch.cat(nodes), torch.cat(kept)

    def _one_a_node(self, value: Tensor, name: str, state: bool = False) -> Tensor:
        """(1, [plates], M, *event), of states (M, [plates], 1, *event), to (M, *plates, *event)."""
        first = self.pair.datum_first(value, name)
        return first[:, 0] if state else first[0]

    def _draws(self, rows: slice, cells: quadrature.Cells | None, num_draws: int) -> dict[str, Tensor]:
        x, n = take(self.batch, rows), rows.stop - rows.start
        generator = noise.generator(self.seed, "exact draws", rows.start, device=self.pair.device)
        found: dict[str, Tensor] = {}
        if cells is None:
            terms = torch.cat([self.states.log_terms(x, {}, block)[:, 0] for block in self.states.blocks(n)])  # (S, n)
            states = torch.multinomial(torch.softmax(terms, 0).mT, num_draws, replacement=True, generator=generator)  # (n, K)
            for name, value in self.states.values(states.mT.flatten()).items():
                drawn = self.pair.datum_first(value, name)[:, 0]
                found[name] = drawn.reshape(num_draws, n, *drawn.shape[1:])
        else:
            u = quadrature.draws(cells, n, num_draws, generator).to(self.dtype)
            parts = [self._draws_at(x, u[block], generator) for block in noise.blocks(num_draws, noise.BLOCK_PARTICLES)]
            found = {name: torch.cat([part[name] for part in parts]) for name in self.pair.latents}
        return {name: found[name].cpu() for name in self.pair.latents}

    def _draws_at(self, x: Batch, u: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Latents at u, (K, n, D), with the discrete ones drawn given the others: the largest of log p + Gumbel noise over the states."""
        rest, _ = self.coordinates.unpack(u)
        found = {name: self.pair.datum_first(value, name) for name, value in rest.items()}
        if not self.states.sites:
            return found
        best = torch.full(u.shape[:2], -torch.inf, dtype=torch.float64, device=u.device)
        states = torch.zeros(u.shape[:2], dtype=torch.long, device=u.device)
        for block in self.states.blocks(u.shape[0] * u.shape[1]):
            terms = self.states.log_terms(x, rest, block)
            uniform = torch.rand(terms.shape, dtype=torch.float64, device=u.device, generator=generator)
            value, at = (terms - (-uniform.log()).log()).max(0)
            states = torch.where(value > best, at + block.start, states)
            best = torch.maximum(best, value)
        for name, value in self.states.values(states.flatten()).items():
            drawn = self.pair.datum_first(value, name)[:, 0]
            found[name] = drawn.reshape(*u.shape[:2], *drawn.shape[1:])
        return found


def _box(draws: Tensor) -> tuple[Tensor, Tensor]:
    """From draws of u, (K, n, D), the box to start from: 8 robust standard deviations to each side, wider where draws lie further out."""
    draws = draws.double()
    quantiles = torch.quantile(draws, draws.new_tensor([0.16, 0.5, 0.84]), dim=0)
    middle = quantiles[1]
    scale = ((quantiles[2] - quantiles[0]) / 2).clamp(min=1e-6 * (1 + middle.abs()))
    low = torch.minimum(middle - WIDTH * scale, torch.maximum(draws.amin(0) - scale, middle - 5 * WIDTH * scale))
    high = torch.maximum(middle + WIDTH * scale, torch.minimum(draws.amax(0) + scale, middle + 5 * WIDTH * scale))
    return low, high


def _dtype_of(values: Values) -> torch.dtype:
    """The dtype that the programs run in: that of their continuous latents, else torch's default."""
    floats = [value.dtype for value in values.values() if value.is_floating_point()]
    return floats[0] if floats else torch.get_default_dtype()


def _globals_of(guide: Program, pair: Pair, x: Batch, seed: int) -> dict[str, Tensor]:
    """The draw of the guide's global sites that ``Pair(model, guide, x, seed)`` would take; the guide need not draw what is summed out."""
    rows = take(x, torch.arange(min(3, pair.num_data)) if pair.num_data > 1 else torch.zeros(2, dtype=torch.long))
    with noise.seeded(seed, "globals", device=pair.device), measuring(pair.model, guide):
        found = first_trace("guide", guide, rows, {})
    sites = sample_sites(found)
    drawn = {name: sites[name]["value"].detach() for name in latent_sites(found) if not in_data_plate(sites[name])}
    missing = sorted(set(pair.globals) - set(drawn))
    if missing:
        raise ProgramError(
            f"the guide misses the global site '{missing[0]}' of the model",
            where=f"the guide draws {sorted(drawn) or 'no global site'}",
            mend="leave guide out: the global sites are then drawn from their prior",
        )
    return {name: drawn[name] for name in pair.globals}
