"""``ppvae traverse``."""

from __future__ import annotations

import numpy as np

from ppvae.analysis import latents, plots
from ppvae.commands.encode import npz
from ppvae.commands.folders import check_row, run_and_data, save_figure
from ppvae.options import Traverse
from ppvae.output import tell
from ppvae.recorded import image_shape

MOST_SHOWN = 10  # dimensions, where none are named


def run(options: Traverse) -> int:
    """Move dimensions one by one, and draw what is decoded."""
    found, data = run_and_data(options.run, options.split, options.data)
    if options.row is not None:
        check_row("--row", options.row, data)
    used = latents.codes(found.model, found.guide, data[:1000], seed=options.seed).most_used
    moved = latents.traversal(
        found.model,
        found.guide,
        data,
        row=options.row,
        dimensions=options.dims or used[:MOST_SHOWN],
        steps=options.steps,
        seed=options.seed,
    )
    figure = save_figure(plots.traversals(moved, image_shape(options.run)), options.out or options.run / "figures" / "traversal.png")
    arrays = npz(figure.with_suffix(".npz"))
    np.savez(arrays, images=moved.images.numpy(), z=moved.z.numpy(), dimensions=np.array(moved.dimensions))
    tell("traversal", f"{moved}\n{arrays}: images and z by dimension", {"figure": str(figure), "file": str(arrays)} | moved.as_dict())
    return 0
