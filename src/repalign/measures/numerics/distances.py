"""Euclidean distances between all rows that keep their digits, and ranks that know what rounding cannot tell apart.

Representational dissimilarity matrices of one layer: which there are, what leaves them alone, and their upper triangle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.layers import RDM, Given
from repalign.measures.measure import ISOMETRIES, DenseRelation
from repalign.measures.numerics.precision import CACHED_BYTES, RESIDUE, gram, layer_of
from repalign.measures.numerics.rows import SCRATCH_BYTES, blocks, centred, is_constant, scaled, unit_rows

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


def float32_between_rows(x: Tensor) -> tuple[Tensor, float, float]:
    """As `between_rows`, from the products of the layer in float32; and the largest square of a centred row.

    The error is some roundings of the squares of the rows, however close they are to each other.
    """
    layer = layer_of(x)
    squared = layer.gram
    norms = squared.diagonal().clone()
    squared.mul_(-2).add_(norms).add_(norms[:, None]).clamp_(min=0).fill_diagonal_(0)
    return squared, layer.products.unit, float(norms.max())


def squared_distances(features: Tensor) -> Tensor:
    """|x_i - x_j|^2 (n, n) of float64 features whose mean is 0: 0 for equal rows, relative error about 1e-13.

    One matrix product, which is enough for all pairs but those much closer to each other than to the origin; those are
    done by their differences, so that duplicates are at distance 0 and near duplicates keep their order.
    """
    n, d = features.shape
    squared = gram(features)
    norms = squared.diagonal().clone()
    for block in blocks(n, 8 * n, CACHED_BYTES):
        torch.add(norms[block, None] + norms, squared[block], alpha=-2, out=squared[block])  # the sum first: symmetric
    squared.fill_diagonal_(math.inf)
    near = []
    for block in blocks(n, 32 * n):
        if float(squared[block].min()) < 2 * _CANCELLED * float(norms.max()):  # one pass, which finds none as a rule
            i, j = torch.nonzero(squared[block] < _CANCELLED * (norms[block, None] + norms), as_tuple=True)
            i += block.start
            near.append(torch.stack([i[i < j], j[i < j]]))
    squared.fill_diagonal_(0)
    i, j = torch.cat(near, dim=1) if near else torch.empty(2, 0, dtype=torch.int64)
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


def dense_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on without gaps, (N,) int32, of non-negative values; those that rounding cannot tell apart share theirs."""
    order = np.argsort(values)
    ordered = values[order]
    out = np.zeros(len(values), dtype=np.int32)
    out[order[1:]] = np.cumsum(np.diff(ordered) > TIED * ordered[1:])
    return out


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..N of non-negative values (N,), tied ones sharing their average."""
    ranks = dense_ranks(values)
    sizes = np.bincount(ranks)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[ranks]


class Dissimilarities(NamedTuple):
    """Dissimilarities (n, n) in float64, symmetric with zero diagonal, and the unit that was divided out."""

    matrix: Tensor
    unit: float


def _sqeuclidean(x: Tensor) -> Dissimilarities:
    squared, unit = between_rows(x)
    return Dissimilarities(squared, unit * unit)


def _euclidean(x: Tensor) -> Dissimilarities:
    squared, unit = between_rows(x)
    return Dissimilarities(squared.sqrt_(), unit)


def _cityblock(x: Tensor) -> Dissimilarities:
    features, unit, *_ = centred(x)
    return Dissimilarities(by_differences(features, "cityblock"), unit)


def _gaussian(x: Tensor) -> Dissimilarities:
    squared = _sqeuclidean(x).matrix
    mean = float(squared.mean())
    return Dissimilarities(squared if mean == 0 else squared.div_(-mean).expm1_().neg_(), 1.0)


def _mahalanobis(x: Tensor) -> Dissimilarities:
    """Distances between the rows of an orthonormal basis of the centred features, sqrt(n - 1) long."""
    features, *_ = centred(x)
    narrow = features if features.shape[1] <= len(features) else torch.linalg.qr(features.T, mode="r").R.T
    vectors, values, _ = torch.linalg.svd(narrow, full_matrices=False)
    kept = values > max(x.shape) * torch.finfo(x.dtype).eps * values[0]
    squared = squared_distances(vectors[:, kept]).mul_(len(x) - 1)
    # Whitening magnifies rounding as it does the least variance: equal rows are no further apart than this.
    rounding = 64 * torch.finfo(torch.float64).eps * float(values[0] / values[kept][-1])
    squared[squared < rounding**2] = 0
    return Dissimilarities(squared.sqrt_(), 1.0)


# Squared distances of unit rows below this are those of equal directions.
_PARALLEL = (32 * torch.finfo(torch.float64).eps) ** 2


def _of_directions(x: Tensor) -> Tensor:
    """1 - cos of all rows; a zero row has the cosine 0 with every other."""
    rows = unit_rows(x)
    zero = ~rows.any(dim=1)
    features, unit, *_ = centred(rows)
    squared = squared_distances(features).mul_(unit * unit / 2)
    torch.nn.functional.threshold_(squared, _PARALLEL / 2, 0)
    squared[zero] = 1
    squared[:, zero] = 1
    return squared.fill_diagonal_(0)


def _cosine(x: Tensor) -> Dissimilarities:
    return Dissimilarities(_of_directions(x), 1.0)


def _correlation(x: Tensor) -> Dissimilarities:
    """1 - cos of the rows without their means, which are taken after the first entry: a constant row becomes exactly 0."""
    wide = x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)
    rows = wide - wide[:, :1]
    return Dissimilarities(_of_directions(rows - rows.mean(dim=1, keepdim=True)), 1.0)


DISSIMILARITIES: dict[str, Callable[[Tensor], Dissimilarities]] = {
    "euclidean": _euclidean,
    "sqeuclidean": _sqeuclidean,
    "cosine": _cosine,
    "correlation": _correlation,
    "cityblock": _cityblock,
    "gaussian": _gaussian,
    "mahalanobis": _mahalanobis,
}

# What does not change a dissimilarity, up to one factor for all pairs.
_SCALED = ISOMETRIES | {"isotropic_scale"}
RDM_INVARIANCES: dict[str, frozenset[str]] = {
    "euclidean": _SCALED,
    "sqeuclidean": _SCALED,
    "gaussian": _SCALED,
    "cityblock": frozenset({"translation", "isotropic_scale", "permutation"}),
    "cosine": frozenset({"orthogonal", "row_scale", "isotropic_scale", "permutation"}),
    "correlation": frozenset({"row_scale", "row_shift", "isotropic_scale", "permutation"}),
    "mahalanobis": _SCALED | {"column_scale", "invertible"},
}
# Those with the unit of the features.
WITH_UNIT = frozenset({"euclidean", "sqeuclidean", "cityblock"})


def dissimilarities(x: Given, name: str) -> Dissimilarities | None:
    """The RDM of a layer; None for a constant representation, whose stimuli have no geometry.

    `name` says how features become dissimilarities; a layer that is given as an RDM has its own.
    """
    if isinstance(x, RDM):
        return None if x.is_constant else Dissimilarities(*scaled(x.matrix))
    assert isinstance(x, Tensor)
    return None if is_constant(x) else DISSIMILARITIES[name](x)


def upper(matrix: Tensor) -> np.ndarray:
    """The n (n - 1) / 2 entries above the diagonal, row by row."""
    from scipy.spatial.distance import squareform

    return squareform(matrix.cpu().numpy(), checks=False)


def square(values: np.ndarray, like: Tensor) -> Tensor:
    """The symmetric matrix with these entries above the diagonal, and a zero diagonal; on the device of `like`."""
    from scipy.spatial.distance import squareform

    return torch.from_numpy(squareform(values, checks=False)).to(like.device)


def rounding_of(dissimilarities: Tensor) -> float:
    """What is left of their norm where all are tied, at most."""
    return max(TIED, RESIDUE * torch.finfo(dissimilarities.dtype).eps) * float(torch.linalg.vector_norm(dissimilarities))


def centred_relation(matrix: Tensor) -> DenseRelation:
    """The entries off the diagonal without their mean, at unit norm: the inner product of two is a Pearson correlation.

    Entries that all are tied, as those of equidistant stimuli, have no correlation: the relation vanishes. The matrix is
    changed.
    """
    n, floor = len(matrix), rounding_of(matrix)
    return DenseRelation.of(matrix.sub_(matrix.sum() / (n * (n - 1))).fill_diagonal_(0), floor=floor)


def stored(relation: DenseRelation | None, x: Given) -> DenseRelation:
    """A relation in the precision of its layer; one that vanishes for None."""
    if relation is None:
        return DenseRelation(torch.zeros(len(x), len(x), dtype=x.dtype, device=x.device), 0.0)
    return replace(relation, matrix=relation.matrix.to(x.dtype))
