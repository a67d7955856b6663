"""What is measured, part by part; each part runs in a process of its own, started by ``asked``."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import timing
from benchmarks.architectures import PIXELS
from benchmarks.process import ROOT, environment, pinned
from benchmarks.scaling_fit import BATCH, LATENT, WIDTHS, Dense, dense, sizes
from benchmarks.timing import Block, Series


def programs(network: Dense, seed: int = 0) -> tuple[Any, Any]:
    """The built-in pair over this network: model, guide."""
    import torch

    from ppvae import guides, models
    from ppvae.nn import MLP

    torch.manual_seed(seed)
    z, hidden = network.latent_dim, list(network.hidden)
    encoder = MLP(network.pixels, hidden, 2 * z, torch.nn.Tanh)
    decoder = MLP(z, hidden[::-1], network.pixels, torch.nn.Tanh)
    return models.Bernoulli(decoder, latent_dim=z), guides.DiagonalNormal(encoder, latent_dim=z)


def pictures(rows: int, pixels: int) -> NDArray[np.uint8]:
    """Bytes, half of them black; what they show does not change what a step costs."""
    grey = np.random.default_rng(0).integers(0, 512, (rows, pixels), dtype=np.int16)
    return np.where(grey < 256, grey, 0).astype(np.uint8)


def binary(rows: int, pixels: int = PIXELS) -> Any:
    """Data that are 0 and 1, (N, D), float32."""
    import torch

    return torch.from_numpy((pictures(rows, pixels) > 127).astype(np.float32))


def seconds_of(series: Series) -> tuple[float, ...]:
    """The clean blocks; where there is none, the contended ones."""
    return tuple(series.clean or series.contended)


def repeated(one: Callable[[], object]) -> Callable[[int], None]:
    """So many calls."""

    def run(iterations: int) -> None:
        for _ in range(iterations):
            one()

    return run


def block_of(one: Callable[[], object], iterations: int = 1, units: float = 1.0, settle: int = 0) -> Block:
    """A block of calls, seconds a unit."""
    seconds, foreign = timing.block(repeated(one), iterations, settle)
    return Block(seconds / (iterations * units), timing.is_clean(seconds, foreign))


def slope(run: Callable[[int], object], short: int, long: int, units: float) -> Block:
    """Seconds a unit from two calls: what a call costs before its first number drops out."""
    first, second = (timing.block(run, size) for size in (short, long))
    clean = timing.is_clean(*first) and timing.is_clean(*second)
    return Block((second[0] - first[0]) / units, clean)


def rounds_of(measures: Mapping[str, Callable[[], Block]], rounds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """Every measure in every round; seconds, blocks discarded, and whether all were contended."""
    found = timing.interleaved(measures, 2 if quick else rounds, tries=1 if quick else 2)
    return {name: {"seconds": seconds_of(s), "discarded": s.discarded, "contended": not s.clean} for name, s in found.items()}


def steps(quick: bool, folder: Path) -> dict[str, Any]:
    """The training step at every size, and the rate of a matrix product between them."""
    import torch

    from benchmarks.job import Job

    ours = importlib.import_module("benchmarks.rivals.ours")  # chosen by name there too: none of the typed tree depends on a rival
    measures: dict[str, Callable[[], Block]] = {}
    for batch, latent, pixels in sizes(quick):
        images = folder / f"images-{batch}-{pixels}.npy"
        rows = max(20_000, 100 * batch)  # so that the first step of an epoch, which is verified, is one in a hundred
        np.save(images, pictures(rows, pixels))
        step = ours.stepper(Job("step", images=str(images), batch_size=batch), *programs(dense(latent, pixels)))
        images.unlink()
        say(f"  step: batch {batch}, latent {latent}, data {pixels}")
        for _ in range(20):
            step()
        started = time.perf_counter()
        for _ in range(5):
            step()
        each = (time.perf_counter() - started) / 5
        measures[f"{batch} {latent} {pixels}"] = functools.partial(
            block_of, step, max(1, round(timing.BLOCK_SECONDS / each)), settle=math.ceil(timing.SETTLE_SECONDS / each)
        )
    size = 512 if quick else 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    measures["product"] = functools.partial(block_of, lambda: torch.mm(a, b, out=out), 1, 2.0 * size**3)
    return rounds_of(measures, 15, quick)


def weights_sizes(quick: bool) -> list[tuple[int, int]]:
    """K and N."""
    return [(64, 64), (640, 64), (1280, 64), (640, 128)] if quick else [(64, 64), (640, 64), (6400, 64), (640, 256), (640, 1024)]


def weights(quick: bool, _: Path) -> dict[str, Any]:
    """Whole calls of ``ppvae.log_weights``, compiled and not."""
    import ppvae
    from ppvae.policy import compiling

    model, guide = programs(dense())
    x = binary(max(n for _, n in weights_sizes(quick)))

    def call(k: int, n: int, choice: bool) -> object:
        with compiling(choice):
            return ppvae.log_weights(model, guide, x[:n], num_particles=k, seed=k)

    measures: dict[str, Callable[[], Block]] = {}
    for choice in (True, False):
        call(128, 64, choice)  # the compiler works here
        for k, n in weights_sizes(quick):
            measures[f"{int(choice)} {k} {n}"] = functools.partial(block_of, functools.partial(call, k, n, choice))
    return rounds_of(measures, 4, quick)


REFINED, DRAWS, STEPS = 128, 32, (10, 50)
ANNEALED, CHAINS, LEAPS, TEMPERATURES = 64, 16, 10, (3, 11)


def gradients(quick: bool, _: Path) -> dict[str, Any]:
    """Refinement a datum and step, and a leapfrog step a row, compiled and not."""
    import warnings

    from ppvae import analysis
    from ppvae import refinement as refining
    from ppvae.pair import Pair
    from ppvae.policy import compiling

    warnings.simplefilter("ignore")  # an untrained pair's answers are not to be trusted, as they say
    model, guide = programs(dense())
    x = binary(REFINED)

    def refine(choice: bool, num_steps: int) -> object:
        with compiling(choice):
            pair = Pair(model, guide, x, 0)
            return refining.fit(pair, x, family="full_rank", steps=num_steps, num_draws=DRAWS, seed=0, report=False)

    def anneal(choice: bool, num_temperatures: int) -> object:
        with compiling(choice):
            return analysis.annealed_log_likelihood(
                model,
                x[:ANNEALED],
                guide=guide,
                start="guide",
                num_temperatures=num_temperatures,
                num_chains=CHAINS,
                num_leapfrog=LEAPS,
                step_size=0.1,
                seed=0,
            )

    measures: dict[str, Callable[[], Block]] = {}
    for choice in (True, False):
        run = functools.partial(refine, choice)
        run(2)
        measures[f"refinement {int(choice)} {REFINED}"] = functools.partial(slope, run, *STEPS, units=REFINED * (STEPS[1] - STEPS[0]))
        run = functools.partial(anneal, choice)
        run(2)
        units = ANNEALED * CHAINS * LEAPS * (TEMPERATURES[1] - TEMPERATURES[0])
        measures[f"leapfrog {int(choice)} {ANNEALED * CHAINS}"] = functools.partial(slope, run, *TEMPERATURES, units=units)
    return rounds_of(measures, 3, quick)


def epoch(quick: bool, folder: Path) -> dict[str, Any]:
    """The evaluation at the end of an epoch, and a checkpoint of parameters with Adam's two moments."""
    from ppvae import checkpoint
    from ppvae.evaluation import evaluate
    from ppvae.pair import Pair

    measures: dict[str, Callable[[], Block]] = {}
    model, guide = programs(dense())
    for n in (1000, 2000) if quick else (1000, 5000, 10_000):
        x = binary(n)
        one: Callable[[], object] = functools.partial(evaluate, Pair(model, guide, x, 0), x, 0)
        one()
        measures[f"evaluation {n}"] = functools.partial(block_of, one)
    for pixels in WIDTHS:
        pair = programs(dense(LATENT, pixels))
        tensors = {f"{side}.{name}.{i}": p for side in (0, 1) for name, p in pair[side].named_parameters() for i in range(3)}
        one = functools.partial(checkpoint.save, folder, f"step-{pixels:08d}", tensors, {})
        measures[f"checkpoint {dense(LATENT, pixels).parameters}"] = functools.partial(block_of, one)
    return rounds_of(measures, 7, quick)


MEMORY_PIXELS = 64  # rows so short that what a row costs beside its bytes is seen


def memory(quick: bool, folder: Path) -> dict[str, float]:
    """Peak resident MiB by case, each in a process of its own."""
    few, many = (100_000, 500_000) if quick else (500_000, 2_000_000)
    found = {}
    for n in (few, many):
        path = folder / f"rows-{n}.npy"
        np.save(path, np.tile(pictures(1000, MEMORY_PIXELS), (n // 1000, 1)))
        for kind in ("array", "mapped"):
            found[f"{kind} {n}"] = asked(["peak", kind, str(path)])
        path.unlink()
    for k, n in ((640, 64), (1280 if quick else 12_800, 64), (640, 256)):
        found[f"likelihood {k} {n}"] = asked(["peak", "likelihood", str(k), str(n)])
    return found


def peak(kind: str, *arguments: str) -> float:
    """Peak resident MiB of this process after one fit or one evaluation."""
    import warnings

    import ppvae
    from ppvae import analysis

    warnings.simplefilter("ignore")
    if kind == "likelihood":
        k, n = map(int, arguments)
        analysis.log_likelihood(*programs(dense()), binary(n), num_particles=k, second=None)
        return timing.peak_mib()
    network = Dense("small", (8,), 2, "tanh", MEMORY_PIXELS)
    rows = np.load(arguments[0], mmap_mode="r" if kind == "mapped" else None)
    data = ppvae.data.Data.from_arrays(rows, name="rows", binarize="dynamic", levels=255)
    ppvae.fit(*programs(network), data, epochs=1, batch_size=5000, compile=False, device="cpu")
    return timing.peak_mib()


def disk(quick: bool, folder: Path) -> dict[str, float]:
    """Bytes a second that a memory map of 784-byte rows gives, in order and at random, from disk and from the system's cache."""
    import torch

    from ppvae.data.arrays import read

    path, count = folder / "file.npy", 80_000 if quick else 600_000
    np.save(path, np.tile(pictures(1000, PIXELS), (count // 1000, 1)))
    source = np.load(path, mmap_mode="r")
    ordered = list(torch.arange(count).split(BATCH * 20))
    shuffled = list(torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(BATCH))[: 40 if quick else 200]
    found = {}
    for where in ("disk", "cache"):
        for how, indices in (("in order", ordered), ("at random", shuffled)):
            if where == "disk":
                forgotten(path)
            elif how == "in order":
                for index in ordered:
                    read(source, index)
            started = time.perf_counter()
            for index in indices:
                read(source, index)
            found[f"{how}, {where}"] = sum(len(i) for i in indices) * PIXELS / (time.perf_counter() - started)
    return found


def forgotten(path: Path) -> None:
    """Ask the system to drop its cache of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def asked(arguments: Sequence[str], threads: int = 1) -> Any:
    """What a process of its own answers to ``--part``.

    Raises:
        RuntimeError: It did not; its errors stand above.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--part", *arguments],
        cwd=ROOT,
        env=environment(threads, "cpu"),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(pinned, threads),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the part {arguments[0]} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


PARTS: dict[str, Callable[[bool, Path], Any]] = {
    "steps": steps,
    "weights": weights,
    "gradients": gradients,
    "epoch": epoch,
    "memory": memory,
    "disk": disk,
}


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
