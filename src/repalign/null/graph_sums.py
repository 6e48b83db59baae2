"""Exact moments of <A, P B P'> over all permutations P, without a single permutation.

With T = sum_ij A_ij B_{pi(i) pi(j)} and r = 1, 2, 3, 4, expand T^r into 2r index slots. Which slots hold equal
indices is a set partition s of the slots; under a uniform pi the indices of B in a pattern of v distinct values
are uniform over all (n)_v = n (n - 1) ... (n - v + 1) choices, so that

    E[T^r] = sum over partitions s of   D_A(s) D_B(s) / (n)_{|s|},

where D_A(s) sums the product of r entries of A over indices that are equal within the blocks of s and distinct
across them. D follows from unrestricted sums by Moebius inversion over coarser partitions, and an unrestricted sum
is that of a small multigraph with r edges: the product of the sums of its connected parts (`connected_sums`). Which
partitions are one multigraph, what its parts are and how D follows is in graphs.npz, which tests/graph_table.py
derives and the tests derive anew. Everything is needed once per layer; a cell of a comparison is then an inner
product of two short vectors. Nothing is assumed of A and B: symmetric or directed, centred or not.

Two things keep it exact and cheap. A dense A is freed of its mean diagonal and mean off-diagonal entry first: what they
contribute to T is the same under every permutation, and without it E[T] is 0, so nothing cancels in the higher moments
even in float32. A graph of few edges stays sparse throughout.

The idea is Mantel's (1967) and Friedman and Rafsky's (1983, Annals of Statistics 11:377); the third moment of
symmetric centred matrices is in Kazi-Aoual et al. (1995, CSDA 20:643). The Pearson type III law for p-values is used by
Zhan et al. (2017, Biometrics 73) for the kernel RV coefficient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.measures.measure import DenseRelation, GraphRelation, Relation
from repalign.measures.numerics.precision import full_precision, gram, triangle
from repalign.measures.numerics.rows import empty, row_dots

ORDERS = (1, 2, 3, 4)

# With more than one of this many pairs an edge, products of lists of edges cost more than those of whole matrices.
SPARSE = 5
# Cycles of a graph are counted in a table of a block of its rows, of about this many entries.
CYCLE_ENTRIES = 2**20
# The table is cleared as a whole where more than one of this many entries was written.
FEW = 64
# So many of the heaviest stimuli of either relation are tried: one may be far out in both and the farthest in neither.
HEAVIEST = 4

# --- the sums of connected graphs of up to four edges ----------------------------------------------

Edges = tuple[int, int]  # how many edges lead forth and back between two vertices: A_ij^forth A_ji^back
FORTH, BACK, BOTH = (1, 0), (0, 1), (1, 1)

# Triangles and cycles of four of a directed relation, by ways of two edges from a first to a third vertex. No way leads
# through a vertex where both edges end: hubs would make it a product of many entries.
ON, OUT, AGAIN = (FORTH, FORTH), (BACK, FORTH), (BACK, BACK)
TRIANGLES = ((ON, FORTH), (ON, BACK), (OUT, FORTH), (OUT, BACK))  # a way, and the edges that lead from first to third
DOUBLED = (  # the same with one of their edges doubled
    *((ON, (2, 0)), (ON, BOTH), (ON, (0, 2)), (OUT, (0, 2)), (OUT, BOTH)),
    *(((BOTH, FORTH), FORTH), (((2, 0), FORTH), FORTH)),
)
SQUARES = ((ON, ON), (ON, OUT), (OUT, OUT), (ON, AGAIN))  # two ways
WAYS = {*(way for way, _ in (*TRIANGLES, *DOUBLED)), *(way for ways in SQUARES for way in ways)}


class Stored(ABC):
    """A relation as `connected_sums` asks for it; all vectors are float64."""

    symmetric: bool
    powers: dict[Edges, Any]
    sums: dict[Edges, np.ndarray]  # of the rows
    diagonal: np.ndarray
    means: tuple[float, float] = (0.0, 0.0)  # of the diagonal and elsewhere, where they were taken off

    def power(self, edges: Edges) -> Any:
        """Entry by entry A^forth times (A')^back."""
        if edges not in self.powers:
            forth, back = edges
            one, other = ((forth, 0), (0, back)) if back else ((forth - 1, 0), FORTH)
            found = self.power(one) * self.power(other) if forth else self.power((back, 0)).T
            self.powers[edges] = found if isinstance(found, Tensor) else found.tocsr()
        return self.powers[edges]

    @abstractmethod
    def rows(self, edges: Edges) -> np.ndarray:
        """sum_j A_ij^forth A_ji^back."""

    @abstractmethod
    def times(self, edges: Edges, vectors: list[np.ndarray]) -> Iterable[np.ndarray]:
        """sum_j A_ij^forth A_ji^back v_j of each; two edges at most."""

    @abstractmethod
    def cycles(self) -> tuple[list[np.ndarray], list[float]]:
        """For every vertex the triangles that start there, one vector for each of TRIANGLES, and the numbers of DOUBLED and
        SQUARES; of a symmetric relation the one kind of each."""


def connected_sums(stored: Stored, edges: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Sums of products of A along the edges of all connected graphs of up to four edges, over all values of the indices.

    A tree of four edges, loops counted as leaves, has a vertex at which it falls into two halves of two edges at most: its
    sum is an inner product of two of few vectors over that vertex. The exceptions have an edge of two, three or four
    parallel ones in their midst, or a cycle. Also returned are the vectors that `leverage` needs.

    edges : 4, or 2 for graphs of up to two edges alone: they are the first of the sums, and need no product of relations.
    """
    one, two, three, four = (
        [(r, 0)] if stored.symmetric else [(forth, r - forth) for forth in range(r + 1)] for r in (1, 2, 3, 4)
    )
    diagonal, ones = stored.diagonal, np.ones(len(stored.diagonal))
    single, double = [stored.rows(e) for e in one], [stored.rows(e) for e in two]
    ends = [*single, diagonal]  # what hangs on a vertex by one edge
    halves = [x * y for x, y in combinations_with_replacement(ends, 2)]
    if edges == 2:
        none = [np.zeros_like(ones)] * (len(one) * len(ends))  # in the place of what no graph of two edges has
        vectors = np.stack([ones, *ends, *halves, *double, *none])
        return np.concatenate([np.ones(1), (vectors @ vectors.T).ravel()]), np.empty((0, len(ones)))
    halves += [*double, *(moved for e in one for moved in stored.times(e, ends))]
    vectors = np.stack([ones, *ends, *halves])
    corners, numbers = stored.cycles()
    parts = [
        np.ones(1),  # no graph: what is short of four parts is filled up with it
        (vectors @ vectors.T).ravel(),
        [x @ moved for e in two[:2] for moved in stored.times(e, ends) for x in ends],
        [heavy @ x for e in three for heavy in [stored.rows(e)] for x in (ones, *ends)],
        [stored.rows(e).sum() for e in four[:3]],
        [corner @ x for corner in corners for x in (ones, *ends)],
        numbers,
    ]
    return np.concatenate(parts), np.stack([diagonal, single[-1], single[0], double[-1], double[0]])


class Dense(Stored):
    """Matrices in the dtype of the relation, on its device.

    A dense A becomes A - d I - e (J - I), whose diagonal and off-diagonal entries each sum to 0. A graph stays as it is.
    """

    symmetric = False
    factor: Tensor | None = None  # of the relation, before the means were taken off

    def __init__(self, relation: Relation) -> None:
        if isinstance(relation, GraphRelation):
            matrix = relation.matrix.double()  # sums over distinct indices are differences of large counts
            rows = matrix.sum(dim=1)
        elif isinstance(relation, DenseRelation):
            n, matrix = relation.n, relation.matrix
            rows = matrix.sum(dim=1).double()
            trace, total = float(matrix.diagonal().sum(dtype=torch.float64)), float(rows.sum())
            diagonal, elsewhere = trace / n, (total - trace) / (n * (n - 1)) if n > 1 else 0.0
            # Means below the rounding of a typical entry, 1 / n at unit norm, are none: a centred matrix is not copied.
            if max(abs(diagonal), abs(elsewhere)) > torch.finfo(matrix.dtype).eps / n:
                rows = matrix.sum(dim=1, dtype=torch.float64) - diagonal - (n - 1) * elsewhere
                matrix = matrix - elsewhere
                matrix.diagonal().add_(elsewhere - diagonal)
                self.means = diagonal, elsewhere
            self.factor = relation.factor
        else:
            raise TypeError(f"no moments for {type(relation).__name__}")
        self.powers = {FORTH: matrix}
        self.sums = {FORTH: rows.cpu().numpy()}
        self.diagonal = matrix.diagonal().to("cpu", torch.float64).numpy()

    def rows(self, edges: Edges) -> np.ndarray:
        if edges not in self.sums:
            forth, back = edges
            half = (forth + back) // 2  # no product of more than two is formed
            some = min(forth, half)
            other = self.power((forth - some, back - half + some))
            if half:
                self.sums[edges] = row_dots(self.power((some, half - some)), other)
            else:
                self.sums[edges] = other.sum(dim=1, dtype=torch.float64).cpu().numpy()
        return self.sums[edges]

    def times(self, edges: Edges, vectors: list[np.ndarray]) -> Iterable[np.ndarray]:
        matrix = self.power(edges)
        for v in vectors:
            yield (matrix @ torch.from_numpy(v).to(matrix)).to("cpu", torch.float64).numpy() if v.any() else np.zeros_like(v)

    def cycles(self) -> tuple[list[np.ndarray], list[float]]:
        with full_precision():
            ways = {w: self.power(w[0]) @ self.power(w[1]) for w in WAYS}
        asked = [(way, self.power(base)) for way, base in (*TRIANGLES, *DOUBLED)] + [(way, ways[other]) for way, other in SQUARES]
        found = [torch.linalg.vecdot(ways[way], last).to("cpu", torch.float64).numpy() for way, last in asked]
        return found[: len(TRIANGLES)], [v.sum() for v in found[len(TRIANGLES) :]]


class Symmetric(Dense):
    """A dense relation that is its own transpose."""

    symmetric = True

    def cycles(self) -> tuple[list[np.ndarray], list[float]]:
        """From A A, which is A A'; of a narrow layer by tiles below the diagonal, of which none is kept.

        There A = L R' + D, L and R from the rows of the layer and D diagonal, and A A = L (R' L) R' + D A + A D - D D.
        """
        a, everything = self.powers[FORTH], slice(0, len(self.diagonal))
        at_vertex, doubled, four = a.new_zeros(len(a), dtype=torch.float64), 0.0, 0.0
        if self.factor is not None:
            c, s = self.factor[:, :-1], self.factor[:, -1:] + self.means[1] / 2
            ones = torch.ones_like(s)
            left, right = torch.cat([c, -s, -ones], dim=1), torch.cat([c, ones, s], dim=1)
            own = a.diagonal() - torch.linalg.vecdot(left, right)
            with full_precision():
                left = left @ (right.T @ left)
        for rows, columns in [(everything, everything)] if self.factor is None else triangle(len(a)):
            edges, times = a[rows, columns], 1 if rows == columns else 2
            if self.factor is None:
                walks = gram(a)
            else:
                with full_precision():
                    walks = left[rows] @ right[columns].T
                walks.addcmul_(own[rows, None] + own[columns], edges)
                if rows == columns:
                    walks.diagonal().sub_(own[rows].square())
            four += times * row_dots(walks, walks).sum()
            walks *= edges
            at_vertex[rows] += walks.sum(dim=1)
            if times == 2:
                at_vertex[columns] += walks.sum(dim=0)
            doubled += times * row_dots(walks, edges).sum()
        return [at_vertex.cpu().numpy()], [doubled, four]


class Sparse(Stored):
    """A graph of k edges per row, as lists: nothing of size n^2 is formed but in blocks of rows."""

    symmetric = False

    def __init__(self, relation: GraphRelation) -> None:
        from scipy.sparse import csr_array

        ends, order = relation.indices.cpu().sort(dim=1)
        n, k = ends.shape
        self.plain = relation.values is None  # all entries are 0 or 1: parallel edges are one
        values = torch.ones(n, k) if relation.values is None else relation.values.cpu().gather(1, order)
        self.ends, self.values = ends.numpy(), values.double().numpy()  # (n, k) both
        self.powers = {FORTH: csr_array((self.values.ravel(), self.ends.ravel(), np.arange(n + 1) * k), shape=(n, n))}
        self.sums, self.diagonal = {}, self.powers[FORTH].diagonal()

    def merged(self, edges: Edges) -> Edges:
        return (min(edges[0], 1), min(edges[1], 1)) if self.plain else edges

    def rows(self, edges: Edges) -> np.ndarray:
        edges = self.merged(edges)
        if edges not in self.sums:
            self.sums[edges] = self.power(edges).sum(axis=1)
        return self.sums[edges]

    def times(self, edges: Edges, vectors: list[np.ndarray]) -> Iterable[np.ndarray]:
        return np.ascontiguousarray((self.power(self.merged(edges)) @ np.stack(vectors, axis=1)).T)

    def cycles(self) -> tuple[list[np.ndarray], list[float]]:
        """By blocks of rows; products have n k^2 terms, hubs or not, which are counted as they come."""
        triangles = [(tuple(map(self.merged, way)), self.merged(base)) for way, base in (*TRIANGLES, *DOUBLED)]
        asked, n = (*triangles, *SQUARES), len(self.ends)
        needed, first_ways = {edges for way, base in triangles for edges in (way[0], base)}, {way for way, _ in asked}
        size, found = min(n, max(1, CYCLE_ENTRIES // n)), {pair: np.zeros(n) for pair in asked}
        # Numbers of ways are exact in float32, and half the table stays nearer to the processor.
        table = empty((size * n,), torch.float32 if self.plain else torch.float64, torch.device("cpu")).zero_()
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            entries = {e: _entries(self.power(e)[rows] if size < n else self.power(e)) for e in needed}
            ways = {way: self._walks(*entries[way[0]]) for way in first_ways}
            if size == n:  # two edges back are two edges on, from the other end
                ways[AGAIN] = self._walks(*entries[FORTH], back=True)
            else:
                row, column, value = _entries(self.power(BACK)[rows] @ self.power(BACK))
                ways[AGAIN] = row * n + column, value  # merged, so that weights count
            for way in first_ways:
                at, value = ways[way]
                weights = table.new_ones(len(at)) if value is None else torch.from_numpy(value)
                counted = table.scatter_add_(0, torch.from_numpy(at), weights).numpy()
                for base in {base for first, base in triangles if first == way}:
                    row, column, value = entries[base]
                    found[way, base][rows] = np.bincount(row, counted.take(row * n + column) * value, rows.stop - start)
                for other in (other for first, other in SQUARES if first == way):
                    at, value = ways[other]
                    met = counted.take(at)
                    found[way, other][start] = met.sum(dtype=float) if value is None else met @ value
                table[... if FEW * len(ways[way][0]) > len(table) else torch.from_numpy(ways[way][0])] = 0
        return [found[pair] for pair in asked[: len(TRIANGLES)]], [found[pair].sum() for pair in asked[len(TRIANGLES) :]]

    def _walks(
        self, row: np.ndarray, column: np.ndarray, value: np.ndarray, back: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Of each of these entries and an edge on from its end: the place in the flattened block, and the weight, None for 1.

        back : in the place of a way from a row to a column that from the column to the row.
        """
        n, last = len(self.ends), self.ends.take(column, axis=0)
        at = last * n + row[:, None] if back else last + (row * n)[:, None]
        return at.ravel(), None if self.plain else (value[:, None] * self.values[column]).ravel()


def _entries(block: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of every entry of a sparse matrix."""
    return np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)), block.indices, block.data


# --- what one relation contributes -----------------------------------------------------------------


class Shapes(NamedTuple):
    """The classes of partitions of one order, and how their distinct-index sums follow from sums of connected graphs."""

    vertices: np.ndarray  # (c,) number of blocks of each class
    count: np.ndarray  # (c,) number of partitions in each class
    factors: np.ndarray  # (c, order) which of `connected_sums` the unrestricted sum is the product of
    inversion: np.ndarray  # (c, c) Moebius coefficients


@cache
def shapes(order: int, symmetric: bool) -> Shapes:
    with resources.files("repalign.null").joinpath("graphs.npz").open("rb") as file, np.load(file, allow_pickle=False) as table:
        return Shapes(*(table[f"{'symmetric' if symmetric else 'directed'} {order} {name}"] for name in Shapes._fields))


def sums_and_leverage(relation: Relation) -> tuple[np.ndarray, np.ndarray]:
    """The share of one relation in the moments, and how far out each of its stimuli is.

    First a short float64 vector: the mean diagonal and off-diagonal entry that were taken off, two numbers about the spectrum,
    then the distinct-index sums of the rest for orders 1 to 4. Second an array (7, n): of every stimulus its diagonal entry, the
    sums of its row and column elsewhere, each less the mean over stimuli, the squares of row and column about their means, their
    share of the squares of the relation, and how far out it is by its own entry and sums, or by its squares.

    Dense: O(n^2) but for one product, for symmetric relations of a triangle. Graph of k edges per row: O(n k^2).
    Relations of one comparison must be of one kind (dense or graph, symmetric or directed) for their vectors to be
    combined.
    """
    n, stored = relation.n, _stored(relation)
    sums, vectors = connected_sums(stored)
    shape, second = 0.0, 0.0
    if isinstance(relation, DenseRelation) and relation.symmetric:
        # tr R^4 / (tr R^2)^2 - 2 / n and tr R^2 of R, which is A without its row and column means; 1'A 1 = 0.
        gram = sums[1:82].reshape(9, 9)  # of 1, the row sums r, the diagonal, ..., the row sums of squares, A r, A diagonal
        rows, squared, twice, fourth = gram[1, 1], gram[0, 6], gram[7, 7], sums[-1]
        second = max(squared - 2 * rows / n, 0.0)
        shape = (fourth - 4 * twice / n + 2 * rows**2 / n**2) / second**2 - 2 / n if second > 0 else 0.0
    d, others = vectors[0], vectors[1:] - vectors[0] ** np.array([[1], [1], [2], [2]])  # rows, columns, and their squares
    squares = np.maximum(others[2:] - others[:2] ** 2 / max(1, n - 1), 0.0)
    d, rows, columns = d - d.mean(), *(v - v.mean() for v in others[:2])
    moves, total = d**2 * n + rows**2 + columns**2, squares[0].sum()
    share = np.minimum(1.0, (squares[0] + squares[1]) / np.where(total > 0, total, np.inf))
    out = share + moves / np.where(moves.sum() > 0, moves.sum(), np.inf)
    return _distinct(stored, shape, second, sums, ORDERS), np.stack([d, rows, columns, *squares, share, out])


def first_sums(relation: Relation) -> np.ndarray:
    """Of the first array of `sums_and_leverage` what mean and standard deviation are made of, without a product of n^3."""
    stored = _stored(relation)
    return _distinct(stored, 0.0, 0.0, connected_sums(stored, 2)[0], ORDERS[:2])


def _stored(relation: Relation) -> Stored:
    """The relation as its sums are found soonest."""
    kind = Symmetric if relation.symmetric else Dense
    is_sparse = isinstance(relation, GraphRelation) and SPARSE * relation.k <= relation.n and not relation.symmetric
    return Sparse(relation) if is_sparse else kind(relation)  # type: ignore[arg-type]


def _distinct(stored: Stored, shape: float, second: float, sums: np.ndarray, orders: Sequence[int]) -> np.ndarray:
    """The sums over distinct indices of some orders, behind what was taken off and the two numbers about the spectrum."""
    parts: list[Any] = [[*stored.means, shape, second]]
    for order in orders:
        found = shapes(order, stored.symmetric)
        parts.append(found.inversion @ sums[found.factors].prod(axis=1))
    return np.concatenate(parts)


# --- what two relations make of it ----------------------------------------------------------------


class Moments(NamedTuple):
    """The moments of <A, P B P'> over all P, for all pairs of relations; (la, lb) each."""

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
    mean, sd, *raw = _raw(sums_a, sums_b, n, symmetric, ORDERS)
    varies = sd > 0
    third = raw[2] - 3 * mean * raw[1] + 2 * mean**3
    fourth = raw[3] - 4 * mean * raw[2] + 6 * mean**2 * raw[1] - 3 * mean**4
    unit = np.where(varies, sd, 1.0)
    skewness, kurtosis = np.where(varies, third / unit**3, 0.0), np.where(varies, fourth / unit**4 - 3, 0.0)
    rotated = 2 * np.outer(sums_a[:, 3], sums_b[:, 3]) / max(1, (n - 2) * (n + 1)) / unit**2  # share of the variance
    of_spectra = 12 * np.outer(sums_a[:, 2], sums_b[:, 2]) * np.minimum(rotated, 1.0) ** 2
    return Moments(_fixed(sums_a, sums_b, n) + mean, sd, skewness, kurtosis, of_spectra)


def two_moments(sums_a: np.ndarray, sums_b: np.ndarray, n: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `four_moments`; either side may have the `first_sums` alone."""
    mean, sd = _raw(sums_a, sums_b, n, symmetric, ORDERS[:2])[:2]
    return _fixed(sums_a, sums_b, n) + mean, sd


def _fixed(sums_a: np.ndarray, sums_b: np.ndarray, n: int) -> np.ndarray:
    """What the mean entries that were taken off add to T: the same under every permutation."""
    return sums_a[:, :2] * [n, n * (n - 1)] @ sums_b[:, :2].T


def _raw(sums_a: np.ndarray, sums_b: np.ndarray, n: int, symmetric: bool, orders: Sequence[int]) -> list[np.ndarray]:
    """Mean and standard deviation of T less what is fixed, then E[T^r] of it for every order r."""
    raw, start = [], 4
    for order in orders:
        found = shapes(order, symmetric)
        stop = start + len(found.vertices)
        falling = np.array([math.perm(n, int(v)) for v in found.vertices], dtype=float)
        weight = np.where(falling > 0, found.count / np.where(falling > 0, falling, 1.0), 0.0)
        raw.append((sums_a[:, start:stop] * weight) @ sums_b[:, start:stop].T)
        start = stop
    mean = raw[0]
    variance = np.maximum(raw[1] - mean**2, 0.0)
    # A variance that is rounding residue of E[T^2] or of the squares is none: the pairing does not matter.
    varies = variance > 1e-12 * np.maximum(raw[1], mean**2)
    return [mean, np.sqrt(np.where(varies, variance, 0.0)), *raw]


class InPlace(NamedTuple):
    """The law over the relabellings that leave one stimulus in its place, in units of the sd over all; (m, la, lb) each."""

    shift: np.ndarray  # its mean, less the mean over all
    spread: np.ndarray  # its sd


def in_place(one: np.ndarray, other: np.ndarray, sd: np.ndarray, n: int) -> InPlace:
    """For all pairs of relations from what `sums_and_leverage` says of both, (la, 7, n) and (lb, 7, n), and the sd of T.

    With stimulus k in its place, d its diagonal entry, r and c the sums of its row and column elsewhere, all less their means,

        E[T | k] - E[T] = n / (n - 1) d d' + (r r' + c c') / (n - 1) + (r + c) (r' + c') / ((n - 1) (n - 2)).

    The variance is to leading order that of the relations without k, and that of the sum over its own row and column,
    (|row| |row'| + |column| |column'|)^2 / (n - 2) with centred rows (at most that where a row is unlike its column).
    """
    one_heavy, other_heavy = (np.argpartition(-v[:, 6], min(HEAVIEST, n) - 1, axis=1)[:, :HEAVIEST] for v in (one, other))
    cells = len(one), len(other), one_heavy.shape[1]
    which = np.concatenate([np.broadcast_to(v, cells) for v in (one_heavy[:, None], other_heavy)], axis=2)  # (la, lb, m)
    unit = np.where(sd > 0, sd, np.inf)[..., None]
    i, j = np.arange(len(one))[:, None, None], np.arange(len(other))[:, None]
    d, r, c, rows, columns, share = (one[i, part, which] for part in range(6))
    d2, r2, c2, rows2, columns2, share2 = (other[j, part, which] for part in range(6))
    moved = d * d2 * n + r * r2 + c * c2 + (r + c) * (r2 + c2) / (n - 2)
    own = (np.sqrt(rows * rows2) + np.sqrt(columns * columns2)) ** 2 / (n - 2)
    rest = (1 - share) * (1 - share2) * (n / (n - 1)) ** 2  # of n - 1 stimuli
    return InPlace(*(np.moveaxis(v, 2, 0) for v in (moved / (n - 1) / unit, np.sqrt(rest + own / unit**2))))
