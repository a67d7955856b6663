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
from ppvae.models.missing import masked, parts


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

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, D), or its observed entries where it is a dict of values and mask (``models.missing``)."""
        values, observed = parts(x)
        with pyro.plate("data", len(values), dim=-1):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.latent_dim), 1.0).to_event(1))
            likelihood = dist.Normal(z @ self.weight.mT + self.bias, self.log_scale.exp()).to_event(1)
            pyro.sample("x", masked(likelihood, observed), obs=values)

    def log_evidence(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """log p(x) = log N(x; b, W W^T + s^2 I), of the observed entries where some are missing. (N, D) -> (N,), nats."""
        x, observed = parts(x)
        if observed is not None:
            return self._log_evidence_of_observed(x, observed)
        variance = (2 * self.log_scale).exp().expand(len(self.bias))
        return dist.LowRankMultivariateNormal(self.bias, self.weight, variance).log_prob(x)  # type: ignore[no-any-return]

    def posterior(self, x: Tensor | dict[str, Tensor]) -> dist.MultivariateNormal:
        """p(z | x) = N(M^-1 W^T (x - b), s^2 M^-1) with M = W^T W + s^2 I, of the observed rows of W, x and b where some are missing.

        Batch shape (N,), event shape (Z,).
        """
        x, observed = parts(x)
        if observed is not None:
            precision, information = self._given_observed(x, observed)
            return dist.MultivariateNormal(torch.linalg.solve(precision, information[..., None])[..., 0], precision_matrix=precision)
        variance = (2 * self.log_scale).exp()
        precision = (self.weight.mT @ self.weight) / variance + torch.eye(self.latent_dim, dtype=x.dtype, device=x.device)
        loc = torch.linalg.solve(precision, ((x - self.bias) @ self.weight / variance).mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision.expand(len(x), -1, -1))

    def conditional(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each entry given the observed ones, (N, D) each.

        E[x_d | x_observed] = b_d + W_d E[z | x_observed]; at observed entries they are those of a new draw of the entry.
        """
        posterior = self.posterior(x)
        variance = torch.einsum("di,nij,dj->nd", self.weight, posterior.covariance_matrix, self.weight) + (2 * self.log_scale).exp()
        return self.bias + posterior.mean @ self.weight.mT, variance.sqrt()

    def _given_observed(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior precision I + W_o^T W_o / s^2, (N, Z, Z), and W_o^T (x_o - b_o) / s^2, (N, Z)."""
        variance = (2 * self.log_scale).exp()
        weight = observed[..., None] * self.weight  # (N, D, Z), rows of missing entries zero
        precision = weight.mT @ weight / variance + torch.eye(self.latent_dim, dtype=x.dtype, device=x.device)
        return precision, (torch.where(observed, x - self.bias, 0) @ self.weight) / variance

    def _log_evidence_of_observed(self, x: Tensor, observed: Tensor) -> Tensor:
        """By the matrix determinant lemma and Woodbury's identity, (N,)."""
        precision, information = self._given_observed(x, observed)
        root = torch.linalg.cholesky(precision)
        explained = torch.linalg.solve_triangular(root, information[..., None], upper=False).square().sum((-2, -1))
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        residual = torch.where(observed, x - self.bias, 0).square().sum(-1) / (2 * self.log_scale).exp()
        constant = observed.sum(-1) * (math.log(2 * math.pi) + 2 * self.log_scale)
        return -0.5 * (constant + log_det + residual - explained)  # type: ignore[no-any-return]

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
