"""Representational similarity analysis: two representations by the dissimilarities of their stimuli."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from repalign.layers import FEATURES_OR_RDM, Given
from repalign.measures.measure import Bilinear, DenseRelation, Measure, State
from repalign.measures.numerics.checks import check_choice
from repalign.measures.numerics.distances import TIED, average_ranks, tied_groups
from repalign.measures.numerics.kernels import double_centre
from repalign.measures.numerics.rdm import (
    DISSIMILARITIES,
    RDM_INVARIANCES,
    WITH_UNIT,
    SquareState,
    centred_relation,
    dissimilarities,
    square,
    stored,
    upper,
)

_RDM = tuple(DISSIMILARITIES)


def _pearson(matrix: Tensor) -> DenseRelation:
    return centred_relation(matrix)


def _spearman(matrix: Tensor) -> DenseRelation:
    return centred_relation(square(average_ranks(upper(matrix)), matrix))


def _rho_a(matrix: Tensor) -> DenseRelation:
    """Ranks at the norm that they would have without ties; every pair of stimuli is there twice."""
    values = upper(matrix)
    pairs = len(values)
    ranks = square(average_ranks(values) - (pairs + 1) / 2, matrix)
    return DenseRelation(ranks * math.sqrt(6 / (pairs**3 - pairs)), float(ranks.any()))


def _cosine(matrix: Tensor) -> DenseRelation:
    return DenseRelation.of(matrix)


def _whitened_cosine(matrix: Tensor) -> DenseRelation:
    floor = TIED * float(torch.linalg.vector_norm(matrix))
    double_centre(matrix)
    return DenseRelation.of(matrix, floor=floor)


def _whitened_pearson(matrix: Tensor) -> DenseRelation:
    n = len(matrix)
    floor = TIED * float(torch.linalg.vector_norm(matrix))
    matrix.sub_(matrix.sum() / (n * (n - 1))).fill_diagonal_(0)
    double_centre(matrix)
    return DenseRelation.of(matrix, floor=floor)


# From an RDM, which may be changed, to a relation whose inner product with another is the score.
COMPARISONS: dict[str, Callable[[Tensor], DenseRelation]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "rho_a": _rho_a,
    "cosine": _cosine,
    "whitened_cosine": _whitened_cosine,
    "whitened_pearson": _whitened_pearson,
}
# Sums of products of dissimilarities, or of matrices without negative eigenvalues.
_NOT_NEGATIVE = frozenset({"cosine", "whitened_cosine"})


@dataclass(frozen=True)
class RSA(Bilinear):
    """Representational similarity analysis: agreement of the dissimilarities of all pairs of stimuli.

    s = corr(v(X), v(Y)), with v the n (n - 1) / 2 dissimilarities above the diagonal of the RDM.

    Parameters
    ----------
    dissimilarity : "correlation" (default), 1 - Pearson correlation of two rows; "cosine", 1 - cosine; "euclidean";
        "sqeuclidean"; "cityblock", the sum of absolute differences; "gaussian", 1 - exp(-D^2 / m) with m the mean of all
        n^2 squared distances; "mahalanobis", Euclidean after whitening with the covariance of the stimuli themselves.
        It is of features: a layer that is given as an `RDM` has its own dissimilarities.
    comparison : "spearman" (default), tied dissimilarities at their average rank; "pearson"; "rho_a", Spearman's rho
        averaged over all ways to break ties, so that models with many ties are not favoured; "cosine", not centred;
        "whitened_cosine", the cosine of the double-centred RDMs, which discounts what dissimilarities share by having a
        stimulus in common (of "sqeuclidean" it is biased linear CKA); "whitened_pearson", the same after the mean of v
        is taken off. For Kendall's tau see `RSAKendall`.

    Shapes (n, d1) and (n, d2). All pairs are used, never a sample. Range [-1, 1]; cosines [0, 1]. Invariant to what does
    not change the dissimilarity: Euclidean kinds to orthogonal maps, translations and isotropic scale; cosine to
    orthogonal maps and the scale of every row; correlation to shift and scale of every row; cityblock to translations and
    isotropic scale; mahalanobis to all invertible maps; all to column order. Dissimilarities are tied if equal up to
    rounding (relative 1e-11). A constant row has no correlation (a zero row no cosine) with any other: its dissimilarity
    is 1. nan for a constant representation, where all dissimilarities are tied (all comparisons but cosine and
    whitened_cosine), and so with mahalanobis unless n - 1 exceeds the rank of the features.
    Raises RepalignError if n < 3 (cosine and whitened_cosine: n < 2).

    Source: Kriegeskorte, Mur & Bandettini 2008 (Frontiers in Systems Neuroscience 2:4); Schuett et al. 2023 (eLife 12) for
    rho_a and the whitened comparisons; Diedrichsen et al. 2021 (arXiv 2007.02789) for whitening. Peers draw a sample of
    pairs above a size without a word, raise or return nan for a constant row, and take distances from products of raw
    features, which lose their digits to a common offset.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(RSA()(x, 3 - 2 * x), 12)
    1.0
    >>> RSA(dissimilarity="euclidean", comparison="pearson").range
    (-1.0, 1.0)
    """

    dissimilarity: str = "correlation"
    comparison: str = "spearman"

    family: ClassVar[str] = "rdm"
    cost: ClassVar[str] = "n^2 d per layer (ranks: and n^2 log n), n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("rsa",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_choice("dissimilarity", self.dissimilarity, _RDM)
        check_choice("comparison", self.comparison, tuple(COMPARISONS))

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.comparison in _NOT_NEGATIVE else self.bounds

    @property
    def invariances(self) -> frozenset[str]:
        return RDM_INVARIANCES[self.dissimilarity]

    @property
    def min_n(self) -> int:
        return 2 if self.comparison in _NOT_NEGATIVE else 3

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        rdm = dissimilarities(x, self.dissimilarity)
        return stored(None if rdm is None else COMPARISONS[self.comparison](rdm.matrix), x)


TAUS = ("a", "b")


@dataclass(frozen=True)
class RSAKendall(Measure):
    """Representational similarity analysis with Kendall's tau: the order of every two dissimilarities.

    tau_a = (C - D) / (N (N - 1) / 2), with C the pairs of dissimilarities that both spaces order alike, D those that they
    order oppositely, N = n (n - 1) / 2. tau="b" divides by the pairs that are not tied, (T_X T_Y)^(1/2), instead.

    Parameters
    ----------
    dissimilarity : as in `RSA`.
    tau : "a" (default) or "b". With "a" a tie counts as neither, so that a space with ties scores below 1 with itself,
        and models that predict ties are not favoured.

    Shapes (n, d1) and (n, d2). Range [-1, 1]. Invariances, ties and constant rows as in `RSA`. nan for a constant
    representation and where all dissimilarities are tied. Raises RepalignError if n < 3.
    Counted by sorting; not bilinear, so its null is random permutations: `RSA(comparison="rho_a")` ranks models alike
    and has closed-form moments.

    Source: Nili et al. 2014 (PLoS Computational Biology 10) for tau_a; Kendall 1945 (Biometrika 33) for tau_b.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((20, 8))
    >>> RSAKendall()(x, 2 * x)
    1.0
    """

    dissimilarity: str = "correlation"
    tau: str = "a"

    family: ClassVar[str] = "rdm"
    cost: ClassVar[str] = "n^2 (d + log n) per layer, n^2 log n per pair"
    aliases: ClassVar[tuple[str, ...]] = ("rsa_kendall", "rsa_tau")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_choice("dissimilarity", self.dissimilarity, _RDM)
        check_choice("tau", self.tau, TAUS)

    @property
    def invariances(self) -> frozenset[str]:
        return RDM_INVARIANCES[self.dissimilarity]

    @property
    def min_n(self) -> int:
        return 3

    def prepare(self, x: Given) -> SquareState:
        """Ranks without gaps; `norm` is the share of pairs of dissimilarities that are not tied."""
        self.check_n(len(x))
        rdm = dissimilarities(x, self.dissimilarity)
        if rdm is None:
            return SquareState(torch.zeros(len(x), len(x), dtype=torch.int32, device=x.device), 0.0)
        values = upper(rdm.matrix)
        groups = tied_groups(values)
        sizes = groups.sizes().astype(float)
        tied = (sizes * (sizes - 1)).sum() / (len(values) * (len(values) - 1))
        return SquareState(square(groups.labels(), rdm.matrix), float(1 - tied))

    def compare(self, a: State, b: State) -> float:
        from scipy.stats import kendalltau

        first, second = cast(SquareState, a), cast(SquareState, b)
        if first.norm == 0 or second.norm == 0:
            return math.nan
        found: Any = kendalltau(upper(first.matrix), upper(second.matrix), method="asymptotic")
        tau_b = float(found.statistic)
        return tau_b * math.sqrt(first.norm * second.norm) if self.tau == "a" else tau_b


NORMS = ("spectral", "frobenius")


@dataclass(frozen=True)
class RSMNormDifference(Measure):
    """Norm of the difference of two dissimilarity matrices, in the unit of the features.

    d = |R_X - R_Y|, with R the n x n matrices of dissimilarities.

    Parameters
    ----------
    dissimilarity : as in `RSA`; "euclidean" by default.
    norm : "spectral" (default), the largest absolute eigenvalue, or "frobenius", the root of the sum of squares over all
        n^2 entries, sqrt(2) times the Euclidean distance of the upper triangles.

    Shapes (n, d1) and (n, d2). A distance, from 0; it grows with n and, with euclidean, sqeuclidean and cityblock, with
    the scale of the features, so normalise both first. Invariances as in `RSA`, without isotropic scale for these three.
    nan for a constant representation. Raises RepalignError if n < 2.

    Source: Shahbazi et al. 2021 (NeuroImage 239) and Yin & Shen 2018, as collected by Klabunde et al. 2023 (arXiv
    2305.06329); the released ReSi code takes the spectral norm, where its comment speaks of a vector norm.

    >>> import numpy as np
    >>> x = np.eye(3)
    >>> round(RSMNormDifference()(x, 2 * x), 6), round(RSMNormDifference(norm="frobenius")(x, 2 * x), 6)
    (2.828427, 3.464102)
    """

    dissimilarity: str = "euclidean"
    norm: str = "spectral"

    family: ClassVar[str] = "rdm"
    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair (spectral: n^3)"
    aliases: ClassVar[tuple[str, ...]] = ("rsm_norm_difference", "rsm_norm")
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_choice("dissimilarity", self.dissimilarity, _RDM)
        check_choice("norm", self.norm, NORMS)

    @property
    def invariances(self) -> frozenset[str]:
        common = RDM_INVARIANCES[self.dissimilarity]
        return common - {"isotropic_scale"} if self.dissimilarity in WITH_UNIT else common

    def prepare(self, x: Given) -> SquareState:
        self.check_n(len(x))
        rdm = dissimilarities(x, self.dissimilarity)
        if rdm is None:
            return SquareState(torch.zeros(len(x), len(x), dtype=x.dtype, device=x.device), 0.0)
        return SquareState((rdm.matrix * rdm.unit).to(x.dtype))

    def compare(self, a: State, b: State) -> float:
        first, second = cast(SquareState, a), cast(SquareState, b)
        if first.norm == 0 or second.norm == 0:
            return math.nan
        difference = (first.matrix - second.matrix).to(torch.float64)
        if self.norm == "frobenius":
            return float(torch.linalg.vector_norm(difference))
        return float(torch.linalg.eigvalsh(difference).abs().max())


MEASURES = (RSA, RSAKendall, RSMNormDifference)
