"""Measurement by compiled functions gives the numbers of the eager programs, draw for draw; and where it cannot, it runs them."""

from __future__ import annotations

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch

import pairs
import ppvae
from ppvae import bernoulli, compilation, models
from ppvae.capture import NotCaptured, capture
from ppvae.compilation import CompiledFunction
from ppvae.errors import ArgumentError
from ppvae.guides import DiagonalNormal
from ppvae.nn import MLP
from ppvae.pair import Pair
from ppvae.policy import compiling, worth
from ppvae.refinement import fit


@pytest.fixture
def graphs(monkeypatch):
    """Captured graphs run operation by operation, without inductor: what is tested is the capture. Counts them."""
    made = []

    def uncompiled(graph, inputs):
        made.append(graph)
        return graph

    monkeypatch.setattr(compilation, "compiled", uncompiled)
    return made


def float32():
    model, guide = models.Bernoulli(MLP(2, [8], 64), latent_dim=2), DiagonalNormal(MLP(64, [8], 4), latent_dim=2)
    return model.float(), guide.float()


def of_tuple():
    model, guide = pairs.registered()
    return lambda x: model(x[0]), lambda x: guide(x[0])


def twice(x):
    return x, x[:, 0]


CASES = {
    "two functions": (pairs.registered, pairs.real(130)),
    "bound methods": (pairs.bound, pairs.images(130)),
    "Bernoulli of 64 pixels, float32": (float32, pairs.binary(130, 64).float()),
    "a network that refuses leading dimensions": (lambda: pairs.refusing(torch.nn.Linear(2, 6).double()), None),
    "a global site": (pairs.unknown_mean, pairs.real(130)),
    "a tuple": (of_tuple, twice(pairs.real(130))),
    "BatchNorm": (pairs.with_batch_norm, pairs.binary(130)),
}


@pytest.mark.parametrize("name", [name for name, (_, x) in CASES.items() if x is not None])
def test_compiled_weights_are_the_eager_ones(name, graphs):
    make, x = CASES[name]
    torch.manual_seed(0)
    model, guide = make()
    with compiling(False):
        expected = ppvae.log_weights(model, guide, x, num_particles=200, seed=3)
    with compiling(True):
        found = ppvae.log_weights(model, guide, x, num_particles=200, seed=3)
    assert graphs
    single = name.endswith("float32")
    # a sum of 64 float32 terms of size 1, against rounding alone in float64
    assert torch.allclose(found, expected, rtol=0, atol=1e-4 if single else 1e-9)


def test_compiled_weights_of_a_local_posterior_take_its_own_rows(graphs):
    torch.manual_seed(0)
    model, guide = pairs.registered()
    x = pairs.real(130)
    local = fit(Pair(model, guide, x, 0), x, family="mean_field", steps=4, report=False).guide
    with compiling(False):
        expected = ppvae.log_weights(model, local, x, num_particles=200, seed=3)
    graphs.clear()
    with compiling(True):
        found = ppvae.log_weights(model, local, x, num_particles=200, seed=3)
    assert graphs
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert not torch.allclose(expected[:, :64].mean(0), expected[:, 64:128].mean(0))  # blocks differ, so that a frozen one would show


@pytest.mark.parametrize("family", ["full_rank", "mean_field"])
def test_compiled_refinement_is_the_eager_one(family, graphs):
    torch.manual_seed(0)
    model, guide = pairs.registered()
    x = pairs.real(70)
    pair = Pair(model, guide, x, 0)
    found = []
    for choice in (False, True):
        with compiling(choice):
            found.append(fit(pair, x, family=family, steps=20, num_draws=64, report=False).guide)
    assert graphs
    for site, table in found[0].tables.items():
        assert torch.allclose(found[1].tables[site], table, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_compiled_annealing_is_the_eager_one(start, graphs):
    torch.manual_seed(0)
    model, guide = pairs.registered()
    x = pairs.real(20)
    found = []
    for choice in (False, True):
        with compiling(choice):
            given = {"guide": guide} if start == "guide" else {}
            found.append(ppvae.analysis.annealed_log_likelihood(model, x, num_temperatures=12, num_chains=8, seed=1, **given).pointwise)
    assert graphs
    # float64: no acceptance is so near its threshold that rounding would turn it
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-8)


def test_whole_road_through_inductor():
    torch.manual_seed(0)
    model, guide = float32()
    x = pairs.binary(64, 64).float()
    with compiling(False):
        expected = ppvae.log_weights(model, guide, x, num_particles=192, seed=3)
    with compiling(True):
        found = ppvae.log_weights(model, guide, x, num_particles=192, seed=3)
    assert not torch.equal(found, expected)  # another order of summation: it did not run eagerly
    assert torch.allclose(found.logsumexp(0), expected.logsumexp(0), rtol=0, atol=1e-4)


@pytest.mark.soak
def test_annealing_from_the_prior_through_inductor():
    # its first draws lie in memory otherwise than every later position: machine code must not walk the one as the other
    torch.manual_seed(0)
    model, _ = float32()
    x = pairs.binary(64, 64).float()
    found = []
    for choice in (False, True):
        with compiling(choice):
            found.append(ppvae.analysis.annealed_log_likelihood(model, x, num_temperatures=12, num_chains=8, step_size=0.2, seed=1))
    # float32: a few of the chains may turn at a near tie, and then differ as any two chains do
    se = (found[0].pointwise_se.square() + found[1].pointwise_se.square()).sqrt()
    assert ((found[0].pointwise - found[1].pointwise).abs() < 0.2 * se + 1e-4).double().mean() > 0.9
    assert found[0].acceptance.mean() > 0.9 and found[1].acceptance.mean() > 0.9


@pytest.mark.soak
def test_inputs_may_lie_in_memory_in_any_way():
    values = torch.arange(12.0).reshape(3, 4)
    function = CompiledFunction(lambda x: [x + torch.arange(4.0)])
    expected = values + torch.arange(4.0)
    for laid in (values, values.t().contiguous().t(), torch.stack([values, values], -1)[..., 0]):
        assert torch.equal(function(laid)[0], expected)
    same = torch.ones(3, 1).expand(3, 4)  # first an input that repeats its memory, then one that does not
    function = CompiledFunction(lambda x: [x * 2])
    assert torch.equal(function(same)[0], 2 * same)
    assert torch.equal(function(values)[0], 2 * values)
    assert not function.reason


def test_what_is_closed_over_may_change_its_shape():
    weight = torch.nn.Parameter(torch.ones(3))
    function = CompiledFunction(lambda x: [x * weight.sum()])
    assert function(torch.ones(2))[0].tolist() == [3.0, 3.0]
    weight.data = torch.ones(5)
    assert function(torch.ones(2))[0].tolist() == [5.0, 5.0]
    assert "no longer fits" in function.reason


def test_function_of_a_python_number_that_moves_runs_as_it_stands(graphs):
    count = [0.0]

    def moving(x):
        count[0] += 1
        return [x * count[0]]

    function = CompiledFunction(moving)
    assert function(torch.ones(3))[0].tolist() == [4.0] * 3  # run for comparison, captured twice, run
    assert function.reason.startswith("two captures differ: the number 2 in mul is 3 the next time")
    assert not graphs


@pytest.fixture
def captures(monkeypatch):
    """How often something was captured, in a process that has agreed on nothing yet."""
    monkeypatch.setattr(compilation, "_agreed", compilation.Agreed())
    seen = []

    def counting(function, inputs):
        seen.append(capture(function, inputs))
        return seen[-1]

    monkeypatch.setattr(compilation, "capture", counting)
    return seen


class Scaled(torch.nn.Module):
    """x times a weight, a Python number and a constant made on the way."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2000,), 3.0))
        self.number = number

    def forward(self, x):
        return [x * self.weight.sum() * self.number * torch.tensor([1.0, 2.0])]


def test_graph_agreed_on_in_an_earlier_call_is_captured_once(graphs, captures):
    scaled = Scaled(0.5)
    assert CompiledFunction(scaled)(torch.ones(2))[0].tolist() == [3000.0, 6000.0]
    assert len(captures) == 2
    assert CompiledFunction(scaled)(torch.ones(2))[0].tolist() == [3000.0, 6000.0]
    assert len(captures) == 3
    with torch.no_grad():
        scaled.weight.mul_(2)  # read anew at every call: the same computation
    assert CompiledFunction(scaled)(torch.ones(2))[0].tolist() == [6000.0, 12000.0]
    assert len(captures) == 4
    assert len(graphs) == 4 - 1


@pytest.mark.parametrize("changed", ["number", "weight"])
def test_another_computation_is_captured_twice_again(graphs, captures, changed):
    scaled = Scaled(0.5)
    CompiledFunction(scaled)(torch.ones(2))
    if changed == "number":
        scaled.number = 0.25
    else:
        scaled.weight = torch.nn.Parameter(torch.full((2000,), 1.5))
    assert CompiledFunction(scaled)(torch.ones(2))[0].tolist() == [1500.0, 3000.0]
    assert len(captures) == 4


def test_what_was_agreed_on_keeps_no_program_alive(graphs, captures):
    scaled = Scaled(0.5)
    CompiledFunction(scaled)(torch.ones(2))
    weight = weakref.ref(scaled.weight)
    captures.clear()
    graphs.clear()
    del scaled
    gc.collect()
    assert weight() is None


def test_function_that_reads_a_value_runs_as_it_stands():
    function = CompiledFunction(lambda x: [x * 2 if x.sum() > 0 else x])
    assert function(torch.ones(2))[0].tolist() == [2, 2]
    assert "reads a tensor as a Python number" in function.reason
    assert function(-torch.ones(2))[0].tolist() == [-1, -1]


def test_wrong_machine_code_is_seen_before_it_is_used(monkeypatch):
    def wrong(graph, inputs):
        return lambda *inputs: [value * 1.001 for value in graph(*inputs)]

    monkeypatch.setattr(compilation, "compiled", wrong)
    function = CompiledFunction(lambda x: [x.double().exp()])
    assert torch.equal(function(torch.ones(4))[0], torch.ones(4).double().exp())
    assert "compiled, a result of shape (4,) is 0.0027" in function.reason


def test_code_that_keeps_its_first_inputs_is_seen_at_the_second(monkeypatch):
    def frozen(graph, inputs):
        kept = graph(*inputs)
        return lambda *inputs: kept

    monkeypatch.setattr(compilation, "compiled", frozen)
    function = CompiledFunction(lambda x: [2 * x])
    assert function(torch.ones(3))[0].tolist() == [2, 2, 2]
    assert function(torch.zeros(3))[0].tolist() == [0, 0, 0]
    assert "compiled, a result of shape (3,) is 2 away" in function.reason


def test_ninth_shape_runs_as_it_stands(graphs):
    function = CompiledFunction(lambda x: [x + 1])
    for n in range(1, 10):
        assert function(torch.zeros(n))[0].tolist() == [1.0] * n
    assert len(graphs) == compilation.MOST_SHAPES


def test_no_compiler_is_no_error(monkeypatch):
    monkeypatch.setattr(compilation, "why_no_compiler", lambda device: "there is no C++ compiler on this machine")
    function = CompiledFunction(lambda x: [x + 1])
    assert function(torch.zeros(2))[0].tolist() == [1.0, 1.0]
    assert function.reason == "there is no C++ compiler on this machine"


def test_policy():
    assert worth(10, 5) and not worth(4, 5)
    with compiling(True):
        assert worth(0, 5)
        with compiling(False):
            assert not worth(10, 5)
        assert worth(0, 5)
    with pytest.raises(ArgumentError, match="choice is True, False or 'auto', got 'always'"), compiling("always"):
        pass


def test_policy_of_the_environment(monkeypatch):
    monkeypatch.setenv("PPVAE_COMPILE", "0")
    assert not worth(10, 5)
    monkeypatch.setenv("PPVAE_COMPILE", "yes")
    with pytest.raises(ArgumentError, match="PPVAE_COMPILE is 1, 0 or auto, got 'yes'"):
        worth(10, 5)


@pytest.mark.parametrize(("event", "reinterpreted"), [((784,), 1), ((28, 28), 2), ((5, 64), 1), ((4, 96), 2)])
def test_cheap_bernoulli_is_torchs(event, reinterpreted):
    torch.manual_seed(0)
    logits = (torch.randn(3, 7, *event, dtype=torch.float64) * 30).requires_grad_(True)
    value = torch.bernoulli(torch.full((7, *event), 0.3, dtype=torch.float64))
    fn = dist.Bernoulli(logits=logits, validate_args=False).to_event(reinterpreted)
    assert bernoulli.applies(fn)
    expected, found = fn.log_prob(value), bernoulli.log_prob(fn, value)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-13, atol=0)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((weights * density).sum(), logits)[0] for density in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)


def test_cheap_bernoulli_of_grey_values_and_of_logits_without_end():
    logits = torch.tensor([[1e4] * 32 + [-1e4] * 32], dtype=torch.float64)
    value = torch.full((1, 64), 0.25, dtype=torch.float64)
    fn = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
    assert bernoulli.log_prob(fn, value).item() == pytest.approx(fn.log_prob(value).item(), rel=1e-14)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Bernoulli(probs=torch.full((64,), 0.5)).to_event(1),
        dist.Bernoulli(logits=torch.zeros(64)),
        dist.Bernoulli(logits=torch.zeros(61)).to_event(1),  # a prime number of pixels
        dist.Normal(torch.zeros(64), 1.0).to_event(1),
    ],
    ids=["probs", "no event", "prime", "Normal"],
)
def test_cheap_bernoulli_leaves_others_alone(fn):
    assert not bernoulli.applies(fn)


def test_cheap_form_is_taken_in_a_capture_alone():
    torch.manual_seed(0)
    model, _ = float32()
    x = pairs.binary(5, 64).float()

    def density(x):
        from ppvae.programs import log_prob, trace

        pyro.set_rng_seed(1)
        return [log_prob(trace(model, x).nodes["x"]).detach()]

    called = {str(node.target) for node in capture(density, [x]).module.graph.nodes}
    assert "aten.prod.dim_int" in called
    assert "aten.binary_cross_entropy_with_logits.default" not in called


def test_capture_says_what_it_cannot_hold():
    with pytest.raises(NotCaptured, match="reads a tensor as a Python number"):
        capture(lambda x: [x * x.sum().item()], [torch.ones(2)])
