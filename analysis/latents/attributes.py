"""Attributes as directions: the difference of class means of codes, what it does to data, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Provenance, as_lists, label, provenance
from ppvae.analysis.latents.discriminant import discriminant
from ppvae.analysis.latents.space import Labels, LatentSpace, labels_of, subset
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, ShapeError, check_count
from ppvae.modules import Program

MOST_FITTED = 10_000  # training data of the classifier

Scorer = Callable[[Tensor], Tensor | Mapping[Any, Tensor]]


@dataclass(frozen=True, eq=False)
class AttributeVector:
    """Mean code of the data with an attribute less the mean code of those without.

    Attributes:
        vector: (D,).
        se: (D,), its standard error; nan where one kind has a single datum.
        num_positive, num_negative: Data of either kind.
        positive, negative: Their labels, in words.
        site: The latent site.
        source: Where the numbers came from.
    """

    vector: Tensor
    se: Tensor
    num_positive: int
    num_negative: int
    positive: str
    negative: str
    site: str
    source: Provenance

    def __str__(self) -> str:
        clear = int((self.vector.abs() > 4 * self.se).sum())
        return (
            f"'{self.positive}' less '{self.negative}' at '{self.site}': length {self.vector.norm():.2f}, {clear} of {len(self.vector)} "
            f"dimensions differ by more than 4 standard errors ({self.num_positive} and {self.num_negative} data; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def attribute_vector(
    model: Program,
    guide: Program,
    x: Data | Batch,
    labels: Labels | None,
    positive: Any,
    negative: Any = None,
    *,
    site: str | None = None,
    seed: int = 0,
) -> AttributeVector:
    """The difference of class means of codes.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event).
        labels: (N,), whole numbers or words; None for those of a ``Data``.
        positive: The label, or several of them, of data with the attribute.
        negative: The same of data without; by default every other label.
        site: Which latent site, where there are several.
        seed: Rules the draws, where the means have no closed form.

    Raises:
        ArgumentError: There are no data of either kind, or a label is of both.

    References:
        Larsen, Sonderby, Larochelle, Winther (2016), Autoencoding beyond pixels using a learned similarity metric, sec. 4.2.
    """
    space = LatentSpace(model, guide, x, site=site, seed=seed)
    sides = _sides(labels_of(x, labels, space.num_data), positive, negative)
    codes, _ = space.codes()
    one, other = codes[sides.positive], codes[sides.negative]
    return AttributeVector(
        vector=one.mean(0) - other.mean(0),
        se=(_squared_error(one) + _squared_error(other)).sqrt(),
        num_positive=len(sides.positive),
        num_negative=len(sides.negative),
        positive=sides.name,
        negative=sides.other,
        site=space.site,
        source=provenance(x, space.pair, seed),
    )


@dataclass(frozen=True, eq=False)
class AttributeEdit:
    """Data decoded from codes that were moved along an attribute.

    Attributes:
        images: (N, S, *event), E[x | z + strength * vector].
        data: (N, *event), what was encoded.
        z: (N, S, D), what was decoded.
        strengths: (S,), in units of the vector.
        name: Of the attribute.
        site: The latent site.
        source: Where the numbers came from.
    """

    images: Tensor
    data: Tensor
    z: Tensor
    strengths: Tensor
    name: str
    site: str
    source: Provenance

    def __str__(self) -> str:
        change = (self.images[:, -1] - self.images[:, 0]).flatten(1).norm(dim=1).mean()
        return (
            f"{len(self.images)} data moved along '{self.name}' by {self.strengths[0]:g} to {self.strengths[-1]:g}: the decoded mean "
            f"changes by {change:.2f} ({label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def edit(
    model: Program,
    guide: Program,
    x: Data | Batch,
    vector: AttributeVector | Tensor,
    strength: float | Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    *,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> AttributeEdit:
    """Decode z + strength * vector, z the mean code of each datum.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data to be edited, (N, *event).
        vector: An attribute, or any direction (D,).
        strength: One, or S of them; 0 is the reconstruction, and 1 takes the mean of those without the attribute to that of those with it.
        site, observed: Which latent and which observed site, where there are several.
        seed: Rules the draws, where there are any.

    Raises:
        ShapeError: The vector has not D numbers.
    """
    named = vector.site if isinstance(vector, AttributeVector) else site
    space = LatentSpace(model, guide, x, site=site or named, observed=observed, seed=seed)
    direction = _direction(vector, space)
    strengths = torch.as_tensor(strength, dtype=torch.float64).reshape(-1)
    codes, _ = space.codes()
    z = codes[:, None] + strengths[None, :, None] * direction
    rows = torch.arange(space.num_data).repeat_interleave(len(strengths))
    images = space.decoded(z.flatten(0, 1), rows).unflatten(0, z.shape[:2])
    name = f"{vector.positive} less {vector.negative}" if isinstance(vector, AttributeVector) else "a direction"
    return AttributeEdit(images, space.data(), z, strengths, name, space.site, provenance(x, space.pair, seed))


@dataclass(frozen=True, eq=False)
class AttributeEffect:
    """What moving held-out data along an attribute does to the scores of decoded data.

    Attributes:
        change: (C,), mean change of each score; of the classifier, in probability.
        change_se: (C,), standard error over the held-out data.
        names: The C scores; the first is the attribute's.
        p_value: Share of permutations of the labels whose vector raises the attribute's score as much, one-sided; at least 1 / (R + 1).
        permuted: (R,), change of the attribute's score under permuted labels.
        pointwise: (n, C), change of each datum.
        strength: How far, in units of the vector.
        accuracy: Of the classifier on held-out data; nan for a scorer that was handed in.
        site: The latent site.
        source: Where the numbers came from: the held-out data.
    """

    change: Tensor
    change_se: Tensor
    names: tuple[Any, ...]
    p_value: float
    permuted: Tensor
    pointwise: Tensor
    strength: float
    accuracy: float
    site: str
    source: Provenance

    def __str__(self) -> str:
        others = self.change[1:]
        told = ""
        if len(others):
            most = int(others.abs().argmax()) + 1
            told = f"; of the others '{self.names[most]}' moves most, by {self.change[most]:+.3f} ± {self.change_se[most]:.3f}"
        return (
            f"moving by {self.strength:g} times the vector changes the score of '{self.names[0]}' by {self.change[0]:+.3f} ± "
            f"{self.change_se[0]:.3f} (permutation p = {self.p_value:.3g}, R={len(self.permuted)}){told} "
            f"(N={len(self.pointwise)} held-out data; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"names": list(self.names)}


def attribute_effect(
    model: Program,
    guide: Program,
    train: Data | Batch,
    held_out: Data | Batch,
    positive: Any,
    negative: Any = None,
    *,
    train_labels: Labels | None = None,
    held_out_labels: Labels | None = None,
    strength: float = 1.0,
    scorer: Scorer | None = None,
    num_permutations: int = 199,
    num_data: int = 200,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> AttributeEffect:
    """Move held-out data without an attribute towards it, and score what is decoded.

    Without a scorer one half of the training data, chosen by the seed, fits a linear classifier of all labels, and the vector is that of
    the other half: a vector and a classifier from the same data would share their noise, and labels without meaning would seem to have an
    effect. The test permutes the labels of the vector's data, so that it is exact: if the labels say nothing of the codes, the p value is
    uniform over its R + 1 values.

    Args:
        model, guide: Programs of one argument, the batch.
        train: Data whose codes make the vector.
        held_out: Data that are moved: those among them with a negative label.
        positive: The label, or several of them, of data with the attribute.
        negative: The same of data without; by default every other label.
        train_labels, held_out_labels: (N,) each; None for those of a ``Data``.
        strength: How far the data are moved, in units of the vector.
        scorer: Of decoded data (M, *event): the attribute's score (M,), or scores (M,) by name, the attribute's first.
        num_permutations: R.
        num_data: Held-out data that are moved, at most, chosen by the seed.
        site, observed: Which latent and which observed site, where there are several.
        seed: Rules every choice.

    Raises:
        ArgumentError: There are no data of either kind, or no labels.
        ShapeError: A scorer does not give one number a datum.
    """
    check_count("num_permutations", num_permutations)
    check_count("num_data", num_data)
    space = LatentSpace(model, guide, train, site=site, observed=observed, seed=seed)
    held = LatentSpace(model, guide, held_out, site=space.site, observed=space.observed_site, seed=seed)
    listed, held_listed = (
        labels_of(x, given, s.num_data) for x, given, s in ((train, train_labels, space), (held_out, held_out_labels, held))
    )
    sides = _sides(listed, positive, negative)
    moved = torch.tensor([i for i, one in enumerate(held_listed) if one in sides.without], dtype=torch.long)
    if not len(moved):
        raise ArgumentError(f"needed held-out data labelled '{sides.other}' to move, and there are none")
    moved = moved[subset(len(moved), num_data, seed, "data that are moved")]
    accuracy, own = math.nan, torch.arange(space.num_data)
    scores = scorer
    if scores is None:
        half = torch.randperm(space.num_data, generator=noise.generator(seed, "half of the training data"))
        fitted, own = half[: space.num_data // 2][:MOST_FITTED].sort().values, half[space.num_data // 2 :].sort().values
        classifier = discriminant(space.data(fitted), [listed[i] for i in fitted])
        looked_at = subset(held.num_data, MOST_FITTED, seed, "accuracy")
        accuracy = classifier.accuracy(held.data(looked_at), [held_listed[i] for i in looked_at])
        scores = _by_label(classifier, sides)
    sides = _sides([listed[i] for i in own], positive, negative)
    codes = space.codes(own)[0]
    both = torch.cat([sides.positive, sides.negative])
    start = held.codes(moved)[0]
    before = _scored(scores, held.decoded(start, moved), sides.name)

    def effect(order: Tensor) -> dict[Any, Tensor]:
        """Change of each score, (n,), by the vector of data in this order: the first have the attribute."""
        rows = both[order]
        vector = codes[rows[: len(sides.positive)]].mean(0) - codes[rows[len(sides.positive) :]].mean(0)
        after = _scored(scores, held.decoded(start + strength * vector, moved), sides.name)
        return {name: after[name] - before[name] for name in before}

    found = effect(torch.arange(len(both)))
    generator = noise.generator(seed, "permuted labels")
    first = next(iter(found))
    permuted = torch.stack([effect(torch.randperm(len(both), generator=generator))[first].mean() for _ in range(num_permutations)])
    pointwise = torch.stack(list(found.values()), 1)
    # rounding: an effect that is the same under every permutation has p = 1
    as_large = int((permuted >= pointwise[:, 0].mean() - 1e-12).sum())
    return AttributeEffect(
        change=pointwise.mean(0),
        change_se=_squared_error(pointwise).sqrt(),
        names=tuple(found),
        p_value=(1 + as_large) / (1 + num_permutations),
        permuted=permuted,
        pointwise=pointwise,
        strength=strength,
        accuracy=accuracy,
        site=space.site,
        source=provenance(held_out, held.pair, seed),
    )


@dataclass(frozen=True)
class _Sides:
    """Rows with an attribute and without it."""

    positive: Tensor
    negative: Tensor
    within: tuple[Any, ...]
    without: tuple[Any, ...]
    name: str
    other: str


def _sides(labels: list[Any], positive: Any, negative: Any) -> _Sides:
    classes = set(labels)
    within = _several(positive)
    without = tuple(sorted(classes - set(within))) if negative is None else _several(negative)
    if set(within) & set(without):
        raise ArgumentError(f"a label is positive or negative, and {sorted(set(within) & set(without))} came as both")
    sides = [torch.tensor([i for i, one in enumerate(labels) if one in chosen], dtype=torch.long) for chosen in (within, without)]
    for rows, chosen, kind in zip(sides, (within, without), ("positive", "negative"), strict=True):
        if not len(rows):
            raise ArgumentError(f"no data have the {kind} label {list(chosen)}", where=f"labels of the data: {sorted(classes)}")
    return _Sides(sides[0], sides[1], within, without, _words(within), _words(without) if negative is not None else "others")


def _squared_error(codes: Tensor) -> Tensor:
    """Of the mean of codes (n, D)."""
    return codes.var(0) / len(codes) if len(codes) > 1 else torch.full_like(codes[0], torch.nan)


def _several(labels: Any) -> tuple[Any, ...]:
    return tuple(labels) if isinstance(labels, Collection) and not isinstance(labels, str) else (labels,)


def _words(labels: tuple[Any, ...]) -> str:
    return ", ".join(map(str, labels))


def _direction(vector: AttributeVector | Tensor, space: LatentSpace) -> Tensor:
    direction = vector.vector if isinstance(vector, AttributeVector) else vector.detach().double().cpu()
    if direction.shape != (space.dim,):
        raise ShapeError(f"a direction in site '{space.site}' has shape ({space.dim},), got {tuple(direction.shape)}")
    return direction


def _by_label(classifier: Any, sides: _Sides) -> Scorer:
    """Probability of the attribute, then of each label that is not part of it."""

    def scores(x: Tensor) -> dict[Any, Tensor]:
        found = dict(zip(classifier.classes, classifier(x).mT, strict=True))
        own = torch.stack([found[one] for one in sides.within if one in found]).sum(0)
        return {sides.name: own} | {str(name): value for name, value in found.items() if name not in sides.within}

    return scores


def _scored(scorer: Scorer, images: Tensor, name: str) -> dict[Any, Tensor]:
    found = scorer(images)
    scores = dict(found) if isinstance(found, Mapping) else {name: found}
    for key, value in scores.items():
        if not isinstance(value, Tensor) or value.shape != (len(images),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(f"a scorer gives one number a datum, ({len(images)},), got {got}", where=f"score '{key}'")
    return {key: value.detach().double() for key, value in scores.items()}
