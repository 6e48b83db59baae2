"""The table of small multigraphs that `repalign.null.graph_sums` reads, derived from nothing.

    python tests/graph_table.py        # writes src/repalign/null/graphs.npz

A graph is a tuple of edges (u, v) between numbered vertices; a graph that hangs on a vertex has it as vertex 0.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

from repalign.null import graph_sums

Graph = tuple[tuple[int, int], ...]
PATH = Path(graph_sums.__file__).with_name("graphs.npz")


# --- the classes of partitions of 2r slots -----------------------------------------------------------


def partitions(size: int) -> np.ndarray:
    """All set partitions of `size` slots as restricted growth strings, (count, size)."""
    out: list[tuple[int, ...]] = [()]
    for _ in range(size):
        out = [(*p, label) for p in out for label in range(max(p, default=-1) + 2)]
    return np.array(out, dtype=np.int64).reshape(len(out), size)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits scattered: a hash of 64-bit numbers (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def kinds(slots: np.ndarray, symmetric: bool) -> np.ndarray:
    """One number per row of slots (p, 2r), the same where the edges form the same multigraph.

    Vertices are coloured by what they are joined to, by how many edges each way, until nothing new can be told apart
    (Weisfeiler and Leman); the number hashes all colours. Up to four edges this separates every two multigraphs: the tests
    hold the number of kinds against the known counts.
    """
    count, size = slots.shape
    edges = np.zeros((count, size, size), dtype=np.uint64)
    row = np.arange(count)
    for e in range(0, size, 2):
        u, v = slots[:, e], slots[:, e + 1]
        np.add.at(edges, (row, u, v), np.uint64(1))
        if symmetric:
            np.add.at(edges, (row, v, u), np.uint64(1))
    joined = edges + np.uint64(16) * edges.swapaxes(1, 2)
    weight = np.where(joined > 0, _mixed(joined + np.uint64(1)), np.uint64(0))
    colour = _mixed(np.diagonal(joined, axis1=1, axis2=2) + np.uint64(7))
    for _ in range(size // 2):
        colour = _mixed(colour + _mixed((weight * colour[:, None, :]).sum(axis=2)))
    there = np.arange(size) <= slots.max(axis=1)[:, None]
    return np.where(there, _mixed(colour), np.uint64(0)).sum(axis=1)


def kind_of(graph: Graph, symmetric: bool) -> tuple[int, int]:
    number: dict[int, int] = {}
    flat = [number.setdefault(v, len(number)) for edge in graph for v in edge]
    return len(graph), int(kinds(np.array([flat]), symmetric)[0])


def connected_parts(graph: Graph) -> list[Graph]:
    groups: list[Graph] = []
    for edge in graph:
        touching = [g for g in groups if any(set(edge) & set(other) for other in g)]
        merged = (*(e for g in touching for e in g), edge)
        groups = [g for g in groups if g not in touching] + [merged]
    return groups


def classes(order: int, symmetric: bool) -> dict[str, np.ndarray]:
    every = partitions(2 * order)
    kind, first, count = np.unique(kinds(every, symmetric), return_index=True, return_counts=True)
    slots = every[first]
    vertices = slots.max(axis=1) + 1
    inversion = np.zeros((len(slots), len(slots)))
    for row, (one, blocks) in enumerate(zip(slots, vertices, strict=True)):
        merges = partitions(int(blocks))
        sizes = (merges[:, :, None] == np.arange(blocks)).sum(axis=1)
        signs = np.array([1.0, *((-1) ** (m - 1) * math.factorial(m - 1) for m in range(1, blocks + 1))])
        column = np.searchsorted(kind, kinds(merges[:, one], symmetric))
        np.add.at(inversion[row], column, signs[sizes].prod(axis=1))
    place = {}
    for i, graph in enumerate(connected_graphs(symmetric)):
        place.setdefault(kind_of(graph, symmetric) if graph else None, i)
    factors = np.zeros((len(slots), order), dtype=np.int16)
    for row, one in enumerate(slots.tolist()):
        for i, part in enumerate(connected_parts(tuple(zip(one[::2], one[1::2], strict=True)))):
            factors[row, i] = place[kind_of(part, symmetric)]
    return {
        "vertices": vertices.astype(np.int16),
        "count": count.astype(np.int16),
        "factors": factors,
        "inversion": inversion.astype(np.int16),
    }


# --- the graphs of `connected_sums`, in its order ----------------------------------------------------


def between(edges: tuple[int, int], u: int, v: int) -> Graph:
    return ((u, v),) * edges[0] + ((v, u),) * edges[1]


def hung(graph: Graph, vertex: int, other: Graph) -> Graph:
    """`other`, which hangs on its vertex 0, on a vertex of `graph`."""
    above = 1 + max((v for edge in graph for v in edge), default=vertex)
    above = max(above, vertex + 1)
    return (*graph, *(tuple(vertex if v == 0 else above + v for v in edge) for edge in other))


def cycle(way: tuple, other: tuple) -> Graph:
    """A way of two edges from vertex 0 over 1 to 2, and edges from 0 to 2, or a second way over 3."""
    graph = between(way[0], 0, 1) + between(way[1], 1, 2)
    if isinstance(other[0], int):
        return graph + between(other, 0, 2)
    return graph + between(other[0], 0, 3) + between(other[1], 3, 2)


def connected_graphs(symmetric: bool) -> list[Graph]:
    one, two, three, four = (
        [(r, 0)] if symmetric else [(forth, r - forth) for forth in range(r + 1)] for r in (1, 2, 3, 4)
    )
    single, double, heavy = ([between(e, 0, 1) for e in some] for some in (one, two, three))
    ends: list[Graph] = [*single, ((0, 0),)]
    halves = [hung(x, 0, y) for x, y in combinations_with_replacement(ends, 2)]
    halves += [*double, *(hung(between(e, 0, 1), 1, x) for e in one for x in ends)]
    vectors = [(), *ends, *halves]
    middle = [hung(hung(between(e, 0, 1), 1, y), 0, x) for e in two[:2] for y in ends for x in ends]
    corners, numbers = graph_sums.TRIANGLES, (*graph_sums.DOUBLED, *graph_sums.SQUARES)
    if symmetric:
        corners, numbers = corners[:1], (graph_sums.DOUBLED[0], graph_sums.SQUARES[0])
    return [
        (),
        *(hung(x, 0, y) for x in vectors for y in vectors),
        *middle,
        *(hung(x, 0, y) for x in heavy for y in ((), *ends)),
        *(between(e, 0, 1) for e in four[:3]),
        *(hung(cycle(*corner), 0, x) for corner in corners for x in ((), *ends)),
        *(cycle(*number) for number in numbers),
    ]


def table() -> dict[str, np.ndarray]:
    return {
        f"{'symmetric' if symmetric else 'directed'} {order} {name}": values
        for symmetric in (True, False)
        for order in graph_sums.ORDERS
        for name, values in classes(order, symmetric).items()
    }


if __name__ == "__main__":
    np.savez_compressed(PATH, **table())
