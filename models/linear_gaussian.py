"""Linear Gaussian model (probabilistic PCA): z ~ N(0, I), x | z ~ N(W z + b, s^2 I). Evidence and posterior have closed forms."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError


@recorded
class LinearGaussian(PyroModule):
    """Probabilistic PCA.

    Args:
        data_dim: D.
        latent_dim: Z.
        scale: s, where it starts; it is learned.

    References:
        Tipping, Bishop (1999), Probabilistic principal component analysis, sec. 3.
        Lucas, Tucker, Grosse, Norouzi (2019), Don't blame the ELBO, sec. 3.
    """

    def __init__(self, data_dim: int, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.weight = nn.Parameter(torch.randn(data_dim, latent_dim) / math.sqrt(latent_dim))
        self.bias = nn.Parameter(torch.zeros(data_dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, x: Tensor) -> None:
        """Observe x, (N, D)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.mT + self.bias, self.log_scale.exp()).to_event(1), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; b, W W^T + s^2 I). (N, D) -> (N,), nats."""
        variance = (2 * self.log_scale).exp().expand(len(self.bias))
        return dist.LowRankMultivariateNormal(self.bias, self.weight, variance).log_prob(x)  # type: ignore[no-any-return]

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x) = N(M^-1 W^T (x - b), s^2 M^-1) with M = W^T W + s^2 I. Batch shape (N,), event shape (Z,)."""
        variance = (2 * self.log_scale).exp()
        precision = (self.weight.mT @ self.weight) / variance + torch.eye(self.latent_dim, dtype=x.dtype, device=x.device)
        loc = torch.linalg.solve(precision, ((x - self.bias) @ self.weight / variance).mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision.expand(len(x), -1, -1))

    @classmethod
    def maximum_likelihood(cls, x: Tensor, latent_dim: int) -> LinearGaussian:
        """The model that maximises the likelihood of x, (N, D), in closed form; rotation R = I.

        With R = I the posterior covariance is diagonal, so a linear encoder with a diagonal Normal attains log p(x) exactly.

        Raises:
            ShapeError: ``latent_dim`` is not below D.
        """
        d = x.shape[-1]
        if not 0 < latent_dim < d:
            raise ShapeError(f"probabilistic PCA needs 0 < latent_dim < D, got latent_dim={latent_dim} and D={d}")
        covariance = torch.cov(x.mT, correction=0)
        eigenvalues, vectors = torch.linalg.eigh(covariance)  # ascending
        variance = eigenvalues[: d - latent_dim].mean()
        top, directions = eigenvalues[d - latent_dim :].flip(0), vectors[:, d - latent_dim :].flip(1)
        model = cls(d, latent_dim).to(x)
        with torch.no_grad():
            model.weight.copy_(directions * (top - variance).clamp(min=0).sqrt())
            model.bias.copy_(x.mean(0))
            model.log_scale.copy_(variance.log() / 2)
        return model
