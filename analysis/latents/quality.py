"""What the decoder makes of class means, of the prior's mean and of the prior: held beside data, and beside an independent judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Provenance, as_lists, label, provenance
from ppvae.analysis.latents.attributes import MOST_FITTED
from ppvae.analysis.latents.discriminant import discriminant
from ppvae.analysis.latents.space import Labels, LatentSpace, Observed, labels_of, subset
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError, ShapeError, check_count
from ppvae.modules import Program

Classifier = Callable[[Tensor], Tensor]
ROWS = 256  # of a table of distances at once


@dataclass(frozen=True, eq=False)
class AverageImages:
    """By class, the mean of the data beside the decoded mean of their codes.

    Attributes:
        data: (C, *event), mean of the data.
        decoded: (C, *event), E[x | mean code].
        distance: (C,), Euclidean, between the two: a decoder that is linear over a class's codes has 0, up to its reconstruction.
        labels: The C classes.
        count: (C,), data of each.
        site: The latent site.
        source: Where the numbers came from.
    """

    data: Tensor
    decoded: Tensor
    distance: Tensor
    labels: tuple[Any, ...]
    count: Tensor
    site: str
    source: Provenance

    def __str__(self) -> str:
        most = int(self.distance.argmax())
        return (
            f"decoded mean codes of {len(self.labels)} classes lie {self.distance.mean():.2f} from the mean of their data, at most "
            f"{self.distance[most]:.2f} (label {self.labels[most]}; N={int(self.count.sum())}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"labels": list(self.labels)}


def average_images(
    model: Program,
    guide: Program,
    x: Data | Batch,
    labels: Labels | None = None,
    *,
    site: str | None = None,
    observed: str | None = None,
    seed: int = 0,
) -> AverageImages:
    """By class, the mean of the data and the decoded mean of their codes.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event). Covariates are those of the first datum of each class.
        labels: (N,), whole numbers or words; None for those of a ``Data``.
        site, observed: Which latent and which observed site, where there are several.
        seed: Rules the draws, where there are any.

    Raises:
        ArgumentError: There are no labels.
    """
    space = LatentSpace(model, guide, x, site=site, observed=observed, seed=seed)
    listed = labels_of(x, labels, space.num_data)
    classes = tuple(sorted(set(listed)))
    rows = [torch.tensor([i for i, one in enumerate(listed) if one == each]) for each in classes]
    codes = space.codes()[0]
    means = torch.stack([_mean_of(space, of_class) for of_class in rows])
    decoded = space.decoded(torch.stack([codes[each].mean(0) for each in rows]), torch.stack([each[0] for each in rows]))
    return AverageImages(
        data=means,
        decoded=decoded,
        distance=(decoded - means).flatten(1).norm(dim=1),
        labels=classes,
        count=torch.tensor([len(each) for each in rows]),
        site=space.site,
        source=provenance(x, space.pair, seed),
    )


@dataclass(frozen=True, eq=False)
class Origin:
    """The decoded mean of the prior, beside the mean of the data and the data nearest to it.

    Attributes:
        image: (*event), E[x | z = E[z]].
        data_mean: (*event).
        nearest: (R, *event), the data nearest to the image, the nearest first.
        rows: (R,), which they are.
        distance: (R,), Euclidean, from the image.
        distance_to_mean: Of the image from the data's mean.
        typical_distance: Median distance of a datum from the data's mean.
        site: The latent site.
        source: Where the numbers came from.
    """

    image: Tensor
    data_mean: Tensor
    nearest: Tensor
    rows: Tensor
    distance: Tensor
    distance_to_mean: float
    typical_distance: float
    site: str
    source: Provenance

    def __str__(self) -> str:
        return (
            f"the decoded origin of '{self.site}' lies {self.distance_to_mean:.2f} from the mean of the data, where a datum lies "
            f"{self.typical_distance:.2f} from it, and {self.distance[0]:.2f} from the nearest datum, "
            f"row {int(self.rows[0])} ({label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self)


def origin(
    model: Program, x: Data | Batch, *, num_nearest: int = 5, site: str | None = None, observed: str | None = None, seed: int = 0
) -> Origin:
    """What the model makes of the mean of its prior. Near the data's mean it shows an average; near a datum, something it has seen.

    Args:
        model: A program of one argument, the batch.
        x: Training data, (N, *event).
        num_nearest: R.
        site, observed: Which latent and which observed site, where there are several.
        seed: Rules the draws, where there are any.
    """
    check_count("num_nearest", num_nearest)
    space = LatentSpace(model, None, x, site=site, observed=observed, seed=seed)
    image = space.decoded(space.prior_mean()[None])[0]
    mean = _mean_of(space, torch.arange(space.num_data))
    distances, from_mean = [], []
    for block in noise.blocks(space.num_data, ROWS):
        data = space.data(torch.arange(block.start, block.stop)).flatten(1)
        distances.append((data - image.flatten()).norm(dim=1))
        from_mean.append((data - mean.flatten()).norm(dim=1))
    distance, rows = torch.cat(distances).sort(stable=True)
    rows, distance = rows[:num_nearest], distance[:num_nearest]
    return Origin(
        image=image,
        data_mean=mean,
        nearest=space.data(rows),
        rows=rows,
        distance=distance,
        distance_to_mean=float((image - mean).norm()),
        typical_distance=float(torch.cat(from_mean).median()),
        site=space.site,
        source=provenance(x, space.pair, seed),
    )


@dataclass(frozen=True, eq=False)
class Completeness:
    """How much of the prior decodes to something like the data.

    Attributes:
        share: Of R decoded prior draws that the classifier is confident about.
        share_se: Its binomial standard error, of the draws alone.
        interval: 95 % interval of the share (Clopper, Pearson), which is wider than 0 where all or none are accepted.
        threshold: The confidence from which a draw is accepted: ``pass_rate`` of the held-out data pass.
        pass_rate: Share of real held-out data that pass.
        confidence: (R,), of the draws.
        held_out_confidence: (M,), of the held-out data.
        distance: (R,), Euclidean, of each draw to the nearest held-out datum.
        held_out_distance: (M,), of each held-out datum to the nearest of as many training data.
        accuracy: Of the classifier on held-out data; nan for one that was handed in, or without labels of the held-out data.
        images: (R, *event), the decoded draws.
        site: The observed site.
        source: Where the numbers came from: the held-out data.
    """

    share: float
    share_se: float
    interval: tuple[float, float]
    threshold: float
    pass_rate: float
    confidence: Tensor
    held_out_confidence: Tensor
    distance: Tensor
    held_out_distance: Tensor
    accuracy: float
    images: Tensor
    site: str
    source: Provenance

    @property
    def accepted(self) -> Tensor:
        """(R,), which draws."""
        return self.confidence >= self.threshold

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.1f} ± {100 * self.share_se:.1f} % of decoded prior draws are accepted, where {100 * self.pass_rate:.1f} % "
            f"of real held-out data are (confidence {self.threshold:.2f}); median distance to the nearest held-out datum "
            f"{self.distance.median():.2f}, of held-out data to the nearest training datum {self.held_out_distance.median():.2f} "
            f"(R={len(self.confidence)}, M={len(self.held_out_confidence)}; {label(self.source)})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"interval": list(self.interval)}


def completeness(
    model: Program,
    train: Data | Batch,
    held_out: Data | Batch,
    *,
    labels: Labels | None = None,
    classifier: Classifier | None = None,
    pass_rate: float = 0.95,
    num_draws: int = 1000,
    num_held_out: int = 2000,
    observed: str | None = None,
    seed: int = 0,
) -> Completeness:
    """The share of the prior that decodes to what an independent classifier is confident about.

    What is judged are decoded means E[x | z], z from the prior. They are smoother than data, so that distances from them are shorter than
    between data: compare them between models, not with 1. Both distances are to equally many data.

    Args:
        model: A program of one argument, the batch.
        train: Data, (N, *event), that the classifier is fitted to and held-out data are held against.
        held_out: Data, (M, *event), that set the threshold.
        labels: (N,), of the training data; None for those of a ``Data``. Not used where a classifier is handed in.
        classifier: Of data (M, *event): a confidence (M,), or probabilities (M, C), of which the largest is the confidence. By default a
            linear one, fitted to at most 10,000 training data.
        pass_rate: Share of held-out data that the threshold lets pass, at least.
        num_draws: R.
        num_held_out: Held-out data that are used at most, chosen by the seed.
        observed: Which observed site, where there are several.
        seed: Rules every choice.

    Raises:
        ArgumentError: There is neither a classifier nor labels, or a number makes no sense.
        ShapeError: A classifier does not give one confidence or row of probabilities a datum.
    """
    check_count("num_draws", num_draws)
    check_count("num_held_out", num_held_out)
    if not 0 < pass_rate <= 1:
        raise ArgumentError(f"pass_rate is a share in (0, 1], got {pass_rate!r}")
    seen, held = (Observed(model, None, x, observed, seed) for x in (train, held_out))
    rows = subset(held.num_data, num_held_out, seed, "held-out data")
    real, accuracy, judge = held.data(rows), math.nan, classifier
    if judge is None:
        listed = labels_of(train, labels, seen.num_data)
        fitted = subset(seen.num_data, MOST_FITTED, seed, "training data of the classifier")
        judge = own = discriminant(seen.data(fitted), [listed[i] for i in fitted])
        if isinstance(held_out, Data) and held_out.labels is not None:
            accuracy = own.accuracy(real, held_out.labels[rows].tolist())
    images = seen.from_prior(num_draws)
    confidence, real_confidence = _confidence(judge, images), _confidence(judge, real)
    threshold = float(torch.quantile(real_confidence, 1 - pass_rate, interpolation="lower"))
    accepted = int((confidence >= threshold).sum())
    share = accepted / num_draws
    beside = seen.data(subset(seen.num_data, len(rows), seed, "training data beside"))
    return Completeness(
        share=share,
        share_se=math.sqrt(share * (1 - share) / num_draws),
        interval=_interval(accepted, num_draws),
        threshold=threshold,
        pass_rate=float((real_confidence >= threshold).double().mean()),
        confidence=confidence,
        held_out_confidence=real_confidence,
        distance=_nearest(images, real[: len(beside)]),
        held_out_distance=_nearest(real, beside),
        accuracy=accuracy,
        images=images,
        site=held.observed_site,
        source=provenance(held_out, held.pair, seed),
    )


def _mean_of(space: LatentSpace, rows: Tensor) -> Tensor:
    """The mean of some data, block by block: their number does not rule the memory."""
    return torch.stack([space.data(rows[block]).sum(0) for block in noise.blocks(len(rows), ROWS)]).sum(0) / len(rows)


def _confidence(classifier: Classifier, x: Tensor) -> Tensor:
    """(M,), of a classifier's confidences or probabilities."""
    found = classifier(x)
    if not isinstance(found, Tensor) or found.dim() not in (1, 2) or len(found) != len(x):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ShapeError(f"a classifier gives confidences ({len(x)},) or probabilities ({len(x)}, C), got {got}", where="classifier")
    return (found.amax(1) if found.dim() == 2 else found).detach().double().cpu()


def _interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval of a share."""
    from scipy.stats import beta  # here, for its import changes the process's warning filters

    low = float(beta.ppf(0.025, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(0.975, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def _nearest(x: Tensor, others: Tensor) -> Tensor:
    """(n,), Euclidean distance of each to the nearest of others."""
    flat, others = x.flatten(1), others.flatten(1)
    return torch.cat([torch.cdist(flat[block], others).amin(1) for block in noise.blocks(len(flat), ROWS)])
