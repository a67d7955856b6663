"""The blocks of docs/data.md run as they stand, and print what it says they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n```text\n(.*?)```)?", TEXT, flags=re.DOTALL)
TOLERANCE = 0.3  # nats, and the tenth of a standard deviation: another machine's rounding makes another training run


@pytest.mark.slow
def test_the_blocks_print_what_the_page_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    assert len(BLOCKS) == 5
    names = {"__name__": "data.md"}
    for code, expected in BLOCKS:
        exec(compile(code, "docs/data.md", "exec"), names)
        printed = capsys.readouterr().out
        if "±" not in expected and "imputed" not in expected:
            assert printed == expected
            continue
        assert [line[:12] for line in printed.splitlines()] == [line[:12] for line in expected.splitlines()]
        pattern = r"(-?\d+\.\d+) ±|off by (\d+\.\d+)"
        found, told = ([float(a or b) for a, b in re.findall(pattern, text)] for text in (printed, expected))
        assert found == pytest.approx(told, abs=TOLERANCE)
