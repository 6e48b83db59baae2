"""Held-out prediction of one space from the other, as for brains: ridge and PLS predictivity, VERSA.

X, the first argument, predicts Y. Rows are split into folds by position and a seed; nothing of a held-out row is used in
training, with one exception that has to be asked for (standardize="fold").
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.measure import Features, Measure, State
from repalign.measures.numerics.checks import as_count, check_choice
from repalign.measures.numerics.folds import as_folds, as_seed, held_out
from repalign.measures.numerics.precision import centred, full_precision, widen
from repalign.measures.numerics.regressions import Predictor, pls, ridge

STANDARDIZE = ("no", "train", "fold")


@dataclass(frozen=True, eq=False)
class Rows(Features):
    """Centred rows (n, d), and the mean (d,) that was taken off, in the same unit."""

    mean: Tensor = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _HeldOut(Measure):
    """Folds, and predictors that are fitted to x once per fold and used for every y."""

    folds: int = 5
    seed: int = 0
    standardize: str = "no"

    family: ClassVar[str] = "mapping"
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folds", as_folds(self.folds))
        object.__setattr__(self, "seed", as_seed(self.seed))
        check_choice("standardize", self.standardize, STANDARDIZE)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "translation", "permutation"})
        return common | {"orthogonal" if self.standardize == "no" else "column_scale"}

    @property
    def min_n(self) -> int:
        return 2 * self.folds

    def prepare(self, x: Tensor) -> Rows:
        self.check_n(len(x))
        rows, unit, *_ = centred(x)
        return Rows(rows, norm=float(rows.abs().amax() > 0), mean=(widen(x) / unit).mean(dim=0))

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        out = torch.full((len(a), len(b)), math.nan, dtype=torch.float64)
        targets = [(j, self._target(t)) for j, t in enumerate(cast(Sequence[Rows], b)) if t.norm]
        for i, s in enumerate(cast(Sequence[Rows], a)):
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
        """What is to be predicted."""

    @abstractmethod
    def _fit(self, train: Tensor, test: Tensor) -> Predictor: ...

    @abstractmethod
    def _judge(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Scores of a fold, one or one per unit."""

    @abstractmethod
    def _summary(self, scores: Tensor) -> float:
        """From the scores of all folds (folds, units or 1)."""


@dataclass(frozen=True)
class _UnitPredictivity(_HeldOut):
    """Pearson r of every unit of y on held-out rows, over folds and then over units."""

    over_units: str = "mean"
    ceiling: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("over_units", self.over_units, ("mean", "median"))
        if self.ceiling is None:
            return
        if isinstance(self.ceiling, bool) or not isinstance(self.ceiling, (int, float)) or not 0 < self.ceiling <= 1:
            raise RepalignError(
                "ceiling is not a reliability",
                expected="None, or a number in (0, 1]: how well repetitions of y agree with each other",
                got=repr(self.ceiling),
            )
        object.__setattr__(self, "ceiling", float(self.ceiling))

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
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def _fit(self, train: Tensor, test: Tensor) -> Predictor:
        return ridge(train, test)


@dataclass(frozen=True)
class VERSA(_HeldOut):
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
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def _fit(self, train: Tensor, test: Tensor) -> Predictor:
        return ridge(train, test)

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

    components: int = 25

    cost: ClassVar[str] = "n d per layer, folds (n d^2 + iterations components d^2) per pair"
    aliases: ClassVar[tuple[str, ...]] = ("pls_predictivity", "pls")
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "components", as_count("components", self.components))

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
    lengths = torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0)
    return torch.where(lengths > 0, (a * b).sum(dim=0) / lengths, 0.0).clamp(-1, 1)


def _row_correlations(rows: Tensor) -> Tensor:
    centre = rows - rows.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(centre, dim=1, keepdim=True)
    centre = centre / torch.where(norms > 0, norms, 1.0)
    return centre @ centre.T


MEASURES = (RidgePredictivity, PLSPredictivity, VERSA)
