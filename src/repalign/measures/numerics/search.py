"""Exact neighbour lists, the only place where they are made.

The first pass is one matrix product in the precision of the features: of the centred rows, which other measures may
share (`precision.layer_of`), or one per tile of the upper triangle, which serves its rows and its columns. Only the
best few of each row are kept (`Best`). Entries closer than rounding can tell apart are computed again in float64:
alone, if the entries kept are sure to hold the k nearest, else with all rows. There entries closer than float64 can
tell apart count as tied, and ties go to the lower index. So the lists of float32 features are those of float64
arithmetic, they do not depend on the device or the matrix library, and duplicate rows, collinear rows and zero rows
have one well-defined order.

Of a layer that is given by pairs, an RDM or a Kernel, the similarities are there: they are sorted in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import ANY_FORM, RDM, Given, Pairwise
from repalign.measures.measure import Measure
from repalign.measures.numerics.precision import RESIDUE, double_centre, full_precision, gram, layer_of, once
from repalign.measures.numerics.rows import (
    SCRATCH_BYTES,
    blocks,
    centred,
    largest_along,
    scaled,
    unit_resolution,
    unit_rows,
)

SIMILARITIES = ("cosine", "dot", "euclidean")


class Searching(Measure):
    """A measure of neighbours: what the parameters of its search, `similarity` and `center`, mean for its layers."""

    family: ClassVar[str] = "neighbors"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    takes: ClassVar[frozenset[str]] = ANY_FORM
    similarity: Any
    center: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.center and self.similarity == "euclidean":
            raise RepalignError(
                "center=True has no effect on Euclidean distances",
                expected="center=False with similarity='euclidean'", got="center=True",
                remedy="leave center out, or use similarity='cosine'",
            )  # fmt: skip

    @property
    def invariances(self) -> frozenset[str]:
        """Changes that keep the order of neighbours."""
        common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
        if self.center or self.similarity == "euclidean":
            return common | {"translation"}
        return common | {"row_scale"} if self.similarity == "cosine" else common

    @property
    def accepts(self) -> frozenset[str]:
        """Dissimilarities order neighbours, but they are no dot products and have no column means."""
        return ANY_FORM - {RDM.kind} if self.similarity == "dot" or self.center else ANY_FORM


# Entries kept per row beyond the k + 1 nearest, so that a float64 look at them alone settles most rows.
SPARE = 8

# A similarity to a row picked from anywhere costs about this many of a matrix product's.
PICKED = 100


class Embedded:
    """Rows f and a bias b such that f_i . f_j + b_j orders the neighbours j of every i, nearest first.

    cosine: unit rows (of the column-centred features if `center`). dot: the features up to one scale.
    euclidean: -|x_i - x_j|^2 / 2 up to a term of i, which is f_i . f_j - |f_j|^2 / 2; a common offset drops
    out of it and costs digits, so the features are centred first.
    """

    bias: Tensor | None = None  # b (n,) in float64, if there is one
    unit = 1.0  # f times this is in the unit of the features

    def __init__(self, features: Tensor, similarity: str, center: bool = False) -> None:
        self.features, self.similarity, self.center = features, similarity, center
        (self.n, self.d), self.dtype = features.shape, features.dtype  # dtype: of the first pass, too
        self.is_unit = similarity == "cosine"  # rows of norm 1, where they are not 0
        if not self.is_unit:
            of_rows = centred if center or similarity == "euclidean" else scaled
            self.rows, self.unit = of_rows(features)[:2]
        if similarity == "euclidean":
            self.bias = -0.5 * (self.rows * self.rows).sum(dim=1)

    @once
    def rows(self) -> Tensor:
        """f (n, d) in float64; unit rows are made when all of them are asked for."""
        return unit_rows(centred(self.features).rows if self.center else self.features)

    def some(self, which: Tensor | slice) -> Tensor:
        """Some of the rows, without computing all of them where that can be helped."""
        return self.rows[which] if self.center or "rows" in self.__dict__ else unit_rows(self.features[which])

    @once
    def is_constant(self) -> bool:
        """All rows alike, or all cosines 1 as far as float64 can tell: the lists hold the tie rule alone."""
        some = [slice(0, 16), *blocks(self.n, 2 * 8 * self.d)]  # a few rows nearly always tell
        first, limit = self.some(slice(0, 1)), unit_resolution(self.d, torch.float64) if self.is_unit else 0.0
        return all(bool(((self.some(b) - first) ** 2).sum(dim=1).max() <= limit) for b in some)

    def similarity_of(self, which: Tensor, include_self: bool) -> Tensor:
        """The rows `which` of the similarities in float64, (r, n); -inf at the row itself unless included."""
        with full_precision():
            similarity = self.rows[which] @ self.rows.T
        if self.bias is not None:
            similarity += self.bias
        return similarity if include_self else similarity.scatter_(1, which[:, None], -math.inf)

    def resolution(self, dtype: torch.dtype, which: Tensor | slice = slice(None)) -> Tensor:
        """Differences of similarity that `dtype` cannot tell from rounding, for the rows `which`, (r,)."""
        unit = unit_resolution(self.d, dtype)
        if self.is_unit:
            return torch.full_like(self.features[which, 0], unit, dtype=dtype)
        norms = torch.linalg.vector_norm(self.rows, dim=1)
        largest = norms.max()
        size = norms[which] * largest + (0.0 if self.bias is None else largest * largest)
        return (unit * size).to(dtype)

    def products_at(self, lists: Tensor, centre: str) -> Tensor:
        """f_i . f_j at the entries j of `lists` (n, k), up to one factor; see `CENTRES` for what is subtracted."""
        if self.is_unit and not self.center and (layer := layer_of(self.features)).shared:
            found = layer.cosines_at(lists, centre)
            if found is not None:
                return found
        if centre == "nothing":
            return products(self.rows, lists)
        deviations = centred(self.rows)
        found = products(deviations.rows, lists)
        # f_i . (f_j - m) = (f_i - m) . (f_j - m) + m . (f_j - m)
        return found if centre == "rows and columns" else found + deviations.along_mean()[lists]

    def cosine_distances(self) -> Tensor:
        """1 - cos (n, n) in the precision of the features; what rounding cannot tell from 0 is 0."""
        cosines = layer_of(self.features).cosines(self.center)
        if cosines is None:  # some row is all but zero: its digits are there in float64 alone
            distances = 1 - gram(self.rows)
            resolution: Tensor | float = unit_resolution(self.d, torch.float64)
        else:
            distances, resolution = 1 - cosines.values, cosines.resolution[:, None]
        return distances.masked_fill_(distances <= resolution, 0.0).to(self.dtype)


# What is subtracted from products f_i . f_j: the mean over j of each row, or those of rows and columns.
CENTRES = ("nothing", "rows", "rows and columns")

# Similarities that are given are told apart if they differ by this share of the largest of their row.
_TOLD_APART = 64 * torch.finfo(torch.float64).eps


class Tabulated:
    """The similarities of a layer that is given by pairs, in float64; `Embedded` does the same for features.

    RDM: minus the dissimilarities (cosine), or minus half their squares (euclidean), in which they are distances.
    Kernel: the products of rows that are not there: divided by both lengths (cosine), as they are (dot), or
    K_ij - K_jj / 2 (euclidean); with `center` of the rows without their mean.
    """

    bias: Tensor | None = None  # b (n,), if there is one, and the unit of f: see `Embedded`
    unit = 1.0

    def __init__(self, layer: Pairwise, similarity: str, center: bool = False) -> None:
        self.is_rdm, self.n, self.dtype = isinstance(layer, RDM), len(layer), layer.dtype
        matrix, unit = scaled(layer.matrix)
        self.values = matrix  # products f_i . f_j (n, n), or minus the dissimilarities
        if self.is_rdm:
            self.is_constant = layer.is_constant
            self.values = matrix.square_().div_(-2) if similarity == "euclidean" else matrix.neg_()
            return
        if center:
            floor = RESIDUE * torch.finfo(matrix.dtype).eps * float(torch.linalg.vector_norm(matrix))
            double_centre(matrix)
            if not float(torch.linalg.vector_norm(matrix)) > floor:
                matrix.zero_()
        if similarity == "cosine":
            length = matrix.diagonal().clamp(min=0).sqrt()
            inverse = torch.where(length > 0, 1 / torch.where(length > 0, length, 1.0), 0.0)
            matrix.mul_(inverse[:, None]).mul_(inverse)
        else:
            self.unit = math.sqrt(unit)
        own = matrix.diagonal()
        self.bias = -0.5 * own if similarity == "euclidean" else None
        self.is_constant = bool((own + own[0] - 2 * matrix[0]).max() <= _TOLD_APART * matrix.abs().max())

    def similarity_of(self, which: Tensor, include_self: bool) -> Tensor:
        similarity = self.values[which]
        if self.bias is not None:
            similarity = similarity + self.bias
        return similarity if include_self else similarity.scatter_(1, which[:, None], -math.inf)

    def resolution(self, dtype: torch.dtype, which: Tensor | slice = slice(None)) -> Tensor:
        largest = largest_along(self.values, 1)[:, 0]
        return (_TOLD_APART * (largest if self.bias is None else largest + largest.max()))[which].to(dtype)

    def products_at(self, lists: Tensor, centre: str) -> Tensor:
        values = self.values
        if centre == "rows":
            values = values - values.mean(dim=1, keepdim=True)
        elif centre == "rows and columns":
            double_centre(values := values.clone())
        return values.gather(1, lists)

    def cosine_distances(self) -> Tensor:
        """Dissimilarities as they are given, or 1 - cos of a kernel."""
        distances = -self.values if self.is_rdm else 1 - self.values
        return distances.masked_fill_(distances <= _TOLD_APART * distances.abs().max(), 0.0).to(self.dtype)


Space = Embedded | Tabulated


def embed(x: Given, similarity: str, center: bool = False) -> Space:
    """Features (n, d) as rows whose products give the similarity, or the similarities that are given."""
    return Tabulated(x, similarity, center) if isinstance(x, Pairwise) else Embedded(x, similarity, center)


def nearest(embedded: Space, k: int, *, include_self: bool = False) -> Tensor:
    """Indices (n, k) of the k nearest rows of every row, nearest first, ties by lower index.

    The row itself is left out by its index, wherever it stands, unless `include_self`.

    Raises RepalignError if there are not k rows to choose from.
    """
    n = embedded.n
    if k > n - (not include_self):
        raise RepalignError(
            f"k = {k} neighbours among n = {n} stimuli", expected=f"k <= {n - (not include_self)}", got=f"k = {k}",
            remedy="use a smaller k or more stimuli",
        )  # fmt: skip
    if isinstance(embedded, Tabulated) or 2 * k > n:  # there, or soonest computed in float64 at once
        held = embedded.values if isinstance(embedded, Tabulated) else embedded.features
        return _nearest_of_all(embedded, torch.arange(n, device=held.device), k, include_self)
    how, layer = (embedded.similarity, embedded.center, k, include_self), layer_of(embedded.features)
    if layer.shared:
        if how not in layer.lists:
            layer.lists[how] = _nearest(embedded, k, include_self)
        return layer.lists[how]
    return _nearest(embedded, k, include_self)


def _nearest(embedded: Embedded, k: int, include_self: bool) -> Tensor:
    """The same of features, by a first pass in their precision, and a second look in float64 where that cannot tell."""
    n = embedded.n
    best, slack = _first_pass(embedded, min(n, k + 1 + SPARE), include_self)
    close = best.values[:, :-1] - best.values[:, 1:] <= slack[:, None]  # entry t with entry t + 1
    found = best.indices[:, :k].clone()
    unsettled = close[:, :k].any(dim=1)
    # A gap at or behind the k-th entry: what follows it cannot be among the k nearest.
    ends = best.values.shape[1] == n or ~close[:, k - 1 :].all(dim=1)
    doubts = torch.nonzero(unsettled & ends).flatten()
    if len(doubts):
        contested = _contested(close[doubts], k)
        if int(contested.sum()) * PICKED < len(doubts) * n:
            found[doubts] = _nearest_of_kept(embedded, doubts, best, contested, k)
            unsettled[doubts] = False
    again = torch.nonzero(unsettled).flatten()
    if len(again):
        found[again] = _nearest_of_all(embedded, again, k, include_self)
    return found


def products(rows: Tensor, indices: Tensor) -> Tensor:
    """rows_i . rows_j for every entry j = indices[i, t], (n, k), in tiles of rows; half of the products where one holds all."""
    tiles = blocks(len(rows), 2 * len(rows) * rows.element_size())
    if len(tiles) == 1:
        return gram(rows).gather(1, indices)
    return torch.cat([(rows[block] @ rows.T).gather(1, indices[block]) for block in tiles])


def _first_pass(embedded: Embedded, count: int, include_self: bool) -> tuple[Best, Tensor]:
    """The `count` largest similarities of every row in the precision of the features, and what rounding may add (n,)."""
    best = Best.of(embedded.n, count, embedded.features)
    # Blocks of rows whose products with each other take a quarter of the scratch memory.
    tiles = blocks(embedded.n, 1, math.isqrt(SCRATCH_BYTES // (4 * embedded.dtype.itemsize)))
    if embedded.is_unit and len(tiles) == 1:
        cosines = layer_of(embedded.features).cosines(embedded.center)
        if cosines is not None:
            if not include_self:
                cosines.values.fill_diagonal_(-math.inf)
            best.offer(0, cosines.values, 0)
            return best, cosines.resolution.to(embedded.dtype)
    _offer_tiles(best, embedded, tiles, include_self)
    return best, embedded.resolution(embedded.dtype)


def _offer_tiles(best: Best, embedded: Embedded, tiles: Sequence[slice], include_self: bool) -> None:
    """Products of all rows, by tiles of a triangle."""
    rows = embedded.rows.to(embedded.dtype)
    bias = None if embedded.bias is None else embedded.bias.to(embedded.dtype)
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


def _sum(tile: Tensor, bias: Tensor, scratch: Tensor) -> Tensor:
    return torch.add(tile, bias, out=scratch[: tile.numel()].view(tile.shape))


def _tile(rows: Tensor, along: slice, across: slice, scratch: Tensor) -> Tensor:
    """Products of two blocks of rows, in the memory of `scratch` where that is possible."""
    if along == across:
        return gram(rows[along])
    a, b = rows[along], rows[across]
    with full_precision():
        return torch.mm(a, b.T, out=scratch[: len(a) * len(b)].view(len(a), len(b)))


def _contested(close: Tensor, k: int) -> Tensor:
    """Which of the entries kept, (r, m), are close to a neighbour and may be among the k nearest."""
    behind = torch.nn.functional.pad(close, (1, 0))
    # Entries behind the first gap at or behind the k-th are out, whatever their digits are.
    out = (~behind[:, k:]).cumsum(dim=1) > 0
    contested = behind | torch.nn.functional.pad(close, (0, 1))
    contested[:, k:] &= ~out
    return contested


def _nearest_of_kept(embedded: Embedded, which: Tensor, best: Best, contested: Tensor, k: int) -> Tensor:
    """The lists of the rows `which`, in which the `contested` (r, m) of the entries that `best` kept are made anew."""
    values, indices = best.values[which].to(torch.float64), best.indices[which]
    row, place = torch.nonzero(contested, as_tuple=True)
    column = indices[row, place]
    anew = torch.cat(
        [
            torch.linalg.vecdot(embedded.some(which[row[b]]), embedded.some(column[b]))
            for b in blocks(len(row), 4 * 8 * embedded.d)
        ]
    )
    values[row, place] = anew if embedded.bias is None else anew + embedded.bias[column]
    return first_with_ties(values, indices, embedded.resolution(torch.float64, which)[:, None], k)[1]


def _nearest_of_all(embedded: Space, which: Tensor, k: int, include_self: bool) -> Tensor:
    """The lists of the rows `which` in float64, from all rows."""
    n = embedded.n
    slack = embedded.resolution(torch.float64, which)
    found = torch.empty(len(which), k, dtype=torch.int64, device=which.device)
    for block in blocks(len(which), 6 * 8 * n):
        similarity = embedded.similarity_of(which[block], include_self)
        if 2 * k > n:  # sorted as a whole, which is sooner than looking for the k-th twice
            places = torch.arange(n, device=which.device).expand_as(similarity)
            found[block] = first_with_ties(similarity, places, slack[block, None], k)[1]
            continue
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
    apart = values[:, :-1] - values[:, 1:] > slack
    if apart.all():
        return values[:, :k], indices[:, :k]
    group = torch.nn.functional.pad(apart.cumsum(dim=1), (1, 0))
    group = group.masked_fill_(values < values[:, k - 1 : k] - slack, values.shape[1])
    first = (group * (int(indices.max()) + 1) + indices).argsort(dim=1)[:, :k]
    return values.gather(1, first), indices.gather(1, first)


# --- the largest entries of a row ---


@dataclass(frozen=True, eq=False)
class Best:
    """The m largest values per row so far, largest first, and their columns; changed in place by `offer`.

    Places not filled yet hold -inf, and entries of -inf are never taken.
    """

    values: Tensor  # (n, m)
    indices: Tensor  # (n, m) int64

    @classmethod
    def of(cls, n: int, m: int, like: Tensor) -> Self:
        """Empty, with the dtype and device of `like`."""
        return cls(like.new_full((n, m), -math.inf), torch.zeros(n, m, dtype=torch.int64, device=like.device))

    def offer(self, row: int, tile: Tensor, column: int) -> None:
        """Take in tile (r, c), whose first entry stands at (row, column); fast for row-major tiles and their transposes.

        A chunk is a set of columns. Of a row only the chunks with the m largest maxima can hold one of its m largest
        entries, and only if these exceed the least value held. So sorting touches a few entries per row.
        """
        m, columns = self.values.shape[1], tile.shape[1]
        # A power of two near sqrt(columns / m): as many maxima to look through as entries of the chosen chunks.
        width = 2 ** max(0, round(math.log2(columns / m) / 2)) if columns > m else 1
        rest = tile.shape[1] % width
        if rest:
            self.offer(row, tile[:, :-rest], column)
            self.offer(row, tile[:, -rest:], column + tile.shape[1] - rest)
            return
        chunks = tile.unflatten(1, (width, -1))  # (r, width, count): chunk j holds the columns j, j + count, ...
        maxima = chunks.permute(1, 2, 0).amax(dim=0).T if tile.stride(0) == 1 else chunks.amax(dim=1)
        count = maxima.shape[1]
        least = self.values[row : row + len(tile), -1:]
        above = torch.nextafter(least, torch.full_like(least, math.inf))  # no entry is taken that is not larger than the least
        limit = torch.maximum(above, _kth_largest(maxima, m)) if count > m else above
        hot = _reach(maxima, limit)
        most = int(hot.sum(dim=1).max())
        if not most:
            return
        if most > m:  # maxima that are equal
            larger = hot & (maxima > limit)  # of the others any will do
            hot &= larger | ((hot & ~larger).cumsum(dim=1) <= m - larger.sum(dim=1, keepdim=True))
        i, j = _places(hot)
        # The m largest maxima alone hold m entries, so that none below the limit is one of them.
        candidates = chunks[i, :, j]  # (h, width)
        at, w = _places(_reach(candidates, limit[i]))
        new, i, j = candidates[at, w], i[at], column + j[at] + w * count
        counts = torch.bincount(i, minlength=len(tile))
        which = torch.nonzero(counts).flatten()
        place = torch.arange(len(i), device=i.device) - (counts.cumsum(0) - counts)[i]
        slot, rows = ((counts > 0).cumsum(0) - 1)[i], row + which
        kept = 0 if bool((self.values[rows, 0] == -math.inf).all()) else m
        values = new.new_full((len(rows), max(m, kept + int(counts.max()))), -math.inf)
        indices = torch.zeros_like(values, dtype=torch.int64)
        values[:, :kept], indices[:, :kept] = self.values[rows, :kept], self.indices[rows, :kept]
        values[slot, kept + place], indices[slot, kept + place] = new, j
        top = values.topk(m, dim=1)
        self.values[rows], self.indices[rows] = top.values, indices.gather(1, top.indices)


# Numpy takes a fifth to a tenth of the time of torch for what follows, on the CPU.


def _reach(x: Tensor, limit: Tensor) -> Tensor:
    """Which entries of x (r, c) are at least the limit (r, 1) of their row."""
    return x >= limit if x.device.type != "cpu" else torch.from_numpy(np.greater_equal(x.numpy(), limit.numpy()))


def _places(found: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of all that is true, row by row."""
    if found.device.type != "cpu":
        return torch.nonzero(found, as_tuple=True)
    if found.stride(0) < found.stride(1):  # as it lies in memory
        j, i = np.divmod(np.flatnonzero(found.T.numpy()), len(found))
        order = i.argsort(kind="stable")
        i, j = i[order], j[order]
    else:
        i, j = np.divmod(np.flatnonzero(found.numpy()), found.shape[1])
    return torch.from_numpy(i), torch.from_numpy(j)


def _kth_largest(x: Tensor, k: int) -> Tensor:
    """The k-th largest entry of every row of x (r, c), (r, 1)."""
    if x.device.type != "cpu":
        return x.topk(k, dim=1).values[:, -1:]
    at = x.shape[1] - k
    return torch.from_numpy(np.partition(x.numpy(), at, axis=1)[:, at : at + 1])
