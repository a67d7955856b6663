"""The commit that a run's programs stood at: read without a trace, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

import pairs
import ppvae
from ppvae import repository
from ppvae.run import home

PROGRAM = "from pairs import ours\n\ndef pair(x):\n    return ours()\n"


def git(folder, *words):
    """Run git as nobody in particular, whatever this machine's configuration."""
    about = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    about |= {f"GIT_{who}_{what}": "nobody@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, env=os.environ | about)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a busy machine git may take its time."""
    monkeypatch.setattr(repository, "TIMEOUT", 60.0)


@pytest.fixture
def kept(tmp_path):
    """A folder in a repository of one commit, which holds p.py."""
    folder = tmp_path / "kept"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "p.py").write_text(PROGRAM)
    git(folder, "add", "p.py")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


def script(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_the_commit_and_whether_known_files_have_changed(kept):
    clean = {"commit": git(kept, "rev-parse", "HEAD"), "uncommitted_changes": False}
    assert repository.commit_of(kept) == clean
    (kept / "notes.txt").write_text("not known to git")
    assert repository.commit_of(kept) == clean
    (kept / "p.py").write_text("changed")
    assert repository.commit_of(kept) == clean | {"uncommitted_changes": True}


def test_a_worktree_has_a_commit_of_its_own(kept, tmp_path):
    """Its .git is a file."""
    git(kept, "worktree", "add", "--quiet", str(tmp_path / "other"))
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "--message", "two")
    found = repository.commit_of(tmp_path / "other")["commit"]
    assert found == git(tmp_path / "other", "rev-parse", "HEAD") != git(kept, "rev-parse", "HEAD")


def test_in_a_hook_of_another_repository_it_is_still_the_folders(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "of another"))
    assert len(repository.commit_of(kept)["commit"]) == 40


def test_nothing_is_said_of_what_is_no_repository(tmp_path, kept, monkeypatch):
    assert repository.commit_of(tmp_path) == {}
    assert repository.commit_of(tmp_path / "gone") == {}
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    assert repository.commit_of(tmp_path / "empty") == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repository.commit_of(kept) == {}


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["exec sleep 60"], {}),
        (['case "$*" in *status*) exec sleep 60;; esac', "echo 0123abc"], {"commit": "0123abc"}),
        (["exit 128"], {}),
    ],
    ids=["slow", "slow to look for changes", "failing"],
)
def test_git_is_not_waited_for(lines, found, tmp_path, monkeypatch):
    script(tmp_path / "bin" / "git", *lines)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(repository, "TIMEOUT", 0.3)
    started = time.monotonic()
    assert repository.commit_of(tmp_path) == found
    assert time.monotonic() - started < 30


def test_reading_runs_nothing_of_the_users_and_writes_nothing(kept, tmp_path):
    """Plain `git status` asks the file monitor, and refreshes the index, after which a hook runs."""
    script(kept / ".git" / "hooks" / "post-index-change", f"touch {tmp_path}/hooked")
    script(tmp_path / "monitor", f"touch {tmp_path}/monitored")
    git(kept, "config", "core.fsmonitor", str(tmp_path / "monitor"))
    os.utime(kept / "p.py", (1, 1))
    before = (kept / ".git" / "index").read_bytes()
    assert not repository.commit_of(kept)["uncommitted_changes"]
    assert (kept / ".git" / "index").read_bytes() == before
    assert not (tmp_path / "hooked").exists() and not (tmp_path / "monitored").exists()
    git(kept, "status")
    assert (tmp_path / "monitored").exists() and (tmp_path / "hooked").exists()  # or this test could not fail


# Runs.


def trained(out, **arguments):
    return ppvae.fit(*pairs.ours(), pairs.binary(20), out=out, **{"epochs": 1, **arguments})


def of_run(folder):
    return json.loads((folder / "environment.json").read_text())


def notes(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: the repository")]


def test_a_run_records_the_commit_and_says_on_resuming_that_it_is_another(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(kept)
    trained(tmp_path / "run")
    one = git(kept, "rev-parse", "HEAD")
    assert (of_run(tmp_path / "run")["commit"], of_run(tmp_path / "run")["uncommitted_changes"]) == (one, False)
    trained(tmp_path / "run", epochs=2, resume=True)
    assert notes(capsys) == []
    git(kept, "commit", "--quiet", "--allow-empty", "--message", "two")
    (kept / "p.py").write_text("changed")
    trained(tmp_path / "run", epochs=3, resume=True)
    two = git(kept, "rev-parse", "HEAD")
    said = f"note: the repository of {kept} is at commit {two[:12]} with uncommitted changes, where the run began at commit {one[:12]}"
    assert notes(capsys) == [said]


def test_a_users_file_is_at_home_where_it_lies():
    assert home({"how": "file", "file": "/a/b/p.py"}) == Path("/a/b")
    assert home({"how": "python"}) == Path.cwd()


def test_outside_of_a_repository_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "run")
    assert of_run(tmp_path / "run").keys() == {"python", "torch", "pyro", "ppvae", "threads", "machine", "looked_at"}


def test_a_run_in_memory_asks_nobody(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("git was called"))
    trained(None)
