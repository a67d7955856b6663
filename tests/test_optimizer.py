"""The fused update is torch's own Adam and AdamW, to rounding, over every option, and leaves the same state behind."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from ppvae.optimizer import OneOptimizer

Adam, AdamW = torch.optim.Adam, torch.optim.AdamW
OPTIONS = {
    "Adam": functools.partial(Adam, lr=0.1),
    "weight decay": functools.partial(Adam, lr=0.1, weight_decay=0.1),
    "decoupled weight decay": functools.partial(Adam, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "amsgrad": functools.partial(Adam, lr=0.1, amsgrad=True),
    "maximize": functools.partial(Adam, lr=0.1, maximize=True),
    "betas": functools.partial(Adam, lr=0.1, betas=(0.5, 0.9), eps=1e-3),
    "tensor lr": functools.partial(Adam, lr=torch.tensor(0.1, dtype=torch.float64)),
    "AdamW": functools.partial(AdamW, lr=0.1),
    "AdamW, all": functools.partial(AdamW, lr=0.1, weight_decay=0.3, amsgrad=True, maximize=True),
    "fused": functools.partial(Adam, lr=0.1, fused=True),
    "SGD": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}


def leaves():
    """A matrix, a vector, a number, and a convolution's kernel in channels-last order."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (4,), (), (2, 3, 2, 2))
    found = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    found[3].data = found[3].data.contiguous(memory_format=torch.channels_last)
    return found


def gradients(step):
    """Their gradients; that of the matrix lies transposed in memory, as that of a linear layer does."""
    generator = torch.Generator().manual_seed(step + 1)
    matrix, *others = (torch.randn(shape, generator=generator) for shape in ((4, 3), (4,), (), (2, 3, 2, 2)))
    return [matrix.t(), *others]


def by_torch(factory, steps, each=lambda optimizer, step: None):
    params = leaves()
    optimizer = factory(params)
    for step in range(steps):
        each(optimizer, step)
        for p, gradient in zip(params, gradients(step), strict=True):
            p.grad = gradient
        optimizer.step()
    return params, optimizer


def by_us(factory, steps, each=lambda optimizer, step: None, fused=lambda step: True):
    params, one = leaves(), OneOptimizer(factory)
    one.start([params])
    for step in range(steps):
        each(one.torch_optimizer, step)
        if fused(step):
            one.update(params, gradients(step))
            continue
        for p, gradient in zip(params, gradients(step), strict=True):
            p.grad = gradient
        one(params)
        for p in params:
            p.grad = None
    return params, one.torch_optimizer


def hold(found, expected):
    """Parameters and the whole state of the optimizer, in the same layout."""
    (params, optimizer), (wanted, theirs) = found, expected
    torch.testing.assert_close(params, wanted, rtol=1e-12, atol=1e-12)  # rounding of ten updates in float64
    mine, other = optimizer.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    assert {key: set(entry) for key, entry in mine["state"].items()} == {key: set(entry) for key, entry in other["state"].items()}
    torch.testing.assert_close(mine["state"], other["state"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_ten_updates_are_those_of_torch(name):
    hold(by_us(OPTIONS[name], 10), by_torch(OPTIONS[name], 10))


def test_float32_is_torch_s_to_its_rounding():
    torch.set_default_dtype(torch.float32)
    found, expected = by_us(OPTIONS["Adam"], 10), by_torch(OPTIONS["Adam"], 10)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-6)  # parameters are of order 1, of ten updates


def two_groups(params):
    params = list(params)
    return Adam([{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.01, "weight_decay": 0.1}])


def test_groups_keep_their_own_options():
    hold(by_us(two_groups, 10), by_torch(two_groups, 10))


def test_a_learning_rate_moved_between_steps_counts():
    def halve(optimizer, step):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5**step

    hold(by_us(OPTIONS["Adam"], 10, halve), by_torch(OPTIONS["Adam"], 10, halve))


def test_a_torch_scheduler_drives_it_without_complaint():
    schedulers = {}

    def decay(optimizer, step):
        scheduler = schedulers.setdefault(id(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if step == 0 else None)
        if step > 0:
            scheduler.step()  # warns, an error here, where it believes that no update came before

    hold(by_us(OPTIONS["Adam"], 5, decay), by_torch(OPTIONS["Adam"], 5, decay))


def test_a_state_loaded_in_the_middle_is_the_one_gone_on_from():
    _, other = by_torch(OPTIONS["AdamW, all"], 4)

    def load(optimizer, step):
        if step == 5:
            optimizer.load_state_dict(copy.deepcopy(other.state_dict()))

    hold(by_us(OPTIONS["AdamW, all"], 10, load), by_torch(OPTIONS["AdamW, all"], 10, load))


@pytest.mark.parametrize("name", ["Adam", "AdamW, all", "SGD"])
def test_eager_and_fused_updates_may_take_turns(name):
    hold(by_us(OPTIONS[name], 10, fused=lambda step: step % 3 != 1), by_torch(OPTIONS[name], 10))


def test_two_graphs_may_list_the_leaves_in_two_orders():
    params, one = leaves(), OneOptimizer(OPTIONS["Adam"])
    one.start([params])
    order = [2, 0, 3, 1]
    for step in range(10):
        given = gradients(step)
        if step % 2:
            one.update([params[i] for i in order], [given[i] for i in order])
        else:
            one.update(params, given)
    hold((params, one.torch_optimizer), by_torch(OPTIONS["Adam"], 10))


def test_leaves_that_a_graph_lacks_are_left_alone():
    params, one = leaves(), OneOptimizer(OPTIONS["Adam"])
    one.start([params])
    one.update(params[1:], gradients(0)[1:])
    expected = leaves()
    torch_s = OPTIONS["Adam"](expected)
    for p, gradient in list(zip(expected, gradients(0), strict=True))[1:]:
        p.grad = gradient
    torch_s.step()
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(params[0], leaves()[0])


def test_a_leaf_that_comes_later_joins():
    params, one = leaves(), OneOptimizer(OPTIONS["Adam"])
    one.start([params[:2]])
    one.update(params[:2], gradients(0)[:2])
    one.update(params, gradients(1))
    assert one.groups == [params[:2], params[2:]]
    torch.testing.assert_close([one.torch_optimizer.state[p]["step"].item() for p in params], [2.0, 2.0, 1.0, 1.0])


def test_a_hook_of_the_user_s_is_called():
    calls = []
    params, one = leaves(), OneOptimizer(OPTIONS["Adam"])
    one.start([params])
    one.torch_optimizer.register_step_post_hook(lambda *_: calls.append(1))
    one.update(params, gradients(0))
    assert calls == [1]


def test_a_parameter_with_gaps_in_memory_is_updated_in_its_place():
    whole = torch.zeros(4, 6)
    view = nn.Parameter(whole[:, ::2])
    one = OneOptimizer(OPTIONS["Adam"])
    one.start([[view]])
    one.update([view], [torch.ones(4, 3)])
    torch.testing.assert_close(whole[:, ::2], torch.full((4, 3), -0.1), rtol=0, atol=1e-8)  # Adam's first step is lr, less eps
    assert torch.equal(whole[:, 1::2], torch.zeros(4, 3))
