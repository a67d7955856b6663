"""Attributes as directions: smile and glasses on drawn faces whose factors are known; class arithmetic on Fashion-MNIST.

A vector is the mean code of training data with an attribute less that of those without; an edit decodes the code of held-out data plus the
vector. What an edit did is read by a network that tells the factors of a face, trained on other drawn faces, true ones; what it should have
done is known, since the face can be drawn again with that one factor changed. Classes are told by a network trained on images that neither
the pair nor the vectors have seen.

Expected. (1) Adding a vector raises the reader's score of its attribute by 0.5 at least, of at most 1, and no vector of permuted labels
does so as much (p = 1 / 200). (2) No other factor moves by more than 0.1 of its range, on average. (3) An edited reconstruction is nearer
to the face that was drawn with the attribute than the unedited one is, by 2 standard errors of the paired difference. (4) Where smile and
long hair agree in 9 of 10 labelled faces, the smile's vector moves long hair too, by 0.2 more than before at least; the mean of the vectors
within long and within short hair takes at least half of that back. (5) The decoded average code of each kind has the attribute for the
reader, on the right side of 0.5, and is less blurred than the average face: more total variation. (6) On Fashion-MNIST the code of a B plus
mean(A) - mean(B) is an A for the classifier in half of the cases at least, on average over the 90 pairs. (7) Of three sums with an answer
that a person would give (ankle boot - sneaker + sandal is an ankle boot, pullover - T-shirt + dress and dress - T-shirt + pullover are
coats) the answer gains more than any other class in each, and more than under permuted labels.

CelebA has no answer (3); its attributes stand for the factors, and smile and long hair are replaced by Smiling and Male in (4).

    python examples/attributes.py --out runs/attributes                    # --quick: seconds
    python examples/attributes.py --data celeba --out runs/attributes-celeba
"""

import argparse
import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

import experiment
import ppvae
from experiment import Claims, mean_and_se
from ppvae import guides, models, nn
from ppvae.analysis import latents, plots
from ppvae.data import Data
from ppvae.data.faces import drawn
from ppvae.errors import MissingFileError

SIDE = 32
LATENT_DIM = 32
CELEBA = ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair", "Wearing_Hat")
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SUMS = (
    ("ankle boot", "sneaker", "sandal", "ankle boot"),
    ("pullover", "T-shirt", "dress", "coat"),
    ("dress", "T-shirt", "pullover", "coat"),
)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
AGREE = 0.9  # of the labelled faces, where two attributes are confounded

Pair = tuple[models.LatentVariable, guides.DiagonalNormal]


@dataclass(frozen=True)
class Effort:
    num_train: int
    num_reader: int
    num_held_out: int
    num_moved: int
    num_fashion: int
    epochs: int
    epochs_fashion: int
    epochs_reader: int
    permutations: int


FULL = Effort(4000, 4000, 1000, 200, 10_000, 40, 25, 40, 199)
QUICK = Effort(300, 300, 120, 20, 600, 2, 2, 3, 9)


@dataclass(frozen=True)
class Faces:
    """Faces in three parts that share none, factors in [0, 1]; ``attributes`` are the two that are edited, ``beside`` the confounder."""

    train: Data
    held_out: Data
    other: Data  # what the reader is trained on
    attributes: tuple[str, str]
    beside: str
    known: bool  # whether a face can be drawn again

    @property
    def names(self) -> tuple[str, ...]:
        return self.train.factor_names


def drawn_faces(effort: Effort) -> Faces:
    """The reader's are drawn from another seed."""
    own = ppvae.data.faces(effort.num_train + effort.num_held_out)
    other = ppvae.data.faces(effort.num_reader + effort.num_held_out, seed=1)
    return Faces(own[: effort.num_train], own[effort.num_train :], other, ("smile", "glasses"), "long_hair", True)


def celeba_faces(effort: Effort, directory: Path | None) -> Faces:
    """CelebA at 32 x 32, its attributes as factors: training data, test data, and for the reader training data that are not among them.

    Raises:
        MissingFileError: The files are not there and cannot be fetched.
    """
    columns: dict[str, list[Tensor]] = {"train": [], "test": []}
    for name in CELEBA:
        found = ppvae.data.load("celeba", size=SIDE, labels=name, directory=directory)
        for part in columns:
            labels = getattr(found, part).labels
            columns[part].append(labels.double())
    train, test = (getattr(found, part).with_factors(torch.stack(columns[part], 1), CELEBA) for part in columns)
    n = min(effort.num_train, len(train) // 2)
    reader = train[n : n + effort.num_reader + effort.num_held_out]
    return Faces(train[:n], test[: effort.num_held_out], reader, ("Smiling", "Eyeglasses"), "Male", False)


def trained(model: models.LatentVariable, guide: guides.DiagonalNormal, data: Data, epochs: int, out: Path) -> Pair:
    """Trained there once."""
    schedule = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=epochs)
    optimizer = functools.partial(torch.optim.Adam, lr=2e-3)
    experiment.fit(
        model, guide, data, epochs=epochs, batch_size=64, optimizer=optimizer, scheduler=schedule, compile=False, out=out, resume=True
    )
    return model, guide


def pair_of_faces(data: Data, epochs: int, out: Path) -> Pair:
    pyro.set_rng_seed(0)
    pixels = math.prod(data.event_shape)
    network = nn.MLP(LATENT_DIM, [256], pixels)
    model = models.LatentVariable(models.priors.StandardNormal(LATENT_DIM), network, models.likelihoods.NormalLearned(0.2))
    return trained(model, guides.DiagonalNormal(nn.MLP(pixels, [256], 2 * LATENT_DIM), latent_dim=LATENT_DIM), data, epochs, out)


def pair_of_clothes(data: Data, epochs: int, out: Path) -> Pair:
    pyro.set_rng_seed(0)
    model = models.Bernoulli(nn.MLP(16, [256], 784), latent_dim=16)
    return trained(model, guides.DiagonalNormal(nn.MLP(784, [256], 32), latent_dim=16), data, epochs, out)


# Readers and classifiers, trained on true images that the pair has not seen.


def fitted(network: torch.nn.Module, x: Tensor, target: Tensor, loss: Any, epochs: int) -> torch.nn.Module:
    """By Adam in batches of 64, the step size falling to nothing."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(network(x[rows]), target[rows]).backward()
            optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


class Reader:
    """Images (M, D) -> the factors (M, F), each in [0, 1]; by a network that minimises cross entropies, whose optimum are their means."""

    def __init__(self, data: Data, epochs: int) -> None:
        torch.manual_seed(0)
        self.names = data.factor_names
        network = torch.nn.Sequential(torch.nn.Linear(data.x.shape[1], 256), torch.nn.ReLU(), torch.nn.Linear(256, len(self.names)))
        self.network = fitted(network, data.x, data.factors.float(), binary_cross_entropy_with_logits, epochs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x.float()).sigmoid().double()

    def scores(self, first: str) -> Any:
        """A scorer for ``attribute_effect``: all factors by name, the attribute's first."""
        order = [first, *(name for name in self.names if name != first)]
        return lambda x: {name: self(x)[:, self.names.index(name)] for name in order}


def determination(predicted: Tensor, factors: Tensor) -> list[float]:
    """1 - squared error / variance, by factor, of (N, F)."""
    off = (predicted - factors).square().mean(0)
    return (1 - off / factors.var(0, correction=0).clamp(min=1e-12)).tolist()


def columns(data: Data, name: str) -> Tensor:
    assert data.factors is not None
    return data.factors[:, data.factor_names.index(name)]


def with_factor(factors: Tensor, names: Sequence[str], name: str, value: float) -> Tensor:
    """The same factors, one of them changed, (N, F)."""
    changed = factors.clone()
    changed[:, list(names).index(name)] = value
    return changed


def redrawn(factors: Tensor) -> Tensor:
    """The true faces of these factors, (N, 3072), as the model sees them."""
    return torch.from_numpy(drawn(factors.numpy())).flatten(1).double() / 255


# What an edit does.


@dataclass(frozen=True)
class Edit:
    """One attribute's vector on held-out faces without it.

    Attributes:
        change, change_se: By name, of the reader's scores, the attribute's first.
        true_change: By name, what the reader says of the true change, faces drawn again; empty where they cannot be.
        p_value: Of the attribute's change, by permuted labels.
        unedited, edited: Distance of the reconstruction, and of the edited one, to the face drawn with the attribute, mean; nan without.
        gain, gain_se: Of the paired difference.
        reconstruction: Distance of the reconstruction to its own face.
        by_strength: The reader's score of each factor, at ``STRENGTHS``.
    """

    name: str
    num_data: int
    change: dict[str, float]
    change_se: dict[str, float]
    true_change: dict[str, float]
    p_value: float
    unedited: float
    edited: float
    gain: float
    gain_se: float
    reconstruction: float
    by_strength: list[list[float]]


def measured_edit(name: str, pair: Pair, faces: Faces, reader: Reader, effort: Effort) -> tuple[Edit, dict[str, Tensor]]:
    """And images to draw: faces, and what they become."""
    train, held = faces.train.labelled_by(name), faces.held_out.labelled_by(name)
    effect = latents.attribute_effect(
        *pair, train, held, 1, 0, scorer=reader.scores(name), num_permutations=effort.permutations, num_data=effort.num_moved
    )
    vector = latents.attribute_vector(*pair, train, None, 1, 0)
    moved = held[torch.nonzero(columns(held, name) == 0)[:, 0]][: effort.num_moved]
    made = latents.edit(*pair, moved, vector, STRENGTHS)
    at = dict(zip(STRENGTHS, made.images.unbind(1), strict=True))
    own = (at[0.0] - moved.x).norm(dim=1)
    images = {"true": moved.x, **{f"{s:g}": at[s] for s in (0.0, 0.5, 1.0)}}
    true_change, distances = {}, [math.nan] * 4
    if faces.known:
        assert moved.factors is not None
        goal = redrawn(with_factor(moved.factors, faces.names, name, 1.0))
        images["drawn again"] = goal
        true_change = dict(zip(faces.names, (reader(goal) - reader(moved.x)).mean(0).tolist(), strict=True))
        before, after = (at[0.0] - goal).norm(dim=1), (at[1.0] - goal).norm(dim=1)
        distances = [before.mean().item(), after.mean().item(), *mean_and_se(after - before)]
    names = [str(one) for one in effect.names]
    return Edit(
        name,
        len(moved),
        dict(zip(names, effect.change.tolist(), strict=True)),
        dict(zip(names, effect.change_se.tolist(), strict=True)),
        true_change,
        effect.p_value,
        *distances,
        own.mean().item(),
        [reader(at[s]).mean(0).tolist() for s in STRENGTHS],
    ), images


@dataclass(frozen=True)
class Confounded:
    """What the first attribute's vector does to the factor that it goes along with, on held-out faces without the attribute.

    Attributes:
        num_data: Labelled faces; ``agreement``: share of them where both are alike.
        plain, confounded, balanced: Change of (attribute, other factor), of the vector of all labelled faces, of those that agree too
            often, and of the mean of the vectors within the other factor's two values. ``_se``, of the other factor's change.
    """

    num_data: int
    agreement: float
    plain: tuple[float, float]
    confounded: tuple[float, float]
    balanced: tuple[float, float]
    plain_se: float
    confounded_se: float
    balanced_se: float


def agreeing(one: Tensor, other: Tensor, share: float, seed: int = 0) -> Tensor:
    """The largest choice of rows, (n,) in order, where two binary factors agree in a share of them."""
    alike, unlike = (torch.nonzero(kind)[:, 0] for kind in (one == other, one != other))
    num_alike = min(len(alike), int(len(unlike) * share / (1 - share) + 1e-9))
    num_unlike = round(num_alike * (1 - share) / share)
    generator = torch.Generator().manual_seed(seed)
    chosen = [rows[torch.randperm(len(rows), generator=generator)[:n]] for rows, n in ((alike, num_alike), (unlike, num_unlike))]
    return torch.cat(chosen).sort().values


def difference(codes: Tensor, has: Tensor, strata: Tensor | None = None) -> Tensor:
    """The difference of mean codes, (D,); with strata the mean of those within each."""
    if strata is None:
        return codes[has == 1].mean(0) - codes[has == 0].mean(0)
    return torch.stack([difference(codes[strata == value], has[strata == value]) for value in strata.unique()]).mean(0)


def confounding(pair: Pair, faces: Faces, reader: Reader, effort: Effort) -> Confounded:
    name, beside = faces.attributes[0], faces.beside
    has, other = columns(faces.train, name), columns(faces.train, beside)
    codes = latents.codes(*pair, faces.train).mean
    rows = agreeing(has, other, AGREE)
    vectors = (difference(codes, has), difference(codes[rows], has[rows]), difference(codes[rows], has[rows], other[rows]))
    moved = faces.held_out[torch.nonzero(columns(faces.held_out, name) == 0)[:, 0]][: effort.num_moved]
    at = [faces.names.index(one) for one in (name, beside)]
    changes, errors = [], []
    for vector in vectors:
        before, after = (reader(part)[:, at] for part in latents.edit(*pair, moved, vector, (0.0, 1.0)).images.unbind(1))
        means = [mean_and_se(part) for part in (after - before).unbind(1)]
        changes.append((means[0][0], means[1][0]))
        errors.append(means[1][1])
    return Confounded(len(rows), (has[rows] == other[rows]).double().mean().item(), *changes, *errors)


@dataclass(frozen=True)
class Average:
    """One kind of face: the reader's score of its attribute for decoded mean code and mean image, and the total variation of both."""

    name: str
    value: int
    decoded_score: float
    mean_score: float
    decoded_variation: float
    mean_variation: float


def total_variation(images: Tensor, channels: int, side: int) -> Tensor:
    """Mean absolute difference of neighbouring pixels, across and down, of images (N, channels * side * side): (N,)."""
    x = images.reshape(len(images), channels, side, side)
    return (x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))) / 2


def averages(pair: Pair, faces: Faces, reader: Reader) -> tuple[list[Average], Tensor]:
    """And the images: for each kind the mean of the data and the decoded mean, (4, 2, D)."""
    rows, images = [], []
    for name in faces.attributes:
        found = latents.average_images(*pair, faces.train.labelled_by(name))
        at = faces.names.index(name)
        decoded, means = (reader(part)[:, at].tolist() for part in (found.decoded, found.data))
        of_decoded, of_means = (total_variation(part, 3, SIDE).tolist() for part in (found.decoded, found.data))
        rows += [Average(name, int(v), decoded[i], means[i], of_decoded[i], of_means[i]) for i, v in enumerate(found.labels)]
        images.append(torch.stack([found.data, found.decoded], 1))
    return rows, torch.cat(images)


# Class arithmetic.


@dataclass(frozen=True)
class Sum:
    """mean(a) - mean(b) added to codes of held-out c.

    Attributes:
        before, after: The classifier's mean probability of each class.
        gain, gain_se: Of the expected class, paired.
        runner_up: The other class that gains most, and by how much.
        p_value: Share of permutations of the labels of a and b whose vector gains as much, one-sided.
    """

    a: str
    b: str
    c: str
    expected: str
    before: list[float]
    after: list[float]
    gain: float
    gain_se: float
    runner_up: tuple[str, float]
    p_value: float


class Classifier:
    """Binary images (M, 784), or decoded ones, which are cut at one half as the data were, -> probabilities (M, 10)."""

    def __init__(self, data: Data, epochs: int) -> None:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        assert data.labels is not None
        self.network = fitted(network, data.x, data.labels, cross_entropy, epochs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.network((x > 0.5).float()).softmax(1).double()


@dataclass(frozen=True)
class Clothes:
    """Attributes:
    accuracy, accuracy_of_reconstructions: Of the classifier, on held-out images.
    table: (10, 10), row b, column a: share of held-out b that are an a to the classifier after mean(a) - mean(b); the diagonal as decoded.
    """

    accuracy: float
    accuracy_of_reconstructions: float
    table: list[list[float]]
    sums: list[Sum]


def measured_clothes(effort: Effort, out: Path) -> tuple[Clothes, dict[str, Tensor]]:
    data = ppvae.data.load("fashion-mnist")
    n = effort.num_fashion
    seen, held = data.train[:n], data.test[: 10 * effort.num_moved]
    pair = pair_of_clothes(seen, effort.epochs_fashion, out / "clothes")
    classifier = Classifier(data.train[n : 2 * n], effort.epochs_reader // 2 + 1)
    assert seen.labels is not None and held.labels is not None
    codes, held_codes = (latents.codes(*pair, part).mean for part in (seen, held))
    means = torch.stack([codes[seen.labels == c].mean(0) for c in range(10)])

    def decoded(z: Tensor) -> Tensor:
        with torch.no_grad():
            return pair[0].network(z.float()).sigmoid()

    table = torch.empty(10, 10)
    for b in range(10):
        own = held_codes[held.labels == b]
        for a in range(10):
            table[b, a] = (classifier(decoded(own + means[a] - means[b])).argmax(1) == a).double().mean()
    sums, images = [], {}
    for names in SUMS:
        a, b, c, expected = (CLASSES.index(name) for name in names)
        own = held_codes[held.labels == c][: effort.num_moved]
        before = classifier(decoded(own))
        made = decoded(own + means[a] - means[b])
        after = classifier(made)
        both = torch.cat([codes[seen.labels == a], codes[seen.labels == b]])
        num_a, generator, as_large = int((seen.labels == a).sum()), torch.Generator().manual_seed(0), 0
        gains = (after - before).mean(0)
        for _ in range(effort.permutations):
            order = torch.randperm(len(both), generator=generator)
            vector = both[order[:num_a]].mean(0) - both[order[num_a:]].mean(0)
            as_large += int((classifier(decoded(own + vector)) - before).mean(0)[expected] >= gains[expected] - 1e-12)
        others = [i for i in range(10) if i != expected]
        second = max(others, key=lambda i: gains[i].item())
        sums.append(
            Sum(*names, before.mean(0).tolist(), after.mean(0).tolist(), *mean_and_se((after - before)[:, expected]),
                (CLASSES[second], gains[second].item()), (1 + as_large) / (1 + effort.permutations))
        )  # fmt: skip
        images[f"{names[0]} − {names[1]} + {names[2]}"] = torch.stack([decoded(own)[:4], made[:4]], 1)
    share = [
        (classifier(x).argmax(1) == held.labels).double().mean().item() for x in (held.x, decoded(held_codes))
    ]  # fmt: skip
    return Clothes(share[0], share[1], table.tolist(), sums), images


# What is told.


def table_text(
    edits: Sequence[Edit],
    truth: Sequence[float],
    decoded: Sequence[float],
    faces: Faces,
    confounded: Confounded,
    rows: Any,
    clothes: Clothes,
) -> str:
    width = max(map(len, faces.names)) + 2
    lines = [f"{'':<{width}}{'reader R²':>11}{'of decoded':>12}" + "".join(f"{e.name + ' edit':>24}{'true':>9}" for e in edits)]
    for i, name in enumerate(faces.names):
        cells = "".join(
            f"{e.change[name]:>+15.3f} ± {e.change_se[name]:.3f} {e.true_change.get(name, math.nan):>+9.3f}" for e in edits
        )  # fmt: skip
        lines.append(f"{name:<{width}}{truth[i]:>11.3f}{decoded[i]:>12.3f}{cells}")
    for e in edits:
        lines.append(
            f"{e.name}: p = {e.p_value:.3g}; distance to the face drawn with it {e.unedited:.3f} unedited, {e.edited:.3f} edited "
            f"({e.gain:+.3f} ± {e.gain_se:.3f}), of a reconstruction to its own face {e.reconstruction:.3f} (N={e.num_data})"
        )
    c = confounded
    lines.append(
        f"{faces.attributes[0]} agrees with {faces.beside} in {c.agreement:.3f} of {c.num_data}: the edit changes ({faces.attributes[0]}, "
        f"{faces.beside}) by ({c.plain[0]:+.3f}, {c.plain[1]:+.3f} ± {c.plain_se:.3f}) from all faces, ({c.confounded[0]:+.3f}, "
        f"{c.confounded[1]:+.3f} ± {c.confounded_se:.3f}) from these, ({c.balanced[0]:+.3f}, {c.balanced[1]:+.3f} ± "
        f"{c.balanced_se:.3f}) balanced"
    )
    for a in rows:
        lines.append(
            f"average, {a.name} {a.value}: reader {a.decoded_score:.3f} decoded, {a.mean_score:.3f} of the images' mean; total variation "
            f"{a.decoded_variation:.4f}, {a.mean_variation:.4f}"
        )
    lines.append(f"clothes: classifier right {clothes.accuracy:.3f}, on reconstructions {clothes.accuracy_of_reconstructions:.3f}")
    for s in clothes.sums:
        i = CLASSES.index(s.expected)
        lines.append(
            f"{s.a} - {s.b} + {s.c}: {s.expected} {s.before[i]:.3f} -> {s.after[i]:.3f} ({s.gain:+.3f} ± {s.gain_se:.3f}, "
            f"p = {s.p_value:.3g}), "
            f"next {s.runner_up[0]} {s.runner_up[1]:+.3f}; mostly {CLASSES[int(np.argmax(s.after))]} {max(s.after):.3f}"
        )
    return "\n".join(lines)


def claims(
    edits: Sequence[Edit], faces: Faces, confounded: Confounded, rows: Sequence[Average], clothes: Clothes, least_p: float
) -> Claims:
    others = {e.name: max((name for name in e.change if name != e.name), key=lambda name: abs(e.change[name])) for e in edits}
    name, beside, c = faces.attributes[0], faces.beside, confounded
    off = torch.tensor(clothes.table)
    pairs = off[~torch.eye(10, dtype=torch.bool)]
    found = {
        "a vector raises its attribute by 0.5, more than any of permuted labels": (
            all(e.change[e.name] >= 0.5 and e.p_value <= least_p + 1e-12 for e in edits),
            "; ".join(f"{e.name} {e.change[e.name]:+.3f} ± {e.change_se[e.name]:.3f}, p = {e.p_value:.3g}" for e in edits),
        ),
        "no other factor moves by more than 0.1 of its range": (
            all(abs(e.change[others[e.name]]) <= 0.1 for e in edits),
            "; ".join(
                f"{e.name} moves {others[e.name]} most, {e.change[others[e.name]]:+.3f} ± {e.change_se[others[e.name]]:.3f}" for e in edits
            ),
        ),
        "an edit comes nearer to the face drawn with the attribute": (
            faces.known and all(e.gain < -2 * e.gain_se for e in edits),
            "; ".join(f"{e.name} {e.unedited:.3f} to {e.edited:.3f} ({e.gain:+.3f} ± {e.gain_se:.3f})" for e in edits)
            if faces.known
            else "these faces cannot be drawn again",
        ),
        f"confounded labels move {beside} with {name}": (
            c.confounded[1] - c.plain[1] >= 0.2,
            f"{c.plain[1]:+.3f} ± {c.plain_se:.3f} before, {c.confounded[1]:+.3f} ± {c.confounded_se:.3f} where {c.agreement:.2f} agree",
        ),
        "the balanced vector takes half of that back": (
            abs(c.balanced[1] - c.plain[1]) <= abs(c.confounded[1] - c.plain[1]) / 2,
            f"{c.balanced[1]:+.3f} ± {c.balanced_se:.3f}; {name} {c.balanced[0]:+.3f}, {c.confounded[0]:+.3f} confounded",
        ),
        "decoded average codes have their attribute": (
            all((a.decoded_score > 0.5) == bool(a.value) for a in rows),
            ", ".join(f"{a.name} {a.value}: {a.decoded_score:.3f}" for a in rows),
        ),
        "and are less blurred than average faces": (
            all(a.decoded_variation > a.mean_variation for a in rows),
            ", ".join(f"{a.decoded_variation:.4f} and {a.mean_variation:.4f}" for a in rows),
        ),
        "a B plus mean(A) - mean(B) is an A in half of the cases": (
            pairs.mean().item() >= 0.5,
            f"{pairs.mean():.3f} on average over 90 pairs, {pairs.min():.3f} to {pairs.max():.3f}",
        ),
        "the answer of each sum gains most, and beyond permuted labels": (
            all(s.gain > s.runner_up[1] and s.p_value <= 0.05 for s in clothes.sums),
            "; ".join(
                f"{s.a} - {s.b} + {s.c}: {s.expected} {s.gain:+.3f} ± {s.gain_se:.3f} (p = {s.p_value:.3g}), "
                f"{s.runner_up[0]} {s.runner_up[1]:+.3f}"
                for s in clothes.sums
            ),
        ),
    }  # fmt: skip
    return found


def colour_rows(parts: Sequence[Tensor]) -> Any:
    """A row of faces for each part, (n, 3 * 32 * 32), as an array for ``imshow``."""
    rows = [torch.cat([pad(x.reshape(3, SIDE, SIDE), (1, 1, 1, 1), value=1.0) for x in part.double()], 2) for part in parts]
    return plots.array(torch.cat(rows, 1).permute(1, 2, 0).clamp(0, 1))


def bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def figure(
    edits: Sequence[Edit], images: Sequence[dict[str, Tensor]], average: Tensor, faces: Faces, confounded: Confounded, clothes: Clothes,
    sums: dict[str, Tensor],
) -> Figure:  # fmt: skip
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3}):
        drawn_figure = Figure(figsize=(2 * plots.WIDTH, 5.3), layout="constrained")
        upper, lower = drawn_figure.subfigures(2, 1, height_ratios=(1.08, 1))
        first, second, middle = upper.subplots(1, 3, width_ratios=(1, 1, 0.5))
        titles = {"true": "face", "0": "decoded", "0.5": "+0.5", "1": "+1", "1.5": "+1.5", "drawn again": "drawn so"}
        for axes, e, shown in zip((first, second), edits, images, strict=True):
            axes.imshow(colour_rows([part[:6] for part in shown.values()]))
            axes.set_yticks([(SIDE + 2) * (i + 0.5) - 0.5 for i in range(len(shown))], [titles[name] for name in shown])
            axes.set_title(f"{e.name}, held-out faces")
            bare(axes)
        middle.imshow(colour_rows(list(average)))
        kinds = [f"{'' if value else 'no '}{name}" for name in faces.attributes for value in (0, 1)]
        middle.set_yticks([(SIDE + 2) * (i + 0.5) - 0.5 for i in range(4)], kinds)
        middle.set_title("mean of\nimages, codes")
        bare(middle)
        moved, curve, heat, strip = lower.subplots(1, 4, width_ratios=(0.9, 1.1, 1.25, 0.85))
        names = list(faces.names)
        place = np.arange(len(names))
        for k, (e, colour) in enumerate(zip(edits, (plots.BLUE, plots.VERMILION), strict=True)):
            y = place + 0.2 * (2 * k - 1)
            moved.barh(y, [e.change[n] for n in names], 0.38, xerr=[2 * e.change_se[n] for n in names], color=colour, label=e.name,
                       error_kw={"elinewidth": 0.6})  # fmt: skip
            if e.true_change:
                moved.plot([e.true_change[n] for n in names], y, linestyle="", marker="|", markersize=6, color=plots.BLACK,
                           label="drawn so" if k else None)  # fmt: skip
            at = names.index(e.name)
            curve.plot(STRENGTHS, [row[at] for row in e.by_strength], color=colour, marker="o", label=e.name)
            rest = np.array(e.by_strength) - np.array(e.by_strength[0])
            rest[:, at] = 0
            most = int(np.abs(rest[STRENGTHS.index(1.0)]).argmax())
            curve.plot(
                STRENGTHS,
                [row[most] for row in e.by_strength],
                color=colour,
                linestyle="--",
                linewidth=0.9,
                label=f"{names[most]}, by {e.name}",
            )
        moved.set_yticks(place, [n.replace("_", " ") for n in names])
        moved.invert_yaxis()
        moved.axvline(0, color=plots.GREY, linewidth=0.6)
        moved.set_xlabel("change, reader's scale")
        moved.legend(loc="lower right", handlelength=1.0, borderpad=0)
        curve.axvline(1, color=plots.GREY, linewidth=0.6, linestyle=":")
        curve.set_ylim(0, 1.02)
        curve.set_xlabel("strength")
        curve.set_ylabel("reader's score")
        curve.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), handlelength=1.2, borderpad=0, labelspacing=0.25)
        heat.imshow(clothes.table, cmap="Blues", vmin=0, vmax=1)
        heat.set_xticks(range(10), [name.removeprefix("ankle ") for name in CLASSES], rotation=90)
        heat.set_yticks(range(10), CLASSES)
        heat.set_title("B (row) + mean(A) − mean(B)\nis an A (column)")
        cells = [pad(x.reshape(28, 28), (1, 1, 1, 1)) for part in sums.values() for x in part.transpose(0, 1).flatten(0, 1)]
        strip.imshow(plots.array(torch.cat([torch.cat(cells[i : i + 4], 1) for i in range(0, len(cells), 4)], 0)), cmap="gray_r")
        strip.set_yticks(
            [30 * (2 * i + 1) - 0.5 for i in range(len(sums))], [name.replace(" −", "\n−").replace(" +", "\n+") for name in sums]
        )
        strip.set_title("before, after")
        bare(strip)
    return drawn_figure


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("faces", "celeba"), default="faces")
    parser.add_argument("--directory", type=Path, default=None, help="holds CelebA's files; they are fetched where none is named")
    parser.add_argument("--out", type=Path, default=Path("runs") / "attributes")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    effort = QUICK if options.quick else FULL
    if options.data == "faces":
        faces = drawn_faces(effort)
    else:
        try:
            faces = celeba_faces(effort, options.directory)
        except MissingFileError as error:
            raise SystemExit(f"--data celeba cannot run: {error}") from error
    pair = pair_of_faces(faces.train, effort.epochs, options.out / "faces")
    held = max(len(faces.other) - effort.num_held_out, 3 * len(faces.other) // 4)  # the rest tells how well it reads
    reader = Reader(faces.other[:held], effort.epochs_reader)
    rest = faces.other[held:]
    assert rest.factors is not None and faces.held_out.factors is not None
    truth = determination(reader(rest.x), rest.factors)
    reconstructed = latents.edit(*pair, faces.held_out, torch.zeros(LATENT_DIM), 0.0).images[:, 0]
    decoded = determination(reader(reconstructed), faces.held_out.factors)
    found = [measured_edit(name, pair, faces, reader, effort) for name in faces.attributes]
    edits, images = [e for e, _ in found], [shown for _, shown in found]
    confounded = confounding(pair, faces, reader, effort)
    rows, average = averages(pair, faces, reader)
    clothes, sums = measured_clothes(effort, options.out)
    record = {
        "data": options.data,
        "effort": asdict(effort),
        "reader": {"names": list(faces.names), "true": truth, "decoded": decoded},
        "edits": [asdict(e) for e in edits],
        "confounded": asdict(confounded),
        "averages": [asdict(a) for a in rows],
        "clothes": asdict(clothes),
    }
    experiment.finish(
        options.out,
        "attributes",
        table_text(edits, truth, decoded, faces, confounded, rows, clothes),
        claims(edits, faces, confounded, rows, clothes, 1 / (1 + effort.permutations)),
        figure(edits, images, average, faces, confounded, clothes, sums),
        record,
    )


if __name__ == "__main__":
    main()
