"""Every error that a command can end with, by its whole text, as messages.txt has it: what was needed and came, where, how to mend it."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import pyro
import pytest
import torch
from scipy.io import savemat
from test_resume import unsealed

from ppvae.analysis.report import page
from ppvae.cli import MOST_LINES, main
from ppvae.data import download
from ppvae.options import COMMANDS

SMALL = ["--hidden", "8", "--latent-dim", "2", "--epochs", "1", "--threads", "1"]
FEW = ["--num-data", "5", "--num-particles", "30"]


@pytest.fixture(autouse=True)
def single_precision(fresh):
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on digits, made once and copied by those tests that need one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("messages") / "run"
    assert main(["train", "--out", str(folder), *SMALL]) == 0
    torch.set_default_dtype(before)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, empty: paths in messages are then relative, and short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offline(here, monkeypatch):
    """No network, and nothing in the folder of downloads."""

    def unreachable(*_, **__):
        raise urllib.error.URLError(OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)))

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("PPVAE_DATA", str(here / "data"))


def failure(capsys, arguments):
    """Exit code, and the error without the lines before it, which say what is about to happen."""
    pyro.clear_param_store()
    capsys.readouterr()
    code = main(list(map(str, arguments)))
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    told = lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :]
    assert len(told) <= MOST_LINES
    assert shown.out == ""
    return code, "\n".join(told)


# Numbers that make no sense, before anything is imported or read


@pytest.mark.parametrize("source", ["line", "file"])
@pytest.mark.parametrize(
    ("command", "option", "value", "needed", "default"),
    [
        ("train", "--epochs", 0, "a whole number of at least 1", 100),
        ("demo", "--epochs", -1, "a whole number of at least 1", 200),
        ("train", "--batch-size", 0, "a whole number of at least 1", 128),
        ("train", "--patience", 0, "a whole number of at least 1", None),
        ("train", "--rollbacks", -1, "a whole number of at least 0", 3),
        ("train", "--threads", -1, "a whole number of at least 1", None),
        ("train", "--latent-dim", 0, "a whole number of at least 1", 8),
        ("check", "--hidden", 0, "a whole number of at least 1", 256),
        ("train", "--size", 0, "a whole number of at least 1", None),
        ("train", "--lr", 0.0, "a number above 0", 0.001),
        ("train", "--lr", float("nan"), "a number above 0", 0.001),
        ("train", "--clip-norm", -1.0, "a number above 0", None),
        ("train", "--beta", -0.5, "a number of at least 0", 1.0),
        ("train", "--beta", float("inf"), "a number of at least 0", 1.0),
        ("train", "--checkpoint-every", -1.0, "a number of at least 0", 60.0),
        ("train", "--warmup", 2.0, "a share of the steps, from 0 to 1", 0.0),
        ("data", "--levels", 0.0, "a number above 0", None),
        ("evaluate", "--num-particles", 0, "a whole number of at least 1", 5000),
        ("evaluate", "--num-data", -1, "a whole number of at least 1", None),
        ("evaluate", "--tolerance", 0.0, "a number above 0", None),
        ("evaluate", "--calibration", 19, "a whole number of at least 20", None),
        ("gaps", "--num-data", 0, "a whole number of at least 1", 200),
        ("sample", "--num-data", 0, "a whole number of at least 1", 64),
        ("sample", "--columns", 0, "a whole number of at least 1", 8),
        ("interpolate", "--steps", 1, "a whole number of at least 2", 9),
        ("attribute", "--strength", float("nan"), "a finite number", 1.0),
    ],
    ids=lambda value: str(value) if isinstance(value, str) and value.startswith("--") else "",
)
def test_a_number_that_makes_no_sense(command, option, value, needed, default, source, here, capsys):
    known = {"evaluate": ["run"], "gaps": ["run"], "sample": ["run"], "interpolate": ["run"], "attribute": ["run", "--positive", "1"]}
    arguments = [command, *known.get(command, []), f"{option}={value}"]
    if source == "file":
        shown = [value] if option == "--hidden" else value
        (here / "s.toml").write_text(f"{option.removeprefix('--')} = {shown}\n")
        arguments = [command, *known.get(command, []), "--config", "s.toml"]
    remedy = "leave it out" if default is None else f"leave it out: {option} {default} is the default"
    assert failure(capsys, arguments) == (2, f"error: {option} is {needed}, got {value}\n  mend:  {remedy}")


# What must stand in the folder for a message, and the message


def write(name, content):
    """A text file of this content."""
    return lambda: Path(name).write_text(content)


def array(values, name="x.npy"):
    """An array in a file."""
    return lambda: np.save(name, values() if callable(values) else values)


def changed(name, /, *path, **fields):
    """A JSON record of the run, with other fields."""

    def change():
        whole = record = json.loads(Path(name).read_text())
        for step in path:
            record = record[step]
        record.update(fields)
        Path(name).write_text(json.dumps(whole, indent=1))
        if name in ("run/program.json", "run/config.json"):
            unsealed(Path("run"))

    return change


def gone(name):
    """Without a file, or a folder."""
    return lambda: shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)


def cut(name, size=-3):
    """A file without its end."""

    def shorten():
        Path(name).write_bytes(Path(name).read_bytes()[:size])

    return shorten


def pipe(name):
    """A named pipe in the place of a file."""

    def make():
        os.remove(name)
        os.mkfifo(name)

    return make


def faces(**contents):
    """The three files of CelebA, some of this content."""

    def make():
        os.makedirs("data/celeba")
        for name in ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"):
            (Path("data/celeba") / name).write_text(contents.get(name.split(".")[0], "2\nSmiling Male\na.jpg 1 -1\nb.jpg -1 1\n"))

    return make


def archive_of_omniglot():
    os.makedirs("data/omniglot")
    Path("data/omniglot/images_background.zip").write_text("no zip")


def held():
    """The run, in the hands of another process."""
    holding.append(filelock.FileLock("run/.lock"))
    holding[-1].acquire()
    Path("run/.lock-holder").write_text("process 17 on elsewhere")


holding: list[filelock.BaseFileLock] = []


def config_below_runs():
    """All that says that a folder holds a run."""
    os.makedirs("runs/run")
    write("runs/run/config.json", "{}")()


def relaxed():
    """Two evaluated runs, the results of the first under a measure that is none."""
    assert main(["evaluate", "run", *FEW]) == 0
    shutil.copytree("run", "other")
    for kind in ("elbo", "log_likelihood"):
        changed(f"run/results/{kind}-test.json", "source", measure="relaxed (not a probability)")()


def of_a_program(source):
    """A user's file p.py."""
    return write("p.py", source)


def run_of(source):
    """A run of a user's program on real numbers."""

    def make():
        of_a_program(source)()
        np.save("x.npy", np.random.default_rng(0).standard_normal((40, 3)).astype("f"))
        assert main(["train", "--data", "x.npy", "--program", "p.py:pair", "--out", "own", "--epochs", "1", "--threads", "1"]) == 0

    return make


def parquet_of_dates():
    pyarrow = pytest.importorskip("pyarrow", reason="of the extra parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"when": pyarrow.array([0, 1], pyarrow.date32())}), "x.parquet")


COIN = """
import pyro, pyro.distributions as dist, torch

def pair(x):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.5)))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        p = pyro.param("p", lambda: torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(p))

    return model, guide
"""
UNGUIDED = """
import pyro, pyro.distributions as dist

def pair(x):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=x)

    return model, lambda x: None
"""

OVERFLOWING = """
import pyro, pyro.distributions as dist

def pair(x):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            scale = pyro.param("scale", lambda: x.new_tensor(1e-200))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    return model, guide
"""

# What a message needs to find, by the words behind its command in messages.txt.
FOUND = {
    "config is no TOML": write("s.toml", "epochs"),
    "config is a list": write("s.json", "[1]"),
    "unknown option": write("s.toml", "folde = 1"),
    "no number": write("s.toml", "lr = true"),
    "no whole number": write("s.toml", "epochs = 'three'"),
    "no truth": write("s.toml", "resume = 1"),
    "no string": write("s.toml", "data = 3"),
    "no path": write("s.toml", "out = 3"),
    "no list": write("s.toml", "hidden = 3"),
    "a list of something else": write("s.toml", "hidden = ['a']"),
    "no choice": write("s.toml", "compile = 'maybe'"),
    "a run of these data": config_below_runs,
    "no labels": array(np.eye(64)),
    "another width": array(np.eye(5)),
    "another width to encode": array(np.eye(5)),
    "another width to report": array(np.eye(5)),
    "config that is no JSON": cut("run/config.json", 1),
    "config of something else": write("run/config.json", "{}"),
    "config without a shape": changed("run/config.json", "data", event_shape=None),
    "command of something else": write("run/command.json", "[]"),
    "no config": gone("run/config.json"),
    "no program": gone("run/program.json"),
    "a digit of the program": lambda: Path("run/program.json").write_text(Path("run/program.json").read_text().replace("2", "3", 1)),
    "program of something else": changed("run/program.json", how=None),
    "a model that is a number": changed("run/program.json", model=3),
    "nothing in it": of_a_program("x = 1"),
    "a program of Python's": changed("run/program.json", how="python", why="a lambda"),
    "no checkpoints": gone("run/checkpoints"),
    "no template": gone("run/template.json"),
    "template that is a pipe": pipe("run/template.json"),
    "template of a later version": changed("run/template.json", schema=9),
    "template without its fields": changed("run/template.json", more=1),
    "template of another state": changed("run/template.json", state={"structure": "tensor", "more": 1}),
    "template of another name": changed("run/template.json", name="step-00000000"),
    "template of other bytes": changed("run/template.json", size=1),
    "template that is no record": write("run/template.json", "{}"),
    "tensors cut short": cut("run/template.safetensors"),
    "no tensors": gone("run/template.safetensors"),
    "run below a file": write("f", ""),
    "run in the place of a file": write("f", ""),
    "samples": write("f", ""),
    "codes": write("f", ""),
    "interpolation": write("f", ""),
    "report": write("f", ""),
    "comparison": write("f", ""),
    "relaxed against true": relaxed,
    "name left out": of_a_program("def pair(x): pass"),
    "name misspelt": of_a_program("def pair(x): pass"),
    "no Python": of_a_program("def ("),
    "a module that is missing": of_a_program("import no_such_module"),
    "raises": of_a_program("def pair(x): raise KeyError('none')"),
    "two arguments": of_a_program("def pair(x, y): pass"),
    "makes nothing": of_a_program("def pair(x): pass"),
    "makes no callables": of_a_program("def pair(x): return 1, 2"),
    "fails in training": of_a_program("def model(x): raise RuntimeError('boom')\n\ndef pair(x): return model, model\n"),
    "misses a latent": lambda: [of_a_program(UNGUIDED)(), array(np.eye(3) / 2)()],
    "changed since": lambda: [run_of(COIN)(), write("p.py", "x = 1")()],
    "gone since": lambda: [run_of(COIN)(), gone("p.py")()],
    "gaps of discrete latents": run_of(COIN),
    "codes of discrete latents": run_of(COIN),
    "unknown form": write("x.docx", ""),
    "size of an array": array(np.eye(3)),
    "not finite": array(np.array([[1.0, 2.0], [np.nan, 3.0]])),
    "nothing observed": array(np.full((4, 2), np.nan)),
    "one row": array(np.arange(4.0)),
    "objects": array(np.array([{}, None])),
    "cut short": lambda: [array(np.eye(3))(), cut("x.npy")()],
    "too few to split": array(np.ones((1, 3))),
    "bytes of unknown white": array(np.arange(12).reshape(4, 3)),
    "above white": array(np.arange(12).reshape(4, 3)),
    "counts": array(np.arange(20).reshape(4, 5)),
    "matrices": array(np.ones((9, 3, 5)) / 2),
    "not square": array(np.ones((9, 36)) / 2),
    "outside the support": array(np.eye(6) / 4),
    "ragged table": write("x.csv", "a,b\n1,2\n3\n"),
    "table of words": write("x.csv", "a,b\n1,2\n3,four\n"),
    "column of labels": write("x.csv", "a,b\n1,2\n3,4\n"),
    "empty table": write("x.csv", ""),
    "header alone": write("x.csv", "a,b\n"),
    "dates": parquet_of_dates,
    "lines too long": write("x.txt", "a" * 70),
    "no music": write("x.json", "{"),
    "no pieces": write("x.json", "{}"),
    "a piece without frames": write("x.json", '{"train": [1], "valid": [[[60]]], "test": [[[60]]]}'),
    "no key of a piano": write("x.json", '{"train": [[[60], [7]]], "valid": [[[60]]], "test": [[[60]]]}'),
    "empty folder": lambda: os.mkdir("folder"),
    "no archive": write("x.zip", "no archive"),
    "no IDX file": write("x-idx3-ubyte", "something else"),
    "no MATLAB file": write("x.mat", "something else"),
    "another MATLAB file": lambda: savemat("x.mat", {"data": np.zeros((784, 2)), "target": np.zeros((50, 2))}),
    "a damaged archive of drawings": archive_of_omniglot,
    "a damaged archive of faces": faces(img_align_celeba="no zip", list_eval_partition="a.jpg 0\nb.jpg 1\n"),
    "an attribute that no face has": faces(list_eval_partition="a.jpg 0\nb.jpg 1\n"),
    "a partition of something else": faces(list_eval_partition="a.jpg x\n"),
    "held by another process": held,
    "the first loss is infinite": lambda: [of_a_program(OVERFLOWING)(), array(np.eye(3) / 2)()],
}


@dataclass(frozen=True)
class Case:
    """A command with its error."""

    arguments: list[str]
    name: str
    text: str
    code: int


def cases():
    """Those of messages.txt."""
    for block in re.findall(
        r"^\$ ppvae .*?^\[\d+\]$", (Path(__file__).parent / "messages.txt").read_text(), flags=re.DOTALL | re.MULTILINE
    ):
        command, *told, code = block.splitlines()
        words, _, name = command.removeprefix("$ ppvae ").rpartition("  # ")
        arguments = [part for word in shlex.split(words) for part in (SMALL if word == "SMALL" else [word])]
        yield Case(arguments, name, "\n".join(told), int(code.strip("[]")))


CASES = {case.name: case for case in cases()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_error_has_the_text_that_is_written_down(case, here, offline, trained, capsys):
    if {"run", "rum"} & set(case.arguments):
        shutil.copytree(trained, here / "run")
    if case.name in FOUND:
        FOUND[case.name]()
    assert failure(capsys, case.arguments) == (case.code, case.text.replace("HERE", str(here)))


def test_a_page_of_tables_that_are_too_large_is_not_written(here, trained, capsys, monkeypatch):
    shutil.copytree(trained, here / "run")
    monkeypatch.setattr(page, "LARGEST", 1000)
    code, told = failure(capsys, ["report", "run"])
    assert (code, told) == (
        74,
        "error: the tables of this report alone are above 3 MB\n  mend:  move results that it need not show out of the run's folder results",
    )
    assert not (here / "run" / "report.html").exists()


def test_what_is_made_is_looked_for():
    assert FOUND.keys() <= CASES.keys()
    assert {case.arguments[0] for case in CASES.values()} >= COMMANDS.keys() - {"demo", "models", "guides"}  # which open nothing
