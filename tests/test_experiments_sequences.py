"""examples/text.py and music.py: quantities made by hand, distributions that sum to one, and quick runs."""

import importlib.util
import itertools
import json
import math

import music
import pytest
import text
import torch

import ppvae
from ppvae import models, nn
from quick import quick_run


@pytest.mark.parametrize("ratio", [text.per_token, music.per_frame], ids=["text", "music"])
def test_a_ratio_and_its_error_are_those_of_the_residuals(ratio):
    """(-2 - 4) / (1 + 3) = -1.5; residuals -0.5 and 0.5; sqrt(0.5 * 2 / 1) / 4 = 0.25."""
    value, se = ratio(torch.tensor([-2.0, -4.0]), torch.tensor([1, 3]))
    assert value == pytest.approx(-1.5) and se == pytest.approx(0.25)


def test_a_ratio_has_no_error_where_every_token_costs_the_same():
    lengths = torch.tensor([2, 5, 9])
    assert text.per_token(-0.7 * lengths, lengths)[1] == pytest.approx(0, abs=1e-12)


# Text.


def test_a_share_of_none_has_the_error_of_one():
    assert text.share([False] * 4) == (0.0, pytest.approx(math.sqrt(0.25 * 0.75 / 4)))
    assert text.share([True, False, False, True]) == (0.5, 0.25)


def test_sentences_are_plain_prose_with_marks_apart():
    found = text.sentences("Return the name\nof a file. See also: x_y(3).  Is it\n\nno. Well, it is here, too!")
    assert found == ["return the name of a file .", "well , it is here , too !"]


@pytest.mark.example
def test_words_are_those_of_the_list_or_of_docstrings(monkeypatch, tmp_path):
    file = tmp_path / "words"
    file.write_text("apple\nApril\nit\ncan't\npear\napple\nincomprehensible\n")
    monkeypatch.setattr(text, "WORD_LIST", file)
    assert text.words(text.QUICK) == (["apple", "pear"], str(file))
    monkeypatch.setattr(text, "WORD_LIST", tmp_path / "none")
    found, source = text.words(text.QUICK)
    assert "return" in found and "apt-get install wamerican" in source


def test_drawn_lines_are_the_same_every_time_and_none_twice(tmp_path):
    lines = [f"line {i}" for i in range(50)]
    one, other = (text.drawn_file(lines, 20, tmp_path / name).read_text() for name in ("one", "other"))
    assert one == other and len(set(one.splitlines())) == 20


def test_the_language_model_is_a_distribution_over_texts():
    """The probabilities of all 3^2 texts of two tokens sum to one, whatever stands behind the end; those of one token too."""
    torch.manual_seed(0)
    model = text.LanguageModel(3).double()
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    assert model.log_p({"tokens": every, "lengths": torch.tensor(2).expand(9)}).exp().sum().item() == pytest.approx(1, abs=1e-12)
    first = model.log_p({"tokens": every, "lengths": torch.tensor(1).expand(9)}).exp()
    assert first.sum().item() == pytest.approx(3, abs=1e-12)  # each of the three stands in three rows


def test_the_likeliest_text_is_the_likeliest_at_every_step_given_itself():
    """That is one text only: by induction over the steps."""
    torch.manual_seed(0)
    model = models.AutoregressiveText(5, 2, 4, 8).eval()
    z = 3 * torch.randn(40, 2)
    found = text.likeliest(model, z, 6)
    assert torch.equal(model.decoder.logits(z, found).argmax(-1), found) and len(found.unique(dim=0)) > 1


def test_the_likeliest_text_of_all_at_once_is_that_of_each_logit():
    network = torch.nn.Linear(1, 2 * 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0], [1.0], [0.0], [2.0], [0.0], [1.0]]))
    model = models.ParallelText(network, 3, 1)
    assert text.likeliest(model, torch.tensor([[1.0], [-1.0]]), 2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.slow
def test_a_quick_run_of_text_holds_its_identities(tmp_path):
    record = quick_run(text, "text", tmp_path)
    at = {(p["corpus"], p["name"]): p for p in record["points"]}
    assert len(at) == 1 + 1 + len(text.REMEDIES) + 1 + 1 + 2
    for corpus in ("words", "sentences"):
        alone = at[corpus, "language model"]
        assert alone["difference"] == alone["rate"] == alone["log_p_mc_se"] == 0.0
        for name in ("plain", "free bits"):  # the difference is that of the two numbers: one ratio with the same lengths
            p = at[corpus, name]
            assert p["difference"] == pytest.approx(p["log_p"] - alone["log_p"], abs=1e-6)
        assert at[corpus, "free bits"]["rate"] > 2 * at[corpus, "plain"]["rate"]
    for found in record["paths"].values():
        assert all(len(texts) in (5, 7) for texts in found)


# Music.


def test_chunks_hold_every_frame_once():
    roll = torch.arange(1, 13).reshape(2, 6, 1).float()
    found = music.chunks({"x": roll, "lengths": torch.tensor([5, 2])}, 3)
    assert found["lengths"].tolist() == [3, 2, 2]
    assert found["x"][..., 0].tolist() == [[1, 2, 3], [4, 5, 0], [7, 8, 0]]


TRAIN = {"x": torch.tensor([[[1.0], [1.0], [0.0], [0.0], [1.0]]]), "lengths": torch.tensor([4])}  # the last frame is behind the end


def test_keys_by_themselves_cost_their_cross_entropy():
    """Two of four frames: frequency 2.5 / 5; the frame behind the end counts neither here nor there."""
    data = {**TRAIN, "x": TRAIN["x"] * (torch.arange(5) < 4)[:, None]}
    x = {"x": torch.tensor([[[1.0], [0.0], [1.0]]]), "lengths": torch.tensor([2])}
    assert music.by_key(data, x).tolist() == pytest.approx([2 * math.log(2)])


def test_keys_given_themselves_cost_their_transitions():
    """After 1: once 1, once 0, (1 + 0.5) / 3; after 0: once 0, 0.5 / 2; in the first frame 2.5 / 5."""
    data = {**TRAIN, "x": TRAIN["x"] * (torch.arange(5) < 4)[:, None]}
    x = {"x": torch.tensor([[[1.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]]), "lengths": torch.tensor([3, 2])}
    expected = [3 * math.log(2), math.log(2) - math.log(0.75)]
    assert music.by_key_before(data, x).tolist() == pytest.approx(expected)


def test_keys_and_held_count_up_to_the_end():
    """Frames {a}, {a, b}, {b}: 4 keys in 3 frames; of the three from the second frame on a and b sounded before; what follows is cut."""
    roll = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]])
    keys, held = music.keys_and_held(roll, torch.tensor([3]))
    assert keys == pytest.approx(4 / 3) and held == pytest.approx(2 / 3)


ROLL = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]])
NOTES = [(0, 1, 23), (0, 2, 21), (1, 3, 22), (2, 3, 23)]


def test_notes_are_runs_of_a_key():
    assert music.notes(ROLL) == NOTES


def test_a_midi_file_reads_back_as_its_notes(tmp_path):
    mido = pytest.importorskip("mido")
    music.write_midi(ROLL, tmp_path / "a.mid")
    now, began, found = 0, {}, []
    for message in mido.MidiFile(tmp_path / "a.mid").tracks[0]:
        now += message.time
        if message.type == "note_on":
            began[message.note] = now
        elif message.type == "note_off":
            found.append((began.pop(message.note) // music.TICKS, now // music.TICKS, message.note))
    assert sorted(found) == NOTES and not began


def test_without_mido_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install mido"):
        music.write_midi(ROLL, tmp_path / "a.mid")


@pytest.mark.parametrize("untrained", [0], ids=["seed 0"])
def test_the_emission_begins_at_the_frequencies(untrained):
    """At z where the hidden layer is silent the logits are the offsets."""
    frequency = torch.tensor([0.1, 0.5, 0.8])
    model, _ = music.pair(frequency)
    last = model.emission.layers[-1]
    assert isinstance(model.emission, nn.MLP) and torch.allclose(last(torch.zeros(music.HIDDEN)).sigmoid(), frequency)


@pytest.mark.slow
def test_a_quick_run_of_music_counts_frames_and_prices_keys(tmp_path):
    """Two training pieces of 3 and 2 frames, one test piece of 3 and one of 2."""
    first, second = [[60, 64], [60], [62, 65]], [[67], [67, 60]]
    file = tmp_path / "music.json"
    file.write_text(json.dumps({"train": [first, second], "valid": [second], "test": [first, second]}))
    found = quick_run(music, "music", tmp_path / "out", "--data", str(file))["found"]
    assert found["frames"] == found["frames_in_file"] == {"train": 5, "validation": 2, "test": 5}
    # counts of 5 frames: 60 three times, 67 twice, 62, 64, 65 once, 83 keys never; half a count on each side of 6
    cost = sum(5 * -(c / 5 * math.log((c + 0.5) / 6) + (1 - c / 5) * math.log(1 - (c + 0.5) / 6)) for c in (3, 2, 1, 1, 1, *[0] * 83))
    assert found["by_key"] == pytest.approx(cost / 5, rel=1e-6)
    assert found["below_key"] == pytest.approx(found["elbo"] - found["by_key"], rel=1e-6)
    assert found["gain"] == pytest.approx(found["elbo"] - found["weighted"], rel=1e-6)
    for values in found["by_length"]:  # no piece is longer than 3 frames: all chunks are whole pieces, and the draws the same
        assert len(values) == len(music.LENGTHS) and values == pytest.approx([values[0]] * len(values), rel=1e-5)
    assert found["keys"] == pytest.approx(8 / 5) and found["held"] == pytest.approx(2 / 5)
    assert ppvae.data.music(file).train.x["x"].shape == (2, 3, 88)
