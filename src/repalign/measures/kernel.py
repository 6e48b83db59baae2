"""Measures that compare kernels (Gram matrices): CKA, and CKNNA, its restriction to shared neighbours.

`CKNNAPaper` and `CKNNAReference` are published forms that differ from the corrected one, kept so that their numbers can
be reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import ANY_FORM, FEATURES, FEATURES_OR_KERNEL, RDM, Given, Kernel
from repalign.measures.measure import (
    ISOMETRIES,
    ISOMETRIES_AND_SCALE,
    Bilinear,
    DenseRelation,
    GraphRelation,
    Local,
    Measure,
    Neighbors,
    Relation,
    as_epsilon,
    as_number,
    norms,
    parameter,
)
from repalign.measures.numerics.distances import between_rows, float32_between_rows, upper
from repalign.measures.numerics.precision import (
    NORMAL,
    RESIDUE,
    double_centre,
    frobenius,
    full_precision,
    gram,
    layer_of,
    sharing,
    u_centre,
)
from repalign.measures.numerics.rows import centred, scaled, unit_of
from repalign.measures.numerics.search import Space, embed, nearest

ESTIMATORS = ("debiased", "biased")
UNBIASED = ("debiased", "unbiased")
KERNEL_SIMILARITIES = ("cosine", "dot")
KERNELS = ("linear", "rbf", "laplacian", "quadratic", "cubic")


def _middle(squared: Tensor, *, pairs: bool, upper_too: bool) -> float:
    """The median of the squared distances (n, n), zero diagonal included or of `pairs` alone; or the lower of two middle values."""
    n, values = len(squared), upper(squared)
    size, zeros, times = (len(values), 0, 1) if pairs else (n * n, n, 2)
    # Of all entries the diagonal comes first, then every pair twice.
    places = [((size - 1) // 2 - zeros) // times, (size // 2 - zeros) // times if upper_too else -1]
    kept = np.partition(values, [p for p in places if p >= 0]) if max(places) >= 0 else values
    found = [float(kept[p]) if p >= 0 else 0.0 for p in places]
    return sum(found) / 2 if upper_too else found[0]


# Rules for sigma^2 from the squared distances (n, n).
BANDWIDTHS: dict[str, Callable[[Tensor], float]] = {
    "median": partial(_middle, pairs=True, upper_too=True),
    "median_all": partial(_middle, pairs=False, upper_too=True),
    "median_all_lower": partial(_middle, pairs=False, upper_too=False),
}
# The rules that a kernel knows, its default first.
RULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "rbf": tuple(BANDWIDTHS),
    "laplacian": tuple(BANDWIDTHS),
    "quadratic": ("variance",),
    "cubic": ("variance",),
}


class OfPairs(Measure):
    """A measure of numbers for all pairs of stimuli, such as kernels: n^2 of them."""

    family: ClassVar[str] = "kernel"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"


class Estimated(OfPairs, Bilinear):
    """A measure of U-centred kernels if its `estimator` is `UNBIASED`, which may then be negative."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    estimator: str

    @property
    def range(self) -> tuple[float, float]:
        return self.bounds if self.estimator in UNBIASED else (0.0, self.bounds[1])

    @property
    def min_n(self) -> int:
        return 4 if self.estimator in UNBIASED else 2


class OfKernels(OfPairs):
    """A measure of centred kernels, with a choice of kernels, each with its own rules for a bandwidth."""

    takes: ClassVar[frozenset[str]] = ANY_FORM
    kernel: str
    estimator: str
    bandwidth: float | str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        rules, bandwidth = RULES[self.kernel], self.bandwidth
        if bandwidth is None:
            bandwidth = rules[0] if rules else None
        elif not rules:
            expected, remedy = "bandwidth=None with kernel='linear'", "use kernel='rbf', or leave bandwidth out"
            raise RepalignError("a linear kernel has no bandwidth", expected=expected, got=f"{bandwidth=}", remedy=remedy)
        elif isinstance(bandwidth, str):
            choose("bandwidth", bandwidth, rules)
        else:
            problem, expected = "is not a positive number or a rule", f"sigma > 0, or one of {', '.join(rules)}"
            bandwidth = as_number("bandwidth", bandwidth, lambda v: 0 < v < math.inf, problem, expected)
        object.__setattr__(self, "bandwidth", bandwidth)

    @property
    def accepts(self) -> frozenset[str]:
        """The kernel itself for a linear measure, or distances for a kernel that is made of them."""
        by_pairs = {"linear": {Kernel.kind}, "rbf": {RDM.kind}, "laplacian": {RDM.kind}}
        return frozenset({FEATURES, *by_pairs.get(self.kernel, ())})

    @property
    def invariances(self) -> frozenset[str]:
        return ISOMETRIES if isinstance(self.bandwidth, float) else ISOMETRIES_AND_SCALE

    def prepare(self, x: Given) -> DenseRelation:
        """The centred kernel (n, n) at unit norm: double centred, or U-centred with zero diagonal.

        `norm` is that of the centred kernel in the unit of the features, 0 if it vanishes.
        """
        rows, shift = None, None
        if self.kernel == "linear" and isinstance(x, Tensor):
            layer = layer_of(x)
            matrix, unit, rows = layer.gram, layer.products.unit * layer.products.unit, layer.products.rows
            size = float(matrix.diagonal().sum(dtype=torch.float64))  # the trace bounds its rounding
        else:  # before it is centred, up to a constant
            of_features = _of_products if self.kernel in _POLYNOMIALS else _of_distances
            matrix, unit = scaled(x.matrix) if isinstance(x, Kernel) else of_features(x, self.kernel, self.bandwidth)
            size = float(torch.linalg.vector_norm(matrix))
        floor = RESIDUE * torch.finfo(matrix.dtype).eps * size
        if self.estimator in UNBIASED:
            shift = u_centre(matrix)
        elif self.kernel != "linear" or isinstance(x, Kernel):  # the Gram matrix of centred rows is so already
            double_centre(matrix)
        factor = None if rows is None else torch.cat([rows, (matrix.new_zeros(len(x)) if shift is None else shift)[:, None]], dim=1)
        return DenseRelation.of(matrix.to(x.dtype), floor=floor, unit=unit, factor=factor)


def linear_inner(squared: float, diagonal: float, traces: float, n: int, unbiased: bool) -> float:
    """The inner product of two centred linear kernels from sums over rows, without an n x n matrix.

    With centred rows x_i, y_i and a_i = |x_i|^2, b_i = |y_i|^2: squared = |X'Y|^2, which is <K, L>; diagonal = sum a_i b_i;
    traces = (sum a_i) (sum b_i). Of the U-centred kernels it is squared - n / (n - 2) diagonal + traces / ((n - 1) (n - 2)), which
    is n (n - 3) times the unbiased HSIC of Song et al. (2012, JMLR 13:1393, equation 5): the row sums of K without its
    diagonal are -a_i, and U-centring projects.
    """
    return squared - n / (n - 2) * diagonal + traces / ((n - 1) * (n - 2)) if unbiased else squared


class _OfLinearKernels(OfKernels, Estimated):
    """Two narrow layers under the linear kernel are compared in feature space."""

    def __call__(self, x: Any, y: Any) -> float:
        both = x, y = self.checked(x, y)
        if self.kernel == "linear" and isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape[1] + y.shape[1] <= len(x):
            unbiased, n, sides = self.estimator in UNBIASED, len(x), [centred(v, v.dtype) for v in both]
            squares = [torch.linalg.vecdot(s.rows, s.rows).double() for s in sides]

            def inner(i: int, j: int) -> tuple[float, float]:
                p, q = (sides[k].rows.to(torch.promote_types(x.dtype, y.dtype)) for k in (i, j))
                with full_precision():
                    squared = frobenius(gram(p.T) if i == j else p.T @ q) ** 2
                diagonal, traces = float(squares[i] @ squares[j]), float(squares[i].sum() * squares[j].sum())
                return squared, linear_inner(squared, diagonal, traces, n, unbiased)

            own = [inner(i, i) for i in range(2)]
            if all(found > squared / 4 > 0 for squared, found in own):  # otherwise digits cancel
                norms = (float(np.clip(math.sqrt(own[i][1]) * s.unit * s.unit, *NORMAL)) for i, s in enumerate(sides))
                states = [DenseRelation(x.new_empty(n, 0), norm) for norm in norms]
                score = inner(0, 1)[1] / math.sqrt(own[0][1] * own[1][1])
                return float(self.scale(torch.tensor([[score]], dtype=torch.float64), states[:1], states[1:])[0, 0])
        return self.compare(self.prepare(x), self.prepare(y))


@dataclass(frozen=True)
class CKA(_OfLinearKernels):
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

    kernel: str = parameter("linear", choose, KERNELS)
    estimator: str = parameter("debiased", choose, ESTIMATORS)
    bandwidth: float | str | None = None
    epsilon: float = parameter(0.0, as_epsilon)

    aliases: ClassVar[tuple[str, ...]] = ("cka", "unbiased_cka", "debiased_cka")
    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "biased_cka": {"estimator": "biased"},
        "cka_linear": {"estimator": "biased"},
        "cka_rbf": {"kernel": "rbf", "estimator": "biased"},
        "cka_laplacian": {"kernel": "laplacian", "estimator": "biased"},
    }

    @property
    def invariances(self) -> frozenset[str]:
        return super().invariances if self.epsilon == 0 else ISOMETRIES

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        n, scores = a[0].n, super().scale(inner, a, b)
        if self.epsilon == 0:
            return scores
        per_hsic = n * (n - 3) if self.estimator in UNBIASED else 1  # <K', L'> = per_hsic * HSIC
        return scores / (1 + self.epsilon * per_hsic / norm_products(a, b))


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


# Rounding of a squared distance in float32 is that of the squares of the rows. As long as none is this many times sigma^2, it
# moves no exponent by more than some 1e-5.
_FAR = 64.0


def _of_distances(x: Given, kernel: str, bandwidth: float | str | None) -> tuple[Tensor, float]:
    """k(D / sigma) - 1 (n, n), and the unit that was divided out; all zero if sigma is.

    The constant -1 drops out in centring, and keeps the digits of kernels that are nearly constant. Distances are in float64, but
    for those of float32 features in which nothing is lost that "rbf" could tell.
    """
    rule, sigma, largest = BANDWIDTHS.get(str(bandwidth)), 0.0, math.inf

    def sigma_of(squared: Tensor, unit: float) -> float:
        return math.sqrt(rule(squared)) if rule else float(bandwidth or 0) / unit

    if isinstance(x, Tensor) and x.dtype == torch.float32 and kernel == "rbf":
        squared, unit, largest = float32_between_rows(x)
        sigma = sigma_of(squared, unit)
    if not sigma * sigma > largest / _FAR:
        squared, unit = between_rows(x)
        sigma = sigma_of(squared, unit)
    if sigma == 0:
        return torch.zeros_like(squared), 1.0
    # In two steps, for sigma^2 may be beyond the range.
    exponents = squared.sqrt_().div_(-sigma) if kernel == "laplacian" else squared.div_(sigma).div_(-2 * sigma)
    unit = unit_of(exponents.expm1_())
    return exponents.div_(unit), unit


# (1 + t)^p - 1 = t (a + b t + c t^2), by name.
_POLYNOMIALS = {"quadratic": (2.0, 1.0, 0.0), "cubic": (3.0, 3.0, 1.0)}


def _of_products(x: Given, kernel: str, bandwidth: float | str | None) -> tuple[Tensor, float]:
    """(1 + c_i . c_j / sigma^2)^p - 1 (n, n) for the centred rows c, and the unit; all zero if sigma is.

    With g = 1 / sigma^2 in the unit of the rows, g or g^p is divided out, so that no scale overflows or vanishes.
    """
    assert isinstance(x, Tensor)
    features, unit, *_ = centred(x)
    matrix = gram(features)
    if isinstance(bandwidth, str):
        variance = float(matrix.diagonal().mean())
        g = 1 / variance if variance > 0 else 0.0
    else:
        ratio = unit / (bandwidth or 1.0)
        g = ratio * ratio
    a, b, c = _POLYNOMIALS[kernel]
    if g <= 1:
        return matrix * ((c * g * g * matrix + b * g) * matrix + a), g
    h = 1 / g
    if kernel == "quadratic":
        return matrix * (b * matrix + a * h), g * g
    return matrix * ((c * matrix + b * h) * matrix + a * h * h), g * g * g


def norm_products(a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
    """|A_l| |B_m| in the unit of the features, (la, lb)."""
    p, q = norms(a, b)
    return p * q
