"""Examples as tests run them: with --quick, in float32, and with what they must leave behind. ``import NAME`` finds them (pyproject.toml)."""

import json

import pyro
import torch


def quick_run(module, name, out, *more):
    """The record that an example wrote: picture, text and JSON are there, and every claim was told of."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with pyro.get_param_store().scope():
            module.main(["--quick", "--out", str(out), *more])
    finally:
        torch.set_default_dtype(dtype)
    assert (out / f"{name}.png").stat().st_size > 10_000
    record = json.loads((out / f"{name}.json").read_text())
    told = (out / f"{name}.txt").read_text()
    assert told.count("seen: ") + told.count("NOT SEEN: ") == len(record["claims"]) >= 6
    return record
