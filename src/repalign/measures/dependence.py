"""Kin of CKA: HSIC, the RV coefficients, the angle of CKA, CKA for features that depend on each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from repalign.layers import ANY_FORM, FEATURES_OR_KERNEL, Given
from repalign.measures.measure import Bilinear, DenseRelation, Measure, Relation, State
from repalign.measures.numerics.checks import as_epsilon, check_choice, check_flag
from repalign.measures.numerics.kernels import (
    ISOMETRIES,
    RESIDUE,
    checked_bandwidth,
    in_range,
    kernel_relation,
    norm_products,
    takes_of,
    u_centre,
)
from repalign.measures.numerics.precision import centred, gram

HSIC_ESTIMATORS = ("unbiased", "biased", "trace")


@dataclass(frozen=True)
class HSIC(Bilinear):
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

    kernel: str = "linear"
    estimator: str = "unbiased"
    bandwidth: float | str | None = None

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("hsic",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    takes: ClassVar[frozenset[str]] = ANY_FORM

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth", checked_bandwidth(self.kernel, self.bandwidth))
        check_choice("estimator", self.estimator, HSIC_ESTIMATORS)

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.estimator == "unbiased" else (0.0, math.inf)

    @property
    def accepts(self) -> frozenset[str]:
        return takes_of(self.kernel)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES | ({"isotropic_scale"} if isinstance(self.bandwidth, str) else frozenset())

    @property
    def min_n(self) -> int:
        return 4 if self.estimator == "unbiased" else 2

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return kernel_relation(x, self.kernel, self.bandwidth, self.estimator == "unbiased")

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n = a[0].n
        divisor = {"unbiased": n * (n - 3), "biased": (n - 1) ** 2, "trace": 1}[self.estimator]
        return super().scale(inner, a, b) * (norm_products(a, b) / divisor)


@dataclass(frozen=True)
class RV(Bilinear):
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

    modified: bool = False

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("rv", "rv_coefficient")
    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cka_lange": {"modified": True}, "rv2": {"modified": True}}
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_KERNEL

    def __post_init__(self) -> None:
        check_flag("modified", self.modified)

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.modified else (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES | {"isotropic_scale"}

    @property
    def min_n(self) -> int:
        return 3 if self.modified else 2

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        relation = kernel_relation(x, "linear", None, debiased=False)
        if not self.modified or relation.norm == 0:
            return relation
        matrix = relation.matrix.fill_diagonal_(0)
        return DenseRelation.of(matrix, floor=RESIDUE * torch.finfo(matrix.dtype).eps)


@dataclass(frozen=True)
class AngularCKA(Measure):
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

    kernel: str = "linear"
    bandwidth: float | str | None = None

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("angular_cka",)
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi / 2)
    takes: ClassVar[frozenset[str]] = ANY_FORM

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth", checked_bandwidth(self.kernel, self.bandwidth))

    @property
    def accepts(self) -> frozenset[str]:
        return takes_of(self.kernel)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES | (frozenset() if isinstance(self.bandwidth, float) else {"isotropic_scale"})

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return kernel_relation(x, self.kernel, self.bandwidth, debiased=False)

    def compare(self, a: State, b: State) -> float:
        first, second = cast(DenseRelation, a), cast(DenseRelation, b)
        if first.norm == 0 or second.norm == 0:
            return math.nan
        chord = float(torch.linalg.vector_norm(first.matrix - second.matrix, dtype=torch.float64))
        return min(2 * math.asin(min(chord / 2, 1.0)), math.pi / 2)


@dataclass(frozen=True)
class DependentColumnsCKA(Bilinear):
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

    epsilon: float = 0.0

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("dependent_columns_cka", "cka_dependent_columns")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", as_epsilon(self.epsilon))

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"translation", "permutation"})
        return common | {"isotropic_scale"} if self.epsilon == 0 else common

    @property
    def min_n(self) -> int:
        return 4

    def prepare(self, x: Tensor) -> DenseRelation:
        self.check_n(len(x))
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
        return DenseRelation(kernel.div_(norm).to(x.dtype), in_range(norm * unit * unit))

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n = a[0].n
        return super().scale(inner, a, b) / (1 + self.epsilon * n * (n - 3) / norm_products(a, b))


MEASURES = (HSIC, RV, AngularCKA, DependentColumnsCKA)
