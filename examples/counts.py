"""Counts by a program of one's own: Poisson beside negative binomial, where the truth is known and where it is not.

The program is written as in Pyro's tutorials: a class with two methods, model and guide. z ~ N(0, I_2), counts x_g ~ Poisson or negative
binomial with mean l p_g(z), l the library size of the cell, observed and a covariate, p(z) the softmax of a network; the negative
binomial has variance m + m^2 / r_g with r_g learned. Data: cells simulated from such a program with known factors, once with r_g between
0.5 and 4 ("overdispersed") and once Poisson with the same means ("Poisson"); with two latents log p(x) is known by cubature, of the truth
too. And the embedded digits: a pixel's 0..16 is a count, of dots set among 16; there are 8 latents, means are exp(network), without a
library, and a binomial of 16 is the third program.

Expected. (1) Every pair keeps the contract. (2) On overdispersed cells the negative binomial has the higher held-out log p(x), by more than
2 standard errors of the paired difference, and lies less than 1 nat below the truth's. (3) On Poisson cells it neither gains nor loses
0.2 nats. (4) The posterior predictive check refuses the Poisson program on overdispersed cells (p < 0.01 of the share of zeros and of
variance / mean), and not the negative binomial there, nor the Poisson program on Poisson cells (p > 0.01). (5) The learned r_g are right:
the median of |log r - log true r| is below 0.25. (6) Importance-weighted log p(x) agrees with cubature within 0.01 nats, mean over the
cells. (7) The guide's 90 % regions cover between 80 and 95 %, of the negative binomial on overdispersed cells. (8) On digits the binomial
is best, then the negative binomial, then Poisson, each by more than 2 paired standard errors. (9) The check refuses Poisson and negative
binomial there (p < 0.01 of the share above 16, which no image has).

    python examples/counts.py --out runs/counts        # two minutes; --quick: seconds
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter
from torch import Tensor

import experiment
import ppvae
from experiment import Claims
from ppvae import analysis, nn
from ppvae.analysis import plots

GENES, LATENT_DIM, DOTS = 40, 2, 16
CLIP = 100.0  # exp(network) of an untrained network: the first gradients are as large as 1e8
LEARNING_RATE = 1e-2
PACE = 10.0  # of log r
PROGRAMS = ("Poisson", "negative binomial", "binomial")


# The user's own program.


class Counts(torch.nn.Module):
    """A model and its guide.

    Args:
        likelihood: One of ``PROGRAMS``.
        decoder: (..., Z) -> (..., D).
        encoder: (N, D + 1), log(1 + counts) and log library -> (N, 2 Z).
        data_dim: D.
        proportions: Means are the library times a softmax; else exp(network), or of a binomial 16 sigmoid(network).
    """

    def __init__(
        self, likelihood: str, decoder: torch.nn.Module, encoder: torch.nn.Module, data_dim: int, latent_dim: int, proportions: bool
    ) -> None:
        super().__init__()
        self.likelihood, self.decoder, self.encoder = likelihood, decoder, encoder
        self.latent_dim, self.proportions = latent_dim, proportions
        if likelihood == "negative binomial":
            self.dispersion = torch.nn.ParameterDict({"a": torch.full((data_dim,), 1.0 / PACE)})

    @property
    def log_r(self) -> Tensor:
        """(D,). Adam moves a parameter by about its learning rate a step, and log r has farther to go than a weight."""
        return PACE * self.dispersion["a"]

    def observed(self, output: Tensor, library: Tensor) -> Any:
        """p(x | z) from the decoder's output, (..., N, D), and libraries, (N,)."""
        if self.likelihood == "binomial":
            return dist.Binomial(DOTS, logits=output).to_event(1)
        log_mean = library.log()[:, None] + torch.log_softmax(output, -1) if self.proportions else output.clamp(max=15)
        if self.likelihood == "Poisson":
            return dist.Poisson(log_mean.exp()).to_event(1)
        log_r = self.log_r
        return dist.NegativeBinomial(log_r.exp(), logits=log_mean - log_r).to_event(1)  # mean r exp(logits)

    def model(self, cells: dict[str, Tensor]) -> None:
        pyro.module("decoder", self.decoder)
        if self.likelihood == "negative binomial":
            pyro.module("dispersion", self.dispersion)
        counts = cells["counts"]
        with pyro.plate("cells", len(counts), dim=-1):
            z = pyro.sample("z", dist.Normal(counts.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("counts", self.observed(self.decoder(z), cells["library"]), obs=counts)

    def guide(self, cells: dict[str, Tensor]) -> None:
        pyro.module("encoder", self.encoder)
        seen = torch.cat([cells["counts"].log1p(), cells["library"].log()[:, None]], -1)
        with pyro.plate("cells", len(seen), dim=-1):
            loc, log_scale = self.encoder(seen).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# Data.


def truth(likelihood: str) -> Counts:
    """Known factors: each gene loads on one, on the other, or on both; abundances over two orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    program = Counts(likelihood, torch.nn.Linear(LATENT_DIM, GENES), torch.nn.Identity(), GENES, LATENT_DIM, proportions=True)
    loads = torch.randn(GENES, LATENT_DIM, generator=generator)
    loads[: GENES // 3, 0] = loads[GENES // 3 : 2 * (GENES // 3), 1] = 0.0
    with torch.no_grad():
        program.decoder.weight.copy_(loads)
        program.decoder.bias.copy_(1.2 * torch.randn(GENES, generator=generator))
        if likelihood == "negative binomial":
            log_r = torch.linspace(math.log(0.5), math.log(4.0), GENES)[torch.randperm(GENES, generator=generator)]
            program.dispersion["a"].copy_(log_r / PACE)
    return program.requires_grad_(False)


def cells(program: Counts, n: int, seed: int) -> dict[str, Tensor]:
    """Counts, (N, D), and libraries around 200, (N,)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        library = (math.log(200.0) + 0.4 * torch.randn(n)).exp()
        z = torch.randn(n, LATENT_DIM)
        return {"counts": program.observed(program.decoder(z), library).sample(), "library": library}


def digits() -> dict[str, dict[str, Tensor]]:
    """Pixels as they are stored, 0..16; the library is 1 and not used."""
    data = ppvae.data.load("digits", binarize="none")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    stored = {name: part.raw.reshape(len(part), -1).float() for name, part in parts.items()}
    return {name: {"counts": counts, "library": torch.ones(len(counts))} for name, counts in stored.items()}


def head(x: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    return {name: part[:n] for name, part in x.items()}


# What is measured.


def share_of_zeros(x: dict[str, Tensor]) -> Tensor:
    return (x["counts"] == 0).double().mean()


def variance_over_mean(x: dict[str, Tensor]) -> Tensor:
    """Of each column, then the mean over those that are not all zero."""
    counts = x["counts"].double()
    mean = counts.mean(0)
    return (counts.var(0, correction=0)[mean > 0] / mean[mean > 0]).mean()


def share_above(x: dict[str, Tensor]) -> Tensor:
    return (x["counts"] > DOTS).double().mean()


STATISTICS = {"share of zeros": share_of_zeros, "variance / mean": variance_over_mean, "share above 16": share_above}


@dataclass(frozen=True)
class Effort:
    """How much is done."""

    epochs: int
    num_train: int
    num_test: int
    num_weights: int
    num_simulated: int  # of calibration
    num_draws: int  # replications of the predictive check


@dataclass(frozen=True)
class Row:
    """A program on a data set, nats. ``_se`` over the test data, ``_mc_se`` Monte Carlo.

    Attributes:
        check: What ``ppvae.check`` said.
        exact: Mean log p(x) by cubature; nan where latents are more than two.
        truth: The same of the program that made the data; nan where nobody knows.
        below_truth: Paired difference truth - program, with its standard error.
        gap, approximation, amortization: The guide's, and its parts.
        coverage: Of the guide's 90 % regions.
        p_values, observed, replicated: Of the predictive check, by statistic; the mean of replications.
        seconds: Per training epoch.
    """

    data: str
    program: str
    check: str
    log_p: float
    log_p_se: float
    log_p_mc_se: float
    trusted: float
    elbo: float
    exact: float
    truth: float
    below_truth: float
    below_truth_se: float
    gap: float
    gap_se: float
    gap_mc_se: float
    approximation: float
    amortization: float
    active: int
    coverage: float
    coverage_se: float
    faults: str
    p_values: dict[str, float]
    observed: dict[str, float]
    replicated: dict[str, float]
    seconds: float


def fitted(data: str, likelihood: str, parts: dict[str, dict[str, Tensor]], effort: Effort, out: Path) -> tuple[Counts, Any, Any]:
    """The program, the report of the check, and the run. A pair that was trained there is not trained again."""
    pyro.set_rng_seed(0)
    dim, latents = parts["train"]["counts"].shape[1], LATENT_DIM if data != "digits" else 8
    width = 32 if data != "digits" else 128
    program = Counts(
        likelihood, nn.MLP(latents, [width], dim), nn.MLP(dim + 1, [2 * width], 2 * latents), dim, latents, proportions=data != "digits"
    )
    said = ppvae.check(program.model, program.guide, parts["train"])
    run = experiment.fit(
        program.model,
        program.guide,
        parts["train"],
        validation=parts["validation"],
        epochs=effort.epochs,
        batch_size=100,
        optimizer=functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
        scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=effort.epochs),
        clip_norm=CLIP,
        compile=False,
        out=out / f"{data}-{likelihood}".replace(" ", "-"),
        resume=True,
    )
    return program, said, run


def measured(
    data: str, likelihood: str, parts: dict[str, dict[str, Tensor]], effort: Effort, out: Path, true: Tensor | None
) -> tuple[Row, Any, Counts]:
    """The row, log p(x) by importance weights for paired comparisons, and the program.

    ``true``: log p(x) of the test cells by the program that made them, where that is known.
    """
    program, said, run = fitted(data, likelihood, parts, effort, out)
    test, seed = (
        head(parts["test"], effort.num_test),
        PROGRAMS.index(likelihood),
    )  # seeds of their own: comparisons take draws as independent
    found = analysis.log_likelihood(run.model, run.guide, test, num_particles=effort.num_weights, proposal="refined", seed=seed)
    gaps = analysis.inference_gaps(run.model, run.guide, head(test, effort.num_test // 2), reference="importance", num_reference=500,
                                   num_particles=200)  # fmt: skip
    exact = known = below = below_se = math.nan
    if true is not None:
        own = analysis.exact_log_likelihood(run.model, test, tolerance=1e-3).pointwise
        exact, known = own.mean().item(), true.mean().item()
        below, below_se = experiment.mean_and_se(true - own)
    calibrated = analysis.calibration(run.model, run.guide, template=test, num_data=effort.num_simulated)
    predicted = analysis.predictive_check(
        run.model, run.guide, test, statistics=STATISTICS, num_draws=effort.num_draws, num_particles=20, num_simulated=100
    )
    at = (calibrated.levels - 0.9).abs().argmin()
    rates = torch.tensor([row["steps_per_second"] for row in run.history]).double()
    row = Row(
        data=data,
        program=likelihood,
        check=str(said).splitlines()[0],
        log_p=found.mean.value,
        log_p_se=found.mean.data_se,
        log_p_mc_se=found.mean.mc_se,
        trusted=found.trusted.double().mean().item(),
        elbo=analysis.elbo(run.model, run.guide, test, num_particles=100).mean.value,
        exact=exact,
        truth=known,
        below_truth=below,
        below_truth_se=below_se,
        gap=gaps.mean("inference").value,
        gap_se=gaps.mean("inference").data_se,
        gap_mc_se=gaps.mean("inference").mc_se,
        approximation=gaps.mean("approximation").value,
        amortization=gaps.mean("amortization").value,
        active=analysis.latent_usage(run.model, run.guide, parts["train"], num_particles=4, num_mutual=100).active_units["z"],
        coverage=calibrated.coverage[at].item(),
        coverage_se=calibrated.coverage_se[at].item(),
        faults=", ".join(fault.name for fault in calibrated.faults) or "none",
        p_values=dict(zip(predicted.names, predicted.p_value.tolist(), strict=True)),
        observed=dict(zip(predicted.names, predicted.observed.tolist(), strict=True)),
        replicated=dict(zip(predicted.names, predicted.replicated.mean(0).tolist(), strict=True)),
        seconds=run.history[0]["step"] / rates.median().item(),
    )
    return row, found, program


@dataclass(frozen=True)
class Difference:
    """log p(x) of the first program less that of the second, paired, nats."""

    data: str
    first: str
    second: str
    value: float
    data_se: float
    mc_se: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.data_se:.3f} ± {self.mc_se:.4f}"


def difference(data: str, first: str, second: str, found: dict[str, Any]) -> Difference:
    mean = analysis.compare(found[first], found[second]).mean
    return Difference(data, first, second, mean.value, mean.data_se, mean.mc_se)


# What is printed, written and drawn.


def table(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    lines = [
        f"{'data':<14}{'program':<19}{'log p(x) ± data ± MC':>27}{'trusted':>9}{'ELBO':>10}{'cubature':>10}{'truth':>10}"
        f"{'truth less it':>17}"
        f"{'gap ± data ± MC':>24}{'amort.':>8}{'active':>8}{'90 % regions':>16}{'s/epoch':>9}"
    ]
    lines += [
        f"{r.data:<14}{r.program:<19}{r.log_p:>10.2f} ± {r.log_p_se:.2f} ± {r.log_p_mc_se:.4f}{r.trusted:>9.3f}{r.elbo:>10.2f}"
        f"{r.exact:>10.2f}{r.truth:>10.2f}{r.below_truth:>9.3f} ± {r.below_truth_se:.3f}{r.gap:>8.3f} ± {r.gap_se:.3f} ± {r.gap_mc_se:.4f}"
        f"{r.amortization:>8.3f}{r.active:>8}{r.coverage:>9.3f} ± {r.coverage_se:.3f}{r.seconds:>9.3f}"
        for r in rows
    ]
    lines += [
        "",
        f"{'data':<14}{'program':<19}" + "".join(f"{name + ': data, program, p':>40}" for name in STATISTICS) + "  calibration faults",
    ]
    lines += [
        f"{r.data:<14}{r.program:<19}"
        + "".join(f"{r.observed[n]:>20.4f}{r.replicated[n]:>10.4f}{r.p_values[n]:>10.2g}" for n in STATISTICS)
        + f"  {r.faults}"
        for r in rows
    ]
    lines += ["", *(f"{d.data}: {d.first} less {d.second}: {d} nats" for d in differences)]
    return "\n".join(lines)


def claims(rows: Sequence[Row], differences: Sequence[Difference], log_r_error: float) -> Claims:
    """Claim -> whether it was seen, and the numbers."""
    at = {(r.data, r.program): r for r in rows}
    by = {(d.data, d.first, d.second): d for d in differences}
    over = by["overdispersed", "negative binomial", "Poisson"]
    nb, poisson = at["overdispersed", "negative binomial"], at["overdispersed", "Poisson"]
    right = [r for r in rows if r.data != "digits" and r.program == ("negative binomial" if r.data == "overdispersed" else r.data)]
    told = ("share of zeros", "variance / mean")
    cubed = [r for r in rows if not math.isnan(r.exact)]
    found = {
        "every pair keeps the contract": (all("0 errors" in r.check for r in rows), f"{len(rows)} pairs, {rows[0].check}"),
        "on overdispersed cells the negative binomial is better, and less than 1 nat below the truth": (
            over.value > 2 * math.hypot(over.data_se, over.mc_se) and nb.below_truth < 1,
            f"{over} nats; below the truth {nb.below_truth:.3f} ± {nb.below_truth_se:.3f}, Poisson {poisson.below_truth:.3f} ± "
            f"{poisson.below_truth_se:.3f}",
        ),
        "the predictive check refuses the Poisson program on overdispersed cells, and no program that is right": (
            all(poisson.p_values[n] < 0.01 for n in told) and all(r.p_values[n] > 0.01 for r in right for n in told),
            "; ".join(
                f"{n}: Poisson {poisson.p_values[n]:.2g}; " + ", ".join(f"{r.program} on its own cells {r.p_values[n]:.2g}" for r in right)
                for n in told
            ),
        ),
        "the learned dispersions are right": (log_r_error < 0.25, f"median of |log r - log true r| {log_r_error:.3f}"),
        "importance weights agree with cubature": (
            all(abs(r.log_p - r.exact) < 0.01 for r in cubed),
            ", ".join(f"{r.log_p - r.exact:+.4f} ± {r.log_p_mc_se:.4f}" for r in cubed) + " nats",
        ),
        "90 % regions of the guide cover between 80 and 95 %": (
            0.8 <= nb.coverage <= 0.95,
            f"{nb.coverage:.3f} ± {nb.coverage_se:.3f}; faults: {nb.faults}",
        ),
    }
    if ("Poisson", "Poisson") in at:
        plain = by["Poisson", "negative binomial", "Poisson"]
        found["on Poisson cells it neither gains nor loses 0.2 nats"] = (abs(plain.value) < 0.2, f"{plain} nats")
    if ("digits", "binomial") in at:
        first, second = by["digits", "binomial", "negative binomial"], by["digits", "negative binomial", "Poisson"]
        found["on digits the binomial is best, then the negative binomial"] = (
            all(d.value > 2 * math.hypot(d.data_se, d.mc_se) for d in (first, second)),
            f"binomial less negative binomial {first}, that less Poisson {second} nats",
        )
        found["the check refuses Poisson and negative binomial there"] = (
            all(at["digits", p].p_values["share above 16"] < 0.01 for p in PROGRAMS[:2]),
            ", ".join(
                f"{r.replicated['share above 16']:.3f} ({r.program}, p = {r.p_values['share above 16']:.2g})"
                for r in rows
                if r.data == "digits"
            )
            + " of the pixels above 16",
        )
    return found


def figure(rows: Sequence[Row], log_r: tuple[Tensor, Tensor], images: dict[str, Tensor]) -> Figure:
    colors = dict(zip(PROGRAMS, (plots.VERMILION, plots.BLUE, plots.GREEN), strict=True))
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3.5}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 4.4), layout="constrained")
        (likelihood, zeros, ratio), (dispersions, gaps, samples) = drawn.subplots(2, 3)
        simulated = [r for r in rows if r.data != "digits"]
        likelihood.bar(range(len(simulated)), [r.below_truth for r in simulated], yerr=[2 * r.below_truth_se for r in simulated],
                       color=[colors[r.program] for r in simulated], error_kw={"elinewidth": 0.7})  # fmt: skip
        likelihood.set_yscale("log")
        likelihood.set_ylabel("below the truth's log p(x) (nats)")
        likelihood.set_xticks([0.5, 2.5], ["overdispersed", "Poisson"])
        for axes, name in ((zeros, "share of zeros"), (ratio, "variance / mean")):
            for i, data in enumerate(("overdispersed", "Poisson", "digits")):
                some = [r for r in rows if r.data == data]
                if not some:  # a quick run
                    continue
                axes.plot([i - 0.3, i + 0.3], [some[0].observed[name]] * 2, color=plots.BLACK, linewidth=1.2, label=None if i else "data")
                for j, r in enumerate(some):
                    refused = r.p_values[name] < 0.01
                    axes.plot(i + 0.15 * (j - 0.5 * (len(some) - 1)), r.replicated[name], marker="x" if refused else "o",
                              color=colors[r.program], linestyle="", markersize=5)  # fmt: skip
            axes.set_xticks(range(3), ["overdisp.", "Poisson", "digits"])
            axes.set_ylabel(name)
        for program in PROGRAMS:
            zeros.plot([], [], marker="o", linestyle="", color=colors[program], label=program)
        zeros.plot([], [], marker="x", linestyle="", color=plots.GREY, label="refused, p < 0.01")
        zeros.set_ylim(top=0.72)
        zeros.legend(fontsize=6, loc="upper left")
        ratio.set_yscale("log")
        ratio.yaxis.set_major_locator(FixedLocator([2, 4, 8, 16, 32]))
        ratio.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ratio.yaxis.set_minor_formatter(NullFormatter())
        true, learned = (part.exp() for part in log_r)
        dispersions.plot(true, learned, marker="o", linestyle="", color=plots.BLUE)
        dispersions.plot([0.4, 5], [0.4, 5], color=plots.GREY, linewidth=0.8, linestyle="--")
        dispersions.set(xscale="log", yscale="log", xlabel="true r of a gene", ylabel="learned r")
        for axis in (dispersions.xaxis, dispersions.yaxis):
            axis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8]))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(NullFormatter())
        gaps.bar(range(len(rows)), [r.approximation for r in rows], color=[colors[r.program] for r in rows])
        gaps.bar(range(len(rows)), [r.amortization for r in rows], bottom=[r.approximation for r in rows],
                 color=[colors[r.program] for r in rows], alpha=0.45)  # fmt: skip
        gaps.set_xticks([0.5, 2.5, 5.0], ["overdisp.", "Poisson", "digits"], fontsize=7)
        gaps.set_ylabel("approximation (full) and\namortization gap (nats)")
        chosen = list(images)
        if chosen:
            samples.imshow(
                experiment.strips([images[name].clamp(max=2 * DOTS) for name in chosen], 6, 8), cmap="gray_r", vmin=0, vmax=2 * DOTS
            )
        samples.set_yticks([10 * (i + 0.5) - 0.5 for i in range(len(chosen))], [name.replace("negative ", "negative\n") for name in chosen])
        samples.set_xticks([])
        samples.tick_params(length=0)
        for spine in samples.spines.values():
            spine.set_visible(False)
        samples.set_title("draws, 0 to 32")
    return drawn


@torch.no_grad()
def drawn_images(program: Counts, n: int = 6) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return program.observed(program.decoder(torch.randn(n, program.latent_dim)), torch.ones(n)).sample()  # type: ignore[no-any-return]


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "counts", arguments)
    effort = Effort(2, 100, 12, 50, 20, 20) if options.quick else Effort(60, 1500, 200, 300, 200, 400)
    rows, differences, images = [], [], {}
    log_r: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))
    worlds = (("overdispersed", "negative binomial"), ("Poisson", "Poisson"), ("digits", ""))
    for data, likelihood in worlds[:1] if options.quick else worlds:
        source = truth(likelihood) if likelihood else None
        if source is not None:
            sizes = {"train": effort.num_train, "validation": effort.num_train // 5, "test": effort.num_test}
            parts = {name: cells(source, n, seed) for seed, (name, n) in enumerate(sizes.items())}
        else:
            parts = digits()
        true = None if source is None else analysis.exact_log_likelihood(source.model, parts["test"], tolerance=1e-3).pointwise
        programs = PROGRAMS[: 2 if source is not None else 3]
        found = {}
        for name in programs:
            row, found[name], program = measured(data, name, parts, effort, options.out, true)
            rows.append(row)
            print(f"{data}, {name}: {found[name]}", flush=True)
            if source is None:
                images[name] = drawn_images(program)
            elif data == "overdispersed" and name == "negative binomial":
                log_r = (source.log_r.detach(), program.log_r.detach())
        differences += [difference(data, two, one, found) for one, two in itertools.pairwise(programs)]
    record = {
        "effort": asdict(effort),
        "rows": [asdict(r) for r in rows],
        "differences": [asdict(d) for d in differences],
        "log_r": {"true": log_r[0].tolist(), "learned": log_r[1].tolist()},
    }
    error = (log_r[1] - log_r[0]).abs().median().item()
    experiment.finish(
        options.out, "counts", table(rows, differences), claims(rows, differences, error), figure(rows, log_r, images), record
    )


if __name__ == "__main__":
    main()
