"""Inner products <A, B> = sum_ij A_ij B_ij of relations, for all pairs of two lists at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import blocks

if TYPE_CHECKING:
    from repalign.measures.measure import DenseRelation, GraphRelation


def dense_inner(a: Sequence[DenseRelation], b: Sequence[DenseRelation]) -> Tensor:
    """One matrix product (la, n^2) @ (n^2, lb), over blocks of rows that bound the scratch memory."""
    n = a[0].n
    same = len(a) == len(b) and all(s is t for s, t in zip(a, b, strict=True))
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    dtype = reduce(torch.promote_types, [s.matrix.dtype for s in (*a, *b)])  # layers may come in different precision
    for block in blocks(n, (len(a) + len(b)) * n * dtype.itemsize):
        left = _rows(a, block, dtype)
        right = left if same else _rows(b, block, dtype)
        with full_precision():
            product = left @ right.T
        total += product.to("cpu", torch.float64)
    return total


def _rows(states: Sequence[DenseRelation], block: slice, dtype: torch.dtype) -> Tensor:
    """These rows of all relations, a row for each: (layers, rows * n); of one relation without a copy."""
    parts = [s.matrix[block].to(dtype).reshape(1, -1) for s in states]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def graph_inner(a: Sequence[GraphRelation], b: Sequence[GraphRelation]) -> Tensor:
    """Shared entries, by whichever is cheaper: every pair of entries of a row, n k^2 comparisons for each pair of
    layers, or looking the entries of all B up in a dense block of rows of each A, n^2 bytes to clear for each A.
    """
    n = a[0].n
    if a[0].k * sum(s.k for s in b) < n:
        return torch.tensor([[_shared(s, t) for t in b] for s in a], dtype=torch.float64)
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    plain = all(s.values is None for s in (*a, *b))
    dtype = torch.uint8 if plain else torch.float64
    for block in blocks(n, n * dtype.itemsize):
        targets = torch.cat([s.indices[block] for s in b], dim=1)  # (rows, sum of k_b)
        weights = None if plain else torch.cat([_values(s, block) for s in b], dim=1)
        ends = np.cumsum([s.k for s in b]).tolist()
        for row, state in enumerate(a):
            entries = _values(state, block).to(dtype)
            hits = entries.new_zeros(len(entries), n).scatter_(1, state.indices[block], entries).gather(1, targets)
            if weights is not None:
                hits = hits * weights
            per_column = hits.sum(dim=0, dtype=torch.float64 if weights is not None else torch.int64)
            sums = torch.cat([per_column.new_zeros(1), per_column.cumsum(0)])
            at = sums[[0, *ends]].to("cpu", torch.float64)
            total[row] += at[1:] - at[:-1]
    return total


def _shared(a: GraphRelation, b: GraphRelation) -> float:
    """<A, B> of two graphs, entry by entry in blocks of rows."""
    total = 0.0
    for block in blocks(a.n, 16 * a.k * b.k):
        equal = a.indices[block, :, None] == b.indices[block, None, :]
        if a.values is None and b.values is None:
            total += int(torch.count_nonzero(equal))
            continue
        products = _values(a, block)[:, :, None] * _values(b, block)[:, None, :]
        total += float((products * equal).sum())
    return total


def _values(state: GraphRelation, block: slice) -> Tensor:
    if state.values is None:
        return torch.ones_like(state.indices[block], dtype=torch.float64)
    return state.values[block].to(torch.float64)
