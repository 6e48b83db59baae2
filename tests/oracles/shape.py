"""Oracles of the measures on shapes."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import scipy.linalg
import scipy.spatial

from oracles._tools import Array
from oracles.subspace import centre
from repalign.measures import (
    AngularProcrustes,
    BuresDistance,
    HeldOutProcrustes,
    Measure,
    NormalisedBures,
    PermutationProcrustes,
    PLSCovariance,
    Procrustes,
    ShapeMetric,
)
from repalign.testing import Case, pair


def pad(x: Array, y: Array) -> tuple[Array, Array]:
    width = max(x.shape[1], y.shape[1])
    return tuple(np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (x, y))  # type: ignore[return-value]


def residual(x: Array, y: Array) -> float:
    """|X R - Y|_F with the rotation that scipy finds."""
    x, y = pad(x, y)
    return float(np.linalg.norm(x @ scipy.linalg.orthogonal_procrustes(x, y)[0] - y))


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x)


def procrustes(m: Measure, x: Array, y: Array) -> float:
    if m.center:
        x, y = centre(x), centre(y)
    if m.normalized:
        x, y = unit(x), unit(y)
    return residual(x, y) ** (2 if m.squared else 1)


def angle(x: Array, y: Array) -> float:
    return 2 * math.asin(residual(unit(x), unit(y)) / 2)


def angular(m: Measure, x: Array, y: Array) -> float:
    return angle(centre(x), centre(y)) if m.center else angle(x, y)


def shape_metric(m: Measure, x: Array, y: Array) -> float:
    whitened = []
    for a in map(centre, (x, y)):
        values, vectors = np.linalg.eigh(a.T @ a)
        kept = values > 1e-9 * values.max()
        factors = m.alpha + (1 - m.alpha) / np.sqrt(values[kept])
        whitened.append(a @ (vectors[:, kept] * factors))
    return angle(*whitened)


def permutation(m: Measure, x: Array, y: Array) -> float:
    """Every permutation is tried."""
    if m.center:
        x, y = centre(x), centre(y)
    if m.form == "angle":
        x, y = unit(x), unit(y)
    x, y = pad(x, y)
    best = min(np.linalg.norm(x[:, list(p)] - y) for p in permutations(range(x.shape[1])))
    return float(2 * math.asin(best / 2) if m.form == "angle" else best)


def few_columns(seed: int = 0, n: int = 40, dx: int = 5, dy: int = 6, offset: float = 1.0) -> tuple[Array, Array]:
    """So few that all permutations can be tried."""
    return pair(seed, n, min(dx, 5), min(dy, 6), offset)


def held_out(m: Measure, x: Array, y: Array) -> float:
    """With the folds of scikit-learn, and a rotation from the polar factor of the cross-covariance."""
    from sklearn.model_selection import KFold

    angles = []
    for train, test in KFold(m.folds, shuffle=True, random_state=m.seed).split(x):
        means = [a[train].mean(axis=0) for a in (x, y)]
        cross = (x[train] - means[0]).T @ (y[train] - means[1])
        values, vectors = np.linalg.eigh(cross.T @ cross)
        kept = values > 1e-12 * values.max()
        rotation = cross @ (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
        p, q = x[test] - means[0], y[test] - means[1]
        angles.append(math.acos(((p @ rotation) * q).sum() / np.linalg.norm(p) / np.linalg.norm(q)))
    return float(np.mean(angles))


def fidelity(k: Array, q: Array) -> float:
    """tr (K^(1/2) L K^(1/2))^(1/2) by eigenvalues."""
    values, vectors = np.linalg.eigh(k)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ q @ root).clip(min=0)).sum())


def kernels(x: Array, y: Array) -> tuple[Array, Array]:
    return tuple(centre(a) @ centre(a).T for a in (x, y))  # type: ignore[return-value]


def normalised_bures(m: Measure, x: Array, y: Array) -> float:
    k, q = kernels(x, y)
    return fidelity(k, q) / math.sqrt(np.trace(k) * np.trace(q))


def bures_distance(m: Measure, x: Array, y: Array) -> float:
    k, q = kernels(x, y)
    k, q = k / x.shape[1], q / y.shape[1]
    return math.sqrt(np.trace(k) + np.trace(q) - 2 * fidelity(k, q))


def pls(m: Measure, x: Array, y: Array) -> float:
    covariance = np.cov(x.T, y.T)[: x.shape[1], x.shape[1] :]
    return float(scipy.linalg.svdvals(covariance).mean())


CASES = (
    Case(Procrustes(), procrustes),
    Case(Procrustes(normalized=False), procrustes),
    Case(Procrustes(center=False, squared=True), procrustes),
    Case(AngularProcrustes(), angular),
    Case(AngularProcrustes(center=False), angular),
    Case(ShapeMetric(), shape_metric),
    # By eigenvalues of X^T X, which square the condition.
    Case(ShapeMetric(alpha=0.3), shape_metric, tolerance=1e-9),
    Case(ShapeMetric(alpha=0.0), shape_metric, tolerance=1e-9),
    Case(PermutationProcrustes(), permutation, data=few_columns),
    Case(PermutationProcrustes(form="distance", center=False), permutation, data=few_columns),
    # By eigenvalues of squares, which lose half of the digits of small directions.
    Case(HeldOutProcrustes(folds=2), held_out, tolerance=1e-9, trials=50),
    Case(HeldOutProcrustes(folds=4, seed=3), held_out, tolerance=1e-9, trials=30),
    # Square roots of eigenvalues near 0: the oracle is good to the root of a rounding.
    Case(NormalisedBures(), normalised_bures, tolerance=2e-7),
    Case(BuresDistance(), bures_distance, tolerance=2e-7),
    Case(PLSCovariance(), pls, perfect=False),
)
