"""A deep Markov model of Bach's chorales: nats a frame beside the published ones, what the number measures, and music drawn from it.

Data: the quarter-note piano rolls of Boulanger-Lewandowski and others (JSB chorales, 229 training, 76 validation, 77 test pieces), as JSON
that ``ppvae.data.music`` reads. A frame is one beat and 88 keys, and a key that sounds on is not told from one struck again.

The published numbers (Pyro's tutorial: 6.87, 6.82 and 6.80 with 0, 1 and 2 flows; Krishnan and others: 6.93) are minus the ELBO by one
draw, summed over the test pieces and divided by their frames. So is the ELBO here, by more draws: the same expectation. Beside it stands
the importance-weighted bound, which lies nearer to -log p(x) and is another quantity. They trained 5,000 epochs of some 12 steps, with 100
latents and a reader of 600 units, on a GPU; here it is minutes of one thread, 32 latents and a reader of 96 units, on chunks of 8 frames
and then, for an eighth of the epochs, of 64. The first latent of a chunk is drawn from the learned start, wherever in a piece it begins.
Measured is on whole pieces.

Expected. (1) The parts hold 229, 76 and 77 pieces, and the reader counts as many frames as the file. (2) Minus the ELBO is below what each
key by itself costs (its frequency), and below what each key given itself one frame before costs, by more than two standard errors of the
paired difference. (3) It is short of the published: between 6.87 and 9 nats a frame. (4) The importance-weighted bound is above the ELBO by
more than two standard errors of the paired difference. (5) The latents are used: a rate above 0.5 nats a frame. (6) Drawn music has as many
keys a frame as the training pieces, within 0.5, and of its sounding keys the share that sounded one frame before is within 0.1 of theirs.

    python examples/music.py --out runs/music                              # --quick: seconds
    python examples/music.py --data chorales.json --epochs 500             # another file of that form; longer

MIDI files are written where mido is installed (``pip install mido``).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import experiment
import ppvae
from experiment import Claims
from ppvae import analysis, guides, models, nn, simulate
from ppvae.analysis import plots
from ppvae.data.music import LOWEST, PARTS
from ppvae.models import likelihoods
from ppvae.objectives import linear

DATA = Path("../shared/data/jsb-chorales-quarter.json")
PIECES = {"train": 229, "validation": 76, "test": 77}
PUBLISHED = 6.87  # Pyro's deep Markov model without flows, nats a frame
LATENT_DIM, HIDDEN, READER = 32, 64, 96
CHUNKS = (8, 64)  # frames: of 8 a step is compiled; of more it has over 3,000 operations and is not
LENGTHS = (8, 16, 32, 64, 160)  # of the chunks that test pieces are cut into; none is longer than 160
TICKS = 480  # of a beat, in MIDI
LEARNING_RATES = (3e-3, 1e-3)


@dataclass(frozen=True)
class Effort:
    epochs: int
    long_epochs: int
    num_train: int | None  # training chunks; None: all
    num_test: int
    num_draws: int
    num_weights: int
    num_pieces: int
    frames: int  # of a drawn piece


FULL = Effort(200, 25, None, 77, 64, 256, 16, 64)
QUICK = Effort(2, 1, 24, 3, 4, 16, 2, 8)


def chunks(x: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Pieces cut into chunks of at most ``size`` frames, from their start on; every frame lies in one chunk."""
    rolls, lengths = [], []
    for roll, length in zip(x["x"], x["lengths"].tolist(), strict=True):
        for start in range(0, length, size):
            chunk = torch.zeros(size, roll.shape[-1])
            stop = min(start + size, length)
            chunk[: stop - start] = roll[start:stop]
            rolls.append(chunk)
            lengths.append(stop - start)
    return {"x": torch.stack(rolls), "lengths": torch.tensor(lengths)}


def frequencies(x: dict[str, Tensor]) -> Tensor:
    """Share of the frames in which each key sounds, half a count added on each side; (keys,)."""
    return (x["x"].double().sum((0, 1)) + 0.5) / (x["lengths"].sum() + 1)


def pair(frequency: Tensor) -> tuple[models.DeepMarkov, guides.Recurrent]:
    """The emission's offsets begin at the keys' log-odds: else the first epochs learn that most keys are silent."""
    pyro.set_rng_seed(0)
    keys = len(frequency)
    transition = models.GatedTransition(LATENT_DIM, HIDDEN)
    emission = nn.MLP(LATENT_DIM, [HIDDEN], keys)
    with torch.no_grad():
        emission.layers[-1].bias.copy_(frequency.logit())
    model = models.DeepMarkov(transition, emission, likelihoods.Bernoulli(), LATENT_DIM)
    reader = nn.Recurrent(keys, READER, HIDDEN, backward=True)
    return model, guides.Recurrent(reader, nn.MLP(LATENT_DIM + HIDDEN, [HIDDEN], 2 * LATENT_DIM), LATENT_DIM)


def cut(x: dict[str, Tensor], size: int, num: int | None = None) -> dict[str, Tensor]:
    """The first ``num`` chunks."""
    return {name: leaf[:num] for name, leaf in chunks(x, size).items()}


def trained(data: Any, effort: Effort, out: Path) -> Iterator[tuple[Any, Any]]:
    """The pair after short chunks (the best epoch by held-out chunks), and after long ones (by whole held-out pieces).

    What was trained there is not trained again.
    """
    short, long = (cut(data.train.x, size, effort.num_train) for size in CHUNKS)
    held_out = cut(data.validation.x, CHUNKS[0], effort.num_train)
    model, guide = pair(frequencies(short))
    fit(model, guide, short, held_out, effort.epochs, LEARNING_RATES[0], 64, linear(0.2, 1.0, fraction=0.2), out / "short")
    yield model.eval(), guide.eval()
    fit(model, guide, long, data.validation, effort.long_epochs, LEARNING_RATES[1], 32, 1.0, out / "long")
    yield model.eval(), guide.eval()


def fit(
    model: Any, guide: Any, x: dict[str, Tensor], held_out: Any, epochs: int, rate: float, batch_size: int, beta: Any, out: Path
) -> None:
    """The scheme that both stages share."""
    experiment.fit(
        model,
        guide,
        x,
        validation=held_out,
        epochs=epochs,
        batch_size=batch_size,
        beta=beta,
        optimizer=functools.partial(torch.optim.Adam, lr=rate, betas=(0.96, 0.999)),
        scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=epochs),
        clip_norm=100.0,
        out=out,
        resume=True,
    )


# What is measured.


def per_frame(values: Tensor, lengths: Tensor) -> tuple[float, float]:
    """sum of values / sum of lengths, and its standard error over the pieces, to first order: that of values - ratio * lengths."""
    n, frames = len(values), lengths.double().sum()
    ratio = values.double().sum() / frames
    left = values.double() - ratio * lengths
    return ratio.item(), (left.square().sum() * n / (n - 1)).sqrt().div(frames).item()


def by_key(train: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
    """-log p of each piece, every key of every frame by itself with its training frequency; half a count on each side; (N,), nats."""
    return _cost(x["x"], frequencies(train).expand_as(x["x"]), x["lengths"])


def by_key_before(train: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
    """-log p of each piece, every key given whether it sounded one frame before; frames without one before as ``by_key``; (N,), nats."""
    before, now, there = train["x"][:, :-1].double(), train["x"][:, 1:].double(), inside(train)[:, 1:, None].double()
    on = ((before * now * there).sum((0, 1)) + 0.5) / ((before * there).sum((0, 1)) + 1)
    off = (((1 - before) * now * there).sum((0, 1)) + 0.5) / (((1 - before) * there).sum((0, 1)) + 1)
    first = frequencies(train).expand(len(x["x"]), 1, -1)
    given = torch.where(x["x"][:, :-1] > 0, on, off)
    return _cost(x["x"], torch.cat([first, given], 1), x["lengths"])


def inside(x: dict[str, Tensor]) -> Tensor:
    """(N, T), True up to a piece's end."""
    return torch.arange(x["x"].shape[1]) < x["lengths"][:, None]


def _cost(roll: Tensor, p: Tensor, lengths: Tensor) -> Tensor:
    roll = roll.double()
    each = -(roll * p.log() + (1 - roll) * (1 - p).log()).sum(-1)
    return each.where(inside({"x": roll, "lengths": lengths}), 0).sum(1)


def keys_and_held(roll: Tensor, lengths: Tensor) -> tuple[float, float]:
    """Sounding keys a frame, and of the sounding keys, from the second frame on, the share that sounded one frame before."""
    there = inside({"x": roll, "lengths": lengths})[..., None]
    roll = roll * there
    return (roll.sum() / lengths.sum()).item(), ((roll[:, :-1] * roll[:, 1:]).sum() / roll[:, 1:].sum()).item()


@dataclass(frozen=True)
class Found:
    """Nats a frame of the test pieces; ``_se`` over the pieces, ``_mc_se`` Monte Carlo.

    Attributes:
        elbo: Minus the ELBO, by ``num_draws`` draws; ``one_draw``: by one, as published.
        weighted: Minus the importance-weighted bound by ``num_weights`` particles; ``gain``: the ELBO's less it, paired.
        poor: Share of pieces whose k-hat is above its threshold: there the bound's Monte Carlo error is too small.
        by_key, by_key_before: Of the two baselines; ``below_*``: minus the ELBO less them, paired.
        keys, held: Of the training pieces; ``drawn_*``: of the drawn ones.
        by_length: Minus the ELBO of test pieces cut into chunks of ``LENGTHS`` frames, after short chunks and after long ones.
        chunks: Training chunks, short and long.
    """

    frames: dict[str, int]
    frames_in_file: dict[str, int]
    pieces: dict[str, int]
    elbo: float
    elbo_se: float
    elbo_mc_se: float
    one_draw: float
    rate: float
    rate_se: float
    weighted: float
    weighted_se: float
    weighted_mc_se: float
    gain: float
    gain_se: float
    poor: float
    by_key: float
    by_key_se: float
    by_key_before: float
    by_key_before_se: float
    below_key: float
    below_key_se: float
    below_key_before: float
    below_key_before_se: float
    keys: float
    held: float
    drawn_keys: float
    drawn_held: float
    by_length: list[list[float]]
    chunks: list[int]


def draw(model: Any, num: int, frames: int, keys: int) -> Tensor:
    """Piano rolls drawn from the model, (num, frames, keys)."""
    template = {"x": torch.zeros(num, frames, keys), "lengths": torch.full((num,), frames)}
    return simulate.sample(model, num, template=template, seed=1)["x"]


def by_length(model: Any, guide: Any, x: dict[str, Tensor], num_draws: int) -> list[float]:
    """Minus the ELBO, nats a frame, of pieces cut into chunks of each of ``LENGTHS``."""
    found = []
    for size in LENGTHS:
        part = chunks(x, size)
        found.append(per_frame(-analysis.elbo(model, guide, part, num_particles=max(1, num_draws // 16)).pointwise, part["lengths"])[0])
    return found


def measured(data: Any, file: Path, programs: tuple[Any, Any], effort: Effort, lengths: list[list[float]]) -> tuple[Found, Tensor]:
    """What is found on the test pieces, and drawn pieces; ``lengths`` of ``by_length`` after each stage."""
    model, guide = programs
    test = data.test[: effort.num_test]
    sizes, frames = test.x["lengths"], test.x["lengths"].sum().item()
    elbo = analysis.elbo(model, guide, test, num_particles=effort.num_draws)
    one = analysis.elbo(model, guide, test, num_particles=1, seed=1)
    # no second proposal: a fitted Normal over thousands of latents is out of reach
    found = analysis.log_likelihood(model, guide, test, num_particles=effort.num_weights, second=None, seed=2)
    keys, before = by_key(data.train.x, test.x), by_key_before(data.train.x, test.x)
    drawn = draw(model, effort.num_pieces, effort.frames, test.x["x"].shape[-1])
    there = json.loads(file.read_text(encoding="utf-8"))
    return Found(
        {name: int(getattr(data, name).x["lengths"].sum()) for name in PARTS},
        {name: sum(len(piece) for piece in there[key]) for name, key in PARTS.items()},
        {name: len(getattr(data, name)) for name in PARTS},
        *per_frame(-elbo.pointwise, sizes),
        elbo.pointwise_se.norm().item() / frames,
        per_frame(-one.pointwise, sizes)[0],
        *per_frame(elbo.rate, sizes),
        *per_frame(-found.pointwise, sizes),
        found.pointwise_se.norm().item() / frames,
        *per_frame(found.pointwise - elbo.pointwise, sizes),
        (found.k_hat > found.threshold).double().mean().item(),
        *per_frame(keys, sizes),
        *per_frame(before, sizes),
        *per_frame(-elbo.pointwise - keys, sizes),
        *per_frame(-elbo.pointwise - before, sizes),
        *keys_and_held(data.train.x["x"], data.train.x["lengths"]),
        *keys_and_held(drawn, torch.full((len(drawn),), drawn.shape[1])),
        lengths,
        [len(chunks(data.train.x, size)["lengths"][: effort.num_train]) for size in CHUNKS],
    ), drawn


# MIDI.


def notes(roll: Tensor) -> list[tuple[int, int, int]]:
    """(first frame, frame after the last, MIDI number) of every note of a roll, (T, keys): what sounds on is one note."""
    found = []
    padded = torch.nn.functional.pad(roll.bool().int(), (0, 0, 1, 1))
    change = padded[1:] - padded[:-1]  # (T + 1, keys): 1 where a note begins, -1 where it has ended
    for key in range(roll.shape[1]):
        starts, stops = (change[:, key].eq(sign).nonzero().flatten().tolist() for sign in (1, -1))
        found += [(start, stop, LOWEST + key) for start, stop in zip(starts, stops, strict=True)]
    return sorted(found)


def write_midi(roll: Tensor, file: Path, beats_a_minute: int = 90) -> None:
    """A standard MIDI file of a roll, a frame a beat.

    Raises:
        SystemExit: mido is not installed.
    """
    if importlib.util.find_spec("mido") is None:
        raise SystemExit("MIDI files need mido: pip install mido")
    import mido

    events = [(start, "note_on", key) for start, _, key in notes(roll)] + [(stop, "note_off", key) for _, stop, key in notes(roll)]
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_a_minute))])
    now = 0
    for frame, kind, key in sorted(events):  # "note_off" sorts before "note_on": a key is let go before it is struck again
        track.append(mido.Message(kind, note=key, velocity=64, time=(frame - now) * TICKS))
        now = frame
    made = mido.MidiFile(ticks_per_beat=TICKS)
    made.tracks.append(track)
    made.save(file)


# What is printed and drawn.


def table(f: Found) -> str:
    rows = [
        ("each key by itself", f"{f.by_key:.3f} ± {f.by_key_se:.3f}"),
        ("each key given itself one frame before", f"{f.by_key_before:.3f} ± {f.by_key_before_se:.3f}"),
        ("deep Markov model, -ELBO", f"{f.elbo:.3f} ± {f.elbo_se:.3f} ± {f.elbo_mc_se:.4f}; by one draw {f.one_draw:.3f}"),
        ("  rate in it", f"{f.rate:.3f} ± {f.rate_se:.3f}"),
        (
            "deep Markov model, importance-weighted",
            f"{f.weighted:.3f} ± {f.weighted_se:.3f} ± {f.weighted_mc_se:.4f}; k-hat too large at {100 * f.poor:.0f} % of the pieces",
        ),
        ("published, -ELBO by one draw", "6.87; with flows 6.82, 6.80; Krishnan and others 6.93"),
        ("keys a frame, share held", f"training {f.keys:.2f}, {f.held:.3f}; drawn {f.drawn_keys:.2f}, {f.drawn_held:.3f}"),
        ("-ELBO of test pieces in chunks of", ", ".join(f"{size}" for size in LENGTHS) + " frames (no piece is longer)"),
        *(
            (f"  trained on {num:,} chunks of {size}", ", ".join(f"{value:.3f}" for value in found))
            for size, num, found in zip(CHUNKS, f.chunks, f.by_length, strict=True)
        ),
    ]
    return "\n".join(["nats a frame of the test pieces ± data ± Monte Carlo", *(f"{name:<42}{value}" for name, value in rows)])


def claims(f: Found) -> Claims:
    def below(value: float, se: float) -> bool:
        return value < -2 * se

    return {
        "pieces and frames are those of the file": (
            f.pieces == PIECES and f.frames == f.frames_in_file,
            f"{f.pieces['train']}, {f.pieces['validation']}, {f.pieces['test']} pieces; "
            f"{f.frames['train']:,}, {f.frames['validation']:,}, {f.frames['test']:,} frames",
        ),
        "it is better than keys by themselves, and than keys given themselves": (
            below(f.below_key, f.below_key_se) and below(f.below_key_before, f.below_key_before_se),
            f"{f.below_key:+.3f} ± {f.below_key_se:.3f} and {f.below_key_before:+.3f} ± {f.below_key_before_se:.3f} nats a frame",
        ),
        "it is short of the published, by not more than 2.1 nats": (
            PUBLISHED < f.elbo < 9.0,
            f"{f.elbo:.3f} ± {f.elbo_se:.3f} ± {f.elbo_mc_se:.4f}, published {PUBLISHED}",
        ),
        "the importance-weighted bound is above the ELBO": (f.gain > 2 * f.gain_se, f"{f.gain:+.3f} ± {f.gain_se:.3f} nats a frame"),
        "the latents are used": (f.rate > 0.5, f"rate {f.rate:.3f} ± {f.rate_se:.3f} nats a frame"),
        "drawn music has as many keys, held as long": (
            abs(f.drawn_keys - f.keys) < 0.5 and abs(f.drawn_held - f.held) < 0.1,
            f"{f.drawn_keys:.2f} and {f.drawn_held:.3f}, training {f.keys:.2f} and {f.held:.3f}",
        ),
    }


def figure(f: Found, real: Tensor, drawn: Sequence[Tensor]) -> Figure:
    """A test piece and drawn ones as piano rolls; nats a frame; how far what was learned on chunks carries."""
    rolls = [("a test piece", real), *((f"drawn, {i + 1}", roll) for i, roll in enumerate(drawn))]
    with matplotlib.rc_context(plots.STYLE):
        made = Figure(figsize=(2 * plots.WIDTH, 3.9), layout="constrained")
        axes = made.subplot_mosaic([["0", "1", "2"], ["nats", "nats", "length"]], height_ratios=[1.25, 1])
        for i, (name, roll) in enumerate(rolls[:3]):
            for start, stop, key in notes(roll):
                axes[str(i)].hlines(key, start, stop, color=plots.BLUE if i else plots.BLACK, linewidth=1.6)
            axes[str(i)].set_title(name)
            axes[str(i)].set_ylim(40, 98)
            axes[str(i)].set_xlim(0, len(roll))
            axes[str(i)].set_xlabel("frame (beat)")
        axes["0"].set_ylabel("MIDI number")
        named = [
            ("importance-weighted", f.weighted, f.weighted_se),
            ("−ELBO", f.elbo, f.elbo_se),
            ("keys given themselves", f.by_key_before, f.by_key_before_se),
            ("keys by themselves", f.by_key, f.by_key_se),
        ]
        axes["nats"].barh(range(4), [v for _, v, _ in named], xerr=[2 * se for _, _, se in named], height=0.6,
                          color=[plots.BLUE, plots.BLUE, plots.GREY, plots.GREY], error_kw={"elinewidth": 0.8})  # fmt: skip
        axes["nats"].set_yticks(range(4), [name for name, _, _ in named])
        axes["nats"].axvline(PUBLISHED, color=plots.VERMILION, linewidth=0.9, linestyle="--")
        axes["nats"].text(PUBLISHED, 3.45, " published −ELBO", color=plots.VERMILION, fontsize=7, va="bottom")
        axes["nats"].set_ylim(-0.5, 4.0)
        axes["nats"].set_xlabel("nats a frame, test pieces")
        for size, found, colour in zip(CHUNKS, f.by_length, (plots.ORANGE, plots.BLUE), strict=True):
            axes["length"].plot(LENGTHS, found, color=colour, marker="o", markersize=3, label=f"trained on {size}")
        axes["length"].set_xscale("log", base=2)
        axes["length"].set_xticks(LENGTHS[:-1], [str(size) for size in LENGTHS[:-1]])
        axes["length"].set_xlabel("frames of a test chunk")
        axes["length"].set_ylabel("−ELBO, nats a frame")
        axes["length"].legend(loc="center right", bbox_to_anchor=(1.0, 0.32), fontsize=7)
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=DATA, help="JSON of piano rolls, as ppvae.data.music reads it")
    parser.add_argument("--epochs", type=int, help="passes over the short training chunks; an eighth as many over the long ones")
    own, rest = parser.parse_known_args(arguments)
    options = experiment.options(__doc__, "music", rest)
    effort = QUICK if options.quick else FULL
    if own.epochs:
        effort = replace(effort, epochs=own.epochs, long_epochs=max(1, own.epochs // 8))
    data = ppvae.data.music(own.data)
    lengths: list[list[float]] = []
    for model, guide in trained(data, effort, options.out):
        lengths.append(by_length(model, guide, data.test[: effort.num_test].x, effort.num_draws))
    found, drawn = measured(data, own.data, (model, guide), effort, lengths)
    real = data.test.x["x"][0, : min(int(data.test.x["lengths"][0]), effort.frames)]
    if importlib.util.find_spec("mido") is None:
        print("no MIDI files: mido is not installed (pip install mido); the piano rolls are in the picture")
    else:
        for i, roll in enumerate(drawn):
            write_midi(roll, options.out / f"drawn-{i + 1}.mid")
    experiment.finish(
        options.out,
        "music",
        table(found),
        claims(found),
        figure(found, real, drawn),
        {"found": asdict(found), "effort": asdict(effort)},
    )


if __name__ == "__main__":
    main()
