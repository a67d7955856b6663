"""Where downloaded files are kept: the folder of ``PPVAE_DATA``, or ``~/.cache/ppvae``."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PPVAE_DATA"


def cache_folder() -> Path:
    """The folder; it need not be there yet."""
    set_by_user = os.environ.get(VARIABLE)
    return Path(set_by_user).expanduser() if set_by_user else Path.home() / ".cache" / "ppvae"


def folders(name: str, directory: str | os.PathLike[str] | None) -> list[Path]:
    """Where files of a data set are looked for: in a folder of its name, then in the folder itself, of ``directory`` or of the cache."""
    folder = cache_folder() if directory is None else Path(directory).expanduser()
    return [folder / name, folder]


def first_with(file: str, among: list[Path]) -> Path | None:
    """The first file of this name in these folders."""
    return next((folder / file for folder in among if (folder / file).is_file()), None)
