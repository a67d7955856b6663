"""Models whose answers are known in closed form, with the algebra. Everything in float64 and nats."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.models import LinearGaussian
from ppvae.nn import MLP


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


class MixturePrior:
    """z ~ sum_c pi_c N(m_c, diag(t_c^2)), x | z ~ N(W z + b, s^2 I): the model, its evidence and its posterior.

    Each component alone is linear Gaussian: evidence sum_c pi_c N(x; W m_c + b, W diag(t_c^2) W' + s^2 I); posterior the mixture of
    N(m_c + S_c W'(x - b - W m_c) / s^2, S_c), S_c = (diag(t_c^-2) + W'W / s^2)^-1, with weights proportional to pi_c N(x; ...).
    """

    def __init__(self, data_dim: int = 4, latent_dim: int = 2, components: int = 3, scale: float = 0.7) -> None:
        self.logits = torch.randn(components)
        self.loc, self.prior_scale = 3 * torch.randn(components, latent_dim), 0.3 + torch.rand(components, latent_dim)
        self.weight, self.bias, self.scale = torch.randn(data_dim, latent_dim), torch.randn(data_dim), scale

    def __call__(self, x: Tensor) -> None:
        """One latent site z, its prior a mixture distribution."""
        component = dist.Normal(self.loc, self.prior_scale).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=self.logits), component))
            pyro.sample("x", dist.Normal(z @ self.weight.mT + self.bias, self.scale).to_event(1), obs=x)

    def two_sites(self, x: Tensor) -> None:
        """The same story with the component a latent site c of its own: c ~ Categorical(pi), z | c ~ N(m_c, diag(t_c^2))."""
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[c], self.prior_scale[c]).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.mT + self.bias, self.scale).to_event(1), obs=x)

    def draw(self, num_data: int) -> Tensor:
        """x from the model, (N, D)."""
        c = dist.Categorical(logits=self.logits).sample((num_data,))
        z = self.loc[c] + self.prior_scale[c] * torch.randn(num_data, self.loc.shape[-1])
        return z @ self.weight.mT + self.bias + self.scale * torch.randn(num_data, len(self.bias))

    def log_joint_of_components(self, x: Tensor) -> Tensor:
        """log pi_c + log p(x | c), (N, C)."""
        mean = self.loc @ self.weight.mT + self.bias
        low_rank = self.weight * self.prior_scale[:, None]
        covariance = low_rank @ low_rank.mT + self.scale**2 * torch.eye(len(self.bias))
        log_px: Tensor = dist.MultivariateNormal(mean, covariance).log_prob(x[:, None])
        return torch.log_softmax(self.logits, 0) + log_px

    def log_px(self, x: Tensor) -> Tensor:
        """(N,)."""
        return torch.logsumexp(self.log_joint_of_components(x), 1)

    def posterior(self, x: Tensor) -> dist.MixtureSameFamily:
        """p(z | x), batch shape (N,), event shape (Z,)."""
        precision = torch.diag_embed(self.prior_scale**-2) + self.weight.mT @ self.weight / self.scale**2  # (C, Z, Z)
        covariance = torch.linalg.inv(precision)
        residual = x[:, None] - self.bias - self.loc @ self.weight.mT  # (N, C, D)
        shift = (covariance @ (residual @ self.weight / self.scale**2)[..., None])[..., 0]
        components = dist.MultivariateNormal(self.loc + shift, covariance.expand(len(x), -1, -1, -1))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.log_joint_of_components(x)), components)

    def guide(self, x: Tensor) -> None:
        """The posterior: every importance weight equals p(x)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))


class BinaryLatents:
    """z ~ prod_j Bernoulli(p_j), j < m; x | z ~ prod_d Bernoulli(sigmoid((W z + b)_d)): everything by a sum over the 2^m states."""

    def __init__(self, latent_dim: int = 4, data_dim: int = 6) -> None:
        self.probs = 0.2 + 0.6 * torch.rand(latent_dim)
        self.weight, self.bias = 2 * torch.randn(data_dim, latent_dim), torch.randn(data_dim)
        self.states = torch.tensor([[float(i >> j & 1) for j in range(latent_dim)] for i in range(2**latent_dim)])  # (2^m, m)

    def __call__(self, x: Tensor) -> None:
        """One latent site z of event shape (m,)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(self.probs).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight.mT + self.bias).to_event(1), obs=x)

    def separate_sites(self, x: Tensor) -> None:
        """m latent sites z_0, z_1, ... of event shape (), which Pyro enumerates."""
        with pyro.plate("data", len(x), dim=-1):
            parts = [pyro.sample(f"z_{j}", dist.Bernoulli(p)) for j, p in enumerate(self.probs)]
            logits = self.bias + sum(part[..., None] * self.weight[:, j] for j, part in enumerate(parts))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def draw(self, num_data: int) -> Tensor:
        """x from the model, (N, D)."""
        z = torch.bernoulli(self.probs.expand(num_data, -1))
        return torch.bernoulli(torch.sigmoid(z @ self.weight.mT + self.bias))

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) in every state, (N, 2^m), from the two products written out."""
        prior = torch.where(self.states == 1, self.probs, 1 - self.probs).log().sum(1)
        on = torch.sigmoid(self.states @ self.weight.mT + self.bias)
        return prior + torch.where(x[:, None] == 1, on, 1 - on).log().sum(-1)

    def log_px(self, x: Tensor) -> Tensor:
        """(N,)."""
        return torch.logsumexp(self.log_joint(x), 1)

    def posterior(self, x: Tensor) -> Tensor:
        """p(z | x) of every state, (N, 2^m)."""
        return torch.softmax(self.log_joint(x), 1)

    def guide(self, x: Tensor) -> None:
        """The product of the posterior's marginals, drawn as one site z."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(self.posterior(x) @ self.states).to_event(1))


class PlaneDecoder:
    """z ~ N(0, I_2), x | z ~ prod_d Bernoulli(sigmoid(network(z)_d)) with a fixed random network: log p(x) by a sum over a grid.

    The network's last layer is enlarged, so that posteriors are narrow (standard deviation about 0.35) and bent.
    """

    def __init__(self, data_dim: int = 20, hidden: int = 16, sharpness: float = 12.0) -> None:
        self.network = MLP(2, [hidden], data_dim, activation=torch.nn.Tanh).requires_grad_(False)
        last = [layer for layer in self.network.modules() if isinstance(layer, torch.nn.Linear)][-1]
        last.weight.mul_(sharpness)

    def __call__(self, x: Tensor) -> None:
        """Observe x, (N, D)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.network(z)).to_event(1), obs=x)

    def draw(self, num_data: int) -> Tensor:
        """x from the model, (N, D)."""
        return torch.bernoulli(torch.sigmoid(self.network(torch.randn(num_data, 2))))

    def grid(self, h: float = 0.04, half_width: float = 5.5) -> Tensor:
        """Midpoints of squares of side h over [-5.5, 5.5]^2, (G, 2)."""
        axis = torch.arange(-half_width + h / 2, half_width, h)
        return torch.cartesian_prod(axis, axis)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_n, z_g), (N, G): x'eta - sum softplus(eta) - |z|^2 / 2 - log 2 pi."""
        eta: Tensor = self.network(z)
        return x @ eta.mT - torch.nn.functional.softplus(eta).sum(-1) - z.square().sum(-1) / 2 - math.log(2 * math.pi)

    def log_px(self, x: Tensor, h: float = 0.04) -> Tensor:
        """log of the midpoint sum, (N,)."""
        z = self.grid(h)
        return torch.cat([torch.logsumexp(self.log_joint(rows, z), 1) for rows in x.split(16)]) + 2 * math.log(h)

    def posterior_moments(self, x: Tensor, h: float = 0.04) -> tuple[Tensor, Tensor]:
        """Mean (N, 2) and covariance (N, 2, 2) of p(z | x)."""
        z = self.grid(h)
        weights = torch.softmax(self.log_joint(x, z), 1)
        mean = weights @ z
        square = torch.einsum("ng,gi,gj->nij", weights, z, z)
        return mean, square - mean[:, :, None] * mean[:, None]


class Funnel:
    """tau ~ Gamma(a, b), z | tau ~ N(0, I_D / tau), x | z ~ N(z, s^2 I_D): a wide throat where tau is small.

    z integrates out: x | tau ~ N(0, (1 / tau + s^2) I_D). What is left is one integral over u = log tau, smooth and falling off at both
    ends faster than exponentially or with rate a: the trapezoid rule converges faster than any power of its step.
    """

    def __init__(self, data_dim: int = 2, a: float = 1.5, b: float = 1.0, scale: float = 0.5) -> None:
        self.data_dim, self.scale = data_dim, scale
        self.a, self.b = torch.tensor(a), torch.tensor(b)

    def __call__(self, x: Tensor) -> None:
        """Latent sites tau, of event shape (), and z, of event shape (D,)."""
        with pyro.plate("data", len(x), dim=-1):
            tau = pyro.sample("tau", dist.Gamma(self.a, self.b))
            z = pyro.sample("z", dist.Normal(torch.zeros(self.data_dim), tau[..., None].rsqrt()).to_event(1))
            pyro.sample("x", dist.Normal(z, self.scale).to_event(1), obs=x)

    def draw(self, num_data: int) -> Tensor:
        """x from the model, (N, D)."""
        tau = dist.Gamma(self.a, self.b).sample((num_data,))
        return torch.randn(num_data, self.data_dim) * (1 / tau + self.scale**2).sqrt()[:, None]

    def log_px(self, x: Tensor, points: int = 4001) -> Tensor:
        """(N,), by the trapezoid rule over u in [-40, 15]: what is cut off is below 1e-20 of the whole for a >= 1."""
        u = torch.linspace(-40.0, 15.0, points)
        tau = u.exp()
        prior = dist.Gamma(self.a, self.b).log_prob(tau) + u
        variance = 1 / tau + self.scale**2
        square = x.square().sum(-1, keepdim=True)
        likelihood = -0.5 * (square / variance + self.data_dim * torch.log(2 * math.pi * variance))
        return torch.logsumexp(prior + likelihood, 1) + torch.log(u[1] - u[0])

    def guide(self, x: Tensor) -> None:
        """tau from its prior, z | tau from its exact posterior N(x / (1 + tau s^2), I / (tau + 1 / s^2)): every weight is p(x | tau)."""
        with pyro.plate("data", len(x), dim=-1):
            tau = pyro.sample("tau", dist.Gamma(self.a, self.b))
            precision = tau[..., None] + self.scale**-2
            pyro.sample("z", dist.Normal(x * self.scale**-2 / precision, precision.rsqrt()).to_event(1))


def tempered_posterior(model: LinearGaussian, x: Tensor, beta: float) -> dist.MultivariateNormal:
    """p(z) p(x | z)^beta, normalised: N(beta S W'(x - b) / s^2, S), S = (I + beta W'W / s^2)^-1. Batch shape (N,)."""
    variance = (2 * model.log_scale).exp()
    precision = torch.eye(model.latent_dim) + beta * model.weight.mT @ model.weight / variance
    loc = beta * torch.linalg.solve(precision, ((x - model.bias) @ model.weight / variance).mT).mT
    return dist.MultivariateNormal(loc, precision_matrix=precision.expand(len(x), -1, -1))


def expected_log_likelihood(model: LinearGaussian, x: Tensor, over: dist.MultivariateNormal) -> Tensor:
    """E[log p(x | z)] over z ~ N(m, S): -1/2 [D log 2 pi s^2 + (|x - b - W m|^2 + tr(W S W')) / s^2], (N,)."""
    variance = (2 * model.log_scale).exp()
    residual = (x - model.bias - over.mean @ model.weight.mT).square().sum(-1)
    spread = (model.weight @ over.covariance_matrix @ model.weight.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return -0.5 * (x.shape[-1] * torch.log(2 * math.pi * variance) + (residual + spread) / variance)  # type: ignore[no-any-return]


def chi_squared(precision: Tensor, scale: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """E_q[w^2] / p(x)^2 - 1 for q = N(m + d, diag(scale^2)) and a posterior N(m, P^-1); infinite unless 2 P - S^-1 is positive definite.

    With R = S^(1/2) P S^(1/2): det R / sqrt(det(2 R - I)) exp(1/2 b'A^-1 b - d'P d) - 1, A = 2 P - S^-1, b = 2 P d.
    """
    k = len(precision)
    d = torch.as_tensor(offset).expand(k)
    r = scale[:, None] * precision * scale
    a, b = 2 * precision - torch.diag(scale**-2), 2 * precision @ d
    if torch.linalg.eigvalsh(a)[0] <= 0:
        return torch.tensor(torch.inf)
    exponent = 0.5 * b @ torch.linalg.solve(a, b) - d @ precision @ d
    return exponent.exp() * torch.det(r) / torch.det(2 * r - torch.eye(k)).sqrt() - 1  # type: ignore[no-any-return]


def pit_distance(ratio: float) -> float:
    """sup_t |Phi(ratio Phi^-1(t)) - t|: how far probability integral transforms are from uniform where q's sd is ``ratio`` the truth's."""
    z = torch.linspace(-8.0, 8.0, 160_001)
    normal = torch.distributions.Normal(0.0, 1.0)
    return float((normal.cdf(ratio * z) - normal.cdf(z)).abs().max())
