"""How time and memory of a comparison grow with each size, and the exponents that theory has for them.

`repalign.compare` on arrays in memory, debiased CKA and mutual k-NN together, from the check of the arrays to the table. One
size grows while the others stay; every point is a process of its own, so that its peak of memory is its own, too. The exponent
is that of the last two points, where fixed costs weigh least: 1 is twice the time for twice the size.

    python benchmarks/growth.py --threads 2 --csv growth.csv
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import repalign
from repalign.null import Auto

BASE = {"n": 1024, "d": 512, "layers": 4, "models": 2, "relabellings": 1}  # of two sides, `models` in all
# What grows, its sizes, and what theory says of time.
AXES = {
    "n": ((512, 1024, 2048, 4096), "2 to 3: products n^2 d, spectra n^2 log n, the fourth moment of a wide layer n^3"),
    "d": ((256, 512, 1024, 2048, 4096), "0 to 1: reading and products grow, neighbours, spectra and moments do not"),
    "layers": ((2, 4, 8, 16, 32), "1 to 2: a layer is prepared once; its pairs are squares"),
    "models": ((2, 4, 8, 16), "1 to 2: a model is prepared once; pairs of models are squares"),
    "relabellings": ((1, 2, 4, 8), "0 to 1: draws of a spectrum each; states and moments are the same"),
}


def point(sizes: dict[str, int], threads: int, runs: int) -> tuple[float, float]:
    """Seconds, and GiB of the process at most beyond what it had before."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    n, d, latent = sizes["n"], sizes["d"], rng.standard_normal((sizes["n"], 16))

    def layer() -> np.ndarray:
        return (latent @ rng.standard_normal((16, d)) + 2 * rng.standard_normal((n, d))).astype(np.float32)

    models = {f"model {m}": {f"layer {i}": layer() for i in range(sizes["layers"])} for m in range(sizes["models"])}
    null, before = Auto(relabellings=sizes["relabellings"]), peak()
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        repalign.compare(models, measures=["CKA()", "MutualKNN(k=10)"], null=null)
        found.append(time.perf_counter() - start)
    return min(found), peak() - before


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def points(axis: str, values: tuple[int, ...], threads: int, runs: int) -> Iterator[dict[str, object]]:
    for value in values:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
            seconds, memory = other.submit(point, {**BASE, axis: value}, threads, runs).result()
        yield {"axis": axis, "value": value, "seconds": seconds, "GiB": memory}


def exponent(some: pd.DataFrame, column: str) -> float:
    """By how much the logarithm grows from the last but one to the last."""
    (a, b), (p, q) = (some[name].to_numpy()[-2:] for name in ("value", column))
    return math.log(q / p) / math.log(b / a) if p > 0 and q > 0 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="where to write the points")
    args = parser.parse_args()
    rows = []
    print(f"at {', '.join(f'{name} = {value:,}' for name, value in BASE.items())}, {args.threads} threads")
    for axis in args.axes:
        values, theory = AXES[axis]
        some = pd.DataFrame(list(points(axis, values, args.threads, args.runs)))
        rows.append(some)
        print(f"\n{axis}: time grows by the power {exponent(some, 'seconds'):.2f}, memory by {exponent(some, 'GiB'):.2f}")
        print(f"  theory, of time: {theory}")
        for row in some.itertuples():
            print(f"  {row.value:6,}  {row.seconds:8.2f} s  {row.GiB:6.2f} GiB", flush=True)
    if args.csv:
        pd.concat(rows).to_csv(args.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
