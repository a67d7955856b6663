"""Tensors and a commit record, written so that a crash leaves the old checkpoint or the new one, whole.

``step-N.safetensors`` holds every tensor; ``step-N.json`` is the commit record with its size and SHA-256 and all that is no tensor.
The record's rename is the commit point: by then the payload's entry in the folder is on the disk. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppvae.errors import RunError
from ppvae.storage import MOST_BYTES, TEMPORARY, parsed, read_bytes, read_record, remove
from ppvae.storage import read_json as read_json
from ppvae.storage import write_atomically as write_atomically
from ppvae.storage import write_json as write_json

SCHEMA = 3  # 1 had no hash of the state; 2 did not say which checkpoint it is, and was not compared byte for byte
FIELDS = {1: {"schema", "size", "sha256", "state"}}
FIELDS[2] = FIELDS[1] | {"state_sha256"}
FIELDS[SCHEMA] = FIELDS[2] | {"name", "payload"}
KEEP = 2
STEP = re.compile(r"step-[0-9]{8,18}")
# A step that is saved again, at the end of an epoch, is written beside itself: its record must never speak of a file that changes.
PAYLOADS = (".safetensors", ".again.safetensors")
STEP_PAYLOAD = re.compile(r"(step-[0-9]{8,18})(\.again)?\.safetensors")
LONG_TEXT = 1 << 16  # characters: longer ones go with the tensors, so that a record stays small
# safetensors itself takes a header of 100 MB, and then a gigabyte and 20 seconds
MOST_HEADER = 4 << 20
MOST_TENSORS = 40_000
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], state: Any, announce: Callable[[int], object] = lambda size: None) -> None:
    """Write one checkpoint.

    Args:
        folder: The run's folder of checkpoints.
        name: "step-N", or "best".
        tensors: Named tensors.
        state: Whatever else the run goes on from: numbers, strings, lists, dicts, and tensors at any depth.
        announce: Told how many bytes, before any of them is written.

    Raises:
        RunError: The disk is full or the folder cannot be written: what was there before stands. Or something in it cannot be saved.
    """
    everything = {f"tensors/{key}": _stored(value, key) for key, value in tensors.items()}
    packed = _pack(state, everything, "state")
    payload = _serialised(everything)
    digests = {"sha256": hashlib.sha256(payload).hexdigest(), "state_sha256": _digest(packed)}
    place = _free_place(folder, name)
    record = _encoded({"schema": SCHEMA, "name": name, "payload": place, "size": len(payload), **digests, "state": packed})
    path = folder / f"{name}.json"
    if len(record) > MOST_BYTES:
        raise RunError(f"cannot save {path}: a record of {len(record):,} bytes, more than the {MOST_BYTES:,} that are read again")
    parsed(record, path)
    announce(len(payload) + len(record))
    write_atomically(folder / place, payload)
    write_atomically(path, record)


def load(folder: Path, name: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the state of one checkpoint, verified by size and SHA-256.

    Raises:
        RunError: It is missing or damaged, or was not written by ppvae.
    """
    record = _record(folder, name)
    path = folder / _place(record, name)
    everything = _deserialised(_payload(path, record), path)
    tensors = {key.removeprefix("tensors/"): value for key, value in everything.items() if key.startswith("tensors/")}
    try:
        return tensors, _unpack(record["state"], everything)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{folder / name}.json is no commit record: its state does not fit the tensors beside it") from error


def state_of(folder: Path, name: str) -> Any:
    """What ``load`` gives beside the tensors, where it refers to none; the payload is not read.

    Raises:
        RunError: as ``load``.
    """
    state = _record(folder, name)["state"]
    try:
        return _unpack(state, {})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{folder / name}.json is no commit record: its state does not fit the tensors beside it") from error


def _record(folder: Path, name: str) -> dict[str, Any]:
    """The commit record: whole, of this name, with the state that it was written with."""
    path = folder / f"{name}.json"
    content = read_record(path)
    record = parsed(content, path)
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(schema, int) or isinstance(schema, bool):
        raise RunError(f"{path} is no commit record")
    if schema not in FIELDS:
        raise RunError(f"{path} is damaged, or a later version of ppvae wrote it: its schema is {schema}, known are 1 to {SCHEMA}")
    if record.keys() != FIELDS[schema]:
        raise RunError(f"{path} is damaged: its fields are not those of a commit record of schema {schema}")
    if schema >= 2 and record["state_sha256"] != _digest(record["state"]):
        raise RunError(f"{path} is damaged: its state does not have the SHA-256 that it was written with")
    if schema >= 3 and record["name"] != name:
        raise RunError(f"{path} is the record of another checkpoint: {str(record['name'])[:40]}")
    if schema >= 3 and content != _encoded(record):
        raise RunError(f"{path} is damaged: it does not have the bytes that it was written with")
    return record


def _place(record: Mapping[str, Any], name: str) -> str:
    """The name of the file of tensors that a record speaks of."""
    place = record.get("payload", f"{name}{PAYLOADS[0]}")
    if place not in [name + suffix for suffix in PAYLOADS]:
        raise RunError(f"the record of {name} speaks of another file: {str(place)[:40]!r}")
    return str(place)


def _free_place(folder: Path, name: str) -> str:
    """A name for a file of tensors that no sound record speaks of."""
    first, again = (name + suffix for suffix in PAYLOADS)
    if not (folder / f"{name}.json").exists():
        return first
    try:
        return again if _place(_record(folder, name), name) == first else first
    except RunError:
        return first


def _payload(path: Path, record: Mapping[str, Any]) -> bytes:
    """The file of tensors that a record speaks of."""
    size, expected = record["size"], record["sha256"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise RunError(f"{path} has no sound commit record beside it: its size is {str(size)[:20]}")
    try:
        payload = read_bytes(path, size)
    except (OSError, MemoryError) as error:
        raise RunError(f"{path} cannot be read: {error}", where="its commit record is there") from error
    found = hashlib.sha256(payload).hexdigest()
    if len(payload) != size or found != expected:
        raise RunError(f"{path} is damaged: sha256 {found[:12]}..., expected {str(expected)[:12]}...")
    return payload


def names(folder: Path) -> list[str]:
    """The committed "step-N" checkpoints of a folder, newest first."""
    found = [path.stem for path in folder.glob("step-*.json") if STEP.fullmatch(path.stem)]
    return sorted(found, key=lambda name: int(name.removeprefix("step-")), reverse=True)


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
    """Delete all but the newest ``keep`` checkpoints, record first, so that none is left half; and what a process that died here left.

    Raises:
        RunError: Something cannot be deleted; what was saved stands.
    """
    for name in names(folder)[keep:]:
        remove(folder / f"{name}.json")
    spoken_of = {place for name in names(folder) for place in _spoken_of(folder, name)}
    for path in list(folder.iterdir()):
        if (STEP_PAYLOAD.fullmatch(path.name) and path.name not in spoken_of) or TEMPORARY in path.name:
            remove(path)


def _spoken_of(folder: Path, name: str) -> list[str]:
    """The files of tensors that a record may speak of: one, or all where it is damaged. It is read where there is a choice."""
    there = [name + suffix for suffix in PAYLOADS if (folder / (name + suffix)).exists()]
    if len(there) < len(PAYLOADS):
        return there
    try:
        return [_place(_record(folder, name), name)]
    except RunError:
        return there


def set_aside(folder: Path, newer_than: str) -> None:
    """Rename damaged checkpoints that are newer than the one that a run goes on from: kept as the newest, they would push out sound ones.

    Raises:
        RunError: They cannot be renamed.
    """
    for name in names(folder):
        if name == newer_than:
            return
        for path in (folder / f"{name}.json", *(folder / f"{name}{suffix}" for suffix in PAYLOADS)):
            try:
                if path.exists():
                    path.rename(path.with_name(f"damaged-{path.name}"))
            except OSError as error:
                raise RunError(f"cannot rename {path}: {error.strerror}", mend="make the folder writable") from error


def _digest(packed: Any) -> str:
    return hashlib.sha256(json.dumps(packed).encode()).hexdigest()


def _encoded(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _stored(value: Tensor, name: str) -> Tensor:
    """A copy that owns its memory, as a file keeps it."""
    if value.layout != torch.strided or value.is_quantized:
        raise RunError(f"cannot save a tensor of layout {value.layout} in a checkpoint", where=name)
    return value.detach().resolve_conj().resolve_neg().cpu().contiguous().clone()


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    unknown = {name: value.dtype for name, value in tensors.items() if value.dtype not in _DTYPES}
    if unknown:
        name, dtype = next(iter(unknown.items()))
        raise RunError(f"cannot save a tensor of {dtype} in a checkpoint", where=name)
    payload = safetensors.torch.save(dict(tensors))
    _check_header(payload, f"cannot save {len(tensors):,} tensors in one checkpoint")
    return payload


def _deserialised(payload: bytes, path: Path) -> dict[str, Tensor]:
    _check_header(payload, f"{path} is no checkpoint of ours")
    try:
        return safetensors.torch.load(payload)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise RunError(f"{path} is no safetensors file: {str(error).splitlines()[0]}") from error


def _check_header(payload: bytes, problem: str) -> None:
    length = int.from_bytes(payload[:8], "little")
    if length > MOST_HEADER or payload.count(b"{", 8, 8 + length) > MOST_TENSORS:
        raise RunError(problem, where=f"a header of {length:,} bytes; at most {MOST_HEADER:,}, for {MOST_TENSORS:,} tensors")


def _pack(value: Any, tensors: dict[str, Tensor], path: str, seen: dict[int, str] | None = None) -> Any:
    """``value`` as JSON, its tensors put into ``tensors``: one that stands at two places once."""
    seen = seen if seen is not None else {}
    if isinstance(value, Tensor):
        if id(value) not in seen:
            path = seen[id(value)] = f"{path}#{len(tensors)}"  # two paths may read alike: keys "a/b" and "a" then "b", 0 and "0"
            tensors[path] = _stored(value, path)
        return {"tensor": seen[id(value)]}
    if isinstance(value, str) and len(value) > LONG_TEXT:
        path = f"{path}#{len(tensors)}"
        tensors[path] = torch.frombuffer(bytearray(value.encode("utf-8", "surrogatepass")), dtype=torch.uint8)
        return {"text": path}
    if isinstance(value, Mapping):
        parts = [(k, v, f"{path}/k{i}", f"{path}/{k}") for i, (k, v) in enumerate(value.items())]
        return {"dict": [[_pack(k, tensors, of_k, seen), _pack(v, tensors, of_v, seen)] for k, v, of_k, of_v in parts]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(part, tensors, f"{path}/{i}", seen) for i, part in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(part, tensors, f"{path}/{i}", seen) for i, part in enumerate(value)]
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
    if "text" in value:
        return tensors[value["text"]].numpy().tobytes().decode("utf-8", "surrogatepass")
    if "tuple" in value:
        return tuple(_unpack(part, tensors) for part in value["tuple"])
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["dict"]}
