"""``ppvae sample``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ppvae import checkpoint, simulate
from ppvae.analysis import plots
from ppvae.commands.encode import npz
from ppvae.commands.folders import loaded
from ppvae.errors import UsageError
from ppvae.options import Sample
from ppvae.output import tell
from ppvae.recorded import image_shape
from ppvae.run import CONFIG, PROGRAM, template_of


def run(options: Sample) -> int:
    """Draw from a run's model."""
    found = loaded(options.run)
    if options.image_shape:
        check_image_shape(options.run, options.image_shape)
    values = simulate.sample(found.model, options.num_data, template=template_of(options.run), mean=options.mean, seed=options.seed)
    out = npz(options.out or options.run / "samples.npz")
    np.savez(out, **{name: value.numpy() for name, value in values.items()})  # type: ignore[arg-type]
    shapes = {name: list(value.shape) for name, value in values.items()}
    tell("samples", f"{out}: " + ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()), {"file": str(out), "sites": shapes})
    sites = checkpoint.read_json(options.run / PROGRAM)["fingerprint"]["sites"]
    observed = [name.removeprefix("model.") for name, (kind, *_) in sites.items() if name.startswith("model.") and kind == "observed"]
    shape = options.image_shape or image_shape(options.run)
    form = "images" if shape else "a heat map, for rows that are no images (--image-shape H W says that they are)"
    figures = {}
    for name in observed:
        figure = plots.samples(values[name], shape, columns=options.columns)
        path = out.with_suffix(".png") if len(observed) == 1 else out.with_name(f"{out.stem}-{name}.png")
        figures[name] = str(plots.save(figure, path))
        tell("figures", f"{path}: {'E[x | z]' if options.mean else 'draws'} at site '{name}' as {form}", figures)
    return 0


def check_image_shape(folder: Path, shape: tuple[int, int]) -> None:
    """Raise where rows of a run's data are no images of that shape.

    Raises:
        UsageError: It tells both sizes.
    """
    event = checkpoint.read_json(folder / CONFIG)["data"]["event_shape"]
    if isinstance(event, list) and math.prod(shape) != math.prod(event):
        height, width = shape
        raise UsageError(
            f"--image-shape {height} {width} is of {height * width} numbers, and a row of the run's data has {math.prod(event)}",
            mend="leave it out, where the rows are no images",
        )
