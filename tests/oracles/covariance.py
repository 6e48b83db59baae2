"""Oracles of the measures on covariances."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from oracles._tools import Array
from oracles.subspace import centre
from repalign.measures import ENSD, GULP, Measure, RiemannianDistance
from repalign.testing import Case


def gulp(m: Measure, x: Array, y: Array) -> float:
    """Feature space, with inverses, as the formula of the paper has it; pseudo-inverses at ridge 0."""
    x, y = (centre(a) / np.linalg.norm(centre(a)) for a in (x, y))  # n drops out
    inverse = [
        np.linalg.inv(s + m.ridge * np.eye(len(s))) if m.ridge else np.linalg.pinv(s, rcond=1e-9)
        for s in (x.T @ x, y.T @ y)
    ]
    own = [np.trace(np.linalg.matrix_power(a.T @ a @ i, 2)) for a, i in zip((x, y), inverse, strict=True)]
    return float(sum(own) - 2 * np.trace(inverse[0] @ x.T @ y @ inverse[1] @ y.T @ x))


def ensd(m: Measure, x: Array, y: Array) -> float:
    """By covariances of features and the cross-covariance."""
    x, y = centre(x), centre(y)
    spectra = [np.linalg.eigvalsh(a.T @ a) for a in (x, y)]
    ratios = [v.sum() ** 2 / (v**2).sum() for v in spectra]
    return float(np.prod(ratios) * ((x.T @ y) ** 2).sum() / np.prod([v.sum() for v in spectra]))


def riemannian(m: Measure, x: Array, y: Array) -> float:
    shrunk = []
    for a in map(centre, (x, y)):
        k = a @ a.T
        shrunk.append((1 - m.shrinkage) * len(k) * k / np.trace(k) + m.shrinkage * np.eye(len(k)))
    return float(np.linalg.norm(np.log(scipy.linalg.eigh(*shrunk, eigvals_only=True))))


CASES = (
    # Covariances and their inverses square the condition, and with it the rounding of the oracle.
    Case(GULP(), gulp, tolerance=1e-9),
    Case(GULP(ridge=0.0), gulp, tolerance=1e-8),
    Case(ENSD(), ensd, perfect=False),
    Case(RiemannianDistance(), riemannian),
)
