"""The kernel of Hamiltonian Monte Carlo: its map by hand, its invariant density, what it rejects, what it draws from."""

from __future__ import annotations

import math

import pytest
import torch

from ppvae import hmc
from ppvae.errors import ArgumentError

PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def gaussian(position):
    gradient = -position @ PRECISION
    return 0.5 * (position * gradient).sum(-1), gradient, ()


def standard(position):
    return -0.5 * position.square().sum(-1), -position, ()


def on_an_interval(position):
    """Uniform on [-1, 1]: outside it the density is 0."""
    return torch.where(position[..., 0].abs() <= 1, 0.0, -torch.inf), torch.zeros_like(position), ()


class Given:
    """Momenta and uniforms laid down; a uniform of 1/2 is no jitter."""

    def __init__(self, momentum, *uniforms):
        self.momentum, self.uniforms = momentum, list(uniforms)

    def normal(self, chains, *event, dtype=None):
        return torch.full((chains, 1, *event), self.momentum)

    def uniform(self, chains):
        return torch.full((chains, 1), self.uniforms.pop(0))


def run(target, position, *, transitions, step_size, num_leapfrog=3, rows=None, seed=0):
    """Chains in which every transition's positions are kept, (S, C, n, D), and the last transition."""
    noise = hmc.Noise(seed, "test", rows=rows or slice(0, position.shape[1]))
    state, kept, nonfinite = hmc.State.at(target, position), [], 0
    for _ in range(transitions):
        moved = hmc.transition(target, state, step_size=step_size, num_leapfrog=num_leapfrog, noise=noise)
        state = moved.state
        kept.append(state.position)
        nonfinite = nonfinite + moved.num_nonfinite
    return torch.stack(kept), moved, nonfinite


def test_one_leapfrog_step_is_the_one_done_by_hand():
    # q = 0, p = 1, step 1/2 on N(0, 1): p stays 1 at q = 0, q = 0.5, p = 1 - 0.25 * 0.5 = 0.875; H goes from 0.5 to 0.5078125
    moved = hmc.transition(
        standard, hmc.State.at(standard, torch.zeros(1, 1, 1)), step_size=0.5, num_leapfrog=1, noise=Given(1.0, 0.5, 0.5)
    )
    assert moved.state.position.item() == 0.5
    assert moved.acceptance.item() == pytest.approx(math.exp(-0.0078125), rel=1e-15)


def test_two_leapfrog_steps_are_those_done_by_hand():
    # from (0.5, 0.875) on: p = 0.875 - 0.25 * 0.5 = 0.75, q = 0.875, p = 0.75 - 0.25 * 0.875 = 0.53125
    moved = hmc.transition(
        standard, hmc.State.at(standard, torch.zeros(1, 1, 1)), step_size=0.5, num_leapfrog=2, noise=Given(1.0, 0.5, 0.5)
    )
    assert moved.state.position.item() == 0.875
    assert moved.acceptance.item() == pytest.approx(math.exp(0.5 - (0.53125**2 + 0.875**2) / 2), rel=1e-14)


@pytest.mark.parametrize(("uniform", "accepted"), [(0.99, True), (0.9999, False)], ids=["below", "above"])
def test_a_proposal_is_taken_where_the_uniform_lies_below_its_acceptance(uniform, accepted):
    # the acceptance by hand is exp(-0.0078125) = 0.9922
    state = hmc.State.at(standard, torch.zeros(1, 1, 1))
    moved = hmc.transition(standard, state, step_size=0.5, num_leapfrog=1, noise=Given(1.0, 0.5, uniform))
    assert moved.state.position.item() == (0.5 if accepted else 0.0)
    assert moved.state.value.item() == (-0.125 if accepted else 0.0)


def test_chains_keep_the_moments_of_their_target():
    start = torch.randn(8, 70, 2) @ torch.linalg.inv(torch.linalg.cholesky(PRECISION)).contiguous()  # exact draws: L^-T e has P^-1
    kept, _, _ = run(gaussian, start, transitions=400, step_size=1.0)
    products = torch.einsum("scni,scnj->cnij", kept, kept) / len(kept)
    per_chain = products.flatten(0, 1)
    error = per_chain.std(0) / math.sqrt(len(per_chain))
    assert ((per_chain.mean(0) - torch.linalg.inv(PRECISION)).abs() < 5 * error).all()


def test_each_datum_has_a_step_size_of_its_own():
    # a flat density: the position moves by step * momentum
    def flat(position):
        return torch.zeros(position.shape[:2]), torch.zeros_like(position), ()

    kept, _, _ = run(flat, torch.zeros(500, 2, 1), transitions=1, step_size=torch.tensor([1.0, 10.0]), num_leapfrog=1)
    scale = kept[0, :, :, 0].std(0)
    assert scale[1] / scale[0] == pytest.approx(10, rel=5 * 2 / math.sqrt(500))  # five standard errors of the ratio of two deviations


@pytest.mark.parametrize(("uniform", "step"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)], ids=["shortest", "middle", "longest"])
def test_a_trajectory_is_jittered_by_a_fifth(uniform, step):
    moved = hmc.transition(
        on_an_interval, hmc.State.at(on_an_interval, torch.zeros(1, 1, 1)), step_size=1.0, num_leapfrog=1, noise=Given(0.5, uniform, 0.5)
    )
    assert moved.state.position.item() == pytest.approx(0.5 * step)


def test_a_proposal_of_no_density_is_rejected_and_counted():
    start = 2 * torch.rand(100, 10, 1) - 1
    kept, last, nonfinite = run(on_an_interval, start, transitions=300, step_size=0.8, num_leapfrog=2)
    moved = (torch.cat([start[None], kept])[1:] != torch.cat([start[None], kept])[:-1])[..., 0]
    assert (kept.abs() <= 1).all()
    assert torch.equal(nonfinite, (~moved).sum((0, 1)))  # a flat density accepts all but what falls outside
    square = kept.square().mean((0, 3)).flatten()
    assert abs(square.mean() - 1 / 3) < 5 * square.std() / math.sqrt(len(square))


def test_a_proposal_whose_gradient_is_no_number_is_rejected_and_counted():
    def target(position):
        return torch.zeros(position.shape[:2]), torch.where(position > 0, torch.nan, 0.0), ()

    kept, last, nonfinite = run(target, torch.full((50, 3, 1), -0.5), transitions=20, step_size=1.0, num_leapfrog=1)
    assert (kept <= 0).all()
    assert (nonfinite > 0).all()
    assert torch.isfinite(last.acceptance).all()


def test_what_the_target_gives_along_is_that_of_the_position():
    def target(position):
        value, gradient, _ = gaussian(position)
        return value, gradient, (position.sum(-1), position**2)

    _, last, _ = run(target, torch.randn(20, 5, 2), transitions=10, step_size=1.3)
    state = last.state
    assert torch.equal(state.aux[0], state.position.sum(-1))
    assert torch.equal(state.aux[1], state.position**2)
    assert torch.equal(state.value, gaussian(state.position)[0])


def test_how_many_data_run_at_once_changes_no_draw():
    start = torch.randn(4, 70, 2)
    together, _, _ = run(gaussian, start, transitions=20, step_size=0.9)
    first, _, _ = run(gaussian, start[:, :64], transitions=20, step_size=0.9)
    rest, _, _ = run(gaussian, start[:, 64:], transitions=20, step_size=0.9, rows=slice(64, 70))
    assert torch.allclose(together, torch.cat([first, rest], 2), rtol=0, atol=1e-9)


def test_adaptation_finds_the_scale_of_each_datum():
    # N(0, s^2) at s = 0.1 and 10: the same acceptance at step sizes in proportion to s, and at any scale the same product
    scale = torch.tensor([0.1, 10.0])[:, None]

    def target(position):
        return -0.5 * (position / scale).square().sum(-1), -position / scale**2, ()

    noise = hmc.Noise(0, "adapt", rows=slice(0, 2))
    adaptation = hmc.StepSizeAdaptation(torch.ones(2))
    state = hmc.State.at(target, torch.randn(64, 2, 5) * scale)
    for _ in range(300):
        moved = hmc.transition(target, state, step_size=adaptation.step_size, num_leapfrog=1, noise=noise)
        adaptation.update(moved.acceptance)
        state = moved.state
    frozen = adaptation.averaged
    assert frozen[1] / frozen[0] == pytest.approx(100, rel=0.1)  # the iterates' spread, about 1 % of 300 steps of 64 chains, with room
    acceptance = torch.stack(
        [(hmc.transition(target, state, step_size=frozen, num_leapfrog=1, noise=noise)).acceptance.mean(0) for _ in range(100)]
    ).mean(0)
    assert ((acceptance - hmc.TARGET_ACCEPTANCE).abs() < 0.04).all()


def test_step_sizes_do_not_grow_beyond_the_largest():
    adaptation = hmc.StepSizeAdaptation(torch.full((2,), 0.5), largest=0.6)
    for _ in range(100):
        adaptation.update(torch.ones(4, 2))
    assert adaptation.step_size.tolist() == pytest.approx([0.6, 0.6])


def test_one_step_of_the_adaptation_is_the_one_done_by_hand():
    # gain 1 in the first step: log eps = 0 + (0.5 - 0.75)
    adaptation = hmc.StepSizeAdaptation(torch.ones(1), target=0.75)
    adaptation.update(torch.tensor([[0.4], [0.6]]))
    assert adaptation.step_size.item() == pytest.approx(math.exp(-0.25))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hmc.check_settings(0, 1), "num_chains is a whole number of at least 1"),
        (lambda: hmc.check_settings(1, 0), "num_leapfrog is a whole number of at least 1"),
        (lambda: hmc.check_settings(1, 1, -0.1), "step_size is a number > 0"),
        (lambda: hmc.StepSizeAdaptation(torch.ones(1), target=1.0), "target acceptance"),
        (lambda: hmc.Noise(0, rows=slice(3, 5)), "multiple of 64"),
    ],
    ids=["no chain", "no leapfrog step", "a negative step", "an acceptance of 1", "half a block"],
)
def test_settings_that_make_no_sense_are_refused(call, said):
    with pytest.raises(ArgumentError, match=said):
        call()
