"""Alignment of ordered neighbour lists: longest common subsequence and edit distance, one recurrence for
both.

G(i, j) = max(G(i-1, j-1) + [a_i = b_j], G(i-1, j) - g, G(i, j-1) - g') over prefixes of two lists of length
k. With gap costs of 0, G(k, k) is the length of the longest common subsequence. For the Levenshtein distance
D with unit costs put G(i, j) = j - D(i, j): a deletion costs 1 in the first direction and 0 in the second, a
substitution 0 and a match gains 1, so that D(k, k) = k - G(k, k) with g = 1, g' = 0 and G(i, 0) = -i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repalign.measures.measure import SCRATCH_BYTES


def common_subsequence(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over rows of the LCS length of lists (n, k), for all pairs: (la, lb) int64 on the CPU."""
    return _align_all(a, b, gap=0)


def edit_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over rows of the Levenshtein distance of lists (n, k), for all pairs: (la, lb) int64 on the CPU."""
    n, k = a[0].shape
    return n * k - _align_all(a, b, gap=1)


def _align_all(a: Sequence[Tensor], b: Sequence[Tensor], gap: int) -> Tensor:
    n, k = a[0].shape
    total = torch.zeros(len(a), len(b), dtype=torch.int64)
    # Per stimulus and layer of b: the table row (int16), one comparison (int16) and the lists (int32).
    rows = max(1, min(n, SCRATCH_BYTES // (len(b) * (k + 1) * 12)))
    for start in range(0, n, rows):
        block = slice(start, min(start + rows, n))
        right = torch.stack([s[block] for s in b]).to(torch.int32).permute(2, 0, 1).contiguous()  # (k, lb, r)
        for i, s in enumerate(a):
            left = s[block].to(torch.int32).T.contiguous()  # (k, r)
            total[i] += _align(left, right, gap).sum(dim=-1, dtype=torch.int64).cpu()
    return total


def _align(a: Tensor, b: Tensor, gap: int) -> Tensor:
    """G(k, k) for lists a (k, r) and b (k, lb, r): one step per cell of the table, over all rows at once."""
    k = len(a)
    row = torch.zeros(k + 1, *b.shape[1:], dtype=torch.int16, device=b.device)
    for i in range(k):
        diagonal = row[:-1] + (b == a[i])
        row -= gap
        torch.maximum(row[1:], diagonal, out=row[1:])
        for j in range(k):
            torch.maximum(row[j + 1], row[j], out=row[j + 1])
    return row[k]
