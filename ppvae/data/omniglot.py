"""OMNIGLOT: handwritten characters of 50 alphabets, the drawings as published or the 28 x 28 images of the IWAE paper.

References:
    Lake, Salakhutdinov, Tenenbaum (2015), Human-level concept learning through probabilistic program induction; MIT licence.
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, sec. 5: ``chardata.mat``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ppvae.data.cache import VARIABLE, cache_folder, first_with, folders
from ppvae.data.download import Remote, fetched
from ppvae.data.pictures import Size, read_pictures
from ppvae.errors import DataError, MissingFileError

SIDE = 28  # of the images, unless another is asked for; the drawings have 105
HELD_OUT = 1345  # of the training images, for validation, as is usual
HOST = "https://github.com/brendenlake/omniglot/raw/master/python/"
# Bytes and SHA-256 as TensorFlow Datasets publishes them (url_checksums/omniglot.txt).
REMOTES = {
    "images_background.zip": Remote(
        HOST + "images_background.zip", 9464212, "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640"
    ),
    "images_evaluation.zip": Remote(
        HOST + "images_evaluation.zip", 6462886, "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"
    ),
}
CHARDATA = "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]


def drawings(directory: str | os.PathLike[str] | None, *, download: bool, size: Size = None) -> tuple[Part, Part]:
    """Images (N, H, W), bytes, ink 255 on 0, and the number of each character (N,): the background set, then the evaluation set.

    Args:
        directory: Holds the two archives, or a folder ``omniglot`` with them. Else that of ``PPVAE_DATA`` or the cache.
        download: Fetch them into the cache where they are not there and no ``directory`` was named.
        size: Side of the images, 28 unless another is named; each pixel is the average of its part of the 105 x 105 drawing.
    """
    parts = []
    for name, remote in REMOTES.items():
        path = first_with(name, folders("omniglot", directory))
        if path is None and download and directory is None:
            path = fetched(remote, cache_folder() / "omniglot" / name)
        if path is None:
            raise MissingFileError(
                f"needed the files of omniglot ({', '.join(REMOTES)}), and {name} is not there",
                where="looked in " + ", ".join(map(str, folders("omniglot", directory))),
                mend=[
                    f"get them from {HOST}",
                    f'put them in a folder and name it: directory="...", or the variable {VARIABLE}',
                    f'the 28 x 28 images of the IWAE paper: load("chardata.mat"), from {CHARDATA}',
                ],
            )
        images, labels, _ = read_pictures(path, SIDE if size is None else size, grey=True)
        parts.append((255 - images, np.zeros(len(images), dtype=np.int64) if labels is None else labels))
    (images, labels), (test_images, test_labels) = parts
    return (images, labels), (test_images, test_labels + labels.max() + 1)


def read_chardata(path: Path) -> tuple[Part, Part]:
    """Images (N, 28, 28), float32 in [0, 1], and the alphabet of each (N,), of Burda's ``chardata.mat``: for training, then the test.

    Raises:
        DataError: it is no MATLAB file, or another one.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=["data", "target", "testdata", "testtarget"])
    except Exception as error:  # SciPy raises what it stumbles over
        problem = f"needed a MATLAB file, and it cannot be read ({error})"
        raise DataError(problem, where=str(path), mend=f"get it from {CHARDATA}") from error
    lacking = [name for name in ("data", "target", "testdata", "testtarget") if name not in found]
    if lacking:
        raise DataError(
            f"needed the arrays of the IWAE paper's OMNIGLOT, and {', '.join(lacking)} did not come",
            where=str(path),
            mend=["np.save('data.npy', scipy.io.loadmat(path)[name]) for another MATLAB file", f"get it from {CHARDATA}"],
        )
    return _part(found, "data", "target", path), _part(found, "testdata", "testtarget", path)


def _part(found: dict[str, Any], images: str, targets: str, path: Path) -> Part:
    """Columns of pixels, themselves column by column, and columns of one-hot alphabets."""
    pixels, alphabets = found[images], found[targets]
    if pixels.ndim != 2 or len(pixels) != SIDE**2 or alphabets.ndim != 2 or alphabets.shape[1] != pixels.shape[1]:
        raise DataError(
            f"needed {images} of shape (784, N) and {targets} of shape (50, N), and {pixels.shape} and {alphabets.shape} came",
            where=str(path),
        )
    upright = pixels.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)
    return np.ascontiguousarray(upright, dtype=np.float32), alphabets.argmax(0)
