"""examples/importance_weighted.py: its objectives, its schedule, its counting of units, and a quick run from end to end."""

import collections
import dataclasses
import importlib.util
import json
import math
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae import analysis
from ppvae.data import download
from ppvae.errors import RunError
from ppvae.importance import log_mean_exp
from ppvae.models import Bernoulli

FILE = Path(__file__).resolve().parents[1] / "examples" / "importance_weighted.py"
K, N, Z = 5, 3, 2
DRAWS = torch.randn(64, 64, Z, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("importance_weighted", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Given(dist.Normal):
    """A Normal whose draws, (K, N, Z), are those of a table."""

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        draws = DRAWS[: shape[0], : shape[1]] if len(shape) == 3 else DRAWS[0, : shape[0]]
        return self.loc + self.scale * draws


def given_pair():
    model = Bernoulli(nn.Linear(Z, 4), latent_dim=Z)
    encoder = nn.Linear(4, 2 * Z)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", Given(loc, log_scale.exp()).to_event(1))

    return model, guide, torch.bernoulli(torch.full((N, 4), 0.5))


@pytest.mark.parametrize(
    ("name", "bound"), [("IWAE", lambda w: log_mean_exp(w, 0)), ("VAE", lambda w: w.mean(0))], ids=["log of the mean weight", "mean"]
)
def test_an_objective_is_its_bound_of_each_datum_on_the_same_draws(example, name, bound):
    model, guide, x = given_pair()
    log_weights = ppvae.log_weights(model, guide, x, num_particles=K)
    per_batch = bound(log_weights.sum(1, keepdim=True)).sum()
    loss = example.objective(name, K).loss(model, guide, x)
    assert -loss == pytest.approx(bound(log_weights).sum().item(), rel=1e-12)
    assert name == "VAE" or abs(per_batch + loss) > 1e-3  # one weight for the batch would be another number here


def test_the_gradient_of_the_importance_weighted_objective_is_that_of_the_bound(example):
    model, guide, x = given_pair()
    example.objective("IWAE", K).loss_and_grads(model, guide, x)
    encoder, decoder = guide.__closure__[0].cell_contents, model.network
    params = [*encoder.parameters(), *decoder.parameters()]
    loc, log_scale = encoder(x).chunk(2, -1)
    z = loc + log_scale.exp() * DRAWS[:K, :N]
    q, prior = torch.distributions.Normal(loc, log_scale.exp()), torch.distributions.Normal(0.0, 1.0)
    likelihood = torch.distributions.Bernoulli(logits=decoder(z)).log_prob(x).sum(-1)
    bound = log_mean_exp(likelihood + (prior.log_prob(z) - q.log_prob(z)).sum(-1), 0).sum()
    expected = torch.autograd.grad(-bound, params)
    assert all(torch.allclose(p.grad, g, rtol=1e-9, atol=1e-12) for p, g in zip(params, expected, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
def test_with_one_sample_both_objectives_train_the_same_pair(example, layers, tmp_path):
    protocol, train = example.QUICK, ppvae.data.load("digits", binarize="dynamic").train[:40]
    torch.set_default_dtype(torch.float32)
    runs = [example.trained(example.Row(layers, name, 1), train, protocol, tmp_path) for name in ("VAE", "IWAE")]
    vae, iwae = ([p for program in (run.model, run.guide) for p in program.parameters()] for run in runs)
    untrained = [p for program in example.pair(layers, train, protocol) for p in program.parameters()]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(vae, iwae, strict=True))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(vae, untrained, strict=True))


def test_a_run_of_more_epochs_than_the_other_rows_is_refused(example, tmp_path):
    train = ppvae.data.load("digits", binarize="dynamic").train[:20]
    torch.set_default_dtype(torch.float32)
    example.trained(example.VAE, train, dataclasses.replace(example.QUICK, epochs=2), tmp_path)
    with pytest.raises(RunError, match="has 2 epochs, and every row has 1"):
        example.trained(example.VAE, train, dataclasses.replace(example.QUICK, epochs=1), tmp_path)


def _unreachable(*_, **__):
    raise urllib.error.URLError("no network here")


def test_mnist_is_ready_and_says_how_to_get_its_files(example, tmp_path, monkeypatch):
    monkeypatch.setenv("PPVAE_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["importance_weighted.py", "--data", "mnist", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(urllib.request, "urlopen", _unreachable)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    with pytest.raises(SystemExit, match="mnist: needed https://") as raised:
        example.main()
    assert "fetch it by other means and put it there" in str(raised.value)
    assert example.PRESETS["mnist"] == example.PAPER


def test_the_rates_are_those_of_the_papers_3280_passes(example):
    counted = collections.Counter(example.rate(epoch) for epoch in range(example.PAPER.epochs))
    assert counted == {10 ** (-i / 7): 3**i for i in range(8)}
    assert list(counted) == sorted(counted, reverse=True)


def test_adam_on_the_mean_of_a_batch_steps_as_the_papers_on_its_sum(example):
    of_sum, of_mean = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    steps = [torch.optim.Adam([of_sum], lr=1e-3, eps=1e-4), example.adam(example.PAPER)([of_mean])]
    gradient = torch.tensor([1e-5, 1e-3, 1.0])  # of the sum; the first is small beside eps
    of_sum.grad, of_mean.grad = gradient, gradient / example.PAPER.batch_size
    for step in steps:
        step.step()
    assert torch.allclose(of_sum, of_mean, rtol=1e-9, atol=0)
    assert of_mean[0].item() == pytest.approx(-1e-3 * 1e-5 / (1e-5 + 1e-4), rel=1e-9)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_output_starts_at_the_logit_of_the_mean_pixel(example, layers):
    train = ppvae.data.load("digits", binarize="dynamic").train
    model, _ = example.pair(layers, train, example.QUICK)
    output = model.network if layers == 1 else model.to_x
    grey = train.raw.double() / 16
    assert torch.allclose(output.layers[-1].bias.sigmoid(), grey.mean(0).clamp(0.001, 0.999), rtol=0, atol=1e-12)
    assert (grey.mean(0) == 0).any()  # a pixel that is never lit would start at -inf without the clamp


def test_a_unit_is_active_by_the_variance_of_its_means_not_of_its_draws(example):
    x = torch.tensor([-1.0, 1.0]).repeat(50)[:, None]
    factors = torch.tensor([math.sqrt(0.0101), -math.sqrt(0.0099), 0.0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(factors * x + 3.0, 10.0).to_event(1))

    means = example.posterior_means(guide, x)
    assert example.active_units(means) == {"z": 1}
    assert means["z"].var(0, correction=0).tolist() == pytest.approx([0.0101, 0.0099, 0.0], abs=1e-12)


def test_the_upper_layer_is_conditional_on_one_draw_of_the_lower(example):
    x, before = torch.randn(20_000, 1), torch.random.get_rng_state()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            h1 = pyro.sample("h1", dist.Normal(x, 2.0).to_event(1))
            pyro.sample("h2", dist.Normal(h1, 1.0).to_event(1))

    means = example.posterior_means(guide, x)
    assert torch.equal(means["h1"], x)
    noise = (means["h2"] - x).var().item()  # that of one draw of h1, and nothing of h2's own
    assert noise == pytest.approx(4.0, abs=4 * 4.0 * math.sqrt(2 / 20_000))
    assert torch.equal(torch.random.get_rng_state(), before)


def measured(example, log_px, means):
    log_px = torch.tensor(log_px, dtype=torch.float64)
    return example.Measured(
        log_px, torch.zeros_like(log_px), 2 * log_px, 1.0, 0.0, {"z": torch.tensor(means, dtype=torch.float64)}, 1.0, 0.0
    )


def test_a_claim_is_a_paired_difference_beside_the_published_one(example):
    vae, iwae = example.VAE, example.IWAE
    found = {iwae: measured(example, [1.0, 2.0, 3.0], [[1.0]]), vae: measured(example, [0.0, 1.0, 4.0], [[1.0]])}
    claim = example.on_log_px("", 1, found, iwae, vae)
    assert claim.difference == pytest.approx(1 / 3)
    assert claim.se == pytest.approx(2 / 3)  # differences 1, 1, -1: variance 4/3, over 3 data
    assert claim.second == pytest.approx(2 / 3)  # twice as far apart in these
    assert claim.published == pytest.approx(86.76 - 84.78)
    assert claim.verdict == "not decided"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "seen"), (-1, "the opposite")])
def test_a_verdict_goes_by_the_sign_that_the_paper_found(example, sign, verdict):
    found = {example.IWAE: measured(example, [1.0, 2.0], [[1.0]]), example.VAE: measured(example, [0.0, 1.1], [[1.0]])}
    assert example.on_log_px("", sign, found, example.IWAE, example.VAE).verdict == verdict


def test_units_are_counted_over_all_layers_and_their_error_is_that_of_the_images(example):
    n = 400
    spread = torch.linspace(-1, 1, n, dtype=torch.float64)
    spread = spread / spread.std(correction=0)
    wide = {"h1": torch.stack([spread, spread], 1), "h2": spread[:, None]}
    edge = {"h1": torch.stack([spread, 0 * spread], 1), "h2": 0.1 * 1.0001 * spread[:, None]}  # that of h2 is just above the threshold
    assert example.active_difference(edge, edge) == (0.0, 0.0)  # the same images for both
    difference, se = example.active_difference(wide, edge)
    assert difference == 1.0
    assert se == pytest.approx(0.5, abs=0.05)  # the unit at the threshold is active in half of the resamples


@pytest.fixture(scope="module")
def quick(example, tmp_path_factory):
    """A quick run in a folder of its own, and what it wrote."""
    out, dtype, argv = tmp_path_factory.mktemp("quick"), torch.get_default_dtype(), sys.argv
    torch.set_default_dtype(torch.float32)
    sys.argv = ["importance_weighted.py", "--quick", "--data", "digits", "--out", str(out)]
    try:
        example.main()
    finally:
        sys.argv = argv
        torch.set_default_dtype(dtype)
    return out, json.loads((out / "importance-weighted.json").read_text())


@pytest.mark.slow
def test_a_quick_run_writes_every_row_with_the_same_schedule(example, quick):
    out, record = quick
    every = (*example.rows(example.QUICK), *example.continued(example.QUICK))
    assert list(record["rows"]) == [row.name for row in every] and len(every) == 10
    names = [row.folder(example.QUICK) for row in every]
    steps = {name: json.loads((out / name / "history.jsonl").read_text().splitlines()[-1])["step"] for name in names}
    told = {name: json.loads((out / name / "config.json").read_text())["objective"] for name in names}
    assert told["2-layer-vae-k3"] == told["1-layer-vae-k3"] == "Trace_ELBO(num_particles=3)"
    assert told["2-layer-iwae-k3"] == told["1-layer-vae-k1-as-iwae-k3-from-epoch-4"] == "RenyiELBO(num_particles=3, alpha=0)"
    assert {steps[name] for name in names[:6]} == {4 * 5}  # passes, by 100 images in batches of 20
    assert {steps[name] for name in names[6:]} == {2 * 5}
    assert (out / "importance-weighted.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_the_numbers_of_a_row_are_those_of_its_own_folder(example, quick, layers):
    out, record = quick
    torch.set_default_dtype(torch.float32)
    data = ppvae.data.load("digits", binarize="dynamic")
    row = example.Row(layers, "IWAE", 3)
    run = ppvae.load(out / row.folder(example.QUICK), *example.pair(layers, data.train[:100], example.QUICK))
    log_px = analysis.log_likelihood(run.model, run.guide, data.test[:20], num_particles=50, seed=0)
    usage = analysis.latent_usage(run.model, run.guide, data.train.x[:50], num_mutual=1)
    lower = "z" if layers == 1 else "h1"  # of the upper one the library averages the draws of the lower
    told = record["rows"][row.name]
    assert told["log_px"]["value"] == pytest.approx(log_px.mean.value, abs=1e-4)
    assert told["second"] == pytest.approx(log_px.verdict.bound.mean().item(), abs=1e-3)
    assert told["active_units"][lower] == usage.active_units[lower]
    assert told["unit_variances"][lower] == pytest.approx(usage.unit_variance[lower].tolist(), rel=1e-5)


@pytest.mark.slow
def test_a_continued_row_starts_at_the_trained_one(example, quick):
    out, _ = quick
    torch.set_default_dtype(torch.float32)
    train = ppvae.data.load("digits", binarize="dynamic").train[:100]
    rows = [example.VAE, example.Row(1, "VAE", 1, example.VAE)]
    before, after = (
        list(ppvae.load(out / row.folder(example.QUICK), *example.pair(1, train, example.QUICK)).model.parameters()) for row in rows
    )
    moved = max((a - b).abs().max().item() for a, b in zip(before, after, strict=True))
    assert 0 < moved <= 10 * 1e-4 * 1.01  # ten steps of Adam, each of the lower rate at most


@pytest.mark.slow
def test_a_second_call_reads_what_the_first_one_measured(example, quick, monkeypatch):
    out, record = quick
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(sys, "argv", ["importance_weighted.py", "--quick", "--out", str(out)])
    monkeypatch.setattr(analysis, "log_likelihood", lambda *args, **kwargs: pytest.fail("measured again"))
    example.main()
    assert json.loads((out / "importance-weighted.json").read_text()) == record
