"""PCA, a linear VAE and a deep VAE at equal latent dimension: reconstruction, log p(x) and what the codes tell of the labels.

Probabilistic PCA has its maximum of likelihood in closed form (``models.LinearGaussian.maximum_likelihood``: an eigen-decomposition) and
its log p(x) too. A linear VAE is the same model with a linear encoder, trained on the ELBO by gradients. A deep VAE has the same latents
and the same likelihood, N(network(z), s^2 I) with s learned, so that all three are densities of the same grey pixels, in [0, 1].

Expected. (1) The linear VAE's training log p(x), in closed form, is below that of PCA, its supremum, by less than 0.02 nats per datum.
(2) Its subspace is PCA's: every principal angle below 2 degrees. (3) No training reconstruction that is linear in the codes has less
squared error than PCA's projection. (4) On test data the deep VAE has the higher log p(x) and the smaller squared error at each
dimension, by more than 2 standard errors of the paired difference. (5) In 2 dimensions its codes tell more labels right by a vote of
neighbours.

    python examples/pca_linear_deep.py --out runs/pca-linear-deep        # about two minutes; --quick: seconds
"""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

import experiment
import ppvae
from experiment import Claims, mean_and_se, strips
from ppvae import analysis, guides, models, nn
from ppvae.analysis import latents, plots
from ppvae.analysis.plots.style import TEN
from ppvae.analysis.probes import probe

DIMENSIONS = (2, 4, 10)
TOLERANCE = 0.02  # nats per datum that training may leave of the closed form
ANGLE = 2.0  # degrees
PROGRAMS = ("PCA", "linear VAE", "deep VAE")
COLORS = (plots.BLACK, plots.ORANGE, plots.BLUE)
SIDE = 8


@dataclass(frozen=True)
class Row:
    """A program at one dimension. ``_se`` are over the test data, ``_mc_se`` Monte Carlo (0 in closed form).

    Attributes:
        error: |x - E[x | mean code]|^2 of test images; of PCA the projection on its subspace.
        log_p: Of test images, nats.
        elbo: Of the trained pairs, nats; of PCA log p(x), since its posterior is known.
        scale: Of the pixels.
        train_error, train_log_p: Of the training images; log p(x) of the deep VAE there is not measured.
        angle: Largest principal angle to PCA's subspace, degrees; nan of the deep VAE.
        neighbours: Share of test labels told by the 10 nearest training codes.
        trusted: Share of test data whose log p(x) is trusted.
        log_p_over_pca, error_over_pca: Paired differences from PCA's, with their standard errors over the data.
    """

    program: str
    dim: int
    error: float
    error_se: float
    log_p: float
    log_p_se: float
    log_p_mc_se: float
    elbo: float
    scale: float
    train_error: float
    train_log_p: float
    angle: float
    neighbours: float
    neighbours_se: float
    trusted: float
    log_p_over_pca: float
    log_p_over_pca_se: float
    error_over_pca: float
    error_over_pca_se: float


class LinearEncoder(torch.nn.Module):
    """(..., D) -> loc, linear in x, and a log scale that is the same for all x, as the posterior's is."""

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.loc = torch.nn.Linear(data_dim, latent_dim)
        self.log_scale = torch.nn.Parameter(torch.full((latent_dim,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        loc = self.loc(x)
        return torch.cat([loc, self.log_scale.expand_as(loc)], -1)


def trained_linear(x: Tensor, dim: int, epochs: int, out: Path) -> tuple[models.LinearGaussian, Any]:
    """The linear VAE. Every step is on all data, eight an epoch: z alone is random, and averages out as the learning rate falls."""
    pyro.set_rng_seed(0)
    model = models.LinearGaussian(x.shape[1], dim, scale=0.3)
    with torch.no_grad():
        model.weight.mul_(0.1)
        model.bias.copy_(x.mean(0))
    guide = guides.DiagonalNormal(LinearEncoder(x.shape[1], dim), latent_dim=dim)
    optimizer = functools.partial(torch.optim.Adam, lr=0.03)
    scheduler = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.002, total_iters=epochs)
    experiment.fit(
        model,
        guide,
        x.repeat(8, 1),
        objective=TraceMeanField_ELBO(),
        epochs=epochs,
        batch_size=len(x),
        optimizer=optimizer,
        scheduler=scheduler,
        out=out / f"linear-{dim}",
        resume=True,
    )
    return model, guide


def trained_deep(data: Any, dim: int, epochs: int, out: Path) -> tuple[models.LatentVariable, Any]:
    """A hidden layer of 128 each way; the epoch is the best on validation data."""
    pyro.set_rng_seed(0)
    d = data.train.x.shape[1]
    model = models.LatentVariable(models.priors.StandardNormal(dim), nn.MLP(dim, [128], d), models.likelihoods.NormalLearned(0.3))
    guide = guides.DiagonalNormal(nn.MLP(d, [128], 2 * dim), latent_dim=dim)
    experiment.fit(
        model,
        guide,
        data.train,
        validation=data.validation,
        objective=TraceMeanField_ELBO(),
        epochs=epochs,
        batch_size=64,
        optimizer=functools.partial(torch.optim.Adam, lr=2e-3),
        out=out / f"deep-{dim}",
        resume=True,
    )
    return model, guide


# What is measured.


def principal_angles(one: Tensor, other: Tensor) -> Tensor:
    """Between the column spaces of (D, Z) matrices, degrees, ascending.

    By sines, |(I - Q Q') P|, since a cosine knows no angle below the root of its rounding (Björck, Golub 1973, sec. 4).
    """
    q, p = (torch.linalg.qr(w.double())[0] for w in (one, other))
    sines = torch.linalg.svdvals(p - q @ (q.mT @ p)).flip(0)
    return torch.rad2deg(torch.asin(sines.clamp(max=1.0)))


def projected(model: models.LinearGaussian, x: Tensor) -> Tensor:
    """PCA's reconstruction: the nearest point of the subspace."""
    q = torch.linalg.qr(model.weight)[0]
    return model.bias + (x - model.bias) @ q @ q.mT


def squared(x: Tensor, reconstruction: Tensor) -> Tensor:
    return (x - reconstruction).square().sum(1).double()


@torch.no_grad()
def rows_at(data: Any, dim: int, epochs: tuple[int, int], num_particles: int, num_test: int, out: Path) -> tuple[list[Row], dict[str, Any]]:
    """The three programs at one dimension, and what the figure shows of them."""
    test, train = data.test[:num_test], data.train
    x, seen = test.x, train.x
    pca = models.LinearGaussian.maximum_likelihood(seen.double(), dim)
    with torch.enable_grad():
        linear, deep = trained_linear(seen, dim, epochs[0], out), trained_deep(data, dim, epochs[1], out)
    fitted = copy.deepcopy(linear[0]).double()
    codes, errors, seen_errors = {}, {}, {}
    codes["PCA"] = pca.posterior(seen.double()).mean, pca.posterior(x.double()).mean
    errors["PCA"], seen_errors["PCA"] = squared(x, projected(pca, x.double())), squared(seen, projected(pca, seen.double()))
    log_p = {"PCA": pca.log_evidence(x.double()), "linear VAE": fitted.log_evidence(x.double())}
    elbos = {"PCA": log_p["PCA"].mean().item()}
    exact_seen = {"PCA": pca.log_evidence(seen.double()), "linear VAE": fitted.log_evidence(seen.double())}
    shown = {"PCA": projected(pca, x.double())}
    for name, (model, guide) in (("linear VAE", linear), ("deep VAE", deep)):
        codes[name] = tuple(latents.codes(model, guide, part).mean for part in (train, test))
        decoded = [_decoded(model, z.float()) for z in codes[name]]
        seen_errors[name], errors[name] = squared(seen, decoded[0]), squared(x, decoded[1])
        shown[name] = decoded[1]
        elbos[name] = analysis.elbo(model, guide, test, num_particles=100).mean.value
    found = analysis.log_likelihood(*deep, test, num_particles=num_particles, proposal="refined")
    log_p["deep VAE"] = found.pointwise
    scales = {
        "PCA": pca.log_scale.exp().item(),
        "linear VAE": fitted.log_scale.exp().item(),
        "deep VAE": deep[0].likelihood.log_scale.exp().item(),
    }
    angles = {"PCA": 0.0, "linear VAE": principal_angles(pca.weight, fitted.weight)[-1].item(), "deep VAE": math.nan}
    rows = []
    for name in PROGRAMS:
        told = probe(*codes[name], train.labels, test.labels)
        exact = exact_seen.get(name)
        rows.append(
            Row(
                name,
                dim,
                *mean_and_se(errors[name]),
                *mean_and_se(log_p[name]),
                found.mean.mc_se if name == "deep VAE" else 0.0,
                elbos[name],
                scales[name],
                seen_errors[name].mean().item(),
                exact.mean().item() if exact is not None else math.nan,
                angles[name],
                told.neighbours,
                told.neighbours_se,
                found.trusted.double().mean().item() if name == "deep VAE" else 1.0,
                *mean_and_se(log_p[name] - log_p["PCA"]),
                *mean_and_se(errors[name] - errors["PCA"]),
            )
        )
    return rows, {"codes": {name: pair[1] for name, pair in codes.items()}, "labels": test.labels, "data": x, "decoded": shown}


def _decoded(model: Any, z: Tensor) -> Tensor:
    """E[x | z]."""
    if isinstance(model, models.LinearGaussian):
        return z @ model.weight.mT + model.bias
    return model.network(z)  # type: ignore[no-any-return]


# What is printed, written and drawn.


def table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'Z':>3} {'program':<11}{'squared error ± data':>22}{'log p(x) ± data ± MC':>27}{'ELBO':>9}{'scale':>8}{'train error':>13}"
        f"{'train log p':>13}{'angle':>8}{'neighbours':>18}{'trusted':>9}"
    ]
    for r in rows:
        angle = "-" if math.isnan(r.angle) else f"{r.angle:.2f}°"
        told = "-" if math.isnan(r.train_log_p) else f"{r.train_log_p:.3f}"
        lines.append(
            f"{r.dim:>3} {r.program:<11}{r.error:>14.3f} ± {r.error_se:.3f}{r.log_p:>13.2f} ± {r.log_p_se:.2f} ± {r.log_p_mc_se:.3f}"
            f"{r.elbo:>9.2f}{r.scale:>8.4f}{r.train_error:>13.3f}{told:>13}{angle:>8}{r.neighbours:>10.3f} ± {r.neighbours_se:.3f}"
            f"{r.trusted:>9.3f}"
        )
    return "\n".join(lines)


def claims(rows: Sequence[Row]) -> Claims:
    """Claim -> whether it was seen, and the numbers."""
    pca, linear, deep = ([r for r in rows if r.program == name] for name in PROGRAMS)
    short = [a.train_log_p - b.train_log_p for a, b in zip(pca, linear, strict=True)]
    excess = [b.train_error - a.train_error for a, b in zip(pca, linear, strict=True)]
    plane = [r.neighbours for r in rows if r.dim == 2]
    plane_se = [r.neighbours_se for r in rows if r.dim == 2]
    return {
        f"the linear VAE's log p(x) is below the closed form by less than {TOLERANCE} nats": (
            all(-1e-6 < value < TOLERANCE for value in short),
            by_dimension(linear, [f"{value:.4f}" for value in short]),
        ),
        f"its subspace is PCA's, every principal angle below {ANGLE:g} degrees": (
            all(r.angle < ANGLE for r in linear),
            by_dimension(linear, [f"{r.angle:.2f}" for r in linear]),
        ),
        "no linear reconstruction of the training data has less squared error than PCA's": (
            all(value > -1e-6 for value in excess),
            by_dimension(linear, [f"{value:+.4f}" for value in excess]),
        ),
        "the deep VAE has the higher log p(x) on test data": (
            all(r.log_p_over_pca > 2 * math.hypot(r.log_p_over_pca_se, r.log_p_mc_se) for r in deep),
            by_dimension(deep, [f"{r.log_p_over_pca:+.2f} ± {r.log_p_over_pca_se:.2f}" for r in deep]),
        ),
        "the deep VAE has the smaller squared error on test data": (
            all(r.error_over_pca < -2 * r.error_over_pca_se for r in deep),
            by_dimension(deep, [f"{r.error_over_pca:+.3f} ± {r.error_over_pca_se:.3f}" for r in deep]),
        ),
        "in 2 dimensions neighbours of the deep VAE's codes tell more labels right": (
            plane[2] - plane[0] > 2 * math.hypot(plane_se[0], plane_se[2]),
            f"{plane[0]:.3f} ± {plane_se[0]:.3f} PCA, {plane[2]:.3f} ± {plane_se[2]:.3f} deep",
        ),
    }


def by_dimension(rows: Sequence[Row], numbers: Sequence[str]) -> str:
    return ", ".join(f"{number} at {r.dim}" for r, number in zip(rows, numbers, strict=True))


def figure(rows: Sequence[Row], plane: dict[str, Any], largest: dict[str, Any]) -> Figure:
    """Codes of the plane; then images and their reconstructions at the largest dimension, squared error and log p(x) by dimension."""
    dims = sorted({r.dim for r in rows})
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 4.4), layout="constrained")
        above, below = drawn.subfigures(2, 1, height_ratios=[1, 1.05])
        for axes, name in zip(above.subplots(1, 3), PROGRAMS, strict=True):
            z = plots.array(plane["codes"][name])
            for label in range(10):
                at = plots.array(plane["labels"]) == label
                axes.scatter(z[at, 0], z[at, 1], s=3, color=TEN[label], linewidths=0)
                axes.text(*_median(z[at]), str(label), ha="center", va="center", fontsize=7, fontweight="bold", bbox=BOX)
            told = next(r for r in rows if r.program == name and r.dim == 2)
            axes.set_title(f"{name}: neighbours tell {100 * told.neighbours:.0f} %")
            axes.set_xlabel("code 1")
            axes.set_ylabel("code 2")
        images, errors, densities = below.subplots(1, 3, width_ratios=[1.3, 1, 1])
        mosaic = [largest["data"], *(largest["decoded"][name] for name in PROGRAMS)]
        images.imshow(strips(mosaic, 6, SIDE), cmap="gray_r", vmin=0, vmax=1)
        images.set_yticks([(SIDE + 2) * (i + 0.5) - 0.5 for i in range(4)], ["data", *PROGRAMS])
        images.set_xticks([])
        images.tick_params(length=0)
        for spine in images.spines.values():
            spine.set_visible(False)
        images.set_title(f"test images, {dims[-1]} dimensions")
        for name, color, marker in zip(PROGRAMS, COLORS, "so^", strict=True):
            mine = [r for r in rows if r.program == name]
            errors.errorbar(dims, [r.error for r in mine], [2 * r.error_se for r in mine], color=color, marker=marker, label=name)
            densities.errorbar(dims, [r.log_p for r in mine], [2 * r.log_p_se for r in mine], color=color, marker=marker, label=name)
        errors.set_ylabel("squared error of a test image")
        densities.set_ylabel("log p(x) of a test image (nats)")
        errors.legend(loc="upper right")
        for axes in (errors, densities):
            axes.set_xscale("log", base=2)
            axes.set_xticks(dims, [str(dim) for dim in dims])
            axes.set_xlabel("latent dimension")
    return drawn


BOX = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6}


def _median(z: Any) -> tuple[float, float]:
    x, y = torch.as_tensor(z).median(0).values.tolist()
    return x, y


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "pca-linear-deep", arguments)
    data = ppvae.data.load("digits", binarize="none")
    dims = (2,) if options.quick else DIMENSIONS
    epochs, num_particles, num_test = ((10, 6), 100, 50) if options.quick else ((300, 150), 1000, len(data.test))
    found = [rows_at(data, dim, epochs, num_particles, num_test, options.out) for dim in dims]
    rows = [row for of_dim, _ in found for row in of_dim]
    record = {
        "epochs": epochs,
        "num_test": num_test,
        "rows": [asdict(row) for row in rows],
    }
    experiment.finish(options.out, "pca-linear-deep", table(rows), claims(rows), figure(rows, found[0][1], found[-1][1]), record)


if __name__ == "__main__":
    main()
