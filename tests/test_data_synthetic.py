"""Drawn and simulated data: what their factors say is what they show."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppvae import data
from ppvae.data import sources
from ppvae.data.faces import FACTORS
from ppvae.data.faces import drawn as face
from ppvae.data.sprites import GRID
from ppvae.data.sprites import drawn as sprite
from ppvae.errors import ArgumentError, DataError, MissingFileError

# Sprites.


def test_factors_of_sprites_reproduce_the_images():
    found = data.sprites(200, seed=3, flatten=False)
    assert found.factor_names == ("shape", "scale", "rotation", "x", "y") and found.factors.shape == (200, 5)
    assert np.array_equal(sprite(found.factors.numpy()), found.raw.numpy())
    assert torch.equal(found.labels, found.factors[:, 0].long())


def test_centre_of_mass_and_area_of_an_ellipse_are_those_of_its_factors():
    """Area pi a b with a = 7.5 s, b = 4 s; a pixel's ink is right to 0.05 of a pixel on average along the edge (antialiasing to first order)."""
    scale = 0.8
    image = sprite([[1, scale, 0.3, 14.0, 17.0]])[0] / 255
    y, x = np.mgrid[:32, :32] + 0.5
    assert image.sum() == pytest.approx(math.pi * 7.5 * 4 * scale**2, rel=0.02)
    assert ((image * x).sum() / image.sum(), (image * y).sum() / image.sum()) == pytest.approx((14.0, 17.0), abs=0.02)


def test_a_square_is_itself_after_a_quarter_turn_and_a_heart_is_not():
    turned = sprite([[shape, 1.0, angle, 16.0, 16.0] for shape in (0, 2) for angle in (0.0, math.pi / 2)]).astype(int)
    assert np.abs(turned[0] - turned[1]).max() <= 1  # rounding to bytes
    assert np.abs(turned[2] - turned[3]).max() > 200


def test_no_two_sprites_are_alike_and_there_is_an_end_of_them():
    found = data.sprites(2000).factors
    assert len(found.unique(dim=0)) == 2000
    assert all(torch.isin(column, torch.tensor(values)).all() for column, values in zip(found.T, GRID, strict=True))
    with pytest.raises(DataError, match="at most 40,500 sprites"):
        data.sprites(40_501)


@pytest.mark.parametrize("make", [data.sprites, data.faces, data.filaments, data.linear_gaussian], ids=lambda make: make.__name__)
def test_data_are_ruled_by_their_seed(make):
    one, same, other = make(70, seed=1), make(70, seed=1), make(70, seed=2)
    assert one.sha256 == same.sha256 != other.sha256
    assert torch.equal(one.factors, same.factors)


def test_parts_keep_their_own_factors():
    whole = data.sprites(500, seed=5)
    splits = data.split(whole)
    rows = splits.test.index
    assert torch.equal(splits.test.factors, whole.factors[rows]) and splits.test.factor_names == whole.factor_names
    assert np.array_equal(sprite(splits.test[:5].factors.numpy()).reshape(5, -1), splits.test[:5].raw.numpy())


# Faces.


def faces_of(**factors):
    """A row of middling factors with these changed."""
    row = dict.fromkeys(FACTORS, 0.5) | {"smile": 0, "glasses": 0, "long_hair": 0} | factors
    return face([[row[name] for name in FACTORS]])[0].astype(int)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("smile", slice(20, 28), slice(9, 23)),
        ("glasses", slice(11, 21), slice(6, 26)),
        ("eyes", slice(12, 20), slice(7, 25)),
        ("brows", slice(10, 15), slice(7, 25)),
    ],
)
def test_a_factor_of_a_face_changes_its_own_place_alone(name, rows, columns):
    change = np.abs(faces_of(**{name: 1}) - faces_of(**{name: 0})).max(0)
    inside = np.zeros((32, 32), dtype=bool)
    inside[rows, columns] = True
    assert change[inside].max() > 60
    assert change[~inside].max() == 0


def test_factors_of_faces_reproduce_the_images_and_make_labels():
    found = data.faces(400, seed=2).labelled_by("glasses")
    assert np.array_equal(face(found.factors.numpy()).reshape(400, -1), found.raw.numpy())
    assert torch.equal(found.labels, found.factors[:, FACTORS.index("glasses")].long())
    assert abs(found.labels.double().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(400)  # standard errors


def test_named_faces_take_a_factor_as_labels(monkeypatch):
    monkeypatch.setitem(sources.IMAGES, "faces", functools.partial(data.faces, 100))
    splits = data.load("faces", labels="smile")
    assert torch.equal(splits.test.labels, splits.test.factors[:, 0].long()) and splits.test.measure == "Lebesgue"
    with pytest.raises(DataError, match="did you mean 'smile'"):
        data.load("faces", labels="smiles")


def test_a_factor_with_fractions_is_no_label():
    with pytest.raises(DataError, match="whole numbers as labels"):
        data.faces(5).labelled_by("width")


# Filaments.


def test_ink_of_a_straight_filament_is_as_wide_as_its_profile():
    """A line of points STEP apart with Normal profiles of sd s: ink sqrt(2 pi) s / STEP exp(-d^2 / 2 s^2) at distance d, grey 1 - exp(-ink)."""
    from ppvae.data.filaments import MOST, POINTS, SIDE, STEP, WIDTH, _inked

    points = np.full((1, MOST, POINTS, 2), -100.0)
    points[0, 0, :, 0], points[0, 0, :, 1] = -20 + STEP * np.arange(POINTS), 32.5
    image = _inked(points, np.array([1]))[0]
    for away, tolerance in ((0, 2), (1, 2), (2, 2)):  # bytes: rounding, and the reach of two pixels
        grey = 255 * (1 - math.exp(-math.sqrt(2 * math.pi) * WIDTH / STEP * math.exp(-(away**2) / (2 * WIDTH**2))))
        assert image[32 + away, SIDE // 2] == pytest.approx(grey, abs=tolerance)
    assert image[:29].max() == 0


def test_labels_of_filaments_count_the_curves():
    found = data.filaments(300)
    assert set(found.labels.tolist()) == {2, 3, 4, 5, 6} and torch.equal(found.labels, found.factors[:, 0].long())


# Lorenz.


def test_states_of_lorenz_follow_its_equations():
    """Fourth-order central differences over h = 0.002: error h^4 / 30 times a fifth derivative of some 1e6, below 1e-5 of |f| of some 100."""
    found = data.lorenz(80, window=5, step=0.002).x.double()
    x = found[:, 2]
    slope = (found[:, 0] - 8 * found[:, 1] + 8 * found[:, 3] - found[:, 4]) / (12 * 0.002)
    f = torch.stack([10 * (x[:, 1] - x[:, 0]), x[:, 0] * (28 - x[:, 2]) - x[:, 1], x[:, 0] * x[:, 1] - 8 / 3 * x[:, 2]], 1)
    # rounding to float32 of numbers to 50, 50 * 6e-8 each, 18 of them over 12 h
    assert (slope - f).abs().max() < 18 * 50 * 6e-8 / 0.024 + 1e-3


def test_windows_of_lorenz_overlap_as_their_intervals_say():
    found = data.lorenz(400, window=3, step=0.1, interval=0.1).x
    assert found.shape == (400, 3, 3)
    same = torch.isclose(found[:-1, 1:], found[1:, :-1], atol=1e-4).all(-1).all(-1)
    assert int((~same).sum()) == 39  # where one of 40 trajectories ends


def test_noise_of_lorenz_has_its_standard_deviation():
    found = data.lorenz(4000, noise=0.5)
    residual = found.x.double() - found.factors
    assert abs(residual.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * residual.numel())


def test_lorenz_refuses_times_that_are_none():
    with pytest.raises(ArgumentError, match="interval is a time > 0"):
        data.lorenz(10, interval=0.0)


# Data of models.


def test_linear_gaussian_data_have_the_moments_of_their_model():
    n = 20_000
    found, model = data.linear_gaussian(n), data.known_linear_gaussian()
    x = found.x.double()
    covariance = model.weight @ model.weight.mT + 0.25 * torch.eye(8)
    assert torch.linalg.eigvalsh(covariance).flip(0)[:4].tolist() == pytest.approx([8, 4, 2, 0.25], abs=1e-12)
    variance = covariance.diagonal()
    assert ((x.mean(0) - torch.arange(1.0, 9.0)).abs() < 4 * (variance / n).sqrt()).all()
    se = ((variance[:, None] * variance + covariance.square()) / n).sqrt()  # of a covariance of Normals
    assert ((torch.cov(x.T) - covariance).abs() < 4.5 * se).all()
    residual = x - found.factors @ model.weight.mT - model.bias
    assert abs(residual.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * residual.numel())


def test_data_do_not_depend_on_the_default_type_nor_touch_the_generator():
    before = torch.get_rng_state()
    wide = data.linear_gaussian(50).sha256
    torch.set_default_dtype(torch.float32)
    assert data.linear_gaussian(50).sha256 == wide
    assert torch.equal(torch.get_rng_state(), before)


def coins(x):
    """z ~ Bernoulli(0.3), x | z = 2 z + 1 exactly, for each of a batch of dicts."""
    with pyro.plate("data", len(x["x"]), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Delta(2 * z + x["offset"]), obs=x["x"])


def test_simulate_puts_values_into_a_dict_and_keeps_latents_as_factors():
    template = {"x": torch.zeros(1), "offset": torch.ones(1)}
    found = data.simulate(coins, 500, template=template, seed=1, name="coins")
    assert found.name == "coins" and found.factor_names == ("z",)
    assert torch.equal(found.x["x"], 2 * found.factors[:, 0] + 1)
    assert abs(found.factors.mean().item() - 0.3) < 4 * math.sqrt(0.21 / 500)


def test_simulate_asks_where_values_belong():
    def model(x):
        coins({"x": x[0], "offset": x[1]})

    template = (torch.zeros(1), torch.ones(1))
    with pytest.raises(DataError, match="place=lambda rows, values"):
        data.simulate(model, 5, template=template)
    placed = data.simulate(model, 5, template=template, place=lambda rows, values: (values["x"], rows[1]))
    assert torch.equal(placed.x[0], 2 * placed.factors[:, 0] + 1)


# Text.


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("a cat\n\n the cat sat \na\n" + "x" * 100 + "\n", encoding="utf-8")
    return path


def test_text_by_words_is_numbered_by_frequency(lines):
    found = data.text(lines, level="words", max_length=5)
    assert found.vocabulary == ("<pad>", "<start>", "<end>", "<unknown>", "a", "cat", "sat", "the", "x" * 100)
    assert found.x["tokens"].tolist() == [[4, 5, 2, 0], [7, 5, 6, 2], [4, 2, 0, 0], [8, 2, 0, 0]]
    assert found.x["lengths"].tolist() == [3, 4, 2, 2]


def test_text_by_characters_comes_back_as_it_was(lines):
    found = data.text(lines)
    assert data.decoded(found.x["tokens"], found) == ["a cat", "the cat sat", "a"]
    assert found.measure == "counting" and "1 longer lines left out" in found.origin


def test_rare_words_become_unknown(lines):
    found = data.text(lines, level="words", min_count=2)
    assert data.decoded(found.x["tokens"], found) == ["a cat", "<unknown> cat <unknown>", "a", "<unknown>"]


def test_load_splits_lines_and_each_part_keeps_the_vocabulary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(f"word{i}" for i in range(100)))
    found = data.load(str(path), seed=4)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [80, 10, 10]
    every = sum((data.decoded(part.x["tokens"], part) for part in (found.train, found.validation, found.test)), [])
    assert sorted(every) == sorted(f"word{i}" for i in range(100))
    with pytest.raises(DataError, match="binarize= is for other data"):
        data.load(str(path), binarize="static")


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [(b"\xff\xfe\xfa", {}, "in UTF-8"), (b"\n \n", {}, "none of 0"), (b"abcdef", {"max_length": 3}, "less than 3 characters")],
    ids=["bytes", "empty", "too long"],
)
def test_text_that_cannot_be_used_is_told(tmp_path, content, options, told):
    path = tmp_path / "odd.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        data.text(path, **options)


def test_text_that_is_not_there_and_levels_that_are_none(tmp_path):
    with pytest.raises(MissingFileError, match="a file of lines"):
        data.text(tmp_path / "none.txt")
    with pytest.raises(ArgumentError, match="characters, words"):
        data.text(tmp_path / "none.txt", level="letters")


# Music.


def written(path, **parts):
    path.write_text(json.dumps({"train": [[[21, 108], []], [[60]]], "valid": [[[60, 64, 67]]], "test": [[[30]]], **parts}))
    return path


def test_music_becomes_piano_rolls(tmp_path):
    found = data.load(str(written(tmp_path / "music.json")))
    train = found.train.x
    assert train["x"].shape == (2, 2, 88) and train["lengths"].tolist() == [2, 1]
    assert train["mask"].tolist() == [[True, True], [True, False]]
    assert train["x"].nonzero().tolist() == [[0, 0, 0], [0, 0, 87], [1, 0, 39]]
    assert found.validation.x["x"].nonzero()[:, 2].tolist() == [39, 43, 46] and found.test.split == "test"


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"test": []}, "a list of pieces as 'test'"),
        ({"test": [[[120]]]}, "120 came\n  where: .*music.json, test, piece 0, frame 0"),
        ({"train": [[[60]], [60]]}, "where: .*train, piece 1"),
        ({"valid": [[["c"]]]}, "'c' came"),
    ],
    ids=["no pieces", "too high", "no frames", "no number"],
)
def test_music_of_another_form_is_told(tmp_path, parts, told):
    with pytest.raises(DataError, match=told):
        data.music(written(tmp_path / "music.json", **parts))


def test_music_nested_without_end_is_told(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="needed JSON, and the file cannot be read as such"):
        data.load(str(tmp_path / "deep.json"))


def test_parts_of_music_are_its_own(tmp_path):
    with pytest.raises(DataError, match="validation= is for other data"):
        data.load(str(written(tmp_path / "music.json")), validation=0.5)


# Factors.


def test_factors_have_a_row_a_datum():
    own = data.Data.of(torch.zeros(4, 2))
    with pytest.raises(DataError, match=r"shape \(4, 1\)"):
        own.with_factors(torch.zeros(3, 1), ["size"])
    with pytest.raises(DataError, match="factors: none"):
        own.labelled_by("size")
    with_size = own.with_factors(torch.arange(4.0)[:, None], ["size"])
    assert with_size[torch.tensor([3, 1])].factors.tolist() == [[3.0], [1.0]]


@pytest.mark.parametrize("name", ["lorenz", "linear-gaussian"])
def test_options_for_images_are_refused_for_systems(name):
    with pytest.raises(DataError, match="needed images to binarise"):
        data.load(name, binarize="threshold")
    with pytest.raises(DataError, match="size= is for"):
        data.load(name, size=8)
