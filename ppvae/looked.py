"""What a run folder keeps of the pass that holds every datum against the likelihood: what it was made on, and what came of it.

A resumed run with the same data, programs and versions need not make it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppvae.run import ENVIRONMENT, holds_a_run, read_description, versions

LOOKED = "looked_at"  # the field of environment.json, which a SHA-256 protects


def digest_of(config: Mapping[str, Any], programs: Mapping[str, Any]) -> str:
    """The hash of what such a pass depends on: the data's hashes, the programs, the seed of its draws, the versions that compute it.

    Empty where the programs were built in Python: nothing tells whether their code is what it was.
    """
    if programs["how"] == "python":
        return ""
    about = {name: config[name] for name in ("data", "validation", "seed")}
    computed = {name: value for name, value in versions().items() if name != "threads"}
    return hashlib.sha256(json.dumps([about, programs, computed], sort_keys=True, default=str).encode()).hexdigest()


def looked(folder: Path, digest: str) -> bool | None:
    """Whether data lie outside their supports, as a pass on just these things has found; None where none was made.

    Raises:
        RunError: The record is damaged.
    """
    if not digest or not holds_a_run(folder):
        return None
    found = read_description(folder, ENVIRONMENT).get(LOOKED)
    if not isinstance(found, dict) or found.get("sha256") != digest or not isinstance(found.get("relaxed"), bool):
        return None
    return bool(found["relaxed"])


def record(digest: str, relaxed: bool) -> dict[str, Any]:
    """What environment.json says of a pass."""
    return {LOOKED: {"sha256": digest, "relaxed": relaxed}} if digest else {}
