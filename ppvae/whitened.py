"""Families for what a Normal leaves to say: mixtures and flows, over coordinates that a full-rank Normal has whitened."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppvae.build import recorded
from ppvae.errors import FamilyError
from ppvae.families import MIN_LOG_SCALE, Family, FullRankNormal, check_row


@recorded
class MixtureNormal:
    """sum_c w_c N(loc_c, diag(scale_c^2)); the row holds (logits, locs, log scales), P = C (1 + 2 Z)."""

    def __init__(self, latent_dim: int, num_components: int = 4) -> None:
        self.latent_dim, self.num_components = latent_dim, num_components
        self.num_parameters = num_components * (1 + 2 * latent_dim)

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a mixture over R^Z."""
        check_row(self, parameters)
        logits, loc, log_scale = self._parts(parameters)
        components = dist.Normal(loc, log_scale.clamp(min=MIN_LOG_SCALE).exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)  # type: ignore[no-any-return]

    def stratified(self, parameters: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
        """Reparameterised draws, as many from each component, with the weight of each: (S, ..., Z), (S, ...); sum_s weight f = E[f]."""
        logits, loc, log_scale = self._parts(parameters)
        each = max(1, num_draws // self.num_components)
        scale = log_scale.clamp(min=MIN_LOG_SCALE).exp()
        draws = loc + scale * torch.randn(each, *loc.shape, dtype=loc.dtype, device=loc.device)
        weights = (logits.softmax(-1) / each).expand(each, *logits.shape)
        return draws.movedim(-2, 0).flatten(0, 1), weights.movedim(-1, 0).flatten(0, 1)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c, z = self.num_components, self.latent_dim
        logits, loc, log_scale = parameters.split([c, c * z, c * z], -1)
        return logits, loc.unflatten(-1, (c, z)), log_scale.unflatten(-1, (c, z))


@recorded
class CouplingFlow:
    """N(0, I) pushed through affine couplings, whose networks have weights of their own for every row.

    Args:
        latent_dim: Z, at least 2: a coupling moves one half of the dimensions by the other.
        num_layers: Couplings; the halves change places between them.
        hidden: Width of each coupling's hidden layer.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, sec. 3.
    """

    def __init__(self, latent_dim: int, num_layers: int = 4, hidden: int = 16) -> None:
        if latent_dim < 2:
            raise FamilyError(
                f"a coupling flow needs at least 2 latent dimensions, got {latent_dim}", mend="family 'mixture' or 'full_rank'"
            )
        self.latent_dim, self.num_layers, self.hidden = latent_dim, num_layers, hidden
        self.shapes = [self._layer_shapes(layer) for layer in range(num_layers)]
        self.num_parameters = sum(math.prod(shape) for shapes in self.shapes for shape in shapes)

    def _layer_shapes(self, layer: int) -> list[tuple[int, ...]]:
        kept = self.latent_dim // 2 if layer % 2 == 0 else self.latent_dim - self.latent_dim // 2
        moved = self.latent_dim - kept
        return [(kept, self.hidden), (self.hidden,), (self.hidden, 2 * moved), (2 * moved,)]

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a distribution over R^Z."""
        check_row(self, parameters)
        base = dist.Normal(parameters.new_zeros(*parameters.shape[:-1], self.latent_dim), 1.0).to_event(1)
        return dist.TransformedDistribution(base, self._transforms(parameters))  # type: ignore[no-any-return]

    def identity_row(self, leading: tuple[int, ...], like: Tensor) -> Tensor:
        """Rows whose couplings move nothing yet, (*leading, P): the first layers random, the last ones zero."""
        parts = []
        for shapes in self.shapes:
            for place, shape in enumerate(shapes):
                size = math.prod(shape)
                first = place == 0
                part = torch.randn(size, dtype=like.dtype, device=like.device) / math.sqrt(shape[0]) if first else like.new_zeros(size)
                parts.append(part.expand(*leading, size))
        return torch.cat(parts, -1)

    def _transforms(self, parameters: Tensor) -> list[transforms.Transform]:
        sizes = [math.prod(shape) for shapes in self.shapes for shape in shapes]
        parts = iter(parameters.split(sizes, -1))
        swap = torch.arange(self.latent_dim, device=parameters.device).roll(self.latent_dim - self.latent_dim // 2)
        found: list[transforms.Transform] = []
        for layer, shapes in enumerate(self.shapes):
            first, bias, last, shift = (next(parts).unflatten(-1, shape) for shape in shapes)
            found.append(_Coupling(shapes[0][0], first, bias, last, shift))
            found.append(transforms.Permute(swap if layer % 2 == 0 else swap.argsort()))
        return found


class _Coupling(transforms.Transform):
    """y_1 = x_1, y_2 = x_2 exp(s(x_1)) + t(x_1), with s bounded; s and t are networks with weights of their own for every row."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, kept: int, first: Tensor, bias: Tensor, last: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.kept, self.weights = kept, (first, bias, last, shift)

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        first, bias, last, shift = self.weights
        hidden = torch.tanh(torch.einsum("...i,...ij->...j", kept, first) + bias)
        log_scale, moved = (torch.einsum("...i,...ij->...j", hidden, last) + shift).chunk(2, -1)
        return 2 * torch.tanh(log_scale / 2), moved

    def _call(self, x: Tensor) -> Tensor:
        kept, moved = x[..., : self.kept], x[..., self.kept :]
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, moved * log_scale.exp() + shift], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        kept, moved = y[..., : self.kept], y[..., self.kept :]
        log_scale, shift = self._scale_and_shift(kept)
        return torch.cat([kept, (moved - shift) * (-log_scale).exp()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._scale_and_shift(x[..., : self.kept])[0].sum(-1)


class _Affine(transforms.Transform):
    """u = m + L v, one map for every row; Pyro's LowerCholeskyAffine takes a single one."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc, self.scale_tril = loc, scale_tril

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + torch.einsum("...ij,...j->...i", self.scale_tril, x)

    def _inverse(self, y: Tensor) -> Tensor:
        centred = y - self.loc
        tril = self.scale_tril.expand(*centred.shape[:-1], *self.scale_tril.shape[-2:])
        return torch.linalg.solve_triangular(tril, centred[..., None], upper=False)[..., 0]  # type: ignore[no-any-return]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])


@recorded
class Whitened:
    """An inner family over v, u = m + L v: what is left to say once N(m, L L^T) has been said. The row holds (m, L; inner)."""

    def __init__(self, inner: Family) -> None:
        self.inner, self.outer = inner, FullRankNormal(inner.latent_dim)
        self.latent_dim = inner.latent_dim
        self.num_parameters = self.outer.num_parameters + inner.num_parameters

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a distribution over R^Z."""
        check_row(self, parameters)
        outer, inner = parameters.split([self.outer.num_parameters, self.inner.num_parameters], -1)
        normal = self.outer.distribution(outer)
        return dist.TransformedDistribution(self.inner.distribution(inner), [_Affine(normal.loc, normal.scale_tril)])  # type: ignore[no-any-return]

    def row(self, loc: Tensor, scale_tril: Tensor, inner: Tensor) -> Tensor:
        """(..., Z), (..., Z, Z) and the inner rows -> (..., P)."""
        return torch.cat([self.outer.row(loc, scale_tril), inner], -1)

    def widened(self, parameters: Tensor, factor: float) -> Tensor:
        """The same rows with L times ``factor``."""
        outer, inner = parameters.split([self.outer.num_parameters, self.inner.num_parameters], -1)
        return torch.cat([self.outer.widened(outer, factor), inner], -1)
