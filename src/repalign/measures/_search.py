"""Exact neighbour lists, the only place where they are made.

The first pass is one matrix product per tile of the upper triangle, in the precision of the features; a tile serves
its rows and its columns, and of each row only the best few so far are kept (`Best`). Rows in which two of the k + 1
nearest are closer than rounding can tell apart are computed again in float64: among the entries kept if these are
sure to hold the k nearest, else among all rows. There entries closer than float64 can tell apart count as tied, and
ties go to the lower index. So the lists of float32 features are those of float64 arithmetic, they do not depend on
the device or the matrix library, and duplicate rows, collinear rows and zero rows have one well-defined order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures._base import SCRATCH_BYTES
from repalign.measures._best import Best
from repalign.measures._numeric import centred, full_precision, gram, scaled, unit_rows

SIMILARITIES = ("cosine", "dot", "euclidean")

# Entries kept per row beyond the k + 1 nearest, so that a float64 look at them alone settles most rows.
SPARE = 8

# A similarity to a row picked from anywhere costs about this many of a matrix product's.
PICKED = 100


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
        first = self.rows[0]
        blocks = [slice(0, 16), *_blocks(len(self.rows), self.rows[0].nbytes)]  # a few rows nearly always tell
        if not self.is_unit:
            return all(bool((self.rows[b] == first).all()) for b in blocks)
        limit = unit_resolution(self.rows.shape[1], torch.float64)
        return all(bool(((self.rows[b] - first) ** 2).sum(dim=1).max() <= limit) for b in blocks)


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
    best = _best(embedded, min(n, k + 1 + SPARE), include_self)
    gaps = best.values[:, :k] - best.values[:, 1 : k + 1] if k < n else best.values.diff(dim=1).neg()
    slack = _resolution(embedded, embedded.dtype)
    unsettled = (gaps <= slack[:, None]).any(dim=1)
    kept = best.values.shape[1]
    complete = (best.values[:, -1] < best.values[:, k - 1] - slack) & (n > PICKED * kept)
    found = best.indices[:, :k].clone()
    again = torch.nonzero(unsettled & complete).flatten()
    if len(again):
        found[again] = _nearest_of_kept(embedded, again, best, k)
    again = torch.nonzero(unsettled & ~complete).flatten()
    if len(again):
        found[again] = _nearest_of_all(embedded, again, k, include_self)
    return found


def products(rows: Tensor, indices: Tensor) -> Tensor:
    """rows_i . rows_j for every entry j = indices[i, t], (n, k), in tiles of rows."""
    tiles = [
        (rows[block] @ rows.T).gather(1, indices[block])
        for block in _blocks(len(rows), len(rows) * rows.element_size())
    ]
    return torch.cat(tiles)


def _best(embedded: Embedded, count: int, include_self: bool) -> Best:
    """The `count` largest similarities of every row, in the precision of the features, by tiles of a triangle."""
    rows = embedded.rows.to(embedded.dtype)
    bias = None if embedded.bias is None else embedded.bias.to(embedded.dtype)
    n = len(rows)
    best = Best.of(n, count, rows)
    tiles = _tiles(n, rows.element_size())
    scratch = rows.new_empty(1 if bias is None else 2, len(rows[tiles[0]]) ** 2)
    for t, across in enumerate(tiles):
        for along in tiles[: t + 1]:
            similarity = _tile(rows, along, across, scratch[0])
            if along == across and not include_self:
                similarity.fill_diagonal_(-math.inf)
            for_rows = similarity if bias is None else _sum(similarity, bias[across], scratch[1])
            best.offer(along.start, for_rows, across.start)
            if along != across:
                for_columns = similarity if bias is None else _sum(similarity, bias[along, None], scratch[1])
                best.offer(across.start, for_columns.T, along.start)
    return best


def _sum(tile: Tensor, bias: Tensor, scratch: Tensor) -> Tensor:
    return torch.add(tile, bias, out=scratch[: tile.numel()].view(tile.shape))


def _tile(rows: Tensor, along: slice, across: slice, scratch: Tensor) -> Tensor:
    """Products of two blocks of rows, in the memory of `scratch` where that is possible."""
    if along == across:
        return gram(rows[along])
    a, b = rows[along], rows[across]
    with full_precision():
        return torch.mm(a, b.T, out=scratch[: len(a) * len(b)].view(len(a), len(b)))


def _nearest_of_kept(embedded: Embedded, which: Tensor, best: Best, k: int) -> Tensor:
    """The lists of the rows `which` in float64, from the entries that `best` has kept of them."""
    slack = _resolution(embedded, torch.float64)[which]
    found = torch.empty(len(which), k, dtype=torch.int64, device=which.device)
    for block in _blocks(len(which), best.indices.shape[1] * embedded.rows[0].nbytes):
        kept = best.indices[which[block]]
        similarity = torch.einsum("rd,rmd->rm", embedded.rows[which[block]], embedded.rows[kept])
        if embedded.bias is not None:
            similarity += embedded.bias[kept]
        similarity.masked_fill_(best.values[which[block]] == -math.inf, -math.inf)
        found[block] = first_with_ties(similarity, kept, slack[block, None], k)[1]
    return found


def _nearest_of_all(embedded: Embedded, which: Tensor, k: int, include_self: bool) -> Tensor:
    """The lists of the rows `which` in float64, from all rows."""
    n = len(embedded.rows)
    slack = _resolution(embedded, torch.float64)[which]
    found = torch.empty(len(which), k, dtype=torch.int64, device=which.device)
    for block in _blocks(len(which), 3 * n * 8):
        similarity = _similarity(embedded.rows, embedded.bias, which[block], include_self)
        last = similarity.topk(k, dim=1).values[:, -1:]
        most = int((similarity >= last - slack[block, None]).sum(dim=1).max())  # with those tied with the k-th
        top = similarity.topk(most, dim=1)
        found[block] = first_with_ties(top.values, top.indices, slack[block, None], k)[1]
    return found


def first_with_ties(values: Tensor, indices: Tensor, slack: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of values (r, m), and their indices (r, k); entries within `slack` of their neighbour are tied.

    Ties go to the lower index. What lies more than `slack` below the k-th value is tied with nothing.
    """
    values, order = values.sort(dim=1, descending=True)
    indices = indices.gather(1, order)
    group = torch.nn.functional.pad((values[:, :-1] - values[:, 1:] > slack).cumsum(dim=1), (1, 0))
    group = group.masked_fill_(values < values[:, k - 1 : k] - slack, values.shape[1])
    first = (group * (int(indices.max()) + 1) + indices).argsort(dim=1)[:, :k]
    return values.gather(1, first), indices.gather(1, first)


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
    if embedded.is_unit:
        return embedded.rows.new_full((len(embedded.rows),), unit_resolution(embedded.rows.shape[1], dtype), dtype=dtype)
    norms = torch.linalg.vector_norm(embedded.rows, dim=1)
    largest = norms.max()
    size = norms * largest + (0.0 if embedded.bias is None else largest * largest)
    return (unit_resolution(embedded.rows.shape[1], dtype) * size).to(dtype)


def unit_resolution(d: int, dtype: torch.dtype) -> float:
    """The same for products of two unit vectors of length d, some ten standard deviations of their rounding.

    Rounding in a sum of d terms is a random walk: it grows like sqrt(d) eps.
    """
    return 2 * torch.finfo(dtype).eps * (math.sqrt(d) + 2)


def _blocks(n: int, row_bytes: int) -> list[slice]:
    return _slices(n, SCRATCH_BYTES // max(1, 2 * row_bytes))


def _tiles(n: int, itemsize: int) -> list[slice]:
    """Blocks of rows whose products with each other take a quarter of the scratch memory."""
    return _slices(n, math.isqrt(SCRATCH_BYTES // (4 * itemsize)))


def _slices(n: int, size: int) -> list[slice]:
    size = max(1, min(n, size))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
