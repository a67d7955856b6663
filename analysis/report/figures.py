"""The figures of a report, each with one line on how to read it, as data that stand inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ppvae import simulate
from ppvae.analysis import latents, plots
from ppvae.analysis.bounds import Bounds
from ppvae.analysis.calibration import Calibration
from ppvae.analysis.latent_usage import latent_usage
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.analysis.plots.style import STYLE
from ppvae.analysis.predictive_check import KHatByLabel, k_hat_by_label
from ppvae.analysis.report.record import Record
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import PpvaeError
from ppvae.pair import Pair
from ppvae.programs import measuring

MOST_USED = 500  # rows that figures of the latents are over
SHOWN, DRAWN = 20, 40  # data reconstructed; samples
PARTICLES = 16
HARDEST = 10
MOST_CLASSES = 20  # of k-hat
TRAVERSED, PAIRS = 8, 3  # dimensions; pairs of data


@dataclass(frozen=True)
class Shown:
    """A figure of the page.

    Attributes:
        title: What it is.
        reading: How to read it, in one sentence.
        alt: What it shows, for those who do not see it.
        uri: The picture itself, a data URI.
    """

    title: str
    reading: str
    alt: str
    uri: str


def svg(figure: Figure) -> str:
    """A figure as the data URI of an SVG, equal bytes for equal figures; letters are paths, so that they look alike everywhere."""
    return _uri(figure, "svg", {"Date": None, "Creator": None}, "svg+xml")


def png(figure: Figure) -> str:
    """A figure as the data URI of a PNG, for images and for more points than an SVG should hold."""
    return _uri(figure, "png", {"Software": None}, "png")


def measured(record: Record) -> Iterator[Callable[[], Shown]]:
    """Figures of what the folder holds."""
    history = record.history
    if history:
        yield lambda: Shown(
            "Training",
            "Curves that still rise ask for more epochs; a training curve that leaves the validation curve behind is overfitting. "
            "Below: rate (what the latents carry) and distortion (what they leave to the likelihood).",
            f"ELBO by epoch over {len(history)} epochs, with rate and distortion below",
            svg(plots.training_curves(history)),
        )
    for over, found in record.results.log_likelihood.items():
        yield lambda over=over, found=found: Shown(  # type: ignore[misc]
            f"Can the weights be believed? ({over})",
            "Data right of the threshold have weights with a tail too heavy for their mean to be trusted on its own.",
            f"Histogram of k-hat over {len(found.pointwise)} data",
            svg(plots.k_hat_histogram(found)),
        )
    for over, gaps in record.results.gaps.items():
        yield lambda over=over, gaps=gaps: Shown(  # type: ignore[misc]
            f"Where the ELBO is lost ({over})",
            "From L[q] up to log p(x): orange is what a better encoder would win, blue what only another family would.",
            f"Bars of the approximation gap, {gaps.mean('approximation').value:.2f} nats, and the amortization gap, "
            f"{gaps.mean('amortization').value:.2f} nats",
            svg(plots.gap_decomposition(gaps)),
        )
    for over, bounds in record.results.bounds.items():
        yield lambda over=over, bounds=bounds: _bounds(over, bounds)  # type: ignore[misc]
    for over, judged in record.results.calibration.items():
        yield lambda over=over, judged=judged: _ranks(over, judged)  # type: ignore[misc]
        yield lambda over=over, judged=judged: _coverage(over, judged)  # type: ignore[misc]


def _bounds(over: str, found: Bounds) -> Shown:
    first, last = found.means[0], found.means[-1]
    return Shown(
        f"The bound by number of particles ({over})",
        "L[q] at K = 1, and below log p(x) everywhere on average. A curve that still rises has not arrived; one that is flat may have, or "
        "its proposal misses a part of the posterior, which the second proposal of the verdict is there to find.",
        f"Importance-weighted bound from {first.value:.2f} nats at K = {found.num_particles[0]} to {last.value:.2f} at "
        f"K = {found.num_particles[-1]:,}",
        svg(plots.bounds_against_particles(found)),
    )


def _ranks(over: str, found: Calibration) -> Shown:
    return Shown(
        f"Is the guide a posterior? ({over})",
        "Ranks of the z that made each datum among the guide's draws. A curve that leaves the band is a fault. Of a dimension: first above "
        "zero and then below, the guide is too narrow, the other way round too wide; above all the way, it lies too high. Of log q(z | x), "
        "above zero, its regions hold too little; of log p(x | z), below zero, its draws fit x less well than the truth.",
        f"Distribution of ranks less the uniform one, by quantity: {len(found.faults)} of {found.num_tests} leave the band",
        svg(plots.rank_ecdf(found)),
    )


def _coverage(over: str, found: Calibration) -> Shown:
    return Shown(
        f"What the guide's regions hold ({over})",
        "Points on the diagonal are regions that hold the truth as often as they say. Below it the guide is too sure of z, above it too "
        "little.",
        f"Coverage of the guide's regions of highest density at {len(found.levels)} levels, on {len(found.ranks):,} simulated data",
        svg(plots.coverage_curve(found)),
    )


def from_programs(record: Record, model: Any, guide: Any, template: Batch, rows: Data | None) -> Iterator[Callable[[], Shown]]:
    """Figures that need the programs; those of data only where there are rows to show."""
    yield from pictures(record, model, guide, template, rows)
    if rows is None:
        return
    for found in record.results.log_likelihood.values():
        measured_on = rows[: len(found.pointwise)] if len(found.pointwise) < len(rows) else rows
        if measured_on.sha256 != found.source.data["sha256"]:
            continue
        if record.image_shape is not None:
            yield lambda found=found, data=measured_on: _hardest(model, guide, found, data, record)  # type: ignore[misc]
        if measured_on.labels is not None and not found.k_hat.isnan().all():
            yield lambda found=found, data=measured_on: _k_hat_by_label(found, data)  # type: ignore[misc]
    some = rows[:MOST_USED] if len(rows) > MOST_USED else rows
    told = f"{rows.name}/{rows.split}, {len(some)} rows"
    yield lambda: _usage(model, guide, some, told)
    yield lambda: _map(model, guide, some, told)
    yield lambda: _aggregated(model, guide, some, told)
    if record.image_shape is not None:
        yield lambda: _traversals(model, guide, some, record.image_shape)
        yield lambda: _interpolations(model, guide, some, record.image_shape)


def pictures(record: Record, model: Any, guide: Any, template: Batch, rows: Data | None) -> Iterator[Callable[[], Shown]]:
    """Reconstructions and samples."""
    shape, observed = record.image_shape, record.sites("observed")
    site = observed[0] if len(observed) == 1 else None
    if rows is not None and site is not None:
        yield lambda: _reconstructions(model, guide, rows, shape, site)
    if site is not None:
        yield lambda: _samples(model, template, shape, site)


def _reconstructions(model: Any, guide: Any, rows: Data, shape: tuple[int, int] | None, site: str) -> Shown:
    batch = rows[:SHOWN].x if len(rows) > SHOWN else rows.x
    x, made = _observed(model, guide, batch, site), simulate.reconstruct(model, guide, batch, num_particles=PARTICLES, site=site)
    return Shown(
        "Reconstructions",
        f"Each datum above E[x | z] under the guide ({rows.name}/{rows.split}, the first {len(made)}): what is blurred or replaced did not "
        "pass the latents.",
        f"{len(made)} data and their reconstructions",
        png(plots.reconstructions(x, made, shape)) if _drawn_as_images(x, shape) else svg(plots.reconstructions(x, made, shape)),
    )


def _observed(model: Any, guide: Any, x: Batch, site: str) -> Tensor:
    """What an observed site holds of a batch, (n, *event): of a dict with covariates or a mask the values alone."""
    if isinstance(x, Tensor):
        return x
    with measuring(model, guide):
        return Pair(model, guide, x).observed_values(x)[site]


def _samples(model: Any, template: Batch, shape: tuple[int, int] | None, site: str) -> Shown:
    drawn = simulate.sample(model, DRAWN, template=template, mean=True)[site]
    return Shown(
        "Samples of the model",
        "E[x | z] for z from the prior, not chosen: what the model believes data look like.",
        f"{DRAWN} samples of the model",
        png(plots.samples(drawn, shape, columns=10)),
    )


def _hardest(model: Any, guide: Any, found: LogLikelihood, rows: Data, record: Record) -> Shown:
    worst = found.pointwise.argsort(stable=True)[:HARDEST].tolist()
    x = _observed(model, guide, rows.x, record.sites("observed")[0])
    return Shown(
        "The hardest data",
        f"Those of the lowest log p(x) among {len(rows)}, with their row: mistakes of the data, or what the model cannot make.",
        f"The {len(worst)} data of the lowest log p(x)",
        png(plots.worst_data(x, worst, found.pointwise, image_shape=record.image_shape)),
    )


def _k_hat_by_label(found: LogLikelihood, rows: Data) -> Shown:
    by_class = k_hat_by_label(found, rows.labels)  # type: ignore[arg-type]  # asked for where there are labels
    shown = _most_faulty(by_class)
    which = "" if shown is by_class else f" Shown are the {len(shown.labels)} worst of {len(by_class.labels)} labels."
    worst = int(shown.share.argmax())
    share, se = 100 * shown.share[worst].item(), 100 * shown.share_se[worst].item()
    rows_there = ", ".join(map(str, shown.worst[worst][:3]))
    most = f" Most at label {shown.labels[worst]}: {share:.0f} ± {se:.0f} %, worst at rows {rows_there}." if share else ""
    return Shown(
        "Where the weights fail",
        f"Share of the data of a label whose k-hat is above its threshold ({rows.name}/{rows.split}), with binomial errors: a label that "
        f"stands out by more than these is one that the proposal does not know.{most}{which}",
        f"Share of data with a k-hat above {shown.threshold:.2f} by label",
        svg(plots.k_hat_by_label(shown)),
    )


def _most_faulty(found: KHatByLabel) -> KHatByLabel:
    """The classes with the largest shares, where there are more than a figure holds; in their own order."""
    if len(found.labels) <= MOST_CLASSES:
        return found
    kept = found.share.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values
    tensors: dict[str, Any] = {name: getattr(found, name)[kept] for name in ("count", "share", "share_se", "median")}
    lists: dict[str, Any] = {name: tuple(getattr(found, name)[i] for i in kept.tolist()) for name in ("labels", "worst")}
    return replace(found, **tensors, **lists)


def _usage(model: Any, guide: Any, rows: Data, told: str) -> Shown:
    usage = latent_usage(model, guide, rows, num_mutual=len(rows))
    return Shown(
        "KL by latent dimension",
        f"Dimensions at zero carry nothing: there the posterior is the prior ({told}).",
        "KL divergence from the prior of each latent dimension, in nats",
        svg(plots.kl_per_dimension(usage)),
    )


def _map(model: Any, guide: Any, rows: Data, told: str) -> Shown:
    found = latents.codes(model, guide, rows)
    apart = "Clusters are kinds of data." if rows.labels is None else "Labels that lie apart are told apart by latents that never saw them."
    return Shown(
        "Map of the codes",
        f"Posterior means on their two widest axes ({told}). {apart}",
        "Scatter of posterior means" + (" by label" if rows.labels is not None else ""),
        svg(plots.latent_map(found)),
    )


def _aggregated(model: Any, guide: Any, rows: Data, told: str) -> Shown:
    return Shown(
        "Codes against the prior",
        f"Where blue (a draw from the guide for each datum) leaves grey (the prior), samples of the model differ from data ({told}).",
        "Draws of the aggregated posterior over draws of the prior, together and by dimension",
        svg(plots.aggregated_posterior(latents.aggregated_posterior(model, guide, rows))),
    )


def _traversals(model: Any, guide: Any, rows: Data, shape: tuple[int, int] | None) -> Shown:
    codes = latents.codes(model, guide, rows)
    used = codes.mean.var(0, correction=0).argsort(descending=True, stable=True)[:TRAVERSED].tolist()
    return Shown(
        "Traversals",
        "Each row moves one dimension from its prior's 5 % to its 95 % quantile: what changes is what it means.",
        f"Decoded images along {len(used)} latent dimensions",
        png(plots.traversals(latents.traversal(model, guide, rows, dimensions=used), shape)),
    )


def _interpolations(model: Any, guide: Any, rows: Data, shape: tuple[int, int] | None) -> Shown:
    labels = rows.labels.tolist() if rows.labels is not None else list(range(len(rows)))
    firsts = list({label: row for row, label in reversed(list(enumerate(labels)))}.values())[::-1]
    ends = list(zip(firsts[::2], firsts[1::2], strict=False))[:PAIRS]
    return Shown(
        "Interpolations",
        "Paths between two data. Where the mass falls the decoder is asked what it has not learned; where a step is large it jumps.",
        f"Decoded images along paths between {len(ends)} pairs of data",
        png(plots.interpolations(latents.interpolate(model, guide, rows, ends, kinds=("straight", "spherical")), shape)),
    )


def _drawn_as_images(x: Any, shape: tuple[int, int] | None) -> bool:
    return shape is not None or np.ndim(x) == 3


def attempt(makers: Iterator[Callable[[], Shown]]) -> tuple[list[Shown], list[str]]:
    """The figures that can be made, and why others cannot."""
    shown, missing = [], []
    for make in makers:
        try:
            shown.append(make())
        except PpvaeError as error:
            missing.append(error.problem)
    return shown, missing


def _uri(figure: Figure, form: str, metadata: dict[str, Any], kind: str) -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "path"}):
        figure.savefig(buffer, format=form, metadata=metadata)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
