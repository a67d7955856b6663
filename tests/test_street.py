"""The whole street for pairs as users write them: check, train, load, measure, gaps."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pairs
import ppvae
from ppvae import analysis
from ppvae.errors import FamilyError, RelaxedMeasureWarning

QUICK = {"num_particles": 60, "num_reference": 300, "steps": 40}


def down_the_street(model, guide, x, folder, rebuilt):
    """Everything a user does, on 40 data; returns what was measured before and after the folder was loaded."""
    report = ppvae.check(model, guide, x)
    run = ppvae.fit(model, guide, x, epochs=2, batch_size=16, out=folder)
    found = analysis.log_likelihood(run.model, run.guide, x, num_particles=60)
    loaded = ppvae.load(folder, *rebuilt)
    again = analysis.log_likelihood(loaded.model, loaded.guide, x, num_particles=60)
    gaps = analysis.inference_gaps(loaded.model, loaded.guide, x, **QUICK)
    return report, run, found, again, gaps


def bound_methods():
    return (lambda vae: (vae.model, vae.guide))(pairs.PyroVAE())


def test_a_pair_of_the_form_of_pyros_vae_example_on_binarised_images(tmp_path):
    x = pairs.images(40)
    report, run, found, again, gaps = down_the_street(*bound_methods(), x, tmp_path / "run", bound_methods())
    assert report.ok and not [f for f in report.findings if f.severity == "warning"]
    assert torch.equal(found.pointwise, again.pointwise)
    assert found.source.measure == "counting"
    assert run.history[-1]["train_elbo"] > run.history[0]["train_elbo"]
    assert (gaps.inference - (gaps.log_px - gaps.elbo)).abs().max() < 1e-9
    assert gaps.mean("amortization").value > -3 * gaps.mean("amortization").mc_se  # L[q] <= L[q*] in the same family


@pytest.mark.filterwarnings("ignore::ppvae.errors.RelaxedMeasureWarning")
def test_the_same_pair_on_grey_images_says_at_every_step_that_it_is_relaxed(tmp_path):
    grey = torch.rand(40, *pairs.images(1).shape[1:])
    with pytest.warns(RelaxedMeasureWarning):
        analysis.elbo(*bound_methods(), grey, num_particles=2)
    report, _, found, again, gaps = down_the_street(*bound_methods(), grey, tmp_path / "run", bound_methods())
    assert report.ok and "relaxed (not a probability)" in str(report)
    for result in (found, again, gaps):
        assert result.source.measure == "relaxed (not a probability)"
        assert "measure: relaxed (not a probability)" in str(result)


def test_a_convolutional_pair_that_refuses_leading_dimensions(tmp_path):
    torch.manual_seed(0)
    model, guide = pairs.refusing(pairs.Upsamples)
    x = pairs.real(40, 4)
    report, _, found, again, _ = down_the_street(model, guide, x, tmp_path / "run", (model, guide))
    assert report.ok and "repeated batches" in str(report)
    assert torch.equal(found.pointwise, again.pointwise)


def test_pyro_linear_children_are_checked_measured_and_trained_twice():
    """A PyroModule that ran and is then put under a new parent raises in Pyro: nothing here may wrap it in one."""
    model, guide = pairs.pyro_linear()
    x = pairs.real(40)
    assert ppvae.check(model, guide, x).ok
    before = analysis.elbo(model, guide, x, num_particles=50).mean.value
    for _ in range(2):
        run = ppvae.fit(model, guide, x, epochs=15, optimizer=functools.partial(torch.optim.Adam, lr=0.01))
    assert analysis.elbo(run.model, run.guide, x, num_particles=50).mean.value > before + 0.1


def test_a_guide_of_pyro_params_alone_is_fitted_and_measured():
    """x ~ N(z, 1), z ~ N(0, 1), and one N(loc, scale) for all data: the best has loc = mean(x) / 2 and scale = sqrt(1 / 2)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        loc = pyro.param("loc", torch.tensor(2.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale))

    x = torch.linspace(-1.0, 3.0, 64)[:, None]
    decay = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97**10)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    often = x.repeat(10, 1)  # each epoch is measured: fewer of them, of as many steps in all
    run = ppvae.fit(model, guide, often, epochs=15, batch_size=16, optimizer=adam, scheduler=decay)
    trained = run.guide.store["params"]
    assert trained["loc"].item() == pytest.approx(0.5, abs=0.05)  # five sds of the last steps' noise
    assert trained["scale"].exp().item() == pytest.approx(0.5**0.5, abs=0.05)
    found = analysis.log_likelihood(run.model, run.guide, x, num_particles=5000)
    assert abs(found.mean.value - dist.Normal(0.0, 2**0.5).log_prob(x).mean()) < 5 * found.mean.mc_se + 1e-3


def two_layers():
    first, second = nn.Linear(6, 4), nn.Linear(2, 4)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            low = pyro.sample("low", dist.Normal(top, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(low.sum(-1, keepdim=True).expand(*low.shape[:-1], 6), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = first(x).chunk(2, -1)
            low = pyro.sample("low", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = second(low).chunk(2, -1)
            pyro.sample("top", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def test_a_two_layer_guide_is_refused_by_family_same_and_measured_by_the_others():
    model, guide = two_layers()
    x = torch.randn(20, 6)
    with pytest.raises(FamilyError, match="site 'top': it is a Normal whose loc moves with the noise"):
        analysis.inference_gaps(model, guide, x, **QUICK)
    found = analysis.inference_gaps(model, guide, x, families=("full_rank",), num_particles=200)
    assert (
        found.approximation.abs() < 0.2
    ).all()  # the joint posterior is Normal: full rank reaches it; 4 x 0.05, the reference's tolerance


def test_a_flow_guide_is_refused_by_family_same_and_measured_by_the_others():
    flow = dist.transforms.affine_coupling(2, hidden_dims=[8])
    encoder = nn.Linear(3, 4)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z, z[..., :1]], -1), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    x = torch.randn(20, 3)
    run = ppvae.fit(model, guide, x, epochs=2, batch_size=10)
    with pytest.raises(FamilyError, match="site 'z': it is transformed by a flow"):
        analysis.inference_gaps(run.model, run.guide, x, **QUICK)
    exact = dist.MultivariateNormal(torch.zeros(3), torch.tensor([[2.0, 0, 1], [0, 2, 0], [1, 0, 2]])).log_prob(x)
    found = analysis.inference_gaps(run.model, run.guide, x, families=("mean_field",), num_reference=3000)
    assert (found.log_px - exact).abs().max() < 0.2
    assert (found.approximation.abs() < 0.2).all()  # the posterior precision is diagonal


@pytest.mark.parametrize("structure", ["tuple", pytest.param("dict", marks=pytest.mark.soak)])
def test_batches_of_several_tensors_go_down_the_street(structure, tmp_path):
    """Counts with a known exposure each: x is (counts, exposure), a dict or a tuple."""
    encoder = nn.Linear(1, 2)

    def parts(x):
        return (x["counts"], x["exposure"]) if structure == "dict" else x

    def model(x):
        counts, exposure = parts(x)
        with pyro.plate("data", len(counts), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
            pyro.sample("counts", dist.Poisson(rate * exposure), obs=counts)

    def guide(x):
        counts, _ = parts(x)
        with pyro.plate("data", len(counts), dim=-1):
            shape, rate = nn.functional.softplus(encoder(counts[:, None])).unbind(-1)
            pyro.sample("rate", dist.Gamma(shape + 0.5, rate + 0.5))

    exposure = torch.rand(40) + 0.5
    counts = torch.poisson(2 * exposure)
    x = {"counts": counts, "exposure": exposure} if structure == "dict" else (counts, exposure)
    _, run, found, again, _ = down_the_street(model, guide, x, tmp_path / "run", (model, guide))
    exact = dist.GammaPoisson(torch.tensor(2.0), 1 / exposure).log_prob(counts)
    assert torch.equal(found.pointwise, again.pointwise)
    precise = analysis.log_likelihood(run.model, run.guide, x, num_particles=20_000)
    assert abs(precise.mean.value - exact.mean()) < 5 * precise.mean.mc_se
