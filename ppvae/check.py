"""The contract of a program, checked before any training.

``check`` runs model and guide a few times on at most 64 rows (all rows only for NaN and the likelihood's support) and says what
breaks the contract: the site, what was needed, what came, the line to change. It trains nothing and changes nothing of the caller's.
"""

from __future__ import annotations

import pyro
import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from ppvae.batches import Batch, device_of, take
from ppvae.checks_look import Attempt, attempt, looking, untouched
from ppvae.checks_numbers import (
    batch_findings,
    data_findings,
    dependence_findings,
    finite_findings,
    finite_rows,
    gradient_findings,
    mode_findings,
    name_clash_findings,
    particle_finding,
)
from ppvae.checks_report import Finding, Report
from ppvae.checks_sites import (
    failure_finding,
    global_findings,
    name_findings,
    scale_findings,
    site_findings,
    support_findings,
)
from ppvae.errors import PpvaeError
from ppvae.modules import Program
from ppvae.programs import Pair

__all__ = ["Finding", "Report", "check"]

ROWS = 64  # rows at which structure, dependence and gradients are looked at


def check(model: Program, guide: Program, x: Batch) -> Report:
    """Hold a pair and its data to the contract of a program.

    Args:
        model, guide: Programs of one argument, the batch.
        x: Data, (N, *event), or a tuple or dict of tensors that share N, or a ``Data``.

    Returns:
        What was found: ``.ok`` where nothing breaks the contract, ``.findings``, and a text when printed. What the programs raise is
        a finding. Nothing is trained; parameters, the store, generators, modes and buffers of modules are left as they were.
    """
    data = x.x if hasattr(x, "x") else x
    found = batch_findings(data)
    if found:
        return Report.of(found)
    found = finite_findings(data)
    rows = finite_rows(data)
    if len(rows) == 0:
        return Report.of(found)
    with untouched(model, guide, device=device_of(data)) as kept:
        before = {normalize_param_name(name): tensor for name, tensor in pyro.get_param_store().named_parameters()}
        runs = _runs(model, guide, data, rows)
        found += name_clash_findings([one for run in runs for one in run.statements], before, kept.values())
        found += _structure(runs)
        if not _broken(found, but=finite_findings(data)):
            found += _numbers(model, guide, data, rows)
        found += mode_findings(kept.values())
    return Report.of(found)
