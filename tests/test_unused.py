"""Parameters that no gradient reaches end a run before its first step; those that one draw or another reaches do not."""

from __future__ import annotations

import functools
import random
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pairs
import ppvae
from ppvae import guides, models, objectives
from ppvae.cli import main
from ppvae.errors import ObjectiveError, ProgramError

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


# Objectives.


@pytest.mark.parametrize(
    "objective",
    [TraceMeanField_ELBO(), RenyiELBO(num_particles=2), objectives.StickingTheLanding(), objectives.ReweightedWakeSleep(num_particles=2)],
    ids=lambda objective: type(objective).__name__,
)
def test_objectives_that_train_what_the_elbo_reaches(objective):
    assert refused(*linear(Detached(nn.Linear(3, 4))), objective=objective).where == "2 of the guide's 2"


SPARE = nn.Linear(2, 2).double()


def penalised(model, guide, x):
    return pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x) + SPARE(x.new_ones(2)).square().sum()


@pytest.mark.parametrize(
    "objective", [penalised, TraceGraph_ELBO(), objectives.Aggressive(pairs.real(), every=9)], ids=["penalty", "baselines", "aggressive"]
)
def test_objectives_that_may_train_more_are_not_judged(objective):
    """A penalty of one's own, a baseline, whatever an objective holds."""
    model, guide = linear()
    model.spare = SPARE
    fit(model, guide, objective=objective)


def test_guides_that_take_steps_are_not_judged():
    model, guide = linear()
    model.spare = nn.Linear(2, 2)
    fit(model, guides.SemiAmortized(guide, model, steps=1))


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
