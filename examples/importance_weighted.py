"""VAE against importance-weighted training, k = 1, 5, 50, one and two stochastic layers; and one continued as the other.

The experiments of Burda, Grosse, Salakhutdinov (2016), "Importance weighted autoencoders", tables 1 and 2: a VAE with k samples is
``Trace_ELBO``, the importance-weighted bound ``RenyiELBO(alpha=0)``, and ``ppvae.fit`` takes either. ``PAPER`` names the published
protocol; ``PRESETS`` what is run here, the same for every row: the paper's schedule of learning rates cut off after its first stages.

    python examples/importance_weighted.py --data digits                 # an hour; --quick: seconds, to see that it works
    python examples/importance_weighted.py --data fashion-mnist          # trains, or goes on; then measures
"""

import argparse
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor

import ppvae
from ppvae import guides, models, nn


@dataclass(frozen=True)
class Protocol:
    """How every row is trained and measured, and the sizes of its networks.

    Attributes:
        train_images: The first so many training images; None for all.
        stages: Stage i is 3^i passes at a learning rate of 0.001 * 10^(-i / 7); the paper has stages 0 to 7.
        batch_size: Also what Adam's eps is held against, see ``adam``.
        continued_epochs, continued_rate: Of a row that is continued with the other objective.
        test_images: log p(x) and the ELBO are over the first so many test images.
        particles: K of log p(x).
        active_images: Active units are over the first so many training images, in one binarisation.
        deterministic, latent: Widths of the two hidden layers next to x, and the size of the latent there, with one stochastic layer.
        lower, upper: The latents of two stochastic layers: h1, next to x, and h2.
        between: Widths of the two hidden layers between h1 and h2.
    """

    train_images: int | None = None
    stages: int = 8
    batch_size: int = 20
    continued_epochs: int = 3**7
    continued_rate: float = 1e-4
    test_images: int | None = None
    particles: int = 5000
    active_images: int = 500
    deterministic: int = 200
    latent: int = 50
    lower: int = 100
    upper: int = 50
    between: int = 100
    samples: tuple[int, ...] = (1, 5, 50)

    @property
    def epochs(self) -> int:
        """Passes of all stages, (3^stages - 1) / 2: 3,280 in the paper."""
        return (3**self.stages - 1) // 2


PAPER = Protocol()  # on all 59,600 training images of MNIST, other than here in a fixed order
PRESETS = {
    "mnist": PAPER,
    "fashion-mnist": Protocol(train_images=10_000, stages=4, continued_epochs=10, test_images=1000),
    "digits": Protocol(stages=5, continued_epochs=40, deterministic=100, latent=20, lower=40, upper=20, between=50),
}
QUICK = Protocol(
    train_images=100,
    stages=2,
    continued_epochs=2,
    test_images=20,
    particles=50,
    active_images=50,
    deterministic=16,
    latent=6,
    lower=8,
    upper=4,
    between=8,
    samples=(1, 3),
)


def rate(epoch: int) -> float:
    """The paper's learning rate over 0.001 after so many passes: 10^(-i / 7) in stage i, which begins at pass (3^i - 1) / 2."""
    stage = next(i for i in range(64) if epoch < (3 ** (i + 1) - 1) // 2)
    return float(10 ** (-stage / 7))


def adam(protocol: Protocol, lr: float = 1e-3) -> functools.partial[torch.optim.Adam]:
    """The paper's Adam, whose eps of 1e-4 meets the gradient of a batch's sum: ours is of its mean, 1 / batch_size as large."""
    return functools.partial(torch.optim.Adam, lr=lr, betas=(0.9, 0.999), eps=1e-4 / protocol.batch_size)


def objective(name: str, k: int) -> ELBO:
    """The mean of k ELBO terms (VAE) or the log of the mean of k weights (IWAE); both are one number a datum, summed over the batch."""
    if name == "VAE":
        return Trace_ELBO(num_particles=k, vectorize_particles=True, max_plate_nesting=1)
    return RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True, max_plate_nesting=1)


def normal(row: Tensor) -> dist.Independent:
    """(..., 2 Z) -> N over R^Z; the row holds (loc, log scale)."""
    loc, log_scale = row.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


class TwoLayers(PyroModule):
    """h2 ~ N(0, I), h1 | h2 ~ N(loc(h2), diag scale(h2)^2), x_d | h1 ~ Bernoulli(sigmoid(logit_d(h1)))."""

    def __init__(self, pixels: int, protocol: Protocol) -> None:
        super().__init__()
        p = protocol
        self.upper = p.upper
        self.to_h1 = nn.MLP(p.upper, [p.between] * 2, 2 * p.lower, activation=torch.nn.Tanh)
        self.to_x = nn.MLP(p.lower, [p.deterministic] * 2, pixels, activation=torch.nn.Tanh)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            h2 = pyro.sample("h2", dist.Normal(x.new_zeros(self.upper), 1.0).to_event(1))
            h1 = pyro.sample("h1", normal(self.to_h1(h2)))
            pyro.sample("x", dist.Bernoulli(logits=self.to_x(h1)).to_event(1), obs=x)


class BottomUp(PyroModule):
    """q(h1 | x) q(h2 | h1), each a diagonal Normal."""

    def __init__(self, pixels: int, protocol: Protocol) -> None:
        super().__init__()
        p = protocol
        self.from_x = nn.MLP(pixels, [p.deterministic] * 2, 2 * p.lower, activation=torch.nn.Tanh)
        self.from_h1 = nn.MLP(p.lower, [p.between] * 2, 2 * p.upper, activation=torch.nn.Tanh)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            h1 = pyro.sample("h1", normal(self.from_x(x)))
            pyro.sample("h2", normal(self.from_h1(h1)))


def pair(layers: int, train: ppvae.data.Data, protocol: Protocol) -> tuple[torch.nn.Module, torch.nn.Module]:
    """An untrained model and guide: Glorot's uniform weights, no biases but the output's, which starts at the logit of the pixel means."""
    p, pixels = protocol, train.event_shape[0]
    pyro.set_rng_seed(123)
    if layers == 2:
        model, guide = TwoLayers(pixels, p), BottomUp(pixels, p)
        output = model.to_x
    else:
        output = nn.MLP(p.latent, [p.deterministic] * 2, pixels, activation=torch.nn.Tanh)
        model = models.Bernoulli(output, latent_dim=p.latent)
        encoder = nn.MLP(pixels, [p.deterministic] * 2, 2 * p.latent, activation=torch.nn.Tanh)
        guide = guides.DiagonalNormal(encoder, latent_dim=p.latent)
    for part in (*model.modules(), *guide.modules()):
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(part.weight)
            torch.nn.init.zeros_(part.bias)
    means = train.raw.double().mean(0) / train.levels  # of the grey values: those of the draws, without their noise
    with torch.no_grad():
        output.layers[-1].bias.copy_(means.clamp(0.001, 0.999).logit())
    return model, guide


@dataclass(frozen=True)
class Row:
    """A row of the table: what is trained, and from where."""

    layers: int
    objective: str
    k: int
    start: "Row | None" = None  # the row whose pair is trained on, at the lower rate

    @property
    def name(self) -> str:
        """Of its folder."""
        own = f"{self.objective.lower()}-k{self.k}"
        return f"{self.layers}-layer-{own}" if self.start is None else f"{self.start.name}-as-{own}"


def rows(protocol: Protocol) -> Iterator[Row]:
    """One and two layers: the VAE for each k, and the importance-weighted bound where it is another objective (k > 1)."""
    for layers in (1, 2):
        for k in protocol.samples:
            yield Row(layers, "VAE", k)
            if k > 1:
                yield Row(layers, "IWAE", k)


def continued(protocol: Protocol) -> Iterator[Row]:
    """The paper's table 2, one layer: each continued as the other; and as itself, since more training alone changes a pair too."""
    most = max(protocol.samples)
    vae, iwae = Row(1, "VAE", 1), Row(1, "IWAE", most)
    for start in (vae, iwae):
        yield Row(1, "VAE", 1, start)
        yield Row(1, "IWAE", most, start)


def trained(row: Row, train: ppvae.data.Data, protocol: Protocol, out: Path) -> ppvae.Run:
    """Train a row, go on with it, or read it where it is finished."""
    model, guide = pair(row.layers, train, protocol)
    if row.start is not None:
        ppvae.load(out / row.start.name, model, guide)  # puts the start's parameters into these modules
    first = row.start is None
    return ppvae.fit(
        model,
        guide,
        train,
        objective=objective(row.objective, row.k),
        optimizer=adam(protocol, 1e-3 if first else protocol.continued_rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate) if first else None,
        epochs=protocol.epochs if first else protocol.continued_epochs,
        batch_size=protocol.batch_size,
        seed=0 if first else 1,
        out=out / row.name,
        resume=True,
    )
