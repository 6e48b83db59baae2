"""How fast this machine is, measured in a fifth of a second."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from repalign.comparison import matmul_rate

# Of the rate of a matrix product, what a forward pass reaches (measured: docs/estimates.md). What makes tiny models slower is
# `LAYER_SECONDS`. On a GPU it is an assumption.
CPU_EFFICIENCY = 0.7
GPU_EFFICIENCY = 0.3
# Reading files: an assumption, that of a plain solid-state disk.
DISK_BYTES = 5e8
DIGEST_SAMPLE = 2**22  # bytes


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second.

    products : operations (a multiply-add is two) of matrix products on the device that models run on, by dtype.
    cpu : the same of float32 on the CPU, where layers are compared.
    efficiency : the share of `products` that a forward pass reaches.
    disk, digest : bytes that are read, and bytes whose SHA-256 is taken.
    """

    products: Mapping[str, float]
    cpu: float
    efficiency: float = CPU_EFFICIENCY
    disk: float = DISK_BYTES
    digest: float = 1e9


def measure_rates(device: str = "cpu", dtypes: Iterable[str] = ("float32",), seconds: float = 0.2) -> Rates:
    """Measure the rates of this machine; each dtype takes `seconds`."""
    products = {d: _products(device, d, seconds) for d in dict.fromkeys(dtypes)}
    on_cpu = torch.device(device).type == "cpu"
    cpu = products["float32"] if on_cpu and "float32" in products else _products("cpu", "float32", seconds)
    return Rates(products, cpu, CPU_EFFICIENCY if on_cpu else GPU_EFFICIENCY, DISK_BYTES, _digest())


def _products(device: str, dtype: str, seconds: float) -> float:
    return 2 * matmul_rate(device, seconds=seconds, dtype=getattr(torch, dtype))


def _digest() -> float:
    data = bytes(DIGEST_SAMPLE)
    start = time.perf_counter()
    hashlib.sha256(data).digest()
    return DIGEST_SAMPLE / (time.perf_counter() - start)
