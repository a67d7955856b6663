"""OMNIGLOT and CelebA from small files of their own forms."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from ppvae import data
from ppvae.data import celeba
from ppvae.errors import DataError, MissingFileError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def an_empty_home(tmp_path, monkeypatch):
    monkeypatch.delenv("PPVAE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def encoded(values, form):
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def drawings(folder, name, alphabets, per_character=4):
    """An archive as published: white bilevel drawings with black ink, each with a square of ink of its own."""
    made = {}
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for alphabet in alphabets:
            for i in range(per_character):
                values = np.full((8, 8), True)
                values[RNG.integers(0, 2, (8, 8)).astype(bool)] = False
                member = f"{name}/{alphabet}/character01/{i:02}.png"
                archive.writestr(member, encoded(values, "PNG"))
                made[member] = values
    return made


@pytest.fixture
def omniglot(tmp_path):
    background = drawings(tmp_path, "images_background", ["Greek", "Latin", "Angelic"])
    drawings(tmp_path, "images_evaluation", ["Tengwar"])
    return tmp_path, background


def test_the_drawings_have_ink_as_one_and_a_test_set_of_their_own(omniglot):
    folder, made = omniglot
    splits = data.load("omniglot", directory=folder, size=8, validation=3, flatten=False)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [9, 3, 4]
    ink = {(~values).tobytes() for values in made.values()}
    assert {row.numpy().astype(bool).tobytes() for row in splits.train.x} <= ink
    assert set(splits.train.labels.tolist()) == {0, 1, 2}
    assert splits.test.labels.tolist() == [3] * 4


def test_a_drawing_is_averaged_down_before_it_is_binarised(omniglot):
    folder, made = omniglot
    splits = data.load("omniglot", directory=folder, size=4, validation=3, binarize="none", flatten=False)
    means = {(255 - np.round(255 * values.reshape(4, 2, 4, 2).mean((1, 3)))).astype(int).tobytes() for values in made.values()}
    found = {row.numpy().astype(int).tobytes() for row in splits.train.raw}
    assert len(found) == 9
    close = [min(np.abs(np.frombuffer(a, int) - np.frombuffer(b, int)).max() for b in means) for a in found]
    assert max(close) <= 1  # 127.5 is rounded either way


def test_drawings_that_are_not_there_are_told(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        data.load("omniglot", directory=tmp_path)
    assert str(caught.value).startswith(
        "needed the files of omniglot (images_background.zip, images_evaluation.zip), and images_background.zip is not there\n"
        f"  where: looked in {tmp_path / 'omniglot'}, {tmp_path}\n"
        "  mend:  get them from https://github.com/brendenlake/omniglot/raw/master/python/\n"
    )


def chardata(path, **other):
    """A file of the form of Burda's: a column an image, its pixels column by column; a column a one-hot alphabet."""
    images = RNG.uniform(size=(30, 28, 28))
    targets = np.eye(50)[:, RNG.integers(0, 50, 30)]
    arrays = {"data": images[:20].transpose(2, 1, 0).reshape(784, 20), "target": targets[:, :20]}
    arrays |= {"testdata": images[20:].transpose(2, 1, 0).reshape(784, 10), "testtarget": targets[:, 20:]} | other
    savemat(path, {name: value for name, value in arrays.items() if value is not None})
    return images, targets.argmax(0)


def test_the_images_of_the_iwae_paper_stand_upright(tmp_path):
    images, alphabets = chardata(tmp_path / "chardata.mat")
    splits = data.load(tmp_path / "chardata.mat", validation=5, flatten=False, binarize="none")
    assert np.array_equal(splits.test.raw.numpy(), images[20:].astype(np.float32))
    assert splits.test.labels.tolist() == alphabets[20:].tolist()
    assert (len(splits.train), len(splits.validation), splits.train.levels) == (15, 5, 1.0)
    assert torch.equal(data.load(tmp_path / "chardata.mat", validation=5).test.x, (splits.test.x >= 0.5).float().reshape(10, 784))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"testdata": None}, "needed the arrays of the IWAE paper's OMNIGLOT, and testdata did not come"),
        ({"data": np.zeros((5, 20))}, r"needed data of shape \(784, N\) and target of shape \(50, N\), and \(5, 20\) and \(50, 20\) came"),
    ],
)
def test_another_matlab_file_is_told(tmp_path, change, problem):
    chardata(tmp_path / "chardata.mat", **change)
    with pytest.raises(DataError, match=problem):
        data.load(tmp_path / "chardata.mat")


@pytest.mark.parametrize("content", [b"", b"no MATLAB", bytes(300)], ids=["empty", "text", "zeros"])
def test_a_damaged_matlab_file_is_told(tmp_path, content):
    (tmp_path / "chardata.mat").write_bytes(content)
    with pytest.raises(DataError, match="needed a MATLAB file, and it cannot be read"):
        data.load(tmp_path / "chardata.mat")


COLOURS = RNG.integers(0, 256, (12, 3), dtype=np.uint8)
PARTS = [0] * 7 + [1] * 2 + [2] * 3


@pytest.fixture
def faces(tmp_path):
    """Twelve faces of one colour each, in the published forms."""
    names = [f"{i:06}.jpg" for i in range(1, 13)]
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        for name, colour in reversed(list(zip(names, COLOURS, strict=True))):
            archive.writestr(f"img_align_celeba/{name}", encoded(np.broadcast_to(colour, (218, 178, 3)).copy(), "PNG"))
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in zip(names, PARTS, strict=True)))
    rows = "".join(f"{name} {-1 if i % 3 else 1:2} -1\n" for i, name in enumerate(names))
    (tmp_path / "list_attr_celeba.txt").write_text(f"12\nSmiling Male \n{rows}")
    return tmp_path


def test_faces_come_in_their_own_parts_with_an_attribute(faces):
    splits = data.load("celeba", directory=faces, size=2, labels="Smiling", flatten=False)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7, 2, 3]
    assert splits.train.raw[:, :, 0, 0].tolist() == COLOURS[:7].tolist()
    assert (splits.train.event_shape, splits.train.binarize, splits.train.measure) == ((3, 2, 2), "none", "Lebesgue")
    assert splits.train.labels.tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert [part.split for part in (splits.train, splits.validation, splits.test)] == ["train", "validation", "test"]
    assert splits.test.x.max() <= 1


def test_faces_are_decoded_once_and_left_on_disk(faces, monkeypatch):
    first = data.load("celeba", directory=faces, size=2)
    monkeypatch.setattr(celeba, "members", None)
    again = data.load("celeba", directory=faces, size=2, labels="Male", validation=3)
    assert isinstance(again.train.source, np.memmap)
    assert (len(again.train), len(again.validation)) == (6, 3)
    assert again.test.sha256 == first.test.sha256


@pytest.mark.parametrize(
    ("file", "change", "options", "problem"),
    [
        (
            "list_attr_celeba.txt",
            None,
            {"labels": "Smilling"},
            "needed one of the 2 attributes as label, and 'Smilling' came\n.*\n  mend:  did you mean 'Smiling'",
        ),
        ("list_eval_partition.txt", "000001.jpg 0\n000099.jpg 1\n", {}, "needed 2 faces, and 1 came"),
        ("list_eval_partition.txt", "000001.jpg x\n", {}, "needed a name and whole numbers in each line"),
        ("list_attr_celeba.txt", "1\nSmiling\n000001.jpg 1\n", {"labels": "Smiling"}, "needed the 12 faces of the partition, and 1 came"),
        ("img_align_celeba.zip", "no zip", {}, "needed a whole zip file"),
    ],
)
def test_files_of_faces_that_disagree_are_told(faces, file, change, options, problem):
    if change is not None:
        (faces / file).write_text(change)
    with pytest.raises(DataError, match=problem):
        data.load("celeba", directory=faces, size=2, **options)


def test_faces_that_are_not_there_are_told(tmp_path):
    with pytest.raises(MissingFileError, match="needed the files of celeba .*, and img_align_celeba.zip is not there"):
        data.load("celeba", download=False)
