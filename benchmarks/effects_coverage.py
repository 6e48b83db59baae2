"""How often p of `relate.effects` rejects for a factor without effect, and how often its intervals hold a true one.

Alignment of models with 8 partners is made of effects of runs, models, partners and pairs. `real` has a slope of 1 on
it, `idle` has none but goes together with `real` (r = .6), and `word` has three levels and no effect. Beside it stands
what ignores the structure: least squares over pairs.

    python benchmarks/effects_coverage.py --runs 1000

prints one row per design: the share of p <= .05 for each factor, and the coverage of the 95 % intervals.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from repalign.relate import effects

PARTNERS = 8
CORRELATION = 0.6


@dataclass(frozen=True)
class Design:
    """How many runs of how many models (checkpoints); standard deviations of runs, models, pairs; heavy tails."""

    name: str
    runs: int
    each: int = 1
    run: float = 0.0
    model: float = 1.0
    pair: float = 0.5
    heavy: bool = False

    def sample(self, seed: int) -> tuple[pd.DataFrame, list[dict]]:
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_t(3, shape) / 3**0.5 if self.heavy else rng.standard_normal(shape)

        n, of = self.runs * self.each, np.repeat(np.arange(self.runs), self.each)
        real = rng.standard_normal(n)
        idle = CORRELATION * real + (1 - CORRELATION**2) ** 0.5 * rng.standard_normal(n)
        word = np.array(["a", "b", "c"])[rng.permutation(self.runs) % 3][of]
        model = real + self.run * draw(self.runs)[of] + self.model * draw(n)
        scores = model[:, None] + draw(PARTNERS) + self.pair * draw(n, PARTNERS)
        i, j = np.indices(scores.shape).reshape(2, -1)
        names = {"model_x": [f"m{k}" for k in i], "model_y": [f"p{k}" for k in j]}
        table = pd.DataFrame({**names, "statistic": scores.ravel()}).assign(scope="max", measure="CKA()", n=1)
        columns = zip(real.tolist(), idle.tolist(), word.tolist(), [f"run {r}" for r in of], strict=True)
        factors = [dict(zip(("real", "idle", "word", "run"), row, strict=True)) for row in columns]
        return table, [{"name": f"m{k}", "factors": f} for k, f in enumerate(factors)]


DESIGNS = (
    Design("14 models", 14),
    Design("30 models", 30),
    Design("30 models, noise of pairs alone", 30, model=0.0, pair=1.0),
    Design("30 models, heavy tails (t3)", 30, heavy=True),
    Design("14 runs of 3 models", 14, 3, run=1.0, model=0.3),
    Design("30 runs of 3 models", 30, 3, run=1.0, model=0.3),
    Design("30 runs of 3 models, heavy tails (t3)", 30, 3, run=1.0, model=0.3, heavy=True),
)


def one_run(design: Design, seed: int, draws: int) -> Counter[str]:
    table, models = design.sample(seed)
    found = effects(table, models, ["real", "idle", "word"], draws=draws, seed=seed).table.set_index("factor")
    hits = Counter({name: int(found.loc[name, "pvalue"] <= 0.05) for name in found.index})
    for name, slope in (("real", 1.0), ("idle", 0.0)):
        row = found.loc[name]
        true = slope * row.effect / row.per_unit  # per standard deviation
        hits[f"{name} interval"] = int(row.low <= true <= row.high)
    by = pd.DataFrame([m["factors"] for m in models]).loc[[int(name[1:]) for name in table["model_x"]]]
    x = np.column_stack([np.ones(len(by)), by["real"], by["idle"], by["word"] == "a", by["word"] == "b"]).astype(float)
    y = table["statistic"].to_numpy()
    b, rest, *_ = np.linalg.lstsq(x, y, rcond=None)
    variance = rest[0] / (len(y) - x.shape[1]) * np.linalg.inv(x.T @ x)[2, 2]
    hits["pairs"] = int(2 * stats.norm.sf(abs(b[2]) / variance**0.5) <= 0.05)
    return hits


def many_runs(design: Design, seeds: Sequence[int], draws: int) -> Counter[str]:
    return sum((one_run(design, seed, draws) for seed in seeds), Counter[str]())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=199)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    started, columns = time.perf_counter(), ("pairs", "idle", "word", "real", "idle interval", "real interval")
    print("| design | idle over pairs | **idle** | **word** | real (power) | **idle interval** | **real interval** |")
    print("| --- " * 7 + "|")
    with ProcessPoolExecutor(args.workers) as pool:
        for k, design in enumerate(DESIGNS):
            seeds = [k * 1_000_000 + i for i in range(args.runs)]
            parts = [seeds[w :: args.workers] for w in range(args.workers)]
            jobs = [pool.submit(many_runs, design, part, args.draws) for part in parts]
            hits = sum((job.result() for job in jobs), Counter[str]())
            print(f"| {design.name} | " + " | ".join(f"{hits[c] / args.runs:.3f}" for c in columns) + " |", flush=True)
    print(f"\n{args.runs:,} runs per design, {args.draws} draws, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
