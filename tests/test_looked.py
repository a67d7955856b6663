"""Every datum is held against the likelihood once: a resumed run on the same data and programs does not look again."""

from __future__ import annotations

import functools
import sys
import warnings

import pytest
import torch
from pyro.infer import TraceEnum_ELBO

import pairs
import ppvae
from ppvae.batches import num_data
from ppvae.data import Data
from ppvae.errors import DataError, RelaxedMeasureWarning, RunError
from ppvae.looked import digest_of
from ppvae.run import versions
from ppvae.stream import stream

adam = functools.partial(torch.optim.Adam, lr=0.01)
FILE = {"file": "mine.py", "name": "pair", "sha256": "0" * 64}


@pytest.fixture
def looked(monkeypatch):
    """How many rows each pass over the data has looked at."""
    found = []

    def counted(pair, x, **arguments):
        found.append(num_data(x))
        return stream(pair, x, **arguments)

    monkeypatch.setattr(sys.modules[ppvae.fit.__module__], "stream", counted)
    return found


def fit(make=pairs.ours, x=None, **arguments):
    torch.manual_seed(0)
    return ppvae.fit(*make(), pairs.binary() if x is None else x, **{"epochs": 1, "batch_size": 7, "optimizer": adam, **arguments})


def test_a_resumed_run_does_not_look_again_and_is_the_undisturbed_one(tmp_path, looked):
    fit(out=tmp_path, validation=pairs.binary(8, seed=1))
    resumed = fit(out=tmp_path, validation=pairs.binary(8, seed=1), resume=True, epochs=2)
    assert looked == [20, 8]
    whole = fit(validation=pairs.binary(8, seed=1), epochs=2)
    assert [row["train_elbo"] for row in resumed.history] == [row["train_elbo"] for row in whole.history]


def test_a_file_s_programs_are_known_by_its_hash(tmp_path, looked):
    fit(pairs.registered, pairs.real(), out=tmp_path, source=FILE)
    fit(pairs.registered, pairs.real(), out=tmp_path, source=FILE, resume=True)
    assert looked == [20]
    fit(pairs.registered, pairs.real(), out=tmp_path, source={**FILE, "sha256": "1" * 64}, resume=True)
    assert looked == [20, 20]


def test_programs_built_in_python_may_be_others(tmp_path, looked):
    for resume in (False, True):
        fit(pairs.registered, pairs.real(), out=tmp_path, resume=resume)
    assert looked == [20, 20]


def test_other_versions_look_again(tmp_path, looked, monkeypatch):
    fit(out=tmp_path)
    monkeypatch.setattr("ppvae.looked.versions", lambda: {"torch": "3.0", "threads": 1})
    fit(out=tmp_path, resume=True)
    assert looked == [20, 20]


def test_another_number_of_threads_does_not(tmp_path, looked, monkeypatch):
    fit(out=tmp_path)
    monkeypatch.setattr("ppvae.looked.versions", lambda: versions() | {"threads": 99})
    fit(out=tmp_path, resume=True)
    assert looked == [20]


def test_a_run_of_before_the_record_looks_again(tmp_path, looked, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(sys.modules[ppvae.fit.__module__], "record", lambda *_: {})
        fit(out=tmp_path)
    fit(out=tmp_path, resume=True)
    assert looked == [20, 20]


@pytest.mark.parametrize("name", ["data", "validation", "seed"])
def test_what_is_kept_belongs_to_all_that_a_pass_depends_on(name):
    """``fit`` refuses to go on with other ones before it comes to this."""
    config, programs = {"data": {"sha256": "a"}, "validation": None, "seed": 0}, {"how": "file"}
    assert digest_of(config, programs) == digest_of(dict(config), dict(programs))
    assert digest_of(config, programs) != digest_of(config | {name: "other"}, programs)


def test_a_damaged_record_is_refused(tmp_path, looked):
    fit(out=tmp_path)
    path = tmp_path / "environment.json"
    path.write_text(path.read_text().replace('"relaxed": false', '"relaxed": true'))
    with pytest.raises(RunError, match="is damaged: it does not have the SHA-256 that it was written with"):
        fit(out=tmp_path, resume=True)


def test_a_resumed_run_knows_that_its_data_are_no_bits(tmp_path, looked, capsys):
    said = []
    for resume in (False, True):
        with pytest.warns(RelaxedMeasureWarning):
            fit(pairs.bound, pairs.images() / 2, out=tmp_path, source=FILE, resume=resume)
        said.append([line for line in capsys.readouterr().err.splitlines() if "measure " in line])
    assert looked == [20]
    assert said[0] == said[1]
    assert said[0][0].endswith("measure relaxed (not a probability)")


def test_two_runs_on_one_data_set_look_each_for_itself(looked):
    data = Data.of(pairs.images().flatten(1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxedMeasureWarning)
        fit(pairs.bound, data)
    with pytest.raises(DataError, match="site 'x' is Bernoulli with support Boolean"):
        fit(functools.partial(pairs.ours, 9), data)
    assert looked == [20, 20]


def test_a_pair_that_is_trained_and_not_measured_is_looked_at_once(tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(sys.modules[ppvae.fit.__module__], "check_unmeasured", lambda *_: bool(passes.append(1)))
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    for resume in (False, True):
        fit(pairs.marginal_mixture, pairs.real(20, 1), objective=objective, out=tmp_path, source=FILE, resume=resume)
    assert passes == [1]


def test_values_are_scanned_once_for_a_data_set(monkeypatch):
    scanned = []
    module = sys.modules[Data.__module__]
    monkeypatch.setattr(module, "scan", lambda source, where, scan=module.scan: scanned.append(len(source)) or scan(source, where))
    data = Data.of(pairs.binary())
    fit(x=data[:16], validation=data.double()[16:])
    assert (scanned, len(data[torch.arange(3)][:2].double())) == ([20], 2)
