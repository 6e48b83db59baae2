"""How often intervals of `relate.bins` and `relate.agreement` hold the truth, and how often their p rejects without cause.

Scores of models compared among themselves are a mean, effects of both models (standard deviation 0.7) and of the pair
(0.7). Bins: two of equally many models that do not differ. Agreement: two measures whose effects are independent, or
correlate at .6, with the truth from one draw of 2,000 models. Beside the package stand intervals and p over pairs.

    python benchmarks/models_coverage.py --runs 1000

prints one row per number of models: coverage of 95 % intervals, and the share of p <= .05 where nothing differs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import numpy as np
import pandas as pd
from scipy import stats

from repalign.relate import agreement, bins

MODEL_SD = PAIR_SD = 0.7
SHARED = 0.6
MEASURES = ("CKA()", "RV()")
TRUTH_MODELS = 2_000


def sample(rng: np.random.Generator, n: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Two symmetric arrays of scores whose effects correlate."""
    model, pair = rng.standard_normal((3, n)), rng.standard_normal((3, n, n))
    out = []
    for k in (1, 2):
        a = MODEL_SD * (math.sqrt(shared) * model[0] + math.sqrt(1 - shared) * model[k])
        e = PAIR_SD * (math.sqrt(shared) * pair[0] + math.sqrt(1 - shared) * pair[k])
        out.append(a[:, None] + a[None] + np.triu(e, 1) + np.triu(e, 1).T)
    return out[0], out[1]


def table(scores: np.ndarray, measure: str) -> pd.DataFrame:
    """The pairs of models as an alignment has them."""
    pairs = list(itertools.combinations(range(len(scores)), 2))
    return pd.DataFrame(
        {
            "scope": "max", "measure": measure, "model_x": [f"m{i}" for i, _ in pairs], "n": 1000,
            "model_y": [f"m{j}" for _, j in pairs], "statistic": [scores[p] for p in pairs], "null_mean": 0.0,
        }
    )  # fmt: skip


def run_bins(rng: np.random.Generator, n: int, draws: int, seed: int) -> dict[str, bool]:
    """One bin's mean is 0, and two bins do not differ."""
    models = [{"name": f"m{i}", "scores": {"vtab_solved": float(i)}} for i in range(n)]
    found = bins(table(sample(rng, n, 0.0)[0], MEASURES[0]), models, "vtab_solved", bins=2, draws=draws, seed=seed)
    first, low, high = found.within.iloc[0], *found.difference_interval
    half = stats.t.ppf(0.975, first["n_pairs"] - 1) * first["se"]
    return {
        "models": first["low"] <= 0 <= first["high"],
        "pairs": abs(first["alignment"]) <= half,
        "difference": low <= 0 <= high,
        "p": found.pvalue <= 0.05,
    }


def run_agreement(rng: np.random.Generator, n: int, draws: int, seed: int, truth: float) -> dict[str, bool]:
    """Two unrelated measures, and two related ones."""
    upper = np.triu_indices(n, 1)
    apart, alike = sample(rng, n, 0.0), sample(rng, n, SHARED)
    null = agreement(pd.concat(map(table, apart, MEASURES)), draws=draws, seed=seed).table.iloc[0]
    found = agreement(pd.concat(map(table, alike, MEASURES)), draws=draws, seed=seed).table.iloc[0]
    rho = stats.spearmanr(alike[0][upper], alike[1][upper]).statistic
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(upper[0]) - 3))  # Bonett and Wright, as if pairs were independent
    return {
        "interval": found["low"] <= truth <= found["high"],
        "interval over pairs": abs(math.atanh(rho) - math.atanh(truth)) <= half,
        "p": null["pvalue"] <= 0.05,
        "p over pairs": stats.spearmanr(apart[0][upper], apart[1][upper]).pvalue <= 0.05,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=199)
    args = parser.parse_args()
    started = time.perf_counter()
    upper = np.triu_indices(TRUTH_MODELS, 1)
    large = sample(np.random.default_rng(0), TRUTH_MODELS, SHARED)
    truth = float(stats.spearmanr(large[0][upper], large[1][upper]).statistic)
    print("| | models | " + " | ".join(["over models", "over pairs", "difference", "p", "p over pairs"]) + " |")
    print("| --- " * 7 + "|")
    for n in (8, 12, 24):
        rng = np.random.default_rng(n)
        hits = pd.DataFrame([run_bins(rng, n, args.draws, k) for k in range(args.runs)]).mean()
        cells = [f"{hits[key]:.3f}" for key in ("models", "pairs", "difference", "p")]
        print(f"| bins | {n} | {' | '.join(cells)} | – |", flush=True)
    for n in (8, 12, 24):
        rng = np.random.default_rng(100 + n)
        hits = pd.DataFrame([run_agreement(rng, n, args.draws, k, truth) for k in range(args.runs)]).mean()
        cells = [f"{hits[key]:.3f}" for key in ("interval", "interval over pairs")]
        print(f"| agreement | {n} | {' | '.join(cells)} | – | {hits['p']:.3f} | {hits['p over pairs']:.3f} |", flush=True)
    print(f"\n{args.runs:,} runs, {args.draws} reorderings, rho = {truth:.3f}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
