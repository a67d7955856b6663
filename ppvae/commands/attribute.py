"""``ppvae attribute``."""

from __future__ import annotations

import numpy as np

from ppvae.analysis import latents, plots
from ppvae.commands.encode import npz
from ppvae.commands.folders import loaded, save_figure, splits_of
from ppvae.errors import DataError
from ppvae.options import Attribute
from ppvae.output import tell
from ppvae.recorded import image_shape

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # of the figure, in units of --strength


def run(options: Attribute) -> int:
    """Measure what moving along a label's direction does, and draw it."""
    found = loaded(options.run)
    data = splits_of(options.run, options.data)
    if data.train.labels is None or data.test.labels is None:
        raise DataError(f"{data.train.name} has no labels", mend="an attribute needs labelled data: an .npz with x and labels, a named set")
    pair = (found.model, found.guide)
    asked = (options.positive, options.negative)
    effect = latents.attribute_effect(*pair, data.train, data.test, *asked, strength=options.strength, seed=options.seed)
    vector = latents.attribute_vector(*pair, data.train, None, *asked, seed=options.seed)
    without = data.test.labels != options.positive if options.negative is None else data.test.labels == options.negative
    shown = data.test[without.nonzero()[:, 0][: options.num_data]]
    edited = latents.edit(*pair, shown, vector, [options.strength * s for s in STRENGTHS], seed=options.seed)
    out = options.out or options.run / "figures" / f"attribute-{options.positive}.png"
    figure = save_figure(plots.attribute_edits(edited, image_shape(options.run)), out)
    judged = save_figure(plots.attribute_effect(effect), out.with_name(f"{out.stem}-effect{out.suffix}"))
    arrays = npz(out.with_suffix(".npz"))
    np.savez(arrays, vector=vector.vector.numpy(), images=edited.images.numpy(), z=edited.z.numpy())
    files = {"figure": str(figure), "effect_figure": str(judged), "file": str(arrays)}
    found_values = {"effect": effect.as_dict(), "vector": vector.as_dict()}
    tell("attribute", f"{effect}\n{vector}\n{arrays}: vector, images and z", files | found_values)
    return 0
