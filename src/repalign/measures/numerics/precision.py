"""Products, cosines, spectra and centred kernels of a layer, without loss of digits.

Several measures want the same of one layer: every one asks `layer_of(x)`, and within `sharing(x)` all of them get one
object, and so the same products.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import blas
from repalign.measures.numerics.rows import (
    Centred,
    Deviations,
    blocks,
    centred,
    empty,
    is_constant,
    scaled,
    unit_resolution,
    unit_rows,
    widen,
)

_lock = threading.Lock()
_depth = 0
_saved = "highest"


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32: no TF32 on a GPU, no bfloat16 on a CPU, whatever the caller has set.

    The setting belongs to the process, so nested and concurrent uses are counted: the first one in saves it,
    the last one out restores it.
    """
    global _depth, _saved
    with _lock:
        if _depth == 0:
            _saved = torch.get_float32_matmul_precision()
            if _saved != "highest":
                torch.set_float32_matmul_precision("highest")
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _saved != "highest":
                torch.set_float32_matmul_precision(_saved)


# Squares of the triangle below are not divided further: smaller products take longer than what they save.
_SMALLEST_TILE = 192


def triangle(n: int, start: int = 0) -> Iterator[tuple[slice, slice]]:
    """Tiles (rows, columns) that cover the lower triangle of an n x n matrix: rectangles below the diagonal, squares on it.

    Each half is divided again, so that nearly all of it lies in large tiles and little above the diagonal is covered: 53 % of
    the square at n = 2,048.
    """
    if n <= _SMALLEST_TILE:
        yield slice(start, start + n), slice(start, start + n)
        return
    half = -(-n // 2 // 64) * 64  # products like round sizes
    yield slice(start + half, start + n), slice(start, start + half)
    yield from triangle(half, start)
    yield from triangle(n - half, start + half)


# Rows that begin at multiples of so many bytes drive each other out of the processor's cache, where columns are written.
_CROWDED = 1024


def _in_one_thread() -> bool:
    """Whether a product takes one thread here, be it torch's or numpy's."""
    return torch.get_num_threads() == 1 and any(found["num_threads"] == 1 for found in blas().info())


def gram(x: Tensor) -> Tensor:
    """X X^T (n, n), exactly symmetric.

    In one thread of a CPU numpy makes it: for a matrix by its own transpose it takes the symmetric product of its BLAS, which needs
    half the multiplications and which torch does not have. More threads would be of another pool than torch's, and each pool
    waits for work at the cost of the other; so these, and GPUs, make the tiles of the lower triangle, and mirror them.
    """
    n = len(x)
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and _in_one_thread():
        lies = 1 in x.stride() and 0 not in x.stride()  # else numpy hands BLAS two copies, not one
        values = (x if lies else x.contiguous()).detach().numpy()
        out = empty((n, n + 16 * (n * x.element_size() % _CROWDED == 0)), x.dtype, x.device)[:, :n]
        np.matmul(values, values.T, out=out.numpy())
        return out if out.is_contiguous() else empty((n, n), x.dtype, x.device).copy_(out)
    out = x.new_empty(n, n)
    with full_precision():
        for rows, columns in triangle(n):
            tile = torch.mm(x[rows], x[columns].T, out=out[rows, columns])
            if rows == columns:
                tile.copy_(tile.tril() + tile.tril(-1).T)
            else:
                out[columns, rows] = tile.T
    return out


# Entries that are widened at a time.
_BLOCK = 2**18


def sum_of_unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum (d,) of the unit rows, in float64, and how many are not zero."""
    if x.dtype == torch.float64:  # whose squares may leave its range
        rows = unit_rows(x)
        return rows.sum(dim=0), (rows != 0).any(dim=1).sum()
    total = own = torch.zeros(1, dtype=torch.float64)
    for some in x.split(max(1, _BLOCK // x.shape[1])):
        rows = widen(some)
        norm = torch.linalg.vector_norm(rows, dim=1)
        total = total.to(rows.device) + torch.where(norm > 0, 1 / norm, 0.0) @ rows
        own = own.to(rows.device) + (norm > 0).sum()
    return total, own


# --- centred kernels ---

# A relation whose norm is below this many roundings of what it was computed from has vanished.
RESIDUE = 16
# A norm in the unit of the features is kept between these, positive and finite: 0 means that the kernel vanished.
NORMAL = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max


def double_centre(matrix: Tensor) -> None:
    """H A H of a symmetric matrix in place."""
    rows = matrix.mean(dim=1).double()
    shift = (rows - rows.mean() / 2).to(matrix.dtype)
    matrix.sub_(shift[:, None]).sub_(shift[None, :])


def u_centre(matrix: Tensor) -> Tensor:
    """U-centring of a symmetric matrix in place (Szekely & Rizzo 2014): zero diagonal, off-diagonal row sums 0.

    Also returned is what was taken off every row and every column (n,).
    """
    n = len(matrix)
    matrix.fill_diagonal_(0)
    rows = matrix.sum(dim=1).double() / (n - 2)
    shift = (rows - rows.sum() / (2 * (n - 1))).to(matrix.dtype)
    matrix.sub_(shift[:, None]).sub_(shift[None, :]).fill_diagonal_(0)
    return shift


# --- singular vectors ---


class CentredRows(NamedTuple):
    """Rows (n, d) in float64 with their largest entry in [1, 2)."""

    values: Tensor  # (n, d)
    unit: float  # what was divided out
    norm: float  # of the values
    rounding: float  # singular values below it are rounding of the stored features, and say nothing about them


def rows_of(x: Tensor, center: bool = True) -> CentredRows:
    """x without its column means, or as it is; without center, too, rows that are all the same become zero.

    A representation that is constant thus has no direction in either form.
    """
    if center:
        found = centred(x)
        values, unit = found.rows, found.unit
        norm = frobenius(values)
        whole = math.hypot(norm, math.sqrt(len(x) * found.mean_square))  # of the features with their mean, both in one unit
    else:
        values, unit = scaled(x)
        whole = frobenius(values)
        if is_constant(x):
            values.zero_()
        norm = frobenius(values)
    # Rounding is that of the features with their mean, which may be the larger part.
    return CentredRows(values, unit, norm, torch.finfo(x.dtype).eps * whole)


class Spectrum(NamedTuple):
    """Left singular vectors (n, r) and singular values (r,), descending, in `unit`; r is the numerical rank."""

    vectors: Tensor
    values: Tensor
    unit: float


def spectrum(x: Tensor, center: bool = True) -> Spectrum:
    """The singular vectors and values of x (n, d) above the rounding of x; r = 0 for a constant representation."""
    rows = rows_of(x, center)
    vectors, values = left_singular(rows.values)
    rank = int((values > rows.rounding).sum())
    return Spectrum(vectors[:, :rank], values[:rank], rows.unit)


def left_singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of x (n, d); of wide x through its triangular factor.

    From the eigenvectors of X^T X where no direction is so short that squares lose its digits, in a third of the time.
    """
    n, d = x.shape
    if d > n:
        x = square_factor(x)
    elif d < n:
        square = gram(x.T)
        found = _factored(square)
        # 1 / |R^-1|^2 is at least the smallest eigenvalue over d, and the trace at most d of the largest.
        if found is not None and d * d > _SQUARED * float(square.trace()) * frobenius(found.inverse) ** 2:
            squared, vectors = torch.linalg.eigh(square)
            if squared[0] > _SQUARED * squared[-1]:
                values = squared.sqrt().flip(0)
                return x @ (vectors.flip(1) / values), values
    vectors, values, _ = torch.linalg.svd(x, full_matrices=False)
    return vectors, values


# Squares of singular values below this share of the largest lose too many digits.
_SQUARED = 1e-6


def sum_of_singular_values(x: Tensor) -> float:
    """|X|_*, the nuclear norm of x (p, q) in float64.

    From eigenvalues of the smaller square, in half the time of singular values, where rounding of those cannot move the
    sum by more than 1e-9 of it, were all of it to go one way; some 1e-13 is what it does.
    """
    values = torch.linalg.eigvalsh(gram(x if x.shape[0] <= x.shape[1] else x.T))
    rounding = 4 * torch.finfo(torch.float64).eps * values[-1]
    if values[0] > rounding:
        roots = values.sqrt()
        total = float(roots.sum())
        if float(rounding * (0.5 / roots).sum()) < 1e-9 * total:
            return total
    return float(torch.linalg.svdvals(x).sum())


def left_of_product(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (p, c) and singular values (c,) of x (p, q) of norm about 1, descending, c = min(p, q)."""
    if x.shape[0] <= x.shape[1]:
        values, vectors = torch.linalg.eigh(gram(x))
        if values[0] > _SHORT:
            return vectors.flip(1), values.flip(0).sqrt()
    else:
        values, vectors = torch.linalg.eigh(gram(x.T))
        if values[0] > _SHORT:
            lengths = values.flip(0).sqrt()
            return x @ vectors.flip(1) / lengths, lengths
    vectors, values, _ = torch.linalg.svd(x, full_matrices=False)
    return vectors, values


# Squared singular values of a product of orthonormal bases, whose largest is at most 1, that keep half of their digits.
_SHORT = 1e-8


class Factor(NamedTuple):
    """R (d, d), upper triangular, of a square R^T R, and R^-1."""

    factor: Tensor
    inverse: Tensor


def _factored(square: Tensor) -> Factor | None:
    """None where the square has no such factor."""
    factor, failed = torch.linalg.cholesky_ex(square, upper=True)
    if int(failed):
        return None
    one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return Factor(factor, torch.linalg.solve_triangular(factor, one, upper=True))


# Columns of unit norm whose norm times that of their inverse is below this are orthonormal in X R^-1 up to some 1e-10.
_WELL_CONDITIONED = 3e4


def whitening(rows: CentredRows) -> Factor | None:
    """R such that X R^-1 is an orthonormal basis of all d columns; None where `basis` has to find one.

    The Cholesky factor of X^T X, whose digits do not depend on the scale of the columns, where no column is nearly a
    combination of others.
    """
    x = rows.values
    if x.shape[1] >= x.shape[0]:
        return None
    square = gram(x.T)
    found = _factored(square)
    # 1 / |R^-1| is at most the smallest singular value.
    if found is None or not 1 / frobenius(found.inverse) > rows.rounding:
        return None
    lengths = square.diagonal().sqrt()
    return found if frobenius(lengths[:, None] * found.inverse) * math.sqrt(len(square)) < _WELL_CONDITIONED else None


def square_factor(x: Tensor) -> Tensor:
    """F (n, n) with F F^T = X X^T, for wide x (n, d): X is F times orthonormal rows."""
    return torch.linalg.qr(x.T, mode="r").R.T


def basis(rows: CentredRows) -> Tensor:
    """An orthonormal basis (n, r) of the columns, r the numerical rank.

    That of `whitening`, else of a QR decomposition where the inverse of its triangular factor proves full rank, in half
    the time of singular vectors, which settle all other cases.
    """
    x = rows.values
    if (found := whitening(rows)) is not None:
        return x @ found.inverse
    if x.shape[1] < x.shape[0]:
        q, r = torch.linalg.qr(x)
        # A zero on the diagonal divides to inf or nan, which proves nothing.
        inverse = torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=r.dtype, device=r.device), upper=True)
        if 1 / frobenius(inverse) > rows.rounding:  # 1 / |R^-1| is at most the smallest singular value
            return q
    vectors, values = left_singular(x)
    return vectors[:, : int((values > rows.rounding).sum())]


def frobenius(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


# --- shared by measures ---

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801  (a decorator)
    """A property that is made when first asked for, and kept: `functools.cached_property` without its lock.

    Before Python 3.12 all objects of a class share that lock: of two threads with a layer each, one would wait for the other.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:  # asked of the class
            return self  # type: ignore[return-value]
        found = instance.__dict__[self.make.__name__] = self.make(instance)
        return found


# Rows of so many bytes stay in the processor's cache from one step to the next.
CACHED_BYTES = 2**20

# Cosines come from centred products as long as no row is shorter than this share of its parts, mean and deviation.
# Below it the two cancel, and digits with them.
_CANCELLATION = 0.25


class Cosines(NamedTuple):
    """All cosines (n, n), and per row (n,) the differences that rounding can make."""

    values: Tensor
    resolution: Tensor


# Deviations are not lost beside a common direction as long as they are this share of the squares.
_DEVIATES = 1e-6


# A layer is narrow if it has this many more rows than columns: what needs a cube of n is then sooner done from its rows.
NARROW = 3


class Products(NamedTuple):
    """Products of all centred rows, in the square of one unit."""

    gram: Tensor  # (n, n), c_i . c_j; to be copied before it is changed
    unit: float
    rows: Tensor | None  # (n, d), c_i, where they are much less than their products


@dataclass(eq=False)
class Layer:
    """A layer x (n, d) and its products, in the precision of x, made when first asked for."""

    x: Tensor
    shared: bool = False
    lists: dict[Hashable, Tensor] = field(default_factory=dict)  # neighbours (n, k) that were found, by how; kept if shared

    @once
    def deviations(self) -> Deviations:
        return Deviations.of(self.x, self.x.dtype)

    @once
    def centred(self) -> Centred:
        return centred(self.x, self.x.dtype, self.deviations)

    @once
    def products(self) -> Products:
        rows, unit, _ = self.centred
        return Products(gram(rows), unit, rows if NARROW * (self.x.shape[1] + 2) <= len(self.x) else None)

    @once
    def along_mean(self) -> Tensor:
        return self.centred.along_mean()

    @property
    def made(self) -> Products | None:
        """The products, if anyone has asked for them."""
        return self.__dict__.get("products")

    @property
    def gram(self) -> Tensor:
        """The products of the centred rows, for whoever asks to change: a copy if others may ask for them."""
        return self.products.gram.clone() if self.shared else self.products.gram

    @once
    def spectrum(self) -> Spectrum:
        """The singular vectors and values of the centred rows, in float64 whatever the precision of x."""
        return spectrum(self.x)

    def cosines(self, center: bool) -> Cosines | None:
        """Cosines of the rows, or of the centred rows, from `products`; None where that would cost digits.

        With x_i = c_i + m, x_i . x_j = c_i . c_j + c_i . m + c_j . m + |m|^2. Rounding is that of the centred products,
        which are small where a common direction dominates, so that few digits are lost to it.
        """
        found, dtype = self._lengths(center), self.x.dtype
        if found is None:
            return None
        deviation, along, square, squared, parts = found
        inverse = squared.rsqrt()
        of_row, of_column, scale = (v.to(dtype) for v in (along + square, along, inverse))
        held = self.products.gram
        values = empty(held.shape, held.dtype, held.device) if self.shared else held
        if not self.shared:
            del self.products  # which are changed
        for b in blocks(len(held), len(held) * dtype.itemsize, CACHED_BYTES):
            if center:
                torch.mul(held[b], scale[b, None], out=values[b])
            else:
                torch.add(held[b], of_row[b, None], out=values[b]).add_(of_column).mul_(scale[b, None])
            values[b].mul_(scale)
        of_products, of_sums = deviation * inverse, parts * inverse
        resolution = unit_resolution(self.x.shape[1], dtype) * of_products * of_products.max()
        return Cosines(values, resolution + 8 * torch.finfo(dtype).eps * of_sums * of_sums.max())

    def cosines_at(self, lists: Tensor, centre: str) -> Tensor | None:
        """Cosines of the rows i at the entries j of `lists` (n, k), in float64; None where that would cost digits.

        centre : "nothing", or the means over j of all cosines that are taken off: those of "rows", or "rows and columns". Of the
        products in the precision of x only those of centred rows are used, so that what they round is small beside what is left.
        """
        found, kernel = self._lengths(False), self.products.gram
        if found is None or not float((found.deviation**2 / found.squared).mean()) > _DEVIATES:
            return None
        along, square, inverse = found.along, found.square, found.squared.rsqrt()
        values = kernel.gather(1, lists).double().add_(along[lists]).add_((along + square)[:, None])
        values.mul_(inverse[lists]).mul_(inverse[:, None])
        if centre == "nothing":
            return values
        whole, with_mean = inverse.sum(), along @ inverse
        means = ((kernel @ inverse.to(kernel.dtype)).double() + (along + square) * whole + with_mean) * inverse / len(kernel)
        values.sub_(means[:, None])
        return values if centre == "rows" else values.sub_((means - means.mean())[lists])

    def _lengths(self, center: bool) -> Lengths | None:
        """What makes cosines of products; None where a row is so short beside its parts that digits cancel."""
        deviation = self.products.gram.diagonal().to(torch.float64).sqrt()
        along, square = (torch.zeros_like(deviation), 0.0) if center else (self.along_mean, self.centred.mean_square)
        squared = deviation**2 + 2 * along + square
        parts = deviation + square**0.5
        smallest = torch.finfo(self.x.dtype).tiny ** 0.5
        in_range = (squared > smallest) & (squared < 1 / smallest)
        kept = bool((in_range & (squared >= (_CANCELLATION * parts) ** 2)).all())
        return Lengths(deviation, along, square, squared, parts) if kept else None


class Lengths(NamedTuple):
    """Of rows x_i = c_i + m, in the unit of `Products`: (n,) float64 each, and |m|^2."""

    deviation: Tensor  # |c_i|
    along: Tensor  # c_i . m
    square: float  # |m|^2
    squared: Tensor  # |x_i|^2
    parts: Tensor  # |c_i| + |m|


_shared: ContextVar[Layer | None] = ContextVar("_shared", default=None)


@contextmanager
def sharing(x: Tensor) -> Iterator[None]:
    """Let all measures that prepare this very tensor share one `Layer`, which may be there already; x must not change meanwhile."""
    token = _shared.set(one if (one := layer_of(x)).shared else Layer(x, shared=True))
    try:
        yield
    finally:
        _shared.reset(token)


def layer_of(x: Tensor) -> Layer:
    """The shared layer of this very tensor, or one of its own."""
    shared = _shared.get()
    return shared if shared is not None and shared.x is x else Layer(x)
