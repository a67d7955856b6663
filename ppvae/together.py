"""A training step that several processes take together, each on its share of the batch."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.util import torch_item
from torch import Tensor

from ppvae.capture import NotCaptured
from ppvae.engine import Call, Gradients, Untrue
from ppvae.errors import ObjectiveError, ProgramError
from ppvae.modules import Program
from ppvae.ranks import Ranks
from ppvae.svi import SVI, norm_of


class SharedSVI(SVI):
    """``SVI`` whose loss and gradients are summed over the processes of a job before anything looks at them.

    So all of them see the same loss, norm, clipping and update. Where one finds that a compiled step is not what eager Pyro computes,
    all go back together. What stands outside the data plate is drawn by every process that has rows for itself, and they share its weight.

    Args:
        ranks: The processes.
        clip_norm: Of the sum over them.
        model, guide, named: As of ``SVI``.
    """

    def __init__(self, ranks: Ranks, model: Program, guide: Program, *, clip_norm: float | None = None, **named: Any) -> None:
        super().__init__(model, guide, clip_norm=None, **named)  # the engine would clip a share
        self.ranks, self.clip_norm = ranks, clip_norm

    def take_share(self, call: Call | None, n: int, divisor: float, data: float, eagerly: bool) -> float:
        """As ``take``, on this process's share of a batch.

        Args:
            call: The rows of the batch that are this process's; None where there are none.
            n: Rows of the whole batch.
            divisor, data: Of its loss, and of its data terms.
            eagerly: As of ``take``.

        Returns:
            The loss of the whole batch.

        Raises:
            Rewound: As ``take``, in all processes.
            ProgramError: The loss depends on other parameters here than elsewhere.
            LostRankError: Another process has ended.
        """
        self._weigh(data)
        own_rows = self.ranks.share(n)
        self._scales.share = (own_rows.stop - own_rows.start) / n
        self._scales.outside = 1 / min(n, self.ranks.size)  # of fewer rows than processes some have one, the others none
        own, doubt = Gradients(torch.zeros(()), torch.zeros(()), [], []), None
        verified = call is None  # nothing was seen to be wrong where nothing was computed
        if call is not None:
            try:
                found = self.engine.gradients(call, divisor) if self.engine.on and not eagerly else None
                verified = found is not None and found.verified
                own = found or self._by_pyro(call, divisor)
            except (NotCaptured, Untrue) as reason:
                doubt = reason
        self.leaves = list({id(p): p for p in [*self.leaves, *own.leaves]}.values())
        heads = self.ranks.gathered([doubt is not None, verified, len(self.leaves), sum(p.numel() for p in self.leaves), own.loss.item()])
        if heads[:, 0].any():
            self._give_up(self._worst(doubt))
            return self.take_share(call, n, divisor, data, True)
        self._check_leaves(heads[:, 2:4])
        if heads[:, 1].all():
            self.verified = self._remember(self.leaves, own.buffers)
        loss, found = heads[:, 4].sum().item(), self._summed(own)
        assert found.norm is not None  # as ``_summed`` gives it
        self.gradient_norm = found.norm.item()
        if not (abs(loss) < float("inf") and self.gradient_norm < float("inf")):
            self._diverged((loss,))
        if self.clip_norm is not None and found.gradients:
            torch._foreach_mul_(found.gradients, (self.clip_norm / (found.norm + 1e-6)).clamp(max=1.0))
        self._update(found)
        self.steps_taken += 1
        return loss

    def _by_pyro(self, call: Call, divisor: float) -> Gradients:
        """As ``engine.gradients``, by Pyro's own objective."""
        args, kwargs = call.arguments(*call.inputs)
        loss, params = self._loss_and_leaves(args, kwargs)
        if isinstance(loss, tuple):
            raise ObjectiveError("several processes need an objective of one loss, and one of several came", mend="train in one process")
        found = [(p, p.grad / divisor) for p in params if p.grad is not None]
        for param in params:
            param.grad = None
        return Gradients(torch.as_tensor(torch_item(loss) / divisor), torch.zeros(()), [p for p, _ in found], [g for _, g in found])

    def _worst(self, doubt: NotCaptured | Untrue | None) -> NotCaptured | Untrue:
        """Of the doubts of all processes the first, one about steps already taken before one about steps to come."""
        said = [(rank, one) for rank, one in enumerate(self.ranks.exchanged(doubt)) if one is not None]
        rank, worst = next(((rank, one) for rank, one in said if isinstance(one, Untrue)), said[0])
        return type(worst)(f"{worst} (process {rank})")

    def _check_leaves(self, counts: Tensor) -> None:
        """Before gradients of different shapes are summed: numbers of tensors and of their entries, (size, 2)."""
        if (counts != counts[0]).any():
            raise ProgramError(
                f"the loss depends on {', '.join(str(int(n)) for n in counts[:, 0])} parameters in the {self.ranks.size} processes of this "
                f"job, with {', '.join(f'{int(n):,}' for n in counts[:, 1])} numbers in all",
                where=f"step {self.steps_taken}; the last ones in process {self.ranks.rank}: {[tuple(p.shape) for p in self.leaves][-3:]}",
                mend="have every parameter born in the first step, whatever the batch is: a process sees its share of the data alone",
            )

    def _summed(self, own: Gradients) -> Gradients:
        """The sums over the processes; a parameter that none of them has a gradient for is left out."""
        by_leaf = {id(leaf): gradient for leaf, gradient in zip(own.leaves, own.gradients, strict=True)}
        mine = [by_leaf.get(id(p), torch.zeros_like(p)) for p in self.leaves]
        there = torch.tensor([float(id(p) in by_leaf) for p in self.leaves], device=self.leaves[0].device)
        *gradients, there = self.ranks.summed([*mine, there])
        leaves = [leaf for leaf, count in zip(self.leaves, there.tolist(), strict=True) if count]
        gradients = [gradient for gradient, count in zip(gradients, there.tolist(), strict=True) if count]
        norm = norm_of(gradients)
        return Gradients(norm, norm, leaves, gradients, norm)
