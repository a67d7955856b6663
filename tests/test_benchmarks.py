"""The harness of the benchmarks on made-up timings: intervals, foreign load, marks, tables. No test here measures a time."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import table, timing
from benchmarks.architectures import ARCHITECTURES
from benchmarks.cases import Case, Mark, Rival
from benchmarks.job import Job
from benchmarks.measuring import Measured
from benchmarks.timing import Block, Interval, Series

TASKS = ("step", "iwae", "log_likelihood", "refinement", "leapfrog")


def case(marks: tuple[Mark, ...] = (), flop: float = 0.0) -> Case:
    return Case("step", "step", {"task": "step"}, (Rival("reference", "hand"), Rival("ours", "ours")), marks, flop)


def test_the_interval_of_a_median_is_the_narrowest_that_covers_enough():
    # Binomial(15, 1/2): P(4 <= number below <= 11) = 1 - 2 (1 + 15 + 105 + 455) / 2^15 = 0.96484, one place further in 0.88154 < 0.9
    found = timing.median_interval(list(range(15)))
    assert (found.median, found.low, found.high, found.count) == (7, 3, 11, 15)
    assert found.level == pytest.approx(1 - 2 * 576 / 2**15)


def test_four_blocks_have_no_interval_of_ninety_per_cent_and_say_so():
    found = timing.median_interval([4.0, 1.0, 3.0, 2.0])
    assert (found.low, found.high) == (1.0, 4.0)
    assert found.level == 1 - 2 / 2**4


def test_a_ratio_is_taken_round_by_round():
    """The machine slows down threefold: the medians' ratio is 1.0, every round's is 0.5."""
    ours, reference = Series([1.0, 1.0, 2.0, 3.0, 3.0]), Series([2.0, 2.0, 4.0, 6.0, 6.0])
    found = timing.ratio(ours, reference)
    assert (found.low, found.median, found.high) == (0.5, 0.5, 0.5)


def test_a_round_without_a_clean_block_is_in_no_ratio():
    found = timing.ratio(Series([1.0, None, 9.0]), Series([2.0, 5.0, None]))
    assert (found.median, found.count) == (0.5, 1)


def test_contended_blocks_are_taken_again_and_counted():
    answers = iter([Block(7.0, clean=False), Block(8.0, clean=False), Block(1.0), Block(2.0)])
    found = timing.interleaved({"ours": lambda: next(answers)}, rounds=2)["ours"]
    assert (found.blocks, found.discarded, found.contended) == ([1.0, 2.0], 2, [7.0, 8.0])


def test_a_machine_that_is_never_quiet_ends_and_is_marked():
    found = timing.interleaved({"ours": lambda: Block(3.0, clean=False)}, rounds=50)["ours"]
    assert found.clean == []
    assert found.median == 3.0
    assert found.discarded <= 50 * 2 + 2 * timing.TRIES + 50
    row = table.rows(Measured(case(), {"reference": found}), 0.0)[0]
    assert "contended" in row[2]


def test_every_rival_has_its_block_in_every_round_in_changing_order():
    seen: list[str] = []
    timing.interleaved({name: lambda name=name: seen.append(name) or Block(1.0) for name in "abc"}, rounds=20)  # type: ignore[misc]
    rounds = ["".join(seen[i : i + 3]) for i in range(0, 60, 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 1


@pytest.mark.parametrize(("seconds", "foreign", "clean"), [(0.1, 0.0, True), (0.1, 0.02, True), (0.1, 0.05, False), (10.0, 0.3, True)])
def test_foreign_load_beyond_the_rounding_of_clocks_spoils_a_block(seconds, foreign, clean):
    assert timing.is_clean(seconds, foreign) is clean


def test_busy_time_is_all_but_idle_waiting_and_guests(tmp_path):
    """user, nice, system, irq, softirq and steal, in hundredths of a second; idle and iowait are not work, guests are in user."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 3 7000 900 5 6 7 50 60\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    hertz = os.sysconf("SC_CLK_TCK")
    assert timing.busy_seconds(stat) == pytest.approx((100 + 20 + 3 + 5 + 6 + 7) / hertz)


def test_a_block_times_its_own_iterations_after_untimed_ones():
    calls: list[int] = []
    timing.block(calls.append, 5, settle=2)
    assert calls == [2, 5]


def test_the_floor_of_the_first_architecture_is_the_sum_of_its_products():
    # 784-200-200-100 and 50-200-200-784: 216,800 + 206,800 products, two operations each, thrice, but no gradient by the data
    assert ARCHITECTURES["A1"].step_flop(20) == 20 * 2 * (3 * (216_800 + 206_800) - 156_800)
    assert ARCHITECTURES["A1"].step_flop(20, 50) == 20 * 2 * (3 * 216_800 - 156_800 + 50 * 3 * 206_800)
    assert ARCHITECTURES["A1"].likelihood_flop == 2 * 206_800


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.40, 0.38, 0.44, 15, 0.96), "goal"),
        (Interval(0.44, 0.40, 0.50, 15, 0.96), "goal, not surely"),
        (Interval(0.50, 0.48, 0.60, 15, 0.96), "pass"),
        (Interval(0.60, 0.58, 0.70, 15, 0.96), "pass, not surely"),
        (Interval(0.65, 0.60, 0.70, 15, 0.96), "no, not surely"),
        (Interval(0.80, 0.70, 0.90, 15, 0.96), "no"),
        (None, "not measured"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mark_is_judged_by_median_and_interval(interval: Interval | None, said: str):
    assert table.verdict(Mark("ours", "reference", 0.62, 0.45), interval) == said


def test_a_table_holds_times_ratios_floor_and_marks():
    found = Measured(case((Mark("ours", "reference", 0.62, 0.45),), flop=2e6), versions={"torch": "2.13.0"})
    found.series = {"reference": Series([2e-3] * 5), "ours": Series([1e-3] * 5, discarded=3)}
    found.peak_mib = {"reference": 300.0, "ours": 400.0}
    text = table.rendered([found], {"commit": "abc"}, peak_flops=2e10)
    assert "| step | ours | 1,000 µs a step | 0.500 | 0.500 to 0.500 | 5 | 3 | 400 |" in text
    assert "| step | floor | 100 µs a step | 0.050 |" in text
    assert "| step | ours | reference | 0.500 | 0.500 to 0.500 | 0.62 | 0.45 | pass |" in text
    assert "commit abc." in text
    assert "torch 2.13.0" in text


def test_a_rival_that_took_no_part_is_named_with_its_reason():
    found = Measured(case((Mark("ours", "reference", 0.62, 0.45),)), {"ours": Series([1.0])}, failed={"reference": "no such module"})
    text = table.rendered([found], {}, peak_flops=1.0)
    assert "reference took no part: no such module" in text
    assert "not measured" in text


def test_results_are_json_with_every_block():
    found = Measured(case((Mark("ours", "reference", 0.62),)), {"reference": Series([2.0]), "ours": Series([1.0, None])})
    found.series["reference"].blocks.append(4.0)
    kept = json.loads(json.dumps(table.as_dict(found)))
    assert kept["rivals"]["ours"]["blocks"] == [1.0, None]
    assert kept["marks"][0]["ratio"]["median"] == 0.5


def test_a_document_keeps_what_stands_around_its_table(tmp_path: Path):
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    table.written_into(document, "new")
    assert document.read_text() == f"before\n{table.START}\n\nnew\n{table.END}\nafter\n"
    document.write_text("no markers")
    with pytest.raises(ValueError, match="with the table between them"):
        table.written_into(document, "new")
    assert document.read_text() == "no markers"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("quick", [False, True])
def test_every_mark_names_rivals_of_its_case(task: str, quick: bool):
    for one in importlib.import_module(f"benchmarks.tasks.{task}").cases(quick):
        names = [rival.name for rival in one.rivals]
        assert len(set(names)) == len(names)
        assert {name for mark in one.marks for name in (mark.rival, mark.against)} <= set(names)
        assert one.flop > 0
        assert Job(**one.job) == replace(Job(**json.loads(json.dumps(vars(Job(**one.job))))))


def test_an_empty_series_has_no_median():
    assert math.isnan(Series().median)
    assert timing.median_interval([]).count == 0
