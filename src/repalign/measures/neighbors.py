"""Measures that compare neighbour lists: how many neighbours two spaces share, and where these stand in both lists.

All lists come from one search (`numerics.search.nearest`): exact, nearest first; the stimulus itself is left out, ties go
to the lower index.

Ordered lists are aligned by one recurrence for longest common subsequence and edit distance:
G(i, j) = max(G(i-1, j-1) + [a_i = b_j], G(i-1, j) - g, G(i, j-1) - g') over prefixes of two lists of length
k. With gap costs of 0, G(k, k) is the length of the longest common subsequence. For the Levenshtein distance
D with unit costs put G(i, j) = j - D(i, j): a deletion costs 1 in the first direction and 0 in the second, a
substitution 0 and a match gains 1, so that D(k, k) = k - G(k, k) with g = 1, g' = 0 and G(i, 0) = -i.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import Given
from repalign.measures.measure import (
    Batched,
    Bilinear,
    DenseRelation,
    Distance,
    GraphRelation,
    Local,
    Neighbors,
    Relation,
    TwoRoles,
    as_count,
    check_flag,
    norms,
    parameter,
)
from repalign.measures.numerics.rows import blocks
from repalign.measures.numerics.search import SIMILARITIES, Searching, embed, nearest


@dataclass(frozen=True)
class _NeighborLists(Searching, Local):
    """The neighbour search that the measures of this file share."""

    similarity: str = parameter("cosine", choose, SIMILARITIES)
    center: bool = parameter(False, check_flag)

    state: ClassVar[type[Neighbors]] = Neighbors  # what the lists are kept as

    def prepare(self, x: Given) -> Any:
        """Neighbour lists (n, k), with a norm of 0 for a constant representation, which has none."""
        embedded = embed(x, self.similarity, self.center)
        return self.state(nearest(embedded, self.n_neighbors), norm=0.0 if embedded.is_constant else 1.0)


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

    cost: ClassVar[str] = "n^2 d per layer, n k per pair"
    aliases: ClassVar[tuple[str, ...]] = ("mutual_knn", "mknn", "knn")
    dense: ClassVar[bool] = False
    state: ClassVar[type[Neighbors]] = GraphRelation

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        return super().scale(inner, a, b) / (a[0].n * self.k)


@dataclass(frozen=True)
class CycleKNN(_NeighborLists, Batched):
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

    cost: ClassVar[str] = "n^2 d per layer, n k^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cycle_knn",)
    symmetric: ClassVar[bool] = False
    interval: ClassVar[str] = "jackknife"  # it saturates: on halves it is nearer to 1, and varies too little

    def compare_all(self, a: Sequence[Neighbors], b: Sequence[Neighbors]) -> Tensor:
        n, k = a[0].indices.shape
        hits = torch.zeros(len(a), len(b), dtype=torch.int64)
        for block in blocks(n, len(b) * k * k * 9):
            step = torch.stack([t.indices[block] for t in b])  # (lb, r, k)
            home = torch.arange(block.start, block.stop, device=step.device)[:, None, None]
            for i, s in enumerate(a):
                returned = (s.indices[step] == home).flatten(2).any(dim=2)  # (lb, r)
                hits[i] += returned.sum(dim=1).cpu()
        return self.scale(hits.to(torch.float64) / n, a, b)


@dataclass(frozen=True)
class LCSKNN(_NeighborLists, Batched):
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

    normalized: bool = parameter(True, check_flag)

    cost: ClassVar[str] = "n^2 d per layer, n k^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("lcs_knn",)

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.normalized else (0.0, float(self.k))

    def compare_all(self, a: Sequence[Neighbors], b: Sequence[Neighbors]) -> Tensor:
        lengths = common_subsequence([s.indices for s in a], [t.indices for t in b])
        per_row = lengths.to(torch.float64) / (a[0].n * (self.k if self.normalized else 1))
        return self.scale(per_row, a, b)


@dataclass(frozen=True)
class EditDistanceKNN(_NeighborLists, Batched):
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

    cost: ClassVar[str] = "n^2 d per layer, n k^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("edit_distance_knn", "edit_knn")

    def compare_all(self, a: Sequence[Neighbors], b: Sequence[Neighbors]) -> Tensor:
        distances = edit_distance([s.indices for s in a], [t.indices for t in b])
        return self.scale(1 - distances.to(torch.float64) / (a[0].n * self.k), a, b)


@dataclass(frozen=True)
class _CommonNeighbors(_NeighborLists, Batched):
    """A mean over stimuli of a function of the places that their common neighbours have in both lists."""

    cost: ClassVar[str] = "n^2 d per layer, n k log k per pair"

    @abstractmethod
    def _rows(self, places: Tensor) -> Tensor:
        """One number per stimulus (n,) from `_places` (n, k)."""

    def compare_all(self, a: Sequence[Neighbors], b: Sequence[Neighbors]) -> Tensor:
        scores = torch.empty(len(a), len(b), dtype=torch.float64)
        for j, t in enumerate(b):
            ordered = t.indices.sort(dim=1)
            for i, s in enumerate(a):
                scores[i, j] = self._rows(_places(s.indices, *ordered)).mean()
        return self.scale(scores, a, b)


@dataclass(frozen=True)
class JaccardKNN(_CommonNeighbors):
    """Jaccard similarity of the k-nearest-neighbour sets: common neighbours over all neighbours of either.

    s = (1 / n) sum_i |N_X(i) & N_Y(i)| / |N_X(i) | N_Y(i)|, with N(i) the k nearest of stimulus i without itself.

    Parameters k, similarity, center as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 1]; lists that share a half score 1/3. nan if all rows of one side are alike.
    Raises RepalignError unless n > k.

    Source: Klabunde et al. 2025 (arXiv 2305.06329), neighbourhood-based measures. The code of their benchmark drops the
    first neighbour found as the stimulus itself, which is false where rows repeat; here it is left out by its index.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> JaccardKNN(k=5)(x, 3 * x)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("jaccard_knn", "jaccard", "knn_jaccard")

    def _rows(self, places: Tensor) -> Tensor:
        common = (places < self.k).sum(dim=1).to(torch.float64)
        return common / (2 * self.k - common)


@dataclass(frozen=True)
class RankSimilarity(_CommonNeighbors):
    """Rank similarity: how much the ranks of the common neighbours agree, the nearest counting most.

    s = (1 / n) sum_i (1 / h(c_i)) sum over the c_i common neighbours of 2 / ((1 + |r - r'|) (r + r')), with r and r' the
    ranks (1 = nearest) in the two lists, and h(c) = 1 + 1/2 + ... + 1/c the most that c of them can reach. A stimulus
    without common neighbours counts 0.

    Parameters k, similarity, center as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 1]. It looks at the common neighbours alone, however few they are:
    `JointRankJaccard` does both. nan if all rows of one side are alike. Raises RepalignError unless n > k.

    Source: Wang et al. 2022, "Towards understanding the instability of network embedding", as in Klabunde et al. 2025
    (arXiv 2305.06329), neighbourhood-based measures.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(RankSimilarity(k=5)(x, 3 * x), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("rank_similarity",)

    def _rows(self, places: Tensor) -> Tensor:
        return _rank_similarity(places, self.k)


@dataclass(frozen=True)
class JointRankJaccard(_CommonNeighbors):
    """Jaccard similarity of the neighbour sets times the rank similarity of what they share, stimulus by stimulus.

    s = (1 / n) sum_i jaccard_i rank_i, the terms of `JaccardKNN` and `RankSimilarity`: high only where the two spaces
    have the same neighbours in the same order.

    Parameters k, similarity, center as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 1]. nan if all rows of one side are alike. Raises RepalignError unless n > k.

    Source: Wang et al. 2022, as in Klabunde et al. 2025 (arXiv 2305.06329), neighbourhood-based measures; the product is
    taken for every stimulus, not of the two means.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(JointRankJaccard(k=5)(x, 3 * x), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("joint_rank_jaccard", "rank_jaccard")

    def _rows(self, places: Tensor) -> Tensor:
        common = (places < self.k).sum(dim=1).to(torch.float64)
        return common / (2 * self.k - common) * _rank_similarity(places, self.k)


def as_counts(name: str, value: Any) -> tuple[int, ...]:
    """Whole numbers >= 1 in order, each once."""
    given = value if isinstance(value, (tuple, list)) else (value,)
    if not given:
        raise RepalignError(f"no {name}", expected="one whole number or several", got=repr(value))
    return tuple(sorted({as_count(name, k) for k in given}))


@dataclass(frozen=True)
class MultiScaleKNN(_CommonNeighbors):
    """Mutual k-nearest-neighbour alignment at several k, from one search: the mean of the curve over k.

    s = (1 / |k|) sum over k of (1 / n) sum_i |N_X^k(i) & N_Y^k(i)| / k. Lists of smaller k are prefixes of larger ones,
    so all of them cost one search at the largest. `curve` gives the values at each k.

    Parameters
    ----------
    k : the neighbourhood sizes, one whole number or several; kept sorted, each once.
    similarity, center : as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 1]. nan if all rows of one side are alike.
    Raises RepalignError unless n is above the largest k.

    Source: the curve over k of Huh et al. 2024 (arXiv 2405.07987), appendix B, in one number; at a single k it is
    `MutualKNN`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> MultiScaleKNN(k=(2, 10))(x, 3 * x)
    1.0
    >>> MultiScaleKNN(k=(2, 10)).curve(x, x[:, :4])
    {2: 0.33, 10: 0.514}
    """

    k: Any = parameter((5, 10, 20), as_counts)  # noqa: RUF009  (whole numbers in a tuple, or one)

    aliases: ClassVar[tuple[str, ...]] = ("multi_scale_knn", "multiscale_knn")

    @property
    def n_neighbors(self) -> int:
        return self.k[-1]

    def with_neighbors(self, share: float) -> Self:
        return replace(self, k=tuple(max(1, round(k * share)) for k in self.k))

    def curve(self, x: Any, y: Any) -> dict[int, float]:
        """Mutual k-NN at each k, of two arrays (n, d1) and (n, d2)."""
        x, y = self.checked(x, y)
        a, b = self.prepare(x), self.prepare(y)
        at_once = [replace(self, k=k).compare(a, b) for k in self.k]
        return dict(zip(self.k, at_once, strict=True))

    def _rows(self, places: Tensor) -> Tensor:
        # Two lists have a neighbour in common within the first k if it stands among the first k of both.
        most = places.shape[1]
        both = torch.maximum(places, torch.arange(most, device=places.device))
        shared = [(both < k).sum(dim=1).to(torch.float64) / k for k in self.k]
        return torch.stack(shared).mean(dim=0)


@dataclass(frozen=True)
class InformationImbalance(_NeighborLists, Bilinear, Distance):
    """Information imbalance from X to Y: how far in Y the nearest neighbours of X are.

    D(X -> Y) = (2 / n) times the mean, over stimuli i and the k nearest j of i in X, of the rank of j among the neighbours
    of i in Y, where the nearest has rank 1. (k + 1) / n says that X's neighbours are Y's, 1 is chance, exactly: X tells
    nothing of Y. Not symmetric: where D(X -> Y) is small and D(Y -> X) is not, X holds what Y holds, and more.

    Parameters
    ----------
    k : neighbours per stimulus; the source takes 1.
    similarity : "euclidean" (default), "cosine" or "dot"; center : as in `MutualKNN`, and the same invariances.

    Shapes (n, d1) and (n, d2). Range [0, 2), lower for closer. nan if all rows of one side are alike. Raises RepalignError
    unless n > k. It is an inner product of a neighbour graph of X and the ranks of Y, so its null is in closed form.

    Source: Glielmo, Zeni, Cheng, Csanyi and Laio 2022, "Ranking the information content of distance measures", equation 2; for
    k > 1 as in DADApy.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> there, back = InformationImbalance()(x, x[:, :4]), InformationImbalance()(x[:, :4], x)
    >>> round(InformationImbalance()(x, 3 * x), 6), there < back
    (0.04, True)
    """

    k: int = parameter(1, as_count)
    similarity: str = parameter("euclidean", choose, SIMILARITIES)

    cost: ClassVar[str] = "n^2 (d + log n) per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("information_imbalance", "imbalance")
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 2.0)
    interval: ClassVar[str] = "jackknife"  # a mean of ranks, which has no step: halves give no shorter one

    def prepare(self, x: Given) -> TwoRoles:
        """The graph of neighbours, and all ranks, the nearest highest, each less its mean, so that what chance gives is 0."""
        embedded = embed(x, self.similarity, self.center)
        order = nearest(embedded, len(x) - 1)
        n, k = len(order), self.k
        dtype = torch.promote_types(embedded.dtype, torch.float32)
        graph = order.new_full((n, n), -k / (n - 1), dtype=dtype)
        graph.scatter_add_(1, order[:, :k], graph.new_ones(n, k))
        places = n / 2 - torch.arange(1, n, device=order.device, dtype=dtype)
        ranks = graph.new_zeros(n, n).scatter_(1, order, places.expand(n, -1))
        for matrix in (graph, ranks):
            matrix.fill_diagonal_(0)
        if embedded.is_constant:
            graph.zero_()
            ranks.zero_()
        return TwoRoles(*(DenseRelation.of(matrix, symmetric=False) for matrix in (graph, ranks)))

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        p, q = norms(a, b)
        return 1 - super().scale(inner, a, b) * p * q * (2 / (a[0].n ** 2 * self.k))


def _places(lists: Tensor, ordered: Tensor, order: Tensor) -> Tensor:
    """Where each entry of `lists` (n, k) stands in the list of its row that was sorted into `ordered`; k if nowhere."""
    k = lists.shape[1]
    at = torch.searchsorted(ordered, lists).clamp_(max=k - 1)
    return torch.where(ordered.gather(1, at) == lists, order.gather(1, at), k)


def _rank_similarity(places: Tensor, k: int) -> Tensor:
    """The similarity of the ranks of the common neighbours of every stimulus, (n,)."""
    rank = torch.arange(1, k + 2, dtype=torch.float64, device=places.device)
    own, other = rank[:k, None], rank[None, :]
    weight = 2 / ((1 + (own - other).abs()) * (own + other))
    weight[:, k] = 0  # not in the other list
    total = weight[torch.arange(k, device=places.device), places].sum(dim=1)
    most = torch.cat([rank.new_ones(1), (1 / rank[:k]).cumsum(dim=0)])
    return total / most[(places < k).sum(dim=1)]


def common_subsequence(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over rows of the LCS length of lists (n, k), for all pairs: (la, lb) int64 on the CPU."""
    return _align_all(a, b, gap=0)


def edit_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over rows of the Levenshtein distance of lists (n, k), for all pairs: (la, lb) int64 on the CPU."""
    n, k = a[0].shape
    return n * k - _align_all(a, b, gap=1)


def _align_all(a: Sequence[Tensor], b: Sequence[Tensor], gap: int) -> Tensor:
    n, k = a[0].shape
    total = torch.zeros(len(a), len(b), dtype=torch.int64)
    # Per stimulus and layer of b: the table row (int16), one comparison (int16) and the lists (int32).
    for block in blocks(n, len(b) * (k + 1) * 12):
        right = torch.stack([s[block] for s in b]).to(torch.int32).permute(2, 0, 1).contiguous()  # (k, lb, r)
        for i, s in enumerate(a):
            left = s[block].to(torch.int32).T.contiguous()  # (k, r)
            total[i] += _align(left, right, gap).sum(dim=-1, dtype=torch.int64).cpu()
    return total


def _align(a: Tensor, b: Tensor, gap: int) -> Tensor:
    """G(k, k) for lists a (k, r) and b (k, lb, r): one step per cell of the table, over all rows at once."""
    k = len(a)
    row = torch.zeros(k + 1, *b.shape[1:], dtype=torch.int16, device=b.device)
    for i in range(k):
        diagonal = row[:-1] + (b == a[i])
        row -= gap
        torch.maximum(row[1:], diagonal, out=row[1:])
        for j in range(k):
            torch.maximum(row[j + 1], row[j], out=row[j + 1])
    return row[k]
