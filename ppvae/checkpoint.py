"""Tensors and a commit record, written so that a crash leaves the old checkpoint or the new one, whole.

``step-N.safetensors`` holds every tensor; ``step-N.json`` is the commit record with its size and SHA-256 and all that is no tensor.
The record's rename is the commit point. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppvae.errors import RunError

SCHEMA = 2  # 1 had no hash of the state
KEEP = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write, fsync, rename, fsync the directory: ``path`` holds the old content or the new one at any moment.

    Raises:
        RunError: The disk is full or the folder cannot be written; the old content stands.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}",
            where=f"{len(content):,} bytes needed",
            mend="free space or choose another folder; what was there before stands",
        ) from error


def write_json(path: Path, value: Any) -> None:
    """A JSON file, atomically; floats keep every bit."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        RunError: It is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing", mend="is this a run folder? `ppvae train --out FOLDER` makes one") from error
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], state: Any) -> None:
    """Write one checkpoint.

    Args:
        folder: The run's folder of checkpoints.
        name: "step-N", or "best".
        tensors: Named tensors.
        state: Whatever else the run goes on from: numbers, strings, lists, dicts, and tensors at any depth.
    """
    everything = {f"tensors/{key}": value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    packed = _pack(state, everything, "state")
    payload = safetensors.torch.save(everything)
    write_atomically(folder / f"{name}.safetensors", payload)
    digests = {"sha256": hashlib.sha256(payload).hexdigest(), "state_sha256": _digest(packed)}
    record = {"schema": SCHEMA, "size": len(payload), **digests, "state": packed}
    write_json(folder / f"{name}.json", record)


def load(folder: Path, name: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the state of one checkpoint, verified by size and SHA-256.

    Raises:
        RunError: It is missing or damaged.
    """
    path = folder / f"{name}.safetensors"
    record = read_json(folder / f"{name}.json")
    try:
        payload = path.read_bytes()
        size, expected, packed = record["size"], record["sha256"], record["state"]
    except (OSError, KeyError, TypeError) as error:
        raise RunError(f"{path} has no sound commit record beside it", where=str(error)) from error
    found = hashlib.sha256(payload).hexdigest()
    if len(payload) != size or found != expected:
        raise RunError(f"{path} is damaged: sha256 {found[:12]}..., expected {str(expected)[:12]}...")
    if record.get("state_sha256", None if record.get("schema") == SCHEMA else _digest(packed)) != _digest(packed):
        raise RunError(f"{folder / name}.json is damaged: its state does not have the SHA-256 that it was written with")
    try:
        everything = safetensors.torch.load(payload)
    except safetensors.SafetensorError as error:
        raise RunError(f"{path} is no safetensors file: {error}") from error
    tensors = {key.removeprefix("tensors/"): value for key, value in everything.items() if key.startswith("tensors/")}
    return tensors, _unpack(packed, everything)


def names(folder: Path) -> list[str]:
    """The committed "step-N" checkpoints of a folder, newest first."""
    steps = [int(m[1]) for path in folder.glob("step-*.json") if (m := re.fullmatch(r"step-(\d+)\.json", path.name))]
    return [f"step-{step:08d}" for step in sorted(steps, reverse=True)]


def newest(folder: Path) -> tuple[str, dict[str, Tensor], Any, list[str]] | None:
    """The newest sound checkpoint, and what was wrong with newer ones; None where there is none.

    Raises:
        RunError: There are checkpoints and none is sound.
    """
    damaged: list[str] = []
    for name in names(folder):
        try:
            return name, *load(folder, name), damaged
        except RunError as error:
            damaged.append(error.problem)
    if damaged:
        raise RunError(f"no sound checkpoint in {folder}", where="; ".join(damaged), mend="start again in a new folder")
    return None


def prune(folder: Path, keep: int = KEEP) -> None:
    """Delete all but the newest ``keep`` checkpoints, record first, so that none is left half."""
    for name in names(folder)[keep:]:
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _digest(packed: Any) -> str:
    return hashlib.sha256(json.dumps(packed).encode()).hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    if isinstance(value, Tensor):
        path = f"{path}#{len(tensors)}"  # two paths may read alike: keys "a/b" and "a" then "b", 0 and "0"
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[_pack(k, tensors, f"{path}/k{i}"), _pack(v, tensors, f"{path}/{k}")] for i, (k, v) in enumerate(value.items())]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(part, tensors, f"{path}/{i}") for i, part in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(part, tensors, f"{path}/{i}") for i, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RunError(f"cannot save a {type(value).__name__} in a checkpoint", where=path)


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(part, tensors) for part in value["tuple"])
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["dict"]}


def generator_states() -> dict[str, Tensor]:
    """The states of torch's generators, CPU and every CUDA device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states
