"""Several processes on one job: what two of them compute is what one computes, and what becomes of it when one is lost.

Each test starts real processes with gloo between them. They are forked from a server that has imported everything.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import test_resume
import test_rollback
import torch
from pyro import poutine
from torch import nn

import pairs
import ppvae
import raised
from ppvae import analysis, checkpoint, noise
from ppvae.cli import main
from ppvae.data import Data
from ppvae.engine import Engine
from ppvae.errors import DataError, DivergedError, PpvaeError, ProgramError, UnreliableWarning
from ppvae.objectives import Scales
from ppvae.ranks import ALONE, LostRankError, Ranks, shared, sharing, started
from ppvae.state import named_tensors
from ppvae.together import SharedSVI

ROUNDING = 1e-12  # of sums of some hundred terms of size 1 in float64, in another order
SINGLE = 1e-6  # the same in float32
adam = functools.partial(torch.optim.Adam, lr=0.01)
sgd = functools.partial(torch.optim.SGD, lr=1.0)

CONTEXT = multiprocessing.get_context("fork")


def _process(function, rank, size, port, arguments, connection):
    if size > 1:
        about = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in about.items()})
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(rank)  # what the caller leaves to chance differs
    try:
        outcome = function(*arguments)
    except Exception as error:
        outcome = error
    connection.send_bytes(pickle.dumps((outcome, time.monotonic())))


@pytest.fixture(scope="module", autouse=True)
def server(forks):
    """Where processes are forked from, for those who start them by ``in_processes``."""
    global SERVER
    SERVER = forks


def in_processes(function, *arguments, size=2):
    """What a function gives, or raises (whose text raised.txt has), in each of so many processes; None where one was killed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "asked").write_bytes(pickle.dumps((function, arguments, size)))
        assert SERVER.run("test_ranks:_start_processes", folder) == 0
        outcomes = pickle.loads(Path(folder, "outcomes").read_bytes())
    for outcome in outcomes:
        if isinstance(outcome, PpvaeError):
            raised.compare(outcome, "in several processes")
    return outcomes


def _start_processes(folder):
    function, arguments, size = pickle.loads(Path(folder, "asked").read_bytes())
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started_processes = []
    for rank in range(size):
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_process, args=(function, rank, size, port, arguments, there))
        process.start()
        there.close()
        started_processes.append((process, here))
    outcomes = []
    for process, connection in started_processes:
        try:
            outcomes.append(pickle.loads(connection.recv_bytes())[0])
        except EOFError:
            outcomes.append(None)
        process.join()
    Path(folder, "outcomes").write_bytes(pickle.dumps(outcomes))


def results(function, *arguments, size=2):
    """The same, where nothing may be raised."""
    outcomes = in_processes(function, *arguments, size=size)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


def tensors_of(run):
    """All tensors of a run, as copies."""
    with pyro.get_param_store().scope(run.model.store):
        return {name: t.detach().clone() for name, t in named_tensors(run.model, run.guide).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def apart(a, b):
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


# Pairs that draw nothing, so that the gradient does not depend on who draws.


def point_pair(dtype=torch.float64, normalised=False):
    """z is a point that the encoder chooses; every density is a function of x and the parameters alone."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(3, 2).to(dtype), nn.Linear(2, 3).to(dtype)
    if normalised:
        encoder = nn.Sequential(nn.BatchNorm1d(3).to(dtype), encoder)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(encoder(x)).to_event(1))

    return model, guide


def global_pair():
    """A mean that all data share, at a learnt point, and nothing else."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Delta(pyro.param("at", lambda: torch.ones(3))).to_event(1))

    return model, guide


def trained(make, x, arguments):
    run = ppvae.fit(*make(), x, **{"epochs": 3, "batch_size": 8, "optimizer": adam, **arguments})
    return run.history, tensors_of(run)


def column(history, name):
    return torch.tensor([row[name] for row in history])


# Who has which rows.


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 8], ids=str)
def test_shares_cover_the_batch_once_and_differ_by_one_at_most(total, size):
    shares = [list(range(total))[Ranks(rank, size).share(total)] for rank in range(size)]
    assert sum(shares, []) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_lone_process_speaks_to_nobody():
    with started() as ranks:
        assert (ranks.size, ranks.first, ranks.exchanged("a"), ranks.gathered([2.0]).tolist()) == (1, True, ["a"], [[2.0]])
        assert ranks.by_first(lambda: 3) == 3
    assert list(shared().each([1, 2], lambda i: 10 * i)) == [(1, 10), (2, 20)]


def speak():
    with started("cpu") as ranks:
        values = [torch.full((2, 3), float(ranks.rank + 1)), torch.full((), 10.0 * (ranks.rank + 1))]
        summed = ranks.summed(values)
        mixed = [torch.tensor([ranks.rank + 7]), torch.tensor(ranks.rank == 0), torch.full((2,), ranks.rank + 0.5, dtype=torch.float32)]
        ranks.take_from_first(mixed)
        column_first = torch.arange(6.0).reshape(2, 3).mT
        strides = [t.stride() for t in ranks.exchanged(column_first)]
        alike = ranks.by_first(lambda: ranks.rank)
        return [t.tolist() for t in summed], [t.tolist() for t in mixed], strides, alike, ranks.gathered([ranks.rank]).tolist()


def test_processes_sum_copy_and_exchange():
    both = [[[3.0] * 3] * 2, 30.0], [[7], True, [0.5, 0.5]], [(1, 3)] * 2, 0, [[0.0], [1.0]]
    assert results(speak) == [both, both]


# The step.


# Each number of rows and each type once; make soak holds the other pairs of the two.
@pytest.mark.parametrize(
    ("num_data", "dtype", "tolerance"),
    [
        pytest.param(8, torch.float64, ROUNDING, id="float64-even", marks=pytest.mark.soak),
        pytest.param(7, torch.float32, SINGLE, id="float32-uneven"),
        pytest.param(1, torch.float64, ROUNDING, id="float64-a process without rows"),
        pytest.param(8, torch.float32, SINGLE, id="float32-even", marks=pytest.mark.soak),
        pytest.param(7, torch.float64, ROUNDING, id="float64-uneven", marks=pytest.mark.soak),
        pytest.param(1, torch.float32, SINGLE, id="float32-a process without rows", marks=pytest.mark.soak),
    ],
)
def test_the_gradient_of_two_processes_is_that_of_one(num_data, dtype, tolerance):
    x = pairs.real(num_data).to(dtype)
    make = functools.partial(point_pair, dtype)
    step = {"epochs": 1, "optimizer": sgd}  # the parameters then move by the gradient itself
    (alone,) = results(trained, make, x, step, size=1)
    for history, found in results(trained, make, x, step):
        assert apart(found, alone[1]) < tolerance
        assert abs(history[0]["objective"] - alone[0][0]["objective"]) < tolerance


@pytest.mark.parametrize(
    ("size", "clip_norm"),
    [
        pytest.param(2, 0.3, id="2-clipped"),
        pytest.param(3, None, id="3-free", marks=pytest.mark.soak),
        pytest.param(2, None, id="2-free", marks=pytest.mark.soak),
        pytest.param(3, 0.3, id="3-clipped", marks=pytest.mark.soak),
    ],
)
def test_a_run_of_several_processes_is_that_of_one_where_nothing_is_drawn(size, clip_norm):
    x, held_out = pairs.real(20), pairs.real(9, seed=1)  # 8 + 8 + 4: three processes have 2 or 3 rows, then 1 or 2
    arguments = {"clip_norm": clip_norm, "validation": held_out, "beta": 0.5, "optimizer": functools.partial(torch.optim.SGD, lr=0.1)}
    with pytest.warns(UnreliableWarning, match="beta ends at 0.5"):
        alone = trained(point_pair, x, arguments)
    found = results(trained, point_pair, x, arguments, size=size)
    for history, tensors in found:
        assert apart(tensors, alone[1]) < ROUNDING
        for name in ("objective", "gradient_norm", "train_elbo", "validation_elbo"):
            assert (column(history, name) - column(alone[0], name)).abs().max() < 100 * ROUNDING  # sums over the epoch
        assert same(tensors, found[0][1]) and history == found[0][0]
    if clip_norm is not None:
        assert (column(alone[0], "gradient_norm") > clip_norm).all()  # or nothing was clipped


def trained_compiled(backend, x):
    if backend == "graph":
        ppvae.svi.Engine = functools.partial(Engine, backend=lambda graph, inputs: graph)
    return trained(point_pair, x, {"compile": True})


# What inductor makes of a graph is held in one process by test_fit_compiled; in two it compiles everything twice.
@pytest.mark.parametrize("backend", ["graph", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiled_steps_of_two_processes_are_the_eager_ones_of_one(backend):
    x = pairs.real(20)
    alone = trained(point_pair, x, {"compile": False})
    found = results(trained_compiled, backend, x)
    assert all(apart(tensors, alone[1]) < 1e-9 for _, tensors in found)  # Adam divides by small moments
    assert same(found[0][1], found[1][1])


def decaying(rank_that_does, x):
    """Train compiled, with machine code that goes wrong in one process from its tenth step on: what was warned of, and what came out."""
    calls = []

    def backend(graph, inputs):
        def run(*inputs):
            calls.append(None)
            loss, norm, *gradients = graph(*inputs)
            wrong = 1.5 if len(calls) >= 12 and int(os.environ["RANK"]) == rank_that_does else 1.0  # two looks on admission
            return [loss, norm, *(g * wrong for g in gradients)]

        return run

    ppvae.svi.Engine = functools.partial(Engine, backend=backend)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        history, tensors = trained(point_pair, x, {"compile": True, "epochs": 8})
    return [str(w.message) for w in said if w.category is UnreliableWarning], history, tensors


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.soak), 1], ids=str)
def test_machine_code_that_goes_wrong_in_one_process_sends_all_back(rank):
    x = pairs.real(16)  # 8 + 8: sixteen steps of one shape; each epoch's first is verified
    _, expected = trained(point_pair, x, {"compile": False, "epochs": 8})
    first, other = results(decaying, rank, x)
    (said,) = first[0]
    assert re.search(rf"compiled steps went wrong \(.*\(process {rank}\)\): back from step 10 to 8, where they were right", said)
    assert not other[0]  # the first process speaks for all
    assert apart(first[2], expected) < 1e-9  # Adam divides by small moments
    assert same(first[2], other[2])


@pytest.mark.parametrize("has_mean_in", [pytest.param("every process", marks=pytest.mark.soak), "a process without rows"])
def test_global_sites_count_once(has_mean_in):
    x = pairs.real(9 if has_mean_in == "a process without rows" else 8)  # a last batch of 1
    arguments = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}
    alone = trained(global_pair, x, arguments)
    assert all(apart(tensors, alone[1]) < ROUNDING for _, tensors in results(trained, global_pair, x, arguments))


def test_a_plate_that_scales_a_subsample_up_counts_the_share_alone():
    def model():
        with pyro.plate("data", 12, subsample_size=3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    scales = Scales()
    scales.share = 0.25  # of a batch of 12 rows these are 3
    with scales:
        assert poutine.trace(model).get_trace().nodes["z"]["scale"] == 1.0


def draws(x):
    drawn = []

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(pyro.param("w", lambda: torch.ones(())) * z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            drawn.append(pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)))

    ppvae.fit(model, guide, x, epochs=2, batch_size=len(x))
    return [z.detach() for z in drawn if len(z) == len(x) // 2]  # the others look at the pair, or measure it


def test_rows_of_two_processes_do_not_share_their_noise():
    first, second = results(draws, pairs.real(10, 2))
    assert len(first) == 2 and all((a != b).all() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.soak), 3], ids=str)  # three have shares of 3, 3 and 2 rows
def test_parameters_are_equal_bit_for_bit_on_all_processes(size):
    found = results(trained, pairs.ours, pairs.binary(20), {"validation": pairs.binary(9, seed=1)}, size=size)
    assert all(same(tensors, found[0][1]) and history == found[0][0] for history, tensors in found)


def test_running_statistics_are_those_of_the_first_process():
    x = pairs.real(8)
    found = results(trained, functools.partial(point_pair, normalised=True), x, {"epochs": 1})
    order = torch.randperm(8, generator=noise.generator(0, "order", 0))
    expected = 0.1 * x[order[:4]].mean(0)  # BatchNorm's momentum, from 0
    for _, tensors in found:
        (mean,) = (t for name, t in tensors.items() if name.endswith("running_mean"))
        assert (mean - expected).abs().max() < ROUNDING


def test_a_share_of_one_row_is_refused_before_batchnorm_meets_it():
    for error in in_processes(trained, functools.partial(point_pair, normalised=True), pairs.real(11), {}):
        assert isinstance(error, ProgramError)
        assert str(error) == (
            "BatchNorm in training mode needs at least 2 data a batch, and 11 data in batches of 8 leave a batch of 1 to one of 2 processes\n"
            "  mend:  batch_size=9\n"
            "     or: a normalisation without batches (LayerNorm), which also keeps data independent"
        )


# Folders.


def test_the_first_process_alone_writes(tmp_path):
    histories = results(writes, pairs.real(20), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ranks"] == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert rows == histories[0] == histories[1]


def writes(x, folder):
    with started("cpu") as ranks:
        if not ranks.first:
            checkpoint.write_atomically = refuse_to_write
        return trained(point_pair, x, {"out": folder})[0]


def refuse_to_write(path, content):
    raise AssertionError(f"{path} was written by another process than the first")


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(1, 2, id="1 to 2"), *(pytest.param(2, n, marks=pytest.mark.soak, id=f"2 to {n}") for n in (1, 2))]
)
def test_a_run_goes_on_with_another_number_of_processes(before, after, tmp_path):
    x = pairs.real(20)
    arguments = {"out": tmp_path / "run", "epochs": 2}
    results(trained, point_pair, x, arguments, size=before)
    told = results(heard, point_pair, x, arguments | {"epochs": 4, "resume": True}, size=after)
    found, (said, *others) = [one for one, _ in told], [text for _, text in told]
    line = f"processes {after}, where the run had {before}: what follows is equal in law, not in bits\n"
    assert said.count(line) == (before != after) and others == [""] * (after - 1)
    whole = trained(point_pair, x, {"epochs": 4})
    assert all(apart(tensors, whole[1]) < 1e-9 and len(history) == 4 for history, tensors in found)  # Adam divides by small moments


def heard(make, x, arguments):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return trained(make, x, arguments), said.getvalue()


def test_two_processes_resume_bit_for_bit(tmp_path):
    x = pairs.binary(20)
    whole = results(trained, pairs.ours, x, {"epochs": 4})
    results(trained, pairs.ours, x, {"epochs": 2, "out": tmp_path / "run"})
    halves = results(trained, pairs.ours, x, {"epochs": 4, "out": tmp_path / "run", "resume": True})
    assert all(same(half[1], whole[0][1]) for half in halves)


# What goes wrong.


def dying_pair(rank, how):
    model, guide = point_pair()
    count = 0

    def dies(x):
        nonlocal count
        count += torch.is_grad_enabled() and len(x) == 4  # a step's share of 8 rows
        if count > 5 and os.environ["RANK"] == str(rank):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("a bug of the user's")
        model(x)

    return dies, guide


@pytest.mark.parametrize(
    ("rank", "how"),
    [
        pytest.param(0, "kill", id="the first is killed"),
        pytest.param(1, "raise", id="the second raises"),
        pytest.param(1, "kill", id="the second is killed", marks=pytest.mark.soak),
        pytest.param(0, "raise", id="the first raises", marks=pytest.mark.soak),
    ],
)
def test_a_lost_process_ends_the_other(rank, how):
    begun = time.monotonic()
    outcomes = in_processes(trained, functools.partial(dying_pair, rank, how), pairs.real(20), {"epochs": 900})  # few enough to run eagerly
    assert time.monotonic() - begun < 30
    left = outcomes[1 - rank]
    assert isinstance(left, LostRankError)
    assert re.fullmatch(
        rf"process {1 - rank} of 2 has lost another process of this job, which ended or cannot be reached\n"
        r"  where: (Read error|Write error|Connection closed by peer) \[127\.0\.0\.1\]:\d+(: [A-Z][a-z ]+)?\n"
        r"  mend:  look for what the other process said last; a run goes on from its newest checkpoint with --resume \(resume=True\)",
        str(left),
    )
    assert outcomes[rank] is None if how == "kill" else isinstance(outcomes[rank], KeyError)


def descended(folder, rank=None, at=None):
    """The descent that goes back twice, in this job's processes; one of them is killed as it takes its step counted so, from 1."""
    take, taken = SharedSVI.take_share, []

    def dies(self, *args, **kwargs):
        taken.append(None)
        if len(taken) == at and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, *args, **kwargs)

    SharedSVI.take_share = dies
    return test_rollback.descend(6.0, out=folder, resume=True, checkpoint_every=0.0).rollbacks


# A half of the loss, 5 (8 (1 - r)^k)^2 / 2, passes 3.4e38 at r = 6 where 25^k > 2.1e36, first at k = 26, and at r = 3 where 4^k is, first at
# k = 61: of the steps as they are taken the 27th and the 89th.
@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1], ids=["the first", "the second"])
@pytest.mark.parametrize("at", [20, 27, 28, 29, 88, 89, 90, 100], ids=str)
def test_processes_of_which_one_is_killed_beside_a_rollback_go_on_as_if_undisturbed(at, rank, tmp_path):
    whole = results(descended, tmp_path / "whole")
    assert [[(one["step"], one["to"]) for one in found] for found in whole] == [[(26, 0), (61, 0)]] * 2
    outcomes = in_processes(descended, tmp_path / "run", rank, at)
    assert outcomes[rank] is None and isinstance(outcomes[1 - rank], LostRankError)
    assert checkpoint.names(tmp_path / "run" / "checkpoints")
    assert results(descended, tmp_path / "run") == whole
    assert test_resume.left_in(tmp_path / "run") == test_resume.left_in(tmp_path / "whole")
    (weight,) = checkpoint.newest(tmp_path / "run" / "checkpoints")[1].values()
    assert weight.item() == pytest.approx(9.0, abs=1e-6)  # one unit in the last place of 9


def own_pair():
    model, guide = point_pair()

    def owns(x):
        own = pyro.param("own", lambda: torch.ones(4)) if os.environ["RANK"] == "1" else torch.ones(4)
        with poutine.scale(scale=own.sum()):
            model(x)

    return owns, guide


def test_a_parameter_that_one_process_alone_has_is_an_error_in_both():
    for error in in_processes(trained, own_pair, pairs.real(20), {}):
        assert str(error) == (
            "the parameters of process 1 are not those of process 0\n"
            "  where: trained: ['param.decoder.weight', 'guide.encoder.weight', 'guide.encoder.bias', 'param.decoder.bias'] and "
            "['param.decoder.weight', 'guide.encoder.weight', 'guide.encoder.bias', 'param.decoder.bias', 'param.own']; "
            "param.own: None and ((4,), 'torch.float64')\n"
            "  mend:  start all processes by one command, with the same arguments, files and seeds"
        )


def born_pair():
    model, guide = point_pair()
    count = 0

    def born(x):
        nonlocal count
        count += torch.is_grad_enabled() and len(x) == 4
        scale = pyro.param("late", lambda: torch.ones(4)) if os.environ["RANK"] == "1" and count > 3 else torch.ones(4)
        with poutine.scale(scale=scale.sum()):
            model(x)

    return born, guide


def test_a_parameter_born_later_in_one_process_is_an_error_in_both():
    for error in in_processes(trained, born_pair, pairs.real(16), {"epochs": 10}):
        assert isinstance(error, ProgramError)
        assert re.fullmatch(
            r"the loss depends on 4, 5 parameters in the 2 processes of this job, with 17, 21 numbers in all\n"
            r"  where: step 3; the last ones in process [01]: \[(\(2, 3\), \(2,\), \(3,\)|\(2,\), \(3,\), \(4,\))\]\n"
            r"  mend:  have every parameter born in the first step, whatever the batch is: a process sees its share of the data alone",
            str(error),
        )


def with_own_epochs(x):
    return trained(point_pair, x, {"epochs": 3 + int(os.environ["RANK"])})


def test_other_arguments_are_an_error_in_both():
    for error in in_processes(with_own_epochs, pairs.real(20)):
        assert str(error) == (
            "the arguments of process 1 are not those of process 0\n"
            "  where: epochs: 3 and 4\n"
            "  mend:  start all processes by one command, with the same arguments, files and seeds"
        )


def diverging_pair():
    """The log density of a datum far out is no number, once training has begun."""
    _, guide = point_pair()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            rate = torch.where((x > 50).any(-1) & z.requires_grad, torch.inf, 1.0)
            pyro.sample("x", dist.Normal(rate[:, None] * z[..., :1].expand(x.shape), 0.5).to_event(1), obs=x)

    return model, guide


def test_all_processes_name_the_datum_that_one_of_them_diverged_at():
    x = pairs.real(20)
    x[13] = 60.0
    errors = in_processes(trained, diverging_pair, x, {"compile": False})
    assert all(isinstance(error, DivergedError) and "the gradient of datum 13 is not" in str(error) for error in errors)


def rolled_back():
    """Gradient descent on (w - 9)^2 / 2 at a rate of 6, as in test_rollback."""

    def model(x):
        weight = pyro.param("weight", torch.ones(1, dtype=torch.float32))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(weight, 1.0).to_event(1), obs=x)

    six = functools.partial(torch.optim.SGD, lr=6.0)
    x = torch.full((1000, 1), 9.0, dtype=torch.float32)
    found = ppvae.fit(model, lambda x: None, x, batch_size=10, optimizer=six, epochs=1, device="cpu")
    weight = found.model.store["params"]["weight"].item()
    return [(one["step"], one["to"]) for one in found.rollbacks], found.history[-1]["learning_rate"], weight


def test_all_processes_go_back_together():
    """The loss of five data is 5 (8 (1 - r)^k)^2 / 2: beyond float32 first at k = 26 for r = 6, and at k = 61 for r = 3."""
    for rollbacks, rate, weight in in_processes(rolled_back):
        assert (rollbacks, rate, weight) == ([(26, 0), (61, 0)], 1.5, pytest.approx(9.0, abs=1e-6))


# Measurement.


def measured(x, families, reference):
    torch.manual_seed(0)
    model, guide = pairs.ours()
    with started("cpu") as ranks, sharing(ranks):
        found = [
            analysis.elbo(model, guide, x, num_particles=70),
            analysis.log_likelihood(model, guide, x, num_particles=300),
            analysis.inference_gaps(model, guide, x, families=families, reference=reference, steps=20, num_particles=70),
        ]
        return [json.dumps(result.as_dict()) for result in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("families", "reference"),
    [
        pytest.param(("same", "flow"), "auto", id="tolerance", marks=pytest.mark.soak),
        pytest.param(("full_rank", "low_rank"), "annealed", id="annealed", marks=pytest.mark.soak),
    ],
)
def test_measurement_gives_the_same_bits_for_any_number_of_processes(families, reference):
    x = pairs.binary(150)
    found = [results(measured, x, families, reference, size=size) for size in (1, 2, 3)]
    assert all(one == found[0][0] for several in found for one in several)


def counted(x):
    calls = 0
    model, guide = pairs.ours()

    def counting(x):
        nonlocal calls
        calls += 1
        return model(x)

    with started("cpu") as ranks, sharing(ranks):
        analysis.elbo(counting, guide, x, num_particles=64 * 40)
    return calls


def test_measurement_is_shared_out():
    # 40 blocks of particles; a few calls more look at the pair
    (alone,) = results(counted, pairs.binary(64), size=1)
    both = results(counted, pairs.binary(64))
    assert all(alone - calls == 20 for calls in both)


def out_of_support(x):
    with started("cpu") as ranks, sharing(ranks):
        analysis.elbo(*pairs.ours(), x, num_particles=1)


def test_what_one_process_meets_is_raised_in_all():
    x = pairs.binary(9000)
    x[5000, 3] = 7.0  # in the second stretch of 4,096 rows: the second process's
    errors = in_processes(out_of_support, x)
    assert all(isinstance(error, DataError) and "row 5000, column 3: 7" in str(error) for error in errors)
    assert str(errors[0]) == str(errors[1])


def test_work_inside_work_is_not_shared_out():
    with sharing(Ranks(1, 2)):
        assert shared().size == 2
        with sharing(ALONE):
            assert [value for _, value in shared().each(range(3), lambda i: i * i)] == [0, 1, 4]


# The command.


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ppvae", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.soak
def test_the_command_trains_and_measures_in_two_processes(tmp_path):
    small = ["--epochs", "2", "--latent-dim", "2", "--hidden", "8"]
    out, err = torchrun("train", "--data", "digits", "--out", str(tmp_path / "run"), *small).communicate(timeout=200)
    assert out.count("run ") == 1 and "2 epochs, parameters of epoch 2, finished" in out, err
    assert "processes 2" in err and err.count("ppvae train: done") == 1
    out, err = torchrun("evaluate", str(tmp_path / "run"), "--num-particles", "100").communicate(timeout=200)
    assert out.count("ELBO = ") == 1 and out.count("log p(x) = ") == 1, err
    written = {path.name: path.read_text() for path in (tmp_path / "run" / "results").glob("*.json")}
    command = [sys.executable, "-m", "ppvae", "evaluate", str(tmp_path / "run"), "--num-particles", "100"]
    alone = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert alone.stdout == out and written == {path.name: path.read_text() for path in (tmp_path / "run" / "results").glob("*.json")}


@pytest.mark.slow
@pytest.mark.soak
def test_torchrun_ends_when_one_of_its_processes_is_killed(tmp_path):
    run = torchrun("train", "--data", "digits", "--epochs", "200", "--out", str(tmp_path / "run"))
    try:
        assert any(re.search("epoch +1/200", line) for line in iter(run.stderr.readline, ""))
        workers = [int(child) for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        begun = time.monotonic()
        os.kill(next(pid for pid in workers if rank_of(pid) == "1"), signal.SIGKILL)
        _, err = run.communicate(timeout=60)
    finally:
        run.terminate()
    assert run.returncode != 0 and time.monotonic() - begun < 30
    assert "Signal 9 (SIGKILL)" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def rank_of(pid):
    variables = dict(part.partition("=")[::2] for part in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return variables.get("RANK")


def train_anew(folder):
    torch.set_default_dtype(torch.float32)
    os.chdir(folder)
    return main(["train", "--new", "--epochs", "1", "--latent-dim", "2", "--hidden", "8"])


def test_processes_that_train_anew_share_a_folder(tmp_path):
    """Each of them would else make one of its own."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    assert results(train_anew, tmp_path) == [0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]
    assert json.loads((tmp_path / "runs" / "digits-2" / "config.json").read_text())["ranks"] == 2


def test_data_are_named_in_the_config_whatever_the_number_of_processes(tmp_path):
    results(trained, point_pair, Data.of(pairs.real(20), name="coins"), {"out": tmp_path / "run"})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["name"] == "coins"
