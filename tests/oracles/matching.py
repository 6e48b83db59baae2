"""Oracles of the measures that match units."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.stats import rankdata
from sklearn.model_selection import KFold

from oracles._tools import Array
from repalign.measures import HardUnitMatching, MeanCorrelationCoefficient, Measure, PairwiseMatching, SoftUnitMatching
from repalign.testing import Case


def correlations(x: Array, y: Array) -> Array:
    return np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]


def hard(m: Measure, x: Array, y: Array) -> float:
    found = correlations(x, y)
    return float(found[linear_sum_assignment(-found)].mean())


def mcc(m: Measure, x: Array, y: Array) -> float:
    if m.correlation == "spearman":
        x, y = rankdata(x, axis=0), rankdata(y, axis=0)
    found = np.abs(correlations(x, y))
    return float(found[linear_sum_assignment(-found)].mean())


def soft(m: Measure, x: Array, y: Array) -> float:
    found = correlations(x, y)
    if m.form == "best":
        return float((found.max(axis=0).mean() + found.max(axis=1).mean()) / 2)
    d, q = found.shape
    sums = np.vstack([np.kron(np.eye(d), np.ones(q)), np.kron(np.ones(d), np.eye(q))])
    return -linprog(-found.ravel(), A_eq=sums, b_eq=[1 / d] * d + [1 / q] * q).fun


def pairwise(m: Measure, x: Array, y: Array) -> float:
    scores = []
    for train, test in KFold(m.folds, shuffle=True, random_state=m.seed).split(x):
        partner = correlations(x[train], y[train]).argmax(axis=0)
        scores.append([correlations(x[test], y[test])[p, j] for j, p in enumerate(partner)])
    return float(np.mean(scores))


CASES = (
    Case(MeanCorrelationCoefficient(), mcc),
    Case(MeanCorrelationCoefficient(correlation="spearman"), mcc),
    Case(HardUnitMatching(), hard),
    Case(SoftUnitMatching(), soft),
    Case(SoftUnitMatching(form="best"), soft),
    Case(PairwiseMatching(folds=2), pairwise, trials=40),
    Case(PairwiseMatching(folds=4, seed=2), pairwise, trials=0),
)
