"""Measures on covariances, of features or of stimuli: GULP, ENSD and the Riemannian distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.measures.kernel import norm_products
from repalign.measures.measure import (
    ISOMETRIES_AND_SCALE,
    Bilinear,
    DenseRelation,
    Distance,
    Features,
    Relation,
    as_epsilon,
    as_number,
    as_share,
    norms,
    parameter,
)
from repalign.measures.numerics.precision import basis, gram, layer_of, rows_of
from repalign.measures.shape import shape_of
from repalign.measures.subspace import ANY_LINEAR_MAP, projection


@dataclass(frozen=True)
class GULP(Distance, Bilinear):
    """GULP distance, squared: how differently ridge regressions from two layers can predict, over all targets.

    With centred X at Frobenius norm sqrt(n), S_X = X^T X / n, and A_X = X (S_X + ridge I)^-1 X^T / n, which takes any
    target to its ridge prediction: s = |A_X - A_Y|_F^2 = tr A_X^2 + tr A_Y^2 - 2 tr A_X A_Y.

    Parameters
    ----------
    ridge : lambda, against a total variance of 1; 0.01 by default. At 0 the A are projections, and s is
        r_X + r_Y - 2 sum rho_i^2 with ranks r and canonical correlations rho; a large one leaves the linear kernels.

    Shapes (n, d1) and (n, d2). Range [0, inf), at most the sum of both ranks; 0 is best. Its root is a metric.
    Invariant to orthogonal maps, isotropic scale, translation and column order; with ridge = 0 to every invertible
    linear map. nan if either is constant.

    Source: Boix-Adsera et al. 2022 (arXiv 2210.06545), the square. Directions of rounding noise do not
    count; the outside implementations invert d x d matrices, and refuse or lose digits where n <= d.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> abs(round(GULP()(x, 5 - 2 * x), 12))
    0.0
    """

    ridge: float = parameter(0.01, as_epsilon)

    family: ClassVar[str] = "covariance"
    cost: ClassVar[str] = "n d min(n, d) + n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("gulp",)

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES_AND_SCALE if self.ridge else ANY_LINEAR_MAP

    def prepare(self, x: Tensor) -> DenseRelation:
        if self.ridge == 0:
            return projection(basis(rows_of(x)), x.dtype)
        factor = shape_of(x).values  # F at unit norm: F^T F has the eigenvalues of S_X
        # With (F, sqrt(ridge) I) = Q R one above the other, A_X is the product of the upper rows of Q: no inverse.
        lower = math.sqrt(self.ridge) * torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
        upper = torch.linalg.qr(torch.cat([factor, lower])).Q[: len(x)]
        return DenseRelation.of(gram(upper).to(x.dtype))

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        p, q = norms(a, b)
        return p * p + q * q - 2 * p * q * super().scale(inner, a, b)


@dataclass(frozen=True)
class ENSD(Bilinear):
    """Effective number of shared dimensions of two layers.

    s = D_X D_Y tr(K L) / (tr K tr L) with centred linear kernels K, L and the participation ratios
    D_X = (tr K)^2 / tr(K^2): linear CKA (biased) times sqrt(D_X D_Y). Of X with itself it is D_X.

    Shapes (n, d1) and (n, d2). Range [0, inf), at most sqrt(D_X D_Y). High for unrelated layers where both have many
    dimensions: its chance level is about D_X D_Y / (n - 1). Invariant to orthogonal maps, isotropic scale, translation
    and column order. nan if either is constant.

    Source: Giaffar, Rullan Buxo and Aoi 2024, The effective number of shared dimensions between paired datasets. Their distance,
    (2 / pi) arccos of CKA, is a function of `CKA(estimator="biased")`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> bool(ENSD()(x, x) < 8)
    True
    """

    family: ClassVar[str] = "covariance"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("ensd",)
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    def prepare(self, x: Tensor) -> DenseRelation:
        kernel = layer_of(x).gram
        trace = float(kernel.diagonal().sum(dtype=torch.float64))
        # The relation K tr K / tr K^2, whose norm is the root of the participation ratio.
        relation = DenseRelation.of(kernel)
        return relation if relation.norm == 0 else replace(relation, norm=trace / relation.norm)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        return norm_products(a, b) * super().scale(inner, a, b)


def as_shrinkage(name: str, value: Any) -> float:
    """A share in (0, 1)."""
    expected = "a share above 0, for an inverse to exist, and below 1, for the kernel to count"
    return as_number(name, as_share(name, value), lambda v: 0 < v < 1, "leaves no distance", expected)


@dataclass(frozen=True)
class RiemannianDistance(Distance):
    """Affine-invariant Riemannian distance between the shrunk kernels of two layers.

    s = |log(K'^(-1/2) L' K'^(-1/2))|_F = sqrt(sum_i log^2 lambda_i), lambda_i the generalised eigenvalues of (L', K'),
    where K' = (1 - shrinkage) n K / tr K + shrinkage I shrinks the centred linear kernel K towards a multiple of I.

    Parameters
    ----------
    shrinkage : share of I, in (0, 1); 0.1 by default. Kernels of rank below n have no distance without it, and the
        distance depends on it: ratios of small variances weigh as much as those of large ones.

    Shapes (n, d1) and (n, d2). Range [0, inf); 0 is best. Invariant to orthogonal maps, isotropic scale, translation
    and column order. nan if either is constant.

    Source: Shahbazi et al. 2021, Using distance on the Riemannian manifold to compare representations in brain and in
    models, NeuroImage 239; Bhatia 2007, Positive Definite Matrices, chapter 6. rsatoolbox regularises otherwise: it
    minimises over a scale of one side and a share of I by a local search, so that it is not symmetric, needs n <= d, and
    can end where that side has no part in it.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> RiemannianDistance()(x, 5 - 2 * x) < 1e-12
    True
    """

    shrinkage: float = parameter(0.1, as_shrinkage)

    family: ClassVar[str] = "covariance"
    cost: ClassVar[str] = "n d min(n, d) per layer with d > n, m^2 (n + m) per pair with m = min(n, d1 + d2)"
    aliases: ClassVar[tuple[str, ...]] = ("riemannian_distance", "riemannian")
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    def prepare(self, x: Tensor) -> Features:
        shape = shape_of(x)
        factor = shape.values * math.sqrt(len(x) * (1 - self.shrinkage))  # F with K' = F F^T + shrinkage I
        return Features(factor, norm=shape.norm)

    def compare(self, a: Features, b: Features) -> float:
        if not (a.norm > 0 and b.norm > 0):
            return math.nan
        factors = [s.values for s in (a, b)]
        widths = [f.shape[1] for f in factors]
        both = torch.cat(factors, dim=1)
        if sum(widths) < a.n:  # off the span of both K' and L' are equal, and in it coordinates are enough
            both = torch.linalg.qr(both, mode="r").R
        first, second = (gram(f) for f in both.split(widths, dim=1))
        for matrix in (first, second):
            matrix.diagonal().add_(self.shrinkage)
        root = torch.linalg.cholesky(first)
        ratio = torch.linalg.solve_triangular(root, second, upper=False)
        ratio = torch.linalg.solve_triangular(root, ratio.T, upper=False)
        return float(torch.linalg.vector_norm(torch.linalg.eigvalsh((ratio + ratio.T) / 2).log()))
