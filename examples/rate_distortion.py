"""Rate and distortion of linear beta-VAEs on a Gaussian source, on the curve that is known exactly.

A Gaussian source whose covariance has eigenvalues l_i. Reverse water-filling: at water level theta the rate R = sum_i max(0,
1/2 log(l_i / theta)) nats and the squared error E = sum_i min(l_i, theta) are the best that go together. A linear decoder with fixed
noise s has distortion D = d/2 log(2 pi s^2) + E / (2 s^2) nats, and the least D + beta R lies at theta = beta s^2, where dD/dR = -beta.
The data have exactly these second moments, so that for linear programs their curve is the source's.

Expected, for every beta. (1) No pair lies below the curve, by the converse of rate-distortion theory, and training ends on it: within
4 Monte Carlo standard errors or 0.005 nats above. (2) The curve's slope where the pair is, is -beta, within 4 standard errors or 2 %,
and secants between neighbours have slopes between theirs. (3) Active units: the eigenvalues above the water level.

    python examples/rate_distortion.py --out runs/rate-distortion        # a minute or two; --quick: seconds
"""

import argparse
import functools
import itertools
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

import ppvae
from ppvae import analysis, guides, models
from ppvae.analysis import plots
from ppvae.errors import UnreliableWarning

SPECTRUM = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
SCALE = 1.0  # of the decoder's noise: the water level is beta SCALE^2
BETAS = (0.09, 0.18, 0.35, 0.7, 1.4, 2.8, 5.6, 11.0)


def source(num_data: int, generator: torch.Generator) -> Tensor:
    """(N, d), mean 0 and covariance exactly U diag(SPECTRUM) U', U a random rotation."""
    d = len(SPECTRUM)
    x = torch.randn(num_data, d, dtype=torch.float64, generator=generator)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / num_data)).mT
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))[0]
    return white * torch.tensor(SPECTRUM, dtype=torch.float64).sqrt() @ rotation.mT


# The curve.


def water_filling(theta: float) -> tuple[float, float]:
    """Rate and distortion at a water level, nats."""
    rate = sum(max(0.0, 0.5 * math.log(l / theta)) for l in SPECTRUM)  # noqa: E741
    return rate, nats(sum(min(value, theta) for value in SPECTRUM))


def nats(squared_error: float) -> float:
    """E |x - W z|^2 -> -E log N(x; W z, SCALE^2 I)."""
    return len(SPECTRUM) / 2 * math.log(2 * math.pi * SCALE**2) + squared_error / (2 * SCALE**2)


def water_level(rate: float) -> float:
    """theta at which water filling has this rate: with n eigenvalues above, log theta = (sum of their logs - 2 R) / n."""
    logs = [math.log(value) for value in sorted(SPECTRUM, reverse=True)]
    for n in range(1, len(logs) + 1):
        level = (sum(logs[:n]) - 2 * max(rate, 0.0)) / n
        if n == len(logs) or level >= logs[n]:
            break
    return math.exp(level)


# The pairs.


@dataclass(frozen=True)
class Point:
    """A trained pair, nats; ``_mc_se`` Monte Carlo, ``_data_se`` from data to data.

    Attributes:
        beta: It was trained with.
        rate, distortion: Means over the data.
        exact_rate, exact_distortion: Of the optimum for this beta.
        above: Distortion less that of the curve at the measured rate.
        slope: Of the curve at the measured rate, less its sign: to be beta.
        active, exact_active: Units with Var_x(E[z | x]) above 0.01; eigenvalues above the water level.
    """

    beta: float
    rate: float
    rate_mc_se: float
    rate_data_se: float
    distortion: float
    distortion_mc_se: float
    distortion_data_se: float
    exact_rate: float
    exact_distortion: float
    above: float
    above_mc_se: float
    slope: float
    slope_mc_se: float
    active: int
    exact_active: int


class LinearEncoder(torch.nn.Module):
    """(..., d) -> loc, linear in x, and a log scale that is the same for all x, as that of the best pair is.

    Were log scales linear in x too, exp(2 log scale) would have tails that training takes long to quieten.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.loc = torch.nn.Linear(d, d)
        self.log_scale = torch.nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        loc = self.loc(x)
        return torch.cat([loc, self.log_scale.expand_as(loc)], -1)


def trained(beta: float, x: Tensor, epochs: int, learning_rate: float) -> ppvae.Run:
    """A linear pair: decoder and encoder one linear map each, the noise of the decoder fixed."""
    d = len(SPECTRUM)
    pyro.set_rng_seed(0)
    model = models.LinearGaussian(d, d, scale=SCALE)
    model.log_scale.requires_grad_(False)
    guide = guides.DiagonalNormal(LinearEncoder(d), latent_dim=d)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "beta ends at", UnreliableWarning)  # that it does is the experiment
        return ppvae.fit(
            model,
            guide,
            x.to(torch.get_default_dtype()),
            # The KL of two Normals in closed form: less noise.
            objective=TraceMeanField_ELBO(),
            epochs=epochs,
            batch_size=len(x) // 5,
            beta=beta,
            optimizer=functools.partial(torch.optim.Adam, lr=learning_rate),
            scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.002, total_iters=epochs),
            seed=0,
        )


def measured(beta: float, run: ppvae.Run, x: Tensor, num_particles: int) -> Point:
    """Rate and distortion by two independent measurements: half their difference on each datum is the error of their mean."""
    x = x.to(torch.get_default_dtype())
    a, b = (analysis.elbo(run.model, run.guide, x, num_particles=num_particles, seed=seed) for seed in (1, 2))
    rate, distortion = (a.rate + b.rate) / 2, (a.distortion + b.distortion) / 2
    noise_rate, noise_distortion = (a.rate - b.rate) / 2, (a.distortion - b.distortion) / 2
    n = len(x)

    def mc_se(noise: Tensor) -> float:
        return noise.square().sum().sqrt().item() / n

    r, theta = rate.mean().item(), water_level(rate.mean().item())
    slope, above_water = theta / SCALE**2, sum(value > theta for value in SPECTRUM)
    exact_rate, exact_distortion = water_filling(beta * SCALE**2)
    usage = analysis.latent_usage(run.model, run.guide, x, num_particles=1, num_mutual=2)
    return Point(
        beta,
        r,
        mc_se(noise_rate),
        (rate.std() / math.sqrt(n)).item(),
        distortion.mean().item(),
        mc_se(noise_distortion),
        (distortion.std() / math.sqrt(n)).item(),
        exact_rate,
        exact_distortion,
        distortion.mean().item() - water_filling(theta)[1],
        mc_se(noise_distortion + slope * noise_rate),  # along the curve D moves by -slope times what R does
        slope,
        2 * slope / max(above_water, 1) * mc_se(noise_rate),  # d log theta = -2 dR / n
        usage.active_units["z"],
        sum(value > beta * SCALE**2 for value in SPECTRUM),
    )


# What is printed, written and drawn.


def table(points: Sequence[Point]) -> str:
    lines = [
        f"{'beta':>6}{'rate ± MC ± data':>26}{'exact':>9}{'in se':>7}{'distortion ± MC ± data':>29}{'exact':>9}{'in se':>7}"
        f"{'above the curve':>20}{'in se':>7}{'slope':>17}{'active':>8}{'exact':>6}"
    ]
    for p in points:
        lines.append(
            f"{p.beta:>6g}{p.rate:>12.4f} ± {p.rate_mc_se:.4f} ± {p.rate_data_se:.2f}{p.exact_rate:>9.4f}"
            f"{in_se(p.rate - p.exact_rate, p.rate_mc_se):>7}"
            f"{p.distortion:>15.4f} ± {p.distortion_mc_se:.4f} ± {p.distortion_data_se:.2f}{p.exact_distortion:>9.4f}"
            f"{in_se(p.distortion - p.exact_distortion, p.distortion_mc_se):>7}"
            f"{p.above:>+11.4f} ± {p.above_mc_se:.4f}{in_se(p.above, p.above_mc_se):>7}"
            f"{-p.slope:>9.3f} ± {p.slope_mc_se:.3f}{p.active:>8}{p.exact_active:>6}"
        )
    return "\n".join(lines)


def in_se(difference: float, se: float) -> str:
    return f"{difference / se:+.1f}" if se > 0 else "-"


def secants(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Minus the slope between neighbours, and its Monte Carlo error."""
    found = []
    for a, b in itertools.pairwise(points):
        run, rise = a.rate - b.rate, b.distortion - a.distortion
        slope = rise / run
        # of D + slope R at both ends, whose errors lie below the sum of those of its parts
        error = math.hypot(*(p.distortion_mc_se + slope * p.rate_mc_se for p in (a, b)))
        found.append((slope, error / abs(run)))
    return found


def claims(points: Sequence[Point]) -> dict[str, tuple[bool, str]]:
    """Claim -> whether it was seen, and the numbers."""
    between = secants(points)
    held = [
        a.beta - 4 * error < slope < b.beta + 4 * error
        for (a, b), (slope, error) in zip(itertools.pairwise(points), between, strict=True)
        if a.exact_active  # else both are collapsed, and there is no secant
    ]
    # A collapsed pair has rate 0 for every beta above l_1: the curve ends there.
    inner = [p for p in points if p.exact_active]
    off = max(inner, key=lambda p: abs(p.slope / p.beta - 1))
    lowest = min(points, key=lambda p: p.above / max(p.above_mc_se, 1e-9))
    highest = max(points, key=lambda p: p.above)
    return {
        "no pair lies below the curve": (
            all(p.above > -4 * p.above_mc_se - 1e-5 for p in points),
            f"lowest, beta = {lowest.beta:g}: {lowest.above:+.4f} ± {lowest.above_mc_se:.4f} nats",
        ),
        "training ends on the curve": (
            all(p.above < max(4 * p.above_mc_se, 0.005) for p in points),
            f"highest, beta = {highest.beta:g}: {highest.above:+.4f} ± {highest.above_mc_se:.4f} nats",
        ),
        "the slope is -beta": (
            all(abs(p.slope - p.beta) < max(4 * p.slope_mc_se, 0.02 * p.beta) for p in inner),
            f"furthest, beta = {off.beta:g}: {-off.slope:.3f} ± {off.slope_mc_se:.3f}",
        ),
        "slopes of secants lie between those of their ends": (
            all(held),
            ", ".join(f"{-slope:.3f} ± {error:.3f}" for slope, error in between[: len(held)]),
        ),
        "active units are the eigenvalues above the water level": (
            all(p.active == p.exact_active for p in points),
            ", ".join(f"{p.active} of {p.exact_active}" for p in points),
        ),
    }


def figure(points: Sequence[Point]) -> Figure:
    thetas = torch.logspace(math.log10(0.06), math.log10(SPECTRUM[0]), 400, dtype=torch.float64).tolist()
    curve = [water_filling(theta) for theta in thetas]
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.5), layout="constrained")
        plane, deviation, units = drawn.subplots(1, 3, width_ratios=[1.4, 1, 1])
        plane.plot([r for r, _ in curve], [d for _, d in curve], color=plots.BLACK, label="reverse water-filling")
        for i, p in enumerate(points):
            reach = 0.5  # tangents of slope -beta, half a nat of rate to each side
            at = [max(p.rate - reach, 0.0), p.rate + reach]
            tangent = [p.distortion - p.beta * (rate - p.rate) for rate in at]
            if p.exact_active:
                plane.plot(at, tangent, color=plots.ORANGE, linewidth=0.8, label="slope -β" if i == 0 else None)
        errors = {"xerr": [2 * p.rate_mc_se for p in points], "yerr": [2 * p.distortion_mc_se for p in points]}
        plane.errorbar(
            [p.rate for p in points], [p.distortion for p in points], **errors, color=plots.BLUE, marker="o", linestyle="", label="trained"
        )
        for p in points:
            beside = f"β = {p.beta:g}"
            plane.annotate(beside, (p.rate, p.distortion), (5, 3), textcoords="offset points", fontsize=6, color=plots.BLUE)
        plane.set_xlabel("rate (nats)")
        plane.set_ylabel("distortion (nats)")
        plane.legend(loc="upper right")
        betas = [p.beta for p in points]
        for values, color, marker, name, aside in (
            ([(p.rate - p.exact_rate, p.rate_mc_se) for p in points], plots.GREEN, "^", "rate, from its optimum", 0.93),
            ([(p.above, p.above_mc_se) for p in points], plots.VERMILION, "s", "distortion, from the curve", 1.07),
        ):
            at = [aside * beta for beta in betas]
            bars = [2 * se for _, se in values]
            deviation.errorbar(at, [v for v, _ in values], bars, color=color, marker=marker, linestyle="", elinewidth=0.8, label=name)
        deviation.axhline(0, color=plots.GREY, linewidth=0.6)
        deviation.set_ylabel("deviation (nats)")
        low, high = deviation.get_ylim()
        deviation.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
        deviation.legend(loc="upper right")
        levels = [0.06, *sorted(SPECTRUM), 15.0]
        counts = [sum(value > level * 1.0001 for value in SPECTRUM) for level in levels]
        units.step(levels, counts, where="post", color=plots.BLACK, label="eigenvalues above β s²")
        units.plot(betas, [p.active for p in points], color=plots.BLUE, marker="o", linestyle="", label="active units")
        units.yaxis.set_major_locator(MaxNLocator(integer=True))
        units.set_ylabel("units")
        units.legend(loc="upper right")
        for axes in (deviation, units):
            axes.set_xscale("log")
            axes.set_xlabel("β")
        units.set_ylim(-0.3, len(SPECTRUM) + 1.6)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rate-distortion"))
    parser.add_argument("--epochs", type=int, default=None, help="240 by default")
    parser.add_argument("--quick", action="store_true", help="three betas, short training: shows that it works")
    options = parser.parse_args()
    x = source(300 if options.quick else 1000, torch.Generator().manual_seed(0))
    epochs = options.epochs or (72 if options.quick else 240)
    learning_rate = 0.05 if options.quick else 0.2  # small batches are noisier; small betas need the larger one
    betas = (0.35, 1.4, 11.0) if options.quick else BETAS
    points = [measured(beta, trained(beta, x, epochs, learning_rate), x, 100 if options.quick else 500) for beta in betas]
    told = claims(points)
    lines = [f"{'seen' if seen else 'NOT SEEN'}: {claim}: {numbers}" for claim, (seen, numbers) in told.items()]
    text = "\n".join([table(points), "", *lines])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "spectrum": SPECTRUM,
        "scale": SCALE,
        "num_data": len(x),
        "epochs": epochs,
        "learning_rate": learning_rate,
        "points": [asdict(p) for p in points],
        "claims": {claim: {"seen": seen, "numbers": numbers} for claim, (seen, numbers) in told.items()},
    }
    (options.out / "rate-distortion.json").write_text(json.dumps(record, indent=1))
    (options.out / "rate-distortion.txt").write_text(text + "\n")
    plots.save(figure(points), options.out / "rate-distortion.png")


if __name__ == "__main__":
    main()
