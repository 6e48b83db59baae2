"""Shapes, features up to rotation: their state, and the shortest chord between two of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.measures.measure import Features, Measure, State
from repalign.measures.numerics.spectrum import frobenius, rows_of, square_factor

# Below this squared chord, a difference of two numbers near 1, half of the digits are lost to cancellation or more.
_NEAR = 1e-6


@dataclass(frozen=True, eq=False)
class Shape(Features):
    """Features (n, r) up to rotation, at unit Frobenius norm; `norm` is their own norm, 0 if they vanish."""

    width: int = 0  # d, of the features before they were rotated into r <= min(n, d) columns


class ShapeMeasure(Measure):
    """What these measures share: the state, and the shortest chord between two shapes on the unit sphere."""

    cost: ClassVar[str] = "n d min(n, d) per layer with d > n, n d^2 per pair"
    symmetric: ClassVar[bool] = True

    def prepare(self, x: Tensor) -> Shape:
        return shape_of(x)

    def compare(self, a: State, b: State) -> float:
        first, second = cast(Shape, a), cast(Shape, b)
        if not (first.norm > 0 and second.norm > 0):
            return math.nan
        return self._score(self._chord(first, second), first, second)

    def _chord(self, a: Shape, b: Shape) -> float:
        return rotation_chord(a.values, b.values)

    @abstractmethod
    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        """The score, given the smallest |A R - B|_F over rotations R of the two at unit norm."""


def shape_of(x: Tensor, center: bool = True) -> Shape:
    """The shape of x (n, d), wide x by its square factor: a rotation of the features changes nothing here."""
    rows = rows_of(x, center)
    return at_unit_norm(square_factor(rows.values) if x.shape[1] > len(x) else rows.values, rows.unit, x.shape[1])


def at_unit_norm(values: Tensor, unit: float, width: int) -> Shape:
    norm = frobenius(values)
    return Shape(values / norm if norm > 0 else values, norm * unit, width)


def rotation_chord(a: Tensor, b: Tensor) -> float:
    """min |A R - B|_F over orthogonal R, for A and B of unit norm: sqrt(2 - 2 |A^T B|_*).

    Where that difference cancels the rotation itself is found and the distance measured.
    """
    squared = 2 - 2 * float(torch.linalg.svdvals(a.T @ b).sum())
    if squared > _NEAR:
        return math.sqrt(squared)
    a, b = padded(a, b)
    left, _, right = torch.linalg.svd(a.T @ b)
    return frobenius(a @ (left @ right) - b)


def padded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with columns of zeros up to the larger width."""
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
