"""The contract of a program, checked before any training.

``check`` runs model and guide a few times on at most 64 rows (all rows only for NaN and the likelihood's support) and says what
breaks the contract: the site, what was needed, what came, the line to change. It trains nothing and changes nothing of the caller's.
"""

from __future__ import annotations

import pyro
import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from ppvae.batches import Batch, device_of, num_data, take
from ppvae.checks_look import Attempt, attempt, for_rows, looking, untouched
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
    raised_finding,
    scale_findings,
    site_findings,
    support_findings,
)
from ppvae.errors import PpvaeError
from ppvae.modules import Program
from ppvae.pair import Pair

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
        clashes = name_clash_findings([one for run in runs for one in run.statements], before, kept.values())
        found += _structure(*runs)
        if Report.of(found).ok:
            found += _numbers(model, guide, data)
        found += clashes + mode_findings(kept.values())
    return Report.of(found)


def _runs(model: Program, guide: Program, x: Batch, rows: Tensor) -> tuple[Attempt, Attempt, Attempt, Attempt]:
    """Guide and model, the latents of the guide replayed, on two batches of different sizes."""
    n = min(ROWS, len(rows))
    # The second has two rows, which measurement looks at first; no size can then coincide with the number of data in both.
    batches = [rows[:n], rows[:2] if n > 2 else rows.repeat(2)[: n + 1]]
    with looking(model, guide, x=x, purpose="structure"):
        guides = [attempt("guide", for_rows(guide, numbers), take(x, numbers)) for numbers in batches]
        # Latents of a guide that is at fault would put the model at fault too: then they come from the prior.
        sound = all(run.error is None for run in guides) and not site_findings(guides[0], guides[1])
        values = [run.values if sound else {} for run in guides]
        models = [attempt("model", model, take(x, numbers), latents) for numbers, latents in zip(batches, values, strict=True)]
    return guides[0], models[0], guides[1], models[1]


def _structure(guide: Attempt, model: Attempt, guide_again: Attempt, model_again: Attempt) -> list[Finding]:
    """Shapes, plates, names and supports; what ended a run, unless one of those explains it."""
    of_guide, of_model = site_findings(guide, guide_again), site_findings(model, model_again)
    found = of_guide + of_model + name_findings(model, guide)
    if not (of_guide or of_model):
        found += support_findings(model, guide)
    failed = [failure_finding(guide) or failure_finding(guide_again), failure_finding(model) or failure_finding(model_again)]
    if failed[0] is not None and not of_guide:
        found.append(failed[0])
    alone = bool(of_guide) or failed[0] is not None  # then the model ran on its prior, and its failure is its own
    if failed[1] is not None and not of_model and (alone or Report.of(found).ok):
        found.append(failed[1])
    if not Report.of(found).ok:
        return found
    return found + scale_findings(guide) + scale_findings(model) + global_findings(model)


def _numbers(model: Program, guide: Program, x: Batch) -> list[Finding]:
    """What only sound programs can be asked: supports over all data, dependence, gradients, how particles go."""
    found = data_findings(model, guide, x)
    if not Report.of(found).ok:
        return found
    rows = torch.arange(min(ROWS, num_data(x)))
    try:
        pair = Pair(model, guide, x)
        found += dependence_findings(pair, x, rows)
    except PpvaeError as error:
        return [*found, Finding.of(error)]
    except Exception as error:  # the user's networks may refuse two rows, which measurement looks at first
        mend = "make both programs run on a batch of 2 data"
        return [*found, raised_finding("error", "measuring the pair", error, "the pair", mend)]
    if Report.of(found).ok:
        found.append(particle_finding(pair))
    return found + gradient_findings(model, for_rows(guide, rows), take(x, rows))
