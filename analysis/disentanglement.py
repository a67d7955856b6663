"""Whether each factor that made the data has a code of its own: MIG, DCI, SAP and the FactorVAE score, on arrays of codes and factors.

All are blind to the order, the sign and the scale of codes. None is meant for codes that a rotation would have to sort out first.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import as_lists
from ppvae.analysis.latents.codes import Codes
from ppvae.data import Data
from ppvae.errors import ArgumentError, DataError, PpvaeError, check_count

Array = np.ndarray[Any, Any]
BINS = 20  # of codes and of factors that take more values, as in Locatello et al.
FOLDS = 10  # left out in turn for a standard error
TREES = 20
HELD_OUT = 0.25
NEEDS = "needed scikit-learn, which is not installed"
LEAST_DATA = 20


@dataclass(frozen=True, eq=False)
class Gap:
    """MIG or SAP: by how much the best code for a factor is ahead of the second best, averaged over factors.

    Attributes:
        value: The mean over factors, in [0, 1].
        se: Its standard error over the data, leaving out each tenth of the rows in turn.
        by_factor: (F,).
        table: (D, F), what was compared: MIG, mutual information over the entropy of the factor; SAP, explained variance.
        names: F names.
        measure: ``MIG`` or ``SAP``.
    """

    value: float
    se: float
    by_factor: Tensor
    table: Tensor
    names: tuple[str, ...]
    measure: str

    def __str__(self) -> str:
        best = ", ".join(f"{name} {gap:.2f}" for name, gap in zip(self.names, self.by_factor.tolist(), strict=True))
        return f"{self.measure} {self.value:.3f} ± {self.se:.3f} (data): {best}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"names": list(self.names)}


@dataclass(frozen=True, eq=False)
class DCI:
    """Disentanglement, completeness and informativeness.

    Attributes:
        disentanglement: In [0, 1]: whether a code matters for one factor alone; codes weigh as much as they matter.
        completeness: In [0, 1]: whether one code alone matters for a factor; mean over factors.
        informativeness: Mean over factors of what trees predict of held-out rows, beyond the most frequent class or the mean: share of its
            errors, or of the variance. 1 is all; below 0 is worse than that.
        by_factor: (F,), informativeness.
        importance: (D, F), columns sum to 1.
        names: F names.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    by_factor: Tensor
    importance: Tensor
    names: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"DCI: disentanglement {self.disentanglement:.3f}, completeness {self.completeness:.3f}, "
            f"informativeness {self.informativeness:.3f} (held out)"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"names": list(self.names)}


@dataclass(frozen=True, eq=False)
class FactorVAEScore:
    """The share of held-out votes that a majority classifier of the least varying code tells right.

    Attributes:
        value: In [0, 1].
        se: Binomial standard error over the held-out votes.
        chance: What codes without any relation to the factors score: 1 / F.
        votes: (D, F), of the votes that the classifier was made from.
        names: F names.
    """

    value: float
    se: float
    chance: float
    votes: Tensor
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"FactorVAE score {self.value:.3f} ± {self.se:.3f} (votes; chance {self.chance:.3f})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return as_lists(self) | {"names": list(self.names)}


@dataclass(frozen=True, eq=False)
class Disentanglement:
    """All four.

    Attributes:
        mig, sap, dci, factor_vae: Each as its own function gives it.
        num_data: N.
    """

    mig: Gap
    sap: Gap
    dci: DCI
    factor_vae: FactorVAEScore
    num_data: int

    def __str__(self) -> str:
        return f"{self.mig}\n{self.sap}\n{self.dci}\n{self.factor_vae}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        parts = {name: getattr(self, name).as_dict() for name in ("mig", "sap", "dci", "factor_vae")}
        return {**parts, "num_data": self.num_data}


def disentanglement(
    codes: Codes | Tensor | Array,
    factors: Data | Tensor | Array,
    *,
    names: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    seed: int = 0,
) -> Disentanglement:
    """MIG, SAP, DCI and the FactorVAE score.

    Args:
        codes: (N, D), or what ``latents.codes`` gave: its means.
        factors: (N, F) numbers, or a Data with ``factors``.
        names: F names; a Data has its own.
        categorical: For SAP: factors whose numbers only name classes.
        seed: Rules the trees of DCI and the votes of FactorVAE.

    Raises:
        DataError: Arrays that do not fit together, a factor that never varies, or values that are not finite.
        PpvaeError: scikit-learn, which DCI takes its trees from, is not installed (extra ``metrics``).

    References:
        Locatello et al. (2019), Challenging common assumptions in the unsupervised learning of disentangled representations, app. C.
    """
    return Disentanglement(
        mig=mutual_information_gap(codes, factors, names=names),
        sap=separated_attribute_predictability(codes, factors, names=names, categorical=categorical),
        dci=dci(codes, factors, names=names, seed=seed),
        factor_vae=factor_vae_score(codes, factors, names=names, seed=seed),
        num_data=len(_read(codes, factors, names)[0]),
    )


def mutual_information_gap(
    codes: Codes | Tensor | Array, factors: Data | Tensor | Array, *, names: Sequence[str] | None = None, bins: int = BINS
) -> Gap:
    """MIG = mean over factors of (I(z_best; v) - I(z_second; v)) / H(v).

    Codes are cut into ``bins`` of equal width, factors of more values too. Of N rows mutual information comes out too large by about
    (bins - 1)(values - 1) / (2 N) nats, for related codes and unrelated ones.

    Raises:
        DataError: As ``disentanglement``.

    References:
        Chen, Li, Grosse, Duvenaud (2018), Isolating sources of disentanglement in variational autoencoders, sec. 4.1.
    """
    check_count("bins", bins, 2)
    z, v, told = _read(codes, factors, names)
    z_bins, v_bins = _binned(z, bins), _binned(v, bins)

    def table(rows: Array) -> Array:
        return np.array([[_information(z_bins[rows, d], v_bins[rows, f]) for f in range(v.shape[1])] for d in range(z.shape[1])])

    return _gap(table, len(z), told, "MIG")


def separated_attribute_predictability(
    codes: Codes | Tensor | Array, factors: Data | Tensor | Array, *, names: Sequence[str] | None = None, categorical: Sequence[str] = ()
) -> Gap:
    """SAP = mean over factors of R^2(z_best, v) - R^2(z_second, v), R^2 the squared correlation of one code and the factor.

    Args:
        codes, factors, names: As of ``disentanglement``.
        categorical: Factors whose numbers only name classes: R^2 is then the share of the code's variance that lies between classes, which
            for two classes is the squared correlation.

    Raises:
        DataError: As ``disentanglement``.
        ArgumentError: ``categorical`` names something that is no factor.

    References:
        Kumar, Sattigeri, Balakrishnan (2018), Variational inference of disentangled latent concepts from unlabeled observations, sec. 3.
    """
    z, v, told = _read(codes, factors, names)
    unknown = next((name for name in categorical if name not in told), None)
    if unknown is not None:
        raise ArgumentError(f"categorical names factors among {', '.join(told)}, got {unknown!r}")

    def table(rows: Array) -> Array:
        found = _squared_correlation(z[rows], v[rows])
        for name in categorical:
            found[:, told.index(name)] = _between_classes(z[rows], v[rows, told.index(name)])
        return found

    return _gap(table, len(z), told, "SAP")


def dci(codes: Codes | Tensor | Array, factors: Data | Tensor | Array, *, names: Sequence[str] | None = None, seed: int = 0) -> DCI:
    """DCI from the importance of codes in random forests that predict each factor; a quarter of the rows is held out.

    Factors of at most 20 values are classified, others regressed on. With importance R, (D, F): disentanglement of code d is
    1 - H(R_d. / sum) / log F, completeness of factor f is 1 - H(R_.f) / log D.

    Raises:
        DataError: As ``disentanglement``.
        PpvaeError: scikit-learn is not installed (extra ``metrics``).

    References:
        Eastwood, Williams (2018), A framework for the quantitative evaluation of disentangled representations, sec. 2.
    """
    _need_sklearn()
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    z, v, told = _read(codes, factors, names)
    order = np.random.RandomState(noise.derived_seed(seed, "dci") % (1 << 32)).permutation(len(z))
    held, rest = np.split(order, [max(1, round(HELD_OUT * len(z)))])
    importance, scores = np.zeros((z.shape[1], v.shape[1])), np.zeros(v.shape[1])
    for f in range(v.shape[1]):
        values, classes = np.unique(v[:, f], return_inverse=True)
        discrete = len(values) <= BINS
        # Every code is looked at in every split: of codes drawn at random the wrong ones would gain importance.
        kind = RandomForestClassifier if discrete else RandomForestRegressor
        forest = kind(TREES, max_features=None, random_state=noise.derived_seed(seed, "trees", f) % (1 << 32))
        target = classes if discrete else v[:, f]
        forest.fit(z[rest], target[rest])
        importance[:, f] = forest.feature_importances_
        scores[f] = _beyond_guessing(forest.predict(z[held]), target[held], target[rest], discrete)
    of_code = importance.sum(1)
    weight = of_code / max(of_code.sum(), 1e-300)
    separate = 1 - _entropy(importance / np.maximum(of_code, 1e-300)[:, None], 1) / max(math.log(v.shape[1]), 1e-300)
    complete = 1 - _entropy(importance / np.maximum(importance.sum(0), 1e-300), 0) / max(math.log(z.shape[1]), 1e-300)
    return DCI(
        disentanglement=float((weight * separate).sum()),
        completeness=float(complete.mean()),
        informativeness=float(scores.mean()),
        by_factor=torch.from_numpy(scores),
        importance=torch.from_numpy(importance),
        names=told,
    )


def factor_vae_score(
    codes: Codes | Tensor | Array,
    factors: Data | Tensor | Array,
    *,
    names: Sequence[str] | None = None,
    num_votes: int = 1600,
    votes_of: int = 64,
    seed: int = 0,
) -> FactorVAEScore:
    """Hold one factor fixed, and see which code varies least: whether a majority classifier tells the factor from that code.

    Each vote takes a factor, one of its values (one of 20 equal parts, where it has more), and rows of that value; variances are relative
    to those over all rows. The first half of the votes makes the classifier, the second half is scored. Constant codes are left out.

    Args:
        codes, factors, names: As of ``disentanglement``.
        num_votes: In all.
        votes_of: Rows a vote, drawn with replacement.
        seed: Rules the draws.

    Raises:
        DataError: As ``disentanglement``; or every code is constant.

    References:
        Kim, Mnih (2018), Disentangling by factorising, sec. 3.
    """
    check_count("num_votes", num_votes, 2)
    check_count("votes_of", votes_of, 2)
    z, v, told = _read(codes, factors, names)
    spread = z.std(0)
    alive = spread > 1e-9 * spread.max(initial=0)
    if not alive.any():
        raise DataError("needed a code that varies with the data, and all are constant", where="codes")
    scaled = z[:, alive] / spread[alive]
    source = np.random.RandomState(noise.derived_seed(seed, "votes") % (1 << 32))
    groups = [[np.flatnonzero(column == value) for value in np.unique(column)] for column in _quantile_binned(v).T]
    groups = [[rows for rows in of_factor if len(rows) > 1] for of_factor in groups]
    alone = [name for name, of_factor in zip(told, groups, strict=True) if not of_factor]
    if alone:
        raise DataError(
            f"needed rows that share a value of each factor, and no two share one of '{alone[0]}'",
            where="factors",
            mend="round the factor, or leave it out",
        )
    asked = source.randint(v.shape[1], size=num_votes)
    least = np.empty(num_votes, dtype=int)
    for vote, f in enumerate(asked):
        rows = groups[f][source.randint(len(groups[f]))]
        least[vote] = scaled[source.choice(rows, votes_of)].var(0).argmin()
    half = num_votes // 2
    counts = np.zeros((scaled.shape[1], v.shape[1]))
    np.add.at(counts, (least[:half], asked[:half]), 1)
    right = (counts.argmax(1)[least[half:]] == asked[half:]).mean()
    votes = np.zeros((z.shape[1], v.shape[1]))
    votes[alive] = counts
    se = math.sqrt(right * (1 - right) / (num_votes - half))
    return FactorVAEScore(float(right), se, 1 / v.shape[1], torch.from_numpy(votes), told)


def _read(
    codes: Codes | Tensor | Array, factors: Data | Tensor | Array, names: Sequence[str] | None
) -> tuple[Array, Array, tuple[str, ...]]:
    """(N, D) and (N, F), float64, and F names."""
    if isinstance(factors, Data):
        if factors.factors is None:
            raise DataError(
                "needed data whose factors are known", where=factors.name, mend=["data.with_factors(values, names)", "an array (N, F)"]
            )
        names, factors = factors.factor_names if names is None else names, factors.factors
    z, v = (
        np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part, dtype=float)
        for part in (codes.mean if isinstance(codes, Codes) else codes, factors)
    )
    if z.ndim != 2 or v.ndim != 2 or len(z) != len(v) or len(z) < LEAST_DATA:
        raise DataError(
            f"needed codes (N, D) and factors (N, F), N at least {LEAST_DATA}, and arrays of shape {z.shape} and {v.shape} came",
            where="codes, factors",
        )
    if not (np.isfinite(z).all() and np.isfinite(v).all()):
        raise DataError("needed finite numbers, and NaN or infinite values came", where="codes, factors")
    told = tuple(str(f) for f in range(v.shape[1])) if names is None else tuple(names)
    if len(told) != v.shape[1]:
        raise DataError(f"needed {v.shape[1]} names of factors, and {len(told)} came", where="names")
    still = [name for name, column in zip(told, v.T, strict=True) if (column == column[0]).all()]
    if still:
        do = "does" if len(still) == 1 else "do"
        raise DataError(f"needed factors that vary, and {', '.join(still)} {do} not", where="factors", mend="leave what is constant out")
    return z, v, told


def _binned(values: Array, bins: int) -> Array:
    """Columns as whole numbers: their values, where these are few, or bins of equal width."""
    columns = []
    for column in values.T:
        distinct, number = np.unique(column, return_inverse=True)
        if len(distinct) > bins:
            edges = np.linspace(column.min(), column.max(), bins + 1)[1:-1]
            number = np.digitize(column, edges)
        columns.append(number)
    return np.stack(columns, 1)


def _quantile_binned(values: Array) -> Array:
    """Columns as whole numbers: their values, where these are few, or twenty parts of equally many rows."""
    columns = []
    for column in values.T:
        distinct, number = np.unique(column, return_inverse=True)
        if len(distinct) > BINS:
            number = np.searchsorted(np.quantile(column, np.arange(1, BINS) / BINS), column)
        columns.append(number)
    return np.stack(columns, 1)


def _information(a: Array, b: Array) -> float:
    """I(a; b) / H(b) of whole numbers."""
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    joint = counts / len(a)
    of_b = _entropy(joint.sum(0), 0)
    found = _entropy(joint.sum(1), 0) + of_b - _entropy(joint.ravel(), 0)
    return float(found / of_b) if of_b > 0 else 0.0


def _entropy(p: Array, axis: int) -> Any:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis)


def _squared_correlation(z: Array, v: Array) -> Array:
    z, v = z - z.mean(0), v - v.mean(0)
    found: Array = np.square(z.T @ v) / np.maximum(np.outer(np.square(z).sum(0), np.square(v).sum(0)), 1e-300)
    return found


def _between_classes(z: Array, v: Array) -> Array:
    """Share of each code's variance that lies between the classes of a factor, (D,)."""
    centred = z - z.mean(0)
    between = sum((v == value).sum() * np.square(centred[v == value].mean(0)) for value in np.unique(v))
    found: Array = between / np.maximum(np.square(centred).sum(0), 1e-300)
    return found


def _gap(table: Any, n: int, names: tuple[str, ...], measure: str) -> Gap:
    """The gap of the best and the second best row of a table of rows of the data, with its jackknife error."""
    whole = table(np.arange(n))
    gaps = _ahead(whole)
    folds = np.random.RandomState(0).permutation(n) % FOLDS  # not in order: rows of a grid come in periods
    left = np.array([_ahead(table(np.flatnonzero(folds != fold))).mean() for fold in range(FOLDS)])
    se = math.sqrt((FOLDS - 1) / FOLDS * float(np.square(left - left.mean()).sum()))
    return Gap(float(gaps.mean()), se, torch.from_numpy(gaps), torch.from_numpy(whole), names, measure)


def _ahead(table: Array) -> Array:
    ranked = np.sort(np.concatenate([np.zeros((1, table.shape[1])), table]), 0)  # a lone code is ahead of none at all
    gaps: Array = ranked[-1] - ranked[-2]
    return gaps


def _beyond_guessing(predicted: Array, truth: Array, known: Array, discrete: bool) -> float:
    """1 - error / error of the best constant."""
    if discrete:
        usual = np.bincount(known).argmax()
        error, guessing = (predicted != truth).mean(), (truth != usual).mean()
    else:
        error, guessing = np.square(predicted - truth).mean(), np.square(truth - known.mean()).mean()
    return float(1 - error / guessing) if guessing > 0 else float(error == 0)


def _need_sklearn() -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise PpvaeError(NEEDS, where="analysis", mend="pip install 'ppvae[metrics]'")
