"""Deep Markov model: z_t | z_{t-1} ~ N(transition(z_{t-1})), x_t | z_t ~ likelihood(emission(z_t)), sequences of unequal lengths."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.families import DiagonalNormal


@recorded
class DeepMarkov(PyroModule):
    """p(x, z) = prod_t p(z_t | z_{t-1}) p(x_t | z_t), t = 1, ..., length, at the sites "z_1", ..., "z_T" and "x"; z_0 is learned.

    A batch is a dict of x, (N, T, *event), and lengths, (N,). What stands behind the end of a sequence is not looked at. The latents
    there are standard Normal in model and guide alike, and so cancel: every datum has T of them, and no latent is masked.

    Args:
        transition: (..., Z) -> (..., 2 Z): (loc, log scale) of z_t.
        emission: (..., Z) -> (..., outputs).
        likelihood: Maps the emission's output to a distribution of the event shape of x_t (``models.likelihoods``, or a lambda).
        latent_dim: Z.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models, sec. 3.
        Pyro's examples/dmm.
    """

    def __init__(
        self, transition: nn.Module, emission: nn.Module, likelihood: Callable[[Tensor], TorchDistribution], latent_dim: int
    ) -> None:
        super().__init__()
        self.transition, self.emission, self.likelihood = transition, emission, likelihood
        self.family = DiagonalNormal(latent_dim)
        self.start = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: dict[str, Tensor]) -> None:
        """Observe the sequences, each to its own length.

        Raises:
            ShapeError: The batch is no dict of x and lengths, or a length does not lie in 1..T.
        """
        values, lengths = _sequences(x)
        inside = torch.arange(values.shape[1], device=values.device) < lengths[:, None]  # (N, T)
        with pyro.plate("data", len(values), dim=-1):
            z: Tensor = self.start
            path: list[Tensor] = []
            for t, there in enumerate(inside.unbind(1)):
                row = torch.where(there[:, None], self.transition(z), 0)  # a row of zeros is N(0, I)
                z = pyro.sample(f"z_{t + 1}", self.family.distribution(row))
                path.append(z)
            likelihood = self.likelihood(self.emission(torch.stack(path, -2))).mask(inside)
            pyro.sample("x", likelihood.to_event(1), obs=values)


@recorded
class GatedTransition(nn.Module):
    """loc = (1 - g) (W z + b) + g h(z), log scale = log softplus(V relu(h(z)) + c), with gates g(z) in (0, 1); (..., Z) -> (..., 2 Z).

    Args:
        latent_dim: Z.
        hidden: Width of the hidden layers of g and h.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models, sec. 5.
    """

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, latent_dim), nn.Sigmoid())
        self.proposed = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, latent_dim))
        self.linear = nn.Linear(latent_dim, latent_dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.spread = nn.Linear(latent_dim, latent_dim)

    def forward(self, z: Tensor) -> Tensor:
        """z_{t-1} -> (loc, log scale) of z_t."""
        gate, proposed = self.gate(z), self.proposed(z)
        loc = (1 - gate) * self.linear(z) + gate * proposed
        return torch.cat([loc, nn.functional.softplus(self.spread(proposed.relu())).log()], -1)


def _sequences(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(x, dict) or not x.keys() >= {"x", "lengths"}:
        came = f"a dict of {', '.join(map(repr, x))}" if isinstance(x, dict) else f"a {type(x).__name__}"
        raise ShapeError(
            f"needed a dict of 'x' and 'lengths', and {came} came",
            mend="{'x': x, 'lengths': lengths}, (N, T, *event) and (N,); lengths of T where no sequence ends early",
        )
    return x["x"], x["lengths"]
