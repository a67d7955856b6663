"""p(x | z) p(z): one generative program a file."""

if __name__ != "ppvae.models":
    raise ImportError("import ppvae.models, not models: a second copy of these classes would be unequal to the first")

from ppvae.models import likelihoods, missing, priors
from ppvae.models.autoencoder import Autoencoder
from ppvae.models.bayesian_decoder import BayesianDecoder
from ppvae.models.deep_markov import DeepMarkov, GatedTransition
from ppvae.models.discrete import Discrete, Relaxed
from ppvae.models.hierarchical import Hierarchical
from ppvae.models.ladder import Ladder
from ppvae.models.latent_variable import Bernoulli, LatentVariable, Normal
from ppvae.models.linear_gaussian import LinearGaussian
from ppvae.models.semi_supervised import SemiSupervised
from ppvae.models.text import AutoregressiveText, ParallelText

__all__ = [
    "Autoencoder",
    "AutoregressiveText",
    "BayesianDecoder",
    "Bernoulli",
    "DeepMarkov",
    "Discrete",
    "GatedTransition",
    "Hierarchical",
    "Ladder",
    "LatentVariable",
    "LinearGaussian",
    "Normal",
    "ParallelText",
    "Relaxed",
    "SemiSupervised",
    "likelihoods",
    "missing",
    "priors",
]
