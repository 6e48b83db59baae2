"""The directions that a layer spans: its singular vectors, its numerical rank, an orthonormal basis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repalign.measures.numerics.precision import centred, scaled


class Rows(NamedTuple):
    """Rows (n, d) in float64 with their largest entry in [1, 2)."""

    values: Tensor  # (n, d)
    unit: float  # what was divided out
    rounding: float  # singular values below it are rounding of the stored features, and say nothing about them


def rows_of(x: Tensor, center: bool = True) -> Rows:
    """x without its column means, or as it is; without center, too, rows that are all the same become zero.

    A representation that is constant thus has no direction in either form.
    """
    if center:
        values, unit, *_ = centred(x)
    else:
        values, unit = scaled(x)
        if bool((x == x[:1]).all()):
            values.zero_()
    # Rounding is that of the features with their mean, which may be the larger part.
    return Rows(values, unit, torch.finfo(x.dtype).eps * frobenius(x / unit))


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
    """Left singular vectors and singular values of x (n, d); of wide x through its triangular factor."""
    if x.shape[1] > x.shape[0]:
        x = square_factor(x)
    vectors, values, _ = torch.linalg.svd(x, full_matrices=False)
    return vectors, values


def square_factor(x: Tensor) -> Tensor:
    """F (n, n) with F F^T = X X^T, for wide x (n, d): X is F times orthonormal rows."""
    return torch.linalg.qr(x.T, mode="r").R.T


def basis(rows: Rows) -> Tensor:
    """An orthonormal basis (n, r) of the columns, r the numerical rank.

    The basis of a QR decomposition where the inverse of its triangular factor proves full rank, in half the time of
    singular vectors, which settle all other cases.
    """
    x = rows.values
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
