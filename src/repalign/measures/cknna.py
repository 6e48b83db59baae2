"""CKNNA, kernel alignment over shared neighbours alone.

`CKNNAPaper` and `CKNNAReference` are published forms that differ from the corrected one, kept so that their numbers can
be reproduced.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import choose
from repalign.layers import FEATURES_OR_KERNEL, Given
from repalign.measures.measure import Bilinear, GraphRelation, Local, Neighbors, as_epsilon, parameter
from repalign.measures.numerics.precision import NORMAL, sharing
from repalign.measures.numerics.search import Space, embed, nearest

KERNEL_SIMILARITIES = ("cosine", "dot")


@dataclass(frozen=True)
class _OfMaskedKernels(Local):
    """Kernels at the entries of the k nearest neighbours alone; at k = n of everything, the stimulus itself included."""

    similarity: str = parameter("cosine", choose, KERNEL_SIMILARITIES)

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n k per pair"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_KERNEL
    centre: ClassVar[str] = "nothing"  # what is subtracted from the kernel: see `Embedded.products_at`

    @property
    def min_n(self) -> int:
        return max(self.smallest_n, self.k)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
        return common | {"row_scale"} if self.similarity == "cosine" else common

    def _entries(self, x: Given, include_self: bool) -> tuple[Space, Tensor, Tensor]:
        """The space, its neighbour lists (n, k), and the kernel there: of features all from one product."""
        with sharing(x) if isinstance(x, Tensor) else nullcontext():
            embedded = embed(x, self.similarity)
            lists = nearest(embedded, self.k, include_self=include_self)
            return embedded, lists, embedded.products_at(lists, self.centre)

    def prepare(self, x: Given) -> Neighbors:
        """The kernel (n, k) at unit norm; norm 0 if all rows are alike."""
        embedded, lists, values = self._entries(x, self.k == len(x))
        norm = 0.0 if embedded.is_constant else float(torch.linalg.vector_norm(values))
        return GraphRelation(lists, values / norm if norm > 0 else values, norm=norm)


@dataclass(frozen=True)
class CKNNA(_OfMaskedKernels, Bilinear):
    """Centred kernel nearest-neighbour alignment: CKA over the pairs that are neighbours in both spaces.

    s = A(K, L) / sqrt(A(K, K) A(L, L)), A(K, L) = sum_ij a_ij K'_ij L'_ij, where a_ij = 1 if j is among the k
    nearest of i in both spaces, j != i, and K' = H K H is the double-centred full cosine kernel. In A(K, K)
    the neighbours are those of K alone. At k = n the sum runs over everything, and s is biased CKA of the
    unit rows.

    Parameters
    ----------
    k : neighbours per stimulus.
    similarity : "cosine" (rows are normalised here) or "dot", for the kernel and for the neighbours.

    Shapes (n, d1) and (n, d2). Range [-1, 1]. Invariant to orthogonal maps, isotropic scale and column order;
    with cosine also to the scale of every row. nan for a constant representation.
    Raises RepalignError unless n >= k.

    Source: Huh et al. 2024 (arXiv 2405.07987), equations 16 to 18, with the double centring that its equation
    15 and its limit at k = n need; see `CKNNAPaper` for the text and `CKNNAReference` for the released code.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(CKNNA(k=5)(x, 2 * x), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("cknna",)
    dense: ClassVar[bool] = False
    centre: ClassVar[str] = "rows and columns"


@dataclass(frozen=True)
class CKNNAPaper(_OfMaskedKernels, Bilinear):
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

    aliases: ClassVar[tuple[str, ...]] = ("cknna_paper",)
    dense: ClassVar[bool] = False
    centre: ClassVar[str] = "rows"


@dataclass(frozen=True)
class CKNNAReference(_OfMaskedKernels):
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

    Source: the code released with Huh et al. 2024 (arXiv 2405.07987); Song et al. 2012, equation 5.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> CKNNAReference(k=5)(x, x) < 1
    True
    """

    estimator: str = parameter("unbiased", choose, ("unbiased", "biased"))
    epsilon: float = parameter(1e-6, as_epsilon)

    aliases: ClassVar[tuple[str, ...]] = ("cknna_reference",)
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    smallest_n: ClassVar[int] = 4

    @property
    def s_max(self) -> float:
        return 1.0

    @property
    def invariances(self) -> frozenset[str]:
        scale_free = self.similarity == "cosine" or self.epsilon == 0
        return super().invariances - (frozenset() if scale_free else {"isotropic_scale"})

    def prepare(self, x: Given) -> Neighbors:
        embedded, lists, values = self._entries(x, self.estimator == "biased" or self.k == len(x))
        self_term = self._hsic(Neighbors(lists, values), Neighbors(lists, values))
        if embedded.is_constant or not self_term > 0:
            return Neighbors(lists, values, 0.0)
        norm = math.sqrt(self_term)
        return Neighbors(lists, values / norm, float(np.clip(norm * embedded.unit**2, *NORMAL)))

    def compare(self, a: Neighbors, b: Neighbors) -> float:
        norms = a.norm * b.norm
        if self.epsilon == 0 or norms == 0:
            return self._hsic(a, b) if a.norm > 0 and b.norm > 0 else math.nan
        return self._hsic(a, b) / (1 + self.epsilon / norms)

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
    assert a.values is not None and b.values is not None
    p, q = a.values.flatten()[order_a][place[found]], b.values.flatten()[order_b][found]
    return codes_b[found], p, q


def _codes(state: Neighbors) -> Tensor:
    rows = torch.arange(state.n, device=state.indices.device)[:, None]
    return (rows * state.n + state.indices).flatten()


def _find(codes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each wanted code would stand in the ascending codes, and whether it is there."""
    place = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
    return place, codes[place] == wanted
