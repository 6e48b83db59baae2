"""Small multigraphs: which there are, how sums over distinct indices follow from sums over all, and how those are found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

ORDERS = (1, 2, 3, 4)

Partition = tuple[int, ...]  # block label of every slot, labels in order of first appearance


@dataclass(frozen=True)
class Shapes:
    """The classes of partitions of one order, and how their distinct-index sums follow from graph sums."""

    vertices: np.ndarray  # (c,) number of blocks of each class
    count: np.ndarray  # (c,) number of partitions in each class
    inversion: np.ndarray  # (c, g) Moebius coefficients
    graphs: tuple[Partition, ...]  # (g,) graphs whose unrestricted sums are needed


def _partitions(size: int) -> np.ndarray:
    """All set partitions of `size` slots as restricted growth strings, (count, size)."""
    out: list[Partition] = [()]
    for _ in range(size):
        out = [(*p, label) for p in out for label in range(max(p, default=-1) + 2)]
    return np.array(out, dtype=np.int64).reshape(len(out), size)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits scattered: a hash of 64-bit numbers (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _kinds(partitions: np.ndarray, symmetric: bool) -> np.ndarray:
    """One number per partition (p, 2r), the same where the edges form the same multigraph.

    Vertices are coloured by what they are joined to, by how many edges each way, until nothing new can be told apart
    (Weisfeiler and Leman); the number hashes all colours. Up to four edges this separates every two multigraphs: the tests
    hold the number of kinds against the known counts.
    """
    count, slots = partitions.shape
    edges = np.zeros((count, slots, slots), dtype=np.uint64)
    row = np.arange(count)
    for e in range(0, slots, 2):
        u, v = partitions[:, e], partitions[:, e + 1]
        np.add.at(edges, (row, u, v), np.uint64(1))
        if symmetric:
            np.add.at(edges, (row, v, u), np.uint64(1))
    joined = edges + np.uint64(16) * edges.swapaxes(1, 2)
    weight = np.where(joined > 0, _mixed(joined + np.uint64(1)), np.uint64(0))
    colour = _mixed(np.diagonal(joined, axis1=1, axis2=2) + np.uint64(7))
    for _ in range(slots // 2):
        colour = _mixed(colour + _mixed((weight * colour[:, None, :]).sum(axis=2)))
    there = np.arange(slots) <= partitions.max(axis=1)[:, None]
    return np.where(there, _mixed(colour), np.uint64(0)).sum(axis=1)


@cache
def shapes(order: int, symmetric: bool) -> Shapes:
    every = _partitions(2 * order)
    kinds, first, count = np.unique(_kinds(every, symmetric), return_index=True, return_counts=True)
    graphs = every[first]
    vertices = graphs.max(axis=1) + 1
    inversion = np.zeros((len(graphs), len(graphs)))
    for row, (graph, blocks) in enumerate(zip(graphs, vertices, strict=True)):
        merges = _partitions(int(blocks))
        sizes = (merges[:, :, None] == np.arange(blocks)).sum(axis=1)
        signs = np.array([1.0, *((-1) ** (m - 1) * math.factorial(m - 1) for m in range(1, blocks + 1))])
        column = np.searchsorted(kinds, _kinds(merges[:, graph], symmetric))
        np.add.at(inversion[row], column, signs[sizes].prod(axis=1))
    return Shapes(vertices, count.astype(float), inversion, tuple(tuple(int(v) for v in g) for g in graphs))


# --- how a sum over all indices is found ---------------------------------------------------------

Edges = tuple[int, int]  # how many edges lead forth and back between two vertices
Hanging = tuple[tuple[int, int, Any], ...]  # on a vertex: edges forth, back, and what hangs on their end (None: loops)
Legs = tuple[Edges, Edges]  # from a first vertex to a second and on to a third
# What is left of a connected graph: ("tree", hanging), ("triangle", legs, base, hanging on the first vertex) or
# ("square", legs, other legs).
Recipe = tuple[Any, ...]


@dataclass(frozen=True)
class Kind:
    """What is known of a relation beforehand; it decides which sums are the same, and which are 0."""

    symmetric: bool
    plain: bool  # all entries are 0 or 1
    loops: bool

    def merged(self, forth: int, back: int) -> Edges:
        """What parallel edges amount to: direction is nothing where A is symmetric, number where A is plain."""
        if self.symmetric:
            return forth + back, 0
        return (min(forth, 1), min(back, 1)) if self.plain else (forth, back)


@cache
def recipes(order: int, kind: Kind) -> tuple[tuple[Recipe, ...] | None, ...]:
    """For every graph of one order those of its connected components; None for a sum that is 0."""
    out = []
    for graph in shapes(order, kind.symmetric).graphs:
        edges = [graph[i : i + 2] for i in range(0, len(graph), 2)]
        looped = not kind.loops and any(u == v for u, v in edges)
        out.append(None if looped else tuple(_recipe(part, kind) for part in _components(edges)))
    return tuple(out)


def _size(hanging: Hanging) -> int:
    return sum(forth + back + (_size(end) if end else 0) for forth, back, end in hanging)


def _recipe(edges: list[tuple[int, ...]], kind: Kind) -> Recipe:
    """Parallel edges merge, loops become vertex weights, and leaves fold into their neighbours, the lightest first: so few
    products of a matrix and a vector are needed. A cycle of three or four vertices may stay."""
    hanging: dict[int, Hanging] = {v: () for edge in edges for v in edge}
    between: dict[tuple[int, int], Edges] = {}
    for u, v in dict.fromkeys((min(e), max(e)) for e in edges):
        if u == v:
            hanging[u] += ((edges.count((u, u)), 0, None),)
        else:
            between[(u, v)] = kind.merged(edges.count((u, v)), edges.count((v, u)))
            between[(v, u)] = kind.merged(edges.count((v, u)), edges.count((u, v)))

    def near(v: int) -> list[int]:
        return [u for u in hanging if (v, u) in between]

    while between:
        leaves = [v for v in hanging if len(near(v)) == 1]
        if not leaves:
            return _cycle(between, hanging, kind)
        leaf = min(leaves, key=lambda v: _size(hanging[v]))
        (other,) = near(leaf)
        toward = between.pop((other, leaf))
        del between[(leaf, other)]
        hanging[other] = tuple(sorted((*hanging[other], (*toward, hanging.pop(leaf))), key=repr))
    (last,) = hanging.values()
    return "tree", last


def _cycle(between: dict[tuple[int, int], Edges], hanging: dict[int, Hanging], kind: Kind) -> Recipe:
    """Three vertices, one of which may carry something, or four. No way leads through a vertex where all edges end: hubs
    would make it a product of many entries."""

    def is_sink(v: int) -> bool:
        return not kind.symmetric and all(edges[0] == 0 for (start, _), edges in between.items() if start == v)

    if len(hanging) == 4:
        first = next(iter(hanging))
        second, fourth = (u for u in hanging if (first, u) in between)
        (third,) = set(hanging) - {first, second, fourth}
        if is_sink(second) or is_sink(fourth):
            first, second, third, fourth = second, third, fourth, first
        ways = ((between[first, v], between[v, third]) for v in (second, fourth))
        return "square", *sorted(ways)
    # Past the doubled edge rather than along it, and rather with the edges: such ways are the same for many graphs.
    heavy = [v for v in hanging if hanging[v]] or list(hanging)
    ways = [
        (sum(legs[0]) + sum(legs[1]), -legs[0][0] - legs[1][0], legs, between[first, third], hanging[first])
        for first in heavy
        for through in hanging
        for third in hanging
        if len({first, through, third}) == 3 and not is_sink(through)
        for legs in [(between[first, through], between[through, third])]
    ]
    return "triangle", *min(ways)[2:]


def _components(edges: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    groups: list[list[tuple[int, ...]]] = []
    for edge in edges:
        touching = [g for g in groups if any(set(edge) & set(other) for other in g)]
        merged = [e for g in touching for e in g] + [edge]
        groups = [g for g in groups if g not in touching] + [merged]
    return groups
