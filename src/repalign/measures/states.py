"""The states of layers: what `Measure.prepare` gives, and how its rows are relabelled without preparing again.

There are three kinds. `Features` holds a transformed array, `Neighbors` ordered neighbour lists, `Relation` an n x n relation
(dense, or as a graph of few edges) whose score with another is the inner product <A, B>.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from repalign.measures.numerics.inner import dense_inner, graph_inner
from repalign.measures.numerics.precision import NORMAL


class State(ABC):
    """The result of preparing one layer, once: an immutable dataclass; its first field has an entry for every stimulus, or is n."""

    n: int  # stimuli
    nbytes: int  # memory held, for a cache that is bounded
    device: torch.device  # of its tensors

    def __post_init__(self) -> None:
        held = list(vars(self).values())
        device = next((value.device for value in held if isinstance(value, Tensor)), torch.device("cpu"))
        n, nbytes = held[0] if isinstance(held[0], int) else len(held[0]), sum(getattr(value, "nbytes", 0) for value in held)
        vars(self).update(device=device, n=n, nbytes=nbytes)

    @property
    def width(self) -> int:
        """The width of the layer; known where the features are kept, as measures of one space do."""
        raise TypeError(f"{type(self).__name__} does not know the width of its layer")

    @abstractmethod
    def permute(self, p: Tensor) -> Self:
        """The state that `prepare(x[p])` would give, without preparing again."""


@dataclass(frozen=True, eq=False)
class Features(State):
    """A transformed array (n, r), for measures that need the vectors themselves.

    `norm` is whatever scalar the measure wants to keep with it (for instance a Frobenius norm).
    """

    values: Tensor  # (n, r)
    norm: float = 1.0

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def permute(self, p: Tensor) -> Self:
        return replace(self, values=self.values[p])


@dataclass(frozen=True, eq=False)
class Summary(State):
    """Numbers that say nothing of single rows, so that no relabelling changes them."""

    size: int
    values: Tensor  # float64; where widths matter, the last dimension is that of the layer

    @property
    def width(self) -> int:
        return self.values.shape[-1]

    def permute(self, p: Tensor) -> Self:  # noqa: ARG002
        return self


@dataclass(frozen=True, eq=False)
class Neighbors(State):
    """Ordered neighbour lists, nearest first; `values` optionally holds one number per entry."""

    indices: Tensor  # (n, k) int64
    values: Tensor | None = None  # (n, k)
    norm: float = 1.0

    @property
    def k(self) -> int:
        return self.indices.shape[1]

    def permute(self, p: Tensor) -> Self:
        inverse = torch.empty_like(p)
        inverse[p] = torch.arange(len(p), device=p.device)
        values = None if self.values is None else self.values[p]
        return replace(self, indices=inverse[self.indices[p]], values=values)


@dataclass(frozen=True, eq=False)
class SquareState(State):
    """A square matrix (n, n); `norm` is a number that goes with it, 0 if there is no score."""

    matrix: Tensor
    norm: float = 1.0

    def permute(self, p: Tensor) -> Self:
        return replace(self, matrix=self.matrix.index_select(0, p).index_select(1, p))  # six times faster than [p][:, p]


class Relation(State):
    """An n x n relation A; the score of two is a function of <A, B> = sum_ij A_ij B_ij alone."""

    norm: float
    symmetric: bool
    matrix: Tensor  # A (n, n); of a graph it is made when asked for

    @staticmethod
    def inner_all(a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        """<A_l, B_m> for all pairs as a float64 (la, lb) tensor on the CPU."""
        a, b = in_roles(a, 0), in_roles(b, 1)
        if all(isinstance(s, DenseRelation) for s in (*a, *b)):
            return dense_inner(a, b)  # type: ignore[arg-type]
        if all(isinstance(s, GraphRelation) for s in (*a, *b)):
            return graph_inner(a, b)  # type: ignore[arg-type]
        raise TypeError("relations of two storage kinds met in one comparison")


@dataclass(frozen=True, eq=False)
class DenseRelation(SquareState, Relation):
    """A dense relation, kept at unit Frobenius norm so that float32 products stay well scaled.

    `norm` is the Frobenius norm that was divided out (0 if A vanishes: the score is then undefined). `factor`, where the layer
    is narrow, says the same in less: rows (c_i, s_i) with A_ij = c_i . c_j - s_i - s_j for i != j.
    """

    symmetric: bool = True
    factor: Tensor | None = None  # (n, r + 1)

    @classmethod
    def of(
        cls, matrix: Tensor, *, symmetric: bool = True, floor: float = 0.0, unit: float = 1.0, factor: Tensor | None = None
    ) -> DenseRelation:
        """Divide `matrix` (and `factor`) by its Frobenius norm, in place; a norm <= `floor` counts as zero (rounding residue).

        The norm is told in the unit of the features, in which the matrix is `unit` times as large.
        """
        norm = float(torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1), dtype=torch.float64))
        if not norm > floor:
            return cls(torch.zeros_like(matrix), 0.0, symmetric)
        if factor is not None:
            factor[:, :-1] /= math.sqrt(norm)
            factor[:, -1] /= norm
        return cls(matrix.div_(norm), float(np.clip(norm * unit, *NORMAL)), symmetric, factor)

    def permute(self, p: Tensor) -> Self:
        found = super().permute(p)
        return found if self.factor is None else replace(found, factor=self.factor[p])


@dataclass(frozen=True, eq=False)
class GraphRelation(Neighbors, Relation):
    """A sparse directed relation: k entries per row at `indices`, each 1 or `values`."""

    symmetric: bool = False

    @property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """A (n, n); zeros and ones, and sums of products of them below 2^24, are exact in float32."""
        entries = torch.ones_like(self.indices, dtype=torch.float32) if self.values is None else self.values
        return entries.new_zeros(self.n, self.n).scatter_(1, self.indices, entries)


@dataclass(frozen=True, eq=False)
class TwoRoles(Relation):
    """What a layer is as the first and as the second of two, where a bilinear score asks different things of them."""

    first: DenseRelation
    second: DenseRelation
    symmetric: bool = False

    def __post_init__(self) -> None:
        held = {"n": self.first.n, "device": self.first.device, "nbytes": self.first.nbytes + self.second.nbytes}
        vars(self).update(held | {"norm": min(self.first.norm, self.second.norm)})

    def permute(self, p: Tensor) -> Self:
        return replace(self, first=self.first.permute(p), second=self.second.permute(p))


def in_roles(states: Sequence[Any], place: int) -> Sequence[Any]:
    """The states as those of the first (0) or of the second (1) of two layers."""
    if not isinstance(states[0], TwoRoles):
        return states
    return [s.second if place else s.first for s in states]
