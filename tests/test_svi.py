"""One training step: pyro.infer.SVI to the last bit with a pyro.optim optimizer, and the same path with one torch optimizer."""

from __future__ import annotations

import functools
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pairs
from pairs import optim
from ppvae import SVI
from ppvae.errors import DivergedError, ObjectiveError, ProgramError
from ppvae.state import named_tensors
from ppvae.svi import are_single, divided, norm_of

adam = functools.partial(torch.optim.Adam, lr=0.01)
sgd = functools.partial(torch.optim.SGD, lr=1.0)
PAIRS = {
    "pyro.module": (pairs.registered, pairs.real()),
    "PyroModule": (pairs.pyro_linear, pairs.real()),
    "pyro.param": (pairs.table, pairs.real()),
    "bound methods": (pairs.bound, pairs.images()),
    "ours": (pairs.ours, pairs.binary()),
    "dropout": (pairs.with_dropout, pairs.binary()),
}


def path(make, x, svi_class, optimizer, objective, steps=20):
    """The losses of so many steps from one seed, and where they lead."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = make()
    svi = svi_class(model, guide, optimizer, objective)
    losses = [svi.step(x) for _ in range(steps)]
    return losses, named_tensors(model, guide)


@pytest.mark.parametrize(("make", "x"), PAIRS.values(), ids=PAIRS)
def test_twenty_steps_are_those_of_pyro_to_the_last_bit(make, x):
    expected = path(make, x, pyro.infer.SVI, optim.Adam({"lr": 0.01}), Trace_ELBO())
    found = path(make, x, SVI, optim.Adam({"lr": 0.01}), Trace_ELBO())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


OBJECTIVES = [TraceMeanField_ELBO(), TraceGraph_ELBO(), RenyiELBO(num_particles=3), Trace_ELBO(num_particles=2)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda elbo: type(elbo).__name__)
def test_twenty_steps_are_those_of_pyro_for_its_other_objectives(objective):
    expected = path(pairs.registered, pairs.real(), pyro.infer.SVI, optim.Adam({"lr": 0.01}), objective)
    found = path(pairs.registered, pairs.real(), SVI, optim.Adam({"lr": 0.01}), objective)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("make", "x"), PAIRS.values(), ids=PAIRS)
def test_one_torch_optimizer_goes_the_way_of_one_per_parameter(make, x):
    expected = path(make, x, SVI, optim.Adam({"lr": 0.01}), Trace_ELBO())
    found = path(make, x, SVI, adam, Trace_ELBO())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)  # rounding of a vectorised update, over 20 steps


def test_it_is_pyro_s_svi():
    assert issubclass(SVI, pyro.infer.SVI)


def test_pyro_s_names_of_the_arguments_work():
    model, guide = pairs.registered()
    x, elbo = pairs.real(), TraceMeanField_ELBO()
    svi = SVI(model=model, guide=guide, optim=optim.Adam({"lr": 0.01}), loss=elbo)
    assert (svi.objective, type(svi.optim)) == (elbo, pyro.optim.PyroOptim)
    torch.manual_seed(0)
    expected = elbo.loss(model, guide, x)
    torch.manual_seed(0)
    assert svi.step(x) == expected


def nothing(x):
    """A program without sites, for losses of the user's own."""


def own_loss(model, guide, x):
    return (pyro.param("theta", torch.tensor(3.0)) - 1.0) ** 2


@pytest.mark.parametrize("optimizer", [optim.SGD({"lr": 0.25}), functools.partial(torch.optim.SGD, lr=0.25)], ids=["pyro", "torch"])
def test_loss_may_be_a_function_of_the_programs(optimizer):
    svi = SVI(nothing, nothing, optimizer, loss=own_loss)
    assert svi.step(torch.zeros(1)) == 4.0
    assert pyro.param("theta").item() == 2.0  # 3 - 0.25 * 2 * (3 - 1)


@pytest.mark.parametrize("optimizer", [lambda: optim.Adam({"lr": 0.01}), lambda: adam], ids=["pyro", "torch"])
def test_loss_may_be_a_tuple(optimizer):
    def steps(svi_class, optimizer):
        torch.manual_seed(0)
        pyro.clear_param_store()
        model, guide = pairs.registered()
        objective = ReweightedWakeSleep(num_particles=2, vectorize_particles=False)
        svi = svi_class(model, guide, optimizer, objective)
        return [svi.step(pairs.real()) for _ in range(3)], named_tensors(model, guide)

    (losses, found), expected = steps(SVI, optimizer()), steps(pyro.infer.SVI, optim.Adam({"lr": 0.01}))
    assert [type(loss) for loss in losses] == [tuple] * 3
    torch.testing.assert_close((losses, found), expected, rtol=0, atol=1e-12)  # rounding


def test_evaluated_loss_is_that_of_pyro():
    model, guide = pairs.registered()
    x = pairs.real()
    torch.manual_seed(0)
    expected = pyro.infer.SVI(model, guide, optim.Adam({"lr": 0.01}), Trace_ELBO()).evaluate_loss(x)
    torch.manual_seed(0)
    assert SVI(model, guide, adam).evaluate_loss(x) == expected


def test_evaluating_changes_no_parameter():
    model, guide = pairs.registered()
    svi = SVI(model, guide, sgd)
    svi.prepare(pairs.real())
    before = [leaf.clone() for leaf in svi.leaves]
    svi.evaluate_loss(pairs.real())
    assert all(torch.equal(a, b) for a, b in zip(svi.leaves, before, strict=True))
    assert all(leaf.grad is None for leaf in svi.leaves)


# Clipping: one gradient by hand. Loss a + 2 b + 2 c: its gradient is (1, 2, 2), of norm 3.


def three(model, guide, x):
    a, b, c = (pyro.param(name, torch.tensor(0.0)) for name in "abc")
    return a + 2 * b + 2 * c


@pytest.mark.parametrize("optimizer", [optim.SGD({"lr": 1.0}), sgd], ids=["pyro", "torch"])
@pytest.mark.parametrize(("clip_norm", "factor"), [(1.5, 0.5), (3.1, 1.0), (None, 1.0)], ids=["half", "above the norm", "none"])
def test_clipping_is_of_the_norm_of_all_parameters_together(clip_norm, factor, optimizer):
    SVI(nothing, nothing, optimizer, three, clip_norm=clip_norm).step(torch.zeros(1))
    found = torch.stack([pyro.param(name).detach() for name in "abc"])
    expected = -factor * torch.tensor([1.0, 2.0, 2.0])
    torch.testing.assert_close(found, expected, rtol=4e-7, atol=0)  # torch divides by the norm + 1e-6


def test_gradient_norm_is_told_before_clipping():
    svi = SVI(nothing, nothing, sgd, three, clip_norm=0.1)
    svi.step(torch.zeros(1))
    assert svi.gradient_norm == 3.0


@pytest.mark.parametrize("sizes", [[(3, 4)], [(64, 64), (64,), (1, 1, 5), ()], [(400, 784), (0,), (400,)]], ids=str)
def test_the_norm_is_torchs_bit_for_bit(sizes):
    gradients = [torch.randn(size, dtype=torch.float32) for size in sizes]
    assert norm_of(gradients).item() == torch.nn.utils.get_total_norm(gradients).item()


def test_the_norm_of_gradients_of_two_types():
    """3, 4 and 12 make 13."""
    gradients = [torch.tensor([3.0, 4.0], dtype=torch.float32), torch.tensor([12.0], dtype=torch.float64)]
    assert norm_of(gradients).item() == 13.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e25, 0.0])
def test_gradients_are_divided_and_one_entry_that_is_no_number_is_found_wherever_it_lies(value):
    kept = [torch.randn(3, 5).float(), torch.randn(5, 3).float().t(), torch.randn(()).float(), torch.zeros(0).float()]
    for i, shape in enumerate((kept[0].shape, kept[1].shape, ())):
        for place in itertools.product(*(range(n) for n in shape)):
            gradients = [g.clone() for g in kept]
            gradients[i][place] = value
            expected = [g / 7 for g in gradients]
            assert divided(gradients, 7.0) == math.isfinite(value)
            # 1/7 and the product by it are rounded, each by half a unit
            torch.testing.assert_close(gradients, expected, rtol=2 * torch.finfo(torch.float32).eps, atol=0, equal_nan=True)


def test_only_gradients_of_float32_on_one_device_are_divided_so():
    single, double = torch.zeros(2).float(), torch.zeros(2).double()
    assert are_single([single, single])
    assert not are_single([single, double]) and not are_single([double]) and not are_single([])
    assert not are_single([single, torch.zeros(2, dtype=torch.float32, device="meta")])


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan")], ids=str)
def test_clip_norm_must_be_positive(clip_norm):
    with pytest.raises(ObjectiveError, match=f"clip_norm must be positive, got {clip_norm}\n  mend:  clip_norm=None switches clipping off"):
        SVI(nothing, nothing, sgd, three, clip_norm=clip_norm)


def breaks(how, dtype=None):
    """A loss with gradient -1 at theta = 1 and -2 at 2; from the third step on it is not finite, or its gradient is not."""
    calls = []

    def loss(model, guide, x):
        calls.append(1)
        theta = pyro.param("theta", torch.tensor(1.0, dtype=dtype))
        trouble = {"nan": theta * torch.nan, "inf": theta * torch.inf, "gradient": (theta * 0.0).sqrt()}[how]
        return -(theta**2) / 2 + (trouble if len(calls) > 2 else 0.0)

    return loss


@pytest.mark.parametrize("optimizer", [optim.SGD({"lr": 1.0}), sgd], ids=["pyro", "torch"])
@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize(("measured", "dtype"), [(True, torch.float64), (True, torch.float32), (False, torch.float32)])
def test_step_that_is_not_finite_is_refused_before_the_update(measured, dtype, how, optimizer):
    svi = SVI(nothing, nothing, optimizer, breaks(how, dtype))
    svi.measure_norm = measured
    svi.step(torch.zeros(1)), svi.step(torch.zeros(1))
    with pytest.raises(DivergedError) as raised:
        svi.step(torch.zeros(1))
    assert raised.value.where == "step 2, before the update: no parameter was touched"
    assert (pyro.param("theta").item(), svi.steps_taken) == (4.0, 2)


@pytest.mark.parametrize("measured", [True, False])
def test_divergence_tells_loss_and_norm(measured):
    svi = SVI(nothing, nothing, sgd, breaks("gradient", torch.float32))
    svi.measure_norm = measured
    svi.step(torch.zeros(1)), svi.step(torch.zeros(1))
    with pytest.raises(DivergedError) as raised:
        svi.step(torch.zeros(1))
    assert str(raised.value) == (
        "the loss is -8 and the norm of its gradient nan\n"
        "  where: step 2, before the update: no parameter was touched\n"
        "  mend:  lower the learning rate\n"
        "     or: clip the gradient: clip_norm=10\n"
        "     or: keep scales away from 0"
    )


# The traps of Pyro's store.


def same_start(model, guide):
    """The plain functions of ``pairs.closures`` over the modules of a pair of PyroModules, each under a key of its own."""

    def twin_model(x):
        pyro.module("decoder", model.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(model.net(z), 0.5).to_event(1), obs=x)

    def twin_guide(x):
        pyro.module("encoder", guide.net)
        loc, log_scale = guide.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return twin_model, twin_guide


def with_own_keys():
    return same_start(*pairs.two_nets())


@pytest.mark.parametrize(
    ("make", "twin"), [(pairs.two_nets, with_own_keys), (pairs.closures, pairs.registered)], ids=["two called net", "without pyro.module"]
)
def test_torch_optimizer_trains_what_the_store_misses(make, twin):
    losses, found = path(make, pairs.real(), SVI, adam, Trace_ELBO())
    expected_losses, expected = path(twin, pairs.real(), SVI, adam, Trace_ELBO())
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-10)  # rounding
    found, expected = ({tuple(t.shape): t for t in tensors.values()} for tensors in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)  # rounding


def test_pyro_s_svi_would_train_one_of_two_called_net():
    # The trap itself: where this fails, Pyro has closed it.
    model, guide = pairs.two_nets()
    before = [module.net.weight.clone() for module in (model, guide)]
    svi = pyro.infer.SVI(model, guide, optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(pairs.real())
    assert [torch.equal(m.net.weight, b) for m, b in zip((model, guide), before, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("make", "count", "shapes"),
    [(pairs.two_nets, 2, "[(3, 2), (3,)]"), (pairs.closures, 4, "[(4, 3), (4,), (3, 2), (3,)]")],
    ids=["two called net", "without pyro.module"],
)
def test_pyro_optimizer_is_refused_where_it_would_miss_parameters(make, count, shapes):
    model, guide = make()
    svi = SVI(model, guide, optim.Adam({"lr": 0.01}))
    with pytest.raises(ProgramError) as raised:
        svi.step(pairs.real())
    problem, where, first, second = str(raised.value).splitlines()
    start = f"{count} parameters of the loss stand under no pyro.param name of their own, so that a pyro.optim optimizer would never train"
    assert problem.startswith(start)
    assert where == "  where: a module used without pyro.module, or two different modules under one name (model and guide both say 'net')"
    assert first == "  mend:  give a torch optimizer: functools.partial(torch.optim.Adam, lr=1e-3)"
    assert second == "     or: register each under a name of its own"
    assert sorted(problem.split("shapes ")[1].rstrip(")") + ")") == sorted(shapes + ")")


def test_leaves_are_unique_by_identity():
    shared = nn.Linear(3, 3)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shared(x), 1.0).to_event(1))

    svi = SVI(pairs.normal(3, shared), guide, sgd)
    svi.prepare(pairs.real())
    assert {id(leaf) for leaf in svi.leaves} == {id(shared.weight), id(shared.bias)}
    assert len(svi.leaves) == 2


# Parameters that are born late: the outlier comes at step 20.


@pytest.mark.parametrize("when", [lambda i: i >= 20, lambda i: i >= 20 and i % 3 == 0], ids=["from then on", "now and then"])
def test_parameter_born_at_step_20_joins_the_optimizer(when):
    def final(optimizer):
        torch.manual_seed(0)
        pyro.clear_param_store()
        model, guide = pairs.rare()
        svi = SVI(model, guide, optimizer)
        losses = [svi.step(pairs.one_outlier() if when(i) else pairs.real()) for i in range(50)]
        return losses, named_tensors(model, guide)

    found, expected = final(adam), final(optim.Adam({"lr": 0.01}))
    assert "param.shift" in found[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)  # rounding


def test_late_parameter_is_a_group_of_its_own():
    model, guide = pairs.rare()
    svi = SVI(model, guide, adam)
    svi.step(pairs.real()), svi.step(pairs.one_outlier())
    assert [[tuple(p.shape) for p in group] for group in svi.optim.groups] == [[tuple(p.shape) for p in svi.leaves[:-1]], [()]]


def test_parameter_that_a_step_does_not_use_stays_where_it_is():
    model, guide = pairs.rare()
    svi = SVI(model, guide, adam)
    svi.step(pairs.one_outlier())
    before = pyro.param("shift").item()
    svi.step(pairs.real())
    assert pyro.param("shift").item() == before


def test_torch_scheduler_sees_the_optimizer_before_the_first_step():
    # Loss -theta: theta rises by the learning rates 1, 1/2, 1/4.
    svi = SVI(lambda x: pyro.factor("f", pyro.param("theta", torch.tensor(0.0))), nothing, sgd)
    svi.prepare(torch.zeros(1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(svi.optim.torch_optimizer, 0.5)
    for _ in range(3):
        svi.step(torch.zeros(1))
        scheduler.step()
    assert pyro.param("theta").item() == 1.75


def test_prepared_optimizer_takes_the_same_steps():
    def final(prepare):
        torch.manual_seed(0)
        pyro.clear_param_store()
        model, guide = pairs.registered()
        svi = SVI(model, guide, adam)
        if prepare:
            svi.prepare(pairs.real())
        return [svi.step(pairs.real()) for _ in range(5)]

    assert final(True) == final(False)


def test_preparing_costs_no_draw_and_moves_no_running_statistics():
    model, guide = pairs.with_batch_norm()
    before = torch.get_rng_state()
    SVI(model, guide, adam).prepare(pairs.binary())
    assert torch.equal(torch.get_rng_state(), before)
    assert guide.encoder[1].num_batches_tracked == 0


def test_torch_optimizer_must_be_given_as_a_function():
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ObjectiveError) as raised:
        SVI(nothing, nothing, optimizer)
    assert str(raised.value) == (
        "a torch optimizer is given as a function of the parameters, since with pyro.param they do not exist yet\n"
        "  mend:  optimizer=functools.partial(torch.optim.Adam, lr=1e-3)"
    )


@pytest.mark.parametrize("optimizer", [None, "adam"], ids=["None", "str"])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(ObjectiveError) as raised:
        SVI(nothing, nothing, optimizer)
    assert str(raised.value) == (
        f"optimizer is a pyro.optim optimizer or a function of the parameters, got {optimizer!r}\n"
        "  mend:  functools.partial(torch.optim.Adam, lr=1e-3)"
    )


def test_compile_is_one_of_three():
    with pytest.raises(ObjectiveError, match="compile is 'auto', True or False, got 'always'"):
        SVI(nothing, nothing, sgd, compile="always")
