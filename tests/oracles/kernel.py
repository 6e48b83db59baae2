"""Oracles of the measures on kernels."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist, squareform
from sklearn.gaussian_process.kernels import Matern
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from oracles._tools import Array, hsic_unbiased, masks, unit
from repalign.measures import (
    CKA,
    CKNNA,
    HSIC,
    RV,
    AngularCKA,
    CKNNAPaper,
    CKNNAReference,
    DependentColumnsCKA,
    DistanceCorrelation,
    Measure,
    SquaredDistanceCorrelation,
    SquaredDistanceCovariance,
)
from repalign.testing import Case, pair


def kernel(m: Measure, x: Array) -> Array:
    """Kernels of scikit-learn; its own Laplacian takes the city-block distance, the Matern one of 1/2 the Euclidean."""
    if m.kernel == "linear":
        return x @ x.T
    if m.kernel in ("quadratic", "cubic"):
        z = x - x.mean(axis=0)
        variance = (z**2).sum() / len(z) if m.bandwidth == "variance" else m.bandwidth**2
        return polynomial_kernel(z, degree={"quadratic": 2, "cubic": 3}[m.kernel], gamma=1 / variance, coef0=1)
    variance = np.median(pdist(x) ** 2) if m.bandwidth == "median" else m.bandwidth**2
    if m.kernel == "laplacian":
        return Matern(length_scale=np.sqrt(variance), nu=0.5)(x)
    return rbf_kernel(x, gamma=1 / (2 * variance))


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


def hsic(m: Measure, x: Array, y: Array) -> float:
    k, q = kernel(m, x), kernel(m, y)
    if m.estimator == "unbiased":
        return hsic_unbiased(k, q)
    h = np.eye(len(x)) - 1 / len(x)
    return float(np.trace(k @ h @ q @ h)) / ((len(x) - 1) ** 2 if m.estimator == "biased" else 1)


def rv(m: Measure, x: Array, y: Array) -> float:
    """Robert and Escoufier's, from covariances; the modified one from Gram matrices without diagonals."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    if not m.modified:
        return float(((x.T @ y) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))
    k, q = (a @ a.T * (1 - np.eye(len(a))) for a in (x, y))
    return float((k * q).sum() / np.sqrt((k * k).sum() * (q * q).sum()))


def angular_cka(m: Measure, x: Array, y: Array) -> float:
    return float(np.arccos(cka(CKA(m.kernel, "biased", m.bandwidth), x, y)))


def dependent_columns(m: Measure, x: Array, y: Array) -> float:
    def own(a: Array) -> float:
        alone = sum(hsic_unbiased(np.outer(c, c), np.outer(c, c)) for c in a.T)
        return a.shape[1] / (a.shape[1] - 1) * (hsic_unbiased(a @ a.T, a @ a.T) - alone)

    return hsic_unbiased(x @ x.T, y @ y.T) / (np.sqrt(own(x) * own(y)) + m.epsilon)


def distance_covariance(m: Measure, x: Array, y: Array) -> float:
    """Four-fold sums of Szekely et al.: E ab + E a E b - 2 E a_i b_i, or as the covariance of Song et al. without bias."""
    a, b = (squareform(pdist(z)) ** m.exponent for z in (x, y))
    if getattr(m, "estimator", "biased") == "debiased":
        return hsic_unbiased(a, b)
    return float((a * b).mean() + a.mean() * b.mean() - 2 * (a.mean(axis=1) * b.mean(axis=1)).mean())


def distance_correlation(m: Measure, x: Array, y: Array) -> float:
    both, first, second = (distance_covariance(m, *arrays) for arrays in ((x, y), (x, x), (y, y)))
    return both / np.sqrt(first * second)


def related_columns(seed: int = 0, n: int = 40, dx: int = 7, dy: int = 11, offset: float = 1.0) -> tuple[Array, Array]:
    """Columns that share one strong direction, so that the self-terms are positive."""
    x, y = pair(seed, n, dx, dy, offset)
    z = 6 * np.random.default_rng([3, seed]).standard_normal((n, 1))
    return x + z, y + z * np.linspace(0.5, 1, dy)


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
    Case(CKA(kernel="laplacian"), cka),
    Case(CKA(kernel="laplacian", estimator="biased", bandwidth=4.0), cka),
    Case(CKA(kernel="quadratic"), cka),
    Case(CKA(kernel="cubic", estimator="biased"), cka),
    Case(CKA(kernel="cubic", bandwidth=3.0), cka),
    Case(HSIC(), hsic, perfect=False),
    Case(HSIC(estimator="biased"), hsic, perfect=False),
    Case(HSIC(kernel="rbf", estimator="trace"), hsic, perfect=False),
    Case(RV(), rv),
    Case(RV(modified=True), rv),
    Case(AngularCKA(), angular_cka),
    Case(AngularCKA(kernel="rbf", bandwidth=3.0), angular_cka),
    Case(DependentColumnsCKA(), dependent_columns, perfect=False, data=related_columns, noise="nan"),
    Case(DependentColumnsCKA(epsilon=100.0), dependent_columns, perfect=False, data=related_columns, noise="nan"),
    Case(SquaredDistanceCorrelation(), distance_correlation),
    Case(SquaredDistanceCorrelation(estimator="biased", exponent=1.5), distance_correlation),
    Case(DistanceCorrelation(), lambda m, x, y: np.sqrt(distance_correlation(m, x, y))),
    Case(SquaredDistanceCovariance(), distance_covariance, perfect=False),
    Case(SquaredDistanceCovariance(estimator="biased", exponent=0.5), distance_covariance, perfect=False),
)
