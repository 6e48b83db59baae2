"""Closeness of two models that are given as embeddings f (n, d) and unembeddings g (labels, d), p(y | x) ~ exp(f(x) . g(y)).

The same predictions come from f A^T and g A^-1 for any invertible A, so distances of representations and of distributions
are two questions. Functions of four arrays, or of predictions and labels: not measures of two arrays. The divergences of
the predictions themselves (`KLDivergence`, `LogitDistance`) take the logits f g^T.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from repalign.errors import RepalignError
from repalign.measures.measure import as_features, check_paired

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
    f: Any,
    g: Any,
    f2: Any,
    g2: Any,
    *,
    rows: Sequence[int] | None = None,
    pivot: int | None = None,
    left_out: int | None = None,
    weight: float = 1e-5,
    samples: int = 200,
    seed: int = 0,
) -> LogLikelihoodVariance:
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
            expected=f"at least d + 2 = {width + 2} labels, one to be left out and one pivot",
            got=f"{c} labels",
        )
    for name, label in (("pivot", pivot), ("left_out", left_out)):
        if label is not None and not 0 <= label < c:
            raise RepalignError(f"{name} is not a label", expected=f"0 <= {name} < {c}", got=repr(label))
    if rows is not None and (len(set(rows)) != len(rows) or len(rows) < 2 or not all(0 <= r < n for r in rows)):
        raise RepalignError(
            "rows are not different inputs", expected=f"two or more of 0 to {n - 1}, each once", got=repr(list(rows))
        )
    y0, gone = _best_labels(p, q, pivot, left_out)
    kept = [y for y in range(c) if y not in (y0, gone)]
    labels, label_scale = _scaled_difference(p, q, kept, y0)
    candidates = [tuple(rows)] if rows is not None else list(_draw(n, width + 1, samples, seed))
    found = [(*_scaled_difference(p.T, q.T, list(r[1:]), r[0]), r) for r in candidates]
    inputs, input_scale, chosen = min(found, key=lambda t: t[0])
    distance = max(labels, inputs, weight * label_scale, weight * input_scale)
    return LogLikelihoodVariance(
        distance, labels, inputs, label_scale, input_scale, y0, gone, tuple(int(r) for r in chosen)
    )


def embedding_svd_distance(f: Any, g: Any, f2: Any, g2: Any, *, pivot: int, left_out: int | None = None) -> float:
    """The SVD distance of two models' embeddings, in [0, 1]: 0 where one is a linear map of the other.

    For labels y_1 ... y_d and the pivot y0, with L the columns g(y_j) - g(y0): 1 - the mean singular value of the
    cross-covariance of the z-scored L^T f and L'^T f2; the largest over all sets of d labels, without `left_out`.

    f and f2 (n, d), g and g2 (c, d), of one width. Raises RepalignError for fewer than d labels beside the pivot.
    Source: Nielsen et al. 2025 (arXiv 2506.03784), d_SVD; theorem 4.7 bounds it by 2 d times the log-likelihood variance
    distance at the same pivot and left-out label.

    >>> f, g, a = (np.random.default_rng(0).standard_normal(s) for s in [(40, 2), (5, 2), (2, 2)])
    >>> round(embedding_svd_distance(f, g, f @ np.linalg.inv(a).T, g @ a, pivot=0), 12)
    0.0
    """
    f, g, f2, g2 = _checked(f, g, f2, g2)
    width = f.shape[1]
    if not 0 <= pivot < len(g):
        raise RepalignError("pivot is not a label", expected=f"0 <= pivot < {len(g)}", got=repr(pivot))
    if f2.shape[1] != width:
        raise RepalignError(
            "embeddings of different widths", expected="f and f2 of one width", got=f"{width} and {f2.shape[1]}"
        )
    others = [y for y in range(len(g)) if y not in (pivot, left_out)]
    if len(others) < width:
        raise RepalignError(
            "too few labels for the SVD distance", expected=f"at least {width} beside the pivot", got=str(len(others))
        )
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


def _checked(f: Any, g: Any, f2: Any, g2: Any) -> tuple[Array, Array, Array, Array]:
    """The four arrays in float64, their shapes fitting."""
    named = {"f": f, "g": g, "f2": f2, "g2": g2}
    arrays = {k: as_features(v, k).cpu().numpy().astype(np.float64) for k, v in named.items()}
    for a, b in (("f", "g"), ("f2", "g2")):
        if arrays[a].shape[1] != arrays[b].shape[1]:
            raise RepalignError(
                f"{a} and {b} do not fit",
                expected="embeddings and unembeddings of one width",
                got=f"widths {arrays[a].shape[1]} and {arrays[b].shape[1]}",
            )
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
            "too few inputs for so many disjoint samples",
            expected=f"n >= {size} * samples",
            got=f"n = {n}, samples = {samples}",
            remedy="ask for fewer samples, or give the rows",
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
    return (tuple(order[i * size : (i + 1) * size].tolist()) for i in range(samples))


def _z_scored(x: Array) -> Array:
    x = x - x.mean(axis=0)
    deviation = x.std(axis=0)
    return x / np.where(deviation > 0, deviation, 1.0)
