"""Iterative amortized inference: a learned network moves each datum's row, fed with the row and the gradient of its ELBO."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from ppvae.batches import Batch
from ppvae.build import recorded
from ppvae.errors import ShapeError
from ppvae.guides.stepped import Stepped
from ppvae.modules import Program


@recorded
class Iterative(Stepped):
    """row_(k+1) = g row_k + (1 - g) u, with (logit g, u) = network(row_k, s(dELBO(row_k) / drow)), from row_0 = guide's.

    The gradient comes in as s(v) = sign(v) log(1 + |v|) and is a constant there: training differentiates through rows and network, not
    through gradients, and needs no second derivatives. ``model`` is needed only to train, or to call the guide as a plain program.

    Args:
        guide: With ``parameters_at(x)`` and ``family``, or from ``guides.for_model``: P numbers a datum.
        network: (N, 2 P) -> (N, 2 P): the row and its gradient to the gate's logits and the new row.
        model: Whose ELBO gives the gradients.
        steps: Steps; 0 leaves the guide as it is.
        num_draws: Draws a step and datum.
        seed: Rules the draws in eval mode; in training they are new at each call.

    Raises:
        FamilyError: The guide has no rows, or its draws no derivatives.
        ShapeError: On the first batch, a network of another width.

    References:
        Marino, Yue, Mandt (2018), Iterative amortized inference, sec. 3 and appendix A: gates, and gradients on a log scale.
    """

    differentiated = False
    _as_it_is = ("model", "steps", "num_draws", "seed")

    def __init__(
        self, guide: Program, network: nn.Module, model: Program | None = None, *, steps: int = 3, num_draws: int = 4, seed: int = 0
    ) -> None:
        super().__init__(guide, model, steps, num_draws, seed)
        self.network = network

    @property
    def passes_gradients(self) -> bool:
        """Whether training reaches all parts: without steps it leaves the network as it is."""
        return self.steps > 0

    def parameters_at(self, x: Batch) -> Tensor:
        """The rows after the steps, (N, P)."""
        pyro.module("update_network", self.network)
        return super().parameters_at(x)

    def _moved(self, row: Tensor, gradient: Tensor, step: int) -> Tensor:
        gradient = gradient.detach()
        found = self.network(torch.cat([row, gradient.sign() * gradient.abs().log1p()], -1))
        if found.shape[-1] != 2 * row.shape[-1]:
            raise ShapeError(
                f"the update network needs {2 * row.shape[-1]} outputs for rows of {row.shape[-1]} numbers, got {found.shape[-1]}",
                mend=f"nn.MLP({2 * row.shape[-1]}, [64], {2 * row.shape[-1]})",
            )
        logit, new = found.chunk(2, -1)
        gate = torch.sigmoid(logit)
        return gate * row + (1 - gate) * new  # type: ignore[no-any-return]
