"""Two latents, seen whole: the map of codes, what the prior's quantiles decode to, and the morph from class to class.

On each data set a dense pair (pixels-256-2) and a convolutional one (`ppvae.nn.ConvEncoder` and `ConvDecoder`, 16 and 32 channels) are
trained with batches of 128 for 50 epochs, Adam at 3e-3, the best epoch on validation data kept: on digits (thresholded; all 1,077) and on
Fashion-MNIST (binarised anew at each presentation; all 55,000, half an hour of one thread). With two latents log p(x) is known by
quadrature: pairs are compared by the truth, not by bounds.

Expected, of each data set and, where not said otherwise, of both pairs. (1) Classes separate in the plane: a vote of the 10 nearest
training codes tells at least 0.6 of the test labels right, and more than in the plane of the first two principal components, by 2 standard
errors. (2) Neighbours on the map decode to neighbours: adjacent cells of the 15 x 15 grid of prior quantiles (norm.ppf of 0.05 to 0.95)
differ by less than a fourth of what two cells differ by on average; and where a path between two codes is cut twice as fine, its largest
step shrinks below 0.6 of what it was (a smooth decoder halves it, a jump keeps it). (3) The decoder moves evenly: along a typical straight
path the largest step is below 3 times the median one. (4) The ELBO lies below log p(x) by quadrature, by more than 2 standard errors of the
paired difference, and 1,000 weights of the guide reach it within 0.05 nats. (5) By quadrature the convolutional pair has the higher
log p(x) on Fashion-MNIST, and the dense one on 8 x 8 digits, where little is left to convolve (there a trial on validation data, which
chose the learning rate, had said so before), by 2 standard errors of the paired difference. (6) Between the averages of classes, over all
45 pairs, paths along the mass of the aggregated posterior keep more of it at their lowest point than straight ones, and spherical ones
less; (7) and their way through the images is the longer.

    python examples/latent_plane.py --out runs/latent-plane            # both data sets; --data digits: one; --quick: seconds
"""

import argparse
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

import experiment
import ppvae
from experiment import Claims, mean_and_se
from ppvae import analysis, guides, models, nn
from ppvae.analysis import latents, plots
from ppvae.analysis.plots.mosaic import draw, mosaic
from ppvae.analysis.plots.style import TEN

KINDS = ("dense", "convolutional")
PATHS = ("straight", "spherical", "density")
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
TOLERANCE = 0.01  # nats, of the quadrature: far below the standard errors over 100 images


@dataclass(frozen=True)
class Chosen:
    """Of one data set: the side of an image, how it is binarised, names of labels, and the morphs that are drawn."""

    side: int
    binarize: str
    names: tuple[str, ...]
    ways: tuple[tuple[int, int], ...]


SETS = {
    "digits": Chosen(8, "threshold", tuple(map(str, range(10))), ((1, 0), (4, 9), (2, 7))),
    "fashion-mnist": Chosen(28, "dynamic", CLOTHES, ((0, 9), (1, 3), (7, 8))),
}


@dataclass(frozen=True)
class Effort:
    """What is spent; ``num_exact``: test images whose log p(x) is integrated; ``steps``: points of the ``num_paths`` random paths."""

    epochs: int
    most_train: int
    num_exact: int
    num_particles: int
    num_weights: int
    num_paths: int
    steps: int
    num_codes: int


@dataclass(frozen=True)
class Plane:
    """A trained pair, measured. Nats; ``_se`` over data (of differences: of the paired ones), ``_mc_se`` Monte Carlo.

    Attributes:
        elbo, weighted, log_p: Of the first test images: the ELBO, the bound of many weights, the truth by quadrature; ``bound``: the mean
            of the quadrature's own error bounds.
        gap: log p(x) less the ELBO, paired.
        neighbours, pca: Shares of test labels told right by neighbours among training codes, and among two principal components.
        evenness: Largest decoder step over the median one, along a typical path.
        halving: Largest step with paths cut twice as fine over that before, mean over paths.
        grid: Distance of adjacent cells of the grid over that of any two, means.
        lowest, length: By kind of path, means over pairs of classes: lowest log mass, and the way through the images.
    """

    data: str
    kind: str
    parameters: int
    epochs: int
    elbo: float
    elbo_se: float
    elbo_mc_se: float
    weighted: float
    weighted_mc_se: float
    log_p: float
    log_p_se: float
    bound: float
    gap: float
    gap_se: float
    gap_mc_se: float
    active: int
    neighbours: float
    neighbours_se: float
    pca: float
    pca_se: float
    evenness: float
    halving: float
    grid: float
    lowest: dict[str, float]
    length: dict[str, float]
    beyond_straight: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Shown:
    """What is drawn of a pair: codes and labels, decoded grid, decoded morphs (C kinds, P ways, S, pixels); and log p(x), to compare by."""

    codes: Tensor
    labels: Tensor
    grid: Tensor
    morphs: Tensor
    log_p: Tensor


def pair(kind: str, side: int) -> tuple[models.Bernoulli, guides.DiagonalNormal]:
    pyro.set_rng_seed(0)
    if kind == "dense":
        decoder, encoder = nn.MLP(2, [256], side**2), nn.MLP(side**2, [256], 4)
    else:
        decoder, encoder = nn.ConvDecoder(2, side, channels=16), nn.ConvEncoder(side, 4, channels=16)
    return models.Bernoulli(decoder, latent_dim=2), guides.DiagonalNormal(encoder, latent_dim=2)


def trained(name: str, kind: str, data: Any, effort: Effort, out: Path) -> Any:
    """A pair that was trained there is not trained again."""
    chosen = SETS[name]
    return experiment.fit(
        *pair(kind, chosen.side),
        data.train[: effort.most_train],
        validation=data.validation[:1000],
        epochs=effort.epochs,
        batch_size=128,
        seed=0,
        optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
        out=out / f"{name}-{kind}",
        resume=True,
    )


# What is measured.


def adjacent_over_any(images: Tensor) -> float:
    """Mean distance of adjacent cells of a grid, (S, S, pixels), over that of any two cells: small where it changes little by little."""
    adjacent = [images[1:] - images[:-1], images[:, 1:] - images[:, :-1]]
    near = torch.cat([part.norm(dim=-1).flatten() for part in adjacent]).mean()
    return (near / torch.pdist(images.flatten(0, 1)).mean()).item()


def halved(coarse: Tensor, fine: Tensor) -> float:
    """Largest step (P, 2 S) of paths over that of the same paths cut half as fine, (P, S): 0.5 for an even decoder, 1 for a jump."""
    return (fine.amax(1) / coarse.amax(1)).mean().item()


def class_averages(codes: Tensor, labels: Tensor) -> Tensor:
    """Mean code of each label, in their order, (C, D)."""
    return torch.stack([codes[labels == one].mean(0) for one in labels.unique()])


def principal(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the plane of the training data's first two principal components."""
    train, test = train.double().flatten(1), test.double().flatten(1)
    axes = torch.linalg.eigh(torch.cov(train.mT)).eigenvectors[:, -2:]
    return train @ axes, test @ axes


def measured(name: str, kind: str, data: Any, effort: Effort, out: Path) -> tuple[Plane, Shown]:
    run = trained(name, kind, data, effort, out)
    both = run.model, run.guide
    train, some = data.train[: effort.most_train], data.test[: effort.num_exact]
    exact = analysis.exact_log_likelihood(run.model, some, tolerance=TOLERANCE)
    elbo = analysis.elbo(*both, some, num_particles=effort.num_particles)
    weighted = analysis.log_likelihood(*both, some, num_particles=effort.num_weights, second=None).mean
    gap, gap_se = mean_and_se(exact.pointwise - elbo.pointwise)

    codes, held = (latents.codes(*both, part) for part in (train, data.test))
    by_code = analysis.probe(codes.mean, held.mean, train.labels, data.test.labels)
    by_pca = analysis.probe(*principal(train.x, data.test.x), train.labels, data.test.labels)
    even, finer = (
        latents.continuity(*both, data.test, num_paths=effort.num_paths, steps=steps, num_codes=2)
        for steps in (effort.steps, 2 * effort.steps - 1)
    )
    grid = latents.prior_grid(run.model, data.test)
    averages = class_averages(codes.mean, train.labels)
    ways = list(itertools.combinations(range(len(averages)), 2))
    morphs = latents.interpolate(*both, train, averages[torch.tensor(ways)], kinds=PATHS, steps=9, num_codes=effort.num_codes)
    lowest, length = morphs.lowest_mass, morphs.step_lengths.sum(-1)  # (C, P)
    shown = torch.stack([_way(morphs.images, ways, *way) for way in SETS[name].ways], 1)
    point = Plane(
        name,
        kind,
        sum(p.numel() for part in both for p in part.parameters()),
        len(run.history),
        *(elbo.mean.value, elbo.mean.data_se, elbo.mean.mc_se),
        *(weighted.value, weighted.mc_se),
        *(exact.mean.value, exact.mean.data_se, exact.error_bound.mean().item()),
        *(gap, gap_se, elbo.mean.mc_se),
        int((codes.mean.var(0) > 0.01).sum()),
        *(by_code.neighbours, by_code.neighbours_se, by_pca.neighbours, by_pca.neighbours_se),
        even.ratio.median().item(),
        halved(even.step_lengths, finer.step_lengths),
        adjacent_over_any(grid.images),
        dict(zip(PATHS, lowest.mean(1).tolist(), strict=True)),
        dict(zip(PATHS, length.mean(1).tolist(), strict=True)),
        {
            "spherical, mass": mean_and_se(lowest[1] - lowest[0]),
            "density, mass": mean_and_se(lowest[2] - lowest[0]),
            "density, length": mean_and_se(length[2] - length[0]),
        },
    )
    return point, Shown(held.mean, data.test.labels, grid.images, shown, exact.pointwise)


def _way(images: Tensor, ways: list[tuple[int, int]], one: int, other: int) -> Tensor:
    """The paths (C, S, pixels) from one class to another, of those between each two in order."""
    found = images[:, ways.index((min(one, other), max(one, other)))]
    return found if one < other else found.flip(1)


# What is printed, written and drawn.


def table(points: Sequence[Plane]) -> str:
    lines = [
        f"{'':<14}{'':<15}{'parameters':>11}{'ELBO ± data ± MC':>26}{'log p(x) ± data ± bound':>27}{'gap ± data ± MC':>24}"
        f"{'neighbours':>16}{'of PCA':>16}{'evenness':>10}{'halving':>9}{'grid':>7}"
    ]
    for p in points:
        lines.append(
            f"{p.data:<14}{p.kind:<15}{p.parameters:>11,}{p.elbo:>12.2f} ± {p.elbo_se:.2f} ± {p.elbo_mc_se:.3f}"
            f"{p.log_p:>12.2f} ± {p.log_p_se:.2f} ± {p.bound:.4f}{p.gap:>8.2f} ± {p.gap_se:.2f} ± {p.gap_mc_se:.3f}"
            f"{p.neighbours:>8.3f} ± {p.neighbours_se:.3f}{p.pca:>8.3f} ± {p.pca_se:.3f}{p.evenness:>10.2f}{p.halving:>9.2f}{p.grid:>7.3f}"
        )
    lines += [
        "",
        f"{'':<29}{'lowest log mass':^33}{'way through the images':^33}",
        f"{'':<29}" + "".join(f"{kind:>11}" for kind in PATHS) * 2,
    ]
    for p in points:
        lines.append(f"{p.data:<14}{p.kind:<15}" + "".join(f"{part[kind]:>11.2f}" for part in (p.lowest, p.length) for kind in PATHS))
    return "\n".join(lines)


def claims(points: Sequence[Plane], log_p: Sequence[Tensor]) -> dict[str, tuple[bool, str]]:
    """Of the pairs of one data set, dense first: claim -> whether it was seen, and the numbers."""
    name = points[0].data

    def each(told: Any) -> str:
        return "; ".join(f"{p.kind} {told(p)}" for p in points)

    def off(value: tuple[float, float]) -> str:
        return f"{value[0]:+.2f} ± {value[1]:.2f}"

    higher, error = mean_and_se(log_p[1] - log_p[0])
    better, sign = ("convolutional", 1) if name == "fashion-mnist" else ("dense", -1)
    steps = [p.beyond_straight for p in points]
    return {
        f"{name}: classes separate in the plane": (
            all(p.neighbours > 0.6 and p.neighbours - p.pca > 2 * math.hypot(p.neighbours_se, p.pca_se) for p in points),
            each(lambda p: f"{p.neighbours:.3f} ± {p.neighbours_se:.3f}, of PCA {p.pca:.3f} ± {p.pca_se:.3f}"),
        ),
        f"{name}: neighbours on the map decode to neighbours": (
            all(p.grid < 0.25 and p.halving < 0.6 for p in points),
            each(lambda p: f"adjacent cells {p.grid:.3f} of any two, twice as fine {p.halving:.2f}"),
        ),
        f"{name}: the decoder moves evenly": (
            all(p.evenness < 3 for p in points),
            each(lambda p: f"{p.evenness:.2f} times the median step"),
        ),
        f"{name}: the ELBO is below log p(x), and many weights reach it": (
            all(p.gap > 2 * math.hypot(p.gap_se, p.gap_mc_se) and abs(p.weighted - p.log_p) < 0.05 for p in points),
            each(lambda p: f"gap {p.gap:.2f} ± {p.gap_se:.2f}, the weights off by {p.weighted - p.log_p:+.3f} ± {p.weighted_mc_se:.3f}"),
        ),
        f"{name}: the {better} pair has the higher log p(x)": (
            sign * higher > 2 * error + points[0].bound + points[1].bound,
            f"convolutional less dense {higher:+.2f} ± {error:.2f} ± {points[0].bound + points[1].bound:.4f} (quadrature)",
        ),
        f"{name}: along the mass is more mass, and around the origin less, than straight": (
            all(
                s["density, mass"][0] > 2 * s["density, mass"][1] and s["spherical, mass"][0] < -2 * s["spherical, mass"][1] for s in steps
            ),
            each(lambda p: f"along {off(p.beyond_straight['density, mass'])}, around {off(p.beyond_straight['spherical, mass'])}"),
        ),
        f"{name}: the way along the mass is the longer one": (
            all(s["density, length"][0] > 2 * s["density, length"][1] for s in steps),
            each(lambda p: off(p.beyond_straight["density, length"])),
        ),
    }


def figure(points: Sequence[Plane], shown: Sequence[Shown]) -> Figure:
    """A row a pair: map, grid, morphs."""
    with matplotlib.rc_context(plots.STYLE):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.25 * len(points)), layout="constrained")
        for row, p, found in zip(drawn.subplots(len(points), 3, squeeze=False), points, shown, strict=True):
            chosen = SETS[p.data]
            _map(row[0], found, chosen.names)
            row[0].set_ylabel(f"{p.data}, {p.kind}\nz[1]")
            images = found.grid.reshape(*found.grid.shape[:2], chosen.side, chosen.side)
            draw(row[1], 1 - mosaic(plots.array(images.flip(0)))[0], (0.0, 1.0))
            _morphs(row[2], found.morphs, chosen)
        for axes, title in zip(
            drawn.axes, ("codes of test images", "the prior's quantiles 0.05 to 0.95", "from class to class"), strict=False
        ):
            axes.set_title(title)
    return drawn


def _map(axes: Axes, found: Shown, names: tuple[str, ...]) -> None:
    order = torch.randperm(len(found.codes), generator=torch.Generator().manual_seed(0))[:2000]
    codes, labels = plots.array(found.codes), found.labels.numpy()
    axes.scatter(codes[order, 0], codes[order, 1], c=[TEN[i] for i in labels[order]], s=2.0, linewidths=0, rasterized=True)
    classes = np.unique(labels)
    places = apart(np.array([np.median(codes[labels == i], axis=0) for i in classes]), 0.07 * np.ptp(codes[:, 1]))
    for i, place in zip(classes, places, strict=True):
        ink = tuple(0.65 * part for part in matplotlib.colors.to_rgb(TEN[i]))
        outline = [withStroke(linewidth=1.8, foreground="white")]
        axes.text(*place, names[i], color=ink, fontsize=6, weight="bold", ha="center", va="center", path_effects=outline)
    axes.set_xlabel("z[0]", labelpad=1)


def apart(places: Any, height: float) -> Any:
    """Places of names (C, 2), moved up and down until those within four heights of each other sideways are a height apart."""
    places = places.copy()
    for _ in range(200):
        for i, j in itertools.combinations(range(len(places)), 2):
            across, up = places[i] - places[j]
            if abs(across) < 4 * height and abs(up) < height:
                step = (height - abs(up)) / 2 * (1 if up >= 0 else -1)
                places[i, 1] += step
                places[j, 1] -= step
    return places


def _morphs(axes: Axes, morphs: Tensor, chosen: Chosen) -> None:
    """The ways one below the other, each straight, around the origin and along the mass."""
    kinds, ways, steps = morphs.shape[:3]
    cells = morphs.transpose(0, 1).reshape(ways * kinds, steps, chosen.side, chosen.side)
    tile, _, ys = mosaic(plots.array(cells), after_rows=range(kinds - 1, ways * kinds - 1, kinds))
    draw(axes, 1 - tile, (0.0, 1.0))
    axes.set_yticks(ys, ["straight", "spherical", "mass"] * ways, fontsize=5)
    for (one, other), y in zip(chosen.ways, ys[1::kinds], strict=True):
        words = f"{chosen.names[one]} to {chosen.names[other]}"
        axes.text(1.01, y, words, fontsize=5, rotation=90, va="center", transform=axes.get_yaxis_transform())
    axes.tick_params(length=0, pad=1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(SETS), default=None, help="one data set; both by default, --quick: digits")
    parser.add_argument("--out", type=Path, default=Path("runs/latent-plane"))
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works")
    options = parser.parse_args(arguments)
    names = [options.data] if options.data else ["digits"] if options.quick else list(SETS)
    effort = Effort(3, 400, 4, 10, 50, 5, 9, 100) if options.quick else Effort(50, 55_000, 100, 200, 1000, 50, 33, 1000)
    points: list[Plane] = []
    shown: list[Shown] = []
    told: Claims = {}
    for name in names:
        data = ppvae.data.load(name, binarize=SETS[name].binarize)
        found = [measured(name, kind, data, effort, options.out) for kind in KINDS]
        told = {**told, **claims([point for point, _ in found], [part.log_p for _, part in found])}
        points += [point for point, _ in found]
        shown += [part for _, part in found]
    record = {"points": [asdict(point) for point in points], "effort": asdict(effort)}
    experiment.finish(options.out, "latent-plane", table(points), told, figure(points, shown), record)


if __name__ == "__main__":
    main()
