"""The networks in torch, by hand, and dynamically binarised batches: the same for every rival that runs on torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.architectures import PIXELS, Architecture
from benchmarks.job import Job

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def perceptron(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), activation()]
    return nn.Sequential(*layers[:-1])


def encoder(architecture: Architecture) -> nn.Sequential:
    """(B, 784) -> (B, 2 Z): loc and log scale."""
    body, width = features(architecture)
    return nn.Sequential(*body, nn.Linear(width, 2 * architecture.latent_dim))


def features(architecture: Architecture) -> tuple[nn.Sequential, int]:
    """The encoder without its last layer, and how many features it gives."""
    activation = ACTIVATIONS[architecture.activation]
    if architecture.convolutional:
        body = nn.Sequential(
            nn.Unflatten(-1, (1, 28, 28)),
            nn.Conv2d(1, 32, 4, stride=2, padding=1),
            activation(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            activation(),
            nn.Flatten(),
        )
        return body, 64 * 7 * 7
    return nn.Sequential(*perceptron([PIXELS, *architecture.hidden], activation), activation()), architecture.hidden[-1]


def decoder(architecture: Architecture) -> nn.Sequential:
    """(..., Z) -> (..., 784) logits; the convolutional one takes (B, Z)."""
    activation, z = ACTIVATIONS[architecture.activation], architecture.latent_dim
    if not architecture.convolutional:
        return perceptron([z, *reversed(architecture.hidden), PIXELS], activation)
    return nn.Sequential(
        nn.Linear(z, 64 * 7 * 7),
        nn.Unflatten(-1, (64, 7, 7)),
        activation(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        activation(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        nn.Flatten(),
    )


def fill(parameters: Iterable[nn.Parameter], job: Job) -> None:
    """Put the arrays of the job's weights into parameters of the same order; two heads of one layer take a half each."""
    if not job.weights:
        return
    with np.load(job.weights) as stored, torch.no_grad():
        arrays = [torch.from_numpy(stored[f"p{i}"]) for i in range(len(stored.files))]
        pending: list[Tensor] = []
        for parameter in parameters:
            array = pending.pop(0) if pending else arrays.pop(0)
            if array.shape != parameter.shape:  # loc weight, loc bias, then the other head's
                half = len(parameter)
                bias = arrays.pop(0)
                pending = [bias[:half], array[half:], bias[half:]]
                array = array[:half]
            parameter.copy_(array)


class Batches:
    """Batches of 0 and 1, drawn anew from the grey values at every presentation, in the order of a permutation."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(job.seed)
        grey = torch.from_numpy(np.load(job.images))
        self.grey = grey.float().div_(255).to(job.device)
        self.batch_size = job.batch_size
        self._rows = iter(())

    def __call__(self) -> Tensor:
        """The next batch, (B, 784)."""
        rows = next(self._rows, None)
        if rows is None:
            order = torch.randperm(len(self.grey), device=self.grey.device)
            self._rows = iter(order.split(self.batch_size)[: len(order) // self.batch_size])
            rows = next(self._rows)
        return torch.bernoulli(self.grey[rows])


def binary(job: Job) -> Tensor:
    """The first images, white where at least half white, (N, 784): what evaluation measures on."""
    return torch.from_numpy(np.load(job.images, mmap_mode="r")[: job.num_data] >= 128).float().to(job.device)


def looped(step: Callable[[], float], job: Job) -> Callable[[int], float]:
    """So many steps, each of which returns its loss per datum, and their mean."""

    def run(iterations: int) -> float:
        total = 0.0
        for _ in range(iterations):
            total += step()
        finish(job)
        return total / iterations

    return run


def finish(job: Job) -> None:
    """Wait for the device."""
    if job.device.startswith("cuda"):
        torch.cuda.synchronize()
