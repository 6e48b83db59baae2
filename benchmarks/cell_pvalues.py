"""How often a cell of two unrelated layers gets a small p, where one stimulus is far out in both.

Every bilinear measure of `MEASURES` on independent data, x and y (n, 16), Gaussian or Student t with 3 degrees of freedom; row 7
of both is multiplied. Two counts for every measure and design: seeds whose p is below the level by three moments and the Pearson
type III law alone, and by `Moments`, which leaves cells that it does not trust to draws (no less than 1 / 200 at these n, and
so not below either level). Beside the second stands its Wilson 99 % interval, starred where that lies above the level.

A shared outlier is itself something that two layers share. Where the law over relabellings is known to be a mixture, its own p
is below .001 more often than in .1 % of seeds: `exact` is that share, from relabellings that keep the outlier and others.

    python benchmarks/cell_pvalues.py --seeds 500 --csv cell_pvalues.csv
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from repalign.measures import CKA, MEASURES
from repalign.measures.measure import Bilinear, as_features
from repalign.null import Moments, Permutations, calibrate_by_moments

LEVELS = (1e-3, 1e-4)
OUTLIER, WIDTH = 7, 16


def measures() -> dict[str, Bilinear]:
    """All bilinear measures that differ: those of one relation in other units are named together."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_t(3, (2, 60, WIDTH))
    found: dict[float, tuple[list[str], Bilinear]] = {}
    candidates = [m() for m in MEASURES if issubclass(m, Bilinear)]
    for measure in [*candidates, CKA(estimator="biased"), CKA(kernel="rbf")]:
        chance = Moments(Permutations(1))
        a, b = (chance.prepare(measure, [measure.prepare(as_features(v))]) for v in (x, y))
        key = round(float(np.nan_to_num(z_of(measure, chance, a, b)[0])), 6)
        name = type(measure).__name__ if measure in candidates else repr(measure).replace("bandwidth=None, ", "")
        found.setdefault(key, ([], measure))[0].append(name)
    return {", ".join(names): measure for names, measure in found.values()}


def z_of(measure, chance, a, b):
    law = chance.law(measure, a, b)
    observed = measure.closeness_all(a.states, b.states).numpy()
    return ((observed - law.mean) / law.sd)[0, 0], law, observed


def data(n: int, law: str, times: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, n])
    both = rng.standard_normal((2, n, WIDTH)) if law == "Gaussian" else rng.standard_t(3, (2, n, WIDTH))
    both[:, OUTLIER] *= times
    return both


def judged(measure: Bilinear, x: np.ndarray, y: np.ndarray) -> tuple[float, float, bool]:
    """p by three moments, p as reported (1 where draws decide) and whether draws decide."""
    chance = Moments(Permutations(1))
    a, b = (chance.prepare(measure, [measure.prepare(as_features(v))]) for v in (x, y))
    _, law, observed = z_of(measure, chance, a, b)
    three = calibrate_by_moments(observed, *law[:3], s_max=measure.s_max)
    four = calibrate_by_moments(observed, *law[:-1], s_max=measure.s_max)
    drawn = not law.trusted[0, 0]
    return float(three.pvalue[0, 0]), 1.0 if drawn else float(four.pvalue[0, 0]), drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--n", type=int, nargs="+", default=[60, 200])
    parser.add_argument("--data", nargs="+", choices=["Gaussian", "t3"], default=["Gaussian", "t3"])
    parser.add_argument("--times", type=float, nargs="+", default=[1, 5, 10, 30, 100])
    parser.add_argument("--csv", type=Path, help="write the table here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, some = [], measures()
    for n, law in itertools.product(args.n, args.data):
        once: dict[str, list[tuple[float, float, bool]]] = {}  # a measure that normalises rows sees no outlier
        for times in args.times:
            found = {name: once.get(name, []) for name in some}
            todo = {name: measure for name, measure in some.items() if name not in once}
            for seed in range(args.seeds):
                x, y = data(n, law, times, seed)
                for name, measure in todo.items():
                    found[name].append(judged(measure, x, y))
            once |= {name: found[name] for name, m in todo.items() if "row_scale" in m.invariances}
            report(n, law, times, args.seeds, found, rows)
            if args.csv:
                pd.DataFrame(rows).to_csv(args.csv, index=False, float_format="%.5g")


def report(n: int, law: str, times: float, seeds: int, found: dict, rows: list[dict]) -> None:
    """One row for every measure."""
    for name, values in found.items():
        three, reported, drawn = np.array(values, float).T
        row = {"n": n, "data": law, "times": times, "measure": name, "drawn": float(drawn.mean())}
        for level in LEVELS:
            count = int((reported < level).sum())
            low, high = binomtest(count, seeds).proportion_ci(0.99, method="wilson")
            row |= {f"three < {level:g}": int((three < level).sum()), f"reported < {level:g}": count}
            row |= {f"low {level:g}": low, f"high {level:g}": high}
        rows.append(row)
        marks = "".join("*" if row[f"low {level:g}"] > level else "" for level in LEVELS)
        print(" ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()), marks, flush=True)


if __name__ == "__main__":
    main()
