"""The documentation: its Python blocks run and print what stands below them, its links lead somewhere, and nothing public is missing."""

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from test_readme import TOLERANCE, numbers, sentence

import ppvae
from ppvae import analysis, guides, models
from ppvae.analysis import latents
from ppvae.errors import UnreliableWarning
from ppvae.options import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```)?", flags=re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^( *)```.*?^\1```", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
REFERENCE = re.findall(
    r"^::: (\S+)$", "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))), flags=re.MULTILINE
)
RUNNABLE = [page for page in PAGES if BLOCK.search(page.read_text())]


def same(line):
    """A line without its numbers, as far as another training run keeps it."""
    return sentence(line + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, marks=[] if page.stem == "objectives" else pytest.mark.example if page.stem in ("data", "errors") else pytest.mark.soak
        )
        for page in RUNNABLE
    ],
    ids=lambda page: page.stem,
)
def test_the_blocks_of_a_page_print_their_output(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    names = {"__name__": "docs"}
    for code, output in BLOCK.findall(page.read_text()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableWarning)  # one page trains with beta = 4 to show what comes of it
            exec(compile(code, page.name, "exec"), names)
        printed = capsys.readouterr().out
        assert list(map(same, printed.splitlines())) == list(map(same, output.splitlines()))
        assert numbers(printed) == pytest.approx(numbers(output), abs=TOLERANCE)


def anchors(path):
    """Where a page can be entered: its headings, as mkdocs names them."""
    toc = pytest.importorskip("markdown.extensions.toc", reason="of the extra docs: it names the anchors")
    found = set()
    for line in FENCE.sub("", path.read_text()).splitlines():
        if line.startswith("#"):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("#").strip())
            toc.unique(toc.slugify(re.sub(r"[`*]|\\(?=[_*])", "", title), "-"), found)
    return found


@pytest.mark.parametrize("page", [*PAGES, *sorted((DOCS / "reference").glob("*.md"))], ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_inside_the_documentation_leads_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_stands_in_the_navigation():
    configured = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = re.findall(r": (\S+\.md)$", configured, flags=re.MULTILINE)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in [*PAGES, *(DOCS / "reference").glob("*.md")])


def public():
    """The public names of four packages, each with the object behind it."""
    return [(module, name, getattr(module, name)) for module in (ppvae, analysis, latents, models, guides) for name in module.__all__]


@pytest.mark.parametrize(
    ("module", "name", "value"), public(), ids=lambda part: part if isinstance(part, str) else getattr(part, "__name__", "value")
)
def test_every_public_name_stands_in_the_reference(module, name, value):
    pages = {page.stem for page in (DOCS / "reference").glob("*.md")}
    if hasattr(value, "__path__") or value is latents:  # a package has a page of its own
        assert name in pages
    elif hasattr(value, "__qualname__"):
        assert f"{value.__module__}.{value.__qualname__}" in REFERENCE
    else:
        assert value.__name__ in REFERENCE


@pytest.mark.parametrize("name", REFERENCE)
def test_every_name_of_the_reference_exists(name):
    module, _, attribute = name.rpartition(".")
    if importlib.util.find_spec(module) is None or not hasattr(importlib.import_module(module), attribute):
        importlib.import_module(name)


def test_no_name_stands_twice_in_the_reference():
    assert sorted(REFERENCE) == sorted(set(REFERENCE))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_on_the_page_of_the_command_line(name):
    assert f"\n### ppvae {name}\n" in (DOCS / "command_line.md").read_text()


def test_the_page_of_the_command_line_is_that_of_the_options():
    """Where this fails, options.py has changed: run `python docs/command_tables.py`."""
    spec = importlib.util.spec_from_file_location("command_tables", DOCS / "command_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.PAGE.read_text()
    assert tables.page(text) == text


def test_the_pages_load_nothing_from_elsewhere():
    """The themes of mkdocs take highlight.js from another server, unless told not to."""
    assert "highlightjs: false" in (ROOT / "mkdocs.yml").read_text()
    for page in [*PAGES, DOCS / "style.css"]:
        assert not re.search(r"!\[[^\]]*\]\(https?://|@import|url\(https?://|<script|<iframe", page.read_text()), page.name
