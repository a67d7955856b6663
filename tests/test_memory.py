"""Memory that runs out makes the work at once smaller and changes no number; memory in use grows neither with K nor with steps."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import pairs
import ppvae
from ppvae import noise
from ppvae.errors import DataError, UnreliableWarning
from ppvae.memory import Halving, OutOfMemoryError, is_out_of_memory

ERRORS = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    ),
    "Python": MemoryError,
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("most_blocks", [1, 2, 3])
def test_rows_are_halved_until_they_fit_and_no_number_changes(most_blocks, error):
    """500 data are eight blocks of 64; the weights are those of one call, draw for draw."""
    model, guide = pairs.ours()
    x = pairs.binary(500)
    expected = ppvae.log_weights(model, guide, x, num_particles=3, seed=7)
    sizes = []

    def small(x):
        if len(x) > most_blocks * noise.BLOCK_ROWS:
            raise error()
        sizes.append(len(x))
        return model(x)

    with pytest.warns(UnreliableWarning) as told:
        found = ppvae.log_weights(small, guide, x, num_particles=3, seed=7, blocks_at_once=8)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes
    left = {1: 1, 2: 2, 3: 2}[most_blocks]
    assert [str(one.message) for one in told] == [
        "measuring with 3 particles: memory ran out with 8 blocks of 64 data at once; "
        f"it goes on with {left}, or fewer where need be, from the same draws"
    ]
    assert max(sizes) == left * noise.BLOCK_ROWS


@pytest.mark.parametrize("what", ["refinement", "annealing"])
def test_refinement_and_annealing_are_halved_too(what):
    """150 data are three blocks: two at once do not fit, and the numbers are those of three."""
    model, guide = pairs.ours()
    x = pairs.binary(150)
    sizes = []

    def small(x):
        if len(x) > noise.BLOCK_ROWS:
            raise ERRORS["CPU"]()
        sizes.append(len(x))
        return model(x)

    def measured(model):
        if what == "annealing":
            return ppvae.analysis.annealed_log_likelihood(model, x, guide=guide, num_temperatures=6, num_chains=4, seed=1).pointwise
        return ppvae.analysis.refine(model, guide, x, family="full_rank", steps=6, num_particles=8, seed=1).elbo

    expected = measured(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = measured(small)
    assert any(str(one.message).startswith(what) and "it goes on with 1" in str(one.message) for one in told)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes
    assert max(sizes) == noise.BLOCK_ROWS


def test_what_was_learnt_about_memory_holds_for_the_stretches_to_come():
    calls = []

    def work(rows):
        calls.append(rows.stop - rows.start)
        if calls[-1] > 128:
            raise MemoryError
        return calls[-1]

    halving = Halving(8, "work")
    with pytest.warns(UnreliableWarning, match="work: memory ran out with 8 blocks of 64 data at once; it goes on with 2"):
        assert halving(slice(0, 512), work) == [128] * 4
    assert halving(slice(512, 700), work) == [128, 60]
    assert calls == [512, 256, 128, 128, 128, 128, 128, 60]


def test_memory_for_less_than_a_block_ends_in_an_error_that_says_so():
    model, guide = pairs.ours()

    def small(x):
        if len(x) > 60:
            raise ERRORS["CPU"]()
        return model(x)

    with pytest.raises(OutOfMemoryError) as raised:
        ppvae.log_weights(small, guide, pairs.binary(500), num_particles=3)
    assert raised.value.problem == "one block of 64 data does not fit into memory"
    assert raised.value.where.startswith(
        "measuring with 3 particles: [enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate"
    )
    assert "\n" not in raised.value.where


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), DataError("x"), KeyboardInterrupt()], ids=repr
)
def test_only_want_of_memory_is_caught(error):
    calls = []

    def work(rows):
        calls.append(rows)
        raise error

    with pytest.raises(type(error)):
        Halving(8, "work")(slice(0, 512), work)
    assert len(calls) == 1 and not is_out_of_memory(error)


def test_the_allocators_own_errors_are_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_tensors_of_the_failed_try_are_gone_before_the_next():
    class Held:
        alive = 0

        def __init__(self):
            Held.alive += 1

        def __del__(self):
            Held.alive -= 1

    def work(rows):
        held = Held()  # a frame of the error's traceback holds it
        if rows.stop - rows.start > 64:
            raise MemoryError
        return Held.alive - (held is None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)
        assert Halving(4, "work")(slice(0, 256), work) == [1, 1, 1, 1]


# Real memory.

REAL = """
import resource, sys, warnings
import torch, ppvae, pairs
from ppvae import memory

torch.set_num_threads(1)
model, guide = pairs.ours(data_dim=4096, hidden=8)
x = pairs.binary(64 * 64, 4096).float()
model.float(), guide.float()
ppvae.log_weights(model, guide, x[:64], num_particles=2)
def used():
    return int(open("/proc/self/statm").read().split()[0]) * 4096
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    free = ppvae.log_weights(model, guide, x, num_particles=8, blocks_at_once=1)
    resource.setrlimit(resource.RLIMIT_AS, (used() + (400 << 20), resource.RLIM_INFINITY))
    tight = ppvae.log_weights(model, guide, x, num_particles=8, blocks_at_once=64)  # 64 blocks: some 540 MB for each tensor of logits
print([str(one.message) for one in told])
print((free - tight).abs().max().item())
"""


@pytest.mark.soak
def test_a_process_with_little_address_space_measures_the_same():
    done = python(REAL)
    told, difference = done.splitlines()
    assert told.count("memory ran out with 64 blocks of 64 data at once") == 1 and float(difference) < 1e-3


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=2900)
    assert done.returncode == 0, done.stderr
    return done.stdout


PEAKS = """
import re, sys
from pathlib import Path
import torch, pairs, ppvae
from ppvae import analysis

torch.set_num_threads(1)
eagerly = ppvae.compiling(False)  # the compiler alone takes 130 MiB, once
eagerly.__enter__()
model, guide = pairs.exact()
x = torch.randn(64, 3, dtype=torch.float64)
model.double()

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

analysis.log_likelihood(model, guide, x, num_particles=500)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
base = memory("VmRSS")
for particles in map(int, sys.argv[1:]):
    found = analysis.log_likelihood(model, guide, x, num_particles=particles)
    assert (found.pointwise - model.log_evidence(x)).abs().max() < 1e-9
    print(base, memory("VmHWM"))
"""


def peaks(*particles):
    """MiB resident before, and the highest until each of the numbers of particles was done."""
    return [tuple(map(float, line.split())) for line in python(PEAKS, *particles).splitlines()]


@pytest.mark.soak
def test_memory_does_not_grow_with_particles():
    """All weights of the second would take 15 MiB, its log densities by site three times that."""
    (_, few), (_, many) = peaks(2_000, 30_000)
    assert many - few < 6.0  # MiB: what the allocator rounds up


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_with_a_million_particles():
    """All weights of the second would take 490 MiB."""
    (_, few), (_, many) = peaks(10_000, 1_000_000)
    assert many - few < 32.0  # the largest weights, which k-hat needs, are 3,000 a datum: 1.5 MiB, and a few copies while they are merged


STEPS = """
import functools, gc, re, sys
from pathlib import Path
import pyro, torch, pairs, ppvae

torch.set_num_threads(1)
rows = []

def callback(row):
    gc.collect()
    store = pyro.get_param_store()
    rows.append((row["step"], int(Path("/proc/self/statm").read_text().split()[1]) * 4, len(list(store))))

model, guide = getattr(pairs, sys.argv[1])()
ppvae.fit(model, guide, pairs.real(1000).to(torch.get_default_dtype()), epochs=int(sys.argv[2]), batch_size=10, callback=callback, compile=False)
late = [row for row in rows if row[0] > rows[-1][0] / 3]
print((late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0]), len({row[2] for row in rows}))
"""


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("pair", ["table", "registered"])
def test_10_000_steps_leak_nothing(pair):
    """Resident kB a step over the last two thirds, and how many sizes the parameter store has had."""
    slope, sizes = python(STEPS, pair, 100).split()
    assert float(slope) < 1.0 and sizes == "1"
