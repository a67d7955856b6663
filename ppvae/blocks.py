"""Log densities of a block of data and particles by one compiled function: the guide's draws, then both programs' densities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree

from ppvae.batches import Batch
from ppvae.compilation import CompiledFunction
from ppvae.pair import Pair
from ppvae.policy import worth
from ppvae.programs import measuring

Densities = tuple[dict[str, Tensor], dict[str, Tensor]]  # log p and log q by site, each (K, n), float64
WORTH_COMPILING = 4_000_000  # weights: some 6 s of them eagerly, where a compiled block takes a third less


class Blocks:
    """The blocks of one measurement. Draws come from torch's generator, seeded by the caller: those of the eager programs.

    Args:
        pair: Whose log densities.
        num_data: Data of a whole block.
        num_particles: Particles of a whole block.
        num_weights: How many weights there will be in all.
    """

    def __init__(self, pair: Pair, num_data: int, num_particles: int, num_weights: int) -> None:
        self.pair, self.num_particles = pair, num_particles
        self._names: tuple[list[str], list[str]] = ([], [])
        self.density = CompiledFunction(
            self._densities, wanted=worth(num_weights, WORTH_COMPILING), shapes=lambda inputs: len(inputs[0]) == num_data
        )

    @property
    def on(self) -> bool:
        """Whether whole blocks run compiled; else ``density.reason`` says why not."""
        return not self.density.reason

    def __call__(self, x: Batch, rows: Tensor) -> Densities:
        """Draw K particles per datum, and score them.

        Args:
            x: Data of the block, n rows.
            rows: (n,), int64, which of all data they are: a local posterior belongs to its data.
        """
        leaves, self._tree = _pytree.tree_flatten(x)
        with measuring(self.pair.model, self.pair.guide):
            found = self.density(rows, *leaves)
        log_p, log_q = self._names
        return dict(zip(log_p, found, strict=False)), dict(zip(log_q, found[len(log_p) :], strict=True))

    def _densities(self, rows: Tensor, *leaves: Tensor) -> list[Tensor]:
        x = _pytree.tree_unflatten(leaves, self._tree)
        with torch.no_grad():
            values, log_q = self.pair.draw(x, rows, self.num_particles)
            log_p = self.pair.score(x, values, num_particles=self.num_particles)
        self._names = list(log_p), list(log_q)
        return [*log_p.values(), *log_q.values()]
