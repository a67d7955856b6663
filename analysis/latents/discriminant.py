"""A linear classifier of data: multinomial logistic regression with a ridge penalty, on arrays alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae.errors import ArgumentError

PENALTY = 1.0  # of the squared weights, beside the sum of the data's losses: one observation's worth


@dataclass(frozen=True, eq=False)
class Discriminant:
    """p(label | x) = softmax(((x - loc) / scale) weight + bias).

    Attributes:
        classes: The C labels.
        weight: (D, C).
        bias: (C,).
        loc: (D,), mean of the data that it was fitted to.
        scale: One number for all of x, so that a pixel that hardly moves stays one.
    """

    classes: tuple[Any, ...]
    weight: Tensor
    bias: Tensor
    loc: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """(M, *event) -> (M, C), probabilities."""
        return torch.softmax((x.double().flatten(1) - self.loc) / self.scale @ self.weight + self.bias, 1)

    def accuracy(self, x: Tensor, labels: Sequence[Any]) -> float:
        """Share of the data whose likeliest label is theirs."""
        likeliest = self(x).argmax(1).tolist()
        return float(np.mean([self.classes[i] == label for i, label in zip(likeliest, labels, strict=True)]))


def discriminant(x: Tensor, labels: Sequence[Any], penalty: float = PENALTY) -> Discriminant:
    """Fit a linear classifier by penalised maximum likelihood. The loss is strictly convex, so the answer is one, whatever the start.

    Args:
        x: (N, *event).
        labels: N of them, of two classes at least.
        penalty: Of half the squared weights, beside the sum over the data of -log p(label | x).

    Raises:
        ArgumentError: All data have one label.
    """
    from scipy.optimize import minimize  # here, for its import changes the process's warning filters

    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ArgumentError(f"a classifier needs two labels at least, got {list(classes)}")
    flat = x.double().flatten(1)
    loc = flat.mean(0)
    scale = float((flat - loc).square().mean().sqrt()) or 1.0
    features = ((flat - loc) / scale).numpy()
    place = {label: i for i, label in enumerate(classes)}
    target = np.eye(len(classes))[[place[label] for label in labels]]
    shape = (features.shape[1] + 1, len(classes))

    def loss(parameters: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        weight, bias = parameters.reshape(shape)[:-1], parameters.reshape(shape)[-1]
        logits = features @ weight + bias
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        residual = np.exp(log_p) - target
        gradient = np.concatenate([features.T @ residual + penalty * weight, residual.sum(0, keepdims=True)])
        return float(-(target * log_p).sum() + penalty / 2 * np.square(weight).sum()), gradient.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12})
    fitted = torch.from_numpy(found.x.reshape(shape))
    return Discriminant(classes, fitted[:-1], fitted[-1], loc, scale)
