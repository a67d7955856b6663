"""A guide with a refinement behind it: for each batch the inner guide's posteriors, then a few steps on the ELBO of each datum."""

from __future__ import annotations

from typing import Any

from pyro import poutine

from ppvae.batches import Batch
from ppvae.errors import ProgramError
from ppvae.modules import Program
from ppvae.pair import Pair
from ppvae.refinement import check_refinement, fit


class Refined:
    """Semi-amortized inference: any guide, followed by refinement, is itself a guide.

    ``analysis`` hands in model and data and refines once for all of x. The steps are no part of a computation graph: train the inner guide.

    Args:
        guide: Where the refinement starts.
        steps: Of ``num_draws`` draws each; ten close most of a trained encoder's amortization gap.
        family: As of ``analysis.refine``.
        num_draws: Draws a step.
        model: Needed only where the guide is called as a plain program: measurements know their model.
        seed: Rules the refinement.

    References:
        Kim, Wiseman, Miller, Sontag, Rush (2018), Semi-amortized variational autoencoders, sec. 3.
        Hjelm, Cho, Chung, Salakhutdinov, Calhoun, Jojic (2016), Iterative refinement of the approximate posterior.
    """

    def __init__(
        self,
        guide: Program,
        *,
        steps: int = 20,
        family: str = "full_rank",
        num_draws: int = 32,
        model: Program | None = None,
        seed: int = 0,
    ) -> None:
        check_refinement(family, steps, num_draws)
        self.guide, self.model, self.seed = guide, model, seed
        self.steps, self.family, self.num_draws = steps, family, num_draws

    def prepared(self, model: Program, x: Batch) -> Any:
        """The local posteriors of these data.

        Args:
            model: What to refine against.
            x: The whole batch, (N, *event).

        Raises:
            FamilyError: The family cannot be built for this pair.
        """
        how: dict[str, Any] = {"family": self.family, "steps": self.steps, "num_draws": self.num_draws, "seed": self.seed}
        found = fit(Pair(model, self.guide, x, self.seed), x, **how, report=False)
        local: Any = found.guide
        local.name, local.num_evaluations = f"refined {self.family}, {self.steps} steps", found.num_evaluations
        return local

    def __call__(self, x: Batch) -> None:
        """Draw the latents of x.

        Raises:
            ProgramError: No model was handed in.
        """
        if self.model is None:
            raise ProgramError(
                "a refined guide needs its model to run: it maximises the ELBO of each datum",
                mend=["Refined(guide, model=model)", "analysis.elbo(model, Refined(guide), x), which hands it in"],
            )
        with poutine.block():  # the refinement runs model and guide many times: nothing of that belongs to this run
            local = self.prepared(self.model, x)
        local(x)
