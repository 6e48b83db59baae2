"""Small numerical tools that every measure shares: widening, safe scaling, centring, unit rows."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

_EXPONENT_BITS = 0x7FF0000000000000

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


def widen(x: Tensor) -> Tensor:
    """x in float64, on the CPU where the device has no float64."""
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.to(torch.float64)


def power_of_two(largest: Tensor) -> Tensor:
    """The power of two just below each non-negative float64 entry (1 for 0): a scale that rounds nothing."""
    scale = (largest.view(torch.int64) & _EXPONENT_BITS).view(torch.float64)
    scale = torch.where(scale > 0, scale, largest)  # subnormal numbers have no exponent bits
    return torch.where(scale > 0, scale, 1.0)


def _own(x: Tensor) -> Tensor:
    """A copy of x in float64 that may be changed in place."""
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64, copy=True)


def _scale_in_place(x: Tensor) -> float:
    scale = float(power_of_two(torch.stack(torch.aminmax(x)).to("cpu", torch.float64).abs().amax()))
    x.div_(scale)
    return scale


def scaled(x: Tensor) -> tuple[Tensor, float]:
    """x (n, d) in float64 with its largest entry in [1, 2), and the scale that was divided out.

    Squares of the result can neither overflow nor vanish, whatever the unit of the features.
    """
    x = _own(x)
    return x, _scale_in_place(x)


# Rows are widened this many bytes at a time where a float64 copy of all of them is not needed.
_WIDE_BYTES = 2 * 2**20


class Centred(NamedTuple):
    """Rows c_i without their mean m, in a unit in which the largest entry lies in [1, 2)."""

    rows: Tensor  # (n, d)
    unit: float  # what was divided out: x_i = unit (c_i + m)
    along_mean: Tensor  # c_i . m, (n,) float64
    mean_square: float  # |m|^2


def centred(x: Tensor, dtype: torch.dtype = torch.float64) -> Centred:
    """x (n, d) without its column means, in `dtype`, its largest entry in [1, 2).

    Whatever `dtype` is, differences and means are taken in float64, after the first row is taken off: a common offset
    of 1e8 leaves no residue, a constant column is exactly zero, and a constant representation is recognised without a
    threshold.
    """
    outer = float(power_of_two(torch.stack(torch.aminmax(x)).to("cpu", torch.float64).abs().amax()))
    blocks = _wide_blocks(x)
    first = _own(x[:1]).div_(outer)

    def shifted(block: slice) -> Tensor:
        return _own(x[block]).div_(outer).sub_(first)

    mean = sum(shifted(b).sum(dim=0) for b in blocks) / len(x)
    out = torch.empty(x.shape, dtype=dtype, device=first.device)
    whole, along = first[0] + mean, torch.empty(len(x), dtype=torch.float64, device=first.device)
    for b in blocks:
        rows = shifted(b).sub_(mean)
        out[b], along[b] = rows, rows @ whole
    inner = _scale_in_place(out)
    whole = whole / inner
    return Centred(out, outer * inner, along / inner / inner, float(whole @ whole))


def unit_rows(x: Tensor) -> Tensor:
    """x (n, d) in float64 with rows of Euclidean norm 1; a zero row stays zero."""
    out: Tensor | None = None
    for block in _wide_blocks(x):
        rows = _own(x[block])
        if x.dtype == torch.float64:  # squares of anything narrower stay in the range of float64
            rows.div_(power_of_two(torch.linalg.vector_norm(rows, ord=math.inf, dim=1, keepdim=True)))
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows.div_(torch.where(norm > 0, norm, 1.0))
        out = rows.new_empty(x.shape) if out is None else out
        out[block] = rows
    return _own(x) if out is None else out


def unit_resolution(d: int, dtype: torch.dtype) -> float:
    """Differences of products of two unit vectors of length d that `dtype` cannot tell from rounding.

    Some ten standard deviations: rounding in a sum of d terms is a random walk and grows like sqrt(d) eps.
    """
    return 2 * torch.finfo(dtype).eps * (math.sqrt(d) + 2)


def _wide_blocks(x: Tensor) -> list[slice]:
    """Blocks of rows of `_WIDE_BYTES` in float64."""
    rows = max(1, _WIDE_BYTES // (8 * x.shape[1]))
    return [slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


GRAM_BLOCK = 256


def gram(x: Tensor) -> Tensor:
    """X X^T (n, n), exactly symmetric: the lower triangle in blocks of rows, then its mirror image.

    Some 60 % of the multiplications of a full product.
    """
    n = len(x)
    out = x.new_empty(n, n)
    starts = range(0, n, GRAM_BLOCK)
    with full_precision():
        for start in starts:
            stop = min(start + GRAM_BLOCK, n)
            torch.mm(x[start:stop], x[:stop].T, out=out[start:stop, :stop])
    for start in starts:
        stop = min(start + GRAM_BLOCK, n)
        out[:start, start:stop] = out[start:stop, :start].T
        on_diagonal = out[start:stop, start:stop]
        on_diagonal.copy_(on_diagonal.tril() + on_diagonal.tril(-1).T)
    return out
