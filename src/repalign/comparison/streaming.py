"""Linear CKA at any n, in one pass over the rows and without an n x n matrix.

All that linear CKA and the first two moments of its permutation null need are sums over rows (`linear_inner`). Rows are summed
about a provisional origin, the mean of the first block, and every sum is moved to the true mean at the end, which is exact
algebra: a common offset costs no digits. Products of a block are formed in the dtype of the features (halves in float32), and
added up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import FEATURES, Given, kind_of
from repalign.measures.kernel import ESTIMATORS, UNBIASED, linear_inner
from repalign.measures.measure import Measure, as_layer, check_paired
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import power_of_two
from repalign.representation import DEFAULT_MEMORY, Representation, ahead, check_same_dataset
from repalign.store import StoredRepresentation
from repalign.text import Progress, silent, size

BLOCK = 4096  # rows of a block
BLOCKS = 3  # of each layer in memory: one that waits, one that is used, and its centred copy
COLUMNS = 192  # of a self-product, computed as a lower triangle of such strips
NUMBERS = ("statistic", "null_mean", "null_std", "z", "pvalue_bound")
# A difference that is below this many roundings of what was subtracted has vanished.
_RESIDUE = 16


@dataclass(frozen=True)
class StreamedCKA:
    """Linear CKA of two layers, and where it lies in its permutation null.

    statistic : the score; nan if a layer is constant, or its U-centred kernel vanishes within rounding.
    null_mean, null_std : exact mean and standard deviation over all n! pairings of the rows.
    z : (statistic - null_mean) / null_std.
    pvalue_bound : 1 / (1 + z^2), and 1 for z <= 0: no permutation p-value of this score can be larger (Cantelli's
        inequality, which assumes nothing of the null's shape).
    n, widths : rows, and features of x and y.
    method : what was computed, in a sentence.
    """

    statistic: float
    null_mean: float
    null_std: float
    z: float
    pvalue_bound: float
    n: int
    widths: tuple[int, int]
    method: str


@dataclass(frozen=True, eq=False)
class StreamedCKAs:
    """All layers of x against all layers of y: the fields of `StreamedCKA` as (l, m) float64 arrays.

    names_x, names_y and widths_x, widths_y label the rows and columns.
    """

    statistic: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    z: np.ndarray
    pvalue_bound: np.ndarray
    n: int
    names_x: tuple[str, ...]
    names_y: tuple[str, ...]
    widths_x: tuple[int, ...]
    widths_y: tuple[int, ...]
    method: str

    def cell(self, row: int, column: int) -> StreamedCKA:
        """One pair of layers."""
        numbers = {name: float(getattr(self, name)[row, column]) for name in NUMBERS}
        return StreamedCKA(**numbers, n=self.n, widths=(self.widths_x[row], self.widths_y[column]), method=self.method)


def stream_cka(
    x: Any, y: Any, *, estimator: str = "debiased", block: int = BLOCK, device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> StreamedCKA:  # fmt: skip
    """Linear CKA of two layers in one pass over their rows, with the exact mean and spread of its null.

    x, y : `Rows`, arrays (n, d1) and (n, d2) (numpy, memory maps, tensors), or pairs (representation, layer).
    Equals `CKA(estimator=estimator)` to rounding, about 1e-7 |K|^2 / |K~|^2 for float32 features; range and invariances
    are the same. Holds d1^2 + d2^2 + d1 d2 float64 sums and three blocks of each layer, whatever n is.

    Raises RepalignError if n < 4, if row counts, datasets or ids differ, or at a row that is not finite.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> round(stream_cka(x, 5 - 2 * x, block=64).statistic, 12)
    1.0
    """
    return stream_cka_all([x], [y], estimator=estimator, block=block, device=device, progress=progress).cell(0, 0)


def stream_cka_all(
    xs: Representation | Sequence[Any], ys: Representation | Sequence[Any], *, estimator: str = "debiased",
    block: int = BLOCK, device: str | torch.device = "cpu", memory: int | None = None, progress: Progress = silent,
) -> StreamedCKAs:  # fmt: skip
    """Linear CKA of all layers of x against all layers of y, every block of every layer read once.

    xs, ys : lists of what `stream_cka` takes, or representations, which stand for all their layers.
    The sums over l and m layers of width d take 8 (l + m + l m) d^2 bytes, plus three blocks of each layer. If the
    sums take more than `memory` bytes, by default a quarter of the machine's, the layers of x are taken in groups, and
    y is read once per group; the method says so.

    Raises RepalignError as `stream_cka` does, and if the sums of one layer of x do not fit.
    """
    choose("estimator", estimator, ESTIMATORS)
    left, right = paired_rows(xs, ys)
    n = left[0].n
    if n < 4:
        raise RepalignError(f"{left[0].name}: too few stimuli for CKA and its null", expected="n >= 4", got=f"n = {n}")
    if block < 1:
        raise RepalignError("a block has at least one row", expected="block >= 1", got=block)
    groups = _groups(left, right, DEFAULT_MEMORY if memory is None else memory)
    tables, done, dtype = [], 0, torch.float32
    progress("linear CKA", 0, n * len(groups))
    for group in groups:
        sums = Sums(group, right, n, torch.device(device))
        sums.run(block, lambda rows, past=done: progress("linear CKA", past + rows, n * len(groups)))
        tables.append(_scores(sums, estimator))
        done, dtype = done + n, sums.dtype
    passes = "one streaming pass" if len(groups) == 1 else f"{len(groups)} streaming passes"
    return StreamedCKAs(
        *np.concatenate(tables, axis=1), n,
        *(tuple(r.name for r in side) for side in (left, right)), *(tuple(r.width for r in side) for side in (left, right)),
        f"{estimator} linear CKA of n = {n:,} rows in feature space, {passes}, {short(dtype)} products and "
        "float64 sums; exact permutation mean and standard deviation, p-value bounded by Cantelli's inequality",
    )  # fmt: skip


# --- the border ----------------------------------------------------------------------------------


def paired_rows(xs: Representation | Sequence[Any], ys: Representation | Sequence[Any]) -> tuple[list[Rows], list[Rows]]:
    """All layers of both sides as rows, once they are known to describe the same stimuli."""
    sides: list[list[Any]] = [[(s, layer) for layer in s.layers] if isinstance(s, Representation) else list(s) for s in (xs, ys)]
    check_same_dataset([r for side in sides for s in side if isinstance(r := s[0] if isinstance(s, tuple) else s, Representation)])
    for side, name in zip(sides, "xy", strict=True):
        if not side:
            raise RepalignError(f"{name}: there is no layer", expected="at least one layer", got="none")
        for i, s in enumerate(side):
            side[i] = as_rows(*s) if isinstance(s, tuple) else as_rows(s, name=name if len(side) == 1 else f"{name}[{i}]")
    left, right = sides
    for other in (*left[1:], *right):
        check_paired(left[0].n, other.n, left[0].name, other.name)
    return left, right


def _groups(left: list[Rows], right: list[Rows], memory: int) -> list[list[Rows]]:
    """The layers of x in as few runs as the sums leave room for."""
    ys = [r.width for r in right]
    groups: list[list[Rows]] = [[]]
    for rows in left:
        if groups[-1] and sums_bytes([r.width for r in (*groups[-1], rows)], ys) > memory:
            groups.append([])
        groups[-1].append(rows)
        needed = sums_bytes([r.width for r in groups[-1]], ys)
        if needed > memory:
            raise RepalignError(
                f"{rows.name}: its sums with {len(right)} layers of the other side do not fit", expected=f"at most {size(memory)}",
                got=size(needed), remedy="raise `memory`, or compare fewer layers of y at a time",
            )  # fmt: skip
    return groups


# --- the scores ----------------------------------------------------------------------------------


def _scores(sums: Sums, estimator: str) -> np.ndarray:
    """statistic, null_mean, null_std, z and pvalue_bound: (5, l, m)."""
    n, split, p = sums.n, len(sums.left), sums.products.cpu().numpy()
    for i, layer in enumerate(sums.layers):
        layer.close(float(p[0, 1 + i]), p[1 + i, 1 + i], n, estimator)
    out = np.empty((5, split, len(sums.right)))
    for i, (x, row) in enumerate(zip(sums.layers, sums.cross, strict=False)):
        for j, (y, cross) in enumerate(zip(sums.layers[split:], row, strict=True)):
            squared, diagonal = moved(cross, x, y, p[1 + i, 1 + split + j], x.weighted[2 + j], y.weighted[2 + i], n)
            out[:, i, j] = _cell(linear_inner(squared, diagonal, x.trace * y.trace, n, estimator in UNBIASED), x, y, n)
    return out


def _cell(inner: float, x: Layer, y: Layer, n: int) -> tuple[float, float, float, float, float]:
    """Score, null mean and deviation, z and bound. Mean and variance over all permutations of centred A and B:

    E = T T* / (n-1),  V = 2 f f* / ((n-1)^2 (n+1) (n-2)) + g g* / ((n+1) n (n-1) (n-2) (n-3)),

    with f = (n-1) T2 - T^2, g = n (n+1) S2 - (n-1) (T^2 + 2 T2) (Kazi-Aoual et al. 1995, CSDA 20:643). For U-centred
    kernels, whose diagonal is empty, E = 0 and V = 2 T2 T2* / (n (n-3)), whatever the data.
    """
    if x.norm2 == 0 or y.norm2 == 0:
        return math.nan, math.nan, math.nan, math.nan, math.nan
    norms = math.sqrt(x.norm2) * math.sqrt(y.norm2)
    score, mean = inner / norms, x.t / math.sqrt(x.norm2) * (y.t / math.sqrt(y.norm2)) / (n - 1)
    (f, g), (f_, g_) = x.spread(n), y.spread(n)
    variance = 2 * f * f_ / ((n - 1) ** 2 * (n + 1) * (n - 2)) + g * g_ / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    if not variance > 0:  # every pairing has the same score
        return score, mean, 0.0, math.nan, 1.0
    std = math.sqrt(variance)
    z = (score - mean) / std
    return score, mean, std, z, 1 / (1 + z * z) if z > 0 else 1.0


# --- rows of a layer, wherever it is kept --------------------------------------------------------

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@runtime_checkable
class Rows(Protocol):
    """One layer that is read in order, block by block; each call of `blocks` starts again at row 0."""

    name: str  # as errors call it
    n: int
    width: int  # the number of features

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Tensors (size, d) of a floating dtype, the last one shorter, n rows in all."""
        ...


@dataclass(eq=False)
class ArrayRows:
    """An array (n, d): a numpy array or memory map, of which only blocks are read, or a tensor."""

    array: Any
    name: str = "array"

    def __post_init__(self) -> None:
        array = self.array
        if not isinstance(array, Tensor) and not (isinstance(array, np.ndarray) and array.dtype.kind in "fiub"):
            expected = "a numpy array, a memory map or a tensor of shape (n, d)"
            got = f"{type(array).__name__} {getattr(array, 'dtype', '')}".strip()
            raise RepalignError(f"{self.name}: not an array of numbers", expected=expected, got=got)
        if array.ndim != 2 or 0 in array.shape:
            expected = "two dimensions (n, d): one row per stimulus, one column per feature"
            raise RepalignError(f"{self.name}: wrong shape", expected=expected, got=f"shape {tuple(array.shape)}")
        self.n, self.width = array.shape

    def blocks(self, size: int) -> Iterator[Tensor]:
        for start in range(0, self.n, size):
            piece = self.array[start : start + size]
            if isinstance(piece, np.ndarray):  # a copy: a memory map is read here, and may be read-only or byte-swapped
                piece = torch.from_numpy(np.array(piece, dtype=piece.dtype.newbyteorder("="), order="C"))
            yield piece.detach() if piece.dtype in FLOATS else piece.to(torch.float64)


@dataclass(eq=False)
class StoredRows:
    """A layer of a stored representation: one block and one part are in memory at a time."""

    representation: StoredRepresentation
    layer: str

    def __post_init__(self) -> None:
        self.name, self.n = f"{self.representation.name}, layer {self.layer!r}", self.representation.n
        self.width = self.representation.width(self.layer)

    def blocks(self, size: int) -> Iterator[Tensor]:
        for _, rows in self.representation.iter_rows(self.layer, size):
            yield rows


def as_rows(source: Any, layer: str | None = None, *, name: str = "array") -> Rows:
    """Rows of an array, of a layer of a representation, or `source` itself if it is `Rows` already.

    A stored representation is read in blocks; any other is asked for the whole layer (`load`), once.
    Raises RepalignError for anything else, and if a representation comes without a layer.
    """
    if isinstance(source, Representation):
        if layer is None:
            raise RepalignError(
                f"{source.name}: no layer is named", expected=f"(representation, layer), with one of {len(source.layers)} layers",
                got="a representation alone", remedy=f"for instance the last one, {source.layers[-1]!r}" if source.layers else None,
            )  # fmt: skip
        source.check_layer(layer)
        if source.kinds[layer] != FEATURES:
            raise RepalignError(
                f"{source.name}, layer {layer!r}: rows of features are read here", expected="a layer of features (n, d)",
                got=f"a layer given as {source.kinds[layer]}",
                remedy="compare it with repalign.compare, which takes RDMs and kernels",
            )  # fmt: skip
        if isinstance(source, StoredRepresentation):
            return StoredRows(source, layer)
        return ArrayRows(source.load(layer), f"{source.name}, layer {layer!r}")
    if not isinstance(source, Tensor | np.ndarray) and isinstance(source, Rows):
        return source
    return ArrayRows(source, name)


def paired_layers(given: Sequence[Any], names: Sequence[str], measure: Measure) -> list[Given]:
    """Whole layers, arrays or pairs (representation, layer), of one number of rows and of a form that the measure takes.

    Errors call them by these names.
    """
    check_same_dataset([v[0] for v in given if isinstance(v, tuple) and v and isinstance(v[0], Representation)])
    layers = []
    for v, name in zip(given, names, strict=True):
        stored = isinstance(v, tuple) and v and isinstance(v[0], Representation)
        layers.append(as_layer(v[0].load(v[1]), f"{v[0].name}, layer {v[1]!r}") if stored else as_layer(v, name))
        measure.check(len(layers[-1]), name, {name: kind_of(layers[-1])})
    for layer, name in zip(layers[1:], names[1:], strict=True):
        check_paired(len(layers[0]), len(layer), names[0], name)
    return layers


def in_step(rows: list[Rows], n: int, size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Blocks of several layers side by side: (first row, one tensor (rows, d) per layer).

    Raises RepalignError, naming the layer, if one yields other shapes than it declares.
    """
    readers = [r.blocks(size) for r in rows]
    for start in range(0, n, size):
        blocks = [next(reader, None) for reader in readers]
        for source, block in zip(rows, blocks, strict=True):
            shape = (min(size, n - start), source.width)
            got = None if block is None else tuple(block.shape)
            if got != shape:
                problem = f"{source.name}: its blocks are out of step at row {start:,}"
                raise RepalignError(problem, expected=f"shape {shape}", got="no more rows" if got is None else f"shape {got}")
        yield start, blocks  # type: ignore[misc]


# --- sums over the rows, about a provisional origin ----------------------------------------------


def strips(width: int) -> list[tuple[int, int]]:
    """(first, stop) of the strips of columns of which the lower triangle of a self-product is made."""
    return [(a, min(a + COLUMNS, width)) for a in range(0, width, COLUMNS)]


def sums_bytes(xs: Sequence[int], ys: Sequence[int], itemsize: int = 4) -> int:
    """Float64 sums of layers of these widths, and one product on its way into them."""
    held = sum(d * d for d in (*xs, *ys)) + sum(xs) * sum(ys)
    held += sum(d * (2 + len(ys)) for d in xs) + sum(d * (2 + len(xs)) for d in ys)
    return 8 * held + itemsize * max(xs) * max(ys)


class Layer:
    """One layer about a provisional origin and in a provisional unit (a power of two, which rounds nothing).

    weighted : with a the squared norms of its rows, b those of each layer of the other side, and 1 a column of ones,
        [1, a, b_1, ..., b_m]' X.
    mean, about : mean (d,) and sum of a, about the origin; from `close` on.
    t, norm2, s2 : T = tr A, T2 = |A|^2 and S2 = sum a_ii^2 of the centred kernel A; T2 = 0 if it vanishes within rounding.
    """

    def __init__(self, rows: Rows, block: int, dtype: torch.dtype, device: torch.device, others: int) -> None:
        self.name, width = rows.name, rows.width
        self.buffer = torch.empty(block, width, dtype=dtype, device=device)
        self.origin: Tensor | None = None
        self.unit = 0.0
        home = "cpu" if device.type == "mps" else device  # no float64 there
        self.square = torch.zeros(width, width, dtype=torch.float64, device=home)  # sum u u', lower strips
        self.weighted = torch.zeros(2 + others, width, dtype=torch.float64, device=home)

    def centre(self, block: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """u (rows, d) = (block - origin) / unit, and |u_i|^2 in float64; rows start at row `first` of the layer."""
        u = self.buffer[: len(block)]
        u.copy_(block)
        if self.origin is None:
            self.origin = u[0] + (u - u[0]).mean(dim=0)  # exactly the constant, if all rows are one
        u.sub_(self.origin)
        if self.unit == 0:
            largest = u.abs().max().to("cpu", torch.float64)
            self.unit = float(power_of_two(largest)) if largest > 0 else 0.0
        if self.unit not in (0.0, 1.0):
            u.div_(self.unit)
        squares = torch.linalg.vector_norm(u, dim=1).to(self.square.device, torch.float64).square_()
        finite = torch.isfinite(squares)
        if not bool(finite.all()):
            row = first + int((~finite).nonzero()[0])
            many = f"{int((~finite).sum())} such rows in rows {first:,} to {first + len(u) - 1:,}, the first is row {row:,}"
            raise RepalignError(
                f"{self.name}: NaN or infinite values, or values too large for {short(u.dtype)}", expected="every entry finite",
                got=many, remedy="look for overflow in half precision, or leave these stimuli out of the dataset",
            )  # fmt: skip
        return u, squares

    def close(self, about: float, own: float, n: int, estimator: str) -> None:
        """What follows from the sums, once all rows are in: with `about` = sum a and `own` = sum a^2."""
        self.mean, self.about = self.weighted[0] / n, about
        whole = self.square.tril() + self.square.tril(-1).T
        squared, diagonal = moved(whole, self, self, own, self.weighted[1], self.weighted[1], n)
        self.trace = trace = max(about - n * float(self.mean @ self.mean), 0.0)
        norm2 = linear_inner(squared, diagonal, trace * trace, n, estimator in UNBIASED)
        size = squared if estimator == "biased" else squared + 2 * diagonal + trace * trace / n**2
        self.rounding = _RESIDUE * torch.finfo(self.buffer.dtype).eps
        self.norm2 = norm2 if norm2 > self.rounding * size else 0.0
        # A U-centred kernel has an empty diagonal.
        self.t, self.s2 = (trace, diagonal) if estimator == "biased" else (0.0, 0.0)

    def spread(self, n: int) -> tuple[float, float]:
        """Both factors of the variance for |A| = 1, (n-1) - T^2/T2 and n(n+1) S2/T2 - (n-1)(T^2/T2 + 2)."""
        ratio, s2 = self.t**2 / self.norm2, self.s2 / self.norm2
        first, second = (n - 1) - ratio, n * (n + 1) * s2 - (n - 1) * (ratio + 2)
        rounding = self.rounding * (n - 1)
        return (first if first > rounding else 0.0), (second if abs(second) > rounding * (ratio + 2) else 0.0)


class Sums:
    """All sums of a pass: those of every layer, cross[l][m] = sum x y' (d1, d2), and with a, b the squared norms of x and y rows
    about the origin and 1 a column of ones, products = [1, a, b]' [1, a, b] over the layers of both sides.
    """

    def __init__(self, left: list[Rows], right: list[Rows], n: int, device: torch.device) -> None:
        self.left, self.right, self.n, self.device = left, right, n, device
        self.dtype = torch.float32

    def run(self, block: int, done: Callable[[int], None]) -> None:
        """Read everything once; `done` is called with the number of rows."""
        steps = ahead(in_step([*self.left, *self.right], self.n, block))
        with full_precision():
            for first, blocks in steps:
                if first == 0:
                    self._open([*self.left, *self.right], blocks)
                self._add(blocks, first)
                done(first + len(blocks[0]))

    def _open(self, rows: list[Rows], blocks: list[Tensor]) -> None:
        wide = any(b.dtype == torch.float64 for b in blocks)
        self.dtype = torch.float64 if wide else torch.float32
        others = [len(self.right)] * len(self.left) + [len(self.left)] * len(self.right)
        self.layers = [
            Layer(r, len(b), self.dtype, self.device, m) for r, b, m in zip(rows, blocks, others, strict=True)
        ]  # fmt: skip
        about = {"dtype": torch.float64, "device": self.layers[0].square.device}
        self.cross = [[torch.zeros(r.width, s.width, **about) for s in self.right] for r in self.left]
        self.products = torch.zeros(1 + len(rows), 1 + len(rows), **about)

    def _add(self, blocks: list[Tensor], first: int) -> None:
        centred = [layer.centre(b, first) for layer, b in zip(self.layers, blocks, strict=True)]
        values, squares = [u for u, _ in centred], [s for _, s in centred]
        ones = torch.ones_like(squares[0])
        stacked = torch.stack([ones, *squares])
        self.products.add_(stacked @ stacked.T)
        split = len(self.left)
        for i, (layer, u) in enumerate(zip(self.layers, values, strict=True)):
            others = squares[split:] if i < split else squares[:split]
            weights = torch.stack([ones, squares[i], *others]).to(u.device, u.dtype)
            layer.weighted.add_((weights @ u).to(ones.device))
            for a, b in strips(u.shape[1]):
                layer.square[a:b, :b].add_((u[:, a:b].T @ u[:, :b]).to(ones.device))
        for row, u in zip(self.cross, values[:split], strict=True):
            for total, v in zip(row, values[split:], strict=True):
                total.add_((u.T @ v).to(total.device))


def moved(cross: Tensor, x: Layer, y: Layer, ab: float, bx: Tensor, ay: Tensor, n: int) -> tuple[float, float]:
    """|X'Y|^2 and sum a_i b_i of centred rows, from sums about the origin.

    ab = sum a_i b_i, bx = sum b_i x_i, ay = sum a_i y_i. With means m and w, a centred a_i is a_i - 2 m.x_i + |m|^2.
    """
    m, w = x.mean, y.mean
    mm, ww = float(m @ m), float(w @ w)
    squared = float((cross - n * torch.outer(m, w)).square_().sum())
    diagonal = ab - 2 * float(w @ ay) - 2 * float(m @ bx) + ww * x.about + mm * y.about
    return squared, diagonal + 4 * float(m @ (cross @ w)) - 3 * n * mm * ww


def short(dtype: torch.dtype) -> str:
    """The name of a dtype as numpy has it."""
    return str(dtype).removeprefix("torch.")
