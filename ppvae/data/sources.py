"""``load``: a data set by its name, its file, or its arrays."""

from __future__ import annotations

import difflib
import os
from functools import partial
from pathlib import Path
from typing import Any

from ppvae.data import digits, images
from ppvae.data.data import Data
from ppvae.data.idx import read_idx
from ppvae.data.numpy_files import read_npy, read_npz
from ppvae.data.splits import Splits, split, split_off_validation
from ppvae.data.tree import is_leaf
from ppvae.errors import DataError, MissingFileError

NAMES = ("digits", "fashion-mnist", "mnist")
SHARE = 0.1  # of a user's rows, for validation, and as many for the test
FORMS = "a .npy, .npz or IDX file"


def names() -> list[str]:
    """The data sets that ``load`` knows by name."""
    return list(NAMES)


def load(
    source: Any,
    *,
    binarize: str | None = None,
    seed: int = 0,
    flatten: bool = True,
    validation: float | None = None,
    directory: str | os.PathLike[str] | None = None,
    test: float | None = None,
    levels: float | None = None,
    labels: Any = None,
) -> Splits:
    """Training, validation and test data.

    Args:
        source: A name (``names()``); a path to a ``.npy``, ``.npz`` or IDX file; or arrays, (N, *event).
        binarize: ``threshold``, ``static``, ``dynamic`` or ``none``. By default ``threshold`` for images (the names, IDX
            files) and ``none`` for other arrays. Printing the result tells which.
        seed: Of the split and of the draws.
        flatten: Event shape (D,); else that of the images, such as (28, 28).
        validation: Rows held out of training, a number (int) or a share (float). By default 360 of digits, 5,000 of the
            60,000 images, a tenth of other data.
        directory: Holds the files of MNIST or Fashion-MNIST, or a folder of that name with them. Else that of the
            environment variable ``PPVAE_DATA``, else where Debian installs them.
        test: As ``validation``; MNIST and Fashion-MNIST have a test set of their own.
        levels: The grey value that is white, where other data are binarised and leave it open.
        labels: (N,) whole numbers, for data that come without.

    Raises:
        MissingFileError: a file is not there; it tells how to get it.
        DataError: an unknown name, a damaged file, or values that cannot be used.
    """
    if not isinstance(source, str) or source not in NAMES:
        name, x, own_labels, usual = _read(source)
        labels = own_labels if labels is None else labels
        flatten = flatten and is_leaf(x)
        data = Data.from_arrays(x, labels, name=name, binarize=binarize or usual, levels=levels, seed=seed, flatten=flatten)
        return split(data, validation=_or(validation, SHARE), test=_or(test, SHARE), seed=seed)
    if labels is not None or levels is not None:
        raise DataError(f"{source} has labels and levels of its own, and others came", where="labels, levels", mend="leave them out")
    build = partial(Data.from_arrays, name=source, binarize=binarize or "threshold", seed=seed, flatten=flatten)
    if source == "digits":
        data = build(*digits.digits(), levels=digits.LEVELS)
        return split(data, validation=_or(validation, digits.HELD_OUT), test=_or(test, digits.HELD_OUT), seed=seed)
    if test is not None:
        raise DataError(
            f"{source} has a test set of its own, and test={test} came", where="test", mend="leave it out, and take .test[:1000]"
        )
    trained, tested = images.image_files(source, directory)
    data = build(*trained, levels=images.LEVELS)
    last = build(*tested, levels=images.LEVELS, first_row=len(data))
    return split_off_validation(data, last, validation=_or(validation, images.HELD_OUT), seed=seed)


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _read(source: Any) -> tuple[str, Any, Any, str]:
    """A name, arrays, their labels or None, and how such data are binarised unless the user says."""
    if isinstance(source, Data):
        raise DataError("needed a name, a path or arrays, and a Data came", where=source.name, mend="ppvae.data.split(data) splits it")
    if not isinstance(source, str | os.PathLike):
        return "array", source, None, "none"
    path = Path(source)
    if not path.exists():
        raise _absent(source, path)
    if path.is_dir():
        raise DataError(
            f"needed {FORMS}, and a folder came", where=str(path), mend=f'load("mnist", directory="{path}") for a folder of IDX files'
        )
    if path.suffix == ".npy":
        return str(path), read_npy(path), None, "none"
    if path.suffix == ".npz":
        return str(path), *read_npz(path), "none"
    if "idx" in path.name or "ubyte" in path.name:
        return str(path), read_idx(path), None, "threshold"
    raise DataError(
        f"needed {FORMS}, told by its name, and {path.name} came",
        where=str(path),
        mend="np.save('data.npy', np.asarray(x)) and hand that in",
    )


def _absent(source: str | os.PathLike[str], path: Path) -> DataError:
    """A file that is not there, or a name that nobody knows: what is meant shows in its form."""
    if not isinstance(source, str) or path.suffix or len(path.parts) > 1:
        return MissingFileError(
            f"needed {FORMS}, and there is none", where=str(path), mend="mend the path; it is taken from the working folder"
        )
    near = difflib.get_close_matches(source.lower().replace("_", "-"), NAMES, n=1)
    return DataError(
        f"needed the name of a data set or a path, and {source!r} came",
        where="data.load",
        mend=[f"did you mean {near[0]!r}?" if near else "", f"known names: {', '.join(NAMES)}", f"a path to {FORMS}"],
    )
