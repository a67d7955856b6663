"""Templates -> one HTML file that needs nothing else: its script allowed by hash, nothing loaded, nothing unescaped."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ppvae.errors import PpvaeError
from ppvae.storage import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
LARGEST = 3_000_000  # bytes


def write(template: str, path: Path, **values: Any) -> Path:
    """Render a template and write the page, atomically.

    Raises:
        PpvaeError: The page is above 3 MB.
        RunError: It cannot be written.
    """
    page = render(template, **values).encode()
    if len(page) > LARGEST:
        raise PpvaeError(f"a report is at most {LARGEST:,} bytes, this one has {len(page):,}", where=str(path))
    write_atomically(path, page)
    return path


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
