"""``ppvae evaluate``."""

from __future__ import annotations

from ppvae import analysis
from ppvae.analysis.proposals import NAMES as PROPOSALS
from ppvae.commands.folders import run_and_data, tell_result
from ppvae.commands.precision import measured_in
from ppvae.commands.processes import together
from ppvae.options import Evaluate, chosen
from ppvae.output import say
from ppvae.ranks import shared

ELBO_PARTICLES = 1000


def run(options: Evaluate) -> int:
    """Measure the ELBO and log p(x), and what else was asked for."""
    proposal = chosen("proposal", options.proposal, list(PROPOSALS))
    found, data = run_and_data(options.run, options.split, options.data, options.num_data)
    pair, where = (found.model, found.guide), (options.split, options.data)
    few = min(options.num_particles, ELBO_PARTICLES)
    with together("cpu", options.threads), measured_in(options.dtype, found, data) as data:
        tell_result(found, "elbo", *where, analysis.elbo(*pair, data, num_particles=few, seed=options.seed))
        log_px = analysis.log_likelihood(
            *pair,
            data,
            num_particles=options.num_particles,
            proposal=proposal,
            tolerance=options.tolerance,
            seed=options.seed,
        )
        tell_result(found, "log_likelihood", *where, log_px, tolerance=options.tolerance)
        if options.tolerance is not None and shared().first:
            reached = 100 * (log_px.pointwise_se <= options.tolerance).double().mean()
            say(f"Monte Carlo error within {options.tolerance:g} nats at {reached:.1f} % of the data")
        if options.bounds:
            particles = particles_up_to(options.num_particles)
            tell_result(found, "bounds", *where, analysis.bounds(*pair, data, num_particles=particles, seed=options.seed))
        if options.calibration is not None:
            judged = analysis.calibration(*pair, template=data, num_data=options.calibration, seed=options.seed)
            tell_result(found, "calibration", *where, judged)
    return 0


def particles_up_to(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... and the largest itself."""
    decades = range(len(str(most)))
    return [k for e in decades for k in (10**e, 2 * 10**e, 5 * 10**e) if k < most] + [most]
