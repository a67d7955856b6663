"""Memory that runs out makes the work at once smaller and changes no number; memory in use grows neither with K nor with steps."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from test_resume import CASES, left_in, run, untimed

import pairs
import ppvae
from ground_truth import MeanField, linear_gaussian
from ppvae import annealing, guides, memory, noise, refinement
from ppvae.analysis.draws import drawn
from ppvae.analysis.latent_usage import _mutual_information
from ppvae.cli import main
from ppvae.commands import models
from ppvae.errors import DataError, UnreliableWarning
from ppvae.guides.annealed import Annealed
from ppvae.memory import Halving, NotInPieces, OutOfMemoryError, is_out_of_memory
from ppvae.nn import MLP
from ppvae.pair import Pair
from ppvae.starts import start_of
from ppvae.stream import stream

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
        "measuring with 3 particles: memory ran out with 500 data at once; "
        f"it goes on with {64 * left}, or fewer where need be, from the same draws"
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
    assert any(str(one.message).startswith(what) and "it goes on with 64" in str(one.message) for one in told)
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
    with pytest.warns(UnreliableWarning, match="work: memory ran out with 512 data at once; it goes on with 128"):
        assert halving(slice(0, 512), work) == [128] * 4
    assert halving(slice(512, 700), work) == [128, 60]
    assert calls == [512, 256, 128, 128, 128, 128, 128, 60]


class Crowded:
    """A program for which memory runs out above so many (datum, particle) pairs in one run, and the sizes of those that did fit."""

    def __init__(self, program, most=math.inf):
        self.program, self.most, self.sizes = program, most, []

    def __call__(self, x):
        found = poutine.trace(self.program).get_trace(x)
        size = found.nodes["z"]["value"][..., 0].numel()
        if size > self.most:
            raise ERRORS["CPU"]()
        self.sizes.append(size)
        return x


LOOKS = 12  # pairs that a look at the programs takes, before any measurement: 3 rows, 4 particles


@pytest.mark.parametrize(
    ("most", "left"), [(448, "64"), (64, "8"), (20, "2"), (LOOKS, "1")], ids=["a block", "eight rows", "two rows", "a row"]
)
def test_densities_of_less_than_a_block_come_from_the_blocks_draws(most, left):
    """100 data are two blocks, of 7 particles: 448 pairs."""
    model, guide = pairs.ours()
    x = pairs.binary(100)
    expected = ppvae.log_weights(model, guide, x, num_particles=7, seed=7)
    crowded = Crowded(model, most)
    with pytest.warns(UnreliableWarning) as told:
        found = ppvae.log_weights(crowded, guide, x, num_particles=7, seed=7, blocks_at_once=2)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes
    assert [str(one.message) for one in told] == [
        f"measuring with 7 particles: memory ran out with 100 data at once; it goes on with {left}, or fewer where need be, from the same draws"
    ]


class Narrow:
    """A program for which memory runs out above so many rows in one run, and the rows of those that did fit."""

    def __init__(self, program, most=math.inf):
        self.program, self.most, self.sizes = program, most, []

    def __call__(self, x):
        if len(x) > self.most:
            raise ERRORS["CPU"]()
        self.sizes.append(len(x))
        return self.program(x)


def weights(pair, x, num_particles, **kwargs):
    """As ``ppvae.log_weights``, of a pair that was looked at while there was memory."""
    return torch.cat([terms.log_weights for terms in stream(pair, x, num_particles=num_particles, seed=7, **kwargs)], 1)


@pytest.mark.parametrize(("most", "left"), [(32, "32"), (5, "4"), (1, "1")])
def test_draws_of_less_than_a_block_are_the_blocks(most, left):
    """100 data are two blocks, of 64 and 36; the guide's network is too much for them."""
    model, guide = pairs.ours()
    x = pairs.binary(100)
    narrow = Narrow(guide)
    pair = Pair(model, narrow, x, 7)
    expected = weights(pair, x, 7)
    narrow.most, narrow.sizes = most, []
    with pytest.warns(UnreliableWarning) as told:
        found = weights(pair, x, 7, blocks_at_once=2)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes
    assert [str(one.message) for one in told] == [
        f"measuring with 7 particles: memory ran out with 100 data at once; it goes on with {left}, or fewer where need be, from the same draws"
    ]
    assert max(narrow.sizes) == int(left)


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
def test_draws_and_densities_go_down_to_one_datum_and_particle(in_plate):
    model, guide = map(Crowded, pairs.ours())
    x = pairs.binary(5)
    pair = Pair(model, guide, x, 0)
    pair.in_plate = in_plate
    expected = weights(pair, x, 3)
    for program in (model, guide):
        program.most, program.sizes = 1, []
    with pytest.warns(UnreliableWarning, match="memory ran out with 5 data at once; it goes on with 1, its particles in 4 parts, or fewer"):
        found = weights(pair, x, 3)
    assert (found - expected).abs().max() < 1e-9  # rounding
    assert model.sizes == [1] * 15
    assert guide.sizes[-16:] == [1] * 16  # one more tells the way


def test_densities_are_cut_where_draws_fit_and_draws_where_densities_do():
    """A guide whose draws cannot be cut stays whole while the model is cut."""
    model, guide = map(Narrow, uncut_pair())
    x = pairs.binary(64)
    pair = Pair(model, guide, x, 0)
    pair.in_plate = False  # K times as many rows at once
    expected = weights(pair, x, 2)
    model.most, model.sizes, guide.sizes = 32, [], []
    with pytest.warns(UnreliableWarning, match="it goes on with 16, or fewer"):
        found = weights(pair, x, 2)
    assert (found - expected).abs().max() < 1e-9  # rounding
    assert model.sizes == [32] * 4 and set(guide.sizes) == {128}


def uncut_pair():
    """z ~ Gamma(1, 1), and a guide whose distribution Pyro expands to the particles, in an order of its own."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(torch.tensor(1.0), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] + torch.zeros(6), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            either = dist.Gamma(1.0 + x.sum(-1), 2.0)
            pyro.sample("z", dist.MaskedMixture(x[:, 0] > 0, either, either))

    return model, guide


def test_draws_that_cannot_be_cut_end_in_an_error_that_names_them():
    model, guide = uncut_pair()
    with pytest.raises(OutOfMemoryError) as raised:
        ppvae.log_weights(model, Narrow(guide, 60), pairs.binary(500), num_particles=3)
    assert raised.value.problem == (
        "the draws for 64 data do not fit into memory, and those of site 'z' (MaskedMixture) cannot be made in pieces"
    )
    assert raised.value.where.startswith("measuring with 3 particles: DefaultCPUAllocator: can't allocate memory")


def test_draws_that_follow_the_data_end_in_an_error_that_names_them():
    """A site that is not always there: pieces and block would not take the same random numbers."""
    model, guide = pairs.ours()

    def told(x):
        if len(x) > 3:
            with pyro.plate("more_data", len(x), dim=-1):
                pyro.sample("more", dist.Normal(x[:, 0], 1.0), infer={"is_auxiliary": True})
        guide(x)

    x = pairs.binary(64)
    pair = Pair(model, told, x, 0)
    pair.guide = Narrow(told, 5)
    with pytest.raises(OutOfMemoryError) as raised:
        weights(pair, x, 3)
    assert raised.value.problem == (
        "the draws for 64 data do not fit into memory, and those of site 'more' take other random numbers from piece to piece"
    )


def test_memory_for_less_than_one_draw_ends_in_an_error_that_says_so():
    model, guide = pairs.ours()
    narrow = Narrow(guide)
    x = pairs.binary(70)
    pair = Pair(model, narrow, x, 0)
    narrow.most = 0
    with pytest.raises(OutOfMemoryError) as raised:
        weights(pair, x, 3)
    assert raised.value.problem == "the draw of one datum and one particle does not fit into memory"


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("a draw"), KeyboardInterrupt()], ids=repr
)
def test_of_a_guides_errors_only_want_of_memory_is_caught(error):
    model, guide = pairs.ours()
    calls = []

    def broken(x):
        calls.append(len(x))
        if len(x) > 60:
            raise error
        return guide(x)

    with pytest.raises(type(error)):
        ppvae.log_weights(model, broken, pairs.binary(64), num_particles=3)
    assert calls.count(64) == 1


@pytest.mark.parametrize("row", [3, 70])
def test_a_piece_that_is_no_data_is_named_by_its_row(row):
    model, guide = pairs.ours()
    x = pairs.binary(100)
    x[row, 2] = 7.0
    with pytest.raises(DataError) as raised:
        ppvae.log_weights(Crowded(model, LOOKS), guide, x, num_particles=7, blocks_at_once=2)
    assert raised.value.where == f"row {row}, column 2: 7"


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
def test_densities_and_their_gradients_go_down_to_one_datum_and_particle(in_plate):
    """Of 5 data and 3 particles: 15 pairs are too many, and 8, ... and at last 2."""
    model, guide = map(Crowded, pairs.ours())
    x = pairs.binary(5)
    pair = Pair(model, guide, x, 0)
    pair.in_plate = in_plate
    z = torch.randn(3, 5, 2, requires_grad=True)

    def measured(rows):
        p, q = pair.score(x[rows], {"z": z}), pair.guide_score(x[rows], rows, {"z": z})
        return p["x"], p["z"], q["z"], *(torch.autograd.grad(term.sum(), z, retain_graph=True)[0] for term in (p["x"], q["z"]))

    expected = measured(slice(0, 5))
    for program in (model, guide):
        program.most, program.sizes = 1, []
    with pytest.warns(UnreliableWarning, match="memory ran out with 5 data at once; it goes on with 1, its particles in 4 parts, or fewer"):
        (found,) = Halving(1, "densities")(slice(0, 5), measured)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() < 1e-9  # rounding
    assert model.sizes.count(1) == len(model.sizes) == 2 * 15  # once for the densities, once more for their gradient
    assert guide.sizes.count(1) == len(guide.sizes) == 2 * 15


@pytest.mark.parametrize("what", ["full_rank", *(pytest.param(name, marks=pytest.mark.soak) for name in ("mixture", "annealing"))])
def test_refinement_and_annealing_go_on_below_a_block(what, monkeypatch):
    """4 data: refined with 8 draws each, or annealed in 4 chains, from the draws of one block."""
    monkeypatch.setitem(refinement.SCHEDULES, "full_rank", (4, 8))  # what a mixture starts from
    model, guide = pairs.ours()
    x = pairs.binary(4)

    def measured(model):
        if what == "annealing":
            return ppvae.analysis.annealed_log_likelihood(
                model, x, guide=guide, start="guide", num_temperatures=4, num_chains=4, seed=1
            ).pointwise
        return ppvae.analysis.refine(model, guide, x, family=what, steps=4, num_draws=8, num_particles=8, seed=1).elbo

    expected = measured(model)
    crowded = Crowded(model, LOOKS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = measured(crowded)
    assert any("memory ran out with 4 data at once" in str(one.message) for one in told)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes


@pytest.mark.parametrize("what", ["moments", "annealing from the guide", "annealing from the prior"])
def test_draws_for_refinement_and_annealing_go_on_below_a_block(what, monkeypatch):
    """40 data, of which a program runs on 12, as many as a look at it takes: 256 draws of a guide that is no Normal, and of the prior, come in pieces."""
    monkeypatch.setattr(annealing, "LEAST_PILOT_TEMPERATURES", 4)
    model, _ = pairs.ours()
    x = pairs.binary(40)
    guide = guides.Flow(MLP(6, [8], 7), 2, 3)
    settings = {"num_temperatures": 3, "num_chains": 4, "seed": 1}

    def measured(model, guide):
        if what == "annealing from the prior":
            return ppvae.analysis.annealed_log_likelihood(model, x, start="prior", **settings).pointwise
        if what == "annealing from the guide":
            return ppvae.analysis.annealed_log_likelihood(model, x, guide=guide, start="guide", **settings).pointwise
        pair = Pair(model, guide, x)
        return start_of(pair, x, "full_rank", 1).scale_tril

    expected = measured(model, guide)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = measured(Narrow(model, LOOKS) if "prior" in what else model, Narrow(guide, LOOKS))
    assert any("memory ran out with 40 data at once; it goes on with 10" in str(one.message) for one in told)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes


@pytest.mark.soak
def test_a_guide_that_walks_chains_has_its_densities_cut():
    """Its random numbers lie outside its sites, so that its draws cannot be; the densities on the way are what memory ran out for."""
    model, _, x = linear_gaussian(num_data=8)
    guide = Annealed(MeanField(model, 0.2), temperatures=3).prepared(model, x)
    narrow = Narrow(model)
    pair = Pair(narrow, guide, x, 0)
    guide.coordinates.pair.model = narrow
    expected = weights(pair, x, 4)
    narrow.most = 3
    with pytest.warns(UnreliableWarning, match="memory ran out with 8 data at once; it goes on with 1, its particles in 2 parts"):
        found = weights(pair, x, 4)
    assert (found - expected).abs().max() < 1e-9  # rounding: matrices of other sizes


def test_densities_inside_draws_are_cut_where_memory_ran_out_in_them():
    calls = []

    def work(rows):
        with memory.draws(4, 1) as draws, memory.densities(4, 1) as densities:
            calls.append((len(draws), len(densities)))
            if len(densities) < 4:
                raise MemoryError

    with pytest.warns(UnreliableWarning, match="work: memory ran out with 4 data at once; it goes on with 1, or fewer"):
        Halving(1, "work")(slice(0, 4), work)
    assert calls == [(1, 1), (1, 2), (1, 4)]


def test_densities_are_cut_where_the_draws_around_them_cannot_be():
    """As where memory runs out for a gradient on the way of a chain: it is no density's call in which it happens."""
    calls = []

    def work(rows):
        with memory.draws(4, 1) as draws:
            with memory.densities(4, 1) as densities:
                calls.append((len(draws), len(densities)))
            if len(draws) > 1:
                raise NotInPieces("those of a chain cannot be made in pieces")
            if len(densities) < 4:
                raise MemoryError

    with pytest.warns(UnreliableWarning, match="work: memory ran out with 4 data at once; it goes on with 1, or fewer"):
        Halving(1, "work")(slice(0, 4), work)
    assert calls == [(1, 1), (2, 1), (1, 1), (1, 2), (1, 4)]


def test_draws_for_calibration_and_for_corrected_samples_go_on_below_a_block():
    model, guide = pairs.ours()
    x = pairs.binary(8)
    pair = Pair(model, guide, x)
    (expected,) = drawn(pair, x, num_draws=4, seed=1, purpose="calibration")
    pair.guide = Narrow(guide, 3)
    with pytest.warns(UnreliableWarning, match=r"draws \(calibration\): memory ran out with 8 data at once; it goes on with 2, or fewer"):
        (found,) = drawn(pair, x, num_draws=4, seed=1, purpose="calibration")
    assert (found.values["z"] - expected.values["z"]).abs().max() < 1e-9  # rounding
    assert (found.log_q_sum - expected.log_q_sum).abs().max() < 1e-9


def test_mutual_informations_own_draws_are_cut_and_not_divided():
    """70 data draw from one seed: they stay one block of 70."""
    model, guide = pairs.ours()
    x = pairs.binary(70)
    pair = Pair(model, guide, x)
    expected = _mutual_information(pair, x, 70, 0)
    pair.guide = Narrow(guide, 69)
    with pytest.warns(UnreliableWarning, match="mutual information: memory ran out with 70 data at once; it goes on with 35, or fewer"):
        found = _mutual_information(pair, x, 70, 0)
    assert found == pytest.approx(expected, abs=1e-12)  # rounding
    assert max(pair.guide.sizes) == 35


def test_mutual_information_goes_on_below_a_block():
    """5 draws crossed with 5 data are 25 densities of the guide, of which 12 fit."""
    model, guide = pairs.ours()
    x = pairs.binary(5)
    expected = ppvae.analysis.latent_usage(model, guide, x, num_particles=2, num_mutual=5)
    with pytest.warns(UnreliableWarning, match="mutual information: memory ran out with 5 data at once; it goes on with 2"):
        found = ppvae.analysis.latent_usage(model, Crowded(guide, LOOKS), x, num_particles=2, num_mutual=5)
    assert abs(found.mutual_information - expected.mutual_information) < 1e-12  # rounding


@pytest.mark.parametrize("at", [0, 4])
def test_a_training_step_without_memory_leaves_what_was_reached_and_the_run_goes_on_from_there(at, tmp_path, monkeypatch):
    """Bit for bit as if undisturbed, once there is memory; running statistics of the step that failed do not count."""
    make, x, _ = CASES["BatchNorm"]
    whole = run(make, x, tmp_path / "whole", compile=False)
    taken = ppvae.SVI.take

    def fails(self, *args, **kwargs):
        if self.steps_taken < at:
            return taken(self, *args, **kwargs)
        self.objective.loss(self.model, self.guide, x[:7])
        raise ERRORS["CPU"]()

    with monkeypatch.context() as patch, pytest.raises(OutOfMemoryError) as raised:
        patch.setattr(ppvae.SVI, "take", fails)
        run(make, x, tmp_path / "broken", compile=False)
    assert raised.value.problem == "a training step on 7 data does not fit into memory"
    assert raised.value.where.startswith(f"step {at + 1}, epoch {1 + at // 3}: DefaultCPUAllocator: can't allocate memory")
    assert raised.value.mend[0] == "a smaller batch than 7 (--batch-size, batch_size=), in a new run"
    resumed = run(make, x, tmp_path / "broken", compile=False, resume=True)
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "whole")
    assert untimed(resumed.history) == untimed(whole.history)


def test_a_command_says_that_memory_ran_out(monkeypatch, capsys):
    def run(options):
        raise ERRORS["CPU"]()

    monkeypatch.setattr(models, "run", run)
    assert main(["models"]) == 70
    assert capsys.readouterr().err.splitlines()[-4:] == [
        "error: memory ran out",
        "  where: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        "  mend:  end other programs on this machine, or take one with more memory",
        "     or: a smaller network",
    ]


def test_memory_for_less_than_one_datum_and_particle_ends_in_an_error_that_says_so():
    model, guide = map(Crowded, pairs.ours())
    x = pairs.binary(500)
    pair = Pair(model, guide, x, 0)
    model.most = 0
    with pytest.raises(OutOfMemoryError) as raised:
        next(stream(pair, x, num_particles=3, seed=0))
    assert raised.value.problem == "the density of one datum and one particle does not fit into memory"
    assert raised.value.where == (  # without the line of C++ that said it
        "measuring with 3 particles: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    )


def test_memory_for_work_that_has_nothing_to_cut_ends_in_an_error_that_says_so():
    def work(rows):
        raise MemoryError

    with pytest.raises(OutOfMemoryError) as raised:
        Halving(8, "work")(slice(0, 512), work)
    assert raised.value.problem == "the work on 64 data does not fit into memory"


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
    assert told.count("memory ran out with 4096 data at once") == 1 and float(difference) < 1e-3


REAL_DRAWS = """
import resource, warnings
import torch, ppvae, pairs
from ppvae import guides
from ppvae.nn import MLP

torch.set_num_threads(1)
model, _ = pairs.ours(data_dim=2)
guide = guides.DiagonalNormal(MLP(2, [1_000_000], 4), latent_dim=2)  # a hidden layer of 4 MB a datum
x = pairs.binary(100, 2).float()
model.float(), guide.float()
ppvae.log_weights(model, guide, x[:3], num_particles=2)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    free = ppvae.log_weights(model, guide, x, num_particles=8)
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))  # 64 data take 256 MB for each of two tensors
    tight = ppvae.log_weights(model, guide, x, num_particles=8)
print([str(one.message) for one in told])
print((free - tight).abs().max().item())
"""


@pytest.mark.soak
def test_a_guide_for_which_a_block_is_too_much_draws_the_same():
    told, difference = python(REAL_DRAWS).splitlines()
    assert told.count("memory ran out with 100 data at once") == 1 and float(difference) < 1e-4


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
model, guide = pairs.ours(data_dim=int(sys.argv[1]))
x = pairs.binary(64, int(sys.argv[1])).float()

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

analysis.log_likelihood(model, guide, x, num_particles=500)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
base = memory("VmRSS")
for particles in map(int, sys.argv[2:]):
    found = analysis.log_likelihood(model, guide, x, num_particles=particles)
    assert found.k_hat.isfinite().all()  # a tail was fitted, whose grid of candidates is what takes most
    print(base, memory("VmHWM"))
"""


def peaks(data_dim, *particles):
    """MiB resident before, and the highest until each of the numbers of particles was done."""
    return [tuple(map(float, line.split())) for line in python(PEAKS, data_dim, *particles).splitlines()]


@pytest.mark.soak
def test_memory_does_not_grow_with_particles():
    """All weights of the second would take 15 MiB, its log densities by site three times that."""
    (_, few), (_, many) = peaks(16, 2_000, 30_000)
    assert many - few < 6.0  # MiB: what the allocator rounds up


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_with_a_million_particles():
    """Images of 784 pixels, of which a call's logits alone are 13 MiB. All weights of the second would take 490 MiB."""
    (base, few), (_, many) = peaks(784, 10_000, 1_000_000)
    assert many - base < 1.2 * (few - base)  # the largest weights, which k-hat needs, are 3,000 a datum: 1.5 MiB


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
