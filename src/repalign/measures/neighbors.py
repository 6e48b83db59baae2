"""Measures on nearest-neighbour lists: do two representations give a stimulus the same neighbours?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean
from repalign.measures._base import SCRATCH_BYTES, Bilinear, GraphRelation, Measure, Neighbors, Relation, State
from repalign.measures._search import SIMILARITIES, centred, neighbors


@dataclass(frozen=True)
class _Lists:
    """The parameters that all measures on neighbour lists share."""

    k: int = 10
    similarity: str = "cosine"
    center: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise RepalignError("k is out of range", expected="a whole number k >= 1", got=self.k)
        if self.similarity not in SIMILARITIES:
            raise RepalignError(
                f"unknown similarity {self.similarity!r}",
                got=self.similarity,
                remedy=did_you_mean(self.similarity, SIMILARITIES),
            )

    @property
    def min_n(self) -> int:
        return self.k + 1

    @property
    def invariances(self) -> frozenset[str]:
        same = {"orthogonal", "isotropic_scale", "permutation"}
        if self.center or self.similarity == "euclidean":
            same.add("translation")
        elif self.similarity == "cosine":
            same.add("row_scale")
        return frozenset(same)

    def _lists(self, x: Tensor) -> Tensor:
        return neighbors(centred(x) if self.center else x, self.k, self.similarity)


@dataclass(frozen=True)
class MutualKNN(_Lists, Bilinear):
    """Mean overlap of the k-nearest-neighbour sets.

    m_NN = (1/n) sum_i |N_X(i) & N_Y(i)| / k, the intersection over k (not over the union). Range [0, 1], in
    multiples of 1/(n k); chance level k / (n - 1) for any data. Symmetric. 1 - m_NN is a pseudo-metric for fixed k.

    Parameters: `k` neighbours, the row itself excluded by index; `similarity` "cosine" (rows are normalised here, so
    that rescaling a row changes nothing), "dot" or "euclidean"; `center` subtracts the column means first. Ties go to
    the lower index.

    Raises RepalignError unless k < n. Source: Huh et al. 2024, equations 9 to 11 (cosine, no centring; the paper clips
    outliers first, see `presets`). The released code breaks ties arbitrarily and returns 1.0 for k >= n.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> MutualKNN(k=5)(x, 3 * x)
    1.0
    """

    family: ClassVar[str] = "neighbors"
    aliases: ClassVar[tuple[str, ...]] = ("mutual_knn", "mknn", "knn")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def prepare(self, x: Tensor) -> GraphRelation:
        return GraphRelation(self._lists(x))

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:  # noqa: ARG002
        return inner / (a[0].n * self.k)


@dataclass(frozen=True)
class CycleKNN(_Lists, Measure):
    """Share of stimuli that are found again after a step in y and a step back in x. Asymmetric.

    cycle(X, Y) = (1/n) #{i : some j in N_Y(i) has i in N_X(j)}: from i to a neighbour in Y, the *second* argument, and
    back by the neighbours in X, the *first*. Range [0, 1]; near 1 - (1 - k/(n-1))^k by chance, which saturates as k grows
    against n. cycle(X, X) is below 1 where a row is in the list of none of its neighbours.

    Parameters as in `MutualKNN`. Source: Huh et al. 2024, appendix A, and the released code (a hit is "any").

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> CycleKNN(k=5)(x, x) <= 1.0
    True
    """

    family: ClassVar[str] = "neighbors"
    aliases: ClassVar[tuple[str, ...]] = ("cycle_knn",)
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def prepare(self, x: Tensor) -> Neighbors:
        return Neighbors(self._lists(x))

    def compare(self, a: State, b: State) -> float:
        assert isinstance(a, Neighbors) and isinstance(b, Neighbors)
        n, k = a.n, a.k
        hits = 0
        rows = max(1, SCRATCH_BYTES // (8 * b.k * k))
        for start in range(0, n, rows):
            steps = a.indices[b.indices[start : start + rows]]  # (rows, k, k): lists in x of the neighbours in y
            home = torch.arange(start, start + len(steps), device=steps.device)[:, None, None]
            hits += int((steps == home).flatten(1).any(dim=1).sum())
        return hits / n


@dataclass(frozen=True)
class _Ordered(_Lists, Measure):
    """Measures on ordered lists: a distance of sequences by dynamic programming, for all rows at once."""

    def prepare(self, x: Tensor) -> Neighbors:
        return Neighbors(self._lists(x))

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        left = torch.stack([s.indices for s in a])  # type: ignore[attr-defined]  # (la, n, k)
        n = left.shape[1]
        # Five (lb, n, k)-sized integer tables are alive at a time.
        width = max(1, SCRATCH_BYTES // (5 * 8 * n * self.k))
        out = torch.zeros(len(a), len(b), dtype=torch.float64)
        for start in range(0, len(b), width):
            right = torch.stack([s.indices for s in b[start : start + width]])  # type: ignore[attr-defined]
            for row, lists in enumerate(left):
                sums = self._total(lists[None], right).sum(dim=1, dtype=torch.int64)
                out[row, start : start + width] = self._score(sums.to("cpu", torch.float64), n)
        return out

    @abstractmethod
    def _total(self, x: Tensor, y: Tensor) -> Tensor:
        """The integer statistic of every row, (1, n, k) with (lb, n, k) -> (lb, n)."""

    @abstractmethod
    def _score(self, sums: Tensor, n: int) -> Tensor:
        """The score from its sum over rows."""


@dataclass(frozen=True)
class LCSKNN(_Ordered):
    """Mean length of the longest common subsequence of the two ordered neighbour lists, over k.

    lcs = (1/n) sum_i LCS(N_X(i), N_Y(i)) / k. Range [0, 1], as in the paper's table of metrics; `normalized=False`
    gives the released code's [0, k]. Symmetric. Other parameters as in `MutualKNN`.

    Source: Huh et al. 2024, appendix A.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> LCSKNN(k=5)(x, x)
    1.0
    """

    normalized: bool = True

    family: ClassVar[str] = "neighbors"
    aliases: ClassVar[tuple[str, ...]] = ("lcs_knn",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0 if self.normalized else float(self.k))

    def _total(self, x: Tensor, y: Tensor) -> Tensor:
        k = self.k
        above = [torch.zeros(y.shape[:2], dtype=torch.int16, device=y.device)] * (k + 1)
        for i in range(k):
            row = [above[0]]
            for j in range(k):
                match = x[..., i] == y[..., j]
                row.append(torch.where(match, above[j] + 1, torch.maximum(above[j + 1], row[j])))
            above = row
        return above[k]

    def _score(self, sums: Tensor, n: int) -> Tensor:
        return sums / (n * self.k if self.normalized else n)


@dataclass(frozen=True)
class EditDistanceKNN(_Ordered):
    """One minus the mean edit distance of the two ordered neighbour lists, over k.

    1 - (1/n) sum_i Levenshtein(N_X(i), N_Y(i)) / k, with unit costs of insertion, deletion and substitution. Range
    [0, 1], since lists of equal length are at most k edits apart. Symmetric. Parameters as in `MutualKNN`.

    Source: Huh et al. 2024, appendix A.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> EditDistanceKNN(k=5)(x, x)
    1.0
    """

    family: ClassVar[str] = "neighbors"
    aliases: ClassVar[tuple[str, ...]] = ("edit_distance_knn", "edit_knn")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def _total(self, x: Tensor, y: Tensor) -> Tensor:
        k = self.k
        constant = [torch.full(y.shape[:2], j, dtype=torch.int16, device=y.device) for j in range(k + 1)]
        above = list(constant)
        for i in range(k):
            row = [constant[i + 1]]
            for j in range(k):
                substituted = above[j] + (x[..., i] != y[..., j]).to(torch.int16)
                row.append(torch.minimum(substituted, torch.minimum(above[j + 1], row[j]) + 1))
            above = row
        return above[k]

    def _score(self, sums: Tensor, n: int) -> Tensor:
        return 1.0 - sums / (n * self.k)
