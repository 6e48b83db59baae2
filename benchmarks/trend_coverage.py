"""How often a trend's p-values reject where there is none, and how often its intervals hold the truth.

Alignment of models with 17 partners in 5 families is made of effects of models, families, partners and pairs, with a
slope on a covariate that has a family part too. Beside the package's inference stand two that ignore the structure:
Pearson's r over all pairs, and over models as if families did not exist.

    python benchmarks/trend_coverage.py --runs 4000

prints one row per design: the share of p <= .05, and of answers of the report, without a trend; the coverage
of the 95 % intervals with one.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import stats

from repalign.relate import Crossed, infer

PARTNERS = 17
KIN = np.arange(PARTNERS) % 5
SLOPE = 0.5
MODEL_SD = 0.7


@dataclass(frozen=True)
class Design:
    """Sizes of the families of models; standard deviations of their effects, of pairs, and of slopes over partners."""

    name: str
    sizes: tuple[int, ...]
    family: float = 1.0
    model: float = MODEL_SD
    pair: float = 0.7
    spread: float = 0.0
    heavy: bool = False
    one_set: bool = False

    @property
    def labels(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def draw(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        return rng.standard_t(3, shape) / math.sqrt(3) if self.heavy else rng.standard_normal(shape)

    def sample(self, rng: np.random.Generator, slope: float) -> tuple[np.ndarray, Crossed]:
        """A covariate and scores; half the covariate's variance is the family's, where families have effects."""
        labels, n = self.labels, sum(self.sizes)
        share = math.sqrt(0.5) if self.family else 0.0
        groups = len(self.sizes)
        x = share * self.draw(rng, groups)[labels] + math.sqrt(1 - share**2) * self.draw(rng, n)
        model = self.family * self.draw(rng, groups)[labels] + self.model * self.draw(rng, n)
        names = tuple(f"m{i}" for i in range(n))
        if self.one_set:
            noise = np.triu(self.pair * self.draw(rng, n, n), 1)
            each = model + slope * x
            return x, Crossed(names, names, (each[:, None] + each + noise + noise.T) * (1 - np.eye(n)), 1 - np.eye(n))
        slopes = slope + self.spread * self.draw(rng, 5)[KIN]
        scores = model[:, None] + self.draw(rng, PARTNERS) + x[:, None] * slopes
        scores += self.pair * self.draw(rng, n, PARTNERS)
        return x, Crossed(names, tuple(f"p{j}" for j in range(PARTNERS)), scores, np.ones(scores.shape))

    def families(self) -> dict[str, str]:
        kin = {f"p{j}": f"V{k}" for j, k in enumerate(KIN)}
        return kin | ({f"m{i}": f"F{f}" for i, f in enumerate(self.labels)} if self.family else {})

    @property
    def true_slope(self) -> float:
        """Of a model's mean on its covariate: in one set a model is in its partners' means, which takes 1/(n - 1)."""
        n = sum(self.sizes)
        return SLOPE * (n - 2) / (n - 1) if self.one_set else SLOPE

    @property
    def true_spearman(self) -> float:
        """Of the covariate and the mean over the partners, normal with correlation r: 6/pi * arcsin(r/2)."""
        partners = sum(self.sizes) - 1 if self.one_set else PARTNERS
        r = SLOPE / math.sqrt(SLOPE**2 + self.family**2 + self.model**2 + self.pair**2 / partners)
        return 6 / math.pi * math.asin(r / 2)


DESIGNS = (
    Design("12 models", (1,) * 12, family=0),
    Design("12 models, slopes differ between partners", (1,) * 12, family=0, spread=0.5),
    Design("12 models, noise of pairs alone", (1,) * 12, family=0, model=0, pair=1.0),
    Design("12 models, all against all", (1,) * 12, family=0, one_set=True),
    Design("6 families of 2", (2,) * 6),
    Design("6 families of 2, slopes differ", (2,) * 6, spread=0.5),
    Design("6 families of 2, heavy tails (t3)", (2,) * 6, heavy=True),
    Design("6 families of 1 to 5", (5, 3, 4, 1, 2, 2)),
    Design("4 families of 2 to 5", (5, 3, 2, 2)),
    Design("3 families of 3 to 5", (5, 3, 4)),
)


def one_run(design: Design, seed: int, draws: int) -> Counter[str]:
    rng, hits = np.random.default_rng(seed), Counter[str]()
    x, scores = design.sample(rng, 0.0)
    if not design.spread:  # where partners' slopes differ, a mean slope of 0 is no absence of any relation
        found = infer(scores, x, design.families(), draws=draws, seed=seed)
        assert found is not None
        known = scores.count > 0
        pairs = stats.pearsonr(np.broadcast_to(x[:, None], known.shape)[known], scores.total[known])
        hits["pairs"] += pairs.pvalue <= 0.05
        hits["models"] += stats.pearsonr(x, scores.means()).pvalue <= 0.05
        hits["p"] += found.slope_pvalue <= 0.05
        hits["rank p"] += found.spearman_pvalue <= 0.05
        hits["said"] += found.says in ("more", "less")
        hits["within p"] += found.within is not None and found.within.pvalue <= 0.05
    x, scores = design.sample(rng, SLOPE)
    found = infer(scores, x, design.families(), draws=1, seed=seed)
    assert found is not None
    line = stats.linregress(x, scores.means())
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    hits["models' interval"] += abs(line.slope - design.true_slope) <= half
    hits["interval"] += found.slope_interval[0] <= design.true_slope <= found.slope_interval[1]
    if not math.isnan(found.spearman_interval[0]):
        hits["rank intervals"] += 1
        hits["rank interval"] += found.spearman_interval[0] <= design.true_spearman <= found.spearman_interval[1]
    return hits


def many_runs(design: Design, start: int, runs: int, draws: int) -> Counter[str]:
    return sum((one_run(design, start + i, draws) for i in range(runs)), Counter[str]())


def row(design: Design, hits: Counter[str], runs: int) -> str:
    rejected = ["pairs", "models", "p", "rank p", "said", "within p"]
    cells = ["–" if design.spread else f"{hits[key] / runs:.3f}" for key in rejected]
    cells[-1] = cells[-1] if design.family else "–"
    covered = [hits["models' interval"] / runs, hits["interval"] / runs]
    cells += [f"{value:.3f}" for value in covered]
    cells.append(
        "–" if design.heavy or not hits["rank intervals"] else f"{hits['rank interval'] / hits['rank intervals']:.3f}"
    )
    return " | ".join(["", design.name, *cells, ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=499)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    started = time.perf_counter()
    print(
        "| design | pairs | models | **p** | **rank p** | **answers** | **within p** | models' | **interval** | **rank interval** |"
    )
    print("| --- " * 10 + "|")
    with ProcessPoolExecutor(args.workers) as pool:
        share = math.ceil(args.runs / args.workers)
        for k, design in enumerate(DESIGNS):
            jobs = [
                pool.submit(many_runs, design, k * 10_000_000 + start, min(share, args.runs - start), args.draws)
                for start in range(0, args.runs, share)
            ]
            print(row(design, sum((job.result() for job in jobs), Counter[str]()), args.runs), flush=True)
    print(f"\n{args.runs:,} runs per design, {args.draws} reorderings, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
