"""Imputation against probabilistic PCA, where p(x_missing | x_observed) is a Normal in closed form, and against enumeration."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_missing import NAN, guide_of, linear_gaussian

from ppvae import analysis
from ppvae.analysis.imputation import _moments_of
from ppvae.checks_sites import _support_finding
from ppvae.data import Data
from ppvae.errors import ArgumentError, ProgramError
from ppvae.models.missing import masked


def conditional(model, x, observed):
    """Mean and sd of each missing entry given the observed ones, by the blocks of the covariance of x."""
    covariance = model.weight @ model.weight.mT + model.log_scale.exp() ** 2 * torch.eye(len(model.bias))
    mean, sd = x.clone(), torch.zeros_like(x)
    for n, o in enumerate(observed):
        m = ~o
        gain = covariance[m][:, o] @ torch.linalg.inv(covariance[o][:, o])
        mean[n, m] = model.bias[m] + gain @ (x[n, o] - model.bias[o])
        sd[n, m] = (covariance[m][:, m] - gain @ covariance[o][:, m]).diagonal().sqrt()
    return mean, sd


@pytest.fixture
def case():
    model, x, observed = linear_gaussian(70)  # more than one block of 64
    return model, x, observed, Data.from_arrays(torch.where(observed, x, NAN), missing="mask")


def test_the_closed_form_of_the_model_is_that_of_the_covariance(case):
    model, x, observed, data = case
    mean, sd = model.conditional(data.x)
    expected_mean, expected_sd = conditional(model, x, observed)
    assert torch.allclose(mean[~observed], expected_mean[~observed], atol=1e-12)
    assert torch.allclose(sd[~observed], expected_sd[~observed], atol=1e-12)


def test_mean_and_sd_are_those_of_the_conditional_normal(case):
    model, x, observed, data = case
    mean, sd = conditional(model, x, observed)
    missing = ~observed
    found = [analysis.impute(model, guide_of(model), data, num_particles=500, num_samples=2, seed=seed) for seed in range(12)]
    means, sds = torch.stack([f.mean for f in found])[:, missing], torch.stack([f.sd for f in found])[:, missing]
    for values, exact in ((means, mean[missing]), (sds, sd[missing])):
        t = (values.mean(0) - exact) / (values.std(0) / math.sqrt(12))
        assert t.abs().max() < 7  # Student's t of 11 degrees, 166 entries: 4 standard errors of a Normal, P = 6e-5, are 6.5 of it
        assert t.square().mean() < 2  # 11 / 9 on average
    reported = torch.stack([f.mean_se for f in found])[:, missing]
    assert (means.var(0).mean() / reported.square().mean()).sqrt() == pytest.approx(1, abs=0.1)  # 12 x 166 of them


def test_draws_have_the_moments_of_the_conditional_normal(case):
    model, x, observed, data = case[0], case[1][:20], case[2][:20], case[3][:20]
    mean, sd = conditional(model, x, observed)
    missing = ~observed
    found = analysis.impute(model, guide_of(model), data, num_particles=8000, num_samples=2000)
    t = (found.samples.mean(0) - mean)[missing] / (sd[missing] * math.sqrt(1 / 2000 + 2 / 8000))
    assert t.abs().max() < 4.5
    spread = found.samples.std(0)[missing] / sd[missing]
    assert (spread - 1).abs().max() < 4.5 * math.sqrt(1 / (2 * 2000) + 1 / 4000)
    row = int(missing.sum(1).argmax())  # jointly, too: the first datum has none observed, so its draws are of x itself
    covariance = model.weight @ model.weight.mT + model.log_scale.exp() ** 2 * torch.eye(6)
    assert row == 0
    correlation = torch.corrcoef(found.samples[:, row].mT)
    scale = covariance.diagonal().sqrt()
    assert torch.allclose(correlation, covariance / scale[:, None] / scale, atol=4.5 * math.sqrt(1 / 2000 + 2 / 8000))


def test_observed_entries_stay(case):
    model, x, observed, data = case
    found = analysis.impute(model, guide_of(model), data, num_particles=50, num_samples=3)
    assert found.samples.shape == (3, 70, 6)
    for values in (found.mean, *found.samples):
        assert torch.equal(values[observed], x[observed])
    assert torch.equal(found.missing, ~observed)
    assert found.sd[observed].max() == found.mean_se[observed].max() == 0
    assert found.mean[1].tolist() == x[1].tolist()  # nothing missing


def test_the_posterior_as_guide_has_all_its_particles(case):
    model, _, _, data = case
    found = analysis.impute(model, guide_of(model, inflation=1.0), data, num_particles=100)
    assert torch.allclose(found.ess, torch.full((70,), 100.0))


def test_the_effective_sample_size_of_a_wide_guide_is_what_its_weights_say(case):
    """q = N(m, c^2 S), p = N(m, S), Z = 2: 1 / E[w^2] = (2 - 1 / c^2)^(Z/2) c^-Z with w normalised, so ESS/K -> 0.8366 at c = 1.3."""
    model, _, _, data = case
    found = analysis.impute(model, guide_of(model), data, num_particles=5000)
    c = 1.3
    # E_q[w^2] = c^Z integral of N(0,1)^2/N(0,c^2) = (c^2 / sqrt(2 c^2 - 1))^Z
    expected = 1 / (c**2 / math.sqrt(2 * c**2 - 1)) ** 2
    assert found.ess.mean().item() / 5000 == pytest.approx(expected, rel=0.01)


def test_blocks_and_rows_do_not_change_a_number(case):
    model, _, _, data = case
    whole = analysis.impute(model, guide_of(model), data, num_particles=100, num_samples=5)
    first = analysis.impute(model, guide_of(model), data[:64], num_particles=100, num_samples=5)
    assert torch.equal(whole.samples[:, :64], first.samples)
    assert torch.equal(whole.mean[:64], first.mean)


def binary(mask_by):
    """z in {0, 1}, p = 1/2; x_d | z ~ Bernoulli(table[z, d])."""
    table = torch.tensor([[0.9, 0.2, 0.7], [0.3, 0.6, 0.1]])

    def model(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            mask_by(dist.Bernoulli(table[z.long()]).to_event(1), x)

    def guide(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            pyro.sample("z", dist.Bernoulli(0.4 * torch.ones(len(x["x"]))))

    return table, model, guide


def by_distribution(likelihood, x):
    pyro.sample("x", masked(likelihood, x["observed"]), obs=x["x"])


def by_handler(likelihood, x):
    """The same entries as sites of their own, each under ``poutine.mask``."""
    for d in range(3):
        with pyro.poutine.mask(mask=x["observed"][:, d]):
            pyro.sample(f"x{d}", dist.Bernoulli(likelihood.base_dist.probs[..., d]), obs=x["x"][:, d])


X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
OBSERVED = torch.tensor([[True, False, True], [False, True, False]])


def expected_probability(table, row, d):
    """P(x_d = 1 | x_observed) by the sum over z."""
    weights = [math.prod(table[z, e] if X[row, e] else 1 - table[z, e] for e in range(3) if OBSERVED[row, e]) for z in range(2)]
    return float(sum(w * table[z, d] for z, w in enumerate(weights)) / sum(weights))


def test_bernoulli_entries_by_enumeration():
    table, model, guide = binary(by_distribution)
    data = Data.from_arrays(torch.where(OBSERVED, X, 9.0), missing=~OBSERVED)
    found = analysis.impute(model, guide, data, num_particles=20_000, num_samples=20_000)
    for row, d in (~OBSERVED).nonzero().tolist():
        p = expected_probability(table, row, d)
        assert abs(found.mean[row, d] - p) < 4.5 * found.mean_se[row, d]
        assert found.sd[row, d] == pytest.approx(math.sqrt(p * (1 - p)), abs=0.02)
        assert abs(found.samples[:, row, d].mean() - p) < 4.5 * math.sqrt(p * (1 - p) / 20_000 + found.mean_se[row, d] ** 2)
    assert found.samples.unique().tolist() == [0, 1]


def test_a_site_under_poutine_mask_is_imputed():
    table, model, guide = binary(by_handler)
    data = Data.from_arrays(torch.where(OBSERVED, X, 9.0), missing=~OBSERVED)
    found = analysis.impute(model, guide, data, num_particles=20_000, site="x1")
    assert found.missing.tolist() == [True, False]
    assert abs(found.mean[0] - expected_probability(table, 0, 1)) < 4.5 * found.mean_se[0]
    with pytest.raises(ProgramError) as caught:
        analysis.impute(model, guide, data)
    assert str(caught.value) == (
        "needed one masked observed site to impute, and none was named\n"
        "  where: observed sites of the model: ['x0', 'x1', 'x2'], of which masked: ['x0', 'x1', 'x2']\n"
        "  mend:  name it: site='...'"
    )


def test_networks_without_leading_dimensions_take_repeated_batches():
    model, x, observed = linear_gaussian(10)

    def flat(batch):  # reads no leading dimension of particles
        with pyro.plate("data", len(batch["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            assert z.dim() == 2
            likelihood = dist.Normal(z @ model.weight.mT + model.bias, model.log_scale.exp()).to_event(1)
            pyro.sample("x", masked(likelihood, batch["observed"]), obs=batch["x"])

    data = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    found = analysis.impute(flat, guide_of(model), data, num_particles=2000)
    mean, _ = conditional(model, x, observed)
    assert ((found.mean - mean)[~observed].abs() < 4.5 * found.mean_se[~observed]).all()


def test_a_likelihood_without_moments_is_imputed_by_its_draws():
    """Cauchy entries have no mean; the median of the draws is that of p(x_missing | x_observed) = Cauchy about 2, by z fixed at 2."""

    def model(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(2.0, 1e-6))
            pyro.sample("x", masked(dist.Cauchy(z[..., None].expand(*z.shape, 3), 0.5).to_event(1), x["observed"]), obs=x["x"])

    def guide(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            pyro.sample("z", dist.Normal(2.0 * torch.ones(len(x["x"])), 1e-6))

    found = analysis.impute(model, guide, Data.from_arrays(X, missing=~OBSERVED), num_samples=4000)
    medians = found.samples.median(0).values[~OBSERVED]
    assert ((medians - 2).abs() < 4.5 * math.pi / 2 * 0.5 / math.sqrt(4000)).all()  # se of a median, 1 / (2 f sqrt S), f = 1 / (0.5 pi)


def test_a_model_that_masks_nothing_is_told():
    model, x, _ = linear_gaussian(5)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", model.posterior(x))

    with pytest.raises(ProgramError, match=r"of which masked: none\n  mend:  mask its entries"):
        analysis.impute(model, guide, x)


@pytest.mark.parametrize("option", ["num_samples", "num_particles"])
def test_counts_are_checked(case, option):
    model, _, _, data = case
    with pytest.raises(ArgumentError, match=f"{option} is a whole number of at least 1"):
        analysis.impute(model, guide_of(model), data, **{option: 0})


def test_the_sentence_and_the_record_tell_the_counts(case):
    model, _, observed, data = case
    found = analysis.impute(model, guide_of(model), data, num_particles=100, num_samples=5)
    count = int((~observed).sum())
    assert str(found).startswith(f"imputed {count} of 420 entries of 'x': sd ")
    assert "(N=70, S=5, K=100; k-hat above 0.50 at " in str(found)
    record = found.as_dict()
    assert (record["num_particles"], record["site"], "samples" in record) == (100, "x", False)


class Misspelt(dist.Normal):
    """A user's distribution with a fault of its own."""

    @property
    def mean(self):
        return self.locc

    @property
    def support(self):
        return self.reals


def test_a_fault_inside_a_users_moment_is_not_taken_for_a_missing_one():
    with pytest.raises(AttributeError, match="locc"):
        _moments_of(Misspelt(torch.zeros(3, 2), 1.0).to_event(1))


def test_a_fault_inside_a_users_support_is_not_taken_for_a_missing_one():
    site = {"fn": Misspelt(torch.zeros(3), 1.0, validate_args=False), "value": torch.zeros(3)}
    with pytest.raises(AttributeError, match="reals"):
        _support_finding("z", site, site, "the guide")
