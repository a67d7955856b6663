"""A weighted objective is w * distortion + beta * rate, value and gradient, where scaling sites gives it; elsewhere it is refused."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch.distributions import kl_divergence

import pairs
from ppvae import SVI, objectives
from ppvae.errors import ObjectiveError
from ppvae.objectives import Linear, linear, weight_at

ROUNDING = 1e-9
WEIGHTS = [(1.0, 1.0), (0.3, 1.0), (4.0, 0.5), (0.0, 1.0), (1.0, 0.0)]
NAMES = [f"beta={beta:g} w={w:g}" for beta, w in WEIGHTS]
frozen = functools.partial(torch.optim.SGD, lr=0.0)


@pytest.mark.parametrize(("step", "value"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (400, 1.0)], ids=str)
def test_linear_goes_from_start_to_end_and_stays(step, value):
    assert linear(0.0, 1.0, steps=4)(step) == value


def test_linear_goes_down_too():
    assert linear(4.0, 1.0, steps=3)(1) == 3.0


@pytest.mark.parametrize(("fraction", "total", "steps"), [(0.1, 200, 20), (1.0, 7, 7), (0.25, 6, 2), (0.001, 10, 1)], ids=str)
def test_fraction_is_resolved_to_steps(fraction, total, steps):
    assert linear(fraction=fraction).resolved(total) == Linear(0.0, 1.0, steps=steps)


def test_warm_up_in_steps_is_not_changed_by_their_number():
    assert linear(steps=5).resolved(1000) == linear(steps=5)


@pytest.mark.parametrize(
    ("weight", "text"),
    [(linear(steps=1500), "0 -> 1 over 1,500 steps"), (linear(4, 0.5, fraction=0.1), "4 -> 0.5 over 10% of the steps")],
    ids=["steps", "fraction"],
)
def test_linear_prints_as_a_phrase(weight, text):
    assert str(weight) == text


@pytest.mark.parametrize(("weight", "value"), [(2, 2.0), (0, 0.0), (0.5, 0.5), (lambda step: step / 4, 0.75)], ids=["2", "0", "0.5", "f"])
def test_weight_is_a_number_or_a_function_of_the_step(weight, value):
    assert weight_at(weight, 3) == value


@pytest.mark.parametrize(
    "weight", [-0.1, float("nan"), float("inf"), True, "1", lambda step: -1.0], ids=["negative", "nan", "inf", "bool", "str", "function"]
)
def test_weight_that_is_no_number_from_0_on_is_refused(weight):
    value = weight(0) if callable(weight) else weight
    with pytest.raises(ObjectiveError) as raised:
        weight_at(weight, 0)
    assert str(raised.value) == f"beta and likelihood_weight are finite numbers >= 0, got {value!r}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "a linear warm-up needs steps or fraction, one of them\n  mend:  Linear(0, 1, fraction=0.1)"),
        ({"steps": 5, "fraction": 0.1}, "a linear warm-up needs steps or fraction, one of them\n  mend:  Linear(0, 1, fraction=0.1)"),
        ({"steps": 0}, "a warm-up lasts at least one step, got steps=0"),
        ({"fraction": 0.0}, "the fraction of a warm-up lies in (0, 1], got 0.0"),
        ({"fraction": 1.5}, "the fraction of a warm-up lies in (0, 1], got 1.5"),
        ({"start": -1.0, "steps": 5}, "beta and likelihood_weight are finite numbers >= 0, got -1.0"),
        ({"end": float("inf"), "steps": 5}, "beta and likelihood_weight are finite numbers >= 0, got inf"),
    ],
    ids=["neither", "both", "no step", "no share", "more than all", "negative start", "infinite end"],
)
def test_linear_that_makes_no_sense_is_refused(arguments, text):
    with pytest.raises(ObjectiveError) as raised:
        linear(**arguments)
    assert str(raised.value) == text


def test_fraction_needs_the_number_of_steps():
    with pytest.raises(ObjectiveError, match=r"a warm-up given as a fraction needs the number of steps\n  mend:  Linear\(...\).resolved"):
        linear(fraction=0.5)(0)


# The pair of the formulas: z ~ N(0, 1), x | z ~ N(w z, 1), q(z | x) = N(a x, s), for data (N,).


def model(x):
    w = pyro.param("w", torch.tensor(0.7))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)


def guide(x):
    a, s = pyro.param("a", torch.tensor(0.4)), pyro.param("s", torch.tensor(0.6))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(a * x, s))


def parameters():
    return {name: torch.tensor(value, requires_grad=True) for name, value in (("w", 0.7), ("a", 0.4), ("s", 0.6))}


def by_draw(p, x, beta, weight):
    """w * distortion + beta * rate at the draw that the guide makes from the generator as it stands."""
    q = dist.Normal(p["a"] * x, p["s"])
    z = q.rsample()
    distortion = -dist.Normal(p["w"] * z, 1.0).log_prob(x).sum()
    rate = (q.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum()
    return weight * distortion + beta * rate


def by_closed_kl(p, x, beta, weight):
    """The same with KL(N(a x, s^2) || N(0, 1)) = (s^2 + a^2 x^2 - 1) / 2 - log s in place of the draw's rate."""
    z = dist.Normal(p["a"] * x, p["s"]).rsample()
    distortion = -dist.Normal(p["w"] * z, 1.0).log_prob(x).sum()
    rate = ((p["s"] ** 2 + (p["a"] * x) ** 2 - 1) / 2 - p["s"].log()).sum()
    return weight * distortion + beta * rate


FORMULAS = [(Trace_ELBO, by_draw), (TraceMeanField_ELBO, by_closed_kl), (TraceGraph_ELBO, by_draw)]


def loss_and_gradient(svi, x, seed):
    """Loss and gradient of one step that moves nothing, by parameter name."""
    svi.evaluate_loss(x)  # parameters are born
    found = {}
    svi.optim = lambda params: found.update({pyro.get_param_store().param_name(p): p.grad.clone() for p in params})
    torch.manual_seed(seed)
    return svi.step(x), found


@pytest.mark.parametrize(("beta", "weight"), WEIGHTS, ids=NAMES)
@pytest.mark.parametrize(("elbo", "formula"), FORMULAS, ids=[elbo.__name__ for elbo, _ in FORMULAS])
def test_weighted_loss_and_gradient_are_the_formula(elbo, formula, beta, weight, fresh):
    x, p = torch.randn(5), parameters()
    torch.manual_seed(fresh)
    expected = formula(p, x, beta, weight)
    expected.backward()
    loss, gradient = loss_and_gradient(SVI(model, guide, frozen, elbo(), beta, weight), x, fresh)
    assert abs(loss - expected.item()) < ROUNDING
    assert all(abs(gradient[name] - p[name].grad) < ROUNDING for name in p)


@pytest.mark.parametrize(("beta", "weight"), WEIGHTS, ids=NAMES)
def test_evaluated_loss_is_the_formula(beta, weight, fresh):
    x = torch.randn(5)
    torch.manual_seed(fresh)
    expected = by_draw(parameters(), x, beta, weight).item()
    torch.manual_seed(fresh)
    assert abs(SVI(model, guide, frozen, beta=beta, likelihood_weight=weight).evaluate_loss(x) - expected) < ROUNDING


def mixture_parts(x):
    """(q, distortion, rate) by datum and component of ``pairs.mixture``, and the leaves."""
    leaves = [torch.tensor(v, requires_grad=True) for v in ([-1.0, 0.2, 1.5], [0.5, -0.2, 0.1])]
    log_q = (x * leaves[1]).log_softmax(-1)
    distortion = -dist.Normal(leaves[0], 1.0).log_prob(x)
    return log_q, distortion, log_q - torch.tensor([0.5, 0.3, 0.2]).log(), leaves


@pytest.mark.parametrize(("beta", "weight"), WEIGHTS, ids=NAMES)
def test_weighted_enumeration_is_the_exact_expectation(beta, weight, fresh):
    x = torch.randn(5, 1)
    log_q, distortion, rate, leaves = mixture_parts(x)
    expected = (log_q.exp() * (weight * distortion + beta * rate)).sum()
    expected.backward()
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    loss, gradient = loss_and_gradient(SVI(*pairs.mixture(), frozen, elbo, beta, weight), x, fresh)
    assert abs(loss - expected.item()) < ROUNDING
    torch.testing.assert_close([gradient["means"], gradient["slopes"]], [leaf.grad for leaf in leaves], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("beta", "weight"), WEIGHTS, ids=NAMES)
def test_score_function_gradient_has_the_weighted_cost(beta, weight, fresh):
    # Without enumeration, at the draw c: gradient of (w * distortion + beta * rate, constant) * log q(c) + w * distortion. Pyro leaves
    # out the gradient of beta * log q(c), whose expectation is 0.
    x = torch.randn(5, 1)
    log_q, distortion, rate, leaves = mixture_parts(x)
    torch.manual_seed(fresh)
    c = dist.Categorical(logits=x * leaves[1]).sample()[:, None]
    cost = (weight * distortion + beta * rate).detach()
    (cost * log_q + weight * distortion).gather(1, c).sum().backward()
    _, gradient = loss_and_gradient(SVI(*pairs.mixture("nobody"), frozen, Trace_ELBO(), beta, weight), x, fresh)
    torch.testing.assert_close([gradient["means"], gradient["slopes"]], [leaf.grad for leaf in leaves], rtol=0, atol=ROUNDING)


def test_scheduled_beta_is_that_of_the_step(fresh):
    x, svi = torch.randn(5), SVI(model, guide, frozen, beta=linear(0.0, 1.0, steps=4))
    svi.step(x), svi.step(x), svi.step(x)
    torch.manual_seed(fresh)
    expected = by_draw(parameters(), x, 0.75, 1.0).item()
    torch.manual_seed(fresh)
    assert abs(svi.step(x) - expected) < ROUNDING


def test_masks_and_the_user_s_own_scales_multiply_with_beta(fresh):
    x = torch.randn(5)
    torch.manual_seed(fresh)
    expected = 3.0 * by_draw(parameters(), x, 0.5, 1.0).item()
    torch.manual_seed(fresh)
    tripled = SVI(pyro.poutine.scale(model, scale=3.0), pyro.poutine.scale(guide, scale=3.0), frozen, beta=0.5)
    assert abs(tripled.evaluate_loss(x) - expected) < ROUNDING


class Subclass(Trace_ELBO):
    pass


def own_loss(model, guide, x):
    return torch.zeros((), requires_grad=True)


NOT_LINEAR = "it is not linear in the log densities (or not known to be), so that scaled sites are another objective"
REFUSED = [
    (RenyiELBO(), "RenyiELBO", NOT_LINEAR),
    (Subclass(), "Subclass", NOT_LINEAR),
    (JitTrace_ELBO(), "JitTrace_ELBO", "a Jit ELBO traces the weight once and keeps its first value for ever, silently"),
    (own_loss, "function", "a loss of your own decides by itself how log densities enter"),
]


@pytest.mark.parametrize("weights", [{"beta": 0.5}, {"likelihood_weight": 2.0}, {"beta": linear(steps=5)}], ids=["beta", "w", "schedule"])
@pytest.mark.parametrize(("objective", "name", "reason"), REFUSED, ids=[name for _, name, _ in REFUSED])
def test_weight_is_refused_where_it_would_be_another_objective(objective, name, reason, weights):
    with pytest.raises(ObjectiveError) as raised:
        SVI(model, guide, frozen, objective, **weights)
    assert str(raised.value) == (
        f"{next(iter(weights))} with {name} would not be the weighted ELBO: {reason}\n"
        "  mend:  leave the weight at 1\n"
        "     or: use one of Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO"
    )


def test_weight_on_a_site_that_the_model_enumerates_is_refused():
    svi = SVI(*pairs.marginal_mixture(), frozen, TraceEnum_ELBO(max_plate_nesting=1), beta=0.5)
    with pytest.raises(ObjectiveError) as raised:
        svi.step(torch.randn(5, 1))
    assert str(raised.value) == (
        "site 'c' is enumerated on the model's side; a weight other than 1 would act inside its sum\n"
        "  mend:  leave beta and likelihood_weight at 1\n"
        "     or: draw 'c' in the guide, with infer={'enumerate': 'parallel'}"
    )


def test_model_enumeration_without_a_weight_is_the_marginal_likelihood():
    # log p(x) = log sum_c weight_c N(x; mean_c, 1)
    x = torch.randn(5, 1)
    log_joint = torch.tensor([0.5, 0.3, 0.2]).log() + dist.Normal(torch.tensor([-1.0, 0.2, 1.5]), 1.0).log_prob(x)
    found = SVI(*pairs.marginal_mixture(), frozen, TraceEnum_ELBO(max_plate_nesting=1)).step(x)
    assert abs(found + log_joint.logsumexp(-1).sum().item()) < ROUNDING


def test_scales_leave_a_weight_of_1_alone():
    with objectives.Scales():
        found = pyro.poutine.trace(model).get_trace(torch.randn(5))
    assert found.nodes["z"]["scale"] == 1.0


@pytest.mark.parametrize(("subsample", "scale"), [(None, 20 / 5), (5, 20 / 5)], ids=["plate of the batch", "subsampling plate"])
def test_data_are_scaled_up_once(subsample, scale):
    def program():
        with pyro.plate("data", 20 if subsample else 5, subsample_size=subsample, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with objectives.Scales(data=20 / 5):
        found = pyro.poutine.trace(program).get_trace()
    assert found.nodes["x"]["scale"] == scale


def test_closed_kl_of_the_formula_is_pyro_s():
    p, x = parameters(), torch.randn(5)
    found = kl_divergence(dist.Normal(p["a"] * x, p["s"]), dist.Normal(0.0, 1.0)).sum()
    expected = ((p["s"] ** 2 + (p["a"] * x) ** 2 - 1) / 2 - p["s"].log()).sum()
    assert abs(found - expected) < ROUNDING
