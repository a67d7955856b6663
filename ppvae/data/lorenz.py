"""Lorenz's system: x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z; states on its attractor, or windows of its trajectory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ppvae.data.data import Data
from ppvae.data.drawing import Array, stream
from ppvae.errors import ArgumentError, check_count

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
TRAJECTORIES = 40  # integrated side by side
TRANSIENT = 20.0  # time units until a trajectory is on the attractor: what is left of its start is then below rounding
TOLERANCE = 1e-9  # of a step of the integration, relative and absolute


def lorenz(
    num_data: int = 16_000, *, window: int = 1, step: float = 0.05, interval: float = 0.5, noise: float = 0.0, seed: int = 0
) -> Data:
    """States of 40 trajectories on the attractor, one after the other in time within each.

    Args:
        num_data: N.
        window: States in a datum. 1: event shape (3,); else (window, 3).
        step: Time between the states of a window.
        interval: Time between the beginnings of one datum and the next of the same trajectory.
        noise: Standard deviation of the Normal noise that is added to each coordinate, in the system's units.
        seed: Of the starts and of the noise.

    Returns:
        float32. ``factors`` (N, 3) are the first state of each datum without noise.

    The system is chaotic: differences of rounding grow by e^0.9 a time unit. Other machines find other states, of the same attractor.

    References:
        Lorenz (1963), Deterministic nonperiodic flow. Tucker (1999), The Lorenz attractor exists.
    """
    check_count("num_data", num_data)
    check_count("window", window)
    for name, value, least in (("step", step, 0.0), ("interval", interval, 0.0)):
        if not (least < value < math.inf):
            raise ArgumentError(f"{name} is a time > 0, got {value!r}")
    if not 0 <= noise < math.inf:
        raise ArgumentError(f"noise is a standard deviation of at least 0, got {noise!r}")
    source = stream(seed, "lorenz")
    each = -(-num_data // TRAJECTORIES)
    times = TRANSIENT + interval * np.arange(each)[:, None] + step * np.arange(window)
    clean = _states(source, times).reshape(-1, window, 3)[:num_data]
    x = clean + noise * source.standard_normal(clean.shape)
    rows = torch.from_numpy((x[:, 0] if window == 1 else x).astype(np.float32))
    return Data.from_arrays(rows, name="lorenz", seed=seed).with_factors(clean[:, 0], ("x", "y", "z"))


def _states(source: np.random.RandomState, times: Array) -> Array:
    """(trajectories, *times.shape, 3)."""
    from scipy.integrate import solve_ivp

    start = np.array([0.0, 0.0, RHO - 1])[:, None] + source.standard_normal((3, TRAJECTORIES)) * 5
    moments, back = np.unique(times, return_inverse=True)
    found: Any = solve_ivp(_flow, (0.0, moments[-1]), start.ravel(), method="DOP853", t_eval=moments, rtol=TOLERANCE, atol=TOLERANCE)
    states = found.y.reshape(3, TRAJECTORIES, len(moments))[..., back.ravel()]
    series: Array = np.moveaxis(states, 0, -1).reshape(TRAJECTORIES, *times.shape, 3)
    return series


def _flow(_: float, state: Array) -> Array:
    x, y, z = state.reshape(3, -1)
    return np.concatenate([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z])
