"""Measures that compare the subspaces that layers span: SVCCA, Grassmann distance, eigenspace overlap, and CCA, PWCCA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.errors import choose
from repalign.measures.measure import (
    ISOMETRIES,
    ISOMETRIES_AND_SCALE,
    Batched,
    Bilinear,
    DenseRelation,
    Distance,
    Features,
    Measure,
    Relation,
    as_count,
    as_epsilon,
    as_number,
    check_flag,
    optional,
    parameter,
)
from repalign.measures.numerics.precision import (
    Spectrum,
    basis,
    frobenius,
    gram,
    layer_of,
    left_of_product,
    left_singular,
    rows_of,
    spectrum,
    sum_of_singular_values,
    whitening,
)
from repalign.measures.numerics.rows import centred

Components = int | float | None


ANY_LINEAR_MAP = ISOMETRIES_AND_SCALE | {"column_scale", "invertible"}

# Functions of the principal angles, by name.
ANGLE_SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "arc": torch.linalg.vector_norm,
    "chordal": lambda angles: torch.linalg.vector_norm(angles.sin()),
    "largest": torch.amax,
}


def as_components(name: str, value: Any) -> int | float:
    """A count of components as an int, or a share of variance in (0, 1)."""
    if not isinstance(value, float):
        return as_count(name, value)
    expected = "a whole number >= 1, or a share of variance in (0, 1)"
    return as_number(name, value, lambda v: 0 < v < 1, "is neither a count nor a share", expected)


class _OfSubspaces(Measure):
    """A measure of the spans of layers."""

    family: ClassVar[str] = "subspace"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    smallest_n: ClassVar[int] = 3


class _OfComponents(_OfSubspaces):
    """A measure of the spans of leading components; all of them where `components` is None."""

    components: Components

    @property
    def min_n(self) -> int:
        # With n = components + 1 stimuli both sides span everything; one more is the least that says something.
        return self.components + 2 if isinstance(self.components, int) else self.smallest_n


@dataclass(frozen=True)
class SVCCA(_OfComponents, Batched):
    """Singular-vector CCA: the mean canonical correlation of the leading principal components.

    s = mean of the singular values of U_X^T U_Y, with U the left singular vectors of the centred features to
    their largest singular values, found by an exact SVD in float64. The same numbers come out every time.

    Parameters
    ----------
    components : how many (a whole number), or the share of variance to keep, in (0, 1): then the smallest
        count that reaches it, on each side by itself. A side of lower rank gives what it has; the mean runs
        over the smaller count of the two.
    standardize : divide every column by its standard deviation first, as the reference code does. Not
        invariant to orthogonal maps then.

    Shapes (n, d1) and (n, d2). Range [0, 1]. The floor is high: two random subspaces score about
    sqrt(components / n), and with a share of variance and d >= n both span nearly everything and score near
    1. Invariant to orthogonal maps (unless standardize), isotropic scale, translation and column order. nan
    for a constant representation.
    Raises RepalignError unless n >= components + 2 (at n = components + 1 both sides span everything).

    Source: Raghu et al. 2017 (arXiv 1706.05806); Huh et al. 2024 (arXiv 2405.07987), appendix B. The
    reference code takes a randomised SVD and adds noise, so that it returns another value each time and less
    than 1 for X with itself.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> round(SVCCA(components=5)(x, 1 - 2 * x), 12)
    1.0
    """

    components: int | float = parameter(10, as_components)
    standardize: bool = parameter(False, check_flag)

    cost: ClassVar[str] = "n d min(n, d) per layer, n c^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("svcca",)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "translation", "permutation"})
        return common | ({"column_scale"} if self.standardize else {"orthogonal"})

    def prepare(self, x: Tensor) -> Features:
        found = standardized_spectrum(x) if self.standardize else layer_of(x).spectrum
        return Features(leading(found, self.components).contiguous())

    def compare_all(self, a: Sequence[Features], b: Sequence[Features]) -> Tensor:
        left, right = _padded(a), _padded(b)
        r, q = left.shape[2], right.shape[2]
        overlap = left.permute(0, 2, 1).flatten(0, 1) @ right.permute(1, 0, 2).flatten(1)
        overlap = overlap.view(len(a), r, len(b), q).permute(0, 2, 1, 3)  # (la, lb, r, q)
        total = torch.linalg.svdvals(overlap).sum(dim=-1).cpu()
        counts = torch.minimum(_counts(a)[:, None], _counts(b)[None, :])
        return torch.where(counts > 0, total / counts, math.nan)


@dataclass(frozen=True)
class GrassmannDistance(Distance, _OfComponents):
    """Distance on the Grassmannian: how far the leading subspaces of two layers are turned against each other.

    With theta_i the principal angles between the spans of the leading principal components, cos theta_i the singular
    values of U_X^T U_Y as in SVCCA, s is, by `form`,
    "arc": sqrt(sum theta_i^2), the length of the shortest path; "chordal": sqrt(sum sin^2 theta_i);
    "largest": max theta_i.

    Parameters
    ----------
    components : how many (a whole number), the share of variance to keep, in (0, 1), or None for all directions in
        which the features vary at all (the numerical rank).
    form : "arc" (default), "chordal" or "largest".

    Shapes (n, d1) and (n, d2). Range [0, sqrt(c) pi / 2] with c the smaller count of the two (chordal: sqrt(c);
    largest: pi / 2); 0 is best, and reached whenever one span holds the other, so only for equal counts is it a
    distance in the strict sense. With None and n - 1 <= d it is 0 for anything. Invariant to orthogonal maps,
    isotropic scale, translation and column order; with None to every invertible linear map. nan for a constant
    representation.
    Raises RepalignError unless n >= components + 2.

    Source: Edelman, Arias and Smith 1998; Ye and Lim 2016 for unequal dimensions. Angles
    near 0 come from their sines, as in Knyazev and Argentati 2002, and keep all their digits.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> GrassmannDistance(components=5)(x, 1 - 2 * x) < 1e-12
    True
    """

    components: int | float | None = parameter(10, optional, as_components)
    form: str = parameter("arc", choose, tuple(ANGLE_SUMS))

    cost: ClassVar[str] = "n d min(n, d) per layer, n c^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("grassmann_distance", "grassmann")

    @property
    def range(self) -> tuple[float, float]:
        if self.form == "largest":
            return (0.0, math.pi / 2)
        count = self.components if isinstance(self.components, int) else math.inf
        return (0.0, math.sqrt(count) * (math.pi / 2 if self.form == "arc" else 1.0))

    @property
    def invariances(self) -> frozenset[str]:
        return span_invariances(self.components) | {"translation"}

    def prepare(self, x: Tensor) -> Features:
        if self.components is None:
            return Features(basis(rows_of(x)))
        return Features(leading(layer_of(x).spectrum, self.components).contiguous())

    def compare(self, a: Features, b: Features) -> float:
        wide, narrow = a.values, b.values
        if wide.shape[1] < narrow.shape[1]:
            wide, narrow = narrow, wide
        if narrow.shape[1] == 0:
            return math.nan
        overlap = wide.T @ narrow
        cosines = torch.linalg.svdvals(overlap)
        sines = torch.linalg.svdvals(narrow - wide @ overlap).flip(0)  # ascending, as the angles are
        small = cosines**2 > 0.5
        angles = torch.where(small, sines.clamp(max=1).asin(), cosines.clamp(max=1).acos())
        return float(ANGLE_SUMS[self.form](angles))


@dataclass(frozen=True)
class EigenspaceOverlap(_OfComponents, Bilinear):
    """Eigenspace overlap: the shared part of the spans of two layers, over the larger of their dimensions.

    s = |U_X^T U_Y|_F^2 / max(r_X, r_Y), with U the left singular vectors, r_X and r_Y of them: the mean squared cosine
    of the principal angles where both dimensions are equal.

    Parameters
    ----------
    components : None for every direction up to the numerical rank, how many (a whole number), or the share of the
        sum of squares to keep, in (0, 1).
    center : take off the column means first. Without it (default, as published) the mean direction counts.

    Shapes (n, d1) and (n, d2). Range [0, 1]. Two random subspaces of dimension r score r / n, and with d >= n all
    scores are 1. Invariant to orthogonal maps, isotropic scale and column order; with center to translation; with all
    components to every invertible linear map. nan for a constant representation.
    Raises RepalignError unless n >= components + 2.

    Source: May et al. 2019 (arXiv 1909.01264). The outside implementation that we know divides by the
    larger number of features instead, which is the same at full rank and cannot reach 1 when n < d. With `components`
    and `center` it is the similarity of matrices index (Indahl et al. 2018, orthogonal projection).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> round(EigenspaceOverlap()(x, x[:, :5]), 12)
    0.25
    """

    components: int | float | None = parameter(None, optional, as_components)
    center: bool = parameter(False, check_flag)

    cost: ClassVar[str] = "n d min(n, d) + n^2 r per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("eigenspace_overlap", "eos")

    @property
    def invariances(self) -> frozenset[str]:
        return span_invariances(self.components) | ({"translation"} if self.center else frozenset())

    def prepare(self, x: Tensor) -> DenseRelation:
        if self.components is None:
            return projection(basis(rows_of(x, self.center)), x.dtype)
        found = layer_of(x).spectrum if self.center else spectrum(x, center=False)
        return projection(leading(found, self.components), x.dtype)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        shared, ranks = shared_dimensions(super().scale(inner, a, b), a, b)
        return shared / torch.maximum(*ranks)


def projection(vectors: Tensor, dtype: torch.dtype) -> DenseRelation:
    """U U^T (n, n) for orthonormal U (n, r) as a relation of unit norm; its own norm is sqrt(r)."""
    rank = vectors.shape[1]
    return DenseRelation((gram(vectors) / math.sqrt(max(rank, 1))).to(dtype), math.sqrt(rank))


def shared_dimensions(inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """|U_X^T U_Y|_F^2 of projections, from their inner product at unit norm, and the dimensions of both sides."""
    r, q = (torch.tensor([round(s.norm**2) for s in side], dtype=torch.float64) for side in (a, b))
    return inner * (r[:, None] * q[None, :]).sqrt(), (r[:, None], q[None, :])


def span_invariances(components: Components) -> frozenset[str]:
    """Changes that keep the span of the leading components; the span of all components survives more."""
    common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
    return common | {"column_scale", "invertible"} if components is None else common


def leading(found: Spectrum, components: Components) -> Tensor:
    """The singular vectors (n, c) to the largest values: `components` of them, or the fewest with that share."""
    vectors, values, _ = found
    if components is None:
        return vectors
    if isinstance(components, int):
        return vectors[:, :components]
    share = (values * values).cumsum(0) / (values * values).sum()
    return vectors[:, : int((share < components).sum()) + 1]


def standardized_spectrum(x: Tensor) -> Spectrum:
    """The spectrum of the features at unit variance each; constant features stay zero."""
    features, unit, *_ = centred(x)
    deviation = features.std(dim=0)
    features = features / torch.where(deviation > 0, deviation, 1.0)
    vectors, values = left_singular(features)
    rank = int((values > torch.finfo(x.dtype).eps * frobenius(features)).sum())
    return Spectrum(vectors[:, :rank], values[:rank], unit)


def _padded(states: Sequence[Features]) -> Tensor:
    """All bases as one (l, n, r) tensor; columns of zeros add singular values of zero."""
    most = max(1, *(s.values.shape[1] for s in states))
    pad = [torch.nn.functional.pad(s.values, (0, most - s.values.shape[1])) for s in states]
    return torch.stack(pad)


def _counts(states: Sequence[Features]) -> Tensor:
    return torch.tensor([s.values.shape[1] for s in states], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Whitened(Features):
    """Rows (n, d) and the map (d, r) that makes them a basis; a basis itself (n, r) where the map is None.

    `features` are the coordinates of the centred features in that basis, where a measure wants them.
    """

    map: Tensor | None = None
    features: Tensor | None = None  # (r, d)


def whitened(x: Tensor, ridge: float, *, coordinates: bool = False) -> Whitened:
    """The centred features whitened, r columns of unit norm; with a ridge shorter where variance is small."""
    rows = rows_of(x)
    if not ridge and (found := whitening(rows)) is not None:
        return Whitened(rows.values, map=found.inverse, features=found.factor if coordinates else None)
    variates = basis(rows) if not ridge else _shorter(layer_of(x).spectrum, ridge)
    return Whitened(variates, features=variates.T @ rows.values if coordinates else None)


def _shorter(found: Spectrum, ridge: float) -> Tensor:
    """The singular vectors, each sqrt(s^2 / (s^2 + ridge (n - 1))) long."""
    values = found.values * found.unit
    least = math.sqrt(ridge * (len(found.vectors) - 1))
    return found.vectors * (values / torch.hypot(values, torch.full_like(values, least)))


def correlations(a: Whitened, b: Whitened) -> Tensor:
    """Products of the two bases, (r_X, r_Y), of which the canonical correlations are the singular values."""
    inner = a.values.T @ b.values
    if a.map is not None:
        inner = a.map.T @ inner
    return inner if b.map is None else inner @ b.map


@dataclass(frozen=True)
class CCA(_OfSubspaces):
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

    ridge: float = parameter(0.0, as_epsilon)

    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cca", "mean_cca", "cca_mean")

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES if self.ridge else ANY_LINEAR_MAP

    def prepare(self, x: Tensor) -> Whitened:
        return whitened(x, self.ridge)

    def compare(self, a: Whitened, b: Whitened) -> float:
        count = min(a.width, b.width)
        return sum_of_singular_values(correlations(a, b)) / count if count else math.nan


@dataclass(frozen=True)
class SquaredCCA(_OfSubspaces, Bilinear):
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

    cost: ClassVar[str] = "n d min(n, d) + n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("squared_cca", "r2_cca", "cca_mean_squared")
    unchanged_by: ClassVar[frozenset[str]] = ANY_LINEAR_MAP

    def prepare(self, x: Tensor) -> DenseRelation:
        return projection(basis(rows_of(x)), x.dtype)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        shared, ranks = shared_dimensions(super().scale(inner, a, b), a, b)
        return shared / torch.minimum(*ranks)


@dataclass(frozen=True)
class PWCCA(_OfSubspaces):
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

    weights: str = parameter("morcos", choose, ("morcos", "sample_l1"))
    ridge: float = parameter(0.0, as_epsilon)

    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("pwcca",)
    symmetric: ClassVar[bool] = False

    @property
    def invariances(self) -> frozenset[str]:
        if self.weights == "sample_l1":
            return ISOMETRIES if self.ridge else ANY_LINEAR_MAP
        return frozenset({"translation", "permutation"}) | (frozenset() if self.ridge else {"isotropic_scale"})

    def prepare(self, x: Tensor) -> Whitened:
        return whitened(x, self.ridge, coordinates=self.weights == "morcos")

    def compare(self, a: Whitened, b: Whitened) -> float:
        if not min(a.width, b.width):
            return math.nan
        maps, found = left_of_product(correlations(a, b))
        if a.features is not None:
            weights = (maps.T @ a.features).abs().sum(dim=1)  # (c,)
        else:
            variates = maps if a.map is None else a.map @ maps
            weights = (a.values @ variates).abs().sum(dim=0)
        return float(weights @ found / weights.sum())
