"""Each check by the exact text of its finding; clean pairs have none; nothing of the caller's is touched."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import nn

import raised
from ppvae import guides, models
from ppvae.check import Finding, Report, check
from ppvae.data import Data
from ppvae.errors import ProgramError
from ppvae.nn import MLP

D, Z, N = 5, 2, 80
PARTICLES = Finding("note", "particles are a plate of their own")
REPEATED = Finding("note", "particles are repeated batches, because the networks refuse leading dimensions")
ALONE = "let each row of the network's output depend on the same row of x and z alone: no mean over the batch, no row number"
CHOSEN = "the batch is chosen outside"


@pytest.fixture(autouse=True)
def whole_findings(monkeypatch):
    """Each finding has a text of raised.txt."""
    report_of = Report.of

    def compared(findings):
        for finding in findings:
            raised.compare(finding, "ppvae/check.py")
        return report_of(findings)

    monkeypatch.setattr(Report, "of", compared)


@pytest.fixture
def x():
    return torch.randn(N, D)


def normal_z():
    return dist.Normal(torch.zeros(Z), 1.0).to_event(1)


def decoded(z):
    return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], D), 1.0).to_event(1)


def encoded(x):
    return dist.Normal(x[..., :Z], 1.0).to_event(1)


def a_model(*, prior=normal_z, likelihood=decoded):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z), obs=x)

    return model


def a_guide(*, q=encoded, name="z"):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(name, q(x))

    return guide


def only(report: Report) -> Finding:
    """The one finding that is no note."""
    (found,) = (finding for finding in report.findings if finding.severity != "note")
    return found


def notes(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == "note"]


# Clean pairs


class Conv(nn.Module):
    """A transposed convolution that refuses leading dimensions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ConvTranspose2d(Z, 1, 4)

    def forward(self, z):
        return self.layer(z.view(len(z), Z, 1, 1)).view(len(z), 16)


class Plain(nn.Module):
    """A plain nn.Module whose methods are the programs, as in Pyro's own example."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(Z, D), nn.Linear(D, Z)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], Z), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x.reshape(-1, D))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("latent", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_linear_gaussian_is_clean(x):
    report = check(models.LinearGaussian(D, Z), guides.DiagonalNormal(MLP(D, [4], 2 * Z), Z), x)
    assert report.findings == (PARTICLES,)


def test_network_that_refuses_leading_dims_is_clean():
    report = check(models.Normal(Conv(), Z), guides.DiagonalNormal(nn.Linear(16, 2 * Z), Z), torch.randn(20, 16))
    assert report.findings == (REPEATED,)


def test_plain_module_with_bound_methods_is_clean(x):
    plain = Plain()
    assert check(plain.model, plain.guide, (x > 0).to(x)).findings == (PARTICLES,)


class Local:
    """A local posterior: one location a datum."""

    def __init__(self, loc):
        self.loc, self.num_data = loc, len(loc)

    def rows(self, rows):
        return Local(self.loc[rows])

    def repeated(self, times):
        return Local(self.loc.repeat(times, 1))

    def __call__(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))


def test_local_posterior_is_clean(x):
    assert check(a_model(), Local(torch.randn(N, Z)), x).findings == (PARTICLES,)


def test_plain_functions_are_clean(x):
    assert check(a_model(), a_guide(), x).findings == (PARTICLES,)


def test_single_precision_is_clean():
    torch.set_default_dtype(torch.float32)
    model, guide = models.Bernoulli(MLP(Z, [100], 784), Z), guides.DiagonalNormal(MLP(784, [100], 2 * Z), Z)
    assert check(model, guide, torch.rand(100, 784).round()).findings == (PARTICLES,)


def test_two_layers_are_clean(x):
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", normal_z())
            z = pyro.sample("z", dist.Normal(top, 1.0).to_event(1))
            pyro.sample("x", decoded(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", encoded(x))
            pyro.sample("top", dist.Normal(z, 1.0).to_event(1))

    assert check(model, guide, x).findings == (PARTICLES,)


def test_plate_inside_a_datum_is_clean(x):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal_z())
            with pyro.plate("pixels", D, dim=-2):
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.mT)

    assert check(model, a_guide(), x).errors == ()


def test_discrete_latent_is_clean(x):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(z[..., None] + torch.zeros(D), 1.0).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    assert check(model, guide, x).findings == (PARTICLES,)


def test_data_is_read_by_its_x(x):
    assert check(a_model(), a_guide(), Data.of(x)).findings == (PARTICLES,)


def test_dict_batch_is_clean(x):
    def model(batch):
        a_model(likelihood=lambda z: decoded(z))(batch["x"])

    assert check(model, lambda batch: a_guide()(batch["x"]), {"x": x, "length": torch.arange(N)}).findings == (PARTICLES,)


def test_constant_data_are_clean():
    assert check(a_model(), a_guide(), torch.ones(10, D)).findings == (PARTICLES,)


# 1. to_event


def test_missing_to_event_names_site_and_line(x):
    assert only(check(a_model(likelihood=lambda z: dist.Normal(decoded(z).mean, 1.0)), a_guide(), x)) == Finding(
        "error",
        "site 'x' has batch shape (64, 5) and event shape (), needed batch shape (64,)",
        "site 'x' of the model",
        "end it with .to_event(1)",
    )


def test_missing_to_event_of_the_guide(x):
    assert only(check(a_model(), a_guide(q=lambda x: dist.Normal(x[..., :Z], 1.0)), x)) == Finding(
        "error",
        "site 'z' has batch shape (64, 2) and event shape (), needed batch shape (64,)",
        "site 'z' of the guide",
        "end it with .to_event(1)",
    )


def test_missing_to_event_counts_those_that_are_there():
    def image(z):
        return dist.Normal(z.sum(-1)[..., None, None, None].expand(-1, 1, 3, 4), 1.0).to_event(1)

    report = check(a_model(likelihood=image), a_guide(q=lambda x: encoded(x.flatten(1))), torch.randn(10, 1, 3, 4))
    assert only(report) == Finding(
        "error",
        "site 'x' has batch shape (10, 1, 3) and event shape (4,), needed batch shape (10,)",
        "site 'x' of the model",
        "end it with .to_event(3)",
    )


@pytest.mark.parametrize("width", [10, 1], ids=["as many columns as rows", "one column"])
def test_missing_to_event_is_found_where_sizes_coincide(width):
    def likelihood(z):
        return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], width), 1.0)

    report = check(a_model(likelihood=likelihood), a_guide(q=lambda x: encoded(x[:, :1].expand(-1, Z))), torch.randn(10, width))
    assert only(report) == Finding(
        "error",
        "site 'x' has batch shape (10, 10) and event shape (), needed batch shape (10,)",
        "site 'x' of the model",
        "end it with .to_event(1)",
    )


@pytest.mark.parametrize("side", ["model", "guide"])
def test_to_event_that_takes_in_the_data(side, x):
    model = a_model(likelihood=lambda z: decoded(z).to_event(1)) if side == "model" else a_model()
    guide = a_guide(q=lambda x: encoded(x).to_event(1)) if side == "guide" else a_guide()
    site, width = ("x", D) if side == "model" else ("z", Z)
    assert only(check(model, guide, x)) == Finding(
        "error",
        f"site '{site}' has event shape (64, {width}), which holds the 64 data, needed batch shape (64,)",
        f"site '{site}' of the {side}",
        "end it with .to_event(1) in place of .to_event(2)",
    )


def test_network_that_returns_another_number_of_rows(x):
    report = check(a_model(likelihood=lambda z: decoded(z.repeat(2, 1))), a_guide(), x)
    assert only(report) == Finding(
        "error",
        "site 'x' has batch shape (128,) and event shape (5,), needed batch shape (64,)",
        "site 'x' of the model",
        "let the network return 64 rows for 64 data, here it returned 128",
    )


def test_transposed_plates():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal_z())
            with pyro.plate("pixels", D, dim=-2):
                pyro.sample("x", dist.Normal(decoded(z).mean, 1.0), obs=x)

    assert only(check(model, a_guide(), torch.randn(10, D))) == Finding(
        "error",
        "site 'x' has batch shape (10, 5) and event shape (), needed batch shape (5, 10)",
        "site 'x' of the model",
        "bring the dims into the order of the plates, the data last",
    )


# 2. Plates


def test_observed_site_outside_the_plate(x):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal_z())
        pyro.sample("x", decoded(z), obs=x)

    assert only(check(model, a_guide(), x)) == Finding(
        "error",
        "the observed site 'x' lies outside the data plate, with batch shape (64,)",
        "site 'x' of the model",
        "with pyro.plate('data', len(x), dim=-1): pyro.sample('x', ...)",
    )


def test_latent_site_outside_the_plate(x):
    def guide(x):
        pyro.sample("z", encoded(x))

    assert only(check(a_model(), guide, x)) == Finding(
        "error",
        "site 'z' has a value for each of the 64 data and lies outside the data plate",
        "site 'z' of the guide",
        "with pyro.plate('data', len(x), dim=-1): pyro.sample('z', ...)",
    )


def global_model(x):
    shift = pyro.sample("shift", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal_z())
        pyro.sample("x", dist.Normal(decoded(z).mean + shift, 1.0).to_event(1), obs=x)


def global_guide(x):
    pyro.sample("shift", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    a_guide()(x)


def test_global_site_is_a_note(x):
    told = Finding(
        "note",
        "site 'shift' is global: measurement conditions on one draw of it, and fit scales the data terms by num_data / batch size",
        "site 'shift' of the model",
    )
    assert check(global_model, global_guide, x).findings == (told, PARTICLES)


@pytest.mark.parametrize("n", [64, 1], ids=["another size", "a batch of one, which Pyro broadcasts"])
def test_plate_of_a_size_of_its_own(n, x):
    def guide(x):
        with pyro.plate("data", 512, subsample_size=100):
            pyro.sample("z", encoded(x))

    assert only(check(a_model(), guide, x[:n])) == Finding(
        "error",
        f"site 'z': the plate 'data' has size 100, needed {n}, the length of the batch",
        "site 'z' of the guide",
        f"pyro.plate('data', len(x), dim=-1): {CHOSEN}",
    )


def test_subsampled_plate_of_the_right_size_is_a_note(x):
    def guide(x):
        with pyro.plate("data", 512, subsample_size=len(x)):
            pyro.sample("z", encoded(x))

    told = Finding(
        "note",
        "site 'z' lies in a subsampled plate: training scales it by 8, measurement ignores it",
        "site 'z' of the guide",
        f"pyro.plate('data', len(x), dim=-1): {CHOSEN}",
    )
    assert notes(check(a_model(), guide, x)) == [told, PARTICLES]


def test_sequential_plate_is_told_once():
    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", normal_z())
            pyro.sample(f"x_{i}", decoded(z), obs=x[i])

    assert only(check(model, a_guide(), torch.randn(4, D))) == Finding(
        "error",
        "site 'z_0' lies in the sequential plate 'data', needed a vectorised one",
        "site 'z_0' of the model",
        "with pyro.plate('data', len(x), dim=-1): pyro.sample('z_0', ...)",
    )


def test_data_plate_at_another_dim():
    def guide(x):
        with pyro.plate("parts", Z, dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x[:, :Z], 1.0))

    assert only(check(a_model(), guide, torch.randn(10, D))) == Finding(
        "error",
        "site 'z': the plate 'data' of the 10 data is at dim -2, needed dim -1",
        "site 'z' of the guide",
        "pyro.plate('data', len(x), dim=-1), and 'parts' at dim -2",
    )


# 3. Dependence


def test_mean_over_the_batch_in_the_model():
    # The first latent is x's own; x is scored at scale 1 about the batch's mean of z, so the log densities move together.
    model = a_model(likelihood=lambda z: decoded(z.mean(0, keepdim=True).expand_as(z)))
    found = only(check(model, a_guide(q=lambda x: dist.Delta(x[..., :Z], event_dim=1)), torch.tensor([[1.0] * D, [0.0] * D])))
    # row 0 is (1, ...): the mean of z over both rows is 1/2, decoded 1; with row 1 replaced by row 0 it is 1, decoded 2: -5/2 nats
    assert found == Finding(
        "error",
        "site 'x' makes data depend on each other: log density of row 0 moved by -2.5 nats with other rows",
        "site 'x' of the model",
        ALONE,
    )


def test_mean_over_the_batch_in_the_guide(x):
    found = only(check(a_model(), a_guide(q=lambda x: encoded(x - x.mean(0))), x))
    assert found.problem.startswith("site 'z' makes data depend on each other: log density of row 0 moved by ")
    assert (found.where, found.mend) == ("site 'z' of the guide", ALONE)


def test_row_numbers_in_the_model(x):
    def likelihood(z):
        return dist.Normal(decoded(z).mean + torch.arange(float(z.shape[-2]))[:, None], 1.0).to_event(1)

    assert only(check(a_model(likelihood=likelihood), a_guide(), x)) == Finding(
        "error",
        "site 'x' depends on the order of the data: log density of row 63 moved when the batch was permuted",
        "site 'x' of the model",
        ALONE,
    )


def test_randomness_beside_the_sites(x):
    assert only(check(a_model(likelihood=lambda z: decoded(z + torch.randn(Z))), a_guide(), x)) == Finding(
        "error",
        "the log density of site 'x' is random where data and latents are held",
        "site 'x' of the model",
        "draw all randomness in the program by pyro.sample",
    )


def test_one_datum_cannot_show_dependence(x):
    told = Finding("note", "one datum came: whether data depend on each other was not looked at", "x")
    assert notes(check(a_model(), a_guide(), x[:1])) == [told, PARTICLES]


# 4. Support


def test_data_outside_the_support_by_row_and_column():
    x = torch.zeros(1500, D)
    x[1200, 3] = 0.5
    found = only(check(a_model(likelihood=lambda z: dist.Bernoulli(logits=decoded(z).mean).to_event(1)), a_guide(), x))
    assert (found.severity, found.where) == ("error", "row 1200, column 3: 0.5")
    assert found.problem.startswith("the data do not fit the likelihood: site 'x' is Bernoulli with support ")
    assert found.mend.startswith("binarise: ")


def test_relaxed_likelihood_is_a_warning(x):
    def likelihood(z):
        return dist.Bernoulli(logits=decoded(z).mean, validate_args=False).to_event(1)

    assert only(check(a_model(likelihood=likelihood), a_guide(), x.sigmoid())) == Finding(
        "warning",
        "data lie outside the support of site 'x', built with validate_args=False: every result is relaxed (not a probability)",
        "site 'x' of the model",
        "binarise the data, or choose a likelihood whose support holds them",
    )


# 5. Names


def test_misspelt_site_of_the_guide(x):
    assert only(check(a_model(), a_guide(name="zz"), x)) == Finding(
        "error",
        "the guide misses the latent site 'z' of the model",
        "the guide draws ['zz']; the model draws ['z']",
        "did you mean 'z' where the guide says 'zz'?",
    )


def test_forgotten_site_of_the_guide(x):
    assert only(check(a_model(), lambda x: None, x)) == Finding(
        "error",
        "the guide misses the latent site 'z' of the model",
        "the guide draws nothing; the model draws ['z']",
        "add pyro.sample('z', ...) to the guide",
    )


def test_site_too_many_in_the_guide(x):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoded(x))
            pyro.sample("other", encoded(x))

    assert only(check(a_model(), guide, x)) == Finding(
        "error",
        "the guide draws 'other', which the model does not",
        "the model draws ['z']",
        "remove 'other', or mark it infer={'is_auxiliary': True}",
    )


def test_model_that_observes_nothing(x):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal_z())

    assert only(check(model, a_guide(), x)) == Finding(
        "error", "the model observes nothing", "the model", "give a site obs=: pyro.sample('x', ..., obs=x)"
    )


# 6. Gradients


def test_parameters_without_gradient(x):
    plain = Plain()
    plain.spare = MLP(2, [2, 2], 2)
    assert only(check(plain.model, plain.guide, (x > 0).to(x))) == Finding(
        "warning",
        "6 of 10 parameters receive no gradient from Trace_ELBO: 'model.spare.layers.0.weight', 'model.spare.layers.0.bias', "
        "'model.spare.layers.2.weight', 'model.spare.layers.2.bias', 'model.spare.layers.4.weight', and 1 more",
        "the pair",
        "use them in the program, remove them, or look for .detach() and .item()",
    )


def test_detached_store_parameter(x):
    def guide(x):
        scale = pyro.param("scale", torch.tensor(1.0)).detach()
        a_guide(q=lambda x: dist.Normal(x[..., :Z], scale).to_event(1))(x)

    assert only(check(a_model(), guide, x)).problem == "1 of 1 parameters receive no gradient from Trace_ELBO: 'param.scale'"


def test_frozen_parameters_are_a_note(x):
    plain = Plain()
    plain.decoder.bias.requires_grad_(False)
    told = Finding(
        "note",
        "1 of 4 parameters do not ask for a gradient: 'model.decoder.bias'",
        "the pair",
        "requires_grad_(True), if they shall be trained",
    )
    assert check(plain.model, plain.guide, (x > 0).to(x)).findings == (PARTICLES, told)


# 7. Store names


class NetModel(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(Z, D)

    def forward(self, x):
        a_model(likelihood=lambda z: dist.Normal(self.net(z), 1.0).to_event(1))(x)


class NetGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, Z)

    def forward(self, x):
        encoder = self.net
        a_guide(q=lambda x: dist.Normal(encoder(x), 1.0).to_event(1))(x)


APART = "give the submodules of model and guide (or the pyro.param, pyro.module statements) names of their own"


def test_submodules_of_one_name_share_a_store_key(x):
    found = only(check(NetModel(), NetGuide(), x))
    guide_line = NetGuide.forward.__code__.co_firstlineno + 1
    model_line = NetModel.forward.__code__.co_firstlineno + 1
    assert found == Finding(
        "error",
        "one store name stands for two tensors: 'net.weight', 'net.bias'; pyro.infer.SVI trains the first and leaves the other, silently",
        f"guide, {__file__}:{guide_line}: encoder = self.net | model, {__file__}:{model_line}: "
        "a_model(likelihood=lambda z: dist.Normal(self.net(z), 1.0).to_event(1))(x)",
        APART,
    )


def scaled_pair(first, second):
    def scaled_model(x):
        scale = pyro.param("scale", torch.tensor(first))
        a_model(likelihood=lambda z: dist.Normal(decoded(z).mean, scale).to_event(1))(x)

    def scaled_guide(x):
        scale = pyro.param("scale", torch.tensor(second))
        a_guide(q=lambda x: dist.Normal(x[..., :Z], scale).to_event(1))(x)

    return scaled_model, scaled_guide


def test_two_param_statements_of_one_name_and_two_values(x):
    model, guide = scaled_pair(1.0, 2.0)
    found = only(check(model, guide, x))
    problem = "one store name stands for two tensors: 'scale'; pyro.infer.SVI trains the first and leaves the other, silently"
    assert (found.problem, found.mend) == (problem, APART)


def test_a_parameter_shared_on_purpose_is_clean(x):
    model, guide = scaled_pair(1.0, 1.0)
    assert check(model, guide, x).findings == (PARTICLES,)


def test_random_initial_value_of_one_statement_is_clean(x):
    def guide(x):
        loc = pyro.param("loc", torch.randn(Z))
        a_guide(q=lambda x: dist.Normal(x[..., :Z] + loc, 1.0).to_event(1))(x)

    assert check(a_model(), guide, x).findings == (PARTICLES,)


def test_trained_store_parameter_is_clean(x):
    model, guide = scaled_pair(1.0, 1.0)
    pyro.param("scale", torch.tensor(3.0))
    assert check(model, guide, x).findings == (PARTICLES,)


def test_store_of_an_earlier_model(x):
    pyro.module("decoder", nn.Linear(Z, D))
    plain = Plain()
    found = check(plain.model, plain.guide, (x > 0).to(x)).errors
    line = Plain.model.__code__.co_firstlineno + 1
    assert found == (
        Finding(
            "error",
            "the param store holds other tensors under names of this pair: 'decoder.weight', 'decoder.bias'",
            f'model, {__file__}:{line}: pyro.module("decoder", self.decoder)',
            "pyro.clear_param_store() before this pair, or train it by ppvae.fit",
        ),
    )


def test_store_parameter_of_another_shape(x):
    pyro.param("scale", torch.ones(Z))

    def guide(x):
        scale = pyro.param("scale", torch.tensor(1.0))
        a_guide(q=lambda x: dist.Normal(x[..., :Z], scale).to_event(1))(x)

    found = only(check(a_model(), guide, x))
    assert found.problem == "the param store holds other tensors under names of this pair: 'scale'"


def test_pair_in_its_own_store_is_clean(x):
    plain, x = Plain(), (x > 0).to(x)
    plain.guide(x)
    plain.model(x)
    assert check(plain.model, plain.guide, x).findings == (PARTICLES,)


class ScaleModel(PyroModule):
    scale: Any

    def __init__(self, scale):
        super().__init__()
        self.scale = PyroParam(torch.tensor(scale), constraint=dist.constraints.positive)

    def forward(self, x):
        a_model(likelihood=lambda z: dist.Normal(decoded(z).mean, self.scale).to_event(1))(x)


class ScaleGuide(ScaleModel):
    def forward(self, x):
        a_guide(q=lambda x: dist.Normal(x[..., :Z], self.scale).to_event(1))(x)


def test_pyro_param_taken_over_by_the_other_program(x):
    assert only(check(ScaleModel(1.0), ScaleGuide(2.0), x)) == Finding(
        "error",
        "a PyroParam was replaced by another tensor of its store name: 'scale'",
        "the pair",
        "pyro.clear_param_store() before this pair, and names of their own in model and guide",
    )


def test_pyro_param_is_given_back_to_its_module(x):
    model = ScaleModel(1.0)
    check(model, ScaleGuide(2.0), x)
    assert model.scale.item() == pytest.approx(1.0)


# 8. to 10. BatchNorm, particles, the batch


def test_batch_norm_in_training_mode_is_a_warning(x):
    guide = guides.DiagonalNormal(nn.Sequential(nn.Linear(D, 2 * Z), nn.BatchNorm1d(2 * Z)), Z)
    assert only(check(models.LinearGaussian(D, Z), guide, x)) == Finding(
        "warning",
        "1 BatchNorm1d in training mode: training mixes the data of a batch, measurement (eval mode) does not",
        "the pair",
        "replace them by LayerNorm or GroupNorm, or trust only what is measured in eval mode",
    )


def test_batch_norm_in_eval_mode_is_clean(x):
    guide = guides.DiagonalNormal(nn.Sequential(nn.Linear(D, 2 * Z), nn.BatchNorm1d(2 * Z)), Z).eval()
    assert check(models.LinearGaussian(D, Z), guide, x).findings == (PARTICLES,)


BATCHES = {
    "unequal lengths": (
        (torch.zeros(4, 2), torch.zeros(3)),
        "the tensors of a batch must share their leading dimension, got {'x[0]': (4, 2), 'x[1]': (3,)}",
        "",
    ),
    "empty": (torch.zeros(0, 2), "a batch needs at least one row, got {'x': (0, 2)}", "a single datum is x[None]"),
    "one row": (
        torch.zeros(64),
        "x has shape (64,), needed (N, *event)",
        "x[None] if it is a single datum, x[:, None] if it is N data of one number",
    ),
    "an array inside": (
        (np.zeros((4, 2)),),
        "a batch is a tensor, or a tuple or dict of tensors, and x[0] is of type ndarray",
        "torch.as_tensor(x), or ppvae.data.Data.of(x)",
    ),
}


@pytest.mark.parametrize(("batch", "problem", "mend"), BATCHES.values(), ids=BATCHES.keys())
def test_batch_that_is_none(batch, problem, mend):
    (found,) = check(a_model(), a_guide(), batch).findings
    assert (found.severity, found.problem, found.mend) == ("error", problem, mend)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_entries_that_are_not_finite(value, x):
    x[70, 2] = value
    assert only(check(a_model(), a_guide(), x)) == Finding(
        "error",
        "x holds 1 of 400 entries that are not finite",
        f"row 70, column 2: {value}",
        "remove or impute them, or declare them missing with poutine.mask",
    )


# 11. Scales


def test_scale_is_a_note(x):
    told = Finding(
        "note",
        "site 'x' is scaled by 0.5: training weighs it so, measurement ignores it",
        "site 'x' of the model",
        "remove poutine.scale, and hand beta or likelihood_weight to fit",
    )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal_z())
            with poutine.scale(scale=0.5):
                pyro.sample("x", decoded(z), obs=x)

    assert check(model, a_guide(), x).findings == (told, PARTICLES)


# 12. Errors of the user's own code


def test_network_error_names_the_users_line(x):
    encoder = nn.Linear(4, Z)

    def narrow(x):
        return dist.Normal(encoder(x), 1.0).to_event(1)

    assert only(check(a_model(), a_guide(q=narrow), x)) == Finding(
        "error",
        "the guide raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x5 and 4x2)",
        f"{__file__}:{narrow.__code__.co_firstlineno + 1}: return dist.Normal(encoder(x), 1.0).to_event(1)",
        "make guide(x) run on a batch of 64 data, x as guide's only argument",
    )


def test_any_exception_of_the_model_is_a_finding(x):
    def broken(z):
        raise KeyError("label")

    assert only(check(a_model(likelihood=broken), a_guide(), x)) == Finding(
        "error",
        "the model raised KeyError: 'label'",
        f'{__file__}:{broken.__code__.co_firstlineno + 1}: raise KeyError("label")',
        "make model(x) run on a batch of 64 data, x as model's only argument",
    )


def test_network_that_refuses_two_rows(x):
    def picky(z):
        assert len(z) > 2, "too few"
        return decoded(z)

    assert only(check(a_model(likelihood=picky), a_guide(), x)) == Finding(
        "error",
        "the model raised AssertionError: too few",
        f'{__file__}:{picky.__code__.co_firstlineno + 1}: assert len(z) > 2, "too few"',
        "make model(x) run on a batch of 2 data, x as model's only argument",
    )


def test_error_of_our_network_keeps_its_mend(x):
    found = only(check(models.LinearGaussian(D, Z), guides.DiagonalNormal(MLP(4, [3], 2 * Z), Z), x))
    assert found == Finding(
        "error",
        "the guide raised ShapeError: MLP needs a last dimension of 4, got shape (64, 5)",
        "the guide",
        "flatten the data to (N, 4), or build the network for width 5",
    )


# 13. Latents of two kinds


def test_latents_of_two_event_shapes(x):
    model = a_model(prior=lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1), likelihood=lambda z: decoded(z @ torch.ones(3, 1)))
    assert only(check(model, a_guide(), x)) == Finding(
        "error",
        "site 'z' has event shape (2,) in the guide and (3,) in the model",
        "site 'z' of the guide",
        "draw latents of the model's shape, with the same .to_event",
    )


def test_guide_that_leaves_the_support_of_the_prior(x):
    model = a_model(prior=lambda: dist.LogNormal(torch.zeros(Z), 1.0).to_event(1))
    assert only(check(model, a_guide(), x)) == Finding(
        "error",
        "site 'z' is Normal over Real() in the guide and LogNormal over GreaterThan(lower_bound=0.0) in the model",
        "site 'z' of the guide",
        "choose a guide over GreaterThan(lower_bound=0.0): draws outside have probability 0 in the model",
    )


def test_guide_over_a_part_of_the_prior_is_a_warning(x):
    assert only(check(a_model(), a_guide(q=lambda x: dist.LogNormal(x[..., :Z], 1.0).to_event(1)), x)) == Finding(
        "warning",
        "site 'z' is LogNormal over GreaterThan(lower_bound=0.0) in the guide and Normal over Real() in the model",
        "site 'z' of the guide",
        "choose a guide over Real(): what it never draws is missing from log p(x)",
    )


def test_families_of_one_support_are_clean(x):
    model = a_model(prior=lambda: dist.Gamma(torch.ones(Z), 1.0).to_event(1))
    assert check(model, a_guide(q=lambda x: dist.LogNormal(x[..., :Z], 1.0).to_event(1)), x).findings == (PARTICLES,)


# The report


def test_report_prints_a_header_and_short_findings(x):
    report = check(a_model(likelihood=lambda z: dist.Normal(decoded(z).mean, 1.0)), a_guide(), x)
    assert str(report) == (
        "the pair breaks the contract: 1 error, 0 warnings, 0 notes\n"
        "error: site 'x' has batch shape (64, 5) and event shape (), needed batch shape (64,)\n"
        "  where: site 'x' of the model\n"
        "  mend:  end it with .to_event(1)"
    )


def test_clean_report_prints_what_it_noted(x):
    assert str(check(a_model(), a_guide(), x)) == (
        "the pair keeps the contract: 0 errors, 0 warnings, 1 note\nnote: particles are a plate of their own"
    )


def test_broken_report_raises_its_errors(x):
    with pytest.raises(ProgramError) as raised:
        check(a_model(), lambda x: None, x).raise_if_broken()
    assert str(raised.value) == (
        "the guide misses the latent site 'z' of the model\n"
        "  where: the guide draws nothing; the model draws ['z']\n"
        "  mend:  add pyro.sample('z', ...) to the guide"
    )


def test_sound_report_raises_nothing(x):
    report = check(a_model(), a_guide(), x)
    report.raise_if_broken()
    assert report.ok


# Nothing of the caller's is touched


def test_store_is_as_it_was(x):
    before = nn.Linear(Z, D)
    pyro.module("decoder", before)
    plain = Plain()
    check(plain.model, plain.guide, (x > 0).to(x))
    assert [tensor is other for tensor, other in zip(pyro.get_param_store().values(), before.parameters(), strict=True)] == [True, True]


def test_generators_are_as_they_were(x):
    def guide(x):
        random.random()
        np.random.rand()
        a_guide()(x)

    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    check(a_model(), guide, x)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before[1:]


class Counting(nn.Module):
    """Counts its calls in a buffer, whatever its mode; hidden in a list, where no program is seen to hold it."""

    calls: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x):
        self.calls += 1
        return self.norm(x)


def test_modes_and_buffers_are_as_they_were(x):
    hidden = [Counting()]
    before = {name: tensor.clone() for name, tensor in hidden[0].state_dict().items()}
    check(a_model(), a_guide(q=lambda x: encoded(hidden[0](x))), x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in hidden[0].state_dict().items())
    assert hidden[0].training
    assert hidden[0].norm.training


def test_gradients_are_as_they_were(x):
    plain = Plain()
    plain.decoder.weight.grad = torch.ones(D, Z)
    check(plain.model, plain.guide, (x > 0).to(x))
    assert plain.encoder.weight.grad is None
    assert torch.equal(plain.decoder.weight.grad, torch.ones(D, Z))


def test_pyro_module_can_still_be_put_under_a_parent(x):
    model, parent = models.LinearGaussian(D, Z), PyroModule()
    check(model, a_guide(), x)
    parent.child = model
    parent.child(x)
