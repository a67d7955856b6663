"""The leaf tensors of a loss: what an optimizer must train, found in the graph and not by name."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppvae import noise
from ppvae.modules import Program, eval_mode
from ppvae.programs import latent_sites, sample_sites


def leaves_of_pair(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[str], set[str]]:
    """The leaf tensors with gradient behind any log density of a pair, unique by identity, in the order of a dry run.

    The dry run is in eval mode with the generators put back: it moves no running statistics and costs no draw.

    Returns:
        The leaves; the model's latent sites that the guide does not draw; the sites that it draws.
    """
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    with noise.forked(device), eval_mode(model, guide), torch.enable_grad(), pyro.validation_enabled(False):
        found_q = poutine.trace(guide).get_trace(*args, **kwargs)
        found_p = poutine.trace(poutine.replay(model, trace=found_q)).get_trace(*args, **kwargs)
        sites = [*sample_sites(found_q).values(), *sample_sites(found_p).values()]
        densities = [site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]).sum() for site in sites]
        leaves = graph_leaves(sum(densities[1:], densities[0])) if densities else []
    drawn = set(sample_sites(found_q))
    return leaves, [name for name in latent_sites(found_p) if name not in drawn], drawn


def graph_leaves(value: Tensor) -> list[Tensor]:
    """The leaf tensors that ``value`` was computed from, unique by identity."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.setdefault(id(leaf), leaf)
        waiting.extend(parent for parent, _ in node.next_functions)
    return list(found.values())
