"""Measures that compare neighbour lists: mutual, cycle, longest-common-subsequence and edit-distance k-NN.

All lists come from one search (`_search.nearest`): the stimulus itself is left out, ties go to the lower
index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.layers import ANY_FORM, Given
from repalign.measures.measure import (
    SCRATCH_BYTES,
    Bilinear,
    GraphRelation,
    Measure,
    Neighbors,
    Relation,
    State,
)
from repalign.measures.numerics.alignment import common_subsequence, edit_distance
from repalign.measures.numerics.checks import as_count, check_flag
from repalign.measures.numerics.search import check_search, embed, nearest, search_invariances, search_takes


@dataclass(frozen=True)
class _NeighborLists(Measure):
    """The parameters of a neighbour search, shared by the measures of this file."""

    k: int = 10
    similarity: str = "cosine"
    center: bool = False

    takes: ClassVar[frozenset[str]] = ANY_FORM

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", as_count("k", self.k))
        check_search(self.similarity, self.center)

    @property
    def accepts(self) -> frozenset[str]:
        return search_takes(self.similarity, self.center)

    @property
    def min_n(self) -> int:
        return self.k + 1

    @property
    def invariances(self) -> frozenset[str]:
        return search_invariances(self.similarity, self.center)

    def _neighbors(self, x: Given, k: int | None = None) -> Neighbors:
        """Neighbour lists (n, k), with a norm of 0 for a constant representation, which has none."""
        embedded = embed(x, self.similarity, self.center)
        return Neighbors(nearest(embedded, self.k if k is None else k), norm=0.0 if embedded.is_constant else 1.0)


@dataclass(frozen=True)
class MutualKNN(_NeighborLists, Bilinear):
    """Mutual k-nearest-neighbour alignment: the share of neighbours that two spaces have in common.

    s = (1 / n) sum_i |N_X(i) & N_Y(i)| / k, with N(i) the k nearest of stimulus i without itself.

    Parameters
    ----------
    k : neighbours per stimulus.
    similarity : "cosine" (rows are normalised here), "dot" or "euclidean". In a layer that is given as an `RDM` those of least
        dissimilarity are nearest, by the first and the last word alike; of a `Kernel` all three follow from its products.
    center : subtract the column means first, which removes a common direction that dominates all cosines.

    Shapes (n, d1) and (n, d2). Range [0, 1] in steps of 1 / (n k); chance k / (n - 1). Invariant to
    orthogonal maps, isotropic scale and column order; with cosine also to the scale of every row, with center
    or euclidean also to translations. nan if all rows of one side are alike.
    Raises RepalignError unless n > k.

    Source: Huh et al. 2024 (arXiv 2405.07987), equations 9 to 11. The reference code takes dot products of
    whatever it is given, breaks ties arbitrarily and counts the stimulus itself when k >= n.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> MutualKNN(k=5)(x, 3 * x)
    1.0
    """

    family: ClassVar[str] = "neighbors"
    cost: ClassVar[str] = "n^2 d per layer, n k per pair"
    aliases: ClassVar[tuple[str, ...]] = ("mutual_knn", "mknn", "knn")
    symmetric: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def prepare(self, x: Given) -> GraphRelation:
        found = self._neighbors(x)
        return GraphRelation(found.indices, norm=found.norm)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        return super().scale(inner, a, b) / (a[0].n * self.k)


@dataclass(frozen=True)
class CycleKNN(_NeighborLists):
    """Cycle k-NN: the share of stimuli that return to themselves through Y's and then X's neighbours.

    s = share of i for which some j in N_Y(i) has i in N_X(j). X is the first argument: the walk starts with a
    step in the second space and comes back in the first. Not symmetric.

    Parameters k, similarity, center as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 1]; chance about 1 - (1 - k / (n - 1))^k without hubs, so it saturates soon:
    a hit needs any return, not the mean of them, and s(X, X) may be below 1. Hubs, rows that are neighbours of many,
    lower it, and not the same in both directions: s(X, Y) and s(Y, X) of unrelated spaces differ by chance where one
    of them has hubs. Compare each with its own null before reading a direction into them. nan if all rows of one
    side are alike. Raises RepalignError unless n > k.

    Source: Huh et al. 2024 (arXiv 2405.07987), appendix B; the direction is that of the reference code's
    `cycle_knn(A, B)` with A = X.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> CycleKNN(k=5)(x, x[:, :4])
    0.9
    """

    family: ClassVar[str] = "neighbors"
    cost: ClassVar[str] = "n^2 d per layer, n k^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cycle_knn",)
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def prepare(self, x: Given) -> Neighbors:
        return self._neighbors(x)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        first, second = cast(Sequence[Neighbors], a), cast(Sequence[Neighbors], b)
        n, k = first[0].indices.shape
        hits = torch.zeros(len(a), len(b), dtype=torch.int64)
        rows = max(1, min(n, SCRATCH_BYTES // (len(b) * k * k * 9)))
        for start in range(0, n, rows):
            block = slice(start, min(start + rows, n))
            step = torch.stack([t.indices[block] for t in second])  # (lb, r, k)
            home = torch.arange(block.start, block.stop, device=step.device)[:, None, None]
            for i, s in enumerate(first):
                returned = (s.indices[step] == home).flatten(2).any(dim=2)  # (lb, r)
                hits[i] += returned.sum(dim=1).cpu()
        return _undefined_as_nan(hits.to(torch.float64) / n, first, second)


@dataclass(frozen=True)
class LCSKNN(_NeighborLists):
    """Longest common subsequence of the two ordered neighbour lists: order counts, not only membership.

    s = (1 / n) sum_i LCS(N_X(i), N_Y(i)) / k, the lists nearest first.

    Parameters
    ----------
    k, similarity, center : as in `MutualKNN`, and the same invariances.
    normalized : divide by k (default), as the paper says; False gives the 0..k of the reference code.

    Shapes (n, d1) and (n, d2). Range [0, 1], or [0, k] if not normalized. nan if all rows of one side are
    alike. Raises RepalignError unless n > k.

    Source: Huh et al. 2024 (arXiv 2405.07987), appendix B and table 11.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> LCSKNN(k=5)(x, x), LCSKNN(k=5, normalized=False)(x, x)
    (1.0, 5.0)
    """

    normalized: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("normalized", self.normalized)

    family: ClassVar[str] = "neighbors"
    cost: ClassVar[str] = "n^2 d per layer, n k^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("lcs_knn",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.normalized else (0.0, float(self.k))

    def prepare(self, x: Given) -> Neighbors:
        return self._neighbors(x)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        first, second = cast(Sequence[Neighbors], a), cast(Sequence[Neighbors], b)
        lengths = common_subsequence([s.indices for s in first], [t.indices for t in second])
        per_row = lengths.to(torch.float64) / (first[0].n * (self.k if self.normalized else 1))
        return _undefined_as_nan(per_row, first, second)


@dataclass(frozen=True)
class EditDistanceKNN(_NeighborLists):
    """One minus the edit distance between the two ordered neighbour lists.

    s = 1 - (1 / n) sum_i Levenshtein(N_X(i), N_Y(i)) / k, with unit costs, the lists nearest first.

    Parameters k, similarity, center as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 1]. nan if all rows of one side are alike.
    Raises RepalignError unless n > k.

    Source: Huh et al. 2024 (arXiv 2405.07987), appendix B.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> EditDistanceKNN(k=5)(x, x)
    1.0
    """

    family: ClassVar[str] = "neighbors"
    cost: ClassVar[str] = "n^2 d per layer, n k^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("edit_distance_knn", "edit_knn")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def prepare(self, x: Given) -> Neighbors:
        return self._neighbors(x)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        first, second = cast(Sequence[Neighbors], a), cast(Sequence[Neighbors], b)
        distances = edit_distance([s.indices for s in first], [t.indices for t in second])
        return _undefined_as_nan(1 - distances.to(torch.float64) / (first[0].n * self.k), first, second)


def _undefined_as_nan(scores: Tensor, a: Sequence[Neighbors], b: Sequence[Neighbors]) -> Tensor:
    """nan where all rows of one side are alike, so that its lists hold nothing but the tie rule."""
    defined = torch.tensor([s.norm > 0 for s in a])[:, None] & torch.tensor([t.norm > 0 for t in b])[None, :]
    return torch.where(defined, scores, math.nan)


MEASURES = (MutualKNN, CycleKNN, LCSKNN, EditDistanceKNN)
