"""Oracles of the measures that predict, align or anchor one space by the other, from scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from scipy.stats import kendalltau, pearsonr
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression as LeastSquares
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import KFold

from oracles._tools import Array
from repalign.measures import (
    VERSA,
    AlignedCosine,
    DirectStitching,
    LinearRegression,
    Measure,
    PLSPredictivity,
    RelativeRepresentation,
    RidgePredictivity,
)
from repalign.testing import Case


def linear_regression(m: Measure, x: Array, y: Array) -> float:
    if m.predicts == "x":
        x, y = y, x
    return r2_score(y, LeastSquares().fit(x, y).predict(x), multioutput="variance_weighted")


def splits(m: Measure, x: Array) -> Iterator[tuple[Array, Array]]:
    yield from KFold(m.folds, shuffle=True, random_state=m.seed).split(x)


def inputs(m: Measure, train: Array, test: Array) -> tuple[Array, Array]:
    """Training and held-out rows in the unit that the measure asks for."""
    if m.standardize == "no":
        unit = np.sqrt(train.var(axis=0).mean())
        return train / unit, test / unit
    by = test if m.standardize == "fold" else train
    return (train - train.mean(axis=0)) / train.std(axis=0), (test - by.mean(axis=0)) / by.std(axis=0)


def predictions(m: Measure, x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    """Predicted and true values of every fold."""
    for train, test in splits(m, x):
        given, asked = inputs(m, x[train], x[test])
        if isinstance(m, PLSPredictivity):
            count = min(m.components, x.shape[1], len(train) - 1)
            model = PLSRegression(count, scale=m.standardize != "no")
        else:
            model = RidgeCV(alphas=np.logspace(-8, 8, 17))
        yield model.fit(given, y[train]).predict(asked), y[test]


def predictivity(m: Measure, x: Array, y: Array) -> float:
    scores = [[pearsonr(p, t).statistic for p, t in zip(a.T, b.T, strict=True)] for a, b in predictions(m, x, y)]
    r = {"mean": np.mean, "median": np.median}[m.over_units](np.mean(scores, axis=0))
    return float(r if m.ceiling is None else np.sign(r) * r**2 / m.ceiling)


def versa(m: Measure, x: Array, y: Array) -> float:
    scores = []
    for predicted, target in predictions(m, x, y):
        above = np.triu_indices(len(target), 1)
        scores.append(kendalltau(*(1 - np.corrcoef(a)[above] for a in (predicted, target))).statistic)
    return float(np.mean(scores))


def stitching(m: Measure, x: Array, y: Array) -> float:
    everything = [(np.arange(len(x)),) * 2] if m.folds is None else splits(m, x)
    rest = 0.0
    for train, test in everything:
        given, wanted = x[train].mean(axis=0), y[train].mean(axis=0)
        matrix = np.linalg.lstsq(x[train] - given, y[train] - wanted, rcond=None)[0]
        rest += ((wanted + (x[test] - given) @ matrix - y[test]) ** 2).sum()
    return float(rest / (y**2 if m.relative_to == "norm" else (y - y.mean(axis=0)) ** 2).sum())


def aligned_cosine(m: Measure, x: Array, y: Array) -> float:
    if m.center:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    d = max(x.shape[1], y.shape[1])
    x, y = (np.pad(a, ((0, 0), (0, d - a.shape[1]))) for a in (x, y))
    if m.alignment == "orthogonal":
        x = x @ orthogonal_procrustes(x, y)[0]
    else:
        x = x[:, linear_sum_assignment((x.T @ y).T, maximize=True)[1]]
    return float(np.mean([p @ t / np.linalg.norm(p) / np.linalg.norm(t) for p, t in zip(x, y, strict=True)]))


def relative(m: Measure, x: Array, y: Array) -> float:
    rng = np.random.default_rng(m.seed)
    scores = []
    for _ in range(m.draws):
        order = rng.permutation(len(x))
        at, others = order[: m.anchors], order[m.anchors :]
        sides = []
        for a in (x, y):
            mean = a[at].mean(axis=0) if m.center else 0
            sides.append(cosine_similarity(a[others] - mean, a[at] - mean))
        scores.append(np.mean(np.diag(cosine_similarity(*sides))))
    return float(np.mean(scores))


# The predicting side may be changed by any invertible map, which is no invariance of the other side.
PREDICTING = frozenset({"column_scale", "invertible"})

CASES = (
    Case(LinearRegression(), linear_regression, insensitive=PREDICTING),
    Case(LinearRegression(predicts="x"), linear_regression),
    # The folds' leave-one-out errors are summed in another order; alpha is the same.
    Case(RidgePredictivity(folds=2), predictivity, perfect=False, tolerance=1e-8, trials=20),
    Case(RidgePredictivity(folds=3, standardize="train", over_units="median"), predictivity, perfect=False, tolerance=1e-8,
         trials=0),
    Case(RidgePredictivity(folds=5, seed=3, standardize="fold", ceiling=0.8), predictivity, perfect=False, tolerance=1e-8,
         trials=0),
    Case(VERSA(folds=2), versa, perfect=False, tolerance=1e-8, trials=10),
    Case(PLSPredictivity(components=2, folds=2), predictivity, perfect=False, tolerance=1e-8, trials=15),
    Case(PLSPredictivity(components=4, folds=3, standardize="train"), predictivity, perfect=False, tolerance=1e-8, trials=0),
    Case(DirectStitching(folds=2), stitching, insensitive=PREDICTING),
    Case(DirectStitching(folds=3, relative_to="norm"), stitching, insensitive=PREDICTING, trials=20),
    Case(DirectStitching(folds=None), stitching, insensitive=PREDICTING),
    Case(AlignedCosine(), aligned_cosine),
    Case(AlignedCosine(center=True), aligned_cosine, trials=20),
    Case(AlignedCosine(alignment="permutation"), aligned_cosine, trials=20),
    Case(RelativeRepresentation(anchors=3, draws=2), relative, trials=40),
    Case(RelativeRepresentation(anchors=12, center=False), relative, trials=20),
)  # fmt: skip
