"""Low rank, mixtures, autoregressive and spline flows, stepped guides, guides made from a model: each against numbers done by hand."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn as torch_nn
from torch.distributions import Normal, constraints

import ppvae
from pairs import binary
from ppvae import analysis, guides, models, nn
from ppvae.errors import ArgumentError, FamilyError, ProgramError, ShapeError
from ppvae.families import DiagonalNormal, FullRankNormal, LowRankNormal
from ppvae.guides.autoregressive import Autoregressive
from ppvae.guides.mixture import MixtureFamily
from ppvae.guides.pushed import Pushed, support_record
from ppvae.guides.splines import SplineCouplings
from ppvae.guides.stepped import common_draws

Adam = functools.partial(torch.optim.Adam, lr=1e-2)


# Families over the plane, and on the line

IN_THE_PLANE = {
    "mixture": lambda: MixtureFamily(2, 3),
    "full mixture": lambda: MixtureFamily(2, 3, "full"),
    "inverse autoregressive": lambda: Autoregressive(2, 1, hidden=(8,)),
    "masked autoregressive": lambda: Autoregressive(2, 1, hidden=(8,), direction="masked"),
    "spline": lambda: SplineCouplings(2, 1, hidden=(8,), num_bins=4),
}


def bent(family):
    """A family with networks that do something, and a row of it, the affine ones narrow enough for the grid."""
    affine = isinstance(family, Autoregressive)
    for parameter in getattr(family, "parameters", list)():
        parameter.data.mul_(0.8 if affine else 1.5)
    row = 0.4 * torch.randn(family.num_parameters)
    if affine:
        row[2:4] -= 0.7
    return family, row


@pytest.mark.parametrize("make", IN_THE_PLANE.values(), ids=IN_THE_PLANE)
def test_density_and_draws_over_the_plane(make):
    """Midpoints over [-12, 12]^2: the density sums to 1 (the splines' knots leave the rule its second order), draws have its moments."""
    family, row = bent(make())
    axis = torch.arange(-11.98, 12.0, 0.04)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = family.distribution(row).log_prob(points).exp() * 0.04**2
        drawn = family.distribution(row).rsample(torch.Size([40_000]))
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-4)
    for moment in (lambda z: z[:, 0].tanh(), lambda z: z[:, 1].tanh(), lambda z: z.prod(1).cos(), lambda z: z.sum(1).cos()):
        error = moment(drawn).std().item() / math.sqrt(len(drawn))
        assert moment(drawn).mean().item() == pytest.approx((mass * moment(points)).sum().item(), abs=4 * error + 1e-4)


ON_THE_LINE = {
    "mixture": lambda: MixtureFamily(1, 3),
    "spline": lambda: SplineCouplings(1, 1, hidden=(8,)),
    "positive": lambda: Pushed(MixtureFamily(1, 2), support_record(constraints.positive), ()),
    "interval": lambda: Pushed(DiagonalNormal(1), support_record(constraints.interval(-1.0, 2.0)), ()),
}


@pytest.mark.parametrize("make", ON_THE_LINE.values(), ids=ON_THE_LINE)
def test_draws_on_the_line_pass_kolmogorov_and_smirnov(make):
    """Against the density summed up on a grid of 1e-3; one in a million draws of 2000 would fail."""
    family, row = bent(make())
    q = family.distribution(row)
    drawn = q.sample(torch.Size([2000])).reshape(-1)
    grid = torch.arange(-12.0, 30.0, 1e-3) + 5e-4
    inside = grid[torch.as_tensor(q.support.check(grid[:, None] if q.event_shape else grid)).reshape(-1)]
    with torch.no_grad():
        mass = (q.log_prob(inside[:, None] if q.event_shape else inside).exp() * 1e-3).cumsum(0)
    assert mass[-1].item() == pytest.approx(1.0, abs=2e-3)
    below = lambda z: mass[torch.searchsorted(inside, torch.as_tensor(z)).clamp(max=len(mass) - 1)].numpy()  # noqa: E731
    assert stats.kstest(drawn.numpy(), below).pvalue > 1e-6


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_rosenblatt_transform_of_a_mixtures_draws_is_uniform(covariance):
    family, row = bent(MixtureFamily(3, 2, covariance))
    q = family.distribution(row)
    u = q.uniforms(q.sample(torch.Size([2000])))
    assert all(stats.kstest(u[:, d].numpy(), "uniform").pvalue > 1e-6 for d in range(3))
    assert u.T.corrcoef().triu(1).abs().max() < 5 / math.sqrt(2000)


# What each is in a case that can be written down


def test_low_rank_with_all_columns_is_full_rank():
    z, loc = 3, torch.randn(5, 3)
    root = torch.randn(5, z, z)
    covariance = root @ root.mT + torch.eye(z)
    factor = torch.linalg.cholesky(covariance - 0.25 * torch.eye(z))
    guide = guides.LowRankNormal(torch_nn.Identity(), z, rank=z)
    low = guide.family.distribution(torch.cat([loc, torch.full((5, z), math.log(0.5)), factor.flatten(1)], 1))
    full = FullRankNormal(z)
    expected = full.distribution(full.row(loc, torch.linalg.cholesky(covariance)))
    value = torch.randn(7, 5, z)
    assert torch.allclose(low.log_prob(value), expected.log_prob(value), rtol=0, atol=1e-9)


def zeroed(family):
    for parameter in family.parameters():
        parameter.data.zero_()
    return family


@pytest.mark.parametrize("direction", ["inverse", "masked"])
def test_an_autoregressive_flow_with_zeroed_networks_is_its_base(direction):
    family = zeroed(Autoregressive(4, 2, num_flows=2, hidden=(8,), direction=direction))
    row, z = torch.randn(5, 10), torch.randn(3, 5, 4)
    base = Normal(row[:, :4], row[:, 4:8].exp()).log_prob(z).sum(-1)
    assert torch.allclose(family.distribution(row).log_prob(z), base, rtol=0, atol=1e-10)


def test_a_spline_flow_with_zeroed_networks_is_its_base():
    """Up to the slope at the bound, which Pyro sets to 1 - 1e-3: each of 3 coordinates and 2 splines moves log q by less than 4e-3."""
    family = zeroed(SplineCouplings(3, 2, num_flows=2, hidden=(8,)))
    row = torch.randn(5, 8)
    inner = row[:, :3] + row[:, 3:6].exp() * (4 * torch.rand(3, 5, 3) - 2)  # bins that do not touch the bound
    outer = row[:, :3] + row[:, 3:6].exp() * 4 * torch.randn(3, 5, 3)
    base = Normal(row[:, :3], row[:, 3:6].exp())
    q = family.distribution(row)
    assert torch.allclose(q.log_prob(inner), base.log_prob(inner).sum(-1), rtol=0, atol=1e-9)
    assert torch.allclose(q.log_prob(outer), base.log_prob(outer).sum(-1), rtol=0, atol=3 * 2 * 4e-3)


@pytest.mark.parametrize(("direction", "draw", "score_other"), [("inverse", 1, 4), ("masked", 5, 1)], ids=["inverse", "masked"])
def test_the_cheap_direction_costs_one_pass_of_the_network(direction, draw, score_other):
    """Over 4 coordinates. A masked draw finds its 4 coordinates one by one; the density of a value at hand is then already known or one pass."""
    family = Autoregressive(4, 2, num_flows=1, hidden=(8,), direction=direction)
    calls = []
    family.networks[0].register_forward_hook(lambda *_: calls.append(1))
    q = family.distribution(torch.randn(3, 10))
    z = q.rsample()
    q.log_prob(z)
    assert len(calls) in (draw, draw - (direction == "masked"))
    calls.clear()
    family.distribution(torch.randn(3, 10)).log_prob(z.clone())
    assert len(calls) == score_other


@pytest.mark.parametrize("make", [IN_THE_PLANE["inverse autoregressive"], IN_THE_PLANE["masked autoregressive"], IN_THE_PLANE["spline"]])
def test_a_flows_density_is_the_change_of_variables(make):
    """log q(z) + log |dz/de| is the density of the base, the Jacobian by autograd; also of a value without its history."""
    family, row = bent(make())
    q = family.distribution(row)
    e = torch.randn(2)

    def image(point):
        for transform in family.distribution(row).transforms:
            point = transform(point)
        return point

    base = q.base_dist.log_prob(e)
    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(image, e)).logabsdet
    assert q.log_prob(image(e).clone()).item() == pytest.approx((base - log_det).item(), abs=1e-9)


def test_draws_of_one_component_move_as_a_normals():
    """C = 1: z = loc + exp(s) e, so dz/dloc = 1, dz/ds = z - loc and d2z/ds2 = z - loc."""
    row = torch.tensor([0.3, -0.5, 0.7], requires_grad=True)  # logit, loc, log scale
    z = MixtureFamily(1, 1).distribution(row).rsample()
    (first,) = torch.autograd.grad(z.sum(), row, create_graph=True)
    (second,) = torch.autograd.grad(first[2], row)
    moved = (z - row[1]).item()
    assert first.tolist() == pytest.approx([0.0, 1.0, moved], abs=1e-10)
    assert second.tolist() == pytest.approx([0.0, 0.0, moved], abs=1e-10)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_gradients_through_a_mixtures_draws_are_unbiased(covariance):
    """d/drow E[f(z)] by quadrature, the logits' among them, against 64 independent means of pathwise derivatives: to 5 standard errors."""
    family, row = bent(MixtureFamily(2, 2, covariance))
    axis = torch.arange(-9.95, 10.0, 0.1)
    points = torch.cartesian_prod(axis, axis)
    f = lambda z: (z[..., 0] + 0.5 * z[..., 1]).sin() + 0.2 * z.prod(-1).cos()  # noqa: E731
    exact = torch.autograd.functional.jacobian(lambda r: (family.distribution(r).log_prob(points).exp() * f(points)).sum() * 0.01, row)
    rows = row.repeat(64, 1).requires_grad_(True)
    (found,) = torch.autograd.grad(f(family.distribution(rows).rsample(torch.Size([400]))).mean(0).sum(), rows)
    assert exact[:2].abs().min() > 5 * (found[:, :2].std(0) / 8).max()  # the weights' gradient is there to be missed
    assert ((found.mean(0) - exact).abs() < 5 * found.std(0) / 8 + 1e-9).all()


# Amortization


class Table(torch_nn.Module):
    """The free table as an encoder: the row of each datum, found by its values."""

    def __init__(self, x, rows):
        super().__init__()
        self.x, self.rows = x, torch_nn.Parameter(rows)

    def forward(self, x):
        return (x[..., None, :] == self.x).all(-1).double() @ self.rows


FREED = {
    "low rank": lambda e: guides.LowRankNormal(e, 2, rank=1),
    "mixture": lambda e: guides.Mixture(e, 2, num_components=2),
    "inverse autoregressive": lambda e: guides.InverseAutoregressive(e, 2, 1, hidden=(8,)),
    "spline": lambda e: guides.Spline(e, 2, 1, num_flows=1, hidden=(8,), num_bins=4),
}


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=[] if name == "low rank" else [pytest.mark.soak]) for name, make in FREED.items()],
)
def test_a_free_table_for_an_encoder_has_no_amortization_gap(make):
    model, x = models.LinearGaussian(2, 2, scale=0.5).requires_grad_(False), torch.randn(8, 2)
    start = make(None)
    start.encoder = Table(x, 0.3 * torch.randn(8, start.family.num_parameters))
    worst = analysis.inference_gaps(model, start, x, num_particles=200, num_reference=200).mean("amortization").value
    start.encoder.rows.data = analysis.refine(model, start, x, num_particles=1, seed=1).guide.tables["z"]
    found = analysis.inference_gaps(model, start, x, num_particles=400, num_reference=200).mean("amortization")
    assert abs(found.value) < 5 * found.mc_se + 0.02  # what a refinement of 160 steps leaves
    assert worst > 10 * abs(found.value)


# Stepped guides


def linear_gaussian(num_data=6):
    model = models.LinearGaussian(3, 2, scale=1.0)
    x = 2 * torch.randn(num_data, 3)
    return model, x


def kl_to_posterior(model, x, guide):
    q = guide.family.distribution(guide.prepared(model, x).tables["z"])
    return torch.distributions.kl_divergence(dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril), model.posterior(x))


@pytest.mark.parametrize("wrapped", ["semi-amortized", "iterative"])
def test_no_steps_leave_the_guide_as_it_is(wrapped):
    model, x = linear_gaussian()
    guide = guides.FullRankNormal(nn.MLP(3, [], 5), 2)
    stepped = guides.SemiAmortized(guide, steps=0) if wrapped == "semi-amortized" else guides.Iterative(guide, nn.MLP(10, [], 10), steps=0)
    found, expected = (ppvae.log_weights(model, one, x, num_particles=50, seed=3) for one in (stepped, guide))
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_many_steps_reach_the_exact_posterior():
    """By 256 fixed draws: the ELBO's mean over them has its optimum off the posterior by about P / (2 S) = 5 / 512 nats."""
    model, x = linear_gaussian()
    guide = guides.FullRankNormal(nn.MLP(3, [], 5), 2)
    far, near = (kl_to_posterior(model, x, Family(guides.SemiAmortized(guide, steps=steps, lr=0.1, num_draws=256))) for steps in (1, 150))
    assert far.mean() > 0.3
    assert (near < 6 * 5 / 512).all()


class Family:
    """A stepped guide with its inner guide's family in reach."""

    def __init__(self, stepped):
        self.prepared, self.family = stepped.prepared, stepped.guide.family


def test_training_differentiates_through_the_steps():
    """The gradient of Trace_ELBO, second derivatives of the decoder in it, by central differences of the loss at the same noise."""
    model = models.Bernoulli(nn.MLP(2, [4], 6, torch_nn.Tanh), latent_dim=2)
    encoder = nn.MLP(6, [], 4)
    guide = guides.SemiAmortized(guides.DiagonalNormal(encoder, 2), model, steps=2, lr=0.2, num_draws=2)
    x, parameters = binary(5), [encoder.layers[0].bias, model.network.layers[0].weight]

    def loss():
        torch.manual_seed(7)
        return pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)

    found = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        for place in range(4):
            flat, h = parameter.data.view(-1), 1e-5
            value = flat[place].item()
            ends = []
            for sign in (1, -1):
                flat[place] = value + sign * h
                ends.append(loss().item())
            flat[place] = value
            assert gradient.flatten()[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-7)


class Ascent(torch_nn.Module):
    """The update network that does what gradient ascent does: gate 0, new row = row + lr * gradient."""

    def forward(self, both):
        row, scaled = both.chunk(2, -1)
        gradient = scaled.sign() * (scaled.abs().exp() - 1)
        return torch.cat([torch.full_like(row, -1e3), row + 0.05 * gradient], -1)


def test_iterative_inference_with_the_right_network_is_gradient_ascent():
    model, x = linear_gaussian()
    guide = guides.DiagonalNormal(nn.MLP(3, [], 4), 2)
    ascent, learned = (
        guides.SemiAmortized(guide, model, steps=4, lr=0.05, clip_norm=None),
        guides.Iterative(guide, Ascent(), model, steps=4),
    )
    expected, found = (one.prepared(model, x).tables["z"] for one in (ascent, learned))
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert (expected - guide.parameters_at(x)).abs().max() > 0.05


class Nothing(torch_nn.Module):
    """An encoder that has nothing to say: N(0, I) for every datum."""

    def forward(self, x):
        return x.new_zeros(*x.shape[:-1], 4)


@pytest.mark.soak
def test_a_learned_update_closes_the_gap_that_its_start_leaves():
    """The start is one row for all data: what the network makes of gradients is all there is of amortization."""
    model, x = linear_gaussian(num_data=64)
    model.requires_grad_(False)
    start = guides.DiagonalNormal(Nothing(), 2)
    guide = guides.Iterative(start, nn.MLP(8, [16], 8, torch_nn.Tanh), model, steps=3)
    run = ppvae.fit(model, guide, x, epochs=15, batch_size=16, optimizer=Adam)
    before, after = (analysis.elbo(model, one, x, num_particles=200).mean for one in (start, run.guide))
    assert after.value > before.value + 0.3


def test_pyros_own_svi_trains_guide_and_update_network():
    model = models.Bernoulli(nn.MLP(2, [4], 6), latent_dim=2)
    encoder, network = nn.MLP(6, [], 4), nn.MLP(8, [], 8)
    before = [layer.weight.detach().clone() for layer in (encoder.layers[0], network.layers[0], model.network.layers[0])]
    guide = guides.Iterative(guides.DiagonalNormal(encoder, 2), network, model)
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO()).step(binary(5))
    after = [layer.weight for layer in (encoder.layers[0], network.layers[0], model.network.layers[0])]
    assert all((a - b).abs().max() > 0.01 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", [*IN_THE_PLANE, "full rank", "low rank"])
def test_common_draws_are_the_same_noise_for_all_data(name):
    """Equal rows get equal draws, and draws are those of the family: E_q[f / q] = 1 for a narrow bump f, to 5 standard errors."""
    others = {"full rank": lambda: FullRankNormal(2), "low rank": lambda: LowRankNormal(2, 1)}
    family, row = bent({**IN_THE_PLANE, **others}[name]())
    draws = common_draws(family, torch.stack([row, torch.randn_like(row), row]), 8000).detach()
    assert torch.equal(draws[:, 0], draws[:, 2]) and not torch.equal(draws[:, 0], draws[:, 1])
    weights = (Normal(0.0, 0.4).log_prob(draws[:, 0]).sum(-1) - family.distribution(row).log_prob(draws[:, 0])).exp()
    assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(8000)


# Guides made from a model


def gamma_normal(x):
    """z ~ Gamma(2, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def test_a_guide_of_a_gamma_model_is_log_normal():
    """z = exp(u), u ~ N(loc, scale^2)."""
    x = 2 + torch.randn(40, 1)
    guide = guides.for_model(gamma_normal, x, torch_nn.Linear(1, 3))
    z = torch.rand(6, 40) * 5
    loc, log_scale = guide.parameters_at(x).unbind(-1)
    with pyro.plate("particles", 6, dim=-2):
        found = pyro.poutine.trace(pyro.poutine.condition(guide, {"rate": z})).get_trace(x).nodes["rate"]
    assert torch.allclose(found["fn"].log_prob(z), torch.distributions.LogNormal(loc, log_scale.exp()).log_prob(z), rtol=0, atol=1e-10)
    assert (pyro.poutine.trace(guide).get_trace(x).nodes["rate"]["value"] > 0).all()


def test_its_weights_average_to_the_evidence():
    """p(x) = integral of z exp(-z) N(x; z, 1) over z > 0, by midpoints."""
    x = torch.tensor([[-0.5], [1.0], [4.0]])
    guide = guides.for_model(gamma_normal, x, torch_nn.Linear(1, 3))
    guide.encoder.head.layers[0].weight.data *= 0.1
    guide.encoder.head.layers[0].bias.data = torch.tensor([0.5, 0.0])
    grid = torch.arange(0.0005, 30, 0.001)
    exact = (grid.log() - grid + Normal(grid, 1.0).log_prob(x)).exp().sum(1).mul(0.001).log()
    found = analysis.log_likelihood(gamma_normal, guide, x, num_particles=5_000)
    assert ((found.pointwise - exact).abs() < 5 * found.pointwise_se + 1e-6).all()
    freed = analysis.refine(gamma_normal, guide, x, num_particles=500).elbo  # its own family, a log-normal for each datum
    assert ((exact - freed).abs() < 0.1).all()  # a Gamma posterior is nearly log-normal


def test_a_guide_of_a_gamma_model_keeps_the_contract():
    x = 2 + torch.randn(10, 1)
    found = ppvae.check(gamma_normal, guides.for_model(gamma_normal, x, torch_nn.Linear(1, 3)), x)
    assert {finding.severity for finding in found.findings} == {"note"}


def several(x):
    """A positive number, a share, a point of the simplex and three Normals in a plate inside the datum."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        b = pyro.sample("b", dist.Beta(2.0, 2.0))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("inside", 3, dim=-2):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.stack([a + b, p[..., 0], c.sum(-2)], -1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("family", ["diagonal", "full_rank", "mixture"])
def test_several_sites_share_one_density_over_their_supports(family):
    """u holds log a, logit b, the stick-breaking logits of p, and c: log q(z) = log q(u) - log |dz/du|, the Jacobian by autograd."""
    x = torch.randn(4, 3)
    guide = guides.for_model(several, x, torch_nn.Linear(3, 5), family)
    found = pyro.poutine.trace(guide).get_trace(x)
    z = {name: found.nodes[name]["value"] for name in "abpc"}
    assert (z["a"] > 0).all() and ((z["b"] > 0) & (z["b"] < 1)).all() and torch.allclose(z["p"].sum(-1), torch.ones(4))
    u = found.nodes["_unconstrained"]["value"]
    assert torch.allclose(u[:, 0].exp(), z["a"]) and torch.allclose(torch.sigmoid(u[:, 1]), z["b"])
    stick = torch.distributions.biject_to(constraints.simplex)
    change = u[:, 0] + (z["b"] * (1 - z["b"])).log() + stick.log_abs_det_jacobian(u[:, 2:4], z["p"])
    expected = guide.joint.distribution(guide.parameters_at(x)).log_prob(u) - change
    assert found.log_prob_sum().item() == pytest.approx(expected.sum().item(), abs=1e-9)


@pytest.mark.soak
def test_several_sites_weigh_to_the_evidence_and_refuse_to_be_freed():
    x = torch.randn(6, 3)
    guide, correlated = (guides.for_model(several, x, torch_nn.Linear(3, 5), family) for family in ("diagonal", "full_rank"))
    for one in (guide, correlated):
        one.encoder.head.layers[0].weight.data *= 0.1
    found, other = (analysis.log_likelihood(several, one, x, num_particles=4000) for one in (guide, correlated))
    assert ((found.pointwise - other.pointwise).abs() < 5 * (found.pointwise_se**2 + other.pointwise_se**2).sqrt()).all()
    with pytest.raises(FamilyError, match="a point mass"):
        analysis.inference_gaps(several, guide, x, num_particles=10)
    gaps = analysis.inference_gaps(several, guide, x, families=("mean_field",), num_particles=200, num_reference=200)
    assert gaps.mean("amortization").value > 0  # an untrained encoder


def test_stepping_works_on_several_sites():
    x = torch.randn(6, 3)
    guide = guides.for_model(several, x, torch_nn.Linear(3, 5))
    guide.encoder.head.layers[0].weight.data *= 0.1
    stepped = guides.SemiAmortized(guide, several, steps=40, lr=0.05, num_draws=16)
    before, after = (analysis.elbo(several, one, x, num_particles=500).mean for one in (guide, stepped))
    assert after.value > before.value + 4 * (before.mc_se + after.mc_se)


@pytest.mark.parametrize(
    "family",
    [
        *("full_rank", "mixture", "inverse_autoregressive", "spline"),
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("diagonal", "low_rank", "flow", "masked_autoregressive")),
    ],
)
def test_a_family_by_its_name(family):
    """Over R^2 the site keeps the family itself, and every weight is one of importance sampling: E[w] = p(x)."""
    model, x = linear_gaussian()
    guide = guides.for_model(model, x, nn.MLP(3, [4], 4), family, hidden=(5,))
    guide.encoder.head.layers[-1].weight.data *= 0.2
    found = analysis.log_likelihood(model, guide, x, num_particles=4000, proposal="guide")
    assert ((found.pointwise - model.log_evidence(x)).abs() < 6 * found.pointwise_se + 0.02).all()


def discrete(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("kind", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x[:, 0])


def with_weights(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=x[:, 0])


def three():
    return torch_nn.Linear(1, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: guides.for_model(discrete, x, three()), FamilyError, "latent sites 'kind' (Categorical) are discrete"),
        (lambda x: guides.for_model(with_weights, x, three()), FamilyError, "latent sites ['w'] lie outside the data plate"),
        (lambda x: guides.for_model(gamma_normal, x, three(), "normal"), FamilyError, "family is one of diagonal, full_rank"),
        (lambda x: guides.for_model(gamma_normal, x, three(), DiagonalNormal(2)), FamilyError, "have 1 unconstrained coordinates, and the"),
        (lambda x: guides.for_model(gamma_normal, x, three(), "flow"), FamilyError, "needs 2 at least"),
        (
            lambda x: guides.for_model(gamma_normal, x, torch_nn.Flatten(0)),
            ShapeError,
            "one row of features a datum, (2, F), and gave (2,)",
        ),
        (lambda x: guides.Mixture(three(), 1, 2, "low"), FamilyError, "covariance is one of diagonal, full, got 'low'"),
        (lambda x: guides.InverseAutoregressive(three(), 1, 1), FamilyError, "needs 2 at least, got latent_dim=1"),
        (lambda x: guides.MaskedAutoregressive(three(), 9, 1, hidden=(8,)), FamilyError, "at least 9 wide"),
        (lambda x: guides.Spline(three(), 1, 0), ArgumentError, "context_dim is 0"),
        (lambda x: guides.Spline(three(), 1, 1)(x), None, ""),
        (lambda x: guides.Mixture(three(), 1, 2)(x), FamilyError, "needs 6 numbers per datum, got 3"),
        (lambda x: guides.SemiAmortized(guides.DiagonalNormal(three(), 1), lr=0.0), ArgumentError, "lr must be positive"),
        (lambda x: guides.SemiAmortized(lambda x: None), FamilyError, "function has none to move"),
        (lambda x: guides.SemiAmortized(guides.DiagonalNormal(torch_nn.Linear(1, 2), 1))(x), ProgramError, "needs its model to run"),
        (
            lambda x: guides.Iterative(guides.for_model(gamma_normal, x, three()), nn.MLP(4, [], 3), gamma_normal)(x),
            ShapeError,
            "needs 4 outputs for rows of 2 numbers, got 3",
        ),
    ],
)
def test_what_cannot_be_built_is_told(make, error, message):
    x = torch.randn(4, 1)
    if error is None:
        make(x)
        return
    with pytest.raises(error) as raised:
        make(x)
    assert message in str(raised.value)


# The walk through the library


def walked(make):
    model = models.Bernoulli(nn.MLP(2, [4], 6, torch_nn.Tanh), latent_dim=2)
    return model, make(model)


def encoder(outputs):
    return nn.MLP(6, [4], outputs)


def prior(x):
    """p(z) as a proposal: its weights average to p(x) too."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


WALK = {
    "low rank": lambda m: guides.LowRankNormal(encoder(6), 2, rank=1),
    "mixture": lambda m: guides.Mixture(encoder(10), 2, 2),
    "inverse autoregressive": lambda m: guides.InverseAutoregressive(encoder(6), 2, 2, num_flows=1, hidden=(4,)),
    "masked autoregressive": lambda m: guides.MaskedAutoregressive(encoder(6), 2, 2, num_flows=1, hidden=(4,)),
    "spline": lambda m: guides.Spline(encoder(6), 2, 2, num_flows=1, hidden=(4,), num_bins=3),
    "for model": lambda m: guides.for_model(m, binary(), encoder(3), "full_rank"),
    "semi-amortized": lambda m: guides.SemiAmortized(guides.DiagonalNormal(encoder(4), 2), m, steps=2),
    "iterative": lambda m: guides.Iterative(guides.Mixture(encoder(10), 2, 2), nn.MLP(20, [4], 20), m, steps=1),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", WALK)
def test_the_walk_from_check_to_report(name, tmp_path):
    model, guide = walked(WALK[name])
    x, folder = binary(8), tmp_path / "run"
    assert {found.severity for found in ppvae.check(model, guide, x).findings} == {"note"}
    run = ppvae.fit(model, guide, x, epochs=1, batch_size=4, optimizer=Adam, out=folder)
    elbo, found, other = (
        analysis.elbo(run.model, run.guide, x, num_particles=200).mean,
        analysis.log_likelihood(run.model, run.guide, x, num_particles=200).mean,
        analysis.log_likelihood(run.model, prior, x, num_particles=2000).mean,
    )
    assert elbo.value - 4 * elbo.mc_se < found.value < other.value + 6 * (found.mc_se + other.mc_se) + 0.01
    gaps = analysis.inference_gaps(run.model, run.guide, x, num_particles=20, num_reference=50, steps=2)
    assert torch.allclose(gaps.inference, gaps.approximation + gaps.amortization)
    assert analysis.calibration(run.model, run.guide, template=x, num_data=20, num_draws=5).ranks.shape[0] == 20
    loaded = ppvae.load(folder)
    before, after = (analysis.elbo(one.model, one.guide, x, num_particles=10).pointwise for one in (run, loaded))
    assert torch.equal(before, after)
    page = analysis.report(folder, data=ppvae.data.Data.of(x))
    assert "<html" in page.read_text()
