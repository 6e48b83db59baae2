"""A layout of colours in few dimensions, and its place beside CIELAB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repalign.errors import RepalignError
from repalign.prh.colour.options import ColourOptions
from repalign.text import Progress, silent

_AT_ONCE = 25  # fits between two reports of progress


@dataclass(frozen=True, eq=False)
class Layout:
    """`points` (n, c); `stress`, Kruskal's stress-1 of the points against the distances (for "nonmetric" as SMACOF
    reports it, against the fitted disparities); `fits`, of how many the best was kept.
    """

    points: np.ndarray
    stress: float
    fits: int


def mds(distances: np.ndarray, options: ColourOptions, *, progress: Progress = silent) -> Layout:
    """Multidimensional scaling of distances (n, n): the best of `n_fits` random starts of SMACOF, or classical scaling.

    SMACOF is scikit-learn's (de Leeuw 1977; nonmetric: Kruskal 1964, which takes a distance of 0 as missing). Classical
    scaling (Torgerson 1952) is the leading eigenvectors of -H D^2 H / 2, those of negative eigenvalues left out as zeros;
    it needs one fit.
    """
    d = np.asarray(distances, float)
    c = options.n_components
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) <= c or not np.isfinite(d).all():
        raise RepalignError("distances that MDS cannot take", expected=f"finite (n, n) with n > {c}", got=f"shape {d.shape}")
    if options.mds == "classical":
        points = _classical(d, c)
        return Layout(points, _stress(points, d), 1)
    from sklearn.manifold import smacof

    seeds = np.random.SeedSequence([options.seed, 3]).generate_state(-(-options.n_fits // _AT_ONCE))
    best, least = np.zeros((len(d), c)), np.inf
    progress("mds", 0, options.n_fits)
    for i, seed in enumerate(seeds):
        count = min(_AT_ONCE, options.n_fits - i * _AT_ONCE)
        found: Any = smacof(
            d, metric=options.mds == "metric", n_components=c, n_init=count, max_iter=options.max_iter,
            random_state=int(seed) % 2**31,
        )  # fmt: skip
        if found[1] < least:
            best, least = found[0], float(found[1])
        progress("mds", min((i + 1) * _AT_ONCE, options.n_fits), options.n_fits)
    return Layout(best, _stress(best, d) if options.mds == "metric" else least, options.n_fits)


def _classical(d: np.ndarray, c: int) -> np.ndarray:
    squared = d**2
    gram = -(squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()) / 2
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1][:, :c] * np.sqrt(np.maximum(values[::-1][:c], 0))


def _stress(points: np.ndarray, d: np.ndarray) -> float:
    from scipy.spatial.distance import pdist, squareform

    fitted, given = pdist(points), squareform(d, checks=False)
    return float(np.sqrt(((fitted - given) ** 2).sum() / (fitted**2).sum()))


def align(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Points moved onto a target by the best translation, scale, rotation and reflection; and the disparity that is left.

    min over s, R, t of |s X R + t - Y|_F, R orthogonal (Kabsch 1976, Umeyama 1991). A reflection is allowed, as the paper
    does by fitting z and -z: in three dimensions that is the same. Disparity = |s X R + t - Y|^2 / |Y - mean Y|^2, in
    [0, 1], that of `scipy.spatial.procrustes`. Points of fewer dimensions than the target are padded with zeros.
    """
    from scipy.linalg import orthogonal_procrustes

    x, y = np.asarray(points, float), np.asarray(target, float)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise RepalignError("layouts that do not fit", expected="one row per colour", got=f"{x.shape} and {y.shape}")
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (x, y))
    centre = y.mean(axis=0)
    x, y = x - x.mean(axis=0), y - centre
    size_x, size_y = (x**2).sum(), (y**2).sum()
    if size_x == 0 or size_y == 0:
        raise RepalignError("a layout whose points are all one", expected="points that differ", got="no spread")
    fitted: Any = orthogonal_procrustes(x, y)
    rotation, traced = fitted
    moved = x @ rotation * (traced / size_x)
    return (moved + centre)[:, : target.shape[1]], float(1 - traced**2 / (size_x * size_y))
