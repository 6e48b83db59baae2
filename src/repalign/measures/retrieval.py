"""Retrieval across two sets of vectors in one space: does a row find its partner?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from repalign.measures.measure import SCRATCH_BYTES, Measure, State
from repalign.measures.numerics.checks import as_count, check_choice
from repalign.measures.numerics.precision import full_precision, unit_resolution
from repalign.measures.numerics.search import Embedded

DIRECTIONS = ("x to y", "y to x", "both")


@dataclass(frozen=True, eq=False)
class Relabelled(State):
    """Unit rows that stay where they are, and the order in which they are read."""

    values: Tensor  # (n, d)
    order: Tensor  # (n,): row i is values[order[i]]
    constant: bool

    @property
    def n(self) -> int:
        return len(self.order)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.order.nbytes

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def permute(self, p: Tensor) -> Self:
        return replace(self, order=self.order[p])


@dataclass(frozen=True)
class RetrievalRecall(Measure):
    """Recall at k: the share of queries whose partner is among the k nearest of the other side, by cosine.

    s = share of i for which y_i is among the k rows of Y with the largest cosine to x_i. Where the partner ties with others
    for the last places it counts with the chance that it gets one.

    Parameters
    ----------
    k : how many are retrieved.
    direction : "x to y" (queries x, gallery y), "y to x", or "both", the mean of the two (symmetric).

    Shapes (n, d) twice. Range [0, 1]; chance k / n. Invariant to the scale of every row. nan if all rows of one side are
    alike. Raises RepalignError unless n >= k.

    Source: R@k as in Radford et al. 2021 (CLIP, arXiv 2103.00020). Cosines in float64; those that rounding cannot tell apart
    are tied, where common code gives ties to whichever sorts last.

    >>> RetrievalRecall()([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]])
    1.0
    """

    k: int = 1
    direction: str = "x to y"

    family: ClassVar[str] = "shared_space"
    cost: ClassVar[str] = "n d per layer, n^2 d per pair, n per relabelling of it"
    aliases: ClassVar[tuple[str, ...]] = ("retrieval_recall", "recall_at_k")
    symmetric: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", as_count("k", self.k))
        check_choice("direction", self.direction, DIRECTIONS)

    @property
    def min_n(self) -> int:
        return max(2, self.k)

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"isotropic_scale", "row_scale"})

    def prepare(self, x: Tensor) -> Relabelled:
        self.check_n(len(x))
        embedded = Embedded(x, "cosine")
        order = torch.arange(len(x), device=embedded.rows.device)
        return Relabelled(embedded.rows, order, embedded.is_constant)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        scores = torch.full((len(a), len(b)), math.nan, dtype=torch.float64)
        first, second = cast(Sequence[Relabelled], a), cast(Sequence[Relabelled], b)
        # Relabellings of one layer share its rows, and so all chances of a hit: one product for all of them.
        for i, s in enumerate(first):
            by_rows: dict[int, list[int]] = {}
            for j, t in enumerate(second):
                by_rows.setdefault(id(t.values), []).append(j)
            for together in by_rows.values():
                if s.constant or second[together[0]].constant:
                    continue
                orders = torch.stack([second[j].order for j in together])
                scores[i, together] = self._recall(s, second[together[0]].values, orders).cpu()
        return scores

    def _recall(self, s: Relabelled, gallery: Tensor, orders: Tensor) -> Tensor:
        """Scores of one layer with relabellings (m, n) of another."""
        partner = torch.empty_like(orders)  # of the stored row r of s: the stored row of the other
        partner[:, s.order] = orders
        if self.direction == "x to y":
            return _hits(s.values, gallery, partner, self.k)
        back = partner.argsort(dim=1)
        if self.direction == "y to x":
            return _hits(gallery, s.values, back, self.k)
        return (_hits(s.values, gallery, partner, self.k) + _hits(gallery, s.values, back, self.k)) / 2


def _hits(queries: Tensor, gallery: Tensor, partner: Tensor, k: int) -> Tensor:
    """Mean over queries of the chance that row partner[m, i] of the gallery is among the k nearest of query i, (m,)."""
    n = len(queries)
    slack = unit_resolution(queries.shape[1], torch.float64)
    total = torch.zeros(len(partner), dtype=torch.float64, device=queries.device)
    height = max(1, min(n, SCRATCH_BYTES // (4 * 8 * n)))
    for start in range(0, n, height):
        block = slice(start, min(start + height, n))
        with full_precision():
            cosines = queries[block] @ gallery.T
        last = cosines.topk(k, dim=1).values[:, -1:]  # (r, 1) the k-th largest
        above = (cosines > last + slack).sum(dim=1, keepdim=True)
        tied = (cosines >= last - slack).sum(dim=1, keepdim=True) - above
        own = cosines.gather(1, partner[:, block].T)  # (r, m)
        share = ((k - above) / tied).expand_as(own)
        chance = torch.where(own > last + slack, 1.0, torch.where(own >= last - slack, share, 0.0))
        total += chance.sum(dim=0)
    return total / n


MEASURES = (RetrievalRecall,)
