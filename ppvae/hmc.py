"""Hamiltonian Monte Carlo on tensors alone: C chains for each of n data at once, identity mass.

The kernel knows nothing of programs: a target is a function of positions. It keeps detailed balance for any step size that does not
depend on the chain's own past, so a sampler adapts in a pilot, freezes, and runs with a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ppvae import noise
from ppvae.errors import ArgumentError, check_count

# positions (C, n, D) -> log density (C, n), its gradient (C, n, D), and what else to keep of an accepted position, each (C, n, ...)
Target = Callable[[Tensor], tuple[Tensor, Tensor, tuple[Tensor, ...]]]

JITTER = 0.2  # of the step size, per trajectory: a trajectory of a fixed length can be a period of the target
TARGET_ACCEPTANCE = 0.78


class State(NamedTuple):
    """Chains and what is known where they stand.

    Attributes:
        position: (C, n, D).
        value: Log density, (C, n).
        gradient: Of the log density by the position, (C, n, D).
        aux: Whatever else the target gave, each (C, n, ...).
    """

    position: Tensor
    value: Tensor
    gradient: Tensor
    aux: tuple[Tensor, ...]

    @classmethod
    def at(cls, target: Target, position: Tensor) -> State:
        """The state at a position; costs one evaluation of the target."""
        value, gradient, aux = target(position)
        return cls(position, value, gradient, aux)


class Moved(NamedTuple):
    """What a transition gave.

    Attributes:
        state: Where the chains stand now.
        acceptance: Probability of the proposal, (C, n), float64; 0 where its energy was not finite.
        num_nonfinite: Chains of each datum whose proposal had a non-finite energy or gradient, (n,).
    """

    state: State
    acceptance: Tensor
    num_nonfinite: Tensor


class Source(Protocol):
    """Where a run of transitions takes its draws from."""

    def normal(self, chains: int, *event: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard Normal draws, (C, n, *event)."""
        ...

    def uniform(self, chains: int) -> Tensor:
        """Uniform draws on [0, 1), (C, n), float64."""
        ...


class Noise:
    """The draws of a run of transitions: a generator for every 64 data, so that how many data run at once changes none of them.

    Args:
        seed: The run's seed.
        coordinates: What the draws are for: a purpose, the first chain, a direction.
        rows: The data, a slice that starts at a multiple of 64.
        device: Where the chains are.
    """

    def __init__(self, seed: int, *coordinates: int | str, rows: slice, device: torch.device | str = "cpu") -> None:
        if rows.start % noise.BLOCK_ROWS:
            raise ArgumentError(f"rows begin at a multiple of {noise.BLOCK_ROWS}, got {rows.start}")
        self._blocks = []
        for block in noise.blocks(rows.stop - rows.start, noise.BLOCK_ROWS):
            generator = noise.generator(seed, *coordinates, rows.start + block.start, device=device)
            self._blocks.append((block.stop - block.start, generator))

    def normal(self, chains: int, *event: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard Normal draws, (C, n, *event)."""
        return torch.cat([torch.randn(chains, n, *event, generator=g, device=g.device, dtype=dtype) for n, g in self._blocks], 1)

    def uniform(self, chains: int) -> Tensor:
        """Uniform draws on [0, 1), (C, n), float64."""
        return torch.cat([torch.rand(chains, n, generator=g, device=g.device, dtype=torch.float64) for n, g in self._blocks], 1)


def transition(target: Target, state: State, *, step_size: Tensor | float, num_leapfrog: int, noise: Source) -> Moved:
    """One trajectory for every chain: fresh momenta, ``num_leapfrog`` leapfrog steps, accepted or rejected by float64 energies.

    A proposal whose energy or gradient is not finite is rejected and counted. Costs ``num_leapfrog`` evaluations of the target.

    Args:
        target: Log density of positions, with its gradient.
        state: Where the chains stand.
        step_size: A number, or one per datum, (n,); each trajectory's is jittered by up to 20 % either way.
        num_leapfrog: Leapfrog steps.
        noise: The source of momenta, jitter and acceptance.

    Returns:
        The new state, the acceptance probabilities, the count of non-finite proposals.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, sec. 3.2 and 4.2.
    """
    chains, _, dim = state.position.shape
    momentum = noise.normal(chains, dim, dtype=state.position.dtype)
    jitter = 1 + JITTER * (2 * noise.uniform(chains) - 1)
    threshold = noise.uniform(chains)
    step = (jitter * step_size).to(state.position.dtype)[..., None]
    energy = _energy(state.value, momentum)
    position, gradient = state.position, state.gradient
    momentum = momentum + step / 2 * gradient
    for leap in range(num_leapfrog):
        position = position + step * momentum
        value, gradient, aux = target(position)
        momentum = momentum + (step if leap < num_leapfrog - 1 else step / 2) * gradient
    proposed = _energy(value, momentum)
    sound = torch.isfinite(proposed)  # a gradient that is not finite has made the momentum so, and with it the energy
    acceptance = torch.where(sound, (energy - proposed).clamp(max=0).exp(), 0.0).nan_to_num(0.0)
    accepted = threshold < acceptance
    moved = State(
        _where(accepted, position, state.position),
        _where(accepted, value, state.value),
        _where(accepted, gradient, state.gradient),
        tuple(_where(accepted, new, old) for new, old in zip(aux, state.aux, strict=True)),
    )
    return Moved(moved, acceptance, (~sound).sum(0))


def _energy(value: Tensor, momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1) - value.double()


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.reshape(*accepted.shape, *[1] * (new.dim() - 2)), new, old)


class StepSizeAdaptation:
    """Step sizes per datum, moved towards a target acceptance: log eps += gain (acceptance - target), Robbins and Monro's scheme.

    For a pilot alone. A run that adapts while it is measured has no longer the invariant density that its weights assume.

    Args:
        start: (n,), where the step sizes begin.
        target: Mean acceptance probability to reach.
        least_gain: Where the falling gain ends: 0 for one density, a constant for densities that move on while the chains run.
        largest: Step sizes do not grow beyond it: a long trajectory comes back to where it started.

    References:
        Robbins, Monro (1951). Andrieu, Thoms (2008), A tutorial on adaptive MCMC, sec. 4.2.
    """

    def __init__(self, start: Tensor, *, target: float = TARGET_ACCEPTANCE, least_gain: float = 0.0, largest: float = math.inf) -> None:
        if not 0 < target < 1:
            raise ArgumentError(f"a target acceptance lies in (0, 1), got {target!r}")
        self.target, self.least_gain, self.largest, self.count = target, least_gain, math.log(largest), 0
        self.log_step = start.double().log()
        self._average = self.log_step.clone()

    @property
    def step_size(self) -> Tensor:
        """To use for the next transition, (n,)."""
        return self.log_step.exp()

    @property
    def averaged(self) -> Tensor:
        """To freeze, (n,): the average of the iterates on the log scale, later ones weighing more."""
        return self._average.exp()

    def update(self, acceptance: Tensor) -> None:
        """Take in the acceptance probabilities of one transition, (C, n)."""
        self.count += 1
        gain = max(self.count**-0.6, self.least_gain)
        self.log_step = (self.log_step + gain * (acceptance.mean(0) - self.target)).clamp(max=self.largest)
        weight = self.count**-0.75
        self._average = weight * self.log_step + (1 - weight) * self._average


def check_settings(num_chains: int, num_leapfrog: int, step_size: float | None = None) -> None:
    """Raise where the settings of a sampler make no sense."""
    check_count("num_chains", num_chains)
    check_count("num_leapfrog", num_leapfrog)
    if step_size is not None and not (0 < step_size < math.inf):
        raise ArgumentError(f"step_size is a number > 0, got {step_size!r}")
