"""Discrete latents: z_j ~ Categorical, x | z ~ likelihood(network(one-hot z)). Summed out exactly, or relaxed to the simplex."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError, check_count
from ppvae.models.missing import masked, parts


@recorded
class Discrete(PyroModule):
    """p(x, z) = prod_j p(z_j) p(x | z), z_j in {0, ..., C - 1}, at the sites "z_1", ..., "z_M"; p(z_j) is learned.

    Exact: ``TraceEnum_ELBO(max_plate_nesting=1)`` with ``guides.Categorical`` sums the guide's states (C^M of them, all at once), and
    ``analysis.exact_log_likelihood`` sums log p(x). With one latent the best guide is the posterior, and the ELBO log p(x).

    Args:
        network: One-hot vectors side by side, (..., M C) -> (..., outputs).
        likelihood: Maps the network's output to a distribution of x's event shape (``models.likelihoods``, or a lambda).
        num_latents: M.
        num_categories: C.

    References:
        Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs: how Pyro sums.
    """

    def __init__(
        self, network: nn.Module, likelihood: Callable[[Tensor], TorchDistribution], num_latents: int, num_categories: int
    ) -> None:
        super().__init__()
        check_count("num_latents", num_latents)
        check_count("num_categories", num_categories, 2)
        self.network, self.likelihood = network, likelihood
        self.num_categories = num_categories
        self.prior_logits = nn.Parameter(torch.zeros(num_latents, num_categories))

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, *event), or its observed entries where it is a dict of values and mask (``models.missing``)."""
        values, observed = parts(x)
        with pyro.plate("data", len(values), dim=-1):
            z = [pyro.sample(f"z_{j}", dist.Categorical(logits=logits)) for j, logits in enumerate(self.prior_logits, 1)]
            codes = nn.functional.one_hot(torch.stack(torch.broadcast_tensors(*z), -1), self.num_categories)  # (..., M, C)
            output = self.network(codes.flatten(-2).to(self.prior_logits.dtype))
            pyro.sample("x", masked(self.likelihood(output), observed), obs=values)


@recorded
class Relaxed(PyroModule):
    """p(x, z) = prod_j p(z_j) p(x | z), z_j on the simplex, z_j ~ RelaxedOneHotCategorical(temperature, logits_j), at the site "z", (M, C).

    A continuous model in its own right, whose draws tend to those of ``Discrete`` as the temperature goes to 0: what is measured here is
    log p(x) of this one. ``discrete`` gives the model with the same parts whose latents are categories.

    Args:
        network, likelihood, num_latents, num_categories: As of ``Discrete``.
        temperature: Of the prior.

    Raises:
        ShapeError: The temperature is not positive.

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax. Maddison, Mnih, Teh (2017), The concrete
        distribution, sec. 3 and app. C.
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: Callable[[Tensor], TorchDistribution],
        num_latents: int,
        num_categories: int,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("num_latents", num_latents)
        check_count("num_categories", num_categories, 2)
        if not temperature > 0:
            raise ShapeError(f"the temperature of a relaxed category must be positive, got {temperature}")
        self.network, self.likelihood, self.temperature = network, likelihood, temperature
        self.prior_logits = nn.Parameter(torch.zeros(num_latents, num_categories))

    def forward(self, x: Tensor | dict[str, Tensor]) -> None:
        """Observe x, (N, *event), or its observed entries where it is a dict of values and mask (``models.missing``)."""
        values, observed = parts(x)
        with pyro.plate("data", len(values), dim=-1):
            prior = dist.RelaxedOneHotCategorical(self.prior_logits.new_tensor(self.temperature), logits=self.prior_logits)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", masked(self.likelihood(self.network(z.flatten(-2))), observed), obs=values)

    def discrete(self) -> Discrete:
        """``Discrete`` with the same network, likelihood and prior: what a relaxation is trained for."""
        model = Discrete(self.network, self.likelihood, *self.prior_logits.shape)
        model.prior_logits = self.prior_logits
        return model
