from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppvae
from ppvae import analysis, cli, config_file, options, simulate
from ppvae.cli import main
from ppvae.commands import check, pairs
from ppvae.commands.train import data_of
from ppvae.data import Data
from ppvae.lock import locked

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("arviz", "matplotlib", "numpy", "pyro", "scipy", "torch")
SMALL = ["--hidden", "8", "--latent-dim", "2", "--epochs", "1", "--threads", "1"]

PROGRAM = """
import torch
from ppvae import guides, models, nn

def pair(x):
    width = x.shape[-1]
    return models.Bernoulli(nn.MLP(2, [8], width), latent_dim=2), guides.DiagonalNormal(nn.MLP(width, [8], 4), latent_dim=2)

def wrong(x):
    model, guide = pair(x)
    return models.Bernoulli(nn.MLP(3, [8], x.shape[-1]), latent_dim=3), guide

def raising(x):
    raise KeyError("no such thing")
"""


@pytest.fixture(autouse=True)
def single_precision(fresh):
    """What a user of the command has: torch as it starts."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits; with what training it printed on stdout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("cli") / "digits"
    assert main(["train", "--out", str(folder), *SMALL]) == 0
    torch.set_default_dtype(before)
    return folder


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "my_vae.py"
    path.write_text(PROGRAM)
    return path


def failure(capsys, *arguments):
    """Exit code, and the lines of the error without the first line, which says what is about to happen."""
    code = main(list(map(str, arguments)))
    lines = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    return code, "\n".join(lines[start:])


# Help


def test_no_command_prints_help(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: ppvae COMMAND")
    assert all(f"$ {command.example}" in told for command in options.COMMANDS.values())
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("name", options.COMMANDS)
def test_help_of_a_command_ends_with_its_example(name, capsys):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.endswith(f"\nexample:\n  {options.COMMANDS[name].example}\n")


@pytest.mark.parametrize("name", options.COMMANDS)
def test_example_is_a_command_that_can_be_given(name):
    assert isinstance(cli._parsed(name, shlex.split(options.COMMANDS[name].example)[2:]), options.COMMANDS[name])


LOADED = f"""
import sys
from ppvae.cli import COMMANDS, main
for name in COMMANDS:
    main([name, "--help"])
print(sorted({set(HEAVY)!r} & sys.modules.keys()), file=sys.stderr)
"""


def test_help_of_commands_loads_no_heavy_library(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ppvae {ppvae.__version__}\n"


# Errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["trian"],
            "error: there is no command 'trian'\n  mend:  did you mean 'train'?\n     or: one of " + ", ".join(options.COMMANDS),
        ),
        (
            ["check", "--program", "mpl"],
            "error: there is no program 'mpl'\n  mend:  did you mean 'mlp'?\n     or: one of mlp, conv\n"
            "     or: file.py:function, which returns (model, guide)",
        ),
        (
            ["check", "--program", "my_vae.py"],
            "error: 'my_vae.py' names a file, and no function in it\n  mend:  --program my_vae.py:function",
        ),
        (
            ["check", "--guide", "full_rank"],
            "error: there is no guide 'full_rank'\n  mend:  did you mean 'full-rank'?\n     or: one of " + ", ".join(pairs.GUIDES),
        ),
        (
            ["check", "--likelihood", "bernouli"],
            "error: there is no likelihood 'bernouli'\n  mend:  did you mean 'bernoulli'?\n     or: one of " + ", ".join(pairs.LIKELIHOODS),
        ),
        (
            ["check", "--activation", "rellu"],
            "error: there is no activation 'rellu'\n  mend:  did you mean 'relu'?\n"
            "     or: one of relu, elu, tanh, silu, gelu, softplus, leaky-relu",
        ),
    ],
    ids=["command", "program", "file without function", "guide", "likelihood", "activation"],
)
def test_unknown_names_are_usage_errors_that_tell_the_nearest(arguments, text, capsys):
    assert failure(capsys, *arguments) == (2, text)


def test_unknown_split_is_a_usage_error(run, capsys):
    text = "error: there is no split 'tset'\n  mend:  did you mean 'test'?\n     or: one of train, validation, test"
    assert failure(capsys, "evaluate", run, "--split", "tset") == (2, text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["train", "--epoch-s", "3"], "--epochs"), (["train", "--epochs", "three"], "--epochs"), (["evaluate"], "RUN")],
    ids=["option", "value", "missing"],
)
def test_arguments_that_cannot_be_read_are_usage_errors(arguments, told, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""


def test_unknown_data_are_a_data_error(capsys):
    code, text = failure(capsys, "check", "--data", "digitz")
    assert code == 65
    assert "mend:  did you mean 'digits'?" in text


def test_missing_data_file_is_told_apart(capsys):
    assert failure(capsys, "check", "--data", "no/such.npy")[0] == 66


def test_missing_run_folder_tells_the_nearest(run, capsys):
    text = f"error: there is no run folder {run.with_name('digit')}\n  mend:  did you mean '{run}'?"
    assert failure(capsys, "evaluate", run.with_name("digit")) == (66, text)


def test_folder_without_a_run_is_an_input_error(tmp_path, capsys):
    assert failure(capsys, "sample", tmp_path) == (
        74,
        f"error: {tmp_path} holds no run\n  mend:  ppvae.fit(..., out=folder) or `ppvae train --out FOLDER` makes one",
    )


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr(check, "run", raising(KeyboardInterrupt()))
    assert failure(capsys, "check") == (130, "error: interrupted")


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_interrupted_training_tells_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ppvae, "fit", raising(KeyboardInterrupt()))
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL]) == 130
    assert "the same command with --resume goes on from the newest checkpoint" in capsys.readouterr().err


def test_interrupted_training_into_a_new_folder_names_it(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppvae, "fit", raising(KeyboardInterrupt()))
    assert main(["train", "--new", *SMALL]) == 130
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("the same command")]
    assert said == "the same command with --out runs/digits --resume in place of --new goes on from the newest checkpoint"


def test_unexpected_error_is_one_line_and_asks_for_debug(monkeypatch, capsys):
    monkeypatch.setattr(check, "run", raising(RuntimeError("two\nlines")))
    text = "error: RuntimeError: two lines\n  mend:  this is a bug in ppvae or in your program: run again with --debug"
    assert failure(capsys, "check") == (70, text)


@pytest.mark.parametrize("asked", ["option", "environment"])
def test_debug_shows_the_traceback(asked, monkeypatch, capsys):
    monkeypatch.setattr(check, "run", raising(RuntimeError("broken")))
    if asked == "environment":
        monkeypatch.setenv("PPVAE_DEBUG", "1")
    assert main(["check", "--debug"] if asked == "option" else ["check"]) == 70
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told
    assert told.endswith("error: RuntimeError: broken\n")


def test_file_that_cannot_be_written_is_an_output_error(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, text = failure(capsys, "sample", run, "--out", tmp_path / "file" / "x.npz")
    assert code == 74
    assert text.startswith("error: ")


def test_library_warnings_are_one_line_each(tmp_path, capsys):
    assert main(["train", "--beta", "0.5", "--out", str(tmp_path / "run"), *SMALL]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "warning: beta ends at 0.5, not at 1: what is trained is not the ELBO" in lines


WITHOUT_TORCH = """
import sys
from ppvae.cli import main

class NoTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ImportError("torch is wanted now")

sys.meta_path.insert(0, NoTorch())
sys.exit(main(["train", "--data", "mnist"]))
"""


def test_first_line_comes_before_torch_is_imported(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, cwd=tmp_path, env=environment())
    first, second, *_ = done.stderr.splitlines()
    assert (done.returncode, first) == (70, "ppvae train: data mnist, program mlp")
    assert second == "error: ImportError: torch is wanted now"


HELD = WITHOUT_TORCH.replace('"mnist"', '"mnist", "--out", "held"')


def test_who_may_not_train_is_told_before_torch_is_imported(tmp_path):
    """Seconds of imports earlier; and nothing of the refused command is left in the folder."""
    with locked(tmp_path / "held"):
        before = sorted(path.name for path in (tmp_path / "held").iterdir())
        done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, cwd=tmp_path, env=environment())
        assert sorted(path.name for path in (tmp_path / "held").iterdir()) == before
    assert done.returncode == 75
    assert done.stderr.splitlines()[1].startswith(f"error: held is held by process {os.getpid()} on ")


def test_the_options_of_a_run_are_written_by_who_holds_its_folder(tmp_path, monkeypatch):
    """Between the first look and the lock another may have come: then its options stand, not ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppvae.lock.refuse_held", lambda folder: None)
    with locked(tmp_path / "run"):
        assert main(["train", "--out", "run", *SMALL]) == 75
    assert not (tmp_path / "run" / "command.json").exists()


@pytest.mark.parametrize(
    ("data", "folder"),
    [("digits", "digits"), ("a/b.csv", "b"), ("..", "home"), (".", "work"), ("pictures/", "pictures"), ("/", "data")],
)
def test_a_run_lies_below_runs_whatever_the_data_are_called(data, folder, tmp_path, monkeypatch):
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "work")
    assert options.Train(data=data).run_folder == Path("runs") / folder


# train


def test_training_leaves_a_run_that_the_library_loads(run):
    loaded = ppvae.load(run)
    assert len(loaded.history) == 1
    assert loaded.model.network.in_features == 2


def test_training_records_its_arguments(run):
    record = json.loads((run / "command.json").read_text())
    assert (record["data"], record["hidden"], record["image_shape"]) == ("digits", [8], [8, 8])


def test_results_go_to_stdout_and_progress_to_stderr(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *SMALL]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"run {folder}: 1 epochs, parameters of epoch 1, finished\nnext: ppvae evaluate {folder}\n"
    assert "epoch 1/1  ELBO" in shown.err


def test_a_folder_that_holds_a_run_is_refused(run, capsys):
    text = (
        f"error: {run} already holds a run\n  mend:  --resume goes on from its newest checkpoint\n     or: --out FOLDER trains into another"
    )
    assert failure(capsys, "train", "--out", run, *SMALL) == (74, text)


def test_new_runs_do_not_refuse_each_other(tmp_path, monkeypatch, capsys):
    """The same command twice: each says which folder is its own, and what it recorded goes on with that one."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits-2"):
        assert main(["train", "--new", "--json", *SMALL]) == 0
        shown = capsys.readouterr()
        assert f"run folder: runs/{name}" in shown.err.splitlines()
        assert json.loads(shown.out)["run"]["folder"] == f"runs/{name}"
        recorded = config_file.defaults(options.Train, config_file.read(Path("runs", name, "command.json")), Path())
        assert (recorded.new, recorded.run_folder) == (False, Path("runs", name))
    before = len(ppvae.load("runs/digits-2").history)
    assert main(["train", "--config", "runs/digits-2/command.json", "--resume", "--epochs", "2"]) == 0
    assert len(ppvae.load("runs/digits-2").history) == before + 1


def test_new_is_kept_in_a_file_of_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--new", "--print-config"]) == 0
    Path("s.toml").write_text(capsys.readouterr().out)
    assert cli._parsed("train", [], Path("s.toml")) == options.Train(new=True)
    assert not Path("runs").exists()


def test_a_new_run_that_is_refused_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("a,b\n1,2\n3\n")
    assert failure(capsys, "train", "--new", "--data", "x.csv")[0] == 65
    assert not Path("runs").exists()
    Path("x.csv").write_text("a,b\n" + "1,2\n3,4\n" * 20)  # counts, which a Bernoulli refuses as training is about to begin
    for folder in (["--new"], ["--out", "runs/other"]):
        code, text = failure(capsys, "train", *folder, "--data", "x.csv", "--likelihood", "bernoulli", *SMALL)
        assert code == 65 and text.startswith("error: the data do not fit the likelihood: ")
        assert not list(Path("runs").iterdir())


def test_out_of_a_file_can_be_left_out_beside_new(tmp_path):
    """As the error advises."""
    (tmp_path / "s.toml").write_text('out = "runs/digits"\n')
    assert cli._parsed("train", ["--out", "None", "--new"], tmp_path / "s.toml") == options.Train(new=True)


def test_resumed_training_is_the_undisturbed_one(tmp_path):
    more = [*SMALL[:-4], "--epochs", "2", "--threads", "1"]
    assert main(["train", "--out", str(tmp_path / "whole"), *more]) == 0
    assert main(["train", "--out", str(tmp_path / "parts"), *SMALL]) == 0
    assert main(["train", "--out", str(tmp_path / "parts"), "--resume", *more]) == 0
    whole, parts = (ppvae.load(tmp_path / name) for name in ("whole", "parts"))
    assert [row["objective"] for row in parts.history] == [row["objective"] for row in whole.history]


def test_resuming_with_other_arguments_is_refused(run, capsys):
    code, text = failure(capsys, "train", "--out", run, "--resume", "--batch-size", "64", *SMALL)
    assert code == 74
    assert "where: batch_size: the run has 128, here 64" in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ("Bernoulli", "MLP", "DiagonalNormal")),
        (["--guide", "full-rank"], ("Bernoulli", "MLP", "FullRankNormal")),
        (["--program", "conv", "--hidden", "4"], ("Bernoulli", "ConvDecoder", "DiagonalNormal")),
        (["--binarize", "none"], ("Normal", "MLP", "DiagonalNormal")),
        (["--binarize", "none", "--likelihood", "bernoulli"], ("Bernoulli", "MLP", "DiagonalNormal")),
    ],
    ids=["mlp", "full rank", "conv", "grey values", "likelihood named"],
)
def test_built_in_programs_follow_their_arguments(arguments, parts):
    given = cli._parsed("check", arguments)
    model, guide, source = pairs.pair(data_of(given).train, given)
    assert (type(model).__name__, type(model.network).__name__, type(guide).__name__) == parts
    assert source is None


@pytest.mark.parametrize("arguments", [[], ["--guide", "full-rank"], ["--program", "conv", "--hidden", "4"], ["--binarize", "none"]])
def test_built_in_programs_keep_the_contract(arguments, capsys):
    assert main(["check", *arguments]) == 0
    assert capsys.readouterr().out.startswith("the pair keeps the contract")


@pytest.mark.parametrize(
    ("x", "program", "text"),
    [
        (torch.arange(20).reshape(4, 5), "mlp", "the data are whole numbers up to 19, and no likelihood was named"),
        (torch.rand(4, 3, 5), "mlp", "the program mlp needs rows that are vectors, got event shape (3, 5)"),
        (torch.rand(4, 36), "conv", "needs square images with a side that is a multiple of 4, got 36 numbers a row"),
    ],
    ids=["counts", "matrices", "size"],
)
def test_data_that_do_not_suit_a_built_in_program_are_refused(x, program, text):
    with pytest.raises(ppvae.errors.PpvaeError) as caught:
        pairs.pair(Data.of(x), options.Check(program=program))
    assert text in str(caught.value)


# check


def test_check_of_a_program_that_keeps_the_contract(program, capsys):
    assert main(["check", "--program", f"{program}:pair"]) == 0
    assert capsys.readouterr().out.startswith("the pair keeps the contract: 0 errors")


def test_check_of_a_program_that_breaks_the_contract(program, capsys):
    assert main(["check", "--program", f"{program}:wrong"]) == 65
    assert capsys.readouterr().out.startswith("the pair breaks the contract")


def test_error_in_a_users_file_names_it(program, capsys):
    code, text = failure(capsys, "check", "--program", f"{program}:raising")
    assert code == 65
    assert text.startswith(f"error: '{program}:raising' failed: KeyError: 'no such thing'")


def test_a_device_that_is_not_there_is_a_usage_error(tmp_path, capsys):
    code, text = failure(capsys, "train", "--device", "gpu", "--out", tmp_path / "run", *SMALL)
    assert code == 2
    assert text.startswith("error: there is no device 'gpu'\n  mend:  one of auto, cpu")


# evaluate, gaps, sample


def test_evaluate_prints_and_writes_what_the_library_measures(run, capsys):
    assert main(["evaluate", str(run), "--num-data", "20", "--num-particles", "50"]) == 0
    loaded, test = ppvae.load(run), ppvae.data.load("digits").test[:20]
    elbo = analysis.elbo(loaded.model, loaded.guide, test, num_particles=50)
    found = analysis.log_likelihood(loaded.model, loaded.guide, test, num_particles=50)
    assert capsys.readouterr().out == f"{elbo}\n{found}\n"
    written = json.loads((run / "results" / "log_likelihood-test.json").read_text())
    assert written["pointwise"] == found.pointwise.tolist()


def test_evaluate_measures_bounds_and_calibration_on_request(run, capsys):
    few = ["evaluate", str(run), "--split", "validation", "--num-data", "10", "--num-particles", "60"]
    assert main([*few, "--bounds", "--calibration", "20"]) == 0
    loaded, rows = ppvae.load(run), ppvae.data.load("digits").validation[:10]
    bounds = analysis.bounds(loaded.model, loaded.guide, rows, num_particles=(1, 2, 5, 10, 20, 50, 60))
    judged = analysis.calibration(loaded.model, loaded.guide, template=rows, num_data=20)
    assert capsys.readouterr().out.splitlines()[2:] == [str(bounds), str(judged)]
    written = {name: json.loads((run / "results" / f"{name}-validation.json").read_text()) for name in ("bounds", "calibration")}
    assert written["bounds"]["pointwise"] == bounds.pointwise.tolist()
    assert written["calibration"]["ranks"] == judged.ranks.tolist()


@pytest.mark.parametrize(("asked", "recorded"), [([], None), (["--tolerance", "0.5"], 0.5)], ids=["none", "asked"])
def test_evaluate_records_the_tolerance(asked, recorded, run, capsys):
    assert main(["evaluate", str(run), "--split", "train", "--num-data", "5", "--num-particles", "30", *asked]) == 0
    assert json.loads((run / "results" / "log_likelihood-train.json").read_text())["tolerance"] == recorded
    assert ("Monte Carlo error within 0.5 nats at " in capsys.readouterr().err) == bool(asked)


def test_real_numbers_in_double_precision_are_trained_on_and_measured(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.randn(40, 5))  # NumPy's own precision
    folder = str(tmp_path / "run")
    assert main(["train", "--data", str(tmp_path / "x.npy"), "--out", folder, *SMALL]) == 0
    assert main(["evaluate", folder, "--num-particles", "30"]) == 0
    assert {t.dtype for t in ppvae.load(folder).model.parameters()} == {torch.float64}


def test_evaluate_takes_other_data_and_names_their_results(run, tmp_path, capsys):
    np.save(tmp_path / "other.npy", (np.random.rand(30, 64) > 0.5).astype(np.float32))
    arguments = ["evaluate", str(run), "--data", str(tmp_path / "other.npy"), "--split", "train", "--num-particles", "10"]
    assert main(arguments) == 0
    assert "other.npy/train" in capsys.readouterr().out
    assert (run / "results" / "elbo-other-train.json").exists()


def test_gaps_prints_and_draws(run, capsys):
    assert main(["gaps", str(run), "--num-data", "8", "--split", "validation"]) == 0
    assert capsys.readouterr().out.startswith("inference gap ")
    assert json.loads((run / "results" / "inference_gaps-validation.json").read_text())["mean"].keys() >= {"approximation"}
    assert (run / "figures" / "gaps-validation.png").exists()


def test_sample_writes_what_the_library_draws(run, tmp_path, capsys):
    out = tmp_path / "drawn.npz"  # also where the suffix is left out
    assert main(["sample", str(run), "--num-data", "6", "--out", str(out.with_suffix("")), "--seed", "3"]) == 0
    template = ppvae.data.load("digits").train.x[:2]
    expected = simulate.sample(ppvae.load(run).model, 6, template=template, seed=3)
    with np.load(out) as archive:
        assert all(np.array_equal(archive[name], value.numpy()) for name, value in expected.items())
    assert f"{out.with_suffix('.png')}: draws at site 'x' as images\n" in capsys.readouterr().out


def test_a_users_program_is_trained_and_found_again(program, tmp_path, monkeypatch):
    monkeypatch.chdir(program.parent)
    assert main(["train", "--program", "my_vae.py:pair", "--out", "run", "--epochs", "1"]) == 0
    monkeypatch.chdir(Path(__file__).parent)  # the run folder knows the file by its absolute path
    assert main(["evaluate", str(tmp_path / "run"), "--num-data", "5", "--num-particles", "10"]) == 0


def test_a_users_program_that_changed_is_refused(program, tmp_path, capsys):
    assert main(["train", "--program", f"{program}:pair", "--out", str(tmp_path / "run"), "--epochs", "1"]) == 0
    program.write_text(PROGRAM + "\n")
    code, text = failure(capsys, "evaluate", tmp_path / "run")
    assert code == 74
    assert text.startswith(f"error: {program} has changed since the run was trained")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run on a user's file of real numbers, given by a relative path."""
    np.savez(tmp_path / "own.npz", x=np.random.randn(40, 5).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "own.npz", "--out", "run", *SMALL]) == 0
    return tmp_path


def test_a_users_file_is_found_again_from_elsewhere(own, monkeypatch, capsys):
    monkeypatch.chdir(own.parent)
    assert main(["evaluate", str(own / "run"), "--num-particles", "10"]) == 0
    assert f"{own / 'own.npz'}/test" in capsys.readouterr().out


def test_a_users_file_that_is_gone_is_told_with_the_remedy(own, capsys):
    (own / "own.npz").unlink()
    text = (
        f"error: the data of {own / 'run'} are not to be found: the run recorded '{own / 'own.npz'}'\n"
        f"  where: {own / 'run' / 'config.json'}\n"
        f"  mend:  --data FILE, or --data NAME, one of {', '.join(ppvae.data.names())}; in Python data=..."
    )
    capsys.readouterr()
    assert failure(capsys, "evaluate", own / "run") == (65, text)


def test_a_users_file_that_changed_is_refused(own, capsys):
    np.savez(own / "own.npz", x=np.random.randn(40, 5).astype(np.float32))
    code, text = failure(capsys, "gaps", own / "run")
    assert code == 65
    assert text.startswith(f"error: '{own / 'own.npz'}' no longer holds the data that {own / 'run'} was trained on")


def test_samples_that_are_no_images_say_so(own, capsys):
    assert main(["sample", "run", "--num-data", "5"]) == 0
    told = "run/samples.png: draws at site 'x' as a heat map, for rows that are no images (--image-shape H W says that they are)\n"
    assert capsys.readouterr().out.endswith(told)


def test_a_run_of_a_script_on_digits_is_measured(run, tmp_path, capsys):
    folder = fit_in_python(tmp_path / "run", ppvae.data.load("digits").train[:200])
    code, text = failure(capsys, "evaluate", folder, "--num-particles", "10")
    assert code == 65  # 200 of its rows are other data than digits
    assert "no longer holds the data" in text
    assert main(["evaluate", str(folder), "--data", "digits", "--num-particles", "10"]) == 0


def fit_in_python(folder, data):
    model, guide, _ = pairs.pair(data, options.Check(hidden=(8,), latent_dim=2))
    ppvae.fit(model, guide, data, epochs=1, out=folder)
    return folder


def test_a_run_of_a_script_on_arrays_asks_for_the_data(tmp_path, capsys):
    folder = fit_in_python(tmp_path / "run", Data.of(torch.randn(20, 3)))
    code, text = failure(capsys, "gaps", folder)
    assert code == 65
    assert text.startswith(f"error: the data of {folder} are not to be found: the run recorded 'array'\n")


# demo


@pytest.mark.slow
def test_demo_prints_three_sentences_and_writes_figures_and_a_report(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--epochs", "1", "--num-particles", "50", "--num-data", "30"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split(" ")[0] for line in lines[:3]] == ["ELBO", "log", "inference"]
    assert lines[3] == f"report: {out}/report.html"
    figures = [f"figure: {out}/figures/{name}.png" for name in ("training", "reconstructions", "samples", "gaps")]
    assert [line for line in shown.err.splitlines() if line.startswith("figure: ")] == figures
    assert "Take care" in (out / "report.html").read_text() or "Good" in (out / "report.html").read_text()
    assert sorted(path.stem for path in (out / "figures").iterdir()) == ["gaps", "reconstructions", "samples", "training"]
