"""Guides over categories: q(z_j | x) = Categorical(encoder(x)_j), and its relaxation to the simplex."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.batches import Batch, num_data
from ppvae.build import recorded
from ppvae.errors import FamilyError, check_count
from ppvae.families import check_row
from ppvae.guides.amortized import Amortized


@recorded
class Categorical(PyroModule):
    """q(z | x) = prod_j Categorical(z_j; logits = encoder(x)_j), the guide of ``models.Discrete``.

    ``TraceEnum_ELBO(max_plate_nesting=1)`` sums over its states, all others draw them: ``Trace_ELBO`` by score functions.

    Args:
        encoder: (N, *event) -> (N, M C), category fastest.
        num_latents: M.
        num_categories: C.
    """

    def __init__(self, encoder: nn.Module, num_latents: int, num_categories: int) -> None:
        super().__init__()
        check_count("num_latents", num_latents)
        check_count("num_categories", num_categories, 2)
        self.encoder = encoder
        self.num_latents, self.num_categories = num_latents, num_categories

    def forward(self, x: Batch) -> None:
        """Draw z_1, ..., z_M given x, (N, *event).

        Raises:
            FamilyError: The encoder has not M C outputs.
        """
        row = self.encoder(x)
        if row.shape[-1] != self.num_latents * self.num_categories:
            raise FamilyError(
                f"{self.num_latents} latents of {self.num_categories} categories need {self.num_latents * self.num_categories} numbers "
                f"per datum, got {row.shape[-1]}",
                mend=f"let the encoder end in {self.num_latents * self.num_categories} outputs",
            )
        logits = row.unflatten(-1, (self.num_latents, self.num_categories))
        with pyro.plate("data", num_data(x), dim=-1):
            for j in range(self.num_latents):
                pyro.sample(f"z_{j + 1}", dist.Categorical(logits=logits[..., j, :]), infer={"enumerate": "parallel"})


@recorded
class RelaxedCategories:
    """The family: M points on the simplex, RelaxedOneHotCategorical(temperature, logits_j); the row holds the logits, P = M C."""

    def __init__(self, num_latents: int, num_categories: int, temperature: float) -> None:
        check_count("num_latents", num_latents)
        check_count("num_categories", num_categories, 2)
        if not temperature > 0:
            raise FamilyError(f"the temperature of a relaxed category must be positive, got {temperature}")
        self.num_latents, self.num_categories, self.temperature = num_latents, num_categories, temperature
        self.latent_dim = self.num_parameters = num_latents * num_categories

    def distribution(self, parameters: Tensor) -> TorchDistribution:
        """(..., M C) -> a distribution of event shape (M, C)."""
        check_row(self, parameters)
        logits = parameters.unflatten(-1, (self.num_latents, self.num_categories))
        return dist.RelaxedOneHotCategorical(logits.new_tensor(self.temperature), logits=logits).to_event(1)  # type: ignore[no-any-return]


@recorded
class RelaxedCategorical(Amortized):
    """q(z | x) = prod_j RelaxedOneHotCategorical(z_j; temperature, logits = encoder(x)_j), M C outputs; the guide of ``models.Relaxed``.

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax, sec. 2.
    """

    def __init__(self, encoder: nn.Module, num_latents: int, num_categories: int, temperature: float = 0.5) -> None:
        super().__init__(encoder, RelaxedCategories(num_latents, num_categories, temperature))
