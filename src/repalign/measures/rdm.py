"""Representational similarity analysis: two representations by the dissimilarities of their stimuli.

`TopologicalRSA` and `SigmoidRSA` cut dissimilarities off, between geometry and topology.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import FEATURES_OR_RDM, Given
from repalign.measures.measure import (
    Bilinear,
    DenseRelation,
    Measure,
    SquareState,
    as_number,
    as_share,
    check_flag,
    parameter,
)
from repalign.measures.numerics.distances import (
    DISSIMILARITIES,
    RDM_INVARIANCES,
    WITH_UNIT,
    average_ranks,
    centred_relation,
    dense_ranks,
    dissimilarities,
    float32_between_rows,
    rounding_of,
    square,
    stored,
    upper,
)
from repalign.measures.numerics.precision import double_centre
from repalign.measures.numerics.rows import is_constant

_RDM = tuple(DISSIMILARITIES)


def _spearman(matrix: Tensor) -> DenseRelation:
    return centred_relation(square(average_ranks(upper(matrix)), matrix))


def _rho_a(matrix: Tensor) -> DenseRelation:
    """Ranks at the norm that they would have without ties; every pair of stimuli is there twice."""
    values = upper(matrix)
    pairs = len(values)
    ranks = square(average_ranks(values) - (pairs + 1) / 2, matrix)
    return DenseRelation(ranks * math.sqrt(6 / (pairs**3 - pairs)), float(ranks.any()))


def _whitened_cosine(matrix: Tensor) -> DenseRelation:
    floor = rounding_of(matrix)
    double_centre(matrix)
    return DenseRelation.of(matrix, floor=floor)


def _whitened_pearson(matrix: Tensor) -> DenseRelation:
    n = len(matrix)
    floor = rounding_of(matrix)
    matrix.sub_(matrix.sum() / (n * (n - 1))).fill_diagonal_(0)
    double_centre(matrix)
    return DenseRelation.of(matrix, floor=floor)


# From an RDM, which may be changed, to a relation whose inner product with another is the score.
COMPARISONS: dict[str, Callable[[Tensor], DenseRelation]] = {
    "pearson": centred_relation,
    "spearman": _spearman,
    "rho_a": _rho_a,
    "cosine": DenseRelation.of,
    "whitened_cosine": _whitened_cosine,
    "whitened_pearson": _whitened_pearson,
}
_OF_RANKS = frozenset({"spearman", "rho_a"})
# Sums of products of dissimilarities, or of matrices without negative eigenvalues.
_NOT_NEGATIVE = frozenset({"cosine", "whitened_cosine"})


class _OfDissimilarities(Measure):
    """A measure of the dissimilarities of all pairs of stimuli; a layer that is given as an `RDM` has its own."""

    family: ClassVar[str] = "rdm"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM
    smallest_n: ClassVar[int] = 3
    dissimilarity: str

    @property
    def invariances(self) -> frozenset[str]:
        return RDM_INVARIANCES[self.dissimilarity]


@dataclass(frozen=True)
class RSA(_OfDissimilarities, Bilinear):
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

    dissimilarity: str = parameter("correlation", choose, _RDM)
    comparison: str = parameter("spearman", choose, tuple(COMPARISONS))

    cost: ClassVar[str] = "n^2 d per layer (ranks: and n^2 log n), n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("rsa",)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.comparison in _NOT_NEGATIVE else self.bounds

    @property
    def min_n(self) -> int:
        return 2 if self.comparison in _NOT_NEGATIVE else 3

    def prepare(self, x: Given) -> DenseRelation:
        of_squares = self.dissimilarity == "sqeuclidean" and self.comparison not in _OF_RANKS
        if of_squares and isinstance(x, Tensor) and x.dtype == torch.float32 and not is_constant(x):
            # Sums over squared distances need no more digits than those have: no order of near ones counts, and no root is taken.
            return COMPARISONS[self.comparison](float32_between_rows(x)[0])
        rdm = dissimilarities(x, self.dissimilarity)
        return stored(None if rdm is None else COMPARISONS[self.comparison](rdm.matrix), x)


TAUS = ("a", "b")


@dataclass(frozen=True)
class RSAKendall(_OfDissimilarities):
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

    dissimilarity: str = parameter("correlation", choose, _RDM)
    tau: str = parameter("a", choose, TAUS)

    cost: ClassVar[str] = "n^2 (d + log n) per layer, n^2 log n per pair"
    aliases: ClassVar[tuple[str, ...]] = ("rsa_kendall", "rsa_tau")

    def prepare(self, x: Given) -> SquareState:
        """Ranks without gaps; `norm` is the share of pairs of dissimilarities that are not tied."""
        rdm = dissimilarities(x, self.dissimilarity)
        if rdm is None:
            return SquareState(torch.zeros(len(x), len(x), dtype=torch.int32, device=x.device), 0.0)
        values = upper(rdm.matrix)
        ranks = dense_ranks(values)
        sizes = np.bincount(ranks).astype(float)
        tied = (sizes * (sizes - 1)).sum() / (len(values) * (len(values) - 1))
        return SquareState(square(ranks, rdm.matrix), float(1 - tied))

    def compare(self, a: SquareState, b: SquareState) -> float:
        from scipy.stats import kendalltau

        if a.norm == 0 or b.norm == 0:
            return math.nan
        first, second = upper(a.matrix), upper(b.matrix)
        order = torch.from_numpy(second).argsort().numpy()  # by digits, as whole numbers are: the sort there then has little to do
        found: Any = kendalltau(first[order], second[order], method="asymptotic")
        tau_b = float(found.statistic)
        return tau_b * math.sqrt(a.norm * b.norm) if self.tau == "a" else tau_b


NORMS = ("spectral", "frobenius")


@dataclass(frozen=True)
class RSMNormDifference(_OfDissimilarities):
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

    dissimilarity: str = parameter("euclidean", choose, _RDM)
    norm: str = parameter("spectral", choose, NORMS)

    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair (spectral: n^3)"
    aliases: ClassVar[tuple[str, ...]] = ("rsm_norm_difference", "rsm_norm")
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)
    smallest_n: ClassVar[int] = 2

    @property
    def invariances(self) -> frozenset[str]:
        return super().invariances - ({"isotropic_scale"} if self.dissimilarity in WITH_UNIT else frozenset())

    def prepare(self, x: Given) -> SquareState:
        rdm = dissimilarities(x, self.dissimilarity)
        if rdm is None:
            return SquareState(torch.zeros(len(x), len(x), dtype=x.dtype, device=x.device), 0.0)
        return SquareState((rdm.matrix * rdm.unit).to(x.dtype))

    def compare(self, a: SquareState, b: SquareState) -> float:
        if a.norm == 0 or b.norm == 0:
            return math.nan
        difference = (a.matrix - b.matrix).to(torch.float64)
        if self.norm == "frobenius":
            return float(torch.linalg.vector_norm(difference))
        return float(torch.linalg.eigvalsh(difference).abs().max())


def geo_topological_transform(
    values: np.ndarray, lower: float = 0.2, upper: float = 0.8, ranked: bool = True
) -> np.ndarray:
    """Dissimilarities (N,) cut off below and above: 0 up to the quantile q_l, 1 from q_u, linear between.

    clip((v - q_l) / (q_u - q_l), 0, 1), with v the ranks of the values (tied ones at their average) or, with
    ranked=False, the values themselves, and q_l, q_u the quantiles of v at `lower` and `upper` (linear interpolation).
    All 0 where ties make both quantiles the same number.

    >>> [round(float(v), 6) for v in geo_topological_transform(np.array([1.0, 2, 3, 4, 5, 100]), 0.25, 0.75)]
    [0.0, 0.0, 0.3, 0.7, 1.0, 1.0]
    """
    values = average_ranks(values) if ranked else np.asarray(values, dtype=float)
    low, high = np.quantile(values, [lower, upper])
    if not high > low:
        return np.zeros(len(values))
    return np.clip((values - low) / (high - low), 0, 1)


def geodesic_distances(lengths: np.ndarray) -> np.ndarray:
    """Shortest paths (n, n) along all edges of length below 1; edges of length 0 are edges.

    Stimuli that no path joins are as far apart as the longest shortest path and one of the cut edges, of length 1.
    """
    from scipy.sparse.csgraph import csgraph_from_dense, shortest_path

    edges = np.where(lengths < 1, lengths, np.inf)
    np.fill_diagonal(edges, np.inf)
    # Through a sparse graph, in which a stored 0 is an edge of length 0; in a dense one it would be none.
    found = shortest_path(csgraph_from_dense(edges, null_value=np.inf), directed=False)
    reached = np.isfinite(found)
    return np.where(reached, found, found[reached].max() + 1)


class _TransformedRSA(_OfDissimilarities, Bilinear):
    """Pearson correlation of transformed dissimilarities."""

    def prepare(self, x: Given) -> DenseRelation:
        rdm = dissimilarities(x, self.dissimilarity)
        if rdm is None:
            return stored(None, x)
        return stored(centred_relation(square(self._transform(upper(rdm.matrix)), rdm.matrix)), x)

    @abstractmethod
    def _transform(self, values: np.ndarray) -> np.ndarray:
        """Dissimilarities (n (n - 1) / 2,) as they are compared."""


@dataclass(frozen=True)
class TopologicalRSA(_TransformedRSA):
    """Topological RSA: correlation of dissimilarities that are cut off below and above.

    s = Pearson correlation of t(v(X)) and t(v(Y)), with v the n (n - 1) / 2 dissimilarities and
    t(r) = clip((r - q_l) / (q_u - q_l), 0, 1) of their ranks r, q the quantiles of the ranks. What is below q_l counts as
    the same, what is above q_u as different, however much.

    Parameters
    ----------
    lower, upper : the levels l < u of the two quantiles, in [0, 1]. With (0, 1) it is Spearman's `RSA`; u - l above .8
        is sensitive to geometry, both near .5 to topology. Do not choose them on the data that are reported.
    dissimilarity : as in `RSA`, an `RDM` has its own; "euclidean" by default.
    ranked : take ranks first (default), as the released code does; False thresholds the dissimilarities themselves at
        their own quantiles, as the paper's text does.
    geodesic : shortest paths along the pairs below the upper threshold take the place of the transformed dissimilarities.
        With lower=0 these are the paths of the representational geodesic distance matrix.

    Shapes (n, d1) and (n, d2). Range [-1, 1]. Invariances, ties and constant rows as in `RSA`. With geodesic, stimuli that
    no path joins are one cut edge (1) further apart than the farthest that one does. nan for a constant representation,
    and where ties make both quantiles the same. Raises RepalignError if n < 3.

    Source: Lin & Kriegeskorte 2023 (arXiv 2309.11028); order of operations of the released code. Its geodesics, and those
    of rsatoolbox, come from a graph library that takes an edge of length 0 for none, so that the closest pairs are lost;
    rsatoolbox pools the quantiles over all RDMs at hand.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, y, noise = (rng.normal(size=(20, 5)) for _ in range(3))
    >>> round(TopologicalRSA()(x, x + 0.3 * noise), 6)
    0.85926
    """

    lower: float = parameter(0.2, as_share)
    upper: float = parameter(0.8, as_share)
    dissimilarity: str = parameter("euclidean", choose, _RDM)
    ranked: bool = parameter(True, check_flag)
    geodesic: bool = parameter(False, check_flag)

    cost: ClassVar[str] = "n^2 (d + log n) per layer (geodesic: n^3), n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("topological_rsa", "trsa")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lower < self.upper:
            got = f"lower={self.lower!r}, upper={self.upper!r}"
            raise RepalignError("the levels of the quantiles are out of order", expected="0 <= lower < upper <= 1", got=got)

    def _transform(self, values: np.ndarray) -> np.ndarray:
        cut = geo_topological_transform(values, self.lower, self.upper, self.ranked)
        if not self.geodesic or not cut.any():
            return cut
        return upper(torch.from_numpy(geodesic_distances(square(cut, torch.empty(0)).numpy())))


@dataclass(frozen=True)
class SigmoidRSA(_TransformedRSA):
    """Representational similarity analysis of dissimilarities through a soft threshold.

    s = Pearson correlation of t(v(X)) and t(v(Y)), with t(r) = 1 / (1 + exp(-alpha (r - beta))) of the ranks r of the
    dissimilarities (tied ones at their average), brought to [0, 1].

    Parameters
    ----------
    alpha : steepness, > 0; 10 by default. Small, it is Spearman's `RSA`; large, `TopologicalRSA` with both levels at beta.
    beta : where the threshold lies, in [0, 1]; 0.5 by default.
    dissimilarity : as in `RSA`; "euclidean" by default.

    Shapes, range, invariances, ties and undefined scores as in `RSA`. Raises RepalignError if n < 3.

    Source: the sigmoid variant in the released code of Lin & Kriegeskorte 2023 (arXiv 2309.11028).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((20, 5))
    >>> round(SigmoidRSA()(x, 3 * x), 12)
    1.0
    """

    alpha: float = parameter(10.0, as_number, lambda v: 0 < v <= 1e6, "is out of range", "0 < alpha <= 1e6")
    beta: float = parameter(0.5, as_number, lambda v: 0 <= v <= 1, "is out of range", "0 <= beta <= 1")
    dissimilarity: str = parameter("euclidean", choose, _RDM)

    cost: ClassVar[str] = "n^2 (d + log n) per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("sigmoid_rsa",)

    def _transform(self, values: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        ranks = average_ranks(values)
        low, high = ranks.min(), ranks.max()
        return expit(self.alpha * ((ranks - low) / (high - low) - self.beta)) if high > low else np.zeros(len(ranks))
