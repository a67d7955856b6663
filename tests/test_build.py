"""An object goes to JSON and comes back an equal one, and a record makes nobody else's classes."""

from __future__ import annotations

import json

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae import build, families, guides, models
from ppvae.errors import RunError
from ppvae.nn import MLP, ConvDecoder, ConvEncoder

OBJECTS = {
    "Bernoulli": lambda: models.Bernoulli(MLP(2, [8, 4], 6), latent_dim=2),
    "Normal": lambda: models.Normal(MLP(2, [8], 6), 2, scale=0.3),
    "Normal with a learned scale": lambda: models.Normal(MLP(2, [8], 6), latent_dim=2),
    "LatentVariable": lambda: models.LatentVariable(models.priors.StandardNormal(2), MLP(2, [], 12), models.likelihoods.Categorical(3)),
    "LinearGaussian": lambda: models.LinearGaussian(3, 2, scale=0.5),
    "a prior of one's own": lambda: models.Bernoulli(MLP(2, [8], 6), latent_dim=2, prior=models.priors.StandardNormal(2)),
    "DiagonalNormal": lambda: guides.DiagonalNormal(MLP(6, [8], 4), latent_dim=2),
    "FullRankNormal": lambda: guides.FullRankNormal(MLP(6, [8], 5), latent_dim=2),
    "Amortized": lambda: guides.Amortized(MLP(6, [8], 4), families.DiagonalNormal(2)),
    "activation": lambda: MLP(2, [3], 4, activation=nn.Tanh),
    "hidden as a tuple": lambda: MLP(2, (3, 5), 4),
    "convolutions": lambda: ConvEncoder(8, 4, channels=2),
    "transposed convolutions": lambda: ConvDecoder(2, 8, channels=2, outputs=2),
}


def there_and_back(value):
    return build.from_json(json.loads(json.dumps(build.to_json(value))))


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_object_comes_back_with_the_same_structure(make):
    value = make()
    found = there_and_back(value)
    assert (type(found), repr(found)) == (type(value), repr(value))
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in value.state_dict().items()}


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_record_of_a_rebuilt_object_is_the_record(make):
    value = make()
    assert build.to_json(there_and_back(value)) == build.to_json(value)


def test_rebuilt_network_with_the_weights_is_the_same_function():
    network, x = MLP(3, [5], 2, activation=nn.Tanh), torch.randn(4, 3)
    found = there_and_back(network)
    found.load_state_dict(network.state_dict())
    assert torch.equal(found(x), network(x))


def test_record_names_class_and_arguments_as_they_were_given():
    assert build.to_json(MLP(2, [3], 4, activation=nn.Tanh)) == {
        "make": "ppvae.nn.MLP",
        "with": {"in_features": 2, "hidden": [3], "out_features": 4, "activation": {"class": "torch.nn.modules.activation.Tanh"}},
    }


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "text", [1, [2, 3]]], ids=str)
def test_plain_value_comes_back(value):
    assert there_and_back(value) == value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool], ids=str)
def test_tensor_comes_back_to_the_last_bit(dtype):
    value = (torch.rand(3, 2) * 3).to(dtype)
    found = there_and_back(value)
    assert found.dtype == dtype
    assert torch.equal(found, value)


class Own(nn.Module):
    pass


def likelihood(output):
    return dist.Normal(output, 1.0).to_event(1)


class Subclass(models.Bernoulli):
    pass


FOREIGN = {
    "a module of the user's": (lambda: models.Bernoulli(Own(), 2), "a value of type Own cannot be made again from a record"),
    "a layer of torch": (lambda: models.Bernoulli(nn.Linear(2, 6), 2), "a value of type Linear cannot be made again from a record"),
    "a lambda": (
        lambda: models.LatentVariable(models.priors.StandardNormal(2), MLP(2, [], 6), likelihood),
        "a value of type function cannot",
    ),
    "a distribution": (
        lambda: models.Bernoulli(MLP(2, [], 6), 2, dist.Normal(0.0, 1.0).expand([2]).to_event(1)),
        "a value of type Independent cannot",
    ),
    "a subclass": (lambda: Subclass(MLP(2, [], 6), 2), "a value of type Subclass cannot be made again from a record"),
    "a class of the user's": (
        lambda: MLP(2, [3], 6, activation=type("Own", (nn.ReLU,), {})),
        "a value of type type cannot be made again from a record",
    ),
    "a large tensor": (lambda: torch.zeros(4097), "a value of type Tensor cannot be made again from a record"),
    "a dict": (dict, "a value of type dict cannot be made again from a record"),
}


@pytest.mark.parametrize(("make", "text"), FOREIGN.values(), ids=FOREIGN)
def test_what_no_record_can_make_again_is_refused(make, text):
    with pytest.raises(RunError, match=f"^{text}"):
        build.to_json(make())


ONLY_OURS = "and only classes of ppvae and torch.nn are made from a record"
HOSTILE = {
    "os": ("os.system", f"the record names 'os.system', {ONLY_OURS}"),
    "torch": ("torch.load", f"the record names 'torch.load', {ONLY_OURS}"),
    "like ours": ("ppvae_evil.nn.MLP", f"the record names 'ppvae_evil.nn.MLP', {ONLY_OURS}"),
    "no class": ("ppvae.checkpoint.write_json", "the record names 'ppvae.checkpoint.write_json', which is no class"),
    "gone": ("ppvae.nn.Gone", "the record names 'ppvae.nn.Gone', which this version of ppvae or torch does not have"),
    "no module": ("ppvae.gone.Gone", "the record names 'ppvae.gone.Gone', which this version of ppvae or torch does not have"),
}


@pytest.mark.parametrize("record", [lambda name: {"make": name, "with": {}}, lambda name: {"class": name}], ids=["make", "class"])
@pytest.mark.parametrize(("name", "text"), HOSTILE.values(), ids=HOSTILE)
def test_record_of_a_foreign_class_is_refused(name, text, record):
    with pytest.raises(RunError) as raised:
        build.from_json(record(name))
    assert str(raised.value) == text


def test_arguments_changed_afterwards_do_not_change_the_record():
    hidden = [3]
    network = MLP(2, hidden, 4)
    hidden.append(5)
    assert build.to_json(network)["with"]["hidden"] == [3]
