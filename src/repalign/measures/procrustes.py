"""Procrustes distances: what is left between two layers after the best rotation, or the best matching of units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.measures.measure import Measure, State
from repalign.measures.numerics.checks import check_choice, check_flag
from repalign.measures.numerics.folds import as_folds, as_seed, held_out
from repalign.measures.numerics.shape import (
    Shape,
    ShapeMeasure,
    angle,
    at_unit_norm,
    padded,
    shape_invariances,
    shape_of,
    size_and_shape,
)
from repalign.measures.numerics.spectrum import frobenius, rows_of


@dataclass(frozen=True)
class Procrustes(ShapeMeasure):
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

    normalized: bool = True
    center: bool = True
    squared: bool = False

    family: ClassVar[str] = "shape"
    aliases: ClassVar[tuple[str, ...]] = ("procrustes", "procrustes_distance", "orthogonal_procrustes")
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        for name in ("normalized", "center", "squared"):
            check_flag(name, getattr(self, name))

    @property
    def range(self) -> tuple[float, float]:
        if not self.normalized:
            return self.bounds
        return (0.0, 2.0 if self.squared else math.sqrt(2))

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(self.normalized, self.center)

    def prepare(self, x: Tensor) -> Shape:
        return shape_of(x, self.center)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        distance = chord if self.normalized else size_and_shape(chord, a.norm, b.norm)
        return distance * distance if self.squared else distance


@dataclass(frozen=True)
class AngularProcrustes(ShapeMeasure):
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

    center: bool = True

    family: ClassVar[str] = "shape"
    aliases: ClassVar[tuple[str, ...]] = ("angular_procrustes", "angular_shape_metric")
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi / 2)

    def __post_init__(self) -> None:
        check_flag("center", self.center)

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(True, self.center)

    def prepare(self, x: Tensor) -> Shape:
        return shape_of(x, self.center)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:  # noqa: ARG002
        return angle(chord)


@dataclass(frozen=True)
class PermutationProcrustes(ShapeMeasure):
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

    form: str = "angle"
    center: bool = True

    family: ClassVar[str] = "shape"
    cost: ClassVar[str] = "n d per layer, n d^2 + d^3 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("permutation_procrustes",)
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("angle", "distance"))
        check_flag("center", self.center)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, math.pi) if self.form == "angle" else self.bounds

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(self.form == "angle", self.center) - {"orthogonal"}

    def prepare(self, x: Tensor) -> Shape:
        rows = rows_of(x, self.center)
        return at_unit_norm(rows.values, rows.unit, x.shape[1])

    def _chord(self, a: Shape, b: Shape) -> float:
        from scipy.optimize import linear_sum_assignment

        first, second = padded(a.values, b.values)
        matched = linear_sum_assignment((first.T @ second).cpu().numpy(), maximize=True)
        i, j = (torch.from_numpy(m).to(first.device) for m in matched)
        return frobenius(first[:, i] - second[:, j])

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        return angle(chord) if self.form == "angle" else size_and_shape(chord, a.norm, b.norm)


@dataclass(frozen=True)
class HeldOutProcrustes(Measure):
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

    folds: int = 5
    seed: int = 0

    family: ClassVar[str] = "shape"
    cost: ClassVar[str] = "n d min(n, d) per layer with d > n, folds n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("held_out_procrustes", "cv_linear_shape_metric")
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folds", as_folds(self.folds))
        object.__setattr__(self, "seed", as_seed(self.seed))

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(True, True)

    @property
    def min_n(self) -> int:
        return 2 * self.folds

    def prepare(self, x: Tensor) -> Shape:
        self.check_n(len(x))
        return shape_of(x)

    def compare(self, a: State, b: State) -> float:
        first, second = cast(Shape, a), cast(Shape, b)
        if not (first.norm > 0 and second.norm > 0):
            return math.nan
        angles = []
        for train, test in held_out(first.n, self.folds, self.seed):
            parts = [(s.values[rows], s.values[train].mean(dim=0)) for s in (first, second) for rows in (train, test)]
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


MEASURES = (Procrustes, AngularProcrustes, PermutationProcrustes, HeldOutProcrustes)
