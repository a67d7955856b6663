"""The shipped digits are scikit-learn's; splits and binarisation are what was promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ppvae import data
from ppvae.data.digits import digits
from ppvae.errors import DataError


def test_shipped_digits_are_those_of_scikit_learn():
    images, labels = digits()
    theirs = load_digits()
    assert images.dtype == labels.dtype == torch.uint8
    assert np.array_equal(images.numpy(), theirs.images)
    assert np.array_equal(labels.numpy(), theirs.target)


def test_a_pixel_is_one_from_8_of_16():
    train = data.load("digits").train
    assert torch.equal(train.x, (train.raw >= 8).to(torch.float32))
    assert {7, 8} <= set(train.raw.unique().tolist())


def test_sizes_are_three_and_one_and_one_fifth():
    splits = data.load("digits")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1077, 360, 360]


@pytest.mark.parametrize(("flatten", "shape"), [(True, (64,)), (False, (8, 8))], ids=["flat", "image"])
def test_event_shape_is_flat_unless_asked(flatten, shape):
    test = data.load("digits", flatten=flatten).test
    assert test.event_shape == shape
    assert test.x.shape == test.raw.shape == (360, *shape)


def test_labels_go_with_their_images():
    images, labels = digits()
    validation = data.load("digits").validation
    assert validation.labels is not None
    where = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert [where[row.numpy().tobytes()] for row in validation.raw] == validation.labels.tolist()


def test_the_split_of_seed_0_never_changes():
    # Made with the first version of this file; another hash means that published numbers are about other rows.
    assert data.load("digits").test.sha256 == "d94527c01c0b60aad26b5e5c799a047c7d26e79946e0f936ab4d225c1f4d0b81"


def test_another_seed_makes_another_split():
    assert data.load("digits", seed=1).test.sha256 != data.load("digits").test.sha256


def test_grey_digits_are_sixteenths():
    test = data.load("digits", binarize="none").test
    assert torch.equal(test.x, test.raw.to(torch.float32) / 16)
    assert test.measure == "Lebesgue"


def test_held_out_sizes_can_be_set():
    splits = data.load("digits", validation=100, test=0.5)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [799, 100, 898]  # 0.5 * 1,797 = 898.5, to even


def test_printing_tells_what_was_loaded():
    splits = data.load("digits")
    first, second = str(splits).splitlines()
    assert first == (
        "digits: 1,077 train, 360 validation, 360 test; event shape (64,); binarised at a threshold, 1 from half of 16; split by seed 0"
    )
    assert second.endswith(f"test {splits.test.sha256[:12]}")


def test_names_are_listed():
    files = ["digits", "fashion-mnist", "mnist", "omniglot", "celeba"]
    assert data.names() == [*files, "sprites", "faces", "filaments", "lorenz", "linear-gaussian"]


def test_unknown_name_gets_a_suggestion():
    with pytest.raises(DataError) as caught:
        data.load("fashion_mnits")
    assert str(caught.value) == (
        "needed the name of a data set or a path, and 'fashion_mnits' came\n"
        "  where: data.load\n"
        "  mend:  did you mean 'fashion-mnist'?\n"
        "     or: known names: digits, fashion-mnist, mnist, omniglot, celeba, sprites, faces, filaments, lorenz, linear-gaussian\n"
        "     or: a path to a .npy, .npz, .csv, .tsv, .parquet, .mat, IDX, .txt or .json (music) file, or a folder or archive of pictures"
    )
