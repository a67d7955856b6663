"""Data of a linear Gaussian model whose parameters are known: evidence, posterior and rate-distortion curve are closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ppvae import noise
from ppvae.data.data import Data
from ppvae.errors import ArgumentError, check_count

VARIANCES = (8.0, 4.0, 2.0)  # the largest eigenvalues of the covariance of x; the other ones are SCALE^2
SCALE = 0.5
DATA_DIM = 8


def linear_gaussian(num_data: int = 4_000, *, seed: int = 0) -> Data:
    """Draws from ``known_linear_gaussian()``, (N, 8), with their latents, (N, 3), as ``factors``.

    Args:
        num_data: N.
        seed: Of the draws.
    """
    from ppvae.data.simulated import simulate

    check_count("num_data", num_data)
    model = known_linear_gaussian(dtype=torch.float64)  # so that the default type changes no draw
    drawn = simulate(model, num_data, template=torch.zeros(1, DATA_DIM, dtype=torch.float64), seed=seed)
    data = Data.from_arrays(drawn.x.float(), name="linear-gaussian", seed=seed)
    return data.with_factors(drawn.factors, drawn.factor_names)


def known_linear_gaussian(
    variances: tuple[float, ...] = VARIANCES, data_dim: int = DATA_DIM, scale: float = SCALE, dtype: torch.dtype | None = None
) -> Any:
    """A ``models.LinearGaussian`` with W = U (L - s^2 I)^(1/2), U the first cosines of the discrete cosine transform, and b = 1, 2, ..., D.

    The covariance of x has the eigenvalues ``variances`` and else s^2. W^T W is diagonal, so that the posterior is a diagonal Normal whose
    mean is linear in x.

    Args:
        variances: l_1 to l_Z, above s^2.
        data_dim: D, above Z.
        scale: s.
        dtype: Of the parameters; by default torch's own.

    Raises:
        ArgumentError: A variance not above s^2, or not fewer of them than dimensions.
    """
    from ppvae.models import LinearGaussian

    if not 0 < len(variances) < data_dim or min(variances) <= scale**2:
        raise ArgumentError(f"needed 1 to {data_dim - 1} variances, each above scale^2 = {scale**2:g}, got {variances}")
    row = (np.arange(data_dim) + 0.5) * np.pi / data_dim
    cosines = np.sqrt(2 / data_dim) * np.cos(row[:, None] * np.arange(1, len(variances) + 1))
    with noise.forked():  # the parameters that a model starts with are drawn
        model = LinearGaussian(data_dim, len(variances), scale).to(dtype or torch.get_default_dtype())
        model.log_scale.data.fill_(np.log(scale))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(cosines * np.sqrt(np.array(variances) - scale**2)))
        model.bias.copy_(torch.arange(1.0, data_dim + 1))
    return model.requires_grad_(False)
