"""How often the interval of a difference between two models, over their partners, holds the truth.

Two models meet the same partners. The difference of their scores with a partner is the true difference, an effect of the
partner's family, one of the partner, and noise of the pair. The interval leaves out one family at a time where there are at
least three, else one partner. Beside it stands a t interval over partners as if there were no families.

    python benchmarks/difference_coverage.py --runs 4000

prints one row per design: the coverage of both 95 % intervals, and the median width of the package's.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from repalign.relate import difference_of_models

TRUTH = 0.5


@dataclass(frozen=True)
class Design:
    """Sizes of the families of partners, and standard deviations of what makes their differences differ."""

    name: str
    sizes: tuple[int, ...]
    family: float = 1.0
    partner: float = 0.5
    pair: float = 0.5
    heavy: bool = False

    def sample(self, rng: np.random.Generator) -> tuple[pd.DataFrame, dict[str, str]]:
        """The pairs of two models, `a` and `b`, with all partners, and the families of these."""
        labels = np.repeat(np.arange(len(self.sizes)), self.sizes)
        n, names = len(labels), [f"p{j}" for j in range(sum(self.sizes))]

        def draw(count: int) -> np.ndarray:
            return rng.standard_t(3, count) / math.sqrt(3) if self.heavy else rng.standard_normal(count)

        level = draw(n)  # of a partner with both models: it leaves no trace in their difference
        gap = TRUTH + self.family * draw(len(self.sizes))[labels] + self.partner * draw(n)
        scores = np.concatenate([level + gap + self.pair * draw(n), level + self.pair * draw(n)])
        table = pd.DataFrame({"model_x": ["a"] * n + ["b"] * n, "model_y": names * 2, "statistic": scores})
        return table, {name: f"F{k}" for name, k in zip(names, labels, strict=True)} if self.family else {}


DESIGNS = (
    Design("10 partners without families", (1,) * 10, family=0),
    Design("10 partners, noise of pairs alone", (1,) * 10, family=0, partner=0),
    Design("10 partners, heavy tails (t3)", (1,) * 10, family=0, heavy=True),
    Design("3 partners", (1,) * 3, family=0),
    Design("6 families of 2", (2,) * 6),
    Design("4 families of 2 to 5", (5, 3, 2, 2)),
    Design("4 families of 1 to 5, as in the demo", (5, 3, 1, 1)),
    Design("3 families of 3 to 5", (5, 3, 4)),
    Design("6 families of 2, heavy tails (t3)", (2,) * 6, heavy=True),
    Design("2 families, so partners are left out (9 and 1)", (9, 1)),
)


def one_run(design: Design, seed: int) -> tuple[bool, bool, float]:
    """Whether the package's interval and the t interval over partners hold the truth, and the width of the first."""
    table, families = design.sample(np.random.default_rng(seed))
    found = difference_of_models(table, "x", ["a"], ["b"], families)
    assert found is not None
    n = found.n_partners
    gaps = table["statistic"].to_numpy()[:n] - table["statistic"].to_numpy()[n:]
    half = stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / math.sqrt(n)
    return found.low <= TRUTH <= found.high, abs(gaps.mean() - TRUTH) <= half, found.high - found.low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    args = parser.parse_args()
    started = time.perf_counter()
    print("| design | t over partners | **interval** | median width |\n| --- | --- | --- | --- |")
    for k, design in enumerate(DESIGNS):
        found = [one_run(design, 10_000_000 * k + run) for run in range(args.runs)]
        ours, plain, wide = (np.array(v) for v in zip(*found, strict=True))
        print(f"| {design.name} | {plain.mean():.3f} | {ours.mean():.3f} | {np.median(wide):.2f} |", flush=True)
    print(f"\n{args.runs:,} runs per design, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
