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


@pytest.mark.slow
@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=["a pair of ours", "two functions"])
def test_a_block_of_the_readme_prints_its_output(code, output, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert len(BLOCKS) == 2
    assert re.sub(r"\d", "", printed.splitlines()[0])[:12] == re.sub(r"\d", "", output.splitlines()[0])[:12]
    assert numbers(printed) == pytest.approx(numbers(output), abs=TOLERANCE)
