"""``ppvae encode``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppvae.analysis import latents, plots
from ppvae.commands.folders import result_name, run_and_data, save_figure, writable
from ppvae.options import Encode
from ppvae.output import tell


def run(options: Encode) -> int:
    """Write the codes of a split, and draw their map."""
    found, data = run_and_data(options.run, options.split, options.data, options.num_data)
    codes = latents.codes(found.model, found.guide, data, seed=options.seed)
    out = npz(options.out or options.run / f"{result_name('codes', options.split, options.data)}.npz")
    labels = {} if codes.labels is None else {"labels": codes.labels.numpy()}
    np.savez(out, mean=codes.mean.numpy(), sd=codes.sd.numpy(), **labels)  # type: ignore[arg-type]
    figure = save_figure(plots.latent_map(codes), out.with_suffix(".png"))
    shape = list(codes.mean.shape)
    names = "mean and sd" + (", with labels" if labels else "")
    tell("codes", f"{codes}\n{out}: {names}, {tuple(shape)}", {"file": str(out), "figure": str(figure), "site": codes.site, "shape": shape})
    return 0


def npz(path: Path) -> Path:
    """A path of a .npz file, its folder made."""
    return writable(path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz"))
