"""Kin of CKA: HSIC, the RV coefficients, the angle of CKA, CKA for features that depend on each other.

Distance correlation and covariance: dependence of any form, from centred distances instead of kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import choose
from repalign.layers import FEATURES_OR_KERNEL, FEATURES_OR_RDM, Given
from repalign.measures.kernel import (
    CKA,
    ESTIMATORS,
    KERNELS,
    UNBIASED,
    Estimated,
    OfKernels,
    OfPairs,
    _OfLinearKernels,
    norm_products,
)
from repalign.measures.measure import (
    ISOMETRIES,
    ISOMETRIES_AND_SCALE,
    Batched,
    Bilinear,
    DenseRelation,
    Relation,
    as_epsilon,
    as_number,
    check_flag,
    parameter,
)
from repalign.measures.numerics.distances import between_rows
from repalign.measures.numerics.precision import NORMAL, RESIDUE, double_centre, gram, u_centre
from repalign.measures.numerics.rows import centred

BIASED_CKA = CKA(estimator="biased")
# Below this cosine an angle from its cosine loses no digits that count.
_APART = 0.95


@dataclass(frozen=True)
class HSIC(_OfLinearKernels):
    """Hilbert-Schmidt independence criterion: the covariance of two kernels, not normalised.

    estimator="unbiased" (default): <K~, L~> / (n (n - 3)), with the U-centred kernels, equal to Song et al. 2012,
    equation 5. "biased": tr(K H L H) / (n - 1)^2. "trace": tr(K H L H) without a divisor.

    Parameters
    ----------
    kernel, bandwidth : as in `CKA`.
    estimator : "unbiased", "biased" or "trace".

    Shapes (n, d1) and (n, d2). Range: unbiased all numbers, else [0, inf). It has the unit of both kernels: compare it
    with its own chance level, or use `CKA`, its normalised form. Invariant to orthogonal maps, translations and column
    order, and to isotropic scale if the kernel takes its bandwidth from a rule. nan where a centred kernel vanishes (a
    constant representation). Raises RepalignError if n < 4 (unbiased), n < 2.

    Source: Gretton et al. 2005 (ALT) for the biased form, whose divisor (n - 1)^2 some codes leave out; Song et al. 2012
    (JMLR 13), equation 5, for the unbiased one.

    >>> import numpy as np
    >>> x = np.arange(6.0)[:, None]
    >>> round(HSIC(estimator="biased")(x, x), 9)  # the squared variance
    12.25
    """

    kernel: str = parameter("linear", choose, KERNELS)
    estimator: str = parameter("unbiased", choose, ("unbiased", "biased", "trace"))
    bandwidth: float | str | None = None

    aliases: ClassVar[tuple[str, ...]] = ("hsic",)
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES_AND_SCALE if isinstance(self.bandwidth, str) else ISOMETRIES

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n = a[0].n
        divisor = {"unbiased": n * (n - 3), "biased": (n - 1) ** 2, "trace": 1}[self.estimator]
        return super().scale(inner, a, b) * (norm_products(a, b) / divisor)


@dataclass(frozen=True)
class RV(OfPairs, Bilinear):
    """RV coefficient, a squared correlation of many variables: linear biased CKA by its older name.

    s = tr(S_XY S_YX) / sqrt(tr(S_XX^2) tr(S_YY^2)), with S the covariances. modified=True is RV2: the cosine of the
    Gram matrices of the centred features after their diagonals are set to zero, which lowers the score of unrelated wide
    features and does not free it of them (debiased `CKA` does); the same number as the CKA of Lange et al.

    Shapes (n, d1) and (n, d2). Range [0, 1]; modified [-1, 1]. Invariant to orthogonal maps, isotropic scale,
    translations and column order. nan for a constant representation. Raises RepalignError if n < 2 (modified: n < 3).

    Source: Robert & Escoufier 1976 (Applied Statistics 25); Smilde et al. 2009 (Bioinformatics 25:401) for RV2; Lange et al.
    2023 (TAG-ML).

    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).standard_normal((2, 50, 200))
    >>> round(RV()(x, y), 3), round(RV(modified=True)(x, y), 3)
    (0.821, 0.156)
    """

    modified: bool = parameter(False, check_flag)

    aliases: ClassVar[tuple[str, ...]] = ("rv", "rv_coefficient")
    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cka_lange": {"modified": True}, "rv2": {"modified": True}}
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_KERNEL
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.modified else (0.0, 1.0)

    @property
    def min_n(self) -> int:
        return 3 if self.modified else 2

    def __call__(self, x: Any, y: Any) -> float:
        return super().__call__(x, y) if self.modified else BIASED_CKA(*self.checked(x, y))

    def prepare(self, x: Given) -> DenseRelation:
        relation = BIASED_CKA.prepare(x)
        if not self.modified or relation.norm == 0:
            return relation
        matrix = relation.matrix.fill_diagonal_(0)
        return DenseRelation.of(matrix, floor=RESIDUE * torch.finfo(matrix.dtype).eps)


@dataclass(frozen=True)
class AngularCKA(OfKernels):
    """Angle between two centred kernels, arccos of biased CKA: a metric, so that the triangle inequality holds.

    d = arccos(<K', L'> / (|K'| |L'|)) in radians, with K' = H K H.

    Parameters kernel and bandwidth as in `CKA`.

    Shapes (n, d1) and (n, d2). A distance: 0 (equal up to the invariances) to pi / 2. Invariances of biased `CKA`. It
    shrinks with d / n as biased CKA grows. nan for a constant representation. Raises RepalignError if n < 2.

    Source: Williams et al. 2021 (arXiv 2110.14739). Taken from the chord between the unit
    kernels, 2 arcsin(|K' - L'| / 2): an arccos near 1 has an error of 1e-8, or is nan for a space with itself.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> AngularCKA()(x, x), round(AngularCKA()(x, x[:, :4]), 3)
    (0.0, 0.825)
    """

    kernel: str = parameter("linear", choose, KERNELS)
    bandwidth: float | str | None = None

    estimator: ClassVar[str] = "biased"
    aliases: ClassVar[tuple[str, ...]] = ("angular_cka",)
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi / 2)

    def __call__(self, x: Any, y: Any) -> float:
        x, y = self.checked(x, y)
        if self.kernel == "linear" and isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape[1] + y.shape[1] <= len(x):
            cosine = BIASED_CKA(x, y)  # in feature space
            if cosine < _APART:
                return math.acos(cosine)
        return super().__call__(x, y)

    def compare(self, a: DenseRelation, b: DenseRelation) -> float:
        if a.norm == 0 or b.norm == 0:
            return math.nan
        chord = float(torch.linalg.vector_norm(a.matrix - b.matrix, dtype=torch.float64))
        return min(2 * math.asin(min(chord / 2, 1.0)), math.pi / 2)


@dataclass(frozen=True)
class DependentColumnsCKA(OfPairs, Bilinear):
    """CKA with self-terms freed of what every column contributes by itself, for features that depend on each other.

    s = h(K, L) / sqrt(g(X) g(Y)), g(X) = Q / (Q - 1) (h(K, K) - sum_c h(x_c x_c^T, x_c x_c^T)), with h the unbiased
    HSIC, K = X X^T, and x_c the Q columns of X.

    Parameters
    ----------
    epsilon : added to the denominator; 0 by default. The released code has 1e-8, in the unit of features divided by
        sqrt(d), which is large against rows of unit norm.

    Shapes (n, d1) and (n, d2). Not bounded: a self-term may be small, and a space with itself scores above or below 1.
    It depends on the basis of the features, so orthogonal maps change it. Invariant to isotropic scale (if epsilon is
    0), translation and column order. nan where a self-term is not positive: one column, columns that are unrelated, a
    constant representation. Raises RepalignError if n < 4.

    Source: Chun et al. 2025 (arXiv 2502.15104), as released with arXiv 2602.14486, which returns 0 where a product of
    self-terms is not positive.

    >>> import numpy as np
    >>> z = np.random.default_rng(0).standard_normal((200, 3))
    >>> x = np.hstack([z, z + 0.1])
    >>> round(DependentColumnsCKA()(x, x), 2)
    1.67
    """

    epsilon: float = parameter(0.0, as_epsilon)

    aliases: ClassVar[tuple[str, ...]] = ("dependent_columns_cka", "cka_dependent_columns")
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    smallest_n: ClassVar[int] = 4

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"translation", "permutation"}) | ({"isotropic_scale"} if self.epsilon == 0 else frozenset())

    def prepare(self, x: Tensor) -> DenseRelation:
        n, columns = x.shape
        features, unit, *_ = centred(x)
        kernel = gram(features)
        u_centre(kernel)
        whole = float((kernel * kernel).sum())
        # n (n - 3) h of x_c x_c^T, whose column sums to 0: its entries off the diagonal are all that it takes.
        square, fourth = (features**2).sum(dim=0), (features**4).sum(dim=0)
        alone = float((square**2 * (1 + 1 / ((n - 1) * (n - 2))) - fourth * (1 + 2 / (n - 2))).sum())
        rest = whole - alone
        if columns == 1 or not rest > RESIDUE * torch.finfo(torch.float64).eps * n * float(square.sum()) ** 2:
            return DenseRelation(torch.zeros_like(kernel, dtype=x.dtype), 0.0)
        norm = math.sqrt(columns / (columns - 1) * rest)
        return DenseRelation(kernel.div_(norm).to(x.dtype), float(np.clip(norm * unit * unit, *NORMAL)))

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n = a[0].n
        return super().scale(inner, a, b) / (1 + self.epsilon * n * (n - 3) / norm_products(a, b))


def as_exponent(name: str, value: Any) -> float:
    """The power of the distances, in (0, 2]."""
    expected = f"0 < {name} <= 2 (at 2 only linear dependence counts)"
    return as_number(name, value, lambda v: 0 < v <= 2, "is out of range", expected)


@dataclass(frozen=True)
class _OfCentredDistances(Estimated):
    """The centred matrices of distances to a power, and their inner product."""

    estimator: str = parameter("debiased", choose, ESTIMATORS)
    exponent: float = parameter(1.0, as_exponent)

    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def prepare(self, x: Given) -> DenseRelation:
        """Centred distances D^exponent of a layer at unit norm; `norm` in the unit of the features."""
        squared, unit = between_rows(x)
        matrix = squared.pow_(self.exponent / 2)
        floor = RESIDUE * torch.finfo(matrix.dtype).eps * float(torch.linalg.vector_norm(matrix))
        (u_centre if self.estimator in UNBIASED else double_centre)(matrix)
        unit = float(torch.tensor(unit, dtype=torch.float64) ** self.exponent)
        relation = DenseRelation.of(matrix, floor=floor, unit=unit)
        return replace(relation, matrix=relation.matrix.to(x.dtype))


@dataclass(frozen=True)
class SquaredDistanceCorrelation(_OfCentredDistances):
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

    aliases: ClassVar[tuple[str, ...]] = ("squared_distance_correlation", "dcor_squared")
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE


@dataclass(frozen=True)
class DistanceCorrelation(OfPairs, Batched):
    """Distance correlation: the root of the squared one, in its first, biased form.

    s = sqrt(<A, B> / (|A| |B|)), with A and B the double-centred matrices of the distances |x_i - x_j|^exponent.

    Parameters
    ----------
    exponent : power of the distances, in (0, 2].

    Shapes (n, d1) and (n, d2). Range [0, 1]; it grows with d / n, and unrelated wide features score near 1: read it with
    its chance level, or use the debiased `SquaredDistanceCorrelation`, which gives the same p-values faster. Invariant
    to orthogonal maps, isotropic scale, translations and column order. nan for a constant representation.
    Raises RepalignError if n < 2.

    Source: Szekely, Rizzo & Bakirov 2007 (Annals of Statistics 35:2769).

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 50)[:, None]
    >>> round(DistanceCorrelation()(x, x**2), 3)
    0.492
    """

    exponent: float = parameter(1.0, as_exponent)

    aliases: ClassVar[tuple[str, ...]] = ("distance_correlation", "dcor")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    def prepare(self, x: Given) -> DenseRelation:
        return SquaredDistanceCorrelation("biased", self.exponent).prepare(x)

    def compare_all(self, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        squared = SquaredDistanceCorrelation("biased", self.exponent).compare_all(a, b)
        return squared.clamp(min=0).sqrt()  # below 0 by rounding alone


@dataclass(frozen=True)
class SquaredDistanceCovariance(_OfCentredDistances):
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

    aliases: ClassVar[tuple[str, ...]] = ("squared_distance_covariance", "distance_covariance", "dcov")
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n = a[0].n
        divisor = n * (n - 3) if self.estimator in UNBIASED else n * n
        return super().scale(inner, a, b) * (norm_products(a, b) / divisor)
