"""Why samples of a VAE are blurred: power spectra of data, decoded means and samples, by likelihood and by latent space.

Given z, the pixels of every likelihood here are independent, with mean m(z) and variances v_d(z). With F the unitary Fourier
transform, E|F x|^2 = |F m|^2 + (mean of v) at each frequency: *whatever* the likelihood, a sample is its mean plus a flat spectrum, and
all structure must come through z. For a linear model of a fixed scale s the rest is a closed form too (probabilistic PCA): the mean keeps
lambda - s^2 of a direction of variance lambda, and nothing where lambda < s^2. Natural spectra fall with frequency, so the directions
lost are the fine ones. Hence the claim: the blur is the likelihood's, by its scale, and not the latent space's. The linear model itself
is cautious. From scale 0.3 to 0.05 its 64 latents keep 0.14 to 0.52 of the high-frequency energy of filaments, and 0.23 to 0.41 of
Fashion-MNIST's; four times as many latents at scale 0.1 keep 0.69 for 0.48, and 0.67 for 0.40.

Pixels are level / 255, zero frequency is left out, high means above 0.25 cycles a pixel (a half of what the grid can hold along an
axis), and "kept" is the high-frequency energy over that of the test data. Means are E[x | z]; *reconstructions* have z ~ q(z | x),
*draws* z ~ p(z).

Expected. (1) Samples less means are flat: in no ring of frequencies is the excess over the mean pixel variance beyond 4.5 standard
errors. (2) The smaller the scale of a Normal likelihood, the sharper its means: kept at scale 0.05, learned, 0.3 falls by more than 2
standard errors a step, of reconstructions and of draws. (3) With a learned scale samples of training data's reconstructions have the
data's energy within 10 %, at the wrong frequencies: their share of high ones is above the data's. (4) From scale 0.3 to 0.05 kept changes
by a larger factor than by another latent space: a ladder with skips from all latents into each layer at either fixed scale, or four
times the latents at the learned one. (5) The discretised logistic mixture (of plain latents; it takes longest) has the fewest bits a
dimension, by 2 standard errors, and its draws' means are less sharp than those of the Normal of scale 0.05: sharpness and likelihood are
two things.

Bits are -ELBO / (D log 2) of levels, an upper bound. A Normal is a density of real numbers and cannot stand beside a probability of
levels: for its bits it is integrated over the bin of each level, with the weights that it was trained with.

    python examples/blur.py --out runs/blur        # about six minutes; --quick: seconds
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import pyro
import pyro.poutine as poutine
import torch
from matplotlib.figure import Figure
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.special import log_ndtr

import experiment
import ppvae
from experiment import Claims, strips
from ppvae import analysis, guides, models
from ppvae.analysis import plots
from ppvae.models import likelihoods
from ppvae.models.distributions import Levels
from ppvae.nn import MLP
from ppvae.objectives import linear

CUT = 0.25  # cycles a pixel
LEVELS = 256
COMPONENTS = 2
FIXED = (0.3, 0.05)
LIKELIHOODS = (f"Normal {FIXED[0]:g}", "Normal learned", f"Normal {FIXED[1]:g}", "logistic mixture")
COLORS = dict(zip(LIKELIHOODS, (plots.VERMILION, plots.ORANGE, plots.BLUE, plots.GREEN), strict=True))
SPACES = {"plain": LIKELIHOODS, "ladder": LIKELIHOODS[:3:2], "wide": LIKELIHOODS[1:2]}  # latent space -> its likelihoods
MARKERS = dict(zip(SPACES, "o^s", strict=True))
LATENTS = 64
WIDTH = 128
SHARPER = 2.0  # standard errors a step
FLAT = 4.5  # standard errors: of about 900 rings one would be beyond by chance in 160 runs
ENERGY = 0.1


# Spectra.


def power(images: Tensor) -> Tensor:
    """|F x|^2, (n, side, side), F unitary: the sum over frequencies is the sum of squared pixels (Parseval)."""
    side = math.isqrt(images.shape[-1])
    spectrum: Tensor = torch.fft.fft2(images.double().reshape(-1, side, side), norm="ortho").abs().square()
    return spectrum


def frequencies(side: int) -> Tensor:
    """Cycles a pixel of each entry of ``power``, (side, side): from 0 to sqrt(1/2) in the corner."""
    f = torch.fft.fftfreq(side, dtype=torch.float64)
    return torch.hypot(f[:, None], f)


def rings(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a spectrum (n, side, side) over rings one frequency wide, (n, R), and their radii, (R,), in cycles a pixel; 0 left out."""
    side = spectrum.shape[-1]
    radius = (frequencies(side) * side).round().long().flatten()
    count = torch.bincount(radius)
    sums = torch.zeros(len(spectrum), len(count), dtype=spectrum.dtype).index_add_(1, radius, spectrum.flatten(1))
    return (sums / count)[:, 1:], torch.arange(1, len(count)) / side


def energies(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of each image above ``CUT``, and without the zero frequency, (n,) each."""
    f = frequencies(spectrum.shape[-1])
    return spectrum[:, f > CUT].sum(1), spectrum[:, f > 0].sum(1)


def ratio(one: Tensor, other: Tensor, paired: bool) -> tuple[float, float]:
    """mean(one) / mean(other) and its standard error by the delta method."""
    value = (one.mean() / other.mean()).item()
    if paired:
        return value, ((one - value * other).std() / math.sqrt(len(one)) / other.mean()).item()
    parts = [(part.std() / part.mean() / math.sqrt(len(part))).item() for part in (one, other)]
    return value, value * math.hypot(*parts)


def linear_spectrum(x: Tensor, dim: int, scale: float) -> Tensor:
    """E|F m|^2, (1, side, side), of the means that the best linear model of ``dim`` latents and a Normal of this scale draws.

    Tipping, Bishop (1999), Probabilistic principal component analysis: W = U (Lambda - s^2 I)^(1/2), where Lambda > s^2.
    """
    centre = x.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.double().mT, correction=0))
    kept = (values[-dim:] - scale**2).clamp(min=0)
    return power(centre[None]) + (kept[:, None, None] * power(vectors[:, -dim:].mT)).sum(0)


# Programs.


class BinnedNormal(TorchDistribution):
    """Levels 0, 1 / 255, ..., 1: a Normal integrated over the bin of each level; the outer two reach to infinity."""

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = Levels(LEVELS, 1 / (LEVELS - 1))

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BinnedNormal":
        return BinnedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log(Phi(b) - Phi(a)), with the bin mirrored into the lower tail, where log Phi loses no digits."""
        level = (value.double() * (LEVELS - 1)).round()
        a, b = (((level + side) / (LEVELS - 1) - self.loc) / self.scale for side in (-0.5, 0.5))
        a, b = torch.where(level == 0, -math.inf, a), torch.where(level == LEVELS - 1, math.inf, b)
        a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)
        above, below = log_ndtr(b), log_ndtr(a)
        return above + torch.log(-torch.expm1(below - above))


class Binned(nn.Module):
    """The likelihood of levels that belongs to a Normal of this scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, output: Tensor) -> Any:
        return BinnedNormal(output.double(), torch.tensor(self.scale, dtype=torch.float64)).to_event(1)


class SkipDecoder(nn.Module):
    """An MLP that sees z again in each of its layers, (..., Z) -> (..., outputs)."""

    def __init__(self, latent_dim: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        widths = [0, *hidden]
        self.layers = nn.ModuleList(nn.Linear(w + latent_dim, h) for w, h in itertools.pairwise(widths))
        self.last = nn.Linear(widths[-1] + latent_dim, outputs)

    def forward(self, z: Tensor) -> Tensor:
        h = z[..., :0]
        for layer in self.layers:
            h = torch.relu(layer(torch.cat([h, z], -1)))
        return self.last(torch.cat([h, z], -1))  # type: ignore[no-any-return]


def likelihood_named(name: str) -> nn.Module:
    if name == "logistic mixture":
        return likelihoods.DiscretizedLogistic(COMPONENTS, LEVELS, unit=True)
    return likelihoods.NormalLearned(0.3) if name.endswith("learned") else likelihoods.Normal(float(name.split()[1]))


def pair(name: str, space: str, x: Tensor) -> tuple[Any, Any]:
    """Two hidden layers each way. The decoder starts at the data's mean, so that no likelihood has to learn what is common to all."""
    pyro.set_rng_seed(0)
    d = x.shape[1]
    likelihood = likelihood_named(name)
    outputs = d * 3 * COMPONENTS if name == "logistic mixture" else d
    if space == "ladder":
        half = LATENTS // 2
        decoder: Any = SkipDecoder(LATENTS, [WIDTH, WIDTH], outputs)
        model: Any = models.Ladder([MLP(half, [WIDTH // 2], LATENTS)], (half, half), decoder, likelihood)
        encoders = [MLP(d, [WIDTH], WIDTH), nn.Sequential(nn.ReLU(), MLP(WIDTH, [], WIDTH // 2), nn.ReLU())]
        heads = [nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, LATENTS)), nn.Linear(WIDTH // 2, LATENTS)]
        guide: Any = guides.Ladder(model, encoders, heads, (half, half))
        last = decoder.last
    else:
        dim = LATENTS if space == "plain" else 4 * LATENTS
        network = MLP(dim, [WIDTH, WIDTH], outputs)
        model = models.LatentVariable(models.priors.StandardNormal(dim), network, likelihood)
        guide = guides.DiagonalNormal(MLP(d, [WIDTH, WIDTH], 2 * dim), latent_dim=dim)
        last = network.layers[-1]
    with torch.no_grad():
        start = x.mean(0)
        if name == "logistic mixture":  # from -1 to 1, and the narrower logistics side by side
            spread = torch.linspace(-0.5, 0.5, COMPONENTS)[:, None]
            start = torch.cat([torch.zeros(COMPONENTS * d), (2 * start - 1 + spread).flatten(), torch.full((COMPONENTS * d,), -2.0)])
        last.bias.copy_(start)
    return model, guide


def trained(name: str, space: str, data: Any, effort: "Effort", out: Path) -> tuple[Any, Any]:
    """A pair that was trained there is not trained again. The rate falls in a straight line to a twentieth."""
    model, guide = pair(name, space, data.train.x)
    decay = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=effort.epochs)
    experiment.fit(
        model,
        guide,
        data.train,
        objective=TraceMeanField_ELBO(),
        epochs=effort.epochs,
        batch_size=100,
        beta=linear(fraction=0.3),  # without it all but one latent of the filaments die in the first epochs
        optimizer=functools.partial(torch.optim.Adam, lr=2e-3),
        scheduler=decay,
        clip_norm=1e3,
        out=out / f"{data.name}-{name}-{space}".replace(" ", "-"),
        resume=True,
        compile=False,
    )
    return model, guide


# What is measured.


@dataclass(frozen=True)
class Effort:
    epochs: int
    num_train: int
    num_test: int
    num_bits: int  # test images whose bits are measured
    num_particles: int


@dataclass(frozen=True)
class Part:
    """Training and test images, (N, side^2), of one data set."""

    name: str
    train: Any
    test: Any


@dataclass(frozen=True)
class Row:
    """A pair. ``_se`` over images, unless said otherwise.

    Attributes:
        scale: Root of the mean pixel variance of the likelihood at draws from the prior.
        rate: KL of the test data, nats.
        bits, bits_se, bits_mc_se: -ELBO a dimension, of levels; over the data, Monte Carlo.
        reconstructed, drawn: High-frequency energy of means kept, of test reconstructions and of draws from the prior.
        reconstructed_train: The same of training data, against training data.
        linear: The same of draws, of the best linear model of as many latents and this scale; nan for the mixture.
        energy: Of samples at training data's reconstructions over that of the training data.
        share, data_share: Share of high frequencies in those samples, and in the data.
        sampled: High-frequency energy of samples from the prior over the test data's.
        excess: Largest |excess| of samples over means plus the pixel variance, over rings, in standard errors.
        spectra: Of "data", "reconstructions", "means", "samples", a ring each; ``floor`` the mean pixel variance; ``radii`` of the rings.
    """

    data: str
    likelihood: str
    space: str
    scale: float
    rate: float
    bits: float
    bits_se: float
    bits_mc_se: float
    reconstructed: float
    reconstructed_se: float
    reconstructed_train: float
    drawn: float
    drawn_se: float
    linear: float
    energy: float
    energy_se: float
    share: float
    share_se: float
    data_share: float
    data_share_se: float
    sampled: float
    sampled_se: float
    excess: float
    spectra: dict[str, list[float]]
    floor: float
    radii: list[float]


def at_prior(model: Callable[..., Any], template: Tensor) -> Any:
    """p(x | z) with z from the prior, one for each row of the template."""
    return poutine.trace(poutine.uncondition(model)).get_trace(template).nodes["x"]["fn"]


def at_posterior(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> Any:
    """p(x | z) with z ~ q(z | x)."""
    drawn = poutine.trace(guide).get_trace(x)
    return poutine.trace(poutine.replay(model, drawn)).get_trace(x).nodes["x"]["fn"]


def flatness(mean: Tensor, sample: Tensor, variance: Tensor) -> float:
    """Largest |z| over rings of |F x|^2 - |F m|^2 - (mean pixel variance), whose expectation is zero for independent pixels."""
    excess = rings(power(sample))[0] - rings(power(mean))[0] - variance.double().mean(1, keepdim=True)
    return (excess.mean(0) / (excess.std(0) / math.sqrt(len(excess)))).abs().max().item()


def bits(model: Any, guide: Any, name: str, x: Any, effort: Effort) -> tuple[float, float, float, float]:
    """Bits a dimension with both errors, and the rate in nats."""
    counted = copy.deepcopy(model)
    if name != "logistic mixture":
        likelihood = model.likelihood
        counted.likelihood = Binned(likelihood.log_scale.exp().item() if hasattr(likelihood, "log_scale") else likelihood.scale)
    found = analysis.elbo(counted, guide, x[: effort.num_bits], num_particles=effort.num_particles)
    per_bit = x.x.shape[1] * math.log(2)
    value = likelihoods.bits_per_dimension(found.mean.value, x.x.shape[1])
    return value, found.mean.data_se / per_bit, found.mean.mc_se / per_bit, found.rate.mean().item()


@torch.no_grad()
def measured(name: str, space: str, data: Part, programs: tuple[Any, Any], effort: Effort) -> tuple[Row, dict[str, Tensor]]:
    """A row, and images for the figure."""
    model, guide = programs
    pyro.set_rng_seed(1)
    x, seen = data.test.x, data.train.x[: len(data.test)]
    with pyro.get_param_store().scope():
        draws, test, train = at_prior(model, x), at_posterior(model, guide, x), at_posterior(model, guide, seen)
        value, value_se, value_mc_se, rate = bits(model, guide, name, data.test, effort)
    mean, variance, sample = draws.mean, draws.variance, draws.sample()
    test_mean, train_mean, train_sample = test.mean, train.mean, train.sample()
    spectra = {"data": x, "reconstructions": test_mean, "means": mean, "samples": sample}
    of = {kind: power(images) for kind, images in spectra.items()}
    high = {kind: energies(spectrum)[0] for kind, spectrum in of.items()}
    in_train, in_sample, in_mean = (energies(power(images)) for images in (seen, train_sample, train_mean))
    scale = variance.double().mean().sqrt().item()
    by_line = math.nan
    if name != "logistic mixture":
        dim = 4 * LATENTS if space == "wide" else LATENTS
        by_line = (energies(linear_spectrum(data.train.x, dim, scale))[0].mean() / high["data"].mean()).item()
    row = Row(
        data.name, name, space, scale, rate, value, value_se, value_mc_se,
        *ratio(high["reconstructions"], high["data"], True),
        ratio(in_mean[0], in_train[0], True)[0],
        *ratio(high["means"], high["data"], False),
        by_line,
        *ratio(in_sample[1], in_train[1], True),
        *ratio(*in_sample, True),
        *ratio(*in_train, True),
        *ratio(high["samples"], high["data"], False),
        max(flatness(mean, sample, variance), flatness(train_mean, train_sample, train.variance)),
        {kind: rings(spectrum)[0].mean(0).tolist() for kind, spectrum in of.items()},
        variance.double().mean().item(),
        rings(of["data"])[1].tolist(),
    )  # fmt: skip
    return row, {"data": x[:8], "reconstructions": test_mean[:8], "means": mean[:8], "samples": sample[:8]}


# What is printed, written and drawn.


def table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'data':<14}{'likelihood':<17}{'space':<8}{'scale':>7}{'rate':>8}{'bits a dimension':>26}{'kept, test':>17}{'train':>8}"
        f"{'kept, draws':>18}{'linear':>8}{'energy':>16}{'share high':>18}{'of data':>9}{'samples high':>17}{'excess':>8}"
    ]
    for r in rows:
        by_line = "-" if math.isnan(r.linear) else f"{r.linear:.3f}"
        lines.append(
            f"{r.data:<14}{r.likelihood:<17}{r.space:<8}{r.scale:>7.4f}{r.rate:>8.2f}"
            f"{r.bits:>10.3f} ± {r.bits_se:.3f} ± {r.bits_mc_se:.4f}{r.reconstructed:>9.3f} ± {r.reconstructed_se:.3f}"
            f"{r.reconstructed_train:>8.3f}{r.drawn:>10.3f} ± {r.drawn_se:.3f}{by_line:>8}"
            f"{r.energy:>8.3f} ± {r.energy_se:.3f}{r.share:>10.3f} ± {r.share_se:.3f}{r.data_share:>9.3f}"
            f"{r.sampled:>9.2f} ± {r.sampled_se:.2f}{r.excess:>8.2f}"
        )
    return "\n".join(lines)


def row_of(rows: Sequence[Row], data: str, likelihood: str, space: str = "plain") -> Row:
    return next(r for r in rows if (r.data, r.likelihood, r.space) == (data, likelihood, space))


def claims(rows: Sequence[Row]) -> Claims:
    """Claim -> whether it was seen, and the numbers."""
    sets = list(dict.fromkeys(r.data for r in rows))
    blurred, learned, sharp, mixture = LIKELIHOODS
    found: dict[str, tuple[bool, str]] = {}
    worst = max(rows, key=lambda r: r.excess)
    found["samples are their means and a flat spectrum as high as the mean pixel variance"] = (
        worst.excess < FLAT,
        f"largest excess of {len(rows) * 2} sets of samples {worst.excess:.2f} standard errors, "
        f"{worst.data}, {worst.likelihood}, {worst.space}",
    )
    for kind, of in (("reconstructed", "reconstructions"), ("drawn", "draws from the prior")):
        steps, factors, told, told_factors = [], [], [], []
        for data in sets:
            kept = [row_of(rows, data, name) for name in (blurred, learned, sharp)]
            values = [(getattr(r, kind), getattr(r, f"{kind}_se")) for r in kept]
            steps += [(b - a) / math.hypot(sa, sb) for (a, sa), (b, sb) in itertools.pairwise(values)]
            told.append(f"{data} " + ", ".join(f"{v:.3f} ± {se:.3f}" for v, se in values))
            by_scale = math.log(values[2][0] / values[0][0])
            by_space = max(
                abs(math.log(getattr(row_of(rows, data, name, space), kind) / getattr(row_of(rows, data, name), kind)))
                for space, names in SPACES.items()
                for name in names
                if space != "plain"
            )
            factors.append(by_scale > by_space)
            told_factors.append(f"{data} by {math.exp(by_scale):.2f} by the scale, at most {math.exp(by_space):.2f} by the space")
        names = f"{FIXED[0]:g}, learned, {FIXED[1]:g}"
        found[f"the smaller the scale, the sharper the means of {of}"] = (min(steps) > SHARPER, f"{names}: " + "; ".join(told))
        found[f"the scale changes what means of {of} keep by more than the latent space does"] = (all(factors), "; ".join(told_factors))
    own = [row_of(rows, data, learned) for data in sets]
    found["with a learned scale samples have the data's energy, too much of it at high frequencies"] = (
        all(abs(r.energy - 1) < ENERGY and r.share - r.data_share > SHARPER * math.hypot(r.share_se, r.data_share_se) for r in own),
        "; ".join(
            f"{r.data} energy {r.energy:.3f} ± {r.energy_se:.3f}, share {r.share:.3f} ± {r.share_se:.3f}, of data {r.data_share:.3f}"
            for r in own
        ),
    )
    fewest, told = [], []
    for data in sets:
        best, second = sorted((r for r in rows if (r.data, r.space) == (data, "plain")), key=lambda r: r.bits)[:2]
        fewest.append(best.likelihood == mixture and second.bits - best.bits > SHARPER * math.hypot(best.bits_se, second.bits_se))
        one, other = row_of(rows, data, mixture), row_of(rows, data, sharp)
        fewest.append(other.drawn - one.drawn > SHARPER * math.hypot(one.drawn_se, other.drawn_se))
        told.append(
            f"{data} {one.bits:.3f} ± {one.bits_se:.3f} bits, of scale {FIXED[1]:g} {other.bits:.3f} ± {other.bits_se:.3f}; "
            f"kept {one.drawn:.3f} ± {one.drawn_se:.3f} and {other.drawn:.3f} ± {other.drawn_se:.3f}"
        )
    found["the mixture has the fewest bits, and means less sharp than those of the smallest scale"] = (all(fewest), "; ".join(told))
    return found


def figure(rows: Sequence[Row], images: dict[tuple[str, str], dict[str, Tensor]]) -> Figure:
    """For each data set its images, the spectra of means and samples, and what the means keep against the scale."""
    sets = list(dict.fromkeys(r.data for r in rows))
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3.5}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.25 * len(sets)), layout="constrained")
        for part, data in zip(drawn.subfigures(len(sets), 1, squeeze=False)[:, 0], sets, strict=True):
            pictures, spectra, kept = part.subplots(1, 3, width_ratios=[1.15, 1.15, 1])
            part.suptitle(data, fontsize=9)
            shown = [images[data, LIKELIHOODS[0]]["data"]]
            labels = ["data"]
            for name in LIKELIHOODS:
                shown += [images[data, name]["means"]]
                labels.append(name.replace("logistic mixture", "mixture"))
            shown.append(images[data, "ladder"]["means"])
            labels.append(f"ladder, {FIXED[1]:g}")
            side = math.isqrt(shown[0].shape[-1])
            pictures.imshow(strips(shown, 7, side).clip(0, 1), cmap="gray_r", vmin=0, vmax=1)
            pictures.set_yticks([(side + 2) * (i + 0.5) - 0.5 for i in range(len(labels))], labels)
            pictures.set_xticks([])
            pictures.tick_params(length=0)
            for spine in pictures.spines.values():
                spine.set_visible(False)
            pictures.set_title("E[x | z], z from the prior", fontsize=8)
            first = row_of(rows, data, LIKELIHOODS[0])
            spectra.plot(first.radii, first.spectra["data"], color=plots.BLACK, label="data")
            for name in LIKELIHOODS:
                row = row_of(rows, data, name)
                label = name.replace("logistic mixture", "mixture")
                spectra.plot(row.radii, row.spectra["means"], color=COLORS[name], label=label)
                spectra.plot(row.radii, row.spectra["samples"], color=COLORS[name], linestyle=":")
            spectra.axvline(CUT, color=plots.GREY, linewidth=0.8, linestyle="--")
            spectra.set_yscale("log")
            spectra.set_xlabel("cycles a pixel")
            spectra.set_ylabel("power a frequency")
            spectra.set_title("means (solid), samples (dotted)", fontsize=8)
            spectra.set_ylim(bottom=1e-7)
            spectra.legend(loc="lower left", fontsize=5.5, ncols=2)
            for r in (r for r in rows if r.data == data):
                kept.errorbar(r.scale, r.drawn, 2 * r.drawn_se, color=COLORS[r.likelihood], marker=MARKERS[r.space], elinewidth=0.7)
                kept.plot(r.scale, r.reconstructed, color=COLORS[r.likelihood], marker=MARKERS[r.space], fillstyle="none")
            for space in dict.fromkeys(r.space for r in rows):
                kept.plot([], [], color=plots.BLACK, marker=MARKERS[space], linestyle="", label=space)
            kept.set_xscale("log")
            ticks = (0.05, 0.1, 0.2, 0.3)
            kept.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            kept.minorticks_off()
            kept.set_yscale("log")
            kept.set_xlabel("pixel standard deviation")
            kept.set_ylabel(f"energy above {CUT:g} kept")
            kept.set_title("draws full, test open", fontsize=8)
            kept.legend(loc="best", fontsize=6)
    return drawn


def middle(data: Any, rows: int, side: int) -> Any:
    """The middle ``side`` x ``side`` pixels of the first square images, as bytes of their own."""
    raw = torch.as_tensor(data.raw)[:rows]
    whole = math.isqrt(raw.shape[1:].numel())
    start = (whole - side) // 2
    cut = raw.reshape(-1, whole, whole)[:, start : start + side, start : start + side]
    return ppvae.data.Data.from_arrays(cut.contiguous(), name=data.name, split=data.split, levels=255, flatten=True)


def parts(effort: Effort) -> list[Part]:
    """The middle 16 x 16 pixels of filaments, and Fashion-MNIST whole."""
    found = []
    for name, side in (("filaments", 16), ("fashion-mnist", 28)):
        loaded = ppvae.data.load(name, binarize="none")
        found.append(Part(name, middle(loaded.train, effort.num_train, side), middle(loaded.test, effort.num_test, side)))
    return found


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "blur", arguments)
    effort = Effort(2, 100, 60, 10, 2) if options.quick else Effort(50, 1500, 300, 200, 10)
    sets = parts(effort)[1:] if options.quick else parts(effort)
    rows, images = [], {}
    for data in sets:
        for space, names in SPACES.items():
            for name in names:
                row, shown = measured(name, space, data, trained(name, space, data, effort, options.out), effort)
                rows.append(row)
                if space == "plain":
                    images[data.name, name] = shown
                elif space == "ladder":  # of the last scale, the smallest
                    images[data.name, space] = shown
    record = {"effort": asdict(effort), "cut": CUT, "latents": LATENTS, "rows": [asdict(row) for row in rows]}
    experiment.finish(options.out, "blur", table(rows), claims(rows), figure(rows, images), record)


if __name__ == "__main__":
    main()
