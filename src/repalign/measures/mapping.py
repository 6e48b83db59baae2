"""Linear maps from one space to the other, by what they explain: linear regression and direct stitching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from repalign.measures.measure import Features, Measure, State
from repalign.measures.numerics.checks import check_choice
from repalign.measures.numerics.folds import as_folds, as_seed, held_out
from repalign.measures.numerics.precision import centred, full_precision
from repalign.measures.numerics.regressions import least_squares
from repalign.measures.numerics.spectrum import basis, frobenius, rows_of


@dataclass(frozen=True, eq=False)
class Spanned(Features):
    """Centred rows (n, d) at Frobenius norm 1, and an orthonormal basis (n, r) of their columns."""

    basis: Tensor = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.basis.nbytes

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

    predicts: str = "y"

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("linear_regression", "linreg")
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_choice("predicts", self.predicts, ("y", "x"))

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"orthogonal", "isotropic_scale", "translation", "permutation"})

    def prepare(self, x: Tensor) -> Spanned:
        self.check_n(len(x))
        rows = rows_of(x)
        norm = frobenius(rows.values)
        return Spanned(rows.values / norm if norm else rows.values, norm, basis(rows))

    def compare(self, a: State, b: State) -> float:
        given, explained = cast(tuple[Spanned, Spanned], (a, b) if self.predicts == "y" else (b, a))
        if not given.norm or not explained.norm:
            return math.nan
        with full_precision():
            inside = given.basis.T @ explained.values
        return float(torch.linalg.vector_norm(inside)) ** 2


@dataclass(frozen=True)
class DirectStitching(Measure):
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

    folds: int | None = 5
    seed: int = 0
    relative_to: str = "deviation"

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d per layer, folds (n d min(n, d) + n d^2) per pair"
    aliases: ClassVar[tuple[str, ...]] = ("direct_stitching", "stitching")
    symmetric: ClassVar[bool] = False
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if self.folds is not None:
            object.__setattr__(self, "folds", as_folds(self.folds))
        object.__setattr__(self, "seed", as_seed(self.seed))
        check_choice("relative_to", self.relative_to, ("deviation", "norm"))

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"orthogonal", "isotropic_scale", "translation", "permutation"})

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.folds is None else self.bounds

    @property
    def min_n(self) -> int:
        return 2 if self.folds is None else 2 * self.folds

    def prepare(self, x: Tensor) -> Features:
        """Centred rows; the norm is the root of sum |y_i|^2 / sum |y_i - mean|^2."""
        self.check_n(len(x))
        rows, _, _, mean_square = centred(x)
        norm = float(torch.linalg.vector_norm(rows))
        return Features(rows / norm if norm else rows, math.sqrt(1 + len(x) * mean_square / norm**2) if norm else 0.0)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        out = torch.zeros(len(a), len(b), dtype=torch.float64)
        for i, s in enumerate(cast(Sequence[Features], a)):
            for train, test in self._splits(s.n):
                predict = least_squares(s.values[train], s.values[test]) if s.norm else None
                for j, t in enumerate(cast(Sequence[Features], b)):
                    if predict is None or not t.norm:
                        out[i, j] = math.nan
                        continue
                    with full_precision():
                        mean = t.values[train].mean(dim=0)
                        rest = t.values[test] - mean - predict @ (t.values[train] - mean)
                    out[i, j] += float(torch.linalg.vector_norm(rest)) ** 2
        if self.relative_to == "norm":
            out /= torch.tensor([t.norm**2 or 1.0 for t in cast(Sequence[Features], b)], dtype=torch.float64)
        return out

    def _splits(self, n: int) -> list[tuple[Tensor, Tensor]]:
        everything = torch.arange(n)
        return [(everything, everything)] if self.folds is None else list(held_out(n, self.folds, self.seed))


MEASURES = (LinearRegression, DirectStitching)
