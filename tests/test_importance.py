"""Reductions of weights against hand-derived numbers, k-hat and smoothing against ArviZ, streams against the whole."""

import math

import arviz
import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from ppvae import importance
from ppvae.errors import ArgumentError

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


def test_weights_above_their_mean_times_root_k_are_cut_there():
    """1, 1, 1, 13: mean 4, cap 4 x sqrt(4) = 8; what is left has mean 11 / 4, ESS 121 / 67 and standard deviation 3.5."""
    log_weights = torch.tensor([1.0, 1.0, 1.0, 13.0]).log()
    assert importance.truncated(log_weights).exp().tolist() == pytest.approx([1, 1, 1, 8], abs=ROUNDING)
    found = importance.reduced(log_weights, "truncated")
    assert found.log_mean_weight.item() == pytest.approx(math.log(11 / 4), abs=ROUNDING)
    assert found.ess.item() == pytest.approx(121 / 67, abs=1e-9)
    assert found.se.item() == pytest.approx(3.5 / 2.75 / 2, abs=1e-9)


def test_no_more_weights_than_are_kept_can_exceed_their_mean_times_root_k():
    """c weights above mean sqrt(K) sum to more than c K mean / sqrt(K), at most K mean: c < sqrt(K), or K = 1."""
    assert all(importance.tail_length(k) + 1 >= math.ceil(math.sqrt(k)) - 1 for k in range(1, 20_000))


def heavy(k, columns=6):
    """Log weights of many tails, a column each: bounded, log-normal, Pareto."""
    scale = torch.linspace(0.1, 4.0, columns)
    return torch.cat([torch.randn(k, columns) * scale, torch.empty(k, columns).exponential_() * scale, -torch.rand(k, 1)], 1)


@pytest.mark.parametrize("shift", [0.0, -900.0], ids=str)
@pytest.mark.parametrize("k", [25, 26, 100, 1000, 5000], ids=str)
def test_smoothed_weights_equal_arviz(k, shift):
    weights = heavy(k) + shift
    expected, _ = arviz.psislw(weights.T.contiguous().numpy(), normalize=False)
    assert torch.allclose(importance.smoothed(weights), torch.as_tensor(expected).T, atol=1e-9, rtol=0)


@pytest.mark.parametrize("k", [25, 300, 2500], ids=str)
def test_reductions_of_smoothed_weights_are_those_of_arviz_normalised_weights(k):
    """ArviZ's weights sum to 1: 1 / sum of their squares is ESS; a weight left alone, less its share, is the log of the sum."""
    weights = heavy(k)
    normalised = torch.as_tensor(arviz.psislw(weights.T.contiguous().numpy())[0]).T
    found = importance.reduced(weights, "smoothed")
    assert torch.allclose(found.ess, 1 / normalised.exp().square().sum(0), rtol=1e-9)
    body = weights.argmin(0, keepdim=True)
    log_sum = (weights - normalised).gather(0, body)[0]
    assert torch.allclose(found.log_mean_weight, log_sum - math.log(k), atol=1e-9, rtol=0)
    assert torch.allclose(found.se, normalised.exp().std(0) * math.sqrt(k), rtol=1e-9)  # sd(w) / (mean(w) sqrt(K)), mean 1 / K


def test_smoothing_with_zero_weights_equals_arviz():
    weights = heavy(200)
    weights[::3] = -math.inf
    expected, _ = arviz.psislw(weights.T.contiguous().numpy(), normalize=False)
    assert torch.allclose(importance.smoothed(weights).exp(), torch.as_tensor(expected).T.exp(), rtol=1e-9)


def test_smoothed_weights_keep_their_order_and_their_largest():
    weights = heavy(1000)
    found = importance.smoothed(weights)
    assert (found.amax(0) <= weights.amax(0)).all()
    assert torch.equal(found.gather(0, weights.argsort(0)), found.sort(0).values)
    assert (found != weights).sum(0).max() <= importance.tail_length(1000)


@pytest.mark.parametrize("case", ["constant", "few", "two values"])
def test_weights_to_which_no_tail_can_be_fitted_stay_as_they_are(case):
    weights = {"constant": torch.full((100, 2), -3.7), "few": torch.randn(24, 2), "two values": (torch.rand(100, 2) > 0.5).double()}[case]
    assert torch.equal(importance.smoothed(weights), weights)


def test_one_enormous_weight_does_not_swamp_its_smoothed_tail():
    """The sum of the others, e^-200 of the largest, is lost in a running sum of all weights; the smoothed tail is of their size."""
    weights = torch.randn(400, 1)
    weights[7] = 200.0
    streamed = importance.Streamed(400, 1)
    streamed.add(weights)
    found = streamed.reduced("smoothed").log_mean_weight
    assert found < 150
    assert torch.allclose(found, importance.log_mean_exp(importance.smoothed(weights)), atol=1e-9, rtol=0)


def test_a_treatment_without_a_name_is_refused():
    streamed = importance.Streamed(4, 1)
    streamed.add(torch.zeros(4, 1))
    for reduce in (streamed.reduced, lambda weights: importance.reduced(torch.zeros(4, 1), weights)):
        with pytest.raises(ArgumentError, match="weights are 'plain', 'truncated' or 'smoothed', got 'clipped'"):
            reduce("clipped")


def streamed_in(weights, sizes, announced=None):
    found = importance.Streamed(announced or len(weights), weights.shape[1])
    for block in weights.split(sizes):
        found.add(block)
    return found


def drawn(k, columns=4, spread=3.0):
    with torch.random.fork_rng():
        torch.manual_seed(k)
        return torch.randn(k, columns, dtype=torch.float64) * spread


SIZES = st.lists(st.integers(1, 80), min_size=1, max_size=6)
BY_DEFINITION = (importance.log_mean_exp, importance.standard_error, importance.effective_sample_size)
SEARCH = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


def same(found, expected, rtol):
    assert torch.allclose(found.log_mean_weight, expected.log_mean_weight, atol=rtol, rtol=0)
    assert torch.allclose(found.ess, expected.ess, rtol=rtol)
    # one part in 1e-8 of an error near 0 is below the rounding of K / ESS - 1
    assert torch.allclose(found.se.square(), expected.se.square(), rtol=rtol, atol=rtol, equal_nan=True)


@SEARCH
@hypothesis.given(sizes=SIZES, shift=st.sampled_from([0.0, -1e4, 1e4]), zeros=st.booleans())
def test_streamed_reductions_equal_the_whole(sizes, shift, zeros):
    weights = drawn(sum(sizes)) + shift
    if zeros:
        weights[1::2, 0] = -math.inf
    found = streamed_in(weights, sizes)
    # 1e-9: rounding of a logarithm of size 1e4, relative 2e-16, over a few hundred sums
    same(found.reduced(), importance.Reduced(*(f(weights) for f in BY_DEFINITION)), 1e-9 if shift == 0 else 1e-7)
    for kind in importance.WEIGHTS:
        same(found.reduced(kind), importance.reduced(weights, kind), 1e-9 if shift == 0 else 1e-7)
    assert torch.allclose(found.mean[1:], weights.mean(0)[1:], atol=1e-9, rtol=0)
    if len(weights) > 1:
        assert torch.allclose(found.mean_se[1:], weights.std(0)[1:] / math.sqrt(len(weights)), rtol=1e-6)
    assert torch.allclose(found.k_hat, importance.k_hat(weights), atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", importance.WEIGHTS)
def test_data_that_are_sorted_a_few_at_a_time_keep_their_own_numbers(kind, monkeypatch):
    """11 data of scales and heights of their own, 4 at a time, one of them with weights that are all equal."""
    monkeypatch.setattr(importance, "CELLS", 4 * 2 * 1024)
    weights = torch.randn(3000, 11) * torch.linspace(0.5, 3.0, 11) + torch.linspace(-900.0, 900.0, 11)
    weights[:, 9] = 7.0
    found = importance.Streamed(3000, 11)
    for block in weights.split(64):
        found.add(block)
    same(found.reduced(kind), importance.reduced(weights, kind), 1e-9)  # rounding, as above
    assert torch.allclose(found.k_hat, importance.k_hat(weights), atol=1e-9, rtol=0)
    assert found.k_hat.isinf().nonzero().flatten().tolist() == [9]


@SEARCH
@hypothesis.given(sizes=SIZES, ahead=st.integers(1, 5000), kind=st.sampled_from(importance.WEIGHTS))
def test_reductions_of_what_came_so_far_are_those_of_so_many(sizes, ahead, kind):
    """A stream that may stop before K: nothing in its numbers looks at the K that was announced."""
    weights = drawn(sum(sizes))
    found = streamed_in(weights, sizes, announced=len(weights) + ahead)
    same(found.reduced(kind), importance.reduced(weights, kind), 1e-9)
    assert torch.allclose(found.k_hat, importance.k_hat(weights), atol=1e-9, equal_nan=True)


@SEARCH
@hypothesis.given(k=st.integers(1, 400), shift=st.floats(-1e3, 1e3), kind=st.sampled_from(importance.WEIGHTS))
def test_a_factor_of_all_weights_is_a_shift_of_their_log_mean_alone(k, shift, kind):
    weights = drawn(k)
    before, after = importance.reduced(weights, kind), importance.reduced(weights + shift, kind)
    same(after._replace(log_mean_weight=after.log_mean_weight - shift), before, 1e-9)  # 1e3 x 2e-16 over k sums


@SEARCH
@hypothesis.given(k=st.integers(1, 400), seed=st.integers(0, 10**6), kind=st.sampled_from(importance.WEIGHTS))
def test_the_order_of_weights_changes_nothing(k, seed, kind):
    weights = drawn(k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    same(importance.reduced(weights[order], kind), importance.reduced(weights, kind), 1e-9)
    assert torch.allclose(importance.k_hat(weights[order]), importance.k_hat(weights), atol=1e-9, equal_nan=True)


def test_streams_of_more_than_one_merge_equal_the_whole():
    """Blocks of 64 up to 5,000: the largest are merged five times, and what each merge drops is kept in the sums."""
    weights = drawn(5000, spread=5.0)
    found = streamed_in(weights, 64)
    for kind in importance.WEIGHTS:
        same(found.reduced(kind), importance.reduced(weights, kind), 1e-9)
    assert torch.allclose(found.k_hat, importance.k_hat(weights), atol=1e-9)


def test_minus_infinite_weights_count_as_zero():
    found = importance.log_mean_exp(torch.tensor([0.0, -math.inf]))
    assert found.item() == pytest.approx(-math.log(2), abs=ROUNDING)
