"""ELBO, log-likelihood, latent usage, comparison and ArviZ's container, against closed forms."""

import math
import subprocess
import sys

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppvae
from ground_truth import MeanField, correlated_posterior, exact_posterior_of, kl_to_posterior, linear_gaussian
from ppvae import analysis
from ppvae.errors import DataError
from ppvae.models import LinearGaussian


def test_elbo_of_a_known_guide_is_the_evidence_less_its_divergence():
    model, x, _ = correlated_posterior(0.7)
    guide = MeanField(model, offset=0.3, inflation=1.2)
    loc, scale = guide.parameters(x)
    exact = model.log_evidence(x) - kl_to_posterior(model, x, loc, torch.diag_embed(scale.square()))
    found = analysis.elbo(model, guide, x, num_particles=4000)
    assert abs(found.mean.value - exact.mean()) < 5 * found.mean.mc_se
    assert ((found.pointwise - exact).abs() < 5 * found.pointwise_se).all()


def test_rate_of_a_normal_guide_is_its_divergence_from_the_prior():
    model, x, _ = correlated_posterior(0.7)
    guide = MeanField(model)
    loc, scale = guide.parameters(x)
    exact = 0.5 * (scale.square() + loc.square() - 1 - 2 * scale.log()).sum(-1)
    found = analysis.elbo(model, guide, x, num_particles=4000)
    assert abs(found.rate.mean() - exact.mean()) < 0.02  # 5 standard errors: sd of log q - log p below 2, over 64 x 4000 draws
    assert (found.pointwise + found.rate + found.distortion).abs().max() < 1e-9


def test_elbo_of_one_particle_has_no_error():
    model, x, _ = correlated_posterior(0.7)
    assert analysis.elbo(model, MeanField(model), x, num_particles=1).pointwise_se.isnan().all()


def test_log_likelihood_reaches_the_closed_form():
    model, x, _ = correlated_posterior(0.4)
    found = analysis.log_likelihood(model, MeanField(model, inflation=1.2), x, num_particles=5000)
    assert ((found.pointwise - model.log_evidence(x)).abs() < 5 * found.pointwise_se).all()
    assert (found.k_hat < found.threshold).all() and found.trusted.all()


def test_log_likelihood_of_the_exact_guide_has_full_effective_size_and_no_tail():
    model, guide, x = linear_gaussian(num_data=10)
    found = analysis.log_likelihood(model, guide, x, num_particles=200)
    assert found.ess.tolist() == pytest.approx([200.0] * 10, rel=1e-9)
    assert (found.k_hat == -math.inf).all()
    assert (found.pointwise_se < 1e-6).all()


@pytest.mark.soak
def test_standard_errors_of_log_likelihood_cover():
    """sd of the estimate over seeds equals the reported error: a ratio of variances over 64 data x 40 seeds, sd about 3 %."""
    model, x, _ = correlated_posterior(0.3)
    runs = [analysis.log_likelihood(model, MeanField(model, inflation=1.2), x, num_particles=200, seed=seed) for seed in range(40)]
    spread = torch.stack([run.pointwise for run in runs]).var(0).mean()
    reported = torch.stack([run.pointwise_se for run in runs]).square().mean()
    assert abs(spread / reported - 1) < 0.2


def test_a_too_narrow_guide_is_not_trusted():
    model, x, _ = correlated_posterior(0.9)
    found = analysis.log_likelihood(model, MeanField(model, inflation=0.5), x, num_particles=10_000)  # k = 0.975
    assert found.trusted.double().mean() < 0.2  # k-hat's own spread: mean 0.9, sd 0.1 at 10,000 draws


def test_data_error_and_monte_carlo_error_have_two_names():
    model, x, _ = correlated_posterior(0.5)
    found = analysis.log_likelihood(model, MeanField(model), x, num_particles=100)
    assert found.mean.data_se == pytest.approx((found.pointwise.std() / 8).item())
    assert found.mean.mc_se == pytest.approx((found.pointwise_se.square().sum().sqrt() / 64).item())


def test_the_sentence_of_the_design_is_printed():
    model, x, _ = correlated_posterior(0.5)
    text = str(analysis.log_likelihood(model, MeanField(model), x, num_particles=2500))
    assert text.startswith("log p(x) = -") and "(data) ±" in text and "(Monte Carlo) nats (N=64, K=2500; k-hat above 0.70 at" in text


def test_provenance_of_a_data_set_travels_into_the_result():
    digits = ppvae.data.load("digits").test
    torch.set_default_dtype(torch.float32)
    model = ppvae.models.Bernoulli(ppvae.nn.MLP(2, [], 64), 2)
    guide = ppvae.guides.DiagonalNormal(ppvae.nn.MLP(64, [], 4), 2)
    found = analysis.log_likelihood(model, guide, digits, num_particles=30, seed=3)
    assert found.source.data == digits.describe()
    assert (found.source.measure, found.source.seed) == ("counting", 3)
    assert "digits/test" in str(found)


@pytest.fixture
def maximum_likelihood():
    """Probabilistic PCA at its maximum: posterior covariance diagonal, rate 1/2 sum log(l_i / s2), Var E[z_i | x] = 1 - s2 / l_i."""
    x = torch.randn(2000, 6) @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 0.4, 0.4, 0.4]))
    model = LinearGaussian.maximum_likelihood(x, 3)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    return model.requires_grad_(False), x, eigenvalues[:3], eigenvalues[3:].mean()


def test_latent_usage_of_probabilistic_pca_is_that_of_its_eigenvalues(maximum_likelihood):
    model, x, top, s2 = maximum_likelihood

    def guide(x):
        posterior = model.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(posterior.loc, posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()).to_event(1))

    found = analysis.latent_usage(model, guide, x, num_particles=4, num_mutual=200)
    per_dimension = 0.5 * torch.log(top / s2)
    assert torch.allclose(found.kl_per_dimension["z"], per_dimension, atol=1e-6)  # in second moments the aggregated posterior is the prior
    assert torch.allclose(found.unit_variance["z"], 1 - s2 / top, atol=1e-6)
    assert abs(found.kl["z"] - per_dimension.sum()) < 5 * found.kl_se["z"]
    assert found.active_units == {"z": 3}


def test_a_unit_that_the_guide_ignores_is_inactive():
    model = LinearGaussian(3, 2)
    with torch.no_grad():
        model.weight[:, 1] = 0.0
    x = torch.randn(500, 3)
    found = analysis.latent_usage(model, MeanField(model), x)
    assert found.active_units == {"z": 1}


def test_mutual_information_of_separated_posteriors_is_log_n():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 100.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.01).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.01).to_event(1))

    x = torch.arange(130.0, dtype=torch.float64)[:, None]
    found = analysis.latent_usage(model, guide, x)
    assert found.mutual_information == pytest.approx(math.log(130), abs=1e-9)


def test_mutual_information_is_that_of_the_mixture_by_brute_force():
    model, x, _ = correlated_posterior(0.5, num_data=100)
    found = analysis.latent_usage(model, MeanField(model), x, num_particles=2)
    loc, scale = MeanField(model).parameters(x)
    z = loc + scale * torch.randn(400, 100, 2)
    own = dist.Normal(loc, scale).log_prob(z).sum(-1)
    cross = torch.stack([dist.Normal(loc[j], scale[j]).log_prob(z).sum(-1) for j in range(100)])
    exact = (own - torch.logsumexp(cross, 0) + math.log(100)).mean().item()
    assert abs(found.mutual_information - exact) < 5 * found.mutual_information_se
    assert found.marginal_kl == pytest.approx(found.rate.mean().item() - found.mutual_information)


def test_compare_takes_the_error_of_the_differences():
    model, x, _ = correlated_posterior(0.5)
    other = LinearGaussian(2, 2)
    a = analysis.log_likelihood(model, MeanField(model), x, num_particles=50)
    b = analysis.log_likelihood(other, MeanField(other), x, num_particles=50)
    found = analysis.compare(a, b)
    assert found.mean.data_se == pytest.approx(((a.pointwise - b.pointwise).std() / 8).item())
    assert found.mean.value == pytest.approx(a.mean.value - b.mean.value)


def test_compare_refuses_other_data():
    model, x, _ = correlated_posterior(0.5)
    results = [analysis.log_likelihood(model, MeanField(model), data, num_particles=5) for data in (x, x + 1)]
    with pytest.raises(DataError, match="these two results are over different data"):
        analysis.compare(*results)


def test_compare_refuses_another_measure():
    def pair(validate):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                likelihood = dist.Normal(z, 1.0) if validate else dist.Bernoulli(logits=z, validate_args=False)
                pyro.sample("x", likelihood.to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        return model, guide

    grey = torch.rand(10, 2)
    true = analysis.log_likelihood(*pair(True), grey, num_particles=5)
    with pytest.warns(ppvae.errors.RelaxedMeasureWarning):
        relaxed = analysis.log_likelihood(*pair(False), grey, num_particles=5)
    with pytest.raises(DataError, match="over different measures: Lebesgue and relaxed \\(not a probability\\)"):
        analysis.compare(true, relaxed)


def test_arviz_container_has_the_guides_draws_by_datum():
    model, _, x = linear_gaussian(num_data=70)
    found = analysis.to_arviz(model, exact_posterior_of(model), x, num_particles=500, num_prior=300)
    z = torch.as_tensor(found["posterior"]["z"].values)
    assert z.shape == (1, 500, 70, 2)
    error = model.posterior(x).covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt() / math.sqrt(500)
    assert ((z[0].mean(0) - model.posterior(x).loc).abs() < 5 * error).all()
    assert found["prior"]["z"].shape == (1, 300, 1, 2)
    assert torch.equal(torch.as_tensor(found["observed_data"]["x"].values), x)


def test_arviz_log_likelihood_is_the_likelihood_of_its_own_draws():
    model, _, x = linear_gaussian(num_data=10)
    found = analysis.to_arviz(model, exact_posterior_of(model), x, num_particles=20)
    z = torch.as_tensor(found["posterior"]["z"].values)[0]
    exact = dist.Normal(z @ model.weight.mT + model.bias, model.log_scale.exp()).log_prob(x).sum(-1)
    assert torch.allclose(torch.as_tensor(found["log_likelihood"]["x"].values)[0], exact, atol=1e-9)
    assert "z" in str(arviz.summary(found, var_names=["z"], kind="stats").index[0])


MEMORY = """
import resource, sys, torch, pyro, pyro.distributions as dist
from ppvae import analysis
def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 2, 0.8))
analysis.log_likelihood(model, guide, torch.randn(64), num_particles=int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.soak
@pytest.mark.slow
def test_memory_of_log_likelihood_does_not_grow_with_particles():
    peak = {
        k: int(subprocess.run([sys.executable, "-c", MEMORY, str(k)], capture_output=True, text=True, check=True).stdout)
        for k in (10**4, 10**6)
    }
    assert peak[10**6] < 1.2 * peak[10**4]
