"""Representational similarity analysis of dissimilarities that are cut off: between geometry and topology."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.layers import FEATURES_OR_RDM, Given
from repalign.measures.measure import Bilinear, DenseRelation
from repalign.measures.numerics.checks import check_choice, check_flag
from repalign.measures.numerics.distances import average_ranks
from repalign.measures.numerics.rdm import (
    DISSIMILARITIES,
    RDM_INVARIANCES,
    centred_relation,
    dissimilarities,
    square,
    stored,
    upper,
)

_RDM = tuple(DISSIMILARITIES)


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


def _relation(x: Given, dissimilarity: str, transform: Callable[[np.ndarray], np.ndarray]) -> DenseRelation:
    """The transformed dissimilarities of a layer, centred and at unit norm."""
    rdm = dissimilarities(x, dissimilarity)
    if rdm is None:
        return stored(None, x)
    return stored(centred_relation(square(transform(upper(rdm.matrix)), rdm.matrix)), x)


class _TransformedRSA(Bilinear):
    """Pearson correlation of transformed dissimilarities: what the measures of this file share."""

    if TYPE_CHECKING:  # a field of each of them, in its own place
        dissimilarity: str

    @property
    def invariances(self) -> frozenset[str]:
        return RDM_INVARIANCES[self.dissimilarity]

    @property
    def min_n(self) -> int:
        return 3

    def prepare(self, x: Given) -> DenseRelation:
        self.check_n(len(x))
        return _relation(x, self.dissimilarity, self._transform)

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

    lower: float = 0.2
    upper: float = 0.8
    dissimilarity: str = "euclidean"
    ranked: bool = True
    geodesic: bool = False

    family: ClassVar[str] = "rdm"
    cost: ClassVar[str] = "n^2 (d + log n) per layer (geodesic: n^3), n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("topological_rsa", "trsa")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        levels = (self.lower, self.upper)
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in levels)
        if not numbers or not 0 <= self.lower < self.upper <= 1:
            raise RepalignError(
                "the levels of the quantiles are out of order",
                expected="0 <= lower < upper <= 1",
                got=f"lower={self.lower!r}, upper={self.upper!r}",
            )
        object.__setattr__(self, "lower", float(self.lower))
        object.__setattr__(self, "upper", float(self.upper))
        check_choice("dissimilarity", self.dissimilarity, _RDM)
        check_flag("ranked", self.ranked)
        check_flag("geodesic", self.geodesic)

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

    alpha: float = 10.0
    beta: float = 0.5
    dissimilarity: str = "euclidean"

    family: ClassVar[str] = "rdm"
    cost: ClassVar[str] = "n^2 (d + log n) per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("sigmoid_rsa",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        for name, low, high in (("alpha", math.ulp(0), 1e6), ("beta", 0, 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
                raise RepalignError(
                    f"{name} is out of range",
                    expected="0 < alpha <= 1e6" if name == "alpha" else "0 <= beta <= 1",
                    got=repr(value),
                )
            object.__setattr__(self, name, float(value))
        check_choice("dissimilarity", self.dissimilarity, _RDM)

    def _transform(self, values: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        ranks = average_ranks(values)
        low, high = ranks.min(), ranks.max()
        return expit(self.alpha * ((ranks - low) / (high - low) - self.beta)) if high > low else np.zeros(len(ranks))


MEASURES = (TopologicalRSA, SigmoidRSA)
