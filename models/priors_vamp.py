"""VampPrior: the mixture of what the guide says at K pseudo-inputs, which are learned."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import FamilyError, ShapeError
from ppvae.families import Family


class Encodes(Protocol):
    """A guide of a family: all of ours but those that wrap another."""

    family: Family

    def parameters_at(self, x: Tensor) -> Tensor:
        """(N, *event) -> (N, P)."""
        ...


@recorded
class VampPrior(nn.Module):
    """p(z) = 1/K sum_k q(z | u_k), with q the guide and u_k learned pseudo-inputs: the aggregate posterior, for K points of one's own.

    The guide's encoder is used, not held: its parameters belong to the guide alone, under the guide's names, and are trained by both
    terms. So the pair is one: a run folder keeps it so, and a model with a copy of the guide is another model.

    Args:
        guide: It has ``parameters_at`` and ``family``, as ``guides.Amortized`` has.
        pseudo_inputs: Where they start, (K, *event), such as rows of the training data; they are free real numbers from there on.

    Raises:
        FamilyError: The guide has no family.
        ShapeError: There is no pseudo-input.

    References:
        Tomczak, Welling (2018), VAE with a VampPrior, sec. 2.
    """

    _as_it_is, _borrowed = ("pseudo_inputs",), "guide"

    def __init__(self, guide: Encodes, pseudo_inputs: Tensor) -> None:
        super().__init__()
        if not (hasattr(guide, "parameters_at") and hasattr(guide, "family")):
            raise FamilyError(
                f"a VampPrior needs a guide with parameters_at and family, got {type(guide).__name__}", mend="guides.DiagonalNormal(...)"
            )
        if pseudo_inputs.dim() < 2 or not len(pseudo_inputs):
            raise ShapeError(f"pseudo-inputs are (K, *event) with K at least 1, got shape {tuple(pseudo_inputs.shape)}")
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone().to(torch.get_default_dtype()))
        self._guide = (guide,)  # in a tuple, where torch does not look for modules: one parameter shall not have two names

    def forward(self) -> TorchDistribution:
        """The mixture over R^Z, its weights equal."""
        (guide,) = self._guide
        components = guide.family.distribution(guide.parameters_at(self.pseudo_inputs))
        weights = torch.zeros(len(self.pseudo_inputs), dtype=self.pseudo_inputs.dtype, device=self.pseudo_inputs.device)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), components)  # type: ignore[no-any-return]
