"""The plain autoencoder, for contrast: x | z ~ likelihood(network(z)), and nothing at all is said of z."""

from __future__ import annotations

from collections.abc import Callable

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.models import priors
from ppvae.models.missing import masked, parts


@recorded
class Autoencoder(PyroModule):
    """log p(x | z) at z = encoder(x), the site "z" masked: a loss without KL. Its guide is ``guides.Delta``.

    A Normal likelihood of scale s makes the loss squared error / (2 s^2), a Bernoulli one cross entropy. Draws of z, which sampling
    needs, are from N(0, I), which nothing has asked the codes to follow: that is the contrast. There is no log p(x): no density over z
    enters, and where the guide's is a point mass there is no bound on one either.

    Args:
        network: (..., Z) -> (..., outputs).
        likelihood: Maps the network's output to a distribution of x's event shape (``models.likelihoods``, or a lambda).
        latent_dim: Z.
    """

    def __init__(self, network: nn.Module, likelihood: Callable[[Tensor], TorchDistribution], latent_dim: int) -> None:
        super().__init__()
        self.network, self.likelihood = network, likelihood
        self.sampled_from = priors.StandardNormal(latent_dim)

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, *event), or its observed entries where it is a dict of values and mask (``models.missing``)."""
        values, observed = parts(x)
        with pyro.plate("data", len(values), dim=-1):
            z = pyro.sample("z", self.sampled_from().mask(False))
            pyro.sample("x", masked(self.likelihood(self.network(z)), observed), obs=values)
