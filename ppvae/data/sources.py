"""``load``: a data set by its name, its file or folder, or its arrays."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ppvae.data import celeba, delimited, digits, images, omniglot, parquet, pictures
from ppvae.data import text as texts
from ppvae.data.archives import is_archive
from ppvae.data.data import Data
from ppvae.data.faces import faces
from ppvae.data.filaments import filaments
from ppvae.data.idx import read_idx
from ppvae.data.leakage import warn_of_shared_rows
from ppvae.data.linear_gaussian import linear_gaussian
from ppvae.data.lorenz import lorenz
from ppvae.data.music import music
from ppvae.data.numpy_files import read_npy, read_npz
from ppvae.data.splits import Splits, split, split_off_validation
from ppvae.data.sprites import sprites
from ppvae.data.tables import with_labels
from ppvae.data.tree import is_leaf
from ppvae.errors import DataError, MissingFileError

# Drawn or simulated from the seed, each time anew. Those that are images take ``binarize`` and ``flatten``.
IMAGES: dict[str, Callable[..., Data]] = {"sprites": sprites, "faces": faces, "filaments": filaments}
SYSTEMS: dict[str, Callable[..., Data]] = {"lorenz": lorenz, "linear-gaussian": linear_gaussian}
NAMES = ("digits", "fashion-mnist", "mnist", "omniglot", "celeba", *IMAGES, *SYSTEMS)
SHARE = 0.1  # of a user's rows, for validation, and as many for the test
FORMS = "a .npy, .npz, .csv, .tsv, .parquet, .mat, IDX, .txt or .json (music) file, or a folder or archive of pictures"
# Option of load -> what it is for.
OF_SOME = {
    "size": "pictures, omniglot and celeba",
    "grey": "pictures",
    "delimiter": ".csv files",
    "directory": "mnist, fashion-mnist, omniglot and celeba",
}


@dataclass(frozen=True)
class _Read:
    """What a file or a user gave: arrays, and how they are taken unless the user says."""

    name: str
    x: Any
    labels: Any = None
    binarize: str = "none"
    levels: float | None = None
    origin: str = ""
    options: tuple[str, ...] = ()  # of OF_SOME, that apply
    picks_labels: bool = False  # the labels option was a column's name, and has been heeded


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
    missing: Any = None,
    size: int | tuple[int, int] | None = None,
    grey: bool | None = None,
    delimiter: str | None = None,
    download: bool = True,
) -> Splits:
    """Training, validation and test data.

    Args:
        source: A name (``names()``); a path to a ``.npy``, ``.npz``, ``.csv``, ``.tsv``, ``.parquet`` or IDX file, to OMNIGLOT's
            ``chardata.mat``, to a ``.txt`` file of lines (``text``), to a ``.json`` file of music (``music``), or to a folder or
            archive of pictures; or arrays, (N, *event).
        binarize: ``threshold``, ``static``, ``dynamic`` or ``none``. By default ``threshold`` for images (the names but celeba, faces and
            filaments, IDX and .mat files) and ``none`` for other data. Printing the result tells which.
        seed: Of the split and of the draws; of sprites, faces, filaments, lorenz and linear-gaussian also of the data themselves.
        flatten: Event shape (D,); else that of the images, such as (28, 28) or (3, 64, 64).
        validation: Rows held out of training, a number (int) or a share (float). By default 360 of digits, 5,000 of the 60,000 images
            of MNIST and Fashion-MNIST, 1,345 of omniglot, celeba's own part, a tenth of other data.
        directory: Holds the files of a named data set, or a folder of that name with them. Else that of the environment variable
            ``PPVAE_DATA`` or ``~/.cache/ppvae``, else where Debian installs Fashion-MNIST.
        test: As ``validation``; digits and drawn or simulated data take it; other names have a set of their own.
        levels: The grey value that is white, where other data are binarised and leave it open.
        labels: (N,) whole numbers, for data that come without; a column's name or number, of a table; an attribute of celeba; a factor
            of sprites or faces.
        missing: ``"mask"`` where NaN is a missing entry, or booleans (N, *event), True where an entry is missing. See ``Data.masked``.
        size: Height and width of pictures, omniglot (28 unless named) and celeba (64), or both as one number.
        grey: Pictures as grey values (True) or in colour (False). By default grey where all are.
        delimiter: Of a ``.csv`` file. By default found out.
        download: Fetch the files of a named data set where they are not there and no ``directory`` was named.

    Raises:
        MissingFileError: a file is not there, or cannot be fetched; it tells how to get it.
        DataError: an unknown name, a damaged file, values that cannot be used, or an option that is for other data.

    Warns:
        UnreliableWarning: Held-out rows of a file or of arrays stand in the training rows too.
    """
    given = {"size": size, "grey": grey, "delimiter": delimiter, "directory": directory}
    if isinstance(source, str) and source in NAMES:
        own = [
            option
            for option, value in (("labels", labels), ("levels", levels), ("missing", missing), ("test", test))
            if value is not None and (option, source) not in (("labels", "celeba"), ("test", "digits"))
            if not (option in ("labels", "test") and source in (*IMAGES, *SYSTEMS))
        ]
        if own:
            raise DataError(
                f"{source} has labels, levels and a test set of its own, and {own[0]}= came",
                where=own[0],
                mend="leave it out, and take .test[:1000]" if own[0] == "test" else "leave it out",
            )
        made: dict[str, tuple[str, ...]] = dict.fromkeys((*IMAGES, *SYSTEMS), ())
        _refuse_options(source, {"digits": (), "omniglot": ("size", "directory"), "celeba": ("size", "directory"), **made}, given)
        if source in made:
            return split(
                _made(source, seed, binarize, flatten, labels), validation=_or(validation, SHARE), test=_or(test, SHARE), seed=seed
            )
        usual = "none" if source == "celeba" else "threshold"
        build = partial(Data.from_arrays, name=source, binarize=binarize or usual, seed=seed, flatten=flatten)
        return _named(source, build, directory, download, size, labels, validation, test, seed)
    if _is_chardata(source):
        _refuse_options(str(source), {}, given)
        build = partial(Data.from_arrays, name=str(source), binarize=binarize or "threshold", seed=seed, flatten=flatten, missing=missing)
        trained, tested = omniglot.read_chardata(Path(source))
        return _with_own_test(build, trained, tested, 1.0, _or(validation, omniglot.HELD_OUT), seed)
    if _is_file(source, (*texts.SUFFIXES, ".json")):
        return _sequences(
            Path(source), given | {"binarize": binarize, "levels": levels, "labels": labels, "missing": missing}, validation, test, seed
        )
    read = _read(source, labels, given)
    _refuse_options(read.name, {read.name: read.options}, given)
    labels = read.labels if labels is None or read.picks_labels else labels
    flatten = flatten and is_leaf(read.x)
    data = Data.from_arrays(
        read.x,
        labels,
        name=read.name,
        binarize=binarize or read.binarize,
        levels=read.levels if levels is None else levels,
        seed=seed,
        flatten=flatten,
        missing=missing,
        origin=read.origin,
    )
    found = split(data, validation=_or(validation, SHARE), test=_or(test, SHARE), seed=seed)
    warn_of_shared_rows(found.train, found.validation, found.test)
    return found


def _named(
    source: str,
    build: Any,
    directory: str | os.PathLike[str] | None,
    download: bool,
    size: int | tuple[int, int] | None,
    labels: str | None,
    validation: float | None,
    test: float | None,
    seed: int,
) -> Splits:
    """A data set that has a name."""
    if source == "digits":
        data = build(*digits.digits(), levels=digits.LEVELS)
        return split(data, validation=_or(validation, digits.HELD_OUT), test=_or(test, digits.HELD_OUT), seed=seed)
    if source == "celeba":
        return _celeba(build, directory, download, size, labels, validation, seed)
    if source == "omniglot":
        trained, tested = omniglot.drawings(directory, download=download, size=size)
        return _with_own_test(build, trained, tested, images.LEVELS, _or(validation, omniglot.HELD_OUT), seed)
    files, files_of_test = images.image_files(source, directory, download=download)
    return _with_own_test(build, files, files_of_test, images.LEVELS, _or(validation, images.HELD_OUT), seed)


def _made(name: str, seed: int, binarize: str | None, flatten: bool, factor: str | None) -> Data:
    """Data that are drawn or simulated."""
    if name in SYSTEMS:
        if binarize not in (None, "none"):
            raise DataError(f"needed images to binarise, and {name} came", where="binarize", mend="leave it out")
        data = SYSTEMS[name](seed=seed)
    else:
        data = IMAGES[name](seed=seed, flatten=flatten, **({} if binarize is None else {"binarize": binarize}))
    return data if factor is None else data.labelled_by(factor)


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _with_own_test(build: Any, trained: Any, tested: Any, levels: float, validation: float, seed: int) -> Splits:
    data = build(*trained, levels=levels)
    return split_off_validation(data, build(*tested, levels=levels, first_row=len(data)), validation=validation, seed=seed)


def _celeba(
    build: Any,
    directory: str | os.PathLike[str] | None,
    download: bool,
    size: int | tuple[int, int] | None,
    attribute: str | None,
    validation: float | None,
    seed: int,
) -> Splits:
    """The parts that its authors made, or validation rows drawn from the first two of them."""
    if isinstance(size, tuple):
        raise DataError(f"needed one number, the side of the images, and size={size} came", where="size")
    faces, labels, parts = celeba.faces(directory, download=download, size=size, attribute=attribute)
    data = build(faces, labels, levels=celeba.LEVELS)
    train, held, test = (data[torch.from_numpy((parts == part).nonzero()[0])] for part in range(3))
    if validation is not None:
        both = data[torch.from_numpy((parts < 2).nonzero()[0])]
        return split_off_validation(both, test, validation=validation, seed=seed)
    later = "static" if data.binarize == "dynamic" else data.binarize
    return Splits(
        replace(train, split="train"), replace(held, split="validation", binarize=later), replace(test, split="test", binarize=later), seed
    )


def _is_chardata(source: Any) -> bool:
    return _is_file(source, (".mat",))


def _is_file(source: Any, suffixes: tuple[str, ...]) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in suffixes and Path(source).is_file()


def _sequences(path: Path, given: dict[str, Any], validation: float | None, test: float | None, seed: int) -> Splits:
    """Lines of text, or pieces of music in the parts that their authors made."""
    parts = {"validation": validation, "test": test} if path.suffix.lower() == ".json" else {}
    foreign = next((name for name, value in (given | parts).items() if value not in (None, "none")), None)
    if foreign is not None:
        raise DataError(f"needed options for {path.name}, and {foreign}= is for other data", where=foreign, mend="leave it out")
    if path.suffix.lower() == ".json":
        return music(path)
    data = replace(texts.text(path), seed=seed)
    return split(data, validation=_or(validation, SHARE), test=_or(test, SHARE), seed=seed)


def _read(source: Any, labels: Any, given: dict[str, Any]) -> _Read:
    """What is to be split."""
    if isinstance(source, Data):
        raise DataError("needed a name, a path or arrays, and a Data came", where=source.name, mend="ppvae.data.split(data) splits it")
    if not isinstance(source, str | os.PathLike):
        return _Read("array", source)
    path = Path(source)
    if not path.exists():
        raise _absent(source, path)
    if path.is_dir() or is_archive(path):
        return _pictured(path, given)
    suffix = path.suffix.lower()
    if suffix in delimited.SUFFIXES + parquet.SUFFIXES:
        text = suffix in delimited.SUFFIXES
        table = delimited.read_delimited(path, given["delimiter"]) if text else parquet.read_parquet(path)
        picks = isinstance(labels, str | int)
        x, own, how = with_labels(table, labels if picks else None, path)
        return _Read(str(path), x, own, origin=how, options=("delimiter",) if text else (), picks_labels=picks)
    if suffix == ".npy":
        return _Read(str(path), read_npy(path))
    if suffix == ".npz":
        return _Read(str(path), *read_npz(path))
    if "idx" in path.name or "ubyte" in path.name:
        return _Read(str(path), read_idx(path), binarize="threshold")
    raise DataError(
        f"needed {FORMS}, told by its name, and {path.name} came",
        where=str(path),
        mend="np.save('data.npy', np.asarray(x)) and hand that in",
    )


def _pictured(path: Path, given: dict[str, Any]) -> _Read:
    """A folder or an archive of pictures."""
    stems = [file.name for file in path.iterdir()] if path.is_dir() else []
    idx = next((name for name in stems if name.startswith(images.FILES)), None)
    if idx is not None:
        raise DataError(
            f"needed {FORMS}, and a folder with the IDX file {idx} came",
            where=str(path),
            mend=f'load("mnist", directory="{path}") for the four files together',
        )
    x, labels, how = pictures.read_pictures(path, given["size"], given["grey"])
    return _Read(str(path), x, labels, levels=pictures.LEVELS, origin=how, options=("size", "grey"))


def _refuse_options(name: str, known: dict[str, tuple[str, ...]], given: dict[str, Any]) -> None:
    """Options that mean nothing for these data are errors, not silently ignored."""
    foreign = next((option for option, value in given.items() if value is not None and option not in known.get(name, ("directory",))), None)
    if foreign is not None:
        raise DataError(f"needed options for {name}, and {foreign}= is for {OF_SOME[foreign]}", where=foreign, mend="leave it out")


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
