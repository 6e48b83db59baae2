"""Oracles of the measures on kernels."""

from __future__ import annotations

import numpy as np

from oracles._tools import Array, hsic_unbiased, masks, unit
from repalign.measures import CKA, CKNNA, CKNNAPaper, CKNNAReference, Measure
from repalign.testing import Case


def kernel(m: Measure, x: Array) -> Array:
    if m.kernel == "linear":
        return x @ x.T
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    variance = np.median(squared[np.triu_indices(len(x), 1)]) if m.bandwidth == "median" else m.bandwidth**2
    return np.exp(-squared / (2 * variance))


def cka(m: Measure, x: Array, y: Array) -> float:
    k, q = kernel(m, x), kernel(m, y)
    if m.estimator == "debiased":
        hsic = hsic_unbiased
    else:
        h = np.eye(len(x)) - 1 / len(x)

        def hsic(a: Array, b: Array) -> float:
            return float(np.trace(a @ h @ b @ h))

    return hsic(k, q) / (np.sqrt(hsic(k, k) * hsic(q, q)) + m.epsilon)


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


CASES = (
    Case(CKA(), cka),
    Case(CKA(estimator="biased"), cka),
    Case(CKA(kernel="rbf"), cka),
    Case(CKA(kernel="rbf", estimator="biased", bandwidth=3.0), cka),
    Case(CKA(epsilon=1e-3), cka, perfect=False),
    Case(CKNNA(k=5), cknna),
    Case(CKNNAPaper(k=5), cknna),
    Case(CKNNAReference(k=6), cknna_reference, perfect=False),
    # The biased reference form differs by its masks only where neighbours differ at the diagonal.
    Case(CKNNAReference(k=6, estimator="biased"), cknna_reference, perfect=False, insensitive=frozenset({"symmetry"})),
)
