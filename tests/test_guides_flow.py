"""The flow guide: its density against changes of variables and quadrature, its parts against maps done by hand, its way through the library."""

import functools
import math

import pyro
import pytest
import torch
from torch.distributions import Normal

import ppvae
from pairs import binary
from ppvae import analysis, models, nn
from ppvae.errors import ArgumentError, FamilyError
from ppvae.guides.flow import Couplings, Flow
from ppvae.pair import Pair


def image(family, row, z0):
    """f(z0; c) step by step: keep the first half, move the other, reverse."""
    z, context = z0, row[2 * family.latent_dim :]
    for network in family.networks:
        kept, moved = z[: family.latent_dim // 2], z[family.latent_dim // 2 :]
        shift, log_scale = network(kept[None], context=context[None])
        z = torch.cat([kept, moved * log_scale[0].exp() + shift[0]]).flip(0)
    return z


@pytest.mark.parametrize(
    ("latent_dim", "context_dim", "num_flows"), [(2, 1, 1), (3, 2, 2), (5, 4, 3), (4, 0, 2)], ids=["2", "3", "5", "no context"]
)
def test_the_density_is_that_of_the_base_over_the_jacobian_of_the_map(latent_dim, context_dim, num_flows):
    family = Couplings(latent_dim, context_dim, num_flows, hidden=(7, 6))
    row = torch.randn(family.num_parameters)
    z0 = row[:latent_dim] + torch.randn(latent_dim)
    jacobian = torch.autograd.functional.jacobian(lambda point: image(family, row, point), z0)
    base = Normal(row[:latent_dim], row[latent_dim : 2 * latent_dim].exp()).log_prob(z0).sum()
    log_q = family.distribution(row).log_prob(image(family, row, z0))
    assert log_q.item() == pytest.approx((base - torch.linalg.slogdet(jacobian).logabsdet).item(), abs=1e-10)


def test_draws_carry_the_density_that_their_values_have():
    """Sampling keeps the way it came in a cache; the density of the same value without it must be equal."""
    family = Couplings(4, 2, num_flows=3)
    rows = torch.randn(5, family.num_parameters)
    q = family.distribution(rows)
    z = q.rsample(torch.Size([6]))
    assert torch.allclose(q.log_prob(z), family.distribution(rows).log_prob(z.clone()), rtol=0, atol=1e-10)


@pytest.fixture
def on_a_grid():
    """A bent flow over the plane at one row, and midpoints of a grid that holds it: the family, the row, (M, 2) points, their area."""
    family = Couplings(2, 1, num_flows=2, hidden=(8,))
    for parameter in family.parameters():
        parameter.data.mul_(1.5)
    axis = torch.arange(-11.99, 12.0, 0.02)
    return family, torch.tensor([0.5, -0.3, -0.2, 0.1, 0.7]), torch.cartesian_prod(axis, axis), 0.02**2


def test_the_density_integrates_to_one(on_a_grid):
    family, row, points, area = on_a_grid
    with torch.no_grad():
        total = family.distribution(row).log_prob(points).exp().sum().item() * area
    assert total == pytest.approx(1.0, abs=1e-5)  # the kinks of ELU leave the midpoint rule its second order


def test_draws_are_spread_as_the_density_says(on_a_grid):
    family, row, points, area = on_a_grid
    with torch.no_grad():
        mass = family.distribution(row).log_prob(points).exp() * area
        drawn = family.distribution(row).sample(torch.Size([100_000]))
    for moment in (lambda z: z[:, 0].tanh(), lambda z: z[:, 1].tanh(), lambda z: z.prod(1).cos(), lambda z: z.sum(1).cos()):
        error = moment(drawn).std().item() / math.sqrt(len(drawn))
        assert moment(drawn).mean().item() == pytest.approx((mass * moment(points)).sum().item(), abs=4 * error)


def test_a_coupling_moves_the_second_half_by_the_context():
    """With shift = c and scale 1, z = (z0_2 + c, z0_1): q is a product of two Normals that can be written down."""
    family = Couplings(2, 1, num_flows=1, hidden=(1,))
    first, last = family.networks[0].layers
    for part, value in ((first.weight, [[1.0, 0.0]]), (first.bias, [10.0]), (last.weight, [[1.0], [0.0]]), (last.bias, [-10.0, 0.0])):
        part.data = torch.tensor(value)
    rows = torch.tensor([[0.5, -1.0, math.log(2.0), math.log(0.5), c] for c in (0.0, 3.0)])
    z = torch.tensor([[1.2, 0.4]]).expand(2, 2)
    expected = [Normal(-1.0 + c, 0.5).log_prob(z[0, 0]) + Normal(0.5, 2.0).log_prob(z[0, 1]) for c in (0.0, 3.0)]
    assert torch.allclose(family.distribution(rows).log_prob(z), torch.stack(expected), atol=1e-12)


def pair(latent_dim=4, context_dim=3):
    model = models.Bernoulli(nn.MLP(latent_dim, [8], 6), latent_dim=latent_dim)
    return model, Flow(nn.MLP(6, [8], 2 * latent_dim + context_dim), latent_dim, context_dim, hidden=(8,))


def test_the_pair_keeps_the_contract_and_takes_particles_in_a_plate():
    model, guide = pair()
    assert {found.severity for found in ppvae.check(model, guide, binary()).findings} == {"note"}
    assert Pair(model, guide, binary()).in_plate


def test_encoder_and_couplings_are_its_parameters():
    """Encoder 6-8-11: 155. A coupling's network sees 2 coordinates and 3 features and gives 2 shifts and 2 log scales, 5-8-4: 84."""
    guide = Flow(nn.MLP(6, [8], 11), 4, 3, num_flows=3, hidden=(8,))
    assert sum(parameter.numel() for parameter in guide.parameters()) == 155 + 3 * 84


def test_the_density_of_a_datum_is_the_familys_at_its_own_row():
    _, guide = pair()
    x, z = binary(5), torch.randn(7, 5, 4)
    with pyro.plate("particles", 7, dim=-2):
        found = pyro.poutine.trace(pyro.poutine.condition(guide, {"z": z})).get_trace(x).nodes["z"]
    log_q = found["fn"].log_prob(z)
    assert log_q.shape == (7, 5)
    for n in range(5):
        assert torch.allclose(log_q[:, n], guide.family.distribution(guide.encoder(x[n])).log_prob(z[:, n]), atol=1e-12)


def test_importance_weights_of_a_flow_average_to_the_evidence():
    model = models.LinearGaussian(3, 2, scale=1.0)
    guide = Flow(nn.MLP(3, [], 5), 2, 1, hidden=(8,))
    guide.encoder.layers[-1].bias.data += torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])  # wider than the posterior: weights without a tail
    x = torch.randn(20, 3)
    found = analysis.log_likelihood(model, guide, x, num_particles=5_000)
    assert ((found.pointwise - model.log_evidence(x)).abs() < 5 * found.pointwise_se).all()


def correlated():
    """z ~ N(0, I), x = W z + noise of scale 1/2 over the plane, nothing learned; and what every diagonal Normal loses: -1/2 log(1 - r^2)."""
    model = models.LinearGaussian(2, 2, scale=0.5).requires_grad_(False)
    model.weight.data = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    (a, b), _ = torch.eye(2) + model.weight.T @ model.weight / 0.25
    return model, -0.5 * math.log(1 - (b / a).item() ** 2)


def test_a_coupling_set_to_a_correlated_posterior_has_constant_weights():
    """z_2 ~ N(m_2, S_22) and z_1 = m_1 + (S_12 / S_22) (z_2 - m_2) + e: one coupling whose shift is linear."""
    model, _ = correlated()
    x = torch.randn(5, 2)
    mean, cov = (lambda q: (q.mean, q.covariance_matrix[0]))(model.posterior(torch.cat([torch.eye(2), x])))
    slope = cov[0, 1] / cov[1, 1]
    guide = Flow(nn.MLP(2, [], 5), 2, 1, num_flows=1, hidden=(1,))
    first, last = guide.family.networks[0].layers
    values = [(first.weight, [[0.0, 1.0]]), (first.bias, [50.0]), (last.weight, [[slope], [0.0]]), (last.bias, [-50 * slope, 0.0])]
    of_x = torch.stack([mean[:2, 1], mean[:2, 0] - slope * mean[:2, 1], *torch.zeros(3, 2)])
    log_scales = torch.stack([cov[1, 1], cov[0, 0] - slope * cov[0, 1]]).log() / 2
    values += [(guide.encoder.layers[0].weight, of_x), (guide.encoder.layers[0].bias, [0.0, 0.0, *log_scales, 0.0])]
    for parameter, value in values:
        parameter.data = torch.as_tensor(value)
    log_weights = ppvae.log_weights(model, guide, x, num_particles=100)
    assert torch.allclose(log_weights, model.log_evidence(x).expand(100, 5), rtol=0, atol=1e-10)


@pytest.mark.soak
@pytest.mark.slow
def test_a_trained_flow_reaches_what_no_diagonal_normal_can():
    model, lost = correlated()
    x = torch.randn(256, 2) @ torch.linalg.cholesky(model.weight @ model.weight.T + 0.25 * torch.eye(2)).T
    guide = Flow(nn.MLP(2, [16], 6), 2, 2, hidden=(16,))
    run = ppvae.fit(model, guide, x, epochs=100, batch_size=64, optimizer=functools.partial(torch.optim.Adam, lr=1e-2))
    gap = model.log_evidence(x) - analysis.elbo(run.model, run.guide, x, num_particles=200).pointwise
    assert gap.mean().item() < 0.25 * lost


def test_a_run_is_loaded_with_the_same_numbers(tmp_path):
    model, guide = pair()
    run = ppvae.fit(model, guide, binary(), epochs=2, batch_size=5, out=tmp_path / "run")
    loaded = ppvae.load(tmp_path / "run")
    before, after = (analysis.elbo(one.model, one.guide, binary(), num_particles=10).pointwise for one in (run, loaded))
    assert torch.equal(before, after)
    assert len(loaded.guide.family.networks) == 2


def test_an_unknown_posterior_is_refined_from_where_the_flow_stands():
    model, guide = pair()
    found = analysis.refine(model, guide, binary(), family="mean_field", num_particles=200)
    flow = analysis.elbo(model, guide, binary(), num_particles=200)
    assert found.mean.value > flow.mean.value + 4 * flow.mean.mc_se  # an untrained flow is far off


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Couplings(1, 2), FamilyError, "needs 2 at least, got latent_dim=1"),
        (lambda: Couplings(2, 2, hidden=()), FamilyError, "needs a hidden layer, got hidden=()"),
        (lambda: Couplings(2, 2, num_flows=0), ArgumentError, "num_flows"),
        (lambda: Flow(nn.MLP(6, [], 8), 4, 3)(binary()), FamilyError, "needs 11 numbers per datum, got 8"),
    ],
    ids=["one latent", "no hidden layer", "no flow", "encoder too narrow"],
)
def test_what_cannot_be_built_is_told(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)
