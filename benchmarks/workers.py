"""What two workers give over one: parts of extraction and groups of comparisons, beside what two cores give at all.

One and two workers take turns, so that a neighbour on the machine slows both. The bound is measured in the same turns: the same
loop of matrix products in one worker, then in two at once. A `gain` of 2 would be twice the throughput; `share` is the gain over
that bound. Workers have started before the clock does: a start takes some seconds of a core, whatever there is to do.

    python benchmarks/workers.py --rounds 3

It also says what claims cost: the same extraction in one process with claims and without them, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from repalign import workers
from repalign.comparison import compare
from repalign.dataset import Dataset
from repalign.null import Permutations
from repalign.sources import extract, loop

NETS = Path(__file__).parents[1] / "studies/models/random_nets.py"
SMALL = tuple(f"toy:vision-cnn{width}-untrained" for width in (3, 8, 16))  # of which a part takes 20 ms, most of it beside the net
MODELS = {"small nets": (SMALL, 1), "a network of 4.7 million parameters": ((f"torch:{NETS}:efficientnet_lite0",), 16)}


def burn(products: int = 400) -> None:
    a = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    for _ in range(products):
        a = torch.nn.functional.normalize(a @ a)


def bound(pool: Executor, count: int) -> float:
    """Seconds for four loops, with `count` of them at once."""
    start = time.perf_counter()
    for _ in range(4 // count):
        for future in [pool.submit(burn) for _ in range(count)]:
            future.result()
    return time.perf_counter() - start


def extraction(pool: Executor | None, n: int, models: Sequence[str] = SMALL) -> float:
    """Seconds for the features of some untrained nets."""
    data = Dataset.toy(n)  # made by one process, whoever runs the models
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extract(data, models, folder, rows_per_part=max(1, n // 16), executor=pool)
        return time.perf_counter() - start


def comparison(pool: Executor, n: int) -> float:
    """Seconds for six pairs of models of four layers, with 99 shuffles."""
    models = {f"m{i}": {f"l{j}": torch.randn(n, 64, generator=torch.Generator().manual_seed(10 * i + j)) for j in range(4)}
              for i in range(4)}  # fmt: skip
    start = time.perf_counter()
    compare(models, None, ["MutualKNN(k=10)"], Permutations(999), executor=pool)
    return time.perf_counter() - start


def two_over_one(rounds: int, n: int) -> pd.DataFrame:
    taken: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as opened:
        pools = {count: opened.enter_context(workers.processes(count)) for count in (1, 2)}
        for count, pool in pools.items():  # both have started, and have loaded what they need
            extraction(pool, 64)
            bound(pool, count)
            comparison(pool, 100)
        for _ in range(rounds):
            calls: list[tuple[str, Callable[..., float], int | None]] = [("bound", bound, None), ("comparison", comparison, n // 4)]
            calls += [(name, partial(extraction, models=some), n // less) for name, (some, less) in MODELS.items()]
            for name, call, size in calls:
                for count, pool in pools.items():
                    taken.setdefault(name, {}).setdefault(count, []).append(call(pool, size or count))
    gains = {name: statistics.median(a / b for a, b in zip(by[1], by[2], strict=True)) for name, by in taken.items()}
    rows = [{"work": name, "one": min(by[1]), "two": min(by[2]), "gain": gains[name], "share": gains[name] / gains["bound"]}
            for name, by in taken.items()]  # fmt: skip
    return pd.DataFrame(rows).round(3)


def cost_of_claims(rounds: int, n: int) -> float:
    """The time of the processor that an extraction takes with claims over that without, median of turns."""
    ratios, claims = [], loop.Claims
    for _ in range(rounds):
        took = []
        for made in (claims, lambda files: claims(None)):  # noqa: ARG005
            loop.Claims = made
            start = time.process_time()  # a neighbour on the machine, or its disk, is not in it
            extraction(None, n)
            took.append(time.process_time() - start)
        ratios.append(took[0] / took[1])
    loop.Claims = claims
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    table = two_over_one(asked.rounds, asked.n)
    print(table.to_string(index=False))
    print(f"with claims over without: {cost_of_claims(4 * asked.rounds, asked.n // 4):.3f}")
    if asked.csv is not None:
        table.to_csv(asked.csv, index=False)


if __name__ == "__main__":
    main()
