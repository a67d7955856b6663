"""``ppvae data``."""

from __future__ import annotations

from typing import Any

import ppvae
from ppvae.data import Data, Splits
from ppvae.options import Data as Options
from ppvae.output import tell


def run(options: Options) -> int:
    """Describe a set of data, or list the named ones."""
    if options.name is None:
        names = ppvae.data.names()
        tell("data", f"{', '.join(names)}; or a file", names)
        return 0
    splits: Splits = ppvae.data.load(options.name, binarize=options.binarize, levels=options.levels, seed=options.data_seed)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    found = {name: _described(part) for name, part in parts.items() if part is not None}
    tell("data", "\n".join(_line(name, about) for name, about in found.items()), found)
    return 0


def _described(data: Data) -> dict[str, Any]:
    batches = [data.batch(rows) for rows in data.pieces(len(data))]
    about = data.describe() | {"measure": data.measure}
    if all(hasattr(batch, "min") for batch in batches):  # a batch of several tensors has no one range
        about |= {"least": min(float(batch.min()) for batch in batches), "largest": max(float(batch.max()) for batch in batches)}
    if data.labels is not None:
        about["labels"] = {str(int(label)): int(count) for label, count in zip(*data.labels.unique(return_counts=True), strict=True)}
    return about


def _line(name: str, about: dict[str, Any]) -> str:
    spread = f", values {about['least']:g} to {about['largest']:g}" if "least" in about else ""
    labels = f", {len(about['labels'])} labels" if "labels" in about else ""
    return (
        f"{name:11}{about['num_data']:>9,} rows of {about['event_shape']}{spread}{labels}, binarised: {about['binarize']}, "
        f"measure {about['measure']}, sha256 {about['sha256'][:12]}"
    )
