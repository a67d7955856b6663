"""``ppvae interpolate``."""

from __future__ import annotations

import numpy as np

from ppvae.analysis import latents, plots
from ppvae.analysis.latents.paths import KINDS
from ppvae.commands.encode import npz
from ppvae.commands.folders import check_row, run_and_data, save_figure
from ppvae.options import Interpolate, chosen
from ppvae.output import tell
from ppvae.recorded import image_shape


def run(options: Interpolate) -> int:
    """Decode the paths between two data, and draw them."""
    kinds = KINDS if options.path == "all" else (chosen("path", options.path, [*KINDS, "all"]),)
    found, data = run_and_data(options.run, options.split, options.data)
    for option, row in (("--start", options.start), ("--end", options.end)):
        check_row(option, row, data)
    ends = [(options.start, options.end)]
    paths = latents.interpolate(found.model, found.guide, data, ends, kinds=kinds, steps=options.steps, seed=options.seed)
    out = options.out or options.run / "figures" / f"interpolation-{options.start}-{options.end}.png"
    figure = save_figure(plots.interpolations(paths, image_shape(options.run)), out)
    arrays = npz(figure.with_suffix(".npz"))
    np.savez(arrays, images=paths.images[:, 0].numpy(), z=paths.z[:, 0].numpy(), kinds=np.array(paths.kinds))
    files = {"figure": str(figure), "file": str(arrays)}
    tell("interpolation", f"{paths}\n{arrays}: images and z by kind of path", files | paths.as_dict())
    return 0
