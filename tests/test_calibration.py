"""Simulation-based calibration against guides that are posteriors, and guides with a known fault."""

import itertools
import json
import math
import os
import time
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from ground_truth import linear_gaussian, poisson_gamma, with_posterior_precision
from ppvae import noise
from ppvae.analysis import plots
from ppvae.analysis.calibration import DENSITY, LIKELIHOOD, calibration
from ppvae.analysis.simulated import simulated
from ppvae.analysis.uniformity import bands, ecdf, p_values, random_pit, random_ranks
from ppvae.errors import ArgumentError, DataError, ProgramError
from ppvae.pair import Pair


class Faulty:
    """The posterior of a linear Gaussian model with its scale times ``scale``, its mean off by ``shift`` sd, or blind to x's last column."""

    def __init__(self, model, scale=1.0, shift=0.0, dropped=False):
        self.model, self.scale, self.shift, self.dropped = model, scale, shift, dropped

    def __call__(self, x):
        posterior = self._blind(x) if self.dropped else self.model.posterior(x)
        sd = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc + self.shift * sd, scale_tril=posterior.scale_tril * self.scale))

    def _blind(self, x):
        """p(z | x without its last column), in closed form."""
        weight, variance = self.model.weight[:-1], (2 * self.model.log_scale).exp()
        precision = weight.mT @ weight / variance + torch.eye(weight.shape[1])
        loc = torch.linalg.solve(precision, ((x[:, :-1] - self.model.bias[:-1]) @ weight / variance).mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision.expand(len(x), -1, -1))


FAULTS = {"scale": {"scale": 0.8}, "shift": {"shift": 0.3}, "dropped": {"dropped": True}}


def one_dimensional(variance=0.5):
    """A linear Gaussian model with one latent of posterior variance 1/2."""
    return with_posterior_precision(torch.tensor([[1 / variance]]))


def directions(found):
    return {fault.name: fault.direction for fault in found.faults}


# The test of uniformity.


def tail(count, n, share):
    """2 min(P(R <= r), P(R >= r)) of a binomial, term by term."""
    mass = [math.comb(n, r) * share**r * (1 - share) ** (n - r) for r in range(n + 1)]
    return 2 * min(sum(mass[: count + 1]), sum(mass[count:]))


@pytest.mark.parametrize(("n", "num_draws"), [(3, 2), (5, 1), (4, 3)])
def test_p_value_is_the_share_of_all_possible_ranks_that_are_as_extreme(n, num_draws):
    possible = list(itertools.product(range(num_draws + 1), repeat=n))
    least = [min(tail(sum(rank < r for rank in ranks), n, r / (num_draws + 1)) for r in range(1, num_draws + 1)) for ranks in possible]
    expected = [sum(other <= one * (1 + 1e-9) for other in least) / len(least) for one in least]
    found = p_values(torch.tensor(possible).T, num_draws)
    assert found.tolist() == pytest.approx(expected, abs=1e-10)


def test_curve_leaves_the_band_exactly_where_the_p_value_is_below_the_level():
    ranks = torch.cat([torch.randint(0, 21, (60, 400)), torch.randint(0, 17, (60, 400))], 1)  # half uniform, half missing the top
    band = bands(60, 20, 0.05)
    curves = ecdf(ranks, 20)
    out = ((curves < band.lower[:, None] - 1e-12) | (curves > band.upper[:, None] + 1e-12)).any(0)
    assert 300 < out.sum() < 500
    assert out.equal(p_values(ranks, 20) <= 0.05)


def test_bands_hold_for_the_share_of_uniform_ranks_that_they_promise():
    """20,000 sets of ranks: 5 standard errors of a share of 0.05 are 0.0077; the test is discrete, so it may be a little below."""
    band = bands(300, 100, 0.05)
    curves = ecdf(torch.randint(0, 101, (300, 20_000)), 100)
    rejected = ((curves < band.lower[:, None] - 1e-12) | (curves > band.upper[:, None] + 1e-12)).any(0).double().mean()
    assert 0.04 < rejected < 0.0577


def test_ranks_of_ties_are_uniform():
    ranks = random_ranks(torch.zeros(5000, 1).long(), torch.full((5000, 1), 4), noise.generator(0))
    counts = ranks.flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert (counts - 1000).abs().max() < 5 * math.sqrt(5000 * 0.2 * 0.8)  # 5 standard errors


def test_pit_stays_within_its_rank():
    ranks = torch.tensor([0, 3, 9])
    pit = random_pit(ranks, 9, noise.generator(0))
    assert (pit * 10).floor().long().equal(ranks)


# The verdict.


def test_posterior_as_guide_is_calibrated():
    model, guide, x = linear_gaussian()
    found = calibration(model, guide, template=x)
    assert found.calibrated
    assert found.num_tests == 4
    assert "calibrated: no fault found in 4 quantities (90 % regions cover" in str(found)


def test_constrained_latent_with_its_posterior_is_calibrated():
    model, y, _, _ = poisson_gamma()

    def guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("r", dist.Gamma(2.0 + y, torch.full_like(y, 2.5)))

    found = calibration(model, guide, template=y)
    assert found.calibrated
    assert found.names == ("r", DENSITY, LIKELIHOOD)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"scale": 0.8}, {"z[0]": "too narrow", "z[1]": "too narrow", DENSITY: "covers too little"}),
        ({"scale": 1.25}, {"z[0]": "too wide", "z[1]": "too wide", DENSITY: "covers too much"}),
        ({"shift": 0.3}, {"z[0]": "too high", "z[1]": "too high"}),
        ({"shift": -0.3}, {"z[0]": "too low", "z[1]": "too low"}),
    ],
    ids=["narrow", "wide", "high", "low"],
)
def test_fault_is_found_with_its_direction(fault, told):
    model, _, x = linear_gaussian()
    found = calibration(model, Faulty(model, **fault), template=x)
    assert not found.calibrated
    assert told.items() <= directions(found).items()


def test_guide_that_ignores_a_part_of_x_is_seen_by_the_likelihood_alone():
    # It is a posterior given the rest of x, so ranks of every function of z and of that rest are uniform.
    model, _, x = linear_gaussian()
    found = calibration(model, Faulty(model, dropped=True), template=x)
    assert set(directions(found)) == {LIKELIHOOD}
    assert "blind to a part of x" in str(found)


@pytest.mark.parametrize("scale", [0.7, 1.25])
def test_pit_of_a_wrong_scale_has_its_closed_form(scale):
    # u = Phi(e / s) with e ~ N(0, 1), so P(u <= t) = Phi(s Phi^-1(t)). Ranks among 400 draws blur it by less than 1 / 400.
    model, x = one_dimensional()
    found = calibration(model, Faulty(model, scale=scale), template=x, num_data=2000, num_draws=400)
    t = torch.linspace(0.1, 0.9, 9)
    exact = torch.special.ndtr(scale * torch.special.ndtri(t))
    share = (found.pit[:, 0, None] <= t).double().mean(0)
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) / 2000).sqrt() + 1 / 400).all()


def test_coverage_of_a_wrong_scale_has_its_closed_form():
    # The region of level c is |z - m| <= s Phi^-1((1 + c) / 2) sd, and holds the truth with probability 2 Phi(s Phi^-1((1 + c) / 2)) - 1.
    model, x = one_dimensional()
    found = calibration(model, Faulty(model, scale=0.7), template=x, num_data=2000, num_draws=400, levels=(0.5, 0.9))
    exact = 2 * torch.special.ndtr(0.7 * torch.special.ndtri((1 + found.levels) / 2)) - 1
    assert ((found.coverage - exact).abs() < 5 * found.coverage_se + 1 / 400).all()
    assert ((found.interval_coverage[:, 0] - exact).abs() < 5 * found.coverage_se + 1 / 400).all()


def test_scale_and_offset_are_the_faults_put_in():
    # Phi^-1(pit) is N(0.3, 1 / 0.8^2) less what 400 draws cannot resolve in the tails; standard errors 1.25 / sqrt(2000) = 0.03.
    model, x = one_dimensional()
    found = calibration(model, Faulty(model, scale=0.8, shift=0.24), template=x, num_data=2000, num_draws=400)
    assert found.scale.item() == pytest.approx(0.8, abs=0.05)
    assert found.offset.item() == pytest.approx(0.3, abs=0.1)


def test_each_quantity_is_held_to_its_part_of_the_level():
    model, guide, x = linear_gaussian()
    found = calibration(model, guide, template=x, num_data=50)
    for p, calibrated in ((0.0126, True), (0.0124, False)):  # 0.05 / 4 = 0.0125
        assert replace(found, p_value=torch.tensor([0.9, p, 0.9, 0.9])).calibrated is calibrated


# Forms of latents, of batches and of programs.


def two_sites(flipped=False):
    """c ~ Bernoulli(0.4), z | c ~ N(3 c, 1), x ~ N(z, 1): both latents of the posterior have closed forms."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.4)))
            z = pyro.sample("z", dist.Normal(3 * c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            evidence = [dist.Normal(3 * c, math.sqrt(2)).log_prob(x) for c in (0.0, 1.0)]
            logits = evidence[1] - evidence[0] + math.log(0.4 / 0.6)
            c = pyro.sample("c", dist.Bernoulli(logits=-logits if flipped else logits))
            pyro.sample("z", dist.Normal((3 * c + x) / 2, math.sqrt(0.5)))

    return model, guide, torch.zeros(4)


def test_discrete_latent_beside_one_that_depends_on_it_is_calibrated():
    found = calibration(*two_sites()[:2], template=two_sites()[2])
    assert found.calibrated
    assert found.names[:2] == ("c", "z")


def test_wrong_discrete_latent_is_found():
    model, guide, x = two_sites(flipped=True)
    assert "c" in directions(calibration(model, guide, template=x))


def test_plates_inside_a_datum_and_matrices_are_ranked_by_element():
    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-2):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x.movedim(0, 1))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-2):
            pyro.sample("w", dist.Normal(x.movedim(0, 1) / 2, math.sqrt(0.5)).to_event(1))

    found = calibration(model, guide, template=torch.zeros(5, 3, 2))
    assert found.calibrated
    assert found.names[:6] == ("w[0,0]", "w[0,1]", "w[1,0]", "w[1,1]", "w[2,0]", "w[2,1]")


def regression(reads="y"):
    """z ~ N(0, 1), y ~ N(c z, 1) with a covariate c; the guide is the posterior."""

    def model(batch):
        with pyro.plate("data", len(batch["c"])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(batch["c"] * z, 1.0), obs=batch["y"])

    def guide(batch):
        precision = 1 + batch["c"].square()
        with pyro.plate("data", len(batch["c"])):
            pyro.sample("z", dist.Normal(batch["c"] * batch[reads] / precision, precision.rsqrt()))

    return model, guide


def test_covariates_of_the_template_are_kept_and_used_cyclically():
    model, guide = regression()
    template = {"c": torch.tensor([0.5, 3.0, -2.0]), "y": torch.tensor([7.0, 8.0, 9.0])}
    made = simulated(Pair(model, guide, template), template, size=7, seed=0)
    assert made.batch["c"].tolist() == [0.5, 3.0, -2.0, 0.5, 3.0, -2.0, 0.5]
    assert not set(made.batch["y"].tolist()) & {7.0, 8.0, 9.0}
    assert calibration(model, guide, template=template).calibrated


def test_columns_that_the_model_observes_are_found():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x[:, 1] * z, 1.0), obs=x[:, 2])

    template = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    made = simulated(Pair(model, lambda x: regression()[1]({"c": x[:, 1], "y": x[:, 2]}), template), template, size=2, seed=0)
    assert made.batch[:, :2].equal(template[:, :2])
    assert (made.batch[:, 2] != template[:, 2]).all()


def test_two_tensors_that_could_be_what_is_observed_are_refused():
    model, guide = regression(reads="copy")
    y = torch.tensor([7.0, 8.0, 9.0])
    with pytest.raises(ProgramError, match="equals two tensors"):
        calibration(model, guide, template={"c": torch.ones(3), "y": y, "copy": y.clone()})


def test_place_puts_simulated_values_where_the_programs_read_them():
    model, guide = regression(reads="copy")
    template = {"c": torch.ones(3), "y": torch.zeros(3), "copy": torch.zeros(3)}
    found = calibration(model, guide, template=template, place=lambda rows, values: {**rows, "y": values["y"], "copy": values["y"]})
    assert found.calibrated


def test_observed_value_that_is_not_in_the_batch_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x / 255)

    with pytest.raises(ProgramError, match="holds nothing that equals"):
        calibration(model, lambda x: regression()[1]({"c": torch.ones(len(x)), "y": x}), template=torch.arange(1.0, 4.0))


def test_likelihood_that_reads_the_data_is_refused():
    def model(x):  # x_1 given x_0 by teacher forcing
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.stack([z, x[:, 0].expand_as(z)], -1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    with pytest.raises(ProgramError, match="another density than the one they were drawn from"):
        calibration(model, lambda x: regression()[1]({"c": torch.ones(len(x)), "y": x[:, 0]}), template=torch.ones(3, 2))


def test_model_with_a_factor_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("tilt", z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ProgramError, match="has a factor, 'tilt'"):
        calibration(model, lambda x: regression()[1]({"c": torch.ones(len(x)), "y": x}), template=torch.ones(3))


def test_likelihood_that_no_latent_moves_is_a_tie_whatever_its_rounding():
    # A sum in float32 may depend on the shape of the run, here that of the truth's lone particle: it would lie above all draws.
    pixels = torch.rand(784, dtype=torch.float32)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            rounding = 1e-6 if z.shape[0] == 1 else 0.0
            pyro.sample("x", dist.Normal(pixels + 0 * z[..., :1] + rounding, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    found = calibration(model, guide, template=torch.zeros(1, 784, dtype=torch.float32), num_data=300)
    assert found.calibrated
    assert found.likelihood_rank.unique().numel() > 50


def test_guide_with_an_auxiliary_site_has_no_coverage_but_a_verdict():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):  # the posterior N(x / 2, 1 / 2), by way of an auxiliary draw
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 2, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a, 0.5))

    found = calibration(model, guide, template=torch.zeros(3))
    assert found.calibrated and found.num_tests == 2
    assert found.coverage.isnan().all() and (found.joint_rank == -1).all()
    with pytest.raises(DataError, match="no coverage to draw"):
        plots.coverage_curve(found)


def test_guide_through_a_transform_without_an_inverse_has_no_coverage():
    model, _, _ = linear_gaussian(num_data=1)

    def pushed(x):  # Pyro says of it that a key is not in a cache
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x[:, :2], 1.0).to_event(1), [dist.transforms.Planar(2)]))

    found = calibration(model, pushed, template=torch.zeros(1, 5), num_data=20, num_draws=3)
    assert found.coverage.isnan().all() and (found.joint_rank == -1).all()


def test_a_slip_of_the_guides_is_not_taken_for_a_density_that_is_not_there(monkeypatch):
    model, guide, x = linear_gaussian(num_data=6)
    pair = Pair(model, guide, x)
    monkeypatch.setattr(pair, "guide_score", lambda *_: {}["scale"])
    with pytest.raises(KeyError, match="scale"):
        pair.guide_density(x, slice(0, 6), {}, "test")


def test_guide_through_a_transform_of_x_is_ranked_by_its_density():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x / 2, math.sqrt(0.5)), [transforms.ExpTransform()]))

    found = calibration(model, guide, template=torch.zeros(3))
    assert found.calibrated and found.num_tests == 3


# What every measurement promises.


def test_seed_rules_every_draw_and_the_callers_generator_is_left_alone():
    model, guide, x = linear_gaussian()
    before = torch.get_rng_state()
    one, again, other = (calibration(model, guide, template=x, num_data=100, seed=seed) for seed in (3, 3, 4))
    assert torch.get_rng_state().equal(before)
    assert one.ranks.equal(again.ranks) and one.pit.equal(again.pit) and one.joint_rank.equal(again.joint_rank)
    assert not one.ranks.equal(other.ranks)


def test_values_of_the_template_do_not_matter():
    model, guide, x = linear_gaussian()
    one, other = (calibration(model, guide, template=template, num_data=100) for template in (x[:1], x[1:] + 5.0))
    assert one.ranks.equal(other.ranks)


def test_global_site_is_drawn_once_and_told():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        mu = pyro.sample("mu", dist.Normal(5.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, math.sqrt(0.5)))

    found = calibration(model, guide, template=torch.zeros(3))
    assert found.calibrated
    assert found.source.conditioned_on == ("mu",)


def test_result_is_written_as_json():
    model, _, x = linear_gaussian()
    record = json.loads(json.dumps(calibration(model, Faulty(model, scale=0.5), template=x, num_data=100).as_dict()))
    assert record["calibrated"] is False
    assert {fault["name"]: fault["direction"] for fault in record["faults"]}["z[0]"] == "too narrow"
    assert record["names"] == ["z[0]", "z[1]", DENSITY, LIKELIHOOD]
    assert len(record["ranks"]) == 100


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"level": 0.0}, "a level lies in"),
        ({"levels": (0.5, 1.0)}, "a level lies in"),
        ({"num_data": 5}, "num_data is a whole number of at least 20"),
        ({"num_draws": 0}, "num_draws is a whole number"),
    ],
    ids=["level", "levels", "few data", "no draw"],
)
def test_settings_that_make_no_sense_are_refused(wrong, told):
    model, guide, x = linear_gaussian()
    with pytest.raises(ArgumentError, match=told):
        calibration(model, guide, template=x, **wrong)


# Figures.


def test_rank_figure_names_the_faults_and_leaves_the_rest_grey():
    model, _, x = linear_gaussian()
    found = calibration(model, Faulty(model, dropped=True), template=x)
    figure = plots.rank_ecdf(found)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["95 % band, all curves", "others", LIKELIHOOD]
    curve = next(line for line in figure.axes[0].lines if line.get_label() == LIKELIHOOD)
    points = found.bands.points
    expected = (found.likelihood_rank[:, None] < (points * 101).round()).double().mean(0) - points
    assert list(curve.get_ydata())[1:-1] == pytest.approx(expected.tolist())


def test_coverage_figure_draws_the_coverage():
    model, _, x = linear_gaussian()
    found = calibration(model, Faulty(model, scale=0.5), template=x, num_data=200)
    (container,) = plots.coverage_curve(found).axes[0].containers
    assert list(container[0].get_ydata()) == pytest.approx(found.coverage.tolist())


@pytest.mark.parametrize("scale", [1.0, 0.9, 0.8])
def test_a_curve_leaves_the_band_where_its_quantity_is_a_fault_and_nowhere_else(scale):
    """Band and verdict are one test at level / quantities: ranks outside the simultaneous band and a p-value at most that are the same thing."""
    model, _, x = linear_gaussian()
    found = calibration(model, Faulty(model, scale=scale), template=x, num_data=300)
    band = found.bands
    faults = {fault.name for fault in found.faults}
    for name, ranks in found.all_ranks():
        curve = (ranks[:, None] < (band.points * (found.num_draws + 1)).round()).double().mean(0)
        outside = bool(((curve < band.lower - 1e-12) | (curve > band.upper + 1e-12)).any())
        assert outside == (name in faults), name
    assert torch.equal(band.lower, bands(len(found.ranks), found.num_draws, found.level / found.num_tests).lower)


def test_band_of_the_coverage_figure_holds_the_coverage_of_a_posterior():
    model, guide, x = linear_gaussian()
    found = calibration(model, guide, template=x)
    band = found.bands
    for level, share in zip(found.levels.tolist(), found.coverage.tolist(), strict=True):
        at = int((1 - band.points - level).abs().argmin())
        assert 1 - band.upper[at] - 0.02 <= share <= 1 - band.lower[at] + 0.02  # the band moves by less than 0.02 between two points


# Repeated experiments, with fresh seeds.


def fresh_seed():
    seed = int(os.environ.get("PPVAE_TEST_SEED", time.time_ns() % 2**31))
    print(f"PPVAE_TEST_SEED={seed}")
    return seed


def alarms(seed, repeats, num_data, **fault):
    """How many of so many random linear Gaussian models are called uncalibrated; the last column of x tells the same in each."""
    found = 0
    for repeat in range(repeats):
        with noise.seeded(seed, "repeat", repeat):
            model, _, x = linear_gaussian()
            model.weight[-1] = 1.0
        result = calibration(model, Faulty(model, **fault), template=x, num_data=num_data, seed=noise.derived_seed(seed, repeat))
        found += not result.calibrated
    return found


def binomial_tail(count, n, share):
    """P(R >= count)."""
    return 1 - dist.Binomial(n, torch.tensor(share)).log_prob(torch.arange(float(count))).exp().sum().item()


@pytest.mark.statistical
@pytest.mark.timeout(3600)
def test_posterior_is_called_uncalibrated_no_more_often_than_the_level_says():
    """200 repeats; one chance in 1,000 leads to 1,000 more, of which one chance in 100,000 fails."""
    seed = fresh_seed()
    first = alarms(seed, 200, num_data=300)
    if binomial_tail(first, 200, 0.05) < 1e-3:
        assert binomial_tail(alarms(seed + 1, 1000, num_data=300), 1000, 0.05) >= 1e-5


@pytest.mark.statistical
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_in_95_of_100_repeats(fault):
    assert alarms(fresh_seed(), 100, num_data=1000, **FAULTS[fault]) >= 95
