"""Oracles of the measures on neighbour lists."""

from __future__ import annotations

import numpy as np

from oracles._tools import Array, lists
from repalign.measures import LCSKNN, CycleKNN, EditDistanceKNN, InformationImbalance, Measure, MutualKNN
from repalign.testing import Case


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


def imbalance(m: Measure, x: Array, y: Array) -> float:
    n = len(x)
    near, ranked = lists(x, m.k, m.similarity, m.center), lists(y, n - 1, m.similarity, m.center)
    return float(2 / n * np.mean([ranked[i].index(j) + 1 for i in range(n) for j in near[i]]))


CASES = (
    Case(MutualKNN(k=5), mutual),
    Case(MutualKNN(k=4, similarity="dot"), mutual),
    Case(MutualKNN(k=4, similarity="euclidean"), mutual),
    Case(MutualKNN(k=5, center=True), mutual),
    Case(CycleKNN(k=3), cycle, perfect=False),
    Case(LCSKNN(k=4), lcs),
    Case(LCSKNN(k=4, normalized=False), lcs),
    Case(EditDistanceKNN(k=4), edit),
    Case(InformationImbalance(), imbalance, perfect=False, tolerance=1e-7),  # float32 holds the relations, of norms up to n^1.5
    Case(InformationImbalance(k=4, similarity="cosine"), imbalance, perfect=False, tolerance=1e-7),
)
