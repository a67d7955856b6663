"""One question about a pair a file."""

if __name__ != "ppvae.analysis":
    raise ImportError("import ppvae.analysis, not analysis: a second copy of these classes would be unequal to the first")

from ppvae.analysis.annealed_log_likelihood import AnnealedLogLikelihood, annealed_log_likelihood
from ppvae.analysis.bidirectional import BidirectionalMonteCarlo, bidirectional
from ppvae.analysis.calibration import Calibration, calibration
from ppvae.analysis.compare import Comparison, compare
from ppvae.analysis.corrected import Corrected, corrected
from ppvae.analysis.elbo import ELBO, elbo
from ppvae.analysis.estimate import Estimate, Provenance
from ppvae.analysis.exact_log_likelihood import exact_log_likelihood, exact_posterior
from ppvae.analysis.exact_results import ExactLogLikelihood, ExactPosterior
from ppvae.analysis.inference_gaps import InferenceGaps, inference_gaps
from ppvae.analysis.latent_usage import LatentUsage, latent_usage
from ppvae.analysis.log_likelihood import LogLikelihood, log_likelihood
from ppvae.analysis.posterior import Posterior, posterior
from ppvae.analysis.predictive_check import KHatByLabel, PredictiveCheck, k_hat_by_label, predictive_check
from ppvae.analysis.refine import Refinement, refine
from ppvae.analysis.to_arviz import to_arviz
from ppvae.analysis.verdict import Verdict

__all__ = [
    "ELBO",
    "AnnealedLogLikelihood",
    "BidirectionalMonteCarlo",
    "Calibration",
    "Comparison",
    "Corrected",
    "Estimate",
    "ExactLogLikelihood",
    "ExactPosterior",
    "InferenceGaps",
    "KHatByLabel",
    "LatentUsage",
    "LogLikelihood",
    "Posterior",
    "PredictiveCheck",
    "Provenance",
    "Refinement",
    "Verdict",
    "annealed_log_likelihood",
    "bidirectional",
    "calibration",
    "compare",
    "corrected",
    "elbo",
    "exact_log_likelihood",
    "exact_posterior",
    "inference_gaps",
    "k_hat_by_label",
    "latent_usage",
    "log_likelihood",
    "posterior",
    "predictive_check",
    "refine",
    "to_arviz",
]
