"""The Bernoulli log-likelihood of many pixels with one logarithm for many logits: what a compiled decoder is scored with."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

FACTORS = 64  # of 1 + exp(-|l|), in (1, 2]: their product stays below 2^64


def applies(fn: Any) -> bool:
    """Whether a distribution is independent Bernoullis by their logits, with enough of them in a row to share logarithms."""
    base = getattr(fn, "base_dist", None)
    independent = isinstance(fn, dist.Independent) and type(base) is dist.Bernoulli and "logits" in vars(base)
    return independent and fn.reinterpreted_batch_ndims > 0 and _factors(fn.event_shape.numel()) >= 8


def log_prob(fn: Any, value: Tensor) -> Tensor:
    """log p(value), the sum over the event: sum of x l - max(l, 0) - log(1 + exp(-|l|)), the last as the log of a product.

    Args:
        fn: A distribution that ``applies``; logits (*batch, *event).
        value: (*batch, *event), in [0, 1].
    """
    logits = fn.base_dist.logits
    value, logits = torch.broadcast_tensors(value, logits)
    found: Tensor = _Sum.apply(logits, value, fn.reinterpreted_batch_ndims)
    return found


class _Sum(torch.autograd.Function):
    """The gradient by the logits is x - sigmoid(l); autograd's own, through the product, would cost what the product saves."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, event_dim: int) -> Tensor:
        ctx.save_for_backward(logits, value)
        ctx.event_dim = event_dim
        event = tuple(range(-event_dim, 0))
        linear: Tensor = (value * logits - logits.clamp(min=0)).sum(event)
        # the product runs over the outer of both parts, so that it is taken lane by lane
        factors = (1 + torch.exp(-logits.abs())).flatten(-event_dim)
        factors = factors.unflatten(-1, (_factors(factors.shape[-1]), -1))
        logarithms: Tensor = factors.prod(-2).log().sum(-1)
        return linear - logarithms

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        logits, value = ctx.saved_tensors
        gradient = gradient[(..., *[None] * ctx.event_dim)]
        return gradient * (value - torch.sigmoid(logits)), gradient * logits, None


def _factors(size: int) -> int:
    """The largest divisor of ``size`` that is at most ``FACTORS`` and leaves at least as many products."""
    return max(n for n in range(1, FACTORS + 1) if size % n == 0 and n * n <= size)
