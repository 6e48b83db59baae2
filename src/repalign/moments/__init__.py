"""Exact moments of <A, P B P'> over all permutations P, without a single permutation.

With T = sum_ij A_ij B_{pi(i) pi(j)} and r = 1, 2, 3, 4, expand T^r into 2r index slots. Which slots hold equal
indices is a set partition s of the slots; under a uniform pi the indices of B in a pattern of v distinct values
are uniform over all (n)_v = n (n - 1) ... (n - v + 1) choices, so that

    E[T^r] = sum over partitions s of   D_A(s) D_B(s) / (n)_{|s|},

where D_A(s) sums the product of r entries of A over indices that are equal within the blocks of s and distinct
across them. D follows from unrestricted sums by Moebius inversion over coarser partitions, and an unrestricted sum
is that of a small multigraph with r edges (`graphs`), which factorises into row sums, diagonals, elementwise powers and
cycles of three or four, for which one matrix product A A is enough (`sums`). Everything is needed once per layer; a cell
of a comparison is then an inner product of two short vectors. Nothing is assumed of A and B: symmetric or directed,
centred or not.

Two things keep it exact and cheap. A dense A is freed of its mean diagonal and mean off-diagonal entry first: what they
contribute to T is the same under every permutation, and without it E[T] is 0, so nothing cancels in the higher moments
even in float32. A graph of few edges stays sparse throughout.

The idea is Mantel's (1967) and Friedman and Rafsky's (1983, Annals of Statistics 11:377); the third moment of
symmetric centred matrices is in Kazi-Aoual et al. (1995, CSDA 20:643). The Pearson type III law for p-values is used by
Zhan et al. (2017, Biometrics 73) for the kernel RV coefficient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.measures.measure import DenseRelation, GraphRelation, Relation
from repalign.moments.graphs import ORDERS, shapes
from repalign.moments.leverage import InPlace, in_place
from repalign.moments.sums import DenseSums, GraphSums, SparseSums

__all__ = ["InPlace", "Moments", "central_moments", "four_moments", "in_place", "moment_sums", "sums_and_leverage"]


def moment_sums(relation: Relation) -> np.ndarray:
    """The first part of `sums_and_leverage`: all that `four_moments` needs."""
    return sums_and_leverage(relation)[0]


def sums_and_leverage(relation: Relation) -> tuple[np.ndarray, np.ndarray]:
    """What one relation contributes to the moments: mean diagonal and off-diagonal entry that were taken off, two numbers
    about the spectrum, then the distinct-index sums of the rest for orders 1 to 4; a short float64 vector.

    Dense: O(n^2) but for one product, for symmetric relations of a triangle. Graph of k edges per row: O(n k^2).
    Relations of one comparison must be of one kind (dense or graph, symmetric or directed) for their vectors to be
    combined. The second array says how far every stimulus is out, (5, n): `in_place` needs it.
    """
    if isinstance(relation, DenseRelation):
        matrix, rows, diagonal, elsewhere = _without_means(relation.matrix)
        sums: GraphSums = DenseSums(matrix, relation.symmetric, rows)
    elif isinstance(relation, GraphRelation):
        diagonal = elsewhere = 0.0
        sums = _of_graph(relation)
    else:
        raise TypeError(f"no moments for {type(relation).__name__}")
    parts = [np.array([diagonal, elsewhere, *sums.spectrum()])]
    for order in ORDERS:
        found = shapes(order, relation.symmetric)
        parts.append(found.inversion @ sums.all_of(order))
    return np.concatenate(parts), sums.leverage()


# With more than one of this many pairs an edge, products of lists of edges cost more than those of whole matrices.
SPARSE = 5


def _of_graph(relation: GraphRelation) -> GraphSums:
    if SPARSE * relation.k <= relation.n:
        return SparseSums(relation)
    matrix = relation.dense().double()  # sums over distinct indices are differences of large counts
    return DenseSums(matrix, relation.symmetric, matrix.sum(dim=1, dtype=torch.float64))


def _without_means(matrix: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """A - d I - e (J - I), whose diagonal and off-diagonal entries each sum to 0, with its row sums, d and e."""
    n = len(matrix)
    rows = matrix.sum(dim=1, dtype=torch.float64)
    trace = float(matrix.diagonal().sum(dtype=torch.float64))
    total = float(rows.sum())
    diagonal, elsewhere = trace / n, (total - trace) / (n * (n - 1)) if n > 1 else 0.0
    rest = matrix - elsewhere
    rest.diagonal().add_(elsewhere - diagonal)
    return rest, rows - diagonal - (n - 1) * elsewhere, diagonal, elsewhere


class Moments(NamedTuple):
    """Of <A, P B P'> over all P, for all pairs, (la, lb) each."""

    mean: np.ndarray
    sd: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray  # E[(T - mean)^4] / sd^4 - 3: 0 for a normal law, 1.5 skewness^2 for a Pearson type III
    of_spectra: np.ndarray  # the kurtosis that would be if eigenvectors were in general position


def four_moments(sums_a: np.ndarray, sums_b: np.ndarray, n: int, symmetric: bool) -> Moments:
    """The moments of T for all pairs from the sums of both sides, (la, c) and (lb, c).

    `of_spectra` has a random rotation R of the space without the mean in the place of P: for doubly centred A, B of trace 0
    the fourth cumulant of <A, R B R'> is, to leading order, 12 c_A c_B var^2 with c = tr A^4 / (tr A^2)^2 - 2 / n. Row
    means add to the variance of T and nothing to it. What the true kurtosis has beyond comes from single stimuli: an outlier
    that meets an outlier.
    """
    raw, start = [], 4
    for order in ORDERS:
        found = shapes(order, symmetric)
        stop = start + len(found.vertices)
        falling = np.array([math.perm(n, int(v)) for v in found.vertices], dtype=float)
        weight = np.where(falling > 0, found.count / np.where(falling > 0, falling, 1.0), 0.0)
        raw.append((sums_a[:, start:stop] * weight) @ sums_b[:, start:stop].T)
        start = stop
    fixed = sums_a[:, :2] * [n, n * (n - 1)] @ sums_b[:, :2].T  # the same under every permutation
    mean = raw[0]
    variance = np.maximum(raw[1] - mean**2, 0.0)
    third = raw[2] - 3 * mean * raw[1] + 2 * mean**3
    fourth = raw[3] - 4 * mean * raw[2] + 6 * mean**2 * raw[1] - 3 * mean**4
    # A variance that is rounding residue of E[T^2] or of the squares is none: the pairing does not matter.
    varies = variance > 1e-12 * np.maximum(raw[1], mean**2)
    sd = np.sqrt(np.where(varies, variance, 0.0))
    unit = np.where(varies, sd, 1.0)
    skewness, kurtosis = np.where(varies, third / unit**3, 0.0), np.where(varies, fourth / unit**4 - 3, 0.0)
    rotated = 2 * np.outer(sums_a[:, 3], sums_b[:, 3]) / max(1, (n - 2) * (n + 1)) / unit**2  # share of the variance
    of_spectra = 12 * np.outer(sums_a[:, 2], sums_b[:, 2]) * np.minimum(rotated, 1.0) ** 2
    return Moments(fixed + mean, sd, skewness, kurtosis, of_spectra)


def central_moments(
    sums_a: np.ndarray, sums_b: np.ndarray, n: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and skewness of T for all pairs: (la, c), (lb, c) -> three (la, lb) arrays."""
    return four_moments(sums_a, sums_b, n, symmetric)[:3]
