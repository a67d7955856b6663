"""Files of NumPy: left on disk, read by rows, never unpickled."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest
import torch

from ppvae import data
from ppvae.data import Data
from ppvae.data.numpy_files import read_npy, read_npz
from ppvae.errors import DataError, MissingFileError

X = np.arange(40, dtype=np.float32).reshape(20, 2) / 7
Y = np.arange(20)


def npy(folder, x=X):
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def npz(folder, save=np.savez, **arrays):
    save(folder / "x.npz", **arrays)
    return folder / "x.npz"


def test_a_npy_file_is_left_on_disk(tmp_path):
    found = Data.of(read_npy(npy(tmp_path)))
    assert isinstance(found.raw, np.memmap)
    assert isinstance(found[3:9].raw, np.memmap)
    changed = np.load(npy(tmp_path), mmap_mode="r+")
    changed[5] = 1000
    assert found.batch(torch.tensor([5]), None).tolist() == [[1000, 1000]]


def test_a_batch_reads_its_rows_alone(tmp_path, monkeypatch):
    found, read = Data.of(read_npy(npy(tmp_path)))[2:], []

    def recorded(self, rows):
        read.append(rows)
        return np.ndarray.__getitem__(self, rows)

    monkeypatch.setattr(np.memmap, "__getitem__", recorded)
    assert np.array_equal(found.batch(torch.tensor([7, 1]), None).numpy(), X[[9, 3]])
    assert [rows.tolist() for rows in read] == [[9, 3]]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<u2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_array_is_the_array(tmp_path, dtype, order):
    x = np.asarray(np.arange(24).reshape(2, 3, 4) % 5, dtype=dtype, order=order)
    found = data.Data.from_arrays(read_npy(npy(tmp_path, x)), flatten=True)
    assert np.array_equal(found.x.numpy(), x.reshape(2, 12))
    assert np.array_equal(found.batch(torch.tensor([1, 0]), None).numpy(), x.reshape(2, 12)[[1, 0]])


def test_a_mapped_array_inside_a_tuple_becomes_float32(tmp_path):
    found = Data.of((read_npy(npy(tmp_path, X.astype(">f2"))), Y))
    assert [leaf.dtype for leaf in found.batch(torch.tensor([1]), None)] == [torch.float32, torch.int64]


def test_hash_of_a_mapped_array_is_that_of_its_bytes(tmp_path):
    found = Data.of(read_npy(npy(tmp_path)))
    assert found.sha256 == hashlib.sha256(X.tobytes()).hexdigest()
    assert "x" not in vars(found)  # it was not loaded for it


def test_static_draws_of_a_mapped_array_are_those_in_memory(tmp_path):
    grey = X / X.max()
    mapped, held = (Data.from_arrays(x, binarize="static") for x in (read_npy(npy(tmp_path, grey)), grey))
    rows = torch.tensor([4, 17])
    assert torch.equal(mapped.batch(rows, None), held.x[rows])


def test_dynamic_draws_of_a_mapped_array_are_fresh(tmp_path):
    found = Data.from_arrays(read_npy(npy(tmp_path, np.full((500, 2), 0.5))), binarize="dynamic")
    first, second = (found.batch(slice(None), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@pytest.mark.parametrize("labels", ["y", "labels"])
def test_a_npz_file_holds_x_and_labels(tmp_path, save, labels):
    x, y = read_npz(npz(tmp_path, save, other=Y, x=X, **{labels: Y}))
    assert np.array_equal(x, X)
    assert y is not None
    assert np.array_equal(y, Y)
    assert isinstance(x, np.memmap) == (save is np.savez)


def test_the_only_array_of_a_npz_file_needs_no_name(tmp_path):
    assert np.array_equal(read_npz(npz(tmp_path, images=X, y=Y))[0], X)


def test_several_arrays_without_x_are_told(tmp_path):
    path = npz(tmp_path, a=X, b=X)
    with pytest.raises(DataError) as caught:
        read_npz(path)
    assert str(caught.value) == (
        f"needed an array named x, and a, b came\n  where: {path}\n  mend:  np.savez(path, x=x, y=labels)\n"
        '     or: hand in the array: Data.from_arrays(np.load(path)["..."])'
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_a_flipped_bit_in_a_npz_file_is_noticed(tmp_path, save):
    path = npz(tmp_path, save, x=np.random.default_rng(0).normal(size=(50, 2)))
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="the file cannot be read as such"):
        read_npz(path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [(8, 1, "it is encrypted"), (10, 201, "That compression method is not supported")],
    ids=["encrypted", "another compression"],
)
def test_a_member_that_cannot_be_unpacked_is_told(tmp_path, place, value, said):
    path = npz(tmp_path, np.savez_compressed, x=np.ones((5, 2)))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + place] = value  # of the archive's directory
    path.write_bytes(content)
    with pytest.raises(DataError, match="the file cannot be read as such") as caught:
        read_npz(path)
    assert f"({said})" in str(caught.value)


@pytest.mark.parametrize("write", [npy, lambda folder, x: npz(folder, x=x)], ids=["npy", "npz"])
def test_python_objects_are_never_unpickled(tmp_path, write):
    path = write(tmp_path, np.array([[{}]], dtype=object))
    with pytest.raises(DataError, match="needed arrays of numbers in NumPy's form"):
        data.load(path)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize(
    "content", [b"", b"no such form", b"\x93NUMPY\x01\0\x10\0", b"PK\x03\x04 cut"], ids=["empty", "text", "npy", "zip"]
)
def test_a_damaged_file_is_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="the file cannot be read as such"):
        data.load(tmp_path / name)


def test_a_cut_npy_file_is_told(tmp_path):
    path = npy(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="the file cannot be read as such"):
        data.load(path)


@pytest.mark.parametrize("write", [npy, lambda folder, x: npz(folder, x=x)], ids=["npy", "npz"])
def test_an_empty_array_in_a_file_is_told(tmp_path, write):
    with pytest.raises(DataError, match="needed at least one row and one column"):
        data.load(write(tmp_path, np.zeros((0, 3))))


def test_an_error_in_a_file_names_the_file(tmp_path):
    path = npy(tmp_path, np.array([[0.0], [np.nan], [1.0]]))
    with pytest.raises(DataError, match=f"where: {path}, row 1, column 0"):
        data.load(path)


def test_load_splits_a_file_and_leaves_values_as_they_stand(tmp_path):
    splits = data.load(npz(tmp_path, x=X, y=Y))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 2, 2]
    assert (splits.train.binarize, splits.train.measure) == ("none", "Lebesgue")
    assert np.array_equal(splits.test.x.numpy(), X[splits.test.labels])


def test_load_takes_an_idx_file_of_images(tmp_path):
    (tmp_path / "some-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255, 128, 1, 127, 200]))
    splits = data.load(str(tmp_path / "some-idx3-ubyte"))
    rows = torch.cat([splits.train.x, splits.validation.x, splits.test.x]).tolist()
    assert sorted(rows) == [[0, 1], [0, 1], [1, 0]]


def test_a_file_that_is_not_there_is_told():
    with pytest.raises(MissingFileError) as caught:
        data.load("nowhere.npy")
    assert str(caught.value) == (
        "needed a .npy, .npz, .csv, .tsv, .parquet, .mat, IDX, .txt or .json (music) file, or a folder or archive of pictures, and there is none\n"
        "  where: nowhere.npy\n"
        "  mend:  mend the path; it is taken from the working folder"
    )


def test_a_file_of_another_kind_is_told(tmp_path):
    (tmp_path / "x.xlsx").write_text("1,2\n")
    with pytest.raises(DataError, match=r"needed a \.npy, .*, told by its name, and x\.xlsx came"):
        data.load(tmp_path / "x.xlsx")


def test_a_folder_of_idx_files_is_told_from_one_of_pictures(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="and a folder with the IDX file t10k-images-idx3-ubyte.gz came"):
        data.load(tmp_path)


def test_an_archive_of_other_things_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", b"not an array at all")
    with pytest.raises(DataError, match="the file cannot be read as such"):
        data.load(tmp_path / "x.npz")


def test_an_array_that_unpacks_to_more_than_memory_should_give_is_refused_by_its_header(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 1000), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    monkeypatch.setattr("ppvae.data.numpy_files.MAX_BYTES", 100_000)
    with pytest.raises(DataError, match=r"'x.npy' would take 1,000,128 bytes of memory unpacked, more than 100,000"):
        read_npz(tmp_path / "bomb.npz")
    np.savez(tmp_path / "plain.npz", x=np.zeros((1000, 1000), np.uint8))
    assert read_npz(tmp_path / "plain.npz")[0].shape == (1000, 1000)  # which stays on the disk
