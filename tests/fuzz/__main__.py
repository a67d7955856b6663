"""``python tests/fuzz SECONDS [TARGET ...]``: each target its share of the seconds, by atheris where it is installed, else by hypothesis."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_SECONDS = 5  # for one input; on a busy machine the mark of 1 s would alarm by itself
MOST_MEMORY = 1536  # MB of the process: torch's 450 and more room than any input may take


def by_atheris(name: str, seconds: int) -> None:
    """Fuzz one target in this process; it ends it."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ppvae.checkpoint", "ppvae.storage", "ppvae.config_file", "ppvae.data"]):
        targets = importlib.import_module("targets")
    corpus = Path(tempfile.mkdtemp())
    for number, example in enumerate(targets.TARGETS[name][1]):
        (corpus / str(number)).write_bytes(example)
    limits = [f"-max_total_time={seconds}", f"-timeout={MOST_SECONDS}", f"-rss_limit_mb={MOST_MEMORY}", "-max_len=4096", "-verbosity=0"]
    findings = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    atheris.Setup(
        [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={findings}/", str(corpus)],
        lambda content: targets.survives(name, content),
    )
    atheris.Fuzz()


def by_hypothesis(name: str, seconds: int) -> None:
    """Fuzz one target with mutated examples and random bytes, until the seconds are over."""
    import time

    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    targets, mutations = importlib.import_module("targets"), importlib.import_module("mutations")
    until, count = time.monotonic() + seconds, 0

    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content=mutations.mutated(targets.TARGETS[name][1]) | st.binary(max_size=4096))
    def once(content: bytes) -> None:
        nonlocal count
        count += 1
        targets.survives(name, content)

    while time.monotonic() < until:
        once()
    print(f"{name}: {count} inputs, all read or refused")


def main() -> int:
    """Fuzz every target, each in a process of its own; the number of those with a finding."""
    seconds, *names = sys.argv[1:]
    if names[:1] in (["--atheris"], ["--hypothesis"]):
        {"--atheris": by_atheris, "--hypothesis": by_hypothesis}[names[0]](names[1], int(seconds))
        return 0
    how = "--atheris" if importlib.util.find_spec("atheris") else "--hypothesis"
    names = names or list(importlib.import_module("targets").TARGETS)
    share, bad = max(1, int(seconds) // len(names)), []
    print(f"{len(names)} readers, {share} s each, by {how.removeprefix('--')}", flush=True)
    for name in names:
        done = subprocess.run([sys.executable, __file__, str(share), how, name], capture_output=True, text=True)
        said = done.stdout + done.stderr
        count = next((line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line), "")
        print(f"{name}: {count + ' inputs, ' if count else ''}{'no finding' if done.returncode == 0 else 'A FINDING'}", flush=True)
        if done.returncode:
            bad.append(name)
            print(said[-3000:], flush=True)
    return len(bad)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
