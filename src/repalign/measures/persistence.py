"""Unpaired topological summaries of single spaces, and how far two of them are apart: persistence diagrams, IMD.

They do not know which row belongs to which, so they compare models on different data, and say nothing of which items
match.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import ANY_FORM, FEATURES_OR_RDM, Given
from repalign.measures.measure import Measure, State
from repalign.measures.numerics.checks import as_count, check_choice
from repalign.measures.numerics.persistence import bars, distances, length, needs, spanning_tree
from repalign.measures.numerics.search import embed, nearest
from repalign.measures.numerics.summary import Summary
from repalign.measures.topology import check_size

METRICS = ("sliced_wasserstein", "wasserstein", "bottleneck")


@dataclass(frozen=True)
class _Unpaired(Measure):
    """A distance between two summaries."""

    family: ClassVar[str] = "topology"
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"orthogonal", "isotropic_scale", "translation", "permutation"})


@dataclass(frozen=True)
class PersistenceDistance(_Unpaired):
    """Persistence distance: how far apart the persistence diagrams of two point clouds are.

    Each cloud's Euclidean distances over their 0.9 quantile (of all n^2 entries) -> Vietoris-Rips bars (birth, death), the
    finite ones -> a distance between the two diagrams.

    Parameters
    ----------
    homology : 1 (loops) or 0 (components).
    metric : "sliced_wasserstein", the mean over `directions` evenly spaced directions; "wasserstein", the least sum of
        Euclidean distances in a matching of bars with each other and with the diagonal; "bottleneck", the largest
        distance (max norm) in the best matching.
    directions : of sliced_wasserstein; it approaches the integral as they grow.
    max_n : more rows than this are refused rather than sampled.

    Shapes (n1, d1) and (n2, d2); rows need no partner. Range [0, inf); sums of bars grow with n. Invariant to orthogonal
    maps, isotropic scale and translation, and blind to the pairing. Single precision: relative error about 1e-6. nan where
    the 0.9 quantile of the distances is 0. Raises RepalignError without ripser and persim (pip install
    'repalign[topology]'), or above max_n.

    Source: Purvine et al. 2023 (arXiv 2212.00222), with sliced Wasserstein of H0 and H1; Carriere et al. 2017.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((30, 5))
    >>> PersistenceDistance()(x, 1 - 2 * x) < 1e-5
    True
    """

    homology: int = 1
    metric: str = "sliced_wasserstein"
    directions: int = 50
    max_n: int = 2000

    cost: ClassVar[str] = "n^2 d and a persistence computation, about n^3, per layer; bars per pair"
    aliases: ClassVar[tuple[str, ...]] = ("persistence_distance", "sliced_wasserstein_persistence")
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_homology(self)
        check_choice("metric", self.metric, METRICS)
        object.__setattr__(self, "directions", as_count("directions", self.directions))
        object.__setattr__(self, "max_n", as_count("max_n", self.max_n))

    def prepare(self, x: Given) -> Summary:
        """The bars (k, 2); one that is nan where there is no diagram."""
        self.check_n(len(x))
        check_size(self, len(x))
        matrix = distances(x)
        found = np.full((1, 2), np.nan) if matrix is None else bars(matrix.cpu().numpy(), self.homology)
        return Summary(len(x), torch.from_numpy(found))

    def compare(self, a: State, b: State) -> float:
        first, second = (s.values.numpy() for s in cast(tuple[Summary, Summary], (a, b)))
        if np.isnan(first).any() or np.isnan(second).any():
            return math.nan
        return between_diagrams(first, second, self.metric, self.directions)


def between_diagrams(first: np.ndarray, second: np.ndarray, metric: str, directions: int = 50) -> float:
    """The distance between two persistence diagrams, arrays (k, 2) of finite bars (birth, death)."""
    if not len(first) and not len(second):
        return 0.0
    # A bar on the diagonal changes no distance, and spares the empty diagram.
    first, second = (d if len(d) else np.zeros((1, 2)) for d in (first, second))
    persim = needs("persim")
    if metric == "sliced_wasserstein":
        return float(persim.sliced_wasserstein(first, second, M=directions))
    return float(persim.wasserstein(first, second) if metric == "wasserstein" else persim.bottleneck(first, second))


@dataclass(frozen=True)
class TotalPersistenceDifference(_Unpaired):
    """Difference of total persistence: the sums of the lengths of all bars of two point clouds, compared.

    s = |P(X) - P(Y)|, P the sum of death - birth over the finite bars, of distances as in `PersistenceDistance`. For
    components that is the weight of the minimum spanning tree.

    Parameters
    ----------
    homology : 0 (components) or 1 (loops).
    max_n : for loops, more rows than this are refused rather than sampled.

    Shapes (n1, d1) and (n2, d2); rows need no partner. Range [0, inf); it grows with n. Invariant to orthogonal maps,
    isotropic scale and translation, and blind to the pairing. nan where the 0.9 quantile of the distances is 0. Raises
    RepalignError for loops without ripser (pip install 'repalign[topology]') or above max_n.

    Source: Purvine et al. 2023 (arXiv 2212.00222), as a summary; Cohen-Steiner et al. 2010.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((30, 5))
    >>> TotalPersistenceDifference()(x, 1 - 2 * x) < 1e-9
    True
    """

    homology: int = 0
    max_n: int = 2000

    cost: ClassVar[str] = "n^2 d per layer (about n^3 for loops), a subtraction per pair"
    aliases: ClassVar[tuple[str, ...]] = ("total_persistence_difference", "total_persistence")
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    def __post_init__(self) -> None:
        check_homology(self)
        object.__setattr__(self, "max_n", as_count("max_n", self.max_n))

    def prepare(self, x: Given) -> Summary:
        self.check_n(len(x))
        if self.homology == 1:
            check_size(self, len(x))
        found = distances(x)
        if found is None:
            return Summary(len(x), torch.tensor([math.nan], dtype=torch.float64))
        matrix = found.cpu().numpy()
        total = spanning_tree(matrix) if self.homology == 0 else length(bars(matrix))
        return Summary(len(x), torch.tensor([total], dtype=torch.float64))

    def compare(self, a: State, b: State) -> float:
        first, second = cast(tuple[Summary, Summary], (a, b))
        return abs(float(first.values[0]) - float(second.values[0]))


@dataclass(frozen=True)
class IMD(_Unpaired):
    """Intrinsic multi-scale distance (IMD): heat traces of the neighbour graphs of two clouds, at all times.

    s = 1e6 max_t exp(-2 (t + 1/t)) |h_X(t) - h_Y(t)|, with h(t) = (1/n) sum_i exp(-t lambda_i) over the eigenvalues of the
    normalised Laplacian of the graph that joins i and j if either is among the k nearest of the other, at 256 times from
    0.1 to 10, evenly spaced in their logarithm.

    Parameters
    ----------
    k : neighbours per stimulus, by Euclidean distance.

    Shapes (n1, d1) and (n2, d2); rows need no partner. Range [0, inf). Invariant to orthogonal maps, isotropic scale and
    translation, and blind to the pairing. nan for a constant representation. Raises RepalignError unless n > k.

    Source: Tsitsulin et al. 2020 (arXiv 1905.11141). Their code estimates the trace from random vectors, and its noise
    exceeds small values; ours is exact.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((30, 5))
    >>> IMD()(x, 1 - 2 * x) < 1e-6
    True
    """

    k: int = 5

    cost: ClassVar[str] = "n^2 d + n^3 per layer, a comparison of 256 numbers per pair"
    aliases: ClassVar[tuple[str, ...]] = ("imd", "msid")
    takes: ClassVar[frozenset[str]] = ANY_FORM

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", as_count("k", self.k))

    @property
    def min_n(self) -> int:
        return self.k + 1

    def prepare(self, x: Given) -> Summary:
        """The heat trace (256,)."""
        self.check_n(len(x))
        embedded = embed(x, "euclidean")
        if embedded.is_constant:
            return Summary(len(x), torch.full((256,), math.nan, dtype=torch.float64))
        found = nearest(embedded, self.k)
        graph = torch.zeros(len(x), len(x), dtype=torch.float64, device=found.device).scatter_(1, found, 1.0)
        graph = torch.maximum(graph, graph.T)
        root = graph.sum(dim=1).rsqrt()
        laplacian = torch.eye(len(x), dtype=torch.float64, device=found.device) - root[:, None] * graph * root
        eigenvalues = torch.linalg.eigvalsh(laplacian)
        heat = torch.stack([torch.exp(-t * eigenvalues).mean() for t in _times().to(found.device)])
        return Summary(len(x), heat.cpu())

    def compare(self, a: State, b: State) -> float:
        first, second = cast(tuple[Summary, Summary], (a, b))
        times = _times()
        return float((1e6 * torch.exp(-2 * (times + 1 / times)) * (first.values - second.values).abs()).max())


def check_homology(measure: PersistenceDistance | TotalPersistenceDifference) -> None:
    if isinstance(measure.homology, bool) or measure.homology not in (0, 1):
        raise RepalignError("homology is neither 0 nor 1", expected="0 or 1", got=repr(measure.homology))


def _times() -> Tensor:
    return torch.logspace(-1, 1, 256, dtype=torch.float64)


MEASURES = (PersistenceDistance, TotalPersistenceDifference, IMD)
