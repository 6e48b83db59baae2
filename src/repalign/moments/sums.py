"""Sums over all indices of products of the entries of one relation over the edges of small multigraphs."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.measures.measure import GraphRelation
from repalign.measures.numerics.precision import GRAM_BLOCK, full_precision
from repalign.moments.graphs import ORDERS, Edges, Hanging, Kind, Legs, Recipe, recipes

# Cycles of a graph are counted in a table of a block of its rows, of about this many entries.
CYCLE_ENTRIES = 2**20


class GraphSums:
    """Sums over all index values of products of A over the edges of small multigraphs, each computed once.

    How a relation is stored is the business of two subclasses; vectors over the stimuli are float64.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.vectors: dict[Hanging, Tensor] = {}
        self.known: dict[Recipe, float] = {}

    def diagonal(self) -> Tensor:
        raise NotImplementedError

    def row_sums(self, edges: Edges) -> Tensor:
        """sum_j A_ij^forth A_ji^back."""
        raise NotImplementedError

    def times_vector(self, edges: Edges, vector: Tensor) -> Tensor:
        """sum_j A_ij^forth A_ji^back v_j; two edges at most."""
        raise NotImplementedError

    def triangles(self, legs: Legs, base: Edges) -> Tensor:
        """For every vertex the sum over triangles that start there: legs to a second and a third, the base to the third.
        Where an edge is doubled the whole sum may come as one number."""
        raise NotImplementedError

    def squares(self, legs: Legs, others: Legs) -> float:
        """Over cycles of four: two ways of two edges from a first to a third vertex."""
        raise NotImplementedError

    def spectrum(self) -> tuple[float, float]:
        """tr R^4 / (tr R^2)^2 - 2 / n and tr R^2 of R, A without its row and column means; 0 where that is not known."""
        return 0.0, 0.0

    def leverage(self) -> np.ndarray:
        """Of every stimulus its diagonal entry, the sums of its row and column elsewhere, each less the mean over stimuli, and
        the squares of row and column about their means; (5, n)."""
        diagonal = self.diagonal()
        rows = self._about_means((1, 0), (2, 0), diagonal)
        columns = rows if self.kind.symmetric else self._about_means((0, 1), (0, 2), diagonal)
        return torch.stack([diagonal - diagonal.mean(), rows[0], columns[0], rows[1], columns[1]]).numpy()

    def _about_means(self, edges: Edges, doubled: Edges, diagonal: Tensor) -> tuple[Tensor, Tensor]:
        sums, squares = self._vector(((*edges, ()),)) - diagonal, self._vector(((*doubled, ()),)) - diagonal**2
        return sums - sums.mean(), (squares - sums**2 / max(1, len(sums) - 1)).clamp_(min=0.0)

    def all_of(self, order: int) -> np.ndarray:
        """The sums of all graphs of one order."""
        return np.array(
            [
                0.0 if parts is None else math.prod(self._connected(recipe) for recipe in parts)
                for parts in recipes(order, self.kind)
            ]
        )

    def _connected(self, recipe: Recipe) -> float:
        if recipe not in self.known:
            if recipe[0] == "square":
                value = self.squares(*recipe[1:])
            elif recipe[0] == "triangle":
                corners = self.triangles(*recipe[1:3])
                value = float((corners * self._vector(recipe[3])).sum() if recipe[3] else corners.sum())
            else:
                value = float(self._vector(recipe[1]).sum())
            self.known[recipe] = value
        return self.known[recipe]

    def _vector(self, hanging: Hanging) -> Tensor:
        """The product of what hangs on a vertex, for every value of its index."""
        if hanging not in self.vectors:
            if hanging[1:]:
                made = self._vector(hanging[:-1]) * self._vector(hanging[-1:])
            else:
                forth, back, end = hanging[0]
                if end is None:
                    made = self.diagonal() ** forth
                else:
                    made = self.times_vector((forth, back), self._vector(end)) if end else self.row_sums((forth, back))
            self.vectors[hanging] = made
        return self.vectors[hanging]


class DenseSums(GraphSums):
    """Matrices in the dtype of the relation."""

    def __init__(self, matrix: Tensor, symmetric: bool, rows: Tensor) -> None:
        super().__init__(Kind(symmetric, plain=False, loops=bool(matrix.diagonal().any())))
        self.products: dict[Edges, Tensor] = {(1, 0): matrix}
        self.vectors[((1, 0, ()),)] = rows

    def diagonal(self) -> Tensor:
        return self._product((1, 0)).diagonal().to(torch.float64)

    def spectrum(self) -> tuple[float, float]:
        if not self.kind.symmetric:
            return 0.0, 0.0
        n, edge = len(self.diagonal()), ((1, 0, ()),)
        rows = float(self._vector(edge).square().sum())  # 1'A 1 = 0
        second = float(self._vector(((2, 0, ()),)).sum()) - 2 * rows / n
        two = float(self._vector(((1, 0, edge),)).square().sum())
        fourth = float(self._symmetric_cycles[2]) - 4 * two / n + 2 * rows**2 / n**2
        return (fourth / second**2 - 2 / n, second) if second > 0 else (0.0, 0.0)

    def _product(self, edges: Edges) -> Tensor:
        """Entry by entry A^forth times (A')^back."""
        if edges not in self.products:
            forth, back = edges
            if forth == 0:
                return self._product((back, 0)).T
            one, other = ((forth, 0), (0, back)) if back else ((forth - 1, 0), (1, 0))
            self.products[edges] = self._product(one) * self._product(other)
        return self.products[edges]

    def row_sums(self, edges: Edges) -> Tensor:
        forth, back = edges
        if forth + back == 1:
            return self._product(edges).sum(dim=1, dtype=torch.float64)
        half = (forth + back) // 2  # no product of more than two is formed
        some = min(forth, half)
        return _row_dots(self._product((some, half - some)), self._product((forth - some, back - half + some)))

    def times_vector(self, edges: Edges, vector: Tensor) -> Tensor:
        matrix = self._product(edges)
        return (matrix @ vector.to(matrix.dtype)).to(torch.float64)

    def _ways(self, legs: Legs) -> Tensor:
        with full_precision():
            return self._product(legs[0]) @ self._product(legs[1])

    def triangles(self, legs: Legs, base: Edges) -> Tensor:
        if not self.kind.symmetric:
            return _row_dots(self._ways(legs), self._product(base))
        at_vertex, doubled, _ = self._symmetric_cycles
        return at_vertex if (*legs, base) == ((1, 0),) * 3 else doubled

    def squares(self, legs: Legs, others: Legs) -> float:
        if self.kind.symmetric:
            return float(self._symmetric_cycles[2])
        return float(_row_dots(self._ways(legs), self._ways(others)).sum())

    @cached_property
    def _symmetric_cycles(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a symmetric A: triangles at every vertex, triangles with a doubled edge, cycles of four.

        By blocks of rows, of A A below the diagonal only: nothing of A A is kept.
        """
        a = self._product((1, 0))
        at_vertex, doubled, four = (a.new_zeros(size, dtype=torch.float64) for size in (len(a), 1, 1))
        for start in range(0, len(a), GRAM_BLOCK):
            stop = min(start + GRAM_BLOCK, len(a))
            with full_precision():
                walks = a[start:stop] @ a[:, :stop]
            for columns, times in ((slice(0, start), 2), (slice(start, stop), 1)):
                some, edges = walks[:, columns], a[start:stop, columns]
                four += times * _row_dots(some, some).sum()
                some *= edges
                at_vertex[start:stop] += some.sum(dim=1)
                if times == 2:
                    at_vertex[columns] += some.sum(dim=0)
                doubled += times * _row_dots(some, edges).sum()
        return at_vertex, doubled, four


def _turned(edges: Edges) -> Edges:
    return edges[1], edges[0]


def _row_dots(one: Tensor, other: Tensor) -> Tensor:
    if one is other:
        return torch.linalg.vector_norm(one, dim=1).to(torch.float64).square_()
    return torch.linalg.vecdot(one, other).to(torch.float64)


class SparseSums(GraphSums):
    """A graph of k edges per row, as lists: nothing of size n^2 is formed but in blocks of rows."""

    def __init__(self, relation: GraphRelation) -> None:
        ends, order = relation.indices.cpu().sort(dim=1)
        n, k = ends.shape
        starts = torch.arange(n)[:, None]
        super().__init__(Kind(relation.symmetric, relation.values is None, bool((ends == starts).any())))
        self.ends = ends  # (n, k)
        plain = torch.ones(n, k, dtype=torch.float64)
        forth = plain if relation.values is None else relation.values.cpu().double().gather(1, order)
        into = ends.flatten().sort(stable=True).indices  # edges in the order of their ends
        # A_ji for every edge (i, j), 0 where there is no such edge. Both lists of pairs are ascending.
        pairs, sought = (starts * n + ends).flatten(), (ends * n + starts).flatten()[into]
        at = torch.searchsorted(pairs, sought).clamp_(max=n * k - 1)
        back = torch.empty(n * k, dtype=torch.float64)
        back[into] = torch.where(pairs[at] == sought, forth.flatten()[at], 0.0)
        self.values = {(1, 0): forth, (0, 1): back.view(n, k)}

    @property
    def n(self) -> int:
        return len(self.ends)

    def _weights(self, edges: Edges) -> Tensor:
        """A_ij^forth A_ji^back for every edge (i, j); forth >= 1."""
        if edges not in self.values:
            forth, back = edges
            self.values[edges] = self.values[(1, 0)] ** forth * self.values[(0, 1)] ** back
        return self.values[edges]

    def _to_ends(self, weights: Tensor) -> Tensor:
        return torch.bincount(self.ends.flatten(), weights.flatten(), minlength=self.n)

    def diagonal(self) -> Tensor:
        return (self._weights((1, 0)) * (self.ends == torch.arange(self.n)[:, None])).sum(dim=1)

    def row_sums(self, edges: Edges) -> Tensor:
        return self._weights(edges).sum(dim=1) if edges[0] else self._to_ends(self._weights(_turned(edges)))

    def times_vector(self, edges: Edges, vector: Tensor) -> Tensor:
        if edges[0]:
            return (self._weights(edges) * vector[self.ends]).sum(dim=1)
        return self._to_ends(self._weights(_turned(edges)) * vector[:, None])

    def triangles(self, legs: Legs, base: Edges) -> Tensor:
        return self._cycles[legs, base]

    def squares(self, legs: Legs, others: Legs) -> float:
        return float(self._cycles[legs, others].sum())

    @cached_property
    def _cycles(self) -> dict[tuple[Any, Any], Tensor]:
        """All triangles and cycles of four that are needed, for every first vertex or in one number, by blocks of rows.

        No way of two edges leads through a vertex where both end: products have n k^2 terms, hubs or not.
        """
        n = self.n
        needed = {r for order in ORDERS for parts in recipes(order, self.kind) for r in parts or ()}
        triangles = {r[1:3] for r in needed if r[0] == "triangle"}
        squares = {r[1:3] for r in needed if r[0] == "square"}
        legs = {ways[0] for ways in triangles} | {way for ways in squares for way in ways}
        edges = {e: self._matrix(e) for e in {e for way in legs for e in way} | {base for _, base in triangles}}
        found = {key: np.zeros(n) for key in (*triangles, *squares)}
        size = min(n, max(1, CYCLE_ENTRIES // n))
        table = np.zeros(size * n)
        for rows in (slice(start, start + size) for start in range(0, n, size)):
            some = {e: matrix[rows] for e, matrix in edges.items()}
            base_entries = {base: _entries(some[base]) for _, base in triangles}
            ways = {way: _entries(some[way[0]] @ edges[way[1]]) for way in legs}
            for way, (_, place, value) in ways.items():
                table[place] = value
                for base in (base for one, base in triangles if one == way):
                    row, at, weight = base_entries[base]
                    found[way, base][rows] = np.bincount(row, table[at] * weight, len(found[way, base][rows]))
                for other in (other for one, other in squares if one == way):
                    _, at, weight = ways[other]
                    found[way, other][rows.start] = table[at] @ weight
                table[place] = 0.0
        return {key: torch.from_numpy(total) for key, total in found.items()}

    def _matrix(self, edges: Edges) -> Any:
        """A^forth times (A')^back, entry by entry, of scipy."""
        from scipy.sparse import csr_array

        n, k = self.ends.shape
        if not edges[0]:
            return self._matrix(_turned(edges)).T.tocsr()
        weights, starts = self._weights(edges).numpy().ravel(), np.arange(n + 1) * k
        made = csr_array((weights, self.ends.numpy().ravel(), starts), shape=(n, n), copy=bool(edges[1]))
        if edges[1]:  # most edges lead one way only
            made.eliminate_zeros()
        return made


def _entries(block: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, place in the flattened block, and value of every entry of a sparse matrix."""
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    return row, row * block.shape[1] + block.indices, block.data
