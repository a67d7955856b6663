"""A compiled run is the eager run, resumes bit for bit, obeys what its folder recorded, and goes back where its steps were wrong."""

from __future__ import annotations

import functools
import json

import pyro
import pyro.distributions as dist
import pytest
import torch

import pairs
import ppvae
import ppvae.engine
import ppvae.svi
from ppvae.data import Data
from ppvae.engine import Engine
from ppvae.errors import ObjectiveError, RunError, UnreliableWarning
from ppvae.objectives import linear
from ppvae.state import named_tensors


@pytest.fixture
def graphs(monkeypatch):
    """Captured graphs run operation by operation, without inductor's five seconds: what is tested is what stands around them."""
    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=lambda graph, inputs: graph))


def grey():
    x = torch.randint(0, 256, (20, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Data.from_arrays(x, binarize="dynamic", levels=255)


def float32():
    model, guide = pairs.ours()
    return model.float(), guide.float()


def linear32():
    """Without hidden layers: half of the kernels that inductor compiles."""
    model = ppvae.models.Bernoulli(ppvae.nn.MLP(2, [], 6), latent_dim=2)
    return model.float(), ppvae.guides.DiagonalNormal(ppvae.nn.MLP(6, [], 4), latent_dim=2).float()


def decays(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


CASES = {
    "Adam": (pairs.registered, pairs.real(), {}),
    "dynamic binarisation": (linear32, grey(), {}),
    "warm-up, clipping, scheduler": (
        pairs.registered,
        pairs.real(),
        {"beta": linear(0, 1, fraction=0.5), "clip_norm": 1.0, "scheduler": decays},
    ),
    "pyro.optim": (pairs.registered, pairs.real(), {"optimizer": lambda: pairs.optim.Adam({"lr": 0.01})}),
    "BatchNorm": (pairs.with_batch_norm, pairs.binary(), {}),
    "dropout": (pairs.with_dropout, pairs.binary(), {}),
    "a global site": (pairs.unknown_mean, pairs.real(), {}),
    "validation": (pairs.registered, pairs.real(), {"validation": pairs.real(seed=1)}),
}


def train(name, epochs=5, **arguments):
    """A run of its own pair from one seed, and its tensors by name."""
    make, x, given = CASES[name]
    torch.manual_seed(0)
    model, guide = make()
    given = {key: value() if key == "optimizer" else value for key, value in given.items()}
    run = ppvae.fit(model, guide, x, epochs=epochs, batch_size=5, seed=3, **{**given, **arguments})
    with pyro.get_param_store().scope(run.model.store):
        return run, {key: value.detach().clone() for key, value in named_tensors(model, guide).items()}


@functools.cache
def undisturbed(name):
    """A compiled run in memory, made once: what several tests compare with."""
    return train(name, compile=True)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.soak] * (name in ("dropout", "dynamic binarisation", "a global site"))) for name in CASES],
)
def test_compiled_run_is_the_eager_run(name, graphs):
    (eager, expected), (found, tensors) = train(name, compile=False), undisturbed(name)
    assert (eager.config["engine"], found.config["engine"]) == ("eager", "compiled")
    single = next(iter(tensors.values())).dtype == torch.float32
    for key, value in expected.items():
        # fifteen steps of Adam: rounding, which the root of a small second moment makes larger
        assert torch.allclose(tensors[key], value, rtol=1e-4 if single else 1e-8, atol=1e-5 if single else 1e-9), key
    for a, b in zip(eager.history, found.history, strict=True):
        assert b["objective"] == pytest.approx(a["objective"], rel=1e-5 if single else 1e-9)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4 if single else 1e-7)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.soak), 7])  # within the second epoch
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Adam", marks=pytest.mark.soak),  # is in the one with a warm-up
        pytest.param("dynamic binarisation", marks=pytest.mark.soak),  # goes through inductor below
        "warm-up, clipping, scheduler",
        "BatchNorm",
        "pyro.optim",
    ],
)
def test_interrupted_compiled_run_goes_on_as_if_undisturbed(name, at, graphs, tmp_path, monkeypatch):
    _, whole = undisturbed(name)
    take = ppvae.SVI.take

    def breaks(self, *args, **kwargs):
        if self.steps_taken == at:
            raise Interrupted
        return take(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ppvae.SVI, "take", breaks)
        train(name, compile=True, out=tmp_path / "broken", checkpoint_every=0.0)
    _, found = train(name, compile="auto", out=tmp_path / "broken", resume=True)
    for key, value in whole.items():
        assert torch.equal(found[key], value), key


@pytest.mark.soak
def test_interrupted_run_through_inductor_goes_on_as_if_undisturbed(tmp_path):
    name = "dynamic binarisation"
    _, whole = train(name, compile=True)
    train(name, epochs=3, compile=True, out=tmp_path)
    run, found = train(name, compile=True, out=tmp_path, resume=True)
    assert run.config["engine"] == "compiled"
    for key, value in whole.items():
        assert torch.equal(found[key], value), key


def test_resumed_run_obeys_what_was_recorded(graphs, tmp_path):
    train("Adam", compile="auto", out=tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config["engine"] == "eager"
    run, _ = train("Adam", epochs=800, compile="auto", out=tmp_path / "short", resume=True, callback=lambda row: row["epoch"] < 7)
    assert run.config["engine"] == "eager"  # 3,200 steps in all would have been compiled from the start


def test_resumed_run_with_another_engine_is_refused(graphs, tmp_path):
    train("Adam", compile=True, out=tmp_path)
    with pytest.raises(RunError, match="engine: the run has 'compiled', here 'eager'"):
        train("Adam", epochs=6, compile=False, out=tmp_path, resume=True)


def test_long_runs_are_compiled_and_short_ones_are_not(graphs, capsys):
    stops = {"callback": lambda row: False}
    long, _ = train("Adam", epochs=750, compile="auto", **stops)
    short, _ = train("Adam", epochs=749, compile="auto", **stops)
    assert (long.config["engine"], short.config["engine"]) == ("compiled", "eager")
    assert "engine eager (2,996 steps in all, below 3,000)" in capsys.readouterr().err


def test_machine_code_that_goes_wrong_later_costs_the_steps_since_it_was_right(monkeypatch, tmp_path):
    calls = []

    def decaying(graph, inputs):
        def run(*inputs):
            calls.append(None)
            loss, norm, *gradients = graph(*inputs)
            wrong = 1.5 if len(calls) >= 12 else 1.0  # two looks on admission; from the tenth step on
            return [loss, norm, *(g * wrong for g in gradients)]

        return run

    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=decaying))
    _, expected = train("warm-up, clipping, scheduler", compile=False)
    with pytest.warns(UnreliableWarning, match=r"compiled steps went wrong .*: back from step 12 to 8, where they were right; on eagerly"):
        run, found = train("warm-up, clipping, scheduler", compile=True, out=tmp_path)
    assert [row["step"] for row in run.history] == [4, 8, 12, 16, 20]
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-8, atol=1e-9), key


def test_run_that_was_given_up_resumes_eagerly(monkeypatch, tmp_path):
    def wrong(graph, inputs):
        return lambda *inputs: [2 * value for value in graph(*inputs)]

    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=wrong))
    with pytest.warns(UnreliableWarning, match="steps run eagerly: the loss is .* compiled and .* by eager Pyro"):
        train("Adam", epochs=3, compile=True, out=tmp_path)
    _, found = train("Adam", compile=True, out=tmp_path, resume=True)  # without a warning: it does not try again
    _, expected = train("Adam", compile=False)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_a_number_that_a_callback_changes_is_seen_at_the_next_epoch(graphs):
    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)
            self.scale = 0.5

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

        def guide(self, x):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    vae = Weighted()

    def widen(row):
        if row["epoch"] == 2:
            vae.scale = 1.0

    with pytest.warns(UnreliableWarning, match="the program's number scale went from 0.5 to 1.0"):
        run = ppvae.fit(vae.model, vae.guide, pairs.real(), epochs=4, batch_size=5, compile=True, callback=widen)
    assert [row["step"] for row in run.history] == [4, 8, 12, 16]


@pytest.mark.parametrize("rows", [256, 255])
def test_bfloat16_pays_from_256_rows(rows, graphs):
    torch.manual_seed(0)
    model, guide = float32()
    x = pairs.binary(512, 6).float()
    runs = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, guide = float32()
        svi = ppvae.SVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), compile=True, precision=precision)
        torch.manual_seed(1)
        runs[precision] = [svi.step(x[:rows]) for _ in range(6)]
        shifts = svi.engine.shifts
    assert svi.engine.reason == ""
    apart = max(abs(a - b) / abs(a) for a, b in zip(*runs.values(), strict=True))
    if rows < 256:
        assert apart == 0
        assert not shifts
    else:
        assert 1e-7 < apart < 1e-2  # 8 bits of a mantissa, averaged over the terms of a sum
        assert len(shifts) >= 4
        assert max(map(abs, shifts)) / abs(runs["float32"][0]) < 1e-2


def test_bfloat16_says_what_it_did(graphs, capsys):
    train("dynamic binarisation", compile=True, precision="bfloat16")  # batches of 5: it does not pay, and nothing is said
    assert "bfloat16:" not in capsys.readouterr().err
    torch.manual_seed(0)
    model, guide = float32()
    run = ppvae.fit(model, guide, pairs.binary(600, 6).float(), epochs=4, batch_size=300, compile=True, precision="bfloat16")
    assert run.config["precision"] == "bfloat16"
    assert "nats per datum from float32's, noise for noise; all that is measured is float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float16"}, "precision is 'float32' or 'bfloat16', got 'float16'"),
        ({"precision": "bfloat16", "compile": False}, "precision='bfloat16' is for compiled steps, and compile=False asks for none"),
        ({"compile": "yes"}, "compile is 'auto', True or False, got 'yes'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ObjectiveError, match=message):
        train("Adam", **arguments)
