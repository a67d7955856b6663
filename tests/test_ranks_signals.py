"""A signal to one of several processes: all end after the same step, with one checkpoint, from which the run goes on as if undisturbed."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
from test_ranks import adam, in_processes, results, same, server, tensors_of, trained  # noqa: F401  (server is used by being here)
from test_resume import left_in

import pairs
import ppvae
from ppvae import checkpoint
from ppvae.interruption import Interruption, SecondSignal
from ppvae.ranks import Ranks
from ppvae.together import SharedSVI
from ppvae.training import ASK_EVERY

ROWS, BATCH = 160, 8
STEPS = ROWS // BATCH  # 20 an epoch: asked after 16 and after 20
assert ASK_EVERY == 16


def signalled(folder, rank, number, at, epochs=3):
    """A run in whose step ``at`` one process is sent a signal; how it ended there."""
    take = SharedSVI.take_share

    def sending(self, *args, **kwargs):
        if self.steps_taken == at and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), number)
        return take(self, *args, **kwargs)

    SharedSVI.take_share = sending
    return ended(folder, epochs)


def ended(folder, epochs=3):
    arguments = {"epochs": epochs, "batch_size": BATCH, "optimizer": adam, "checkpoint_every": 60.0}
    run = ppvae.fit(*pairs.ours(), pairs.binary(ROWS), out=folder, **arguments)
    return run.stopped, run.signal, len(run.history), tensors_of(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number", "at", "stops"),
    [(0, signal.SIGTERM, 3, 16), (1, signal.SIGINT, 17, 20), pytest.param(1, signal.SIGTERM, 30, 36, marks=pytest.mark.soak)],
    ids=["to the first", "before an epoch's end", "in the second epoch"],
)
def test_a_signal_to_one_ends_all_after_the_same_step(rank, number, at, stops, tmp_path):
    torch.set_default_dtype(torch.float64)
    outcomes = results(signalled, tmp_path / "run", rank, number, at)
    epochs = (stops - 1) // STEPS  # that were measured: the last step of an epoch is no epoch yet
    assert [outcome[:3] for outcome in outcomes] == [("interrupt", number, epochs)] * 2
    assert same(outcomes[0][3], outcomes[1][3])
    name, _, state, damaged = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert (name, state["stopped"], damaged) == (f"step-{stops:08d}", "interrupt", [])


@pytest.mark.soak
def test_a_run_that_a_signal_to_one_ended_goes_on_as_if_undisturbed(tmp_path):
    x, arguments = pairs.binary(ROWS), {"epochs": 3, "batch_size": BATCH, "checkpoint_every": 60.0}
    whole = results(trained, pairs.ours, x, arguments | {"out": tmp_path / "whole"})
    results(signalled, tmp_path / "run", 1, signal.SIGTERM, 30)
    resumed = results(trained, pairs.ours, x, arguments | {"out": tmp_path / "run", "resume": True})
    assert all(same(one[1], whole[0][1]) for one in (*whole, *resumed))
    assert left_in(tmp_path / "run") == left_in(tmp_path / "whole")


def test_what_another_process_told_is_no_first_signal():
    found = Interruption()
    found.signal = signal.SIGTERM  # heard by another, told to all
    found.note(signal.SIGTERM)  # and now here too: torchrun sends it to each
    assert found.signal == signal.SIGTERM
    with pytest.raises(SecondSignal):
        found.note(signal.SIGTERM)


def signalled_while_asking(folder):
    """A signal that comes to the second process while the two ask each other for the first time, after each has said that none came."""
    gathered, asked = Ranks.gathered, []

    def sending(self, values):
        found = gathered(self, values)
        if len(values) == 1:
            asked.append(values)
            if len(asked) == 1 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
        return found

    Ranks.gathered = sending
    return ended(folder)


@pytest.mark.slow
def test_a_signal_that_comes_while_they_ask_is_told_when_they_ask_again(tmp_path):
    outcomes = results(signalled_while_asking, tmp_path / "run")
    assert [outcome[:2] for outcome in outcomes] == [("interrupt", signal.SIGTERM)] * 2
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[0] == f"step-{STEPS:08d}"


# From outside, at a moment that nobody chose.


def telling(folder, epochs):
    """A run that writes its process's number once it trains."""
    take, path = SharedSVI.take_share, folder.parent / f"process-{os.environ['RANK']}"

    def noting(self, *args, **kwargs):
        if self.steps_taken == 1:
            path.with_suffix(".part").write_text(str(os.getpid()))
            path.with_suffix(".part").rename(path)
        return take(self, *args, **kwargs)

    SharedSVI.take_share = noting
    return ended(folder, epochs)[:3]


EPOCHS = 100  # more than pass before any of the signals


def outcomes_of(folder, rank, delay):
    """How two processes end of which one is sent SIGTERM, so many seconds after it has begun."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(in_processes(telling, folder, EPOCHS)))
    thread.start()
    told = folder.parent / f"process-{rank}"
    while not told.exists() and thread.is_alive():
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(int(told.read_text()), signal.SIGTERM)  # one that in_processes has started here
    thread.join()
    told.unlink()
    return found


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_signals_from_outside_end_both_after_the_same_step(tmp_path):
    for i in range(4):  # moments within the first steps
        folder = tmp_path / str(i) / "run"
        folder.parent.mkdir()
        outcomes = outcomes_of(folder, i % 2, 0.1 * i)
        assert [outcome[:2] for outcome in outcomes] == [("interrupt", signal.SIGTERM)] * 2
        assert outcomes[0][2] == outcomes[1][2] < EPOCHS
        _, _, state, damaged = checkpoint.newest(folder / "checkpoints")
        assert (state["stopped"], damaged) == ("interrupt", [])
