"""Euclidean distances between all rows that keep their digits, and ranks that know what rounding cannot tell apart."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.layers import RDM, Given
from repalign.measures.measure import SCRATCH_BYTES
from repalign.measures.numerics.precision import centred, gram, scaled

# |x_i|^2 + |x_j|^2 - 2 x_i . x_j is computed again from the difference below this share of its first two terms.
_CANCELLED = 2.0**-7

# Numbers whose relative difference is below this are tied: rounding may have made it.
TIED = 1e-11


def between_rows(x: Given) -> tuple[Tensor, float]:
    """Squared distances (n, n) of a layer in float64, and the unit of the distances that was divided out.

    Of features Euclidean ones; of an RDM the squares of its dissimilarities, which are taken as distances.
    """
    if isinstance(x, RDM):
        matrix, unit = scaled(x.matrix)
        return matrix.square_(), unit
    assert isinstance(x, Tensor)
    features, unit, *_ = centred(x)
    return squared_distances(features), unit


def squared_distances(features: Tensor) -> Tensor:
    """|x_i - x_j|^2 (n, n) of float64 features whose mean is 0: 0 for equal rows, relative error about 1e-13.

    One matrix product, which is enough for all pairs but those much closer to each other than to the origin; those are
    done by their differences, so that duplicates are at distance 0 and near duplicates keep their order.
    """
    n, d = features.shape
    norms = (features * features).sum(dim=1)
    squared = gram(features)
    near = []
    rows = max(1, SCRATCH_BYTES // (32 * n))
    for start in range(0, n, rows):
        block = slice(start, min(start + rows, n))
        both = norms[block, None] + norms
        some = squared[block].mul_(-2).add_(both)
        i, j = torch.nonzero(some < both.mul_(_CANCELLED), as_tuple=True)
        i += start
        near.append(torch.stack([i[i < j], j[i < j]]))
    squared.fill_diagonal_(0)
    i, j = torch.cat(near, dim=1)
    if len(i) > n * n // 16:
        return by_differences(features, "sqeuclidean")
    pairs = max(1, SCRATCH_BYTES // (32 * d))
    for some_i, some_j in zip(i.split(pairs), j.split(pairs), strict=True):
        exact = (features[some_i] - features[some_j]).square_().sum(dim=1)
        squared[some_i, some_j] = exact
        squared[some_j, some_i] = exact
    return squared


def by_differences(features: Tensor, metric: Literal["sqeuclidean", "cityblock"]) -> Tensor:
    """Distances (n, n) of scipy, pair by pair from the differences, on the device of the features."""
    from scipy.spatial.distance import pdist, squareform

    return torch.from_numpy(squareform(pdist(features.cpu().numpy(), metric))).to(features.device)


class TiedGroups(NamedTuple):
    """Numbers (N,) in ascending order, in groups of tied ones."""

    order: np.ndarray  # (N,) where the numbers stand
    starts: np.ndarray  # (g,) where in the order each group starts

    def sizes(self) -> np.ndarray:
        """How many numbers there are in each group."""
        return np.diff(self.starts, append=len(self.order))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value (g,) per group, given to each of its numbers (N,)."""
        out = np.empty(len(self.order), dtype=values.dtype)
        out[self.order] = np.repeat(values, self.sizes())
        return out

    def labels(self) -> np.ndarray:
        """The number of its group, for every number: ranks without gaps."""
        return self.spread(np.arange(len(self.starts), dtype=np.int32))


def tied_groups(values: np.ndarray) -> TiedGroups:
    """Non-negative values (N,) in order; neighbours that rounding cannot tell apart share a group."""
    order = np.argsort(values)
    ordered = values[order]
    new = np.diff(ordered) > TIED * ordered[1:]
    return TiedGroups(order, np.concatenate([[0], np.flatnonzero(new) + 1]))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..N of non-negative values (N,), tied ones sharing their average."""
    groups = tied_groups(values)
    return groups.spread(groups.starts + (groups.sizes() + 1) / 2)
