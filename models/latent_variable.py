"""Latent variable model: z ~ prior, x | z ~ likelihood(network(z)). One stochastic layer, any parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pyro
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.models import likelihoods, priors
from ppvae.models.covariates import without
from ppvae.models.missing import masked, parts


@recorded
class LatentVariable(PyroModule):
    """p(x, z) = p(z) p(x | z).

    Args:
        prior: A distribution of event shape (Z,), or a module that returns one (``models.priors``). A learned one is trained with the
            model; a conditional one is called with the covariate of the batch that it names.
        network: (..., Z) -> (..., outputs). Particles come from the left.
        likelihood: Maps the network's output to a distribution of x's event shape (``models.likelihoods``, or a lambda).
            One that names a covariate is called with it as well.
    """

    def __init__(
        self,
        prior: TorchDistribution | nn.Module,
        network: nn.Module,
        likelihood: Callable[[Tensor], TorchDistribution],
    ) -> None:
        super().__init__()
        self.prior_given: Any = prior
        self.network = network
        self.likelihood = likelihood

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, *event), or its observed entries where it is a dict of values and mask (``models.missing``).

        Where prior or likelihood need a covariate, x is a dict that holds it too (``models.covariates``).
        """
        given, likelihood = cast(tuple[Any, Any], (self.prior_given, self.likelihood))
        of_prior, of_likelihood = ((part.covariate_of(x),) if hasattr(part, "covariate") else () for part in (given, likelihood))
        named = [part.covariate for part in (given, likelihood) if hasattr(part, "covariate")]
        values, observed = parts(without(x, named))
        with pyro.plate("data", len(values), dim=-1):
            # a Pyro distribution is callable too: calling it would draw
            prior = given if isinstance(given, TorchDistributionMixin) else given(*of_prior)
            z = pyro.sample("z", prior)
            pyro.sample("x", masked(likelihood(self.network(z), *of_likelihood), observed), obs=values)


@recorded
class Bernoulli(LatentVariable):
    """z ~ N(0, I), x_d | z ~ Bernoulli(sigmoid(network(z)_d)); ``prior`` replaces N(0, I)."""

    def __init__(self, network: nn.Module, latent_dim: int, prior: TorchDistribution | nn.Module | None = None) -> None:
        super().__init__(prior or priors.StandardNormal(latent_dim), network, likelihoods.Bernoulli())


@recorded
class Normal(LatentVariable):
    """z ~ N(0, I), x | z ~ N(network(z), scale^2 I); without ``scale`` one scale is learned."""

    def __init__(
        self, network: nn.Module, latent_dim: int, scale: float | None = None, prior: TorchDistribution | nn.Module | None = None
    ) -> None:
        likelihood = likelihoods.NormalLearned() if scale is None else likelihoods.Normal(scale)
        super().__init__(prior or priors.StandardNormal(latent_dim), network, likelihood)
