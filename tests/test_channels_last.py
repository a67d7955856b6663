"""Convolutions of compiled steps walk images pixel by pixel; numbers, parameters and files are those of the program as it is written."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
import torch.nn.functional as F
from test_resume import left_in, untimed

import pairs
import ppvae
import ppvae.svi
from ppvae import guides, models, policy
from ppvae.engine import Call, ChannelsLast, Engine
from ppvae.nn import ConvDecoder, ConvEncoder


def convolutional():
    """Images of 8 x 8, two channels and four."""
    model = models.Bernoulli(ConvDecoder(2, 8, channels=2), latent_dim=2)
    return model, guides.DiagonalNormal(ConvEncoder(8, 4, channels=2), latent_dim=2)


def is_turned(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and tensor.stride()[1] == 1


def test_a_convolution_by_hand():
    """Ones in 2 x 2 over two channels of the numbers 0 to 8: each sum is twice that of four neighbours."""
    x = torch.arange(9.0).reshape(1, 1, 3, 3).expand(1, 2, 3, 3).clone()
    with ChannelsLast():
        found = F.conv2d(x, torch.ones(2, 2, 2, 2))
    assert found[0].tolist() == [[[16.0, 24.0], [40.0, 48.0]]] * 2
    assert is_turned(found)


def test_a_transposed_convolution_by_hand():
    """A kernel of ones spreads each of four numbers over 2 x 2: the middle gets them all."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    with ChannelsLast():
        found = F.conv_transpose2d(x, torch.ones(1, 2, 2, 2))
    assert found[0].tolist() == [[[1.0, 3.0, 2.0], [4.0, 10.0, 6.0], [3.0, 7.0, 4.0]]] * 2
    assert is_turned(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_that_of_the_weights_as_they_lie(channels):
    """Of sum(conv(x, w)) with x of ones by any entry of w: the number of places where the kernel lies, here 2 x 2 for each image."""
    w = torch.zeros(2, channels, 2, 2, requires_grad=True)
    with ChannelsLast():
        (gradient,) = torch.autograd.grad(F.conv2d(torch.ones(5, channels, 3, 3), w).sum(), [w])
    assert gradient.tolist() == torch.full((2, channels, 2, 2), 20.0).tolist()
    assert w.is_contiguous()


def test_other_convolutions_are_left_alone():
    with ChannelsLast():
        assert F.conv1d(torch.ones(1, 2, 4), torch.ones(2, 2, 3)).is_contiguous()
        assert F.conv3d(torch.ones(1, 2, 3, 3, 3), torch.ones(2, 2, 2, 2, 2)).is_contiguous()
        assert F.conv2d(torch.ones(1, 2, 3, 3), weight=torch.ones(2, 2, 2, 2)).shape == (1, 2, 2, 2)


def captured(make, x):
    """The graph of a step."""
    graphs = []

    def keeping(graph, inputs):
        graphs.append(graph)
        return graph

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, pyro.get_param_store().scope():
        patch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=keeping))
        svi = ppvae.SVI(*make(), functools.partial(torch.optim.Adam, lr=1e-3), compile=True)
        for _ in range(2):
            svi.take(Call.of((x,), {}))
    assert svi.engine.on, svi.engine.reason
    return graphs[0]


def test_every_convolution_of_a_step_gives_turned_images():
    x = pairs.binary(6, 64)
    strides = []

    class Looking(torch.fx.Interpreter):
        def run_node(self, node):
            found = super().run_node(node)
            if node.target is torch.ops.aten.convolution.default:
                strides.append(is_turned(found))
            return found

    graph = captured(convolutional, x)
    with torch.no_grad():
        Looking(graph.module).run(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), x, *graph.lifted)
    assert strides == [True] * 4  # two of the encoder, two of the decoder


def test_a_step_without_convolutions_has_the_same_graph(monkeypatch):
    turned = captured(pairs.ours, pairs.binary()).module.code
    monkeypatch.setattr(policy, "channels_last", lambda device: False)
    assert captured(pairs.ours, pairs.binary()).module.code == turned


def test_only_processors_turn_images():
    assert policy.channels_last("cpu") and not policy.channels_last("cuda")


def train(folder, seed=0, **arguments):
    torch.manual_seed(seed)
    pair = convolutional()
    run = ppvae.fit(*pair, pairs.binary(20, 64), **{"epochs": 4, "batch_size": 10, "seed": 3, "out": folder, **arguments})
    return run, pair


def test_compiled_run_is_the_eager_run_and_leaves_parameters_as_they_lay(monkeypatch, tmp_path):
    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=lambda graph, inputs: graph))
    eager, _ = train(tmp_path / "eager", compile=False)
    found, pair = train(tmp_path / "compiled", compile=True)
    assert (eager.config["engine"], found.config["engine"]) == ("eager", "compiled")
    for a, b in zip(eager.history, found.history, strict=True):
        assert b["objective"] == pytest.approx(a["objective"], rel=1e-9)  # float64, sums of some hundred terms
    for program in pair:
        for name, parameter in program.named_parameters():
            assert parameter.is_contiguous(), name
    one, two = (left_in(tmp_path / name) for name in ("eager", "compiled"))
    assert {k: v[:2] for k, v in one[1].items()} == {k: v[:2] for k, v in two[1].items()}  # names, types and shapes of what is saved


@pytest.mark.soak  # one like it, without images, is of the fast tests
def test_run_through_inductor_goes_on_as_if_undisturbed(tmp_path):
    whole, _ = train(tmp_path / "whole", compile=True)
    train(tmp_path / "run", compile=True, epochs=2)
    resumed, _ = train(tmp_path / "run", compile=True, seed=99, resume=True)
    assert resumed.config["engine"] == "compiled"
    assert untimed(resumed.history) == untimed(whole.history)
    assert left_in(tmp_path / "run")[1] == left_in(tmp_path / "whole")[1]


def test_a_program_with_dropout_on_images_draws_its_own_noise(monkeypatch):
    """Noise goes along the memory, so that turned images would be dropped elsewhere: the step keeps them as they lie, compiled all the same."""
    monkeypatch.setattr(ppvae.svi, "Engine", functools.partial(Engine, backend=lambda graph, inputs: graph))

    def trained(compile):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide = convolutional()
        guide.encoder.layers.insert(2, torch.nn.Dropout(0.5))
        svi = ppvae.SVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), compile=compile)
        svi.prepare(pairs.binary(6, 64))
        torch.manual_seed(1)
        losses = [svi.step(pairs.binary(6, 64)) for _ in range(3)]
        return losses, svi.engine

    (expected, _), (found, engine) = trained(False), trained(True)
    assert engine.on and not next(iter(engine.steps.values())).turned
    assert found == pytest.approx(expected, rel=1e-9)
