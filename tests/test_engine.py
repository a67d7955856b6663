"""Compiled steps are eager Pyro's, pair by pair of the zoo; where they cannot be, they are eager, and the reason is told."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import re
import warnings
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

import ppvae.engine
import zoo
from pairs import optim
from ppvae import SVI
from ppvae.engine import Call
from ppvae.errors import UnreliableWarning
from zoo import LIARS, ZOO, D, Entry, Z

# Adam divides by the root of the squared gradient: with its usual 1e-8 the rounding of a gradient that is 0 (a bias before BatchNorm)
# would be a step of its own.
adam = functools.partial(torch.optim.Adam, lr=0.01, eps=1e-3)
CAPTURED = {name: entry for name, entry in ZOO.items() if not entry.eager}
EAGER = {name: entry for name, entry in {**ZOO, **LIARS}.items() if entry.eager}
# Pairs that put together what two others hold one by one, or hold what another does in a second form: run at length by make soak.
COMBINED = {
    "two layers",
    "subsampling",
    "PyroModule",
    "poutine.scale",
    "modules in a list",
    "BatchNorm and dropout",  # fifty steps of it below, in float32
    "AutoNormal",
    "score function, particles",
    "a tuple",
    "bound methods",
    "AutoMultivariateNormal",
    "particles in a loop",
    "mean field without a closed form",
    "importance weighted",
    "scheduled beta over a global latent",
    "scheduled beta, mean field",
}
COMPILED = [
    "functions with pyro.module",
    "BatchNorm and dropout",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("subsampling", "two layers")),
]


def uncompiled(graph, inputs):
    """The captured graph, operation by operation: what inductor would be given, without its five seconds."""
    return graph


def trainer(entry, compile=True, backend=uncompiled, optimizer=adam, seed=0):
    """An SVI over a new pair, its parameters born, the noise at ``seed``."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model, guide = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)  # of an objective that is never captured; told again by the tests of it
        svi = SVI(model, guide, optimizer, entry.objective(), compile=compile, **entry.options)
    if backend is not None:
        svi.engine.backend = backend
    svi.prepare(*entry.args())
    torch.manual_seed(seed + 1)
    return svi


def path(svi, args, steps):
    """The losses of so many steps."""
    return [svi.step(*args) for _ in range(steps)]


def state(svi):
    """Parameters and buffers, as they are now."""
    return [t.detach().clone() for t in (*svi.leaves, *svi.engine.surroundings.buffers())]


def hold_gradients(svi, entry):
    """One more step's loss and every gradient, for three seeds, held to the objective that Pyro was given."""
    objective, args = entry.objective(), entry.args()
    for seed in range(3):
        torch.manual_seed(seed)
        found = svi.engine.gradients(Call.of(args, {}), 1.0)
        torch.manual_seed(seed)
        with svi.engine.surroundings.kept(svi.leaves):
            expected = objective.loss_and_grads(svi._model, svi._guide, *args)
            gradients = [leaf.grad.clone() for leaf in found.leaves]
        factor = min(1.0, (svi.clip_norm or float("inf")) / (sum(g.square().sum().item() for g in gradients) ** 0.5 + 1e-6))
        assert {id(leaf) for leaf in found.leaves} == {id(leaf) for leaf in svi.leaves}
        torch.testing.assert_close(found.loss.item(), expected, rtol=1e-13, atol=1e-13)  # rounding: some hundred terms
        torch.testing.assert_close(found.gradients, [g * factor for g in gradients], rtol=1e-11, atol=1e-11)
        norm = sum(g.square().sum().item() for g in gradients) ** 0.5
        assert norm * (1 - 1e-12) <= found.bound.item() < 100 * norm


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name in COMBINED)) for name in CAPTURED])
def test_ten_steps_end_where_eager_ones_end_and_every_gradient_is_pyro_s(name):
    entry = ZOO[name]
    args = entry.args()
    eager = trainer(entry, compile=False)
    expected, ends = path(eager, args, 10), state(eager)
    svi = trainer(entry)
    losses = path(svi, args, 10)
    assert (svi.engine.reason, len(svi.engine.steps)) == ("", 1)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)  # rounding, carried on over 10 steps
    torch.testing.assert_close(state(svi), ends, rtol=0, atol=1e-9)
    hold_gradients(svi, entry)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_fifty_steps_by_inductor_end_where_eager_ones_end(name):
    entry = ZOO[name]
    args = entry.args()
    eager = trainer(entry, compile=False)
    expected, ends = path(eager, args, 50), state(eager)
    svi = trainer(entry, backend=None)
    losses = path(svi, args, 50)
    assert svi.engine.reason == ""
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(state(svi), ends, rtol=0, atol=1e-9)


# The hardest of them: sums over images, and statistics that go on from step to step. The others have fewer terms.
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("functions with pyro.module", "scheduled beta over a global latent")),
        "BatchNorm and dropout",
    ],
)
def test_in_float32_fifty_steps_are_captured_and_agree_to_rounding(name):
    torch.set_default_dtype(torch.float32)
    entry = ZOO[name]
    args = entry.args()
    expected = path(trainer(entry, compile=False), args, 50)
    svi = trainer(entry)
    losses = path(svi, args, 50)
    assert svi.engine.reason == ""
    torch.testing.assert_close(losses, expected, rtol=200 * torch.finfo(torch.float32).eps, atol=0)


def test_batch_norm_counts_its_batches():
    entry = ZOO["BatchNorm and dropout"]
    svi = trainer(entry)
    path(svi, entry.args(), 10)
    counts = [b.item() for b in svi.engine.surroundings.buffers() if b.dtype == torch.int64]
    assert counts == [10, 10]  # verification ran the programs twelve times more, and left no trace


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", EAGER)
def test_what_is_not_captured_runs_eagerly_and_says_why(name, monkeypatch):
    monkeypatch.setattr(zoo, "COUNTED", 0)
    entry = EAGER[name]
    args = entry.args()
    svi = trainer(entry)
    if svi.engine.on:
        with pytest.warns(UnreliableWarning, match=entry.eager) as told:
            losses = path(svi, args, 10)
        assert sum(issubclass(w.category, UnreliableWarning) for w in told) == 1
    else:
        losses = path(svi, args, 10)
    assert re.search(entry.eager, svi.engine.reason)
    if name == "a counter that cannot be seen":  # and so cannot be put back
        return
    if name in ("numpy noise", "Python noise"):  # whose generators stand elsewhere when a second run begins; held below
        return
    ends = state(svi)
    zoo.COUNTED = 0
    eager = trainer(entry, compile=False)
    assert losses == path(eager, args, 10)
    assert all(map(torch.equal, ends, state(eager)))


@pytest.mark.parametrize("name", ["numpy noise", "numpy noise of its own", "Python noise", "a generator of its own"])
def test_foreign_noise_goes_on_as_in_an_eager_run(name):
    import random

    import numpy as np

    def losses(compile):
        svi = trainer(LIARS[name], compile=compile)
        np.random.seed(0)
        random.seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableWarning)
            return path(svi, LIARS[name].args(), 10)

    assert losses(True) == losses(False)


def test_an_objective_that_is_never_captured_is_told_at_once():
    model, guide = zoo.functions()
    with pytest.warns(UnreliableWarning, match="RenyiELBO is captured with alpha = 0, and this one has 0.5"):
        SVI(model, guide, adam, RenyiELBO(alpha=0.5, num_particles=2), compile=True)


def test_a_loss_of_one_s_own_runs_eagerly():
    model, guide = zoo.functions()
    with pytest.warns(UnreliableWarning, match="function are not captured"):
        svi = SVI(model, guide, adam, lambda model, guide, x: Trace_ELBO().differentiable_loss(model, guide, x), compile=True)
    assert svi.step(*zoo.binary()()) > 0


def test_without_a_compiler_steps_run_eagerly_and_say_so_once(monkeypatch):
    monkeypatch.setattr(ppvae.engine, "why_no_compiler", lambda device="cpu": "there is no C++ compiler on this machine")
    entry = ZOO["functions with pyro.module"]
    svi = trainer(entry, backend=None)
    with pytest.warns(UnreliableWarning, match=r"steps run eagerly: there is no C\+\+ compiler") as told:
        losses = path(svi, entry.args(), 5)
    assert len(told) == 1
    assert losses == path(trainer(entry, compile=False), entry.args(), 5)


# What goes wrong later: back to the last step that was verified


def rewound(svi, args, steps, each=lambda step: None):
    """Train through a rewind; returns the number of steps behind it and what the pair was rewound to."""
    went_back, kept = svi._go_back, SimpleNamespace(taken=None)

    def go_back(to):
        went_back(to)
        kept.taken, kept.tensors = svi.steps_taken, state(svi)
        kept.optimizer = copy.deepcopy(svi.optim.torch_optimizer.state_dict())
        kept.noise, kept.remaining = torch.get_rng_state(), steps - kept.begun

    svi._go_back = go_back
    with pytest.warns(UnreliableWarning) as told:
        for step in range(steps):
            kept.begun = step
            each(step)
            svi.step(*args)
    kept.told = [str(w.message) for w in told if issubclass(w.category, UnreliableWarning)]
    return kept


def eagerly_from(kept, entry, each=lambda step: None, steps=40):
    """Where an eager run from there leads."""
    svi = trainer(entry, compile=False)
    for tensor, value in zip((*svi.leaves, *svi.engine.surroundings.buffers()), kept.tensors, strict=True):
        tensor.data.copy_(value)
    svi.optim.torch_optimizer.load_state_dict(kept.optimizer)
    svi.steps_taken = kept.taken
    torch.set_rng_state(kept.noise)
    for step in range(steps - kept.remaining, steps):
        each(step)
        svi.step(*entry.args())
    return state(svi)


def test_a_parameter_born_at_step_20_is_found_at_step_32_and_trained_from_16_on():
    clock = zoo.Clock()
    entry = Entry(lambda: zoo.born_by_a_clock(clock), zoo.binary())

    def tick(step):
        clock.step = step

    svi = trainer(entry)
    kept = rewound(svi, entry.args(), 40, tick)
    assert kept.taken == 15  # before the 16th step, the last that was verified
    (told,) = kept.told
    assert re.search(r"1 parameters? .*gradient.*: back from step 31 to 15, where they were right; on eagerly", told)
    ends = state(svi)
    clock.step = 0
    found = eagerly_from(kept, entry, tick)
    assert all(map(torch.equal, ends, found))
    assert "shift" in pyro.get_param_store()


class Scheduled(zoo.VAE):
    """A weight that the training loop moves."""

    beta = 1.0

    def model(self, x):
        with poutine.scale(scale=self.beta):
            return super().model(x)


def test_a_number_moved_from_outside_is_found_at_the_next_verification():
    vae = []

    def make():
        vae.append(Scheduled())
        return vae[-1].model, vae[-1].guide

    def anneal(step):
        if step >= 10:
            vae[-1].beta = 1.0 / step

    entry = Entry(make, zoo.binary())
    svi = trainer(entry)
    kept = rewound(svi, entry.args(), 40, anneal)
    assert kept.taken == 7
    assert re.search(r"number beta went from 1.0 to 0.0666.*: back from step 15 to 7", kept.told[0])
    ends = state(svi)
    assert all(map(torch.equal, ends, eagerly_from(kept, entry, anneal)))


def test_a_rewind_to_the_first_step_forgets_what_the_optimizer_learned_since():
    vae = []

    def make():
        vae.append(Scheduled())
        return vae[-1].model, vae[-1].guide

    def anneal(step):
        vae[-1].beta = 1.0 / (step + 1)

    entry = Entry(make, zoo.binary())
    svi = trainer(entry)
    kept = rewound(svi, entry.args(), 5, anneal)
    assert kept.taken == 0
    assert kept.optimizer["state"] == {}


# Of the eight gradients the first and the last; those between go the same way.
BETWEEN = [pytest.param(place, torch.float32, marks=pytest.mark.soak) for place in range(1, 7)]


@pytest.mark.parametrize(("place", "dtype"), [(0, torch.float64), (0, torch.float32), *BETWEEN, (7, torch.float32)], ids=str)
def test_a_fault_of_one_percent_in_one_gradient_is_caught(place, dtype):
    torch.set_default_dtype(dtype)
    entry = ZOO["functions with pyro.module"]

    def faulty(graph, inputs):
        def run(*inputs):
            loss, norm, *gradients = graph(*inputs)
            gradients[place] = gradients[place] * 1.01
            return [loss, norm, *gradients]

        return run

    svi = trainer(entry, backend=faulty)
    with pytest.warns(UnreliableWarning, match="gradient of a parameter of shape"):
        svi.step(*entry.args())


def test_the_rounding_of_a_long_sum_is_no_fault():
    """A convolution's bias before BatchNorm: in float32 its gradient, 0, was seen 2.4e-6 of the largest gradient away from eager's."""
    torch.set_default_dtype(torch.float32)
    entry = ZOO["BatchNorm and dropout"]

    def rounded(graph, inputs):
        def run(*inputs):
            loss, norm, *gradients = graph(*inputs)
            largest = max(g.abs().max() for g in gradients)
            return [loss, norm, *(g + 5e-6 * largest for g in gradients)]

        return run

    svi = trainer(entry, backend=rounded)
    path(svi, entry.args(), 4)
    assert svi.engine.reason == ""


@pytest.mark.parametrize("fault", [lambda loss: loss * (1 + 1e-4), lambda loss: loss * float("nan")], ids=["1e-4", "nan"])
def test_a_fault_in_the_loss_is_caught(fault):
    torch.set_default_dtype(torch.float32)
    entry = ZOO["functions with pyro.module"]

    def faulty(graph, inputs):
        return lambda *inputs: [fault(part) if i == 0 else part for i, part in enumerate(graph(*inputs))]

    with pytest.warns(UnreliableWarning, match="the loss is .* compiled and .* by eager Pyro"):
        trainer(entry, backend=faulty).step(*entry.args())


def test_a_frozen_running_statistic_is_caught():
    entry = ZOO["BatchNorm and dropout"]

    def faulty(graph, inputs):
        def run(*inputs):
            before = [t.clone() for t in graph.lifted]
            found = graph(*inputs)
            for tensor, value in zip(graph.lifted, before, strict=True):
                tensor.data.copy_(value)
            return found

        return run

    with pytest.warns(UnreliableWarning, match="a buffer of shape .* ends otherwise"):
        trainer(entry, backend=faulty).step(*entry.args())


# Shapes, modes, parameters


def test_another_shape_is_another_graph_and_one_too_many_runs_eagerly(monkeypatch):
    assert ppvae.engine.MOST_SHAPES == 8
    monkeypatch.setattr(ppvae.engine, "MOST_SHAPES", 2)
    entry = ZOO["functions with pyro.module"]
    (x,) = entry.args()
    svi, eager = trainer(entry), trainer(entry, compile=False)
    pairs = []
    for chosen in (svi, eager):
        torch.manual_seed(5)
        with pytest.warns(UnreliableWarning, match="more than 8 shapes") if chosen is svi else contextlib.nullcontext():
            pairs.append([chosen.step(x[:n]) for n in (16, 3, 16, 5, 16, 3)])
    torch.testing.assert_close(*pairs, rtol=1e-11, atol=0)
    assert len(svi.engine.steps) == 2
    assert svi.engine.reason == ""


def test_another_mode_is_another_graph():
    vae = zoo.BatchNormalized()
    entry = Entry(lambda: (vae.model, vae.guide), ZOO["BatchNorm and dropout"].args)
    svi = trainer(entry)
    (x,) = entry.args()
    svi.step(x)
    vae.eval()
    before = [b.clone() for b in vae.buffers()]
    torch.manual_seed(0)
    expected = Trace_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    assert svi.step(x) == pytest.approx(expected, rel=1e-12)
    assert all(map(torch.equal, before, vae.buffers()))
    assert len(svi.engine.steps) == 2


def test_the_mode_of_a_module_in_a_list_counts_too():
    entry = ZOO["modules in a list"]
    svi = trainer(entry)
    for module in svi.engine.surroundings.modules:
        module.eval()
    svi.step(*entry.args())
    for module in svi.engine.surroundings.modules:
        module.train()
    svi.step(*entry.args())
    assert len(svi.engine.steps) == 2


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
def test_frozen_parameters_stay_frozen_and_are_trained_once_let_go():
    vae = zoo.VAE()
    entry = Entry(lambda: (vae.model, vae.guide), zoo.binary())
    frozen = list(vae.encoder[0].parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    svi = trainer(entry)
    before = [p.clone() for p in frozen]
    path(svi, entry.args(), 3)
    assert all(map(torch.equal, before, frozen))
    for parameter in frozen:
        parameter.requires_grad_(True)
    path(svi, entry.args(), 1)
    assert not any(map(torch.equal, before, frozen))
    assert svi.engine.reason == ""


def test_data_of_a_parameter_may_be_replaced():
    vae = zoo.VAE()
    entry = Entry(lambda: (vae.model, vae.guide), zoo.binary())
    svi = trainer(entry)
    path(svi, entry.args(), 3)
    for parameter in vae.parameters():
        parameter.data = parameter.data * 0.5
    torch.manual_seed(0)
    expected = Trace_ELBO().loss(vae.model, vae.guide, *entry.args())
    torch.manual_seed(0)
    assert svi.step(*entry.args()) == pytest.approx(expected, rel=1e-12)


def test_a_tensor_that_the_program_closes_over_is_not_taken_for_the_batch():
    x = zoo.real()()[0]

    def model(batch):
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(x.mean(0), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=batch)

    def guide(batch):
        loc = pyro.param("loc", torch.zeros(D))
        with pyro.plate("data", len(batch)):
            pyro.sample("z", dist.Normal(loc.expand(len(batch), D), 1.0).to_event(1))

    svi = trainer(Entry(lambda: (model, guide), lambda: (x,)))
    svi.step(x)
    torch.manual_seed(0)
    expected = Trace_ELBO().loss(model, guide, x + 3.0)
    torch.manual_seed(0)
    assert svi.step(x + 3.0) == pytest.approx(expected, rel=1e-12)


def test_arrays_that_lie_where_the_last_one_lay_are_told_apart():
    decoder = nn.Linear(Z, D)

    def model(x, weights):
        with pyro.plate("data", len(x)), poutine.scale(scale=float(weights.sum())):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x, weights):
        with pyro.plate("data", len(x)), poutine.scale(scale=float(weights.sum())):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), Z), 1.0).to_event(1))

    (x,) = zoo.real()()
    svi = trainer(Entry(lambda: (model, guide), lambda: (x, torch.ones(2).numpy())))
    for scale in (1.0, 2.0, 3.0):
        weights = (torch.ones(2) * scale).numpy()
        torch.manual_seed(0)
        expected = Trace_ELBO().loss(model, guide, x, weights)
        torch.manual_seed(0)
        assert svi.step(x, weights) == pytest.approx(expected, rel=1e-12)
        del weights


# Parameters of the store, and those of modules with buffers; the other two are of these kinds.
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("functions with pyro.module", "AutoNormal")),
        "constrained parameters",
        "BatchNorm and dropout",
    ],
)
def test_a_pyro_optimizer_goes_the_same_way(name):
    entry = ZOO[name]
    args = entry.args()
    pyro_adam = {"lr": 0.01, "eps": 1e-3}
    eager = trainer(entry, compile=False, optimizer=optim.Adam(pyro_adam))
    expected, ends = path(eager, args, 20), state(eager)
    svi = trainer(entry, optimizer=optim.Adam(pyro_adam))
    losses = path(svi, args, 20)
    assert svi.engine.reason == ""
    torch.testing.assert_close((losses, state(svi)), (expected, ends), rtol=1e-9, atol=1e-9)


def test_a_rewind_takes_a_pyro_optimizer_back_too():
    vae = Scheduled()
    entry = Entry(lambda: (vae.model, vae.guide), zoo.binary())
    svi = trainer(entry, optimizer=optim.Adam({"lr": 0.01}))
    svi.step(*entry.args())
    vae.beta = 0.5
    with pytest.warns(UnreliableWarning, match="back from step 1 to 0"):
        svi.step(*entry.args())
    steps = {own.state_dict()["state"][0]["step"].item() for own in svi.optim.optim_objs.values()}
    assert steps == {1.0}  # the step taken since, and not the one undone


@pytest.mark.parametrize("name", ["AutoNormal", "constrained parameters", "functions with pyro.module"])
def test_parameters_that_are_born_in_the_first_step_are_trained_compiled(name):
    """Without ``prepare``, which every other test here calls."""
    entry = ZOO[name]

    def run(compile):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide = entry.make()
        svi = SVI(model, guide, adam, entry.objective(), compile=compile)
        svi.engine.backend = uncompiled
        return path(svi, entry.args(), 20), svi, set(pyro.get_param_store())

    losses, svi, names = run(True)
    expected, _, expected_names = run(False)
    assert (svi.engine.reason, len(svi.engine.steps)) == ("", 1)
    assert names == expected_names
    if name != "AutoNormal":  # whose birth draws, so that the noise afterwards is another
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)


def test_the_number_that_differs_between_two_captures_is_named():
    calls = itertools.count(1)
    entry = Entry(lambda: zoo.functions(scale=lambda: float(next(calls))), zoo.binary())
    svi = trainer(entry)
    with pytest.warns(UnreliableWarning, match="two captures differ: the number 3 .* is 4 the next time"):
        svi.step(*entry.args())


def test_a_number_among_the_arguments_is_part_of_the_graph():
    model, guide = zoo.functions()

    def weighted(program):
        def run(x, weight):
            with poutine.scale(scale=weight):
                program(x)

        return run

    (x,) = zoo.binary()()
    svi = trainer(Entry(lambda: (weighted(model), weighted(guide)), lambda: (x, 1.0)))
    losses = []
    for weight in (1.0, 0.5, 1.0):
        torch.manual_seed(0)
        losses.append(svi.engine.gradients(Call.of((x, weight), {}), 1.0).loss.item())
    assert losses[1] == pytest.approx(0.5 * losses[0], rel=1e-12)
    assert losses[2] == losses[0]
    assert len(svi.engine.steps) == 2
