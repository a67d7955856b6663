"""One question about a pair a file."""

if __name__ != "ppvae.analysis":
    raise ImportError("import ppvae.analysis, not analysis: a second copy of these classes would be unequal to the first")

from ppvae.analysis import latents
from ppvae.analysis.annealed_log_likelihood import AnnealedLogLikelihood, annealed_log_likelihood
from ppvae.analysis.bidirectional import BidirectionalMonteCarlo, bidirectional
from ppvae.analysis.bounds import Bounds, bounds
from ppvae.analysis.calibration import Calibration, calibration
from ppvae.analysis.compare import Comparison, compare
from ppvae.analysis.corrected import Corrected, corrected
from ppvae.analysis.dimension import CorrelationDimension, TwoNN, correlation_dimension, two_nn
from ppvae.analysis.disentanglement import (
    DCI,
    Disentanglement,
    FactorVAEScore,
    Gap,
    dci,
    disentanglement,
    factor_vae_score,
    mutual_information_gap,
    separated_attribute_predictability,
)
from ppvae.analysis.elbo import ELBO, elbo
from ppvae.analysis.estimate import Estimate, Provenance
from ppvae.analysis.exact_log_likelihood import exact_log_likelihood, exact_posterior
from ppvae.analysis.exact_results import ExactLogLikelihood, ExactPosterior
from ppvae.analysis.imputation import Imputation, impute
from ppvae.analysis.inference_gaps import InferenceGaps, inference_gaps
from ppvae.analysis.latent_usage import LatentUsage, latent_usage
from ppvae.analysis.latents import (
    AggregatedPosterior,
    AttributeEdit,
    AttributeEffect,
    AttributeVector,
    AverageImages,
    Codes,
    Completeness,
    Continuity,
    Interpolation,
    Origin,
    PriorGrid,
    Traversal,
)
from ppvae.analysis.log_likelihood import LogLikelihood, log_likelihood
from ppvae.analysis.posterior import Posterior, posterior
from ppvae.analysis.predictive_check import KHatByLabel, PredictiveCheck, k_hat_by_label, predictive_check
from ppvae.analysis.probes import Probe, Probes, probe, probes
from ppvae.analysis.rate_distortion import RateDistortion, rate_distortion
from ppvae.analysis.refine import Refinement, refine
from ppvae.analysis.report import Judgement, RunComparison, compare_report, compare_runs, judge, report
from ppvae.analysis.to_arviz import to_arviz
from ppvae.analysis.verdict import Verdict

__all__ = [
    "DCI",
    "ELBO",
    "AggregatedPosterior",
    "AnnealedLogLikelihood",
    "AttributeEdit",
    "AttributeEffect",
    "AttributeVector",
    "AverageImages",
    "BidirectionalMonteCarlo",
    "Bounds",
    "Calibration",
    "Codes",
    "Comparison",
    "Completeness",
    "Continuity",
    "Corrected",
    "CorrelationDimension",
    "Disentanglement",
    "Estimate",
    "ExactLogLikelihood",
    "ExactPosterior",
    "FactorVAEScore",
    "Gap",
    "Imputation",
    "InferenceGaps",
    "Interpolation",
    "Judgement",
    "KHatByLabel",
    "LatentUsage",
    "LogLikelihood",
    "Origin",
    "Posterior",
    "PredictiveCheck",
    "PriorGrid",
    "Probe",
    "Probes",
    "Provenance",
    "RateDistortion",
    "Refinement",
    "RunComparison",
    "Traversal",
    "TwoNN",
    "Verdict",
    "annealed_log_likelihood",
    "bidirectional",
    "bounds",
    "calibration",
    "compare",
    "compare_report",
    "compare_runs",
    "corrected",
    "correlation_dimension",
    "dci",
    "disentanglement",
    "elbo",
    "exact_log_likelihood",
    "exact_posterior",
    "factor_vae_score",
    "impute",
    "inference_gaps",
    "judge",
    "k_hat_by_label",
    "latent_usage",
    "latents",
    "log_likelihood",
    "mutual_information_gap",
    "posterior",
    "predictive_check",
    "probe",
    "probes",
    "rate_distortion",
    "refine",
    "report",
    "separated_attribute_predictability",
    "to_arviz",
    "two_nn",
]
