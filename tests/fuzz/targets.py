"""Readers of foreign bytes, each as a function of bytes: whatever comes, it reads them or raises an error of ppvae's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from ppvae import checkpoint, config_file, options
from ppvae.data.archives import members
from ppvae.data.delimited import read_delimited
from ppvae.data.idx import read_idx
from ppvae.data.numpy_files import read_npy, read_npz
from ppvae.errors import PpvaeError
from ppvae.run import read_history

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
NAME = "step-00000001"
checkpoint.save(FOLDER, NAME, {"a": torch.arange(3.0)}, {"i": 1, "t": (torch.ones(2), "x"), "d": {0: None}})
RECORD, PAYLOAD = (FOLDER / f"{NAME}.json").read_bytes(), (FOLDER / f"{NAME}.safetensors").read_bytes()


def record(content: bytes) -> None:
    """A commit record beside a sound payload."""
    (FOLDER / f"{NAME}.safetensors").write_bytes(PAYLOAD)
    (FOLDER / f"{NAME}.json").write_bytes(content)
    checkpoint.load(FOLDER, NAME)


def state(content: bytes) -> None:
    """The state within a record, by someone who computes the hashes."""
    try:
        packed = json.loads(content)
    except (ValueError, RecursionError):
        return
    digest = hashlib.sha256(json.dumps(packed).encode()).hexdigest()
    whole = {**json.loads(RECORD), "state_sha256": digest, "state": packed}
    record((json.dumps(whole) + "\n").encode())


def payload(content: bytes) -> None:
    """A file of tensors, by someone who computes the hashes."""
    whole = {**json.loads(RECORD), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (FOLDER / f"{NAME}.json").write_bytes((json.dumps(whole) + "\n").encode())
    (FOLDER / f"{NAME}.safetensors").write_bytes(content)
    checkpoint.load(FOLDER, NAME)


def history(content: bytes) -> None:
    """The rows of a run."""
    (FOLDER / "history.jsonl").write_bytes(content)
    read_history(FOLDER)


def _file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


def config(content: bytes) -> None:
    """Options in TOML."""
    config_file.defaults(options.Train, config_file.read(_file("config.toml", content)), Path("config.toml"))


def config_json(content: bytes) -> None:
    """Options in JSON."""
    config_file.defaults(options.Train, config_file.read(_file("config.json", content)), Path("config.json"))


def idx(content: bytes) -> None:
    """An IDX file."""
    read_idx(_file("x.idx", content))


def npy(content: bytes) -> None:
    """NumPy's file of one array."""
    read_npy(_file("x.npy", content))


def npz(content: bytes) -> None:
    """NumPy's file of several arrays."""
    read_npz(_file("x.npz", content))


def csv(content: bytes) -> None:
    """A table of text."""
    read_delimited(_file("x.csv", content))


def archive(content: bytes) -> None:
    """A zip or tar archive."""
    for _ in members(_file("x.zip", content), (".png",)):
        pass


def _saved(write, *arrays, **named) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *arrays, **named)
    return buffer.getvalue()


_IDX = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03" + bytes(6)
# Each with examples that it reads, from which mutation sets out.
TARGETS = {
    "record": (record, [RECORD]),
    "state": (state, [json.dumps(json.loads(RECORD)["state"]).encode(), b'{"tuple": [{"tensor": "tensors/a"}, {"text": "tensors/a"}]}']),
    "payload": (payload, [PAYLOAD]),
    "history": (history, [b'{"epoch": 1}\n{"epoch": 2}\n']),
    "config": (config, [b'epochs = 3\ndata = "digits"\nhidden = [8, 8]\n']),
    "config_json": (config_json, [b'{"epochs": 3, "data": "digits", "hidden": [8, 8], "lr": 0.1}']),
    "idx": (idx, [_IDX, gzip.compress(_IDX)]),
    "npy": (npy, [_saved(np.save, np.arange(6.0).reshape(2, 3))]),
    "npz": (npz, [_saved(np.savez, x=np.arange(6.0).reshape(2, 3), y=np.arange(2)), _saved(np.savez_compressed, x=np.arange(4.0))]),
    "csv": (csv, [b"a,b,label\n1,2.5,0\n3,,1\n", b"1;2\n3;4\n"]),
    "archive": (archive, [_saved(np.savez, x=np.arange(2.0))]),
}


def survives(name: str, content: bytes) -> None:
    """Read the bytes; an error of ppvae's own is an answer, anything else is a fault."""
    try:
        TARGETS[name][0](content)
    except PpvaeError:
        pass
