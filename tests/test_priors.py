"""Priors held to closed forms: scipy's mixtures, change of variables by finite differences, quadrature, and their own draws."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import scipy.special
import scipy.stats
import torch

import ppvae
from ppvae import analysis, guides, models, nn
from ppvae.batches import take
from ppvae.data import Data
from ppvae.errors import DataError, FamilyError, ShapeError
from ppvae.families import DiagonalNormal, FullRankNormal
from ppvae.models import likelihoods, priors
from ppvae.models.covariates import WithCovariates

N, D = 24, 3


def moved(module, size=0.5):
    """The module with its parameters away from where they start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def guide_of(latent_dim):
    return guides.DiagonalNormal(nn.MLP(D, [5], 2 * latent_dim), latent_dim)


# Prior over R^Z, as it stands away from its start.
SHELF = {
    "normal": lambda z: moved(priors.Normal(z)),
    "mixture": lambda z: moved(priors.MixtureOfNormals(z, 3)),
    "vamp": lambda z: moved(priors.VampPrior(guide_of(z), torch.randn(4, D))),
    "flow": lambda z: priors.Flow(z, [T.Spline(z, count_bins=4)]),
}
each_prior = pytest.mark.parametrize("make", SHELF.values(), ids=SHELF.keys())


# Formulas


def test_a_learned_normal_starts_standard_and_is_scipys():
    prior, z = priors.Normal(2), torch.tensor([0.3, -1.0])
    assert prior().log_prob(z).item() == pytest.approx(priors.StandardNormal(2)().log_prob(z).item())
    moved(prior)
    loc, scale = prior.loc.detach().numpy(), prior.log_scale.detach().exp().numpy()
    assert prior().log_prob(z).item() == pytest.approx(scipy.stats.norm.logpdf(z.numpy(), loc, scale).sum())


def log_mixture(z, log_weights, locs, scales):
    """log sum_c w_c N(z; loc_c, diag(scale_c^2)) by scipy, (n, Z) -> (n,)."""
    terms = scipy.stats.norm.logpdf(z[:, None], locs, scales).sum(-1)
    return scipy.special.logsumexp(log_weights + terms, axis=1)


def test_a_mixture_is_the_logsumexp_of_its_normals():
    prior, z = moved(priors.MixtureOfNormals(2, 3)), torch.randn(7, 2)
    logits, locs, scales = (part.detach().numpy() for part in (prior.logits, prior.locs, prior.log_scales.exp()))
    by_scipy = log_mixture(z.numpy(), scipy.special.log_softmax(logits), locs, scales)
    assert prior().log_prob(z).detach().numpy() == pytest.approx(by_scipy, abs=1e-12)


def test_responsibilities_are_bayes_rule():
    """Two Normals of scale 1 at -1 and 1, equal weights: p(second | z) = sigmoid(2 z)."""
    prior, z = priors.MixtureOfNormals(1, 2), torch.tensor([[-0.7], [0.0], [2.0]])
    with torch.no_grad():
        prior.locs.copy_(torch.tensor([[-1.0], [1.0]]))
    assert torch.allclose(prior.responsibilities(z)[:, 1], torch.sigmoid(2 * z[:, 0]))


def test_a_vamp_prior_is_the_mixture_of_the_encoders_normals_at_the_pseudo_inputs():
    guide, u, z = guide_of(2), torch.randn(4, D), torch.randn(7, 2)
    prior = moved(priors.VampPrior(guide, u))
    with torch.no_grad():
        loc, log_scale = guide.encoder(prior.pseudo_inputs).chunk(2, -1)
    by_scipy = log_mixture(z.numpy(), -math.log(4), loc.numpy(), log_scale.exp().numpy())
    assert prior().log_prob(z).detach().numpy() == pytest.approx(by_scipy, abs=1e-12)


def test_a_vamp_prior_follows_the_guide_of_another_family():
    guide = guides.Amortized(nn.MLP(D, [5], 5), FullRankNormal(2))
    prior, z = priors.VampPrior(guide, torch.randn(3, D)), torch.randn(7, 2)
    normals = guide.family.distribution(guide.encoder(prior.pseudo_inputs))
    assert torch.allclose(prior().log_prob(z), torch.logsumexp(normals.log_prob(z[:, None]), -1) - math.log(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: priors.CouplingFlow(3, num_flows=2, hidden=(4,)),
        lambda: priors.Flow(3, [T.spline_coupling(3, hidden_dims=[4], count_bins=4), T.permute(3), T.affine_coupling(3, hidden_dims=[4])]),
    ],
    ids=["couplings", "pyro's transforms"],
)
def test_a_flow_is_its_change_of_variables(make):
    """log p(f(z0)) = log N(z0) - log |det J|, with J by central differences of the maps."""
    prior = moved(make())
    maps = prior().transforms
    for z0 in torch.randn(4, 3):

        def f(value):
            for part in prior().transforms:
                value = part(value)
            return value.detach()

        step = 1e-5
        columns = [(f(z0 + step * unit) - f(z0 - step * unit)) / (2 * step) for unit in torch.eye(3)]
        log_det = torch.linalg.slogdet(torch.stack(columns, -1))[1]
        by_hand = torch.distributions.Normal(0.0, 1.0).log_prob(z0).sum() - log_det
        assert prior().log_prob(f(z0)).item() == pytest.approx(by_hand.item(), abs=1e-7)  # of the differences: step^2 and 1e-16 / step
    assert len(maps) >= 3


@each_prior
def test_a_prior_integrates_to_one(make):
    prior = make(1)
    grid = torch.linspace(-60, 60, 240_001)[:, None]  # trapezoid of smooth or piecewise smooth densities, in steps of 0.0005
    assert torch.trapezoid(prior().log_prob(grid).exp(), dx=120 / 240_000).item() == pytest.approx(1, abs=1e-5)


def test_a_coupling_flow_integrates_to_one_in_the_plane():
    prior = moved(priors.CouplingFlow(2, num_flows=2, hidden=(4,)), 0.3)
    line = torch.linspace(-15, 15, 601)
    density = prior().log_prob(torch.cartesian_prod(line, line)).exp()
    assert density.sum().item() * 0.05**2 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("make", [*SHELF.values(), lambda z: moved(priors.CouplingFlow(z, 2, (4,)), 0.3)], ids=[*SHELF, "couplings"])
def test_draws_have_the_moments_of_the_density(make):
    """By weights against a wide Normal: E_p[z] = E_r[z p / r]; both sides' errors are known."""
    prior, wide = make(2)(), torch.distributions.MultivariateNormal(torch.zeros(2), 16 * torch.eye(2))
    with torch.no_grad():
        draws, others = prior.sample((20_000,)), wide.sample((100_000,))
        weights = (prior.log_prob(others) - wide.log_prob(others)).exp()[:, None]
    for power in (1, 2):
        by_weights = weights * others**power
        error = (draws**power).var(0) / len(draws) + by_weights.var(0) / len(others)
        assert (((draws**power).mean(0) - by_weights.mean(0)).abs() < 4.5 * error.sqrt()).all()


def test_a_flow_forgets_its_last_input_when_its_parameters_move():
    prior, z = priors.Flow(2, [T.affine_coupling(2, hidden_dims=[4])]), torch.randn(5, 2)
    with torch.no_grad():
        before = prior().log_prob(z)
    moved(prior)
    after = prior().log_prob(z)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(after.detach(), prior().log_prob(z.clone()).detach())
    assert after.requires_grad


# Conditional


def conditional(num_categories=3):
    return priors.Conditional(nn.MLP(num_categories, [], 4), DiagonalNormal(2), num_categories=num_categories)


def test_a_conditional_prior_has_a_normal_for_each_label():
    prior, z = conditional(), torch.randn(3, 2)
    linear = prior.network.layers[0]
    found = prior(torch.tensor([2, 0, 2])).log_prob(z)
    for row, label in enumerate([2, 0, 2]):
        loc, log_scale = (linear.weight[:, label] + linear.bias).detach().chunk(2)
        assert found[row].item() == pytest.approx(scipy.stats.norm.logpdf(z[row].numpy(), loc.numpy(), log_scale.exp().numpy()).sum())


def test_a_conditional_prior_of_a_real_covariate():
    prior = priors.Conditional(nn.MLP(1, [], 4), DiagonalNormal(2), covariate="age")
    with torch.no_grad():
        prior.network.layers[0].weight.copy_(torch.tensor([[2.0], [0.0], [0.0], [0.0]]))
        prior.network.layers[0].bias.zero_()
    age = prior.covariate_of({"x": torch.zeros(2, D), "age": torch.tensor([1.0, 3.0])})
    assert prior(age).mean.tolist() == [[2, 0], [6, 0]]


def test_log_px_given_a_label_is_that_of_its_normal():
    """z | y ~ N(m_y, s_y^2), x | z ~ N(z, 1): the exact posterior has constant weights, log N(x; m_y, s_y^2 + 1)."""
    prior, identity = conditional(), nn.MLP(2, [], 2)
    with torch.no_grad():
        identity.layers[0].weight.copy_(torch.eye(2))
        identity.layers[0].bias.zero_()
    model = models.LatentVariable(prior, identity, likelihoods.Normal(1.0))

    def guide(x):
        normal = prior(x["y"]).base_dist
        variance = normal.scale**2
        loc, scale = (normal.loc + variance * x["x"]) / (1 + variance), (variance / (1 + variance)).sqrt()
        with pyro.plate("data", len(loc), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    x = {"x": torch.randn(12, 2), "y": torch.arange(12) % 3}
    normal = prior(x["y"]).base_dist
    loc, variance = normal.loc.detach().numpy(), normal.scale.detach().numpy() ** 2
    by_scipy = scipy.stats.norm.logpdf(x["x"].numpy(), loc, np.sqrt(variance + 1)).sum(-1)
    assert np.abs(ppvae.log_weights(model, guide, x, num_particles=4).numpy() - by_scipy).max() < 1e-10


def test_a_label_that_is_no_category_is_refused_and_never_silently_zero():
    prior = conditional()
    with pytest.raises(DataError, match=r"labels are 0, 1, ..., 2, and 1 of 3 are not\n  where: row 1 of 'y': 3"):
        prior.covariate_of({"x": torch.zeros(3, D), "y": torch.tensor([0, 3, 2])})
    assert torch.isnan(prior.network(models.covariates.one_hot(torch.tensor([3]), 3))).all()  # where validation is off


def test_a_batch_without_its_covariate_is_told():
    model = models.LatentVariable(conditional(), nn.MLP(2, [], D), likelihoods.Normal())
    with pytest.raises(ShapeError, match="a Conditional prior needs a batch with 'y', and a Tensor came"):
        model(torch.zeros(3, D))


def test_a_key_that_nobody_reads_is_still_refused():
    model = models.LatentVariable(priors.StandardNormal(2), nn.MLP(2, [], D), likelihoods.Normal())
    with pytest.raises(ShapeError, match="a dict of 'x', 'y' came"):
        model({"x": torch.zeros(3, D), "y": torch.zeros(3)})


def test_a_mask_and_a_covariate_go_together():
    model = models.LatentVariable(conditional(), nn.MLP(2, [], D), likelihoods.Normal())
    encoder = WithCovariates(nn.MLP(2 * D + 3, [], 4), num_categories=3)
    x, observed = torch.randn(N, D), torch.rand(N, D) < 0.6
    batches = [{"x": values, "observed": observed, "y": torch.arange(N) % 3} for values in (x, torch.where(observed, x, 7.0))]
    weights = [ppvae.log_weights(model, guides.DiagonalNormal(encoder, 2), batch, num_particles=3) for batch in batches]
    assert torch.equal(*weights)  # what stands in a hole cannot matter


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: priors.VampPrior(torch.nn.Identity(), torch.zeros(2, D)),  # type: ignore[arg-type]
            FamilyError,
            "a VampPrior needs a guide with parameters_at and family",
        ),
        (lambda: priors.VampPrior(guide_of(2), torch.zeros(0, D)), ShapeError, "pseudo-inputs are"),
        (lambda: priors.Flow(2, []), FamilyError, "a flow needs a transform at least"),
        (lambda: priors.CouplingFlow(1), FamilyError, "needs 2 at least, got latent_dim=1"),
        (lambda: priors.CouplingFlow(2, hidden=()), FamilyError, "needs a hidden layer"),
    ],
    ids=["guide", "pseudo-inputs", "transforms", "dimension", "hidden"],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# The whole street


def test_a_vamp_prior_registers_no_parameter_of_the_encoder():
    guide = guide_of(2)
    model = models.LatentVariable(priors.VampPrior(guide, torch.randn(4, D)), nn.MLP(2, [], D), likelihoods.Normal())
    own = {id(parameter) for parameter in model.parameters()}
    assert not own & {id(parameter) for parameter in guide.parameters()}
    assert [name for name, _ in model.named_parameters() if "prior" in name] == ["prior_given.pseudo_inputs"]


def test_the_prior_term_trains_the_encoder_and_the_pseudo_inputs_of_a_vamp_prior():
    """The gradient of the ELBO by an encoder weight has the prior's share: that of log p(z) at the same draws, by autograd."""
    guide = guide_of(2)
    prior = priors.VampPrior(guide, torch.randn(4, D))
    z = torch.randn(6, 2)
    found = torch.autograd.grad(prior().log_prob(z).sum(), [guide.encoder.layers[0].weight, prior.pseudo_inputs])
    assert all(gradient.abs().sum() > 1e-6 for gradient in found)
    with torch.no_grad():
        weight, step = guide.encoder.layers[0].weight, 1e-6
        weight[1, 2] += step
        up = prior().log_prob(z).sum()
        weight[1, 2] -= 2 * step
        down = prior().log_prob(z).sum()
    assert ((up - down) / (2 * step)).item() == pytest.approx(found[0][1, 2].item(), abs=1e-7)


def built(name):
    """Model, guide and data for a prior on the shelf."""
    x, guide = torch.randn(N, D), guide_of(2)
    prior = {
        "normal": lambda: priors.Normal(2),
        "mixture": lambda: priors.MixtureOfNormals(2, 3),
        "couplings": lambda: priors.CouplingFlow(2, 2, (4,)),
        "flow": lambda: priors.Flow(2, [T.Spline(2, count_bins=4)]),
        "vamp": lambda: priors.VampPrior(guide, x[:4]),
        "conditional": conditional,
    }[name]()
    if name == "conditional":
        x = {"x": x, "y": torch.arange(N) % 3}
        guide = guides.DiagonalNormal(WithCovariates(nn.MLP(D + 3, [5], 4), num_categories=3), 2)
    return models.LatentVariable(prior, nn.MLP(2, [5], D), likelihoods.Normal(0.8)), guide, x


@pytest.mark.soak
@pytest.mark.parametrize("name", ["normal", "mixture", "couplings", "flow", "vamp", "conditional"])
@pytest.mark.filterwarnings("ignore::ppvae.errors.UnreliableWarning")
def test_down_the_street(name, tmp_path):
    model, guide, x = built(name)
    report = ppvae.check(model, guide, x)
    assert report.ok and not [finding for finding in report.findings if finding.severity == "warning"], str(report)
    before = {key: value.clone() for key, value in model.prior_given.named_parameters()}
    run = ppvae.fit(model, guide, x, epochs=2, batch_size=8, out=tmp_path, compile=False)
    assert all((value != before[key]).any() for key, value in model.prior_given.named_parameters())  # trained jointly
    found = analysis.log_likelihood(run.model, run.guide, x, num_particles=50)
    again = ppvae.load(tmp_path)
    assert torch.equal(analysis.log_likelihood(again.model, again.guide, x, num_particles=50).pointwise, found.pointwise)
    gaps = analysis.inference_gaps(
        run.model, run.guide, take(x, slice(0, 4)), reference="importance", num_particles=50, num_reference=100, steps=10
    )
    assert (gaps.inference - (gaps.log_px - gaps.elbo)).abs().max() < 1e-9
    calibrated = analysis.calibration(run.model, run.guide, template=x, num_data=20, num_draws=9)
    assert calibrated.ranks.shape == (20, 2) and 0 <= calibrated.ranks.min() <= calibrated.ranks.max() <= 9
    if name in ("mixture", "vamp"):
        assert "ELBO" in analysis.report(tmp_path, data=Data.of(x)).read_text()


@pytest.mark.soak
@pytest.mark.parametrize("name", ["mixture", "couplings", "vamp", "conditional"])
def test_compiled_steps_are_the_eager_ones(name):
    """A learned prior changes nothing in how steps are captured: two epochs, equal losses to rounding."""
    rows = {}
    for compile in (False, True):
        torch.manual_seed(3)
        model, guide, x = built(name)
        rows[compile] = ppvae.fit(model, guide, x, epochs=2, batch_size=8, compile=compile).history
    assert [row["train_elbo"] for row in rows[True]] == pytest.approx([row["train_elbo"] for row in rows[False]], abs=1e-9)


def test_gaps_of_a_learned_prior_close_at_its_posterior():
    """z ~ N(m, s^2) learned, x | z ~ N(z, 1): the exact linear guide has constant weights, log N(x; m, s^2 + 1)."""
    prior, identity, encoder = moved(priors.Normal(1)), nn.MLP(1, [], 1), nn.MLP(1, [], 2)
    m, s2 = prior.loc.item(), (2 * prior.log_scale).exp().item()
    with torch.no_grad():
        identity.layers[0].weight.fill_(1.0)
        identity.layers[0].bias.zero_()
        encoder.layers[0].weight.copy_(torch.tensor([[s2 / (s2 + 1)], [0.0]]))
        encoder.layers[0].bias.copy_(torch.tensor([m / (s2 + 1), 0.5 * math.log(s2 / (s2 + 1))]))
    model, x = models.LatentVariable(prior, identity, likelihoods.Normal(1.0)), torch.randn(9, 1)
    weights = ppvae.log_weights(model, guides.DiagonalNormal(encoder, 1), x, num_particles=5)
    by_scipy = scipy.stats.norm.logpdf(x.numpy()[:, 0], m, math.sqrt(s2 + 1))
    assert np.abs(weights.numpy() - by_scipy).max() < 1e-10
