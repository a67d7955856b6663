"""p(x | z) p(z): one generative program a file."""

if __name__ != "ppvae.models":
    raise ImportError("import ppvae.models, not models: a second copy of these classes would be unequal to the first")

from ppvae.models import likelihoods, missing, priors
from ppvae.models.latent_variable import Bernoulli, LatentVariable, Normal
from ppvae.models.linear_gaussian import LinearGaussian

__all__ = ["Bernoulli", "LatentVariable", "LinearGaussian", "Normal", "likelihoods", "missing", "priors"]
