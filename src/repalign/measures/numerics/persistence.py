"""Scaled distances, minimum spanning trees and persistence bars: what the topological measures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import Given
from repalign.measures.measure import State
from repalign.measures.numerics.distances import between_rows

QUANTILE = 0.9


@dataclass(frozen=True, eq=False)
class Whole(State):
    """A layer as it is given, where sets of its stimuli have to be drawn first."""

    layer: Given

    @property
    def n(self) -> int:
        return len(self.layer)

    @property
    def nbytes(self) -> int:
        return self.layer.nbytes

    def permute(self, p: Tensor) -> Self:
        return replace(self, layer=self.layer[p])


@dataclass(frozen=True, eq=False)
class Distances(State):
    """Euclidean distances (n, n) in the unit of their 0.9 quantile, and the weight of their spanning tree.

    The quantile is over all n^2 entries with the zeros of the diagonal. `matrix` is None where it is 0: most rows are
    then alike, and there is no unit.
    """

    matrix: Tensor | None
    size: int
    tree: float = 0.0

    @property
    def n(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        return 0 if self.matrix is None else self.matrix.nbytes

    def permute(self, p: Tensor) -> Self:
        if self.matrix is None:
            return self
        return replace(self, matrix=self.matrix.index_select(0, p).index_select(1, p))

    def numpy(self) -> np.ndarray | None:
        return None if self.matrix is None else self.matrix.cpu().numpy()


def distances(x: Given) -> Tensor | None:
    """Euclidean distances (n, n) of the rows, or the dissimilarities of an RDM, over their 0.9 quantile; None where that is 0.

    Duplicates are at 0.
    """
    out = between_rows(x)[0].sqrt_()
    unit = float(np.quantile(out.cpu().numpy(), QUANTILE))
    return out.div_(unit) if unit > 0 else None


def spanning_tree(matrix: np.ndarray) -> float:
    """The weight of a minimum spanning tree of the complete graph (Prim); a distance of 0 is an edge as any other."""
    n = len(matrix)
    nearest = matrix[0].copy()
    nearest[0] = np.inf
    inside = np.zeros(n, dtype=bool)
    inside[0] = True
    total = 0.0
    for _ in range(n - 1):
        new = int(nearest.argmin())
        total += float(nearest[new])
        inside[new] = True
        np.minimum(nearest, matrix[new], out=nearest)
        nearest[inside] = np.inf
    return total


def bars(matrix: np.ndarray, homology: int = 1) -> np.ndarray:
    """Finite persistence bars (birth, death) of the Vietoris-Rips filtration of a distance matrix, in float32 precision."""
    found: Sequence[np.ndarray] = needs("ripser").ripser(matrix, distance_matrix=True, maxdim=homology)["dgms"]
    return found[homology][np.isfinite(found[homology]).all(axis=1)].astype(np.float64)


def length(found: np.ndarray) -> float:
    """The sum of the lengths of bars."""
    return float((found[:, 1] - found[:, 0]).sum())


def needs(package: str) -> Any:
    """A package of the topology extra, or an error that says how to get it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RepalignError(
            f"topological measures need the package {package}",
            expected="ripser and persim installed",
            got=str(error),
            remedy="pip install 'repalign[topology]'",
        ) from error
