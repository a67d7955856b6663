"""ELBO surgery: the rate of a pair is what z says of which datum it came from, and how far all the data's z lie from the prior.

    E KL(q(z | x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),     q(z) = (1/N) sum_n q(z | x_n)

(Hoffman, Johnson 2016). With all N posteriors in q(z) both parts are exact for the data as an empirical distribution, up to draws of z;
with q(z) taken over a minibatch of M, as in training, I_q is at most log M and what it lacks goes to KL(q(z) || p).

Expected. (1) The linear Gaussian model at its maximum of likelihood: I_q = 1/2 sum log(l_i / s^2), l_i the largest eigenvalues of the
data's covariance, and q(z) has the prior's mean and covariance, so that KL(q(z) || p) = 0 in second moments. (2) On a trained pair with
two latents the estimates are those of quadrature over z, within 4 standard errors. (3) From minibatches I_q is too small on every pair
and grows with M, never above log M. (4) Even with all N data I_q is at most log N: where the rate is above, as with 50 latents, it is log
N within 0.1 nats, a number about N, and KL(q(z) || p) an upper bound of that of more data.

    python examples/elbo_surgery.py --run runs/fashion-mnist         # and digits with 2 and 8 latents, trained in a minute or two
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ppvae
from ppvae import analysis, guides, models, nn
from ppvae.analysis import plots

MINIBATCHES = (8, 16, 32, 64, 128, 256, 512)
SHOWN = 64  # the minibatch of the table and of the right panel


@dataclass(frozen=True)
class Surgery:
    """The parts of the rate of one pair on N data, nats.

    Attributes:
        rate: E KL(q(z | x) || p), by draws.
        information, information_se: I_q(x; z) with all N posteriors in q(z).
        marginal_kl: KL(q(z) || p) = rate - information.
        minibatch: M -> I_q with q(z) over M of the data, mean over a partition of them; last all N, by draws of its own.
        short, short_se: What it lacks at M = 64 of what it is at N, by the same draws.
        exact_rate, exact_information, exact_marginal_kl: By a closed form or quadrature, as ``how`` says; nan where there is none.
    """

    name: str
    num_data: int
    rate: float
    information: float
    information_se: float
    marginal_kl: float
    minibatch: dict[int, float]
    short: float
    short_se: float
    how: str = ""
    exact_rate: float = math.nan
    exact_information: float = math.nan
    exact_marginal_kl: float = math.nan


def surgery(name: str, model: Any, guide: Any, x: Any, **exact: Any) -> Surgery:
    """Both parts with all data, and from minibatches."""
    n = len(x)
    found = analysis.latent_usage(model, guide, x, num_particles=16, num_mutual=n)
    sizes = [m for m in MINIBATCHES if m <= n // 2]
    return Surgery(
        name,
        n,
        found.rate.mean().item(),
        found.mutual_information,
        found.mutual_information_se,
        found.marginal_kl,
        *by_minibatch(guide, x.x if hasattr(x, "x") else x, [*sizes, n]),
        **exact,
    )


def by_minibatch(guide: Any, x: Tensor, sizes: Sequence[int]) -> tuple[dict[int, float], float, float]:
    """E log q(z | x) - log (1/M) sum over x's minibatch of q(z | x_m), itself among them; z drawn once for all M, the last being N."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rows = guide.parameters_at(x[torch.randperm(len(x), generator=generator)])
    q = guide.family.distribution(rows)
    z = q.mean + q.stddev * torch.randn(q.mean.shape, generator=generator, dtype=q.mean.dtype)
    own = q.log_prob(z).double()
    found = {}
    for m in sizes:
        marginal = []
        for first in range(0, len(z) - m + 1, m):
            others = guide.family.distribution(rows[first : first + m])
            for draws in z[first : first + m].split(64):
                marginal.append(torch.logsumexp(others.log_prob(draws[:, None]).double(), 1) - math.log(m))
        found[m] = torch.cat(marginal)
    few, n = found[SHOWN], len(found[SHOWN])
    short = few - found[sizes[-1]][:n]
    information = {m: (own[: len(marginal)] - marginal).mean().item() for m, marginal in found.items()}
    return information, short.mean().item(), (short.std() / math.sqrt(n)).item()


# Pairs whose parts are known.


def linear_gaussian(num_data: int) -> Surgery:
    """Probabilistic PCA at its maximum of likelihood, with its exact posterior as a linear encoder."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.5, 0.7, 0.7, 0.7], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    x = torch.randn(num_data, 6, dtype=torch.float64, generator=generator) * scales @ rotation
    k = 3
    model = models.LinearGaussian.maximum_likelihood(x, k).requires_grad_(False)
    guide = guides.DiagonalNormal(nn.MLP(6, [], 2 * k), latent_dim=k).double().requires_grad_(False)
    posterior = model.posterior(x)  # W'W is diagonal, and so is the posterior's covariance
    linear: Any = guide.encoder.layers[0]  # type: ignore[index]
    linear.weight.zero_()
    linear.weight[:k] = torch.linalg.solve(posterior.precision_matrix[0], model.weight.mT) / (2 * model.log_scale).exp()
    linear.bias[:k] = -linear.weight[:k] @ model.bias
    linear.bias[k:] = posterior.covariance_matrix[0].diagonal().log() / 2

    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)
    information = 0.5 * (eigenvalues[:k] / eigenvalues[k:].mean()).log().sum().item()
    q = guide.family.distribution(guide.parameters_at(x))
    mean, covariance = q.mean.mean(0), torch.cov(q.mean.mT, correction=0) + torch.diag(q.stddev.square().mean(0))
    marginal_kl = 0.5 * (mean @ mean + covariance.trace() - k - torch.logdet(covariance)).item()  # of the Normal with q(z)'s moments
    exact = {"exact_rate": rate_of(guide, x), "exact_information": information, "exact_marginal_kl": marginal_kl}
    return surgery("linear Gaussian", model, guide, x, how="closed form", **exact)


def rate_of(guide: Any, x: Tensor) -> float:
    """Mean of KL(N(loc, diag(scale^2)) || N(0, I)) in closed form."""
    with torch.no_grad():
        q = guide.family.distribution(guide.parameters_at(x))
    loc, scale = q.mean.double(), q.stddev.double()
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(-1).mean().item()


def by_quadrature(guide: Any, x: Tensor) -> dict[str, Any]:
    """Both parts for two latents: KL(q(z) || p) by a grid over the plane, half the smallest scale apart.

    Every posterior is a product over z_1 and z_2, so that q on the grid is a product of two matrices.
    """
    with torch.no_grad():
        q = guide.family.distribution(guide.parameters_at(x))
    loc, scale = q.mean.double(), q.stddev.double()
    step = scale.min().item() / 2
    low, high = (loc - 8 * scale).min(0).values, (loc + 8 * scale).max(0).values
    axes = [torch.arange(low[d].item(), high[d].item() + step, step, dtype=torch.float64) for d in range(2)]
    densities = [torch.distributions.Normal(loc[:, d, None], scale[:, d, None]).log_prob(axes[d]).exp() for d in range(2)]
    marginal = densities[0].mT @ densities[1] / len(x)
    log_prior = -0.5 * (axes[0].square()[:, None] + axes[1].square()) - math.log(2 * math.pi)
    kl = (torch.xlogy(marginal, marginal) - marginal * log_prior).sum().item() * step**2
    rate = rate_of(guide, x)
    return {"how": "quadrature", "exact_rate": rate, "exact_information": rate - kl, "exact_marginal_kl": kl}


def digits(latent_dim: int, epochs: int) -> Surgery:
    """A pair trained on the digits, and the parts of its rate on its training data."""
    train = ppvae.data.load("digits", binarize="threshold").train
    pyro.set_rng_seed(0)
    model = models.Bernoulli(nn.MLP(latent_dim, [256], 64), latent_dim=latent_dim)
    guide = guides.DiagonalNormal(nn.MLP(64, [256], 2 * latent_dim), latent_dim=latent_dim)
    run = ppvae.fit(model, guide, train, epochs=epochs, seed=0)
    exact = by_quadrature(run.guide, train.x) if latent_dim == 2 else {}
    return surgery(f"digits, {latent_dim} latents", run.model, run.guide, train, **exact)


def stored(folder: Path, num_data: int) -> Surgery:
    """A run's pair on the first of its training data."""
    run = ppvae.load(folder)
    told = run.config["data"]
    train = ppvae.data.load(told["name"], binarize=told["binarize"]).train[:num_data]
    return surgery(f"{told['name']}, {run.guide.family.latent_dim} latents", run.model, run.guide, train)


# What is printed, written and drawn.


def table(found: Sequence[Surgery]) -> str:
    head = f"{'':<28}{'N':>6}{'log N':>7}{'rate':>8}{'I_q ± se':>16}{'exact':>8}{'KL(q(z)||p)':>13}{'exact':>9}"
    lines = [head + f"{f'I_q, M = {SHOWN}':>14}{'KL(q(z)||p)':>13}"]
    for s in found:
        few = s.minibatch[SHOWN]
        exact = [f"{value:.4f}" if value == value else "-" for value in (s.exact_information, s.exact_marginal_kl)]
        lines.append(
            f"{s.name:<28}{s.num_data:>6}{math.log(s.num_data):>7.2f}{s.rate:>8.3f}{s.information:>9.3f} ± {s.information_se:.3f} "
            f"{exact[0]:>8}{s.marginal_kl:>12.3f}{exact[1]:>10}{few:>14.3f}{s.rate - few:>13.3f}"
        )
    lines += ["", "I_q by the size of the minibatch: M, log M, and each pair"]
    lines.append(f"{'':<14}" + "".join(f"{s.name:>28}" for s in found))
    for m in sorted({m for s in found for m in s.minibatch}):
        cells = (f"{s.minibatch[m]:.3f}" if m in s.minibatch else "" for s in found)
        lines.append(f"{m:>6}{math.log(m):>8.3f}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def claims(found: Sequence[Surgery]) -> dict[str, tuple[bool, str]]:
    """Claim -> whether it was seen, and the numbers."""
    known = {s.how: s for s in found if s.how}
    linear, plane = known["closed form"], known["quadrature"]
    saturated = [s for s in found if s.rate > math.log(s.num_data)]
    left = 2 * math.exp(linear.exact_information) / linear.num_data  # the own term in a mixture of N
    monotone = all(a <= b for s in found for a, b in itertools.pairwise(s.minibatch.values()))
    told = {
        "linear Gaussian: I_q = 1/2 sum log(l_i / s^2)": (
            abs(linear.information - linear.exact_information) < 4 * linear.information_se + left,
            f"{linear.information:.4f} ± {linear.information_se:.4f}, exact {linear.exact_information:.4f}",
        ),
        "linear Gaussian: KL(q(z) || p) = 0 in second moments": (
            abs(linear.exact_marginal_kl) < 1e-9 and abs(linear.marginal_kl) < 4 * linear.information_se + left,
            f"{linear.exact_marginal_kl:.1e} from the moments, {linear.marginal_kl:.4f} ± {linear.information_se:.4f} estimated",
        ),
        "two latents: as by quadrature": (
            abs(plane.information - plane.exact_information) < 4 * plane.information_se
            and abs(plane.marginal_kl - plane.exact_marginal_kl) < 4 * plane.information_se,
            f"I_q {plane.information:.3f} ± {plane.information_se:.3f}, by quadrature {plane.exact_information:.3f}; KL(q(z) || p) "
            f"{plane.marginal_kl:.3f}, by quadrature {plane.exact_marginal_kl:.3f}",
        ),
        f"minibatches of {SHOWN}: I_q too small, KL(q(z) || p) too large by as much": (
            all(s.short > 4 * s.short_se for s in found),
            ", ".join(f"{s.name} {s.short:.3f} ± {s.short_se:.3f} nats" for s in found),
        ),
        "I_q from minibatches grows with M, below log M": (
            monotone and all(value <= math.log(m) + 1e-9 for s in found for m, value in s.minibatch.items()),
            f"M = {MINIBATCHES[0]}: "
            + ", ".join(f"{s.minibatch[MINIBATCHES[0]]:.3f}" for s in found)
            + f" of {math.log(MINIBATCHES[0]):.3f}",
        ),
    }
    if saturated:
        told["where the rate is above log N, I_q is log N"] = (
            all(math.log(s.num_data) - 0.1 < s.information <= math.log(s.num_data) + 1e-9 for s in saturated),
            ", ".join(f"{s.name}: {s.information:.3f} of {math.log(s.num_data):.3f}, rate {s.rate:.2f}" for s in saturated),
        )
    return told


def figure(found: Sequence[Surgery]) -> Figure:
    looks = [(plots.BLUE, "o"), (plots.GREEN, "^"), (plots.VERMILION, "s"), (plots.ORANGE, "D")]
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3.5}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 2.7), layout="constrained")
        sizes, parts = drawn.subplots(1, 2)
        ends = [MINIBATCHES[0], max(s.num_data for s in found)]
        sizes.plot(ends, [math.log(m) for m in ends], color=plots.GREY, linestyle=":", label="log M")
        for s, (color, marker) in zip(found, looks, strict=False):
            sizes.plot(list(s.minibatch), list(s.minibatch.values()), color=color, marker=marker, label=s.name)
            if s.how:
                sizes.axhline(s.exact_information, color=color, linestyle="--", linewidth=0.6)
        sizes.set_xscale("log")
        sizes.set_xlabel("posteriors in q(z), M; the last: all N")
        sizes.set_ylabel("I_q(x; z) (nats)")
        sizes.set_title("dashed: exact")
        labels: list[str] = []
        rows: list[float] = []
        for i, s in enumerate(found):
            for j, (value, label) in enumerate(((s.minibatch[SHOWN], f"M = {SHOWN}"), (s.information, f"all {s.num_data:,}"))):
                row = 2.6 * i + j
                first = not rows
                parts.barh(row, value, color=plots.BLUE, height=0.85, label="I_q(x; z)" if first else None)
                rest = s.rate - value
                parts.barh(row, rest, left=value, color=plots.ORANGE, height=0.85, hatch="///", label="KL(q(z) || p)" if first else None)
                rows.append(row)
                labels.append(f"{s.name}, {label}")
        parts.set_yticks(rows, labels, fontsize=6)
        parts.invert_yaxis()
        parts.tick_params(left=False)
        parts.set_xlabel("rate (nats)")
        parts.legend(loc="upper right")
        drawn.legend(*sizes.get_legend_handles_labels(), loc="outside lower center", ncols=5, columnspacing=1.0)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/elbo-surgery"))
    parser.add_argument("--run", type=Path, default=Path("runs/fashion-mnist"), help="run folder of one more pair, if it is there")
    parser.add_argument("--quick", action="store_true", help="seconds: short training, and no pair from a folder")
    options = parser.parse_args()
    epochs = 20 if options.quick else 200
    found = [linear_gaussian(1000 if options.quick else 5000), digits(2, epochs), digits(8, epochs)]
    if (options.run / "program.json").exists() and not options.quick:
        found.append(stored(options.run, 3000))
    told = claims(found)
    lines = [f"{'seen' if seen else 'NOT SEEN'}: {claim}: {numbers}" for claim, (seen, numbers) in told.items()]
    text = "\n".join([table(found), "", *lines])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "pairs": [asdict(s) for s in found],
        "claims": {claim: {"seen": seen, "numbers": numbers} for claim, (seen, numbers) in told.items()},
    }
    (options.out / "elbo-surgery.json").write_text(json.dumps(record, indent=1))
    (options.out / "elbo-surgery.txt").write_text(text + "\n")
    plots.save(figure(found), options.out / "elbo-surgery.png")


if __name__ == "__main__":
    main()
