"""What objectives of one log weight per datum are made of: the pair's traces, its densities by particle and datum, cut draws.

A Pyro ELBO sums over a batch and over sites as it goes. An objective that is nonlinear per datum (importance weights) or per dimension
(free bits) needs the densities apart; these are they, for ``ppvae.SVI`` and ``pyro.infer.SVI`` alike.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor

from ppvae.errors import ObjectiveError, check_count
from ppvae.modules import Program
from ppvae.programs import has_no_inverse, in_data_plate, is_deterministic, latent_sites, log_prob, sample_sites

DRAWN = "_ppvae_drawn"  # of a cut site's infer: the draw as the guide made it

Sites = dict[str, Any]


class Objective(ELBO):
    """A Pyro ELBO whose loss and surrogate are two tensors.

    Args:
        num_particles: K, draws per datum.
        vectorize_particles: Whether they are a plate left of all others, as in Pyro's ELBOs, or a loop.
        max_plate_nesting: As in Pyro's ELBOs; guessed where it is needed.
    """

    linear = False  # whether scaled sites (beta, likelihood_weight, data) give the weighted objective
    not_captured = ""  # why its steps are not compiled, in words

    def __init__(self, num_particles: int = 1, *, vectorize_particles: bool = False, max_plate_nesting: float = math.inf) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting)

    def loss_and_surrogate(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss, nats of the whole batch, and a scalar whose gradient is the estimate of the objective's gradient."""
        raise NotImplementedError

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, nats of the whole batch."""
        with torch.no_grad():
            return torch_item(self.loss_and_surrogate(model, guide, args, kwargs)[0])  # type: ignore[no-any-return]

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, with the surrogate's gradient."""
        loss, surrogate = self.loss_and_surrogate(model, guide, args, kwargs)
        return loss.detach() + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, nats of the whole batch; the surrogate's gradient is added to that of the parameters."""
        loss, surrogate = self.loss_and_surrogate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return torch_item(loss)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        numbers = {k: v for k, v in sorted(vars(self).items()) if isinstance(v, int | float | str) and k not in _PYRO_S_OWN}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in numbers.items())})"

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Sites, Sites]:
        """The sample sites of the model and of the guide, the model run at the guide's draws."""
        with self._at_the_draws():
            found_q = poutine.trace(guide).get_trace(*args, **kwargs)
        found_p = poutine.trace(poutine.replay(model, trace=found_q)).get_trace(*args, **kwargs)
        missing = [name for name in latent_sites(found_p) if name not in found_q.nodes]
        if missing:
            raise ObjectiveError(
                f"the guide misses the latent site '{missing[0]}' of the model, and {type(self).__name__} sums over no latents",
                mend=f"add pyro.sample('{missing[0]}', ...) to the guide",
            )
        return sample_sites(found_p), sample_sites(found_q)

    def _at_the_draws(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def _runs(self, model: Program, guide: Program, args: Any, kwargs: Any) -> list[tuple[Sites, Sites]]:
        """The sites of each run: one a particle, or one with all particles."""
        runs = list(self._get_traces(model, guide, args, kwargs))
        for sites in runs[0] if not self.linear else ():
            self._refuse_globals(sites)
        return runs

    def _particles_first(self, densities: list[Tensor]) -> Tensor:
        """Of every run its densities by datum, to (K, N)."""
        return densities[0] if self._in_a_plate else torch.stack(densities)

    @property
    def _in_a_plate(self) -> bool:
        return bool(self.vectorize_particles) and self.num_particles > 1

    def _refuse_globals(self, sites: Sites) -> None:
        for name, site in sites.items():
            recorded = is_deterministic(site) and type(site["fn"]).__name__ != "Unit"
            if not in_data_plate(site) and not recorded:
                raise ObjectiveError(
                    f"site '{name}' lies outside the data plate, and {type(self).__name__} is a sum over data",
                    where=f"site '{name}'",
                    mend=["put it into pyro.plate('data', len(x), dim=-1)", "Trace_ELBO and StickingTheLanding take global sites"],
                )

    def _by_datum(self, sites: Sites) -> Tensor:
        """The sum of log densities over the sites and everything in a datum: (N,), or (K, N) where particles are a plate. Not scaled."""
        total: Any = 0.0
        for name, site in sites.items():
            if not in_data_plate(site):
                continue  # recorded there, and no density
            density = self._density(name, site)
            kept = 1 if self._in_a_plate else 0
            total = total + (density.flatten(kept, -2).sum(kept) if density.dim() > kept + 1 else density)
        return torch.as_tensor(total)

    def _density(self, name: str, site: Any) -> Tensor:
        try:
            return log_prob(site)
        except (NotImplementedError, KeyError) as error:
            if not has_no_inverse(error):
                raise
            raise ObjectiveError(
                f"site '{name}' has no density at a given point, which {type(self).__name__} needs",
                where=f"a transform of {type(site['fn']).__name__} has no inverse",
                mend="a flow with an inverse, or RenyiELBO(alpha=0)",
            ) from error

    def _scale(self, *runs: Sites) -> float:
        """The scale that all sites share: a subsampling plate's, or poutine.scale around both programs.

        Raises:
            ObjectiveError: Sites have different scales, which would sit inside a nonlinear function.
        """
        scales = {float(site["scale"]) for sites in runs for site in sites.values()}
        if len(scales) > 1:
            raise ObjectiveError(
                f"sites have different scales, {sorted(scales)}, and {type(self).__name__} is not linear in the log densities",
                mend="scale both programs alike, or use Trace_ELBO",
            )
        return scales.pop() if scales else 1.0


_PYRO_S_OWN = {"max_plate_nesting", "vectorize_particles", "strict_enumeration_warning", "ignore_jit_warnings", "tail_adaptive_beta"}


class Cut(Messenger):
    """Cut the graph at every draw, as it is made: what is computed from a draw no longer reaches the parameters that it was drawn with.

    Entered outside of the trace, so that trace and program alike go on with the cut value; the draw itself stays in the site's ``infer``.

    Args:
        differentiable: Whether the cut values are leaves that a gradient can be taken in.
    """

    def __init__(self, differentiable: bool) -> None:
        super().__init__()
        self.differentiable = differentiable

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if msg["is_observed"] or not isinstance(value, Tensor) or not value.requires_grad:
            return
        msg["infer"] = {**msg["infer"], DRAWN: value}
        msg["value"] = value.detach().requires_grad_(self.differentiable)


def pathwise(total: Tensor, runs: list[Sites]) -> Tensor:
    """A scalar whose gradient is that of ``total`` through the draws alone, not through the densities that they were drawn from.

    Args:
        total: A function of the cut draws of the runs.
        runs: The guide's sites run by run, in the order in which they were drawn; a later draw may depend on an earlier one.
    """
    found = torch.zeros((), dtype=total.dtype, device=total.device)
    if not total.requires_grad:
        return found
    for sites in runs:
        cut = [(site["infer"][DRAWN], site["value"]) for site in sites.values() if DRAWN in site["infer"]]
        leaves = [leaf for _, leaf in cut]
        if not leaves:
            continue
        adjoints = _gradients(total, leaves)
        for i in reversed(range(len(cut))):
            found = found + (cut[i][0] * adjoints[i]).sum()
            if i:  # what a draw owes to the draws before it
                through = _gradients((cut[i][0] * adjoints[i]).sum(), leaves[:i])
                adjoints[:i] = [own + more for own, more in zip(adjoints[:i], through, strict=True)]
    return found


def _gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in zip(found, leaves, strict=True)]


def refuse_unreparameterised(objective: Objective, sites: Sites) -> None:
    """Raise where a draw of the guide carries no gradient.

    Raises:
        ObjectiveError: naming the site.
    """
    for name, site in sites.items():
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise ObjectiveError(
                f"site '{name}' ({type(site['fn']).__name__}) is not reparameterised, and {type(objective).__name__} follows the draw",
                where=f"site '{name}' of the guide",
                mend=["objectives.ReweightedWakeSleep takes any latents", "TraceEnum_ELBO enumerates finite ones"],
            )


def normalised(log_weights: Tensor) -> Tensor:
    """w_k / sum_j w_j per datum, (K, N), without gradient."""
    return log_weights.detach().softmax(0)


def log_mean_weight(log_weights: Tensor) -> Tensor:
    """log (1/K) sum_k w_k per datum, (K, N) -> (N,)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def each_latent(sites_p: Sites, sites_q: Sites) -> Iterator[tuple[str, Any, Any]]:
    """The latent sites of a run with the model's side and the guide's."""
    for name, site in sites_q.items():
        if not site["is_observed"]:
            if name not in sites_p:
                raise ObjectiveError(f"site '{name}' of the guide is auxiliary: it has no prior, and so no KL", where=f"site '{name}'")
            yield name, sites_p[name], site
