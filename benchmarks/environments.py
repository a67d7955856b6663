"""Virtual environments of the rivals that do not share ours, under ``.bench/``, made where they are missing."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.process import ROOT, RivalError

FOLDER = ROOT / ".bench"
# torch at the version of this project, so that Pythae runs on the kernels that everyone else runs on; JAX is free to be the newest.
REQUIREMENTS = {
    "numpyro": ["numpyro==0.22.0", "jax==0.10.2"],
    "pythae": ["-c", str(ROOT / "constraints.txt"), "pythae==0.1.2", "torch"],
}
CUDA_REQUIREMENTS = REQUIREMENTS | {"numpyro": ["numpyro==0.22.0", "jax[cuda12]==0.10.2"]}


def python(name: str, device: str = "cpu") -> Path:
    """The interpreter of an environment: "here" for this one.

    Raises:
        RivalError: It is missing and could not be made.
    """
    if name == "here":
        return Path(sys.executable)
    cuda = device.startswith("cuda")
    folder = FOLDER / (f"{name}-cuda" if cuda else name)
    done, interpreter = folder / ".installed", folder / "bin" / "python"
    wanted = "\n".join((CUDA_REQUIREMENTS if cuda else REQUIREMENTS)[name])
    if not (done.exists() and done.read_text() == wanted):
        _make(folder, interpreter, wanted.split("\n"))
        done.write_text(wanted)
    return interpreter


def _make(folder: Path, interpreter: Path, requirements: list[str]) -> None:
    print(f"making {folder.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    if not interpreter.exists():
        venv.create(folder, with_pip=True)
    command = [str(interpreter), "-m", "pip", "install", "--quiet", *requirements]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RivalError(f"pip could not install {' '.join(requirements)}: {answer.stderr.strip()[-300:]}")
