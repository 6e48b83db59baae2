"""What several oracles build on: plain float64 numpy, written from the published definitions."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


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


def masks(x: Array, k: int) -> Array:
    out = np.zeros((len(x), len(x)))
    for i, row in enumerate(lists(x, k)):
        out[i, row] = 1
    return out


def hsic_unbiased(k: Array, q: Array) -> float:
    """Song et al. 2012, equation 5, with sums over distinct indices written out."""
    n = len(k)
    k, q = k - np.diag(np.diag(k)), q - np.diag(np.diag(q))
    total = np.trace(k @ q) + k.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ q).sum()
    return float(total / (n * (n - 3)))
