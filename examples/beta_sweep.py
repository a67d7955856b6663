"""beta from 0.01 to 100 on digits: rate, distortion, active units and log p(x); and the tutorials' slip, which is beta = D.

beta-VAEs minimise distortion + beta rate. The slip: a cross entropy averaged over the D pixels beside a KL summed over latents. Times D
this loss is distortion + D rate, so that its gradient is that of beta = D up to the factor, which Adam does not see: on 8 x 8 pixels it
trains beta = 64, on 28 x 28 beta = 784.

Expected. (1) On training data rate falls and distortion grows with beta, within 2 standard errors of the paired difference. (2) log p(x) of
test data is largest for a beta between 0.3 and 3. (3) At beta = 0.01 reconstruction is near perfect (below a fifth of the distortion at
beta = 1) and the prior decodes to disorder: fewer decoded draws accepted by an independent classifier than at beta = 1, and a larger
KL(q(z) || p(z)). (4) At beta = 100 the pair is collapsed: no active unit, rate below 0.01 nats, distortion that of the training
frequencies of the pixels, taken as independent, within 0.5 nats. (5) The slip's loss times D and its gradients are those of beta = D on a
batch, up to rounding, and trained by it the pair collapses. (6) The KL at beta = 1 is not linear in the latent dimension: from 8 to
32 it grows by less than a tenth a dimension of what it grows by from 1 to 4.

    python examples/beta_sweep.py --out runs/beta-sweep        # three minutes; --quick: seconds
"""

import copy
import functools
import itertools
import math
import warnings
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
from torch.distributions import Normal
from torch.nn.functional import binary_cross_entropy_with_logits

import experiment
import ppvae
from experiment import Claims, strips
from ppvae import analysis, guides, models, nn
from ppvae.analysis import latents, plots
from ppvae.errors import UnreliableWarning
from ppvae.objectives import Scaled, Scales

BETAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LATENT_DIM = 8
DIMENSIONS = (1, 2, 4, 8, 16, 32)
SHOWN = (0.01, 1.0, 10.0, 100.0)  # betas whose decoded prior draws the figure shows
SIDE = 8
LEARNING_RATE = 3e-3
ROUNDING = 1e-12  # relative, in double precision


@dataclass(frozen=True)
class Point:
    """A trained pair, nats. ``_se`` over the data, ``_mc_se`` Monte Carlo.

    Attributes:
        name: "beta", "slip" or "dimension": what was varied.
        rate, distortion: On test data.
        train_rate, train_distortion: Of each training datum, means; ``per_datum`` keeps them for paired differences.
        active: Units with Var_x(E[z | x]) above 0.01, on training data.
        information: I_q(x; z) over the training data, at most log N.
        marginal_kl: KL(q(z) || p(z)) = rate - information; where that is log N, an upper bound.
        log_p: log p(x) of test data; nan where it was not measured. ``trusted``: the share that is.
        accepted: Share of decoded prior draws that a classifier is confident about.
    """

    name: str
    beta: float
    dim: int
    rate: float
    rate_se: float
    rate_mc_se: float
    distortion: float
    distortion_se: float
    distortion_mc_se: float
    train_rate: float
    train_distortion: float
    active: int
    information: float
    marginal_kl: float
    log_p: float
    log_p_se: float
    log_p_mc_se: float
    trusted: float
    accepted: float
    accepted_se: float


Pair = tuple[models.Bernoulli, guides.DiagonalNormal]


def pair(dim: int, pixels: int = SIDE * SIDE) -> Pair:
    """A hidden layer of 128 each way."""
    pyro.set_rng_seed(0)
    model = models.Bernoulli(nn.MLP(dim, [128], pixels), latent_dim=dim)
    return model, guides.DiagonalNormal(nn.MLP(pixels, [128], 2 * dim), latent_dim=dim)


def trained(beta: float, dim: int, data: Any, epochs: int, out: Path) -> Pair:
    """A pair that was trained there is not trained again."""
    model, guide = pair(dim)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "beta ends at", UnreliableWarning)  # that it does is the experiment
        experiment.fit(
            model,
            guide,
            data,
            objective=TraceMeanField_ELBO(),
            epochs=epochs,
            batch_size=64,
            beta=beta,
            optimizer=functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
            scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=epochs),
            out=out / f"beta-{beta:g}-latents-{dim}",
            resume=True,
        )
    return model, guide


# The slip, as tutorials have it.


def slip_loss(model: models.Bernoulli, guide: guides.DiagonalNormal, x: Tensor) -> Tensor:
    """Cross entropy, mean over images and pixels, plus the KL, summed over latents, mean over images."""
    loc, log_scale = guide.encoder(x).chunk(2, -1)
    z = Normal(loc, log_scale.exp()).rsample()
    kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1).mean()
    return binary_cross_entropy_with_logits(model.network(z), x) + kl


def trained_by_slip(dim: int, x: Tensor, epochs: int) -> Pair:
    model, guide = pair(dim)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            slip_loss(model, guide, x[rows]).backward()
            optimizer.step()
    return model, guide


@dataclass(frozen=True)
class Equality:
    """One batch, the same draws: D times the slip's loss beside distortion + beta rate.

    Attributes:
        slip, weighted: D slip_loss and the beta-ELBO's loss, nats per datum.
        loss_difference: Relative.
        gradient_difference: Largest difference of an entry of the gradient, over the gradient's norm.
    """

    pixels: int
    beta: float
    slip: float
    weighted: float
    loss_difference: float
    gradient_difference: float


def equality(x: Tensor, beta: float | None = None, dim: int = LATENT_DIM) -> Equality:
    """By Pyro's own ELBO with the latent sites scaled by beta, D by default, as ``ppvae.fit(beta=...)`` does."""
    d = x.shape[1]
    beta = float(d) if beta is None else beta
    model, guide = (copy.deepcopy(part).double() for part in pair(dim, d))
    parameters = [*model.parameters(), *guide.parameters()]
    x = x.double()
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(1)
        slip = d * slip_loss(model, guide, x)
        by_slip = torch.autograd.grad(slip, parameters)
        pyro.set_rng_seed(1)
        scaled = (Scaled(part, Scales(latent=beta)) for part in (model, guide))
        weighted = TraceMeanField_ELBO().differentiable_loss(*scaled, x) / len(x)
        by_weight = torch.autograd.grad(weighted, parameters)
    norm = torch.stack([g.norm() for g in by_weight]).norm()
    off = max((a - b).abs().max().item() for a, b in zip(by_slip, by_weight, strict=True))
    relative = abs(slip.item() / weighted.item() - 1)
    return Equality(d, beta, slip.item(), weighted.item(), relative, off / norm.item())


# What is measured.


@dataclass(frozen=True)
class Effort:
    epochs: int
    num_particles: int
    num_weights: int
    num_test: int
    num_draws: int


def measured(name: str, beta: float, trained_pair: Pair, data: Any, effort: Effort, with_log_p: bool) -> tuple[Point, dict[str, Tensor]]:
    """A point, and rate and distortion of each training datum. By two measurements: half their difference is the error of their mean."""
    test = data.test[: effort.num_test]
    a, b = (analysis.elbo(*trained_pair, test, num_particles=effort.num_particles, seed=seed) for seed in (1, 2))
    rate, distortion = (a.rate + b.rate) / 2, (a.distortion + b.distortion) / 2
    seen = analysis.elbo(*trained_pair, data.train, num_particles=effort.num_particles, seed=3)
    usage = analysis.latent_usage(*trained_pair, data.train, num_particles=4, num_mutual=len(data.train))
    n = len(test)
    log_p = log_p_se = log_p_mc_se = trusted_share = math.nan
    if with_log_p:
        found = analysis.log_likelihood(*trained_pair, test, num_particles=effort.num_weights, proposal="refined")
        log_p, log_p_se, log_p_mc_se = found.mean.value, found.mean.data_se, found.mean.mc_se
        trusted_share = found.trusted.double().mean().item()
    complete = latents.completeness(trained_pair[0], data.train, data.test, num_draws=effort.num_draws)
    point = Point(
        name,
        beta,
        usage.unit_variance["z"].numel(),
        rate.mean().item(),
        (rate.std() / math.sqrt(n)).item(),
        ((a.rate - b.rate) / 2).norm().item() / n,
        distortion.mean().item(),
        (distortion.std() / math.sqrt(n)).item(),
        ((a.distortion - b.distortion) / 2).norm().item() / n,
        seen.rate.mean().item(),
        seen.distortion.mean().item(),
        usage.active_units["z"],
        usage.mutual_information,
        usage.marginal_kl,
        log_p,
        log_p_se,
        log_p_mc_se,
        trusted_share,
        complete.share,
        complete.share_se,
    )
    return point, {"rate": seen.rate, "distortion": seen.distortion, "images": complete.images[:8]}


def independent_pixels(train: Tensor, test: Tensor) -> float:
    """-log p of test data under the training frequencies, each pixel by itself; half a count is added to each side."""
    frequency = ((train.sum(0) + 0.5) / (len(train) + 1)).double()
    return -(test.double() @ frequency.log() + (1 - test.double()) @ (1 - frequency).log()).mean().item()


# What is printed, written and drawn.


def table(points: Sequence[Point]) -> str:
    lines = [
        f"{'':<10}{'beta':>6}{'Z':>4}{'rate ± data ± MC':>25}{'distortion ± data ± MC':>26}{'train R':>9}{'train D':>9}{'active':>8}"
        f"{'I(x;z)':>8}{'KL(q(z)||p)':>13}{'log p(x) ± data ± MC':>26}{'trusted':>9}{'accepted':>17}"
    ]
    for p in points:
        log_p = "-" if math.isnan(p.log_p) else f"{p.log_p:.2f} ± {p.log_p_se:.2f} ± {p.log_p_mc_se:.4f}"
        trusted = "-" if math.isnan(p.trusted) else f"{p.trusted:.3f}"
        lines.append(
            f"{p.name:<10}{p.beta:>6g}{p.dim:>4}{p.rate:>11.3f} ± {p.rate_se:.3f} ± {p.rate_mc_se:.3f}"
            f"{p.distortion:>12.3f} ± {p.distortion_se:.3f} ± {p.distortion_mc_se:.3f}{p.train_rate:>9.3f}{p.train_distortion:>9.3f}"
            f"{p.active:>8}{p.information:>8.2f}{p.marginal_kl:>13.2f}{log_p:>26}{trusted:>9}{p.accepted:>9.3f} ± {p.accepted_se:.3f}"
        )
    return "\n".join(lines)


def steps_of(per_datum: Sequence[dict[str, Tensor]], name: str) -> list[tuple[float, float]]:
    """Paired differences from one beta to the next and their standard errors."""
    found = []
    for one, other in itertools.pairwise(per_datum):
        difference = other[name] - one[name]
        found.append((difference.mean().item(), (difference.std() / math.sqrt(len(difference))).item()))
    return found


def claims(
    sweep: Sequence[Point], per_datum: Sequence[dict[str, Tensor]], slip: Point, equal: Equality, by_dim: Sequence[Point], pixels: float
) -> Claims:
    """Claim -> whether it was seen, and the numbers."""
    rates, distortions = steps_of(per_datum, "rate"), steps_of(per_datum, "distortion")
    best = max(sweep, key=lambda p: p.log_p)
    least, one, most = sweep[0], next(p for p in sweep if p.beta == 1), sweep[-1]
    at = {p.dim: p.rate for p in by_dim}
    dims = sorted(at)
    middle = min(8, dims[-2])
    early, late = (at[min(4, middle)] - at[dims[0]]) / (min(4, middle) - dims[0]), (at[dims[-1]] - at[middle]) / (dims[-1] - middle)
    return {
        "rate falls and distortion grows with beta, on training data": (
            all(value < 2 * se for value, se in rates) and all(value > -2 * se for value, se in distortions),
            f"largest step of the rate {max(v for v, _ in rates):+.3f}, smallest of distortion {min(v for v, _ in distortions):+.3f} nats",
        ),
        "log p(x) is largest for a beta between 0.3 and 3": (
            0.3 <= best.beta <= 3,
            f"{best.log_p:.2f} ± {best.log_p_se:.2f} at beta = {best.beta:g}; {least.log_p:.2f} at {least.beta:g}, "
            f"{one.log_p:.2f} at 1, {most.log_p:.2f} at {most.beta:g}",
        ),
        f"beta = {least.beta:g} reconstructs almost perfectly": (
            least.train_distortion < one.train_distortion / 5,
            f"distortion {least.train_distortion:.2f} of training data, {one.train_distortion:.2f} at beta = 1; "
            f"of test data {least.distortion:.2f} ± {least.distortion_se:.2f}, {one.distortion:.2f} ± {one.distortion_se:.2f}",
        ),
        f"and the prior decodes to disorder at beta = {least.beta:g}": (
            one.accepted - least.accepted > 2 * math.hypot(one.accepted_se, least.accepted_se) and least.marginal_kl > one.marginal_kl,
            f"{least.accepted:.3f} ± {least.accepted_se:.3f} accepted, {one.accepted:.3f} ± {one.accepted_se:.3f} at beta = 1; "
            f"KL(q(z)||p) {least.marginal_kl:.2f}, {one.marginal_kl:.2f}",
        ),
        f"beta = {most.beta:g} collapses to the frequencies of the pixels": (
            most.active == 0 and most.rate < 0.01 and abs(most.distortion - pixels) < 0.5,
            f"{most.active} active, rate {most.rate:.4f}, distortion {most.distortion:.2f}, of the frequencies {pixels:.2f} nats",
        ),
        "the slip is beta = D, exactly": (
            max(equal.loss_difference, equal.gradient_difference) < ROUNDING and equal.beta == equal.pixels,
            f"D = {equal.pixels}: loss {equal.slip:.6f} and {equal.weighted:.6f}, relative difference {equal.loss_difference:.1e}, "
            f"of the gradient {equal.gradient_difference:.1e}",
        ),
        "trained by the slip the pair collapses": (
            slip.active == 0 and slip.rate < 0.01,
            f"{slip.active} active, rate {slip.rate:.4f} nats; at beta = 1 {one.active}, {one.rate:.2f}",
        ),
        "the KL is not linear in the latent dimension": (
            late < early / 10,
            ", ".join(f"{at[d]:.2f} at {d}" for d in dims) + f"; a dimension {early:.2f} nats, then {late:.3f}",
        ),
    }


def figure(sweep: Sequence[Point], images: dict[float, Tensor], slip: Point, by_dim: Sequence[Point], pixels: float) -> Figure:
    betas = [p.beta for p in sweep]
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3.5}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 4.2), layout="constrained")
        (plane, likelihood, units), (samples, accepted, dims) = drawn.subplots(2, 3)
        plane.errorbar(
            [p.rate for p in sweep], [p.distortion for p in sweep], [2 * p.distortion_se for p in sweep],
            [2 * p.rate_se for p in sweep], color=plots.BLUE, marker="o", elinewidth=0.7,
        )  # fmt: skip
        for p in sweep:
            if p.beta in (0.01, 0.1, 1.0, 3.0):
                last = p.rate == max(other.rate for other in sweep)  # its label goes to the left
                where, side = ((2, 8), "right") if last else ((5, 6), "left")
                plane.annotate(f"β = {p.beta:g}", (p.rate, p.distortion), where, textcoords="offset points", fontsize=7, ha=side)
        plane.plot(slip.rate, slip.distortion, marker="x", markersize=7, color=plots.VERMILION, linestyle="")
        collapsed = min((p.beta for p in sweep if p.active == 0), default=math.inf)
        plane.annotate(
            "the slip" if math.isinf(collapsed) else f"the slip, and β ≥ {collapsed:g}",
            (slip.rate, slip.distortion),
            (8, -1),
            textcoords="offset points",
            fontsize=7,
        )
        plane.set_xlabel("rate (nats)")
        plane.set_ylabel("distortion (nats)")
        likelihood.errorbar(betas, [p.log_p for p in sweep], [2 * p.log_p_se for p in sweep], color=plots.BLACK, marker="s")
        likelihood.axhline(-pixels, color=plots.GREY, linewidth=0.8, linestyle="--")
        likelihood.text(betas[0], -pixels, "independent pixels", va="bottom", fontsize=7, color=plots.GREY)
        likelihood.set_ylabel("log p(x) of a test image (nats)")
        units.plot(betas, [p.active for p in sweep], color=plots.ORANGE, marker="^")
        units.axvline(SIDE * SIDE, color=plots.VERMILION, linewidth=0.8, linestyle="--")
        units.text(SIDE * SIDE * 0.8, 0.97, "the slip: β = D", ha="right", va="top", fontsize=7, color=plots.VERMILION,
                   transform=units.get_xaxis_transform())  # fmt: skip
        units.set_ylim(-0.3, LATENT_DIM + 1.3)
        units.set_ylabel("active units")
        chosen = [beta for beta in SHOWN if beta in images]
        samples.imshow(strips([images[beta] for beta in chosen], 6, SIDE), cmap="gray_r", vmin=0, vmax=1)
        samples.set_yticks([(SIDE + 2) * (i + 0.5) - 0.5 for i in range(len(chosen))], [f"β = {beta:g}" for beta in chosen])
        samples.set_xticks([])
        samples.tick_params(length=0)
        for spine in samples.spines.values():
            spine.set_visible(False)
        samples.set_title("decoded draws from the prior")
        accepted.errorbar(betas, [p.accepted for p in sweep], [2 * p.accepted_se for p in sweep], color=plots.GREEN, marker="o")
        accepted.set_ylabel("decoded prior draws accepted")
        accepted.set_ylim(0, 1.06)
        for axes in (likelihood, units, accepted):
            axes.set_xscale("log")
            axes.set_xlabel("β")
        at = [p.dim for p in by_dim]
        dims.errorbar(at, [p.rate for p in by_dim], [2 * p.rate_se for p in by_dim], color=plots.BLUE, marker="o", label="KL")
        dims.plot(at, [p.active for p in by_dim], color=plots.ORANGE, marker="^", label="active units")
        dims.set_xscale("log", base=2)
        dims.set_xticks(at, [str(d) for d in at])
        dims.set_xlabel("latent dimension, β = 1")
        dims.set_ylabel("nats, units")
        dims.legend(loc="upper left")
    return drawn


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "beta-sweep", arguments)
    data = ppvae.data.load("digits", binarize="threshold")
    effort = Effort(4, 4, 50, 40, 100) if options.quick else Effort(120, 50, 500, 200, 1000)
    betas, dimensions = ((0.01, 1.0, 100.0), (1, 2, 4)) if options.quick else (BETAS, DIMENSIONS)
    found = [
        measured("beta", beta, trained(beta, LATENT_DIM, data.train, effort.epochs, options.out), data, effort, True) for beta in betas
    ]
    sweep, per_datum = [point for point, _ in found], [of_datum for _, of_datum in found]
    d = data.train.x.shape[1]
    slip, _ = measured("slip", float(d), trained_by_slip(LATENT_DIM, data.train.x, effort.epochs), data, effort, False)
    equal = equality(data.train.x[:64])
    by_dim = [
        next(p for p in sweep if p.beta == 1)
        if dim == LATENT_DIM
        else measured("dimension", 1.0, trained(1.0, dim, data.train, effort.epochs, options.out), data, effort, False)[0]
        for dim in dimensions
    ]
    pixels = independent_pixels(data.train.x, data.test[: effort.num_test].x)
    images = {p.beta: of_datum["images"] for p, of_datum in zip(sweep, per_datum, strict=True)}
    record = {
        "effort": asdict(effort),
        "sweep": [asdict(p) for p in sweep],
        "slip": asdict(slip),
        "equality": asdict(equal),
        "by_dimension": [asdict(p) for p in by_dim],
        "independent_pixels": pixels,
    }
    experiment.finish(
        options.out,
        "beta-sweep",
        table([*sweep, slip, *(p for p in by_dim if p.name == "dimension")]),
        claims(sweep, per_datum, slip, equal, by_dim, pixels),
        figure(sweep, images, slip, by_dim, pixels),
        record,
    )


if __name__ == "__main__":
    main()
