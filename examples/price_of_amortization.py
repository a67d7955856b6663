"""The price of amortization: what encoders and guide families leave of log p(x), what closes it, and the bias that stays in the model.

(a) One decoder is trained on digits and frozen. Guides are then trained against it: by encoder width, by family, with steps trained through
(``SemiAmortized``, ``Iterative``), and with steps or a refinement put behind a trained one. Since log p(x) is the same for all, gaps
log p(x) - ELBO compare guides alone. Beside it, a few of them trained together with a decoder of their own.

(b) In linear Gaussian programs the best guide of a restricted family is known, so the ELBO with that guide is a function of the model's
parameters: log p(x) less the mean KL(q* || p(z | x)). Its maximiser is where training ends however many data there are. Three restrictions:
*blind*: the encoder sees x_1 of four coordinates; *diagonal*: a diagonal Normal where directions are fixed, so that the model cannot turn
the correlation away; *one scale*: one standard deviation for complete data and for such where only x_1 is there. What is estimated is the
signal-to-noise ratio k = |w|^2 / s^2.

Expected. (1) The gap on training data falls from width 16 to 64 to 256. (2) On test data it falls less, so that amortization gains less
there than on training data. (3) A full-rank guide leaves less than a diagonal one with the same encoder, on test data, but more than half
of the diagonal's gap. (4) Five steps trained through close more than half of what a posterior of the same family for each datum would.
(5) Behind a trained guide, not trained through, the same steps close less. (6) Full rank refined by 20 steps leaves less than 0.1 nats on
test data. (7) Trained together, a decoder with a narrow encoder (4 units) has a lower test log p(x) than with one of 256.
(8) The maximum-likelihood estimate's error falls as 1 / sqrt(N): slope -0.5 of the logarithms within 0.05. (9) That of the restricted
optima does not: at 30,000 data within 5 % of its limit. (10) Trained pairs are within 0.05 (log k) of the restricted optimum at their
data, and farther than that from maximum likelihood; with an unrestricted guide within 0.05 of maximum likelihood. (11) A diagonal guide
leaves no bias where the model may turn: log p(x) within 0.01 nats of the closed-form maximum.

    python examples/price_of_amortization.py --out runs/price-of-amortization        # five minutes; --quick: seconds
"""

import copy
import functools
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from pyro.infer import TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import Tensor

import experiment
import ppvae
from experiment import Claims, mean_and_se
from ppvae import analysis, families, guides, models, nn
from ppvae.analysis import plots

LATENT_DIM, PIXELS = 8, 64
SIZES = (100, 300, 1000, 3000, 10_000, 30_000)
TOLERANCE = 0.05  # of log k, between a trained pair and an optimum of the same data
NARROW = 4
STEP_LENGTHS = (0.003, 0.01, 0.03, 0.1)  # of the semi-amortized guide: the best behind the trained one, by the ELBO of training data
STEPS: Any = {"steps": 5, "num_draws": 16}


@dataclass(frozen=True)
class Effort:
    """How much is done."""

    epochs: int  # of each guide and pair
    num_test: int
    num_particles: int  # of an ELBO
    num_weights: int  # of log p(x)
    widths: tuple[int, ...]
    guides: tuple[str, ...]
    joint: tuple[str, ...]
    replicates: int
    steps: int  # of linear Gaussian training
    trained_sizes: tuple[int, ...]


FULL = Effort(
    60, 200, 100, 500, (16, 64, 256),
    ("full rank", "low rank", "mixture", "flow", "inverse autoregressive", "semi-amortized", "iterative"),
    ("narrow", "diagonal 256", "full rank", "flow"), 200, 1000, (1000, 10_000),
)  # fmt: skip
QUICK = Effort(2, 16, 8, 50, (4, 8), ("full rank",), ("diagonal 8",), 20, 10, (300,))


# (a) Guides for one decoder.


@dataclass(frozen=True)
class Row:
    """A guide, nats. ``_se`` over the data, ``_mc_se`` Monte Carlo.

    Attributes:
        name: Of the guide.
        how: "encoder": trained against the frozen decoder; "through": its steps too; "behind": put behind the widest diagonal guide,
            not trained; "joint": trained with a decoder of its own.
        evaluations: Of the decoder, value or gradient, that make the posterior of a datum.
        step_evaluations: Of the decoder, per datum and training step.
        seconds: Of the processor, per training epoch; 0 where nothing was trained.
        parameters: Trained for the guide.
    """

    name: str
    how: str
    evaluations: int
    step_evaluations: int
    seconds: float
    parameters: int
    train_gap: float
    train_gap_se: float
    train_gap_mc_se: float
    test_gap: float
    test_gap_se: float
    test_gap_mc_se: float
    test_elbo: float
    test_log_p: float
    test_log_p_se: float
    test_log_p_mc_se: float
    trusted: float


def built(name: str, model: Any, width: int, lr: float = 0.01) -> Any:
    """A guide whose encoder has one hidden layer of ``width``; ``lr``: of the steps of the semi-amortized."""
    z = LATENT_DIM

    def encoder(outputs: int) -> nn.MLP:
        return nn.MLP(PIXELS, [width], outputs)

    makers: dict[str, Callable[[], Any]] = {
        "full rank": lambda: guides.FullRankNormal(encoder(z + z * (z + 1) // 2), z),
        "low rank": lambda: guides.LowRankNormal(encoder(4 * z), z, rank=2),
        "mixture": lambda: guides.Mixture(encoder(4 * (1 + 2 * z)), z, num_components=4),
        "flow": lambda: guides.Flow(encoder(3 * z), z, context_dim=z),
        "inverse autoregressive": lambda: guides.InverseAutoregressive(encoder(3 * z), z, context_dim=z),
        "semi-amortized": lambda: guides.SemiAmortized(guides.DiagonalNormal(encoder(2 * z), z), model, lr=lr, **STEPS),
        "iterative": lambda: guides.Iterative(guides.DiagonalNormal(encoder(2 * z), z), nn.MLP(4 * z, [64], 4 * z), model, steps=3),
    }
    return makers[name]() if name in makers else guides.DiagonalNormal(encoder(2 * z), z)


def fitted(model: Any, guide: Any, data: Any, epochs: int, out: Path) -> float:
    """Train in place; seconds of an epoch. A pair that was trained there is not trained again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not registered in the param store because requires_grad=False", UserWarning)  # it is frozen
        experiment.fit(
            model,
            guide,
            data,
            epochs=epochs,
            batch_size=64,
            optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
            scheduler=functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=epochs),
            compile=False,  # steps of all guides by the same means, so that their times compare
            out=out,
            resume=True,
        )
        return seconds_per_epoch(model, guide, data.x)


def seconds_per_epoch(model: Any, guide: Any, x: Tensor) -> float:
    """Of the processor, for the steps of one epoch of a copy: what else the machine does meanwhile is not in it."""
    model, guide = copy.deepcopy((model, guide))
    with pyro.get_param_store().scope():
        svi = ppvae.SVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-5), compile=False)
        svi.step(x[:64])
        start = time.process_time()
        for batch in x.split(64):
            svi.step(batch)
        return time.process_time() - start


class Measuring:
    """Gaps of guides on the same rows of training and test data, by the same log p(x) for each decoder."""

    def __init__(self, data: Any, effort: Effort) -> None:
        self.effort = effort
        self.parts = {"train": data.train[: effort.num_test], "test": data.test[: effort.num_test]}

    def log_p(self, model: Any, guide: Any) -> dict[str, Any]:
        return {
            name: analysis.log_likelihood(model, guide, x, num_particles=self.effort.num_weights, proposal="refined")
            for name, x in self.parts.items()
        }

    def train_elbo(self, model: Any, guide: Any) -> float:
        return analysis.elbo(model, guide, self.parts["train"], num_particles=self.effort.num_particles, seed=5).mean.value

    def row(self, name: str, how: str, pair: tuple[Any, Any], log_p: dict[str, Any], seconds: float, parameters: int) -> tuple[Row, Tensor]:
        """A row, and the gap of each test datum for paired differences."""
        model, guide = pair
        gaps, elbo = {}, {}
        for part, x in self.parts.items():
            found = analysis.elbo(model, guide, x, num_particles=self.effort.num_particles, seed=5)
            difference = log_p[part].pointwise - found.pointwise
            gaps[part] = analysis.estimate.mean_of(difference, (log_p[part].pointwise_se.square() + found.pointwise_se.square()).sqrt())
            elbo[part], pointwise = found.mean.value, difference
        steps = getattr(guide, "steps", 0) * getattr(guide, "num_draws", 0)
        test = log_p["test"].mean
        row = Row(
            name=name,
            how=how,
            evaluations=steps,
            step_evaluations=0 if how == "behind" else 1 + steps,
            seconds=seconds,
            parameters=parameters,
            train_gap=gaps["train"].value,
            train_gap_se=gaps["train"].data_se,
            train_gap_mc_se=gaps["train"].mc_se,
            test_gap=gaps["test"].value,
            test_gap_se=gaps["test"].data_se,
            test_gap_mc_se=gaps["test"].mc_se,
            test_elbo=elbo["test"],
            test_log_p=test.value,
            test_log_p_se=test.data_se,
            test_log_p_mc_se=test.mc_se,
            trusted=log_p["test"].trusted.double().mean().item(),
        )
        return row, pointwise


def num_parameters(guide: Any) -> int:
    parts = [guide] if isinstance(guide, torch.nn.Module) else [guide.guide, *([guide.network] if hasattr(guide, "network") else [])]
    return sum(p.numel() for part in parts for p in part.parameters())


def decoder() -> models.Bernoulli:
    return models.Bernoulli(nn.MLP(LATENT_DIM, [256], PIXELS), latent_dim=LATENT_DIM)


def frozen_decoder(data: Any, effort: Effort, out: Path) -> tuple[list[tuple[Row, Tensor]], Tensor]:
    """Every guide against one decoder; and log p(x) of each test datum under it."""
    pyro.set_rng_seed(0)
    model, own = decoder(), built("diagonal", None, effort.widths[-1])
    fitted(model, own, data.train, effort.epochs, out / "decoder")
    model.requires_grad_(False)
    measuring = Measuring(data, effort)
    log_p = measuring.log_p(model, own)
    rows: list[tuple[Row, Tensor]] = []
    widest: Any = None
    trials = [(f"diagonal {width}", width, "encoder") for width in effort.widths]
    trials += [(name, effort.widths[-1], "through" if name in ("semi-amortized", "iterative") else "encoder") for name in effort.guides]
    lr = math.nan
    for name, width, how in trials:
        if widest is not None and math.isnan(lr) and not name.startswith("diagonal"):
            behind_it = {one: guides.SemiAmortized(widest, model, lr=one, **STEPS) for one in STEP_LENGTHS}
            lr = max(STEP_LENGTHS, key=lambda one: measuring.train_elbo(model, behind_it[one]))
            print(f"steps of length {lr:g}", flush=True)
        pyro.set_rng_seed(1)
        guide = built(name.rsplit(" ", 1)[0] if name.startswith("diagonal") else name, model, width, lr)
        seconds = fitted(model, guide, data.train, effort.epochs, out / f"frozen-{name.replace(' ', '-')}")
        rows.append(measuring.row(name, how, (model, guide), log_p, seconds, num_parameters(guide)))
        widest = guide if name.startswith("diagonal") else widest
    behind = {
        "5 steps": guides.SemiAmortized(widest, model, lr=lr, **STEPS),
        "mean field, 160 steps": guides.Refined(widest, steps=160, family="mean_field"),
        "full rank, 5 steps": guides.Refined(widest, steps=5),
        "full rank, 20 steps": guides.Refined(widest, steps=20),
        "full rank, 160 steps": guides.Refined(widest, steps=160),
    }
    rows += [measuring.row(name, "behind", (model, guide), log_p, 0.0, num_parameters(widest)) for name, guide in behind.items()]
    return rows, log_p["test"].pointwise


def joint(data: Any, effort: Effort, out: Path) -> list[tuple[Row, Tensor]]:
    """Guides trained together with decoders of their own: the row, and log p(x) of each test datum."""
    found = []
    for name in effort.joint:
        pyro.set_rng_seed(0)
        model = decoder()
        guide = built(name, None, NARROW if name == "narrow" else effort.widths[-1])
        seconds = fitted(model, guide, data.train, effort.epochs, out / f"joint-{name.replace(' ', '-')}")
        measuring = Measuring(data, effort)
        log_p = measuring.log_p(model, guide)
        label = f"diagonal {NARROW}" if name == "narrow" else name
        row, _ = measuring.row(label, "joint", (model, guide), log_p, seconds, num_parameters(guide))
        found.append((row, log_p["test"].pointwise))
    return found


# (b) Optima of ELBOs whose best guide is known.


def maximisers(objective: Callable[..., Tensor], start: Tensor, *statistics: Tensor, steps: int = 60) -> Tensor:
    """argmax of objective(parameters (P,), *statistics) for each row of start, (R, P), and of the statistics, (R, ...), all at once.

    Newton's method on -|Hessian|, which is uphill everywhere, with the best of some step lengths.
    """
    gradient = torch.func.vmap(torch.func.grad(objective))
    hessian = torch.func.vmap(torch.func.hessian(objective))
    value = torch.func.vmap(objective)
    at, lengths = start.double(), [2.0**-i for i in range(8)] + [0.0]
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(hessian(at, *statistics))
        slope = gradient(at, *statistics)
        step = (vectors @ ((vectors.mT @ slope[..., None]) / values.abs().clamp(min=1e-9)[..., None]))[..., 0]
        size = step.norm(dim=-1, keepdim=True)
        step = step / size.clamp(min=1.0)
        tried = torch.stack([at + length * step for length in lengths])
        best = torch.stack([value(one, *statistics) for one in tried]).nan_to_num(nan=-math.inf).argmax(0)
        moved = tried[best, torch.arange(len(at))]
        at = torch.where(size < 1e-5, at + step, moved)  # there values differ by no more than their rounding, and the step is right
        done = (size < 1e-10).all()
        if done:
            break
    return at


def rank_one(w: Tensor, variance: Tensor, moment: Tensor) -> Tensor:
    """The mean of log N(x; 0, w w' + variance I) over data with E[x x'] = moment, nats: by Woodbury's identity."""
    d, top = len(w), variance + w.square().sum()
    quadratic = (moment.diagonal().sum() - w @ moment @ w / top) / variance
    return -0.5 * (d * math.log(2 * math.pi) + (d - 1) * variance.log() + top.log() + quadratic)


class Linear(torch.nn.Module):
    """(..., D) -> loc, linear in the visible coordinates, and the rest of the row, the same for all x."""

    def __init__(self, visible: int, latent_dim: int, num_constants: int) -> None:
        super().__init__()
        self.visible = visible
        self.loc = torch.nn.Linear(visible, latent_dim)
        self.constants = torch.nn.Parameter(torch.zeros(num_constants))

    def forward(self, x: Tensor) -> Tensor:
        loc = self.loc(x[..., : self.visible])
        return torch.cat([loc, self.constants.expand(*loc.shape[:-1], -1)], -1)


class Blind:
    """x = w z + s noise in four dimensions, and an encoder that sees the first ``visible`` coordinates, affine, its scale free.

    With q = N(h'x_A, v), S the covariance of the data, T its trace: E[z^2] = h'S_AA h + v, E[x z] = S_A h, and for the best w and scale
    of z the ELBO is -D/2 log(2 pi s^2) - (T - r^2 g) / (2 s^2) + log(1 - r^2) / 2 with r^2 the share of E[z^2] that x explains and
    g = |S_A h|^2 / h'S_AA h. It grows with g: h is the top generalised eigenvector of (S_A' S_A, S_AA). Setting the derivatives by s^2 and
    r^2 to zero, s^2 = (T - g) / (D - 1), |w|^2 = g - s^2, and w is along S_A h. Seeing all, g is the largest eigenvalue, and this
    is probabilistic PCA.
    """

    name = "blind"
    weight, scale, seen = (1.0, 1.0, 1.0, 1.0), 1.0, 1
    log_k = math.log(4.0)

    def data(self, n: int, generator: torch.Generator) -> Tensor:
        z, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (1, len(self.weight)))
        return z * torch.tensor(self.weight, dtype=torch.float64) + self.scale * noise

    def moments(self, x: Tensor) -> Tensor:
        return torch.cov(x.mT, correction=0)

    def limit_moments(self) -> Tensor:
        w = torch.tensor(self.weight, dtype=torch.float64)
        return torch.outer(w, w) + self.scale**2 * torch.eye(len(w), dtype=torch.float64)

    @staticmethod
    def optimum(covariance: Tensor, visible: int) -> tuple[Tensor, Tensor]:
        """w, (..., D), and s^2, (...), of the best pair whose encoder sees ``visible`` coordinates; w is zero where z is not used."""
        across, own = covariance[..., :, :visible], covariance[..., :visible, :visible]
        root = torch.linalg.cholesky(own)
        half = torch.linalg.solve_triangular(root, across.mT @ across, upper=False)
        values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
        h = torch.linalg.solve_triangular(root.mT, vectors[..., -1:], upper=True)
        along = (across @ h)[..., 0]
        d, trace = covariance.shape[-1], covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        used = values[..., -1] > trace / d
        variance = torch.where(used, (trace - values[..., -1]) / (d - 1), trace / d)
        size = (values[..., -1] - variance).clamp(min=0).sqrt()
        return along / along.norm(dim=-1, keepdim=True) * size[..., None], variance

    def log_ks(self, moments: Tensor, restricted: bool) -> Tensor:
        w, variance = self.optimum(moments, self.seen if restricted else len(self.weight))
        return (w.square().sum(-1) / variance).log()

    def pair(self, restricted: bool) -> tuple[Any, Any]:
        d = len(self.weight)
        return models.LinearGaussian(d, 1), guides.DiagonalNormal(Linear(self.seen if restricted else d, 1, 1), 1)

    def batch(self, x: Tensor) -> Any:
        return x

    def log_k_of(self, model: Any) -> float:
        return (model.weight.square().sum().log() - 2 * model.log_scale).item()


class FixedDirections(PyroModule):
    """z ~ N(0, I_2), x | z ~ N(t A z, s^2 I) with A = (1 c; c 1) known: the user's own program, t and s to be learned."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.log_t = torch.nn.Parameter(torch.tensor(0.0))
        self.log_s = torch.nn.Parameter(torch.tensor(0.3))
        self.register_buffer("directions", torch.tensor([[1.0, c], [c, 1.0]]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.log_t.exp() * z @ self.directions, self.log_s.exp()).to_event(1), obs=x)


class Diagonal:
    """x = t A z + s noise with A = (1 c; c 1), and a diagonal Normal over z, whose best loses -log(1 - r^2) / 2 nats at posterior
    correlation r.

    The eigenvalues of the covariance are s^2 m for m = 1 + k (1 + c)^2 and 1 + k (1 - c)^2, k = t^2 / s^2 (this is what is estimated here
    in place of |w|^2 / s^2), along (1, 1) and (1, -1); the posterior precision is I + k A'A, so r = 2 k c / (1 + k (1 + c^2)). The best
    s^2 is the mean of moment / m over the two, which leaves a function of k alone.
    """

    name = "diagonal"
    c, log_k = 0.6, math.log(2.0)

    def data(self, n: int, generator: torch.Generator) -> Tensor:
        z, noise = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        return math.exp(self.log_k / 2) * z @ torch.tensor([[1, self.c], [self.c, 1]], dtype=torch.float64) + noise

    def moments(self, x: Tensor) -> Tensor:
        """Along (1, 1) and (1, -1), (2,)."""
        return torch.stack([(x[:, 0] + x[:, 1]).square().mean(), (x[:, 0] - x[:, 1]).square().mean()]) / 2

    def limit_moments(self) -> Tensor:
        return self.multiples(torch.tensor(self.log_k, dtype=torch.float64))

    def multiples(self, log_k: Tensor) -> Tensor:
        squares = torch.tensor([(1 + self.c) ** 2, (1 - self.c) ** 2], dtype=torch.float64)
        return 1 + log_k.exp() * squares

    def bound(self, parameters: Tensor, moments: Tensor, restricted: bool) -> Tensor:
        """The mean of log p(x), less the mean KL of the best diagonal Normal where restricted; at the best s."""
        m, k = self.multiples(parameters[0]), parameters[0].exp()
        log_p = -0.5 * (m.log().sum() + 2 * (moments / m).mean().log() + 2 + 2 * math.log(2 * math.pi))
        r = 2 * k * self.c / (1 + k * (1 + self.c**2))
        return log_p + 0.5 * torch.log1p(-r.square()) if restricted else log_p

    def log_ks(self, moments: Tensor, restricted: bool) -> Tensor:
        start = torch.full((len(moments), 1), self.log_k, dtype=torch.float64)
        return maximisers(functools.partial(self.bound, restricted=restricted), start, moments)[:, 0]

    def pair(self, restricted: bool) -> tuple[Any, Any]:
        family = families.DiagonalNormal(2) if restricted else families.FullRankNormal(2)
        return FixedDirections(self.c), guides.Amortized(Linear(2, 2, family.num_parameters - 2), family)

    def batch(self, x: Tensor) -> Any:
        return x

    def log_k_of(self, model: Any) -> float:
        return 2 * (model.log_t - model.log_s).item()


class ByPattern(torch.nn.Module):
    """Of a dict of values and mask: loc affine in what is there, complete or x_1 alone; one log scale, or one for each."""

    def __init__(self, data_dim: int, one_scale: bool) -> None:
        super().__init__()
        self.complete, self.first = torch.nn.Linear(data_dim, 1), torch.nn.Linear(1, 1)
        self.log_scales = torch.nn.Parameter(torch.zeros(1 if one_scale else 2))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        values, observed = x["x"], x["observed"]
        whole = observed[..., -1:]
        loc = torch.where(whole, self.complete(torch.where(observed, values, 0)), self.first(values[..., :1]))
        return torch.cat([loc, torch.where(whole, self.log_scales[0], self.log_scales[-1])], -1)


class OneScale:
    """x = w z + s noise in three dimensions; of every second datum only x_1 is there; a guide with one standard deviation for all.

    The posterior precision is P = 1 + |w|^2 / s^2 of complete data and 1 + w_1^2 / s^2 of the others. A Normal with the posterior's mean
    and precision Q loses (P / Q - 1 - log(P / Q)) / 2 nats; the best Q is the mean of P: (log mean P - mean log P) / 2 is lost.
    """

    name = "one scale"
    weight, scale = (1.0, 2.0, 2.0), 1.0
    log_k = math.log(9.0)

    def data(self, n: int, generator: torch.Generator) -> Tensor:
        """The second half of the rows is seen in x_1 only."""
        z, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (1, len(self.weight)))
        return z * torch.tensor(self.weight, dtype=torch.float64) + self.scale * noise

    def moments(self, x: Tensor) -> Tensor:
        """E[x x'] of complete data, and that of x_1 of the others in one row more, (4, 3)."""
        complete, rest = x[: len(x) // 2], x[len(x) // 2 :, 0].square().mean()
        return torch.cat([complete.mT @ complete / len(complete), rest.expand(1, 3)])

    def limit_moments(self) -> Tensor:
        w = torch.tensor(self.weight, dtype=torch.float64)
        covariance = torch.outer(w, w) + self.scale**2 * torch.eye(3, dtype=torch.float64)
        return torch.cat([covariance, covariance[0, 0].expand(1, 3)])

    def bound(self, parameters: Tensor, moments: Tensor, restricted: bool) -> Tensor:
        """The mean of log p(x), less the mean KL of the best Normals with one scale where restricted."""
        w, variance = parameters[:3], (2 * parameters[3]).exp()
        log_p = (rank_one(w, variance, moments[:3]) + rank_one(w[:1], variance, moments[3:, :1])) / 2
        precisions = 1 + torch.stack([w.square().sum(), w[0].square()]) / variance
        return log_p - 0.5 * (precisions.mean().log() - precisions.log().mean()) if restricted else log_p

    def log_ks(self, moments: Tensor, restricted: bool) -> Tensor:
        start = torch.tensor([*self.weight, math.log(self.scale)], dtype=torch.float64).expand(len(moments), -1)
        found = maximisers(functools.partial(self.bound, restricted=restricted), start, moments)
        return found[:, :3].square().sum(1).log() - 2 * found[:, 3]

    def pair(self, restricted: bool) -> tuple[Any, Any]:
        model = models.LinearGaussian(3, 1)
        model.bias.requires_grad_(False)  # zero, and known
        return model, guides.DiagonalNormal(ByPattern(3, restricted), 1)

    def batch(self, x: Tensor) -> dict[str, Tensor]:
        observed = torch.ones(x.shape, dtype=torch.bool)
        observed[len(x) // 2 :, 1:] = False
        return {"x": torch.where(observed, x, 0), "observed": observed}

    def log_k_of(self, model: Any) -> float:
        return (model.weight.square().sum().log() - 2 * model.log_scale).item()


CASES = (Blind(), Diagonal(), OneScale())


def descended(pair: tuple[Any, Any], x: Any, steps: int) -> Any:
    """The model after steps of SVI on all data each."""
    model, guide = pair
    rates = [0.1 * (1 - step / steps) for step in range(steps)]
    optimizers: list[torch.optim.Optimizer] = []

    def adam(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.Adam(parameters, lr=rates[0]))
        return optimizers[-1]

    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not registered in the param store because requires_grad=False", UserWarning)
        svi = ppvae.SVI(model, guide, adam, TraceMeanField_ELBO(), compile=False)
        for rate in rates:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            svi.step(x)
    return model


@dataclass(frozen=True)
class Errors:
    """log k - log k of the truth, over replications of N data: its root mean square with its error, and its mean.

    Attributes:
        limit: Of the restricted optimum as N grows; 0 of maximum likelihood.
    """

    case: str
    n: int
    restricted: bool
    rms: float
    rms_se: float
    mean: float
    mean_se: float
    limit: float


@dataclass(frozen=True)
class Trained:
    """A trained pair beside the two optima of its data: log k of each."""

    case: str
    n: int
    restricted: bool
    log_k: float
    optimum: float
    maximum_likelihood: float

    @property
    def target(self) -> float:
        return self.optimum if self.restricted else self.maximum_likelihood


def errors_of(case: Any, n: int, replicates: int, generator: torch.Generator) -> list[Errors]:
    moments = torch.stack([case.moments(case.data(n, generator)) for _ in range(replicates)])
    found = []
    for restricted in (False, True):
        error = case.log_ks(moments, restricted) - case.log_k
        limit = case.log_ks(case.limit_moments()[None], restricted).item() - case.log_k
        rms = error.square().mean().sqrt().item()
        mean, mean_se = mean_and_se(error)
        found.append(Errors(case.name, n, restricted, rms, mean_and_se(error.square())[1] / (2 * rms), mean, mean_se, limit))
    return found


def trained_of(case: Any, n: int, restricted: bool, steps: int) -> Trained:
    pyro.set_rng_seed(3)
    x = case.data(n, torch.Generator().manual_seed(7))
    model = descended(case.pair(restricted), _single(case.batch(x)), steps)
    optima = [case.log_ks(case.moments(x)[None], which).item() for which in (True, False)]
    return Trained(case.name, n, restricted, case.log_k_of(model), *optima)


def _single(x: Any) -> Any:
    """In the precision of the networks."""
    if isinstance(x, dict):
        return {name: _single(part) for name, part in x.items()}
    return x.to(torch.get_default_dtype()) if x.is_floating_point() else x


def turned(n: int, steps: int) -> tuple[float, float]:
    """A diagonal guide of two latents where the model may turn: mean log p(x) of the trained pair, and the closed-form maximum, nats."""
    pyro.set_rng_seed(3)
    generator = torch.Generator().manual_seed(7)
    z, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (2, 4))
    x = z @ torch.tensor([[2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 0.0, 1.0]], dtype=torch.float64) + noise
    model = descended((models.LinearGaussian(4, 2), guides.DiagonalNormal(Linear(4, 2, 2), 2)), _single(x), steps)
    best = models.LinearGaussian.maximum_likelihood(x, 2)
    return copy.deepcopy(model).double().log_evidence(x).mean().item(), best.log_evidence(x).mean().item()


def linear_part(sizes: Sequence[int], effort: Effort, file: Path) -> tuple[list[Errors], list[Trained], tuple[float, float]]:
    """All of (b). What was found there with the same effort is not sought again."""
    asked = {"sizes": list(sizes), "replicates": effort.replicates, "steps": effort.steps, "trained_sizes": list(effort.trained_sizes)}
    if not file.exists() or json.loads(file.read_text())["asked"] != asked:
        generator = torch.Generator().manual_seed(0)
        errors = [e for case in CASES for n in sizes for e in errors_of(case, n, effort.replicates, generator)]
        most = max(effort.trained_sizes)
        trained = [
            trained_of(case, n, restricted, effort.steps)
            for case in CASES
            for n in effort.trained_sizes
            for restricted in ((True, False) if n == most else (True,))
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"errors": [asdict(e) for e in errors], "trained": [asdict(t) for t in trained], "turned": turned(most, effort.steps)}
        file.write_text(json.dumps({"asked": asked, **kept}))
    found = json.loads(file.read_text())
    return [Errors(**e) for e in found["errors"]], [Trained(**t) for t in found["trained"]], tuple(found["turned"])


def slope_of(errors: Sequence[Errors]) -> float:
    """d log rms / d log N by least squares."""
    log_n, log_rms = (torch.tensor([math.log(value) for value in values]) for values in ([e.n for e in errors], [e.rms for e in errors]))
    log_n = log_n - log_n.mean()
    return ((log_n * log_rms).sum() / log_n.square().sum()).item()


# What is printed, written and drawn.


def table(rows: Sequence[Row], errors: Sequence[Errors], trained: Sequence[Trained]) -> str:
    lines = [
        f"{'guide':<24}{'how':<9}{'train gap ± data ± MC':>26}{'test gap ± data ± MC':>26}{'test ELBO':>11}{'log p(x) ± data ± MC':>26}"
        f"{'trusted':>9}{'evaluations':>13}{'a step':>8}{'s/epoch':>9}{'parameters':>12}"
    ]
    lines += [
        f"{r.name:<24}{r.how:<9}{r.train_gap:>10.3f} ± {r.train_gap_se:.3f} ± {r.train_gap_mc_se:.4f}"
        f"{r.test_gap:>10.3f} ± {r.test_gap_se:.3f} ± {r.test_gap_mc_se:.4f}{r.test_elbo:>11.2f}"
        f"{r.test_log_p:>9.2f} ± {r.test_log_p_se:.2f} ± {r.test_log_p_mc_se:.4f}{r.trusted:>9.3f}"
        f"{r.evaluations:>13}{r.step_evaluations:>8}{r.seconds:>9.3f}{r.parameters:>12}"
        for r in rows
    ]
    lines += [
        "",
        f"{'error of log k':<14}{'N':>8}{'maximum likelihood, rms':>28}{'restricted, rms':>20}{'restricted, mean':>22}{'limit':>10}",
    ]
    for likely, best in zip(errors[::2], errors[1::2], strict=True):
        lines.append(
            f"{best.case:<14}{best.n:>8}{likely.rms:>19.4f} ± {likely.rms_se:.4f}{best.rms:>11.4f} ± {best.rms_se:.4f}"
            f"{best.mean:>+13.4f} ± {best.mean_se:.4f}{best.limit:>+10.5f}"
        )
    lines += ["", f"{'trained':<14}{'N':>8}{'guide':>14}{'log k':>9}{'restricted optimum':>21}{'maximum likelihood':>21}"]
    lines += [
        f"{t.case:<14}{t.n:>8}{'restricted' if t.restricted else 'free':>14}{t.log_k:>9.4f}{t.optimum:>21.4f}{t.maximum_likelihood:>21.4f}"
        for t in trained
    ]
    return "\n".join(lines)


def claims(
    frozen: Sequence[tuple[Row, Tensor]],
    together: Sequence[tuple[Row, Tensor]],
    widths: Sequence[int],
    errors: Sequence[Errors],
    trained: Sequence[Trained],
    turn: tuple[float, float],
) -> Claims:
    """Claim -> whether it was seen, and the numbers. A guide that was not tried has no claim."""
    by = {(row.name, row.how): (row, gap) for row, gap in frozen}
    diagonals = [by[f"diagonal {width}", "encoder"][0] for width in widths]
    train, test = [row.train_gap for row in diagonals], [row.test_gap for row in diagonals]
    widest, widest_gap = by[f"diagonal {widths[-1]}", "encoder"]
    full, full_gap = by["full rank", "encoder"]
    mean_field, _ = by["mean field, 160 steps", "behind"]
    refined, _ = by["full rank, 20 steps", "behind"]
    difference, se = mean_and_se(full_gap - widest_gap)
    found = {
        "the gap on training data falls with the encoder's width": (
            all(one > other for one, other in itertools.pairwise(train)),
            ", ".join(f"{row.train_gap:.3f} ± {row.train_gap_se:.3f} at {w}" for row, w in zip(diagonals, widths, strict=True)),
        ),
        "and by less on test data": (
            test[0] - test[-1] < train[0] - train[-1],
            f"from {widths[0]} to {widths[-1]} by {train[0] - train[-1]:.3f} of training, {test[0] - test[-1]:.3f} nats of test data",
        ),
        "a full-rank guide leaves less than a diagonal one, but more than half of it": (
            difference < -2 * se and full.test_gap > widest.test_gap / 2,
            f"{full.test_gap:.3f} and {widest.test_gap:.3f}, paired {difference:+.3f} ± {se:.3f} nats, test data",
        ),
    }
    if ("semi-amortized", "through") in by:
        through, through_gap = by["semi-amortized", "through"]
        behind, behind_gap = by["5 steps", "behind"]
        closable = widest.test_gap - mean_field.test_gap
        paired, paired_se = mean_and_se(behind_gap - through_gap)
        found["five steps trained through close more than half of the amortization gap"] = (
            widest.test_gap - through.test_gap > closable / 2,
            f"{widest.test_gap - through.test_gap:.3f} of {closable:.3f} nats, test data",
        )
        found["behind a trained guide the same steps close less"] = (
            paired > 2 * paired_se,
            f"{widest.test_gap - behind.test_gap:.3f} of {closable:.3f} nats; paired difference {paired:+.3f} ± {paired_se:.3f}",
        )
    found["full rank refined by 20 steps leaves less than 0.1 nats on test data"] = (
        refined.test_gap < 0.1,
        f"{refined.test_gap:.3f} ± {refined.test_gap_se:.3f} ± {refined.test_gap_mc_se:.4f}; of training data {refined.train_gap:.3f}",
    )
    if len(together) > 1:
        (narrow, narrow_p), (wide, wide_p) = together[:2]
        paired, paired_se = mean_and_se(wide_p - narrow_p)
        found[f"a decoder trained with an encoder of {NARROW} units has the lower test log p(x)"] = (
            paired > 2 * paired_se,
            f"{narrow.test_log_p:.2f} ± {narrow.test_log_p_se:.2f} and {wide.test_log_p:.2f} ± {wide.test_log_p_se:.2f}, "
            f"paired {paired:+.3f} ± {paired_se:.3f} nats",
        )
    slopes = {case.name: slope_of([e for e in errors if e.case == case.name and not e.restricted]) for case in CASES}
    last = [e for e in errors if e.restricted and e.n == errors[-1].n]
    found["the error of maximum likelihood falls as 1 / sqrt(N)"] = (
        all(abs(slope + 0.5) < 0.05 for slope in slopes.values()),
        ", ".join(f"slope {slope:.3f} ({name})" for name, slope in slopes.items()),
    )
    found["that of the restricted optimum does not"] = (
        all(abs(e.rms / abs(e.limit) - 1) < 0.05 for e in last),
        ", ".join(f"{e.mean:+.4f} ± {e.mean_se:.4f}, limit {e.limit:+.4f} ({e.case})" for e in last) + f", N = {last[0].n:,}",
    )
    most = max(t.n for t in trained)
    held = [t for t in trained if t.n == most]
    found["trained pairs end at the optimum of their guide"] = (
        all(abs(t.log_k - t.target) < TOLERANCE for t in trained)
        and all(abs(t.log_k - t.maximum_likelihood) > TOLERANCE for t in trained if t.restricted),
        ", ".join(
            f"{t.case} {'restricted' if t.restricted else 'free'} {t.log_k - t.target:+.4f}"
            + (f" ({t.log_k - t.maximum_likelihood:+.3f} from maximum likelihood)" if t.restricted else "")
            for t in held
        )
        + f", N = {most:,}",
    )
    found["a diagonal guide leaves no bias where the model may turn"] = (
        turn[1] - turn[0] < 0.01,
        f"log p(x) {turn[0]:.4f}, of the closed-form maximum {turn[1]:.4f} nats",
    )
    return found


def figure(frozen: Sequence[Row], widths: Sequence[int], errors: Sequence[Errors], trained: Sequence[Trained]) -> Figure:
    with matplotlib.rc_context(plots.STYLE | {"lines.markersize": 3.5}):
        drawn = Figure(figsize=(2 * plots.WIDTH, 5.2), layout="constrained")
        grid = drawn.add_gridspec(2, 6, height_ratios=(1.25, 1))
        bars, costs = drawn.add_subplot(grid[0, :3]), drawn.add_subplot(grid[0, 3:])
        rows = sorted(frozen, key=lambda row: -row.test_gap)
        for shift, part, color in ((-0.2, "test", plots.BLUE), (0.2, "train", plots.ORANGE)):
            values = [getattr(row, f"{part}_gap") for row in rows]
            bars.barh(
                [i + shift for i in range(len(rows))], values, 0.38, color=color, label="training data" if part == "train" else "test data",
                xerr=[2 * getattr(row, f"{part}_gap_se") for row in rows], error_kw={"elinewidth": 0.7},
            )  # fmt: skip
        bars.set_yticks(range(len(rows)), [("+ " if row.how == "behind" else "") + row.name for row in rows], fontsize=6.5)
        bars.set_xlabel("inference gap (nats)")
        bars.legend(loc="lower right")
        bars.invert_yaxis()
        styles = {"encoder": (plots.BLUE, "o", "encoder"), "through": (plots.GREEN, "^", "steps trained through"),
                  "behind": (plots.VERMILION, "s", "behind diagonal")}  # fmt: skip
        for how, (color, marker, label) in styles.items():
            some = [row for row in frozen if row.how == how and not (how == "encoder" and row.name.startswith("diagonal"))]
            costs.errorbar(
                [max(row.evaluations, 1) for row in some], [row.test_gap for row in some], [2 * row.test_gap_se for row in some],
                color=color, marker=marker, linestyle="", elinewidth=0.7, label=label if some else None,
            )  # fmt: skip
        wide = [row for row in frozen if row.how == "encoder" and row.name.startswith("diagonal")]
        costs.plot([1] * len(wide), [row.test_gap for row in wide], color=plots.BLACK, marker="_", markersize=9, linestyle="")
        for row, width in zip(wide, widths, strict=True):
            costs.annotate(f"diagonal {width}", (1, row.test_gap), (7, -2), textcoords="offset points", fontsize=6.5)
        for row in frozen:
            if row.how != "encoder":
                few = row.evaluations < 500
                shift = {"5 steps": -6, "semi-amortized": 6, "full rank, 160 steps": -7}.get(row.name, 0)
                where = {"textcoords": "offset points", "fontsize": 6.5, "ha": "left" if few else "right", "va": "center"}
                costs.annotate(row.name, (row.evaluations, row.test_gap), (5 if few else -5, shift), **where)
        costs.set_xlim(0.6, 9000)
        costs.set_xscale("log")
        costs.set_yscale("log")
        costs.set_ylim(bottom=min(row.test_gap for row in frozen) / 2.5)
        costs.set_xlabel("decoder evaluations that make a posterior")
        costs.set_ylabel("inference gap on test data (nats)")
        costs.legend(loc="lower left")
        for i, case in enumerate(CASES):
            axes = drawn.add_subplot(grid[1, 2 * i : 2 * i + 2])
            for restricted, color, label in ((False, plots.BLACK, "maximum likelihood"), (True, plots.VERMILION, "restricted guide")):
                some_errors = [e for e in errors if e.case == case.name and e.restricted == restricted]
                axes.errorbar([e.n for e in some_errors], [e.rms for e in some_errors], [2 * e.rms_se for e in some_errors], color=color,
                              marker="o", elinewidth=0.7, label=label)  # fmt: skip
                done = [t for t in trained if t.case == case.name and t.restricted == restricted]
                axes.plot(
                    [t.n for t in done],
                    [abs(t.log_k - case.log_k) for t in done],
                    color=color,
                    marker="x",
                    markersize=7,
                    linestyle="",
                    label="trained" if restricted else None,
                )
                if restricted:
                    axes.axhline(abs(some_errors[0].limit), color=color, linewidth=0.8, linestyle="--")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(case.name)
            axes.set_xlabel("N")
            if i == 0:
                axes.set_ylabel("error of log k (rms)")
                axes.legend(loc="lower left", fontsize=6.5)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    options = experiment.options(__doc__, "price-of-amortization", arguments)
    effort = QUICK if options.quick else FULL
    data = ppvae.data.load("digits", binarize="threshold")
    start = time.monotonic()
    sizes = SIZES[:3] if options.quick else SIZES
    errors, trained, turn = linear_part(sizes, effort, options.out / "linear.json")
    print(f"linear Gaussian part: {time.monotonic() - start:.0f} s", flush=True)
    frozen, _ = frozen_decoder(data, effort, options.out)
    together = joint(data, effort, options.out)
    rows = [row for row, _ in [*frozen, *together]]
    record = {
        "effort": asdict(effort),
        "rows": [asdict(row) for row in rows],
        "errors": [asdict(e) for e in errors],
        "trained": [asdict(t) for t in trained],
        "turned": turn,
        "by_visible": {k: [v.tolist() for v in Blind.optimum(Blind().limit_moments(), k)] for k in (1, 2, 3, 4)},
    }
    experiment.finish(
        options.out,
        "price-of-amortization",
        table(rows, errors, trained),
        claims(frozen, together, effort.widths, errors, trained, turn),
        figure([row for row, _ in frozen], effort.widths, errors, trained),
        record,
    )


if __name__ == "__main__":
    main()
