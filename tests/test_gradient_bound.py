"""The bound on a gradient's norm: never below it, a proof that it is finite where it says so, and of what the factors alone tell."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae import svi as stepping
from ppvae import training
from ppvae.capture import capture
from ppvae.errors import DivergedError
from ppvae.gradient_bound import LARGEST, return_bound
from ppvae.training import NORM_EVERY, Training

WIDE = 8  # a product of (B, 8) and (B, 8) is larger than its factors up to B = 3


def products(rows, dtype=torch.float64):
    """The gradient x' d of a weight, and the sum of d, that of a bias: both factors are inputs."""
    weight, bias = nn.Parameter(torch.zeros(WIDE, WIDE, dtype=dtype)), nn.Parameter(torch.zeros(WIDE, dtype=dtype))

    def function(x, d):
        loss = ((x @ weight.t() + bias) * d).sum()
        return [loss.detach(), *torch.autograd.grad(loss, [weight, bias])]

    shape = torch.ones(rows, WIDE, dtype=dtype)
    graph = capture(function, [shape, shape.clone()], [weight, bias])
    return_bound(graph.module, first=1)
    return graph


def of(rows, *values):
    """Rows of ``WIDE`` numbers, those given and then zeros."""
    return torch.tensor([[*row, *[0.0] * (WIDE - len(row))] for row in values], dtype=torch.float64)[:rows]


def test_it_is_the_product_of_the_factors_norms_and_of_sums_the_root_of_their_number_times_what_they_sum():
    x, d = of(2, [3, 4], [0, 0, 12]), of(2, [1, 2], [2, 4])
    _, bound, weight, bias = products(2)(x, d)
    assert torch.equal(weight[:2, :3], torch.tensor([[3.0, 4.0, 24.0], [6.0, 8.0, 48.0]]))  # d' x, as torch.nn.Linear keeps it
    # |x| = 13, |d| = 5; the sum of the two rows of d is (3, 6), of norm 6.708, and no longer than 5 sqrt 2 = 7.071
    assert bound.item() == pytest.approx(13 * 5 + 5 * math.sqrt(2), rel=1e-15)
    assert torch.equal(bias[:2], torch.tensor([3.0, 6.0]))


def test_of_one_row_it_is_the_norm_itself():
    x, d = of(1, [3, 4]), of(1, [5, 12])
    assert products(1)(x, d)[1].item() == pytest.approx(5 * 13 + 13, rel=1e-15)


def test_where_the_factors_are_larger_it_is_the_norm_itself():
    x, d = torch.randn(4, WIDE), torch.randn(4, WIDE)
    _, bound, *gradients = products(4)(x, d)
    assert bound.item() == pytest.approx(sum(g.norm().item() for g in gradients), rel=1e-14)
    x, d = x[:3], d[:3]
    _, bound, *gradients = products(3)(x, d)
    assert bound.item() > 1.01 * sum(g.norm().item() for g in gradients)


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize(
    ("a", "b", "finite"),
    [
        pytest.param(math.nan, 1.0, False, id="no number"),
        pytest.param(math.inf, 0.0, False, id="infinite, times zero"),
        pytest.param(1e25, 1e25, False, id="a product that overflows"),
        pytest.param(2e19, 1.0, True, id="a square that overflows"),
        pytest.param(1e13, 1e13, True, id="a norm whose square overflows"),
    ],
)
def test_nothing_is_proved_where_an_entry_may_be_no_number(rows, a, b, finite):
    graph = products(rows, torch.float32)
    for row in range(rows):
        for column in (0, WIDE - 1):
            for large, small in ((a, b), (b, a)):
                x, d = torch.ones(rows, WIDE, dtype=torch.float32), torch.ones(rows, WIDE, dtype=torch.float32)
                x[row, column], d[row, 2] = large, small
                _, bound, *gradients = graph(x, d)
                assert not bound.item() < LARGEST
                assert all(torch.isfinite(g).all() for g in gradients) == finite


def test_a_sum_that_overflows_on_its_way_is_not_proved():
    graph = products(2, torch.float32)
    x, d = of(2, [3e38], [3e38]).float(), of(2, [3.0], [-3.0]).float()  # inf - inf
    assert not graph(x, d)[1].item() < LARGEST
    assert not torch.isfinite(graph(x, d)[2]).all()


def test_a_factor_that_the_graph_closes_over_leaves_the_norm_itself():
    """As of pseudo-inputs, which are parameters that go through a network like data."""
    weight, pseudo = nn.Parameter(torch.randn(WIDE, WIDE)), nn.Parameter(torch.randn(2, WIDE))

    def function(d):
        loss = ((pseudo @ weight.t()) * d).sum()
        return [loss.detach(), *torch.autograd.grad(loss, [weight, pseudo])]

    graph = capture(function, [torch.ones(2, WIDE)], [weight, pseudo])
    return_bound(graph.module, first=1)
    _, bound, *gradients = graph(torch.randn(2, WIDE))
    assert bound.item() == pytest.approx(sum(g.norm().item() for g in gradients), rel=1e-14)


# A pair whose loss is a number where its gradient is none: the root of |w x|, whose slope at 0 is infinite, times that of | |, 0.


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(6, 6, bias=False)

    def model(self, x):
        pyro.module("network", self.network)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.network(x).abs().sqrt(), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.fixture
def graphs(monkeypatch):
    """Graphs operation by operation: the tests of inductor are elsewhere."""
    monkeypatch.setattr(ppvae.engine.Engine, "backend", staticmethod(lambda graph, inputs: graph))


def trainer(pair, steps=5, **options):
    """Some steps on, the first eager, those behind it compiled; of these the 1st, 2nd, 4th are held to eager Pyro."""
    svi = ppvae.SVI(pair.model, pair.guide, functools.partial(torch.optim.Adam, lr=1e-3), compile=True, **options)
    for _ in range(steps):
        svi.step(torch.ones(3, 6))
    return svi


@pytest.mark.parametrize(
    ("measured", "verified", "clip_norm"), [(True, False, None), (False, False, None), (False, True, None), (False, True, 1.0)]
)
def test_a_compiled_step_is_refused_before_the_update_where_only_a_gradient_is_no_number(measured, verified, clip_norm, graphs):
    pair = Root()
    svi = trainer(pair, steps=4 if verified else 5, clip_norm=clip_norm)
    assert svi.engine.reason == ""
    svi.measure_norm = measured
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises(DivergedError) as error:
        svi.step(torch.tensor([[1.0] * 6, [0.0] * 6, [1.0] * 6]))
    assert "the norm of its gradient nan" in error.value.problem and math.isfinite(float(error.value.problem.split()[3]))
    assert all(torch.equal(p, was) for p, was in zip(pair.parameters(), before, strict=True))
    assert svi.engine.reason == ""  # the engine found it, no eager step


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_steps_are_the_same_with_a_proof_and_without(clip_norm, graphs, monkeypatch):
    def steps(largest, measured):
        monkeypatch.setattr(stepping, "LARGEST", largest)
        svi = trainer(pair := Root(), clip_norm=clip_norm)
        svi.measure_norm = measured
        return svi.step(torch.ones(3, 6)), svi.gradient_norm, [p.tolist() for p in pair.parameters()]

    proved, looked = steps(LARGEST, False), steps(0.0, False)
    assert proved[::2] == looked[::2] == steps(LARGEST, True)[::2]
    assert looked[1] == steps(LARGEST, True)[1] > 0  # what could not be proved was measured
    assert math.isnan(proved[1]) if clip_norm is None else proved[1] == looked[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_history_holds_the_mean_norm_of_every_32nd_step(compiled, graphs, monkeypatch):
    step, norms = Training._step, []

    def measuring(self):
        batch = self.position.batch
        step(self)
        norms.append((batch, self.svi.gradient_norm))

    monkeypatch.setattr(Training, "_step", measuring)
    pair, x = Root().float(), torch.rand(66, 6, dtype=torch.float32) + 1
    run = ppvae.fit(pair.model, pair.guide, x, epochs=2, batch_size=2, compile=compiled)
    assert len(norms) == 2 * 33
    for epoch in range(2):
        expected = [norm for batch, norm in norms[33 * epoch : 33 * (epoch + 1)] if batch in (0, NORM_EVERY)]
        assert run.history[epoch]["gradient_norm"] == pytest.approx(sum(expected) / 2, rel=1e-15)
    assert all(math.isnan(norm) == (batch not in (0, NORM_EVERY)) for batch, norm in norms)


def test_a_loop_that_reads_late_is_told_by_the_norm_and_no_fault_of_the_compiled_step_is_seen(graphs):
    pair = Root()
    svi = ppvae.SVI(pair.model, pair.guide, functools.partial(torch.optim.Adam, lr=1e-3), compile=True)
    svi.engine.read_every = 2  # as on an accelerator: gradients that are no numbers are zeros
    for _ in range(4):
        svi.step(torch.ones(3, 6))
    svi.step(torch.zeros(3, 6))  # the fourth of the compiled ones, which is held to eager Pyro
    assert torch.isnan(svi.gradient_norm) and svi.engine.reason == ""
    assert all(torch.isfinite(p).all() for p in pair.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_that_are_measured_and_steps_that_are_not_go_the_same_way(compiled, graphs, monkeypatch):
    """Descent by the gradient itself, of batches of 3 and 1: one that was divided otherwise would go elsewhere."""

    def trained(every):
        monkeypatch.setattr(training, "NORM_EVERY", every)
        pair, x = Root().float(), torch.linspace(1, 2, 60, dtype=torch.float32).reshape(10, 6)
        sgd = functools.partial(torch.optim.SGD, lr=0.1)
        ppvae.fit(pair.model, pair.guide, x, epochs=3, batch_size=3, optimizer=sgd, compile=compiled)
        return pair.network.weight

    start = Root().float().network.weight
    measured, not_measured = trained(1), trained(16)
    assert (measured - start).abs().max() > 0.1
    # 12 steps, each with some ten roundings of numbers below 2
    torch.testing.assert_close(not_measured, measured, rtol=0, atol=12 * 10 * 2 * torch.finfo(torch.float32).eps)
