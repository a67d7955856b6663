"""One question about a pair a file."""

if __name__ != "ppvae.analysis":
    raise ImportError("import ppvae.analysis, not analysis: a second copy of these classes would be unequal to the first")

from ppvae.analysis.compare import Comparison, compare
from ppvae.analysis.elbo import ELBO, elbo
from ppvae.analysis.estimate import Estimate, Provenance
from ppvae.analysis.inference_gaps import InferenceGaps, inference_gaps
from ppvae.analysis.latent_usage import LatentUsage, latent_usage
from ppvae.analysis.log_likelihood import LogLikelihood, log_likelihood
from ppvae.analysis.refine import Refinement, refine
from ppvae.analysis.to_arviz import to_arviz

__all__ = [
    "ELBO",
    "Comparison",
    "Estimate",
    "InferenceGaps",
    "LatentUsage",
    "LogLikelihood",
    "Provenance",
    "Refinement",
    "compare",
    "elbo",
    "inference_gaps",
    "latent_usage",
    "log_likelihood",
    "refine",
    "to_arviz",
]
