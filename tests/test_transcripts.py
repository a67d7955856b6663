"""Each error that the code can raise has its whole text in messages.txt or raised.txt, and each text there is one that the code raises.

What is read of the code is its text: every construction of one of our errors, or of a finding of ``check``, with the pieces of its problem that
are written out. Between them anything may stand.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raised
from ppvae import errors, memory, ranks, storage
from ppvae.cli import MOST_LINES
from ppvae.errors import PpvaeError, RunError

MESSAGES = Path(__file__).with_name("messages.txt")
ANY = "\0"  # whatever a value is written as
DEEPEST = 3  # names that stand for names
KINDS = {
    kind.__name__
    for module in (errors, memory, ranks)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, PpvaeError)
}

HELPERS = ("ppvae/errors.py", "ppvae/storage.py")  # build errors that other modules raise

# Errors that are in neither transcript, by file and problem; the reason.
UNTOLD = {
    ("ppvae/cli.py", "interrupted"): "a signal in the middle of a command: test_cli.py holds the text",
    ("ppvae/cli.py", "memory ran out"): "whatever the command: test_memory.py holds the text",
    ("ppvae/training.py", "the ELBO is no number"): "caught where it is raised from: rollback.py says what diverged",
}


class Call(NamedTuple):
    """A call of a plain name, in its scopes, the innermost first."""

    name: str
    node: ast.Call
    scopes: tuple[ast.AST, ...]


@dataclass(frozen=True)
class Site:
    """A problem as the code writes it, ANY for each of its values."""

    file: str
    line: int
    kind: str
    problem: str

    @property
    def told(self) -> str:
        """For people, and for the keys of UNTOLD."""
        return self.problem.replace(ANY, "…")

    def is_in(self, text: str) -> bool:
        """Whether a text holds the problem: from a beginning of a sentence to the end of a line."""
        pieces = self.problem.split(ANY)
        if not all(piece in text for piece in pieces):  # most of them, and much faster
            return False
        return re.search(rf"(^|: |; |\(){'.*'.join(map(re.escape, pieces))}($|[;)])", text, flags=re.MULTILINE) is not None

    def may_say(self, text: Text) -> bool:
        """Whether a text may be of this class, by the place where it was raised."""
        if self.kind == "Finding" or not text.module:
            return True
        return text.kind == self.kind and (text.module in (self.file, "in several processes") or self.file in HELPERS)


class Text(NamedTuple):
    """A text of a transcript; messages.txt tells neither module nor class."""

    module: str
    kind: str
    text: str


def sources() -> dict[str, ast.Module]:
    """The library's modules by file; the links inside ppvae/ are not followed, since they lead to folders that are read anyway."""
    paths = [path for folder in raised.FOLDERS for path in sorted((raised.ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(raised.ROOT)): ast.parse(path.read_text()) for path in paths if path == path.resolve()}


def assigned(scope: ast.AST, name: str) -> Iterator[ast.expr]:
    """What a name is assigned in a scope, alone or in a tuple."""
    for node in [node for node in ast.walk(scope) if isinstance(node, ast.Assign)]:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            yield from (value for one, value in pairs if isinstance(one, ast.Name) and one.id == name)


def built(node: ast.AST, scopes: tuple[ast.AST, ...] = ()) -> Iterator[Call]:
    """Every call of a plain name in a module, with the scopes around it, the innermost first."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
        scopes = (node, *scopes)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield Call(node.func.id, node, scopes)
    for child in ast.iter_child_nodes(node):
        yield from built(child, scopes)


@cache
def calls(module: ast.Module) -> list[Call]:
    """Those of ``built``, looked for once."""
    return list(built(module))


def handed_in(name: str, scopes: tuple[ast.AST, ...]) -> Iterator[tuple[ast.expr, tuple[ast.AST, ...]]]:
    """What the module's own calls give the innermost function as an argument, with the scopes around them."""
    function, module = scopes[0], scopes[-1]
    if not isinstance(function, ast.FunctionDef) or not isinstance(module, ast.Module):
        return
    names = [argument.arg for argument in function.args.args]
    for call in calls(module) if name in names else []:
        if call.name == function.name:
            given = dict(zip(names, call.node.args, strict=False)) | {word.arg: word.value for word in call.node.keywords}
            if name in given:
                yield given[name], call.scopes


def forms(node: ast.expr, scopes: tuple[ast.AST, ...], depth: int = 0) -> list[str]:
    """The ways in which an expression may be written out."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.FormattedValue():
            return forms(node.value, scopes, depth) if isinstance(node.value, ast.IfExp) else [ANY]
        case ast.JoinedStr():
            return each_once("".join(parts) for parts in itertools.product(*(forms(part, scopes, depth) for part in node.values)))
        case ast.BinOp(op=ast.Add()):
            return [left + right for left in forms(node.left, scopes, depth) for right in forms(node.right, scopes, depth)]
        case ast.IfExp():
            return each_once(forms(node.body, scopes, depth) + forms(node.orelse, scopes, depth))
        case ast.Name() if depth < DEEPEST:
            values = next(([(value, scopes) for value in found] for scope in scopes if (found := list(assigned(scope, node.id)))), [])
            values += handed_in(node.id, scopes)
            return each_once(form for value, around in values for form in forms(value, around, depth + 1)) or [ANY]
    return [ANY]


def each_once(written: Iterable[str]) -> list[str]:
    """Without those that came before."""
    return list(dict.fromkeys(written))


@cache
def sites() -> list[Site]:
    """Every error and finding of the code whose problem is written out in part at least."""
    found = []
    for file, module in sources().items():
        for call in calls(module):
            if call.name in KINDS:
                problem = call.node.args[0]
            elif call.name == "Finding" and file.startswith("ppvae/check"):  # analysis.report has findings of its own
                problem = call.node.args[1]
            else:
                continue
            found += [Site(file, call.node.lineno, call.name, form) for form in forms(problem, call.scopes) if form.strip(ANY + ": ")]
    return found


@cache
def texts() -> list[Text]:
    """Those of both transcripts."""
    of_commands = [block for block in MESSAGES.read_text().split("\n\n") if block.startswith("$ ppvae")]
    found = [Text("", "", block[block.index("error: ") + len("error: ") :].rsplit("\n", 1)[0]) for block in of_commands]
    return found + [Text(module, *text.split(": ", 1)) for module, text in sorted(raised.read(raised.TRANSCRIPT.read_text()))]


def is_told(site: Site) -> bool:
    """Whether a transcript has a text of this site."""
    return any(site.may_say(text) and site.is_in(text.text) for text in texts())


def test_every_error_of_the_code_has_its_text():
    untold = {(site.file, site.told): f"{site.file}:{site.line} {site.kind}: {site.told}" for site in sites() if not is_told(site)}
    new = [line for key, line in untold.items() if key not in UNTOLD]
    assert not new, "no test ends on these errors; tests/test_raised.py is the place for it:\n" + "\n".join(new)
    over = UNTOLD.keys() - untold.keys()
    assert not over, f"these have a text by now, or are gone: take them out of UNTOLD: {over}"


def test_every_text_is_one_that_the_code_raises():
    stale = [text.text for text in texts() if not any(site.is_in(text.text) for site in sites())]
    assert not stale, "no code raises these; delete them:\n\n" + "\n\n".join(stale)


def test_no_text_is_longer_than_a_screen():
    assert not [text.text for text in texts() if len(text.text.splitlines()) > MOST_LINES]


def test_a_text_that_is_not_written_down_fails_the_test(monkeypatch):
    monkeypatch.delenv(raised.WRITES, raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"RunError: new\.json cannot be read: it holds more values"), pytest.raises(RunError):
        storage.parsed(b"[" * (storage.MOST_CONTAINERS + 1), Path("new.json"))


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31))
def test_a_text_about_drawn_data_need_not_be_written_down(number):
    with pytest.raises(RunError):
        storage.parsed(b"[" * (storage.MOST_CONTAINERS + 1), Path(f"{number}.json"))


def test_a_new_text_is_added_in_the_order_of_modules(tmp_path, monkeypatch):
    monkeypatch.setattr(raised, "TRANSCRIPT", tmp_path / "raised.txt")
    monkeypatch.setenv(raised.WRITES, "1")
    for module, problem in [("b.py", "two\n  where: there"), ("a.py", "one"), ("b.py", "two\n  where: there")]:
        raised.compare(RunError(problem), module)
    found = (tmp_path / "raised.txt").read_text()
    assert found == raised.HEAD + "\na.py\n----\n\nRunError: one\n\nb.py\n----\n\nRunError: two\n  where: there\n"
    assert raised.read(found) == {("a.py", "RunError: one"), ("b.py", "RunError: two\n  where: there")}


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("/dev/shm/pytest-of-root/pytest-3/popen-gw1/test_a0/run is held", "HERE/run is held"),
        ("process 17 on host-3.lan", "process PID on HOST"),
        ("http://127.0.0.1:36377/file", "http://127.0.0.1:PORT/file"),
        ("5 bytes needed, 1,234 bytes free in run", "5 bytes needed, FREE bytes free in run"),
        ("the loss is 48.1234567 and 1.5", "the loss is 48.123... and 1.5"),
        (f"sha256 {'0a' * 6}..., expected {'b1' * 32}", "sha256 SHA256..., expected SHA256"),
        ("x.zip does not unpack (Bad CRC-32 for file (a))", "x.zip does not unpack (...)"),
    ],
    ids=lambda text: text.split()[0],
)
def test_what_varies_is_not_held(text, held):
    assert raised.told(RunError(text)) == f"RunError: {held}"
