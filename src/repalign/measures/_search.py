"""Exact nearest neighbours: self excluded by index, ties by lower index, memory bounded by row blocks."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures._base import SCRATCH_BYTES

SIMILARITIES = ("cosine", "dot", "euclidean")


def unit_scale(x: Tensor) -> Tensor:
    """x divided by a power of two near its largest magnitude: exact, and squares neither overflow nor vanish."""
    largest = x.abs().max()
    if not float(largest) > 0.0:
        return x
    _, exponent = torch.frexp(largest.double())
    half = int(exponent) // 2
    return x * 2.0**-half * 2.0 ** -(int(exponent) - half)


def centred(x: Tensor) -> Tensor:
    """Column means subtracted; the means and the subtraction are float64, since offsets may be large."""
    wide = x.double()
    return (wide - wide.mean(dim=0)).to(x.dtype)


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm; a zero row stays zero."""
    # Each row by its largest entry first: a row far smaller than the others must not lose its digits.
    largest = x.abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)


def neighbors(x: Tensor, k: int, similarity: str = "cosine", *, keep_self: bool = False) -> Tensor:
    """The k nearest other rows of every row, nearest first, (n, k) int64.

    similarity: "cosine" (rows normalised here; a zero row has similarity 0 to all), "dot", or "euclidean" (nearest by
    distance, computed after centring). Equal similarities are ordered by the lower index. Exact duplicates tie
    exactly, whatever the matrix product's rounding, because similarities are computed between distinct rows only.

    Products are float64 for float64 input and otherwise float32 with TF32 off.
    """
    n = len(x)
    if not 1 <= k < n + keep_self:
        raise RepalignError(
            "k is out of range", expected=f"1 <= k < n = {n}", got=f"k = {k}", remedy="use a smaller k or more stimuli"
        )
    x = unit_scale(x)
    if similarity == "cosine":
        x = unit_rows(x)
    elif similarity == "euclidean":
        x = centred(x)
    distinct, position = torch.unique(x, dim=0, return_inverse=True)
    distinct_all = len(distinct) == n
    if distinct_all:
        distinct = x
    penalty = (distinct * distinct).sum(dim=1) / 2 if similarity == "euclidean" else None
    out = torch.empty(n, k, dtype=torch.int64, device=x.device)
    rows = max(1, min(n, SCRATCH_BYTES // (4 * n * x.element_size())))
    with full_precision():
        for start in range(0, n, rows):
            block = slice(start, min(start + rows, n))
            s = x[block] @ distinct.T
            if penalty is not None:
                s -= penalty  # <x, y> - |y|^2 / 2 orders y by distance from x
            if not distinct_all:
                s = s[:, position]
            if not keep_self:
                s[torch.arange(len(s)), torch.arange(block.start, block.stop)] = -torch.inf
            out[block] = _largest(s, k)
    return out


def _largest(s: Tensor, k: int) -> Tensor:
    """Indices of the k largest entries per row in descending order, ties by lower index."""
    values, indices = s.topk(min(k + 1, s.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    if bool(tied.any()):
        indices[tied] = s[tied].argsort(dim=1, descending=True, stable=True)[:, : indices.shape[1]]
    return indices[:, :k]


@contextmanager
def full_precision():
    """float32 products without TF32, as it was before afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
