"""Does a VAE trained on a few labelled digits make a better training set of them? Samples, screened and not, beside plain shifts.

From the 1,437 digits that are not in the test set 10, 30 or 100 per class are drawn. A class-conditional VAE is trained on these alone, and
samples x ~ p(x | z, y), the pixels cut at one half as the data were, are added to them: each batch of the classifier is half real, half
added, so that all arms see the same number of images. Screened samples are those that a screener takes for the class they were made for,
with a probability of 0.9 at least. Two screeners, both networks like the classifier:

* honest: trained on the small set, as everything else is. It shares its data with the VAE and with the final classifier, and so it is not
  independent of them; nothing else can be had from the small set without giving a part of it away.
* leaking: trained on the other labelled digits, the 1,437 less the small set. It is independent: no image of the VAE's or of the
  classifier's is among its own. But what it rejects tells of labels that the small set does not have. Who has them can train on them; that
  arm, all 1,437 digits, is shown beside it.

Expected. (1) Shifts by up to a pixel raise the test accuracy at 10 per class by 2 standard errors. (2) Samples do not: at no size by more
than one point and 2 standard errors. (3) The honest screener does not change that by more than one point at any size. (4) The leaking
screener's samples are better than the honest one's at 10 per class, by 2 standard errors: what looks like a gain by samples is a gain by
labels. (5) All digits, used directly, are better than samples screened with them, by 2 standard errors at 10 and at 30 per class. (6) The
leaking screener rejects more samples than the honest one at 10 per class.

Repeats draw the small set anew, and with it everything that follows; differences are paired by repeat. The first error is over repeats, the
second over test images.

    python examples/augmentation.py --out runs/augmentation        # --quick: seconds
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, pad

import experiment
import ppvae
from experiment import Claims, mean_and_se, strips
from ppvae import nn
from ppvae.analysis import plots

SIDE = 8
NUM_CLASSES = 10
LATENT_DIM = 8
CONFIDENT = 0.9
HIDDEN = 128
BATCH = 64
ARMS = {
    "real": "real only",
    "samples": "+ samples",
    "honest": "+ samples, honest screener",
    "leaking": "+ samples, leaking screener",
    "shifts": "+ shifts",
    "both": "+ samples and shifts",
    "all": "all digits",
}
COLOURS = dict(zip(ARMS, (plots.BLACK, plots.BLUE, plots.GREEN, plots.VERMILION, plots.ORANGE, plots.UMBER, plots.GREY), strict=True))


@dataclass(frozen=True)
class Effort:
    sizes: tuple[int, ...]
    repeats: int
    vae_steps: int
    samples: int  # a class
    classifier_steps: int
    starts: int  # networks an arm, whose probabilities are averaged in accuracy


FULL = Effort((10, 30, 100), 6, 400, 100, 400, 2)
QUICK = Effort((10, 30), 2, 20, 10, 30, 1)


# A class-conditional VAE: p(z) N(0, I), p(x | z, y), q(z | x, y).


class Conditional(PyroModule):
    """x_d ~ Bernoulli(sigmoid(network(z, y)_d)); a batch is {"x": (N, D), "y": (N,)}."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.MLP(LATENT_DIM + NUM_CLASSES, [64], SIDE * SIDE)

    def logits(self, z: Tensor, y: Tensor) -> Tensor:
        code = one_hot(y, NUM_CLASSES).to(z)
        return self.network(torch.cat([z, code.expand(*z.shape[:-1], -1)], -1))

    def forward(self, x: dict[str, Tensor]) -> None:
        with pyro.plate("data", len(x["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(x["x"].new_zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z, x["y"])).to_event(1), obs=x["x"])


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.MLP(SIDE * SIDE + NUM_CLASSES, [64], 2 * LATENT_DIM)

    def forward(self, x: dict[str, Tensor]) -> None:
        loc, log_scale = self.network(torch.cat([x["x"], one_hot(x["y"], NUM_CLASSES).to(x["x"])], -1)).chunk(2, -1)
        with pyro.plate("data", len(x["x"]), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def trained(x: Tensor, y: Tensor, steps: int, seed: int) -> Conditional:
    """By SVI, batches drawn with replacement."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        model = Conditional()
        svi = ppvae.SVI(model, Guide(), functools.partial(torch.optim.Adam, lr=3e-3))
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH,))
            svi.step({"x": x[rows], "y": y[rows]})
    return model.requires_grad_(False)


def sampled(model: Conditional, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (10 n, 64) of 0 and 1, and the classes that they were made for."""
    y = torch.arange(NUM_CLASSES).repeat_interleave(per_class)
    z = torch.randn(len(y), LATENT_DIM, generator=torch.Generator().manual_seed(seed))
    return (model.logits(z, y) > 0).float(), y


# Classifiers, many at once.


@dataclass(frozen=True)
class Part:
    """What one classifier is trained on: half of each batch ``real``, half ``added``; all real where nothing is added."""

    x: Tensor
    y: Tensor
    added_x: Tensor | None = None
    added_y: Tensor | None = None
    shifted: str = ""  # "added": the added half are shifted images of x; "real": the real half are

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        half = BATCH // 2
        rows = torch.randint(len(self.x), (BATCH,), generator=generator)
        x, y = self.x[rows], self.y[rows]
        if self.shifted == "added":
            x = torch.cat([x[:half], shifted(x[half:], generator)])
        elif self.shifted == "real":
            x = torch.cat([shifted(x[:half], generator), x[half:]])
        if self.added_x is not None and self.added_y is not None and len(self.added_x):
            more = torch.randint(len(self.added_x), (half,), generator=generator)
            x, y = torch.cat([x[:half], self.added_x[more]]), torch.cat([y[:half], self.added_y[more]])
        return x, y


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, 64) moved by -1, 0 or 1 pixel across and down, empty where it came from."""
    n = len(x)
    padded = pad(x.reshape(n, SIDE, SIDE), (1, 1, 1, 1))
    across, down = torch.randint(3, (2, n), generator=generator)
    rows, columns = (torch.arange(SIDE) + start[:, None] for start in (down, across))
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].reshape(n, -1)


def classifiers(parts: Sequence[Part], steps: int, seeds: Sequence[int]) -> "Classifiers":
    """A network of one hidden layer for each part, trained side by side by Adam with weight decay; parts of a seed start alike."""
    starts, generators = [], [torch.Generator().manual_seed(seed) for seed in seeds]
    for seed in seeds:
        torch.manual_seed(seed)
        layers = torch.nn.Linear(SIDE * SIDE, HIDDEN), torch.nn.Linear(HIDDEN, NUM_CLASSES)
        starts.append([p.detach() for layer in layers for p in (layer.weight.mT, layer.bias[None])])
    parameters = [torch.stack(p).requires_grad_() for p in zip(*starts, strict=True)]
    found = Classifiers(*parameters)
    optimizer = torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batches = [part.batch(generator) for part, generator in zip(parts, generators, strict=True)]
        x, y = (torch.stack(each) for each in zip(*batches, strict=True))
        optimizer.zero_grad()
        # summed over networks: each has its own mean loss, and no gradient of another's
        (cross_entropy(found.logits(x).flatten(0, 1), y.flatten()) * len(parts)).backward()
        optimizer.step()
        schedule.step()
    return Classifiers(*(p.detach() for p in parameters))


@dataclass(frozen=True)
class Classifiers:
    """M networks; weights (M, in, out), biases (M, 1, out)."""

    weight: Tensor
    bias: Tensor
    weight_out: Tensor
    bias_out: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """(M, N, 64) -> (M, N, 10)."""
        return (x @ self.weight + self.bias).relu() @ self.weight_out + self.bias_out

    def probabilities(self, x: Tensor) -> Tensor:
        """Of the same images for all, (N, 64) -> (M, N, 10)."""
        return self.logits(x.expand(len(self.weight), *x.shape)).softmax(-1)


# One size: small sets, VAEs, screeners, classifiers.


def small_set(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Rows, as many of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:per_class] for c in range(NUM_CLASSES)]).sort().values


def accepted(probabilities: Tensor, y: Tensor) -> Tensor:
    """(n,) whether each image is taken for the class it was made for, confidently."""
    return probabilities.gather(1, y[:, None])[:, 0] >= CONFIDENT


@dataclass(frozen=True)
class Size:
    """What one size gave.

    Attributes:
        accuracy: Arm -> accuracy on test data, by repeat.
        gain: Arm -> (mean difference to real only, its error over repeats, its error over test images).
        versus: "leaking - honest", "all - leaking", "honest - samples": the same of these.
        kept: Screener -> share of samples that it accepts, by repeat; ``screener``, its own accuracy on test data.
    """

    per_class: int
    accuracy: dict[str, list[float]]
    gain: dict[str, tuple[float, float, float]]
    versus: dict[str, tuple[float, float, float]]
    kept: dict[str, list[float]]
    screener: dict[str, list[float]]


def compared(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """Of right answers (repeats, N) in [0, 1]: mean difference, its standard error over repeats and over images."""
    off = one - other
    value, over_repeats = mean_and_se(off.mean(1))
    return value, over_repeats, mean_and_se(off.mean(0))[1]


def measured(per_class: int, pool: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], effort: Effort) -> tuple[Size, dict[str, Tensor]]:
    """And images of the first repeat: samples, one of each class, and those that each screener rejects."""
    x, y = pool
    chosen = [small_set(y, per_class, seed) for seed in range(effort.repeats)]
    rest = [torch.ones(len(y), dtype=torch.bool).index_fill(0, rows, False) for rows in chosen]
    made = [sampled(trained(x[rows], y[rows], effort.vae_steps, seed), effort.samples, seed) for seed, rows in enumerate(chosen)]
    screeners = classifiers(
        [Part(x[rows], y[rows]) for rows in chosen] + [Part(x[others], y[others]) for others in rest],
        effort.classifier_steps,
        [1000 + seed for _ in range(2) for seed in range(effort.repeats)],
    )
    right = (screeners.probabilities(test[0]).argmax(-1) == test[1]).double().mean(1).reshape(2, -1)
    passed: dict[str, list[Tensor]] = {"honest": [], "leaking": []}
    for i, (kind, kept) in enumerate(passed.items()):
        for seed, (images, classes) in enumerate(made):
            own = i * effort.repeats + seed
            one = Classifiers(*(p[own : own + 1] for p in (screeners.weight, screeners.bias, screeners.weight_out, screeners.bias_out)))
            kept.append(accepted(one.probabilities(images)[0], classes))
        assert kind in ARMS
    parts: dict[str, list[Part]] = {arm: [] for arm in ARMS}
    for seed, rows in enumerate(chosen):
        real, (images, classes) = (x[rows], y[rows]), made[seed]
        parts["real"].append(Part(*real))
        parts["samples"].append(Part(*real, images, classes))
        for kind, kept in passed.items():
            parts[kind].append(Part(*real, images[kept[seed]], classes[kept[seed]]))
        parts["shifts"].append(Part(*real, shifted="added"))
        parts["both"].append(Part(*real, images, classes, shifted="real"))
        parts["all"].append(Part(x, y))
    asked = [(part, 7919 * start + seed) for arm in ARMS for start in range(effort.starts) for seed, part in enumerate(parts[arm])]
    found = classifiers([part for part, _ in asked], effort.classifier_steps, [seed for _, seed in asked])
    answers = (found.probabilities(test[0]).argmax(-1) == test[1]).double()
    by_arm = dict(zip(ARMS, answers.reshape(len(ARMS), effort.starts, effort.repeats, -1).mean(1), strict=True))
    size = Size(
        per_class,
        {arm: value.mean(1).tolist() for arm, value in by_arm.items()},
        {arm: compared(value, by_arm["real"]) for arm, value in by_arm.items() if arm != "real"},
        {f"{a} - {b}": compared(by_arm[a], by_arm[b]) for a, b in (("leaking", "honest"), ("all", "leaking"), ("honest", "samples"))},
        {kind: [k.double().mean().item() for k in kept] for kind, kept in passed.items()},
        dict(zip(passed, right.tolist(), strict=True)),
    )
    images, _ = made[0]
    every = torch.arange(NUM_CLASSES) * effort.samples
    rejected = {kind: images[~kept[0]] for kind, kept in passed.items()}
    return size, {"samples": images[every], **rejected}


# What is told.


def told(difference: tuple[float, float, float]) -> str:
    value, over_repeats, over_images = (100 * part for part in difference)
    return f"{value:+.2f} ± {over_repeats:.2f} ± {over_images:.2f}"


def error(difference: tuple[float, float, float]) -> float:
    """Both errors together. Repeats share their test images: the one does not hold the other."""
    return math.hypot(difference[1], difference[2])


def table_text(sizes: Sequence[Size]) -> str:
    lines = ["accuracy on test data, %, ± over repeats; gain over real only, points, ± over repeats ± over test images"]
    lines.append(f"{'':<30}" + "".join(f"{f'{s.per_class} per class':>42}" for s in sizes))
    for arm, label in ARMS.items():
        cells = []
        for s in sizes:
            value, se = mean_and_se(torch.tensor(s.accuracy[arm]))
            cells.append(f"{100 * value:.2f} ± {100 * se:.2f}" + (f"  {told(s.gain[arm])}" if arm in s.gain else " " * 23))
        lines.append(f"{label:<30}" + "".join(f"{cell:>42}" for cell in cells))
    for kind in ("honest", "leaking"):
        kept = ", ".join(f"{np.mean(s.kept[kind]):.3f}" for s in sizes)
        right = ", ".join(f"{100 * np.mean(s.screener[kind]):.2f}" for s in sizes)
        lines.append(f"{kind} screener: accepts {kept} of the samples; itself right on {right} % of test data")
    for name in sizes[0].versus:
        lines.append(f"{name}: " + "; ".join(f"{told(s.versus[name])} at {s.per_class}" for s in sizes))
    return "\n".join(lines)


def claims(sizes: Sequence[Size]) -> Claims:
    first = sizes[0]

    def at_each(pick: Mapping[int, tuple[float, float, float]]) -> str:
        return "; ".join(f"{told(value)} at {n}" for n, value in pick.items()) + " points"

    samples, screened = ({s.per_class: s.gain[arm] for s in sizes} for arm in ("samples", "honest"))
    changed = {s.per_class: s.versus["honest - samples"] for s in sizes}
    leak, direct = first.versus["leaking - honest"], {s.per_class: s.versus["all - leaking"] for s in sizes[:2]}
    kept = {kind: mean_and_se(torch.tensor(first.kept[kind])) for kind in first.kept}
    more, more_se = mean_and_se(torch.tensor(first.kept["honest"]) - torch.tensor(first.kept["leaking"]))
    shifts = first.gain["shifts"]
    return {
        f"shifts help at {first.per_class} per class": (shifts[0] > 2 * error(shifts), f"{told(shifts)} points"),
        "samples do not help, at any size": (
            not any(g[0] > max(0.01, 2 * error(g)) for g in samples.values()),
            at_each(samples),
        ),
        "nor does the honest screener change that by a point": (
            all(abs(c[0]) <= 0.01 for c in changed.values()),
            f"{at_each(changed)}; over real only {at_each(screened)}",
        ),
        f"the leaking screener does better than the honest one at {first.per_class}": (leak[0] > 2 * error(leak), f"{told(leak)} points"),
        "all digits do better than samples screened with them": (
            all(d[0] > 2 * error(d) for d in direct.values()),
            at_each(direct),
        ),
        f"the leaking screener rejects more at {first.per_class} per class": (
            more > 2 * more_se,
            ", ".join(f"{kind} accepts {value:.3f} ± {se:.3f}" for kind, (value, se) in kept.items()),
        ),
    }


def figure(sizes: Sequence[Size], images: Sequence[Mapping[str, Tensor]]) -> Figure:
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 3.4), layout="constrained")
        upper, lower = drawn.subfigures(2, 1, height_ratios=(2, 1))
        accuracy, gain = upper.subplots(1, 2, width_ratios=(1, 1.5))
        place = np.arange(len(sizes))
        for k, (arm, label) in enumerate(ARMS.items()):
            values = [mean_and_se(torch.tensor(s.accuracy[arm])) for s in sizes]
            accuracy.errorbar(place + 0.07 * (k - 3), [100 * v for v, _ in values], [200 * se for _, se in values], color=COLOURS[arm],
                              marker="o", elinewidth=0.7, linestyle="-" if arm != "all" else "--", linewidth=0.8)  # fmt: skip
            if arm not in ("real", "all"):
                gain.errorbar(place + 0.13 * (k - 3), [100 * s.gain[arm][0] for s in sizes], [200 * error(s.gain[arm]) for s in sizes],
                              color=COLOURS[arm], marker="o", linestyle="", elinewidth=0.8, label=label)  # fmt: skip
        for axes in (accuracy, gain):
            axes.set_xticks(place, [str(s.per_class) for s in sizes])
            axes.set_xlabel("labelled digits per class")
        accuracy.set_ylabel("test accuracy (%)")
        accuracy.plot([], [], color=COLOURS["real"], marker="o", label=ARMS["real"])
        accuracy.plot([], [], color=COLOURS["all"], marker="o", linestyle="--", label=ARMS["all"])
        accuracy.legend(loc="lower right")
        gain.axhline(0, color=plots.GREY, linewidth=0.6)
        gain.set_ylabel("gain over real only (points)")
        gain.legend(loc="lower left")
        titles = {"real": "real", "samples": "samples", "honest": "rejected, honest", "leaking": "rejected, leaking"}
        for axes, s, shown in zip(lower.subplots(1, len(sizes), squeeze=False)[0], sizes, images, strict=True):
            rows = [torch.cat([part[:NUM_CLASSES], torch.zeros(max(0, NUM_CLASSES - len(part)), SIDE * SIDE)]) for part in shown.values()]
            axes.imshow(strips(rows, NUM_CLASSES, SIDE), cmap="gray_r", vmin=0, vmax=1)
            axes.set_yticks([(SIDE + 2) * (i + 0.5) - 0.5 for i in range(len(rows))], [titles[k] for k in shown])
            axes.set_xticks([])
            axes.tick_params(length=0)
            axes.set_title(f"{s.per_class} per class")
            if s is not sizes[0]:
                axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "augmentation", arguments)
    effort = QUICK if options.quick else FULL
    data = ppvae.data.load("digits", binarize="threshold")
    pool = torch.cat([data.train.x, data.validation.x]), torch.cat([data.train.labels, data.validation.labels])
    test = data.test.x, data.test.labels
    found = [kept(n, pool, test, effort, options.out) for n in effort.sizes]
    sizes = [s for s, _ in found]
    real = torch.stack([pool[0][pool[1] == c][0] for c in range(NUM_CLASSES)])
    images = [{"real": real, **shown} for _, shown in found]
    record = {"effort": asdict(effort), "sizes": [asdict(s) for s in sizes]}
    experiment.finish(options.out, "augmentation", table_text(sizes), claims(sizes), figure(sizes, images), record)


def kept(
    per_class: int, pool: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], effort: Effort, out: Path
) -> tuple[Size, dict[str, Tensor]]:
    """What a size gave, measured once for each effort."""
    path = out / f"{per_class}-per-class.json"
    asked = json.loads(json.dumps(asdict(effort)))
    if path.exists() and (before := json.loads(path.read_text()))["effort"] == asked:
        return Size(**before["size"]), {name: torch.tensor(part) for name, part in before["images"].items()}
    size, images = measured(per_class, pool, test, effort)
    out.mkdir(parents=True, exist_ok=True)
    shown = {name: part[:NUM_CLASSES].tolist() for name, part in images.items()}
    path.write_text(json.dumps({"effort": asked, "size": asdict(size), "images": shown}))
    return size, images


if __name__ == "__main__":
    main()
