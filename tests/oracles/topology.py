"""Oracles of the topological measures. Bars come from ripser, from the matrices as published; trees from scipy."""

from __future__ import annotations

import numpy as np
from ripser import ripser
from scipy.linalg import eigvalsh
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import laplacian, minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.neighbors import kneighbors_graph

from oracles._tools import Array
from repalign.measures import IMD, RTD, Measure, MTopDiv, PersistenceDistance, RTDLite, TotalPersistenceDifference
from repalign.testing import Case, pair


def scaled(x: Array) -> Array:
    found = cdist(x, x)
    return found / np.quantile(found, 0.9)


def finite_bars(matrix: Array, homology: int = 1) -> Array:
    found = ripser(matrix, distance_matrix=True, maxdim=1)["dgms"][homology]
    return found[np.isfinite(found[:, 1])].astype(float)


def length(bars: Array) -> float:
    return float((bars[:, 1] - bars[:, 0]).sum())


def rtd(m: Measure, x: Array, y: Array) -> float:
    batches = [np.arange(len(x))]
    if len(x) > m.rows:
        rng = np.random.default_rng(m.seed)
        batches = [rng.choice(len(x), m.rows, replace=False) for _ in range(m.trials)]
    total = 0.0
    for rows in batches:
        v, w = scaled(x[rows]), scaled(y[rows])
        for a, b in ((v, w), (w, v)):
            cross, own = (a, np.minimum(a, b)) if m.form == "min" else (np.maximum(a, b), b)
            total += length(finite_bars(np.block([[0 * a, cross], [cross, own]]))) / 2
    return total / len(batches)


def tree(matrix: Array) -> float:
    return float(minimum_spanning_tree(matrix).sum())


def rtd_lite(m: Measure, x: Array, y: Array) -> float:
    v, w = scaled(x), scaled(y)
    return (tree(v) + tree(w)) / 2 - tree(np.minimum(v, w))


def mtopdiv(m: Measure, x: Array, y: Array) -> float:
    cross = cdist(x, y)
    return length(finite_bars(np.block([[np.zeros((len(x),) * 2), cross], [cross.T, cdist(y, y)]])))


def persistence(m: Measure, x: Array, y: Array) -> float:
    a, b = (finite_bars(scaled(z), m.homology) for z in (x, y))
    # Every bar may be matched with a bar of the other side, or with its nearest point on the diagonal.
    on_diagonal = [np.repeat(z.mean(axis=1, keepdims=True), 2, axis=1) for z in (a, b)]
    if m.metric == "sliced_wasserstein":
        angles = np.pi * (0.5 + np.arange(m.directions) / m.directions)
        lines = np.stack([np.cos(angles), np.sin(angles)])
        p, q = np.vstack([a, on_diagonal[1]]) @ lines, np.vstack([b, on_diagonal[0]]) @ lines
        return float(np.abs(np.sort(p, axis=0) - np.sort(q, axis=0)).sum(axis=0).mean())
    metric = "euclidean" if m.metric == "wasserstein" else "chebyshev"
    cost = np.zeros((len(a) + len(b),) * 2)
    cost[: len(a), : len(b)] = cdist(a, b, metric)
    cost[: len(a), len(b) :] = np.diag(cdist(a, on_diagonal[0], metric))[:, None]
    cost[len(a) :, : len(b)] = np.diag(cdist(b, on_diagonal[1], metric))
    if m.metric == "wasserstein":
        return float(cost[linear_sum_assignment(cost)].sum())
    levels = np.unique(cost)  # the least level at which some matching uses no dearer pair
    return float(next(v for v in levels if not (cost > v)[linear_sum_assignment(cost > v)].any()))


def total_persistence(m: Measure, x: Array, y: Array) -> float:
    return abs(length(finite_bars(scaled(x), m.homology)) - length(finite_bars(scaled(y), m.homology)))


def imd(m: Measure, x: Array, y: Array) -> float:
    t = np.logspace(-1, 1, 256)
    heat = []
    for a in (x, y):
        graph = kneighbors_graph(a, m.k).toarray()
        eigenvalues = eigvalsh(laplacian(np.maximum(graph, graph.T), normed=True))
        heat.append(np.exp(-t[:, None] * eigenvalues).mean(axis=1))
    return float((1e6 * np.exp(-2 * (t + 1 / t)) * np.abs(heat[0] - heat[1])).max())


def shared(seed: int = 0, **shape: int) -> tuple[Array, Array]:
    """A pair whose second space lies around the first, so that one cloud fills loops of the other."""
    x, y = pair(seed, **shape)
    return x, y + 2.0


# ripser computes in float32.
CASES = (
    Case(RTD(), rtd, tolerance=1e-5, trials=10),
    Case(RTD(form="max"), rtd, tolerance=1e-5, trials=0),
    Case(RTD(rows=12, trials=3, seed=1), rtd, tolerance=1e-5, trials=0),
    Case(RTDLite(), rtd_lite),
    Case(MTopDiv(), mtopdiv, tolerance=1e-5, constant="defined", data=shared),
    Case(PersistenceDistance(), persistence, tolerance=1e-5),
    Case(PersistenceDistance(homology=0, directions=20), persistence, tolerance=1e-5),
    Case(PersistenceDistance(metric="wasserstein"), persistence, tolerance=1e-5),
    Case(PersistenceDistance(metric="bottleneck"), persistence, tolerance=1e-5),
    Case(TotalPersistenceDifference(), total_persistence, tolerance=1e-5),
    Case(TotalPersistenceDifference(homology=1), total_persistence, tolerance=1e-5),
    Case(IMD(k=3), imd, tolerance=1e-9),
)
