"""Oracles of the measures on shared neighbours, their ranks, and neighbours by degrees."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.special import softmax

from oracles._tools import Array, lists, unit
from repalign.measures import (
    JaccardKNN,
    JointRankJaccard,
    Measure,
    MultiScaleKNN,
    RankSimilarity,
    SecondOrderCosine,
    SoftKNN,
)
from repalign.testing import Case


def jaccard_rows(m: Measure, x: Array, y: Array) -> list[float]:
    p, q = (lists(a, m.k, m.similarity, m.center) for a in (x, y))
    return [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(p, q, strict=True)]


def rank_rows(m: Measure, x: Array, y: Array) -> list[float]:
    out = []
    for a, b in zip(*(lists(z, m.k, m.similarity, m.center) for z in (x, y)), strict=True):
        ranks = [(a.index(j) + 1, b.index(j) + 1) for j in set(a) & set(b)]
        total = sum(2 / ((1 + abs(r - s)) * (r + s)) for r, s in ranks)
        out.append(total / sum(1 / q for q in range(1, len(ranks) + 1)) if ranks else 0.0)
    return out


def jaccard(m: Measure, x: Array, y: Array) -> float:
    return float(np.mean(jaccard_rows(m, x, y)))


def rank(m: Measure, x: Array, y: Array) -> float:
    return float(np.mean(rank_rows(m, x, y)))


def joint(m: Measure, x: Array, y: Array) -> float:
    return float(np.mean(np.multiply(jaccard_rows(m, x, y), rank_rows(m, x, y))))


def second_order(m: Measure, x: Array, y: Array) -> float:
    if m.center:
        x, y = (a - a.mean(axis=0) for a in (x, y))
    p, q = (lists(a, m.k) for a in (x, y))
    d, e = (cdist(a, a, "cosine") for a in (x, y))
    values = []
    for i in range(len(x)):
        union = sorted(set(p[i]) | set(q[i]))
        u, v = d[i, union], e[i, union]
        values.append(u @ v / np.sqrt((u @ u) * (v @ v)))
    return float(np.mean(values))


def multi_scale(m: Measure, x: Array, y: Array) -> float:
    values = []
    for k in m.k:
        p, q = (lists(a, k, m.similarity, m.center) for a in (x, y))
        values.append(np.mean([len(set(a) & set(b)) / k for a, b in zip(p, q, strict=True)]))
    return float(np.mean(values))


def similarity(m: Measure, x: Array) -> Array:
    if m.similarity == "euclidean":
        return -cdist(x, x, "sqeuclidean") / 2
    x = x - x.mean(axis=0) if m.center else x
    x = unit(x) if m.similarity == "cosine" else x
    return x @ x.T


def affinities(m: Measure, x: Array) -> Array:
    """Each row by a root search of its own."""
    s = similarity(m, x)
    out = np.zeros_like(s)
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        row = s[i, others]
        row = (row - row.max()) / (row.max() - row.min())

        def excess(log_b: float, row: Array = row) -> float:
            p = softmax(np.exp(log_b) * row)
            return -(p * np.log(np.maximum(p, 1e-300))).sum() - np.log(m.perplexity)

        out[i, others] = softmax(np.exp(brentq(excess, -20, 20, xtol=1e-14, rtol=1e-14)) * row)
    return out


def soft(m: Measure, x: Array, y: Array) -> float:
    return float((unit(affinities(m, x)) * unit(affinities(m, y))).sum(axis=1).mean())


CASES = (
    Case(JaccardKNN(k=5), jaccard),
    Case(JaccardKNN(k=4, similarity="euclidean"), jaccard),
    Case(RankSimilarity(k=5), rank),
    Case(JointRankJaccard(k=5), joint),
    Case(JointRankJaccard(k=4, center=True), joint),
    Case(SecondOrderCosine(k=5), second_order),
    Case(SecondOrderCosine(k=4, center=True), second_order),
    Case(MultiScaleKNN(k=(2, 5, 9)), multi_scale),
    Case(MultiScaleKNN(k=3, similarity="dot"), multi_scale),
    # The root search, of both, stops at 1e-12 of the entropy.
    Case(SoftKNN(perplexity=5), soft, tolerance=1e-9),
    Case(SoftKNN(perplexity=3.5, similarity="euclidean"), soft, tolerance=1e-9),
    Case(SoftKNN(perplexity=5, similarity="dot", center=True), soft, tolerance=1e-9),
)
