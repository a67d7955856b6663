"""What it costs to see, before every update, that loss and gradient are finite.

    python -m benchmarks.finiteness            # four minutes, one thread

A step of ``ppvae.fit`` as it is, and the same step with the check taken out, in turns of short blocks in one process. Where parameters
come to lie in memory makes a step some percent faster or slower: both step on the same ones, of several pairs, and a round times the next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

import ppvae
from benchmarks.timing import BLOCK_SECONDS, Block, block, interleaved, is_clean, median_interval, ratio
from ppvae import guides, models
from ppvae.engine import Call, Gradients
from ppvae.training import NORM_EVERY

ROUNDS = 64
PAIRS = 8
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


def steppers(network: tuple[str, int, int, int, int], compiled: bool) -> dict[str, Callable[[int], None]]:
    """So many steps as the loop takes them, with the check and without, of one pair with one optimizer."""
    _, pixels, hidden, latents, rows = network
    torch.manual_seed(0)
    model = models.Bernoulli(ppvae.nn.MLP(latents, [hidden, hidden], pixels, torch.nn.Tanh), latent_dim=latents)
    guide = guides.DiagonalNormal(ppvae.nn.MLP(pixels, [hidden, hidden], 2 * latents, torch.nn.Tanh), latent_dim=latents)
    call = Call.of(((torch.rand(rows, pixels) < 0.3).float(),), {})
    adam = functools.partial(torch.optim.Adam, lr=1e-4)
    checked = ppvae.SVI(model, guide, adam, compile=compiled)
    warm(checked, call, rows)
    unchecked = Unchecked(model, guide, adam, compile=compiled)
    unchecked.optim = checked.optim  # the same numbers in the same memory
    with without_bound():
        warm(unchecked, call, rows)
    return {name: functools.partial(take, svi, call, rows) for name, svi in (("checked", checked), ("unchecked", unchecked))}


def take(svi: ppvae.SVI, call: Call, rows: int, steps: int) -> None:
    """Steps of which the first of every sixteen has its norm measured."""
    for step in range(steps):
        svi.measure_norm = step % NORM_EVERY == 0
        svi.take(call, float(rows))


def warm(svi: ppvae.SVI, call: Call, rows: int) -> None:
    """Compile, and get past the steps that are verified often."""
    take(svi, call, rows, 40)
    if svi.engine.on and not svi.engine.steps:
        raise RuntimeError(f"nothing was compiled: {svi.engine.reason}")


def share(network: tuple[str, int, int, int, int], compiled: bool) -> str:
    """A line of the table."""
    runs = [steppers(network, compiled) for _ in range(PAIRS)]
    steps = NORM_EVERY * max(1, round(BLOCK_SECONDS / block(runs[0]["unchecked"], NORM_EVERY)[0]))
    rounds = dict.fromkeys(runs[0], 0)

    def measured(name: str) -> Block:
        seconds, foreign = block(runs[rounds[name] % PAIRS][name], steps, settle=2)
        clean = is_clean(seconds, foreign)
        rounds[name] += clean  # a block that is taken again is of the same pair
        return Block(seconds / steps, clean)

    found = interleaved({name: functools.partial(measured, name) for name in rounds}, ROUNDS)
    cost = ratio(found["checked"], found["unchecked"])
    step = median_interval(found["checked"].clean)
    low, high = (100 * (bound - 1) for bound in (cost.low, cost.high))
    what = f"{network[0]}, {network[-1]} rows | {'compiled' if compiled else 'eager'}"
    return f"| {what} | {1e3 * step.median:.2f} ms | {100 * (cost.median - 1):.1f} % [{low:.1f}, {high:.1f}] |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| network | step | takes | of which the check |\n|---|---|---|---|")
    for network in NETWORKS:
        for compiled in (False, True):
            print(share(network, compiled), flush=True)


if __name__ == "__main__":
    main()
