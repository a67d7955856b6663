"""Pictures from folders and archives: bytes stay bytes, sub-folders are labels, averages are exact."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from ppvae import data
from ppvae.data import pictures
from ppvae.data.pictures import read_pictures
from ppvae.errors import DataError

Image = pytest.importorskip("PIL.Image")

GREY = np.random.default_rng(0).integers(0, 256, (20, 4, 6), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)


def png(values, mode=None):
    file = io.BytesIO()
    (Image.fromarray(values) if mode is None else Image.fromarray(values).convert(mode)).save(file, "PNG")
    return file.getvalue()


def folder(path, named):
    for name, content in named.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def archive(path, named):
    with zipfile.ZipFile(path / "a.zip", "w") as file:
        for name, content in named.items():
            file.writestr(name, content)
    return path / "a.zip"


@pytest.mark.parametrize("written", [folder, archive])
def test_pictures_come_as_bytes_in_the_order_of_their_names(tmp_path, written):
    path = written(tmp_path, {f"{19 - i:02}.png": png(GREY[i]) for i in range(20)})
    x, labels, how = read_pictures(path)
    assert np.array_equal(x, GREY[::-1])
    assert (x.dtype, labels, how) == (np.uint8, None, "")


def test_colour_comes_channels_first(tmp_path):
    x, _, _ = read_pictures(folder(tmp_path, {f"{i:02}.png": png(COLOUR[i]) for i in range(20)}))
    assert np.array_equal(x, COLOUR.transpose(0, 3, 1, 2))


def test_one_picture_in_colour_makes_all_so_unless_grey_is_asked_for(tmp_path):
    path = folder(tmp_path, {"a.png": png(GREY[0]), "b.png": png(COLOUR[0])})
    assert np.array_equal(read_pictures(path)[0][0], np.stack([GREY[0]] * 3))
    luma = np.round(COLOUR[0] @ [0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(read_pictures(path, grey=True)[0][1] - luma).max() <= 1
    assert read_pictures(folder(tmp_path / "grey", {"a.png": png(GREY[0])}), grey=False)[0].shape == (1, 3, 4, 6)


@pytest.mark.parametrize("written", [folder, archive])
def test_subfolders_are_labels_in_sorted_order(tmp_path, written):
    named = {f"set/{kind}/{i}.png": png(GREY[i]) for i, kind in enumerate(["dog", "ant", "dog", "cat"])}
    x, labels, how = read_pictures(written(tmp_path, {**named, "set/.DS_Store": b"", "__MACOSX/set/ant/._1.png": b"junk"}))
    assert labels.tolist() == [0, 1, 2, 2]
    assert np.array_equal(x, GREY[[1, 3, 0, 2]])
    assert how == "labels by folder: 0 ant, 1 cat, 2 dog"


def test_averaging_down_takes_the_mean_of_each_part(tmp_path):
    values = (GREY[0] // 8) * 8  # means of 4 such numbers are whole
    x, _, _ = read_pictures(folder(tmp_path, {"a.png": png(values)}), size=(2, 3))
    assert x[0].tolist() == values.reshape(2, 2, 3, 2).mean((1, 3)).tolist()
    assert read_pictures(tmp_path, size=2)[0].shape == (1, 2, 2)


def test_pictures_of_two_sizes_are_told(tmp_path):
    folder(tmp_path, {"a.png": png(GREY[0]), "b.png": png(GREY[0, :3])})
    with pytest.raises(DataError) as caught:
        data.load(tmp_path)
    assert str(caught.value) == (
        "needed pictures of one size, and 4 x 6 came first (a.png), then 3 x 6\n"
        f"  where: {tmp_path}, b.png\n"
        "  mend:  name one to bring them to: size=(4, 6)"
    )


def test_load_keeps_bytes_and_scales_them_to_one(tmp_path):
    splits = data.load(folder(tmp_path, {f"{i % 2}/{i:02}.png": png(GREY[i]) for i in range(20)}), flatten=False)
    assert (splits.train.raw.dtype, splits.train.event_shape, splits.train.measure) == (torch.uint8, (4, 6), "Lebesgue")
    assert torch.equal(splits.train.x, splits.train.raw.to(torch.float32) / 255)
    assert sorted(torch.cat([splits.train.labels, splits.validation.labels, splits.test.labels]).tolist()) == [0] * 10 + [1] * 10
    assert str(splits).splitlines()[0].endswith("split by seed 0; labels by folder: 0 0, 1 1")


def test_load_binarises_on_request(tmp_path):
    splits = data.load(folder(tmp_path, {f"{i:02}.png": png(GREY[i]) for i in range(20)}), binarize="threshold", size=4)
    assert splits.train.event_shape == (16,)
    assert splits.train.x.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ({}, r"needed pictures \(\.png, .*\), and there is none"),
        ({"a.png": b"no picture"}, r"needed a picture, and it cannot be read"),
        ({"a.png": png(GREY[0])[:60]}, r"needed a picture, and it cannot be read"),
        (
            {"train/a.png": png(GREY[0]), "test/a.png": png(GREY[1])},
            "needed sub-folders that are classes, and parts of a data set came: test, train",
        ),
        (
            {"a.png": png(GREY[0]), "b/a.png": png(GREY[1])},
            r"needed pictures side by side or in sub-folders, and both came: a\.png, and the folder b",
        ),
        ({"a.png": png(GREY[0].astype(np.uint16) * 256)}, "needed 8 bits a channel, and a picture of mode I;16 came"),
    ],
    ids=["none", "text", "cut", "parts", "both", "16 bits"],
)
def test_a_folder_that_cannot_be_read_is_told(tmp_path, named, problem):
    with pytest.raises(DataError, match=problem):
        data.load(folder(tmp_path, named))


def test_a_picture_of_absurd_size_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 20)
    with pytest.raises(DataError, match="needed at most 20 pixels, and 4 x 6 came"):
        read_pictures(folder(tmp_path, {"a.png": png(GREY[0])}))


def test_pillow_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r"needed Pillow to read pictures, and it is not installed\n  mend:  pip install 'ppvae\[data\]'"):
        data.load(folder(tmp_path, {"a.png": b""}))


@pytest.mark.parametrize("option", [{"delimiter": ","}, {"directory": "."}])
def test_an_option_for_other_data_is_told(tmp_path, option):
    with pytest.raises(DataError, match=f"and {next(iter(option))}= is for "):
        data.load(folder(tmp_path, {"a.png": png(GREY[0]), "b.png": png(GREY[1])}), **option)
