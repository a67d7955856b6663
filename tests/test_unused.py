"""Parameters that no gradient reaches end a run before its first step; those that one draw or another reaches do not."""

from __future__ import annotations

import functools
import inspect
import itertools
import random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn

import pairs
import ppvae
from ppvae import guides, models, objectives
from ppvae.checks_numbers import reach
from ppvae.cli import main
from ppvae.data import Data
from ppvae.errors import ObjectiveError, ProgramError
from ppvae.fit import _look_for_unused
from ppvae.unused import unused

adam = functools.partial(torch.optim.Adam, lr=0.01)


def fit(model, guide, x=None, **arguments):
    return ppvae.fit(model, guide, pairs.real() if x is None else x, **{"epochs": 1, "batch_size": 8, "optimizer": adam, **arguments})


def refused(model, guide, x=None, **arguments):
    """What is never used is not in fewer runs either."""
    with mock.patch("ppvae.unused.LOOKS", 2), pytest.raises(ProgramError) as raised:
        fit(model, guide, x, **arguments)
    return raised.value


class Detached(nn.Module):
    """A network whose output has lost its graph."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).detach()


class Switched(nn.Module):
    """The second network where ``chosen(x, self)`` says so, the first elsewhere."""

    def __init__(self, chosen):
        super().__init__()
        self.first, self.second, self.chosen = nn.Linear(3, 4), nn.Linear(3, 4), chosen

    def forward(self, x):
        return (self.second if self.chosen(x, self) else self.first)(x)


def linear(encoder=None, decoder=None):
    """A Normal likelihood over 3 numbers, 2 latents."""
    return models.Normal(decoder or nn.Linear(2, 3), latent_dim=2, scale=1.0), guides.DiagonalNormal(encoder or nn.Linear(3, 4), 2)


def test_a_detached_encoder_is_refused_with_names_place_and_remedies():
    error = refused(*linear(Detached(nn.Linear(3, 4))))
    assert str(error) == (
        "2 of 4 parameters receive no gradient: 'guide.encoder.inner.weight', 'guide.encoder.inner.bias'; "
        "training would leave them as they are\n"
        "  where: 2 of the guide's 2\n"
        "  mend:  use them in the program, or remove them; look for .detach(), .item() and torch.no_grad() on their way to a site\n"
        "     or: requires_grad_(False), where they shall stay as they are\n"
        "     or: unused_parameters='allow' (--unused-parameters allow), where a branch that is seldom taken uses them"
    )


def test_a_detached_decoder_is_the_models():
    assert refused(*linear(decoder=Detached(nn.Linear(2, 3)))).where == "2 of the model's 2"


def test_nothing_is_written_or_trained_before(tmp_path):
    model, guide = linear(Detached(nn.Linear(3, 4)))
    before = [p.clone() for p in model.parameters()]
    refused(model, guide, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_allowed_they_are_a_note_and_stay_as_they_are(capsys):
    model, guide = linear(Detached(nn.Linear(3, 4)))
    before = guide.encoder.inner.weight.clone()
    assert len(fit(model, guide, unused_parameters="allow").history) == 1
    assert "note: 2 of 4 parameters receive no gradient: 'guide.encoder.inner.weight', 'guide.enc" in capsys.readouterr().err
    assert torch.equal(guide.encoder.inner.weight, before)


def test_a_module_that_a_program_holds_and_never_runs():
    model, guide = linear()
    model.spare = nn.Linear(2, 2, bias=False)
    assert refused(model, guide).problem.startswith("1 of 5 parameters receive no gradient: 'model.spare.weight'; ")


def test_a_store_parameter_that_is_not_used_and_its_program():
    model, guide = linear()

    def told(x):
        pyro.param("idle", torch.tensor(1.0))
        return guide(x)

    error = refused(model, told)
    assert (error.problem.split(";")[0], error.where) == ("1 of 5 parameters receive no gradient: 'param.idle'", "1 of the guide's 3")


class Shared(nn.Module):
    """Model and guide as methods of one module."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder, self.spare = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(2, 2)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_parameters_of_both_programs():
    shared = Shared()
    assert refused(shared.model, shared.guide).where == "2 of the 6 that model and guide share"


# What is used now and then is used.


def test_a_branch_that_a_draw_chooses():
    fit(*linear(Switched(lambda x, _: torch.rand(()) < 0.3)))


def test_a_branch_that_pythons_generator_chooses():
    fit(*linear(Switched(lambda x, _: random.random() < 0.3)))


def test_a_branch_of_training_mode():
    fit(*linear(Switched(lambda x, self: self.training)))


def test_a_branch_of_small_batches():
    """A first batch of 8 rows, the other size of 4."""
    fit(*linear(Switched(lambda x, _: len(x) == 4)))


def test_a_branch_of_a_few_data():
    """A row of 64: a batch of 8 holds it in one look of 8, one of 4 in one of 16."""
    x = pairs.real(64)
    x[63, 0] = 9.0
    fit(*linear(Switched(lambda x, _: bool((x[:, 0] == 9.0).any()))), x)


@pytest.mark.parametrize("weights", [{"beta": 0.0}, {"likelihood_weight": 0.0}], ids=str)
def test_a_weight_of_0_makes_nothing_unused(weights):
    """At beta = 0 the gradient of the prior's parameters is 0: a number, which the weight's schedule may change."""
    model = models.LatentVariable(ppvae.models.priors.Normal(2), nn.Linear(2, 3), models.likelihoods.Normal(3))
    with pytest.warns(ppvae.errors.UnreliableWarning, match="not the ELBO"):
        fit(model, guides.DiagonalNormal(nn.Linear(3, 4), 2), **weights)


def test_a_gradient_of_zeros_is_one():
    fit(*linear(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)).apply(zeroed)))


def zeroed(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


# What is nobody's fault.


def test_a_guide_without_any():
    fit(*pairs.exact())


class Idle(models.LinearGaussian):
    """Reads a parameter, and does nothing with it."""

    def __init__(self):
        super().__init__(3, 2)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x):
        self.idle.sum()
        super().forward(x)


def test_a_frozen_parameter_that_pyros_store_would_unfreeze():
    """A PyroModule registers what is read of it, and Pyro's store gives that a gradient."""
    model, (_, guide) = Idle(), linear()
    assert "'model.idle'" in refused(model, guide).problem
    model.idle.requires_grad_(False)
    fit(model, guide)
    model.spare = nn.Linear(2, 2, bias=False)
    assert "'model.spare.weight'" in refused(model, guide).problem
    assert not model.idle.requires_grad


class Experiment:
    """A plain object with a network that is none of the pair's."""

    def __init__(self):
        self.shared, self.judge = Shared(), nn.Linear(3, 2)
        del self.shared.spare

    def model(self, x):
        return self.shared.model(x)

    def guide(self, x):
        return self.shared.guide(x)


def test_a_network_of_an_object_that_never_runs_is_noted(capsys):
    experiment = Experiment()
    fit(experiment.model, experiment.guide)
    assert "note: 2 of 6 parameters receive no gradient: 'model.judge.weight', 'model.judge.bias'" in capsys.readouterr().err


def test_a_network_of_an_object_that_runs_for_nothing_is_refused():
    experiment = Experiment()
    experiment.shared.model = lambda x: (experiment.judge(x).detach(), Shared.model(experiment.shared, x))
    assert "'model.judge.weight', 'model.judge.bias'" in refused(experiment.model, experiment.guide).problem


# Objectives. Whichever it is, the message is that of the first test.


def told(names, where, of=4):
    """The whole message."""
    listed = ", ".join(f"'{name}'" for name in names)
    return (
        f"{len(names)} of {of} parameters receive no gradient: {listed}; training would leave them as they are\n"
        f"  where: {where}\n"
        "  mend:  use them in the program, or remove them; look for .detach(), .item() and torch.no_grad() on their way to a site\n"
        "     or: requires_grad_(False), where they shall stay as they are\n"
        "     or: unused_parameters='allow' (--unused-parameters allow), where a branch that is seldom taken uses them"
    )


ENCODER = ["guide.encoder.inner.weight", "guide.encoder.inner.bias"]
SPARE = ["model.spare.weight", "model.spare.bias"]


def own_loss(model, guide, x):
    return pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)


class Subclass(pyro.infer.Trace_ELBO):
    """A user's own, with a term on a module that it is given; from call ``after`` on."""

    def __init__(self, module=None, after=0):
        super().__init__()
        self.module, self.after, self.calls = module, after, 0

    def loss_and_grads(self, model, guide, *args):
        loss = super().loss_and_grads(model, guide, *args)
        if self.after:
            self.calls += 1
        if self.module is not None and self.calls >= self.after:
            self.module(args[0].new_ones(2)).square().sum().backward()
        return loss


OBJECTIVES = {
    "mean field": TraceMeanField_ELBO,
    "renyi": lambda: RenyiELBO(num_particles=2),
    "sticking": objectives.StickingTheLanding,
    "wake-sleep": lambda: objectives.ReweightedWakeSleep(num_particles=2),
    "graph": TraceGraph_ELBO,
    "enumerated": lambda: TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    "Pyro's wake-sleep": lambda: ReweightedWakeSleep(2, strict_enumeration_warning=False, vectorize_particles=False),
    "jit": JitTrace_ELBO,
    "jit, mean field": JitTraceMeanField_ELBO,
    "jit, graph": JitTraceGraph_ELBO,
    "jit, enumerated": lambda: JitTraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    "aggressive": lambda: objectives.Aggressive(pairs.real()),
    "aggressive, graph": lambda: objectives.Aggressive(pairs.real(), TraceGraph_ELBO()),
    "function": lambda: own_loss,
    "partial": lambda: functools.partial(own_loss),
    "method": lambda: pyro.infer.Trace_ELBO().differentiable_loss,
    "subclass": Subclass,
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_detached_encoder_is_refused_under_every_objective(objective):
    assert str(refused(*linear(Detached(nn.Linear(3, 4))), objective=objective())) == told(ENCODER, "2 of the guide's 2")


class Choosing(nn.Module):
    """q(z | x) = Categorical(encoder(x)), with a network for the baseline, registered in Pyro's store or not."""

    def __init__(self, registered):
        super().__init__()
        self.encoder, self.baseline, self.registered = nn.Linear(3, 2), nn.Linear(3, 1), registered

    def forward(self, x):
        if self.registered:
            pyro.module("baseline", self.baseline)
        options = {"nn_baseline": lambda x: self.baseline(x)[..., 0], "nn_baseline_input": x}
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)), infer={"baseline": options})


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=x.new_zeros(2)))
            pyro.sample("x", dist.Normal(self.loc[z], 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "not registered"])
@pytest.mark.parametrize("objective", [TraceGraph_ELBO, lambda: objectives.Aggressive(pairs.real(), TraceGraph_ELBO(), most=1)])
def test_a_baseline_is_reached_by_the_objectives_own_loss_and_trained(objective, registered):
    guide = Choosing(registered)
    before = guide.baseline.weight.clone()
    fit(Chosen(), guide, objective=objective(), compile=False)
    assert not torch.equal(guide.baseline.weight, before)


def test_a_baseline_that_the_objective_does_not_use():
    error = refused(Chosen(), Choosing(True), objective=pyro.infer.Trace_ELBO())
    assert str(error) == told(["guide.baseline.weight", "guide.baseline.bias"], "2 of the guide's 4", of=5)


def test_a_jitted_objective_is_judged_by_the_one_that_it_compiles():
    found = unused(Chosen(), Choosing(True), objective=JitTraceGraph_ELBO(), **looked())
    assert (found.names, found.by_objective) == ([], ["guide.baseline.weight", "guide.baseline.bias"])


def looked(x=None):
    x = pairs.real() if x is None else x
    return {"data": Data.of(x), "batch_size": 8, "frozen": [], "seed": 0, "device": torch.device("cpu")}


def penalised(module):
    return lambda model, guide, x: own_loss(model, guide, x) + module(x.new_ones(2)).square().sum()


def unwrapping(module):
    """Finds the module as an attribute of the model that training hands it."""
    return lambda model, guide, x: own_loss(model, guide, x) + inspect.unwrap(model).spare(x.new_ones(2)).square().sum()


def spare(**given):
    """A pair with a module that no density depends on; the module."""
    model, guide = linear(**given)
    model.spare = nn.Linear(2, 2)
    return model, guide, model.spare


@pytest.mark.parametrize("objective", [penalised, unwrapping, Subclass], ids=["function", "unwrapping", "subclass"])
def test_what_a_loss_of_ones_own_alone_uses_is_trained(objective):
    """|W 1 + b|^2 has the gradient 2 (W 1 + b) by b, over 20 data a step; SGD with rate 1 takes that off."""
    model, guide, module = spare()
    module.weight.requires_grad_(False)
    expected = module.bias - 2 * (module.weight.sum(1) + module.bias) / 20
    fit(model, guide, objective=objective(module), batch_size=20, optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    assert torch.allclose(module.bias, expected, rtol=1e-12)


def test_what_a_loss_alone_uses_is_trained_after_resuming_too(tmp_path):
    def bias(folder, *ends):
        torch.manual_seed(0)
        model, guide, module = spare()
        for epochs in ends:
            fit(model, guide, objective=penalised(module), epochs=epochs, out=folder, resume=True)
        return module.bias

    assert torch.equal(bias(tmp_path / "at once", 2), bias(tmp_path / "in two", 1, 2))


def test_pyros_optimizers_cannot_train_what_no_statement_names():
    model, guide, module = spare()
    with pytest.raises(ProgramError, match="stand under no pyro.param name") as raised:
        fit(model, guide, objective=Subclass(module), optimizer=pairs.optim.Adam({"lr": 0.01}))
    assert "(shapes [(2, 2), (2,)])" in raised.value.problem


def test_a_module_that_the_loss_alone_holds_is_noted_as_not_trained(capsys):
    fit(*linear(), objective=penalised(nn.Linear(2, 2)))
    note = (
        "note: 2 parameters of the loss alone are not trained: 'module.weight', 'module.bias'; to be trained they stand in model or guide"
    )
    assert note in capsys.readouterr().err


def alternating(module):
    """The ELBO in every other call, the module in those between."""
    calls = [0]

    def loss(model, guide, x):
        calls[0] += 1
        return module(x.new_ones(2)).square().sum() if calls[0] % 2 == 0 else own_loss(model, guide, x)

    return loss


def test_a_loss_that_does_not_come_to_its_end_tells_nothing():
    model, guide, module = spare()
    assert unused(model, guide, objective=penalised(lambda x: module(x)[5]), **looked()).names == []


def test_a_loss_that_takes_turns():
    model, guide, module = spare()
    fit(model, guide, objective=alternating(module))


def test_a_term_that_comes_later_is_a_note(capsys):
    model, guide, module = spare()
    fit(model, guide, objective=Subclass(module, after=1000))
    assert "note: 2 of 6 parameters receive no gradient: 'model.spare.weight', 'model.spare.bias'" in capsys.readouterr().err


def test_what_a_callback_may_bring_in_is_a_note(capsys):
    model, guide, _ = spare()
    fit(model, guide, objective=own_loss, callback=lambda row: None)
    assert "note: 2 of 6 parameters receive no gradient: 'model.spare.weight', 'model.spare.bias'" in capsys.readouterr().err


def test_a_callback_brings_nothing_into_an_objective_of_pyros():
    model, guide, _ = spare()
    assert str(refused(model, guide, objective=TraceGraph_ELBO(), callback=lambda row: None)) == told(SPARE, "2 of the model's 4", of=6)


CALLS = itertools.count()


def counted(model, guide, x):
    return own_loss(model, guide, x) + 0.0 * next(CALLS)


def test_a_loss_whose_state_cannot_be_put_back_is_not_run():
    model, guide, _ = spare()
    assert unused(model, guide, objective=counted, **looked()).held == {}
    assert next(CALLS) == 0


def test_beside_other_processes_a_loss_of_ones_own_is_not_run():
    model, guide, _ = spare()
    assert unused(model, guide, objective=own_loss, alone=False, **looked()).held == {}
    assert unused(model, guide, objective=TraceGraph_ELBO(), alone=False, **looked()).names == SPARE


@pytest.mark.parametrize(("processes", "told_of"), [(1, True), (2, False)])
def test_fit_tells_whether_other_processes_train_along(processes, told_of):
    model, guide, _ = spare()
    ranks, said = SimpleNamespace(size=processes), []
    about = {"model": model, "guide": guide, "ranks": ranks, "callback": None, "progress": SimpleNamespace(say=said.append)}
    _look_for_unused(SimpleNamespace(**about, **looked()), own_loss, allowed=True)
    assert any(SPARE[0] in line for line in said) == told_of


def test_a_loss_that_trains_a_part_itself():
    """Its own step reaches the module, and no gradient is left in it; the steps of the looks are taken back."""
    model, guide, module = spare()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)

    def loss(model, guide, x):
        module(x.new_ones(2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return own_loss(model, guide, x)

    before = module.weight.clone()
    assert unused(model, guide, objective=loss, **looked()).names == []
    assert torch.equal(module.weight, before)
    assert optimizer.state == {}


@pytest.mark.parametrize(
    ("objective", "model", "guide", "runs"),
    [
        (pyro.infer.Trace_ELBO(), *linear(), 1),
        (TraceGraph_ELBO(), *linear(), 1),
        (own_loss, *linear(), 1),
        (TraceGraph_ELBO(), Chosen(), Choosing(True), 2),
    ],
    ids=["ordinary", "another objective", "a loss of one's own", "a baseline"],
)
def test_one_run_where_the_elbo_reaches_all_and_one_of_the_objective_where_it_does_not(objective, model, guide, runs):
    with mock.patch("ppvae.unused.reach", wraps=reach) as counted_runs:
        assert unused(model.double(), guide.double(), objective=objective, **looked()).names == []
    assert counted_runs.call_count == runs


# Guides that take steps of their own.


def stepping(kind, model, guide):
    """Gradients go through the steps of the first two to the guide behind them, and through those of the others to none."""
    return {
        "semi-amortized": lambda: guides.SemiAmortized(guide, model, steps=1),
        "iterative": lambda: guides.Iterative(guide, nn.Linear(8, 8), model, steps=1),
        "iterative, no steps": lambda: guides.Iterative(guide, nn.Linear(8, 8), model, steps=0),
        "refined": lambda: guides.Refined(guide, model=model, steps=1, num_draws=1),
        "annealed": lambda: guides.Annealed(guide, model=model, temperatures=2, step_size=0.1, num_leapfrog=1),
    }[kind]()


STEPPING = ["semi-amortized", "iterative", "iterative, no steps", "refined", "annealed"]


@pytest.mark.parametrize("kind", STEPPING)
def test_a_guide_that_takes_steps_is_taken_as_it_is(kind):
    model, guide = linear()
    assert unused(model, stepping(kind, model, guide), objective=pyro.infer.Trace_ELBO(), **looked()).names == []


@pytest.mark.parametrize("kind", STEPPING)
def test_a_detached_decoder_under_a_guide_that_takes_steps(kind):
    model, guide = linear()
    model.spare = nn.Linear(2, 2)
    of = 8 if kind.startswith("iterative") else 6
    assert str(refused(model, stepping(kind, model, guide))) == told(SPARE, "2 of the 4 that model and guide share", of=of)


@pytest.mark.parametrize("kind", STEPPING[:2])
def test_a_detached_encoder_behind_steps_that_gradients_go_through(kind):
    model, guide = linear(Detached(nn.Linear(3, 4)))
    of = 6 if kind == "iterative" else 4
    names = ["guide.guide.encoder.inner.weight", "guide.guide.encoder.inner.bias"]
    assert str(refused(model, stepping(kind, model, guide))) == told(names, f"2 of the guide's {of - 2}", of=of)


# Pairs that can be trained and not measured.


def point(encoder):
    return models.Autoencoder(nn.Linear(2, 3), models.likelihoods.Normal(3), latent_dim=2), guides.Delta(encoder)


def test_a_point_mass():
    fit(*point(nn.Linear(3, 2)))


def test_a_point_mass_at_a_detached_encoder():
    error = refused(*point(Detached(nn.Linear(3, 2))))
    assert str(error) == told(ENCODER, "2 of the guide's 2")


class Enumerated(nn.Module):
    """Takes no draw of c, only all its values at once."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 0.2, 1.5]))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(x.new_ones(3)), infer={"enumerate": "parallel"})
            if len(c) != 3:
                raise ValueError("c was not enumerated")
            pyro.sample("x", dist.Normal(self.means[c], 1.0), obs=x[:, 0])


def no_latents(x):
    pass


def enumerated(model):
    about = {**looked(pairs.real(20, 1)), "batch_size": 20}
    return unused(model, no_latents, objective=TraceEnum_ELBO(max_plate_nesting=1), **about)


def test_a_pair_that_only_enumeration_runs():
    """Batches have 20 and 10 rows, and the ELBO's draws of c no axis of 3."""
    with mock.patch("ppvae.unused.reach", wraps=reach) as runs:
        assert enumerated(Enumerated()).by_objective == ["model.means"]
    assert runs.call_count == 2


def test_a_pair_that_only_enumeration_runs_with_a_parameter_that_nothing_uses():
    model = Enumerated()
    model.spare = nn.Linear(2, 2)
    assert enumerated(model).names == SPARE


def test_an_enumerated_pair_that_cannot_be_measured():
    model, guide = pairs.marginal_mixture()

    def idle(x):
        pyro.param("idle", torch.tensor(1.0))
        model(x)

    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit(model, guide, pairs.real(20, 1), objective=objective)
    assert str(refused(idle, guide, pairs.real(20, 1), objective=objective)) == told(["param.idle"], "1 of the model's 3", of=3)


# The run around it.


def test_looking_moves_nothing_that_training_starts_from():
    """Running statistics and draws: the run is that of a pair whose every parameter the first look reaches."""

    def history(allowed):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
        model, guide = linear(encoder)
        if allowed:
            model.spare = nn.Linear(2, 2)
        run = fit(model, guide, epochs=2, unused_parameters="allow")
        return [row["objective"] for row in run.history], encoder[1].running_mean

    (plain, mean), (looked, looked_mean) = history(False), history(True)
    assert plain == looked
    assert torch.equal(mean, looked_mean)


def test_a_resumed_run_is_not_looked_at_again(tmp_path):
    torch.manual_seed(0)
    fit(*linear(Detached(nn.Linear(3, 4))), out=tmp_path, unused_parameters="allow")
    assert len(fit(*linear(Detached(nn.Linear(3, 4))), out=tmp_path, resume=True, epochs=2).history) == 2


def test_a_word_that_is_neither():
    with pytest.raises(ObjectiveError) as raised:
        fit(*linear(), unused_parameters="ignore")
    assert str(raised.value) == "unused_parameters is 'refuse' or 'allow', got 'ignore'\n  mend:  unused_parameters='refuse'"


PROGRAM = """
import torch
from ppvae import guides, models

def pair(x):
    model = models.Normal(torch.nn.Linear(2, 3), latent_dim=2, scale=1.0)
    model.spare = torch.nn.Linear(2, 2)
    return model, guides.DiagonalNormal(torch.nn.Linear(3, 4), latent_dim=2)
"""


def test_the_command_refuses_and_allows(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    (tmp_path / "mine.py").write_text(PROGRAM)
    np.save(tmp_path / "x.npy", pairs.real(40).float().numpy())
    given = ["--data", str(tmp_path / "x.npy"), "--program", f"{tmp_path}/mine.py:pair"]
    train = ["train", *given, "--out", str(tmp_path / "run"), "--epochs", "1", "--threads", "1"]
    assert main(train) == 65
    assert "2 of 6 parameters receive no gradient: 'model.spare.weight', 'model.spare.bias'" in capsys.readouterr().err
    assert main([*train, "--unused-parameters", "allow"]) == 0
