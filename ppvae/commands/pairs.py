"""The programs that the command line knows by name, and how a user's are called: one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppvae import factory, guides, models, noise
from ppvae.batches import tensors
from ppvae.data import Data
from ppvae.errors import DataError, UsageError
from ppvae.models import likelihoods, priors
from ppvae.modules import default_dtype, double
from ppvae.nn import MLP, ConvDecoder, ConvEncoder, WithMask
from ppvae.options import Pair, chosen

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "leaky-relu": nn.LeakyReLU,
}
CONTEXT = 8  # features of x that the maps of a flow see
# Family -> the guide's class and how many numbers its encoder gives for Z latents.
GUIDES: dict[str, tuple[Any, Callable[[int], int]]] = {
    "diagonal": (guides.DiagonalNormal, lambda z: 2 * z),
    "full-rank": (guides.FullRankNormal, lambda z: z + z * (z + 1) // 2),
    "low-rank": (guides.LowRankNormal, lambda z: z * (2 + 2)),
    "mixture": (guides.Mixture, lambda z: 4 * (1 + 2 * z)),
    "flow": (partial(guides.Flow, context_dim=CONTEXT), lambda z: 2 * z + CONTEXT),
    "inverse-autoregressive": (partial(guides.InverseAutoregressive, context_dim=CONTEXT), lambda z: 2 * z + CONTEXT),
    "spline": (partial(guides.Spline, context_dim=CONTEXT), lambda z: 2 * z + CONTEXT),
}
# Likelihood -> how a model is made of decoder, latents and data, and how many outputs an entry takes.
LIKELIHOODS: dict[str, tuple[Callable[[nn.Module, int, Data], Any], int]] = {
    "bernoulli": (lambda decoder, z, data: models.Bernoulli(decoder, z), 1),
    "normal": (lambda decoder, z, data: models.Normal(decoder, z), 1),
    "normal-per-dimension": (lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.NormalPerDimension()), 2),
    "laplace": (lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.LaplaceLearned()), 1),
    "student-t": (lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.StudentT()), 1),
    "beta": (lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.Beta()), 2),
    "continuous-bernoulli": (lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.ContinuousBernoulli()), 1),
    "discretized-logistic": (lambda decoder, z, data: _latent_variable(decoder, z, _discretized(data)), 3 * 5),
    "poisson": (lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.Poisson()), 1),
    "negative-binomial": (
        lambda decoder, z, data: _latent_variable(decoder, z, likelihoods.NegativeBinomial(_width(data, "mlp"))),
        1,
    ),
}


def mlp(data: Data, options: Pair) -> tuple[Any, Any]:
    """Perceptrons on both sides; the decoder's hidden layers are the encoder's in reverse."""
    guide, outputs = GUIDES[chosen("guide", options.guide, list(GUIDES))]
    activation = _activation(options)
    width, z = _width(data, "mlp"), options.latent_dim
    make, per_entry = _likelihood(data, options)
    decoder = MLP(z, list(reversed(options.hidden)), width * per_entry, activation)
    encoder: nn.Module = MLP(width * (2 if data.masked else 1), list(options.hidden), outputs(z), activation)
    encoder = WithMask(encoder) if data.masked else encoder
    return make(decoder, z, data), guide(encoder, latent_dim=z)


def conv(data: Data, options: Pair) -> tuple[Any, Any]:
    """Convolutions on both sides, for small square images."""
    guide, outputs = GUIDES[chosen("guide", options.guide, list(GUIDES))]
    activation = _activation(options)
    width, z = _width(data, "conv"), options.latent_dim
    side, channels = math.isqrt(width), options.hidden[0] if options.hidden else 32
    if side * side != width or side % 4:
        raise DataError(
            f"the program conv needs square images with a side that is a multiple of 4, got {width} numbers a row",
            where=data.name,
            mend=["--program mlp", "--program file.py:function"],
        )
    make, per_entry = _likelihood(data, options)
    decoder = ConvDecoder(z, side, channels, activation, outputs=per_entry)
    encoder = ConvEncoder(side, outputs(z), channels, activation)
    return make(decoder, z, data), guide(encoder, latent_dim=z)


BUILDERS: dict[str, Callable[[Data, Pair], tuple[Any, Any]]] = {"mlp": mlp, "conv": conv}


def pair(data: Data, options: Pair) -> tuple[Any, Any, dict[str, str] | None]:
    """The model, the guide, and where a user's file lies: None for a program of the table."""
    with noise.seeded(options.seed, "programs"):
        if ":" in options.program:
            path, _, name = options.program.rpartition(":")
            file = f"{Path(path).expanduser().resolve()}:{name}"
            if not data.wide:
                return factory.build(file, data.batch(slice(0, 2)))
            with default_dtype(torch.float64):
                model, guide, source = factory.build(file, data.batch(slice(0, 2)))
            double(model, guide)
            return model, guide, source | {"dtype": "float64"}
        if options.program.endswith(".py"):
            raise UsageError(f"'{options.program}' names a file, and no function in it", mend=f"--program {options.program}:function")
        model, guide = BUILDERS[_known(options.program)](data, options)
        first = next(iter(tensors(data.batch(slice(0, 1))).values()))
        if first.dtype == torch.float64:  # as NumPy stores real numbers unless told otherwise: they are kept, and so networks must follow
            double(model, guide)  # of the same first parameters, to float32's digits
        return model, guide, None


def _known(program: str) -> str:
    try:
        return chosen("program", program, list(BUILDERS))
    except UsageError as error:
        raise UsageError(error.problem, mend=[*error.mend, "file.py:function, which returns (model, guide)"]) from None


def _activation(options: Pair) -> type[nn.Module]:
    return ACTIVATIONS[chosen("activation", options.activation, list(ACTIVATIONS))]


def _width(data: Data, program: str) -> int:
    shape = data.event_shape["x"] if data.masked and program == "mlp" else data.event_shape
    if not isinstance(shape, tuple) or len(shape) != 1 or not isinstance(shape[0], int):
        raise DataError(
            f"the program {program} needs rows that are vectors, got event shape {shape}",
            where=data.name,
            mend=["leave out --no-flatten", "--program file.py:function"],
        )
    return shape[0]


def _latent_variable(decoder: nn.Module, latent_dim: int, likelihood: Any) -> models.LatentVariable:
    return models.LatentVariable(priors.StandardNormal(latent_dim), decoder, likelihood)


def _discretized(data: Data) -> likelihoods.DiscretizedLogistic:
    """Over the levels of grey that the data have; bytes, where they do not tell."""
    levels = 255 if data.levels is None else int(data.levels)
    return likelihoods.DiscretizedLogistic(num_levels=levels + 1, unit=data.measure == "Lebesgue")


def _likelihood(data: Data, options: Pair) -> tuple[Callable[[nn.Module, int, Data], Any], int]:
    """As named; else what the data are: Bernoulli for 0 and 1, Normal for real values."""
    if options.likelihood is not None:
        return LIKELIHOODS[chosen("likelihood", options.likelihood, list(LIKELIHOODS))]
    if data.measure == "Lebesgue":
        return LIKELIHOODS["normal"]
    if data.binarize != "none" or all(_binary(data.batch(rows)) for rows in data.pieces(len(data))):
        return LIKELIHOODS["bernoulli"]
    raise DataError(
        f"the data are whole numbers up to {max(float(data.batch(rows).max()) for rows in data.pieces(len(data))):g}, "
        "and no likelihood was named",
        where=data.name,
        mend=["--binarize threshold, for images", "--likelihood negative-binomial, for counts", "--likelihood normal"],
    )


def _binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())
