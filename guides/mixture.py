"""Amortized mixture of Normals, weights included: q(z | x) = sum_c w_c(x) N(m_c(x), S_c(x)).

A draw chooses its component, and the choice has no derivative. The draw itself has one: it is the root z of F(z_d | z_1, ..., z_(d-1)) =
u_d, d = 1..Z, with F the conditional distribution functions of the whole mixture and u uniform. The choice gives the root, and the
implicit function theorem its derivatives by all parameters, weights included. Gradients of an ELBO are so unbiased, with one draw a datum.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import FamilyError, check_count
from ppvae.families import DiagonalNormal, Family, FullRankNormal, check_row
from ppvae.guides.amortized import Amortized

COVARIANCES: dict[str, Any] = {"diagonal": DiagonalNormal, "full": FullRankNormal}
NEWTON_STEPS = 2  # from the root itself: one gives first derivatives, two give them up to the third


class MixtureNormals(dist.MixtureSameFamily):  # type: ignore[misc]
    """A mixture of Normals over R^Z whose draws have derivatives by all parameters. The density is a log-sum-exp over its components."""

    has_rsample = True

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws without derivatives, (*sample_shape, ..., Z): a component by its weight, then of that component."""
        with torch.no_grad():
            weights = self.mixture_distribution.probs
            # by hand, since the noise of torch.multinomial depends on its argument: equal noise is then one draw for all data
            uniform = torch.rand(*sample_shape, *self.batch_shape, 1, dtype=weights.dtype, device=weights.device)
            chosen = (uniform > weights.cumsum(-1)[..., :-1]).sum(-1)[..., None, None]
            drawn = self.component_distribution.rsample(sample_shape)
            return drawn.gather(-2, chosen.expand(*chosen.shape[:-1], drawn.shape[-1]))[..., 0, :]  # type: ignore[no-any-return]

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, (*sample_shape, ..., Z). With derivatives they cost Z steps one after the other, each of all components."""
        z = self.sample(sample_shape)
        log_weights, loc, scale_tril = self._parameters()
        if not torch.is_grad_enabled():
            return z
        moved: list[Tensor] = []
        conditional = _Conditional(log_weights, loc, scale_tril)
        for d in range(z.shape[-1]):
            moved.append(conditional.root(z[..., d]))
            conditional.advance(moved[-1])
        return torch.stack(moved, -1)

    def uniforms(self, z: Tensor) -> Tensor:
        """The Rosenblatt transform u_d = F(z_d | z_1, ..., z_(d-1)), (..., Z): uniform on the unit cube where z is drawn from here."""
        found = []
        conditional = _Conditional(*self._parameters())
        for d in range(z.shape[-1]):
            found.append(conditional.at(z[..., d])[0])
            conditional.advance(z[..., d])
        return torch.stack(found, -1)

    def _parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (..., C), locations (..., C, Z), and lower Cholesky factors (..., C, Z, Z) or scales (..., C, Z)."""
        components = self.component_distribution
        if isinstance(components, dist.MultivariateNormal):
            return self.mixture_distribution.logits, components.loc, components.scale_tril
        return self.mixture_distribution.logits, components.base_dist.loc, components.base_dist.scale


class _Conditional:
    """The mixture of one coordinate given those before it: component c is N(shift_c, scale_c^2), with the weight it has after them."""

    def __init__(self, log_weights: Tensor, loc: Tensor, scales: Tensor) -> None:
        self.log_weights, self.loc, self.scales = log_weights, loc, scales
        self.full = scales.dim() > loc.dim()
        self.before: list[Tensor] = []  # the coordinates before, standardised by each component, (..., C) each

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distribution function and density at z, (...) each."""
        e, scale = self._standardised(z)
        weights = self.log_weights.softmax(-1)
        density = weights * (-0.5 * e.square()).exp() / (math.sqrt(2 * math.pi) * scale)
        return (weights * torch.special.ndtr(e)).sum(-1), density.sum(-1)

    def root(self, z: Tensor) -> Tensor:
        """z, as the root of F(z) = u with u held fixed: its value is unchanged, its derivatives are those of the root."""
        fixed = None
        for _ in range(NEWTON_STEPS):
            value, density = self.at(z)
            fixed = value.detach() if fixed is None else fixed
            z = z + (fixed - value) / density.clamp(min=torch.finfo(density.dtype).tiny)
        return z

    def advance(self, z: Tensor) -> None:
        """Take z, (...), as the next coordinate."""
        e, scale = self._standardised(z)
        self.log_weights = self.log_weights - 0.5 * e.square() - scale.log()
        self.before.append(e)

    def _standardised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        d = len(self.before)
        shift = self.loc[..., d]
        if not self.full:
            return (z[..., None] - shift) / self.scales[..., d], self.scales[..., d]
        for j, e in enumerate(self.before):
            shift = shift + self.scales[..., d, j] * e
        return (z[..., None] - shift) / self.scales[..., d, d], self.scales[..., d, d]


@recorded
class MixtureFamily:
    """sum_c w_c N(m_c, S_c); the row holds the C logits of w, then the row of each Normal.

    Args:
        latent_dim: Z.
        num_components: C.
        covariance: "diagonal" or "full".

    Raises:
        FamilyError: Another covariance.

    References:
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients, sec. 3 and 4: how draws get their derivatives.
    """

    def __init__(self, latent_dim: int, num_components: int = 4, covariance: str = "diagonal") -> None:
        check_count("num_components", num_components)
        if covariance not in COVARIANCES:
            raise FamilyError(f"covariance is one of {', '.join(COVARIANCES)}, got {covariance!r}")
        self.latent_dim, self.num_components = latent_dim, num_components
        self.component: Family = COVARIANCES[covariance](latent_dim)
        self.num_parameters = num_components * (1 + self.component.num_parameters)

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., P) -> a mixture over R^Z.

        Raises:
            FamilyError: The last dimension is not P long.
        """
        check_row(self, parameters)
        c = self.num_components
        components = self.component.distribution(parameters[..., c:].unflatten(-1, (c, -1)))
        return MixtureNormals(dist.Categorical(logits=parameters[..., :c]), components)


@recorded
class Mixture(Amortized):
    """q(z | x) = sum_c w_c N(m_c, S_c), with weights, locations and covariances from encoder(x), C (1 + 2 Z) outputs if diagonal.

    The encoder's first C outputs are logits. Components that start alike stay alike: leave the last layer its random start. Draws have
    derivatives by everything, the weights among them (``ppvae.guides.mixture``), so that Trace_ELBO's gradient is unbiased.

    Args:
        encoder: (N, *event) -> (N, C (1 + 2 Z)), or (N, C (1 + Z + Z (Z + 1) / 2)) where the covariance is full.
        latent_dim: Z.
        num_components: C.
        covariance: "diagonal" or "full", of each component.

    Raises:
        FamilyError: Another covariance; on the first batch, an encoder of another width.

    References:
        Jaakkola, Jordan (1998), Improving the mean field approximation via the use of mixture distributions.
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, num_components: int = 4, covariance: str = "diagonal") -> None:
        super().__init__(encoder, MixtureFamily(latent_dim, num_components, covariance))
