"""Likelihoods held to their formulas: scipy's densities, enumeration, and the extremes of float32."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import ppvae
from ppvae import analysis, guides, models, nn, options
from ppvae.batches import take
from ppvae.commands import pairs
from ppvae.data import Data
from ppvae.errors import DataError, ProgramError, ShapeError
from ppvae.models import distributions, likelihoods, priors
from ppvae.models.covariates import WithCovariates
from ppvae.models.missing import masked

N, D, Z, M = 40, 4, 2, 2
LEVELS = torch.arange(256.0)


def uniform():
    return torch.rand(N, D) * 0.98 + 0.01


def counts():
    return torch.poisson(torch.rand(N, D) * 6)


# Likelihood -> how it is made, outputs an entry, data within its support, and a value outside.
SHELF = {
    "bernoulli": (likelihoods.Bernoulli, 1, lambda: (torch.rand(N, D) < 0.5).double(), 0.5),
    "normal": (lambda: likelihoods.Normal(0.7), 1, lambda: torch.randn(N, D), math.nan),
    "normal, learned": (likelihoods.NormalLearned, 1, lambda: torch.randn(N, D), math.nan),
    "normal, per dimension": (likelihoods.NormalPerDimension, 2, lambda: torch.randn(N, D), math.nan),
    "laplace": (lambda: likelihoods.Laplace(0.7), 1, lambda: torch.randn(N, D), math.nan),
    "laplace, learned": (likelihoods.LaplaceLearned, 1, lambda: torch.randn(N, D), math.nan),
    "student t": (lambda: likelihoods.StudentT(5.0), 1, lambda: torch.randn(N, D), math.nan),
    "student t, learned": (likelihoods.StudentT, 1, lambda: torch.randn(N, D), math.nan),
    "beta": (likelihoods.Beta, 2, uniform, 1.0),
    "continuous bernoulli": (likelihoods.ContinuousBernoulli, 1, uniform, 1.5),
    "discretised logistic": (
        lambda: likelihoods.DiscretizedLogistic(M, unit=True),
        3 * M,
        lambda: torch.randint(0, 256, (N, D)).double() / 255,
        0.4999,
    ),
    "discretised logistic, whole numbers": (
        lambda: likelihoods.DiscretizedLogistic(M, 5),
        3 * M,
        lambda: torch.randint(0, 5, (N, D)).double(),
        5.0,
    ),
    "categorical": (lambda: likelihoods.Categorical(3), 3, lambda: torch.randint(0, 3, (N, D)).double(), 3.0),
    "poisson": (likelihoods.Poisson, 1, counts, -1.0),
    "negative binomial": (lambda: likelihoods.NegativeBinomial(D), 1, counts, 0.5),
}
each_likelihood = pytest.mark.parametrize(("make", "width", "data", "outside"), SHELF.values(), ids=SHELF.keys())


def pair(make, width):
    model = models.LatentVariable(priors.StandardNormal(Z), nn.MLP(Z, [5], width * D), make())
    return model, guides.DiagonalNormal(nn.MLP(D, [5], 2 * Z), Z)


def distribution(likelihood, output, x):
    """What a likelihood makes of an output, with the covariate where it takes one."""
    return likelihood(output, likelihood.covariate_of(x)) if hasattr(likelihood, "covariate") else likelihood(output)


# Formulas


def test_continuous_bernoulli_is_that_of_the_paper_by_its_probability():
    """C(p) = 2 atanh(1 - 2 p) / (1 - 2 p), Loaiza-Ganem and Cunningham (2019), eq. 6; 2 at p = 1/2."""
    p, x = torch.tensor([0.1, 0.3, 0.5, 0.9]), torch.tensor([0.0, 0.2, 0.7, 1.0])
    normaliser = torch.where(p == 0.5, 2.0, 2 * torch.atanh(1 - 2 * p) / (1 - 2 * p))
    by_paper = x * p.log() + (1 - x) * torch.log1p(-p) + normaliser.log()
    found = distributions.ContinuousBernoulli(p.logit()).log_prob(x)
    assert torch.allclose(found, by_paper, atol=1e-12)


@pytest.mark.parametrize("logit", [-30.0, -0.101, -0.0999, -1e-6, 0.0, 0.0999, 2.0, 30.0])
def test_continuous_bernoulli_integrates_to_one_with_its_mean_and_variance(logit):
    density = distributions.ContinuousBernoulli(torch.tensor(logit))
    nodes, weights = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(60))
    x, mass = (nodes + 1) / 2, weights / 2
    p = density.log_prob(x).exp() * mass
    mean = (x * p).sum()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)  # of the quadrature, and of the series up to |l| = 0.1
    assert density.mean.item() == pytest.approx(mean.item(), abs=1e-9)
    assert density.variance.item() == pytest.approx(((x - mean) ** 2 * p).sum().item(), abs=1e-9)


def test_laplace_is_scipys_and_one_at_the_median_absolute_error():
    output, x = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.0])
    by_scipy = scipy.stats.laplace.logpdf(x.numpy(), output.numpy(), 0.7).sum()
    assert likelihoods.Laplace(0.7)(output).log_prob(x).item() == pytest.approx(by_scipy, rel=1e-12)
    assert likelihoods.LaplaceLearned(0.7)(output).log_prob(x).item() == pytest.approx(by_scipy, rel=1e-12)


@pytest.mark.parametrize("df", [0.5, 3.0, 31.9, 32.1, 1e4])
def test_student_t_is_scipys(df):
    output, x = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([2.0, 40.0, 0.1])
    found = likelihoods.StudentT(df, initial=0.7)(output).log_prob(x).item()
    assert found == pytest.approx(scipy.stats.t.logpdf(x.numpy(), df, output.numpy(), 0.7).sum(), rel=1e-9)  # of scipy's lgamma at 1e4


def test_student_t_of_many_degrees_of_freedom_is_normal_in_float32():
    x = torch.linspace(-3, 3, 7, dtype=torch.float32)
    found = distributions.StudentT(torch.tensor(1e7, dtype=torch.float32), 0 * x, 1 + 0 * x).log_prob(x)
    assert torch.allclose(found, torch.distributions.Normal(0 * x, 1.0).log_prob(x), atol=1e-5)  # torch's own is off by 0.5 here


def test_beta_is_scipys():
    output, x = torch.tensor([0.3, -2.0, 300.0, 1.0, 4.0, 100.0]), torch.tensor([0.2, 0.01, 0.75])
    a, b = (torch.nn.functional.softplus(part).numpy() + 1e-3 for part in output.chunk(2))
    found = likelihoods.Beta()(output).log_prob(x).item()
    assert found == pytest.approx(scipy.stats.beta.logpdf(x.numpy(), a, b).sum(), rel=1e-10)


def test_poisson_is_scipys_and_its_rate_is_linear_above_e_to_the_15():
    output, x = torch.tensor([0.3, -20.0, 15.0, 17.0]), torch.tensor([2.0, 0.0, 3.2e6, 9.9e6])
    rate = torch.tensor([math.exp(0.3), math.exp(-20), math.exp(15), 3 * math.exp(15)])
    found = likelihoods.Poisson()(output)
    assert torch.allclose(found.base_dist.mean, rate, rtol=1e-12)
    assert found.log_prob(x).item() == pytest.approx(scipy.stats.poisson.logpmf(x.numpy(), rate.numpy()).sum(), rel=1e-9)


@pytest.mark.parametrize("r", [0.01, 1.0, 15.9, 16.1, 1000.0])
def test_negative_binomial_is_scipys(r):
    mean, x = torch.tensor([0.02, 3.0, 250.0]), torch.tensor([0.0, 7.0, 190.0])
    found = distributions.NegativeBinomial(mean.log(), torch.tensor(math.log(r)))
    by_scipy = scipy.stats.nbinom.logpmf(x.numpy(), r, r / (r + mean.numpy()))
    assert found.log_prob(x).numpy() == pytest.approx(by_scipy, rel=1e-9)
    assert found.variance.numpy() == pytest.approx(scipy.stats.nbinom.var(r, r / (r + mean.numpy())), rel=1e-12)


def test_negative_binomial_of_large_inverse_dispersion_is_poisson_in_float32():
    mean, x = (torch.tensor([0.5, 30.0], dtype=torch.float32), torch.tensor([1.0, 33.0], dtype=torch.float32))
    found = distributions.NegativeBinomial(mean.log(), torch.tensor(25.0, dtype=torch.float32)).log_prob(x)
    assert found.numpy() == pytest.approx(scipy.stats.poisson.logpmf(x.numpy(), mean.numpy()), abs=2e-4)  # of lgamma at 30, in float32


def test_a_size_is_given_or_the_total_of_the_counts():
    x, output = torch.tensor([[1.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), torch.zeros(2, 4)
    likelihood = likelihoods.NegativeBinomial(4, initial=2.0)
    assert likelihood.covariate_of(x).tolist() == [4, 1]  # a datum without counts has size 1
    assert torch.allclose(distribution(likelihood, output, x).mean, torch.tensor([[1.0] * 4, [0.25] * 4]))
    given = {"x": x, "size": torch.tensor([8.0, 10.0])}
    assert distribution(likelihood, output, given).mean[:, 0].tolist() == pytest.approx([2, 2.5])


def test_sizes_that_cannot_be_are_refused():
    likelihood = likelihoods.NegativeBinomial(4)
    with pytest.raises(DataError, match=r"a size factor must be positive\n  where: row 1 of 'size': 0"):
        likelihood.covariate_of({"x": torch.ones(2, 4), "size": torch.tensor([8.0, 0.0])})
    with pytest.raises(ShapeError, match="a NegativeBinomial likelihood needs a batch with 'size', and a dict of 'x', 'observed' came"):
        likelihood.covariate_of({"x": torch.ones(2, 4), "observed": torch.ones(2, 4) > 0})


# Discretised logistic


def by_sigmoids(logits, locs, log_scales, num_levels=256):
    """The masses of all levels by the difference of the distribution function at their edges, in float64."""
    edges = torch.cat([torch.tensor([-math.inf]), (2 * torch.arange(1, num_levels) - 1) / (num_levels - 1) - 1, torch.tensor([math.inf])])
    cumulative = torch.sigmoid((edges[:, None] - locs) / log_scales.exp())
    return (torch.softmax(logits, -1) * cumulative.diff(dim=0)).sum(-1)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_a_mixture_of_discretised_logistics_has_the_mass_between_the_edges(num_levels):
    logits, locs, log_scales = torch.tensor([0.3, -1.0, 0.0]), torch.tensor([-0.9, 0.2, 1.4]), torch.tensor([-1.0, -3.0, 1.5])
    found = distributions.DiscretizedLogisticMixture(logits, locs, log_scales, num_levels)
    mass, level = by_sigmoids(logits, locs, log_scales, num_levels), torch.arange(float(num_levels))
    assert torch.allclose(found.log_prob(level).exp(), mass, atol=1e-14)
    mean = (level * mass).sum()
    assert found.mean.item() == pytest.approx(mean.item(), rel=1e-12)
    assert found.variance.item() == pytest.approx(((level - mean) ** 2 * mass).sum().item(), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0, 5.0, 60.0])
@pytest.mark.parametrize("loc", [-30.0, -1.0, 0.123, 1.0, 5.0])
def test_the_256_masses_sum_to_one(loc, log_scale, dtype):
    parameters = (torch.tensor([value], dtype=dtype) for value in (0.0, loc, log_scale))
    found = distributions.DiscretizedLogisticMixture(*parameters).log_prob(LEVELS.to(dtype))
    rounding = 256 * 60 * torch.finfo(dtype).eps  # of a log mass of up to 60 that counts, 256 times
    assert found.exp().sum().item() == pytest.approx(1, abs=rounding)
    assert torch.isfinite(found).all()


def test_a_mass_that_no_difference_of_sigmoids_can_show_is_right_in_float32():
    """Level 0 at location 1, scale exp(-7): log s(b) = b with b = (-1 + 1/255 - 1) exp(7), about -2189 nats."""
    parameters = (torch.tensor([value], dtype=torch.float32) for value in (0.0, 1.0, -7.0))
    found = distributions.DiscretizedLogisticMixture(*parameters).log_prob(torch.tensor([0.0, 100.0], dtype=torch.float32))
    width, scale = 2 / 255, math.exp(-7)
    inner = (100 * width - 1 + width / 2 - 1) / scale + math.log(-math.expm1(-width / scale))
    assert found.tolist() == pytest.approx([(width / 2 - 2) / scale, inner], rel=1e-5)


def test_outputs_of_one_kind_stand_together_as_a_convolution_gives_them():
    """3 M images from a ConvDecoder, flat: the first M are the logits, the next the locations."""
    output = torch.zeros(3 * M, 16)
    output[M] = torch.linspace(-1, 1, 16)  # the first component's locations
    found = likelihoods.DiscretizedLogistic(M)(output.flatten()).base_dist
    assert found.locs[:, 0].tolist() == torch.linspace(-1, 1, 16).tolist()
    assert found.batch_shape == (16,)


def test_bits_per_dimension_of_uniform_bytes_are_8():
    assert likelihoods.bits_per_dimension(-3072 * math.log(256), 3072) == pytest.approx(8)
    assert likelihoods.bits_per_dimension(torch.tensor([-16 * math.log(2)]), 4).tolist() == pytest.approx([4])


# What holds for all


@each_likelihood
def test_gradients_are_finite_at_extreme_outputs_in_float32(make, width, data, outside):
    x = data().float()
    for size in (1e2, 1e4, 1e8):
        output = (size * torch.randn(N, width * D)).float().requires_grad_()
        likelihood = make().float()
        density = distribution(likelihood, output, x).log_prob(x)
        gradients = torch.autograd.grad(density.sum(), [output, *likelihood.parameters()])
        assert torch.isfinite(density).all()
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@each_likelihood
def test_a_mask_leaves_factors_out(make, width, data, outside):
    """Of the first datum entries 0 and 2: what the density of these two alone is, by hand from the elementwise one."""
    x, observed = data(), torch.rand(N, D) < 0.5
    whole = distribution(make(), torch.randn(N, width * D), x)
    kept = masked(whole, observed).log_prob(x)
    assert torch.allclose(kept, (whole.base_dist.log_prob(x) * observed).sum(-1), atol=1e-12)


@each_likelihood
def test_draws_have_the_mean_and_the_variance_that_are_told(make, width, data, outside):
    x = data()[:1]
    fn = distribution(make(), torch.randn(1, width * D), x).base_dist
    if not isinstance(fn, torch.distributions.Categorical):  # it has no mean
        draws = fn.sample((40_000,))
        assert bool(fn.support.check(draws).all())
        error = draws.std(0) / 200
        assert ((draws.mean(0) - fn.mean).abs() < 5 * error).all()
        fourth = ((draws - fn.mean) ** 2).std(0) / 200
        assert ((((draws - fn.mean) ** 2).mean(0) - fn.variance).abs() < 6 * fourth).all()


@each_likelihood
@pytest.mark.filterwarnings("ignore::ppvae.errors.UnreliableWarning")
def test_data_outside_the_support_are_refused(make, width, data, outside):
    model, guide = pair(make, width)
    x = data()
    x[3, 1] = outside
    assert not ppvae.check(model, guide, x).ok
    with pytest.raises(DataError) as refused:
        analysis.elbo(model, guide, x, num_particles=2)
    assert "row 3, column 1" in str(refused.value)
    with pytest.raises(DataError):
        ppvae.fit(model, guide, x, epochs=1)


OLD = ("bernoulli", "normal", "normal, learned", "normal, per dimension", "categorical")  # walked by other tests
NEW = [name for name in SHELF if name not in (*OLD, "laplace", "student t")]  # with a fixed scale they are a special case


@pytest.mark.soak
@pytest.mark.parametrize("name", NEW)
@pytest.mark.filterwarnings("ignore::ppvae.errors.UnreliableWarning")
def test_down_the_street(name, tmp_path):
    make, width, data, _ = SHELF[name]
    model, guide = pair(make, width)
    x = data()
    if name == "negative binomial":  # its size is then a covariate of the data, not read off them
        x = {"x": x, "size": x.sum(-1) + 1}
        guide = guides.DiagonalNormal(WithCovariates(nn.MLP(D + 1, [5], 2 * Z), ["size"]), Z)
    assert ppvae.check(model, guide, x).ok
    run = ppvae.fit(model, guide, x, epochs=2, batch_size=20, out=tmp_path, compile=False)
    found = analysis.log_likelihood(run.model, run.guide, x, num_particles=50)
    again = ppvae.load(tmp_path)
    assert torch.equal(analysis.log_likelihood(again.model, again.guide, x, num_particles=50).pointwise, found.pointwise)
    gaps = analysis.inference_gaps(
        run.model, run.guide, take(x, slice(0, 4)), reference="importance", num_particles=50, num_reference=100, steps=10
    )
    assert (gaps.inference - (gaps.log_px - gaps.elbo)).abs().max() < 1e-9
    calibrated = analysis.calibration(run.model, run.guide, template=x, num_data=20, num_draws=9)
    assert calibrated.ranks.shape == (20, Z) and 0 <= calibrated.ranks.min() <= calibrated.ranks.max() <= 9
    if name in ("discretised logistic", "poisson"):
        assert "ELBO" in analysis.report(tmp_path, data=Data.of(x)).read_text()


def test_a_size_read_off_the_counts_is_no_program_to_simulate_from():
    """The total of a draw is another than the total that it was drawn with: calibration says so, and the dict is the way."""
    model, guide = pair(*SHELF["negative binomial"][:2])
    with pytest.raises(ProgramError, match="gives simulated values of the site 'x' another density than the one they were drawn from"):
        analysis.calibration(model, guide, template=counts(), num_data=20, num_draws=9)


# The command line's


@pytest.mark.parametrize("program", ["mlp", "conv"])
@pytest.mark.parametrize("name", sorted(pairs.LIKELIHOODS))
def test_the_command_line_builds_a_pair_that_keeps_the_contract(name, program):
    """The decoder ends in as many outputs as the likelihood takes, and the discretised logistic has the levels of the data."""
    grey = name in ("beta", "continuous-bernoulli", "discretized-logistic")
    x = torch.randint(1, 16, (6, 16)) / 16 if grey else torch.randint(0, 2, (6, 16)).double()
    data = Data.from_arrays(
        x * (16 if name == "discretized-logistic" else 1), binarize="none", levels=16.0 if grey and name[0] == "d" else None
    )
    model, guide, _ = pairs.pair(data, options.Check(program=program, likelihood=name, hidden=(3,), latent_dim=2))
    assert ppvae.check(model.double(), guide.double(), data.x.double()).ok
    fn = model.likelihood(model.network(torch.zeros(6, 2)), *([torch.ones(6)] if hasattr(model.likelihood, "covariate") else []))
    assert (fn.batch_shape, fn.event_shape) == ((6,), (16,))
    if name == "discretized-logistic":
        assert (fn.base_dist.num_levels, fn.base_dist.step) == (17, 1 / 16)
