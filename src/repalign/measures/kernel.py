"""Measures that compare kernels (Gram matrices): CKA, and CKNNA, its restriction to shared neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.layers import ANY_FORM, FEATURES_OR_KERNEL, Given
from repalign.measures.measure import Bilinear, DenseRelation, GraphRelation, Relation
from repalign.measures.numerics.checks import as_count, as_epsilon, check_choice
from repalign.measures.numerics.kernels import checked_bandwidth, kernel_relation, norm_products, takes_of
from repalign.measures.numerics.search import Space, embed, nearest

ESTIMATORS = ("debiased", "biased")
KERNEL_SIMILARITIES = ("cosine", "dot")


@dataclass(frozen=True)
class CKA(Bilinear):
    """Centred kernel alignment: the cosine between the centred kernels of two spaces.

    s = <K', L'> / (|K'| |L'|), with K' the centred kernel. estimator="debiased" (default): U-centred with
    zero diagonal, identical to the ratio of the unbiased HSIC of Song et al. 2012, equation 5.
    estimator="biased": K' = H K H, H = I - 1 1^T / n.

    Parameters
    ----------
    kernel : "linear", x_i . x_j; "rbf", exp(-|x_i - x_j|^2 / (2 sigma^2)); "laplacian",
        exp(-|x_i - x_j| / sigma); "quadratic" or "cubic", (1 + c_i . c_j / sigma^2)^p with p = 2 or 3 and c the
        rows without their mean, so that no kernel depends on the origin. A layer that is given as a `Kernel` is the linear
        one; of an `RDM`, taken as distances, "rbf" and "laplacian" are made.
    estimator : "debiased" or "biased". The biased one grows with d / n: independent noise with
        d >> n scores 1.
    bandwidth : for kernels other than linear: sigma as a number, or a rule for sigma^2 on each side. rbf and
        laplacian have rules from its own squared distances, "median" (default, over pairs of different stimuli),
        "median_all" (over all n^2 entries with the zero diagonal) or "median_all_lower" (the same, the lower of
        two middle values); the polynomials have "variance", mean_i |c_i|^2.
    epsilon : added to the denominator, the geometric mean of the two self-HSIC; 0 by default. The reference
        code has 1e-6, which is not scale-free and pulls small, anisotropic features towards 0.

    Shapes (n, d1) and (n, d2). Range [-1, 1]; biased [0, 1]. Invariant to orthogonal maps, translations and
    column order; to isotropic scale unless sigma is a number or epsilon is not 0. nan where a centred kernel
    vanishes (a constant representation), or where the rule gives sigma = 0.
    Raises RepalignError if n < 4 (biased: n < 2).

    Source: Kornblith et al. 2019 (arXiv 1905.00414), section 3; Huh et al. 2024 (arXiv 2405.07987), equations
    12 to 15. Features are centred and scaled in float64 before the kernel is formed, so a common offset costs
    no digits; the reference code centres kernels of raw features.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(CKA()(x, 5 - 2 * x), 12)
    1.0
    >>> CKA(kernel="rbf").bandwidth
    'median'
    """

    kernel: str = "linear"
    estimator: str = "debiased"
    bandwidth: float | str | None = None
    epsilon: float = 0.0

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cka", "unbiased_cka", "debiased_cka")
    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "biased_cka": {"estimator": "biased"},
        "cka_linear": {"estimator": "biased"},
        "cka_rbf": {"kernel": "rbf", "estimator": "biased"},
        "cka_laplacian": {"kernel": "laplacian", "estimator": "biased"},
    }
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = ANY_FORM

    def __post_init__(self) -> None:
        bandwidth = checked_bandwidth(self.kernel, self.bandwidth)
        check_choice("estimator", self.estimator, ESTIMATORS)
        object.__setattr__(self, "epsilon", as_epsilon(self.epsilon))
        object.__setattr__(self, "bandwidth", bandwidth)

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.estimator == "debiased" else (0.0, 1.0)

    @property
    def accepts(self) -> frozenset[str]:
        return takes_of(self.kernel)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"orthogonal", "translation", "permutation"})
        scale_free = self.epsilon == 0 and not isinstance(self.bandwidth, (int, float))
        return common | {"isotropic_scale"} if scale_free else common

    @property
    def min_n(self) -> int:
        return 4 if self.estimator == "debiased" else 2

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return kernel_relation(x, self.kernel, self.bandwidth, self.estimator == "debiased")

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        scores = super().scale(inner, a, b)
        if self.epsilon == 0:
            return scores
        n = a[0].n
        per_hsic = n * (n - 3) if self.estimator == "debiased" else 1  # <K', L'> = per_hsic * HSIC
        return scores / (1 + self.epsilon * per_hsic / norm_products(a, b))


@dataclass(frozen=True)
class CKNNA(Bilinear):
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

    k: int = 10
    similarity: str = "cosine"

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n k per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cknna",)
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
        return weighted_graph(embedded, lists, embedded.products_at(lists, "rows and columns"))


def masked_neighbours(x: Given, k: int, similarity: str) -> tuple[Space, Tensor]:
    """The embedded rows and their k nearest without the row itself; at k = n everything, itself included."""
    embedded = embed(x, similarity)
    return embedded, nearest(embedded, k, include_self=k == len(x))


def weighted_graph(embedded: Space, lists: Tensor, values: Tensor) -> GraphRelation:
    """A relation of unit norm with `values` (n, k) at the neighbours; norm 0 if all rows are alike."""
    norm = 0.0 if embedded.is_constant else float(torch.linalg.vector_norm(values))
    return GraphRelation(lists, values / norm if norm > 0 else values, norm=norm)


def kernel_invariances(similarity: str) -> frozenset[str]:
    """What does not change neighbours and kernel values up to one factor."""
    common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
    return common | {"row_scale"} if similarity == "cosine" else common


MEASURES = (CKA, CKNNA)
