"""Pairs as users of Pyro write them, with what is to become of their steps: captured, or eager for a reason that is told.

Each function builds a new pair (model, guide). Sizes are those of a test: 16 data of 12 dimensions, 8 hidden units.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.constraints as pyro_constraints
import pyro.distributions.transforms as T
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

N, D, H, Z = 16, 12, 8, 3


@dataclass(frozen=True)
class Entry:
    """A pair, what its step is taken on, and what is to become of it.

    Attributes:
        make: Builds the pair.
        args: Builds the step's arguments.
        objective: Builds the objective.
        options: Of ``ppvae.SVI``: beta, likelihood_weight, clip_norm.
        eager: Words of the reason for which steps run eagerly; empty where they are captured.
    """

    make: Callable[[], tuple[Any, Any]]
    args: Callable[[], tuple[Any, ...]]
    objective: Callable[[], Any] = Trace_ELBO
    options: dict[str, Any] = field(default_factory=dict)
    eager: str = ""


def binary(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randint(0, 2, shape or (N, D), generator=torch.Generator().manual_seed(1)).to(torch.get_default_dtype()),)


def real(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(*(shape or (N, D)), generator=torch.Generator().manual_seed(2)),)


def counts() -> tuple[Tensor]:
    return (torch.poisson(torch.full((N, D), 3.0), generator=torch.Generator().manual_seed(3)),)


def mlp(inputs: int, outputs: int, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, H), nn.Tanh(), nn.Linear(H, outputs), *last)


# Plain functions


def functions(extra: Callable[[], Any] = lambda: None, scale: Callable[[], Any] = lambda: 1.0):
    """Two functions with ``pyro.module``; the model does something ``extra`` and scales its prior."""
    decoder, encoder = mlp(Z, D), mlp(D, 2 * Z)

    def model(x):
        pyro.module("decoder", decoder)
        extra()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0 * scale()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


class VAE(nn.Module):
    """The form of Pyro's examples/vae/vae.py."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(D, 2 * Z), mlp(Z, D, nn.Sigmoid())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], Z, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], Z, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, D))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_log_scale = self.encoder(x.reshape(-1, D)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, z_log_scale.exp()).to_event(1))


def bound():
    vae = VAE()
    return vae.model, vae.guide


class Regression(PyroModule):
    """Weights with a prior, a constrained noise scale: the form of Pyro's tutorial on Bayesian regression."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](D - 1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, D - 1]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))
        self.sigma = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x):
        mean = self.linear(x[:, :-1]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, self.sigma), obs=x[:, -1])


def auto_normal():
    model = Regression()
    return model, AutoNormal(model)


def auto_multivariate_normal():
    model = Regression()
    return model, AutoMultivariateNormal(model)


class Decoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Sequential](PyroModule[nn.Linear](Z, H), PyroModule[nn.Tanh](), PyroModule[nn.Linear](H, D))
        self.scale = PyroParam(lambda: torch.full((D,), 0.5), constraint=constraints.positive, event_dim=1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](D, 2 * Z)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def pyro_modules():
    return Decoder(), Encoder()


def constrained():
    """Everything by ``pyro.param``: weights, a positive scale, a simplex."""

    def model(x):
        weight = pyro.param("weight", lambda: torch.linspace(-1, 1, 2 * D).reshape(2, D))
        scale = pyro.param("scale", torch.ones(D), constraint=constraints.positive)
        share = pyro.param("share", torch.ones(2) / 2, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((z * share) @ weight, scale).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), 2))
        scale = pyro.param("q_scale", lambda: torch.ones(len(x), 2), constraint=pyro_constraints.softplus_positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def subsampled():
    """The plate draws its rows by itself; a global latent beside the local ones."""
    decoder, encoder = mlp(Z, D), mlp(D, 2 * Z)

    def model(x):
        pyro.module("decoder", decoder)
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z) + shift, 0.5).to_event(1), obs=x[rows])

    def guide(x):
        pyro.module("encoder", encoder)
        loc = pyro.param("shift_loc", torch.tensor(0.1))
        pyro.sample("shift", dist.Normal(loc, pyro.param("shift_scale", torch.tensor(0.3), constraint=constraints.positive)))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            mean, log_scale = encoder(x[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    return model, guide


def two_layers():
    top, bottom, up, down = mlp(2, 2 * Z), mlp(Z, D), mlp(D, 2 * Z), mlp(Z, 4)

    def model(x):
        pyro.module("top", top)
        pyro.module("bottom", bottom)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc, log_scale = top(z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=bottom(z1)).to_event(1), obs=x)

    def guide(x):
        pyro.module("up", up)
        pyro.module("down", down)
        with pyro.plate("data", len(x)):
            loc, log_scale = up(x).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = down(z1).chunk(2, -1)
            pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def flow(spline: bool = False):
    """Two flows over the guide's base, by Pyro's transforms."""
    model, _ = functions()
    encoder, planar = mlp(D, 2 * Z), T.planar(Z)
    second = T.spline_coupling(Z, hidden_dims=[H], count_bins=4) if spline else T.affine_autoregressive(Z, hidden_dims=[H])

    def guide(x):
        for name, module in (("encoder", encoder), ("planar", planar), ("second", second)):
            pyro.module(name, module)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            base = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar, second]))

    return model, guide


def gamma_latents():
    """Implicit reparameterisation."""
    encoder = mlp(D, 2 * Z, nn.Softplus())

    def model(x):
        weight = pyro.param("weight", torch.ones(Z, D), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((Z,), 2.0), torch.ones(Z)).to_event(1))
            pyro.sample("x", dist.Poisson(z @ weight).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            concentration, rate = (encoder(x) + 0.1).chunk(2, -1)
            pyro.sample("z", dist.Gamma(concentration, rate).to_event(1))

    return model, guide


def mixture(enumerate_: bool = False):
    """A discrete latent, by its score function or summed out."""
    encoder = mlp(D, 3)

    def model(x):
        locs = pyro.param("locs", lambda: torch.linspace(-1, 1, 3 * D).reshape(3, D))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=encoder(x)))

    return model, config_enumerate(guide) if enumerate_ else guide


class Convolutional(nn.Module):
    """Convolution, BatchNorm and dropout, on images (N, 1, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 2 * Z)
        )
        self.decoder = nn.Sequential(
            nn.Linear(Z, 64),
            nn.BatchNorm1d(64, momentum=None),
            nn.Unflatten(1, (4, 4, 4)),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 3, padding=1),
        )

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def convolutional():
    vae = Convolutional()
    return vae.model, vae.guide


class BatchNormalized(Convolutional):
    """With the usual momentum throughout."""

    def __init__(self):
        super().__init__()
        self.decoder[1] = nn.BatchNorm1d(64)


def batch_normalized():
    vae = BatchNormalized()
    return vae.model, vae.guide


class Sequences(nn.Module):
    """Sequences of unequal length: an emission a step, masked behind the end."""

    def __init__(self, steps=3):
        super().__init__()
        self.rnn, self.head, self.transition, self.emitter = (
            nn.GRU(2, H, batch_first=True),
            nn.Linear(H, 4),
            nn.Linear(2, 2),
            nn.Linear(2, 2),
        )
        self.steps = steps

    def model(self, x, lengths):
        pyro.module("sequences", self)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in pyro.markov(range(self.steps)):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(self.transition(z), 1.0).to_event(1))
                    pyro.sample(f"x_{t}", dist.Normal(self.emitter(z), 0.5).to_event(1), obs=x[:, t])

    def guide(self, x, lengths):
        pyro.module("sequences", self)
        hidden, _ = self.rnn(x)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(self.steps)):
                loc, log_scale = self.head(hidden[:, t]).chunk(2, -1)
                with poutine.mask(mask=(t < lengths)):
                    pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def sequences():
    pair = Sequences()
    return pair.model, pair.guide


def sequences_data() -> tuple[Tensor, Tensor]:
    return real(N, 3, 2)()[0], torch.arange(N) % 3 + 1


def of_a_tuple():
    """Data as a tuple: inputs and labels."""
    decoder, encoder = mlp(Z + 2, D), mlp(D + 2, 2 * Z)

    def model(batch):
        x, y = batch
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(torch.cat([z, y], -1))).to_event(1), obs=x)

    def guide(batch):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(batch[0])):
            loc, log_scale = encoder(torch.cat(batch, -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def of_a_dict():
    """Data as a dict, with a number beside the tensors."""
    model, guide = of_a_tuple()
    return lambda batch: model((batch["x"], batch["y"])), lambda batch: guide((batch["x"], batch["y"]))


def labels() -> Tensor:
    return torch.eye(2)[torch.arange(N) % 2]


def vectorized():
    """Networks that take particles from the left."""
    model, guide = pyro_modules()
    return model, guide


def scaled():
    model, guide = functions()
    return poutine.scale(model, scale=1 / N), poutine.scale(guide, scale=1 / N)


def tied():
    """One matrix encodes and, transposed, decodes; a view of it is the prior's mean."""
    weight = nn.Parameter(torch.linspace(-1, 1, D * Z).reshape(D, Z))
    module = nn.Module()
    module.weight, module.again = weight, weight

    def model(x):
        pyro.module("tied", module)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(weight[0].tanh(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ module.again.t(), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("tied", module)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight / D, 0.3).to_event(1))

    return model, guide


def in_a_list():
    """Networks in a list, dropout in one: no ``pyro.module``, no look at the functions' variables finds a parameter."""
    networks = [mlp(Z, D), nn.Sequential(nn.Linear(D, 2 * Z), nn.Dropout(0.2))]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), torch.tensor(1.5)).to_event(1))
            pyro.sample("x", dist.Normal(networks[0](z), 0.5).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = networks[1](x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


ZOO = {
    "functions with pyro.module": Entry(functions, binary()),
    "bound methods": Entry(bound, binary()),
    "PyroModule": Entry(pyro_modules, real()),
    "constrained parameters": Entry(constrained, real()),
    "subsampling": Entry(subsampled, real()),
    "two layers": Entry(two_layers, binary()),
    "flow guide": Entry(flow, binary()),
    "spline flow": Entry(lambda: flow(spline=True), binary(), eager="depends on values"),
    "AutoNormal": Entry(auto_normal, real()),
    "AutoMultivariateNormal": Entry(auto_multivariate_normal, real()),
    "Gamma latents": Entry(gamma_latents, counts),
    "score function": Entry(mixture, real()),
    "score function, particles": Entry(mixture, real(), lambda: Trace_ELBO(num_particles=3)),
    "enumeration": Entry(lambda: mixture(True), real(), lambda: TraceEnum_ELBO(max_plate_nesting=1), eager="TraceEnum_ELBO"),
    "TraceGraph": Entry(functions, binary(), TraceGraph_ELBO, eager="TraceGraph_ELBO"),
    "Jit": Entry(functions, binary(), JitTrace_ELBO, eager="JitTrace_ELBO"),
    "BatchNorm and dropout": Entry(batch_normalized, binary(N, 1, 4, 4)),
    "BatchNorm by cumulative average": Entry(convolutional, binary(N, 1, 4, 4), eager="Python number"),
    "sequences with a mask": Entry(sequences, sequences_data),
    "a tuple": Entry(of_a_tuple, lambda: ((*binary()(), labels()),)),
    "a dict": Entry(of_a_dict, lambda: ({"x": binary()()[0], "y": labels(), "size": 16},)),
    "particles in a loop": Entry(functions, binary(), lambda: Trace_ELBO(num_particles=3)),
    "particles in a plate": Entry(vectorized, real(), lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
    "mean field": Entry(functions, binary(), TraceMeanField_ELBO),
    "mean field without a closed form": Entry(flow, binary(), TraceMeanField_ELBO),
    "importance weighted": Entry(functions, binary(), lambda: RenyiELBO(alpha=0, num_particles=4)),
    "importance weighted in a plate": Entry(
        vectorized, real(), lambda: RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    ),
    "Renyi at alpha 0.5": Entry(functions, binary(), lambda: RenyiELBO(alpha=0.5, num_particles=4), eager="alpha = 0"),
    "poutine.scale": Entry(scaled, binary()),
    "scheduled beta": Entry(functions, binary(), options={"beta": lambda step: min(1.0, step / 20)}),
    "scheduled beta over a global latent": Entry(subsampled, real(), options={"beta": lambda step: min(1.0, step / 20)}),
    "scheduled beta, mean field": Entry(functions, binary(), TraceMeanField_ELBO, {"beta": lambda step: min(1.0, step / 20)}),
    "weights and clipping": Entry(functions, binary(), options={"beta": 0.5, "likelihood_weight": 2.0, "clip_norm": 5.0}),
    "tied weights": Entry(tied, real()),
    "modules in a list": Entry(in_a_list, real()),
}


# Liars: what they compute is no function of parameters and batch


def closure_counter():
    """Anneals the prior by a counter in a list that it closes over."""
    calls = [0]

    def count():
        calls[0] += 1

    return functions(count, lambda: min(2.0, 1.0 + calls[0] / 30))


class Attribute(VAE):
    """Counts its own steps."""

    step = 0

    def model(self, x):
        self.step += 1
        with poutine.scale(scale=min(1.0, self.step / 30)):
            return super().model(x)


def attribute_counter():
    vae = Attribute()
    return vae.model, vae.guide


COUNTED = 0


def count_globally() -> None:
    global COUNTED
    COUNTED += 1


def global_counter():
    return functions(count_globally, lambda: min(2.0, 1.0 + COUNTED / 30))


def function_attribute():
    """The counter is an attribute of the function."""

    def scale():
        scale.calls += 1  # type: ignore[attr-defined]
        return min(2.0, 1.0 + scale.calls / 30)  # type: ignore[attr-defined]

    scale.calls = 0  # type: ignore[attr-defined]
    return functions(scale=scale)


def default_argument():
    """The counter is a default argument."""

    def scale(calls=[0]):  # noqa: B006
        calls[0] += 1
        return min(2.0, 1.0 + calls[0] / 30)

    return functions(scale=scale)


def class_counter():
    """The counter belongs to the class."""

    class Counting(VAE):
        calls = 0

        def model(self, x):
            type(self).calls += 1
            with poutine.scale(scale=min(1.0, type(self).calls / 30)):
                return super().model(x)

    vae = Counting()
    return vae.model, vae.guide


def in_a_comprehension():
    """A number read by a function inside the function only."""
    return functions(lambda: [count_globally() for _ in range(1)], lambda: sum(1.0 + COUNTED / 30 for _ in range(1)))


def unseen_counter():
    """The counter is an iterator, in which no number can be seen; the graph shows that it changes."""
    calls = itertools.count()
    return functions(scale=lambda: 1.0 + next(calls) / 30)


def running_mean():
    """A tensor attribute moved by every run."""
    state = SimpleNamespace(mean=torch.ones(()))

    def move():
        state.mean = 0.9 * state.mean + 0.05
        return state.mean.detach()

    return functions(scale=move)


def born_late(counter: Callable[[], int]):
    """A parameter that joins when the counter says 20."""
    decoder, encoder = mlp(Z, D), mlp(D, 2 * Z)

    def model(x):
        pyro.module("decoder", decoder)
        shift = pyro.param("shift", torch.zeros(D)) if counter() >= 20 else 0.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z) + shift).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def born_by_a_seen_counter():
    calls = [0]

    def counter():
        calls[0] += 1
        return calls[0]

    return born_late(counter)


class Clock:
    """What the world around a training loop keeps: no number of the program's own, and none that a look at it finds."""

    __slots__ = ("step",)

    def __init__(self):
        self.step = 0


def born_by_a_clock(clock: Clock):
    return born_late(lambda: clock.step)


def on_a_value():
    model, guide = functions()

    def branching(x):
        return model(x) if x.mean() > 0.5 else poutine.scale(model, scale=0.5)(x)

    return branching, guide


def to_the_longest():
    """A loop whose length the data decide."""
    pair = Sequences()

    def shortened(program):
        def run(x, lengths):
            pair.steps = int(lengths.max())
            return program(x, lengths)

        return run

    return shortened(pair.model), shortened(pair.guide)


def numpy_noise():
    return functions(scale=lambda: 1.0 + 0.1 * np.random.rand())


def numpy_noise_of_its_own():
    generator = np.random.default_rng(0)
    return functions(scale=lambda: 1.0 + 0.1 * generator.random())


def python_noise():
    import random

    return functions(scale=lambda: 1.0 + 0.1 * random.random())


def own_generator():
    generator = torch.Generator().manual_seed(0)
    return functions(scale=lambda: 1.0 + 0.1 * torch.rand((), generator=generator))


LIARS = {
    "a counter in a closed-over list": Entry(closure_counter, binary(), eager=r"number .*calls\[0\] went from 2 to 3"),
    "a counter as an attribute": Entry(attribute_counter, binary(), eager="number step went from 2 to 3"),
    "a counter as a global": Entry(global_counter, binary(), eager=r"number .*COUNTED went from \d+ to \d+"),
    "a counter as a function's attribute": Entry(function_attribute, binary(), eager=r"number .*calls went from 2 to 3"),
    "a counter as a default argument": Entry(default_argument, binary(), eager=r"number .*calls\[0\] went from 2 to 3"),
    "a counter of the class": Entry(class_counter, binary(), eager="number calls went from 2 to 3"),
    "a counter in a comprehension": Entry(in_a_comprehension, binary(), eager=r"number .*COUNTED went from \d+ to \d+"),
    "a counter that cannot be seen": Entry(
        unseen_counter, binary(), eager="two captures differ: the number 1.06667 .* is 1.1 the next time"
    ),
    "a running mean": Entry(running_mean, binary(), eager="mean"),
    "a parameter born at step 20": Entry(born_by_a_seen_counter, binary(), eager=r"number .*calls\[0\] went from 2 to 3"),
    "an if on a value": Entry(on_a_value, binary(), eager="Python number"),
    "a loop to the longest sequence": Entry(to_the_longest, sequences_data, eager="Python number"),
    "numpy noise": Entry(numpy_noise, binary(), eager="numpy"),
    "numpy noise of its own": Entry(numpy_noise_of_its_own, binary(), eager="numpy|generator"),
    "Python noise": Entry(python_noise, binary(), eager="Python's"),
    "a generator of its own": Entry(own_generator, binary(), eager="[Gg]enerator"),
}
