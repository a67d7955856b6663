"""Which commit of its git repository a program stood at, and whether it had been changed since."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOTHING_YET = "(initial)"  # the commit of a repository that has none
TIMEOUT = 1.0  # seconds that a run waits for git to answer
# What git may have been told of another repository, by a hook of it that we are called from.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_PREFIX")
# Reading a repository must neither run what it is configured to run nor write its index.
ONLY_READ = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")


def commit_of(folder: Path) -> dict[str, Any]:
    """``commit``, and ``uncommitted_changes`` to files that git knows, of the repository that holds a folder.

    Returns:
        Nothing where the folder is in no repository, or git is missing or slow; the commit alone where only the changes take long.
    """
    status = _said("status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=dirty", folder=folder)
    if status is None:
        commit = _said("rev-parse", "HEAD", folder=folder)
        return {"commit": commit.strip()} if commit else {}
    words = [line.split() for line in status.splitlines()]
    commit = next((line[2] for line in words if line[:2] == ["#", "branch.oid"]), NOTHING_YET)
    return {} if commit == NOTHING_YET else {"commit": commit, "uncommitted_changes": any(line[0] != "#" for line in words)}


def told(state: Mapping[str, Any]) -> str:
    """A commit in words."""
    return f"commit {str(state['commit'])[:12]}" + (" with uncommitted changes" if state.get("uncommitted_changes") else "")


def _said(*words: str, folder: Path) -> str | None:
    """What git answers; None where it does not."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    command = ["git", *ONLY_READ, "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
