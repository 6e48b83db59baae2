"""Rows of a layer: blocks of them, their unit, and rows without their mean or of length 1, without loss of digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Rows of a dense scratch matrix are handled in blocks of about this many bytes.
SCRATCH_BYTES = 256 * 2**20

_EXPONENT_BITS = 0x7FF0000000000000
_INVERTIBLE = 2.0**-100, 2.0**100  # units whose inverse float32 has


def blocks(n: int, row_bytes: int, whole: int | None = None) -> list[slice]:
    """Blocks of rows of about `whole` bytes each (`SCRATCH_BYTES`), at `row_bytes` a row."""
    size = max(1, min(n, (SCRATCH_BYTES if whole is None else whole) // max(1, row_bytes)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that is to be filled: on the CPU numpy's, which asks the system for large pages, so that few are to be fetched."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, str(dtype).removeprefix("torch.")))


def widen(x: Tensor) -> Tensor:
    """x in float64, on the CPU where the device has no float64."""
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.to(torch.float64)


def power_of_two(largest: Tensor) -> Tensor:
    """The power of two just below each non-negative float64 entry (1 for 0): a scale that rounds nothing."""
    scale = (largest.view(torch.int64) & _EXPONENT_BITS).view(torch.float64)
    scale = torch.where(scale > 0, scale, largest)  # subnormal numbers have no exponent bits
    return torch.where(scale > 0, scale, 1.0)


def power_of_two_below(largest: float) -> float:
    """The power of two just below a size; 1 for 0."""
    return 2.0 ** (math.frexp(largest)[1] - 1) if largest else 1.0


def largest_of(x: Tensor) -> float:
    """The largest entry in size; nan where one is."""
    if x.device.type == "cpu" and x.element_size() >= 4:  # by numpy, in half the time
        low, high = x.detach().numpy().min(), x.detach().numpy().max()
    else:
        low, high = torch.stack(torch.aminmax(x)).tolist()
    return float(max(-low, high))


def largest_along(x: Tensor, dim: int) -> Tensor:
    """The largest entry in size along one dimension, which stays; the norm of torch that is this takes ten times as long."""
    return torch.maximum(x.amax(dim, keepdim=True), -x.amin(dim, keepdim=True))


def column_norms(x: Tensor) -> Tensor:
    """Euclidean norms of the columns of x (n, d), whose squares are in range; torch's own take several times as long."""
    return x.square().sum(dim=0).sqrt_()


def row_dots(a: Tensor, b: Tensor) -> np.ndarray:
    """sum_j a_ij b_ij of every row of two matrices, (n,) float64; on the CPU by numpy, in a third of the time."""
    if a.device.type == "cpu":
        return np.vecdot(a.numpy(), b.numpy()).astype(float)
    return torch.linalg.vecdot(a, b).to("cpu", torch.float64).numpy()


def unit_of(x: Tensor) -> float:
    """The power of two just below the largest entry; 1 if all are 0."""
    return power_of_two_below(largest_of(x))


def divide(x: Tensor, unit: float) -> Tensor:
    """x divided by a power of two, in place and without rounding; by its inverse, which is sooner, where that is in range."""
    low, high = _INVERTIBLE
    return x if unit == 1 else x.mul_(1 / unit) if low < unit < high else x.div_(unit)


def is_constant(x: Tensor) -> bool:
    """All rows of x (n, d) alike; where the first two are not, the others are not looked at."""
    return bool((x[:2] == x[0]).all()) and bool((x == x[0]).all())


def scaled(x: Tensor) -> tuple[Tensor, float]:
    """x (n, d) in float64 with its largest entry in [1, 2), and the scale that was divided out.

    Squares of the result can neither overflow nor vanish, whatever the unit of the features.
    """
    unit = unit_of(x)
    return divide(x.to("cpu" if x.device.type == "mps" else x.device, torch.float64, copy=True), unit), unit


# Rows of this many bytes, in the precision in which they are worked on, stay in the processor's cache from step to step.
_WIDE_BYTES = 2**20
# Numbers of about this size, or one over it, are worked on as they are: no square of what float32 can tell of them is lost.
_USUAL = 2.0**20


@dataclass(frozen=True, eq=False)
class Deviations:
    """Rows of a layer without their mean, some at a time.

    The mean is that of the rows less the first, summed in float64 over blocks, and is taken off in two parts: as it is in the
    dtype, and what that leaves. So a common offset of 1e8 leaves no residue, one row far out costs the others no digits, a
    constant column is exactly zero, and a constant representation is recognised without a threshold.
    """

    x: Tensor  # (n, d)
    dtype: torch.dtype  # of the deviations
    largest: float  # entry of x, in size; not finite where an entry is not
    unit: float  # a power of two that is divided out; 1 for usual numbers
    mean: Tensor  # (d,) float64
    about: Tensor  # (d,) the mean in `dtype`
    rest: Tensor | None  # (d,) what it leaves, in `dtype`; None for nothing
    blocks: Sequence[slice]  # of rows

    @classmethod
    def of(cls, x: Tensor, dtype: torch.dtype = torch.float64) -> Deviations:
        device = "cpu" if x.device.type == "mps" else x.device  # which has no float64
        largest = largest_of(x)
        unit = power_of_two_below(largest) if not 1 / _USUAL < largest < _USUAL and math.isfinite(largest) else 1.0
        first = x[0].to(device, torch.float64) / unit
        rows = blocks(len(x), dtype.itemsize * x.shape[1], None if x.device.type == "cuda" else _WIDE_BYTES)
        from_first = cls(x, dtype, largest, unit, first, first.to(dtype), None, rows)
        scratch, total = from_first.about.new_empty(x[rows[0]].shape), torch.zeros_like(first)
        for b in rows:
            total += from_first.some(b, scratch[: b.stop - b.start]).sum(dim=0)
        mean = first + total / len(x)
        about = mean.to(dtype)
        rest = mean - about
        return replace(from_first, mean=mean, about=about, rest=rest.to(dtype) if bool(rest.any()) else None)

    def wide(self, which: slice | Tensor) -> Tensor:
        """Some rows as they are, in `dtype` and `unit`; not to be changed."""
        rows = self.x[which].to(self.about.device, self.dtype)
        return rows if self.unit == 1 else rows / self.unit

    def some(self, which: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """Some rows without the mean."""
        rows = torch.sub(self.wide(which), self.about, out=out)
        return rows if self.rest is None else rows.sub_(self.rest)


class Centred(NamedTuple):
    """Rows c_i without their mean m, in a unit in which the largest entry lies in [1, 2)."""

    rows: Tensor  # (n, d)
    unit: float  # what was divided out: x_i = unit (c_i + m)
    mean: Tensor  # m, (d,) float64

    @property
    def mean_square(self) -> float:
        """|m|^2."""
        return float(self.mean @ self.mean)

    def along_mean(self) -> Tensor:
        """c_i . m, (n,) float64."""
        along = self.mean.new_empty(len(self.rows))
        few = blocks(*self.rows.shape, _WIDE_BYTES // 2 // self.mean.itemsize)  # which stay near the processor
        wide = self.mean.new_empty(self.rows[few[0]].shape)
        for b in few:
            torch.mv(wide[: b.stop - b.start].copy_(self.rows[b]), self.mean, out=along[b])
        return along


def centred(x: Tensor, dtype: torch.dtype = torch.float64, deviations: Deviations | None = None) -> Centred:
    """x (n, d) without its column means, in `dtype`, its largest entry in [1, 2); `deviations` if they are there already."""
    found = Deviations.of(x, dtype) if deviations is None else deviations
    out = found.about.new_empty(x.shape)
    inner = power_of_two_below(max(largest_of(found.some(b, out[b])) for b in found.blocks))
    return Centred(divide(out, inner), found.unit * inner, found.mean / inner)


def unit_rows(x: Tensor) -> Tensor:
    """x (n, d) in float64 with rows of Euclidean norm 1; a zero row stays zero."""
    out = torch.empty(x.shape, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
    for block in blocks(len(x), 8 * x.shape[1], _WIDE_BYTES):
        rows = widen(x[block])
        if x.dtype == torch.float64:  # squares of anything narrower stay in the range of float64
            rows = rows / power_of_two(largest_along(rows, 1))
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        out[block] = rows / torch.where(norm > 0, norm, 1.0)
    return out


def unit_resolution(d: int, dtype: torch.dtype) -> float:
    """Differences of products of two unit vectors of length d that `dtype` cannot tell from rounding.

    Some ten standard deviations: rounding in a sum of d terms is a random walk and grows like sqrt(d) eps.
    """
    return 2 * torch.finfo(dtype).eps * (math.sqrt(d) + 2)
