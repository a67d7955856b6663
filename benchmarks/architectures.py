"""The networks that are measured, as numbers: sizes, and how many floating-point operations their arithmetic takes.

Nothing here needs torch or JAX, so that every environment can read it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

PIXELS = 784


@dataclass(frozen=True)
class Architecture:
    """Encoder 784 - hidden - (Z + Z), decoder Z - reversed hidden - 784 of Bernoulli logits; or two strided convolutions a side.

    Attributes:
        name: As in the table.
        hidden: Widths of the encoder's hidden layers; empty for the convolutional one.
        latent_dim: Z.
        activation: "tanh" or "relu".
    """

    name: str
    hidden: tuple[int, ...]
    latent_dim: int
    activation: str

    @property
    def convolutional(self) -> bool:
        """Whether the networks are those of ``ppvae.nn.ConvEncoder`` and ``ConvDecoder``."""
        return not self.hidden

    @property
    def encoder_products(self) -> list[int]:
        """Multiplications of each layer of the encoder for one datum, from the data on."""
        z = self.latent_dim
        if self.convolutional:  # 4 x 4 kernels, stride 2: 28 -> 14 -> 7
            return [14 * 14 * 32 * 16, 7 * 7 * 64 * 32 * 16, 64 * 7 * 7 * 2 * z]
        return [a * b for a, b in itertools.pairwise([PIXELS, *self.hidden, 2 * z])]

    @property
    def decoder_products(self) -> list[int]:
        """Multiplications of each layer of the decoder for one row."""
        z = self.latent_dim
        if self.convolutional:
            return [z * 64 * 7 * 7, 7 * 7 * 64 * 32 * 16, 14 * 14 * 32 * 16]
        return [a * b for a, b in itertools.pairwise([z, *reversed(self.hidden), PIXELS])]

    def step_flop(self, batch_size: int, num_particles: int = 1) -> float:
        """Operations of one gradient of the ELBO or of the importance-weighted bound.

        A layer costs two operations a product forward, as many for the gradient of its weights and as many for that of its input,
        which the first layer does not need. The encoder runs once a datum, the decoder once a particle.
        """
        encoder, decoder = self.encoder_products, self.decoder_products
        return batch_size * 2.0 * (3 * sum(encoder) - encoder[0] + 3 * num_particles * sum(decoder))

    @property
    def likelihood_flop(self) -> float:
        """Operations of one evaluation of log p(x | z)."""
        return 2.0 * sum(self.decoder_products)

    @property
    def latent_gradient_flop(self) -> float:
        """Operations of one gradient of log p(x | z) by z: forward and the gradients of the inputs, none of weights."""
        return 2.0 * self.likelihood_flop


ARCHITECTURES = {
    "A1": Architecture("A1", (200, 200), 50, "tanh"),
    "A2": Architecture("A2", (256,), 2, "relu"),
    "A3": Architecture("A3", (), 16, "relu"),
}
