"""Measures on shapes, features up to rotation: Procrustes distances, shape metrics, Bures, partial least squares.

All are functions of the shortest chord between two shapes at unit norm: what the best rotation leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import choose
from repalign.measures.measure import (
    ISOMETRIES,
    ISOMETRIES_AND_SCALE,
    Distance,
    Features,
    as_share,
    check_flag,
    parameter,
)
from repalign.measures.numerics.precision import (
    frobenius,
    gram,
    layer_of,
    rows_of,
    square_factor,
    sum_of_singular_values,
)
from repalign.measures.numerics.regressions import HeldOut, held_out

# Below this squared chord, a difference of two numbers near 1, half of the digits are lost to cancellation or more.
_NEAR = 1e-6
# Above this one it loses no digits that count.
_FAR = 0.01
# Below this product of norms of a Cholesky factor and its inverse, rounding is some 1e-12 of the factor.
_WELL_CONDITIONED = 3e4


@dataclass(frozen=True, eq=False)
class Shape(Features):
    """Features (n, r) up to rotation, at unit Frobenius norm; `norm` is their own norm, 0 if they vanish."""

    width: int = 0  # d, of the features before they were rotated into r <= min(n, d) columns


class _OfShapes(Distance):
    """A distance, or a similarity, by the shortest chord between two shapes on the unit sphere."""

    family: ClassVar[str] = "shape"
    cost: ClassVar[str] = "n d min(n, d) per layer with d > n, n d^2 per pair"
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE
    center: bool = True

    def prepare(self, x: Tensor) -> Shape:
        return shape_of(x, self.center)

    def compare(self, a: Shape, b: Shape) -> float:
        if not (a.norm > 0 and b.norm > 0):
            return math.nan
        return self._score(self._chord(a, b), a, b)

    def _chord(self, a: Shape, b: Shape) -> float:
        return rotation_chord(a.values, b.values)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:  # noqa: ARG002
        """The score, given the smallest |A R - B|_F over rotations R of the two at unit norm: here the angle."""
        return angle(chord)


def shape_of(x: Tensor, center: bool = True) -> Shape:
    """The shape of x (n, d), wide x by its square factor: a rotation of the features changes nothing here."""
    rows = rows_of(x, center)
    if x.shape[1] > len(x):
        return at_unit_norm(_narrow_factor(rows.values, center), rows.unit, x.shape[1])
    return at_unit_norm(rows.values, rows.unit, x.shape[1], rows.norm)


def _narrow_factor(rows: Tensor, centred: bool) -> Tensor:
    """F (n, r) with F F^T = X X^T, for wide rows X (n, d): of the Cholesky factor, in half the time, where it keeps the digits.

    Centred rows lack the direction (1, ..., 1). A reflection I - v v^T takes it to the first axis, which is left out: r = n - 1.
    """
    kernel, v = gram(rows), rows.new_zeros(len(rows))
    if centred:
        v += 1 / math.sqrt(len(v))
        v[0] -= 1
        v *= math.sqrt(2) / frobenius(v)
        along = kernel @ v
        along -= (v @ along) / 2 * v
        kernel = kernel.sub_(torch.outer(along, v)).sub_(torch.outer(v, along))[1:, 1:]
    factor, failed = torch.linalg.cholesky_ex(kernel)
    if not int(failed):
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        # At least the condition number; rounding is that times the precision, as a share of |F|.
        if frobenius(factor) * frobenius(inverse) < _WELL_CONDITIONED:
            out = torch.nn.functional.pad(factor, (0, 0, len(v) - len(factor), 0))
            return out.sub_(torch.outer(v, v @ out))
    return square_factor(rows)


def at_unit_norm(values: Tensor, unit: float, width: int, norm: float | None = None) -> Shape:
    """The values, which are changed, at unit norm."""
    if norm is None:
        norm = frobenius(values)
    return Shape(values.div_(norm) if norm > 0 else values, norm * unit, width)


def rotation_chord(a: Tensor, b: Tensor) -> float:
    """min |A R - B|_F over orthogonal R, for A and B of unit norm: sqrt(2 - 2 |A^T B|_*).

    Where that difference cancels the rotation itself is found and the distance measured.
    """
    product = a.T @ b
    squared = 2 - 2 * sum_of_singular_values(product)
    if squared > _FAR:
        return math.sqrt(squared)
    squared = 2 - 2 * float(torch.linalg.svdvals(product).sum())
    if squared > _NEAR:
        return math.sqrt(squared)
    a, b = padded(a, b)
    left, _, right = torch.linalg.svd(a.T @ b)
    return frobenius(a @ (left @ right) - b)


def padded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with columns of zeros up to the larger width."""
    if a.shape[1] == b.shape[1]:
        return a, b
    width = max(a.shape[1], b.shape[1])
    pad = torch.nn.functional.pad
    return pad(a, (0, width - a.shape[1])), pad(b, (0, width - b.shape[1]))


def angle(chord: float) -> float:
    """The angle between two points of the unit sphere at that distance."""
    return 2 * math.asin(min(chord / 2, 1.0))


def size_and_shape(chord: float, size: float, other: float) -> float:
    """The distance of two points at these distances from the origin whose directions are a chord apart."""
    return math.hypot(size - other, math.sqrt(size) * math.sqrt(other) * chord)


def shape_invariances(scale_free: bool, center: bool) -> frozenset[str]:
    out = {"orthogonal", "permutation"} | ({"translation"} if center else set())
    return frozenset(out | {"isotropic_scale"} if scale_free else out)


@dataclass(frozen=True)
class ShapeMetric(_OfShapes):
    """Generalised shape metric, in radians: angular Procrustes after partial whitening.

    s = arccos(|X'^T Y'|_* / (|X'|_F |Y'|_F)), where X' has the centred features' singular values s_i replaced by
    alpha s_i + 1 - alpha. alpha = 1 leaves them: angular Procrustes. alpha = 0 whitens: at equal ranks the arc cosine
    of the mean canonical correlation.

    Parameters
    ----------
    alpha : from 0 (whitened) to 1 (as they are, the default).

    Shapes (n, d1) and (n, d2). Range [0, pi / 2]; 0 is best. With alpha = 0 and n - 1 <= d on both sides it is 0 for
    anything. Invariant to orthogonal maps, translation and column order; to isotropic scale for alpha = 1 and 0 alone,
    because between them s_i is added to a number; for alpha = 0 to every invertible linear map. nan if either is
    constant.

    Source: Williams et al. 2021 (arXiv 2110.14739). Their code gives directions without variance an
    eigenvalue of 1e-7 and counts them; here they do not count. It also rescales to the total variance of before,
    which leaves the angle as it is.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> ShapeMetric(alpha=0.0)(x, x @ np.triu(np.ones((8, 8)))) < 1e-12
    True
    """

    alpha: float = parameter(1.0, as_share)

    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("shape_metric", "linear_shape_metric")
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi / 2)

    @property
    def invariances(self) -> frozenset[str]:
        if self.alpha == 0:
            return ISOMETRIES_AND_SCALE | {"column_scale", "invertible"}
        return shape_invariances(self.alpha == 1, True)

    def prepare(self, x: Tensor) -> Shape:
        if self.alpha == 1:
            return shape_of(x)
        vectors, values, unit = layer_of(x).spectrum
        scale = max(self.alpha * unit, 1 - self.alpha)  # so that squares neither overflow nor vanish
        whitened = vectors * (self.alpha * values * (unit / scale) + (1 - self.alpha) / scale)
        return at_unit_norm(whitened, scale, x.shape[1])


@dataclass(frozen=True)
class NormalisedBures(_OfShapes):
    """Normalised Bures similarity: the fidelity of two kernels, and the cosine of angular Procrustes.

    s = |X^T Y|_* / (|X|_F |Y|_F) on centred features, |.|_* the sum of singular values. With kernels K = X X^T,
    |X^T Y|_* = tr (K^(1/2) L K^(1/2))^(1/2).

    Shapes (n, d1) and (n, d2). Range [0, 1]; high for unrelated layers once d is of the order of n. Invariant to
    orthogonal maps, isotropic scale, translation and column order. nan if either is constant.

    Source: Tang et al. 2020 (arXiv 2003.11498). From singular values, not from square roots of eigenvalues
    of a product of kernels, which are off by 1e-7.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(NormalisedBures()(x, 5 - 2 * x), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("normalised_bures", "normalized_bures", "nbs")
    closer_is_higher: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:  # noqa: ARG002
        return 1 - chord * chord / 2


@dataclass(frozen=True)
class BuresDistance(_OfShapes):
    """Bures distance between the centred linear kernels of two layers, per feature.

    s = sqrt(tr K + tr L - 2 tr (K^(1/2) L K^(1/2))^(1/2)), K = X X^T / d1, L = Y Y^T / d2 of centred features: the
    Procrustes distance of X / sqrt(d1) and Y / sqrt(d2).

    Shapes (n, d1) and (n, d2). Range [0, inf); 0 is best; in the unit of the features and growing with sqrt(n).
    Invariant to orthogonal maps, translation and column order. nan if either is constant.

    Source: Bhatia, Jain and Lim 2019 (arXiv 1712.01504); rsatoolbox reports the square.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> BuresDistance()(x, 5 - x) < 1e-12
    True
    """

    aliases: ClassVar[tuple[str, ...]] = ("bures_distance", "bures")
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        return size_and_shape(chord, a.norm / math.sqrt(a.width), b.norm / math.sqrt(b.width))


@dataclass(frozen=True)
class PLSCovariance(_OfShapes):
    """Mean covariance along the directions of partial least squares (its SVD form).

    s = |X^T Y|_* / ((n - 1) min(d1, d2)) on centred features: the mean singular value of their cross-covariance.

    Shapes (n, d1) and (n, d2). Range [0, inf), in the product of the units of both, so only a chance level gives it
    meaning; `NormalisedBures` is the same sum over the norms of both sides. Invariant to orthogonal maps, translation
    and column order. nan if either is constant.

    Source: McIntosh et al. 1996; mean over min(d1, d2) as in the code released with Raghu et al. 2017 (arXiv
    1706.05806), which refuses d1 > d2.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> bool(np.isclose(PLSCovariance()(x, x), x.var(axis=0, ddof=1).mean()))
    True
    """

    aliases: ClassVar[tuple[str, ...]] = ("pls_covariance", "pls_svd")
    closer_is_higher: ClassVar[bool] = True
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        cosine = 1 - chord * chord / 2
        return cosine * a.norm * b.norm / ((a.n - 1) * min(a.width, b.width))


@dataclass(frozen=True)
class Procrustes(_OfShapes):
    """Procrustes distance: what is left between two layers after the best rotation or reflection.

    s = min |X R - Y|_F over orthogonal R = sqrt(|X|_F^2 + |Y|_F^2 - 2 |X^T Y|_*), with |.|_* the sum of singular
    values; the narrower array is padded with columns of zeros.

    Parameters
    ----------
    normalized : both at unit Frobenius norm first (default): the distance of shapes. Without it sizes count too: the
        distance of sizes-and-shapes, in the unit of the features and growing with sqrt(n).
    center : take off the column means first (default).
    squared : the square, as some report it.

    Shapes (n, d1) and (n, d2). Range [0, sqrt(2)] (squared: [0, 2]); without normalizing unbounded. 0 is best. The
    distance between unrelated layers shrinks as d / n grows (angle 1.40 for 10 columns and 0.32 for 1,000, at n = 200):
    calibrate it. Invariant to orthogonal maps and column order; normalized, to isotropic scale; with center, to
    translation. nan if either is constant.

    Source: Schoenemann 1966; Ding, Denain and Steinhardt 2021 (arXiv 2108.01661). scipy.spatial.procrustes
    returns another number, the disparity 1 - |X^T Y|_*^2 = 1 - NormalisedBures^2: it scales one side to fit as well.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> Procrustes()(x, 5 - 2 * x) < 1e-12
    True
    """

    normalized: bool = parameter(True, check_flag)
    center: bool = parameter(True, check_flag)
    squared: bool = parameter(False, check_flag)

    aliases: ClassVar[tuple[str, ...]] = ("procrustes", "procrustes_distance", "orthogonal_procrustes")

    @property
    def range(self) -> tuple[float, float]:
        if not self.normalized:
            return self.bounds
        return (0.0, 2.0 if self.squared else math.sqrt(2))

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(self.normalized, self.center)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        distance = chord if self.normalized else size_and_shape(chord, a.norm, b.norm)
        return distance * distance if self.squared else distance


@dataclass(frozen=True)
class AngularProcrustes(_OfShapes):
    """Angular Procrustes distance, in radians: the angle between two shapes after the best rotation.

    s = arccos(|X^T Y|_* / (|X|_F |Y|_F)), |.|_* the sum of singular values: the geodesic distance of shapes.

    Parameters
    ----------
    center : take off the column means first (default).

    Shapes (n, d1) and (n, d2). Range [0, pi / 2]; 0 is best. Like every shape distance it shrinks for unrelated layers
    as d / n grows. Invariant to orthogonal maps, isotropic scale and column order; with center, to translation. nan if
    either is constant.

    Source: Williams et al. 2021 (arXiv 2110.14739). Where the angle is small it is computed from the chord,
    so that it keeps its digits; forms with an arc cosine alone are off by 1e-8, or nan where rounding goes beyond 1.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> AngularProcrustes()(x, 5 - 2 * x) < 1e-12
    True
    """

    center: bool = parameter(True, check_flag)

    aliases: ClassVar[tuple[str, ...]] = ("angular_procrustes", "angular_shape_metric")
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi / 2)

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(True, self.center)


@dataclass(frozen=True)
class PermutationProcrustes(_OfShapes):
    """Permutation Procrustes: the distance left after the best one-to-one matching of units.

    s = min over permutations P of the columns of the angle between X P and Y (in radians), or of |X P - Y|_F; the
    narrower array is padded with columns of zeros. The matching is exact (a linear assignment).

    Parameters
    ----------
    form : "angle" (default), or "distance", in the unit of the features.
    center : take off the column means first (default).

    Shapes (n, d1) and (n, d2). Range [0, pi]; distance unbounded. 0 is best. Invariant to column order; angle to
    isotropic scale; with center to translation; not to rotations, so that the difference to `AngularProcrustes` tells
    how much of an alignment belongs to single units. nan if either is constant.

    Source: Williams et al. 2021 (arXiv 2110.14739); the assignment is scipy's.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> PermutationProcrustes()(x, 2 * x[:, ::-1]) < 1e-12
    True
    """

    form: str = parameter("angle", choose, ("angle", "distance"))
    center: bool = parameter(True, check_flag)

    cost: ClassVar[str] = "n d per layer, n d^2 + d^3 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("permutation_procrustes",)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, math.pi) if self.form == "angle" else self.bounds

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(self.form == "angle", self.center) - {"orthogonal"}

    def prepare(self, x: Tensor) -> Shape:
        rows = rows_of(x, self.center)
        return at_unit_norm(rows.values, rows.unit, x.shape[1], rows.norm)

    def _chord(self, a: Shape, b: Shape) -> float:
        from scipy.optimize import linear_sum_assignment

        first, second = padded(a.values, b.values)
        products = (first.T @ second).cpu().numpy()
        matched = linear_sum_assignment(products, maximize=True)
        squared = 2 - 2 * float(products[matched].sum())
        if squared > _FAR:
            return math.sqrt(squared)
        i, j = (torch.from_numpy(m).to(first.device) for m in matched)
        return frobenius(first[:, i] - second[:, j])

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        return angle(chord) if self.form == "angle" else size_and_shape(chord, a.norm, b.norm)


@dataclass(frozen=True)
class HeldOutProcrustes(HeldOut, _OfShapes):
    """Held-out angular Procrustes, in radians: the rotation is found on some stimuli and judged on the others.

    For every fold, on features without the mean of the training rows, R maximises tr(R^T X^T Y) over the training rows
    and theta = arccos(<X R, Y> / (|X|_F |Y|_F)) over the held-out rows; s is the mean of theta over folds. R takes
    directions on which the training rows say nothing to 0, so that it is unique.

    Parameters
    ----------
    folds : how many, 5 by default.
    seed : of the shuffle that makes the folds; the same rows are held out for every pair of layers.

    Shapes (n, d1) and (n, d2). Range [0, pi]; 0 is best. Unrelated layers are pi / 2 apart whatever d / n is, where the
    angle in sample shrinks to 0; with fewer training rows than columns related layers move towards pi / 2 as well.
    Invariant to orthogonal maps, isotropic scale, translation and column order. nan if either is constant.
    Raises RepalignError unless n >= 2 folds.

    Source: Williams et al. 2021 (arXiv 2110.14739) with cross-validation. An outside implementation reduces the wider
    side to its leading principal components first, so that what it leaves out does not count.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> HeldOutProcrustes()(x, 5 - 2 * x) < 1e-12
    True
    """

    cost: ClassVar[str] = "n d min(n, d) per layer with d > n, folds n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("held_out_procrustes", "cv_linear_shape_metric")
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi)

    def compare(self, a: Shape, b: Shape) -> float:
        if not (a.norm > 0 and b.norm > 0):
            return math.nan
        angles = []
        for train, test in held_out(a.n, self.folds, self.seed):
            parts = [(s.values[rows], s.values[train].mean(dim=0)) for s in (a, b) for rows in (train, test)]
            angles.append(_held_out_angle(*(rows - mean for rows, mean in parts)))
        return sum(angles) / len(angles)


def _held_out_angle(x: Tensor, x_out: Tensor, y: Tensor, y_out: Tensor) -> float:
    """The angle between held-out rows, rotated by what the training rows x and y say."""
    left, values, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    known = values > values.max() * max(x.shape[1], y.shape[1]) * torch.finfo(x.dtype).eps
    u, v = left[:, known], right.T[:, known]
    p, q = x_out / frobenius(x_out), y_out / frobenius(y_out)
    rest = (frobenius(p - (p @ u) @ u.T), frobenius(q - (q @ v) @ v.T))
    return angle(math.hypot(frobenius(p @ u - q @ v), *rest))
