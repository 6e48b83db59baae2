"""Coverage of the intervals over stimuli, on a population whose true value is known.

A latent z of 6 normal dimensions is seen through three linear maps with added noise, 16 features each:

    A = z P + e_A        B = z Q + e_B        C = z Q + e_C        D = z' Q + e_D,  z' independent of z

Estimands at each n, for debiased CKA and mutual k-NN (k = 10): the score E[s(A, B)], the score of independent spaces
E[s(A, D)], and the difference E[s(A, B) - s(A, C)], which is 0 exactly because B and C are exchangeable given A. The
two scores' true values are means over fresh samples of n stimuli, `--truth` of them.

`se ratio` is the root of the mean squared standard error over the standard deviation of the statistic: above 1 the
interval is wider than it need be. `coverage` comes with its Wilson 95 % interval. A second table shows what is not
done, at the first n: rows drawn with replacement, and single subsets of m rows scaled by m / (n - m).

    python benchmarks/interval_coverage.py                         # n = 200
    python benchmarks/interval_coverage.py --sizes 200 500 --jobs 2 --figure docs/images/coverage.png
    python benchmarks/interval_coverage.py --measures neighbors BuresDistance --trials 60 --truth 200
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch

from repalign.comparison.intervals import METHODS, Interval, difference_interval, score_interval
from repalign.measures import Measure, parse_measures

LATENT, WIDTH, NOISE = 6, 16, 1.0
MAPS = np.random.default_rng(99).standard_normal((2, LATENT, WIDTH)) * 1.5 / math.sqrt(LATENT)
Arrays = dict[str, np.ndarray]


def sample(n: int, rng: np.random.Generator) -> Arrays:
    """One sample of n stimuli, seen by A, B, C and D."""
    z, other = rng.standard_normal((2, n, LATENT))
    signal = {"A": z @ MAPS[0], "B": z @ MAPS[1], "C": z @ MAPS[1], "D": other @ MAPS[1]}
    return {name: x + NOISE * rng.standard_normal((n, WIDTH)) for name, x in signal.items()}


@dataclass(frozen=True)
class Case:
    """An estimand: its statistic, its interval, and its true value where theory gives it."""

    name: str
    statistic: Callable[[Measure, Arrays], float]
    interval: Callable[..., Interval]
    truth: float | None = None


CASES = (
    Case("score", lambda m, a: m(a["A"], a["B"]), lambda m, a, **how: score_interval(a["A"], a["B"], m, **how)),
    Case("independent", lambda m, a: m(a["A"], a["D"]), lambda m, a, **how: score_interval(a["A"], a["D"], m, **how)),
    Case(
        "difference",
        lambda m, a: m(a["A"], a["B"]) - m(a["A"], a["C"]),
        lambda m, a, **how: difference_interval(a["A"], a["B"], a["C"], m, **how),
        truth=0.0,
    ),
)


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share."""
    share, weight = hits / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return centre - reach, centre + reach


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    measure: str
    case: str
    n: int
    method: str
    truth: float
    ratio: float
    hits: int
    trials: int
    seconds: float

    @property
    def coverage(self) -> float:
        return self.hits / self.trials

    def __str__(self) -> str:
        low, high = wilson(self.hits, self.trials)
        return (
            f"| {self.measure} | {self.case} | {self.n} | {self.method} | {self.truth:.4f} | {self.ratio:.2f} "
            f"| {self.coverage:.3f} | {low:.3f} to {high:.3f} | {1000 * self.seconds:.0f} |"
        )


def rows(measure: Measure, which: int, n: int, trials: int, fresh: int) -> list[Row]:
    """Both methods, with their defaults, on the same samples of case number `which`."""
    case = CASES[which]
    truth = case.truth
    if truth is None:
        truth = float(
            np.mean([case.statistic(measure, sample(n, np.random.default_rng([2, n, t]))) for t in range(fresh)])
        )
    out = []
    for method in METHODS:
        start = time.process_time()
        found = [
            case.interval(measure, sample(n, np.random.default_rng([1, n, t])), seed=t, method=method)
            for t in range(trials)
        ]
        seconds = (time.process_time() - start) / trials
        hits = sum(f.low <= truth <= f.high for f in found)
        error = math.sqrt(np.mean([f.std_error**2 for f in found])) / np.std([f.statistic for f in found], ddof=1)
        out.append(Row(type(measure).__name__, case.name, n, method, truth, error, hits, trials, seconds))
    return out


def alternatives(measure: Measure, n: int, trials: int, draws: int = 20) -> list[str]:
    """Lines for resampling with replacement and for single subsets: mean of the replicates, and the se ratio."""
    ways = {"with replacement": (n, True), "subsets of n/2": (n // 2, False), "subsets of n/4": (n // 4, False)}
    scores, means, variances = [], {w: [] for w in ways}, {w: [] for w in ways}
    for t in range(trials):
        rng = np.random.default_rng([3, n, t])
        arrays = sample(n, rng)
        a, b = (torch.from_numpy(arrays[name]) for name in "AB")
        scores.append(measure(a, b))
        for way, (m, replace) in ways.items():
            picked = [torch.from_numpy(rng.choice(n, m, replace=replace)) for _ in range(draws)]
            found = [measure(a[p], b[p]) for p in picked]
            means[way].append(np.mean(found))
            variances[way].append(np.var(found, ddof=1) * (1 if replace else m / (n - m)))
    return [
        f"| {type(measure).__name__} | {n} | {way} | {np.mean(scores):.4f} | {np.mean(means[way]):.4f} "
        f"| {math.sqrt(np.mean(variances[way])) / np.std(scores, ddof=1):.2f} |"
        for way in ways
    ]


def draw(table: list[Row], path: str) -> None:
    """Coverage with Wilson's interval, and the se ratio, one line per row of the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 0.45 * len(table) / 2 + 1.2), sharey=True, layout="constrained"
    )
    names = list(dict.fromkeys((r.measure, r.case, r.n) for r in table))
    colours = dict(zip(METHODS, ("#1b6ca8", "#d1602b"), strict=True))
    for method, shift in zip(METHODS, (-0.14, 0.14), strict=True):
        mine = [r for r in table if r.method == method]
        at = np.array([names.index((r.measure, r.case, r.n)) + shift for r in mine])
        ends = np.array([wilson(r.hits, r.trials) for r in mine])
        left.hlines(at, ends[:, 0], ends[:, 1], color=colours[method])
        left.plot([r.coverage for r in mine], at, "o", color=colours[method], label=method)
        right.plot([r.ratio for r in mine], at, "o", color=colours[method])
    left.axvline(0.95, color="0.4", lw=1)
    right.axvline(1, color="0.4", lw=1)
    left.set(
        xlabel="coverage, nominal 95 %",
        yticks=range(len(names)),
        yticklabels=[f"{m}, {c}, n = {n}" for m, c, n in names],
    )
    right.set(xlabel="standard error / true standard deviation")
    left.invert_yaxis()
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.93")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200])
    parser.add_argument("--measures", nargs="+", default=["CKA()", "MutualKNN(k=10)"], help="measures, or families of them")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--truth", type=int, default=2000, help="samples behind each true value")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--figure", help="where to draw the first table")
    given = parser.parse_args()
    measures = parse_measures(given.measures)
    table: list[Row] = []
    tasks = [(m, c, n, given.trials, given.truth) for n in given.sizes for m in measures for c in range(len(CASES))]
    others = [(m, given.sizes[0], given.trials // 2) for m in measures]
    with ProcessPoolExecutor(
        given.jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        print("| measure | estimand | n | method | true value | se ratio | coverage | Wilson 95 % | ms |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for found in pool.map(rows, *zip(*tasks, strict=True)):
            table += found
            print(*found, sep="\n", flush=True)
        print("\n| measure | n | not done | score | mean of the replicates | se ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        for lines in pool.map(alternatives, *zip(*others, strict=True)):
            print(*lines, sep="\n", flush=True)
    if given.figure:
        draw(table, given.figure)


if __name__ == "__main__":
    main()
