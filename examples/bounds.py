"""How fast the importance-weighted bound L_K reaches log p(x): bias and variance against K, exactly, and on a trained pair.

Three linear Gaussian models with a mean-field guide, whose posteriors have correlation r = 0.25, 0.4 and 0.7. The weight w of a draw,
relative to p(x), has moments up to order 1 / r: its variance chi^2 is finite below r = 1/2, its fourth moment below 1/4. What L_K is
off by is known for every K and r, by quadrature of
    log a = int_0^oo (exp(-t) - exp(-t a)) / t dt,     log^2 a = 2 int_0^oo log t (exp(-t a) - exp(-t)) / t dt - 2 gamma log a.

Expected. (1) Bias and variance over many repeats are the exact ones, within 4 standard errors, although with such weights the errors
themselves are found a little too small. (2) Where chi^2 is finite they become chi^2 / 2K and chi^2 / K, to 5 % by K = 1,000, later where
the fourth moment is infinite; where chi^2 is infinite both fall no faster than about K^(1 - 1/r) instead of K^-1. (3) L_K increases with
K; where K divides the next K, on every datum and not only on average. (4) On a trained pair with two latents, log p(x) by quadrature: the
encoder's bound at K = 5,000 is further off than that of K = 10 from refined full-rank posteriors. (5) What is left of those is not the
number of draws but modes that they miss: K = 5,000 gains less than 0.1 nats. (6) Of the answers of refined proposals that were held
against the encoder's draws, those off by more than 0.5 nats are not trusted; where the encoder knows nothing of a mode, neither of the
two sees it.

    python examples/bounds.py --pair runs/known-truth        # a 2-D pair there, on test images; else 2-D digits, trained in a minute
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ppvae
from ppvae import analysis, guides, models, nn
from ppvae.analysis import plots
from ppvae.importance import log_mean_exp

CORRELATIONS = (0.25, 0.4, 0.7)
PARTICLES = (1, 2, 10, 20, 100, 200, 1000)  # each divides the next
HELD_PARTICLES = 500
EULER = 0.5772156649015329


# The linear Gaussian models.


def correlated(r: float, num_data: int) -> tuple[models.LinearGaussian, Tensor]:
    """A model whose posteriors have covariance 0.2 [[1, r], [r, 1]], and data from it: precision I + W'W with noise 1."""
    precision = torch.linalg.inv(0.2 * torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64))
    model = models.LinearGaussian(2, 2, scale=1.0).double().requires_grad_(False)
    model.weight.copy_(torch.linalg.cholesky(precision - torch.eye(2)).mT)
    marginal = dist.MultivariateNormal(torch.zeros(2).double(), model.weight @ model.weight.mT + torch.eye(2).double())
    return model, marginal.sample((num_data,))


class MeanField:
    """q(z | x) = N(posterior mean, diag(1 / P_ii)), P the posterior precision: the best diagonal Normal."""

    def __init__(self, model: models.LinearGaussian) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> None:
        posterior = self.model.posterior(x)
        scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(posterior.loc, scale).to_event(1))


def chi_squared(r: float) -> float:
    """Variance of w = sqrt(1 - r^2) exp(r (u^2 - v^2) / 2), u, v ~ N(0, 1): infinite from r = 1/2 on."""
    return (1 - r**2) / math.sqrt(1 - 4 * r**2) - 1 if r < 0.5 else math.inf


def exact(r: float, particles: tuple[int, ...] = PARTICLES) -> tuple[Tensor, Tensor]:
    """Bias log p - E L_K and variance of L_K, (len(particles),) each, by quadrature.

    With a = mean of K weights, E exp(-t a) = M(t / K)^K, M(s) = E exp(-s w). All integrands are analytic and fall off at both ends:
    trapezoid rules in u, v and log t converge faster than any power of their steps.
    """
    step = 0.05
    node = torch.arange(0, 14, step, dtype=torch.float64)
    density = 2 * step * torch.exp(-node.square() / 2) / math.sqrt(2 * math.pi)  # both signs
    density[0] /= 2
    w = math.sqrt(1 - r**2) * torch.exp(r * (node.square()[:, None] - node.square()) / 2)
    log_s = torch.arange(-50, 40, 0.1, dtype=torch.float64)
    away = torch.stack([-(density @ torch.expm1(-s * w) @ density) for s in log_s.exp()])  # 1 - M(s), without cancellation
    log_m = torch.log1p(-away.clamp(max=1 - 1e-16))
    bias, variance = [], []
    for k in particles:
        log_t = log_s + math.log(k)
        difference = torch.exp(k * log_m) - torch.exp(-log_t.exp())  # E exp(-t a) - exp(-t)
        mean = -0.1 * difference.sum()
        bias.append(-mean)
        variance.append(2 * 0.1 * (log_t * difference).sum() - 2 * EULER * mean - mean.square())
    return torch.stack(bias), torch.stack(variance)


@dataclass(frozen=True)
class Curve:
    """Bias and variance of L_K over repeats, with standard errors and what is exact; nats and nats^2, by K."""

    r: float
    chi_squared: float
    particles: tuple[int, ...]
    bias: list[float]
    bias_se: list[float]
    variance: list[float]
    variance_se: list[float]
    exact_bias: list[float]
    exact_variance: list[float]
    smallest_step: float  # of L_K from one K to the next, over all data

    @property
    def worst(self) -> float:
        """Largest distance from what is exact, in standard errors."""
        found = [*zip(self.bias, self.bias_se, self.exact_bias, strict=True)]
        found += zip(self.variance, self.variance_se, self.exact_variance, strict=True)
        return max(abs(value - truth) / se for value, se, truth in found)

    def exponent(self, values: list[float]) -> float:
        """d log value / d log K over the last decade."""
        k = self.particles
        return math.log(values[-1] / values[-3]) / math.log(k[-1] / k[-3])


def by_blocks(log_weights: Tensor, k: int) -> Tensor:
    """L_k of each block of k among K draws, (K / k, N)."""
    return log_mean_exp(log_weights.unflatten(0, (-1, k)), 1)


def curve(r: float, num_data: int) -> Curve:
    """Every datum is a repeat: the law of its weights, relative to p(x), does not depend on x."""
    model, x = correlated(r, num_data)
    bounds: dict[int, list[Tensor]] = {k: [] for k in PARTICLES}
    for seed, rows in enumerate(x.split(8192)):  # the weights of 8,192 repeats at once are 64 MB
        relative = ppvae.log_weights(model, MeanField(model), rows, num_particles=PARTICLES[-1], seed=seed) - model.log_evidence(rows)
        for k in PARTICLES:
            bounds[k].append(by_blocks(relative, k))
    truth = exact(r)
    bias, variance, means = [], [], []
    for k in PARTICLES:
        found = torch.cat(bounds.pop(k), 1)
        # E exp(L_K) = p(x): adding exp(L_K) / p(x) - 1 changes no mean, and cancels the noise of first order where it has a variance.
        bias.append(mean_and_se((found.expm1() - found if r < 0.5 else -found).mean(0)))
        variance.append(mean_and_se((found - found.mean()).square().mean(0)))
        means.append(found.mean(0))
    return Curve(
        r,
        chi_squared(r),
        PARTICLES,
        [value for value, _ in bias],
        [se for _, se in bias],
        [value for value, _ in variance],
        [se for _, se in variance],
        truth[0].tolist(),
        truth[1].tolist(),
        torch.stack(means).diff(dim=0).min().item(),
    )


def mean_and_se(repeats: Tensor) -> tuple[float, float]:
    return repeats.mean().item(), (repeats.std() / math.sqrt(len(repeats))).item()


# The trained pair.


@dataclass(frozen=True)
class Trained:
    """log p(x) - L_K on a trained pair, mean over data, by proposal and K; nats. Errors are over the data, of paired differences.

    Attributes:
        within: Share of the data within 0.1 nats, by proposal, at the largest K.
        won, won_se: L_10 from refined posteriors less L_5000 from the encoder.
        held, held_se, held_within: The same of refined proposals that were held against the encoder's, and repaired, at K = 500.
        wrong, wrong_trusted: How many of those are off by more than 0.5 nats, and how many of them are trusted.
    """

    name: str
    num_data: int
    error_bound: float
    particles: tuple[int, ...]
    gap: dict[str, list[float]]
    gap_se: dict[str, list[float]]
    within: dict[str, float]
    won: float
    won_se: float
    held: float
    held_se: float
    held_within: float
    wrong: int
    wrong_trusted: int
    smallest_step: float


def pair(folder: Path, quick: bool) -> tuple[str, Any, Any, Any]:
    """Name, model, guide and test data of the pair in a folder, or of a small one trained here."""
    if (folder / "program.json").exists() and not quick:
        run = ppvae.load(folder)
        told = run.config["data"]
        data = ppvae.data.load(told["name"], binarize=told["binarize"])
        return told["name"], run.model, run.guide, data.test
    data = ppvae.data.load("digits", binarize="threshold")
    pyro.set_rng_seed(0)
    model = models.Bernoulli(nn.MLP(2, [50], 64, activation=torch.nn.Tanh), latent_dim=2)
    guide = guides.DiagonalNormal(nn.MLP(64, [50], 4, activation=torch.nn.Tanh), latent_dim=2)
    run = ppvae.fit(model, guide, data.train, epochs=5 if quick else 200, batch_size=50, seed=0)
    return "digits", run.model, run.guide, data.test


def on_trained(folder: Path, num_data: int, quick: bool) -> Trained:
    """L_K for growing K, from the encoder and from refined posteriors, against quadrature."""
    name, model, guide, test = pair(folder, quick)
    x = test.x[:num_data]
    truth = analysis.exact_log_likelihood(model, x)
    particles = PARTICLES if quick else (*PARTICLES, 5000)
    refined = analysis.refine(model, guide, x, family="full_rank", num_particles=10).guide.widened(1.2)
    bounds = {}
    for proposal, program in (("encoder", guide), ("refined, full rank", refined)):
        weights = ppvae.log_weights(model, program, x, num_particles=particles[-1], seed=1)
        bounds[proposal] = torch.stack([by_blocks(weights, k).mean(0) for k in particles])  # (len(particles), N)
    gaps = {proposal: truth.pointwise - found for proposal, found in bounds.items()}
    won = bounds["refined, full rank"][particles.index(10)] - bounds["encoder"][-1]
    held = analysis.log_likelihood(model, guide, x, proposal="refined", num_particles=HELD_PARTICLES)
    off = truth.pointwise - held.pointwise
    wrong = off.abs() > 0.5
    return Trained(
        name,
        len(x),
        truth.error_bound.max().item(),
        particles,
        {proposal: gap.mean(1).tolist() for proposal, gap in gaps.items()},
        {proposal: (gap.std(1) / math.sqrt(len(x))).tolist() for proposal, gap in gaps.items()},
        {proposal: within(gap[-1]) for proposal, gap in gaps.items()},
        *mean_and_se(won),
        *mean_and_se(off),
        within(off),
        int(wrong.sum()),
        int((wrong & held.trusted).sum()),
        min(found.diff(dim=0).min().item() for found in bounds.values()),
    )


def within(gap: Tensor) -> float:
    return (gap.abs() < 0.1).double().mean().item()


# What is printed, written and drawn.


def table(curves: list[Curve], trained: Trained) -> str:
    lines = [f"{'r':>5}{'K':>6}{'bias ± se':>22}{'exact':>11}{'chi2/2K':>11}{'variance ± se':>23}{'exact':>11}{'chi2/K':>11}"]
    for c in curves:
        for i, k in enumerate(c.particles):
            lines.append(
                f"{c.r:>5g}{k:>6}{c.bias[i]:>12.3e} ± {c.bias_se[i]:.1e}{c.exact_bias[i]:>11.3e}{c.chi_squared / (2 * k):>11.3e}"
                f"{c.variance[i]:>13.3e} ± {c.variance_se[i]:.1e}{c.exact_variance[i]:>11.3e}{c.chi_squared / k:>11.3e}"
            )
    lines += ["", f"{trained.name}: log p(x) - L_K, nats, mean ± se over {trained.num_data} test images"]
    lines.append(f"{'K':>6}" + "".join(f"{proposal:>24}" for proposal in trained.gap))
    for i, k in enumerate(trained.particles):
        cells = (f"{trained.gap[p][i]:>14.4f} ± {trained.gap_se[p][i]:.4f}" for p in trained.gap)
        lines.append(f"{k:>6}" + "".join(f"{cell:>24}" for cell in cells))
    shares = ", ".join(f"{proposal} {share:.0%}" for proposal, share in trained.within.items())
    lines.append(f"within 0.1 nats at K = {trained.particles[-1]}: {shares}")
    lines.append(
        f"refined, held against the encoder's draws and repaired, K = {HELD_PARTICLES}: {trained.held:.4f} ± {trained.held_se:.4f}, within "
        f"0.1 nats {trained.held_within:.0%}; more than 0.5 nats off: {trained.wrong} images, {trained.wrong_trusted} of them trusted"
    )
    return "\n".join(lines)


def claims(curves: list[Curve], trained: Trained) -> dict[str, tuple[bool, str]]:
    """Claim -> whether it was seen, and the numbers."""
    finite, infinite = [c for c in curves if c.chi_squared < math.inf], [c for c in curves if c.chi_squared == math.inf]
    worst = max(c.worst for c in curves)
    last = PARTICLES[-1]
    ratio = {c.r: c.exact_bias[-1] / (c.chi_squared / (2 * last)) for c in finite}
    exponents = {c.r: (c.exponent(c.bias), c.exponent(c.exact_bias), c.exponent(c.variance)) for c in curves}
    step = min(trained.smallest_step, *(c.smallest_step for c in curves))
    gap, ten = trained.gap["refined, full rank"], trained.particles.index(10)
    slow = all(max(abs(e) for e in exponents[c.r]) < (1 + abs(1 - 1 / c.r)) / 2 for c in infinite)
    return {
        "bias and variance are the exact ones": (worst < 4, f"{14 * len(curves)} numbers, the furthest {worst:.1f} standard errors off"),
        "finite chi^2: chi^2 / 2K and chi^2 / K to 5 % by K = 1,000, later where the fourth moment is infinite": (
            0.95 < ratio[0.4] < ratio[0.25] < 1,
            f"at K = {last} the bias is " + ", ".join(f"{value:.4f} (r = {r:g})" for r, value in ratio.items()) + " of chi^2 / 2K",
        ),
        "infinite chi^2: no faster than about K^(1 - 1/r)": (
            slow,
            ", ".join(
                f"r = {r:g}: bias K^{b:.2f} (exact {e:.2f}), variance K^{v:.2f}; "
                + (f"1 - 1/r = {1 - 1 / r:.2f}" if r >= 0.5 else "-1 where chi^2 is finite")
                for r, (b, e, v) in exponents.items()
            )
            + " (last decade)",
        ),
        "L_K increases on every datum": (step > -1e-9, f"smallest step {step:.1e} nats"),
        "encoder at the largest K further off than refined posteriors at K = 10": (
            trained.won > 2 * trained.won_se,
            f"by {trained.won:.3f} ± {trained.won_se:.3f} nats; log p(x) known to {trained.error_bound:.1g}",
        ),
        "what refined posteriors are off by is modes, not draws": (
            abs(gap[-1] - gap[ten]) < 0.1,
            f"K = 10: {gap[ten]:.4f}, K = {trained.particles[-1]}: {gap[-1]:.4f}",
        ),
        "answers more than 0.5 nats off are not trusted": (
            trained.wrong_trusted == 0,
            f"{trained.wrong_trusted} of {trained.wrong} are, among {trained.num_data} images",
        ),
    }


def figure(curves: list[Curve], trained: Trained) -> Figure:
    looks = dict(zip(CORRELATIONS, ((plots.BLUE, "o"), (plots.GREEN, "^"), (plots.VERMILION, "s")), strict=True))
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3.5}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.5), layout="constrained")
        panels = drawn.subplots(1, 3)
        for c in curves:
            color, marker = looks[c.r]
            shown = ((c.bias, c.bias_se, c.exact_bias, 2), (c.variance, c.variance_se, c.exact_variance, 1))
            for axes, (found, se, truth, share) in zip(panels, shown, strict=False):
                axes.plot(c.particles, truth, color=color)
                bars = [2 * error for error in se]
                axes.errorbar(c.particles, found, bars, color=color, marker=marker, linestyle="", elinewidth=0.8, label=f"r = {c.r:g}")
                if c.chi_squared < math.inf:
                    axes.plot(c.particles, [c.chi_squared / (share * k) for k in c.particles], color=color, linestyle=":", linewidth=0.8)
        panels[0].set_ylabel("log p(x) - E L_K (nats)")
        panels[0].set_title("bias; line: exact, dotted: χ²/2K")
        panels[1].set_ylabel("Var L_K (nats²)")
        panels[1].set_title("variance; dotted: χ²/K")
        panels[0].legend(loc="lower left")
        for (proposal, gap), color, marker in zip(trained.gap.items(), (plots.BLACK, plots.ORANGE), ("o", "D"), strict=True):
            low, high = ([g + sign * se for g, se in zip(gap, trained.gap_se[proposal], strict=True)] for sign in (-1, 1))
            panels[2].plot(trained.particles, gap, color=color, marker=marker, label=proposal)
            panels[2].fill_between(trained.particles, low, high, color=color, alpha=0.15, linewidth=0)
        panels[2].set_ylabel("log p(x) - L_K (nats)")
        panels[2].set_title(f"{trained.name}; band: ± se")
        panels[2].legend(loc="best")
        for axes in panels:
            axes.set_xscale("log")
            axes.set_yscale("log", nonpositive="clip")
            axes.set_xlabel("K")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bounds"))
    parser.add_argument("--pair", type=Path, default=Path("runs/known-truth"), help="run folder of a pair with two latents")
    parser.add_argument("--repeats", type=int, default=None, help="repeats of L_1000 on the linear Gaussian models; 16,384 by default")
    parser.add_argument("--quick", action="store_true", help="seconds: few repeats, and digits trained for 5 epochs")
    options = parser.parse_args()
    pyro.set_rng_seed(0)
    repeats = options.repeats or (512 if options.quick else 16_384)
    curves = [curve(r, repeats) for r in CORRELATIONS]
    trained = on_trained(options.pair, 16 if options.quick else 300, options.quick)
    told = claims(curves, trained)
    lines = [f"{'seen' if seen else 'NOT SEEN'}: {claim}: {numbers}" for claim, (seen, numbers) in told.items()]
    text = "\n".join([table(curves, trained), "", *lines])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "repeats": repeats,
        "linear Gaussian": [asdict(c) for c in curves],
        "trained": asdict(trained),
        "claims": {claim: {"seen": seen, "numbers": numbers} for claim, (seen, numbers) in told.items()},
    }
    (options.out / "bounds.json").write_text(json.dumps(record, indent=1))
    (options.out / "bounds.txt").write_text(text + "\n")
    plots.save(figure(curves, trained), options.out / "bounds.png")


if __name__ == "__main__":
    main()
