"""Exact moments of <A, P B P'> over all permutations P, without a single permutation.

With T = sum_ij A_ij B_{pi(i) pi(j)} and r = 1, 2, 3, expand T^r into 2r index slots. Which slots hold equal
indices is a set partition s of the slots; under a uniform pi the indices of B in a pattern of v distinct values
are uniform over all (n)_v = n (n - 1) ... (n - v + 1) choices, so that

    E[T^r] = sum over partitions s of   D_A(s) D_B(s) / (n)_{|s|},

where D_A(s) sums the product of r entries of A over indices that are equal within the blocks of s and distinct
across them. D follows from unrestricted sums by Moebius inversion over coarser partitions, and an unrestricted sum
is that of a small multigraph with r edges, which factorises into row sums, diagonals, elementwise powers and, once,
a triangle (one matrix product). Everything is needed once per layer; a cell of a comparison is then an inner
product of two short vectors. Nothing is assumed of A and B: symmetric or directed, centred or not.

Two things keep it exact and cheap. A dense A is freed of its mean diagonal and mean off-diagonal entry first: what they
contribute to T is the same under every permutation, and without it E[T] is 0, so nothing cancels in the variance and
the skewness even in float32. A graph of few edges stays sparse throughout.

The idea is Mantel's (1967) and Friedman and Rafsky's (1983, Annals of Statistics 11:377); the third moment of
symmetric centred matrices is in Kazi-Aoual et al. (1995, CSDA 20:643). The Pearson type III law for p-values is used by
Zhan et al. (2017, Biometrics 73) for the kernel RV coefficient.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.measures._base import DenseRelation, GraphRelation, Relation
from repalign.measures._numeric import GRAM_BLOCK, full_precision

ORDERS = (1, 2, 3)

Partition = tuple[int, ...]  # block label of every slot, labels in order of first appearance


@dataclass(frozen=True)
class _Shapes:
    """The classes of partitions of one order, and how their distinct-index sums follow from graph sums."""

    vertices: np.ndarray  # (c,) number of blocks of each class
    count: np.ndarray  # (c,) number of partitions in each class
    inversion: np.ndarray  # (c, g) Moebius coefficients
    graphs: tuple[Partition, ...]  # (g,) graphs whose unrestricted sums are needed


def moment_sums(relation: Relation) -> np.ndarray:
    """What one relation contributes to the moments: mean diagonal and off-diagonal entry that were taken off, then
    the distinct-index sums of the rest for orders 1, 2 and 3; a short float64 vector.

    Dense: O(n^2) but for one product, for symmetric relations of a triangle. Graph of k edges per row: O(n k^2).
    Relations of one comparison must be of one kind (dense or graph, symmetric or directed) for their vectors to be
    combined.
    """
    if isinstance(relation, DenseRelation):
        matrix, diagonal, elsewhere = _without_means(relation.matrix)
        sums: _GraphSums = _DenseSums(matrix, relation.symmetric)
    elif isinstance(relation, GraphRelation):
        diagonal = elsewhere = 0.0
        sums = _SparseSums(relation)
    else:
        raise TypeError(f"no moments for {type(relation).__name__}")
    parts = [np.array([diagonal, elsewhere])]
    for order in ORDERS:
        shapes = _shapes(order, relation.symmetric)
        parts.append(shapes.inversion @ np.array([sums.of(g) for g in shapes.graphs]))
    return np.concatenate(parts)


def _without_means(matrix: Tensor) -> tuple[Tensor, float, float]:
    """A - d I - e (J - I), whose diagonal and off-diagonal entries each sum to 0, with d and e."""
    n = len(matrix)
    trace = float(matrix.diagonal().sum(dtype=torch.float64))
    total = float(matrix.sum(dtype=torch.float64))
    diagonal, elsewhere = trace / n, (total - trace) / (n * (n - 1)) if n > 1 else 0.0
    rest = matrix - elsewhere
    rest.diagonal().add_(elsewhere - diagonal)
    return rest, diagonal, elsewhere


def central_moments(
    sums_a: np.ndarray, sums_b: np.ndarray, n: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and skewness of T for all pairs: (la, c), (lb, c) -> three (la, lb) arrays."""
    raw, start = [], 2
    for order in ORDERS:
        shapes = _shapes(order, symmetric)
        stop = start + len(shapes.vertices)
        falling = np.array([math.perm(n, int(v)) for v in shapes.vertices], dtype=float)
        weight = np.where(falling > 0, shapes.count / np.where(falling > 0, falling, 1.0), 0.0)
        raw.append((sums_a[:, start:stop] * weight) @ sums_b[:, start:stop].T)
        start = stop
    fixed = sums_a[:, :2] * [n, n * (n - 1)] @ sums_b[:, :2].T  # the same under every permutation
    mean = raw[0]
    variance = np.maximum(raw[1] - mean**2, 0.0)
    third = raw[2] - 3 * mean * raw[1] + 2 * mean**3
    # A variance that is rounding residue of E[T^2] or of the squares is none: the pairing does not matter.
    varies = variance > 1e-12 * np.maximum(raw[1], mean**2)
    sd = np.sqrt(np.where(varies, variance, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = np.where(varies, third / np.where(varies, sd, 1.0) ** 3, 0.0)
    return fixed + mean, sd, skewness


# --- partitions --------------------------------------------------------------------------------


def _partitions(size: int) -> list[Partition]:
    """All set partitions of `size` slots as restricted growth strings."""
    out: list[Partition] = [()]
    for _ in range(size):
        out = [(*p, label) for p in out for label in range(max(p, default=-1) + 2)]
    return out


def _relabel(labels: tuple[int, ...]) -> Partition:
    first: dict[int, int] = {}
    return tuple(first.setdefault(label, len(first)) for label in labels)


@cache
def _canonical(partition: Partition, symmetric: bool) -> Partition:
    """The smallest relabelling over orders of the edges (and their directions, if A is symmetric)."""
    edges = [partition[i : i + 2] for i in range(0, len(partition), 2)]
    flips = list(itertools.product((1, -1), repeat=len(edges))) if symmetric else [(1,) * len(edges)]
    return min(
        _relabel(tuple(v for e, f in zip(order, flip, strict=True) for v in e[::f]))
        for order in itertools.permutations(edges)
        for flip in flips
    )


@cache
def _shapes(order: int, symmetric: bool) -> _Shapes:
    classes: dict[Partition, int] = defaultdict(int)
    for partition in _partitions(2 * order):
        classes[_canonical(partition, symmetric)] += 1
    graphs = tuple(classes)
    column = {g: i for i, g in enumerate(graphs)}
    inversion = np.zeros((len(graphs), len(graphs)))
    for row, shape in enumerate(graphs):
        blocks = max(shape) + 1
        for merge in _partitions(blocks):
            sizes = np.bincount(merge)
            sign = math.prod((-1) ** (int(m) - 1) * math.factorial(int(m) - 1) for m in sizes)
            quotient = _canonical(_relabel(tuple(merge[b] for b in shape)), symmetric)
            inversion[row, column[quotient]] += sign
    vertices = np.array([max(s) + 1 for s in graphs])
    return _Shapes(vertices, np.array([classes[s] for s in graphs], dtype=float), inversion, graphs)


# --- sums over all indices ---------------------------------------------------------------------


class _GraphSums:
    """Sums over all index values of products of A over the edges of small multigraphs, each computed once.

    How a matrix is stored is the business of two subclasses; `M` stands for their matrices, `V` for vectors over the
    stimuli.
    """

    def __init__(self, matrix: Any, symmetric: bool) -> None:
        self.symmetric = symmetric
        self.products: dict[tuple[int, int], Any] = {(1, 0): matrix}
        self.rows: dict[tuple[int, int], Any] = {}
        self.known: dict[Partition, float] = {}

    def row_sums(self, matrix: Any) -> Any:
        raise NotImplementedError

    def times_vector(self, matrix: Any, vector: Any) -> Any:
        raise NotImplementedError

    def times(self, one: Any, other: Any) -> Any:
        """Entry by entry."""
        raise NotImplementedError

    def triangle(self, cycle: bool) -> float:
        """sum_ijk A_ij A_jk A_ki, or with A_ik for the last edge."""
        raise NotImplementedError

    def of(self, partition: Partition) -> float:
        """The sum for a graph, the product of those of its connected components."""
        edges = [partition[i : i + 2] for i in range(0, len(partition), 2)]
        total = 1.0
        for component in _components(edges):
            labels = _relabel(tuple(v for edge in component for v in edge))
            if labels not in self.known:
                self.known[labels] = self._connected([labels[i : i + 2] for i in range(0, len(labels), 2)])
            total *= self.known[labels]
        return total

    def _row_sums(self, forth: int, back: int) -> Any:
        if self.symmetric:
            forth, back = forth + back, 0
        if (forth, back) not in self.rows:
            self.rows[(forth, back)] = self.row_sums(self._product(forth, back))
        return self.rows[(forth, back)]

    def _product(self, forth: int, back: int) -> Any:
        """Entry by entry A^forth times (A')^back: the edges between two vertices, merged."""
        if self.symmetric:
            forth, back = forth + back, 0
        if forth == 0:
            return self._product(back, 0).T
        if (forth, back) not in self.products:
            one = self.products[(1, 0)]
            rest = self._product(forth, back - 1) if back else self._product(forth - 1, 0)
            self.products[(forth, back)] = self.times(rest, one.T if back else one)
        return self.products[(forth, back)]

    def _connected(self, edges: list[tuple[int, ...]]) -> float:
        """Parallel edges merge, loops become vertex weights, leaves fold into their neighbours; a triangle may stay."""
        weight: dict[int, Any] = {v: None for edge in edges for v in edge}
        between: dict[tuple[int, int], tuple[int, int]] = {}  # vertices: edges forth and back between them

        def times(vertex: int, factor: Any) -> None:
            known = weight[vertex]
            weight[vertex] = factor if known is None else known * factor

        for u, v in dict.fromkeys((min(e), max(e)) for e in edges):
            if u == v:
                times(u, self._product(edges.count((u, u)), 0).diagonal())
            else:
                between[(u, v)] = edges.count((u, v)), edges.count((v, u))
        while between:
            degree = [v for pair in between for v in pair]
            leaf = next((v for v in weight if degree.count(v) == 1), None)
            if leaf is None:  # every vertex starts one edge: a cycle
                return self.triangle(cycle=len({u for u, _ in edges}) == 3)
            pair = next(p for p in between if leaf in p)
            count = between.pop(pair)
            other, toward = (pair[0], count) if leaf == pair[1] else (pair[1], count[::-1])  # from other to leaf
            on_leaf = weight.pop(leaf)
            folded = self._row_sums(*toward) if on_leaf is None else self.times_vector(self._product(*toward), on_leaf)
            times(other, folded)
        (last,) = weight.values()
        return float(last.sum())


class _DenseSums(_GraphSums):
    """Matrices in the dtype of the relation, sums and vectors in float64."""

    def row_sums(self, matrix: Tensor) -> Tensor:
        return matrix.sum(dim=1, dtype=torch.float64)

    def times_vector(self, matrix: Tensor, vector: Tensor) -> Tensor:
        return (matrix @ vector.to(matrix.dtype)).to(torch.float64)

    def times(self, one: Tensor, other: Tensor) -> Tensor:
        return one * other

    def triangle(self, cycle: bool) -> float:
        """By blocks of rows, of A A below the diagonal only where A is symmetric: nothing of A A is kept."""
        a = self.products[(1, 0)]
        total = 0.0
        for start in range(0, len(a), GRAM_BLOCK):
            stop = min(start + GRAM_BLOCK, len(a))
            with full_precision():
                square = a[start:stop] @ (a[:, :stop] if self.symmetric else a)
            third = a[start:stop, : square.shape[1]] if self.symmetric or not cycle else a.T[start:stop]
            square *= third
            if self.symmetric:
                total += 2 * float(square[:, :start].sum(dtype=torch.float64))
                total += float(square[:, start:].sum(dtype=torch.float64))
            else:
                total += float(square.sum(dtype=torch.float64))
        return total


class _SparseSums(_GraphSums):
    """The same for a graph, in float64 by scipy."""

    def __init__(self, relation: GraphRelation) -> None:
        from scipy.sparse import csr_array

        n, k = relation.n, relation.k
        values = np.ones(n * k) if relation.values is None else relation.values.double().cpu().numpy().ravel()
        columns = relation.indices.cpu().numpy().ravel()
        matrix = csr_array((values, columns, np.arange(0, n * k + 1, k)), shape=(n, n))
        super().__init__(matrix, relation.symmetric)

    def row_sums(self, matrix: Any) -> np.ndarray:
        return np.asarray(matrix.sum(axis=1)).ravel()

    def times_vector(self, matrix: Any, vector: np.ndarray) -> np.ndarray:
        return matrix @ vector

    def times(self, one: Any, other: Any) -> Any:
        return one.multiply(other).tocsr()

    def triangle(self, cycle: bool) -> float:
        a = self.products[(1, 0)]
        return float((a @ a).multiply(a.T if cycle else a).sum())


def _components(edges: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    groups: list[list[tuple[int, ...]]] = []
    for edge in edges:
        touching = [g for g in groups if any(set(edge) & set(other) for other in g)]
        merged = [e for g in touching for e in g] + [edge]
        groups = [g for g in groups if g not in touching] + [merged]
    return groups
