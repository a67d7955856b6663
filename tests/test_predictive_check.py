"""Posterior predictive checks, each datum among the model's own, and k-hat by class."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ground_truth import linear_gaussian
from ppvae.analysis import Provenance, plots
from ppvae.analysis.log_likelihood import LogLikelihood
from ppvae.analysis.predictive_check import k_hat_by_label, predictive_check
from ppvae.errors import ArgumentError, DataError, ProgramError, ShapeError

QUICK = {"num_draws": 100, "num_particles": 30, "num_simulated": 200}


def poisson(rate=3.0):
    """z ~ N(0, 1), x_d ~ Poisson(rate) whatever z: replications do not use the data, so p-values are exactly uniform under the model."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(x.new_full((4,), rate)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))

    return model, guide


def test_statistics_of_data_that_the_model_made_are_unremarkable():
    model, guide = poisson()
    found = predictive_check(model, guide, torch.poisson(torch.full((300, 4), 3.0)), **QUICK)
    assert found.names == ("mean", "sd", "share of zeros")
    assert (found.p_value > 0.01).all()


def test_replications_have_the_moments_of_the_model():
    model, guide = poisson()
    found = predictive_check(model, guide, torch.zeros(300, 4), **QUICK)
    # 100 replications of 1,200 Poisson(3) counts: mean 3, sd sqrt(3), share of zeros e^-3, within 5 standard errors
    exact, error = torch.tensor([3.0, math.exp(-3)]), torch.tensor([math.sqrt(3 / 120_000), math.sqrt(0.05 / 120_000)])
    assert ((found.replicated.mean(0)[[0, 2]] - exact).abs() < 5 * error).all()
    assert found.replicated[:, 0].std() == pytest.approx(math.sqrt(3 / 1200), rel=0.4)  # and they differ: 5 x 1 / sqrt(2 x 100)


def test_data_with_too_many_zeros_are_told_by_the_share_of_zeros():
    model, guide = poisson()
    x = torch.poisson(torch.full((300, 4), 3.0))
    x[:60] = 0.0
    found = predictive_check(model, guide, x, **QUICK)
    p = dict(zip(found.names, found.p_value.tolist(), strict=True))
    assert p["share of zeros"] <= 2 / 101  # no replication has as many
    assert found.observed[2] == (x == 0).double().mean()


def test_p_value_is_two_sided():
    model, guide = poisson()
    for rate in (2.0, 4.0):
        x = torch.poisson(torch.full((300, 4), rate))
        assert predictive_check(model, guide, x, statistics={"mean": lambda x: x.mean()}, **QUICK).p_value <= 2 / 101


def test_replications_use_the_latents_of_the_data():
    # x_n ~ N(z_n, 0.1) with z ~ N(x, 0.1): replications resemble their own data; prior draws N(0, 1) would have mean 0.
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1))

    x = torch.linspace(2.0, 4.0, 600)  # two blocks of rows
    kept = []
    predictive_check(model, guide, x, statistics={"kept": lambda batch: kept.append(batch.clone()) or 0.0}, **QUICK)
    replicated = torch.stack(kept[1:])
    assert replicated.shape == (100, 600)
    error = math.sqrt(0.02 / 100)
    assert (replicated.mean(0) - x).abs().max() < 5 * error
    assert replicated.std(0).mean() == pytest.approx(math.sqrt(0.02), rel=0.02)  # 5 x 1 / sqrt(2 x 100 x 600)


def test_ties_of_a_statistic_are_broken_by_chance():
    model, guide = poisson()
    x = torch.poisson(torch.full((5, 4), 3.0))
    found = [predictive_check(model, guide, x, statistics={"one": lambda x: 1.0}, seed=seed, **QUICK).p_value.item() for seed in range(40)]
    assert 0.2 < torch.tensor(found).mean() < 0.8  # uniform: mean 1/2, standard error 0.046
    assert min(found) < 0.2 and max(found) > 0.8


def test_misfit_of_data_that_the_model_made_is_uniform():
    model, guide, x = linear_gaussian(num_data=500)
    found = predictive_check(model, guide, x, num_draws=2, num_particles=10, num_simulated=2000)
    share = (found.misfit[:, None] <= torch.tensor([0.1, 0.5, 0.9])).double().mean(0)
    exact = torch.tensor([0.1, 0.5, 0.9])
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) * (1 / 500 + 1 / 2000)).sqrt()).all()


def test_log_px_is_the_evidence_where_the_guide_is_the_posterior():
    model, guide, x = linear_gaussian(num_data=5)
    found = predictive_check(model, guide, x, **QUICK)
    assert found.log_px.tolist() == pytest.approx(model.log_evidence(x).tolist(), abs=1e-9)
    below = (found.simulated_log_px[None] <= found.log_px[:, None]).sum(1)
    assert found.misfit.tolist() == pytest.approx(((below + 1) / 201).tolist())


def test_outlier_is_listed_by_its_row():
    model, guide, x = linear_gaussian(num_data=50)
    x[17] += 20.0
    x[3] += 10.0
    found = predictive_check(model, guide, x, **QUICK)
    assert found.worst(2) == [17, 3] and found.misfits[:2] == [17, 3]
    assert found.misfit[17] == pytest.approx(1 / 201)
    assert "fit worse than all but 1 % of the model's own (rows 17, 3" in str(found)


def test_observed_tensor_of_a_batch_is_replicated_and_covariates_stay():
    def model(batch):
        with pyro.plate("data", len(batch["c"])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(batch["c"] * z, 1.0), obs=batch["y"])

    def guide(batch):
        precision = 1 + batch["c"].square()
        with pyro.plate("data", len(batch["c"])):
            pyro.sample("z", dist.Normal(batch["c"] * batch["y"] / precision, precision.rsqrt()))

    batch = {"c": torch.tensor([1.0, 2.0, 3.0]), "y": torch.tensor([0.1, 0.2, 0.3])}
    seen = []
    predictive_check(model, guide, batch, statistics={"y": lambda b: seen.append((b["c"].tolist(), b["y"].tolist())) or 0.0}, **QUICK)
    assert all(c == [1.0, 2.0, 3.0] for c, _ in seen)
    assert len({tuple(y) for _, y in seen}) == 101
    assert predictive_check(model, guide, batch, **QUICK).names == ("mean", "sd")  # Lebesgue, and no zeros


def test_shape_of_the_batch_is_kept():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(9), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x.reshape(-1, 9))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.reshape(-1, 9), 1.0).to_event(1))

    shapes = set()
    x = torch.zeros(4, 1, 3, 3)
    predictive_check(model, guide, x, statistics={"shape": lambda b: shapes.add(tuple(b.shape)) or 0.0}, **QUICK)
    assert shapes == {(4, 1, 3, 3)}


def test_seed_rules_the_check_and_the_callers_generator_is_left_alone():
    model, guide, x = linear_gaussian(num_data=5)
    before = torch.get_rng_state()
    one, again, other = (predictive_check(model, guide, x, seed=seed, **QUICK) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.replicated.equal(again.replicated) and one.p_value.equal(again.p_value)
    assert not one.replicated.equal(other.replicated)


def test_statistic_that_is_no_number_is_refused():
    model, guide, x = linear_gaussian(num_data=5)
    with pytest.raises(ArgumentError, match=r"'rows' gave a tensor of shape \(5,\)"):
        predictive_check(model, guide, x, statistics={"rows": lambda x: x.mean(1)}, **QUICK)
    with pytest.raises(ArgumentError, match="'ratio' gave nan"):
        predictive_check(model, guide, x, statistics={"ratio": lambda x: math.nan}, **QUICK)


def test_data_outside_the_support_are_refused():
    model, guide = poisson()
    with pytest.raises(DataError, match="-1"):
        predictive_check(model, guide, torch.tensor([[1.0, 2.0, 3.0, -1.0]]), **QUICK)


def test_model_without_latents_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ProgramError, match="no latent site"):
        predictive_check(model, lambda x: None, torch.zeros(3), **QUICK)


def test_check_is_written_as_json():
    model, guide, x = linear_gaussian(num_data=5)
    record = json.loads(json.dumps(predictive_check(model, guide, x, **QUICK).as_dict()))
    assert record["names"] == ["mean", "sd"] and len(record["misfit"]) == 5
    assert isinstance(record["misfits"], list)


# k-hat by class.


def log_likelihood_of(k_hat, num_particles=10_000):
    """A result with these k-hats; its threshold is 0.7."""
    n = len(k_hat)
    zeros = torch.zeros(n)
    fields = {
        "pointwise": zeros, "pointwise_se": zeros, "ess": zeros + 1, "k_hat": torch.tensor(k_hat),
        "num_particles": torch.full((n,), num_particles), "trusted": zeros.bool(), "num_evaluations": zeros.long(),
        "used": {}, "verdict": None, "proposal": "guide", "weights": "plain", "source": Provenance({"name": "tensors"}, "counting", 0),
    }  # fmt: skip
    return LogLikelihood(**fields)


K_HAT, LABELS = [0.1, 0.9, 0.8, 0.2, 0.75, -math.inf, math.nan], [0, 1, 1, 0, 0, 1, 2]


def test_table_of_k_hat_counts_the_data_above_the_threshold():
    found = k_hat_by_label(log_likelihood_of(K_HAT), torch.tensor(LABELS))
    assert found.labels == (0, 1, 2) and found.count.tolist() == [3, 3, 1]
    assert found.share.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert found.share_se[0] == pytest.approx(math.sqrt(2 / 9 / 3))
    assert found.worst == ((4, 3, 0), (1, 2, 5), (6,))
    assert found.rows()[1] == {
        "label": 1,
        "n": 3,
        "share": pytest.approx(2 / 3),
        "share_se": pytest.approx(0.2722, abs=1e-4),
        "worst": [1, 2, 5],
    }
    assert str(found) == "k-hat above 0.70 at 57.1 % of 7 data, most at label 2: 100.0 ± 0.0 % of 1"


def test_labels_may_be_words_and_worst_rows_few():
    found = k_hat_by_label(log_likelihood_of(K_HAT), ["cat", "dog", "dog", "cat", "cat", "dog", "cat"], num_worst=1)
    assert found.labels == ("cat", "dog") and found.worst == ((6,), (1,))
    assert json.loads(json.dumps(found.as_dict()))["labels"] == ["cat", "dog"]


def test_labels_of_other_data_are_refused():
    with pytest.raises(ShapeError, match=r"one a datum, \(7,\), got 3"):
        k_hat_by_label(log_likelihood_of(K_HAT), [0, 1, 2])


def test_figure_of_k_hat_has_a_bar_for_each_class():
    (axes,) = plots.k_hat_by_label(k_hat_by_label(log_likelihood_of(K_HAT), LABELS)).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 / 3, 200 / 3, 100.0])
    assert [text.get_text() for text in axes.texts] == ["n = 3", "n = 3", "n = 1"]


@pytest.mark.parametrize(("event", "image_shape"), [((1, 3, 3), None), ((3, 3), None), ((9,), (3, 3))], ids=["channel", "image", "flat"])
def test_figure_of_the_worst_data_shows_the_rows_with_their_values(event, image_shape):
    x = torch.rand(6, *event)
    figure = plots.worst_data(x, [4, 1, 0, 5, 2, 3], torch.arange(6) - 10.0, image_shape=image_shape)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown[:2]] == ["4\n−6.00", "1\n−9.00"]
    assert shown[0].images[0].get_array().tolist() == x[4].reshape(3, 3).tolist()


def test_figure_of_worst_data_that_are_no_images_draws_lines():
    x = torch.rand(6, 12)
    (axes,) = plots.worst_data(x, [4], torch.zeros(6), columns=1).axes
    assert list(axes.lines[0].get_ydata()) == x[4].tolist()


def test_figure_of_worst_data_refuses_what_it_cannot_draw():
    with pytest.raises(DataError, match="images of 2 x 5 need 10"):
        plots.worst_data(torch.rand(6, 12), [4], torch.zeros(6), image_shape=(2, 5))
    with pytest.raises(ArgumentError, match="no row"):
        plots.worst_data(torch.rand(6, 12), [], torch.zeros(6))
