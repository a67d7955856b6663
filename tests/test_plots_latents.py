"""Figures of latent spaces and measurements: what is drawn is what was found; and examples/pictures.py, run quickly."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from ground_truth import linear_gaussian
from ppvae import analysis
from ppvae.analysis import latents, plots
from ppvae.analysis.plots.mosaic import as_images, mosaic
from ppvae.errors import DataError, PpvaeError, ShapeError
from ppvae.importance import log_mean_exp
from ppvae.stream import log_weights

SHAPE = (2, 3)


@pytest.fixture
def pair():
    """A linear decoder of 2 x 3 pixels with 5 latents, its exact posterior, 40 data of three labels."""
    return linear_gaussian(num_data=40, data_dim=6, latent_dim=5)


@pytest.fixture
def labels():
    return torch.arange(40) % 3


def words(axes):
    return [text.get_text() for text in axes.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def drawn_ticks(axis):
    """Labels within the axis; matplotlib holds more than it draws."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def cell(axes, row, column, shape=SHAPE):
    """One image of a mosaic without wider gutters, a value a pixel."""
    zoom = math.ceil(48 / max(shape))
    height, width = shape[0] * zoom, shape[1] * zoom
    tile = np.ma.filled(axes.images[0].get_array(), np.nan)
    top, left = row * (height + plots.GUTTER), column * (width + plots.GUTTER)
    return tile[top : top + height : zoom, left : left + width : zoom]


# Mosaics.


def test_a_mosaic_holds_every_image_and_tells_where_it_is():
    images = np.arange(2 * 3 * 4).reshape(2, 3, 2, 2) / 24
    found, xs, ys = mosaic(images, after_rows=[0], after_columns=[1])
    for i in range(2):
        for j in range(3):
            y, x = ys[i], xs[j]
            np.testing.assert_array_equal(found[[int(y) - 20, int(y) + 20]][:, [int(x) - 20, int(x) + 20]], images[i, j])
    assert (np.diff(xs) == [48 + plots.GUTTER, 48 + 4 * plots.GUTTER]).all() and np.diff(ys) == 48 + 4 * plots.GUTTER


def test_an_event_of_one_channel_is_an_image_and_a_vector_a_strip():
    assert as_images(np.zeros((4, 1, 5, 7)), 1, None).shape == (4, 5, 7)
    strip = as_images(np.arange(12.0).reshape(2, 6), 1, None)
    assert strip.shape[0] == 2 and strip.shape[2] == 6 and (strip == np.arange(12.0).reshape(2, 1, 6)).all()
    with pytest.raises(DataError, match="images of 3 x 3 need 9 numbers a row, got 8"):
        as_images(np.zeros((2, 8)), 1, (3, 3))


# Where the data lie.


def test_a_map_in_two_dimensions_shows_the_codes_and_names_the_labels_at_their_medians(labels):
    points = torch.randn(40, 2) + 10 * torch.stack([labels, labels.square()], 1)
    figure = plots.latent_map(points, labels)
    (axes,) = figure.axes
    drawn = axes.collections[0].get_offsets()
    assert {tuple(one) for one in np.asarray(drawn)} == {tuple(one) for one in points.numpy()}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "z[1]") and words(axes) == ["0", "1", "2"]
    assert axes.texts[2].get_position() == pytest.approx(np.median(points[labels == 2].numpy(), axis=0))


def test_a_map_of_more_dimensions_says_which_plane_it_is():
    points = torch.randn(500, 4) * torch.tensor([0.1, 3.0, 0.1, 1.0])
    share = 100 * points.numpy().var(0)[1] / points.numpy().var(0).sum()  # the axes are those of the coordinates, up to 500 data
    (axes,) = plots.latent_map(points).axes
    assert axes.get_xlabel() == f"first principal axis of z ({share:.0f} % of variance)"
    assert np.asarray(axes.collections[0].get_offsets()).var(0) == pytest.approx([9.0, 1.0], rel=5 * math.sqrt(2 / 500))
    (axes,) = plots.latent_map(points, principal=False).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[1], varies most", "z[3], next")


def test_names_on_a_map_do_not_lie_over_each_other(labels):
    points = torch.randn(40, 2)  # all medians near the middle
    figure = plots.latent_map(points, [("pullover", "coat", "shirt")[i] for i in labels])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_more_than_ten_labels_are_a_scale():
    figure = plots.latent_map(torch.randn(30, 2), torch.arange(30))
    assert figure.axes[1].get_ylabel() == "label" and sorted(figure.axes[0].collections[0].get_array()) == list(range(30))


def test_a_map_needs_a_label_each():
    with pytest.raises(ShapeError, match=r"codes \(5, 2\) and labels: 4"):
        plots.latent_map(torch.zeros(5, 2), [0, 1, 2, 3])


def test_the_aggregated_posterior_is_shown_dimension_by_dimension_the_most_different_first(pair):
    model, guide, x = pair
    found = latents.aggregated_posterior(model, guide, x)
    shifted = replace(found, draws=found.draws + torch.tensor([0, 0, 9.0, 0, 0]), distance=torch.tensor([0.1, 0.2, 1.0, 0.3, 0.0]))
    figure = plots.aggregated_posterior(shifted)
    assert [axes.get_title() for axes in figure.axes[1:]] == ["z[2]  1.00", "z[3]  0.30", "z[1]  0.20", "z[0]  0.10", "z[4]  0.00"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("z[2]", "z[3]")
    assert figure.axes[1].title.get_weight() == "bold" and figure.axes[4].title.get_weight() == "normal"  # chance: 0.304


def usage(**sites):
    """Of the given KL by site; a unit is active where its KL is above 0.1."""
    kl = {name: torch.tensor(values) for name, values in sites.items()}
    variance = {name: torch.where(value > 0.1, 1.0, 0.0) for name, value in kl.items()}
    source = analysis.Provenance({"name": "tensors"}, "counting", 0)
    sums = {name: value.sum() for name, value in kl.items()}
    return analysis.LatentUsage(sums, sums, kl, variance, torch.zeros(3), 0.0, 0.0, 0.0, 3, source)


def test_kl_by_dimension_is_sorted_and_in_nats():
    (axes,) = plots.kl_per_dimension(usage(z=[0.5, 0.01, 2.0])).axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 0.5, 0.01] and ticks(axes.xaxis) == ["2", "0", "1"]
    assert axes.get_ylabel() == "KL, nats per datum" and words(axes) == ["sum 2.51 nats"]
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors[0] == colors[1] != colors[2]


def test_each_site_has_its_panel_and_none_is_refused():
    assert len(plots.kl_per_dimension(usage(z=[1.0], w=[2.0, 3.0])).axes) == 2
    with pytest.raises(DataError, match="guide and prior do not factorise"):
        plots.kl_per_dimension(usage())


# Moves.


def test_the_grid_has_the_lowest_quantiles_at_the_lower_left():
    images = np.arange(9 * 6).reshape(3, 3, *SHAPE) / 54
    (axes,) = plots.prior_grid(images, [0.05, 0.5, 0.95]).axes
    np.testing.assert_array_equal(cell(axes, 2, 0), images[0, 0])
    np.testing.assert_array_equal(cell(axes, 0, 2), images[2, 2])
    np.testing.assert_array_equal(cell(axes, 2, 1), images[0, 1])
    assert ticks(axes.xaxis) == ["0.05", "0.5", "0.95"] and axes.get_ylabel() == "prior quantile of z[1]"
    assert axes.get_yticks()[0] > axes.get_yticks()[-1]  # rows are counted from above


def test_traversals_have_a_row_a_dimension(pair):
    model, guide, x = pair
    found = latents.traversal(model, guide, x, dimensions=[3, 1], steps=4)
    axes = plots.traversals(found, SHAPE).axes[0]
    np.testing.assert_array_equal(cell(axes, 1, 2), found.images[1, 2].reshape(SHAPE).numpy())
    assert ticks(axes.yaxis) == ["z[3]", "z[1]"] and axes.get_xlabel() == "quantile of the prior; others as in the prior's mean"


def test_interpolations_show_each_kind_and_what_it_costs(pair):
    model, guide, x = pair
    found = latents.interpolate(model, guide, x, [(0, 1), (2, 3)], steps=4)
    panels = plots.interpolations(found, SHAPE).axes
    axes, (mass, steps) = panels[0], [one for one in panels if one.get_title()]
    assert ticks(axes.yaxis) == ["straight", "spherical", "density"] * 2
    np.testing.assert_array_equal(cell(axes, 2, 3), found.images[2, 0, 3].reshape(SHAPE).numpy())
    assert mass.get_title() == "log mass, nats" and steps.get_title() == "decoder step"
    for i in range(3):
        np.testing.assert_allclose(mass.lines[i].get_ydata(), found.log_mass[i].mean(0))


def test_attribute_edits_stand_beside_their_data(pair):
    model, guide, x = pair
    found = latents.edit(model, guide, x[:3], torch.ones(5), [-1.0, 0.0, 2.0])
    axes = plots.attribute_edits(found, SHAPE).axes[0]
    np.testing.assert_array_equal(cell(axes, 1, 0), x[1].reshape(SHAPE).numpy())
    assert ticks(axes.xaxis) == ["x", "−1", "0", "+2"] and axes.get_xlabel() == "strength of 'a direction'"


def test_averages_stand_above_each_other_with_their_distance(pair, labels):
    model, guide, x = pair
    found = latents.average_images(model, guide, x, labels)
    axes = plots.averages(found, SHAPE).axes[0]
    np.testing.assert_array_equal(cell(axes, 1, 2), found.decoded[2].reshape(SHAPE).numpy())
    assert ticks(axes.xaxis) == [f"{i}\n{found.distance[i]:.1f}" for i in range(3)]
    assert ticks(plots.averages(found, SHAPE, ["a", "b", "long"]).axes[0].xaxis)[2] == f"long  {found.distance[2]:.1f}"


def test_the_origin_tells_every_distance(pair):
    model, _, x = pair
    found = latents.origin(model, x, num_nearest=2)
    told = ticks(plots.origin(found, SHAPE).axes[0].xaxis)
    assert told[1:] == [
        f"mean of x\n{found.distance_to_mean:.2f}",
        *[f"{r}\n{d:.2f}" for r, d in zip(found.rows, found.distance, strict=True)],
    ]


# Measures.


def test_bounds_are_means_over_disjoint_groups_of_the_same_weights(pair):
    model, _, x = pair

    def prior(batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(5), 1.0).to_event(1))

    found = analysis.bounds(model, prior, x, num_particles=[1, 4, 100], seed=3)
    weights = log_weights(model, prior, x, num_particles=100, seed=3)
    assert torch.allclose(found.pointwise[0], weights.mean(0), atol=1e-9)
    assert torch.allclose(found.pointwise[1], log_mean_exp(weights.reshape(25, 4, 40), 1).mean(0), atol=1e-9)
    assert torch.allclose(found.pointwise[2], log_mean_exp(weights), atol=1e-9)
    assert torch.allclose(found.pointwise_se[0], weights.std(0) / 10, atol=1e-9)
    assert (found.pointwise.diff(dim=0) >= -1e-9).all()  # Jensen, group by group: each K divides the next


def test_bounds_of_the_exact_posterior_are_log_p(pair):
    model, guide, x = pair
    found = analysis.bounds(model, guide, x, num_particles=[1, 3], num_drawn=10)
    assert torch.allclose(found.pointwise, model.log_evidence(x).expand(2, -1), atol=1e-9) and found.pointwise_se.max() < 1e-9
    (axes,) = plots.bounds_against_particles(found).axes
    assert list(axes.lines[0].get_xdata()) == [1, 3]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([model.log_evidence(x).mean().item()] * 2, abs=1e-9)
    assert axes.get_ylabel() == "bound on log p(x), nats per datum" and axes.get_xscale() == "log"


@pytest.mark.parametrize("particles", [[], [4, 2], [2, 2], [0]], ids=["none", "falling", "twice", "zero"])
def test_numbers_of_particles_increase(pair, particles):
    with pytest.raises(PpvaeError, match="num_particles"):
        analysis.bounds(*pair, num_particles=particles)


def test_k_hat_is_divided_at_its_threshold(pair):
    model, guide, x = pair
    found = analysis.log_likelihood(model, guide, x, num_particles=100, second=None)
    k_hat = torch.cat([torch.full((10,), -torch.inf), torch.linspace(0.0, 0.45, 20), torch.linspace(0.55, 2.0, 10)])
    figure = plots.k_hat_histogram(replace(found, k_hat=k_hat))
    (axes,) = figure.axes
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert found.threshold == pytest.approx(0.5) and axes.get_xlabel() == "k-hat (threshold 0.50)"
    assert legend == ["sound: 50.0 %", "not to be trusted: 25.0 %", "constant weights: 25.0 %"]
    sound, unsound = axes.containers
    assert (sum(bar.get_height() for bar in sound), sum(bar.get_height() for bar in unsound)) == (20, 10)
    assert all(bar.get_x() >= 0.5 - 1e-9 for bar in unsound if bar.get_height())


def test_no_k_hat_is_refused(pair):
    model, guide, x = pair
    with pytest.raises(DataError, match="no k-hat below 25 particles"):
        plots.k_hat_histogram(analysis.log_likelihood(model, guide, x, num_particles=10, second=None))


def test_an_effect_shows_every_score_and_the_permutations(pair, labels):
    model, guide, x = pair
    found = latents.attribute_effect(model, guide, x, x, 1, train_labels=labels, held_out_labels=labels, num_permutations=19)
    bars, below = plots.attribute_effect(found).axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(found.change.tolist())
    assert ticks(bars.yaxis) == ["1", "0", "2"]
    assert sum(bar.get_height() for bar in below.patches) == 19
    assert below.get_legend().get_texts()[1].get_text() == f"as they are: p = {found.p_value:.2g}"


def test_completeness_draws_the_threshold_and_its_share(pair, labels):
    model, _, x = pair
    found = latents.completeness(model, x, x, labels=labels, num_draws=50)
    confidence, _ = plots.completeness(found).axes
    assert confidence.get_title() == f"accepted: {100 * found.share:.1f} ± {100 * found.share_se:.1f} %"
    assert confidence.lines[0].get_xdata()[0] == found.threshold


def test_continuity_marks_the_least_even_path(pair):
    model, guide, x = pair
    found = latents.continuity(model, guide, x, num_paths=4, steps=5)
    lengths = torch.tensor([[1.0, 1, 1, 1], [1, 1, 4, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    (axes,) = plots.continuity(replace(found, step_lengths=lengths, ratio=torch.tensor([1.0, 4, 1, 1]))).axes
    assert axes.get_legend().get_texts()[0].get_text().startswith("largest: 4.0, rows ")
    np.testing.assert_array_equal(axes.lines[4].get_ydata(), [1, 1, 4, 1])


# The one style.

CONTRACT = """latent_map prior_grid traversals interpolations attribute_edits averages origin aggregated_posterior kl_per_dimension
bounds_against_particles k_hat_histogram attribute_effect completeness continuity training_curves reconstructions samples image_grid
gap_decomposition rank_ecdf coverage_curve posterior_and_guide k_hat_by_label worst_data save"""


@pytest.mark.parametrize("name", CONTRACT.split())
def test_every_figure_is_reached_from_plots(name):
    assert callable(getattr(plots, name)) and name in plots.__all__


def all_figures(pair, labels):
    model, guide, x = pair
    codes = latents.codes(model, guide, x)
    grid = latents.prior_grid(model, x, steps=3)
    return [
        plots.latent_map(codes, labels),
        plots.prior_grid(grid.images, grid.quantiles, SHAPE),
        plots.traversals(latents.traversal(model, guide, x), SHAPE),
        plots.interpolations(latents.interpolate(model, guide, x, [(0, 1)]), SHAPE),
        plots.attribute_edits(latents.edit(model, guide, x[:2], torch.ones(5)), SHAPE),
        plots.averages(latents.average_images(model, guide, x, labels), SHAPE),
        plots.averages(latents.average_images(model, guide, x, labels), SHAPE, ["pullover", "T-shirt", "sneaker"]),
        plots.origin(latents.origin(model, x), SHAPE),
        plots.aggregated_posterior(latents.aggregated_posterior(model, guide, x)),
        plots.kl_per_dimension(usage(z=[1.0, 0.5])),
        plots.bounds_against_particles(analysis.bounds(model, guide, x, num_particles=[1, 2])),
        plots.k_hat_histogram(analysis.log_likelihood(model, guide, x, num_particles=50, second=None)),
        plots.continuity(latents.continuity(model, guide, x)),
    ]


def test_all_figures_are_one_column_wide_and_no_word_leaves_them(pair, labels):
    for figure in all_figures(pair, labels):
        assert figure.get_figwidth() == plots.WIDTH
        figure.draw_without_rendering()
        width, height = figure.get_size_inches() * figure.dpi
        axes_words = [w for axes in figure.axes for w in (axes.xaxis.label, axes.yaxis.label, axes.title, *drawn_ticks(axes.xaxis))]
        shown = [w for w in [*axes_words, figure._supxlabel] if w is not None and w.get_text()]
        for word in shown:
            box = word.get_window_extent()
            assert box.x0 > -1 and box.x1 < width + 1 and box.y0 > -1 and box.y1 < height + 1, word.get_text()


# The pictures.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The folder of a quick run; networks in float32, as for a user."""
    file = Path(__file__).resolve().parents[1] / "examples" / "pictures.py"
    spec = importlib.util.spec_from_file_location("pictures", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    out, dtype = tmp_path_factory.mktemp("pictures"), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        spec.loader.exec_module(module)
        with pyro.get_param_store().scope():
            module.main(["--quick", "--out", str(out)])
    finally:
        del sys.modules[spec.name]
        torch.set_default_dtype(dtype)
    return out


def test_a_quick_run_draws_every_picture_in_few_bytes(pictures):
    names = {path.stem for path in pictures.glob("*.png")}
    assert names == {"map", "grid", "kl", "traversals", "interpolations", "averages", "origin", "aggregated", "edits", "effect"}
    assert all(2_000 < path.stat().st_size < 200_000 for path in pictures.glob("*.png"))


def test_a_quick_run_finds_that_eights_are_not_threes(pictures):
    """The smallest p value of 19 permutations is 0.05."""
    told = json.loads((pictures / "pictures.json").read_text())
    assert told["vector"].startswith("'8' less '3' at 'z'") and "permutation p = 0.05, R=19" in told["effect"]
