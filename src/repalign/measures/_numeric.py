"""Small numerical tools that every measure shares: widening, safe scaling, centring, unit rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


def scaled(x: Tensor) -> tuple[Tensor, float]:
    """x (n, d) in float64 with its largest entry in [1, 2), and the scale that was divided out.

    Squares of the result can neither overflow nor vanish, whatever the unit of the features.
    """
    x = widen(x)
    scale = power_of_two(x.abs().max())
    return x / scale, float(scale)


def centred(x: Tensor) -> tuple[Tensor, float]:
    """x (n, d) without its column means, scaled as in `scaled`, and the scale.

    The mean is taken twice, so that a common offset of 1e8 leaves no residue. What the first leaves of a
    constant column is a few units in its last place, whose mean is exact: the second makes it exactly zero,
    and a constant representation is recognised without a threshold.
    """
    x, outer = scaled(x)
    x = x - x.mean(dim=0)
    x = x - x.mean(dim=0)
    x, inner = scaled(x)
    return x, outer * inner


def unit_rows(x: Tensor) -> Tensor:
    """x (n, d) in float64 with rows of Euclidean norm 1; a zero row stays zero."""
    x = widen(x)
    x = x / power_of_two(x.abs().amax(dim=1, keepdim=True))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)


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
    return out
