"""Disentanglement of sprites by beta and by total correlation, with several seeds of each: what the objective decides, and what the seed.

Five factors drew the sprites (shape, scale, rotation, x, y), here averaged to 16 x 16 pixels and thresholded; eight latents code them. MIG,
SAP, DCI and the FactorVAE score compare codes of held-out sprites with the factors. Every objective is trained from the same seeds, which
rule the networks' start, the order and the noise; data and networks are the same. Locatello et al. (2019) trained 12,000 models and found
that seed and weight matter more than which objective; of 21 models this can only say how large the one spread is beside the other.

Expected. (1) The rate falls from each beta to the next, on average over seeds. (2) MIG is larger at beta = 4 than at beta = 1, by 2
standard errors of the difference paired by seed. (3) At beta = 16 fewer than 5 units are active and trees tell less of the factors than at
beta = 1 (informativeness). (4) At equal weights of 4 or more total correlation leaves a smaller distortion than beta, on average over
seeds, since it does not charge for what a code tells of its datum. (5) Nor has it the smaller MIG, on average over these weights. (6) Of
MIG's variance over runs seeds account for at least as much as objectives: the standard deviation within an objective is no smaller than
that of the objectives' means, corrected for the seeds in them. (7) The same holds for DCI disentanglement. (8) Rotation has no code of its
own: its gap in MIG is below 0.1 in every run. (9) Turning the codes of beta = 4 at random, which the prior, and so log p(x), does not
notice, takes at least half of MIG away, on average. (10) The MIG and DCI of runs agree: rank correlation above 0.5.

References:
    Locatello et al. (2019), Challenging common assumptions in the unsupervised learning of disentangled representations.
    Higgins et al. (2017), beta-VAE; Chen, Li, Grosse, Duvenaud (2018), Isolating sources of disentanglement in VAEs.

    python examples/disentanglement.py --out runs/disentanglement        # --quick: seconds
"""

import functools
import itertools
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

import experiment
import ppvae
from experiment import Claims, mean_and_se
from ppvae import analysis, guides, models, nn
from ppvae.analysis import latents, plots
from ppvae.data import Data
from ppvae.errors import UnreliableWarning
from ppvae.evaluation import ACTIVE
from ppvae.objectives import TotalCorrelation

BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)
CORRELATIONS = (4.0, 8.0)  # weight 1 is the ELBO, which is beta = 1
LATENT_DIM = 8
SIDE = 16
ROTATIONS = 5
MEASURES = {"mig": "MIG", "sap": "SAP", "dci": "DCI disentanglement", "factor_vae": "FactorVAE score"}


@dataclass(frozen=True)
class Effort:
    num_train: int
    num_held_out: int
    epochs: int
    seeds: int
    num_likelihood: int  # test data of log p(x); 0 leaves it out


FULL = Effort(4000, 2000, 25, 3, 100)
QUICK = Effort(300, 200, 2, 2, 0)


@dataclass(frozen=True)
class Trained:
    """One run. Rate and distortion in nats on held-out data, ``_se`` over them; the others as ``analysis.disentanglement`` has them.

    Attributes:
        objective: "beta" or "total correlation".
        gaps: MIG by factor. mig_se, sap_se: over the data; factor_vae_se: over votes.
        turned: MIG of the codes turned at random, mean over turns; turned_se over these.
    """

    objective: str
    weight: float
    seed: int
    rate: float
    distortion: float
    distortion_se: float
    active: int
    mig: float
    mig_se: float
    sap: float
    sap_se: float
    dci: float
    completeness: float
    informativeness: float
    factor_vae: float
    factor_vae_se: float
    gaps: list[float]
    turned: float
    turned_se: float


Pair = tuple[models.Bernoulli, guides.DiagonalNormal]


def trained(objective: str, weight: float, seed: int, data: Data, epochs: int, out: Path) -> Pair:
    """A hidden layer of 128 each way; the same start for all objectives of a seed."""
    pyro.set_rng_seed(seed)
    pixels = SIDE * SIDE
    model = models.Bernoulli(nn.MLP(LATENT_DIM, [128], pixels), latent_dim=LATENT_DIM)
    guide = guides.DiagonalNormal(nn.MLP(pixels, [128], 2 * LATENT_DIM), latent_dim=LATENT_DIM)
    by_beta = objective == "beta"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "beta ends at", UnreliableWarning)  # that it does is the experiment
        experiment.fit(
            model,
            guide,
            data,
            objective=None if by_beta else TotalCorrelation(weight),
            beta=weight if by_beta else 1.0,
            epochs=epochs,
            batch_size=128,
            optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
            scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=epochs),
            seed=seed,
            compile=False,
            out=out,
            resume=True,
        )
    return model, guide


def turn(dim: int, seed: int) -> Tensor:
    """A random rotation or reflection, (D, D), uniform over them all."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def measured(objective: str, weight: float, seed: int, pair: Pair, held: Data) -> Trained:
    found = analysis.elbo(*pair, held, num_particles=4, seed=1)
    codes = latents.codes(*pair, held)
    table = analysis.disentanglement(codes, held, categorical=("shape",))
    turned = [analysis.mutual_information_gap(codes.mean @ turn(LATENT_DIM, i), held).value for i in range(ROTATIONS)]
    distortion, distortion_se = mean_and_se(found.distortion)
    return Trained(
        objective, weight, seed, found.rate.mean().item(), distortion, distortion_se, int((codes.mean.var(0) > ACTIVE).sum()),
        table.mig.value, table.mig.se, table.sap.value, table.sap.se,
        table.dci.disentanglement, table.dci.completeness, table.dci.informativeness,
        table.factor_vae.value, table.factor_vae.se, table.mig.by_factor.tolist(), *mean_and_se(torch.tensor(turned)),
    )  # fmt: skip


def run(objective: str, weight: float, seed: int, train: Data, held: Data, epochs: int, out: Path) -> tuple[Trained, Pair]:
    """Trained and measured once: what was measured is kept beside the run."""
    folder = out / f"{objective.replace(' ', '-')}-{weight:g}-seed-{seed}"
    pair = trained(objective, weight, seed, train, epochs, folder)
    kept = folder / "disentanglement.json"
    if not kept.exists():
        kept.write_text(json.dumps(asdict(measured(objective, weight, seed, pair, held))))
    return Trained(**json.loads(kept.read_text())), pair


def sprites(effort: Effort) -> tuple[Data, Data]:
    """In random order, no two alike before they are made smaller: (N, 256) of 0 and 1, with their factors."""
    drawn = ppvae.data.sprites(effort.num_train + effort.num_held_out, binarize="none", flatten=False)
    pooled = avg_pool2d(drawn.x[:, None], 32 // SIDE).flatten(1)
    small = Data.from_arrays((pooled >= 0.5).float(), name=f"sprites, {SIDE} x {SIDE}").with_factors(drawn.factors, drawn.factor_names)
    return small[: effort.num_train], small[effort.num_train :]


@dataclass(frozen=True)
class Spread:
    """Of a measure over runs, G objectives of n seeds each.

    Attributes:
        within: Standard deviation over seeds, pooled.
        between: Of the objectives' means, less what the seeds in them bring: sqrt(var(means) - within^2 / n), 0 where that is negative.
        share: Of the variance that objectives account for, between^2 / (between^2 + within^2).
    """

    measure: str
    within: float
    between: float
    share: float


def spread(measure: str, values: Tensor) -> Spread:
    """Of values (G, n), one-way, balanced."""
    within = values.var(1).mean().item()
    between = max(0.0, values.mean(1).var().item() - within / values.shape[1])
    return Spread(measure, math.sqrt(within), math.sqrt(between), between / max(between + within, 1e-300))


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's; ties are broken by order, of which real numbers have none."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return torch.corrcoef(ranks)[0, 1].item()


def over_seeds(runs: Sequence[Trained], objective: str, weight: float, name: str) -> Tensor:
    """(n,), by seed."""
    return torch.tensor([getattr(r, name) for r in runs if (r.objective, r.weight) == (objective, weight)], dtype=torch.float64)


def objectives(runs: Sequence[Trained]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((r.objective, r.weight) for r in runs))


def table_text(runs: Sequence[Trained], spreads: Sequence[Spread], names: Sequence[str]) -> str:
    """Means over seeds with the standard deviation over them."""
    columns = ("rate", "distortion", "active", "mig", "sap", "dci", "completeness", "informativeness", "factor_vae", "turned")
    n = len({r.seed for r in runs})
    lines = [f"means ± standard deviations over {n} seeds", f"{'objective':<19}{'weight':>7}" + "".join(f"{c:>18}" for c in columns)]
    for objective, weight in objectives(runs):
        cells = [over_seeds(runs, objective, weight, c) for c in columns]
        lines.append(f"{objective:<19}{weight:>7g}" + "".join(f"{v.mean():>10.3f} ± {v.std():.3f}" for v in cells))
    errors = [math.sqrt(sum(getattr(r, f"{m}_se") ** 2 for r in runs) / len(runs)) for m in ("mig", "sap", "factor_vae")]
    lines.append("standard error of one run's measure over its data (root mean square): "
                 + ", ".join(f"{m} {e:.3f}" for m, e in zip(("mig", "sap", "factor_vae (votes)"), errors, strict=True)))  # fmt: skip
    for s in spreads:
        lines.append(
            f"{MEASURES[s.measure]}: sd over seeds {s.within:.3f}, over objectives {s.between:.3f}; objectives account for {s.share:.2f}"
        )
    gaps = torch.tensor([r.gaps for r in runs])
    lines.append("MIG by factor, mean over runs (largest): " + ", ".join(
        f"{name} {v:.3f} ({m:.3f})" for name, v, m in zip(names, gaps.mean(0), gaps.amax(0), strict=True)))  # fmt: skip
    return "\n".join(lines)


def claims(runs: Sequence[Trained], spreads: Sequence[Spread], names: Sequence[str]) -> Claims:
    at = functools.partial(over_seeds, runs)
    betas = sorted({r.weight for r in runs if r.objective == "beta"})
    middle = 4.0 if 4.0 in betas else betas[-1]
    rates = [at("beta", beta, "rate").mean().item() for beta in betas]
    gain, gain_se = mean_and_se(at("beta", middle, "mig") - at("beta", 1.0, "mig"))
    active, told = at("beta", betas[-1], "active"), at("beta", betas[-1], "informativeness")
    told_at_1 = at("beta", 1.0, "informativeness")
    weights = [w for o, w in objectives(runs) if o != "beta" and w in betas]
    saved = {w: mean_and_se(at("total correlation", w, "distortion") - at("beta", w, "distortion")) for w in weights}
    ahead, ahead_se = mean_and_se(torch.stack([at("total correlation", w, "mig") - at("beta", w, "mig") for w in weights]).mean(0))
    by_name = {s.measure: s for s in spreads}
    rotation = [r.gaps[list(names).index("rotation")] for r in runs]
    straight, turned = at("beta", middle, "mig").mean().item(), at("beta", middle, "turned").mean().item()
    agreement = rank_correlation(*(torch.tensor([getattr(r, m) for r in runs]) for m in ("mig", "dci")))
    return {
        "the rate falls with beta": (
            all(a > b for a, b in itertools.pairwise(rates)),
            ", ".join(f"{rate:.2f} at {beta:g}" for rate, beta in zip(rates, betas, strict=True)) + " nats",
        ),
        f"MIG is larger at beta = {middle:g} than at 1": (
            gain > 2 * gain_se,
            f"{straight:.3f} and {at('beta', 1.0, 'mig').mean():.3f}: {gain:+.3f} ± {gain_se:.3f} (seeds)",
        ),
        f"beta = {betas[-1]:g} has fewer than 5 active units and tells less": (
            bool((active < 5).all()) and told.mean().item() < told_at_1.mean().item(),
            f"{', '.join(f'{a:.0f}' for a in active)} active; informativeness {told.mean():.3f}, {told_at_1.mean():.3f} at 1",
        ),
        "total correlation leaves less distortion than beta of equal weight": (
            all(value < 0 for value, _ in saved.values()),
            ", ".join(f"{value:+.2f} ± {se:.2f} at {w:g}" for w, (value, se) in saved.items()) + " nats (seeds)",
        ),
        "and no smaller MIG": (ahead >= 0, f"{ahead:+.3f} ± {ahead_se:.3f} (seeds), mean over weights"),
        **{
            f"seeds spread {MEASURES[m]} at least as much as objectives": (
                by_name[m].within >= by_name[m].between,
                f"sd {by_name[m].within:.3f} over seeds, {by_name[m].between:.3f} over objectives: a share of {by_name[m].share:.2f}",
            )
            for m in ("mig", "dci")
        },
        "rotation has no code of its own": (
            max(rotation) < 0.1,
            f"its gap is {max(rotation):.3f} at most, on average {np.mean(rotation):.3f}",
        ),
        f"turning the codes of beta = {middle:g} takes half of MIG away": (turned <= straight / 2, f"{straight:.3f} to {turned:.3f}"),
        "MIG and DCI order the runs alike": (agreement > 0.5, f"rank correlation {agreement:.2f} over {len(runs)} runs"),
    }  # fmt: skip


def likelihood(pair: Pair, data: Data) -> dict[str, Any]:
    """What a table of models has: ELBO, log p(x), gap and active units, on the first test data."""
    bound = analysis.elbo(*pair, data, num_particles=50, seed=1)
    found = analysis.log_likelihood(*pair, data, num_particles=500, proposal="refined")
    gap = (found.pointwise - bound.rate.neg() + bound.distortion).double()
    return {
        "elbo": mean_and_se(-bound.rate - bound.distortion),
        "log_p": [found.mean.value, found.mean.data_se, found.mean.mc_se],
        "trusted": found.trusted.double().mean().item(),
        "inference_gap": mean_and_se(gap),
        "num_data": len(data),
    }


def figure(
    runs: Sequence[Trained], spreads: Sequence[Spread], information: Tensor, walks: Tensor, names: Sequence[str], shown: Trained
) -> Figure:
    colours = {"beta": plots.BLUE, "total correlation": plots.ORANGE}
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 4.6), layout="constrained")
        upper, lower = drawn.subfigures(2, 1)
        for axes, (measure, label) in zip(upper.subplots(1, 4), MEASURES.items(), strict=True):
            for objective, colour in colours.items():
                own = [r for r in runs if r.objective == objective]
                weights = sorted({r.weight for r in own})
                shift = 1.07 if objective == "beta" else 1 / 1.07
                axes.plot([r.weight / shift for r in own], [getattr(r, measure) for r in own], linestyle="", marker="o", alpha=0.6,
                          color=colour, markeredgewidth=0)  # fmt: skip
                means = [over_seeds(runs, objective, w, measure).mean().item() for w in weights]
                axes.plot([w / shift for w in weights], means, color=colour, label=objective)
            if measure == "mig":
                weights = sorted({r.weight for r in runs if r.objective == "beta"})
                axes.plot(weights, [over_seeds(runs, "beta", w, "turned").mean().item() for w in weights], color=plots.GREY,
                          linestyle="--", linewidth=0.9, label="beta, turned")  # fmt: skip
                axes.legend(loc="upper left")
                axes.set_ylim(0, 1.5 * max(r.mig for r in runs))
            axes.set_xscale("log", base=2)
            axes.set_xticks(BETAS, [f"{w:g}" for w in BETAS])
            axes.set_xlabel("weight")
            axes.set_title(label)
            axes.set_ylim(bottom=0)
        shares, plane, table, walk = lower.subplots(1, 4, width_ratios=(1, 1, 0.95, 1.15))
        place = np.arange(len(spreads))
        shares.barh(place - 0.2, [s.within for s in spreads], 0.36, color=plots.GREEN, label="over seeds")
        shares.barh(place + 0.2, [s.between for s in spreads], 0.36, color=plots.VERMILION, label="over objectives")
        shares.set_yticks(place, [MEASURES[s.measure].replace(" ", "\n") for s in spreads])
        shares.invert_yaxis()
        shares.set_xlabel("standard deviation")
        shares.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=1)
        for objective, colour in colours.items():
            own = [r for r in runs if r.objective == objective]
            plane.plot(
                [r.distortion for r in own], [r.mig for r in own], linestyle="", marker="o", color=colour, alpha=0.6, markeredgewidth=0
            )
        plane.set_xlabel("distortion (nats)")
        plane.set_ylabel("MIG")
        table.imshow(plots.array(information.T), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        table.set_yticks(range(len(names)), names)
        table.set_xticks(range(len(information)), [str(d) for d in range(len(information))])
        table.set_xlabel("unit")
        kind = "β" if shown.objective == "beta" else "TC"
        table.set_title(f"I(unit; factor) / H(factor),\n{kind} {shown.weight:g}")
        rows = [torch.cat([pad(image.reshape(SIDE, SIDE), (1, 1, 1, 1), value=1.0) for image in row], 1) for row in walks]
        walk.imshow(plots.array(torch.cat(rows, 0)), cmap="gray", vmin=0, vmax=1)
        walk.set_yticks([(SIDE + 2) * (i + 0.5) - 0.5 for i in range(len(walks))], [str(d) for d in range(len(walks))])
        walk.set_xticks([])
        walk.tick_params(length=0)
        walk.set_title("its units, walked along")
        for spine in walk.spines.values():
            spine.set_visible(False)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "disentanglement", arguments)
    effort = QUICK if options.quick else FULL
    train, held = sprites(effort)
    asked = [("beta", w) for w in BETAS] + [("total correlation", w) for w in CORRELATIONS]
    if options.quick:
        asked = [("beta", 1.0), ("beta", 16.0), ("total correlation", 16.0)]
    runs, pairs = [], []
    for objective, weight in asked:
        for seed in range(effort.seeds):
            found, pair = run(objective, weight, seed, train, held, effort.epochs, options.out)
            runs.append(found)
            pairs.append(pair)
    names = held.factor_names
    spreads = [
        spread(m, torch.tensor([[getattr(r, m) for r in runs if (r.objective, r.weight) == one] for one in asked])) for m in MEASURES
    ]
    best = max(range(len(runs)), key=lambda i: runs[i].mig)
    codes = latents.codes(*pairs[best], held)
    information = analysis.mutual_information_gap(codes, held).table
    walks = latents.traversal(*pairs[best], held, row=0, steps=7).images
    record = {
        "effort": asdict(effort),
        "factors": list(names),
        "runs": [asdict(r) for r in runs],
        "spreads": [asdict(s) for s in spreads],
        "likelihood": likelihood(pairs[0], held[: effort.num_likelihood]) if effort.num_likelihood else None,
    }
    experiment.finish(
        options.out,
        "disentanglement",
        table_text(runs, spreads, names),
        claims(runs, spreads, names),
        figure(runs, spreads, information, walks, names, runs[best]),
        record,
    )


if __name__ == "__main__":
    main()
