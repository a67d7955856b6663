"""examples/annealing.py: its arithmetic on numbers made by hand, and a quick run of both experiments held against quadrature."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ppvae
from ppvae import analysis
from ppvae.errors import RunError

FILE = Path(__file__).resolve().parents[1] / "examples" / "annealing.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("annealing", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def quick(example, tmp_path_factory):
    """The folder of a quick run; networks in float32, as for a user."""
    out = tmp_path_factory.mktemp("annealing")
    example.main(["--quick", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("error", "steps"), [(10**-0.5, 100.0), (0.1, 1000.0), (0.01, math.inf), (5.0, 10.0)], ids=["between", "at the end", "never", "at once"]
)
def test_steps_are_read_off_a_line_on_logarithmic_axes(example, error, steps):
    assert example.steps_for(error, [10, 1000], [1.0, 0.1]) == pytest.approx(steps)


def test_a_curve_that_goes_up_again_is_read_where_it_first_comes_down(example):
    assert example.steps_for(0.5, [1, 10, 100], [1.0, 0.25, 0.8]) == pytest.approx(10**0.5)


def points(example, errors):
    """(T, error) -> estimates that are off by that error, up and down, on eight images whose log p(x) is -10."""
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    return [example.Point(steps, -10 + error * signs, steps) for steps, error in errors]


@pytest.mark.parametrize(
    ("guide", "ratio", "seen"),
    [
        ([(10, 1.0), (100, 0.1)], 10.0, "seen"),
        ([(10, 3.0), (1000, 0.03)], 10 / 3, "not seen"),
        ([(10, 3.0), (100, 0.3)], 0.0, "not seen"),
        ([(10, 0.05), (100, 0.01)], 100.0, "seen, and more"),
        ([(300, 0.05), (400, 0.01)], 10 / 3, "not decided"),
    ],
    ids=["a tenth", "a third", "never as good", "at least a hundredth", "at least a third"],
)
def test_a_saving_is_the_ratio_of_steps_at_the_same_error(example, guide, ratio, seen):
    """From the prior T = 1,000 has an error of 0.1; from the guide errors fall as 1 / T."""
    found = {
        "reference": points(example, [(1, 0.0)]),
        "guide, linear": points(example, guide),
        "prior, equal": points(example, [(1000, 0.1)]),
    }
    (saving,) = example.savings(found)
    assert (saving.ratio, saving.low, saving.high) == pytest.approx((ratio, ratio, ratio))
    assert (saving.seen, saving.at_least) == (seen, guide[0][1] <= 0.1)


def test_a_saving_that_hangs_on_one_image_has_a_wide_range(example):
    """Seven images of error 0.001 and one of 1: a resampling without the one, 1 of 3, is good at once."""
    found = {"reference": points(example, [(1, 0.0)]), "guide, linear": points(example, [(10, 1.0), (1000, 0.01)])}
    one = torch.full((8,), -10.001)
    one[3] = -9.0
    found["prior, equal"] = [example.Point(1000, one, 1)]
    (saving,) = example.savings(found)
    assert saving.error == pytest.approx(math.sqrt(1 / 8), rel=1e-4)
    assert saving.ratio == pytest.approx(100 * math.sqrt(1 / 8), rel=1e-3)  # an error of 10 / T needs 10 / 0.354 steps
    assert saving.low == 0.0 < saving.ratio < saving.high


def stages(example, bound, annealed):
    """Epochs -> stage, on three images at -100, -101 and -102 plus what is given."""
    images = torch.tensor([-100.0, -101.0, -102.0], dtype=torch.float64)
    return {e: example.Stage(images + torch.tensor(b), images + torch.tensor(a)) for e, b, a in zip((10, 20), bound, annealed, strict=True)}


@pytest.mark.parametrize(
    ("bound", "annealed", "seen"),
    [
        ([[-1.0] * 3, [-2.0, -3.0, -4.0]], [[0.0] * 3, [0.0] * 3], "seen"),
        ([[-1.0] * 3, [-1.5, -1.0, -0.5]], [[0.0] * 3, [0.0] * 3], "not seen: the bound does not fall"),
        (
            [[-1.0] * 3, [-2.5, -3.0, -3.5]],
            [[0.0] * 3, [-1.0] * 3],
            "not seen: annealing falls, too, the bound by 1.0 nats more",
        ),
        ([[-1.0] * 3, [-2.0, -3.0, -4.0]], [[0.0] * 3, [-1.0, -2.0, -3.0]], "not seen: annealing falls, too"),
    ],
    ids=["annealing holds", "neither falls", "half of it", "both alike"],
)
def test_whether_the_bound_falls_while_annealing_holds(example, bound, annealed, seen):
    course = stages(example, bound, annealed)
    found = {("together", "test"): course, ("frozen", "test"): course}
    fall = example.falls(found, replace(example.QUICK, epochs=(10, 20), frozen=10))[1]
    assert fall.seen == seen


def test_a_fall_is_paired_by_image(example):
    """-1, -1, -1 to -2, -3, -4: falls of 1, 2, 3, mean 2, error 1 / sqrt(3), whatever lies between the images."""
    course = stages(example, [[-1.0] * 3, [-2.0, -3.0, -4.0]], [[0.0] * 3, [0.5] * 3])
    fall = example.falls({("together", "test"): course}, replace(example.QUICK, epochs=(10, 20)))[0]
    assert (fall.start, fall.end) == (10, 20)
    assert (fall.bound, fall.bound_se) == (pytest.approx(-2.0), pytest.approx(1 / math.sqrt(3)))
    assert (fall.annealed, fall.annealed_se) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))
    assert (fall.widened, fall.widened_se) == (pytest.approx(2.5), pytest.approx(1 / math.sqrt(3)))


@pytest.mark.parametrize(("missed", "seen"), [([1.0, 2.0, 3.0], "seen"), ([0.8, 1.0, 1.2], "not seen")], ids=["far", "near"])
def test_a_lag_holds_test_images_against_other_training_images(example, missed, seen):
    """Training images miss 0, 0.5 and 1.0 at the end: 0.5 with error 0.289. Test images 2 with error 0.577, or 1 with error 0.115:
    1.5 is above twice 0.645, and 0.5 is not above twice 0.311."""
    course = {
        split: stages(example, [[0.0] * 3, [-m for m in ms]], [[0.0] * 3] * 2)
        for split, ms in zip(("test", "train"), (missed, [0.0, 0.5, 1.0]), strict=True)
    }
    lag = example.lags({(way, split): course[split] for way in ("together", "frozen") for split in course})[1]
    assert (lag.way, lag.epochs, lag.seen) == ("frozen", 20, seen)
    assert (lag.test, lag.train) == (pytest.approx(sum(missed) / 3), pytest.approx(0.5))
    assert lag.train_se == pytest.approx(0.5 / math.sqrt(3))


@pytest.mark.slow
def test_all_of_the_first_experiment_is_log_p_of_the_same_images(example, quick):
    """Quadrature over the two latents: the reference within 0.05 nats of each image, every other mean within six of its own errors."""
    truth = exact(quick / "pair", ppvae.data.load("digits", binarize="threshold").test[: example.QUICK.images])
    curves = json.loads((quick / "beside.json").read_text())["curves"]
    assert torch.tensor(curves.pop("reference")[0]["values"]) == pytest.approx(truth, abs=0.05)
    for point in (point for curve in curves.values() for point in curve):
        error = torch.tensor(point["values"]) - truth
        assert point["rms_error"] == pytest.approx(error.square().mean().sqrt().item(), abs=0.05)
        assert abs(error.mean()) < 6 * max(0.02, point["rms_error"]) / math.sqrt(len(error))


def exact(folder, x):
    return analysis.exact_log_likelihood(ppvae.load(folder).model, x).pointwise


@pytest.mark.slow
def test_evaluations_are_those_of_pilot_refinement_and_chains(example, quick):
    """C = 4, L = 2: C (1 + (T - 1) L) in the chains, 8 (1 + 39 L) in a pilot of 40 temperatures, 40 x 32 in a refinement."""
    curves = json.loads((quick / "beside.json").read_text())["curves"]
    found = {(name, point["size"]): point["evaluations"] for name, curve in curves.items() for point in curve}
    assert found["importance weights", 100] == 100
    assert found["guide, linear", 12] == 4 * 23 + 8 * 79
    assert found["prior, sigmoid", 40] == 4 * 79 + 8 * 79
    assert found["refined, linear", 4] == 4 * 7 + 8 * 79 + 40 * 32


@pytest.mark.slow
def test_the_last_stage_is_log_p_of_the_trained_decoder_and_the_bound_of_its_encoder(example, quick):
    """Together: quadrature on the run as it ended. Annealing within 0.05 nats, from the prior (T = 20) within 0.3; the same draws again
    for that and for the bound."""
    p, run = example.QUICK, ppvae.load(quick / "together")
    x = ppvae.data.load("digits", binarize="threshold").test[: p.compared]
    truth = exact(quick / "together", x).mean().item()
    stage = json.loads((quick / "overfitted.json").read_text())["stages"]["together, test"][str(p.epochs[-1])]
    assert stage["annealed"] == pytest.approx(truth, abs=0.05)
    how = {"num_temperatures": p.checked, "num_chains": p.chains, "num_leapfrog": p.leapfrog, "seed": p.seed}
    checked = analysis.annealed_log_likelihood(run.model, x, start="prior", **how)
    assert stage["checked"] == pytest.approx(checked.mean.value, abs=1e-3)
    assert stage["checked"] == pytest.approx(truth, abs=0.3)
    bound = analysis.log_likelihood(run.model, run.guide, x, num_particles=p.bound, second=None, seed=p.seed)
    assert stage["bound"] == pytest.approx(bound.mean.value, abs=1e-3)


@pytest.mark.slow
def test_a_frozen_decoder_stands_still_while_its_encoder_moves(example, quick):
    """log p(x) by quadrature after the encoder was trained on is what annealing gave when the decoder was frozen."""
    p = example.QUICK
    truth = exact(quick / "frozen", ppvae.data.load("digits", binarize="threshold").test[: p.compared]).mean().item()
    courses = json.loads((quick / "overfitted.json").read_text())["stages"]
    assert {int(epochs) for epochs in courses["frozen, test"]} == {p.frozen, *p.frozen_epochs}
    for stage in courses["frozen, test"].values():
        assert stage["annealed"] == pytest.approx(truth, abs=0.05)
    moved = [courses["frozen, train"][str(epochs)]["bound"] for epochs in (p.frozen, p.frozen_epochs[-1])]
    assert abs(moved[1] - moved[0]) > 1e-3  # same draws: only the encoder can have moved it
    assert abs(courses["together, test"][str(p.epochs[-1])]["annealed"] - truth) > 1  # trained on, log p(x) goes elsewhere


@pytest.mark.slow
def test_a_second_run_reads_what_was_measured_and_reports_the_same(example, quick, monkeypatch):
    torch.set_default_dtype(torch.float32)
    reports = [quick / name for name in ("beside.json", "overfitted.json", "beside.txt", "overfitted.txt")]
    before = [path.read_bytes() for path in reports]
    for name in ("annealed_log_likelihood", "log_likelihood"):
        monkeypatch.setattr(analysis, name, lambda *_, **__: pytest.fail("measured again"))
    example.main(["--quick", "--out", str(quick)])
    assert [path.read_bytes() for path in reports] == before


@pytest.mark.slow
def test_the_report_holds_the_papers_numbers_and_a_verdict_on_each_claim(quick):
    text = (quick / "beside.txt").read_text() + (quick / "overfitted.txt").read_text()
    assert all(number in text for number in ("-85.679", "-85.619", "-86.902", "-86.464", "10 leapfrog steps"))
    record = {name: json.loads((quick / f"{name}.json").read_text()) for name in ("beside", "overfitted")}
    assert [(s["steps"], s["seen"] in ("seen", "seen, and more", "not seen", "not decided")) for s in record["beside"]["savings"]] == [
        (10, True),
        (40, True),
    ]
    assert [(f["way"], f["split"]) for f in record["overfitted"]["falls"]] == [
        (w, s) for w in ("together", "frozen") for s in ("test", "train")
    ]


def test_a_missing_run_says_how_to_train_it(example, tmp_path):
    with pytest.raises(SystemExit, match=r"holds no trained pair(.|\n)*python examples/inference_suboptimality.py train"):
        example.main(["beside", "--run", str(tmp_path / "none"), "--out", str(tmp_path)])


@pytest.mark.slow
def test_a_stage_that_was_trained_past_is_not_measured_as_another(example, quick, tmp_path):
    torch.set_default_dtype(torch.float32)
    data = ppvae.data.load("digits", binarize="threshold")
    run = ppvae.load(quick / "together")
    with pytest.raises(RunError, match="was trained for 8 epochs, and the stage after 2 has not been measured"):
        example._stage("together", "test", 2, run, len(run.history), data.test[:2], False, example.QUICK, tmp_path)
    with pytest.raises(RunError, match="after 4 epochs, which has 8 by now"):
        pair = example.pair_of(example.QUICK, 64)
        example._copy(pair, pair, run, tmp_path / "frozen", 4)
