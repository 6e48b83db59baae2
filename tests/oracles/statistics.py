"""Oracles of the summaries of one space, and of the distances between two clouds."""

from __future__ import annotations

import numpy as np
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from oracles._tools import Array, unit
from repalign.measures import (
    BuresWasserstein,
    ConcentricityDifference,
    EnergyDistance,
    IntrinsicDimensionDifference,
    MagnitudeDifference,
    Measure,
    ParticipationRatioDifference,
    SlicedWasserstein,
    UniformityDifference,
)
from repalign.testing import Case


def magnitude(m: Measure, x: Array, y: Array) -> float:
    return float(abs(np.linalg.norm(x.mean(axis=0)) - np.linalg.norm(y.mean(axis=0))))


def concentricity(m: Measure, x: Array, y: Array) -> float:
    a, b = (cosine_similarity(z, z.mean(axis=0)[None]).mean() for z in (x, y))
    return float(abs(a - b))


def uniformity(m: Measure, x: Array, y: Array) -> float:
    if m.normalize:
        x, y = unit(x), unit(y)
    squared = [cdist(z, z, "sqeuclidean").ravel() if m.pairs == "all" else pdist(z, "sqeuclidean") for z in (x, y)]
    a, b = (np.log(np.exp(-m.t * s).mean()) for s in squared)
    return float(abs(a - b))


def participation_ratio(m: Measure, x: Array, y: Array) -> float:
    a, b = (PCA(svd_solver="full").fit(z).explained_variance_ for z in (x, y))
    return float(abs(a.sum() ** 2 / (a**2).sum() - b.sum() ** 2 / (b**2).sum()))


def intrinsic_dimension(m: Measure, x: Array, y: Array) -> float:
    values = []
    for z in (x, y):
        n = len(z)
        distances, _ = cKDTree(z).query(z, k=3)
        ratio = np.sort(np.log(distances[:, 2] / distances[:, 1]))
        kept = int(n * (1 - m.discard)) if m.discard else n - 1  # the last point has no logarithm
        height = -np.log(1 - np.arange(1, kept + 1) / n)
        values.append(np.linalg.lstsq(ratio[:kept, None], height, rcond=None)[0][0])
    return float(abs(values[0] - values[1]))


def energy(m: Measure, x: Array, y: Array) -> float:
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


def bures_wasserstein(m: Measure, x: Array, y: Array) -> float:
    s, t = (np.cov(a, rowvar=False, bias=True) for a in (x, y))
    root = sqrtm(s)
    cross = np.linalg.eigvalsh(root @ t @ root).clip(min=0)
    mean = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return float(np.sqrt(mean + np.trace(s) + np.trace(t) - 2 * np.sqrt(cross).sum()))


def sliced_wasserstein(m: Measure, x: Array, y: Array) -> float:
    """Squared distances of quantile functions, by an assignment of as many copies of the points as both sides need."""
    from scipy.optimize import linear_sum_assignment

    copies = np.lcm(len(x), len(y))
    total = []
    for u in (np.random.RandomState(m.seed).normal(0.0, 1.0, (x.shape[1], m.projections))).T:
        u = u / np.linalg.norm(u)
        p, q = (np.repeat(a @ u, copies // len(a)) for a in (x, y))
        cost = (p[:, None] - q[None]) ** 2
        total.append(cost[linear_sum_assignment(cost)].mean())
    return float(np.sqrt(np.mean(total)))


CASES = (
    Case(MagnitudeDifference(), magnitude, constant="defined"),
    Case(ConcentricityDifference(), concentricity, constant="defined"),
    Case(UniformityDifference(), uniformity, constant="defined"),
    Case(UniformityDifference(t=0.05, normalize=False, pairs="all"), uniformity, constant="defined"),
    Case(ParticipationRatioDifference(), participation_ratio),
    Case(IntrinsicDimensionDifference(), intrinsic_dimension),
    Case(IntrinsicDimensionDifference(discard=0), intrinsic_dimension),
    Case(EnergyDistance(), energy, constant="defined"),
    Case(SlicedWasserstein(projections=20, seed=1), sliced_wasserstein, constant="defined"),
    # Roots of eigenvalues near zero, in the oracle; the root of a rounding of the spread, in ours, for equal clouds.
    Case(BuresWasserstein(), bures_wasserstein, constant="defined", tolerance=1e-6),
)
