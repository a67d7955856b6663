"""Errors that a user meets at the edge of some function: one small case each, whose whole text raised.txt has."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, TraceEnum_ELBO

import pairs
import ppvae
from ppvae import analysis, checkpoint, data, families, guides, models, objectives, recorded, run, storage
from ppvae.analysis import latents, plots, proposals
from ppvae.analysis.corrected import _Reservoir
from ppvae.analysis.latents.space import LatentSpace
from ppvae.analysis.plots import two_runs
from ppvae.analysis.posterior import Posterior
from ppvae.analysis.rate_distortion import _refuse_nan
from ppvae.analysis.report import explorer, page, record
from ppvae.data.celeba import REMOTES
from ppvae.data.idx import read_idx
from ppvae.data.linear_gaussian import known_linear_gaussian
from ppvae.data.text import decoded
from ppvae.errors import PpvaeError
from ppvae.fit import _look_at_pair
from ppvae.guides.autoregressive import Autoregressive
from ppvae.guides.splines import SplineCouplings
from ppvae.guides.stepped import common_draws
from ppvae.nn import MLP
from ppvae.quadrature import integrate
from ppvae.ranks import Ranks
from ppvae.together import SharedSVI

X = pairs.real()
HERE = Path()  # a case's own empty folder, in which it runs


def pair(prior=None, likelihood=None, posterior=None):
    """A pair for x (N, 3) with some of the distributions in the data plate as here: of a row of x, of z, of a row of x."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", (prior or (lambda x: dist.Normal(x.new_zeros(2), 1.0).to_event(1)))(x))
            pyro.sample("x", likelihood(z) if likelihood else dist.Normal(z.sum(-1, keepdim=True) + x.new_zeros(3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", (posterior or (lambda x: dist.Normal(x[:, :2], 1.0).to_event(1)))(x))

    return model, guide


def without_latents():
    """Nothing to infer in the data plate."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(x.new_zeros(3), 1.0).to_event(1), obs=x)

    return model, lambda x: None


def with_plates_inside(distribution):
    """A site of two latents a datum, in a plate of their own."""

    def sites(x):
        with pyro.plate("two", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", distribution)

    def model(x):
        with pyro.plate("data", len(x), dim=-1) as rows:
            with pyro.plate("two", 2, dim=-2):
                z = pyro.sample("z", distribution)
            pyro.sample("x", dist.Normal(z.sum() + x.new_zeros(len(rows), 3), 1.0).to_event(1), obs=x)

    return model, sites


def two_latents(x):
    """Both sites of a guide."""
    with pyro.plate("data", len(x), dim=-1):
        for name in ("z", "w"):
            pyro.sample(name, dist.Normal(x[:, :2], 1.0).to_event(1))


class TwoLatents(torch.nn.Module):
    """And as a guide that says its rows."""

    family = families.DiagonalNormal(2)

    def parameters_at(self, x):
        return x.new_zeros(len(x), 4)

    def forward(self, x):
        two_latents(x)


def of_two_latents(x):
    """The model that it is a guide of."""
    with pyro.plate("data", len(x), dim=-1):
        z, w = (pyro.sample(name, dist.Normal(x.new_zeros(2), 1.0).to_event(1)) for name in ("z", "w"))
        pyro.sample("x", dist.Normal((z + w).sum(-1, keepdim=True) + x.new_zeros(3), 1.0).to_event(1), obs=x)


def of_masked_latents(x):
    """A model whose latent is masked."""
    with pyro.plate("data", len(x), dim=-1):
        with poutine.mask(mask=x[:, 0] > 0):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + x.new_zeros(3), 1.0).to_event(1), obs=x)


class NoNumber(dist.Normal):
    """A density that is nan."""

    def log_prob(self, value):
        return super().log_prob(value) * math.nan


def no_inverse(x):
    """A guide's distribution that draws, and tells no density."""
    return dist.TransformedDistribution(dist.Normal(x[:, :2], 1.0).to_event(1), [dist.transforms.Planar(2)])


def loss(objective, model, guide):
    """One call of an objective."""
    return objective.loss(model, guide, X)


def fitted(model, guide, **options):
    return ppvae.fit(model, guide, X, epochs=1, **options)


def fails(x):
    """A model of a user's with a slip."""
    raise AttributeError("'Tensor' object has no attribute 'flat'")


def batches():
    """What is no batch, and a program that fails at the first."""
    return {
        "a batch is a tensor, or a tuple or dict of tensors, and x is of type str": lambda: ppvae.log_weights(
            *pair(), "rows", num_particles=1
        ),
        "the tensors of a batch must share": lambda: ppvae.log_weights(*pair(), (torch.zeros(3, 6), torch.zeros(2)), num_particles=1),
        "a batch needs at least one row": lambda: ppvae.log_weights(*pair(), torch.zeros(0, 3), num_particles=1),
        "the model fails on the first rows of the data": lambda: ppvae.log_weights(fails, pair()[1], X, num_particles=1),
    }


def rewritten(**fields):
    """A checkpoint whose commit record has other fields, and the bytes that ppvae would write."""
    checkpoint.save(HERE, "step-00000001", {"a": torch.zeros(3)}, {})
    path = HERE / "step-00000001.json"
    path.write_bytes(checkpoint._encoded(json.loads(path.read_text()) | fields))
    checkpoint.load(HERE, "step-00000001")


def longer():
    """A checkpoint with a byte too many."""
    checkpoint.save(HERE, "step-00000001", {"a": torch.zeros(3)}, {})
    with (HERE / "step-00000001.safetensors").open("ab") as file:
        file.write(b"0")
    checkpoint.load(HERE, "step-00000001")


def of_other_bytes(content):
    """A commit record beside a file that holds no tensors, and that it describes."""
    with mock.patch.object(checkpoint, "_serialised", lambda tensors: content):
        checkpoint.save(HERE, "step-00000001", {"a": torch.zeros(3)}, {})
    checkpoint.load(HERE, "step-00000001")


def set_aside_on_a_read_only_disk():
    checkpoint.save(HERE, "step-00000001", {}, {})
    with mock.patch.object(Path, "rename", side_effect=OSError(30, "Read-only file system")):
        checkpoint.set_aside(HERE, "step-00000000")


def saved_with_a_long_state():
    with mock.patch.object(checkpoint, "MOST_BYTES", 100):
        checkpoint.save(HERE, "step-00000001", {}, {"name": "x" * 100})


def state_without_its_tensors():
    checkpoint.save(HERE, "step-00000001", {}, {"a": torch.zeros(3)})
    checkpoint.state_of(HERE, "step-00000001")


def template_of_nothing():
    checkpoint.save(HERE, "template", {"1": torch.zeros(2, 3)}, {"structure": "tensor"})
    run.template_of(HERE)


def data_of_a_run(then):
    """Those recorded by a run that was trained on x.npy, after something happened to that file."""
    np.save("x.npy", X.numpy())
    ppvae.fit(*pairs.closures(), data.load("x.npy").train, epochs=1, out="run")
    then()
    recorded.recorded_data(Path("run"))


def files():
    """Checkpoints, records and reports of a run's folder."""
    return {
        "cannot save step-00000001.json: a record of": saved_with_a_long_state,
        "step-00000001.json is no commit record: its state does not fit": state_without_its_tensors,
        "the record of step-00000001 speaks of another file: 'step-00000002.safetensors'": partial(
            rewritten, payload="step-00000002.safetensors"
        ),
        "has no sound commit record beside it: its size is -1": partial(rewritten, size=-1),
        "bytes, expected at most": longer,
        "step-00000001.safetensors is no safetensors file": partial(of_other_bytes, bytes(20)),
        "step-00000001.safetensors is no checkpoint of ours": partial(of_other_bytes, b"a header of too many bytes"),
        "cannot rename step-00000001.json": set_aside_on_a_read_only_disk,
        "template.json does not say how its tensors make a batch": template_of_nothing,
        "it holds more values than any record of ppvae's": lambda: storage.parsed(b"[" * (storage.MOST_CONTAINERS + 1), Path("a.json")),
        "the data of run are not to be found": partial(data_of_a_run, lambda: Path("x.npy").unlink()),
        "no longer holds the data that run was trained on": partial(data_of_a_run, lambda: np.save("x.npy", X.numpy() + 1)),
        "holds no ELBO of this version": lambda: record._result(analysis.ELBO, {}),
        "the tables of this report alone are": lambda: page._lightened({}),
    }


def faces_of_other_bytes():
    for name in REMOTES:
        Path(name).write_bytes(b"\xff")
    data.load("celeba", directory=".")


def empty_idx():
    Path("a-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 0]))
    read_idx("a-idx1-ubyte")


def unknown_token():
    Path("a.txt").write_text("ab\nba\nab\nba\n")
    decoded(torch.tensor([[9]]), data.load("a.txt").train)


def of_data():
    """Files and numbers that make no data."""
    return {
        "needed a table in plain text": faces_of_other_bytes,
        "needed one number, the side of the images": lambda: data.load("celeba", directory=".", size=(8, 9)),
        "needed an array with something in it": empty_idx,
        "variances, each above scale^2": lambda: known_linear_gaussian(variances=(0.01,)),
        "noise is a standard deviation of at least 0": lambda: data.lorenz(10, noise=-1.0),
        "needed a JSON file of music, and there is none": lambda: data.music("none.json"),
        "needed tokens below 6, the size of the vocabulary": unknown_token,
    }


def outside_the_plate():
    def model(x):
        pair()[0](x)
        pyro.deterministic("total", x.sum())

    fitted(model, pairs.closures()[1], objective=RenyiELBO(num_particles=2))


def without_parameters():
    fitted(*pair())


def with_an_auxiliary(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))
        pyro.sample("extra", dist.Normal(x[:, 0], 1.0), infer={"is_auxiliary": True})


def aggressive_in_two_processes():
    with mock.patch("torch.distributed.is_initialized", lambda: True), mock.patch("torch.distributed.get_world_size", lambda: 2):
        objectives.Aggressive(X).loss_and_grads(*pairs.closures(), X)


def of_objectives():
    """Objectives, and what an optimizer is built over."""
    return {
        "lie outside the data plate, and RenyiELBO then gives the whole batch one importance weight": outside_the_plate,
        "cycles given as a fraction need the number of steps": lambda: objectives.Cyclical(0.0, 1.0, fraction=0.5)(0),
        "objective is a Pyro ELBO object, got 'elbo'": lambda: objectives.Aggressive(X, "elbo"),
        "aggressive updates are taken by one process": aggressive_in_two_processes,
        "groups name the site 'w'": lambda: loss(objectives.FreeBits(0.1, groups={"w": [0]}), *pair()),
        "site 'z' has 2 dimensions, and groups has 1 numbers": lambda: loss(objectives.FreeBits(0.1, groups={"z": [0]}), *pair()),
        "site 'z' is masked": lambda: loss(objectives.FreeBits(0.1, groups="site"), of_masked_latents, pair()[1]),
        "the total correlation is of one latent site": lambda: loss(objectives.TotalCorrelation(2.0), of_two_latents, two_latents),
        "stratified sampling needs batches of 2 to num_data = 3": lambda: loss(
            objectives.TotalCorrelation(2.0, sampling="stratified", num_data=3), *pair()
        ),
        "the guide misses the latent site 'z' of the model, and FreeBits": lambda: loss(
            objectives.FreeBits(0.1), pair()[0], lambda x: None
        ),
        "site 'extra' of the guide is auxiliary": lambda: loss(objectives.FreeBits(0.1), pair()[0], with_an_auxiliary),
        "importance weights need at least 2 particles, got 1": lambda: objectives.ReweightedWakeSleep(1),
        "the sleep phase puts simulated data in the batch's place": lambda: objectives.ReweightedWakeSleep(2, wake=0.5).loss_and_grads(
            *pair(likelihood=lambda z: dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1)), X
        ),
        "the loss depends on no parameter": without_parameters,
        "the optimizer cannot be built over the parameters": lambda: fitted(
            *pairs.closures(), optimizer=partial(torch.optim.Adam, lr=-1.0)
        ),
    }


class Apart(Ranks):
    """The second of two processes whose numbers are others in each."""

    def exchanged(self, value):
        return [{"epochs": 1}, {"epochs": 2}]

    def gathered(self, numbers):
        return torch.tensor([[0.0], [1.0]])


def without_rows():
    """A pair whose densities have no rows, as a process of several sees it."""
    about = {"data": data.Data.of(X[:, :1]), "validation": None, "device": torch.device("cpu"), "seed": 0, "ranks": Ranks(size=2)}
    model, guide = pairs.marginal_mixture()
    _look_at_pair(SimpleNamespace(model=model, guide=guide, **about), TraceEnum_ELBO())


def of_two_losses():
    """A share of a step by an objective of two losses."""
    share = SimpleNamespace(_loss_and_leaves=lambda args, kwargs: ((torch.zeros(()), torch.zeros(())), []))
    SharedSVI._by_pyro(share, SimpleNamespace(arguments=lambda: ((), {}), inputs=()), 1.0)


def of_a_wrong_shape():
    model = pairs.exact()[0]
    with mock.patch.object(type(model), "log_evidence", lambda self, x: x):
        analysis.exact_log_likelihood(model, X)


def posteriors():
    """Local posteriors, cubature, and what several processes must have in common."""
    return {
        "has no transform from unconstrained coordinates": lambda: analysis.refine(
            *pair(lambda x: dist.ProjectedNormal(x.new_ones(2)), posterior=lambda x: dist.ProjectedNormal(x[:, :2])), X, family="mean_field"
        ),
        "is not one number for all data and dimensions": lambda: analysis.refine(
            *pair(lambda x: dist.Uniform(x.new_zeros(2), torch.tensor([1.0, 2.0])).to_event(1)), X, family="mean_field"
        ),
        "adaptive cubature is for 1 or 2 dimensions, got 3": lambda: integrate(
            lambda rows, u: u.sum(-1), torch.zeros(1, 3), torch.ones(1, 3)
        ),
        "log f of datum 0 is nan": lambda: integrate(lambda rows, u: u.sum(-1) * math.nan, torch.zeros(1, 1), torch.ones(1, 1)),
        "so there is no posterior to refine": lambda: analysis.refine(*without_latents(), X),
        "has plates inside a datum and is no Normal": lambda: analysis.refine(*with_plates_inside(dist.Laplace(torch.zeros(()), 1.0)), X),
        "with more batch dims than the data's": lambda: analysis.refine(
            *with_plates_inside(dist.MultivariateNormal(torch.zeros(2), torch.eye(2))), X
        ),
        "this local posterior belongs to 20 data, and 3 came": lambda: analysis.refine(*pair(), X, steps=1).guide(X[:3]),
        "several processes share a batch out by rows": without_rows,
        "several processes need an objective of one loss": of_two_losses,
        "are not those of process 0": lambda: Apart(rank=1, size=2).check_same({"epochs": 2}, "the arguments"),
        "the parameters of process 1 have gone apart": lambda: Apart(rank=1, size=2).check_equal([torch.zeros(2)]),
    }


CODES, FACTORS = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20.0)[:, None]


def measures():
    """Analysis of a pair, of points and of codes."""
    return {
        "so there is no posterior to calibrate": lambda: analysis.calibration(*without_latents(), template=X, num_data=20),
        "log p(x | z) of simulated data is not a number": lambda: analysis.calibration(
            *pair(likelihood=lambda z: NoNumber(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), 1.0).to_event(1)),
            template=X,
            num_data=20,
            num_draws=2,
        ),
        "a log weight is not a number or +inf": lambda: _Reservoir(1, 1, slice(0, 1), 1e-6).add(
            None, None, torch.full((1, 1), math.nan), None
        ),
        "the Theiler window is less than N - 1 = 49": lambda: analysis.correlation_dimension(torch.rand(50, 2), theiler=60),
        "discard is a share in [0, 1)": lambda: analysis.two_nn(torch.rand(50, 2), discard=1.0),
        "and points with NaN or infinite values came": lambda: analysis.two_nn(torch.full((50, 2), math.nan)),
        "needed a code that varies": lambda: analysis.factor_vae_score(np.ones((20, 2)), FACTORS),
        "needed rows that share a value of each factor": lambda: analysis.factor_vae_score(CODES, FACTORS),
        "needed 1 names of factors, and 2 came": lambda: analysis.factor_vae_score(CODES, FACTORS, names=["a", "b"]),
        "a closed form has no nodes to hand out": lambda: analysis.exact_posterior(pairs.exact()[0], X, method="closed form"),
        "tolerance is a positive number of nats": lambda: analysis.exact_log_likelihood(pairs.exact()[0], X, tolerance=0.0),
        "log_evidence(x) gives one number a datum": of_a_wrong_shape,
        "the guide misses the global site 'mu' of the model": lambda: analysis.exact_log_likelihood(
            pairs.unknown_mean()[0], X, guide=lambda x: None
        ),
        "families names at least one family": lambda: analysis.inference_gaps(*pair(), X, families=()),
        "reference is one of": lambda: analysis.inference_gaps(*pair(), X, reference="exakt"),
        "statistics names at least one function": lambda: analysis.predictive_check(*pair(), X, statistics={}),
        "num_neighbours is at most": lambda: analysis.probe(X, X, torch.arange(20) % 2, torch.arange(20) % 2, num_neighbours=21),
        "needed features (N, D) and (M, D)": lambda: analysis.probe(X, X[:, :2], torch.zeros(20), torch.zeros(20)),
        "needed finite features": lambda: analysis.probe(X * math.nan, X, torch.arange(20) % 2, torch.arange(20) % 2),
        "a mixture of full covariances over 1000 dimensions": lambda: proposals.mixture(
            [SimpleNamespace(coordinates=SimpleNamespace(dim=1000))], (1.0,), "defensive"
        ),
        "log p(x | z) is not finite at 1 of 2 chains": lambda: _refuse_nan(torch.tensor([[0.0, math.nan]]), slice(64, 66)),
        "a level lies in (0, 1), got 2": lambda: Posterior.guide_coverage(chains(), 2),
    }


LABELS = [0] * 10 + [1] * 10


def of_latents():
    """Looks at the latents."""
    return {
        "needed held-out data labelled": lambda: latents.attribute_effect(
            *pair(), X, X, positive=1, negative=0, train_labels=LABELS, held_out_labels=[1] * 20
        ),
        "a direction in site 'z' has shape (2,), got (3,)": lambda: latents.edit(*pair(), X, torch.ones(3)),
        "a classifier needs two labels at least": lambda: latents.completeness(pair()[0], X, X, labels=[0] * 20),
        "a grid needs two different dimensions": lambda: latents.prior_grid(pair()[0], X, dims=(1, 1)),
        "kind is one of straight, spherical, density": lambda: latents.continuity(*pair(), X, kind="curved"),
        "paths need two data at least": lambda: latents.continuity(*pair(), X[:1]),
        "pass_rate is a share in (0, 1]": lambda: latents.completeness(pair()[0], X, X, pass_rate=0.0),
        "a classifier gives confidences (": lambda: latents.completeness(pair()[0], X, X, classifier=lambda x: x.sum(), num_draws=10),
        "the guide cannot tell its density at a given value of 'z'": lambda: latents.interpolate(
            *pair(posterior=no_inverse), X, ends=[(0, 1)], kinds=["density"], steps=3
        ),
        "values of site 'z' are rows (M, 2)": lambda: LatentSpace(*pair(), X).decoded(torch.zeros(4, 3)),
        "has a distribution without a mean, so there is nothing to show of it": lambda: latents.prior_grid(
            pair(likelihood=lambda z: dist.Cauchy(z[..., :1].expand(*z.shape[:-1], 3), 1.0).to_event(1))[0], X, steps=2
        ),
        "the guide's posterior means are not finite": lambda: explorer.atlas(
            None, *pair(posterior=lambda x: dist.Normal(x[:, :2].abs() * math.inf, 1.0).to_event(1)), data.Data.of(X)
        ),
    }


def chains():
    """As much of some chains as a figure looks at."""
    draws = {"z": torch.zeros(2, 4, 3, 2)}
    return SimpleNamespace(draws=draws, guide_draws=draws, r_hat=torch.ones(3))


def figures():
    """Figures of results that do not hold what is asked for."""
    return {
        "there is no latent site 'w'": lambda: plots.posterior_and_guide(chains(), 0, site="w"),
        "row lies in 0..2, got 3": lambda: plots.posterior_and_guide(chains(), 3),
        "site 'z' has dimensions 0..1, got (0, 2)": lambda: plots.posterior_and_guide(chains(), 0, dimensions=(0, 2)),
        "neither guide can tell its density": lambda: two_runs.coverage_of_two(
            [SimpleNamespace(coverage=torch.full((3,), math.nan))] * 2, ["a", "b"]
        ),
    }


MIXTURE = families.FullRankMixture(2, (0.5, 0.5))


def programs():
    """Parts of models and guides."""
    return {
        "the inverse dispersion of a NegativeBinomial": lambda: models.likelihoods.NegativeBinomial(3, initial=0.0),
        "NegativeBinomial(3) needs as many outputs": lambda: models.likelihoods.NegativeBinomial(3)(torch.zeros(2, 4), torch.ones(2)),
        "DiscretizedLogistic needs a multiple of 6 outputs, got 7": lambda: models.likelihoods.DiscretizedLogistic(num_components=2)(
            torch.zeros(2, 7)
        ),
        "Beta needs an even number of outputs, got 3": lambda: models.likelihoods.Beta()(torch.zeros(2, 3)),
        "the scale of a Laplace likelihood must be positive": lambda: models.likelihoods.Laplace(scale=0.0),
        "direction is 'inverse' or 'masked', got 'both'": lambda: Autoregressive(2, 4, direction="both"),
        "so there is no guide to build": lambda: guides.for_model(without_latents()[0], X, MLP(3, [4], 4)),
        "clip_norm must be positive or None": lambda: guides.SemiAmortized(pairs.ours()[1], clip_norm=0.0),
        "a spline needs at least 2 bins": lambda: SplineCouplings(2, 2, num_bins=1),
        "the bound of the splines must be positive": lambda: SplineCouplings(2, 2, bound=0.0),
        "the steps move the rows of one latent site": lambda: guides.SemiAmortized(TwoLatents(), model=of_two_latents)(X),
        "have no derivatives, so no gradient moves its rows": lambda: common_draws(MIXTURE, torch.zeros(1, MIXTURE.num_parameters), 2),
    }


CASES = batches() | files() | of_data() | of_objectives() | posteriors() | measures() | of_latents() | figures() | programs()


@pytest.mark.parametrize(("words", "act"), CASES.items(), ids=CASES)
def test_an_error_is_told(words, act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PpvaeError, match=re.escape(words)):
        act()
