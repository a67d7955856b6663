"""Models whose answers are known in closed form, with the algebra. Everything in float64 and nats."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.models import LinearGaussian


def linear_gaussian(num_data: int = 6, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7):
    """z ~ N(0, I), x | z ~ N(W z + b, s^2 I); x from the model. Evidence N(x; b, W W' + s^2 I), posterior N(M^-1 W'(x - b), s^2 M^-1)."""
    model = LinearGaussian(data_dim, latent_dim, scale)
    with torch.no_grad():
        model.bias.normal_()
    z = torch.randn(num_data, latent_dim)
    x = (z @ model.weight.mT + model.bias + scale * torch.randn(num_data, data_dim)).detach()
    return model.requires_grad_(False), exact_posterior_of(model), x


def exact_posterior_of(model: LinearGaussian):
    """The guide that is the posterior: every importance weight equals p(x)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", model.posterior(x))

    return guide


def with_posterior_precision(precision: Tensor, num_data: int = 64):
    """A linear Gaussian model whose posterior precision is the given one, P = I + W'W / s^2: W = s chol(P - I)', with s = 1."""
    z = len(precision)
    model = LinearGaussian(z, z, 1.0)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.cholesky(precision - torch.eye(z)).mT)
    x = torch.randn(num_data, z) @ torch.linalg.cholesky(torch.eye(z) + (model.weight @ model.weight.mT).detach()).mT
    return model.requires_grad_(False), x


def correlated_posterior(r: float, num_data: int = 64):
    """A 2-D posterior with correlation r. The best diagonal Normal has the same mean, variances 1 / P_ii, and a gap -1/2 log(1 - r^2)."""
    covariance = 0.2 * torch.tensor([[1.0, r], [r, 1.0]])
    return *with_posterior_precision(torch.linalg.inv(covariance), num_data), -0.5 * math.log(1 - r**2)


class MeanField:
    """q(z | x) = N(posterior mean + offset, diag(1 / P_ii) * inflation^2): the best diagonal Normal, with known faults."""

    def __init__(self, model: LinearGaussian, offset: Tensor | float = 0.0, inflation: float = 1.0) -> None:
        self.model, self.offset, self.inflation = model, offset, inflation

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, (N, Z)."""
        posterior = self.model.posterior(x)
        scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt() * self.inflation
        return posterior.loc + self.offset, scale

    def __call__(self, x: Tensor) -> None:
        """Draw z."""
        loc, scale = self.parameters(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def kl_to_posterior(model: LinearGaussian, x: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(loc, covariance) || posterior) = 1/2 [e'P e + tr(P S) - k - log det(P S)], (N,)."""
    posterior = model.posterior(x)
    p = posterior.precision_matrix
    e = loc - posterior.loc
    product = p @ covariance
    k = loc.shape[-1]
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * ((e[:, None] @ p @ e[..., None])[:, 0, 0] + trace - k - torch.logdet(product))


def poisson_gamma(num_data: int = 8, a: float = 2.0, b: float = 1.5):
    """r ~ Gamma(a, b), y | r ~ Poisson(r). Posterior Gamma(a + y, b + 1); evidence negative binomial."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-1):
            r = pyro.sample("r", dist.Gamma(torch.tensor(a), torch.tensor(b)))
            pyro.sample("y", dist.Poisson(r), obs=y)

    y = torch.arange(num_data).to(torch.get_default_dtype())
    evidence = dist.GammaPoisson(torch.tensor(a), torch.tensor(b)).log_prob(y)
    return model, y, evidence, (a + y, torch.full_like(y, b + 1))
