"""Linear CKA streamed from the store, beside the bare matrix products that it needs.

Two synthetic models are written through the feature store in float16, then read back with every digest checked, widened
to float32 and multiplied. The limit is X'Y, X'X and Y'Y, all three as full float32 products of the same block shapes,
at the highest rate that this process has measured up to the end of the run, so that a neighbour on the machine can only
lower the ratio. A ratio of 1 means that reading, checking, decoding and centring cost no more than what the triangles
of the self-products save.

    python benchmarks/streaming.py --n 1000000 --d 768

Needs about 4 n d bytes of disk (3 GB) in the temporary folder, which `TMPDIR` moves.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from repalign.comparison import matmul_rate, plan, stream_cka
from repalign.models import ModelRecord
from repalign.store import FeatureStore, StoredRepresentation

LAYER = "last"
SHARED = 16  # dimensions that both models have in common


def write(store: FeatureStore, name: str, n: int, d: int, rows: int, seed: int) -> StoredRepresentation:
    """A model whose features are noise about 3, plus a shared latent that is the same function of the row."""
    record = ModelRecord(f"toy:{name}", name, "text", None)
    ids = [f"{i:07d}" for i in range(n)]
    dataset = {"name": f"synthetic-{n}", "fingerprint": f"{n:064x}", "n": n}
    writer = store.writer(dataset=dataset, record=record, settings={"seed": seed}, ids=ids, rows_per_part=rows)
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SHARED, d, generator=generator)
    for part in writer.missing():
        latent = torch.randn(part.n, SHARED, generator=torch.Generator().manual_seed(part.start))
        x = torch.randn(part.n, d, generator=generator).add_(3).addmm_(latent, mixing, alpha=0.5)
        writer.write(part, {LAYER: x.half()}, header={"weights_fingerprint": str(seed)})
    return writer.finish(record, {})


def peak() -> float:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: str, n: int, d: int, part: int, block: int, rates: list[float]) -> dict[str, float]:
    """One row of the table; rates of the matrix product are added to `rates`."""
    store = FeatureStore(folder)
    x, y = write(store, "one", n, d, part, seed=1), write(store, "two", n, d, part, seed=2)
    rates.append(matmul_rate(rows=block, width=d, seconds=1))
    held = peak()
    start = time.perf_counter()
    result = stream_cka((x, LAYER), (y, LAYER), block=block)
    seconds = time.perf_counter() - start
    rates.append(matmul_rate(rows=block, width=d, seconds=1))
    limit = 3 * n * d * d / max(rates)
    return {
        "n": n,
        "CKA": result.statistic,
        "seconds": seconds,
        "products": limit,
        "ratio": limit / seconds,
        "GFLOP/s": 2 * max(rates) / 1e9,
        "MB before": held,
        "peak MB": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--n", type=int, default=1_000_000, help="rows of the largest run; tenths down to 10,000 come first"
    )
    parser.add_argument("--d", type=int, default=768, help="features of both models")
    parser.add_argument("--block", type=int, default=4096, help="rows of a block")
    parser.add_argument("--part", type=int, default=4096, help="rows of a part of the store")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = sorted({given.n // 10**j for j in range(3) if given.n // 10**j >= 10_000} | {given.n})
    rates = [matmul_rate(rows=given.block, width=given.d, seconds=2)]
    print(plan(given.n, given.d, given.d, block=given.block, rate=rates[0]).sentence)
    print(f"{given.threads} threads, d = {given.d}, blocks of {given.block:,} rows, parts of {given.part:,} rows")
    rows = []
    for n in sizes:
        with tempfile.TemporaryDirectory(prefix="repalign-") as folder:
            rows.append(measure(folder, n, given.d, given.part, given.block, rates))
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    if given.csv:
        pd.DataFrame(rows).to_csv(given.csv, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
