"""The notebook's cells run as they stand, and print what is stored with them."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from test_readme import TOLERANCE, numbers, sentence

ROOT = Path(__file__).resolve().parents[1]
CELLS = [cell for cell in json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]


def stored(cell):
    """What a cell printed when it was stored."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def pictured(cell):
    """Whether a picture is stored with a cell."""
    return any("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_the_notebook_is_stored_as_it_ran_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert not [output for cell in CELLS for output in cell["outputs"] if output["output_type"] == "error"]
    assert [pictured(cell) for cell in CELLS] == [
        "Picture(" in "".join(cell["source"]) and "class Picture" not in "".join(cell["source"]) for cell in CELLS
    ]


@pytest.mark.slow
@pytest.mark.example
def test_the_cells_print_what_is_stored_with_them(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the notebook puts its run
    torch.set_default_dtype(torch.float32)
    names = {"__name__": "quickstart"}
    for cell in CELLS:
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
        printed, expected = capsys.readouterr().out, stored(cell)
        assert bool(printed) == bool(expected)
        if expected:
            assert sentence(printed) == sentence(expected)
            assert numbers(printed) == pytest.approx(numbers(expected), abs=TOLERANCE)
    figure = names["Picture"](names["plots"].latent_map(names["codes"]))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert (names["page"]).read_text().startswith("<!DOCTYPE html>")
