"""The command line: it parses, calls the library and prints; it decides nothing.

One frozen dataclass a command, one table of their names. What a command does stands in ``commands.py`` under the same name, imported
once the arguments are read: torch and Pyro take seconds to import, and help needs neither.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from ppvae.errors import PpvaeError, RelaxedMeasureWarning, UnreliableWarning

INTERRUPTED = 130
INPUT_OUTPUT = 74
BUG = 70

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


class UsageError(PpvaeError):
    """An argument of a command names something that is not there."""

    exit_code = 2


@dataclass(frozen=True)
class Pair:
    """What data and which two programs.

    Attributes:
        data: digits, mnist, fashion-mnist, or a .npy, .npz or IDX file.
        binarize: threshold, static, dynamic or none. By default threshold for images, none for other arrays.
        levels: The grey value that is white, where a file leaves it open.
        data_seed: Of the split and of the draws that binarise; apart from --seed, so that runs share their test data.
        flatten: Rows of images as vectors; --no-flatten keeps (H, W).
        program: mlp, conv, or file.py:function, which makes (model, guide) from two rows of the data. This runs the file's code.
        guide: Family of the built-in programs' guide: diagonal or full-rank.
        likelihood: Of the built-in programs: bernoulli or normal. By default bernoulli for data of 0 and 1, normal for real values.
        latent_dim: Latent dimensions of the built-in programs.
        hidden: Widths of the hidden layers of mlp; conv takes the first as its channels.
        activation: relu, elu, tanh, silu, gelu, softplus or leaky-relu.
        seed: Rules everything but the data: parameters, order, noise.
    """

    data: str = "digits"
    binarize: str | None = None
    levels: float | None = None
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
    """Train, evaluate, measure the gaps, draw four figures, in a minute.

    On the digits that come with ppvae: 1,077 images of 8 x 8 to train on, 360 to validate, 360 to test.

    Attributes:
        out: The run folder; by default the first free one of runs/demo, runs/demo-2, ...
        epochs: Passes over the 1,077 training images.
        num_particles: K, draws per image for log p(x).
        seed: Rules every draw.
    """

    example: ClassVar[str] = "ppvae demo"

    out: Path | None = None
    epochs: int = 200
    num_particles: int = 5000
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
        compile: Whether steps run as compiled arithmetic: auto from 3,000 steps on, yes, no.
        precision: float32, or bfloat16 for the networks of compiled steps where that pays.
        device: auto, cpu, cuda, cuda:1.
        out: The run folder; by default runs/ and the name of the data.
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
    compile: Literal["auto", "yes", "no"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    out: Path | None = None
    resume: bool = False
    checkpoint_every: float = 60.0
    threads: int | None = None


@dataclass(frozen=True)
class Evaluate:
    """Measure the ELBO and log p(x) of a run, with their errors.

    Attributes:
        run: A run folder.
        split: train, validation or test.
        num_data: The first so many rows; all by default.
        num_particles: K, draws per datum for log p(x); the ELBO takes at most 1,000.
        proposal: What the particles come from: guide, refined or defensive.
        tolerance: Nats of Monte Carlo error per datum; chooses proposal, particles or annealing itself.
        data: Other data than the run recorded: a name or a file.
        seed: Rules every draw.
        threads: Of torch; by default its own choice.
    """

    example: ClassVar[str] = "ppvae evaluate runs/digits --split test --num-particles 5000"

    run: RunFolder
    split: str = "test"
    num_data: int | None = None
    num_particles: int = 5000
    proposal: str = "guide"
    tolerance: float | None = None
    data: str | None = None
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Gaps:
    """Tell where a run loses its ELBO: in its family or its encoder.

    The approximation gap is what the best member of the guide's family leaves, the amortization gap what the encoder adds.

    Attributes:
        run: A run folder.
        split: train, validation or test.
        num_data: The first so many rows.
        families: Families to refine: same, mean_field, full_rank, low_rank, mixture, flow. The gaps are those of the first.
        reference: Where log p(x) comes from: auto, exact, annealed or importance.
        data: Other data than the run recorded: a name or a file.
        seed: Rules every draw.
        threads: Of torch; by default its own choice.
    """

    example: ClassVar[str] = "ppvae gaps runs/digits --split test --num-data 200"

    run: RunFolder
    split: str = "test"
    num_data: int | None = 200
    families: tuple[str, ...] = ("same",)
    reference: str = "auto"
    data: str | None = None
    seed: int = 0
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


COMMANDS: dict[str, Any] = {"demo": Demo, "check": Check, "train": Train, "evaluate": Evaluate, "gaps": Gaps, "sample": Sample}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0 done, 2 usage, 65 data or programs, 66 no such file, 70 diverged or a bug, 74 input and output, 75 the run is held, 130 Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("PPVAE_DEBUG", "0") not in ("", "0")
    try:
        with _warnings_as_lines():
            return _run([argument for argument in arguments if argument != "--debug"])
    except SystemExit as stop:  # tyro has printed help (0) or what is wrong with the arguments (2)
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED, debug)
    except PpvaeError as error:
        return _failed(str(error), error.exit_code, debug)
    except OSError as error:
        return _failed(f"{type(error).__name__}: {error}", INPUT_OUTPUT, debug)
    except Exception as error:  # the user's program may raise anything
        where = "" if debug else "\n  mend: this is a bug in ppvae or in your program: run again with --debug"
        return _failed(f"{type(error).__name__}: {' '.join(str(error).split())}{where}", BUG, debug)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from ppvae import __version__

        print(f"ppvae {__version__}")
        return 0
    started = time.monotonic()
    name = chosen("command", arguments[0], list(COMMANDS))
    options = _parsed(name, arguments[1:])
    if _is_first():
        say(f"ppvae {name}: {_first_words(options)}")
    from ppvae import commands

    code: int = getattr(commands, name)(options)
    if _is_first():
        say(f"ppvae {name}: done in {time.monotonic() - started:.1f} s")
    return code


def _parsed(name: str, arguments: list[str]) -> Any:
    """The command's dataclass, filled in; tyro exits on ``--help`` and on arguments that it cannot read."""
    try:
        return tyro.cli(COMMANDS[name], prog=f"ppvae {name}", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            print(f"\nexample:\n  {COMMANDS[name].example}")
        raise


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: ppvae COMMAND [OPTIONS]      `ppvae COMMAND --help` tells the options", ""]
    lines += ["Variational autoencoders as pairs of Pyro programs: trained, and measured.", "", "commands:"]
    for name, command in COMMANDS.items():
        lines += [f"  {name:{width}}{command.__doc__.splitlines()[0]}", f"  {'':{width}}$ {command.example}"]
    lines += ["", "  --version   print the version", "  --debug     with any command: show an error's traceback (or PPVAE_DEBUG=1)"]
    return "\n".join(lines)


def _first_words(options: Any) -> str:
    """What is about to happen, from the arguments alone."""
    told = {"run": "", "data": "data ", "program": "program ", "split": "split "}
    words = [f"{word}{value}" for name, word in told.items() if (value := getattr(options, name, None)) is not None]
    return ", ".join(words) or "data digits, program mlp"


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


def say(text: str) -> None:
    """Progress and remarks go to stderr; results alone to stdout."""
    print(text, file=sys.stderr, flush=True)


def _failed(problem: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(f"error: {problem}" if _is_first() else f"error in process {os.environ['RANK']}: {problem}")
    return code


def _is_first() -> bool:
    """Whether this process is the only one of a job, or the first: torchrun says it to each before torch is imported."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """The library's own warnings, each on one line; others as Python shows them."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, UnreliableWarning | RelaxedMeasureWarning):
                say(f"warning: {' '.join(str(message).split())}")
            else:
                shown(message, category, *rest, **named)

        warnings.showwarning = show
        for category in (UnreliableWarning, RelaxedMeasureWarning):
            warnings.simplefilter("always", category)
        yield
