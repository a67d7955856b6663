"""Families are densities: they integrate to one, their draws follow them, their rows mean what they say."""

import math

import pytest
import torch

from ppvae.errors import FamilyError
from ppvae.families import DiagonalNormal, FullRankMixture, FullRankNormal, LowRankNormal
from ppvae.whitened import CouplingFlow, MixtureNormal, Whitened

IN_THE_PLANE = {
    "diagonal": DiagonalNormal(2),
    "full rank": FullRankNormal(2),
    "low rank": LowRankNormal(2, rank=1),
    "mixture": MixtureNormal(2, num_components=3),
    "full-rank mixture": FullRankMixture(2, (0.7, 0.3)),
    "flow": CouplingFlow(2, num_layers=4, hidden=8),
    "whitened flow": Whitened(CouplingFlow(2, num_layers=2, hidden=4)),
    "whitened mixture": Whitened(MixtureNormal(2)),
}


@pytest.fixture(params=IN_THE_PLANE, ids=str)
def family(request):
    return IN_THE_PLANE[request.param]


def some_row(family, n=1):
    return 0.2 * torch.randn(n, family.num_parameters)


def test_a_density_integrates_to_one(family):
    """Midpoint sum over [-14, 14]^2 in steps of 0.04, the rows scaled so that nothing lies outside."""
    q = family.distribution(some_row(family))
    side = torch.linspace(-14, 14, 701)
    total = sum(q.log_prob(torch.cartesian_prod(part, side)[:, None]).exp().sum() for part in side.split(200)) * (side[1] - side[0]) ** 2
    assert total.item() == pytest.approx(1.0, abs=1e-4)


def test_draws_follow_the_density(family):
    """E_q[f / q] = integral of f for f a narrow Normal bump: importance sampling of a known integral, to 5 standard errors."""
    q = family.distribution(some_row(family))
    z = q.sample(torch.Size([40_000]))
    bump = torch.distributions.Normal(0.0, 0.5).log_prob(z).sum(-1)
    weights = (bump - q.log_prob(z)).exp()
    assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(len(weights))


def test_rows_under_a_particle_dim_are_rows(family):
    row = some_row(family, n=3)
    z = torch.randn(4, 3, 2)
    apart = torch.stack([family.distribution(row[n : n + 1]).log_prob(z[:, n : n + 1])[:, 0] for n in range(3)], 1)
    assert torch.allclose(family.distribution(row).log_prob(z), apart)
    repeated = family.distribution(row.repeat(4, 1)).log_prob(z.reshape(12, 2)).reshape(4, 3)
    assert torch.allclose(repeated, apart)


@pytest.mark.parametrize("family", [CouplingFlow(5, 3, 4), Whitened(CouplingFlow(3, 2, 4))], ids=["flow", "whitened"])
def test_a_flows_density_is_the_change_of_variables(family):
    """log q(z) = log N(e; 0, I) - log |det dz/de|, the Jacobian by autograd."""
    q = family.distribution(some_row(family))
    e = torch.randn(1, family.latent_dim)

    def pushed(e):
        for transform in [t for part in (q,) for t in transforms_of(part)]:
            e = transform(e)
        return e

    jacobian = torch.autograd.functional.jacobian(pushed, e).reshape(family.latent_dim, family.latent_dim)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum() - torch.linalg.slogdet(jacobian).logabsdet
    assert q.log_prob(pushed(e)).item() == pytest.approx(expected.item(), abs=1e-9)


def transforms_of(q):
    return [*(transforms_of(q.base_dist) if hasattr(q.base_dist, "transforms") else []), *q.transforms]


def test_a_flow_starts_as_the_identity():
    family = CouplingFlow(4)
    q = family.distribution(family.identity_row((2,), torch.zeros(())))
    z = torch.randn(3, 2, 4)
    assert torch.allclose(q.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_stratified_draws_integrate_as_the_mixture_does():
    """sum_s weight_s z_s is E[z] = sum_c w_c loc_c, to 5 standard errors."""
    family = MixtureNormal(2, num_components=3)
    row = torch.randn(1, family.num_parameters)
    z, weights = family.stratified(row, 60_000)
    logits, loc, log_scale = row.split([3, 6, 6], -1)
    mean = (logits.softmax(-1)[..., None] * loc.unflatten(-1, (3, 2))).sum(-2)
    assert weights.sum().item() == pytest.approx(1.0)
    assert ((weights[..., None] * z).sum(0) - mean).abs().max() < 5 * log_scale.exp().max() / math.sqrt(20_000)


def test_the_low_rank_covariance_is_diagonal_plus_factors():
    family = LowRankNormal(3, rank=1)
    row = torch.tensor([[0.0, 0.0, 0.0, *[math.log(s) for s in (0.5, 1.0, 2.0)], 1.0, 2.0, 3.0]])
    factor = torch.tensor([[1.0], [2.0], [3.0]])
    expected = torch.diag(torch.tensor([0.25, 1.0, 4.0])) + factor @ factor.T
    assert torch.allclose(family.distribution(row).covariance_matrix[0], expected)


@pytest.mark.parametrize(
    "family", [DiagonalNormal(3), FullRankNormal(3), LowRankNormal(3, 1), Whitened(MixtureNormal(3))], ids=lambda f: type(f).__name__
)
def test_widening_scales_deviations(family):
    row = some_row(family)
    one, two = family.distribution(row), family.distribution(family.widened(row, 1.5))
    torch.manual_seed(1)
    a = one.sample(torch.Size([20_000]))
    torch.manual_seed(1)
    b = two.sample(torch.Size([20_000]))
    assert torch.allclose(b.std(0), 1.5 * a.std(0), rtol=0.05)


def test_a_flow_over_one_dimension_is_refused():
    with pytest.raises(FamilyError, match="a coupling flow needs at least 2 latent dimensions, got 1"):
        CouplingFlow(1)
