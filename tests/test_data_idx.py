"""IDX files are read in all their types; a damaged one is told from a foreign one."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from ppvae.data.idx import read_idx
from ppvae.errors import DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
AGAIN = "\n  mend:  fetch the file again: it was cut short or damaged on its way"


def idx_bytes(array):
    """The content of an IDX file, written from the format's description: 00 00, type, dimensions, sizes, values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize("dtype", CODES)
def test_arrays_come_back(tmp_path, pack, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a.idx").write_bytes(pack(idx_bytes(array)))
    found = read_idx(tmp_path / "a.idx")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_bytes_are_read_as_the_format_says(tmp_path):
    (tmp_path / "a.idx").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 20, 21, 255]))
    assert read_idx(tmp_path / "a.idx").tolist() == [[10, 11, 12], [20, 21, 255]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the first bytes are missing"),
        (b"\x89PNG....", "the first bytes are 89 50 4e 47"),
        (b"\0\0\x07\x01\0\0\0\0", "the first bytes are 00 00 07 01"),
        (b"\0\0\x08\x03\0\0", "needed 16 bytes of header, and 6 came"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", r"needed 13 bytes for an array of shape \(5,\), and 12 came"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", r"needed 11 bytes for an array of shape \(3,\), and more came"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "would take 18,446,744,065,119,617,037 bytes of memory, more than 8,589,934,592"),
    ],
    ids=["empty", "foreign", "unknown type", "header", "short", "long", "absurd"],
)
def test_a_damaged_file_tells_what_was_needed(tmp_path, content, problem):
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_idx(tmp_path / "a.idx")


def test_the_message_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcd"))
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert str(caught.value) == f"needed 13 bytes for an array of shape (5,), and 12 came, once unpacked\n  where: {path}{AGAIN}"


@pytest.mark.parametrize("cut", [-4, 12, 3], ids=["checksum", "middle", "header"])
def test_a_cut_gzip_file_is_told(tmp_path, cut):
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx_bytes(np.arange(100, dtype="u1")))[:cut])
    with pytest.raises(DataError, match="needed a whole gzip file, and it does not unpack"):
        read_idx(tmp_path / "a.gz")


def test_a_bomb_is_unpacked_to_what_its_header_tells(tmp_path, monkeypatch):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + bytes(50_000_000)))
    read, real = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or real(self, size))
    with pytest.raises(DataError, match=r"needed 13 bytes for an array of shape \(5,\), and more came, once unpacked"):
        read_idx(tmp_path / "a.gz")
    assert max(read) <= 1024
