"""Measures of how many neighbours two spaces share, and of where these stand in both lists.

Lists are exact and nearest first, as in `neighbors`: a stimulus never counts as its own neighbour, and ties go to the
lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import Given
from repalign.measures.measure import Neighbors, State
from repalign.measures.neighbors import _NeighborLists, _undefined_as_nan
from repalign.measures.numerics.checks import as_count
from repalign.measures.numerics.search import check_search


@dataclass(frozen=True)
class _CommonNeighbors(_NeighborLists):
    """A mean over stimuli of a function of the places that their common neighbours have in both lists."""

    family: ClassVar[str] = "neighbors"
    cost: ClassVar[str] = "n^2 d per layer, n k log k per pair"
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def _rows(self, places: Tensor) -> Tensor:
        """One number per stimulus (n,) from `_places` (n, k)."""
        raise NotImplementedError

    def prepare(self, x: Given) -> Neighbors:
        self.check_n(len(x))
        return self._neighbors(x)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        first, second = cast(Sequence[Neighbors], a), cast(Sequence[Neighbors], b)
        scores = torch.empty(len(a), len(b), dtype=torch.float64)
        for j, t in enumerate(second):
            ordered = t.indices.sort(dim=1)
            for i, s in enumerate(first):
                scores[i, j] = self._rows(_places(s.indices, *ordered)).mean()
        return _undefined_as_nan(scores, first, second)


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

    k: int | tuple[int, ...] = (5, 10, 20)  # type: ignore[assignment]

    aliases: ClassVar[tuple[str, ...]] = ("multi_scale_knn", "multiscale_knn")

    def __post_init__(self) -> None:
        given = self.k if isinstance(self.k, (tuple, list)) else (self.k,)
        if not given:
            raise RepalignError("no k", expected="one whole number or several", got=repr(self.k))
        object.__setattr__(self, "k", tuple(sorted({as_count("k", k) for k in given})))
        check_search(self.similarity, self.center)

    @property
    def _scales(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.k)

    @property
    def min_n(self) -> int:
        return self._scales[-1] + 1

    def prepare(self, x: Given) -> Neighbors:
        self.check_n(len(x))
        return self._neighbors(x, self._scales[-1])

    def curve(self, x: Any, y: Any) -> dict[int, float]:
        """Mutual k-NN at each k, of two arrays (n, d1) and (n, d2)."""
        x, y = self.checked(x, y)
        a, b = self.prepare(x), self.prepare(y)
        at_once = [replace(self, k=k).compare(a, b) for k in self._scales]
        return dict(zip(self._scales, at_once, strict=True))

    def _rows(self, places: Tensor) -> Tensor:
        # Two lists have a neighbour in common within the first k if it stands among the first k of both.
        most = places.shape[1]
        both = torch.maximum(places, torch.arange(most, device=places.device))
        shared = [(both < k).sum(dim=1).to(torch.float64) / k for k in self._scales]
        return torch.stack(shared).mean(dim=0)


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


MEASURES = (JaccardKNN, RankSimilarity, JointRankJaccard, MultiScaleKNN)
