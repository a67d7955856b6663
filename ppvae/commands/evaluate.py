"""``ppvae evaluate``."""

from __future__ import annotations

from ppvae import analysis
from ppvae.analysis.proposals import NAMES as PROPOSALS
from ppvae.commands.folders import run_and_data, tell_result
from ppvae.commands.processes import together
from ppvae.options import Evaluate, chosen

ELBO_PARTICLES = 1000


def run(options: Evaluate) -> int:
    """Measure the ELBO and log p(x)."""
    proposal = chosen("proposal", options.proposal, list(PROPOSALS))
    found, data = run_and_data(options.run, options.split, options.data, options.num_data)
    few = min(options.num_particles, ELBO_PARTICLES)
    with together("cpu", options.threads):
        elbo = analysis.elbo(found.model, found.guide, data, num_particles=few, seed=options.seed)
        tell_result(found, "elbo", options.split, options.data, elbo)
        log_px = analysis.log_likelihood(
            found.model,
            found.guide,
            data,
            num_particles=options.num_particles,
            proposal=proposal,
            tolerance=options.tolerance,
            seed=options.seed,
        )
        tell_result(found, "log_likelihood", options.split, options.data, log_px)
    return 0
