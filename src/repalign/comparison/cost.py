"""What linear CKA costs, dense or in feature space, told before it is paid."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from repalign.measures.numerics.precision import full_precision

BLOCK = 4096  # rows of a block
BLOCKS = 3  # of each layer in memory: one that waits, one that is used, and its centred copy
COLUMNS = 192  # of a self-product, computed as a lower triangle of such strips
DENSE, FEATURES = "dense", "feature space"


@dataclass(frozen=True)
class Plan:
    """How linear CKA of layers x layers is best computed, and its cost.

    method : "dense" (n x n kernels; `repalign.measures.CKA`) or "feature space" (`stream_cka_all`).
    flops : multiply-adds of that method.
    memory_bytes : what it holds beside the features: the kernels, or the sums and three blocks of every layer.
    sentence : all of this for a person.
    """

    method: str
    flops: float
    memory_bytes: int
    sentence: str


def plan(
    n: int,
    widths_x: int | Sequence[int],
    widths_y: int | Sequence[int],
    itemsize: int = 4,
    *,
    block: int = BLOCK,
    rate: float | None = None,
    memory: int | None = None,
) -> Plan:
    """Choose between n x n kernels and feature space by the number of multiply-adds.

    Dense: n^2 (sum d / 2 + l m), for l and m layers, kernels by triangle. Feature space: n (about sum d^2 / 2 + sum
    of d_x d_y over pairs). Dense is chosen if it is cheaper and its kernels fit into `memory` bytes, by default a
    quarter of the machine's. `rate` in multiply-adds per second, as `matmul_rate` measures it, adds the time.
    """
    xs, ys = _as_widths(widths_x), _as_widths(widths_y)
    dense = float(n) ** 2 * (sum(xs + ys) / 2 + len(xs) * len(ys))
    dense_bytes = n * n * itemsize * len(xs + ys)
    stream = n * (sum(_triangle(d) for d in xs + ys) + float(sum(xs)) * sum(ys))
    stream_bytes = sums_bytes(xs, ys, itemsize) + BLOCKS * min(block, n) * sum(xs + ys) * itemsize
    limit = memory_limit() if memory is None else memory
    if dense < stream and dense_bytes <= limit:
        return _told(DENSE, dense, dense_bytes, f"{_size(dense_bytes)} of n x n kernels", rate)
    beside = _size(stream_bytes)
    return _told(FEATURES, stream, stream_bytes, f"{beside} beside the features, whatever n", rate)


def sums_bytes(xs: Sequence[int], ys: Sequence[int], itemsize: int = 4) -> int:
    """Float64 sums of layers of these widths, and one product on its way into them."""
    held = sum(d * d for d in (*xs, *ys)) + sum(xs) * sum(ys)
    held += sum(d * (2 + len(ys)) for d in xs) + sum(d * (2 + len(xs)) for d in ys)
    return 8 * held + itemsize * max(xs) * max(ys)


def memory_limit() -> int:
    """A quarter of the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def matmul_rate(
    device: str | torch.device = "cpu",
    *,
    rows: int = BLOCK,
    width: int = 768,
    seconds: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Multiply-adds per second of products (width, rows) @ (rows, width), the best of `seconds` of trying."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best, stop = float("inf"), time.perf_counter() + seconds
    with full_precision():
        while time.perf_counter() < stop or best == float("inf"):
            start = time.perf_counter()
            float((x.T @ x)[0, 0])  # reading an entry waits for the device
            best = min(best, time.perf_counter() - start)
    return rows * width * width / best


def strips(width: int) -> list[tuple[int, int]]:
    """(first, stop) of the strips of columns of which the lower triangle of a self-product is made."""
    return [(a, min(a + COLUMNS, width)) for a in range(0, width, COLUMNS)]


def _triangle(width: int) -> int:
    """Multiply-adds per row of a self-product."""
    return sum((b - a) * b for a, b in strips(width))


def _told(method: str, flops: float, held: int, beside: str, rate: float | None) -> Plan:
    seconds = "" if rate is None else f", about {_time(flops / rate)} at {rate:.2g} multiply-adds a second"
    return Plan(method, flops, held, f"{method}: {flops:.2g} multiply-adds, {beside}{seconds}")


def _as_widths(widths: int | Sequence[int]) -> list[int]:
    return [widths] if isinstance(widths, int) else list(widths)


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} min"
