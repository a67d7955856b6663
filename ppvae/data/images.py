"""MNIST and Fashion-MNIST: four IDX files of the same names, looked for in a folder, else downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ppvae.data.cache import VARIABLE, cache_folder, folders
from ppvae.data.download import Remote, fetched
from ppvae.data.idx import read_idx
from ppvae.errors import DataError, MissingFileError

LEVELS = 255
HELD_OUT = 5000  # of the 60,000 training rows, for validation
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
INSTALLED = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}  # Debian's folder
OBTAIN = {
    "mnist": "get the four files from https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "apt install dataset-fashion-mnist (Debian, Ubuntu), or the four files from https://github.com/zalandoresearch/fashion-mnist",
}
HOSTS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# Bytes and SHA-256 as TensorFlow Datasets publishes them (url_checksums/mnist.txt, fashion_mnist.txt), in the order of FILES.
PUBLISHED = {
    "mnist": (
        (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion-mnist": (
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}
FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}

Part = tuple[Tensor, Tensor]


def image_files(name: str, directory: str | os.PathLike[str] | None = None, *, download: bool = False) -> tuple[Part, Part]:
    """Images (N, H, W) and labels (N,), bytes: for training, then the test.

    Args:
        name: ``mnist`` or ``fashion-mnist``.
        directory: Holds the files, or a folder of that name with them. Else that of ``PPVAE_DATA`` or the cache, else where they are
            installed.
        download: Fetch the files into the cache where they are nowhere and no ``directory`` was named.

    Raises:
        MissingFileError: a file is not there.
        DataError: a file is damaged, its images and labels disagree, or it belongs to the other data set.
    """
    paths = _found(name, directory, download and directory is None)
    images, labels, test_images, test_labels = (torch.from_numpy(read_idx(path)) for path in paths)
    first = labels[:10].tolist() if labels.ndim == 1 else []
    other = next((kind for kind, known in FIRST_LABELS.items() if kind != name and first == known), None)
    if other is not None:  # the two have files of the same names, and a folder tells them not apart
        raise DataError(f"needed {name}, and the labels are those of {other}", where=str(paths[1]), mend=f"a folder {name} of its own")
    for path, values, ndim in zip(paths, (images, labels, test_images, test_labels), (3, 1, 3, 1), strict=True):
        if values.ndim != ndim or values.dtype != torch.uint8:
            raise DataError(f"needed bytes with {ndim} dimensions, and {values.dtype} of shape {tuple(values.shape)} came", where=str(path))
    return (images, labels), (test_images, test_labels)


def remotes(name: str) -> dict[str, Remote]:
    """The four files as they are published, by name."""
    return {f"{stem}.gz": Remote(HOSTS[name] + f"{stem}.gz", *of) for stem, of in zip(FILES, PUBLISHED[name], strict=True)}


def _found(name: str, directory: str | os.PathLike[str] | None, download: bool) -> list[Path]:
    """The four files, from the first folder that has them all."""
    told: list[str] = []
    for folder in folders(name, directory) + ([INSTALLED[name]] if directory is None and name in INSTALLED else []):
        paths = [_file(folder, stem) for stem in FILES]
        found = [path for path in paths if path is not None]
        if len(found) == len(FILES):
            return found
        lacking = next(stem for stem, path in zip(FILES, paths, strict=True) if path is None)
        told.append(f"{folder} ({f'has no {lacking}[.gz]' if folder.is_dir() else 'no such folder'})")
    if download:
        return [fetched(remote, cache_folder() / name / file) for file, remote in remotes(name).items()]
    needed = f"{FILES[0]}[.gz] and three more files"
    raise MissingFileError(
        f"needed the files of {name} ({needed}), and they are not there",
        where="looked in " + ", ".join(told),
        mend=[OBTAIN[name], f'put them in a folder and name it: directory="...", or the variable {VARIABLE}'],
    )


def _file(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")  # as some mirrors name them
    return next((folder / file for file in (stem, stem + ".gz", dotted, dotted + ".gz") if (folder / file).is_file()), None)
