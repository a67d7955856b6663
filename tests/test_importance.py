"""Reductions of weights against hand-derived numbers, and k-hat against ArviZ."""

import math

import arviz
import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from ppvae import importance

ROUNDING = 1e-12


def test_log_mean_exp_of_one_two_three_is_log_two():
    found = importance.log_mean_exp(torch.tensor([1.0, 2.0, 3.0]).log())
    assert found.item() == pytest.approx(math.log(2), abs=ROUNDING)


def test_effective_sample_size_of_weights_one_and_three_is_sixteen_tenths():
    assert importance.effective_sample_size(torch.tensor([1.0, 3.0]).log()).item() == pytest.approx(1.6, abs=ROUNDING)


def test_standard_error_is_the_relative_error_of_the_mean_weight():
    weights = torch.tensor([1.0, 2.0, 4.0, 5.0])
    by_hand = weights.std() / weights.mean() / math.sqrt(4)
    assert importance.standard_error(weights.log()).item() == pytest.approx(by_hand.item(), abs=ROUNDING)


@pytest.mark.parametrize(("k", "expected"), [(100, 0.5), (320, 0.6008), (1000, 2 / 3), (10_000, 0.7)], ids=str)
def test_k_hat_threshold_is_that_of_vehtari_2024(k, expected):
    assert importance.k_hat_threshold(k) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("k", [25, 100, 1000, 5000], ids=str)
def test_k_hat_equals_arviz(k):
    weights = torch.cat([torch.randn(k, 3) * torch.tensor([0.1, 1.0, 3.0]), torch.empty(k, 2).exponential_() * 0.8], 1)
    expected = [float(arviz.psislw(weights[:, i].numpy().copy())[1]) for i in range(5)]
    assert importance.k_hat(weights).tolist() == pytest.approx(expected, abs=1e-9)


def test_k_hat_of_exponential_log_weights_has_the_sign_of_their_tail():
    """Exp(1) * 0.8 as log weights: P(w > t) = t^(-1/0.8), shape +0.8. The wrong sign of the argument would give about -0.8."""
    found = importance.k_hat(torch.empty(100_000, 8).exponential_() * 0.8)
    assert (found - 0.8).abs().max() < 0.15  # 5 standard deviations of k-hat at M = 949 exceedances


@pytest.mark.parametrize(("r", "sd"), [(0.3, 0.05), (0.5, 0.05), (0.7, 0.03)], ids=str)
def test_k_hat_of_a_mean_field_proposal_is_the_correlation(r, sd):
    """Weights of N(0, I) proposing for a unit-conditional-variance Gaussian of correlation r: k = 1 - lambda_min(R) = r, slowly."""
    e = torch.randn(100_000, 8, 2)
    precision = torch.tensor([[1.0, -r], [-r, 1.0]])
    log_weights = 0.5 * e.square().sum(-1) - 0.5 * ((e @ precision) * e).sum(-1)
    assert (importance.k_hat(log_weights).mean() - r).abs() < 0.05 + 5 * sd / math.sqrt(8)  # 0.05: the bias at S = 1e5, results.md 7.5


def test_k_hat_of_constant_weights_is_minus_infinity():
    assert importance.k_hat(torch.full((100, 2), -3.7)).tolist() == [-math.inf, -math.inf]


def test_k_hat_below_25_particles_is_not_a_number():
    assert importance.k_hat(torch.randn(24, 3)).isnan().all()


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=6), shift=st.sampled_from([0.0, -1e4, 1e4]))
def test_streamed_reductions_equal_the_whole(sizes, shift):
    with torch.random.fork_rng():
        torch.manual_seed(sum(sizes))
        weights = torch.randn(sum(sizes), 4, dtype=torch.float64) * 3 + shift
    streamed = importance.Streamed(len(weights), 4)
    for block in weights.split(sizes):
        streamed.add(block)
    rounding = 1e-9  # of a logarithm of size 1e4, relative to float64's 2e-16, over a few hundred sums
    assert torch.allclose(streamed.log_mean_weight, importance.log_mean_exp(weights), atol=rounding, rtol=0)
    assert torch.allclose(streamed.ess, importance.effective_sample_size(weights), rtol=1e-6)
    assert torch.allclose(streamed.mean, weights.mean(0), atol=rounding, rtol=0)
    if len(weights) > 1:
        assert torch.allclose(streamed.mean_se, weights.std(0) / math.sqrt(len(weights)), rtol=1e-6)
    assert torch.allclose(streamed.k_hat, importance.k_hat(weights), atol=1e-6, equal_nan=True)


def test_minus_infinite_weights_count_as_zero():
    found = importance.log_mean_exp(torch.tensor([0.0, -math.inf]))
    assert found.item() == pytest.approx(-math.log(2), abs=ROUNDING)
