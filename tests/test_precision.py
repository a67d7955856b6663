"""Numbers measured in float64: another precision, the same data, the same answer to within the error that it carries."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from test_cli import SMALL
from test_resume import adam

import pairs
import ppvae
import ppvae.engine
import ppvae.svi
from ppvae import analysis, guides, models
from ppvae.analysis.report import facts
from ppvae.analysis.report.record import record_of
from ppvae.batches import tensors
from ppvae.cli import main
from ppvae.commands.precision import measured_in
from ppvae.data import Data
from ppvae.programs import trace

FEW = ["--num-data", "20", "--num-particles", "400", "--bounds", "--threads", "1"]
PROGRAM = """
import pyro, pyro.distributions as dist, torch

def pair(x):
    network = torch.nn.Linear(3, 4)

    def model(x):
        w = pyro.param("w", lambda: torch.ones(2, 3))
        scale = pyro.param("scale", lambda: torch.ones(3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = network(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide
"""


@pytest.fixture(autouse=True)
def single_precision(fresh):
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def run(tmp_path):
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL]) == 0
    return tmp_path / "run"


def results(folder, kind):
    return json.loads((folder / "results" / f"{kind}-test.json").read_text())


def test_log_p_in_float64_is_that_of_float32_within_its_error(run, capsys):
    assert main(["evaluate", str(run), *FEW]) == 0
    single = results(run, "log_likelihood")
    capsys.readouterr()
    assert main(["evaluate", str(run), *FEW, "--dtype", "float64"]) == 0
    said, double = capsys.readouterr().out.splitlines(), results(run, "log_likelihood")
    error = np.hypot(single["mean"]["mc_se"], double["mean"]["mc_se"])
    assert 0 < abs(single["mean"]["value"] - double["mean"]["value"]) < 5 * error
    assert len(said) == 3 and all(line.endswith("digits/test[:20]; float64)") for line in said)
    assert (double["source"]["data"]["dtype"], "dtype" in single["source"]["data"]) == ("float64", False)
    assert double["source"]["data"]["sha256"] == single["source"]["data"]["sha256"]  # so that the two can be compared
    assert torch.get_default_dtype() == torch.float32
    record = record_of(run)
    assert [line for line in facts.commands(record) if "evaluate" in line] == [
        f"ppvae evaluate {run} --split test --num-data 20 --dtype float64 --num-particles 400 --bounds"
    ]
    assert {measure for _, _, measure, _ in facts.provenance(record)} == {"counting, seed 0, float64"}


def test_gaps_in_float64_say_so(run, capsys):
    assert main(["gaps", str(run), "--num-data", "3", "--dtype", "float64", "--threads", "1"]) == 0
    assert capsys.readouterr().out.endswith("; float64)\n")
    assert results(run, "inference_gaps")["source"]["data"]["dtype"] == "float64"


def test_at_the_same_latents_a_weight_moves_by_rounding_alone(run):
    found, data = ppvae.load(run), ppvae.data.load("digits").test[:50]

    def log_weights(x, z):
        drawn = trace(found.guide, x, {"z": z})
        made = trace(found.model, x, {"z": z})
        log_p = sum(made.nodes[name]["fn"].log_prob(made.nodes[name]["value"]) for name in ("x", "z"))
        return log_p - drawn.nodes["z"]["fn"].log_prob(z)

    z = torch.randn(50, 2)
    with torch.no_grad():
        single = log_weights(data.x, z)
        with measured_in("float64", found, data) as wide:
            double = log_weights(wide.x, z.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert 0 < (single - double).abs().max() < 64 * 16 * torch.finfo(torch.float32).eps * double.abs().max()  # sums of 64 terms of layers


def test_parameters_and_constants_of_a_users_file_follow(tmp_path):
    """Those in Pyro's store belong to no module, and torch.zeros has the dtype that is the default while it runs."""
    (tmp_path / "p.py").write_text(PROGRAM)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 3)).astype("f"))
    given = ["--data", str(tmp_path / "x.npy"), "--program", f"{tmp_path / 'p.py'}:pair"]
    assert main(["train", *given, "--out", str(tmp_path / "run"), "--epochs", "1", "--threads", "1"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--num-particles", "50", "--dtype", "float64", "--threads", "1"]) == 0
    assert results(tmp_path / "run", "elbo")["source"]["data"]["dtype"] == "float64"


# Data.


def forms():
    grey = torch.randint(0, 256, (20, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    yield "real", Data.of(x)
    yield "drawn anew", Data.from_arrays(grey, binarize="dynamic", levels=255)
    yield "drawn once", Data.from_arrays(grey, binarize="static", levels=255)
    yield "grey", Data.from_arrays(grey, levels=255)
    yield "tuple", Data.of((x, grey))
    yield "masked", Data.from_arrays(x, missing=x > 1)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in forms()])
def test_data_seen_as_float64_are_the_same_data(data):
    """Value by value what float32 shows, so that the difference of two numbers is that of the arithmetic."""
    wide = data.double()[:7]
    for shown in (wide.x, wide.batch(slice(0, 7))):
        for a, b in zip(tensors(data[:7].x).values(), tensors(shown).values(), strict=True):
            assert b.dtype == (torch.float64 if a.is_floating_point() else a.dtype)
            assert torch.equal(a.double(), b.double())
    assert wide.describe() == data[:7].describe() | {"dtype": "float64"}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in forms() if name.startswith("drawn")])
def test_networks_in_float64_train_on_them(data, tmp_path):
    """In steps too, which read rows in a way of their own; and the folder records it: what goes on must be given it again."""
    torch.set_default_dtype(torch.float64)
    found = ppvae.fit(*pairs.ours(), data.double(), epochs=1, optimizer=adam, out=tmp_path / "run")
    assert found.config["data"]["dtype"] == "float64"
    assert analysis.elbo(found.model, found.guide, data.double(), num_particles=2).pointwise.isfinite().all()
    with pytest.raises(ppvae.errors.RunError, match="started with other arguments"):
        ppvae.fit(*(program.float() for program in pairs.ours()), data, epochs=2, optimizer=adam, out=tmp_path / "run", resume=True)


def test_a_run_that_was_trained_in_float64_is_measured_in_float64(tmp_path):
    """Its record tells, whatever the file holds."""
    digits = ppvae.data.load("digits")
    programs = models.Bernoulli(ppvae.nn.MLP(2, [8], 64), 2).double(), guides.DiagonalNormal(ppvae.nn.MLP(64, [8], 4), 2).double()
    ppvae.fit(*programs, digits.train.double(), epochs=1, out=tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), *FEW]) == 0
    assert results(tmp_path / "run", "elbo")["source"]["data"]["dtype"] == "float64"


# Training.


def trained(folder, *given):
    assert main(["train", "--out", str(folder), *SMALL, *given]) == 0
    return ppvae.load(folder, state="last")


def parameters(run):
    return {**run.model.state_dict(), **{f"guide.{name}": value for name, value in run.guide.state_dict().items()}}


@pytest.fixture
def same_noise(monkeypatch):
    """Noise of the same digits in both precisions: torch's own are other numbers."""
    drawn = torch.distributions.normal._standard_normal
    monkeypatch.setattr(
        torch.distributions.normal, "_standard_normal", lambda shape, dtype, device: drawn(shape, torch.float32, device).to(dtype)
    )


@pytest.mark.parametrize("compile", ["no", "yes"])
def test_training_in_float64_is_that_in_float32_to_its_rounding(compile, tmp_path, same_noise, monkeypatch):
    """First parameters, rows and noise are the same. A loss is a sum of 64 terms, each rounded by half an eps of it at most."""
    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(ppvae.engine.Engine, backend=lambda graph, inputs: graph))
    single, wide = trained(tmp_path / "single"), trained(tmp_path / "wide", "--dtype", "float64", "--compile", compile)
    assert {value.dtype for value in parameters(wide).values()} == {torch.float64}
    assert (single.config["engine"], wide.config["engine"]) == ("eager", {"no": "eager", "yes": "compiled"}[compile])
    one, other = single.history[0]["objective"], wide.history[0]["objective"]
    assert 0 < abs(one - other) < 64 * torch.finfo(torch.float32).eps / 2 * abs(other)
    assert torch.get_default_dtype() == torch.float32


def test_what_follows_a_training_in_float64_is_float64(tmp_path, capsys):
    folder = trained(tmp_path / "run", "--dtype", "float64").folder
    assert main(["evaluate", str(folder), "--num-data", "5", "--num-particles", "20", "--threads", "1"]) == 0
    assert results(folder, "log_likelihood")["source"]["data"]["dtype"] == "float64"
    assert main(["sample", str(folder), "--num-data", "2", "--mean"]) == main(["encode", str(folder), "--num-data", "5"]) == 0
    assert np.load(folder / "samples.npz")["x"].dtype == np.load(folder / "codes-test.npz")["mean"].dtype == np.float64
    again = facts.commands(record_of(folder))[0]
    assert "--dtype float64" in again


def test_a_training_in_float64_goes_on_in_float64_alone(tmp_path, capsys):
    whole = trained(tmp_path / "whole", "--dtype", "float64", "--epochs", "2")
    trained(tmp_path / "run", "--dtype", "float64")
    resume = ["train", "--config", str(tmp_path / "run" / "command.json"), "--epochs", "2", "--resume"]
    assert main([*resume, "--dtype", "None"]) == 74
    assert "  where: data.dtype: the run has 'float64', here None; validation.dtype: " in capsys.readouterr().err
    assert main(resume) == 0
    resumed = ppvae.load(tmp_path / "run", state="last")
    assert all(torch.equal(value, parameters(whole)[name]) for name, value in parameters(resumed).items())


def test_a_users_file_is_trained_and_measured_in_float64(tmp_path):
    """Its modules, whatever it builds them in, its parameters in Pyro's store, what torch makes while it is built and while it runs; in
    Python too, where float32 is the default."""
    source = PROGRAM.replace("Linear(3, 4)", "Linear(3, 4, dtype=torch.float32)\n    turned = torch.eye(2)")
    (tmp_path / "p.py").write_text(source.replace("z @ w", "z @ turned @ w @ torch.eye(3)"))  # products of two precisions are refused
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 3)).astype("f"))
    folder = str(tmp_path / "run")
    train = ["train", "--data", str(tmp_path / "x.npy"), "--program", f"{tmp_path / 'p.py'}:pair", "--out", folder, "--threads", "1"]
    assert main([*train, "--dtype", "float64", "--epochs", "1"]) == 0
    assert main([*train, "--dtype", "float64", "--epochs", "2", "--resume"]) == 0
    assert main(["evaluate", folder, "--num-particles", "50", "--threads", "1"]) == main(["sample", folder, "--num-data", "2"]) == 0
    assert results(tmp_path / "run", "elbo")["source"]["data"]["dtype"] == "float64"
    run = ppvae.load(folder)
    assert {value.dtype for value in run.model.store["params"].values()} == {torch.float64}
    assert trace(run.model, torch.zeros(4, 3, dtype=torch.float64)).nodes["z"]["value"].dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
