"""Oracles of representational similarity analysis: scipy's distances and rank correlations, whitening as published."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from oracles._tools import Array
from repalign.measures import RSA, Measure, RSAKendall, RSMNormDifference, SigmoidRSA, TopologicalRSA
from repalign.testing import Case


def dissimilarities(name: str, x: Array) -> Array:
    if name == "gaussian":
        squared = pdist(x, "sqeuclidean")
        return 1 - np.exp(-squared / squareform(squared).mean())
    if name == "mahalanobis" and len(x) <= x.shape[1] + 1:
        return np.full(len(x) * (len(x) - 1) // 2, np.nan)  # whitened stimuli are equidistant
    return pdist(x, name)


def whitened(v: Array, w: Array) -> float:
    """v' V^-1 w / sqrt(v' V^-1 v w' V^-1 w): V the covariance of dissimilarities by the stimuli they share."""
    n = len(squareform(v))
    contrasts = np.zeros((len(v), n))
    for row, (i, j) in enumerate(itertools.combinations(range(n), 2)):
        contrasts[row, i], contrasts[row, j] = 1, -1
    inverse = np.linalg.inv((contrasts @ contrasts.T) ** 2)
    return float(v @ inverse @ w / np.sqrt((v @ inverse @ v) * (w @ inverse @ w)))


def rho_a(v: Array, w: Array) -> float:
    n = len(v)
    return float(12 * (rankdata(v) @ rankdata(w)) / (n**3 - n) - 3 * (n + 1) / (n - 1))


COMPARISONS = {
    "pearson": lambda v, w: pearsonr(v, w).statistic,
    "spearman": lambda v, w: spearmanr(v, w).statistic,
    "rho_a": rho_a,
    "cosine": lambda v, w: v @ w / np.sqrt((v @ v) * (w @ w)),
    "whitened_cosine": whitened,
    "whitened_pearson": lambda v, w: whitened(v - v.mean(), w - w.mean()),
}


def rsa(m: Measure, x: Array, y: Array) -> float:
    return float(COMPARISONS[m.comparison](*(dissimilarities(m.dissimilarity, a) for a in (x, y))))


def kendall(m: Measure, x: Array, y: Array) -> float:
    """Counted pair by pair for tau_a."""
    v, w = (dissimilarities(m.dissimilarity, a) for a in (x, y))
    if m.tau == "b":
        return float(kendalltau(v, w).statistic)
    product = np.sign(v[:, None] - v[None]) * np.sign(w[:, None] - w[None])
    return float(product.sum() / (len(v) * (len(v) - 1)))


def shortest(lengths: Array) -> Array:
    """Floyd and Warshall's loop, in which 0 is a length like any other."""
    out = np.where(lengths < 1, lengths, np.inf)
    np.fill_diagonal(out, 0)
    for k in range(len(out)):
        out = np.minimum(out, out[:, k : k + 1] + out[k])
    return np.where(np.isinf(out), out[np.isfinite(out)].max() + 1, out)


def topological(m: Measure, x: Array, y: Array) -> float:
    def cut(v: Array) -> Array:
        if m.ranked:
            v = rankdata(v)
            v = (v - v.min()) / (v.max() - v.min())
        low, high = np.quantile(v, [m.lower, m.upper])
        v = np.where(v < low, 0, np.where(v > high, 1, (v - low) / (high - low)))
        return squareform(shortest(squareform(v)), checks=False) if m.geodesic else v

    return float(pearsonr(*(cut(dissimilarities(m.dissimilarity, a)) for a in (x, y))).statistic)


def sigmoid(m: Measure, x: Array, y: Array) -> float:
    def soft(v: Array) -> Array:
        ranks = (rankdata(v) - 1) / (len(v) - 1)
        return 1 / (1 + np.exp(-m.alpha * (ranks - m.beta)))

    return float(pearsonr(*(soft(dissimilarities(m.dissimilarity, a)) for a in (x, y))).statistic)


def norm_difference(m: Measure, x: Array, y: Array) -> float:
    r, s = (squareform(dissimilarities(m.dissimilarity, a)) for a in (x, y))
    return float(np.linalg.norm(r - s, 2 if m.norm == "spectral" else "fro"))


CASES = (
    Case(RSA(), rsa),
    Case(RSA(dissimilarity="euclidean"), rsa),
    Case(RSA(dissimilarity="mahalanobis", comparison="pearson"), rsa, noise="nan"),  # n <= d + 1: equidistant
    Case(RSA(dissimilarity="cosine", comparison="pearson"), rsa),
    Case(RSA(dissimilarity="gaussian", comparison="pearson"), rsa),
    Case(RSA(dissimilarity="cityblock", comparison="cosine"), rsa),
    # Duplicates tie dissimilarities, and ties cost a space its perfect score.
    Case(RSA(dissimilarity="euclidean", comparison="rho_a"), rsa, perfect=False),
    Case(RSA(dissimilarity="sqeuclidean", comparison="whitened_cosine"), rsa),
    Case(RSA(dissimilarity="correlation", comparison="whitened_pearson"), rsa),
    Case(RSAKendall(), kendall, perfect=False, trials=40),
    Case(RSAKendall(dissimilarity="euclidean", tau="b"), kendall, trials=40),
    Case(RSMNormDifference(), norm_difference),
    Case(RSMNormDifference(dissimilarity="correlation", norm="frobenius"), norm_difference),
    Case(TopologicalRSA(), topological),
    Case(TopologicalRSA(lower=0.0, upper=0.5, dissimilarity="correlation", ranked=False), topological),
    Case(TopologicalRSA(lower=0.0, upper=0.3, geodesic=True), topological),
    Case(SigmoidRSA(), sigmoid),
)
