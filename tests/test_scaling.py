"""The fit of costs on made-up timings whose coefficients are known, and the arithmetic of predictions. No test here measures a time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import scaling, scaling_fit, scaling_text
from benchmarks.architectures import ARCHITECTURES
from benchmarks.scaling_fit import Point, dense, fitted, sizes, step_terms
from benchmarks.scaling_parts import programs

RATE = 1e11  # operations a second
KNOWN = (3e-4, 1.5, 2e-9, 4e-9)  # a call, a second of products, a parameter, a logit


def points(known: tuple[float, ...] = KNOWN, noise: float = 0.0, rounds: int = 9) -> list[Point]:
    """Timings of every size that the script measures, drawn from the formula with relative noise."""
    random = np.random.default_rng(1)
    found = []
    for batch, latent, pixels in sizes(quick=False):
        terms = step_terms(batch, dense(latent, pixels), RATE)
        seconds = np.dot(known, terms) * (1 + noise * random.standard_normal(rounds))
        found.append(Point(f"{batch} {latent} {pixels}", terms, tuple(seconds)))
    return found


def test_timings_without_noise_give_their_coefficients_back():
    cost = fitted(points(), resamples=5)
    assert cost.coefficients == pytest.approx(KNOWN, rel=1e-8)  # rounding (1e-16) times the condition of the terms (below 1e4), and more
    assert [low for low, _ in cost.intervals] == pytest.approx(KNOWN, rel=1e-8)
    assert abs(cost.worst[1]) < 1e-8


def test_the_sizes_tell_the_four_costs_apart():
    """Columns of unit length, rows weighed as in the fit: no coefficient may be the others' to a hundredth."""
    chosen = [p for p in points() if p.name not in scaling_text.HELD_OUT_NAMES]
    rows = np.array([np.array(p.terms) / p.median for p in chosen])
    condition = np.linalg.cond(rows / np.linalg.norm(rows, axis=0))
    assert condition < 100


def test_a_cost_that_is_not_there_is_none_and_never_negative():
    cost = fitted(points((3e-4, 1.5, 2e-9, 0.0), noise=0.05))
    assert min(cost.coefficients) >= 0
    assert cost.intervals[3][0] == 0.0  # resampled fits lie on the bound


def test_intervals_grow_with_the_noise_of_the_rounds():
    """The bootstrap's spread is proportional to the noise; a hundredth of it, with the same draws, gives a hundredth of the width."""
    wide, narrow = (fitted(points(noise=noise)).intervals for noise in (1e-2, 1e-4))
    for (low, high), (own_low, own_high) in zip(wide, narrow, strict=True):
        assert (high - low) / (own_high - own_low) == pytest.approx(100, rel=0.1)  # the fit is linear but for its weights, 1 % off


def test_the_largest_residual_names_its_size_and_the_alarm_says_so():
    slow = [p if p.name != "100 10 784" else Point(p.name, p.terms, tuple(2 * s for s in p.seconds)) for p in points()]
    cost = fitted(slow, resamples=2)
    assert cost.worst[0] == "100 10 784"
    assert cost.worst[1] > scaling_text.ALARM
    assert "Above 20%: " in scaling_text.residual_text(cost, "step")[0]
    assert "Above" not in scaling_text.residual_text(fitted(points(), resamples=2), "step")[0]


def test_a_fit_gives_the_cost_of_a_size_that_it_did_not_see():
    held = [p for p in points() if p.name in scaling_text.HELD_OUT_NAMES]
    assert len(held) == 2
    cost = fitted([p for p in points() if p not in held], resamples=2)
    for point in held:
        assert cost.of(point.terms) == pytest.approx(point.median, rel=1e-8)


def test_operations_are_those_of_the_benchmarks_and_follow_the_dimensions():
    assert dense().step_flop(20) == ARCHITECTURES["A1"].step_flop(20)
    # 196-200-200-20 and 10-200-200-196: 39,200 + 40,000 + 4,000 and 2,000 + 40,000 + 39,200 products
    small = dense(10, 196)
    assert small.step_flop(7) == 7 * 2 * (3 * (83_200 + 81_200) - 39_200)
    assert small.likelihood_flop == 2 * 81_200


@pytest.mark.parametrize(("latent", "pixels"), [(50, 784), (10, 196)])
def test_parameters_are_those_of_the_programs(latent, pixels):
    network = dense(latent, pixels)
    assert network.parameters == sum(p.numel() for program in programs(network) for p in program.parameters())


def test_arithmetic_of_the_predictions():
    assert scaling_fit.pass_seconds(10**9, 100, 0.002) == 20_000  # 10^7 steps of 2 ms
    assert scaling_fit.pass_seconds(5, 2, 1.0) == 3  # the last batch has one datum
    assert scaling_fit.standard_error(40.0, 10_000) == 0.4
    # 200 us at 67 TFLOP/s are 1.34e10 operations, at 2.228 MFLOP a datum 6,014.4 data
    assert scaling_fit.arithmetic_bound_from(200e-6, 2.228e6, 67e12) == 6015
    assert scaling_fit.exchange_bytes(1000, 1) == 0  # nobody to send to
    assert scaling_fit.exchange_bytes(1000, 2) == 4000
    assert scaling_fit.exchange_bytes(1000, 4) == 6000


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0"),
        (4e-9, "4 ns"),
        (1.5e-3, "1.5 ms"),
        (90.0, "90 s"),
        (7200.0, "2 h"),
        (30_000.0, "8.33 h"),
        (2e7, "231 days"),
        (4e7, "463 days"),
    ],
)
def test_durations_are_said_in_a_unit_that_fits(seconds, said):
    assert scaling_text.duration(seconds) == said


def made_up() -> scaling_text.Found:
    """Parts as their processes give them: steps by the formula; log weights of 1 s a call, 1 ms a datum and 2 us a weight, 4 us eagerly."""

    def one(seconds: float) -> dict[str, object]:
        return {"seconds": [seconds] * 5, "discarded": 1, "contended": False}

    def weights(choice: int, k: int, n: int) -> float:
        return (1.0 if choice and k > 64 else 0.0) + 1e-3 * n + (2e-6 if choice and k > 64 else 4e-6) * n * k

    shapes = [(64, 64), (640, 64), (6400, 64), (640, 256), (640, 1024)]
    parts = {
        "steps": {p.name: one(p.median) for p in points()} | {"product": one(1 / RATE)},
        "weights": {f"{choice} {k} {n}": one(weights(choice, k, n)) for choice in (1, 0) for k, n in shapes},
        "gradients": {f"{kind} {c} {n}": one(1e-4) for kind, n in (("refinement", 64), ("leapfrog", 1024)) for c in (1, 0)},
        "epoch": {"evaluation 1000": one(0.1), "checkpoint 1000000": one(0.012)},
        "memory": {"array 0": 100.0, "array 1048576": 188.0, "mapped 0": 100.0, "mapped 1048576": 124.0, "likelihood 640 64": 300.0},
        "disk": {f"{how}, {where}": 784e3 for how in ("in order", "at random") for where in ("disk", "cache")},
    }
    return scaling_text.Found(parts)


def test_the_document_is_filled_from_the_fit():
    found = made_up()
    assert found.step.coefficients == pytest.approx(KNOWN, rel=1e-8)
    assert found.weight.coefficients == pytest.approx((1.0, 1e-3, 2e-6), rel=1e-8)
    assert found.eager_weight.coefficients[1:] == pytest.approx((1e-3, 4e-6), rel=1e-8)
    assert found.bytes_per_row("array") == 88  # MiB more for 2^20 rows more
    text = scaling_text.rendered(found, {"date": "today"}, sd=40.0)
    assert "5 x 10^12 weights, at 2 µs each 116 days" in text  # 10^7 s
    assert "Compiling pays from 500,000 weights on" in text  # 1 s over 2 us
    # 10^4 data at 1 ms and 5,000 weights of 2 us: 110 s; 40 / 100 nats
    assert "| 10,000 | 110 s | 0.4 nats |" in text
    assert "24 GB for 10^9 rows" in text


def test_a_size_held_out_that_the_fit_misses_is_told():
    found = made_up()
    assert scaling_text.held_out_text(found) == ["Held out: 20 10 3136 (+0%), 512 200 196 (+0%)."]
    found = made_up()
    found.parts["steps"]["512 200 196"]["seconds"] = [1.5 * s for s in found.parts["steps"]["512 200 196"]["seconds"]]
    first, second = scaling_text.held_out_text(found)
    assert "512 200 196 (+50%)" in first
    assert "predictions far from batch 100" in second


def test_contended_sizes_are_named():
    found = made_up()
    found.parts["steps"]["20 50 784"]["contended"] = True
    assert "not to be believed: steps 20 50 784." in scaling_text.rendered(found, {}, sd=40.0)


def test_numbers_go_between_the_markers_and_nowhere_else(tmp_path):
    document = tmp_path / "scale.md"
    document.write_text(f"before\n\n{scaling_text.START}\nold\n{scaling_text.END}\nafter\n")
    scaling_text.written_into(document, "new\n")
    assert document.read_text() == f"before\n\n{scaling_text.START}\n\nnew\n\n{scaling_text.END}\nafter\n"
    document.write_text("no markers\n")
    with pytest.raises(ValueError, match="with the numbers between them"):
        scaling_text.written_into(document, "new\n")
    assert document.read_text() == "no markers\n"


def test_the_document_in_the_tree_has_the_markers():
    text = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text()
    assert text.index(scaling_text.START) < text.index(scaling_text.END)


def test_quick_numbers_are_not_written(capsys):
    with pytest.raises(SystemExit):
        scaling.parsed(["--quick", "--write", "docs/scale.md"])
    assert "--quick measures nothing" in capsys.readouterr().err
