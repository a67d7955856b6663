"""Semi-supervised M2: y ~ Categorical, z ~ N(0, I), x | y, z ~ likelihood(network(z, y)); y is known for some of the data."""

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
from ppvae.models import priors


@recorded
class SemiSupervised(PyroModule):
    """log p(x, y) of a datum with a label, log p(x) = log sum_y p(x, y) of one without, at the latent sites "y" and "z".

    A batch is a dict of x, (N, *event); y, (N,), whole numbers; and labelled, (N,), True where y is known. Where it is not, y is filler
    within 0..C - 1 that nothing reads. A label is an observation of the latent y, at the site "label": p(label | y) is 1 where they agree
    and 0 elsewhere. So no latent is masked, and what is measured is log p of all that is known.

    Args:
        network: z and the one-hot y side by side, (..., Z + C) -> (..., outputs).
        likelihood: Maps the network's output to a distribution of x's event shape (``models.likelihoods``, or a lambda).
        num_classes: C.
        latent_dim: Z.

    References:
        Kingma, Rezende, Mohamed, Welling (2014), Semi-supervised learning with deep generative models, sec. 2 (M2), eq. 6-8.
    """

    class_logits: Tensor

    def __init__(self, network: nn.Module, likelihood: Callable[[Tensor], TorchDistribution], num_classes: int, latent_dim: int) -> None:
        super().__init__()
        check_count("num_classes", num_classes, 2)
        self.network, self.likelihood, self.num_classes = network, likelihood, num_classes
        self.prior_given = priors.StandardNormal(latent_dim)
        self.register_buffer("class_logits", torch.zeros(num_classes), persistent=False)

    def forward(self, x: dict[str, Tensor]) -> None:
        """Observe x, and y where it is known.

        Raises:
            ShapeError: The batch is no dict of x, y and labelled.
        """
        if not isinstance(x, dict) or not x.keys() >= {"x", "y", "labelled"}:
            came = f"a dict of {', '.join(map(repr, x))}" if isinstance(x, dict) else f"a {type(x).__name__}"
            raise ShapeError(
                f"needed a dict of 'x', 'y' and 'labelled', and {came} came",
                mend="{'x': x, 'y': y, 'labelled': known}, with known (N,) True where y is to be read",
            )
        with pyro.plate("data", len(x["x"]), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.class_logits))
            z = pyro.sample("z", self.prior_given())
            code = nn.functional.one_hot(y, self.num_classes).to(z.dtype)
            agrees = torch.where(code > 0, 0.0, -torch.inf).to(z.dtype)  # log p(label | y)
            pyro.sample("label", dist.Categorical(logits=agrees).mask(x["labelled"]), obs=x["y"])
            shape = torch.broadcast_shapes(z.shape[:-1], code.shape[:-1])  # y has dims of its own where it is enumerated
            both = torch.cat([z.expand(*shape, -1), code.expand(*shape, -1)], -1)
            pyro.sample("x", self.likelihood(self.network(both)), obs=x["x"])
