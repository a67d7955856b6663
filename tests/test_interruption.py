"""Ctrl-C and SIGTERM end a run after the step under way, with a checkpoint; a second ends it at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch
from test_resume import adam, left_in, run, untimed

import pairs
import ppvae
from ppvae import checkpoint, interruption
from ppvae.interruption import SecondSignal, exit_code, listening, resume_command
from ppvae.training import Training

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def sends(number, at_epoch=2, times=1):
    """A callback that sends this process a signal."""

    def callback(row):
        if row["epoch"] == at_epoch:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return callback


def sent_in_step(number, at, monkeypatch):
    """Send a signal while the step counted ``at`` is under way."""
    take = ppvae.SVI.take

    def sending(self, *args, **kwargs):
        if self.steps_taken == at:
            os.kill(os.getpid(), number)
        return take(self, *args, **kwargs)

    monkeypatch.setattr(ppvae.SVI, "take", sending)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_in_a_step_ends_the_run_after_it(number, tmp_path, monkeypatch, capsys):
    sent_in_step(number, 4, monkeypatch)
    found = run(pairs.registered, pairs.real(), tmp_path / "run", checkpoint_every=60.0)
    assert (found.stopped, found.signal, exit_code(found)) == ("interrupt", number, 128 + number)
    assert (checkpoint.names(tmp_path / "run" / "checkpoints")[0], len(found.history)) == ("step-00000005", 1)
    assert ppvae.load(tmp_path / "run", *pairs.registered()).stopped == "interrupt"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"{number.name}: stopped after step 5 (epoch 2); fit(..., resume=True) goes on from {tmp_path / 'run'}"


@pytest.mark.parametrize("at", [2, 5, *(pytest.param(at, marks=pytest.mark.soak) for at in (0, 10))], ids=lambda at: f"step {at}")
@pytest.mark.parametrize("case", [{}, {"validation": pairs.real(seed=1), "patience": 2}], ids=["plain", "validation"])
def test_run_that_a_signal_ended_goes_on_as_if_undisturbed(at, case, tmp_path, monkeypatch):
    whole = run(pairs.registered, pairs.real(), tmp_path / "whole", **case)
    with monkeypatch.context() as patch:
        sent_in_step(signal.SIGTERM, at, patch)
        assert run(pairs.registered, pairs.real(), tmp_path / "run", **case).stopped == "interrupt"
    resumed = run(pairs.registered, pairs.real(), tmp_path / "run", start_seed=99, resume=True, **case)
    assert left_in(tmp_path / "run") == left_in(tmp_path / "whole")
    assert untimed(resumed.history) == untimed(whole.history)


def test_signal_during_a_measurement_leaves_it_for_the_resumed_run(tmp_path, monkeypatch):
    """After the last step of an epoch all data are measured, which may take longer than anybody waits."""
    run(pairs.registered, pairs.real(), tmp_path / "whole")
    evaluate, calls = ppvae.training.evaluate_pieces, []

    def sending(pieces, n, seed):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(pieces, n, seed)

    with monkeypatch.context() as patch:
        patch.setattr(ppvae.training, "evaluate_pieces", sending)
        found = run(pairs.registered, pairs.real(), tmp_path / "run")
    assert (found.stopped, len(found.history), len(calls)) == ("interrupt", 1, 2)
    _, _, state, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert (state["position"]["epoch"], state["position"]["batch"], state["steps_taken"]) == (1, 3, 6)
    run(pairs.registered, pairs.real(), tmp_path / "run", resume=True)
    assert left_in(tmp_path / "run") == left_in(tmp_path / "whole")


def test_run_in_memory_returns_too():
    found = run(pairs.registered, pairs.real(), None, callback=sends(signal.SIGINT))
    assert (found.stopped, exit_code(found), len(found.history)) == ("interrupt", 130, 2)


def test_signal_in_the_last_epoch_does_not_undo_its_end(tmp_path):
    found = run(pairs.registered, pairs.real(), tmp_path / "run", callback=sends(signal.SIGINT, at_epoch=4))
    assert (found.stopped, exit_code(found), len(found.history)) == ("finished", 0, 4)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_second_signal_raises_at_once_and_the_last_good_checkpoint_stands(number, tmp_path):
    with pytest.raises(KeyboardInterrupt) as raised:
        run(pairs.registered, pairs.real(), tmp_path / "run", callback=sends(number, times=2))
    assert isinstance(raised.value, SecondSignal) and raised.value.exit_code == 128 + number
    name, _, state, damaged = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert (name, state["stopped"], damaged) == ("step-00000006", "running", [])


def test_second_signal_during_a_save_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    replace = os.replace

    def sending(source, target):
        if "step-00000005.json" in str(target):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr(os, "replace", sending)
    with pytest.raises(KeyboardInterrupt):
        run(pairs.registered, pairs.real(), tmp_path / "run")
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[0] == "step-00000004"
    assert not list((tmp_path / "run").rglob("*.tmp-*"))


@pytest.mark.parametrize("end", ["return", "raise"])
def test_handlers_are_put_back(end):
    def handler(number, frame):
        """Of the caller's."""

    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        with contextlib.suppress(ZeroDivisionError):
            run(pairs.registered, pairs.real(), None, epochs=1, callback=lambda row: 1 / (end == "return"))
        assert [signal.getsignal(number) for number in SIGNALS] == [handler, handler]
    finally:
        for number, one in zip(SIGNALS, before, strict=True):
            signal.signal(number, one)


def test_an_ignored_signal_stays_ignored():
    """``nohup`` and shells with jobs in the background start a process so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = run(pairs.registered, pairs.real(), None, callback=sends(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.stopped == "finished"


def test_outside_the_main_thread_no_handler_is_touched():
    before, found = [signal.getsignal(number) for number in SIGNALS], []

    def body():
        def callback(row):
            found.append([signal.getsignal(number) for number in SIGNALS])

        found.append(run(pairs.registered, pairs.real(), None, epochs=1, callback=callback).stopped)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [before, "finished"]


def test_a_run_inside_a_callback_hands_its_signal_on():
    inner = []

    def callback(row):
        if row["epoch"] == 2:
            inner.append(run(pairs.registered, pairs.real(), None, callback=sends(signal.SIGTERM, at_epoch=1)))

    outer = run(pairs.registered, pairs.real(), None, callback=callback)
    assert [(found.stopped, found.signal, len(found.history)) for found in (*inner, outer)] == [
        ("interrupt", signal.SIGTERM, 1),
        ("interrupt", signal.SIGTERM, 2),
    ]


def test_nothing_is_left_where_nobody_asked_for_it():
    interruption.leave_if_asked()
    with listening() as found, found.leaving():
        interruption.leave_if_asked()
        found.note(signal.SIGINT)
        with pytest.raises(interruption.LeftUndone):
            interruption.leave_if_asked()
    interruption.leave_if_asked()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--out", "runs/my run"], "ppvae train --out 'runs/my run' --resume"),
        (["train", "--resume", "--seed", "3"], "ppvae train --resume --seed 3"),
    ],
    ids=["first time", "again"],
)
def test_the_line_that_resumes(arguments, line):
    assert resume_command(arguments) == line


class AtCall:
    """Calls of Python and C functions inside a run's loop, counted; at one of them this process is sent a signal."""

    def __init__(self, monkeypatch):
        self.count, self.at, self.number = 0, None, None
        loop = Training.loop

        def counted(training):
            self.count = 0
            sys.setprofile(self)
            try:
                loop(training)
            finally:
                sys.setprofile(None)

        monkeypatch.setattr(Training, "loop", counted)

    def __call__(self, frame, event, argument):
        self.count += 1
        if self.count == self.at:
            sys.setprofile(None)
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
def test_50_signals_at_random_moments_in_one_process(tmp_path, monkeypatch, fresh):
    """In a step, a measurement, a save: after each the run is interrupted, its newest checkpoint loads, and ``fit`` goes on from there."""
    case = {"validation": pairs.real(seed=1), "epochs": 2}
    generator, calls, runs = random.Random(fresh), AtCall(monkeypatch), 0
    whole = run(pairs.registered, pairs.real(), tmp_path / "whole", **case)
    expected, furthest, signals = left_in(tmp_path / "whole"), calls.count // 2, generator.choices(SIGNALS, k=50)
    while signals or (tmp_path / f"run {runs}").exists():
        calls.at, calls.number = (generator.randrange(furthest), signals.pop()) if signals else (None, None)
        folder = tmp_path / f"run {runs}"
        found = run(pairs.registered, pairs.real(), folder, resume=True, **case)
        _, _, state, damaged = checkpoint.newest(folder / "checkpoints")
        assert (damaged, state["stopped"]) == ([], found.stopped)
        if found.stopped == "interrupt":
            assert found.signal == calls.number
        else:
            assert found.stopped == "finished" and left_in(folder) == expected and untimed(found.history) == untimed(whole.history)
            runs += 1
    assert 5 < runs < 25  # or nothing was gone on from, or nothing interrupted


# Threads: Pyro's store and torch's generator are the process's.


def test_runs_of_two_threads_are_their_solo_runs(tmp_path):
    solo = {name: run(getattr(pairs, name), pairs.real(), tmp_path / name) and left_in(tmp_path / name) for name in ("registered", "table")}
    together, threads = tmp_path / "together", []
    for name in solo:  # made before: what a thread draws or seeds outside of fit is drawn from, or seeds, the other's generator too
        torch.manual_seed(0)
        arguments = {"optimizer": adam, "checkpoint_every": 0.0, "seed": 11, "epochs": 4, "batch_size": 7, "out": together / name}
        threads.append(threading.Thread(target=ppvae.fit, args=(*getattr(pairs, name)(), pairs.real()), kwargs=arguments))
    with_dtype = torch.get_default_dtype()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_default_dtype() == with_dtype
    assert {name: left_in(together / name) for name in solo} == solo


# Real signals at random times.


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    forks.run("forks:train", str(folder.with_name("warm")))
    started = time.monotonic()
    assert forks.run("forks:train", str(folder)) == 0
    return left_in(folder), time.monotonic() - started


def obey(forks, undisturbed, folder, signals, seed):
    """Send signals at random moments, and go on each time; every end is one of those that are promised."""
    expected, seconds = undisturbed
    generator, sent, codes, runs = random.Random(seed), 0, [], 0
    while sent < signals:
        number = generator.choice(SIGNALS)
        child = forks.start("forks:train", str(folder / str(runs)))
        time.sleep(generator.uniform(0.0, seconds))
        try:
            os.kill(child, number)
            sent += 1
        except ProcessLookupError:  # it was done before: the machine was busier when the time of a run was taken
            seconds *= 0.9
        code = forks.ended()
        # Before the first step nothing is noted yet: Python's own KeyboardInterrupt (1 here), and the death that SIGTERM is by default.
        assert code in (0, 128 + number, 1 if number == signal.SIGINT else -number)
        codes.append(code)
        if code == 0:
            assert left_in(folder / str(runs)) == expected
            runs += 1
        elif code == 128 + number:
            state = json.loads((sorted((folder / str(runs) / "checkpoints").glob("step-*.json"))[-1]).read_text())
            assert "interrupt" in json.dumps(state["state"])
    assert forks.run("forks:train", str(folder / str(runs))) == 0
    assert left_in(folder / str(runs)) == expected
    assert {130, 143} <= set(codes)


@pytest.mark.slow
def test_signals_at_random_moments_of_processes(forks, undisturbed, tmp_path):
    obey(forks, undisturbed, tmp_path, 6, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_200_signals_at_random_moments(forks, undisturbed, tmp_path):
    obey(forks, undisturbed, tmp_path, 200, seed=2)
