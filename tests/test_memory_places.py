"""Wherever a program runs on data, want of memory makes the rows at once fewer, down to one datum and one particle, and changes no number."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_memory import python

import pairs
from ppvae import analysis, guides, memory, noise, refinement, simulate, whitened
from ppvae.analysis.latents.space import LatentSpace
from ppvae.batches import num_data
from ppvae.errors import ProgramError, UnreliableWarning
from ppvae.memory import OutOfMemoryError
from ppvae.models.missing import masked
from ppvae.nn import MLP
from ppvae.pair import Pair

LOOK = 12  # rows that a look at a pair takes, before anything is measured: three, and four particles of each
SAID = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


def want_of_memory():
    return RuntimeError(f"[enforce fail at alloc_cpu.cpp:124] . {SAID}")


class Narrow:
    """A program for which memory runs out above ``most`` rows in one run, and outside of what is halved above those of a look."""

    def __init__(self, program, most, error=want_of_memory):
        self.program, self.most, self.error = program, most, error

    def __call__(self, x):
        if num_data(x) > (self.most if memory.halving() else LOOK):
            raise self.error()
        return self.program(x)


def tensors(found):
    """All tensors in a result, in order."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict | list | tuple):
        return [part for value in (found.values() if isinstance(found, dict) else found) for part in tensors(value)]
    return [part for value in vars(found).values() for part in tensors(value)] if hasattr(found, "__dataclass_fields__") else []


def holes(n):
    """A pair for data with missing entries, and the data."""
    encoder, decoder = MLP(6, [8], 4), MLP(2, [8], 6)

    def model(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", masked(dist.Normal(decoder(z), 0.5).to_event(1), x["observed"]), obs=x["x"])

    def guide(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            row = encoder(x["x"])
            pyro.sample("z", dist.Normal(row[..., :2], row[..., 2:].exp()).to_event(1))

    x = pairs.real(n, 6)
    observed = pairs.real(n, 6, seed=1) > -0.5
    return (model, guide), {"x": torch.where(observed, x, 0.0), "observed": observed}


def as_arviz(model, guide, x):
    found = analysis.to_arviz(model, guide, x, num_particles=2, num_prior=4)
    groups = ("posterior", "log_likelihood", "posterior_predictive", "prior", "observed_data")
    return [torch.as_tensor(found[group][name].values.copy()) for group in groups for name in found[group].data_vars]


CHAINS: Any = {"num_chains": 2, "num_leapfrog": 1, "num_warmup": 2, "num_draws": 4, "num_temperatures": 2}

# What is called, and what its warnings speak of.
PLACES = {
    "predictive_check": (
        lambda m, g, x: analysis.predictive_check(m, g, x, num_draws=2, num_particles=2, num_simulated=len(x)),
        ["reading the data", "replications", "simulating data", *["measuring with 2 particles"] * 2],
    ),
    "latent_usage": (
        lambda m, g, x: analysis.latent_usage(m, g, x, num_particles=2, num_mutual=len(x)),
        ["measuring with 2 particles", "mutual information", "KL per dimension", "posterior means"],
    ),
    "to_arviz": (as_arviz, ["draws for ArviZ", "reading the data"]),
    "calibration": (
        lambda m, g, x: analysis.calibration(m, g, template=x, num_data=max(len(x), 20), num_draws=3),
        ["reading the data", "simulating data", "draws (calibration)"],
    ),
    "corrected": (lambda m, g, x: analysis.corrected(m, g, x, num_draws=3, num_particles=3), ["draws (corrected)"]),
    "reconstruct": (lambda m, g, x: simulate.reconstruct(m, g, x), ["reconstructing"]),
    "sample": (lambda m, g, x: simulate.sample(m, len(x), template=x), ["drawing from the model"]),
    "sample, means": (lambda m, g, x: simulate.sample(m, len(x), template=x, mean=True), ["drawing from the model"]),
    "codes": (lambda m, g, x: analysis.latents.codes(m, g, x), ["codes"]),
    "aggregated_posterior": (lambda m, g, x: analysis.latents.aggregated_posterior(m, g, x), ["draws of the codes"]),
    "origin": (lambda m, g, x: analysis.latents.origin(m, x), ["reading the data"]),
    "decoded": (lambda m, g, x: LatentSpace(m, g, x).decoded(x[:, :2]), ["decoding"]),
    "impute": (lambda m, g, x: analysis.impute(m, g, x, num_samples=1, num_particles=1), ["reading the data", "imputing"]),
}


def run(call):
    """What a call gives, and its warnings."""
    with warnings.catch_warnings(record=True) as kept:
        warnings.simplefilter("always")
        found = call()
    return found, [str(one.message) for one in kept if issubclass(one.category, UnreliableWarning)]


def same(found, expected):
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)  # rounding: matrices of other sizes


def text(what, rows, left):
    return f"{what}: memory ran out with {rows} data at once; it goes on with {left}, or fewer where need be, from the same draws"


@pytest.mark.parametrize(
    ("most", "n", "left"),
    [pytest.param(32, 64, "32", marks=pytest.mark.soak), (5, 20, "5"), (1, 16, "1")],
    ids=["32 rows", "5 rows", "1 row"],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_measurement_goes_on_with_fewer_rows_from_the_same_draws(place, most, n, left):
    call, kinds = PLACES[place]
    (model, guide), x = holes(n) if place == "impute" else (pairs.ours(), pairs.binary(n))
    expected, silent = run(lambda: call(model, guide, x))
    assert not silent
    found, told = run(lambda: call(Narrow(model, most), Narrow(guide, most), x))
    same(found, expected)
    expected = [text(what, n, left) for what in kinds]
    if place == "calibration" and n == 16:  # of 20 simulated data, in 32 pieces
        expected[1:] = [text(what, 20, "1, its particles in 2 parts") for what in kinds[1:]]
    assert told == expected


@pytest.mark.parametrize("place", PLACES)
def test_of_other_errors_none_is_caught(place):
    call, _ = PLACES[place]
    (model, guide), x = holes(16) if place == "impute" else (pairs.ours(), pairs.binary(16))
    raised = []

    def other():
        raised.append(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        return raised[-1]

    with pytest.raises(RuntimeError, match="^mat1 and mat2 shapes cannot be multiplied"):
        call(Narrow(model, 0, other), Narrow(guide, 0, other), x)
    assert len(raised) == 1


# Chains and sums: on data that have no block's length, so that a second try must begin where the first did.
WALKED = {
    "posterior": (
        lambda m, g, x: analysis.posterior(m, x, guide=g, num_chains=2, num_warmup=20, num_draws=8, num_leapfrog=1),
        "chains at the posterior",
        "8",
    ),
    "bidirectional": (
        lambda m, g, x: analysis.bidirectional(m, x=x, guide=g, **CHAINS),
        "chains at the posterior",
        "8",
    ),
    "rate_distortion": (lambda m, g, x: analysis.rate_distortion(m, x, betas=(1.0,), **CHAINS), "rate and distortion", "8"),
    "exact_log_likelihood": (
        lambda m, g, x: analysis.exact_log_likelihood(m, x, tolerance=1.0),
        "exact sums",
        None,  # points of the cubature go through the model, up to 4,096 a call
    ),
    "exact_posterior": (lambda m, g, x: analysis.exact_posterior(m, x, num_draws=2, tolerance=1.0), "exact posteriors", None),
}


def unranked(found):
    """Without what is made of ranks: draws as far above the median as others are below it change places by a rounding."""
    return {name: value for name, value in vars(found).items() if name not in ("r_hat", "ess")}


# Chains of bidirectional walk as those of posterior do.
@pytest.mark.parametrize("place", [pytest.param(name, marks=[pytest.mark.soak] * (name == "posterior")) for name in WALKED])
def test_chains_and_sums_go_on_with_fewer_rows_from_the_same_draws(place, most=8, n=16):
    """16 data, eight of which fit."""
    call, kind, left = WALKED[place]
    model, guide = pairs.ours()
    x = pairs.binary(n)
    expected, _ = run(lambda: call(model, guide, x))
    found, told = run(lambda: call(Narrow(model, most), Narrow(guide, most), x))
    same(unranked(found), unranked(expected))
    (of_kind,) = [one for one in told if one.startswith(kind)]
    assert left is None or of_kind == text(kind, n, left)


@pytest.mark.soak
@pytest.mark.parametrize("place", WALKED)
def test_chains_and_sums_go_down_to_one_row(place):
    call, *_ = WALKED[place]
    model, guide = pairs.ours()
    x = pairs.binary(13)
    expected, _ = run(lambda: call(model, guide, x))
    found, _ = run(lambda: call(Narrow(model, 1), Narrow(guide, 1), x))
    same(unranked(found), unranked(expected))


def test_a_guides_steps_go_on_with_fewer_rows():
    """4 draws of each datum: 32 rows are 8 data."""
    model, guide = pairs.ours()
    x = pairs.binary(64)
    stepped = guides.SemiAmortized(guide, steps=2)
    expected = stepped.prepared(model, x).tables
    found, told = run(lambda: stepped.prepared(Narrow(model, 32), x).tables)
    same(found, expected)
    assert told == [text("steps of the guide", 64, "8")]


def test_a_closed_form_is_cut():
    model, _ = pairs.exact()
    x, log_evidence = pairs.real(40), model.log_evidence
    expected = analysis.exact_log_likelihood(model, x).pointwise

    def narrow(x):
        if len(x) > 3:
            raise want_of_memory()
        return log_evidence(x)

    model.log_evidence = narrow
    found, told = run(lambda: analysis.exact_log_likelihood(model, x))
    same(found.pointwise, expected)
    assert told == [text("exact sums", 40, "3")]


@pytest.mark.parametrize("likelihood", ["Normal", "Cauchy"])
@pytest.mark.parametrize(("most", "left"), [(7, "2"), (1, "1, its particles in 2 parts")], ids=["7 rows", "a row"])
def test_imputation_from_many_particles_is_cut_down_to_one(likelihood, most, left):
    """13 data, 2 particles: seven rows are 2 data, in 8 pieces. Of a Cauchy, which has no moments, draws stand for them."""
    (model, guide), x = holes(13)
    if likelihood == "Cauchy":

        def model(x):
            with pyro.plate("data", len(x["x"]), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", masked(dist.Cauchy(z.repeat_interleave(3, -1), 0.5).to_event(1), x["observed"]), obs=x["x"])

    def call(model):
        return analysis.impute(model, guide, x, num_samples=2, num_particles=2)

    expected, _ = run(lambda: call(model))
    found, told = run(lambda: call(Narrow(model, most)))
    same(found, expected)
    assert told[-1] == text("imputing", 13, left)


def test_moments_that_are_drawn_are_drawn_from_the_seed():
    (_, guide), x = holes(10)

    def model(x):
        with pyro.plate("data", len(x["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", masked(dist.Cauchy(z.repeat_interleave(3, -1), 0.5).to_event(1), x["observed"]), obs=x["x"])

    def imputed():
        return analysis.impute(model, guide, x, num_samples=2, num_particles=70, seed=3).mean

    torch.manual_seed(0)
    one, state = imputed(), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator has not moved
    torch.manual_seed(1)
    assert torch.equal(imputed(), one)


def test_a_reconstruction_from_many_particles_is_cut_down_to_one():
    model, guide = pairs.ours()
    x = pairs.binary(16)
    expected = simulate.reconstruct(model, guide, x, num_particles=3)
    found, told = run(lambda: simulate.reconstruct(Narrow(model, 1), Narrow(guide, 1), x, num_particles=3))
    same(found, expected)
    assert told == [text("reconstructing", 16, "1, its particles in 4 parts")]


def plates(likelihood, latent):
    """z and three w inside each datum, x of three numbers around them."""

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 2.0))
            with pyro.plate("inside", 3, dim=-2):
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", likelihood(w, scale), obs=x.T)

    def guide(x):
        pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", latent(x[:, 0]))
            with pyro.plate("inside", 3, dim=-2):
                pyro.sample("w", latent(z))

    return model, guide


LIKELIHOODS = {
    "Normal": lambda w, scale: dist.Normal(w, scale),
    "Laplace": lambda w, scale: dist.Laplace(w, scale),
    "Cauchy": lambda w, scale: dist.Cauchy(w, scale),
    "Bernoulli": lambda w, scale: dist.Bernoulli(logits=w * scale),
    "LogNormal": lambda w, scale: dist.LogNormal(w, scale),
    "Gumbel": lambda w, scale: dist.Gumbel(w, scale),
    "masked": lambda w, scale: dist.Normal(w, scale).mask(torch.tensor(True)),
    "ContinuousBernoulli": lambda w, scale: dist.ContinuousBernoulli(logits=w * scale),
}


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_new_data_of_any_piece_are_the_blocks(likelihood, in_plate):
    x = pairs.binary(5, 3) if "Bernoulli" in likelihood else pairs.real(5).exp()
    pair = Pair(*plates(LIKELIHOODS[likelihood], lambda loc: dist.Normal(loc, 1.0)), x)
    assert pair.in_plate
    pair.in_plate = in_plate
    values, _ = pair.draw(x, slice(0, 5), 3)

    def drawn(_):
        with noise.seeded(1, "data"):
            found = pair.predict(x, values, 3)["x"]
            return found, torch.rand(())  # the generator ends where the block leaves it

    expected = drawn(slice(0, 5))
    for number in (2, 3, 16):
        found = in_pieces(number, drawn)
        assert found[0].shape == expected[0].shape == (3, 3, 5)
        same(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def in_pieces(number, work):
    """What work gives where draws and densities are cut into so many pieces."""
    halving = memory.Halving(1, "work")
    halving._cut.draws.number = halving._cut.densities.number = number
    (found,) = halving(slice(0, 1), work)
    return found


@pytest.mark.parametrize("in_plate", [True, False], ids=["plate", "repeated"])
@pytest.mark.parametrize("latent", ["Normal", "Cauchy"])
def test_posterior_means_and_what_is_made_of_sites_are_the_blocks(latent, in_plate):
    """A Cauchy has no mean, so that its draws are averaged."""
    x = pairs.real(5)
    pair = Pair(*plates(LIKELIHOODS["Normal"], lambda loc: getattr(dist, latent)(loc, 1.0)), x)
    pair.in_plate = in_plate
    rows = torch.tensor([7, 1, 4, 0, 2])

    def work(_):
        with noise.seeded(1, "draws"):
            means = pair.posterior_means(x, rows, 3)
            made = pair.at_draws(
                x, rows, 3, lambda q, p: {"w": q["w"]["value"] * p["z"]["fn"].scale, "z": p["w"]["fn"].loc + 0 * q["z"]["value"]}
            )
        return means | {f"made {name}": value for name, value in made.items()}

    expected = work(slice(0, 5))
    assert [tuple(value.shape) for value in expected.values()] == [(5, 1) if in_plate else (5,), (5, 3), (3, 3, 5), (3, 3, 5)]
    for number in (2, 3, 16):
        same(in_pieces(number, work), expected)


def test_codes_of_a_piece_are_conditional_on_the_earlier_draws_of_the_block():
    """z1 given z2, whose draws are those of the seed: in pieces the same."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("z1", dist.Normal(z2, 1.0)), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x[:, 0], 1.0))
            pyro.sample("z1", dist.Normal(z2, 0.5))

    x = pairs.real(20)
    for of in (analysis.latents.codes, analysis.latents.aggregated_posterior):
        expected = of(model, guide, x, site="z1")
        found, told = run(lambda of=of: of(model, Narrow(guide, 5), x, site="z1"))
        same(found, expected)
        assert len(told) == 1


def test_posterior_means_are_exact_for_all_data_or_for_none():
    """Where one datum has no mean in closed form the draws of all are averaged, in pieces too."""

    class Moody(dist.Normal):
        @property
        def mean(self):
            return torch.where(self.loc > 0, torch.inf, self.loc)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0)), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Moody(x[:, 0], 1.0))

    x = torch.tensor([[-1.0], [-2.0], [-3.0], [4.0]])
    pair = Pair(model, guide, x)

    def work(_):
        with noise.seeded(1, "draws"):
            return pair.posterior_means(x, slice(0, 4), 2)["z"]

    expected = work(slice(0, 4))
    assert not (expected == x[:, 0]).any()
    same(in_pieces(4, work), expected)


@pytest.mark.parametrize("most", [1, 2], ids=["one draw of a datum", "two"])
def test_a_refined_flows_network_is_cut_at_its_own_draws(most, monkeypatch):
    """3 data, 4 draws of each: 4 pieces are two parts of two draws, 16 are one draw each. Gradients need the network once more."""
    monkeypatch.setitem(refinement.SCHEDULES, "full_rank", (4, 8))  # what a flow starts from
    model, guide = pairs.ours()
    x = pairs.binary(3)

    def refined():
        found = analysis.refine(model, guide, x, family="flow", steps=3, num_draws=4, num_particles=4, seed=1)
        return found.elbo, found.guide.table

    network, sizes = whitened._Coupling._scale_and_shift, []
    expected, _ = run(refined)

    def narrow(self, kept):
        if kept.shape[:-1].numel() > most and torch.is_grad_enabled():
            raise want_of_memory()
        sizes.append(kept.shape[:-1].numel())
        return network(self, kept)

    monkeypatch.setattr(whitened._Coupling, "_scale_and_shift", narrow)
    found, told = run(refined)
    same(found, expected)
    assert [one for one in told if one.startswith("refinement")] == [
        text("refinement", 3, f"1, its particles in {6 if most == 1 else 2} parts")
    ]


# What cannot be cut.


def test_one_distribution_over_all_data_is_told_to_be_too_much():
    model, guide = pairs.ours()
    x = pairs.binary(40)
    with pytest.raises(OutOfMemoryError) as raised:
        simulate.encode(Narrow(guide, 0), x)
    assert str(raised.value).startswith(
        f"encode: the distribution over 40 data does not fit into memory\n  where: {SAID}\n  mend:  encode fewer rows"
    )
    with pytest.raises(OutOfMemoryError, match="^decode: the distribution over 40 data does not fit into memory\n"):
        simulate.decode(Narrow(model, 0), torch.zeros(40, 2), template=x)


def test_one_datum_is_told_to_be_too_much():
    model, guide = pairs.ours()
    with pytest.raises(
        OutOfMemoryError, match="^the draw of one datum and one particle does not fit into memory\n  where: reconstructing: "
    ):
        simulate.reconstruct(model, Narrow(guide, 0), pairs.binary(20))


def test_draws_of_global_sites_are_not_cut():
    model, _ = plates(LIKELIHOODS["Normal"], None)
    with pytest.raises(OutOfMemoryError) as raised:
        simulate.sample(Narrow(model, 12), 40, template=pairs.real(40))
    assert raised.value.problem == (
        "the draws for 40 data do not fit into memory, and those outside the sites of the data plate (aten.normal_.default) cannot be "
        "made in pieces"
    )


def test_a_failed_try_leaves_no_global_site_behind():
    """The first try has drawn it already when memory runs out, for a mean: the second must draw it too."""
    short = []

    class Wide(dist.Normal):
        @property
        def mean(self):
            if short:
                raise short.pop()
            return self.loc

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), scale))
            pyro.sample("x", Wide(z, 1.0), obs=x[:, 0])

    def drawn():
        return simulate.sample(model, 4, template=pairs.real(4), mean=True)

    expected = drawn()
    short.append(want_of_memory())
    same(run(drawn)[0], expected)
    assert not short


def test_a_look_for_which_there_is_no_memory_is_told_as_that():
    model, guide = pairs.ours()

    def none(x):
        raise want_of_memory()

    for programs in ((model, none), (none, guide)):
        with pytest.raises(OutOfMemoryError, match="^a look at 3 data does not fit into memory\n"):
            Pair(*programs, pairs.binary(20))


def test_a_mean_is_missing_only_where_no_datum_has_one():
    """One datum with a mean in a block makes the others nan, in whatever piece they lie."""

    class Moody(dist.Normal):
        @property
        def mean(self):
            return torch.where(self.loc > 0, self.loc, torch.nan)

    x = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 0.001))
            pyro.sample("x", Moody(x[:, 0] + z, 1.0), obs=x[:, 0])

    def narrow(x):
        if len(x) > 1:
            raise want_of_memory()
        model(x)

    whole = simulate.sample(model, 4, template=x, mean=True)
    cut, _ = run(lambda: simulate.sample(narrow, 4, template=x, mean=True))
    same(cut, whole)
    assert whole["x"].isnan().tolist() == [False, True, True, True]
    with pytest.raises(ProgramError, match="^site 'x' has a distribution without a mean\n"), pytest.warns(UnreliableWarning):
        simulate.sample(narrow, 3, template=x[1:], mean=True)


# Real memory.

REAL = """
import resource, warnings
import torch, pairs
from ppvae import evaluation, guides, models, simulate
from ppvae.nn import MLP
from ppvae.pair import Pair

torch.set_num_threads(1)
wide = 1_000_000  # a hidden layer of 4 MB a datum
model = models.Bernoulli(MLP(2, [wide], 2), latent_dim=2).float()
guide = guides.DiagonalNormal(MLP(2, [wide], 4), latent_dim=2).float()
x = pairs.binary(100, 2).float()

def measured():
    pair = Pair(model, guide, x)
    return {
        "sample": simulate.sample(model, 100, template=x[:1])["x"],
        "reconstruct": simulate.reconstruct(model, guide, x),
        "means": evaluation.unit_variances(pair, x, 0)["z"],
    }

free = measured()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))  # 100 data take 400 MB for each of two tensors
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    tight = measured()
print(sorted(str(one.message).split(":")[0] for one in told))
print(max((free[name] - tight[name]).abs().max().item() for name in free))
"""


@pytest.mark.soak
def test_a_process_with_little_address_space_draws_and_reconstructs_the_same():
    told, difference = python(REAL).splitlines()
    assert told == "['drawing from the model', 'posterior means', 'reconstructing']" and float(difference) < 1e-4
