"""What simple methods find in the codes of a guide: a linear classifier, neighbours and clusters, beside PCA and the data themselves."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ppvae import noise
from ppvae.analysis.estimate import Provenance, label, provenance
from ppvae.analysis.latents.space import LatentSpace
from ppvae.data import Data
from ppvae.errors import ArgumentError, DataError, PpvaeError, check_count
from ppvae.modules import Program

Array = np.ndarray[Any, Any]
STARTS = 5  # of k-means
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse penalties that the linear classifier chooses from
CHOSEN_ON = 0.2  # of the training rows
ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """What was found in one representation of the data.

    Attributes:
        linear: Share of test data that a linear classifier tells right (multinomial logistic regression on standardised features, its
            penalty chosen on a fifth of the training rows).
        neighbours: The same of a vote of the nearest training data, Euclidean on the features as they stand.
        linear_se, neighbours_se: Binomial standard errors over the test data.
        purity: Share of test data whose cluster, k-means with as many clusters as labels, is matched one to one with their label.
        purity_se: Its binomial standard error, the clusters held fixed.
        information: Normalised mutual information of clusters and labels, in [0, 1].
        dim: Features.
    """

    linear: float
    linear_se: float
    neighbours: float
    neighbours_se: float
    purity: float
    purity_se: float
    information: float
    dim: int


@dataclass(frozen=True)
class Probes:
    """Codes beside as many principal components, and the data themselves.

    Attributes:
        codes: Of the guide, E_q[z | x].
        pca: Of the first principal components of the training data, as many as codes, or as there are.
        data: Of what the model observes.
        most_frequent: Share of the test data with the most frequent training label: what guessing scores.
        num_neighbours: k.
        num_train, num_test: Data.
        source: Where the test data came from.
    """

    codes: Probe
    pca: Probe
    data: Probe
    most_frequent: float
    num_neighbours: int
    num_train: int
    num_test: int
    source: Provenance

    def __str__(self) -> str:
        lines = [f"{'':8}{'dim':>6}{'linear':>16}{f'{self.num_neighbours} neighbours':>18}{'clusters':>18}{'information':>13}"]
        for name, one in (("codes", self.codes), ("PCA", self.pca), ("data", self.data)):
            lines.append(
                f"{name:8}{one.dim:>6}{one.linear:>8.3f} ± {one.linear_se:.3f}{one.neighbours:>10.3f} ± {one.neighbours_se:.3f}"
                f"{one.purity:>10.3f} ± {one.purity_se:.3f}{one.information:>13.3f}"
            )
        return "\n".join(
            [*lines, f"guessing {self.most_frequent:.3f} (train {self.num_train}, test {self.num_test}; {label(self.source)})"]
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        parts = {name: vars(getattr(self, name)) for name in ("codes", "pca", "data")}
        numbers = {name: getattr(self, name) for name in ("most_frequent", "num_neighbours", "num_train", "num_test")}
        return {**parts, **numbers, "source": self.source.as_dict()}


def probes(
    model: Program,
    guide: Program,
    train: Data,
    test: Data,
    *,
    site: str | None = None,
    observed: str | None = None,
    num_neighbours: int = 10,
    seed: int = 0,
) -> Probes:
    """Probe the codes of a guide, principal components of the data, and the data.

    Args:
        model, guide: Programs of one argument, the batch.
        train, test: Data with labels: on the first the methods learn, on the second they are scored.
        site: Which latent site, where there are several.
        observed: Which observed site, where there are several.
        num_neighbours: k.
        seed: Rules the starts of k-means, and draws where moments have no closed form.

    Raises:
        DataError: Data without labels, or with one label alone.
        PpvaeError: scikit-learn is not installed (extra ``metrics``).
        ShapeError, ProgramError: The pair breaks the contract.
    """
    labels = [_labels(part) for part in (train, test)]
    spaces = [LatentSpace(model, guide, part, site=site, observed=observed, seed=seed) for part in (train, test)]
    seen = [space.data().reshape(len(space.data()), -1).numpy() for space in spaces]
    codes = [space.codes()[0].numpy() for space in spaces]
    components = principal_components(seen[0], codes[0].shape[1])
    reduced = [(part - seen[0].mean(0)) @ components.T for part in seen]
    found = [probe(*pair, *labels, num_neighbours=num_neighbours, seed=seed) for pair in (codes, reduced, seen)]
    usual = np.bincount(labels[0] - labels[0].min()).argmax() + labels[0].min()
    source = provenance(test, spaces[1].pair, seed)
    of_codes, of_pca, of_data = found
    guessed = float((labels[1] == usual).mean())
    return Probes(of_codes, of_pca, of_data, guessed, num_neighbours, len(train), len(test), source)


def probe(
    train: Tensor | Array,
    test: Tensor | Array,
    train_labels: Tensor | Array,
    test_labels: Tensor | Array,
    *,
    num_neighbours: int = 10,
    seed: int = 0,
) -> Probe:
    """Probe any representation of training and test data, (N, D) and (M, D), with labels (N,) and (M,).

    Raises:
        DataError: Arrays that do not fit together, values that are not finite, or one label alone.
        ArgumentError: More neighbours than training data.
        PpvaeError: scikit-learn is not installed (extra ``metrics``).
    """
    if importlib.util.find_spec("sklearn") is None:
        raise PpvaeError("needed scikit-learn, which is not installed", where="analysis.probes", mend="pip install 'ppvae[metrics]'")
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.neighbors import KNeighborsClassifier

    x, y, a, b = (
        np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part) for part in (train, test, train_labels, test_labels)
    )
    _check(x, y, a, b)
    check_count("num_neighbours", num_neighbours)
    if num_neighbours > len(x):
        raise ArgumentError(f"num_neighbours is at most the {len(x):,} training data, got {num_neighbours:,}")
    draw = noise.derived_seed(seed, "probe") % (1 << 32)
    linear = float((_linear(x, a, draw).predict(_standardised(x, y)) == b).mean())
    neighbours = float((KNeighborsClassifier(num_neighbours).fit(x, a).predict(y) == b).mean())
    clusters = KMeans(len(np.unique(a)), n_init=STARTS, random_state=draw).fit(x)
    purity = _matched(clusters.labels_, a, clusters.predict(y), b)
    information = float(normalized_mutual_info_score(b, clusters.predict(y)))
    n = len(y)
    return Probe(linear, _se(linear, n), neighbours, _se(neighbours, n), purity, _se(purity, n), information, x.shape[1])


def principal_components(x: Array, dim: int) -> Array:
    """The first directions of most variance of x, (N, D) -> (min(dim, N, D), D), orthonormal rows."""
    _, _, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found: Array = directions[:dim]
    return found


def _standardised(x: Array, y: Array) -> Array:
    scale = x.std(0)
    found: Array = (y - x.mean(0)) / np.where(scale > 0, scale, 1)
    return found


def _linear(x: Array, labels: Array, seed: int) -> Any:
    """Logistic regression whose penalty does best on a part of the rows, fitted to all of them."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    order = np.random.RandomState(seed).permutation(len(x))
    held, rest = np.split(order, [max(1, round(CHOSEN_ON * len(x)))])
    features = _standardised(x, x)

    def fitted(strength: float, rows: Array) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes have no finite optimum worth waiting for
            return LogisticRegression(C=strength, max_iter=ITERATIONS).fit(features[rows], labels[rows])

    if len(np.unique(labels[rest])) < 2:
        return fitted(1.0, order)
    scores = [float((fitted(strength, rest).predict(features[held]) == labels[held]).mean()) for strength in STRENGTHS]
    return fitted(STRENGTHS[int(np.argmax(scores))], order)


def _matched(clusters: Array, labels: Array, test_clusters: Array, test_labels: Array) -> float:
    """Clusters are matched with labels on the training data, one to one, and scored on the test data."""
    from scipy.optimize import linear_sum_assignment

    classes, numbers = np.unique(labels, return_inverse=True)
    counts = np.zeros((clusters.max() + 1, len(classes)))
    np.add.at(counts, (clusters, numbers), 1)
    rows, columns = linear_sum_assignment(-counts)
    label_of = dict(zip(rows.tolist(), classes[columns].tolist(), strict=True))
    return float(
        np.mean([label_of.get(cluster) == truth for cluster, truth in zip(test_clusters.tolist(), test_labels.tolist(), strict=True)])
    )


def _se(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def _labels(part: Data) -> Array:
    if not isinstance(part, Data) or part.labels is None:
        raise DataError(
            "needed data with labels",
            where=part.name if isinstance(part, Data) else "probes",
            mend=["Data.of(x, labels)", "data.labelled_by('smile')"],
        )
    return part.labels.numpy()


def _check(x: Array, y: Array, a: Array, b: Array) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or a.shape != (len(x),) or b.shape != (len(y),) or not len(y):
        raise DataError(
            f"needed features (N, D) and (M, D) with labels (N,) and (M,), and shapes {x.shape}, {y.shape}, {a.shape}, {b.shape} came",
            where="probe",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("needed finite features, and NaN or infinite ones came", where="probe")
    if len(np.unique(a)) < 2:
        raise DataError("needed two labels or more, and one came", where="probe")
