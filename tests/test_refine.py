"""Local posteriors reach the optimum of their family, and refuse what they cannot free."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

import ppvae
from ground_truth import MeanField, correlated_posterior, kl_to_posterior, poisson_gamma
from ppvae import analysis, guides, models, nn, refinement
from ppvae.analysis import exact_log_likelihood, refine
from ppvae.errors import FamilyError, ShapeError
from ppvae.pair import Pair


def off_by(model, x, loc=0.5, inflation=1.5):
    """An amortized guide with known faults, of our own kind: its rows are the best diagonal Normal's, moved and widened."""

    class Front(torch.nn.Module):
        def forward(self, x):
            best, scale = MeanField(model, loc, inflation).parameters(x)
            return torch.cat([best, scale.log()], -1)

    return guides.DiagonalNormal(Front(), x.shape[-1])


@pytest.mark.parametrize("r", [*(pytest.param(r, marks=pytest.mark.soak) for r in (0.3, 0.6)), 0.8], ids=str)
def test_refined_diagonal_normal_loses_half_log_one_minus_r_squared(r):
    model, x, gap = correlated_posterior(r, num_data=32)
    found = refine(model, off_by(model, x), x, steps=480, num_draws=128, num_particles=1)
    loc, log_scale = found.guide.tables["z"].chunk(2, -1)
    lost = kl_to_posterior(model, x, loc, torch.diag_embed((2 * log_scale).exp()))
    assert (lost - gap).abs().mean() < 1e-3


def test_refined_full_rank_normal_is_the_posterior():
    model, x, _ = correlated_posterior(0.9, num_data=32)
    found = refine(model, off_by(model, x), x, family="full_rank", steps=320, num_particles=50)
    assert (found.pointwise - model.log_evidence(x)).abs().max() < 1e-6  # the update has no noise at the posterior, nor has the weight


def test_a_users_guide_with_normal_sites_is_freed_by_its_parameters():
    model, x, gap = correlated_posterior(0.6, num_data=32)
    found = refine(model, MeanField(model, offset=0.4, inflation=0.7), x, steps=320, num_particles=1)
    loc, log_scale = found.guide.tables["z"].chunk(2, -1)
    lost = kl_to_posterior(model, x, loc, torch.diag_embed((2 * log_scale).exp()))
    assert (lost - gap).abs().mean() < 1e-3


def gamma_guide(y):
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("r", dist.Gamma(torch.full_like(y, 3.0), torch.full_like(y, 2.0)))


def test_a_gamma_guide_is_freed_in_unconstrained_space_and_reaches_the_conjugate_posterior():
    model, y, evidence, _ = poisson_gamma()
    found = refine(model, gamma_guide, y, steps=320, num_particles=2000)
    assert (evidence - found.pointwise < 5 * found.pointwise_se + 5e-3).all()  # 5e-3: Adam's last iterate
    assert (found.pointwise <= evidence + 5 * found.pointwise_se).all()


def test_mean_field_on_a_gamma_latent_is_a_normal_over_its_logarithm():
    """The best log-Normal for a Gamma posterior: E over quadrature, by minimising KL on a grid of the one-dimensional u = log r."""
    model, y, evidence, (shape, rate) = poisson_gamma(num_data=4)
    found = refine(model, gamma_guide, y, family="mean_field", steps=320, num_particles=5_000)
    # KL(logN(m, s) || Gamma(a, b)) is least at s^2 = 1/a', m + s^2/2 = log(a'/b'): E[r] = a/b and s^2 = 1/a
    m, s2 = torch.log(shape / rate) - 0.5 / shape, 1 / shape
    log_p = shape * rate.log() - torch.lgamma(shape) + shape * m - rate * torch.exp(m + s2 / 2)
    kl = -0.5 * torch.log(2 * math.pi * math.e * s2) - log_p
    assert (found.pointwise - (evidence - kl)).abs().max() < 5 * found.pointwise_se.max() + 1e-3


def two_layer(x):
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(z2, 0.5).to_event(1))
        pyro.sample("x", dist.Normal(z1, 0.3).to_event(1), obs=x)


def bottom_up(x):
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(x, 0.4).to_event(1))
        pyro.sample("z2", dist.Normal(0.8 * z1, 0.4).to_event(1))


def test_full_rank_over_two_layers_is_the_joint_posterior():
    """z2 ~ N(0, 1), z1 | z2 ~ N(z2, 0.25), x | z1 ~ N(z1, 0.09): evidence N(x; 0, 1.34) in each of two dimensions."""
    x = torch.randn(20, 2)
    found = refine(two_layer, bottom_up, x, family="full_rank", steps=320, num_particles=50)
    assert (
        found.pointwise - dist.Normal(0.0, math.sqrt(1.34)).log_prob(x).sum(-1)
    ).abs().max() < 2e-4  # what is left falls as a power of the steps


def flow_guide(x):
    flow = transforms.AffineTransform(0.1 * x, 2.0, event_dim=1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros_like(x), 1.0).to_event(1), [flow]))


def point_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Delta(x, event_dim=1))


def one_layer(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            two_layer,
            bottom_up,
            "family 'same' cannot free the guide's site 'z2': it is a Normal whose loc moves with the noise: it depends on an earlier draw",
        ),
        (
            one_layer,
            flow_guide,
            "family 'same' cannot free the guide's site 'z': it is transformed by a flow whose parameters are not the distribution's own",
        ),
        (
            one_layer,
            point_guide,
            "family 'same' cannot free the guide's site 'z': it is a point mass, which has no parameters to optimise in the family's own sense",
        ),
    ],
    ids=["two layers", "flow", "delta"],
)
def test_family_same_refuses_what_has_no_parameters_of_its_own(model, guide, message):
    with pytest.raises(FamilyError) as raised:
        refine(model, guide, torch.randn(5, 2))
    assert raised.value.problem == message
    assert "parameters_at(x) -> (N, P) and an attribute family" in raised.value.mend[0]


class WithMethods:
    """A user's guide of a family of their own, with the two methods that the error asks for: a shifted logistic-like Laplace."""

    class family:
        latent_dim, num_parameters = 1, 2

        @staticmethod
        def distribution(row):
            return dist.Laplace(row[..., :1], row[..., 1:].exp()).to_event(1)

    def parameters_at(self, x):
        """(N, 2)."""
        return torch.cat([x + 1.0, torch.zeros_like(x)], -1)

    def __call__(self, x):
        """Draw z."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.family.distribution(self.parameters_at(x)))


def test_a_users_family_is_refined_through_its_two_methods():
    """The best Laplace(m, b) for N(mu, v): m = mu, and b minimises -log 2b - 1 + ... : E|z - m|^2 = 2 b^2, so KL' = -1/b + 2b/v, b = sqrt(v/2)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.randn(16, 1)
    found = refine(model, WithMethods(), x, steps=320, num_particles=1)
    loc, log_scale = found.guide.tables["z"].unbind(-1)
    assert (loc - x[:, 0] / 2).abs().mean() < 0.02  # a spread of Adam's last iterate; the ELBO is flat to second order there
    assert (log_scale.exp() - math.sqrt(0.5 / 2)).abs().mean() < 0.02


def test_a_discrete_latent_is_refused_by_mean_field_with_its_name():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(k.double(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(torch.ones(len(x), 3)))

    with pytest.raises(FamilyError, match="the latent site 'k' is discrete \\(Categorical\\)"):
        refine(model, guide, torch.randn(5), family="mean_field")
    with pytest.raises(FamilyError, match="the guide's site 'k' is Categorical, whose draws have no gradient"):
        refine(model, guide, torch.randn(5))


def test_the_last_gain_is_about_what_is_missing():
    model, x, gap = correlated_posterior(0.8, num_data=200)
    found = refine(model, off_by(model, x, loc=1.0), x, steps=80, num_particles=1)
    loc, log_scale = found.guide.tables["z"].chunk(2, -1)
    missing = (kl_to_posterior(model, x, loc, torch.diag_embed((2 * log_scale).exp())) - gap).mean()
    assert 0.2 < found.gain.mean() / missing < 5


def test_refinement_never_lowers_the_bound_of_a_datum():
    """L[q] <= L[q*] in the same family; a start that is already optimal is kept to within the noise of 128 common draws."""
    model, x, _ = correlated_posterior(0.9, num_data=64)
    best = MeanField(model)
    found = refine(model, best, x, num_particles=1)
    loc, log_scale = found.guide.tables["z"].chunk(2, -1)
    after = kl_to_posterior(model, x, loc, torch.diag_embed((2 * log_scale).exp()))
    loc, scale = best.parameters(x)
    before = kl_to_posterior(model, x, loc, torch.diag_embed(scale.square()))
    assert (after - before).max() < 0.05


def test_a_local_posterior_refuses_other_data():
    model, x, _ = correlated_posterior(0.5, num_data=10)
    local = refine(model, MeanField(model), x, num_particles=1).guide
    with pytest.raises(ShapeError, match="this local posterior belongs to 10 data, and 7 came"):
        ppvae.log_weights(model, local, x[:7], num_particles=2)


def test_a_local_posterior_can_be_refined_again():
    model, x, gap = correlated_posterior(0.6, num_data=32)
    first = refine(model, MeanField(model, offset=2.0), x, steps=20, num_particles=1).guide
    found = refine(model, first, x, steps=320, num_particles=1)
    loc, log_scale = found.guide.tables["z"].chunk(2, -1)
    assert (kl_to_posterior(model, x, loc, torch.diag_embed((2 * log_scale).exp())) - gap).abs().mean() < 1e-3


def test_a_network_that_refuses_leading_dims_is_refined():
    class Refusing(torch.nn.Module):
        def forward(self, z):
            assert z.dim() == 2
            return z.view(len(z), -1)

    encoder, decoder = nn.MLP(2, [], 4), Refusing()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    x = torch.randn(70, 2)
    found = refine(model, guides.DiagonalNormal(encoder, 2), x, steps=320, num_particles=20)
    assert (found.pointwise - dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(-1)).abs().max() < 1e-5


def test_unknown_families_are_named():
    model, x, _ = correlated_posterior(0.5, num_data=4)
    with pytest.raises(FamilyError, match="family is one of same, mean_field, full_rank, low_rank, flow, mixture, got 'planar'"):
        refine(model, MeanField(model), x, family="planar")


def test_plates_inside_a_datum_are_refined_jointly():
    """y_ij = z_ij + noise with z_ij ~ N(0, 1): the posterior factorises, and mean field reaches the evidence prod N(y; 0, 2)."""

    def model(y):
        with pyro.plate("data", len(y), dim=-1), pyro.plate("inner", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.T)

    def guide(y):
        with pyro.plate("data", len(y), dim=-1), pyro.plate("inner", 3, dim=-2):
            pyro.sample("z", dist.Normal(y.T, 1.0))

    y = torch.randn(9, 3)
    found = refine(model, guide, y, steps=320, num_particles=20)
    assert (found.pointwise - dist.Normal(0.0, math.sqrt(2)).log_prob(y).sum(1)).abs().max() < 1e-5


def test_exact_model_methods_survive_in_models_of_ours():
    x = torch.randn(50, 4) @ torch.randn(4, 4)
    model = models.LinearGaussian.maximum_likelihood(x, 2)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    s2 = eigenvalues[2:].mean()
    best = -0.5 * (4 * math.log(2 * math.pi) + eigenvalues[:2].log().sum() + 2 * s2.log() + 4)
    assert model.log_evidence(x).mean().item() == pytest.approx(best.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("family", "excess"),
    [
        ("full_rank", 2e-4),
        *(pytest.param(name, excess, marks=pytest.mark.soak) for name, excess in (("mixture", 0.02), ("low_rank", 0.05), ("flow", 0.02))),
    ],
)
def test_rich_families_reach_a_correlated_posterior(family, excess):
    """With r = 0.9 the best mean field loses 0.83 nats; one factor beside the diagonal, and what stands on a full rank, lose none."""
    model, x, gap = correlated_posterior(0.9, num_data=16)
    found = refine(model, MeanField(model, offset=0.5), x, family=family, num_particles=2000)
    lost = model.log_evidence(x) - found.pointwise
    assert lost.mean() < excess + 5 * found.mean.mc_se < gap
    assert (lost > -5 * found.pointwise_se - 1e-6).all()


@pytest.mark.soak
def test_a_mixture_and_a_flow_gain_on_a_posterior_that_is_no_normal():
    """x = z_1^2 + z_2 + noise: the posterior is a banana. Each family's bound, against the truth by quadrature, on common data."""

    def banana(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1:] + z[..., :1] ** 2, 0.4).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 0.7).to_event(1))

    x = torch.linspace(-0.5, 0.5, 8)[:, None]
    lost = {}
    for family in ("full_rank", "mixture", "flow"):
        found = refine(banana, guide, x, family=family, num_particles=4000)
        lost[family] = (exact_log_likelihood(banana, x).pointwise - found.pointwise).mean().item()
        assert lost[family] > -5 * found.mean.mc_se
    assert lost["mixture"] < 0.7 * lost["full_rank"] and lost["flow"] < 0.7 * lost["full_rank"]


def test_how_many_data_are_refined_at_once_changes_nothing(monkeypatch):
    model, x, _ = correlated_posterior(0.8, num_data=200)
    pair = Pair(model, MeanField(model, offset=0.5), x)
    whole = refinement.fit(pair, x, family="full_rank", steps=20)
    monkeypatch.setattr(refinement, "ROWS_PER_CALL", 64 * 32)
    parts = refinement.fit(pair, x, family="full_rank", steps=20)
    assert torch.allclose(whole.guide.tables["z"], parts.guide.tables["z"], atol=1e-9)
    assert torch.allclose(whole.gain, parts.gain, atol=1e-9)


@pytest.mark.soak
def test_many_dimensions_take_a_low_rank():
    """300 dimensions, posterior correlated along one direction: x = sum_i z_i + noise. Evidence N(0, 300 + 0.25)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(300), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) / math.sqrt(300), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 300), 0.9).to_event(1))

    x = torch.randn(4, 1)
    evidence = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)[:, 0]
    assert refinement.widest_normal(300) == "low_rank"
    found = analysis.log_likelihood(model, guide, x, proposal="refined", num_particles=1000)
    assert found.proposal.startswith("refined low_rank")
    assert ((found.pointwise - evidence).abs() < 5 * found.pointwise_se + 0.02).all()
