"""The gaps against their closed forms: paired, with the injected error returned, and with a reference that says its name."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_refine import gamma_guide

from ground_truth import MeanField, correlated_posterior, kl_to_posterior, linear_gaussian, poisson_gamma
from ppvae.analysis import inference_gaps
from ppvae.errors import FamilyError

FINE = {"steps": 320, "num_draws": 128}


# The larger approximation gap of the two; the other is the same formula.
@pytest.mark.parametrize("r", [pytest.param(0.3, marks=pytest.mark.soak), 0.5], ids=str)
def test_the_injected_amortization_gap_comes_back(r):
    """q_x = N(m_x + e, S): L[q*] - L[q] = KL(q || p) - KL(q* || p), and the approximation gap is -1/2 log(1 - r^2)."""
    model, x, approximation = correlated_posterior(r, num_data=16)
    guide = MeanField(model, offset=torch.tensor([0.05, -0.03]), inflation=1.1)
    loc, scale = guide.parameters(x)
    injected = kl_to_posterior(model, x, loc, torch.diag_embed(scale.square())) - approximation
    found = inference_gaps(model, guide, x, num_particles=40_000, **FINE)
    assert abs(found.mean("amortization").value - injected.mean()) < 1e-3  # injected are 0.03 to 0.07 nats
    assert abs(found.mean("approximation").value - approximation) < 1e-3 + 3 * found.mean("approximation").mc_se
    assert found.mean("amortization").mc_se < 5e-4
    assert found.reference == "closed form"


def test_gaps_of_the_exact_guide_are_zero():
    model, guide, x = linear_gaussian(num_data=20)
    found = inference_gaps(model, guide, x, num_particles=100, steps=40)
    for name in ("approximation", "amortization", "inference"):
        assert getattr(found, name).abs().max() < 1e-6


def test_the_inference_gap_is_the_sum_of_the_two():
    model, x, _ = correlated_posterior(0.6)
    found = inference_gaps(model, MeanField(model, offset=0.2), x, num_particles=50, steps=40)
    assert (found.inference - found.approximation - found.amortization).abs().max() < 1e-9


def test_full_rank_closes_the_approximation_gap_of_a_normal_posterior():
    model, x, gap = correlated_posterior(0.8, num_data=16)
    found = inference_gaps(model, MeanField(model), x, families=("same", "full_rank"), num_particles=2000, **FINE)
    assert set(found.refined) == {"same", "full_rank"}
    assert (found.refined["full_rank"] - model.log_evidence(x)).abs().max() < 1e-4
    assert abs((found.refined["full_rank"] - found.refined["same"]).mean() - gap) < 5 * found.mean("approximation").mc_se + 1e-3


def test_the_amortization_gaps_error_is_that_of_paired_draws():
    """With common draws of a Normal, L[q*] - L[q] has a smaller Monte Carlo error than two bounds apart."""
    model, x, _ = correlated_posterior(0.8)
    found = inference_gaps(model, MeanField(model, offset=0.05), x, num_particles=500, steps=80)
    apart = (found.approximation_se**2 + found.inference_se**2).sqrt()
    assert (found.amortization_se < 0.5 * apart).double().mean() > 0.95
    paired = found.amortization.std() / math.sqrt(64)
    assert found.mean("amortization").data_se == pytest.approx(paired.item(), rel=1e-9)


def test_an_importance_weighted_reference_reaches_the_evidence():
    model, x, _ = correlated_posterior(0.8)
    guide = MeanField(model, offset=0.5, inflation=2.0)
    found = inference_gaps(model, guide, x, reference="importance", num_reference=5000, num_particles=50, steps=80)
    exact = model.log_evidence(x)
    assert abs((found.log_px - exact).mean()) < 5 * found.mean("inference").mc_se
    assert (found.log_px - exact).abs().max() < 0.05  # 5 standard errors of a proposal of effective size above a tenth of K
    assert found.reference == "importance weights, refined full_rank from two starts, widened 1.2"
    assert found.reference_trusted.all()


def test_a_guide_without_normal_sites_has_its_gaps_too():
    model, y, evidence, _ = poisson_gamma()
    found = inference_gaps(model, gamma_guide, y, num_particles=5000, steps=320)
    assert (found.approximation.abs() < 5 * found.approximation_se + 5e-3).all()  # a Gamma is the posterior's own family
    assert (found.log_px - evidence).abs().max() < 0.2  # four times the tolerance of 0.05
    assert (found.amortization > 0).all()


def test_an_exact_reference_may_be_quadrature():
    model, y, evidence, _ = poisson_gamma()
    found = inference_gaps(model, gamma_guide, y, reference="exact", num_particles=2, steps=20)
    assert (found.log_px - evidence).abs().max() < 1e-4  # its tolerance
    assert found.reference == "quadrature"


def test_asking_for_an_exact_reference_that_there_is_not_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    with pytest.raises(FamilyError, match="3"):
        inference_gaps(model, guide, torch.randn(4, 3), reference="exact", num_particles=2, steps=20)


def test_an_annealed_reference_reaches_the_evidence():
    model, x, _ = correlated_posterior(0.8, num_data=8)
    found = inference_gaps(model, MeanField(model, offset=0.3), x, reference="annealed", num_particles=50, steps=40)
    assert (found.log_px - model.log_evidence(x)).abs().max() < 0.02  # the refined start is the posterior but for its 40 steps
    assert found.reference == "annealing from refined posteriors, 100 temperatures, 16 chains"


def test_the_printed_sentence_carries_both_errors():
    model, x, _ = correlated_posterior(0.6)
    text = str(inference_gaps(model, MeanField(model, offset=0.2), x, num_particles=50, steps=40))
    assert text.startswith("inference gap ") and text.count("(data)") == 3 and text.count("(Monte Carlo)") == 3
    assert "log p(x) by closed form" in text
