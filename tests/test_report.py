from __future__ import annotations

import base64
import functools
import html.parser
import io
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from PIL import Image
from test_resume import unsealed

import ppvae
from ppvae import analysis, guides, models, simulate
from ppvae.analysis.report import explorer, facts, figures, of_run, of_two, verdicts
from ppvae.analysis.report import page as pages
from ppvae.analysis.report.explorer import atlas
from ppvae.analysis.report.paired import check_measures, pairs
from ppvae.analysis.report.record import record_of
from ppvae.analysis.report.verdicts import BAD, CARE, GOOD, UNKNOWN
from ppvae.cli import main
from ppvae.data import Data
from ppvae.errors import DataError, MissingFileError, RunError
from ppvae.run import CONFIG, template_of

NAME = "<script>alert('run & co')<\\script>"  # a folder's name is a user's text
ROWS = 24


@pytest.fixture(scope="session")
def digits():
    return ppvae.data.load("digits")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, digits):
    """A small run of four dimensions with all that is measured on the command line, in a folder with a hostile name."""
    pyro.set_rng_seed(0)
    model = models.Bernoulli(ppvae.nn.MLP(4, [32], 64), latent_dim=4)
    guide = guides.DiagonalNormal(ppvae.nn.MLP(64, [32], 8), latent_dim=4)
    return trained(tmp_path_factory.mktemp("runs") / NAME, model, guide, digits, epochs=12)


@pytest.fixture(scope="session")
def other(tmp_path_factory, digits):
    """Another run on the same data, shorter and smaller."""
    pyro.set_rng_seed(1)
    model = models.Bernoulli(ppvae.nn.MLP(2, [16], 64), latent_dim=2)
    guide = guides.DiagonalNormal(ppvae.nn.MLP(64, [16], 4), latent_dim=2)
    return trained(tmp_path_factory.mktemp("runs") / "other", model, guide, digits, epochs=3, gaps=False)


def trained(folder, model, guide, digits, *, epochs, gaps=True):
    optimizer = functools.partial(torch.optim.Adam, lr=5e-3)
    run = ppvae.fit(model, guide, digits.train, validation=digits.validation, optimizer=optimizer, epochs=epochs, out=folder, compile=False)
    rows = digits.test[:ROWS]
    run.write_result("elbo-test", analysis.elbo(run.model, run.guide, rows, num_particles=50).as_dict())
    run.write_result("log_likelihood-test", analysis.log_likelihood(run.model, run.guide, rows, num_particles=100).as_dict())
    if gaps:
        run.write_result("bounds-test", analysis.bounds(run.model, run.guide, rows, num_particles=(1, 5, 20)).as_dict())
        run.write_result("calibration-test", analysis.calibration(run.model, run.guide, template=rows, num_data=60, num_draws=20).as_dict())
        found = analysis.inference_gaps(run.model, run.guide, rows[:4], reference="importance", num_reference=50, num_particles=20, steps=5)
        run.write_result("inference_gaps-test", found.as_dict())
    return folder


@pytest.fixture(scope="session")
def computed():
    """What was computed for the page beside what was measured: its figures and its explorer."""
    return {}


@pytest.fixture(scope="session")
def page(folder, computed, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_shown", "_explorer"):
            patch.setattr(of_run, name, functools.partial(_kept, computed, name, getattr(of_run, name)))
        return analysis.report(folder, out=tmp_path_factory.mktemp("page") / "report.html")


def _kept(computed, name, make, *arguments):
    return computed.setdefault(name, make(*arguments))


@pytest.fixture(scope="session")
def comparison(folder, other, tmp_path_factory):
    return analysis.compare_report(folder, other, out=tmp_path_factory.mktemp("page") / "compare.html")


# The verdict box: numbers at each threshold.


def test_trend_is_that_of_the_least_squares_line():
    # t = (-1.5, ..., 1.5): slope (-0.5 + 1.5) / 5 = 0.2; residuals (-0.2, 0.6, -0.6, 0.2), so its error is sqrt(0.8 / 2 / 5).
    assert verdicts.trend([0, 1, 0, 1]) == pytest.approx((0.6, 3 * math.sqrt(0.08)))


def rising(gain, epochs=50):
    """A straight line that gains so much over its last fifth, 10 values or 9 steps."""
    return [-20 + gain / 9 * i for i in range(epochs)]


@pytest.mark.parametrize(
    ("elbo", "changed", "level", "words"),
    [
        (rising(0.09), {}, GOOD, "is flat: 0.09 ± 0.00 nats over the last 10 of 50 epochs"),
        (rising(0.11), {}, CARE, "still rises, by 0.11"),
        (rising(0.99), {}, CARE, "still rises, by 0.99"),
        (rising(1.01), {}, BAD, "still rises, by 1.01"),
        (rising(-0.5), {}, GOOD, "past its best"),
        (rising(-0.5), {"held_out": False}, CARE, "training ELBO changed by −0.50"),
        (rising(0.0), {"beta": 0.5}, CARE, "beta ended at 0.5"),
        ([(-1.0) ** i * 2 for i in range(50)], {}, CARE, "validation ELBO changed by"),
        (rising(0.0, 9), {}, CARE, "too few"),
        (rising(0.0), {"stopped": "diverged"}, BAD, "not finite after 50 epochs"),
        (rising(0.0), {"stopped": "running", "epochs": 80}, BAD, "50 of 80 epochs"),
        (rising(0.0), {"stopped": "interrupt", "epochs": 80}, BAD, "50 of 80 epochs"),
        (rising(0.0), {"rollbacks": 2}, GOOD, "epochs. It diverged twice on the way, and went on with 0.25 of the learning rate."),
    ],
    ids=[
        "flat",
        "nearly",
        "nearly still",
        "rises",
        "past",
        "falls",
        "weighted",
        "noisy",
        "few",
        "diverged",
        "killed",
        "interrupted",
        "rolled back",
    ],
)
def test_convergence_is_read_from_the_last_fifth(elbo, changed, level, words):
    found = verdicts.converged(elbo, **{"held_out": True, "stopped": "finished", "epochs": 50, "beta": 1.0} | changed)
    assert (found.level, words in found.reason) == (level, True), found.reason


@pytest.mark.parametrize(
    ("held_out", "error", "gained", "level", "answer"),
    [
        (-10.19, 0.1, 20, GOOD, "No sign of it"),
        (-10.21, 0.1, 20, CARE, "A little"),
        (-11.0, 0.1, 4.1, CARE, "A little"),
        (-11.0, 0.1, 3.9, BAD, "Yes"),
        (-11.0, 0.1, -1, BAD, "Yes"),
        (-11.0, 0.51, 20, CARE, "Too few rows to tell"),
        (-9.0, 0.1, 20, GOOD, "No sign of it"),
        (None, math.nan, 20, UNKNOWN, "Not measured"),
    ],
    ids=["within two errors", "beyond", "below a quarter", "above a quarter", "gained nothing", "blunt", "better", "none"],
)
def test_overfitting_is_the_gap_to_other_rows(held_out, error, gained, level, answer):
    found = verdicts.overfitted(-10.0, held_out, error, gained=gained)
    assert (found.level, found.answer) == (level, answer)


def test_overfitting_tells_the_gap_with_its_error():
    found = verdicts.overfitted(-10.0, -11.0, 0.1, gained=20)
    assert "−10.00 on training and −11.00 on validation rows: 1.00 ± 0.10 nats apart; 5 % of what training gained" in found.reason


@pytest.mark.parametrize(
    ("active", "units", "rate", "level"),
    [
        (8, 8, 6.0, GOOD),
        (4, 8, 6.0, GOOD),
        (3, 8, 6.0, CARE),
        (0, 8, 6.0, BAD),
        (8, 8, 0.09, BAD),
        (8, 8, 0.1, GOOD),
        (None, None, None, UNKNOWN),
    ],
    ids=["all", "half", "less", "none", "empty", "little", "unmeasured"],
)
def test_collapse_is_told_by_active_units_and_rate(active, units, rate, level):
    assert verdicts.collapsed(active, units, rate).level == level


@pytest.mark.parametrize(
    ("trusted", "second", "level"),
    [
        (0.95, "refined", GOOD),
        (0.949, "refined", CARE),
        (0.8, "refined", CARE),
        (0.799, "refined", BAD),
        (1.0, None, BAD),
        (None, None, UNKNOWN),
    ],
    ids=["all but 5 %", "fewer", "four of five", "fewer still", "not held against anything", "unmeasured"],
)
def test_log_likelihood_is_believed_by_its_trusted_share(trusted, second, level):
    assert verdicts.weights(trusted, num_data=100, above=0.1, threshold=0.7, second=second).level == level


def test_weights_tell_k_hat_the_second_proposal_and_what_is_missing():
    found = verdicts.weights(0.5, num_data=200, above=0.25, threshold=0.67, second="refined", excess=1.5)
    for words in ("50.0 % of 200", "(refined)", "above 0.67 at 25.0 %", "at least 1.50 nats"):
        assert words in found.reason


@pytest.mark.parametrize(
    ("measure", "level"),
    [("counting", GOOD), ("Lebesgue", GOOD), ("relaxed (not a probability)", BAD), (None, UNKNOWN)],
    ids=["counting", "Lebesgue", "relaxed", "unmeasured"],
)
def test_a_relaxed_measure_is_no_probability(measure, level):
    assert verdicts.probability(measure).level == level


@pytest.mark.parametrize(
    ("value", "trusted", "level", "answer"),
    [
        (0.31, [1, 1], GOOD, "a"),
        (-0.31, [1, 1], GOOD, "b"),
        (0.29, [1, 1], CARE, "Likely a"),
        (0.19, [1, 1], CARE, "Undecided"),
        (0.31, [1, 0.5], CARE, "a, by bounds"),
        (0.31, [], GOOD, "a"),
        (0.0, [1, 1], CARE, "Undecided"),
        (None, [], UNKNOWN, "Not measured"),
    ],
    ids=["sure", "the other", "likely", "undecided", "untrusted", "ELBO", "equal", "none"],
)
def test_better_is_a_paired_difference_beyond_its_error(value, trusted, level, answer):
    found = verdicts.better(value, 0.1, ("a", "b"), trusted=trusted)
    assert (found.level, found.answer) == (level, answer)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (-1234.5, "−1,234.50"), (math.nan, "not a number")], ids=["zero", "large", "nan"]
)
def test_numbers_have_a_minus_sign_and_no_negative_zero(value, text):
    assert verdicts.number(value) == text


# The page.


VOID = ("meta", "link", "img", "br", "input")  # tags without an end


class Page(html.parser.HTMLParser):
    """Tags in order, and what is open where it should not be."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.wrong, self.numbers, self.text = [], [], [], [], ""
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.numbers.append([dict(attrs), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        if "data" in self.open:
            self.numbers[-1][1] += data
        if "script" not in self.open and "style" not in self.open:
            self.text += data


@pytest.fixture(scope="session", params=["report", "compare"])
def parsed(request, page, comparison):
    path = page if request.param == "report" else comparison
    return path, Page(path)


def test_page_is_well_formed_and_below_3_mb(parsed):
    path, found = parsed
    assert (found.wrong, found.open) == ([], [])
    assert path.stat().st_size < 3_000_000


def test_page_loads_nothing(parsed):
    _, found = parsed
    sources = [
        value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href", "srcset", "action", "poster")
    ]
    assert sources and all(value.startswith("data:") for value in sources)
    policy = next(attributes["content"] for tag, attributes in found.tags if tag == "meta" and attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_has_words(parsed):
    _, found = parsed
    assert all(attributes["alt"].strip() for tag, attributes in found.tags if tag == "img")


def test_a_hostile_name_stays_text(parsed, folder):
    path, found = parsed
    assert "alert" not in re.sub(r"&lt;script&gt;alert", "", path.read_text())
    assert NAME in found.text
    assert sum(tag == "script" for tag, _ in found.tags) == (2 if path.name == "report.html" else 0)


@pytest.mark.parametrize(
    ("coverage", "fits", "faults", "level", "answer"),
    [
        (0.85, 0.5, [], GOOD, "No fault found"),
        (0.88, 0.55, ["z[0] too narrow"], CARE, "Not quite"),
        (0.831, 0.5, ["z[0] too narrow"], CARE, "Not quite"),
        (0.829, 0.5, ["z[0] too narrow", "z[1] too wide"], BAD, "No"),
        (0.9, 0.61, ["log p(x | z) fits x less well"], BAD, "No"),
        (math.nan, 0.55, ["z[0] too narrow"], CARE, "Not quite"),
    ],
    ids=["none", "a little", "within two errors of five points", "beyond", "blind", "without a density"],
)
def test_calibration_is_told_by_its_faults_and_what_they_cost(coverage, fits, faults, level, answer):
    error = 0.01  # 0.9 - 0.831 - 2 x 0.01 is just below 0.05
    about = {"num_tests": 4, "num_data": 300, "level": 0.05}
    found = verdicts.calibrated(faults, **about, nominal=0.9, coverage=coverage, error=error, fits=fits)
    assert (found.level, found.answer, found.question) == (level, answer, "Is the guide calibrated?")
    assert ("90 % regions of q(z | x) hold the truth" in found.reason) != math.isnan(coverage)
    assert found.reason.startswith((faults or ["None of 4 quantities"])[0])


def test_results_are_read_back_as_they_were_written(folder, digits):
    run, found = ppvae.load(folder), record_of(folder).results
    again = analysis.calibration(run.model, run.guide, template=digits.test[:ROWS], num_data=60, num_draws=20)
    read = found.calibration["test"]
    assert read.names == again.names and torch.equal(read.ranks, again.ranks) and str(read) == str(again)
    bounds = analysis.bounds(run.model, run.guide, digits.test[:ROWS], num_particles=(1, 5, 20))
    read = found.bounds["test"]
    assert read.num_particles == (1, 5, 20) and torch.equal(read.pointwise, bounds.pointwise) and str(read) == str(bounds)


def test_the_page_asks_whether_the_guide_is_calibrated_where_that_was_measured(page, copy, plain):
    assert "Is the guide calibrated?" in Page(page).text
    (copy / "results" / "calibration-test.json").unlink()
    text = Page(analysis.report(copy)).text
    assert "Is the guide calibrated?" not in text
    assert f"ppvae evaluate {copy} --calibration 1000" in text


def test_bounds_ranks_coverage_and_k_hat_by_label_are_drawn(page):
    told = [attributes["alt"] for tag, attributes in Page(page).tags if tag == "img"]
    for words in ("Importance-weighted bound from", "Distribution of ranks", "Coverage of the guide's regions", "by label"):
        assert sum(words in one for one in told) >= 1, words


def test_the_tolerance_is_told_and_asked_for_again(plain, copy):
    path = copy / "results" / "log_likelihood-test.json"
    found = json.loads(path.read_text())
    errors = np.sort(found["pointwise_se"])
    asked = float((errors[5] + errors[6]) / 2)  # 6 of the 24 rows are within it
    path.write_text(json.dumps(found | {"tolerance": asked}))
    text = Page(analysis.report(copy)).text
    assert f"asked to {asked:g} nats of Monte Carlo error per datum, reached at 25.0 %" in text
    command = f"ppvae evaluate {copy} --split test --num-data {ROWS} --tolerance {asked} --num-particles 20 --bounds --calibration 60"
    assert command in facts.commands(record_of(copy))


def test_bounds_of_other_particles_have_a_command_of_their_own(copy):
    found = facts.commands(record_of(copy))
    rows = f"ppvae evaluate {copy} --split test --num-data {ROWS}"
    assert f"{rows} --num-particles 20 --bounds" in found
    assert f"{rows} --num-particles 100 --calibration 60" in found


@pytest.mark.parametrize("labels", [3, 30])
def test_no_more_labels_are_drawn_than_a_figure_holds(labels):
    found = analysis.KHatByLabel(
        tuple(range(labels)),
        torch.full((labels,), 10),
        torch.arange(labels).double().flip(0) / labels,
        torch.zeros(labels),
        torch.zeros(labels),
        tuple((i,) for i in range(labels)),
        0.7,
    )
    shown = figures._most_faulty(found)
    assert shown.labels == tuple(range(min(labels, 20)))  # the shares fall with the label
    assert shown.worst == tuple((i,) for i in shown.labels) and len(shown.share) == len(shown.labels)


def valued(folder, place):
    """The number in results/ that a place on the page names."""
    file, _, way = place.partition(":")
    way, _, reduced = way.partition("~")
    value = json.loads((folder / "results" / f"{file}.json").read_text())
    for step in way.split("."):
        value = value[step]
    reductions = {"mean": np.mean, "se": lambda values: np.std(values, ddof=1) / math.sqrt(len(values))}
    return reductions[reduced](value) if reduced else value


def test_every_number_is_that_of_the_results(page, folder):
    numbers = Page(page).numbers
    assert len(numbers) == 3 + 2 * 2 + 3 + 3 * 3  # ELBO; rate and distortion without a Monte Carlo error; log p(x); three gaps
    for attributes, text in numbers:
        expected = valued(folder, attributes["data-place"])
        assert float(attributes["value"]) == pytest.approx(expected, rel=1e-12)
        assert float(text.replace("−", "-").replace(",", "")) == pytest.approx(expected, abs=0.005001)


def test_sentences_have_the_numbers_of_the_results(page, folder):
    text = Page(page).text
    found = json.loads((folder / "results" / "log_likelihood-test.json").read_text())
    share = 100 * np.mean(found["trusted"])
    assert f"{share:.1f} % of {ROWS} data are trusted" in text
    assert verdicts.number(found["mean"]["value"]) in text
    last = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    assert f"{last['active_units']} of 4 latent units" in text


@pytest.fixture(scope="session")
def again(folder, tmp_path_factory):
    """A second page. Of a session as the first: for the length of a test the default dtype is another."""
    return analysis.report(folder, out=tmp_path_factory.mktemp("page") / "again.html")


def test_the_same_folder_gives_the_same_bytes(page, again):
    assert again.read_bytes() == page.read_bytes()


def test_a_page_that_would_be_too_large_goes_without_what_is_largest(page, folder, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(of_run, "_shown", lambda *_: computed["_shown"])  # nothing is drawn again
    monkeypatch.setattr(of_run, "_explorer", lambda *_: computed["_explorer"])
    pictures = re.findall(r'src="(data:image/[^"]+)"', page.read_text())
    monkeypatch.setattr(pages, "LARGEST", page.stat().st_size - 1)
    without = analysis.report(folder, out=tmp_path / "first.html")
    assert 'id="atlas"' in page.read_text() and 'id="atlas"' not in without.read_text()
    assert "Missing: the explorer, with which the page would be above 3 MB" in Page(without).text
    assert re.findall(r'src="(data:image/[^"]+)"', without.read_text()) == pictures
    monkeypatch.setattr(pages, "LARGEST", without.stat().st_size - 1)
    smaller = analysis.report(folder, out=tmp_path / "second.html")
    kept = re.findall(r'src="(data:image/[^"]+)"', smaller.read_text())
    assert kept == [picture for picture in pictures if picture != max(pictures, key=len)]
    assert len(re.findall(r"Missing: '[^']+', with which the page would be above 3 MB", Page(smaller).text)) == 1


@pytest.fixture
def plain(monkeypatch):
    """Pages without what is computed for them, whose figures are made and not drawn: their words and numbers are the same, in less time."""
    monkeypatch.setattr(figures, "_uri", lambda *_: "data:image/png;base64,")
    monkeypatch.setattr(figures, "from_programs", lambda *_: iter(()))
    monkeypatch.setattr(explorer, "atlas", lambda *_: None)


def test_page_stands_in_the_run_folder_by_default(plain, folder):
    path = analysis.report(folder)
    assert path == folder / "report.html"
    path.unlink()


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_was_not_measured_says_what_measures_it(plain, copy):
    shutil.rmtree(copy / "results")
    text = Page(analysis.report(copy)).text
    assert text.count("Not measured") >= 4
    for command in (f"ppvae evaluate {copy}", f"ppvae gaps {copy}"):
        assert command in text


def test_without_its_data_a_page_tells_so(plain, copy):
    config = json.loads((copy / CONFIG).read_text())
    config["data"]["name"] = "of somebody else"
    (copy / CONFIG).write_text(json.dumps(config))
    unsealed(copy)
    found = Page(analysis.report(copy))
    assert "are not to be found: the run recorded 'of somebody else'" in found.text


def test_data_can_be_named_or_handed_in(plain, copy, digits):
    assert "1,077 train, 360 validation, 360 test" in Page(analysis.report(copy, data="digits")).text
    assert "360 test" in Page(analysis.report(copy, data=digits.test)).text
    with pytest.raises(DataError, match="digit"):
        analysis.report(copy, data="digit")


def test_without_its_programs_a_page_shows_what_was_measured(plain, copy):
    programs = json.loads((copy / "program.json").read_text())
    (copy / "program.json").write_text(json.dumps({"how": "python", "why": "a lambda", "fingerprint": programs["fingerprint"]}))
    unsealed(copy)
    found = Page(analysis.report(copy))
    assert "were built in Python" in found.text
    assert len(found.numbers) == 19


def test_damaged_results_are_named_and_left_out(plain, copy):
    (copy / "results" / "elbo-test.json").write_text("{")
    (copy / "results" / "inference_gaps-test.json").write_text('{"log_px": 1}')
    (copy / "results" / "note.json").write_text("{}")
    found = Page(analysis.report(copy))
    for words in ("elbo-test.json", "inference_gaps-test.json (holds no InferenceGaps of this version)", "note.json"):
        assert words in found.text
    assert len(found.numbers) == 3


def test_a_page_needs_a_run(tmp_path):
    with pytest.raises(MissingFileError, match="there is no run folder"):
        analysis.report(tmp_path / "none")
    with pytest.raises(RunError, match="holds no run"):
        analysis.report(tmp_path)


def test_defaults_of_the_config_are_those_of_fit(tmp_path, digits):
    pyro.set_rng_seed(0)
    model = models.Bernoulli(ppvae.nn.MLP(1, [2], 64), latent_dim=1).float()
    guide = guides.DiagonalNormal(ppvae.nn.MLP(64, [2], 2), latent_dim=1).float()
    ppvae.fit(model, guide, digits.train[:128], epochs=1, out=tmp_path / "run")
    config = record_of(tmp_path / "run").config
    assert facts.differences(config) == []
    assert facts.differences(config | {"clip_norm": 1.0}) == [("clip_norm", "1.0", "None")]


def test_the_command_of_a_run_is_written_in_full():
    command = {
        "data": "my data.npy",
        "flatten": False,
        "hidden": [64, 32],
        "lr": 0.001,
        "resume": False,
        "new": False,
        "patience": None,
        "image_shape": [8, 8],
    }
    assert facts.train(command) == "ppvae train --data 'my data.npy' --no-flatten --hidden 64 32 --lr 0.001"


def test_the_facts_name_the_commit_of_the_programs(folder):
    record = record_of(folder)
    assert "repository" not in dict(facts.facts(replace(record, environment={}), {}))
    found = replace(record, environment={"commit": "0123456789abcdef", "uncommitted_changes": True})
    assert dict(facts.facts(found, {}))["repository"] == "commit 0123456789ab with uncommitted changes"


# The atlas.


def sheet(uri, side=8):
    """A sheet of images as (rows, columns, side, side) bytes."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    return pixels.reshape(pixels.shape[0] // side, side, pixels.shape[1] // side, side).transpose(0, 2, 1, 3)


def test_tiles_of_the_atlas_are_what_the_model_decodes(folder, digits):
    run, record = ppvae.load(folder), record_of(folder)
    found = atlas(record, run.model, run.guide, digits.test[:50])
    content, used = found.content, [int(name[2:-1]) for name in found.dimensions]
    (left, right), (bottom, top) = content["axes"]
    z = torch.zeros(1, 4, dtype=torch.float32)
    z[0, used[0]] = left + 3 / 20 * (right - left)  # column 3 of 21
    z[0, used[1]] = top - 16 / 20 * (top - bottom)  # row 16
    decoded = 255 * simulate.decode(run.model, z, template=template_of(folder)).mean.reshape(8, 8).numpy()
    tile = sheet(content["sheets"][0]["sheet"])[16, 3]
    assert np.abs(tile - decoded).max() < 0.5 + 0.1  # rounding to bytes; the ends of the axes are written with four decimals


def test_codes_of_the_atlas_are_posterior_means(folder, digits):
    run = ppvae.load(folder)
    found = atlas(record_of(folder), run.model, run.guide, digits.test[:50])
    used = [int(name[2:-1]) for name in found.dimensions]
    means = simulate.encode(run.guide, digits.test[:50].x).mean.double().numpy()
    assert np.abs(np.array(found.content["codes"]) - means[:, used]).max() < 0.000501
    assert sorted(used) == sorted(np.argsort(means.var(0))[-2:])
    assert found.content["labels"] == digits.test.labels[:50].tolist()
    assert np.abs(sheet(found.content["data"])[1, 3] - 255 * digits.test.x[28].reshape(8, 8).numpy()).max() == 0  # 25 a row


def test_sheets_stand_at_the_prior_and_at_data_of_different_labels(folder, digits):
    run = ppvae.load(folder)
    names = [one["name"] for one in atlas(record_of(folder), run.model, run.guide, digits.test[:50]).content["sheets"]]
    assert names[0] == "the prior's mean"
    assert len({name.rpartition(" ")[2] for name in names[1:]}) == 3


def test_data_that_are_no_images_are_drawn_from_numbers(tmp_path):
    model = models.LinearGaussian(3, 1, scale=0.5)
    guide = guides.DiagonalNormal(ppvae.nn.MLP(3, [4], 2), latent_dim=1)
    x = torch.randn(40, 3)
    run = ppvae.fit(model, guide, x, epochs=1, out=tmp_path / "run", compile=False)
    found = atlas(record_of(tmp_path / "run"), run.model, run.guide, ppvae.data.Data.of(x))
    content = found.content
    low, high = content["limits"]
    left, right = content["axes"][0]
    values = np.frombuffer(base64.b64decode(content["sheets"][0]["sheet"]), np.uint8).reshape(content["rows"], content["columns"], 3)
    z = torch.tensor([[left + 5 / 20 * (right - left)]])
    decoded = simulate.decode(run.model, z, template=x).mean[0].detach().numpy()
    assert (content["images"], content["rows"], content["columns"]) == (False, 1, 21)
    assert np.abs(low + values[0, 5] / 255 * (high - low) - decoded).max() < 0.6 * (high - low) / 255


# Two runs.


def test_differences_are_paired_and_those_of_compare(folder, other, comparison):
    one, two = (json.loads((path / "results" / "log_likelihood-test.json").read_text())["pointwise"] for path in (folder, other))
    differences = np.subtract(one, two)
    shown = [float(attributes["value"]) for attributes, _ in Page(comparison).numbers[:6]]
    error = differences.std(ddof=1) / math.sqrt(ROWS)
    assert shown[:2] == pytest.approx([differences.mean(), error])
    assert shown[3:] == pytest.approx([np.mean(differences > 0), np.mean(one), np.mean(two)])


def test_a_comparison_without_its_page_tells_the_same_difference(folder, other):
    one, two = (json.loads((path / "results" / "log_likelihood-test.json").read_text())["pointwise"] for path in (folder, other))
    found = analysis.compare_runs(folder, other)
    first = found.as_dict()["paired"][0]
    differences = np.subtract(one, two)
    assert (first["what"], first["over"], first["num_data"]) == ("log p(x)", "test", ROWS)
    assert first["difference"]["value"] == pytest.approx(differences.mean())
    assert first["difference"]["data_se"] == pytest.approx(differences.std(ddof=1) / math.sqrt(ROWS))
    assert first["share_first_higher"] == pytest.approx(np.mean(differences > 0))
    assert [first[name]["value"] for name in ("first", "second")] == pytest.approx([np.mean(one), np.mean(two)])
    assert f"{abs(differences.mean()):.3f}" in str(found) and str(found).startswith("Which is better? ")


def test_what_a_terminal_tells_of_runs_is_what_their_pages_tell(plain, folder, other, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(of_two, "_beside", lambda *_: iter(()))
    pages = tmp_path / "report.html", tmp_path / "compare.html"
    assert main(["report", str(folder), "--out", str(pages[0])]) == 0
    assert main(["compare", str(folder), str(other), "--out", str(pages[1])]) == 0
    told = capsys.readouterr().out.splitlines()
    report, comparison = (" ".join(Page(page).text.split()) for page in pages)
    *box, written, which, last = told
    assert (written, last) == tuple(f"report: {page}" for page in pages)
    asked = [line for line in box if line.split("?")[0] + "?" in verdicts.QUESTIONS.values()]
    assert len(asked) == 6 and len(box) > 6
    for line in [*box, which]:
        page = comparison if line is which else report
        question, mark, rest = line.partition("? ")
        parts = [question + "?", *re.split(r"(?<=\.) (?=What helps: |To measure it: )", rest)] if mark else [line]
        assert all(part in page for part in parts), line


def test_one_object_on_stdout_holds_what_is_told_of_runs(plain, folder, other, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(of_two, "_beside", lambda *_: iter(()))
    assert main(["compare", str(folder), str(other), "--json", "--out", str(tmp_path / "x.html")]) == 0
    told = capsys.readouterr()
    found = analysis.compare_runs(folder, other)
    assert json.loads(told.out)["comparison"] == json.loads(json.dumps(found.as_dict()))
    assert found.finding.reason in told.err
    assert json.loads(told.out)["comparison"]["paired"][0]["num_data"] == ROWS


def test_comparison_names_what_differs(comparison):
    text = Page(comparison).text
    for words in ("epochs", "latent_dim=4", "latent_dim=2", "Which is better?"):
        assert words in text


def test_a_question_that_one_run_was_not_asked_is_unknown_of_it(comparison, folder, other):
    found = Page(comparison).text
    assert "Is the guide calibrated?" in found and "Not measured Not measured." in " ".join(found.split())
    alts = [attributes["alt"] for tag, attributes in Page(comparison).tags if tag == "img"]
    assert not any("Importance-weighted bounds" in one for one in alts)  # the second run has none


def test_bounds_and_coverage_of_two_runs_stand_in_one_figure(plain, copy, folder, monkeypatch):
    monkeypatch.setattr(figures, "pictures", lambda *_: iter(()))
    alts = [attributes["alt"] for tag, attributes in Page(analysis.compare_report(copy, folder)).tags if tag == "img"]
    assert any(one.startswith("Importance-weighted bounds of") for one in alts)
    assert any(one.startswith("Coverage of the regions of") for one in alts)


def relax(folder):
    for path in (folder / "results").glob("*.json"):
        value = json.loads(path.read_text())
        value["source"]["measure"] = "relaxed (not a probability)"
        path.write_text(json.dumps(value))


def test_relaxed_results_are_not_to_be_believed(plain, copy):
    relax(copy)
    text = Page(analysis.report(copy)).text
    assert "No, relaxed." in text
    assert "Do not believe: " in text and "that these are log probabilities" in text


def test_relaxed_is_not_held_against_true(copy, other):
    relax(copy)
    with pytest.raises(DataError, match="relaxed measure, which are no probabilities"):
        analysis.compare_report(copy, other)
    with pytest.raises(DataError, match="relaxed measure"):
        check_measures(record_of(other), record_of(copy))


def test_results_on_other_rows_are_not_paired(copy, other, digits, tmp_path):
    run = ppvae.load(copy)
    shutil.rmtree(copy / "results")
    run.write_result("elbo-test", analysis.elbo(run.model, run.guide, digits.test[:10], num_particles=10).as_dict())
    assert pairs(record_of(copy), record_of(other)) == []
    assert "There are no two results on the same rows." in Page(analysis.compare_report(copy, other, out=tmp_path / "c.html")).text


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    switches = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run", "window-size=1280,900")
    for switch in (*switches, f"user-data-dir={profile}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def opened(browser, page):
    browser.get(page.as_uri())
    browser.execute_script("document.getElementById('map').scrollIntoView({block: 'center'})")
    settle(browser)
    return browser


def settle(browser):
    """Two frames: what was asked for is drawn."""
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))")


def picture(browser, name):
    return browser.execute_script(f"return document.getElementById('{name}').toDataURL()")


def text(browser, name):
    return browser.execute_script(f"return document.getElementById('{name}').textContent")


def actions(browser):
    from selenium.webdriver import ActionChains

    return ActionChains(browser, duration=20)


def the_map(browser):
    from selenium.webdriver.common.by import By

    return browser.find_element(By.ID, "map")


def test_browser_has_nothing_to_say_and_loads_nothing(opened, comparison):
    loaded = "return performance.getEntriesByType('resource').map((one) => one.name).filter((name) => !name.startsWith('data:'))"
    assert opened.execute_script(loaded) == []
    opened.get(comparison.as_uri())
    assert opened.execute_script(loaded) == []
    assert opened.get_log("browser") == []


def test_picture_under_the_pointer_is_the_tile_of_the_atlas(opened):
    before = picture(opened, "decoded")
    actions(opened).move_to_element_with_offset(the_map(opened), -200, 150).perform()
    settle(opened)
    column, row = map(int, opened.execute_script("return document.getElementById('decoded').dataset.tile").split())
    content = json.loads(text(opened, "atlas"))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(opened, "decoded").partition(",")[2]))).convert("L"))
    zoom = shown.shape[0] // 8
    assert picture(opened, "decoded") != before
    assert (column < 10, row > 10) == (True, True)  # left of the middle, and below it
    assert (shown[zoom // 2 :: zoom, zoom // 2 :: zoom] == sheet(content["sheets"][0]["sheet"])[row, column]).all()


def test_drag_gives_a_strip_that_stays(opened):
    before = picture(opened, "strip")
    area = the_map(opened)
    actions(opened).move_to_element_with_offset(area, -220, -100).click_and_hold().move_to_element_with_offset(
        area, 180, 120
    ).release().perform()
    settle(opened)
    strip, words = picture(opened, "strip"), text(opened, "along")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.partition(",")[2]))).convert("L"))
    assert strip != before
    assert (shown[:, :90] != shown[:, -90:]).any()  # its ends are different pictures
    actions(opened).move_to_element_with_offset(area, 0, 0).perform()
    settle(opened)
    assert (picture(opened, "strip"), text(opened, "along")) == (strip, words)


def test_a_finger_drags_too(opened):
    from selenium.webdriver.common.actions import interaction
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    before, area = picture(opened, "strip"), the_map(opened)
    touch = ActionBuilder(opened, mouse=PointerInput(interaction.POINTER_TOUCH, "finger"))
    touch.pointer_action.move_to(area, -100, 0).pointer_down().move_to(area, 120, 40).pointer_up()
    touch.perform()
    settle(opened)
    assert picture(opened, "strip") != before


def test_keys_move_and_interpolate(opened):
    from selenium.webdriver import Keys

    area, seen = the_map(opened), []
    for keys in (Keys.ENTER, *[Keys.ARROW_LEFT] * 4, *[Keys.ARROW_DOWN] * 4):
        area.send_keys(keys)
        settle(opened)
        seen.append(opened.execute_script("return document.getElementById('decoded').dataset.tile"))
    start, end = (tuple(map(int, tile.split())) for tile in (seen[0], seen[-1]))
    assert end == (max(start[0] - 4, 0), min(start[1] + 4, 20))
    numbers = re.findall(r"= (−?\d+\.\d\d)", text(opened, "along"))
    assert len(numbers) == 4
    assert numbers[:2] != numbers[2:]


def test_other_dimensions_can_stand_at_a_datum(opened):
    before = picture(opened, "decoded")
    opened.execute_script("const base = document.getElementById('base'); base.value = '2'; base.dispatchEvent(new Event('change'))")
    settle(opened)
    assert picture(opened, "decoded") != before


@pytest.mark.parametrize("name", ["report", "compare"])
def test_page_fits_a_phone(opened, page, comparison, name):
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})
    opened.get((page if name == "report" else comparison).as_uri())
    settle(opened)
    assert opened.execute_script("return document.documentElement.scrollWidth") == 390
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_prints(opened):
    printed = base64.b64decode(opened.print_page())
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8


def test_a_run_on_data_with_holes_has_its_page(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    data = Data.from_arrays(x, missing=torch.rand(60, 6) < 0.3)
    guide = ppvae.guides.DiagonalNormal(ppvae.nn.WithMask(ppvae.nn.MLP(12, [8], 4)), latent_dim=2)
    ppvae.fit(ppvae.models.Normal(ppvae.nn.MLP(2, [8], 6), latent_dim=2, scale=1.0), guide, data, epochs=2, out=tmp_path / "run")
    page = analysis.report(tmp_path / "run", data=data).read_text()
    assert "and their reconstructions" in page
