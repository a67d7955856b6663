"""Guards of the house: who imports whom, what an import loads and changes, what an installed copy holds."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Package -> its folder. Written out, not read from pyproject.toml, which is under test here; the links inside ppvae/ are never walked.
LINKED = ("models", "guides", "analysis")
OWN = ("commands", "data")
FOLDERS = {
    "ppvae": ROOT / "ppvae",
    **{f"ppvae.{name}": ROOT / "ppvae" / name for name in OWN},
    **{f"ppvae.{name}": ROOT / name for name in LINKED},
}
# Module -> its file.
SOURCES = {
    package if path.stem == "__init__" else f"{package}.{path.stem}": path
    for package, folder in FOLDERS.items()
    for path in sorted(folder.glob("*.py"))
}

# Who may import whom: a unit is a file of ppvae/ or one of its packages. Everyone may import errors, and itself.
RUNNING = {"programs", "pair", "stream", "batches", "modules", "support", "noise"}  # running programs, alone, in pairs, in blocks
ARITHMETIC = {"capture", "compilation", "policy"}  # programs as the graph of their arithmetic
STEPS = {"importance", "simulate", "check", "checks_look", "checks_numbers", "objectives", "capture"}
RECORDS = {"data", "build", "factory", "state", "checkpoint", "run", "progress"}
POSTERIORS = {"coordinates", "families", "whitened", "natural", "local", "posteriors", "starts"}  # what a local posterior is made of
LATENTS = POSTERIORS | {"refinement", "paths", "annealing", "hmc", "enumeration", "quadrature"}  # what is done with latents
TRAINING = {
    "diagnose",
    "evaluation",
    "training",
    "resume",
    "rollback",
    "header",
    "looked",
    "unmeasured",
    "unused",
}  # the parts of fit.py that have a file of their own
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "output": set(),
    "options": set(),
    "config_file": set(),
    "noise": set(),
    "nn": {"build"},
    "build": set(),
    "progress": set(),
    "batches": set(),
    "modules": set(),
    "support": set(),
    "factory": set(),
    "families": {"build"},
    "pareto": set(),
    "importance": {"pareto"},
    "storage": set(),
    "repository": set(),
    "checkpoint": {"storage"},
    "generators": {"noise"},
    "interruption": set(),
    "lock": {"storage"},
    "memory": {"noise"},
    "pieces": {"noise", "memory", "random_operations"},
    "random_operations": {"memory", "programs", "support"},
    "ranks": set(),
    "together": ARITHMETIC | {"modules", "ranks", "svi", "engine"},
    "capture": set(),
    "version": set(),
    "gradient_bound": set(),
    "policy": set(),
    "bernoulli": set(),
    "compilation": {"capture", "memory"},
    "programs": {"batches", "modules", "bernoulli", "capture", "memory"},
    "parts": {"batches", "memory", "pieces"},
    "pair": {"programs", "batches", "modules", "support", "noise", "memory", "parts", "pieces"},
    "blocks": {"pair", "programs", "batches", "compilation", "policy"},
    "stream": {"pair", "programs", "batches", "modules", "noise", "blocks", "ranks", "interruption", "memory"},
    "coordinates": RUNNING | {"enumeration"},
    "enumeration": RUNNING | {"memory"},
    "quadrature": RUNNING | {"coordinates", "enumeration"},
    "natural": set(),
    "whitened": {"families", "build"},
    "local": RUNNING | {"coordinates", "families"},
    "posteriors": RUNNING | {"coordinates", "families", "whitened", "local", "memory", "parts"},
    "starts": RUNNING | {"coordinates", "families", "whitened", "local", "posteriors", "memory"},
    "refinement": RUNNING | POSTERIORS | ARITHMETIC | {"ranks", "memory"},
    "hmc": {"noise"},
    "paths": RUNNING | POSTERIORS | ARITHMETIC | {"refinement", "hmc", "memory"},
    "annealing": RUNNING | POSTERIORS | {"ranks", "paths", "importance", "hmc", "memory"},
    "evaluation": RUNNING | {"memory"},
    "leaves": RUNNING,
    "state": RUNNING,
    "simulate": RUNNING | {"memory", "parts", "pieces"},
    "checks_report": set(),
    "checks_look": RUNNING,
    "checks_sites": RUNNING | {"checks_look", "checks_report"},
    "checks_numbers": RUNNING | {"checks_look", "checks_report", "checks_sites"},
    "check": RUNNING | {"checks_look", "checks_numbers", "checks_report", "checks_sites"},
    "objectives": RUNNING,
    "objectives_traces": RUNNING,
    "objectives_reparameterized": RUNNING | {"objectives_traces"},
    "objectives_wake_sleep": RUNNING | {"objectives_traces"},
    "objectives_rate": RUNNING | {"objectives_traces"},
    "objectives_total_correlation": RUNNING | {"objectives_traces"},
    "objectives_aggressive": RUNNING | {"objectives", "leaves", "optimizer", "data"},
    "surroundings": {"modules"},
    "surrogates": {"modules"},
    "optimizer": set(),
    "engine": ARITHMETIC | {"gradient_bound", "leaves", "objectives", "surrogates", "surroundings"},
    "data": RUNNING | {"simulate", "models"},  # to draw data from a model
    "recorded": {"checkpoint", "data", "run"},
    "run": RUNNING | {"data", "build", "factory", "state", "checkpoint", "storage", "leaves", "repository", "version"},
    "svi": RUNNING | STEPS | RECORDS | {"leaves", "engine", "gradient_bound", "optimizer"},
    "diagnose": RUNNING | {"svi"},
    "header": {"data", "objectives"},
    "looked": {"run"},
    "unmeasured": RUNNING | {"data"},
    "rehearsal": RUNNING | {"objectives", "objectives_aggressive", "objectives_traces", "surroundings"},
    "unused": RUNNING | {"checks_look", "checks_numbers", "data", "rehearsal"},
    "resume": RUNNING | RECORDS | {"optimizer", "generators"},
    "rollback": {"resume", "generators"},
    "training": RUNNING
    | STEPS
    | RECORDS
    | {
        "ranks",
        "together",
        "engine",
        "optimizer",
        "svi",
        "diagnose",
        "evaluation",
        "resume",
        "rollback",
        "leaves",
        "generators",
        "interruption",
        "memory",
        "storage",
    },
    "fit": RUNNING
    | STEPS
    | RECORDS
    | {"ranks", "together", "svi", "optimizer", "surrogates", "generators", "interruption", "lock", "storage", "repository"}
    | TRAINING,
    "models": {"nn", "families", "build"},
    "guides": RUNNING | LATENTS | {"nn", "build", "memory"},
    "analysis": RUNNING
    | LATENTS
    | {"importance", "simulate", "capture", "evaluation", "data", "recorded", "checkpoint", "storage", "run", "memory", "repository"}
    | {"parts", "pieces"},
}
FRONTS = {
    "__init__",
    "__main__",
    "cli",
    "commands",
}  # may import everything; what they load is held by the tests of HEAVY

HEAVY = {"arviz", "matplotlib", "numpy", "pyro", "scipy", "sklearn", "torch"}


class Imports(ast.NodeVisitor):
    """Collects the modules of ours that a file imports, at its head or inside a function, unless for type checkers alone."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), self.package)
        names = {f"{base}.{alias.name}" for alias in node.names}
        self.found |= {name if name in SOURCES else base for name in names}


def unit(module: str) -> str:
    """The row of ALLOWED that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imported_units(source: str, package: str) -> set[str]:
    """The units of ours that a source text imports."""
    imports = Imports(package)
    imports.visit(ast.parse(source))
    return {unit(name) for name in imports.found if name.split(".")[0] == "ppvae"}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_imports_only_what_the_table_allows(module):
    home = unit(module)
    assert home in ALLOWED.keys() | FRONTS, f"{home} has no row in ALLOWED: add one that says what it may import"
    package = module if module in FOLDERS else module.rpartition(".")[0]
    allowed = ALLOWED.keys() | FRONTS if home in FRONTS else ALLOWED[home]
    foreign = imported_units(SOURCES[module].read_text(), package) - {"errors", home} - allowed
    assert not foreign, f"{module} may not import {sorted(foreign)}"


def test_the_table_has_no_cycle():
    graphlib.TopologicalSorter({home: allowed - {home} for home, allowed in ALLOWED.items()}).prepare()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import ppvae.noise", {"noise"}),
        ("from ppvae import noise, log_weights", {"noise", "__init__"}),
        ("from . import weights", {"analysis"}),
        ("from ..noise import seeded", {"noise"}),
        ("def f():\n    from ppvae.noise import seeded", {"noise"}),
        ("if TYPE_CHECKING:\n    import ppvae.noise\nelse:\n    import ppvae.errors", {"errors"}),
    ],
    ids=["absolute", "names of the root", "sibling", "relative", "inside a function", "for type checkers"],
)
def test_imports_are_read_in_all_their_forms(line, found):
    assert imported_units(line, "ppvae.analysis") == found


def python(code: str, *arguments: str, path: Iterable[Path] = (), cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that sees the installed libraries, but no editable install: -S leaves out the .pth files."""
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), *dict.fromkeys(libraries)])
    command = [sys.executable, "-S", "-B", "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """What a process printed, once it ended well."""
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = f"""
import atexit, sys
atexit.register(lambda: print(sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr))
"""


def test_import_loads_no_heavy_library(tmp_path):
    done = python(LOADED + "import ppvae", path=[ROOT], cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_help_loads_no_heavy_library(tmp_path):
    code = LOADED + "import runpy; sys.argv[1:] = ['--help']; runpy.run_module('ppvae', run_name='__main__')"
    done = python(code, path=[ROOT], cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize("name", LINKED)
def test_import_from_the_root_tells_the_right_name(name):
    done = python(f"import {name}", path=[ROOT], cwd=ROOT)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"ppvae.{name}" in last


def test_version_in_the_code_is_that_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'__version__ = "{version}"' in SOURCES["ppvae.version"].read_text()


# Whatever is imported there, in one process of its own. The libraries come first: what they change on their own import is theirs.
IMPORT_ALL = """
import importlib, json, logging, os, random, site, sys, warnings
import matplotlib, numpy, pyro, rich.console, rich.progress_bar, scipy.optimize, scipy.sparse.csgraph, scipy.spatial, torch

def state():
    loggers = [logging.getLogger(name) for name in (None, "ppvae", "pyro")]
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": [str(part) for part in numpy.random.get_state(legacy=False)["state"].values()],
        "python generator": random.getstate(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "pyro settings": pyro.settings.get(),
        "pyro parameters": sorted(pyro.get_param_store()),
        "matplotlib settings": matplotlib.rcParams.copy(),
        "logging": [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        "warning filters": list(warnings.filters),
        "environment": dict(os.environ),
    }

site.addsitedir(sys.argv[1])
before = state()
files = {name: importlib.import_module(name).__file__ for name in sys.argv[2:]}
after = state()
print(json.dumps([files, [name for name in before if before[name] != after[name]]]))
"""


def project_files() -> list[Path]:
    """What git tracks or would add among the packages, links left out; all that is there where git does not answer."""
    tops = ["ppvae", *LINKED]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *tops]
    answer = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False) if shutil.which("git") else None
    if answer is not None and answer.returncode == 0:
        paths = [ROOT / name for name in answer.stdout.split("\0") if name]
    else:
        paths = [path for top in tops for path in (ROOT / top).rglob("*") if "__pycache__" not in path.parts]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def installed_name(path: Path) -> str:
    """Where a file of the tree lies in an installed copy: the longest package folder above it decides."""
    package = max((name for name, folder in FOLDERS.items() if path.is_relative_to(folder)), key=len)
    return f"{package.replace('.', '/')}/{path.relative_to(FOLDERS[package])}"


def copy_project(to: Path, *, links: bool) -> Path:
    """Copy what a build needs, so that it leaves nothing in the tree."""
    wanted = [*project_files(), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE") if (ROOT / name).exists())]
    for path in wanted:
        target = to / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name in LINKED if links else ():
        (to / "ppvae" / name).symlink_to(Path("..") / name)
    return to


def build(kind: str, project: Path, to: Path) -> Path:
    """Build a wheel or an editable wheel as pip would, but with the setuptools that is here: no network is needed."""
    to.mkdir()
    succeed(python(f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])", str(to), cwd=project))
    (wheel,) = to.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build("wheel", copy_project(folder / "project", links=True), folder / "built")


def test_wheel_holds_the_files_of_the_tree(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {installed_name(path) for path in project_files()}


def test_wheel_is_imported_without_the_tree_and_changes_no_global(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    found, changed = json.loads(succeed(python(IMPORT_ALL, str(site), *SOURCES, path=[site], cwd=tmp_path)))
    assert found == {module: str(site / installed_name(path)) for module, path in SOURCES.items()}
    assert changed == []


# The links are gone before the install: where they are there, setuptools follows them and leaves its own map out.
@pytest.mark.soak  # every developer's environment is one
def test_editable_install_needs_no_links(tmp_path):
    project, site = copy_project(tmp_path / "project", links=False), tmp_path / "site"
    zipfile.ZipFile(build("editable", project, tmp_path / "built")).extractall(site)
    found, _ = json.loads(succeed(python(IMPORT_ALL, str(site), *SOURCES, path=[site], cwd=tmp_path)))
    assert found == {module: str(project / path.relative_to(ROOT)) for module, path in SOURCES.items()}
