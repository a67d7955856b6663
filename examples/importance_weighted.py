"""VAE against importance-weighted training, k = 1, 5, 50, one and two stochastic layers; and one continued as the other.

The experiments of Burda, Grosse, Salakhutdinov (2016), "Importance weighted autoencoders", tables 1 and 2: a VAE with k samples is
``Trace_ELBO``, the importance-weighted bound ``RenyiELBO(alpha=0)``, and ``ppvae.fit`` takes either. ``PAPER`` names the published
protocol; ``PRESETS`` what is run here, the same for every row: the first few of the paper's 3,280 passes, at its learning rates.

    python examples/importance_weighted.py --data digits           # a quarter of an hour on one core
    python examples/importance_weighted.py --data fashion-mnist    # an hour; either goes on where it was interrupted
    python examples/importance_weighted.py --quick                 # seconds: shows that it works
    python examples/importance_weighted.py --data mnist            # the paper's own protocol, weeks; wants the four files of MNIST
"""

import argparse
import functools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from torch import Tensor

import ppvae
from ppvae import analysis, guides, models, nn
from ppvae.analysis import plots
from ppvae.analysis.estimate import mean_of
from ppvae.errors import PpvaeError, RunError


@dataclass(frozen=True)
class Protocol:
    """How every row is trained and measured, and the sizes of its networks.

    Attributes:
        validation: Images held out of training, and not used; None for as many as ``ppvae.data.load`` holds out.
        train_images: The first so many training images; None for all.
        epochs: Passes over the training images: the first so many of the paper's, see ``rate``.
        batch_size: Also what Adam's eps is held against, see ``adam``.
        continued_epochs, continued_rate: Of a row that is continued with the other objective.
        test_images: log p(x) and the ELBO are over the first so many test images.
        particles: K of log p(x).
        active_images: Active units are over the first so many training images, in one binarisation.
        deterministic, latent: Widths of the two hidden layers next to x, and the size of the latent there, with one stochastic layer.
        lower, upper: The latents of two stochastic layers: h1, next to x, and h2.
        between: Widths of the two hidden layers between h1 and h2.
    """

    validation: int | None = 400
    train_images: int | None = None
    epochs: int = 3280
    batch_size: int = 20
    continued_epochs: int = 3**7
    continued_rate: float = 1e-4
    test_images: int | None = None
    particles: int = 5000
    active_images: int = 500
    deterministic: int = 200
    latent: int = 50
    lower: int = 100
    upper: int = 50
    between: int = 100
    samples: tuple[int, ...] = (1, 5, 50)


PAPER = Protocol()  # on MNIST's other 59,600 training images; the authors' code does not shuffle them, and this does
PRESETS = {
    "mnist": PAPER,
    "fashion-mnist": Protocol(validation=None, train_images=10_000, epochs=20, continued_epochs=10, test_images=300),
    "digits": Protocol(validation=None, epochs=121, continued_epochs=40, deterministic=100, latent=20, lower=40, upper=20, between=50),
}
QUICK = Protocol(
    validation=None,
    train_images=100,
    epochs=4,
    continued_epochs=2,
    test_images=20,
    particles=50,
    active_images=50,
    deterministic=16,
    latent=6,
    lower=8,
    upper=4,
    between=8,
    samples=(1, 3),
)


def rate(epoch: int) -> float:
    """The paper's learning rate over 0.001 after so many passes: 10^(-i / 7) in stage i of 3^i passes, i = 0 to 7."""
    stage = next(i for i in range(64) if epoch < (3 ** (i + 1) - 1) // 2)
    return float(10 ** (-stage / 7))


def adam(protocol: Protocol, lr: float = 1e-3) -> functools.partial[torch.optim.Adam]:
    """The paper's Adam, whose eps of 1e-4 meets the gradient of a batch's sum: ours is of its mean, 1 / batch_size as large."""
    return functools.partial(torch.optim.Adam, lr=lr, betas=(0.9, 0.999), eps=1e-4 / protocol.batch_size)


def objective(name: str, k: int) -> ELBO:
    """The mean of k ELBO terms (VAE) or the log of the mean of k weights (IWAE); both are one number a datum, summed over the batch."""
    if name == "VAE":
        return Trace_ELBO(num_particles=k, vectorize_particles=True, max_plate_nesting=1)
    return RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True, max_plate_nesting=1)


def normal(row: Tensor) -> dist.Independent:
    """(..., 2 Z) -> N over R^Z; the row holds (loc, log scale)."""
    loc, log_scale = row.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)  # type: ignore[no-any-return]


class TwoLayers(PyroModule):
    """h2 ~ N(0, I), h1 | h2 ~ N(loc(h2), diag scale(h2)^2), x_d | h1 ~ Bernoulli(sigmoid(logit_d(h1)))."""

    def __init__(self, pixels: int, protocol: Protocol) -> None:
        super().__init__()
        p = protocol
        self.upper = p.upper
        self.to_h1 = nn.MLP(p.upper, [p.between] * 2, 2 * p.lower, activation=torch.nn.Tanh)
        self.to_x = nn.MLP(p.lower, [p.deterministic] * 2, pixels, activation=torch.nn.Tanh)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            h2 = pyro.sample("h2", dist.Normal(x.new_zeros(self.upper), 1.0).to_event(1))
            h1 = pyro.sample("h1", normal(self.to_h1(h2)))
            pyro.sample("x", dist.Bernoulli(logits=self.to_x(h1)).to_event(1), obs=x)


class BottomUp(PyroModule):
    """q(h1 | x) q(h2 | h1), each a diagonal Normal."""

    def __init__(self, pixels: int, protocol: Protocol) -> None:
        super().__init__()
        p = protocol
        self.from_x = nn.MLP(pixels, [p.deterministic] * 2, 2 * p.lower, activation=torch.nn.Tanh)
        self.from_h1 = nn.MLP(p.lower, [p.between] * 2, 2 * p.upper, activation=torch.nn.Tanh)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            h1 = pyro.sample("h1", normal(self.from_x(x)))
            pyro.sample("h2", normal(self.from_h1(h1)))


def pair(layers: int, train: ppvae.data.Data, protocol: Protocol) -> tuple[torch.nn.Module, torch.nn.Module]:
    """An untrained model and guide: Glorot's uniform weights, no biases but the output's, which starts at the logit of the pixel means."""
    p, pixels = protocol, train.event_shape[0]
    pyro.set_rng_seed(123)
    model: PyroModule
    guide: PyroModule
    if layers == 2:
        model, guide = TwoLayers(pixels, p), BottomUp(pixels, p)
    else:
        decoder = nn.MLP(p.latent, [p.deterministic] * 2, pixels, activation=torch.nn.Tanh)
        encoder = nn.MLP(pixels, [p.deterministic] * 2, 2 * p.latent, activation=torch.nn.Tanh)
        model, guide = models.Bernoulli(decoder, latent_dim=p.latent), guides.DiagonalNormal(encoder, latent_dim=p.latent)
    for part in (*model.modules(), *guide.modules()):
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(part.weight)
            torch.nn.init.zeros_(part.bias)
    means = train.raw.double().mean(0) / train.levels  # of the grey values: those of the draws, without their noise
    output = next(part for part in reversed([*model.modules()]) if isinstance(part, torch.nn.Linear))
    with torch.no_grad():
        output.bias.copy_(means.clamp(0.001, 0.999).logit())
    return model, guide


@dataclass(frozen=True)
class Row:
    """A row of the table: what is trained, and from where."""

    layers: int
    objective: str
    k: int
    start: "Row | None" = None  # the row whose pair is trained on, at the lower rate

    @property
    def name(self) -> str:
        """Of its results."""
        own = f"{self.objective.lower()}-k{self.k}"
        return f"{self.layers}-layer-{own}" if self.start is None else f"{self.start.name}-as-{own}"

    def folder(self, protocol: Protocol) -> str:
        """Of its run. A row that grows by more epochs goes on from its last; what was continued from it begins anew."""
        return self.name if self.start is None else f"{self.name}-from-epoch-{protocol.epochs}"


def rows(protocol: Protocol) -> Iterator[Row]:
    """One and two layers: the VAE for each k, and the importance-weighted bound where it is another objective (k > 1)."""
    for layers in (1, 2):
        for k in protocol.samples:
            yield Row(layers, "VAE", k)
            if k > 1:
                yield Row(layers, "IWAE", k)


def continued(protocol: Protocol) -> Iterator[Row]:
    """The paper's table 2, one layer: each continued as the other; and as itself, since more training alone changes a pair too."""
    most = max(protocol.samples)
    vae, iwae = Row(1, "VAE", 1), Row(1, "IWAE", most)
    for start in (vae, iwae):
        yield Row(1, "VAE", 1, start)
        yield Row(1, "IWAE", most, start)


def trained(row: Row, train: ppvae.data.Data, protocol: Protocol, out: Path) -> ppvae.Run:
    """Train a row, go on with it, or read it where it is finished."""
    model, guide = pair(row.layers, train, protocol)
    if row.start is not None:
        ppvae.load(out / row.start.folder(protocol), model, guide)  # puts the start's parameters into these modules
    anew = row.start is None
    epochs = protocol.epochs if anew else protocol.continued_epochs
    run = ppvae.fit(
        model,
        guide,
        train,
        objective=objective(row.objective, row.k),
        optimizer=adam(protocol, 1e-3 if anew else protocol.continued_rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate) if anew else None,
        epochs=epochs,
        batch_size=protocol.batch_size,
        seed=0 if anew else 1,
        out=out / row.folder(protocol),
        resume=True,
    )
    if len(run.history) != epochs:
        raise RunError(f"{run.folder} has {len(run.history)} epochs, and every row has {epochs}", mend="choose another folder with --out")
    return run


ACTIVE = 0.01
Units = Mapping[str, Tensor]


def posterior_means(guide: Any, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The mean of each latent's distribution in the guide, by site, (N, units).

    The convention of the authors' code: what stands above another latent is conditional on one draw of that latent.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        found = poutine.trace(guide).get_trace(x)
    sites = {name: site for name, site in found.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    return {name: site["fn"].mean.double() for name, site in sites.items()}


def active_units(means: Units) -> dict[str, int]:
    """How many units have a posterior mean that varies over the data by more than 0.01 (a variance), by site."""
    return {name: int((mean.var(0, correction=0) > ACTIVE).sum()) for name, mean in means.items()}


def active_difference(a: Units, b: Units, num_resamples: int = 200) -> tuple[float, float]:
    """Active units of a minus those of b, all sites together, and its standard error over the images, by the bootstrap.

    Both are resampled by the same images: the difference is paired.
    """
    n = len(next(iter(a.values())))
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(num_resamples):
        drawn = torch.randint(n, (n,), generator=generator)
        counts = [sum(active_units({name: mean[drawn] for name, mean in means.items()}).values()) for means in (a, b)]
        differences.append(counts[0] - counts[1])
    whole = sum(active_units(a).values()) - sum(active_units(b).values())
    return float(whole), statistics.pstdev(differences)


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of a trained row; nats.

    Attributes:
        log_px, log_px_se: (N,), the paper's bound, by K importance weights from the encoder, and its Monte Carlo error.
        second: (N,), the bound from a second proposal, a Normal refined for each image, that the first is held against.
        trusted: Share of the images whose estimate the library trusts.
        elbo: Mean over the same images.
        means: Posterior means over the images that active units are counted on.
        seconds: Per epoch; the middle one.
        training: The objective in the last epoch of training.
    """

    log_px: Tensor
    log_px_se: Tensor
    second: Tensor
    trusted: float
    elbo: float
    means: Units
    seconds: float
    training: float

    @property
    def units(self) -> str:
        """Active units, next to x first: "26+7"."""
        return "+".join(str(count) for count in active_units(self.means).values())


def measured(run: ppvae.Run, train: ppvae.data.Data, test: ppvae.data.Data, protocol: Protocol) -> Measured:
    """Measure a row, or read what was measured before by the same protocol on the same data."""
    key = {"test": test.describe(), "particles": protocol.particles, "epochs": len(run.history), "held_against": "second proposal"}
    assert run.folder is not None
    path = run.folder / "results" / "importance-weighted.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.get("key") != json.loads(json.dumps(key)):
        log_px = analysis.log_likelihood(run.model, run.guide, test, num_particles=protocol.particles, seed=0)
        assert log_px.verdict is not None
        elbo = analysis.elbo(run.model, run.guide, test, num_particles=100, seed=0)
        usage = analysis.latent_usage(run.model, run.guide, train.x[: protocol.active_images], num_mutual=1, seed=0)
        record = {
            "key": key,
            "log_px": log_px.pointwise.tolist(),
            "log_px_se": log_px.pointwise_se.tolist(),
            "second": log_px.verdict.bound.tolist(),
            "sentence": str(log_px),
            "trusted": log_px.trusted.double().mean().item(),
            "elbo": elbo.mean.value,
            "kl": {name: kl.item() for name, kl in usage.kl.items()},
            "active_units_averaged": usage.active_units,
        }
        run.write_result("importance-weighted", record)
    steps = [row["step"] - before for row, before in zip(run.history, [0, *(row["step"] for row in run.history)], strict=False)]
    return Measured(
        torch.tensor(record["log_px"], dtype=torch.float64),
        torch.tensor(record["log_px_se"], dtype=torch.float64),
        torch.tensor(record["second"], dtype=torch.float64),
        record["trusted"],
        record["elbo"],
        posterior_means(run.guide, train.x[: protocol.active_images]),
        statistics.median(n / row["steps_per_second"] for n, row in zip(steps, run.history, strict=True)),
        run.history[-1]["objective"],
    )


# Tables 1 and 2, MNIST: -log p(x) and active units.
VAE, IWAE = Row(1, "VAE", 1), Row(1, "IWAE", 50)
PUBLISHED = {
    VAE: (86.76, "19"),
    Row(1, "VAE", 5): (86.47, "20"),
    Row(1, "IWAE", 5): (85.54, "22"),
    Row(1, "VAE", 50): (86.35, "20"),
    IWAE: (84.78, "25"),
    Row(2, "VAE", 1): (85.33, "16+5"),
    Row(2, "VAE", 5): (85.01, "17+5"),
    Row(2, "IWAE", 5): (83.89, "21+5"),
    Row(2, "VAE", 50): (84.78, "17+5"),
    Row(2, "IWAE", 50): (82.90, "26+7"),
    Row(1, "IWAE", 50, VAE): (84.88, "22"),
    Row(1, "VAE", 1, IWAE): (86.02, "23"),
}


@dataclass(frozen=True)
class Claim:
    """One row against another, in nats or in active units.

    Attributes:
        text: What is claimed.
        expected: +1 or -1, the sign of the difference.
        difference, se: Paired over the images; the error is over images, not over training runs.
        second: The difference of the second proposal's bounds, for log p(x).
        published: The paper's difference, where it has both rows.
    """

    text: str
    expected: int
    difference: float
    se: float
    second: float | None
    published: float | None

    @property
    def verdict(self) -> str:
        """Whether two standard errors tell the sign."""
        if abs(self.difference) <= 2 * self.se:
            return "not decided"
        return "seen" if self.difference * self.expected > 0 else "the opposite"

    def __str__(self) -> str:
        second, published = (f"{value:+.2f}" if value is not None else "-" for value in (self.second, self.published))
        return f"{self.text:<74}{self.difference:+8.2f} ± {self.se:.2f}{second:>9}{published:>9}   {self.verdict}"


def on_log_px(text: str, expected: int, found: Mapping[Row, Measured], a: Row, b: Row) -> Claim:
    """log p(x) of a minus that of b, paired by image."""
    x, y = found[a], found[b]
    difference = mean_of(x.log_px - y.log_px, (x.log_px_se.square() + y.log_px_se.square()).sqrt())
    published = PUBLISHED[b][0] - PUBLISHED[a][0] if a in PUBLISHED and b in PUBLISHED else None
    return Claim(f"log p(x): {text}", expected, difference.value, difference.data_se, (x.second - y.second).mean().item(), published)


def on_units(text: str, expected: int, found: Mapping[Row, Measured], a: Row, b: Row) -> Claim:
    """Active units of a minus those of b, all layers together."""
    difference, se = active_difference(found[a].means, found[b].means)
    published = None
    if a in PUBLISHED and b in PUBLISHED:
        published = float(sum(map(int, PUBLISHED[a][1].split("+"))) - sum(map(int, PUBLISHED[b][1].split("+"))))
    return Claim(f"active units: {text}", expected, difference, se, None, published)


def claims(found: Mapping[Row, Measured], protocol: Protocol) -> Iterator[Claim]:
    """What the paper claims, each with its difference here."""
    several = [k for k in protocol.samples if k > 1]
    most = several[-1]
    for layers, text in ((1, "one layer"), (2, "two layers")):
        vae = {k: Row(layers, "VAE", k) for k in protocol.samples}
        iwae = {1: vae[1], **{k: Row(layers, "IWAE", k) for k in several}}  # with one sample they are one objective
        for k in several:
            yield on_log_px(f"{text}, IWAE above VAE, both with k = {k}", 1, found, iwae[k], vae[k])
        for fewer, more in zip(protocol.samples, several, strict=False):
            yield on_log_px(f"{text}, IWAE with k = {more} above k = {fewer}", 1, found, iwae[more], iwae[fewer])
        yield on_log_px(f"{text}, VAE with k = {most} above k = 1", 1, found, vae[most], vae[1])
        yield on_units(f"{text}, IWAE with k = {most} has more than the VAE, k = 1", 1, found, iwae[most], vae[1])
        yield on_units(f"{text}, IWAE has more than the VAE, both with k = {most}", 1, found, iwae[most], vae[most])
    for objective, k in (("VAE", 1), ("IWAE", most)):
        yield on_log_px(f"two layers above one, {objective} with k = {k}", 1, found, Row(2, objective, k), Row(1, objective, k))
    vae_1, iwae_most = Row(1, "VAE", 1), Row(1, "IWAE", most)
    for start, other, expected, word in ((vae_1, iwae_most, 1, "raises"), (iwae_most, vae_1, -1, "lowers")):
        names = [f"{row.objective} (k = {row.k})" for row in (start, other)]
        after = Row(1, other.objective, other.k, start)
        control = Row(1, start.objective, start.k, start)
        for claim, what in ((on_log_px, "it"), (on_units, "them")):
            yield claim(f"continuing {names[0]} as {names[1]} {word} {what}", expected, found, after, start)
            yield claim(f"... against continuing it as {names[0]} as long", expected, found, after, control)


def table(found: Mapping[Row, Measured], protocol: Protocol) -> str:
    """Every row beside the published one."""
    lines = [f"{'':<46}{'log p(x) ± data':>18}{'refined':>9}{'trusted':>9}{'ELBO':>9}{'units':>8}{'s/epoch':>9}   published, MNIST"]
    for row, m in found.items():
        mean = mean_of(m.log_px, m.log_px_se)
        own = f"{row.objective} k = {row.k}"
        name = f"{row.layers} layer{'s' * (row.layers - 1)}, " + (
            own if row.start is None else f"{row.start.objective} k = {row.start.k}, continued as {own}"
        )
        nll, units = PUBLISHED.get(row, (None, ""))
        published = f"{-nll:.2f} ({units})" if nll is not None else "-"
        lines.append(
            f"{name:<46}{mean.value:>11.2f} ± {mean.data_se:.2f}{m.second.mean().item():>9.2f}{m.trusted:>9.0%}"
            f"{m.elbo:>9.2f}{m.units:>8}{m.seconds:>9.1f}   {published}"
        )
    return "\n".join(lines)


def figure(found: Mapping[Row, Measured], protocol: Protocol) -> Figure:
    """log p(x) and active units by k, and what continuing changes; log p(x) is paired with that of the one-layer VAE, k = 1."""
    base, most = Row(1, "VAE", 1), max(protocol.samples)
    looks = {"VAE": {"color": plots.BLUE, "marker": "o"}, "IWAE": {"color": plots.VERMILION, "marker": "s"}}
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.6), layout="constrained")
        by_k, units, after = drawn.subplots(1, 3)
        for layers, more in ((1, {"linestyle": "-"}), (2, {"linestyle": "--", "fillstyle": "none"})):
            for name, aside in (("VAE", 0.96), ("IWAE", 1.04)):
                line = [Row(layers, name if k > 1 else "VAE", k) for k in protocol.samples]
                at = [aside * k for k in protocol.samples]  # error bars side by side
                label = f"{name}, {layers} layer{'s' * (layers - 1)}"
                _differences(by_k, at, [on_log_px("", 1, found, row, base) for row in line], **looks[name], **more, label=label)
                units.plot(at, [sum(active_units(found[row].means).values()) for row in line], **looks[name], **more)
        by_k.set_ylabel("log p(x), difference (nats)")
        by_k.set_title("against VAE, k = 1, 1 layer")
        units.set_ylabel("active units")
        units.set_title("all layers together")
        units.yaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (by_k, units):
            axes.set_xscale("log")
            axes.set_xticks(protocol.samples, [str(k) for k in protocol.samples])
            axes.minorticks_off()
            axes.set_xlabel("k")
        for start in (base, Row(1, "IWAE", most)):
            for name, k, aside in (("VAE", 1, -0.02), ("IWAE", most, 0.02)):
                ends = [on_log_px("", 1, found, row, base) for row in (start, Row(1, name, k, start))]
                style = "-" if start.objective == name else ":"
                _differences(after, [aside, 1 + aside], ends, **looks[name], linestyle=style)
        after.set_xticks([0, 1], ["before", f"{protocol.continued_epochs} epochs on"])
        after.set_xlim(-0.3, 1.3)
        after.set_ylabel("log p(x), difference (nats)")
        after.set_title("continued (dotted: as the other)")
        drawn.legend(loc="outside lower center", ncols=4)
    return drawn


def _differences(axes: Any, at: list[float], differences: list[Claim], **look: Any) -> None:
    axes.errorbar(at, [claim.difference for claim in differences], [2 * claim.se for claim in differences], elinewidth=0.8, **look)


def schedule(protocol: Protocol, train: ppvae.data.Data, test: ppvae.data.Data) -> str:
    """What was done, in words, beside what the paper did."""
    p = protocol
    return (
        f"Every row: {p.epochs:,} passes, the first of the paper's {PAPER.epochs:,} and at its rates, over "
        f"{len(train):,} training images of {train.name}, fresh binarisation each pass, batches of {p.batch_size}, shuffled "
        f"(the paper: fixed order).\n"
        f"Continued: {p.continued_epochs:,} passes more at {p.continued_rate:g} (the paper {PAPER.continued_epochs:,}), one layer.\n"
        f"log p(x): importance weights from the encoder, K = {p.particles:,}, {len(test):,} test images in one binarisation. "
        f"The ELBO: 100 draws.\n"
        f"refined: the same from a Normal refined for each image, which the first is held against; s/epoch: the middle epoch.\n"
        f"Active units: variance over the first {p.active_images} training images, in one binarisation, of the posterior mean above "
        f"{ACTIVE}; h2 conditional on one draw of h1.\n"
        "k = 1 of IWAE is k = 1 of VAE. Errors are over images; each row is one training run from one seed."
    )


def first(data: ppvae.data.Data, num_images: int | None) -> ppvae.data.Data:
    """The first so many images, or all."""
    return data if num_images is None else data[:num_images]


def main() -> None:
    """Train what is not trained, measure what is not measured, and print, write and draw all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(PRESETS), default="digits")
    parser.add_argument("--out", type=Path, default=None, help="by default runs/importance-weighted/DATA, or DATA-quick")
    parser.add_argument("--quick", action="store_true", help="tiny networks for seconds: shows that it works, and no result")
    options = parser.parse_args()
    protocol = QUICK if options.quick else PRESETS[options.data]
    out = options.out or Path("runs", "importance-weighted", options.data + ("-quick" if options.quick else ""))
    try:
        data = ppvae.data.load(options.data, binarize="dynamic", validation=protocol.validation)
    except PpvaeError as error:
        raise SystemExit(f"{options.data}: {error}") from error
    train, test = first(data.train, protocol.train_images), first(data.test, protocol.test_images)

    found = {}
    for row in (*rows(protocol), *continued(protocol)):
        print(f"--- {row.name}", flush=True)
        found[row] = measured(trained(row, train, protocol, out), train, test, protocol)
    told = list(claims(found, protocol))
    heading = f"{'claim':<74}{'difference ± se':>15}{'refined':>9}{'paper':>9}   here"
    text = "\n".join([schedule(protocol, train, test), "", table(found, protocol), "", heading, *map(str, told)])
    print(text)
    record = {
        "protocol": asdict(protocol),
        "paper": asdict(PAPER),
        "train": train.describe(),
        "test": test.describe(),
        "rows": {
            row.name: {
                "log_px": vars(mean_of(m.log_px, m.log_px_se)),
                "second": m.second.mean().item(),
                "trusted": m.trusted,
                "elbo": m.elbo,
                "active_units": active_units(m.means),
                "unit_variances": {name: mean.var(0, correction=0).tolist() for name, mean in m.means.items()},
                "seconds_per_epoch": m.seconds,
                "training_objective": m.training,
                "published_mnist": PUBLISHED.get(row),
            }
            for row, m in found.items()
        },
        "claims": [asdict(claim) | {"verdict": claim.verdict} for claim in told],
    }
    (out / "importance-weighted.json").write_text(json.dumps(record, indent=1))
    (out / "importance-weighted.txt").write_text(text + "\n")
    plots.save(figure(found, protocol), out / "importance-weighted.png")


if __name__ == "__main__":
    main()
