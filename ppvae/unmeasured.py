"""What is known of a pair whose rows are not: enumerated latents, no plate of the data. It is trained all the same, and held to this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch

from ppvae import noise
from ppvae.batches import each
from ppvae.data import Data
from ppvae.errors import DataError, ProgramError, ShapeError
from ppvae.modules import Program
from ppvae.programs import measuring, sample_sites, trace
from ppvae.support import check_support, unvalidated


def check_unmeasured(model: Program, guide: Program, part: Data, batch_size: int, seed: int, device: torch.device) -> bool:
    """Look at all data once, in batches of the sizes that training has: names, plates that choose rows themselves, supports.

    Returns:
        Whether data lie outside the support of a site whose author asked for no validation.

    Raises:
        ProgramError: A latent that neither the guide draws nor the objective enumerates, or that the guide alone draws.
        ShapeError: A plate takes a subsample of another size than the batch, which Pyro may broadcast.
        DataError: Data outside the support of an observed site.
    """
    relaxed = False
    for rows in noise.blocks(len(part), batch_size):
        x = each(part.batch(rows, noise.generator(seed, "check", rows.start)), lambda t: t.to(device))
        n = rows.stop - rows.start
        # validation is on so that an author's own validate_args=False stands out
        with noise.seeded(seed, "check", rows.start, device=device), measuring(model, guide), pyro.validation_enabled(True):
            found_q = sample_sites(trace(guide, x))
            whole = trace(model, x, {name: site["value"] for name, site in found_q.items()})
        found_p = sample_sites(whole)
        lenient = frozenset(name for name, site in found_p.items() if site["is_observed"] and unvalidated(site))
        _check_subsamples(found_p | found_q, n)
        _check_names(found_p, found_q)
        try:
            relaxed |= check_support(whole, lenient=lenient, first_row=rows.start, num_data=n)
        except DataError as error:
            raise DataError(error.problem, where=f"{part.name}/{part.split}, {error.where}", mend=error.mend) from error
    return relaxed


def _check_subsamples(sites: Mapping[str, Any], n: int) -> None:
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.full_size not in (None, frame.size) and frame.size != n:
                raise ShapeError(
                    f"site '{name}': the plate '{frame.name}' takes {frame.size} of {frame.full_size} rows, and the batch has {n} data",
                    where=f"site '{name}'",
                    mend=f"pyro.plate('{frame.name}', len(x), dim={frame.dim}): the plate is as long as the batch, which is chosen outside",
                )


def _check_names(found_p: Mapping[str, Any], found_q: Mapping[str, Any]) -> None:
    for name, site in found_p.items():
        if not site["is_observed"] and name not in found_q and not site["infer"].get("enumerate"):
            raise ProgramError(
                f"the guide misses the latent site '{name}' of the model, and nothing enumerates it",
                where=f"the guide draws {list(found_q) or 'nothing'}",
                mend=[f"add pyro.sample('{name}', ...) to the guide, spelt as in the model", "infer={'enumerate': 'parallel'}"],
            )
    for name, site in found_q.items():
        if name not in found_p and not site["is_observed"] and not site["infer"].get("is_auxiliary"):
            raise ProgramError(
                f"the guide draws '{name}', which the model does not",
                where=f"the model has {list(found_p)}",
                mend=[f"remove '{name}' or spell it as in the model", "mark it infer={'is_auxiliary': True} if it is auxiliary"],
            )
