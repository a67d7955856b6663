"""CelebA: 202,599 aligned faces in colour with 40 attributes, for research that is not commercial.

References:
    Liu, Luo, Wang, Tang (2015), Deep learning face attributes in the wild; http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.
    Larsen, Sønderby, Larochelle, Winther (2016), Autoencoding beyond pixels using a learned similarity metric, on crops of the faces.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ppvae.data.archives import members
from ppvae.data.cache import VARIABLE, cache_folder, first_with, folders
from ppvae.data.download import Remote, fetched
from ppvae.data.pictures import LEVELS, as_bytes, picture
from ppvae.errors import DataError, MissingFileError

__all__ = ["LEVELS", "faces"]

SIDE, CROP = 64, 148  # of the images unless another is asked for; of the square about the middle of 178 x 218 that they are made from
PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
HOST = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
# Bytes and SHA-256 as TensorFlow Datasets publishes them (url_checksums/celeb_a.txt).
REMOTES = {
    "img_align_celeba.zip": Remote(
        HOST + "0B7EVK8r0v71pZjFTYXZWM3FlRnM", 1443490838, "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74"
    ),
    "list_attr_celeba.txt": Remote(
        HOST + "0B7EVK8r0v71pblRyaVFSWGxPY0U", 26721026, "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0"
    ),
    "list_eval_partition.txt": Remote(
        HOST + "0B7EVK8r0v71pY0NSMzRuSXJEVkk", 2836386, "fc955bcb3ef8fbdf7d5640d9a8693a8431b5f2ee291a5c1449a1549e7e073fe7"
    ),
}

Array = np.ndarray[Any, Any]


def faces(
    directory: str | os.PathLike[str] | None, *, download: bool, size: int | None = None, attribute: str | None = None
) -> tuple[Array, Array | None, Array]:
    """Images (N, 3, H, H), bytes, a memory map; an attribute (N,), 0 or 1, or None; the part of each (N,): 0 train, 1 validation, 2 test.

    Args:
        directory: Holds the three files, or a folder ``celeba`` with them. Else that of ``PPVAE_DATA`` or the cache.
        download: Fetch them into the cache where they are not there and no ``directory`` was named.
        size: Side of the images, 64 unless another is named: the middle 148 x 148, averaged. Made once and kept beside the archive.
        attribute: Name of the attribute that is the label.

    Raises:
        MissingFileError, DataError: a file is not there or damaged, or there is no such attribute.
    """
    archive, attributes, partition = (_found(name, directory, download) for name in REMOTES)
    parts = _table(partition, 0)
    order = {name: row for row, name in enumerate(parts)}
    labels = None if attribute is None else _attribute(attributes, attribute, order)
    images = _images(archive, SIDE if size is None else size, order)
    return images, labels, np.array([int(values[0]) for values in parts.values()], dtype=np.int64)


def _found(name: str, directory: str | os.PathLike[str] | None, download: bool) -> Path:
    path = first_with(name, folders("celeba", directory))
    if path is None and download and directory is None:
        path = fetched(REMOTES[name], cache_folder() / "celeba" / name)
    if path is None:
        raise MissingFileError(
            f"needed the files of celeba ({', '.join(REMOTES)}), and {name} is not there",
            where="looked in " + ", ".join(map(str, folders("celeba", directory))),
            mend=[f"get it from {PAGE}", f'put them in a folder and name it: directory="...", or the variable {VARIABLE}'],
        )
    return path


def _table(path: Path, head: int) -> dict[str, list[str]]:
    """Rows of a text file after its head, by their first word."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()[head:]
    except UnicodeDecodeError as error:
        raise DataError("needed a table in plain text, and other bytes came", where=str(path), mend=f"get it from {PAGE}") from error
    rows = {words[0]: words[1:] for words in map(str.split, lines) if words}
    widths = {len(values) for values in rows.values()}
    if len(widths) != 1 or widths == {0} or any(value not in ("-1", "0", "1", "2") for values in rows.values() for value in values):
        raise DataError("needed a name and whole numbers in each line, as many in all", where=str(path), mend=f"get it from {PAGE}")
    return rows


def _attribute(path: Path, name: str, order: dict[str, int]) -> Array:
    with path.open(encoding="ascii", errors="replace") as file:
        names = [file.readline(), file.readline()][1].split()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise DataError(
            f"needed one of the {len(names)} attributes as label, and {name!r} came",
            where=str(path),
            mend=[f"did you mean {near[0]!r}?" if near else "", f"known: {', '.join(names)}"],
        )
    rows = _table(path, 2)
    if rows.keys() != order.keys():
        raise DataError(f"needed the {len(order):,} faces of the partition, and {len(rows):,} came", where=str(path))
    column = names.index(name)
    return np.array([rows[face][column] == "1" for face in order], dtype=np.int64)


def _images(archive: Path, side: int, order: dict[str, int]) -> Array:
    """A memory map of all images, in the partition's order, made where it is not there yet.

    Its name holds the archive's list of members and their checksums, so that another archive makes another file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            listed = "\n".join(f"{info.filename} {info.CRC} {info.file_size}" for info in opened.infolist())
    except zipfile.BadZipFile as error:
        problem = f"needed a whole zip file, and it does not unpack ({error})"
        raise DataError(problem, where=str(archive), mend=f"get it from {PAGE}") from error
    path = archive.with_name(f"faces-{side}-{hashlib.sha256(listed.encode()).hexdigest()[:12]}.npy")
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.is_file():
            _decode(archive, side, order, path)
    return np.lib.format.open_memmap(path, mode="r")


def _decode(archive: Path, side: int, order: dict[str, int], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(order), 3, side, side))
    seen = 0
    for name, content in members(archive, (".jpg", ".png")):
        row = order.get(name.rpartition("/")[2])
        if row is None:
            continue
        image = picture(content, f"{archive}, {name}")
        left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
        images[row] = as_bytes(image.crop((left, top, left + CROP, top + CROP)), False, (side, side))
        seen += 1
    images.flush()
    del images
    if seen != len(order):
        partial.unlink()
        raise DataError(f"needed {len(order):,} faces, and {seen:,} came", where=str(archive), mend=f"get it from {PAGE}")
    os.replace(partial, path)
