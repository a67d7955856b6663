"""analysis.latents: decoders and codes whose geometry is known in closed form, and labels that mean something or nothing."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import ks_2samp, norm
from sklearn.linear_model import LogisticRegression

from ground_truth import linear_gaussian
from ppvae.analysis import latents
from ppvae.analysis.latents.space import LatentSpace
from ppvae.data import Data
from ppvae.errors import ArgumentError, ProgramError, ShapeError

R2 = math.sqrt(2)


class Decoder:
    """z ~ prior in D dimensions, x | z ~ N(f(z), 0.1^2)."""

    def __init__(self, f=lambda z: z, dim=2, prior=None):
        self.f, self.dim, self.prior = f, dim, prior or dist.Normal(0.0, 1.0)

    def __call__(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior.expand([self.dim]).to_event(1))
            pyro.sample("x", dist.Normal(self.f(z), 0.1).to_event(1), obs=x)


def itself(x, scale=0.1):
    """q(z | x) = N(x, scale^2): a datum is its own code."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x, scale).to_event(1))


# Codes, and the aggregated posterior.


def test_codes_are_the_moments_of_the_posterior():
    model, guide, x = linear_gaussian(num_data=7)
    labels = torch.arange(7)
    found = latents.codes(model, guide, Data.of(x, labels))
    posterior = model.posterior(x)
    assert torch.allclose(found.mean, posterior.loc, atol=1e-12)  # rounding
    assert torch.allclose(found.sd, posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt(), atol=1e-12)
    assert torch.equal(found.labels, labels) and found.site == "z"


def test_moments_without_a_closed_form_are_of_draws():
    """exp of N(log x, 0.2^2), built so that torch knows no mean: mean x exp(0.02), sd mean sqrt(exp(0.04) - 1); 256 draws, 5 standard errors."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x.log(), 0.2).to_event(1), [dist.transforms.ExpTransform()]))

    x = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    found = latents.codes(Decoder(prior=dist.LogNormal(0.0, 1.0)), guide, x)
    mean = x * math.exp(0.02)
    sd = mean * math.sqrt(math.exp(0.04) - 1)
    assert ((found.mean - mean).abs() < 5 * sd / 16).all()
    assert (found.sd / sd - 1).abs().max() < 5 * 1.5 / math.sqrt(2 * 256)  # 1.5: its tail is heavier than a Normal's


def test_distance_from_the_prior_is_that_of_kolmogorov_and_smirnov():
    x = torch.randn(300, 2) * torch.tensor([1.0, 0.3]) + torch.tensor([0.0, 1.0])
    found = latents.aggregated_posterior(Decoder(), itself, x)
    for d in range(2):
        assert found.distance[d] == pytest.approx(ks_2samp(found.draws[:, d], found.prior[:, d]).statistic, abs=1e-12)
    assert found.distance[0] < found.expected < 0.3 < found.distance[1]


def test_mass_is_the_mean_of_the_guides_densities():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    space = LatentSpace(Decoder(), lambda batch: itself(batch, 0.5), x)
    z = torch.tensor([[0.2, 0.1], [4.0, -1.0]])
    each = torch.stack([dist.Normal(one, 0.5).log_prob(z).sum(1) for one in x])
    assert torch.allclose(space.log_mass(z, torch.arange(3)), torch.logsumexp(each, 0) - math.log(3), atol=1e-12)


# Traversals and the grid.


def test_a_traversal_moves_one_dimension_over_quantiles_of_the_prior():
    model, guide, x = linear_gaussian()
    found = latents.traversal(model, guide, x, dimensions=[1], steps=5)
    quantiles = torch.from_numpy(norm.ppf([0.05, 0.275, 0.5, 0.725, 0.95]))
    assert torch.allclose(found.values[0], quantiles, atol=1e-6)  # torch's own inverse of erf
    assert torch.allclose(found.images[0], quantiles[:, None] * model.weight[:, 1] + model.bias, atol=1e-5)
    assert found.z[..., 0].abs().max() == 0


def test_a_traversal_of_a_datum_starts_from_its_code():
    model, guide, x = linear_gaussian()
    found = latents.traversal(model, guide, x, row=2, values=[-1.0, 0.5])
    code = model.posterior(x).loc[2]
    expected = torch.tensor([[[-1.0, code[1]], [0.5, code[1]]], [[code[0], -1.0], [code[0], 0.5]]])
    assert torch.allclose(found.z, expected, atol=1e-12) and found.quantiles is None
    assert torch.allclose(found.images, expected @ model.weight.mT + model.bias, atol=1e-12)


def test_quantiles_of_another_prior_are_its_own():
    x = torch.zeros(3, 2)
    found = latents.prior_grid(Decoder(prior=dist.Normal(3.0, 2.0)), x, steps=3)
    assert torch.allclose(found.values, 3 + 2 * torch.from_numpy(norm.ppf([0.05, 0.5, 0.95])).expand(2, 3), atol=1e-6)


def test_quantiles_of_a_prior_without_a_closed_form_are_of_draws():
    """Exponential of mean 1 as Gamma(1, 1), whose inverse torch lacks: the distribution function at them, within 4 binomial standard errors."""
    found = latents.prior_grid(Decoder(prior=dist.Gamma(1.0, 1.0)), torch.ones(3, 2), steps=5)
    error = (found.quantiles * (1 - found.quantiles) / 4096).sqrt()
    assert ((1 - torch.exp(-found.values) - found.quantiles).abs() < 4 * error).all()


def test_the_grid_has_the_first_dimension_across_and_the_second_up():
    found = latents.prior_grid(Decoder(dim=3), torch.zeros(2, 3), dims=(2, 0), steps=4)
    assert torch.allclose(found.images[1, 3, 2], found.values[0, 3]) and torch.allclose(found.images[1, 3, 0], found.values[1, 1])
    assert found.images[..., 1].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": [2]}, r"site 'z' has dimensions 0\.\.1, got \[2\]"),
        ({"row": 6}, r"row lies in 0\.\.5, got 6"),
        ({"steps": 1}, "steps is a whole number of at least 2, got 1"),
        ({"site": "y"}, "the latent site 'y' is not there"),
    ],
    ids=["dimension", "row", "steps", "site"],
)
def test_what_is_not_there_is_refused(options, message):
    model, guide, x = linear_gaussian()
    with pytest.raises((ArgumentError, ProgramError), match=message):
        latents.traversal(model, guide, x, **options)


def test_values_outside_the_priors_support_are_refused():
    def positive(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(x.log(), 0.1).to_event(1))

    with pytest.raises(ArgumentError, match="4 values lie outside the support of the latent site"):
        latents.traversal(Decoder(prior=dist.LogNormal(0.0, 1.0)), positive, torch.ones(2, 2), row=0, values=[-1.0, -2.0])


# Interpolation.


def test_the_middle_of_a_straight_path_is_the_mean_of_its_ends():
    model, guide, x = linear_gaussian(num_data=8)
    found = latents.interpolate(model, guide, x, [(0, 5), (3, 1)], kinds=["straight"], steps=5)
    images = found.images[0]
    assert torch.allclose(images[:, 2], (images[:, 0] + images[:, -1]) / 2, atol=1e-12)
    codes = model.posterior(x).loc
    assert torch.allclose(found.z[0, 1, 0], codes[3], atol=1e-12) and torch.allclose(found.z[0, 0, -1], codes[5], atol=1e-12)
    length = ((codes[5] - codes[0]) @ model.weight.mT).norm() / 4
    assert torch.allclose(found.step_lengths[0, 0], length.expand(4), atol=1e-12)


def test_a_spherical_path_turns_evenly_and_its_norm_goes_evenly():
    t = torch.linspace(0, 1, 5)
    found = latents.slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), t)
    assert torch.allclose(found.norm(dim=1), 2 + 2 * t, atol=1e-12)
    assert torch.allclose(torch.atan2(found[:, 1], found[:, 0]), t * math.pi / 2, atol=1e-12)


@pytest.mark.parametrize("other", [[-3.0, 0.0], [0.0, 0.0], [4.0, 0.0]], ids=["opposite", "origin", "same direction"])
def test_codes_without_an_angle_between_them_are_joined_straight(other):
    found = latents.slerp(torch.tensor([1.0, 0.0]), torch.tensor(other), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0], [(1 + other[0]) / 2, 0.0], other]), atol=1e-12)


def ring(n=240, radius=3.0):
    angle = 2 * math.pi * torch.arange(n) / n
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def test_a_density_path_goes_around_the_hole_that_a_straight_path_crosses():
    """Ring of radius 3, q of scale 0.1: the middle has log mass -(3 / 0.1)^2 / 2 + 2 log 10 - log 2 pi, exactly; half the ring is 3 pi long."""
    found = latents.interpolate(Decoder(), itself, ring(), [(0, 120)], kinds=["straight", "density"], steps=41)
    assert found.log_mass[0, 0, 20] == pytest.approx(-450 + 2 * math.log(10) - math.log(2 * math.pi), abs=1e-6)
    radius = found.z[1, 0].norm(dim=1)
    assert radius.min() > 2.9 and radius.max() < 3.1  # within a standard deviation of the codes
    assert found.lowest_mass[1, 0] > -5
    assert found.step_lengths[1, 0].sum() == pytest.approx(3 * math.pi, rel=0.02)
    assert found.step_lengths[1, 0].max() / found.step_lengths[1, 0].min() < 1.1


def test_every_path_has_the_ends_that_were_asked_for():
    x = ring()
    found = latents.interpolate(Decoder(), itself, x, [(10, 50), (200, 3)], steps=7)
    assert found.kinds == ("straight", "spherical", "density")
    for path in found.z:
        assert torch.allclose(path[:, 0], x[[10, 200]], atol=1e-12) and torch.allclose(path[:, -1], x[[50, 3]], atol=1e-12)


def test_a_path_between_far_clusters_is_found():
    """Ten nearest neighbours join no two of them."""
    x = torch.cat([torch.randn(30, 2) * 0.1, torch.randn(30, 2) * 0.1 + 5])
    found = latents.interpolate(Decoder(), itself, x, [(0, 40)], kinds=["density"], steps=9)
    assert torch.allclose(found.z[0, 0, [0, -1]], x[[0, 40]], atol=1e-12) and bool(torch.isfinite(found.log_mass).all())


def test_codes_that_coincide_are_joined():
    x = torch.cat([torch.zeros(30, 2), torch.ones(30, 2)])
    found = latents.interpolate(Decoder(), itself, x, [(0, 59), (0, 1)], kinds=["density"], steps=3)
    assert torch.allclose(found.z[0, 0], torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]), atol=1e-9)
    assert torch.equal(found.z[0, 1], torch.zeros(3, 2))


def test_codes_can_be_the_ends():
    ends = torch.tensor([[[0.0, 1.0], [2.0, 1.0]]])
    found = latents.interpolate(Decoder(), itself, ring(), ends, kinds=["straight"], steps=3)
    assert torch.equal(found.images[0, 0], torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])) and found.ends.tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("ends", "options", "message"),
    [
        ([(0, 240)], {}, r"rows lie in 0\.\.239, got \[\[0, 240\]\]"),
        ([(0, 1, 2)], {}, r"ends are pairs of rows \(P, 2\) or codes \(P, 2, 2\), got \(1, 3\)"),
        ([(0, 1)], {"kinds": ["curved"]}, r"kinds are among .*, got 'curved'"),
    ],
    ids=["row", "shape", "kind"],
)
def test_ends_and_kinds_that_are_not_there_are_refused(ends, options, message):
    with pytest.raises((ArgumentError, ShapeError), match=message):
        latents.interpolate(Decoder(), itself, ring(), ends, **options)


def test_a_linear_decoder_is_even():
    model, guide, x = linear_gaussian(num_data=10)
    assert torch.allclose(latents.continuity(model, guide, x, num_paths=5).ratio, torch.ones(5), atol=1e-9)


def test_a_jump_of_the_decoder_is_its_size_over_a_step():
    """f(z) = z + 5 where z > 0: a path from a to b in 10 steps has steps |b - a| / 10, and one of 5 + that if it crosses 0 upwards."""
    x = torch.tensor([[-1.0], [-2.0], [1.0], [3.0]])
    found = latents.continuity(Decoder(lambda z: z + 5 * (z > 0), dim=1), itself, x, num_paths=12, steps=11)
    a, b = x[found.ends[:, 0], 0], x[found.ends[:, 1], 0]
    step = (b - a) / 10
    jump = 5 * (b.sign() - a.sign()) / 2
    assert jump.abs().max() == 5
    assert torch.allclose(found.ratio, (step + jump).abs() / step.abs(), atol=1e-9)


# Attributes.


def shifted(n, shift=2.0, dim=3):
    """Class 1 lies ``shift`` further along the first coordinate than class 0, and nowhere else."""
    labels = torch.arange(n) % 2
    x = torch.randn(n, dim)
    x[:, 0] += shift * labels
    return x, labels


def test_an_attribute_is_the_difference_of_class_means():
    x, labels = shifted(400)
    found = latents.attribute_vector(Decoder(dim=3), itself, x, labels, 1)
    one, other = x[labels == 1], x[labels == 0]
    assert torch.allclose(found.vector, one.mean(0) - other.mean(0), atol=1e-12)
    assert torch.allclose(found.se, (one.var(0) / 200 + other.var(0) / 200).sqrt(), atol=1e-12)
    assert ((found.vector - torch.tensor([2.0, 0.0, 0.0])).abs() < 4 * found.se).all()


def test_labels_may_be_words_and_several():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    found = latents.attribute_vector(Decoder(), itself, x, ["a", "b", "c", "d"], ["a", "b"], "c")
    assert found.vector.tolist() == [2.0, -1.0] and (found.positive, found.negative) == ("a, b", "c")


@pytest.mark.parametrize(
    ("labels", "positive", "negative", "message"),
    [
        ([0, 0, 1, 1], 2, None, r"no data have the positive label \[2\]"),
        ([0, 0, 1, 1], 1, 1, r"positive or negative, and \[1\] came as both"),
        ([0, 0, 1], 1, None, r"labels are one a datum, \(4,\), got 3"),
        (None, 1, None, "needed a label for each datum"),
    ],
    ids=["no such label", "both", "too few", "none"],
)
def test_labels_that_make_no_attribute_are_refused(labels, positive, negative, message):
    with pytest.raises((ArgumentError, ShapeError), match=message):
        latents.attribute_vector(Decoder(), itself, torch.randn(4, 2), labels, positive, negative)


def test_an_edit_moves_the_code_by_the_strength():
    model, guide, x = linear_gaussian()
    direction = torch.tensor([1.0, -2.0])
    found = latents.edit(model, guide, x, direction, [0.0, 1.5])
    code = model.posterior(x).loc
    assert torch.allclose(found.images[:, 0], code @ model.weight.mT + model.bias, atol=1e-12)
    assert torch.allclose(found.images[:, 1] - found.images[:, 0], (1.5 * model.weight @ direction).expand(6, -1), atol=1e-12)
    assert torch.equal(found.data, x)


def test_the_effect_of_an_attribute_is_its_length_along_the_scores():
    """Scores are the coordinates, the decoder is the identity: each changes by exactly alpha times the vector's coordinate."""
    (x, labels), (new, new_labels) = shifted(300), shifted(80)
    scorer = lambda images: {"first": images[:, 0], "second": images[:, 1]}  # noqa: E731
    found = latents.attribute_effect(
        Decoder(dim=3), itself, x, new, 1, train_labels=labels, held_out_labels=new_labels, strength=0.5, scorer=scorer, num_permutations=99
    )
    vector = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    assert found.names == ("first", "second") and found.pointwise.shape == (40, 2)
    assert torch.allclose(found.change, 0.5 * vector[:2], atol=1e-12)
    assert found.p_value == 1 / 100  # a difference of 2, where permutations spread by 0.15
    assert found.permuted.std().item() == pytest.approx(0.5 * 2 * x[:, 0].std().item() / math.sqrt(300), rel=4 / math.sqrt(2 * 99))


def test_a_classifier_sees_the_attribute_and_its_loss_elsewhere():
    (x, labels), (new, new_labels) = shifted(600, shift=4.0), shifted(100, shift=4.0)
    found = latents.attribute_effect(
        Decoder(dim=3), itself, x, new, 1, train_labels=labels, held_out_labels=new_labels, num_permutations=19
    )
    assert found.names == ("1", "0") and found.accuracy > 0.95  # two Normals 4 apart: 0.977
    # logits 4 (x - 2) ~ N(8, 16) and N(-8, 16), mean probabilities 0.966 and 0.034; the fit and 50 data leave 0.06
    assert found.change[0] == pytest.approx(0.932, abs=0.06) and found.change.sum() == pytest.approx(0, abs=1e-12)
    assert found.p_value == 0.05


def test_labels_without_meaning_have_no_effect():
    """p <= 0.05 in 5 % of 20 repeats: more than 4 have a chance of 0.26 %. A classifier fitted to the vector's own data would fail this."""
    small = 0
    for seed in range(20):
        torch.manual_seed(seed)
        x, new = torch.randn(60, 8), torch.randn(40, 8)
        labels, new_labels = torch.randint(0, 2, (60,)), torch.randint(0, 2, (40,))
        found = latents.attribute_effect(
            Decoder(dim=8), itself, x, new, 1, train_labels=labels, held_out_labels=new_labels, num_permutations=19, seed=seed
        )
        small += found.p_value <= 0.05
    assert small <= 4


def test_a_scorer_that_gives_something_else_is_refused():
    x, labels = shifted(20)
    with pytest.raises(ShapeError, match=r"a scorer gives one number a datum, \(10,\), got \(10, 3\)"):
        latents.attribute_effect(
            Decoder(dim=3), itself, x, x, 1, train_labels=labels, held_out_labels=labels, scorer=lambda images: images, num_permutations=3
        )


def test_the_linear_classifier_is_that_of_scikit_learn():
    x = torch.randn(200, 4)
    labels = (x[:, 0] + 0.5 * torch.randn(200) > 0).long() + 2 * (x[:, 1] > 0.5).long()
    found = latents.discriminant(x, labels.tolist())
    standard = ((x - found.loc) / found.scale).numpy()
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=2000).fit(standard, labels.numpy())
    assert torch.allclose(found(x), torch.from_numpy(peer.predict_proba(standard)), atol=1e-5)  # both stop short of the optimum
    assert found.accuracy(x, labels.tolist()) == pytest.approx(peer.score(standard, labels.numpy()))


# Averages, origin, completeness.


def test_a_linear_decoder_gives_class_means_of_reconstructions():
    model, guide, x = linear_gaussian(num_data=9)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 5, 5])
    found = latents.average_images(model, guide, x, labels)
    code = model.posterior(x).loc
    expected = torch.stack([code[labels == one].mean(0) for one in (0, 1, 5)]) @ model.weight.mT + model.bias
    means = torch.stack([x[labels == one].mean(0) for one in (0, 1, 5)])
    assert torch.allclose(found.decoded, expected, atol=1e-12) and torch.allclose(found.data, means, atol=1e-12)
    assert torch.allclose(found.distance, (expected - means).norm(dim=1), atol=1e-12)
    assert found.labels == (0, 1, 5) and found.count.tolist() == [3, 4, 2]


def test_the_origin_of_a_linear_decoder_is_its_bias():
    model, _, x = linear_gaussian(num_data=300)
    found = latents.origin(model, x, num_nearest=3)
    distance = (x - model.bias).norm(dim=1).sort()
    assert torch.allclose(found.image, model.bias, atol=1e-12)
    assert found.rows.tolist() == distance.indices[:3].tolist() and torch.allclose(found.distance, distance.values[:3], atol=1e-12)
    assert found.distance_to_mean == pytest.approx((x.mean(0) - model.bias).norm().item(), abs=1e-12)
    assert torch.equal(found.nearest, x[found.rows])


def near_one(x):
    return torch.exp(-(x[:, 0] - 1).square())


@pytest.mark.parametrize(("f", "share"), [(lambda z: 1 + 0 * z, 1.0), (lambda z: torch.where(z > 0, 1.0, -5.0), 0.5)], ids=["all", "half"])
def test_completeness_is_the_share_of_the_prior_that_lands_on_the_data(f, share):
    """Confidence 1 at what the data are spread around: exactly all of the prior, or its upper half within 4 binomial standard errors."""
    model, x = Decoder(f, dim=1), 1 + 0.1 * torch.randn(200, 1)
    found = latents.completeness(model, x[:100], x[100:], classifier=near_one, num_draws=1500)
    assert abs(found.share - share) <= 4 * math.sqrt(share * (1 - share) / 1500)
    assert found.share_se == pytest.approx(math.sqrt(found.share * (1 - found.share) / 1500))
    assert 0.95 <= found.pass_rate < 0.97
    assert found.interval[1] == 1.0 if share == 1.0 else found.interval[0] < found.share < found.interval[1]
    if share == 1.0:
        assert found.interval[0] == pytest.approx(0.025 ** (1 / 1500))


def test_distances_are_to_the_nearest_of_equally_many_data():
    x = torch.cat([torch.full((40, 1), 1.0), torch.full((10, 1), 4.0)])
    found = latents.completeness(Decoder(lambda z: 3 + 0 * z, dim=1), x[:40], x[40:], classifier=near_one, num_draws=5)
    assert torch.allclose(found.distance, torch.ones(5)) and torch.allclose(found.held_out_distance, torch.full((10,), 3.0))


def test_a_linear_classifier_accepts_what_lies_far_out_on_either_side():
    """Classes around -3 and 3; a decoder of +-3 is accepted, one of 0, where they are equally likely, is not."""
    labels = torch.arange(300) % 2
    data = Data.of(3.0 * (2 * labels[:, None] - 1) + 0.3 * torch.randn(300, 1), labels)
    train, held_out = data[:200], data[200:]
    sure, unsure = (
        latents.completeness(Decoder(f, dim=1), train, held_out, num_draws=200) for f in (lambda z: 4 * z.sign(), lambda z: 0 * z)
    )
    assert (sure.share, unsure.share) == (1.0, 0.0) and sure.accuracy == 1.0
    assert torch.allclose(unsure.confidence, torch.tensor(0.5), atol=0.1)


# Any pair.


class Hierarchy:
    """kind ~ Bernoulli, w ~ N(0, 1) in a plate of 3 inside each datum, z ~ N(0, 1); x = z + kind + sum of w, y = (z, w)."""

    def __call__(self, batch):
        x, y = batch
        with pyro.plate("data", len(x), dim=-1):
            kind = pyro.sample("kind", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("parts", 3, dim=-2):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + kind + w.sum(-2), 0.1), obs=x)
            pyro.sample("y", dist.Normal(torch.stack([z, w[..., 0, :]], -1), 0.1).to_event(1), obs=y)

    def guide(self, batch):
        x, y = batch
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("kind", dist.Bernoulli(0.5))
            pyro.sample("z", dist.Normal(y[..., 0], 0.1))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("w", dist.Normal(torch.arange(3.0)[:, None] + y[..., 1], 0.1))


BATCH = (torch.randn(5), torch.randn(5, 2))


def test_a_plate_inside_a_datum_is_part_of_its_code():
    pair = Hierarchy()
    found = latents.codes(pair, pair.guide, BATCH, site="w")
    assert torch.allclose(found.mean, BATCH[1][:, 1:] + torch.arange(3.0))
    moved = latents.traversal(pair, pair.guide, BATCH, site="w", observed="x", row=1, values=[0.0, 2.0])
    assert moved.images.shape == (3, 2)
    # the other latents are the same draws throughout: x moves by exactly what w moves
    assert torch.allclose(moved.images[:, 1] - moved.images[:, 0], torch.full((3,), 2.0), atol=1e-12)


def test_the_mass_of_codes_with_a_plate_sums_over_it():
    pair = Hierarchy()
    space = LatentSpace(pair, pair.guide, BATCH, site="w", observed="x")
    codes, _ = space.codes()
    each = dist.Normal(codes, 0.1).log_prob(torch.ones(2, 1, 3)).sum(-1)
    assert torch.allclose(space.log_mass(torch.ones(2, 3), torch.arange(5)), torch.logsumexp(each, -1) - math.log(5), atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": "x"}, "needed one continuous latent site in the data plate, or the name of one, and the model has 2"),
        ({"site": "z"}, "needed one observed site in the data plate, or the name of one, and the model has 2"),
        ({"site": "kind", "observed": "x"}, "the latent site 'kind' is discrete"),
    ],
    ids=["several latents", "several observed", "discrete"],
)
def test_a_site_that_is_not_plain_must_be_named(options, message):
    pair = Hierarchy()
    with pytest.raises(ProgramError, match=message):
        latents.traversal(pair, pair.guide, BATCH, **options)


def test_nothing_of_the_callers_is_touched_and_the_seed_rules_all():
    x, labels = shifted(60)
    state = torch.get_rng_state()

    def all_of(seed):
        paths = latents.interpolate(Decoder(dim=3), itself, x, [(0, 1)], num_codes=20, steps=3, seed=seed)
        draws = latents.aggregated_posterior(Decoder(dim=3), itself, x, seed=seed).draws
        effect = latents.attribute_effect(
            Decoder(dim=3), itself, x, x, 1, train_labels=labels, held_out_labels=labels, num_permutations=9, seed=seed
        )
        return torch.cat([paths.log_mass.ravel(), draws.ravel(), effect.permuted])

    assert torch.equal(all_of(1), all_of(1)) and not torch.equal(all_of(1), all_of(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "begins"),
    [
        (lambda x, y: latents.codes(Decoder(dim=3), itself, x), "codes at 'z': 3 of 3 dimensions vary with the data"),
        (lambda x, y: latents.traversal(Decoder(dim=3), itself, x), "traversal of 3 dimensions of 'z' from the prior's mean"),
        (lambda x, y: latents.prior_grid(Decoder(dim=3), x, steps=2), "decoded prior over z[0] and z[1]: 2 quantiles each"),
        (lambda x, y: latents.interpolate(Decoder(dim=3), itself, x, [(0, 1)]), "lowest log mass along 1 path of 'z', mean: straight"),
        (lambda x, y: latents.continuity(Decoder(dim=3), itself, x), "largest decoder step 1.00 times the median one"),
        (lambda x, y: latents.attribute_vector(Decoder(dim=3), itself, x, y, 1), "'1' less 'others' at 'z': length"),
        (lambda x, y: latents.average_images(Decoder(dim=3), itself, x, y), "decoded mean codes of 2 classes lie 0.00 from"),
        (lambda x, y: latents.origin(Decoder(dim=3), x), "the decoded origin of 'z' lies"),
        (lambda x, y: latents.aggregated_posterior(Decoder(dim=3), itself, x), "aggregated posterior of 'z': "),
        (lambda x, y: latents.completeness(Decoder(dim=3), x, x, labels=y), ""),
    ],
    ids=["codes", "traversal", "grid", "interpolate", "continuity", "vector", "averages", "origin", "aggregated", "completeness"],
)
def test_a_result_tells_itself_in_a_sentence_and_in_lists(make, begins):
    found = make(*shifted(40))
    assert str(found).startswith(begins) and "tensors" in str(found)
    record = found.as_dict()
    assert record["source"]["seed"] == 0 and all(not isinstance(value, torch.Tensor) for value in record.values())
