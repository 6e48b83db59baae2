"""Measures on kernels: do two representations agree on how similar every two stimuli are?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean
from repalign.measures._base import SCRATCH_BYTES, Bilinear, DenseRelation, GraphRelation, Relation
from repalign.measures._search import centred, full_precision, neighbors, unit_rows, unit_scale

KERNELS = ("linear", "rbf")
ESTIMATORS = ("debiased", "biased")
BANDWIDTHS = ("median", "median_all", "median_all_lower")


def centred_features(x: Tensor) -> tuple[Tensor, float]:
    """Centred x at a well scaled magnitude, and the factor that was divided out; all zero where x is constant.

    A residue of centring (some eps of float64 of the largest entry) counts as zero; real variation that is tiny beside
    a common offset does not, since means and differences are taken in float64.
    """
    largest = float(x.abs().max())
    scaled = unit_scale(x)
    factor = largest / float(scaled.abs().max()) if largest > 0 else 1.0
    wide = scaled.double()
    wide = wide - wide.mean(dim=0)
    residue = 16 * torch.finfo(torch.float64).eps * float(scaled.abs().max())
    if float(wide.abs().max()) <= residue:
        return torch.zeros_like(x), factor
    rescaled = unit_scale(wide)
    factor *= float(wide.abs().max()) / float(rescaled.abs().max())
    return rescaled.to(x.dtype), factor


def double_centre(k: Tensor) -> Tensor:
    """H K H with H = I - 11'/n, means in float64."""
    rows = k.mean(dim=1, dtype=torch.float64)
    columns = k.mean(dim=0, dtype=torch.float64)
    return (k - rows[:, None] - columns[None, :] + rows.mean()).to(k.dtype)


def u_centre(k: Tensor) -> Tensor:
    """U-centring (Szekely & Rizzo 2014): zero diagonal, k_ij - r_i/(n-2) - r_j/(n-2) + s/((n-1)(n-2)) off it.

    The inner product of two U-centred kernels is n (n - 3) times the unbiased HSIC of Song et al. 2012, equation 5.
    """
    n = len(k)
    k = k.clone().fill_diagonal_(0.0)
    rows = k.sum(dim=1, dtype=torch.float64)
    k = k - (rows / (n - 2))[:, None] - (rows / (n - 2))[None, :] + rows.sum() / ((n - 1) * (n - 2))
    return k.fill_diagonal_(0.0)


@dataclass(frozen=True)
class CKA(Bilinear):
    """Centred kernel alignment: the cosine of the two centred kernel matrices.

    CKA = HSIC(K, L) / (sqrt(HSIC(K, K) HSIC(L, L)) + epsilon).

    Parameters: `kernel` "linear" or "rbf", exp(-|x_i - x_j|^2 / (2 sigma^2)). `estimator` "debiased" (HSIC of Song et
    al. 2012, equation 5, through U-centred kernels; chance level 0, may be slightly negative, n >= 4) or "biased"
    (Kornblith et al. 2019; tends to 1 for unrelated data as d grows against n). `bandwidth` sigma as a number, or a
    rule per representation: "median" of the distances of distinct pairs, "median_all" of all n^2 distances with the
    zero diagonal, "median_all_lower" the same with the lower of two middle values; `fraction` multiplies a rule's sigma.
    `epsilon` is 0; 1e-6 gives the reference code's value, which is wrong where kernels are small.

    Range [0, 1] biased, [-1, 1] debiased. Symmetric. Invariant to orthogonal maps, isotropic scaling and translation.
    Features are centred in float64 before a kernel is formed, so that a large common offset costs no digits. A constant
    representation (and a rule's sigma of 0) has no score: nan.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> round(CKA()(x, 2 * x + 1), 12)
    1.0
    """

    kernel: str = "linear"
    estimator: str = "debiased"
    bandwidth: float | str = "median"
    fraction: float = 1.0
    epsilon: float = 0.0

    family: ClassVar[str] = "kernel"
    aliases: ClassVar[tuple[str, ...]] = ("cka",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        for field, value, known in (("kernel", self.kernel, KERNELS), ("estimator", self.estimator, ESTIMATORS)):
            if value not in known:
                raise RepalignError(f"unknown {field} {value!r}", got=value, remedy=did_you_mean(str(value), known))
        if isinstance(self.bandwidth, str):
            if self.bandwidth not in BANDWIDTHS:
                remedy = did_you_mean(self.bandwidth, BANDWIDTHS)
                raise RepalignError(f"unknown bandwidth {self.bandwidth!r}", got=self.bandwidth, remedy=remedy)
        elif not self.bandwidth > 0:
            raise RepalignError("bandwidth is out of range", expected="sigma > 0 or a rule", got=self.bandwidth)
        if not (self.fraction > 0 and self.epsilon >= 0):
            raise RepalignError("CKA: fraction must be positive and epsilon not negative", got=self)

    @property
    def range(self) -> tuple[float, float]:
        return (-1.0 if self.estimator == "debiased" else 0.0, 1.0)

    @property
    def min_n(self) -> int:
        return 4 if self.estimator == "debiased" else 2

    @property
    def invariances(self) -> frozenset[str]:
        same = {"orthogonal", "translation", "permutation"}
        if (self.kernel == "linear" or isinstance(self.bandwidth, str)) and self.epsilon == 0:
            same.add("isotropic_scale")
        return frozenset(same)

    def prepare(self, x: Tensor) -> DenseRelation:
        xc, factor = centred_features(x)
        if self.kernel == "linear":
            with full_precision():
                k = xc @ xc.T
            unit = factor**2
            flat = False
        else:
            k, flat = self._rbf(xc, factor)
            unit = 1.0
        size = float(torch.linalg.vector_norm(k, dtype=torch.float64))
        relation = double_centre(k) if self.estimator == "biased" else u_centre(k)
        # What centring leaves of a kernel without structure is rounding of this size.
        floor = math.inf if flat else 8 * torch.finfo(k.dtype).eps * size
        out = DenseRelation.of(relation.to(x.dtype), floor=floor)
        return DenseRelation(out.matrix, out.norm * unit)

    def _rbf(self, xc: Tensor, factor: float) -> tuple[Tensor, bool]:
        """K - 1 (centring removes the constant, and small entries keep their digits); true if sigma is 0."""
        wide = xc.double()
        norms = (wide * wide).sum(dim=1)
        squared = (norms[:, None] + norms[None, :] - 2 * wide @ wide.T).clamp_min_(0.0).fill_diagonal_(0.0)
        if isinstance(self.bandwidth, str):
            variance = _median(squared, self.bandwidth) * self.fraction**2
        else:
            variance = (self.bandwidth / factor) ** 2
        if not variance > 0:
            return torch.zeros_like(squared), True
        return torch.expm1(-squared / (2 * variance)), False

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        scores = super().scale(inner, a, b)
        if self.epsilon == 0:
            return scores
        n = a[0].n
        per_pair = 1.0 if self.estimator == "biased" else 1.0 / (n * (n - 3))
        hsic = torch.tensor([s.norm for s in a])[:, None] * torch.tensor([t.norm for t in b])[None, :] * per_pair
        return scores * (hsic.double() / (hsic.double() + self.epsilon))


def _median(squared: Tensor, rule: str) -> float:
    if rule == "median":
        n = len(squared)
        values = squared[torch.triu(torch.ones(n, n, dtype=torch.bool, device=squared.device), diagonal=1)]
    else:
        values = squared.flatten()
    ordered = values.sort().values
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low) if rule == "median_all_lower" else float(low + high) / 2


@dataclass(frozen=True)
class _LocalKernel(Bilinear):
    """Kernels that count only where two stimuli are neighbours in both representations."""

    k: int = 10

    family: ClassVar[str] = "kernel"
    symmetric: ClassVar[bool] = True
    invariances: ClassVar[frozenset[str]] = frozenset({"orthogonal", "isotropic_scale", "row_scale", "permutation"})
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise RepalignError("k is out of range", expected="a whole number k >= 1", got=self.k)

    @property
    def min_n(self) -> int:
        return max(3, self.k)  # k = n: every entry, the diagonal with it

    def _graph(self, x: Tensor, centre_columns_only: bool) -> GraphRelation:
        z = unit_rows(unit_scale(x))
        n = len(z)
        if self.k == n:
            indices = torch.arange(n, device=z.device).repeat(n, 1)
        else:
            indices = neighbors(z, self.k)
        zc = centred(z)
        left = z if centre_columns_only else zc
        values = torch.empty(indices.shape, dtype=torch.float64, device=z.device)
        rows = max(1, SCRATCH_BYTES // (8 * n))
        with full_precision():
            for start in range(0, n, rows):
                block = slice(start, start + rows)
                values[block] = (left[block].double() @ zc.double().T).gather(1, indices[block])
        norm = float(torch.linalg.vector_norm(values))
        residue = 16 * torch.finfo(z.dtype).eps * n  # rows have unit norm; identical rows leave rounding only
        if norm <= residue * torch.finfo(z.dtype).eps:
            return GraphRelation(indices, torch.zeros_like(values), 0.0)
        return GraphRelation(indices, values / norm, norm)


@dataclass(frozen=True)
class CKNNA(_LocalKernel):
    """Centred kernel nearest-neighbour alignment: CKA restricted to pairs that are neighbours in both.

    With K the cosine kernel, centred on both sides (H K H), and alpha(i, j) = 1 where j is a k-nearest neighbour of i in
    both representations: Align(K, L) = sum_ij alpha(i, j) K_ij L_ij, and CKNNA = Align(K, L) / sqrt(Align(K, K) Align(L, L)),
    where the denominators use each representation's own neighbours. Range [-1, 1]; symmetric; CKNNA(X, X) = 1. k = n takes
    every entry with the diagonal and equals biased CKA of the row-normalised features.

    Invariant to orthogonal maps and to rescaling of rows. A representation whose rows are all one direction has no
    score: nan. Source: Huh et al. 2024, equations 12 and 16 to 18; the centring is double, which the paper's limit
    k -> n needs (`CKNNAPaper` has its literal row centring, `CKNNAReference` the released code).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> round(CKNNA(k=5)(x, x), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("cknna",)

    def prepare(self, x: Tensor) -> GraphRelation:
        return self._graph(x, centre_columns_only=False)


@dataclass(frozen=True)
class CKNNAPaper(_LocalKernel):
    """CKNNA with the paper's literal centring: only the mean of each row of K is subtracted.

    K_ij - mean_l K_il, the rest as in `CKNNA`. Range [-1, 1]; symmetric. At k = n it is near CKA but not equal to it.

    Source: Huh et al. 2024, equations 12 and 16 to 18 as printed.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> round(CKNNAPaper(k=5)(x, x), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("cknna_paper",)

    def prepare(self, x: Tensor) -> GraphRelation:
        return self._graph(x, centre_columns_only=True)
