"""A guide with a refinement behind it is a guide: for measurement, for simulation, and inside Pyro's own SVI."""

import math

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch

from ground_truth import MeanField, correlated_posterior, kl_to_posterior
from ppvae import analysis, guides, simulate
from ppvae.errors import ProgramError, ShapeError
from ppvae.families import FullRankNormal
from ppvae.programs import latent_sites, observed_sites


def test_its_bound_is_that_of_the_refinement():
    model, x, _ = correlated_posterior(0.8, num_data=80)
    guide = MeanField(model, offset=1.0)
    local = analysis.refine(model, guide, x, family="mean_field", steps=20, num_particles=1).guide
    expected = analysis.elbo(model, local, x, num_particles=50)
    found = analysis.elbo(model, guides.Refined(guide, steps=20, family="mean_field"), x, num_particles=50)
    assert torch.allclose(found.pointwise, expected.pointwise, atol=1e-9)


def test_more_steps_close_the_inference_gap():
    """From two posterior sds off: the KL to the exact posterior falls, and full rank ends at 0 where mean field keeps -1/2 log(1 - r^2)."""
    model, x, gap = correlated_posterior(0.8)
    guide = MeanField(model, offset=1.0)
    left = []
    for steps in (1, 5, 20, 80):
        table = guides.Refined(guide, steps=steps).prepared(model, x).tables["z"]
        q = FullRankNormal(2).distribution(table)
        left.append(kl_to_posterior(model, x, q.loc, q.covariance_matrix).mean().item())
    assert left == sorted(left, reverse=True) and left[-1] < 1e-3
    mean_field = analysis.elbo(model, guides.Refined(guide, steps=160, family="mean_field"), x, num_particles=4000)
    assert (model.log_evidence(x) - mean_field.pointwise).mean().item() == pytest.approx(gap, abs=0.03)  # 0.02 is left after 160 steps


def test_its_gaps_are_measured_like_any_guides():
    model, x, gap = correlated_posterior(0.8, num_data=32)
    guide = MeanField(model, offset=1.0)
    before = analysis.inference_gaps(model, guide, x, num_particles=1000).mean("amortization").value
    found = analysis.inference_gaps(model, guides.Refined(guide, steps=80, family="mean_field"), x, num_particles=1000)
    assert found.mean("amortization").value < 0.05 * before  # 0.06 of 2.8 nats
    assert found.mean("approximation").value == pytest.approx(gap, abs=0.03)  # what 160 steps leave


def test_it_runs_inside_pyros_own_elbo():
    """-Trace_ELBO of a full-rank refinement is log p(x), by one particle: at the posterior the bound has no noise."""
    model, x, _ = correlated_posterior(0.5, num_data=16)
    guide = guides.Refined(MeanField(model), steps=160, model=model)
    loss = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), pyro.infer.Trace_ELBO()).evaluate_loss(x)
    assert -loss / 16 == pytest.approx(model.log_evidence(x).mean().item(), abs=1e-3)


def test_it_reconstructs():
    model, x, _ = correlated_posterior(0.5, num_data=16)
    found = simulate.reconstruct(model, guides.Refined(MeanField(model, offset=3.0), steps=80), x, num_particles=2000)
    exact = model.posterior(x).loc @ model.weight.mT + model.bias
    assert (found - exact).abs().max() < 5 * 0.5 * model.weight.abs().sum() / math.sqrt(2000)


def test_called_alone_it_asks_for_its_model():
    with pytest.raises(ProgramError) as raised:
        guides.Refined(lambda x: None)(torch.randn(3, 2))
    assert "Refined(guide, model=model)" in raised.value.mend


def test_it_stays_out_of_the_callers_trace():
    """What the refinement runs is no part of the run of the guide: one site, z."""
    model, x, _ = correlated_posterior(0.5, num_data=4)
    found = pyro.poutine.trace(guides.Refined(MeanField(model), steps=2, model=model)).get_trace(x)
    assert latent_sites(found) == ["z"] and not observed_sites(found)


def test_prepared_for_one_batch_it_refuses_another():
    model, x, _ = correlated_posterior(0.5, num_data=10)
    local = guides.Refined(MeanField(model), steps=2).prepared(model, x)
    with pytest.raises(ShapeError, match="other data"):
        analysis.elbo(model, local, x + 1, num_particles=2)
