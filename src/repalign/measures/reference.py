"""Forms of published measures that differ from their corrected versions, kept so that their numbers can be
had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.layers import FEATURES_OR_KERNEL, Given
from repalign.measures.kernel import (
    KERNEL_SIMILARITIES,
    kernel_invariances,
    masked_neighbours,
    weighted_graph,
)
from repalign.measures.measure import Bilinear, GraphRelation, Measure, Neighbors, State
from repalign.measures.numerics.checks import as_count, as_epsilon, check_choice
from repalign.measures.numerics.kernels import in_range
from repalign.measures.numerics.search import embed, nearest


@dataclass(frozen=True)
class CKNNAPaper(Bilinear):
    """CKNNA as the paper writes it: kernels centred by row only.

    As `CKNNA`, but K'_ij = K_ij - mean_l K_il over the full cosine kernel. With row centring alone the limit
    at k = n is not CKA (equation 15 of the paper holds with double centring only).

    Parameters k, similarity, shapes, range, invariances and errors as in `CKNNA`.

    Source: Huh et al. 2024 (arXiv 2405.07987), equations 12 and 16 to 18.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(CKNNAPaper(k=5)(x, 2 * x), 12)
    1.0
    """

    k: int = 10
    similarity: str = "cosine"

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n k per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cknna_paper",)
    symmetric: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_KERNEL

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", as_count("k", self.k))
        check_choice("similarity", self.similarity, KERNEL_SIMILARITIES)

    @property
    def min_n(self) -> int:
        return max(2, self.k)

    @property
    def invariances(self) -> frozenset[str]:
        return kernel_invariances(self.similarity)

    def prepare(self, x: Given) -> GraphRelation:
        embedded, lists = masked_neighbours(x, self.k, self.similarity)
        return weighted_graph(embedded, lists, embedded.products_at(lists, "rows"))


@dataclass(frozen=True)
class CKNNAReference(Measure):
    """CKNNA as the released code computes it: HSIC of masked, uncentred kernels.

    M_ij = 1 if j is among the k nearest of i in both spaces; s = h(M K, M L) / (sqrt(h(K_m, K_m) h(L_m, L_m))
    + epsilon) with elementwise products, K_m = K at its own neighbours, and h the HSIC, unbiased or biased.

    What follows from it: h pairs (i, j) with (j, i), so only reciprocal neighbours count in its first term;
    the score depends slightly on the order of its arguments; with epsilon s(X, X) < 1; the biased form lets
    the stimulus itself in among its k nearest and can exceed 1.

    Parameters
    ----------
    k : neighbours per stimulus. similarity : "cosine" or "dot".
    estimator : "unbiased" (default, as released) or "biased" (as in the paper's figure 12).
    epsilon : added to the denominator; 1e-6 as released.

    Shapes (n, d1) and (n, d2). No bounds in general; s_max is 1, the score of X with itself. Invariances as
    in `CKNNA`, but for the scale with "dot" and epsilon. nan for a constant representation and where
    a self term is not positive.
    Raises RepalignError unless n >= k and n >= 4.

    Source: the code beside Huh et al. 2024 (arXiv 2405.07987); Song et al. 2012, equation 5.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> CKNNAReference(k=5)(x, x) < 1
    True
    """

    k: int = 10
    similarity: str = "cosine"
    estimator: str = "unbiased"
    epsilon: float = 1e-6

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n k per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cknna_reference",)
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_KERNEL

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", as_count("k", self.k))
        check_choice("similarity", self.similarity, KERNEL_SIMILARITIES)
        check_choice("estimator", self.estimator, ("unbiased", "biased"))
        object.__setattr__(self, "epsilon", as_epsilon(self.epsilon))

    @property
    def s_max(self) -> float:
        return 1.0

    @property
    def min_n(self) -> int:
        return max(4, self.k)

    @property
    def invariances(self) -> frozenset[str]:
        scale_free = self.similarity == "cosine" or self.epsilon == 0
        return kernel_invariances(self.similarity) - (frozenset() if scale_free else {"isotropic_scale"})

    def prepare(self, x: Given) -> Neighbors:
        self.check_n(len(x))
        embedded = embed(x, self.similarity)
        lists = nearest(embedded, self.k, include_self=self.estimator == "biased" or self.k == len(x))
        state = Neighbors(lists, embedded.products_at(lists, "nothing"))
        self_term = self._hsic(state, state)
        if embedded.is_constant or not self_term > 0:
            return replace(state, norm=0.0)
        norm = math.sqrt(self_term)
        values = cast(Tensor, state.values) / norm
        return replace(state, values=values, norm=in_range(norm * embedded.unit**2))

    def compare(self, a: State, b: State) -> float:
        first, second = cast(Neighbors, a), cast(Neighbors, b)
        norms = first.norm * second.norm
        if self.epsilon == 0 or norms == 0:
            return self._hsic(first, second) if first.norm > 0 and second.norm > 0 else math.nan
        return self._hsic(first, second) / (1 + self.epsilon / norms)

    def _hsic(self, a: Neighbors, b: Neighbors) -> float:
        """HSIC of the two kernels at the entries that both lists hold."""
        n = a.n
        codes, p, q = _common_entries(a, b)
        i, j = codes // n, codes % n
        if self.estimator == "unbiased":
            off = i != j
            codes, p, q, i, j = codes[off], p[off], q[off], i[off], j[off]
        if len(codes) == 0:
            return 0.0

        def sums(at: Tensor, values: Tensor) -> Tensor:
            return values.new_zeros(n).index_add(0, at, values)

        place, mirrored = _find(codes, j * n + i)
        trace = (p * q[place])[mirrored].sum()  # tr(P Q)
        pq = (sums(j, p) * sums(i, q)).sum()  # 1' P Q 1
        both = p.sum() * q.sum()
        if self.estimator == "unbiased":
            return float((trace + both / ((n - 1) * (n - 2)) - 2 * pq / (n - 2)) / (n * (n - 3)))
        qp = (sums(j, q) * sums(i, p)).sum()
        return float(trace - (pq + qp) / n + both / n**2)


def _common_entries(a: Neighbors, b: Neighbors) -> tuple[Tensor, Tensor, Tensor]:
    """Codes i n + j of the entries in both lists, ascending, and the values of each side there."""
    codes_a, order_a = _codes(a).sort()
    codes_b, order_b = _codes(b).sort()
    place, found = _find(codes_a, codes_b)
    p = cast(Tensor, a.values).flatten()[order_a][place[found]]
    q = cast(Tensor, b.values).flatten()[order_b][found]
    return codes_b[found], p, q


def _codes(state: Neighbors) -> Tensor:
    rows = torch.arange(state.n, device=state.indices.device)[:, None]
    return (rows * state.n + state.indices).flatten()


def _find(codes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each wanted code would stand in the ascending codes, and whether it is there."""
    place = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
    return place, codes[place] == wanted


MEASURES = (CKNNAPaper, CKNNAReference)
