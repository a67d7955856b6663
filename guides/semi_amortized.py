"""Semi-amortized inference: the encoder gives the start, a few steps of gradient ascent on the ELBO of each datum follow."""

from __future__ import annotations

import torch
from torch import Tensor

from ppvae.build import recorded
from ppvae.errors import ArgumentError
from ppvae.guides.stepped import Stepped
from ppvae.modules import Program


@recorded
class SemiAmortized(Stepped):
    """row_(k+1) = row_k + lr dELBO(row_k) / drow, from row_0 = guide's, k = 0..steps - 1; q(z | x) = family(row_steps).

    Training differentiates through the steps: the encoder learns to give starts from which the steps end well, and the model's gradient
    has its share through them (second derivatives of the decoder, so a kink such as ReLU's has none to give). A training step costs about
    2 ``steps`` + 1 of the guide's own. Measurements take the steps once for all of x; ``model`` is needed only to train, or to call the
    guide as a plain program.

    Args:
        guide: With ``parameters_at(x)`` and ``family``, or from ``guides.for_model``.
        model: What the steps climb.
        steps: Steps; 0 leaves the guide as it is.
        lr: Their length. Rows hold log scales: above 1 / (largest curvature of log p(x, z)) the steps overshoot.
        clip_norm: Largest norm of a datum's gradient; None for no bound.
        num_draws: Draws a step and datum.
        seed: Rules the draws in eval mode; in training they are new at each call.

    Raises:
        FamilyError: The guide has no rows, or its draws no derivatives.
        ArgumentError: ``lr`` or ``clip_norm`` is not positive.

    References:
        Kim, Wiseman, Miller, Sontag, Rush (2018), Semi-amortized variational autoencoders, sec. 3, algorithm 1.
    """

    _as_it_is = ("model", "steps", "lr", "clip_norm", "num_draws", "seed")

    def __init__(
        self,
        guide: Program,
        model: Program | None = None,
        *,
        steps: int = 5,
        lr: float = 0.1,
        clip_norm: float | None = 5.0,
        num_draws: int = 4,
        seed: int = 0,
    ) -> None:
        if not lr > 0:
            raise ArgumentError(f"lr must be positive, got {lr}")
        if clip_norm is not None and not clip_norm > 0:
            raise ArgumentError(f"clip_norm must be positive or None, got {clip_norm}")
        super().__init__(guide, model, steps, num_draws, seed)
        self.lr, self.clip_norm = lr, clip_norm

    def _moved(self, row: Tensor, gradient: Tensor, step: int) -> Tensor:
        if self.clip_norm is not None:  # a scale far too wide has a gradient that would throw it as far to the other side
            norm = gradient.square().sum(-1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny).sqrt()
            gradient = gradient * (self.clip_norm / norm).clamp(max=1.0)
        return row + self.lr * gradient
