"""The README's Python blocks run as they stand, and print what the README says they print."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, flags=re.DOTALL)
TOLERANCE = 0.3  # nats: another machine's rounding makes another training run; its data error on 360 digits is 0.2


def numbers(text):
    """The values that come before a first "±"."""
    return [float(value) for value in re.findall(r"(-?\d+\.\d+) ±", text)]


def sentence(text):
    """The first words, without numbers."""
    return re.sub(r"\d", "", text.splitlines()[0])[:12]


@pytest.mark.slow
@pytest.mark.example
@pytest.mark.parametrize("blocks", [BLOCKS[:1], BLOCKS[1:]], ids=["a pair of ours", "two functions, and whether to believe them"])
def test_the_blocks_of_the_readme_print_their_output(blocks, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    assert len(BLOCKS) == 3
    names = {"__name__": "readme"}
    for code, output in blocks:
        exec(compile(code, "README.md", "exec"), names)
        printed = capsys.readouterr().out
        assert sentence(printed) == sentence(output)
        assert numbers(printed) == pytest.approx(numbers(output), abs=TOLERANCE)
