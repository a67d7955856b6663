"""examples/inference_suboptimality.py: its arithmetic on numbers made by hand, and a quick run from end to end."""

import importlib.util
import json
import math
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).resolve().parents[1] / "examples" / "inference_suboptimality.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("inference_suboptimality", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("family", ["q_FFG", "q_AF"])
def test_the_published_gaps_are_the_differences_of_the_published_levels(example, family):
    row = example.PUBLISHED[family]
    best = row["L[q*], diagonal"] if family == "q_FFG" else row["L[q*], flow"]
    assert row["approximation"] == pytest.approx(row["log p(x)"] - best, abs=0.0051)  # each is rounded to 0.01
    assert row["amortization"] == pytest.approx(best - row["L[q]"], abs=0.0051)
    assert row["inference"] == pytest.approx(row["approximation"] + row["amortization"], abs=0.0051)


def measured(example, amortization, approximation=0.0, log_px=-10.0, richer=1.0, poorer=0.0, units=5):
    """One run on three images whose amortization gap is given, and how far other local families lie above and below its own."""
    gap = torch.tensor(amortization, dtype=torch.float64)
    above = torch.full_like(gap, approximation)
    level = torch.full_like(gap, log_px)
    refined = {"same": level - above, "mean_field": level - above - poorer, "full_rank": level - above + richer}
    return example.Measured(level, level - above - gap, above, gap, above + gap, refined, units, "hand")


def verdict(example, found, words):
    return next(told for told in example.verdicts(found) if words in told.claim)


def test_a_paired_claim_has_the_error_of_the_differences(example):
    """1, 2, 3 less 0.5, 1.5, 2.0: differences 0.5, 0.5, 1.0, mean 2/3, standard deviation 0.5 / sqrt(3), error 1/6."""
    found = {("warm-up", "train"): measured(example, [1.0, 2.0, 3.0]), ("larger-encoder", "train"): measured(example, [0.5, 1.5, 2.0])}
    told = verdict(example, found, "larger encoder")
    assert (told.difference, told.se, told.seen) == (pytest.approx(2 / 3), pytest.approx(1 / 6), True)


def test_other_images_have_errors_that_add_up(example):
    """1, 2, 3 against 2, 3, 4: means one apart, each with an error of 1 / sqrt(3)."""
    found = {("warm-up", "train"): measured(example, [1.0, 2.0, 3.0]), ("warm-up", "test"): measured(example, [2.0, 3.0, 4.0])}
    told = verdict(example, found, "test images")
    assert (told.difference, told.se, told.seen) == (pytest.approx(1.0), pytest.approx(math.sqrt(2 / 3)), False)


def test_the_warm_up_is_held_to_units_log_p_and_the_approximation_gap(example):
    with_it = measured(example, [1.0, 1.0], approximation=0.5, log_px=-10.0, units=7)
    without = measured(example, [1.0, 1.0], approximation=0.7, log_px=-12.0, units=4)
    found = {("warm-up", "train"): with_it, ("no-warm-up", "train"): without}
    told = {word: verdict(example, found, word) for word in ("active units", "higher log p(x)", "larger approximation")}
    assert [round(one.difference, 9) for one in told.values()] == [3.0, 2.0, -0.2]
    assert [one.seen for one in told.values()] == [True, True, False]
    assert "the opposite" in str(told["larger approximation"])


def test_a_flow_guide_is_held_to_the_diagonal_one(example):
    base = measured(example, [3.0, 3.0], approximation=2.0, richer=1.5)
    flow = measured(example, [3.5, 3.5], approximation=0.5, poorer=4.0)
    found = {("warm-up", "train"): base, ("flow-guide", "train"): flow}
    words = ("has a smaller approximation", "has a smaller inference", "loses more under")
    assert [verdict(example, found, word).difference for word in words] == [1.5, 1.0, 2.5]


def test_a_run_that_is_not_trained_to_the_end_is_not_compared(example):
    assert example.comparable({"main": 300, "warm-up": 100, "no-warm-up": 100, "larger-encoder": 30}) == {"main", "warm-up", "no-warm-up"}
    assert example.comparable({"main": 300, "larger-encoder": 100}) == {"main"}


def test_every_setting_says_what_both_code_bases_do_and_what_is_run_here(example):
    settings = example.CREMER_2018.settings
    assert len({setting.name for setting in settings}) == len(settings) >= 25
    assert all(getattr(setting, field.name) for setting in settings for field in fields(setting))
    assert next(s.here for s in example.Protocol(epochs=3280).settings if s.name == "epochs").startswith("3280 (table)")


@pytest.mark.slow
@pytest.mark.example
def test_a_quick_run_trains_measures_and_reports_and_is_not_done_twice(example, tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    example.main(["--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "suboptimality.json").read_text())
    assert len(record["runs"]) == 10
    assert len(record["claims"]) == 13
    for run in record["runs"].values():
        assert run["inference"] == pytest.approx(run["log p(x)"] - run["L[q]"], abs=1e-9)
    capsys.readouterr()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()}
    example.main(["measure", "--quick", "--out", str(tmp_path)])
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()}
    assert "| paper, q_FFG | 3,280 |" in capsys.readouterr().out
