"""Annealing beside importance weighting, and an encoder that overfits while its decoder stands still.

Two experiments after Wu, Burda, Salakhutdinov, Grosse (2017), "On the quantitative analysis of decoder-based generative models".

beside      log p(x) of test images under a trained pair: importance weights from the encoder beside annealing from the prior, from the
            encoder's posterior and from refined posteriors. Expected: annealing that starts from the encoder needs about a tenth of the
            steps that it needs from the prior, and the encoder's own bound stays low whatever the number of its particles.
overfitted  A small pair trained far too long on few images. Expected: the encoder's bound on held-out images falls while annealing
            holds. In the paper the decoder was not overfitted; on so few images it is, so the pair is trained in two ways: together, and
            with the decoder frozen after a while. Then log p(x) cannot move, and every fall of the bound is the encoder's.

    python examples/inference_suboptimality.py train --only main --main-run runs/fashion-mnist   # trains the pair of the first experiment
    python examples/annealing.py                                         # both, a quarter of an hour of one core; then the report
    python examples/annealing.py beside --images 100                     # one of them; --quick: seconds, to see that it works
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ppvae
from ppvae import analysis, guides, models, nn
from ppvae.analysis import plots
from ppvae.errors import PpvaeError, RunError

EXPERIMENTS = ("beside", "overfitted")
SPLITS = ("test", "train")


@dataclass(frozen=True)
class Curve:
    """Annealing from one start on one schedule, with T = ``steps`` temperatures, fewest first."""

    start: str
    schedule: str
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.start}, {self.schedule}"


@dataclass(frozen=True)
class Protocol:
    """What is run; ``SETTINGS`` and ``Protocol.settings`` put it beside the paper's.

    Attributes:
        data: Thresholded images.
        images: The first experiment is on the first so many test images.
        particles: K of the encoder's importance weights, fewest first.
        chains, leapfrog: Of all annealing.
        curves: Starts and schedules that are compared.
        reference: Temperatures of the reference, annealing from refined posteriors.
        train_images: The small pair sees the first so many training images.
        compared: It is measured on the first so many training and test images.
        latent_dim, hidden, batch_size, learning_rate: Of the small pair.
        epochs: After which it is measured, fewest first.
        frozen: One of ``epochs``: from there on a copy of the pair is trained with its decoder frozen.
        frozen_epochs: After which the copy is measured, those of the decoder included.
        bound: K of its encoder's bound.
        temperatures: T of its annealing, from refined posteriors.
        checked: T of annealing from the prior, which never saw the encoder, where the decoder is frozen and where training ends.
    """

    data: str = "fashion-mnist"
    images: int = 50
    particles: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    chains: int = 16
    leapfrog: int = 3
    curves: tuple[Curve, ...] = (
        Curve("refined", "linear", (10, 30, 100)),
        Curve("guide", "linear", (10, 30, 100, 300)),
        Curve("guide", "sigmoid", (10, 30, 100, 300)),
        Curve("prior", "linear", (100, 300, 1000)),
        Curve("prior", "sigmoid", (100, 300, 1000, 3000)),
        Curve("prior", "equal", (100, 300, 1000, 3000)),
    )
    reference: int = 1000
    train_images: int = 1000
    compared: int = 100
    latent_dim: int = 20
    hidden: tuple[int, ...] = (200, 200)
    batch_size: int = 100
    learning_rate: float = 1e-3
    epochs: tuple[int, ...] = (25, 50, 100, 200, 400)
    frozen: int = 100
    frozen_epochs: tuple[int, ...] = (200, 400, 800, 1600)
    bound: int = 1000
    temperatures: int = 100
    checked: int = 300
    seed: int = 0

    @property
    def settings(self) -> tuple[tuple[str, str, str], ...]:
        """Name, the paper's, ours."""
        p = self
        widths = "-".join(map(str, p.hidden))
        return (
            ("beside: pair", "an IWAE on binarised MNIST", f"a VAE on thresholded {p.data}"),
            ("beside: images", "10,000 test", f"first {p.images} test"),
            ("beside: particles of the encoder", "10,000; 100,000", "; ".join(f"{k:,}" for k in p.particles)),
            ("beside: steps from the prior", "1,000; 10,000", f"{_range(p.curves, 'prior')}"),
            ("beside: steps from the encoder", "100; 1,000", f"{_range(p.curves, 'guide')}"),
            ("beside: schedule", "sigmoid", "sigmoid; linear; from the prior also steps of equal variance, which a pilot finds"),
            ("beside: errors", "none: means are compared", f"each image against annealing from refined posteriors, T = {p.reference:,}"),
            ("chains", "16", f"{p.chains}"),
            ("transitions", "one HMC trajectory of 10 leapfrog steps", f"one of {p.leapfrog}, in the start's whitened coordinates"),
            ("step size", "adapted during the run, acceptance 0.65", "per datum and temperature by a pilot, acceptance 0.78, then frozen"),
            ("overfitted: data", "continuous MNIST", f"thresholded {p.data}, the first {p.train_images:,} training images"),
            ("overfitted: pair", "decoder 50-1024-1024-1024-784, tanh", f"decoder {p.latent_dim}-{widths}-pixels, ELU, encoder alike"),
            ("overfitted: particles of the bound", "not known to us", f"{p.bound:,}"),
            ("overfitted: annealing", "from the prior, 10,000 steps", f"from refined posteriors, {p.temperatures} steps"),
            ("overfitted: epochs", "the bound falls after 200", f"{', '.join(map(str, p.epochs))}; frozen: to {p.frozen_epochs[-1]:,}"),
            ("overfitted: decoder", "trained on", f"trained on; and frozen after {p.frozen} epochs"),
        )


def _range(curves: Sequence[Curve], start: str) -> str:
    steps = sorted({t for curve in curves if curve.start == start for t in curve.steps})
    return "; ".join(f"{t:,}" for t in steps)


WU_2017 = Protocol()
QUICK = Protocol(
    data="digits",
    images=6,
    particles=(10, 100),
    chains=4,
    leapfrog=2,
    curves=(Curve("refined", "linear", (4,)), Curve("guide", "linear", (4, 12)), Curve("prior", "sigmoid", (10, 40))),
    reference=30,
    train_images=40,
    compared=6,
    latent_dim=2,
    hidden=(12,),
    batch_size=20,
    learning_rate=1e-2,
    epochs=(2, 4, 8),
    frozen=4,
    frozen_epochs=(8,),
    bound=30,
    temperatures=8,
    checked=20,
)
# Mean over 10,000 binarised test images of MNIST, nats, by steps or particles.
PUBLISHED = {
    "prior, sigmoid": {1000: -85.679, 10_000: -85.619},
    "guide, sigmoid": {100: -85.754, 1000: -85.621},
    "importance weights": {10_000: -86.902, 100_000: -86.464},
}


@dataclass(frozen=True, eq=False)
class Point:
    """An estimate of log p(x) of each image: ``size`` is T or K, ``values`` (N,) nats, ``evaluations`` of log p(x, z) per image."""

    size: int
    values: Tensor
    evaluations: int

    def rms(self, truth: Tensor) -> float:
        """Root mean square distance to the truth."""
        return math.sqrt((self.values - truth).square().mean().item())


def kept(path: Path, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before with the same key, or what ``measure`` gives now, written to ``path``."""
    wanted = json.loads(json.dumps(key))
    if path.exists() and (record := json.loads(path.read_text()))["key"] == wanted:
        return dict(record)
    record = {"key": wanted} | measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return record


def pair_of(p: Protocol, pixels: int) -> tuple[models.Bernoulli, guides.DiagonalNormal]:
    """The small pair, untrained."""
    pyro.set_rng_seed(p.seed)
    model = models.Bernoulli(nn.MLP(p.latent_dim, p.hidden, pixels, activation=torch.nn.ELU), latent_dim=p.latent_dim)
    guide = guides.DiagonalNormal(nn.MLP(pixels, p.hidden, 2 * p.latent_dim, activation=torch.nn.ELU), latent_dim=p.latent_dim)
    return model, guide


# ---- annealing beside importance weighting


def beside(run: ppvae.Run, test: ppvae.data.Data, p: Protocol, out: Path) -> dict[str, list[Point]]:
    """Every curve on the test images, the importance weights and the reference among them; what was measured before is read."""
    where = {"run": str(run.folder), "step": run.history[-1]["step"], "data": test.describe(), "seed": p.seed}

    def annealed(curve: Curve, steps: int, seed: int) -> Point:
        def measure() -> dict[str, Any]:
            found = analysis.annealed_log_likelihood(
                run.model,
                test,
                guide=run.guide,
                start=curve.start,
                schedule=curve.schedule,
                num_temperatures=steps,
                num_chains=p.chains,
                num_leapfrog=p.leapfrog,
                seed=seed,
            )
            print(found, flush=True)
            return {"values": found.pointwise.tolist(), "evaluations": int(found.num_evaluations[0])}

        key = where | asdict(replace(curve, steps=(steps,))) | {"chains": p.chains, "leapfrog": p.leapfrog, "seed": seed}
        path = out / "beside" / f"{curve.name.replace(', ', '-')}-{steps}-{seed}.json"
        return _point(steps, kept(path, key, measure))

    def weighted(particles: int) -> Point:
        def measure() -> dict[str, Any]:
            found = analysis.log_likelihood(run.model, run.guide, test, num_particles=particles, second=None, seed=p.seed)
            print(found, flush=True)
            return {"values": found.pointwise.tolist(), "evaluations": int(found.num_evaluations[0])}

        return _point(particles, kept(out / "beside" / f"importance-{particles}.json", where | {"particles": particles}, measure))

    reference = annealed(Curve("refined", "linear", (p.reference,)), p.reference, p.seed + 1)  # other draws than any curve's
    found = {"reference": [reference], "importance weights": [weighted(k) for k in p.particles]}
    return found | {curve.name: [annealed(curve, t, p.seed) for t in curve.steps] for curve in p.curves}


def _point(size: int, record: Mapping[str, Any]) -> Point:
    return Point(size, torch.tensor(record["values"], dtype=torch.float64), record["evaluations"])


def steps_for(error: float, steps: Sequence[int], errors: Sequence[float]) -> float:
    """Steps that reach an error, from a curve of errors by steps: a line between neighbours, both axes logarithmic.

    Returns:
        The fewest steps of the curve where these are good enough already, inf where the most are not.
    """
    if errors[0] <= error:
        return float(steps[0])
    for i in range(1, len(steps)):
        if errors[i] <= error:
            share = math.log(errors[i - 1] / error) / math.log(errors[i - 1] / errors[i])
            return math.exp((1 - share) * math.log(steps[i - 1]) + share * math.log(steps[i]))
    return math.inf


@dataclass(frozen=True)
class Saving:
    """How many times fewer steps annealing from the encoder takes to the error of annealing from the prior.

    Attributes:
        prior, guide: The curves.
        steps, error: Of the curve from the prior: T and its root mean square error, nats.
        ratio: T over the steps of the curve from the guide at that error; 0 where it never reaches it.
        low, high: 95 % of the ratios of resampled images.
        at_least: The guide's shortest run is already better, so that the ratio is larger than ``ratio``.
    """

    prior: str
    guide: str
    steps: int
    error: float
    ratio: float
    low: float
    high: float
    at_least: bool

    @property
    def seen(self) -> str:
        """Whether it is "about a tenth", which is taken to mean a factor of 5 to 20, or less than that."""
        if self.low >= 5:
            return "seen" if self.low <= 20 else "seen, and more"
        return "not seen" if self.high < 5 and not self.at_least else "not decided"

    def __str__(self) -> str:
        more = "at least " if self.at_least else ""
        return (
            f"{self.prior}, T = {self.steps:,}: error {self.error:.3f} nats; {self.guide}: {more}{self.ratio:.1f} times fewer steps "
            f"({self.low:.1f} to {self.high:.1f}) - {self.seen}"
        )


def savings(found: Mapping[str, Sequence[Point]], resamples: int = 1000) -> list[Saving]:
    """Each length of each annealing from the prior against each annealing from the guide."""
    truth = found["reference"][0].values
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(len(truth), (resamples, len(truth)), generator=generator)
    errors: dict[str, list[list[float]]] = {}  # by curve and point: of all images, then of every resampling
    for name, points in found.items():
        squares = [(point.values - truth).square() for point in points]
        errors[name] = [[s.mean().sqrt().item(), *s[images].mean(1).sqrt().tolist()] for s in squares]
    told = []
    for prior in (name for name in found if name.startswith("prior")):
        for guide in (name for name in found if name.startswith("guide")):
            lengths = [point.size for point in found[guide]]
            for i, point in enumerate(found[prior]):
                ratios = [point.size / steps_for(error, lengths, [e[j] for e in errors[guide]]) for j, error in enumerate(errors[prior][i])]
                low, high = torch.tensor(ratios[1:]).quantile(torch.tensor([0.025, 0.975])).tolist()
                error = errors[prior][i][0]
                told.append(Saving(prior, guide, point.size, error, ratios[0], low, high, errors[guide][0][0] <= error))
    return told


def table_beside(found: Mapping[str, Sequence[Point]]) -> str:
    """Each estimate: its size, cost, mean, mean and root mean square error against the reference; the paper's means beside them."""
    truth = found["reference"][0].values
    lines = [f"{'':<20}{'T or K':>9}{'evaluations':>13}{'mean':>10}{'mean error':>12}{'rms error':>11}{'largest':>9}   paper, MNIST: mean"]
    for name, points in found.items():
        published = dict(PUBLISHED.get(name, {}))
        for point in points:
            error = point.values - truth
            own = f"{name:<20}{point.size:>9,}{point.evaluations:>13,}{point.values.mean():>10.3f}"
            if name != "reference":
                own += f"{error.mean():>12.3f}{point.rms(truth):>11.3f}{error.abs().max():>9.2f}"
            paper = published.pop(point.size, None)
            lines.append(own + (f"   {paper:.3f}" if paper is not None else ""))
        lines += [f"{name:<20}{size:>9,}{'not run here':>55}{'':>9}   {paper:.3f}" for size, paper in published.items()]
    return "\n".join(lines)


LOOKS: dict[str, dict[str, Any]] = {
    "importance weights": {"color": plots.BLACK, "marker": "x", "linestyle": ":"},
    "refined, linear": {"color": plots.GREEN, "marker": "^"},
    "guide, linear": {"color": plots.BLUE, "marker": "o"},
    "guide, sigmoid": {"color": plots.BLUE, "marker": "o", "linestyle": "--", "fillstyle": "none"},
    "prior, linear": {"color": plots.VERMILION, "marker": "s", "linestyle": ":"},
    "prior, sigmoid": {"color": plots.VERMILION, "marker": "s", "linestyle": "--", "fillstyle": "none"},
    "prior, equal": {"color": plots.VERMILION, "marker": "s"},
}


def figure_beside(found: Mapping[str, Sequence[Point]]) -> Figure:
    """Root mean square error by annealing steps, and by what they cost."""
    truth = found["reference"][0].values
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.7), layout="constrained")
        by_steps, by_cost = drawn.subplots(1, 2, sharey=True)
        for name, points in found.items():
            if name == "reference":
                continue
            errors = [point.rms(truth) for point in points]
            label = "importance weights, encoder" if name == "importance weights" else f"annealed from {name}"
            by_cost.plot([point.evaluations for point in points], errors, **LOOKS[name], label=label)
            if name != "importance weights":
                by_steps.plot([point.size for point in points], errors, **LOOKS[name])
        for axes, what in ((by_steps, "annealing steps T"), (by_cost, "evaluations of log p(x, z) per image")):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel(what)
        by_steps.set_ylabel("rms error of log p(x), nats")
        drawn.legend(*by_cost.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def report_beside(found: Mapping[str, Sequence[Point]], p: Protocol, out: Path) -> None:
    """Print the table and the claim; write them and the figure."""
    told = savings(found)
    lines = [
        *(f"{name}: {paper} | here: {here}" for name, paper, here in p.settings if not name.startswith("overfitted")),
        "",
        table_beside(found),
        "",
        "Nats; errors against the reference, which has an error of its own. Evaluations: values and gradients alike, with pilots and",
        "refinement. In the paper's means, 100 steps from the encoder lie between 1,000 from the prior and importance weighting, and",
        "1,000 steps from the encoder reach 10,000 from the prior.",
        "",
        "Steps from the encoder against steps from the prior, at the same error (95 % of resampled images); expected: about 10 times fewer",
        *map(str, told),
    ]
    print("\n".join(lines))
    truth = found["reference"][0].values
    record = {
        "protocol": asdict(p),
        "settings": [dict(zip(("name", "paper", "here"), row, strict=True)) for row in p.settings],
        "published": PUBLISHED,
        "curves": {
            name: [
                {
                    "size": point.size,
                    "evaluations": point.evaluations,
                    "mean": point.values.mean().item(),
                    "mean_error": (point.values - truth).mean().item(),
                    "rms_error": point.rms(truth),
                    "values": point.values.tolist(),
                }
                for point in points
            ]
            for name, points in found.items()
        },
        "savings": [asdict(saving) | {"seen": saving.seen} for saving in told],
    }
    _write(out, "beside", lines, record, figure_beside(found))


# ---- the encoder that overfits


@dataclass(frozen=True, eq=False)
class Stage:
    """The small pair after so many epochs, on some images: (N,) each, nats.

    Attributes:
        bound: The encoder's importance-weighted bound.
        annealed: From refined posteriors.
        checked: Annealed from the prior; None where that was not run.
    """

    bound: Tensor
    annealed: Tensor
    checked: Tensor | None = None

    @property
    def difference(self) -> Tensor:
        """What the encoder's bound misses of log p(x)."""
        return self.annealed - self.bound


Pair = tuple[models.Bernoulli, guides.DiagonalNormal]
Stages = Mapping[tuple[str, str], Mapping[int, Stage]]  # (training, split) -> epochs -> stage


def overfitted(data: Any, p: Protocol, out: Path) -> Stages:
    """Train together and, from a copy, with the decoder frozen, a stage at a time; measure each stage or read what was measured."""
    train, images = data.train[: p.train_images], {"test": data.test[: p.compared], "train": data.train[: p.compared]}
    together, frozen = pair_of(p, train.x.shape[1]), pair_of(p, train.x.shape[1])
    found: dict[tuple[str, str], dict[int, Stage]] = {(way, split): {} for way in ("together", "frozen") for split in SPLITS}
    for epochs in p.epochs:
        run = _trained(together, train, epochs, p, out / "together")
        for split in SPLITS:
            check = split == "test" and epochs in (p.frozen, p.epochs[-1])
            found["together", split][epochs] = _stage("together", split, epochs, run, len(run.history), images[split], check, p, out)
        if epochs == p.frozen:
            _copy(together, frozen, run, out / "frozen", epochs)
            for split in SPLITS:
                found["frozen", split][epochs] = found["together", split][epochs]
            for later in p.frozen_epochs:
                run = _trained(frozen, train, later - p.frozen, p, out / "frozen")
                for split in SPLITS:
                    stage = _stage("frozen", split, later, run, len(run.history) + p.frozen, images[split], False, p, out)
                    found["frozen", split][later] = stage
    return found


def _trained(pair: Pair, train: ppvae.data.Data, epochs: int, p: Protocol, folder: Path) -> ppvae.Run:
    adam = functools.partial(torch.optim.Adam, lr=p.learning_rate)
    return ppvae.fit(*pair, train, epochs=epochs, batch_size=p.batch_size, optimizer=adam, seed=p.seed, out=folder, resume=True)


def _copy(together: Pair, frozen: Pair, run: ppvae.Run, folder: Path, epochs: int) -> None:
    """Give the second pair the parameters of the first, and freeze its decoder; where it was trained before, its checkpoint rules."""
    if len(run.history) != epochs and not (folder / "config.json").exists():
        raise RunError(
            f"the pair whose decoder is frozen starts from {run.folder} after {epochs} epochs, which has {len(run.history)} by now",
            mend=f"delete {run.folder}, and it is trained again",
        )
    for source, copied in zip(together, frozen, strict=True):
        copied.load_state_dict(source.state_dict())
    frozen[0].eval().requires_grad_(False)  # Pyro warns of frozen parameters in training mode, which is no other mode here


def _stage(
    way: str, split: str, epochs: int, run: ppvae.Run, trained: int, x: ppvae.data.Data, check: bool, p: Protocol, out: Path
) -> Stage:
    annealed = functools.partial(
        analysis.annealed_log_likelihood, run.model, x, guide=run.guide, num_chains=p.chains, num_leapfrog=p.leapfrog, seed=p.seed
    )

    def measure() -> dict[str, Any]:
        if trained != epochs:
            raise RunError(
                f"{run.folder} was trained for {trained} epochs, and the stage after {epochs} has not been measured",
                mend=f"delete {out}, and all of it is trained and measured again",
            )
        bound = analysis.log_likelihood(run.model, run.guide, x, num_particles=p.bound, second=None, seed=p.seed)
        above = annealed(start="refined", num_temperatures=p.temperatures)
        print(f"{way}, {split}, {epochs} epochs: {bound}\n    {above}", flush=True)
        return {"bound": bound.pointwise.tolist(), "annealed": above.pointwise.tolist()}

    def measure_again() -> dict[str, Any]:
        if trained != epochs:
            raise RunError(f"{run.folder} was trained for {trained} epochs, and {epochs} are to be checked", mend=f"delete {out}")
        found = annealed(start="prior", num_temperatures=p.checked)
        print(f"    {found}", flush=True)
        return {"checked": found.pointwise.tolist()}

    # what rules the first experiment, and other stages, rules none of these numbers
    own = asdict(replace(p, curves=(), images=0, particles=(), reference=0, epochs=(), frozen_epochs=(), checked=0))
    key, name = {"data": x.describe(), "epochs": epochs, "protocol": own}, f"{way}-{split}-{epochs}"
    record = kept(out / "overfitted" / f"{name}.json", key, measure)
    if check:
        record |= kept(out / "overfitted" / f"{name}-prior.json", key | {"checked": p.checked}, measure_again)
    return Stage(**{what: torch.tensor(record[what], dtype=torch.float64) for what in ("bound", "annealed", "checked") if what in record})


def _se(values: Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item()


@dataclass(frozen=True)
class Fall:
    """From one stage to the last on the same images, means and errors of paired differences, nats.

    Attributes:
        way, split, start, end: Which training, which images, after how many epochs.
        bound, annealed: By how much each rose (fell, if negative).
        widened: By how much more the bound fell than annealing.
        bound_se, annealed_se, widened_se: Over images.
    """

    way: str
    split: str
    start: int
    end: int
    bound: float
    bound_se: float
    annealed: float
    annealed_se: float
    widened: float
    widened_se: float

    @property
    def seen(self) -> str:
        """Whether the bound falls, by two errors, while annealing holds: falls by less than a tenth of that."""
        if not self.bound < -2 * self.bound_se:
            return "not seen: the bound does not fall"
        if self.annealed < 0.1 * self.bound:
            more = f", the bound by {self.widened:.1f} nats more" if self.widened > 2 * self.widened_se else ""
            return f"not seen: annealing falls, too{more}"
        return "seen"

    def __str__(self) -> str:
        return (
            f"{self.way + ', ' + self.split:<17}{self.start:>6} to {self.end:<6}{self.bound:>+9.2f} ± {self.bound_se:<6.2f}"
            f"{self.annealed:>+9.2f} ± {self.annealed_se:<6.2f}{self.widened:>+9.2f} ± {self.widened_se:<6.2f}  {self.seen}"
        )


def falls(found: Stages, p: Protocol) -> list[Fall]:
    """Frozen: from where the decoder stands still. Together: from where the encoder's bound on test images is best."""
    best = max(p.epochs, key=lambda epochs: found["together", "test"][epochs].bound.mean().item())
    told = []
    for (way, split), stages in found.items():
        first, last = p.frozen if way == "frozen" else best, max(stages)
        start, end = stages[first], stages[last]
        parts = [end.bound - start.bound, end.annealed - start.annealed, end.difference - start.difference]
        numbers = [number for part in parts for number in (part.mean().item(), _se(part))]
        told.append(Fall(way, split, first, last, *numbers))
    return told


@dataclass(frozen=True)
class Lag:
    """What the encoder's bound misses of log p(x) at the last stage, nats: on test and on training images, and their errors."""

    way: str
    epochs: int
    test: float
    test_se: float
    train: float
    train_se: float

    @property
    def seen(self) -> str:
        """Whether the encoder is worse on images it was not trained on, by two errors; they are other images, so errors add up."""
        return "seen" if self.test - self.train > 2 * math.hypot(self.test_se, self.train_se) else "not seen"

    def __str__(self) -> str:
        return (
            f"{self.way}, {self.epochs:,} epochs: the bound misses {self.test:.2f} ± {self.test_se:.2f} nats on test images and "
            f"{self.train:.2f} ± {self.train_se:.2f} on training images - {self.seen}"
        )


def lags(found: Stages) -> list[Lag]:
    """Each training at its end."""
    told = []
    for way in ("together", "frozen"):
        last = max(found[way, "test"])
        missed = [found[way, split][last].difference for split in SPLITS]
        told.append(Lag(way, last, *(number for values in missed for number in (values.mean().item(), _se(values)))))
    return told


def table_overfitted(found: Stages) -> str:
    """Means over the images of each stage, and the error of the paired difference."""
    lines = [f"{'':<17}{'epochs':>7}{'bound':>10}{'annealed':>10}{'difference':>18}{'largest':>9}{'from the prior':>16}"]
    for (way, split), stages in found.items():
        for epochs, stage in stages.items():
            difference = f"{stage.difference.mean():.2f} ± {_se(stage.difference):.2f}"
            checked = f"{stage.checked.mean():.2f}" if stage.checked is not None else ""
            lines.append(
                f"{way + ', ' + split:<17}{epochs:>7,}{stage.bound.mean():>10.2f}{stage.annealed.mean():>10.2f}{difference:>18}"
                f"{stage.difference.max():>9.2f}{checked:>16}"
            )
    return "\n".join(lines)


def figure_overfitted(found: Stages) -> Figure:
    """Bound and annealing on test images by epochs, in both trainings; and what the bound misses, on test and training images."""
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 4}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.9), layout="constrained")
        levels, missed = drawn.subplots(1, 2)
        styles: dict[str, dict[str, Any]] = {"together": {"linestyle": "-"}, "frozen": {"linestyle": "--", "fillstyle": "none"}}
        for way, style in styles.items():
            words = "trained together" if way == "together" else "decoder frozen"
            stages = found[way, "test"]
            for name, color, marker in (("annealed", plots.BLUE, "o"), ("bound", plots.VERMILION, "s")):
                means = [getattr(stage, name).mean().item() for stage in stages.values()]
                levels.plot(list(stages), means, color=color, marker=marker, **style, label=f"{name}, {words}")
            checks = {epochs: stage.checked.mean().item() for epochs, stage in stages.items() if stage.checked is not None}
            if way == "together":
                levels.plot(list(checks), list(checks.values()), "x", color=plots.BLACK, linestyle="none", label="annealed from the prior")
            for split, color, marker in (("test", plots.ORANGE, "^"), ("train", plots.GREEN, "v")):
                stages = found[way, split]
                values = [stage.difference.mean().item() for stage in stages.values()]
                errors = [2 * _se(stage.difference) for stage in stages.values()]
                label = f"{'test' if split == 'test' else 'training'} images, {words}"
                missed.errorbar(list(stages), values, errors, color=color, marker=marker, **style, elinewidth=0.8, label=label)
        for axes, what in ((levels, "log p(x), test images, nats"), (missed, "annealed − bound, nats")):
            axes.set_xscale("log")
            axes.set_xlabel("epochs")
            axes.set_ylabel(what)
        missed.set_yscale("log")
        handles, labels = zip(
            *(pair for axes in (levels, missed) for pair in zip(*axes.get_legend_handles_labels(), strict=True)), strict=True
        )
        drawn.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawn


def report_overfitted(found: Stages, p: Protocol, out: Path) -> None:
    """Print the table and the claim; write them and the figure."""
    told, lagging = falls(found, p), lags(found)
    lines = [
        *(f"{name}: {paper} | here: {here}" for name, paper, here in p.settings if not name.startswith("beside")),
        "",
        table_overfitted(found),
        "",
        f"Nats, means over the first {p.compared} images. A fall is paired by image. One training from one seed. The paper trained on all",
        "of its images, where annealing held although the decoder was trained on; on so few, only the frozen decoder can.",
        "",
        f"{'':<17}{'epochs':>16}{'bound':>18}{'annealed':>18}{'wider by':>18}  the bound falls while annealing holds",
        *map(str, told),
        "",
        "The encoder overfits: it is worse on images that it was not trained on",
        *map(str, lagging),
    ]
    print("\n".join(lines))
    record = {
        "protocol": asdict(p),
        "settings": [dict(zip(("name", "paper", "here"), row, strict=True)) for row in p.settings],
        "stages": {
            f"{way}, {split}": {
                str(epochs): {
                    "bound": stage.bound.mean().item(),
                    "annealed": stage.annealed.mean().item(),
                    "difference": stage.difference.mean().item(),
                    "difference_se": _se(stage.difference),
                    "checked": None if stage.checked is None else stage.checked.mean().item(),
                }
                for epochs, stage in stages.items()
            }
            for (way, split), stages in found.items()
        },
        "falls": [asdict(fall) | {"seen": fall.seen} for fall in told],
        "lags": [asdict(lag) | {"seen": lag.seen} for lag in lagging],
    }
    _write(out, "overfitted", lines, record, figure_overfitted(found))


def _write(out: Path, name: str, lines: Sequence[str], record: Mapping[str, Any], drawn: Figure) -> None:
    (out / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (out / f"{name}.json").write_text(json.dumps(record, indent=1))
    for suffix in ("png", "pdf"):
        plots.save(drawn, out / f"{name}.{suffix}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS, help="without one: both")
    parser.add_argument("--run", type=Path, default=Path("runs", "fashion-mnist"), help="folder of the trained pair of `beside`")
    parser.add_argument("--out", type=Path, default=None, help="default runs/annealing, or runs/annealing-quick with --quick")
    parser.add_argument("--images", type=int, default=None, help="test images of `beside`")
    parser.add_argument("--quick", action="store_true", help="tiny, on the digits: shows that it works, and no result")
    options = parser.parse_args(arguments)
    p = QUICK if options.quick else WU_2017
    p = p if options.images is None else replace(p, images=options.images)
    out = options.out or Path("runs", "annealing-quick" if options.quick else "annealing")
    try:
        data = ppvae.data.load(p.data, binarize="threshold")
        if options.experiment in (None, "beside"):
            if options.quick:
                run = _trained(pair_of(p, data.train.x.shape[1]), data.train[:200], 3, p, out / "pair")
            else:
                run = _loaded(options.run)
            report_beside(beside(run, data.test[: p.images], p, out), p, out)
        if options.experiment in (None, "overfitted"):
            report_overfitted(overfitted(data, p, out), p, out)
    except PpvaeError as error:
        raise SystemExit(str(error)) from error


def _loaded(folder: Path) -> ppvae.Run:
    if not (folder / "config.json").exists():
        train = f"python examples/inference_suboptimality.py train --only main --main-run {folder}"
        raise RunError(f"{folder} holds no trained pair", mend=train)
    return ppvae.load(folder)


if __name__ == "__main__":
    main()
