"""Losses of compiled steps, read together as on an accelerator: the run, what it says where it diverges, and its files are the same."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_fit_compiled import CASES
from test_resume import left_in, untimed

import pairs
import ppvae
import ppvae.svi
from ppvae import checkpoint, policy
from ppvae.engine import Call, Engine
from ppvae.errors import DivergedError, UnreliableWarning
from ppvae.training import Training


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Captured graphs run operation by operation, without inductor's five seconds: what is tested is what stands around them."""
    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=lambda graph, inputs: graph))


@pytest.fixture
def read_every(monkeypatch):
    """Have a CPU's losses read after so many steps, as those of an accelerator are."""
    return lambda steps: monkeypatch.setattr(policy, "steps_between_reads", lambda device: steps)


@pytest.fixture
def readings(monkeypatch):
    """How many losses each reading took."""
    sizes, settle = [], Training._settle

    def settling(self):
        if self._unread:
            sizes.append(len(self._unread))
        settle(self)

    monkeypatch.setattr(Training, "_settle", settling)
    return sizes


def train(name, folder, **arguments):
    """Five epochs of four steps."""
    make, x, given = CASES[name]
    torch.manual_seed(0)
    given = {key: value() if key == "optimizer" and key not in arguments else value for key, value in given.items()}
    given = {"epochs": 5, "batch_size": 5, "seed": 3, "compile": True, "out": folder, **given, **arguments}
    return ppvae.fit(*make(), x, **given)


@functools.cache
def at_once(name):
    """What a run leaves whose every loss is read before the next step: made once for all that is held to it."""
    with tempfile.TemporaryDirectory() as folder:
        history = untimed(train(name, folder).history)
        return left_in(Path(folder)), history


def test_only_an_accelerator_defers():
    assert (policy.steps_between_reads("cpu"), policy.steps_between_reads("cuda")) == (1, policy.READ_BACK_STEPS)


def test_a_loop_on_a_cpu_reads_each_loss_at_once(readings, tmp_path):
    train("Adam", tmp_path)
    assert readings == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.soak] * (name in ("dynamic binarisation", "dropout", "a global site", "pyro.optim", "validation", "Adam")),
        )
        for name in CASES
    ],
)
def test_the_run_is_the_same_to_the_last_bit(name, read_every, readings, tmp_path):
    expected = at_once(name)
    readings.clear()
    read_every(3)
    deferred = train(name, tmp_path)
    assert (left_in(tmp_path), untimed(deferred.history)) == expected
    assert sum(readings) == 20 and max(readings) == 3


def test_losses_are_read_at_the_end_of_an_epoch_and_before_a_verification(read_every, readings, tmp_path):
    """Verified are the steps 1, 2, 4, 8, 16 of all, and 1, 5, 9, 13, 17, the first of their epochs. By hand, what lies before each."""
    read_every(100)
    train("Adam", tmp_path)
    assert readings == [1, 2, 1, 3, 1, 4, 3, 1, 4]
    #      before 2, before 4, the end; before 8, the end; the end (9 to 12); before 16, the end; the end


def test_losses_are_read_before_a_checkpoint(read_every, readings, tmp_path):
    read_every(100)
    train("Adam", tmp_path, checkpoint_every=0.0)
    assert readings == [1] * 20


@pytest.mark.parametrize("at", [6, 11])
def test_a_signal_between_two_readings_leaves_what_the_run_goes_on_from(at, read_every, tmp_path, monkeypatch):
    expected = at_once("warm-up, clipping, scheduler")
    read_every(100)
    take = ppvae.SVI.take

    def sending(self, *args, **kwargs):
        if self.steps_taken == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ppvae.SVI, "take", sending)
        assert train("warm-up, clipping, scheduler", tmp_path / "run").stopped == "interrupt"
    assert checkpoint.names(tmp_path / "run" / "checkpoints")[0] == f"step-{at + 1:08d}"
    resumed = train("warm-up, clipping, scheduler", tmp_path / "run", resume=True)
    assert (left_in(tmp_path / "run"), untimed(resumed.history)) == expected


# What diverges.


def linear(x):
    weight = pyro.param("weight", torch.ones(1, dtype=torch.float32))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(weight, 1.0).to_event(1), obs=x)


def explode(folder, **arguments):
    """Gradient descent on (w - 9)^2 / 2 from 1: w_k - 9 = -8 (1 - r)^k. At r = 10^4 the square of 8 x 10^20 overflows float32 at k = 5."""
    sgd = functools.partial(torch.optim.SGD, lr=1e4)
    given = {"epochs": 2, "batch_size": 10, "optimizer": sgd, "compile": True, "out": folder, "rollbacks": 0, **arguments}
    with pytest.raises(DivergedError) as raised:
        ppvae.fit(linear, lambda x: None, torch.full((70, 1), 9.0, dtype=torch.float32), **given)
    return raised.value


@pytest.mark.parametrize("every", [2, 3, 4, 100])
@pytest.mark.parametrize("saving", [0.0, 60.0], ids=["saved at every step", "saved at the end"])
def test_the_step_that_diverged_is_named_and_the_state_before_it_kept(every, saving, read_every, readings, tmp_path):
    read_every(every)
    error = explode(tmp_path, checkpoint_every=saving)
    assert error.problem.startswith("training diverged at step 5 (epoch 1): the loss is inf")
    assert error.where.startswith("model site 'x', ") and error.where.endswith(f"the last good state is in {tmp_path}")
    assert readings  # or nothing was deferred
    run = ppvae.load(tmp_path, linear, lambda x: None)
    assert (checkpoint.names(tmp_path / "checkpoints")[0], run.stopped) == ("step-00000005", "diverged")
    weight = run.model.store["params"]["weight"].item()
    assert weight == pytest.approx(9 - 8 * (1 - 1e4) ** 5, rel=1e-5)  # five roundings of float32


def test_what_is_said_and_left_is_what_reading_at_once_says_and_leaves(read_every, tmp_path):
    errors = [explode(tmp_path / "at once")]
    read_every(100)
    errors.append(explode(tmp_path / "deferred"))
    assert errors[1].problem == errors[0].problem
    assert errors[1].where.replace("deferred", "at once") == errors[0].where
    assert left_in(tmp_path / "deferred") == left_in(tmp_path / "at once")


def test_a_run_that_diverged_diverges_again_where_it_is_resumed(read_every, tmp_path):
    read_every(100)
    first = explode(tmp_path)
    again = explode(tmp_path, resume=True)
    assert again.problem == first.problem and again.where == first.where


@pytest.mark.parametrize("name", ["Adam", "BatchNorm", "pyro.optim"])
def test_no_update_behind_a_loss_that_is_not_finite_spoils_a_parameter(name, read_every, monkeypatch, tmp_path):
    """Kernels refuse a probability that is no number, and an accelerator's then take the process down with them."""
    unread, settle = [], Training._settle

    def settling(self):
        count = sum(not torch.isfinite(norm) for _, norm, *_ in self._unread)
        if count:
            unread.append(count)
            assert all(torch.isfinite(leaf).all() for leaf in self.svi.leaves)
        settle(self)

    def weight(step):
        return 1e308 if step == 9 else 1.0  # the loss, or the square of its gradient, overflows float64

    monkeypatch.setattr(Training, "_settle", settling)
    read_every(100)
    with pytest.raises(DivergedError, match=r"diverged at step 9 \(epoch 3\)"):
        train(name, tmp_path, likelihood_weight=weight, checkpoint_every=60.0, rollbacks=0)
    assert unread == [1]
    assert checkpoint.names(tmp_path / "checkpoints")[0] == "step-00000009"


def test_going_back_is_to_the_very_state(read_every, monkeypatch, tmp_path):
    """A loss that is not finite when first read, and finite when its step is taken again, leaves no trace in what follows."""
    read_every(100)
    name = "BatchNorm"
    whole = train(name, tmp_path / "whole")
    calls = []

    def faltering(graph, inputs):
        def run(*inputs):
            calls.append(None)
            loss, *rest = graph(*inputs)
            return [loss * torch.inf if len(calls) == 2 + 11 else loss, *rest]  # two looks on admission; the 11th step, unverified

        return run

    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=faltering))
    found = train(name, tmp_path / "faltering")
    assert len(calls) == 2 + 20 + 4  # the steps 9 to 12 were taken twice
    assert left_in(tmp_path / "faltering") == left_in(tmp_path / "whole")
    assert untimed(found.history) == untimed(whole.history)


def test_going_back_twice_is_to_the_very_state(read_every, monkeypatch):
    """A loss is not finite, its steps are taken again, and then the code goes wrong: what they did to Adam's averages must not be kept."""
    read_every(100)
    calls = []

    def faltering(graph, inputs):
        def run(*inputs):
            calls.append(None)
            loss, norm, *gradients = graph(*inputs)
            wrong = 1.5 if len(calls) >= 2 + 12 else 1.0  # two looks on admission; the 8th call was verified, the 11th takes step 7 again
            return [loss * torch.inf if len(calls) == 2 + 9 else loss, norm, *(g * wrong for g in gradients)]

        return run

    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=faltering))
    with pytest.warns(UnreliableWarning, match=r"compiled steps went wrong .*: back from step 10 to 7, where they were right; on eagerly"):
        found = train("Adam", None, epochs=2, batch_size=2)
    expected = train("Adam", None, epochs=2, batch_size=2, compile=False)
    for a, b in zip(expected.history, found.history, strict=True):
        assert b["objective"] == pytest.approx(a["objective"], rel=1e-9)  # float64, rounding


def test_a_loss_that_is_not_finite_comes_before_machine_code_that_went_wrong(read_every, tmp_path, monkeypatch):
    """Step 5 overflows; the code that fails on step 6 had what step 5 left, and is not to blame."""
    calls = []

    def failing(graph, inputs):
        def run(*inputs):
            calls.append(None)
            if len(calls) == 2 + 7:
                raise RuntimeError("Expected p_in >= 0 && p_in <= 1 to be true")
            return graph(*inputs)

        return run

    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=failing))
    read_every(100)
    assert explode(tmp_path).problem.startswith("training diverged at step 5 (epoch 1): the loss is inf")
    assert len(calls) == 2 + 7 + 3  # steps 0 to 6; back to step 3, the fourth, which was the last one verified, up to step 5


def test_machine_code_that_goes_wrong_costs_the_steps_since_it_was_right(read_every, monkeypatch, tmp_path):
    calls = []

    def decaying(graph, inputs):
        def run(*inputs):
            calls.append(None)
            loss, norm, *gradients = graph(*inputs)
            wrong = 1.5 if len(calls) >= 12 else 1.0  # two looks on admission; from the tenth step on
            return [loss, norm, *(g * wrong for g in gradients)]

        return run

    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=decaying))
    read_every(100)
    with pytest.warns(UnreliableWarning, match=r"compiled steps went wrong .*: back from step 12 to 8, where they were right; on eagerly"):
        found = train("Adam", None)
    expected = train("Adam", None, compile=False)
    for a, b in zip(expected.history, found.history, strict=True):
        assert b["objective"] == pytest.approx(a["objective"], rel=1e-9)  # float64: nothing was summed twice or left out


def test_a_shorter_batch_is_eager_and_its_loss_summed_in_its_place(read_every, readings, tmp_path):
    """Twenty data in batches of 7, 7 and 6: the third is eager, and reads what is unread before it."""
    at_once = train("Adam", tmp_path / "at once", batch_size=7)
    read_every(100)
    deferred = train("Adam", tmp_path / "deferred", batch_size=7)
    assert left_in(tmp_path / "deferred") == left_in(tmp_path / "at once")
    assert untimed(deferred.history) == untimed(at_once.history)
    assert sum(readings) == 10


def test_a_step_of_one_s_own_loop_returns_a_number(read_every):
    read_every(100)
    model, guide = pairs.registered()
    svi = ppvae.SVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), compile=True)
    losses = [svi.step(pairs.real()) for _ in range(3)]
    assert all(type(loss) is float for loss in losses) and type(svi.gradient_norm) is float
    assert type(svi.take(Call.of((pairs.real(),), {}))) is float
