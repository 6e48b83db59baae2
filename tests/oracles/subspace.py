"""Oracles of the measures on subspaces and canonical correlations."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from oracles._tools import Array
from repalign.measures import CCA, PWCCA, SVCCA, EigenspaceOverlap, GrassmannDistance, Measure, SquaredCCA
from repalign.testing import Case


def centre(x: Array) -> Array:
    return x - x.mean(axis=0)


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


def inverse_root(c: Array) -> Array:
    """C^(-1/2) on the directions with variance, by eigenvalues."""
    values, vectors = np.linalg.eigh(c)
    kept = values > 1e-9 * values.max()
    return vectors[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T


def covariance(x: Array, y: Array) -> Array:
    return centre(x).T @ centre(y) / (len(x) - 1)


def canonical(x: Array, y: Array, ridge: float = 0.0) -> tuple[Array, Array, int]:
    """Left directions and correlations from whitened covariances, and how many there are."""
    whiten = [inverse_root(covariance(a, a) + ridge * np.eye(a.shape[1])) for a in (x, y)]
    u, rho, _ = np.linalg.svd(whiten[0] @ covariance(x, y) @ whiten[1])
    count = min(np.linalg.matrix_rank(centre(a)) for a in (x, y))
    return whiten[0] @ u, rho, count


def cca(m: Measure, x: Array, y: Array) -> float:
    _, rho, count = canonical(x, y, m.ridge)
    return float(rho.sum() / count)


def squared_cca(m: Measure, x: Array, y: Array) -> float:
    """The variance of the z-scored directions of y that least squares on x explains: a regression, no decomposition."""
    x, y = centre(x), centre(y)
    ranks = [np.linalg.matrix_rank(a) for a in (x, y)]
    targets = scipy.linalg.orth(y, rcond=1e-9)
    fitted = x @ np.linalg.lstsq(x, targets, rcond=1e-9)[0]
    return float((fitted**2).sum() / min(ranks))


def pwcca(m: Measure, x: Array, y: Array) -> float:
    maps, rho, count = canonical(x, y, m.ridge)
    variates = centre(x) @ maps[:, :count]
    by = {"morcos": np.abs(centre(x).T @ variates), "sample_l1": np.abs(variates)}
    weights = by[m.weights].sum(axis=0)
    return float((weights * rho[:count]).sum() / weights.sum())


def leading(m: Measure, x: Array, center: bool) -> Array:
    u, s, _ = np.linalg.svd(centre(x) if center else x, full_matrices=False)
    if m.components is None:
        return u[:, s > 1e-9 * s[0]]
    if isinstance(m.components, int):
        return u[:, : m.components]
    return u[:, : int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), m.components)) + 1]


def grassmann(m: Measure, x: Array, y: Array) -> float:
    angles = scipy.linalg.subspace_angles(leading(m, x, True), leading(m, y, True))
    return float(
        {
            "arc": np.sqrt((angles**2).sum()),
            "chordal": np.sqrt((np.sin(angles) ** 2).sum()),
            "largest": angles.max(),
        }[m.form]
    )


def eigenspace_overlap(m: Measure, x: Array, y: Array) -> float:
    u, v = (leading(m, a, m.center) for a in (x, y))
    angles = scipy.linalg.subspace_angles(u, v)
    return float((np.cos(angles) ** 2).sum() / max(u.shape[1], v.shape[1]))


CASES = (
    Case(SVCCA(components=4), svcca),
    Case(SVCCA(components=0.9), svcca),
    Case(SVCCA(components=4, standardize=True), svcca),
    Case(CCA(), cca),
    # Covariances square the condition, and with it the rounding of the oracle.
    Case(CCA(ridge=0.05), cca, perfect=False, tolerance=1e-9),
    Case(SquaredCCA(), squared_cca),
    Case(PWCCA(), pwcca),
    Case(PWCCA(weights="sample_l1", ridge=0.05), pwcca, perfect=False, tolerance=1e-9),
    Case(GrassmannDistance(components=4), grassmann),
    Case(GrassmannDistance(components=0.9, form="chordal"), grassmann),
    Case(GrassmannDistance(components=None, form="largest"), grassmann),
    Case(EigenspaceOverlap(), eigenspace_overlap),
    Case(EigenspaceOverlap(components=4, center=True), eigenspace_overlap),
    Case(EigenspaceOverlap(components=0.9), eigenspace_overlap),
)
