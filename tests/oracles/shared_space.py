"""Oracles of the measures of one shared space."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist, pdist
from scipy.special import expit
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances
from sklearn.neighbors import NearestCentroid

from oracles._tools import Array, unit
from repalign.measures import (
    ConeEffect,
    Measure,
    ModalityGap,
    ModalitySeparability,
    PairedCosine,
    RetrievalRecall,
)
from repalign.testing import Case


def modality_gap(m: Measure, x: Array, y: Array) -> float:
    return float(cdist(unit(x).mean(axis=0)[None], unit(y).mean(axis=0)[None])[0, 0])


def cone_effect(m: Measure, x: Array, y: Array) -> float:
    return float(abs(np.mean(1 - pdist(x, "cosine")) - np.mean(1 - pdist(y, "cosine"))))


def paired_cosine(m: Measure, x: Array, y: Array) -> float:
    return float(1 - paired_cosine_distances(x, y).mean())


def retrieval_recall(m: Measure, x: Array, y: Array) -> float:
    ways = {"x to y": [(x, y)], "y to x": [(y, x)], "both": [(x, y), (y, x)]}[m.direction]
    labels = np.arange(len(x))
    return float(np.mean([top_k_accuracy_score(labels, cosine_similarity(*w), k=m.k, labels=labels) for w in ways]))


def separability(m: Measure, x: Array, y: Array) -> float:
    """The same deal; penalised regression by a general optimiser, or scikit-learn's nearest centroid."""
    import torch

    def folds(n: int) -> Array:
        return torch.randperm(n, generator=torch.Generator().manual_seed(m.seed)).numpy() % m.folds

    x, y = (np.array(sorted(map(tuple, unit(a)))) for a in (x, y))
    of_x, of_y = folds(len(x)), folds(len(y))
    right = [0, 0]
    for fold in range(m.folds):
        a, b = x[of_x != fold], y[of_y != fold]
        if m.method == "gap":
            model = NearestCentroid().fit(np.concatenate([a, b]), [1] * len(a) + [0] * len(b))
            right[0] += (model.predict(x[of_x == fold]) == 1).sum()
            right[1] += (model.predict(y[of_y == fold]) == 0).sum()
            continue
        w, c = logistic(a, b)
        right[0] += (x[of_x == fold] @ w + c > 0).sum()
        right[1] += (y[of_y == fold] @ w + c < 0).sum()
    return float((right[0] / len(x) + right[1] / len(y)) / 2)


def logistic(a: Array, b: Array) -> tuple[Array, float]:
    """min |w|^2 / 2 + weighted loss, the sets weighted alike, by Newton's method of scipy."""
    z = np.concatenate([a, b])
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    sign = np.concatenate([np.ones(len(a)), -np.ones(len(b))])
    weight = len(z) / 2 / np.concatenate([np.full(len(a), len(a)), np.full(len(b), len(b))])
    ridge = np.diag([1.0] * a.shape[1] + [0.0])

    def loss(w: Array) -> Any:
        return w @ ridge @ w / 2 + (weight * np.logaddexp(0, -sign * (z @ w))).sum()

    def slope(w: Array) -> Any:
        return ridge @ w - z.T @ (weight * sign * expit(-sign * (z @ w)))

    def curvature(w: Array) -> Any:
        p = expit(z @ w)
        return ridge + z.T @ (z * (weight * p * (1 - p))[:, None])

    w = minimize(loss, np.zeros(z.shape[1]), jac=slope, hess=curvature, method="trust-exact", tol=1e-10).x
    return w[:-1], float(w[-1])


def mixed(seed: int = 0, n: int = 40, dx: int = 7, dy: int = 7, offset: float = 1.0) -> tuple[Array, Array]:
    """Two sets that a plane tells apart only in part."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n, dx)) + 0.1 * offset
    return x + 0.2 * np.arange(dx), y - 0.1 * (seed % 5)


def partners(seed: int = 0, n: int = 40, dx: int = 7, dy: int = 7, offset: float = 1.0) -> tuple[Array, Array]:
    """Rows that are often, but not always, nearest to their partners."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, dx)) + offset * np.linspace(0.2, 1, dx)
    x, y = z + 0.6 * rng.standard_normal((2, n, dx))
    return x, y


# A row that repeats finds its twin as well as its partner, and a zero row has cosine 0 with itself.
CASES = (
    Case(ModalityGap(), modality_gap, constant="defined"),
    Case(ConeEffect(), cone_effect, constant="defined"),
    Case(PairedCosine(), paired_cosine, constant="defined", perfect=False),
    Case(RetrievalRecall(), retrieval_recall, perfect=False, data=partners),
    Case(RetrievalRecall(k=5, direction="y to x"), retrieval_recall, perfect=False, data=partners),
    # The mean of both directions is symmetric, the class is not.
    Case(
        RetrievalRecall(k=3, direction="both"),
        retrieval_recall,
        perfect=False,
        insensitive=frozenset({"symmetry"}),
        data=partners,
    ),
    Case(ModalitySeparability(), separability, perfect=False, constant="defined", data=mixed),
    Case(ModalitySeparability(method="gap", folds=4, seed=1), separability, perfect=False, constant="defined", data=mixed),
)
