"""Networks: a multi-layer perceptron, a convolutional encoder and decoder for small square images, a recurrent one for sequences.

All take any leading dimensions, (..., D), since particles come from the left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError


@recorded
class MLP(nn.Module):
    """A multi-layer perceptron, (..., in_features) -> (..., out_features), linear at its end.

    Args:
        in_features: Size of the last dimension that comes in.
        hidden: Width of each hidden layer, in order; empty for one linear map.
        out_features: Size of the last dimension that goes out.
        activation: Class of the activation after each hidden layer.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features).

        Raises:
            ShapeError: The last dimension is not ``in_features`` long.
        """
        _check_width(self, x, self.in_features)
        return self.layers(x)  # type: ignore[no-any-return]


@recorded
class ConvEncoder(nn.Module):
    """Square images, flat or not, to features: two strided convolutions and a linear layer.

    Args:
        size: Height and width, a multiple of 4 (8 and 28 among them).
        out_features: Size of the last dimension that goes out.
        channels: Channels after the first convolution; twice as many after the second.
        activation: Class of the activation after each convolution.
    """

    def __init__(self, size: int, out_features: int, channels: int = 32, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        _check_size(size)
        self.size = size
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1),
            activation(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(2 * channels * (size // 4) ** 2, out_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., size * size) or (..., size, size) -> (..., out_features).

        Raises:
            ShapeError: The image is of another size.
        """
        if x.shape[-2:] == (self.size, self.size) and x.dim() > 2:
            x = x.flatten(-2)
        _check_width(self, x, self.size**2)
        features = self.layers(x.reshape(-1, 1, self.size, self.size))
        return features.reshape(*x.shape[:-1], -1)  # type: ignore[no-any-return]


@recorded
class ConvDecoder(nn.Module):
    """Features to square images, flat: a linear layer and two transposed convolutions.

    Args:
        in_features: Size of the last dimension that comes in.
        size: Height and width of the images, a multiple of 4.
        channels: Channels before the last convolution; twice as many before the one before it.
        activation: Class of the activation before each convolution.
        outputs: Numbers per pixel (2 for a location and a scale).
    """

    def __init__(self, in_features: int, size: int, channels: int = 32, activation: type[nn.Module] = nn.ReLU, outputs: int = 1) -> None:
        super().__init__()
        _check_size(size)
        self.in_features = in_features
        quarter = size // 4
        self.layers = nn.Sequential(
            nn.Linear(in_features, 2 * channels * quarter**2),
            nn.Unflatten(-1, (2 * channels, quarter, quarter)),
            activation(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            activation(),
            nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1),
            nn.Flatten(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(..., in_features) -> (..., outputs * size * size).

        Raises:
            ShapeError: The last dimension is not ``in_features`` long.
        """
        _check_width(self, z, self.in_features)
        images = self.layers(z.reshape(-1, self.in_features))
        return images.reshape(*z.shape[:-1], -1)  # type: ignore[no-any-return]


@recorded
class WithMask(nn.Module):
    """A network of values and mask side by side, for data with missing entries: ``{"x": (N, D), "observed": (N, D)}`` -> network(N, 2 D).

    A hole counts as 0 among the values, so that what stands in it cannot matter.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Values and mask of a batch -> what the network gives."""
        observed = x["observed"]
        values = x["x"].where(observed, 0)
        return self.network(torch.cat([values, observed.to(values)], -1))  # type: ignore[no-any-return]


@recorded
class Recurrent(nn.Module):
    """A GRU over time and a linear map of its states, (..., T, in_features) -> (..., T, out_features).

    Args:
        in_features: Size of the last dimension that comes in.
        hidden: Width of the GRU.
        out_features: Size of the last dimension that goes out.
        backward: Read each sequence from its own end: what comes out at t has seen t and all that follows, else t and all before.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, backward: bool = False) -> None:
        super().__init__()
        self.in_features, self.backward = in_features, backward
        self.gru = nn.GRU(in_features, hidden, batch_first=True)
        self.out = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(..., T, in_features), with lengths (...) where sequences end early, -> (..., T, out_features); behind the end without meaning.

        Raises:
            ShapeError: The last dimension is not ``in_features`` long.
        """
        _check_width(self, x, self.in_features)
        flat = x.reshape(-1, *x.shape[-2:])
        if self.backward:
            time = torch.arange(x.shape[-2], device=x.device)
            end = time.new_tensor(x.shape[-2]) if lengths is None else lengths.expand(x.shape[:-2]).reshape(-1, 1)
            turned = torch.where(time < end, end - 1 - time, time).expand(len(flat), -1)[..., None]  # its own inverse
            states, _ = self.gru(flat.gather(1, turned.expand_as(flat)))
            states = states.gather(1, turned.expand_as(states))
        else:
            states, _ = self.gru(flat)
        return self.out(states).reshape(*x.shape[:-1], -1)  # type: ignore[no-any-return]


@recorded
class TokenEncoder(nn.Module):
    """Texts to features, ``{"tokens": (N, T), "lengths": (N,)}`` -> (N, out_features): embeddings read by a GRU, from the end to the start.

    Args:
        num_tokens: V; tokens are whole numbers in 0..V - 1.
        embedding: Width of a token's embedding.
        hidden: Width of the GRU.
        out_features: Size of the last dimension that goes out.
    """

    def __init__(self, num_tokens: int, embedding: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, embedding)
        self.reader = Recurrent(embedding, hidden, out_features, backward=True)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """What the GRU has seen when it arrives at the first token: all of them. (N, out_features)."""
        return self.reader(self.embedding(x["tokens"]), x["lengths"])[..., 0, :]  # type: ignore[no-any-return]


def _check_width(network: nn.Module, x: Tensor, width: int) -> None:
    if x.dim() == 0 or x.shape[-1] != width:
        raise ShapeError(
            f"{type(network).__name__} needs a last dimension of {width}, got shape {tuple(x.shape)}",
            mend=f"flatten the data to (N, {width}), or build the network for width {x.shape[-1] if x.dim() else 0}",
        )


def _check_size(size: int) -> None:
    if size % 4 or size < 4:
        raise ShapeError(f"the side of the images must be a multiple of 4, got {size}")
