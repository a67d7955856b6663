"""Metrics of representations, held to numbers derived by hand."""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppvae import analysis, data, guides, models
from ppvae.analysis import plots
from ppvae.errors import ArgumentError, DataError, FamilyError, PpvaeError
from ppvae.nn import MLP

# Every combination of 3, 4 and 5 values, six times: factors that are independent to the last digit.
GRID = np.tile(np.array(list(itertools.product(range(3), range(4), range(5))), dtype=float), (6, 1))
SCORES = {
    "MIG": lambda z, v: analysis.mutual_information_gap(z, v).value,
    "SAP": lambda z, v: analysis.separated_attribute_predictability(z, v).value,
    "DCI disentanglement": lambda z, v: analysis.dci(z, v).disentanglement,
    "DCI completeness": lambda z, v: analysis.dci(z, v).completeness,
    "DCI informativeness": lambda z, v: analysis.dci(z, v).informativeness,
    "FactorVAE": lambda z, v: analysis.factor_vae_score(z, v).value,
}


# Codes against factors.


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_codes_that_are_the_factors_score_one_in_any_order_sign_and_scale(score):
    codes = GRID[:, [2, 0, 1]] * [-1.0, 10.0, 0.1] + 3
    assert score(codes, GRID) == pytest.approx(1, abs=1e-9)  # rounding


def noise_codes(seed, n=3000, dim=6):
    source = np.random.default_rng(seed)
    return source.standard_normal((n, dim)), GRID[source.integers(len(GRID), size=n)]


def test_noise_scores_nothing():
    z, v = noise_codes(0)
    n = len(z)
    # 2 N I is chi-squared with (20 - 1)(values - 1) degrees of freedom: a gap of two lies within a spread of them, largest for 5 values.
    assert 0 <= SCORES["MIG"](z, v) < 6 * math.sqrt(2 * 19 * 4) / (2 * n * math.log(3))
    assert 0 <= SCORES["SAP"](z, v) < 16 / n  # N R^2 is chi-squared with one degree of freedom; 16 is four of its standard deviations
    # forests grown to the end fit noise, with every code alike
    found = analysis.dci(z, v)
    assert found.disentanglement < 0.01 and found.completeness < 0.01 and found.informativeness < 0.1
    votes = analysis.factor_vae_score(z, v)
    assert abs(votes.value - 1 / 3) < 5 * math.sqrt(2 / 9 / 800) and votes.chance == 1 / 3


def test_two_factors_mixed_by_45_degrees_have_no_code_of_their_own():
    """x + y and x - y carry equal information on x: both gaps are 0 by symmetry; R^2 is 1/2 each."""
    square = np.tile(np.array(list(itertools.product(range(6), range(6))), dtype=float), (4, 1))
    codes = np.stack([square.sum(1), square[:, 0] - square[:, 1]], 1)
    assert SCORES["MIG"](codes, square) == pytest.approx(0, abs=1e-12)
    found = analysis.separated_attribute_predictability(codes, square)
    assert found.value == pytest.approx(0, abs=1e-12) and found.table.flatten().tolist() == pytest.approx([0.5] * 4, abs=1e-12)


def test_two_codes_of_one_factor_leave_no_gap_for_it():
    """Factor 0 has two perfect codes, the others one each: MIG and SAP are 2/3. Completeness of factor 0 is between 1 - log 2 / log 4 and 1."""
    codes = GRID[:, [0, 0, 1, 2]]
    assert SCORES["MIG"](codes, GRID) == pytest.approx(2 / 3, abs=1e-9)
    assert SCORES["SAP"](codes, GRID) == pytest.approx(2 / 3, abs=1e-9)
    assert 1 - 0.5 / 3 - 1e-9 <= analysis.dci(codes, GRID).completeness < 0.95
    assert SCORES["DCI disentanglement"](codes, GRID) == pytest.approx(1, abs=1e-9)


def test_one_code_of_two_factors_is_complete_and_not_disentangled():
    """Code c = a + 2 b of two fair bits: I(c; a) = H(a), I(c; b) = H(b), and it matters for both alike: disentanglement 1 - log 2 / log 2 = 0."""
    bits = np.tile(np.array(list(itertools.product((0.0, 1.0), repeat=2))), (100, 1))
    found = analysis.dci(np.stack([bits @ [1, 2], np.zeros(len(bits))], 1), bits)
    assert (found.disentanglement, found.completeness, found.informativeness) == pytest.approx((0, 1, 1), abs=1e-9)


def test_mutual_information_of_a_noisy_bit():
    """A bit flipped with probability 1/8: I / H = 1 - H(1/8) / log 2, exactly, where an eighth of each value is flipped."""
    bit = np.repeat([0.0, 1.0], 80)
    code = np.where(np.arange(160) % 8 == 0, 1 - bit, bit)
    h = -(math.log(1 / 8) / 8 + 7 / 8 * math.log(7 / 8))
    found = analysis.mutual_information_gap(code[:, None], bit[:, None])
    assert found.value == pytest.approx(1 - h / math.log(2), abs=1e-12)


def test_categories_have_no_order():
    """Classes 0, 1, 2 coded -1, 1, -1: the squared correlation is 0, all variance lies between classes, and a second code is noise of none."""
    classes = np.tile([0.0, 1.0, 2.0], 20)[:, None]
    codes = np.array([-1.0, 1.0, -1.0])[classes[:, 0].astype(int)][:, None]
    assert analysis.separated_attribute_predictability(codes, classes).value == pytest.approx(0, abs=1e-12)
    told = analysis.separated_attribute_predictability(codes, classes, names=["kind"], categorical=["kind"])
    assert told.value == pytest.approx(1, abs=1e-12)
    with pytest.raises(ArgumentError, match="got 'sort'"):
        analysis.separated_attribute_predictability(codes, classes, names=["kind"], categorical=["sort"])


def test_constant_codes_get_no_votes():
    codes = np.concatenate([np.zeros((len(GRID), 2)), GRID], 1)
    found = analysis.factor_vae_score(codes, GRID)
    assert found.value == 1 and found.votes[:2].sum() == 0


def test_jackknife_error_of_sap_is_that_of_repeated_samples():
    """x ~ N(0, 1), code x + noise of variance 1: R^2 = 1/2, variance of an estimate 4 R^2 (1 - R^2)^2 / N."""
    found = []
    for seed in range(40):
        source = np.random.default_rng(seed)
        x = source.standard_normal((400, 1))
        found.append(analysis.separated_attribute_predictability(x + source.standard_normal((400, 1)), x))
    expected = math.sqrt(4 * 0.5 * 0.25 / 400)
    assert abs(np.mean([one.value for one in found]) - 0.5) < 4 * expected / math.sqrt(40)
    # each squared error has 9 degrees of freedom
    assert np.mean([one.se**2 for one in found]) == pytest.approx(expected**2, rel=4 * math.sqrt(2 / 9 / 40))


def test_sprites_bring_their_factors_and_names():
    sprites = data.sprites(600)
    found = analysis.disentanglement(sprites.factors, sprites, categorical=["shape"])
    assert found.sap.names == ("shape", "scale", "rotation", "x", "y")
    assert min(found.dci.disentanglement, found.factor_vae.value) > 0.99
    assert "MIG" in str(found) and set(found.as_dict()) == {"mig", "sap", "dci", "factor_vae", "num_data"}


@pytest.mark.parametrize(
    ("codes", "factors", "told"),
    [
        (GRID, GRID[:-1], "shape"),
        (GRID, np.ones_like(GRID), "0, 1, 2 do not"),
        (GRID * math.nan, GRID, "finite"),
        (GRID, data.Data.of(GRID), "whose factors are known"),
    ],
    ids=["lengths", "constant", "nan", "no factors"],
)
def test_arrays_that_do_not_fit_are_told(codes, factors, told):
    with pytest.raises(DataError, match=told):
        analysis.mutual_information_gap(codes, factors)


def test_scikit_learn_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: analysis.dci(GRID, GRID), lambda: analysis.probe(GRID, GRID, GRID[:, 0], GRID[:, 0])):
        with pytest.raises(PpvaeError, match=r"ppvae\[metrics\]"):
            call()


# Dimension.


def test_a_line_has_one_dimension():
    """C(r) = 2 r - r^2 on a unit line: the local slope is 2 (1 - r) / (2 - r), between 0.995 and 1 for r below 0.01."""
    t = np.random.default_rng(0).random((4000, 1))
    found = analysis.correlation_dimension(t @ np.array([[1.0, 2.0, 2.0]]) / 3, radii=(1e-3, 1e-2))
    assert abs(found.dimension - 0.998) < 4 * found.se and found.se < 0.01


def test_a_square_has_two_dimensions_and_its_edge_is_known():
    """Of pairs in the unit square C(r) = pi r^2 - 8 r^3 / 3 + r^4 / 2; the fit to C itself is what the estimate is held to."""
    found = analysis.correlation_dimension(np.random.default_rng(1).random((6000, 2)), radii=(0.01, 0.1))
    r = found.radii.numpy()
    exact = math.pi * r**2 - 8 * r**3 / 3 + r**4 / 2
    slope = np.polynomial.polynomial.polyfit(np.log(r), np.log(exact), 1)[1]
    assert abs(found.dimension - slope) < 4 * found.se and found.se < 0.02
    assert abs(found.dimension - 2) < 0.06
    assert found.share.numpy() == pytest.approx(exact, rel=0.03)


def test_a_torus_has_exactly_two():
    """The flat torus in four dimensions has no edge; chords are shorter than arcs by a relative r^2 / 24."""
    angle = 2 * math.pi * np.random.default_rng(2).random((6000, 2))
    found = analysis.correlation_dimension(np.concatenate([np.cos(angle), np.sin(angle)], 1), radii=(0.05, 0.3))
    assert abs(found.dimension - 2) < 4 * found.se and found.se < 0.02


def henon(n):
    points = np.empty((n + 100, 2))
    x, y = 0.1, 0.1
    for i in range(len(points)):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        points[i] = x, y
    return points[100:]


def test_henon():
    """1.21 by Grassberger and Procaccia (1983), table 1."""
    found = analysis.correlation_dimension(henon(10_000), radii=(0.005, 0.1), theiler=5)
    assert found.dimension == pytest.approx(1.21, abs=0.03)


def test_lorenz():
    """2.05 +- 0.01 by Grassberger and Procaccia (1983); 2.081 of 16,000 states, r from 0.5 to 2, in our own earlier check."""
    states = data.lorenz(16_000).factors
    found = analysis.correlation_dimension(states, radii=(0.5, 2.0), num_radii=6)
    assert found.dimension == pytest.approx(2.05, abs=0.05) and found.dimension == pytest.approx(2.081, abs=4 * found.se)
    noisy = analysis.correlation_dimension(states[:4000] + 0.5 * torch.randn(4000, 3), radii=(0.5, 1.0))
    assert noisy.dimension == pytest.approx(2.835, abs=4 * noisy.se)  # of the same check: the dimension is that of the noise


def test_theiler_window_leaves_out_exactly_its_pairs():
    """A hundred points on a line at distance 1: without a window C(1.5) = 99 / C(100, 2); with a window of 1 nothing is left at 1.5."""
    points = np.arange(100.0)[:, None]
    found = analysis.correlation_dimension(points, radii=(1.5, 2.5), num_radii=2)
    assert found.share.tolist() == pytest.approx([99 / 4950, (99 + 98) / 4950])
    windowed = analysis.correlation_dimension(points, radii=(2.5, 3.5), num_radii=2, theiler=1)
    assert windowed.share.tolist() == pytest.approx([98 / 4851, (98 + 97) / 4851])
    with pytest.raises(DataError, match="closer than r = 1.5"):
        analysis.correlation_dimension(points, radii=(1.5, 1.9), theiler=1)


def test_a_slow_trajectory_looks_one_dimensional_without_a_window():
    """200 straight paths of 20 states, steps of 0.02, from random points of the flat torus: of two dimensions once a window of 19 rows is out."""
    source = np.random.default_rng(7)
    direction = 2 * math.pi * source.random((200, 1))
    along = 0.02 * np.arange(20)
    angle = 2 * math.pi * source.random((2, 200, 1)) + along * np.stack([np.cos(direction), np.sin(direction)])
    states = np.concatenate([np.cos(angle), np.sin(angle)]).reshape(4, -1).T
    without, within = (analysis.correlation_dimension(states, radii=(0.05, 0.2), theiler=window) for window in (0, 19))
    assert without.dimension < 1.5
    assert abs(within.dimension - 2) < 4 * within.se and within.se < 0.15


def test_error_of_the_dimension_is_that_of_repeated_samples():
    """Leaving out blocks counts the noise of single pairs twice: too large by up to sqrt 2 where that is all, never too small."""
    found = [analysis.correlation_dimension(np.random.default_rng(seed).random((800, 1)), radii=(0.01, 0.1)) for seed in range(40)]
    spread = np.std([one.dimension for one in found], ddof=1)
    ratio = np.sqrt(np.mean([one.se**2 for one in found])) / spread
    of_spread = 4 / math.sqrt(2 * 39)
    assert 1 - of_spread < ratio < math.sqrt(2) * (1 + of_spread)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_two_nn_of_a_normal_ball_is_its_dimension(dim):
    found = analysis.two_nn(np.random.default_rng(dim).standard_normal((5000, dim)))
    assert abs(found.dimension - dim) < 3 * found.se and dim / math.sqrt(4500) < found.se < 1.5 * dim / math.sqrt(4500)


def test_error_of_two_nn_is_that_of_repeated_samples():
    found = [analysis.two_nn(np.random.default_rng(seed).standard_normal((1000, 2))) for seed in range(100)]
    spread = np.std([one.dimension for one in found], ddof=1)
    assert np.mean([one.se for one in found]) == pytest.approx(spread, rel=4 / math.sqrt(2 * 99))


def test_two_nn_refuses_a_grid():
    with pytest.raises(DataError, match="lie on a grid"):
        analysis.two_nn(np.arange(100.0)[1:-1, None], discard=0.5)


def test_two_nn_of_a_curved_sheet_in_twenty_dimensions_is_two():
    source = np.random.default_rng(3)
    t = source.random((4000, 2))
    curved = np.concatenate([np.sin(t), np.cos(t), t[:, :1] * t[:, 1:]], 1) @ source.standard_normal((5, 20))
    found = analysis.two_nn(curved)
    assert abs(found.dimension - 2) < 3 * found.se


def test_points_that_cannot_be_measured_are_told():
    with pytest.raises(DataError, match="2 of 60 coincide"):
        points = np.random.default_rng(0).random((60, 2))
        points[1] = points[0]
        analysis.two_nn(points)
    with pytest.raises(DataError, match="at least 50"):
        analysis.correlation_dimension(np.zeros((10, 2)))
    with pytest.raises(ArgumentError, match="0 < low < high"):
        analysis.correlation_dimension(np.zeros((100, 2)))


# Probes.


def separated(n, seed):
    """Three classes at distance 10 in two dimensions, spread 0.5."""
    source = np.random.default_rng(seed)
    labels = source.integers(3, size=n)
    centres = 10 * np.array([[0, 0], [1, 0], [0, 1]])
    return centres[labels] + 0.5 * source.standard_normal((n, 2)), labels


def test_well_separated_classes_are_all_told_right():
    (x, a), (y, b) = separated(150, 0), separated(90, 1)
    found = analysis.probe(x, y, a, b)
    assert (found.linear, found.neighbours, found.purity, found.information) == (1, 1, 1, pytest.approx(1))
    assert found.linear_se == 0 and found.dim == 2


def test_labels_without_relation_are_guessed():
    source = np.random.default_rng(4)
    x, y, a, b = (
        source.standard_normal((300, 3)),
        source.standard_normal((400, 3)),
        source.integers(2, size=300),
        source.integers(2, size=400),
    )
    found = analysis.probe(x, y, a, b)
    for share in (found.linear, found.neighbours, found.purity):
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(400)
    assert found.information < 16 / 400  # N times it is near a chi-squared variable of one degree of freedom


def test_a_ring_is_seen_by_neighbours_and_not_by_a_line():
    """A disc inside a ring: no half plane holds more than 2/3 of balanced classes right here, the nearest neighbours tell all."""
    source = np.random.default_rng(5)

    def rows(n):
        angle, labels = 2 * math.pi * source.random(n), np.arange(n) % 2
        return (1 + 4 * labels)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), labels

    (x, a), (y, b) = rows(200), rows(200)
    found = analysis.probe(x, y, a, b)
    assert found.neighbours == 1 and found.linear < 0.75


def test_principal_components_are_those_of_the_covariance():
    from ppvae.analysis.probes import principal_components

    x = np.random.default_rng(6).standard_normal((500, 4)) * [1.0, 3.0, 0.1, 2.0]
    values, vectors = np.linalg.eigh(np.cov(x.T))
    found = principal_components(x, 2)
    assert np.abs(found @ vectors[:, [3, 2]]) == pytest.approx(np.eye(2), abs=1e-10)


class Rotated:
    """q(z | x) = N(R x, 0.1^2): codes that are the data turned."""

    def __call__(self, x):
        turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ turn, 0.1).to_event(1))


class Plain:
    """z ~ N(0, I) in two dimensions, x | z ~ N(z, I)."""

    def __call__(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def overlapping(n, seed):
    x, labels = separated(n, seed)
    return data.Data.of(torch.tensor(x / 5), torch.tensor(labels))


def test_neighbours_and_clusters_do_not_mind_a_rotation_of_the_codes():
    found = analysis.probes(Plain(), Rotated(), overlapping(200, 0), overlapping(100, 1), num_neighbours=5)
    assert found.codes.neighbours == found.data.neighbours == found.pca.neighbours
    assert (found.codes.purity, found.codes.dim, found.pca.dim, found.data.dim) == (found.data.purity, 2, 2, 2)
    assert 0.25 < found.most_frequent < 0.5 and "5 neighbours" in str(found) and "guessing" in str(found)


def test_probes_need_labels_and_two_of_them():
    with pytest.raises(DataError, match="needed data with labels"):
        analysis.probes(Plain(), Rotated(), data.Data.of(torch.zeros(60, 2)), overlapping(20, 1))
    with pytest.raises(DataError, match="two labels or more"):
        analysis.probe(GRID, GRID, np.zeros(len(GRID), dtype=int), np.zeros(len(GRID), dtype=int))


# Rate and distortion.


@pytest.fixture(scope="module")
def gaussian():
    """Data whose covariance has exactly the eigenvalues of the known linear Gaussian model, in float64, and its curve."""
    torch.set_default_dtype(torch.float64)
    model = data.known_linear_gaussian()
    x = data.linear_gaussian(48).x.double()
    covariance = (model.weight @ model.weight.mT + 0.25 * torch.eye(8)).detach()
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / len(x))).mT
    x = white @ torch.linalg.cholesky(covariance).mT + model.bias
    found = analysis.rate_distortion(
        model,
        x,
        guide=lambda x: posterior(model, x),
        betas=(3.0, 0.3, 1.0),
        num_chains=8,
        num_temperatures=14,
        num_warmup=15,
        num_draws=8,
        seed=1,
    )
    torch.set_default_dtype(torch.float32)
    return model, x, found


def posterior(model, x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", model.posterior(x))


def free_energy(model, x, beta):
    """-log of the integral of N(z; 0, I) N(x; W z + b, s^2 I)^beta: a Normal of variance s^2 / beta, less the change of its constant."""
    d, variance = x.shape[1], (2 * model.log_scale).exp()
    marginal = dist.LowRankMultivariateNormal(model.bias, model.weight, (variance / beta).expand(d))
    constant = d / 2 * ((1 - beta) * math.log(2 * math.pi * variance) - math.log(beta))
    return -(marginal.log_prob(x) + constant)


@pytest.mark.parametrize("place", range(3), ids=["0.3", "1", "3"])
def test_bounds_enclose_the_closed_form(gaussian, place):
    model, x, found = gaussian
    exact = free_energy(model, x, found.betas[place].item()).mean().item()
    upper, lower = found.means[place]
    assert exact - 4 * upper.mc_se < upper.value < exact + 0.3 + 4 * upper.mc_se
    assert exact - 0.3 - 4 * lower.mc_se < lower.value < exact + 4 * lower.mc_se


def test_points_lie_above_water_filling_and_at_slope_one_on_it(gaussian):
    """The model is that of maximum likelihood for these data: at beta = 1, where the water stands at s^2, its curve touches that of the source.

    R = 1/2 sum log(l_i / s^2) over the eigenvalues above s^2, D = d/2 log(2 pi s^2) + d/2: all eigenvalues are filled to s^2.
    """
    model, x, found = gaussian
    rate = 0.5 * sum(math.log(value / 0.25) for value in (8, 4, 2))
    distortion = 8 / 2 * math.log(2 * math.pi * 0.25) + 8 / 2
    assert free_energy(model, x, 1.0).mean().item() == pytest.approx(rate + distortion, abs=1e-9)
    point = found.points[1]
    se = math.sqrt(8 / 2 / 8 / 48)  # of the squared error of 8 draws a datum, nats
    assert point.tolist() == pytest.approx([distortion, rate], abs=0.2 + 4 * se)
    assert found.lower_rate(distortion).item() == pytest.approx(rate, abs=0.3)
    assert found.lower_rate(distortion).item() < rate + 4 * found.means[1][1].mc_se


def test_an_exact_guide_is_the_point_of_slope_one(gaussian):
    _, _, found = gaussian
    assert found.pair.rate.mean().item() == pytest.approx(0.5 * sum(math.log(value / 0.25) for value in (8, 4, 2)), abs=0.05)
    assert found.pair.rate.mean() + found.pair.distortion.mean() == pytest.approx(found.lower[1].mean().item(), abs=0.3)


def test_upper_at_beta_one_is_what_annealing_says_of_log_p(gaussian):
    model, x, found = gaussian
    other = analysis.annealed_log_likelihood(model, x, num_temperatures=40, num_chains=8).mean
    here = found.means[1][0]
    assert -here.value == pytest.approx(other.value, abs=0.2 + 4 * math.hypot(here.mc_se, other.mc_se))


def test_the_curve_is_a_record_and_a_sentence(gaussian):
    _, _, found = gaussian
    assert found.betas.tolist() == [0.3, 1.0, 3.0] and found.rate.shape == (3, 48)
    assert torch.allclose(found.rate + found.betas[:, None] * found.distortion, found.upper)  # rounding
    assert "the pair: D" in str(found) and found.as_dict()["pair"]["rate"]
    assert bool((found.lower_rate(torch.linspace(2, 30, 20)).diff() <= 1e-12).all())  # a bound on a falling curve falls


def test_how_many_data_are_walked_at_once_changes_no_draw(gaussian):
    model, x, found = gaussian
    few = analysis.rate_distortion(model, x[:3], betas=(0.5,), num_chains=4, num_temperatures=5, num_warmup=2, num_draws=4)
    again = analysis.rate_distortion(model, x[:3], betas=(0.5,), num_chains=4, num_temperatures=5, num_warmup=2, num_draws=4)
    assert torch.equal(few.upper, again.upper) and torch.equal(few.lower, again.lower)


def test_a_trained_pair_of_networks_is_measured():
    """A Bernoulli decoder and an encoder as they start: the guide lies above the lower bound, upper above lower."""
    model = models.Bernoulli(MLP(2, [8], 12), latent_dim=2)
    guide = guides.DiagonalNormal(MLP(12, [8], 4), latent_dim=2)
    x = (torch.rand(6, 12) < 0.5).double()
    found = analysis.rate_distortion(
        model, x, guide=guide, betas=(0.5, 1.0), num_chains=8, num_temperatures=10, num_warmup=20, num_draws=10, seed=2
    )
    assert (found.upper - found.lower > -5 * (found.upper_se + found.lower_se)).all()
    rate, distortion = found.pair.rate.mean().item(), found.pair.distortion.mean().item()
    assert rate > found.lower_rate(distortion).item() - 0.05


@pytest.mark.parametrize(
    ("options", "told"),
    [({"betas": (0.0, 1.0)}, "betas are numbers > 0"), ({"num_chains": 1}, "num_chains is from 2"), ({"num_draws": 2}, "num_draws")],
    ids=["beta", "chains", "draws"],
)
def test_settings_that_make_no_sense_are_told(options, told):
    with pytest.raises(ArgumentError, match=told):
        analysis.rate_distortion(Plain(), torch.zeros(3, 2), **options)


def test_discrete_latents_cannot_be_annealed():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    with pytest.raises(FamilyError, match="no continuous latent"):
        analysis.rate_distortion(model, torch.zeros(3, 1))


# Figures.


def drawn(figure):
    figure.canvas.draw()
    return figure


def test_figure_of_the_integral_shows_its_points_and_slope():
    found = analysis.correlation_dimension(np.random.default_rng(0).random((300, 2)), radii=(0.05, 0.3), num_radii=5)
    above, below = drawn(plots.correlation_integral(found)).axes
    assert np.allclose(above.lines[0].get_ydata(), found.share) and np.allclose(below.lines[0].get_ydata(), found.local)
    assert f"{found.dimension:.3f}" in above.get_legend().get_texts()[0].get_text()


def test_figure_of_the_curve_shows_channels_bound_and_guide(gaussian):
    _, _, found = gaussian
    (axes,) = drawn(plots.rate_distortion(found)).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert np.allclose(np.stack(lines["annealed channels"].get_data(), 1), found.points)
    assert lines["the guide"].get_ydata()[0] == pytest.approx(found.pair.rate.mean().item())


def test_figure_of_probes_has_a_bar_a_method_and_representation():
    found = analysis.probes(Plain(), Rotated(), overlapping(100, 0), overlapping(60, 1))
    (axes,) = drawn(plots.probes(found)).axes
    assert [bar.get_height() for bar in axes.patches[:3]] == [found.codes.linear, found.codes.neighbours, found.codes.purity]
    assert len(axes.patches) == 9


def test_figure_of_disentanglement_shows_both_tables():
    found = analysis.disentanglement(GRID, GRID, names=["a", "b", "c"])
    first, second = drawn(plots.disentanglement(found)).axes[:2]
    assert np.allclose(first.images[0].get_array(), found.mig.table) and np.allclose(second.images[0].get_array(), found.dci.importance)
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["a", "b", "c"]
