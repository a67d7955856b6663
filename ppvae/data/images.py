"""MNIST and Fashion-MNIST: four IDX files of the same names, looked for in a folder. Nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ppvae.data.idx import read_idx
from ppvae.errors import DataError, MissingFileError

LEVELS = 255
HELD_OUT = 5000  # of the 60,000 training rows, for validation
VARIABLE = "PPVAE_DATA"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
INSTALLED = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}  # Debian's folder
OBTAIN = {
    "mnist": "get the four files from https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "apt install dataset-fashion-mnist (Debian, Ubuntu), or the four files from https://github.com/zalandoresearch/fashion-mnist",
}
FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}

Part = tuple[Tensor, Tensor]


def image_files(name: str, directory: str | os.PathLike[str] | None = None) -> tuple[Part, Part]:
    """Images (N, H, W) and labels (N,), bytes: for training, then the test.

    Args:
        name: ``mnist`` or ``fashion-mnist``.
        directory: Holds the files, or a folder of that name with them. Else that of ``PPVAE_DATA``, else where they are installed.

    Raises:
        MissingFileError: a file is not there.
        DataError: a file is damaged, its images and labels disagree, or it belongs to the other data set.
    """
    paths = _found(name, directory)
    images, labels, test_images, test_labels = (torch.from_numpy(read_idx(path)) for path in paths)
    first = labels[:10].tolist() if labels.ndim == 1 else []
    other = next((kind for kind, known in FIRST_LABELS.items() if kind != name and first == known), None)
    if other is not None:  # the two have files of the same names, and a folder tells them not apart
        raise DataError(f"needed {name}, and the labels are those of {other}", where=str(paths[1]), mend=f"a folder {name} of its own")
    for path, values, ndim in zip(paths, (images, labels, test_images, test_labels), (3, 1, 3, 1), strict=True):
        if values.ndim != ndim or values.dtype != torch.uint8:
            raise DataError(f"needed bytes with {ndim} dimensions, and {values.dtype} of shape {tuple(values.shape)} came", where=str(path))
    return (images, labels), (test_images, test_labels)


def _found(name: str, directory: str | os.PathLike[str] | None) -> list[Path]:
    """The four files, from the first folder that has them all."""
    told: list[str] = []
    for folder in _folders(name, directory):
        paths = [_file(folder, stem) for stem in FILES]
        found = [path for path in paths if path is not None]
        if len(found) == len(FILES):
            return found
        lacking = next(stem for stem, path in zip(FILES, paths, strict=True) if path is None)
        told.append(f"{folder} ({f'has no {lacking}[.gz]' if folder.is_dir() else 'no such folder'})")
    needed = f"{FILES[0]}[.gz] and three more files"
    raise MissingFileError(
        f"needed the files of {name} ({needed}), and they are not there",
        where="looked in " + ", ".join(told) if told else "no folder to look in",
        mend=[OBTAIN[name], f'put them in a folder and name it: directory="...", or the variable {VARIABLE}'],
    )


def _folders(name: str, directory: str | os.PathLike[str] | None) -> list[Path]:
    if directory is not None:
        return _named_or_itself(directory, name)
    set_by_user = os.environ.get(VARIABLE)
    folders = _named_or_itself(set_by_user, name) if set_by_user else []
    return folders + ([INSTALLED[name]] if name in INSTALLED else [])


def _named_or_itself(directory: str | os.PathLike[str], name: str) -> list[Path]:
    folder = Path(directory).expanduser()
    return [folder / name, folder]


def _file(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")  # as some mirrors name them
    return next((folder / file for file in (stem, stem + ".gz", dotted, dotted + ".gz") if (folder / file).is_file()), None)
