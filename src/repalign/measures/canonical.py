"""Measures built on canonical correlations: CCA, its mean square, and projection-weighted CCA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.measures.measure import Bilinear, DenseRelation, Features, Measure, Relation, State
from repalign.measures.numerics.checks import as_epsilon, check_choice
from repalign.measures.numerics.sharing import layer_of
from repalign.measures.numerics.spectrum import Spectrum, basis, rows_of
from repalign.measures.subspace import least_n, projection, shared_dimensions

RIGID = frozenset({"orthogonal", "translation", "permutation"})
ANY_LINEAR_MAP = RIGID | {"isotropic_scale", "column_scale", "invertible"}
PWCCA_WEIGHTS = ("morcos", "sample_l1")


@dataclass(frozen=True)
class CCA(Measure):
    """Mean canonical correlation: how much of either space the best linear maps carry into the other.

    s = sum_i rho_i / min(r_X, r_Y), with rho_i the canonical correlations, the singular values of Q_X^T Q_Y for
    orthonormal bases Q of the centred columns, and r their numerical ranks: directions that are rounding do not count.

    Parameters
    ----------
    ridge : added to the diagonal of both covariances X^T X / (n - 1), in the unit of the features, so that a direction
        of variance v counts sqrt(v / (v + ridge)) of itself; 0 by default. Not scale-free then, and below 1 for X with
        itself.

    Shapes (n, d1) and (n, d2). Range [0, 1]. Meaningful only for n well above d1 + d2: r_X + r_Y - (n - 1) of the
    correlations are 1 whatever the data, and with n - 1 <= d on either side all of them are. Use SVCCA there, or
    calibrate. Without a ridge invariant to every invertible linear map and translation; with one to orthogonal maps,
    translation and column order. nan for a constant representation.
    Raises RepalignError if n < 3.

    Source: Hotelling 1936; Kornblith et al. 2019 (arXiv 1905.00414), table 1, their mean rho. Sources differ when a
    side has less than full rank: there they count widths, or directions of rounding noise, or fail.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(CCA()(x, x @ np.triu(np.ones((8, 8)))), 12)
    1.0
    """

    ridge: float = 0.0

    family: ClassVar[str] = "subspace"
    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cca", "mean_cca", "cca_mean")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ridge", as_epsilon(self.ridge, "ridge"))

    @property
    def invariances(self) -> frozenset[str]:
        return RIGID if self.ridge else ANY_LINEAR_MAP

    @property
    def min_n(self) -> int:
        return least_n(None)

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        return Features(whitened(x, self.ridge))

    def compare(self, a: State, b: State) -> float:
        u, v = cast(Features, a).values, cast(Features, b).values
        count = min(u.shape[1], v.shape[1])
        return float(torch.linalg.svdvals(u.T @ v).sum()) / count if count else math.nan


@dataclass(frozen=True)
class SquaredCCA(Bilinear):
    """Mean squared canonical correlation, R^2_CCA: the shared part of two spans over the smaller dimension.

    s = sum_i rho_i^2 / min(r_X, r_Y) = <P_X, P_Y> / min(r_X, r_Y), with P the projection onto the centred columns and
    r its rank: bilinear, so that its chance level, r_X r_Y / (n - 1) over min(r_X, r_Y), has a closed form.

    Shapes (n, d1) and (n, d2). Range [0, 1], and 1 for anything once n - 1 <= d on either side, as in CCA. Invariant to
    every invertible linear map and translation. nan for a constant representation.
    Raises RepalignError if n < 3.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), table 1. A QR basis that does not look at the rank, as in their
    code, counts n directions where centred features have n - 1.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(SquaredCCA()(x, x[:, :3] + 5), 12)
    1.0
    """

    family: ClassVar[str] = "subspace"
    cost: ClassVar[str] = "n d min(n, d) + n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("squared_cca", "r2_cca", "cca_mean_squared")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        return ANY_LINEAR_MAP

    @property
    def min_n(self) -> int:
        return least_n(None)

    def prepare(self, x: Tensor) -> DenseRelation:
        self.check_n(len(x))
        return projection(basis(rows_of(x)), x.dtype)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        shared, ranks = shared_dimensions(super().scale(inner, a, b), a, b)
        return shared / torch.minimum(*ranks)


@dataclass(frozen=True, eq=False)
class Coordinates(Features):
    """A basis (n, r), and the coordinates of the centred features in it."""

    features: Tensor | None = None  # (r, d)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.features is None else self.features.nbytes)


@dataclass(frozen=True)
class PWCCA(Measure):
    """Projection-weighted CCA: canonical correlations weighted by how much of the first space each accounts for.

    s(X, Y) = sum_i w_i rho_i / sum_i w_i over the min(r_X, r_Y) canonical correlations, r the numerical ranks. By
    `weights`, with h_i the canonical variates of X, at unit norm in R^n:
    "morcos": w_i = sum_j |<h_i, x_j>| over the centred columns x_j of X, as published.
    "sample_l1": w_i = |h_i|_1. Variates of equal variance have nearly equal weights, so this is nearly CCA (a few
    parts in a thousand); one published code has it under the name of PWCCA.

    Parameters
    ----------
    weights : "morcos" (default) or "sample_l1".
    ridge : added to the diagonal of both covariances, as in CCA; 0 by default.

    Shapes (n, d1) and (n, d2). Asymmetric: the first array is the one that weighs. Range [0, 1], and 1 for anything
    once n - 1 <= d on either side, as in CCA. Invariant to isotropic scale (without a ridge), translation and column
    order of the first array, and to every invertible linear map of the second; sample_l1 to those of both. nan for a
    constant representation.
    Raises RepalignError if n < 3.

    Source: Morcos, Raghu and Bengio 2018 (arXiv 1806.05759). Of two other codes under this name, one
    divides by the weights of an arbitrary basis of the uncorrelated directions too where X has the larger rank, and one
    (the first release) leaves out a whitening and adds column means back, so that it depends on translation.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(PWCCA()(x, x @ np.triu(np.ones((8, 8)))), 12)
    1.0
    """

    weights: str = "morcos"
    ridge: float = 0.0

    family: ClassVar[str] = "subspace"
    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("pwcca",)
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, PWCCA_WEIGHTS)
        object.__setattr__(self, "ridge", as_epsilon(self.ridge, "ridge"))

    @property
    def invariances(self) -> frozenset[str]:
        if self.weights == "sample_l1":
            return RIGID if self.ridge else ANY_LINEAR_MAP
        return frozenset({"translation", "permutation"}) | (frozenset() if self.ridge else {"isotropic_scale"})

    @property
    def min_n(self) -> int:
        return least_n(None)

    def prepare(self, x: Tensor) -> Coordinates:
        self.check_n(len(x))
        variates = whitened(x, self.ridge)
        return Coordinates(variates, features=variates.T @ rows_of(x).values if self.weights == "morcos" else None)

    def compare(self, a: State, b: State) -> float:
        first, second = cast(Coordinates, a), cast(Coordinates, b)
        if not min(first.values.shape[1], second.values.shape[1]):
            return math.nan
        maps, correlations, _ = torch.linalg.svd(first.values.T @ second.values, full_matrices=False)
        if first.features is not None:
            weights = (maps.T @ first.features).abs().sum(dim=1)  # (c,)
        else:
            weights = (first.values @ maps).abs().sum(dim=0)
        return float(weights @ correlations / weights.sum())


def whitened(x: Tensor, ridge: float) -> Tensor:
    """The centred features whitened, (n, r), columns of unit norm; with a ridge shorter where variance is small."""
    if ridge == 0:
        return basis(rows_of(x))
    found = layer_of(x).spectrum
    return found.vectors * shrinkage(found, ridge * (len(x) - 1))


def shrinkage(found: Spectrum, ridge: float) -> Tensor:
    """sqrt(s^2 / (s^2 + ridge)) for the singular values s of the features in their own unit."""
    values = found.values * found.unit
    return values / torch.hypot(values, torch.full_like(values, math.sqrt(ridge)))


MEASURES = (CCA, SquaredCCA, PWCCA)
