"""Exact neighbour lists, the only place where they are made.

The first pass is one matrix product per tile of rows, in the precision of the features. Rows in which two of
the k + 1 nearest are closer than rounding can tell apart are computed again in float64, where entries closer
than float64 can tell apart count as tied, and ties go to the lower index. So the lists of float32 features
are those of float64 arithmetic, they do not depend on the device or the matrix library, and duplicate rows,
collinear rows and zero rows have one well-defined order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures._base import SCRATCH_BYTES
from repalign.measures._numeric import centred, full_precision, scaled, unit_rows

SIMILARITIES = ("cosine", "dot", "euclidean")


@dataclass(frozen=True, eq=False)
class Embedded:
    """Rows f and a bias b such that f_i . f_j + b_j orders the neighbours j of every i, nearest first."""

    rows: Tensor  # (n, d) float64
    bias: Tensor | None  # (n,) float64
    dtype: torch.dtype  # precision of the features they come from
    unit: float = 1.0  # f times this is in the unit of the features
    is_unit: bool = False  # rows of norm 1, where they are not 0

    @property
    def is_constant(self) -> bool:
        """All rows alike, or all cosines 1 as far as float64 can tell: the lists hold the tie rule alone."""
        apart = self.rows - self.rows[0]
        if not self.is_unit:
            return not bool(apart.any())
        return bool((apart * apart).sum(dim=1).max() <= _unit_resolution(self.rows.shape[1], torch.float64))


def embed(x: Tensor, similarity: str, center: bool = False) -> Embedded:
    """Features (n, d) as rows whose products give the similarity.

    cosine: unit rows (of the column-centred features if `center`). dot: the features up to one scale.
    euclidean: -|x_i - x_j|^2 / 2 up to a term of i, which is f_i . f_j - |f_j|^2 / 2; a common offset drops
    out of it and costs digits, so the features are centred first.
    """
    if similarity == "cosine":
        return Embedded(unit_rows(centred(x)[0] if center else x), None, x.dtype, is_unit=True)
    if similarity == "dot":
        rows, unit = centred(x) if center else scaled(x)
        return Embedded(rows, None, x.dtype, unit)
    rows, _ = centred(x)
    return Embedded(rows, -0.5 * (rows * rows).sum(dim=1), x.dtype)


def nearest(embedded: Embedded, k: int, *, include_self: bool = False) -> Tensor:
    """Indices (n, k) of the k nearest rows of every row, nearest first, ties by lower index.

    The row itself is left out by its index, wherever it stands, unless `include_self`.

    Raises RepalignError if there are not k rows to choose from.
    """
    n = len(embedded.rows)
    if k > n - (not include_self):
        raise RepalignError(
            f"k = {k} neighbours among n = {n} stimuli",
            expected=f"k <= {n - (not include_self)}",
            got=f"k = {k}",
            remedy="use a smaller k or more stimuli",
        )
    rows = embedded.rows.to(embedded.dtype)
    bias = None if embedded.bias is None else embedded.bias.to(embedded.dtype)
    resolution = _resolution(embedded, embedded.dtype)
    lists, unsettled = [], []
    for block in _blocks(n, n * rows.element_size()):
        similarity = _similarity(
            rows, bias, torch.arange(block.start, block.stop, device=rows.device), include_self
        )
        top = similarity.topk(min(k + 1, n), dim=1)
        gaps = top.values[:, :-1] - top.values[:, 1:]
        lists.append(top.indices[:, :k])
        unsettled.append((gaps <= resolution[block, None]).any(dim=1))
    found = torch.cat(lists)
    again = torch.nonzero(torch.cat(unsettled)).flatten()
    if len(again):
        found[again] = _nearest_with_ties(embedded, again, k, include_self)
    return found


def products(rows: Tensor, indices: Tensor) -> Tensor:
    """rows_i . rows_j for every entry j = indices[i, t], (n, k), in tiles of rows."""
    tiles = [
        (rows[block] @ rows.T).gather(1, indices[block])
        for block in _blocks(len(rows), len(rows) * rows.element_size())
    ]
    return torch.cat(tiles)


def _nearest_with_ties(embedded: Embedded, which: Tensor, k: int, include_self: bool) -> Tensor:
    """The lists of the rows `which` in float64; entries within its resolution of each other are tied."""
    n = len(embedded.rows)
    resolution = _resolution(embedded, torch.float64)[which]
    found = torch.empty(len(which), k, dtype=torch.int64, device=which.device)
    for block in _blocks(len(which), 3 * n * 8):
        similarity = _similarity(embedded.rows, embedded.bias, which[block], include_self)
        slack = resolution[block, None]
        last = similarity.topk(k, dim=1).values[:, -1:]
        most = int((similarity >= last - slack).sum(dim=1).max())  # candidates, with those tied with the k-th
        top = similarity.topk(most, dim=1)
        gaps = top.values[:, :-1] - top.values[:, 1:]
        group = torch.nn.functional.pad((gaps > slack).cumsum(dim=1), (1, 0))
        found[block] = (group * n + top.indices).sort(dim=1).values[:, :k] % n
    return found


def _similarity(rows: Tensor, bias: Tensor | None, which: Tensor, include_self: bool) -> Tensor:
    """The rows `which` of the similarity matrix, (len(which), n); -inf at the row itself unless included."""
    with full_precision():
        similarity = rows[which] @ rows.T
    if bias is not None:
        similarity += bias
    if not include_self:
        similarity.scatter_(1, which[:, None], -math.inf)
    return similarity


def _resolution(embedded: Embedded, dtype: torch.dtype) -> Tensor:
    """Differences of similarity that `dtype` cannot tell from rounding, per row (n,)."""
    norms = torch.linalg.vector_norm(embedded.rows, dim=1)
    largest = norms.max()
    size = norms * largest + (0.0 if embedded.bias is None else largest * largest)
    return (_unit_resolution(embedded.rows.shape[1], dtype) * size).to(dtype)


def _unit_resolution(d: int, dtype: torch.dtype) -> float:
    """The same for products of two unit vectors of length d, some ten standard deviations of their rounding.

    Rounding in a sum of d terms is a random walk: it grows like sqrt(d) eps.
    """
    return 2 * torch.finfo(dtype).eps * (math.sqrt(d) + 2)


def _blocks(n: int, row_bytes: int) -> list[slice]:
    rows = max(1, min(n, SCRATCH_BYTES // max(1, 2 * row_bytes)))
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
