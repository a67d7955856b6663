"""Every program of the shelf the whole way: check, fit, log p(x), gaps, calibration, report, and made again from its folder."""

from __future__ import annotations

import functools

import pytest
import shelf
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import ppvae
from ppvae import analysis
from ppvae.data import Data
from ppvae.errors import FamilyError
from ppvae.pair import Pair

ENUMERATED = functools.partial(TraceEnum_ELBO, max_plate_nesting=1)
OPTIMIZER = functools.partial(torch.optim.Adam, lr=0.01)
# Program -> its pair, its data, its objective, the family of its gaps, the words of why they do not exist (empty where they do).
STREET = {
    "hierarchical": (shelf.hierarchy, lambda: shelf.binary(40), Trace_ELBO, "full_rank", ""),
    "ladder": (shelf.ladder, lambda: shelf.binary(40), Trace_ELBO, "full_rank", ""),
    "discrete": (shelf.discrete, lambda: shelf.binary(40), ENUMERATED, "same", "whose draws have no gradient"),
    "relaxed": (shelf.relaxed, lambda: shelf.binary(40), Trace_ELBO, "same", ""),
    "semi-supervised": (
        shelf.semi_supervised,
        lambda: shelf.partly_labelled(40),
        ENUMERATED,
        "full_rank",
        "is discrete (Categorical)",
    ),
    "deep Markov": (shelf.deep_markov, lambda: shelf.sequences(40, 3), Trace_ELBO, "full_rank", ""),
    "text, autoregressive": (shelf.autoregressive, lambda: shelf.texts(40), Trace_ELBO, "same", ""),
    "text, parallel": (shelf.parallel, lambda: shelf.texts(40), Trace_ELBO, "same", ""),
    "Bayesian decoder": (shelf.bayesian, lambda: torch.randn(40, shelf.D), Trace_ELBO, "same", ""),
}


@pytest.mark.soak
@pytest.mark.parametrize(("make", "data", "objective", "family", "refused"), STREET.values(), ids=STREET.keys())
@pytest.mark.filterwarnings("ignore::ppvae.errors.UnreliableWarning")
def test_a_program_goes_the_whole_way(make, data, objective, family, refused, tmp_path):
    (model, guide), x = make(), data()
    report = ppvae.check(model, guide, x)
    assert report.ok, str(report)
    folder = tmp_path / "run"
    run = ppvae.fit(model, guide, x, validation=x, objective=objective(), epochs=4, batch_size=20, optimizer=OPTIMIZER, out=folder)
    assert run.history[-1]["validation_elbo"] > run.history[0]["validation_elbo"]

    elbo = analysis.elbo(run.model, run.guide, x, num_particles=100)
    likelihood = analysis.log_likelihood(run.model, run.guide, x, num_particles=100, second=None)
    noise = 5 * (elbo.mean.mc_se + likelihood.mean.mc_se)
    assert likelihood.mean.value > elbo.mean.value - noise  # L_K >= L_1

    some = ppvae.batches.take(x, slice(0, 3))
    gaps = functools.partial(
        analysis.inference_gaps,
        run.model,
        run.guide,
        some,
        families=(family,),
        reference="importance",
        num_reference=100,
        num_particles=20,
        steps=5,
    )
    if not refused:
        found = gaps()
        assert torch.allclose(found.inference, found.approximation + found.amortization)
        assert torch.allclose(found.log_px - found.elbo, found.inference)
    else:
        with pytest.raises(FamilyError) as raised:
            gaps()
        assert refused in str(raised.value)

    calibration = analysis.calibration(run.model, run.guide, template=x, num_data=40, num_draws=10)
    assert calibration.ranks.shape[0] == 40
    assert calibration.ranks.max() <= 10

    rows = {"data": Data.of(x)} if isinstance(x, torch.Tensor) else {}
    page = analysis.report(folder, **rows)
    again = ppvae.load(folder)
    assert torch.equal(*(ppvae.log_weights(pair.model, pair.guide, x, num_particles=3) for pair in (again, run)))
    text = page.read_text()
    assert all(name in text for name in Pair(run.model, run.guide, x).latents)
    assert ("each datum above E[x | z]" in text.replace("Each", "each")) == bool(rows)
