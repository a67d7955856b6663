"""What a latent space looks like: map, grid of prior quantiles, traversals, interpolations of three kinds, attribute edits.

Two pairs are trained, on digits (pixels thresholded) or on Fashion-MNIST (binarised anew at each presentation): one with two latents, whose
map and grid show all there is, and one with more, whose decoded images are sharper. Fashion-MNIST takes some six minutes.

Expected. Paths that follow the aggregated posterior keep more of its mass than straight ones, at the price of larger changes on the way;
spherical ones may leave it further, since the norm of a code says little here. An attribute's vector, the difference of two class means of
codes, raises the probability that a linear classifier gives the class on held-out data, beyond every permutation of the labels.

    python examples/pictures.py --data digits --out runs/pictures/digits
    python examples/pictures.py --data fashion-mnist --out runs/pictures/fashion-mnist
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyro
from matplotlib.figure import Figure
from PIL import Image

import ppvae
from ppvae import analysis, guides, models, nn
from ppvae.analysis import latents, plots

CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class Settings:
    """Of one data set.

    Attributes:
        side: Of an image.
        binarize: How grey values become zeros and ones.
        names: Of the labels.
        hidden: Widths of the networks, in and out.
        wide: Latents of the larger pair.
        epochs: Of the pair with two latents, and of the larger one.
        attribute: The labels of data with the attribute, and of data without.
        ways: Pairs of labels between whose data the paths lead.
    """

    side: int
    binarize: str
    names: tuple[str, ...]
    hidden: int
    wide: int
    epochs: tuple[int, int]
    attribute: tuple[int, int]
    ways: tuple[tuple[int, int], ...]


SETTINGS = {
    "digits": Settings(8, "threshold", tuple(map(str, range(10))), 128, 8, (300, 300), (8, 3), ((1, 0), (4, 9), (2, 7))),
    "fashion-mnist": Settings(28, "dynamic", CLOTHES, 256, 16, (30, 30), (2, 0), ((0, 9), (1, 3), (7, 8))),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(SETTINGS), default="digits")
    parser.add_argument("--out", type=Path, default=None, help="runs/pictures/DATA by default; pairs trained there are not trained again")
    parser.add_argument("--quick", action="store_true", help="seconds: a few epochs on few images")
    options = parser.parse_args(arguments)
    out = options.out or Path("runs/pictures") / options.data
    chosen = SETTINGS[options.data]
    data = ppvae.data.load(options.data, binarize=chosen.binarize)
    plane, wide = (trained(data, chosen, i, out, options.quick) for i in range(2))
    told = {
        **map_and_grid(plane, data.test, chosen, out),
        **moves(wide, data.train, data.test, chosen, out),
        **attribute(wide, data, chosen, out, 19 if options.quick else 199),
    }
    for name, sentence in told.items():
        print(f"{name}: {sentence}")
    (out / "pictures.json").write_text(json.dumps(told, indent=1))


def trained(data: Any, chosen: Settings, i: int, out: Path, quick: bool) -> Any:
    """The pair with two latents, or the larger one."""
    name, dim = ("plane", 2) if i == 0 else ("wide", chosen.wide)
    pixels, hidden = chosen.side**2, [chosen.hidden] * 2
    train, epochs, size = (data.train[:500], 8, 20) if quick else (data.train, chosen.epochs[i], 128)
    pyro.set_rng_seed(0)
    model = models.Bernoulli(nn.MLP(dim, hidden, pixels), latent_dim=dim)
    guide = guides.DiagonalNormal(nn.MLP(pixels, hidden, 2 * dim), latent_dim=dim)
    validation = data.validation[:1000]
    return ppvae.fit(model, guide, train, validation=validation, epochs=epochs, batch_size=size, seed=0, out=out / name, resume=True)


def map_and_grid(run: Any, test: Any, chosen: Settings, out: Path) -> dict[str, str]:
    codes = latents.codes(run.model, run.guide, test)
    grid = latents.prior_grid(run.model, test)
    save(plots.latent_map(codes, named(test, chosen)), out / "map.png")
    save(plots.prior_grid(grid.images, grid.quantiles, (chosen.side, chosen.side)), out / "grid.png")
    return {"map": str(codes), "grid": str(grid)}


def moves(run: Any, train: Any, test: Any, chosen: Settings, out: Path) -> dict[str, str]:
    """Traversals of the dimensions that carry most, paths between data, averages and the origin."""
    shape = (chosen.side, chosen.side)
    usage = analysis.latent_usage(run.model, run.guide, test[:1000], num_mutual=min(500, len(test)))
    carried = next(iter(usage.kl_per_dimension.values())).argsort(descending=True)[:8].tolist()
    traversal = latents.traversal(run.model, run.guide, test, row=0, dimensions=carried)
    ends = [[first_of(test, one), first_of(test, other)] for one, other in chosen.ways]
    paths = latents.interpolate(run.model, run.guide, test, ends, num_codes=2000)
    averages = latents.average_images(run.model, run.guide, test)
    origin = latents.origin(run.model, train)
    aggregated = latents.aggregated_posterior(run.model, run.guide, test)
    figures = {
        "kl": plots.kl_per_dimension(usage),
        "traversals": plots.traversals(traversal, shape),
        "interpolations": plots.interpolations(paths, shape),
        "averages": plots.averages(averages, shape, chosen.names),
        "origin": plots.origin(origin, shape),
        "aggregated": plots.aggregated_posterior(aggregated),
    }
    for name, figure in figures.items():
        save(figure, out / f"{name}.png")
    return {name: str(found) for name, found in zip(figures, (usage, traversal, paths, averages, origin, aggregated), strict=True)}


def attribute(run: Any, data: Any, chosen: Settings, out: Path, permutations: int) -> dict[str, str]:
    """An attribute's vector from training data; edits and effect on test data that do not have it."""
    positive, negative = (chosen.names[i] for i in chosen.attribute)
    train, test = data.train, data.test
    vector = latents.attribute_vector(run.model, run.guide, train, named(train, chosen), positive, negative)
    rows = (test.labels == chosen.attribute[1]).nonzero()[:6, 0]
    edits = latents.edit(run.model, run.guide, test[rows], vector, [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0])
    effect = latents.attribute_effect(
        run.model,
        run.guide,
        train,
        test,
        positive,
        negative,
        train_labels=named(train, chosen),
        held_out_labels=named(test, chosen),
        num_permutations=permutations,
        num_data=500,
    )
    grey = replace(edits, data=test[rows].raw.reshape(len(rows), -1) / test.levels)  # what the zeros and ones were made of
    save(plots.attribute_edits(grey, (chosen.side, chosen.side)), out / "edits.png")
    save(plots.attribute_effect(effect), out / "effect.png")
    return {"vector": str(vector), "edits": str(edits), "effect": str(effect)}


def named(data: Any, chosen: Settings) -> list[str]:
    return [chosen.names[i] for i in data.labels]


def first_of(data: Any, label: int) -> int:
    return int((data.labels == label).nonzero()[0, 0])


def save(figure: Figure, path: Path) -> None:
    """A figure in 128 colours: a fifth of the bytes, and no eye tells."""
    plots.save(figure, path)
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
