"""Where a VAE loses its ELBO: approximation gap, amortization gap, and what moves them, on thresholded Fashion-MNIST.

The experiments of Cremer, Li, Duvenaud (2018), "Inference suboptimality in variational autoencoders". ``CREMER_2018`` names every
setting of their two code bases, where the two differ, and what is run here; the main difference is the length of training: 3,280 epochs
there, 300 here for the row of the table, 100 for each of the four runs whose differences test a claim. Expected on training images: an
approximation gap of about 3 nats and an amortization gap of about 4; a larger amortization gap on test images; less of it with a
larger encoder; a smaller approximation gap with a flow as guide; more active units with a warm-up than without.

    python examples/inference_suboptimality.py protocol                  # the settings, theirs and ours
    python examples/inference_suboptimality.py                           # train what is missing, measure what is missing, report
    python examples/inference_suboptimality.py measure --only warm-up    # one step, one run; --quick: seconds, to see that it works
"""

import argparse
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ppvae
from ppvae import analysis, guides, models, nn, objectives
from ppvae.analysis import plots
from ppvae.guides.flow import Flow

SPLITS = ("train", "test")
UNVERIFIED = "as remembered, unverified"
STEPS = ("protocol", "train", "measure", "report")
GAPS = ("approximation", "amortization", "inference")


@dataclass(frozen=True)
class Setting:
    """One setting in the code of the paper's table 2 (github.com/lxuechen/inference-suboptimality), in the authors' other code base
    (github.com/chriscremer/Inference-Suboptimality), and here."""

    name: str
    table: str
    other: str
    here: str
    follows: str  # "table", "other", "both", "own" or "neither", which is not run


@dataclass(frozen=True)
class Protocol:
    """What is run and measured here; ``settings`` puts it beside the published protocol.

    Attributes:
        train_images: The first so many training images; None for all 55,000.
        hidden, larger: Hidden layers of encoder and decoder, and of the larger encoder.
        num_flows, flow_hidden, features: Couplings of the flow guide, their hidden layers, and the features of x they see.
        warm_up: Share of the epochs over which the weight of the KL term rises from 0 to 1.
        decay: The learning rate's last value over its first; it falls by the same factor each epoch.
        epochs, claim_epochs: Of the row of the table, and of each of the runs that are compared.
        images: The gaps are those of the first so many training and test images.
        reference: How log p(x) is estimated, see ``analysis.inference_gaps``.
        steps: Of every refinement; None for each family's own schedule.
    """

    data: str = "fashion-mnist"
    train_images: int | None = None
    latent_dim: int = 50
    hidden: tuple[int, ...] = (200, 200)
    larger: tuple[int, ...] = (500, 500)
    num_flows: int = 2
    flow_hidden: tuple[int, ...] = (200,)
    features: int = 50
    batch_size: int = 100
    learning_rate: float = 1e-3
    decay: float = 0.1
    warm_up: float = 1 / 3
    epochs: int = 300
    claim_epochs: int = 100
    images: int = 1000
    reference: str = "auto"
    steps: int | None = None
    seed: int = 0

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting of the published protocol, with ours."""
        p = self
        widths, wide = "-".join(map(str, p.hidden)), "-".join(map(str, p.larger))
        flow_widths = "-".join(map(str, p.flow_hidden))
        return (
            Setting("data", "Fashion-MNIST; MNIST; CIFAR-10", "Fashion-MNIST; MNIST", p.data, "both"),
            Setting("binarisation", "x / 255 < 0.5 -> 0, else 1", "x / 255 > 0.5 -> 1", "128 of 255 and more -> 1", "both"),
            Setting(
                "training images", "first 55,000", "first 50,000", f"{p.train_images or '55,000, all but 5,000 drawn at random'}", "table"
            ),
            Setting("held-out images", "55,001 to 60,000 of the training file", "its last 10,000", "the test file's", "own"),
            Setting("MNIST", "Larochelle's, training and validation", "static; validation added in some scripts", "not run", "neither"),
            Setting("CIFAR-10", "0.5 a channel; conv 64-128-256, 4x4, stride 2, batch norm, ELU", "none", "not run", "neither"),
            Setting("latent dimensions", "50", "20 (over-training), 50 (MNIST)", f"{p.latent_dim}", "table"),
            Setting("encoder and decoder", "200-200", "500-500-500, encoders 100 and linear (over-training)", widths, "table"),
            Setting("activation", "ELU", "ELU (over-training), tanh (MNIST)", "ELU", "table"),
            Setting("larger encoder", "500-500", "500-500-500", wide, "table"),
            Setting("batch", "100", "50 (Fashion-MNIST), 20 (MNIST)", f"{p.batch_size}", "table"),
            Setting("epochs", "3,280", "3,280", f"{p.epochs} (table), {p.claim_epochs} (each claim)", "own"),
            Setting(
                "learning rate",
                "1e-3 * 10^(-i / 7) after 3^i epochs, with a flag; 1e-4 without",
                "1e-3 * 10^(-i / 7) after 3^i epochs, a new Adam each stage",
                f"{p.learning_rate:g} falling to {p.learning_rate * p.decay:g} by the same factor each epoch",
                "own",
            ),
            Setting("Adam's eps", "1e-4", "1e-8", "1e-8", "other"),
            Setting("warm-up", "400 epochs (CIFAR-10: 50)", "100 epochs", f"{p.warm_up:.0%} of the epochs, or none", "own"),
            Setting("what is annealed", "log q(z | x) alone", "log q(z | x) alone", "log q(z | x) - log p(z)", "own"),
            Setting(
                "flow guide",
                "2 real NVP steps with an auxiliary variable, hidden 200, ELU, q(v0 | z0, x), r(v | x, z), 50 features of x",
                "2 steps, hidden 50, tanh, v0 ~ N(0, I), r(v | z); or real NVP on a split z without v",
                f"{p.num_flows} affine couplings on a split z without v, hidden {flow_widths}, ELU, {p.features} features of x",
                "own",
            ),
            Setting(
                "images measured",
                "first 1,000 training (CIFAR-10: 100), batches of 100",
                "101 (over-training), 500 (flow), 100 (test), 1,000 in comments",
                f"first {p.images:,} training and test",
                "table",
            ),
            Setting("q*, start", "mean 0, log variance 0", "mean 0, log variance 0", "the guide's q(z | x)", "own"),
            Setting(
                "q*, steps",
                "Adam 1e-3 on 100 separate q* an image, a draw a step each",
                "Adam 1e-3 on one q* an image, 50 draws a step",
                "natural gradient (Normal) or Adam (flow) on one q* an image, by analysis.refine",
                "own",
            ),
            Setting(
                "q*, end",
                "more than 10 windows of 100 steps without a better mean loss of the batch",
                "the same",
                "analysis.refine's, which tells what the last doubling of the steps gained",
                "own",
            ),
            Setting(
                "q*, flow",
                f"the flow guide's ({UNVERIFIED})",
                "its own flow",
                "a full-rank Normal per image; behind the flow guide its own",
                "own",
            ),
            Setting("L[q*]", "100 draws, one of each copy", "5,000 draws", "1,000 fresh draws, as L[q]", "own"),
            Setting("L[q]", "100 passes of one draw, printed wrongly", "5,000 draws", "1,000 fresh draws", "own"),
            Setting("importance weights", "5,000 from q, 100 from q*", "5,000 from either", "analysis.inference_gaps'", "own"),
            Setting("log p(x)", f"the larger of annealing and weights ({UNVERIFIED})", "the same", f"reference {p.reference!r}", "own"),
            Setting("annealing, path", "10,000, linear, 100 chains", "5,000, linear, 100 chains", "analysis.inference_gaps'", "own"),
            Setting(
                "annealing, moves",
                "10 leapfrog steps from 0.01, each chain's x 1.02 or x 0.98 to 0.65, in [1e-4, 0.5], gradient within 1e4",
                "11 position steps from 0.1, one size for all chains",
                "analysis.inference_gaps'",
                "own",
            ),
            Setting("two-sided check", "simulated x, sigmoid schedule with delta 4, 100 chains", "none", "not run", "neither"),
            Setting("flow on a fixed decoder", "none", "linear encoder trained again, with and without, 500 images", "not run", "neither"),
        )


CREMER_2018 = Protocol()
QUICK = Protocol(
    data="digits",
    train_images=64,
    latent_dim=4,
    hidden=(16,),
    larger=(32,),
    flow_hidden=(8,),
    features=4,
    batch_size=16,
    epochs=2,
    claim_epochs=2,
    images=4,
    steps=20,
)

# Table 2, training images, nats. As remembered and not checked against the paper; the differences add up as they should.
PUBLISHED: dict[str, dict[str, float]] = {
    "q_FFG": {
        "log p(x)": -97.47,
        "L[q*], flow": -98.92,
        "L[q*], diagonal": -100.53,
        "L[q]": -104.75,
        "approximation": 3.06,
        "amortization": 4.22,
        "inference": 7.28,
    },
    "q_AF": {
        "log p(x)": -97.41,
        "L[q*], flow": -99.10,
        "L[q*], diagonal": -132.46,
        "L[q]": -103.76,
        "approximation": 1.69,
        "amortization": 4.66,
        "inference": 6.35,
    },
}


@dataclass(frozen=True)
class Row:
    """A run: what it has that the others do not."""

    name: str
    shown: str
    warm_up: bool = True
    larger: bool = False
    flow: bool = False
    table: bool = False  # the long run, whose row stands in the table

    @property
    def families(self) -> tuple[str, str]:
        """What is refined: first the family that the gaps are of, then the other of the published table."""
        return ("same", "mean_field") if self.flow else ("same", "full_rank")

    @property
    def levels(self) -> dict[str, str]:
        """L[q*] of the published table -> its family in ``families``."""
        flow, diagonal = self.families if self.flow else self.families[::-1]
        return {"L[q*], flow": flow, "L[q*], diagonal": diagonal}


ROWS = {
    row.name: row
    for row in (
        Row("main", "diagonal, longer", table=True),
        Row("warm-up", "diagonal"),
        Row("no-warm-up", "no warm-up", warm_up=False),
        Row("larger-encoder", "larger encoder", larger=True),
        Row("flow-guide", "flow", flow=True),
    )
}


def pair(row: Row, pixels: int, p: Protocol) -> tuple[torch.nn.Module, torch.nn.Module]:
    """An untrained model and guide."""
    pyro.set_rng_seed(p.seed)
    mlp = functools.partial(nn.MLP, activation=torch.nn.ELU)
    model = models.Bernoulli(mlp(p.latent_dim, list(p.hidden[::-1]), pixels), latent_dim=p.latent_dim)
    hidden = list(p.larger if row.larger else p.hidden)
    if row.flow:
        encoder = mlp(pixels, hidden, 2 * p.latent_dim + p.features)
        return model, Flow(encoder, p.latent_dim, p.features, num_flows=p.num_flows, hidden=p.flow_hidden)
    return model, guides.DiagonalNormal(mlp(pixels, hidden, 2 * p.latent_dim), latent_dim=p.latent_dim)


def train(row: Row, data: ppvae.data.Data, p: Protocol, folder: Path) -> ppvae.Run:
    """Train a run, or go on with it; a finished one stays as it is."""
    model, guide = pair(row, data.event_shape[0], p)
    epochs = p.epochs if row.table else p.claim_epochs
    return ppvae.fit(
        model,
        guide,
        data,
        epochs=epochs,
        batch_size=p.batch_size,
        beta=objectives.linear(0.0, 1.0, fraction=p.warm_up) if row.warm_up else 1.0,
        optimizer=functools.partial(torch.optim.Adam, lr=p.learning_rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=p.decay ** (1 / epochs)),
        seed=p.seed,
        out=folder,
        resume=True,
    )


@dataclass(frozen=True, eq=False)
class Measured:
    """A run on the first images of a split: per image (N,), nats, and the number of active units over these images."""

    log_px: Tensor
    elbo: Tensor
    approximation: Tensor
    amortization: Tensor
    inference: Tensor
    refined: dict[str, Tensor]
    active_units: int
    reference: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Measured":
        """From what ``measure`` wrote."""
        gaps = record["gaps"]
        names = ("log_px", "elbo", *GAPS)
        return cls(
            **{name: torch.tensor(gaps[name], dtype=torch.float64) for name in names},
            refined={name: torch.tensor(values, dtype=torch.float64) for name, values in gaps["refined"].items()},
            active_units=record["usage"]["active_units"]["z"],
            reference=gaps["reference"],
        )


Found = Mapping[tuple[str, str], Measured]  # (run, split) -> what was measured


def measure(row: Row, split: str, data: ppvae.data.Data, p: Protocol, folder: Path, out: Path) -> None:
    """Gaps and active units of a run on the first images of a split, written to a file; one that holds just these is left."""
    run = ppvae.load(folder)
    asked = {"images": p.images, "reference": p.reference, "families": list(row.families), "step": run.history[-1]["step"], "seed": p.seed}
    asked |= {"steps": p.steps, "data": data.sha256}
    path = _measured(out, row.name, split)
    if path.exists() and json.loads(path.read_text())["asked"] == asked:
        return
    x = data[: p.images]
    gaps = analysis.inference_gaps(run.model, run.guide, x, families=row.families, reference=p.reference, steps=p.steps, seed=p.seed)
    usage = analysis.latent_usage(run.model, run.guide, x, seed=p.seed)
    print(f"{row.name}, {split}: {gaps}\n    {usage}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"asked": asked, "epochs": len(run.history), "gaps": gaps.as_dict(), "usage": usage.as_dict()}))


def _measured(out: Path, name: str, split: str) -> Path:
    return out / "measured" / f"{name}-{split}.json"


def levels(row: Row, found: Measured) -> dict[str, Tensor]:
    """The rows of the published table, (N,)."""
    means = {"log p(x)": found.log_px} | {name: found.refined[family] for name, family in row.levels.items()} | {"L[q]": found.elbo}
    return means | {name: getattr(found, name) for name in GAPS}


@dataclass(frozen=True)
class Verdict:
    """A claim and what was seen of it.

    Attributes:
        claim: What is larger than what, such that ``difference`` > 0 where it holds.
        published: The published difference or a word on it.
        difference: Nats, or a number of units.
        se: Standard error of the mean difference over images; 0 for a count. The noise between two trainings is not in it.
        how: "paired by image", "other images" or "a count".
    """

    claim: str
    published: str
    difference: float
    se: float
    how: str

    @property
    def seen(self) -> bool:
        """Whether it holds by more than two standard errors."""
        return self.difference > 2 * self.se

    def __str__(self) -> str:
        number = f"{self.difference:+.0f}" if self.how == "a count" else f"{self.difference:+.2f} ± {self.se:.2f} nats"
        against = ", the opposite by more than two standard errors" if self.difference < -2 * self.se else ""
        return f"{'seen' if self.seen else 'not seen'}: {self.claim}: {number} ({self.how}{against}; published: {self.published})"


def _paired(claim: str, published: str, difference: Tensor) -> Verdict:
    return Verdict(claim, published, difference.mean().item(), _se(difference), "paired by image")


def _se(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


def verdicts(found: Found) -> list[Verdict]:
    """The claims that the runs at hand can be held against."""
    here = {name: found[name, "train"] for name in ROWS if (name, "train") in found}
    ffg, af = PUBLISHED["q_FFG"], PUBLISHED["q_AF"]
    told = []
    for name in ("main", "warm-up"):
        if name not in here:
            continue
        one, which = here[name], f"[{name}] "
        told.append(
            _paired(
                f"{which}the amortization gap is larger than the approximation gap",
                f"{ffg['amortization'] - ffg['approximation']:+.2f}, {UNVERIFIED}",
                one.amortization - one.approximation,
            )
        )
        told.append(
            _paired(
                f"{which}a local full-rank Normal (theirs: a local flow) comes closer to log p(x) than a local diagonal one",
                f"{ffg['L[q*], flow'] - ffg['L[q*], diagonal']:+.2f}, {UNVERIFIED}",
                one.refined["full_rank"] - one.refined["same"],
            )
        )
        if (name, "test") in found:
            held_out, seen = found[name, "test"].amortization, one.amortization
            claim = f"{which}the amortization gap is larger on test images than on training images"
            larger = (held_out.mean() - seen.mean()).item()
            told.append(Verdict(claim, f"yes, {UNVERIFIED}", larger, math.hypot(_se(held_out), _se(seen)), "other images"))
    base = here.get("warm-up")
    if base is not None and "no-warm-up" in here:
        told += _of_warm_up(base, here["no-warm-up"])
    if base is not None and "larger-encoder" in here:
        smaller = base.amortization - here["larger-encoder"].amortization
        told.append(_paired("a larger encoder has a smaller amortization gap", f"yes, {UNVERIFIED}", smaller))
    if base is not None and "flow-guide" in here:
        flow = here["flow-guide"]
        for name in ("approximation", "inference"):
            published = f"{ffg[name] - af[name]:+.2f}, {UNVERIFIED}"
            told.append(
                _paired(
                    f"a flow as guide, held to its own family, has a smaller {name} gap",
                    published,
                    getattr(base, name) - getattr(flow, name),
                )
            )
        expected = (af["L[q*], flow"] - af["L[q*], diagonal"]) - (ffg["L[q*], flow"] - ffg["L[q*], diagonal"])
        lost = (flow.refined["same"] - flow.refined["mean_field"]) - (base.refined["full_rank"] - base.refined["same"])
        told.append(_paired("a model trained with a flow loses more under a diagonal Normal", f"{expected:+.2f}, {UNVERIFIED}", lost))
    return told


def comparable(epochs: Mapping[str, int]) -> set[str]:
    """The runs that a claim may compare: those trained for as long as the base, and the long one, which is held to itself alone."""
    base = epochs.get("warm-up")
    return {name for name, trained in epochs.items() if ROWS[name].table or trained == base}


def _of_warm_up(base: Measured, without: Measured) -> list[Verdict]:
    yes = f"yes, {UNVERIFIED}"
    units = float(base.active_units - without.active_units)
    return [
        Verdict(f"a warm-up leaves more active units ({base.active_units} against {without.active_units})", yes, units, 0.0, "a count"),
        _paired("a warm-up gives a higher log p(x)", yes, base.log_px - without.log_px),
        _paired("a warm-up gives a larger approximation gap", yes, base.approximation - without.approximation),
    ]


def table(found: Found, epochs: Mapping[str, int]) -> str:
    """The published rows and the measured runs, a line each: means over the images, errors of the gaps."""
    levels_shown = list(PUBLISHED["q_FFG"])
    names = ["run", "epochs", "images", *levels_shown, "active units"]
    lines = [
        [f"paper, {family}", "3,280", "1,000 train", *(f"{PUBLISHED[family][name]:.2f}" for name in levels_shown), ""]
        for family in PUBLISHED
    ]
    for (name, split), one in found.items():
        shown = levels(ROWS[name], one)
        numbers = [_told(level, shown[level]) for level in levels_shown]
        lines.append([ROWS[name].shown, str(epochs[name]), f"{len(one.elbo):,} {split}", *numbers, str(one.active_units)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *lines))


def _told(name: str, values: Tensor) -> str:
    mean = values.mean().item()
    return f"{mean:.2f} ± {_se(values):.2f}" if name in GAPS else f"{mean:.2f}"


def figure(found: Found) -> Figure:
    """Both gaps of every run, stacked, on training and on test images, below the published ones; errors of the inference gap."""
    bars: list[tuple[str, float, float, float]] = [
        (f"paper, {family}, train", PUBLISHED[name]["approximation"], PUBLISHED[name]["amortization"], 0.0)
        for family, name in (("diagonal", "q_FFG"), ("flow", "q_AF"))
    ]
    bars += [
        (f"{ROWS[name].shown}, {split}", one.approximation.mean().item(), one.amortization.mean().item(), _se(one.inference))
        for (name, split), one in found.items()
    ]
    with matplotlib.rc_context(plots.STYLE):
        drawn = Figure(figsize=(plots.WIDTH, 0.7 + 0.19 * len(bars)), layout="constrained")
        axes = drawn.subplots()
        rows = range(len(bars))
        lower, upper = [bar[1] for bar in bars], [bar[2] for bar in bars]
        axes.barh(rows, lower, height=0.7, color=plots.BLUE, label="approximation")
        axes.barh(
            rows, upper, left=lower, height=0.7, color=plots.ORANGE, hatch="////", edgecolor="white", linewidth=0, label="amortization"
        )
        measured = list(rows)[len(PUBLISHED) :]  # the published gaps came without errors
        ends, errors = [lower[i] + upper[i] for i in measured], [bars[i][3] for i in measured]
        axes.errorbar(ends, measured, xerr=errors, color=plots.BLACK, linewidth=0.8, capsize=1.5, linestyle="none")
        axes.axhline(len(PUBLISHED) - 0.5, color=plots.GREY, linewidth=0.6, linestyle=":")
        axes.set_yticks(rows, [bar[0] for bar in bars])
        axes.tick_params(left=False)
        axes.invert_yaxis()
        axes.set_xlim(left=min(0.0, *lower))
        axes.set_xlabel("gap, nats per image")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return drawn


def report(p: Protocol, out: Path) -> None:
    """Print the table and the claims; write them and the figure."""
    paths = {(name, split): _measured(out, name, split) for name in ROWS for split in SPLITS}
    records = {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}
    if not records:
        print(f"nothing was measured yet in {out}")
        return
    found = {key: Measured.of(record) for key, record in records.items()}
    epochs = {name: record["epochs"] for (name, _), record in records.items()}
    fair = comparable(epochs)
    told = verdicts({key: one for key, one in found.items() if key[0] in fair})
    print(f"\n{table(found, epochs)}\n\nNats, means over the images. Paper: Fashion-MNIST, {UNVERIFIED}. Here: {p.data}.")
    print(f"log p(x) by {'; '.join(sorted({one.reference.split(' (')[0] for one in found.values()}))}.")
    if len(fair) < len(epochs):
        print(f"Not compared, since trained for other epochs than 'warm-up': {', '.join(sorted(epochs.keys() - fair))}.")
    print("One training each: what another seed would change is not in the errors.\n\n" + "\n".join(map(str, told)))
    record = {
        "protocol": asdict(p) | {"settings": [asdict(setting) for setting in p.settings]},
        "published": PUBLISHED | {"source": UNVERIFIED},
        "runs": {
            f"{name}, {split}": {key: value.mean().item() for key, value in levels(ROWS[name], one).items()}
            | {f"{key} se": _se(getattr(one, key)) for key in GAPS}
            | {"active units": one.active_units, "images": len(one.elbo), "epochs": epochs[name], "reference": one.reference}
            for (name, split), one in found.items()
        },
        "claims": [asdict(verdict) | {"seen": verdict.seen} for verdict in told],
    }
    (out / "suboptimality.json").write_text(json.dumps(record, indent=1))
    plots.save(figure(found), out / "suboptimality.pdf")
    plots.save(figure(found), out / "suboptimality.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=STEPS, help="without one: train, measure and report")
    parser.add_argument("--out", type=Path, default=None, help="default runs/cremer-2018, or runs/cremer-2018-quick with --quick")
    parser.add_argument("--main-run", type=Path, default=None, help="folder of the long run, if it is not OUT/main")
    parser.add_argument("--epochs", type=int, default=None, help="of the long run")
    parser.add_argument("--claim-epochs", type=int, default=None, help="of each of the compared runs")
    parser.add_argument("--images", type=int, default=None, help="training and test images whose gaps are measured")
    parser.add_argument("--reference", default=None, help="estimator of log p(x): annealed, importance, auto")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="train and measure these runs")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="measure on these images")
    parser.add_argument("--quick", action="store_true", help="tiny, on the digits: to see that it works")
    options = parser.parse_args(arguments)
    asked = {name: getattr(options, name) for name in ("epochs", "claim_epochs", "images", "reference")}
    p = replace(QUICK if options.quick else CREMER_2018, **{name: value for name, value in asked.items() if value is not None})
    out = options.out or Path("runs", "cremer-2018-quick" if options.quick else "cremer-2018")
    if options.step == "protocol":
        for setting in p.settings:
            print(f"{setting.name}\n    table: {setting.table}\n    other: {setting.other}\n    here:  {setting.here} [{setting.follows}]")
        return
    folders = {name: options.main_run if options.main_run is not None and ROWS[name].table else out / name for name in options.only}
    if options.step != "report":
        data = ppvae.data.load(p.data, binarize="threshold")
        training = data.train if p.train_images is None else data.train[: p.train_images]
        if options.step in (None, "train"):
            for name, folder in folders.items():
                train(ROWS[name], training, p, folder)
        if options.step in (None, "measure"):
            for name, folder in folders.items():
                for split in options.splits:
                    measure(ROWS[name], split, training if split == "train" else data.test, p, folder, out)
    if options.step in (None, "report", "measure"):
        report(p, out)


if __name__ == "__main__":
    main()
