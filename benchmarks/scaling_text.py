"""What was measured as a document: tables, fits, and predictions with their arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import PIXELS
from benchmarks.scaling_fit import (
    BATCH,
    BATCHES,
    HELD_OUT,
    Cost,
    Dense,
    Point,
    arithmetic_bound_from,
    dense,
    exchange_bytes,
    fitted,
    pass_seconds,
    standard_error,
    step_terms,
)
from benchmarks.scaling_parts import DRAWS, MEMORY_PIXELS
from benchmarks.table import markdown

START, END = "<!-- numbers: written by `make scale` -->", "<!-- end of numbers -->"
ALARM = 0.2  # relative residual from which the document says where and why
# What NVIDIA states for the H100 SXM5: float32 outside of the tensor cores, TF32 in them without sparsity, memory; and its NVLink, one way.
H100_FP32, H100_TF32, H100_BYTES, NVLINK_BYTES = 67e12, 495e12, 3.35e12, 450e9
KERNELS, LAUNCH, GRAPH_LOW, GRAPH_HIGH = 40, 5e-6, 60e-6, 100e-6  # seconds; assumptions
NUM_DATA = 1_000_000_000  # data of the predictions
PARTICLES = 5000
TIMED = ("steps", "weights", "gradients", "epoch")


@dataclass(frozen=True)
class Found:
    """All that was measured.

    Attributes:
        parts: By name of the part, as its process gave it.
        threads: Of each process.
    """

    parts: Mapping[str, Any]
    threads: int = 1

    @property
    def rate(self) -> float:
        """Operations a second of the matrix product."""
        return 1.0 / self.seconds("steps", "product")

    def seconds(self, part: str, name: str) -> float:
        """The median."""
        return float(np.median(self.parts[part][name]["seconds"]))

    @property
    def step_points(self) -> list[Point]:
        """Every size of the step, held out or not."""
        return [self._step_point(name) for name in self.parts["steps"] if name != "product"]

    def _step_point(self, name: str) -> Point:
        batch, latent, pixels = map(int, name.split())
        return Point(name, step_terms(batch, dense(latent, pixels), self.rate), tuple(self.parts["steps"][name]["seconds"]))

    @functools.cached_property
    def step(self) -> Cost:
        """The fit to all sizes but those held out."""
        return fitted([p for p in self.step_points if p.name not in HELD_OUT_NAMES])

    def step_at(self, batch: int, network: Dense | None = None) -> float:
        """Seconds of a step by the fit."""
        return self.step.of(step_terms(batch, network or dense(), self.rate))

    def weight_points(self, compiled: bool) -> list[Point]:
        """Calls that compile have more than 64 particles: those up to the 64th are always eager."""
        found = []
        for name, one in self.parts["weights"].items():
            choice, k, n = map(int, name.split())
            if bool(choice) == compiled and (k > 64 or not compiled):
                found.append(Point(f"K={k}, N={n}", (1.0, float(n), float(n * k)), tuple(one["seconds"])))
        return found

    @functools.cached_property
    def weight(self) -> Cost:
        """A constant, a cost a datum and a cost a weight, compiled."""
        return fitted(self.weight_points(True))

    @functools.cached_property
    def eager_weight(self) -> Cost:
        """The same, not compiled."""
        return fitted(self.weight_points(False))

    def bytes_per_row(self, kind: str) -> float:
        """By which peak memory grows with N, for rows of ``MEMORY_PIXELS`` bytes."""
        at = {int(name.split()[1]): mib for name, mib in self.parts["memory"].items() if name.startswith(kind)}
        return float(at[max(at)] - at[min(at)]) * 2**20 / (max(at) - min(at))


HELD_OUT_NAMES = {" ".join(map(str, size)) for size in HELD_OUT}


def rendered(found: Found, where: Mapping[str, Any], sd: float) -> str:
    """All that stands between the markers.

    Args:
        found: What was measured.
        where: Machine, date and commit.
        sd: Of log p(x) over the data, nats: an assumption of the prediction.
    """
    contended = [f"{part} {name}" for part in TIMED for name, one in found.parts[part].items() if one["contended"]]
    blocks = sum(one["discarded"] for part in TIMED for one in found.parts[part].values())
    lines = [
        "; ".join(f"{key} {value}" for key, value in where.items()) + ".",
        "",
        f"Matrix product: {found.rate / 1e9:.0f} Gflop/s (float32, {found.threads} thread{'s' * (found.threads > 1)}). "
        f"{blocks} blocks were discarded because other processes were at work"
        + (f"; never quiet, and so not to be believed: {', '.join(contended)}." if contended else "."),
        "",
        "## Measured",
        "",
        *section_steps(found),
        *section_weights(found),
        *section_gradients(found),
        *section_epoch(found),
        *section_memory(found),
        *section_disk(found),
        "## Predicted",
        "",
        "Nothing below was measured: it is the fits above carried to sizes beyond them.",
        "",
        *predicted_pass(found),
        *predicted_evaluation(found, sd),
        *predicted_gpu(),
        *predicted_ranks(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def section_steps(found: Found) -> list[str]:
    """The training step."""
    rows = []
    for point in found.step_points:
        batch, latent, pixels = point.name.split()
        modelled = found.step.of(point.terms)
        held = " (held out)" if point.name in HELD_OUT_NAMES else ""
        off = f"{point.median / modelled - 1:+.0%}{held}"
        rows.append([batch, latent, pixels, duration(point.median), duration(point.terms[1]), duration(modelled), off])
    call, product, parameter, logit = found.step.coefficients
    spans = found.step.intervals
    return [
        "### The training step",
        "",
        *markdown(("batch", "latent", "data", "measured", "FLOP / rate", "fit", "measured over fit"), rows),
        "",
        "Fit: step = a + m FLOP / rate + b parameters + c batch x data dimension.",
        "",
        *markdown(
            ("coefficient", "fit", "90 % interval", "of what"),
            [
                ["a", duration(call), span(spans[0]), "a call"],
                ["m", f"{product:.2f}", f"{spans[1][0]:.2f} to {spans[1][1]:.2f}", "the time of the products at the rate of a large one"],
                ["b", duration(parameter), span(spans[2]), f"a parameter: {28 / parameter / 1e9:.1f} GB/s" if parameter else "a parameter"],
                ["c", duration(logit), span(spans[3]), "a pixel and logit of the batch"],
            ],
        ),
        "",
        "Adam reads four numbers a parameter (value, gradient, two moments) and writes three, 28 bytes: the rate beside b counts those.",
        *residual_text(found.step, "step"),
        *held_out_text(found),
        "",
    ]


def held_out_text(found: Found) -> list[str]:
    """How far the fit is off where it did not look, and whether its coefficients can be what they are called."""
    off = {p.name: p.median / found.step.of(p.terms) - 1 for p in found.step_points if p.name in HELD_OUT_NAMES}
    said = [f"Held out: {', '.join(f'{name} ({round(share, 2) + 0.0:+.0%})' for name, share in off.items())}."]
    if any(abs(share) > ALARM for share in off.values()):
        said.append(
            f"Beyond {ALARM:.0%} the formula lacks something there, and predictions far from batch {BATCH} are no better than that."
        )
    if found.step.coefficients[1] < 1:
        said.append("m below 1 cannot be: the products were given to another coefficient, as the sizes here do not tell them apart.")
    return said


def residual_text(cost: Cost, what: str) -> list[str]:
    """The largest residual, and where it is above the alarm every one that is."""
    name, worst = cost.worst
    said = f"Largest relative residual of the {what}: {worst:+.0%} at {name}."
    far = [f"{one} ({off:+.0%})" for one, off in cost.residuals.items() if abs(off) > ALARM]
    if far:
        said += (
            f" Above {ALARM:.0%}: {', '.join(far)}. The fit has one rate for all products, and small or thin ones reach less of it; "
            "and a machine with other work on it spoils single sizes."
        )
    return [said]


def section_weights(found: Found) -> list[str]:
    """Log weights."""
    rows = []
    floor = dense().likelihood_flop / found.rate
    for name in found.parts["weights"]:
        choice, k, n = map(int, name.split())
        if choice:
            compiled, eager = found.seconds("weights", name), found.seconds("weights", f"0 {k} {n}")
            note = "" if k > 64 else " (eager in both)"
            rows.append([str(k) + note, str(n), *(text for t in (compiled, eager) for text in (duration(t), duration(t / (n * k))))])
    table = []
    for label, cost in (("compiled", found.weight), ("eager", found.eager_weight)):
        table.append([label, *(f"{duration(c)} ({span(s)})" for c, s in zip(cost.coefficients, cost.intervals, strict=True))])
    return [
        "### Log weights: K particles, N data",
        "",
        *markdown(("K", "N", "PPVAE_COMPILE=1", "a weight", "PPVAE_COMPILE=0", "a weight"), rows),
        "",
        "Fit: call = a + d N + w N K. The constant of the compiled calls is what each call pays before its first compiled number: two "
        "captures, the compiled code looked up, one block held to the eager one. (The compiler's own first run, some seconds, is not in "
        "it.)",
        "",
        *markdown(("", "a: a call (90 %)", "d: a datum (90 %)", "w: a weight (90 %)"), table),
        "",
        f"The products of one decoder row at the measured rate take {duration(floor)}: a compiled weight costs "
        f"{found.weight.coefficients[2] / floor:.1f} times that, an eager one {found.eager_weight.coefficients[2] / floor:.1f}. "
        + break_even(found),
        *residual_text(found.weight, "compiled calls"),
        *residual_text(found.eager_weight, "eager calls"),
        "",
    ]


def break_even(found: Found) -> str:
    """From how many weights compiling pays, by the fits."""
    saved = found.eager_weight.coefficients[2] - found.weight.coefficients[2]
    lost = found.weight.coefficients[0] - found.eager_weight.coefficients[0]
    if saved <= 0:
        return "On these numbers compiling does not pay at any size."
    return f"Compiling pays from {max(0.0, lost) / saved:,.0f} weights on."


def section_gradients(found: Found) -> list[str]:
    """Refinement and annealing."""
    rows = []
    for name in found.parts["gradients"]:
        kind, choice, n = name.split()
        if choice == "1":
            compiled, eager = found.seconds("gradients", name), found.seconds("gradients", f"{kind} 0 {n}")
            evaluations = DRAWS if kind == "refinement" else 1
            floor = evaluations * dense().latent_gradient_flop / found.rate
            what = f"refinement, {n} data x {DRAWS} draws: a datum and step" if kind == "refinement" else f"leapfrog step, {n} rows: a row"
            rows.append([what, duration(compiled), duration(eager), duration(floor), f"{compiled / floor:.1f}"])
    return [
        "### Gradients by the latent variable",
        "",
        *markdown(("", "compiled", "eager", "FLOP / rate", "compiled over that"), rows),
        "",
        "Each is the difference of two calls with unlike numbers of steps, so that what a call costs before its first step drops out. "
        "Refinement (full rank) has the natural-gradient step of each datum in it, which grows with the cube of the latent dimension; "
        "annealing the float64 energies and everything around a leapfrog step.",
        "",
    ]


def section_epoch(found: Found) -> list[str]:
    """Evaluation and checkpoint."""
    rows = []
    for name in found.parts["epoch"]:
        kind, size = name.split()
        seconds = found.seconds("epoch", name)
        if kind == "evaluation":
            n = int(size)
            draws = min(64, max(1, math.ceil(5000 / n)))
            floor = n * (draws * dense().likelihood_flop + 3 * 2.0 * sum(dense().encoder_products)) / found.rate
            rows.append(
                [f"evaluation of {n:,} data, {draws} draws each", duration(seconds), duration(floor), f"{duration(seconds / n)} a datum"]
            )
        else:
            content = 12 * int(size)
            floor_text = f"{content / 1e6:.1f} MB"
            rows.append([f"checkpoint of {int(size):,} parameters", duration(seconds), floor_text, f"{content / seconds / 1e6:.0f} MB/s"])
    return [
        "### At the end of an epoch",
        "",
        *markdown(("", "measured", "FLOP / rate, or bytes", ""), rows),
        "",
        "Evaluation draws some 5,000 in all, at least one a datum, and runs the encoder three times (for the draws, and twice for the "
        "active "
        "units). A fit evaluates on its validation set, or on 1,000 of its training data: that does not grow with N. A checkpoint holds "
        "each "
        "parameter and Adam's two moments, 12 bytes, hashed, written and flushed to the disk; at the default of one a minute it is no "
        "cost.",
        "",
    ]


def section_memory(found: Found) -> list[str]:
    """Peak memory."""
    if "memory" not in found.parts:
        return ["### Peak memory", "", "Not measured in this run: `python -m benchmarks.scaling --only memory --write docs/scale.md`.", ""]
    rows = []
    for name, mib in found.parts["memory"].items():
        kind, first, *rest = name.split()
        if kind == "likelihood":
            rows.append([f"log_likelihood, K = {int(first):,}, N = {rest[0]}", f"{mib:.0f}"])
        else:
            source = "an array in memory" if kind == "array" else "a memory-mapped file"
            rows.append([f"fit of {int(first):,} rows of {MEMORY_PIXELS} bytes, {source}", f"{mib:.0f}"])
    array, mapped = (found.bytes_per_row(kind) for kind in ("array", "mapped"))
    # two float32 a value, where the code makes them; half of that is beyond what noise of the measurement does
    copies = (
        "The rest of the first is the whole array as float32, of which there are two for a moment, 8 bytes a value: a file that is mapped "
        "has none of that. "
        if array - mapped > 5 * MEMORY_PIXELS
        else ""
    )
    return [
        "### Peak memory",
        "",
        *markdown(("", "peak MiB"), rows),
        "",
        f"A row more costs {array:.0f} bytes in memory and {mapped:.0f} mapped: its own {MEMORY_PIXELS} in the first case, and in both "
        "what a fit knows of each row, its number and its place in the order of the epoch, 8 bytes each, with copies of them for a moment. "
        + copies
        + "`log_likelihood` streams: memory does not grow with K but for the largest 3 sqrt(K) weights a datum. `log_weights`, which "
        "returns all weights, needs 8 K N bytes for them.",
        "",
    ]


def section_disk(found: Found) -> list[str]:
    """The memory map."""
    rows = [[name, f"{rate / 1e6:,.0f} MB/s", f"{rate / PIXELS:,.0f}"] for name, rate in found.parts["disk"].items()]
    return [
        "### Reading a memory map",
        "",
        *markdown(("rows of 784 bytes", "read", "rows a second"), rows),
        "",
        f'Batches of {BATCH} rows at random, stretches in order. "Disk" is after asking the system to forget the file; a virtual disk '
        f"may have a "
        "cache of its own underneath, so that a real one can be slower.",
        "",
    ]


def predicted_pass(found: Found) -> list[str]:
    """Training on 10^9 data."""
    rows = []
    for batch in (100, 512, 4096):
        step = found.step_at(batch)
        whole = pass_seconds(NUM_DATA, batch, step)
        note = "" if batch <= max(BATCHES) else " (outside of what was measured)"
        rows.append(
            [
                f"{batch:,}{note}",
                f"{math.ceil(NUM_DATA / batch):,}",
                duration(step),
                duration(whole),
                f"{batch * PIXELS / step / 1e6:.0f} MB/s",
            ]
        )
    step = found.step_at(BATCH)
    random, ordered = (found.parts["disk"][f"{how}, disk"] for how in ("at random", "in order"))
    memory = "a row's number and place, 8 bytes each,"
    if "memory" in found.parts:
        mapped = found.bytes_per_row("mapped")
        memory = f"{mapped:.0f} bytes a row by the measurement above, {mapped:.0f} GB for 10^9 rows,"
    checked = sum(found.eager_weight.coefficients[1:])
    return [
        "### 10^9 data of 784 bytes",
        "",
        "As bytes they are 10^9 x 784 = 784 GB. One pass takes 10^9 / batch steps:",
        "",
        *markdown(("batch", "steps", "a step, by the fit", "one pass", "bytes wanted"), rows),
        "",
        f"So the arithmetic is, say, 10^9 / {BATCH} x {duration(step)} = {duration(pass_seconds(NUM_DATA, BATCH, step))} on this machine. "
        f"That is {NUM_DATA / 55_000:,.0f} epochs of Fashion-MNIST: a network of this size is trained long before. Before the first step "
        f"`fit` holds every datum against the likelihood once, eagerly, which at {duration(checked)} each (the eager cost a datum and a "
        f"weight) "
        f"is {duration(NUM_DATA * checked)} more; with a run folder it also hashes all data.",
        "",
        f"Reading: the step wants {BATCH * PIXELS / step / 1e6:.0f} MB/s. In order the file gives {ordered / 1e6:,.0f} MB/s, "
        f"{comparison(ordered / (BATCH * PIXELS / step))}. At random it gives {random / 1e6:,.1f} MB/s, so that a batch takes "
        f"{duration(BATCH * PIXELS / random)} to read beside {duration(step)} of computing: a row is 784 bytes, but the system reads "
        f"whole pages "
        "of 4,096 bytes, often with neighbours that nobody asked for, and each is a trip to the disk. A permutation of the whole "
        "file, which is what `fit` draws each epoch, makes every read such a trip as soon as the file is larger than the memory that "
        "caches it. "
        "The remedy is to shuffle once when the file is written, and then to train on stretches of it that fit in memory (`fit` on "
        f"`x[a:b]`, one after the other: {64e9 / PIXELS / 1e6:.0f} million rows in 64 GB), in which the permutation costs nothing. "
        f"Processes of one machine share what the system "
        "has cached of the file.",
        "",
        f"Memory: {memory} although the file stays on disk. "
        f"That is a "
        "limit of today's code (row numbers and permutation are whole), and another reason for stretches.",
        "",
    ]


def comparison(ratio: float) -> str:
    """How many times what is wanted."""
    return f"{ratio:.0f} times as much" if ratio >= 2 else f"{ratio:.1f} of it"


def predicted_evaluation(found: Found, sd: float) -> list[str]:
    """log p(x) of 10^9 data, and of a sample."""
    weight, datum = found.weight.coefficients[2], found.weight.coefficients[1]
    each = datum + PARTICLES * weight
    rows = [[f"{n:,}", duration(n * each), f"{standard_error(sd, n):.3g} nats"] for n in (1_000, 10_000, 100_000, 1_000_000, NUM_DATA)]
    return [
        f"### log p(x) at K = {PARTICLES:,}",
        "",
        f"10^9 x {PARTICLES:,} = 5 x 10^12 weights, at {duration(weight)} each {duration(5e12 * weight)}. Nobody should: the mean "
        f"over a random sample of n data has the standard error sd / sqrt(n), whatever the number of data. With an sd of log p(x) over "
        f"the data of "
        f"{sd:.0f} nats (an assumption, of the size seen on Fashion-MNIST):",
        "",
        *markdown(("n", "time, one thread", "standard error of the mean"), rows),
        "",
        "Two pairs are compared on the same data, by the differences: their sd is far smaller, and n with it. Error from K does not "
        "average out over data (the bound is biased below log p(x)), so time goes into K, or a better proposal, before it goes into n.",
        "",
    ]


def predicted_gpu() -> list[str]:
    """An H100."""
    network = dense()
    flop = network.step_flop(1)
    update = 28 * network.parameters / H100_BYTES
    rows = []
    for label, overhead in (
        (f"{KERNELS} kernels x {LAUNCH * 1e6:.0f} µs", KERNELS * LAUNCH),
        ("CUDA graph, upper", GRAPH_HIGH),
        ("CUDA graph, lower", GRAPH_LOW),
    ):
        bounds = [f"{arithmetic_bound_from(overhead, flop, rate):,}" for rate in (H100_FP32, H100_TF32)]
        rows.append([label, duration(overhead), *bounds])
    times = [
        [f"{b:,}", duration(b * flop / H100_FP32), duration(b * flop / H100_TF32), f"{b / (KERNELS * LAUNCH) / 1e6:.1f} million/s"]
        for b in (100, 512, 4096)
    ]
    return [
        "### A GPU",
        "",
        "Nothing was measured on one. The maker states for an H100 SXM 67 TFLOP/s in float32 without tensor cores, 495 TFLOP/s in TF32 "
        "(dense), and 3.35 TB/s from its memory. Real products of these sizes reach a fraction of such peaks, so that the times below are "
        "floors.",
        "",
        f"A step of A1 is {flop / 1e6:.3f} MFLOP a datum, {flop / H100_FP32 * 1e9:.0f} ns at the float32 peak and "
        f"{flop / H100_TF32 * 1e9:.1f} ns in TF32. "
        f"The update moves 28 x {network.parameters:,} bytes, {duration(update)}. Neither is what a step takes at the usual batches: some "
        f"{KERNELS} kernels started at {LAUNCH * 1e6:.0f} µs each are {duration(KERNELS * LAUNCH)}; with CUDA graphs we expect "
        f"{GRAPH_LOW * 1e6:.0f} to {GRAPH_HIGH * 1e6:.0f} µs. The step is bound by its launches until the arithmetic takes as long:",
        "",
        *markdown(("overhead of a step", "time", "batch, float32", "batch, TF32"), rows),
        "",
        *markdown(("batch", "arithmetic, float32", "arithmetic, TF32", f"data, launch-bound at {KERNELS * LAUNCH * 1e6:.0f} µs"), times),
        "",
        "So below some thousand data a batch a larger one is free, and half as much arithmetic saves nothing. log p(x) has no such "
        "limit: data x "
        f"particles fill the device, and {dense().likelihood_flop / 1e6:.3f} MFLOP a weight are "
        f"{dense().likelihood_flop / H100_FP32 * 1e9:.1f} ns in float32 "
        f"at the peak, 10,000 x {PARTICLES:,} weights {duration(5e7 * dense().likelihood_flop / H100_FP32)}; the 784 logits of a weight, "
        f"written "
        f"to memory and read again where the kernels are not fused, cost {8 * PIXELS / H100_BYTES * 1e9:.1f} ns more.",
        "",
    ]


def predicted_ranks(found: Found) -> list[str]:
    """Several processes."""
    parameters = dense().parameters
    rows = []
    for size in (2, 8):
        sent = exchange_bytes(parameters, size)
        links = [duration(sent / rate) for rate in (1.25e9, 12.5e9, NVLINK_BYTES)]
        rows.append([str(size), f"{sent / 1e6:.2f} MB", *links])
    share = found.step_at(50)
    return [
        "### Several processes",
        "",
        "`torchrun --nproc-per-node=2 -m ppvae train ...` trains with each process on its share of every batch, and sums the gradients "
        "once "
        "a step. A ring sends 4 x parameters x 2 (size - 1) / size bytes from each process:",
        "",
        *markdown(("processes", "bytes sent", "10 Gbit/s", "100 Gbit/s", "NVLink (450 GB/s)"), rows),
        "",
        f"Each link is taken at its full rate and without the time that a message takes to arrive; a step has one message besides the "
        f"gradients "
        f"(whether all are well, and the loss), some ten to a hundred microseconds. A batch of {BATCH} over two processes with a processor "
        f"each leaves each a step of batch 50, {duration(share)} by the fit against {duration(found.step_at(BATCH))}: the constant and "
        f"the update "
        f"are not shared. With an exchange of {duration(exchange_bytes(parameters, 2) / 1.25e9)} over 10 Gbit/s the gain is "
        f"{found.step_at(BATCH) / (share + exchange_bytes(parameters, 2) / 1.25e9):.2f} times; at batch 512, "
        f"{found.step_at(512) / (found.step_at(256) + exchange_bytes(parameters, 2) / 1.25e9):.2f}. Between GPUs a step of "
        f"{duration(KERNELS * LAUNCH)} is bound by its launches, so that more of them pay only with a batch that grows with their number.",
        "",
        "Evaluation shares better: `evaluate` and `gaps` hand out blocks of data and particles, with seeds of their own, and exchange "
        "numbers alone. Their results do not depend on the number of processes (with equally many threads each), and the time is "
        "divided by it.",
        "",
    ]


def duration(seconds: float) -> str:
    """Seconds in a unit that fits."""
    if not seconds:
        return "0"
    for size, name in (
        (365.25 * 86400, "years"),
        (86400, "days"),
        (3600, "h"),
        (60, "min"),
        (1, "s"),
        (1e-3, "ms"),
        (1e-6, "µs"),
        (1e-9, "ns"),
    ):
        if seconds >= size * (2 if size > 1 else 1):
            return f"{seconds / size:.3g} {name}" if seconds < 1000 * size else f"{seconds / size:,.0f} {name}"
    return f"{seconds * 1e9:.2g} ns"


def span(interval: tuple[float, float]) -> str:
    """An interval of seconds."""
    return " to ".join(duration(seconds) for seconds in interval)


def written_into(document: Path, text: str) -> None:
    """Replace what stands between the two markers of a document.

    Raises:
        ValueError: It does not have them, in this order.
    """
    before, start, rest = document.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{document} needs the lines {START} and {END}, with the numbers between them")
    document.write_text(f"{before}{START}\n\n{text}\n{END}{after}")
