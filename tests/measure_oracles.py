"""Plain float64 numpy forms of every measure, written from the published definitions; slow and independent.

`CASES` lists the instances that the common tests run over. A measure of the list without a row here fails them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repalign.measures import (
    CKA,
    CKNNA,
    LCSKNN,
    SVCCA,
    CKNNAPaper,
    CKNNAReference,
    CycleKNN,
    EditDistanceKNN,
    Measure,
    MutualKNN,
)

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """One instance, its oracle, and whether a representation scores s_max with itself."""

    measure: Measure
    oracle: Callable[[Measure, Array, Array], float]
    perfect: bool = True


def unit(x: Array) -> Array:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def lists(x: Array, k: int, similarity: str = "cosine", center: bool = False) -> list[list[int]]:
    if center:
        x = x - x.mean(axis=0)
    out = []
    for i in range(len(x)):
        if similarity == "euclidean":
            closeness = [-np.linalg.norm(x[i] - x[j]) for j in range(len(x))]
        else:
            z = unit(x) if similarity == "cosine" else x
            closeness = [float(z[i] @ z[j]) for j in range(len(x))]
        order = sorted((j for j in range(len(x)) if j != i), key=lambda j: (-closeness[j], j))
        out.append(order[:k])
    return out


def both(m: Measure, x: Array, y: Array) -> tuple[list[list[int]], list[list[int]]]:
    return tuple(lists(a, m.k, m.similarity, m.center) for a in (x, y))  # type: ignore[return-value]


def mutual(m: Measure, x: Array, y: Array) -> float:
    return float(np.mean([len(set(p) & set(q)) / m.k for p, q in zip(*both(m, x, y), strict=True)]))


def cycle(m: Measure, x: Array, y: Array) -> float:
    a, b = both(m, x, y)
    return float(np.mean([any(i in a[j] for j in b[i]) for i in range(len(x))]))


def lcs(m: Measure, x: Array, y: Array) -> float:
    def length(p: list[int], q: list[int]) -> int:
        if not p or not q:
            return 0
        if p[-1] == q[-1]:
            return 1 + length(p[:-1], q[:-1])
        return max(length(p[:-1], q), length(p, q[:-1]))

    value = np.mean([length(p, q) for p, q in zip(*both(m, x, y), strict=True)])
    return float(value / m.k if m.normalized else value)


def edit(m: Measure, x: Array, y: Array) -> float:
    def distance(p: list[int], q: list[int]) -> int:
        if not p or not q:
            return len(p) + len(q)
        change = distance(p[:-1], q[:-1]) + (p[-1] != q[-1])
        return min(change, distance(p[:-1], q) + 1, distance(p, q[:-1]) + 1)

    return float(1 - np.mean([distance(p, q) for p, q in zip(*both(m, x, y), strict=True)]) / m.k)


def kernel(m: Measure, x: Array) -> Array:
    if m.kernel == "linear":
        return x @ x.T
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    variance = np.median(squared[np.triu_indices(len(x), 1)]) if m.bandwidth == "median" else m.bandwidth**2
    return np.exp(-squared / (2 * variance))


def hsic_unbiased(k: Array, q: Array) -> float:
    """Song et al. 2012, equation 5, with sums over distinct indices written out."""
    n = len(k)
    k, q = k - np.diag(np.diag(k)), q - np.diag(np.diag(q))
    total = np.trace(k @ q) + k.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ q).sum()
    return float(total / (n * (n - 3)))


def cka(m: Measure, x: Array, y: Array) -> float:
    k, q = kernel(m, x), kernel(m, y)
    if m.estimator == "debiased":
        hsic = hsic_unbiased
    else:
        h = np.eye(len(x)) - 1 / len(x)

        def hsic(a: Array, b: Array) -> float:
            return float(np.trace(a @ h @ b @ h))

    return hsic(k, q) / (np.sqrt(hsic(k, k) * hsic(q, q)) + m.epsilon)


def masks(x: Array, k: int) -> Array:
    out = np.zeros((len(x), len(x)))
    for i, row in enumerate(lists(x, k)):
        out[i, row] = 1
    return out


def cknna(m: Measure, x: Array, y: Array) -> float:
    n = len(x)
    h = np.eye(n) - 1 / n
    centre = (lambda k: h @ k @ h) if isinstance(m, CKNNA) else (lambda k: k @ h)
    k, q = (centre(unit(a) @ unit(a).T) for a in (x, y))
    a, b = (np.ones((n, n)), np.ones((n, n))) if m.k == n else (masks(x, m.k), masks(y, m.k))
    return float((a * b * k * q).sum() / np.sqrt((a * k * k).sum() * (b * q * q).sum()))


def cknna_reference(m: Measure, x: Array, y: Array) -> float:
    k, q = (unit(a) @ unit(a).T for a in (x, y))
    if m.estimator == "unbiased":
        a, b, hsic = masks(x, m.k), masks(y, m.k), hsic_unbiased
    else:
        a, b = (np.array([[j in np.argsort(-row)[: m.k] for j in range(len(x))] for row in s], float) for s in (k, q))
        h = np.eye(len(x)) - 1 / len(x)

        def hsic(s: Array, t: Array) -> float:
            return float(np.trace(s @ h @ t @ h))

    own = hsic(a * k, a * k) * hsic(b * q, b * q)
    return hsic(a * b * k, a * b * q) / (np.sqrt(own) + m.epsilon)


def svcca(m: Measure, x: Array, y: Array) -> float:
    kept = []
    for a in (x, y):
        a = a - a.mean(axis=0)
        if m.standardize:
            a = a / a.std(axis=0, ddof=1)
        u, s, _ = np.linalg.svd(a, full_matrices=False)
        share = np.cumsum(s**2) / (s**2).sum()
        count = m.components if isinstance(m.components, int) else int(np.searchsorted(share, m.components)) + 1
        kept.append(u[:, :count])
    return float(np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean())


CASES: tuple[Case, ...] = (
    Case(MutualKNN(k=5), mutual),
    Case(MutualKNN(k=4, similarity="dot"), mutual),
    Case(MutualKNN(k=4, similarity="euclidean"), mutual),
    Case(MutualKNN(k=5, center=True), mutual),
    Case(CycleKNN(k=3), cycle, perfect=False),
    Case(LCSKNN(k=4), lcs),
    Case(LCSKNN(k=4, normalized=False), lcs),
    Case(EditDistanceKNN(k=4), edit),
    Case(CKA(), cka),
    Case(CKA(estimator="biased"), cka),
    Case(CKA(kernel="rbf"), cka),
    Case(CKA(kernel="rbf", estimator="biased", bandwidth=3.0), cka),
    Case(CKA(epsilon=1e-3), cka, perfect=False),
    Case(CKNNA(k=5), cknna),
    Case(CKNNAPaper(k=5), cknna),
    Case(CKNNAReference(k=6), cknna_reference, perfect=False),
    Case(CKNNAReference(k=6, estimator="biased"), cknna_reference, perfect=False),
    Case(SVCCA(components=4), svcca),
    Case(SVCCA(components=0.9), svcca),
    Case(SVCCA(components=4, standardize=True), svcca),
)
