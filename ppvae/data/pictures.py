"""Pictures in a folder or an archive: one array of bytes, sub-folders as labels. Needs Pillow, the extra ``data``."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ppvae.data.archives import is_archive, members
from ppvae.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
LEVELS = 255
MAX_PIXELS = 1 << 26
GREY_MODES, SIXTEEN_BITS = ("1", "L", "LA"), ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "eval"}

Array = np.ndarray[Any, Any]
Size = int | tuple[int, int] | None


def read_pictures(path: Path, size: Size = None, grey: bool | None = None) -> tuple[Array, Array | None, str]:
    """Pictures (N, H, W), or (N, 3, H, W) in colour, bytes, in the order of their names.

    Args:
        path: A folder, or a zip or tar file. Pictures lie in it, or in sub-folders, which are then the labels.
        size: Height and width, or both as one number, to average down (or repeat up) to. Without it all pictures have one size.
        grey: True for grey values, False for colour. By default grey where all pictures are.

    Returns:
        The pictures, labels (N,) or None, and the sub-folders in words.

    Raises:
        DataError: there is no picture, one cannot be read, their sizes differ, or some lie in sub-folders and others do not.
    """
    files: list[tuple[str, bytes | Path]] = sorted(_members(path) if is_archive(path) else _files(path), key=lambda named: named[0])
    if not files:
        raise DataError(f"needed pictures ({', '.join(SUFFIXES)}), and there is none", where=str(path))
    classes, labels = _labels([name for name, _ in files], path)
    shape = (size, size) if isinstance(size, int) else size
    pictures = [picture(content.read_bytes() if isinstance(content, Path) else content, f"{path}, {name}") for name, content in files]
    grey = all(image.mode in GREY_MODES for image in pictures) if grey is None else grey
    rows = []
    for (name, _), image in zip(files, pictures, strict=True):
        rows.append(as_bytes(image, grey, shape))
        if rows[-1].shape != rows[0].shape:
            (height, width), (own_height, own_width) = rows[0].shape[-2:], rows[-1].shape[-2:]
            raise DataError(
                f"needed pictures of one size, and {height} x {width} came first ({files[0][0]}), then {own_height} x {own_width}",
                where=f"{path}, {name}",
                mend=f"name one to bring them to: size=({height}, {width})",
            )
    return np.stack(rows), labels, f"labels by folder: {_listed(classes)}" if classes else ""


def picture(content: bytes, where: str) -> Any:
    """A picture of Pillow's from the bytes of a file.

    Raises:
        DataError: Pillow is not there, or cannot read it; more than 8 bits a channel; more than 64 million pixels.
    """
    image_module = pillow()
    try:
        with _bombs_refused(image_module), image_module.open(io.BytesIO(content)) as image:
            height, width = image.height, image.width
            if height * width > MAX_PIXELS:
                raise DataError(f"needed at most {MAX_PIXELS:,} pixels, and {height:,} x {width:,} came", where=where)
            image.load()
            mode, found = image.mode, image.copy()
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        if isinstance(error, DataError):
            raise
        said = "it has no form that Pillow knows" if isinstance(error, image_module.UnidentifiedImageError) else error
        raise DataError(f"needed a picture, and it cannot be read ({said})", where=where, mend="mend the file, or leave it out") from error
    if mode in SIXTEEN_BITS:
        raise DataError(
            f"needed 8 bits a channel, and a picture of mode {mode} came",
            where=where,
            mend="hand the values in as an array: np.save(path, x), with levels=65535",
        )
    return found


def as_bytes(image: Any, grey: bool, shape: tuple[int, int] | None) -> Array:
    """(H, W), or (3, H, W) in colour, of a picture of Pillow's."""
    image = image.convert("L" if grey else "RGB")
    if shape is not None and (image.height, image.width) != shape:
        image = image.resize((shape[1], shape[0]), pillow().Resampling.BOX)
    values = np.asarray(image)
    return values if grey else np.ascontiguousarray(values.transpose(2, 0, 1))


def pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        DataError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("needed Pillow to read pictures, and it is not installed", mend="pip install 'ppvae[data]'") from error
    return Image


@contextlib.contextmanager
def _bombs_refused(image_module: Any) -> Iterator[None]:
    """Pillow only warns of a picture of absurd size."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", image_module.DecompressionBombWarning)
        yield


def _members(path: Path) -> Iterator[tuple[str, bytes | Path]]:
    return ((name, content) for name, content in members(path, SUFFIXES) if _is_wanted(PurePosixPath(name)))


def _files(path: Path) -> Iterator[tuple[str, bytes | Path]]:
    for file in path.rglob("*"):
        name = file.relative_to(path)
        if file.suffix.lower() in SUFFIXES and file.is_file() and _is_wanted(PurePosixPath(name.as_posix())):
            yield name.as_posix(), file


def _is_wanted(name: PurePosixPath) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _labels(names: list[str], path: Path) -> tuple[list[str], Array | None]:
    """The sub-folders, sorted, and which of them each file lies in. A lone folder around all is none."""
    parents = [PurePosixPath(name).parent for name in names]
    while all(parent.parts for parent in parents) and len({parent.parts[0] for parent in parents}) == 1:
        parents = [PurePosixPath(*parent.parts[1:]) for parent in parents]
    folders = [parent.as_posix() for parent in parents]
    tops = {parent.parts[0] for parent in parents if parent.parts}
    if tops and tops <= PARTS:
        raise DataError(
            f"needed sub-folders that are classes, and parts of a data set came: {', '.join(sorted(tops))}",
            where=str(path),
            mend=f'load each by itself: load("{path}/{min(tops)}")',
        )
    if "." in folders and tops:
        raise DataError(
            f"needed pictures side by side or in sub-folders, and both came: {names[folders.index('.')]}, and the folder {min(tops)}",
            where=str(path),
            mend="move them into a sub-folder of their own",
        )
    if not tops:
        return [], None
    classes = sorted(set(folders))
    numbers = {folder: number for number, folder in enumerate(classes)}
    return classes, np.array([numbers[folder] for folder in folders], dtype=np.int64)


def _listed(classes: Iterable[str]) -> str:
    named = [f"{number} {name}" for number, name in enumerate(classes)]
    return ", ".join(named[:4]) + (f", ... {named[-1]}" if len(named) > 4 else "")
