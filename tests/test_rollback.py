"""A run that diverges goes back to the start of its epoch, or the last thousandth step, and on with half the learning rate, at most so many times."""

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
from test_resume import CASES, Interrupted, left_in, noisy, run, untimed

import pairs
import ppvae
import ppvae.svi
from ppvae import checkpoint, policy, training
from ppvae.engine import Engine
from ppvae.errors import DivergedError, ObjectiveError, ProgramError
from ppvae.training import Training


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Captured graphs run operation by operation, without inductor's five seconds: what is tested is what stands around them."""
    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=lambda graph, inputs: graph))


def linear(x):
    weight = pyro.param("weight", torch.ones(1, dtype=torch.float32))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(weight, 1.0).to_event(1), obs=x)


def descend(rate, steps=100, **arguments):
    """Gradient descent on (w - 9)^2 / 2 from 1: w_k - 9 = -8 (1 - r)^k; ten equal data a step."""
    sgd = functools.partial(torch.optim.SGD, lr=rate)
    x = torch.full((10 * steps, 1), 9.0, dtype=torch.float32)
    return ppvae.fit(linear, lambda x: None, x, **{"batch_size": 10, "optimizer": sgd, "epochs": 1, "compile": False, **arguments})


def weight(found):
    return found.model.store["params"]["weight"].item()


# The loss of ten data is 10 (8 (1 - r)^k)^2 / 2 and a constant; the largest float32 is 3.4e38. At r = 6 that is passed where 25^k > 1.06e36,
# first at k = 26; at r = 3 where 4^k is, first at k = 60; r = 1.5 halves the error at each step.


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_the_rate_is_halved_until_the_run_holds(compile):
    found = descend(6.0, compile=compile)
    assert [(one["epoch"], one["step"], one["to"]) for one in found.rollbacks] == [(1, 26, 0), (1, 60, 0)]
    assert found.history[-1]["learning_rate"] == 1.5
    assert (found.stopped, found.history[-1]["step"]) == ("finished", 100)
    assert weight(found) == pytest.approx(9.0, abs=1e-6)  # one unit in the last place of 9


def test_updates_are_those_of_the_lower_rate():
    """A step behind the second rollback is a step at r = 1.5: (-0.5)^3 of the error is left after three."""
    weights = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            weights.append(self.param_groups[0]["params"][0].item())
            return super().step(closure)

    descend(6.0, optimizer=functools.partial(Watching, lr=6.0))
    start = 26 + 60
    assert weights[start : start + 4] == [1.0, pytest.approx(9 + 4.0), pytest.approx(9 - 2.0), pytest.approx(9 + 1.0)]


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_long_epoch_is_not_begun_again(compile, monkeypatch):
    """No move for 215 steps, then r = 6: back to step 200, the last hundredth here; from there r = 3, which ends after 60 steps, and 1.5."""
    assert training.REST_EVERY == 1000  # as docs/faults.md says
    monkeypatch.setattr(training, "REST_EVERY", 100)
    taken = []

    class Late(torch.optim.SGD):
        def step(self, closure=None):
            taken.append(1)
            self.param_groups[0]["lr"] = 6.0 if len(taken) > 215 else 0.0
            return super().step(closure)

    found = descend(6.0, steps=350, optimizer=functools.partial(Late, lr=0.0), compile=compile)
    assert [(one["epoch"], one["step"], one["to"]) for one in found.rollbacks] == [(1, 241, 200), (1, 260, 200)]
    assert found.history[-1]["step"] == 350
    assert weight(found) == pytest.approx(9.0, abs=1e-6)  # one unit in the last place of 9


def test_what_is_printed(capsys):
    descend(6.0)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("run ", "data ", "objective ", "epoch "))]
    assert [line.partition(" and the norm ")[0] for line in said] == [
        "diverged at step 26 (epoch 1): the loss is inf",
        "  every density and the gradient of every single datum are finite: it is their sum that overflowed",
        "  back to step 0, and on with 0.5 of the learning rate (rollback 1 of 3)",
        "diverged at step 60 (epoch 1): the loss is inf",
        "  every density and the gradient of every single datum are finite: it is their sum that overflowed",
        "  back to step 0, and on with 0.25 of the learning rate (rollback 2 of 3)",
    ]


def test_a_run_that_may_not_go_back_again_ends_where_its_epoch_began(tmp_path):
    with pytest.raises(DivergedError) as raised:
        descend(6.0, rollbacks=1, out=tmp_path)
    assert raised.value.problem.startswith(
        "training diverged at step 60 (epoch 1), after 1 rollback with at last 0.5 of the learning rate: the loss is inf"
    )
    assert raised.value.where.endswith(f"the last good state is in {tmp_path}")
    found = ppvae.load(tmp_path, linear, lambda x: None)
    assert (weight(found), found.stopped, len(found.rollbacks)) == (1.0, "diverged", 1)


def test_a_run_that_ended_goes_on_where_more_rollbacks_are_allowed(tmp_path):
    with pytest.raises(DivergedError):
        descend(6.0, rollbacks=1, out=tmp_path)
    found = descend(6.0, rollbacks=2, out=tmp_path, resume=True)
    assert [one["step"] for one in found.rollbacks] == [26, 60]
    assert weight(found) == pytest.approx(9.0, abs=1e-6)


def test_a_first_step_that_diverges_is_not_tried_again(capsys):
    """No update was made, so that another rate would change nothing."""

    def infinite(x):
        pyro.param("weight", torch.ones(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.param("weight"), 1.0).to_event(1), obs=x)
            pyro.factor("far", torch.full((len(x),), -torch.inf))

    with pytest.raises(DivergedError, match=r"training diverged at step 0 \(epoch 1\): the loss is inf"):
        ppvae.fit(infinite, lambda x: None, torch.zeros(10, 1), epochs=1)
    assert "rollback" not in capsys.readouterr().err


def narrow(x):
    """E[log p - log q] in s = log of the guide's scale: s moves by 1 - e^2s times the rate; by 300 of them exp(-s) is beyond any number."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 2, torch.exp(pyro.param("s", torch.tensor(0.5)))).to_event(1))


def shifted(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("validation", [None, torch.zeros(4, 1)], ids=["", "validated"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_update_that_no_step_comes_after_is_judged_at_the_end_of_its_epoch(epochs, validation):
    """Of a batch that is all data the next step lies behind what is measured, or does not come at all."""
    given = {"optimizer": functools.partial(torch.optim.SGD, lr=2000.0), "epochs": epochs, "batch_size": 40, "validation": validation}
    with pytest.raises(DivergedError) as raised:
        ppvae.fit(shifted, narrow, pairs.real(40, 1), **given)
    assert raised.value.problem == (
        "training diverged at step 1 (epoch 1), after 3 rollbacks with at last 0.125 of the learning rate: "
        "its last update left densities that are no numbers"
    )
    assert (
        raised.value.where == "guide site 'z', datum 0 (40 of 40 data of the batch): its scale is 0; the programs hold the last good state"
    )


def test_what_the_last_update_left_is_not_saved(tmp_path):
    sgd = functools.partial(torch.optim.SGD, lr=2000.0)
    with pytest.raises(DivergedError, match=f"the last good state is in {tmp_path}"):
        ppvae.fit(shifted, narrow, pairs.real(40, 1), epochs=1, batch_size=40, optimizer=sgd, rollbacks=0, out=tmp_path)
    assert ppvae.load(tmp_path, shifted, narrow).model.store["params"]["s"].item() == 0.5
    with pytest.raises(DivergedError, match="the programs hold no good state"):
        ppvae.fit(shifted, narrow, pairs.real(40, 1), epochs=1, batch_size=40, optimizer=sgd, rollbacks=0)


def test_what_a_program_raises_while_it_is_measured_is_no_divergence():
    model, guide = pairs.ours()
    calls = []

    def failing(x):
        calls.append(None)
        if len(calls) > 20:
            raise KeyError("of the program's own")
        return guide(x)

    with pytest.raises((KeyError, ProgramError), match="of the program's own"):
        ppvae.fit(model, failing, pairs.binary(), epochs=50)


@pytest.mark.parametrize("rollbacks", [-1, 1.5, None])
def test_how_often_is_a_whole_number(rollbacks):
    with pytest.raises(ObjectiveError, match=f"rollbacks is a whole number of at least 0, got {rollbacks!r}"):
        descend(1.0, rollbacks=rollbacks)


# A divergence of another's making: once, at a step of our choice.


@pytest.fixture
def diverge_at(monkeypatch):
    """Have the steps counted so, one after the other, find a loss that is no number."""

    def arm(*at):
        left = list(at)
        check = ppvae.SVI._check_and_clip

        def checking(self, loss, params, divisor):
            if left and self.steps_taken == left[0]:
                del left[0]
                loss = float("nan")
            return check(self, loss, params, divisor)

        monkeypatch.setattr(ppvae.SVI, "_check_and_clip", checking)

    return arm


@pytest.mark.parametrize(
    ("at", "began", "seen"),
    [(5, 4, [1, 2, 3]), (7, 4, [1, 2, 3]), (8, 4, [1, 2, 2, 3]), (1, 0, [1, 2, 3])],
    ids=["second step", "last step", "first step, so from the epoch before", "first epoch"],
)
def test_it_goes_back_to_the_last_epoch_that_began_well(at, began, seen, diverge_at):
    """Three epochs of four steps at r = 0.5: the error is halved a step until where the run goes back to, and falls by a quarter after."""
    epochs = []
    diverge_at(at)
    found = descend(0.5, steps=4, epochs=3, callback=lambda row: epochs.append(row["epoch"]))
    assert [(one["step"], one["to"]) for one in found.rollbacks] == [(at, began)]
    assert weight(found) == pytest.approx(9 - 8 * 0.5**began * 0.75 ** (12 - began), rel=1e-6)
    assert epochs == seen
    assert [row["epoch"] for row in found.history] == [1, 2, 3]
    assert [row["learning_rate"] for row in found.history] == [0.5 if 4 * row["epoch"] <= began else 0.25 for row in found.history]


REPEATED = ["pyro.optim", "torch scheduler", "BatchNorm", "born late"]


def assert_as_if_slower_from(began, at, case, diverge_at, folder, monkeypatch, **more):
    """The run that diverges at these steps is the one at a lower rate from the step counted so, bit for bit."""
    make, x, arguments = CASES[case] if isinstance(case, str) else case
    step = Training._step

    def slower(self):
        self.svi.shortened = 0.5 ** len(at) if self.svi.steps_taken >= began else 1.0
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", slower)
        expected = run(make, x, folder / "expected", checkpoint_every=60.0, **arguments, **more)
    diverge_at(*at)
    found = run(make, x, folder / "found", **arguments, **more)
    assert [(one["step"], one["to"]) for one in found.rollbacks] == [(step, began) for step in at]
    assert left_in(folder / "found")[:2] == left_in(folder / "expected")[:2]
    assert untimed(found.history) == untimed(expected.history)
    assert left_in(folder / "found")[2]["best"] == left_in(folder / "expected")[2]["best"]
    return expected


# Which states a run has is seen on these; the others are held by resumption, which puts the same states back.
KINDS = ["pyro.module", "torch scheduler", "BatchNorm", "validation"]


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.soak] * (case not in KINDS)) for case in CASES])
def test_what_follows_a_rollback_is_the_run_from_there_at_half_the_rate(case, diverge_at, tmp_path, monkeypatch):
    """Step 7 is the second of the third epoch: optimizer, scheduler, buffers and the best epoch are those of its start."""
    assert_as_if_slower_from(6, [7], case, diverge_at, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", ["pyro.module", "pyro.optim", "torch scheduler"])
def test_what_was_gone_back_to_can_be_gone_back_to_again(case, diverge_at, tmp_path, monkeypatch):
    """Nothing of it may be trained on in place."""
    assert_as_if_slower_from(6, [7, 8, 7], case, diverge_at, tmp_path, monkeypatch)


@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.parametrize("case", ["born late", "born late, pyro.optim"])
def test_what_was_born_since_is_born_again(case, at, diverge_at, tmp_path, monkeypatch):
    """The datum that a parameter is born of comes in one of the first epoch's three batches."""
    assert_as_if_slower_from(0, [at], case, diverge_at, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "case", ["BatchNorm", "validation", *(pytest.param(case, marks=pytest.mark.soak) for case in ("pyro.optim", "torch scheduler"))]
)
def test_the_middle_of_an_epoch_is_gone_back_to_as_its_start_is(case, diverge_at, tmp_path, monkeypatch):
    """Step 8 is the third of the third epoch; the sums of the epoch so far go back too."""
    monkeypatch.setattr(training, "REST_EVERY", 1)
    assert_as_if_slower_from(7, [8], case, diverge_at, tmp_path, monkeypatch)


def test_generators_go_back_too(diverge_at, tmp_path, monkeypatch):
    assert_as_if_slower_from(6, [7], (noisy, pairs.real(), {"compile": False}), diverge_at, tmp_path, monkeypatch)


def test_the_best_epoch_is_one_that_was_not_taken_back(diverge_at, tmp_path, monkeypatch):
    """Adam moves by its rate a step: the first epoch, 3 steps at the full rate, is better than 6 at a quarter; but it was taken back."""
    expected = assert_as_if_slower_from(0, [3, 1], "validation", diverge_at, tmp_path, monkeypatch, epochs=2)
    make, x, arguments = CASES["validation"]
    taken_back = run(make, x, None, epochs=1, **arguments)
    assert taken_back.history[0]["validation_elbo"] > max(row["validation_elbo"] for row in expected.history)


@pytest.mark.parametrize("at", [3, 7, 10, *(pytest.param(at, marks=pytest.mark.soak) for at in (0, 5, 6, 8))])
@pytest.mark.parametrize("case", ["validation", *(pytest.param(case, marks=pytest.mark.soak) for case in ("pyro.module", *REPEATED))])
def test_a_run_killed_beside_a_rollback_goes_on_as_if_undisturbed(case, at, tmp_path, monkeypatch):
    """Killed before, in or after the epoch that is trained twice: what it went back to lies in the checkpoint."""
    assert_resumed_beside_a_rollback(case, at, 7, tmp_path, monkeypatch)


@pytest.mark.parametrize("at", [7, 8, 9])
def test_a_run_killed_beside_a_rollback_to_the_middle_of_an_epoch(at, tmp_path, monkeypatch):
    """Back from step 8 to step 7, of which the checkpoint that is killed behind step 8 tells."""
    monkeypatch.setattr(training, "REST_EVERY", 1)
    assert_resumed_beside_a_rollback("pyro.module", at, 8, tmp_path, monkeypatch)


def assert_resumed_beside_a_rollback(case, at, diverges, tmp_path, monkeypatch):
    """The run that diverges there and is killed before its step counted ``at + 1``, resumed, is the one that was not killed."""
    make, x, arguments = CASES[case]
    check, take, taken = ppvae.SVI._check_and_clip, ppvae.SVI.take, []

    def checking(self, loss, params, divisor):  # diverges again wherever it comes there at the full rate
        return check(self, float("nan") if self.steps_taken == diverges and self.shortened == 1 else loss, params, divisor)

    def breaking(self, *args, **kwargs):
        taken.append(None)
        if len(taken) == at + 1:
            raise Interrupted
        return take(self, *args, **kwargs)

    monkeypatch.setattr(ppvae.SVI, "_check_and_clip", checking)
    whole = run(make, x, tmp_path / "whole", checkpoint_every=60.0, **arguments)
    assert [one["step"] for one in whole.rollbacks] == [diverges]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ppvae.SVI, "take", breaking)
        run(make, x, tmp_path / "broken", **arguments)
    resumed = run(make, x, tmp_path / "broken", start_seed=99, resume=True, **arguments)
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "whole")
    assert untimed(resumed.history) == untimed(whole.history)
    assert resumed.rollbacks == whole.rollbacks


@functools.cache
def undisturbed():
    """What a run that goes back twice leaves, and where it went back."""
    with tempfile.TemporaryDirectory() as folder:
        whole = descend(6.0, out=folder)
        return left_in(Path(folder)), whole.rollbacks


@pytest.mark.parametrize("at", [10, 30, 100])
def test_a_signal_beside_a_rollback_leaves_what_the_run_goes_on_from(at, tmp_path, monkeypatch):
    take, taken = ppvae.SVI.take, []

    def sending(self, *args, **kwargs):
        taken.append(None)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ppvae.SVI, "take", sending)
        assert descend(6.0, out=tmp_path / "run").stopped == "interrupt"
    resumed = descend(6.0, out=tmp_path / "run", resume=True)
    assert (left_in(tmp_path / "run"), resumed.rollbacks) == undisturbed()


@pytest.mark.parametrize("every", [3, 100])
def test_losses_that_are_read_together_go_back_alike(every, monkeypatch, tmp_path):
    at_once = descend(6.0, compile=True, out=tmp_path / "at once")
    monkeypatch.setattr(policy, "steps_between_reads", lambda device: every)
    deferred = descend(6.0, compile=True, out=tmp_path / "deferred")
    assert [(one["step"], one["to"]) for one in deferred.rollbacks] == [(26, 0), (60, 0)]
    assert weight(deferred) == weight(at_once)


def test_a_tensor_at_two_places_is_stored_once(tmp_path):
    """The best epoch is often that of the state to go back to: its tensors are the same."""
    big = torch.randn(1000)
    checkpoint.save(tmp_path, "step-00000001", {}, {"one": big, "other": [big, big.clone()]})
    _, state = checkpoint.load(tmp_path, "step-00000001")
    assert all(torch.equal(found, big) for found in (state["one"], *state["other"]))
    size = (tmp_path / "step-00000001.safetensors").stat().st_size
    assert 2 * big.nbytes < size < 3 * big.nbytes
