"""What every command understands: a file of options, the options printed, one JSON object; and the lists."""

from __future__ import annotations

import io
import json
import shlex
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import ppvae
from ppvae import cli, config_file, options, output
from ppvae.cli import main
from ppvae.commands import check
from ppvae.errors import DataError, MissingFileError, UsageError
from ppvae.progress import Progress

SMALL = ["--hidden", "8", "--latent-dim", "2", "--epochs", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def single_precision(fresh):
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("common") / "runs" / "digits"
    assert main(["train", "--out", str(folder), *SMALL]) == 0
    torch.set_default_dtype(before)
    return folder


def failure(capsys, *arguments):
    code = main(list(map(str, arguments)))
    lines = capsys.readouterr().err.splitlines()
    return code, "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :])


# A file of options


def test_file_gives_options_and_the_line_wins(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('data = "fashion-mnist"\nepochs = 7\nlr = 1\nhidden = [400, 200]\nresume = true\nclip-norm = 10\nout = "runs/x"\n')
    found = cli._parsed("train", ["--epochs", "9"], path)
    expected = options.Train(data="fashion-mnist", epochs=9, lr=1.0, hidden=(400, 200), resume=True, clip_norm=10.0, out=found.out)
    assert found == expected
    assert str(found.out) == "runs/x"


def test_a_key_of_100_000_parts_is_refused_before_it_is_parsed(tmp_path, capsys):
    """tomllib takes 40 seconds and 10 GB for it."""
    (tmp_path / "deep.toml").write_text("a" + ".a" * 100_000 + " = 1")
    code, text = failure(capsys, "train", "--config", tmp_path / "deep.toml")
    assert (code, text.splitlines()[0]) == (2, f"error: {tmp_path / 'deep.toml'} cannot be read: a line of more than 1000 dots")


def test_a_folder_may_come_from_the_file_or_from_the_line(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text("num_particles = 50\n")
    assert cli._parsed("evaluate", ["runs/a"], path).num_particles == 50
    path.write_text('run = "runs/b"\n')
    assert str(cli._parsed("evaluate", [], path).run) == "runs/b"


def test_printed_options_give_themselves_again(tmp_path, capsys):
    arguments = ["train", "--data", 'a "quoted" name.npy', "--hidden", "3", "4", "--lr", "0.0003", "--no-flatten", "--compile", "no"]
    assert main([*arguments, "--print-config"]) == 0
    path = tmp_path / "printed.toml"
    path.write_text(capsys.readouterr().out)
    assert cli._parsed("train", [], path) == cli._parsed("train", arguments[1:])


def test_a_run_keeps_a_file_that_makes_it_again(run):
    found = cli._parsed("train", [], run / "command.json")
    assert (found.hidden, found.latent_dim, found.epochs, found.out) == ((8,), 2, 1, run)


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("epoch = 3", UsageError, "gives 'epoch', which is no option of this command\n  mend:  did you mean 'epochs'?"),
        ('epochs = "three"', UsageError, "epochs is a whole number, got 'three'"),
        ("epochs = true", UsageError, "epochs is a whole number, got True"),
        ("hidden = 3", UsageError, "hidden is a list of whole numbers, got 3"),
        ('compile = "maybe"', UsageError, "compile is one of auto, yes, no, got 'maybe'"),
        ("epochs", UsageError, "cannot be read: "),
        (None, MissingFileError, "--print-config prints one to start from"),
    ],
    ids=["name", "kind", "bool", "list", "choice", "syntax", "missing"],
)
def test_wrong_file_is_told(text, error, told, tmp_path):
    path = tmp_path / "settings.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error) as caught:
        config_file.defaults(options.Train, config_file.read(path), path)
    assert told in str(caught.value)


def test_wrong_file_is_a_usage_error(tmp_path, capsys):
    path = tmp_path / "settings.toml"
    path.write_text("epoch = 3")
    assert failure(capsys, "train", "--config", path)[0] == 2
    assert failure(capsys, "train", "--config", tmp_path / "none.toml")[0] == 66
    assert failure(capsys, "train", "--config")[0] == 2


# JSON


def test_json_is_all_that_stands_on_stdout(run, capsys):
    assert main(["evaluate", str(run), "--num-data", "20", "--num-particles", "30", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["exit_code"] == 0
    assert found["log_likelihood"] == json.loads((run / "results" / "log_likelihood-test.json").read_text())
    assert "log p(x) = " in shown.err


def test_json_of_an_error_tells_what_the_lines_tell(capsys):
    assert main(["check", "--program", "mpl", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2
    assert found["error"]["problem"] == "there is no program 'mpl'"
    assert found["error"]["mend"][0] == "did you mean 'mlp'?"


@pytest.mark.parametrize(
    ("arguments", "problem", "mend"),
    [
        (["gaps", "a", "--num-dta", "3"], "Unrecognized options: --num-dta, 3", ["did you mean --num-data?"]),
        (
            ["gaps", "a", "--num-data", "x"],
            "Error parsing --num-data: no type matching {None}|INT could be instantiated from ['x'].",
            [],
        ),
        (["gaps"], "Missing from ppvae gaps: RUN A run folder. (required)", []),
    ],
    ids=["misspelt", "no number", "missing"],
)
@pytest.mark.parametrize("lines", [True, False], ids=["in a box", "without lines"])
def test_json_of_arguments_that_cannot_be_read(arguments, problem, mend, lines, monkeypatch, capsys):
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: lines)
    assert main([*arguments, "--json"]) == 2
    told = capsys.readouterr()
    mend = [*mend, "`ppvae gaps --help` tells the options"]
    assert json.loads(told.out) == {"exit_code": 2, "error": {"problem": problem, "where": "", "mend": mend}}
    assert told.err.startswith(f"error: {problem}\n  mend:  {mend[0]}")


def test_json_has_no_bare_nan(monkeypatch, capsys):
    def tells(_):
        check.tell("numbers", "text", {"a": [float("nan"), float("-inf"), 1.5]})
        return 0

    monkeypatch.setattr(check, "run", tells)
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["numbers"] == {"a": ["nan", "-inf", 1.5]}


# On a terminal


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Bernoulli   one two three four", "  Bernoulli   one two three\n              four"),
        ("     or: one two three four five six", "     or: one two three four\n         five six"),
        ("log p(x) = -1.00 nats of many data", "log p(x) = -1.00 nats of many\n  data"),
        ("short", "short"),
    ],
    ids=["a name", "a second remedy", "a sentence", "short"],
)
def test_long_lines_are_broken_below_what_they_say(line, shown, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", "30")
    assert output._fitted(line, terminal) == shown
    assert output._fitted(line, io.StringIO()) == line


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_tells_the_command_that_goes_on(number, code, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--out", str(out), *SMALL[:4], "--epochs", "4", "--threads", "1"]
    epoch = Progress.epoch

    def interrupting(self, row, *rest):
        epoch(self, row, *rest)
        if row["epoch"] == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(Progress, "epoch", interrupting)
    assert main([*arguments, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["run"]["stopped"]) == (code, "interrupt")
    monkeypatch.undo()
    torch.set_default_dtype(torch.float32)
    assert main(shlex.split(told["run"]["resume"])[1:]) == 0
    whole = tmp_path / "whole"
    assert main(["train", "--out", str(whole), *arguments[3:]]) == 0
    first, other = (ppvae.load(folder) for folder in (out, whole))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True))


# Errors


def test_error_has_at_most_twelve_lines(monkeypatch, capsys):
    def fails(_):
        raise DataError("\n".join(map(str, range(40))), mend="look")

    monkeypatch.setattr(check, "run", fails)
    code, text = failure(capsys, "check")
    assert (code, len(text.splitlines())) == (65, 12)
    assert text.splitlines()[-1] == "  ... and 30 lines more: --debug shows them"


def test_misspelt_option_tells_the_nearest(capsys):
    assert main(["train", "--epoch", "3"]) == 2
    told = capsys.readouterr().err
    assert "--epochs" in told
    assert len(told.splitlines()) <= 12


# Lists


def test_runs_tells_every_run_and_what_is_wrong_with_one(run, capsys):
    broken = run.with_name("broken")
    broken.mkdir(exist_ok=True)
    (broken / "program.json").write_text("{")
    (broken / "config.json").write_text("{")
    assert main(["runs", str(run.parent), "--json"]) == 0
    found = {row["run"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert found[str(run)]["epochs"] == "1/1"
    assert found[str(run)]["train_elbo"] == pytest.approx(ppvae.load(run).history[-1]["train_elbo"])
    assert failure(capsys, "runs", run.parent / "none")[0] == 66


def test_data_tells_what_a_set_holds(capsys):
    assert main(["data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert {name: part["num_data"] for name, part in found.items()} == {"train": 1077, "validation": 360, "test": 360}
    assert sum(sum(part["labels"].values()) for part in found.values()) == 1797
    assert main(["data"]) == 0
    assert capsys.readouterr().out.startswith("digits, ")


@pytest.mark.parametrize("name", ["models", "guides"])
def test_lists_name_every_public_part_with_a_line(name, capsys):
    assert main([name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[name]
    parts = found["models"] if name == "models" else found
    package = getattr(ppvae, name)
    assert parts.keys() == {part for part in package.__all__ if isinstance(getattr(package, part), type | types.FunctionType)}
    assert all(len(text) > 10 for text in parts.values())


# Commands that look into the latent space


@pytest.mark.parametrize(
    ("arguments", "name", "arrays"),
    [
        (["encode"], "codes", {"mean": (360, 2), "sd": (360, 2), "labels": (360,)}),
        (["interpolate", "--steps", "5"], "interpolation", {"images": (3, 5, 64), "z": (3, 5, 2), "kinds": (3,)}),
        (["interpolate", "--path", "straight", "--end", "3"], "interpolation", {"images": (1, 9, 64), "z": (1, 9, 2), "kinds": (1,)}),
        (["traverse", "--steps", "4", "--row", "2"], "traversal", {"images": (2, 4, 64), "z": (2, 4, 2), "dimensions": (2,)}),
        (["attribute", "--positive", "8", "--negative", "3"], "attribute", {"vector": (2,), "images": (8, 6, 64), "z": (8, 6, 2)}),
    ],
    ids=["encode", "interpolate", "one path", "traverse", "attribute"],
)
def test_commands_write_arrays_and_a_figure(arguments, name, arrays, run, capsys):
    assert main([arguments[0], str(run), *arguments[1:], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[name]
    found = np.load(told["file"])
    assert {key: found[key].shape for key in found.files} == arrays
    assert Path(told["figure"]).read_bytes().startswith(b"\x89PNG")


def test_codes_written_are_those_of_the_guide(run, capsys):
    assert main(["encode", str(run), "--num-data", "5", "--out", str(run / "few")]) == 0
    loaded = ppvae.load(run)
    posterior = ppvae.simulate.encode(loaded.guide, ppvae.data.load("digits").test.x[:5])
    assert np.allclose(np.load(run / "few.npz")["mean"], posterior.mean.numpy(), rtol=0, atol=1e-6)


def test_ends_of_an_interpolation_are_the_codes(run, capsys):
    assert main(["interpolate", str(run), "--start", "4", "--end", "9", "--json"]) == 0
    found = np.load(json.loads(capsys.readouterr().out)["interpolation"]["file"])
    posterior = ppvae.simulate.encode(ppvae.load(run).guide, ppvae.data.load("digits").test.x[[4, 9]])
    for path in found["z"]:
        assert np.allclose(path[[0, -1]], posterior.mean.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["interpolate", "--path", "spherica"], 2, "there is no path 'spherica'\n  mend:  did you mean 'spherical'?"),
        (["interpolate", "--end", "9999"], 2, "--end is a row of digits/test, 0 to 359, got 9999"),
        (["traverse", "--dims", "7"], 2, "7"),
        (["attribute", "--positive", "11"], 2, "11"),
        (["encode", "--split", "tset"], 2, "did you mean 'test'?"),
    ],
    ids=["path", "row", "dimension", "label", "split"],
)
def test_what_is_not_there_is_a_usage_error(arguments, code, told, run, capsys):
    found, text = failure(capsys, arguments[0], run, *arguments[1:])
    assert found == code
    assert told in text
