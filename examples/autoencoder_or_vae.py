"""An autoencoder beside a VAE with the same networks: holes among the codes, samples, continuity; and a VAE at its extremes.

The autoencoder (``models.Autoencoder``, ``guides.Delta``) trains the cross entropy alone. To sample from it a Normal is fitted to its
training codes. Holes: the share of draws from the prior, or from that Normal, that lie farther from every training code than 95 % of
held-out codes do; with nothing missing it is 5 %. Codes of the VAE are draws from q(z | x), and dimensions are taken in units of their
standard deviation. Completeness: the share of decoded draws that an independent classifier is confident about, and their mean distance
to the nearest of the held-out data. Continuity: the largest over the median decoder step along straight paths between data.

Expected, with 2 and with 8 latents. (1) The autoencoder has the smaller cross entropy on training data. (2) It has the more holes, (3) the
fewer accepted samples, (4) samples farther from data, and (5) the less even decoder, each by more than 2 standard errors. Extremes:
(6) KL weight 0: an autoencoder: the rate is more than twice the VAE's, and the training distortion nearer to the autoencoder's than to the
VAE's. (7) Likelihood weight 0.01: every z decodes to the average image, within a tenth of a datum's distance from it. (8) Likelihood
weight 0: that is often said of it too, but no gradient reaches the decoder, which stays as it was made. (9) A scale of q(z | x) forced
towards 0: the KL grows as -d log sigma, the slope within 5 % of -d from sigma = 0.1 down.

    python examples/autoencoder_or_vae.py --out runs/autoencoder-or-vae        # two minutes; --quick: seconds
"""

import copy
import functools
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
from pyro.distributions import MultivariateNormal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.nn.functional import pad

import experiment
import ppvae
from experiment import Claims, mean_and_se
from ppvae import analysis, guides, models, nn
from ppvae.analysis import latents, plots
from ppvae.analysis.plots.style import TEN
from ppvae.errors import UnreliableWarning

DIMENSIONS = (2, 8)
SCALES = (1.0, 0.1, 0.01, 0.001)
FROM = 0.1  # the largest scale that the slope is taken over
PIXELS, SIDE = 64, 8
BOX = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6}
BESIDE = 0.95  # share of held-out codes that have a training code beside them, by definition


@dataclass(frozen=True)
class Row:
    """A program at one dimension; ``_se`` over draws, paths or data.

    Attributes:
        train_cross_entropy, cross_entropy: Of data under the decoded mean code, nats.
        holes, accepted, distance: Of draws from what is sampled from.
        accepted_standard: Of draws from N(0, I), which nothing has asked the autoencoder's codes to follow.
        unevenness: Mean over paths of the largest over the median decoder step.
    """

    program: str
    dim: int
    train_cross_entropy: float
    train_cross_entropy_se: float
    cross_entropy: float
    cross_entropy_se: float
    holes: float
    holes_se: float
    accepted: float
    accepted_se: float
    accepted_standard: float
    distance: float
    distance_se: float
    unevenness: float
    unevenness_se: float


@dataclass(frozen=True)
class Forced:
    """Rates of pairs whose encoder's scale was forced; nats.

    Attributes:
        rates, rates_se: By scale.
        slope: d KL / d log sigma by least squares over the scales up to ``FROM``, mean of those of the data.
    """

    dim: int
    scales: tuple[float, ...]
    rates: tuple[float, ...]
    rates_se: tuple[float, ...]
    slope: float
    slope_se: float
    slope_mc_se: float


@dataclass(frozen=True)
class Effort:
    epochs: int
    forced_epochs: int
    num_draws: int
    num_paths: int
    num_particles: int


class ForcedScale(torch.nn.Module):
    """(..., D) -> (loc, log scale) with the scale a constant."""

    def __init__(self, loc: torch.nn.Module, latent_dim: int, scale: float) -> None:
        super().__init__()
        self.loc, self.latent_dim, self.scale = loc, latent_dim, scale

    def forward(self, x: Tensor) -> Tensor:
        loc = self.loc(x)
        return torch.cat([loc, torch.full_like(loc, math.log(self.scale))], -1)


def network(inputs: int, outputs: int) -> nn.MLP:
    return nn.MLP(inputs, [64], outputs)


def fitted(model: Any, guide: Any, train: Any, epochs: int, out: Path, objective: Any = None, **weights: float) -> tuple[Any, Any]:
    """A pair that was trained there is not trained again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ends at", UnreliableWarning)  # that weights do is the experiment
        experiment.fit(
            model,
            guide,
            train,
            objective=objective or TraceMeanField_ELBO(),
            epochs=epochs,
            batch_size=64,
            optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
            scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=epochs),
            out=out,
            resume=True,
            **weights,
        )
    return model, guide


def autoencoder(dim: int, train: Any, epochs: int, out: Path) -> tuple[Any, Any]:
    pyro.set_rng_seed(0)
    model = models.Autoencoder(network(dim, PIXELS), models.likelihoods.Bernoulli(), dim)
    return fitted(model, guides.Delta(network(PIXELS, dim)), train, epochs, out / f"autoencoder-{dim}", Trace_ELBO())


def made(dim: int) -> tuple[Any, Any]:
    """A VAE before it is trained."""
    pyro.set_rng_seed(0)
    return models.Bernoulli(network(dim, PIXELS), latent_dim=dim), guides.DiagonalNormal(network(PIXELS, 2 * dim), latent_dim=dim)


# What is measured.


def holes(draws: Tensor, train: Tensor, held_out: Tensor) -> tuple[float, float]:
    """Share of draws without a training code as near as ``BESIDE`` of the held-out codes have one, and its binomial error."""
    unit = train.std(0)
    train, draws, held_out = (part / unit for part in (train, draws, held_out))
    usual = torch.quantile(torch.cdist(held_out, train).amin(1), BESIDE)
    share = (torch.cdist(draws, train).amin(1) > usual).double().mean().item()
    return share, math.sqrt(share * (1 - share) / len(draws))


@torch.no_grad()
def cross_entropy(model: Any, codes: Tensor, x: Tensor) -> Tensor:
    """-log p(x | mean code), (N,)."""
    return -model.likelihood(model.network(codes.to(x.dtype))).log_prob(x).double()


def row(name: str, dim: int, pair: tuple[Any, Any], data: Any, effort: Effort) -> tuple[Row, dict[str, Any]]:
    """Its numbers, and what the figure shows."""
    model, guide = pair
    plain = isinstance(model, models.Autoencoder)
    program = guide.forward if plain else guide
    train, test = (latents.codes(model, program, part).mean for part in (data.train, data.test))
    seen, held = (train, test) if plain else (latents.aggregated_posterior(model, guide, part).draws for part in (data.train, data.test))
    if plain:
        covariance = torch.cov(train.mT)
        normal = MultivariateNormal(train.mean(0).float(), covariance.float())
        sampler = models.LatentVariable(normal, model.network, model.likelihood)
    else:
        normal = MultivariateNormal(torch.zeros(dim), torch.eye(dim))
        sampler = model
    draws = normal.sample((effort.num_draws,)).to(seen.dtype)
    complete = latents.completeness(sampler, data.train, data.test, num_draws=effort.num_draws)
    standard = latents.completeness(model, data.train, data.test, num_draws=effort.num_draws)
    even = latents.continuity(model, program, data.test, num_paths=effort.num_paths)
    found = Row(
        name,
        dim,
        *mean_and_se(cross_entropy(model, train, data.train.x)),
        *mean_and_se(cross_entropy(model, test, data.test.x)),
        *holes(draws, seen, held),
        complete.share,
        complete.share_se,
        standard.share,
        *mean_and_se(complete.distance.double()),
        *mean_and_se(even.ratio.double()),
    )
    return found, {"codes": held, "labels": data.test.labels, "images": complete.images, "draws": draws}


def slope_of(rates: Tensor, scales: Sequence[float]) -> Tensor:
    """Least squares of each datum's rates, (S, N), on log scales: (N,)."""
    at = torch.tensor(scales, dtype=rates.dtype).log()
    at = at - at.mean()
    return (at @ rates) / at.square().sum()


def forced(dim: int, data: Any, effort: Effort, out: Path) -> Forced:
    """A VAE trained anew for each scale; the slope's Monte Carlo error from two measurements."""
    measured = []
    for scale in SCALES:
        model, _ = made(dim)
        guide = guides.DiagonalNormal(ForcedScale(network(PIXELS, dim), dim, scale), latent_dim=dim)
        pair = fitted(model, guide, data.train, effort.forced_epochs, out / f"scale-{scale:g}-latents-{dim}")
        measured.append(torch.stack([analysis.elbo(*pair, data.test, num_particles=effort.num_particles, seed=s).rate for s in (1, 2)]))
    rates = torch.stack(measured, 1)  # (2, S, N)
    small = [i for i, scale in enumerate(SCALES) if scale <= FROM]
    slopes = torch.stack([slope_of(each[small], [SCALES[i] for i in small]) for each in rates])
    mean = rates.mean(0)
    values = [mean_and_se(of_scale) for of_scale in mean]
    slope, slope_se = mean_and_se(slopes.mean(0))
    mc_se = ((slopes[0] - slopes[1]) / 2).norm().item() / slopes.shape[1]
    return Forced(dim, SCALES, tuple(v for v, _ in values), tuple(se for _, se in values), slope, slope_se, mc_se)


@torch.no_grad()
def from_average(model: Any, x: Tensor, dim: int, num_draws: int) -> dict[str, float]:
    """Distances of decoded prior draws from the average image, and of data from it."""
    average = x.mean(0)
    decoded = model.network(torch.randn(num_draws, dim, generator=torch.Generator().manual_seed(0))).sigmoid()
    off = (decoded - average).norm(dim=1).double()
    mean, se = mean_and_se(off)
    return {"distance": mean, "distance_se": se, "largest": off.max().item(), "datum": (x - average).norm(dim=1).mean().item()}


def extremes(data: Any, effort: Effort, out: Path, dim: int) -> dict[str, Any]:
    """KL weight 0; likelihood weight 0.01, and 0."""
    without_kl = fitted(*made(dim), data.train, effort.epochs, out / "kl-weight-0", beta=0.0)
    a, b = (analysis.elbo(*without_kl, data.train, num_particles=effort.num_particles, seed=seed) for seed in (1, 2))
    rate, distortion = (a.rate + b.rate) / 2, (a.distortion + b.distortion) / 2
    n = len(data.train)
    codes = latents.codes(*without_kl, data.train)
    faint = fitted(*made(dim), data.train, effort.epochs, out / "likelihood-weight-0.01", likelihood_weight=0.01)
    before, guide = made(dim)
    untouched = copy.deepcopy(before)
    after, _ = fitted(before, guide, data.train, 2, out / "likelihood-weight-0", likelihood_weight=0.0)
    moved = max((p - q).abs().max().item() for p, q in zip(after.parameters(), untouched.parameters(), strict=True))
    return {
        "dim": dim,
        "rate": mean_and_se(rate),
        "rate_mc_se": ((a.rate - b.rate) / 2).norm().item() / n,
        "distortion": mean_and_se(distortion),
        "distortion_mc_se": ((a.distortion - b.distortion) / 2).norm().item() / n,
        "scale_over_spread": (codes.sd.mean(0) / codes.mean.std(0)).mean().item(),
        "faint": from_average(faint[0], data.train.x, dim, effort.num_draws),
        "untouched": from_average(after, data.train.x, dim, effort.num_draws) | {"moved": moved},
    }


# What is printed, written and drawn.


def table(rows: Sequence[Row], ends: dict[str, Any], scales: Sequence[Forced]) -> str:
    lines = [
        f"{'Z':>3} {'program':<12}{'train cross entropy':>21}{'test cross entropy':>20}{'holes':>16}{'accepted':>17}{'of N(0, I)':>12}"
        f"{'distance to data':>18}{'unevenness':>17}"
    ]
    for r in rows:
        lines.append(
            f"{r.dim:>3} {r.program:<12}{r.train_cross_entropy:>14.2f} ± {r.train_cross_entropy_se:.2f}"
            f"{r.cross_entropy:>13.2f} ± {r.cross_entropy_se:.2f}{r.holes:>8.3f} ± {r.holes_se:.3f}{r.accepted:>9.3f} ± {r.accepted_se:.3f}"
            f"{r.accepted_standard:>12.3f}{r.distance:>10.3f} ± {r.distance_se:.3f}{r.unevenness:>9.3f} ± {r.unevenness_se:.3f}"
        )
    rate, distortion = ends["rate"], ends["distortion"]
    lines += [
        "",
        f"KL weight 0, {ends['dim']} latents, training data: rate {rate[0]:.2f} ± {rate[1]:.2f} (data) ± {ends['rate_mc_se']:.3f} "
        f"(Monte Carlo), distortion {distortion[0]:.2f} ± {distortion[1]:.2f} ± {ends['distortion_mc_se']:.3f} nats; "
        f"scale of q over the spread of the codes {ends['scale_over_spread']:.3f}",
    ]
    for f in scales:
        told = ", ".join(f"{rate:.2f} ± {se:.2f} at {s:g}" for s, rate, se in zip(f.scales, f.rates, f.rates_se, strict=True))
        lines.append(f"KL at a forced scale, {f.dim} latents: {told}; slope {f.slope:.3f} ± {f.slope_se:.3f} ± {f.slope_mc_se:.4f}")
    return "\n".join(lines)


def claims(rows: Sequence[Row], vae: dict[str, Any], ends: dict[str, Any], scales: Sequence[Forced]) -> Claims:
    """Claim -> whether it was seen, and the numbers. ``vae``: rate and distortion of training data at the dimension of the extremes."""
    plain, variational = ([r for r in rows if r.program == name] for name in ("autoencoder", "VAE"))

    def compared(name: str, sign: int) -> tuple[bool, str]:
        held, numbers = [], []
        for a, b in zip(plain, variational, strict=True):
            (one, one_se), (other, other_se) = ((getattr(r, name), getattr(r, f"{name}_se")) for r in (a, b))
            held.append(sign * (one - other) > 2 * math.hypot(one_se, other_se))
            numbers.append(f"{one:.3f} ± {one_se:.3f} and {other:.3f} ± {other_se:.3f} at {a.dim}")
        return all(held), "; ".join(numbers)

    own = next(r.train_cross_entropy for r in plain if r.dim == ends["dim"])
    faint, untouched, distortion = ends["faint"], ends["untouched"], ends["distortion"][0]
    return {
        "the autoencoder has the smaller cross entropy on training data": compared("train_cross_entropy", -1),
        "its codes leave the more holes": compared("holes", 1),
        "fewer of its samples are accepted": compared("accepted", -1),
        "its samples lie farther from data": compared("distance", 1),
        "its decoder is the less even": compared("unevenness", 1),
        "KL weight 0 makes an autoencoder": (
            ends["rate"][0] > 2 * vae["rate"] and abs(distortion - own) < abs(distortion - vae["distortion"]),
            f"rate {ends['rate'][0]:.2f}, of the VAE {vae['rate']:.2f}; distortion {distortion:.2f}, of the autoencoder {own:.2f}, "
            f"of the VAE {vae['distortion']:.2f} nats",
        ),
        "likelihood weight 0.01 decodes every z to the average image": (
            faint["largest"] < faint["datum"] / 10,
            f"distance {faint['distance']:.3f} ± {faint['distance_se']:.3f}, at most {faint['largest']:.3f}; "
            f"of a datum {faint['datum']:.2f}",
        ),
        "likelihood weight 0 leaves the decoder as it was made": (
            untouched["moved"] == 0.0 and untouched["distance"] > untouched["datum"] / 10,
            f"largest change of a parameter {untouched['moved']:g}; distance from the average image {untouched['distance']:.2f}",
        ),
        "at a forced scale the KL grows as -d log sigma": (
            all(abs(f.slope + f.dim) < 0.05 * f.dim for f in scales),
            ", ".join(f"slope {f.slope:.3f} ± {f.slope_se:.3f} at d = {f.dim}" for f in scales),
        ),
    }


def figure(rows: Sequence[Row], shown: dict[tuple[str, int], dict[str, Any]], scales: Sequence[Forced]) -> Figure:
    """Codes in the plane over what is sampled from; samples with 8 latents; shares; the KL at forced scales."""
    dims = sorted({r.dim for r in rows})
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 4.6), layout="constrained")
        (one, other, shares), (left, right, kl) = drawn.subplots(2, 3)
        for axes, name, what in ((one, "autoencoder", "a fitted Normal"), (other, "VAE", "the prior")):
            part = shown[name, 2]
            codes, labels, draws = (plots.array(part[key]) for key in ("codes", "labels", "draws"))
            axes.scatter(draws[:500, 0], draws[:500, 1], s=3, color="#D0D0D0", linewidths=0)
            for label in range(10):
                mine = codes[labels == label]
                axes.scatter(*mine.T, s=3, color=TEN[label], linewidths=0)
                axes.text(*torch.as_tensor(mine).median(0).values.tolist(), str(label), ha="center", va="center", fontsize=7, bbox=BOX)
            axes.set_title(f"{name}: test codes, on {what}", fontsize=7)
            axes.set_xlabel("code 1")
            axes.set_ylabel("code 2")
        for axes, name in ((left, "autoencoder"), (right, "VAE")):
            images = shown[name, dims[-1]]["images"][:30].double().reshape(-1, SIDE, SIDE)
            tiles = [pad(image, (1, 1, 1, 1)) for image in images]
            axes.imshow(plots.array(torch.cat([torch.cat(tiles[i : i + 6], 1) for i in range(0, 30, 6)], 0)), cmap="gray_r", vmin=0, vmax=1)
            axes.set_axis_off()
            axes.set_title(f"{name}: samples, {dims[-1]} latents")
        at = torch.arange(len(dims)).double()
        for k, (name, color) in enumerate((("autoencoder", plots.ORANGE), ("VAE", plots.BLUE))):
            mine = [next(r for r in rows if r.program == name and r.dim == dim) for dim in dims]
            for quantity, start in (("holes", 0.0), ("accepted", len(dims) + 0.5)):
                values, errors = [getattr(r, quantity) for r in mine], [2 * getattr(r, f"{quantity}_se") for r in mine]
                where = (at + start + 0.36 * (k - 0.5)).tolist()
                shares.bar(where, values, 0.34, yerr=errors, color=color, error_kw={"elinewidth": 0.8}, label=name if start == 0 else None)
        ticks = [*at.tolist(), *(at + len(dims) + 0.5).tolist()]
        shares.set_xticks(ticks, [str(dim) for dim in dims] * 2)
        for middle, quantity in ((0.5 * (len(dims) - 1), "holes"), (1.5 * len(dims), "accepted")):
            shares.text(middle, 0.98, quantity, ha="center", va="center")
        shares.set_xlabel("latents")
        shares.set_ylabel("share of draws")
        shares.set_ylim(0, 1.25)
        shares.set_yticks([0, 0.25, 0.5, 0.75, 1])
        shares.legend(loc="upper left", ncols=2, columnspacing=1.0, handlelength=1.2)
        for f, color, marker in zip(scales, (plots.GREEN, plots.VERMILION), "s^", strict=False):
            kl.errorbar(
                f.scales, f.rates, [2 * se for se in f.rates_se], color=color, marker=marker, linestyle="", label=f"{f.dim} latents"
            )
            last = f.rates[-1] - f.dim * (torch.tensor(f.scales).log() - math.log(f.scales[-1]))
            kl.plot(f.scales, last.tolist(), color=color, linewidth=0.8)
        kl.plot([], [], color=plots.GREY, linewidth=0.8, label="slope −d")
        kl.set_xscale("log")
        kl.set_xlabel("forced scale σ of q(z | x)")
        kl.set_ylabel("KL (nats)")
        kl.legend(loc="upper right")
    return drawn


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "autoencoder-or-vae", arguments)
    data = ppvae.data.load("digits", binarize="threshold")
    effort = Effort(3, 2, 100, 20, 4) if options.quick else Effort(100, 40, 2000, 300, 100)
    dims = (2,) if options.quick else DIMENSIONS
    rows, shown, pairs = [], {}, {}
    for dim in dims:
        pairs["autoencoder", dim] = autoencoder(dim, data.train, effort.epochs, options.out)
        pairs["VAE", dim] = fitted(*made(dim), data.train, effort.epochs, options.out / f"vae-{dim}")
        for name in ("autoencoder", "VAE"):
            found, shown[name, dim] = row(name, dim, pairs[name, dim], data, effort)
            rows.append(found)
    ends = extremes(data, effort, options.out, dims[-1])
    seen = analysis.elbo(*pairs["VAE", dims[-1]], data.train, num_particles=effort.num_particles)
    vae = {"rate": seen.rate.mean().item(), "distortion": seen.distortion.mean().item()}
    scales = [forced(dim, data, effort, options.out) for dim in dims]
    record = {
        "effort": asdict(effort),
        "rows": [asdict(r) for r in rows],
        "vae": vae,
        "extremes": ends,
        "forced": [asdict(f) for f in scales],
    }
    experiment.finish(
        options.out, "autoencoder-or-vae", table(rows, ends, scales), claims(rows, vae, ends, scales), figure(rows, shown, scales), record
    )


if __name__ == "__main__":
    main()
