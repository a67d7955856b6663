"""Pairs whose model and guide use one object: a run folder makes it once, and both use it again."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys

import pytest
import shelf
import torch
from pyro.distributions import transforms as T
from pyro.nn import AutoRegressiveNN, DenseNN
from test_resume import unsealed

import ppvae
from ppvae import build, guides, models, nn
from ppvae.errors import RunError
from ppvae.models import likelihoods, priors
from ppvae.run import describe_programs

D = shelf.D


def guide_of(latent_dim):
    return guides.DiagonalNormal(nn.MLP(D, [5], 2 * latent_dim), latent_dim)


def with_prior(prior, latent_dim=3):
    return models.LatentVariable(prior, nn.MLP(latent_dim, [5], D), likelihoods.Bernoulli())


def vamp():
    guide = guide_of(3)
    return with_prior(priors.VampPrior(guide, torch.rand(1200, D))), guide  # 4,800 numbers, more than a record writes


def vamp_of_a_part():
    """The prior uses the guide inside the guide."""
    inner, network = guide_of(2), nn.MLP(2, [5], D, torch.nn.Tanh)
    model = models.LatentVariable(priors.VampPrior(inner, torch.rand(3, D)), network, likelihoods.Bernoulli())
    return model, guides.SemiAmortized(inner, model, steps=1)


def flow(*transforms):
    return with_prior(priors.Flow(3, transforms)), guide_of(3)


def smooth():
    return models.Bernoulli(nn.MLP(2, [5], D, torch.nn.Tanh), 2)


def semi_amortized():
    model = smooth()
    return model, guides.SemiAmortized(guide_of(2), model, steps=2, lr=0.2)


def iterative():
    model = smooth()
    return model, guides.Iterative(guide_of(2), nn.MLP(8, [4], 8), model, steps=2)


def couplings():
    """A network of the model's is the guide's too, behind another of its own."""
    network = nn.MLP(D, [5], D)
    model = models.Bernoulli(guides.from_model.Headed(nn.MLP(2, [], D), network), 2)
    encoder = guides.from_model.Headed(network, nn.MLP(D, [], 5))
    return model, guides.Amortized(encoder, guides.flow.Couplings(2, 1, 2, (4,)))


PAIRS = {
    "ladder": shelf.ladder,
    "vamp": vamp,
    "vamp of a part": vamp_of_a_part,
    "semi-amortized": semi_amortized,
    "iterative": iterative,
    "shared network": couplings,
    "splines and couplings": lambda: flow(T.spline_coupling(3, hidden_dims=[4]), T.permute(3), T.affine_coupling(3, hidden_dims=[4])),
    "autoregressive": lambda: flow(T.affine_autoregressive(3, hidden_dims=[4]), T.batchnorm(3)),
    "inverse autoregressive": lambda: flow(T.affine_autoregressive(3, hidden_dims=[4]).inv),
}
SAME = {  # name -> what model and guide of a pair hold that has to be one object
    "ladder": lambda model, guide: (model, guide.shared[0]),
    "vamp": lambda model, guide: (guide, model.prior_given._guide[0]),
    "vamp of a part": lambda model, guide: (guide.guide, model.prior_given._guide[0]),
    "semi-amortized": lambda model, guide: (model, guide.model),
    "iterative": lambda model, guide: (model, guide.model),
    "shared network": lambda model, guide: (model.network.head, guide.encoder.network),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every pair, trained for an epoch, and its log weights before it was loaded."""
    base, before = tmp_path_factory.mktemp("shared"), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x = shelf.binary()
            torch.save(x, base / "x.pt")
            found = {}
            for name, make in PAIRS.items():
                torch.manual_seed(1)
                run = ppvae.fit(*make(), x, epochs=1, batch_size=4, compile=False, out=base / name)
                found[name] = (base / name, ppvae.log_weights(run.model, run.guide, x, num_particles=3))
    finally:
        torch.set_default_dtype(before)
    return x, found


@pytest.mark.parametrize("name", PAIRS)
def test_log_weights_of_a_loaded_pair_are_those_of_the_run(name, runs):
    x, found = runs
    folder, before = found[name]
    again = ppvae.load(folder)
    assert torch.equal(ppvae.log_weights(again.model, again.guide, x, num_particles=3), before)


@pytest.mark.parametrize("name", SAME)
def test_what_was_one_object_is_one_object_again(name, runs):
    again = ppvae.load(runs[1][name][0])
    one, other = SAME[name](again.model.__wrapped__, again.guide.__wrapped__)
    assert one is other


def digest(log_weights):
    return hashlib.sha256(log_weights.numpy().tobytes()).hexdigest()


FRESH = """
import hashlib, sys, torch, ppvae
torch.set_default_dtype(torch.float64)
base, *names = sys.argv[1:]
x = torch.load(base + "/x.pt")
for name in names:
    run = ppvae.load(base + "/" + name)
    print(hashlib.sha256(ppvae.log_weights(run.model, run.guide, x, num_particles=3).numpy().tobytes()).hexdigest())
"""


def test_a_fresh_process_makes_them_all(runs):
    folders = {name: folder for name, (folder, _) in runs[1].items()}
    base = str(folders["ladder"].parent)
    said = subprocess.run([sys.executable, "-c", FRESH, base, *folders], capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.split() == [digest(before) for _, before in runs[1].values()]


def test_a_loaded_pair_trains_on_as_one(runs, tmp_path):
    """A step of the loaded ladder moves the weights of the one model that both programs run, and gives them one gradient."""
    x, found = runs
    again = ppvae.load(found["ladder"][0])
    model, guide = again.model.__wrapped__, again.guide.__wrapped__
    weight = model.layers[0].layers[0].weight
    before = weight.detach().clone()
    ppvae.fit(model, guide, x, epochs=1, batch_size=4, compile=False, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    assert (weight - before).abs().max() > 1e-6
    assert guide.shared[0].layers[0].layers[0].weight is weight


def record(model, guide):
    return json.loads(json.dumps(describe_programs(model, guide, None)))


def mlp(inputs, hidden, outputs):
    return {"make": "ppvae.nn.MLP", "with": {"in_features": inputs, "hidden": hidden, "out_features": outputs}}


def test_a_shared_object_is_written_once():
    network = nn.MLP(2, [], 2)
    model = models.Bernoulli(network, 2)
    guide = guides.DiagonalNormal(guides.from_model.Headed(network, nn.MLP(2, [3], 4)), 2)
    encoder = {"make": "ppvae.guides.from_model.Headed", "with": {"network": {"object": 0}, "head": mlp(2, [3], 4)}}
    assert record(model, guide) == {
        "how": "constructors",
        "objects": [mlp(2, [], 2)],
        "model": {"make": "ppvae.models.latent_variable.Bernoulli", "with": {"network": {"object": 0}, "latent_dim": 2}},
        "guide": {"make": "ppvae.guides.amortized.DiagonalNormal", "with": {"encoder": encoder, "latent_dim": 2}},
    }


def test_a_guide_that_runs_the_model_refers_to_it():
    model, guide = shelf.ladder()
    written = record(model, guide)
    assert list(written) == ["how", "model", "guide"]
    assert written["guide"]["with"]["model"] == {"object": "model"}


def test_the_record_of_a_pair_that_shares_nothing_is_that_of_older_folders():
    """No table: what is written and read is what it was before there were shared objects."""
    model, guide = models.Bernoulli(nn.MLP(2, [3], D), 2), guide_of(2)
    written = record(model, guide)
    assert list(written) == ["how", "model", "guide"]
    assert written["model"] == build.to_json(model)
    one, other = build.pair_from_json(written)
    assert (repr(one), repr(other)) == (repr(model), repr(guide))


def test_one_network_in_two_layers_of_a_model_is_one_again():
    layer = nn.MLP(2, [3], 4)
    model = models.Hierarchical([layer, layer], (2, 2, 2), nn.MLP(2, [], D), likelihoods.Bernoulli())
    again, _ = build.pair_from_json(record(model, guide_of(2)))
    assert again.layers[0] is again.layers[1]
    assert len(list(again.parameters())) == len(list(model.parameters()))


def test_what_was_set_after_the_guide_was_made_is_recorded_as_it_is():
    model = smooth()
    guide = guides.SemiAmortized(guide_of(2), steps=2)
    guide.model, guide.steps, guide.lr = model, 3, 0.7
    again, other = build.pair_from_json(record(model, guide))
    assert other.model is again
    assert (other.steps, other.lr, other.clip_norm) == (3, 0.7, 5.0)


def test_pseudo_inputs_are_recorded_by_shape():
    model, guide = vamp()
    assert record(model, guide)["model"]["with"]["prior"]["with"]["pseudo_inputs"] == {"zeros": [1200, D]}


OTHERS = {
    "a prior of another guide": (lambda: (with_prior(priors.VampPrior(guide_of(3), torch.rand(2, D))), guide_of(3)), "neither the run's"),
    "a guide of another model": (lambda: (shelf.ladder()[0], shelf.ladder()[1]), "neither the run's"),
    "a plain function": (
        lambda: (lambda x: None, guides.SemiAmortized(guide_of(2), lambda x: None)),
        "a value of type function cannot be made again",
    ),
}


@pytest.mark.parametrize(("make", "why"), OTHERS.values(), ids=OTHERS)
def test_a_pair_whose_parts_no_checkpoint_has_is_handed_in(make, why):
    said = record(*make())
    assert said["how"] == "python"
    assert why in said["why"]


def test_a_family_that_a_guide_made_itself_is_not_made_twice():
    """The couplings live in the guide; a prior that uses them through another guide would get others from a record."""
    guide = guides.flow.Flow(nn.MLP(D, [], 7), 3, 1, hidden=(4,))
    prior = priors.VampPrior(guides.Amortized(guide.encoder, guide.family), torch.rand(2, D))
    assert record(with_prior(prior), guide) == {"how": "python", "why": "model and guide share parameters"}


# Pyro's transforms


def moved(module):
    """The module with parameters that no constructor would give."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


TRANSFORMS = {
    "AffineAutoregressive": lambda: T.AffineAutoregressive(AutoRegressiveNN(4, [6, 5]), log_scale_min_clip=-2.0, stable=True),
    "skip connections": lambda: T.AffineAutoregressive(AutoRegressiveNN(4, [6], skip_connections=True, nonlinearity=torch.nn.ELU(0.7))),
    "AffineCoupling": lambda: T.AffineCoupling(1, DenseNN(1, [5], [3, 3], torch.nn.Tanh()), log_scale_max_clip=0.5),
    "BatchNorm": lambda: T.BatchNorm(4, momentum=0.3).eval(),
    "BlockAutoregressive": lambda: T.BlockAutoregressive(4, [3, 2], activation="ELU", residual="gated"),
    "ComposeTransformModule": lambda: T.iterated(2, T.affine_coupling, 4, hidden_dims=[3]),
    "ELUTransform": T.ELUTransform,
    "Householder": lambda: T.Householder(4, 2),
    "LeakyReLUTransform": T.LeakyReLUTransform,
    "MatrixExponential": lambda: T.MatrixExponential(4, iterations=5, bound=0.5),
    "NeuralAutoregressive": lambda: T.neural_autoregressive(4, [6], activation="LeakyReLU", width=3),
    "Permute": lambda: T.Permute(torch.tensor([2, 0, 3, 1])),
    "Planar": lambda: T.Planar(4),
    "Polynomial": lambda: T.polynomial(4, [6]),
    "Radial": lambda: T.Radial(4),
    "Spline": lambda: T.Spline(4, count_bins=3, bound=2.0, order="quadratic"),
    "SplineAutoregressive": lambda: T.spline_autoregressive(4, [6], count_bins=3, bound=2.0),
    "SplineCoupling": lambda: T.spline_coupling(4, 1, [6], count_bins=3, bound=2.0),
    "Sylvester": lambda: T.Sylvester(4, 3),
    "inverse": lambda: T.AffineCoupling(2, DenseNN(2, [5], [2, 2])).inv,
}


def modules_in(transform):
    inner = getattr(transform, "_inv", None) if type(transform).__name__ == "_InverseTransform" else transform
    return inner if isinstance(inner, torch.nn.Module) else torch.nn.Module()


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_with_its_weights_comes_back_the_same_map(make):
    transform, x = make(), torch.randn(5, 4)
    moved(modules_in(transform))
    again = build.from_json(json.loads(json.dumps(build.to_json(transform))))
    modules_in(again).load_state_dict(modules_in(transform).state_dict())
    modules_in(again).train(modules_in(transform).training)
    y, other = transform(x), again(x)
    assert torch.equal(y, other)
    assert torch.equal(transform.log_abs_det_jacobian(x, y), again.log_abs_det_jacobian(x, other))
    assert (y - x).abs().max() > 1e-3  # no map is the identity here


def test_every_transform_that_a_record_may_name_is_tried():
    tried = {type(make()).__name__ for make in TRANSFORMS.values()}
    networks = {"DenseNN", "AutoRegressiveNN"}
    assert {name.rpartition(".")[2] for name in build.PYRO} - networks == tried


@pytest.mark.parametrize(
    "transform", [T.TanhTransform(), T.AffineTransform(0.0, 2.0), T.conditional_spline(3, 2)], ids=lambda t: type(t).__name__
)
def test_a_flow_of_other_transforms_is_handed_in(transform):
    assert record(with_prior(priors.Flow(3, [transform])), guide_of(3)) == {
        "how": "python",
        "why": f"a value of type {type(transform).__name__} cannot be made again from a record",
    }


# Records that nobody wrote


def hostile(objects, model, guide=None):
    return {"how": "constructors", "objects": objects, "model": model, "guide": guide}


ONLY_OURS = "only classes of ppvae and torch.nn are made from a record"
HOSTILE = {
    "an object that is not there": (hostile([], {"object": 0}), "refers to object '0', which it does not have"),
    "an object before the first": (hostile([1], {"object": -1}), "refers to object '-1', which it does not have"),
    "an object of itself": (hostile([{"object": 0}], {"object": 0}), "the record's object 0 is a part of itself"),
    "two objects of each other": (hostile([{"object": 1}, [{"object": 0}]], {"object": 1}), "the record's object 1 is a part of itself"),
    "a model of itself": (hostile([], {"object": "model"}), "the record's object 'model' is a part of itself"),
    "a model of its guide and that of it": (hostile([], {"object": "guide"}, {"object": "model"}), "'model' is a part of itself"),
    "an object by truth": (hostile([1, 2], {"object": True}), "refers to object 'True', which it does not have"),
    "an object by a list": (hostile([1], {"object": [0]}), "refers to object '[0]', which it does not have"),
    "an object by a name": (hostile([1], {"object": "x" * 5000}), "refers to object 'xxxxxxxxxxxxxxxxxxxx', which it does not have"),
    "a long way down": (hostile([{"object": i + 1} for i in range(9999)], {"object": 0}), "names parts that cannot be made"),
    "objects that are no list": (hostile({"0": 1}, None), "the record's objects are no list"),
    "a foreign class among the objects": (hostile([{"make": "os.system", "with": {"command": "true"}}], {"object": 0}), ONLY_OURS),
    "another class of Pyro's": (hostile([], {"make": "pyro.infer.SVI", "with": {}}), ONLY_OURS),
    "another transform": (hostile([], {"make": "torch.distributions.transforms.AffineTransform", "with": {}}), ONLY_OURS),
    "what ours imports": (hostile([], {"make": "ppvae.run.Path", "with": {}}), ONLY_OURS),
    "zeros of terabytes": (hostile([], {"zeros": [2**21, 2**21]}), "names parts that cannot be made"),
    "zeros of no size": (hostile([], {"zeros": ["many"]}), "names parts that cannot be made"),
    "a transform of nothing": (
        hostile([], {"make": "torch.distributions.transforms._InverseTransform", "with": {"transform": 3}}),
        "names parts that cannot be made",
    ),
    "a coupling the wrong way": (
        hostile(
            [], {"make": "pyro.distributions.transforms.affine_coupling.AffineCoupling", "with": {"split_dim": 1, "hypernet": 1, "dim": 3}}
        ),
        "names parts that cannot be made",
    ),
}


@pytest.mark.parametrize(("written", "text"), HOSTILE.values(), ids=HOSTILE)
def test_a_record_of_objects_that_nobody_wrote_is_refused(written, text, runs, tmp_path):
    folder = runs[1]["ladder"][0]
    for path in folder.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    fingerprint = json.loads((folder / "program.json").read_text())["fingerprint"]
    (tmp_path / "program.json").write_text(json.dumps(written | {"fingerprint": fingerprint}))
    unsealed(tmp_path)
    with pytest.raises(RunError) as raised:
        ppvae.load(tmp_path)
    assert text in raised.value.problem
    assert "\n" not in raised.value.problem and len(raised.value.problem) < 400
