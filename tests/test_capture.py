"""A captured function is the function: its arithmetic, its draws, what it closes over; and what no graph can hold is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal

from ppvae import capture as capturing
from ppvae.capture import NotCaptured, capture, compiled, difference, why_no_compiler

GENERATOR = torch.Generator()


def x(seed=0):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


def test_the_graph_computes_the_function_on_other_inputs():
    graph = capture(lambda a, b: [a @ b.t(), (a * 2).sum()], [x(0), x(1)])
    torch.testing.assert_close(graph(x(2), x(3)), [x(2) @ x(3).t(), (x(2) * 2).sum()], rtol=0, atol=0)


def test_gradients_are_part_of_the_graph():
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def function(a):
        return list(torch.autograd.grad((a @ weight).square().sum(), [weight]))

    graph = capture(function, [x()], [weight])
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(graph(x(1))[0], 2 * x(1).t() @ (x(1) @ weight), rtol=1e-14, atol=1e-14)


def test_what_is_closed_over_is_read_anew():
    shift, weight = torch.zeros(3), nn.Parameter(torch.ones(3))
    graph = capture(lambda a: [a + shift + weight.detach()], [x()], [weight])
    assert {id(t) for t in graph.lifted} == {id(shift), id(weight)}
    shift += 5
    weight.data = torch.full((3,), 7.0)  # another storage
    assert torch.equal(graph(x())[0], x() + 5 + 7)


def test_a_tensor_that_is_both_input_and_closed_over_is_two_things():
    data = x()
    graph = capture(lambda a: [a - data.mean(0)], [data])
    assert torch.equal(graph(x(1))[0], x(1) - data.mean(0))


def test_two_views_of_one_memory_stay_apart():
    whole = torch.arange(6.0)
    first, second, turned = whole[:3], whole[3:], whole.reshape(2, 3).t()
    graph = capture(lambda a: [a + first - second, turned * 1], [x()])
    whole += 1
    assert torch.equal(graph(x())[0], x() + first - second)
    assert torch.equal(graph(x())[1], turned)


def test_a_tied_weight_is_one_input():
    weight = nn.Parameter(torch.randn(3, 3))
    graph = capture(lambda a: [a @ weight @ weight.t()], [x()], [weight, weight])
    assert len(graph.lifted) == 1


def test_a_constant_that_the_function_writes_to_starts_anew_each_time():
    def function(a):
        total = torch.tensor([1.0, 2.0, 3.0])
        total += a.sum(0)
        return [total]

    graph = capture(function, [x()])
    expected = torch.tensor([1.0, 2.0, 3.0]) + x().sum(0)
    assert torch.equal(graph(x())[0], expected)
    assert torch.equal(graph(x())[0], expected)


def test_draws_are_torch_s_in_their_order():
    def function(a):
        first = torch.randn(3)
        second = torch.nn.functional.dropout(a, 0.5)
        return [first + second * torch.rand(3)]

    graph = capture(function, [x()])
    torch.manual_seed(0)
    expected = function(x())[0]
    torch.manual_seed(0)
    assert torch.equal(graph(x())[0], expected)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda a: [a * 2 if a.sum() > 0 else a], "reads a tensor as a Python number"),
        (lambda a: [a * a.mean().item()], "reads a tensor as a Python number"),
        (lambda a: [a * float(a.max())], "reads a tensor as a Python number"),
        (lambda a: [a[a > 0].sum()], "the size of what index gives depends on values"),
        (lambda a: [a.nonzero().sum()], "the size of what nonzero gives depends on values"),
        (lambda a: [torch.unique(a).sum()], "the size of what _unique2 gives depends on values"),
        (lambda a: [torch.rand(3, generator=GENERATOR) + a], "draws from a generator of its own"),
        (lambda a: [a.no_such_thing()], "AttributeError: .*no_such_thing"),
    ],
    ids=["if", "item", "float", "mask", "nonzero", "unique", "generator", "error"],
)
def test_what_no_graph_can_hold_is_refused(function, told):
    with pytest.raises(NotCaptured, match=told):
        capture(function, [x()])


def test_indexing_by_places_is_captured():
    graph = capture(lambda a, i: [a[i], a[torch.tensor([1, 0])]], [x(), torch.tensor([2, 1])])
    assert torch.equal(graph(x(), torch.tensor([0, 3]))[0], x()[[0, 3]])


def test_checks_of_values_are_no_part_of_the_graph():
    before = Normal(0.0, torch.ones(3), validate_args=True).expand((4, 3))  # made, and its flag set, outside
    graph = capture(lambda a: [before.log_prob(a), Bernoulli(logits=a).log_prob(a)], [x().clamp(0, 1)])
    assert torch.equal(graph(x(1))[0], before.log_prob(x(1)))
    with pytest.raises(ValueError, match="within the support"):
        Bernoulli(0.5, validate_args=True).log_prob(torch.tensor(0.3))  # validation is as it was


class Counting:
    """Another number at every call."""

    def __init__(self):
        self.numbers = itertools.count(1)

    def __call__(self):
        return next(self.numbers)


def twice(function):
    return difference(capture(function, [x()]), capture(function, [x()]))


def test_two_captures_of_one_computation_do_not_differ():
    weight, constant = torch.randn(3), float("nan")
    assert twice(lambda a: [a * weight + constant, a + torch.tensor([1.0, constant, 2.0]), torch.randn(3)]) == ""


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda a, number: a * (number + 0.5), "the number 1.5 in mul is 2.5 the next time"),
        (lambda a, number: a * torch.tensor(float(number)), "the number 1 that the program makes a tensor of is 2 the next time"),
        (lambda a, number: a + torch.tensor([0.0, number, 1.0]), "a tensor of shape (3,) that the program makes outside"),
        (lambda a, number: a.sin() if number == 1 else a.cos(), "one capture calls aten.sin.default where the next calls aten.cos.default"),
        (lambda a, number: a if number == 1 else a + 1, "one capture has 2 operations and the next 3"),
        (lambda a, number: a.sum(number - 1), "the number 0 in sum is 1 the next time"),
        (lambda a, number: torch.full((3,), float(number)) + a, "the number 1 in full is 2 the next time"),
    ],
    ids=["factor", "scalar tensor", "tensor", "operation", "length", "dimension", "full"],
)
def test_the_number_that_differs_is_named(use, told):
    number = Counting()
    assert twice(lambda a: [use(a, number())]).startswith(told)


@pytest.mark.slow
def test_compiled_it_is_the_same_function_with_the_same_draws_and_writes_its_buffers():
    torch.manual_seed(0)
    norm, buffer = nn.BatchNorm1d(3), torch.zeros(3)

    def function(a):
        first = torch.randn(4, 3)
        hidden = norm(torch.nn.functional.dropout(a + first, 0.5)) * torch.rand(3)
        buffer.add_(hidden.detach().sum(0))
        loss = (hidden * torch.randn(3)).square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, [norm.weight, norm.bias])]

    held = [*norm.parameters(), *norm.buffers(), buffer]
    before = [t.detach().clone() for t in held]
    graph = capture(function, [x()], held)

    def run(which):
        with torch.no_grad():
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)
        torch.manual_seed(1)
        found = [part.clone() for seed in range(3) for part in which(x(seed))]
        return [*found, *(t.detach().clone() for t in held), torch.rand(3)]

    expected = run(function)
    torch.testing.assert_close(run(compiled(graph, [x()])), expected, rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked == 3


def test_a_machine_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    why_no_compiler.cache_clear()
    assert why_no_compiler("cpu").startswith("there is no C++ compiler on this machine")
    why_no_compiler.cache_clear()


def test_a_graph_too_long_to_compile_is_refused(monkeypatch):
    monkeypatch.setattr(capturing, "MOST_OPERATIONS", 10)

    def long(x):
        for _ in range(11):
            x = x + 1
        return [x]

    with pytest.raises(NotCaptured, match="its graph has 11 operations, and compiling more than 10 takes too long"):
        capture(long, [torch.zeros(2)])
