"""Where and when a table was made, and what the machine can do."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT


def described(threads: int, device: str) -> dict[str, Any]:
    """Date, processor, threads, device and commit."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device_name(device),
        "python": platform.python_version(),
        "commit": commit(),
    }


def processor() -> str:
    """The model of the processor, and of the matrix extensions that matter those that it has."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in fields.items()}
    has = [flag for flag in ("avx2", "avx512f", "amx_bf16") if flag in found.get("flags", "").split()]
    return f"{found.get('model name', platform.processor())} ({', '.join(has)})"


def device_name(device: str) -> str:
    """The name of the accelerator, or "cpu"."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device}: {torch.cuda.get_device_name(device)}"


def commit() -> str:
    """The commit of the working tree, marked where there is more than the commit; "unknown" outside of a repository."""

    def git(*arguments: str) -> str:
        variables = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # a look must not stand in the way of whoever commits
        answer = subprocess.run(["git", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    name = git("rev-parse", "--short=12", "HEAD")
    return (name + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")) if name else "unknown"
