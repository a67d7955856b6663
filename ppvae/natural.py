"""Natural-gradient ascent on the ELBO of local Normal posteriors, in whitened coordinates, all data at once.

q_n = N(m_n, L_n L_n^T) over the unconstrained coordinates of datum n. With z = m + L e, e ~ N(0, I), the residual
d = L^T grad log p(x, z) + e is 0 for every draw where q is the posterior ("sticking the landing"), so there the update has no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

GradientOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (rows, u) -> log density (K, n), its gradient (K, n, D)

FIRST_RATE, CONSTANT_UNTIL = 0.2, 20
LARGEST_MOVE, LARGEST_SHAPE_CHANGE = 0.3, 0.5  # of sqrt(D) whitened units, and in Frobenius norm: keeps 1 + rate G_ii > 0


def rate_at(step: int) -> float:
    """Constant for 20 steps, then as 1 / step, so that the last iterate averages its noise away."""
    return FIRST_RATE if step < CONSTANT_UNTIL else FIRST_RATE * CONSTANT_UNTIL / (step + 1)


def antithetic(num_draws: int, n: int, dim: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Normal draws in pairs e, -e: (num_draws, n, dim)."""
    half = torch.randn((num_draws + 1) // 2, n, dim, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    return torch.cat([half, -half])[:num_draws]


def placed(m: Tensor, scale_tril: Tensor, e: Tensor) -> Tensor:
    """m + L e, (K, n, D), for L (n, D, D) or its diagonal (n, D)."""
    return m + scale_tril * e if scale_tril.dim() == 2 else m + torch.einsum("nij,knj->kni", scale_tril, e)


def step(m: Tensor, scale_tril: Tensor, structure: Tensor, e: Tensor, gradient: Tensor, rate: float | Tensor) -> tuple[Tensor, Tensor]:
    """One update of (m, L), (n, D) and (n, D, D).

    Args:
        m, scale_tril: The posteriors; L (n, D, D), or (n, D) where it is diagonal.
        structure: (D, D) of 0 and 1, lower triangular: the entries of L that the family has.
        e: Whitened draws, (K, n, D).
        gradient: grad log p(x, z) at them, (K, n, D).
        rate: Step size.
    """
    if scale_tril.dim() == 2:
        return _diagonal_step(m, scale_tril, e, gradient, rate)
    d = torch.einsum("nji,knj->kni", scale_tril, gradient) + e
    g = d.mean(0)
    shape = torch.einsum("kni,knj->nij", d, e) / len(e) * structure
    shape = shape - torch.diag_embed(shape.diagonal(dim1=-2, dim2=-1)) / 2
    g = rate * g * _shrink(rate * g.norm(dim=-1, keepdim=True), LARGEST_MOVE * math.sqrt(m.shape[-1]))
    shape = rate * shape * _shrink(rate * shape.flatten(1).norm(dim=-1)[:, None, None], LARGEST_SHAPE_CHANGE)
    sound = torch.isfinite(g).all(-1) & torch.isfinite(shape).flatten(1).all(-1)  # a datum without a finite gradient stays where it is
    g = torch.where(sound[:, None], g, 0.0)
    shape = torch.where(sound[:, None, None], shape, 0.0)
    return m + torch.einsum("nij,nj->ni", scale_tril, g), scale_tril + scale_tril @ shape


def _diagonal_step(m: Tensor, scale: Tensor, e: Tensor, gradient: Tensor, rate: float | Tensor) -> tuple[Tensor, Tensor]:
    d = scale * gradient + e
    g, shape = d.mean(0), (d * e).mean(0) / 2
    g = rate * g * _shrink(rate * g.norm(dim=-1, keepdim=True), LARGEST_MOVE * math.sqrt(m.shape[-1]))
    shape = rate * shape * _shrink(rate * shape.norm(dim=-1, keepdim=True), LARGEST_SHAPE_CHANGE)
    sound = torch.isfinite(g).all(-1, keepdim=True) & torch.isfinite(shape).all(-1, keepdim=True)
    return m + scale * torch.where(sound, g, 0.0), scale * (1 + torch.where(sound, shape, 0.0))


def log_weights(m: Tensor, scale_tril: Tensor, e: Tensor, log_density: Tensor) -> Tensor:
    """log p - log q at whitened draws, from log p at them, (K, n), float64; the mean over K is the ELBO of each datum."""
    diagonal = scale_tril if scale_tril.dim() == 2 else scale_tril.diagonal(dim1=-2, dim2=-1)
    log_q = -0.5 * e.double().square().sum(-1) - diagonal.double().log().sum(-1)
    log_q = log_q - 0.5 * m.shape[-1] * math.log(2 * math.pi)
    return log_density.double() - log_q


def _shrink(norm: Tensor, largest: float) -> Tensor:
    return (largest / norm.clamp(min=1e-30)).clamp(max=1.0)
