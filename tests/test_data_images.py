"""MNIST and Fashion-MNIST from files in a folder: found, split, and told apart."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from test_data_idx import idx_bytes

from ppvae import data
from ppvae.data import images
from ppvae.errors import DataError, MissingFileError

IMAGES = np.arange(30 * 2 * 3, dtype=np.uint8).reshape(30, 2, 3)  # every image another one
LABELS = np.arange(30, dtype=np.uint8) % 10
SET = {
    "train-images-idx3-ubyte": IMAGES[:20],
    "train-labels-idx1-ubyte": LABELS[:20],
    "t10k-images-idx3-ubyte": IMAGES[20:],
    "t10k-labels-idx1-ubyte": LABELS[20:],
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv("PPVAE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(images, "INSTALLED", {"fashion-mnist": tmp_path / "usr"})


def written(folder, *, without="", suffix="", pack=bytes, **other):
    """A folder with the four files, or all but one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (SET | other).items():
        if name != without:
            (folder / (name + suffix)).write_bytes(pack(idx_bytes(array)))
    return folder


def load(name="mnist", **options):
    return data.load(name, validation=5, **options)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)], ids=["plain", "gzipped"])
def test_files_are_read_plain_or_gzipped(tmp_path, suffix, pack):
    splits = load(directory=written(tmp_path, suffix=suffix, pack=pack))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [15, 5, 10]
    assert torch.equal(splits.test.x, torch.from_numpy(IMAGES[20:].reshape(10, 6) >= 128).to(torch.float32))
    assert splits.test.labels.tolist() == LABELS[20:].tolist()


def test_names_with_a_dot_are_found(tmp_path):
    for path in written(tmp_path).iterdir():
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(load(directory=tmp_path).test) == 10


def test_training_rows_keep_the_order_of_the_file(tmp_path):
    train = load(directory=written(tmp_path), flatten=False).train
    assert train.event_shape == (2, 3)
    first_pixels = train.raw[:, 0, 0].tolist()
    assert first_pixels == sorted(first_pixels)


def test_training_and_validation_share_no_row(tmp_path):
    splits = load(directory=written(tmp_path))
    both = splits.train.raw[:, 0].tolist() + splits.validation.raw[:, 0].tolist()
    assert sorted(both) == IMAGES[:20, 0, 0].tolist()


def test_test_rows_draw_from_seeds_of_their_own(tmp_path):
    same = {"t10k-images-idx3-ubyte": IMAGES[:20], "t10k-labels-idx1-ubyte": LABELS[:20]}
    splits = load(directory=written(tmp_path, **same), binarize="static")
    drawn = {row.raw.numpy().tobytes(): row.x for row in (splits.test[torch.tensor([i])] for i in range(20))}
    assert any(not torch.equal(drawn[row.raw.numpy().tobytes()], row.x) for row in (splits.train[i : i + 1] for i in range(15)))


@pytest.mark.parametrize("place", ["", "mnist"], ids=["itself", "a folder of the name"])
def test_the_variable_names_a_folder(tmp_path, monkeypatch, place):
    written(tmp_path / "all" / place)
    monkeypatch.setenv("PPVAE_DATA", str(tmp_path / "all"))
    assert len(load().test) == 10


def test_the_argument_goes_before_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("PPVAE_DATA", str(written(tmp_path / "other")))
    with pytest.raises(MissingFileError):
        load(directory=tmp_path / "empty")


def test_installed_files_are_found_where_the_variable_has_none(tmp_path, monkeypatch):
    written(tmp_path / "usr")
    monkeypatch.setenv("PPVAE_DATA", str(tmp_path / "none"))
    assert load("fashion-mnist").train.name == "fashion-mnist"


def test_missing_files_tell_where_they_were_wanted_and_how_to_get_them(tmp_path):
    folder = written(tmp_path / "f", without="t10k-labels-idx1-ubyte")
    with pytest.raises(MissingFileError) as caught:
        load("fashion-mnist", directory=folder)
    assert str(caught.value) == (
        "needed the files of fashion-mnist (train-images-idx3-ubyte[.gz] and three more files), and they are not there\n"
        f"  where: looked in {folder / 'fashion-mnist'} (no such folder), {folder} (has no t10k-labels-idx1-ubyte[.gz])\n"
        "  mend:  apt install dataset-fashion-mnist (Debian, Ubuntu), "
        "or the four files from https://github.com/zalandoresearch/fashion-mnist\n"
        '     or: put them in a folder and name it: directory="...", or the variable PPVAE_DATA'
    )


def test_files_of_the_other_data_set_are_recognised(tmp_path):
    labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5] * 2, dtype=np.uint8)  # Fashion-MNIST begins so
    with pytest.raises(DataError, match="needed mnist, and the labels are those of fashion-mnist"):
        load(directory=written(tmp_path, **{"train-labels-idx1-ubyte": labels}))


def test_images_and_labels_of_unequal_number_are_told(tmp_path):
    with pytest.raises(DataError, match=r"needed 20 labels, one a row, and an array of shape \(19,\) came"):
        load(directory=written(tmp_path, **{"train-labels-idx1-ubyte": LABELS[:19]}))


def test_swapped_files_are_told(tmp_path):
    with pytest.raises(DataError, match=r"needed bytes with 3 dimensions, and torch.uint8 of shape \(20,\) came"):
        load(directory=written(tmp_path, **{"train-images-idx3-ubyte": LABELS[:20]}))


@pytest.mark.parametrize("options", [{"test": 5}, {"levels": 16}, {"labels": LABELS}], ids=["test", "levels", "labels"])
def test_options_for_other_data_are_refused(tmp_path, options):
    with pytest.raises(DataError, match="of its own"):
        load(directory=written(tmp_path), **options)


@pytest.mark.skipif(not images.INSTALLED["fashion-mnist"].is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_installed_fashion_mnist_has_its_known_sizes(monkeypatch):
    monkeypatch.undo()
    splits = data.load("fashion-mnist")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [55_000, 5_000, 10_000]
    assert splits.train.event_shape == (784,)
    assert splits.test.labels is not None
    assert splits.test.labels.bincount().tolist() == [1000] * 10
