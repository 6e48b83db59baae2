"""Distance correlation and covariance: dependence of any form, from centred distances instead of kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import FEATURES_OR_RDM, Given
from repalign.measures.kernel import ESTIMATORS
from repalign.measures.measure import Bilinear, DenseRelation, Measure, Relation, State
from repalign.measures.numerics.checks import check_choice
from repalign.measures.numerics.distances import between_rows
from repalign.measures.numerics.kernels import ISOMETRIES, RESIDUE, double_centre, in_range, norm_products, u_centre


def as_exponent(value: float) -> float:
    """The power of the distances, in (0, 2]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 2:
        raise RepalignError(
            "exponent is out of range",
            expected="0 < exponent <= 2 (at 2 only linear dependence counts)",
            got=repr(value),
        )
    return float(value)


def distance_relation(x: Given, exponent: float, debiased: bool) -> DenseRelation:
    """Centred distances D^exponent of a layer at unit norm, U-centred if debiased; `norm` in the unit of the features."""
    squared, unit = between_rows(x)
    matrix = squared.pow_(exponent / 2)
    floor = RESIDUE * torch.finfo(matrix.dtype).eps * float(torch.linalg.vector_norm(matrix))
    (u_centre if debiased else double_centre)(matrix)
    relation = DenseRelation.of(matrix, floor=floor)
    norm = in_range(relation.norm * float(torch.tensor(unit, dtype=torch.float64) ** exponent))
    return replace(relation, matrix=relation.matrix.to(x.dtype), norm=norm if relation.norm > 0 else 0.0)


@dataclass(frozen=True)
class SquaredDistanceCorrelation(Bilinear):
    """Squared distance correlation: 0 only for independent spaces, whatever the form of the dependence.

    s = <A, B> / (|A| |B|), with A and B the centred matrices of the distances |x_i - x_j|^exponent.
    estimator="debiased" (default): U-centred, the bias-corrected statistic, which may be negative and whose mean is 0
    for independent spaces of any width. "biased": double centred, the square of `DistanceCorrelation`; it grows with
    d / n.

    Parameters
    ----------
    estimator : "debiased" or "biased".
    exponent : power of the distances, in (0, 2]; at 2 only linear dependence counts (biased, it is linear CKA). The
        dissimilarities of a layer that is given as an `RDM` are taken as the distances.

    Shapes (n, d1) and (n, d2). Range [-1, 1]; biased [0, 1]. Invariant to orthogonal maps, isotropic scale,
    translations and column order. nan for a constant representation. Raises RepalignError if n < 4 (biased: n < 2).

    Source: Szekely, Rizzo & Bakirov 2007 (Annals of Statistics 35:2769); Szekely & Rizzo 2014 (Annals of Statistics
    42:2382) for the debiased form.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 50)[:, None]
    >>> round(SquaredDistanceCorrelation()(x, x**2), 3)
    0.195
    """

    estimator: str = "debiased"
    exponent: float = 1.0

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("squared_distance_correlation", "dcor_squared")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        object.__setattr__(self, "exponent", as_exponent(self.exponent))

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.estimator == "debiased" else (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES | {"isotropic_scale"}

    @property
    def min_n(self) -> int:
        return 4 if self.estimator == "debiased" else 2

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return distance_relation(x, self.exponent, self.estimator == "debiased")


@dataclass(frozen=True)
class DistanceCorrelation(Measure):
    """Distance correlation: the root of the squared one, in its first, biased form.

    s = sqrt(<A, B> / (|A| |B|)), with A and B the double-centred matrices of the distances |x_i - x_j|^exponent.

    Parameters
    ----------
    exponent : power of the distances, in (0, 2].

    Shapes (n, d1) and (n, d2). Range [0, 1]; it grows with d / n, and unrelated wide features score near 1: read it beside
    its chance level, or use the debiased `SquaredDistanceCorrelation`, which gives the same p-values faster. Invariant
    to orthogonal maps, isotropic scale, translations and column order. nan for a constant representation.
    Raises RepalignError if n < 2.

    Source: Szekely, Rizzo & Bakirov 2007 (Annals of Statistics 35:2769).

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 50)[:, None]
    >>> round(DistanceCorrelation()(x, x**2), 3)
    0.492
    """

    exponent: float = 1.0

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("distance_correlation", "dcor")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", as_exponent(self.exponent))

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES | {"isotropic_scale"}

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return distance_relation(x, self.exponent, debiased=False)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        squared = SquaredDistanceCorrelation("biased", self.exponent).compare_all(a, b)
        return squared.clamp(min=0).sqrt()  # below 0 by rounding alone


@dataclass(frozen=True)
class SquaredDistanceCovariance(Bilinear):
    """Squared distance covariance: `SquaredDistanceCorrelation` before it is normalised.

    estimator="debiased" (default): <A, B> / (n (n - 3)) of the U-centred distances. "biased": <A, B> / n^2 of the
    double-centred ones.

    Parameters estimator and exponent as in `SquaredDistanceCorrelation`.

    Shapes (n, d1) and (n, d2). Range: all numbers; biased [0, inf). It has the unit of both distances. Invariant to
    orthogonal maps, translations and column order. nan for a constant representation.
    Raises RepalignError if n < 4 (biased: n < 2).

    Source: Szekely, Rizzo & Bakirov 2007 (Annals of Statistics 35:2769); Szekely & Rizzo 2014 (Annals of Statistics
    42:2382).

    >>> import numpy as np
    >>> round(SquaredDistanceCovariance("biased")(np.eye(4), np.eye(4)), 6)
    0.375
    """

    estimator: str = "debiased"
    exponent: float = 1.0

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("squared_distance_covariance", "distance_covariance", "dcov")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        object.__setattr__(self, "exponent", as_exponent(self.exponent))

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.estimator == "debiased" else (0.0, math.inf)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES

    @property
    def min_n(self) -> int:
        return 4 if self.estimator == "debiased" else 2

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return distance_relation(x, self.exponent, self.estimator == "debiased")

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n = a[0].n
        divisor = n * (n - 3) if self.estimator == "debiased" else n * n
        return super().scale(inner, a, b) * (norm_products(a, b) / divisor)


MEASURES = (SquaredDistanceCorrelation, DistanceCorrelation, SquaredDistanceCovariance)
