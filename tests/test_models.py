"""The shelves of this version: networks, likelihoods, models, guides, held to their formulas."""

import functools
import math

import pyro
import pytest
import torch

import ppvae
from ground_truth import linear_gaussian
from ppvae import analysis, guides, models, nn
from ppvae.errors import FamilyError, ShapeError
from ppvae.families import DiagonalNormal, FullRankNormal
from ppvae.models import likelihoods, priors

NETWORKS = {
    "mlp": (lambda: nn.MLP(16, [8, 4], 3), (16,), (3,)),
    "linear": (lambda: nn.MLP(16, [], 3), (16,), (3,)),
    "encoder 8x8": (lambda: nn.ConvEncoder(8, 5, channels=4), (64,), (5,)),
    "encoder 28x28": (lambda: nn.ConvEncoder(28, 5, channels=4), (784,), (5,)),
    "decoder 8x8": (lambda: nn.ConvDecoder(3, 8, channels=4), (3,), (64,)),
    "decoder 28x28, two numbers a pixel": (lambda: nn.ConvDecoder(3, 28, channels=4, outputs=2), (3,), (1568,)),
}


@pytest.mark.parametrize(("make", "came", "went"), NETWORKS.values(), ids=NETWORKS.keys())
def test_leading_dimensions_are_only_batch(make, came, went):
    network = make()
    x = torch.randn(3, 5, *came)
    assert network(x).shape == (3, 5, *went)
    assert torch.allclose(network(x)[1, 2], network(x[1, 2][None])[0], atol=1e-12)


def test_an_image_may_come_flat_or_square():
    network = nn.ConvEncoder(8, 5, channels=4)
    x = torch.randn(3, 8, 8)
    assert torch.allclose(network(x), network(x.flatten(1)), atol=1e-12)


@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        (nn.MLP(4, [], 2), torch.zeros(3, 5), "MLP needs a last dimension of 4, got shape (3, 5)"),
        (nn.ConvEncoder(8, 2), torch.zeros(3, 49), "ConvEncoder needs a last dimension of 64, got shape (3, 49)"),
        (nn.ConvDecoder(4, 8), torch.zeros(3, 5), "ConvDecoder needs a last dimension of 4, got shape (3, 5)"),
    ],
    ids=["mlp", "encoder", "decoder"],
)
def test_a_wrong_width_is_told(network, x, message):
    with pytest.raises(ShapeError) as raised:
        network(x)
    assert raised.value.problem == message


def test_sides_that_do_not_halve_twice_are_refused():
    with pytest.raises(ShapeError, match="the side of the images must be a multiple of 4, got 10"):
        nn.ConvDecoder(2, 10)


def test_bernoulli_of_logits_zero_is_log_half_a_pixel():
    density = likelihoods.Bernoulli()(torch.zeros(2, 3)).log_prob(torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert density.tolist() == pytest.approx([3 * math.log(0.5)] * 2)


def test_normal_with_a_fixed_scale_by_hand():
    density = likelihoods.Normal(2.0)(torch.tensor([1.0, 0.0])).log_prob(torch.tensor([3.0, 0.0]))
    assert density.item() == pytest.approx(-0.5 - 2 * math.log(2.0) - math.log(2 * math.pi))


def test_a_learned_scale_has_its_maximum_likelihood_at_the_root_mean_square():
    likelihood = likelihoods.NormalLearned(initial=3.0)
    x = torch.tensor([[1.0, -2.0, 2.0]])
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=50)

    def loss():
        optimizer.zero_grad()
        value = -likelihood(torch.zeros(1, 3)).log_prob(x).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert likelihood.log_scale.exp().item() == pytest.approx(math.sqrt(3.0), rel=1e-6)


def test_a_scale_per_dimension_is_softplus_with_a_floor():
    found = likelihoods.NormalPerDimension(min_scale=0.1)(torch.tensor([5.0, 6.0, 0.0, -100.0]))
    assert found.mean.tolist() == [5.0, 6.0]
    assert found.base_dist.scale.tolist() == pytest.approx([math.log(2) + 0.1, 0.1])


def test_categorical_reads_its_categories_fastest():
    logits = torch.tensor([0.0, 0.0, math.log(2), 0.0, math.log(8), 0.0])  # two pixels of three categories
    density = likelihoods.Categorical(3)(logits).log_prob(torch.tensor([2.0, 1.0]))
    assert density.item() == pytest.approx(math.log(2 / 4) + math.log(8 / 10))


def test_categorical_tells_how_many_outputs_it_needs():
    with pytest.raises(ShapeError, match="Categorical needs a multiple of 3 outputs, got 7"):
        likelihoods.Categorical(3)(torch.zeros(7))


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ShapeError, match="the scale of a Normal likelihood must be positive, got 0"):
        likelihoods.Normal(0)


def test_a_prior_may_be_a_distribution_or_a_module():
    network = nn.MLP(2, [], 3)
    by_module = models.LatentVariable(priors.StandardNormal(2), network, likelihoods.Normal(1.0))
    standard = pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1)
    by_distribution = models.LatentVariable(standard, network, likelihoods.Normal(1.0))
    guide = guides.DiagonalNormal(nn.MLP(3, [], 4), 2)
    x = torch.randn(5, 3)
    weights = [ppvae.log_weights(model, guide, x, num_particles=3) for model in (by_module, by_distribution)]
    assert torch.equal(*weights)


def test_short_forms_are_their_compositions():
    network = nn.MLP(2, [], 3)
    guide = guides.DiagonalNormal(nn.MLP(3, [], 4), 2)
    x = torch.randn(5, 3)
    short, whole = models.Normal(network, 2, scale=0.5), models.LatentVariable(priors.StandardNormal(2), network, likelihoods.Normal(0.5))
    assert torch.equal(*(ppvae.log_weights(model, guide, x, num_particles=3) for model in (short, whole)))
    assert isinstance(models.Normal(network, 2).likelihood, likelihoods.NormalLearned)


def test_posterior_and_evidence_of_the_linear_gaussian_satisfy_bayes_rule():
    model, _, x = linear_gaussian(num_data=4)
    z = torch.randn(4, 2)
    joint = torch.distributions.Normal(z @ model.weight.mT + model.bias, model.log_scale.exp()).log_prob(x).sum(-1)
    joint = joint + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert torch.allclose(joint, model.posterior(x).log_prob(z) + model.log_evidence(x), atol=1e-10)


def test_at_the_maximum_likelihood_a_linear_encoder_attains_the_evidence():
    """With rotation R = I the posterior covariance is diagonal: ELBO = log-likelihood exactly (Lucas et al. 2019)."""
    x = torch.randn(300, 5) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5]))
    model = models.LinearGaussian.maximum_likelihood(x, 2)
    posterior = model.posterior(x)
    encoder = nn.MLP(5, [], 4)
    with torch.no_grad():
        linear = encoder.layers[0]
        slope = torch.linalg.lstsq(x - x.mean(0), posterior.loc).solution.T
        linear.weight.copy_(torch.cat([slope, torch.zeros(2, 5)]))
        linear.bias.copy_(torch.cat([-slope @ x.mean(0), posterior.covariance_matrix[0].diagonal().log() / 2]))
    found = analysis.elbo(model, guides.DiagonalNormal(encoder, 2), x, num_particles=3)
    assert (found.pointwise - model.log_evidence(x)).abs().max() < 1e-8


def test_maximum_likelihood_needs_fewer_latents_than_dimensions():
    with pytest.raises(ShapeError, match="probabilistic PCA needs 0 < latent_dim < D, got latent_dim=3 and D=3"):
        models.LinearGaussian.maximum_likelihood(torch.randn(9, 3), 3)


@pytest.mark.parametrize(("family", "outputs"), [(DiagonalNormal, 6), (FullRankNormal, 9)], ids=["diagonal", "full rank"])
def test_a_family_says_how_many_numbers_it_needs(family, outputs):
    assert family(3).num_parameters == outputs
    with pytest.raises(FamilyError, match=f"{family.__name__} over 3 dimensions needs {outputs} numbers per datum, got 5"):
        family(3).distribution(torch.zeros(2, 5))


def test_a_full_rank_row_is_location_log_diagonal_and_what_lies_below():
    found = FullRankNormal(2).distribution(torch.tensor([1.0, 2.0, math.log(3.0), math.log(4.0), 5.0]))
    assert found.mean.tolist() == [1.0, 2.0]
    assert found.scale_tril.flatten().tolist() == pytest.approx([3.0, 0.0, 5.0, 4.0])


@pytest.mark.soak
@pytest.mark.slow
def test_a_full_rank_guide_learns_the_correlated_posterior_of_a_linear_model():
    """z has posterior correlation -0.8 here: a linear full-rank encoder closes the gap that a diagonal one must leave."""
    model = models.LinearGaussian(2, 2, 0.5)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    model.requires_grad_(False)
    x = (torch.randn(400, 2) @ model.weight.mT + 0.5 * torch.randn(400, 2)).detach()
    gap = 0.5 * (
        model.posterior(x[:1]).precision_matrix[0].diagonal().log().sum() - torch.logdet(model.posterior(x[:1]).precision_matrix[0])
    )
    found = {}
    for name, guide in (("diagonal", guides.DiagonalNormal(nn.MLP(2, [], 4), 2)), ("full", guides.FullRankNormal(nn.MLP(2, [], 5), 2))):
        decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)
        run = ppvae.fit(model, guide, x, epochs=150, batch_size=50, optimizer=functools.partial(torch.optim.Adam, lr=0.03), scheduler=decay)
        found[name] = (model.log_evidence(x) - analysis.elbo(run.model, run.guide, x, num_particles=200).pointwise).mean().item()
    assert found["full"] < 0.03  # the optimum is 0; Adam's last steps leave their noise
    assert found["diagonal"] == pytest.approx(gap.item(), abs=0.02)
