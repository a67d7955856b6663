"""What a run of a program changes around it is seen by its name, and put back."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from ppvae.surroundings import Surroundings, changed, drawn, replaced

GLOBAL = 1.5
SHARED = {"rate": 2}


@pytest.fixture(autouse=True)
def globals_as_they_were():
    yield
    globals().update(GLOBAL=1.5, SHARED={"rate": 2})


class Program(nn.Module):
    """Every kind of place that a number may stand in."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.step, self.options, self.history = 3, {"beta": 0.5}, [7]
        self.register_buffer("mean", torch.zeros(2))
        self.norm = nn.BatchNorm1d(2)
        self.settings = SimpleNamespace(temperature=4.0, flags=(True,))
        self.last = torch.ones(2)
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        global GLOBAL
        self.step += 1
        self.options["beta"] += 1
        self.history[0] += 1
        self.settings.temperature += 1
        self.calls += 1
        GLOBAL += 1
        SHARED["rate"] += 1
        self.mean += 1
        self.last = self.last + 1
        self.norm(x)
        self.weight.sum().backward()
        return torch.randn(2), random.random(), np.random.rand()


def closure():
    count, state = 0, {"seen": 1.0}

    def program(limit=[9]):  # noqa: B006
        nonlocal count
        count += 1
        state["seen"] += 1
        limit[0] += 1
        program.total += 1  # type: ignore[attr-defined]
        pyro.param("born", torch.ones(2))
        return count

    program.total = 0  # type: ignore[attr-defined]
    return program


def test_numbers_go_by_the_names_that_their_author_gave_them():
    found = Surroundings(Program()).numbers()
    wanted = {"step": 3, "options['beta']": 0.5, "history[0]": 7, "settings.temperature": 4.0, "settings.flags[0]": True}
    wanted |= {"calls": 0, "GLOBAL": 1.5, "SHARED['rate']": 2, "norm.momentum": 0.1, "norm.eps": 1e-5}
    assert wanted.items() <= found.items()


def test_numbers_of_a_function_are_those_of_its_cells_defaults_and_attributes():
    found = Surroundings(closure()).numbers()
    assert {"count": 0, "state['seen']": 1.0, "limit[0]": 9, "total": 0}.items() <= found.items()


def test_two_variables_of_one_name_are_two_numbers():
    def make(scale):
        return lambda: scale

    assert Surroundings(make(1.0), make(2.0)).numbers() == {"scale": 1.0, "scale (2)": 2.0}


def test_the_name_of_an_attribute_is_not_taken_for_a_global():
    def program(x):
        return x.GLOBAL

    assert Surroundings(program).numbers() == {}


def test_a_global_read_by_a_function_inside_a_function_is_seen():
    def program():
        return [GLOBAL for _ in range(2)]

    assert Surroundings(program).numbers() == {"GLOBAL": 1.5}


def test_change_is_told_by_the_name():
    program = Program()
    surroundings = Surroundings(program)
    before = surroundings.numbers()
    assert changed(before, surroundings.numbers()) == ""
    program.options["beta"] = 0.75
    assert changed(before, surroundings.numbers()) == "the program's number options['beta'] went from 0.5 to 0.75"


def test_a_number_that_is_not_a_number_has_not_changed():
    assert changed({"rate": float("nan")}, {"rate": float("nan")}) == ""


def test_everything_is_put_back():
    program, x = Program(), torch.randn(4, 2)
    surroundings = Surroundings(program)
    last, numbers = program.last, surroundings.numbers()
    buffers = [b.clone() for b in program.buffers()]
    noise = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with surroundings.kept():
        first = program(x)
        assert program.step == 4
        assert program.norm.num_batches_tracked == 1
    assert surroundings.numbers() == numbers
    assert "calls" not in vars(program)  # the object had none of its own
    assert program.last is last
    assert torch.equal(last, torch.ones(2))
    assert all(map(torch.equal, program.buffers(), buffers))
    assert program.weight.grad is None
    assert torch.equal(torch.get_rng_state(), noise[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (noise[1], noise[2].tolist())
    with surroundings.kept():
        second = program(x)
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_what_a_function_changes_is_put_back():
    program = closure()
    surroundings = Surroundings(program)
    numbers = surroundings.numbers()
    with surroundings.kept():
        assert program() == 1
        assert "born" in pyro.get_param_store()
    assert surroundings.numbers() == numbers
    assert "born" not in pyro.get_param_store()
    with surroundings.kept():
        assert program() == 1


def test_a_gradient_that_was_there_is_there_afterwards():
    program = Program()
    gradient = program.weight.grad = torch.full((2,), 3.0)
    with Surroundings(program).kept():
        program(torch.randn(4, 2))
        assert torch.equal(program.weight.grad, torch.ones(2))  # not added to it
    assert program.weight.grad is gradient
    assert torch.equal(gradient, torch.full((2,), 3.0))


def test_leaves_that_no_module_shows_are_kept_too():
    leaf = torch.ones(2, requires_grad=True)
    with Surroundings(lambda: None).kept([leaf]):
        leaf.sum().backward()
    assert leaf.grad is None


def test_everything_is_put_back_when_the_program_fails():
    program = closure()
    with contextlib.suppress(RuntimeError), Surroundings(program).kept():
        program()
        raise RuntimeError
    assert program() == 1


def test_a_plain_tensor_written_to_in_place_is_put_back():
    state = SimpleNamespace(total=torch.zeros(2))

    def program():
        state.total += 1

    with Surroundings(program).kept():
        program()
        assert torch.equal(state.total, torch.ones(2))
    assert torch.equal(state.total, torch.zeros(2))


def test_a_buffer_that_is_replaced_is_told_and_put_back():
    program = Program()
    mean = program.mean
    surroundings = Surroundings(program)
    before = surroundings.look()
    with surroundings.kept():
        program.mean = program.mean + 1
        assert [name for name, _ in replaced(before, surroundings.look())] == ["mean"]
    assert program.mean is mean


GENERATORS = {
    "torch": (lambda: torch.Generator().manual_seed(0), lambda g: torch.rand((), generator=g).item()),
    "numpy": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "numpy, old": (lambda: np.random.RandomState(0), lambda g: g.rand()),
    "Python": (lambda: random.Random(0), lambda g: g.random()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_the_program_s_own_is_seen_and_put_back(name):
    make, draw = GENERATORS[name]
    generator = make()
    surroundings = Surroundings(lambda: draw(generator))
    before = surroundings.noise()
    with surroundings.kept():
        first = draw(generator)
        assert drawn(before, surroundings.noise()) == "the generator generator"
    assert drawn(before, surroundings.noise()) == ""
    assert draw(generator) == first


@pytest.mark.parametrize(("draw", "told"), [(np.random.rand, "numpy's generator"), (random.random, "Python's generator")], ids=["np", "py"])
def test_draws_from_the_common_generators_are_seen(draw, told):
    surroundings = Surroundings(lambda: None)
    before = surroundings.noise()
    draw()
    assert drawn(before, surroundings.noise()) == told


def test_modes_follow_modules_wherever_they_are():
    networks = [nn.Dropout(), {"other": nn.Linear(1, 1)}]
    surroundings = Surroundings(lambda x: networks[0](x))
    before = surroundings.modes()
    networks[1]["other"].eval()
    assert surroundings.modes() != before


def test_a_parameter_that_is_frozen_is_another_mode():
    program = Program()
    surroundings = Surroundings(program)
    before = surroundings.modes()
    program.weight.requires_grad_(False)
    assert surroundings.modes() != before


def test_rings_and_long_lists_end():
    ring = SimpleNamespace(rate=1.0, data=list(range(100_000)))
    ring.self = ring
    found = Surroundings(lambda: ring).numbers()
    assert found["ring.rate"] == 1.0
