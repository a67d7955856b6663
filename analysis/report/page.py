"""Templates -> one HTML file that needs nothing else: its script allowed by hash, nothing loaded, nothing unescaped."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ppvae.errors import RunError
from ppvae.storage import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
LARGEST = 3_000_000  # bytes
TOO_LARGE = f"above {LARGEST / 1e6:g} MB"


def write(template: str, path: Path, **values: Any) -> Path:
    """Render a template and write the page, atomically. Above 3 MB the explorer, then the largest figures are left out, and named on it.

    Raises:
        RunError: It cannot be written, or its tables alone are above 3 MB.
    """
    page = render(template, **values).encode()
    while len(page) > LARGEST:
        values = _lightened(values)
        page = render(template, **values).encode()
    write_atomically(path, page)
    return path


def _lightened(values: Mapping[str, Any]) -> dict[str, Any]:
    """The page's values without what takes most room."""
    if values.get("atlas") is not None:
        return {**values, "atlas": None, "missing": [*values["missing"], f"the explorer, with which the page would be {TOO_LARGE}"]}
    lists = {key: values[key] for key in ("figures", "beside") if values.get(key)}
    if not lists:
        remedy = "move results that it need not show out of the run's folder results"
        raise RunError(f"the tables of this report alone are {TOO_LARGE}", mend=remedy)
    key, largest = max(((key, shown) for key, several in lists.items() for shown in several), key=lambda one: len(one[1].uri))
    rest = [shown for shown in lists[key] if shown is not largest]
    return {**values, key: rest, "missing": [*values["missing"], f"'{largest.title}', with which the page would be {TOO_LARGE}"]}


def render(template: str, **values: Any) -> str:
    """A page as text. Everything handed in is escaped; style and script are the templates' own."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (TEMPLATES / "explorer_script.html").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    style = (TEMPLATES / "style.html").read_text()
    fixed = {"version": importlib.metadata.version("ppvae"), "policy": policy, "style": Markup(style), "script": Markup(script)}
    return environment.get_template(template).render(**fixed, **values)
