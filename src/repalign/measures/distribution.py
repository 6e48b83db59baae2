"""Measures of two models' predictions: rows are stimuli, columns labels, entries logits or log-probabilities.

Logits matter up to a constant per row, so every measure here is free of it. Both arrays have the same labels in the same
order. A layer of equal logits is a distribution like any other, the uniform one.

The functions at the end are of models that are given as embeddings f (n, d) and unembeddings g (labels, d), with
p(y | x) ~ exp(f(x) . g(y)). The same predictions come from f A^T and g A^-1 for any invertible A, so distances of
representations and of distributions are two questions: the measures above take the logits f g^T.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import as_features, check_paired
from repalign.measures.measure import Distance, Features, State, check_flag, parameter
from repalign.measures.numerics.rows import widen


@dataclass(frozen=True)
class _Distributions(Distance):
    """A distance of distributions over shared labels."""

    family: ClassVar[str] = "distribution"
    cost: ClassVar[str] = "n d per layer, n d per pair"
    equal_widths: ClassVar[bool] = True
    smallest_n: ClassVar[int] = 1
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"row_shift"})

    def prepare(self, x: Tensor) -> State:
        """Log-probabilities (n, d) in float64."""
        return Features(torch.log_softmax(widen(x), dim=1))


@dataclass(frozen=True)
class KLDivergence(_Distributions):
    """Kullback-Leibler divergence of Y's predictions from X's, in nats, mean over stimuli. Not symmetric.

    s = (1 / n) sum_i sum_c p_i(c) log(p_i(c) / q_i(c)), a distance, with p_i the softmax of x_i and q_i that of y_i.

    Shapes (n, d) twice: logits or log-probabilities of the same d labels. Range [0, inf). Invariant to a constant added to
    any row.

    Source: Kullback & Leibler 1951; as a distance of models in Nielsen et al. 2025 (arXiv 2506.03784).

    >>> round(KLDivergence()([[0.0, 0.0]], [[0.0, 1.0]]), 6)
    0.120115
    """

    aliases: ClassVar[tuple[str, ...]] = ("kl_divergence", "kl")
    symmetric: ClassVar[bool] = False

    def compare(self, a: Features, b: Features) -> float:
        return max(0.0, float(_divergence(a.values, b.values).mean()))  # rounding alone takes it below 0


@dataclass(frozen=True)
class JensenShannon(_Distributions):
    """Jensen-Shannon divergence of two models' predictions, in bits, mean over stimuli.

    s = (1 / n) sum_i [KL(p_i, m_i) + KL(q_i, m_i)] / (2 log 2), m_i = (p_i + q_i) / 2, a distance, with p_i the softmax of
    x_i and q_i that of y_i. Its root, which scipy calls the distance, is not taken.

    Shapes (n, d) twice: logits or log-probabilities of the same d labels. Range [0, 1]. Invariant to a constant added to
    any row.

    Source: Lin 1991; as a measure of functional similarity in Klabunde et al. 2025 (arXiv 2305.06329).

    >>> round(JensenShannon()([[0.0, 99.0]], [[99.0, 0.0]]), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("jensen_shannon", "jsd")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def compare(self, a: Features, b: Features) -> float:
        p, q = a.values, b.values
        middle = torch.logaddexp(p, q) - math.log(2)
        both = (_divergence(p, middle) + _divergence(q, middle)) / 2
        return min(1.0, max(0.0, float(both.mean()) / math.log(2)))  # rounding alone takes it outside


@dataclass(frozen=True, eq=False)
class Predictions(Features):
    """The label that each stimulus is given, (n,), of `width` labels."""

    width: int = 0


@dataclass(frozen=True)
class Disagreement(_Distributions):
    """Disagreement: the share of stimuli for which two models predict different labels.

    s = share of i with argmax_c x_i(c) != argmax_c y_i(c), a distance; ties go to the lower label.

    Shapes (n, d) twice: logits, log-probabilities or any scores of the same d labels. Range [0, 1]. Invariant to a constant
    added to any row, and to the scale of every row.

    Source: the churn of Milani Fard et al. 2016; Klabunde et al. 2025 (arXiv 2305.06329), performance-based and hard
    prediction measures.

    >>> Disagreement()([[0.1, 0.9], [0.8, 0.2]], [[-1.0, 2.0], [0.0, 3.0]])
    0.5
    """

    aliases: ClassVar[tuple[str, ...]] = ("disagreement", "churn")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"row_shift", "row_scale", "isotropic_scale"})

    def prepare(self, x: Tensor) -> State:
        # On a CPU numpy is ten times faster than torch.
        labels = torch.from_numpy(x.numpy().argmax(axis=1)) if x.device.type == "cpu" else x.argmax(dim=1)
        return Predictions(labels, width=x.shape[1])

    def compare(self, a: Predictions, b: Predictions) -> float:
        different = a.values != b.values
        return int(different.sum()) / len(different)


@dataclass(frozen=True)
class LogitDistance(_Distributions):
    """Logit distance: the mean squared distance between the centred logits of two models.

    s = (1 / n) sum_i sum_c (x_i(c) - mean x_i - y_i(c) + mean y_i)^2, a distance; with squared=False the root of it.

    Parameters
    ----------
    squared : True (default), as it is bounded in theory; False gives the distance.

    Shapes (n, d) twice: logits or log-probabilities of the same d labels, which give the same number. Range [0, inf).
    Invariant to a constant added to any row. It looks at improbable labels as much as at probable ones, and bounds how
    far apart the embeddings behind the logits can be.

    Source: Nielsen et al. 2026 (arXiv 2602.15438), d_logit^2.

    >>> LogitDistance()([[0.0, 2.0]], [[5.0, 5.0]])
    2.0
    """

    squared: bool = parameter(True, check_flag)

    aliases: ClassVar[tuple[str, ...]] = ("logit_distance",)

    def prepare(self, x: Tensor) -> Features:
        logits = widen(x)
        logits = logits - logits[:, :1]  # a large constant per row would cost the digits of the mean
        return Features(logits - logits.mean(dim=1, keepdim=True))

    def compare(self, a: Features, b: Features) -> float:
        squared = float((a.values - b.values).square().sum(dim=1).mean())
        return squared if self.squared else math.sqrt(squared)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum_c exp(p) (p - q) of log-probabilities (n, d), (n,); labels of probability 0 add nothing."""
    weight = p.exp()
    return torch.where(weight > 0, weight * (p - q), 0.0).sum(dim=1)


Array = np.ndarray


class LogLikelihoodVariance(NamedTuple):
    """The distance, its four terms before they are weighted, and the labels and inputs that they were found at."""

    distance: float
    labels: float
    inputs: float
    label_scale: float
    input_scale: float
    pivot: int
    left_out: int
    rows: tuple[int, ...]


def log_likelihood_variance_distance(
    f: Any, g: Any, f2: Any, g2: Any, *, rows: Sequence[int] | None = None, pivot: int | None = None,
    left_out: int | None = None, weight: float = 1e-5, samples: int = 200, seed: int = 0,
) -> LogLikelihoodVariance:  # fmt: skip
    """The log-likelihood variance distance of two models over the same inputs and labels; 0 for equal distributions.

    With l(y | x) = log p(y | x), a pivot label y0 and a label left out, psi_x(y) = std over inputs of l(y) - l(y0):

    labels : the largest, over labels y and over z in {y, y0}, of std over inputs of l(z) / psi_x(y) - l'(z) / psi'_x(y)
    inputs : the same with inputs and labels exchanged, over the given rows, the first of them the pivot; deviations
        are over all labels, the one left out among them
    label_scale, input_scale : the largest |psi_x - psi'_x|, and |psi_y - psi'_y|

    The distance is max(labels, inputs, weight label_scale, weight input_scale); std divides by one less than the count.

    Parameters
    ----------
    f, g, f2, g2 : embeddings (n, d), (n, d2) of the same inputs and unembeddings (c, d), (c, d2) of the same labels.
    rows : the d + 1 inputs to look at, pivot first; None takes, of `samples` disjoint sets drawn from `seed`, the one with
        the smallest `inputs` term.
    pivot, left_out : labels; None takes the two with the smallest `labels` term, the first of equals.
    weight : of the scales, which must agree for the distance to be 0 but should not dominate it.

    Raises RepalignError for fewer than d + 2 labels, or too few inputs for the samples.
    Source: Nielsen et al. 2025 (arXiv 2506.03784), definition of d_LLV.

    >>> f, g, a = (np.random.default_rng(0).standard_normal(s) for s in [(40, 2), (5, 2), (2, 2)])
    >>> found = log_likelihood_variance_distance(f, g, f @ np.linalg.inv(a).T, g @ a, rows=(0, 1, 2))
    >>> found.distance < 1e-12
    True
    """
    arrays = _checked(f, g, f2, g2)
    width = arrays[0].shape[1]
    p, q = _log_probabilities(*arrays[:2]), _log_probabilities(*arrays[2:])
    n, c = p.shape
    if c < width + 2:
        raise RepalignError(
            "too few labels for the log-likelihood variance distance",
            expected=f"at least d + 2 = {width + 2} labels, one to be left out and one pivot", got=f"{c} labels",
        )  # fmt: skip
    for name, label in (("pivot", pivot), ("left_out", left_out)):
        _check_label(name, label, c)
    if rows is not None and (len(set(rows)) != len(rows) or len(rows) < 2 or not all(0 <= r < n for r in rows)):
        expected = f"two or more of 0 to {n - 1}, each once"
        raise RepalignError("rows are not different inputs", expected=expected, got=repr(list(rows)))
    y0, gone = _best_labels(p, q, pivot, left_out)
    kept = [y for y in range(c) if y not in (y0, gone)]
    labels, label_scale = _scaled_difference(p, q, kept, y0)
    candidates = [tuple(rows)] if rows is not None else list(_draw(n, width + 1, samples, seed))
    found = [(*_scaled_difference(p.T, q.T, list(r[1:]), r[0]), r) for r in candidates]
    inputs, input_scale, chosen = min(found, key=lambda t: t[0])
    distance = max(labels, inputs, weight * label_scale, weight * input_scale)
    return LogLikelihoodVariance(distance, labels, inputs, label_scale, input_scale, y0, gone, tuple(map(int, chosen)))


def embedding_svd_distance(f: Any, g: Any, f2: Any, g2: Any, *, pivot: int, left_out: int | None = None) -> float:
    """The SVD distance of two models' embeddings, in [0, 1]: 0 where one is a linear map of the other.

    For labels y_1 ... y_d and the pivot y0, with L the columns g(y_j) - g(y0): 1 - the mean singular value of the
    cross-covariance of the z-scored L^T f and L'^T f2; the largest over all sets of d labels, without `left_out`.

    f and f2 (n, d), g and g2 (c, d), of one width. Raises RepalignError for fewer than d labels besides the pivot.
    Source: Nielsen et al. 2025 (arXiv 2506.03784), d_SVD; theorem 4.7 bounds it by 2 d times the log-likelihood variance
    distance at the same pivot and left-out label.

    >>> f, g, a = (np.random.default_rng(0).standard_normal(s) for s in [(40, 2), (5, 2), (2, 2)])
    >>> round(embedding_svd_distance(f, g, f @ np.linalg.inv(a).T, g @ a, pivot=0), 12)
    0.0
    """
    f, g, f2, g2 = _checked(f, g, f2, g2)
    width = f.shape[1]
    _check_label("pivot", pivot, len(g))
    if f2.shape[1] != width:
        got = f"{width} and {f2.shape[1]}"
        raise RepalignError("embeddings of different widths", expected="f and f2 of one width", got=got)
    others = [y for y in range(len(g)) if y not in (pivot, left_out)]
    if len(others) < width:
        expected = f"at least {width} besides the pivot"
        raise RepalignError("too few labels for the SVD distance", expected=expected, got=str(len(others)))
    worst = 0.0
    for chosen in itertools.combinations(others, width):
        some = list(chosen)
        x, y = (_z_scored(e @ (u[some] - u[pivot]).T) for e, u in ((f, g), (f2, g2)))
        values = np.linalg.svd(x.T @ y / len(x), compute_uv=False)
        worst = max(worst, 1 - float(values.mean()))
    return worst


def accuracy_difference(x: Any, y: Any, labels: Any) -> float:
    """The absolute difference of two models' accuracies: share of rows of logits with the largest at the right label.

    x, y (n, c) and (n, c2), labels (n,) whole numbers; ties go to the lower label. Source: Klabunde et al. 2025
    (arXiv 2305.06329), performance-based measures.

    >>> accuracy_difference([[0.1, 0.9], [0.8, 0.2]], [[0.0, 1.0], [0.0, 1.0]], [1, 0])
    0.5
    """
    first, second = as_features(x, "x"), as_features(y, "y")
    truth = np.asarray(labels)
    check_paired(len(first), len(second))
    check_paired(len(first), len(truth), "x", "labels")
    right = [int((a.argmax(dim=1).cpu().numpy() == truth).sum()) for a in (first, second)]
    return abs(right[0] - right[1]) / len(truth)


def _check_label(name: str, label: int | None, count: int) -> None:
    if label is not None and not 0 <= label < count:
        raise RepalignError(f"{name} is not a label", expected=f"0 <= {name} < {count}", got=repr(label))


def _checked(f: Any, g: Any, f2: Any, g2: Any) -> tuple[Array, Array, Array, Array]:
    """The four arrays in float64, their shapes fitting."""
    named = {"f": f, "g": g, "f2": f2, "g2": g2}
    arrays = {k: as_features(v, k).cpu().numpy().astype(np.float64) for k, v in named.items()}
    for a, b in (("f", "g"), ("f2", "g2")):
        if arrays[a].shape[1] != arrays[b].shape[1]:
            got = f"widths {arrays[a].shape[1]} and {arrays[b].shape[1]}"
            raise RepalignError(f"{a} and {b} do not fit", expected="embeddings and unembeddings of one width", got=got)
    check_paired(len(arrays["f"]), len(arrays["f2"]), "f", "f2")
    check_paired(len(arrays["g"]), len(arrays["g2"]), "g", "g2")
    return arrays["f"], arrays["g"], arrays["f2"], arrays["g2"]


def _log_probabilities(f: Array, g: Array) -> Array:
    from scipy.special import log_softmax

    return log_softmax(f @ g.T, axis=1)


def _scaled_difference(p: Array, q: Array, columns: list[int], pivot: int) -> tuple[float, float]:
    """The largest deviation of the scaled difference of both, and the largest difference of their scales.

    p, q (rows, items): deviations are over rows, for every item of `columns` and the pivot.
    """
    scale_p, scale_q = ((a[:, columns] - a[:, [pivot]]).std(axis=0, ddof=1) for a in (p, q))
    own = p[:, columns] / scale_p - q[:, columns] / scale_q
    of_pivot = p[:, [pivot]] / scale_p - q[:, [pivot]] / scale_q
    largest = max(float(d.std(axis=0, ddof=1).max()) for d in (own, of_pivot))
    return largest, float(np.abs(scale_p - scale_q).max())


def _best_labels(p: Array, q: Array, pivot: int | None, left_out: int | None) -> tuple[int, int]:
    """The pivot and the label to leave out that make the term of the labels least."""
    c = p.shape[1]
    best, least = (-1, -1), math.inf
    for y0 in range(c) if pivot is None else (pivot,):
        for gone in range(c) if left_out is None else (left_out,):
            if gone != y0:
                value = _scaled_difference(p, q, [y for y in range(c) if y not in (y0, gone)], y0)[0]
                if value < least:
                    best, least = (y0, gone), value
    if best == (-1, -1):
        raise RepalignError("the pivot is left out", expected="two different labels", got=f"{pivot} twice")
    return best


def _draw(n: int, size: int, samples: int, seed: int) -> Iterator[tuple[int, ...]]:
    if size * samples > n:
        raise RepalignError(
            "too few inputs for so many disjoint samples", expected=f"n >= {size} * samples", got=f"n = {n}, samples = {samples}",
            remedy="ask for fewer samples, or give the rows",
        )  # fmt: skip
    order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
    return (tuple(order[i * size : (i + 1) * size].tolist()) for i in range(samples))


def _z_scored(x: Array) -> Array:
    x = x - x.mean(axis=0)
    deviation = x.std(axis=0)
    return x / np.where(deviation > 0, deviation, 1.0)
