"""examples/attributes.py, augmentation.py, disentanglement.py: quantities made by hand, and quick runs."""

import io
import json
import math
import zipfile

import attributes
import augmentation
import disentanglement
import pyro
import pytest
import torch

import ppvae
from ppvae.data.faces import drawn
from ppvae.errors import MissingFileError


@pytest.fixture
def single():
    """float32, as a user runs an example, and a parameter store of its own."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with pyro.get_param_store().scope():
            yield
    finally:
        torch.set_default_dtype(dtype)


def left(out, name, claims):
    """What a run wrote, and that it told of every claim."""
    told = (out / f"{name}.txt").read_text()
    assert told.count("seen: ") + told.count("NOT SEEN: ") == claims
    assert (out / f"{name}.png").stat().st_size > 10_000
    return json.loads((out / f"{name}.json").read_text())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Attributes.


def test_the_largest_choice_that_agrees_in_nine_of_ten():
    """Of 95 alike and 10 unlike faces 90 and 10; of 90 and 40 all 90, and 10."""
    for alike, unlike in ((95, 10), (90, 40)):
        one = torch.cat([torch.arange(alike) % 2, torch.zeros(unlike)])
        other = torch.cat([torch.arange(alike) % 2, torch.ones(unlike)])
        rows = attributes.agreeing(one, other, 0.9)
        assert len(rows.unique()) == len(rows) == 100
        assert (one[rows] == other[rows]).sum() == 90


def test_a_balanced_difference_leaves_a_confounder_out():
    """codes = has v + other u; the factors agree in 9 of 10, each in half of the rows: the plain difference is v + 0.8 u, balanced v."""
    has = torch.tensor([1.0] * 50 + [0.0] * 50)
    other = torch.tensor([1.0] * 45 + [0.0] * 5 + [0.0] * 45 + [1.0] * 5)
    v, u = torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5])
    codes = has[:, None] * v + other[:, None] * u
    assert torch.allclose(attributes.difference(codes, has), v + 0.8 * u, atol=1e-6)
    assert torch.allclose(attributes.difference(codes, has, other), v, atol=1e-6)


def test_a_face_drawn_again_is_the_face_but_for_the_factor_that_was_changed():
    data = ppvae.data.faces(30)
    assert data.factors is not None
    assert torch.equal(attributes.redrawn(data.factors).float(), data.x.float())
    changed = attributes.with_factor(data.factors, data.factor_names, "glasses", 1.0)
    assert (changed != data.factors).sum(0).nonzero().tolist() == [[1]]
    moved = (attributes.redrawn(changed).float() - data.x.float()).abs().sum(1) > 0
    assert torch.equal(moved, attributes.columns(data, "glasses") == 0)


def test_total_variation_of_a_chessboard_is_one_and_of_a_ramp_half_its_step():
    row = torch.arange(6)
    board = ((row[:, None] + row) % 2).double().expand(3, 6, 6).reshape(1, -1)
    ramp = (0.1 * row).double().expand(3, 6, 6).reshape(1, -1)
    found = attributes.total_variation(torch.cat([board, ramp, torch.ones_like(ramp)]), 3, 6)
    assert found.tolist() == pytest.approx([1.0, 0.05, 0.0], abs=1e-12)


def test_determination_is_one_where_all_is_told_and_zero_for_the_mean():
    """And 1 - 4 for predictions off by two standard deviations."""
    factors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).double()
    predicted = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 2.0]]).double()
    assert attributes.determination(predicted, factors) == pytest.approx([1.0, 0.0, -3.0])


@pytest.mark.slow
def test_a_quick_run_of_faces_tells_of_every_claim(single, tmp_path):
    attributes.main(["--quick", "--out", str(tmp_path)])
    record = left(tmp_path, "attributes", 9)
    for edit in record["edits"]:
        permutations = attributes.QUICK.permutations + 1
        assert edit["p_value"] * permutations == pytest.approx(round(edit["p_value"] * permutations)) and edit["p_value"] > 0
        assert edit["gain"] == pytest.approx(edit["edited"] - edit["unedited"], abs=1e-9)  # a mean of differences is one of means
    assert record["confounded"]["agreement"] == pytest.approx(0.9, abs=0.01)


@pytest.fixture
def celeba(tmp_path):
    """Drawn faces in the published forms of CelebA: 130 to train, 12 for validation, 60 to test."""
    image = pytest.importorskip("PIL.Image")
    data = ppvae.data.faces(202)
    assert data.factors is not None
    binary = torch.cat([data.factors[:, :3] > 0.5, data.factors[:, 3:6] > 0.5], 1)
    names = [f"{i:06}.jpg" for i in range(1, 203)]
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        for name, pixels in zip(names, drawn(data.factors.numpy()), strict=True):
            stored = io.BytesIO()
            face = image.new("RGB", (178, 218))
            face.paste(image.fromarray(pixels.transpose(1, 2, 0)).resize((148, 148)), (15, 35))
            face.save(stored, "PNG")
            archive.writestr(f"img_align_celeba/{name}", stored.getvalue())
    parts = [0] * 130 + [1] * 12 + [2] * 60
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in zip(names, parts, strict=True)))
    rows = "".join(f"{name} {' '.join('1' if v else '-1' for v in row)}\n" for name, row in zip(names, binary, strict=True))
    (tmp_path / "list_attr_celeba.txt").write_text(f"202\n{' '.join(attributes.CELEBA)} \n{rows}")
    return tmp_path, binary.double()


@pytest.mark.example
def test_celeba_comes_with_its_attributes_as_factors_in_parts_that_share_nothing(celeba):
    folder, binary = celeba
    faces = attributes.celeba_faces(attributes.QUICK, folder)
    assert (len(faces.train), len(faces.other), len(faces.held_out)) == (65, 65, 60)
    assert torch.equal(torch.cat([faces.train.factors, faces.other.factors]), binary[:130])
    assert torch.equal(faces.held_out.factors, binary[142:])
    assert faces.train.event_shape == (3 * 32 * 32,) and faces.names == attributes.CELEBA and not faces.known
    assert not set(faces.train.index.tolist()) & set(faces.other.index.tolist())


@pytest.mark.slow
def test_a_quick_run_of_celeba_goes_through_and_claims_no_drawing_again(single, celeba):
    folder, _ = celeba
    attributes.main(["--quick", "--data", "celeba", "--directory", str(folder), "--out", str(folder / "run")])
    record = left(folder / "run", "attributes", 9)
    assert not record["claims"]["an edit comes nearer to the face drawn with the attribute"]["seen"]
    assert all(edit["true_change"] == {} for edit in record["edits"])


def test_celeba_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SystemExit, match="--data celeba cannot run: .*needed the files of celeba") as told:
        attributes.main(["--quick", "--data", "celeba", "--directory", str(tmp_path), "--out", str(tmp_path / "run")])
    assert isinstance(told.value.__cause__, MissingFileError)
    assert not (tmp_path / "run").exists()


# Disentanglement.


def test_the_spread_of_objectives_is_without_that_of_seeds():
    """Three objectives at 0, 1, 2 with seeds at -0.5, 0, 0.5 of each: within 0.5, var(means) 1, between sqrt(1 - 0.25 / 3)."""
    values = torch.arange(3.0)[:, None] + torch.tensor([-0.5, 0.0, 0.5])
    found = disentanglement.spread("mig", values.double())
    assert (found.within, found.between) == pytest.approx((0.5, math.sqrt(1 - 0.25 / 3)))
    assert found.share == pytest.approx((1 - 0.25 / 3) / (1 - 0.25 / 3 + 0.25))
    alike = disentanglement.spread("mig", torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
    assert (alike.between, alike.share) == (0.0, 0.0)  # equal means


def test_a_turn_keeps_lengths_and_angles():
    q = disentanglement.turn(6, 3)
    assert torch.allclose(q @ q.mT, torch.eye(6).double(), atol=1e-12)
    assert not torch.allclose(q, disentanglement.turn(6, 4))


@pytest.mark.parametrize(("order", "rho"), [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], -1.0), ([1, 0, 2, 3], 0.8)], ids=["same", "turned", "swap"])
def test_rank_correlation(order, rho):
    """1 - 6 sum d^2 / (n (n^2 - 1)); a swap of neighbours among four has sum d^2 = 2."""
    values = torch.tensor([0.1, 0.2, 5.0, 7.0])
    assert disentanglement.rank_correlation(values, values[order]) == pytest.approx(rho)


def test_small_sprites_keep_their_factors_and_their_middle():
    """Pooling keeps where a sprite is: x and y of the centre of mass are the factors' within a pixel of the smaller image."""
    train, held = disentanglement.sprites(disentanglement.Effort(150, 50, 1, 1, 0))
    assert (len(train), len(held)) == (150, 50) and train.event_shape == (256,) and set(train.x.unique().tolist()) == {0.0, 1.0}
    image = train.x.reshape(-1, 16, 16)
    # hearts are not symmetrical: squares and ellipses alone
    for name, dim in (("x", 1), ("y", 2)):
        mass = image.sum(dim)
        middle = (mass * (torch.arange(16) + 0.5)).sum(1) / mass.sum(1)
        factors = train.factors[:, train.factor_names.index(name)] / 2
        round_ones = train.factors[:, 0] < 2
        assert (middle - factors)[round_ones].abs().max() < 1


@pytest.mark.slow
def test_a_quick_run_of_sprites_is_measured_once(single, tmp_path, monkeypatch):
    disentanglement.main(["--quick", "--out", str(tmp_path)])
    record = left(tmp_path, "disentanglement", 10)
    assert len(record["runs"]) == 6 and len(record["spreads"]) == 4
    monkeypatch.setattr(disentanglement, "measured", None)
    disentanglement.main(["--quick", "--out", str(tmp_path)])
    assert left(tmp_path, "disentanglement", 10)["runs"] == record["runs"]


# Augmentation.


def test_a_shift_by_a_pixel_is_one_of_nine_and_loses_what_leaves():
    """A dot in the middle stays a dot, at most a pixel away; one in the corner is lost in 5 of 9 shifts."""
    dots = torch.zeros(9000, 8, 8)
    dots[:4500, 4, 3] = 1
    dots[4500:, 0, 0] = 1
    moved = augmentation.shifted(dots.flatten(1), generator()).reshape(-1, 8, 8)
    assert (moved[:4500].sum((1, 2)) == 1).all()
    where = moved[:4500].mean(0)
    assert set(map(tuple, where.nonzero().tolist())) == {(r, c) for r in (3, 4, 5) for c in (2, 3, 4)}
    se = math.sqrt(5 / 9 * 4 / 9 / 4500)
    assert abs((moved[4500:].sum((1, 2)) == 0).double().mean().item() - 5 / 9) < 5 * se


def test_small_sets_have_as_many_of_each_class():
    labels = torch.arange(10).repeat(40)[torch.randperm(400, generator=generator())]
    rows = augmentation.small_set(labels, 7, 0)
    assert len(rows.unique()) == 70 and (labels[rows].bincount() == 7).all()
    assert not torch.equal(rows, augmentation.small_set(labels, 7, 1))


def test_a_screener_accepts_what_it_takes_for_its_class():
    sure, unsure = [0.95, 0.05], [0.6, 0.4]
    probabilities = torch.tensor([sure, sure, unsure])
    assert augmentation.accepted(probabilities, torch.tensor([0, 1, 0])).tolist() == [True, False, False]


def test_half_of_a_batch_is_added_and_none_where_nothing_was_accepted():
    x, y = torch.zeros(20, 64), torch.zeros(20, dtype=torch.long)
    added = torch.ones(5, 64), torch.ones(5, dtype=torch.long)
    images, labels = augmentation.Part(x, y, *added).batch(generator())
    assert images.shape == (64, 64) and images[:, 0].sum() == labels.sum() == 32
    images, labels = augmentation.Part(x, y, added[0][:0], added[1][:0]).batch(generator())
    assert images.sum() == labels.sum() == 0


def test_networks_trained_side_by_side_are_those_trained_alone(single):
    """No gradient of one reaches another, up to rounding of another order of sums."""
    x = (torch.rand(60, 64, generator=generator()) > 0.5).float()
    y = (x[:, 0] + 2 * x[:, 1]).long()
    parts = [augmentation.Part(x[:30], y[:30]), augmentation.Part(x[30:], y[30:])]
    both = augmentation.classifiers(parts, 20, [3, 4]).probabilities(x)
    alone = [augmentation.classifiers([part], 20, [seed]).probabilities(x)[0] for part, seed in zip(parts, (3, 4), strict=True)]
    assert torch.allclose(both, torch.stack(alone), atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.01


def test_paired_errors_over_repeats_and_over_images():
    """Differences 1, 0, 0, 0 and 0, 0, 0, 0 of two repeats: mean 1/8, over repeats sd(1/4, 0) / sqrt(2) = 1/8, over images
    sd(1/2, 0, 0, 0) / 2 = 1/8."""
    one = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]).double()
    other = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]).double()
    assert augmentation.compared(one, other) == pytest.approx((0.125, 0.125, 0.125))


@pytest.mark.example
@pytest.mark.slow
def test_a_quick_augmentation_tells_of_every_claim_and_is_measured_once(single, tmp_path, monkeypatch):
    augmentation.main(["--quick", "--out", str(tmp_path)])
    record = left(tmp_path, "augmentation", 6)
    for size in record["sizes"]:
        for arm, (value, _, _) in size["gain"].items():
            means = [sum(size["accuracy"][name]) / len(size["accuracy"][name]) for name in (arm, "real")]
            assert value == pytest.approx(means[0] - means[1], abs=1e-9)
    monkeypatch.setattr(augmentation, "measured", None)
    augmentation.main(["--quick", "--out", str(tmp_path)])
    assert left(tmp_path, "augmentation", 6) == record
