"""The Lorenz attractor's dimension in what a VAE decodes, in what it samples and in what an adversarially trained generator gives.

The correlation dimension is the slope of log C(r) against log r, C(r) the share of pairs closer than r (Grassberger, Procaccia 1983: 2.05
± 0.01). It is a number only together with its radii: a model has a scale of its own, sigma of N(network(z), sigma^2 I), sigma = 0.5 here in
the system's units, of which the attractor measures about 40. Means and samples are two sets.

* Means g(z) of draws from p(z) lie on the image of the latent space. With 2 latents that is a surface: at radii small beside its folds the
  slope is at most 2 (less where g squeezes). With 3 it may be anything up to 3.
* Means g(m(x)) at the guide's mean are a smooth map of the attractor: no map of bounded slope raises a dimension.
* Samples are means plus noise. Of two means at distance d, noise included, the distance is below r with the probability that ``below`` has
  in closed form, so that the slope of samples follows from the means' distances without sampling: 3 far below sigma, the means' far above.
* A generator of 2-D noise without noise of its own has a surface too, and no scale at which that ends.

Expected. (1) The data's slope for r from 1 to 3 is 2.05 within 0.05 (2.07 at N = 16,000 is known), and leaving out pairs within 50 rows
of one another in time changes it by less than 0.01: states are 0.5 apart in time. For r from 0.15 to 0.4: (2) at most 2, within 2
standard errors, are the slopes of the means of 2 latents, of draws and of reconstructions, (3) and of the generator's points; (4) that
of the means of draws of 3 latents is above 2, by 2 standard errors; (5) those of all samples are above 2.8, and within 4 standard errors
of what the means' distances say. (6) For r from 4 to 10 samples and their means differ by less than 0.1. (7) Means of reconstructions of
3 latents have the data's slope within 0.1 for r from 1 to 3.

    python examples/lorenz.py --out runs/lorenz        # about two minutes; --quick: seconds
"""

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
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Normal

import experiment
import ppvae
from experiment import Claims
from ppvae import analysis, guides, models
from ppvae.analysis import latents, plots
from ppvae.data.lorenz import lorenz
from ppvae.models import likelihoods
from ppvae.nn import MLP

SIGMA = 0.5
LATENTS = (2, 3)
UNIT, CENTRE = 10.0, (0.0, 0.0, 23.5)  # what the networks see: (x - centre) / unit, one unit for all, so that no dimension is stretched
WINDOWS = {"small": (0.15, 0.4), "middle": (1.0, 3.0), "large": (4.0, 10.0)}
WHOLE = (0.1, 20.0)
PUBLISHED = 2.05
THEILER = 50
GENERATOR = "generator, 2-D noise"
ROOT = math.sqrt(2)


class Rescaled(nn.Module):
    """unit network(.) + centre after a decoder, or network((. - centre) / unit) of an encoder."""

    def __init__(self, network: nn.Module, decodes: bool) -> None:
        super().__init__()
        self.network, self.decodes = network, decodes
        self.register_buffer("centre", torch.tensor(CENTRE))

    def forward(self, value: Tensor) -> Tensor:
        if self.decodes:
            return UNIT * self.network(value) + self.centre  # type: ignore[no-any-return]
        return self.network((value - self.centre) / UNIT)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Effort:
    num_data: int
    epochs: int
    steps: int  # of the generator
    num_weights: int
    num_test: int


def pair(dim: int) -> tuple[models.LatentVariable, guides.DiagonalNormal]:
    """Two hidden layers of 64 with a smooth activation: means are then a smooth image of the latents."""
    pyro.set_rng_seed(0)
    decoder = Rescaled(MLP(dim, [64, 64], 3, nn.Softplus), decodes=True)
    encoder = Rescaled(MLP(3, [64, 64], 2 * dim, nn.Softplus), decodes=False)
    model = models.LatentVariable(models.priors.StandardNormal(dim), decoder, likelihoods.Normal(SIGMA))
    return model, guides.DiagonalNormal(encoder, latent_dim=dim)


def trained(dim: int, data: Any, effort: Effort, out: Path) -> tuple[models.LatentVariable, guides.DiagonalNormal]:
    """A pair that was trained there is not trained again."""
    model, guide = pair(dim)
    decay = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.02, total_iters=effort.epochs)
    experiment.fit(
        model,
        guide,
        data,
        objective=TraceMeanField_ELBO(),
        epochs=effort.epochs,
        batch_size=256,
        optimizer=functools.partial(torch.optim.Adam, lr=5e-3),
        scheduler=decay,
        clip_norm=1e3,
        out=out / f"latents-{dim}",
        resume=True,
        compile=False,
    )
    return model, guide


# The contrast: a deterministic generator of 2-D noise, adversarially trained.


def trained_generator(x: Tensor, steps: int, batch: int = 256) -> nn.Module:
    """The loss without saturation of Goodfellow et al. (2014), with the gradient penalty on data of Mescheder et al. (2018).

    Its own code, as it has no likelihood and no guide. What is returned is an average of the last half of the steps' parameters.
    """
    pyro.set_rng_seed(0)
    generator, critic = MLP(2, [64, 64], 3, nn.Softplus), MLP(3, [128, 128], 1, nn.Softplus)
    rows = (x - torch.tensor(CENTRE)) / UNIT
    adams = [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.0, 0.99)) for part in (generator, critic)]
    average = torch.optim.swa_utils.AveragedModel(generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    for _ in range(steps):
        real = rows[torch.randint(len(rows), (batch,))].requires_grad_()
        told = critic(real)
        (slope,) = torch.autograd.grad(told.sum(), real, create_graph=True)
        with torch.no_grad():
            made = generator(torch.randn(batch, 2))
        loss = nn.functional.softplus(-told).mean() + nn.functional.softplus(critic(made)).mean() + 0.05 * slope.square().sum(1).mean()
        adams[1].zero_grad()
        loss.backward()
        adams[1].step()
        loss = nn.functional.softplus(-critic(generator(torch.randn(batch, 2)))).mean()
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        average.update_parameters(generator)
    return Rescaled(average.module, decodes=True)


# What is measured.


@dataclass(frozen=True)
class Row:
    """A set of N points.

    Attributes:
        small, middle, large: Correlation dimension over each of ``WINDOWS``, with its standard error.
        two_nn: By the two nearest neighbours, whose radius is that of the neighbours: ``radius``, the median to the second.
        foretold: Of samples: the slope over the small window that the distances of their means say; else nan.
        radii, local: Slopes between neighbouring radii over the whole range, at the geometric mean of the two.
    """

    name: str
    latents: int
    small: float
    small_se: float
    middle: float
    middle_se: float
    large: float
    large_se: float
    two_nn: float
    two_nn_se: float
    radius: float
    foretold: float
    radii: list[float]
    local: list[float]


def below(distance: Tensor, r: float, noise: float) -> Tensor:
    """P(|d e + noise xi| < r) of a vector of length d > 0 and xi ~ N(0, I) in 3 dimensions: a noncentral chi in closed form.

    By the shell at radius t, whose density is t / (d noise sqrt(2 pi)) (exp(-(t - d)^2 / 2 noise^2) - exp(-(t + d)^2 / 2 noise^2)).
    """
    unit = Normal(0.0, 1.0)
    low, high = (r - distance) / noise, (r + distance) / noise
    inside = unit.cdf(low) - unit.cdf(-high)
    edge: Tensor = (torch.exp(-low.square() / 2) - torch.exp(-high.square() / 2)) * noise / (distance * math.sqrt(2 * math.pi))
    return inside - edge


def foretold(means: Tensor, noise: float, window: tuple[float, float], num_radii: int) -> float:
    """The slope of log C(r) after noise of this scale on each point, from the distances of up to 3,000 of them."""
    distances = torch.pdist(means[:3000].double()).clamp(min=1e-9)
    r = np.geomspace(*window, num_radii)
    share = [below(distances, float(each), ROOT * noise).mean().item() for each in r]
    return float(np.polynomial.polynomial.polyfit(np.log(r), np.log(share), 1)[1])


def measured(name: str, dim: int, points: Tensor, means: Tensor | None = None) -> Row:
    """Dimensions of points, (N, 3); ``means``, where they are samples, are what the noise was added to."""
    found = {key: analysis.correlation_dimension(points, radii=window, num_radii=6) for key, window in WINDOWS.items()}
    whole = analysis.correlation_dimension(points, radii=WHOLE, num_radii=24)
    near = analysis.two_nn(points)
    distance = torch.cdist(points[:500].double(), points.double()).kthvalue(3, 1).values.median().item()  # the first is the point itself
    return Row(
        name, dim,
        *(number for key in WINDOWS for number in (found[key].dimension, found[key].se)),
        near.dimension, near.se, distance,
        math.nan if means is None else foretold(means, SIGMA, WINDOWS["small"], 6),
        (whole.radii[1:] * whole.radii[:-1]).sqrt().tolist(), whole.local.tolist(),
    )  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A pair on test data, nats; ``active`` units on training data."""

    latents: int
    elbo: float
    log_p: float
    log_p_se: float
    log_p_mc_se: float
    trusted: float
    rate: float
    active: int
    error: float  # root mean square of x - g(m(x)), a coordinate


@torch.no_grad()
def of_pair(dim: int, data: Any, effort: Effort, out: Path) -> tuple[list[Row], Fit, dict[str, Tensor]]:
    """Rows of the means of reconstructions, means of draws, and samples; and how well the pair fits."""
    with torch.enable_grad():
        model, guide = trained(dim, data.train, effort, out)
    x, test = data.train.x, data.test[: effort.num_test]
    pyro.set_rng_seed(1)
    reconstructed = model.network(latents.codes(model, guide, data.train).mean.to(x))
    means = model.network(torch.randn(len(x), dim))
    samples = means + SIGMA * torch.randn_like(means)
    rows = [
        measured("means of reconstructions", dim, reconstructed),
        measured("means of draws", dim, means),
        measured("samples", dim, samples, means),
    ]
    bound = analysis.elbo(model, guide, test, num_particles=50)
    found = analysis.log_likelihood(model, guide, test, num_particles=effort.num_weights, proposal="refined")
    usage = analysis.latent_usage(model, guide, data.train[:2000], num_particles=4, num_mutual=500)
    fit = Fit(
        dim, bound.mean.value, found.mean.value, found.mean.data_se, found.mean.mc_se, found.trusted.double().mean().item(),
        bound.rate.mean().item(), usage.active_units["z"], (reconstructed - x).square().mean().sqrt().item(),
    )  # fmt: skip
    return rows, fit, {"means of draws": means, "samples": samples, "means of reconstructions": reconstructed}


def in_time(num_data: int) -> tuple[Any, Any]:
    """The data's dimension over the middle window in the order of time, without and with a Theiler window."""
    x = lorenz(num_data).x
    plain, apart = (analysis.correlation_dimension(x, radii=WINDOWS["middle"], num_radii=6, theiler=t) for t in (0, THEILER))
    return plain, apart


# What is printed, written and drawn.


def table(rows: Sequence[Row], fits: Sequence[Fit]) -> str:
    heads = "".join(f"{f'r {a:g} to {b:g}':>19}" for a, b in WINDOWS.values())
    lines = [f"{'points':<26}{'latents':>8}{heads}{'foretold':>10}{'two-NN':>16}{'at r':>7}"]
    for r in rows:
        said = "-" if math.isnan(r.foretold) else f"{r.foretold:.3f}"
        numbers = "".join(f"{getattr(r, key):>11.3f} ± {getattr(r, f'{key}_se'):.3f}" for key in WINDOWS)
        lines.append(f"{r.name:<26}{r.latents or '-':>8}{numbers}{said:>10}{r.two_nn:>9.2f} ± {r.two_nn_se:.2f}{r.radius:>7.3f}")
    lines += ["", f"{'latents':>8}{'ELBO':>9}{'log p(x) ± data ± MC':>26}{'trusted':>9}{'rate':>7}{'active':>8}{'error a coordinate':>20}"]
    for f in fits:
        lines.append(
            f"{f.latents:>8}{f.elbo:>9.3f}{f.log_p:>12.3f} ± {f.log_p_se:.3f} ± {f.log_p_mc_se:.4f}{f.trusted:>9.3f}"
            f"{f.rate:>7.2f}{f.active:>8}{f.error:>20.3f}"
        )
    return "\n".join(lines)


def claims(rows: Sequence[Row], plain: Any, apart: Any) -> Claims:
    """Claim -> whether it was seen, and the numbers."""
    at = {(r.name, r.latents): r for r in rows}
    data, generator = at["data", 0], at[GENERATOR, 2]
    surfaces = [at["means of draws", 2], at["means of reconstructions", 2]]
    solid = at["means of draws", 3]
    samples, means = ([at[name, dim] for dim in LATENTS] for name in ("samples", "means of draws"))
    back = at["means of reconstructions", 3]

    def told(row: Row, key: str = "small") -> str:
        return f"{getattr(row, key):.3f} ± {getattr(row, f'{key}_se'):.3f}"

    small, middle, large = (f"r from {a:g} to {b:g}" for a, b in WINDOWS.values())
    return {
        f"the data have the published dimension within 0.05 for {middle}, with and without a Theiler window": (
            abs(data.middle - PUBLISHED) < 0.05 and abs(plain.dimension - apart.dimension) < 0.01,
            f"{told(data, 'middle')}; in time {plain.dimension:.4f}, with a window of {THEILER} {apart.dimension:.4f}",
        ),
        f"means of 2 latents have at most 2 for {small}": (
            all(r.small < 2 + 2 * r.small_se for r in surfaces),
            f"draws {told(surfaces[0])}, reconstructions {told(surfaces[1])}; data {told(data)}",
        ),
        f"the generator of 2-D noise has at most 2 for {small}": (generator.small < 2 + 2 * generator.small_se, told(generator)),
        f"means of draws of 3 latents have more than 2 for {small}": (solid.small > 2 + 2 * solid.small_se, told(solid)),
        f"samples have more than 2.8 for {small}, as the distances of their means say": (
            all(r.small > 2.8 and abs(r.small - r.foretold) < 4 * r.small_se for r in samples),
            "; ".join(f"{told(r)}, foretold {r.foretold:.3f} of {r.latents} latents" for r in samples),
        ),
        f"samples and their means differ by less than 0.1 for {large}": (
            all(abs(a.large - b.large) < 0.1 for a, b in zip(samples, means, strict=True)),
            "; ".join(f"{told(a, 'large')} and {told(b, 'large')} of {a.latents} latents" for a, b in zip(samples, means, strict=True)),
        ),
        f"means of reconstructions of 3 latents have the data's within 0.1 for {middle}": (
            abs(back.middle - data.middle) < 0.1,
            f"{told(back, 'middle')}, data {told(data, 'middle')}",
        ),
    }


LINES = {"means of reconstructions": (plots.GREEN, "-"), "means of draws": (plots.BLUE, "-"), "samples": (plots.VERMILION, "-")}


def figure(rows: Sequence[Row], clouds: dict[str, Tensor]) -> Figure:
    """Points seen along the system's y, and the local slope against r, with 2 latents and with 3."""
    data = next(r for r in rows if r.name == "data")
    with matplotlib.rc_context(plots.STYLE):
        drawn = Figure(figsize=(2 * plots.WIDTH, 4.3), layout="constrained")
        above, beneath = drawn.subfigures(2, 1, height_ratios=[1, 1.15])
        for axes, (name, points) in zip(above.subplots(1, len(clouds), sharex=True, sharey=True), clouds.items(), strict=True):
            some = plots.array(points[:4000])
            axes.scatter(some[:, 0], some[:, 2], s=0.6, color=plots.BLACK if name == "data" else plots.BLUE, linewidths=0)
            axes.set_title(name, fontsize=8)
            axes.set_xlabel("x")
            axes.set_xlim(-22, 22)
            axes.set_ylim(0, 50)
        above.axes[0].set_ylabel("z")
        panels = beneath.subplots(1, 2, sharey=True)
        for axes, dim in zip(panels, LATENTS, strict=True):
            axes.plot(data.radii, data.local, color=plots.BLACK, linewidth=1.8, label="data")
            for r in (r for r in rows if r.latents == dim and r.name in LINES):
                color, style = LINES[r.name]
                axes.plot(r.radii, r.local, color=color, linestyle=style, label=r.name)
            if dim == 2:
                other = next(r for r in rows if r.name == GENERATOR)
                axes.plot(other.radii, other.local, color=plots.ORANGE, label=GENERATOR)
            for level in (2, 3):
                axes.axhline(level, color=plots.GREY, linewidth=0.6, linestyle="--")
            axes.axvline(SIGMA, color=plots.VERMILION, linewidth=0.6, linestyle=":")
            axes.text(SIGMA * 1.08, 3.12, "σ", fontsize=8, color=plots.VERMILION)
            axes.set_xscale("log")
            axes.set_ylim(0.5, 3.3)
            axes.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
            axes.minorticks_off()
            axes.set_xlabel("r")
            axes.set_title(f"{dim} latents", fontsize=8)
        panels[0].set_ylabel("local slope of log C(r)")
        panels[0].legend(loc="lower left", fontsize=6.5)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "lorenz", arguments)
    effort = Effort(2_000, 2, 40, 20, 20) if options.quick else Effort(16_000, 60, 4_000, 200, 400)
    whole = ppvae.data.load("lorenz") if not options.quick else ppvae.data.load(lorenz(effort.num_data).x)
    x = whole.train.x
    rows = [measured("data", 0, x)]
    found = [of_pair(dim, whole, effort, options.out) for dim in LATENTS]
    rows += [row for of_dim, _, _ in found for row in of_dim]
    generator = trained_generator(x, effort.steps)
    with torch.no_grad():
        made = generator(torch.randn(len(x), 2))
    rows.append(measured(GENERATOR, 2, made))
    fits = [fit for _, fit, _ in found]
    plain, apart = in_time(effort.num_data)
    clouds = {
        "data": x,
        "means, 2 latents": found[0][2]["means of draws"],
        "means, 3 latents": found[1][2]["means of draws"],
        "samples, 3 latents": found[1][2]["samples"],
        GENERATOR: made,
    }
    record = {
        "effort": asdict(effort),
        "sigma": SIGMA,
        "windows": WINDOWS,
        "rows": [asdict(row) for row in rows],
        "fits": [asdict(fit) for fit in fits],
        "theiler": [plain.as_dict(), apart.as_dict()],
    }
    experiment.finish(options.out, "lorenz", table(rows, fits), claims(rows, plain, apart), figure(rows, clouds), record)


if __name__ == "__main__":
    main()
