from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
import torch

from ppvae.analysis import InferenceGaps, Provenance, plots
from ppvae.errors import PpvaeError

N = 4


def gaps(log_px=-10.0, optimal=-10.5, elbo=-12.0):
    """Gaps of 0.5 and 1.5 nats, equal for all data up to a spread of 0.1."""
    spread = 0.1 * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    levels = {"log_px": torch.full((N,), log_px), "elbo_optimal": torch.full((N,), optimal), "elbo": elbo - spread}
    differences = {"approximation": log_px - levels["elbo_optimal"], "amortization": optimal - levels["elbo"]}
    differences["inference"] = differences["approximation"] + differences["amortization"]
    errors = {f"{name}_se": torch.full((N,), 0.02) for name in differences}
    return InferenceGaps(
        **levels,
        **differences,
        **errors,
        refined={"same": levels["elbo_optimal"]},
        reference="its closed form",
        reference_trusted=torch.ones(N, dtype=torch.bool),
        gain=torch.zeros(N),
        source=Provenance({"name": "tensors"}, "counting", 0),
    )


def history(epochs=5, **columns):
    rows = [{"epoch": i + 1, "train_elbo": -30.0 + i, "rate": 1.0 * i, "distortion": 30.0 - 2 * i} for i in range(epochs)]
    return [row | {name: value[i] for name, value in columns.items()} for i, row in enumerate(rows)]


VALIDATED = {"validation_elbo": [-31.0, -29.0, -27.0, -28.0, -29.0], "validation_elbo_se": [0.5] * 5}


def panels(figure):
    """The axes of a figure."""
    return figure.axes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_bars_of_the_gap_figure_are_the_gaps():
    (axes,) = panels(plots.gap_decomposition(gaps()))
    assert [bar.get_x() for bar in axes.patches] == pytest.approx([-10.5, -12.0])
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.5, 1.5])


def test_gap_figure_writes_its_numbers():
    # Amortization: spread 0.1 over 4 data gives 0.1 * sqrt(4/3) / 2 = 0.058; its Monte Carlo error 0.02 / 2 = 0.01; together 0.0586.
    figure = plots.gap_decomposition(gaps())
    assert texts(figure.axes[0]) == ["−10.00", "−10.50", "−12.00", "0.50 ± 0.01", "1.50 ± 0.06"]
    assert figure.get_suptitle() == "inference gap 2.00 ± 0.06 nats, N = 4"


def test_gap_figure_of_one_datum_has_the_monte_carlo_error():
    one = gaps()
    first = {name: value[:1] for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    found = plots.gap_decomposition(InferenceGaps(**vars(one) | first))
    assert texts(found.axes[0])[-1] == "1.40 ± 0.02"


def test_negative_gap_is_drawn_as_it_is():
    (axes,) = panels(plots.gap_decomposition(gaps(log_px=-10.7)))
    assert axes.patches[0].get_width() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    "figure",
    [plots.gap_decomposition(gaps()), plots.training_curves(history(**VALIDATED)), plots.training_curves(history())],
    ids=["gaps", "training with validation", "training alone"],
)
def test_labels_say_nats(figure):
    told = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    assert all("nats per datum" in label for label in told)


def test_training_curves_mark_the_best_epoch():
    legend = panels(plots.training_curves(history(**VALIDATED)))[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation", "best: −27.00, epoch 3"]


def test_training_curves_hold_the_history():
    figure = plots.training_curves(history(**VALIDATED))
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), VALIDATED["validation_elbo"])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [30.0, 28.0, 26.0, 24.0, 22.0])


def test_training_curves_of_a_pair_that_is_not_measured_have_one_panel():
    rows = [row | {"rate": math.nan, "distortion": math.nan} for row in history()]
    assert len(plots.training_curves(rows).axes) == 1


def pixels(figure):
    """The drawn values of a figure of images, without gutters."""
    values = figure.axes[0].images[0].get_array()
    return np.ma.getdata(values)[~np.ma.getmaskarray(values)]


def test_reconstructions_lie_below_their_data():
    x, made = torch.zeros(3, 4), torch.ones(3, 4)
    (axes,) = panels(plots.reconstructions(x, made, (2, 2), columns=3))
    values = axes.images[0].get_array()
    upper, lower = np.array_split(np.ma.filled(values, np.nan), 2)
    assert np.nanmax(upper) == 0
    assert np.nanmin(lower[plots.GUTTER :]) == 1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "E[x | z]"]


def test_reconstructions_that_do_not_fill_the_last_row_leave_it_blank():
    x = torch.rand(5, 2, 2)
    figure = plots.reconstructions(x, x, columns=3)
    assert np.unique(pixels(figure)).tolist() == np.unique(x.numpy()).tolist()


def test_image_grid_shows_every_pixel():
    images = torch.arange(7 * 6).reshape(7, 6) / 42
    figure = plots.image_grid(images, (2, 3), columns=4)
    assert np.unique(pixels(figure)).tolist() == np.unique(images.double().numpy()).tolist()
    assert len(figure.axes) == 1


def test_values_outside_the_unit_interval_get_a_scale():
    figure = plots.image_grid(torch.linspace(-2, 3, 16).reshape(4, 4), (2, 2))
    assert figure.axes[0].images[0].get_clim() == pytest.approx((-2, 3))
    assert figure.axes[1].get_ylabel() == "value"


def test_rows_that_are_no_images_become_lines():
    x = torch.randn(9, 7)
    found = panels(plots.reconstructions(x, x + 1))
    assert len(found) == plots.MOST_LINES
    np.testing.assert_allclose(found[2].lines[1].get_ydata(), (x[2] + 1).numpy())
    assert found[-1].get_xlabel() == "dimension of x"


def test_rows_that_are_no_images_become_a_heat_map():
    x = torch.randn(9, 7)
    axes = panels(plots.samples(x))[0]
    np.testing.assert_allclose(axes.images[0].get_array(), x.numpy())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dimension of x", "row")


def test_image_shape_that_does_not_fit_is_refused():
    with pytest.raises(PpvaeError, match="images of 3 x 3 need 9 numbers a row, got 8"):
        plots.image_grid(torch.zeros(2, 8), (3, 3))


def test_figures_leave_matplotlib_as_it_was():
    before = {name: value for name, value in matplotlib.rcParams.copy().items() if name != "backend"}  # reading that one sets it
    plots.gap_decomposition(gaps())
    assert {name: matplotlib.rcParams[name] for name in before} == before


@pytest.mark.parametrize(
    "figure",
    [
        plots.gap_decomposition(gaps()),
        plots.training_curves(history()),
        plots.samples(torch.rand(20, 16), (4, 4)),
        plots.samples(torch.rand(20, 16)),
        plots.reconstructions(torch.rand(3, 16), torch.rand(3, 16)),
    ],
    ids=["gaps", "training", "images", "heat map", "lines"],
)
def test_figures_are_one_column_wide(figure):
    assert figure.get_figwidth() == plots.WIDTH


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_save_writes_the_form_that_the_suffix_names(tmp_path, suffix):
    path = plots.save(plots.gap_decomposition(gaps()), tmp_path / "new" / f"gaps{suffix}")
    heads = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(heads[suffix])


def test_saved_svg_is_the_same_bytes_every_time(tmp_path):
    one, other = (plots.save(plots.gap_decomposition(gaps()), tmp_path / name) for name in ("a.svg", "b.svg"))
    assert one.read_bytes() == other.read_bytes()


def test_save_refuses_another_form(tmp_path):
    with pytest.raises(PpvaeError, match=r"one of \.png, \.svg, \.pdf, got 'gaps\.tiff'"):
        plots.save(plots.gap_decomposition(gaps()), tmp_path / "gaps.tiff")


def test_no_text_of_the_gap_figure_lies_over_another():
    figure = plots.gap_decomposition(gaps())
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels()] if text.get_text()]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not overlaps


def test_all_files_of_figures_share_one_style():
    files = (plots.calibration, plots.latents, plots.measures, plots.moves, plots.images)
    assert all(file.STYLE is plots.STYLE and file.WIDTH is plots.WIDTH for file in files)
