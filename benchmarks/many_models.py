"""Many models, all with each other: time for a pair, memory, files, and what the same command costs again.

Every number of models is a process of its own, so that its peak of memory is its own. Features are random, of a common part
and their own; the first models of a larger run are those of a smaller one. Times are of the processor, of all workers
together: they hold on a machine that does other things too. Ratios to the fewest models are the result.

    python benchmarks/many_models.py --models 40 125 250 500 --workers 2
    python benchmarks/many_models.py --models 60 --layers 30 --dim 16 --csv many.csv
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

N, SHARED = 200, 32  # stimuli, and dimensions that all models share


def models(count: int, layers: int, dim: int) -> dict[str, dict[str, np.ndarray]]:
    """Layers by model: a random map of what is shared, and eight times as much noise."""
    base = np.random.default_rng(0).standard_normal((N, SHARED))
    out = {}
    for i in range(count):
        rng = np.random.default_rng([1, i])
        made = (base @ rng.standard_normal((SHARED, dim)) + 8 * rng.standard_normal((N, dim)) for _ in range(layers))
        out[f"model-{i:03d}"] = {f"layer {k}": x.astype("float32") for k, x in enumerate(made)}
    return out


def processor() -> float:
    """Seconds of the processor that this process and its workers that have ended took."""
    return sum(sum(os.times()[k : k + 2]) for k in (0, 2))


def peak() -> float:
    """The most memory that one of the processes held, in GB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e6


def measured(count: int, layers: int, dim: int, workers: int, folder: Path) -> dict[str, float]:
    """One size in this process: computed, asked for again, and its report written."""
    from repalign.comparison import compare
    from repalign.comparison.alignment import Alignment
    from repalign.report import write_report

    given, pairs, results = models(count, layers, dim), count * (count - 1) // 2, folder / "results"
    compare({name: given[name] for name in list(given)[:3]})  # what is imported and compiled once

    start = processor()
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            found = compare(given, results=results, executor=pool)
    else:
        found = compare(given, results=results)
    computed, most = processor() - start, peak()
    files = [path for path in results.rglob("*") if path.is_file()]
    sizes = {name: (results / f"{name}.parquet").stat().st_size / 1e6 for name in ("results", "draws")}
    start = processor()
    again = compare(given, results=results)
    resumed, start = processor() - start, processor()
    page = write_report(results, folder / "report.html", alignment=Alignment(again.table, again.run))
    return {
        "models": count, "pairs": pairs, "rows": len(found.table), "ms a pair": 1e3 * computed / pairs, "seconds": computed,
        "peak GB": most, "files": len(files), "table MB": sizes["results"], "draws MB": sizes["draws"],
        "again, share": resumed / computed, "report s": processor() - start, "report MB": page.stat().st_size / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[40, 125, 250, 500])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # a folder: one size, in this process
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measured(given.models[0], given.layers, given.dim, given.workers, given.one)))
        return
    rows = []
    for count in given.models:
        folder = Path(tempfile.mkdtemp())
        about = [f"--{name}={getattr(given, name)}" for name in ("layers", "dim", "workers")]
        try:
            command = [sys.executable, __file__, "--models", str(count), *about, "--one", str(folder)]
            rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]))
        finally:
            shutil.rmtree(folder)
        table = pd.DataFrame(rows)
        print(table.assign(ratio=table["ms a pair"] / table["ms a pair"].iloc[0]).round(4).to_string(index=False), flush=True)
    if given.csv is not None:
        pd.DataFrame(rows).to_csv(given.csv, index=False)


if __name__ == "__main__":
    main()
