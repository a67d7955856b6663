"""Data larger than the memory that a process may use: a file is trained on, and never stands in memory as a whole."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import pairs
import ppvae
from ppvae.data import Data
from ppvae.data.arrays import read

MB = 1 << 20

# Peak resident memory, of which pages of a mapped file are a part, before and after training on the file. Reset in between, since
# imports and the first run have their own.
TRAINING = """
import re, sys
from pathlib import Path
import torch
import ppvae
from ppvae import guides, models, stream
from ppvae.data import Data, arrays
from ppvae.nn import MLP

torch.set_num_threads(1)
path, binarize, at_once = sys.argv[1], sys.argv[2], float(sys.argv[3])
arrays.CHUNK_ELEMENTS, stream.ROWS_AT_ONCE = int(at_once * arrays.CHUNK_ELEMENTS), int(at_once * stream.ROWS_AT_ONCE)

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def trained(data, validation):
    width = data.event_shape[0]
    model = models.Bernoulli(MLP(2, [16], width), latent_dim=2)
    guide = guides.DiagonalNormal(MLP(width, [16], 4), latent_dim=2)
    return ppvae.fit(model, guide, data, validation=validation, epochs=1, batch_size=512, compile=False)

tiny = Data.from_arrays(torch.zeros(64, 784, dtype=torch.uint8), binarize="dynamic", levels=255)
trained(tiny, tiny)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = memory("VmRSS")
splits = ppvae.data.load(path, binarize=binarize, levels=None if binarize == "none" else 255)
run = trained(splits.train, splits.validation)
print(before, memory("VmHWM"), len(run.history), run.history[-1]["validation_elbo"])
"""


def grey_file(path, size, white=255):
    """Bytes of images, all black but for every thousandth row; most of the file is a hole on the disk."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(size // 784, 784))
    array[::1000] = white
    array.flush()
    return len(array)


def peaks(path, *, binarize="threshold", at_once=1.0, timeout=250):
    """Resident bytes before training, and at most while training. ``at_once`` scales what is held of data and densities at a time."""
    command = [sys.executable, "-c", TRAINING, str(path), binarize, str(at_once)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    before, peak, finished, elbo = done.stdout.split()
    assert int(finished) == 1 and float(elbo) > -784 * np.log(2)  # it has learnt that images are black
    return int(before), int(peak)


@pytest.mark.soak
@pytest.mark.slow
def test_a_file_is_trained_on_in_less_memory_than_it_has_bytes(tmp_path):
    grey_file(tmp_path / "x.npy", 96 * MB)  # and four times that as numbers that a network takes
    before, peak = peaks(tmp_path / "x.npy", at_once=1 / 16)
    assert peak - before < 64 * MB


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("binarize", ["threshold", "none"])
def test_two_gigabytes_are_trained_on_in_one(binarize, tmp_path):
    num_data = grey_file(tmp_path / "x.npy", 2048 * MB, white=1 if binarize == "none" else 255)  # unbinarised they are seen as they are
    assert (tmp_path / "x.npy").stat().st_size > 2048 * MB - 784 and num_data > 2_000_000
    _, peak = peaks(tmp_path / "x.npy", binarize=binarize, timeout=2900)
    assert peak < 1024 * MB


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_rows_of_a_map_are_read_the_same_again(mode, tmp_path):
    stored = np.arange(600 * 50, dtype=np.float32).reshape(600, 50)
    np.save(tmp_path / "x.npy", stored)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode != "r":
        mapped[7] = -1.0  # a private map keeps this to itself, and must not lose it
        stored[7] = -1.0
    rows = torch.tensor([599, 7, 7, 0])
    for _ in range(2):
        assert torch.equal(read(mapped, rows), torch.from_numpy(stored[rows.numpy()]))
        assert torch.equal(read(mapped, torch.arange(5, 9)), torch.from_numpy(stored[5:9]))


@pytest.mark.filterwarnings("ignore:.* stand in the training data too")  # they are to be the same
def test_a_map_is_measured_in_pieces_that_cover_it(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 3)))
    monkeypatch.setattr("ppvae.data.arrays.CHUNK_ELEMENTS", 90)
    mapped = Data.of(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert [len(range(100)[rows]) for rows in mapped.pieces(100)] == [30, 30, 30, 10]
    held = Data.of(np.load(tmp_path / "x.npy"))
    assert held.pieces(100) == [slice(0, 100)]
    model, guide = pairs.exact()
    # With the exact posterior every log weight is log p(x), whatever is drawn: the two differ by rounding alone.
    found = [
        ppvae.fit(model, guide, data, validation=data, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).history[0]
        for data in (mapped, held)
    ]
    for name in ("train_elbo", "validation_elbo", "validation_elbo_se", "active_units"):
        assert abs(found[0][name] - found[1][name]) < 1e-9
    assert abs(found[0]["validation_elbo"] - model.log_evidence(held.x).mean().item()) < 1e-9
