"""What a run prints: lines that fit, a live line on a terminal alone, no colour where none is wanted."""

from __future__ import annotations

import io

import pytest

from ppvae import progress
from ppvae.progress import Progress, epoch_line

ROW = {
    "epoch": 1,
    "train_elbo": -115.304,
    "validation_elbo": -116.2,
    "validation_elbo_se": 0.22,
    "rate": 12.1,
    "distortion": 103.2,
    "active_units": 18,
    "units": 32,
    "beta": 1,
    "gradient_norm": 12.0,
    "steps_per_second": 1142.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_line_has_all_that_fits():
    assert epoch_line(ROW, 200, 190.0) == "epoch   1/200  ELBO -115.30  valid -116.20 ± 0.22  active 18/32  left 3m10s"
    assert epoch_line(ROW, 200, 190.0, columns=140) == (
        "epoch   1/200  ELBO -115.30  valid -116.20 ± 0.22  rate 12.10  distortion 103.20  active 18/32  |g| 12  1142 steps/s  left 3m10s"
    )


def test_line_of_a_long_warm_up_keeps_beta():
    row = ROW | {"beta": 0.123456, "epoch": 12345, "train_elbo": -10115.3, "validation_elbo": -10116.2}
    line = epoch_line(row, 20000, 1e6)
    assert len(line) <= 80
    assert "beta 0.123" in line


def test_lines_in_a_file_are_plain_and_at_most_one_a_second():
    stream = io.StringIO()
    told = Progress(stream)
    for epoch in range(1, 11):
        told.tick(epoch, 1, 10)
        told.epoch(ROW | {"epoch": epoch}, 10, 0.0)
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert [line.split()[1] for line in lines] == ["1/10", "10/10"]  # the first, and the last


def test_live_line_is_drawn_at_most_five_times_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = Terminal()
    told = Progress(stream)
    for step in range(1, 101):  # a second of steps
        now[0] += 0.01
        told.tick(3, step, 200)
    drawn = stream.getvalue().count("epoch 3")
    assert 4 <= drawn <= 5
    assert "━" in stream.getvalue()
    assert "step 81/200" in stream.getvalue()
    assert "\n" not in stream.getvalue()


def test_live_line_is_wiped_before_a_line():
    stream = Terminal()
    told = Progress(stream)
    told.tick(1, 5, 10)
    told.say("saved")
    assert stream.getvalue().endswith("\r\x1b[2Ksaved\n")


def test_a_line_is_not_read_as_markup():
    stream = Terminal()
    Progress(stream).say("run runs/[bold]x[/bold] :smile:")
    assert "runs/[bold]x[/bold] :smile:" in stream.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_none_is_wanted(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    stream = Terminal()
    told = Progress(stream)
    told.tick(1, 5, 10)
    told.epoch(ROW, 10, 0.0)
    assert "\x1b[9" not in stream.getvalue()
    assert ("\x1b" in stream.getvalue()) == (name == "NO_COLOR")  # a dumb terminal gets no live line at all


def test_long_lines_are_broken_between_words_on_a_terminal_alone():
    text = "word " * 30
    for stream, lines in ((Terminal(), 2), (io.StringIO(), 1)):
        Progress(stream).say(text)
        told = [line for line in stream.getvalue().replace("\r\x1b[2K", "").splitlines() if line]
        assert len(told) == lines
        assert all(set(line.split()) == {"word"} for line in told)


def test_results_are_broken_between_words_on_a_terminal(monkeypatch):
    from ppvae import output

    stream = Terminal()
    monkeypatch.setattr(output.sys, "stdout", stream)
    output.tell("x", "log p(x) = -17.44 ± 0.22 (data) ± 0.0036 (Monte Carlo) nats (N=360, K=5000; held against another)", None)
    assert [len(line) <= 80 for line in stream.getvalue().splitlines()] == [True, True]
    assert stream.getvalue().splitlines()[1].startswith("  ")
