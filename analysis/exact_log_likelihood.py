"""log p(x) of each datum without sampling: the model's closed form, all states of discrete latents, cubature over one or two dimensions."""

from __future__ import annotations

from ppvae.analysis.exact_results import ExactLogLikelihood, ExactPosterior
from ppvae.analysis.exact_sums import Exact
from ppvae.batches import Batch
from ppvae.data import Data
from ppvae.errors import ArgumentError
from ppvae.modules import Program


def exact_log_likelihood(
    model: Program, x: Data | Batch, *, method: str = "auto", tolerance: float = 1e-4, guide: Program | None = None, seed: int = 0
) -> ExactLogLikelihood:
    """log p(x) of each datum, exact up to a reported bound.

    Args:
        model: A program of one argument, the batch. Its latents in the data plate are discrete with up to 65,536 joint states, or
            continuous in one or two unconstrained dimensions, or both; or it has a method ``log_evidence(x)``. Masks on observed sites are
            heeded.
        x: Data, (N, *event).
        method: "auto", or the one that has to be taken: "closed form", "enumeration", "quadrature", "quadrature and enumeration".
        tolerance: Nats that the cubature's bound is driven below (not below half an epsilon of the programs' dtype, relative to log p).
        guide: Where the model has global sites, one draw from it that all is conditioned on; without it one draw from their prior.
        seed: Rules that draw and where the first cells lie.

    Raises:
        FamilyError: More than two continuous dimensions or 65,536 states, a masked latent, or a method that does not fit the latents.
        ShapeError, ProgramError: The model breaks the contract.
        DataError: Data outside the support of an observed site.
        DivergedError: A log density is nan or +inf.

    Warns:
        UnreliableWarning: The bound of some datum stayed above ``tolerance``.
    """
    return Exact(model, x, method, tolerance, guide, seed).log_likelihood()


def exact_posterior(
    model: Program,
    x: Data | Batch,
    *,
    num_draws: int = 1000,
    method: str = "auto",
    tolerance: float = 1e-4,
    guide: Program | None = None,
    seed: int = 0,
) -> ExactPosterior:
    """The posterior of each datum by enumeration or cubature, as nodes with probabilities and as independent draws.

    Args:
        model, x, tolerance, guide: As for ``exact_log_likelihood``, and what is raised is the same; a closed form has no nodes, so
            ``method`` is another than that.
        num_draws: K, independent draws per datum.
        seed: Rules the draws too.
    """
    if method == "closed form":
        raise ArgumentError("a closed form has no nodes to hand out", mend="method='auto'")
    return Exact(model, x, method, tolerance, guide, seed, closed_form=False).posterior(num_draws)
