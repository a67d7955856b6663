"""Objectives that Pyro does not have: each gradient is the enumeration, the quadrature, the closed form or the formula at the draw."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pairs
from ppvae import SVI, analysis, fit, guides, models, objectives
from ppvae.errors import ObjectiveError, RunError
from ppvae.nn import MLP
from ppvae.objectives_aggressive import mutual_information
from ppvae.objectives_total_correlation import log_batch_weights
from ppvae.programs import _Substitute

ROUNDING = 1e-10
frozen = functools.partial(torch.optim.SGD, lr=0.0)
sgd = functools.partial(torch.optim.SGD, lr=0.1)


def gradients(objective, model, guide, x, leaves):
    """The loss and the gradient of each leaf, by ``loss_and_grads`` under Pyro's own conditions."""
    for leaf in leaves:
        leaf.grad = None
    loss = objective.loss_and_grads(model, guide, x)
    return loss, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]


# Rows of the same datum with parameters of their own: z ~ N(0, 1), x | z ~ N(w z, 0.5), q = N(a, s). The gradient in row n is one draw of
# the estimator, so that one backward pass gives its mean and its variance.

X, W, A, S, NOISE = 0.8, 1.3, 0.2, 0.9, 0.5


class Rows:
    def __init__(self, n, w=W, a=A, s=S):
        self.w, self.a, self.log_s = (torch.full((n,), v).requires_grad_() for v in (w, a, math.log(s)))
        self.x, self.leaves = torch.full((n,), X), [self.w, self.a, self.log_s]

    def model(self, x):
        pyro.param("of_the_store", torch.tensor(0.0))  # Pyro's own ELBOs take no gradient of a pair without one
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.w * z, NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.a, self.log_s.exp()))


def log_weight(w, a, log_s, z):
    return dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(w * z, NOISE).log_prob(torch.tensor(X)) - dist.Normal(a, log_s.exp()).log_prob(z)


def expected_gradient(num_particles, points=60):
    """Of -E[log (1/K) sum_k w_k] in (w, a, log s), K = 1 or 2, by Gauss-Hermite quadrature over the noise."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(points))
    weights = weights / weights.sum()
    p = [torch.tensor(v, requires_grad=True) for v in (W, A, math.log(S))]
    one = log_weight(*p, p[1] + p[2].exp() * nodes)
    if num_particles == 1:
        bound = (weights * one).sum()
    else:
        bound = (weights[:, None] * weights * (torch.logaddexp(one[:, None], one) - math.log(2))).sum()
    return torch.autograd.grad(-bound, p)


def held(found, expected):
    """The largest distance of the mean over rows from its expectation, in standard errors."""
    return max(abs(g.mean() - e) / (g.std() / len(g) ** 0.5) for g, e in zip(found, expected, strict=True)).item()


@pytest.mark.parametrize("vectorized", [True, False], ids=["plate", "loop"])
def test_doubly_reparameterised_gradient_is_that_of_the_bound_in_expectation(vectorized):
    rows = Rows(40_000)
    objective = objectives.DoublyReparameterized(2, vectorize_particles=vectorized)
    _, found = gradients(objective, rows.model, rows.guide, rows.x, rows.leaves)
    assert held(found, expected_gradient(2)) < 4


def test_importance_weighted_gradient_of_pyro_meets_the_same_quadrature():
    rows = Rows(40_000)
    _, found = gradients(RenyiELBO(alpha=0, num_particles=2), rows.model, rows.guide, rows.x, rows.leaves)
    assert held(found, expected_gradient(2)) < 4


def test_doubly_reparameterised_gradient_is_the_formula_at_the_draw(fresh):
    # (v_1, v_2) the normalised weights: sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi), and sum_k v_k d log p(x, z_k) / d w.
    rows, objective = Rows(3), objectives.DoublyReparameterized(2, max_plate_nesting=1)
    torch.manual_seed(fresh)
    loss, (of_w, of_a, of_s) = gradients(objective, rows.model, rows.guide, rows.x, rows.leaves)
    torch.manual_seed(fresh)
    noise = torch.randn(2, 3)
    z = A + S * noise
    log_w = log_weight(torch.tensor(W), torch.tensor(A), torch.tensor(math.log(S)), z)
    v = log_w.softmax(0)
    slope = -z + W * (X - W * z) / NOISE**2 + (z - A) / S**2
    expected = [(v * z * (X - W * z) / NOISE**2).sum(0), (v**2 * slope).sum(0), (v**2 * slope * S * noise).sum(0)]
    torch.testing.assert_close([of_w, of_a, of_s], [-g for g in expected], rtol=ROUNDING, atol=ROUNDING)
    assert loss == pytest.approx(-(log_w.logsumexp(0) - math.log(2)).sum().item(), abs=ROUNDING)


def test_doubly_reparameterised_gradient_is_still_at_the_optimum_where_the_other_is_not():
    precision = 1 + (W / NOISE) ** 2
    rows = Rows(2000, a=W * X / NOISE**2 / precision, s=precision**-0.5)  # the exact posterior
    _, (_, of_a, _) = gradients(objectives.DoublyReparameterized(5), rows.model, rows.guide, rows.x, rows.leaves)
    _, (_, other, _) = gradients(RenyiELBO(alpha=0, num_particles=5), rows.model, rows.guide, rows.x, rows.leaves)
    assert of_a.abs().max() < ROUNDING < 0.1 < other.std()


def test_doubly_reparameterised_gradient_varies_less_away_from_the_optimum_too():
    rows = Rows(20_000)
    _, (_, of_a, of_s) = gradients(objectives.DoublyReparameterized(8), rows.model, rows.guide, rows.x, rows.leaves)
    _, (_, other_a, other_s) = gradients(
        RenyiELBO(alpha=0, num_particles=8, vectorize_particles=True), rows.model, rows.guide, rows.x, rows.leaves
    )
    assert of_a.var() < 0.5 * other_a.var()
    assert of_s.var() < 0.5 * other_s.var()


@pytest.mark.parametrize("particles", [1, 3])
def test_sticking_the_landing_is_the_gradient_of_the_elbo_in_expectation(particles):
    rows = Rows(40_000)
    _, found = gradients(objectives.StickingTheLanding(particles), rows.model, rows.guide, rows.x, rows.leaves)
    assert held(found, expected_gradient(1)) < 4


def posterior_with_parameters(latent_dim=2, n=4):
    """A linear Gaussian model and its posterior, location and factor as leaves."""
    model = models.LinearGaussian(3, latent_dim, 0.6)
    x = torch.randn(n, 3)
    exact = model.posterior(x)
    loc, tril = exact.loc.detach().requires_grad_(), torch.linalg.cholesky(exact.covariance_matrix).detach().requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

    return model, guide, x, [loc, tril]


def test_sticking_the_landing_has_no_gradient_at_the_exact_posterior_draw_by_draw():
    model, guide, x, leaves = posterior_with_parameters()
    _, found = gradients(objectives.StickingTheLanding(), model, guide, x, leaves)
    _, other = gradients(Trace_ELBO(), model, guide, x, leaves)
    assert max(g.abs().max() for g in found) < ROUNDING
    assert min(g.abs().max() for g in other) > 0.1


class Layers:
    """z1 ~ N(0, 1), z2 | z1 ~ N(z1, 1), x ~ N(z1 + z2, 1); q(z1) = N(a, e^s), q(z2 | z1) = N(b z1 + c, e^t)."""

    def __init__(self):
        self.leaves = [torch.tensor(v, requires_grad=True) for v in (0.3, -0.4, 0.7, 0.1, -0.2)]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x)

    def guide(self, x):
        a, s, b, c, t = self.leaves
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(a.expand(len(x)), s.exp()))
            pyro.sample("z2", dist.Normal(b * z1 + c, t.exp()))

    def held_parameters(self, x, first, second):
        """log w at the draws of the parameters, the guide's density at copies of them: its gradient is the path derivative."""
        (a, s, b, c, t), (a0, s0, b0, c0, t0) = self.leaves, [leaf.detach() for leaf in self.leaves]
        z1 = a + s.exp() * first
        z2 = b * z1 + c + t.exp() * second
        log_q = dist.Normal(a0, s0.exp()).log_prob(z1) + dist.Normal(b0 * z1 + c0, t0.exp()).log_prob(z2)
        return dist.Normal(0, 1).log_prob(z1) + dist.Normal(z1, 1).log_prob(z2) + dist.Normal(z1 + z2, 1).log_prob(x) - log_q


@pytest.mark.parametrize("which", ["ELBO", "importance-weighted"])
def test_a_draw_that_depends_on_an_earlier_one_is_followed_through_both(which, fresh):
    layers, x = Layers(), torch.randn(3)
    k = 1 if which == "ELBO" else 2
    objective = objectives.StickingTheLanding() if k == 1 else objectives.DoublyReparameterized(2, vectorize_particles=False)
    torch.manual_seed(fresh)
    _, found = gradients(objective, layers.model, layers.guide, x, layers.leaves)
    torch.manual_seed(fresh)
    log_w = torch.stack([layers.held_parameters(x, torch.randn(3), torch.randn(3)) for _ in range(k)])
    expected = torch.autograd.grad(-(log_w.detach().softmax(0) ** 2 * log_w).sum(), layers.leaves)
    torch.testing.assert_close(found, list(expected), rtol=ROUNDING, atol=ROUNDING)


def test_sticking_the_landing_takes_beta(fresh):
    rows, beta = Rows(3), 0.3
    svi = SVI(rows.model, rows.guide, frozen, objectives.StickingTheLanding(), beta=beta)
    torch.manual_seed(fresh)
    z = A + S * torch.randn(3)
    rate = dist.Normal(A, S).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    torch.manual_seed(fresh)
    assert svi.step(rows.x) == pytest.approx((beta * rate - dist.Normal(W * z, NOISE).log_prob(rows.x)).sum().item(), abs=ROUNDING)


# Reweighted wake-sleep: c ~ Bernoulli(logit = m), x | c ~ N(b c, 1), q(c | x) = Bernoulli(logit = r x), two data and two particles.


M, B, R = 0.4, 2.5, 0.6


class Coins:
    def __init__(self):
        self.x = torch.tensor([2.0, -1.0])
        self.leaves = [torch.tensor(v, requires_grad=True) for v in (M, B, R)]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(logits=self.leaves[0]))
            pyro.sample("x", dist.Normal(self.leaves[1] * c, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", dist.Bernoulli(logits=self.leaves[2] * x))

    def log_p(self, c, x):
        return dist.Bernoulli(logits=self.leaves[0]).log_prob(c) + dist.Normal(self.leaves[1] * c, 1.0).log_prob(x)

    def log_q(self, c, x):
        return dist.Bernoulli(logits=self.leaves[2] * x).log_prob(c)

    def enumerated(self, objective):
        """E[gradient] over all 2^(K N) draws of an objective."""
        total = [torch.zeros(()) for _ in self.leaves]
        for bits in itertools.product([0.0, 1.0], repeat=4):
            c = torch.tensor(bits).reshape(2, 2)
            with _Substitute({"c": c}):
                found = gradients(objective, self.model, self.guide, self.x, self.leaves)[1]
            chance = self.log_q(c, self.x).sum().exp().item()
            total = [one + chance * more for one, more in zip(total, found, strict=True)]
        return total

    def wanted(self, joint):
        """The same from the formula: -sum_k v_k (d log p + d log q), weights per datum, or one of the minibatch."""
        total = torch.zeros(())
        for bits in itertools.product([0.0, 1.0], repeat=4):
            c = torch.tensor(bits).reshape(2, 2)
            log_p, log_q = self.log_p(c, self.x), self.log_q(c, self.x)
            log_w = (log_p - log_q).detach()
            v = (log_w.sum(1, keepdim=True) if joint else log_w).softmax(0)
            total = total - log_q.sum().exp().detach() * (v * (log_p + log_q)).sum()
        return list(torch.autograd.grad(total, self.leaves))


def test_reweighted_wake_sleep_is_the_enumeration_with_weights_per_datum():
    coins = Coins()
    found = coins.enumerated(objectives.ReweightedWakeSleep(2, max_plate_nesting=1))
    torch.testing.assert_close(found, coins.wanted(joint=False), rtol=ROUNDING, atol=ROUNDING)


def test_reweighted_wake_sleep_of_pyro_has_one_weight_for_the_minibatch():
    coins = Coins()
    found = coins.enumerated(pyro.infer.ReweightedWakeSleep(2, max_plate_nesting=1, strict_enumeration_warning=False))
    torch.testing.assert_close(found, coins.wanted(joint=True), rtol=ROUNDING, atol=ROUNDING)
    apart = [abs(one - other) for one, other in zip(found, coins.wanted(joint=False), strict=True)]
    assert max(apart) > 0.05


def test_reweighted_wake_sleep_of_a_datum_does_not_depend_on_the_others():
    coins = Coins()
    objective = objectives.ReweightedWakeSleep(2, max_plate_nesting=1)
    both = gradients(objective, *swapped(coins, torch.tensor([[1.0, 0.0], [0.0, 1.0]])), coins.x, coins.leaves)[1]
    one, other = (
        gradients(objective, *swapped(coins, torch.tensor([[c], [1 - c]])), coins.x[i : i + 1], coins.leaves)[1]
        for i, c in enumerate((1.0, 0.0))
    )
    torch.testing.assert_close(both, [a + b for a, b in zip(one, other, strict=True)], rtol=ROUNDING, atol=ROUNDING)


def swapped(coins, c):
    """The coins at given draws."""
    return [_Substitute({"c": c})(program) for program in (coins.model, coins.guide)]


def test_wake_phase_does_not_follow_a_draw_that_could_be_followed(fresh):
    layers, x = Layers(), torch.randn(3)
    torch.manual_seed(fresh)
    _, found = gradients(objectives.ReweightedWakeSleep(2, vectorize_particles=False), layers.model, layers.guide, x, layers.leaves)
    torch.manual_seed(fresh)
    a, s, b, c, t = layers.leaves
    log_q, log_w = [], []
    for _ in range(2):
        first, second = torch.randn(3), torch.randn(3)
        log_w.append(layers.held_parameters(x, first, second).detach())
        z1 = (a + s.exp() * first).detach()
        z2 = (b * z1 + c + t.exp() * second).detach()
        log_q.append(dist.Normal(a, s.exp()).log_prob(z1) + dist.Normal(b * z1 + c, t.exp()).log_prob(z2))
    expected = torch.autograd.grad(-(torch.stack(log_w).softmax(0) * torch.stack(log_q)).sum(), layers.leaves)
    torch.testing.assert_close(found, list(expected), rtol=ROUNDING, atol=ROUNDING)


def test_sleep_phase_is_the_expectation_over_the_model():
    # d/dr of -E_p(c, x) log q(c | x), log q(c | x) = c r x - softplus(r x): E[sigmoid(r x) x - c x], x | c ~ N(b c, 1), by quadrature.
    coins, n = Coins(), 40_000
    r = torch.full((n,), R, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", dist.Bernoulli(logits=r * x))

    objective = objectives.ReweightedWakeSleep(2, wake=0.0)
    _, (found,) = gradients(objective, coins.model, guide, torch.zeros(n), [r])
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(60))
    chance = torch.sigmoid(torch.tensor(M))
    expected = sum(
        p * (weights / weights.sum() * (torch.sigmoid(R * (B * c + nodes)) - c) * (B * c + nodes)).sum()
        for c, p in ((0.0, 1 - chance), (1.0, chance))
    )
    assert held([found], [expected]) < 4


def test_loss_of_the_importance_weighted_objectives_is_minus_their_bound(fresh):
    rows = Rows(5)
    found = []
    for objective in (
        objectives.DoublyReparameterized(3),
        objectives.ReweightedWakeSleep(3),
        RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True),
    ):
        objective.max_plate_nesting = 2  # the batch's and the particles': told, so that nothing is drawn to guess it
        torch.manual_seed(fresh)
        found.append(objective.loss(rows.model, rows.guide, rows.x))
    assert found[:2] == pytest.approx(found[2:] * 2, abs=ROUNDING)


# Free bits and capacity, on a decoder that ignores the latents: what is left is the price of the rate.


class Free:
    """q(z_d | x) = N(m_nd, 1): KL_nd = m_nd^2 / 2. Means over two data (0.02, 1, 1.5)."""

    def __init__(self):
        self.m = torch.tensor([[0.2, 1.0, -1.0], [-0.2, -1.0, math.sqrt(5)]], requires_grad=True)
        self.kl = torch.tensor([0.02, 0.5, 1.5])

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.m, 1.0).to_event(1))


CONSTANT = math.log(2 * math.pi)  # distortion of two data x = 0 under N(0, 1)
FREE_BITS = [
    ("dimension", 0.1, [0.1, 0.5, 1.5], [0, 1, 1]),
    ("dimension", 0.7, [0.7, 0.7, 1.5], [0, 0, 1]),
    ("site", 1.0, [2.02], [1, 1, 1]),
    ("site", 3.0, [3.0], [0, 0, 0]),
    ({"z": [5, 5, 2]}, 0.6, [1.5, 0.6], [0, 0, 1]),
    ({"z": [5, 2, 2]}, 0.1, [2.0, 0.1], [0, 1, 1]),
]


@pytest.mark.parametrize("vectorized", [False, True], ids=["loop", "plate"])
@pytest.mark.parametrize(("groups", "nats", "paid", "on"), FREE_BITS, ids=str)
def test_free_bits_pay_the_threshold_and_pull_what_is_above(groups, nats, paid, on, vectorized):
    free = Free()
    objective = objectives.FreeBits(nats, groups, num_particles=2, vectorize_particles=vectorized)
    loss, (found,) = gradients(objective, free.model, free.guide, torch.zeros(2), [free.m])
    assert loss == pytest.approx(CONSTANT + 2 * sum(paid), abs=ROUNDING)
    torch.testing.assert_close(found, free.m.detach() * torch.tensor(on), rtol=ROUNDING, atol=ROUNDING)


def test_free_bits_of_0_are_the_elbo(fresh):
    model, guide = pairs.ours()
    x = pairs.binary()
    found = []
    for objective in (objectives.FreeBits(0.0), TraceMeanField_ELBO()):
        torch.manual_seed(fresh)
        svi = SVI(model, guide, frozen, objective)
        found.append(svi.evaluate_loss(x))
    assert found[0] == pytest.approx(found[1], abs=ROUNDING)


def test_free_bits_without_a_closed_form_are_of_the_draw():
    # KL(Laplace(m, 1) || Normal) has none in torch: E[log q - log p] = m^2 / 2 + 1 - log 2 - 1 + log(2 pi) / 2.
    m = torch.full((40_000, 1), 0.5, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Laplace(m, torch.ones(())).to_event(1))

    loss, _ = gradients(objectives.FreeBits(0.0), model, guide, torch.zeros(len(m)), [m])
    rate = loss / len(m) - CONSTANT / 2
    z = dist.Laplace(0.5, 1.0).sample((100_000,))
    se = (dist.Laplace(0.5, 1.0).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).std() / len(m) ** 0.5
    expected = 0.125 + 1 - math.log(2) - 1 + math.log(2 * math.pi) / 2
    assert abs(rate - expected) < 4 * se


@pytest.mark.parametrize(("capacity", "sign"), [(1.0, 1), (5.0, -1)], ids=["above", "below"])
def test_capacity_pulls_the_rate_from_either_side(capacity, sign):
    free = Free()
    loss, (found,) = gradients(objectives.Capacity(capacity, gamma=3.0), free.model, free.guide, torch.zeros(2), [free.m])
    assert loss == pytest.approx(CONSTANT + 2 * 3.0 * abs(2.02 - capacity), abs=ROUNDING)
    torch.testing.assert_close(found, sign * 3.0 * free.m.detach(), rtol=ROUNDING, atol=ROUNDING)


def test_capacity_may_be_a_function_of_the_step():
    free = Free()
    svi = SVI(free.model, free.guide, frozen, objectives.Capacity(objectives.linear(0.0, 4.0, steps=4), gamma=1.0))
    svi._scales.step = 3
    loss = svi.loss(svi._model, svi._guide, torch.zeros(2))
    assert loss == pytest.approx(CONSTANT + 2 * (3.0 - 2.02), abs=ROUNDING)


def test_capacity_by_the_step_is_refused_where_nobody_tells_the_step():
    free = Free()
    with pytest.raises(ObjectiveError, match=r"a capacity that is a function of the step needs ppvae.SVI, which tells the step"):
        objectives.Capacity(objectives.linear(steps=4)).loss(free.model, free.guide, torch.zeros(2))


# Total correlation of three known Gaussians in the plane, by quadrature on a grid.


class Plane:
    """q(z) = (1/3) sum_n N(m_n, diag(s_n^2)), prior N(0, I), a decoder that ignores z."""

    def __init__(self):
        self.loc = torch.tensor([[-1.0, -0.8], [0.9, 1.1], [0.3, -0.2]], requires_grad=True)
        self.log_scale = torch.tensor([[-0.4, -0.6], [-0.5, -0.3], [-0.1, -0.7]], requires_grad=True)
        self.leaves = [self.loc, self.log_scale]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        rows = x.long()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc[rows], self.log_scale[rows].exp()).to_event(1))

    def exact(self):
        """Mutual information, total correlation and dimension-wise KL, differentiable."""
        grid = torch.linspace(-7, 7, 701)
        one = dist.Normal(self.loc[:, :, None], self.log_scale.exp()[:, :, None]).log_prob(grid)  # (3, 2, G)
        step = (grid[1] - grid[0]).item()
        joint = (one[:, 0, :, None] + one[:, 1, None, :]).logsumexp(0) - math.log(3)
        single = one.logsumexp(0) - math.log(3)
        prior = dist.Normal(0.0, 1.0).log_prob(grid)
        entropy = -(joint.exp() * joint).sum() * step**2
        entropies = -(single.exp() * single).sum(-1) * step
        conditional = (0.5 * math.log(2 * math.pi * math.e) + self.log_scale).sum(-1).mean()
        return entropy - conditional, entropies.sum() - entropy, (-entropies.sum() - (single.exp() * prior).sum() * step)


WEIGHTS = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["mutual information", "total correlation", "dimensions"])
def test_total_correlation_is_the_decomposition_of_a_known_mixture(weights):
    plane, draws = Plane(), 400
    alpha, beta, gamma = weights
    x = torch.arange(3.0)
    constant = -dist.Normal(0.0, 1.0).log_prob(x).sum().item()
    objective = objectives.TotalCorrelation(beta, alpha=alpha, gamma=gamma)
    losses, found = [], [[], []]
    for _ in range(draws):
        loss, both = gradients(objective, plane.model, plane.guide, x, plane.leaves)
        losses.append((loss - constant) / 3)
        for kept, gradient in zip(found, both, strict=True):
            kept.append(gradient.flatten() / 3)
    exact = sum(w * part for w, part in zip(weights, plane.exact(), strict=True))
    losses = torch.tensor(losses)
    assert abs(losses.mean() - exact.item()) < 4 * losses.std() / draws**0.5
    for kept, expected in zip(found, torch.autograd.grad(exact, plane.leaves), strict=True):
        kept = torch.stack(kept)
        assert ((kept.mean(0) - expected.flatten()).abs() < 4 * kept.std(0) / draws**0.5).all()


@pytest.mark.parametrize("stratified", [{}, {"sampling": "stratified", "num_data": 9}], ids=["weighted", "stratified"])
def test_total_correlation_with_weights_of_1_is_the_elbo_of_the_draw(stratified, fresh):
    model, guide = pairs.ours()
    x = pairs.binary(5 if stratified else 20)
    found = []
    for objective in (objectives.TotalCorrelation(1.0, **stratified), Trace_ELBO()):
        torch.manual_seed(fresh)
        found.append(SVI(model, guide, frozen, objective).evaluate_loss(x))
    assert found[0] == pytest.approx(found[1], abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_stratified_weights_are_unbiased_over_all_minibatches(size):
    # the mean over all ordered minibatches that begin with datum 0 of sum_j weight_0j q_j is (1/N) sum_n q_n
    densities = torch.tensor([0.3, 1.7, 0.9, 4.1])
    weights = log_batch_weights(size, 4).exp()
    found = [(weights[0] * densities[[0, *others]]).sum() for others in itertools.permutations([1, 2, 3], size - 1)]
    assert abs(torch.stack(found).mean() - densities.mean()) < ROUNDING
    torch.testing.assert_close(weights.sum(1), torch.ones(size, dtype=weights.dtype))


# Cyclical annealing.


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 0.0), (5, 0.4), (12, 0.96), (13, 1.0), (24, 1.0), (25, 0.0), (30, 0.4), (75, 0.0), (99, 1.0), (100, 1.0), (10**6, 1.0)],
    ids=str,
)
def test_cyclical_weight_rises_in_half_of_each_cycle(step, value):
    # T = 100, M = 4, R = 1/2: tau = (t mod 25) / 25, f = min(1, tau / 0.5)
    assert objectives.cyclical(cycles=4, rising=0.5, steps=100)(step) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(("step", "value"), [(3, 0.9), (4, 0.0), (7, 0.9), (8, 0.0), (9, 0.3)], ids=str)
def test_cycles_that_do_not_divide_the_steps_last_one_step_longer(step, value):
    # T = 10, M = 3: a cycle is ceil(10 / 3) = 4 steps, tau = (t mod 4) / (10 / 3), so that tau = 0.9 at its last
    assert objectives.cyclical(cycles=3, rising=1.0, steps=10)(step) == pytest.approx(value, abs=1e-15)


def test_cyclical_is_over_all_steps_unless_told():
    assert objectives.cyclical(0.0, 2.0, cycles=2).resolved(60) == objectives.Cyclical(0.0, 2.0, steps=60, cycles=2)


def test_cyclical_is_a_value_that_prints_and_pickles():
    weight = objectives.cyclical(steps=100)
    assert str(weight) == "0 -> 1 over 100 steps in 4 cycles, rising in 50% of each"
    assert pickle.loads(pickle.dumps(weight)) == weight != objectives.cyclical(steps=100, cycles=5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cycles": 0}, "cycles are a whole number of at least 1, got 0"),
        ({"rising": 0.0}, "the rising share of a cycle lies in (0, 1], got 0.0"),
    ],
    ids=["no cycle", "no rise"],
)
def test_cycles_that_make_no_sense_are_refused(arguments, text):
    with pytest.raises(ObjectiveError) as raised:
        objectives.cyclical(steps=5, **arguments)
    assert str(raised.value) == text


# Aggressive updates. q(z | x) = N(a, 1) and a decoder that ignores z: the guide's loss per datum is a^2 / 2 + constant, and SGD with rate
# r takes a to (1 - r) a.


class Pulled:
    def __init__(self, n=6):
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.tensor(0.5))
        self.x = torch.ones(n, 1)

    def model(self, x):
        pyro.module("b", nn.ParameterList([self.b]))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.b.expand(1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("a", nn.ParameterList([self.a]))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.a.expand(1), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("rate", "window", "updates"),
    [(1.0, 1, 3), (1.0, 2, 6), (2.0, 1, 2), (2.0, 3, 6), (0.1, 1, 20), (0.1, 7, 20)],
    ids=["there at once", "there at once, by twos", "to and fro", "to and fro, by threes", "ever lower", "ever lower, by sevens"],
)
def test_the_guide_is_updated_until_a_window_is_not_below_the_last(rate, window, updates):
    # rate 1: losses a^2/2, 0, 0: the third is not below the second. rate 2: a, -a, a: the second is not below the first. rate 0.1: to most.
    pulled = Pulled()
    inner = functools.partial(torch.optim.SGD, lr=rate)
    objective = objectives.Aggressive(pulled.x, TraceMeanField_ELBO(), inner, window=window, most=20, every=10)
    svi = SVI(pulled.model, pulled.guide, sgd, objective)
    svi.step(pulled.x)
    assert objective.inner_updates == updates
    assert pulled.a.item() == pytest.approx((1 - rate) ** updates, abs=ROUNDING)


def test_the_step_itself_moves_the_model_alone():
    # d/db of the sum over 6 data of (1 - b)^2 / 2 is -6 (1 - b) = -3: b goes from 0.5 to 0.8
    pulled = Pulled()
    inner = functools.partial(torch.optim.SGD, lr=1.0)
    objective = objectives.Aggressive(pulled.x, TraceMeanField_ELBO(), inner, window=1, every=10)
    SVI(pulled.model, pulled.guide, sgd, objective).step(pulled.x)
    assert (pulled.a.item(), pulled.b.item()) == pytest.approx((0.0, 0.8), abs=ROUNDING)


def test_it_ends_when_the_mutual_information_does_not_rise():
    # q does not depend on x: its information is 0, which rises from nothing at the first measurement and not at the second
    pulled = Pulled()
    objective = objectives.Aggressive(pulled.x, TraceMeanField_ELBO(), frozen, window=1, most=1, every=2)
    svi = SVI(pulled.model, pulled.guide, sgd, objective)
    for _ in range(6):
        svi.step(pulled.x)
    assert [(row["step"], row["aggressive"]) for row in objective.record] == [(2, True), (4, False)]
    assert objective.inner_updates == 4
    assert pulled.a.item() != 1.0  # the steps after it trained the guide


def test_mutual_information_of_codes_that_never_meet_is_log_n():
    model, _ = pairs.exact()
    x = torch.arange(8.0)[:, None].expand(8, 3).contiguous()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(100 * x[:, :2], 1.0).to_event(1))

    assert mutual_information(model, guide, x) == pytest.approx(math.log(8), abs=ROUNDING)


def test_mutual_information_is_that_of_latent_usage():
    model, guide = pairs.exact()
    x = pairs.real()
    found = analysis.latent_usage(model, guide, x, seed=3)
    assert mutual_information(model, guide, x, seed=3) == pytest.approx(found.mutual_information, abs=ROUNDING)


# All of them in the two SVIs, in fit, captured, and what they refuse.

SHELF = {
    "DReG": lambda x: objectives.DoublyReparameterized(2),
    "STL": lambda x: objectives.StickingTheLanding(),
    "RWS": lambda x: objectives.ReweightedWakeSleep(2, wake=0.5),
    "free bits": lambda x: objectives.FreeBits(0.1),
    "capacity": lambda x: objectives.Capacity(0.5, gamma=2.0),
    "TC": lambda x: objectives.TotalCorrelation(4.0),
    "aggressive": lambda x: objectives.Aggressive(x, window=1, most=2),
}


@pytest.mark.parametrize("name", SHELF)
def test_it_trains_alike_in_both_svis(name, fresh):
    x, ends = pairs.binary(), []
    model, guide = pairs.ours()
    for svi_of in (
        lambda m, g, o: SVI(m, g, functools.partial(torch.optim.Adam, lr=0.01), o),
        lambda m, g, o: pyro.infer.SVI(m, g, pyro.optim.Adam({"lr": 0.01}), o),
    ):
        pyro.clear_param_store()
        pair = copy.deepcopy((model, guide))
        svi = svi_of(*pair, SHELF[name](x))
        svi.evaluate_loss(x)
        torch.manual_seed(fresh)
        losses = [svi.step(x) for _ in range(3)]
        ends.append((losses, [p.detach() for program in pair for p in program.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHELF)
def test_fit_keeps_the_true_elbo_beside_the_objective(name):
    x = pairs.binary()
    run = fit(*pairs.ours(), x, objective=SHELF[name](x), epochs=2, batch_size=10)
    row = run.history[-1]
    assert row["train_elbo"] == pytest.approx(-row["rate"] - row["distortion"], abs=1e-9)
    assert row["objective"] != pytest.approx(row["train_elbo"], abs=1e-6)


CAPTURED = {name: make for name, make in SHELF.items() if name in ("RWS", "free bits", "capacity", "TC")}


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_steps_are_the_eager_ones(name, fresh):
    x, ends = pairs.binary(), []
    model, guide = pairs.ours()
    for compile in (True, False):
        pyro.clear_param_store()
        svi = SVI(
            *copy.deepcopy((model, guide)), functools.partial(torch.optim.Adam, lr=0.01, eps=1e-3), CAPTURED[name](x), compile=compile
        )
        svi.engine.backend = lambda graph, inputs: graph
        svi.prepare(x)
        svi.evaluate_loss(x)
        torch.manual_seed(fresh)
        ends.append([svi.step(x) for _ in range(4)])
        assert bool(svi.engine.steps) == compile, svi.engine.reason
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)


def test_the_others_say_why_their_steps_are_eager():
    rows = Rows(3)
    svi = SVI(rows.model, rows.guide, frozen, objectives.StickingTheLanding())
    reason = "its gradient is taken in two passes, of which a compiled step has one"
    assert svi.engine.reason == f"steps with StickingTheLanding are not captured: {reason}"


@pytest.mark.parametrize("name", ["DReG", "RWS", "free bits", "capacity", "TC"])
def test_beta_is_refused_where_it_would_be_another_objective(name):
    with pytest.raises(ObjectiveError, match="would not be the weighted ELBO"):
        SVI(*pairs.ours(), frozen, SHELF[name](pairs.binary()), beta=0.5)


@pytest.mark.parametrize("name", ["DReG", "STL", "free bits", "capacity", "TC"])
def test_a_latent_that_is_not_reparameterised_is_refused(name):
    coins = Coins()
    with pytest.raises(ObjectiveError, match=r"site 'c' \(Bernoulli\) is not reparameterised"):
        SHELF[name](coins.x[:, None]).loss_and_grads(coins.model, coins.guide, coins.x)


@pytest.mark.parametrize("name", ["DReG", "RWS", "free bits", "TC"])
def test_a_global_site_is_refused(name):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w[..., None] * z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    x = torch.ones(3, 1)
    with pytest.raises(ObjectiveError, match="site 'w' lies outside the data plate"):
        SHELF[name](x).loss(model, guide, x)


def test_a_scale_of_one_site_is_refused():
    rows = Rows(3)
    scaled = poutine.scale(rows.guide, scale=2.0)
    with pytest.raises(ObjectiveError, match=r"sites have different scales, \[1.0, 2.0\]"):
        objectives.DoublyReparameterized(2).loss(rows.model, scaled, rows.x)


def test_a_scale_of_both_programs_stays_outside_of_the_weights(fresh):
    rows, objective = Rows(3), objectives.DoublyReparameterized(2, max_plate_nesting=1)
    found = []
    for scale in (1.0, 3.0):
        torch.manual_seed(fresh)
        found.append(objective.loss(poutine.scale(rows.model, scale=scale), poutine.scale(rows.guide, scale=scale), rows.x))
    assert found[1] == pytest.approx(3 * found[0], abs=ROUNDING)


def test_a_guide_whose_dimensions_depend_on_each_other_has_no_free_bits_by_dimension():
    model = models.Bernoulli(MLP(2, [4], 6), latent_dim=2)
    guide = guides.FullRankNormal(MLP(6, [4], 5), latent_dim=2)
    with pytest.raises(ObjectiveError, match="the dimensions of site 'z' cannot be told apart: MultivariateNormal in the guide"):
        objectives.FreeBits(0.1).loss(model, guide, pairs.binary())
    with pytest.raises(ObjectiveError, match="site 'z' has to factorise over one event"):
        objectives.TotalCorrelation(2.0).loss(model, guide, pairs.binary())


@pytest.mark.parametrize("name", ["DReG", "STL", "RWS"])
def test_a_flow_without_an_inverse_is_refused(name):
    model, _ = pairs.exact()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(x[:, :2].exp().requires_grad_(), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.Planar(2)]))

    with pytest.raises(ObjectiveError, match="site 'z' has no density at a given point"):
        SHELF[name](None).loss_and_grads(model, guide, pairs.real())


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (objectives.DoublyReparameterized(4), "DoublyReparameterized(num_particles=4)"),
        (objectives.FreeBits(0.1, {"z": [0, 1]}), "FreeBits(nats=0.1, groups={'z': [0, 1]}, num_particles=1)"),
        (
            objectives.Capacity(objectives.linear(0, 25, steps=10), gamma=5.0),
            "Capacity(capacity=0 -> 25 over 10 steps, gamma=5, num_particles=1)",
        ),
        (objectives.ReweightedWakeSleep(4, wake=0.5), "ReweightedWakeSleep(num_particles=4, wake=0.5)"),
        (
            objectives.TotalCorrelation(6.0),
            "TotalCorrelation(alpha=1.0, beta=6.0, gamma=1.0, num_particles=1, sampling=weighted)",
        ),
        (
            objectives.Aggressive(torch.zeros(4, 1), most=5),
            "Aggressive(Trace_ELBO(num_particles=1), window=10, most=5, every=None, num_mutual=500, seed=0)",
        ),
    ],
    ids=lambda value: value.partition("(")[0] if isinstance(value, str) else "",
)
def test_an_objective_prints_what_it_is(objective, text):
    assert str(objective) == text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: objectives.DoublyReparameterized(1), "importance weights need at least 2 particles, got 1"),
        (lambda: objectives.ReweightedWakeSleep(4, wake=1.5), "wake is the share of the wake phase, in [0, 1], got 1.5"),
        (lambda: objectives.FreeBits(-1.0), "free bits are a number of nats >= 0, got -1.0"),
        (lambda: objectives.FreeBits(0.1, "units"), "groups are 'dimension', 'site' or numbers by site, got 'units'"),
        (lambda: objectives.Capacity(-1.0), "capacity is a number >= 0, got -1.0"),
        (lambda: objectives.TotalCorrelation(-1.0), "beta is a number >= 0, got -1.0"),
        (lambda: objectives.TotalCorrelation(2.0, sampling="all"), "sampling is 'weighted' or 'stratified', got 'all'"),
        (lambda: objectives.TotalCorrelation(2.0, sampling="stratified"), "num_data is the size of the training data, for stratified"),
    ],
    ids=["one particle", "wake", "nats", "groups", "capacity", "beta", "sampling", "no size"],
)
def test_arguments_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ObjectiveError) as raised:
        make()
    assert str(raised.value).startswith(text)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ppvae.objectives' has no attribute 'Nothing'"):
        objectives.Nothing  # noqa: B018


def test_capacity_follows_the_steps_of_the_svi():
    free = Free()
    svi = SVI(free.model, free.guide, frozen, objectives.Capacity(objectives.linear(0.0, 4.0, steps=4), gamma=1.0))
    found = [svi.step(torch.zeros(2)) for _ in range(5)]
    assert found == pytest.approx([CONSTANT + 2 * abs(2.02 - c) for c in range(5)], abs=1e-10)


def test_a_run_is_not_resumed_with_another_threshold(tmp_path):
    x = pairs.binary()
    fit(*pairs.ours(), x, objective=objectives.FreeBits(0.1), epochs=1, out=tmp_path / "run")
    with pytest.raises(RunError, match="FreeBits\\(nats=0.1"):
        fit(*pairs.ours(), x, objective=objectives.FreeBits(0.2), epochs=2, out=tmp_path / "run", resume=True)
