"""Neighbour search beside the bare matrix products that it needs: exact for all rows, and anchors at a million.

exact    `nearest` on n rows, embedding included. Products: every pair of tiles of the upper triangle once, with the tile
         shapes of the search. compare: mutual k-NN of two sets of lists.
anchors  mutual k-NN of two float16 memory maps from a sample of rows. Products: anchors x rows, both sides, by blocks.

Every line is a process of its own, so that its peak memory is its own; it is counted beyond the features. Search and
products take turns, so that a neighbour on the machine slows both; seconds are by the clock, and `cpu ratio` compares
processor time, which a busy machine disturbs less if threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE). Pages of
memory maps that the system keeps count as memory here, though it may drop them at any time.

    python benchmarks/neighbors.py --n 4096 16384 65536 100000 --anchors 1000000 --csv neighbors.csv
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repalign.comparison import anchored_mutual_knn
from repalign.measures import MutualKNN
from repalign.measures.numerics.rows import SCRATCH_BYTES, blocks
from repalign.measures.numerics.search import embed, nearest

BLOCK = 4096
SHARED = 16  # dimensions that both sides of the anchor pair have in common


def clocked(task: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, seconds by the clock, seconds of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = task()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def lower(before: list[float], now: tuple[float, float]) -> list[float]:
    return [min(pair) for pair in zip(before, now, strict=True)]


def peak() -> float:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def features(n: int, d: int, seed: int, mean: float) -> Tensor:
    """Gaussian rows about a common mean."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).add_(mean)


def triangle(x: Tensor) -> None:
    tiles = blocks(len(x), 1, math.isqrt(SCRATCH_BYTES // (4 * x.element_size())))  # as the search takes them
    scratch = x.new_empty(len(x[tiles[0]]) ** 2)
    for t, across in enumerate(tiles):
        for along in tiles[: t + 1]:
            a, b = x[along], x[across]
            torch.mm(a, b.T, out=scratch[: len(a) * len(b)].view(len(a), len(b)))


def exact(n: int, d: int, k: int, similarity: str, mean: float, threads: int, repeat: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    x = features(n, d, 1, mean)
    x[:1024] @ x[:1024].T  # warm up
    before = peak()
    lists, *search = clocked(lambda: nearest(embed(x, similarity), k))
    held = peak() - before
    _, *product = clocked(lambda: triangle(x))
    for _ in range(repeat - 1):
        search = lower(search, clocked(lambda: nearest(embed(x, similarity), k))[1:])
        product = lower(product, clocked(lambda: triangle(x))[1:])
    measure = MutualKNN(k=k, similarity=similarity)
    states = [measure.prepare(f) for f in (x[: k + 2], x[: k + 2])]
    states = [type(s)(indices) for s, indices in zip(states, (lists, lists.roll(1, 0)), strict=True)]
    _, compare, _ = clocked(lambda: measure.compare(*states))
    return row("exact " + similarity, n, d, k, n, search, product, held) | {"compare": compare}


def row(
    what: str, n: int, d: int, k: int, anchors: int, search: list[float], product: list[float], held: float
) -> dict[str, object]:
    return {
        "what": what,
        "n": n,
        "d": d,
        "k": k,
        "anchors": anchors,
        "seconds": search[0],
        "products": product[0],
        "ratio": search[0] / product[0],
        "cpu ratio": search[1] / product[1],
        "peak MB": held,
    }


def write(path: Path, n: int, d: int, seed: int) -> np.memmap:
    """Noise plus a latent that is the same function of the row for every seed, in float16."""
    mapped = np.memmap(path, np.float16, "w+", shape=(n, d))
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SHARED, d, generator=generator)
    for start in range(0, n, BLOCK):
        rows = min(BLOCK, n - start)
        latent = torch.randn(rows, SHARED, generator=torch.Generator().manual_seed(start))
        mapped[start : start + rows] = torch.randn(rows, d, generator=generator).addmm_(latent, mixing).numpy()
    mapped.flush()
    return np.memmap(path, np.float16, "r", shape=(n, d))


def sampled(n: int, d: int, k: int, anchors: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="repalign-") as folder:
        x, y = (write(Path(folder) / str(seed), n, d, seed) for seed in (1, 2))
        queries, block = features(anchors, d, 3, 0), features(BLOCK, d, 4, 0)
        out = queries @ block.T
        before = peak()
        result, *search = clocked(lambda: anchored_mutual_knn(x, y, k, n_anchors=anchors, block=BLOCK))
        held = peak() - before

    def products() -> None:
        for _ in range(2 * n // BLOCK):
            torch.mm(queries, block.T, out=out)

    _, *product = clocked(products)
    scores = {name: getattr(result, name) for name in ("statistic", "low", "high")}
    return row("anchors cosine", n, d, k, anchors, search, product, held) | scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="*", default=[4096, 8192, 16384, 32768, 65536], help="sizes, exact")
    parser.add_argument("--similarity", nargs="*", default=["cosine"])
    parser.add_argument("--mean", type=float, default=0.5, help="common mean of all features, in their deviations")
    parser.add_argument("--anchors", type=int, nargs="*", default=[], help="sizes for the anchor estimate")
    parser.add_argument("--n-anchors", type=int, default=2000)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows = []
    tasks = [
        (exact, (n, given.d, given.k, similarity, given.mean, given.threads, 3 if n <= 20_000 else 1))
        for n in given.n
        for similarity in given.similarity
    ] + [(sampled, (n, given.d, given.k, given.n_anchors, given.threads)) for n in given.anchors]
    print(f"{given.threads} threads, float32 products, d = {given.d}, k = {given.k}")
    for task, arguments in tasks:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(task, arguments)
        rows.append(found)
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in found.items()
            ),
            flush=True,
        )
        if given.csv:
            pd.DataFrame(rows).to_csv(given.csv, index=False)


if __name__ == "__main__":
    main()
