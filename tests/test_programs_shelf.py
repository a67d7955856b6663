"""The programs of the shelf, each held to numbers derived by hand: closed forms, sums over states, a Kalman filter, enumerated batches."""

from __future__ import annotations

import functools
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from shelf import (
    D,
    N,
    T,
    V,
    autoencoder,
    autoregressive,
    bayesian,
    binary,
    deep_markov,
    discrete,
    hierarchy,
    parallel,
    partly_labelled,
    relaxed,
    semi_supervised,
    sequences,
    texts,
)
from torch.distributions import MultivariateNormal

import ppvae
from ppvae import analysis, guides, models, nn, simulate
from ppvae.errors import ArgumentError, FamilyError, ShapeError
from ppvae.models import likelihoods
from ppvae.objectives import Scaled, Scales

ROUNDING = 1e-9


def linear(weight, bias=None):
    """An MLP without hidden layers that is this map."""
    weight = torch.as_tensor(weight).to(torch.get_default_dtype())
    network = nn.MLP(weight.shape[1], [], len(weight))
    with torch.no_grad():
        network.layers[0].weight.copy_(weight)
        network.layers[0].bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return network


def normal_row(weight, bias, scale):
    """A network z -> (weight z + bias, log scale): the row of a linear-Gaussian conditional."""
    size = len(weight)
    return linear(torch.cat([weight, torch.zeros_like(weight)]), torch.cat([bias, torch.full((size,), math.log(scale))]))


def all_weights(model, guide, x, num_particles=3):
    return ppvae.log_weights(model, guide, x, num_particles=num_particles)


# Hierarchies


class LinearHierarchy:
    """z_2 ~ N(0, I), z_1 | z_2 ~ N(A z_2 + a, s_1^2 I), x | z_1 ~ N(W z_1 + w, s^2 I), and what follows by products of Normals."""

    def __init__(self, dims=(2, 2), scales=(0.6, 0.4)):
        self.s1, self.s = scales
        self.A, self.a = torch.randn(dims[0], dims[1]), torch.randn(dims[0])
        self.W, self.w = torch.randn(D, dims[0]), torch.randn(D)
        self.dims = dims
        covariance = self.A @ self.A.mT + self.s1**2 * torch.eye(dims[0])
        self.marginal = MultivariateNormal(self.W @ self.a + self.w, self.W @ covariance @ self.W.mT + self.s**2 * torch.eye(D))
        self.x = self.marginal.sample((N,))

    def model(self):
        layers = [normal_row(self.A, self.a, self.s1)]
        return models.Hierarchical(layers, self.dims, linear(self.W, self.w), likelihoods.Normal(self.s)).requires_grad_(False)


def test_log_px_of_a_linear_hierarchy_is_that_of_the_product_of_normals():
    """E[weight] = p(x) for any guide: the prior as one, and the standard error from its own weights."""
    truth = LinearHierarchy(scales=(0.6, 1.5))
    model = truth.model()
    found = analysis.log_likelihood(model, ppvae.programs.prior_of(model), truth.x, num_particles=20_000, second=None)
    assert ((found.pointwise - truth.marginal.log_prob(truth.x)).abs() < 5 * found.pointwise_se + ROUNDING).all()


def ladder_for(truth, model):
    """The guide with the posterior's own numbers, derived here: W diagonal, so that evidence about z_1 is a diagonal Normal."""
    evidence = normal_row(torch.linalg.pinv(truth.W), -torch.linalg.pinv(truth.W) @ truth.w, 1.0)  # the scale by dimension below
    with torch.no_grad():
        evidence.layers[0].bias[truth.dims[0] :] = (truth.s / truth.W.norm(dim=0)).log()
    # z_2 | x: prior N(0, I), x ~ N(W A z_2 + ..., S): precision I + (WA)' S^-1 WA, here diagonal too since A is.
    noise = truth.s1**2 * truth.W @ truth.W.mT + truth.s**2 * torch.eye(D)
    slope = truth.W @ truth.A
    precision = torch.eye(truth.dims[1]) + slope.mT @ torch.linalg.solve(noise, slope)
    gain = torch.linalg.solve(precision, torch.linalg.solve(noise, slope).mT)
    head = normal_row(gain, -gain @ truth.marginal.loc, 1.0)
    with torch.no_grad():
        head.layers[0].bias[truth.dims[1] :] = -precision.diagonal().log() / 2
    return guides.Ladder(model, [torch.nn.Identity()] * 2, [evidence, head], truth.dims)


def test_a_ladder_with_linear_maps_is_the_exact_posterior():
    """With W'W and A diagonal every factor of the posterior is a diagonal Normal, and every log weight is log p(x)."""
    truth = LinearHierarchy()
    truth.W = torch.linalg.qr(torch.randn(D, 2)).Q * torch.tensor([1.5, 0.7])
    truth.A = torch.diag(torch.tensor([0.8, -1.2]))
    covariance = truth.A @ truth.A.mT + truth.s1**2 * torch.eye(2)
    truth.marginal = MultivariateNormal(truth.W @ truth.a + truth.w, truth.W @ covariance @ truth.W.mT + truth.s**2 * torch.eye(D))
    model = truth.model()
    weights = all_weights(model, ladder_for(truth, model), truth.x)
    assert (weights - truth.marginal.log_prob(truth.x)).abs().max() < ROUNDING


def test_the_exact_ladder_is_calibrated_and_one_without_evidence_is_not():
    truth = LinearHierarchy()
    truth.W, truth.A = torch.linalg.qr(torch.randn(D, 2)).Q, torch.diag(torch.tensor([0.8, -1.2]))
    covariance = truth.A @ truth.A.mT + truth.s1**2 * torch.eye(2)
    truth.marginal = MultivariateNormal(truth.W @ truth.a + truth.w, truth.W @ covariance @ truth.W.mT + truth.s**2 * torch.eye(D))
    model = truth.model()
    guide = ladder_for(truth, model)
    assert analysis.calibration(model, guide, template=truth.x, num_data=300, num_draws=50).calibrated
    with torch.no_grad():
        guide.heads[0].layers[0].bias[2:] = 5.0  # evidence about z_1 of next to no precision
    found = analysis.calibration(model, guide, template=truth.x, num_data=300, num_draws=50)
    assert "too wide" in {fault.direction for fault in found.faults}


def test_a_ladders_layers_see_all_latents_above():
    """z_1 | z_2, z_3 ~ N(A (z_3, z_2), s^2) and x | all ~ N(W (z_3, z_2, z_1), s^2): log p(x, z) written out at drawn z."""
    upper, lower, out = torch.randn(2, 1), torch.randn(1, 3), torch.randn(D, 4)
    layers = [normal_row(lower, torch.zeros(1), 0.5), normal_row(upper, torch.zeros(2), 0.7)]
    model = models.Ladder(layers, (1, 2, 1), linear(out), likelihoods.Normal(0.3))
    x = torch.randn(N, D)
    found = poutine.trace(model).get_trace(x)
    z1, z2, z3 = (found.nodes[f"z_{i}"]["value"] for i in (1, 2, 3))
    found.compute_log_prob()

    def density(value, loc, scale):
        return dist.Normal(loc, scale).log_prob(value).sum(-1)

    expected = density(z3, torch.zeros(1), 1.0) + density(z2, z3 @ upper.mT, 0.7) + density(z1, torch.cat([z3, z2], -1) @ lower.mT, 0.5)
    expected = expected + density(x, torch.cat([z3, z2, z1], -1) @ out.mT, 0.3)
    assert (sum(found.nodes[name]["log_prob"] for name in ("z_1", "z_2", "z_3", "x")) - expected).abs().max() < ROUNDING


def test_layers_that_do_not_fit_are_told():
    with pytest.raises(ShapeError, match="L layers of latents need L - 1 networks between them"):
        models.Hierarchical([], (2, 2), nn.MLP(2, [], D), likelihoods.Bernoulli())
    with pytest.raises(ShapeError, match="every layer of latents needs an encoder, got latent_dims=\\(2, 2\\) and 1 encoders"):
        guides.Hierarchical([nn.MLP(D, [], 4)], (2, 2))
    with pytest.raises(ShapeError, match="every layer of latents needs an encoder and a head"):
        guides.Ladder(hierarchy()[0], [nn.MLP(D, [], 4)], [], (2, 2))


# Discrete latents


def states_by_hand(model, x, num_latents, num_categories):
    """log p(x, z) at every state, (N, C^M), with sums and logs written out."""
    log_prior = torch.log_softmax(model.prior_logits, -1)
    columns = []
    for state in itertools.product(range(num_categories), repeat=num_latents):
        code = torch.zeros(num_latents, num_categories)
        code[torch.arange(num_latents), list(state)] = 1
        on = torch.sigmoid(model.network(code.flatten()[None]))
        columns.append(sum(log_prior[j, c] for j, c in enumerate(state)) + torch.where(x > 0, on, 1 - on).log().sum(-1))
    return torch.stack(columns, 1).detach()


def test_log_px_of_discrete_latents_is_the_sum_over_states():
    model, _ = discrete()
    x = binary()
    found = analysis.exact_log_likelihood(model, x)
    assert found.method == "enumeration"
    assert (found.pointwise - torch.logsumexp(states_by_hand(model, x, 2, 3), 1)).abs().max() < ROUNDING


def test_the_enumerated_elbo_is_the_sum_over_the_guides_states():
    model, guide = discrete()
    x = binary()
    log_q = torch.log_softmax(guide.encoder(x).unflatten(-1, (2, 3)), -1)
    joint = (log_q[:, 0, :, None] + log_q[:, 1, None]).flatten(1)  # (N, 9), the second runs fastest
    expected = (joint.exp() * (states_by_hand(model, x, 2, 3) - joint)).sum()
    assert -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x) == pytest.approx(expected.item(), rel=1e-12)


def test_with_one_latent_the_posterior_as_guide_attains_log_px():
    model, guide = discrete(num_latents=1)
    x = binary()
    joint = states_by_hand(model, x, 1, 3)
    guide.encoder = Row(joint)
    assert (all_weights(model, guide, x) - torch.logsumexp(joint, 1)).abs().max() < ROUNDING
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert elbo == pytest.approx(torch.logsumexp(joint, 1).sum().item(), rel=1e-12)


class Row(torch.nn.Module):
    """A table that stands for an encoder; repeated as particles repeat the batch, and cut as a look at a few rows cuts it."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, x):
        return self.rows[: len(x)] if len(x) <= len(self.rows) else self.rows.repeat(len(x) // len(self.rows), 1)


def test_a_relaxed_density_is_that_of_maddison_and_tends_to_its_categories():
    """p(z) = (C - 1)! t^(C-1) prod_k (pi_k z_k^(-t-1)) / (sum_k pi_k z_k^-t)^C (Maddison et al. 2017, eq. 10)."""
    t, size = 0.7, 3
    family = guides.categorical.RelaxedCategories(1, size, t)
    logits, z = torch.randn(size), torch.tensor([0.2, 0.5, 0.3])
    share = torch.softmax(logits, 0)
    expected = math.log(2) + 2 * math.log(t) + (share.log() - (t + 1) * z.log()).sum() - size * (share * z.pow(-t)).sum().log()
    assert family.distribution(logits).log_prob(z[None]).item() == pytest.approx(expected.item())
    drawn = guides.categorical.RelaxedCategories(1, size, 0.01).distribution(logits.expand(20_000, size)).sample()[:, 0]
    frequency = torch.bincount(drawn.argmax(-1), minlength=size) / len(drawn)
    assert ((frequency - share).abs() < 5 * (share * (1 - share) / len(drawn)).sqrt()).all()


def test_a_relaxed_model_has_a_discrete_one_with_the_same_parts():
    model, _ = relaxed()
    twin = model.discrete()
    x = binary()
    assert twin.network is model.network
    assert twin.prior_logits is model.prior_logits
    found = analysis.exact_log_likelihood(twin, x)
    assert (found.pointwise - torch.logsumexp(states_by_hand(model, x, 2, 3), 1)).abs().max() < ROUNDING


def test_an_encoder_of_another_width_is_told():
    with pytest.raises(FamilyError, match="2 latents of 3 categories need 6 numbers per datum, got 5"):
        guides.Categorical(nn.MLP(D, [], 5), 2, 3)(binary())
    with pytest.raises(ShapeError, match="the temperature of a relaxed category must be positive, got 0"):
        models.Relaxed(nn.MLP(6, [], D), likelihoods.Bernoulli(), 2, 3, temperature=0)
    with pytest.raises(FamilyError, match="the temperature of a relaxed category must be positive, got 0"):
        guides.RelaxedCategorical(nn.MLP(D, [], 6), 2, 3, temperature=0)


# The autoencoder


def test_the_loss_of_an_autoencoder_is_its_squared_error():
    """|x - f(g(x))|^2 / (2 s^2) + D log(s sqrt(2 pi)), and nothing of z."""
    model, guide = autoencoder()
    x = torch.randn(N, D)
    error = (x - model.network(guide.encoder(x))).square().sum() / (2 * 0.5**2)
    expected = error + N * D * math.log(0.5 * math.sqrt(2 * math.pi))
    assert Trace_ELBO().loss(model, guide, x) == pytest.approx(expected.item())


def test_an_autoencoder_trains_and_measurement_says_why_it_has_no_bound():
    x = torch.randn(64, 1) @ torch.randn(1, D)
    model, guide = autoencoder()
    before = Trace_ELBO().loss(model, guide, x)
    run = ppvae.fit(model, guide, x, epochs=60, batch_size=32, optimizer=functools.partial(torch.optim.Adam, lr=0.03))
    floor = 64 * D * math.log(0.5 * math.sqrt(2 * math.pi))
    assert Trace_ELBO().loss(model, guide, x) - floor < 0.1 * (before - floor)  # one line through 4 dimensions: an error near 0
    said = "the guide's site 'z' is a point mass, which has no density over z"
    measures = [
        lambda: analysis.elbo(run.model, run.guide, x),
        lambda: analysis.log_likelihood(run.model, run.guide, x),
        lambda: analysis.inference_gaps(run.model, run.guide, x),
        lambda: analysis.calibration(run.model, run.guide, template=x),
    ]
    for measure in measures:
        with pytest.raises(ShapeError, match=said):
            measure()
    assert [finding.problem[: len(said)] for finding in ppvae.check(model, guide, x).errors] == [said]
    codes = simulate.encode(run.guide, x).mean
    decoded = simulate.reconstruct(model, guide.forward, x)
    assert torch.allclose(decoded, model.network(codes), atol=1e-12)
    assert torch.allclose(analysis.latents.codes(model, guide.forward, x).mean, codes, atol=1e-12)


# Semi-supervised


def by_class(model, x, points=40_001):
    """log p(x, y) for y = 0, 1, 2, (N, C), by the trapezoid rule over z in [-8, 8]."""
    z = torch.linspace(-8, 8, points)
    columns = []
    for y in range(3):
        code = torch.nn.functional.one_hot(torch.full((points,), y), 3).to(z.dtype)
        on = torch.sigmoid(model.network(torch.cat([z[:, None], code], -1)))
        terms = torch.where(x[:, None] > 0, on, 1 - on).log().sum(-1) + dist.Normal(0.0, 1.0).log_prob(z)
        columns.append(torch.logsumexp(terms, 1) + math.log(16 / (points - 1)) - math.log(3))
    return torch.stack(columns, 1).detach()


def test_a_label_gives_log_pxy_and_none_the_sum_over_classes():
    model, _ = semi_supervised()
    batch = partly_labelled()
    found = analysis.exact_log_likelihood(model, batch, tolerance=1e-7)
    joint = by_class(model, batch["x"])
    expected = torch.where(batch["labelled"], joint[torch.arange(N), batch["y"]], torch.logsumexp(joint, 1))
    assert ((found.pointwise - expected).abs() <= found.error_bound + 1e-8).all()  # beside its own bound, the trapezoids' error
    assert found.error_bound.max() < 1e-5
    assert (joint[:, 0] - torch.logsumexp(joint, 1)).abs().min() > 0.1  # the two are told apart


def test_the_enumerated_loss_of_m2_is_that_of_its_terms():
    """-U(x) of the unlabelled and -L(x, y) of the labelled data (Kingma et al. 2014, eq. 6, 7), with z held at q's mean by a tiny scale."""
    model, guide = semi_supervised()
    with torch.no_grad():
        guide.encoder.layers[-1].weight[1] = 0
        guide.encoder.layers[-1].bias[1] = -11.5  # log scale
    batch = partly_labelled()
    x, y, known = batch.values()
    codes = torch.eye(3)
    terms = []
    for c in range(3):
        both = torch.cat([x, codes[c].expand(N, 3)], -1)
        loc, log_scale = guide.encoder(both).unbind(-1)
        on = torch.sigmoid(model.network(torch.cat([loc[:, None], codes[c].expand(N, 3)], -1)))
        entropy = log_scale + 0.5 * math.log(2 * math.pi * math.e)
        prior = -0.5 * loc.square() - 0.5 * math.log(2 * math.pi) - math.log(3)
        terms.append(torch.where(x > 0, on, 1 - on).log().sum(-1) + prior + entropy)
    bound = torch.stack(terms, 1)
    log_q = torch.log_softmax(guide.classifier(x), -1)
    expected = torch.where(known, bound[torch.arange(N), y], (log_q.exp() * (bound - log_q)).sum(1)).sum()
    elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=4000, vectorize_particles=True)
    draws_of_entropy = 5 * math.sqrt(N / 2 / 4000)  # log q at its own draws has variance 1/2 a dimension
    assert -elbo.loss(model, guide, batch) == pytest.approx(expected.item(), abs=draws_of_entropy)


def test_the_classifier_is_trained_by_labels_in_training_mode_alone():
    """The loss is larger by alpha times the cross entropy of the labelled data, with the same draws; in eval mode by nothing."""
    model, guide = semi_supervised()
    batch = partly_labelled()

    def loss(weight):
        guide.classification_weight = weight
        pyro.set_rng_seed(0)
        return TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, batch)

    said = torch.log_softmax(guide.classifier(batch["x"]), -1)[torch.arange(N), batch["y"]][batch["labelled"]]
    assert loss(2.5) - loss(0.0) == pytest.approx(-2.5 * said.sum().item())
    guide.eval()
    assert loss(2.5) == loss(0.0)


def test_m2_refuses_what_it_cannot_read():
    with pytest.raises(ShapeError, match="needed a dict of 'x', 'y' and 'labelled', and a Tensor came"):
        semi_supervised()[0](binary())
    with pytest.raises(ArgumentError, match="the weight of the classification is a number >= 0, got -1"):
        guides.SemiSupervised(nn.MLP(D, [], 3), nn.MLP(D + 3, [], 2), 3, 1, classification_weight=-1)


# Deep Markov models


def kalman(x, A, b, Q, C, c, R):
    """log p(x_1..T) of z_t = A z_{t-1} + b + N(0, Q), z_0 = 0, x_t = C z_t + c + N(0, R)."""
    mean, covariance, total = torch.zeros(len(A)), torch.zeros(len(A), len(A)), torch.zeros(())
    for value in x:
        mean, covariance = A @ mean + b, A @ covariance @ A.mT + Q
        S = C @ covariance @ C.mT + R
        total = total + MultivariateNormal(C @ mean + c, S).log_prob(value)
        gain = covariance @ C.mT @ torch.linalg.inv(S)
        mean, covariance = mean + gain @ (value - C @ mean - c), covariance - gain @ C @ covariance
    return total


def test_a_linear_deep_markov_model_has_the_kalman_filters_likelihood():
    batch = sequences()
    A, b, C, c = torch.randn(2, 2) / 2, torch.randn(2), torch.randn(2, 2), torch.randn(2)
    model = models.DeepMarkov(normal_row(A, b, 0.8), linear(C, c), likelihoods.Normal(1.2), 2).requires_grad_(False)
    Q, R = 0.8**2 * torch.eye(2), 1.2**2 * torch.eye(2)
    expected = torch.stack([kalman(x[:end], A, b, Q, C, c, R) for x, end in zip(batch["x"], batch["lengths"], strict=True)])
    found = analysis.log_likelihood(model, ppvae.programs.prior_of(model), batch, num_particles=20_000, second=None)
    assert ((found.pointwise - expected).abs() < 5 * found.pointwise_se).all()
    assert found.pointwise_se.max() < 0.2


def test_what_stands_behind_the_end_of_a_sequence_changes_nothing():
    model, guide = deep_markov()
    batch = sequences()
    behind = torch.arange(4) >= batch["lengths"][:, None]
    other = batch | {"x": torch.where(behind[..., None], 100 * torch.randn(6, 4, 2), batch["x"])}
    assert torch.equal(all_weights(model, guide, batch), all_weights(model, guide, other))


def test_a_sequence_weighs_the_same_without_its_padding():
    """Padding latents are N(0, I) in both programs: at the same z_1, z_2 the log weight is that of the sequence cut to its length."""
    model, guide = deep_markov()
    batch = {"x": torch.randn(3, 4, 2), "lengths": torch.full((3,), 2)}
    cut = {"x": batch["x"][:, :2], "lengths": batch["lengths"]}
    drawn = poutine.trace(guide).get_trace(batch)

    def weight(data):
        q = poutine.trace(poutine.replay(guide, drawn)).get_trace(data)
        p = poutine.trace(poutine.replay(model, q)).get_trace(data)
        return p.log_prob_sum() - q.log_prob_sum()

    assert weight(batch).item() == pytest.approx(weight(cut).item(), abs=ROUNDING)


def test_a_backward_reader_sees_only_what_follows():
    reader = nn.Recurrent(2, 4, 3, backward=True)
    x, lengths = torch.randn(1, 5, 2), torch.tensor([4])
    moved = x.clone()
    moved[:, 2] += 1
    changed = (reader(x, lengths) - reader(moved, lengths)).abs().amax(-1)[0] > 0
    assert changed.tolist()[:4] == [True, True, True, False]
    alone = reader(x[:, :4])  # from its own end, padding or not
    assert torch.allclose(reader(x, lengths)[:, :4], alone, atol=1e-12)
    assert torch.allclose(reader(x.expand(3, 1, 5, 2), lengths)[2], reader(x, lengths), atol=1e-12)


def test_a_forward_reader_sees_only_what_came_before():
    reader = nn.Recurrent(2, 4, 3)
    x = torch.randn(1, 5, 2)
    moved = x.clone()
    moved[:, 2] += 1
    assert ((reader(x) - reader(moved)).abs().amax(-1)[0] > 0).tolist() == [False, False, True, True, True]


def test_the_gated_transition_by_hand():
    transition = models.GatedTransition(2, 4)
    z = torch.randn(5, 2)
    gate, proposed = transition.gate(z), transition.proposed(z)
    loc, log_scale = transition(z).chunk(2, -1)
    assert torch.allclose(loc, (1 - gate) * z + gate * proposed)  # the linear part starts as the identity
    scale = torch.nn.functional.softplus(proposed.relu() @ transition.spread.weight.mT + transition.spread.bias)
    assert torch.allclose(log_scale.exp(), scale)


def test_a_deep_markov_model_refuses_a_plain_tensor():
    with pytest.raises(ShapeError, match="needed a dict of 'x' and 'lengths', and a Tensor came"):
        deep_markov()[0](torch.randn(3, 4, 2))


# Text


def one_token_at_a_time(model, z, tokens, length):
    """log p of the first tokens, with the GRU stepped by hand."""
    decoder, state, total = model.decoder, torch.tanh(model.decoder.first(z))[None], 0.0
    before = V  # the start of the text
    for token in tokens[:length].tolist():
        inputs = torch.cat([decoder.embedding.weight[before], z])[None]
        out, state = decoder.gru(inputs, state)
        total += torch.log_softmax(decoder.out(out[0]), -1)[token].item()
        before = token
    return total


def test_log_p_of_a_text_is_the_sum_of_its_tokens():
    model, _ = autoregressive()
    batch, z = texts(), torch.randn(N, 2)
    found = model.likelihood(z, batch["lengths"], T).log_prob(batch["tokens"])
    expected = [one_token_at_a_time(model, z[i], batch["tokens"][i], int(batch["lengths"][i])) for i in range(N)]
    assert found.tolist() == pytest.approx(expected)
    model, _ = parallel()
    found = model.likelihood(z, batch["lengths"], T).log_prob(batch["tokens"])
    said = torch.log_softmax(model.network(z).reshape(N, T, V), -1)
    expected = [sum(said[i, t, batch["tokens"][i, t]].item() for t in range(int(batch["lengths"][i]))) for i in range(N)]
    assert found.tolist() == pytest.approx(expected)


def test_the_probabilities_of_all_texts_sum_to_one():
    model, _ = autoregressive()
    every = torch.cartesian_prod(*[torch.arange(V)] * T)
    z = torch.randn(1, 2).expand(len(every), -1)
    log_p = model.likelihood(z, torch.full((len(every),), T), T).log_prob(every)
    assert torch.logsumexp(log_p, 0).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("make", [autoregressive, parallel])
def test_filler_behind_the_end_of_a_text_changes_nothing(make):
    model, guide = make()
    batch = texts()
    behind = torch.arange(T) >= batch["lengths"][:, None]
    other = batch | {"tokens": torch.where(behind, (batch["tokens"] + 1) % V, batch["tokens"])}
    assert torch.equal(all_weights(model, guide, batch), all_weights(model, guide, other))


def test_drawn_texts_have_the_frequencies_of_their_density():
    """20,000 draws of two tokens at one z against the V^2 probabilities: each frequency within 5 binomial standard errors."""
    model, _ = autoregressive()
    n = 20_000
    z = torch.randn(1, 2).expand(n, -1)
    drawn = model.likelihood(z, torch.full((n,), 2), 2).sample()
    frequency = torch.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V * V) / n
    every = torch.cartesian_prod(*[torch.arange(V)] * 2)
    p = model.likelihood(z[: len(every)], torch.full((len(every),), 2), 2).log_prob(every).exp()
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_all_words_dropped_is_a_text_that_reads_nothing_in_training_alone():
    """With a share of 1 the density of a token no longer hangs on those before; in eval mode it does again."""
    model, _ = autoregressive(word_dropout=1.0)
    z = torch.randn(1, 2).expand(2, -1)
    two = torch.tensor([[0, 1, 2, 3], [4, 1, 2, 3]])

    def rest():  # log p of the tokens after the first
        whole, first = (model.likelihood(z, torch.full((2,), end), T).log_prob(two) for end in (T, 1))
        return whole - first

    assert rest()[0].item() == pytest.approx(rest()[1].item(), abs=1e-12)
    model.eval()
    assert abs((rest()[0] - rest()[1]).item()) > 1e-4


def test_texts_refuse_what_they_cannot_read():
    with pytest.raises(ShapeError, match="needed a dict of 'tokens' and 'lengths', and a Tensor came"):
        autoregressive()[0](texts()["tokens"])
    with pytest.raises(ShapeError, match="word_dropout is a share in \\[0, 1\\], got 2"):
        autoregressive(word_dropout=2)
    with pytest.raises(ShapeError, match="3 tokens of 5 need 15 outputs, got 20"):
        parallel()[0]({"tokens": torch.zeros(2, 3, dtype=torch.long), "lengths": torch.full((2,), 3)})


# Global weights


def test_given_its_weights_a_linear_bayesian_decoder_is_probabilistic_pca():
    """A measurement is conditional on one draw of the weights w: log N(x; b, W W' + s^2 I) at those."""
    model, guide = bayesian()
    x = torch.randn(N, D)
    w = ppvae.pair.Pair(model, guide, x, 0).globals["weights"]
    W, b = w[: 2 * D].reshape(D, 2), w[2 * D :]
    found = analysis.exact_log_likelihood(model, x, guide=guide, tolerance=1e-7)
    expected = MultivariateNormal(b, W @ W.mT + 0.6**2 * torch.eye(D)).log_prob(x)
    assert (found.pointwise - expected).abs().max() < 1e-6
    assert found.source.conditioned_on == ("weights",)
    site = poutine.trace(poutine.condition(model, {"weights": w})).get_trace(x).nodes["weights"]
    prior = -0.5 * (w / 0.8).square().sum() - len(w) * math.log(0.8 * math.sqrt(2 * math.pi))
    assert site["fn"].log_prob(w).item() == pytest.approx(prior.item())


def test_the_evidence_of_all_data_with_the_weights_integrated_out():
    """One weight w ~ N(0, 0.8^2), z_n ~ N(0, 1), x_n ~ N(w z_n, 0.6^2): p(x) = int N(w; 0, 0.8^2) prod_n N(x_n; 0, w^2 + 0.6^2) dw.

    The mean weight p(x, w, z) / q(w, z), z from its posterior given w, is that integral, here by the trapezoid rule.
    """
    network = torch.nn.Linear(1, 1, bias=False)
    model = models.BayesianDecoder(network, likelihoods.Normal(0.6), 1, weight_scale=0.8)
    x = 1.2 * torch.randn(5, 1)
    w = torch.linspace(-8, 8, 4001)
    inside = dist.Normal(0.0, (w**2 + 0.36).sqrt()).log_prob(x).sum(0) + dist.Normal(0.0, 0.8).log_prob(w)
    truth = torch.logsumexp(inside, 0) + math.log(16 / 4000)

    def guide(x):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        precision = 1 + weights**2 / 0.36
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x * weights / 0.36 / precision, precision.rsqrt()).to_event(1))

    draws = []
    for _ in range(1000):
        q = poutine.trace(guide).get_trace(x)
        draws.append((poutine.trace(poutine.replay(model, q)).get_trace(x).log_prob_sum() - q.log_prob_sum()).detach())
    weights = torch.stack(draws)
    error = (weights - weights.max()).exp()
    se = (error.std() / error.mean() / math.sqrt(len(draws))).item()  # of the log of the mean
    assert se < 0.05
    assert (torch.logsumexp(weights, 0) - math.log(1000) - truth).abs().item() < 5 * se


class Points(torch.nn.Module):
    """A local guide without noise, so that the only draw is that of the weights."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(self.encoder(x), event_dim=1))


def test_the_gradient_of_a_mini_batch_is_unbiased():
    """All 15 batches of 4 of 6 data, the weights drawn alike in each: the mean of their gradients is that of all data."""
    network = nn.MLP(2, [3], D)
    model = models.BayesianDecoder(network, likelihoods.Normal(0.6), 2)
    guide = guides.GlobalWeights(Points(nn.MLP(D, [], 2)), network)
    x = torch.randn(6, D)
    parameters = list(guide.parameters())

    def gradient(batch):
        pyro.set_rng_seed(1)
        scales = Scales(data=len(x) / len(batch))  # what fit puts around both programs
        loss = Trace_ELBO().differentiable_loss(Scaled(model, scales), Scaled(guide, scales), batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    batches = [gradient(x[list(rows)]) for rows in itertools.combinations(range(6), 4)]
    whole = gradient(x)
    assert torch.allclose(torch.stack(batches).mean(0), whole, rtol=1e-9, atol=1e-9)
    assert (torch.stack(batches).std(0) > 1e-3).any()


def test_scales_that_are_not_positive_are_refused():
    with pytest.raises(ShapeError, match="the scale of the weights' prior must be positive, got 0"):
        models.BayesianDecoder(nn.MLP(2, [], D), likelihoods.Normal(1.0), 2, weight_scale=0)
    with pytest.raises(ShapeError, match="the scale of the weights must be positive, got 0"):
        guides.GlobalWeights(guides.DiagonalNormal(nn.MLP(D, [], 4), 2), nn.MLP(2, [], D), initial_scale=0)
