"""A run folder makes its programs again, with the very numbers; it says what is missing, and runs nobody's pickle."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import warnings
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn

import pairs
import ppvae
from pairs import optim
from ppvae import checkpoint, factory, guides, models
from ppvae.errors import LockedError, PpvaeError, RunError
from ppvae.lock import locked
from ppvae.nn import MLP
from ppvae.run import HISTORY, new_folder, read_history, template_of
from ppvae.state import named_tensors


def trained(make, x, folder, **arguments):
    torch.manual_seed(0)
    return ppvae.fit(*make(), x, **{"epochs": 3, "batch_size": 10, "out": folder, **arguments})


def weights(run, x, seed=4):
    with pyro.get_param_store().scope(run.model.store):
        return ppvae.log_weights(run.model, run.guide, x, num_particles=5, seed=seed)


FORMS = {
    "ours": (pairs.ours, pairs.binary()),
    "pyro.module": (pairs.registered, pairs.real()),
    "closed over": (pairs.closures, pairs.real()),
    "in a list": (pairs.hidden, pairs.real()),
    "two called net": (pairs.two_nets, pairs.real()),
    "PyroModule": (pairs.pyro_linear, pairs.real()),
    "pyro.param": (pairs.table, pairs.real()),
    "born late": (pairs.rare, pairs.one_outlier()),
    "bound methods": (pairs.bound, pairs.images()),
    "BatchNorm": (pairs.with_batch_norm, pairs.binary()),
    "global site": (pairs.unknown_mean, pairs.real(20, 1)),
}


@pytest.mark.parametrize(("make", "x"), FORMS.values(), ids=FORMS)
def test_numbers_after_loading_are_those_before(make, x, tmp_path):
    run = trained(make, x, tmp_path / "run")
    torch.manual_seed(99)
    found = ppvae.load(tmp_path / "run", *make())
    assert torch.equal(weights(found, x), weights(run, x))


def test_pyro_s_example_is_loaded_by_its_bound_methods(tmp_path):
    run = trained(pairs.bound, pairs.images(), tmp_path / "run")
    vae = pairs.PyroVAE()
    found = ppvae.load(tmp_path / "run", vae.model, vae.guide)
    assert torch.equal(weights(found, pairs.images()), weights(run, pairs.images()))


def test_our_programs_are_made_by_their_constructors(tmp_path):
    run = trained(pairs.ours, pairs.binary(), tmp_path / "run")
    found = ppvae.load(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "program.json").read_text())["how"] == "constructors"
    assert torch.equal(weights(found, pairs.binary()), weights(run, pairs.binary()))


def test_rest_of_a_run_is_loaded_too(tmp_path):
    run = trained(pairs.ours, pairs.binary(), tmp_path / "run", validation=pairs.binary(seed=1))
    found = ppvae.load(tmp_path / "run")
    for name in ("history", "best_epoch", "stopped", "folder"):
        assert getattr(found, name) == getattr(run, name)
    assert found.config == json.loads(json.dumps(run.config))


def test_loading_leaves_the_caller_s_store_and_generator_alone(tmp_path):
    trained(pairs.table, pairs.real(), tmp_path / "run")
    pyro.param("loc", torch.tensor([7.0, 7.0]))
    before = torch.get_rng_state()
    ppvae.load(tmp_path / "run", *pairs.table())
    assert torch.equal(torch.get_rng_state(), before)
    assert pyro.param("loc").tolist() == [7.0, 7.0]


# Best and last.


def drift(x):
    """mu halves each epoch, and validation is best at 1/4."""
    mu = pyro.param("mu", torch.ones(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", pyro.distributions.Normal(mu, 1.0).to_event(1), obs=x)


def nothing(x):
    """No latent."""


def drifted(folder, target):
    validation = torch.full((4, 1), target) if target is not None else None
    optimizer = optim.SGD({"lr": 0.5})
    return ppvae.fit(drift, nothing, torch.zeros(4, 1), validation=validation, epochs=4, optimizer=optimizer, out=folder)


def mu_of(run):
    return run.model.store["params"]["mu"].item()


@pytest.mark.parametrize(
    ("target", "state", "mu", "epoch"),
    [(0.26, "best", 0.25, 2), (0.26, "last", 0.0625, None), (None, "best", 0.0625, None), (None, "last", 0.0625, None)],
    ids=["best", "last", "best without validation", "last without validation"],
)
def test_state_is_the_one_asked_for(target, state, mu, epoch, tmp_path):
    drifted(tmp_path / "run", target)
    found = ppvae.load(tmp_path / "run", drift, nothing, state=state)
    assert (mu_of(found), found.best_epoch) == (mu, epoch)


def test_best_before_a_late_parameter_was_born_is_loaded(tmp_path):
    def late(x):
        drift(x)
        if pyro.get_param_store()["mu"] < 0.2:
            pyro.param("late", torch.zeros(1))

    validation, optimizer = torch.full((4, 1), 0.26), optim.SGD({"lr": 0.5})
    ppvae.fit(late, nothing, torch.zeros(4, 1), validation=validation, epochs=4, optimizer=optimizer, out=tmp_path / "run")
    found = [set(ppvae.load(tmp_path / "run", late, nothing, state=state).model.store["params"]) for state in ("best", "last")]
    assert found == [{"mu"}, {"mu", "late"}]


@pytest.mark.parametrize("state", ["newest", ""], ids=["newest", "empty"])
def test_state_that_is_neither_is_refused(state, tmp_path):
    drifted(tmp_path / "run", 0.26)
    with pytest.raises(PpvaeError, match=f"state is 'best' or 'last', got {state!r}"):
        ppvae.load(tmp_path / "run", drift, nothing, state=state)


# A user's file.

SOURCE = """
import pairs
def make(): return pairs.registered()
"""


@pytest.fixture
def by_file(tmp_path):
    path = tmp_path / "vae.py"
    path.write_text(SOURCE)
    model, guide, source = factory.build(f"{path}:make", pairs.real())
    return path, ppvae.fit(model, guide, pairs.real(), epochs=1, out=tmp_path / "run", source=source)


def test_file_makes_its_programs_again(by_file):
    _, run = by_file
    assert torch.equal(weights(ppvae.load(run.folder), pairs.real()), weights(run, pairs.real()))


def test_file_that_has_changed_is_refused(by_file):
    path, run = by_file
    before = factory.sha256_of(path)
    path.write_text(SOURCE + "\n")
    with pytest.raises(RunError) as raised:
        ppvae.load(run.folder)
    assert str(raised.value) == (
        f"{path} has changed since the run was trained\n"
        f"  where: sha256 {factory.sha256_of(path)[:12]}..., the run has {before[:12]}...\n"
        "  mend:  restore the file\n"
        f"     or: if the change is harmless: ppvae.load({str(run.folder)!r}, model, guide)"
    )


def test_file_that_has_changed_is_not_run(by_file, tmp_path):
    path, run = by_file
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(RunError):
        ppvae.load(run.folder)
    assert not (tmp_path / "ran").exists()


def test_programs_handed_in_go_before_the_file(by_file):
    path, run = by_file
    path.unlink()
    assert torch.equal(weights(ppvae.load(run.folder, *pairs.registered()), pairs.real()), weights(run, pairs.real()))


def test_file_that_is_gone_is_named(by_file):
    path, run = by_file
    path.unlink()
    with pytest.raises(PpvaeError, match=f"there is no file {path}"):
        ppvae.load(run.folder)


# Programs built in Python.


def test_programs_built_in_python_must_be_handed_in(tmp_path):
    trained(pairs.registered, pairs.real(), tmp_path / "run")
    with pytest.raises(RunError) as raised:
        ppvae.load(tmp_path / "run")
    shapes = "model.decoder.weight (3, 2), model.decoder.bias (3,), guide.encoder.weight (4, 3), guide.encoder.bias (4,)"
    assert str(raised.value) == (
        f"the programs of {tmp_path / 'run'} were built in Python (a value of type function cannot be made again from a record), so hand them in\n"
        f"  where: the folder holds {shapes}\n"
        f"  mend:  ppvae.load({str(tmp_path / 'run')!r}, model, guide)"
    )


def test_long_list_of_tensors_is_cut(tmp_path):
    trained(pairs.bound, pairs.images(), tmp_path / "run")
    with pytest.raises(RunError, match=r"model.encoder.3.bias \(4,\), .* and 2 more\n") as raised:
        ppvae.load(tmp_path / "run")
    assert raised.value.where.count("(") == 6


def test_one_program_alone_is_refused(tmp_path):
    trained(pairs.registered, pairs.real(), tmp_path / "run")
    with pytest.raises(RunError, match="hand in both model and guide, or neither"):
        ppvae.load(tmp_path / "run", pairs.registered()[0])


def wider():
    return models.Bernoulli(MLP(2, [9], 6), latent_dim=2), guides.DiagonalNormal(MLP(6, [9], 4), latent_dim=2)


def test_programs_of_other_shapes_are_refused(tmp_path):
    trained(pairs.ours, pairs.binary(), tmp_path / "run")
    with pytest.raises(RunError) as raised:
        ppvae.load(tmp_path / "run", *wider())
    layers = "model.network.layers"
    assert str(raised.value) == (
        f"these programs are not those of the run in {tmp_path / 'run'}\n"
        f"  where: {layers}.0.weight: the run has [8, 2], here [9, 2]; {layers}.0.bias: the run has [8], here [9]; "
        f"{layers}.2.weight: the run has [6, 8], here [6, 9]; guide.encoder.layers.0.weight: the run has [8, 6], here [9, 6] and 2 more\n"
        "  mend:  build model and guide as for the run, or train anew into another folder"
    )


def test_programs_of_other_sites_are_refused(tmp_path):
    trained(pairs.ours, pairs.binary(), tmp_path / "run")
    likelihood = models.Normal(MLP(2, [8], 6), latent_dim=2, scale=1.0)
    with pytest.raises(RunError, match=r"model.x: the run has \['observed', 'Bernoulli', \[6\]\], here \['observed', 'Normal', \[6\]\]"):
        ppvae.load(tmp_path / "run", likelihood, pairs.ours()[1])


def test_programs_with_other_parameters_are_refused(tmp_path):
    trained(pairs.ours, pairs.binary(), tmp_path / "run")
    model, guide = pairs.ours()
    guide.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(RunError, match=r"where: guide.extra: the run has None, here \[2\]\n"):
        ppvae.load(tmp_path / "run", model, guide)


def test_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(RunError) as raised:
        ppvae.load(tmp_path)
    assert str(raised.value) == f"{tmp_path} holds no run\n  mend:  ppvae.fit(..., out=folder) or `ppvae train --out FOLDER` makes one"


def test_run_without_a_checkpoint_is_told(tmp_path):
    trained(pairs.ours, pairs.binary(), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="holds no checkpoint yet\n  mend:  fit\\(..., resume=True\\) starts it again"):
        ppvae.load(tmp_path / "run")


def test_damaged_checkpoint_is_told_on_loading(tmp_path):
    trained(pairs.ours, pairs.binary(), tmp_path / "run", checkpoint_every=0.0)
    name = checkpoint.names(tmp_path / "run" / "checkpoints")[0]
    for path in (tmp_path / "run" / "checkpoints").glob(f"{name}*.safetensors"):
        path.write_bytes(b"")
    with pytest.warns(ppvae.errors.UnreliableWarning, match=rf"{name}(\.again)?\.safetensors is damaged.*is loaded"):
        ppvae.load(tmp_path / "run")


# The folder.


def test_folder_holds_json_safetensors_and_text_alone(tmp_path):
    trained(pairs.rare, pairs.one_outlier(), tmp_path / "run", validation=pairs.real(seed=1), optimizer=optim.Adam({"lr": 0.01}))
    contents = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    kinds = {path.suffix or path.name for path in contents}
    assert kinds == {".json", ".jsonl", ".safetensors", ".lock", ".lock-holder"}
    assert all(content[8:9] == b"{" for path, content in contents.items() if path.suffix == ".safetensors")
    assert not any(re.match(rb"\x80[\x02-\x05]\x95|PK\x03\x04", content) for content in contents.values())


STRUCTURES = {
    "tensor": torch.arange(12.0).reshape(4, 3),
    "tuple": (torch.arange(12.0).reshape(4, 3), torch.arange(4)),
    "dict": {"image": torch.arange(12.0).reshape(4, 3), "label": torch.arange(4)},
}


@pytest.mark.parametrize("x", STRUCTURES.values(), ids=STRUCTURES)
def test_template_is_two_rows_in_the_structure_of_the_data(x, tmp_path):
    def model(batch):
        values = batch if isinstance(batch, torch.Tensor) else batch["image"] if isinstance(batch, dict) else batch[0]
        with pyro.plate("data", len(values)):
            pyro.sample("x", pyro.distributions.Normal(pyro.param("mu", torch.zeros(3)), 1.0).to_event(1), obs=values)

    ppvae.fit(model, nothing, x, epochs=1, out=tmp_path / "run")
    found, expected = template_of(tmp_path / "run"), ppvae.batches.take(x, slice(0, 2))
    assert type(found) is type(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_torn_last_line_of_the_history_is_left_out(tmp_path):
    (tmp_path / HISTORY).write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert read_history(tmp_path) == [{"epoch": 1}, {"epoch": 2}]


def test_result_is_written_into_the_folder(tmp_path):
    run = trained(pairs.ours, pairs.binary(), tmp_path / "run", epochs=1)
    path = run.write_result("elbo", {"value": 0.1})
    assert path == tmp_path / "run" / "results" / "elbo.json"
    assert json.loads(path.read_text()) == {"value": 0.1}


def test_run_in_memory_writes_nothing():
    assert trained(pairs.ours, pairs.binary(), None, epochs=1).write_result("elbo", {}) is None


@pytest.mark.parametrize("before", ["no folder", "an empty folder", "a folder with a file", "a folder in which a run begins"])
def test_a_lock_leaves_no_more_than_it_found(before, tmp_path):
    """A refused run that left its lock would take the name of the next."""
    folder = tmp_path / "above" / "run"
    if before != "no folder":
        folder.mkdir(parents=True)
    if before == "a folder with a file":
        (folder / "own").touch()
    found = sorted(folder.iterdir()) if folder.exists() else None
    with locked(folder):
        assert {path.name for path in folder.iterdir()} >= {".lock", ".lock-holder"}
        if before == "a folder in which a run begins":
            (folder / "config.json").touch()
    left = sorted(path.name for path in folder.iterdir()) if folder.exists() else None
    if before in ("no folder", "an empty folder"):
        assert left == found
    else:  # the lock's own files stay: unlinked, another process would make a second lock beside one that is held
        assert left == sorted([".lock", ".lock-holder", "own" if before == "a folder with a file" else "config.json"])


def test_lock_names_its_holder(tmp_path):
    with locked(tmp_path):
        assert (tmp_path / ".lock-holder").read_text().endswith(f" on {socket.gethostname()}")


def test_tensors_of_a_loaded_run_are_those_of_the_run(tmp_path):
    run = trained(pairs.with_batch_norm, pairs.binary(), tmp_path / "run")
    found = ppvae.load(tmp_path / "run", *pairs.with_batch_norm())
    torch.testing.assert_close(named_tensors(found.model, found.guide), named_tensors(run.model, run.guide), rtol=0, atol=0)


def test_a_run_in_float64_loads_in_a_float32_process(tmp_path):
    model, guide = pairs.ours()
    x = pairs.binary(20)
    run = ppvae.fit(model, guide, x, epochs=1, out=tmp_path / "run")
    before = ppvae.log_weights(run.model, run.guide, x, num_particles=2)
    torch.set_default_dtype(torch.float32)
    loaded = ppvae.load(tmp_path / "run")
    assert torch.equal(before, ppvae.log_weights(loaded.model, loaded.guide, x, num_particles=2))


def test_a_network_that_model_and_guide_share_is_handed_in_again(tmp_path):
    shared = MLP(2, [], 6)
    model = models.Bernoulli(shared, 2)
    guide = guides.DiagonalNormal(torch.nn.Sequential(MLP(6, [], 2), shared, torch.nn.Linear(6, 4)), 2)
    x = pairs.binary(20)
    ppvae.fit(model, guide, x, epochs=1, out=tmp_path / "run")
    with pytest.raises(RunError, match="were built in Python \\(model and guide share parameters\\), so hand them in"):
        ppvae.load(tmp_path / "run")
    assert ppvae.load(tmp_path / "run", model, guide).folder == tmp_path / "run"


# Folders of several processes.


def first_free(base):
    """In the child: make a folder of its own and say which."""
    found = new_folder(Path(base) / "runs" / "digits")
    (found / "mine").write_text(str(os.getpid()))


def test_20_parallel_starts_make_20_folders(tmp_path):
    children = []
    for _ in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
            child = os.fork()
        if child == 0:
            try:
                first_free(tmp_path)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"digits", *(f"digits-{number}" for number in range(2, 21))}
    assert {int((tmp_path / "runs" / name / "mine").read_text()) for name in names} == set(children)


def test_new_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=f"{tmp_path / 'runs' / 'digits'} cannot be made: Not a directory"):
        new_folder(tmp_path / "runs" / "digits")


BROKEN_HISTORIES = {
    "bytes": b'{"epoch": 1}\n\xff\xfe\n{"epoch": 3}',
    "a number": b'{"epoch": 1}\n7\n',
    "deep": b'{"epoch": 1}\n' + b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN_HISTORIES.values(), ids=BROKEN_HISTORIES)
def test_rows_of_the_history_end_where_it_is_broken(content, tmp_path):
    (tmp_path / HISTORY).write_bytes(content)
    assert read_history(tmp_path) == [{"epoch": 1}]


def test_a_holder_of_nonsense_is_no_error(tmp_path):
    with locked(tmp_path), pytest.raises(LockedError, match="is held by another process\n"):
        (tmp_path / ".lock-holder").write_bytes(b"\xff\x00" * 1000)
        with locked(tmp_path):
            pass


def test_a_flipped_bit_of_a_record_is_refused(tmp_path):
    """A digit of program.json may be the scale of a likelihood: the run would load, and measure another model."""
    torch.manual_seed(0)
    model = models.Normal(MLP(2, [4], 6), latent_dim=2, scale=0.5)
    trained(lambda: (model, guides.DiagonalNormal(MLP(6, [4], 4), latent_dim=2)), pairs.binary(), tmp_path / "run", epochs=1)
    for name in ("program.json", "config.json"):
        path = tmp_path / "run" / name
        sound = path.read_bytes()
        for bit in torch.randint(8 * len(sound), (100,)).tolist():
            content = bytearray(sound)
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            with pytest.raises(RunError, match=f"{name} is damaged: it does not have the SHA-256 that it was written with"):
                ppvae.load(tmp_path / "run")
        path.write_bytes(sound)
    assert len(ppvae.load(tmp_path / "run").history) == 1


def test_a_run_goes_on_with_other_threads_and_says_so(tmp_path, capsys):
    trained(pairs.ours, pairs.binary(), tmp_path / "run", epochs=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        trained(pairs.ours, pairs.binary(), tmp_path / "run", epochs=2, resume=True)
    finally:
        torch.set_num_threads(threads)
    said = f"threads {threads + 1}, where the run had {threads}: what follows is equal in law, not in bits"
    assert said in capsys.readouterr().err


def test_room_is_asked_for_all_that_a_checkpoint_may_hold(tmp_path, monkeypatch):
    """Values, Adam's two moments and the best epoch, now and where the run would go back to: three such files at once."""
    asked = []
    monkeypatch.setattr(sys.modules["ppvae.fit"], "check_room", lambda folder, needed: asked.append(needed))
    wide = lambda: (models.Bernoulli(MLP(2, [4000], 6), 2), guides.DiagonalNormal(MLP(6, [4000], 4), 2))  # noqa: E731
    trained(wide, pairs.binary(), tmp_path / "run", epochs=2, validation=pairs.binary(seed=1))
    largest = max(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert 0.9 * asked[0] < 3 * largest < asked[0] + 3 * 50_000  # headers, generators
