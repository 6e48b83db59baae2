"""CKA, which compares kernels (Gram matrices), and what other measures of kernels are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import ANY_FORM, FEATURES, RDM, Given, Kernel
from repalign.measures.measure import (
    ISOMETRIES,
    ISOMETRIES_AND_SCALE,
    Bilinear,
    DenseRelation,
    Measure,
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
    u_centre,
)
from repalign.measures.numerics.rows import centred, scaled, unit_of

ESTIMATORS = ("debiased", "biased")
UNBIASED = ("debiased", "unbiased")
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
            squares = [torch.linalg.vecdot(s.rows, s.rows).double() for s in sides] if unbiased else []

            def inner(i: int, j: int) -> tuple[float, float]:
                p, q = (sides[k].rows.to(torch.promote_types(x.dtype, y.dtype)) for k in (i, j))
                with full_precision():
                    squared = frobenius(gram(p.T) if i == j else p.T @ q) ** 2
                if not unbiased:
                    return squared, squared
                a, b = squares[i], squares[j]
                return squared, linear_inner(squared, float(a @ b), float(a.sum() * b.sum()), n, True)

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
