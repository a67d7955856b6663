"""A point for each datum, z = encoder(x): an autoencoder's encoder. It trains; it has no density, and so no bound on log p(x)."""

from __future__ import annotations

from typing import NoReturn

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import nn

from ppvae.batches import Batch, num_data
from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.modules import Program


@recorded
class Delta(PyroModule):
    """q(z | x) = the point mass at encoder(x), Z outputs, at the site "z".

    With ``models.Autoencoder`` the loss is an autoencoder's; with a model that has a prior, that of the most probable z of each datum.
    Neither can be measured as a probability, and ``analysis`` says so. To look at its codes hand in ``guide.forward``, which
    ``reconstruct`` and ``analysis.latents`` take as they take any program.

    Args:
        encoder: (N, *event) -> (N, Z).
    """

    passes_gradients = True  # it prepares for measurements alone, which it refuses

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Batch) -> None:
        """The point of each x, (N, *event)."""
        with pyro.plate("data", num_data(x), dim=-1):
            pyro.sample("z", dist.Delta(self.encoder(x), event_dim=1))

    def prepared(self, model: Program, x: Batch) -> NoReturn:
        """Refuse to be measured.

        Raises:
            ShapeError: Always: a point mass has no density on R^Z.
        """
        raise ShapeError(
            "the guide's site 'z' is a point mass, which has no density over z: log p(x, z) - log q(z | x) is no log weight, and its mean "
            "no bound on log p(x)",
            where="guides.Delta, site 'z'",
            mend=[
                "a guide with a density, for example guides.DiagonalNormal, and a model with a prior",
                "for codes and reconstructions alone: hand in guide.forward",
            ],
        )
