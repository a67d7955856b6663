"""examples/blur.py, lorenz.py: spectra, bins and correlation integrals made by hand, and quick runs."""

import math

import blur
import lorenz
import pytest
import torch

ROUNDING = 1e-10


# Spectra.


def cosine(across, down, side=16):
    """cos of a plane wave, flat: a sum of squares of side^2 / 2."""
    place = torch.arange(side)
    return torch.cos(2 * math.pi * (across * place[None] + down * place[:, None]) / side).flatten()


def test_a_cosine_has_its_energy_at_its_frequency_and_nowhere_else():
    """3 and 4 periods along the axes of 16 pixels: at (3, 4) and (-3, -4), 64 each, a radius of 5 / 16."""
    spectrum = blur.power(3 * cosine(3, 4)[None])
    assert spectrum[0, 4, 3].item() == pytest.approx(9 * 64) and spectrum[0, -4, -3].item() == pytest.approx(9 * 64)
    assert spectrum.sum().item() == pytest.approx(9 * 128)
    height, radius = blur.rings(spectrum)
    at = height[0] > ROUNDING
    assert radius[at].tolist() == [5 / 16]
    # pairs of whole numbers between 4.5 and 5.5 from the origin: 4 + 8 of squares 25, 8 of 26, 8 of 29
    near = sum(4.5 < math.hypot(a, b) < 5.5 for a in range(-8, 8) for b in range(-8, 8))
    assert near == 28 and height[0][at].item() == pytest.approx(9 * 128 / near)


@pytest.mark.parametrize(("periods", "share"), [((3, 4), 1.0), ((2, 0), 0.0)], ids=["5/16 is high", "2/16 is not"])
def test_high_frequencies_are_those_above_a_quarter_and_zero_does_not_count(periods, share):
    high, whole = blur.energies(blur.power((7 + cosine(*periods))[None]))
    assert whole.item() == pytest.approx(128) and high.item() == pytest.approx(128 * share, abs=ROUNDING)


def test_white_noise_is_as_high_everywhere_as_its_variance():
    """Each |F x|^2 has mean v: a ring's mean over images is v within 5 standard errors, and the high share is that of the frequencies."""
    x = 0.3 * torch.randn(2000, 16 * 16)
    spectrum = blur.power(x)
    height, _ = blur.rings(spectrum)
    assert ((height.mean(0) - 0.09).abs() < 5 * height.std(0) / math.sqrt(2000)).all()
    f = blur.frequencies(16)
    of_frequencies = ((f > 0.25).sum() / (f > 0).sum()).item()
    value, se = blur.ratio(*blur.energies(spectrum), True)
    assert abs(value - of_frequencies) < 5 * se


def test_a_sum_over_frequencies_is_a_sum_of_squares():
    x = torch.randn(3, 12 * 12)
    assert torch.allclose(blur.power(x).sum((1, 2)), x.square().sum(1), rtol=ROUNDING)


def test_independent_pixels_are_flat_whatever_their_variances_and_neighbours_that_share_noise_are_not():
    mean, scale = torch.rand(500, 64), torch.rand(500, 64) + 0.1
    noise = torch.randn(500, 8, 8)
    assert blur.flatness(mean, mean + scale * noise.flatten(1), scale**2) < blur.FLAT
    smooth = (noise + noise.roll(1, -1)) / math.sqrt(2)  # of unit variance still
    assert blur.flatness(mean, mean + scale * smooth.flatten(1), scale**2) > 3 * blur.FLAT


def test_a_linear_model_keeps_the_variance_less_that_of_its_noise():
    """Two waves whose amplitudes are +-a and +-b, independently: variances a^2 n / 2 = 4.5 and b^2 n / 2 = 0.02 of unit directions. Of noise
    0.2^2 = 0.04 the first keeps 4.46, half at each of its two frequencies, the second nothing; with 0.1^2 = 0.01 it keeps 0.01."""
    one, other = (cosine(*periods) / math.sqrt(128) for periods in ((2, 0), (6, 0)))
    a, b = math.sqrt(4.5), math.sqrt(0.02)
    x = torch.stack([5.0 + s * a * one + t * b * other for s in (-1, 1) for t in (-1, 1)])
    wide, narrow = (blur.linear_spectrum(x, 2, scale)[0] for scale in (0.2, 0.1))
    assert wide[0, 0].item() == pytest.approx(25 * 256)
    assert wide[0, 2].item() == wide[0, -2].item() == pytest.approx(4.46 / 2)
    assert wide[0, 6].item() == pytest.approx(0, abs=ROUNDING) and narrow[0, 6].item() == pytest.approx(0.01 / 2)
    assert blur.linear_spectrum(x, 1, 0.1)[0, 0, 6].item() == pytest.approx(0, abs=ROUNDING)  # one latent takes the larger


def test_a_ratio_of_proportional_energies_has_no_error_where_they_are_paired():
    x = torch.tensor([1.0, 2.0, 3.0])
    assert blur.ratio(0.5 * x, x, True) == pytest.approx((0.5, 0.0))
    # each part: mean 2, standard deviation 1, relative error 1 / (2 sqrt 3)
    assert blur.ratio(0.5 * x, x, False) == pytest.approx((0.5, 0.5 * math.sqrt(2) / (2 * math.sqrt(3))))


# Bins.


@pytest.mark.parametrize("scale", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("loc", [-0.3, 0.0, 0.5])
def test_the_bins_of_a_normal_sum_to_one(loc, scale):
    levels = torch.arange(256) / 255
    log_mass = blur.BinnedNormal(torch.tensor(loc), torch.tensor(scale)).log_prob(levels)
    assert torch.logsumexp(log_mass, 0).item() == pytest.approx(0.0, abs=ROUNDING)


def test_a_bin_has_the_mass_of_its_interval_and_a_far_one_a_finite_logarithm():
    """At loc = 0.5 / 255 half the mass is in the bin of 0, whose end that is; the bin of 128 / 255 ends a half bin above and below."""
    half = blur.BinnedNormal(torch.tensor(0.5 / 255), torch.tensor(0.05)).log_prob(torch.tensor(0.0))
    assert half.item() == pytest.approx(math.log(0.5))
    centred = blur.BinnedNormal(torch.tensor(128 / 255), torch.tensor(0.05)).log_prob(torch.tensor(128 / 255))
    assert centred.item() == pytest.approx(math.log(math.erf(0.5 / 255 / 0.05 / math.sqrt(2))))
    far = blur.BinnedNormal(torch.tensor(0.0), torch.tensor(1e-3)).log_prob(torch.tensor([254 / 255, 1.0]))
    # log Phi(-t) = -t^2 / 2 - log(t sqrt(2 pi)) + O(1 / t^2), at the near ends of the two bins
    t = torch.tensor([253.5, 254.5]) / 255 / 1e-3
    assert torch.allclose(far, -t.square() / 2 - torch.log(t * math.sqrt(2 * math.pi)), atol=2e-5)


def test_a_skip_decoder_sees_z_in_each_layer():
    """With every weight from the layer before at zero, what is left of z still arrives."""
    decoder = blur.SkipDecoder(2, [3, 3], 1)
    with torch.no_grad():
        decoder.last.weight[:, :3] = 0
        decoder.last.weight[:, 3:] = torch.tensor([[2.0, -1.0]])
        decoder.last.bias.zero_()
    assert decoder(torch.tensor([[3.0, 1.0]])).item() == pytest.approx(5.0)


@pytest.mark.slow
def test_a_quick_run_adds_the_noise_that_it_says(quick):
    """What samples have above the cut is what means have, plus the pixel variance times the number of such frequencies."""
    record = quick(blur)
    rows = record["rows"]
    assert len(rows) == 7 and {row["data"] for row in rows} == {"fashion-mnist"}
    fixed = {row["likelihood"]: row["scale"] for row in rows if row["space"] == "plain"}
    assert fixed["Normal 0.3"] == pytest.approx(0.3, rel=1e-6) and fixed["Normal 0.05"] == pytest.approx(0.05, rel=1e-6)
    for row in rows:
        noise = torch.tensor(row["spectra"]["samples"]) - torch.tensor(row["spectra"]["means"])
        high = torch.tensor(row["radii"]) > 0.3  # rings of 60 images and 100 frequencies: their mean strays by about 2 %
        assert noise[high].mean().item() == pytest.approx(row["floor"], rel=0.1)


# Lorenz.


def test_the_distance_after_noise_is_a_noncentral_chi():
    """P(|d e + tau xi| < r): SciPy's noncentral chi square with 3 degrees and (d / tau)^2, at (r / tau)^2; and at d = 0 a Maxwell law."""
    from scipy.stats import ncx2

    d, tau = torch.tensor([0.05, 0.5, 2.0, 5.0]), 0.7
    for r in (0.1, 0.5, 3.0):
        exact = torch.tensor(ncx2.cdf((r / tau) ** 2, 3, (d / tau).square().numpy()))
        assert torch.allclose(lorenz.below(d, r, tau), exact, rtol=1e-6, atol=1e-13)
    maxwell = math.erf(1 / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-0.5)  # at r = tau
    assert lorenz.below(torch.tensor(1e-4), tau, tau).item() == pytest.approx(maxwell, rel=1e-6)


def test_a_point_with_noise_has_three_dimensions_below_its_scale():
    """All means in one place: C(r) is a Maxwell law, r^3 (1 - 3 r^2 / 10 tau^2 + ...), tau = sqrt(2) sigma: a slope of 3 less a few per cent."""
    means = torch.randn(200, 3) * 1e-6
    low, high = (0.001, 0.05)
    slope = lorenz.foretold(means, 0.5, (low, high), 6)
    assert 3 - 0.6 * high**2 / 0.5 < slope < 3 + ROUNDING


def test_noise_far_below_the_radii_changes_no_slope():
    """Means on a grid of a line, in steps of 1: between 2.5 and 20.5 noise of 0.01 counts the same pairs."""
    means = torch.stack([torch.arange(100.0), torch.zeros(100), torch.zeros(100)], 1)
    r = torch.logspace(math.log10(2.5), math.log10(20.5), 6)
    share = torch.stack([(torch.pdist(means) < each).double().mean() for each in r])
    by_hand = torch.linalg.lstsq(torch.stack([r.log(), torch.ones(6)], 1), share.log()[:, None]).solution[0, 0]
    assert lorenz.foretold(means, 0.01, (2.5, 20.5), 6) == pytest.approx(by_hand.item(), rel=1e-6)


def test_what_the_networks_see_and_give_is_undone_by_each_other():
    x = torch.tensor([[1.0, -2.0, 30.0]])
    one, other = (lorenz.Rescaled(torch.nn.Identity(), decodes=decodes) for decodes in (False, True))
    assert one(x).tolist()[0] == pytest.approx([0.1, -0.2, 0.65]) and torch.allclose(other(one(x)), x)


@pytest.mark.slow
def test_samples_of_a_quick_run_fill_space_as_the_distances_of_their_means_say(quick):
    """Whatever was learned: the law of the noise is known. Within 5 standard errors."""
    rows = quick(lorenz)["rows"]
    assert rows[0]["name"] == "data" and len(rows) == 8
    samples = [row for row in rows if row["name"] == "samples"]
    assert len(samples) == 2
    for row in samples:
        assert abs(row["small"] - row["foretold"]) < 5 * row["small_se"]
    surface = next(row for row in rows if (row["name"], row["latents"]) == ("means of draws", 2))
    assert surface["small"] < 2 + 3 * surface["small_se"]
