"""Every tensor of a pair has one name, and saved values go back under it or not at all."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import pairs
from pairs import optim
from ppvae.errors import RunError
from ppvae.leaves import leaves_of_pair
from ppvae.state import create_missing, named_tensors, restore, snapshot, store_constraints

CPU = torch.device("cpu")


def names(make, x, leaves=False):
    model, guide = make()
    found, _, _ = leaves_of_pair(model, guide, (x,), {})
    return set(named_tensors(model, guide, found if leaves else ()))


LAYER = ("weight", "bias")


@pytest.mark.parametrize(
    ("make", "x", "expected"),
    [
        (pairs.registered, pairs.real(), {f"{side}.{p}" for side in ("model.decoder", "guide.encoder") for p in LAYER}),
        (pairs.two_nets, pairs.real(), {f"{side}.net.{p}" for side in ("model", "guide") for p in LAYER}),
        (pairs.table, pairs.real(), {"param.weight", "param.loc", "param.scale"}),
        (pairs.hidden, pairs.real(), {f"leaf.{i}" for i in range(4)}),
    ],
    ids=["closed over", "PyroModule", "pyro.param", "in a list"],
)
def test_names_say_where_a_tensor_lives(make, x, expected):
    assert names(make, x, leaves=True) == expected


def test_module_behind_both_programs_is_named_once():
    layers = {f"model.encoder.{i}.{p}" for i in (1, 3) for p in LAYER} | {f"model.decoder.{i}.{p}" for i in (0, 2) for p in LAYER}
    assert names(pairs.bound, pairs.images()) == layers


def test_tied_tensors_are_named_once():
    shared = nn.Linear(3, 3)
    found = named_tensors(pairs.normal(3, shared), PyroModule[nn.Sequential](shared))
    assert list(found) == ["model.data.weight", "model.data.bias"]


def test_buffers_are_named_too():
    model, guide = pairs.with_batch_norm()
    found = named_tensors(model, guide)
    assert found["guide.encoder.1.running_mean"] is guide.encoder[1].running_mean


def test_tensors_are_the_live_ones():
    model, guide = pairs.pyro_linear()
    assert named_tensors(model, guide)["model.net.weight"] is model.net.weight


def test_constrained_parameters_are_named_unconstrained():
    model, guide = pairs.table()
    leaves_of_pair(model, guide, (pairs.real(),), {})
    assert torch.equal(named_tensors(model, guide)["param.scale"], torch.full((2,), 0.5).log())


def test_snapshot_is_a_copy():
    value = torch.ones(2, requires_grad=True)
    copy = snapshot({"a": value})["a"]
    with torch.no_grad():
        value.zero_()
    assert (copy.tolist(), copy.requires_grad) == ([1.0, 1.0], False)


def test_restored_tensor_stays_the_same_object():
    live = nn.Linear(2, 1)
    weight = live.weight
    restore({"w": live.weight}, {"w": torch.tensor([[3.0, 4.0]])})
    assert live.weight is weight
    assert weight.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("live", "text"),
    [
        ({}, "saved but not here: a"),
        ({"a": torch.ones(2), "b": torch.ones(1)}, "here but not saved: b"),
        ({"a": torch.ones(3)}, "a: saved (2,), here (3,)"),
        ({"c": torch.ones(3)}, "saved but not here: a; here but not saved: c"),
    ],
    ids=["missing", "too many", "shape", "renamed"],
)
def test_values_of_other_programs_are_refused(live, text):
    with pytest.raises(RunError) as raised:
        restore(live, {"a": torch.zeros(2)})
    assert str(raised.value) == (
        f"the saved tensors do not belong to these programs\n  where: {text}\n  mend:  build model and guide as they were built for the run"
    )


def test_refused_values_change_nothing():
    live = {"a": torch.ones(2)}
    with pytest.raises(RunError):
        restore(live, {"a": torch.zeros(2), "b": torch.zeros(1)})
    assert live["a"].tolist() == [1.0, 1.0]


CONSTRAINTS = {
    "real": (constraints.real, [-1.0, 2.0]),
    "positive": (constraints.positive, [0.5, 2.0]),
    "greater than": (constraints.greater_than(3.0), [3.5]),
    "interval": (constraints.interval(-1.0, 2.0), [0.3]),
    "unit interval": (constraints.unit_interval, [0.3]),
    "bound for each": (constraints.greater_than(torch.tensor([1.0, 2.0])), [1.5, 3.0]),
    "simplex": (constraints.simplex, [0.2, 0.3, 0.5]),
    "lower Cholesky": (constraints.lower_cholesky, [[1.0, 0.0], [0.5, 2.0]]),
    "softplus": (pyro.distributions.constraints.softplus_positive, [0.5]),
    "vector": (constraints.real_vector, [0.5, 1.0]),
    "positive vectors": (constraints.independent(constraints.positive, 1), [0.5, 1.0]),
}


@pytest.mark.parametrize(("constraint", "value"), CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_parameter_of_any_constraint_is_created_again(constraint, value):
    value = torch.tensor(value)
    pyro.param("theta", value, constraint=constraint)
    saved, records = snapshot(named_tensors(None, None)), store_constraints()
    pyro.clear_param_store()
    create_missing(saved, records, CPU)
    found = pyro.param("theta")
    torch.testing.assert_close(found, value, rtol=0, atol=1e-12)  # rounding of the transform
    assert constraint.check(found).all()


def test_created_parameter_goes_on_training():
    create_missing({"param.theta": torch.tensor([1.0])}, {"theta": {"class": "_Real", "with": {}}}, CPU)
    svi = pyro.infer.SVI(lambda: None, lambda: None, optim.SGD({"lr": 0.5}), lambda model, guide: pyro.param("theta").square().sum())
    svi.step()
    assert pyro.param("theta").tolist() == [0.0]


def test_parameter_that_is_there_is_not_created():
    mine = pyro.param("theta", torch.tensor([5.0]))
    create_missing({"param.theta": torch.tensor([1.0])}, {"theta": {"class": "_Real", "with": {}}}, CPU)
    assert pyro.param("theta") is mine


def test_constraint_without_a_record_is_refused():
    with pytest.raises(RunError, match="the constraint Own of parameter 'theta' cannot be made again from its record"):
        create_missing({"param.theta": torch.ones(1)}, {"theta": {"class": "Own", "with": {}}}, CPU)


def test_pyro_param_of_a_module_is_named_by_the_module():
    module = PyroModule()
    module.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
    assert list(named_tensors(module, module)) == ["model.scale_unconstrained"]
