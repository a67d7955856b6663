"""A user's pair by file and name: found, run, hashed; and what it says where it cannot."""

from __future__ import annotations

import hashlib
import sys

import pytest
import torch

from ppvae import factory
from ppvae.errors import MissingFileError, ProgramError

SOURCE = """
import dataclasses
import torch
import beside

def model(x): return "model"
def guide(x): return "guide"
def make_pair(): return model, guide
def make_sized(x): return (lambda y: x.shape[1]), guide
def make_list(): return [model, guide]
def with_default(width=3): return (lambda y: width), guide

@dataclasses.dataclass
class VAE:
    width: int = beside.WIDTH
    def model(self, x): return self.width
    def guide(self, x): return self.width

def three(): return model, guide, model
def number(): return 3
def not_callable(): return model, 4
def two_arguments(x, width): return model, guide
def fails(): raise RuntimeError("no data here")
CONSTANT = 5
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 7\n")
    (tmp_path / "my pairs.py").write_text(SOURCE)
    yield tmp_path / "my pairs.py"
    sys.modules.pop("beside", None)


X = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("name", "answer"),
    [("make_pair", "model"), ("make_sized", 5), ("make_list", "model"), ("with_default", 3), ("VAE", 7)],
    ids=["pair", "sized by the data", "list", "default", "class"],
)
def test_factory_makes_a_pair(name, answer, path):
    model, _, _ = factory.build(f"{path}:{name}", X)
    assert model(X) == answer


def test_record_has_file_name_and_hash(path):
    _, _, record = factory.build(f"{path}:make_pair", X)
    assert record == {"file": str(path), "name": "make_pair", "sha256": hashlib.sha256(SOURCE.encode()).hexdigest()}


def test_path_of_imports_is_left_as_it_was(path):
    before = list(sys.path)
    factory.build(f"{path}:make_pair", X)
    assert sys.path == before


NOT_A_PAIR = "must make a pair (model, guide) of callables, it made"
BAD = {
    "three": (
        "three",
        f"'{{}}' {NOT_A_PAIR} tuple\n  mend:  return model, guide\n     or: return an object with the attributes model and guide",
    ),
    "number": (
        "number",
        f"'{{}}' {NOT_A_PAIR} int\n  mend:  return model, guide\n     or: return an object with the attributes model and guide",
    ),
    "no program": (
        "not_callable",
        f"'{{}}' {NOT_A_PAIR} tuple\n  mend:  return model, guide\n     or: return an object with the attributes model and guide",
    ),
    "two arguments": (
        "two_arguments",
        "'{}' takes the arguments x, width; a factory takes a few rows of the data, or nothing\n  mend:  give the others default values",
    ),
    "fails": ("fails", "'{}' failed: RuntimeError: no data here\n  where: program '{}'"),
}


@pytest.mark.parametrize(("name", "text"), BAD.values(), ids=BAD)
def test_what_makes_no_pair_is_refused(name, text, path):
    spec = f"{path}:{name}"
    with pytest.raises(ProgramError) as raised:
        factory.build(spec, X)
    assert str(raised.value) == text.format(*[spec] * text.count("{}"))


ALL = "model, guide, make_pair, make_sized, make_list, with_default, VAE, three, number, not_callable, two_arguments, fails"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("make_piar", "did you mean 'make_pair'?"), ("vae", "did you mean 'VAE'?"), ("zzz", f"it has {ALL}"), ("CONSTANT", f"it has {ALL}")],
    ids=["misspelt", "case", "unknown", "no function"],
)
def test_missing_name_is_helped(name, hint, path):
    with pytest.raises(ProgramError) as raised:
        factory.build(f"{path}:{name}", X)
    assert str(raised.value) == f"{path} has no function or class '{name}'\n  where: program '{path}:{name}'\n  mend:  {hint}"


@pytest.mark.parametrize("spec", ["gone.py:make", "gone.py"], ids=["file and name", "file"])
def test_missing_file_is_named(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=rf"where: program '{spec}'\n  mend:  a program is given as file.py:function"):
        factory.build(spec, X)


def test_file_without_a_name_says_so(path):
    with pytest.raises(ProgramError) as raised:
        factory.build(str(path), X)
    assert str(raised.value) == f"which function or class of {path}?\n  where: program '{path}'\n  mend:  it has {ALL}"


def test_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ProgramError, match=r"notes.txt is no Python file\n  where: .*\n  mend:  a program is given as file.py:function"):
        factory.build(f"{tmp_path / 'notes.txt'}:make", X)


@pytest.mark.parametrize(
    ("source", "text"),
    [("import gone_module", "ModuleNotFoundError: No module named 'gone_module'"), ("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")],
    ids=["import", "error", "syntax"],
)
def test_file_that_fails_on_import_says_why(source, text, tmp_path):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ProgramError, match=rf"bad.py fails on import: {text}"):
        factory.build(f"{tmp_path / 'bad.py'}:make", X)


def test_two_files_of_one_name_are_two_programs(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vae.py").write_text(f"def make(): return (lambda x: '{folder}'), (lambda x: None)\n")
    models = [factory.build(f"{tmp_path / folder / 'vae.py'}:make", X)[0] for folder in ("a", "b")]
    assert [model(X) for model in models] == ["a", "b"]
