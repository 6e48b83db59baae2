"""How often the interval of a point of `relate.curve` holds the true mean over models like these.

Scores are a mean, effects of the models of both sides (standard deviation 0.02) and of pairs (0.01). Beside it stands a t
interval that takes pairs as independent.

    python benchmarks/curve_coverage.py --runs 2000

prints one row per design: the share of 95 % intervals that hold the mean.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pandas as pd
from scipy import stats

from repalign.relate import curve

MEAN, MODEL_SD, PAIR_SD = 0.2, 0.02, 0.01
DESIGNS = ((10, 8), (12, 17), (5, 4), (12, 1))


def sample(rng: np.random.Generator, n_x: int, n_y: int) -> pd.DataFrame:
    """The pairs of models of one simulated run, at one point."""
    x, y = rng.normal(0, MODEL_SD, n_x), rng.normal(0, MODEL_SD, n_y)
    scores = MEAN + x[:, None] + y[None, :] + rng.normal(0, PAIR_SD, (n_x, n_y))
    pairs = itertools.product([f"x{i}" for i in range(n_x)], [f"y{j}" for j in range(n_y)])
    return pd.DataFrame(pairs, columns=["model_x", "model_y"]).assign(
        scope="max", measure="MutualKNN()", n=1000, statistic=scores.ravel(), null_mean=0.0
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    print("| models | over models | over pairs |\n| --- | --- | --- |")
    for n_x, n_y in DESIGNS:
        rng, held = np.random.default_rng([n_x, n_y]), np.zeros(2)
        for _ in range(runs):
            table = sample(rng, n_x, n_y)
            point = curve(table, "n").table.iloc[0]
            score = table["statistic"].to_numpy()
            pairs = stats.t.interval(0.95, len(score) - 1, score.mean(), stats.sem(score))
            held += [point["low"] <= MEAN <= point["high"], pairs[0] <= MEAN <= pairs[1]]
        print(f"| {n_x} and {n_y} | {held[0] / runs:.3f} | {held[1] / runs:.3f} |", flush=True)


if __name__ == "__main__":
    main()
