"""What it costs to see, before every update, that loss and gradient are finite.

    python -m benchmarks.finiteness            # six minutes, one thread

A step of ``ppvae.fit`` as it is, the same step with the check taken out, and the same step with the norm of the gradient measured, in
turns of single steps and random order in one process: what drifts, and who else uses the machine, meets all alike. Where parameters
come to lie in memory makes a step some percent faster or slower: all step on the same ones, of several pairs.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

import ppvae
from benchmarks.timing import TRIES, busy_seconds, is_clean, median_interval, own_seconds
from ppvae import guides, models
from ppvae.engine import Call, Gradients
from ppvae.training import NORM_EVERY

PAIRS = 7
PAIR_SECONDS = 5.0
# Name, pixels, hidden units, latents, rows: A1 of the other tables, and a network so small that calls are all it costs.
NETWORKS = [("A1", 784, 200, 50, 20), ("A1", 784, 200, 50, 100), ("A1", 784, 200, 50, 512), ("digits", 64, 64, 4, 512)]


class Unchecked(ppvae.SVI):
    """A step that looks at nothing but the loss, which the caller is given."""

    def _sound_loss(self, found: Gradients) -> float:
        return found.loss.item()

    def _check_and_clip(self, loss: Any, params: list[Tensor], divisor: float) -> None:
        torch._foreach_div_([p.grad for p in params if p.grad is not None], divisor)


@contextmanager
def without_bound() -> Iterator[None]:
    """Graphs return the loss once more where the bound would be."""

    def nothing(module: fx.GraphModule, first: int) -> None:
        output = next(node for node in module.graph.nodes if node.op == "output")
        values = list(output.args[0])
        output.args = ([*values[:first], values[0], *values[first:]],)
        module.recompile()

    with mock.patch("ppvae.engine.return_bound", nothing):
        yield


@dataclass(frozen=True)
class Cost:
    """Of one pair.

    Attributes:
        seconds: Of a step without the check.
        check, norm: What is added to it, as a share: by the check, and by the norm that one step of 32 measures for the history.
    """

    seconds: float
    check: float
    norm: float


def steps_of(network: tuple[str, int, int, int, int], compiled: bool) -> dict[str, Callable[[], object]]:
    """A step as the loop takes it, in three ways, of one pair with one optimizer."""
    _, pixels, hidden, latents, rows = network
    torch.manual_seed(0)
    model = models.Bernoulli(ppvae.nn.MLP(latents, [hidden, hidden], pixels, torch.nn.Tanh), latent_dim=latents)
    guide = guides.DiagonalNormal(ppvae.nn.MLP(pixels, [hidden, hidden], 2 * latents, torch.nn.Tanh), latent_dim=latents)
    call = Call.of(((torch.rand(rows, pixels) < 0.3).float(),), {})
    adam = partial(torch.optim.Adam, lr=1e-4)
    checked = ppvae.SVI(model, guide, adam, compile=compiled)
    warm(checked, call, rows)
    unchecked = Unchecked(model, guide, adam, compile=compiled)
    unchecked.optim = checked.optim  # the same numbers in the same memory
    with without_bound():
        warm(unchecked, call, rows)
    return {
        "checked": partial(take, checked, call, rows, False),
        "measured": partial(take, checked, call, rows, True),
        "unchecked": partial(take, unchecked, call, rows, False),
    }


def take(svi: ppvae.SVI, call: Call, rows: int, measured: bool) -> None:
    """One step."""
    svi.measure_norm = measured
    svi.take(call, float(rows))


def warm(svi: ppvae.SVI, call: Call, rows: int) -> None:
    """Compile, and get past the steps that are verified often."""
    for _ in range(40):
        take(svi, call, rows, False)
    if svi.engine.on and not svi.engine.steps:
        raise RuntimeError(f"nothing was compiled: {svi.engine.reason}")


def cost(steps: Mapping[str, Callable[[], object]], order: random.Random) -> Cost:
    """Of single steps in turns, by their medians; taken again where other processes used the processors."""
    for _ in range(TRIES):
        taken: dict[str, list[float]] = {name: [] for name in steps}
        busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
        while time.perf_counter() - started < PAIR_SECONDS:
            for name in order.sample(list(steps), len(steps)):
                before = time.perf_counter()
                steps[name]()
                taken[name].append(time.perf_counter() - before)
        if is_clean(time.perf_counter() - started, (busy_seconds() - busy) - (own_seconds() - own)):
            break
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    base = median["unchecked"]
    return Cost(base, median["checked"] / base - 1, (median["measured"] - median["checked"]) / NORM_EVERY / base)


def line(network: tuple[str, int, int, int, int], compiled: bool) -> str:
    """A line of the table."""
    order = random.Random(0)
    found = [cost(steps_of(network, compiled), order) for _ in range(PAIRS)]
    step = statistics.median(pair.seconds for pair in found)
    shares = [median_interval([100 * share for share in kind]) for kind in zip(*((pair.check, pair.norm) for pair in found), strict=True)]
    told = (f"{share.median:.2f} % [{share.low:.2f}, {share.high:.2f}]" for share in shares)
    return f"| {network[0]}, {network[-1]} rows, {'compiled' if compiled else 'eager'} | {1e3 * step:.2f} ms | {' | '.join(told)} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| step | takes | the check adds | the norm, for the history |\n|---|---|---|---|")
    for network in NETWORKS:
        for compiled in (False, True):
            print(line(network, compiled), flush=True)


if __name__ == "__main__":
    main()
