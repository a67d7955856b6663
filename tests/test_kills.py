"""A process may die at any moment: the folder holds the old checkpoint or the new one, and the run that goes on is the undisturbed one."""

from __future__ import annotations

import builtins
import contextlib
import os
import random
import signal
import time
import warnings

import pytest
import torch
from test_resume import left_in, untimed

import ppvae
from ppvae import checkpoint, storage
from ppvae.run import HISTORY

DIED = 9


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    """What an undisturbed run leaves, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    forks.run("forks:train", str(folder.with_name("warm")))
    started = time.monotonic()
    assert forks.run("forks:train", str(folder)) == 0
    return left_in(folder), time.monotonic() - started


def killed_until_it_ends(forks, folder, seconds, generator):
    """Start a run again and again, and kill it at random moments until it ends by itself; how often it was killed."""
    kills = 0
    while True:
        child = forks.start("forks:train", str(folder))
        time.sleep(generator.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):  # it had ended
            os.kill(child, signal.SIGKILL)
        code = forks.ended()
        if code != -signal.SIGKILL:
            assert code == 0
            return kills
        kills += 1
        if (folder / "checkpoints").exists():
            found = checkpoint.newest(folder / "checkpoints")
            assert found is None or found[3] == []  # what is there is whole


def survive(forks, undisturbed, folder, kills, seed):
    expected, seconds = undisturbed
    generator, killed, runs = random.Random(seed), 0, 0
    while killed < kills:
        killed += killed_until_it_ends(forks, folder / f"run{runs}", seconds, generator)
        assert left_in(folder / f"run{runs}") == expected
        runs += 1


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(forks, undisturbed, tmp_path):
    survive(forks, undisturbed, tmp_path, kills=20, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_run_killed_500_times_ends_as_the_undisturbed_one(forks, undisturbed, tmp_path):
    survive(forks, undisturbed, tmp_path, kills=500, seed=2)


# At every call of the operating system.


class DyingFile:
    """A file whose writes and flushes are calls that can be died in, a write also half way."""

    def __init__(self, file, calls):
        self.file, self.fileno, self.calls = file, file.fileno, calls

    def write(self, content):
        def half():
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        return self.calls("write", lambda: self.file.write(content), half)

    def flush(self):
        self.calls("flush", self.file.flush)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.calls("close", self.file.close)


class Calls:
    """Counts calls that change the disk; the process ends at once before, half way through or after the n-th."""

    def __init__(self, nth=None, when="before"):
        self.nth, self.when, self.names = nth, when, []

    def __call__(self, name, real, half=None):
        last = len(self.names) == self.nth
        self.names.append(name)
        if last and self.when == "before":
            os._exit(DIED)
        if last and self.when == "half" and half is not None:
            half()
            os._exit(DIED)
        found = real()
        if last:
            os._exit(DIED)
        return found

    def install(self):
        real_open = builtins.open

        def opened(path, mode="r", *rest, **named):
            if "w" not in mode:
                return real_open(path, mode, *rest, **named)
            return DyingFile(self("open", lambda: real_open(path, mode, *rest, **named)), self)

        builtins.open = opened
        for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir", "close"):
            real = getattr(os, name)
            setattr(os, name, lambda *args, _real=real, _name=name: self(f"os.{_name}", lambda: _real(*args)))


def cycle(folder, step):
    """What a run does whenever it saves; a step that is saved again has another length."""
    more = {"more": torch.zeros(9)} if (folder / f"step-{step:08d}.json").exists() else {}
    checkpoint.save(folder, f"step-{step:08d}", {"a": torch.full((4,), float(step)), **more}, {"i": step, "t": torch.full((2,), step)})
    checkpoint.prune(folder)
    storage.write_atomically(folder.parent / HISTORY, f'{{"epoch": {step}}}\n'.encode())


def in_a_child(work, calls):
    """Run work in a child whose calls are counted; its exit code and, where it lived, the names of its calls."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            write, leave = os.write, os._exit
            calls.install()
            work()
            write(writing, " ".join(calls.names).encode())
            leave(0)
        finally:
            os._exit(1)
    os.close(writing)
    said = os.read(reading, 1 << 16).decode().split()
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def before_the_cycle(folder, existing):
    for step in existing:
        cycle(folder, step)


SAVES = {"first save": (), "third save": (1, 2), "same step again": (2, 3)}
REPEATING = {("half", "first save"), ("half", "same step again"), *(("after", name) for name in SAVES)}  # after a call is before the next


@pytest.mark.parametrize(
    ("when", "existing"),
    [
        pytest.param(when, existing, id=f"{when}-{name}", marks=[pytest.mark.soak] * ((when, name) in REPEATING))
        for when in ("before", "half", "after")
        for name, existing in SAVES.items()
    ],
)
def test_death_at_every_call_of_a_save_leaves_the_old_checkpoint_or_the_new(when, existing, tmp_path):
    before_the_cycle(tmp_path / "0" / "checkpoints", existing)
    code, names = in_a_child(lambda: cycle(tmp_path / "0" / "checkpoints", 3), Calls())
    assert code == 0 and {"open", "write", "os.fsync", "os.replace"} <= set(names) and names.count("os.fsync") >= 6
    assert ("os.unlink" in names, "os.mkdir" in names) == (bool(existing), not existing)
    for nth, name in enumerate(names):
        if when == "half" and name != "write":
            continue
        folder = tmp_path / str(nth + 1) / "checkpoints"
        before_the_cycle(folder, existing)
        assert in_a_child(lambda folder=folder: cycle(folder, 3), Calls(nth, when))[0] == DIED
        sound = checkpoint.newest(folder) if folder.exists() else None
        if sound is None:
            assert not existing
        else:
            found, tensors, state, damaged = sound
            step = state["i"]
            assert (found, step in (3, max(existing, default=3)), damaged) == (f"step-{step:08d}", True, []), (nth, name)
            assert tensors["a"].tolist() == [step] * 4 and state["t"].tolist() == [step] * 2
        assert sound is None or 3 not in existing or step == 3
        cycle(folder, 4)  # the next save tidies up
        kept = {"step-00000004", *checkpoint.names(folder)}
        found = {path.name.replace(".again", "") for path in folder.iterdir()}
        assert found == {f"{one}.{suffix}" for one in kept for suffix in ("json", "safetensors")}
        assert len(list(folder.iterdir())) == 2 * len(kept)


def dying_run(folder, nth):
    """A run in a child that dies at its n-th call; whether it did."""
    import forks as child_side

    def work():
        warnings.simplefilter("error")
        torch.set_default_dtype(torch.float64)
        child_side.train(str(folder), epochs=1, checkpoint_every=0.0, num_data=32)

    return in_a_child(work, Calls(nth, "before"))[0] == DIED


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_death_at_every_call_of_a_run_goes_on_as_if_undisturbed(tmp_path):
    """Lock, description, trial write and all saves: a run of two steps that saves at each, dead before each of its calls in turn."""
    assert not dying_run(tmp_path / "whole", None)
    expected, nth = left_in(tmp_path / "whole"), 0
    while dying_run(tmp_path / str(nth), nth):
        assert not dying_run(tmp_path / str(nth), None)  # and nothing was damaged: a warning would be an error
        assert left_in(tmp_path / str(nth)) == expected, nth
        nth += 1
    assert nth > 100


# What reading finds after a death.


def test_history_is_that_of_the_parameters(tmp_path):
    """Killed between the two, the checkpoint is a save ahead of history.jsonl; taken from the one before, a save behind."""
    import pairs

    run = ppvae.fit(*pairs.ours(), pairs.binary(), epochs=3, batch_size=10, out=tmp_path / "run")
    (tmp_path / "run" / HISTORY).write_text('{"epoch": 1}\n')
    assert untimed(ppvae.load(tmp_path / "run").history) == untimed(run.history)
