"""Linear maps from one space to the other: regression, direct stitching, held-out predictivity (as for brains), VERSA.

X, the first argument, predicts Y. Rows are split into folds by position and a seed; nothing of a held-out row is used in
training, with one exception that has to be asked for (standardize="fold").
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from repalign.errors import choose
from repalign.measures.measure import (
    ISOMETRIES_AND_SCALE,
    Batched,
    Distance,
    Features,
    Measure,
    as_count,
    as_folds,
    as_number,
    as_seed,
    optional,
    parameter,
)
from repalign.measures.numerics.precision import basis, frobenius, full_precision, rows_of
from repalign.measures.numerics.regressions import HeldOut, Predictor, held_out, least_squares, pls, ridge
from repalign.measures.numerics.rows import centred, column_norms, widen


@dataclass(frozen=True, eq=False)
class Spanned(Features):
    """Centred rows (n, d) at Frobenius norm 1, and an orthonormal basis (n, r) of their columns."""

    basis: Tensor = None  # type: ignore[assignment]

    def permute(self, p: Tensor) -> Self:
        return replace(self, values=self.values[p], basis=self.basis[p])


@dataclass(frozen=True)
class LinearRegression(Measure):
    """Linear regression: the share of one space's variance that a linear map of the other explains, in sample.

    s = ||Q_X^T Yc||_F^2 / ||Yc||_F^2 with Q_X an orthonormal basis of the centred columns of X: the R^2 of all columns of
    Y pooled by their variance. X, the first argument, predicts Y.

    Parameters
    ----------
    predicts : "y" (from x, as above), or "x" (from y).

    Shapes (n, d1) and (n, d2). Range [0, 1]. Chance is about d / (n - 1) with d the width of the predicting side, and any
    predictor of d >= n - 1 columns scores 1: where d is not far below n use `RidgePredictivity`, which holds rows out. Not
    symmetric. Invariant to orthogonal maps, isotropic scale and translation of either side, and to any invertible map of
    the predicting side. nan for a constant representation.

    Source: `LinearRegression` of ReSi (Klabunde et al. 2024), which is predicts="x" here; it inverts a matrix root and
    gives noise or an error for deficient rank, where ours counts the directions above rounding.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 6))
    >>> round(LinearRegression()(x, x[:, :3] + 1), 12)
    1.0
    """

    predicts: str = parameter("y", choose, ("y", "x"))

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("linear_regression", "linreg")
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    def prepare(self, x: Tensor) -> Spanned:
        rows = rows_of(x)
        norm = frobenius(rows.values)
        return Spanned(rows.values / norm if norm else rows.values, norm, basis(rows))

    def compare(self, a: Spanned, b: Spanned) -> float:
        given, explained = (a, b) if self.predicts == "y" else (b, a)
        if not given.norm or not explained.norm:
            return math.nan
        with full_precision():
            inside = given.basis.T @ explained.values
        return float(torch.linalg.vector_norm(inside)) ** 2


@dataclass(frozen=True)
class DirectStitching(Distance, Batched):
    """Direct stitching: what the best affine map of X leaves of Y, on rows that it was not fitted to.

    s = sum over held-out rows |T(x_i) - y_i|^2 / sum |y_i - mean y|^2, T the least-squares map with an offset, fitted to
    the other rows (of least norm where it is not unique). A distance: 0 where Y is an affine image of X, about 1 or more
    at chance. X, the first argument, is mapped to Y.

    Parameters
    ----------
    folds : held-out folds of the rows, drawn by `seed`; every row is held out once. None fits and judges on all rows:
        then s = 1 - `LinearRegression`, and 0 for every X of n - 1 columns or more.
    seed : of the folds.
    relative_to : "deviation", or "norm": sum |y_i|^2 below the line, which a common offset of Y makes small.

    Shapes (n, d1) and (n, d2). Range [0, inf), [0, 1] without folds. Held out, a map from d columns near the number of
    training rows overfits and s may be far above 1; `RidgePredictivity` does not. Not symmetric. Invariant to orthogonal
    maps, isotropic scale and translation of X, and of Y (with "norm" not to a translation of Y). nan for a constant
    representation. Raises RepalignError unless n >= 2 folds.

    Source: Lenc & Vedaldi 2015; direct matching of Csiszarik et al. 2021 (arXiv 2110.14633), and its residual in Balogh &
    Jelasity 2025 (arXiv 2412.11299), which is in sample and relative to the norm. Stitching by task loss needs the rest of
    the network, and calls distant layers alike.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 6))
    >>> DirectStitching()(x, 3 * x[:, :4] + 1) < 1e-25
    True
    """

    folds: int | None = parameter(5, optional, as_folds)
    seed: int = parameter(0, as_seed)
    relative_to: str = parameter("deviation", choose, ("deviation", "norm"))

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d per layer, folds (n d min(n, d) + n d^2) per pair"
    aliases: ClassVar[tuple[str, ...]] = ("direct_stitching", "stitching")
    symmetric: ClassVar[bool] = False
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.folds is None else self.bounds

    @property
    def min_n(self) -> int:
        return 2 if self.folds is None else 2 * self.folds

    def prepare(self, x: Tensor) -> Features:
        """Centred rows; the norm is the root of sum |y_i|^2 / sum |y_i - mean|^2."""
        found = centred(x)
        rows = found.rows
        norm = float(torch.linalg.vector_norm(rows))
        return Features(rows / norm if norm else rows, math.sqrt(1 + len(x) * found.mean_square / norm**2) if norm else 0.0)

    def compare_all(self, a: Sequence[Features], b: Sequence[Features]) -> Tensor:
        out, everything = torch.zeros(len(a), len(b), dtype=torch.float64), torch.arange(a[0].n)
        for i, s in enumerate(a):
            splits = [(everything, everything)] if self.folds is None else held_out(s.n, self.folds, self.seed)
            for train, test in splits:
                predict = least_squares(s.values[train], s.values[test]) if s.norm else None
                for j, t in enumerate(b):
                    if predict is None or not t.norm:
                        out[i, j] = math.nan
                        continue
                    with full_precision():
                        mean = t.values[train].mean(dim=0)
                        rest = t.values[test] - mean - predict @ (t.values[train] - mean)
                    out[i, j] += float(torch.linalg.vector_norm(rest)) ** 2
        if self.relative_to == "norm":
            out /= torch.tensor([t.norm**2 or 1.0 for t in b], dtype=torch.float64)
        return out


@dataclass(frozen=True, eq=False)
class Rows(Features):
    """Centred rows (n, d), and the mean (d,) that was taken off, in the same unit."""

    mean: Tensor = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Predictivity(HeldOut, Batched):
    """Predictors that are fitted to x once per fold and used for every y: here ridge regression."""

    standardize: str = parameter("no", choose, ("no", "train", "fold"))

    family: ClassVar[str] = "mapping"
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "translation", "permutation"})
        return common | {"orthogonal" if self.standardize == "no" else "column_scale"}

    def prepare(self, x: Tensor) -> Rows:
        rows, unit, *_ = centred(x)
        return Rows(rows, norm=float(rows.abs().amax() > 0), mean=(widen(x) / unit).mean(dim=0))

    def compare_all(self, a: Sequence[Rows], b: Sequence[Rows]) -> Tensor:
        out = torch.full((len(a), len(b)), math.nan, dtype=torch.float64)
        targets = [(j, self._target(t)) for j, t in enumerate(b) if t.norm]
        for i, s in enumerate(a):
            if not s.norm or not targets:
                continue
            scores: list[list[Tensor]] = [[] for _ in targets]
            for train, test in held_out(s.n, self.folds, self.seed):
                predictor = self._fit(*self._scaled(s.values[train], s.values[test]))
                for found, (_, y) in zip(scores, targets, strict=True):
                    known = y[train]
                    mean = known.mean(dim=0)
                    found.append(self._judge(predictor(known - mean) + mean, y[test]))
            for found, (j, _) in zip(scores, targets, strict=True):
                out[i, j] = self._summary(torch.stack(found))
        return out

    def _scaled(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts of x without the mean of the training rows, in the unit that `standardize` says."""
        if self.standardize == "fold":
            return _standardized(train, train), _standardized(test, test)
        if self.standardize == "train":
            return _standardized(train, train), _standardized(test, train)
        mean = train.mean(dim=0)
        unit = (train - mean).square().mean().sqrt()
        unit = torch.where(unit > 0, unit, 1.0)
        return (train - mean) / unit, (test - mean) / unit

    @abstractmethod
    def _target(self, y: Rows) -> Tensor:
        """The rows to be predicted."""

    def _fit(self, train: Tensor, test: Tensor) -> Predictor:
        return ridge(train, test)

    @abstractmethod
    def _judge(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Scores of a fold, one or one per unit."""

    @abstractmethod
    def _summary(self, scores: Tensor) -> float:
        """From the scores of all folds (folds, units or 1)."""


def as_reliability(name: str, value: Any) -> float:
    """A number in (0, 1]."""
    expected = "None, or a number in (0, 1]: how well repetitions of y agree with each other"
    return as_number(name, value, lambda v: 0 < v <= 1, "is not a reliability", expected)


@dataclass(frozen=True)
class _UnitPredictivity(_Predictivity):
    """Pearson r of every unit of y on held-out rows, over folds and then over units."""

    over_units: str = parameter("mean", choose, ("mean", "median"))
    ceiling: float | None = parameter(None, optional, as_reliability)

    @property
    def range(self) -> tuple[float, float]:
        most = 1.0 if self.ceiling is None else 1 / self.ceiling
        return (-most, most)

    def _target(self, y: Rows) -> Tensor:
        return y.values[:, _varies(y.values)]

    def _judge(self, predicted: Tensor, target: Tensor) -> Tensor:
        return _columnwise_pearson(predicted, target)

    def _summary(self, scores: Tensor) -> float:
        units = scores.mean(dim=0)
        r = float(units.quantile(0.5) if self.over_units == "median" else units.mean())
        return r if self.ceiling is None else math.copysign(r * r / self.ceiling, r)


@dataclass(frozen=True)
class RidgePredictivity(_UnitPredictivity):
    """Ridge predictivity: how well ridge regression from X predicts the units of Y on held-out stimuli.

    s = mean over units of the mean over folds of Pearson r between predicted and true values. In every fold one alpha of
    17 values 1e-8 .. 1e8 serves all units: that of the least squared leave-one-out error on the training rows.

    Parameters
    ----------
    folds, seed : held-out folds of the rows (the split of scikit-learn's shuffled KFold).
    standardize : the unit of X: "no" divides by one number, the root mean square of the training rows; "train" every
        column by its own deviation on the training rows; "fold" as "train", and held-out rows by the mean and deviation of
        their own fold, as NeuroAIMetrics does.
    over_units : "mean", or "median" (Brain-Score).
    ceiling : how reliable Y is, for instance a split-half correlation; then s = r |r| / ceiling, r^2 / ceiling with the
        sign of r. (r / ceiling)^2, which older code gives, exceeds 1 for a perfect model: a reliability bounds r^2.

    Shapes (n, d1) and (n, d2). Range [-1, 1], chance about 0 (slightly below). Not symmetric. Invariant to isotropic scale
    and translation of both, to rotation of X (not with standardize, then to the scale of every column of X) and to the
    scale and order of units of Y up to the choice of alpha. Units of Y that are constant are left out, r is 0 where it is
    undefined; nan if a side is constant. Raises RepalignError unless n >= 2 folds.

    Source: Schrimpf et al. 2018 (Brain-Score); `LinearPredictivity` of NeuroAIMetrics with standardize="fold".

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> round(RidgePredictivity()(x, x[:, :2] - 3 * x[:, 2:4]), 9)
    1.0
    """

    cost: ClassVar[str] = "n d per layer; folds 17 n d min(n, d) per layer as predictor, folds 4 n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("ridge_predictivity", "linear_predictivity")


@dataclass(frozen=True)
class VERSA(_Predictivity):
    """VERSA: representational similarity of Y and its prediction from X, on held-out stimuli.

    s = mean over folds of Kendall's tau-b between the correlation RDMs of the held-out rows of Y and of their prediction
    by ridge regression from X, fitted as in `RidgePredictivity`.

    Parameters
    ----------
    folds, seed, standardize : as in `RidgePredictivity`.

    Shapes (n, d1) and (n, d2). Range [-1, 1], chance about 0. Not symmetric. The invariances of `RidgePredictivity` in X;
    in Y of isotropic scale and the order of units only, since correlations of rows depend on the means of the units. A
    fold whose RDM is constant (fewer than three units or rows, for instance) counts 0; nan if a side is constant. Raises
    RepalignError unless n >= 2 folds.

    Source: Khaligh-Razavi et al. 2017 (mixed RSA); `VERSA` of NeuroAIMetrics with standardize="fold".

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> round(VERSA()(x, 2 * x + 1), 3)
    1.0
    """

    cost: ClassVar[str] = "that of RidgePredictivity, and n^2 (d + log n) / folds per pair"
    aliases: ClassVar[tuple[str, ...]] = ("versa",)

    def _target(self, y: Rows) -> Tensor:
        return y.values + y.mean

    def _judge(self, predicted: Tensor, target: Tensor) -> Tensor:
        from scipy.stats import kendalltau

        upper = torch.triu_indices(len(target), len(target), 1).unbind()
        first, second = (_row_correlations(rows)[upper].cpu().numpy() for rows in (predicted, target))
        # Constant RDMs (two held-out rows have one entry) have no rank correlation.
        defined = len(first) > 1 and first.min() < first.max() and second.min() < second.max()
        return torch.tensor([kendalltau(first, second)[0] if defined else 0.0], dtype=torch.float64)

    def _summary(self, scores: Tensor) -> float:
        return float(scores.mean())


@dataclass(frozen=True)
class PLSPredictivity(_UnitPredictivity):
    """PLS predictivity: how well partial least squares from X predicts the units of Y on held-out stimuli.

    s = mean over units of the mean over folds of Pearson r between predicted and true values, by PLS2 regression with
    `components` directions of greatest covariance.

    Parameters
    ----------
    components : directions; a fold whose covariance is exhausted before takes what there is (then it is least squares).
    folds, seed, over_units, ceiling : as in `RidgePredictivity`.
    standardize : "no", as Brain-Score does; "train" or "fold" as in `RidgePredictivity`, and the columns of Y by their
        deviation in training (the default of scikit-learn).

    Shapes (n, d1) and (n, d2). Range [-1, 1], chance about 0. Not symmetric. Invariant to isotropic scale and translation
    of both, and to rotation of X (not with standardize, then to the scale of every column of X). Units of Y that are
    constant are left out, r is 0 where it is undefined; nan if a side is constant. Raises RepalignError unless n >= 2
    folds.

    Source: Schrimpf et al. 2018 (Brain-Score), 25 components; `PLSreg` of NeuroAIMetrics with standardize="fold". The
    leading directions end where scikit-learn's `PLSRegression` ends its iteration, so that numbers agree with it.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> round(PLSPredictivity(components=6)(x, x[:, :2] - 3 * x[:, 2:4]), 9)
    1.0
    """

    components: int = parameter(25, as_count)

    cost: ClassVar[str] = "n d per layer, folds (n d^2 + iterations components d^2) per pair"
    aliases: ClassVar[tuple[str, ...]] = ("pls_predictivity", "pls")

    def _fit(self, train: Tensor, test: Tensor) -> Predictor:
        if train.shape[1] > train.shape[0]:  # the same rows in coordinates of the space that training spans
            axes, coordinates = torch.linalg.qr(train.T)
            with full_precision():
                train, test = coordinates.T, test @ axes

        def predict(y: Tensor) -> Tensor:
            if self.standardize == "no":
                return pls(train, test, y, self.components)
            deviation = y.std(dim=0)
            deviation = torch.where(deviation > 0, deviation, 1.0)
            return pls(train, test, y / deviation, self.components) * deviation

        return predict


def _varies(rows: Tensor) -> Tensor:
    return (rows != rows[:1]).any(dim=0)


def _standardized(rows: Tensor, like: Tensor) -> Tensor:
    """Columns by the mean and deviation of `like`; 0 where that is constant."""
    deviation = torch.where(_varies(like), like.std(dim=0, correction=0), math.inf)
    return (rows - like.mean(dim=0)) / deviation


def _columnwise_pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson r of paired columns; 0 where one is constant."""
    a, b = (z - z.mean(dim=0) for z in (a, b))
    lengths = column_norms(a) * column_norms(b)
    return torch.where(lengths > 0, (a * b).sum(dim=0) / lengths, 0.0).clamp(-1, 1)


def _row_correlations(rows: Tensor) -> Tensor:
    centre = rows - rows.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(centre, dim=1, keepdim=True)
    centre = centre / torch.where(norms > 0, norms, 1.0)
    return centre @ centre.T
