"""Sums over the rows of layers, about a provisional origin, and how they move to the true mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from repalign.comparison.cost import strips
from repalign.comparison.streams import Rows, ahead, in_step
from repalign.errors import RepalignError
from repalign.measures.numerics.precision import full_precision, power_of_two


class Layer:
    """One layer about a provisional origin and in a provisional unit (a power of two, which rounds nothing)."""

    def __init__(self, rows: Rows, block: int, dtype: torch.dtype, device: torch.device) -> None:
        self.name, width = rows.name, rows.width
        self.buffer = torch.empty(block, width, dtype=dtype, device=device)
        self.origin: Tensor | None = None
        self.unit = 0.0
        home = "cpu" if device.type == "mps" else device  # no float64 there
        self.square = torch.zeros(width, width, dtype=torch.float64, device=home)  # sum u u', lower strips

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
            raise RepalignError(
                f"{self.name}: NaN or infinite values, or values too large for {short(u.dtype)}",
                expected="every entry finite",
                got=f"{int((~finite).sum())} such rows in rows {first:,} to {first + len(u) - 1:,}, "
                f"the first is row {row:,}",
                remedy="look for overflow in half precision, or leave these stimuli out of the dataset",
            )
        return u, squares

    def add_square(self, u: Tensor) -> None:
        for a, b in strips(u.shape[1]):
            self.square[a:b, :b].add_((u[:, a:b].T @ u[:, :b]).to(self.square.device))


class Sums:
    """All sums of a pass. With a, b the squared norms of x and y rows about the origin, and 1 a column of ones:

    cross[l][m] = sum x y' (d1, d2); for x_l, weighted = [1, a_l, b_1, ..., b_m]' X_l; for y_m with a and b exchanged;
    products = [1, a, b]' [1, a, b] over the layers of both sides.
    """

    def __init__(self, left: list[Rows], right: list[Rows], n: int, device: torch.device) -> None:
        self.left, self.right, self.n, self.device = left, right, n, device
        self.dtype = torch.float32

    def run(self, block: int, done: Callable[[int], None]) -> None:
        """Read everything once; `done` is told the number of rows."""
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
        self.layers = [Layer(r, len(b), self.dtype, self.device) for r, b in zip(rows, blocks, strict=True)]
        split, home = len(self.left), self.layers[0].square.device
        self.xs, self.ys = self.layers[:split], self.layers[split:]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=home)

        self.cross = [[zeros(r.width, s.width) for s in self.right] for r in self.left]
        self.weighted = [zeros(2 + len(self.right), r.width) for r in self.left]
        self.weighted += [zeros(2 + len(self.left), s.width) for s in self.right]
        self.products = zeros(1 + len(rows), 1 + len(rows))

    def _add(self, blocks: list[Tensor], first: int) -> None:
        centred = [layer.centre(b, first) for layer, b in zip(self.layers, blocks, strict=True)]
        values, squares = [u for u, _ in centred], [s for _, s in centred]
        ones = torch.ones_like(squares[0])
        stacked = torch.stack([ones, *squares])
        self.products.add_(stacked @ stacked.T)
        split = len(self.xs)
        for i, (layer, u) in enumerate(zip(self.layers, values, strict=True)):
            others = squares[split:] if i < split else squares[:split]
            weights = torch.stack([ones, squares[i], *others]).to(u.device, u.dtype)
            self.weighted[i].add_((weights @ u).to(ones.device))
            layer.add_square(u)
        for row, u in zip(self.cross, values[:split], strict=True):
            for total, v in zip(row, values[split:], strict=True):
                total.add_((u.T @ v).to(total.device))


@dataclass(frozen=True)
class About:
    """One layer about its origin: mean (d,), trace = sum a_i, weighted sums and where they stand."""

    mean: Tensor
    trace: float
    weighted: Tensor  # (2 + others, d)


def moved(cross: Tensor, x: About, y: About, ab: float, bx: Tensor, ay: Tensor, n: int) -> tuple[float, float]:
    """|X'Y|^2 and sum a_i b_i of centred rows, from sums about the origin.

    ab = sum a_i b_i, bx = sum b_i x_i, ay = sum a_i y_i. With means m and w, a centred a_i is a_i - 2 m.x_i + |m|^2.
    """
    m, w = x.mean, y.mean
    mm, ww = float(m @ m), float(w @ w)
    squared = float((cross - n * torch.outer(m, w)).square_().sum())
    diagonal = ab - 2 * float(w @ ay) - 2 * float(m @ bx) + ww * x.trace + mm * y.trace
    return squared, diagonal + 4 * float(m @ (cross @ w)) - 3 * n * mm * ww


def short(dtype: torch.dtype) -> str:
    """The name of a dtype as numpy has it."""
    return str(dtype).removeprefix("torch.")
