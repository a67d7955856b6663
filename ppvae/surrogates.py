"""Pyro's objectives as two tensors, the loss and what its gradient is taken of, with no number read on the way.

Pyro's own ``loss_and_grads`` reads the loss as a Python number and runs the backward pass inside, which no graph can hold. These are
the same estimators over the traces that the objective itself makes: particles, plates and the match of model and guide stay Pyro's.
The tests and every verification of a compiled step hold them to ``loss_and_grads``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.infer.util import get_dependent_plate_dims, torch_sum
from torch import Tensor
from torch.distributions import kl_divergence

from ppvae.modules import Program


def why_not(objective: Any) -> str:
    """Why steps of an objective are not captured, in words; empty where they are."""
    name = type(objective).__name__
    if hasattr(objective, "not_captured"):  # one of ours, which knows
        return f"steps with {name} are not captured: {objective.not_captured}" if objective.not_captured else ""
    if type(objective) is RenyiELBO and objective.alpha != 0:
        return f"RenyiELBO is captured with alpha = 0, and this one has {objective.alpha:g}"
    if type(objective) in (Trace_ELBO, TraceMeanField_ELBO, RenyiELBO):
        return "retain_graph keeps what a compiled step does not have" if getattr(objective, "retain_graph", None) else ""
    return f"steps with {name} are not captured (those with Trace_ELBO, TraceMeanField_ELBO, RenyiELBO(alpha=0) are)"


def loss_and_surrogate(
    objective: Any, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The loss, nats of the whole batch, and a scalar whose gradient is the objective's estimate of the loss's.

    Args:
        objective: One for which ``why_not`` is empty.
        model, guide: The pair, run as often as the objective has particles (once where they are vectorised).
        args, kwargs: Of both.

    References:
        Ranganath, Gerrish, Blei (2014), Black box variational inference (score-function terms). Burda, Grosse, Salakhutdinov (2016),
        Importance weighted autoencoders, sec. 3.
    """
    if hasattr(objective, "not_captured"):
        found: tuple[Tensor, Tensor] = objective.loss_and_surrogate(model, guide, args, kwargs)
        return found
    traces = list(objective._get_traces(model, guide, args, kwargs))
    if type(objective) is RenyiELBO:
        return _importance_weighted(objective, traces)
    particle = _mean_field_particle if type(objective) is TraceMeanField_ELBO else _particle
    losses, surrogates = zip(*(particle(model_trace, guide_trace) for model_trace, guide_trace in traces), strict=True)
    return -_tensor(sum(losses)) / objective.num_particles, -_tensor(sum(surrogates)) / objective.num_particles


def _particle(model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
    elbo: Any = 0.0
    surrogate: Any = 0.0
    log_r = None
    for site in _samples(model_trace):
        elbo = elbo + site["log_prob_sum"]
        surrogate = surrogate + site["log_prob_sum"]
    for site in _samples(guide_trace):
        _, score_function, entropy = site["score_parts"]
        elbo = elbo - site["log_prob_sum"]
        if not is_identically_zero(entropy):
            surrogate = surrogate - entropy.sum()
        if not is_identically_zero(score_function):
            log_r = log_r if log_r is not None else _compute_log_r(model_trace, guide_trace)
            surrogate = surrogate + (log_r.sum_to(site["cond_indep_stack"]) * score_function).sum()
    return elbo, surrogate


def _mean_field_particle(model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
    elbo: Any = 0.0
    for site in _samples(model_trace):
        if site["is_observed"]:
            elbo = elbo + site["log_prob_sum"]
            continue
        other = guide_trace.nodes[site["name"]]
        try:
            kl = scale_and_mask(kl_divergence(other["fn"], site["fn"]), scale=other["scale"], mask=other["mask"])
            elbo = elbo - (kl.sum() if isinstance(kl, Tensor) else kl * torch.Size(other["fn"].batch_shape).numel())
        except NotImplementedError:  # torch has no closed form for this pair of distributions
            elbo = elbo + site["log_prob_sum"] - other["score_parts"].entropy_term.sum()
    for site in _samples(guide_trace):
        if site["name"] not in model_trace.nodes:  # auxiliary
            elbo = elbo - site["score_parts"].entropy_term.sum()
    return elbo, elbo


def _importance_weighted(objective: Any, traces: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    weights, surrogates = [], []
    for model_trace, guide_trace in traces:
        dims = get_dependent_plate_dims(model_trace.nodes.values())
        weight: Any = 0.0
        surrogate: Any = 0.0
        for site in _samples(model_trace):
            weight = weight + torch_sum(site["log_prob"], dims)
            surrogate = surrogate + torch_sum(site["log_prob"], dims)
        for site in _samples(guide_trace):
            _, score_function, entropy = site["score_parts"]
            density = torch_sum(site["log_prob"], dims)
            weight = weight - density
            if not is_identically_zero(entropy):
                surrogate = surrogate - density
                if not is_identically_zero(score_function):
                    # as Pyro's own objective; the capture ends with these words, and eager Pyro raises in its turn
                    raise NotImplementedError(f"the site '{site['name']}' is reparameterised in part, which RenyiELBO has no estimator for")
        weights.append(weight)
        surrogates.append(surrogate)
    vectorized = objective.vectorize_particles and objective.num_particles > 1
    log_weights = (weights[0] if vectorized else torch.stack(weights)).detach()
    surrogate = surrogates[0] if vectorized else torch.stack(surrogates)
    log_mean = torch.logsumexp(log_weights, 0, keepdim=True) - math.log(objective.num_particles)
    return -log_mean.sum(), -((log_weights - log_mean).exp() * surrogate).sum() / objective.num_particles


def _samples(found: Any) -> list[Any]:
    return [site for site in found.nodes.values() if site["type"] == "sample"]


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)
