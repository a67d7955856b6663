"""An objective that was run before training is as it was, and so is what it refers to."""

from __future__ import annotations

import io
import itertools
import threading

import pytest
import torch
from pyro.infer import JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pairs
from ppvae import objectives
from ppvae.rehearsal import Rehearsal, is_known, plain_of

X = pairs.real(4, 6).abs().clamp(max=1).round()


class Recording(Trace_ELBO):
    """Changes every kind of thing that an objective may hold."""

    def __init__(self):
        super().__init__()
        self.calls, self.losses, self.by_name = 0, [], {"first": None}
        self.names, self.mean, self.head = {"a"}, torch.zeros(2), nn.Linear(2, 1)

    def loss_and_grads(self, model, guide, *args):
        loss = super().loss_and_grads(model, guide, *args)
        self.calls += 1
        self.losses.append(loss)
        self.by_name[f"call {self.calls}"] = loss
        self.by_name["first"] = self.by_name["first"] or loss
        self.names.add(self.calls)
        self.mean += 1
        self.latest = loss
        self.head(torch.ones(2)).sum().backward()
        with torch.no_grad():
            self.head.bias += 1
        return loss


def seen(objective):
    own = {k: v for k, v in vars(objective).items() if k not in ("mean", "head")}
    tensors = [objective.mean.tolist(), objective.head.bias.tolist(), objective.head.weight.grad, objective.head.bias.grad]
    return repr({k: sorted(map(str, v)) if isinstance(v, set) else v for k, v in own.items()}), tensors


def test_everything_is_put_back():
    objective, (model, guide) = Recording(), pairs.ours()
    before, containers = seen(objective), (objective.losses, objective.by_name)
    rehearsal = Rehearsal(objective, model, guide)
    assert rehearsal.possible
    with rehearsal.undone():
        rehearsal.loss_and_grads(model, guide, X)
        rehearsal.loss_and_grads(model, guide, X)
        assert objective.calls == len(objective.losses) == 2
        assert rehearsal.changes
        assert rehearsal.moves(objective.head.bias)
        assert not rehearsal.moves(objective.head.weight)
        assert rehearsal.foreign == ["head.weight", "head.bias"]
    assert seen(objective) == before
    assert (objective.losses, objective.by_name) == containers
    assert all(p.grad is None for program in (model, guide) for p in program.parameters())


def test_gradients_that_the_caller_left_are_put_back():
    model, guide = pairs.ours()
    (p, *_) = guide.parameters()
    p.grad = torch.ones_like(p)
    rehearsal = Rehearsal(TraceGraph_ELBO(), model, guide)
    with rehearsal.undone():
        rehearsal.loss_and_grads(model, guide, X)
    assert torch.equal(p.grad, torch.ones_like(p))


def counting(**kept):
    """A loss that counts in a tensor, in a list, or in nothing."""

    def loss(model, guide, x):
        for value in kept.values():
            value.append(None) if isinstance(value, list) else value.add_(1)
        return Trace_ELBO().differentiable_loss(model, guide, x)

    return loss


@pytest.mark.parametrize(("kept", "changes"), [({}, False), ({"in_a_list": []}, True), ({"in_a_tensor": torch.zeros(())}, True)], ids=str)
def test_a_state_that_moves_is_seen(kept, changes):
    model, guide = pairs.ours()
    rehearsal = Rehearsal(counting(**kept), model, guide)
    with rehearsal.undone():
        rehearsal.loss_and_grads(model, guide, X)
        assert not rehearsal.changes
        rehearsal.loss_and_grads(model, guide, X)
        assert rehearsal.changes == changes


def test_running_means_of_the_pair_are_no_state_of_the_loss():
    guide = nn.BatchNorm1d(3)

    def loss(model, guide_, x):
        return guide(x).sum()

    rehearsal = Rehearsal(loss, guide, guide)
    with rehearsal.undone():
        for _ in range(2):
            rehearsal.loss_and_grads(guide, guide, pairs.real())
        assert not rehearsal.changes


@pytest.mark.parametrize("kept", [itertools.count(), io.StringIO(), threading.Lock(), iter([1])], ids=lambda kept: type(kept).__name__)
def test_what_cannot_be_put_back_is_not_run(kept):
    assert not Rehearsal(lambda model, guide, x: (kept, torch.zeros(()))[1], *pairs.ours()).possible


def test_a_users_jitted_objective_is_not_run():
    assert not Rehearsal(type("Mine", (JitTrace_ELBO,), {})(), *pairs.ours()).possible


def test_only_what_the_loss_alone_holds_and_a_gradient_reaches_is_foreign():
    model, guide = pairs.ours()
    head, fixed = nn.Linear(1, 1), nn.Linear(1, 1)

    def loss(model_, guide_, x):
        with torch.no_grad():
            target = fixed(torch.ones(1))
        return (head(torch.ones(1)) - target).square().sum() + sum(p.sum() for p in guide.parameters())

    rehearsal = Rehearsal(loss, model, guide)
    with rehearsal.undone():
        rehearsal.loss_and_grads(model, guide, X)
    assert rehearsal.foreign == ["head.weight", "head.bias"]


def test_the_plain_objective_behind_another():
    assert type(plain_of(JitTrace_ELBO())) is Trace_ELBO
    inner = TraceMeanField_ELBO()
    assert plain_of(objectives.Aggressive(X, objectives.Aggressive(X, inner))) is inner
    mine = type("JitMine", (JitTrace_ELBO,), {})()
    assert plain_of(mine) is mine


def test_who_trains_what_the_elbo_depends_on():
    known = [Trace_ELBO(), TraceMeanField_ELBO(), objectives.FreeBits(0.1)]
    unknown = [TraceGraph_ELBO(), Recording(), type("Mine", (objectives.FreeBits,), {})(0.1), lambda model, guide, x: 0.0]
    assert [is_known(one) for one in known + unknown] == [True] * 3 + [False] * 4
