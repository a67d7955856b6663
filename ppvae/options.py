"""What can be asked for on the command line: one frozen dataclass a command, one table of their names.

Nothing here imports torch: help and errors of usage come before seconds of imports.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from ppvae.errors import UsageError

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Pair:
    """What data and which two programs.

    Attributes:
        data: A name (`ppvae data` lists them), a .npy, .npz, .csv, .parquet, .txt or IDX file, or a folder of pictures.
        binarize: threshold, static, dynamic or none. By default threshold for images, none for other arrays.
        levels: The grey value that is white, where a file leaves it open.
        labels: A table's column of labels, or an attribute of celeba.
        missing: mask, where NaN is a missing entry: it is left out of the likelihood, and told to the encoder.
        size: Side of pictures, omniglot and celeba, in pixels.
        data_seed: Of the split and of the draws that binarise; apart from --seed, so that runs share their test data.
        flatten: Rows of images as vectors; --no-flatten keeps (H, W).
        program: mlp, conv, or file.py:function, which makes (model, guide) from two rows of the data. This runs the file's code.
        guide: Family of the built-in programs' guide: diagonal, full-rank, low-rank, mixture, flow, ... (a wrong one lists them).
        likelihood: Of the built-in programs: bernoulli, normal, laplace, poisson, ... (a wrong one lists them). By default bernoulli for
            data of 0 and 1, normal for real values.
        latent_dim: Latent dimensions of the built-in programs.
        hidden: Widths of the hidden layers of mlp; conv takes the first as its channels.
        activation: relu, elu, tanh, silu, gelu, softplus or leaky-relu.
        seed: Rules everything but the data: parameters, order, noise.
    """

    data: str = "digits"
    binarize: str | None = None
    levels: float | None = None
    labels: str | None = None
    missing: Literal["mask"] | None = None
    size: int | None = None
    data_seed: int = 0
    flatten: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    program: str = "mlp"
    guide: str = "diagonal"
    likelihood: str | None = None
    latent_dim: int = 8
    hidden: tuple[int, ...] = (256,)
    activation: str = "relu"
    seed: int = 0


@dataclass(frozen=True)
class Demo:
    """Train, evaluate, measure the gaps, write a report, in a minute.

    On the digits that come with ppvae: 1,077 images of 8 x 8 to train on, 360 to validate, 360 to test.

    Attributes:
        out: The run folder; by default the first free one of runs/demo, runs/demo-2, ...
        epochs: Passes over the 1,077 training images.
        num_particles: K, draws per image for log p(x).
        num_data: Test images that are measured; by default all 360.
        seed: Rules every draw.
    """

    example: ClassVar[str] = "ppvae demo"

    out: Path | None = None
    epochs: int = 200
    num_particles: int = 5000
    num_data: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Check(Pair):
    """Say before any training what breaks the contract of a program.

    The site, what was needed, what came, the line to change. Ends with exit code 65 where something does.
    """

    example: ClassVar[str] = "ppvae check --data digits --program my_vae.py:pair"


@dataclass(frozen=True)
class Train(Pair):
    """Train a model and a guide, into a run folder.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Data per step.
        lr: Learning rate of Adam.
        warmup: Share of all steps over which beta grows from 0; 0 for none.
        beta: Weight of the KL term, after the warm-up.
        clip_norm: Largest norm of the gradient.
        patience: Stop after so many epochs without a better validation ELBO.
        rollbacks: How often a run that diverges may go back, to the start of its epoch or by 1,000 steps, at half the learning rate.
        compile: Whether steps run as compiled arithmetic: auto from 3,000 steps on, yes, no.
        precision: float32, or bfloat16 for the networks of compiled steps where that pays.
        dtype: float64, to see what rounding does: networks and data in float64, whatever the file holds.
        device: auto, cpu, cuda, cuda:1.
        unused_parameters: Whether parameters that would get no gradient end the run before its first step: refuse, or allow.
        out: The run folder; by default runs/ and the name of the data.
        new: Train into a folder of its own, the first free one of runs/NAME, runs/NAME-2, runs/NAME-3, ...
        resume: Go on from the newest checkpoint of the run folder, or start where there is none.
        checkpoint_every: Seconds between checkpoints.
        threads: Of torch; by default its own choice. Small networks are fastest with 1, above all on busy cores.
    """

    example: ClassVar[str] = "ppvae train --data digits --latent-dim 8 --out runs/digits"

    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3
    warmup: float = 0.0
    beta: float = 1.0
    clip_norm: float | None = None
    patience: int | None = None
    rollbacks: int = 3
    compile: Literal["auto", "yes", "no"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float64"] | None = None
    device: str = "auto"
    unused_parameters: Literal["refuse", "allow"] = "refuse"
    out: Path | None = None
    new: bool = False
    resume: bool = False
    checkpoint_every: float = 60.0
    threads: int | None = None

    @property
    def run_folder(self) -> Path:
        """Where the run lies, or with ``new`` the first place to look: unless told otherwise runs/ and the name of the data, which may be
        a path."""
        return self.out or Path("runs") / (Path(self.data).resolve().stem or "data")


@dataclass(frozen=True)
class OfRun:
    """A run, and the data to look at it with.

    Attributes:
        run: A run folder.
        split: train, validation or test.
        data: Other data than the run recorded: a name or a file.
        seed: Rules every draw.
    """

    run: RunFolder
    split: str = "test"
    data: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Measure the ELBO and log p(x) of a run, with their errors.

    Attributes:
        num_data: The first so many rows; all by default.
        num_particles: K, draws per datum for log p(x); the ELBO takes at most 1,000.
        proposal: What the particles come from: guide, refined or defensive.
        tolerance: Nats of Monte Carlo error per datum; chooses proposal, particles or annealing itself.
        bounds: Also the importance-weighted bound by number of particles, from 1 to --num-particles.
        calibration: Also whether the guide is calibrated, on so many data drawn from the model: 300 find what matters, 1,000 more.
        dtype: float64, to see what rounding does: networks and data in float64, whatever the run was trained in.
        threads: Of torch; by default its own choice.
    """

    example: ClassVar[str] = "ppvae evaluate runs/digits --split test --num-particles 5000"

    num_data: int | None = None
    num_particles: int = 5000
    proposal: str = "guide"
    tolerance: float | None = None
    bounds: bool = False
    calibration: int | None = None
    dtype: Literal["float64"] | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Gaps(OfRun):
    """Tell where a run loses its ELBO: in its family or its encoder.

    The approximation gap is what the best member of the guide's family leaves, the amortization gap what the encoder adds.

    Attributes:
        num_data: The first so many rows.
        families: Families to refine: same, mean_field, full_rank, low_rank, mixture, flow. The gaps are those of the first.
        reference: Where log p(x) comes from: auto, exact, annealed or importance.
        dtype: float64, to see what rounding does: networks and data in float64, whatever the run was trained in.
        threads: Of torch; by default its own choice.
    """

    example: ClassVar[str] = "ppvae gaps runs/digits --split test --num-data 200"

    num_data: int | None = 200
    families: tuple[str, ...] = ("same",)
    reference: str = "auto"
    dtype: Literal["float64"] | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Sample:
    """Draw from the model of a run: an .npz file and a figure.

    Attributes:
        run: A run folder.
        num_data: How many data to draw.
        mean: E[x | z] in place of draws of x.
        out: The .npz file, every site by its name; the figure lies beside it. By default samples.npz in the run folder.
        image_shape: Height and width in the figure, where the run does not tell.
        columns: Of the figure.
        seed: Rules every draw.
    """

    example: ClassVar[str] = "ppvae sample runs/digits --num-data 64 --mean"

    run: RunFolder
    num_data: int = 64
    mean: bool = False
    out: Path | None = None
    image_shape: tuple[int, int] | None = None
    columns: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """Write one HTML page on a run: verdicts, numbers, figures.

    It shows what `ppvae evaluate` and `ppvae gaps` have measured, computes only what is cheap, and says what is missing. The answers of
    its verdict box are told here too.

    Attributes:
        run: A run folder.
        out: The page; by default report.html in the run folder.
        data: Other data than the run recorded: a name or a file.
    """

    example: ClassVar[str] = "ppvae report runs/digits"

    run: RunFolder
    out: Path | None = None
    data: str | None = None


@dataclass(frozen=True)
class Compare:
    """Tell which of two runs is better and whether that is sure.

    Attributes:
        first: A run folder.
        second: Another, measured on the same data.
        out: The page; by default compare-SECOND.html in the first run's folder.
    """

    example: ClassVar[str] = "ppvae compare runs/digits runs/full-rank"

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path | None = None


@dataclass(frozen=True)
class Encode(OfRun):
    """Write the codes of data, mean and spread of q(z | x): an .npz.

    Attributes:
        num_data: The first so many rows; all by default.
        out: The .npz file; by default codes-SPLIT.npz in the run folder. A map of the codes lies beside it.
    """

    example: ClassVar[str] = "ppvae encode runs/digits --split test"

    num_data: int | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Interpolate(OfRun):
    """Walk between two data in the latent space: a figure, an .npz.

    Attributes:
        start: Row of the split to walk from.
        end: Row of the split to walk to.
        path: straight, spherical, density (keeps to where codes lie), or all.
        steps: Points of the path, both ends included.
        out: The figure; by default figures/interpolation-START-END.png in the run folder.
    """

    example: ClassVar[str] = "ppvae interpolate runs/digits --start 0 --end 7 --path all"

    start: int = 0
    end: int = 1
    path: str = "all"
    steps: int = 9
    out: Path | None = None


@dataclass(frozen=True)
class Traverse(OfRun):
    """Move one latent dimension at a time: a figure and an .npz file.

    Attributes:
        row: Row of the split to start from; by default the mean of the prior.
        dims: Dimensions to move; by default the most used ones.
        steps: Values a dimension, at quantiles of the prior from 0.05 to 0.95.
        out: The figure; by default figures/traversal.png in the run folder.
    """

    example: ClassVar[str] = "ppvae traverse runs/digits --row 3 --dims 0 2 5"

    row: int | None = None
    dims: tuple[int, ...] = ()
    steps: int = 9
    out: Path | None = None


@dataclass(frozen=True)
class Attribute:
    """Move data along a label's direction; measure what that does.

    The direction is the difference of the classes' mean codes on the training data; its effect is judged on the test data by a linear
    classifier that never saw it, with a permutation test.

    Attributes:
        run: A run folder, of data with labels.
        positive: The label to move towards.
        negative: The label to move away from; by default all others.
        strength: How far, in lengths of the difference.
        num_data: Test rows shown in the figure.
        data: Other data than the run recorded: a name or a file.
        out: The figure; by default figures/attribute-POSITIVE.png in the run folder.
        seed: Rules every draw.
    """

    example: ClassVar[str] = "ppvae attribute runs/digits --positive 8 --negative 3"

    run: RunFolder
    positive: int
    negative: int | None = None
    strength: float = 1.0
    num_data: int = 8
    data: str | None = None
    out: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Say what a set of data holds; without a name, which there are.

    Attributes:
        name: digits, mnist, fashion-mnist, ... or a file.
        binarize: threshold, static, dynamic or none.
        levels: The grey value that is white, where a file leaves it open.
        data_seed: Of the split.
    """

    example: ClassVar[str] = "ppvae data digits"

    name: Annotated[str | None, tyro.conf.Positional] = None
    binarize: str | None = None
    levels: float | None = None
    data_seed: int = 0


@dataclass(frozen=True)
class Runs:
    """List the runs below a folder: their data, how far, how good.

    Attributes:
        folder: Where to look.
    """

    example: ClassVar[str] = "ppvae runs runs"

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")


@dataclass(frozen=True)
class Models:
    """List the parts that models are made of, a line each."""

    example: ClassVar[str] = "ppvae models"


@dataclass(frozen=True)
class Guides:
    """List the guides, a line each."""

    example: ClassVar[str] = "ppvae guides"


# The name of a command is that of its module in ``commands``.
COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "check": Check,
    "train": Train,
    "evaluate": Evaluate,
    "gaps": Gaps,
    "report": Report,
    "compare": Compare,
    "sample": Sample,
    "encode": Encode,
    "interpolate": Interpolate,
    "traverse": Traverse,
    "attribute": Attribute,
    "data": Data,
    "runs": Runs,
    "models": Models,
    "guides": Guides,
}


def _at_least(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number of at least {least}", lambda value: value >= least


_POSITIVE = "a number above 0", lambda value: 0 < value < math.inf
_NONNEGATIVE = "a number of at least 0", lambda value: 0 <= value < math.inf
# What makes sense, where the type of an option does not say it. Library functions check their arguments too, in the words of Python.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("epochs", "batch_size", "patience", "threads", "latent_dim", "hidden", "size"), _at_least(1)),
    **dict.fromkeys(("num_particles", "num_data", "columns", "image_shape"), _at_least(1)),
    "rollbacks": _at_least(0),
    "steps": _at_least(2),
    "calibration": _at_least(20),
    **dict.fromkeys(("lr", "clip_norm", "tolerance", "levels"), _POSITIVE),
    **dict.fromkeys(("beta", "checkpoint_every"), _NONNEGATIVE),
    "warmup": ("a share of the steps, from 0 to 1", lambda value: 0 <= value <= 1),
    "strength": ("a finite number", math.isfinite),
}


def check(options: Any) -> None:
    """Raise where a number makes no sense or options speak against each other, before anything is imported or read.

    Raises:
        UsageError: It names the option, and what stands there where it is left out.
    """
    for field in fields(options):
        words, holds = RANGES.get(field.name, ("", None))
        value = getattr(options, field.name)
        if holds is None or value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)
        wrong = [one for one in values if not holds(one)]
        if wrong:
            default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            name = f"--{field.name.replace('_', '-')}"
            remedy = "leave it out" if default is None else f"leave it out: {name} {default} is the default"
            raise UsageError(f"{name} is {words}, got {wrong[0]}", mend=remedy)
    if isinstance(options, Train) and options.new:
        _check_new(options)
    if isinstance(options, Train) and options.dtype and options.precision != "float32":
        raise UsageError(
            f"--dtype {options.dtype} is for more digits, and --precision {options.precision} for fewer", mend="leave one of them out"
        )


def _check_new(options: Train) -> None:
    if options.resume:
        raise UsageError("--new starts a run, and --resume goes on with one", mend=["--new alone", "--resume with the --out of the run"])
    if options.out is not None:
        raise UsageError(
            f"--new chooses the run folder, and --out {options.out} names it",
            mend=["leave one of them out", "where --config FILE has out: --out None --new"],
        )


def chosen(kind: str, name: str, names: list[str]) -> str:
    """``name``, where it is one of ``names``.

    Raises:
        UsageError: It is none of them; it tells the nearest.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, 1) or difflib.get_close_matches(name.lower().replace("_", "-"), names, 1)
    known = f"one of {', '.join(names)}"
    raise UsageError(f"there is no {kind} '{name}'", mend=[f"did you mean '{near[0]}'?" if near else "", known])
