"""Guide of M2: q(y | x) q(z | x, y). A known label is taken as it is; an unknown one is summed out by TraceEnum_ELBO."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ArgumentError
from ppvae.families import DiagonalNormal


@recorded
class SemiSupervised(PyroModule):
    """q(y, z | x) = Categorical(y; classifier(x)) N(z; encoder(x, y)); q(y | x) is a point mass at the label where it is known.

    Train by ``TraceEnum_ELBO(max_plate_nesting=1)``, which sums over y. In the ELBO of a labelled datum the classifier has no part, so
    that ``classification_weight`` times log q(label | x) is added while training (eq. 9); measurement, in eval mode, is without it.

    Args:
        classifier: (N, *event) -> (N, C), logits.
        encoder: x and the one-hot y side by side, (..., D + C) -> (..., 2 Z), for x of shape (N, D).
        num_classes: C.
        latent_dim: Z.
        classification_weight: alpha, >= 0; the paper takes a tenth of the number of data, over the number of labels, per labelled datum.

    Raises:
        ArgumentError: The weight is negative.

    References:
        Kingma, Rezende, Mohamed, Welling (2014), Semi-supervised learning with deep generative models, eq. 4 and 9.
    """

    def __init__(
        self, classifier: nn.Module, encoder: nn.Module, num_classes: int, latent_dim: int, classification_weight: float = 0.0
    ) -> None:
        super().__init__()
        if not classification_weight >= 0:
            raise ArgumentError(f"the weight of the classification is a number >= 0, got {classification_weight}")
        self.classifier, self.encoder, self.num_classes = classifier, encoder, num_classes
        self.normal = DiagonalNormal(latent_dim)
        self.classification_weight = classification_weight

    def forward(self, x: dict[str, Tensor]) -> None:
        """Draw y and z given a batch as of ``models.SemiSupervised``."""
        values, label, known = x["x"], x["y"], x["labelled"]
        logits = self.classifier(values)
        certain = torch.where(nn.functional.one_hot(label, self.num_classes) > 0, 0.0, -torch.inf).to(logits.dtype)
        with pyro.plate("data", len(values), dim=-1):
            if self.training and self.classification_weight:
                said = dist.Categorical(logits=logits).log_prob(label).where(known, 0)
                pyro.factor("classification", -self.classification_weight * said, has_rsample=True)
            q = dist.Categorical(logits=torch.where(known[..., None], certain, logits))
            y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            code = nn.functional.one_hot(y, self.num_classes).to(logits.dtype)
            shape = torch.broadcast_shapes(values.shape[:-1], code.shape[:-1])
            both = torch.cat([values.to(logits.dtype).expand(*shape, -1), code.expand(*shape, -1)], -1)
            pyro.sample("z", self.normal.distribution(self.encoder(both)))
