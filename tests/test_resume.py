"""A run that was interrupted anywhere and goes on is the undisturbed run, bit for bit; and a folder belongs to one run."""

from __future__ import annotations

import functools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import pairs
import ppvae
from pairs import optim
from ppvae import checkpoint, objectives
from ppvae.data import Data
from ppvae.errors import LockedError, RunError, UnreliableWarning
from ppvae.lock import locked

adam = functools.partial(torch.optim.Adam, lr=0.01)
momentum = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
exponential = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)


def halving(epoch):
    return 0.5**epoch


def float32():
    model, guide = pairs.ours()
    return model.float(), guide.float()


def grey():
    """Grey images that are binarised anew each time they are shown."""
    x = torch.randint(0, 256, (20, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Data.from_arrays(x, binarize="dynamic", levels=255)


def of_tuple():
    model, guide = pairs.registered()
    return lambda x: model(x[0]), lambda x: guide(x[0])


def pyro_adam():
    return optim.Adam({"lr": 0.01})


def pyro_exponential():
    return optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.5})


def enum():
    return TraceEnum_ELBO(strict_enumeration_warning=False)


# name: (pair, data, arguments). What holds state is given as a function, so that each run has its own.
CASES = {
    "pyro.module": (pairs.registered, pairs.real(), {}),
    "SGD with momentum": (pairs.registered, pairs.real(), {"optimizer": momentum}),
    "pyro.optim": (pairs.registered, pairs.real(), {"optimizer": pyro_adam}),
    "pyro.optim scheduler": (pairs.registered, pairs.real(), {"optimizer": pyro_exponential}),
    "torch scheduler": (pairs.registered, pairs.real(), {"scheduler": exponential}),
    "scheduler of a function": (
        pairs.registered,
        pairs.real(),
        {"scheduler": functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=halving)},
    ),
    "dynamic binarisation": (float32, grey(), {}),
    "dropout": (pairs.with_dropout, pairs.binary(), {}),
    "BatchNorm": (pairs.with_batch_norm, pairs.binary(), {}),
    "pyro.param": (pairs.table, pairs.real(), {}),
    "pyro.param, pyro.optim": (pairs.table, pairs.real(), {"optimizer": pyro_adam}),
    "born late": (pairs.rare, pairs.one_outlier(), {}),
    "born late, pyro.optim": (pairs.rare, pairs.one_outlier(), {"optimizer": pyro_adam}),
    "born late, SGD": (pairs.rare, pairs.one_outlier(), {"optimizer": momentum}),
    "used now and then": (pairs.experts, pairs.one_outlier(), {}),
    "used now and then, pyro.optim": (pairs.experts, pairs.one_outlier(), {"optimizer": pyro_adam}),
    "bound methods": (pairs.bound, pairs.images(), {}),
    "closed over": (pairs.closures, pairs.real(), {}),
    "in a list": (pairs.hidden, pairs.real(), {}),
    "two called net": (pairs.two_nets, pairs.real(), {}),
    "PyroModule": (pairs.pyro_linear, pairs.real(), {}),
    "tuple": (of_tuple, (pairs.real(), pairs.real(20, 1)), {}),
    "global site": (pairs.unknown_mean, pairs.real(20, 1), {}),
    "enumeration": (pairs.mixture, pairs.real(20, 1), {"objective": enum}),
    "enumeration in the model": (pairs.marginal_mixture, pairs.real(20, 1), {"objective": enum}),
    "particles in a plate": (
        pairs.registered,
        pairs.real(),
        {"objective": lambda: Trace_ELBO(num_particles=2, vectorize_particles=True)},
    ),
    "schedule of beta": (pairs.registered, pairs.real(), {"beta": objectives.linear(0.1, 1.0, fraction=0.7)}),
    "clipping": (pairs.registered, pairs.real(), {"clip_norm": 0.5}),
    "validation": (pairs.registered, pairs.real(), {"validation": pairs.real(seed=1), "patience": 2}),
}


def run(make, x, folder, start_seed=0, epochs=4, **arguments):
    """A run of three steps an epoch: 7 does not divide 20."""
    torch.manual_seed(start_seed)
    for name in ("optimizer", "objective"):
        if name in arguments and not isinstance(arguments[name], functools.partial):
            arguments[name] = arguments[name]()
    given = {"optimizer": adam, "checkpoint_every": 0.0, "seed": 11, **arguments}
    return ppvae.fit(*make(), x, epochs=epochs, batch_size=7, out=folder, **given)


class Interrupted(Exception):
    pass


def interrupted(make, x, folder, at, monkeypatch, **arguments):
    """The run, broken off where the step counted ``at`` would begin."""
    step = ppvae.SVI.take

    def breaks(self, *args, **kwargs):
        if self.steps_taken == at:
            raise Interrupted
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ppvae.SVI, "take", breaks)
        run(make, x, folder, **arguments)


def plain(value):
    """A nested state with tensors as bytes, so that it is compared bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def untimed(rows):
    return [json.dumps({key: value for key, value in row.items() if key != "steps_per_second"}) for row in rows]


def unsealed(folder):
    """A run as older versions wrote it: its template does not know the SHA-256 of the records beside it."""
    parts, state = checkpoint.load(folder, "template")
    state.pop("sha256", None)
    checkpoint.save(folder, "template", parts, state)


def left_in(folder):
    """All that a run leaves: tensors, optimizer, position, history without timings."""
    name, tensors, state, damaged = checkpoint.newest(folder / "checkpoints")
    history = untimed(json.loads(state.pop("history")))
    state.pop("with_gradient")  # a gradient of zeros or none: seen in what follows, if it matters
    return name, plain(tensors), plain(state), history, damaged


@functools.cache
def undisturbed(case):
    """What a run leaves, and how it ends, that nobody disturbs and that saves once, at its end: made once for all tests of a case."""
    make, x, arguments = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        whole = run(make, x, folder, checkpoint_every=60.0, **arguments)
        return left_in(Path(folder)), untimed(whole.history), (whole.best_epoch, whole.stopped)


def assert_resumed_is_undisturbed(case, at, folder, monkeypatch):
    make, x, arguments = CASES[case]
    interrupted(make, x, folder, at, monkeypatch, **arguments)
    resumed = run(make, x, folder, start_seed=99, resume=True, **arguments)
    assert (left_in(folder), untimed(resumed.history), (resumed.best_epoch, resumed.stopped)) == undisturbed(case)


# Of what others of them hold too, together or apart.
REPEATED = {
    "scheduler of a function",
    "pyro.param, pyro.optim",
    "born late, pyro.optim",
    "born late, SGD",
    "used now and then, pyro.optim",
    "bound methods",
    "closed over",
    "in a list",
    "two called net",
    "tuple",
    "particles in a plate",
    "enumeration in the model",
    "clipping",
    "schedule of beta",
    "SGD with momentum",
    "PyroModule",
    "born late",
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.soak] * (case in REPEATED)) for case in CASES])
def test_run_interrupted_within_an_epoch_goes_on_as_if_undisturbed(case, tmp_path, monkeypatch):
    assert_resumed_is_undisturbed(case, 5, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "case",
    ["pyro.module", "pyro.optim", "pyro.optim scheduler", "torch scheduler", "born late", "validation", "used now and then, pyro.optim"],
)
@pytest.mark.parametrize("at", [3, *(pytest.param(at, marks=pytest.mark.soak) for at in (0, 1, 11))], ids=lambda at: f"step {at}")
def test_run_interrupted_at_any_step_goes_on_as_if_undisturbed(at, case, tmp_path, monkeypatch):
    assert_resumed_is_undisturbed(case, at, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", ["pyro.module", "pyro.optim", "validation"])
def test_run_interrupted_by_the_keyboard_in_a_callback_goes_on_as_if_undisturbed(case, tmp_path):
    def callback(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    make, x, arguments = CASES[case]
    with pytest.raises(KeyboardInterrupt):
        run(make, x, tmp_path, callback=callback, **arguments)
    run(make, x, tmp_path, resume=True, **arguments)
    assert left_in(tmp_path) == undisturbed(case)[0]


def noisy():
    """A pair whose model draws from Python's and NumPy's generators besides: noise on the data that no site holds."""
    model, guide = pairs.registered()

    def disturbed(x):
        return model(x + 0.1 * random.gauss(0.0, 1.0) + 0.1 * np.random.standard_normal())

    return disturbed, guide


def test_what_programs_draw_from_other_generators_goes_on_as_if_undisturbed(tmp_path, monkeypatch):
    whole = run(noisy, pairs.real(), tmp_path / "whole", compile=False)
    random.seed(1), np.random.seed(1)
    interrupted(noisy, pairs.real(), tmp_path / "broken", 5, monkeypatch, compile=False)
    random.seed(2), np.random.seed(2)
    resumed = run(noisy, pairs.real(), tmp_path / "broken", resume=True, compile=False)
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "whole")
    assert untimed(resumed.history) == untimed(whole.history)


def test_what_a_callback_draws_goes_on_as_if_undisturbed(tmp_path, monkeypatch):
    drawn = {"whole": [], "broken": []}

    def noting(name):
        return lambda row: drawn[name].append([random.random(), np.random.rand(), torch.rand(1).item()])

    run(pairs.registered, pairs.real(), tmp_path / "whole", callback=noting("whole"))
    interrupted(pairs.registered, pairs.real(), tmp_path / "broken", 6, monkeypatch, callback=noting("broken"))
    run(pairs.registered, pairs.real(), tmp_path / "broken", resume=True, callback=noting("broken"))
    assert drawn["broken"][-3:] == drawn["whole"][-3:]  # killed after the second callback, before the checkpoint that would know of it
    assert len(drawn["whole"]) == 4


def test_the_caller_s_generators_are_as_they_were():
    random.seed(3), np.random.seed(3)
    expected = random.getstate(), np.random.get_state()[1].tolist()
    run(noisy, pairs.real(), None, compile=False)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected


def test_run_interrupted_three_times_goes_on_as_if_undisturbed(tmp_path, monkeypatch):
    make, x, _ = CASES["pyro.module"]
    for at in (2, 5, 9):
        interrupted(make, x, tmp_path, at, monkeypatch, resume=True)
    run(make, x, tmp_path, resume=True)
    assert left_in(tmp_path) == undisturbed("pyro.module")[0]


@pytest.mark.parametrize("case", ["pyro.module", "pyro.optim", "pyro.optim scheduler", "torch scheduler", "born late, pyro.optim"])
def test_finished_run_with_more_epochs_is_the_longer_run(case, tmp_path):
    # Resumed twice: going on with nothing to do must lose nothing.
    make, x, arguments = CASES[case]
    for epochs in (2, 2, 4):
        run(make, x, tmp_path, epochs=epochs, resume=True, checkpoint_every=60.0, **arguments)
    assert left_in(tmp_path) == undisturbed(case)[0]


def test_run_without_patience_left_is_not_continued(tmp_path):
    make, x, arguments = CASES["pyro.module"]
    arguments = {**arguments, "validation": pairs.real(seed=1), "patience": 1, "optimizer": functools.partial(torch.optim.SGD, lr=0.0)}
    first = run(make, x, tmp_path / "run", epochs=9, **arguments)
    again = run(make, x, tmp_path / "run", epochs=9, resume=True, **arguments)
    assert (first.stopped, len(first.history)) == ("patience", 2)
    assert (again.stopped, untimed(again.history)) == (first.stopped, untimed(first.history))


def test_more_patience_continues_a_run(tmp_path):
    make, x, _ = CASES["pyro.module"]
    arguments = {"validation": pairs.real(seed=1), "optimizer": functools.partial(torch.optim.SGD, lr=0.0)}
    run(make, x, tmp_path / "run", epochs=9, patience=1, **arguments)
    assert len(run(make, x, tmp_path / "run", epochs=9, patience=3, resume=True, **arguments).history) == 4


def test_resuming_in_an_empty_folder_starts(tmp_path):
    make, x, _ = CASES["pyro.module"]
    run(make, x, tmp_path / "second", resume=True)
    assert left_in(tmp_path / "second") == undisturbed("pyro.module")[0]


@pytest.mark.parametrize("what", ["safetensors", "json"])
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(what, tmp_path, monkeypatch):
    make, x, _ = CASES["pyro.module"]
    interrupted(make, x, tmp_path, 5, monkeypatch)
    path = tmp_path / "checkpoints" / f"step-00000005.{what}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UnreliableWarning, match="step-00000005.* going on from step-00000004"):
        run(make, x, tmp_path, resume=True)
    assert left_in(tmp_path) == undisturbed("pyro.module")[0]


def test_damaged_newest_checkpoint_is_put_aside(tmp_path, monkeypatch):
    make, x, _ = CASES["pyro.module"]
    interrupted(make, x, tmp_path / "run", 5, monkeypatch)
    (tmp_path / "run" / "checkpoints" / "step-00000005.json").write_text("{")
    with pytest.warns(UnreliableWarning, match="going on from step-00000004"):
        interrupted(make, x, tmp_path / "run", 5, monkeypatch, resume=True, checkpoint_every=60.0)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[3] == []  # said once, and not for ever


def test_folder_that_holds_a_run_is_refused(tmp_path):
    make, x, _ = CASES["pyro.module"]
    run(make, x, tmp_path / "run", epochs=1)
    with pytest.raises(RunError) as raised:
        run(make, x, tmp_path / "run", epochs=1)
    assert str(raised.value) == (
        f"{tmp_path / 'run'} already holds a run\n  mend:  resume=True goes on from its newest checkpoint\n     or: choose another folder"
    )


def test_other_arguments_are_refused(tmp_path):
    make, x, _ = CASES["pyro.module"]
    run(make, x, tmp_path / "run", epochs=1)
    with pytest.raises(RunError) as raised:
        run(make, x, tmp_path / "run", epochs=1, resume=True, clip_norm=2.0, seed=12)
    assert str(raised.value) == (
        f"the run in {tmp_path / 'run'} was started with other arguments, and going on would be a third run\n"
        "  where: clip_norm: the run has None, here 2.0; seed: the run has 11, here 12\n"
        "  mend:  resume with the arguments of the start (epochs may grow), or train into another folder"
    )


def test_a_run_of_before_an_argument_goes_on_with_what_that_then_was(tmp_path):
    make, x, _ = CASES["pyro.module"]
    whole = run(make, x, tmp_path / "whole", epochs=2)
    run(make, x, tmp_path / "run", epochs=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.pop("precision") == "float32"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    unsealed(tmp_path / "run")
    with pytest.raises(RunError, match="precision: the run has 'float32', here 'bfloat16'"):
        run(make, x, tmp_path / "run", epochs=2, resume=True, precision="bfloat16", compile=True)
    found = run(make, x, tmp_path / "run", epochs=2, resume=True)
    assert [row["train_elbo"] for row in found.history] == [row["train_elbo"] for row in whole.history]


OTHER = {
    "data": {"x": pairs.real(seed=1)},
    "optimizer": {"optimizer": functools.partial(torch.optim.Adam, lr=0.02)},
    "pyro.optim": {"optimizer": pyro_adam},
    "objective": {"objective": lambda: Trace_ELBO(num_particles=2)},
    "scheduler": {"scheduler": exponential},
    "beta": {"beta": objectives.linear(steps=2)},
    "likelihood_weight": {"likelihood_weight": 1.5},
    "validation": {"validation": pairs.real(seed=1)},
}


@pytest.mark.parametrize("name", OTHER)
def test_every_argument_that_rules_the_numbers_is_compared(name, tmp_path):
    make, x, _ = CASES["pyro.module"]
    run(make, x, tmp_path / "run", epochs=1)
    arguments = {"x": x, **OTHER[name]}
    with pytest.raises(RunError, match=f"where: {'optimizer' if name == 'pyro.optim' else name}(.sha256)?: the run has"):
        run(make, arguments.pop("x"), tmp_path / "run", epochs=1, resume=True, **arguments)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"optimizer": pyro_exponential}, {"optimizer": lambda: optim.ExponentialLR(scheduled(0.9))}),
        ({"scheduler": exponential}, {"scheduler": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)}),
    ],
    ids=["pyro.optim", "torch"],
)
def test_scheduler_s_numbers_are_compared(first, second, tmp_path):
    make, x, _ = CASES["pyro.module"]
    run(make, x, tmp_path / "run", epochs=1, **first)
    with pytest.raises(RunError, match="started with other arguments"):
        run(make, x, tmp_path / "run", epochs=1, resume=True, **second)


def scheduled(gamma):
    return {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": gamma}


def test_other_programs_are_refused(tmp_path):
    run(pairs.registered, pairs.real(), tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match=r"these programs are not those of the run in .*\n  where: .*encoder.*weight: the run has"):
        run(pairs.pyro_linear, pairs.real(), tmp_path / "run", epochs=1, resume=True)


def test_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(LockedError) as raised:
        run(pairs.registered, pairs.real(), tmp_path / "run")
    assert str(raised.value) == (
        f"{tmp_path / 'run'} is held by process {os.getpid()} on {socket.gethostname()}\n  mend:  wait for it, or train into another folder"
    )
    assert raised.value.exit_code == 75


HOLDER = """
import pathlib, sys
from ppvae.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_folder_held_by_another_process_names_it_until_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"is held by process {holder.pid} on "), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock-holder").read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_failure_inside_is_not_taken_for_one_of_the_folder(tmp_path):
    def callback(row):
        raise PermissionError(13, "Permission denied", "elsewhere")

    with pytest.raises(PermissionError, match="elsewhere"):
        run(pairs.registered, pairs.real(), tmp_path / "run", callback=callback)


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError) as raised:
        run(pairs.registered, pairs.real(), tmp_path / "run")
    assert str(raised.value) == f"{tmp_path / 'run'} cannot be written: Not a directory\n  mend:  choose another folder"


def test_lock_is_released_after_a_run(tmp_path):
    run(pairs.registered, pairs.real(), tmp_path / "run", epochs=1)
    with locked(tmp_path / "run"):
        assert len(ppvae.load(tmp_path / "run", *pairs.registered()).history) == 1  # and reading needs no lock
