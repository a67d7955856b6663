"""A decoder that reads its own text leaves z empty: words by characters, sentences by words, and what mends it, at which price.

Text by p(tokens | z) = prod_t p(token_t | z, tokens before), a GRU: it can model the text without z, and then the KL is worth nothing.
Beside it stand a language model, the same GRU with z = 0; word dropout (half of the tokens not shown), free bits, cyclical annealing,
aggressive training of the guide; and a decoder that writes all characters at once and has only z to tie them together.

Words: 3 to 11 lower-case letters of Debian's American list (``apt-get install wamerican``, /usr/share/dict/words; else, and the run says
so, of the docstrings of Python's standard library), a share of them drawn by seed, and split at random: training and test words share
stems. Sentences: of those docstrings, 4 to 13 tokens, or of a plain file (``--text FILE``); rare tokens are <unknown>.

Expected. (1) The plain pair collapses: a rate below 0.1 nats and no active unit; (2) it is the language model: log p(x) of test words
within 0.05 nats per character. (3) Each of the four remedies has a rate above 1 nat and an active unit. (4) Word dropout costs
likelihood: more than two standard errors of the paired difference below the language model; (5) no remedy is above it by more than 0.05
nats per character. (6) The decoder that writes all at once has a rate above 5 nats and a log p(x) below the language model's by more than
two standard errors. (7) Words that come back whole from their code: of the plain pair fewer than 1 %, with free bits more than that, and
more still where all is written at once, each by two standard errors. (8) Of drawn words more stand in the word list by the language model
than by the decoder that writes all at once. (9) On sentences the plain pair collapses too, and free bits hold three quarters of what they
ask for.

    python examples/text.py --out runs/text        # --quick: seconds
"""

from __future__ import annotations

import argparse
import ast
import functools
import math
import random
import re
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

import experiment
import ppvae
from experiment import Claims, mean_and_se
from ppvae import analysis, guides, models, nn, simulate
from ppvae.analysis import plots
from ppvae.errors import UnreliableWarning
from ppvae.models.text import Autoregressive, TokenDecoder
from ppvae.objectives import Aggressive, FreeBits, cyclical

WORD_LIST = Path("/usr/share/dict/words")
LATENT_DIM = 16
EMBEDDING, HIDDEN = 32, 64
FREE_NATS = 0.25  # of each of the dimensions
LEARNING_RATE = 5e-3
REMEDIES = ("word dropout", "free bits", "cyclical", "aggressive")
PARALLEL = "all at once"


@dataclass(frozen=True)
class Effort:
    words: int
    sentences: int
    epochs: int
    num_test: int
    num_weighed: int
    num_weights: int
    num_draws: int
    second: str | None  # what log p(x) is held against
    modules: int | None  # of the standard library whose docstrings are read; None: all


FULL = Effort(8_000, 4_000, 16, 400, 120, 200, 500, "auto", None)
QUICK = Effort(160, 100, 2, 16, 6, 20, 12, None, 12)


# Where the text comes from.


def docstrings(modules: int | None = None) -> Iterator[str]:
    """Of the modules, classes and functions of Python's standard library, tests left out; of its first files where ``modules`` is told."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(root.rglob("*.py")) if not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(f.parts)]
    for file in files[:modules]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", (SyntaxWarning, DeprecationWarning))  # of the file's own escapes
                tree = ast.parse(file.read_bytes())
        except SyntaxError:  # a file that shows one on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found = ast.get_docstring(node)
                if found:
                    yield found


def sentences(text: str) -> list[str]:
    """Sentences of a text in lower case, tokens apart, 4 to 13 of them with the mark at the end; what is not plain prose is left out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            tokens = re.findall(r"[a-z']+|[.,;:!?]", sentence.lower())
            if re.fullmatch(r"[A-Z][A-Za-z' ,;:]*[.!?]", sentence) and 4 <= len(tokens) <= 13:
                found.append(" ".join(tokens))
    return found


def words(effort: Effort) -> tuple[list[str], str]:
    """All words of 3 to 11 letters, and where they come from."""
    if WORD_LIST.is_file():
        listed, source = WORD_LIST.read_text(encoding="utf-8").split(), str(WORD_LIST)
    else:
        listed = re.findall(r"[a-z]+", " ".join(docstrings(effort.modules)))
        source = f"words of the standard library's docstrings: {WORD_LIST} is not there (apt-get install wamerican)"
    return sorted({word for word in listed if re.fullmatch(r"[a-z]{3,11}", word)}), source


def drawn_file(lines: Sequence[str], num: int, file: Path) -> Path:
    """``num`` of the lines, drawn by seed 0, in a file for ``ppvae.data.text``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(random.Random(0).sample(list(lines), min(num, len(lines)))) + "\n", encoding="utf-8")
    return file


# The programs.


class LanguageModel(torch.nn.Module):
    """The same GRU without a latent: z is 0, of one dimension, whatever the text."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.decoder = TokenDecoder(num_tokens, 1, EMBEDDING, HIDDEN, 0.0)

    def log_p(self, x: dict[str, Tensor]) -> Tensor:
        """log p(x), exactly; (N,), nats."""
        zeros = torch.zeros(len(x["tokens"]), 1)
        return Autoregressive(self.decoder, zeros, x["lengths"], x["tokens"].shape[1]).log_prob(x["tokens"])


def language_model(data: Any, epochs: int, batch_size: int = 128) -> LanguageModel:
    """Trained by maximum likelihood with the optimizer and schedule of the pairs."""
    torch.manual_seed(0)
    model = LanguageModel(len(data.vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = schedule(epochs)(optimizer)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(batch_size):
            optimizer.zero_grad()
            (-model.log_p(data.batch(rows)).mean()).backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


def schedule(epochs: int) -> Any:
    return functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=epochs)


def pair(name: str, data: Any) -> tuple[Any, guides.DiagonalNormal]:
    v, steps = len(data.vocabulary), data.x["tokens"].shape[1]
    pyro.set_rng_seed(0)
    model: Any
    if name == PARALLEL:
        model = models.ParallelText(nn.MLP(LATENT_DIM, [256], steps * v), v, LATENT_DIM)
    else:
        model = models.AutoregressiveText(v, LATENT_DIM, EMBEDDING, HIDDEN, word_dropout=0.5 if name == "word dropout" else 0.0)
    return model, guides.DiagonalNormal(nn.TokenEncoder(v, EMBEDDING, HIDDEN, 2 * LATENT_DIM), LATENT_DIM)


def trained(name: str, data: Any, effort: Effort, out: Path) -> tuple[Any, Any, float]:
    """A pair that was trained there is not trained again; the processor's seconds an epoch, nan then."""
    model, guide = pair(name, data)
    epochs, objective, beta = effort.epochs, TraceMeanField_ELBO(), 1.0
    if name == "free bits":
        objective = FreeBits(FREE_NATS)
    elif name == "cyclical":
        beta = cyclical(cycles=4, rising=0.5)
    folder, began = out / name.replace(" ", "-"), time.process_time()
    new = not folder.exists()
    scheme: dict[str, Any] = {
        "optimizer": functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
        "scheduler": schedule(epochs),
        "compile": False,  # a few thousand steps: compiling a GRU unrolled over time takes longer
        "resume": True,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "beta ends at", UnreliableWarning)
        if name == "aggressive":
            inner = functools.partial(torch.optim.Adam, lr=LEARNING_RATE)
            objective = Aggressive(data, objective, inner, window=5, most=10, num_mutual=500)
        experiment.fit(model, guide, data, objective=objective, epochs=epochs, beta=beta, out=folder, **scheme)
    seconds = (time.process_time() - began) / epochs if new else math.nan
    return model.eval(), guide.eval(), seconds


# What is measured.


@dataclass(frozen=True)
class Point:
    """A program on test data. ``_se`` over the data, ``_mc_se`` Monte Carlo.

    Attributes:
        rate, distortion: Nats of a text; of the language model 0 and -log p(x).
        active, information: Units with Var_x(E[z | x]) above 0.01, and I_q(x; z), at most log N, on test data.
        log_p: Of a token, its text's end among the tokens: sum of log p(x) over sum of lengths.
        difference: log_p less the language model's, of the same texts; ``difference_se`` of the paired ratio.
        trusted: Share of the texts whose log p(x) a second proposal does not contradict.
        whole: Share of texts that come back whole: the likeliest tokens, one by one, at the mean of q(z | x).
        listed: Share of drawn words that stand in the word list; ``new``: and not among the training words. nan for sentences.
        seconds: Of the processor, an epoch; nan where it was not trained in this run.
    """

    corpus: str
    name: str
    rate: float
    rate_se: float
    rate_mc_se: float
    distortion: float
    distortion_se: float
    active: int
    information: float
    log_p: float
    log_p_se: float
    log_p_mc_se: float
    difference: float
    difference_se: float
    trusted: float
    whole: float
    whole_se: float
    listed: float
    listed_se: float
    new: float
    seconds: float


def per_token(values: Tensor, lengths: Tensor) -> tuple[float, float]:
    """sum of values / sum of lengths, and its standard error over the texts, to first order: that of values - ratio * lengths."""
    n, tokens = len(values), lengths.double().sum()
    ratio = values.double().sum() / tokens
    left = values.double() - ratio * lengths
    return ratio.item(), (left.square().sum() * n / (n - 1)).sqrt().div(tokens).item()


def share(yes: Sequence[bool]) -> tuple[float, float]:
    """A share and its standard error; of none or all, that of one among them more or less."""
    n, p = len(yes), sum(yes) / len(yes)
    bounded = min(max(p, 1 / n), 1 - 1 / n) if n > 2 else 0.5
    return p, math.sqrt(bounded * (1 - bounded) / n)


@torch.no_grad()
def likeliest(model: Any, z: Tensor, steps: int) -> Tensor:
    """The likeliest tokens given z: each given those before it, or each by itself; (M, T)."""
    if isinstance(model, models.ParallelText):
        return model.network(z).unflatten(-1, (steps, model.num_tokens)).argmax(-1)
    tokens = torch.zeros(len(z), steps, dtype=torch.long)
    for t in range(steps):
        tokens[:, t] = model.decoder.logits(z, tokens)[:, t].argmax(-1)
    return tokens


def whole_lengths(data: Any, num: int) -> dict[str, Tensor]:
    """A template whose texts may fill all steps: where one ends is drawn with it."""
    steps = data.x["tokens"].shape[1]
    return {"tokens": torch.zeros(num, steps, dtype=torch.long), "lengths": torch.full((num,), steps)}


@torch.no_grad()
def draws(model: Any, data: Any, num: int) -> list[str]:
    """Texts drawn from the model, up to their end."""
    template = whole_lengths(data, num)
    if isinstance(model, LanguageModel):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return ppvae.data.decoded(model.decoder.draw(torch.zeros(num, 1), template["tokens"].shape[1]), data)
    return ppvae.data.decoded(simulate.sample(model, num, template=template, seed=1)["tokens"], data)


def path(model: Any, guide: Any, data: Any, rows: tuple[int, int], num: int = 7) -> list[str]:
    """The likeliest texts along the line between two codes' means, ends among them."""
    one, other = simulate.encode(guide, data[torch.tensor(rows)].x).mean
    weights = torch.linspace(0, 1, num)[:, None]
    return ppvae.data.decoded(likeliest(model, (1 - weights) * one + weights * other, data.x["tokens"].shape[1]), data)


@dataclass(frozen=True)
class Corpus:
    name: str
    data: Any  # ppvae.data.Splits
    listed: frozenset[str]  # words that there are; none for sentences
    exact: Tensor  # log p(x) of the weighed test texts by the language model


def measured(name: str, programs: tuple[Any, Any], corpus: Corpus, effort: Effort, seconds: float) -> Point:
    model, guide = programs
    test = corpus.data.test[: effort.num_test]
    weighed = test[: effort.num_weighed]
    lengths = weighed.x["lengths"]
    a, b = (analysis.elbo(model, guide, test, num_particles=10, seed=seed) for seed in (1, 2))
    rate, distortion = (a.rate + b.rate) / 2, (a.distortion + b.distortion) / 2
    usage = analysis.latent_usage(model, guide, test, num_particles=4, num_mutual=len(test))
    # a wide posterior of a decoder that tells much about z: there refined proposals pay
    proposal = "refined" if name == PARALLEL else "guide"
    found = analysis.log_likelihood(model, guide, weighed, num_particles=effort.num_weights, proposal=proposal, second=effort.second)
    log_p, log_p_se = per_token(found.pointwise, lengths)
    difference, difference_se = per_token(found.pointwise - corpus.exact, lengths)
    said = ppvae.data.decoded(test.x["tokens"], test)
    codes = simulate.encode(guide, test.x).mean
    back = ppvae.data.decoded(likeliest(model, codes, test.x["tokens"].shape[1]), test)
    listed, listed_se, new = in_list(draws(model, test, effort.num_draws), corpus)
    return Point(
        corpus.name,
        name,
        *mean_and_se(rate),
        ((a.rate - b.rate) / 2).norm().item() / len(rate),
        *mean_and_se(distortion),
        usage.active_units["z"],
        usage.mutual_information,
        log_p,
        log_p_se,
        found.pointwise_se.norm().item() / lengths.sum().item(),
        difference,
        difference_se,
        found.trusted.double().mean().item(),
        *share([one == other for one, other in zip(said, back, strict=True)]),
        listed,
        listed_se,
        new,
        seconds,
    )


def in_list(drawn: Sequence[str], corpus: Corpus) -> tuple[float, float, float]:
    """Share that stands in the word list, its error, and the share that stands there and not in the training words."""
    if not corpus.listed:
        return math.nan, math.nan, math.nan
    known = set(ppvae.data.decoded(corpus.data.train.x["tokens"], corpus.data.train))
    return (*share([word in corpus.listed for word in drawn]), share([word in corpus.listed - known for word in drawn])[0])


def alone(corpus: Corpus, model: LanguageModel, effort: Effort, seconds: float) -> Point:
    """The language model's point."""
    test = corpus.data.test[: effort.num_test]
    with torch.no_grad():
        distortion, distortion_se = mean_and_se(-model.log_p(test.x))
    log_p, log_p_se = per_token(corpus.exact, test.x["lengths"][: effort.num_weighed])
    listed, listed_se, new = in_list(draws(model, test, effort.num_draws), corpus)
    nothing = (0.0, 0.0, 0.0)
    return Point(
        corpus.name, "language model", *nothing, distortion, distortion_se, 0, 0.0, log_p, log_p_se, 0.0, 0.0, 0.0, 1.0, math.nan, math.nan,
        listed, listed_se, new, seconds,
    )  # fmt: skip


# What is printed and drawn.


def table(points: Sequence[Point]) -> str:
    lines = [
        f"{'':<11}{'':<16}{'rate ± data ± MC':>24}{'distortion':>16}{'active':>8}{'I(x;z)':>8}{'log p a token ± data ± MC':>28}"
        f"{'less language model':>21}{'trusted':>9}{'back whole':>16}{'in the list':>16}{'new':>7}{'s/epoch':>9}"
    ]
    for p in points:
        lines.append(
            f"{p.corpus:<11}{p.name:<16}{p.rate:>10.3f} ± {p.rate_se:.3f} ± {p.rate_mc_se:.3f}{p.distortion:>9.2f} ± {p.distortion_se:.2f}"
            f"{p.active:>8}{p.information:>8.2f}{p.log_p:>12.4f} ± {p.log_p_se:.4f} ± {p.log_p_mc_se:.4f}"
            f"{p.difference:>12.4f} ± {p.difference_se:.4f}{p.trusted:>9.3f}{p.whole:>9.3f} ± {p.whole_se:.3f}"
            f"{p.listed:>9.3f} ± {p.listed_se:.3f}{p.new:>7.3f}{p.seconds:>9.1f}"
        )
    return "\n".join(lines)


def claims(points: Sequence[Point]) -> Claims:
    at = {(p.corpus, p.name): p for p in points}
    plain, alone, free, parallel = (at["words", name] for name in ("plain", "language model", "free bits", PARALLEL))
    dropout = at["words", "word dropout"]
    remedies = [at["words", name] for name in REMEDIES]
    best = max(remedies, key=lambda p: p.difference)
    found = {
        "the plain pair collapses": (
            plain.rate < 0.1 and plain.active == 0,
            f"rate {plain.rate:.4f} ± {plain.rate_se:.4f} nats, {plain.active} active units of {LATENT_DIM}",
        ),
        "it is the language model": (abs(plain.difference) < 0.05, f"{told(plain)} nats per character from it"),
    }
    for p in remedies:
        found[f"{p.name} fills z"] = (p.rate > 1 and p.active > 0, f"rate {p.rate:.3f} ± {p.rate_se:.3f} nats, {p.active} active")
    found |= {
        "word dropout costs likelihood": (
            dropout.difference < -2 * dropout.difference_se,
            f"{told(dropout)} nats per character from the language model",
        ),
        "no remedy is above the language model": (best.difference < 0.05, f"the best, {best.name}: {told(best)} nats per character"),
        "writing all at once fills z": (parallel.rate > 5, f"rate {parallel.rate:.2f} ± {parallel.rate_se:.2f}, {parallel.active} active"),
        "and costs likelihood": (parallel.difference < -2 * parallel.difference_se, f"{told(parallel)} nats per character"),
        "more words come back whole, the more z holds": (
            plain.whole < 0.01
            and free.whole - plain.whole > 2 * math.hypot(free.whole_se, plain.whole_se)
            and parallel.whole - free.whole > 2 * math.hypot(free.whole_se, parallel.whole_se),
            f"plain {plain.whole:.3f} ± {plain.whole_se:.3f}, free bits {free.whole:.3f} ± {free.whole_se:.3f}, "
            f"all at once {parallel.whole:.3f} ± {parallel.whole_se:.3f}",
        ),
        "the language model draws more words of the list": (
            alone.listed - parallel.listed > 2 * math.hypot(alone.listed_se, parallel.listed_se),
            f"{alone.listed:.3f} ± {alone.listed_se:.3f}, all at once {parallel.listed:.3f} ± {parallel.listed_se:.3f}",
        ),
    }
    plain, free = at["sentences", "plain"], at["sentences", "free bits"]
    asked = FREE_NATS * LATENT_DIM
    found |= {
        "on sentences the plain pair collapses too": (
            plain.rate < 0.1 and plain.active == 0,
            f"rate {plain.rate:.4f} ± {plain.rate_se:.4f} nats, {plain.active} active; "
            f"{told(plain)} nats per token from the language model",
        ),
        "and free bits hold the rate": (free.rate > 0.75 * asked, f"{free.rate:.3f} ± {free.rate_se:.3f} nats of {asked:g} asked for"),
    }
    return found


def told(p: Point) -> str:
    return f"{p.difference:+.4f} ± {p.difference_se:.4f}"


INDENT = 23  # characters before what is written
COLOURS = {
    "language model": plots.BLACK,
    "plain": plots.VERMILION,
    "word dropout": plots.ORANGE,
    "free bits": plots.BLUE,
    "cyclical": plots.GREEN,
    "aggressive": plots.UMBER,
    PARALLEL: plots.GREY,
}


def figure(points: Sequence[Point], paths: dict[str, list[list[str]]], drawn: dict[str, list[str]]) -> Figure:
    """Rate, likelihood and reconstruction by program; under them what is written along paths and what is drawn."""
    of_words = [p for p in points if p.corpus == "words"]
    names = [p.name for p in of_words]
    colours = [COLOURS[name] for name in names]
    where = list(range(len(names)))
    with matplotlib.rc_context(plots.STYLE):
        made = Figure(figsize=(2 * plots.WIDTH, 5.0), layout="constrained")
        axes = made.subplot_mosaic([["rate", "log_p", "share"], ["words", "words", "words"], ["more", "more", "more"]],
                                   height_ratios=[2.2, 1.08, 0.72])  # fmt: skip
        rate, log_p, back = axes["rate"], axes["log_p"], axes["share"]
        rate.barh(where, [p.rate for p in of_words], xerr=[2 * p.rate_se for p in of_words], color=colours, error_kw={"elinewidth": 0.7})
        rate.set_xlabel("rate (nats of a word)")
        rate.set_yticks(where, names)
        for y, p in zip(where, of_words, strict=True):
            log_p.errorbar(p.difference, y, xerr=2 * p.difference_se, color=COLOURS[p.name], marker="o", markersize=3.5, elinewidth=0.8)
        log_p.axvline(0, color=plots.GREY, linewidth=0.7, linestyle="--")
        log_p.set_xlabel("log p(x) less that of the\nlanguage model (nats a character)")
        height = 0.38
        back.barh([y - height / 2 for y in where], [0 if math.isnan(p.whole) else p.whole for p in of_words], height, color=plots.BLUE)
        back.barh([y + height / 2 for y in where], [p.listed for p in of_words], height, color=plots.ORANGE)
        back.plot([], [], color=plots.BLUE, linewidth=4, label="come back whole")
        back.plot([], [], color=plots.ORANGE, linewidth=4, label="drawn ones listed")
        back.set_xlabel("share of words")
        back.set_xlim(0, min(1.0, 1.8 * max(0.05, *(p.listed for p in of_words), *(p.whole for p in of_words[1:]))))
        back.legend(loc="lower right", fontsize=6.5)
        for each in (log_p, back):
            each.set_yticks(where, [""] * len(where))
        for each in (rate, log_p, back):
            each.set_ylim(len(names) - 0.5, -0.5)
        lines = [f"{f'drawn, {name}:':<{INDENT}}" + ", ".join(texts) for name, texts in drawn.items()]
        under = {"words": "\n".join([*written(paths, "words"), *lines]), "more": "\n".join(written(paths, "sentences"))}
        for name, said in under.items():
            axes[name].text(0, 1, said, family="monospace", fontsize=6, va="top", linespacing=1.35)
        for each in (axes["words"], axes["more"]):
            each.axis("off")
    return made


def written(paths: dict[str, list[list[str]]], corpus: str) -> list[str]:
    """A line a path; of sentences a line a point."""
    lines = []
    for name, found in paths.items():
        of, _, program = name.partition(", ")
        if of == corpus:
            between = " > " if corpus == "words" else "\n" + " " * INDENT
            lines += [
                f"{program + (', a path:' if corpus == 'words' else ', sentences:'):<{INDENT}}" + between.join(texts) for texts in found
            ]
    return lines


def run(corpus_name: str, data: Any, listed: frozenset[str], names: Sequence[str], effort: Effort, out: Path) -> tuple[list[Point], Any]:
    """Train and measure the language model and the pairs; the points, and the programs by name."""
    began = time.process_time()
    language = language_model(data.train, effort.epochs)
    seconds = (time.process_time() - began) / effort.epochs
    with torch.no_grad():
        exact = language.log_p(data.test[: effort.num_weighed].x).double()
    corpus = Corpus(corpus_name, data, listed, exact)
    points, programs = [alone(corpus, language, effort, seconds)], {"language model": (language, None)}
    for name in names:
        model, guide, seconds = trained(name, data.train, effort, out / corpus_name)
        points.append(measured(name, (model, guide), corpus, effort, seconds))
        programs[name] = (model, guide)
        print(table(points[-1:]).splitlines()[-1], flush=True)
    return points, programs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--text", type=Path, help="a plain text file: sentences are taken from it")
    own, rest = parser.parse_known_args(arguments)
    options = experiment.options(__doc__, "text", rest)
    effort = QUICK if options.quick else FULL
    listed, source = words(effort)
    of_words = ppvae.data.split(ppvae.data.text(drawn_file(listed, effort.words, options.out / "words.txt"), max_length=13))
    texts = [own.text.read_text(encoding="utf-8")] if own.text else list(docstrings(effort.modules))
    lines = sorted({sentence for text in texts for sentence in sentences(text)})
    file = drawn_file(lines, effort.sentences, options.out / "sentences.txt")
    of_sentences = ppvae.data.split(ppvae.data.text(file, level="words", max_length=14, max_vocabulary=1000))
    said = (
        f"words: {source}, {len(listed):,} of 3 to 11 letters, {effort.words:,} drawn; sentences: "
        f"{own.text or 'docstrings of the standard library'}, {len(lines):,}, at most {effort.sentences:,} drawn"
    )
    print(said, of_words, of_sentences, sep="\n", flush=True)
    points, programs = run("words", of_words, frozenset(listed), ("plain", *REMEDIES, PARALLEL), effort, options.out)
    more, about = run("sentences", of_sentences, frozenset(), ("plain", "free bits"), effort, options.out)
    points += more
    shown = [(0, 1), (2, 3)]
    paths = {f"words, {name}": [path(*programs[name], of_words.test, rows) for rows in shown] for name in ("plain", "free bits", PARALLEL)}
    paths["sentences, free bits"] = [path(*about["free bits"], of_sentences.test, (0, 1), 5)]
    drawn = {name: draws(programs[name][0], of_words.test, 8) for name in ("language model", "free bits", PARALLEL)}
    sampled = {name: draws(about[name][0], of_sentences.test, 4) for name in ("language model", "free bits")}
    record = {
        "source": said,
        "words": {"sha256": of_words.train.sha256, "train": len(of_words.train), "test": len(of_words.test)},
        "sentences": {"sha256": of_sentences.train.sha256, "train": len(of_sentences.train), "test": len(of_sentences.test)},
        "effort": asdict(effort),
        "points": [asdict(p) for p in points],
        "paths": paths,
        "drawn": drawn,
        "drawn_sentences": sampled,
    }
    lines = [f"{name}: {' > '.join(texts)}" for name, found in paths.items() for texts in found]
    lines += [f"drawn, {name}: {' | '.join(texts)}" for name, texts in (drawn | {f"sentences, {k}": v for k, v in sampled.items()}).items()]
    whole = "\n".join([said, "", table(points), "", *lines])
    experiment.finish(options.out, "text", whole, claims(points), figure(points, paths, drawn), record)


if __name__ == "__main__":
    main()
