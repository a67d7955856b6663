"""log p(x) and whether to believe it: the verdict's recall and false alarms, the repair, tolerances, treated weights, honest counting."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ground_truth import MeanField, correlated_posterior, exact_posterior_of, linear_gaussian
from pairs import mixture, unknown_mean
from ppvae import analysis, guides, noise
from ppvae.analysis import tolerance
from ppvae.analysis.proposals import Proposal, refined_proposal
from ppvae.analysis.verdict import Court, exceeds, trusted
from ppvae.analysis.weighed import Weighed, weighed
from ppvae.errors import ArgumentError, FamilyError, RelaxedMeasureWarning, UnreliableWarning
from ppvae.pair import Pair

SCALE = 0.15


def folded(x):
    """z ~ N(0, 1), x | z ~ N(z^2, 0.15^2): two modes at plus and minus the root, each of half the mass."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z**2, SCALE).to_event(1), obs=x)


def one_mode(x):
    """Sits on the positive root: it leaves log 2 out, and nothing in its weights tells."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.sqrt(), SCALE / (2 * x.sqrt()) * 1.3).to_event(1))


def broad(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), x.sqrt() + 0.3).to_event(1))


ROOTS = torch.linspace(1.0, 2.5, 40, dtype=torch.float64)[:, None]


def known(n, value, se=0.01, k_hat=0.3):
    full = torch.full((n,), value)
    return Weighed(full, torch.full((n,), se), torch.full((n,), 300.0), torch.full((n,), k_hat), torch.full((n,), 1000))


def test_a_missed_mode_is_found_by_the_second_proposal_and_repaired():
    truth = analysis.exact_log_likelihood(folded, ROOTS**2).pointwise
    found = analysis.log_likelihood(folded, broad, ROOTS**2, proposal=one_mode, num_particles=500)
    flagged = found.verdict.disagrees  # it is log 2 = 0.69 low everywhere
    assert flagged.double().mean() >= 0.75  # 300 draws of so broad a guide make a bound that is itself 0.3 off
    assert torch.equal(found.verdict.repaired, flagged) and found.trusted[flagged].all()
    assert ((found.pointwise - truth).abs() < 5 * found.pointwise_se + 0.02)[flagged].double().mean() > 0.95


def test_k_hat_and_the_standard_error_do_not_see_it():
    truth = analysis.exact_log_likelihood(folded, ROOTS**2).pointwise
    found = analysis.log_likelihood(folded, broad, ROOTS**2, proposal=one_mode, num_particles=500, second=None)
    assert (truth - found.pointwise - math.log(2)).abs().max() < 0.1
    assert (found.k_hat < 0.7).double().mean() > 0.9 and (found.pointwise_se < 0.1).all()


def test_without_a_second_proposal_nothing_is_trusted():
    model, guide, x = linear_gaussian()
    found = analysis.log_likelihood(model, guide, x, num_particles=50, second=None)
    assert not found.trusted.any()
    assert "not held against a second proposal: do not trust it" in str(found)


def test_a_guides_own_bound_is_flagged_and_left_as_it_is():
    """A guide three posterior sds off: its bound at K = 30 is nats low."""
    model, x, _ = correlated_posterior(0.6)
    guide = MeanField(model, offset=1.5)
    found = analysis.log_likelihood(model, guide, x, num_particles=30)
    low = model.log_evidence(x) - found.pointwise > 0.5
    assert low.double().mean() > 0.5
    assert not found.trusted[low].any() and not found.verdict.repaired.any()
    again = analysis.log_likelihood(model, guide, x, num_particles=30, second=None)
    assert torch.equal(found.pointwise, again.pointwise)


def test_good_estimates_are_trusted():
    """False alarms: the posterior itself, slightly too wide, on 500 data."""
    model, guide, x = linear_gaussian(num_data=500)
    found = analysis.log_likelihood(model, exact_posterior_of(model), x, num_particles=100)
    assert found.trusted.all()
    wide = MeanField(model, inflation=1.3)
    assert analysis.log_likelihood(model, wide, x, num_particles=500).trusted.double().mean() > 0.98


def test_a_disagreement_counts_only_when_it_is_repeated():
    """A second proposal whose bound is high once by luck: with new draws it is not, and nothing is flagged."""
    model, guide, x = linear_gaussian(num_data=40)
    court = Court(model, x, Proposal(guide, "guide", particles=50), seed=0)
    truth = model.log_evidence(x)
    court.bound.pointwise[:20] += 2.0  # the lucky draws
    first = known(40, 0.0)
    first.pointwise[:] = truth
    assert exceeds(first, court.bound).sum() == 20
    assert not court.judge(first).any()


def test_the_second_look_has_draws_of_its_own():
    """The same two thousand draws would repeat the first look's bound; new ones differ from it on every datum."""
    model, x, _ = correlated_posterior(0.6, num_data=70)
    court = Court(model, x, Proposal(MeanField(model, inflation=1.5), "guide", particles=64), seed=0)
    before = court.bound.pointwise.clone()
    first = known(70, 0.0)
    first.pointwise[:] = before - 1.0
    court.judge(first)
    assert (court.bound.pointwise != before).all()
    assert abs(torch.corrcoef(torch.stack([court.bound.pointwise - model.log_evidence(x), before - model.log_evidence(x)]))[0, 1]) < 0.48


@pytest.mark.parametrize(
    ("first", "second", "believed"), [(0.0, 0.2, True), (0.0, 0.3, False), (0.0, -5.0, True)], ids=["within", "above", "below"]
)
def test_only_a_higher_bound_speaks_against_an_estimate(first, second, believed):
    flag = torch.tensor([second > 0.25])
    verdict = analysis.Verdict("guide", torch.full((1,), second), torch.full((1,), 0.01), torch.tensor([True]), flag, flag, flag)
    assert trusted(known(1, first), verdict).item() is believed


def test_a_heavy_tail_is_forgiven_where_a_sound_second_proposal_agrees():
    """Agreement of two heavy tails proves nothing, nor does one within a wide error of a bound that says little."""
    none = torch.zeros(4, dtype=torch.bool)
    sound = torch.tensor([True, True, False, True])
    verdict = analysis.Verdict("guide", torch.tensor([0.1, -3.0, 0.1, -0.9]), torch.full((4,), 0.5), sound, none, none, none)
    assert trusted(known(4, 0.0, k_hat=0.9), verdict).tolist() == [True, False, False, False]


def test_a_bound_one_nat_above_speaks_however_noisy_it_is():
    first, bound = known(2, 0.0), known(2, 0.0, se=0.8)
    bound.pointwise[:] = torch.tensor([1.1, 0.9])
    assert exceeds(first, bound).tolist() == [True, False]


def test_two_heavy_tails_that_agree_are_not_trusted():
    """Thirty latents of a 40-dimensional linear Gaussian model, mean field: by K = 100 both bounds lie more than a nat low."""
    model, _, x = linear_gaussian(num_data=64, data_dim=40, latent_dim=30, scale=0.3)
    found = analysis.log_likelihood(model, MeanField(model), x, proposal=MeanField(model, inflation=1.1), num_particles=100)
    low = model.log_evidence(x) - found.pointwise > 0.5
    assert low.double().mean() > 0.5
    assert (found.trusted & low).double().mean() < 0.05


@pytest.mark.parametrize("proposal", ["refined", "defensive"])
def test_refined_proposals_reach_the_evidence(proposal):
    model, x, _ = correlated_posterior(0.8)
    found = analysis.log_likelihood(model, MeanField(model, offset=1.0), x, proposal=proposal, num_particles=500)
    assert ((found.pointwise - model.log_evidence(x)).abs() < 5 * found.pointwise_se + 1e-6).all()
    assert (found.ess > 200).all() and found.trusted.all()


def test_a_tolerance_is_kept():
    model, x, _ = correlated_posterior(0.8, num_data=200)
    found = analysis.log_likelihood(model, MeanField(model, offset=1.0), x, tolerance=0.02)
    error = found.pointwise - model.log_evidence(x)
    assert error.square().mean().sqrt() < 1.2 * 0.02  # 200 data: the root mean square's own error is 5 %
    assert (found.pointwise_se < 1.5 * 0.02).all()


def test_the_pilots_draws_are_not_the_answers():
    """The answer for K particles is that of its own seed: what the pilot drew does not enter it."""
    model, x, _ = correlated_posterior(0.8)
    guide = MeanField(model, offset=1.0)
    first = analysis.log_likelihood(model, guide, x, tolerance=0.05)
    proposal = refined_proposal(model, guide, x, 0)
    pilot = weighed(Pair(model, proposal.program, x, 0), x, tolerance.PILOT_PARTICLES, noise.derived_seed(0, "pilot"))
    correlation = torch.corrcoef(torch.stack([first.pointwise - model.log_evidence(x), pilot.pointwise - model.log_evidence(x)]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(len(x))  # four standard errors of a correlation of 0; reused draws would give about 0.7


def test_the_run_that_chose_how_finely_to_anneal_is_not_the_answer(monkeypatch):
    """Runs that tell how many chains they had: the first is of half as many, and its error, small from 16 chains on, chooses; the answer is another."""
    runs = []

    def run(pair, local, x, rows, settings, seed, pair_seed):
        runs.append((settings.num_chains, seed))
        one = torch.ones(len(rows)).double()
        error = one * (0.01 if settings.num_chains >= 16 else 1.0)
        return Weighed(one * settings.num_chains, error, one, one, torch.full((len(rows),), settings.num_chains))

    monkeypatch.setattr(tolerance, "annealed_rows", run)
    answer, _, cost = tolerance._annealed(None, None, None, torch.arange(3), tolerance.annealing_settings(0.05, 50), 0.05, 0)
    assert [chains for chains, _ in runs] == [
        4,
        8,
        16,
        32,
    ]  # of 8, 16 and 32 chains the halves; then the answer, four times finer than the first
    assert answer.pointwise.tolist() == [32.0] * 3
    assert len({seed for _, seed in runs}) == 4  # draws of its own
    steps = [1 + (temperatures - 1) * tolerance.LEAPFROG for temperatures in (80, 160, 320)]
    assert cost.tolist() == [4 * steps[0] + 8 * steps[1] + 16 * steps[2] + 32 * steps[2]] * 3


def test_data_that_are_hard_to_weigh_are_annealed():
    """A banana: z ~ N(0, I), x ~ N(z_2 + z_1^2, 0.2^2); no Normal proposes well. Truth by quadrature."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1:] + z[..., :1] ** 2, 0.2).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 0.7).to_event(1))

    x = torch.linspace(0.0, 1.0, 2)[:, None]
    found = analysis.log_likelihood(model, guide, x, tolerance=0.1)
    assert found.used["annealed"].any()
    error = (found.pointwise - analysis.exact_log_likelihood(model, x).pointwise).abs()
    assert (error[found.trusted] < 0.3).all()  # three times the tolerance
    assert found.trusted.double().mean() >= 0.5  # an error of eight chains is not believed on its own word


@pytest.mark.parametrize("weights", ["truncated", "smoothed"])
def test_treated_weights_are_named(weights):
    model, x, _ = correlated_posterior(0.6)
    guide = MeanField(model, inflation=0.7)
    plain = analysis.log_likelihood(model, guide, x, num_particles=400, second=None)
    found = analysis.log_likelihood(model, guide, x, num_particles=400, weights=weights, second=None)
    assert found.weights == weights and f"{weights} weights" in str(found)
    assert (found.pointwise <= plain.pointwise + 1e-9).double().mean() > 0.9 if weights == "truncated" else True
    assert not torch.equal(found.pointwise, plain.pointwise)


@pytest.mark.parametrize("arguments", [{"num_particles": 300}, {"num_particles": 300, "proposal": "refined"}, {"tolerance": 0.05}], ids=str)
def test_evaluations_are_counted_as_they_were(arguments):
    """Rows that went through the decoder, of 64 data; the few that a pair is looked at with are not counted."""
    rows = 0

    def model(x):
        nonlocal rows
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rows += z.shape[:-1].numel() if z.dim() > 1 else 1
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    found = analysis.log_likelihood(model, guide, torch.randn(64, 2), **arguments)
    assert rows == pytest.approx(found.num_evaluations.sum().item(), rel=0.01)


def test_discrete_latents_are_held_against_the_prior():
    model, guide = mixture("nobody")
    x = torch.randn(30, 1)
    found = analysis.log_likelihood(model, guide, x, num_particles=2000)
    assert found.verdict.proposal == "prior"
    assert ((found.pointwise - analysis.exact_log_likelihood(model, x).pointwise).abs() < 5 * found.pointwise_se + 1e-9).all()
    with pytest.raises(FamilyError, match="the latent site 'c' is discrete"):
        analysis.log_likelihood(model, guide, x, proposal="refined")


def around_a_mean(scale):
    """mu ~ N(0, 5) global, z ~ N(mu, 1), x ~ N(z, 1); q(z | x) = N(x, scale)."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mu * torch.ones(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("proposal", ["guide", "refined"])
def test_both_proposals_are_conditional_on_one_draw_of_a_global_site(proposal):
    """x ~ N(z, 1), z ~ N(mu, 1): given mu the evidence is N(mu, 2); two draws of mu would disagree."""

    model, guide = around_a_mean(1.0)
    found = analysis.log_likelihood(model, guide, torch.randn(20, 1), num_particles=4000, proposal=proposal)
    assert found.source.conditioned_on == ("mu",)
    assert ((found.pointwise - found.verdict.bound).abs() < 5 * (found.pointwise_se + found.verdict.bound_se) + 0.02).all()


def test_a_proposal_made_at_another_draw_of_a_global_site_is_held_at_its_own():
    """A refinement of another seed is conditional on another mu: the guide's bound is taken at that mu, and the two agree."""

    model, guide = around_a_mean(1.5)
    x = torch.randn(20, 1)
    proposal = analysis.refine(model, guide, x, family="full_rank", seed=1, num_particles=1).guide
    found = analysis.log_likelihood(model, guide, x, proposal=proposal, num_particles=500, seed=0)
    assert not found.verdict.disagrees.any()
    gaps = analysis.inference_gaps(model, guide, x, seed=1, num_particles=500)
    assert (gaps.inference > -0.2).all()  # four times the tolerance: at one draw of mu no gap is negative


def test_a_latent_that_underflows_is_no_place_to_start():
    """r ~ Gamma(0.1, 1) in float32: scattered over log r, some points underflow to r = 0, where its density is +inf."""

    def model(y):
        with pyro.plate("data", len(y), dim=-1):
            r = pyro.sample("r", dist.Gamma(torch.tensor(0.1, dtype=torch.float32), torch.tensor(1.0, dtype=torch.float32)))
            pyro.sample("y", dist.Poisson(r), obs=y)

    def guide(y):
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("r", dist.Gamma(y + 0.2, torch.full_like(y, 2.0)))

    y = torch.arange(1.0, 5.0, dtype=torch.float32)
    found = analysis.log_likelihood(model, guide, y, num_particles=500)
    evidence = dist.GammaPoisson(torch.tensor(0.1), torch.tensor(1.0)).log_prob(y.double())
    assert ((found.pointwise - evidence).abs() < 5 * found.pointwise_se + 1e-3).all() and found.verdict is not None


def test_a_second_proposal_that_diverges_leaves_the_number_standing_and_untrusted():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def broken(x):
        with pyro.plate("data", len(x), dim=-1):
            scale = torch.where(x > 0, 1.0, torch.nan)
            pyro.sample("z", dist.Normal(torch.zeros_like(x), scale, validate_args=False).to_event(1))

    x = torch.tensor([[1.0], [0.5], [2.0], [-1.0]])
    with pytest.warns(UnreliableWarning, match="not held against"):
        found = analysis.log_likelihood(model, one_normal, x, num_particles=50, second=broken)
    assert found.verdict is None and not found.trusted.any()


def one_normal(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))


def test_what_is_mended_may_repeat_its_batch():
    """A guide whose network refuses particles, latents in a plate inside the datum: the pairs lay their values out differently."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("inner", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z**2, SCALE), obs=x.T)

    def guide(x):
        assert x.dim() == 2 and x.is_contiguous()
        loc = x.view(len(x), -1).sqrt().T * 0.0
        with pyro.plate("data", len(x), dim=-1), pyro.plate("inner", 2, dim=-2):
            pyro.sample("z", dist.Normal(loc, 1.2).expand([2, len(x)]))

    def narrow(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("inner", 2, dim=-2):
            pyro.sample("z", dist.Normal(x.T.sqrt(), 0.1))

    x = torch.full((6, 2), 2.0)
    found = analysis.log_likelihood(model, guide, x, proposal=narrow, num_particles=300)
    truth = 2 * analysis.exact_log_likelihood(folded, x[:, :1]).pointwise
    mended = found.verdict.repaired & ~found.verdict.unresolved
    assert mended.any()  # each datum has four modes, and the proposal one of them: 1.39 low before
    assert (truth - found.pointwise)[mended].mean() < 1.0


def test_a_model_with_global_latents_alone_is_measured():
    found = analysis.log_likelihood(*unknown_mean(), torch.randn(10, 1), num_particles=3)
    assert found.trusted.all()


def test_an_answer_to_a_tolerance_says_that_its_measure_is_relaxed():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z, validate_args=False).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.9).to_event(1))

    with pytest.warns(RelaxedMeasureWarning):
        found = analysis.log_likelihood(model, guide, torch.rand(5, 2), tolerance=0.05)
    assert found.source.measure.startswith("relaxed")


def test_a_refined_guide_is_prepared_once_and_held_against_another_fit():
    model, x, _ = correlated_posterior(0.8, num_data=80)
    fits = []

    class Counted(guides.Refined):
        def prepared(self, model, x):
            fits.append(len(x))
            return super().prepared(model, x)

    found = analysis.log_likelihood(model, Counted(MeanField(model, offset=1.0), steps=10), x, num_particles=200)
    assert set(fits) == {80}  # never again for some rows alone
    assert ((found.pointwise - model.log_evidence(x)).abs() < 5 * found.pointwise_se + 1e-3).double().mean() > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0.0}, "tolerance is a number of nats above 0, got 0.0"),
        ({"tolerance": 0.1, "proposal": "refined"}, "a tolerance chooses the proposal of each datum itself, got proposal='refined'"),
        ({"proposal": "prior"}, "proposal is one of guide, refined, defensive or a program for these data, got 'prior'"),
        ({"weights": "clipped"}, "weights are 'plain', 'truncated' or 'smoothed', got 'clipped'"),
    ],
    ids=["tolerance", "both", "proposal", "weights"],
)
def test_arguments_that_make_no_sense_are_named(arguments, message):
    model, guide, x = linear_gaussian()
    with pytest.raises(ArgumentError) as raised:
        analysis.log_likelihood(model, guide, x, **arguments)
    assert raised.value.problem == message
