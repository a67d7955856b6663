"""Missing entries: training, log p(x) and its bounds are those of the observed part, whatever stands in the holes."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
import ppvae.svi
from ppvae import analysis, models
from ppvae.data import Data
from ppvae.data.presented import Presented
from ppvae.engine import Engine
from ppvae.errors import DataError, ShapeError
from ppvae.models.missing import masked, parts

NAN = math.nan
X = torch.tensor([[1.0, -2.0, 5.0], [3.0, -4.0, 9.0], [7.0, -6.0, 6.0]], dtype=torch.float32)
OBSERVED = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
GARBAGE = {"nan": NAN, "infinite": math.inf, "huge": 1e30, "zero": 0.0}


def with_holes(value=NAN, x=X):
    return torch.where(OBSERVED, x, value)


def linear_gaussian(num_data=40, scale=0.6):
    """Probabilistic PCA, D = 6, Z = 2, and data of which 40 % are missing; the first datum has none observed, the second all."""
    model = models.LinearGaussian(6, 2, scale)
    with torch.no_grad():
        model.bias.normal_()
    x = (torch.randn(num_data, 2) @ model.weight.mT + model.bias + scale * torch.randn(num_data, 6)).detach()
    observed = torch.rand(num_data, 6) < 0.6
    observed[0], observed[1] = False, True
    return model.requires_grad_(False), x, observed


def exact_log_px(model, x, observed):
    """log N(x_o; b_o, (W W' + s^2 I)_oo), by the submatrix of each datum."""
    covariance = model.weight @ model.weight.mT + model.log_scale.exp() ** 2 * torch.eye(6)
    found = []
    for row, o in zip(x, observed, strict=True):
        marginal = dist.MultivariateNormal(model.bias[o], covariance[o][:, o]) if o.any() else None
        found.append(marginal.log_prob(row[o]) if marginal else torch.zeros(()))
    return torch.stack(found)


def guide_of(model, inflation=1.3):
    """The posterior given the observed entries, inflated: every bound is then below log p(x)."""

    def guide(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            exact = model.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.mean, scale_tril=inflation * exact.scale_tril))

    return guide


class Encoder(nn.Module):
    """A guide in two lines: values and mask side by side."""

    def __init__(self, width, latent_dim):
        super().__init__()
        self.network = ppvae.nn.MLP(2 * width, [16], 2 * latent_dim)

    def forward(self, x):
        pyro.module("encoder", self.network)
        loc, log_scale = self.network(torch.cat([x["x"], x["observed"].to(x["x"].dtype)], -1)).chunk(2, -1)
        with pyro.plate("data", len(loc), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# What a program is given


def test_a_program_sees_values_and_a_mask():
    found = Data.from_arrays(with_holes(), missing="mask")
    assert found.x["observed"].tolist() == OBSERVED.tolist()
    assert found.x["x"].tolist() == [[1, -4, 5], [1, -4, 6 - 1], [7, -6, 6]]
    batch = found.batch(torch.tensor([2, 0]), None)
    assert (batch["x"].tolist(), batch["observed"].tolist()) == ([[7, -6, 6], [1, -4, 5]], [[True] * 3, [True, False, True]])
    assert found[1:].x["observed"].tolist() == OBSERVED[1:].tolist()


def test_a_hole_holds_the_value_nearest_to_zero_that_its_column_spans():
    x = torch.tensor([[2.0, -3.0, -1.0, NAN], [4.0, -5.0, 1.0, NAN], [NAN, NAN, NAN, NAN]], dtype=torch.float32)
    assert Data.from_arrays(x, missing="mask").x["x"][2].tolist() == [2, -3, 0, 0]  # a column without any: of the range of all, -5 to 4


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_of_what_stood_in_a_hole_is_left(garbage, dtype):
    x = with_holes(garbage).to(dtype)
    found, clean = (Data.from_arrays(values, missing=~OBSERVED) for values in (x, X.to(dtype)))
    assert torch.equal(found.x["x"], clean.x["x"])
    assert found.x["x"].dtype == dtype
    assert found.sha256 == clean.sha256


def test_a_mask_of_integers_and_bytes():
    x = torch.tensor([[0, 200], [255, 3]], dtype=torch.uint8)
    mask = torch.tensor([[False, True], [False, False]])
    found = Data.from_arrays(x, missing=mask.numpy(), binarize="threshold", levels=255)
    assert found.raw["x"].dtype == torch.uint8
    assert found.x["x"].tolist() == [[0, 0], [1, 0]]
    assert Data.from_arrays(x, missing="mask").num_missing == 0


def test_images_are_flattened_with_their_mask():
    found = Data.from_arrays(torch.rand(5, 2, 3), missing=torch.rand(5, 2, 3) < 0.5, flatten=True)
    assert found.event_shape == {"x": (6,), "observed": (6,)}
    assert found.x["observed"].shape == (5, 6)


@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic", "none"])
def test_steps_are_given_what_data_show(binarize):
    found = Data.from_arrays(torch.rand(20, 3), missing=torch.rand(20, 3) < 0.5, binarize=binarize, levels=1.0)[3:]
    presented, rows = Presented(found), torch.tensor([4, 1, 16])
    batch = presented.batch(*presented.inputs(rows, seed=1))
    assert torch.equal(batch["observed"], found.x["observed"][rows])
    if binarize == "dynamic":
        again = presented.batch(*presented.inputs(rows, seed=2))
        assert not torch.equal(batch["x"], again["x"])
    else:
        assert torch.equal(batch["x"], found.x["x"][rows])


def test_load_splits_values_with_their_masks():
    x = torch.arange(60.0).reshape(20, 3)
    splits = ppvae.data.load(torch.where(x % 4 == 0, NAN, x), missing="mask")
    assert [part.num_missing for part in (splits.train, splits.validation, splits.test)] == [
        int((~part.x["observed"]).sum()) for part in (splits.train, splits.validation, splits.test)
    ]
    assert "event shape (3,); values as they stand (counting); split by seed 0; 15 entries missing" in str(splits)
    assert splits.train.describe()["num_missing"] == splits.train.num_missing
    assert "num_missing" not in Data.of(x).describe()


@pytest.mark.parametrize(
    ("x", "missing", "problem"),
    [
        (with_holes(), None, "needed finite numbers, and 3 values that are not finite came"),
        (with_holes(math.inf), "mask", "and 3 values that are not finite came; the first is inf"),
        (with_holes(), torch.zeros(3, 3, dtype=torch.bool), "and 3 values that are not finite came"),
        (X, "nan", "needed missing='mask' or an array of True and False, and missing='nan' came"),
        (X, torch.zeros(3, 2, dtype=torch.bool), r"in the shape of the data, \(3, 3\), and torch.bool of shape \(3, 2\) came"),
        (
            X,
            torch.zeros(3, 3, dtype=torch.float32),
            r"needed True and False in the shape of the data, \(3, 3\), and torch.float32 of shape \(3, 3\) came",
        ),
        (X, torch.ones(3, 3, dtype=torch.bool), "needed an observed entry, and all 9 are missing"),
        ((X, X), "mask", "needed one array with missing entries, and a tuple came"),
        ({"a": X}, "mask", "needed one array with missing entries, and a dict came"),
    ],
    ids=["undeclared", "infinite", "not in the mask", "another word", "shape", "numbers", "nothing observed", "tuple", "dict"],
)
def test_holes_that_cannot_be_told_are_refused(x, missing, problem):
    with pytest.raises(DataError, match=problem):
        Data.from_arrays(x, missing=missing)


# The likelihood of the observed part


def test_a_missing_entry_leaves_its_factor_out():
    likelihood = dist.Normal(torch.zeros(3, 3), torch.tensor([1.0, 2.0, 3.0])).to_event(1)
    x = X.double()
    by_entry = dist.Normal(torch.zeros(3, 3), torch.tensor([1.0, 2.0, 3.0])).log_prob(x)
    assert torch.equal(masked(likelihood, OBSERVED).log_prob(x), (by_entry * OBSERVED).sum(-1))
    assert masked(likelihood, None) is likelihood


def test_images_are_masked_pixel_by_pixel():
    observed = torch.rand(4, 2, 3) < 0.5
    likelihood = dist.Bernoulli(torch.rand(5, 4, 2, 3)).to_event(2)  # with particles
    x = torch.ones(4, 2, 3)
    by_entry = likelihood.base_dist.log_prob(x)
    assert torch.allclose(masked(likelihood, observed).log_prob(x), (by_entry * observed).sum((-1, -2)), rtol=1e-14)


@pytest.mark.parametrize(
    ("likelihood", "observed", "problem"),
    [
        (dist.MultivariateNormal(torch.zeros(3, 3), torch.eye(3)), OBSERVED, "MultivariateNormal is one density of 1 dimensions together"),
        (
            dist.Normal(torch.zeros(3, 3), 1.0).to_event(1),
            OBSERVED[:, :2],
            r"the mask has shape \(3, 2\), and the likelihood's event shape is \(3,\)",
        ),
        (dist.Normal(torch.zeros(3, 3), 1.0).to_event(1), OBSERVED[0], r"the mask has shape \(3,\)"),
    ],
    ids=["dependent", "width", "one row"],
)
def test_a_mask_that_would_not_integrate_out_is_refused(likelihood, observed, problem):
    with pytest.raises(ShapeError, match=problem):
        masked(likelihood, observed)


@pytest.mark.parametrize(("x", "came"), [({"x": X}, "a dict of 'x'"), ((X, OBSERVED), "a tuple")])
def test_a_batch_of_another_structure_is_told(x, came):
    with pytest.raises(ShapeError, match=f"and {came} came"):
        parts(x)


def test_closed_forms_are_those_of_the_submatrices():
    model, x, observed = linear_gaussian()
    data = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    assert torch.allclose(model.log_evidence(data.x), exact_log_px(model, x, observed), atol=1e-12)
    assert torch.allclose(model.log_evidence(data.x)[1], model.log_evidence(x)[1], atol=1e-12)
    assert torch.allclose(model.posterior(data.x).mean[1], model.posterior(x).mean[1], atol=1e-12)
    assert model.posterior(data.x).mean[0].tolist() == [0, 0]  # nothing observed: the prior
    assert torch.allclose(model.posterior(data.x).covariance_matrix[0], torch.eye(2), atol=1e-12)
    found = analysis.exact_log_likelihood(model, data)
    assert torch.allclose(found.pointwise, exact_log_px(model, x, observed), atol=1e-12)


def test_log_likelihood_is_that_of_the_observed_part():
    model, x, observed = linear_gaussian()
    data = Data.from_arrays(torch.where(observed, x, 1e30), missing=~observed)
    assert ppvae.check(model, guide_of(model), data).ok
    exact = exact_log_px(model, x, observed)
    found = analysis.log_likelihood(model, guide_of(model), data, num_particles=2000)
    assert ((found.pointwise - exact).abs() < 4 * found.pointwise_se + 1e-12).all()
    assert found.pointwise[0].abs() < 4 * found.pointwise_se[0]  # nothing observed: log 1
    assert found.trusted.all()
    assert found.source.data["num_missing"] == int((~observed).sum())


def test_elbo_is_below_by_the_divergence_of_the_guide():
    model, x, observed = linear_gaussian()
    data = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    found = analysis.elbo(model, guide_of(model), data, num_particles=2000)
    divergence = 2 * (1.3**2 - 1) / 2 - 2 * math.log(1.3)  # KL(N(m, 1.3^2 S) || N(m, S)) in two dimensions
    assert ((found.pointwise + divergence - exact_log_px(model, x, observed)).abs() < 4 * found.pointwise_se).all()


def test_annealed_log_likelihood_is_that_of_the_observed_part():
    model, x, observed = linear_gaussian(12)
    data = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    found = analysis.annealed_log_likelihood(model, data, guide=guide_of(model), num_temperatures=50)
    assert ((found.pointwise - exact_log_px(model, x, observed)).abs() < 4.5 * found.pointwise_se + 1e-3).all()


def test_refinement_reaches_log_px_of_the_observed_part():
    model, x, observed = linear_gaussian(10)
    data = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    refined = analysis.refine(model, guide_of(model), data, family="full_rank")
    assert torch.allclose(refined.pointwise, exact_log_px(model, x, observed), atol=1e-4)


def test_bernoulli_data_by_enumeration():
    """z in {-1, 1} with equal weight, x_d ~ Bernoulli(sigmoid(z a_d + c_d)): the sum over z by hand."""
    a, c = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.0, -1.0])
    x = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.uint8)

    def model(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            z = 2 * pyro.sample("z", dist.Bernoulli(0.5)) - 1
            likelihood = dist.Bernoulli(logits=z[..., None] * a + c).to_event(1)
            pyro.sample("x", masked(likelihood, x["observed"]), obs=x["x"])

    data = Data.from_arrays(x.double(), missing=~OBSERVED)
    expected = []
    for row, observed in zip(x.tolist(), OBSERVED.tolist(), strict=True):
        total = 0.0
        for z in (-1, 1):
            p = [1 / (1 + math.exp(-(z * ad + cd))) for ad, cd in zip(a.tolist(), c.tolist(), strict=True)]
            total += 0.5 * math.prod(pd if xd else 1 - pd for xd, pd, seen in zip(row, p, observed, strict=True) if seen)
        expected.append(math.log(total))
    found = analysis.exact_log_likelihood(model, data)
    assert found.pointwise.tolist() == pytest.approx(expected, abs=1e-12)


# Training


def trained(x, observed, engine):
    torch.manual_seed(0)
    model = models.Bernoulli(ppvae.nn.MLP(2, [16], x.shape[-1]), 2)
    guide = Encoder(x.shape[-1], 2)
    data = Data.from_arrays(x, missing=~observed)
    ppvae.fit(model, guide, data, epochs=3, batch_size=16, seed=0, compile=engine)
    return torch.cat([p.detach().flatten() for p in [*model.parameters(), *guide.parameters()]])


def test_training_is_the_same_bit_for_bit_whatever_stands_in_the_holes():
    x, observed = (torch.rand(64, 9) < 0.5).double(), torch.rand(64, 9) < 0.7
    first = trained(torch.where(observed, x, 0), observed, False)
    for garbage in (NAN, -1e30, 0.5, 1.0):
        assert torch.equal(trained(torch.where(observed, x, garbage), observed, False), first)
    flipped = observed.clone()
    flipped[0, 0] ^= True
    assert not torch.equal(trained(x, flipped, False), first)  # the test can fail


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["graph", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiled_training_is_the_same_bit_for_bit_whatever_stands_in_the_holes(backend, capsys, monkeypatch):
    if backend == "graph":
        monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=lambda graph, inputs: graph))
    x, observed = (torch.rand(64, 9) < 0.5).double(), torch.rand(64, 9) < 0.7
    garbage = torch.tensor([NAN, -1e30, 0.5])[torch.randint(3, x.shape)]
    first, second = (trained(torch.where(observed, x, hole), observed, True) for hole in (0.0, garbage))
    assert torch.equal(first, second)
    assert "eager" not in capsys.readouterr().err  # it was compiled indeed
    assert torch.allclose(first, trained(x, observed, False), rtol=1e-6, atol=1e-9)


def test_the_loss_of_a_step_is_that_of_the_observed_part():
    model, x, observed = linear_gaussian()
    data = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    svi = ppvae.SVI(
        model.requires_grad_(True), guide_of(model, inflation=1.0), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), compile=False
    )
    loss = svi.evaluate_loss(data.x)  # with the posterior as guide every draw gives log p(x)
    assert loss == pytest.approx(-exact_log_px(model, x, observed).sum().item(), rel=1e-10)


def test_training_with_holes_finds_the_model():
    """Maximum likelihood on 30 % missing entries comes as near to the truth as its 2,000 data allow: log p(x) held out, in nats."""
    truth, x, observed = linear_gaussian(2000)
    train = Data.from_arrays(torch.where(observed, x, NAN), missing="mask")
    model = models.LinearGaussian(6, 2, 1.0)

    def guide(batch):
        exact = model.posterior(batch)
        with pyro.plate("data", len(batch["x"]), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(exact.mean.detach(), scale_tril=exact.scale_tril.detach()))

    pyro.set_rng_seed(0)
    optimizer = torch.optim.Adam
    ppvae.fit(model, guide, train, epochs=50, batch_size=500, optimizer=lambda p: optimizer(p, lr=0.03), compile=False)
    fresh = truth.bias + torch.randn(4000, 2) @ truth.weight.mT + 0.6 * torch.randn(4000, 6)
    lost = (truth.log_evidence(fresh) - model.log_evidence(fresh)).mean().item()
    parameters = 6 + 6 * 2 - 1 + 1
    assert 0 < lost < 4 * parameters / (2 * 2000 * 0.5)  # half a parameter's worth each datum, half of the entries observed, four times


# What stands around the model: the guide, the support, simulated data, the command line


def amortized(z=2):
    return ppvae.guides.DiagonalNormal(ppvae.nn.WithMask(ppvae.nn.MLP(12, [16], 2 * z)), latent_dim=z)


def test_a_guide_reads_values_and_mask_and_never_the_holes():
    network = ppvae.nn.WithMask(nn.Identity())
    x, observed = torch.tensor([[1.0, NAN, 3.0]]), torch.tensor([[True, False, True]])
    assert network({"x": x, "observed": observed}).tolist() == [[1.0, 0.0, 3.0, 1.0, 0.0, 1.0]]


def test_a_pair_with_holes_is_checked_trained_and_measured():
    model, x, observed = linear_gaussian(200)
    data = Data.from_arrays(x, missing=~observed)
    guide = amortized()
    assert ppvae.check(model, guide, data).ok
    run = ppvae.fit(model, guide, data, epochs=60, batch_size=50, seed=0)
    found = analysis.log_likelihood(run.model, run.guide, data[:50], num_particles=2000, seed=1)
    apart = (found.pointwise - exact_log_px(model, x[:50], observed[:50])).abs()
    assert (apart[found.k_hat < 0.5] < 4.5 * found.pointwise_se[found.k_hat < 0.5] + 1e-6).all()
    assert (found.k_hat < 0.5).sum() >= 15  # or nothing was looked at


@pytest.mark.parametrize("form", ["entries", "rows", "handler"])
def test_the_support_asks_nothing_of_what_is_masked(form):
    from ppvae.support import inside

    x = torch.tensor([[1.0, 7.0], [0.0, 5.0]])
    entries, rows = torch.tensor([[True, False], [True, True]]), torch.tensor([True, False])

    def model(x):
        bernoulli = dist.Bernoulli(torch.zeros(2, 2))
        with pyro.plate("data", 2, dim=-1):
            if form == "entries":
                pyro.sample("x", bernoulli.mask(entries).to_event(1), obs=x)
            elif form == "rows":
                pyro.sample("x", bernoulli.to_event(1).mask(rows), obs=x)
            else:
                with pyro.poutine.mask(mask=~rows):
                    pyro.sample("x", dist.Dirichlet(torch.ones(2, 2)), obs=x)

    with pyro.validation_enabled(False):
        site = pyro.poutine.trace(model).get_trace(x).nodes["x"]
    expected = {"entries": [[True, True], [True, False]], "rows": [[True, False], [True, True]], "handler": [True, False]}
    assert inside(site).tolist() == expected[form]


def test_simulated_data_keep_what_stands_in_the_holes():
    from ppvae.analysis.simulated import Placement
    from ppvae.pair import Pair

    model, x, observed = linear_gaussian(10)
    batch = {"x": torch.where(observed, x, -99.0), "observed": observed}
    made = Placement(Pair(model, guide_of(model), batch, 0), batch)(batch, {"x": torch.full_like(x, 5.0)})
    assert torch.equal(made["x"], torch.where(observed, 5.0, -99.0))
    assert torch.equal(made["observed"], observed)


def test_predictive_statistics_are_of_the_observed_entries():
    model, x, observed = linear_gaussian(60)
    there = x[observed]
    for filler in (0.0, 1000.0):
        data = {"x": torch.where(observed, x, filler), "observed": observed}
        found = analysis.predictive_check(model, guide_of(model, 1.0), data, num_draws=30, num_simulated=20, num_particles=50)
        told = dict(zip(found.names, found.observed.tolist(), strict=True))
        assert told["mean"] == pytest.approx(there.mean().item(), abs=1e-12)
        assert told["sd"] == pytest.approx(there.std(correction=0).item(), abs=1e-12)


def test_the_command_line_trains_and_measures_a_table_with_holes(tmp_path, capsys):
    from ppvae.cli import main

    torch.set_default_dtype(torch.float32)
    model, x, observed = linear_gaussian(120)
    lines = [",".join(f"{v:.6g}" if o else "" for v, o in zip(row, there, strict=True)) for row, there in zip(x, observed, strict=True)]
    table = tmp_path / "holes.csv"
    table.write_text("\n".join(["a,b,c,d,e,f", *lines]) + "\n")
    run = tmp_path / "run"
    small = ["--hidden", "8", "--latent-dim", "2", "--epochs", "2", "--threads", "1", "--out", str(run)]
    assert main(["train", "--data", str(table), *small]) == 65
    assert "missing" in capsys.readouterr().err
    assert main(["train", "--data", str(table), "--missing", "mask", *small]) == 0
    assert main(["evaluate", str(run), "--num-particles", "50"]) == 0
    assert "log p(x) = " in capsys.readouterr().out
