"""Small pairs of the shelf's programs, and data for them. Each function builds a new pair (model, guide)."""

from __future__ import annotations

import torch

from ppvae import guides, models, nn
from ppvae.models import likelihoods

D, N = 4, 12  # dimensions of x, data
V, T = 5, 4  # tokens, steps of a text


def binary(n=N, d=D):
    return torch.randint(0, 2, (n, d)).to(torch.get_default_dtype())


def discrete(num_latents=2, num_categories=3):
    model = models.Discrete(nn.MLP(num_latents * num_categories, [5], D), likelihoods.Bernoulli(), num_latents, num_categories)
    with torch.no_grad():
        model.prior_logits.normal_()
    return model, guides.Categorical(nn.MLP(D, [5], num_latents * num_categories), num_latents, num_categories)


def autoencoder():
    network, encoder = nn.MLP(2, [5], D), nn.MLP(D, [5], 2)
    return models.Autoencoder(network, likelihoods.Normal(0.5), 2), guides.Delta(encoder)


def semi_supervised(classification_weight=0.0):
    model = models.SemiSupervised(nn.MLP(1 + 3, [5], D, activation=torch.nn.Tanh), likelihoods.Bernoulli(), 3, 1)
    classifier, encoder = nn.MLP(D, [5], 3), nn.MLP(D + 3, [5], 2)
    return model, guides.SemiSupervised(classifier, encoder, 3, 1, classification_weight)


def partly_labelled(n=N):
    return {"x": binary(n), "y": torch.arange(n) % 3, "labelled": torch.arange(n) % 2 == 0}


def sequences(n=6, steps=4, d=2):
    return {"x": torch.randn(n, steps, d), "lengths": torch.arange(n) % steps + 1}


def deep_markov():
    model = models.DeepMarkov(models.GatedTransition(2, 4), nn.MLP(2, [4], 2), likelihoods.Normal(0.7), 2)
    return model, guides.Recurrent(nn.Recurrent(2, 4, 3, backward=True), nn.MLP(2 + 3, [4], 4), 2)


def texts(n=N):
    return {"tokens": torch.randint(0, V, (n, T)), "lengths": torch.arange(n) % T + 1}


def autoregressive(word_dropout=0.0):
    return models.AutoregressiveText(V, 2, 3, 4, word_dropout), guides.DiagonalNormal(nn.TokenEncoder(V, 3, 4, 4), 2)


def parallel():
    return models.ParallelText(nn.MLP(2, [4], T * V), V, 2), guides.DiagonalNormal(nn.TokenEncoder(V, 3, 4, 4), 2)


def bayesian(network=None, latent_dim=2):
    network = network or nn.MLP(latent_dim, [], D)
    model = models.BayesianDecoder(network, likelihoods.Normal(0.6), latent_dim, weight_scale=0.8)
    local = guides.DiagonalNormal(nn.MLP(D, [5], 2 * latent_dim), latent_dim)
    return model, guides.GlobalWeights(local, network)


def hierarchy():
    model = models.Hierarchical([nn.MLP(1, [4], 4)], (2, 1), nn.MLP(2, [4], D), likelihoods.Bernoulli())
    return model, guides.Hierarchical([nn.MLP(D, [4], 4), nn.MLP(2, [4], 2)], (2, 1))


def ladder():
    model = models.Ladder([nn.MLP(1, [4], 4)], (2, 1), nn.MLP(3, [4], D), likelihoods.Bernoulli())
    encoders = [nn.MLP(D, [4], 4), nn.MLP(4, [4], 3)]
    return model, guides.Ladder(model, encoders, [nn.MLP(4, [], 4), nn.MLP(3, [], 2)], (2, 1))


def relaxed():
    model = models.Relaxed(nn.MLP(6, [5], D), likelihoods.Bernoulli(), 2, 3)
    return model, guides.RelaxedCategorical(nn.MLP(D, [5], 6), 2, 3)
